//! Reading what says how the log lies and how it ended, and changing nothing.

use std::collections::HashMap;

use super::open_context::OpenContext;
use super::verdict::{Evidence, Verdict, decide, judge_marks, latest};
use crate::clock::HighWater;
use crate::error::Result;
use crate::format::frame::{FrameHeader, may_be_torn_frame};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters, SegmentHeader};
use crate::format::{FIRST_FRAME_OFFSET, SECTOR_BYTES, STORE_HEADER_BYTES, max_frame_bytes};
use crate::key::KeyHasher;
use crate::log::VersionsBefore;
use crate::log::scan::{self, Chain, SegmentScan};
use crate::planted::{Bug, planted};

/// A full segment, as its own header and that of the next one say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) slot: u64,
    /// What its first frame continues.
    pub(super) chain: Chain,
    /// The position at which its frames end.
    pub(super) end: u64,
    /// Of its last frame.
    pub(super) checksum: u32,
}

/// Segment headers by their sequence, with their slots.
type Headers = HashMap<u64, (u64, SegmentHeader)>;

/// How the log lies in the file, and how it ended.
pub(super) struct Survey {
    pub(super) parameters: Parameters,
    pub(super) head: u64,
    /// Sequences head.. in order; the last segment is not among them.
    pub(super) links: Vec<Link>,
    pub(super) tail_slot: u64,
    pub(super) tail_header: SegmentHeader,
    pub(super) tail_bytes: Vec<u8>,
    pub(super) scan: SegmentScan,
    pub(super) marks: Vec<CloseMark>,
    /// Whole slots that hold something, in order. The others are not counted as free: a hole in a file is no room.
    pub(super) held: Vec<u64>,
    pub(super) verdict: Verdict,
}

