//! How far the log is written and how far it is synced, and the only code that syncs it while the store is open.
//!
//! Invariant: after one failed sync, no sync succeeds and `durable` does not move. The kernel reports a failed
//! writeback once and may then mark the pages clean, so a second sync could report a success that is not one.
//!
//! The writer sets what is written; writer and commit sync; any thread reads both positions.

use std::io;

use crate::planted::{Bug, planted};
use crate::storage::{Storage, sync_data};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The end of the log as written to the operating system, and as durable. Both are positions.
#[derive(Debug, Default)]
pub(crate) struct LogPosition {
    written: AtomicU64,
    durable: AtomicU64,
    /// Held during a sync. The operating system may report a failure to one caller only; a second caller that synced at
    /// the same time would believe its own success.
    syncing: Mutex<()>,
    /// A sync has failed. Set under `syncing`, read without it.
    sync_failed: AtomicBool,
}

impl LogPosition {
    /// Everything before this position is written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Everything before this position is on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn set_written(&self, position: u64) {
        self.written.store(position, Ordering::Release);
    }

    /// Moves the durable position forward; never back.
    pub(crate) fn set_durable(&self, position: u64) {
        self.durable.fetch_max(position, Ordering::AcqRel);
    }

    /// Whether a sync has failed, after which none succeeds.
    pub(crate) fn sync_has_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    ///
    /// The error of the sync. After one failure every further call fails, on any thread.
    pub(crate) fn sync(&self, storage: &dyn Storage) -> io::Result<()> {
        self.sync_locked(&self.syncing.lock(), storage)
    }

    /// Makes everything before `position` durable, if it is not already.
    pub(crate) fn sync_to(&self, position: u64, storage: &dyn Storage) -> io::Result<()> {
        let syncing = self.syncing.lock();
        // The sync that held the lock until now may have covered it.
        if self.durable() >= position { Ok(()) } else { self.sync_locked(&syncing, storage) }
    }

    fn sync_locked(&self, _syncing: &MutexGuard<'_, ()>, storage: &dyn Storage) -> io::Result<()> {
        if self.sync_has_failed() {
            return Err(io::Error::other("an earlier sync failed"));
        }
        // Read before the sync, which may not cover what is written while it runs.
        let written = self.written();
        let outcome = if planted(Bug::SyncSkipped) { Ok(()) } else { sync_data(storage) };
        let written = if planted(Bug::SyncCoversTooMuch) { self.written() } else { written };
        match outcome {
            Ok(()) => self.set_durable(written),
            Err(_) => self.sync_failed.store(true, Ordering::Release),
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Map;
    use crate::storage::MemoryStorage;

    /// Fails the first sync and no other, as Linux reports a failed writeback to one caller only.
    #[derive(Debug)]
    struct FailsOnce {
        memory: MemoryStorage,
        failed: AtomicBool,
    }

    impl Storage for FailsOnce {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.memory.set_len(length)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.memory.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.memory.write_at(bytes, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            if self.failed.swap(true, Ordering::SeqCst) { Ok(()) } else { Err(io::Error::other("planted")) }
        }
        fn sync_all(&self) -> io::Result<()> {
            self.sync_data()
        }
        fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
            Ok(None)
        }
    }

    #[test]
    fn after_one_failed_sync_no_sync_succeeds() {
        let storage = FailsOnce { memory: MemoryStorage::new(), failed: AtomicBool::new(false) };
        let log_position = LogPosition::default();
        log_position.set_written(100);
        assert!(log_position.sync(&storage).is_err());
        assert!(log_position.sync(&storage).is_err(), "the storage itself would report success");
        assert_eq!(log_position.durable(), 0);
    }
}
