//! Checks that a failed call of the disk loses nothing. Each call of each script fails, once or together with all later
//! calls. The store must then continue, or refuse calls with the right error. When the file is opened on a healthy disk, with
//! or without a power loss in between, everything that was acknowledged must be there.
//!
//! Also tests full disks, and a path that the store cannot check.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::{DiskFault, PathTarget, SimulatedDisk};
use oncekey::{Begin, Durability, Error, Fingerprint};

use crate::common::random::{Random, seed};
use crate::points::{create_again, images};
use crate::scripts::scripts;
use crate::world::{Act, BEGIN_AGAIN, World, options};

/// Runs a script until an act fails. Returns `None` if the store could not be created.
fn run(script: &[Act], disk: &SimulatedDisk) -> Option<(World, Option<(usize, Error)>)> {
    let mut world = World::new(disk.clone()).ok()?;
    let failed =
        script.iter().enumerate().find_map(|(at, act)| world.perform(*act).err().map(|error| (at, error)));
    Some((world, failed))
}

/// Checks the store and its file after a call of the disk failed.
fn check_after_fault(mut world: World, failed: Option<&Error>, random: &mut Random) -> Result<(), String> {
    let disk = world.disk.clone();
    if let (Some(error), Some(store)) = (failed, world.open_store()) {
        // What was not acknowledged must not be visible.
        world.check_live(store)?;
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
    // The machine may lose power now.
    for image in images(&disk, random, 3) {
        let store = options(&world.clock)
            .open_simulated(&image)
            .map_err(|error| format!("power lost after the fault: {error}"))?;
        world.check(&store).map_err(|why| format!("power lost after the fault: {why}"))?;
    }
    // Or only the process ends. The next process finds what the operating system shows, which need not be on disk. Everything
    // that the next process reads or acknowledges must survive a later power loss.
    disk.heal();
    let opened =
        options(&world.clock).open_simulated(&disk).map_err(|error| format!("on a healthy disk: {error}"))?;
    let at = world.check(&opened).map_err(|why| format!("on a healthy disk: {why}"))?;
    world.exercise(&opened)?;
    world.resume_at(at);
    drop(opened);
    for image in images(&disk, random, 3) {
        let store = options(&world.clock)
            .open_simulated(&image)
            .map_err(|error| format!("power lost after the next process: {error}"))?;
        world.check(&store).map_err(|why| format!("power lost after the next process: {why}"))?;
    }
    Ok(())
}

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Runs a script with one fault and checks the outcome.
pub fn fault_at(script: &[Act], step: u64, fault: DiskFault) -> Result<(), String> {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let disk = SimulatedDisk::new();
    disk.fault_at(step, fault);
    let mut random = Random(seed() ^ step);
    let context = |why: String| format!("{fault:?} at step {step}, seed {}: {why}", seed());
    let Some((world, failed)) = run(script, &disk) else {
        disk.heal();
        return create_again(&disk, &mut random)
            .map_err(|why| context(format!("after the creation failed: {why}")));
    };
    if let (DiskFault::Short | DiskFault::Interrupted, Some((at, error))) = (fault, &failed) {
        return Err(context(format!("act {at}, {:?}, failed: {error}", script[*at])));
    }
    // An operator reacts to `Full` by deleting files, so no other failure may be reported as `Full`.
    if let Some((at, error @ Error::Full { .. })) = &failed {
        return Err(context(format!(
            "act {at}, {:?}: an input/output error was reported as {error}",
            script[*at]
        )));
    }
    let during = failed
        .as_ref()
        .map_or(String::new(), |(at, error)| format!("act {at}, {:?}: {error}: ", script[*at]));
    check_after_fault(world, failed.as_ref().map(|(_, error)| error), &mut random)
        .map_err(|why| context(during + &why))
}

/// Returns the number of calls that a script makes on a healthy disk. `count` reads that number from the disk.
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
fn any_failing_write_or_sync_loses_nothing_that_was_acknowledged() {
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
fn any_failing_read_loses_nothing_that_was_acknowledged() {
    let faults = AtomicU64::new(0);
    for_every_script(|script| {
        for read in 0..steps(script, SimulatedDisk::reads) {
            for fault in [DiskFault::Error, DiskFault::Interrupted, DiskFault::Short] {
                faults.fetch_add(1, Ordering::Relaxed);
                let disk = SimulatedDisk::new();
                disk.fault_at_read(read, fault);
                let mut random = Random(seed() ^ read);
                let context = |why: String| format!("{fault:?} at read {read}, seed {}: {why}", seed());
                let Some((world, failed)) = run(script, &disk) else { continue };
                if let (DiskFault::Short | DiskFault::Interrupted, Some((at, error))) = (fault, &failed) {
                    return Err(context(format!("act {at}, {:?}, failed: {error}", script[*at])));
                }
                // A failed read must not poison the store: no write failed.
                if let Some((at, error @ Error::Poisoned { .. })) = &failed {
                    return Err(context(format!("act {at}, {:?}: {error}", script[*at])));
                }
                check_after_fault(world, failed.as_ref().map(|(_, error)| error), &mut random)
                    .map_err(context)?;
            }
        }
        Ok(())
    });
    println!("faults of reads: {}", faults.into_inner());
}

/// Compaction returns slots to the file system, but not those that are reserved for operations in progress.
#[test]
fn compaction_keeps_the_space_reserved_for_results() {
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
fn a_min_size_that_does_not_fit_on_the_disk_is_refused() {
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
                let text = error.to_string();
                for part in
                    ["there is no room", "2101248 bytes", &format!("beyond its {length}"), "ask for less"]
                {
                    assert!(text.contains(part), "{part}: {text}");
                }
            }
            other => panic!("{durability:?}: {other:?}"),
        }
        assert_eq!(disk.bytes().len(), length);
        assert!(
            !reserves || disk.steps() < steps + 16,
            "the store filled the disk before it refused the min_size"
        );
        let store = options().min_size(1 << 19).open_simulated(&disk).unwrap();
        assert_eq!(store.get("k").unwrap().result(), Some(&b"r"[..]));
        assert_eq!(store.stats().file_bytes, 4_096 + 8 * (64 << 10));
        disk.set_capacity(Some(disk.bytes().len()));
        store.record("l", Fingerprint::NONE, &[1; 12_000]).unwrap();
    }
}

