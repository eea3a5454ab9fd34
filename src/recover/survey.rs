//! The survey: finds the segments of the log, and determines how the log ended.
//!
//! It reads every segment header and the whole last segment, and writes nothing. It checks that each segment from the
//! head to the last one exists exactly once, and that each begins where the one before ends. It does not read the
//! frames or footers of full segments; filling the index does that.

use std::collections::HashMap;

use super::open_context::OpenContext;
use super::verdict::{Evidence, Later, Verdict, classify, judge_marks, latest};
use crate::clock::HighWater;
use crate::error::Result;
use crate::format::frame::{FrameHeader, may_be_torn_frame};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters, SegmentHeader};
use crate::format::{FIRST_FRAME_OFFSET, SECTOR_BYTES, STORE_HEADER_BYTES, max_frame_bytes};
use crate::hash::KeyHasher;
use crate::log::VersionsBefore;
use crate::log::scan::{self, Chain, SegmentScan};
use crate::planted::{Bug, planted};

/// A full segment, as described by its own header and by the header of the next segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// The number of the segment in the log.
    pub(super) sequence: u64,
    /// The slot that contains the segment.
    pub(super) slot: u64,
    /// The frame that the segment's first frame must continue.
    pub(super) chain: Chain,
    /// The position at which the segment's frames end.
    pub(super) end: u64,
    /// The checksum of the segment's last frame.
    pub(super) checksum: u32,
}

/// The slot and the header of each segment, by sequence.
type Headers = HashMap<u64, (u64, SegmentHeader)>;

/// The segments of the log, and how it ended.
pub(super) struct Survey {
    /// The parameters from the store header.
    pub(super) parameters: Parameters,
    /// The sequence of the oldest segment of the log.
    pub(super) head: u64,
    /// The full segments, from the head on in order: all but the last segment.
    pub(super) links: Vec<Link>,
    /// The slot of the last segment.
    pub(super) tail_slot: u64,
    /// The header of the last segment.
    pub(super) tail_header: SegmentHeader,
    /// The bytes of the last segment's whole slot.
    pub(super) tail_bytes: Vec<u8>,
    /// The valid frames of the last segment.
    pub(super) scan: SegmentScan,
    /// The valid close marks of the last segment.
    pub(super) marks: Vec<CloseMark>,
    /// The slots that lie whole in the file and contain data, in order. Other slots are holes in the file. They must
    /// not count as free, because the disk may be full when one of them is written to.
    pub(super) data_slots: Vec<u64>,
    /// How the log ended.
    pub(super) verdict: Verdict,
}

