//! Footers: one entry for each key of a full segment, so that recovery need not read the segment's records.

use std::ops::Range;

use crc32fast::Hasher;

use super::layout::{footer_entry, trailer};
use super::record::{Kind, Record, Value, joined};
use super::{ALIGNMENT_BYTES, FIRST_FRAME_OFFSET, FormatError, NEVER_MS, Seed};
use crate::hash::Domain;
use crate::key::{Fingerprint, Key};
use crate::planted::{Bug, planted};
use crate::status::Version;

/// A footer entry: the last record of one key in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    /// The hash of the key.
    pub(crate) hash: u128,
    /// The version of the record.
    pub(crate) version: Version,
    /// The store time from which the key is absent.
    pub(crate) key_expires_ms: u64,
    /// The store time from which the result is gone.
    pub(crate) result_expires_ms: u64,
    /// The offset of the record from the start of the slot, the part of the file that holds the segment, in bytes.
    pub(crate) offset: u64,
    /// The length of the record, in bytes.
    pub(crate) length: u64,
    /// The kind of the record.
    pub(crate) kind: Kind,
}

impl FooterEntry {
    /// Returns the hash of the key of a step's operation.
    #[inline]
    pub(crate) fn parent_hash(&self) -> u128 {
        joined(self.key_expires_ms, self.result_expires_ms)
    }

    /// Returns the offsets of the record in its slot.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }

    /// Returns the bytes of the record in those of its slot. None if they are not all there.
    pub(crate) fn bytes_in<'a>(&self, slot: &'a [u8]) -> Option<&'a [u8]> {
        let Range { start, end } = self.range();
        slot.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    /// Returns the hash of the key whose flight (the per-key lock) covers changes of this record: its own, or that of the
    /// step's operation.
    pub(crate) fn flight_hash(&self) -> u128 {
        match self.kind.domain() {
            Some(Domain::Step) => self.parent_hash(),
            _ => self.hash,
        }
    }

    /// Returns a record of a kind that [carries](Kind::is_carrier) `bytes`: the bytes of this entry's record, which failed
    /// its checksum. The key cannot be read from them, so its hash, the expiries and the kind are taken from the entry. In a record
    /// of this kind, `fingerprint` holds the hash of the key, and `attempt` the kind of the carried record, or 0 if that is unknown.
    pub(crate) fn carrying<'a>(&self, bytes: &'a [u8], now_ms: u64) -> Record<'a> {
        let carried_kind = match self.kind {
            Kind::Begun
            | Kind::Completed
            | Kind::Released
            | Kind::StepBegun
            | Kind::StepCompleted
            | Kind::StepReleased
            | Kind::Message => u32::from(self.kind.to_byte()),
            // If the entry's record is itself a carrier, the kind of the record that it carries was in the bytes that
            // are now damaged. Records of the other kinds leave nothing of their key or message, so they are never carried.
            Kind::Unreadable
            | Kind::StepUnreadable
            | Kind::MessageUnreadable
            | Kind::Acknowledged
            | Kind::Forgotten
            | Kind::Ignorable => 0,
        };
        // An attempt that has begun must never expire, whatever expiry the entry states.
        let never = self.kind == Kind::Begun;
        Record {
            kind: match self.kind.domain() {
                Some(Domain::Step) => Kind::StepUnreadable,
                Some(Domain::Message) => Kind::MessageUnreadable,
                Some(Domain::Key) | None => Kind::Unreadable,
            },
            key: Key::new(b""),
            version: self.version,
            origin: Version::from_u64(0),
            fingerprint: Fingerprint::from_bytes(self.hash.to_le_bytes()),
            attempt: carried_kind,
            time_ms: now_ms,
            key_expires_ms: if never { NEVER_MS } else { self.key_expires_ms },
            result_expires_ms: if never { NEVER_MS } else { self.result_expires_ms },
            value: Value::bytes(bytes),
        }
    }
}

/// The length of the trailer as a `usize`, for array types. The bytes after the last field are zero.
pub(crate) const TRAILER: usize = 64;
/// The length of an entry as a `usize`, for array types.
pub(crate) const ENTRY: usize = footer_entry::KIND.end();

const _: () = assert!(trailer::LAST_CHECKSUM.end() <= TRAILER);

