//! Writes decided changes: appends their records to the log, waits for them, and points the index to them.
//!
//! ```text
//! decide -> Change -> append (into the gathering batch) -> wait (write, sync) -> apply (index, space usage, claim)
//! ```
//!
//! Every change of a key is written here: those of single calls, those of calls that change several keys, and the moves
//! of reclaiming. The changes of one call are passed as one slice and become part of one frame, so that a crash keeps
//! all of them or none.
//!
//! This module touches the log, the [`Records`], and the claims on the flights (the per-key locks). The caller enters the
//! flights of all keys that it changes before it decides, and holds them until the changes are applied.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::counters::Counted;
use super::decide::{ClaimChange, Draft};
use super::records::{HashedKey, IndexEntry, Records};
use super::unfinished::BegunAttempt;
use super::view::View;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Record};
use crate::hash::ByHash;
use crate::index::Address;
use crate::key::Key;
use crate::log::Reservation;
use crate::log::commit::{NewRecord, Ticket, Until};
use crate::planted::{Bug, planted};
use crate::record::{PendingMessage, RecordSize, Retention};
use crate::status::{Status, Version};
use crate::step_set::{Step, StepState};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Generates the versions of one session: the time from opening a store until it is closed.
#[derive(Debug)]
pub(super) struct Versions {
    path: PathBuf,
    open_count: u32,
    /// The counter of the last version that was generated.
    counter: AtomicU64,
}

impl Versions {
    pub(super) fn new(path: PathBuf, open_count: u32, counter: u64) -> Versions {
        Versions { path, open_count, counter: AtomicU64::new(counter) }
    }

    /// Generates the next version. Called only while the key's flight is held, so that a later record of a key always
    /// has a higher version.
    pub(super) fn next(&self) -> Result<Version> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        Version::compose(self.open_count, counter).ok_or_else(|| Error::changes_exhausted(&self.path))
    }

    /// The counter of the last version that was generated.
    pub(super) fn last_counter(&self) -> u64 {
        self.counter.load(Ordering::SeqCst)
    }
}

impl<'a> Draft<'a> {
    /// The record of this draft, with `version` and the time of the view.
    pub(super) fn record(
        &self,
        key: Key<'a>,
        now_ms: u64,
        retention: Retention,
        version: Version,
    ) -> Record<'a> {
        let (key_expires_ms, result_expires_ms) = match self.kind {
            Kind::Completed | Kind::Released => retention.expiries(now_ms),
            _ => (NEVER_MS, NEVER_MS),
        };
        Record {
            kind: self.kind,
            key,
            version,
            origin: self.origin.unwrap_or(version),
            fingerprint: self.fingerprint,
            attempt: self.attempt,
            time_ms: now_ms,
            key_expires_ms,
            result_expires_ms,
            value: self.value,
        }
    }
}

/// The effect of a change on index, space usage and claims, applied once its record is written.
#[derive(Debug)]
pub(super) struct Effect {
    /// The hash of the key.
    pub(super) hash: u128,
    /// The size of the new record.
    pub(super) size: RecordSize,
    /// The store time at which space usage counts the record as appended.
    pub(super) time_ms: u64,
    /// The index entry that the record replaces.
    pub(super) replaced: Option<IndexEntry>,
    pub(super) kind: EffectKind,
}

/// Whether a change sets a new state or moves a record.
#[derive(Debug)]
pub(super) enum EffectKind {
    /// The key has a new state. A claim may begin with it, or the present one may end. `begun` is set if the record is that
    /// of an attempt that began.
    Changed { begins: Option<Claim>, ends_claim: bool, begun: Option<BegunAttempt>, resolves_doubt: bool },
    /// The record is a copy of the key's last one. Callers that wait for the key to change are not woken.
    Moved,
    /// A step of the operation has a new state. The flight is that of the operation's key, and its waiters are not woken.
    StepChanged { parent: u128, step: StepChange },
    /// The record is a copy of the last one of a step, which was at `from`.
    StepMoved { parent: u128, from: Address },
    /// The record is a message that is pending from now on.
    Emitted(PendingMessage),
    /// The record acknowledges a message.
    Acknowledged,
}

