//! Per-key coordination: which thread is changing a key, who holds a claim on it, and who is waiting.
//!
//! A key that is being changed or claimed has a **flight**. It combines two things:
//!
//! - The per-key lock. At most one thread holds it, as a [`FlightGuard`], from before it decides on a change until the index
//!   points to the new record. Every thread that changes a key holds it, without exception, so that no decision is
//!   based on a state that another thread is about to replace. It is held for one change, which may include a wait for the disk.
//!   To *enter* a flight is to take this lock, and to *leave* it is to release the lock.
//! - A *claim*: a lease on an attempt, or the right to resolve a doubt. Its holder may keep it for any length of time.
//!
//! A claim does not keep other threads from entering the flight: a record can be moved while its operation is in
//! progress, and a late completion can end a doubt that another caller is resolving.
//!
//! A caller that only reads enters no flight: [`Flights::claim`] and the index are enough. A caller that must not wait
//! for another thread's disk I/O enters with [`Patience::None`]; one that may wait for a limited time, with [`Patience::Until`].
//! A thread that holds a flight and is about to wait for the disk calls [`FlightGuard::note_disk`], which makes callers without
//! patience return. A thread that moves a record does not call it. The move does not change the key's state, so a caller without
//! patience would return with nothing to report. It does not wait long: the flight is free again once the copy is written or, if
//! the copy shares a frame with another record, once that record is synced.
//!
//! To prevent deadlocks, a thread that holds a flight never waits for a second flight. The exception is a call that changes
//! several keys, which enters their flights in the order of their hashes.

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

/// The right to run an attempt, or to find out what happened in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A lease on the attempt of this version.
    Lease {
        version: Version,
        attempt: u32,
        /// The store time from which another caller may take over. `u64::MAX` means never.
        deadline_ms: u64,
    },
    /// A caller is finding out whether the side effect of the attempt of this version happened. The number is unique in
    /// the store's session.
    Doubt { version: Version, attempt: u32, number: u64 },
    /// The attempt of this version never runs, because its lease was dropped before a caller got it. The key counts as
    /// released from then on, although the record of that may not be written yet. Not a right of any caller.
    Unstarted { version: Version },
}

impl Claim {
    /// Whether both are the same claim. A renewed lease is still the same, although its deadline differs.
    pub(crate) fn is(self, other: Claim) -> bool {
        match (self, other) {
            (Claim::Lease { version, .. }, Claim::Lease { version: other, .. }) => version == other,
            (Claim::Doubt { number, .. }, Claim::Doubt { number: other, .. }) => number == other,
            _ => false,
        }
    }

    /// Whether a caller holds the claim.
    fn is_held(self) -> bool {
        !matches!(self, Claim::Unstarted { .. })
    }
}

/// The flight of one key.
#[derive(Debug, Default)]
struct Flight {
    /// Some thread holds the flight.
    changing: bool,
    /// The thread that holds the flight is waiting for the disk.
    at_disk: bool,
    /// The number of waiting threads that return once `at_disk` is set.
    impatient: u32,
    claim: Option<Claim>,
    /// The number of threads that are waiting on either condition variable.
    waiting: u32,
    /// Notified when a thread leaves the flight. Both condition variables are allocated when a thread first waits,
    /// because most flights never have a waiter.
    free: Option<Arc<Condvar>>,
    /// Notified when the key has a new state. It must be separate from `free`. Each thread that wakes enters and leaves the flight,
    /// which notifies `free`; with a single variable, two threads that wait for a new state would wake each other for ever.
    changed: Option<Arc<Condvar>>,
}

impl Flight {
    /// Wakes one thread that is waiting to enter the flight.
    fn wake_next(&self) {
        if let Some(free) = &self.free
            && !planted(Bug::FlightWaitersNotWoken)
        {
            free.notify_one();
        }
    }

    /// Wakes every thread that is waiting for a new state of the key.
    fn wake_waiters(&self) {
        let Some(changed) = &self.changed else { return };
        if planted(Bug::OnlyOneWaiterWoken) {
            changed.notify_one();
        } else {
            changed.notify_all();
        }
    }

