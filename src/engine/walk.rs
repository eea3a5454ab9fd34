//! Walks over the log to list the keys of the store, segment by segment.
//!
//! The walk goes from the oldest segment to the tail, and ends at the tail as it is when the walk gets there. Of each
//! segment it takes the list of the last records, and shows those that the index points to when they are read.
//!
//! Invariant: a key that is present throughout the walk is shown at least once. While a key is present, the index points
//! to one of its records, and each change or move of it points the index to a record nearer to the end of the log. When the
//! walk takes the list of a segment, the key's record is before it, in it or after it. If it is before it, the walk has
//! been there when the index pointed there. If it is after it, the walk gets there. At the tail there is no later place
//! to find it in, so a key that the tail lists is shown wherever its record is by now.
//!
//! No lock is held between two steps of a walk. A step is admitted only while it reads the list of a segment.

use super::assembly::Engine;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::hash::Domain;
use crate::index::Address;
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};

/// A key that a segment lists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalkedKey {
    pub(crate) hash: u128,
    /// The address at which the record must still be the key's last one for the key to be shown. None to show it
    /// wherever its last record is.
    pub(crate) at: Option<Address>,
}

/// One step of a walk.
#[derive(Debug)]
pub(crate) struct WalkedSegment {
    pub(crate) sequence: u64,
    /// The keys that the segment lists, in the order of the log, or why its list cannot be read.
    pub(crate) keys: Result<Vec<WalkedKey>>,
    /// Whether this is the tail, with which the walk ends.
    pub(crate) is_last: bool,
    /// The length of the segment.
    pub(crate) segment_bytes: u64,
    /// The number of bytes of the log after this segment.
    pub(crate) left_bytes: u64,
}

impl Engine {
    /// Takes the list of the first segment from `from` on. `first_tail` is the tail when the walk began.
    pub(crate) fn walk(&self, from: u64, first_tail: u64) -> Result<WalkedSegment> {
        let log = self.log();
        loop {
            // Admitted, so that the file is not unlocked and written by another process meanwhile.
            let _inside = self.admission.enter()?;
            let (head, tail) = log.span();
            let sequence = from.max(head);
            if sequence >= tail {
                let (segment, entries) = log.tail_listing();
                // The tail may have become full since its number was read.
                if segment.end / log.segment_bytes() > sequence {
                    continue;
                }
                let keys = self.walked_keys(&segment, entries, true);
                let segment_bytes = log.segment_bytes();
                return Ok(WalkedSegment { sequence, keys, is_last: true, segment_bytes, left_bytes: 0 });
            }
            let listed = match log.full_segment(sequence) {
                Ok(Some((segment, entries))) => {
                    log.will_read(&segment);
                    self.walked_keys(&segment, entries, false)
                }
                Ok(None) => continue,
                // The segment may have been retired meanwhile, and its slot overwritten.
                Err(_) if log.span().0 > sequence => continue,
                Err(error) => Err(error),
            };
            let is_last = planted(Bug::ScanEndsAtOldTail) && sequence + 1 >= first_tail;
            let segment_bytes = log.segment_bytes();
            let left_bytes = (tail - sequence) * segment_bytes;
            return Ok(WalkedSegment { sequence, keys: listed, is_last, segment_bytes, left_bytes });
        }
    }

    /// The sequence of the tail.
    pub(crate) fn tail(&self) -> u64 {
        self.log().span().1
    }

    fn walked_keys(
        &self,
        segment: &FullSegment,
        mut entries: Vec<FooterEntry>,
        is_tail: bool,
    ) -> Result<Vec<WalkedKey>> {
        entries.retain(|entry| entry.kind.domain() == Some(Domain::Key));
        // In the order of the log, so that the records are read in order.
        entries.sort_unstable_by_key(|entry| entry.offset);
        let walked = |entry: &FooterEntry| {
            let address = self.log().address(segment, entry)?;
            Ok(WalkedKey { hash: entry.hash, at: (!is_tail).then_some(address) })
        };
        entries.iter().map(walked).collect::<Result<_, Error>>()
    }
}