/// The new state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StepChange {
    pub(super) version: Version,
    pub(super) state: StepState,
    /// The generation of the operation in which the step is claimed; 0 if it is not.
    pub(super) claim: u32,
    pub(super) is_visited: bool,
}

/// A decided change of one key, with its encoded and checksummed record.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) record: NewRecord<'a>,
    pub(super) effect: Effect,
    pub(super) flight: &'a FlightGuard<'a>,
}

impl<'a> Change<'a> {
    /// Turns a draft into a change: its record gets `version` and the time of the view.
    pub(super) fn new(
        records: &Records,
        (key, view): (HashedKey<'a>, &View),
        draft: &Draft<'a>,
        retention: Retention,
        version: Version,
        flight: &'a FlightGuard<'a>,
    ) -> Change<'a> {
        let record = draft.record(key.key, view.now_ms, retention, version);
        let begun = (record.kind == Kind::Begun).then_some(BegunAttempt {
            since_ms: record.time_ms,
            version,
            origin: record.origin,
        });
        let record = records.log().encode(&record, key.hash);
        let begins = match draft.claim {
            ClaimChange::Lease { deadline_ms } => {
                Some(Claim::Lease { version, attempt: draft.attempt, deadline_ms })
            }
            ClaimChange::Keep | ClaimChange::End => None,
        };
        let effect = Effect {
            hash: key.hash,
            size: record.size,
            time_ms: view.now_ms,
            replaced: view.entry,
            kind: EffectKind::Changed {
                begins,
                begun,
                ends_claim: draft.claim == ClaimChange::End,
                // A lease that ends its own attempt late has not left a doubt, and an attempt that never ran neither.
                resolves_doubt: view.status == Status::InDoubt
                    && matches!(view.claim, None | Some(Claim::Doubt { .. }))
                    && (draft.kind != Kind::Begun || begins.is_some()),
            },
        };
        Change { record, effect, flight }
    }

    /// The lease that begins with the change, if one does.
    pub(super) fn lease(&self) -> Option<Claim> {
        match self.effect.kind {
            EffectKind::Changed { begins, .. } => begins,
            EffectKind::Moved
            | EffectKind::StepChanged { .. }
            | EffectKind::StepMoved { .. }
            | EffectKind::Emitted(_)
            | EffectKind::Acknowledged => None,
        }
    }

    /// Wakes the callers that wait for a new state of the key when the flight is left, if the change brings one.
    fn note(&self) {
        if !matches!(self.effect.kind, EffectKind::StepChanged { .. } | EffectKind::StepMoved { .. }) {
            self.flight.note_change();
        }
    }
}

/// The write path of one store.
#[derive(Debug)]
pub(super) struct WritePath {
    records: Arc<Records>,
}

impl WritePath {
    pub(super) fn new(records: Arc<Records>) -> WritePath {
        WritePath { records }
    }

