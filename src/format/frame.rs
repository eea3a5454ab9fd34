//! Frames: the unit of a commit, accepted whole or not at all.

use super::layout::{copy_opening_frame, frame_header, opening_frame, record_header};
use super::record::{Record, record_length, tie_to_position};
use super::{ALIGNMENT_BYTES, CopyState, FormatError, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, Seed, narrow};
use crate::clock::{BootId, TimeMark};
use crate::status::MAX_OPEN_COUNT;

/// The length of the fixed part of a frame. The records follow it.
pub(crate) const FRAME_HEADER_BYTES: usize = frame_header::WALL_MS.end();
/// The length of an opening frame, which is written when a store is opened. It has no records. Its content and the times in its
/// header together form a time mark.
pub(crate) const OPENING_FRAME_BYTES: usize = opening_frame::BOOT_MS.end();
/// The length of an opening frame in a copy, which also states what the copy may have forgotten. The last 4 bytes are zero.
pub(crate) const COPY_OPENING_FRAME_BYTES: usize = copy_opening_frame::ANSWERED_BY.end() + 4;

const _: () = assert!((COPY_OPENING_FRAME_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!((FRAME_HEADER_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!((OPENING_FRAME_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(opening_frame::BOOT.offset() == FRAME_HEADER_BYTES);

/// Whether `bytes` may be the remains of a torn frame that was written at `position`, after the frame with
/// `previous_checksum`. It is enough if one of these two fields matches, because the other may not have been written.
pub(crate) fn may_be_torn_frame(bytes: &[u8], position: u64, previous_checksum: u32) -> bool {
    bytes.len() >= FRAME_HEADER_BYTES
        && (frame_header::POSITION.u64(bytes) == position
            || (previous_checksum != 0 && frame_header::PREVIOUS_CHECKSUM.u32(bytes) == previous_checksum))
}

/// The fields of a frame header that the writer fills in when it places the frame in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The position of the frame.
    pub(crate) position: u64,
    /// Everything before this position is on disk.
    pub(crate) synced_to: u64,
    /// The checksum of the frame before.
    pub(crate) previous_checksum: u32,
    /// The open count of the session that writes the frame.
    pub(crate) open_count: u32,
    /// The store time at which the frame is written.
    pub(crate) time_ms: u64,
    /// The wall clock at that time.
    pub(crate) wall_ms: u64,
}

/// The fixed part of a frame. Its checksum covers only the header, so it can be decoded without the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// The checksum of the header.
    pub(crate) checksum: u32,
    /// The length of the whole frame, in bytes.
    pub(crate) length: usize,
    /// The fields that the writer filled in when it placed the frame.
    pub(crate) stamp: Stamp,
    /// The checksum over the checksums of the records.
    records_checksum: u32,
    /// The number of records.
    record_count: u32,
}

impl FrameHeader {
    /// Whether `bytes`, which start at offset `slot_offset` of a slot, begin like a frame header of this or any other store. For random
    /// bytes, this is true with a probability below 2<sup>-50</sup>.
    pub(crate) fn resembles(bytes: &[u8], slot_offset: u64) -> bool {
        /// A number above every position and every time in milliseconds that occurs in practice.
        const TOO_HIGH: u64 = 1 << 53;
        let Some(bytes) = bytes.get(..FRAME_HEADER_BYTES) else { return false };
        let length = u64::from(frame_header::LENGTH.u32(bytes));
        let position = frame_header::POSITION.u64(bytes);
        // The segment size is unknown here. Every segment size is a multiple of the smallest.
        let is_at_offset = position % MIN_SEGMENT_BYTES == slot_offset % MIN_SEGMENT_BYTES;
        let lengths = FRAME_HEADER_BYTES as u64..MAX_SEGMENT_BYTES;
        is_at_offset
            && (MIN_SEGMENT_BYTES..TOO_HIGH).contains(&position)
            && frame_header::SYNCED_TO.u64(bytes) <= position
            && lengths.contains(&length)
            && length.is_multiple_of(ALIGNMENT_BYTES)
            && (1..=MAX_OPEN_COUNT).contains(&frame_header::OPEN_COUNT.u32(bytes))
            && frame_header::STORE_MS.u64(bytes) < TOO_HIGH
            && frame_header::WALL_MS.u64(bytes) < TOO_HIGH
    }

    /// Decodes the frame header at the start of `bytes`. It must state `position`, and a length of at most `limit` bytes.
    pub(crate) fn decode(
        bytes: &[u8],
        position: u64,
        limit: u64,
        seed: Seed,
    ) -> Result<FrameHeader, FormatError> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(FormatError::Damaged("the frame header is cut short"));
        }
        let bytes = &bytes[..FRAME_HEADER_BYTES];
        // The position is checked first, because this one comparison rules out nearly everything that is not a frame. A
        // search for frames tries every eighth byte of a segment.
        if frame_header::POSITION.u64(bytes) != position {
            return Err(FormatError::Damaged("no frame header that states this position"));
        }
        let checksum = frame_header::CHECKSUM.u32(bytes);
        if checksum != seed.checksum(&bytes[frame_header::CHECKSUM.end()..]) {
            return Err(FormatError::Damaged("the frame header's checksum does not match"));
        }
        let length = u64::from(frame_header::LENGTH.u32(bytes));
        if length < FRAME_HEADER_BYTES as u64 || length > limit || !length.is_multiple_of(ALIGNMENT_BYTES) {
            return Err(FormatError::Damaged("the frame's length is out of range"));
        }
        let length = usize::try_from(length)
            .map_err(|_| FormatError::Damaged("the frame's length is out of range"))?;
        let stamp = Stamp {
            position,
            synced_to: frame_header::SYNCED_TO.u64(bytes),
            previous_checksum: frame_header::PREVIOUS_CHECKSUM.u32(bytes),
            open_count: frame_header::OPEN_COUNT.u32(bytes),
            time_ms: frame_header::STORE_MS.u64(bytes),
            wall_ms: frame_header::WALL_MS.u64(bytes),
        };
        if stamp.synced_to > position || stamp.open_count > MAX_OPEN_COUNT {
            return Err(FormatError::Damaged("a field of the frame header is out of range"));
        }
        let records_checksum = frame_header::RECORDS_CHECKSUM.u32(bytes);
        let record_count = frame_header::RECORD_COUNT.u32(bytes);
        Ok(FrameHeader { checksum, length, stamp, records_checksum, record_count })
    }

    /// Returns the time mark of an opening frame, or None for other frames. `bytes` must be the whole frame, already
    /// checked.
    pub(crate) fn mark(&self, bytes: &[u8]) -> Option<TimeMark> {
        let Stamp { time_ms, wall_ms, .. } = self.stamp;
        (self.record_count == 0 && bytes.len() >= OPENING_FRAME_BYTES).then(|| TimeMark {
            store_ms: time_ms,
            wall_ms,
            boot: BootId(opening_frame::BOOT.get(bytes)),
            boot_ms: opening_frame::BOOT_MS.u64(bytes),
        })
    }

    /// Returns what the opening frame of a copy states, or None for other frames. `bytes` must be the whole frame, already
    /// checked.
    pub(crate) fn copy_state(&self, bytes: &[u8]) -> Option<CopyState> {
        let is_opening = self.record_count == 0 && self.length == COPY_OPENING_FRAME_BYTES;
        (is_opening && bytes.len() >= COPY_OPENING_FRAME_BYTES).then(|| CopyState {
            in_doubt_until_ms: copy_opening_frame::IN_DOUBT_UNTIL_MS.u64(bytes),
            answered_by: copy_opening_frame::ANSWERED_BY.u32(bytes),
        })
    }
}

/// A whole frame, of which every byte has been checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// The fixed part.
    pub(crate) header: FrameHeader,
    bytes: &'a [u8],
    seed: Seed,
}

impl<'a> Frame<'a> {
    /// Decodes the frame at the start of `bytes`. The frame must be at `position` in the log and at most `limit` bytes long; `bytes`
    /// may be longer.
    pub(crate) fn decode(
        bytes: &'a [u8],
        position: u64,
        limit: u64,
        seed: Seed,
    ) -> Result<Frame<'a>, FormatError> {
        let header = FrameHeader::decode(bytes, position, limit, seed)?;
        if bytes.len() < header.length {
            return Err(FormatError::Damaged("the frame is longer than the bytes that are there"));
        }
        let frame = Frame { header, bytes: &bytes[..header.length], seed };
        if header.record_count == 0 {
            return match matches!(header.length, OPENING_FRAME_BYTES | COPY_OPENING_FRAME_BYTES)
                && seed.checksum(&frame.bytes[FRAME_HEADER_BYTES..]) == header.records_checksum
            {
                true => Ok(frame),
                false => {
                    Err(FormatError::Damaged("the length or the checksum of the opening frame is wrong"))
                }
            };
        }
        let mut checksums = seed.hasher();
        let mut count: u32 = 0;
        let mut at = FRAME_HEADER_BYTES;
        while at < header.length {
            let length = record_length(&frame.bytes[at..])?;
            if length > header.length - at {
                return Err(FormatError::Damaged("a record is longer than its frame"));
            }
            Record::decode(&frame.bytes[at..at + length], position + at as u64, seed)?;
            checksums.update(&record_header::CHECKSUM.get(&frame.bytes[at..]));
            count += 1;
            at += length;
        }
        if count != header.record_count || checksums.finalize() != header.records_checksum {
            return Err(FormatError::Damaged("the records are not those that the frame header describes"));
        }
        Ok(frame)
    }

    /// Returns the position, the length and the content of each record.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, u64, Record<'a>)> + use<'a> {
        let Frame { header, bytes, seed } = *self;
        let mut at = if header.record_count == 0 { header.length } else { FRAME_HEADER_BYTES };
        std::iter::from_fn(move || {
            let length = record_length(bytes.get(at..)?).ok()?;
            let position = header.stamp.position + at as u64;
            let record = Record::decode(bytes.get(at..at + length)?, position, seed).ok()?;
            at += length;
            Some((position, length as u64, record))
        })
    }
}

