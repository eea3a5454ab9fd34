//! Reads the steps of an unfinished operation. Changes nothing.
//!
//! A step is read under the flight of its operation's key (the per-key lock), which keeps its record in its place: reclaiming
//! moves a step only under that flight. So these calls may wait for a thread that is changing the operation. They are for
//! operators and for an attempt that lists its own steps; no call of another program's thread waits for them.

use super::assembly::Engine;
use super::records::{Found, HashedKey, Want, found_at};
use super::terms::Durability;
use super::unfinished::OperationState;
use crate::error::Result;
use crate::flights::{Claim, FlightGuard};
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Record};
use crate::key::Key;
use crate::planted::{Bug, planted};
use crate::record::Liveness;
use crate::status::{Status, Version};
use crate::step_set::{Step, StepState};

/// A step as a caller names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepOf<'a> {
    /// The key of the operation.
    pub(crate) parent: HashedKey<'a>,
    /// The name of the step.
    pub(crate) name: &'a [u8],
}

/// A step of an unfinished operation, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepInfo {
    pub(crate) name: Vec<u8>,
    /// In progress, in doubt, completed or, if the step was released, absent.
    pub(crate) status: Status,
    /// Whether the step is in doubt and was given up.
    pub(crate) given_up: bool,
    /// Whether the last attempt at the operation has asked for the step.
    pub(crate) is_visited: bool,
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    /// When the step last changed, in store time.
    pub(crate) since_ms: u64,
    /// Why the last attempt ended in doubt.
    pub(crate) note: Option<String>,
}

/// The note in the record of a step.
fn note_of(record: &Record<'_>) -> Option<String> {
    let note = record.value.result.filter(|_| record.kind == Kind::StepBegun)?;
    Some(String::from_utf8_lossy(note).into_owned())
}

