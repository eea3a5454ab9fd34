//! Ends attempts at steps, gives steps up, and sets their state for an operator.

use super::{StepDecision, StepEnd, StepGrant, StepWrite};
use crate::engine::assembly::Engine;
use crate::engine::call::PathRule;
use crate::engine::change::check_result;
use crate::engine::step_reading::StepOf;
use crate::engine::step_record::StepRecord;
use crate::engine::terms::{Expected, Next, Terms};
use crate::error::{Error, Result};
use crate::format::record::{Kind, Typing, Value, encoded_bytes};
use crate::key::Key;
use crate::log::commit::{Until, record_cost_bytes};
use crate::status::{Event, Status, Version, transition};
use crate::step_set::{Step, StepState};

impl Engine {
    /// Ends the attempt at a step that `grant` is for. Succeeds as long as the operation is unfinished and no other attempt
    /// at the step has begun. Returns the version of the record.
    ///
    /// If this fails before the record is appended, the grant still holds the space that it reserved.
    pub(crate) fn end_step(
        &self,
        step: StepOf<'_>,
        grant: &mut StepGrant,
        end: StepEnd<'_>,
        terms: &Terms,
    ) -> Result<Version> {
        let _events = crate::events::hold_back();
        let StepOf { parent, name } = step;
        let (event, kind, value) = match end {
            StepEnd::Completed(value) => (Event::Complete, Kind::StepCompleted, value),
            StepEnd::Released => (Event::Release, Kind::StepReleased, Value::NONE),
        };
        check_result(parent.key, &value, terms)?;
        let StepGrant { hash, version, attempt, fingerprint, origin, ref mut reservation, .. } = *grant;
        let outcome = self.change_step(parent, PathRule::EndsAttempt, Some(reservation), |view| {
            let known = view
                .operation
                .filter(|operation| operation.origin == origin)
                .and_then(|_| self.records.unfinished().step(parent.hash, hash))
                .filter(|known| known.version == version && known.state.is_open());
            let Some(known) = known else { return Err(self.fenced(parent.key, version)) };
            let status = self.step_status(parent.hash, &known, view.flight.claim());
            if transition(status, event).is_err() {
                return Err(self.fenced(parent.key, version));
            }
            let record = StepRecord {
                kind,
                parent: parent.hash,
                origin,
                name,
                fingerprint,
                attempt,
                time_ms: view.now_ms,
                value,
                claim: 0,
                is_visited: known.is_visited,
            };
            Ok(StepDecision::<()>::Write(StepWrite::ending(record, terms.durability.until())))
        })?;
        match outcome {
            Ok((version, ..)) => Ok(version),
            Err(()) => Err(self.fenced(parent.key, version)),
        }
    }

    /// Records that the doubt about a step does not keep its operation from being completed. `attempt` is the version of the
    /// attempt at the operation that gives it up. Returns false if the step is not in progress or in doubt.
    ///
    /// The record is a copy of the step's begun record, which keeps its version. So a late result of the step is still kept.
    /// It is not synced: the completion that relies on it follows it in the log.
    pub(crate) fn give_up_step(&self, step: StepOf<'_>, attempt: Version) -> Result<bool> {
        let _events = crate::events::hold_back();
        let StepOf { parent, name } = step;
        Key::new(name).check()?;
        let outcome = self.change_step(parent, PathRule::EndsAttempt, None, |view| {
            let operation = view.owned_by(attempt).ok_or_else(|| self.fenced(parent.key, attempt))?;
            match self.known_step(step)?.filter(|(_, known)| known.state.is_open()) {
                None => Ok(StepDecision::Return(false)),
                Some((_, known)) if known.state == StepState::GivenUp => Ok(StepDecision::Return(true)),
                Some((hash, known)) => {
                    let value = |typing| Value { given_up: true, ..Value::begun(typing) };
                    let (record, _) = self.copy_of((step, hash), &known, operation.origin, value)?;
                    let write = StepWrite::ending(record, Until::Written);
                    Ok(StepDecision::Write(StepWrite { copied: Some(known.version), ..write }))
                }
            }
        })?;
        Ok(match outcome {
            Ok(_) => true,
            Err(was_given_up) => was_given_up,
        })
    }

