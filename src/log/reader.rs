//! Reads records by address, from any thread, while another thread appends.
//!
//! The reader owns the slot table, which stores for each slot the segment it contains and where the frames of that
//! segment end. The checksum of a record covers its position, and only the table can translate an address into a
//! position. Bytes after the end of the frames may change while they are read, so no read goes beyond that end.
//!
//! Recovery fills the table, and the writer maintains it from then on. Recovery and the engine read records.

#![allow(
    unsafe_code,
    reason = "reading mapped bytes is sound because of the slot table: no thread writes to bytes that it shows as readable"
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::format::header::Parameters;
use crate::format::record::{RECORD_HEADER_BYTES, Record, record_length};
use crate::format::{FIRST_FRAME_OFFSET, FormatError, STORE_HEADER_BYTES, Seed};
use crate::index::Address;
use crate::map::Map;
use crate::storage::{Storage, read_exact_at};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The content of a slot.
#[derive(Debug, Default)]
struct Slot {
    /// The sequence of the segment in the slot; 0 while the slot is free.
    sequence: AtomicU64,
    /// Where the segment's frames end, in bytes from the start of the slot. Frames before the end are written, and do
    /// not change until the slot is freed. Bytes after it, of the next frame or the footer, may be changing.
    end: AtomicU64,
}

/// A run of adjacent slots.
#[derive(Debug)]
struct Chunk {
    slot_count: u64,
    /// The slots, in pages of [`PAGE_SLOTS`] or, if the chunk has fewer, in one page. A page is allocated when its
    /// first slot is used, because a long file may be mostly empty.
    pages: Box<[OnceLock<Box<[Slot]>>]>,
    /// The offset in the file at which the map begins.
    map_offset: u64,
    /// A map of all slots of the chunk, including those beyond the end of the file, which become readable when the file
    /// grows. The map is made at the first read and kept until the store is closed. It stays valid when a slot is cut
    /// off and added again, because that is the same range of the same file. None if the chunk is read without a map.
    map: OnceLock<Option<Map>>,
}

/// Chunk `n` of the table has `FIRST_CHUNK << n` slots, so that the table grows without moving a slot that a thread
/// reads.
const FIRST_CHUNK: u64 = 64;
/// The number of chunks in the table.
const CHUNKS: usize = 32;
/// The number of slots that are allocated at once.
const PAGE_SLOTS: u64 = 1_024;

/// Maps begin at a multiple of this, the size of a large page. If the page cache holds a file in pieces of that size,
/// and file and memory have the same alignment, the operating system maps large pages. A lookup reads at a random
/// place. With large pages it waits for memory only once, while smaller pages cost one or two more accesses, to page
/// tables.
///
/// There is one map for each chunk and not one for each slot. A map of one slot would have large pages for only half of
/// it, because slots begin after the store header. Besides, a process may have only tens of thousands of maps.
const MAP_ALIGNMENT_BYTES: u64 = 2 << 20;

const BEYOND_WRITTEN: FormatError =
    FormatError::Damaged("the record reaches beyond what is written of its segment");

/// The slot table and the maps of one store.
#[derive(Debug)]
pub(crate) struct Reader {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    seed: Seed,
    segment_bytes: u64,
    chunks: [OnceLock<Chunk>; CHUNKS],
}

/// The position and length of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordLocation {
    pub(crate) position: u64,
    pub(crate) length_bytes: u64,
}

