//! Checks that a call whose `reconcile` finds the side effect applied never runs the side effect and never loses the result,
//! whatever happens to the key while `reconcile` is running.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::{Cell, RefCell};

use common::{NONE, abandon, acquire, perform, small};
use oncekey::{
    Begin, Error, Expected, Fingerprint, Lease, Next, Outcome, Reconciled, RunError, Status, Store,
};

type Ran = Result<Outcome<String>, RunError<String, Error>>;

/// Runs an operation in doubt whose `reconcile` calls `meanwhile` and then finds the side effect applied.
fn reconciled_while(store: &Store, meanwhile: impl FnOnce()) -> Ran {
    abandon(store, "charge");
    let meanwhile = RefCell::new(Some(meanwhile));
    let outcome = store
        .operation("charge")
        .reconcile(|attempt| {
            assert_eq!(attempt.number(), 1);
            let meanwhile = meanwhile.take().expect("reconcile ran twice");
            meanwhile();
            Some("receipt 17".to_owned())
        })
        .run(|_| -> Result<String, Error> { panic!("the side effect ran after reconcile found it applied") });
    assert!(meanwhile.take().is_none(), "reconcile did not run");
    outcome
}

/// Sets the state of the key by compare-and-set.
fn set(store: &Store, next: Next<'_>) {
    let seen = store.get("charge").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    store.compare_and_set("charge", expected, next).unwrap();
}

/// Encodes a text with the default codec.
fn encoded(text: &str) -> Vec<u8> {
    let store = small().open_in_memory().unwrap();
    store.operation("k").run(|_| Ok::<_, Error>(text.to_owned())).unwrap();
    store.get("k").unwrap().into_result().unwrap()
}

fn assert_recorded(store: &Store, text: &str) {
    let seen = store.get("charge").unwrap();
    assert_eq!((seen.status(), seen.result()), (Status::Completed, Some(&encoded(text)[..])));
    assert_eq!(store.stats().reserved_bytes, 0);
}

/// Checks that the call returned its result without recording it. Returns the reason.
fn unrecorded_source(ran: Ran) -> Error {
    match ran {
        Err(RunError::Unrecorded { result, source, .. }) if *result == "receipt 17" => source,
        other => panic!("the result was lost: {other:?}"),
    }
}

#[test]
fn an_applied_result_is_recorded_if_the_key_was_forgotten_meanwhile() {
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || assert!(store.forget("charge").unwrap()));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 17".to_owned()));
    assert_recorded(&store, "receipt 17");
    assert_eq!(
        store.get("charge").unwrap().attempt(),
        1,
        "the result must keep the number of the attempt in doubt"
    );
}

#[test]
fn an_applied_result_is_recorded_if_the_key_was_set_absent_meanwhile() {
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || set(&store, Next::Absent));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 17".to_owned()));
    assert_recorded(&store, "receipt 17");
    assert_eq!(
        store.get("charge").unwrap().attempt(),
        1,
        "the result must keep the number of the attempt in doubt"
    );
}

#[test]
fn a_result_set_meanwhile_wins() {
    let store = small().open_in_memory().unwrap();
    let other = encoded("receipt 18");
    let ran = reconciled_while(&store, || set(&store, Next::Completed { fingerprint: NONE, result: &other }));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    assert_recorded(&store, "receipt 18");
}

#[test]
fn a_result_of_another_attempt_wins() {
    let store = small().open_in_memory().unwrap();
    let other = encoded("receipt 18");
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        perform(&store, "charge", &other);
    });
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    assert_recorded(&store, "receipt 18");
}

