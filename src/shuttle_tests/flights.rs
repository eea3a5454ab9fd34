//! Checks flights (the per-key locks): one thread at a time changes a key, every waiter is woken, and no flight is left behind.
//!
//! The flights are real. The model around them follows `engine::begin`, which looks up the key, enters the flight, looks up
//! the key again, writes a record, updates the index and sets a claim.

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

/// The state of the key according to the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indexed {
    Absent,
    /// An attempt has begun, and is in progress if it has a claim, or else in doubt.
    Begun(Version),
    Completed(Version),
}

/// The outcome of a begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Began {
    Acquired(Version, Claim),
    InDoubt(Version, Claim),
    InProgress,
    Completed(Version),
}

/// How long a begin waits for another caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It does not wait.
    None,
    /// It waits until a deadline, which may pass at any step.
    Some,
    /// It waits without a limit.
    Endless,
}

/// A model of one key of a store, reduced to what concerns flights.
#[derive(Debug)]
struct Model {
    flights: Flights,
    indexed: Mutex<Indexed>,
    /// The number of attempts that have started and not ended. If there were two, a side effect could happen twice.
    running: Mutex<u32>,
    /// The counter from which versions are drawn.
    changes: AtomicU64,
}

impl Model {
    fn new() -> Arc<Model> {
        let (indexed, running) = (Mutex::new(Indexed::Absent), Mutex::default());
        Arc::new(Model { flights: Flights::new(), indexed, running, changes: AtomicU64::new(0) })
    }

    fn indexed(&self) -> Indexed {
        *self.indexed.lock()
    }