/// The length of an entry.
pub(crate) const ENTRY_BYTES: u64 = ENTRY as u64;
/// The length of the trailer.
pub(crate) const TRAILER_BYTES: u64 = TRAILER as u64;

const MAGIC: &[u8; 8] = b"ONCEFOOT";

/// The trailer of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// The number of entries.
    pub(crate) entry_count: u32,
    /// The sequence of the segment.
    pub(crate) sequence: u64,
    /// The sequence of the next segment.
    pub(crate) successor: u64,
    /// The position at which the frames end.
    pub(crate) end: u64,
    /// The total length of all records in the segment.
    pub(crate) record_bytes: u64,
    /// The checksum of the last frame.
    pub(crate) last_checksum: u32,
    /// The checksum of the footer.
    checksum: u32,
}

/// Returns the length of a footer with `entry_count` entries.
pub(crate) const fn footer_bytes(entry_count: u64) -> u64 {
    TRAILER_BYTES + entry_count * ENTRY_BYTES
}

/// What a footer states of its segment, apart from the entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// The number of entries.
    pub(crate) entry_count: u32,
    /// The sequence of the segment.
    pub(crate) sequence: u64,
    /// The position at which the frames end.
    pub(crate) end: u64,
    /// The total length of all records in the segment.
    pub(crate) record_bytes: u64,
    /// The checksum of the last frame.
    pub(crate) last_checksum: u32,
}

/// The maximum number of entries in a piece. Pieces are small enough that malloc takes their memory from the heap: after a
/// large buffer has been freed, glibc keeps twice its length at the top of the heap.
const PIECE_ENTRIES: usize = 2_048;

/// Encodes the footer of a segment: the entries in the order of the log, then the trailer. Calls `put` with one piece after
/// another, because a footer may have hundreds of megabytes. The last piece ends at the end of the slot.
pub(crate) fn encode<E>(
    entries: impl IntoIterator<Item = FooterEntry>,
    summary: &Summary,
    seed: Seed,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut trailer_bytes = [0; TRAILER];
    trailer::MAGIC.put(&mut trailer_bytes, *MAGIC);
    trailer::ENTRY_COUNT.put(&mut trailer_bytes, summary.entry_count.to_le_bytes());
    trailer::SEQUENCE.put(&mut trailer_bytes, summary.sequence.to_le_bytes());
    trailer::SUCCESSOR.put(&mut trailer_bytes, (summary.sequence + 1).to_le_bytes());
    trailer::END.put(&mut trailer_bytes, summary.end.to_le_bytes());
    trailer::RECORD_BYTES.put(&mut trailer_bytes, summary.record_bytes.to_le_bytes());
    trailer::LAST_CHECKSUM.put(&mut trailer_bytes, summary.last_checksum.to_le_bytes());
    let mut hasher = seed.hasher();
    hasher.update(&trailer_bytes[trailer::CHECKSUM.end()..]);

    let mut entries = entries.into_iter().peekable();
    let mut piece = Vec::new();
    while entries.peek().is_some() {
        for entry in entries.by_ref().take(PIECE_ENTRIES) {
            piece.extend_from_slice(&encode_entry(&entry));
        }
        hasher.update(&piece);
        if entries.peek().is_some() {
            put(&piece)?;
            piece.clear();
        }
    }
    trailer::CHECKSUM.put(&mut trailer_bytes, hasher.finalize().to_le_bytes());
    piece.extend_from_slice(&trailer_bytes);
    put(&piece)
}

fn encode_entry(entry: &FooterEntry) -> [u8; ENTRY] {
    let mut encoded = [0; ENTRY];
    let [length @ .., _] = units(entry.length).to_le_bytes();
    footer_entry::KEY_HASH.put(&mut encoded, entry.hash.to_le_bytes());
    footer_entry::VERSION.put(&mut encoded, entry.version.as_u64().to_le_bytes());
    footer_entry::KEY_EXPIRES_MS.put(&mut encoded, entry.key_expires_ms.to_le_bytes());
    footer_entry::RESULT_EXPIRES_MS.put(&mut encoded, entry.result_expires_ms.to_le_bytes());
    footer_entry::OFFSET.put(&mut encoded, units(entry.offset).to_le_bytes());
    footer_entry::LENGTH.put(&mut encoded, length);
    footer_entry::KIND.put(&mut encoded, [entry.kind.to_byte()]);
    encoded
}