#[test]
fn a_full_disk_refuses_only_what_begins_an_operation() {
    let refusals = AtomicU64::new(0);
    for_every_script(|script| {
        for slots in 1..8_usize {
            for partial in [0, 1, 40_000] {
                let disk = SimulatedDisk::new();
                disk.set_capacity(Some(4_096 + slots * (64 << 10) + partial));
                let mut world = World::new(disk.clone()).map_err(|error| error.to_string())?;
                for (at, act) in script.iter().enumerate() {
                    // An operation that has begun can be ended by its lease, by resolving its doubt, or by a compare-and-set.
                    let may_be_refused = match act {
                        Act::Begin(key) | Act::BeginJob(key, _) => {
                            !world.has_begun(*key) || world.is_stopped(*key)
                        }
                        Act::Set(key, _) | Act::Emit(key, _) | Act::EmitBuffered(key, _) => {
                            !world.has_begun(*key)
                        }
                        // The begin of a step, and the copy of a record that gives one up, have no space of their own.
                        Act::Step(..) | Act::LeaveStep(..) | Act::ReleaseStep(..) | Act::GiveUp(..) => true,
                        Act::Resolve(_, outcome) => outcome % 3 == BEGIN_AGAIN,
                        Act::Record(..) | Act::RecordBuffered(..) | Act::Compact => true,
                        _ => false,
                    };
                    match world.perform(*act) {
                        Ok(()) => {}
                        Err(Error::Full { .. }) => {
                            refusals.fetch_add(1, Ordering::Relaxed);
                            if !may_be_refused {
                                return Err(format!(
                                    "{slots} slots: act {at}, {act:?}, was refused by a full store"
                                ));
                            }
                            world.note_refusal();
                            world.check_live(world.store())?;
                        }
                        Err(error) => return Err(format!("{slots} slots: act {at}, {act:?}: {error}")),
                    }
                }
                disk.set_capacity(None);
                world.exercise(world.store())?;
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

/// A failed stat does not prove that the path was replaced, so the store continues until a stat succeeds.
#[test]
fn a_failed_stat_of_the_path_changes_nothing() {
    let disk = SimulatedDisk::new();
    let store = options(&oncekey::ManualClock::new(crate::world::START_MS)).open_simulated(&disk).unwrap();
    disk.set_path_target(PathTarget::Unknown);
    store.sync().unwrap();
    store.record("k", Fingerprint::NONE, b"").unwrap();
    disk.set_path_target(PathTarget::Elsewhere);
    assert!(matches!(store.sync(), Err(Error::Replaced { .. })));
    disk.set_path_target(PathTarget::Unknown);
    assert!(
        matches!(store.sync(), Err(Error::Replaced { .. })),
        "a failed stat made the store forget that the path was replaced"
    );
    assert!(store.stats().replaced);
    assert!(matches!(store.close(), Err(Error::Replaced { .. })));
}
