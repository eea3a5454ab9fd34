//! Checks batches against each other, against single calls on the same keys, against reclaiming and against a close.

use std::time::Duration;

use shuttle::thread;

use super::{DEADLOCK, WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::storage::simulated::SimulatedDisk;
use crate::{Answer, Begin, Durability, Error, Lease, ManualClock, Options, Status, Store};

fn options() -> Options {
    Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .durability(Durability::Buffered)
        .manual_clock(ManualClock::new(1_700_000_000_000))
}

fn spawn<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || work(&store))
}

/// Begins the keys in one batch. Returns the leases that were acquired.
fn begin(store: &Store, keys: &[&'static str]) -> Vec<Lease> {
    let mut batch = store.batch();
    for key in keys {
        batch.begin(store.operation(*key)).unwrap();
    }
    let answers = batch.commit().unwrap();
    answers
        .filter_map(|answer| match answer.unwrap() {
            Answer::Acquired(lease) => Some(lease),
            Answer::InProgress { .. } => None,
            Answer::AlreadyDone(done) => {
                assert_eq!(done.result(), b"done");
                None
            }
            other => panic!("no lease was dropped, and yet {other:?}"),
        })
        .collect()
}

/// Completes the leases in one batch. Returns how many.
fn complete(store: &Store, mut leases: Vec<Lease>) -> usize {
    let mut batch = store.batch();
    for lease in &mut leases {
        batch.complete(lease, b"done").unwrap();
    }
    for answer in batch.commit().unwrap() {
        assert!(matches!(answer, Ok(Answer::Done(_))), "{answer:?}");
    }
    drop(batch);
    leases.len()
}

/// Checks that the keys are completed, and that no flight and no claim is left.
fn check(store: &Store, keys: &[&str]) {
    for (key, state) in keys.iter().zip(store.get_many(keys)) {
        assert_eq!(state.unwrap().result(), Some(&b"done"[..]), "{key}");
    }
    store.close().unwrap();
}

/// Two batches begin and complete the same keys, in opposite orders. Each key is acquired once.
fn batch_and_batch() {
    let store = options().open_in_memory().unwrap();
    let work = |keys: &'static [&'static str]| move |store: &Store| complete(store, begin(store, keys));
    let threads = [spawn(&store, work(&["a", "b", "c"])), spawn(&store, work(&["c", "b", "a"]))];
    let acquired: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(acquired, 3, "each key is acquired once");
    check(&store, &["a", "b", "c"]);
}

/// A batch, a single call and a waiting single call on the same keys.
fn batch_and_single_calls() {
    let store = options().open_in_memory().unwrap();
    let batching = spawn(&store, |store| complete(store, begin(store, &["b", "a"])));
    let single = |key: &'static str| {
        move |store: &Store| match store.operation(key).wait(Duration::MAX).begin().unwrap() {
            Begin::Acquired(mut lease) => lease.complete(b"done").map(|_| 1).unwrap(),
            Begin::Completed(done) => {
                assert_eq!(done.result(), b"done");
                0
            }
            other => panic!("no lease was dropped, and yet {other:?}"),
        }
    };
    let threads = [spawn(&store, single("a")), spawn(&store, single("b"))];
    let acquired: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(acquired + batching.join().unwrap(), 2, "each key is acquired once");
    check(&store, &["a", "b"]);
}

/// A compaction moves the records that a batch is changing.
fn batch_and_compaction() {
    let store = options().open_in_memory().unwrap();
    assert_eq!(complete(&store, begin(&store, &["a", "b"])), 2);
    let leases = begin(&store, &["c", "d"]);
    assert!(store.forget("b").unwrap());
    let compacting = spawn(&store, |store| {
        store.compact().unwrap();
    });
    let batching = spawn(&store, move |store| {
        assert_eq!(complete(store, leases), 2);
        let unused = begin(store, &["b", "e"]);
        assert_eq!(complete(store, unused), 2);
    });
    compacting.join().unwrap();
    batching.join().unwrap();
    check(&store, &["a", "b", "c", "d", "e"]);
}

/// The answers of a batch are dropped while other threads begin the same key and close the store. An attempt that never ran
/// leaves no doubt, in memory or on disk.
fn drop_and_close() {
    let disk = SimulatedDisk::new();
    let store = options().open_simulated(&disk).unwrap();
    let mut batch = store.batch();
    batch.begin(store.operation("a")).unwrap();
    batch.begin(store.operation("b")).unwrap();
    let answers = batch.commit().unwrap();
    drop(batch);
    let dropping = spawn(&store, move |_| drop(answers));
    let beginning = spawn(&store, |store| match store.operation("a").wait(Duration::MAX).begin() {
        Ok(Begin::Acquired(mut lease)) => {
            assert_eq!(lease.attempt(), 2);
            lease.complete(b"done").unwrap();
            true
        }
        Err(Error::Closed) => false,
        other => panic!("waited, and then {other:?}"),
    });
    loop {
        match store.close() {
            Ok(()) => break,
            Err(Error::LeasesAlive { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    dropping.join().unwrap();
    let is_completed = beginning.join().unwrap();
    assert_eq!(disk.undecided(), 0, "something was written after the close mark");
    let store = options().open_simulated(&disk.crash(|_| 0)).unwrap();
    let expected = if is_completed { Status::Completed } else { Status::Absent };
    assert_eq!(store.get("a").unwrap().status(), expected, "the attempt never ran");
    assert_eq!(store.get("b").unwrap().status(), Status::Absent, "the attempt never ran");
}

#[test]
fn two_batches_with_the_same_keys_do_not_wait_for_each_other() {
    explore("batches, batch/batch", WHOLE_STORE, batch_and_batch);
}

#[test]
fn a_batch_and_single_calls_acquire_each_key_once() {
    explore("batches, batch/begin/begin", WHOLE_STORE, batch_and_single_calls);
}

#[test]
fn a_batch_during_a_compaction_loses_nothing() {
    explore("batches, batch/compact", WHOLE_STORE, batch_and_compaction);
}

#[test]
fn an_attempt_that_never_ran_leaves_no_doubt() {
    explore("batches, drop/begin/close", WHOLE_STORE, drop_and_close);
}

#[test]
fn finds_batch_flights_unordered() {
    must_find_planted(Bug::BatchFlightsUnordered, WHOLE_STORE, &[DEADLOCK], batch_and_batch);
}

#[test]
fn finds_unstarted_not_released() {
    must_find_planted(Bug::UnstartedNotReleased, WHOLE_STORE, &["the attempt never ran"], drop_and_close);
}
