//! Steps of an operation: the end of a step, the end of its operation, a takeover, a forget, and moves, all at once.

use std::sync::Arc;
use std::time::Duration;

use shuttle::thread;

use super::{WHOLE_STORE, explore, must_find_planted};
use crate::engine::{Engine, HashedKey, StepBegan, StepEnd, StepGrant, StepOf};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::planted::Bug;
use crate::status::Version;
use crate::{Begin, Fingerprint, Key, Lease, ManualClock, Options, Status, Store};

const LEASE: Duration = Duration::from_secs(10);

fn open() -> (Store, ManualClock) {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().segment_size(64 << 10).max_result(1 << 10);
    (options.manual_clock(clock.clone()).open_in_memory().unwrap(), clock)
}

fn begin(store: &Store) -> Lease {
    match store.operation("job").lease(LEASE).wait(Duration::MAX).begin().unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("the job could not be acquired: {other:?}"),
    }
}

/// The next attempt at the job, whatever the earlier one left. Waits for a thread that is changing it. None if it is done.
fn take_over(store: &Store) -> Option<Lease> {
    match store.operation("job").lease(LEASE).wait(Duration::MAX).begin().unwrap() {
        Begin::Acquired(lease) => Some(lease),
        Begin::InDoubt(doubt) => doubt.begin_again().ok(),
        _ => None,
    }
}

fn engine(store: &Store) -> &Arc<Engine> {
    store.engine()
}

fn step<'a>(store: &Store, name: &'a str) -> StepOf<'a> {
    let key: Key<'a> = Key::new("job");
    let parent = HashedKey { key, hash: engine(store).log().hasher().key(key) };
    StepOf { parent, name: name.as_bytes() }
}

fn begin_step(store: &Store, attempt: Version, name: &str) -> Result<StepBegan> {
    let terms = engine(store).settings().terms;
    engine(store).begin_step(step(store, name), attempt, Fingerprint::NONE.into(), &terms, true)
}

fn acquired(began: Result<StepBegan>) -> StepGrant {
    match began.unwrap() {
        StepBegan::Acquired(grant) => grant,
        other => panic!("the step did not begin: {other:?}"),
    }
}

fn end_step(store: &Store, name: &str, grant: &mut StepGrant, result: &str) -> Result<()> {
    let terms = engine(store).settings().terms;
    let end = StepEnd::Completed(Value::bytes(result.as_bytes()));
    engine(store).end_step(step(store, name), grant, end, &terms).map(drop)
}

fn spawn<R: Send + 'static>(
    store: &Store,
    act: impl FnOnce(&Store) -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    let store = store.clone();
    thread::spawn(move || act(&store))
}

/// Space usage counts what a reopened store would count: nothing of a step that has ended is live.
fn check_no_steps(store: &Store) {
    assert_eq!(store.stats().unfinished_steps, 0, "steps outlive their operation");
    assert!(
        engine(store).list_steps(step(store, "a").parent).unwrap().is_empty(),
        "steps outlive their operation"
    );
}

/// One thread ends a step, one completes the operation, one tries to release another operation over it, and one moves all.
fn end_and_complete() {
    let (store, _) = open();
    let mut lease = begin(&store);
    let attempt = lease.version();
    let mut held = acquired(begin_step(&store, attempt, "a"));
    let ending = spawn(&store, move |store| end_step(store, "a", &mut held, "from a"));
    let completing = thread::spawn(move || (lease.complete(b"done"), lease));
    let moving = spawn(&store, |store| store.compact().map(|_| ()).unwrap());
    let ended = ending.join().unwrap();
    let (completed, mut lease) = completing.join().unwrap();
    moving.join().unwrap();
    match completed {
        Ok(_) => assert!(ended.is_ok(), "completed over a step in progress: {ended:?}"),
        Err(Error::HasSteps { finished: 0, in_doubt: 1, .. }) => {
            ended.unwrap();
            lease.complete(b"done").unwrap();
        }
        Err(other) => panic!("{other:?}"),
    }
    check_no_steps(&store);
}

