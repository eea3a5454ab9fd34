//! Checks `reconcile` while an operator forgets the key and another caller begins it.

use std::cell::Cell;
use std::time::Duration;

use shuttle::thread;

use super::{Effort, WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::{Begin, Error, Fingerprint, Lease, ManualClock, Options, Outcome, RunError, Status, Store};

/// The result that `reconcile` finds.
const FOUND: &str = "found out";
/// The result of a caller other than the one that reconciles.
const OTHERS: &str = "another's";
/// For bugs that need three threads at three places: one interleaving in some thousands finds them.
const RARE: Effort = Effort(5_000);
/// How long the closure of `reconcile`, and an attempt, take. Without steps of their own, the other threads would hardly ever
/// come in between.
const STEPS: u32 = 60;

/// Encodes `text` as the default codec does, for the caller that works on bytes.
fn encoded(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    [&[length][..], text.as_bytes()].concat()
}

fn complete(mut lease: Lease) {
    (0..STEPS).for_each(|_| thread::yield_now());
    lease.complete(&encoded(OTHERS)).unwrap_or_else(|error| panic!("an attempt was taken over: {error}"));
}

fn reconcile(store: &Store) {
    let reconciled = Cell::new(false);
    let outcome = store
        .operation("a")
        .reconcile(|_| {
            (0..STEPS).for_each(|_| thread::yield_now());
            reconciled.set(true);
            Some(FOUND.to_owned())
        })
        .run(|_| {
            assert!(!reconciled.get(), "run after it was found applied");
            Ok::<_, Error>(OTHERS.to_owned())
        });
    match outcome {
        Ok(Outcome::AlreadyDone(result)) => assert!(result == OTHERS || reconciled.get() && result == FOUND),
        Ok(Outcome::Done(_)) => assert!(!reconciled.get()),
        Err(RunError::Unrecorded { result, source: Error::Fenced { .. } }) => {
            assert!(reconciled.get() && *result == FOUND, "the reconciled result is lost");
        }
        Err(RunError::Store(Error::InProgress { .. })) => {
            assert!(!reconciled.get(), "the reconciled result is lost");
        }
        Err(other) => panic!("{other}"),
    }
}

fn reconcile_forget_and_begin() {
    let store = Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .manual_clock(ManualClock::new(1_700_000_000_000))
        .open_in_memory()
        .unwrap();
    drop(store.begin("a", Fingerprint::NONE).unwrap());
    let spawn = |work: fn(&Store)| {
        let store = store.clone();
        thread::spawn(move || work(&store))
    };
    let threads = [
        spawn(reconcile),
        spawn(|store| match store.forget("a") {
            Ok(_) | Err(Error::InProgress { .. }) => {}
            Err(error) => panic!("{error}"),
        }),
        // Waits for the thread that reconciles, so that it begins as soon as the doubt has ended.
        spawn(|store| match store.operation("a").wait(Duration::MAX).begin().unwrap() {
            Begin::Acquired(lease) => complete(lease),
            Begin::InDoubt(doubt) => match doubt.begin_again() {
                Ok(lease) => complete(lease),
                Err(Error::Fenced { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            Begin::InProgress { .. } => {}
            Begin::Completed(done) => {
                assert!([encoded(FOUND), encoded(OTHERS)].contains(&done.into_result()));
            }
        }),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    let seen = store.get("a").unwrap();
    assert!(matches!(seen.status(), Status::Absent | Status::Completed), "{seen:?}");
    store.close().unwrap();
}

#[test]
fn an_effect_found_applied_is_never_run_again() {
    explore("applied, reconcile/forget/begin", WHOLE_STORE, reconcile_forget_and_begin);
}

#[test]
fn finds_applied_effect_run_again() {
    // With the bug, the call starts over. It runs the side effect, or finds another caller's attempt and returns without
    // the reconciled result.
    let expected = ["run after it was found applied", "the reconciled result is lost"];
    must_find_planted(Bug::AppliedEffectRunAgain, RARE, &expected, reconcile_forget_and_begin);
}

#[test]
fn finds_applied_overwrites_another() {
    let expected = ["an attempt was taken over"];
    must_find_planted(Bug::AppliedOverwritesAnother, RARE, &expected, reconcile_forget_and_begin);
}
