//! Commits a batch: decides many changes under the flights of all their keys, and writes them with one wait.
//!
//! ```text
//! enter    the flights of all keys, in the order of their hashes
//! plan     for each entry in turn: view, decide, reserve space; without space for an entry, leave all flights,
//!          make space, and begin anew
//! write    as few frames as the records need, with one sync
//! answer   each entry, in order
//! ```
//!
//! Rules, and what each prevents:
//!
//! - Flights are entered in the order of their hashes. Two batches with the same keys cannot wait for each other.
//! - A begin or a record does not wait for a thread that is at the disk with its key, or for a claim. Its answer is that the
//!   operation is in progress. The end of an attempt does wait for such a thread: its caller would otherwise have to try again,
//!   and a caller that gave up would leave a doubt. That thread waits for no flight after this one, so it cannot wait for the batch.
//! - An entry is decided from what the entries before it leave of its key, so that a key that is there twice is answered as if one
//!   call had followed the other.
//! - Claims are set only once every entry has its space. A pass that has to begin anew leaves nothing behind.
//! - If there is no space for an entry, only entries that need the same class of space are refused. The end of an attempt has
//!   its own space, and is not refused because a begin beside it was.

mod plan;
mod answer;

use std::collections::HashMap;
use std::sync::Arc;

use super::assembly::Engine;
use super::begin::Began;
use super::change::{Grant, check_result};
use super::emit::messages_cost_bytes;
use super::records::{Found, HashedKey, Want};
use super::terms::{Finish, NewMessage, Request, Terms};
use crate::error::{Error, Result};
use crate::flights::FlightGuard;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{Kind, Value, encoded_bytes};
use crate::hash::ByHash;
use crate::key::Key;
use crate::log::reservations::{NoRoom, ReservationClass};
use crate::log::{Reservation, batch_limit_bytes};
use crate::planted::{Bug, planted};
use crate::status::Version;
use crate::sync::Patience;
use plan::{Group, Plan, Planned};

/// One entry of a batch.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) key: Key<'a>,
    pub(crate) terms: Terms,
    pub(crate) kind: EntryKind<'a>,
    /// The messages that are written with the completion that the entry records.
    pub(crate) messages: &'a [NewMessage],
}

/// What an entry does to its key.
#[derive(Debug)]
pub(crate) enum EntryKind<'a> {
    /// Begins an attempt. If the operation is in doubt, begins the next attempt if `reruns`, and gives the doubt to the caller
    /// otherwise.
    Begin { request: Request, reruns: bool },
    /// Records the operation as completed without an attempt.
    Record { request: Request, value: Value<'a> },
    /// Ends the attempt of `version`, whose lease or doubt the caller holds. `reservation` is the space that its begin reserved.
    Finish { version: Version, finish: Finish<'a>, reservation: &'a mut Reservation },
    /// Begins the next attempt, to resolve the doubt about the attempt of `version`.
    BeginAgain { version: Version },
    /// Does nothing, because the answer was known before the batch was committed: the version of an earlier completion, or a
    /// mistake of the caller.
    Known(Result<Version>),
}

impl<'a> Entry<'a> {
    /// The messages that are written with the entry's record, which is of this kind: none, unless it completes the operation.
    fn messages_of(&self, kind: Kind) -> &'a [NewMessage] {
        if kind == Kind::Completed { self.messages } else { &[] }
    }
}

impl EntryKind<'_> {
    fn request(&self) -> Option<Request> {
        match self {
            EntryKind::Begin { request, .. } | EntryKind::Record { request, .. } => Some(*request),
            EntryKind::Finish { .. } | EntryKind::BeginAgain { .. } | EntryKind::Known(_) => None,
        }
    }

    /// Whether the entry begins something, so that a path that leads elsewhere refuses it.
    fn begins(&self) -> bool {
        !matches!(self, EntryKind::Finish { .. } | EntryKind::Known(_))
    }
}

/// What an entry that was not refused has done or found.
#[derive(Debug)]
pub(crate) enum EntryDone {
    Began(Began),
    /// Began an attempt that resolves a doubt about an earlier one.
    BeganAgain(Grant),
    /// The version of the record or, if the operation was completed before, what was found.
    Recorded(std::result::Result<Version, Found>),
    /// The version of the record that ended the attempt.
    Finished(Version),
}