    /// Notes why the attempt at a step that `grant` is for ends in doubt, as [`Engine::note`] does for an operation. Writes
    /// nothing if the space of the grant is not enough.
    pub(crate) fn note_step(&self, step: StepOf<'_>, grant: &mut StepGrant, note: &str) -> Result<()> {
        let _events = crate::events::hold_back();
        let parent = step.parent;
        let StepGrant { hash, version, origin, ref mut reservation, .. } = *grant;
        let space_bytes = reservation.bytes();
        let rest = self.change_step(parent, PathRule::EndsAttempt, Some(reservation), |view| {
            let known = view
                .operation
                .filter(|operation| operation.origin == origin)
                .and_then(|_| self.records.unfinished().step(parent.hash, hash))
                .filter(|known| known.version == version && known.state == StepState::Begun);
            let Some(known) = known else { return Ok(StepDecision::Return(())) };
            let value = |typing| Value { result: Some(note.as_bytes()), ..Value::begun(typing) };
            let (record, length_bytes) = self.copy_of((step, hash), &known, origin, value)?;
            if record_cost_bytes(length_bytes) > space_bytes {
                return Ok(StepDecision::Return(()));
            }
            let write = StepWrite::ending(record, Until::Written);
            Ok(StepDecision::Write(StepWrite { copied: Some(known.version), ..write }))
        })?;
        if let Ok((_, _, rest)) = rest {
            grant.reservation = rest;
        }
        Ok(())
    }

    /// A copy of the begun record of a step with another value, and its length.
    fn copy_of<'a>(
        &self,
        (StepOf { parent, name }, hash): (StepOf<'a>, u128),
        known: &Step,
        origin: Version,
        value: impl FnOnce(Option<Typing>) -> Value<'a>,
    ) -> Result<(StepRecord<'a>, u64)> {
        let found = self.find_step((hash, known))?;
        let record = StepRecord {
            kind: Kind::StepBegun,
            parent: parent.hash,
            origin,
            name,
            fingerprint: found.fingerprint,
            attempt: found.attempt,
            time_ms: found.time_ms,
            value: value(found.typing),
            claim: known.claim,
            is_visited: known.is_visited,
        };
        let length_bytes = encoded_bytes(Key::new(name), &record.value);
        Ok((record, length_bytes))
    }

    /// Ends the claim of a handle on a step that is being dropped. If its attempt has not ended, the step is in doubt from
    /// now on. Changes memory only and cannot fail, because `drop` calls it.
    pub(crate) fn abandon_step(&self, parent: u128, grant: &StepGrant) {
        self.records.unfinished().end_step_claim(parent, grant.hash, (grant.version, grant.claim));
    }

    /// Sets the state of a step to `next` if it still matches `expected`. For operators, to resolve a doubt.
    /// Returns the version of the record, or None if the state differs.
    pub(crate) fn set_step(
        &self,
        step: StepOf<'_>,
        expected: Expected,
        next: Next<'_>,
        typing: Option<Typing>,
        terms: &Terms,
    ) -> Result<Option<Version>> {
        let _events = crate::events::hold_back();
        let StepOf { parent, name } = step;
        Key::new(name).check()?;
        let (kind, event, value) = match next {
            Next::Absent => (Kind::StepReleased, Event::Release, Value::NONE),
            Next::InDoubt { .. } => (Kind::StepBegun, Event::Doubt, Value::NONE),
            Next::Completed { result, .. } => {
                (Kind::StepCompleted, Event::Complete, Value { typing, ..Value::bytes(result) })
            }
        };
        check_result(parent.key, &value, terms)?;
        let conflict = || Error::Conflict { key: parent.key.to_owned() };
        let outcome = self.change_step(parent, PathRule::RemovesState, None, |view| {
            // A step can be there only while its operation is unfinished.
            let Some(operation) = view.operation else { return Ok(StepDecision::Return(())) };
            let known = self.known_step(step)?;
            let status = match known {
                Some((_, known)) => self.step_status(parent.hash, &known, view.flight.claim()),
                None if self.may_have_forgotten_step(None) => Status::InDoubt,
                None => Status::Absent,
            };
            let matches = match expected {
                Expected::Absent => status == Status::Absent,
                Expected::Present { status: wanted, version } => {
                    status == wanted && known.is_some_and(|(_, known)| known.version == version)
                }
            };
            if !matches {
                return Ok(StepDecision::Return(()));
            }
            // A step that is not there is for an attempt to begin, and one that is done stays done.
            let Some((hash, known)) = known.filter(|_| transition(status, event).is_ok()) else {
                return Err(conflict());
            };
            let found = self.find_step((hash, &known))?;
            view.flight.note_disk();
            self.viewer.ensure_durable(&found, terms.durability)?;
            if next.fingerprint().is_some_and(|fingerprint| fingerprint != found.fingerprint) {
                return Err(self.viewer.mismatch(parent.key));
            }
            let record = StepRecord {
                kind,
                parent: parent.hash,
                origin: operation.origin,
                name,
                fingerprint: found.fingerprint,
                attempt: found.attempt,
                time_ms: view.now_ms,
                value,
                claim: 0,
                // The attempt that asked for the step may ask again: what it was told holds no more.
                is_visited: false,
            };
            Ok(StepDecision::Write(StepWrite::ending(record, terms.durability.until())))
        })?;
        Ok(outcome.ok().map(|(version, ..)| version))
    }
}
