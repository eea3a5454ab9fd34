//! Checks that a lease can be renewed until another caller takes over, and that a lease or a doubt can set the
//! retention of its completion.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::{NONE, Place, START_MS, abandon, acquire, clocked, seconds, small};
use oncekey::{Begin, Doubt, Error, ErrorKind, Expected, Lease, ManualClock, Next, Status, Store};

/// The timeout after which a call counts as hanging.
const HANG_TIMEOUT: Duration = Duration::from_secs(120);

fn store() -> (ManualClock, Store) {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    (clock, store)
}

/// Acquires "k" with a lease of 100 seconds.
fn lease(store: &Store) -> Lease {
    match store.operation("k").lease(seconds(100)).begin().unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

/// Gets the doubt of "k".
fn doubt(store: &Store) -> Doubt {
    match store.begin("k", NONE).unwrap() {
        Begin::InDoubt(doubt) => doubt,
        other => panic!("{other:?}"),
    }
}

/// The status of "k".
fn status(store: &Store) -> Status {
    store.get("k").unwrap().status()
}

#[track_caller]
fn assert_fenced(lease: &Lease) {
    let renewed = lease.renew(seconds(100));
    assert!(
        matches!(&renewed, Err(Error::Fenced { version, .. }) if *version == lease.version()),
        "{renewed:?}"
    );
    assert!(!lease.is_current());
}

#[test]
fn a_renewal_sets_the_deadline_relative_to_now() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    clock.advance(seconds(60));
    lease.renew(seconds(100)).unwrap();
    clock.advance(Duration::from_millis(99_999));
    assert_eq!(status(&store), Status::InProgress, "expired at 159.999 s, before its deadline at 160 s");
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1, .. }));
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::InDoubt);
    lease.renew(seconds(100)).unwrap();
    lease.complete(b"done").unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"done"[..]));
}

#[test]
fn a_renewal_after_the_deadline_works_until_a_takeover() {
    let (clock, store) = store();
    let lease = lease(&store);
    clock.advance(seconds(1_000));
    assert_eq!(status(&store), Status::InDoubt);
    // A read is not a takeover, and neither is a call that is refused.
    assert!(matches!(store.record("k", NONE, b"r"), Err(Error::InDoubt { .. })));
    let ran = store.operation("k").run(|_| -> Result<u32, Error> { panic!("the side effect ran in doubt") });
    assert!(ran.is_err());
    assert!(lease.is_current());
    lease.renew(seconds(100)).unwrap();
    assert!(lease.is_current());
    assert_eq!(status(&store), Status::InProgress);
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { .. }));
    assert!(matches!(store.forget("k"), Err(Error::InProgress { .. })));
}

fn check_takeover() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    clock.advance(seconds(100));
    let doubt = doubt(&store);
    assert_fenced(&lease);
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { .. }), "the doubt is not held");
    drop(doubt);
    assert_fenced(&lease);
    assert_eq!(status(&store), Status::InDoubt, "the dropped doubt is still held");
    // The side effect of the first attempt had succeeded.
    lease.complete(b"late").unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"late"[..]));
}

#[test]
fn a_takeover_fences_renewals_even_after_its_doubt_is_dropped() {
    check_takeover();
}

#[test]
fn the_next_attempt_fences_renewals() {
    let (clock, store) = store();
    let first = lease(&store);
    clock.advance(seconds(100));
    let second = doubt(&store).begin_again().unwrap();
    assert_fenced(&first);
    assert!(second.is_current());
    second.renew(seconds(500)).unwrap();
    drop(first);
    assert!(second.is_current(), "dropping the first lease ended the second");
    assert_eq!(status(&store), Status::InProgress);
}

#[test]
fn a_completion_fences_renewals() {
    let (clock, store) = store();
    let mut completed = lease(&store);
    completed.complete(b"r").unwrap();
    assert_fenced(&completed);
    assert!(completed.complete(b"r").is_ok(), "a repeated completion failed");
    assert!(store.forget("k").unwrap());

    let other = lease(&store);
    clock.advance(seconds(100));
    doubt(&store).complete(b"found out").unwrap();
    assert_fenced(&other);
    assert_eq!(store.get("k").unwrap().result(), Some(&b"found out"[..]));
}

#[test]
fn a_compare_and_set_to_any_state_fences_renewals() {
    let (_, store) = store();
    for next in [
        Next::Absent,
        Next::InDoubt { fingerprint: NONE },
        Next::Completed { fingerprint: NONE, result: b"operator" },
    ] {
        let lease = lease(&store);
        let expected = Expected::Present { status: Status::InProgress, version: lease.version() };
        store.compare_and_set("k", expected, next).unwrap();
        assert_fenced(&lease);
        store.forget("k").unwrap();
        drop(lease);
    }
}

