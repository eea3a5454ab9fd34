//! The parameter block, the store header, segment headers and close marks.

use super::{
    FORMAT_VERSION, FormatError, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, SECTOR_BYTES, Seed, array, get_u32,
    get_u64, put,
};
use crate::clock::{BootId, TimeMark};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};

const STORE_MAGIC: &[u8; 8] = b"ONCEKEY\x1a";
const SEGMENT_MAGIC: &[u8; 8] = b"ONCESEGM";
const MARK_MAGIC: &[u8; 8] = b"ONCEMARK";

/// Where a checksum stands in every sector of this module, and from where on it covers the sector.
const CHECKSUM_AT: usize = 8;
const COVERED_FROM: usize = 12;

/// Where the two close marks stand in a slot.
pub(crate) const CLOSE_MARK_OFFSETS: [u64; 2] = [512, 1_024];

const CHECKSUM_CRC32: u8 = 1;
const HASH_SIPHASH_2_4_128: u8 = 1;
const CIPHER_NONE: u8 = 0;

pub(crate) type Sector = [u8; SECTOR_BYTES];

/// What is needed to read any part of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) segment_bytes: u64,
    pub(crate) file_id: [u8; 16],
    pub(crate) secret: [u8; 16],
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the secret: it has no business in a log line.
        out.debug_struct("Parameters")
            .field("segment_bytes", &self.segment_bytes)
            .field("file_id", &self.file_id)
            .finish_non_exhaustive()
    }
}

/// Why the sector that should hold the store header does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderProblem {
    /// All zero: never written.
    Blank,
    /// Something else altogether.
    Foreign,
    /// Ours, and it does not check.
    Damaged(FormatError),
    /// Ours, and of a version or with features that this code does not know.
    Unsupported(String),
}

impl Parameters {
    pub(crate) fn seed(&self) -> Seed {
        Seed::of_file(&self.file_id)
    }

    fn encode(&self, magic: &[u8; 8]) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        put(&mut sector, 0, magic);
        put(&mut sector, 12, &FORMAT_VERSION.to_le_bytes());
        let segment_bytes = u32::try_from(self.segment_bytes)
            .unwrap_or_else(|_| unreachable!("segment sizes are checked to be at most 1 GiB"));
        put(&mut sector, 28, &segment_bytes.to_le_bytes());
        put(&mut sector, 32, &self.file_id);
        put(&mut sector, 48, &self.secret);
        sector[64] = CHECKSUM_CRC32;
        sector[65] = HASH_SIPHASH_2_4_128;
        sector[66] = CIPHER_NONE;
        sector
    }

    fn decode(sector: &Sector) -> Result<Parameters, HeaderProblem> {
        let unsupported = |what: String| Err(HeaderProblem::Unsupported(what));
        let version = get_u32(sector, 12);
        if version != FORMAT_VERSION {
            let age = if version > FORMAT_VERSION { "newer than" } else { "older than" };
            return unsupported(format!(
                "format version {version} is {age} version {FORMAT_VERSION}, the only one that this oncekey reads"
            ));
        }
        // Bits of the compatible word may be ignored; nothing is known yet in the other two.
        for (name, at) in [("read-compatible", 20), ("incompatible", 24)] {
            let bits = get_u32(sector, at);
            if bits != 0 {
                return unsupported(format!(
                    "unknown {name} feature bits {bits:#x}; a newer oncekey is needed"
                ));
            }
        }
        if sector[64] != CHECKSUM_CRC32 || sector[65] != HASH_SIPHASH_2_4_128 || sector[66] != CIPHER_NONE {
            return unsupported(format!(
                "unknown algorithms: checksum {}, hash {}, cipher {}; a newer oncekey is needed",
                sector[64], sector[65], sector[66]
            ));
        }
        let segment_bytes = u64::from(get_u32(sector, 28));
        if !segment_bytes.is_power_of_two()
            || !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&segment_bytes)
        {
            return Err(HeaderProblem::Damaged(FormatError::Damaged("the segment size is out of range")));
        }
        Ok(Parameters { segment_bytes, file_id: array(sector, 32), secret: array(sector, 48) })
    }
}

fn seal(sector: &mut Sector, seed: Seed) {
    let checksum = seed.checksum(&sector[COVERED_FROM..]);
    put(sector, CHECKSUM_AT, &checksum.to_le_bytes());
}

