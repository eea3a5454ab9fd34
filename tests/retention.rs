//! Checks how long operations, results and leases last, depending on the options of the store and of the operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::time::Duration;

use common::{NONE, Place, START_MS, clocked, seconds};
use oncekey::{Begin, Error, ManualClock, Status};

#[test]
fn an_operation_with_unlimited_retention_keeps_its_result() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    store.operation("k").retain(Duration::MAX).record(b"r").unwrap();
    clock.advance(seconds(365 * 86_400));
    assert_eq!(store.get("k").unwrap().result(), Some(&b"r"[..]));
    assert_eq!(store.get("k").unwrap().result_expires_at_ms(), None);
    store.compact().unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"r"[..]));
}

#[test]
fn a_result_is_kept_as_long_as_its_operation_by_default() {
    let clock = ManualClock::new(START_MS);
    let expires = |seen: oncekey::KeyState| {
        (seen.result_expires_at_ms().unwrap() - START_MS, seen.expires_at_ms().unwrap() - START_MS)
    };
    let plain = clocked(&clock).retention(seconds(100)).open_in_memory().unwrap();
    let explicit =
        clocked(&clock).retention(seconds(100)).result_retention(seconds(50)).open_in_memory().unwrap();
    for (store, retain, result, expected) in [
        (&plain, None, None, (100_000, 100_000)),
        (&plain, Some(500), None, (500_000, 500_000)),
        (&plain, Some(5), None, (5_000, 5_000)),
        (&plain, Some(500), Some(7), (7_000, 500_000)),
        (&plain, None, Some(7), (7_000, 100_000)),
        (&explicit, None, None, (50_000, 100_000)),
        (&explicit, Some(500), None, (50_000, 500_000)),
        (&explicit, Some(5), None, (5_000, 5_000)),
        (&explicit, Some(500), Some(400), (400_000, 500_000)),
    ] {
        store.forget("k").unwrap();
        let mut operation = store.operation("k");
        if let Some(retain) = retain {
            operation = operation.retain(seconds(retain));
        }
        if let Some(result) = result {
            operation = operation.retain_result(seconds(result));
        }
        operation.record(b"r").unwrap();
        assert_eq!(expires(store.get("k").unwrap()), expected, "{retain:?}, {result:?}");
    }
}

#[test]
fn a_default_lease_is_cut_to_the_retention_and_a_longer_explicit_one_refused() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).lease(seconds(600)).open_in_memory().unwrap();
    let begin = || store.operation("k").retain(seconds(300)).begin();
    let Begin::Acquired(lease) = begin().unwrap() else { panic!("not acquired") };
    clock.advance(Duration::from_millis(299_999));
    assert!(matches!(begin().unwrap(), Begin::InProgress { .. }));
    clock.advance(Duration::from_millis(1));
    assert!(matches!(begin().unwrap(), Begin::InDoubt(_)), "the lease lasts longer than the retention");
    drop(lease);
    let refused = store.operation("k").retain(seconds(300)).lease(seconds(301)).begin();
    assert!(matches!(refused, Err(Error::Option { option: "lease", .. })), "{refused:?}");
}

#[test]
fn a_changed_retention_applies_only_to_new_records() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(10)).open(&place.path).unwrap();
    store.record("before", NONE, b"r").unwrap();
    store.close().unwrap();
    let store = clocked(&clock).retention(seconds(1_000)).open(&place.path).unwrap();
    store.record("after", NONE, b"r").unwrap();
    clock.advance(seconds(10));
    assert_eq!(store.get("before").unwrap().status(), Status::Absent);
    assert_eq!(store.get("after").unwrap().status(), Status::Completed);
}