#[test]
fn a_forget_fences_renewals_permanently() {
    let (clock, store) = store();
    let old = lease(&store);
    clock.advance(seconds(100));
    assert!(store.forget("k").unwrap());
    assert_fenced(&old);
    let new = lease(&store);
    assert_fenced(&old);
    drop(old);
    assert!(new.is_current());
}

#[test]
fn renewing_in_a_closed_store_is_an_error() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    let mut lease = lease(&store);
    lease.renew(Duration::MAX).unwrap();
    assert!(
        matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })),
        "a renewal added or ended a lease"
    );
    lease.complete(b"r").unwrap();
    store.close().unwrap();
    assert!(matches!(lease.renew(seconds(1)), Err(Error::Closed)));
    assert!(!lease.is_current());
}

#[test]
fn dropping_a_renewed_lease_ends_it() {
    let (_, store) = store();
    let lease = lease(&store);
    lease.renew(Duration::MAX).unwrap();
    drop(lease);
    assert_eq!(status(&store), Status::InDoubt);
    store.close().unwrap();
}

#[test]
fn a_renewal_writes_nothing() {
    let place = Place::new();
    let store = place.open();
    let lease = lease(&store);
    let before = place.bytes();
    lease.renew(seconds(1_000)).unwrap();
    assert!(place.bytes() == before);
    assert_eq!(store.stats().keys, 1);
}

#[test]
fn a_renewal_can_make_the_deadline_earlier() {
    let (clock, store) = store();
    let lease = lease(&store);
    clock.advance(seconds(50));
    lease.renew(seconds(10)).unwrap();
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(status(&store), Status::InProgress);
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::InDoubt, "the old deadline, 40 s later, still applies");
    drop(doubt(&store));
    assert_fenced(&lease);
}

#[test]
fn a_renewal_for_the_longest_duration_never_expires() {
    let (clock, store) = store();
    let lease = lease(&store);
    clock.advance(seconds(50));
    lease.renew(Duration::MAX).unwrap();
    clock.advance(seconds(1_000 * 365 * 86_400));
    assert_eq!(status(&store), Status::InProgress);
    lease.renew(seconds(5)).unwrap();
    clock.advance(seconds(5));
    assert_eq!(status(&store), Status::InDoubt);
}

#[test]
fn an_invalid_renewal_is_refused_and_changes_nothing() {
    let (clock, store) = store();
    let Begin::Acquired(lease) =
        store.operation("k").lease(seconds(100)).retain(seconds(1_000)).begin().unwrap()
    else {
        panic!()
    };
    let too_long = seconds(1_000) + Duration::from_millis(1);
    for wrong in [Duration::ZERO, Duration::from_micros(999), too_long] {
        let refused = lease.renew(wrong).unwrap_err();
        assert!(matches!(refused, Error::Option { option: "lease", .. }), "{refused:?}");
        assert_eq!(refused.kind(), ErrorKind::Caller);
    }
    clock.advance(seconds(100));
    assert_eq!(status(&store), Status::InDoubt, "a refused renewal moved the deadline");
    lease.renew(seconds(1_000)).unwrap();
    clock.advance(seconds(999));
    assert_eq!(status(&store), Status::InProgress);
}

/// Starts a thread that waits for "k" without a timeout, and returns a channel that receives what its begin returns.
///
/// The wait may start before or after the next step of the test. The test passes in either order.
fn waiter(store: &Store) -> mpsc::Receiver<Begin> {
    let (sender, outcome) = mpsc::channel();
    let (started, has_started) = mpsc::channel();
    let store = store.clone();
    std::thread::spawn(move || {
        started.send(()).unwrap();
        let _ = sender.send(store.operation("k").wait(Duration::MAX).begin().unwrap());
    });
    has_started.recv().unwrap();
    // Makes it likely that the thread is already waiting.
    std::thread::sleep(Duration::from_millis(10));
    outcome
}

#[test]
fn a_waiter_keeps_waiting_if_the_deadline_becomes_later() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    let outcome = waiter(&store);
    clock.advance(seconds(99));
    lease.renew(seconds(100)).unwrap();
    // Moving the clock past the old deadline wakes the waiter.
    clock.advance(seconds(99));
    std::thread::sleep(Duration::from_millis(10));
    lease.complete(b"done").unwrap();
    let began = outcome.recv_timeout(HANG_TIMEOUT).unwrap();
    assert!(matches!(began, Begin::Completed(_)), "{began:?}");
}

