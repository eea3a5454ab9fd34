//! How far the log is written and synced, and the one place that syncs it.

use std::io;

use crate::planted::{Bug, planted};
use crate::storage::{Storage, sync_data};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// How far the log reaches: with the operating system, and on disk. Positions.
#[derive(Debug, Default)]
pub(crate) struct LogPosition {
    written: AtomicU64,
    durable: AtomicU64,
    /// Locked while a sync is under way: the operating system reports a failure to one caller only, and another that syncs
    /// at the same moment would take its own success for true.
    syncing: Mutex<()>,
    /// A sync has failed. Set with `syncing` locked, read without.
    sync_failed: AtomicBool,
}

impl LogPosition {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn set_written(&self, position: u64) {
        self.written.store(position, Ordering::Release);
    }

    pub(crate) fn set_durable(&self, position: u64) {
        self.durable.fetch_max(position, Ordering::AcqRel);
    }

    /// Whether a sync has failed, so that none will succeed again.
    pub(crate) fn sync_has_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// Makes everything written so far durable. After one failure it never succeeds again, for anybody.
    pub(crate) fn sync(&self, storage: &dyn Storage) -> io::Result<()> {
        self.sync_locked(&self.syncing.lock(), storage)
    }

    /// Makes everything before `position` durable, if it is not.
    pub(crate) fn sync_to(&self, position: u64, storage: &dyn Storage) -> io::Result<()> {
        let syncing = self.syncing.lock();
        // By the sync that was under way until now.
        if self.durable() >= position { Ok(()) } else { self.sync_locked(&syncing, storage) }
    }

    fn sync_locked(&self, _syncing: &MutexGuard<'_, ()>, storage: &dyn Storage) -> io::Result<()> {
        if self.sync_has_failed() {
            return Err(io::Error::other("an earlier sync failed"));
        }
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

    /// Fails one sync, as Linux tells a failed writeback to one caller only.
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
    fn a_sync_that_failed_for_one_caller_succeeds_for_no_other() {
        let storage = FailsOnce { memory: MemoryStorage::new(), failed: AtomicBool::new(false) };
        let log_position = LogPosition::default();
        log_position.set_written(100);
        assert!(log_position.sync(&storage).is_err());
        assert!(log_position.sync(&storage).is_err(), "the operating system would have said yes");
        assert_eq!(log_position.durable(), 0);
    }
}
