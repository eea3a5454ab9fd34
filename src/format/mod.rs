//! The bytes of a store's file, format version 1. This page is the specification; golden files under
//! `tests/golden` pin it.
//!
//! Everything here is pure: bytes in, values out, and back. Numbers are little-endian, fields are at fixed offsets,
//! records and frames are multiples of 8 bytes long and start at multiples of 8.
//!
//! ```text
//! | store header (4,096 bytes) | slot 0 | slot 1 | slot 2 | ...      slot = segment_size bytes
//! ```
//!
//! # Parameter block
//!
//! The store header and every segment header carry it at the same offsets, so that a file whose store header is
//! lost can still be read.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `ONCEKEY` 0x1A in the store header, `ONCESEGM` in a segment header |
//! | 8 | 4 | checksum of bytes 12..512 (not seeded; its place and range are the same in every format version) |
//! | 12 | 4 | format version: 1 |
//! | 16 | 4 | compatible features: unknown bits are ignored |
//! | 20 | 4 | read-compatible features: with unknown bits the file can be read and not written |
//! | 24 | 4 | incompatible features: with unknown bits the file cannot be read |
//! | 28 | 4 | segment size in bytes, a power of two from 64 KiB to 1 GiB |
//! | 32 | 16 | file id, random |
//! | 48 | 16 | secret key of the hash, random |
//! | 64 | 1 | checksum algorithm: 1 = CRC-32 (ISO-HDLC) |
//! | 65 | 1 | hash algorithm: 1 = SipHash-2-4 with 128-bit output |
//! | 66 | 1 | cipher: 0 = none |
//! | 67 | 1 | zero |
//! | 68 | 4 | zero |
//!
//! The **store header** is the parameter block in the file's first sector (512 bytes), zeroes up to 4,096. It is
//! written last when the file is created and never again: a file that is empty, or whose first sector is zero and
//! which holds nothing that looks like a frame or a close mark, is one whose creation was cut short.
//!
//! # Slot
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 512 | segment header |
//! | 512 | 512 | first close mark |
//! | 1,024 | 512 | second close mark, the same bytes |
//! | 1,536 | 2,560 | zero |
//! | 4,096 | .. | frames, end to end |
//! | .. | 48 each | footer entries |
//! | segment size - 64 | 64 | footer trailer |
//!
//! The log is a run of segments, numbered by sequence from 1. A **position** is
//! `sequence x segment size + offset in the slot`. Which slot holds which sequence is said by the segment headers
//! alone.
//!
//! ## Segment header
//!
//! The parameter block, and:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 72 | 8 | sequence |
//! | 80 | 8 | head: the oldest sequence of the log; the highest value in any header holds |
//! | 88 | 8 | position at which the frames of the segment before end; 0 in sequence 1 |
//! | 96 | 4 | checksum of the last frame before this segment; 0 if there is none |
//! | 100 | 4 | open count |
//! | 104 | 40 | mark of time (see [Time](#time)) |
//! | 144 | 8 | `synced_to`: everything before this position of the segment was on disk when the header was written; 0 = not said |
//!
//! The header of sequence N+1 is written when everything in N is on disk, and synced before footer N is written. It
//! may be rewritten in place with a higher head, and then says by `synced_to` how far the moved records are on disk
//! whose originals the head gives up; or with the open count and the mark of an opening for whose frame there was no
//! room. The first header of a file is that of its creation: open count 0, and the first mark of time.
//!
//! ## Close mark
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ONCEMARK` |
//! | 8 | 4 | checksum of bytes 12..512, seeded |
//! | 12 | 4 | checksum of the log's last frame; 0 if there is none |
//! | 16 | 8 | position at which the log ends |
//! | 24 | 4 | open count |
//! | 28 | 4 | zero |
//! | 32 | 40 | mark of time |
//! | 72 | 8 | counter: of the last version that was given out under this open count |
//!
//! Written into the last segment when the store is closed: everything below the position is on disk. A mark whose
//! position lies in another sequence than its slot's is a left-over and means nothing.
//!
//! ## Frame
//!
//! What one commit writes: a header of 56 bytes and the records of everybody who waited for it. It never spans
//! segments and is at most a quarter of one.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | checksum of bytes 4..56, seeded |
//! | 4 | 4 | length in bytes, this header included |
//! | 8 | 8 | position of this frame |
//! | 16 | 8 | `synced_to`: everything before this position was on disk when the frame was written |
//! | 24 | 4 | checksum of the frame before; 0 in the first frame of the log |
//! | 28 | 4 | checksum over the checksums of the records, in order, seeded |
//! | 32 | 4 | open count |
//! | 36 | 4 | number of records; 0 in the frame that starts an opening |
//! | 40 | 8 | store time, ms since the Unix epoch |
//! | 48 | 8 | wall clock at that time, ms since the Unix epoch |
//!
//! The **frame that starts an opening** is 80 bytes long and has no records. The checksum at 28 is that of its bytes
//! 56..80, seeded, and they complete its store time and wall clock to a mark of time:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 56 | 16 | boot |
//! | 72 | 8 | boot-time clock in ms |
//!
//! A stale frame in a recycled slot cannot pass: its position is wrong.
//!
//! ## Record
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | checksum: of bytes 4..length, seeded, xor the place of the record (see below) |
//! | 4 | 4 | length in bytes, padding included |
//! | 8 | 1 | kind |
//! | 9 | 1 | flags: 1 = the key has a scope, 2 = there is a result, 4 = completed with a result that was not recorded (never with 2) |
//! | 10 | 2 | key length, 1 to 1,024 |
//! | 12 | 2 | scope length, 0 to 1,024 |
//! | 14 | 2 | extension length: 0, 4 or 12 |
//! | 16 | 8 | version |
//! | 24 | 8 | origin: the version of the first begin of this life of the key |
//! | 32 | 16 | fingerprint |
//! | 48 | 4 | attempt |
//! | 52 | 4 | value length |
//! | 56 | 8 | store time of the change, ms since the Unix epoch |
//! | 64 | 8 | key expiry: store time from which the key is absent; 2^64-1 = never |
//! | 72 | 8 | result expiry: store time from which the result is gone; 2^64-1 = never |
//! | 80 | .. | extension, scope, key, value, zeroes up to a multiple of 8 |
//!
//! The extension is there if the typed interface made the record. A reader that meets another one refuses the file.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | number: 1 = typing |
//! | 1 | 1 | length of what follows: 2 or 10 |
//! | 2 | 1 | fingerprint scheme: 0 = the caller made the fingerprint, 1 = it is of the request's meaning |
//! | 3 | 1 | number of the codec: below 128 of this crate (1 bincode, 2 JSON), from 128 on of the program |
//! | 4 | 8 | shape of the result, if the codec is positional and there is a result |
//!
//! Kinds: 1 begun, 2 completed, 3 released, 4 forgotten, 5 unreadable (see below). 16 to 31 are kept for steps, 32 to 47 for the outbox, 48 to
//! 63 for batches. A reader that meets a kind that it does not know refuses the file, unless the kind's highest bit
//! (0x80, "ignorable") is set.
//!
//! The **place** of a record at position `p` is the upper half of `p x 0x9E3779B97F4A7C15` (mod 2^64). It ties a
//! record to its position, so that a lookup that checks one record cannot take a left-over for it.
//!
//! A record of kind 5 carries along the bytes of a record that did not check when its segment was retired, so that its key
//! does not look as if nothing were known of it. Such a record checks, has no key and no scope, and these fields mean
//! something else in it:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 16 | 8 | version, as the footer said |
//! | 24 | 8 | zero |
//! | 32 | 16 | keyed hash of the key, as the footer said |
//! | 48 | 4 | kind of the record that is carried: 1, 2 or 3; 0 = not known, because it was of kind 5 |
//! | 56 | 8 | store time at which it was first carried |
//! | 64 | 8 | key expiry, as the footer said; never, if kind 1 is carried |
//! | 72 | 8 | result expiry, likewise |
//! | 80 | .. | the bytes as they were found, as many as the footer said or a frame can hold |
//!
//! Its entry in a footer has the hash that it holds.
//!
//! ## Footer
//!
//! Of a full segment; written after the header of the next one is on disk. One entry for each key, its last record
//! in the segment, ordered by offset:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | keyed hash of the key |
//! | 16 | 8 | version |
//! | 24 | 8 | key expiry |
//! | 32 | 8 | result expiry |
//! | 40 | 4 | offset of the record in the slot, in units of 8 bytes |
//! | 44 | 3 | length of the record, in units of 8 bytes |
//! | 47 | 1 | kind |
//!
//! and the trailer, last in the slot:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ONCEFOOT` |
//! | 8 | 4 | checksum, seeded, of the trailer's bytes 12..64 and then of the entries |
//! | 12 | 4 | number of entries |
//! | 16 | 8 | sequence |
//! | 24 | 8 | sequence of the successor |
//! | 32 | 8 | position at which the frames end |
//! | 40 | 8 | bytes of all records in the segment |
//! | 48 | 4 | checksum of the last frame |
//! | 52 | 12 | zero |
//!
//! # What a later frame attests
//!
//! A frame header that checks says by its `synced_to` that everything before that position was on disk. So a place
//! that does not check, with such a header behind it, is damage; without one it is the end of the log, and what
//! follows was acknowledged to nobody, except for what was not on disk when the last frame was written and came to be so
//! after that: that frame, what was being synced then, and what had been written since that sync began or, if there was
//! none, since the last one. Whether this was torn by a crash or damaged after it cannot be told, nor can it of the frame
//! before, if the sector that is damaged is the one in which the last frame's header stands. A close mark at the end of the
//! log takes this window away.
//!
//! That there is a last segment is said by its own header and frames, and by the footer of the one before it. Where both
//! are lost, in two places of the file, nothing is left that speaks of it, and the log ends before it.
//!
//! # Time
//!
//! A **mark of time** is what all clocks say at one moment:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | store time, ms since the Unix epoch |
//! | 8 | 8 | wall clock, ms since the Unix epoch |
//! | 16 | 16 | boot: what the operating system calls it (on Linux the UUID, as it is printed); 0 = unknown, which no other equals |
//! | 32 | 8 | boot-time clock in ms, which starts at some moment of that boot, runs while the machine is suspended and cannot be set |
//!
//! Segment headers, frames that start an opening and close marks hold whole ones. Every other frame holds store time and
//! wall clock, so that a step of the wall clock during a session is known after a crash. Its boot is that of the latest
//! mark before it, and the boot-time clock follows: that of the mark, plus the store time that passed since, less at most
//! a 1,800th of that, which may have been followed of the wall clock.
//!
//! The latest mark is found in the last segment, in this order: its header, frame by frame, and the close mark if the log
//! ends there. The header comes before the first frame whose open count is not lower than its own, so behind all of them
//! if it was written again for an opening without a frame; and behind a close mark with a lower open count.
//!
//! Each mark is written whole or not at all: in one sector that held synced bytes before (a header written in place, a
//! close mark), or under a frame's checksum. A crash at any moment of an opening therefore leaves the mark before it or its
//! own, and never one of both: either the next opening finds that this one happened, or it is as if it had not, and
//! bridges the time since the mark before by the same rules. Nothing was acknowledged by then.
//!
//! # Versions
//!
//! A version is 24 bits of open count and 40 bits of counter. An opening goes on with open count and counter of the close
//! mark, if the log ends at that mark, no higher open count is anywhere, what follows it does not look like a torn frame
//! (the position or the checksum of the frame before, where a frame would have them), there is room for the opening's
//! frame, and less than half of the counter is used up. Otherwise it takes the next open count and counts from zero. Its
//! frame, or header, is on disk before the first version is given out: from then on the log no longer ends at the mark,
//! or a higher open count is there.
//!
//! # Checksums
//!
//! CRC-32 (ISO-HDLC). Where it says *seeded*, the computation starts from the CRC-32 of the file id instead of
//! from zero, so that bytes of another file, left over on the medium, do not pass.

