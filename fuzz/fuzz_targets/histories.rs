//! Histories with faults and crashes, checked by the oracle of `tests/crash`. After a crash the store opens in the state of one
//! point of the history, at or after the last acknowledged one, and works. The same holds if that opening crashes too.
//!
//! An input is: up to three faults (step, kind), the step of the opening at which it crashes, the number of bytes that decide
//! what each crash leaves, these bytes, and acts of four bytes each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::{DiskFault, SimulatedDisk};
use oncekey::{Fingerprint, ManualClock};
use oncekey_fuzz::acts;
use oncekey_fuzz::input::Input;
use oncekey_fuzz::world::{START_MS, World, options};

const MAX_ACTS: usize = 96;

/// Returns what a crash leaves of the disk. Each byte of `decisions` decides about one unsynced sector, or about the length
/// of the file. Beyond them each sector keeps its synced content, or (`latest`) gets the last option: its newest content,
/// or garbage if it never held synced bytes.
fn crash(disk: &SimulatedDisk, decisions: &mut Input<'_>, latest: bool) -> SimulatedDisk {
    disk.crash(|of| match decisions.0.split_first() {
        Some((first, rest)) => {
            decisions.0 = rest;
            usize::from(*first) % of
        }
        None if latest => of - 1,
        None => 0,
    })
}

fn check(world: &World, image: &SimulatedDisk, what: &str) {
    let opened = options(&world.clock).open_simulated(image);
    let store = opened.unwrap_or_else(|error| panic!("{what}: the store does not open: {error}"));
    let check = |store: &oncekey::Store| world.check(store).unwrap_or_else(|why| panic!("{what}: {why}"));
    check(&store);
    world.exercise(&store).unwrap_or_else(|why| panic!("{what}: {why}"));
    store.close().unwrap_or_else(|error| panic!("{what}: the store does not close: {error}"));
    let store = options(&world.clock)
        .open_simulated(image)
        .unwrap_or_else(|error| panic!("{what}: the store does not open again: {error}"));
    check(&store);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let disk = SimulatedDisk::new();
    for _ in 0..3 {
        let (step, kind) = (input.u16(), input.u8());
        let fault = match kind % 8 {
            0 | 1 => DiskFault::PowerLoss,
            2 => DiskFault::Error,
            3 => DiskFault::ErrorFromNowOn,
            4 => DiskFault::Interrupted,
            5 => DiskFault::Short,
            _ => continue,
        };
        disk.fault_at(u64::from(step % 1_024), fault);
    }
    let (again, latest) = (u64::from(input.u8()), input.u8() & 1 != 0);
    let how_many = usize::from(input.u8());
    let mut decisions = Input(input.take(how_many));

    let Ok(mut world) = World::new(disk.clone()) else {
        // A fault during the creation of the store. Nothing was acknowledged, but a new store must work.
        let image = crash(&disk, &mut decisions, latest);
        let store =
            options(&ManualClock::new(START_MS)).open_simulated(&image).expect("a store can be created");
        store.record("k", Fingerprint::NONE, b"r").expect("the store works");
        return;
    };
    let mut acts_done = 0;
    while !input.is_empty() && acts_done < MAX_ACTS && world.perform(acts::decode(&mut input)).is_ok() {
        acts_done += 1;
    }
    world.die();

    let image = crash(&disk, &mut decisions, latest);
    // Crash the opening as well, at one of its steps.
    let trial = SimulatedDisk::holding(image.bytes());
    trial.fault_at(again, DiskFault::PowerLoss);
    drop(options(&world.clock).open_simulated(&trial));
    if trial.steps() > again {
        check(&world, &crash(&trial, &mut decisions, !latest), "after a crash during the opening");
    }
    check(&world, &image, "after a crash");
});
