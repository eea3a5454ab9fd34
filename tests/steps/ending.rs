//! The ends of a job that has steps: completed, released, given up, forgotten.

use oncekey::{Answer, Begin, CasOutcome, Error, Expected, Next, Outcome, RunError, Status, Store};

use crate::common::{NONE, acquire};
use crate::{done, fails};

/// A store with a job "k" whose step "a" is done. The job is stopped.
fn stopped() -> Store {
    let store = Store::in_memory().unwrap();
    let outcome = store.operation("k").run(|job| {
        done(job, "a", 1_u64).map_err(|error| error.to_string())?;
        Err::<u64, _>("stop".to_owned())
    });
    assert!(matches!(outcome, Err(RunError::Stopped(_))));
    store
}

/// A store with a job "k" whose step "a" is done and whose step "b" is in doubt.
fn in_doubt() -> Store {
    let store = stopped();
    let outcome = store.operation("k").run(|job| Err::<u64, _>(fails(job, "b").to_string()));
    assert!(matches!(outcome, Err(RunError::InDoubt { .. })));
    store
}

fn expected(store: &Store) -> Expected {
    let state = store.get("k").unwrap();
    Expected::Present { status: state.status(), version: state.version().unwrap() }
}

#[allow(clippy::needless_pass_by_value, reason = "shorter calls")]
fn assert_held<T: std::fmt::Debug>(result: Result<T, Error>, counts: (usize, usize)) {
    let Err(Error::HasSteps { finished, in_doubt, .. }) = result else { panic!("{result:?}") };
    assert_eq!((finished, in_doubt), counts);
}

#[test]
fn no_call_releases_a_job_whose_step_happened() {
    let store = stopped();
    assert_held(store.compare_and_set("k", expected(&store), Next::Absent), (1, 0));
    // A stopped job has nothing to find out: a begin gets a lease, and not a doubt.
    assert_held(acquire(&store, "k").release(), (1, 0));
    let mut lease = acquire(&store, "k");
    let mut batch = store.batch();
    batch.release(&mut lease).unwrap();
    assert_held(batch.commit().unwrap().next().unwrap().map(|_| ()), (1, 0));
    drop(batch);
    drop(lease);
    let run = store.operation("k").release_if(|_: &&str| true).run(|_| Err::<u64, _>("refused"));
    assert!(matches!(run, Err(RunError::Stopped("refused"))), "{run:?}");
    assert_eq!(store.get("k").unwrap().status(), Status::Stopped);
    assert!(matches!(store.record("k", NONE, b""), Err(Error::InDoubt { .. })));
}

#[test]
fn no_call_releases_a_job_whose_step_is_in_doubt() {
    let store = in_doubt();
    assert_held(store.compare_and_set("k", expected(&store), Next::Absent), (1, 1));
    let begin = store.begin("k", NONE).unwrap();
    let Begin::InDoubt(doubt) = begin else { panic!("{begin:?}") };
    assert_held(doubt.release(), (1, 1));
    let run = store.operation("k").rerun().release_if(|_: &&str| true).run(|_| Err::<u64, _>("refused"));
    let Err(RunError::InDoubt { error: "refused", release_failed: Some(failed), .. }) = run else {
        panic!("{run:?}")
    };
    assert_held(Err::<(), _>(*failed), (1, 1));
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn a_job_whose_steps_were_all_released_can_be_released() {
    let store = Store::in_memory().unwrap();
    let run = store.operation("k").release_if(|_: &String| true).run(|job| {
        let step = job.step("a").release_if(|_: &String| true).run(|_| Err::<u64, _>("refused".to_owned()));
        step.map_err(|error| error.to_string())
    });
    assert!(matches!(run, Err(RunError::Released(_))), "{run:?}");
    assert!(store.get("k").unwrap().is_absent());
}

#[test]
fn a_job_is_not_completed_over_a_step_in_doubt() {
    let store = in_doubt();
    let run = store.operation("k").rerun().run(|_| Ok::<_, String>(9_u64));
    let Err(RunError::Unrecorded { result, source, .. }) = run else { panic!("{run:?}") };
    assert_eq!(*result, 9, "the result is in hand");
    assert_held(Err::<(), _>(source), (1, 1));
    let completed = Next::Completed { fingerprint: NONE, result: b"r" };
    assert_held(store.compare_and_set("k", expected(&store), completed), (1, 1));
    let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!() };
    let mut lease = doubt.begin_again().unwrap();
    assert_held(lease.complete(b"r"), (1, 1));
    assert_held(lease.complete_without_result(), (1, 1));
    let mut batch = store.batch();
    batch.complete(&mut lease, b"r").unwrap();
    assert_held(batch.commit().unwrap().next().unwrap().map(|_| ()), (1, 1));
    drop(batch);
    drop(lease);
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn a_job_is_not_completed_over_a_step_in_progress() {
    let store = Store::in_memory().unwrap();
    let (begun, wait_until_begun) = std::sync::mpsc::channel();
    let (go_on, wait_to_go_on) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let run = store.operation("k").run(|job| {
            let job = job.clone();
            scope.spawn(move || {
                job.step("a").run(|_| {
                    begun.send(()).unwrap();
                    wait_to_go_on.recv().unwrap();
                    Ok::<u64, String>(1)
                })
            });
            wait_until_begun.recv().unwrap();
            Ok::<_, String>(9_u64)
        });
        assert!(matches!(run, Err(RunError::Unrecorded { source: Error::HasSteps { .. }, .. })), "{run:?}");
        go_on.send(()).unwrap();
    });
    assert_eq!(store.get("k").unwrap().status(), Status::Stopped, "the late result was kept");
}