fn is_sealed(sector: &Sector, seed: Seed) -> bool {
    get_u32(sector, CHECKSUM_AT) == seed.checksum(&sector[COVERED_FROM..])
}

pub(crate) fn encode_store_header(parameters: &Parameters) -> Sector {
    let mut sector = parameters.encode(STORE_MAGIC);
    seal(&mut sector, Seed::NONE);
    sector
}

pub(crate) fn decode_store_header(sector: &Sector) -> Result<Parameters, HeaderProblem> {
    if sector.iter().all(|byte| *byte == 0) {
        return Err(HeaderProblem::Blank);
    }
    let magic_fits = sector.starts_with(STORE_MAGIC);
    let sealed = is_sealed(sector, Seed::NONE);
    match (magic_fits, sealed) {
        (true, true) => Parameters::decode(sector),
        (true, false) => {
            Err(HeaderProblem::Damaged(FormatError::Damaged("the store header's checksum does not fit")))
        }
        // A valid checksum over the rest says that only the magic was damaged.
        (false, true) => {
            Err(HeaderProblem::Damaged(FormatError::Damaged("the store header's magic does not fit")))
        }
        (false, false) => Err(HeaderProblem::Foreign),
    }
}

/// How many bytes a mark of time takes.
const MARK_BYTES: usize = 40;

fn put_mark(sector: &mut Sector, at: usize, mark: &TimeMark) {
    put(sector, at, &mark.store_ms.to_le_bytes());
    put(sector, at + 8, &mark.wall_ms.to_le_bytes());
    put(sector, at + 16, &mark.boot.0);
    put(sector, at + 32, &mark.boot_ms.to_le_bytes());
}

fn get_mark(sector: &Sector, at: usize) -> TimeMark {
    TimeMark {
        store_ms: get_u64(sector, at),
        wall_ms: get_u64(sector, at + 8),
        boot: BootId(array(sector, at + 16)),
        boot_ms: get_u64(sector, at + 32),
    }
}

/// What stands at the start of a slot that is or was in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) parameters: Parameters,
    pub(crate) sequence: u64,
    pub(crate) head: u64,
    pub(crate) previous_end: u64,
    pub(crate) previous_checksum: u32,
    pub(crate) open_count: u32,
    pub(crate) mark: TimeMark,
    /// A position in this segment; everything before it was on disk when the header was written.
    pub(crate) synced_to: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Sector {
        let mut sector = self.parameters.encode(SEGMENT_MAGIC);
        put(&mut sector, 72, &self.sequence.to_le_bytes());
        put(&mut sector, 80, &self.head.to_le_bytes());
        put(&mut sector, 88, &self.previous_end.to_le_bytes());
        put(&mut sector, 96, &self.previous_checksum.to_le_bytes());
        put(&mut sector, 100, &self.open_count.to_le_bytes());
        put_mark(&mut sector, 104, &self.mark);
        put(&mut sector, 144, &self.synced_to.to_le_bytes());
        seal(&mut sector, Seed::NONE);
        sector
    }

    pub(crate) fn decode(sector: &Sector) -> Result<SegmentHeader, FormatError> {
        if !sector.starts_with(SEGMENT_MAGIC) {
            return Err(FormatError::Damaged("no segment header"));
        }
        if !is_sealed(sector, Seed::NONE) {
            return Err(FormatError::Damaged("the segment header's checksum does not fit"));
        }
        let parameters = Parameters::decode(sector).map_err(|_| {
            FormatError::Damaged("the segment header is of another format version or has unknown features")
        })?;
        let header = SegmentHeader {
            parameters,
            sequence: get_u64(sector, 72),
            head: get_u64(sector, 80),
            previous_end: get_u64(sector, 88),
            previous_checksum: get_u32(sector, 96),
            open_count: get_u32(sector, 100),
            mark: get_mark(sector, 104),
            synced_to: get_u64(sector, 144),
        };
        // Positions are sequence x segment size: a sequence near 2^64 / segment size cannot have come from us.
        let sequence_fits =
            header.sequence.checked_add(2).and_then(|next| next.checked_mul(parameters.segment_bytes));
        if header.sequence == 0 || sequence_fits.is_none() {
            return Err(FormatError::Damaged("the segment header's sequence is out of range"));
        }
        if header.head == 0 || header.head > header.sequence {
            return Err(FormatError::Damaged("the segment header's head is out of range"));
        }
        if header.open_count > MAX_OPEN_COUNT {
            return Err(FormatError::Damaged("the segment header's open count is out of range"));
        }
        Ok(header)
    }
}

