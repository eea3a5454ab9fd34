//! Every call fails once, and for good: afterwards the store goes on rightly or refuses rightly, and what was
//! acknowledged is there when it is opened on a healthy disk, whether or not power was lost as well.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::{DiskFault, PathTarget, SimulatedDisk};
use oncekey::{Begin, Durability, Error, Fingerprint};

use crate::common::random::{Random, seed};
use crate::points::{begin_anew, images, scripts};
use crate::world::{Act, World, exercise, live_agrees, options};

/// Runs a script until something fails, and says at which act.
fn run(script: &[Act], disk: &SimulatedDisk) -> Option<(World, Option<(usize, Error)>)> {
    let mut world = World::new(disk.clone()).ok()?;
    let failed =
        script.iter().enumerate().find_map(|(at, act)| world.perform(*act).err().map(|error| (at, error)));
    Some((world, failed))
}

/// What must hold of a store after a call of its disk failed.
fn judge(mut world: World, failed: Option<&Error>, random: &mut Random) -> Result<(), String> {
    let disk = world.disk.clone();
    if let (Some(error), Some(store)) = (failed, world.open_store()) {
        // What was not acknowledged must not show.
        live_agrees(&world, store)?;
        if matches!(error, Error::Poisoned { .. }) {
            for _ in 0..2 {
                match store.record("after the fault", Fingerprint::NONE, b"") {
                    Err(Error::Poisoned { .. } | Error::Replaced { .. }) => {}
                    other => return Err(format!("a poisoned store wrote: {other:?}")),
                }
            }
        }
    }
    world.die();
    // The machine may lose power now ..
    for image in images(&disk, random, 3) {
        let store = options(&world.clock)
            .open_simulated(&image)
            .map_err(|error| format!("power lost after the fault: {error}"))?;
        world.check(&store).map_err(|why| format!("power lost after the fault: {why}"))?;
    }
    // .. or only the process ends, and the next one finds what the operating system still shows: which need not be on
    // disk. Whatever it then answers must survive the power loss that follows.
    disk.heal();
    let opened =
        options(&world.clock).open_simulated(&disk).map_err(|error| format!("on a healthy disk: {error}"))?;
    let at = world.check(&opened).map_err(|why| format!("on a healthy disk: {why}"))?;
    exercise(&world, &opened)?;
    world.settle_at(at);
    drop(opened);
    for image in images(&disk, random, 3) {
        let store = options(&world.clock)
            .open_simulated(&image)
            .map_err(|error| format!("power lost after going on: {error}"))?;
        world.check(&store).map_err(|why| format!("power lost after going on: {why}"))?;
    }
    Ok(())
}

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// One fault, at one call of one script.
pub fn fault_at(script: &[Act], step: u64, fault: DiskFault) -> Result<(), String> {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let disk = SimulatedDisk::new();
    disk.fault_at(step, fault);
    let mut random = Random(seed() ^ step);
    let told = |why: String| format!("{fault:?} at step {step}, seed {}: {why}", seed());
    let Some((world, failed)) = run(script, &disk) else {
        disk.heal();
        return begin_anew(&disk, &mut random)
            .map_err(|why| told(format!("after a creation that failed: {why}")));
    };
    if let (DiskFault::Short | DiskFault::Interrupted, Some((at, error))) = (fault, &failed) {
        return Err(told(format!("act {at}, {:?}, failed: {error}", script[*at])));
    }
    // Whoever is told that the disk is full goes and deletes files.
    if let Some((at, error @ Error::Full { .. })) = &failed {
        return Err(told(format!("act {at}, {:?}: an input/output error was told as {error}", script[*at])));
    }
    let during = failed
        .as_ref()
        .map_or(String::new(), |(at, error)| format!("act {at}, {:?}: {error}: ", script[*at]));
    judge(world, failed.as_ref().map(|(_, error)| error), &mut random).map_err(|why| told(during + &why))
}

