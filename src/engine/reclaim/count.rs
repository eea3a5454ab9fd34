//! Counts dead bytes exactly, from the footers, for callers for which the estimate in memory is not enough.

use crate::engine::records::Records;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::log::Log;
use crate::log::space_usage::{SpaceTotals, Tally};
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};
use crate::record::RecordSize;

/// The dead bytes of the log at one time. A record is dead if the index does not point to it, or if it has expired.
#[derive(Debug)]
pub(super) struct Count {
    /// The store time for which expired records are counted.
    now_ms: u64,
    /// The sequences of the oldest segment and of the tail.
    span: (u64, u64),
    /// [`SpaceUsage::superseded_bytes`](crate::log::space_usage::SpaceUsage::superseded_bytes) at the time of the
    /// count.
    superseded_bytes: u64,
    /// The records of the full segments.
    tally: Tally,
    /// The number of bytes of the log that would be freed by retiring all full segments: the sum of their dead shares.
    dead_log_bytes: u64,
    /// The maximum number of bytes of the log that one dead byte of a record frees, as numerator and denominator. It is
    /// more than one, because frame headers and footers are freed with the records.
    log_bytes_per_byte: (u64, u64),
    /// The records of the tail.
    tail: SpaceTotals,
    /// Why a segment could not be counted. Retiring that segment is taken to free nothing.
    damage: Option<Error>,
}

impl Count {
    /// Counts the dead bytes now. The caller makes sure that no segment is retired meanwhile. Records that other
    /// threads append or supersede meanwhile may or may not be counted.
    pub(super) fn take(records: &Records, now_ms: u64) -> Result<Count> {
        let log = records.log();
        let mut count = Count::begin(log, now_ms);
        for sequence in count.span.0..count.span.1 {
            count.add_segment(records, sequence)?;
        }
        count.add_tail(records)?;
        Ok(count)
    }

    /// Begins a count that has counted nothing yet.
    pub(super) fn begin(log: &Log, now_ms: u64) -> Count {
        let now_ms = if planted(Bug::CountForgetsExpiry) { 0 } else { now_ms };
        let segment_bytes = log.segment_bytes();
        Count {
            now_ms,
            span: log.span(),
            superseded_bytes: log.space_usage().superseded_bytes(),
            tally: Tally::at(now_ms),
            dead_log_bytes: 0,
            log_bytes_per_byte: (segment_bytes, segment_bytes),
            tail: SpaceTotals::default(),
            damage: None,
        }
    }

    /// The sequences of the full segments that the log had when the count began.
    pub(super) fn segments(&self) -> std::ops::Range<u64> {
        self.span.0..self.span.1
    }

    /// Counts a full segment, unless it was retired before this call. The caller makes sure that it is not retired
    /// meanwhile.
    pub(super) fn add_segment(&mut self, records: &Records, sequence: u64) -> Result<()> {
        let log = records.log();
        if sequence < log.span().0 {
            return Ok(());
        }
        let (segment, entries) = match log.full_segment(sequence) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(error @ Error::Corrupt { .. }) => {
                self.damage.get_or_insert(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let live_bytes = count_live(records, self.now_ms, &segment, &entries, &mut self.tally)?;
        let record_bytes = segment.record_bytes.max(1);
        let dead_bytes = segment.record_bytes.saturating_sub(live_bytes);
        let segment_bytes = log.segment_bytes();
        self.dead_log_bytes += match segment.record_bytes {
            0 => segment_bytes,
            _ => scale(dead_bytes, (segment_bytes, record_bytes)),
        };
        self.log_bytes_per_byte.1 = self.log_bytes_per_byte.1.min(record_bytes);
        Ok(())
    }

    /// Counts the tail.
    pub(super) fn add_tail(&mut self, records: &Records) -> Result<()> {
        let (segment, entries) = records.log().tail_listing();
        let mut tally = Tally::at(self.now_ms);
        count_live(records, self.now_ms, &segment, &entries, &mut tally)?;
        self.tail = tally.totals();
        Ok(())
    }

    /// The number of bytes of the log that would be freed by retiring all full segments.
    pub(super) fn dead_log_bytes(&self) -> u64 {
        self.dead_log_bytes
    }

    /// The totals of the whole log.
    pub(super) fn totals(&self) -> SpaceTotals {
        let full = self.tally.totals();
        SpaceTotals {
            total_bytes: full.total_bytes + self.tail.total_bytes,
            dead_bytes: full.dead_bytes + self.tail.dead_bytes,
        }
    }

    /// The error of the first segment that could not be counted.
    pub(super) fn into_damage(self) -> Option<Error> {
        self.damage
    }

    /// Whether a new count could find at least `dead_log_bytes` bytes to free. It could not if the log has the same
    /// segments as before and too few bytes can have expired or been superseded since.
    pub(super) fn may_have_reached(&self, dead_log_bytes: u64, log: &Log, now_ms: u64) -> bool {
        let superseded_bytes = log.space_usage().superseded_bytes() - self.superseded_bytes;
        let expired_bytes = self.tally.max_dead_bytes(now_ms) - self.tally.totals().dead_bytes;
        let more_bytes = scale(superseded_bytes + expired_bytes, self.log_bytes_per_byte);
        self.span != log.span() || self.dead_log_bytes + more_bytes >= dead_log_bytes
    }
}

/// Multiplies `bytes` by a fraction.
fn scale(bytes: u64, (multiplier, divisor): (u64, u64)) -> u64 {
    let scaled = u128::from(bytes) * u128::from(multiplier) / u128::from(divisor.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Adds the records of a segment to `tally`. Returns the number of live bytes, which retiring the segment would move.
fn count_live(
    records: &Records,
    now_ms: u64,
    segment: &FullSegment,
    entries: &[FooterEntry],
    tally: &mut Tally,
) -> Result<u64> {
    let (mut listed_bytes, mut live_bytes) = (0, 0);
    for entry in entries {
        if records.points_to(entry, records.log().address(segment, entry)?) {
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
