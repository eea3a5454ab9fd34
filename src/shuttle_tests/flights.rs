//! Flights: one at a time changes a key, whoever waits is told, and nothing is left behind.
//!
//! What the engine does around them is modelled as `engine::begin` does it: look, enter, look again under the flight,
//! decide, write, tell the index, leave a claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shuttle::thread;

use super::{DEADLOCK, THOROUGH, explore, must_find_planted};
use crate::flights::{Claim, Flights};
use crate::planted::Bug;
use crate::status::Version;
use crate::sync::{Mutex, yield_now};

const HASH: u128 = 7;

/// What the index says of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Begun(Version),
    Completed(Version),
}

/// How a begin came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Began {
    Acquired(Version, Claim),
    InDoubt(Version, Claim),
    InProgress,
    Completed(Version),
}

/// How long a begin waits for somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    /// Until a moment that may come at any time.
    Some,
    Endless,
}

/// One key of a store, as far as flights are concerned.
#[derive(Debug)]
struct Model {
    flights: Flights,
    said: Mutex<Said>,
    /// Acts that somebody has the right to and has not ended; more than one would be the end of idempotency.
    acting: Mutex<u32>,
    changes: AtomicU64,
}

impl Model {
    fn new() -> Arc<Model> {
        let (said, acting) = (Mutex::new(Said::Nothing), Mutex::default());
        Arc::new(Model { flights: Flights::new(), said, acting, changes: AtomicU64::new(0) })
    }

    fn said(&self) -> Said {
        *self.said.lock()
    }

