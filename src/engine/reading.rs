//! Calls that read a key and change nothing.

use super::assembly::Engine;
use super::records::{CARRIED_REASON, Found, Sight, Want, found_at};
use super::terms::{Durability, Request};
use super::unfinished::ListedOperation;
use super::view::status_of;
use crate::error::Result;
use crate::flights::Claim;
use crate::format::record::{Kind, Record};
use crate::index::Address;
use crate::key::{Key, OwnedKey};
use crate::key_filter::KeyFilter;
use crate::log::reader::RecordLocation;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, lost_liveness};
use crate::status::{Status, Version};
use crate::step_set::StepCounts;
use crate::sync::Patience;

/// The last record of a key, as listings show it.
#[derive(Debug)]
pub(crate) struct ListedRecord {
    pub(crate) key: OwnedKey,
    pub(crate) status: Status,
    pub(crate) found: Found,
    /// The length of the result, if there is one.
    pub(crate) result_bytes: Option<usize>,
    /// Why the last attempt ended in doubt, if that is known.
    pub(crate) note: Option<Vec<u8>>,
    /// Whether the operation is unfinished and has steps. False if the steps were not looked at.
    pub(crate) has_steps: bool,
}

/// What is listed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listing<'a> {
    /// The operations that began and have not ended.
    Unfinished,
    /// The keys that meet the conditions.
    Keys(&'a KeyFilter),
}

impl Listing<'_> {
    fn admits_record(self, key: Key<'_>, liveness: Liveness, time_ms: u64) -> bool {
        match self {
            Listing::Unfinished => liveness == Liveness::Begun,
            Listing::Keys(filter) => filter.admits_record(key, liveness, time_ms),
        }
    }

    fn admits_status(self, status: Status) -> bool {
        match self {
            Listing::Unfinished => true,
            Listing::Keys(filter) => filter.admits_status(status),
        }
    }

    /// Whether a key whose record cannot be read is listed, as an error.
    fn admits_unreadable(self, liveness: Liveness) -> bool {
        match self {
            Listing::Unfinished => liveness == Liveness::Begun,
            Listing::Keys(_) => liveness != Liveness::Gone,
        }
    }
}

impl ListedRecord {
    /// Copies what listings show out of a record in the file of a store that may be open in another process. `begun` is the
    /// status of an operation that began and has not ended. The error of a record that cannot be read is an offset and a
    /// reason.
    pub(crate) fn beside(
        (address, place): (Address, RecordLocation),
        record: &Record<'_>,
        (now_ms, begun): (u64, Status),
        listing: Listing<'_>,
    ) -> std::result::Result<Option<ListedRecord>, (u64, &'static str)> {
        if record.kind == Kind::Unreadable {
            let liveness = lost_liveness(record.carried_kind(), record.key_expires_ms, now_ms);
            let is_listed = listing.admits_unreadable(liveness);
            return if is_listed { Err((address.offset(), CARRIED_REASON)) } else { Ok(None) };
        }
        let Some(mut listed) = ListedRecord::of((address, place), record, now_ms, listing) else {
            return Ok(None);
        };
        if listed.found.liveness == Liveness::Begun {
            listed.status = begun;
        }
        Ok(listing.admits_status(listed.status).then_some(listed))
    }

    /// Copies what listings show out of a record, if it is listed. The status is preliminary if the operation has not ended.
    pub(crate) fn of(
        (address, place): (Address, RecordLocation),
        record: &Record<'_>,
        now_ms: u64,
        listing: Listing<'_>,
    ) -> Option<ListedRecord> {
        let found = found_at(address, place, record, now_ms);
        if !listing.admits_record(record.key, found.liveness, found.time_ms) {
            return None;
        }
        let is_begun = found.liveness == Liveness::Begun;
        let value = record.value.result;
        Some(ListedRecord {
            key: record.key.to_owned(),
            status: if is_begun { Status::InDoubt } else { Status::Completed },
            result_bytes: value.filter(|_| found.liveness == Liveness::Completed).map(<[u8]>::len),
            note: value.filter(|_| is_begun).map(<[u8]>::to_vec),
            has_steps: false,
            found,
        })
    }
}

impl Engine {
    /// Returns all unfinished operations, oldest first.
    pub(crate) fn unfinished(&self) -> Result<Vec<ListedOperation>> {
        self.admission.check_open()?;
        Ok(self.records.unfinished().oldest_first())
    }

    /// Reads a listed operation. Returns None if it has ended. Waits for no other caller, and makes nothing durable.
    ///
    /// The claim and the state of the steps are read before the record. If the record is still that of the listed attempt,
    /// the operation had that claim, these steps and this record at the same time: an attempt is listed after its claim was
    /// set and the index pointed to its record, and a later change ends the claim and the steps after the index points to
    /// the next record. So the index is searched once, and the version shows that the record is the right one, without a
    /// hash of its key.
    pub(crate) fn listed_operation(&self, listed: &ListedOperation) -> Result<Option<ListedRecord>> {
        self.admission.check_open()?;
        let (hash, version) = (listed.hash(), listed.version());
        let sight = || (self.flights.claim(hash), self.records.unfinished().step_counts(hash));
        let (mut claim, mut steps) = sight();
        let Some(mut read) = self.read_begin(hash, version) else {
            // A later attempt may have begun. Or the record cannot be read.
            return self.listed_record(hash, None, Listing::Unfinished);
        };
        if planted(Bug::IndexReadOnce) {
            (claim, steps) = sight();
        }
        if steps.are_settled() {
            steps.may_be_forgotten = self.viewer.may_have_forgotten_attempt(version, self.clock.now_ms());
        }
        // Only a lease depends on the time.
        let is_leased = matches!(claim, Some(Claim::Lease { version: leased, .. }) if leased == version);
        let now_ms = if is_leased { self.clock.now_ms() } else { 0 };
        let Some(status) = begun_status(version, claim, steps, now_ms) else { return Ok(None) };
        if is_leased && status != Status::InProgress {
            // The lease may have been renewed before the clock was read.
            return self.listed_record(hash, None, Listing::Unfinished);
        }
        (read.status, read.has_steps) = (status, steps.total() > 0);
        Ok(Some(read))
    }

