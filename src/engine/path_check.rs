//! Checks whether the path by which the store was opened still leads to its file.
//!
//! A file that was removed, renamed or replaced still works for the process that has it open, while another process
//! that opens the path gets a different file. Both processes would run every side effect. So the path is compared with
//! the open file at every new segment, at `sync`, `compact` and `close`, and by calls that begin or end an operation,
//! at most once per second of store time. A difference that was seen once is never taken back, because another process
//! may have used the path in between.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::planted::{Bug, planted};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The minimum store time between two comparisons by calls that begin or end an operation.
const LOOK_INTERVAL_MS: u64 = 1_000;

/// The check of one store's path.
#[derive(Debug)]
pub(super) struct PathCheck {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// A comparison has found a difference.
    replaced: AtomicBool,
    /// The store time from which the next comparison by [`PathCheck::look_if_due`] is due.
    next_look_ms: AtomicU64,
    /// The sequence of the tail at the last comparison by [`PathCheck::look_if_new`].
    segment: AtomicU64,
}

impl PathCheck {
    pub(super) fn new(storage: Arc<dyn Storage>, path: PathBuf, now_ms: u64, segment: u64) -> PathCheck {
        PathCheck {
            storage,
            path,
            replaced: AtomicBool::new(false),
            next_look_ms: AtomicU64::new(now_ms.saturating_add(LOOK_INTERVAL_MS)),
            segment: AtomicU64::new(segment),
        }
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Returns [`Error::Replaced`] if a comparison has found a difference. Does not access the file system.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_replaced() { Err(Error::Replaced { path: self.path.clone() }) } else { Ok(()) }
    }

    /// Compares the path with the open file now. Returns [`Error::Replaced`] if this or an earlier comparison has found
    /// a difference.
    pub(super) fn look(&self) -> Result<()> {
        // If the operating system cannot resolve the path, the outcome of the earlier comparisons still holds.
        let is_elsewhere = matches!(self.storage.is_in_place(), Ok(false));
        if is_elsewhere && !planted(Bug::PathNotCompared) && !self.replaced.swap(true, Ordering::Relaxed) {
            crate::events::replaced(&self.path);
        }
        self.check()
    }

    /// Compares the path with the open file if a second of store time has passed since the last time. Returns as
    /// [`PathCheck::look`] does.
    pub(super) fn look_if_due(&self, now_ms: u64) -> Result<()> {
        let due_ms = self.next_look_ms.load(Ordering::Relaxed);
        if now_ms < due_ms {
            return self.check();
        }
        let next_ms = now_ms.saturating_add(LOOK_INTERVAL_MS);
        let looks = self.next_look_ms.compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed);
        if looks.is_ok() { self.look() } else { self.check() }
    }

    /// Compares the path with the open file if the log has gone on to a new segment since the last time.
    pub(super) fn look_if_new(&self, segment: u64) {
        if self.segment.load(Ordering::Relaxed) < segment
            && self.segment.fetch_max(segment, Ordering::Relaxed) < segment
        {
            let _ = self.look();
        }
    }
}