    fn next_version(&self) -> Version {
        Version::from_u64(self.changes.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// A record on its way to disk, and the index told.
    fn commit(&self, says: Said) {
        yield_now();
        *self.said.lock() = says;
    }

    fn act(&self) {
        let mut acting = self.acting.lock();
        *acting += 1;
        assert_eq!(*acting, 1, "two have the right to act");
    }

    fn end_act(&self) {
        *self.acting.lock() -= 1;
    }

    fn begin(&self, patience: Patience) -> Began {
        let mut has_time = patience != Patience::None;
        loop {
            if let Said::Completed(version) = self.said() {
                return Began::Completed(version);
            }
            let flight = self.flights.enter(HASH);
            let said = self.said();
            let claim = flight.claim();
            match (said, claim) {
                (Said::Completed(version), _) => return Began::Completed(version),
                (Said::Nothing, _) => {
                    let version = self.next_version();
                    self.commit(Said::Begun(version));
                    flight.note_change();
                    let claim = Claim::Lease { version, attempt: 1, deadline_ms: u64::MAX };
                    flight.set_claim(Some(claim));
                    self.act();
                    return Began::Acquired(version, claim);
                }
                (Said::Begun(_), Some(_)) => {
                    if !has_time {
                        return Began::InProgress;
                    }
                    let until = (patience == Patience::Some).then(Instant::now);
                    has_time = flight.wait_for_change(claim, until);
                }
                (Said::Begun(version), None) => {
                    let number = self.changes.fetch_add(1, Ordering::SeqCst);
                    let claim = Claim::Doubt { version, attempt: 1, number };
                    flight.set_claim(Some(claim));
                    self.act();
                    return Began::InDoubt(version, claim);
                }
            }
        }
    }

    /// Ends the attempt by its result, and then the claim, as a lease that was completed is dropped.
    fn complete(&self, version: Version, claim: Claim) {
        self.end_act();
        let flight = self.flights.enter(HASH);
        assert_eq!(self.said(), Said::Begun(version), "somebody else changed what is claimed");
        let finished = self.next_version();
        self.commit(Said::Completed(finished));
        flight.note_change();
        flight.set_claim(None);
        drop(flight);
        self.flights.end_claim(HASH, claim);
    }

    /// Goes away without having ended the attempt.
    fn abandon(&self, claim: Claim) {
        self.end_act();
        self.flights.end_claim(HASH, claim);
    }

    /// Begins and, if there is something to be done, does it. What came out of the begin.
    fn begin_and_complete(&self, patience: Patience) -> Began {
        let began = self.begin(patience);
        if let Began::Acquired(version, claim) | Began::InDoubt(version, claim) = began {
            self.complete(version, claim);
        }
        began
    }

    fn check_nothing_is_left(&self) {
        assert!(self.flights.is_empty(), "a flight that is over leaves nothing behind");
    }
}

fn spawn<T: Send + 'static>(
    model: &Arc<Model>,
    work: impl FnOnce(&Model) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let model = Arc::clone(model);
    thread::spawn(move || work(&model))
}

fn join<T>(threads: Vec<thread::JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Three begin at once and keep what they get.
fn begin_and_begin() {
    let model = Model::new();
    let threads = (0..3).map(|_| spawn(&model, |model| model.begin(Patience::None))).collect();
    let began = join(threads);
    let acquired: Vec<_> = began.iter().filter(|began| matches!(began, Began::Acquired(..))).collect();
    assert_eq!(acquired.len(), 1, "exactly one acquires");
    assert_eq!(began.iter().filter(|began| **began == Began::InProgress).count(), 2);
    if let Began::Acquired(version, claim) = acquired[0] {
        model.complete(*version, *claim);
    }
    model.check_nothing_is_left();
}

/// One acts while two wait as long as it takes; both must see the result.
fn complete_and_wait() {
    let model = Model::new();
    let Began::Acquired(version, claim) = model.begin(Patience::None) else { unreachable!() };
    let waiting = (0..2).map(|_| spawn(&model, |model| model.begin(Patience::Endless))).collect();
    let completing = spawn(&model, move |model| model.complete(version, claim));
    for began in join(waiting) {
        assert!(matches!(began, Began::Completed(_)), "{began:?}");
    }
    completing.join().unwrap();
    model.check_nothing_is_left();
}

/// The lease is dropped. One of those who wait takes the doubt and drops that as well; the next ends it.
fn drop_and_take_over() {
    let model = Model::new();
    let Began::Acquired(_, claim) = model.begin(Patience::None) else { unreachable!() };
    let dropping = spawn(&model, move |model| model.abandon(claim));
    let giving_up = spawn(&model, |model| {
        if let Began::InDoubt(_, claim) = model.begin(Patience::Endless) {
            model.abandon(claim);
        }
    });
    let waiting =
        (0..2).map(|_| spawn(&model, |model| model.begin_and_complete(Patience::Endless))).collect();
    let began = join(waiting);
    assert!(began.iter().any(|began| matches!(began, Began::InDoubt(..))), "one of them ends the doubt");
    dropping.join().unwrap();
    giving_up.join().unwrap();
    model.check_nothing_is_left();
}

/// The lease is dropped while exactly one waits: nobody else comes by who would wake it.
fn drop_and_take_over_alone() {
    let model = Model::new();
    let Began::Acquired(_, claim) = model.begin(Patience::None) else { unreachable!() };
    let waiting = spawn(&model, |model| model.begin_and_complete(Patience::Endless));
    model.abandon(claim);
    assert!(matches!(waiting.join().unwrap(), Began::InDoubt(..)));
    model.check_nothing_is_left();
}

/// Somebody's patience ends at the moment at which the act does. Whoever waits on must be told all the same.
fn time_out_and_complete() {
    let model = Model::new();
    let Began::Acquired(version, claim) = model.begin(Patience::None) else { unreachable!() };
    let impatient: Vec<_> = (0..2).map(|_| spawn(&model, |model| model.begin(Patience::Some))).collect();
    let patient = spawn(&model, |model| model.begin(Patience::Endless));
    let completing = spawn(&model, move |model| model.complete(version, claim));
    for began in join(impatient) {
        assert!(matches!(began, Began::Completed(_) | Began::InProgress), "{began:?}");
    }
    assert!(matches!(patient.join().unwrap(), Began::Completed(_)));
    completing.join().unwrap();
    model.check_nothing_is_left();
}

/// A record is moved by somebody who does not wait, while others begin, end and look.
fn moved_meanwhile() {
    let model = Model::new();
    let moving = spawn(&model, |model| {
        for _ in 0..3 {
            let Some(flight) = model.flights.try_enter(HASH) else { continue };
            // Somewhere else, with the same words.
            let said = model.said();
            model.commit(said);
            drop(flight);
        }
    });
    let threads =
        (0..2).map(|_| spawn(&model, |model| model.begin_and_complete(Patience::Endless))).collect();
    let began = join(threads);
    moving.join().unwrap();
    assert_eq!(began.iter().filter(|began| matches!(began, Began::Acquired(..))).count(), 1);
    assert!(matches!(model.said(), Said::Completed(_)));
    model.check_nothing_is_left();
}

#[test]
fn of_those_who_begin_exactly_one_acquires() {
    explore("flights, begin/begin", THOROUGH, begin_and_begin);
}

#[test]
fn whoever_waits_sees_the_completion() {
    explore("flights, complete/wait", THOROUGH, complete_and_wait);
}

#[test]
fn what_is_dropped_is_taken_over_by_one_who_waits() {
    explore("flights, drop/takeover", THOROUGH, drop_and_take_over);
    explore("flights, drop/takeover by one", THOROUGH, drop_and_take_over_alone);
}

#[test]
fn a_timeout_at_the_moment_of_the_completion_harms_nobody() {
    explore("flights, timeout/complete", THOROUGH, time_out_and_complete);
}

#[test]
fn a_record_is_moved_between_two_changes_and_never_within_one() {
    explore("flights, move/change", THOROUGH, moved_meanwhile);
}

#[test]
fn finds_entered_regardless() {
    let expected = ["two have the right to act", "exactly one acquires"];
    must_find_planted(Bug::FlightNotExclusive, THOROUGH, &expected, begin_and_begin);
}

#[test]
fn finds_leaving_not_told() {
    must_find_planted(Bug::FlightWaitersNotWoken, THOROUGH, &[DEADLOCK], complete_and_wait);
}

#[test]
fn finds_seen_ignored() {
    must_find_planted(Bug::SeenClaimNotRechecked, THOROUGH, &[DEADLOCK], drop_and_take_over_alone);
}

#[test]
fn finds_change_told_to_one() {
    must_find_planted(Bug::OnlyOneWaiterWoken, THOROUGH, &[DEADLOCK], complete_and_wait);
    must_find_planted(Bug::OnlyOneWaiterWoken, THOROUGH, &[DEADLOCK], time_out_and_complete);
}

#[test]
fn finds_end_of_claim_not_told() {
    must_find_planted(Bug::ClaimWaitersNotWoken, THOROUGH, &[DEADLOCK], drop_and_take_over_alone);
}

#[test]
fn finds_timeout_still_counted() {
    let expected = ["leaves nothing behind"];
    must_find_planted(Bug::TimeoutStillCounted, THOROUGH, &expected, time_out_and_complete);
}
