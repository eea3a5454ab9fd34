//! Frames: what one commit writes, torn whole or there whole.

use super::record::{Record, record_length, stamp};
use super::{
    ALIGNMENT_BYTES, FormatError, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, Seed, array, get_u32, get_u64,
    narrow, put,
};
use crate::clock::{BootId, TimeMark};
use crate::status::MAX_OPEN_COUNT;

/// The fixed part of a frame.
pub(crate) const FRAME_HEADER_BYTES: usize = 56;

/// The frame that starts an opening, which has no records: behind the fixed part the boot and its boot-time clock.
pub(crate) const OPENING_FRAME_BYTES: usize = BOOT_CLOCK_AT + 8;
const BOOT_AT: usize = FRAME_HEADER_BYTES;
const BOOT_CLOCK_AT: usize = BOOT_AT + 16;

const _: () = assert!((FRAME_HEADER_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!((OPENING_FRAME_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));

/// Whether `bytes` may be what is left of a frame that was to stand at `position`, and to follow the frame of this
/// checksum: the one or the other is there.
pub(crate) fn may_be_torn_frame(bytes: &[u8], position: u64, previous_checksum: u32) -> bool {
    bytes.len() >= FRAME_HEADER_BYTES
        && (get_u64(bytes, 8) == position
            || (previous_checksum != 0 && get_u32(bytes, 24) == previous_checksum))
}

/// What its writer knows of a frame when it takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) position: u64,
    /// Everything before this position is on disk.
    pub(crate) synced_to: u64,
    pub(crate) previous_checksum: u32,
    pub(crate) open_count: u32,
    /// Store time.
    pub(crate) time_ms: u64,
    /// The wall clock at that time.
    pub(crate) wall_ms: u64,
}

/// The fixed part of a frame, checked on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) checksum: u32,
    pub(crate) length: usize,
    pub(crate) stamp: Stamp,
    records_checksum: u32,
    record_count: u32,
}

impl FrameHeader {
    /// Whether `bytes` starts like the header of a frame at this place of a slot, of whatever store. By chance, fewer than one
    /// in 2<sup>50</sup> places do.
    pub(crate) fn resembles(bytes: &[u8], within: u64) -> bool {
        /// Further than anybody has written, and later than anybody has lived.
        const FAR: u64 = 1 << 53;
        let Some(bytes) = bytes.get(..FRAME_HEADER_BYTES) else { return false };
        let (length, position) = (u64::from(get_u32(bytes, 4)), get_u64(bytes, 8));
        let is_here = position % MIN_SEGMENT_BYTES == within % MIN_SEGMENT_BYTES;
        let lengths = FRAME_HEADER_BYTES as u64..MAX_SEGMENT_BYTES;
        is_here
            && (MIN_SEGMENT_BYTES..FAR).contains(&position)
            && get_u64(bytes, 16) <= position
            && lengths.contains(&length)
            && length.is_multiple_of(ALIGNMENT_BYTES)
            && (1..=MAX_OPEN_COUNT).contains(&get_u32(bytes, 32))
            && get_u64(bytes, 40) < FAR
            && get_u64(bytes, 48) < FAR
    }

