//! Looking: what the key's last record says, where that leaves the key, and what may be answered.

use super::{Durability, Engine, Terms};
use crate::error::{Error, Result};
use crate::flights::{Claim, FlightGuard};
use crate::format::record::Record;
use crate::index::Address;
use crate::key::{Fingerprint, Key};
use crate::log::reader::Place;
use crate::record::{Life, Weight, life};
use crate::status::{Status, Version};

/// What the key's last record says now.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) address: Address,
    pub(crate) place: Place,
    pub(crate) weight: Weight,
    pub(crate) life: Life,
    pub(crate) version: Version,
    pub(crate) origin: Version,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: u32,
    pub(crate) time_ms: u64,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
    /// Only if it was asked for and is still kept.
    pub(crate) result: Option<Vec<u8>>,
}

/// Whether a lookup copies the result out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Result,
    State,
}

/// The index's entry of a key, and what the record weighs that it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) address: Address,
    pub(super) weight: Weight,
}

/// What a look at a key under its flight says to somebody who wants to act on it.
pub(super) struct View {
    pub(super) found: Option<Found>,
    /// What the key's next record takes the place of: there may be an entry though its record leaves nothing of the
    /// key any more. The flight keeps it where it is.
    pub(super) entry: Option<Entry>,
    pub(super) claim: Option<Claim>,
    pub(super) status: Status,
    /// When it was looked at: what is decided now happens then.
    pub(super) now_ms: u64,
}

impl Engine {
    /// The key's last record, if it leaves anything of it now. No flight is needed: the index says only what is as
    /// durable as it was asked to be.
    pub(super) fn lookup(&self, key: Key<'_>, hash: u128, now_ms: u64, want: Want) -> Result<Option<Found>> {
        Ok(self.last_record(key, hash, now_ms, want)?.filter(|found| found.life != Life::Gone))
    }

    /// The same, though it may leave nothing of the key.
    fn last_record(&self, key: Key<'_>, hash: u128, now_ms: u64, want: Want) -> Result<Option<Found>> {
        self.read(key, hash, |address, place, record| {
            let mut found = found_at(address, place, record, now_ms);
            if want == Want::Result && found.life == Life::Completed {
                found.result = record.result.map(<[u8]>::to_vec);
            }
            found
        })
    }

