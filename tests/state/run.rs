//! Checks what each outcome of the closures of `run` does to the key.

use oncekey::{Begin, Error, Fingerprint, Key, Outcome, Reconciled, RunError, Status, Store};

use crate::common::{NONE, abandon, seconds, small};
use crate::{each_store, status};

#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the reply was lost")
    }
}

impl std::error::Error for Lost {}

/// Makes a side effect that returns `result`.
fn effect<T>(result: T) -> impl FnOnce(&oncekey::Attempt) -> Result<T, Lost> {
    move |_| Ok(result)
}

#[test]
fn run_runs_the_side_effect_once_and_marks_a_replay() {
    each_store(|store, _| {
        let run = |result: u32| store.operation("k").request("ten").run(effect(result)).unwrap();
        assert_eq!(run(1), Outcome::Done(1));
        assert_eq!(run(2), Outcome::AlreadyDone(1));
        let other = store.operation("k").request("six").run(effect(3));
        assert!(matches!(other, Err(RunError::Store(Error::Mismatch { .. }))));
    });
}

#[test]
fn release_if_frees_the_key_but_other_errors_leave_a_doubt() {
    each_store(|store, _| {
        let not_applied =
            store.operation("a").release_if(|_: &Lost| true).run(|_| -> Result<u32, _> { Err(Lost) });
        assert!(matches!(not_applied, Err(RunError::Released(Lost))));
        assert_eq!(status(store, "a"), Status::Absent);
        let lost = store.operation("b").run(|_| -> Result<u32, Lost> {
            Err(Lost)?;
            Ok(1)
        });
        assert!(matches!(lost, Err(RunError::InDoubt { error: Lost, .. })));
        assert_eq!(status(store, "b"), Status::InDoubt);
        let refused = store.operation("b").run(effect(1));
        assert!(matches!(refused, Err(RunError::Store(Error::InDoubt { attempt: 1, .. }))));
        assert_eq!(store.operation("b").rerun().run(effect(7)).unwrap(), Outcome::Done(7));
        assert_eq!(store.get("b").unwrap().attempt(), 2);
    });
}

#[test]
fn reconcile_runs_only_in_doubt_and_has_three_outcomes() {
    each_store(|store, _| {
        let fresh = store
            .operation("fresh")
            .reconcile(|_| -> Reconciled<u32> { panic!("reconcile ran") })
            .run(effect(1));
        assert_eq!(fresh.unwrap(), Outcome::Done(1));

        abandon(store, "k");
        let before = store.get("k").unwrap();
        let unknown =
            store.operation("k").reconcile(|_| Reconciled::<u32>::Unknown { reason: None }).run(effect(1));
        assert!(matches!(unknown, Err(RunError::Store(Error::InDoubt { .. }))));
        assert_eq!(store.get("k").unwrap(), before, "an unknown outcome changed the key");

        let applied = store.operation("k").reconcile(|attempt| {
            assert_eq!((attempt.number(), Some(attempt.version())), (1, before.version()));
            Some(9_u32)
        });
        assert_eq!(applied.run(effect(1)).unwrap(), Outcome::AlreadyDone(9));

        abandon(store, "n");
        let not_applied = store.operation("n").reconcile(|_| None::<u32>).run(effect(5));
        assert_eq!(not_applied.unwrap(), Outcome::Done(5));
        assert_eq!(store.get("n").unwrap().attempt(), 2);
    });
}

#[test]
fn a_panic_in_a_closure_leaves_a_doubt_and_unwinds() {
    each_store(|store, _| {
        let panics = |run: &dyn Fn()| {
            let run = std::panic::AssertUnwindSafe(run);
            std::panic::catch_unwind(run).unwrap_err();
        };
        panics(&|| {
            let _ = store.operation("k").run(|_| -> Result<u32, Lost> { panic!("planted") });
        });
        let before = store.get("k").unwrap();
        assert_eq!(before.status(), Status::InDoubt);
        panics(&|| {
            let _ =
                store.operation("k").reconcile(|_| -> Reconciled<u32> { panic!("planted") }).run(effect(1));
        });
        assert_eq!(store.get("k").unwrap(), before);
        assert_eq!(store.stats().leases, 0);
    });
}

#[test]
fn an_undecodable_result_is_an_error_without_a_second_run() {
    each_store(|store, _| {
        store.record("k", NONE, b"\xff\xff\xff\xff").unwrap();
        let outcome = store.operation("k").run(|_| -> Result<String, Lost> { panic!("the side effect ran") });
        match outcome {
            Err(RunError::Store(Error::Decode { key, .. })) => assert_eq!(key.as_key(), Key::new("k")),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_result_that_cannot_be_recorded_is_returned() {
    let store = small().max_result(10).open_in_memory().unwrap();
    let outcome = store.operation("k").run(effect("a result that is too large".to_owned()));
    match outcome {
        Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) => {
            assert_eq!(*result, "a result that is too large");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(status(&store, "k"), Status::Completed, "the operation must be completed without its result");
}

#[test]
fn an_operation_has_its_own_retention_and_lease() {
    each_store(|store, clock| {
        store.operation("short").retain(seconds(5)).run(effect(1)).unwrap();
        store.operation("long").retain(seconds(500)).retain_result(seconds(400)).run(effect(1)).unwrap();
        clock.advance(seconds(5));
        assert_eq!(status(store, "short"), Status::Absent);
        clock.advance(seconds(394));
        assert!(store.get("long").unwrap().result().is_some());
        clock.advance(seconds(1));
        assert!(store.get("long").unwrap().is_completed());
        assert_eq!(store.get("long").unwrap().result(), None);

        let refused = |option: &str, outcome: Result<Begin, Error>| match outcome {
            Err(Error::Option { option: found, .. }) => assert_eq!(found, option),
            other => panic!("{option}: {other:?}"),
        };
        refused("retention", store.operation("x").retain(seconds(0)).begin());
        refused("result_retention", store.operation("x").retain_result(seconds(101)).begin());
        refused("lease", store.operation("x").lease(seconds(101)).begin());
        refused("lease", store.operation("x").lease(seconds(0)).begin());
        assert!(store.get("x").unwrap().is_absent());
    });
}

#[test]
fn an_operation_in_a_scope_completes_the_key_in_that_scope() {
    each_store(|store, _| {
        store.operation("k").scope("tenant").run(effect(1)).unwrap();
        assert!(store.get("k").unwrap().is_absent());
        assert!(store.get(Key::new("k").scope("tenant")).unwrap().is_completed());
    });
}

#[test]
fn errors_carry_the_key_and_say_what_to_do() {
    let store = Store::in_memory().unwrap();
    abandon(&store, "charge:1");
    let error = store.operation("charge:1").run(effect(1)).unwrap_err().to_string();
    assert!(error.contains("charge:1") && error.contains("reconcile"), "{error}");
    store.record("r", store.fingerprint(b"secret"), b"").unwrap();
    let error = store.begin("r", Fingerprint::NONE).unwrap_err().to_string();
    assert!(error.contains("a different request") && !error.contains("secret"), "{error}");
}
