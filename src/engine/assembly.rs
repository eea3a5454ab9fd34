//! Assembles the parts of one open store.

use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::counters::{Counted, Counters};
use super::outbox::PendingMessages;
use super::path_check::PathCheck;
use super::reclaim::Reclaim;
use super::records::{HashedKey, Records};
use super::terms::Settings;
use super::unfinished::UnfinishedTable;
use super::unreadable::UnreadableRecords;
use super::unstarted::UnstartedList;
use super::view::Viewer;
use super::write::{Versions, WritePath};
use crate::clock::{Sleepers, StoreClock};
use crate::error::{Error, Result};
use crate::flights::Flights;
use crate::index::Index;
use crate::key::{Fingerprint, Key};
use crate::log::{Log, largest_result_bytes};
use crate::recover::Recovered;
use crate::status::Version;
use crate::sync::atomic::AtomicU64;

/// The parts of one open store. This module only creates the parts and gives access to them; the calls are in the
/// modules after it.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) settings: Settings,
    pub(super) admission: Arc<Admission>,
    pub(super) path_check: Arc<PathCheck>,
    pub(super) flights: Arc<Flights>,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) versions: Versions,
    /// The number of doubts given to callers so far, and so the number of the next one.
    pub(super) doubts: AtomicU64,
    pub(super) records: Arc<Records>,
    pub(super) viewer: Viewer,
    pub(super) write: Arc<WritePath>,
    pub(super) reclaim: Reclaim,
    pub(super) unstarted: UnstartedList,
}

impl Engine {
    /// Builds the engine of a recovered store.
    pub(crate) fn new(recovered: Recovered, settings: Settings) -> Engine {
        let Recovered {
            log,
            index,
            clock,
            open_count,
            counter,
            unreadable,
            begun,
            messages,
            acknowledgement_room,
            copy,
        } = recovered;
        let flights = Arc::new(Flights::new());
        clock.wake_when_moved(Arc::downgrade(&(Arc::clone(&flights) as Arc<dyn Sleepers>)));
        let admission = Arc::new(Admission::new());
        let (storage, path) = (Arc::clone(log.storage()), log.path().to_owned());
        let versions = Versions::new(path.clone(), open_count, counter);
        let path_check = Arc::new(PathCheck::new(storage, path, clock.now_ms(), log.span().1));
        let unreadable = UnreadableRecords::new(unreadable);
        let unfinished = UnfinishedTable::new(begun);
        let outbox = PendingMessages::new(messages, acknowledgement_room);
        let counters = Arc::new(Counters::default());
        let tables = (index, unreadable, unfinished, outbox);
        let records = Records::new(log, tables, Arc::clone(&counters), Arc::clone(&admission));
        let records = Arc::new(records);
        let write = Arc::new(WritePath::new(Arc::clone(&records)));
        let viewer = Viewer::new(
            Arc::clone(&records),
            Arc::clone(&flights),
            Arc::clone(&clock),
            Arc::clone(&counters),
            copy,
        );
        let reclaim = Reclaim::new(
            Arc::clone(&records),
            Arc::clone(&write),
            Arc::clone(&flights),
            Arc::clone(&clock),
            Arc::clone(&admission),
            Arc::clone(&path_check),
        );
        Engine {
            settings,
            admission,
            path_check,
            flights,
            counters,
            clock,
            versions,
            doubts: AtomicU64::new(0),
            records,
            viewer,
            write,
            reclaim,
            unstarted: UnstartedList::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn path(&self) -> &Path {
        self.records.path()
    }

    pub(crate) fn log(&self) -> &Log {
        self.records.log()
    }

    pub(crate) fn index(&self) -> &Index {
        self.records.index()
    }

    pub(crate) fn clock(&self) -> &StoreClock {
        &self.clock
    }

    /// The maximum size of a result of this store, or of a result and messages together.
    pub(crate) fn largest_result_bytes(&self) -> u64 {
        largest_result_bytes(self.log().segment_bytes())
    }

    /// The number of leases and doubts that are alive. Takes no lock.
    pub(crate) fn claim_count(&self) -> usize {
        self.flights.claims()
    }

    /// Whether this process was forked from the one that opened the store. Takes no lock.
    pub(crate) fn has_forked(&self) -> bool {
        self.admission.has_forked()
    }

    /// Returns [`Error::Forked`](crate::Error::Forked) in a process that was forked from the one that opened the store.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.admission.check_process()
    }

    /// Whether a check has found the path leading to no file, or to a different file from the open one.
    pub(crate) fn is_replaced(&self) -> bool {
        self.path_check.is_replaced()
    }

    /// Returns [`Error::Replaced`](crate::Error::Replaced) if a check has found that the path no longer leads to the
    /// open file.
    pub(crate) fn check_in_place(&self) -> Result<()> {
        self.path_check.check()
    }

    /// The fingerprint of a request, keyed with the secret of this store.
    pub(crate) fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        self.log().hasher().fingerprint(request)
    }

    /// The number of records that are known to be unreadable.
    pub(crate) fn unreadable_records(&self) -> u64 {
        self.records.unreadable().count()
    }

    /// The number of operations that began and have not ended, and of those among them that are in doubt. Takes no
    /// lock.
    pub(crate) fn unfinished_counts(&self) -> (usize, usize) {
        // An attempt that never runs is in the table until its release is written.
        let count = self.records.unfinished().count().saturating_sub(self.flights.unstarted());
        (count, count.saturating_sub(self.flights.leases()))
    }

    /// The number of steps of all unfinished operations, their inputs included. Takes no lock.
    pub(crate) fn unfinished_steps(&self) -> usize {
        self.records.unfinished().step_count()
    }

    /// The memory of the table of unfinished operations and their steps, in bytes.
    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.records.unfinished().allocated_bytes()
    }

    /// How often this was counted since the store was opened. Takes no lock.
    pub(crate) fn counted(&self, counted: Counted) -> u64 {
        self.counters.total(counted)
    }

    /// The error of a call whose attempt no longer owns the operation. Also counts it.
    pub(super) fn fenced(&self, key: Key<'_>, version: Version) -> Error {
        self.counters.add(Counted::Fenced);
        Error::Fenced { key: key.to_owned(), version }
    }

    /// When the last attempt of the oldest unfinished operation began, in store time.
    pub(crate) fn oldest_unfinished_ms(&self) -> Option<u64> {
        self.records.unfinished().oldest_ms()
    }

    /// Whether the last attempt to reclaim failed because the oldest segment could not be read.
    pub(crate) fn reclaiming_stopped(&self) -> bool {
        self.reclaim.is_stopped()
    }

    /// The number of bytes of live records that were moved, and of segments that were retired, since the store was
    /// opened.
    pub(crate) fn reclaimed(&self) -> (u64, u64) {
        (self.reclaim.moved_bytes(), self.reclaim.segments())
    }

    /// Checks the process and that the store is open, for a call with a key that was admitted before.
    pub(super) fn admit_again<'a>(&self, key: HashedKey<'a>) -> Result<HashedKey<'a>> {
        self.admission.check_open().map(|()| key)
    }

    /// The key with its hash, for calls that take it in this form.
    #[cfg(feature = "__simulation")]
    pub(crate) fn hashed<'a>(&self, key: Key<'a>) -> Result<HashedKey<'a>> {
        self.admit(key)
    }

    /// Checks the process, that the store is open, and the key; then hashes the key.
    pub(super) fn admit<'a>(&self, key: Key<'a>) -> Result<HashedKey<'a>> {
        self.admission.check_open()?;
        key.check()?;
        Ok(HashedKey { key, hash: self.log().hasher().key(key) })
    }
}
