//! Histories with faults and crashes, checked by the oracle of `tests/crash`. After a crash, the store must open and work, in
//! the state of one point of the history that is not before the last acknowledged change. The same must hold if recovery
//! crashes too.
//!
//! An input consists of up to three faults (step, kind), the step at which recovery crashes, the number of crash decisions,
//! these decisions (one byte for each unsynced sector), and the acts of the history, four bytes each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::{DiskFault, SimulatedDisk};
use oncekey::{Fingerprint, ManualClock};
use oncekey_fuzz::acts;
use oncekey_fuzz::input::Input;
use oncekey_fuzz::world::{START_MS, World, options};

const MAX_ACTS: usize = 96;

/// Returns the disk after a crash. Each byte of `decisions` selects the content of one unsynced sector, or the length of the
/// file. When the bytes are used up, every further sector keeps its synced content; if `latest` is set, it gets its last option
/// instead: its newest content, or garbage if it never held synced bytes.
fn crash(disk: &SimulatedDisk, decisions: &mut Input<'_>, latest: bool) -> SimulatedDisk {
    disk.crash(|options| match decisions.0.split_first() {
        Some((first, rest)) => {
            decisions.0 = rest;
            usize::from(*first) % options
        }
        None if latest => options - 1,
        None => 0,
    })
}

/// Opens the disk, checks and uses the store, closes it, and checks it once more after reopening.
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
    let (recovery_crash, latest) = (u64::from(input.u8()), input.u8() & 1 != 0);
    let decision_count = usize::from(input.u8());
    let mut decisions = Input(input.take(decision_count));

    let Ok(mut world) = World::new(disk.clone()) else {
        // A fault hit the creation of the store. No change was acknowledged, but a new store must work.
        let image = crash(&disk, &mut decisions, latest);
        let store =
            options(&ManualClock::new(START_MS)).open_simulated(&image).expect("cannot create a store");
        store.record("k", Fingerprint::NONE, b"r").expect("the new store cannot record an operation");
        return;
    };
    let mut acts_done = 0;
    while !input.is_empty() && acts_done < MAX_ACTS && world.perform(acts::decode(&mut input)).is_ok() {
        acts_done += 1;
    }
    world.die();

    let image = crash(&disk, &mut decisions, latest);
    // Crash recovery as well, at one of its steps.
    let trial = SimulatedDisk::holding(image.bytes());
    trial.fault_at(recovery_crash, DiskFault::PowerLoss);
    drop(options(&world.clock).open_simulated(&trial));
    if trial.steps() > recovery_crash {
        check(&world, &crash(&trial, &mut decisions, !latest), "after a crash during recovery");
    }
    check(&world, &image, "after a crash");
});