impl Survey {
    pub(super) fn take(medium: &OpenContext<'_>, parameters: Parameters) -> Result<Survey> {
        let length = medium.length()?;
        let segment_bytes = parameters.segment_bytes;
        let slot_count = length.saturating_sub(STORE_HEADER_BYTES) / segment_bytes;
        let slot_offset = |slot: u64| STORE_HEADER_BYTES + slot * segment_bytes;
        let (headers, mut held) = Survey::headers(medium, &parameters, length, slot_count)?;
        held.retain(|slot| *slot < slot_count);
        let Some(head) = headers.values().map(|(_, header)| header.head).max() else {
            return medium.corrupt(STORE_HEADER_BYTES, "no segment has a header that checks");
        };
        let tail_sequence = headers.keys().max().copied().unwrap_or(head);
        if let Some((sequence, (slot, _))) =
            headers.iter().find(|(sequence, (slot, _))| **sequence >= head && *slot >= slot_count)
        {
            return medium.corrupt(slot_offset(*slot), format!("segment {sequence} is cut short"));
        }

        let mut links = Vec::new();
        for sequence in head..tail_sequence {
            let (Some((slot, header)), Some((next_slot, next))) =
                (headers.get(&sequence), headers.get(&(sequence + 1)))
            else {
                let missing = if headers.contains_key(&sequence) { sequence + 1 } else { sequence };
                return medium.corrupt(
                    length,
                    format!("segment {missing} of the log's {head} to {tail_sequence} is missing"),
                );
            };
            if next.previous_end / segment_bytes != sequence {
                return medium.corrupt(
                    slot_offset(*next_slot),
                    "the segment does not say where the one before it ends",
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
            return medium.corrupt(length, format!("segment {tail_sequence} is missing"));
        };
        let offset = slot_offset(tail_slot);
        let tail_bytes =
            medium.io("read the last segment", scan::read_slot(medium.storage, offset, segment_bytes))?;
        let chain = Chain { checksum: tail_header.previous_checksum };
        let hasher = KeyHasher::new(parameters.secret);
        let scan = scan::scan(&tail_bytes, tail_sequence, chain, &parameters, &hasher);
        let marks = Survey::marks(&tail_bytes, tail_sequence, &parameters);
        let later = scan::later_attestation(&tail_bytes, tail_sequence, scan.end, &parameters);
        medium.check_known(offset + scan.end % segment_bytes, scan.stop)?;
        let attested_by_header = (tail_header.synced_to > scan.end).then_some(tail_header.synced_to);
        let evidence = Evidence {
            end: scan.end,
            mark: judge_marks(&marks, &scan, tail_header.previous_checksum),
            later: later.map(|(synced_to, _)| synced_to).max(attested_by_header),
            has_footer: scan::was_finished(&tail_bytes, tail_sequence),
            may_be_torn: may_be_torn_frame(
                rest_from(&tail_bytes, scan.end, segment_bytes),
                scan.end,
                scan.last_checksum,
            ),
        };
        let verdict = decide(&evidence);
        if let Verdict::Corrupt(reason) = verdict {
            return medium.corrupt(
                offset + scan.end % segment_bytes,
                format!("{reason}, and what is there does not check: {}", scan.stop),
            );
        }
        Ok(Survey { parameters, head, links, tail_slot, tail_header, tail_bytes, scan, marks, held, verdict })
    }

    /// Every segment header by its sequence, with its slot, and the slots that hold something. A slot without a header is
    /// free, unless it holds a frame of the log.
    fn headers(
        medium: &OpenContext<'_>,
        parameters: &Parameters,
        length: u64,
        slot_count: u64,
    ) -> Result<(Headers, Vec<u64>)> {
        let mut found: Vec<(u64, SegmentHeader)> = Vec::new();
        let mut bad: Vec<(u64, bool)> = Vec::new();
        // The slot behind the last whole one is looked at too: it must not be a segment that was cut short.
        let mut held = Vec::new();
        // A file may be long and hold little: only the slots that hold something are looked at.
        let (mut slot, mut run) = (0, 0..0);
        while slot <= slot_count {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            if offset + SECTOR_BYTES as u64 > length {
                break;
            }
            if run.end <= offset {
                match medium.next_data(offset)? {
                    Some(next) if next.end > offset => run = next,
                    _ => break,
                }
            }
            if run.start >= offset + parameters.segment_bytes {
                slot = (run.start - STORE_HEADER_BYTES) / parameters.segment_bytes;
                continue;
            }
            held.push(slot);
            let sector = medium.sector(offset)?;
            match SegmentHeader::decode(&sector) {
                Ok(header) if header.parameters != *parameters => {
                    return medium
                        .corrupt(offset, "the segment's parameters are not those of the store header");
                }
                Ok(header) => found.push((slot, header)),
                Err(_) => bad.push((slot, sector.iter().all(|byte| *byte == 0))),
            }
            slot += 1;
        }
        let head = found.iter().map(|(_, header)| header.head).max().unwrap_or(0);
        let mut headers = Headers::new();
        // What lies below the head is a left-over in a free slot, whatever it says.
        for (slot, header) in found.into_iter().filter(|(_, header)| header.sequence >= head) {
            if let Some((other, _)) = headers.insert(header.sequence, (slot, header)) {
                let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
                return medium
                    .corrupt(offset, format!("segment {} is in slots {other} and {slot}", header.sequence));
            }
        }
        for (slot, is_blank) in bad {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            let left = parameters.segment_bytes.min(length - offset);
            // A slot that was never used has a blank header; there may be many, and they are not read whole.
            let look = if is_blank { left.min(FIRST_FRAME_OFFSET + 64) } else { left };
            let trace = scan::latest_trace_in(medium.storage, offset, look, parameters);
            if let Some(sequence) = medium.io("read a slot", trace)?
                && sequence >= head
            {
                return medium.corrupt(
                    offset,
                    format!("the slot has no header that checks and holds a part of segment {sequence}"),
                );
            }
        }
        Ok((headers, held))
    }

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

    /// The close mark at the end of the log, if that is where it was closed last and nothing came after it.
    fn close_mark(&self) -> Option<&CloseMark> {
        let mark = latest(&self.marks).filter(|mark| mark.end == self.scan.end)?;
        let noted = self.tail_header.open_count.max(self.scan.open_count);
        (mark.open_count >= noted || planted(Bug::NotedOpeningIgnored)).then_some(mark)
    }

    /// The latest that the log says of time: its last segment's header, frames and close mark in their order. A header that
    /// was written again for an opening comes behind the frames of earlier ones.
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
            seen.replace(mark.mark);
        }
        seen
    }

    /// Where versions go on.
    pub(super) fn versions(&self) -> VersionsBefore {
        let open_count = self.highest_open_count();
        let mark = self.close_mark().filter(|_| self.verdict == Verdict::Closed);
        // No opening has the count 0; and what is there has its version from somewhere.
        let counts = |mark: &&CloseMark| {
            let entries = self.scan.entries.iter().map(|entry| entry.version);
            let mut same = entries.filter(|version| version.open_count() == mark.open_count);
            mark.open_count > 0 && same.all(|version| version.counter() <= mark.counter)
        };
        match mark.filter(counts) {
            Some(mark) => VersionsBefore { open_count: mark.open_count, closed_at: Some(mark.counter) },
            None => VersionsBefore { open_count, closed_at: None },
        }
    }

    /// The highest open count of any frame, header or mark.
    pub(super) fn highest_open_count(&self) -> u32 {
        let marked = self.marks.iter().map(|mark| mark.open_count).max().unwrap_or(0);
        self.scan.open_count.max(self.tail_header.open_count).max(marked)
    }
}

/// The bytes of the segment from this position on.
fn rest_from(segment: &[u8], position: u64, segment_bytes: u64) -> &[u8] {
    usize::try_from(position % segment_bytes).ok().and_then(|at| segment.get(at..)).unwrap_or_default()
}
