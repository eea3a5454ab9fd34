//! Decides the entries of a batch, one after the other, each from what the entries before it leave of its key.

use super::{Entry, EntryKind};
use crate::engine::assembly::Engine;
use crate::engine::begin::Began;
use crate::engine::change::finish_cost_bytes;
use crate::engine::decide::{self, ClaimChange, Decision, Draft};
use crate::engine::emit::{messages_cost_bytes, room_bytes};
use crate::engine::records::{Found, HashedKey, Want};
use crate::engine::view::{View, may_be_forgotten};
use crate::engine::write::Change;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::record::encoded_bytes;
use crate::log::Reservation;
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::{NoRoom, ReservationClass};
use crate::record::Liveness;
use crate::status::Version;

/// The entries of one key, and what is known of it while they are decided.
pub(super) struct Group<'a> {
    pub(super) key: HashedKey<'a>,
    /// The number of entries that are not decided yet.
    pub(super) left: usize,
    /// Whether an entry needs the recorded result.
    pub(super) want: Want,
    /// Whether an entry ends an attempt, and so waits for the flight.
    pub(super) ends: bool,
    /// The claim ends with a record that an earlier entry writes, and that does not enter the index.
    pub(super) ends_claim: bool,
    /// The state that the decided entries leave. None before it is read.
    pub(super) view: Option<View>,
}

/// The answer of an entry, or the way to it.
pub(super) enum Plan {
    Refused(Error),
    Began(Began),
    Known(Version),
    /// The entry writes the change of this number. `doubt` is set if that resolves a doubt by running again.
    Write {
        change: usize,
        doubt: Option<Found>,
    },
    /// The entry is given the doubt about the attempt that was found.
    Doubt(Found),
    /// The operation was completed before.
    Completed(Found),
    /// The operation is in doubt, and the entry does not resolve doubts.
    InDoubt(Found),
    /// The key is in use for a different request.
    Mismatch(Found),
    /// Another thread is changing the key.
    Busy,
    /// The store may have forgotten an operation of the key. The begin is made on its own, once the flights are left.
    Forgotten,
}

impl Plan {
    /// The record that the answer rests on.
    pub(super) fn found(&self) -> Option<&Found> {
        match self {
            Plan::Doubt(found) | Plan::Completed(found) | Plan::InDoubt(found) | Plan::Mismatch(found) => {
                Some(found)
            }
            Plan::Refused(_)
            | Plan::Began(_)
            | Plan::Known(_)
            | Plan::Write { .. }
            | Plan::Busy
            | Plan::Forgotten => None,
        }
    }

    /// Whether an entry with this plan has not done what it asks for.
    fn is_refusal(&self) -> bool {
        match self {
            Plan::Write { .. } | Plan::Known(_) => false,
            // Its answer is an error, because there is no result to replay.
            Plan::Completed(found) => found.not_kept || found.liveness == Liveness::CompletedWithoutResult,
            _ => true,
        }
    }
}

/// The decided changes of a batch.
pub(super) struct Planned<'a> {
    pub(super) plans: Vec<Plan>,
    pub(super) changes: Vec<Change<'a>>,
    /// For each change: how it is to be written.
    pub(super) writes: Vec<Write>,
}

/// The entry that a change belongs to, the durability that it asks for, and the space that was reserved for it and for its
/// messages. None if the entry has its own space.
pub(super) type Write = (usize, Until, Option<Reservation>);

impl Planned<'_> {
    /// If an entry is refused, drops all changes and refuses the entries that would have made them.
    pub(super) fn refuse_all_if_any(&mut self) {
        let Some(refused) = self.plans.iter().position(Plan::is_refusal) else { return };
        for (number, plan) in self.plans.iter_mut().enumerate() {
            let is_written = match plan {
                _ if number == refused => false,
                Plan::Write { .. } => true,
                // The completion that the entry found is one that an entry before it would have written.
                Plan::Completed(found) => found.is_planned(),
                _ => false,
            };
            if is_written {
                *plan = Plan::Refused(Error::BatchRefused { entry: refused });
            }
        }
        self.changes.clear();
        self.writes.clear();
    }
}

impl Engine {
    /// Decides one entry. If it writes, adds its change to `planned`.
    pub(super) fn plan_entry<'a>(
        &self,
        (number, entry): (usize, &Entry<'a>),
        group: &mut Group<'a>,
        flight: &'a FlightGuard<'a>,
        (now_ms, full): (u64, &[(ReservationClass, Error)]),
        planned: &mut Planned<'a>,
    ) -> Result<std::result::Result<Plan, NoRoom>> {
        let view = match group.view.take() {
            Some(view) => view,
            None => match self.viewer.view(group.key, flight, now_ms, (group.want, None)) {
                Ok(view) => view,
                Err(error) => return Ok(Ok(Plan::Refused(error))),
            },
        };
        let planned = self.plan_in_view((number, entry), group, (&view, flight), full, planned);
        // An entry that changes the key has set the view that it leaves.
        group.view.get_or_insert(view);
        planned
    }