impl Survey {
    /// Reads the headers and the last segment, and decides how the log ended.
    pub(super) fn take(context: &OpenContext<'_>, parameters: Parameters) -> Result<Survey> {
        let length = context.length()?;
        let segment_bytes = parameters.segment_bytes;
        let slot_count = length.saturating_sub(STORE_HEADER_BYTES) / segment_bytes;
        let slot_offset = |slot: u64| STORE_HEADER_BYTES + slot * segment_bytes;
        let (headers, mut data_slots) = Survey::headers(context, &parameters, length, slot_count)?;
        data_slots.retain(|slot| *slot < slot_count);
        let Some(head) = headers.values().map(|(_, header)| header.head).max() else {
            return context.corrupt(STORE_HEADER_BYTES, "no segment has a valid header");
        };
        let tail_sequence = headers.keys().max().copied().unwrap_or(head);
        if let Some((sequence, (slot, _))) =
            headers.iter().find(|(sequence, (slot, _))| **sequence >= head && *slot >= slot_count)
        {
            return context.corrupt(slot_offset(*slot), format!("segment {sequence} is cut short"));
        }

        let mut links = Vec::new();
        for sequence in head..tail_sequence {
            let (Some((slot, header)), Some((next_slot, next))) =
                (headers.get(&sequence), headers.get(&(sequence + 1)))
            else {
                let missing = if headers.contains_key(&sequence) { sequence + 1 } else { sequence };
                return context.corrupt(
                    length,
                    format!("segment {missing} of the log's {head} to {tail_sequence} is missing"),
                );
            };
            if next.previous_end / segment_bytes != sequence {
                return context.corrupt(
                    slot_offset(*next_slot),
                    "the segment header does not state an end of the segment before it",
                );
            }
            links.push(Link {
                sequence,
                slot: *slot,
                chain: Chain { checksum: header.previous_checksum },
                end: next.previous_end,
                checksum: next.previous_checksum,
            });
        }

        let Some(&(tail_slot, tail_header)) = headers.get(&tail_sequence) else {
            return context.corrupt(length, format!("segment {tail_sequence} is missing"));
        };
        let offset = slot_offset(tail_slot);
        let tail_bytes =
            context.io("read the last segment", scan::read_slot(context.storage, offset, segment_bytes))?;
        let chain = Chain { checksum: tail_header.previous_checksum };
        let hasher = KeyHasher::new(parameters.secret);
        let scan = scan::scan(&tail_bytes, tail_sequence, chain, &parameters, &hasher);
        let marks = Survey::marks(&tail_bytes, tail_sequence, &parameters);
        let later = scan::highest_synced_to_after(&tail_bytes, tail_sequence, scan.end, &parameters);
        context.check_known(offset + scan.end % segment_bytes, scan.stop)?;
        let evidence = Evidence {
            mark: judge_marks(&marks, &scan, tail_header.previous_checksum),
            later: Later::of(scan.end, later, tail_header.synced_to),
            has_footer: scan::was_finished(&tail_bytes, tail_sequence),
            may_be_torn: may_be_torn_frame(
                rest_from(&tail_bytes, scan.end, segment_bytes),
                scan.end,
                scan.last_checksum,
            ),
        };
        let verdict = classify(&evidence).verdict();
        if let Verdict::Corrupt(reason) = verdict {
            return context.corrupt(
                offset + scan.end % segment_bytes,
                format!("{reason}; there is no valid frame here: {}", scan.stop),
            );
        }
        Ok(Survey {
            parameters,
            head,
            links,
            tail_slot,
            tail_header,
            tail_bytes,
            scan,
            marks,
            data_slots,
            verdict,
        })
    }

    /// Reads the headers of the log's segments. Returns them, and the slots that contain data.
    ///
    /// A slot without a valid header is free. It is an error if it contains a frame or a close mark of the log.
    fn headers(
        context: &OpenContext<'_>,
        parameters: &Parameters,
        length: u64,
        slot_count: u64,
    ) -> Result<(Headers, Vec<u64>)> {
        let mut found: Vec<(u64, SegmentHeader)> = Vec::new();
        // The slots without a valid header, and for each whether the sector of the header is blank.
        let mut invalid: Vec<(u64, bool)> = Vec::new();
        let mut data_slots = Vec::new();
        // Only slots with data are read, because a long file may consist mostly of holes. The partial slot at the end
        // of the file is read too, to detect a segment that was cut short.
        let (mut slot, mut run) = (0, 0..0);
        while slot <= slot_count {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            if offset + SECTOR_BYTES as u64 > length {
                break;
            }
            if run.end <= offset {
                match context.next_data(offset)? {
                    Some(next) if next.end > offset => run = next,
                    _ => break,
                }
            }
            if run.start >= offset + parameters.segment_bytes {
                slot = (run.start - STORE_HEADER_BYTES) / parameters.segment_bytes;
                continue;
            }
            data_slots.push(slot);
            let sector = context.sector(offset)?;
            match SegmentHeader::decode(&sector) {
                Ok(header) if header.parameters != *parameters => {
                    return context
                        .corrupt(offset, "the segment's parameters are not those of the store header");
                }
                Ok(header) => found.push((slot, header)),
                Err(_) => invalid.push((slot, sector.iter().all(|byte| *byte == 0))),
            }
            slot += 1;
        }
        let head = found.iter().map(|(_, header)| header.head).max().unwrap_or(0);
        let mut headers = Headers::new();
        // A header with a sequence below the head is left over in a free slot, so its contents do not matter.
        for (slot, header) in found.into_iter().filter(|(_, header)| header.sequence >= head) {
            if let Some((other, _)) = headers.insert(header.sequence, (slot, header)) {
                let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
                return context
                    .corrupt(offset, format!("segment {} is in slots {other} and {slot}", header.sequence));
            }
        }
        for (slot, is_blank) in invalid {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            let left = parameters.segment_bytes.min(length - offset);
            // A slot that was never used has a blank header. There may be many of those, so only the bytes up to and
            // including the first frame header are read.
            let length = if is_blank { left.min(FIRST_FRAME_OFFSET + 64) } else { left };
            let trace = scan::latest_trace_in(context.storage, offset, length, parameters);
            if let Some(sequence) = context.io("read a slot", trace)?
                && sequence >= head
            {
                return context.corrupt(
                    offset,
                    format!("the slot has no valid header, but holds a part of segment {sequence}"),
                );
            }
        }
        Ok((headers, data_slots))
    }

