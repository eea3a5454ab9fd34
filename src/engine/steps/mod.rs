//! Changes of steps: begin one, end it, give it up.
//!
//! A step is an operation under another one, its *parent*. Rules, and the hole that each closes:
//!
//! - Every change of a step is made under the flight of the parent's key (the per-key lock). So no step can begin between the
//!   decision to end its parent and the record of that.
//! - To begin a step, the attempt must be the parent's last one and have its lease. Otherwise an attempt that was taken over
//!   would run a side effect next to the one that took over.
//! - To end a step, the step's own version must be its last, and the parent must be unfinished with the same origin. The
//!   lease does not matter: a late result is kept as long as no other attempt has begun the step again.
//! - A step is claimed in a *generation* of its parent, which each begin of the parent ends. So after a takeover the claims
//!   of the earlier attempt no longer count, and its unfinished steps are in doubt.
//! - A step's begin reserves space for its end. A begin without space changes nothing, so the parent can be resumed.

mod begin;
mod end;
#[cfg(test)]
mod tests;

use super::assembly::Engine;
use super::call::PathRule;
use super::records::{Found, HashedKey};
use super::step_record::StepRecord;
use super::unfinished::OperationState;
use crate::error::Result;
use crate::flights::{Claim, FlightGuard};
use crate::format::record::Value;
use crate::key::Fingerprint;
use crate::log::Reservation;
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::ReservationClass;
use crate::planted::{Bug, planted};
use crate::status::Version;

/// The right to run one attempt at a step, or to resolve the doubt about one.
#[derive(Debug)]
pub(crate) struct StepGrant {
    /// The hash of the step.
    pub(crate) hash: u128,
    /// The version of the attempt's begin.
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    /// The codec and shape that the begin record states, if the typed interface wrote it.
    /// Space for the record that ends the attempt. Empty for a doubt.
    pub(crate) reservation: Reservation,
    fingerprint: Fingerprint,
    /// The version of the parent's first begin.
    origin: Version,
    /// The generation of the parent in which the step is claimed.
    claim: u32,
}

/// The outcome of the begin of a step.
#[derive(Debug)]
pub(crate) enum StepBegan {
    /// An attempt at the step began, and this caller runs it.
    Acquired(StepGrant),
    /// The step is in doubt, and this caller is to resolve the doubt.
    InDoubt(StepGrant),
    /// The step is in doubt, and the call does not resolve doubts.
    LeftInDoubt { attempt: u32, version: Version },
    /// The step is done, with this result.
    Completed(Found),
}

/// How an attempt at a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepEnd<'a> {
    /// The side effect happened. The value is its result, or the note that the result could not be recorded.
    Completed(Value<'a>),
    /// The side effect certainly did not happen.
    Released,
}

/// What a call on a step does next.
pub(super) enum StepDecision<'a, R> {
    /// It writes this record.
    Write(StepWrite<'a>),
    /// It writes nothing, and returns this.
    Return(R),
}

/// A record to be written, and how.
pub(super) struct StepWrite<'a> {
    record: StepRecord<'a>,
    /// The version of the record, if it is a copy of the step's last one.
    copied: Option<Version>,
    until: Until,
    class: ReservationClass,
    /// Space for the record that ends the attempt, in addition to that of the record.
    finish_bytes: u64,
}

impl<'a> StepWrite<'a> {
    /// The end of whatever began, which may use the space that is kept for that.
    fn ending(record: StepRecord<'a>, until: Until) -> StepWrite<'a> {
        StepWrite { record, copied: None, until, class: ReservationClass::Finish, finish_bytes: 0 }
    }
}

/// A step's parent, under its flight.
pub(super) struct Parent<'a> {
    /// What the table knows of it. None if it is not unfinished.
    operation: Option<OperationState>,
    flight: &'a FlightGuard<'a>,
    now_ms: u64,
}

impl Parent<'_> {
    /// The operation, if the attempt of `version` is its last one and has its lease.
    fn owned_by(&self, version: Version) -> Option<OperationState> {
        if planted(Bug::StepBegunAfterTakeover) {
            return self.operation;
        }
        let is_last = |operation: &OperationState| operation.version == version;
        let has_lease =
            matches!(self.flight.claim(), Some(Claim::Lease { version: leased, .. }) if leased == version);
        self.operation.filter(is_last).filter(|_| has_lease)
    }
}

impl Engine {
    /// Changes a step: enters the flight of its parent's key, decides, reserves space and writes, like
    /// [`Engine::change`]. Returns the version of the record and the part of the space that it did not need, or what the
    /// decision returned.
    fn change_step<'a, R>(
        &self,
        parent: HashedKey<'a>,
        path_rule: PathRule,
        set_aside: Option<&mut Reservation>,
        mut decide: impl FnMut(&Parent<'_>) -> Result<StepDecision<'a, R>>,
    ) -> Result<std::result::Result<(Version, StepRecord<'a>, Reservation), R>> {
        let mut set_aside = set_aside;
        loop {
            self.admit_again(parent)?;
            let _inside = self.admission.enter()?;
            let flight = self.flights.enter(parent.hash);
            let now_ms = self.clock.now_ms();
            if path_rule != PathRule::EndsAttempt {
                self.path_check.look_if_due(now_ms)?;
            }
            let operation = self.operation_of(parent)?;
            let write = match decide(&Parent { operation, flight: &flight, now_ms })? {
                StepDecision::Return(answer) => return Ok(Err(answer)),
                StepDecision::Write(write) => write,
            };
            let StepWrite { record, until, class, finish_bytes, copied } = write;
            flight.note_disk();
            let version = match copied {
                Some(version) => version,
                None => self.versions.next()?,
            };
            let change = record.change(&self.records, version, &flight);
            let cost_bytes = record_cost_bytes(change.record.size.length_bytes);
            let own = set_aside.as_deref_mut().filter(|set_aside| set_aside.bytes() >= cost_bytes);
            let reserved = match own {
                Some(set_aside) => Ok(set_aside.split_all()),
                None => self.log().reserve(cost_bytes + finish_bytes, class)?,
            };
            let mut reservation = match reserved {
                Ok(reservation) => reservation,
                Err(no_room) => {
                    drop(flight);
                    self.reclaim.make_room(no_room)?;
                    continue;
                }
            };
            let for_record = reservation.split(cost_bytes);
            self.commit(std::slice::from_ref(&change), for_record, until)?;
            match path_rule {
                PathRule::RemovesState => {}
                PathRule::EndsAttempt => drop(self.path_check.look_if_due(now_ms)),
                // The write may have triggered a path check. If that failed, no attempt must be handed out.
                PathRule::BeginsOperation => self.path_check.check().inspect_err(|_| {
                    self.records.unfinished().end_step_claim(
                        parent.hash,
                        change.effect.hash,
                        (version, record.claim),
                    );
                })?,
            }
            return Ok(Ok((version, record, reservation)));
        }
    }
}

impl StepGrant {
    fn new((hash, version): (u128, Version), record: &StepRecord<'_>, reservation: Reservation) -> StepGrant {
        let StepRecord { attempt, fingerprint, origin, claim, .. } = *record;
        StepGrant { hash, version, attempt, reservation, fingerprint, origin, claim }
    }
}
