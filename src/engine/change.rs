//! The one way in which a call changes a key: enter its flight (the per-key lock), take a view, decide, reserve space, commit.
//!
//! The calls in `begin`, `finish` and `edit` all use [`Engine::change`]. Each passes its rules and its decision function, and maps
//! the outcome to its own return type.
//!
//! A thread that holds a flight never waits for space or for another flight. If there is no space, the thread leaves the flight,
//! makes space, and decides again.

use std::time::{Duration, Instant};

use super::admission::Admitted;
use super::assembly::Engine;
use super::call::{Call, PathRule};
use super::counters::Counted;
use super::decide::{Decision, Draft};
use super::emit::{messages_cost_bytes, room_bytes};
use super::records::{Found, HashedKey, Want};
use super::step_record::StepRecord;
use super::terms::{NewMessage, Request, Terms};
use super::view::{Seen, View, may_be_forgotten};
use super::write::Change;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::record::{Kind, Typing, Value, max_encoded_bytes};
use crate::key::Key;
use crate::log::Reservation;
use crate::log::commit::{Ticket, Until, record_cost_bytes};
use crate::log::reservations::{NoRoom, ReservationClass};
use crate::planted::{Bug, planted};
use crate::status::{Status, Version};
use crate::sync::Patience;
use crate::sync::atomic::Ordering;

/// The right to run one attempt, or to resolve the doubt about one.
#[derive(Debug)]
pub(crate) struct Grant {
    /// The hash of the key.
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) claim: Claim,
    /// The codec and shape that the begin record states, if the typed interface wrote it.
    pub(crate) typing: Option<Typing>,
    /// Space for the record that ends the attempt. Empty for a doubt.
    pub(crate) reservation: Reservation,
}

impl Grant {
    /// Returns the grant's key, which its holder keeps, with its hash.
    pub(crate) fn of<'a>(&self, key: Key<'a>) -> HashedKey<'a> {
        HashedKey { key, hash: self.hash }
    }
}

/// The outcome of a call that changes a key.
#[derive(Debug)]
pub(super) enum ChangeOutcome {
    /// The record is written, and the index points to it.
    Written(Written),
    /// The key already has the state that the call asks for, so nothing was written.
    Nothing,
    /// The operation was completed before, and nothing was written. The request matches, and the record is as durable as it must
    /// be.
    Completed(Found),
    /// The call waited for another caller's claim, which may have ended. It has to be made again.
    Waited,
    /// Another caller's attempt is in progress, and this call has stopped waiting for it.
    InProgress { attempt: u32 },
    /// Another thread is changing the key, and this call has stopped waiting for it.
    Busy,
    /// The operation is in doubt, and this caller now holds the right to resolve the doubt.
    Doubt(Grant),
    /// The attempt that the call was made for is no longer the key's last one, or has ended.
    Fenced,
    /// The key's state is not the expected one.
    Differs,
}

/// The answer of a call that did not enter the flight.
#[derive(Debug)]
pub(super) enum Answer {
    Completed(Found),
    InProgress { attempt: u32 },
}

/// A record that a call wrote.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) version: Version,
    pub(super) attempt: u32,
    /// The lease that the record began.
    pub(super) lease: Option<Claim>,
    /// The part of the reservation that the record did not need.
    pub(super) rest: Reservation,
    /// The status of the key before the record.
    pub(super) previous_status: Status,
}

