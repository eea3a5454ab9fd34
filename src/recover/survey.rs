//! The survey: finds the segments of the log, and determines how the log ended.
//!
//! It reads every segment header and the whole last segment, and writes nothing. It checks that each segment from the
//! head to the last one exists exactly once, and that each begins where the one before ends. It does not read the
//! frames or footers of full segments; filling the index does that.

use std::collections::HashMap;

use super::open_context::OpenContext;
use super::team::map_in_order;
use super::verdict::{Evidence, Later, Verdict, classify, judge_marks, latest};
use crate::clock::HighWater;
use crate::error::Result;
use crate::format::frame::{FrameHeader, may_be_torn_frame};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters, SegmentHeader};
use crate::format::{CopyState, FIRST_FRAME_OFFSET, SECTOR_BYTES, STORE_HEADER_BYTES, max_frame_bytes};
use crate::hash::KeyHasher;
use crate::log::VersionsBefore;
use crate::log::scan::{self, Chain, SegmentScan};
use crate::planted::{Bug, planted};

/// The minimum number of slots whose headers several threads read. With fewer, reading them one after another takes
/// about as long as starting the threads.
const MIN_PARALLEL_SLOTS: usize = 4_096;

/// The number of threads that read the headers of many slots. They mostly wait for the disk, which is faster when it has
/// many reads at a time.
const HEADER_THREADS: usize = 32;

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

