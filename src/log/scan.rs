//! Reads whole segments: by their footer or, if that is not valid, frame by frame. Writes nothing.
//!
//! Recovery uses this module to open a file, and the log uses it to retire a full segment. The table in `recover`
//! defines what an invalid frame means; this module only reports it.

use std::io;

use super::footer_builder::FooterBuilder;
use crate::format::footer::{self, Checker, ENTRY, Entries, FooterEntry, TRAILER, TRAILER_BYTES, Trailer};
use crate::format::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters};
use crate::format::layout::{close_mark, frame_header};
use crate::format::record::Kind;
use crate::format::{ALIGNMENT_BYTES, FIRST_FRAME_OFFSET, FormatError, SECTOR_BYTES, max_frame_bytes};
use crate::hash::KeyHasher;
use crate::planted::{Bug, planted};
use crate::status::Version;
use crate::storage::{Storage, read_exact_at, read_held_at};

/// Where a valid frame is, and the parts of its header that recovery needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameSpan {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) checksum: u32,
    /// The position up to which the log was durable when the frame was written.
    pub(crate) synced_to: u64,
}

/// The content of a segment's frames, up to the first invalid one.
#[derive(Debug)]
pub(crate) struct SegmentScan {
    pub(crate) frames: Vec<FrameSpan>,
    /// The last record of each key.
    pub(crate) entries: FooterBuilder,
    /// The highest version of a record.
    pub(crate) highest_version: Version,
    /// The length of all records together.
    pub(crate) record_bytes: u64,
    /// The position at which the last valid frame ends.
    pub(crate) end: u64,
    /// The checksum of the last valid frame.
    pub(crate) last_checksum: u32,
    /// The open count of the last valid frame.
    pub(crate) open_count: u32,
    /// Why the next frame is not valid.
    pub(crate) stop: FormatError,
}

/// The frame that a segment's first frame must continue, identified by its checksum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) checksum: u32,
}