pub(crate) mod footer;
pub(crate) mod frame;
pub(crate) mod header;
#[cfg(feature = "__simulation")]
pub mod probe;
pub(crate) mod record;

use std::fmt;

/// The version of the format that this page specifies.
pub const FORMAT_VERSION: u32 = 1;

/// The unit in which a medium keeps or loses bytes.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Where slot 0 begins.
pub(crate) const STORE_HEADER_BYTES: u64 = 4_096;
/// Where the frames of a slot begin, from the slot's start.
pub(crate) const FIRST_FRAME_OFFSET: u64 = 4_096;
/// Everything in the log is aligned to this.
pub(crate) const ALIGNMENT_BYTES: u64 = 8;
/// The smallest slot.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// The largest slot; its offsets in units of 8 fit a footer entry's 4 bytes, its frames' lengths 4 bytes.
pub(crate) const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// "Never" as an expiry.
pub(crate) const NEVER_MS: u64 = u64::MAX;

// A record is at most a quarter of a segment, and its length in units of 8 has 24 bits in a footer entry.
const _: () = assert!(MAX_SEGMENT_BYTES / 4 / ALIGNMENT_BYTES <= 1 << 25);
const _: () = assert!(MAX_RECORD_BYTES / ALIGNMENT_BYTES < 1 << 24);
const _: () = assert!(FIRST_FRAME_OFFSET.is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(STORE_HEADER_BYTES.is_multiple_of(SECTOR_BYTES as u64));

/// No record is longer, whatever the segment size: what a footer entry's 24 bits can say.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// The longest frame in segments of this size.
pub(crate) const fn max_frame_bytes(segment_bytes: u64) -> u64 {
    let quarter = segment_bytes / 4;
    if quarter < MAX_RECORD_BYTES { quarter } else { MAX_RECORD_BYTES }
}

/// Which check some bytes did not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// They are not what was written.
    Damaged(&'static str),
    /// They are just what was written, by a later version of the format. Never to be taken for a torn tail.
    Unknown(&'static str),
}

impl FormatError {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            FormatError::Damaged(reason) | FormatError::Unknown(reason) => reason,
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.reason())
    }
}

