//! A job is resumed after a crash at any point, and by another process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use oncekey::{Outcome, RunError, Status, Store};

use crate::common::{Place, small};
use crate::world::{ACTS, World, fulfil};
use crate::{done, fails};

#[test]
fn each_step_happens_once_wherever_the_process_crashes() {
    let mut statuses = Vec::new();
    for point in 1.. {
        let (place, world) = (Place::new(), World::default());
        world.crash_at(point, place.path.clone());
        let store = place.open();
        let outcome = catch_unwind(AssertUnwindSafe(|| fulfil(&store, &world)));
        let Some(left) = world.left() else {
            assert_eq!(outcome.ok().unwrap().unwrap(), Outcome::Done(vec![1, 2, 3, 4]));
            break;
        };
        drop(store);
        let store = left.open();
        let status = store.get(oncekey::Key::new("order").scope("orders")).unwrap().status();
        statuses.push(status);
        assert_eq!(fulfil(&store, &world).unwrap(), Outcome::Done(vec![1, 2, 3, 4]), "point {point}");
        assert_eq!(world.acts(), ACTS, "point {point}");
        assert_eq!(fulfil(&store, &world).unwrap(), Outcome::AlreadyDone(vec![1, 2, 3, 4]));
        assert_eq!(
            (store.stats().unfinished, store.stats().unfinished_steps),
            (0, 0),
            "the steps ended with the job"
        );
    }
    // In a step the job is in doubt, and between two steps it is stopped.
    let of_a_step = [Status::InDoubt, Status::InDoubt, Status::Stopped];
    assert_eq!(statuses, of_a_step.repeat(4));
}

#[test]
fn a_job_that_crashes_in_every_run_repeats_no_step() {
    let (mut place, world) = (Place::new(), World::default());
    let mut crashes = 0;
    let outcome = loop {
        // The second point lies in the first step that is not done, or right behind it.
        world.crash_at(2, place.path.clone());
        let store = place.open();
        let outcome = catch_unwind(AssertUnwindSafe(|| fulfil(&store, &world)));
        drop(store);
        match world.left() {
            Some(left) => (place, crashes) = (left, crashes + 1),
            None => break outcome,
        }
        if crashes == 3 {
            // A job whose steps are done passes the points between them, so a crash at the second one stops it for ever.
            break Ok(fulfil(&place.open(), &world));
        }
    };
    assert_eq!(outcome.ok().unwrap().unwrap(), Outcome::Done(vec![1, 2, 3, 4]));
    assert_eq!((world.acts(), crashes), (ACTS.map(str::to_owned).to_vec(), 3));
}

#[test]
fn the_next_attempt_at_a_stopped_job_needs_no_policy_for_doubts() {
    let store = Store::in_memory().unwrap();
    let ran = std::cell::Cell::new(0);
    let job = || {
        store.operation("k").run(|job| {
            let receipt = job.step("charge").run(|_| {
                ran.set(ran.get() + 1);
                Ok::<_, String>(17)
            });
            let receipt: u64 = receipt.map_err(|error| error.to_string())?;
            if job.number() == 1 { Err("no address".to_owned()) } else { Ok(receipt) }
        })
    };
    let stopped = job();
    let Err(RunError::Stopped(error)) = &stopped else { panic!("{stopped:?}") };
    assert_eq!(error, "no address");
    let error = stopped.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (oncekey::ErrorKind::Effect, true));
    assert_eq!(error.to_string(), "the operation stopped between its steps and can go on: no address");
    let state = store.get("k").unwrap();
    assert_eq!((state.status(), state.attempt()), (Status::Stopped, 1));
    assert_eq!(job().unwrap(), Outcome::Done(17), "attempt 2 began without a policy");
    assert_eq!(ran.get(), 1);
}