/// Reads a slot, or a part of one. Holes in the file are not read, and their bytes are returned as zeroes.
pub(crate) fn read_slot(storage: &dyn Storage, offset: u64, segment_bytes: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(segment_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    read_held_at(storage, length, offset)
}

/// The maximum length of a frame that begins `within` bytes from the start of its slot.
fn frame_limit(parameters: &Parameters, within: u64) -> u64 {
    let left = parameters.segment_bytes.saturating_sub(TRAILER_BYTES).saturating_sub(within);
    left.min(max_frame_bytes(parameters.segment_bytes))
}

/// Decodes the frames of segment `sequence` one after another. `slot` is the content of its slot.
///
/// The scan stops at the first frame that is invalid, does not continue the checksum chain, or has a lower open count
/// than the frame before it.
pub(crate) fn scan(
    slot: &[u8],
    sequence: u64,
    chain: Chain,
    parameters: &Parameters,
    hasher: &KeyHasher,
) -> SegmentScan {
    let base = sequence * parameters.segment_bytes;
    let mut within = FIRST_FRAME_OFFSET;
    let mut scan = SegmentScan {
        frames: Vec::new(),
        entries: FooterBuilder::default(),
        highest_version: Version::from_u64(0),
        record_bytes: 0,
        end: base + within,
        last_checksum: chain.checksum,
        open_count: 0,
        stop: FormatError::Damaged("the segment is full"),
    };
    loop {
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        let rest = slot.get(at..).unwrap_or_default();
        let mut position = base + within;
        let stale = planted(Bug::StaleFrameAccepted) && rest.len() >= FRAME_HEADER_BYTES;
        if stale && frame_header::POSITION.u64(rest) % parameters.segment_bytes == within {
            position = frame_header::POSITION.u64(rest);
        }
        let base = position - within;
        let frame = match Frame::decode(rest, position, frame_limit(parameters, within), parameters.seed()) {
            Ok(frame) => frame,
            Err(fault) => {
                scan.stop = fault;
                break;
            }
        };
        let stamp = frame.header.stamp;
        // A torn tail that an earlier recovery cut off may have left a valid frame at exactly this position. Such a
        // frame continues a different frame.
        if stamp.previous_checksum != scan.last_checksum && !stale {
            scan.stop = FormatError::Damaged("the frame does not continue the frame before it");
            break;
        }
        if stamp.open_count < scan.open_count && !stale {
            scan.stop = FormatError::Damaged("the frame is from an earlier session than the frame before it");
            break;
        }
        for (position, length, record) in frame.records() {
            scan.record_bytes += length;
            if record.kind == Kind::Ignorable {
                // This version of the library does not understand the record, so the record must not supersede an
                // earlier one of the same key.
                continue;
            }
            scan.highest_version = scan.highest_version.max(record.version);
            scan.entries.push(FooterEntry {
                hash: record.key_hash(hasher),
                version: record.version,
                key_expires_ms: record.key_expires_ms,
                result_expires_ms: record.result_expires_ms,
                offset: position - base,
                length,
                kind: record.kind,
            });
        }
        scan.frames.push(FrameSpan {
            position: stamp.position,
            length: frame.header.length as u64,
            checksum: frame.header.checksum,
            synced_to: stamp.synced_to,
        });
        (scan.last_checksum, scan.open_count) = (frame.header.checksum, stamp.open_count);
        within += frame.header.length as u64;
        scan.end = sequence * parameters.segment_bytes + within;
    }
    scan
}

/// Returns the highest `synced_to` of all valid frame headers after position `after` in the slot. By this, recovery
/// distinguishes the loss of durable data from a torn tail.
///
/// The records of such a frame need not be valid, because the header alone proves what was on disk when it was written.
pub(crate) fn highest_synced_to_after(
    slot: &[u8],
    sequence: u64,
    after: u64,
    parameters: &Parameters,
) -> Option<u64> {
    let base = sequence * parameters.segment_bytes;
    let seed = parameters.seed();
    let mut highest = None;
    let mut within = after - base + ALIGNMENT_BYTES;
    let last = parameters.segment_bytes - TRAILER_BYTES - FRAME_HEADER_BYTES as u64;
    while within <= last {
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        if frame_header::POSITION.u64(&slot[at..]) == base + within
            && let Ok(header) =
                FrameHeader::decode(&slot[at..], base + within, frame_limit(parameters, within), seed)
        {
            highest = highest.max(Some(header.stamp.synced_to));
        }
        within += ALIGNMENT_BYTES;
    }
    highest
}

/// The number of bytes of a slot that [`latest_trace_in`] reads at a time.
const TRACED_BYTES: u64 = 1 << 20;

/// The maximum number of bytes of a slot that [`latest_trace_in`] reads without a search for holes.
const MAX_READ_WITH_HOLES: u64 = 8 << 10;

/// Returns the [`latest_trace`] of the first `length` bytes of the slot at `offset`. Does not read
/// long holes in the file.
pub(crate) fn latest_trace_in(
    storage: &dyn Storage,
    offset: u64,
    length: u64,
    parameters: &Parameters,
) -> io::Result<Option<u64>> {
    // To find a hole costs more than to read a few pages of it.
    if length <= MAX_READ_WITH_HOLES {
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?];
        read_exact_at(storage, &mut bytes, offset)?;
        return Ok(latest_trace(&bytes, 0, parameters));
    }
    let end = offset + length;
    let (mut at, mut latest) = (offset, None);
    while at < end
        && let Some(run) = storage.next_data(at)?
        && run.start < end
        && run.end > at
    {
        // A header begins at a multiple of 8, and not with zeroes, so it begins in a range of data. It may extend
        // beyond that range, or beyond the piece of it that is read here.
        let from = run.start.max(at) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        let piece_end = run.end.min(end).min(from + TRACED_BYTES);
        let to = (piece_end + FRAME_HEADER_BYTES as u64).min(end);
        let bytes = read_slot(storage, from, to - from)?;
        latest = latest.max(latest_trace(&bytes, from - offset, parameters));
        at = piece_end;
    }
    Ok(latest)
}

/// Returns the highest sequence of all valid frame headers and close marks in a part of a slot. The segment header is
/// ignored. `start` is where the part begins in its slot, a multiple of 8.
pub(crate) fn latest_trace(part: &[u8], start: u64, parameters: &Parameters) -> Option<u64> {
    let (segment_bytes, seed) = (parameters.segment_bytes, parameters.seed());
    let from = |within: u64| usize::try_from(within.checked_sub(start)?).ok().and_then(|at| part.get(at..));
    let marks = CLOSE_MARK_OFFSETS.iter().filter_map(|offset| {
        let sector = from(*offset)?.first_chunk::<SECTOR_BYTES>()?;
        let sequence = close_mark::END.u64(sector) / segment_bytes;
        CloseMark::decode(sector, seed, sequence, segment_bytes).map(|_| sequence)
    });
    let places = (FIRST_FRAME_OFFSET.max(start)..start + part.len() as u64).step_by(8);
    let frames = places.filter_map(|within| {
        let bytes = from(within)?;
        let position = frame_header::POSITION.u64(bytes.first_chunk::<FRAME_HEADER_BYTES>()?);
        if position % segment_bytes != within {
            return None;
        }
        let header = FrameHeader::decode(bytes, position, frame_limit(parameters, within), seed);
        header.is_ok().then_some(position / segment_bytes)
    });
    marks.chain(frames).max()
}