    fn next_version(&self) -> Version {
        Version::from_u64(self.changes.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Writes a record, during which other threads run, and updates the index.
    fn commit(&self, next: Indexed) {
        yield_now();
        *self.indexed.lock() = next;
    }

    fn start_attempt(&self) {
        let mut running = self.running.lock();
        *running += 1;
        assert_eq!(*running, 1, "two attempts run at once");
    }

    fn end_attempt(&self) {
        *self.running.lock() -= 1;
    }

    fn begin(&self, patience: Patience) -> Began {
        let mut has_time = patience != Patience::None;
        loop {
            if let Indexed::Completed(version) = self.indexed() {
                return Began::Completed(version);
            }
            let flight = self.flights.enter(HASH);
            let indexed = self.indexed();
            let claim = flight.claim();
            match (indexed, claim) {
                (Indexed::Completed(version), _) => return Began::Completed(version),
                (Indexed::Absent, _) => {
                    let version = self.next_version();
                    self.commit(Indexed::Begun(version));
                    flight.note_change();
                    let claim = Claim::Lease { version, attempt: 1, deadline_ms: u64::MAX };
                    flight.set_claim(Some(claim));
                    self.start_attempt();
                    return Began::Acquired(version, claim);
                }
                (Indexed::Begun(_), Some(_)) => {
                    if !has_time {
                        return Began::InProgress;
                    }
                    let until = (patience == Patience::Some).then(Instant::now);
                    has_time = flight.wait_for_change(claim, until);
                }
                (Indexed::Begun(version), None) => {
                    let number = self.changes.fetch_add(1, Ordering::SeqCst);
                    let claim = Claim::Doubt { version, attempt: 1, number };
                    flight.set_claim(Some(claim));
                    self.start_attempt();
                    return Began::InDoubt(version, claim);
                }
            }
        }
    }

    /// Completes the attempt and then ends the claim, as dropping a completed lease does.
    fn complete(&self, version: Version, claim: Claim) {
        self.end_attempt();
        let flight = self.flights.enter(HASH);
        assert_eq!(self.indexed(), Indexed::Begun(version), "another thread changed a claimed key");
        let finished = self.next_version();
        self.commit(Indexed::Completed(finished));
        flight.note_change();
        flight.set_claim(None);
        drop(flight);
        self.flights.end_claim(HASH, claim);
    }

    /// Drops the claim without completing the attempt.
    fn abandon(&self, claim: Claim) {
        self.end_attempt();
        self.flights.end_claim(HASH, claim);
    }

    /// Begins, and completes the attempt if this thread acquired it or found it in doubt.
    fn begin_and_complete(&self, patience: Patience) -> Began {
        let began = self.begin(patience);
        if let Began::Acquired(version, claim) | Began::InDoubt(version, claim) = began {
            self.complete(version, claim);
        }
        began
    }

    fn check_nothing_is_left(&self) {
        assert!(self.flights.is_empty(), "a flight was left behind");
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

/// Three threads begin at once. None completes before all have returned.
fn begin_and_begin() {
    let model = Model::new();
    let threads = (0..3).map(|_| spawn(&model, |model| model.begin(Patience::None))).collect();
    let began = join(threads);
    let acquired: Vec<_> = began.iter().filter(|began| matches!(began, Began::Acquired(..))).collect();
    assert_eq!(acquired.len(), 1, "exactly one thread acquires the key");
    assert_eq!(began.iter().filter(|began| **began == Began::InProgress).count(), 2);
    if let Began::Acquired(version, claim) = acquired[0] {
        model.complete(*version, *claim);
    }
    model.check_nothing_is_left();
}

/// One thread completes while two are waiting without a limit. Both waiters must see the completion.
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

/// A lease is dropped while three threads are waiting. One of them may take over and drop the claim again, and another then
/// completes.
fn drop_and_take_over() {
    let model = Model::new();
    let Began::Acquired(_, claim) = model.begin(Patience::None) else { unreachable!() };
    let dropping = spawn(&model, move |model| model.abandon(claim));
    let abandoning = spawn(&model, |model| {
        if let Began::InDoubt(_, claim) = model.begin(Patience::Endless) {
            model.abandon(claim);
        }
    });
    let waiting =
        (0..2).map(|_| spawn(&model, |model| model.begin_and_complete(Patience::Endless))).collect();
    let began = join(waiting);
    assert!(began.iter().any(|began| matches!(began, Began::InDoubt(..))), "one waiter takes over the doubt");
    dropping.join().unwrap();
    abandoning.join().unwrap();
    model.check_nothing_is_left();
}

/// A lease is dropped while exactly one thread is waiting, so that no other waiter can wake it by chance.
fn drop_and_take_over_alone() {
    let model = Model::new();
    let Began::Acquired(_, claim) = model.begin(Patience::None) else { unreachable!() };
    let waiting = spawn(&model, |model| model.begin_and_complete(Patience::Endless));
    model.abandon(claim);
    assert!(matches!(waiting.join().unwrap(), Began::InDoubt(..)));
    model.check_nothing_is_left();
}

/// Two waiters time out while the attempt is being completed. A third waiter, without a deadline, must still be woken.
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

/// One thread moves the key's record, but only while no other thread holds the flight. Two others begin and complete.
fn move_and_change() {
    let model = Model::new();
    let moving = spawn(&model, |model| {
        for _ in 0..3 {
            let Some(flight) = model.flights.try_enter(HASH) else { continue };
            // A move changes the address of the record, but not the state of the key.
            let indexed = model.indexed();
            model.commit(indexed);
            drop(flight);
        }
    });
    let threads =
        (0..2).map(|_| spawn(&model, |model| model.begin_and_complete(Patience::Endless))).collect();
    let began = join(threads);
    moving.join().unwrap();
    assert_eq!(began.iter().filter(|began| matches!(began, Began::Acquired(..))).count(), 1);
    assert!(matches!(model.indexed(), Indexed::Completed(_)));
    model.check_nothing_is_left();
}

#[test]
fn exactly_one_of_several_begins_acquires_the_key() {
    explore("flights, begin/begin", THOROUGH, begin_and_begin);
}

#[test]
fn every_waiter_sees_the_completion() {
    explore("flights, complete/wait", THOROUGH, complete_and_wait);
}

#[test]
fn a_waiter_takes_over_a_dropped_lease() {
    explore("flights, drop/takeover", THOROUGH, drop_and_take_over);
    explore("flights, drop/takeover by one", THOROUGH, drop_and_take_over_alone);
}

#[test]
fn a_timeout_during_a_completion_strands_no_waiter() {
    explore("flights, timeout/complete", THOROUGH, time_out_and_complete);
}

#[test]
fn a_record_is_never_moved_during_a_change() {
    explore("flights, move/change", THOROUGH, move_and_change);
}

#[test]
fn finds_flight_not_exclusive() {
    let expected = ["two attempts run at once", "exactly one thread acquires the key"];
    must_find_planted(Bug::FlightNotExclusive, THOROUGH, &expected, begin_and_begin);
}

#[test]
fn finds_flight_waiters_not_woken() {
    must_find_planted(Bug::FlightWaitersNotWoken, THOROUGH, &[DEADLOCK], complete_and_wait);
}

#[test]
fn finds_seen_claim_not_rechecked() {
    must_find_planted(Bug::SeenClaimNotRechecked, THOROUGH, &[DEADLOCK], drop_and_take_over_alone);
}

#[test]
fn finds_only_one_waiter_woken() {
    must_find_planted(Bug::OnlyOneWaiterWoken, THOROUGH, &[DEADLOCK], complete_and_wait);
    must_find_planted(Bug::OnlyOneWaiterWoken, THOROUGH, &[DEADLOCK], time_out_and_complete);
}

#[test]
fn finds_claim_waiters_not_woken() {
    must_find_planted(Bug::ClaimWaitersNotWoken, THOROUGH, &[DEADLOCK], drop_and_take_over_alone);
}

#[test]
fn finds_timeout_still_counted() {
    let expected = ["a flight was left behind"];
    must_find_planted(Bug::TimedOutWaiterStillCounted, THOROUGH, &expected, time_out_and_complete);
}
