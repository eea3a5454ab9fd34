//! Presents the index and the log as one map from each key to its last record.
//!
//! [`Records`] owns the index, the set of unreadable records and the table of unfinished operations. A lookup needs no flight (the per-key lock) and waits
//! for no other caller, because the index points only to records that are already as durable as their callers asked
//! for. A method that changes the index is called with the key's flight held, so that the entry which the caller found
//! is still there.

use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::counters::Counters;
use super::outbox::PendingMessages;
use super::unfinished::{BegunAttempt, UnfinishedTable};
use super::unreadable::UnreadableRecords;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record, Typing};
use crate::hash::Domain;
use crate::index::{Address, Index};
use crate::key::{Fingerprint, Key};
use crate::log::Log;
use crate::log::reader::RecordLocation;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, RecordSize, liveness, lost_liveness};
use crate::status::Version;
use crate::step_set::Step;
use crate::step_set::StepCounts;

/// A key that was checked, and its hash. Every part of the engine takes keys in this form, and a handle keeps the hash, so
/// that an operation hashes its key once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashedKey<'a> {
    pub(crate) key: Key<'a>,
    pub(crate) hash: u128,
}

/// The content of a key's last record, and its meaning at the time of the lookup.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) address: Address,
    pub(crate) place: RecordLocation,
    pub(crate) size: RecordSize,
    /// The meaning of the record at the time of the lookup.
    pub(crate) liveness: Liveness,
    pub(crate) version: Version,
    pub(crate) origin: Version,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: u32,
    pub(crate) time_ms: u64,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
    /// The operation is completed, and its result could not be recorded.
    pub(crate) not_kept: bool,
    pub(crate) typing: Option<Typing>,
    /// The result. Present only if the lookup was to copy it and it has not expired.
    pub(crate) result: Option<Vec<u8>>,
}

impl Found {
    /// Whether the key of an unfinished operation has the same liveness at `now_ms` as when the record was read. False for
    /// a completed operation, whose record is read again: a lookup may have copied its result.
    pub(super) fn still_means_the_same(&self, now_ms: u64) -> bool {
        match self.liveness {
            Liveness::Begun => true,
            // An attempt that never ran is shown as released before that is written.
            Liveness::Released => self.size.kind == Kind::Released && now_ms < self.key_expires_ms,
            _ => false,
        }
    }

    /// The attempt that began with this record.
    pub(super) fn begun_attempt(&self) -> BegunAttempt {
        BegunAttempt { since_ms: self.time_ms, version: self.version, origin: self.origin }
    }

    /// Whether the record is one that an earlier entry of the same batch is about to write.
    pub(super) fn is_planned(&self) -> bool {
        self.address == Address::NOWHERE
    }

    /// The position in the log at which the record ends.
    pub(super) fn end(&self) -> u64 {
        self.place.position + self.place.length_bytes
    }
}

/// A key's last record that cannot be read, as described by the footer of its segment or by the record that carries its
/// bytes.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) address: Address,
    pub(super) size: RecordSize,
    pub(super) version: Version,
    /// The meaning that the record is taken to have. See [`lost_liveness`].
    pub(super) liveness: Liveness,
    /// The error for a call that needs the content of the record.
    pub(super) error: Error,
}

/// The outcome of looking up a key's last record.
pub(super) enum Sight<R> {
    /// The record was read, and the caller's function returned this.
    Read(R),
    /// The record cannot be read.
    Unreadable(Unreadable),
}

/// What a lookup copies out of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// The state and the result.
    Result,
    /// The state without the result.
    State,
}

/// A key's entry in the index, and the size of the record that it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexEntry {
    pub(super) address: Address,
    pub(super) size: RecordSize,
}

/// Why a record that carries an unreadable one is an error.
pub(crate) const CARRIED_REASON: &str =
    "the key's record could not be read when its segment was reclaimed, so its bytes were carried along";

/// The last record of every key.
#[derive(Debug)]
pub(super) struct Records {
    log: Arc<Log>,
    index: Index,
    unreadable: UnreadableRecords,
    unfinished: UnfinishedTable,
    outbox: PendingMessages,
    counters: Arc<Counters>,
    admission: Arc<Admission>,
}

