//! A whole small store in memory: all of the above at once, with the real log under it.

use std::time::Duration;

use shuttle::thread;

use super::{DEADLOCK, WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::{Begin, Fingerprint, ManualClock, Options, Status, Store};

/// Further than a clock goes: a wait without a timeout, so that one that nobody ends is a deadlock.
const PATIENCE: Duration = Duration::MAX;

/// A store of the smallest segments, on a clock that stands still.
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
        panic!("{key} is nobody's")
    };
    lease.complete(result).unwrap();
}

/// What is known of a key that was completed; a store that lost it says so.
fn check_completed(store: &Store, key: &str, result: &[u8]) {
    let snapshot = store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
    assert_eq!(snapshot.status(), Status::Completed, "{key}");
    assert_eq!(snapshot.result(), Some(result), "{key}");
}

fn spawn<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || work(&store))
}

/// Three begin the same operation; one performs it and the others are told or come too early.
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
        Begin::InDoubt(_) => panic!("nobody dropped a lease"),
    };
    let threads: Vec<_> = (0..2).map(|_| spawn(&store, begin)).collect();
    let looking = spawn(&store, |store| {
        let status = store.get("a").unwrap().status();
        assert_ne!(status, Status::InDoubt, "nobody dropped a lease");
    });
    let performed: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    looking.join().unwrap();
    assert_eq!(performed.into_iter().filter(|performed| *performed).count(), 1, "performed once");
    check_completed(&store, "a", b"done");
    store.close().unwrap();
}

/// A lease is dropped while others wait in the operation's own call; one takes the doubt over and ends it. If only one
/// waits, nobody else comes by who would wake it.
fn drop_and_wait(waiting: usize) {
    let store = store();
    let Begin::Acquired(lease) = store.begin("a", Fingerprint::NONE).unwrap() else { unreachable!() };
    let dropping = spawn(&store, move |store| {
        // Long enough for the others to come and wait.
        for _ in 0..3 {
            assert_eq!(store.get("a").unwrap().status(), Status::InProgress);
        }
        drop(lease);
    });
    let begin = |store: &Store| match store.operation("a").wait(PATIENCE).begin().unwrap() {
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
    let threads: Vec<_> = (0..waiting).map(|_| spawn(&store, begin)).collect();
    let resolved: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    dropping.join().unwrap();
    assert_eq!(resolved.into_iter().filter(|resolved| *resolved).count(), 1, "resolved once");
    store.close().unwrap();
}

/// Everything moves to another segment and back while keys are begun, completed, forgotten and looked at.
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
    let looking = spawn(&store, |store| {
        for key in ["a", "b", "a"] {
            store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    });
    let compacting = spawn(&store, |store| {
        store.compact().unwrap();
    });
    for thread in [changing, looking, compacting] {
        thread.join().unwrap();
    }
    check_completed(&store, "a", b"4");
    check_completed(&store, "b", b"3");
    store.close().unwrap();
}

/// Three complete operations of their own, so that their records travel together.
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
fn an_operation_is_performed_once() {
    explore("store, begin/begin/get", WHOLE_STORE, begin_begin_and_get);
}

#[test]
fn a_dropped_lease_is_resolved_once() {
    explore("store, drop/wait", WHOLE_STORE, || drop_and_wait(2));
    explore("store, drop/wait by one", WHOLE_STORE, || drop_and_wait(1));
}

#[test]
fn what_travels_together_arrives() {
    explore("store, complete/complete/complete", WHOLE_STORE, complete_together);
}

#[test]
fn a_compaction_among_changes_loses_nothing() {
    explore("store, compact/change/get", WHOLE_STORE, compact_and_change);
}

#[test]
fn finds_in_a_store_entered_regardless() {
    let expected =
        ["performed once", "Fenced", "nobody dropped a lease", "flight keeps the entry", "inserted once"];
    must_find_planted(Bug::FlightNotExclusive, WHOLE_STORE, &expected, begin_begin_and_get);
}

#[test]
fn finds_in_a_store_move_without_flight() {
    let expected = ["free slot", "the flight keeps the entry where it is", "Corrupt", "is nobody's"];
    must_find_planted(Bug::MoveWithoutFlight, WHOLE_STORE, &expected, compact_and_change);
}

#[test]
fn finds_in_a_store_end_of_claim_not_told() {
    must_find_planted(Bug::ClaimWaitersNotWoken, WHOLE_STORE, &[DEADLOCK], || drop_and_wait(1));
}

#[test]
fn finds_in_a_store_one_follower_told() {
    must_find_planted(Bug::OnlyOneFollowerWoken, WHOLE_STORE, &[DEADLOCK], complete_together);
}
