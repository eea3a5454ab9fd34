//! The offset and the length of every fixed field of the format, each written once.
//!
//! Encoders and decoders use these constants instead of literal offsets. `format.md` states the same fields for readers
//! outside this crate. The tests below compare each row of its tables with the constants, so that the page and the code
//! cannot diverge. This module depends only on constants of [`super`].

use super::{FIRST_FRAME_OFFSET, SECTOR_BYTES};

/// A field of `N` bytes at a fixed offset from the start of its structure. Numbers are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<const N: usize>(usize);

impl<const N: usize> Field<N> {
    /// Returns the offset of the field.
    pub(crate) const fn offset(self) -> usize {
        self.0
    }

    /// Returns the offset of the first byte after the field.
    pub(crate) const fn end(self) -> usize {
        self.0 + N
    }

    /// Returns the field's bytes in the structure at the start of `bytes`.
    pub(crate) fn get(self, bytes: &[u8]) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&bytes[self.0..self.end()]);
        value
    }

    /// Writes the field's bytes into the structure at the start of `bytes`.
    pub(crate) fn put(self, bytes: &mut [u8], value: [u8; N]) {
        bytes[self.0..self.end()].copy_from_slice(&value);
    }
}

impl Field<1> {
    pub(crate) fn u8(self, bytes: &[u8]) -> u8 {
        bytes[self.0]
    }
}

impl Field<2> {
    pub(crate) fn u16(self, bytes: &[u8]) -> u16 {
        u16::from_le_bytes(self.get(bytes))
    }
}

impl Field<4> {
    pub(crate) fn u32(self, bytes: &[u8]) -> u32 {
        u32::from_le_bytes(self.get(bytes))
    }
}

impl Field<8> {
    pub(crate) fn u64(self, bytes: &[u8]) -> u64 {
        u64::from_le_bytes(self.get(bytes))
    }
}

impl Field<16> {
    pub(crate) fn u128(self, bytes: &[u8]) -> u128 {
        u128::from_le_bytes(self.get(bytes))
    }
}

