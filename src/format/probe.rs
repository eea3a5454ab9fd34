//! Calls single decoders on bytes, for fuzz targets. Available with the feature `__simulation`, which is not part of the
//! public interface.

use super::footer::{Checker, TRAILER, Trailer, footer_bytes};
use super::frame::Frame;
use super::header::{CloseMark, Sector, SegmentHeader, decode_store_header, encode_store_header};
use super::record::{Record, tie_to_position};
use super::{Seed, max_frame_bytes};

/// A decoded record, and its bytes after encoding it again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordParts {
    /// The position of the record.
    pub position: u64,
    /// The length that the record states.
    pub length_bytes: u64,
    /// The kind of the record, as a byte. It is the same for all ignorable kinds.
    pub kind: u8,
    /// The key without its scope.
    pub key: Vec<u8>,
    /// The scope.
    pub scope: Option<Vec<u8>>,
    /// The result.
    pub result: Option<Vec<u8>>,
    /// The record encoded again and tied to the same position.
    pub encoded: Vec<u8>,
}

impl RecordParts {
    fn of(record: &Record<'_>, position: u64, length_bytes: u64, seed: Seed) -> RecordParts {
        let mut encoded = Vec::new();
        record.encode(seed).append_to(&mut encoded);
        tie_to_position(&mut encoded, position);
        RecordParts {
            position,
            length_bytes,
            kind: record.kind.to_byte(),
            key: record.key.name().to_vec(),
            scope: record.key.scope_name().map(<[u8]>::to_vec),
            result: record.value.result.map(<[u8]>::to_vec),
            encoded,
        }
    }
}

/// Decodes the record at the start of `bytes`, at `position` of the log.
pub fn record(bytes: &[u8], position: u64, file_id: &[u8; 16]) -> Result<RecordParts, String> {
    let seed = Seed::of_file(file_id);
    let length = super::record::record_length(bytes).map_err(|error| error.to_string())?;
    let record = Record::decode(bytes, position, seed).map_err(|error| error.to_string())?;
    Ok(RecordParts::of(&record, position, length as u64, seed))
}

/// Decodes the frame at the start of `bytes`, at `position` of the log. Returns its length and its records.
pub fn frame(
    bytes: &[u8],
    position: u64,
    segment_bytes: u64,
    file_id: &[u8; 16],
) -> Result<(usize, Vec<RecordParts>), String> {
    let seed = Seed::of_file(file_id);
    let frame = Frame::decode(bytes, position, max_frame_bytes(segment_bytes), seed)
        .map_err(|error| error.to_string())?;
    let records =
        frame.records().map(|(at, length, record)| RecordParts::of(&record, at, length, seed)).collect();
    Ok((frame.header.length, records))
}

/// Decodes the footer at the end of `slot`. Returns the offset and the length of each entry's record.
pub fn footer(slot: &[u8], sequence: u64, file_id: &[u8; 16]) -> Result<Vec<(u64, u64)>, String> {
    let trailer_bytes: &[u8; TRAILER] = slot.last_chunk().ok_or("too short")?;
    let trailer =
        Trailer::decode(trailer_bytes, sequence, slot.len() as u64).map_err(|error| error.to_string())?;
    let length = usize::try_from(footer_bytes(u64::from(trailer.entry_count))).map_err(|_| "too long")?;
    let bytes = &slot[slot.len() - length..slot.len() - TRAILER];
    let mut spans = Vec::new();
    let mut checker = Checker::new(trailer_bytes, slot.len() as u64, Seed::of_file(file_id));
    let added = checker.add(bytes, |entries| {
        for entry in entries {
            let entry = entry?;
            spans.push((entry.offset, entry.length));
        }
        Ok(())
    });
    added.and_then(|()| checker.finish()).map_err(|error| error.to_string())?;
    Ok(spans)
}

/// Decodes a store header and encodes it again.
pub fn store_header(sector: &Sector) -> Result<Sector, String> {
    let parameters = decode_store_header(sector).map_err(|problem| format!("{problem:?}"))?;
    Ok(encode_store_header(&parameters))
}

/// Decodes a segment header and encodes it again.
pub fn segment_header(sector: &Sector) -> Result<Sector, String> {
    SegmentHeader::decode(sector).map(|header| header.encode()).map_err(|error| error.to_string())
}

/// Decodes a close mark of segment `sequence` and encodes it again.
pub fn close_mark(sector: &Sector, sequence: u64, segment_bytes: u64, file_id: &[u8; 16]) -> Option<Sector> {
    let seed = Seed::of_file(file_id);
    Some(CloseMark::decode(sector, seed, sequence, segment_bytes)?.encode(seed))
}
