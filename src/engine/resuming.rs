//! What the typed interface asks about an operation that has steps or an input. Changes nothing.

use super::assembly::Engine;
use super::records::{Found, HashedKey, Want};
use super::step_reading::{StepInfo, StepOf};
use crate::error::Result;
use crate::key::Key;
use crate::record::Liveness;
use crate::status::Version;
use crate::step_set::StepState;

/// An unfinished operation, for a caller that has only its key.
#[derive(Debug)]
pub(crate) struct Resumable {
    /// The record of the last attempt.
    pub(crate) begun: Found,
    pub(crate) input: Option<Found>,
}

impl<'a> StepOf<'a> {
    /// The step that `key` addresses. `hash` is that of the operation's key. The key keeps the name of the step, so that
    /// errors have it, too.
    pub(crate) fn new(key: Key<'a>, hash: u128) -> StepOf<'a> {
        StepOf { parent: HashedKey { key, hash }, name: key.step_name().unwrap_or_default() }
    }
}

impl Engine {
    /// Checks a key that addresses a step, and hashes the key of its operation.
    pub(crate) fn step<'a>(&self, key: Key<'a>) -> Result<StepOf<'a>> {
        key.check_lengths()?;
        Ok(StepOf::new(key, self.admit(key.without_step())?.hash))
    }

    /// Whether the attempt of `version` is the last one of an unfinished operation whose steps leave nothing in doubt. For
    /// the caller whose attempt has just ended.
    pub(crate) fn is_stopped(&self, key: HashedKey<'_>, version: Version) -> bool {
        let operation = self.records.unfinished().get(key.hash);
        operation.is_some_and(|operation| operation.version == version && operation.counts.are_settled())
            && !self.viewer.may_have_forgotten_attempt(version, self.clock.now_ms())
    }

    /// The names of the steps that are done and for which the attempt of `version` has not asked. Empty if another attempt
    /// has begun. Reads the records of these steps only.
    pub(crate) fn unvisited_steps(&self, key: HashedKey<'_>, version: Version) -> Vec<Vec<u8>> {
        let is_last = |key: HashedKey<'_>| {
            self.records.unfinished().get(key.hash).is_some_and(|operation| operation.version == version)
        };
        if !is_last(key) {
            return Vec::new();
        }
        let steps = self.records.unfinished().steps(key.hash).into_iter();
        let unvisited: Vec<_> =
            steps.filter(|(_, step)| step.state == StepState::Completed && !step.is_visited).collect();
        if unvisited.is_empty() || self.admit_again(key).is_err() {
            return Vec::new();
        }
        // The flight keeps reclaiming from moving the records.
        let flight = self.flights.enter(key.hash);
        let steps = self.read_steps(key.hash, flight.claim()).into_iter().flatten();
        let is_unvisited = |step: &StepInfo| unvisited.iter().any(|(_, found)| found.version == step.version);
        steps.filter(is_unvisited).map(|step| step.name).collect()
    }

    /// Reads the last attempt of an unfinished operation together with its input. None if the operation has ended, or never
    /// began.
    pub(crate) fn resumable(&self, key: Key<'_>) -> Result<Option<Resumable>> {
        let _events = crate::events::hold_back();
        let key = self.admit(key)?;
        let _inside = self.admission.enter()?;
        // Both are read under the flight, so that they belong together.
        let flight = self.flights.enter(key.hash);
        let view = self.viewer.view(key, &flight, self.clock.now_ms(), (Want::State, None))?;
        if let Some(lost) = view.unreadable {
            return Err(lost.error);
        }
        let Some(begun) = view.found.filter(|found| found.liveness == Liveness::Begun) else {
            return Ok(None);
        };
        let input = self.known_step(StepOf { parent: key, name: b"" })?;
        let input = input.map(|(hash, known)| self.find_step((hash, &known))).transpose()?;
        flight.note_disk();
        self.viewer.ensure_durable(input.as_ref().unwrap_or(&begun), self.settings.terms.durability)?;
        Ok(Some(Resumable { begun, input }))
    }
}
