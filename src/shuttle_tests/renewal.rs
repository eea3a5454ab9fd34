//! Renewals of leases: against a takeover, a drop, and callers that wait.

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

/// Whether it worked; there is one reason why not.
fn renew(lease: &Lease) -> bool {
    match lease.renew(seconds(10)) {
        Ok(()) => true,
        Err(Error::Fenced { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A lease is renewed while another caller asks for the operation, and its deadline passes meanwhile or before.
fn renew_and_take_over(deadline_passes_meanwhile: bool) {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = store(&clock);
    let lease = short_lease(&store);
    let passing = {
        let clock = clock.clone();
        move || clock.advance(seconds(1))
    };
    let moving = if deadline_passes_meanwhile {
        Some(thread::spawn(passing))
    } else {
        passing();
        None
    };
    let asking = {
        let store = store.clone();
        thread::spawn(move || store.begin("a", Fingerprint::NONE).unwrap())
    };
    // A begin takes many steps and a renewal few: it comes at any of them.
    for _ in 0..3 {
        store.get("a").unwrap();
    }
    let renewed = renew(&lease);
    let began = asking.join().unwrap();
    if let Some(moving) = moving {
        moving.join().unwrap();
    }
    match &began {
        Begin::InDoubt(_) => assert!(!renewed, "both the renewal and the takeover succeeded"),
        Begin::InProgress { .. } => assert!(renewed, "neither the renewal nor the takeover succeeded"),
        other => panic!("{other:?}"),
    }
    assert_eq!(lease.is_current(), renewed);
    assert_eq!(renew(&lease), renewed, "it is decided");
    if renewed {
        clock.advance(Duration::from_millis(9_999));
        let began = store.begin("a", Fingerprint::NONE).unwrap();
        assert!(matches!(began, Begin::InProgress { .. }), "taken over before the new deadline");
    }
    drop((lease, began));
    store.close().unwrap();
}

/// The same, and the other caller waits; whoever keeps the operation ends it.
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

/// A lease is renewed by a handle that is not the lease, while that is dropped.
fn renew_and_drop() {
    let flights = Arc::new(Flights::new());
    flights.enter(HASH).set_claim(Some(NEVER));
    let dropping = {
        let flights = Arc::clone(&flights);
        thread::spawn(move || assert!(flights.end_claim(HASH, NEVER), "a renewed lease is still the same"))
    };
    for deadline_ms in [1_000, 2_000] {
        flights.enter(HASH).renew_lease(VERSION, deadline_ms);
    }
    dropping.join().unwrap();
    assert_eq!(flights.claims(), 0, "the claim came back and never ends");
    assert!(flights.is_empty(), "a flight that is over leaves nothing behind");
}

/// Two wait for a lease without a deadline, as `wait_for_other` does, and it is given one.
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
                    // Whatever the deadline is, it comes.
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
fn of_a_renewal_and_a_takeover_exactly_one_succeeds() {
    explore("renewal, renew/take over", WHOLE_STORE, || renew_and_take_over(false));
    explore("renewal, renew/take over/pass", WHOLE_STORE, || renew_and_take_over(true));
    explore("renewal, renew/wait", WHOLE_STORE, renew_and_wait);
}

#[test]
fn a_lease_that_is_dropped_stays_dropped() {
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
    must_find_planted(bug, THOROUGH, &["came back and never ends"], renew_and_drop);
}

#[test]
fn finds_renewed_without_flight() {
    let expected = ["both the renewal and the takeover"];
    must_find_planted(Bug::RenewedWithoutFlight, WHOLE_STORE, &expected, || renew_and_take_over(false));
}

#[test]
fn finds_renewal_not_told() {
    must_find_planted(Bug::RenewalWaitersNotWoken, THOROUGH, &[DEADLOCK], shorten_and_wait);
}