/// Completes a frame: combines the checksum of each record with its position, and writes the header. `bytes` has space for the
/// header, followed by the encoded records. Returns the frame's checksum.
pub(crate) fn seal(bytes: &mut [u8], stamp: &Stamp, seed: Seed) -> u32 {
    let mut checksums = seed.hasher();
    let mut count: u32 = 0;
    let mut at = FRAME_HEADER_BYTES;
    while at < bytes.len() {
        let length =
            record_length(&bytes[at..]).unwrap_or_else(|error| unreachable!("just encoded: {error}"));
        let checksum = tie_to_position(&mut bytes[at..], stamp.position + at as u64);
        checksums.update(&checksum.to_le_bytes());
        count += 1;
        at += length;
    }
    write_header(bytes, stamp, count, checksums.finalize(), seed)
}

/// Writes an opening frame over `bytes`, which must have the length of one. In a copy, it states `copy` too. Returns the
/// frame's checksum.
pub(crate) fn seal_opening(
    bytes: &mut [u8],
    stamp: &Stamp,
    boot: BootId,
    boot_ms: u64,
    copy: &CopyState,
    seed: Seed,
) -> u32 {
    opening_frame::BOOT.put(bytes, boot.0);
    opening_frame::BOOT_MS.put(bytes, boot_ms.to_le_bytes());
    if bytes.len() == COPY_OPENING_FRAME_BYTES {
        copy_opening_frame::IN_DOUBT_UNTIL_MS.put(bytes, copy.in_doubt_until_ms.to_le_bytes());
        copy_opening_frame::ANSWERED_BY.put(bytes, copy.answered_by.to_le_bytes());
    }
    let checksum = seed.checksum(&bytes[FRAME_HEADER_BYTES..]);
    write_header(bytes, stamp, 0, checksum, seed)
}

