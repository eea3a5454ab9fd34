//! Calls that read a key and change nothing.

use super::assembly::Engine;
use super::records::{Found, Sight};
use super::terms::Request;
use crate::error::Result;
use crate::flights::Claim;
use crate::format::record::Kind;
use crate::key::{Key, OwnedKey};
use crate::record::Liveness;
use crate::status::{Status, Version};
use crate::sync::Patience;

/// The record of an operation that began and has not ended.
#[derive(Debug)]
pub(crate) struct UnfinishedRecord {
    pub(crate) key: OwnedKey,
    pub(crate) status: Status,
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) since_ms: u64,
    pub(crate) note: Option<Vec<u8>>,
}

impl Engine {
    /// Returns the key hashes of all unfinished operations, oldest first.
    pub(crate) fn unfinished(&self) -> Result<Vec<u128>> {
        self.admission.check_open()?;
        Ok(self.records.unfinished().oldest_first())
    }

    /// Reads the unfinished operation of the key with this hash. Returns None if it has ended. Waits for no other caller, and
    /// makes nothing durable.
    pub(crate) fn unfinished_record(&self, hash: u128) -> Result<Option<UnfinishedRecord>> {
        self.admission.check_open()?;
        let now_ms = self.clock.now_ms();
        let read = self.records.read_by_hash(hash, now_ms, |_, _, record| {
            (record.kind == Kind::Begun).then(|| UnfinishedRecord {
                key: record.key.to_owned(),
                status: Status::InDoubt,
                version: record.version,
                attempt: record.attempt,
                since_ms: record.time_ms,
                note: record.value.result.map(<[u8]>::to_vec),
            })
        })?;
        match read {
            Some(Sight::Read(Some(mut record))) => {
                // A lease is published before the index points to its record, and is read after the index.
                let is_leased = matches!(
                    self.flights.claim(hash),
                    Some(Claim::Lease { version, deadline_ms, .. }) if version == record.version && now_ms < deadline_ms
                );
                if is_leased {
                    record.status = Status::InProgress;
                }
                Ok(Some(record))
            }
            Some(Sight::Unreadable(lost)) if lost.liveness == Liveness::Begun => Err(lost.error),
            _ => Ok(None),
        }
    }

    /// Returns the key's state. May wait for a sync, but for another thread's sync no longer than `patience`.
    pub(crate) fn get(&self, key: Key<'_>, patience: Patience) -> Result<(Status, Option<Found>)> {
        let _events = crate::events::hold_back();
        self.viewer.get(self.admit(key)?, self.settings.terms.durability, patience)
    }

    /// Appends the result of a completed operation to `buffer`. Returns None if the operation is not completed.
    pub(crate) fn replay_into(
        &self,
        key: Key<'_>,
        request: Request,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Version>> {
        let _events = crate::events::hold_back();
        self.viewer.replay_into(self.admit(key)?, request, self.settings.terms.durability, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::records::{HashedKey, Sight, Want};
    use crate::format::record::Value;
    use crate::{Error, Fingerprint, Options};

    /// The index stores only a part of each hash, so the entries of two keys may have the same tag. If the record of
    /// one key is damaged, calls on the other key must still succeed.
    #[test]
    fn a_damaged_record_does_not_affect_other_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.once");
        let engine = Options::new().segment_size(64 << 10).open_file(&path).unwrap();
        let terms = engine.settings().terms;
        let record = |name: &str, result: &[u8]| {
            engine
                .record(Key::new(name), Fingerprint::NONE.into(), Value::bytes(result), &terms)
                .unwrap()
                .unwrap();
        };
        let hash = |name: &str| engine.log().hasher().key(Key::new(name));
        let address = |name: &str| {
            let found = engine
                .records
                .last_record(HashedKey { key: Key::new(name), hash: hash(name) }, 0, Want::State)
                .unwrap();
            let Some(Sight::Read(found)) = found else { panic!("{name}") };
            found.address
        };
        for (in_full_segment, damaged) in [(false, "first"), (true, "second")] {
            record(damaged, b"result");
            let address = address(damaged);
            for n in 0..if in_full_segment { 10 } else { 0 } {
                record(&format!("{n}"), &[7; 12_000]);
            }
            let others = ["one", "other"];
            for other in others {
                engine.index().insert(hash(other), address);
            }
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[usize::try_from(address.offset()).unwrap() + 20] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert!(
                matches!(engine.get(Key::new(damaged), Patience::Endless), Err(Error::Corrupt { offset, .. }) if offset == address.offset())
            );
            for other in others {
                assert!(engine.get(Key::new(other), Patience::Endless).unwrap().1.is_none(), "{other}");
                assert!(!engine.forget(Key::new(other), &terms).unwrap(), "{other}");
            }
            assert!(engine.forget(Key::new(damaged), &terms).unwrap());
            for other in others {
                assert!(engine.index().remove(hash(other), address));
            }
        }
        assert_eq!(engine.unreadable_records(), 0);
    }
}
