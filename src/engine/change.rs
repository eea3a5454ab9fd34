//! The verbs: begin, complete, release, doubt, record, compare-and-set, forget.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Engine, Found, Terms, Want};
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Record, encoded_bytes};
use crate::key::{Fingerprint, Key};
use crate::log::Promise;
use crate::log::commit::record_cost_bytes;
use crate::log::room::Purpose;
use crate::record::Life;
use crate::status::{Event, Refused, Status, Version, transition};

/// The right to perform one attempt, as the engine knows it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) claim: Claim,
    /// Room for the record that ends the attempt.
    pub(crate) promise: Promise,
}

/// How a begin came out.
#[derive(Debug)]
pub(crate) enum Began {
    Acquired(Grant),
    /// The doubt is this caller's to resolve.
    InDoubt(Grant),
    InProgress {
        attempt: u32,
    },
    Completed(Found),
}

/// What a finished attempt leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish<'a> {
    Completed(&'a [u8]),
    Released,
}

/// What [`Store::compare_and_set`](crate::Store::compare_and_set) expects to find.
///
/// The version is what makes it safe: a state that went away and came back has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Nothing is known of the key.
    Absent,
    /// The key is in progress, in doubt or completed, by the record of this version.
    Present {
        /// The status.
        status: Status,
        /// The version of the record that made it so.
        version: Version,
    },
}

/// What [`Store::compare_and_set`](crate::Store::compare_and_set) puts in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next<'a> {
    /// The act certainly did not happen, or what is known of it is given up.
    Absent,
    /// Somebody without a lease began, or may have begun. A lease is only had by
    /// [`Store::begin`](crate::Store::begin), which is why there is no "in progress" here.
    InDoubt {
        /// Of the request; must be the stored one if the key is in progress or in doubt already.
        fingerprint: Fingerprint,
    },
    /// The act happened, with this result.
    Completed {
        /// Of the request; must be the stored one if the key is in progress or in doubt already.
        fingerprint: Fingerprint,
        /// The result.
        result: &'a [u8],
    },
}

impl Next<'_> {
    fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Next::Absent => None,
            Next::InDoubt { fingerprint } | Next::Completed { fingerprint, .. } => Some(*fingerprint),
        }
    }
}

/// How a compare-and-set came out.
#[derive(Debug)]
pub(crate) enum Swap {
    Done(Version),
    Differs,
}

/// What a look at a key under its flight says to somebody who wants to act on it.
struct View {
    found: Option<Found>,
    claim: Option<Claim>,
    status: Status,
}

impl Engine {
    fn view(
        &self,
        key: Key<'_>,
        hash: u128,
        flight: &FlightGuard<'_>,
        now_ms: u64,
        want: Want,
    ) -> Result<View> {
        let found = self.lookup(key, hash, now_ms, want)?;
        let claim = flight.claim();
        let status = self.status(found.as_ref(), claim, now_ms);
        Ok(View { found, claim, status })
    }

    /// Where the key stands, for somebody who only looks.
    pub(crate) fn get(&self, key: Key<'_>) -> Result<(Status, Option<Found>)> {
        let hash = self.admit(key)?;
        let durability = self.settings.terms.durability;
        let now_ms = self.clock.now_ms();
        let found = self.lookup(key, hash, now_ms, Want::Result)?;
        // In progress or in doubt is a question of the record and the claim together, which only the flight holds still.
        let (status, found) = match found {
            Some(Found { life: Life::Begun, .. }) => {
                let flight = self.flights.enter(hash);
                let view = self.view(key, hash, &flight, now_ms, Want::Result)?;
                (view.status, view.found)
            }
            found => (self.status(found.as_ref(), None, now_ms), found),
        };
        if let Some(found) = &found {
            self.settle(found, durability)?;
        }
        Ok((status, found))
    }