/// Writes the header over the start of `bytes`, which must be the whole frame. Returns the frame's checksum.
fn write_header(bytes: &mut [u8], stamp: &Stamp, count: u32, records_checksum: u32, seed: Seed) -> u32 {
    let length = narrow(bytes.len());
    let header = &mut bytes[..FRAME_HEADER_BYTES];
    frame_header::LENGTH.put(header, length.to_le_bytes());
    frame_header::POSITION.put(header, stamp.position.to_le_bytes());
    frame_header::SYNCED_TO.put(header, stamp.synced_to.to_le_bytes());
    frame_header::PREVIOUS_CHECKSUM.put(header, stamp.previous_checksum.to_le_bytes());
    frame_header::RECORDS_CHECKSUM.put(header, records_checksum.to_le_bytes());
    frame_header::OPEN_COUNT.put(header, stamp.open_count.to_le_bytes());
    frame_header::RECORD_COUNT.put(header, count.to_le_bytes());
    frame_header::STORE_MS.put(header, stamp.time_ms.to_le_bytes());
    frame_header::WALL_MS.put(header, stamp.wall_ms.to_le_bytes());
    let checksum = seed.checksum(&header[frame_header::CHECKSUM.end()..]);
    frame_header::CHECKSUM.put(header, checksum.to_le_bytes());
    checksum
}

