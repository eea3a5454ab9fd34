//! The one way in which a call changes a key: enter its flight, take a view, decide, reserve space, commit.
//!
//! [`Engine::change`] goes that way for every call of `begin`, `finish` and `edit`. A call says what to decide and by which
//! rules, and maps what came of it to its own answer.
//!
//! A thread that holds a flight never waits for space or for another flight. If there is no space it leaves the flight, makes
//! space, and decides anew.

use std::slice;
use std::time::{Duration, Instant};

use super::admission::Admitted;
use super::assembly::Engine;
use super::decide::{self, Decision, Draft};
use super::records::{Found, HashedKey, Want};
use super::terms::{Request, Terms};
use super::view::{Seen, View};
use super::write::Change;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::record::{Typing, Value, encoded_bytes, most_encoded_bytes};
use crate::key::Key;
use crate::log::Reservation;
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::NoRoom;
use crate::planted::{Bug, planted};
use crate::status::{Status, Version};
use crate::sync::Patience;
use crate::sync::atomic::Ordering;

/// The right to run one attempt, or to resolve the doubt about one.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) claim: Claim,
    /// What the begin record says of the typed interface.
    pub(crate) typing: Option<Typing>,
    /// Space for the record that ends the attempt; none for a doubt.
    pub(crate) reservation: Reservation,
}

/// What a call does about a path that leads to another file than the open one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathRule {
    /// It begins something: it is refused before, and also if writing its record is what led to the check.
    Begins,
    /// It gives something up: it is refused before.
    GivesUp,
    /// It ends what began: never refused. The caller's handle reports the path.
    Ends,
}

/// The rules of one call that changes a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) key: HashedKey<'a>,
    pub(super) terms: &'a Terms,
    pub(super) want: Want,
    pub(super) path_rule: PathRule,
    /// How long it waits while another thread changes the key.
    pub(super) flight_patience: Patience,
    /// How long it waits for the end of another caller's claim.
    pub(super) claim_patience: Patience,
    /// It may decide about a key whose last record cannot be read.
    pub(super) takes_unreadable: bool,
    /// The state is made as durable as the terms say before it is decided on: a caller acts on what it compared with, so a
    /// loss of power must not undo that.
    pub(super) compares: bool,
}

impl<'a> Call<'a> {
    /// A call that waits as long as another thread changes the key, and for no claim.
    pub(super) fn new(key: HashedKey<'a>, terms: &'a Terms, path_rule: PathRule) -> Call<'a> {
        Call {
            key,
            terms,
            want: Want::State,
            path_rule,
            flight_patience: Patience::Endless,
            claim_patience: Patience::None,
            takes_unreadable: false,
            compares: false,
        }
    }

    /// A call that begins or records an operation, and waits as long as its terms say.
    pub(super) fn beginning(key: HashedKey<'a>, terms: &'a Terms) -> Call<'a> {
        Call {
            want: Want::Result,
            flight_patience: terms.patience,
            claim_patience: terms.patience,
            ..Call::new(key, terms, PathRule::Begins)
        }
    }
}

/// What came of a call.
#[derive(Debug)]
pub(super) enum ChangeOutcome {
    /// Its record is written and applied.
    Written(Written),
    /// There was nothing to write.
    Nothing,
    /// The operation is completed, and that stands. The request is checked, and the record as durable as it must be.
    Completed(Found),
    /// Another caller's attempt is in progress, and this call does not wait for it any longer.
    InProgress {
        attempt: u32,
    },
    /// Another thread changes the key, and this call does not wait for it any longer.
    Busy,
    /// The doubt is this caller's.
    Doubt(Grant),
    Fenced,
    Differs,
}

#[derive(Debug)]
pub(super) struct Written {
    pub(super) version: Version,
    pub(super) attempt: u32,
    /// The lease that began with it.
    pub(super) lease: Option<Claim>,
    /// What was reserved beyond the record.
    pub(super) rest: Reservation,
    /// The status that it replaced.
    pub(super) was: Status,
}

