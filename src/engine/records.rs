//! The key's last record: the index and the log behind it, read as one map, and kept in step.
//!
//! [`Records`] owns the index, and knows which records cannot be read. It decides nothing and waits for no caller: a lookup
//! needs no flight, because the index points only to records that are as durable as was asked for. What changes the index
//! is called with the key's flight held, so that the entry which a call found is still there.

use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::unreadable::UnreadableRecords;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record, Typing};
use crate::index::{Address, Index};
use crate::key::{Fingerprint, Key};
use crate::log::Log;
use crate::log::reader::RecordLocation;
use crate::record::{Liveness, RecordSize, liveness, lost_liveness};
use crate::status::Version;

/// A key, checked, and its hash: what every part of the engine takes for one.
#[derive(Debug, Clone, Copy)]
pub(super) struct HashedKey<'a> {
    pub(super) key: Key<'a>,
    pub(super) hash: u128,
}

/// What a key's last record says now.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) address: Address,
    pub(crate) place: RecordLocation,
    pub(crate) size: RecordSize,
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
    /// Present only if the lookup asked for it and it is still kept.
    pub(crate) result: Option<Vec<u8>>,
}

impl Found {
    /// The position in the log at which its record ends.
    pub(super) fn end(&self) -> u64 {
        self.place.position + self.place.length_bytes
    }
}

/// What is known of a key's last record that cannot be read: what the footer says, or the record in which it was carried
/// along.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) address: Address,
    pub(super) size: RecordSize,
    pub(super) version: Version,
    /// What the record would leave of the key.
    pub(super) liveness: Liveness,
    /// The error of a call that needs to know more than that.
    pub(super) error: Error,
}

/// A key's last record.
pub(super) enum Sight<R> {
    /// What the caller made of it.
    Read(R),
    Unreadable(Unreadable),
}

/// Whether a lookup copies the result out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Result,
    State,
}

/// A key's entry in the index, and the size of the record that it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexEntry {
    pub(super) address: Address,
    pub(super) size: RecordSize,
}

/// The last record of every key.
#[derive(Debug)]
pub(super) struct Records {
    log: Arc<Log>,
    index: Index,
    unreadable: UnreadableRecords,
    admission: Arc<Admission>,
}

impl Records {
    pub(super) fn new(
        log: Arc<Log>,
        index: Index,
        unreadable: UnreadableRecords,
        admission: Arc<Admission>,
    ) -> Records {
        Records { log, index, unreadable, admission }
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

    pub(super) fn path(&self) -> &Path {
        self.log.path()
    }

    /// The key's last record, if it leaves anything of the key.
    pub(super) fn lookup(&self, key: HashedKey<'_>, now_ms: u64, want: Want) -> Result<Option<Found>> {
        match self.last_record(key, now_ms, want)? {
            Some(Sight::Read(found)) if found.liveness != Liveness::Gone => Ok(Some(found)),
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            _ => Ok(None),
        }
    }

    /// The key's last record, even if it leaves nothing of the key or cannot be read.
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

    /// Calls `read` with the key's last record, if the index has an entry for the key.
    pub(super) fn read<R>(
        &self,
        key: HashedKey<'_>,
        now_ms: u64,
        mut read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        let HashedKey { key, hash } = key;
        loop {
            // Of any key: the index knows only a part of each hash.
            let mut damaged = Vec::new();
            let found = self.index.find(hash, |address| {
                // Checked under the shard's lock. A close takes every shard's lock once before it lets go of the file, and
                // from then on another process may write to the file or shorten it.
                if self.admission.is_closed() {
                    return Some(Err(Error::Closed));
                }
                let confirm = self.log.reader().record(address, |place, record| match record.kind {
                    Kind::Unreadable => (record.key_hash(self.log.hasher()) == hash)
                        .then(|| Sight::Unreadable(self.carried(address, place, record, now_ms))),
                    _ => (record.key == key).then(|| Sight::Read(read(address, place, record))),
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
            let lost = self.whose(hash, damaged, now_ms);
            // The footers were read without the lock.
            if self.admission.is_closed() {
                return Err(Error::Closed);
            }
            if let Some(lost) = lost {
                return lost.map(|lost| lost.map(Sight::Unreadable));
            }
        }
    }

    /// Finds among damaged records the last one of the key with this hash, by what the footers say. The outer None means that
    /// one of them was moved or replaced meanwhile, so that the index has to be read again.
    fn whose(
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
            // Last: if the entry is still there, the footer spoke of the record that could not be read.
            if !self.index.holds(hash, address) {
                return None;
            }
            match lost {
                Some((whose, lost)) if whose == hash => return Some(Ok(Some(lost))),
                Some(_) => {}
                // It may belong to any key whose hash begins alike.
                None => unlisted = Some(error),
            }
        }
        Some(unlisted.map_or(Ok(None), Err))
    }

    /// Counts a record that cannot be read, and emits an event if it was not known to be. `hash` is of any key for which the
    /// index would find the record.
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

    /// What a record says of the unreadable one that it carries.
    fn carried(
        &self,
        address: Address,
        place: RecordLocation,
        record: &Record<'_>,
        now_ms: u64,
    ) -> Unreadable {
        let reason =
            "the key's record could not be read when its segment was reclaimed, and was carried along";
        Unreadable {
            address,
            size: RecordSize::of(record, place.length_bytes),
            version: record.version,
            liveness: lost_liveness(record.carried_kind(), record.key_expires_ms, now_ms),
            error: Error::corrupt(self.path(), address.offset(), reason),
        }
    }
}

/// What the footer says of the record at `address`, which cannot be read.
fn lost_at(address: Address, entry: &FooterEntry, error: Error, now_ms: u64) -> Unreadable {
    Unreadable {
        address,
        size: RecordSize::listed(entry),
        version: entry.version,
        liveness: lost_liveness(Some(entry.kind), entry.key_expires_ms, now_ms),
        error,
    }
}

/// What a record says, without its result.
pub(super) fn found_at(address: Address, place: RecordLocation, record: &Record<'_>, now_ms: u64) -> Found {
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
