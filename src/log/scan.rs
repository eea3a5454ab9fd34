//! Reading whole segments: by their footer where it checks, frame by frame where it does not. Changes nothing.

use std::collections::HashMap;
use std::io;

use crate::format::footer::{self, Entries, FooterEntry, TRAILER, TRAILER_BYTES, Trailer};
use crate::format::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters};
use crate::format::record::Kind;
use crate::format::{
    ALIGNMENT_BYTES, FIRST_FRAME_OFFSET, FormatError, SECTOR_BYTES, get_u64, max_frame_bytes,
};
use crate::key::KeyHasher;
use crate::planted::{Bug, planted};
use crate::storage::{Storage, read_exact_at, read_held_at};

/// A frame that checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameSpan {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) checksum: u32,
    pub(crate) synced_to: u64,
}

/// What the frames of one segment say, up to the first that does not check.
#[derive(Debug)]
pub(crate) struct SegmentScan {
    pub(crate) frames: Vec<FrameSpan>,
    /// Each key's last record, by offset.
    pub(crate) entries: Vec<FooterEntry>,
    pub(crate) record_bytes: u64,
    /// The position behind the last frame that checked.
    pub(crate) end: u64,
    pub(crate) last_checksum: u32,
    pub(crate) open_count: u32,
    /// Why it ended there.
    pub(crate) stop: FormatError,
}

/// What a frame must continue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) checksum: u32,
}

