//! Beginning: who acquires, who waits, who is told of a doubt; and the end of a claim.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::change::{Facts, Grant};
use super::lifecycle::Admitted;
use super::view::{Found, Seen, View, Want, left_in_doubt};
use super::{Engine, Request, Terms};
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::record::{Kind, Value, encoded_bytes, most_encoded_bytes};
use crate::key::{Fingerprint, Key};
use crate::log::commit::record_cost_bytes;
use crate::log::reservations::{NoRoom, ReservationClass};
use crate::planted::{Bug, planted};
use crate::status::{Event, Refused, Status, Version, transition};
use crate::sync::Patience;
use crate::sync::atomic::Ordering;

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

impl Began {
    fn of_look(answer: std::result::Result<Found, u32>) -> Began {
        answer.map_or_else(|attempt| Began::InProgress { attempt }, Began::Completed)
    }
}

impl Engine {
    /// Begins an attempt, or says why not.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: Key<'_>,
        request: Request,
        terms: &Terms,
        takes_doubt: bool,
    ) -> Result<Began> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        loop {
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            // Most calls of a program that retries are for what is done: answered without entering the flight.
            // So are those that do not wait for an attempt in progress.
            let seen = self.look(key, hash, now_ms, Want::Result)?;
            let is_answered = seen.status == Status::Completed
                || terms.patience == Patience::None && seen.attempt_at_work().is_some();
            if is_answered {
                return self.answer_of_look(key, request, terms, seen).map(Began::of_look);
            }
            let inside = self.admission.enter()?;
            let Some(flight) = self.flights.enter_within(hash, terms.patience) else {
                drop(inside);
                let seen = self.look(key, hash, self.clock.now_ms(), Want::Result)?;
                return self.answer_of_look(key, request, terms, seen).map(Began::of_look);
            };
            // Once more: entering may have waited for somebody's write, and a lease begins when it is given.
            let now_ms = self.clock.now_ms();
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
            match transition(status, Event::Begin) {
                Err(Refused::Completed) => {
                    drop(flight);
                    let Some(found) = view.found else { continue };
                    self.check_replay(key, request, &found, terms)?;
                    return Ok(Began::Completed(found));
                }
                Err(_) => {
                    if !self.wait_for_other(key, inside, flight, claim, terms.patience, now_ms)? {
                        return Ok(Began::InProgress { attempt });
                    }
                    continue;
                }
                Ok(_) => {}
            }
            // Somebody is finding out: to the others that is an attempt in progress.
            if status == Status::InDoubt
                && let Some(Claim::Doubt { attempt, .. }) = claim
            {
                if !self.wait_for_other(key, inside, flight, claim, terms.patience, now_ms)? {
                    return Ok(Began::InProgress { attempt });
                }
                continue;
            }
            if status == Status::InDoubt
                && let Some(found) = found
            {
                flight.note_disk();
                self.ensure_durable(found, terms.durability)?;
                if !takes_doubt {
                    return Err(left_in_doubt(key, found));
                }
            }
            // Given without any room: a full store must still let a caller find out what happened.
            if let Some(found) =
                found.filter(|_| status == Status::InDoubt && !planted(Bug::DoubtNeedsReservation))
            {
                match claim {
                    // Its deadline passed, and this call ends it.
                    Some(Claim::Lease { version, .. }) if version == found.version => {
                        crate::events::in_doubt(key, attempt);
                    }
                    _ => crate::events::found_in_doubt(key, attempt),
                }
                let number = self.doubts.fetch_add(1, Ordering::Relaxed);
                let claim = Claim::Doubt { version: found.version, attempt, number };
                flight.set_claim(Some(claim));
                let reservation = self.log.no_reservation();
                let (version, typing) = (found.version, found.typing);
                return Ok(Began::InDoubt(Grant { version, attempt, claim, typing, reservation }));
            }
            flight.note_disk();
            match self.begin_attempt(key, hash, request.fingerprint, terms, &flight, &view)? {
                Ok(grant) => return Ok(Began::Acquired(grant)),
                Err(no_room) => {
                    drop(flight);
                    self.make_room(no_room)?;
                }
            }
        }
    }

    /// What an attempt may need to be finished: the largest result, and the key.
    fn finish_cost(&self, key: Key<'_>) -> u64 {
        record_cost_bytes(most_encoded_bytes(key, self.settings.max_result_bytes))
    }

    /// Begins the next attempt, if there is room for its record and for the one that will end it: appends the begin record
    /// and leaves a lease on the flight.
    fn begin_attempt(
        &self,
        key: Key<'_>,
        hash: u128,
        fingerprint: Fingerprint,
        terms: &Terms,
        flight: &FlightGuard<'_>,
        view: &View,
    ) -> Result<Result<Grant, NoRoom>> {
        let value = Value::begun(terms.typing);
        let begin_cost = record_cost_bytes(encoded_bytes(key, &value));
        let mut reservation =
            match self.log.reserve(begin_cost + self.finish_cost(key), ReservationClass::Begin)? {
                Ok(reservation) => reservation,
                Err(no_room) => return Ok(Err(no_room)),
            };
        let attempt = view.found.as_ref().map_or(0, |found| found.attempt).saturating_add(1);
        let deadline_ms = terms.lease_ms.map_or(u64::MAX, |lease_ms| view.now_ms.saturating_add(lease_ms));
        let facts = Facts { fingerprint, attempt, value, lease_deadline_ms: Some(deadline_ms) };
        let for_begin = reservation.split(begin_cost);
        let version = self.write_now(key, hash, Kind::Begun, facts, terms, flight, view, for_begin)?;
        // Writing the record may have been what led to a look at the path. No attempt may be given out then.
        self.path_check.check().inspect_err(|_| flight.set_claim(None))?;
        let claim = Claim::Lease { version, attempt, deadline_ms };
        Ok(Ok(Grant { version, attempt, claim, typing: terms.typing, reservation }))
    }

    /// The doubt about `version` is resolved in favour of another attempt: the act did not happen, or may happen again.
    /// Needs the room of a begin; without it the doubt stays.
    pub(crate) fn begin_again(&self, key: Key<'_>, version: Version, terms: &Terms) -> Result<Grant> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        loop {
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(hash);
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            let view = self.view(key, hash, &flight, now_ms, Want::State)?;
            self.check_holds(key, view.found.as_ref(), version)?;
            let fingerprint = view.found.as_ref().map_or(Fingerprint::NONE, |found| found.fingerprint);
            flight.note_disk();
            match self.begin_attempt(key, hash, fingerprint, terms, &flight, &view)? {
                Ok(grant) => return Ok(grant),
                Err(no_room) => {
                    drop(flight);
                    self.make_room(no_room)?;
                }
            }
        }
    }

    /// The holder of a grant is gone. If its attempt was not finished, the operation is in doubt from now on. Touches
    /// memory only and cannot fail, because it happens in drops.
    pub(crate) fn abandon(&self, key: Key<'_>, claim: Claim) {
        let _events = crate::events::hold_back();
        let has_ended = self.flights.end_claim(self.log.hasher().key(key), claim);
        if has_ended && let Claim::Lease { attempt, .. } = claim {
            crate::events::in_doubt(key, attempt);
        }
    }

    /// The answer of a look to a caller who does not wait to enter the flight, or no longer: the completed operation, or the
    /// attempt that is at work. Where another thread changes the key, that is the one before its change.
    pub(super) fn answer_of_look(
        &self,
        key: Key<'_>,
        request: Request,
        terms: &Terms,
        seen: Seen,
    ) -> Result<std::result::Result<Found, u32>> {
        let attempt = seen.attempt_at_work();
        let Some(found) = seen.found else { return Ok(Err(1)) };
        match seen.status {
            Status::Completed => {
                self.check_replay(key, request, &found, terms)?;
                Ok(Ok(found))
            }
            Status::Absent => Ok(Err(found.attempt.saturating_add(1))),
            Status::InProgress | Status::InDoubt => {
                self.check_fingerprint(key, request, &found, terms.durability)?;
                Ok(Err(attempt.unwrap_or(found.attempt)))
            }
        }
    }

    /// Waits until another caller's claim may have ended, outside of the store: the call is admitted again as a new one.
    /// False if the caller does not wait any longer.
    pub(super) fn wait_for_other(
        &self,
        key: Key<'_>,
        inside: Admitted<'_>,
        flight: FlightGuard<'_>,
        claim: Option<Claim>,
        patience: Patience,
        now_ms: u64,
    ) -> Result<bool> {
        if patience != Patience::None && claim.is_some_and(|claim| self.is_own(flight.hash(), claim)) {
            return Err(Error::WouldWaitForItself { key: key.to_owned() });
        }
        if patience.is_over() {
            return Ok(false);
        }
        let until = if let Patience::Until(until) = patience { Some(until) } else { None };
        // A lease with a deadline can be taken over when that has passed, and only a clock that is moved by hand would wake
        // this thread for it.
        let deadline = match claim {
            Some(Claim::Lease { deadline_ms, .. }) if deadline_ms < u64::MAX && !self.clock.is_manual() => {
                Instant::now().checked_add(Duration::from_millis(deadline_ms.saturating_sub(now_ms).max(1)))
            }
            _ => None,
        };
        let first = match (until, deadline) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        };
        drop(inside);
        flight.wait_for_change(claim, first);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Finish;
    use crate::format::record::Record;
    use crate::log::commit::Until;
    use crate::{ManualClock, Options};

    #[test]
    fn room_that_was_promised_to_a_record_is_kept_until_the_record_is_written() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let key = Key::new("k");
        let record = Record {
            kind: Kind::Forgotten,
            key,
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 1,
            key_expires_ms: 2,
            result_expires_ms: 2,
            value: Value::NONE,
        };
        let reservation = engine.log.reserve(1_000, ReservationClass::Begin).unwrap().unwrap();
        let ticket = engine.log.append(&record, 1, reservation, Until::Synced).unwrap();
        assert_eq!(engine.log.reserved_bytes(), 1_000, "others may not have it while the record gathers");
        engine.log.wait(&ticket).unwrap();
        assert_eq!(engine.log.reserved_bytes(), 0);
    }

    #[test]
    fn a_lease_begins_when_it_is_given_and_not_when_it_was_asked_for() {
        let clock = ManualClock::new(1_700_000_000_000);
        let engine = Arc::new(Options::new().manual_clock(clock.clone()).open_nowhere().unwrap());
        let key = Key::new("k");
        let hash = engine.log.hasher().key(key);
        let terms = Terms { lease_ms: Some(100), ..engine.settings().terms };
        let somebody = engine.flights.enter(hash);
        let began = std::thread::scope(|scope| {
            let beginning =
                scope.spawn(|| engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap());
            while engine.flights.waiting(hash) == 0 {
                std::thread::yield_now();
            }
            clock.advance(Duration::from_millis(150));
            drop(somebody);
            beginning.join().unwrap()
        });
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        let Claim::Lease { deadline_ms, .. } = grant.claim else { panic!("{:?}", grant.claim) };
        assert_eq!(deadline_ms, 1_700_000_000_250);
        let second = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(second, Began::InProgress { .. }), "{second:?}");
    }

    fn began_in_doubt(engine: &Arc<Engine>, key: Key<'_>) -> Grant {
        let terms = engine.settings().terms;
        let first = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::Acquired(grant) = first else { panic!("{first:?}") };
        engine.abandon(key, grant.claim);
        let second = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::InDoubt(grant) = second else { panic!("{second:?}") };
        grant
    }

    #[test]
    fn a_begin_that_waits_for_a_doubt_gets_what_the_doubt_turned_out_to_be() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let key = Key::new("k");
        let hash = engine.log.hasher().key(key);
        let mut doubt = began_in_doubt(&engine, key);
        let terms = Terms { patience: Patience::Endless, ..engine.settings().terms };
        let began = std::thread::scope(|scope| {
            let beginning =
                scope.spawn(|| engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap());
            while engine.flights.waiting(hash) == 0 && !beginning.is_finished() {
                std::thread::yield_now();
            }
            let finish = Finish::Completed(Value::bytes(b"r"));
            engine.finish(key, doubt.version, finish, &terms, &mut doubt.reservation).unwrap();
            beginning.join().unwrap()
        });
        let Began::Completed(found) = began else { panic!("{began:?}") };
        assert_eq!(found.attempt, 1);
    }

    /// The first attempt leaks, so only the deadline ends its lease, and no thread wakes the second.
    #[test]
    fn a_begin_that_waits_for_a_lease_takes_over_when_the_deadline_has_passed() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = Terms { lease_ms: Some(50), patience: Patience::Endless, ..engine.settings().terms };
        let first = engine.begin(Key::new("k"), Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(first, Began::Acquired(_)), "{first:?}");
        let second = engine.begin(Key::new("k"), Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(second, Began::InDoubt(Grant { attempt: 1, .. })), "{second:?}");
    }

    /// The flight is held by this very thread: to wait for it would be to wait for ever.
    #[test]
    fn what_is_done_or_at_work_is_answered_without_entering_the_flight() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = engine.settings().terms;
        let done = Key::new("done");
        engine.record(done, Fingerprint::NONE.into(), Value::bytes(b"r"), &terms).unwrap().unwrap();
        let flight = engine.flights.enter(engine.log.hasher().key(done));
        let patient = Terms { patience: Patience::Endless, ..terms };
        let began = engine.begin(done, Fingerprint::NONE.into(), &patient, true).unwrap();
        assert!(matches!(began, Began::Completed(_)), "{began:?}");
        drop(flight);

        let at_work = Key::new("at work");
        let began = engine.begin(at_work, Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(began, Began::Acquired(_)), "{began:?}");
        let flight = engine.flights.enter(engine.log.hasher().key(at_work));
        let impatient = Terms { patience: Patience::None, ..terms };
        let began = engine.begin(at_work, Fingerprint::NONE.into(), &impatient, true).unwrap();
        assert!(matches!(began, Began::InProgress { attempt: 1 }), "{began:?}");
        drop(flight);
    }
}