impl Records {
    pub(super) fn new(
        log: Arc<Log>,
        (index, unreadable, unfinished, outbox): (Index, UnreadableRecords, UnfinishedTable, PendingMessages),
        counters: Arc<Counters>,
        admission: Arc<Admission>,
    ) -> Records {
        Records { log, index, unreadable, unfinished, outbox, counters, admission }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn unreadable(&self) -> &UnreadableRecords {
        &self.unreadable
    }

    pub(super) fn unfinished(&self) -> &UnfinishedTable {
        &self.unfinished
    }

    pub(super) fn outbox(&self) -> &PendingMessages {
        &self.outbox
    }

    /// How many steps of the operation that began with this record are in which state.
    pub(super) fn step_counts(&self, hash: u128, begun: &Found) -> StepCounts {
        self.unfinished.learn(hash, begun.begun_attempt())
    }

    pub(super) fn path(&self) -> &Path {
        self.log.path()
    }

    /// Returns the key's last record, or None if the key is gone. Fails if the record cannot be read, unless the key is
    /// known to be gone even so.
    pub(super) fn lookup(&self, key: HashedKey<'_>, now_ms: u64, want: Want) -> Result<Option<Found>> {
        match self.last_record(key, now_ms, want)? {
            Some(Sight::Read(found)) if found.liveness != Liveness::Gone => Ok(Some(found)),
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            _ => Ok(None),
        }
    }

    /// Returns the key's last record, even if it means that the key is gone, or cannot be read.
    pub(super) fn last_record(
        &self,
        key: HashedKey<'_>,
        now_ms: u64,
        want: Want,
    ) -> Result<Option<Sight<Found>>> {
        self.read(key, now_ms, |address, place, record| {
            let mut found = found_at(address, place, record, now_ms);
            if want == Want::Result && found.liveness == Liveness::Completed {
                found.result = record.value.result.map(<[u8]>::to_vec);
            }
            found
        })
    }

    /// Whether `found` is still the key's last record. Reads the index only.
    ///
    /// Without the key's flight (the per-key lock), the answer is about one moment during the call.
    pub(super) fn is_last(&self, hash: u128, found: &Found) -> bool {
        // Reclaiming may have freed the slot since, and a later record of the key may begin at the same address. The
        // position tells them apart, because no two segments have the same one. It is read second: if the slot contains
        // the same segment now, it did so when the index was read.
        self.index.holds(hash, found.address)
            && (planted(Bug::RecordKnownByAddress)
                || self.log.reader().position(found.address) == found.place.position)
    }

    /// Whether the record that a footer entry lists is the last one of its key, of a step of an unfinished operation, or of a
    /// pending message.
    pub(super) fn points_to(&self, entry: &FooterEntry, address: Address) -> bool {
        match entry.kind.domain() {
            Some(Domain::Key | Domain::Message) => self.index.holds(entry.hash, address),
            Some(Domain::Step) => self.unfinished.holds_step(entry.parent_hash(), entry.hash, address),
            None => false,
        }
    }

    /// Calls `read` with the key's last record. Returns None if the index has no entry for the key.
    pub(super) fn read<R>(
        &self,
        key: HashedKey<'_>,
        now_ms: u64,
        read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        self.read_if(key.hash, now_ms, |record| is_key(record) && record.key == key.key, read)
    }

    /// Calls `read` with the last record of the key with this hash, for a caller that does not know the key. Returns
    /// None if the index has no entry for it.
    pub(super) fn read_by_hash<R>(
        &self,
        hash: u128,
        now_ms: u64,
        read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        let is_wanted = |record: &Record<'_>| is_key(record) && self.log.hasher().key(record.key) == hash;
        self.read_if(hash, now_ms, is_wanted, read)
    }

    /// Calls `read` with the record of a message. Returns None if the index has no entry for it: it was acknowledged.
    pub(super) fn read_message<R>(
        &self,
        id: Version,
        now_ms: u64,
        read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        let is_wanted = |record: &Record<'_>| record.kind == Kind::Message && record.version == id;
        self.read_if(self.log.hasher().message(id.as_u64()), now_ms, is_wanted, read)
    }

    /// Calls `read` with the last record that has this hash, for which `is_wanted` returns true. Only such a record may have
    /// this hash. The index may offer records of other keys and of messages, so `is_wanted` compares the kind first.
    fn read_if<R>(
        &self,
        hash: u128,
        now_ms: u64,
        is_wanted: impl Fn(&Record<'_>) -> bool,
        mut read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        loop {
            // Damaged records of any key: the index stores only a part of each hash, so it may offer records of other
            // keys.
            let mut damaged = Vec::new();
            let found = self.index.find(hash, |address| {
                // Checked with the shard locked. A close locks every shard once before it unlocks the file, and from
                // then on another process may write to the file or shorten it.
                if self.admission.is_closed() {
                    return Some(Err(Error::Closed));
                }
                let confirm =
                    self.log.reader().record(address, |place, record| match record.kind.is_carrier() {
                        true => (record.key_hash(self.log.hasher()) == hash)
                            .then(|| Sight::Unreadable(self.carried(address, place, record, now_ms))),
                        false => is_wanted(record).then(|| Sight::Read(read(address, place, record))),
                    });
                match confirm {
                    Err(error @ Error::Corrupt { .. }) => {
                        damaged.push((address, error));
                        None
                    }
                    confirm => confirm.transpose(),
                }
            });
            if found.is_some() || damaged.is_empty() {
                return found.transpose();
            }
            let lost = self.find_damaged(hash, damaged, now_ms);
            // The footers were read without the shard's lock, so a close may not have waited for this call.
            if self.admission.is_closed() {
                return Err(Error::Closed);
            }
            if let Some(lost) = lost {
                return lost.map(|lost| lost.map(Sight::Unreadable));
            }
        }
    }

    /// Finds, with the help of the footers, the damaged record that is the last one of the key with this hash. The
    /// outer None means that a damaged record was moved or replaced meanwhile, so the index has to be read again.
    fn find_damaged(
        &self,
        hash: u128,
        damaged: Vec<(Address, Error)>,
        now_ms: u64,
    ) -> Option<Result<Option<Unreadable>>> {
        let mut unlisted = None;
        for (address, error) in damaged {
            let listed = match self.log.listed(address) {
                Ok(listed) => listed,
                Err(error) => return Some(Err(error)),
            };
            let lost = listed.map(|entry| (entry.hash, lost_at(address, &entry, error.clone(), now_ms)));
            if lost.as_ref().is_none_or(|(_, lost)| lost.liveness != Liveness::Gone) {
                self.note_unreadable(hash, address);
            }
            // Checked last: if the entry is still there, the footer described the record that could not be read, and
            // not a later one at the same address.
            if !self.index.holds(hash, address) {
                return None;
            }
            match lost {
                Some((owner, lost)) if owner == hash => return Some(Ok(Some(lost))),
                Some(_) => {}
                // The record may belong to this key, or to another key with the same tag in the index.
                None => unlisted = Some(error),
            }
        }
        Some(unlisted.map_or(Ok(None), Err))
    }

    /// Adds a record to the set of unreadable ones, and emits an event if it is new there. `hash` is the hash of any
    /// key for which the index finds the record.
    pub(super) fn note_unreadable(&self, hash: u128, address: Address) {
        if !self.unreadable.add(address) {
            return;
        }
        if self.index.holds(hash, address) {
            crate::events::unreadable(self.path(), address.offset());
        } else {
            self.unreadable.remove(address);
        }
    }

    /// Calls `read` with the last record of a step. The caller holds the flight of the operation's key, which keeps the record
    /// in its place.
    pub(super) fn read_step<R>(
        &self,
        (hash, step): (u128, &Step),
        read: impl FnOnce(RecordLocation, &Record<'_>) -> R,
    ) -> Result<R> {
        let read = self.log.reader().record(step.address, |place, record| {
            let is_of_step = record.kind.domain() == Some(Domain::Step)
                && !record.kind.is_carrier()
                && record.key_hash(self.log.hasher()) == hash;
            is_of_step.then(|| read(place, record))
        });
        let is_unreadable = matches!(read, Err(Error::Corrupt { .. }) | Ok(None));
        if is_unreadable && self.unreadable.add(step.address) {
            crate::events::unreadable(self.path(), step.address.offset());
        }
        read?.ok_or_else(|| {
            Error::corrupt(
                self.path(),
                step.address.offset(),
                "the step's record could not be read when it was moved",
            )
        })
    }

    /// Describes an unreadable record from the record that carries its bytes.
    fn carried(
        &self,
        address: Address,
        place: RecordLocation,
        record: &Record<'_>,
        now_ms: u64,
    ) -> Unreadable {
        let is_message = record.kind == Kind::MessageUnreadable;
        let lost_kind = record.carried_kind().or(is_message.then_some(record.kind));
        Unreadable {
            address,
            size: RecordSize::of(record, place.length_bytes),
            version: record.version,
            liveness: lost_liveness(lost_kind, record.key_expires_ms, now_ms),
            error: Error::corrupt(self.path(), address.offset(), CARRIED_REASON),
        }
    }
}

/// Whether the record is that of a key. Compared first: a step may have the name of the key, and a message states the key of
/// its operation.
fn is_key(record: &Record<'_>) -> bool {
    record.kind.domain() == Some(Domain::Key) || planted(Bug::StepAnswersForKey)
}

/// Describes the unreadable record at `address` from its footer entry.
fn lost_at(address: Address, entry: &FooterEntry, error: Error, now_ms: u64) -> Unreadable {
    Unreadable {
        address,
        size: RecordSize::listed(entry),
        version: entry.version,
        liveness: lost_liveness(Some(entry.kind), entry.key_expires_ms, now_ms),
        error,
    }
}

/// Copies everything but the result out of a record, and determines its meaning at `now_ms`.
pub(crate) fn found_at(address: Address, place: RecordLocation, record: &Record<'_>, now_ms: u64) -> Found {
    Found {
        address,
        place,
        size: RecordSize::of(record, place.length_bytes),
        liveness: liveness(record, now_ms),
        version: record.version,
        origin: record.origin,
        fingerprint: record.fingerprint,
        attempt: record.attempt,
        time_ms: record.time_ms,
        key_expires_ms: record.key_expires_ms,
        result_expires_ms: record.result_expires_ms,
        not_kept: record.value.not_kept,
        typing: record.value.typing,
        result: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::format::record::Value;

    #[test]
    fn a_later_record_at_the_same_address_is_not_the_one_that_was_read() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = engine.settings().terms;
        let name = Key::new("k");
        engine.record(name, Fingerprint::NONE.into(), Value::NONE, &[], &terms).unwrap().unwrap();
        let key = HashedKey { key: name, hash: engine.log().hasher().key(name) };
        let found = engine.records.lookup(key, 0, Want::State).unwrap().unwrap();
        let is_last = || engine.records.is_last(key.hash, &found);
        assert!(is_last());

        // The slot is freed, and a later segment in it has a record of the key at the same address.
        let reader = engine.log().reader();
        let (slot, within) = reader.split(found.address);
        reader.set_segment(slot, reader.sequence(slot) + 1, within + found.size.length_bytes);
        assert!(engine.index().holds(key.hash, found.address));
        assert!(!is_last());
        #[cfg(feature = "__simulation")]
        {
            crate::planted::plant(Some(Bug::RecordKnownByAddress));
            let mistaken = is_last();
            crate::planted::plant(None);
            assert!(mistaken, "the planted bug must be found");
        }

        reader.set_free(slot);
        assert!(!is_last());
        reader.set_segment(slot, found.place.position / engine.log().segment_bytes(), within);
        assert!(is_last());
        engine.index().remove(key.hash, found.address);
        assert!(!is_last(), "the index no longer points to it");
    }
}