/// Where the log ended when the store was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CloseMark {
    pub(crate) end: u64,
    pub(crate) last_checksum: u32,
    pub(crate) open_count: u32,
    pub(crate) mark: TimeMark,
    /// Of the last version that was given out under this open count.
    pub(crate) counter: u64,
}

impl CloseMark {
    pub(crate) fn encode(&self, seed: Seed) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        put(&mut sector, 0, MARK_MAGIC);
        put(&mut sector, 12, &self.last_checksum.to_le_bytes());
        put(&mut sector, 16, &self.end.to_le_bytes());
        put(&mut sector, 24, &self.open_count.to_le_bytes());
        put_mark(&mut sector, 32, &self.mark);
        put(&mut sector, 32 + MARK_BYTES, &self.counter.to_le_bytes());
        seal(&mut sector, seed);
        sector
    }

    /// Whether `bytes` starts like a mark, of whatever store.
    pub(crate) fn resembles(bytes: &[u8]) -> bool {
        bytes.starts_with(MARK_MAGIC)
    }

    /// The mark in `sector`, if it is one and speaks of `sequence`.
    pub(crate) fn decode(
        sector: &Sector,
        seed: Seed,
        sequence: u64,
        segment_bytes: u64,
    ) -> Option<CloseMark> {
        if !sector.starts_with(MARK_MAGIC) || !is_sealed(sector, seed) {
            return None;
        }
        let mark = CloseMark {
            last_checksum: get_u32(sector, 12),
            end: get_u64(sector, 16),
            open_count: get_u32(sector, 24),
            mark: get_mark(sector, 32),
            counter: get_u64(sector, 32 + MARK_BYTES),
        };
        let is_of_here = mark.end / segment_bytes == sequence;
        (is_of_here && mark.open_count <= MAX_OPEN_COUNT && mark.counter <= MAX_COUNTER).then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters { segment_bytes: 1 << 20, file_id: *b"file-id-16-bytes", secret: *b"secret-16-bytes!" }
    }

    fn time_mark() -> TimeMark {
        let (store_ms, wall_ms) = (1_700_000_000_000, 1_700_000_000_123);
        TimeMark { store_ms, wall_ms, boot: BootId(*b"boot-id-16-bytes"), boot_ms: 77 }
    }

    fn close_mark() -> CloseMark {
        let end = (9 << 20) + 8_192;
        CloseMark { end, last_checksum: 5, open_count: 2, mark: time_mark(), counter: 1_000 }
    }

    fn segment_header() -> SegmentHeader {
        SegmentHeader {
            parameters: parameters(),
            sequence: 9,
            head: 7,
            previous_end: 8 << 20 | 4_096,
            previous_checksum: 0xABCD,
            open_count: 3,
            mark: time_mark(),
            synced_to: 9 << 20 | 4_096,
        }
    }

    #[test]
    fn parameters_do_not_print_the_secret() {
        let parameters = Parameters { segment_bytes: 1 << 16, file_id: [1; 16], secret: [0xEE; 16] };
        assert!(!format!("{parameters:?}").contains(&0xEE.to_string()), "{parameters:?}");
    }

    #[test]
    fn headers_and_marks_come_back_as_they_were_written() {
        assert_eq!(decode_store_header(&encode_store_header(&parameters())), Ok(parameters()));
        assert_eq!(SegmentHeader::decode(&segment_header().encode()), Ok(segment_header()));
        let mark = close_mark();
        let seed = parameters().seed();
        assert_eq!(CloseMark::decode(&mark.encode(seed), seed, 9, 1 << 20), Some(mark));
        assert_eq!(
            CloseMark::decode(&mark.encode(seed), seed, 8, 1 << 20),
            None,
            "a left-over of another sequence"
        );
        assert_eq!(
            CloseMark::decode(&mark.encode(Seed::NONE), seed, 9, 1 << 20),
            None,
            "a mark of another file"
        );
    }

    #[test]
    fn no_flipped_bit_of_a_header_goes_unnoticed() {
        let store = encode_store_header(&parameters());
        let segment = segment_header().encode();
        for bit in 0..SECTOR_BYTES * 8 {
            let mut damaged = store;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(decode_store_header(&damaged), Err(HeaderProblem::Damaged(_))),
                "store header, bit {bit}"
            );
            let mut damaged = segment;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "segment header, bit {bit}");
        }
    }

    #[test]
    fn blank_foreign_older_newer_and_unknown_features_are_told_apart() {
        assert_eq!(decode_store_header(&[0; SECTOR_BYTES]), Err(HeaderProblem::Blank));
        assert_eq!(decode_store_header(&[b'x'; SECTOR_BYTES]), Err(HeaderProblem::Foreign));
        for (at, value, word) in
            [(12, 0_u32, "older"), (12, 2, "newer"), (20, 1, "read-compatible"), (24, 1, "incompatible")]
        {
            let mut sector = encode_store_header(&parameters());
            put(&mut sector, at, &value.to_le_bytes());
            seal(&mut sector, Seed::NONE);
            match decode_store_header(&sector) {
                Err(HeaderProblem::Unsupported(reason)) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{word}: {other:?}"),
            }
        }
        let mut sector = encode_store_header(&parameters());
        put(&mut sector, 16, &u32::MAX.to_le_bytes());
        seal(&mut sector, Seed::NONE);
        assert!(decode_store_header(&sector).is_ok(), "unknown compatible features are ignored");
    }

    #[test]
    fn a_segment_header_is_believed_up_to_its_limits_and_not_beyond() {
        let decode = |change: fn(&mut SegmentHeader)| {
            let mut header = segment_header();
            change(&mut header);
            SegmentHeader::decode(&header.encode()).map(drop).map_err(FormatError::reason)
        };
        let head = Err("the segment header's head is out of range");
        assert_eq!(decode(|header| header.head = 0), head);
        assert_eq!(decode(|header| header.head = 1), Ok(()));
        assert_eq!(decode(|header| header.head = header.sequence), Ok(()));
        assert_eq!(decode(|header| header.head = header.sequence + 1), head);
        let sequence = Err("the segment header's sequence is out of range");
        assert_eq!(decode(|header| (header.sequence, header.head) = (0, 0)), sequence);
        assert_eq!(decode(|header| (header.sequence, header.head) = (1, 1)), Ok(()));
        assert_eq!(decode(|header| header.sequence = u64::MAX), sequence);
        assert_eq!(decode(|header| header.sequence = (1 << 44) - 3), Ok(()), "of segments of 2^20 bytes");
        assert_eq!(decode(|header| header.sequence = (1 << 44) - 2), sequence, "its successor's end is 2^64");
        assert_eq!(decode(|header| header.open_count = MAX_OPEN_COUNT), Ok(()));
        let count = Err("the segment header's open count is out of range");
        assert_eq!(decode(|header| header.open_count = MAX_OPEN_COUNT + 1), count);
    }

    #[test]
    fn each_algorithm_and_the_segment_size_must_be_one_that_there_is() {
        let decode = |at, field: &[u8]| {
            let mut sector = encode_store_header(&parameters());
            put(&mut sector, at, field);
            seal(&mut sector, Seed::NONE);
            decode_store_header(&sector)
        };
        for at in [64, 65, 66] {
            assert!(matches!(decode(at, &[9]), Err(HeaderProblem::Unsupported(_))), "byte {at}");
        }
        let segments_of = |bytes: u32| decode(28, &bytes.to_le_bytes()).is_ok();
        assert!(segments_of(64 << 10) && segments_of(1 << 30));
        assert!(!segments_of(32 << 10) && !segments_of(1 << 31) && !segments_of((64 << 10) + 8));
    }

    #[test]
    fn a_close_mark_is_one_only_with_its_own_magic_checksum_sequence_and_a_count_that_can_be() {
        let seed = parameters().seed();
        let mark = CloseMark { open_count: MAX_OPEN_COUNT, counter: MAX_COUNTER, ..close_mark() };
        let decode = |sector: &Sector| CloseMark::decode(sector, seed, 9, 1 << 20);
        assert_eq!(decode(&mark.encode(seed)), Some(mark));
        let late = CloseMark { open_count: MAX_OPEN_COUNT + 1, ..mark };
        assert_eq!(decode(&late.encode(seed)), None);
        let late = CloseMark { counter: MAX_COUNTER + 1, ..mark };
        assert_eq!(decode(&late.encode(seed)), None);
        let mut another = mark.encode(seed);
        another[0] ^= 1;
        assert_eq!(decode(&another), None, "sealed, and not a mark: the magic is not under the checksum");
    }
}
