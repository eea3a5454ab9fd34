//! Per-key coordination: which thread is changing a key, who holds a claim on it, and who is waiting.
//!
//! A key that is being changed or claimed has a **flight**. Two things can hold it:
//!
//! - a *change*: one thread, from its decision until the index points to what it decided. Short, and exclusive. A thread
//!   changes a key only under a [`FlightGuard`], without exception, so that no decision is made on what another thread is
//!   about to replace.
//! - a *claim*: a lease on an attempt, or the right to resolve a doubt. For as long as its holder likes.
//!
//! A claim does not keep a change out: a record can be moved while its operation is in progress, and a late completion can
//! end a doubt that another caller is resolving.
//!
//! A caller that only looks enters no flight: [`Flights::claim`] and the index are enough for it. A caller that must not wait
//! for another thread's disk I/O enters with [`Patience`]. A thread that holds a flight and is about to wait for the disk says
//! so with [`FlightGuard::note_disk`]. A thread that moves a record does not: a move is no change that a caller could be told
//! about, and it ends with the write of its copy or the sync of the record that it travels with.
//!
//! A thread that holds a flight does not wait for another one, with one exception that cannot deadlock: a call that changes several
//! keys enters their flights in the order of their hashes.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::clock::Sleepers;
use crate::hash::ByHash;
use crate::planted::{Bug, planted};
use crate::status::Version;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, Patience};

/// The right to run an operation, or to find out what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A lease on an attempt.
    Lease {
        version: Version,
        attempt: u32,
        /// Store time from which another caller may take over; `u64::MAX`: never.
        deadline_ms: u64,
    },
    /// A caller finds out whether the attempt of this version had its side effect. The number is unique in the process.
    Doubt { version: Version, attempt: u32, number: u64 },
}

impl Claim {
    /// Whether the two are one claim. A renewed lease is the same lease with another deadline.
    pub(crate) fn is(self, other: Claim) -> bool {
        match (self, other) {
            (Claim::Lease { version, .. }, Claim::Lease { version: other, .. }) => version == other,
            (Claim::Doubt { number, .. }, Claim::Doubt { number: other, .. }) => number == other,
            (Claim::Lease { .. }, Claim::Doubt { .. }) | (Claim::Doubt { .. }, Claim::Lease { .. }) => false,
        }
    }
}

#[derive(Debug, Default)]
struct Flight {
    changing: bool,
    /// The thread that changes the key waits for the disk.
    at_disk: bool,
    /// How many of the waiting threads wait only until `at_disk` is set.
    impatient: u32,
    claim: Option<Claim>,
    waiting: u32,
    /// Both are made when a thread first waits, which happens to few flights. There are two, because a thread that waits for
    /// another state of the key must not be woken by every thread that leaves: two such waiters would wake each other for
    /// ever.
    free: Option<Arc<Condvar>>,
    changed: Option<Arc<Condvar>>,
}

impl Flight {
    /// Wakes one thread that waits to enter.
    fn wake_next(&self) {
        if let Some(free) = &self.free
            && !planted(Bug::FlightWaitersNotWoken)
        {
            free.notify_one();
        }
    }

    /// Wakes every thread that waits for another state of the key.
    fn wake_waiters(&self) {
        let Some(changed) = &self.changed else { return };
        if planted(Bug::OnlyOneWaiterWoken) {
            changed.notify_one();
        } else {
            changed.notify_all();
        }
    }

    fn is_over(&self) -> bool {
        !self.changing && self.claim.is_none() && self.waiting == 0
    }
}

type Shard = HashMap<u128, Flight, ByHash>;

const SHARDS: usize = 64;

/// All flights of one store.
#[derive(Debug)]
pub(crate) struct Flights {
    shards: Box<[Mutex<Shard>]>,
    /// How many flights have a claim. Not counted by the handles of claims: a handle may outlive its claim, and a leaked
    /// one never ends.
    claims: AtomicUsize,
    /// How often the clock was moved by hand.
    clock_moves: AtomicU64,
}

impl Flights {
    pub(crate) fn new() -> Flights {
        Flights {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            claims: AtomicUsize::new(0),
            clock_moves: AtomicU64::new(0),
        }
    }

    /// How many claims are alive. Touches no lock.
    pub(crate) fn claims(&self) -> usize {
        self.claims.load(Ordering::SeqCst)
    }