#[test]
fn an_applied_result_is_returned_unrecorded_if_another_attempt_began() {
    for keeps_lease in [true, false] {
        let store = small().open_in_memory().unwrap();
        let lease: Cell<Option<Lease>> = Cell::new(None);
        let ran = reconciled_while(&store, || {
            store.forget("charge").unwrap();
            let begun = acquire(&store, "charge");
            lease.set(keeps_lease.then_some(begun));
        });
        assert!(matches!(unrecorded_source(ran), Error::Fenced { .. }));
        let expected = if keeps_lease { Status::InProgress } else { Status::InDoubt };
        assert_eq!(store.get("charge").unwrap().status(), expected);
        if let Some(mut lease) = lease.take() {
            lease.complete(b"its own").unwrap();
        }
    }
}

#[test]
fn an_applied_result_is_returned_unrecorded_if_another_request_began() {
    let store = small().open_in_memory().unwrap();
    let another = Fingerprint::from_bytes([7; 16]);
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        store.record("charge", another, &encoded("receipt 18")).unwrap();
    });
    assert!(matches!(unrecorded_source(ran), Error::Mismatch { .. }));
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        drop(store.begin("charge", another).unwrap());
    });
    assert!(matches!(unrecorded_source(ran), Error::Mismatch { .. }));
}

#[test]
fn an_applied_result_that_cannot_be_recorded_is_returned() {
    let store = small().max_result(4).open_in_memory().unwrap();
    assert!(matches!(
        unrecorded_source(reconciled_while(&store, || ())),
        Error::TooLarge { limit_bytes: 4, .. }
    ));
    assert!(
        store.get("charge").unwrap().result_was_not_kept(),
        "the operation must be completed without its result"
    );
    // A result that another caller recorded meanwhile wins, but this one does not decode, so the call cannot return it.
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || {
        set(&store, Next::Completed { fingerprint: NONE, result: &[0xFF; 3] });
    });
    assert!(matches!(unrecorded_source(ran), Error::Decode { .. }));
}

#[test]
fn a_second_doubt_during_a_call_is_an_error() {
    let store = small().open_in_memory().unwrap();
    abandon(&store, "charge");
    let calls = Cell::new(0);
    let ran = store
        .operation("charge")
        .reconcile(|_| {
            calls.set(calls.get() + 1);
            assert!(calls.get() < 9, "reconcile runs again and again");
            store.forget("charge").unwrap();
            abandon(&store, "charge");
            Reconciled::NotApplied
        })
        .run(|_| -> Result<u32, Error> { panic!("the side effect ran while the key was in doubt") });
    assert!(matches!(ran, Err(RunError::Store(Error::InDoubt { .. }))), "{ran:?}");
    assert_eq!(calls.get(), 1);
}

#[test]
fn after_not_applied_the_call_follows_the_current_state() {
    let store = small().open_in_memory().unwrap();
    // The key was forgotten meanwhile, so the side effect runs as the first attempt.
    abandon(&store, "charge");
    let run = |meanwhile: &dyn Fn()| {
        store
            .operation("charge")
            .reconcile(|_| {
                meanwhile();
                Reconciled::NotApplied
            })
            .run(|attempt| Ok::<_, Error>(format!("attempt {}", attempt.number())))
    };
    let ran = run(&|| assert!(store.forget("charge").unwrap()));
    assert_eq!(ran.unwrap(), Outcome::Done("attempt 1".to_owned()));
    // The key was completed meanwhile, so that result is replayed.
    store.forget("charge").unwrap();
    abandon(&store, "charge");
    let other = encoded("receipt 18");
    let ran = run(&|| set(&store, Next::Completed { fingerprint: NONE, result: &other }));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    // Another attempt began meanwhile, so the call returns "in progress".
    store.forget("charge").unwrap();
    abandon(&store, "charge");
    let lease: Cell<Option<Lease>> = Cell::new(None);
    let ran = run(&|| {
        store.forget("charge").unwrap();
        lease.set(Some(acquire(&store, "charge")));
    });
    assert!(matches!(ran, Err(RunError::Store(Error::InProgress { .. }))), "{ran:?}");
    drop(lease);
    assert!(matches!(store.begin("charge", NONE).unwrap(), Begin::InDoubt(_)));
}
