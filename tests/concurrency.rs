//! Checks threads of the same process that use the same key: one of them acquires it, the others wait, and every end of the
//! operation wakes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::Duration;

use common::{NONE, Place, abandon, acquire, perform, seconds, small};
use oncekey::{Attempt, Begin, Error, Outcome, RunError, Status, Store};

/// A timeout that is longer than any test takes. A wait that reaches it has failed.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn exactly_one_of_many_threads_acquires_a_key() {
    let place = Place::new();
    let store = place.open();
    for round in 0..50 {
        let key = format!("k{round}");
        let start = Barrier::new(8);
        let acquired = AtomicU32::new(0);
        let leases: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        match store.begin(&key, NONE).unwrap() {
                            Begin::Acquired(lease) => {
                                acquired.fetch_add(1, Ordering::SeqCst);
                                Some(lease)
                            }
                            Begin::InProgress { attempt: 1, .. } => None,
                            other => panic!("{other:?}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(acquired.into_inner(), 1);
        drop(leases);
    }
}

#[test]
fn a_side_effect_runs_once_and_every_thread_gets_its_result() {
    let place = Place::new();
    let store = place.open();
    let performed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for intent in 0..100_u32 {
                    let outcome = store.operation(&format!("k{intent}")).wait(LONG).run(|_: &Attempt| {
                        performed.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Error>(intent)
                    });
                    assert_eq!(outcome.unwrap().into_inner(), intent);
                }
            });
        }
    });
    assert_eq!(performed.into_inner(), 100);
}

/// Runs `work` while another thread is waiting for `key`. Returns what the waiter got.
fn wait_while(store: &Store, key: &str, work: impl FnOnce()) -> Result<Begin, Error> {
    std::thread::scope(|scope| {
        let (started, start) = mpsc::channel();
        let waiter = scope.spawn(move || {
            started.send(()).unwrap();
            store.operation(key).wait(LONG).begin()
        });
        start.recv().unwrap();
        // Makes it likely that the other thread is already waiting. The outcome does not depend on it.
        std::thread::sleep(Duration::from_millis(20));
        work();
        waiter.join().unwrap()
    })
}

#[test]
fn every_end_of_an_operation_wakes_its_waiters() {
    let place = Place::new();
    let store = place.open();

    let mut lease = acquire(&store, "completed");
    let outcome = wait_while(&store, "completed", || assert!(lease.complete(b"r").is_ok()));
    assert!(matches!(outcome.unwrap(), Begin::Completed(done) if done.result() == b"r"));

    let lease = acquire(&store, "released");
    let outcome = wait_while(&store, "released", || lease.release().unwrap());
    assert!(matches!(outcome.unwrap(), Begin::Acquired(lease) if lease.attempt() == 2));

    let lease = acquire(&store, "dropped");
    let outcome = wait_while(&store, "dropped", || drop(lease));
    assert!(matches!(outcome.unwrap(), Begin::InDoubt(doubt) if doubt.attempt() == 1));

    let lease = acquire(&store, "panicked");
    let outcome = wait_while(&store, "panicked", || {
        let panics = std::thread::spawn(move || {
            let _lease = lease;
            panic!("planted");
        });
        assert!(panics.join().is_err());
    });
    assert!(matches!(outcome.unwrap(), Begin::InDoubt(_)));

    let lease = acquire(&store, "set");
    let outcome = wait_while(&store, "set", || {
        let expected = oncekey::Expected::Present { status: Status::InProgress, version: lease.version() };
        let next = oncekey::Next::Completed { fingerprint: NONE, result: b"set" };
        store.compare_and_set("set", expected, next).unwrap();
    });
    assert!(matches!(outcome.unwrap(), Begin::Completed(done) if done.result() == b"set"));

    abandon(&store, "resolving");
    let Begin::InDoubt(doubt) = store.begin("resolving", NONE).unwrap() else { panic!() };
    let outcome = wait_while(&store, "resolving", || drop(doubt));
    assert!(
        matches!(outcome.unwrap(), Begin::InDoubt(_)),
        "the waiter did not get the right to resolve the doubt"
    );
}

#[test]
fn a_wait_ends_at_its_timeout_or_the_lease_deadline() {
    let store = small().open_in_memory().unwrap();
    let lease = acquire(&store, "k");
    let outcome = store.operation("k").wait(Duration::from_millis(30)).begin().unwrap();
    assert!(matches!(outcome, Begin::InProgress { attempt: 1, .. }));
    drop(lease);

    let Begin::Acquired(_slow) = store.operation("slow").lease(Duration::from_millis(50)).begin().unwrap()
    else {
        panic!()
    };
    let outcome = store.operation("slow").wait(LONG).begin().unwrap();
    assert!(matches!(outcome, Begin::InDoubt(_)), "the waiter did not take over after the deadline");
}

