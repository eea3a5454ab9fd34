//! The right to run one attempt at a step, or to resolve the doubt about one, and the verbs of the engine on it.

use std::sync::Arc;

use super::{InStep, step_of};
use crate::attempt::Attempt;
use crate::engine::{Applied, Engine, MAX_NOTE_BYTES, Request, StepBegan, StepEnd, StepGrant, StepOf, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::key::{Key, OwnedKey};
use crate::messages::Messages;
use crate::side_effect::{Beginning, Subject};
use crate::status::Status;

/// A step as what is run.
pub(super) struct StepSubject<'a> {
    pub(super) engine: Arc<Engine>,
    /// The attempt at the operation.
    pub(super) operation: &'a Attempt,
    /// The key of the step.
    pub(super) key: OwnedKey,
    pub(super) terms: Terms,
}

/// A grant for a step. Dropping it ends its claim in memory and writes nothing, so the step is in doubt if it was neither
/// completed nor released.
pub(super) struct HeldStep<'a> {
    engine: Arc<Engine>,
    operation: &'a Attempt,
    grant: StepGrant,
}

impl Drop for HeldStep<'_> {
    fn drop(&mut self) {
        if self.engine.has_forked() {
            // As for an operation: the reserved space belongs to the parent process, and giving it back would take locks.
            self.grant.reservation.split_all().spend();
            return;
        }
        self.engine.abandon_step(self.operation.hashed_key().hash, &self.grant);
    }
}

impl<'a> StepSubject<'a> {
    fn step(&self) -> StepOf<'_> {
        step_of(self.operation, self.key.as_key())
    }

    fn hold(&self, grant: StepGrant) -> HeldStep<'a> {
        HeldStep { engine: Arc::clone(&self.engine), operation: self.operation, grant }
    }

    fn attempt(&self, held: &HeldStep<'_>) -> (Attempt, InStep) {
        let StepGrant { attempt, version, .. } = held.grant;
        let handle = self.operation.at_step(&self.engine, self.key.as_key(), (attempt, version));
        (handle, InStep::enter(&self.engine, self.operation))
    }

    fn end(&self, held: &mut HeldStep<'_>, end: StepEnd<'_>) -> Result<()> {
        self.engine.end_step(self.step(), &mut held.grant, end, &self.terms)?;
        self.engine.check_in_place()
    }
}

impl<'a> Subject for StepSubject<'a> {
    type Lease = HeldStep<'a>;
    type Doubt = HeldStep<'a>;
    type InClosure = InStep;

    fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn notes(&self) -> bool {
        self.engine.settings().notes
    }

    fn begin(&self, request: Request, takes_doubt: bool) -> Result<Beginning<HeldStep<'a>, HeldStep<'a>>> {
        let (attempt, key) = (self.operation.version(), || self.key.clone());
        Ok(match self.engine.begin_step(self.step(), attempt, request, &self.terms, takes_doubt)? {
            StepBegan::Acquired(grant) => Beginning::Acquired(self.hold(grant)),
            StepBegan::InDoubt(grant) => Beginning::InDoubt(self.hold(grant)),
            StepBegan::LeftInDoubt { attempt, version } => {
                return Err(Error::InDoubt { key: key(), attempt, version, reason: None });
            }
            StepBegan::Completed(found) if found.not_kept => return Err(Error::ResultNotKept { key: key() }),
            StepBegan::Completed(found) => Beginning::Completed(found),
        })
    }

    fn begin_again(&self, doubt: HeldStep<'a>) -> Result<HeldStep<'a>> {
        let attempt = self.operation.version();
        self.engine
            .begin_step_again(self.step(), attempt, &doubt.grant, &self.terms)
            .map(|grant| self.hold(grant))
    }

    fn running(&self, lease: &HeldStep<'a>) -> (Attempt, InStep) {
        self.attempt(lease)
    }

    fn reconciling(&self, doubt: &HeldStep<'a>) -> (Attempt, InStep) {
        self.attempt(doubt)
    }

    // The closure of a step cannot emit.
    fn emitted(&self, _attempt: &Attempt) -> Messages {
        Messages::new()
    }

    fn complete(
        &self,
        lease: &mut HeldStep<'a>,
        _attempt: &Attempt,
        (value, _): (Value<'_>, Messages),
    ) -> Result<()> {
        self.end(lease, StepEnd::Completed(value))
    }

    fn release(&self, mut lease: HeldStep<'a>) -> Result<()> {
        self.end(&mut lease, StepEnd::Released)
    }

    fn leave_in_doubt(&self, mut lease: HeldStep<'a>, note: &str) {
        let bytes = (0..=MAX_NOTE_BYTES.min(note.len())).rev().find(|at| note.is_char_boundary(*at));
        // A failure is not reported: the caller returns an error already, and a failed write poisons the store.
        let _ = self.engine.note_step(self.step(), &mut lease.grant, &note[..bytes.unwrap_or(0)]);
    }

    fn is_stopped(&self, _attempt: &Attempt) -> bool {
        false
    }

    fn new_messages(&self, _doubt: &HeldStep<'a>) -> Messages {
        Messages::new()
    }

    fn record_applied(
        &self,
        doubt: &mut HeldStep<'a>,
        request: Request,
        (value, _): (Value<'_>, &Messages),
    ) -> Result<Applied> {
        let fenced = match self.end(doubt, StepEnd::Completed(value)) {
            Ok(()) => return Ok(Applied::Recorded),
            Err(error @ Error::Fenced { .. }) => error,
            Err(error) => return Err(error),
        };
        // An operator has resolved the doubt while the closure ran.
        match self.engine.get_step(self.step())? {
            (Status::Completed, Some(found)) => Ok(Applied::AlreadyCompleted(found)),
            (Status::Absent, _) => match self.begin(request, false)? {
                Beginning::Acquired(mut lease) => {
                    self.end(&mut lease, StepEnd::Completed(value)).map(|()| Applied::Recorded)
                }
                _ => Err(fenced),
            },
            _ => Err(fenced),
        }
    }
}
