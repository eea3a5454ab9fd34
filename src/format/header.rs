//! The parameter block, the store header, segment headers and close marks: all structures that are one sector long.

use super::layout::{close_mark, parameter_block, segment_header, slot, time_mark};
use super::{
    CopyState, FORMAT_VERSION, FormatError, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, SECTOR_BYTES, Seed,
};
use crate::clock::{BootId, TimeMark};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};

/// The bytes in the place of the store header while a copy is being made. No checksum matches them.
const INCOMPLETE_MAGIC: &[u8; 8] = b"ONCEPART";
const STORE_MAGIC: &[u8; 8] = b"ONCEKEY\x1a";
const SEGMENT_MAGIC: &[u8; 8] = b"ONCESEGM";
const MARK_MAGIC: &[u8; 8] = b"ONCEMARK";

// The same two functions seal and check all three kinds of sector.
const _: () = assert!(parameter_block::CHECKSUM.offset() == close_mark::CHECKSUM.offset());

/// The offsets of the two close marks in a slot.
pub(crate) const CLOSE_MARK_OFFSETS: [u64; 2] =
    [slot::FIRST_CLOSE_MARK.offset() as u64, slot::SECOND_CLOSE_MARK.offset() as u64];

const CHECKSUM_CRC32: u8 = 1;
const HASH_SIPHASH_2_4_128: u8 = 1;
const CIPHER_NONE: u8 = 0;

/// The bit of `incompatible_features` that marks a copy.
const FEATURE_COPY: u32 = 1;

/// The bytes of a sector.
pub(crate) type Sector = [u8; SECTOR_BYTES];

/// The parameters of a store, without which no other part of its file can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The size of every segment.
    pub(crate) segment_bytes: u64,
    /// The random identity of the file, which seeds its checksums unless the file is a copy.
    pub(crate) file_id: [u8; 16],
    /// The key of the hash of keys.
    pub(crate) secret: [u8; 16],
    /// In a copy, the seed of the checksums, which is that of the file that was copied. None if the file is not a copy.
    pub(crate) copied_seed: Option<Seed>,
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret is left out, because it must not get into a program's logs.
        out.debug_struct("Parameters")
            .field("segment_bytes", &self.segment_bytes)
            .field("file_id", &self.file_id)
            .finish_non_exhaustive()
    }
}

/// Why a sector is not a usable store header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderProblem {
    /// The sector is all zero: no header was ever written.
    Blank,
    /// Neither magic nor checksum matches, so a different program wrote the file.
    Foreign,
    /// The store header is damaged.
    Damaged(FormatError),
    /// The store header has a different version, or features that this crate does not know.
    Unsupported(String),
}

impl Parameters {
    /// Returns the seed of the file's checksums.
    pub(crate) fn seed(&self) -> Seed {
        self.copied_seed.unwrap_or_else(|| Seed::of_file(&self.file_id))
    }