    /// Begins an attempt, or says why not.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: Key<'_>,
        fingerprint: Fingerprint,
        terms: &Terms,
        takes_doubt: bool,
    ) -> Result<Began> {
        let hash = self.admit(key)?;
        let until = terms.wait.map(|wait| Instant::now().checked_add(wait));
        loop {
            let now_ms = self.clock.now_ms();
            // Most calls of a program that retries are for what is done: answered without entering the flight.
            if let Some(found) = self.lookup(key, hash, now_ms, Want::Result)?
                && matches!(found.life, Life::Completed | Life::CompletedWithoutResult)
            {
                return self.replay(key, fingerprint, found, terms).map(Began::Completed);
            }
            let flight = self.flights.enter(hash);
            let View { found, claim, status } = self.view(key, hash, &flight, now_ms, Want::Result)?;
            if let Some(found) = found.as_ref().filter(|_| status != Status::Absent) {
                self.check_fingerprint(key, fingerprint, found)?;
            }
            let attempt = found.as_ref().map_or(0, |found| found.attempt);
            match transition(status, Event::Begin) {
                Err(Refused::Completed) => {
                    drop(flight);
                    let Some(found) = found else { continue };
                    return self.replay(key, fingerprint, found, terms).map(Began::Completed);
                }
                Err(_) => {
                    if !self.wait_for_other(flight, claim, until, now_ms) {
                        return Ok(Began::InProgress { attempt });
                    }
                    continue;
                }
                Ok(_) => {}
            }
            // Somebody is finding out: to the others that is an attempt in progress.
            if status == Status::InDoubt
                && takes_doubt
                && let Some(Claim::Doubt { attempt, .. }) = claim
            {
                if !self.wait_for_other(flight, claim, until, now_ms) {
                    return Ok(Began::InProgress { attempt });
                }
                continue;
            }
            if status == Status::InDoubt
                && let Some(found) = &found
            {
                self.settle(found, terms.durability)?;
                if !takes_doubt {
                    crate::events::in_doubt(key, attempt);
                    return Err(Error::InDoubt { key: key.to_owned(), attempt, version: found.version });
                }
            }
            let costs = [record_cost_bytes(encoded_bytes(key, 0)), self.finish_cost(key)];
            let mut promise = match self.log.promise(costs.iter().sum(), Purpose::Begin)? {
                Ok(promise) => promise,
                Err(reason) => {
                    drop(flight);
                    self.make_room(reason)?;
                    continue;
                }
            };
            if let Some(found) = found.as_ref().filter(|_| status == Status::InDoubt) {
                crate::events::in_doubt(key, attempt);
                let number = self.doubts.fetch_add(1, Ordering::Relaxed);
                let claim = Claim::Doubt { version: found.version, attempt, number };
                flight.set_claim(Some(claim));
                self.leases.fetch_add(1, Ordering::AcqRel);
                return Ok(Began::InDoubt(Grant { version: found.version, attempt, claim, promise }));
            }
            let begin_promise = promise.split(costs[0]);
            let grant =
                self.write_begin(key, hash, fingerprint, terms, &flight, found.as_ref(), begin_promise)?;
            let (version, attempt, claim) = grant;
            return Ok(Began::Acquired(Grant { version, attempt, claim, promise }));
        }
    }

    /// What an attempt may need to be finished: the largest result, and the key.
    fn finish_cost(&self, key: Key<'_>) -> u64 {
        record_cost_bytes(encoded_bytes(key, self.settings.max_result_bytes))
    }

    /// Appends the begin record of the next attempt and leaves a lease on the flight.
    #[expect(clippy::too_many_arguments, reason = "the parts of one record, each known to the caller only")]
    fn write_begin(
        &self,
        key: Key<'_>,
        hash: u128,
        fingerprint: Fingerprint,
        terms: &Terms,
        flight: &FlightGuard<'_>,
        found: Option<&Found>,
        promise: Promise,
    ) -> Result<(Version, u32, Claim)> {
        let now_ms = self.clock.now_ms();
        let version = self.next_version()?;
        let attempt = found.map_or(0, |found| found.attempt).saturating_add(1);
        // A life begins where nothing was left of the key, or only the count of attempts that did not happen.
        let origin = match found {
            Some(found) if found.life == Life::Begun => found.origin,
            _ => version,
        };
        let record = Record {
            kind: Kind::Begun,
            key,
            version,
            origin,
            fingerprint,
            attempt,
            time_ms: now_ms,
            key_expires_ms: NEVER_MS,
            result_expires_ms: NEVER_MS,
            result: None,
        };
        let until = match terms.begin_unsynced {
            true => crate::log::commit::Until::Written,
            false => terms.durability.until(),
        };
        self.commit(flight, hash, &record, promise, until, found)?;
        let deadline_ms = terms.lease_ms.map_or(u64::MAX, |lease_ms| now_ms.saturating_add(lease_ms));
        let claim = Claim::Lease { version, attempt, deadline_ms };
        flight.set_claim(Some(claim));
        self.leases.fetch_add(1, Ordering::AcqRel);
        Ok((version, attempt, claim))
    }

    /// The doubt about `version` is resolved in favour of another attempt: the act did not happen, or may happen again.
    /// Takes the promise that the doubt held.
    pub(crate) fn begin_again(
        &self,
        key: Key<'_>,
        version: Version,
        terms: &Terms,
        promise: &mut Promise,
    ) -> Result<Grant> {
        let hash = self.admit(key)?;
        let flight = self.flights.enter(hash);
        let View { found, .. } = self.view(key, hash, &flight, self.clock.now_ms(), Want::State)?;
        self.check_holds(key, found.as_ref(), version)?;
        let fingerprint = found.as_ref().map_or(Fingerprint::NONE, |found| found.fingerprint);
        let mut promise = promise.take();
        let begin_promise = promise.split(record_cost_bytes(encoded_bytes(key, 0)));
        let (version, attempt, claim) =
            self.write_begin(key, hash, fingerprint, terms, &flight, found.as_ref(), begin_promise)?;
        Ok(Grant { version, attempt, claim, promise })
    }

    /// Ends the attempt of `version`, by its lease, by a doubt that was resolved, or late by a lease that nobody took
    /// over from. Returns the version of the record that ended it.
    pub(crate) fn finish(
        &self,
        key: Key<'_>,
        version: Version,
        finish: Finish<'_>,
        terms: &Terms,
        promise: &mut Promise,
    ) -> Result<Version> {
        let hash = self.admit(key)?;
        if let Finish::Completed(result) = finish {
            self.check_result(key, result)?;
        }
        let flight = self.flights.enter(hash);
        let now_ms = self.clock.now_ms();
        let View { found, status, .. } = self.view(key, hash, &flight, now_ms, Want::State)?;
        self.check_holds(key, found.as_ref(), version)?;
        let (event, kind, result) = match finish {
            Finish::Completed(result) => (Event::Complete, Kind::Completed, Some(result)),
            Finish::Released => (Event::Release, Kind::Released, None),
        };
        let fenced = || Error::Fenced { key: key.to_owned(), version };
        let Some(found) = found.filter(|_| transition(status, event).is_ok()) else { return Err(fenced()) };
        let (key_expires_ms, result_expires_ms) = terms.retention.expiries(now_ms);
        let finished = self.next_version()?;
        let record = Record {
            kind,
            key,
            version: finished,
            origin: found.origin,
            fingerprint: found.fingerprint,
            attempt: found.attempt,
            time_ms: now_ms,
            key_expires_ms,
            result_expires_ms,
            result,
        };
        let all = promise.take();
        self.commit(&flight, hash, &record, all, terms.durability.until(), Some(&found))?;
        flight.set_claim(None);
        Ok(finished)
    }

    /// Seen and done, in one record.
    pub(crate) fn record(
        &self,
        key: Key<'_>,
        fingerprint: Fingerprint,
        result: &[u8],
        terms: &Terms,
    ) -> Result<std::result::Result<Version, Found>> {
        let hash = self.admit(key)?;
        self.check_result(key, result)?;
        let until = terms.wait.map(|wait| Instant::now().checked_add(wait));
        loop {
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            let View { found, claim, status } = self.view(key, hash, &flight, now_ms, Want::Result)?;
            if let Some(found) = found.as_ref().filter(|_| status != Status::Absent) {
                self.check_fingerprint(key, fingerprint, found)?;
            }
            let attempt = found.as_ref().map_or(0, |found| found.attempt);
            match (transition(status, Event::Record), &found) {
                (Ok(_), _) => {}
                (Err(Refused::Completed), Some(_)) => {
                    drop(flight);
                    let Some(found) = found else { continue };
                    return self.replay(key, fingerprint, found, terms).map(Err);
                }
                (Err(Refused::InDoubt), Some(found)) => {
                    self.settle(found, terms.durability)?;
                    crate::events::in_doubt(key, attempt);
                    return Err(Error::InDoubt { key: key.to_owned(), attempt, version: found.version });
                }
                (Err(_), _) => {
                    if self.wait_for_other(flight, claim, until, now_ms) {
                        continue;
                    }
                    return Err(Error::InProgress { key: key.to_owned(), attempt });
                }
            }
            let cost = record_cost_bytes(encoded_bytes(key, result.len()));
            match self.log.promise(cost, Purpose::Begin)? {
                Ok(promise) => {
                    let facts =
                        Facts { fingerprint, attempt: attempt.saturating_add(1), result: Some(result) };
                    let kind = Kind::Completed;
                    return self
                        .write_now(key, hash, kind, facts, terms, &flight, found.as_ref(), promise)
                        .map(Ok);
                }
                Err(reason) => {
                    drop(flight);
                    self.make_room(reason)?;
                }
            }
        }
    }

    /// Gives up what is known of the key. False if nothing was.
    pub(crate) fn forget(&self, key: Key<'_>, terms: &Terms) -> Result<bool> {
        let hash = self.admit(key)?;
        loop {
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            let View { found, status, .. } = self.view(key, hash, &flight, now_ms, Want::State)?;
            let attempt = found.as_ref().map_or(0, |found| found.attempt);
            match transition(status, Event::Forget) {
                Ok(_) => {}
                Err(Refused::InProgress) => return Err(Error::InProgress { key: key.to_owned(), attempt }),
                Err(_) => return Ok(false),
            }
            let cost = record_cost_bytes(encoded_bytes(key, 0));
            match self.log.promise(cost, Purpose::Upkeep)? {
                Ok(promise) => {
                    let facts = Facts { fingerprint: Fingerprint::NONE, attempt, result: None };
                    let kind = Kind::Forgotten;
                    self.write_now(key, hash, kind, facts, terms, &flight, found.as_ref(), promise)?;
                    flight.set_claim(None);
                    return Ok(true);
                }
                Err(reason) => {
                    drop(flight);
                    self.make_room(reason)?;
                }
            }
        }
    }

    /// Puts `next` where `expected` is, if it still is.
    pub(crate) fn compare_and_set(
        &self,
        key: Key<'_>,
        expected: Expected,
        next: Next<'_>,
        terms: &Terms,
    ) -> Result<Swap> {
        let hash = self.admit(key)?;
        if let Next::Completed { result, .. } = next {
            self.check_result(key, result)?;
        }
        loop {
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            let View { found, status, .. } = self.view(key, hash, &flight, now_ms, Want::State)?;
            if let Some(found) = &found {
                self.settle(found, terms.durability)?;
            }
            let matches = match expected {
                Expected::Absent => status == Status::Absent,
                Expected::Present { status: wanted, version } => {
                    status == wanted && found.as_ref().is_some_and(|found| found.version == version)
                }
            };
            if !matches {
                return Ok(Swap::Differs);
            }
            let unfinished = matches!(status, Status::InProgress | Status::InDoubt);
            if let (Some(fingerprint), Some(found)) =
                (next.fingerprint(), found.as_ref().filter(|_| unfinished))
            {
                self.check_fingerprint(key, fingerprint, found)?;
            }
            let Ok(change) = swap_of(status, &next) else {
                return Err(Error::Conflict { key: key.to_owned() });
            };
            let Some(kind) = change else {
                // Absent where absent was expected: there is nothing to write down.
                return Ok(Swap::Done(Version::from_u64(0)));
            };
            let result = match next {
                Next::Completed { result, .. } => Some(result),
                Next::Absent | Next::InDoubt { .. } => None,
            };
            let cost = record_cost_bytes(encoded_bytes(key, result.map_or(0, <[u8]>::len)));
            let purpose = if next == Next::Absent { Purpose::Upkeep } else { Purpose::Begin };
            match self.log.promise(cost, purpose)? {
                Ok(promise) => {
                    let kept = found.as_ref().filter(|_| unfinished).map(|found| found.fingerprint);
                    let fingerprint = next.fingerprint().or(kept).unwrap_or(Fingerprint::NONE);
                    let begun = found.as_ref().map_or(0, |found| found.attempt);
                    let attempt = if status == Status::Absent { begun.saturating_add(1) } else { begun };
                    let facts = Facts { fingerprint, attempt, result };
                    let version =
                        self.write_now(key, hash, kind, facts, terms, &flight, found.as_ref(), promise)?;
                    // Whoever held a lease finds out by the version; whoever waited looks again.
                    flight.set_claim(None);
                    return Ok(Swap::Done(version));
                }
                Err(reason) => {
                    drop(flight);
                    self.make_room(reason)?;
                }
            }
        }
    }

    /// Appends a record that needs no lease.
    #[expect(clippy::too_many_arguments, reason = "the parts of one record, each known to the caller only")]
    fn write_now(
        &self,
        key: Key<'_>,
        hash: u128,
        kind: Kind,
        facts: Facts<'_>,
        terms: &Terms,
        flight: &FlightGuard<'_>,
        found: Option<&Found>,
        promise: Promise,
    ) -> Result<Version> {
        let now_ms = self.clock.now_ms();
        let version = self.next_version()?;
        let (key_expires_ms, result_expires_ms) = match kind {
            Kind::Completed | Kind::Released => terms.retention.expiries(now_ms),
            Kind::Begun | Kind::Forgotten | Kind::Ignorable => (NEVER_MS, NEVER_MS),
        };
        let origin = match found {
            Some(found) if found.life == Life::Begun => found.origin,
            _ => version,
        };
        let Facts { fingerprint, attempt, result } = facts;
        let record = Record {
            kind,
            key,
            version,
            origin,
            fingerprint,
            attempt,
            time_ms: now_ms,
            key_expires_ms,
            result_expires_ms,
            result,
        };
        self.commit(flight, hash, &record, promise, terms.durability.until(), found)?;
        Ok(version)
    }

    /// The holder of a grant is gone. If its attempt was not finished, the operation is in doubt from now on. Touches
    /// memory only and cannot fail, because it happens in drops.
    pub(crate) fn abandon(&self, key: Key<'_>, claim: Claim) {
        self.flights.end_claim(self.log.hasher().key(key), claim);
        self.leases.fetch_sub(1, Ordering::AcqRel);
    }

    /// Waits until somebody else's claim may have ended. False if the caller does not wait any longer.
    fn wait_for_other(
        &self,
        flight: FlightGuard<'_>,
        claim: Option<Claim>,
        until: Option<Option<Instant>>,
        now_ms: u64,
    ) -> bool {
        let Some(until) = until else { return false };
        if until.is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        // A lease with a deadline can be taken over when that has passed, and nobody would wake this thread for it.
        let deadline = match claim {
            Some(Claim::Lease { deadline_ms, .. }) if deadline_ms < u64::MAX => {
                Instant::now().checked_add(Duration::from_millis(deadline_ms.saturating_sub(now_ms).max(1)))
            }
            _ => None,
        };
        let first = match (until, deadline) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        };
        flight.wait_for_change(first);
        true
    }

    fn replay(&self, key: Key<'_>, fingerprint: Fingerprint, found: Found, terms: &Terms) -> Result<Found> {
        self.check_fingerprint(key, fingerprint, &found)?;
        self.settle(&found, terms.durability)?;
        if found.life == Life::CompletedWithoutResult {
            return Err(Error::ResultExpired { key: key.to_owned() });
        }
        crate::events::replayed(key);
        Ok(found)
    }

    fn check_fingerprint(&self, key: Key<'_>, fingerprint: Fingerprint, found: &Found) -> Result<()> {
        if found.fingerprint == fingerprint {
            return Ok(());
        }
        crate::events::mismatched(key);
        Err(Error::Mismatch { key: key.to_owned() })
    }

    fn check_result(&self, key: Key<'_>, result: &[u8]) -> Result<()> {
        let limit_bytes = self.settings.max_result_bytes;
        if result.len() <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge { key: key.to_owned(), length_bytes: result.len(), limit_bytes })
    }

    /// Whether the attempt of `version` is still the key's last word.
    fn check_holds(&self, key: Key<'_>, found: Option<&Found>, version: Version) -> Result<()> {
        let holds = found.is_some_and(|found| found.life == Life::Begun && found.version == version);
        if holds { Ok(()) } else { Err(Error::Fenced { key: key.to_owned(), version }) }
    }
}

