//! Pins the segments of the log for a copy.

use super::{FullSegment, Writer};
use crate::format::header::SegmentHeader;

/// A log that is pinned, up to the position that was durable.
#[derive(Debug)]
pub(in crate::log) struct Pinned {
    /// The number of the pin.
    pub(in crate::log) pin: u64,
    /// The full segments, oldest first.
    pub(in crate::log) full: Vec<FullSegment>,
    /// The slot of the last segment.
    pub(in crate::log) tail_slot: u64,
    /// The header of the last segment, with the head, open count and time of this moment.
    pub(in crate::log) header: SegmentHeader,
    /// The position up to which the log was durable. It lies in the last segment.
    pub(in crate::log) end: u64,
}

impl Writer {
    /// Describes the log up to the position that is durable, and pins its segments.
    pub(in crate::log) fn pin(&mut self) -> Pinned {
        let end = self.log_position.durable().min(self.end());
        let mark = self.clock.mark();
        let header =
            SegmentHeader { head: self.head, mark, synced_to: end, copy: self.copy, ..self.tail.header };
        let header = SegmentHeader { open_count: self.open_count, ..header };
        let pin = self.pins.add(self.head, header.sequence);
        let full = self.full.iter().copied().collect();
        Pinned { pin, full, tail_slot: self.tail.slot, header, end }
    }

    /// Gives up the pinned segments below `sequence`, which were copied. None gives up all of them.
    pub(in crate::log) fn unpin(&mut self, pin: u64, below: Option<u64>) {
        for slot in self.pins.release(pin, below) {
            self.slots.give_back(slot);
        }
    }
}
