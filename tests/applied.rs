//! What `reconcile` found out is final: after "applied" the same call never performs the act, and never loses the result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::{Cell, RefCell};

use common::{NONE, abandon, acquire, perform, small};
use oncekey::{
    Begin, Error, Expected, Fingerprint, Lease, Next, Outcome, Reconciled, RunError, Status, Store,
};

type Ran = Result<Outcome<String>, RunError<String, Error>>;

/// Runs `key`, in doubt, where `meanwhile` happens while the closure finds out that the act was applied.
fn reconciled_while(store: &Store, meanwhile: impl FnOnce()) -> Ran {
    abandon(store, "charge");
    let meanwhile = RefCell::new(Some(meanwhile));
    let outcome = store
        .operation("charge")
        .reconcile(|attempt| {
            assert_eq!(attempt.number(), 1);
            let meanwhile = meanwhile.take().expect("asked once");
            meanwhile();
            Some("receipt 17".to_owned())
        })
        .run(|_| -> Result<String, Error> { panic!("performed after it was found to be applied") });
    assert!(meanwhile.take().is_none(), "asked");
    outcome
}

fn set(store: &Store, next: Next<'_>) {
    let seen = store.get("charge").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    store.compare_and_set("charge", expected, next).unwrap();
}

/// What the codec of the typed face makes of a text.
fn encoded(text: &str) -> Vec<u8> {
    let store = small().open_in_memory().unwrap();
    store.operation("k").run(|_| Ok::<_, Error>(text.to_owned())).unwrap();
    store.get("k").unwrap().into_result().unwrap()
}

fn holds(store: &Store, text: &str) {
    let seen = store.get("charge").unwrap();
    assert_eq!((seen.status(), seen.result()), (Status::Completed, Some(&encoded(text)[..])));
    assert_eq!(store.stats().reserved_bytes, 0);
}

fn is_unrecorded(ran: Ran) -> Error {
    match ran {
        Err(RunError::Unrecorded { result, source, .. }) if *result == "receipt 17" => source,
        other => panic!("the result is lost: {other:?}"),
    }
}

#[test]
fn it_is_recorded_if_the_key_was_forgotten_meanwhile() {
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || assert!(store.forget("charge").unwrap()));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 17".to_owned()));
    holds(&store, "receipt 17");
    assert_eq!(store.get("charge").unwrap().attempt(), 1, "the attempt that performed it");
}

#[test]
fn it_is_recorded_if_the_key_was_set_to_absent_meanwhile() {
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || set(&store, Next::Absent));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 17".to_owned()));
    holds(&store, "receipt 17");
    assert_eq!(store.get("charge").unwrap().attempt(), 1, "the attempt that performed it");
}

#[test]
fn what_was_recorded_meanwhile_is_the_result() {
    let store = small().open_in_memory().unwrap();
    let other = encoded("receipt 18");
    let ran = reconciled_while(&store, || set(&store, Next::Completed { fingerprint: NONE, result: &other }));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    holds(&store, "receipt 18");
}

#[test]
fn what_another_attempt_recorded_meanwhile_is_the_result() {
    let store = small().open_in_memory().unwrap();
    let other = encoded("receipt 18");
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        perform(&store, "charge", &other);
    });
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    holds(&store, "receipt 18");
}

#[test]
fn another_attempt_that_is_in_progress_or_in_doubt_meanwhile_leaves_it_unrecorded_and_whole() {
    for keeps in [true, false] {
        let store = small().open_in_memory().unwrap();
        let lease: Cell<Option<Lease>> = Cell::new(None);
        let ran = reconciled_while(&store, || {
            store.forget("charge").unwrap();
            let begun = acquire(&store, "charge");
            lease.set(keeps.then_some(begun));
        });
        assert!(matches!(is_unrecorded(ran), Error::Fenced { .. }));
        let expected = if keeps { Status::InProgress } else { Status::InDoubt };
        assert_eq!(store.get("charge").unwrap().status(), expected);
        if let Some(mut lease) = lease.take() {
            lease.complete(b"its own").unwrap();
        }
    }
}

#[test]
fn another_request_meanwhile_is_a_mismatch_and_is_not_replayed() {
    let store = small().open_in_memory().unwrap();
    let another = Fingerprint::from_bytes([7; 16]);
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        store.record("charge", another, &encoded("receipt 18")).unwrap();
    });
    assert!(matches!(is_unrecorded(ran), Error::Mismatch { .. }));
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || {
        store.forget("charge").unwrap();
        drop(store.begin("charge", another).unwrap());
    });
    assert!(matches!(is_unrecorded(ran), Error::Mismatch { .. }));
}

#[test]
fn what_cannot_be_recorded_is_not_lost() {
    let store = small().max_result(4).open_in_memory().unwrap();
    assert!(matches!(is_unrecorded(reconciled_while(&store, || ())), Error::TooLarge { limit_bytes: 4, .. }));
    assert!(store.get("charge").unwrap().result_was_not_kept(), "that it happened is recorded");
    // What was recorded meanwhile and does not decode, or has expired, is no result to give.
    let store = small().open_in_memory().unwrap();
    let ran = reconciled_while(&store, || {
        set(&store, Next::Completed { fingerprint: NONE, result: &[0xFF; 3] });
    });
    assert!(matches!(is_unrecorded(ran), Error::Decode { .. }));
}

#[test]
fn reconcile_is_asked_once_in_a_call_and_a_second_doubt_is_in_doubt() {
    let store = small().open_in_memory().unwrap();
    abandon(&store, "charge");
    let asked = Cell::new(0);
    let ran = store
        .operation("charge")
        .reconcile(|_| {
            asked.set(asked.get() + 1);
            assert!(asked.get() < 9, "asked again and again");
            store.forget("charge").unwrap();
            abandon(&store, "charge");
            Reconciled::NotApplied
        })
        .run(|_| -> Result<u32, Error> { panic!("performed while in doubt") });
    assert!(matches!(ran, Err(RunError::Store(Error::InDoubt { .. }))), "{ran:?}");
    assert_eq!(asked.get(), 1);
}

#[test]
fn after_not_applied_the_key_as_it_stands_then_decides() {
    let store = small().open_in_memory().unwrap();
    // Given up meanwhile: it is performed as the first attempt.
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
    // Completed meanwhile: that is the result.
    store.forget("charge").unwrap();
    abandon(&store, "charge");
    let other = encoded("receipt 18");
    let ran = run(&|| set(&store, Next::Completed { fingerprint: NONE, result: &other }));
    assert_eq!(ran.unwrap(), Outcome::AlreadyDone("receipt 18".to_owned()));
    // Begun by another meanwhile.
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
