//! Checks that every operation in doubt can be ended on a disk that is too full to begin another operation, and that
//! `reconcile` is not overruled once it has found that the side effect was applied.

use oncekey::simulation::{Bug, SimulatedDisk, plant};
use oncekey::{Begin, CasOutcome, Error, Expected, Fingerprint, Next, Reconciled, RunError, Status, Store};

use crate::world::{START_MS, options};

const NONE: Fingerprint = Fingerprint::NONE;
const DOUBTS: usize = 24;

fn name(number: usize) -> String {
    format!("doubt-{number}")
}

/// Creates a store with keys in doubt, and then fills its disk.
fn full_store_with_doubts(slots: usize) -> (SimulatedDisk, Store) {
    let disk = SimulatedDisk::new();
    let clock = oncekey::ManualClock::new(START_MS);
    let store = options(&clock).max_result(4_000).open_simulated(&disk).unwrap();
    for number in 0..DOUBTS {
        drop(store.begin(&name(number), NONE).unwrap());
    }
    disk.set_capacity(Some(4_096 + slots * (64 << 10) + 512));
    for size in [4_000, 1_000, 100, 0] {
        let refused = (0..).find_map(|n| store.record(&format!("{size}/{n}"), NONE, &vec![1; size]).err());
        assert!(matches!(refused, Some(Error::Full { .. })), "{refused:?}");
    }
    (disk, store)
}

/// Ends the doubts by `reconcile`, completion, release and compare-and-set in turn. Returns an error for the first that
/// cannot be ended.
fn end_all(slots: usize) -> Result<(), String> {
    let (disk, store) = full_store_with_doubts(slots);
    let result = "r".repeat(1_000);
    for number in 0..DOUBTS {
        let key = name(number);
        let context = |error: Error| format!("{slots} slots, doubt {number}: {error}");
        match number % 4 {
            0 => {
                let ran = store
                    .operation(&key)
                    .reconcile(|_| Reconciled::Applied(result.clone()))
                    .run(|_| -> Result<String, Error> { panic!("{key}: the side effect ran again") });
                match ran {
                    Ok(_) => {}
                    Err(RunError::Store(error) | RunError::Unrecorded { source: error, .. }) => {
                        return Err(context(error));
                    }
                    Err(other) => panic!("{key}: {other:?}"),
                }
            }
            1 | 2 => {
                let Begin::InDoubt(mut doubt) = store.begin(&key, NONE).map_err(context)? else {
                    panic!("{key} is not in doubt")
                };
                if number % 4 == 1 {
                    doubt.complete(result.as_bytes()).map_err(context)?;
                } else {
                    doubt.release().map_err(context)?;
                }
            }
            _ => {
                let version = store.get(&key).map_err(context)?.version().unwrap();
                let expected = Expected::Present { status: Status::InDoubt, version };
                let next = Next::Completed { fingerprint: NONE, result: result.as_bytes() };
                let swapped = store.compare_and_set(&key, expected, next).map_err(context)?;
                assert!(matches!(swapped, CasOutcome::Done(_)), "{key}: {swapped:?}");
            }
        }
    }
    // The ends of the doubts must be durable.
    drop(store);
    let clock = oncekey::ManualClock::new(START_MS);
    let store = options(&clock).open_simulated(&disk.crash(|_| 0)).map_err(|error| error.to_string())?;
    for number in 0..DOUBTS {
        let status = store.get(&name(number)).map_err(|error| error.to_string())?.status();
        let expected = if number % 4 == 2 { Status::Absent } else { Status::Completed };
        if status != expected {
            return Err(format!("{slots} slots, doubt {number} is {status}"));
        }
    }
    Ok(())
}

#[test]
fn every_doubt_can_be_ended_on_a_full_disk() {
    for slots in 4..12 {
        end_all(slots).unwrap();
    }
}

/// Plants a bug and returns what the check reports, or `None` if it misses the bug.
fn found(bug: Bug) -> Option<String> {
    plant(Some(bug));
    let found = (4..12).find_map(|slots| end_all(slots).err());
    plant(None);
    found
}

#[test]
fn finds_a_doubt_that_needs_a_reservation() {
    let report = found(Bug::DoubtNeedsReservation).expect("the harness missed the planted bug");
    assert!(report.contains("there is no room"), "{report}");
}

#[test]
fn finds_an_ending_that_needs_the_reserve_of_a_begin() {
    let report = found(Bug::FinishNeedsBeginReserve).expect("the harness missed the planted bug");
    assert!(report.contains("there is no room"), "{report}");
}

/// Runs `reconcile`, which finds that the side effect was applied. Before it returns, forgets the key and, if
/// `begins_again`, begins another attempt.
///
/// Returns the outcome of the call, whether it ran the side effect, and whether the other attempt can still be
/// completed.
fn applied_while_forgotten(begins_again: bool) -> (Result<String, Error>, bool, bool) {
    let clock = oncekey::ManualClock::new(START_MS);
    let store = options(&clock).open_simulated(&SimulatedDisk::new()).unwrap();
    drop(store.begin("k", NONE).unwrap());
    let (mut other, mut effect_ran) = (None, false);
    let ran = store
        .operation("k")
        .reconcile(|_| {
            store.forget("k").unwrap();
            other = begins_again.then(|| store.begin("k", NONE).unwrap());
            Reconciled::Applied("found".to_owned())
        })
        .run(|_| {
            effect_ran = true;
            Ok::<_, Error>("performed".to_owned())
        });
    let outcome = match ran {
        Ok(outcome) => Ok(outcome.into_inner()),
        Err(RunError::Store(source) | RunError::Unrecorded { source, .. }) => Err(source),
        Err(other) => panic!("{other:?}"),
    };
    let other_completes = match other {
        Some(Begin::Acquired(mut lease)) => lease.complete(b"its own").is_ok(),
        _ => true,
    };
    (outcome, effect_ran, other_completes)
}

fn applied_is_final() -> bool {
    let forgotten = applied_while_forgotten(false);
    let begun_again = applied_while_forgotten(true);
    matches!(forgotten, (Ok(result), false, true) if result == "found")
        && matches!(begun_again, (Err(Error::Fenced { .. }), false, true))
}

#[test]
fn an_applied_side_effect_neither_reruns_nor_overwrites_another_attempt() {
    assert!(applied_is_final());
    for bug in [Bug::AppliedEffectRunAgain, Bug::AppliedOverwritesAnother] {
        plant(Some(bug));
        let is_final = applied_is_final();
        plant(None);
        assert!(!is_final, "the check missed {bug:?}");
    }
}
