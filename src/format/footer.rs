//! Footers: what a full segment says of each key, so that opening reads these and not the records.

use super::record::{Kind, Record, Value};
use super::{ALIGNMENT_BYTES, FIRST_FRAME_OFFSET, FormatError, NEVER_MS, Seed, array, get_u32, get_u64, put};
use crate::key::{Fingerprint, Key};
use crate::planted::{Bug, planted};
use crate::status::Version;

/// One key's last record in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
    /// From the start of the slot, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) kind: Kind,
}

impl FooterEntry {
    /// The record that carries along the bytes of this entry's record, which does not check. It has no key of its own: the
    /// entry says whose it is, until when it is kept and what it was.
    pub(crate) fn carrying<'a>(&self, bytes: &'a [u8], now_ms: u64) -> Record<'a> {
        let was = match self.kind {
            Kind::Begun | Kind::Completed | Kind::Released => u32::from(self.kind.to_byte()),
            // Carried along before: what it was then cannot be read any more either.
            Kind::Unreadable | Kind::Forgotten | Kind::Ignorable => 0,
        };
        // Whatever else it says, time ends no attempt that began.
        let never = self.kind == Kind::Begun;
        Record {
            kind: Kind::Unreadable,
            key: Key::new(b""),
            version: self.version,
            origin: Version::from_u64(0),
            fingerprint: Fingerprint::from_bytes(self.hash.to_le_bytes()),
            attempt: was,
            time_ms: now_ms,
            key_expires_ms: if never { NEVER_MS } else { self.key_expires_ms },
            result_expires_ms: if never { NEVER_MS } else { self.result_expires_ms },
            value: Value::bytes(bytes),
        }
    }
}

/// The same in the two widths in which they are needed.
pub(crate) const TRAILER: usize = 64;
const ENTRY: usize = 48;

/// The bytes of one entry.
pub(crate) const ENTRY_BYTES: u64 = ENTRY as u64;
/// The bytes of the trailer.
pub(crate) const TRAILER_BYTES: u64 = TRAILER as u64;

const MAGIC: &[u8; 8] = b"ONCEFOOT";

/// What the trailer says of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) entry_count: u32,
    pub(crate) sequence: u64,
    pub(crate) successor: u64,
    /// The position at which the frames end.
    pub(crate) end: u64,
    pub(crate) record_bytes: u64,
    pub(crate) last_checksum: u32,
    checksum: u32,
}

/// The bytes that a footer of so many entries takes.
pub(crate) const fn footer_bytes(entry_count: u64) -> u64 {
    TRAILER_BYTES + entry_count * ENTRY_BYTES
}

/// The footer of a segment: entries in the order of the log, then the trailer, to be written so that it ends with the slot.
pub(crate) fn encode(
    entries: impl IntoIterator<Item = FooterEntry>,
    sequence: u64,
    end: u64,
    record_bytes: u64,
    last_checksum: u32,
    seed: Seed,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut count = 0_u32;
    for entry in entries {
        count += 1;
        let mut field = [0; ENTRY];
        put(&mut field, 0, &entry.hash.to_le_bytes());
        put(&mut field, 16, &entry.version.as_u64().to_le_bytes());
        put(&mut field, 24, &entry.key_expires_ms.to_le_bytes());
        put(&mut field, 32, &entry.result_expires_ms.to_le_bytes());
        put(&mut field, 40, &units(entry.offset).to_le_bytes());
        put(&mut field, 44, &units(entry.length).to_le_bytes()[..3]);
        field[47] = entry.kind.to_byte();
        bytes.extend_from_slice(&field);
    }
    let mut trailer = [0; TRAILER];
    put(&mut trailer, 0, MAGIC);
    put(&mut trailer, 12, &count.to_le_bytes());
    put(&mut trailer, 16, &sequence.to_le_bytes());
    put(&mut trailer, 24, &(sequence + 1).to_le_bytes());
    put(&mut trailer, 32, &end.to_le_bytes());
    put(&mut trailer, 40, &record_bytes.to_le_bytes());
    put(&mut trailer, 48, &last_checksum.to_le_bytes());
    let checksum = checksum_of(&trailer, &bytes, seed);
    put(&mut trailer, 8, &checksum.to_le_bytes());
    bytes.extend_from_slice(&trailer);
    bytes
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / ALIGNMENT_BYTES).unwrap_or_else(|_| unreachable!("offsets lie within a segment"))
}