impl Engine {
    /// Changes a key: see the [module](self).
    ///
    /// `decide` is called under the flight, once each time that the call enters it. `set_aside` is space that the record may use;
    /// the caller keeps it if no record is appended.
    // Not inlined: the callers that answer without it, as most do, would reserve its large stack frame.
    #[inline(never)]
    pub(super) fn change<'a>(
        &self,
        call: &Call<'a>,
        set_aside: Option<&mut Reservation>,
        mut decide: impl FnMut(&View) -> Result<Decision<'a>>,
    ) -> Result<ChangeOutcome> {
        let Call { key, terms, .. } = *call;
        let mut set_aside = set_aside;
        loop {
            let inside = self.admission.enter()?;
            let Some(flight) = self.flights.enter_within(key.hash, call.flight_patience) else {
                if call.flight_patience == Patience::Endless {
                    continue;
                }
                return Ok(ChangeOutcome::Busy);
            };
            // The clock is read only now: entering the flight may have taken a while, and a lease starts when it is granted.
            let now_ms = self.clock.now_ms();
            if call.path_rule != PathRule::EndsAttempt {
                self.path_check.look_if_due(now_ms)?;
            }
            let mut view = self.viewer.view(key, &flight, now_ms, (call.want, call.seen))?;
            if !call.accepts_unreadable
                && let Some(lost) = view.unreadable.take()
            {
                return Err(lost.error);
            }
            if let Some(found) = view.found.as_ref().filter(|_| call.compares) {
                flight.note_disk();
                self.viewer.ensure_durable(found, terms.durability)?;
            }
            let decision = decide(&view)?;
            let notes_doubt = matches!(decision, Decision::NoteDoubt(_));
            let draft = match decision {
                Decision::Write(draft) | Decision::NoteDoubt(draft) => draft,
                Decision::InDoubt if view.is_forgotten => return Err(may_be_forgotten(key.key)),
                Decision::Nothing => return Ok(ChangeOutcome::Nothing),
                Decision::Completed => {
                    drop(flight);
                    if planted(Bug::ReplayEmits) && !call.messages.is_empty() {
                        self.emit_again(key.key, call.messages)?;
                    }
                    // Always present: a completed operation has a record.
                    let Some(found) = view.found else { continue };
                    if let Some(request) = call.request {
                        self.viewer.check_replay(key.key, request, &found, terms.durability)?;
                    }
                    return Ok(ChangeOutcome::Completed(found));
                }
                Decision::InProgress => {
                    let attempt = view.attempt();
                    return Ok(match self.wait_for_other(call, inside, flight, &view)? {
                        true => ChangeOutcome::Waited,
                        false => ChangeOutcome::InProgress { attempt },
                    });
                }
                Decision::InDoubt | Decision::GiveDoubt | Decision::Mismatch => {
                    // The record that the answer rests on may have to be synced first.
                    flight.note_disk();
                    let Some(found) = &view.found else { continue };
                    self.viewer.ensure_durable(found, terms.durability)?;
                    return match decision {
                        Decision::GiveDoubt => Ok(ChangeOutcome::Doubt(self.give_doubt(key, found, &flight))),
                        Decision::InDoubt => Err(left_in_doubt(key.key, found)),
                        _ => Err(self.viewer.mismatch(key.key)),
                    };
                }
                Decision::HasSteps => return Err(self.has_steps(key, &view)),
                Decision::Fenced => return Ok(ChangeOutcome::Fenced),
                Decision::Differs => return Ok(ChangeOutcome::Differs),
                Decision::Conflict => return Err(Error::Conflict { key: key.key.to_owned() }),
                Decision::Unreadable => match view.unreadable {
                    Some(lost) => return Err(lost.error),
                    None => continue,
                },
            };
            flight.note_disk();
            let version = self.versions.next()?;
            // Encoded before space is reserved, so that the length of the record is computed once. Without space, the version
            // stays unused.
            let subject = (key, &view);
            let change = Change::new(&self.records, subject, &draft, terms.retention, version, &flight);
            let mut changes = vec![change];
            if let Some(input) = call.input.filter(|_| draft.kind == Kind::Begun && draft.origin.is_none()) {
                // A step of the operation has a greater version than its origin, and so has the input.
                let of = StepRecord::input(key.hash, version, input, view.now_ms);
                changes.push(of.change(&self.records, self.versions.next()?, &flight));
            }
            match self.reserve(call, &changes, draft.class, set_aside.as_deref_mut())? {
                Ok(reservation) => {
                    let written = self.write_changes(call, &view, &draft, (version, changes), reservation)?;
                    if !notes_doubt {
                        return Ok(written);
                    }
                }
                Err(no_room) => {
                    drop(flight);
                    self.reclaim.make_room(no_room)?;
                }
            }
        }
    }

    /// Reserves space for the records of `changes`, out of `set_aside` if that is enough. For a record that begins an attempt, also
    /// reserves space for the record that ends it.
    fn reserve(
        &self,
        call: &Call<'_>,
        changes: &[Change<'_>],
        class: ReservationClass,
        set_aside: Option<&mut Reservation>,
    ) -> Result<Result<Reservation, NoRoom>> {
        let messages = messages_of(call, changes);
        let cost_bytes =
            cost_of(changes) + messages_cost_bytes(call.key.key, messages) + room_bytes(messages);
        if let Some(set_aside) = set_aside.filter(|set_aside| set_aside.bytes() >= cost_bytes) {
            return Ok(Ok(set_aside.split_all()));
        }
        let begins = lease_of(changes).is_some();
        if begins || class == ReservationClass::Begin && !messages.is_empty() {
            self.check_outbox(call.terms)?;
        }
        let finish_bytes = match begins {
            true => finish_cost_bytes(call.key.key, call.terms),
            false => 0,
        };
        self.log().reserve(cost_bytes + finish_bytes, class)
    }

    /// Writes the records of `changes`, of which the first was made of the draft, and applies them.
    fn write_changes(
        &self,
        call: &Call<'_>,
        view: &View,
        draft: &Draft<'_>,
        (version, changes): (Version, Vec<Change<'_>>),
        mut reservation: Reservation,
    ) -> Result<ChangeOutcome> {
        let lease = lease_of(&changes);
        let messages = messages_of(call, &changes);
        let flight = changes.first().map(|change| change.flight);
        // If the record begins a lease, it spends only what it needs. The rest is kept for the record that ends the attempt.
        let for_record = match lease {
            Some(_) => reservation.split(cost_of(&changes)),
            None => {
                let room = reservation.split(room_bytes(messages));
                std::mem::replace(&mut reservation, room)
            }
        };
        if messages.is_empty() {
            self.commit(&changes, for_record, draft.until)?;
        } else {
            let emission = self.emission(messages.len())?;
            let subject = (call.key.key, view.now_ms);
            let mut all = Vec::with_capacity(changes.len() + messages.len());
            all.extend(changes);
            all.extend(emission.changes(&self.records, subject, messages, 0));
            self.commit(&all, for_record, draft.until)?;
            self.records.outbox().add_room(reservation.split_all());
        }
        match call.path_rule {
            PathRule::RemovesState => {}
            // An operation that has begun is ended in the open file, even if the path leads elsewhere. Its handle returns that
            // error.
            PathRule::EndsAttempt => drop(self.path_check.look_if_due(view.now_ms)),
            // The write may have triggered a path check. If that failed, no attempt must be handed out.
            PathRule::BeginsOperation => self.path_check.check().inspect_err(|_| {
                if let (Some(_), Some(flight)) = (lease, flight) {
                    flight.set_claim(None);
                }
            })?,
        }
        Ok(ChangeOutcome::Written(Written {
            version,
            attempt: draft.attempt,
            lease,
            rest: reservation,
            previous_status: view.status,
        }))
    }

    /// Commits `changes`: appends them as part of one frame, waits once until all of them are as durable as `until` says, and
    /// applies them. `reservation` is the space for all of them; the caller holds their flights.
    pub(super) fn commit(
        &self,
        changes: &[Change<'_>],
        reservation: Reservation,
        until: Until,
    ) -> Result<()> {
        if planted(Bug::IndexBeforeDurability) {
            let ticket = self.write.append(changes, reservation, Until::Written)?;
            self.write.finish(changes, &ticket)?;
            return if until == Until::Synced { self.log().sync() } else { Ok(()) };
        }
        self.commit_with_others(changes, || {
            let ticket = self.write.append(changes, reservation, until)?;
            Ok(move || self.write.finish(changes, &ticket))
        })
    }

    /// Commits `changes` with one wait, in frames that each begin where the one before ends: the number is the end of a frame in
    /// `changes`, the reservation the space for it. The last frame is as durable as `until` says, and with it all others; no
    /// change is applied before that.
    pub(super) fn commit_frames(
        &self,
        changes: &[Change<'_>],
        frames: Vec<(usize, Reservation)>,
        until: Until,
    ) -> Result<()> {
        self.commit_with_others(changes, || {
            let count = frames.len();
            let mut tickets: Vec<(usize, Ticket)> = Vec::with_capacity(count);
            let mut begin = 0;
            for (number, (end, reservation)) in frames.into_iter().enumerate() {
                // A sync covers everything that was written before, so only the last frame asks for one.
                let until = if number + 1 < count { Until::Written } else { until };
                let ticket = self.write.append(&changes[begin..end], reservation, until)?;
                if planted(Bug::AtomicBatchInTwoFrames) {
                    self.log().wait(&ticket)?;
                }
                tickets.push((end, ticket));
                begin = end;
            }
            Ok(move || self.write.finish_frames(changes, &tickets))
        })
    }

    /// Calls `append`, which appends the changes, and then the function that it returned, which waits for them and applies them.
    /// Some other records share the wait: releases of attempts that never ran, and moves. The releases come first, so that they
    /// are as durable as the changes.
    fn commit_with_others<F: FnOnce() -> Result<()>>(
        &self,
        changes: &[Change<'_>],
        append: impl FnOnce() -> Result<F>,
    ) -> Result<()> {
        let released = self.append_releases();
        let finish = match append() {
            Ok(finish) => finish,
            Err(error) => {
                self.publish_releases(released);
                return Err(error);
            }
        };
        let appended_bytes = changes.iter().map(|change| change.record.size.length_bytes).sum();
        let moved = self.reclaim.append_along(appended_bytes);
        let finished = finish();
        self.path_check.look_if_new(self.log().span().1);
        // Publish the moves even if the changes failed: no other thread will, and their segment must not be released before. An
        // error in a move does not fail this call; the next change returns it.
        if let Some(moved) = moved {
            let _ = self.reclaim.publish(moved);
        }
        self.publish_releases(released);
        finished
    }

    /// The error of a call that would end an operation over its steps.
    pub(super) fn has_steps(&self, key: HashedKey<'_>, view: &View) -> Error {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let finished = count(view.steps.completed);
        let in_doubt = count(view.steps.open + view.steps.given_up);
        Error::HasSteps { key: key.key.to_owned(), finished, in_doubt }
    }

    /// Gives the caller the right to resolve the doubt about the attempt that was found.
    pub(super) fn give_doubt(&self, key: HashedKey<'_>, found: &Found, flight: &FlightGuard<'_>) -> Grant {
        let (version, attempt, typing) = (found.version, found.attempt, found.typing);
        match flight.claim() {
            // The lease's deadline has passed, and this call ends the lease.
            Some(Claim::Lease { version: leased, .. }) if leased == version => {
                self.counters.add(Counted::Doubted);
                crate::events::in_doubt(key.key, attempt);
            }
            _ => crate::events::found_in_doubt(key.key, attempt),
        }
        let number = self.doubts.fetch_add(1, Ordering::Relaxed);
        let claim = Claim::Doubt { version, attempt, number };
        flight.set_claim(Some(claim));
        let reservation = self.log().no_reservation();
        Grant { hash: key.hash, version, attempt, claim, typing, reservation }
    }

    /// Leaves the flight and the store's admission, and waits until another caller's claim may have ended. The call must then be
    /// admitted again. Returns false, without waiting, if its patience is over.
    fn wait_for_other(
        &self,
        call: &Call<'_>,
        inside: Admitted<'_>,
        flight: FlightGuard<'_>,
        view: &View,
    ) -> Result<bool> {
        let claim = view.claim;
        let is_own = |claim| super::inside::is_own(&self.flights, call.key.hash, claim);
        if call.claim_patience != Patience::None && claim.is_some_and(is_own) {
            return Err(Error::WouldWaitForItself { key: call.key.key.to_owned() });
        }
        if call.claim_patience.is_over() {
            return Ok(false);
        }
        let until = if let Patience::Until(until) = call.claim_patience { Some(until) } else { None };
        // A lease can be taken over once its deadline has passed. Nothing wakes this thread at the deadline, unless the clock is
        // a manual one, so it must wake itself.
        let deadline = match claim {
            Some(Claim::Lease { deadline_ms, .. }) if deadline_ms < u64::MAX && !self.clock.is_manual() => {
                let wait_ms = deadline_ms.saturating_sub(view.now_ms).max(1);
                Instant::now().checked_add(Duration::from_millis(wait_ms))
            }
            _ => None,
        };
        let wake_at = match (until, deadline) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        };
        drop(inside);
        flight.wait_for_change(claim, wake_at);
        Ok(true)
    }

    /// Looks at the key now, and answers with [`Engine::answer_without_flight`].
    pub(super) fn look_and_answer(
        &self,
        key: HashedKey<'_>,
        request: Request,
        terms: &Terms,
    ) -> Result<Answer> {
        let seen = self.viewer.look(key, self.clock.now_ms(), Want::Result)?;
        self.answer_without_flight(key.key, request, terms, seen)
    }

    /// Answers a call that does not wait for the flight, from the key's state as seen without it. If another thread is changing
    /// the key, that is the state before the change.
    #[inline]
    pub(super) fn answer_without_flight(
        &self,
        key: Key<'_>,
        request: Request,
        terms: &Terms,
        seen: Seen,
    ) -> Result<Answer> {
        let attempt = seen.attempt_at_work();
        let Some(found) = seen.found else { return Ok(Answer::InProgress { attempt: 1 }) };
        match seen.status {
            Status::Completed => {
                self.viewer.check_replay(key, request, &found, terms.durability)?;
                Ok(Answer::Completed(found))
            }
            // The thread that is changing the key begins its next attempt.
            Status::Absent => Ok(Answer::InProgress { attempt: found.attempt.saturating_add(1) }),
            Status::InProgress | Status::InDoubt | Status::Stopped | Status::Begun => {
                self.viewer.check_request(key, request, &found, terms.durability)?;
                Ok(Answer::InProgress { attempt: attempt.unwrap_or(found.attempt) })
            }
        }
    }
}

/// The space that the records of `changes` take.
fn cost_of(changes: &[Change<'_>]) -> u64 {
    changes.iter().map(|change| record_cost_bytes(change.record.size.length_bytes)).sum()
}

/// The lease that begins with the changes of one call.
fn lease_of(changes: &[Change<'_>]) -> Option<Claim> {
    changes.first().and_then(Change::lease)
}

/// The messages that are written with the changes of a call: none, unless they complete the operation.
fn messages_of<'a>(call: &Call<'a>, changes: &[Change<'_>]) -> &'a [NewMessage] {
    let completes = changes.iter().any(|change| change.record.size.kind == Kind::Completed);
    if completes { call.messages } else { &[] }
}

/// The space that a begin reserves for the end of its attempt.
pub(super) fn finish_cost_bytes(key: Key<'_>, terms: &Terms) -> u64 {
    record_cost_bytes(max_encoded_bytes(key, terms.max_result_bytes)) + terms.emits_bytes as u64
}

/// Refuses a result that is larger than `terms` allow.
pub(super) fn check_result(key: Key<'_>, value: &Value<'_>, terms: &Terms) -> Result<()> {
    let (length_bytes, limit_bytes) = (value.result_bytes(), terms.max_result_bytes);
    if length_bytes <= limit_bytes {
        return Ok(());
    }
    Err(Error::TooLarge { key: key.to_owned(), length_bytes, limit_bytes })
}

/// The error of a call that finds an operation in doubt and does not resolve it. Also emits the event.
pub(super) fn left_in_doubt(key: Key<'_>, found: &Found) -> Error {
    crate::events::found_in_doubt(key, found.attempt);
    Error::InDoubt { key: key.to_owned(), attempt: found.attempt, version: found.version, reason: None }
}