/// The lease of the first attempt has passed its deadline. That attempt ends a step late and begins another one, while a
/// second attempt takes over and asks for both.
fn take_over_and_end_late() {
    let (store, clock) = open();
    let lease = begin(&store);
    let first = lease.version();
    let mut held = acquired(begin_step(&store, first, "a"));
    clock.advance(LEASE);
    let late = spawn(&store, move |store| {
        let ended = end_step(store, "a", &mut held, "first");
        let began = matches!(begin_step(store, first, "b"), Ok(StepBegan::Acquired(_)));
        (ended, began)
    });
    let taking = spawn(&store, |store| {
        let lease = take_over(store).unwrap();
        let second = lease.version();
        let result = match begin_step(store, second, "a").unwrap() {
            StepBegan::Completed(found) => found.result.unwrap(),
            StepBegan::InDoubt(doubt) => {
                let terms = engine(store).settings().terms;
                match engine(store).begin_step_again(step(store, "a"), second, &doubt, &terms) {
                    Ok(mut held) => {
                        end_step(store, "a", &mut held, "second").unwrap();
                        b"second".to_vec()
                    }
                    Err(Error::Fenced { .. }) => b"first".to_vec(),
                    Err(other) => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        };
        let found_new =
            match begin_step(store, second, "b").unwrap_or_else(|error| panic!("b is taken: {error}")) {
                StepBegan::Acquired(_) => true,
                StepBegan::InDoubt(_) => false,
                other => panic!("{other:?}"),
            };
        (lease, result, found_new)
    });
    let moving = spawn(&store, |store| store.compact().map(|_| ()).unwrap());
    let (ended, first_began_b) = late.join().unwrap();
    let (second, result, found_new) = taking.join().unwrap();
    moving.join().unwrap();
    drop(lease);
    let (_, recorded) = engine(&store).get_step(step(&store, "a")).unwrap();
    let recorded = recorded.unwrap().result.unwrap();
    assert_eq!(recorded, result, "a step has two results");
    assert_eq!(ended.is_ok(), result == b"first", "a late result was kept or lost wrongly: {ended:?}");
    assert!(!(first_began_b && found_new), "two attempts began the same step");
    drop(second);
    assert!(store.forget("job").unwrap());
    check_no_steps(&store);
}

/// A step ends late while its operation is forgotten and begun again, and records are moved.
fn forget_and_end_late() {
    let (store, _) = open();
    let lease = begin(&store);
    let mut held = acquired(begin_step(&store, lease.version(), "a"));
    drop(lease);
    let late = spawn(&store, move |store| end_step(store, "a", &mut held, "late").is_ok());
    let forgetting = spawn(&store, |store| {
        assert!(store.forget("job").unwrap());
        let lease = begin(store);
        match begin_step(store, lease.version(), "a").unwrap() {
            StepBegan::Acquired(mut held) => end_step(store, "a", &mut held, "new").unwrap(),
            other => panic!("a new operation met a step of the old one: {other:?}"),
        }
        lease
    });
    let moving = spawn(&store, |store| store.compact().map(|_| ()).unwrap());
    late.join().unwrap();
    let mut lease = forgetting.join().unwrap();
    moving.join().unwrap();
    let (status, found) = engine(&store).get_step(step(&store, "a")).unwrap();
    assert_eq!((status, found.unwrap().result.unwrap()), (Status::Completed, b"new".to_vec()));
    lease.complete(b"done").unwrap();
    check_no_steps(&store);
}

#[test]
fn a_step_and_its_operation_end_in_one_order() {
    explore("steps, end and complete", WHOLE_STORE, end_and_complete);
    explore("steps, take over and end late", WHOLE_STORE, take_over_and_end_late);
    explore("steps, forget and end late", WHOLE_STORE, forget_and_end_late);
}

#[test]
fn finds_an_operation_completed_over_a_step() {
    let expected = ["completed over a step in progress"];
    must_find_planted(Bug::CompletedOverDoubtfulStep, WHOLE_STORE, &expected, end_and_complete);
}

#[test]
fn finds_a_step_begun_after_a_takeover() {
    let expected = ["b is taken", "two attempts began the same step"];
    must_find_planted(Bug::StepBegunAfterTakeover, WHOLE_STORE, &expected, take_over_and_end_late);
}
