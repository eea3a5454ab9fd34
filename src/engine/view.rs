//! Reads the current state of a key, and answers callers from it. Changes nothing.
//!
//! A call that is about to change a key takes a [`View`] while it holds the key's flight (the per-key lock), which
//! keeps the state from changing. A call that only reads takes a [`Seen`], without a flight and without waiting for
//! other callers.

use std::sync::Arc;

use super::counters::{Counted, Counters};
use super::records::{Found, HashedKey, IndexEntry, Records, Sight, Unreadable, Want, found_at};
use super::terms::{Durability, Request};
use crate::clock::StoreClock;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard, Flights};
use crate::format::CopyState;
use crate::format::record::Record;
use crate::index::Address;
use crate::key::Key;
use crate::log::reader::RecordLocation;
use crate::planted::{Bug, planted};
use crate::record::Liveness;
use crate::status::{Status, Version};
use crate::step_set::{Step, StepCounts, StepState};
use crate::sync::Patience;

/// A key's state, read while its flight is held. Decisions are made from it.
#[derive(Debug)]
pub(super) struct View {
    /// The key's last record, unless the key is gone or the record cannot be read.
    pub(super) found: Option<Found>,
    /// The index entry that the key's next record replaces. A key that is gone may still have an entry. The flight
    /// keeps the entry from changing.
    pub(super) entry: Option<IndexEntry>,
    /// The key's last record, if it cannot be read. `found` is None then, and the status follows from the footer, or
    /// from the record that carries the unreadable one.
    pub(super) unreadable: Option<Unreadable>,
    /// The claim on the key when its flight was entered.
    pub(super) claim: Option<Claim>,
    pub(super) status: Status,
    /// The steps of an operation that began and has not ended.
    pub(super) steps: StepCounts,
    /// The key is in doubt only because the store, a copy, may have forgotten an operation. Nothing is found then.
    pub(super) is_forgotten: bool,
    /// A key that the store does not know is in doubt now.
    pub(super) in_window: bool,
    /// The store time at which the view was taken, and so the time of a change that is decided from it.
    pub(super) now_ms: u64,
}

impl View {
    /// The view of the key after a change that was decided from this one and is not written yet. `claim` is the claim that
    /// the change leaves. The next change replaces the same index entry, because only the last one enters the index.
    pub(super) fn after(&self, record: &Record<'_>, claim: Option<Claim>) -> View {
        let mut found =
            found_at(Address::NOWHERE, RecordLocation { position: 0, length_bytes: 0 }, record, self.now_ms);
        found.result = record.value.result.map(<[u8]>::to_vec);
        // A later attempt keeps the steps, and an operation that begins has none yet.
        let keeps_steps = self.found.as_ref().is_some_and(|earlier| {
            earlier.liveness == Liveness::Begun
                && found.liveness == Liveness::Begun
                && earlier.origin == found.origin
        });
        let steps = if keeps_steps { self.steps } else { StepCounts::default() };
        let status = status(Some(&found), claim, steps, self.now_ms);
        let entry = self.entry;
        View {
            found: Some(found),
            entry,
            unreadable: None,
            claim,
            status,
            steps,
            is_forgotten: false,
            ..*self
        }
    }

    /// Shows an attempt that never runs as begun again, so that its release can be decided.
    pub(super) fn show_unstarted(&mut self) {
        let Some(found) = &mut self.found else { return };
        if self.claim == Some(Claim::Unstarted { version: found.version }) {
            found.liveness = Liveness::Begun;
            self.status = Status::InDoubt;
        }
    }

    /// The number of the key's last attempt; 0 if there is none on record.
    pub(super) fn attempt(&self) -> u32 {
        self.found.as_ref().map_or(0, |found| found.attempt)
    }
}

/// A key's state, read without its flight.
pub(super) struct Seen {
    pub(super) status: Status,
    pub(super) found: Option<Found>,
    /// The claim, if an attempt began and has not ended.
    claim: Option<Claim>,
}

impl Seen {
    /// Whether the key is in doubt only because the store may have forgotten an operation.
    pub(super) fn is_forgotten(&self) -> bool {
        self.status == Status::InDoubt && self.found.is_none()
    }

    /// The number of the attempt that another caller is running, or is resolving the doubt about.
    pub(super) fn attempt_at_work(&self) -> Option<u32> {
        let found = self.found.as_ref()?;
        match self.claim {
            _ if self.status == Status::InProgress => Some(found.attempt),
            Some(Claim::Doubt { version, attempt, .. }) if version == found.version => Some(attempt),
            _ => None,
        }
    }
}