/// What a record says beside its kind and its times.
#[derive(Clone, Copy)]
struct Facts<'a> {
    fingerprint: Fingerprint,
    attempt: u32,
    result: Option<&'a [u8]>,
}

/// The record that takes a key from `status` to `next`; Ok(None) if none is needed.
fn swap_of(status: Status, next: &Next<'_>) -> Result<Option<Kind>, Refused> {
    match (next, status) {
        (Next::Absent, Status::Absent) => Ok(None),
        (Next::Absent, Status::Completed) => transition(status, Event::Forget).map(|_| Some(Kind::Forgotten)),
        (Next::Absent, _) => transition(status, Event::Release).map(|_| Some(Kind::Released)),
        (Next::InDoubt { .. }, Status::Absent) => {
            let begun = transition(status, Event::Begin)?;
            transition(begun, Event::Doubt).map(|_| Some(Kind::Begun))
        }
        (Next::InDoubt { .. }, _) => transition(status, Event::Doubt).map(|_| Some(Kind::Begun)),
        (Next::Completed { .. }, Status::Absent) => {
            transition(status, Event::Record).map(|_| Some(Kind::Completed))
        }
        (Next::Completed { .. }, _) => transition(status, Event::Complete).map(|_| Some(Kind::Completed)),
    }
}
