//! Begins attempts at steps.

use super::{Parent, StepBegan, StepDecision, StepGrant, StepWrite};
use crate::engine::assembly::Engine;
use crate::engine::call::PathRule;
use crate::engine::records::HashedKey;
use crate::engine::step_reading::StepOf;
use crate::engine::step_record::StepRecord;
use crate::engine::terms::{Request, Terms};
use crate::engine::unfinished::OperationState;
use crate::error::{Error, Result};
use crate::format::record::{Kind, Value, max_encoded_bytes};
use crate::key::{Fingerprint, Key};
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::ReservationClass;
use crate::status::Version;
use crate::step_set::{MAX_STEPS, Step, StepState};

impl Engine {
    /// Begins an attempt at a step, or returns the state that prevents it. `attempt` is the version of the attempt at the
    /// operation that asks for the step. A doubt is given to this caller if `takes_doubt`.
    pub(crate) fn begin_step(
        &self,
        step: StepOf<'_>,
        attempt: Version,
        request: Request,
        terms: &Terms,
        takes_doubt: bool,
    ) -> Result<StepBegan> {
        let _events = crate::events::hold_back();
        let StepOf { parent, name } = step;
        Key::new(name).check()?;
        let hash = |operation: &OperationState| {
            self.log().hasher().step(parent.hash, operation.origin.as_u64(), name)
        };
        let mut begin = |view: &Parent<'_>| {
            let Some(operation) = view.owned_by(attempt) else {
                return Err(self.fenced(parent.key, attempt));
            };
            let known = self.known_step(step)?.map(|(_, step)| step);
            if known.is_some_and(|known| known.is_visited && known.state != StepState::Released) {
                return Err(Error::StepReused { key: parent.key.to_owned() });
            }
            let hash = hash(&operation);
            match known {
                Some(known) if known.state == StepState::Completed || known.state.is_open() => {
                    let began =
                        self.answer_known(parent, (hash, &known), view, (request, terms, takes_doubt))?;
                    Ok(StepDecision::Return(began))
                }
                _ => {
                    // The input is in the set, too.
                    if known.is_none() && operation.counts.total() >= MAX_STEPS {
                        return Err(Error::TooManySteps { key: parent.key.to_owned(), limit: MAX_STEPS });
                    }
                    if self.viewer.may_have_forgotten_step(known.as_ref(), view.now_ms) {
                        let noted = forgotten_attempt(step, view, &operation, request.fingerprint, terms);
                        return Ok(StepDecision::Write(noted));
                    }
                    // The number of attempts is worth less than the step: if it cannot be read, it starts anew.
                    let earlier = known.and_then(|known| self.find_step((hash, &known)).ok());
                    let attempt = earlier.map_or(1, |earlier| earlier.attempt.saturating_add(1));
                    let fingerprint = request.fingerprint;
                    Ok(StepDecision::Write(step_begin(step, view, &operation, (fingerprint, attempt), terms)))
                }
            }
        };
        loop {
            let outcome = self.change_step(parent, PathRule::BeginsOperation, None, &mut begin)?;
            let (version, record, reservation) = match outcome {
                // The doubt is on record now, and the step begins anew with it.
                Ok((_, StepRecord { attempt: 0, .. }, _)) => continue,
                Ok(written) => written,
                Err(began) => return Ok(began),
            };
            let hash = self.log().hasher().step(parent.hash, record.origin.as_u64(), name);
            return Ok(StepBegan::Acquired(StepGrant::new((hash, version), &record, reservation)));
        }
    }

    /// Answers the begin of a step that is done or in doubt.
    fn answer_known(
        &self,
        parent: HashedKey<'_>,
        (hash, known): (u128, &Step),
        view: &Parent<'_>,
        (request, terms, takes_doubt): (Request, &Terms, bool),
    ) -> Result<StepBegan> {
        let found = self.find_durable_step((hash, known), view.flight, terms.durability)?;
        if !request.is(found.fingerprint) {
            return Err(self.viewer.mismatch(parent.key));
        }
        let unfinished = self.records.unfinished();
        if known.state == StepState::Completed {
            unfinished.change_step(parent.hash, hash, |step| step.is_visited = true);
            return Ok(StepBegan::Completed(found));
        }
        let (attempt, version) = (found.attempt, known.version);
        if !takes_doubt {
            unfinished.change_step(parent.hash, hash, |step| step.is_visited = true);
            return Ok(StepBegan::LeftInDoubt { attempt, version });
        }
        unfinished.claim_step(parent.hash, hash);
        let (claim, origin) =
            view.operation.map_or((0, found.origin), |operation| (operation.generation, operation.origin));
        let reservation = self.log().no_reservation();
        let fingerprint = found.fingerprint;
        Ok(StepBegan::InDoubt(StepGrant { hash, version, attempt, reservation, fingerprint, origin, claim }))
    }

    /// Begins another attempt at a step, to resolve the doubt of `grant`: the side effect did not happen, or may happen
    /// again. `attempt` is the version of the attempt at the operation.
    pub(crate) fn begin_step_again(
        &self,
        step: StepOf<'_>,
        attempt: Version,
        grant: &StepGrant,
        terms: &Terms,
    ) -> Result<StepGrant> {
        let _events = crate::events::hold_back();
        let parent = step.parent;
        let outcome = self.change_step(parent, PathRule::BeginsOperation, None, |view| {
            let operation = view.owned_by(attempt).ok_or_else(|| self.fenced(parent.key, attempt))?;
            let known = self.records.unfinished().step(parent.hash, grant.hash);
            let is_last = known.is_some_and(|known| known.version == grant.version && known.state.is_open());
            if !is_last || operation.origin != grant.origin {
                return Err(self.fenced(parent.key, grant.version));
            }
            let next = (grant.fingerprint, grant.attempt.saturating_add(1));
            Ok(StepDecision::<()>::Write(step_begin(step, view, &operation, next, terms)))
        })?;
        match outcome {
            Ok((version, record, reservation)) => {
                Ok(StepGrant::new((grant.hash, version), &record, reservation))
            }
            Err(()) => Err(self.fenced(parent.key, grant.version)),
        }
    }
}

