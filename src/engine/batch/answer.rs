//! Writes the planned changes of a batch, and answers its entries.

use std::sync::Arc;

use super::plan::{Plan, Planned, Write};
use super::{Entry, EntryDone, EntryKind};
use crate::engine::HashedKey;
use crate::engine::assembly::Engine;
use crate::engine::begin::Began;
use crate::engine::change::{Answer, Grant, left_in_doubt};
use crate::engine::counters::Counted;
use crate::engine::emit::{Emission, messages_cost_bytes, room_bytes};
use crate::engine::records::{Found, Want};
use crate::engine::terms::{Durability, NewMessage};
use crate::engine::write::Change;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::{Reservation, batch_limit_bytes};
use crate::planted::{Bug, planted};

/// The changes of a batch, distributed over frames.
struct Frames {
    /// For each frame its end in the changes, and the space for it.
    frames: Vec<(usize, Reservation)>,
    /// What is left of the reservation of each write.
    rests: Vec<Option<Reservation>>,
    /// Space for the acknowledgements of the messages.
    room: Reservation,
}

impl Engine {
    /// Writes the planned changes and answers all entries but the busy ones.
    pub(super) fn write_planned(
        self: &Arc<Self>,
        entries: &mut [Entry<'_>],
        planned: Planned<'_>,
        (group_of, flights): (&[Option<usize>], &[Option<FlightGuard<'_>>]),
    ) -> Result<Vec<Option<Result<EntryDone>>>> {
        let Planned { plans, changes, writes } = planned;
        // What an answer rests on must be durable before the answer is given. A sync of the batch's own records covers that too.
        let rests_on = plans.iter().zip(entries.iter()).filter_map(|(plan, entry)| {
            plan.found().filter(|_| entry.terms.durability == Durability::Sync).map(Found::end)
        });
        let rests_on = rests_on.max().filter(|end| !self.log().is_durable(*end));
        // An answer may also rest on a record that an earlier entry of this batch writes, perhaps without a sync.
        let rests_on_own = plans.iter().zip(entries.iter()).any(|(plan, entry)| {
            entry.terms.durability == Durability::Sync && plan.found().is_some_and(Found::is_planned)
        });
        let is_synced = writes.iter().any(|(_, until, _)| *until == Until::Synced)
            || rests_on.is_some()
            || rests_on_own && !planted(Bug::AnswerRestsOnUnsynced);
        let until = if is_synced { Until::Synced } else { Until::Written };
        let messages: Vec<&[NewMessage]> = writes
            .iter()
            .zip(&changes)
            .map(|((entry, ..), change)| entries[*entry].messages_of(change.record.size.kind))
            .collect();
        // The ids of all messages are given at once, in the order of the entries.
        let emission = self.emission(messages.iter().map(|messages| messages.len()).sum())?;
        let (changes, starts) = self.with_messages(&emission, (entries, &writes), changes, &messages);
        let Frames { frames, mut rests, room } = self.frames(entries, (&changes, &starts), writes, &messages);
        // Doubts are given before the changes are applied, because a later entry may end one.
        let mut doubts = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            if let (Plan::Doubt(found), Some(at)) = (plan, group_of[number])
                && let Some(flight) = &flights[at]
            {
                let key = HashedKey { key: entries[number].key, hash: flight.hash() };
                doubts.push((number, self.give_doubt(key, found, flight)));
            }
        }
        let written = match (frames.is_empty(), rests_on) {
            (false, _) => self.commit_frames(&changes, frames, until),
            (true, Some(end)) => self.log().sync_to(end),
            (true, None) => Ok(()),
        };
        if let Err(error) = written {
            for (_, doubt) in doubts {
                self.flights.end_claim(doubt.hash, doubt.claim);
            }
            return Err(error);
        }
        self.records.outbox().add_room(room);
        let has_ended = entries.iter().any(|entry| matches!(entry.kind, EntryKind::Finish { .. }));
        if has_ended {
            // The handles return this error, once their records are written.
            let _ = self.path_check.look_if_due(self.clock.now_ms());
        }
        let in_place = self.path_check.check();
        let mut doubts = doubts.into_iter();
        let answers = plans.into_iter().zip(entries.iter()).map(|(plan, entry)| {
            Some(match plan {
                Plan::Busy | Plan::Forgotten => return None,
                Plan::Refused(error) => {
                    if matches!(error, Error::Fenced { .. }) {
                        self.counters.add(Counted::Fenced);
                    }
                    Err(error)
                }
                Plan::Began(began) => Ok(EntryDone::Began(began)),
                Plan::Known(version) => Ok(EntryDone::Finished(version)),
                Plan::Doubt(_) => match doubts.next() {
                    Some((_, grant)) => Ok(EntryDone::Began(Began::InDoubt(grant))),
                    None => return None,
                },
                Plan::InDoubt(found) => Err(left_in_doubt(entry.key, &found)),
                Plan::Mismatch(_) => Err(self.viewer.mismatch(entry.key)),
                Plan::Completed(found) => {
                    if planted(Bug::ReplayEmits)
                        && let Err(error) = self.emit_again(entry.key, entry.messages)
                    {
                        return Some(Err(error));
                    }
                    self.answer_completed(entry, found)
                }
                Plan::Write { change, doubt } => {
                    if let Some(found) = &doubt {
                        crate::events::found_in_doubt(entry.key, found.attempt);
                    }
                    let rest = rests[change].take();
                    let resolves = doubt.is_some() || matches!(entry.kind, EntryKind::BeginAgain { .. });
                    let elsewhere = in_place.as_ref().err();
                    match self.answer_written(entry, &changes[starts[change]], rest, elsewhere) {
                        Ok(EntryDone::Began(Began::Acquired(grant))) if resolves => {
                            Ok(EntryDone::BeganAgain(grant))
                        }
                        answer => answer,
                    }
                }
            })
        });
        Ok(answers.collect())
    }

    /// Adds the changes of messages, each after the completion that they belong to. Returns all changes, and where the one
    /// of each write is among them.
    fn with_messages<'a>(
        &'a self,
        emission: &'a Emission<'a>,
        (entries, writes): (&[Entry<'a>], &[Write]),
        changes: Vec<Change<'a>>,
        messages: &[&'a [NewMessage]],
    ) -> (Vec<Change<'a>>, Vec<usize>) {
        let mut all = Vec::with_capacity(changes.len());
        let mut starts = Vec::with_capacity(changes.len());
        let mut given = 0;
        for ((change, messages), (entry, ..)) in changes.into_iter().zip(messages).zip(writes) {
            let subject = (entries[*entry].key, change.effect.time_ms);
            starts.push(all.len());
            all.push(change);
            all.extend(emission.changes(&self.records, subject, messages, given));
            given += messages.len();
        }
        (all, starts)
    }

    /// Distributes the changes over frames. The messages of a completion go into its frame.
    fn frames(
        &self,
        entries: &mut [Entry<'_>],
        (changes, starts): (&[Change<'_>], &[usize]),
        writes: Vec<Write>,
        messages: &[&[NewMessage]],
    ) -> Frames {
        let limit_bytes = batch_limit_bytes(self.log().segment_bytes());
        let mut frames: Vec<(usize, Reservation)> = Vec::new();
        let mut rests = Vec::with_capacity(writes.len());
        let mut room = self.log().no_reservation();
        let mut used_bytes = u64::MAX;
        for (number, ((entry, _, reserved), messages)) in writes.into_iter().zip(messages).enumerate() {
            let change = &changes[starts[number]];
            let length_bytes = change.record.size.length_bytes;
            let key = entries[entry].key;
            let cost_bytes = length_bytes + ENTRY_BYTES + messages_cost_bytes(key, messages);
            let mut reserved = match (reserved, &mut entries[entry].kind) {
                (Some(reserved), _) => reserved,
                (None, EntryKind::Finish { reservation, .. }) => reservation.split_all(),
                (None, _) => self.log().no_reservation(),
            };
            room.merge(reserved.split(room_bytes(messages)));
            let for_record = match change.lease() {
                Some(_) => reserved.split(record_cost_bytes(length_bytes)),
                None => reserved.split_all(),
            };
            rests.push(Some(reserved));
            let end_of_write = starts[number] + 1 + messages.len();
            let is_split = planted(Bug::AtomicBatchInTwoFrames) && number == starts.len() / 2;
            match frames.last_mut() {
                Some((end, space)) if used_bytes.saturating_add(cost_bytes) <= limit_bytes && !is_split => {
                    used_bytes += cost_bytes;
                    space.merge(for_record);
                    *end = end_of_write;
                }
                _ => {
                    used_bytes = FRAME_HEADER_BYTES as u64 + cost_bytes;
                    frames.push((end_of_write, for_record));
                }
            }
        }
        Frames { frames, rests, room }
    }

    /// Answers an entry whose record is written. `elsewhere` is the error of a path that leads elsewhere.
    fn answer_written(
        &self,
        entry: &Entry<'_>,
        change: &Change<'_>,
        rest: Option<Reservation>,
        elsewhere: Option<&Error>,
    ) -> Result<EntryDone> {
        let version = change.record.version();
        if let Some(error) = elsewhere.filter(|_| entry.kind.begins()) {
            // The write may have triggered the check of the path. No attempt must be handed out then.
            if change.lease().is_some() {
                change.flight.set_claim(None);
            }
            return Err(error.clone());
        }
        Ok(match (change.lease(), &entry.kind) {
            (Some(claim @ Claim::Lease { attempt, .. }), _) => {
                let reservation = rest.unwrap_or_else(|| self.log().no_reservation());
                let (hash, typing) = (change.effect.hash, entry.terms.typing);
                EntryDone::Began(Began::Acquired(Grant {
                    hash,
                    version,
                    attempt,
                    claim,
                    typing,
                    reservation,
                }))
            }
            (_, EntryKind::Finish { .. }) => EntryDone::Finished(version),
            _ => EntryDone::Recorded(Ok(version)),
        })
    }

    /// Answers an entry whose operation was completed before.
    fn answer_completed(&self, entry: &Entry<'_>, found: Found) -> Result<EntryDone> {
        if let Some(request) = entry.kind.request() {
            self.viewer.check_replay(entry.key, request, &found, entry.terms.durability)?;
        }
        Ok(match entry.kind {
            EntryKind::Begin { .. } => EntryDone::Began(Began::Completed(found)),
            _ => EntryDone::Recorded(Err(found)),
        })
    }

    /// Answers an entry while another thread is changing its key.
    ///
    /// In an atomic batch such an entry refuses the others, so its answer is that the operation is in progress, even if it is
    /// completed: next to the refusals a replay would look like a success that refused them.
    pub(super) fn answer_busy(self: &Arc<Self>, entry: &Entry<'_>, is_atomic: bool) -> Result<EntryDone> {
        let Entry { key, terms, kind, .. } = entry;
        if let EntryKind::Begin { request, reruns } = kind
            && self.viewer.look(self.admit(*key)?, self.clock.now_ms(), Want::State)?.is_forgotten()
        {
            return match self.begin(*key, *request, terms, true)? {
                Began::InDoubt(doubt) if *reruns => {
                    let again = self.begin_again(doubt.of(*key), doubt.version, terms);
                    again.map(EntryDone::BeganAgain).inspect_err(|_| {
                        self.flights.end_claim(doubt.hash, doubt.claim);
                    })
                }
                began => Ok(EntryDone::Began(began)),
            };
        }
        let hashed = self.admit(*key)?;
        let Some(request) = kind.request() else {
            return Err(Error::InProgress { key: key.to_owned(), attempt: 1 });
        };
        let answer = match self.look_and_answer(hashed, request, terms)? {
            Answer::Completed(found) if is_atomic => Answer::InProgress { attempt: found.attempt },
            answer => answer,
        };
        match (answer, kind) {
            (Answer::Completed(found), EntryKind::Begin { .. }) => {
                Ok(EntryDone::Began(Began::Completed(found)))
            }
            (Answer::Completed(found), _) => Ok(EntryDone::Recorded(Err(found))),
            (Answer::InProgress { attempt }, EntryKind::Begin { .. }) => {
                Ok(EntryDone::Began(Began::InProgress { attempt }))
            }
            (Answer::InProgress { attempt }, _) => Err(Error::InProgress { key: key.to_owned(), attempt }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::format::record::Value;
    use crate::key::{Fingerprint, Key};

    /// This thread holds the flight of `done`, as a thread would that is moving its record or forgetting it.
    #[test]
    fn a_busy_key_refuses_an_atomic_batch_as_in_progress_even_if_it_is_completed() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = engine.settings().terms;
        let record = |name| {
            let kind = EntryKind::Record { request: Fingerprint::NONE.into(), value: Value::bytes(b"r") };
            Entry { key: Key::new(name), terms, kind, messages: &[] }
        };
        let done = Key::new("done");
        engine.record(done, Fingerprint::NONE.into(), Value::bytes(b"r"), &[], &terms).unwrap().unwrap();
        let flight = engine.flights.enter(engine.log().hasher().key(done));
        flight.note_disk();

        let answers = engine.commit_batch(&mut [record("done"), record("new")], true).unwrap();
        assert!(matches!(answers[0], Err(Error::InProgress { attempt: 1, .. })), "{answers:?}");
        assert!(matches!(answers[1], Err(Error::BatchRefused { entry: 0 })), "{answers:?}");

        let answers = engine.commit_batch(&mut [record("done"), record("new")], false).unwrap();
        assert!(matches!(answers[0], Ok(EntryDone::Recorded(Err(_)))), "{answers:?}");
        assert!(matches!(answers[1], Ok(EntryDone::Recorded(Ok(_)))), "{answers:?}");
    }
}