/// Whether the slot ends with the footer of segment `sequence`, valid or damaged.
pub(crate) fn was_finished(slot: &[u8], sequence: u64) -> bool {
    slot.last_chunk::<TRAILER>().is_some_and(|trailer| footer::may_be_damaged_trailer_of(trailer, sequence))
}

/// Whether the slot, which may be truncated, contains something that looks like a frame or a close mark. For a store
/// whose parameters are lost, so that no checksum can be computed.
pub(crate) fn resembles_used_slot(slot: &[u8]) -> bool {
    let marked = CLOSE_MARK_OFFSETS.iter().any(|offset| {
        usize::try_from(*offset).ok().and_then(|at| slot.get(at..)).is_some_and(CloseMark::resembles)
    });
    let mut places = (FIRST_FRAME_OFFSET..slot.len() as u64).step_by(8);
    marked
        || places.any(|within| {
            let bytes = usize::try_from(within).ok().and_then(|at| slot.get(at..));
            bytes.is_some_and(|bytes| FrameHeader::resembles(bytes, within))
        })
}

/// Reads the last bytes of a slot: in a full segment, the trailer.
pub(crate) fn read_trailer(
    storage: &dyn Storage,
    slot_offset: u64,
    parameters: &Parameters,
) -> io::Result<[u8; TRAILER]> {
    let mut trailer = [0; TRAILER];
    read_exact_at(storage, &mut trailer, slot_offset + parameters.segment_bytes - TRAILER_BYTES)?;
    Ok(trailer)
}

/// The number of bytes of a footer's entries that are read at a time. They stay in the second-level cache.
const PIECE_BYTES: usize = 2_048 * ENTRY;

/// Reads the footer of a full segment, and calls `take` with its entries, some at a time. `buffer` is overwritten. The inner
/// error is the reason why the footer is not valid, or the error of `take`: then the caller must discard what it took.
pub(crate) fn read_footer(
    storage: &dyn Storage,
    slot_offset: u64,
    sequence: u64,
    parameters: &Parameters,
    buffer: &mut Vec<u8>,
    mut take: impl FnMut(Entries<'_>) -> Result<(), FormatError>,
) -> io::Result<Result<Trailer, FormatError>> {
    let trailer_at = slot_offset + parameters.segment_bytes - TRAILER_BYTES;
    let trailer_bytes = read_trailer(storage, slot_offset, parameters)?;
    let trailer = match Trailer::decode(&trailer_bytes, sequence, parameters.segment_bytes) {
        Ok(trailer) => trailer,
        Err(fault) => return Ok(Err(fault)),
    };
    let entries_bytes = footer::footer_bytes(u64::from(trailer.entry_count)) - TRAILER_BYTES;
    let mut checker = Checker::new(&trailer_bytes, parameters.segment_bytes, parameters.seed());
    // At least as long as the longest piece so far, so that its memory is zeroed only once.
    let longest = usize::try_from(entries_bytes).unwrap_or(usize::MAX).min(PIECE_BYTES);
    buffer.resize(buffer.len().max(longest), 0);
    let mut left_bytes = entries_bytes;
    while left_bytes > 0 {
        let piece_bytes = left_bytes.min(PIECE_BYTES as u64);
        let piece = &mut buffer[..usize::try_from(piece_bytes).unwrap_or(PIECE_BYTES)];
        read_exact_at(storage, piece, trailer_at - left_bytes)?;
        left_bytes -= piece_bytes;
        if let Err(fault) = checker.add(piece, &mut take) {
            return Ok(Err(fault));
        }
    }
    Ok(checker.finish().map(|()| trailer))
}

/// Reads the entries of a full segment's footer. The inner error is the reason why the footer is not valid.
pub(crate) fn read_footer_entries(
    storage: &dyn Storage,
    slot_offset: u64,
    sequence: u64,
    parameters: &Parameters,
) -> io::Result<Result<(Trailer, Vec<FooterEntry>), FormatError>> {
    let mut entries = Vec::new();
    let take = |piece: Entries<'_>| {
        for entry in piece {
            entries.push(entry?);
        }
        Ok(())
    };
    let trailer = read_footer(storage, slot_offset, sequence, parameters, &mut Vec::new(), take)?;
    Ok(trailer.map(|trailer| (trailer, entries)))
}