impl Engine {
    /// Enters the flight of an operation's key, for a call that only reads its steps.
    fn enter_to_read(&self, parent: HashedKey<'_>) -> Result<FlightGuard<'_>> {
        self.admit_again(parent)?;
        Ok(self.flights.enter(parent.hash))
    }

    /// Whether a caller runs the step, or resolves the doubt about it: its claim is of the present attempt at the operation,
    /// and that attempt has its lease.
    pub(super) fn is_claimed(&self, parent: u128, step: &Step, claim: Option<Claim>) -> bool {
        let Some(operation) = self.records.unfinished().get(parent) else { return false };
        let has_lease = matches!(claim, Some(Claim::Lease { version, .. }) if version == operation.version);
        has_lease && step.claim == operation.generation
    }

    /// Whether a step is in doubt, because the store may have forgotten what became of it. `known` is its last record.
    pub(super) fn may_have_forgotten_step(&self, known: Option<&Step>) -> bool {
        self.viewer.may_have_forgotten_step(known, self.clock.now_ms())
    }

    /// The status of a step. `claim` is the claim on the operation.
    pub(super) fn step_status(&self, parent: u128, step: &Step, claim: Option<Claim>) -> Status {
        match step.state {
            StepState::Completed | StepState::Input => Status::Completed,
            StepState::Released if self.may_have_forgotten_step(Some(step)) => Status::InDoubt,
            StepState::Released => Status::Absent,
            StepState::Begun | StepState::GivenUp if self.is_claimed(parent, step, claim) => {
                Status::InProgress
            }
            StepState::Begun | StepState::GivenUp => Status::InDoubt,
        }
    }

    /// Reads all steps of an operation, without its input. The caller holds the flight of its key.
    pub(super) fn read_steps(&self, parent: u128, claim: Option<Claim>) -> Vec<Result<StepInfo>> {
        let steps = self.records.unfinished().steps(parent);
        let steps = steps.into_iter().filter(|(_, step)| step.state != StepState::Input);
        let read = |(hash, step): (u128, Step)| {
            let status = self.step_status(parent, &step, claim);
            self.records.read_step((hash, &step), |_, record| StepInfo {
                name: record.key.name().to_vec(),
                status,
                given_up: step.state == StepState::GivenUp,
                is_visited: step.is_visited,
                version: step.version,
                attempt: record.attempt,
                since_ms: record.time_ms,
                note: note_of(record),
            })
        };
        steps.map(read).collect()
    }

    /// Lists the steps of the unfinished operation of a key, in the order in which they last changed. A step whose record
    /// cannot be read is an error of its own. Empty if the operation is not unfinished.
    pub(crate) fn list_steps(&self, parent: HashedKey<'_>) -> Result<Vec<Result<StepInfo>>> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let flight = self.enter_to_read(parent)?;
        Ok(self.read_steps(parent.hash, flight.claim()))
    }

    /// Returns the state of a step, and its last record with the result. The status is absent if the step did not begin, or
    /// was released, or its operation is not unfinished. If the store may have forgotten that the step began, the status is in
    /// doubt, and there is no record.
    pub(crate) fn get_step(&self, step: StepOf<'_>) -> Result<(Status, Option<Found>)> {
        let _events = crate::events::hold_back();
        Key::new(step.name).check()?;
        let _inside = self.admission.enter()?;
        let flight = self.enter_to_read(step.parent)?;
        let parent = step.parent.hash;
        let Some((hash, known)) = self.known_step(step)? else {
            // An operation that a copy does not know may have begun as well. One that is completed has no steps any more.
            let parent = HashedKey { key: step.parent.key.without_step(), ..step.parent };
            let is_in_doubt = self.may_have_forgotten_step(None)
                && self.viewer.look(parent, self.clock.now_ms(), Want::State)?.status != Status::Completed;
            return Ok((if is_in_doubt { Status::InDoubt } else { Status::Absent }, None));
        };
        let status = self.step_status(parent, &known, flight.claim());
        if status == Status::Absent {
            return Ok((status, None));
        }
        let found = self.find_durable_step((hash, &known), &flight, self.settings.terms.durability)?;
        Ok((status, Some(found)))
    }

    /// Returns the input that the unfinished operation of a key was begun with.
    pub(crate) fn input(&self, parent: HashedKey<'_>) -> Result<Option<Found>> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let flight = self.enter_to_read(parent)?;
        let Some((hash, known)) = self.known_step(StepOf { parent, name: b"" })? else { return Ok(None) };
        let found = self.find_durable_step((hash, &known), &flight, self.settings.terms.durability)?;
        Ok(Some(found))
    }

    /// What the table knows of an operation. Fails if its record could not be read when the store was opened, and cannot be
    /// read now: without its origin no step of it is found by name, and "absent" would be wrong.
    pub(super) fn operation_of(&self, parent: HashedKey<'_>) -> Result<Option<OperationState>> {
        let unfinished = self.records.unfinished();
        let operation = unfinished.get(parent.hash);
        if operation.is_none_or(|operation| operation.origin.as_u64() > 0) {
            return Ok(operation);
        }
        let operation = HashedKey { key: parent.key.without_step(), ..parent };
        let found = self.records.lookup(operation, self.clock.now_ms(), Want::State)?;
        if let Some(found) = found.filter(|found| found.liveness == Liveness::Begun) {
            unfinished.learn(parent.hash, found.begun_attempt());
        }
        Ok(unfinished.get(parent.hash))
    }

    /// The hash and the last record of a step of an unfinished operation. The caller holds the flight of its key.
    pub(super) fn known_step(&self, StepOf { parent, name }: StepOf<'_>) -> Result<Option<(u128, Step)>> {
        let Some(operation) = self.operation_of(parent)? else { return Ok(None) };
        let origin = match name {
            b"" if planted(Bug::InputLostByNextAttempt) => operation.version,
            _ => operation.origin,
        };
        let hash = self.log().hasher().step(parent.hash, origin.as_u64(), name);
        Ok(self.records.unfinished().step(parent.hash, hash).map(|step| (hash, step)))
    }

    /// Reads the last record of a step like [`Engine::find_step`], once it is as durable as `durability` demands.
    pub(super) fn find_durable_step(
        &self,
        step: (u128, &Step),
        flight: &FlightGuard<'_>,
        durability: Durability,
    ) -> Result<Found> {
        let found = self.find_step(step)?;
        flight.note_disk();
        self.viewer.ensure_durable(&found, durability)?;
        Ok(found)
    }

    /// Reads the last record of a step, with its result. The caller holds the flight of the operation's key.
    pub(super) fn find_step(&self, (hash, step): (u128, &Step)) -> Result<Found> {
        let now_ms = self.clock.now_ms();
        self.records.read_step((hash, step), |place, record| {
            let found = found_at(step.address, place, record, now_ms);
            let result = record.value.result.filter(|_| !step.state.is_open()).map(<[u8]>::to_vec);
            // A step does not expire. Its record has the hash of the operation's key in these fields.
            Found { result, key_expires_ms: NEVER_MS, result_expires_ms: NEVER_MS, ..found }
        })
    }
}
