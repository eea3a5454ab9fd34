//! Encodes and decodes every structure of a store's file. Pure functions: no I/O and no state.
//!
//! Offsets of fields are the constants of [`layout`]. A decoder accepts only bytes that an encoder can have written. It
//! checks the checksum, and then every number that later code uses in a sum or an allocation. Golden files under
//! `tests/golden` pin the bytes. The page that follows is the specification, which `oncekey::guide` publishes.
//!
#![doc = include_str!("format.md")]

// Each module uses only those above it.
pub(crate) mod layout;
pub(crate) mod header;
mod kind;
pub(crate) mod record;
pub(crate) mod frame;
pub(crate) mod footer;
#[cfg(feature = "__simulation")]
pub mod probe;

use std::fmt;

/// The version of the file format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The length of a sector. A crash keeps or loses the bytes of a sector together.
pub(crate) const SECTOR_BYTES: usize = 512;
/// The length of the store header. Slot 0 follows it.
pub(crate) const STORE_HEADER_BYTES: u64 = 4_096;
/// The offset of the first frame in a slot.
pub(crate) const FIRST_FRAME_OFFSET: u64 = 4_096;
/// The alignment of frames and records: their offsets and lengths are multiples of this.
pub(crate) const ALIGNMENT_BYTES: u64 = 8;
/// The minimum size of a segment.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// The maximum size of a segment. An offset in the segment, in units of 8 bytes, fits into the 4 bytes of a footer entry,
/// and a length in bytes fits into the 4 bytes of a frame header.
pub(crate) const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// The expiry of a key or a result that never expires.
pub(crate) const NEVER_MS: u64 = u64::MAX;

// A footer entry has 24 bits for the length of a record in units of 8 bytes.
const _: () = assert!(MAX_RECORD_BYTES / ALIGNMENT_BYTES < 1 << 24);
const _: () = assert!(FIRST_FRAME_OFFSET.is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(STORE_HEADER_BYTES.is_multiple_of(SECTOR_BYTES as u64));

/// The maximum length of a record and of a frame in segments of any size. A footer entry can state up to twice as much.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Returns the maximum length of a frame in segments of `segment_bytes`.
pub(crate) const fn max_frame_bytes(segment_bytes: u64) -> u64 {
    let quarter = segment_bytes / 4;
    if quarter < MAX_RECORD_BYTES { quarter } else { MAX_RECORD_BYTES }
}

/// Why bytes could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// The bytes are not what was written.
    Damaged(&'static str),
    /// A later version of the format wrote the bytes. If they were mistaken for a torn tail, they would be overwritten.
    Unknown(&'static str),
}

impl FormatError {
    /// Returns the check that failed, in words.
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

/// The seed of a file's checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// No seed, for headers, which are read before the file id is known.
    pub(crate) const NONE: Seed = Seed(0);

    /// Returns the seed of the file with this id.
    pub(crate) fn of_file(file_id: &[u8; 16]) -> Seed {
        Seed(crc32fast::hash(file_id))
    }

    /// Returns a checksum computation that continues from the seed.
    pub(crate) fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0)
    }

    /// Returns the checksum of `bytes`.
    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What the caller that first opened a copy said about what the copy may have forgotten. All zero in a file that is not a copy,
/// and in a copy that was not opened yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CopyState {
    /// Until this store time, a key that the store does not know is in doubt.
    pub(crate) in_doubt_until_ms: u64,
    /// The open count of the session that stated this; 0 if none has.
    pub(crate) answered_by: u32,
}

/// Returns `length_bytes` rounded up to a multiple of [`ALIGNMENT_BYTES`].
pub(crate) const fn align(length_bytes: u64) -> u64 {
    length_bytes.next_multiple_of(ALIGNMENT_BYTES)
}

/// Returns a length as the 4 bytes that the format has for it. All lengths are bounded by [`max_frame_bytes`].
pub(crate) fn narrow(length_bytes: usize) -> u32 {
    u32::try_from(length_bytes).unwrap_or_else(|_| unreachable!("lengths are bounded by max_frame_bytes"))
}

#[cfg(test)]
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_at_most_a_quarter_of_a_segment_and_64_mib() {
        for (segment_bytes, expected) in
            [(64 << 10, 16 << 10), (128 << 20, 32 << 20), (256 << 20, 64 << 20), (1 << 30, 64 << 20)]
        {
            assert_eq!(max_frame_bytes(segment_bytes), expected);
        }
    }

    #[test]
    fn an_error_displays_its_reason() {
        assert_eq!(FormatError::Damaged("torn").to_string(), "torn");
        assert_eq!(FormatError::Unknown("of a later version").reason(), "of a later version");
    }
}