    fn plan_in_view<'a>(
        &self,
        (number, entry): (usize, &Entry<'a>),
        group: &mut Group<'a>,
        (view, flight): (&View, &'a FlightGuard<'a>),
        full: &[(ReservationClass, Error)],
        planned: &mut Planned<'a>,
    ) -> Result<std::result::Result<Plan, NoRoom>> {
        let Entry { key, terms, ref kind, .. } = *entry;
        if let Some(lost) = &view.unreadable {
            return Ok(Ok(Plan::Refused(lost.error.clone())));
        }
        let mut doubt = None;
        let mut decision = match *kind {
            EntryKind::Begin { request, .. } => decide::begin(view, request, &terms, true),
            EntryKind::Record { request, value } => decide::record(view, request, value, &terms),
            EntryKind::Finish { version, finish, .. } => decide::finish(view, version, finish, &terms),
            EntryKind::BeginAgain { version } => decide::begin_again(view, version, &terms),
            EntryKind::Known(_) => Decision::Nothing,
        };
        if let (Decision::GiveDoubt, EntryKind::Begin { reruns: true, .. }, Some(found)) =
            (&decision, kind, &view.found)
        {
            decision = decide::begin_again(view, found.version, &terms);
            doubt = Some(found.clone());
        }
        let found = |plan: fn(Found) -> Plan| match &view.found {
            Some(found) => plan(found.clone()),
            // Never: each of these decisions rests on a record.
            None => Plan::Busy,
        };
        Ok(Ok(match decision {
            Decision::Write(mut draft) => {
                if group.ends_claim && draft.claim == ClaimChange::Keep {
                    draft.claim = ClaimChange::End;
                }
                let begins = matches!(draft.claim, ClaimChange::Lease { .. })
                    || draft.class == ReservationClass::Begin && !entry.messages.is_empty();
                if begins && let Err(error) = self.check_outbox(&terms) {
                    return Ok(Ok(Plan::Refused(error)));
                }
                let reservation = match self.reserve_for(entry, &draft)? {
                    Ok(reservation) => reservation,
                    Err(no_room) => {
                        let refused = full.iter().find(|(class, _)| *class == no_room.class);
                        return Ok(match refused {
                            Some((_, error)) => Ok(Plan::Refused(error.clone())),
                            None => Err(no_room),
                        });
                    }
                };
                let version = self.versions.next()?;
                let change =
                    Change::new(&self.records, (group.key, view), &draft, terms.retention, version, flight);
                if group.left > 0 {
                    let claim = match draft.claim {
                        ClaimChange::Keep => view.claim,
                        ClaimChange::End => None,
                        ClaimChange::Lease { .. } => change.lease(),
                    };
                    let record = draft.record(key, view.now_ms, terms.retention, version);
                    group.view = Some(view.after(&record, claim));
                    group.ends_claim = draft.claim == ClaimChange::End;
                }
                planned.writes.push((number, draft.until, reservation));
                planned.changes.push(change);
                Plan::Write { change: planned.changes.len() - 1, doubt }
            }
            Decision::GiveDoubt => {
                // The number is not that of the claim: entries after this one compare only its kind.
                group.view = view.found.as_ref().map(|found| {
                    let Found { version, attempt, .. } = *found;
                    let claim = Some(Claim::Doubt { version, attempt, number: 0 });
                    View { found: Some(found.clone()), claim, unreadable: None, ..*view }
                });
                found(Plan::Doubt)
            }
            Decision::Completed => found(Plan::Completed),
            Decision::NoteDoubt(_) => Plan::Forgotten,
            Decision::InDoubt if view.is_forgotten => Plan::Refused(may_be_forgotten(key)),
            Decision::InDoubt => found(Plan::InDoubt),
            Decision::Mismatch => found(Plan::Mismatch),
            Decision::InProgress => {
                let attempt = view.attempt();
                match kind {
                    EntryKind::Begin { .. } => Plan::Began(Began::InProgress { attempt }),
                    _ => Plan::Refused(Error::InProgress { key: key.to_owned(), attempt }),
                }
            }
            Decision::HasSteps => Plan::Refused(self.has_steps(group.key, view)),
            Decision::Fenced
            | Decision::Nothing
            | Decision::Differs
            | Decision::Conflict
            | Decision::Unreadable => match *kind {
                EntryKind::Finish { version, .. } | EntryKind::BeginAgain { version } => {
                    Plan::Refused(Error::Fenced { key: key.to_owned(), version })
                }
                _ => Plan::Busy,
            },
        }))
    }

    /// Reserves space for the record of an entry, and for the end of an attempt that it begins. None if the entry has its own
    /// space.
    fn reserve_for(
        &self,
        entry: &Entry<'_>,
        draft: &Draft<'_>,
    ) -> Result<std::result::Result<Option<Reservation>, NoRoom>> {
        let Entry { key, terms, kind, .. } = entry;
        let messages = entry.messages_of(draft.kind);
        let cost_bytes = record_cost_bytes(encoded_bytes(*key, &draft.value))
            + messages_cost_bytes(*key, messages)
            + room_bytes(messages);
        if let EntryKind::Finish { reservation, .. } = kind
            && reservation.bytes() >= cost_bytes
        {
            return Ok(Ok(None));
        }
        let finish_bytes = match draft.claim {
            ClaimChange::Lease { .. } => finish_cost_bytes(*key, terms),
            ClaimChange::Keep | ClaimChange::End => 0,
        };
        let reserved = self.log().reserve(cost_bytes + finish_bytes, draft.class)?;
        Ok(reserved.map(Some))
    }
}