    /// Whether the flight is unused and can be removed.
    fn is_unused(&self) -> bool {
        !self.changing && self.claim.is_none() && self.waiting == 0
    }
}

/// The flights of the keys in one shard, by the hash of the key.
type Shard = HashMap<u128, Flight, ByHash>;

const SHARDS: usize = 64;

/// All flights of one store.
#[derive(Debug)]
pub(crate) struct Flights {
    shards: Box<[Mutex<Shard>]>,
    /// The number of flights that have a claim which a caller holds. [`Flights::set_claim`] maintains it. Creating and dropping handles of claims does
    /// not, because a handle may outlive its claim, and a leaked handle is never dropped.
    claims: AtomicUsize,
    /// The number of those claims that are leases.
    leases: AtomicUsize,
    /// The number of attempts that never run and whose release is not written yet.
    unstarted: AtomicUsize,
    /// How many times a manual clock was moved.
    clock_moves: AtomicU64,
}

impl Flights {
    pub(crate) fn new() -> Flights {
        Flights {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            claims: AtomicUsize::new(0),
            leases: AtomicUsize::new(0),
            unstarted: AtomicUsize::new(0),
            clock_moves: AtomicU64::new(0),
        }
    }

    /// The number of claims that are alive. Takes no lock.
    pub(crate) fn claims(&self) -> usize {
        self.claims.load(Ordering::SeqCst)
    }