#[cfg(test)]
mod tests {
    use super::super::layout::Field;
    use super::super::record::{Kind, Value};
    use super::super::{NEVER_MS, put};
    use super::*;
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;

    const SEED: Seed = Seed(5);
    const LIMIT: u64 = 16 << 10;

    fn stamp_at(position: u64) -> Stamp {
        let (previous_checksum, open_count) = (99, 4);
        let (time_ms, wall_ms) = (1_000, 2_000);
        Stamp { position, synced_to: position - 8, previous_checksum, open_count, time_ms, wall_ms }
    }

    fn frame(keys: &[&str], position: u64) -> Vec<u8> {
        let mut bytes = vec![0; FRAME_HEADER_BYTES];
        for key in keys {
            Record {
                kind: Kind::Begun,
                key: Key::new(key),
                version: Version::from_u64(1),
                origin: Version::from_u64(1),
                fingerprint: Fingerprint::NONE,
                attempt: 1,
                time_ms: 1,
                key_expires_ms: NEVER_MS,
                result_expires_ms: NEVER_MS,
                value: Value::NONE,
            }
            .encode(SEED)
            .append_to(&mut bytes);
        }
        seal(&mut bytes, &stamp_at(position), SEED);
        bytes
    }

    fn opening(position: u64) -> Vec<u8> {
        let mut bytes = vec![0; OPENING_FRAME_BYTES];
        seal_opening(&mut bytes, &stamp_at(position), BootId([6; 16]), 3_000, &CopyState::default(), SEED);
        bytes
    }

    #[test]
    fn only_plausible_headers_at_their_offset_resemble_a_frame_header() {
        const POSITION: u64 = 7 * MIN_SEGMENT_BYTES + 8_192;
        let like = frame(&["a"], POSITION);
        assert!(
            FrameHeader::resembles(&like, 8_192) && FrameHeader::resembles(&like, MIN_SEGMENT_BYTES + 8_192)
        );
        assert!(!FrameHeader::resembles(&like, 8_200), "a different offset");
        assert!(!FrameHeader::resembles(&like[..FRAME_HEADER_BYTES - 1], 8_192), "cut short");
        let too_high = 1_u64 << 53;
        let edits: [(usize, &[u8]); 10] = [
            (frame_header::LENGTH.offset(), &48_u32.to_le_bytes()),
            (frame_header::LENGTH.offset(), &60_u32.to_le_bytes()),
            (frame_header::LENGTH.offset(), &(1_u32 << 30).to_le_bytes()),
            (frame_header::POSITION.offset(), &8_192_u64.to_le_bytes()),
            (frame_header::POSITION.offset(), &(too_high + 8_192).to_le_bytes()),
            (frame_header::SYNCED_TO.offset(), &(POSITION + 8).to_le_bytes()),
            (frame_header::OPEN_COUNT.offset(), &0_u32.to_le_bytes()),
            (frame_header::OPEN_COUNT.offset(), &(MAX_OPEN_COUNT + 1).to_le_bytes()),
            (frame_header::STORE_MS.offset(), &too_high.to_le_bytes()),
            (frame_header::WALL_MS.offset(), &too_high.to_le_bytes()),
        ];
        for (at, number) in edits {
            let mut unlike = like.clone();
            put(&mut unlike, at, number);
            assert!(!FrameHeader::resembles(&unlike, 8_192), "{number:?} at {at}");
        }
    }

    #[test]
    fn a_frame_yields_its_records_and_their_positions() {
        let bytes = frame(&["a", "bb", "ccc"], 8_192);
        let decoded = Frame::decode(&bytes, 8_192, LIMIT, SEED).unwrap();
        assert_eq!(decoded.header.stamp, stamp_at(8_192));
        assert_eq!(decoded.header.mark(&bytes), None);
        let keys: Vec<_> =
            decoded.records().map(|(at, _, record)| (at, record.key.name().to_vec())).collect();
        assert_eq!(keys, [(8_248, b"a".to_vec()), (8_336, b"bb".to_vec()), (8_424, b"ccc".to_vec())]);
    }