/// Where the checksums of one file start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// No seed: for what must be readable before the file id is known.
    pub(crate) const NONE: Seed = Seed(0);

    pub(crate) fn of_file(file_id: &[u8; 16]) -> Seed {
        Seed(crc32fast::hash(file_id))
    }

    pub(crate) fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0)
    }

    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// The next multiple of 8.
pub(crate) const fn align(length_bytes: u64) -> u64 {
    length_bytes.next_multiple_of(ALIGNMENT_BYTES)
}

/// A length that the format bounds far below 2^32, in the width that the format gives it.
pub(crate) fn narrow(length_bytes: usize) -> u32 {
    u32::try_from(length_bytes).unwrap_or_else(|_| unreachable!("lengths are bounded by max_frame_bytes"))
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_at_most_a_quarter_of_its_segment_and_no_longer_than_a_footer_can_say() {
        for (segment_bytes, expected) in
            [(64 << 10, 16 << 10), (128 << 20, 32 << 20), (256 << 20, 64 << 20), (1 << 30, 64 << 20)]
        {
            assert_eq!(max_frame_bytes(segment_bytes), expected);
        }
    }

    #[test]
    fn a_fault_says_its_reason() {
        assert_eq!(FormatError::Damaged("torn").to_string(), "torn");
        assert_eq!(FormatError::Unknown("of a later version").reason(), "of a later version");
    }
}
