//! Checks the list of unfinished operations while other threads begin and end operations and a compaction moves records.

use shuttle::thread;

use super::{WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::{Begin, Fingerprint, Lease, ManualClock, Options, Status, Store};

fn begin(store: &Store, key: &str) -> Lease {
    let Begin::Acquired(lease) = store.begin(key, Fingerprint::NONE).unwrap() else {
        panic!("{key} could not be acquired")
    };
    lease
}

/// Lists the operations, and checks that the operation which a thread completes is never in doubt. Returns the names.
fn list(store: &Store) -> Vec<Vec<u8>> {
    let listed = store.unfinished().unwrap().map(|item| item.unwrap());
    let checked = listed.map(|operation| {
        let name = operation.key().name().to_vec();
        assert!(name != b"completed" || operation.status() == Status::InProgress, "no lease was dropped");
        name
    });
    checked.collect()
}

fn list_and_change() {
    let options = Options::new().segment_size(64 << 10).max_result(1 << 10);
    let store = options.manual_clock(ManualClock::new(1_700_000_000_000)).open_in_memory().unwrap();
    begin(&store, "in doubt before").leave_in_doubt("moved with its record");
    let changing = {
        let store = store.clone();
        thread::spawn(move || {
            begin(&store, "completed").complete(b"done").unwrap();
            drop(begin(&store, "in doubt"));
        })
    };
    let moving = {
        let store = store.clone();
        thread::spawn(move || assert!(!store.compact().unwrap().is_stopped))
    };
    let listing = {
        let store = store.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                assert!(list(&store).contains(&b"in doubt before".to_vec()), "an operation is missing");
            }
        })
    };
    for thread in [changing, moving, listing] {
        thread.join().unwrap();
    }
    let mut names = list(&store);
    names.sort();
    assert_eq!(names, [&b"in doubt"[..], b"in doubt before"]);
    assert_eq!((store.stats().unfinished, store.stats().in_doubt), (2, 2), "wrong counts");
    store.close().unwrap();
}

/// An operation is completed while another thread lists it.
fn list_and_complete() {
    let store = Options::new().segment_size(64 << 10).max_result(1 << 10).open_in_memory().unwrap();
    let mut lease = begin(&store, "completed");
    let completing = thread::spawn(move || {
        lease.complete(b"done").unwrap();
    });
    for _ in 0..3 {
        list(&store);
    }
    completing.join().unwrap();
    assert!(list(&store).is_empty());
}

#[test]
fn the_list_shows_each_operation_in_a_state_that_it_had() {
    explore("unfinished, list and change", WHOLE_STORE, list_and_change);
    explore("unfinished, list and complete", WHOLE_STORE, list_and_complete);
}

#[test]
fn finds_a_status_that_no_operation_had() {
    must_find_planted(Bug::IndexReadOnce, WHOLE_STORE, &["no lease was dropped"], list_and_complete);
}

#[test]
fn finds_a_finished_operation_in_the_list() {
    must_find_planted(Bug::FinishedStaysUnfinished, WHOLE_STORE, &["wrong counts"], list_and_change);
}
