//! Looking: what the key's last record says, where that leaves the key, and what may be answered.

use super::{Durability, Engine, Request, Terms};
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record, Typing, Value};
use crate::index::Address;
use crate::key::{Fingerprint, Key};
use crate::log::reader::RecordLocation;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, RecordSize, liveness, lost_liveness};
use crate::status::{Status, Version};
use crate::sync::Patience;

/// What the key's last record says now.
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
    /// Completed, and its result was never recorded.
    pub(crate) not_kept: bool,
    pub(crate) typing: Option<Typing>,
    /// Only if it was asked for and is still kept.
    pub(crate) result: Option<Vec<u8>>,
}

impl Found {
    /// The position in the log at which its record ends.
    fn end(&self) -> u64 {
        self.place.position + self.place.length_bytes
    }
}

/// What is known of a key's last record that cannot be read: what the footer says, or the record in which it was carried
/// along.
#[derive(Debug)]
pub(super) struct Unreadable {
    address: Address,
    size: RecordSize,
    pub(super) version: Version,
    /// What it would leave of the key.
    liveness: Liveness,
    /// What a caller is told who wants to know more than that.
    pub(super) error: Error,
}

/// A key's last record.
enum Sight<R> {
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

/// The index's entry of a key, and what the record weighs that it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexEntry {
    pub(super) address: Address,
    pub(super) size: RecordSize,
}

/// What a look at a key under its flight says to somebody who wants to act on it.
pub(super) struct View {
    pub(super) found: Option<Found>,
    /// What the key's next record takes the place of: there may be an entry though its record leaves nothing of the
    /// key any more. The flight keeps it where it is.
    pub(super) entry: Option<IndexEntry>,
    /// The key's last record cannot be read, so `found` is nothing. The status is what the footer says.
    pub(super) unreadable: Option<Unreadable>,
    pub(super) claim: Option<Claim>,
    pub(super) status: Status,
    /// When it was looked at: what is decided now happens then.
    pub(super) now_ms: u64,
}

/// The state of a key, read without waiting for other callers.
pub(super) struct Seen {
    pub(super) status: Status,
    pub(super) found: Option<Found>,
    /// The claim, of a key that has begun.
    claim: Option<Claim>,
}

impl Seen {
    /// The attempt that a caller runs or looks into.
    pub(super) fn attempt_at_work(&self) -> Option<u32> {
        let found = self.found.as_ref()?;
        match self.claim {
            _ if self.status == Status::InProgress => Some(found.attempt),
            Some(Claim::Doubt { version, attempt, .. }) if version == found.version => Some(attempt),
            _ => None,
        }
    }
}

impl Engine {
    /// The key's last record, if it leaves anything of it now. No flight is needed: the index says only what is as
    /// durable as it was asked to be.
    pub(super) fn lookup(&self, key: Key<'_>, hash: u128, now_ms: u64, want: Want) -> Result<Option<Found>> {
        match self.last_record(key, hash, now_ms, want)? {
            Some(Sight::Read(found)) if found.liveness != Liveness::Gone => Ok(Some(found)),
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            _ => Ok(None),
        }
    }

    /// The same, though it may leave nothing of the key, or not be readable.
    fn last_record(&self, key: Key<'_>, hash: u128, now_ms: u64, want: Want) -> Result<Option<Sight<Found>>> {
        self.read(key, hash, now_ms, |address, place, record| {
            let mut found = found_at(address, place, record, now_ms);
            if want == Want::Result && found.liveness == Liveness::Completed {
                found.result = record.value.result.map(<[u8]>::to_vec);
            }
            found
        })
    }

