//! Reads a file that may be damaged: finds its segments, and in each the records that are intact and the ranges that are
//! lost. Writes nothing. Only `verify` and `repair` use it.
//!
//! Recovery stops at the first damage, because it must not guess. This module goes on behind it. What it may rely on:
//!
//! - The checksum of a record covers its position, which no other segment ever had. An intact record below the end of a
//!   segment is therefore a part of the log, whatever is damaged around it.
//! - Everything before a later segment, a close mark or a `synced_to` was on disk. Bytes there that are neither a frame header
//!   nor an intact record are **lost**. A range that nothing attests is the effect of a crash, as for recovery.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::open_context::OpenContext;
use super::survey::Survey;
use super::verdict::{Mark, judge_marks};
use crate::error::{Error, Result};
use crate::format::footer::{FooterEntry, TRAILER_BYTES};
use crate::format::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, OPENING_FRAME_BYTES};
use crate::format::header::{HeaderProblem, Parameters, SegmentHeader, decode_store_header, is_incomplete};
use crate::format::record::{Kind, Record, may_be_record, record_length};
use crate::format::{
    ALIGNMENT_BYTES, FIRST_FRAME_OFFSET, FormatError, MIN_SEGMENT_BYTES, SECTOR_BYTES, STORE_HEADER_BYTES,
    max_frame_bytes,
};
use crate::hash::KeyHasher;
use crate::log::scan::{self, Chain};
use crate::storage::{Storage, read_exact_at};

/// A segment of the log, as far as headers describe it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    /// The slot that holds the segment. None if no slot does.
    pub(crate) slot: Option<u64>,
    /// The header of the segment. None if it is lost.
    pub(crate) header: Option<SegmentHeader>,
    /// The position at which the frames end, according to the next header. None for the tail, or if that header is lost.
    end: Option<u64>,
    /// Whether this is the last segment, which has no footer yet.
    pub(crate) is_tail: bool,
}

/// A part of the file that is not as it was written, apart from frames and records.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) reason: String,
}

/// The segments of a file.
pub(crate) struct Layout<'a> {
    context: OpenContext<'a>,
    pub(crate) parameters: Parameters,
    pub(crate) hasher: KeyHasher,
    /// All segments from the head to the tail, also those that are lost.
    pub(crate) places: Vec<Place>,
    pub(crate) problems: Vec<Problem>,
    length: u64,
}