/// Reads the states of keys.
#[derive(Debug)]
pub(super) struct Viewer {
    records: Arc<Records>,
    flights: Arc<Flights>,
    clock: Arc<StoreClock>,
    counters: Arc<Counters>,
    /// What the store may have forgotten, if its file is a copy.
    copy: CopyState,
}

impl Viewer {
    pub(super) fn new(
        records: Arc<Records>,
        flights: Arc<Flights>,
        clock: Arc<StoreClock>,
        counters: Arc<Counters>,
        copy: CopyState,
    ) -> Viewer {
        Viewer { records, flights, clock, counters, copy }
    }

    /// Whether a key that the store does not know is in doubt now.
    fn in_window(&self, now_ms: u64) -> bool {
        now_ms < self.copy.in_doubt_until_ms && !planted(Bug::ForgottenKeyAbsent)
    }

    /// Whether a key that is absent according to its last record is in doubt, because the store may have forgotten later
    /// ones. A release by a session that knew of this is no such record: it says what is the case now.
    fn is_forgotten(&self, status: Status, found: Option<&Found>, now_ms: u64) -> bool {
        let is_known = |found: &Found| {
            found.liveness == Liveness::Released && found.version.open_count() >= self.copy.answered_by
        };
        status == Status::Absent && self.in_window(now_ms) && !found.is_some_and(is_known)
    }

    /// Whether a step that the store does not know as begun or done is in doubt, because the store may have forgotten what
    /// became of it. `known` is its last record. As for a key, only a release by a session that knew of this says that there
    /// is nothing to find out.
    ///
    /// This is so for the steps of every operation, also of one that began since. The store cannot tell a job that is new
    /// from one whose begin it has forgotten, together with the steps that ran. Both begin with a doubt about the key; a job
    /// that resolves it by `rerun` relies on the records of its steps.
    pub(super) fn may_have_forgotten_step(&self, known: Option<&Step>, now_ms: u64) -> bool {
        let is_open_to_doubt = known.is_none_or(|step| {
            step.state == StepState::Released && step.version.open_count() < self.copy.answered_by
        });
        is_open_to_doubt && self.in_window(now_ms) && !planted(Bug::ForgottenStepRuns)
    }

    /// Whether the store may have forgotten a later attempt at an unfinished operation than that of `version`.
    pub(super) fn may_have_forgotten_attempt(&self, version: Version, now_ms: u64) -> bool {
        self.in_window(now_ms)
            && version.open_count() < self.copy.answered_by
            && !planted(Bug::ForgottenAttemptStopped)
    }

    /// The steps of the operation that began with this record.
    pub(super) fn step_counts(&self, hash: u128, begun: &Found, now_ms: u64) -> StepCounts {
        let may_be_forgotten = self.may_have_forgotten_attempt(begun.version, now_ms);
        StepCounts { may_be_forgotten, ..self.records.step_counts(hash, begun) }
    }

    /// Reads the key's state, which `flight` keeps from changing. Succeeds even if the key's last record cannot be
    /// read. The record is not read if it is `seen`, which the caller read before it entered the flight.
    pub(super) fn view(
        &self,
        key: HashedKey<'_>,
        flight: &FlightGuard<'_>,
        now_ms: u64,
        (want, seen): (Want, Option<&Found>),
    ) -> Result<View> {
        let claim = flight.claim();
        let in_window = self.in_window(now_ms);
        let view = View {
            found: None,
            entry: None,
            unreadable: None,
            claim,
            status: Status::Absent,
            steps: StepCounts::default(),
            is_forgotten: false,
            in_window,
            now_ms,
        };
        let last = match seen
            .filter(|seen| seen.still_means_the_same(now_ms) && self.records.is_last(key.hash, seen))
        {
            Some(seen) => Some(Sight::Read(seen.clone())),
            None => self.records.last_record(key, now_ms, want)?,
        };
        let mut view = match last {
            None => view,
            Some(Sight::Read(last)) => {
                let entry = Some(IndexEntry { address: last.address, size: last.size });
                let mut found = Some(last).filter(|found| found.liveness != Liveness::Gone);
                hide_unstarted(found.as_mut(), claim);
                let begun = found.as_ref().filter(|found| found.liveness == Liveness::Begun);
                let steps =
                    begun.map_or(StepCounts::default(), |begun| self.step_counts(key.hash, begun, now_ms));
                let status = status(found.as_ref(), claim, steps, now_ms);
                View { found, entry, status, steps, ..view }
            }
            Some(Sight::Unreadable(lost)) => {
                let entry = Some(IndexEntry { address: lost.address, size: lost.size });
                let steps = match lost.liveness {
                    Liveness::Begun | Liveness::Unreadable => self.records.unfinished().step_counts(key.hash),
                    _ => StepCounts::default(),
                };
                // The doubt is about the record itself, whatever its steps.
                let status =
                    status_of(Some((lost.liveness, lost.version)), claim, StepCounts::default(), now_ms);
                let unreadable = Some(lost).filter(|lost| lost.liveness != Liveness::Gone);
                View { entry, unreadable, status, steps, ..view }
            }
        };
        if self.is_forgotten(view.status, view.found.as_ref(), now_ms) {
            view = View { found: None, status: Status::InDoubt, is_forgotten: true, ..view };
        }
        Ok(view)
    }

