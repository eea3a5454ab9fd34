//! Writes changes: from a decided [`Change`] to its record in the log, and to the index that points to it.
//!
//! ```text
//! decide -> Change -> append (into the gathering batch) -> wait (write, sync) -> apply (index, space usage, claim)
//! ```
//!
//! Single calls and the moves of reclaiming go this way, and so does everything that changes several keys at once: the changes
//! of one call are one slice, which becomes part of one frame, so that a crash keeps all of them or none.
//!
//! Touches the log, the [`Records`], and the claims on the flights that the caller holds: those of all keys that it changes, from
//! before it decided until the changes are applied.

use std::path::PathBuf;
use std::sync::Arc;

use super::decide::{ClaimChange, Draft};
use super::records::{HashedKey, IndexEntry, Records};
use super::view::View;
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Record};
use crate::index::Address;
use crate::log::Reservation;
use crate::log::commit::{NewRecord, Ticket, Until};
use crate::planted::{Bug, planted};
use crate::record::{RecordSize, Retention};
use crate::status::Version;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Gives out the versions of one opening.
#[derive(Debug)]
pub(super) struct Versions {
    path: PathBuf,
    open_count: u32,
    /// The counter of the last version that was given out.
    counter: AtomicU64,
}

impl Versions {
    pub(super) fn new(path: PathBuf, open_count: u32, counter: u64) -> Versions {
        Versions { path, open_count, counter: AtomicU64::new(counter) }
    }

    /// The next version. Called only with a key's flight held, so that the versions of a key grow in the order of its records.
    pub(super) fn next(&self) -> Result<Version> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        Version::compose(self.open_count, counter).ok_or_else(|| Error::changes_exhausted(&self.path))
    }

    pub(super) fn last_counter(&self) -> u64 {
        self.counter.load(Ordering::SeqCst)
    }
}

/// What is applied once a change's record is written.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) hash: u128,
    pub(super) size: RecordSize,
    /// The time at which the record counts as appended.
    pub(super) time_ms: u64,
    /// What the record replaces in the index.
    pub(super) replaced: Option<IndexEntry>,
    pub(super) kind: EffectKind,
}

#[derive(Debug)]
pub(super) enum EffectKind {
    /// The key has a new state: a claim that begins with it, or the end of one.
    Changed { begins: Option<Claim>, ends_claim: bool },
    /// The record is a copy of the key's last one. Callers that wait for a change are not woken.
    Moved,
}

/// A decided change of one key, encoded and checksummed, with the space for it.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) record: NewRecord<'a>,
    pub(super) effect: Effect,
    pub(super) flight: &'a FlightGuard<'a>,
}

