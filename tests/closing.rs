//! Checks that `close` fails while an operation is in progress, that it releases the file even if clones and leases still
//! exist, and that nothing is written after the close mark.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::{NONE, Place, START_MS, abandon, acquire, clocked, seconds, small};
use oncekey::{Begin, Durability, Error, Expected, Lease, ManualClock, Next, Result, Status, Store};

/// The present state of the key, as compare-and-set expects it.
fn seen(store: &Store, key: &str) -> Expected {
    let state = store.get(key).unwrap();
    Expected::Present { status: state.status(), version: state.version().unwrap() }
}

fn is_closed<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::Closed))
}

#[test]
fn close_with_a_live_lease_fails_and_changes_nothing() {
    let place = Place::new();
    let store = place.open();
    store.record("k", NONE, b"r").unwrap();
    let mut lease = acquire(&store, "lease");
    abandon(&store, "doubt");
    let doubt = store.begin("doubt", NONE).unwrap();
    let before = place.bytes();
    assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 2, .. })));
    assert!(place.bytes() == before);
    drop(doubt);
    assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
    lease.complete(b"done").unwrap();
    store.record("more", NONE, b"").unwrap();
    // The lease still exists, but its operation is completed.
    store.close().unwrap();
    assert_eq!(place.open().get("lease").unwrap().result(), Some(&b"done"[..]));
}

#[test]
fn close_frees_the_file_while_clones_and_leases_live() {
    let place = Place::new();
    let store = place.open();
    store.record("k", NONE, b"read, so that it is mapped").unwrap();
    store.get("k").unwrap();
    let (mut fenced, mut completed) = (acquire(&store, "fenced"), acquire(&store, "completed"));
    completed.complete(b"r").unwrap();
    let next = Next::Completed { fingerprint: NONE, result: b"by hand" };
    store.compare_and_set("fenced", seen(&store, "fenced"), next).unwrap();
    let clone = store.clone();
    store.close().unwrap();

    let other = place.open();
    other.record("other", NONE, b"").unwrap();
    for store in [&store, &clone] {
        assert!(is_closed(&store.begin("n", NONE)));
        assert!(is_closed(&store.begin("k", NONE)), "a closed store replayed a result");
        assert!(is_closed(&store.record("n", NONE, b"")));
        assert!(is_closed(&store.get("k")));
        assert!(is_closed(&store.get("n")));
        assert!(is_closed(&store.replay_into("k", NONE, &mut Vec::new())));
        assert!(is_closed(&store.compare_and_set("n", Expected::Absent, next)));
        assert!(is_closed(&store.forget("k")));
        assert!(is_closed(&store.sync()));
        assert!(is_closed(&store.compact()));
        assert!(is_closed(&store.close()));
        assert!(store.stats().keys > 0);
    }
    assert!(is_closed(&fenced.complete(b"late")));
    assert!(
        is_closed(&completed.complete(b"r")),
        "the recorded result cannot be compared with this one any more"
    );
    drop((fenced, completed, clone, store));
    other.record("another", NONE, b"").unwrap();
    assert!(
        matches!(small().open(&place.path), Err(Error::Locked { .. })),
        "the second store does not hold the lock"
    );
}

#[test]
fn a_leaked_lease_prevents_a_close_only_while_in_progress() {
    let ends: [fn(&Store, &ManualClock); 3] = [
        |store, _| {
            let next = Next::Completed { fingerprint: NONE, result: b"" };
            store.compare_and_set("leaked", seen(store, "leaked"), next).unwrap();
        },
        |store, _| {
            store.compare_and_set("leaked", seen(store, "leaked"), Next::Absent).unwrap();
        },
        |store, clock| {
            // The next caller takes the operation over in doubt and ends it.
            clock.advance(seconds(60));
            match store.begin("leaked", NONE).unwrap() {
                Begin::InDoubt(mut doubt) => drop(doubt.complete(b"").unwrap()),
                other => panic!("{other:?}"),
            }
        },
    ];
    for end in ends {
        let place = Place::new();
        let clock = ManualClock::new(START_MS);
        let store = clocked(&clock).lease(seconds(60)).open(&place.path).unwrap();
        let lease: Lease = acquire(&store, "leaked");
        std::mem::forget(lease);
        assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
        assert_eq!(store.stats().leases, 1);
        end(&store, &clock);
        assert_eq!(store.stats().leases, 0);
        store.close().unwrap();
        let store = clocked(&clock).open(&place.path).unwrap();
        assert_ne!(store.get("leaked").unwrap().status(), Status::InProgress);
    }
}

/// Closes the store while other threads are writing. The file must not change after `close` has returned.
#[test]
fn nothing_is_written_after_the_close_mark() {
    let changed_late = AtomicU32::new(0);
    for round in 0..100 {
        let place = Place::new();
        let store = small().durability(Durability::Buffered).open(&place.path).unwrap();
        let started = AtomicBool::new(false);
        let at_close = std::thread::scope(|scope| {
            for thread in 0..4 {
                let (store, started) = (&store, &started);
                scope.spawn(move || {
                    for number in 0.. {
                        match store.record(&format!("{round}-{thread}-{number}"), NONE, b"r") {
                            Ok(_) => started.store(true, Ordering::Release),
                            Err(Error::Closed) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            store.close().unwrap();
            place.bytes()
        });
        if place.bytes() != at_close {
            changed_late.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert_eq!(changed_late.into_inner(), 0, "in some of 100 rounds a thread wrote after the close");
}

#[test]
fn close_inside_run_or_reconcile_is_refused_without_deadlock() {
    let place = Place::new();
    let store = place.open();
    let outcome = store.operation("run").run(|_| {
        assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
        Ok::<_, String>(1)
    });
    outcome.unwrap();
    abandon(&store, "doubt");
    let outcome = store
        .operation("doubt")
        .reconcile(|_| {
            assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
            Some(2)
        })
        .run(|_| -> std::result::Result<i32, String> {
            panic!("the side effect ran although it was applied")
        });
    outcome.unwrap();
    store.close().unwrap();
}