    /// Reads the key's state for a call that only reads. Waits for no other caller: while another thread is changing
    /// the key, this returns the state before the change, until the index points to the new record. That record is then
    /// as durable as its caller asked for.
    ///
    /// The record and the claim are read one after the other, but the result is the state at one moment. This relies on
    /// the order of a change: a lease is published before the index points to its record, and a change ends the lease
    /// after the index points to the next record. So, if the index pointed to the record of an attempt:
    ///
    /// - If the claim is the lease of that record, the lease existed when the index was read. The operation is in
    ///   progress.
    /// - Otherwise the index is read again. If it still points to that record, it did so when the claim was read, so the
    ///   operation is in doubt. If not, the key was changed or its record moved meanwhile, and this starts again with the
    ///   record found now.
    pub(super) fn look(&self, key: HashedKey<'_>, mut now_ms: u64, want: Want) -> Result<Seen> {
        loop {
            let mut found = self.records.lookup(key, now_ms, want)?;
            let Some(begun) = found.as_ref().filter(|found| found.liveness == Liveness::Begun) else {
                let status = status(found.as_ref(), None, StepCounts::default(), now_ms);
                if self.is_forgotten(status, found.as_ref(), now_ms) {
                    return Ok(Seen { status: Status::InDoubt, found: None, claim: None });
                }
                return Ok(Seen { status, found, claim: None });
            };
            let claim = self.flights.claim(key.hash);
            now_ms = self.clock.now_ms();
            let steps = self.step_counts(key.hash, begun, now_ms);
            let mut status = status(Some(begun), claim, steps, now_ms);
            if status == Status::InProgress
                || planted(Bug::IndexReadOnce)
                || self.records.is_last(key.hash, begun)
            {
                if hide_unstarted(found.as_mut(), claim) {
                    status = Status::Absent;
                }
                return Ok(Seen { status, found, claim });
            }
        }
    }

    /// Returns the key's state, once it is as durable as `durability` demands. May wait for a sync. Returns
    /// [`Error::Busy`] if another thread's sync takes longer than `patience`.
    pub(super) fn get(
        &self,
        key: HashedKey<'_>,
        durability: Durability,
        patience: Patience,
    ) -> Result<(Status, Option<Found>)> {
        let Seen { status, found, .. } = self.look(key, self.clock.now_ms(), Want::Result)?;
        match (&found, durability) {
            (Some(found), Durability::Sync)
                if !self.records.log().sync_to_within(found.end(), patience)? =>
            {
                Err(Error::Busy { path: self.records.path().to_owned(), key: Some(key.key.to_owned()) })
            }
            _ => Ok((status, found)),
        }
    }