    /// Reads the last record of the key with this hash, if it is the begin of this version and can be read. The status is
    /// preliminary.
    fn read_begin(&self, hash: u128, version: Version) -> Option<ListedRecord> {
        self.index().find(hash, |address| {
            // Checked with the shard locked, as in `Records::read`.
            if self.admission.is_closed() {
                return None;
            }
            let read = self.log().reader().record(address, |place, record| {
                // No two records have the same version, except copies of the same record. A begin means the same at any time.
                let is_wanted = record.version == version && record.kind == Kind::Begun;
                let listed = || ListedRecord::of((address, place), record, 0, Listing::Unfinished);
                is_wanted.then(listed).flatten()
            });
            read.ok().flatten()
        })
    }

    /// Reads the last record of the key with this hash. Returns None if the key is not listed, or if `at` is given and
    /// the last record is not there. Waits for no other caller, and makes nothing durable.
    ///
    /// The record and the claim are read one after the other. As in [`Viewer::look`](super::view::Viewer::look), the operation
    /// is in doubt only if its record is still the last one after the claim was read: otherwise it may have ended meanwhile.
    pub(crate) fn listed_record(
        &self,
        hash: u128,
        at: Option<Address>,
        listing: Listing<'_>,
    ) -> Result<Option<ListedRecord>> {
        if at.is_some_and(|at| !self.index().holds(hash, at)) {
            return self.admission.check_open().map(|()| None);
        }
        loop {
            self.admission.check_open()?;
            let now_ms = self.clock.now_ms();
            let read = self.records.read_by_hash(hash, now_ms, |address, place, record| {
                ListedRecord::of((address, place), record, now_ms, listing)
            })?;
            let mut listed = match read {
                Some(Sight::Read(Some(listed))) => listed,
                Some(Sight::Unreadable(lost)) if listing.admits_unreadable(lost.liveness) => {
                    return Err(lost.error);
                }
                _ => return Ok(None),
            };
            if listed.found.liveness == Liveness::Begun {
                let claim = self.flights.claim(hash);
                let steps = self.viewer.step_counts(hash, &listed.found, now_ms);
                let Some(status) = begun_status(listed.found.version, claim, steps, now_ms) else {
                    return Ok(None);
                };
                (listed.status, listed.has_steps) = (status, steps.total() > 0);
            }
            if !matches!(listed.status, Status::InDoubt | Status::Stopped)
                || planted(Bug::IndexReadOnce)
                || self.records.is_last(hash, &listed.found)
            {
                return Ok(listing.admits_status(listed.status).then_some(listed));
            }
        }
    }

    /// The number of operations that are stopped.
    pub(crate) fn stopped(&self) -> usize {
        let now_ms = self.clock.latest_ms();
        let is_stopped = |(hash, version): &(u128, Version)| {
            let claim = self.flights.claim(*hash);
            let is_leased = matches!(claim, Some(Claim::Lease { version: leased, .. }) if leased == *version);
            !is_leased && !self.viewer.may_have_forgotten_attempt(*version, now_ms)
        };
        self.records.unfinished().settled().iter().filter(|operation| is_stopped(operation)).count()
    }

    /// Returns the key's state. May wait for a sync, but for another thread's sync no longer than `patience`.
    pub(crate) fn get(&self, key: Key<'_>, patience: Patience) -> Result<(Status, Option<Found>)> {
        let _events = crate::events::hold_back();
        self.viewer.get(self.admit(key)?, self.settings.terms.durability, patience)
    }

    /// Returns the states of the keys, in order, with at most one sync for all of them.
    pub(crate) fn get_many(&self, keys: &[Key<'_>]) -> Vec<Result<(Status, Option<Found>)>> {
        let _events = crate::events::hold_back();
        let look = |key: &Key<'_>| -> Result<(Status, Option<Found>)> {
            let seen = self.viewer.look(self.admit(*key)?, self.clock.now_ms(), Want::Result)?;
            Ok((seen.status, seen.found))
        };
        let seen: Vec<_> = keys.iter().map(look).collect();
        let end = |seen: &Result<(Status, Option<Found>)>| match seen {
            Ok((_, Some(found))) => found.end(),
            _ => 0,
        };
        let last = seen.iter().map(end).max().unwrap_or(0);
        if self.settings.terms.durability == Durability::Buffered || self.log().is_durable(last) {
            return seen;
        }
        let Err(error) = self.log().sync_to(last) else { return seen };
        let is_lost = |seen: &Result<(Status, Option<Found>)>| !self.log().is_durable(end(seen));
        seen.into_iter().map(|seen| if is_lost(&seen) { Err(error.clone()) } else { seen }).collect()
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

/// The status of an operation whose last record is the begin of this version. None if the attempt never runs, and its
/// release is about to be written.
fn begun_status(version: Version, claim: Option<Claim>, steps: StepCounts, now_ms: u64) -> Option<Status> {
    match claim {
        Some(Claim::Unstarted { version: unstarted }) if unstarted == version => None,
        claim => Some(status_of(Some((Liveness::Begun, version)), claim, steps, now_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::records::{HashedKey, Sight};
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
                .record(Key::new(name), Fingerprint::NONE.into(), Value::bytes(result), &[], &terms)
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
