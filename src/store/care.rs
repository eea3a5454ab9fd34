//! The calls that take care of the file.

use std::ops::ControlFlow;

use super::Store;
use crate::engine::Compaction;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
#[cfg(doc)]
use crate::options::Options;
use crate::progress::Progress;
#[cfg(doc)]
use crate::stats::Stats;

impl Store {
    /// Frees all dead space at once: moves the live records together and shortens the file, but not below
    /// [`Options::min_size`]. Returns what it did.
    ///
    /// Not needed for normal operation, because changes reclaim dead space bit by bit and reuse it for new records. But
    /// changes do not shorten the file. Other threads can read and write meanwhile. Keys whose retention has passed are
    /// removed from the index as well, which frees their memory ([`Stats::index_bytes`]).
    ///
    /// # Errors
    ///
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk failed. What was moved so far is valid.
    /// - [`Error::Full`]: there is no space to move records into.
    /// - [`Error::Replaced`]: the path no longer leads to the open file.
    /// - [`Error::Closed`]: the store was closed, before or meanwhile. [`Error::Forked`].
    pub fn compact(&self) -> Result<Compaction> {
        self.compact_with(|_| ControlFlow::Continue(()))
    }

    /// Does the same as [`compact`](Store::compact), and calls `on_progress` after each segment, which can stop it: see
    /// [`Progress`]. What was moved until then stays moved, and free slots at the end of the file are cut off.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// let compaction = store.compact_with(|progress| {
    ///     eprint!("\r{:3.0} %", 100.0 * progress.fraction());
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(!compaction.is_stopped);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`compact`](Store::compact).
    pub fn compact_with(
        &self,
        mut on_progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Compaction> {
        self.engine.compact(&mut on_progress)
    }
}