    /// Shows the key's last record to `read`, if the index knows one.
    fn read<R>(
        &self,
        key: Key<'_>,
        hash: u128,
        mut read: impl FnMut(Address, Place, &Record<'_>) -> R,
    ) -> Result<Option<R>> {
        let found = self.index.find(hash, |address| {
            // Looked at under the shard's lock, which a close takes once before it lets go of the file: from then on
            // another process may write to it or make it shorter.
            if self.admission.is_closed() {
                return Some(Err(Error::Closed));
            }
            let confirm = self
                .log
                .reader()
                .record(address, |place, record| (record.key == key).then(|| read(address, place, record)));
            confirm.transpose()
        });
        found.transpose()
    }

    /// Copies the result of a completed operation to the end of `buffer`; None if it is not completed.
    pub(crate) fn replay_into(
        &self,
        key: Key<'_>,
        fingerprint: Fingerprint,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Version>> {
        let hash = self.admit(key)?;
        let terms = &self.settings.terms;
        let now_ms = self.clock.now_ms();
        let found = self.read(key, hash, |address, place, record| {
            let found = found_at(address, place, record, now_ms);
            if found.life == Life::Completed && found.fingerprint == fingerprint {
                buffer.extend_from_slice(record.result.unwrap_or_default());
            }
            found
        })?;
        match found {
            Some(found) if !matches!(found.life, Life::Gone | Life::Released) => {
                self.check_fingerprint(key, fingerprint, &found, terms.durability)?;
                if found.life == Life::Begun {
                    return Ok(None);
                }
                self.check_replay(key, fingerprint, &found, terms)?;
                Ok(Some(found.version))
            }
            _ => Ok(None),
        }
    }

    /// Returns when what was found is as durable as `durability` demands of an answer.
    pub(super) fn settle(&self, found: &Found, durability: Durability) -> Result<()> {
        match durability {
            Durability::Sync => self.log.sync_to(found.place.position + found.place.length_bytes),
            Durability::Buffered => Ok(()),
        }
    }

    /// Where the key stands. With its flight held this stays so, but for a lease that is dropped.
    pub(super) fn status(&self, found: Option<&Found>, claim: Option<Claim>, now_ms: u64) -> Status {
        match found.map(|found| (found.life, found.version)) {
            None | Some((Life::Gone | Life::Released, _)) => Status::Absent,
            Some((Life::Completed | Life::CompletedWithoutResult, _)) => Status::Completed,
            Some((Life::Begun, version)) => match claim {
                Some(Claim::Lease { version: leased, deadline_ms, .. })
                    if leased == version && now_ms < deadline_ms =>
                {
                    Status::InProgress
                }
                _ => Status::InDoubt,
            },
        }
    }

    pub(super) fn view(
        &self,
        key: Key<'_>,
        hash: u128,
        flight: &FlightGuard<'_>,
        now_ms: u64,
        want: Want,
    ) -> Result<View> {
        let last = self.last_record(key, hash, now_ms, want)?;
        let entry = last.as_ref().map(|last| Entry { address: last.address, weight: last.weight });
        let found = last.filter(|found| found.life != Life::Gone);
        let claim = flight.claim();
        let status = self.status(found.as_ref(), claim, now_ms);
        Ok(View { found, entry, claim, status, now_ms })
    }

    /// Where the key stands, for somebody who only looks.
    pub(crate) fn get(&self, key: Key<'_>) -> Result<(Status, Option<Found>)> {
        let hash = self.admit(key)?;
        let durability = self.settings.terms.durability;
        let now_ms = self.clock.now_ms();
        let found = self.lookup(key, hash, now_ms, Want::Result)?;
        // In progress or in doubt is a question of the record and the claim together, which only the flight holds still.
        let (status, found) = match found {
            Some(Found { life: Life::Begun, .. }) => {
                let flight = self.flights.enter(hash);
                let view = self.view(key, hash, &flight, now_ms, Want::Result)?;
                (view.status, view.found)
            }
            found => (self.status(found.as_ref(), None, now_ms), found),
        };
        if let Some(found) = &found {
            self.settle(found, durability)?;
        }
        Ok((status, found))
    }

    /// Returns when what was found may be given to somebody who asks for the same again. It is only looked at: handed
    /// through, it would be copied twice.
    pub(super) fn check_replay(
        &self,
        key: Key<'_>,
        fingerprint: Fingerprint,
        found: &Found,
        terms: &Terms,
    ) -> Result<()> {
        self.check_fingerprint(key, fingerprint, found, terms.durability)?;
        self.settle(found, terms.durability)?;
        if found.life == Life::CompletedWithoutResult {
            return Err(Error::ResultExpired { key: key.to_owned() });
        }
        crate::events::replayed(key);
        Ok(())
    }

    pub(super) fn check_fingerprint(
        &self,
        key: Key<'_>,
        fingerprint: Fingerprint,
        found: &Found,
        durability: Durability,
    ) -> Result<()> {
        if found.fingerprint == fingerprint {
            return Ok(());
        }
        self.settle(found, durability)?;
        crate::events::mismatched(key);
        Err(Error::Mismatch { key: key.to_owned() })
    }

    pub(super) fn check_result(&self, key: Key<'_>, result: &[u8]) -> Result<()> {
        let limit_bytes = self.settings.max_result_bytes;
        if result.len() <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge { key: key.to_owned(), length_bytes: result.len(), limit_bytes })
    }

    /// Whether the attempt of `version` is still the key's last word.
    pub(super) fn check_holds(&self, key: Key<'_>, found: Option<&Found>, version: Version) -> Result<()> {
        let holds = found.is_some_and(|found| found.life == Life::Begun && found.version == version);
        if holds { Ok(()) } else { Err(Error::Fenced { key: key.to_owned(), version }) }
    }
}

/// What a record says, without its result.
fn found_at(address: Address, place: Place, record: &Record<'_>, now_ms: u64) -> Found {
    let life = life(record, now_ms);
    Found {
        address,
        place,
        weight: Weight::of(record, place.length_bytes),
        life,
        version: record.version,
        origin: record.origin,
        fingerprint: record.fingerprint,
        attempt: record.attempt,
        time_ms: record.time_ms,
        key_expires_ms: record.key_expires_ms,
        result_expires_ms: record.result_expires_ms,
        result: None,
    }
}