    /// The number of leases that are alive, those past their deadline included. Takes no lock.
    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }

    /// The number of attempts that never run and whose release is not written yet. Takes no lock.
    pub(crate) fn unstarted(&self) -> usize {
        self.unstarted.load(Ordering::SeqCst)
    }

    /// Replaces the claim of a flight. The caller has its shard locked.
    fn set_claim(&self, flight: &mut Flight, claim: Option<Claim>) {
        let count = |counter: &AtomicUsize, counts: fn(Claim) -> bool| {
            match (flight.claim.is_some_and(counts), claim.is_some_and(counts)) {
                (false, true) => counter.fetch_add(1, Ordering::SeqCst),
                (true, false) => counter.fetch_sub(1, Ordering::SeqCst),
                (false, false) | (true, true) => 0,
            };
        };
        // First, so that a lease which becomes unstarted is counted throughout.
        count(&self.unstarted, |claim| matches!(claim, Claim::Unstarted { .. }));
        count(&self.claims, Claim::is_held);
        count(&self.leases, |claim| matches!(claim, Claim::Lease { .. }));
        flight.claim = claim;
    }

    fn shard(&self, hash: u128) -> &Mutex<Shard> {
        // These bits are independent of those that select a shard of the index, at the upper end of the hash, and those
        // that select a bucket of the map, at the lower end.
        let at = usize::try_from(hash >> 64 & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[at]
    }

    /// Gives the flight to this thread. The caller has its shard locked.
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

    /// Enters the flight of a key: waits until no other thread is changing the key, and keeps other threads from
    /// changing it.
    pub(crate) fn enter(&self, hash: u128) -> FlightGuard<'_> {
        loop {
            if let Some(guard) = self.enter_within(hash, Patience::Endless) {
                return guard;
            }
        }
    }

    /// Enters the flight of a key like [`Flights::enter`], but returns None if that takes longer than `patience`. A caller without
    /// patience still waits while the thread that holds the flight uses only memory, or moves the key's record.
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
                // If the flight is free by now, enter it in spite of the timeout. This thread may be the only one that
                // was woken for it.
                if !in_time && flight.changing {
                    return None;
                }
            }
        }
    }

    /// Enters the flight of a key, or returns None at once if another thread holds it.
    pub(crate) fn try_enter(&self, hash: u128) -> Option<FlightGuard<'_>> {
        let mut shard = self.shard(hash).lock();
        let flight = shard.entry(hash).or_default();
        if flight.changing {
            return None;
        }
        Some(self.take(hash, flight))
    }

    /// Enters the flight of a key even if another thread holds it. Only for a planted bug.
    pub(crate) fn barge_in(&self, hash: u128) -> Option<FlightGuard<'_>> {
        let mut shard = self.shard(hash).lock();
        Some(self.take(hash, shard.entry(hash).or_default()))
    }

    /// The claim on the key, for a caller that only reads. The caller must ignore a claim whose version is not that of the record
    /// that it read: a claim is set before the index points to its record, and ended after the index points to the next one.
    pub(crate) fn claim(&self, hash: u128) -> Option<Claim> {
        // The counts are changed before the claim of a flight.
        if self.claims() == 0 && self.unstarted() == 0 {
            return None;
        }
        self.shard(hash).lock().get(&hash).and_then(|flight| flight.claim)
    }

    /// Whether a thread holds the flight of the key.
    pub(crate) fn is_changing(&self, hash: u128) -> bool {
        self.shard(hash).lock().get(&hash).is_some_and(|flight| flight.changing)
    }

    /// Ends `claim`, and returns true, if the key still has that claim. It must change memory only and must not fail, because the
    /// drop of a lease calls it, even during a panic.
    pub(crate) fn end_claim(&self, hash: u128, claim: Claim) -> bool {
        self.replace_claim(hash, claim, None)
    }

    /// Turns the lease `claim` into [`Claim::Unstarted`], if the key still has that lease. Changes memory only and cannot fail.
    pub(crate) fn note_unstarted(&self, hash: u128, claim: Claim, version: Version) -> bool {
        self.replace_claim(hash, claim, Some(Claim::Unstarted { version }))
    }

    fn replace_claim(&self, hash: u128, claim: Claim, next: Option<Claim>) -> bool {
        let mut shard = self.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return false };
        if !flight.claim.is_some_and(|current| current.is(claim)) {
            return false;
        }
        self.set_claim(flight, next);
        if !planted(Bug::ClaimWaitersNotWoken) {
            flight.wake_waiters();
        }
        if flight.is_unused() {
            shard.remove(&hash);
        }
        true
    }

    /// Sets the deadline of the lease on the attempt of `version`. Returns false if the lease has ended or was taken
    /// over. Called only by [`FlightGuard::renew_lease`], and by a planted bug.
    pub(crate) fn renew_lease(&self, hash: u128, version: Version, deadline_ms: u64) -> bool {
        let mut shard = self.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return false };
        // Read the claim again, although the flight is held: dropping a lease ends its claim without entering the
        // flight. If the claim were restored after that, nothing would ever end it.
        let (attempt, old_deadline_ms) = match flight.claim {
            Some(Claim::Lease { version: leased, attempt, deadline_ms }) if leased == version => {
                (attempt, deadline_ms)
            }
            _ if planted(Bug::RenewedAfterTakeover) => (1, 0),
            _ => return false,
        };
        self.set_claim(flight, Some(Claim::Lease { version, attempt, deadline_ms }));
        // Waiters sleep until the old deadline. If the new deadline is later, they wake early and go on waiting. If it
        // is earlier, they must be woken now.
        if deadline_ms < old_deadline_ms && !planted(Bug::RenewalWaitersNotWoken) {
            flight.wake_waiters();
        }
        true
    }

    /// The number of threads that are waiting for this key.
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

/// The exclusive right to change a key. Dropping it leaves the flight and, if the key was changed, wakes the threads
/// that are waiting for that.
#[derive(Debug)]
#[must_use = "no other thread can change the key until this is dropped"]
pub(crate) struct FlightGuard<'a> {
    flights: &'a Flights,
    /// The hash of the key.
    hash: u128,
    /// The claim on the key when the flight was entered.
    claim: Option<Claim>,
    /// [`Flights::clock_moves`] when the flight was entered.
    clock_moves: u64,
    /// The key has a new state, so leaving the flight wakes the waiters.
    changed: Cell<bool>,
}