#[test]
fn a_step_that_was_released_leaves_its_job_stopped() {
    let store = Store::in_memory().unwrap();
    let down = std::cell::Cell::new(true);
    let job = || {
        store.operation("k").run(|job| {
            done(job, "charge", 17_u64).map_err(|error| error.to_string())?;
            let ship = job.step("ship").release_if(|error: &String| error == "refused");
            ship.run(|_| if down.get() { Err("refused".to_owned()) } else { Ok(1_u64) })
                .map_err(|error| error.to_string())
        })
    };
    assert!(matches!(job(), Err(RunError::Stopped(_))));
    down.set(false);
    assert_eq!(job().unwrap(), Outcome::Done(1));
}

#[test]
fn a_job_whose_step_is_in_doubt_is_in_doubt_until_the_step_is_resolved() {
    let store = Store::in_memory().unwrap();
    let first = store.operation("k").run(|job| Err::<u64, _>(fails(job, "charge").to_string()));
    assert!(matches!(first, Err(RunError::InDoubt { release_failed: None, .. })));
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
    let second = store.operation("k").run(|_| Ok::<u64, String>(1));
    assert!(matches!(second, Err(RunError::Store(oncekey::Error::InDoubt { attempt: 1, .. }))));
    // The job can be run again, but the step has no rule for its doubt.
    let third = store.operation("k").rerun().run(|job| {
        let step = job.step("charge").run(|_| Ok::<u64, String>(17));
        let Err(RunError::Store(error @ oncekey::Error::InDoubt { .. })) = step else { panic!("{step:?}") };
        let oncekey::Error::InDoubt { key, attempt, .. } = &error else { unreachable!() };
        assert_eq!((key.as_key(), *attempt), (oncekey::Key::new("k").step("charge"), 1));
        Err::<u64, _>(error.to_string())
    });
    assert!(matches!(third, Err(RunError::InDoubt { .. })));
    let fourth = store.operation("k").rerun().run(|job| {
        assert_eq!(job.number(), 3);
        job.step("charge").rerun().run(|step| {
            assert_eq!((step.number(), step.token().as_str()), (2, "k#charge"));
            Ok::<u64, String>(17)
        })
    });
    assert_eq!(fourth.unwrap(), Outcome::Done(17));
}

#[test]
fn the_token_of_a_step_is_the_same_in_every_attempt_and_process() {
    let place = Place::new();
    let seen = std::cell::RefCell::new(Vec::new());
    for _ in 0..2 {
        let store = place.open();
        let lost = store.operation("order 7").scope("a").rerun().run(|job| {
            let step = job.step("mail #1").rerun().run(|step| {
                assert_eq!(step.key(), oncekey::Key::new("order 7").scope("a").step("mail #1"));
                assert!(step.is_current());
                seen.borrow_mut().push((step.token(), step.number(), step.version() > job.version()));
                Err::<u64, _>("no answer".to_owned())
            });
            step.map_err(|error| error.to_string())
        });
        assert!(lost.is_err());
        store.close().unwrap();
    }
    let token = "a/order%207#mail%20%231".to_owned();
    assert_eq!(seen.into_inner(), [(token.clone(), 1, true), (token, 2, true)]);
}

#[test]
fn steps_that_run_in_threads_are_resumed_too() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    let ran = std::sync::atomic::AtomicU32::new(0);
    let job = || {
        store.operation("k").rerun().run(|job| {
            std::thread::scope(|scope| {
                let run = |number: u32| {
                    let (job, ran) = (job.clone(), &ran);
                    scope.spawn(move || {
                        job.step(format!("part:{number}")).run(|_| {
                            ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            Ok::<_, String>(number)
                        })
                    })
                };
                let threads: Vec<_> = (0..4).map(run).collect();
                for (number, thread) in (0..4).zip(threads) {
                    assert_eq!(thread.join().unwrap().unwrap(), number);
                }
            });
            if job.number() == 1 { Err("stop".to_owned()) } else { Ok(0) }
        })
    };
    assert!(matches!(job(), Err(RunError::Stopped(_))));
    assert_eq!(job().unwrap(), Outcome::Done(0));
    assert_eq!(ran.into_inner(), 4);
}
