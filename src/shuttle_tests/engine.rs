//! Checks a whole store in memory: the real commit queue, flights (per-key locks), index and log together.

use std::time::Duration;

use shuttle::thread;

use super::{DEADLOCK, WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::{Begin, Fingerprint, ManualClock, Options, Status, Store};

/// A timeout that no clock reaches. If no thread ends such a wait, shuttle reports a deadlock.
const NEVER: Duration = Duration::MAX;

/// Opens a store with the smallest segments and a clock that does not advance.
fn store() -> Store {
    Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .manual_clock(ManualClock::new(1_700_000_000_000))
        .open_in_memory()
        .unwrap()
}

fn complete(store: &Store, key: &str, result: &[u8]) {
    let Begin::Acquired(mut lease) = store.begin(key, Fingerprint::NONE).unwrap() else {
        panic!("{key} could not be acquired")
    };
    lease.complete(result).unwrap();
}

/// Checks that the key is completed with this result.
fn check_completed(store: &Store, key: &str, result: &[u8]) {
    let seen = store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
    assert_eq!(seen.status(), Status::Completed, "{key}");
    assert_eq!(seen.result(), Some(result), "{key}");
}

fn spawn<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || work(&store))
}

/// Two threads begin the same operation while a third reads its state. Exactly one of the two acquires it.
fn begin_begin_and_get() {
    let store = store();
    let begin = |store: &Store| match store.begin("a", Fingerprint::NONE).unwrap() {
        Begin::Acquired(mut lease) => {
            lease.complete(b"done").unwrap();
            true
        }
        Begin::Completed(done) => {
            assert_eq!(done.result(), b"done");
            false
        }
        Begin::InProgress { .. } => false,
        Begin::InDoubt(_) => panic!("no lease was dropped"),
    };
    let threads: Vec<_> = (0..2).map(|_| spawn(&store, begin)).collect();
    let reading = spawn(&store, |store| {
        let status = store.get("a").unwrap().status();
        assert_ne!(status, Status::InDoubt, "no lease was dropped");
    });
    let acquired: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    reading.join().unwrap();
    assert_eq!(acquired.into_iter().filter(|acquired| *acquired).count(), 1, "exactly one thread acquires");
    check_completed(&store, "a", b"done");
    store.close().unwrap();
}

/// A lease is dropped while other threads are waiting for the operation. One of them takes over the doubt and completes it.
/// A single waiter cannot be woken by another one by chance.
fn drop_and_wait(waiters: usize) {
    let store = store();
    let Begin::Acquired(lease) = store.begin("a", Fingerprint::NONE).unwrap() else { unreachable!() };
    let dropping = spawn(&store, move |store| {
        // These reads leave enough time for the others to start waiting.
        for _ in 0..3 {
            assert_eq!(store.get("a").unwrap().status(), Status::InProgress);
        }
        drop(lease);
    });
    let begin = |store: &Store| match store.operation("a").wait(NEVER).begin().unwrap() {
        Begin::InDoubt(mut doubt) => {
            doubt.complete(b"done").unwrap();
            true
        }
        Begin::Completed(done) => {
            assert_eq!(done.result(), b"done");
            false
        }
        other => panic!("waited, and then {other:?}"),
    };
    let threads: Vec<_> = (0..waiters).map(|_| spawn(&store, begin)).collect();
    let resolved: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    dropping.join().unwrap();
    assert_eq!(
        resolved.into_iter().filter(|resolved| *resolved).count(),
        1,
        "exactly one thread resolves the doubt"
    );
    store.close().unwrap();
}

/// A compaction moves every record while other threads begin, complete, forget and read keys.
fn compact_and_change() {
    let store = store();
    complete(&store, "a", b"1");
    complete(&store, "b", b"2");
    assert!(store.forget("b").unwrap());
    let changing = spawn(&store, |store| {
        complete(store, "b", b"3");
        assert!(store.forget("a").unwrap());
        complete(store, "a", b"4");
    });
    let reading = spawn(&store, |store| {
        for key in ["a", "b", "a"] {
            store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    });
    let compacting = spawn(&store, |store| {
        store.compact().unwrap();
    });
    for thread in [changing, reading, compacting] {
        thread.join().unwrap();
    }
    check_completed(&store, "a", b"4");
    check_completed(&store, "b", b"3");
    store.close().unwrap();
}

/// Three threads each complete a different operation, so that their records can share batches.
fn complete_together() {
    let store = store();
    let keys = ["a", "b", "c"];
    let threads = keys.map(|key| spawn(&store, move |store| complete(store, key, key.as_bytes())));
    for thread in threads {
        thread.join().unwrap();
    }
    for key in keys {
        check_completed(&store, key, key.as_bytes());
    }
    store.close().unwrap();
}

#[test]
fn an_operation_is_acquired_once() {
    explore("store, begin/begin/get", WHOLE_STORE, begin_begin_and_get);
}

#[test]
fn a_dropped_lease_is_resolved_once() {
    explore("store, drop/wait", WHOLE_STORE, || drop_and_wait(2));
    explore("store, drop/wait by one", WHOLE_STORE, || drop_and_wait(1));
}

#[test]
fn every_record_of_a_shared_batch_is_stored() {
    explore("store, complete/complete/complete", WHOLE_STORE, complete_together);
}

#[test]
fn a_compaction_during_changes_loses_nothing() {
    explore("store, compact/change/get", WHOLE_STORE, compact_and_change);
}

#[test]
fn finds_in_a_store_flight_not_exclusive() {
    let expected =
        ["exactly one thread acquires", "Fenced", "no lease was dropped", "flight keeps the entry"];
    must_find_planted(Bug::FlightNotExclusive, WHOLE_STORE, &expected, begin_begin_and_get);
}

#[test]
fn finds_in_a_store_move_without_flight() {
    let expected =
        ["free slot", "the entry changed although the flight was held", "Corrupt", "could not be acquired"];
    must_find_planted(Bug::MoveWithoutFlight, WHOLE_STORE, &expected, compact_and_change);
}

#[test]
fn finds_in_a_store_claim_waiters_not_woken() {
    must_find_planted(Bug::ClaimWaitersNotWoken, WHOLE_STORE, &[DEADLOCK], || drop_and_wait(1));
}

#[test]
fn finds_in_a_store_only_one_follower_woken() {
    must_find_planted(Bug::OnlyOneFollowerWoken, WHOLE_STORE, &[DEADLOCK], complete_together);
}