    /// Replaces the claim of a flight, whose shard is locked.
    fn set_claim(&self, flight: &mut Flight, claim: Option<Claim>) {
        match (flight.claim.is_some(), claim.is_some()) {
            (false, true) => self.claims.fetch_add(1, Ordering::SeqCst),
            (true, false) => self.claims.fetch_sub(1, Ordering::SeqCst),
            (false, false) | (true, true) => 0,
        };
        flight.claim = claim;
    }

    fn shard(&self, hash: u128) -> &Mutex<Shard> {
        // The index takes its shards from the upper end of the hash, and the maps here take their buckets from the lower.
        let at = usize::try_from(hash >> 64 & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[at]
    }

    /// Takes the right to change the key, whose shard is locked.
    fn take(&self, hash: u128, flight: &mut Flight) -> FlightGuard<'_> {
        flight.changing = true;
        flight.at_disk = false;
        FlightGuard {
            flights: self,
            hash,
            claim: flight.claim,
            clock_moves: self.clock_moves.load(Ordering::SeqCst),
            changed: Cell::new(false),
        }
    }

    /// Waits until no thread changes the key, and keeps other threads from changing it.
    pub(crate) fn enter(&self, hash: u128) -> FlightGuard<'_> {
        loop {
            if let Some(guard) = self.enter_within(hash, Patience::Endless) {
                return guard;
            }
        }
    }

    /// The same, unless that takes longer than `patience`. A caller without patience still waits while the other thread touches
    /// only memory, and for a move of the key's record.
    pub(crate) fn enter_within(&self, hash: u128, patience: Patience) -> Option<FlightGuard<'_>> {
        let patience = if planted(Bug::FlightWaitUnbounded) { Patience::Endless } else { patience };
        let is_impatient = patience == Patience::None;
        let mut shard = self.shard(hash).lock();
        loop {
            let flight = shard.entry(hash).or_default();
            if !flight.changing || planted(Bug::FlightNotExclusive) {
                return Some(self.take(hash, flight));
            }
            if is_impatient && flight.at_disk {
                return None;
            }
            flight.waiting += 1;
            flight.impatient += u32::from(is_impatient);
            let free = Arc::clone(flight.free.get_or_insert_default());
            let in_time = match patience {
                Patience::Until(until) => !free.wait_until(&mut shard, until).timed_out(),
                Patience::None | Patience::Endless => {
                    free.wait(&mut shard);
                    true
                }
            };
            if let Some(flight) = shard.get_mut(&hash) {
                flight.waiting -= 1;
                flight.impatient -= u32::from(is_impatient);
                // If it has come free, it is entered all the same: this thread may be the one that was woken for it.
                if !in_time && flight.changing {
                    return None;
                }
            }
        }
    }

    /// The same, unless another thread changes the key just now.
    pub(crate) fn try_enter(&self, hash: u128) -> Option<FlightGuard<'_>> {
        let mut shard = self.shard(hash).lock();
        let flight = shard.entry(hash).or_default();
        if flight.changing {
            return None;
        }
        Some(self.take(hash, flight))
    }

    /// Enters even if another thread changes the key: what a planted bug does.
    pub(crate) fn barge_in(&self, hash: u128) -> Option<FlightGuard<'_>> {
        let mut shard = self.shard(hash).lock();
        Some(self.take(hash, shard.entry(hash).or_default()))
    }

    /// The claim on the key, for a caller that only looks. It belongs to the record of its version and to no other: it is set
    /// just before the index points to that record, and a change ends it just after the index points to another.
    pub(crate) fn claim(&self, hash: u128) -> Option<Claim> {
        self.shard(hash).lock().get(&hash).and_then(|flight| flight.claim)
    }

    /// Whether a thread changes the key just now.
    pub(crate) fn is_changing(&self, hash: u128) -> bool {
        self.shard(hash).lock().get(&hash).is_some_and(|flight| flight.changing)
    }

    /// Ends a claim, if it is still the one on the key; returns whether it was. Touches memory only and cannot fail, because
    /// dropping a lease calls it, during a panic as well.
    pub(crate) fn end_claim(&self, hash: u128, claim: Claim) -> bool {
        let mut shard = self.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return false };
        if !flight.claim.is_some_and(|current| current.is(claim)) {
            return false;
        }
        self.set_claim(flight, None);
        if !planted(Bug::ClaimWaitersNotWoken) {
            flight.wake_waiters();
        }
        if flight.is_over() {
            shard.remove(&hash);
        }
        true
    }

    /// Moves the deadline of the lease on the attempt of `version`. False if it has ended or was taken over. Only for
    /// [`FlightGuard::renew_lease`].
    pub(crate) fn renew_lease(&self, hash: u128, version: Version, deadline_ms: u64) -> bool {
        let mut shard = self.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return false };
        // Read now and not when the flight was entered: a drop ends a claim without the flight, and a claim that came back
        // after its handle is gone would never end.
        let (attempt, old_deadline_ms) = match flight.claim {
            Some(Claim::Lease { version: leased, attempt, deadline_ms }) if leased == version => {
                (attempt, deadline_ms)
            }
            _ if planted(Bug::RenewedAfterTakeover) => (1, 0),
            _ => return false,
        };
        self.set_claim(flight, Some(Claim::Lease { version, attempt, deadline_ms }));
        // Waiters sleep until the old deadline. If the new one is later they wake too early, and sleep on; if it is earlier
        // they must be woken.
        if deadline_ms < old_deadline_ms && !planted(Bug::RenewalWaitersNotWoken) {
            flight.wake_waiters();
        }
        true
    }

    /// How many threads wait for this key.
    #[cfg(test)]
    pub(crate) fn waiting(&self, hash: u128) -> u32 {
        self.shard(hash).lock().get(&hash).map_or(0, |flight| flight.waiting)
    }

    /// Whether no key has a flight.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().is_empty())
    }
}