#[test]
fn a_duplicate_that_does_not_wait_gets_in_progress() {
    let store = small().open_in_memory().unwrap();
    let outcome = store.operation("k").run(|_: &Attempt| {
        let inner = store.operation("k").run(|_: &Attempt| Ok::<u32, Error>(2));
        assert!(matches!(inner, Err(RunError::Store(Error::InProgress { attempt: 1, .. }))));
        Ok::<u32, Error>(1)
    });
    assert_eq!(outcome.unwrap(), Outcome::Done(1));
}

#[test]
fn another_thread_can_complete_a_lease() {
    let place = Place::new();
    let store = place.open();
    let mut lease = acquire(&store, "k");
    std::thread::spawn(move || lease.complete(b"elsewhere").unwrap()).join().unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"elsewhere"[..]));
}

#[test]
fn a_late_lease_and_its_successor_never_both_complete() {
    let store = small().open_in_memory().unwrap();
    for round in 0..200 {
        let key = format!("k{round}");
        let begin = || store.operation(&key).lease(Duration::from_millis(1)).begin().unwrap();
        let Begin::Acquired(mut first) = begin() else { panic!() };
        std::thread::sleep(Duration::from_millis(2));
        let results = std::thread::scope(|scope| {
            let late = scope.spawn(move || first.complete(b"first").is_ok());
            let second = scope.spawn(|| match begin() {
                Begin::InDoubt(doubt) => {
                    doubt.begin_again().and_then(|mut lease| lease.complete(b"second")).is_ok()
                }
                // The late lease has completed the operation, or is completing it.
                Begin::Completed(_) | Begin::InProgress { .. } => false,
                other => panic!("{other:?}"),
            });
            [late.join().unwrap(), second.join().unwrap()]
        });
        assert_eq!(results.iter().filter(|done| **done).count(), 1, "{results:?}");
        let expected = if results[0] { &b"first"[..] } else { &b"second"[..] };
        assert_eq!(store.get(&key).unwrap().result(), Some(expected));
    }
}

#[test]
fn a_concurrent_begin_and_close_never_both_succeed() {
    let (mut closed, mut acquired) = (0, 0);
    for round in 0..150 {
        // In a file, a begin takes as long as its sync, so the close may start in the meantime.
        let place = Place::new();
        let store = place.open();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| {
                let store = store.clone();
                start.wait();
                for _ in 0..round * 40 {
                    std::hint::spin_loop();
                }
                store.close()
            });
            start.wait();
            match store.begin("k", NONE) {
                Ok(Begin::Acquired(mut lease)) => {
                    acquired += 1;
                    // A caller that acquired the key must be able to record the result.
                    lease.complete(b"r").unwrap();
                }
                Err(Error::Closed) => closed += 1,
                other => panic!("round {round}: {other:?}"),
            }
            assert!(matches!(closing.join().unwrap(), Ok(()) | Err(Error::LeasesAlive { .. })));
        });
    }
    assert_eq!(closed + acquired, 150);
}

/// Several threads write and read while another one compacts. Each writer compares the store with what it wrote to its own
/// keys.
#[test]
fn concurrent_writers_reclaiming_and_compaction_lose_no_key() {
    let place = Place::new();
    let store = small().retention(seconds(3_600)).open(&place.path).unwrap();
    let rounds = 150_u64;
    let compactions = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..rounds {
                        // The same keys are rewritten in each round, so that most of the log is dead.
                        for slot in 0..8 {
                            let key = format!("{thread}-{slot}");
                            store.forget(&key).unwrap();
                            perform(store, &key, format!("{round}").repeat(50).as_bytes());
                            let seen = store.get(&key).unwrap();
                            assert_eq!(seen.result(), Some(format!("{round}").repeat(50).as_bytes()));
                        }
                        let stays = format!("{thread}-stays-{round}");
                        store.record(&stays, NONE, stays.as_bytes()).unwrap();
                        let earlier = format!("{thread}-stays-{}", round / 2);
                        assert_eq!(store.get(&earlier).unwrap().result(), Some(earlier.as_bytes()));
                    }
                })
            })
            .collect();
        let (store, compactions) = (&store, &compactions);
        scope.spawn(move || {
            while writers.iter().any(|writer| !writer.is_finished()) {
                store.compact().unwrap();
                compactions.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
    });
    assert!(compactions.into_inner() > 0);
    let check = |store: &Store| {
        for thread in 0..4 {
            for round in 0..rounds {
                let stays = format!("{thread}-stays-{round}");
                assert_eq!(store.get(&stays).unwrap().result(), Some(stays.as_bytes()));
            }
        }
    };
    check(&store);
    store.close().unwrap();
    check(&place.open());
}