    /// Encodes the parameter block, without its checksum.
    fn encode(&self, magic: &[u8; 8]) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        parameter_block::MAGIC.put(&mut sector, *magic);
        parameter_block::FORMAT_VERSION.put(&mut sector, FORMAT_VERSION.to_le_bytes());
        let segment_bytes = u32::try_from(self.segment_bytes)
            .unwrap_or_else(|_| unreachable!("segment sizes are checked to be at most 1 GiB"));
        parameter_block::SEGMENT_BYTES.put(&mut sector, segment_bytes.to_le_bytes());
        parameter_block::FILE_ID.put(&mut sector, self.file_id);
        parameter_block::SECRET.put(&mut sector, self.secret);
        parameter_block::CHECKSUM_ALGORITHM.put(&mut sector, [CHECKSUM_CRC32]);
        parameter_block::HASH_ALGORITHM.put(&mut sector, [HASH_SIPHASH_2_4_128]);
        parameter_block::CIPHER.put(&mut sector, [CIPHER_NONE]);
        if let Some(Seed(seed)) = self.copied_seed {
            parameter_block::INCOMPATIBLE_FEATURES.put(&mut sector, FEATURE_COPY.to_le_bytes());
            parameter_block::COPIED_SEED.put(&mut sector, seed.to_le_bytes());
        }
        sector
    }

    /// Decodes the parameters in a sector whose checksum has been verified.
    fn decode(sector: &Sector) -> Result<Parameters, HeaderProblem> {
        let unsupported = |what: String| Err(HeaderProblem::Unsupported(what));
        let version = parameter_block::FORMAT_VERSION.u32(sector);
        if version != FORMAT_VERSION {
            let age = if version > FORMAT_VERSION { "newer than" } else { "older than" };
            return unsupported(format!(
                "format version {version} is {age} version {FORMAT_VERSION}, the only one that this oncekey reads"
            ));
        }
        // Read-compatible bits are refused too, because opening a store always writes to the file. Compatible bits are
        // ignored.
        for (name, field, known) in [
            ("read-compatible", parameter_block::READ_COMPATIBLE_FEATURES, 0),
            ("incompatible", parameter_block::INCOMPATIBLE_FEATURES, FEATURE_COPY),
        ] {
            let bits = field.u32(sector) & !known;
            if bits != 0 {
                return unsupported(format!(
                    "unknown {name} feature bits {bits:#x}; a newer oncekey is needed"
                ));
            }
        }
        let checksum = parameter_block::CHECKSUM_ALGORITHM.u8(sector);
        let hash = parameter_block::HASH_ALGORITHM.u8(sector);
        let cipher = parameter_block::CIPHER.u8(sector);
        if (checksum, hash, cipher) != (CHECKSUM_CRC32, HASH_SIPHASH_2_4_128, CIPHER_NONE) {
            return unsupported(format!(
                "unknown algorithms: checksum {checksum}, hash {hash}, cipher {cipher}; a newer oncekey is needed"
            ));
        }
        let segment_bytes = u64::from(parameter_block::SEGMENT_BYTES.u32(sector));
        if !segment_bytes.is_power_of_two()
            || !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&segment_bytes)
        {
            return Err(HeaderProblem::Damaged(FormatError::Damaged("the segment size is out of range")));
        }
        let (file_id, secret) = (parameter_block::FILE_ID.get(sector), parameter_block::SECRET.get(sector));
        let is_copy = parameter_block::INCOMPATIBLE_FEATURES.u32(sector) & FEATURE_COPY != 0;
        let copied_seed = is_copy.then(|| Seed(parameter_block::COPIED_SEED.u32(sector)));
        Ok(Parameters { segment_bytes, file_id, secret, copied_seed })
    }
}

/// Writes the checksum of everything that follows the checksum field.
fn seal(sector: &mut Sector, seed: Seed) {
    let checksum = seed.checksum(&sector[parameter_block::CHECKSUM.end()..]);
    parameter_block::CHECKSUM.put(sector, checksum.to_le_bytes());
}

/// Whether the checksum of the sector matches.
fn is_sealed(sector: &Sector, seed: Seed) -> bool {
    parameter_block::CHECKSUM.u32(sector) == seed.checksum(&sector[parameter_block::CHECKSUM.end()..])
}

pub(crate) fn encode_store_header(parameters: &Parameters) -> Sector {
    let mut sector = parameters.encode(STORE_MAGIC);
    seal(&mut sector, Seed::NONE);
    sector
}

/// Returns what takes the place of the store header while a copy is being made, so that nothing can open it.
pub(crate) fn incomplete_store_header() -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    parameter_block::MAGIC.put(&mut sector, *INCOMPLETE_MAGIC);
    sector
}

/// Whether the sector is in the place of the store header of a copy that was not completed.
pub(crate) fn is_incomplete(sector: &[u8]) -> bool {
    sector.starts_with(INCOMPLETE_MAGIC)
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
            Err(HeaderProblem::Damaged(FormatError::Damaged("the store header's checksum does not match")))
        }
        // The checksum covers everything after the magic and itself, so only the magic is damaged.
        (false, true) => {
            Err(HeaderProblem::Damaged(FormatError::Damaged("the store header's magic does not match")))
        }
        (false, false) => Err(HeaderProblem::Foreign),
    }
}