impl Reader {
    pub(crate) fn new(storage: Arc<dyn Storage>, path: PathBuf, parameters: &Parameters) -> Reader {
        Reader {
            storage,
            path,
            seed: parameters.seed(),
            segment_bytes: parameters.segment_bytes,
            chunks: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The offset in the file at which `slot` begins.
    pub(crate) fn slot_offset(&self, slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * self.segment_bytes
    }

    /// Sets the segment that the slot contains, and where its frames end, in bytes from the start of the slot.
    pub(crate) fn set_segment(&self, slot: u64, sequence: u64, end: u64) {
        let (_, slot) = self.slot(slot);
        slot.end.store(end, Ordering::Release);
        slot.sequence.store(sequence, Ordering::Release);
    }

    /// Moves the end of the frames in `slot` forward to `end`. Must be called after the write of the last frame has
    /// returned, and before a record of that frame enters the index.
    pub(crate) fn set_end(&self, slot: u64, end: u64) {
        self.slot(slot).1.end.store(end, Ordering::Release);
    }

    /// Marks a slot as free. Its records must have been removed from the index before.
    pub(crate) fn set_free(&self, slot: u64) {
        self.set_segment(slot, 0, 0);
    }

    /// The sequence of the segment in `slot`; 0 if it is free.
    pub(crate) fn sequence(&self, slot: u64) -> u64 {
        self.slot(slot).1.sequence.load(Ordering::Acquire)
    }

    /// Verifies the checksum of the record at `address` and calls `read` with it.
    ///
    /// The caller must keep the address in the index until this returns, by holding the lock of its shard or the flight
    /// of the key: that keeps the slot from being freed and overwritten. `read` must not write to the file.
    pub(crate) fn record<R>(
        &self,
        address: Address,
        read: impl FnOnce(RecordLocation, &Record<'_>) -> R,
    ) -> Result<R> {
        #[cfg(test)]
        tests::RECORDS_READ.set(tests::RECORDS_READ.get() + 1);
        let (slot_number, within) = self.split(address);
        let (chunk, slot) = self.slot(slot_number);
        let sequence = slot.sequence.load(Ordering::Acquire);
        if sequence == 0 {
            return Err(self.corrupt(address, FormatError::Damaged("the index points into a free slot")));
        }
        let position = sequence * self.segment_bytes + within;
        // A damaged length field must not extend the read to bytes that are being written.
        let limit = readable(within, slot.end.load(Ordering::Acquire));
        let decode = |bytes: &[u8]| match Record::decode(bytes, position, self.seed) {
            Ok(record) => Ok(read(RecordLocation { position, length_bytes: bytes.len() as u64 }, &record)),
            Err(fault) => Err(self.corrupt(address, fault)),
        };
        let Some(map) = self.map(chunk) else {
            return decode(&self.read_unmapped(address, limit)?);
        };
        let at = usize::try_from(address.offset() - chunk.map_offset).unwrap_or(usize::MAX);
        let outside = || self.corrupt(address, BEYOND_WRITTEN);
        if limit < RECORD_HEADER_BYTES as u64 {
            return Err(outside());
        }
        // SAFETY: no thread writes to these bytes during the read. Both slices are between the first frame of a slot
        // and the end of its frames as read above (`limit`). Headers and close marks are before the first frame,
        // footers are after the end. Between the two, the file is written only in these cases:
        // - The writer appends a frame, always after the end at that time. It moves the end once the write has
        //   returned, by a `Release` store that the `Acquire` load above has seen, so all writes below `end` happened
        //   before this read.
        // - The slot is recycled, cut off, or filled with zeroes after it was cut off. The slot is freed before that,
        //   and before it is freed its records are removed from the index. Their removal waits for this call: the
        //   caller holds the lock of the index's shard, which the removal takes, or the flight of the key, without
        //   which no thread removes the record. If the slot had been freed before this call, the sequence above would
        //   be 0, because no address in the index points to a free slot.
        // - Recovery rewrites the end of the log. It does so after it has filled the index, on one thread, and before
        //   any other code has this reader.
        let length = unsafe { map.read(at, RECORD_HEADER_BYTES, record_length) }.ok_or_else(outside)?;
        let length = length.map_err(|fault| self.corrupt(address, fault))?;
        if length as u64 > limit {
            return Err(outside());
        }
        // SAFETY: as above. In addition, `decode` and `read` do not write to the file: they copy out of the record, or
        // append to memory.
        unsafe { map.read(at, length, decode) }.ok_or_else(outside)?
    }

    /// Copies `length_bytes` bytes at `address` without verifying a checksum, or fewer if the frames of the segment end
    /// earlier.
    ///
    /// The caller must keep the segment in the log until this returns, by holding the flight of the key whose record is
    /// at `address`.
    pub(crate) fn unchecked(&self, address: Address, length_bytes: u64) -> Result<Vec<u8>> {
        let (slot_number, within) = self.split(address);
        let (chunk, slot) = self.slot(slot_number);
        let limit = readable(within, slot.end.load(Ordering::Acquire));
        let length = usize::try_from(length_bytes.min(limit)).unwrap_or(0);
        let Some(map) = self.map(chunk) else {
            let mut bytes = vec![0; length];
            let read = read_exact_at(&*self.storage, &mut bytes, address.offset());
            return read.map(|()| bytes).map_err(|error| self.io("read a record", error));
        };
        let at = usize::try_from(address.offset() - chunk.map_offset).unwrap_or(usize::MAX);
        // SAFETY: as in `record`, the bytes are between the first frame of the slot and the end of its frames, and the
        // caller keeps the slot from being freed. Copying them writes only to new memory.
        let bytes = unsafe { map.read(at, length, <[u8]>::to_vec) };
        bytes.ok_or_else(|| self.corrupt(address, BEYOND_WRITTEN))
    }

    /// Reads the record at `address`, of at most `limit` bytes, without a map.
    fn read_unmapped(&self, address: Address, limit: u64) -> Result<Vec<u8>> {
        /// The length of the first read. Most records are shorter and need only this one.
        const FIRST_READ_BYTES: u64 = 512;
        let read = |buffer: &mut [u8], offset| {
            read_exact_at(&*self.storage, buffer, offset).map_err(|error| self.io("read a record", error))
        };
        let first = usize::try_from(limit.min(FIRST_READ_BYTES)).unwrap_or(0);
        let mut bytes = vec![0; first];
        read(&mut bytes, address.offset())?;
        let length = record_length(&bytes).map_err(|fault| self.corrupt(address, fault))?;
        if length as u64 > limit {
            return Err(self.corrupt(address, BEYOND_WRITTEN));
        }
        bytes.resize(length, 0);
        if length > first {
            read(&mut bytes[first..], address.offset() + first as u64)?;
        }
        Ok(bytes)
    }

    /// The position in the log that `address` has now.
    pub(crate) fn position(&self, address: Address) -> u64 {
        let (slot, within) = self.split(address);
        self.sequence(slot) * self.segment_bytes + within
    }

    /// Whether the slot table allows the bytes at `address` to be read.
    #[cfg(test)]
    pub(crate) fn shows(&self, address: Address) -> bool {
        let (slot, within) = self.split(address);
        let (_, slot) = self.slot(slot);
        slot.sequence.load(Ordering::Acquire) != 0 && readable(within, slot.end.load(Ordering::Acquire)) > 0
    }

    /// Makes the error of a failed I/O operation on the file.
    pub(crate) fn io(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::io(&self.path, operation, source)
    }

    fn corrupt(&self, address: Address, fault: FormatError) -> Error {
        Error::corrupt(&self.path, address.offset(), fault.reason())
    }

    /// Returns the slot of `address`, and the offset within that slot.
    pub(crate) fn split(&self, address: Address) -> (u64, u64) {
        let offset = address.offset() - STORE_HEADER_BYTES;
        (offset / self.segment_bytes, offset % self.segment_bytes)
    }

    /// Returns the chunk of `slot`, and the slot's entry in the table.
    fn slot(&self, slot: u64) -> (&Chunk, &Slot) {
        // Chunk n begins at FIRST_CHUNK x (2^n - 1).
        let number = (slot / FIRST_CHUNK + 1).ilog2();
        let first = FIRST_CHUNK * ((1 << number) - 1);
        let slot_count = FIRST_CHUNK << number;
        let page_slots = slot_count.min(PAGE_SLOTS);
        let chunk = self.chunks[number as usize].get_or_init(|| Chunk {
            slot_count,
            pages: (0..slot_count / page_slots).map(|_| OnceLock::new()).collect(),
            map_offset: self.slot_offset(first) / MAP_ALIGNMENT_BYTES * MAP_ALIGNMENT_BYTES,
            map: OnceLock::new(),
        });
        let at = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (page, within) = (at((slot - first) / page_slots), at((slot - first) % page_slots));
        let page = chunk.pages[page].get_or_init(|| (0..page_slots).map(|_| Slot::default()).collect());
        (chunk, &page[within])
    }

    /// Returns the map of `chunk`, which is made at the first call. None if the file cannot be mapped.
    fn map<'c>(&self, chunk: &'c Chunk) -> Option<&'c Map> {
        let make = || {
            let bytes = chunk.slot_count * self.segment_bytes;
            // If there is not enough address space, or the process has too many maps, the slots are read without a map.
            let length = usize::try_from(bytes + MAP_ALIGNMENT_BYTES).ok()?;
            self.storage.map(chunk.map_offset, length).unwrap_or(None)
        };
        chunk.map.get_or_init(make).as_ref()
    }
}

/// The number of bytes that may be read at `within`, in a slot whose frames end at `end`: none before the first frame,
/// and none after the last.
fn readable(within: u64, end: u64) -> u64 {
    if within < FIRST_FRAME_OFFSET { 0 } else { end.saturating_sub(within) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::{Kind, Value, tie_to_position};
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;
    use crate::storage::{FileStorage, MemoryStorage, write_all_at};

    thread_local! {
        /// The number of records that this thread has read.
        pub(crate) static RECORDS_READ: Cell<u64> = const { Cell::new(0) };
    }

    const PARAMETERS: Parameters =
        Parameters { segment_bytes: 1 << 16, file_id: [0; 16], secret: [0; 16], copied_seed: None };

    #[test]
    fn each_slot_has_its_own_entry_in_the_table() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        for slot in 0..1_000 {
            reader.set_segment(slot, slot + 1, 4_096);
        }
        for slot in 0..1_000 {
            let address = Address::new(reader.slot_offset(slot) + 4_096).unwrap();
            assert_eq!(reader.position(address), ((slot + 1) << 16) + 4_096);
        }
    }

    /// Writes a record of the key `name` at `within` in `slot`, which contains the segment with the sequence `slot +
    /// 1`.
    fn write_record(storage: &dyn Storage, reader: &Reader, slot: u64, within: u64, name: &[u8]) -> Address {
        let record = Record {
            kind: Kind::Completed,
            key: Key::new(name),
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 0,
            key_expires_ms: NEVER_MS,
            result_expires_ms: NEVER_MS,
            value: Value::NONE,
        };
        let mut bytes = Vec::new();
        record.encode(PARAMETERS.seed()).append_to(&mut bytes);
        tie_to_position(&mut bytes, ((slot + 1) << 16) + within);
        reader.set_segment(slot, slot + 1, PARAMETERS.segment_bytes);
        let address = Address::new(reader.slot_offset(slot) + within).unwrap();
        write_all_at(storage, &bytes, address.offset()).unwrap();
        address
    }

    fn name_at(reader: &Reader, address: Address) -> Result<Vec<u8>> {
        reader.record(address, |_, record| record.key.name().to_vec())
    }

    /// Makes a reader of a new file in `directory`, with or without maps.
    fn reader_of_file(directory: &Path, mmap: bool) -> (Arc<FileStorage>, Reader) {
        let path = directory.join(format!("{mmap}.once"));
        let storage = Arc::new(FileStorage::open(&path, true, mmap, crate::sync::Patience::None).unwrap());
        let reader = Reader::new(Arc::clone(&storage) as Arc<dyn Storage>, path, &PARAMETERS);
        (storage, reader)
    }

    #[test]
    fn records_are_read_from_every_chunk_while_the_file_grows() {
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            // The first and last slots of the first chunks, and several in between.
            let slots = [0, 1, 31, 32, 62, 63, 64, 65, 190, 191, 192, 447, 448];
            let written: Vec<_> = slots
                .into_iter()
                .flat_map(|slot| [(slot, 4_104), (slot, (1 << 16) - 512)])
                .map(|(slot, within)| {
                    let name = format!("in slot {slot} at {within}");
                    storage.set_len(reader.slot_offset(slot + 1)).unwrap();
                    let address = write_record(&*storage, &reader, slot, within, name.as_bytes());
                    assert_eq!(name_at(&reader, address).unwrap(), name.as_bytes());
                    (address, name)
                })
                .collect();
            for (address, name) in written {
                assert_eq!(name_at(&reader, address).unwrap(), name.as_bytes(), "again, {mmap}");
            }
        }
    }