impl FlightGuard<'_> {
    /// Notes that this thread is about to wait for the disk, so that callers without patience stop waiting.
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

    /// The claim on the key when the flight was entered. It may have ended since, because a thread that does not hold the flight
    /// can end a claim. But no other thread can have set a new one.
    pub(crate) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// Notes that the key has a new state, so that leaving the flight wakes the waiters.
    pub(crate) fn note_change(&self) {
        self.changed.set(true);
    }

    /// The hash of the key.
    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// Sets or ends the claim on the key.
    pub(crate) fn set_claim(&self, claim: Option<Claim>) {
        self.note_change();
        if let Some(flight) = self.flights.shard(self.hash).lock().get_mut(&self.hash) {
            self.flights.set_claim(flight, claim);
        }
    }

    /// Sets the deadline of the lease on the attempt of `version`. Returns false if the lease has ended or was taken
    /// over.
    ///
    /// The caller must hold the flight. A takeover reads the old deadline and later replaces the claim, without leaving the flight in
    /// between. Without the flight, a renewal and a takeover could both succeed.
    pub(crate) fn renew_lease(&self, version: Version, deadline_ms: u64) -> bool {
        self.flights.renew_lease(self.hash, version, deadline_ms)
    }

    /// Leaves the flight and waits for a new state of the key, the end of its claim, or a move of a manual clock. Returns false if
    /// the time `until` comes first.
    ///
    /// `seen` is the claim that the caller has read. If the claim, including its deadline, is no longer the same, this returns true
    /// at once, because the wake-up for that change has already happened.
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
            if flight.is_unused() {
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
        if planted(Bug::TimedOutWaiterStillCounted) && !in_time {
            return false;
        }
        if let Some(flight) = shard.get_mut(&hash) {
            flight.waiting -= 1;
            if flight.is_unused() {
                shard.remove(&hash);
            }
        }
        in_time
    }
}

impl Sleepers for Flights {
    /// Wakes every waiter, because a lease deadline may have passed. `clock_moves` is increased before the shards are locked, so a
    /// thread that is about to wait notices the new count, and a thread that waits already is woken.
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
        if flight.is_unused() {
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
    fn only_one_thread_at_a_time_changes_a_key() {
        let flights = Flights::new();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let guard = flights.enter(7);
                        assert!(!inside.swap(true, Ordering::SeqCst), "two threads are in the same flight");
                        inside.store(false, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert!(flights.is_empty(), "an unused flight must be removed");
    }

    #[test]
    fn a_claim_stays_until_that_same_claim_is_ended() {
        let flights = Flights::new();
        let guard = flights.enter(7);
        guard.set_claim(Some(LEASE));
        drop(guard);
        let other = Claim::Lease { version: Version::from_u64(2), attempt: 2, deadline_ms: u64::MAX };
        flights.end_claim(7, other);
        assert_eq!(flights.enter(7).claim(), Some(LEASE));
        assert!(flights.try_enter(7).is_some(), "a claim must not keep a thread from entering the flight");
        flights.end_claim(7, LEASE);
        assert!(flights.is_empty());
    }

    #[test]
    fn a_waiter_sleeps_until_the_claim_ends() {
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

    /// `note_disk` also wakes the patient caller, which goes on waiting.
    #[test]
    fn only_impatient_callers_return_when_the_holder_waits_for_the_disk() {
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
            assert!(!impatient.join().unwrap(), "the impatient caller must return without the flight");
            assert!(flights.enter_within(7, Patience::None).is_none(), "a later caller must return, too");
            drop(guard);
            assert!(patient.join().unwrap());
        });
        assert!(flights.is_empty());
    }

    #[test]
    fn a_claim_that_has_ended_is_not_waited_for() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        let guard = flights.enter(7);
        let seen = guard.claim();
        flights.end_claim(7, LEASE);
        // If the change were missed, this would hang.
        assert!(guard.wait_for_change(seen, None));
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