/// What is left of one segment.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// The intact records without ignorable ones, in order.
    pub(crate) records: Vec<FooterEntry>,
    /// The intact records of all kinds.
    pub(crate) record_count: u64,
    pub(crate) frames: u64,
    /// The lost ranges: offsets in the slot.
    pub(crate) lost: Vec<Range<u64>>,
    /// The entries of the footer. None if the segment has no valid one.
    pub(crate) footer: Option<Vec<FooterEntry>>,
    /// The segment was full, and the one after it is missing.
    pub(crate) lacks_successor: bool,
    /// The highest open count of a frame or a record.
    pub(crate) open_count: u32,
    /// The latest store time of a record.
    pub(crate) time_ms: u64,
    /// The latest time until which a copy states that unknown keys are in doubt.
    pub(crate) in_doubt_until_ms: u64,
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl<'a> Layout<'a> {
    /// Finds the segments of the file.
    pub(crate) fn find(storage: &'a dyn Storage, path: &'a Path) -> Result<Layout<'a>> {
        let context = OpenContext { storage, path };
        let length = context.length()?;
        let mut problems = Vec::new();
        let parameters = find_parameters(&context, length, &mut problems)?;
        let hasher = KeyHasher::new(parameters.secret);
        let mut layout = Layout { context, parameters, hasher, places: Vec::new(), problems, length };
        layout.find_places()?;
        Ok(layout)
    }

    pub(crate) fn slot_offset(&self, slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * self.parameters.segment_bytes
    }

    fn problem(&mut self, offset: u64, length: u64, reason: impl Into<String>) {
        self.problems.push(Problem { offset, length, reason: reason.into() });
    }

    fn find_places(&mut self) -> Result<()> {
        let segment_bytes = self.parameters.segment_bytes;
        let sector = SECTOR_BYTES as u64;
        let slots = self.length.saturating_sub(STORE_HEADER_BYTES).div_ceil(segment_bytes);
        let mut found: BTreeMap<u64, (u64, Option<SegmentHeader>)> = BTreeMap::new();
        let mut without_header = Vec::new();
        let mut head = 0;
        for slot in 0..slots {
            let offset = self.slot_offset(slot);
            if offset + sector > self.length {
                break;
            }
            let bytes = self.context.sector(offset)?;
            match SegmentHeader::decode(&bytes) {
                Ok(header) if header.parameters == self.parameters => {
                    head = head.max(header.head);
                    if let Some((other, _)) = found.insert(header.sequence, (slot, Some(header))) {
                        let reason = format!("segment {} is also in slot {other}", header.sequence);
                        self.problem(offset, sector, reason);
                    }
                }
                Ok(_) => {
                    self.problem(offset, sector, "the segment header is that of a different file");
                    without_header.push(slot);
                }
                Err(_) => without_header.push(slot),
            }
        }
        for slot in without_header {
            let offset = self.slot_offset(slot);
            let left = segment_bytes.min(self.length - offset);
            let trace = scan::latest_trace_in(self.context.storage, offset, left, &self.parameters);
            if let Some(sequence) = self.context.io("read a slot", trace)?.filter(|it| *it >= head) {
                self.problem(offset, sector, format!("the header of segment {sequence} is lost"));
                found.entry(sequence).or_insert((slot, None));
            }
        }
        let found: BTreeMap<_, _> = found.split_off(&head);
        let (Some(first), Some(tail)) = (found.keys().next().copied(), found.keys().next_back().copied())
        else {
            self.problem(
                STORE_HEADER_BYTES,
                self.length.saturating_sub(STORE_HEADER_BYTES),
                "no segment is left",
            );
            return Ok(());
        };
        // A hostile file can state any two sequences. A gap between two segments is one lost segment, however long it is.
        let first = if head == 0 || head > tail { first } else { head };
        let mut next = first;
        for (sequence, (slot, header)) in &found {
            if *sequence > next {
                self.problem(self.length, 0, format!("segments {next} to {} are missing", sequence - 1));
                self.push(next, None, None, None);
            }
            let end = found.get(&(sequence + 1)).and_then(|(_, next)| *next).map(|next| next.previous_end);
            let end = end.filter(|end| end / segment_bytes == *sequence);
            self.push(*sequence, Some(*slot), *header, end);
            let offset = self.slot_offset(*slot);
            if offset + segment_bytes > self.length {
                self.problem(self.length, 0, format!("segment {sequence} is cut short"));
            }
            next = sequence + 1;
        }
        if let Some(last) = self.places.last_mut() {
            last.is_tail = true;
        }
        Ok(())
    }

    fn push(&mut self, sequence: u64, slot: Option<u64>, header: Option<SegmentHeader>, end: Option<u64>) {
        self.places.push(Place { sequence, slot, header, end, is_tail: false });
    }

    /// Reads the slot of a segment into `bytes`. What the file lacks of it, or the disk cannot read, is zero.
    pub(crate) fn read(&self, place: &Place, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        bytes.resize(at(self.parameters.segment_bytes), 0);
        let Some(slot) = place.slot else { return Ok(()) };
        let offset = self.slot_offset(slot);
        let left = self.parameters.segment_bytes.min(self.length.saturating_sub(offset));
        let Err(error) = read_exact_at(self.context.storage, &mut bytes[..at(left)], offset) else {
            return Ok(());
        };
        // A sector that cannot be read is lost, and the others are not.
        let mut read_any = false;
        for sector in (0..left).step_by(SECTOR_BYTES) {
            let buffer = &mut bytes[at(sector)..at((sector + SECTOR_BYTES as u64).min(left))];
            match read_exact_at(self.context.storage, buffer, offset + sector) {
                Ok(()) => read_any = true,
                Err(_) => buffer.fill(0),
            }
        }
        if read_any { Ok(()) } else { self.context.io("read a segment", Err(error)) }
    }

    /// Finds what is left of a segment, whose slot holds `bytes`.
    pub(crate) fn remains(&self, place: &Place, bytes: &[u8]) -> Result<Remains> {
        let mut remains = Remains::default();
        let Parameters { segment_bytes, .. } = self.parameters;
        let Some(slot) = place.slot else {
            remains.lost.push(FIRST_FRAME_OFFSET..segment_bytes);
            return Ok(remains);
        };
        let base = place.sequence * segment_bytes;
        let mut end = place.end.map(|end| end - base);
        remains.lacks_successor = place.is_tail && scan::was_finished(bytes, place.sequence);
        if !place.is_tail || remains.lacks_successor {
            let offset = self.slot_offset(slot);
            let footer = if offset + segment_bytes <= self.length {
                let footer =
                    scan::read_footer_entries(self.context.storage, offset, place.sequence, &self.parameters);
                footer.ok().and_then(std::result::Result::ok)
            } else {
                None
            };
            if let Some((trailer, entries)) = footer {
                end = end.or(Some(trailer.end - base));
                remains.footer = Some(entries);
            }
            let end = end.filter(|end| *end >= FIRST_FRAME_OFFSET);
            self.walk(place, &bytes[..at(end.unwrap_or(segment_bytes - TRAILER_BYTES))], &mut remains)?;
            return Ok(remains);
        }
        self.walk_tail(place, bytes, &mut remains)?;
        // What the file lacks of the last segment may have held frames, and nothing that is left attests them.
        let held = self.length.saturating_sub(self.slot_offset(slot)).max(FIRST_FRAME_OFFSET);
        if held < segment_bytes {
            remains.lost.push(held / ALIGNMENT_BYTES * ALIGNMENT_BYTES..segment_bytes);
        }
        Ok(remains)
    }

    /// Walks through the last segment: up to the end of the log as recovery finds it or, if a part of the log behind that was
    /// on disk, through that too.
    fn walk_tail(&self, place: &Place, bytes: &[u8], remains: &mut Remains) -> Result<()> {
        let Parameters { segment_bytes, .. } = self.parameters;
        let base = place.sequence * segment_bytes;
        let first = FrameHeader::decode(
            &bytes[at(FIRST_FRAME_OFFSET)..],
            base + FIRST_FRAME_OFFSET,
            max_frame_bytes(segment_bytes),
            self.parameters.seed(),
        );
        let chain = match (place.header, first) {
            (Some(header), _) => header.previous_checksum,
            (None, Ok(first)) => first.stamp.previous_checksum,
            (None, Err(_)) => 0,
        };
        let scan =
            scan::scan(bytes, place.sequence, Chain { checksum: chain }, &self.parameters, &self.hasher);
        if let FormatError::Unknown(reason) = scan.stop {
            return Err(self.unsupported(place, scan.end - base, reason));
        }
        let marks = Survey::marks(bytes, place.sequence, &self.parameters);
        let later = scan::highest_synced_to_after(bytes, place.sequence, scan.end, &self.parameters);
        let stated = place.header.map_or(0, |header| header.synced_to);
        let marked = marks.iter().map(|mark| mark.end).max().unwrap_or(0);
        let attested = marked.max(later.unwrap_or(0)).max(stated).min(base + segment_bytes - TRAILER_BYTES);
        self.walk(place, &bytes[..at(scan.end.max(attested) - base)], remains)?;
        if attested > scan.end {
            self.walk_on(place, bytes, attested - base, remains)?;
        } else if judge_marks(&marks, &scan, chain) == Mark::Contradicts {
            // Another history was on disk here. Nothing shows which part of it is lost.
            remains.lost.push(scan.end - base..scan.end - base + ALIGNMENT_BYTES);
        }
        Ok(())
    }

    /// Walks through the frames from `from` on, as long as each follows the one before. They come after a part of the log that
    /// was on disk, and nothing attests that they were.
    fn walk_on(&self, place: &Place, bytes: &[u8], from: u64, remains: &mut Remains) -> Result<()> {
        let base = place.sequence * self.parameters.segment_bytes;
        let (mut within, mut checksum) = (from, None);
        loop {
            let rest = &bytes[at(within)..];
            let decoded =
                Frame::decode(rest, base + within, self.frame_limit(within), self.parameters.seed());
            let Ok(frame) = decoded else { return Ok(()) };
            let follows = checksum.is_none_or(|it| it == frame.header.stamp.previous_checksum);
            if !follows {
                return Ok(());
            }
            let end = within + frame.header.length as u64;
            self.walk_range(place, &bytes[..at(end)], within, remains)?;
            (within, checksum) = (end, Some(frame.header.checksum));
        }
    }

    fn frame_limit(&self, within: u64) -> u64 {
        let Parameters { segment_bytes, .. } = self.parameters;
        segment_bytes.saturating_sub(TRAILER_BYTES + within).min(max_frame_bytes(segment_bytes))
    }

    fn walk(&self, place: &Place, bytes: &[u8], remains: &mut Remains) -> Result<()> {
        self.walk_range(place, bytes, FIRST_FRAME_OFFSET, remains)
    }

    /// Walks through `bytes`, the start of the slot up to the end of the frames, from `from` on.
    fn walk_range(&self, place: &Place, bytes: &[u8], from: u64, remains: &mut Remains) -> Result<()> {
        let base = place.sequence * self.parameters.segment_bytes;
        let seed = self.parameters.seed();
        let end = bytes.len() as u64;
        let mut within = from;
        // Records follow each other in a frame. Elsewhere, a frame header is likelier, and both are searched for.
        let mut lost_from = None;
        while within < end {
            let (rest, position) = (&bytes[at(within)..], base + within);
            let mut step = 0;
            if let Ok(header) = FrameHeader::decode(rest, position, self.frame_limit(within), seed) {
                if header.mark(rest).is_none() {
                    step = FRAME_HEADER_BYTES as u64;
                } else if Frame::decode(rest, position, self.frame_limit(within), seed).is_ok() {
                    step = header.length as u64;
                }
                if step > 0 {
                    remains.frames += 1;
                    remains.open_count = remains.open_count.max(header.stamp.open_count);
                    let copy = header.copy_state(rest).unwrap_or_default();
                    remains.in_doubt_until_ms = remains.in_doubt_until_ms.max(copy.in_doubt_until_ms);
                }
            } else if may_be_record(rest) {
                match Record::decode(rest, position, seed) {
                    Ok(record) => {
                        step = record_length(rest).map_or(0, |length| length as u64);
                        remains.record_count += 1;
                        remains.open_count = remains.open_count.max(record.version.open_count());
                        remains.time_ms = remains.time_ms.max(record.time_ms);
                        remains.records.extend(self.entry(&record, within, step));
                    }
                    Err(FormatError::Unknown(reason)) => return Err(self.unsupported(place, within, reason)),
                    Err(FormatError::Damaged(_)) => {}
                }
            }
            if step == 0 {
                lost_from.get_or_insert(within);
                within += ALIGNMENT_BYTES;
                continue;
            }
            if let Some(from) = lost_from.take() {
                remains.lost.push(from..within);
            }
            within += step;
        }
        remains.lost.extend(lost_from.map(|from| from..end));
        Ok(())
    }

    /// Returns the footer entry of a record. None for an ignorable one.
    fn entry(&self, record: &Record<'_>, offset: u64, length: u64) -> Option<FooterEntry> {
        (record.kind != Kind::Ignorable).then(|| FooterEntry {
            hash: record.key_hash(&self.hasher),
            version: record.version,
            key_expires_ms: record.key_expires_ms,
            result_expires_ms: record.result_expires_ms,
            offset,
            length,
            kind: record.kind,
        })
    }

    fn unsupported(&self, place: &Place, within: u64, reason: &str) -> Error {
        let offset = place.slot.map_or(0, |slot| self.slot_offset(slot)) + within;
        Error::Unsupported {
            path: self.context.path.to_owned(),
            reason: format!("at offset {offset}: {reason}; a newer oncekey is needed"),
        }
    }
}