    /// The header that `bytes` starts with, if it belongs at `position` and its frame can fit `limit` bytes.
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
        // The position first: it rules out nearly everything that is not a frame for the price of one comparison,
        // which is what a search through a whole segment needs.
        if get_u64(bytes, 8) != position {
            return Err(FormatError::Damaged("no frame of this position"));
        }
        let checksum = get_u32(bytes, 0);
        if checksum != seed.checksum(&bytes[4..]) {
            return Err(FormatError::Damaged("the frame header's checksum does not fit"));
        }
        let length = u64::from(get_u32(bytes, 4));
        if length < FRAME_HEADER_BYTES as u64 || length > limit || !length.is_multiple_of(ALIGNMENT_BYTES) {
            return Err(FormatError::Damaged("the frame's length is out of range"));
        }
        let length = usize::try_from(length)
            .map_err(|_| FormatError::Damaged("the frame's length is out of range"))?;
        let stamp = Stamp {
            position,
            synced_to: get_u64(bytes, 16),
            previous_checksum: get_u32(bytes, 24),
            open_count: get_u32(bytes, 32),
            time_ms: get_u64(bytes, 40),
            wall_ms: get_u64(bytes, 48),
        };
        if stamp.synced_to > position || stamp.open_count > MAX_OPEN_COUNT {
            return Err(FormatError::Damaged("the frame header is out of range"));
        }
        let (records_checksum, record_count) = (get_u32(bytes, 28), get_u32(bytes, 36));
        Ok(FrameHeader { checksum, length, stamp, records_checksum, record_count })
    }

    /// The mark of the opening that the frame starts, if it does; `bytes` is all of it, and was checked.
    pub(crate) fn mark(&self, bytes: &[u8]) -> Option<TimeMark> {
        let Stamp { time_ms, wall_ms, .. } = self.stamp;
        (self.record_count == 0 && bytes.len() >= OPENING_FRAME_BYTES).then(|| TimeMark {
            store_ms: time_ms,
            wall_ms,
            boot: BootId(array(bytes, BOOT_AT)),
            boot_ms: get_u64(bytes, BOOT_CLOCK_AT),
        })
    }
}

/// A frame whose every byte has been checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) header: FrameHeader,
    bytes: &'a [u8],
    seed: Seed,
}

impl<'a> Frame<'a> {
    /// The frame at `position`, which `bytes` starts with.
    pub(crate) fn decode(
        bytes: &'a [u8],
        position: u64,
        limit: u64,
        seed: Seed,
    ) -> Result<Frame<'a>, FormatError> {
        let header = FrameHeader::decode(bytes, position, limit, seed)?;
        if bytes.len() < header.length {
            return Err(FormatError::Damaged("the frame is longer than what holds it"));
        }
        let frame = Frame { header, bytes: &bytes[..header.length], seed };
        if header.record_count == 0 {
            return match header.length == OPENING_FRAME_BYTES
                && seed.checksum(&frame.bytes[BOOT_AT..]) == header.records_checksum
            {
                true => Ok(frame),
                false => Err(FormatError::Damaged("the frame of an opening is not what was written")),
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
            checksums.update(&frame.bytes[at..at + 4]);
            count += 1;
            at += length;
        }
        if count != header.record_count || checksums.finalize() != header.records_checksum {
            return Err(FormatError::Damaged("the frame's records are not those it was written with"));
        }
        Ok(frame)
    }

