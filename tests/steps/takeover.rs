//! A job that is taken over: what the older attempt can still do, and what it cannot.

use std::sync::mpsc::channel;

use oncekey::{Error, ManualClock, Outcome, RunError, Status, Store};

use crate::common::{START_MS, clocked, seconds};
use crate::done;

fn store(clock: &ManualClock) -> Store {
    clocked(clock).open_in_memory().unwrap()
}

#[test]
fn an_attempt_that_was_taken_over_begins_no_step() {
    let clock = ManualClock::new(START_MS);
    let store = store(&clock);
    let old = store.operation("k").lease(seconds(10)).rerun().run(|job| {
        done(job, "a", 1_u64).map_err(|error| error.to_string())?;
        clock.advance(seconds(11));
        let new = store.operation("k").lease(seconds(10)).rerun().run(|newer| {
            assert_eq!(done(newer, "a", 9_u64).unwrap(), 1, "the older attempt did it");
            let late = done(job, "b", 1_u64);
            assert!(matches!(late, Err(RunError::Store(Error::Fenced { .. }))), "{late:?}");
            assert!(matches!(job.give_up("a"), Err(Error::Fenced { .. })));
            assert!(!job.is_current() && newer.is_current());
            done(newer, "b", 2_u64)
        });
        assert_eq!(new.unwrap(), Outcome::Done(2));
        let late = done(job, "c", 1_u64);
        assert!(matches!(late, Err(RunError::Store(Error::Fenced { .. }))), "the job has ended: {late:?}");
        Ok::<u64, String>(3)
    });
    let Err(RunError::Unrecorded { result, source: Error::Fenced { .. }, .. }) = old else {
        panic!("{old:?}")
    };
    assert_eq!(*result, 3);
    assert!(store.get("k").unwrap().is_completed());
}

#[test]
fn a_step_of_the_attempt_that_was_taken_over_is_in_doubt() {
    let clock = ManualClock::new(START_MS);
    let store = store(&clock);
    let old = store.operation("k").lease(seconds(10)).run(|job| {
        job.step("a")
            .run(|older| {
                clock.advance(seconds(11));
                let new = store.operation("k").rerun().run(|newer| {
                    assert_eq!(newer.steps().unwrap()[0].status(), Status::InDoubt);
                    newer
                        .step("a")
                        .reconcile(|found| {
                            assert_eq!((found.version(), found.number()), (older.version(), 1));
                            Some(7_u64)
                        })
                        .run(|_| Err("it happened".to_owned()))
                });
                assert_eq!(new.unwrap(), Outcome::Done(7));
                Ok::<u64, String>(7)
            })
            .map_err(|error| {
                assert!(
                    matches!(error, RunError::Unrecorded { source: Error::Fenced { .. }, .. }),
                    "{error:?}"
                );
                error.to_string()
            })
    });
    assert!(old.is_err());
    assert_eq!(store.operation("k").run(|_| Err::<u64, _>("done before")).unwrap(), Outcome::AlreadyDone(7));
}

#[test]
fn a_late_result_is_kept_if_no_other_attempt_has_begun_the_step() {
    let clock = ManualClock::new(START_MS);
    let store = store(&clock);
    let (begun, wait_until_begun) = channel();
    let (go_on, wait_to_go_on) = channel::<()>();
    std::thread::scope(|scope| {
        let (begun, store) = (begun, &store);
        let older = scope.spawn(move || {
            store.operation("k").lease(seconds(10)).run(|job| {
                let step = job.step("a").run(|_| {
                    begun.send(()).unwrap();
                    wait_to_go_on.recv().unwrap();
                    Ok::<u64, String>(7)
                });
                // Sent before the attempt at the job ends.
                begun.send(()).unwrap();
                assert_eq!(step.unwrap(), 7, "the late result was recorded");
                Err::<u64, _>("taken over")
            })
        });
        wait_until_begun.recv().unwrap();
        clock.advance(seconds(11));
        let newer = store.operation("k").rerun().run(|job| {
            assert_eq!(job.number(), 2);
            go_on.send(()).unwrap();
            wait_until_begun.recv().unwrap();
            job.step("a").run(|_| Err::<u64, _>("it must not run again".to_owned()))
        });
        assert_eq!(newer.unwrap(), Outcome::Done(7));
        assert!(older.join().unwrap().is_err());
    });
}

#[test]
fn the_handle_of_an_attempt_that_has_ended_does_nothing() {
    let store = Store::in_memory().unwrap();
    let kept = std::cell::RefCell::new(None);
    let stopped = store.operation("k").run(|job| {
        *kept.borrow_mut() = Some(job.clone());
        done(job, "a", 1_u64).map_err(|error| error.to_string())?;
        Err::<u64, _>("stop".to_owned())
    });
    assert!(matches!(stopped, Err(RunError::Stopped(_))));
    let handle = kept.into_inner().unwrap();
    assert!(matches!(done(&handle, "b", 1_u64), Err(RunError::Store(Error::Fenced { .. }))));
    assert!(matches!(handle.give_up("a"), Err(Error::Fenced { .. })));
    assert_eq!(handle.steps().unwrap().len(), 1, "what has begun can still be listed");
    drop(store);
    assert!(matches!(done(&handle, "b", 1_u64), Err(RunError::Store(Error::Fenced { .. }))));
    assert!(matches!(handle.steps(), Err(Error::Fenced { .. })));
    assert!(matches!(handle.input::<u64>(), Err(Error::Fenced { .. })));
}

#[test]
fn a_closure_that_reconciles_the_job_begins_no_step() {
    let store = Store::in_memory().unwrap();
    let lost = store.operation("k").run(|job| {
        crate::fails(job, "a");
        Err::<u64, _>("stop")
    });
    assert!(lost.is_err());
    let reconciled = store.operation("k").reconcile(|doubt| {
        assert_eq!(doubt.steps().unwrap()[0].name(), b"a");
        let step = done(doubt, "b", 1_u64);
        assert!(matches!(step, Err(RunError::Store(Error::Fenced { .. }))), "{step:?}");
        assert!(matches!(doubt.give_up("a"), Err(Error::Fenced { .. })));
        Some(5_u64)
    });
    assert_eq!(reconciled.run(|_| Err("it happened")).unwrap(), Outcome::AlreadyDone(5));
}