/// Declares the fields of one structure: `NAME = offset, length;`.
macro_rules! layout {
    ($(#[$doc:meta])* $structure:ident { $($field:ident = $offset:literal, $bytes:literal;)* }) => {
        $(#[$doc])*
        #[allow(dead_code, reason = "a layout lists every field, even those that this version does not read")]
        pub(crate) mod $structure {
            use super::Field;
            $(pub(crate) const $field: Field<$bytes> = Field($offset);)*
            /// The name, offset and length of each field.
            #[cfg(test)]
            pub(crate) const FIELDS: &[(&str, usize, usize)] = &[$((stringify!($field), $offset, $bytes)),*];
        }
    };
}

layout! {
    /// A slot: the space for one segment in the file. Frames follow from `FIRST_FRAME_OFFSET`
    /// on, and the footer ends at the end of the slot.
    slot {
        SEGMENT_HEADER = 0, 512;
        FIRST_CLOSE_MARK = 512, 512;
        SECOND_CLOSE_MARK = 1_024, 512;
    }
}

layout! {
    /// The parameter block, with which the store header and every segment header begin.
    parameter_block {
        MAGIC = 0, 8;
        CHECKSUM = 8, 4;
        FORMAT_VERSION = 12, 4;
        COMPATIBLE_FEATURES = 16, 4;
        READ_COMPATIBLE_FEATURES = 20, 4;
        INCOMPATIBLE_FEATURES = 24, 4;
        SEGMENT_BYTES = 28, 4;
        FILE_ID = 32, 16;
        SECRET = 48, 16;
        CHECKSUM_ALGORITHM = 64, 1;
        HASH_ALGORITHM = 65, 1;
        CIPHER = 66, 1;
        COPIED_SEED = 68, 4;
    }
}

layout! {
    /// A segment header. These fields follow its parameter block.
    segment_header {
        SEQUENCE = 72, 8;
        HEAD = 80, 8;
        PREVIOUS_END = 88, 8;
        PREVIOUS_CHECKSUM = 96, 4;
        OPEN_COUNT = 100, 4;
        TIME_MARK = 104, 40;
        SYNCED_TO = 144, 8;
        IN_DOUBT_UNTIL_MS = 152, 8;
        ANSWERED_BY = 160, 4;
    }
}

layout! {
    /// A close mark.
    close_mark {
        MAGIC = 0, 8;
        CHECKSUM = 8, 4;
        LAST_CHECKSUM = 12, 4;
        END = 16, 8;
        OPEN_COUNT = 24, 4;
        TIME_MARK = 32, 40;
        COUNTER = 72, 8;
    }
}

layout! {
    /// A time mark, which is itself a field of segment headers and close marks.
    time_mark {
        STORE_MS = 0, 8;
        WALL_MS = 8, 8;
        BOOT = 16, 16;
        BOOT_MS = 32, 8;
    }
}

layout! {
    /// The fixed part of a frame.
    frame_header {
        CHECKSUM = 0, 4;
        LENGTH = 4, 4;
        POSITION = 8, 8;
        SYNCED_TO = 16, 8;
        PREVIOUS_CHECKSUM = 24, 4;
        RECORDS_CHECKSUM = 28, 4;
        OPEN_COUNT = 32, 4;
        RECORD_COUNT = 36, 4;
        STORE_MS = 40, 8;
        WALL_MS = 48, 8;
    }
}

layout! {
    /// An opening frame. These fields follow its frame header.
    opening_frame {
        BOOT = 56, 16;
        BOOT_MS = 72, 8;
    }
}

layout! {
    /// An opening frame in a copy. These fields follow those of every opening frame.
    copy_opening_frame {
        IN_DOUBT_UNTIL_MS = 80, 8;
        ANSWERED_BY = 88, 4;
    }
}

layout! {
    /// The fixed part of a record.
    record_header {
        CHECKSUM = 0, 4;
        LENGTH = 4, 4;
        KIND = 8, 1;
        FLAGS = 9, 1;
        KEY_LENGTH = 10, 2;
        SCOPE_LENGTH = 12, 2;
        EXTENSION_LENGTH = 14, 2;
        VERSION = 16, 8;
        ORIGIN = 24, 8;
        FINGERPRINT = 32, 16;
        ATTEMPT = 48, 4;
        VALUE_LENGTH = 52, 4;
        TIME_MS = 56, 8;
        KEY_EXPIRES_MS = 64, 8;
        RESULT_EXPIRES_MS = 72, 8;
    }
}

layout! {
    /// The typing extension of a record.
    typing {
        NUMBER = 0, 1;
        CONTENT_LENGTH = 1, 1;
        SCHEME = 2, 1;
        CODEC = 3, 1;
        SHAPE = 4, 8;
    }
}

layout! {
    /// A footer entry.
    footer_entry {
        KEY_HASH = 0, 16;
        VERSION = 16, 8;
        KEY_EXPIRES_MS = 24, 8;
        RESULT_EXPIRES_MS = 32, 8;
        OFFSET = 40, 4;
        LENGTH = 44, 3;
        KIND = 47, 1;
    }
}

layout! {
    /// The trailer, the last bytes of a footer and of its slot.
    trailer {
        MAGIC = 0, 8;
        CHECKSUM = 8, 4;
        ENTRY_COUNT = 12, 4;
        SEQUENCE = 16, 8;
        SUCCESSOR = 24, 8;
        END = 32, 8;
        RECORD_BYTES = 40, 8;
        LAST_CHECKSUM = 48, 4;
    }
}

// Each of these structures is written as one sector, which a crash leaves whole. Frames begin after them.
const _: () =
    assert!(segment_header::ANSWERED_BY.end() <= SECTOR_BYTES && close_mark::COUNTER.end() <= SECTOR_BYTES);
const _: () = assert!(slot::SECOND_CLOSE_MARK.end() as u64 <= FIRST_FRAME_OFFSET);

#[cfg(test)]
mod tests {
    use super::*;

    /// A row in a table of the page: offset, length and name. The name is None if the bytes are zero.
    type Row = (usize, usize, Option<String>);

    /// Returns the rows of the table under `heading`, without fields that have no fixed length.
    fn rows(heading: &str) -> Vec<Row> {
        let page = include_str!("format.md");
        let section = page
            .split("\n#")
            .find(|section| section.trim_start_matches('#').trim_start().starts_with(heading));
        let section = section.unwrap_or_else(|| panic!("the page has no section {heading:?}"));
        assert!(section.lines().next().is_some_and(|line| line.trim_start_matches('#').trim() == heading));
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().replace(',', "")).collect::<Vec<_>>();
        let rows = section.lines().filter(|line| line.starts_with('|')).map(cells).filter_map(|cells| {
            let (offset, bytes) = (cells[1].parse().ok()?, cells[2].parse().ok()?);
            let name = cells[3].strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            assert!(name.is_some() || cells[3] == "zero", "{heading}: {cells:?}");
            Some((offset, bytes, name.map(str::to_uppercase)))
        });
        rows.collect()
    }

    /// Checks that the table under `heading` states `fields`, in order, without a gap from `start` to `end`.
    fn check(heading: &str, fields: &[(&str, usize, usize)], start: usize, end: usize) {
        let rows = rows(heading);
        let mut at = start;
        for (offset, bytes, name) in &rows {
            assert_eq!(*offset, at, "{heading}: {name:?} must begin where the field before it ends");
            at += bytes;
        }
        assert_eq!(at, end, "{heading}: the last field must end with the structure");
        let named = rows.iter().filter_map(|(at, bytes, name)| Some((name.as_deref()?, *at, *bytes)));
        assert_eq!(named.collect::<Vec<_>>(), fields, "{heading}");
    }

    #[test]
    fn every_table_of_the_page_states_the_constants() {
        check("Slot", slot::FIELDS, 0, 4_096);
        check("Parameter block", parameter_block::FIELDS, 0, segment_header::SEQUENCE.offset());
        check("Segment header", segment_header::FIELDS, segment_header::SEQUENCE.offset(), SECTOR_BYTES);
        check("Close mark", close_mark::FIELDS, 0, SECTOR_BYTES);
        check(
            "Time mark",
            time_mark::FIELDS,
            0,
            segment_header::TIME_MARK.end() - segment_header::TIME_MARK.offset(),
        );
        check("Frame header", frame_header::FIELDS, 0, 56);
        check("Opening frame", opening_frame::FIELDS, 56, 80);
        check("Opening frame of a copy", copy_opening_frame::FIELDS, 80, 96);
        check("Record header", record_header::FIELDS, 0, 80);
        check("Typing", typing::FIELDS, 0, 12);
        check("Footer entry", footer_entry::FIELDS, 0, 48);
        check("Trailer", trailer::FIELDS, 0, 64);
    }

    #[test]
    fn an_unreadable_record_uses_fields_of_the_record_header() {
        let rows = rows("Unreadable records");
        assert!(!rows.is_empty());
        for (offset, bytes, name) in rows {
            let name = name.unwrap_or_else(|| panic!("offset {offset} has no name"));
            assert!(record_header::FIELDS.contains(&(name.as_str(), offset, bytes)), "{name} at {offset}");
        }
    }

    #[test]
    fn every_table_of_fields_is_compared() {
        let tables = include_str!("format.md").lines().filter(|line| line.starts_with("| offset | bytes |"));
        assert_eq!(tables.count(), 13);
    }
}