const TIME_MARK_BYTES: usize = time_mark::BOOT_MS.end();

fn encode_time_mark(mark: &TimeMark) -> [u8; TIME_MARK_BYTES] {
    let mut bytes = [0; TIME_MARK_BYTES];
    time_mark::STORE_MS.put(&mut bytes, mark.store_ms.to_le_bytes());
    time_mark::WALL_MS.put(&mut bytes, mark.wall_ms.to_le_bytes());
    time_mark::BOOT.put(&mut bytes, mark.boot.0);
    time_mark::BOOT_MS.put(&mut bytes, mark.boot_ms.to_le_bytes());
    bytes
}

fn decode_time_mark(bytes: &[u8; TIME_MARK_BYTES]) -> TimeMark {
    TimeMark {
        store_ms: time_mark::STORE_MS.u64(bytes),
        wall_ms: time_mark::WALL_MS.u64(bytes),
        boot: BootId(time_mark::BOOT.get(bytes)),
        boot_ms: time_mark::BOOT_MS.u64(bytes),
    }
}

/// The header of a segment, the first sector of a slot that is or was in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The parameters of the store.
    pub(crate) parameters: Parameters,
    /// The number of the segment in the log.
    pub(crate) sequence: u64,
    /// The oldest sequence of the log.
    pub(crate) head: u64,
    /// The position at which the frames of the segment before end; 0 in sequence 1.
    pub(crate) previous_end: u64,
    /// The checksum of the last frame before this segment; 0 if there is none.
    pub(crate) previous_checksum: u32,
    /// The open count when the header was written.
    pub(crate) open_count: u32,
    /// The clocks when the header was written.
    pub(crate) mark: TimeMark,
    /// Everything in this segment before this position was on disk when the header was written; 0 if not stated.
    pub(crate) synced_to: u64,
    /// What the copy may have forgotten.
    pub(crate) copy: CopyState,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Sector {
        let mut sector = self.parameters.encode(SEGMENT_MAGIC);
        segment_header::SEQUENCE.put(&mut sector, self.sequence.to_le_bytes());
        segment_header::HEAD.put(&mut sector, self.head.to_le_bytes());
        segment_header::PREVIOUS_END.put(&mut sector, self.previous_end.to_le_bytes());
        segment_header::PREVIOUS_CHECKSUM.put(&mut sector, self.previous_checksum.to_le_bytes());
        segment_header::OPEN_COUNT.put(&mut sector, self.open_count.to_le_bytes());
        segment_header::TIME_MARK.put(&mut sector, encode_time_mark(&self.mark));
        segment_header::SYNCED_TO.put(&mut sector, self.synced_to.to_le_bytes());
        segment_header::IN_DOUBT_UNTIL_MS.put(&mut sector, self.copy.in_doubt_until_ms.to_le_bytes());
        segment_header::ANSWERED_BY.put(&mut sector, self.copy.answered_by.to_le_bytes());
        seal(&mut sector, Seed::NONE);
        sector
    }

    pub(crate) fn decode(sector: &Sector) -> Result<SegmentHeader, FormatError> {
        if !sector.starts_with(SEGMENT_MAGIC) {
            return Err(FormatError::Damaged("no segment header"));
        }
        if !is_sealed(sector, Seed::NONE) {
            return Err(FormatError::Damaged("the segment header's checksum does not match"));
        }
        let parameters = Parameters::decode(sector).map_err(|_| {
            FormatError::Damaged("the segment header is of another format version or has unknown features")
        })?;
        let header = SegmentHeader {
            parameters,
            sequence: segment_header::SEQUENCE.u64(sector),
            head: segment_header::HEAD.u64(sector),
            previous_end: segment_header::PREVIOUS_END.u64(sector),
            previous_checksum: segment_header::PREVIOUS_CHECKSUM.u32(sector),
            open_count: segment_header::OPEN_COUNT.u32(sector),
            mark: decode_time_mark(&segment_header::TIME_MARK.get(sector)),
            synced_to: segment_header::SYNCED_TO.u64(sector),
            copy: CopyState {
                in_doubt_until_ms: segment_header::IN_DOUBT_UNTIL_MS.u64(sector),
                answered_by: segment_header::ANSWERED_BY.u32(sector),
            },
        };
        // Positions in this segment and the next are computed from the sequence and must not overflow.
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

/// A close mark: where the log ended when the store was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CloseMark {
    /// The position at which the log ended. Everything below it was on disk.
    pub(crate) end: u64,
    /// The checksum of the last frame of the log; 0 if there is none.
    pub(crate) last_checksum: u32,
    /// The open count of the session that was closed.
    pub(crate) open_count: u32,
    /// The clocks when the store was closed.
    pub(crate) time: TimeMark,
    /// The counter of the last version that was issued under this open count.
    pub(crate) counter: u64,
}