fn checksum_of(trailer: &[u8], entries: &[u8], seed: Seed) -> u32 {
    let mut hasher = seed.hasher();
    hasher.update(&trailer[12..TRAILER]);
    hasher.update(entries);
    hasher.finalize()
}

impl Trailer {
    /// The trailer in a slot's last bytes, if it speaks of `sequence`. Its checksum covers the entries too, so nothing
    /// here is to be believed before [`entries`] agreed; `entry_count` is bounded by what a slot can hold.
    pub(crate) fn decode(
        bytes: &[u8; TRAILER],
        sequence: u64,
        segment_bytes: u64,
    ) -> Result<Trailer, FormatError> {
        if !bytes.starts_with(MAGIC) || get_u64(bytes, 16) != sequence {
            return Err(FormatError::Damaged("no footer of this segment"));
        }
        let trailer = Trailer {
            entry_count: get_u32(bytes, 12),
            sequence,
            successor: get_u64(bytes, 24),
            end: get_u64(bytes, 32),
            record_bytes: get_u64(bytes, 40),
            last_checksum: get_u32(bytes, 48),
            checksum: get_u32(bytes, 8),
        };
        if footer_bytes(u64::from(trailer.entry_count)) > segment_bytes {
            return Err(FormatError::Damaged("the footer is longer than its segment"));
        }
        if trailer.record_bytes > segment_bytes {
            return Err(FormatError::Damaged("the footer counts more records than its segment holds"));
        }
        if trailer.end / segment_bytes != sequence || trailer.successor != sequence + 1 {
            return Err(FormatError::Damaged("the footer speaks of another segment"));
        }
        Ok(trailer)
    }
}

/// Whether these bytes are, or were before they were damaged, the trailer of segment `sequence`: two of its three marks
/// are enough. What an earlier segment left in the slot has one of them, and zeroes or garbage have none.
pub(crate) fn is_or_was_of(trailer: &[u8; TRAILER], sequence: u64) -> bool {
    let marks =
        [trailer.starts_with(MAGIC), get_u64(trailer, 16) == sequence, get_u64(trailer, 24) == sequence + 1];
    marks.into_iter().filter(|mark| *mark).count() >= 2
}

/// Entries, decoded one by one: each may be of a kind that this version does not know.
#[derive(Debug, Clone)]
pub(crate) struct Entries<'a>(std::slice::Iter<'a, [u8; ENTRY]>);

impl Iterator for Entries<'_> {
    type Item = Result<FooterEntry, FormatError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(entry)
    }
}

/// The entries of a footer, if every byte of it checks and every place lies in its segment.
pub(crate) fn entries<'a>(
    bytes: &'a [u8],
    trailer_bytes: &[u8; TRAILER],
    segment_bytes: u64,
    seed: Seed,
) -> Result<Entries<'a>, FormatError> {
    if get_u32(trailer_bytes, 8) != checksum_of(trailer_bytes, bytes, seed) && !planted(Bug::FooterUnchecked)
    {
        return Err(FormatError::Damaged("the footer's checksum does not fit"));
    }
    let (entries, rest) = bytes.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.len() != get_u32(trailer_bytes, 12) as usize {
        return Err(FormatError::Damaged("the footer's length does not fit"));
    }
    // Each place once, in the order of the segment and within it: the index is made of these places, and what a segment
    // that is given up still holds is found by them.
    let mut from = FIRST_FRAME_OFFSET;
    for field in entries {
        let (offset, length) = place(field);
        if offset < from || length == 0 || offset + length > segment_bytes {
            return Err(FormatError::Damaged("the footer names a place out of order or outside its segment"));
        }
        from = offset + length;
    }
    Ok(Entries(entries.iter()))
}

