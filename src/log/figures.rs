//! The figures of the log for the statistics.

use super::Log;
use crate::sync::atomic::Ordering;

/// The number of frames and records that were written since the store was opened, moved records included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    pub(crate) frames: u64,
    pub(crate) records: u64,
}

/// Figures about the log, for the statistics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogFigures {
    /// The length of the file: store header and slots, not including a slot that is still being filled.
    pub(crate) file_bytes: u64,
    /// The bytes of the free slots, and of the rest of the tail.
    pub(crate) free_bytes: u64,
    pub(crate) written: Written,
}

impl Log {
    /// The length of the file: store header and slots, not including a slot that is still being filled.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.figures().file_bytes
    }

    /// The figures that the writer keeps. Waits for a write by another thread.
    pub(crate) fn figures(&self) -> LogFigures {
        let writer = self.writer.lock();
        let free_space = writer.free_space();
        LogFigures {
            file_bytes: self.reader.slot_offset(writer.slots().count()),
            free_bytes: free_space.tail_bytes + free_space.free_slots * self.parameters.segment_bytes,
            written: writer.written(),
        }
    }

    /// The number of bytes that are reserved and not written yet.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reservations.reserved_bytes()
    }

    /// The number of syncs by group commit since the store was opened.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}