/// Converts a length or an offset to units of [`ALIGNMENT_BYTES`].
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / ALIGNMENT_BYTES)
        .unwrap_or_else(|_| unreachable!("a length or an offset within a segment"))
}

impl Trailer {
    /// Decodes the last bytes of a slot as the trailer of segment `sequence`.
    ///
    /// The caller must not rely on the trailer before [`Checker::finish`] has succeeded, because the checksum covers the entries too
    /// and is not checked here. But `entry_count` has been checked against the segment size, so the caller may read that many
    /// entries.
    pub(crate) fn decode(
        bytes: &[u8; TRAILER],
        sequence: u64,
        segment_bytes: u64,
    ) -> Result<Trailer, FormatError> {
        if !bytes.starts_with(MAGIC) || trailer::SEQUENCE.u64(bytes) != sequence {
            return Err(FormatError::Damaged("no footer of this segment"));
        }
        let decoded = Trailer {
            entry_count: trailer::ENTRY_COUNT.u32(bytes),
            sequence,
            successor: trailer::SUCCESSOR.u64(bytes),
            end: trailer::END.u64(bytes),
            record_bytes: trailer::RECORD_BYTES.u64(bytes),
            last_checksum: trailer::LAST_CHECKSUM.u32(bytes),
            checksum: trailer::CHECKSUM.u32(bytes),
        };
        if footer_bytes(u64::from(decoded.entry_count)) > segment_bytes {
            return Err(FormatError::Damaged("the footer is longer than its segment"));
        }
        if decoded.record_bytes > segment_bytes {
            return Err(FormatError::Damaged(
                "the footer states more bytes of records than its segment can hold",
            ));
        }
        if decoded.end / segment_bytes != sequence || decoded.successor != sequence + 1 {
            return Err(FormatError::Damaged("the footer is that of another segment"));
        }
        Ok(decoded)
    }
}

/// Whether these bytes are the trailer of segment `sequence`, intact or damaged.
///
/// At least two of magic, sequence and successor must match. In a trailer that an earlier segment left in the slot, at most
/// one of them does, and in zeroes or garbage none.
pub(crate) fn may_be_damaged_trailer_of(trailer_bytes: &[u8; TRAILER], sequence: u64) -> bool {
    let matches = [
        trailer_bytes.starts_with(MAGIC),
        trailer::SEQUENCE.u64(trailer_bytes) == sequence,
        trailer::SUCCESSOR.u64(trailer_bytes) == sequence + 1,
    ];
    matches.into_iter().filter(|matches| *matches).count() >= 2
}

/// Decodes entries one by one. Yields an error for an entry whose kind is unknown to this version of the library.
#[derive(Debug, Clone)]
pub(crate) struct Entries<'a>(std::slice::Iter<'a, [u8; ENTRY]>);

impl Iterator for Entries<'_> {
    type Item = Result<FooterEntry, FormatError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(decode_entry)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// The number of entries that [`Checker::add`] handles at a time: 12 KiB, which stay in the first-level cache.
const CHECKED_TOGETHER: usize = 256;

/// Checks a footer piece by piece.
///
/// The caller must discard the entries that it got if any step fails. The checksum is known only at the end: each piece of
/// the footer is taken right after it was added to the checksum, while it is in the cache.
pub(crate) struct Checker<'a> {
    trailer_bytes: &'a [u8; TRAILER],
    segment_bytes: u64,
    hasher: Hasher,
    /// The number of entries so far.
    entry_count: usize,
    /// Where the last record so far ends, as an offset in the slot.
    previous_end: u64,
}

impl<'a> Checker<'a> {
    /// Begins to check the footer with this trailer.
    pub(crate) fn new(trailer_bytes: &'a [u8; TRAILER], segment_bytes: u64, seed: Seed) -> Checker<'a> {
        let mut hasher = seed.hasher();
        hasher.update(&trailer_bytes[trailer::CHECKSUM.end()..]);
        Checker { trailer_bytes, segment_bytes, hasher, entry_count: 0, previous_end: FIRST_FRAME_OFFSET }
    }

    /// Checks the next bytes, which are whole entries, and calls `take` with the entries, some at a time.
    ///
    /// # Errors
    ///
    /// The length does not match, a record is out of order or does not lie within the segment, or `take` failed.
    pub(crate) fn add(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Entries<'_>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(WRONG_LENGTH);
        }
        self.entry_count += entries.len();
        // The index is filled with these offsets, and reclaiming uses them to find the records of a segment. So each record
        // must be listed once, in the order of the segment, and lie within it.
        let mut previous_end = self.previous_end;
        for piece in entries.chunks(CHECKED_TOGETHER) {
            self.hasher.update(piece.as_flattened());
            for entry in piece {
                let (offset, length) = record_span(entry);
                if offset < previous_end || length == 0 || offset + length > self.segment_bytes {
                    return Err(FormatError::Damaged(
                        "the footer lists a record out of order or outside its segment",
                    ));
                }
                previous_end = offset + length;
            }
            take(Entries(piece.iter()))?;
        }
        self.previous_end = previous_end;
        Ok(())
    }

