//! Tracks how far the log is written and how far it is durable. Only this module syncs the file while the store is
//! open.
//!
//! Invariant: after one failed sync, no sync succeeds and `durable` does not move. The kernel reports a failed
//! writeback once and may then mark the pages clean, so a second sync could report success although data was lost.
//!
//! The writer sets the written position. The writer and group commit call the syncs. Any thread may read both
//! positions.

use std::io;

use crate::planted::{Bug, planted};
use crate::storage::{Storage, sync_data};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The positions up to which the log is written to the operating system, and up to which it is durable.
#[derive(Debug, Default)]
pub(crate) struct LogPosition {
    written: AtomicU64,
    durable: AtomicU64,
    /// Held during a sync. The operating system may report a failure to one caller only; a second caller that synced at
    /// the same time would believe its own success.
    syncing: Mutex<()>,
    /// A sync has failed. Set with `syncing` locked, read without the lock.
    sync_failed: AtomicBool,
}

impl LogPosition {
    /// The position before which everything is written to the operating system.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// The position before which everything is on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Sets the position before which everything is written.
    pub(crate) fn set_written(&self, position: u64) {
        self.written.store(position, Ordering::Release);
    }

    /// Moves the durable position forward to `position`, unless it is there already.
    pub(crate) fn set_durable(&self, position: u64) {
        self.durable.fetch_max(position, Ordering::AcqRel);
    }

    /// Whether a sync has failed. After that, every further one fails.
    pub(crate) fn sync_has_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    ///
    /// Returns the error of the sync. After one failure every further call fails, on any thread.
    pub(crate) fn sync(&self, storage: &dyn Storage) -> io::Result<()> {
        self.sync_locked(&self.syncing.lock(), storage)
    }

    /// Makes everything before `position` durable, if it is not durable already.
    pub(crate) fn sync_to(&self, position: u64, storage: &dyn Storage) -> io::Result<()> {
        let syncing = self.syncing.lock();
        // While this thread waited for the lock, another thread's sync may have covered the position.
        if self.durable() >= position { Ok(()) } else { self.sync_locked(&syncing, storage) }
    }

    fn sync_locked(&self, _syncing: &MutexGuard<'_, ()>, storage: &dyn Storage) -> io::Result<()> {
        if self.sync_has_failed() {
            return Err(io::Error::other("an earlier sync failed"));
        }
        // This must be read before the sync, which may not cover bytes that are written while it runs.
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
        assert!(
            log_position.sync(&storage).is_err(),
            "the second sync must fail although the storage's succeeds"
        );
        assert_eq!(log_position.durable(), 0);
    }
}
