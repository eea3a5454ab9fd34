//! Checks that a file opens with everything that was acknowledged, after one call of the disk failed while several threads
//! were using the store.
//!
//! Which thread gets the failure differs from run to run. `src/shuttle_tests` explores a smaller scenario systematically; in
//! this one, segments fill up as well.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::{DiskFault, SimulatedDisk};
use oncekey::{Durability, Fingerprint, ManualClock, Store};

use crate::common::random::{Random, seed};
use crate::points::{effort_factor, images};
use crate::world::{START_MS, options};

/// The number of steps of the disk at which to fail. It exceeds the number of steps that the threads make.
const STEPS: u64 = 140;

struct Acknowledged {
    key: String,
    result: Vec<u8>,
    durability: Durability,
}

/// Records until a call fails or 20 have succeeded. Returns what was acknowledged.
fn record(store: &Store, name: &str, durability: Durability, result_bytes: usize) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for number in 0..20_u8 {
        let (key, result) = (format!("{name}-{number}"), vec![number; result_bytes]);
        if store.operation(&key).durability(durability).record(&result).is_err() {
            break;
        }
        acknowledged.push(Acknowledged { key, result, durability });
    }
    acknowledged
}

fn check<'a>(store: &Store, all: impl Iterator<Item = &'a Acknowledged>) -> Result<(), String> {
    for Acknowledged { key, result, durability } in all {
        match store.get(key) {
            Ok(seen) if seen.result() == Some(&result[..]) => {}
            other => return Err(format!("{key}, acknowledged under {durability:?}: {other:?}")),
        }
    }
    Ok(())
}

/// Lets one call of the disk fail while threads are recording and compacting, and then checks the file. Returns whether the
/// store refused records after that.
fn fail_among_threads(step: u64, fault: DiskFault) -> Result<bool, String> {
    let disk = SimulatedDisk::new();
    let clock = ManualClock::new(START_MS);
    let open = |disk: &SimulatedDisk| options(&clock).open_simulated(disk);
    let store = open(&disk).map_err(|error| error.to_string())?;
    for number in 0..30 {
        store.record(&format!("dead-{number}"), Fingerprint::NONE, &[1; 2_000]).unwrap();
        store.forget(&format!("dead-{number}")).unwrap();
    }
    disk.fault_at(disk.steps() + step, fault);
    let acknowledged: Vec<Acknowledged> = std::thread::scope(|scope| {
        let recording = [
            ("synced", Durability::Sync, 100),
            ("synced and large", Durability::Sync, 12_000),
            ("written", Durability::Buffered, 12_000),
        ]
        .map(|(name, durability, bytes)| {
            let store = &store;
            scope.spawn(move || record(store, name, durability, bytes))
        });
        let compacting = scope.spawn(|| (0..4).all(|_| store.compact().is_ok()));
        let acknowledged = recording.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        compacting.join().unwrap();
        acknowledged
    });
    let has_failed = store.record("after", Fingerprint::NONE, b"").is_err();
    drop(store);

    let mut random = Random(seed() ^ step);
    let synced = || acknowledged.iter().filter(|record| record.durability == Durability::Sync);
    for image in images(&disk, &mut random, 3) {
        let store = open(&image).map_err(|error| format!("power lost after the fault: {error}"))?;
        check(&store, synced()).map_err(|why| format!("power lost after the fault: {why}"))?;
    }
    disk.heal();
    let store = open(&disk).map_err(|error| format!("on a healthy disk: {error}"))?;
    check(&store, acknowledged.iter()).map_err(|why| format!("on a healthy disk: {why}"))?;
    store
        .record("after recovery", Fingerprint::NONE, b"")
        .map_err(|error| format!("the store does not accept a record: {error}"))?;
    drop(store);
    for image in images(&disk, &mut random, 3) {
        let store = open(&image).map_err(|error| format!("power lost after recovery: {error}"))?;
        check(&store, acknowledged.iter()).map_err(|why| format!("power lost after recovery: {why}"))?;
    }
    Ok(has_failed)
}

#[test]
fn a_failed_call_in_one_of_several_threads_loses_nothing() {
    let failed = AtomicU64::new(0);
    for round in 0..u64::from(effort_factor()) {
        for step in 0..STEPS {
            for fault in [DiskFault::Error, DiskFault::ErrorFromNowOn] {
                match fail_among_threads(step, fault) {
                    Ok(has_failed) => drop(failed.fetch_add(u64::from(has_failed), Ordering::Relaxed)),
                    Err(why) => panic!("{fault:?} at step {step}, round {round}: {why}"),
                }
            }
        }
    }
    println!("runs in which the store refused records after the failure: {}", failed.into_inner());
}