impl CloseMark {
    pub(crate) fn encode(&self, seed: Seed) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        close_mark::MAGIC.put(&mut sector, *MARK_MAGIC);
        close_mark::LAST_CHECKSUM.put(&mut sector, self.last_checksum.to_le_bytes());
        close_mark::END.put(&mut sector, self.end.to_le_bytes());
        close_mark::OPEN_COUNT.put(&mut sector, self.open_count.to_le_bytes());
        close_mark::TIME_MARK.put(&mut sector, encode_time_mark(&self.time));
        close_mark::COUNTER.put(&mut sector, self.counter.to_le_bytes());
        seal(&mut sector, seed);
        sector
    }

    /// Whether `bytes` begins like a close mark of any store.
    pub(crate) fn resembles(bytes: &[u8]) -> bool {
        bytes.starts_with(MARK_MAGIC)
    }

    /// Decodes the close mark in `sector`. None if it fails a check, or if its end does not lie in segment `sequence`.
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
            last_checksum: close_mark::LAST_CHECKSUM.u32(sector),
            end: close_mark::END.u64(sector),
            open_count: close_mark::OPEN_COUNT.u32(sector),
            time: decode_time_mark(&close_mark::TIME_MARK.get(sector)),
            counter: close_mark::COUNTER.u64(sector),
        };
        let is_of_segment = mark.end / segment_bytes == sequence;
        (is_of_segment && mark.open_count <= MAX_OPEN_COUNT && mark.counter <= MAX_COUNTER).then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::layout::Field;

    fn parameters() -> Parameters {
        Parameters {
            segment_bytes: 1 << 20,
            file_id: *b"file-id-16-bytes",
            secret: *b"secret-16-bytes!",
            copied_seed: None,
        }
    }

    fn time_mark() -> TimeMark {
        let (store_ms, wall_ms) = (1_700_000_000_000, 1_700_000_000_123);
        TimeMark { store_ms, wall_ms, boot: BootId(*b"boot-id-16-bytes"), boot_ms: 77 }
    }

    fn close_mark() -> CloseMark {
        let end = (9 << 20) + 8_192;
        CloseMark { end, last_checksum: 5, open_count: 2, time: time_mark(), counter: 1_000 }
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
            copy: CopyState { in_doubt_until_ms: 1_800_000_000_000, answered_by: 65_540 },
        }
    }

    #[test]
    fn debug_output_omits_the_secret() {
        let parameters =
            Parameters { segment_bytes: 1 << 16, file_id: [1; 16], secret: [0xEE; 16], copied_seed: None };
        assert!(!format!("{parameters:?}").contains(&0xEE.to_string()), "{parameters:?}");
    }

    #[test]
    fn headers_and_close_marks_round_trip() {
        assert_eq!(decode_store_header(&encode_store_header(&parameters())), Ok(parameters()));
        assert_eq!(SegmentHeader::decode(&segment_header().encode()), Ok(segment_header()));
        let copied = Parameters { copied_seed: Some(Seed(7)), ..parameters() };
        assert_eq!(decode_store_header(&encode_store_header(&copied)), Ok(copied));
        assert!(copied.seed() == Seed(7) && parameters().seed() == Seed::of_file(&parameters().file_id));
        let mark = close_mark();
        let seed = parameters().seed();
        assert_eq!(CloseMark::decode(&mark.encode(seed), seed, 9, 1 << 20), Some(mark));
        assert_eq!(
            CloseMark::decode(&mark.encode(seed), seed, 8, 1 << 20),
            None,
            "left over from a different sequence"
        );
        assert_eq!(
            CloseMark::decode(&mark.encode(Seed::NONE), seed, 9, 1 << 20),
            None,
            "a mark of a different file"
        );
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_detected() {
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
    fn blank_foreign_and_unsupported_headers_are_distinguished() {
        assert_eq!(decode_store_header(&[0; SECTOR_BYTES]), Err(HeaderProblem::Blank));
        assert_eq!(decode_store_header(&[b'x'; SECTOR_BYTES]), Err(HeaderProblem::Foreign));
        for (field, value, word) in [
            (parameter_block::FORMAT_VERSION, 0_u32, "older"),
            (parameter_block::FORMAT_VERSION, 2, "newer"),
            (parameter_block::READ_COMPATIBLE_FEATURES, 1, "read-compatible"),
            (parameter_block::INCOMPATIBLE_FEATURES, 2, "incompatible"),
        ] {
            let mut sector = encode_store_header(&parameters());
            field.put(&mut sector, value.to_le_bytes());
            seal(&mut sector, Seed::NONE);
            match decode_store_header(&sector) {
                Err(HeaderProblem::Unsupported(reason)) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{word}: {other:?}"),
            }
        }
        let mut sector = encode_store_header(&parameters());
        parameter_block::COMPATIBLE_FEATURES.put(&mut sector, u32::MAX.to_le_bytes());
        seal(&mut sector, Seed::NONE);
        assert!(decode_store_header(&sector).is_ok(), "unknown compatible features are ignored");
    }

    #[test]
    fn a_segment_header_beyond_its_limits_is_refused() {
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
        assert_eq!(
            decode(|header| header.sequence = (1 << 44) - 3),
            Ok(()),
            "the last sequence of segments of 2^20 bytes"
        );
        assert_eq!(decode(|header| header.sequence = (1 << 44) - 2), sequence, "its successor's end is 2^64");
        assert_eq!(decode(|header| header.open_count = MAX_OPEN_COUNT), Ok(()));
        let count = Err("the segment header's open count is out of range");
        assert_eq!(decode(|header| header.open_count = MAX_OPEN_COUNT + 1), count);
    }

    #[test]
    fn unknown_algorithms_and_segment_sizes_are_refused() {
        fn decode<const N: usize>(field: Field<N>, value: [u8; N]) -> Result<Parameters, HeaderProblem> {
            let mut sector = encode_store_header(&parameters());
            field.put(&mut sector, value);
            seal(&mut sector, Seed::NONE);
            decode_store_header(&sector)
        }
        for field in
            [parameter_block::CHECKSUM_ALGORITHM, parameter_block::HASH_ALGORITHM, parameter_block::CIPHER]
        {
            assert!(matches!(decode(field, [9]), Err(HeaderProblem::Unsupported(_))), "{field:?}");
        }
        let segments_of = |bytes: u32| decode(parameter_block::SEGMENT_BYTES, bytes.to_le_bytes()).is_ok();
        assert!(segments_of(64 << 10) && segments_of(1 << 30));
        assert!(!segments_of(32 << 10) && !segments_of(1 << 31) && !segments_of((64 << 10) + 8));
    }

    #[test]
    fn a_close_mark_with_a_wrong_magic_or_count_is_ignored() {
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
        assert_eq!(decode(&another), None, "the checksum does not cover the magic");
    }
}