    /// The records with their positions and lengths.
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

/// Makes a frame of `bytes`: room for the header, then freshly encoded records. Ties each record to its place and
/// writes the header; returns the frame's checksum.
pub(crate) fn seal(bytes: &mut [u8], stamp_of_frame: &Stamp, seed: Seed) -> u32 {
    let mut checksums = seed.hasher();
    let mut count: u32 = 0;
    let mut at = FRAME_HEADER_BYTES;
    while at < bytes.len() {
        let length =
            record_length(&bytes[at..]).unwrap_or_else(|fault| unreachable!("we encoded it: {fault}"));
        let checksum = stamp(&mut bytes[at..], stamp_of_frame.position + at as u64);
        checksums.update(&checksum.to_le_bytes());
        count += 1;
        at += length;
    }
    write_header(bytes, stamp_of_frame, count, checksums.finalize(), seed)
}

/// Makes of `bytes`, which is as long as such a frame, the frame that starts an opening; returns its checksum.
pub(crate) fn seal_opening(bytes: &mut [u8], stamp: &Stamp, boot: BootId, boot_ms: u64, seed: Seed) -> u32 {
    put(bytes, BOOT_AT, &boot.0);
    put(bytes, BOOT_CLOCK_AT, &boot_ms.to_le_bytes());
    let checksum = seed.checksum(&bytes[BOOT_AT..OPENING_FRAME_BYTES]);
    write_header(bytes, stamp, 0, checksum, seed)
}

fn write_header(
    bytes: &mut [u8],
    stamp_of_frame: &Stamp,
    count: u32,
    records_checksum: u32,
    seed: Seed,
) -> u32 {
    let length = narrow(bytes.len());
    let header = &mut bytes[..FRAME_HEADER_BYTES];
    put(header, 4, &length.to_le_bytes());
    put(header, 8, &stamp_of_frame.position.to_le_bytes());
    put(header, 16, &stamp_of_frame.synced_to.to_le_bytes());
    put(header, 24, &stamp_of_frame.previous_checksum.to_le_bytes());
    put(header, 28, &records_checksum.to_le_bytes());
    put(header, 32, &stamp_of_frame.open_count.to_le_bytes());
    put(header, 36, &count.to_le_bytes());
    put(header, 40, &stamp_of_frame.time_ms.to_le_bytes());
    put(header, 48, &stamp_of_frame.wall_ms.to_le_bytes());
    let checksum = seed.checksum(&header[4..]);
    put(header, 0, &checksum.to_le_bytes());
    checksum
}

#[cfg(test)]
mod tests {
    use super::super::NEVER_MS;
    use super::super::record::{Kind, Value};
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
        seal_opening(&mut bytes, &stamp_at(position), BootId([6; 16]), 3_000, SEED);
        bytes
    }

    #[test]
    fn what_resembles_a_frame_header_is_at_its_place_and_has_every_number_in_its_range() {
        const POSITION: u64 = 7 * MIN_SEGMENT_BYTES + 8_192;
        let like = frame(&["a"], POSITION);
        assert!(
            FrameHeader::resembles(&like, 8_192) && FrameHeader::resembles(&like, MIN_SEGMENT_BYTES + 8_192)
        );
        assert!(!FrameHeader::resembles(&like, 8_200), "of another place");
        assert!(!FrameHeader::resembles(&like[..FRAME_HEADER_BYTES - 1], 8_192), "cut short");
        let far = 1_u64 << 53;
        let edits: [(usize, &[u8]); 10] = [
            (4, &48_u32.to_le_bytes()),
            (4, &60_u32.to_le_bytes()),
            (4, &(1_u32 << 30).to_le_bytes()),
            (8, &8_192_u64.to_le_bytes()),
            (8, &(far + 8_192).to_le_bytes()),
            (16, &(POSITION + 8).to_le_bytes()),
            (32, &0_u32.to_le_bytes()),
            (32, &(MAX_OPEN_COUNT + 1).to_le_bytes()),
            (40, &far.to_le_bytes()),
            (48, &far.to_le_bytes()),
        ];
        for (at, number) in edits {
            let mut unlike = like.clone();
            put(&mut unlike, at, number);
            assert!(!FrameHeader::resembles(&unlike, 8_192), "{number:?} at {at}");
        }
    }

    #[test]
    fn a_frame_gives_its_records_and_their_positions() {
        let bytes = frame(&["a", "bb", "ccc"], 8_192);
        let decoded = Frame::decode(&bytes, 8_192, LIMIT, SEED).unwrap();
        assert_eq!(decoded.header.stamp, stamp_at(8_192));
        assert_eq!(decoded.header.mark(&bytes), None);
        let keys: Vec<_> =
            decoded.records().map(|(at, _, record)| (at, record.key.name().to_vec())).collect();
        assert_eq!(keys, [(8_248, b"a".to_vec()), (8_336, b"bb".to_vec()), (8_424, b"ccc".to_vec())]);
    }