impl Engine {
    /// Changes a key: see the [module](self).
    ///
    /// `decide` is called under the flight, once for each time that the call enters it. `set_aside` is space that may be used
    /// for the record; it is kept if the record is not appended.
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
            // Now: entering may have waited for another thread's write, and a lease begins when it is given.
            let now_ms = self.clock.now_ms();
            if call.path_rule != PathRule::Ends {
                self.path_check.look_if_due(now_ms)?;
            }
            let mut view = self.viewer.view(key, &flight, now_ms, call.want)?;
            if !call.takes_unreadable
                && let Some(lost) = view.unreadable.take()
            {
                return Err(lost.error);
            }
            if let Some(found) = view.found.as_ref().filter(|_| call.compares) {
                flight.note_disk();
                self.viewer.ensure_durable(found, terms.durability)?;
            }
            let decision = decide(&view)?;
            let draft = match decision {
                Decision::Write(draft) => draft,
                Decision::Nothing => return Ok(ChangeOutcome::Nothing),
                Decision::Completed => {
                    drop(flight);
                    // Completed means that there is one.
                    let Some(found) = view.found else { continue };
                    return Ok(ChangeOutcome::Completed(found));
                }
                Decision::InProgress => {
                    let attempt = view.attempt();
                    if self.wait_for_other(call, inside, flight, &view)? {
                        continue;
                    }
                    return Ok(ChangeOutcome::InProgress { attempt });
                }
                Decision::InDoubt | Decision::GiveDoubt | Decision::Mismatch => {
                    // The answer may need a sync first.
                    flight.note_disk();
                    let Some(found) = &view.found else { continue };
                    self.viewer.ensure_durable(found, terms.durability)?;
                    return match decision {
                        Decision::GiveDoubt => {
                            Ok(ChangeOutcome::Doubt(self.give_doubt(key.key, found, &flight)))
                        }
                        Decision::InDoubt => Err(left_in_doubt(key.key, found)),
                        _ => {
                            crate::events::mismatched(key.key);
                            Err(Error::Mismatch { key: key.key.to_owned() })
                        }
                    };
                }
                Decision::Fenced => return Ok(ChangeOutcome::Fenced),
                Decision::Differs => return Ok(ChangeOutcome::Differs),
                Decision::Conflict => return Err(Error::Conflict { key: key.key.to_owned() }),
                Decision::Unreadable => match view.unreadable {
                    Some(lost) => return Err(lost.error),
                    None => continue,
                },
            };
            flight.note_disk();
            match self.reserve(key.key, &draft, set_aside.as_deref_mut())? {
                Ok(reservation) => return self.write_draft(call, &flight, &view, &draft, reservation),
                Err(no_room) => {
                    drop(flight);
                    self.reclaim.make_room(no_room)?;
                }
            }
        }
    }

    /// Space for the draft's record: what is set aside for it, if that is enough. With a record that begins an attempt, space
    /// for the one that ends it.
    fn reserve(
        &self,
        key: Key<'_>,
        draft: &Draft<'_>,
        set_aside: Option<&mut Reservation>,
    ) -> Result<Result<Reservation, NoRoom>> {
        let cost_bytes = record_cost_bytes(encoded_bytes(key, &draft.value));
        if let Some(set_aside) = set_aside.filter(|set_aside| set_aside.bytes() >= cost_bytes) {
            return Ok(Ok(set_aside.take()));
        }
        let finish_bytes = match draft.claim {
            decide::ClaimChange::Lease { .. } => {
                record_cost_bytes(most_encoded_bytes(key, self.settings.max_result_bytes))
            }
            decide::ClaimChange::Keep | decide::ClaimChange::End => 0,
        };
        self.log().reserve(cost_bytes + finish_bytes, draft.class)
    }

    /// Writes the draft's record and applies it.
    fn write_draft<'a>(
        &self,
        call: &Call<'a>,
        flight: &FlightGuard<'_>,
        view: &View,
        draft: &Draft<'a>,
        mut reservation: Reservation,
    ) -> Result<ChangeOutcome> {
        let version = self.versions.next()?;
        let subject = (call.key, view);
        let change = Change::new(&self.records, subject, draft, call.terms.retention, version, flight);
        // A lease that ends with a record of another size than a begin keeps the rest.
        let for_record = match change.lease() {
            Some(_) => reservation.split(record_cost_bytes(change.record.size.length_bytes)),
            None => reservation.take(),
        };
        let lease = change.lease();
        self.commit(slice::from_ref(&change), for_record, draft.until)?;
        match call.path_rule {
            PathRule::GivesUp => {}
            // What began is ended in the open file, wherever its path leads. The caller's handle reports that.
            PathRule::Ends => drop(self.path_check.look_if_due(view.now_ms)),
            // Writing the record may be what led to a check of the path. No attempt may be given out then.
            PathRule::Begins => self.path_check.check().inspect_err(|_| {
                if lease.is_some() {
                    flight.set_claim(None);
                }
            })?,
        }
        Ok(ChangeOutcome::Written(Written {
            version,
            attempt: draft.attempt,
            lease,
            rest: reservation,
            was: view.status,
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
        let ticket = self.write.append(changes, reservation, until)?;
        // Moves ride along in the frame that this thread waits for anyway.
        let appended_bytes = changes.iter().map(|change| change.record.size.length_bytes).sum();
        let piece = self.reclaim.append_along(appended_bytes);
        let finished = self.write.finish(changes, &ticket);
        self.path_check.look_if_new(self.log().span().1);
        // Published whatever became of the changes: no other thread waits for the moves, and the segment must not be given up
        // under them. An error of a move is not an error of this call; the next change will meet it.
        if let Some(piece) = piece {
            let _ = self.reclaim.publish(piece);
        }
        finished
    }

    /// Gives the caller the doubt about the attempt that was found.
    fn give_doubt(&self, key: Key<'_>, found: &Found, flight: &FlightGuard<'_>) -> Grant {
        let (version, attempt, typing) = (found.version, found.attempt, found.typing);
        match flight.claim() {
            // Its deadline has passed, and this call ends it.
            Some(Claim::Lease { version: leased, .. }) if leased == version => {
                crate::events::in_doubt(key, attempt);
            }
            _ => crate::events::found_in_doubt(key, attempt),
        }
        let number = self.doubts.fetch_add(1, Ordering::Relaxed);
        let claim = Claim::Doubt { version, attempt, number };
        flight.set_claim(Some(claim));
        Grant { version, attempt, claim, typing, reservation: self.log().no_reservation() }
    }

    /// Waits until another caller's claim may have ended, outside of the flight and of the store's admission: the call is
    /// admitted again as a new one. False if the caller does not wait any longer.
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
        // A lease can be taken over once its deadline has passed. Nothing wakes this thread then, unless the clock is moved
        // by hand.
        let deadline = match claim {
            Some(Claim::Lease { deadline_ms, .. }) if deadline_ms < u64::MAX && !self.clock.is_manual() => {
                let wait_ms = deadline_ms.saturating_sub(view.now_ms).max(1);
                Instant::now().checked_add(Duration::from_millis(wait_ms))
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

    /// The answer from a look, of a call that does not wait to enter the flight: the completed operation, or the number of the
    /// attempt that is in progress. While another thread changes the key, that is the state before its change.
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
                self.viewer.check_replay(key, request, &found, terms.durability)?;
                Ok(Ok(found))
            }
            Status::Absent => Ok(Err(found.attempt.saturating_add(1))),
            Status::InProgress | Status::InDoubt => {
                self.viewer.check_request(key, request, &found, terms.durability)?;
                Ok(Err(attempt.unwrap_or(found.attempt)))
            }
        }
    }

    pub(super) fn check_result(&self, key: Key<'_>, value: &Value<'_>) -> Result<()> {
        let (length_bytes, limit_bytes) = (value.result_bytes(), self.settings.max_result_bytes);
        if length_bytes <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge { key: key.to_owned(), length_bytes, limit_bytes })
    }
}

/// The error of a call that finds a doubt and does not resolve it. Emits the event for that.
fn left_in_doubt(key: Key<'_>, found: &Found) -> Error {
    crate::events::found_in_doubt(key, found.attempt);
    Error::InDoubt { key: key.to_owned(), attempt: found.attempt, version: found.version, reason: None }
}