/// The exclusive right to change a key. Dropping it gives the right up and, if the key was changed, wakes its waiters.
#[derive(Debug)]
#[must_use = "no other thread can change the key until this is dropped"]
pub(crate) struct FlightGuard<'a> {
    flights: &'a Flights,
    hash: u128,
    claim: Option<Claim>,
    /// How often the clock had been moved by hand when this was entered.
    clock_moves: u64,
    changed: Cell<bool>,
}

impl FlightGuard<'_> {
    /// This thread is about to wait for the disk. Sends callers without patience away.
    pub(crate) fn note_disk(&self) {
        let mut shard = self.flights.shard(self.hash).lock();
        let Some(flight) = shard.get_mut(&self.hash) else { return };
        flight.at_disk = true;
        if flight.impatient > 0
            && let Some(free) = &flight.free
            && !planted(Bug::ImpatientNotWoken)
        {
            free.notify_all();
        }
    }

    /// The claim at the time when the flight was entered. It may have ended since, because claims end without the right to
    /// change; no other thread can have set one.
    pub(crate) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// The key has another state now: its waiters are to be woken when the flight is left.
    pub(crate) fn note_change(&self) {
        self.changed.set(true);
    }

    /// Sets or ends the claim on the key.
    pub(crate) fn set_claim(&self, claim: Option<Claim>) {
        self.note_change();
        if let Some(flight) = self.flights.shard(self.hash).lock().get_mut(&self.hash) {
            self.flights.set_claim(flight, claim);
        }
    }

    /// Moves the deadline of the lease on the attempt of `version`. False if it has ended or was taken over.
    ///
    /// Needs the flight, because a takeover decides by the old deadline and replaces the claim only later: without the flight
    /// both could succeed.
    pub(crate) fn renew_lease(&self, version: Version, deadline_ms: u64) -> bool {
        self.flights.renew_lease(self.hash, version, deadline_ms)
    }

    /// Leaves the flight and waits until the key has another state, or until `until`. False if the time came first.
    ///
    /// `seen` is the claim, with its deadline, that the caller waits to see changed. Claims end without the flight, so it may
    /// have ended since the caller read it, and no later wake-up would follow.
    pub(crate) fn wait_for_change(self, seen: Option<Claim>, until: Option<Instant>) -> bool {
        let (flights, hash, has_changed) = (self.flights, self.hash, self.changed.get());
        let clock_moves = self.clock_moves;
        std::mem::forget(self);
        let mut shard = flights.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return true };
        flight.changing = false;
        flight.wake_next();
        if has_changed {
            flight.wake_waiters();
        }
        let clock_moved = flights.clock_moves.load(Ordering::SeqCst) != clock_moves;
        if (flight.claim != seen || clock_moved) && !planted(Bug::SeenClaimNotRechecked) {
            if flight.is_over() {
                shard.remove(&hash);
            }
            return true;
        }
        flight.waiting += 1;
        let changed = Arc::clone(flight.changed.get_or_insert_default());
        let in_time = match until {
            Some(until) => !changed.wait_until(&mut shard, until).timed_out(),
            None => {
                changed.wait(&mut shard);
                true
            }
        };
        if planted(Bug::TimeoutStillCounted) && !in_time {
            return false;
        }
        if let Some(flight) = shard.get_mut(&hash) {
            flight.waiting -= 1;
            if flight.is_over() {
                shard.remove(&hash);
            }
        }
        in_time
    }
}