    /// Appends the records of `changes` to the gathering batch, all of them to the same frame. `reservation` is the
    /// space for all of them.
    pub(super) fn append(
        &self,
        changes: &[Change<'_>],
        reservation: Reservation,
        until: Until,
    ) -> Result<Ticket> {
        self.records.log().append(changes.iter().map(|change| &change.record), reservation, until)
    }

    /// Waits until the changes are as durable as their ticket demands, and applies them.
    pub(super) fn finish(&self, changes: &[Change<'_>], ticket: &Ticket) -> Result<()> {
        let written = self.wait_and_apply(changes, ticket);
        for change in changes {
            // This is done even if the write failed: the waiters then wake, read the state again and find the store
            // poisoned.
            change.note();
        }
        written
    }

    fn wait_and_apply(&self, changes: &[Change<'_>], ticket: &Ticket) -> Result<()> {
        let mut offset = self.records.log().wait(ticket)?.offset;
        // The changes are applied all or none: if the last address is in range, so are the others.
        let frame_bytes: u64 = changes.iter().map(|change| change.effect.size.length_bytes).sum();
        let last_bytes = changes.last().map_or(0, |change| change.effect.size.length_bytes);
        self.records.log().address_at(offset + frame_bytes - last_bytes)?;
        for (number, change) in changes.iter().enumerate() {
            let address = self.records.log().address_at(offset)?;
            let later = &changes[number + 1..];
            // If several changes are of the same key, only the last one enters the index.
            if later.iter().any(|later| later.effect.hash == change.effect.hash) {
                self.records.add_dead(&change.effect);
            } else {
                self.records.apply(&change.effect, address, change.flight);
            }
            offset += change.effect.size.length_bytes;
        }
        Ok(())
    }

    /// Waits until the changes are as durable as the tickets demand, and applies all of them. Each number in `frames` is the
    /// end, in `changes`, of those that its ticket is for.
    pub(super) fn finish_frames(&self, changes: &[Change<'_>], frames: &[(usize, Ticket)]) -> Result<()> {
        let written = self.wait_for_frames(changes, frames);
        for change in changes {
            // As in `finish`, also after a failure.
            change.note();
        }
        let addresses = written?;
        // If several changes are of the same key, only the last one enters the index.
        let mut seen: HashSet<u128, ByHash> =
            HashSet::with_capacity_and_hasher(changes.len(), ByHash::default());
        let mut is_last: Vec<bool> =
            changes.iter().rev().map(|change| seen.insert(change.effect.hash)).collect();
        is_last.reverse();
        for ((change, address), is_last) in changes.iter().zip(addresses).zip(is_last) {
            if is_last {
                self.records.apply(&change.effect, address, change.flight);
            } else {
                self.records.add_dead(&change.effect);
            }
        }
        Ok(())
    }

    /// Waits for the frames. Returns the address of each change.
    fn wait_for_frames(&self, changes: &[Change<'_>], frames: &[(usize, Ticket)]) -> Result<Vec<Address>> {
        let log = self.records.log();
        let mut addresses = Vec::with_capacity(changes.len());
        for (end, ticket) in frames {
            let mut offset = log.wait(ticket)?.offset;
            for change in &changes[addresses.len()..*end] {
                addresses.push(log.address_at(offset)?);
                offset += change.effect.size.length_bytes;
            }
        }
        Ok(addresses)
    }

    /// Waits until a single record that was appended along with others is written, and applies it.
    pub(super) fn finish_along(
        &self,
        effect: &Effect,
        flight: &FlightGuard<'_>,
        ticket: &Ticket,
    ) -> Result<()> {
        let offset = self.records.log().wait(ticket)?.offset;
        let address = self.records.log().address_at(offset)?;
        self.records.apply(effect, address, flight);
        Ok(())
    }
}

impl Records {
    /// Points the index to a written record, counts the replaced record as dead, and sets or ends the claim.
    fn apply(&self, effect: &Effect, address: Address, flight: &FlightGuard<'_>) {
        let Effect { hash, size, time_ms, replaced, .. } = *effect;
        match effect.kind {
            EffectKind::StepChanged { parent, step } => {
                return self.apply_step(effect, parent, step, address);
            }
            EffectKind::StepMoved { parent, from } => {
                return self.apply_step_move(effect, parent, from, address);
            }
            EffectKind::Changed { .. }
            | EffectKind::Moved
            | EffectKind::Emitted(_)
            | EffectKind::Acknowledged => {}
        }
        // A lease is published before the index points to its record. Otherwise a caller that reads without the flight
        // could find the attempt without its lease, and take the operation to be in doubt.
        let publish_lease = || {
            if let EffectKind::Changed { begins: Some(claim), .. } = effect.kind {
                flight.set_claim(Some(claim));
            }
        };
        if !planted(Bug::LeaseAfterIndex) {
            publish_lease();
        }
        match (replaced, size.kind) {
            (Some(old), Kind::Forgotten | Kind::Acknowledged) => {
                self.index().remove(hash, old.address);
            }
            (Some(old), _) => {
                let is_replaced = self.index().replace(hash, old.address, address);
                debug_assert!(is_replaced, "the entry changed although the flight was held");
            }
            (None, Kind::Forgotten | Kind::Acknowledged) => {}
            (None, _) => self.index().insert(hash, address),
        }
        if planted(Bug::LeaseAfterIndex) {
            publish_lease();
        }
        if let Some(old) = replaced {
            self.log().space_usage().mark_dead(&old.size);
            match effect.kind {
                EffectKind::Moved => self.unreadable().replace(old.address, address),
                _ => self.unreadable().remove(old.address),
            }
        }
        if let EffectKind::Changed { begun, .. } = effect.kind {
            self.note_unfinished(effect, begun);
        }
        if let EffectKind::Emitted(message) = &effect.kind {
            self.outbox().add(message);
        }
        self.count(effect);
        self.log().space_usage().add(&size, time_ms);
        if let EffectKind::Changed { ends_claim: true, .. } = effect.kind {
            flight.set_claim(None);
        }
    }

    /// Adds the operation to the table of unfinished ones, or removes it together with its steps.
    fn note_unfinished(&self, effect: &Effect, begun: Option<BegunAttempt>) {
        let old_kind = effect.replaced.map(|old| old.size.kind);
        let ended = match (begun, old_kind) {
            (Some(begun), _) => self.unfinished().insert(effect.hash, begun),
            // An unreadable record may be that of an attempt which began.
            (None, Some(Kind::Begun | Kind::Unreadable)) if !planted(Bug::FinishedStaysUnfinished) => {
                self.unfinished().remove(effect.hash)
            }
            _ => None,
        };
        let Some(ended) = ended else { return };
        self.log().space_usage().mark_dead(&RecordSize::of_steps(ended.live_bytes()));
        if self.unreadable().count() > 0 {
            ended.addresses().for_each(|address| self.unreadable().remove(address));
        }
    }

    /// Points the step to a written record, and counts the replaced record as dead.
    fn apply_step(&self, effect: &Effect, parent: u128, change: StepChange, address: Address) {
        let StepChange { version, state, claim, is_visited } = change;
        let old = self.unfinished().step(parent, effect.hash);
        let found = Step::found(version, address, &effect.size, state);
        let dead_bytes = self.unfinished().put_step(parent, effect.hash, Step { claim, is_visited, ..found });
        self.log().space_usage().add(&effect.size, effect.time_ms);
        if let Some(old) = old {
            self.unreadable().remove(old.address);
        }
        if dead_bytes > 0 {
            self.log().space_usage().mark_dead(&RecordSize::of_steps(dead_bytes));
        }
    }

    /// Points the step to a copy of its record. If the step has another record by now, or its operation has ended, the copy
    /// is dead.
    fn apply_step_move(&self, effect: &Effect, parent: u128, from: Address, address: Address) {
        self.log().space_usage().add(&effect.size, effect.time_ms);
        let last = self.unfinished().step(parent, effect.hash).filter(|step| step.address == from);
        let dead_bytes = match last {
            Some(step) => {
                self.unreadable().replace(from, address);
                let moved = Step::found(step.version, address, &effect.size, step.state);
                let Step { claim, is_visited, .. } = step;
                self.unfinished().put_step(parent, effect.hash, Step { claim, is_visited, ..moved })
            }
            None => effect.size.length_bytes,
        };
        self.log().space_usage().mark_dead(&RecordSize::of_steps(dead_bytes));
    }

    /// Counts a change for the statistics.
    fn count(&self, effect: &Effect) {
        let EffectKind::Changed { resolves_doubt, .. } = effect.kind else { return };
        let counted = match effect.size.kind {
            Kind::Begun => Counted::Begun,
            Kind::Completed => Counted::Completed,
            Kind::Released => Counted::Released,
            Kind::Forgotten => Counted::Forgotten,
            _ => return,
        };
        self.counters().add(counted);
        if resolves_doubt {
            self.counters().add(Counted::Resolved);
        }
    }

    /// Counts a record that is dead as soon as it is written.
    fn add_dead(&self, effect: &Effect) {
        self.count(effect);
        self.log().space_usage().add(&effect.size, effect.time_ms);
        self.log().space_usage().mark_dead(&effect.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::engine::decide::{self, Decision};
    use crate::engine::records::Want;
    use crate::engine::terms::Request;
    use crate::format::record::Value;
    use crate::log::reservations::ReservationClass;
    use crate::sync::Patience;
    use crate::{Options, Status};

    fn engine() -> Arc<Engine> {
        Arc::new(Options::new().open_nowhere().unwrap())
    }

    /// Records `results` in one commit. Returns for each the offset in the file of its key's last record.
    fn commit_together(engine: &Engine, results: &[(&str, &'static [u8])]) -> Vec<u64> {
        let terms = engine.settings().terms;
        let mut keys: Vec<HashedKey<'_>> =
            results.iter().map(|(name, _)| engine.admit(Key::new(name)).unwrap()).collect();
        keys.sort_by_key(|key| key.hash);
        keys.dedup_by_key(|key| key.hash);
        let flights: Vec<FlightGuard<'_>> = keys.iter().map(|key| engine.flights.enter(key.hash)).collect();
        let changes: Vec<Change<'_>> = results
            .iter()
            .map(|(name, result)| {
                let key = engine.admit(Key::new(name)).unwrap();
                let at = keys.iter().position(|other| other.hash == key.hash).unwrap();
                let view = engine
                    .viewer
                    .view(key, &flights[at], engine.clock.now_ms(), (Want::State, None))
                    .unwrap();
                let request = Request::from(crate::Fingerprint::NONE);
                let decision = decide::record(&view, request, Value::bytes(result), &terms);
                let Decision::Write(draft) = decision else { panic!("{decision:?}") };
                let version = engine.versions.next().unwrap();
                let subject = (key, &view);
                Change::new(&engine.records, subject, &draft, terms.retention, version, &flights[at])
            })
            .collect();
        let reservation = engine.log().reserve(64 << 10, ReservationClass::Begin).unwrap().unwrap();
        engine.commit(&changes, reservation, Until::Synced).unwrap();
        let address = |key: HashedKey<'_>| {
            let found = engine.records.lookup(key, 0, Want::State).unwrap().unwrap();
            found.address.offset()
        };
        results.iter().map(|(name, _)| address(engine.admit(Key::new(name)).unwrap())).collect()
    }

    fn result(engine: &Engine, name: &str) -> Vec<u8> {
        let (status, found) = engine.get(Key::new(name), Patience::Endless).unwrap();
        assert_eq!(status, Status::Completed, "{name}");
        found.unwrap().result.unwrap()
    }

    #[test]
    fn the_changes_of_one_commit_share_a_frame_and_a_sync() {
        let engine = engine();
        let before = engine.log().syncs();
        let offsets = commit_together(&engine, &[("a", b"1"), ("b", b"22"), ("c", b"333")]);
        assert_eq!(engine.log().syncs(), before + 1);
        let length = |result: &'static [u8]| {
            crate::format::record::encoded_bytes(Key::new("a"), &Value::bytes(result))
        };
        // Only records of the same frame are adjacent: between two frames there is a header.
        assert_eq!(offsets[1], offsets[0] + length(b"1"));
        assert_eq!(offsets[2], offsets[1] + length(b"22"));
        for (name, expected) in [("a", &b"1"[..]), ("b", b"22"), ("c", b"333")] {
            assert_eq!(result(&engine, name), expected);
        }
        assert_eq!(engine.log().reserved_bytes(), 0);
    }

    #[test]
    fn only_the_last_of_two_changes_to_a_key_is_live() {
        let engine = engine();
        commit_together(&engine, &[("a", b"first"), ("b", b"other"), ("a", b"last")]);
        assert_eq!(result(&engine, "a"), b"last");
        assert_eq!(result(&engine, "b"), b"other");
        assert_eq!(engine.index().len(), 2);
        let first = crate::format::record::encoded_bytes(Key::new("a"), &Value::bytes(b"first"));
        assert_eq!(engine.log().space_usage().totals(engine.clock.now_ms()).dead_bytes, first);
    }
}