/// The whole of a slot.
pub(crate) fn read_slot(storage: &dyn Storage, offset: u64, segment_bytes: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(segment_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    read_held_at(storage, length, offset)
}

/// The most that a frame at `within` (from the start of its slot) can be long.
fn frame_limit(parameters: &Parameters, within: u64) -> u64 {
    let left = parameters.segment_bytes.saturating_sub(TRAILER_BYTES).saturating_sub(within);
    left.min(max_frame_bytes(parameters.segment_bytes))
}

/// Follows the frames of segment `sequence`, which `slot` is all of.
pub(crate) fn scan(
    slot: &[u8],
    sequence: u64,
    chain: Chain,
    parameters: &Parameters,
    hasher: &KeyHasher,
) -> SegmentScan {
    let base = sequence * parameters.segment_bytes;
    let mut within = FIRST_FRAME_OFFSET;
    let mut last: HashMap<u128, FooterEntry> = HashMap::new();
    let mut scan = SegmentScan {
        frames: Vec::new(),
        entries: Vec::new(),
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
        if stale && get_u64(rest, 8) % parameters.segment_bytes == within {
            position = get_u64(rest, 8);
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
        // A frame that an earlier life of the log left behind at just this position is whole and still not ours.
        if stamp.previous_checksum != scan.last_checksum && !stale {
            scan.stop = FormatError::Damaged("the frame does not continue the one before");
            break;
        }
        if stamp.open_count < scan.open_count && !stale {
            scan.stop = FormatError::Damaged("the frame is of an earlier opening than the one before");
            break;
        }
        for (position, length, record) in frame.records() {
            scan.record_bytes += length;
            if record.kind == Kind::Ignorable {
                // It says nothing of its key that this version could pass on, and must not hide what does.
                continue;
            }
            let hash = record.key_hash(hasher);
            let entry = FooterEntry {
                hash,
                version: record.version,
                key_expires_ms: record.key_expires_ms,
                result_expires_ms: record.result_expires_ms,
                offset: position - base,
                length,
                kind: record.kind,
            };
            last.insert(hash, entry);
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
    scan.entries = last.into_values().collect();
    scan.entries.sort_unstable_by_key(|entry| entry.offset);
    scan
}

/// The highest `synced_to` of any frame header that checks behind `from` in the slot, and where that frame is: what
/// tells a hole in synced data from a tail that was never promised to anybody. The records of such a frame need not
/// check: its header alone was written by a leader who knew.
pub(crate) fn later_attestation(
    slot: &[u8],
    sequence: u64,
    from: u64,
    parameters: &Parameters,
) -> Option<(u64, u64)> {
    let base = sequence * parameters.segment_bytes;
    let seed = parameters.seed();
    let mut highest: Option<(u64, u64)> = None;
    let mut within = from - base + ALIGNMENT_BYTES;
    let last = parameters.segment_bytes - TRAILER_BYTES - FRAME_HEADER_BYTES as u64;
    while within <= last {
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        if get_u64(slot, at + 8) == base + within
            && let Ok(header) =
                FrameHeader::decode(&slot[at..], base + within, frame_limit(parameters, within), seed)
        {
            let found = (header.stamp.synced_to, header.stamp.position);
            highest = highest.max(Some(found));
        }
        within += ALIGNMENT_BYTES;
    }
    highest
}

/// Of how much of a slot [`latest_trace_in`] makes a copy at a time.
const TRACED_BYTES: u64 = 1 << 20;

/// [`latest_trace`] of the first `length` bytes of the slot at `offset`, without reading what is not held.
pub(crate) fn latest_trace_in(
    storage: &dyn Storage,
    offset: u64,
    length: u64,
    parameters: &Parameters,
) -> io::Result<Option<u64>> {
    let end = offset + length;
    let (mut at, mut latest) = (offset, None);
    while at < end
        && let Some(run) = storage.next_data(at)?
        && run.start < end
        && run.end > at
    {
        // What is looked for begins with something other than zeroes, at a multiple of 8, and may go on behind the run, or
        // behind the piece of it.
        let from = run.start.max(at) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        let piece_end = run.end.min(end).min(from + TRACED_BYTES);
        let to = (piece_end + FRAME_HEADER_BYTES as u64).min(end);
        let bytes = read_slot(storage, from, to - from)?;
        latest = latest.max(latest_trace(&bytes, from - offset, parameters));
        at = piece_end;
    }
    Ok(latest)
}

/// The highest sequence that any frame header or close mark in a part of a slot speaks of, whatever the segment header says.
/// The part begins at `start` from the start of the slot, a multiple of 8.
pub(crate) fn latest_trace(part: &[u8], start: u64, parameters: &Parameters) -> Option<u64> {
    let (segment_bytes, seed) = (parameters.segment_bytes, parameters.seed());
    let from = |within: u64| usize::try_from(within.checked_sub(start)?).ok().and_then(|at| part.get(at..));
    let marks = CLOSE_MARK_OFFSETS.iter().filter_map(|offset| {
        let sector = from(*offset)?.first_chunk::<SECTOR_BYTES>()?;
        let sequence = get_u64(sector, 16) / segment_bytes;
        CloseMark::decode(sector, seed, sequence, segment_bytes).map(|_| sequence)
    });
    let places = (FIRST_FRAME_OFFSET.max(start)..start + part.len() as u64).step_by(8);
    let frames = places.filter_map(|within| {
        let bytes = from(within)?;
        let position = get_u64(bytes.first_chunk::<FRAME_HEADER_BYTES>()?, 8);
        if position % segment_bytes != within {
            return None;
        }
        let header = FrameHeader::decode(bytes, position, frame_limit(parameters, within), seed);
        header.is_ok().then_some(position / segment_bytes)
    });
    marks.chain(frames).max()
}

/// Whether the last bytes of the slot say that segment `sequence` was finished, be they damaged or not.
pub(crate) fn was_finished(slot: &[u8], sequence: u64) -> bool {
    slot.last_chunk::<TRAILER>().is_some_and(|trailer| footer::is_or_was_of(trailer, sequence))
}

/// Whether the slot, which may be cut short, holds what looks like a frame or a close mark of a store whose parameters are
/// lost, so that no checksum can be asked.
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

/// The last bytes of a slot, which are the trailer of a full segment.
pub(crate) fn read_trailer(
    storage: &dyn Storage,
    slot_offset: u64,
    parameters: &Parameters,
) -> io::Result<[u8; TRAILER]> {
    let mut trailer = [0; TRAILER];
    read_exact_at(storage, &mut trailer, slot_offset + parameters.segment_bytes - TRAILER_BYTES)?;
    Ok(trailer)
}

/// The footer of a full segment, if there is one that checks. `buffer` is what it is read into.
pub(crate) fn read_footer<'b>(
    storage: &dyn Storage,
    slot_offset: u64,
    sequence: u64,
    parameters: &Parameters,
    buffer: &'b mut Vec<u8>,
) -> io::Result<Result<(Trailer, Entries<'b>), FormatError>> {
    let trailer_at = slot_offset + parameters.segment_bytes - TRAILER_BYTES;
    let trailer_bytes = read_trailer(storage, slot_offset, parameters)?;
    let trailer = match Trailer::decode(&trailer_bytes, sequence, parameters.segment_bytes) {
        Ok(trailer) => trailer,
        Err(fault) => return Ok(Err(fault)),
    };
    let entries_bytes = footer::footer_bytes(u64::from(trailer.entry_count)) - TRAILER_BYTES;
    let length = usize::try_from(entries_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    buffer.resize(length, 0);
    read_exact_at(storage, buffer, trailer_at - entries_bytes)?;
    let entries = footer::entries(buffer, &trailer_bytes, parameters.segment_bytes, parameters.seed());
    Ok(entries.map(|entries| (trailer, entries)))
}