/// What is at the place of a slot's header.
enum Found {
    Header(SegmentHeader),
    /// No valid header.
    Invalid {
        /// Whether the sector is all zero.
        is_blank: bool,
    },
}

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
        let mut data_slots = Survey::data_slots(context, segment_bytes, length, slot_count)?;
        let threads = threads_for(data_slots.len());
        let headers = Survey::headers(context, &parameters, length, &data_slots, threads)?;
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

    /// Returns the slots that contain data, in order. The last one may be cut short.
    pub(super) fn slots(context: &OpenContext<'_>, segment_bytes: u64) -> Result<Vec<u64>> {
        let length = context.length()?;
        let slot_count = length.saturating_sub(STORE_HEADER_BYTES) / segment_bytes;
        Survey::data_slots(context, segment_bytes, length, slot_count)
    }

    /// Returns the slots that contain data, in order.
    ///
    /// Only these are read, because a long file may consist mostly of holes. The partial slot at the end of the file is
    /// included, to detect a segment that was cut short.
    fn data_slots(
        context: &OpenContext<'_>,
        segment_bytes: u64,
        length: u64,
        slot_count: u64,
    ) -> Result<Vec<u64>> {
        let mut data_slots = Vec::new();
        let (mut slot, mut run) = (0, 0..0);
        while slot <= slot_count {
            let offset = STORE_HEADER_BYTES + slot * segment_bytes;
            if offset + SECTOR_BYTES as u64 > length {
                break;
            }
            if run.end <= offset {
                match context.next_data(offset)? {
                    Some(next) if next.end > offset => run = next,
                    _ => break,
                }
            }
            if run.start >= offset + segment_bytes {
                slot = (run.start - STORE_HEADER_BYTES) / segment_bytes;
                continue;
            }
            data_slots.push(slot);
            slot += 1;
        }
        Ok(data_slots)
    }

    /// Reads the headers of the log's segments, in these slots, with at most `threads` threads.
    ///
    /// A slot without a valid header is free. It is an error if it contains a frame or a close mark of the log. If
    /// several slots are wrong, the error does not depend on the number of threads.
    fn headers(
        context: &OpenContext<'_>,
        parameters: &Parameters,
        length: u64,
        data_slots: &[u64],
        threads: usize,
    ) -> Result<Headers> {
        let slot_offset = |slot: u64| STORE_HEADER_BYTES + slot * parameters.segment_bytes;
        let found = map_in_order(threads, data_slots, |slot| {
            let sector = context.sector(slot_offset(*slot))?;
            match SegmentHeader::decode(&sector) {
                Ok(header) if header.parameters != *parameters => context.corrupt(
                    slot_offset(*slot),
                    "the segment's parameters are not those of the store header",
                ),
                Ok(header) => Ok(Found::Header(header)),
                Err(_) => Ok(Found::Invalid { is_blank: sector.iter().all(|byte| *byte == 0) }),
            }
        })?;
        let valid = |found: &Found| match found {
            Found::Header(header) => Some(header.head),
            Found::Invalid { .. } => None,
        };
        let head = found.iter().filter_map(valid).max().unwrap_or(0);
        let mut headers = Headers::new();
        // The slots without a valid header, and for each whether the sector of the header is blank.
        let mut invalid = Vec::new();
        for (found, slot) in found.into_iter().zip(data_slots.iter().copied()) {
            let header = match found {
                // A header with a sequence below the head is left over in a free slot, so its contents do not matter.
                Found::Header(header) if header.sequence < head => continue,
                Found::Header(header) => header,
                Found::Invalid { is_blank } => {
                    invalid.push((slot, is_blank));
                    continue;
                }
            };
            if let Some((other, _)) = headers.insert(header.sequence, (slot, header)) {
                return context.corrupt(
                    slot_offset(slot),
                    format!("segment {} is in slots {other} and {slot}", header.sequence),
                );
            }
        }
        map_in_order(threads, &invalid, |(slot, is_blank)| {
            let offset = slot_offset(*slot);
            let left = parameters.segment_bytes.min(length - offset);
            // A slot that was never used has a blank header. There may be many of those, so only the bytes up to and
            // including the first frame header are read.
            let length = if *is_blank { left.min(FIRST_FRAME_OFFSET + 64) } else { left };
            let trace = scan::latest_trace_in(context.storage, offset, length, parameters);
            match context.io("read a slot", trace)? {
                Some(sequence) if sequence >= head => context.corrupt(
                    offset,
                    format!("the slot has no valid header, but holds a part of segment {sequence}"),
                ),
                _ => Ok(()),
            }
        })?;
        Ok(headers)
    }

    /// Returns the valid close marks of the last segment.
    pub(super) fn marks(tail_bytes: &[u8], sequence: u64, parameters: &Parameters) -> Vec<CloseMark> {
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

    /// Returns what the store may have forgotten, as the last of its sessions has noted it. As for the time, frames with a
    /// lower open count than the header are skipped: the header was written after them, by the copying too.
    pub(super) fn copy_state(&self) -> CopyState {
        let Parameters { segment_bytes, .. } = self.parameters;
        if self.parameters.copied_seed.is_none() {
            return CopyState::default();
        }
        let mut states = self.scan.frames.iter().rev().filter_map(|frame| {
            let bytes = rest_from(&self.tail_bytes, frame.position, segment_bytes);
            let limit = max_frame_bytes(segment_bytes);
            let header = FrameHeader::decode(bytes, frame.position, limit, self.parameters.seed()).ok()?;
            header.copy_state(bytes).filter(|_| header.stamp.open_count >= self.tail_header.open_count)
        });
        states.next().unwrap_or(self.tail_header.copy)
    }

    /// Returns the open count and, after a clean close, the counter from which the versions of the new session
    /// continue.
    pub(super) fn versions(&self) -> VersionsBefore {
        let open_count = self.highest_open_count();
        let mark = self.close_mark().filter(|_| self.verdict == Verdict::Closed);
        // The mark is not usable if its open count is 0, which no session has, or if a version in the tail is higher
        // than the mark states. In the latter case, a version could be issued twice and would no longer fence.
        let highest = (self.scan.highest_version.open_count(), self.scan.highest_version.counter());
        let is_usable = |mark: &&CloseMark| mark.open_count > 0 && highest <= (mark.open_count, mark.counter);
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

/// Returns the maximum number of threads that read the headers of `slots` slots.
fn threads_for(slots: usize) -> usize {
    // Shuttle explores only threads that it started itself.
    if slots < MIN_PARALLEL_SLOTS || cfg!(oncekey_shuttle) { 1 } else { HEADER_THREADS }
}

/// Returns the bytes of the segment from `position` to its end.
fn rest_from(segment: &[u8], position: u64, segment_bytes: u64) -> &[u8] {
    usize::try_from(position % segment_bytes).ok().and_then(|at| segment.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::{ManualClock, TimeMark, TimeSource};
    use crate::error::Error;
    use crate::storage::{MemoryStorage, Storage, write_all_at};

    const SLOTS: u64 = 100;
    const PARAMETERS: Parameters = Parameters {
        segment_bytes: 64 << 10,
        file_id: *b"the file's own i",
        secret: *b"not much secret.",
        copied_seed: None,
    };

    fn offset(slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * PARAMETERS.segment_bytes
    }

    fn header(sequence: u64) -> SegmentHeader {
        SegmentHeader {
            parameters: PARAMETERS,
            sequence,
            head: 11,
            previous_end: 0,
            previous_checksum: 0,
            open_count: 1,
            mark: TimeMark::first(ManualClock::new(1_000).read()),
            synced_to: 0,
            copy: CopyState::default(),
        }
    }

    /// The close mark of a segment that has no frames.
    fn mark(sequence: u64) -> [u8; SECTOR_BYTES] {
        let end = sequence * PARAMETERS.segment_bytes + FIRST_FRAME_OFFSET;
        let time = header(1).mark;
        let mark = CloseMark { end, last_checksum: 0, open_count: 1, time, counter: 0 };
        mark.encode(PARAMETERS.seed())
    }

    /// Reads the headers of a log of segments 1 to 100 with head 11, after these sectors were overwritten. Checks that the
    /// number of threads does not matter. Returns the sequences, or the offset and the reason of the error.
    fn sequences(edits: &[(u64, [u8; SECTOR_BYTES])]) -> Result<Vec<u64>, (u64, String)> {
        let storage = MemoryStorage::new();
        storage.set_len(offset(SLOTS)).unwrap();
        for slot in 0..SLOTS {
            write_all_at(&storage, &header(slot + 1).encode(), offset(slot)).unwrap();
        }
        for (offset, sector) in edits {
            write_all_at(&storage, sector, *offset).unwrap();
        }
        let context = OpenContext { storage: &storage, path: Path::new("store") };
        let slots = Survey::data_slots(&context, PARAMETERS.segment_bytes, offset(SLOTS), SLOTS).unwrap();
        let read = |threads| {
            let headers = Survey::headers(&context, &PARAMETERS, offset(SLOTS), &slots, threads);
            headers.map_err(|error| match error {
                Error::Corrupt { offset, reason, .. } => (offset, reason.to_string()),
                other => panic!("{other}"),
            })
        };
        let one_by_one = read(1);
        for threads in [2, HEADER_THREADS] {
            assert_eq!(read(threads), one_by_one, "{threads} threads");
        }
        let mut sequences: Vec<_> = one_by_one?.into_keys().collect();
        sequences.sort_unstable();
        Ok(sequences)
    }

    #[test]
    fn headers_are_the_same_whether_one_thread_reads_them_or_many() {
        assert_eq!(sequences(&[]), Ok((11..=SLOTS).collect()));
        // Slots that were never used, and one with the header of a segment before the head.
        let blank = [0; SECTOR_BYTES];
        let free = [(offset(20), blank), (offset(50), header(7).encode()), (offset(99), blank)];
        assert_eq!(sequences(&free), Ok((11..100).filter(|it| ![21, 51].contains(it)).collect()));
    }

    #[test]
    fn many_threads_report_the_error_that_one_thread_does() {
        let refused = |edits: &[_], slot, part: &str| {
            let (at, reason) = sequences(edits).unwrap_err();
            assert!(at == offset(slot) && reason.contains(part), "at {at}: {reason}");
        };
        let foreign =
            SegmentHeader { parameters: Parameters { file_id: [7; 16], ..PARAMETERS }, ..header(12) };
        let foreign = |slot| (offset(slot), foreign.encode());
        let again = |slot, other: u64| (offset(slot), header(other + 1).encode());
        let lost = |slot| {
            [(offset(slot), [0; SECTOR_BYTES]), (offset(slot) + CLOSE_MARK_OFFSETS[0], mark(slot + 1))]
        };
        refused(&[foreign(80), foreign(70), foreign(71)], 70, "those of the store header");
        refused(&[again(90, 30), again(60, 40), again(61, 41)], 60, "segment 41 is in slots 40 and 60");
        refused(&[lost(75), lost(33), lost(76)].concat(), 33, "a part of segment 34");
        // Recovery reads all headers before it searches the slots without one.
        refused(&[&lost(20)[..], &[again(60, 40), foreign(80)]].concat(), 80, "those of the store header");
        refused(&[&lost(20)[..], &[again(60, 40)]].concat(), 60, "segment 41 is in slots 40 and 60");
    }

    #[test]
    fn many_slots_are_read_by_many_threads() {
        if cfg!(not(oncekey_shuttle)) {
            assert_eq!(threads_for(MIN_PARALLEL_SLOTS), HEADER_THREADS);
        }
        assert_eq!(threads_for(MIN_PARALLEL_SLOTS - 1), 1);
    }
}