pub fn steps(script: &[Act], count: impl Fn(&SimulatedDisk) -> u64) -> u64 {
    let disk = SimulatedDisk::new();
    let (mut world, failed) = run(script, &disk).unwrap();
    assert!(failed.is_none());
    world.die();
    count(&disk)
}

fn for_every_script(test: impl Fn(&[Act]) -> Result<(), String> + Sync) {
    let failures: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = scripts()
            .into_iter()
            .map(|(name, script)| {
                let test = &test;
                scope.spawn(move || test(&script).map_err(|why| format!("{name}: {why}")))
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_write_and_every_sync_may_fail_once_or_for_good_or_be_short_or_interrupted() {
    for_every_script(|script| {
        for step in 0..steps(script, SimulatedDisk::steps) {
            for fault in
                [DiskFault::Error, DiskFault::ErrorFromNowOn, DiskFault::Interrupted, DiskFault::Short]
            {
                fault_at(script, step, fault)?;
            }
        }
        Ok(())
    });
    println!("faults of writes and syncs: {}", FAULTS.load(Ordering::Relaxed));
}

#[test]
fn every_read_may_fail_or_be_short_or_interrupted() {
    let faults = AtomicU64::new(0);
    for_every_script(|script| {
        for read in 0..steps(script, SimulatedDisk::reads) {
            for fault in [DiskFault::Error, DiskFault::Interrupted, DiskFault::Short] {
                faults.fetch_add(1, Ordering::Relaxed);
                let disk = SimulatedDisk::new();
                disk.fault_at_read(read, fault);
                let mut random = Random(seed() ^ read);
                let told = |why: String| format!("{fault:?} at read {read}, seed {}: {why}", seed());
                let Some((world, failed)) = run(script, &disk) else { continue };
                if let (DiskFault::Short | DiskFault::Interrupted, Some((at, error))) = (fault, &failed) {
                    return Err(told(format!("act {at}, {:?}, failed: {error}", script[*at])));
                }
                // A read that failed is no reason to believe that a write did.
                if let Some((at, error @ Error::Poisoned { .. })) = &failed {
                    return Err(told(format!("act {at}, {:?}: {error}", script[*at])));
                }
                judge(world, failed.as_ref().map(|(_, error)| error), &mut random).map_err(told)?;
            }
        }
        Ok(())
    });
    println!("faults of reads: {}", faults.into_inner());
}

/// Compaction gives slots back to the file system, and none that an operation in progress was promised.
#[test]
fn what_a_compaction_leaves_of_the_file_holds_every_result_that_was_promised_room() {
    for begun in [1, 5, 20, 60] {
        let disk = SimulatedDisk::new();
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        let store = options(&clock).max_result(12_000).open_simulated(&disk).unwrap();
        for number in 0..100 {
            store.record(&format!("dead-{number}"), Fingerprint::NONE, &[1; 12_000]).unwrap();
        }
        let mut leases = Vec::new();
        for number in 0..begun {
            match store.begin(&format!("{number}"), Fingerprint::NONE).unwrap() {
                Begin::Acquired(lease) => leases.push(lease),
                other => panic!("{number}: {other:?}"),
            }
        }
        for number in 0..100 {
            store.forget(&format!("dead-{number}")).unwrap();
        }
        let before = disk.bytes().len();
        store.compact().unwrap();
        let length = disk.bytes().len();
        assert!(length < before, "{begun}: {length} bytes, from {before}");
        disk.set_capacity(Some(length));
        for mut lease in leases {
            lease.complete(&[2; 12_000]).unwrap();
        }
        assert_eq!(store.stats().reserved_bytes, 0);
    }
}

#[test]
fn a_disk_without_room_for_the_least_size_says_so_at_the_opening_and_keeps_what_it_has() {
    for (durability, reserves) in [
        (Durability::Sync, true),
        (Durability::Sync, false),
        (Durability::Buffered, true),
        (Durability::Buffered, false),
    ] {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        let options = || options(&clock).durability(durability);
        let store = options().open_simulated(&disk).unwrap();
        store.record("k", Fingerprint::NONE, b"r").unwrap();
        drop(store);
        let length = disk.bytes().len();
        disk.set_capacity(Some(1 << 20));
        let steps = disk.steps();
        match options().min_size(2 << 20).open_simulated(&disk) {
            Err(error @ Error::Full { .. }) => {
                let said = error.to_string();
                for part in
                    ["there is no room", "2101248 bytes", &format!("beyond its {length}"), "ask for less"]
                {
                    assert!(said.contains(part), "{part}: {said}");
                }
            }
            other => panic!("{durability:?}: {other:?}"),
        }
        assert_eq!(disk.bytes().len(), length);
        assert!(!reserves || disk.steps() < steps + 16, "the disk was not filled first");
        let store = options().min_size(1 << 19).open_simulated(&disk).unwrap();
        assert_eq!(store.get("k").unwrap().result(), Some(&b"r"[..]));
        assert_eq!(store.stats().file_bytes, 4_096 + 8 * (64 << 10));
        disk.set_capacity(Some(disk.bytes().len()));
        store.record("l", Fingerprint::NONE, &[1; 12_000]).unwrap();
    }
}

#[test]
fn a_disk_that_is_full_at_any_length_stops_only_what_begins_and_the_store_goes_on_when_there_is_room() {
    let refusals = AtomicU64::new(0);
    for_every_script(|script| {
        for slots in 1..8_usize {
            for partial in [0, 1, 40_000] {
                let disk = SimulatedDisk::new();
                disk.set_capacity(Some(4_096 + slots * (64 << 10) + partial));
                let mut world = World::new(disk.clone()).map_err(|error| error.to_string())?;
                for (at, act) in script.iter().enumerate() {
                    // What began can be ended: by its lease, by whoever resolves the doubt, by a compare-and-set.
                    let may = match act {
                        Act::Begin(key) | Act::Set(key, _) => !world.has_begun(*key),
                        Act::Resolve(_, how) => how % 3 == 2,
                        Act::Record(..) | Act::RecordBuffered(..) | Act::Compact => true,
                        _ => false,
                    };
                    match world.perform(*act) {
                        Ok(()) => {}
                        Err(Error::Full { .. }) => {
                            refusals.fetch_add(1, Ordering::Relaxed);
                            if !may {
                                return Err(format!("{slots} slots: act {at}, {act:?}, met a full store"));
                            }
                            world.was_refused();
                            live_agrees(&world, world.store())?;
                        }
                        Err(error) => return Err(format!("{slots} slots: act {at}, {act:?}: {error}")),
                    }
                }
                disk.set_capacity(None);
                exercise(&world, world.store())?;
                world.die();
                let image = disk.crash(|_| 0);
                let store =
                    options(&world.clock).open_simulated(&image).map_err(|error| error.to_string())?;
                world.check(&store).map_err(|why| format!("{slots} slots: {why}"))?;
            }
        }
        Ok(())
    });
    println!("refusals by a full disk: {}", refusals.into_inner());
}

/// A stat that fails says nothing about the path: the store goes on until the system can tell.
#[test]
fn a_path_that_the_system_cannot_tell_about_changes_nothing() {
    let disk = SimulatedDisk::new();
    let store = options(&oncekey::ManualClock::new(crate::world::START_MS)).open_simulated(&disk).unwrap();
    disk.set_path_target(PathTarget::Unknown);
    store.sync().unwrap();
    store.record("k", Fingerprint::NONE, b"").unwrap();
    disk.set_path_target(PathTarget::Elsewhere);
    assert!(matches!(store.sync(), Err(Error::Replaced { .. })));
    disk.set_path_target(PathTarget::Unknown);
    assert!(matches!(store.sync(), Err(Error::Replaced { .. })), "what was seen holds");
    assert!(store.stats().replaced);
    assert!(matches!(store.close(), Err(Error::Replaced { .. })));
}