    #[test]
    fn a_record_that_reaches_into_the_next_slot_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            // The record takes 88 bytes: the header and a key.
            let fits = write_record(&*storage, &reader, 0, (1 << 16) - 88, b"inside");
            assert_eq!(name_at(&reader, fits).unwrap(), b"inside");
            for within in [(1 << 16) - 80, (1 << 16) - 72] {
                let address = write_record(&*storage, &reader, 0, within, b"across");
                // The file ends here. A read of the map beyond that would kill the process with SIGBUS.
                storage.set_len(reader.slot_offset(1)).unwrap();
                let refusal = name_at(&reader, address).unwrap_err().to_string();
                assert!(refusal.contains(&address.offset().to_string()), "{mmap}: {refusal}");
            }
        }
    }

    #[test]
    fn a_damaged_length_never_extends_a_read_beyond_the_frames() {
        const WITHIN: u64 = 4_104;
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            storage.set_len(reader.slot_offset(1)).unwrap();
            let address = write_record(&*storage, &reader, 0, WITHIN, b"a name");
            let end = WITHIN + 88;
            reader.set_end(0, end);
            assert_eq!(name_at(&reader, address).unwrap(), b"a name");

            let furthest = || crate::map::tests::FURTHEST.get() as u64;
            crate::map::tests::FURTHEST.set(0);
            for damaged in [96, 1_024, (1 << 16) - WITHIN, 1 << 16] {
                let damaged = u32::try_from(damaged).unwrap();
                write_all_at(&*storage, &damaged.to_le_bytes(), address.offset() + 4).unwrap();
                let refusal = name_at(&reader, address).unwrap_err().to_string();
                assert!(refusal.contains("beyond what is written"), "{mmap}, {damaged}: {refusal}");
            }
            // An address in the index may be wrong as well.
            for within in [0, 512, 4_088, end - 8, end, end + 8] {
                let address = Address::new(reader.slot_offset(0) + within).unwrap();
                assert!(name_at(&reader, address).is_err(), "{mmap}, {within}");
            }
            assert_eq!(furthest() > 0, mmap);
            assert!(furthest() <= reader.slot_offset(0) + end, "{} of {end}", furthest());
        }
    }

    #[test]
    fn only_bytes_between_the_first_frame_and_the_end_are_readable() {
        assert_eq!([0, 512, 4_088].map(|within| readable(within, 60_000)), [0; 3]);
        assert_eq!(readable(4_096, 60_000), 55_904);
        assert_eq!(readable(59_992, 60_000), 8);
        assert_eq!([60_000, 60_008].map(|within| readable(within, 60_000)), [0; 2]);
        assert_eq!(readable(4_096, 0), 0, "a free slot");
    }

    #[test]
    fn a_distant_slot_allocates_only_one_page_of_the_table() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        let last = (1 << 27) - 1;
        reader.set_segment(last, 7, 4_096);
        assert_eq!(reader.sequence(last), 7);
        let pages = reader.slot(last).0.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!(pages, 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_many_slots_needs_few_maps() {
        let directory = tempfile::tempdir().unwrap();
        let (storage, reader) = reader_of_file(directory.path(), true);
        for slot in 0..300 {
            let address = write_record(&*storage, &reader, slot, 4_104, b"k");
            name_at(&reader, address).unwrap();
        }
        let path = std::fs::canonicalize(reader.path()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps = maps.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count();
        assert!((1..=3).contains(&maps), "{maps} maps of 300 slots");
    }
}