    /// Shows the key's last record to `read`, if the index knows one.
    fn read<R>(
        &self,
        key: Key<'_>,
        hash: u128,
        now_ms: u64,
        mut read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<Sight<R>>> {
        loop {
            // Of whatever key: the index does not say.
            let mut damaged = Vec::new();
            let found = self.index.find(hash, |address| {
                // Looked at under the shard's lock, which a close takes once before it lets go of the file: from then on
                // another process may write to it or make it shorter.
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

    /// Which of the damaged records is the last one of the key with this hash, by what the footers say. None if one of them
    /// was moved or replaced meanwhile, so that the index has to be asked again.
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
            // Looked at last: what was listed before is then of the record that could not be read.
            if !self.index.holds(hash, address) {
                return None;
            }
            match lost {
                Some((whose, lost)) if whose == hash => return Some(Ok(Some(lost))),
                Some(_) => {}
                // It may be anybody's whose hash begins alike.
                None => unlisted = Some(error),
            }
        }
        Some(unlisted.map_or(Ok(None), Err))
    }

    /// Counts a record that cannot be read, and tells of it if that was not known. `hash` is of any key that the index
    /// would find the record for.
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

    /// Copies the result of a completed operation to the end of `buffer`; None if it is not completed.
    pub(crate) fn replay_into(
        &self,
        key: Key<'_>,
        request: Request,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Version>> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        let terms = &self.settings.terms;
        let now_ms = self.clock.now_ms();
        let found = self.read(key, hash, now_ms, |address, place, record| {
            let found = found_at(address, place, record, now_ms);
            if found.liveness == Liveness::Completed && request.is(found.fingerprint) {
                buffer.extend_from_slice(record.value.result.unwrap_or_default());
            }
            found
        })?;
        match found {
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            Some(Sight::Read(found)) if !matches!(found.liveness, Liveness::Gone | Liveness::Released) => {
                self.check_fingerprint(key, request, &found, terms.durability)?;
                if found.liveness == Liveness::Begun {
                    return Ok(None);
                }
                self.check_replay(key, request, &found, terms)?;
                Ok(Some(found.version))
            }
            _ => Ok(None),
        }
    }

    /// Returns when what was found is as durable as `durability` demands of an answer.
    pub(super) fn ensure_durable(&self, found: &Found, durability: Durability) -> Result<()> {
        match durability {
            Durability::Sync => self.log.sync_to(found.end()),
            Durability::Buffered => Ok(()),
        }
    }

    /// Where the key stands. With its flight held this stays so, but for a lease that is dropped.
    pub(super) fn status(&self, found: Option<&Found>, claim: Option<Claim>, now_ms: u64) -> Status {
        status_of(found.map(|found| (found.liveness, found.version)), claim, now_ms)
    }

    /// What a look under the flight says. An error if the key's last record cannot be read.
    pub(super) fn view(
        &self,
        key: Key<'_>,
        hash: u128,
        flight: &FlightGuard<'_>,
        now_ms: u64,
        want: Want,
    ) -> Result<View> {
        let mut view = self.view_though_unreadable(key, hash, flight, now_ms, want)?;
        view.unreadable.take().map_or(Ok(view), |lost| Err(lost.error))
    }

    /// The same, for callers who want to give up what is there, whether or not it can be read.
    pub(super) fn view_though_unreadable(
        &self,
        key: Key<'_>,
        hash: u128,
        flight: &FlightGuard<'_>,
        now_ms: u64,
        want: Want,
    ) -> Result<View> {
        let claim = flight.claim();
        let view = View { found: None, entry: None, unreadable: None, claim, status: Status::Absent, now_ms };
        Ok(match self.last_record(key, hash, now_ms, want)? {
            None => view,
            Some(Sight::Read(last)) => {
                let entry = Some(IndexEntry { address: last.address, size: last.size });
                let found = Some(last).filter(|found| found.liveness != Liveness::Gone);
                let status = self.status(found.as_ref(), claim, now_ms);
                View { found, entry, status, ..view }
            }
            Some(Sight::Unreadable(lost)) => {
                let entry = Some(IndexEntry { address: lost.address, size: lost.size });
                let status = status_of(Some((lost.liveness, lost.version)), claim, now_ms);
                let unreadable = Some(lost).filter(|lost| lost.liveness != Liveness::Gone);
                View { entry, unreadable, status, ..view }
            }
        })
    }

    /// Where the key stands, for somebody who only looks. Waits at most for a sync, and for one of another caller's no longer
    /// than `patience`.
    pub(crate) fn get(&self, key: Key<'_>, patience: Patience) -> Result<(Status, Option<Found>)> {
        let _events = crate::events::hold_back();
        let hash = self.admit(key)?;
        let Seen { status, found, .. } = self.look(key, hash, self.clock.now_ms(), Want::Result)?;
        match (&found, self.settings.terms.durability) {
            (Some(found), Durability::Sync) if !self.log.sync_to_within(found.end(), patience)? => {
                Err(Error::Busy { key: key.to_owned() })
            }
            _ => Ok((status, found)),
        }
    }

    /// Where the key stands. Waits for nobody; a key that is being changed stands where it stood before the change until the
    /// index points to the new record, which is then as durable as was asked for.
    ///
    /// Record and claim are looked at one after the other, and yet the answer is that of one moment. A lease is made just
    /// before the index points to its record, and a change ends it just after the index points to another. So while the
    /// index points to a record of an attempt, the claim is the right one:
    ///
    /// - If it is the lease of the record that was read, it was there when the index was asked: in progress, then.
    /// - If not, the index is asked again. If it still points to a record of the same version, it did when the claim was
    ///   looked at: in doubt, then. If not, the key was changed meanwhile, and the look begins again with what is there now.
    pub(super) fn look(&self, key: Key<'_>, hash: u128, mut now_ms: u64, want: Want) -> Result<Seen> {
        let mut found = self.lookup(key, hash, now_ms, want)?;
        loop {
            let Some(Found { liveness: Liveness::Begun, version, .. }) = found else {
                return Ok(Seen { status: self.status(found.as_ref(), None, now_ms), found, claim: None });
            };
            let claim = self.flights.claim(hash);
            now_ms = self.clock.now_ms();
            let status = self.status(found.as_ref(), claim, now_ms);
            if status == Status::InProgress || planted(Bug::IndexReadOnce) {
                return Ok(Seen { status, found, claim });
            }
            found = self.lookup(key, hash, now_ms, want)?;
            if found
                .as_ref()
                .is_some_and(|found| found.liveness == Liveness::Begun && found.version == version)
            {
                return Ok(Seen { status, found, claim });
            }
        }
    }

    /// Returns when what was found may be given to somebody who asks for the same again. It is only looked at: handed
    /// through, it would be copied twice.
    pub(super) fn check_replay(
        &self,
        key: Key<'_>,
        request: Request,
        found: &Found,
        terms: &Terms,
    ) -> Result<()> {
        self.check_fingerprint(key, request, found, terms.durability)?;
        self.ensure_durable(found, terms.durability)?;
        if found.not_kept {
            return Err(Error::ResultNotKept { key: key.to_owned() });
        }
        if found.liveness == Liveness::CompletedWithoutResult {
            return Err(Error::ResultExpired { key: key.to_owned() });
        }
        crate::events::replayed(key);
        Ok(())
    }

    pub(super) fn check_fingerprint(
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
        crate::events::mismatched(key);
        Err(Error::Mismatch { key: key.to_owned() })
    }

    pub(super) fn check_result(&self, key: Key<'_>, value: &Value<'_>) -> Result<()> {
        let (length_bytes, limit_bytes) = (value.result_bytes(), self.settings.max_result_bytes);
        if length_bytes <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge { key: key.to_owned(), length_bytes, limit_bytes })
    }

    /// Whether the attempt of `version` is still the key's last word.
    pub(super) fn check_holds(&self, key: Key<'_>, found: Option<&Found>, version: Version) -> Result<()> {
        let holds = found.is_some_and(|found| found.liveness == Liveness::Begun && found.version == version);
        if holds { Ok(()) } else { Err(Error::Fenced { key: key.to_owned(), version }) }
    }
}

/// The error of a call that finds a doubt and does not look into it. Emits the event for that.
pub(super) fn left_in_doubt(key: Key<'_>, found: &Found) -> Error {
    crate::events::found_in_doubt(key, found.attempt);
    Error::InDoubt { key: key.to_owned(), attempt: found.attempt, version: found.version, reason: None }
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

/// Where a key stands whose last record leaves so much of it.
fn status_of(last: Option<(Liveness, Version)>, claim: Option<Claim>, now_ms: u64) -> Status {
    match last {
        None | Some((Liveness::Gone | Liveness::Released, _)) => Status::Absent,
        Some((Liveness::Completed | Liveness::CompletedWithoutResult, _)) => Status::Completed,
        // One that cannot be read is in doubt if it is not known to have been anything else.
        Some((Liveness::Begun | Liveness::Unreadable, version)) => match claim {
            Some(Claim::Lease { version: leased, deadline_ms, .. })
                if leased == version && now_ms < deadline_ms =>
            {
                Status::InProgress
            }
            _ => Status::InDoubt,
        },
    }
}

/// What a record says, without its result.
fn found_at(address: Address, place: RecordLocation, record: &Record<'_>, now_ms: u64) -> Found {
    let liveness = liveness(record, now_ms);
    Found {
        address,
        place,
        size: RecordSize::of(record, place.length_bytes),
        liveness,
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

    /// Two keys in 2^32 share what the index knows of a hash. The one must not answer for the other's damage.
    #[test]
    fn a_key_is_not_corrupt_because_the_damaged_record_of_another_is_found_with_it() {
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
        let hash = |name: &str| engine.log.hasher().key(Key::new(name));
        let address = |name: &str| {
            let found = engine.last_record(Key::new(name), hash(name), 0, Want::State).unwrap();
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
                engine.index.insert(hash(other), address);
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
                assert!(engine.index.remove(hash(other), address));
            }
        }
        assert_eq!(engine.unreadable_records(), 0);
    }
}
