//! Checks batches on a failing disk, and that the harness finds the bugs that are planted in them.

use oncekey::simulation::{Bug, DiskFault, SimulatedDisk};
use oncekey::{Answer, Begin, Error, Lease, ManualClock, Options};

use crate::bugs::finds;
use crate::common::random::seed;
use crate::points::{Counts, Effort, crash_everywhere};
use crate::world::{Act, START_MS, options};

/// Crashes batches, and the acts around them, at every step.
fn crash_batches() -> Result<(), String> {
    use Act::{AtomicBatch, Batch, Begin, Record, Reopen};
    let script =
        [Begin(0), Begin(2), Batch(0, 700), AtomicBatch(8, 2_000), Record(20, 10), Batch(7, 12_000), Reopen];
    crash_everywhere(&script, seed(), &Effort { images: 16, recovery_every: 10 }, &Counts::default())
}

/// A store that is too full for a begin, with leases.
fn completions_beside_a_full_begin() -> Result<(), String> {
    let disk = SimulatedDisk::new();
    let clock = ManualClock::new(START_MS);
    let options: Options = options(&clock).max_size(4_096 + 4 * (64 << 10)).max_result(4_000);
    let store = options.open_simulated(&disk).map_err(|error| error.to_string())?;
    let mut leases: Vec<Lease> = Vec::new();
    for number in 0.. {
        match store.operation(format!("{number}")).begin() {
            Ok(Begin::Acquired(lease)) => leases.push(lease),
            Err(Error::Full { .. }) => break,
            other => return Err(format!("{other:?}")),
        }
    }
    let mut batch = store.batch();
    batch.begin(store.operation("one more")).map_err(|error| error.to_string())?;
    for lease in &mut leases {
        batch.complete(lease, &[7; 4_000]).map_err(|error| error.to_string())?;
    }
    let answers = batch.commit().map_err(|error| format!("completions were refused: {error}"))?;
    for (number, answer) in answers.enumerate() {
        match (number, answer) {
            (0, Err(Error::Full { .. })) | (1.., Ok(Answer::Done(_))) => {}
            (number, other) => return Err(format!("entry {number}: {other:?}")),
        }
    }
    Ok(())
}

#[test]
fn completions_are_not_refused_beside_a_full_begin() {
    completions_beside_a_full_begin().unwrap();
}

/// A write or sync fails during the commit: everything in the batch is still there.
#[test]
fn a_failed_commit_leaves_the_batch_and_its_leases_whole() {
    let mut failures = 0;
    for step in 0..6 {
        let disk = SimulatedDisk::new();
        let clock = ManualClock::new(START_MS);
        let store = options(&clock).open_simulated(&disk).unwrap();
        let Ok(Begin::Acquired(mut lease)) = store.operation("a").begin() else { panic!() };
        drop(store.operation("in doubt").begin().unwrap());
        let mut batch = store.batch();
        batch.complete(&mut lease, b"r").unwrap();
        batch.begin(store.operation("b")).unwrap();
        batch.begin(store.operation("in doubt")).unwrap();
        disk.fault_at(disk.steps() + step, DiskFault::ErrorFromNowOn);
        match batch.commit() {
            Err(Error::Poisoned { .. }) => failures += 1,
            // The step was one that may fail, such as that of making the file longer, or there are fewer.
            Ok(answers) => {
                assert_eq!(answers.len(), 3);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(matches!(batch.commit(), Err(Error::Poisoned { .. })));
        assert_eq!(batch.len(), 3);
        drop(batch);
        assert!(lease.is_current(), "the lease has ended");
        assert!(store.get("b").unwrap().is_absent());
        assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })), "only the lease is alive");
        drop((lease, store));
        disk.heal();
        let store = options(&clock).open_simulated(&disk).unwrap();
        let seen = store.get("a").unwrap();
        assert!(seen.result() == Some(b"r") || seen.status() == oncekey::Status::InDoubt, "{seen:?}");
    }
    assert!(failures >= 2, "neither the write nor the sync has failed");
}

fn hunt() -> Result<(), String> {
    crash_batches()
}

finds! { hunt:
    finds_an_atomic_batch_in_two_frames: AtomicBatchInTwoFrames,
    finds_a_leaked_lease_of_a_batch: BatchLeaseLeaked,
    finds_a_batch_that_is_answered_out_of_order: BatchAnsweredOutOfOrder,
    finds_releases_that_are_not_written: UnstartedNotReleased,
}

finds! { completions_beside_a_full_begin:
    finds_a_completion_refused_beside_a_full_begin: FullBeginRefusesBatch,
}

#[test]
fn a_crash_during_batches_loses_nothing_that_was_acknowledged() {
    crash_batches().unwrap();
}