    /// Appends the result of a completed operation to `buffer`. Returns None if the operation is not completed.
    pub(super) fn replay_into(
        &self,
        key: HashedKey<'_>,
        request: Request,
        durability: Durability,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Version>> {
        let now_ms = self.clock.now_ms();
        let found = self.records.read(key, now_ms, |address, place, record| {
            let found = found_at(address, place, record, now_ms);
            if found.liveness == Liveness::Completed && request.is(found.fingerprint) {
                buffer.extend_from_slice(record.value.result.unwrap_or_default());
            }
            found
        })?;
        match found {
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            Some(Sight::Read(found)) if !matches!(found.liveness, Liveness::Gone | Liveness::Released) => {
                if found.liveness == Liveness::Begun {
                    // Read together with its claim: the attempt may be one that never runs.
                    let Some(found) = self.look(key, now_ms, Want::State)?.found else { return Ok(None) };
                    if found.liveness != Liveness::Begun {
                        return Ok(None);
                    }
                    self.check_request(key.key, request, &found, durability)?;
                    return Ok(None);
                }
                self.check_replay(key.key, request, &found, durability)?;
                Ok(Some(found.version))
            }
            _ => Ok(None),
        }
    }

    /// Returns once the record that was found is durable enough to answer a call with this durability.
    pub(super) fn ensure_durable(&self, found: &Found, durability: Durability) -> Result<()> {
        match durability {
            Durability::Sync => self.records.log().sync_to(found.end()),
            Durability::Buffered => Ok(()),
        }
    }

    /// Returns once the result of the completed operation may be replayed to a caller with this request. Fails if the
    /// request differs, or if the result was not recorded or has expired.
    pub(super) fn check_replay(
        &self,
        key: Key<'_>,
        request: Request,
        found: &Found,
        durability: Durability,
    ) -> Result<()> {
        self.check_request(key, request, found, durability)?;
        self.ensure_durable(found, durability)?;
        if found.not_kept {
            return Err(Error::ResultNotKept { key: key.to_owned() });
        }
        if found.liveness == Liveness::CompletedWithoutResult {
            return Err(Error::ResultExpired { key: key.to_owned() });
        }
        self.counters.add(Counted::Replayed);
        crate::events::replayed(key);
        Ok(())
    }

    /// Returns [`Error::Mismatch`] if the record that was found belongs to a different request, once the record is as
    /// durable as `durability` demands.
    pub(super) fn check_request(
        &self,
        key: Key<'_>,
        request: Request,
        found: &Found,
        durability: Durability,
    ) -> Result<()> {
        if request.is(found.fingerprint) {
            return Ok(());
        }
        self.ensure_durable(found, durability)?;
        Err(self.mismatch(key))
    }

    /// The error of a call with a different request from the recorded one. Also emits the event and counts it.
    pub(super) fn mismatch(&self, key: Key<'_>) -> Error {
        self.counters.add(Counted::Mismatched);
        crate::events::mismatched(key);
        Error::Mismatch { key: key.to_owned() }
    }
}

/// The error of a call that finds a key in doubt because the store may have forgotten an operation, and does not resolve
/// doubts. There is no record of an attempt. Also emits the event.
pub(super) fn may_be_forgotten(key: Key<'_>) -> Error {
    crate::events::found_in_doubt(key, 0);
    Error::InDoubt { key: key.to_owned(), attempt: 0, version: Version::from_u64(0), reason: None }
}

/// Whether the attempt that was found never runs: see [`Claim::Unstarted`].
fn is_unstarted(found: &Found, claim: Option<Claim>) -> bool {
    found.liveness == Liveness::Begun && claim == Some(Claim::Unstarted { version: found.version })
}

/// Presents the record of an attempt that never runs as that of its release, which is yet to be written.
fn hide_unstarted(found: Option<&mut Found>, claim: Option<Claim>) -> bool {
    let Some(found) = found.filter(|found| is_unstarted(found, claim)) else { return false };
    found.liveness = Liveness::Released;
    true
}

/// Returns the status of a key whose last record is `found`.
fn status(found: Option<&Found>, claim: Option<Claim>, steps: StepCounts, now_ms: u64) -> Status {
    status_of(found.map(|found| (found.liveness, found.version)), claim, steps, now_ms)
}

/// Returns the status of a key from the liveness and the version of its last record. While the key's flight is held,
/// only the drop or the deadline of a lease can change the status.
pub(super) fn status_of(
    last: Option<(Liveness, Version)>,
    claim: Option<Claim>,
    steps: StepCounts,
    now_ms: u64,
) -> Status {
    match last {
        // A message is never looked up as a key.
        None | Some((Liveness::Gone | Liveness::Released | Liveness::Message, _)) => Status::Absent,
        Some((Liveness::Completed | Liveness::CompletedWithoutResult, _)) => Status::Completed,
        // An operation whose record cannot be read is in doubt, unless the record is known to have been of a different
        // kind.
        Some((Liveness::Begun | Liveness::Unreadable, version)) => match claim {
            Some(Claim::Lease { version: leased, deadline_ms, .. })
                if leased == version && now_ms < deadline_ms =>
            {
                Status::InProgress
            }
            _ if steps.are_settled() => Status::Stopped,
            _ => Status::InDoubt,
        },
    }
}