    /// Checks the checksum, after all entries.
    ///
    /// # Errors
    ///
    /// The checksum or the number of entries does not match.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        if self.entry_count != trailer::ENTRY_COUNT.u32(self.trailer_bytes) as usize {
            return Err(WRONG_LENGTH);
        }
        let checksum = trailer::CHECKSUM.u32(self.trailer_bytes);
        if self.hasher.finalize() != checksum && !planted(Bug::FooterUnchecked) {
            return Err(FormatError::Damaged("the footer's checksum does not match"));
        }
        Ok(())
    }
}

const WRONG_LENGTH: FormatError = FormatError::Damaged("the footer's length does not match its entry count");

/// Returns the offset of an entry's record in its slot and the length of the record, in bytes.
#[inline]
fn record_span(entry: &[u8; ENTRY]) -> (u64, u64) {
    let [low, middle, high] = footer_entry::LENGTH.get(entry);
    let length_units = u32::from_le_bytes([low, middle, high, 0]);
    let offset_units = footer_entry::OFFSET.u32(entry);
    (u64::from(offset_units) * ALIGNMENT_BYTES, u64::from(length_units) * ALIGNMENT_BYTES)
}

#[inline]
fn decode_entry(entry: &[u8; ENTRY]) -> Result<FooterEntry, FormatError> {
    let (offset, length) = record_span(entry);
    Ok(FooterEntry {
        hash: footer_entry::KEY_HASH.u128(entry),
        version: Version::from_u64(footer_entry::VERSION.u64(entry)),
        key_expires_ms: footer_entry::KEY_EXPIRES_MS.u64(entry),
        result_expires_ms: footer_entry::RESULT_EXPIRES_MS.u64(entry),
        offset,
        length,
        kind: Kind::from_byte(footer_entry::KIND.u8(entry))
            .ok_or(FormatError::Unknown("the footer lists a record of an unknown kind"))?,
    })
}