#[test]
fn a_step_that_was_given_up_does_not_hold_the_completion() {
    let store = in_doubt();
    let run = store.operation("k").rerun().run(|job| {
        assert!(!job.give_up("a").unwrap(), "done: nothing to give up");
        assert!(!job.give_up("never began").unwrap());
        assert!(job.give_up("b").unwrap());
        assert!(job.give_up("b").unwrap(), "given up already");
        let steps = job.steps().unwrap();
        let given_up: Vec<_> =
            steps.iter().filter(|step| step.was_given_up()).map(|step| step.name()).collect();
        assert_eq!(given_up, [b"b"]);
        Ok::<_, String>(9_u64)
    });
    assert_eq!(run.unwrap(), Outcome::Done(9));
}

#[test]
fn giving_up_is_recorded_and_still_holds_the_release() {
    let place = crate::common::Place::new();
    let store = place.open();
    let stopped = store.operation("k").run(|job| {
        fails(job, "a");
        job.give_up("a").map_err(|error| error.to_string())?;
        Err::<u64, _>("stop".to_owned())
    });
    assert!(matches!(stopped, Err(RunError::Stopped(_))), "{stopped:?}");
    store.close().unwrap();
    let store = place.open();
    let listed = store.unfinished().unwrap().next().unwrap().unwrap();
    assert_eq!(listed.status(), Status::Stopped);
    assert!(listed.steps()[0].was_given_up());
    assert_held(store.compare_and_set("k", expected(&store), Next::Absent), (0, 1));
    // The next attempt may find out after all.
    let run =
        store.operation("k").run(|job| job.step("a").reconcile(|_| Some(3_u64)).run(|_| Err("happened")));
    assert_eq!(run.unwrap(), Outcome::Done(3));
}

#[test]
fn a_reconcile_of_the_job_completes_it_over_a_step_in_doubt() {
    let store = in_doubt();
    let run = store.operation("k").reconcile(|_| Some(5_u64)).run(|_| Err("it happened as a whole"));
    assert_eq!(run.unwrap(), Outcome::AlreadyDone(5));
    let store = in_doubt();
    let Begin::InDoubt(mut doubt) = store.begin("k", NONE).unwrap() else { panic!() };
    doubt.resolve(&5_u64).unwrap();
    assert!(store.get("k").unwrap().is_completed());
}

#[test]
fn a_forget_gives_all_steps_up_and_lists_them() {
    let store = in_doubt();
    let steps = store.forget_with_steps("k").unwrap().unwrap();
    let listed: Vec<_> = steps.iter().map(|step| (step.name(), step.status())).collect();
    assert_eq!(listed, [(&b"a"[..], Status::Completed), (&b"b"[..], Status::InDoubt)]);
    assert_eq!(steps[1].key().token(), "k#b", "to be looked up in the outside world");
    assert_eq!(steps[1].note(), Some("no answer"));
    assert!(store.get("k").unwrap().is_absent());
    assert_eq!(store.stats().unfinished_steps, 0);
    // The key is used again, and does not meet the steps from before.
    let run = store.operation("k").run(|job| {
        assert!(job.steps().unwrap().is_empty());
        done(job, "a", 8_u64)
    });
    assert_eq!(run.unwrap(), Outcome::Done(8));
    let store = stopped();
    assert!(store.forget("k").unwrap());
}

#[test]
fn a_batch_goes_on_with_a_stopped_job() {
    let store = stopped();
    let mut batch = store.batch();
    batch.begin(store.operation("k")).unwrap();
    let Answer::Acquired(mut lease) = batch.commit().unwrap().next().unwrap().unwrap() else { panic!() };
    assert_eq!(lease.attempt(), 2);
    lease.complete(b"by hand").unwrap();
}

#[test]
fn compare_and_set_completes_a_stopped_job() {
    let store = stopped();
    let swapped = store.operation("k").complete_if(expected(&store), &4_u64).unwrap();
    assert!(matches!(swapped, CasOutcome::Done(_)));
    assert_eq!(store.operation("k").run(|_| Err::<u64, _>("done")).unwrap(), Outcome::AlreadyDone(4));
}