    /// Returns the valid close marks of the last segment.
    fn marks(tail_bytes: &[u8], sequence: u64, parameters: &Parameters) -> Vec<CloseMark> {
        CLOSE_MARK_OFFSETS
            .iter()
            .filter_map(|offset| {
                let at = usize::try_from(*offset).ok()?;
                let sector = tail_bytes.get(at..)?.first_chunk::<SECTOR_BYTES>()?;
                CloseMark::decode(sector, parameters.seed(), sequence, parameters.segment_bytes)
            })
            .collect()
    }

    /// Returns the close mark at the end of the log, unless the store was opened again since.
    ///
    /// If there was no space for an opening frame when the store was opened, only the segment header was rewritten.
    /// Then the close mark is still at the end of the log, but the header has a higher open count.
    fn close_mark(&self) -> Option<&CloseMark> {
        let mark = latest(&self.marks).filter(|mark| mark.end == self.scan.end)?;
        let latest_open_count = self.tail_header.open_count.max(self.scan.open_count);
        (mark.open_count >= latest_open_count || planted(Bug::NotedOpeningIgnored)).then_some(mark)
    }

    /// Returns the latest time in the log, from the last segment's header, then its frames, then the close mark.
    ///
    /// Frames with a lower open count than the header are skipped, because the header was rewritten after them, when
    /// the store was opened again.
    pub(super) fn latest_time(&self) -> HighWater {
        let Parameters { segment_bytes, .. } = self.parameters;
        let mut seen = HighWater::at(self.tail_header.mark);
        for frame in &self.scan.frames {
            let bytes = rest_from(&self.tail_bytes, frame.position, segment_bytes);
            let limit = max_frame_bytes(segment_bytes);
            let header = FrameHeader::decode(bytes, frame.position, limit, self.parameters.seed());
            let Ok(header) = header else { continue };
            if header.stamp.open_count < self.tail_header.open_count {
                continue;
            }
            match header.mark(bytes) {
                Some(mark) => seen.replace(mark),
                None => seen.note(header.stamp.time_ms, header.stamp.wall_ms),
            }
        }
        if let Some(mark) = self.close_mark() {
            seen.replace(mark.time);
        }
        seen
    }

    /// Returns the open count and, after a clean close, the counter from which the versions of the new session
    /// continue.
    pub(super) fn versions(&self) -> VersionsBefore {
        let open_count = self.highest_open_count();
        let mark = self.close_mark().filter(|_| self.verdict == Verdict::Closed);
        // The mark is not usable if its open count is 0, which no session has, or if a version in the log has a higher
        // counter than the mark. In the latter case, a version could be issued twice and would no longer fence.
        let is_usable = |mark: &&CloseMark| {
            let entries = self.scan.entries.iter().map(|entry| entry.version);
            let mut same = entries.filter(|version| version.open_count() == mark.open_count);
            mark.open_count > 0 && same.all(|version| version.counter() <= mark.counter)
        };
        match mark.filter(is_usable) {
            Some(mark) => VersionsBefore { open_count: mark.open_count, closed_at: Some(mark.counter) },
            None => VersionsBefore { open_count, closed_at: None },
        }
    }

    /// Returns the highest open count in the last segment: in a frame, the segment header or a close mark.
    pub(super) fn highest_open_count(&self) -> u32 {
        let marked = self.marks.iter().map(|mark| mark.open_count).max().unwrap_or(0);
        self.scan.open_count.max(self.tail_header.open_count).max(marked)
    }
}

/// Returns the bytes of the segment from `position` to its end.
fn rest_from(segment: &[u8], position: u64, segment_bytes: u64) -> &[u8] {
    usize::try_from(position % segment_bytes).ok().and_then(|at| segment.get(at..)).unwrap_or_default()
}
