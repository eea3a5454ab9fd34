//! Checks whether the path by which the store was opened still leads to its file.
//!
//! A file that was removed, renamed or replaced goes on working for the process that has it open, while another process that
//! opens the path gets another file: both would run every side effect. The path is compared with the open file at every new
//! segment, at `sync`, `compact` and `close`, and at most once a second of store time by calls that begin or end an
//! operation. A difference that was seen once counts for good, because another process may have used the path in between.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::planted::{Bug, planted};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How much store time passes between two checks by calls that begin or end an operation, in ms.
const LOOK_INTERVAL_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct PathCheck {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    replaced: AtomicBool,
    /// Store time from which the next check is due.
    next_look_ms: AtomicU64,
    /// The sequence of the tail at the last check of [`PathCheck::look_if_new`].
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

    /// [`Error::Replaced`] if a difference was seen. Does not touch the path.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_replaced() { Err(Error::Replaced { path: self.path.clone() }) } else { Ok(()) }
    }

    /// Compares the path with the open file now.
    pub(super) fn look(&self) -> Result<()> {
        // If the system cannot say what the path leads to, what was known before still holds.
        let is_elsewhere = matches!(self.storage.is_in_place(), Ok(false));
        if is_elsewhere && !planted(Bug::PathNotCompared) && !self.replaced.swap(true, Ordering::Relaxed) {
            crate::events::replaced(&self.path);
        }
        self.check()
    }

    /// Compares if a second has passed since a caller did.
    pub(super) fn look_if_due(&self, now_ms: u64) -> Result<()> {
        let due_ms = self.next_look_ms.load(Ordering::Relaxed);
        if now_ms < due_ms {
            return self.check();
        }
        let next_ms = now_ms.saturating_add(LOOK_INTERVAL_MS);
        let looks = self.next_look_ms.compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed);
        if looks.is_ok() { self.look() } else { self.check() }
    }

    /// Compares if the log has a new tail since the last time.
    pub(super) fn look_if_new(&self, segment: u64) {
        if self.segment.load(Ordering::Relaxed) < segment
            && self.segment.fetch_max(segment, Ordering::Relaxed) < segment
        {
            let _ = self.look();
        }
    }
}
