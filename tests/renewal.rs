//! Leases that are renewed, and retention that is given at completion.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::{NONE, Place, START_MS, abandon, acquire, clocked, seconds, small};
use oncekey::{Begin, Doubt, Error, ErrorKind, Expected, Lease, ManualClock, Next, Status, Store};

/// How long a call may take that ends at once, until it is taken to hang.
const FOR_EVER: Duration = Duration::from_secs(120);

fn store() -> (ManualClock, Store) {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    (clock, store)
}

/// A lease of 100 seconds on "k".
fn lease(store: &Store) -> Lease {
    match store.operation("k").lease(seconds(100)).begin().unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn doubt(store: &Store) -> Doubt {
    match store.begin("k", NONE).unwrap() {
        Begin::InDoubt(doubt) => doubt,
        other => panic!("{other:?}"),
    }
}

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
fn before_the_deadline_it_moves_to_so_long_from_now() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    clock.advance(seconds(60));
    lease.renew(seconds(100)).unwrap();
    clock.advance(Duration::from_millis(99_999));
    assert_eq!(status(&store), Status::InProgress, "at 159.999 s, and the deadline is at 160 s");
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1, .. }));
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::InDoubt);
    lease.renew(seconds(100)).unwrap();
    lease.complete(b"done").unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"done"[..]));
}

#[test]
fn after_the_deadline_it_works_while_nobody_has_taken_over() {
    let (clock, store) = store();
    let lease = lease(&store);
    clock.advance(seconds(1_000));
    assert_eq!(status(&store), Status::InDoubt);
    // To look, to refuse, and to be refused are no takeovers.
    assert!(matches!(store.record("k", NONE, b"r"), Err(Error::InDoubt { .. })));
    let ran = store.operation("k").run(|_| -> Result<u32, Error> { panic!("in doubt") });
    assert!(ran.is_err());
    assert!(lease.is_current());
    lease.renew(seconds(100)).unwrap();
    assert!(lease.is_current());
    assert_eq!(status(&store), Status::InProgress);
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { .. }));
    assert!(matches!(store.forget("k"), Err(Error::InProgress { .. })));
}

fn taken_over() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    clock.advance(seconds(100));
    let doubt = doubt(&store);
    assert_fenced(&lease);
    assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { .. }), "the doubt's");
    drop(doubt);
    assert_fenced(&lease);
    assert_eq!(status(&store), Status::InDoubt, "and nobody is finding out");
    // It had gone through after all.
    lease.complete(b"late").unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"late"[..]));
}

#[test]
fn after_a_takeover_it_is_fenced_also_when_the_doubt_was_dropped() {
    taken_over();
}

#[test]
fn after_another_attempt_began_it_is_fenced() {
    let (clock, store) = store();
    let first = lease(&store);
    clock.advance(seconds(100));
    let second = doubt(&store).begin_again().unwrap();
    assert_fenced(&first);
    assert!(second.is_current());
    second.renew(seconds(500)).unwrap();
    drop(first);
    assert!(second.is_current(), "the end of the first lease is not that of the second");
    assert_eq!(status(&store), Status::InProgress);
}

#[test]
fn after_its_completion_or_another_s_it_is_fenced() {
    let (clock, store) = store();
    let mut own = lease(&store);
    own.complete(b"r").unwrap();
    assert_fenced(&own);
    assert!(own.complete(b"r").is_ok(), "once more with the same bytes");
    assert!(store.forget("k").unwrap());

    let other = lease(&store);
    clock.advance(seconds(100));
    doubt(&store).complete(b"found out").unwrap();
    assert_fenced(&other);
    assert_eq!(store.get("k").unwrap().result(), Some(&b"found out"[..]));
}

#[test]
fn after_a_compare_and_set_it_is_fenced_whatever_was_put_there() {
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
fn after_a_forget_it_is_fenced_and_so_is_the_key_s_next_life() {
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
fn a_closed_store_says_that_it_is_closed() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    let mut lease = lease(&store);
    lease.renew(Duration::MAX).unwrap();
    assert!(
        matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })),
        "it is renewed, and one lease"
    );
    lease.complete(b"r").unwrap();
    store.close().unwrap();
    assert!(matches!(lease.renew(seconds(1)), Err(Error::Closed)));
    assert!(!lease.is_current());
}

