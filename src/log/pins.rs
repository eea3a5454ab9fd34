//! The segments that are being copied. The slot of such a segment is not reused before the segment is copied.
//!
//! Reclaiming goes on meanwhile: it moves live records out of a pinned segment and moves the head past it. Only the slot stays
//! as it is. So a copy that takes long makes the file longer by what it has yet to copy, and by no more.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::planted::{Bug, planted};

/// All pins of one log.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// The sequences that each copy has yet to copy, by the number of the pin.
    pinned: BTreeMap<u64, RangeInclusive<u64>>,
    /// The number of the next pin.
    next: u64,
    /// The slots of segments that left the log and are pinned, by sequence.
    held: BTreeMap<u64, u64>,
}

impl Pins {
    /// Pins the segments from `first` to `last`. Returns the number of the pin.
    pub(super) fn add(&mut self, first: u64, last: u64) -> u64 {
        let pin = self.next;
        self.next += 1;
        self.pinned.insert(pin, first..=last);
        pin
    }

    fn is_pinned(&self, sequence: u64) -> bool {
        self.pinned.values().any(|range| range.contains(&sequence)) && !planted(Bug::CopiedSlotReused)
    }

    /// Keeps the slot of a segment that leaves the log, if the segment is pinned.
    pub(super) fn hold(&mut self, sequence: u64, slot: u64) -> bool {
        let is_pinned = self.is_pinned(sequence);
        if is_pinned {
            self.held.insert(sequence, slot);
        }
        is_pinned
    }

    /// Gives up the segments of a pin below a sequence, or all of them. Returns the slots that are free now.
    pub(super) fn release(&mut self, pin: u64, below: Option<u64>) -> Vec<u64> {
        match (below, self.pinned.get_mut(&pin)) {
            (Some(below), Some(range)) => *range = below..=*range.end(),
            (Some(_), None) => {}
            (None, _) => drop(self.pinned.remove(&pin)),
        }
        let free: Vec<u64> =
            self.held.keys().copied().filter(|sequence| !self.is_pinned(*sequence)).collect();
        free.iter().filter_map(|sequence| self.held.remove(sequence)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_once_every_copy_has_its_segment() {
        let mut pins = Pins::default();
        assert!(!pins.hold(3, 30), "nothing is pinned");
        let (first, second) = (pins.add(3, 5), pins.add(4, 6));
        assert!(pins.hold(3, 30) && pins.hold(4, 40) && pins.hold(5, 50) && pins.hold(6, 60));
        assert!(!pins.hold(7, 70), "written after the pins");
        assert_eq!(pins.release(first, Some(5)), [30], "segment 4 is yet to be copied by the second");
        assert_eq!(pins.release(second, Some(6)), [40]);
        assert_eq!(pins.release(first, None), [50]);
        assert_eq!(pins.release(second, None), [60]);
        assert!(pins.held.is_empty() && pins.pinned.is_empty());
    }
}
