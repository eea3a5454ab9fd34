//! Checks attempts: errors of the closures, failed disks, and results that an operator or the holder of a lease records.

use std::cell::Cell;

use oncekey::{
    Begin, Bincode, CasOutcome, Error, Expected, Json, Outcome, Reconciled, RunError, Status, Version,
};

use crate::common::{self, NONE, Place, abandon, small};
use crate::{Receipt, store};

#[test]
fn a_closure_error_leaves_a_doubt_unless_release_if_accepts_it() {
    #[derive(Debug, PartialEq)]
    enum ClientError {
        Connect,
        Timeout,
    }
    impl std::fmt::Display for ClientError {
        fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(out, "{self:?}")
        }
    }
    let store = store();
    let run = |error| {
        store
            .operation("k")
            .release_if(|error: &ClientError| *error == ClientError::Connect)
            .run(|_| Err::<u8, _>(error))
    };
    assert!(matches!(run(ClientError::Connect), Err(RunError::Released(ClientError::Connect))));
    assert_eq!(store.get("k").unwrap().status(), Status::Absent);
    let lost = run(ClientError::Timeout);
    assert!(matches!(lost, Err(RunError::InDoubt { error: ClientError::Timeout, release_failed: None, .. })));
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn the_error_of_a_failed_reconcile_contains_its_reason() {
    let store = store();
    abandon(&store, "k");
    let calls = Cell::new(0);
    let failed = store
        .operation("k")
        .reconcile(|_| {
            calls.set(calls.get() + 1);
            Err::<Option<u8>, _>("401, key expired")
        })
        .run(|_| -> Result<u8, String> { panic!("the side effect ran") })
        .unwrap_err();
    assert_eq!(calls.get(), 1);
    assert!(failed.to_string().contains("401, key expired") && failed.is_retryable(), "{failed}");
    let RunError::Store(Error::InDoubt { reason: Some(reason), .. }) = failed else { panic!("{failed}") };
    assert_eq!(reason, "401, key expired");
    let refused =
        store.operation("k").run(|_| -> Result<u8, String> { panic!("the side effect ran") }).unwrap_err();
    assert!(matches!(refused, RunError::Store(Error::InDoubt { reason: None, .. })));
    let unknown = Reconciled::<u8>::Unknown { reason: Some("no answer".to_owned()) };
    let unknown = store
        .operation("k")
        .reconcile(|_| unknown)
        .run(|_| -> Result<u8, String> { panic!("the side effect ran") });
    assert!(unknown.unwrap_err().to_string().contains("no answer"));
}

#[test]
fn a_retry_gets_the_typed_result_of_an_operator() {
    let place = Place::new();
    let store = place.open();
    for (key, json) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        let lost = match json {
            true => store.operation(key).codec(Json).request(&1).run(|_| Err::<Receipt, _>("lost")),
            false => store.operation(key).request(&1).run(|_| Err::<Receipt, _>("lost")),
        };
        assert!(matches!(lost, Err(RunError::InDoubt { .. })));
    }
    let receipt = Receipt { id: 17, cents: 1_000 };
    for key in ["a", "b"] {
        let Begin::InDoubt(mut doubt) = store.operation(key).request(&1).begin().unwrap() else { panic!() };
        doubt.resolve(&receipt).unwrap();
        doubt.resolve(&receipt).unwrap();
        assert!(matches!(doubt.resolve(&Receipt { id: 18, cents: 1 }), Err(Error::Conflict { .. })));
    }
    for (key, json) in [("c", false), ("d", true)] {
        let seen = store.get(key).unwrap();
        let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
        let operation = store.operation(key).fingerprint(seen.fingerprint());
        let swapped = match json {
            true => operation.codec(Json).complete_if(expected, &receipt),
            false => operation.complete_if(expected, &receipt),
        };
        assert!(matches!(swapped, Ok(CasOutcome::Done(_))), "{swapped:?}");
    }
    drop(store);
    let store = place.open();
    for (key, json) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        let again = match json {
            true => {
                store.operation(key).codec(Json).request(&1).run(|_| -> Result<Receipt, String> { panic!() })
            }
            false => store.operation(key).request(&1).run(|_| -> Result<Receipt, String> { panic!() }),
        };
        assert_eq!(again.unwrap(), Outcome::AlreadyDone(receipt.clone()), "{key}");
        assert_eq!(store.get(key).unwrap().decode::<Receipt>().unwrap(), Some(receipt.clone()));
        let Begin::Completed(done) = store.operation(key).request(&1).begin().unwrap() else { panic!() };
        assert_eq!(done.decode::<Receipt>().unwrap(), receipt);
        assert!(done.decode::<String>().is_err());
    }
}