impl Sleepers for Flights {
    /// Wakes every waiter, because a lease deadline may have passed. Counts before it locks the shards: a thread that is about
    /// to wait sees the count, and one that waits is woken.
    fn wake_all(&self) {
        self.clock_moves.fetch_add(1, Ordering::SeqCst);
        for shard in &self.shards {
            for flight in shard.lock().values() {
                flight.wake_waiters();
            }
        }
    }
}

impl Drop for FlightGuard<'_> {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(self.hash).lock();
        let Some(flight) = shard.get_mut(&self.hash) else { return };
        flight.changing = false;
        flight.wake_next();
        if self.changed.get() {
            flight.wake_waiters();
        }
        if flight.is_over() {
            shard.remove(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    const LEASE: Claim = Claim::Lease { version: Version::from_u64(1), attempt: 1, deadline_ms: u64::MAX };

    #[test]
    fn one_key_is_changed_by_one_thread_at_a_time() {
        let flights = Flights::new();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let guard = flights.enter(7);
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        inside.store(false, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert!(flights.is_empty(), "a flight that is over leaves nothing behind");
    }

    #[test]
    fn a_claim_outlives_the_change_and_ends_only_by_its_own_end() {
        let flights = Flights::new();
        let guard = flights.enter(7);
        guard.set_claim(Some(LEASE));
        drop(guard);
        let other = Claim::Lease { version: Version::from_u64(2), attempt: 2, deadline_ms: u64::MAX };
        flights.end_claim(7, other);
        assert_eq!(flights.enter(7).claim(), Some(LEASE));
        assert!(flights.try_enter(7).is_some(), "a claim does not keep a change out");
        flights.end_claim(7, LEASE);
        assert!(flights.is_empty());
    }

    #[test]
    fn a_waiter_is_woken_by_the_end_of_a_claim_and_not_before() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                loop {
                    let guard = flights.enter(7);
                    if guard.claim().is_none() {
                        return;
                    }
                    assert!(
                        guard.wait_for_change(Some(LEASE), Some(Instant::now() + Duration::from_secs(60)))
                    );
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            flights.end_claim(7, LEASE);
        });
        assert!(flights.is_empty());
    }

    #[test]
    fn leaving_an_unchanged_key_wakes_no_waiter() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        let wakes = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while flights
                        .enter(7)
                        .wait_for_change(Some(LEASE), Some(Instant::now() + Duration::from_millis(100)))
                    {
                        wakes.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..50 {
                drop(flights.enter(7));
            }
        });
        assert_eq!(wakes.into_inner(), 0);
    }

    /// The same call wakes the patient caller, which goes on waiting.
    #[test]
    fn a_wait_for_the_disk_sends_away_impatient_callers_only() {
        let flights = Flights::new();
        let guard = flights.enter(7);
        let until = Patience::of(Duration::from_secs(3_600));
        std::thread::scope(|scope| {
            let impatient = scope.spawn(|| flights.enter_within(7, Patience::None).is_some());
            let patient = scope.spawn(|| flights.enter_within(7, until).is_some());
            while flights.waiting(7) < 2 {
                std::thread::yield_now();
            }
            guard.note_disk();
            assert!(!impatient.join().unwrap(), "woken because this thread waits for the disk");
            assert!(flights.enter_within(7, Patience::None).is_none(), "the next finds it there");
            drop(guard);
            assert!(patient.join().unwrap());
        });
        assert!(flights.is_empty());
    }

    #[test]
    fn a_claim_that_ended_before_the_wait_began_is_not_waited_for() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        let guard = flights.enter(7);
        let seen = guard.claim();
        flights.end_claim(7, LEASE);
        assert!(guard.wait_for_change(seen, None), "without a timeout this would hang");
        assert!(flights.is_empty());
    }

    #[test]
    fn a_wait_without_a_change_ends_at_its_deadline() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        assert!(
            !flights.enter(7).wait_for_change(Some(LEASE), Some(Instant::now() + Duration::from_millis(5)))
        );
    }
}