const _: () = assert!(OPENING_FRAME_BYTES > FRAME_HEADER_BYTES);

/// Reads the parameters from the store header or, if that is damaged, from the first segment header that is not.
fn find_parameters(
    context: &OpenContext<'_>,
    length: u64,
    problems: &mut Vec<Problem>,
) -> Result<Parameters> {
    let whole = length >= STORE_HEADER_BYTES + SECTOR_BYTES as u64;
    // What an incomplete copy lacks does not show in it.
    let is_incomplete = whole && is_incomplete(&context.sector(0)?);
    let reason = match super::rehearsal::parameters(context) {
        Ok(parameters) => return Ok(parameters),
        Err(error @ (Error::Corrupt { .. } | Error::NotAStore { .. })) if whole && !is_incomplete => error,
        Err(error) => return Err(error),
    };
    // Every slot begins at a multiple of the smallest segment size after the store header.
    for offset in (STORE_HEADER_BYTES..=length - SECTOR_BYTES as u64).step_by(at(MIN_SEGMENT_BYTES)) {
        let Ok(header) = SegmentHeader::decode(&context.sector(offset)?) else { continue };
        // An interrupted creation leaves a header and nothing else.
        if matches!(reason, Error::NotAStore { .. })
            && matches!(decode_store_header(&context.sector(0)?), Err(HeaderProblem::Blank))
        {
            break;
        }
        let reason = "the store header is damaged".to_owned();
        problems.push(Problem { offset: 0, length: SECTOR_BYTES as u64, reason });
        return Ok(header.parameters);
    }
    Err(reason)
}