#[test]
fn a_renewed_lease_that_is_dropped_is_over() {
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
fn it_can_be_earlier_than_the_old_deadline() {
    let (clock, store) = store();
    let lease = lease(&store);
    clock.advance(seconds(50));
    lease.renew(seconds(10)).unwrap();
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(status(&store), Status::InProgress);
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::InDoubt, "40 s before the old deadline");
    drop(doubt(&store));
    assert_fenced(&lease);
}

#[test]
fn the_longest_duration_is_never() {
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
fn what_is_no_lease_is_refused_and_changes_nothing() {
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
    assert_eq!(status(&store), Status::InDoubt, "the deadline is where it was");
    lease.renew(seconds(1_000)).unwrap();
    clock.advance(seconds(999));
    assert_eq!(status(&store), Status::InProgress);
}

/// Another thread that waits for "k" as long as it takes, with what its begin gave. It may come before or after whatever
/// the test does next: no order fails.
fn waiter(store: &Store) -> mpsc::Receiver<Begin> {
    let (tell, told) = mpsc::channel();
    let (here, came) = mpsc::channel();
    let store = store.clone();
    std::thread::spawn(move || {
        here.send(()).unwrap();
        let _ = tell.send(store.operation("k").wait(Duration::MAX).begin().unwrap());
    });
    came.recv().unwrap();
    // Most likely it waits then.
    std::thread::sleep(Duration::from_millis(10));
    told
}

#[test]
fn a_waiter_sleeps_on_when_the_deadline_has_moved_away() {
    let (clock, store) = store();
    let mut lease = lease(&store);
    let told = waiter(&store);
    clock.advance(seconds(99));
    lease.renew(seconds(100)).unwrap();
    // It wakes, and the old deadline has passed.
    clock.advance(seconds(99));
    std::thread::sleep(Duration::from_millis(10));
    lease.complete(b"done").unwrap();
    let began = told.recv_timeout(FOR_EVER).unwrap();
    assert!(matches!(began, Begin::Completed(_)), "{began:?}");
}

/// By the machine's clock, which wakes no waiter: each sleeps until the deadline that it knows.
#[test]
fn a_waiter_on_the_machine_s_clock_sleeps_on_too() {
    let store = small().open_in_memory().unwrap();
    let Begin::Acquired(mut lease) = store.operation("k").lease(seconds(1)).begin().unwrap() else {
        panic!()
    };
    let told = waiter(&store);
    if lease.renew(Duration::MAX).is_err() {
        // The machine stood still for a second, and the waiter was right to take over.
        return;
    }
    // Past the old deadline.
    std::thread::sleep(Duration::from_millis(1_100));
    lease.complete(b"done").unwrap();
    let began = told.recv_timeout(FOR_EVER).unwrap();
    assert!(matches!(began, Begin::Completed(_)), "{began:?}");
}

#[test]
fn a_waiter_wakes_for_a_deadline_that_has_come_nearer() {
    let store = small().open_in_memory().unwrap();
    let lease = acquire(&store, "k");
    let told = waiter(&store);
    lease.renew(Duration::from_millis(1)).unwrap();
    let began = told.recv_timeout(FOR_EVER).expect("it sleeps until the old deadline, which is never");
    assert!(matches!(began, Begin::InDoubt(_)), "{began:?}");
    assert_fenced(&lease);
}

#[cfg(feature = "__simulation")]
#[test]
fn a_planted_renewal_after_a_takeover_is_found() {
    use oncekey::simulation::{Bug, plant};
    let found = std::thread::spawn(|| {
        plant(Some(Bug::RenewedAfterTakeover));
        taken_over();
    });
    assert!(found.join().is_err(), "the lease came back and nothing was seen");
}

// Retention at completion.

#[test]
fn a_completion_is_remembered_as_long_as_its_lease_said_last() {
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
        "counted from the completion, result and all"
    );
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(&store), Status::Absent);

    let mut lease = acquire(&store, "k");
    lease.retain(Duration::MAX).unwrap();
    lease.complete(b"r").unwrap();
    clock.advance(seconds(1_000 * 365 * 86_400));
    assert_eq!(store.get("k").unwrap().result(), Some(&b"r"[..]), "for ever");
}

#[test]
fn a_retention_for_results_holds_all_the_same_and_is_cut() {
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
fn a_doubt_says_how_long_too_and_for_the_attempt_that_it_begins_again() {
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
    assert_eq!(status(&store), Status::InDoubt, "the lease is as long as that");
    lease.complete(b"r").unwrap();
    clock.advance(seconds(10));
    assert_eq!(status(&store), Status::Absent);
}

#[test]
fn a_retention_that_makes_no_sense_or_comes_too_late_changes_nothing() {
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
