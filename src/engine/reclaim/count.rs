//! Counts from the footers how many bytes are dead, for callers that must not go by the estimate.

use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::index::Index;
use crate::log::Log;
use crate::log::space_usage::{SpaceTotals, Tally};
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};
use crate::record::RecordSize;

/// What was dead at one time. A record is dead if the index does not point to it, or if it has expired.
#[derive(Debug)]
pub(super) struct Count {
    /// The oldest and the last sequence of the log.
    span: (u64, u64),
    /// How many bytes had been superseded.
    superseded_bytes: u64,
    /// Of the full segments.
    tally: Tally,
    /// How many bytes of the log come free if all full segments are retired: of each the dead share.
    dead_log_bytes: u64,
    /// The most bytes of the log that come free for one dead byte, as a fraction.
    log_bytes_per_byte: (u64, u64),
    /// Records of the tail.
    tail: SpaceTotals,
    /// Why a segment could not be counted. Nothing of it comes free.
    damage: Option<Error>,
}

impl Count {
    /// Counts. No segment may be retired meanwhile. What other threads append and supersede may or may not be counted.
    pub(super) fn take(log: &Log, index: &Index, now_ms: u64) -> Result<Count> {
        let now_ms = if planted(Bug::CountForgetsExpiry) { 0 } else { now_ms };
        let (head, tail) = log.span();
        let segment_bytes = log.segment_bytes();
        let mut count = Count {
            span: (head, tail),
            superseded_bytes: log.space_usage().superseded_bytes(),
            tally: Tally::at(now_ms),
            dead_log_bytes: 0,
            log_bytes_per_byte: (segment_bytes, segment_bytes),
            tail: SpaceTotals::default(),
            damage: None,
        };
        for sequence in head..tail {
            let (segment, entries) = match log.full_segment(sequence) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error @ Error::Corrupt { .. }) => {
                    count.damage.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let live_bytes = count_live(log, index, now_ms, &segment, &entries, &mut count.tally)?;
            let record_bytes = segment.record_bytes.max(1);
            let dead_bytes = segment.record_bytes.saturating_sub(live_bytes);
            count.dead_log_bytes += match segment.record_bytes {
                0 => segment_bytes,
                _ => scale(dead_bytes, (segment_bytes, record_bytes)),
            };
            count.log_bytes_per_byte.1 = count.log_bytes_per_byte.1.min(record_bytes);
        }
        let (segment, entries) = log.tail_listing();
        let mut tally = Tally::at(now_ms);
        count_live(log, index, now_ms, &segment, &entries, &mut tally)?;
        count.tail = tally.totals();
        Ok(count)
    }

    pub(super) fn dead_log_bytes(&self) -> u64 {
        self.dead_log_bytes
    }

    /// Records of the whole log.
    pub(super) fn totals(&self) -> SpaceTotals {
        let full = self.tally.totals();
        SpaceTotals {
            total_bytes: full.total_bytes + self.tail.total_bytes,
            dead_bytes: full.dead_bytes + self.tail.dead_bytes,
        }
    }

    pub(super) fn into_damage(self) -> Option<Error> {
        self.damage
    }

    /// Whether a new count could find that so many bytes of the log come free. It could not while the log has the same
    /// segments and too little can have expired or been superseded.
    pub(super) fn may_have_become(&self, dead_log_bytes: u64, log: &Log, now_ms: u64) -> bool {
        let superseded_bytes = log.space_usage().superseded_bytes() - self.superseded_bytes;
        let expired_bytes = self.tally.at_most_dead_bytes(now_ms) - self.tally.totals().dead_bytes;
        let more_bytes = scale(superseded_bytes + expired_bytes, self.log_bytes_per_byte);
        self.span != log.span() || self.dead_log_bytes + more_bytes >= dead_log_bytes
    }
}

fn scale(bytes: u64, (multiplier, divisor): (u64, u64)) -> u64 {
    let scaled = u128::from(bytes) * u128::from(multiplier) / u128::from(divisor.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Adds the records of a segment to `tally`, and returns how many bytes of it would have to be moved.
fn count_live(
    log: &Log,
    index: &Index,
    now_ms: u64,
    segment: &FullSegment,
    entries: &[FooterEntry],
    tally: &mut Tally,
) -> Result<u64> {
    let (mut listed_bytes, mut live_bytes) = (0, 0);
    for entry in entries {
        if index.holds(entry.hash, log.address(segment, entry)?) {
            let size = RecordSize::listed(entry);
            tally.add(&size);
            listed_bytes += entry.length;
            let live = size.shares().into_iter().filter(|(due_ms, _)| *due_ms > now_ms);
            live_bytes += live.map(|(_, bytes)| bytes).sum::<u64>();
        }
    }
    tally.add_dead(segment.record_bytes.saturating_sub(listed_bytes));
    Ok(live_bytes)
}