impl<'a> Change<'a> {
    /// Turns a draft into a record of the next version, at the time of the view.
    pub(super) fn new(
        records: &Records,
        (key, view): (HashedKey<'a>, &View),
        draft: &Draft<'a>,
        retention: Retention,
        version: Version,
        flight: &'a FlightGuard<'a>,
    ) -> Change<'a> {
        let (key_expires_ms, result_expires_ms) = match draft.kind {
            Kind::Completed | Kind::Released => retention.expiries(view.now_ms),
            Kind::Begun | Kind::Forgotten | Kind::Unreadable | Kind::Ignorable => (NEVER_MS, NEVER_MS),
        };
        let record = Record {
            kind: draft.kind,
            key: key.key,
            version,
            origin: draft.origin.unwrap_or(version),
            fingerprint: draft.fingerprint,
            attempt: draft.attempt,
            time_ms: view.now_ms,
            key_expires_ms,
            result_expires_ms,
            value: draft.value,
        };
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
            kind: EffectKind::Changed { begins, ends_claim: draft.claim == ClaimChange::End },
        };
        Change { record, effect, flight }
    }

    /// The lease that the change begins.
    pub(super) fn lease(&self) -> Option<Claim> {
        match self.effect.kind {
            EffectKind::Changed { begins, .. } => begins,
            EffectKind::Moved => None,
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

    /// Copies the records of `changes` into one frame. `reservation` is the space for all of them.
    pub(super) fn append(
        &self,
        changes: &[Change<'_>],
        reservation: Reservation,
        until: Until,
    ) -> Result<Ticket> {
        self.records.log().append(changes.iter().map(|change| &change.record), reservation, until)
    }

    /// Waits until the changes are as durable as their ticket wants them, and applies them.
    pub(super) fn finish(&self, changes: &[Change<'_>], ticket: &Ticket) -> Result<()> {
        let written = self.wait(changes, ticket);
        for change in changes {
            // Whether or not it was written: waiters look again, and find the store poisoned if it was not.
            change.flight.note_change();
        }
        written
    }

    fn wait(&self, changes: &[Change<'_>], ticket: &Ticket) -> Result<()> {
        let mut offset = self.records.log().wait(ticket)?.offset;
        // The changes are applied all or none: if the last address is in range, so are the others.
        let frame_bytes: u64 = changes.iter().map(|change| change.effect.size.length_bytes).sum();
        let last_bytes = changes.last().map_or(0, |change| change.effect.size.length_bytes);
        self.records.log().address_at(offset + frame_bytes - last_bytes)?;
        for (number, change) in changes.iter().enumerate() {
            let address = self.records.log().address_at(offset)?;
            let later = &changes[number + 1..];
            // Of two changes of one key only the last reaches the index.
            if later.iter().any(|later| later.effect.hash == change.effect.hash) {
                self.records.add_dead(&change.effect);
            } else {
                self.records.apply(&change.effect, address, change.flight);
            }
            offset += change.effect.size.length_bytes;
        }
        Ok(())
    }

    /// Waits until the copy of a record is written, and applies the move.
    pub(super) fn finish_move(
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
    /// Points the index to a record that is written, and counts what it replaces as dead.
    fn apply(&self, effect: &Effect, address: Address, flight: &FlightGuard<'_>) {
        let Effect { hash, size, time_ms, replaced, .. } = *effect;
        // A lease is published before the index points to its record: otherwise a caller that only looks would see an
        // attempt without a lease, which is a doubt.
        let publish_lease = || {
            if let EffectKind::Changed { begins: Some(claim), .. } = effect.kind {
                flight.set_claim(Some(claim));
            }
        };
        if !planted(Bug::LeaseAfterIndex) {
            publish_lease();
        }
        match (replaced, size.kind) {
            (Some(old), Kind::Forgotten) => {
                self.index().remove(hash, old.address);
            }
            (Some(old), _) => {
                let is_replaced = self.index().replace(hash, old.address, address);
                debug_assert!(is_replaced, "the flight keeps the entry where it is");
            }
            (None, Kind::Forgotten) => {}
            (None, _) => self.index().insert(hash, address),
        }
        if planted(Bug::LeaseAfterIndex) {
            publish_lease();
        }
        if let Some(old) = replaced {
            self.log().space_usage().mark_dead(&old.size);
            match effect.kind {
                EffectKind::Changed { .. } => self.unreadable().remove(old.address),
                EffectKind::Moved => self.unreadable().replace(old.address, address),
            }
        }
        self.log().space_usage().add(&size, time_ms);
        if let EffectKind::Changed { ends_claim: true, .. } = effect.kind {
            flight.set_claim(None);
        }
    }

    /// Counts a record that is dead as soon as it is written.
    fn add_dead(&self, effect: &Effect) {
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
    use crate::key::Key;
    use crate::log::reservations::ReservationClass;
    use crate::sync::Patience;
    use crate::{Options, Status};

    fn engine() -> Arc<Engine> {
        Arc::new(Options::new().open_nowhere().unwrap())
    }

    /// Records `results` in one commit, one key after another, and returns the changes' offsets in the file.
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
                let view = engine.viewer.view(key, &flights[at], engine.clock.now_ms(), Want::State).unwrap();
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
        // Records of one frame follow one another; between two frames there is a header.
        assert_eq!(offsets[1], offsets[0] + length(b"1"));
        assert_eq!(offsets[2], offsets[1] + length(b"22"));
        for (name, expected) in [("a", &b"1"[..]), ("b", b"22"), ("c", b"333")] {
            assert_eq!(result(&engine, name), expected);
        }
        assert_eq!(engine.log().reserved_bytes(), 0);
    }

    #[test]
    fn of_two_changes_of_one_key_the_last_counts_and_the_other_is_dead() {
        let engine = engine();
        commit_together(&engine, &[("a", b"first"), ("b", b"other"), ("a", b"last")]);
        assert_eq!(result(&engine, "a"), b"last");
        assert_eq!(result(&engine, "b"), b"other");
        assert_eq!(engine.index().len(), 2);
        let first = crate::format::record::encoded_bytes(Key::new("a"), &Value::bytes(b"first"));
        assert_eq!(engine.log().space_usage().totals(engine.clock.now_ms()).dead_bytes, first);
    }
}
