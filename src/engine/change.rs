//! The other verbs: complete, release, record, forget, compare-and-set.

use std::fmt;

use super::view::{Found, View, Want, left_in_doubt};
use super::{Engine, Request, Terms};
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Record, Typing, Value, encoded_bytes};
use crate::key::{Fingerprint, Key};
use crate::log::Reservation;
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::{NoRoom, ReservationClass};
use crate::planted::{Bug, planted};
use crate::record::{Length, Liveness};
use crate::status::{Event, Refused, Status, Version, transition};

/// The right to perform one attempt, as the engine knows it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) claim: Claim,
    /// What the begin record says of the typed interface.
    pub(crate) typing: Option<Typing>,
    /// Room for the record that ends the attempt; none for a doubt.
    pub(crate) reservation: Reservation,
}

/// What a finished attempt leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish<'a> {
    /// With its result, or without one that could not be recorded.
    Completed(Value<'a>),
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
///
/// `{:?}` prints the length of the result and not what is in it.
#[derive(Clone, Copy, PartialEq, Eq)]
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

impl fmt::Debug for Next<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Next::Absent => out.write_str("Absent"),
            Next::InDoubt { fingerprint } => {
                out.debug_struct("InDoubt").field("fingerprint", fingerprint).finish()
            }
            Next::Completed { fingerprint, result } => out
                .debug_struct("Completed")
                .field("fingerprint", fingerprint)
                .field("result", &Length(result.len()))
                .finish(),
        }
    }
}

impl Next<'_> {
    fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Next::Absent => None,
            Next::InDoubt { fingerprint } | Next::Completed { fingerprint, .. } => Some(*fingerprint),
        }
    }
}

/// How a result that was found out came to be recorded.
#[derive(Debug)]
pub(crate) enum Applied {
    /// By this call.
    Recorded,
    /// The key is completed, and this stands.
    Completed(Found),
}

/// How a compare-and-set came out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Swap {
    Done(Version),
    Differs,
}