/// The system clock cannot wake a waiter, which therefore sleeps until the deadline that it read.
#[test]
fn a_waiter_on_the_system_clock_keeps_waiting_too() {
    let store = small().open_in_memory().unwrap();
    let Begin::Acquired(mut lease) = store.operation("k").lease(seconds(1)).begin().unwrap() else {
        panic!()
    };
    let outcome = waiter(&store);
    if lease.renew(Duration::MAX).is_err() {
        // The test was stalled for a second, so the waiter was right to take over.
        return;
    }
    // Sleep until after the old deadline.
    std::thread::sleep(Duration::from_millis(1_100));
    lease.complete(b"done").unwrap();
    let began = outcome.recv_timeout(HANG_TIMEOUT).unwrap();
    assert!(matches!(began, Begin::Completed(_)), "{began:?}");
}

#[test]
fn a_waiter_wakes_for_a_deadline_that_becomes_earlier() {
    let store = small().open_in_memory().unwrap();
    let lease = acquire(&store, "k");
    let outcome = waiter(&store);
    lease.renew(Duration::from_millis(1)).unwrap();
    let began = outcome
        .recv_timeout(HANG_TIMEOUT)
        .expect("the waiter did not notice that the lease has a deadline now");
    assert!(matches!(began, Begin::InDoubt(_)), "{began:?}");
    assert_fenced(&lease);
}

#[cfg(feature = "__simulation")]
#[test]
fn finds_a_renewal_after_a_takeover() {
    use oncekey::simulation::{Bug, plant};
    let found = std::thread::spawn(|| {
        plant(Some(Bug::RenewedAfterTakeover));
        check_takeover();
    });
    assert!(found.join().is_err(), "the test missed the planted bug");
}

// Tests of the retention that a lease or a doubt sets.

#[test]
fn the_last_retain_of_a_lease_sets_the_retention() {
    let (clock, store) = store();
    let mut lease = acquire(&store, "k");
    lease.retain(Duration::MAX).unwrap();
    lease.retain(seconds(10)).unwrap();
    clock.advance(seconds(1_000));
    lease.complete(b"r").unwrap();
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(
        store.get("k").unwrap().result(),
        Some(&b"r"[..]),
        "the retention is not counted from the completion"
    );
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::Absent);

    let mut lease = acquire(&store, "k");
    lease.retain(Duration::MAX).unwrap();
    lease.complete(b"r").unwrap();
    clock.advance(seconds(1_000 * 365 * 86_400));
    assert_eq!(
        store.get("k").unwrap().result(),
        Some(&b"r"[..]),
        "a result with unlimited retention expired"
    );
}

#[test]
fn result_retention_still_applies_up_to_the_retention() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).result_retention(seconds(60)).open_in_memory().unwrap();
    let mut longer = acquire(&store, "longer");
    longer.retain(seconds(100)).unwrap();
    longer.complete(b"r").unwrap();
    let mut shorter = acquire(&store, "shorter");
    shorter.retain(seconds(30)).unwrap();
    shorter.complete(b"r").unwrap();
    clock.advance(seconds(30));
    assert!(store.get("shorter").unwrap().is_absent());
    assert_eq!(store.get("longer").unwrap().result(), Some(&b"r"[..]));
    clock.advance(seconds(30));
    assert!(matches!(store.begin("longer", NONE), Err(Error::ResultExpired { .. })));
    clock.advance(seconds(40));
    assert!(store.get("longer").unwrap().is_absent());
}

#[test]
fn retain_of_a_doubt_also_applies_to_the_next_attempt() {
    let (clock, store) = store();
    abandon(&store, "k");
    let mut found = doubt(&store);
    found.retain(seconds(10)).unwrap();
    found.complete(b"r").unwrap();
    clock.advance(seconds(10));
    assert_eq!(status(&store), Status::Absent);

    drop(lease(&store));
    let Begin::InDoubt(mut again) = store.operation("k").lease(seconds(100)).begin().unwrap() else {
        panic!()
    };
    again.retain(seconds(10)).unwrap();
    let mut lease = again.begin_again().unwrap();
    clock.advance(seconds(10));
    assert_eq!(status(&store), Status::InDoubt, "the lease is longer than the retention");
    lease.complete(b"r").unwrap();
    clock.advance(seconds(10));
    assert_eq!(status(&store), Status::Absent);
}

#[test]
fn an_invalid_or_late_retain_changes_nothing() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(50)).open_in_memory().unwrap();
    let mut lease = acquire(&store, "k");
    let refused = lease.retain(Duration::from_micros(999)).unwrap_err();
    assert!(matches!(refused, Error::Option { option: "retention", .. }), "{refused:?}");
    lease.complete(b"r").unwrap();
    assert!(matches!(lease.retain(seconds(1_000)), Err(Error::Conflict { .. })));
    lease.complete(b"r").unwrap();
    clock.advance(seconds(49));
    assert!(store.get("k").unwrap().is_completed());
    clock.advance(seconds(1));
    assert!(store.get("k").unwrap().is_absent());
}