    #[test]
    fn a_frame_without_records_is_that_of_an_opening_and_has_its_mark() {
        let bytes = opening(8_192);
        let decoded = Frame::decode(&bytes, 8_192, LIMIT, SEED).unwrap();
        assert_eq!((decoded.records().count(), decoded.header.stamp), (0, stamp_at(8_192)));
        let mark = TimeMark { store_ms: 1_000, wall_ms: 2_000, boot: BootId([6; 16]), boot_ms: 3_000 };
        assert_eq!(decoded.header.mark(&bytes), Some(mark));
        assert!(Frame::decode(&frame(&[], 8_192), 8_192, LIMIT, SEED).is_err(), "no records and no mark");
    }

    #[test]
    fn no_flipped_bit_of_the_frame_of_an_opening_goes_unnoticed() {
        let bytes = opening(8_192);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&damaged, 8_192, LIMIT, SEED).is_err(), "bit {bit}");
            assert!(may_be_torn_frame(&damaged, 8_192, 99), "bit {bit}: what is left tells what it was");
        }
        assert!(!may_be_torn_frame(&bytes, 8_200, 98), "a left-over of another place and another chain");
        assert!(!may_be_torn_frame(&[0; OPENING_FRAME_BYTES], 8_192, 0), "blank");
        assert!(!may_be_torn_frame(&bytes[..FRAME_HEADER_BYTES - 1], 8_192, 99));
    }

    #[test]
    fn a_stale_frame_of_a_recycled_slot_does_not_pass() {
        let bytes = frame(&["a"], 8_192);
        assert!(Frame::decode(&bytes, 8_192 + (1 << 20), LIMIT, SEED).is_err());
    }

    #[test]
    fn no_flipped_bit_of_a_frame_goes_unnoticed() {
        let bytes = frame(&["a", "bb"], 8_192);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&damaged, 8_192, LIMIT, SEED).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn records_of_two_frames_of_one_position_do_not_mix() {
        let (one, other) = (frame(&["a", "b"], 8_192), frame(&["x", "y"], 8_192));
        let mut mixed = one.clone();
        let second = FRAME_HEADER_BYTES + 88;
        mixed[second..].copy_from_slice(&other[second..]);
        assert!(Frame::decode(&mixed, 8_192, LIMIT, SEED).is_err());
    }

    #[test]
    fn a_frame_header_is_believed_up_to_its_limits_and_not_beyond() {
        let whole = frame(&["a"], 8_192);
        let length = whole.len() as u64;
        let decode = |at, field: &[u8], limit| {
            let mut bytes = whole.clone();
            put(&mut bytes, at, field);
            let checksum = SEED.checksum(&bytes[4..FRAME_HEADER_BYTES]);
            put(&mut bytes, 0, &checksum.to_le_bytes());
            FrameHeader::decode(&bytes, 8_192, limit, SEED).map_err(FormatError::reason)
        };
        let of_length = |bytes: u32, limit| decode(4, &bytes.to_le_bytes(), limit);
        let out_of_range = Err("the frame's length is out of range");
        assert!(of_length(144, length).is_ok() && length == 144);
        assert_eq!(of_length(144, length - 1), out_of_range);
        assert!(of_length(56, length).is_ok(), "no more than its header");
        assert_eq!(of_length(48, length), out_of_range);
        assert_eq!(of_length(60, length), out_of_range, "not a multiple of eight");
        let beyond = Err("the frame header is out of range");
        assert!(decode(16, &8_192_u64.to_le_bytes(), LIMIT).is_ok(), "all before it was on disk");
        assert_eq!(decode(16, &8_193_u64.to_le_bytes(), LIMIT), beyond, "it says that it is on disk itself");
        assert!(decode(32, &MAX_OPEN_COUNT.to_le_bytes(), LIMIT).is_ok());
        assert_eq!(decode(32, &(MAX_OPEN_COUNT + 1).to_le_bytes(), LIMIT), beyond);
    }

    #[test]
    fn a_frame_may_end_where_what_holds_it_ends_and_not_later() {
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