/// Encodes a footer whole. The entry count of the summary need not be set.
#[cfg(test)]
pub(crate) fn encode_whole(entries: Vec<FooterEntry>, summary: Summary, seed: Seed) -> Vec<u8> {
    let summary = Summary { entry_count: u32::try_from(entries.len()).unwrap(), ..summary };
    let mut bytes = Vec::new();
    let Ok(()) = encode(entries, &summary, seed, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), std::convert::Infallible>(())
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::layout::Field;
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

    /// Encodes the footer of segment 6.
    fn encoded(entries: Vec<FooterEntry>, end: u64, record_bytes: u64) -> Vec<u8> {
        let summary = Summary { entry_count: 0, sequence: 6, end, record_bytes, last_checksum: 0xAA };
        encode_whole(entries, summary, SEED)
    }

    #[test]
    fn a_long_footer_is_encoded_in_pieces() {
        const COUNT: usize = 2 * PIECE_ENTRIES + 1;
        let segment = 1 << 20;
        let entries: Vec<FooterEntry> = (0..COUNT as u64)
            .map(|n| FooterEntry { hash: n.into(), offset: 4_096 + n * 80, ..entries()[0] })
            .collect();
        let summary = Summary {
            entry_count: u32::try_from(COUNT).unwrap(),
            sequence: 6,
            end: 6 * segment + 500_000,
            record_bytes: 80 * COUNT as u64,
            last_checksum: 0xAA,
        };
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let put = |piece: &[u8]| -> Result<(), ()> {
            pieces.push(piece.to_vec());
            Ok(())
        };
        encode(entries.clone(), &summary, SEED, put).unwrap();
        assert_eq!(
            pieces.iter().map(Vec::len).collect::<Vec<_>>(),
            [PIECE_ENTRIES * ENTRY, PIECE_ENTRIES * ENTRY, ENTRY + TRAILER]
        );
        let bytes = pieces.concat();
        let (body, trailer) = parts(&bytes);
        let mut decoded = Vec::new();
        let take = |piece: Entries<'_>| {
            decoded.extend(piece.map(Result::unwrap));
            Ok(())
        };
        check(body, trailer, segment, take).unwrap();
        assert_eq!(decoded, entries);

        let in_two_pieces = |body: &[u8], second_from: usize| {
            let mut checker = Checker::new(trailer, segment, SEED);
            checker.add(&body[..2_048 * ENTRY], |_| Ok(()))?;
            checker.add(&body[second_from * ENTRY..], |_| Ok(()))?;
            checker.finish().map_err(FormatError::reason).map_err(FormatError::Damaged)
        };
        assert!(in_two_pieces(body, 2_048).is_ok());
        let reason = |second_from| in_two_pieces(body, second_from).err().map(FormatError::reason);
        assert_eq!(reason(2_047), Some("the footer lists a record out of order or outside its segment"));
        assert_eq!(reason(2_049), Some("the footer's length does not match its entry count"));

        let mut puts = 0;
        let refused = encode(entries, &summary, SEED, |_| {
            puts += 1;
            Err("a piece")
        });
        assert_eq!((refused, puts), (Err("a piece"), 1), "no piece is written after one that failed");
    }

    /// Checks a footer that is read as a whole.
    fn check(
        body: &[u8],
        trailer_bytes: &[u8; TRAILER],
        segment_bytes: u64,
        take: impl FnMut(Entries<'_>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut checker = Checker::new(trailer_bytes, segment_bytes, SEED);
        checker.add(body, take)?;
        checker.finish()
    }

    fn parts(bytes: &[u8]) -> (&[u8], &[u8; TRAILER]) {
        bytes.split_last_chunk::<TRAILER>().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(Trailer, Vec<FooterEntry>), FormatError> {
        let (body, trailer) = parts(bytes);
        let mut entries = Vec::new();
        check(body, trailer, SEGMENT, |piece| {
            for entry in piece {
                entries.push(entry?);
            }
            Ok(())
        })?;
        Ok((Trailer::decode(trailer, 6, SEGMENT)?, entries))
    }

    #[test]
    fn a_footer_round_trips() {
        let bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
        assert_eq!(bytes.len() as u64, footer_bytes(3));
        let (trailer, read_entries) = read(&bytes).unwrap();
        assert_eq!(read_entries, entries());
        assert_eq!((trailer.entry_count, trailer.successor, trailer.end), (3, 7, 6 * SEGMENT + 9_000));
        assert_eq!((trailer.record_bytes, trailer.last_checksum), (240, 0xAA));
    }

    #[test]
    fn every_flipped_bit_of_a_footer_is_detected() {
        let bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_trailer_is_distinguished_from_a_left_over_one() {
        let bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
        let (_, trailer) = parts(&bytes);
        for byte in 0..TRAILER {
            let mut damaged = *trailer;
            damaged[byte] ^= 0xFF;
            assert!(may_be_damaged_trailer_of(&damaged, 6), "byte {byte}");
        }
        assert!(!may_be_damaged_trailer_of(trailer, 9), "left over from segment 6");
        assert!(!may_be_damaged_trailer_of(&[0; TRAILER], 6));
    }

    #[test]
    fn a_footer_of_a_different_sequence_is_refused() {
        let bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
        let (_, trailer) = parts(&bytes);
        assert!(Trailer::decode(trailer, 7, SEGMENT).is_err());
    }

    fn checksum_of(trailer_bytes: &[u8], entries: &[u8], seed: Seed) -> u32 {
        let mut hasher = seed.hasher();
        hasher.update(&trailer_bytes[trailer::CHECKSUM.end()..TRAILER]);
        hasher.update(entries);
        hasher.finalize()
    }

    /// Changes a field of the trailer and corrects the checksum.
    fn forge<const N: usize>(bytes: &mut [u8], field: Field<N>, value: [u8; N]) {
        let (body, trailer_bytes) = bytes.split_at_mut(bytes.len() - TRAILER);
        field.put(trailer_bytes, value);
        let checksum = checksum_of(trailer_bytes, body, SEED);
        trailer::CHECKSUM.put(trailer_bytes, checksum.to_le_bytes());
    }

    /// A checksum can be forged. Later code adds up these numbers, so none may exceed what fits into a segment.
    #[test]
    fn a_trailer_beyond_the_limits_of_a_segment_is_refused() {
        fn decode<const N: usize>(field: Field<N>, value: [u8; N]) -> Result<Trailer, &'static str> {
            let mut bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
            forge(&mut bytes, field, value);
            Trailer::decode(parts(&bytes).1, 6, SEGMENT).map_err(FormatError::reason)
        }
        let max_count = (SEGMENT - TRAILER_BYTES) / ENTRY_BYTES;
        let count = |count: u64| decode(trailer::ENTRY_COUNT, u32::try_from(count).unwrap().to_le_bytes());
        assert!(count(max_count).is_ok());
        assert_eq!(count(max_count + 1), Err("the footer is longer than its segment"));
        let record_bytes = |bytes: u64| decode(trailer::RECORD_BYTES, bytes.to_le_bytes());
        assert!(record_bytes(SEGMENT).is_ok());
        let more = Err("the footer states more bytes of records than its segment can hold");
        assert_eq!(record_bytes(SEGMENT + 1), more);
        assert_eq!(record_bytes(u64::MAX), more);
        let another = Err("the footer is that of another segment");
        assert_eq!(decode(trailer::END, (7 * SEGMENT).to_le_bytes()), another);
        assert_eq!(decode(trailer::SUCCESSOR, 8_u64.to_le_bytes()), another);
    }

    #[test]
    fn a_footer_with_a_wrong_entry_count_or_length_is_refused() {
        let mut bytes = encoded(entries(), 6 * SEGMENT + 9_000, 240);
        forge(&mut bytes, trailer::ENTRY_COUNT, 2_u32.to_le_bytes());
        assert_eq!(
            read(&bytes).err().map(FormatError::reason),
            Some("the footer's length does not match its entry count")
        );
        forge(&mut bytes, trailer::ENTRY_COUNT, 3_u32.to_le_bytes());
        assert!(read(&bytes).is_ok());
        let mut longer = vec![0; 8];
        longer.extend_from_slice(&bytes);
        forge(&mut longer, trailer::ENTRY_COUNT, 3_u32.to_le_bytes());
        assert_eq!(
            read(&longer).err().map(FormatError::reason),
            Some("the footer's length does not match its entry count")
        );
    }

    #[test]
    fn footer_entries_must_be_in_order_and_within_the_segment() {
        let reason = |change: fn(&mut [FooterEntry])| {
            let mut entries = entries();
            change(&mut entries);
            let bytes = encoded(entries, 6 * SEGMENT + 9_000, 240);
            read(&bytes).map(drop).map_err(FormatError::reason)
        };
        let wrong = Err("the footer lists a record out of order or outside its segment");
        assert_eq!(reason(|_| {}), Ok(()));
        assert_eq!(reason(|entries| entries.swap(0, 1)), wrong);
        assert_eq!(reason(|entries| entries[1].offset = entries[0].offset), wrong, "the same offset twice");
        assert_eq!(reason(|entries| entries[0].length = 88), wrong, "overlaps the next record");
        assert_eq!(reason(|entries| entries[0].offset = 4_096), Ok(()), "the first possible offset");
        assert_eq!(reason(|entries| entries[0].offset = 4_088), wrong, "before the frames");
        assert_eq!(
            reason(|entries| entries[2].offset = SEGMENT - 80),
            Ok(()),
            "up to the last byte of the segment"
        );
        assert_eq!(reason(|entries| entries[2].offset = SEGMENT - 72), wrong);
        assert_eq!(reason(|entries| entries[2].length = 0), wrong);
    }

    #[test]
    fn zeroes_are_no_trailer() {
        assert!(Trailer::decode(&[0; TRAILER], 6, SEGMENT).is_err());
    }

    #[test]
    fn a_footer_may_fill_its_segment() {
        let segment_bytes = footer_bytes(3);
        let bytes = encoded(entries(), 6 * segment_bytes + 8, 0);
        assert!(
            Trailer::decode(parts(&bytes).1, 6, segment_bytes).is_ok(),
            "entries and trailer may fill the segment to the last byte"
        );
    }
}