/// The write that begins an attempt at a step.
fn step_begin<'a>(
    step: StepOf<'a>,
    view: &Parent<'_>,
    operation: &OperationState,
    of: (Fingerprint, u32),
    terms: &Terms,
) -> StepWrite<'a> {
    let claimed = begun_record(step, view, operation, of, terms);
    let record = StepRecord { claim: operation.generation, is_visited: true, ..claimed };
    let until = if terms.begin_unsynced { Until::Written } else { terms.durability.until() };
    let finish_bytes = record_cost_bytes(max_encoded_bytes(Key::new(step.name), terms.max_result_bytes));
    StepWrite { record, copied: None, until, class: ReservationClass::Begin, finish_bytes }
}

/// The write of an attempt at a step that the store may have forgotten, so that there is something to be in doubt about. Its
/// number is 0, because no attempt is known. The caller does not claim it, and has not asked for it yet.
fn forgotten_attempt<'a>(
    step: StepOf<'a>,
    view: &Parent<'_>,
    operation: &OperationState,
    fingerprint: Fingerprint,
    terms: &Terms,
) -> StepWrite<'a> {
    let record = begun_record(step, view, operation, (fingerprint, 0), terms);
    let (until, class) = (terms.durability.until(), ReservationClass::Begin);
    StepWrite { record, copied: None, until, class, finish_bytes: 0 }
}

/// The record of an attempt at a step, which nobody has claimed.
fn begun_record<'a>(
    StepOf { parent, name }: StepOf<'a>,
    view: &Parent<'_>,
    operation: &OperationState,
    (fingerprint, attempt): (Fingerprint, u32),
    terms: &Terms,
) -> StepRecord<'a> {
    StepRecord {
        kind: Kind::StepBegun,
        parent: parent.hash,
        origin: operation.origin,
        name,
        fingerprint,
        attempt,
        time_ms: view.now_ms,
        value: Value::begun(terms.typing),
        claim: 0,
        is_visited: false,
    }
}
