//! Checks that an operation in doubt can be ended in every way when the store is full, and that only another attempt needs
//! space.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::Cell;

use common::{NONE, SEGMENT, abandon, small};
use oncekey::{
    Begin, CasOutcome, Doubt, Error, Expected, KeyState, Next, Options, Outcome, Reconciled, RunError,
    Status, Store,
};

/// A way in which a program can end a doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Reconcile,
    Complete,
    Release,
    SetCompleted,
    SetAbsent,
    Forget,
}

const WAYS: [Way; 6] =
    [Way::Reconcile, Way::Complete, Way::Release, Way::SetCompleted, Way::SetAbsent, Way::Forget];

fn present(seen: &KeyState) -> Expected {
    Expected::Present { status: seen.status(), version: seen.version().unwrap() }
}

/// Ends the doubt of `key` in this way.
fn end(store: &Store, key: &str, way: Way, result: &str) -> Result<(), Error> {
    let doubt = || -> Result<Doubt, Error> {
        match store.begin(key, NONE)? {
            Begin::InDoubt(doubt) => Ok(doubt),
            other => panic!("{key}: {other:?}"),
        }
    };
    let set = |next| {
        let swapped = store.compare_and_set(key, present(&store.get(key)?), next)?;
        assert!(matches!(swapped, CasOutcome::Done(_)), "{key}: {swapped:?}");
        Ok(())
    };
    match way {
        Way::Reconcile => {
            let reconciled = store
                .operation(key)
                .reconcile(|_| Some(result.to_owned()))
                .run(|_| -> Result<String, Error> { panic!("{key}: the side effect ran again") });
            match reconciled {
                Ok(outcome) => {
                    assert_eq!(outcome, Outcome::AlreadyDone(result.to_owned()));
                    Ok(())
                }
                Err(RunError::Unrecorded { source, .. } | RunError::Store(source)) => Err(source),
                Err(other) => panic!("{key}: {other:?}"),
            }
        }
        Way::Complete => doubt()?.complete(result.as_bytes()).map(|_| ()),
        Way::Release => doubt()?.release(),
        Way::SetCompleted => set(Next::Completed { fingerprint: NONE, result: result.as_bytes() }),
        Way::SetAbsent => set(Next::Absent),
        Way::Forget => store.forget(key).map(|was_present| assert!(was_present)),
    }
}

/// Begins operations and drops their leases until the store is full. Returns the keys.
fn fill_with_doubts(store: &Store) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        let key = format!("charge:{}", keys.len());
        match store.begin(&key, NONE) {
            Ok(Begin::Acquired(lease)) => drop(lease),
            Err(Error::Full { .. }) => return keys,
            other => panic!("{other:?}"),
        }
        keys.push(key);
    }
}

fn mebibyte() -> Options {
    small().max_size(1 << 20)
}

#[test]
fn every_doubt_of_a_full_store_can_be_ended() {
    for way in WAYS {
        let store = mebibyte().open_in_memory().unwrap();
        let keys = fill_with_doubts(&store);
        assert!(keys.len() > 2_000, "{}", keys.len());
        for (n, key) in keys.iter().enumerate() {
            if let Err(error) = end(&store, key, way, "receipt 17") {
                panic!("{way:?}: doubt {n} of {}: {error}\n{:?}", keys.len(), store.stats());
            }
        }
    }
}

#[test]
fn doubts_in_a_full_store_can_be_completed_with_any_result() {
    for slots in [4, 5, 6, 9, 15] {
        for way in WAYS {
            let store = small().max_size(4_096 + slots * SEGMENT).max_result(4_000).open_in_memory().unwrap();
            let doubts: Vec<_> = (0..20).map(|n| format!("doubt{n}")).collect();
            doubts.iter().for_each(|key| abandon(&store, key));
            let full = (0..).find_map(|n| store.record(&format!("{n}"), NONE, &[1; 1_000]).err()).unwrap();
            assert!(matches!(full, Error::Full { .. }), "{full}");
            // Smaller records still fit. Fill that space too, so that none is left when the doubts are resolved.
            let full = (0..).find_map(|n| store.record(&format!("small{n}"), NONE, b"").err()).unwrap();
            assert!(matches!(full, Error::Full { .. }), "{full}");
            for key in &doubts {
                if let Err(error) = end(&store, key, way, &"r".repeat(1_000)) {
                    panic!("{slots} slots, {way:?}, {key}: {error}\n{:?}", store.stats());
                }
            }
            assert_eq!(store.stats().reserved_bytes, 0);
        }
    }
}

#[test]
fn resolving_a_doubt_needs_no_space_but_beginning_again_does() {
    let store = mebibyte().open_in_memory().unwrap();
    abandon(&store, "doubt");
    fill_with_doubts(&store);
    let reserved_bytes = store.stats().reserved_bytes;
    let Begin::InDoubt(doubt) = store.begin("doubt", NONE).unwrap() else { panic!("no doubt") };
    assert_eq!(store.stats().reserved_bytes, reserved_bytes);
    assert!(
        matches!(doubt.begin_again(), Err(Error::Full { .. })),
        "another attempt began without space for its result"
    );
    let calls = Cell::new(0);
    let again = store
        .operation("doubt")
        .reconcile(|_| {
            calls.set(calls.get() + 1);
            Reconciled::NotApplied
        })
        .run(|_| -> Result<u32, Error> { panic!("the side effect ran without space for its result") });
    assert!(matches!(again, Err(RunError::Store(Error::Full { .. }))), "{again:?}");
    assert_eq!(calls.get(), 1, "reconcile must run once");
    let rerun = store
        .operation("doubt")
        .rerun()
        .run(|_| -> Result<u32, Error> { panic!("the side effect ran without space for its result") });
    assert!(matches!(rerun, Err(RunError::Store(Error::Full { .. }))), "{rerun:?}");
    assert_eq!(store.get("doubt").unwrap().status(), Status::InDoubt, "the refusal ended the doubt");
    end(&store, "doubt", Way::Complete, "receipt 17").unwrap();
}

#[test]
fn a_refused_result_leaves_the_doubt_with_its_holder() {
    let store = small().max_result(10).open_in_memory().unwrap();
    abandon(&store, "doubt");
    let Begin::InDoubt(mut doubt) = store.begin("doubt", NONE).unwrap() else { panic!("no doubt") };
    assert!(matches!(doubt.complete(&[1; 11]), Err(Error::TooLarge { .. })));
    assert!(
        matches!(store.begin("doubt", NONE).unwrap(), Begin::InProgress { .. }),
        "the doubt is no longer held"
    );
    let version = doubt.complete(b"smaller").unwrap();
    assert_eq!(doubt.complete(b"smaller").unwrap(), version, "a repeated completion is not idempotent");
    assert!(matches!(doubt.complete(b"another"), Err(Error::Conflict { .. })));
    assert!(matches!(doubt.begin_again(), Err(Error::Conflict { .. })));
    assert_eq!(store.get("doubt").unwrap().result(), Some(&b"smaller"[..]));
}