/// Where a record is in its slot and how long, in bytes.
#[inline]
fn place(field: &[u8; ENTRY]) -> (u64, u64) {
    let length_units = u32::from_le_bytes([field[44], field[45], field[46], 0]);
    (u64::from(get_u32(field, 40)) * ALIGNMENT_BYTES, u64::from(length_units) * ALIGNMENT_BYTES)
}

#[inline]
fn entry(field: &[u8; ENTRY]) -> Result<FooterEntry, FormatError> {
    let (offset, length) = place(field);
    Ok(FooterEntry {
        hash: u128::from_le_bytes(array(field, 0)),
        version: Version::from_u64(get_u64(field, 16)),
        key_expires_ms: get_u64(field, 24),
        result_expires_ms: get_u64(field, 32),
        offset,
        length,
        kind: Kind::from_byte(field[47])
            .ok_or(FormatError::Unknown("the footer names an unknown kind of record"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed(11);
    const SEGMENT: u64 = 1 << 16;

    fn entries() -> Vec<FooterEntry> {
        (1..=3_u32)
            .map(|n| FooterEntry {
                hash: u128::from(n) << 100 | 7,
                version: Version::from_u64(u64::from(n)),
                key_expires_ms: 10,
                result_expires_ms: 5,
                offset: 4_096 + u64::from(n) * 80,
                length: 80,
                kind: Kind::Completed,
            })
            .collect()
    }

    fn parts(bytes: &[u8]) -> (&[u8], &[u8; TRAILER]) {
        bytes.split_last_chunk::<TRAILER>().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(Trailer, Vec<FooterEntry>), FormatError> {
        let (body, trailer) = parts(bytes);
        let entries = super::entries(body, trailer, SEGMENT, SEED)?.collect::<Result<_, _>>()?;
        Ok((Trailer::decode(trailer, 6, SEGMENT)?, entries))
    }

    #[test]
    fn a_footer_comes_back_as_it_was_written() {
        let bytes = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        assert_eq!(bytes.len() as u64, footer_bytes(3));
        let (trailer, read_entries) = read(&bytes).unwrap();
        assert_eq!(read_entries, entries());
        assert_eq!((trailer.entry_count, trailer.successor, trailer.end), (3, 7, 6 * SEGMENT + 9_000));
        assert_eq!((trailer.record_bytes, trailer.last_checksum), (240, 0xAA));
    }

    #[test]
    fn no_flipped_bit_of_a_footer_goes_unnoticed() {
        let bytes = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_trailer_is_still_known_for_one_and_an_earlier_one_is_not_taken_for_it() {
        let bytes = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        let (_, trailer) = parts(&bytes);
        for byte in 0..TRAILER {
            let mut damaged = *trailer;
            damaged[byte] ^= 0xFF;
            assert!(is_or_was_of(&damaged, 6), "byte {byte}");
        }
        assert!(!is_or_was_of(trailer, 9), "left over from segment 6");
        assert!(!is_or_was_of(&[0; TRAILER], 6));
    }

    #[test]
    fn a_footer_of_another_sequence_does_not_pass() {
        let bytes = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        let (_, trailer) = parts(&bytes);
        assert!(Trailer::decode(trailer, 7, SEGMENT).is_err());
    }

    /// Writes into the trailer, and makes its checksum true again.
    fn forge(bytes: &mut [u8], at: usize, field: &[u8]) {
        let (body, trailer) = bytes.split_at_mut(bytes.len() - TRAILER);
        put(trailer, at, field);
        let checksum = checksum_of(trailer, body, SEED);
        put(trailer, 8, &checksum.to_le_bytes());
    }

    /// What a forger makes true is still held to what a segment can be: sums are made of these numbers.
    #[test]
    fn a_trailer_is_believed_up_to_the_limits_of_a_segment_and_not_beyond() {
        let whole = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        let decode = |at, field: &[u8]| {
            let mut bytes = whole.clone();
            forge(&mut bytes, at, field);
            Trailer::decode(parts(&bytes).1, 6, SEGMENT).map_err(FormatError::reason)
        };
        let most = (SEGMENT - TRAILER_BYTES) / ENTRY_BYTES;
        let count = |count: u64| decode(12, &u32::try_from(count).unwrap().to_le_bytes());
        assert!(count(most).is_ok());
        assert_eq!(count(most + 1), Err("the footer is longer than its segment"));
        assert!(decode(40, &SEGMENT.to_le_bytes()).is_ok());
        let more = Err("the footer counts more records than its segment holds");
        assert_eq!(decode(40, &(SEGMENT + 1).to_le_bytes()), more);
        assert_eq!(decode(40, &u64::MAX.to_le_bytes()), more);
        let another = Err("the footer speaks of another segment");
        assert_eq!(decode(32, &(7 * SEGMENT).to_le_bytes()), another);
        assert_eq!(decode(24, &8_u64.to_le_bytes()), another);
    }

    #[test]
    fn as_many_entries_as_are_there_must_be_named_and_none_in_part() {
        let mut bytes = encode(entries(), 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
        forge(&mut bytes, 12, &2_u32.to_le_bytes());
        assert_eq!(read(&bytes).err().map(FormatError::reason), Some("the footer's length does not fit"));
        forge(&mut bytes, 12, &3_u32.to_le_bytes());
        assert!(read(&bytes).is_ok());
        let mut longer = vec![0; 8];
        longer.extend_from_slice(&bytes);
        forge(&mut longer, 12, &3_u32.to_le_bytes());
        assert_eq!(read(&longer).err().map(FormatError::reason), Some("the footer's length does not fit"));
    }

    #[test]
    fn the_places_that_a_footer_names_are_in_order_apart_and_within_the_segment() {
        let reason = |change: fn(&mut [FooterEntry])| {
            let mut entries = entries();
            change(&mut entries);
            let bytes = encode(entries, 6, 6 * SEGMENT + 9_000, 240, 0xAA, SEED);
            read(&bytes).map(drop).map_err(FormatError::reason)
        };
        let wrong = Err("the footer names a place out of order or outside its segment");
        assert_eq!(reason(|_| {}), Ok(()));
        assert_eq!(reason(|entries| entries.swap(0, 1)), wrong);
        assert_eq!(reason(|entries| entries[1].offset = entries[0].offset), wrong, "one place twice");
        assert_eq!(reason(|entries| entries[0].length = 88), wrong, "one reaches into the next");
        assert_eq!(reason(|entries| entries[0].offset = 4_096), Ok(()), "the first place there is");
        assert_eq!(reason(|entries| entries[0].offset = 4_088), wrong, "in the header");
        assert_eq!(reason(|entries| entries[2].offset = SEGMENT - 80), Ok(()), "to the segment's last byte");
        assert_eq!(reason(|entries| entries[2].offset = SEGMENT - 72), wrong);
        assert_eq!(reason(|entries| entries[2].length = 0), wrong);
    }

    #[test]
    fn a_trailer_fills_a_segment_that_holds_nothing_else() {
        assert!(Trailer::decode(&[0; TRAILER], 6, SEGMENT).is_err());
        let just = footer_bytes(3);
        let bytes = encode(entries(), 6, 6 * just + 8, 0, 0xAA, SEED);
        assert!(Trailer::decode(parts(&bytes).1, 6, just).is_ok(), "entries and trailer, to the last byte");
    }
}
