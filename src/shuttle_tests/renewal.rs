//! Checks that a lease can be renewed while other threads take it over, drop it or wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::thread;

use super::{DEADLOCK, THOROUGH, WHOLE_STORE, explore, must_find_planted};
use crate::flights::{Claim, Flights};
use crate::planted::Bug;
use crate::status::Version;
use crate::{Begin, Error, Fingerprint, Lease, ManualClock, Options, Store};

const HASH: u128 = 7;
const VERSION: Version = Version::from_u64(1);
const NEVER: Claim = Claim::Lease { version: VERSION, attempt: 1, deadline_ms: u64::MAX };

fn store(clock: &ManualClock) -> Store {
    Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .manual_clock(clock.clone())
        .open_in_memory()
        .unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn short_lease(store: &Store) -> Lease {
    let Begin::Acquired(lease) = store.operation("a").lease(seconds(1)).begin().unwrap() else { panic!() };
    lease
}

/// Renews the lease. Returns false if it is fenced, and panics on any other error.
fn renew(lease: &Lease) -> bool {
    match lease.renew(seconds(10)) {
        Ok(()) => true,
        Err(Error::Fenced { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A lease is renewed while another caller begins the operation. The lease's deadline passes at the same time, or has passed
/// before.
fn renew_and_take_over(deadline_passes_meanwhile: bool) {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = store(&clock);
    let lease = short_lease(&store);
    let pass_deadline = {
        let clock = clock.clone();
        move || clock.advance(seconds(1))
    };
    let moving = if deadline_passes_meanwhile {
        Some(thread::spawn(pass_deadline))
    } else {
        pass_deadline();
        None
    };
    let beginning = {
        let store = store.clone();
        thread::spawn(move || store.begin("a", Fingerprint::NONE).unwrap())
    };
    // A begin takes many steps and a renewal only a few. These reads let the renewal start at any step of the begin.
    for _ in 0..3 {
        store.get("a").unwrap();
    }
    let renewed = renew(&lease);
    let began = beginning.join().unwrap();
    if let Some(moving) = moving {
        moving.join().unwrap();
    }
    match &began {
        Begin::InDoubt(_) => assert!(!renewed, "both the renewal and the takeover succeeded"),
        Begin::InProgress { .. } => assert!(renewed, "neither the renewal nor the takeover succeeded"),
        other => panic!("{other:?}"),
    }
    assert_eq!(lease.is_current(), renewed);
    assert_eq!(renew(&lease), renewed, "a second renewal had a different outcome");
    if renewed {
        clock.advance(Duration::from_millis(9_999));
        let began = store.begin("a", Fingerprint::NONE).unwrap();
        assert!(matches!(began, Begin::InProgress { .. }), "taken over before the new deadline");
    }
    drop((lease, began));
    store.close().unwrap();
}

/// A lease is renewed while another caller is waiting for the operation and the deadline passes. If the renewal succeeds, the
/// holder of the lease then completes the operation.
fn renew_and_wait() {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = store(&clock);
    let mut lease = short_lease(&store);
    let waiting = {
        let store = store.clone();
        thread::spawn(move || store.operation("a").wait(Duration::MAX).begin().unwrap())
    };
    let moving = thread::spawn(move || clock.advance(seconds(1)));
    let renewed = renew(&lease);
    if renewed {
        lease.complete(b"done").unwrap();
    }
    match waiting.join().unwrap() {
        Begin::InDoubt(_) => assert!(!renewed, "both the renewal and the takeover succeeded"),
        Begin::Completed(_) => assert!(renewed),
        other => panic!("{other:?}"),
    }
    moving.join().unwrap();
}

/// One thread renews a lease while another drops it.
fn renew_and_drop() {
    let flights = Arc::new(Flights::new());
    flights.enter(HASH).set_claim(Some(NEVER));
    let dropping = {
        let flights = Arc::clone(&flights);
        thread::spawn(move || assert!(flights.end_claim(HASH, NEVER), "a renewal ended the lease"))
    };
    for deadline_ms in [1_000, 2_000] {
        flights.enter(HASH).renew_lease(VERSION, deadline_ms);
    }
    dropping.join().unwrap();
    assert_eq!(flights.claims(), 0, "a renewal revived the claim of a dropped lease");
    assert!(flights.is_empty(), "a flight was left behind");
}

/// Two threads wait for a lease without a deadline, in the same way as `wait_for_other`. Then a renewal gives it a deadline.
fn shorten_and_wait() {
    let flights = Arc::new(Flights::new());
    flights.enter(HASH).set_claim(Some(NEVER));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let flights = Arc::clone(&flights);
            thread::spawn(move || {
                loop {
                    let flight = flights.enter(HASH);
                    let seen = flight.claim();
                    let Some(Claim::Lease { deadline_ms, .. }) = seen else { panic!("{seen:?}") };
                    // In this scenario any deadline has passed already.
                    let until = (deadline_ms < u64::MAX).then(Instant::now);
                    if !flight.wait_for_change(seen, until) {
                        return deadline_ms;
                    }
                }
            })
        })
        .collect();
    assert!(flights.enter(HASH).renew_lease(VERSION, 1_000));
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), 1_000);
    }
}

#[test]
fn exactly_one_of_a_renewal_and_a_takeover_succeeds() {
    explore("renewal, renew/take over", WHOLE_STORE, || renew_and_take_over(false));
    explore("renewal, renew/take over/pass", WHOLE_STORE, || renew_and_take_over(true));
    explore("renewal, renew/wait", WHOLE_STORE, renew_and_wait);
}

#[test]
fn a_renewal_never_revives_a_dropped_lease() {
    explore("renewal, renew/drop", THOROUGH, renew_and_drop);
}

#[test]
fn a_waiter_does_not_sleep_past_an_earlier_deadline() {
    explore("renewal, shorten/wait", THOROUGH, shorten_and_wait);
}

#[test]
fn finds_renewed_after_takeover() {
    let bug = Bug::RenewedAfterTakeover;
    must_find_planted(bug, WHOLE_STORE, &["both the renewal and the takeover"], || {
        renew_and_take_over(false)
    });
    must_find_planted(bug, THOROUGH, &["revived the claim"], renew_and_drop);
}

#[test]
fn finds_renewed_without_flight() {
    let expected = ["both the renewal and the takeover"];
    must_find_planted(Bug::RenewedWithoutFlight, WHOLE_STORE, &expected, || renew_and_take_over(false));
}

#[test]
fn finds_renewal_waiters_not_woken() {
    must_find_planted(Bug::RenewalWaitersNotWoken, THOROUGH, &[DEADLOCK], shorten_and_wait);
}
