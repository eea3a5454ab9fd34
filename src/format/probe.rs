//! The decoders on bytes, one by one, for fuzzing. Behind the feature `__simulation`, which is no part of the public
//! interface.

use super::footer::{FooterEntry, TRAILER, Trailer, entries, footer_bytes};
use super::frame::Frame;
use super::header::{CloseMark, Sector, SegmentHeader, decode_store_header, encode_store_header};
use super::record::{Record, stamp};
use super::{FormatError, Seed, max_frame_bytes};

/// What a record says, and the bytes that it is encoded to again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordParts {
    /// The position that it was decoded at.
    pub position: u64,
    /// The length that it gives itself.
    pub length_bytes: u64,
    /// Its kind, as encoded; one for all that are ignorable.
    pub kind: u8,
    /// The key without its scope.
    pub key: Vec<u8>,
    /// The scope.
    pub scope: Option<Vec<u8>>,
    /// The result.
    pub result: Option<Vec<u8>>,
    /// Encoded again and tied to the same position.
    pub encoded: Vec<u8>,
}

impl RecordParts {
    fn of(record: &Record<'_>, position: u64, length_bytes: u64, seed: Seed) -> RecordParts {
        let mut encoded = Vec::new();
        record.encode(seed).append_to(&mut encoded);
        stamp(&mut encoded, position);
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

/// The record at the start of `bytes`, if it belongs to `position`.
pub fn record(bytes: &[u8], position: u64, file_id: &[u8; 16]) -> Result<RecordParts, String> {
    let seed = Seed::of_file(file_id);
    let length = super::record::record_length(bytes).map_err(|fault| fault.to_string())?;
    let record = Record::decode(bytes, position, seed).map_err(|fault| fault.to_string())?;
    Ok(RecordParts::of(&record, position, length as u64, seed))
}

/// Length and records of the frame at the start of `bytes`, if it belongs to `position`.
pub fn frame(
    bytes: &[u8],
    position: u64,
    segment_bytes: u64,
    file_id: &[u8; 16],
) -> Result<(usize, Vec<RecordParts>), String> {
    let seed = Seed::of_file(file_id);
    let frame = Frame::decode(bytes, position, max_frame_bytes(segment_bytes), seed)
        .map_err(|fault| fault.to_string())?;
    let records =
        frame.records().map(|(at, length, record)| RecordParts::of(&record, at, length, seed)).collect();
    Ok((frame.header.length, records))
}

/// (offset, length) of every entry of the footer that `slot` ends with.
pub fn footer(slot: &[u8], sequence: u64, file_id: &[u8; 16]) -> Result<Vec<(u64, u64)>, String> {
    let trailer_bytes: &[u8; TRAILER] = slot.last_chunk().ok_or("too short")?;
    let trailer =
        Trailer::decode(trailer_bytes, sequence, slot.len() as u64).map_err(|fault| fault.to_string())?;
    let length = usize::try_from(footer_bytes(u64::from(trailer.entry_count))).map_err(|_| "too long")?;
    let bytes = &slot[slot.len() - length..slot.len() - TRAILER];
    let entries = entries(bytes, trailer_bytes, slot.len() as u64, Seed::of_file(file_id))
        .map_err(|fault| fault.to_string())?;
    let place = |entry: Result<FooterEntry, FormatError>| entry.map(|entry| (entry.offset, entry.length));
    entries.map(place).collect::<Result<_, _>>().map_err(|fault| fault.to_string())
}

/// The store header in `sector`, encoded again.
pub fn store_header(sector: &Sector) -> Result<Sector, String> {
    let parameters = decode_store_header(sector).map_err(|problem| format!("{problem:?}"))?;
    Ok(encode_store_header(&parameters))
}

/// The segment header in `sector`, encoded again.
pub fn segment_header(sector: &Sector) -> Result<Sector, String> {
    SegmentHeader::decode(sector).map(|header| header.encode()).map_err(|fault| fault.to_string())
}

/// The close mark in `sector`, encoded again, if it is one of `sequence`.
pub fn close_mark(sector: &Sector, sequence: u64, segment_bytes: u64, file_id: &[u8; 16]) -> Option<Sector> {
    let seed = Seed::of_file(file_id);
    Some(CloseMark::decode(sector, seed, sequence, segment_bytes)?.encode(seed))
}