#[test]
fn a_lease_completes_with_a_typed_result_or_without_one() {
    let store = store();
    let Begin::Acquired(mut lease) = store.operation("k").codec(Json).begin().unwrap() else { panic!() };
    assert!(matches!(lease.complete_value(&Some(None::<u8>)), Err(Error::Encode { .. })));
    lease.complete_value(&Receipt { id: 17, cents: 1 }).unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&br#"{"id":17,"cents":1}"#[..]));
    let Begin::Acquired(mut lease) = store.begin("bare", NONE).unwrap() else { panic!() };
    lease.complete_without_result().unwrap();
    lease.complete_without_result().unwrap();
    assert!(matches!(lease.complete(b""), Err(Error::Conflict { .. })));
    assert!(matches!(store.begin("bare", NONE), Err(Error::ResultNotKept { .. })));
    assert!(matches!(store.record("bare", NONE, b"r"), Err(Error::ResultNotKept { .. })));
}

#[test]
fn the_handle_of_an_attempt_is_fenced_after_the_attempt() {
    let store = store();
    let kept = Cell::new(None);
    let outcome = store.operation("k").scope("tenant").run(|attempt| {
        assert!(attempt.is_current());
        attempt.renew(common::seconds(60)).unwrap();
        attempt.retain(common::seconds(5)).unwrap();
        let handle = attempt.clone();
        std::thread::spawn(move || assert!(handle.is_current())).join().unwrap();
        kept.set(Some(attempt.clone()));
        Ok::<_, String>(attempt.token())
    });
    assert_eq!(outcome.unwrap().into_inner(), "tenant/k");
    let seen = store.get(oncekey::Key::new("k").scope("tenant")).unwrap();
    assert_eq!(seen.expires_at_ms().unwrap() - seen.changed_at_ms().unwrap(), 5_000);
    let attempt = kept.take().unwrap();
    for _ in 0..2 {
        assert!(!attempt.is_current());
        assert!(matches!(attempt.renew(common::seconds(1)), Err(Error::Fenced { .. })));
        assert!(matches!(attempt.retain(common::seconds(1)), Err(Error::Fenced { .. })));
        store.close().ok();
    }
}

#[test]
fn a_failed_disk_is_reported_and_leaves_a_doubt() {
    use oncekey::simulation::{DiskFault, SimulatedDisk};
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let refused = store.operation("k").release_if(|_: &&str| true).run(|_| {
        disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
        Err::<u8, _>("connection refused")
    });
    let Err(error @ RunError::InDoubt { error: "connection refused", release_failed: Some(_), .. }) = refused
    else {
        panic!("{refused:?}")
    };
    let text = error.to_string();
    assert!(text.contains("connection refused") && text.contains("could not be recorded"), "{text}");
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);

    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let lost = store.operation("k").run(|_| {
        disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
        Ok::<_, String>(17)
    });
    assert!(
        matches!(lost, Err(RunError::Unrecorded { result, source: Error::Poisoned { .. }, .. }) if *result == 17)
    );
    assert_eq!(
        store.get("k").unwrap().status(),
        Status::InDoubt,
        "the side effect ran but was not recorded, so the key must be in doubt"
    );
}

#[test]
fn complete_if_differs_at_the_wrong_version_with_any_codec() {
    let store = store();
    let lost = store.operation("k").codec(Json).run(|_| Err::<u64, _>("lost"));
    assert!(lost.is_err());
    let seen = store.get("k").unwrap();
    let before = Version::from_u64(seen.version().unwrap().as_u64() - 1);
    let expected = [
        Expected::Present { status: seen.status(), version: before },
        Expected::Present { status: Status::Absent, version: before },
        Expected::Absent,
    ];
    for expected in expected {
        let other = store.operation("k").complete_if(expected, &17_u64);
        assert!(
            matches!(&other, Ok(CasOutcome::Differs(state)) if *state == seen),
            "{expected:?}: {other:?}"
        );
    }
}

#[test]
fn complete_if_refuses_a_different_codec_from_the_attempts() {
    let store = store();
    let lost = store.operation("k").codec(Json).run(|_| Err::<u64, _>("lost"));
    assert!(lost.is_err());
    let seen = store.get("k").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    let other = store.operation("k").complete_if(expected, &17_u64);
    assert!(
        matches!(&other, Err(error @ Error::Encode { .. }) if error.to_string().contains("codec 2")),
        "{other:?}"
    );
    let Begin::InDoubt(mut doubt) = store.operation("k").begin().unwrap() else { panic!() };
    assert!(matches!(doubt.resolve_with(&Bincode, &17_u64), Err(Error::Encode { .. })));
    drop(doubt);
    store.operation("k").codec(Json).complete_if(expected, &17_u64).unwrap();
    let again = store.operation("k").codec(Json).run(|_| -> Result<u64, String> { panic!() });
    assert_eq!(again.unwrap(), Outcome::AlreadyDone(17));
}