/// The number of bytes that the records of an atomic batch take, and the number that one frame can hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameSize {
    pub(crate) used_bytes: u64,
    pub(crate) limit_bytes: u64,
}

impl FrameSize {
    pub(crate) fn empty(engine: &Engine) -> FrameSize {
        let limit_bytes = batch_limit_bytes(engine.log().segment_bytes());
        FrameSize { used_bytes: FRAME_HEADER_BYTES as u64, limit_bytes }
    }

    /// Adds the record of an entry.
    pub(crate) fn add(&mut self, key: Key<'_>, value: &Value<'_>) {
        self.used_bytes += encoded_bytes(key, value) + ENTRY_BYTES;
    }

    /// Adds the records of an entry's messages.
    pub(crate) fn add_messages(&mut self, key: Key<'_>, messages: &[NewMessage]) {
        self.used_bytes += messages_cost_bytes(key, messages);
    }

    pub(crate) fn is_exceeded(self) -> bool {
        self.used_bytes > self.limit_bytes
    }
}

impl Engine {
    /// Commits a batch: see the [module](self). Returns the answer of each entry.
    ///
    /// If `is_atomic`, all records go into one frame, and if an entry is refused, nothing is written. The caller has made
    /// sure that they fit.
    ///
    /// After an error nothing has been acknowledged, and no claim has been given out. The reservations of the entries are
    /// as before, unless the disk has failed.
    pub(crate) fn commit_batch(
        self: &Arc<Self>,
        entries: &mut [Entry<'_>],
        is_atomic: bool,
    ) -> Result<Vec<Result<EntryDone>>> {
        let _events = crate::events::hold_back();
        self.admission.check_open()?;
        let mut full: Vec<(ReservationClass, Error)> = Vec::new();
        loop {
            let _inside = self.admission.enter()?;
            let no_room = match self.pass(entries, is_atomic, &full)? {
                Ok(answers) => return Ok(answers),
                Err(no_room) => no_room,
            };
            let class = no_room.class;
            match self.reclaim.make_room(no_room) {
                Ok(()) => {}
                Err(error @ (Error::Poisoned { .. } | Error::Closed | Error::Forked)) => return Err(error),
                Err(error) if planted(Bug::FullBeginRefusesBatch) => return Err(error),
                Err(error) => full.push((class, error)),
            }
        }
    }

    /// Decides all entries and writes their records. Fails with the inner error, and has changed nothing, if space has to be
    /// made first.
    fn pass(
        self: &Arc<Self>,
        entries: &mut [Entry<'_>],
        is_atomic: bool,
        full: &[(ReservationClass, Error)],
    ) -> Result<std::result::Result<Vec<Result<EntryDone>>, NoRoom>> {
        let (mut groups, group_of) = self.group(entries);
        let flights = self.enter_all(&groups);
        // As for a single call: a lease starts when it is granted, not when the call began to wait for a flight.
        let now_ms = self.clock.now_ms();
        let in_place = match entries.iter().any(|entry| entry.kind.begins()) {
            true => self.path_check.look_if_due(now_ms),
            false => Ok(()),
        };
        let mut planned = Planned { plans: Vec::new(), changes: Vec::new(), writes: Vec::new() };
        for (number, entry) in entries.iter().enumerate() {
            let refusal = self.refusal(entry, in_place.as_ref().err());
            let group = group_of[number].map(|at| (&mut groups[at], &flights[at]));
            let plan = match (refusal, group) {
                (Some(error), group) => {
                    group.into_iter().for_each(|(group, _)| group.left -= 1);
                    Plan::Refused(error)
                }
                (None, Some((group, Some(flight)))) => {
                    group.left -= 1;
                    match self.plan_entry((number, entry), group, flight, (now_ms, full), &mut planned)? {
                        Ok(plan) => plan,
                        Err(no_room) => return Ok(Err(no_room)),
                    }
                }
                (None, None) => match entry.kind {
                    EntryKind::Known(Ok(version)) => Plan::Known(version),
                    _ => Plan::Busy,
                },
                (None, Some((_, None))) => Plan::Busy,
            };
            planned.plans.push(plan);
        }
        if is_atomic {
            planned.refuse_all_if_any();
        }
        let mut answers = self.write_planned(entries, planned, (&group_of, &flights))?;
        drop(flights);
        if planted(Bug::BatchAnsweredOutOfOrder) {
            let mut sorted: Vec<_> = group_of.iter().zip(answers).collect();
            sorted.sort_by_key(|(group, _)| **group);
            answers = sorted.into_iter().map(|(_, answer)| answer).collect();
        }
        let answers = answers.into_iter().zip(entries.iter()).map(|(answer, entry)| match answer {
            Some(answer) => answer,
            // The key's flight was taken. Now that this thread holds no flight, it may wait for a sync.
            None => self.answer_busy(entry, is_atomic),
        });
        Ok(Ok(answers.collect()))
    }

    /// Groups the entries by key, in the order of the keys' hashes. Also returns the group of each entry, or None for an entry
    /// with an invalid key or a known answer.
    fn group<'a>(&self, entries: &[Entry<'a>]) -> (Vec<Group<'a>>, Vec<Option<usize>>) {
        let mut groups: Vec<Group<'a>> = Vec::with_capacity(entries.len());
        let mut by_hash: HashMap<u128, usize, ByHash> =
            HashMap::with_capacity_and_hasher(entries.len(), ByHash::default());
        let mut hashes = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.key.check().is_err() || matches!(entry.kind, EntryKind::Known(_)) {
                hashes.push(None);
                continue;
            }
            let hash = self.log().hasher().key(entry.key);
            hashes.push(Some(hash));
            let at = *by_hash.entry(hash).or_insert_with(|| {
                let key = HashedKey { key: entry.key, hash };
                let want = Want::State;
                groups.push(Group { key, left: 0, want, ends: false, ends_claim: false, view: None });
                groups.len() - 1
            });
            let group = &mut groups[at];
            group.left += 1;
            if entry.kind.request().is_some() {
                group.want = Want::Result;
            } else {
                group.ends = true;
            }
        }
        if !planted(Bug::BatchFlightsUnordered) {
            groups.sort_unstable_by_key(|group| group.key.hash);
        }
        by_hash.extend(groups.iter().enumerate().map(|(at, group)| (group.key.hash, at)));
        let group_of = hashes.into_iter().map(|hash| by_hash.get(&hash?).copied()).collect();
        (groups, group_of)
    }

    /// Enters the flights of the groups, in this order. None for a flight that is taken.
    fn enter_all(&self, groups: &[Group<'_>]) -> Vec<Option<FlightGuard<'_>>> {
        let enter = |group: &Group<'_>| match group.ends {
            true => Some(self.flights.enter(group.key.hash)),
            false => self.flights.enter_within(group.key.hash, Patience::None),
        };
        let flights: Vec<Option<FlightGuard<'_>>> = groups.iter().map(enter).collect();
        // This thread may wait for the disk from now on, so callers without patience must not wait for it.
        flights.iter().flatten().for_each(FlightGuard::note_disk);
        flights
    }
}

impl Engine {
    /// Why an entry is refused whatever the state of its key. `elsewhere` is the error of a path that leads elsewhere.
    fn refusal(&self, entry: &Entry<'_>, elsewhere: Option<&Error>) -> Option<Error> {
        let Entry { key, terms, kind, messages } = entry;
        if let EntryKind::Known(known) = kind {
            return known.as_ref().err().cloned();
        }
        let value = match kind {
            EntryKind::Record { value, .. } => Some(*value),
            EntryKind::Finish { finish, .. } => finish.value(),
            EntryKind::Begin { .. } | EntryKind::BeginAgain { .. } | EntryKind::Known(_) => None,
        };
        let checked = key.check().map_err(Error::from).and_then(|()| {
            let Some(value) = value else { return Ok(()) };
            check_result(*key, &value, terms)?;
            self.check_messages(*key, &value, messages)
        });
        checked.err().or_else(|| elsewhere.filter(|_| kind.begins()).cloned())
    }
}
