//! Encodes and decodes every structure of a store's file. Pure functions: no I/O and no state.
//!
//! Offsets of fields are the constants of [`layout`]. A decoder accepts only what can have been written: it checks the
//! checksum and then every number that later code adds up or allocates by. Golden files under `tests/golden` pin the
//! bytes. The page that follows is the specification, which `oncekey::guide` publishes.
//!
#![doc = include_str!("format.md")]

// Each module uses only those above it.
pub(crate) mod layout;
pub(crate) mod header;
pub(crate) mod record;
pub(crate) mod frame;
pub(crate) mod footer;
#[cfg(feature = "__simulation")]
pub mod probe;

use std::fmt;

/// The version of the file format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The unit in which a crash keeps or loses bytes.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Length of the store header; slot 0 begins behind it.
pub(crate) const STORE_HEADER_BYTES: u64 = 4_096;
/// Offset of the first frame in a slot.
pub(crate) const FIRST_FRAME_OFFSET: u64 = 4_096;
/// Frames and records begin at multiples of this and are multiples of it long.
pub(crate) const ALIGNMENT_BYTES: u64 = 8;
/// The smallest segment.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// The largest segment. An offset in it, in units of 8 bytes, fits the 4 bytes of a footer entry; a length in it fits the 4
/// bytes of a frame header.
pub(crate) const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// The expiry of what never expires.
pub(crate) const NEVER_MS: u64 = u64::MAX;

// The length of a record, in units of 8 bytes, has 24 bits in a footer entry.
const _: () = assert!(MAX_RECORD_BYTES / ALIGNMENT_BYTES < 1 << 24);
const _: () = assert!(FIRST_FRAME_OFFSET.is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(STORE_HEADER_BYTES.is_multiple_of(SECTOR_BYTES as u64));

/// The longest record and the longest frame, whatever the segment size. A footer entry can state up to twice as much.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// The longest frame in segments of `segment_bytes`.
pub(crate) const fn max_frame_bytes(segment_bytes: u64) -> u64 {
    let quarter = segment_bytes / 4;
    if quarter < MAX_RECORD_BYTES { quarter } else { MAX_RECORD_BYTES }
}

/// The check that some bytes failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// The bytes are not what was written.
    Damaged(&'static str),
    /// The bytes are what a later version of the format wrote. Taken for a torn tail, they would be overwritten.
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

/// The seed of the checksums of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// No seed, for headers, which are read before the file id is known.
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

/// `length_bytes` rounded up to a multiple of 8.
pub(crate) const fn align(length_bytes: u64) -> u64 {
    length_bytes.next_multiple_of(ALIGNMENT_BYTES)
}

/// A length as the format's 4 bytes. All lengths are bounded by [`max_frame_bytes`].
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