    #[test]
    fn an_opening_frame_contains_a_time_mark() {
        let bytes = opening(8_192);
        let decoded = Frame::decode(&bytes, 8_192, LIMIT, SEED).unwrap();
        assert_eq!((decoded.records().count(), decoded.header.stamp), (0, stamp_at(8_192)));
        let mark = TimeMark { store_ms: 1_000, wall_ms: 2_000, boot: BootId([6; 16]), boot_ms: 3_000 };
        assert_eq!(decoded.header.mark(&bytes), Some(mark));
        assert!(
            Frame::decode(&frame(&[], 8_192), 8_192, LIMIT, SEED).is_err(),
            "a frame needs records or a time mark"
        );
    }

    #[test]
    fn every_flipped_bit_of_an_opening_frame_is_detected() {
        let bytes = opening(8_192);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&damaged, 8_192, LIMIT, SEED).is_err(), "bit {bit}");
            assert!(may_be_torn_frame(&damaged, 8_192, 99), "bit {bit}: still recognized as a torn frame");
        }
        assert!(
            !may_be_torn_frame(&bytes, 8_200, 98),
            "left over: neither the position nor the previous checksum matches"
        );
        assert!(!may_be_torn_frame(&[0; OPENING_FRAME_BYTES], 8_192, 0), "blank");
        assert!(!may_be_torn_frame(&bytes[..FRAME_HEADER_BYTES - 1], 8_192, 99));
    }

    #[test]
    fn a_stale_frame_in_a_reused_slot_is_refused() {
        let bytes = frame(&["a"], 8_192);
        assert!(Frame::decode(&bytes, 8_192 + (1 << 20), LIMIT, SEED).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_detected() {
        let bytes = frame(&["a", "bb"], 8_192);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&damaged, 8_192, LIMIT, SEED).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn records_of_two_frames_at_the_same_position_cannot_be_mixed() {
        let (one, other) = (frame(&["a", "b"], 8_192), frame(&["x", "y"], 8_192));
        let mut mixed = one.clone();
        let second = FRAME_HEADER_BYTES + 88;
        mixed[second..].copy_from_slice(&other[second..]);
        assert!(Frame::decode(&mixed, 8_192, LIMIT, SEED).is_err());
    }

    #[test]
    fn a_frame_header_beyond_its_limits_is_refused() {
        fn decode<const N: usize>(field: Field<N>, value: [u8; N], limit: u64) -> Result<(), &'static str> {
            let mut bytes = frame(&["a"], 8_192);
            field.put(&mut bytes, value);
            let checksum = SEED.checksum(&bytes[frame_header::CHECKSUM.end()..FRAME_HEADER_BYTES]);
            frame_header::CHECKSUM.put(&mut bytes, checksum.to_le_bytes());
            FrameHeader::decode(&bytes, 8_192, limit, SEED).map(drop).map_err(FormatError::reason)
        }
        let length = frame(&["a"], 8_192).len() as u64;
        let of_length = |bytes: u32, limit| decode(frame_header::LENGTH, bytes.to_le_bytes(), limit);
        let out_of_range = Err("the frame's length is out of range");
        assert!(of_length(144, length).is_ok() && length == 144);
        assert_eq!(of_length(144, length - 1), out_of_range);
        assert!(of_length(56, length).is_ok(), "only a header");
        assert_eq!(of_length(48, length), out_of_range);
        assert_eq!(of_length(60, length), out_of_range, "not a multiple of eight");
        let beyond = Err("a field of the frame header is out of range");
        let synced_to = |position: u64| decode(frame_header::SYNCED_TO, position.to_le_bytes(), LIMIT);
        assert!(synced_to(8_192).is_ok(), "everything before the frame was on disk");
        assert_eq!(synced_to(8_193), beyond, "a frame cannot be on disk before it is written");
        let open_count = |count: u32| decode(frame_header::OPEN_COUNT, count.to_le_bytes(), LIMIT);
        assert!(open_count(MAX_OPEN_COUNT).is_ok());
        assert_eq!(open_count(MAX_OPEN_COUNT + 1), beyond);
    }

    #[test]
    fn a_frame_longer_than_its_buffer_is_refused() {
        let bytes = frame(&["a", "bb"], 8_192);
        assert!(Frame::decode(&bytes, 8_192, LIMIT, SEED).is_ok());
        for length in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..length], 8_192, LIMIT, SEED).is_err(), "{length} bytes of it");
        }
        let mut followed = bytes.clone();
        followed.extend_from_slice(&[0xAA; 100]);
        assert!(Frame::decode(&followed, 8_192, LIMIT, SEED).is_ok());
    }
}
