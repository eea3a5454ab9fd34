//! Who is at what right now in this process, and who waits for it.
//!
//! A key that is being changed or acted on has a **flight**. Two things can hold on to it:
//!
//! - a *change*: one thread, from its decision to the moment at which the index says what it decided. Short; one at a
//!   time. Whoever changes a key does so under a [`FlightGuard`], without exception, so that a decision is never
//!   made on what another thread is about to replace.
//! - a *claim*: a lease on an attempt, or the right to resolve a doubt. As long as the caller likes.
//!
//! A claim does not keep a change out: a record can be moved while its operation is in progress, and a late completion
//! can end a doubt that somebody is looking into.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::key::ByHash;
use crate::planted::{Bug, planted};
use crate::status::Version;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};

/// The right to act on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A lease on an attempt.
    Lease {
        version: Version,
        attempt: u32,
        /// Store time from which somebody else may take over; `u64::MAX`: never.
        deadline_ms: u64,
    },
    /// Somebody finds out whether the attempt of this version happened. The number tells two of them apart.
    Doubt { version: Version, attempt: u32, number: u64 },
}

#[derive(Debug, Default)]
struct Flight {
    changing: bool,
    claim: Option<Claim>,
    waiting: u32,
    /// Both made when somebody first waits, which most flights never see. Two, because whoever waits for another
    /// state of the key must not be woken by every thread that only looks at it: two such waiters would wake each
    /// other for ever.
    free: Option<Arc<Condvar>>,
    changed: Option<Arc<Condvar>>,
}

impl Flight {
    fn tell_free(&self) {
        if let Some(free) = &self.free
            && !planted(Bug::LeavingNotTold)
        {
            free.notify_one();
        }
    }

    fn tell_changed(&self) {
        let Some(changed) = &self.changed else { return };
        if planted(Bug::ChangeToldToOne) {
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
    /// How many flights have a claim. Counted here and not by the handles of claims: a handle may outlive its claim, and
    /// one that leaked never ends.
    claims: AtomicUsize,
}

impl Flights {
    pub(crate) fn new() -> Flights {
        Flights { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), claims: AtomicUsize::new(0) }
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
        // The index takes its shards from the upper end of the hash, the maps in here theirs from the lower.
        let at = usize::try_from(hash >> 64 & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[at]
    }

    /// Waits until nobody changes the key, and keeps others from changing it.
    pub(crate) fn enter(&self, hash: u128) -> FlightGuard<'_> {
        let mut shard = self.shard(hash).lock();
        loop {
            let flight = shard.entry(hash).or_default();
            if !flight.changing || planted(Bug::EnteredRegardless) {
                flight.changing = true;
                return FlightGuard { flights: self, hash, claim: flight.claim, changed: Cell::new(false) };
            }
            flight.waiting += 1;
            let free = Arc::clone(flight.free.get_or_insert_default());
            free.wait(&mut shard);
            if let Some(flight) = shard.get_mut(&hash) {
                flight.waiting -= 1;
            }
        }
    }

    /// The same, unless somebody changes the key just now.
    pub(crate) fn try_enter(&self, hash: u128) -> Option<FlightGuard<'_>> {
        let mut shard = self.shard(hash).lock();
        let flight = shard.entry(hash).or_default();
        if flight.changing {
            return None;
        }
        flight.changing = true;
        Some(FlightGuard { flights: self, hash, claim: flight.claim, changed: Cell::new(false) })
    }

    /// Enters whether or not somebody else is there: what a planted bug does.
    pub(crate) fn barge_in(&self, hash: u128) -> Option<FlightGuard<'_>> {
        self.shard(hash).lock().entry(hash).or_default().changing = true;
        Some(FlightGuard { flights: self, hash, claim: None, changed: Cell::new(false) })
    }

    /// Whether somebody changes the key just now.
    pub(crate) fn is_changing(&self, hash: u128) -> bool {
        self.shard(hash).lock().get(&hash).is_some_and(|flight| flight.changing)
    }

    /// Ends a claim, if it is still the one on the key. Touches memory only and cannot fail: this is what dropping a lease
    /// does, during a panic as well.
    pub(crate) fn end_claim(&self, hash: u128, claim: Claim) {
        let mut shard = self.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return };
        if flight.claim != Some(claim) {
            return;
        }
        self.set_claim(flight, None);
        if !planted(Bug::EndOfClaimNotTold) {
            flight.tell_changed();
        }
        if flight.is_over() {
            shard.remove(&hash);
        }
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

/// The exclusive right to change a key. Gives it up when it is dropped, and wakes whoever waits for a change if there
/// was one.
#[derive(Debug)]
#[must_use = "nobody else can change the key until this is dropped"]
pub(crate) struct FlightGuard<'a> {
    flights: &'a Flights,
    hash: u128,
    claim: Option<Claim>,
    changed: Cell<bool>,
}

impl FlightGuard<'_> {
    /// The claim that there was when this was entered. It may have ended since, as claims do without the right to change;
    /// nobody else can have made one.
    pub(crate) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// The index says something else of the key from now on.
    pub(crate) fn note_change(&self) {
        self.changed.set(true);
    }

    pub(crate) fn set_claim(&self, claim: Option<Claim>) {
        self.note_change();
        if let Some(flight) = self.flights.shard(self.hash).lock().get_mut(&self.hash) {
            self.flights.set_claim(flight, claim);
        }
    }

    /// Gives up the right and waits until something about the key changes or `until` has come. False if it came.
    ///
    /// `seen` is the claim that the caller wants to see changed: claims end without the right, so it may have ended
    /// since it was looked at, and nobody would tell of that again.
    pub(crate) fn wait_for_change(self, seen: Option<Claim>, until: Option<Instant>) -> bool {
        let (flights, hash, has_changed) = (self.flights, self.hash, self.changed.get());
        std::mem::forget(self);
        let mut shard = flights.shard(hash).lock();
        let Some(flight) = shard.get_mut(&hash) else { return true };
        flight.changing = false;
        flight.tell_free();
        if has_changed {
            flight.tell_changed();
        }
        if flight.claim != seen && !planted(Bug::SeenIgnored) {
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

impl Drop for FlightGuard<'_> {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(self.hash).lock();
        let Some(flight) = shard.get_mut(&self.hash) else { return };
        flight.changing = false;
        flight.tell_free();
        if self.changed.get() {
            flight.tell_changed();
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
    fn a_claim_outlives_the_change_and_only_its_own_end_ends_it() {
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
    fn looking_at_a_key_wakes_nobody_who_waits_for_a_change() {
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
    fn a_wait_that_is_not_answered_ends_at_its_time() {
        let flights = Flights::new();
        flights.enter(7).set_claim(Some(LEASE));
        assert!(
            !flights.enter(7).wait_for_change(Some(LEASE), Some(Instant::now() + Duration::from_millis(5)))
        );
    }
}