impl Engine {
    /// Ends the attempt of `version`, by its lease, by a doubt that was resolved, or late by a lease that nobody took
    /// over from. Returns the version of the record that ended it. Its room is `promise`, which is kept if this fails
    /// before the record is appended, or that of a finish.
    pub(crate) fn finish(
        &self,
        key: Key<'_>,
        version: Version,
        finish: Finish<'_>,
        terms: &Terms,
        reservation: &mut Reservation,
    ) -> Result<Version> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        let (event, kind, value) = match finish {
            Finish::Completed(value) => (Event::Complete, Kind::Completed, value),
            Finish::Released => (Event::Release, Kind::Released, Value::NONE),
        };
        self.check_result(key, &value)?;
        loop {
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            let view = self.view(key, hash, &flight, now_ms, Want::State)?;
            self.check_holds(key, view.found.as_ref(), version)?;
            let fenced = || Error::Fenced { key: key.to_owned(), version };
            let allowed = transition(view.status, event).is_ok();
            let Some(found) = view.found.as_ref().filter(|_| allowed) else { return Err(fenced()) };
            flight.note_disk();
            match self.room_to_finish(key, &value, reservation)? {
                Ok(reservation) => {
                    let facts = Facts::new(found.fingerprint, found.attempt, value);
                    let finished =
                        self.write_now(key, hash, kind, facts, terms, &flight, &view, reservation)?;
                    flight.set_claim(None);
                    // What began is ended in the open file, wherever its path leads. The caller is told by the handle.
                    let _ = self.path_check.look_if_due(now_ms);
                    return Ok(finished);
                }
                Err(no_room) => {
                    drop(flight);
                    self.make_room(no_room)?;
                }
            }
        }
    }

    /// Room for a record that ends something: what was set aside for it, if that is enough.
    fn room_to_finish(
        &self,
        key: Key<'_>,
        value: &Value<'_>,
        set_aside: &mut Reservation,
    ) -> Result<Result<Reservation, NoRoom>> {
        let cost = record_cost_bytes(encoded_bytes(key, value));
        if set_aside.bytes() >= cost {
            return Ok(Ok(set_aside.take()));
        }
        self.log.reserve(cost, ReservationClass::Finish)
    }

    /// Records the result that the attempt in doubt turned out to have: as its end, or, if the doubt has gone and
    /// left the key absent, as seen and done. Decided in one step, so that nothing can come between. If the key is
    /// completed, that stands.
    ///
    /// [`Error::Fenced`] if another attempt has the key now; then nothing is changed.
    pub(crate) fn record_applied(
        &self,
        key: Key<'_>,
        doubt: &Grant,
        request: Request,
        value: Value<'_>,
        terms: &Terms,
    ) -> Result<Applied> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        loop {
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            let view = self.view(key, hash, &flight, now_ms, Want::Result)?;
            let found = view.found.as_ref();
            let is_in_doubt_still = self.check_holds(key, found, doubt.version).is_ok();
            let event = if is_in_doubt_still { Event::Complete } else { Event::Record };
            match transition(view.status, event) {
                Ok(_) => {}
                Err(Refused::Completed) => {
                    drop(flight);
                    let Some(found) = view.found else { continue };
                    self.check_replay(key, request, &found, terms)?;
                    return Ok(Applied::Completed(found));
                }
                Err(_) if planted(Bug::AppliedOverwritesAnother) => {}
                Err(_) => {
                    if let Some(found) = found {
                        self.check_fingerprint(key, request, found, terms.durability)?;
                    }
                    return Err(Error::Fenced { key: key.to_owned(), version: doubt.version });
                }
            }
            // Only now: a result that cannot be recorded may be there already.
            self.check_result(key, &value)?;
            flight.note_disk();
            let begun = found.map_or(0, |found| found.attempt);
            match self.room_to_finish(key, &value, &mut self.log.no_reservation())? {
                Ok(reservation) => {
                    let attempt = begun.max(doubt.attempt);
                    let stored = found.filter(|_| is_in_doubt_still).map(|found| found.fingerprint);
                    let facts = Facts::new(stored.unwrap_or(request.fingerprint), attempt, value);
                    let kind = Kind::Completed;
                    self.write_now(key, hash, kind, facts, terms, &flight, &view, reservation)?;
                    flight.set_claim(None);
                    let _ = self.path_check.look_if_due(now_ms);
                    return Ok(Applied::Recorded);
                }
                Err(no_room) => {
                    drop(flight);
                    self.make_room(no_room)?;
                }
            }
        }
    }

    /// Seen and done, in one record.
    pub(crate) fn record(
        &self,
        key: Key<'_>,
        request: Request,
        value: Value<'_>,
        terms: &Terms,
    ) -> Result<std::result::Result<Version, Found>> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        self.check_result(key, &value)?;
        loop {
            let inside = self.admission.enter()?;
            let Some(flight) = self.flights.enter_within(hash, terms.patience) else {
                drop(inside);
                let seen = self.look(key, hash, self.clock.now_ms(), Want::Result)?;
                return match self.answer_of_look(key, request, terms, seen)? {
                    Ok(found) => Ok(Err(found)),
                    Err(attempt) => Err(Error::InProgress { key: key.to_owned(), attempt }),
                };
            };
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            let view = self.view(key, hash, &flight, now_ms, Want::Result)?;
            let View { claim, status, .. } = view;
            let found = view.found.as_ref();
            if let Some(found) = found.filter(|_| status != Status::Absent) {
                if !request.is(found.fingerprint) {
                    // It may have to be synced first.
                    flight.note_disk();
                }
                self.check_fingerprint(key, request, found, terms.durability)?;
            }
            let attempt = found.map_or(0, |found| found.attempt);
            match (transition(status, Event::Record), found) {
                (Ok(_), _) => {}
                (Err(Refused::Completed), Some(_)) => {
                    drop(flight);
                    let Some(found) = view.found else { continue };
                    self.check_replay(key, request, &found, terms)?;
                    return Ok(Err(found));
                }
                (Err(Refused::InDoubt), Some(found)) => {
                    flight.note_disk();
                    self.ensure_durable(found, terms.durability)?;
                    return Err(left_in_doubt(key, found));
                }
                (Err(_), _) => {
                    if self.wait_for_other(key, inside, flight, claim, terms.patience, now_ms)? {
                        continue;
                    }
                    return Err(Error::InProgress { key: key.to_owned(), attempt });
                }
            }
            flight.note_disk();
            let cost = record_cost_bytes(encoded_bytes(key, &value));
            match self.log.reserve(cost, ReservationClass::Begin)? {
                Ok(reservation) => {
                    let facts = Facts::new(request.fingerprint, attempt.saturating_add(1), value);
                    let kind = Kind::Completed;
                    let version =
                        self.write_now(key, hash, kind, facts, terms, &flight, &view, reservation)?;
                    // Writing it may have been what led to a look at the path.
                    self.path_check.check()?;
                    return Ok(Ok(version));
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
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        loop {
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            let view = self.view_though_unreadable(key, hash, &flight, now_ms, Want::State)?;
            let attempt = view.found.as_ref().map_or(0, |found| found.attempt);
            match transition(view.status, Event::Forget) {
                Ok(_) => {}
                Err(Refused::InProgress) => return Err(Error::InProgress { key: key.to_owned(), attempt }),
                Err(_) => return Ok(false),
            }
            flight.note_disk();
            let cost = record_cost_bytes(encoded_bytes(key, &Value::NONE));
            match self.log.reserve(cost, ReservationClass::Forget)? {
                Ok(reservation) => {
                    let facts = Facts::new(Fingerprint::NONE, attempt, Value::NONE);
                    let kind = Kind::Forgotten;
                    self.write_now(key, hash, kind, facts, terms, &flight, &view, reservation)?;
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
        typing: Option<Typing>,
        terms: &Terms,
    ) -> Result<Swap> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        let value = match next {
            Next::Completed { result, .. } => Value { typing, ..Value::bytes(result) },
            Next::Absent | Next::InDoubt { .. } => Value::NONE,
        };
        self.check_result(key, &value)?;
        loop {
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            let view = self.view_though_unreadable(key, hash, &flight, now_ms, Want::State)?;
            let (status, found) = (view.status, view.found.as_ref());
            flight.note_disk();
            if let Some(found) = found {
                self.ensure_durable(found, terms.durability)?;
            }
            let matches = match expected {
                Expected::Absent => status == Status::Absent,
                Expected::Present { status: wanted, version } => {
                    let last = found.map(|found| found.version);
                    let lost = view.unreadable.as_ref().map(|lost| lost.version);
                    status == wanted && last.or(lost) == Some(version)
                }
            };
            if let Some(lost) = &view.unreadable
                && !(matches && next == Next::Absent)
            {
                return Err(lost.error.clone());
            }
            if !matches {
                return Ok(Swap::Differs);
            }
            let unfinished = matches!(status, Status::InProgress | Status::InDoubt);
            if let (Some(fingerprint), Some(found)) = (next.fingerprint(), found.filter(|_| unfinished)) {
                self.check_fingerprint(key, fingerprint.into(), found, terms.durability)?;
            }
            let Ok(change) = swap_of(status, &next) else {
                return Err(Error::Conflict { key: key.to_owned() });
            };
            let Some(kind) = change else {
                // Absent where absent was expected: there is nothing to write down.
                return Ok(Swap::Done(Version::from_u64(0)));
            };
            let cost = record_cost_bytes(encoded_bytes(key, &value));
            let class = match next {
                Next::Absent | Next::Completed { .. } if unfinished => ReservationClass::Finish,
                Next::Absent => ReservationClass::Forget,
                Next::Completed { .. } | Next::InDoubt { .. } => ReservationClass::Begin,
            };
            match self.log.reserve(cost, class)? {
                Ok(reservation) => {
                    let kept = found.filter(|_| unfinished).map(|found| found.fingerprint);
                    let fingerprint = next.fingerprint().or(kept).unwrap_or(Fingerprint::NONE);
                    let begun = found.map_or(0, |found| found.attempt);
                    let attempt = if status == Status::Absent { begun.saturating_add(1) } else { begun };
                    let facts = Facts::new(fingerprint, attempt, value);
                    let version =
                        self.write_now(key, hash, kind, facts, terms, &flight, &view, reservation)?;
                    // Whoever held a lease finds out by the version; whoever waited looks again.
                    flight.set_claim(None);
                    if matches!(next, Next::InDoubt { .. }) && status != Status::InDoubt {
                        crate::events::in_doubt(key, attempt);
                    }
                    return Ok(Swap::Done(version));
                }
                Err(reason) => {
                    drop(flight);
                    self.make_room(reason)?;
                }
            }
        }
    }

    /// Appends the record of a decision: the one place in which a change becomes a record.
    #[expect(clippy::too_many_arguments, reason = "the parts of one record, each known to the caller only")]
    pub(super) fn write_now(
        &self,
        key: Key<'_>,
        hash: u128,
        kind: Kind,
        facts: Facts<'_>,
        terms: &Terms,
        flight: &FlightGuard<'_>,
        view: &View,
        reservation: Reservation,
    ) -> Result<Version> {
        let now_ms = view.now_ms;
        let version = self.next_version()?;
        let (key_expires_ms, result_expires_ms) = match kind {
            Kind::Completed | Kind::Released => terms.retention.expiries(now_ms),
            Kind::Begun | Kind::Forgotten | Kind::Unreadable | Kind::Ignorable => (NEVER_MS, NEVER_MS),
        };
        // A life begins where nothing was left of the key, or only the count of attempts that did not happen.
        let origin = match &view.found {
            Some(found) if found.liveness == Liveness::Begun => found.origin,
            _ => version,
        };
        let until = match kind {
            Kind::Begun if terms.begin_unsynced => Until::Written,
            _ => terms.durability.until(),
        };
        let Facts { fingerprint, attempt, value, lease_deadline_ms } = facts;
        if let Some(deadline_ms) = lease_deadline_ms {
            flight.prepare_claim(Claim::Lease { version, attempt, deadline_ms });
        }
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
            value,
        };
        self.commit(flight, hash, &record, reservation, until, view.entry)?;
        Ok(version)
    }
}

/// What a record says beside its kind and its times.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
    pub(super) value: Value<'a>,
    /// Until when the lease goes that comes with the record; None: there is none.
    pub(super) lease_deadline_ms: Option<u64>,
}

impl Facts<'_> {
    fn new(fingerprint: Fingerprint, attempt: u32, value: Value<'_>) -> Facts<'_> {
        Facts { fingerprint, attempt, value, lease_deadline_ms: None }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_a_place_is_printed_without_its_result() {
        let fingerprint = Fingerprint::NONE;
        let printed = format!("{:?}", Next::Completed { fingerprint, result: b"secret" });
        assert!(printed.starts_with("Completed {") && printed.ends_with("result: <6 bytes> }"), "{printed}");
        assert!(format!("{:?}", Next::InDoubt { fingerprint }).starts_with("InDoubt { fingerprint: "));
        assert_eq!(format!("{:?}", Next::Absent), "Absent");
    }
}
