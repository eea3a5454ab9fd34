//! Reads records by address, from any thread, while another thread appends.
//!
//! The reader owns the slot table, which says for each slot which segment it holds and where that segment's frames end.
//! A record's checksum is tied to its position, and only the table turns an address into a position. Bytes behind the
//! end may change while they are read, so no read goes beyond it.
//!
//! The writer, and recovery before there is one, maintain the table. Engine and recovery read records.

#![allow(
    unsafe_code,
    reason = "only the slot table shows that no thread writes to the mapped bytes of a record"
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
    /// The sequence of its segment; 0 while it is free.
    sequence: AtomicU64,
    /// Where the segment's frames end, from the slot's start. Frames before the end are written, and do not change
    /// until the slot is freed. Bytes behind it, of the next frame or the footer, may be changing.
    end: AtomicU64,
}

/// A run of adjacent slots.
#[derive(Debug)]
struct Chunk {
    slot_count: u64,
    /// The slots, in pages of [`PAGE_SLOTS`], or in one page if there are fewer. A page is allocated when its first
    /// slot is used, because a long file may hold little.
    pages: Box<[OnceLock<Box<[Slot]>>]>,
    /// The offset in the file at which the map begins.
    map_offset: u64,
    /// A map of all slots of the chunk, including those beyond the end of the file, which become readable when the file
    /// grows. It is made at the first read and kept until the store is closed: a slot that is cut off and made again is
    /// the same range of the same file. None if the chunk is read without a map.
    map: OnceLock<Option<Map>>,
}

/// Chunk `n` of the table has `FIRST_CHUNK << n` slots, so that the table grows without moving a slot that a thread
/// reads.
const FIRST_CHUNK: u64 = 64;
const CHUNKS: usize = 32;
/// How many slots are allocated at once.
const PAGE_SLOTS: u64 = 1_024;

/// Maps begin at a multiple of this, the size of a large page. If the page cache holds a file in pieces of that size,
/// and file and memory are aligned alike, the operating system maps large pages. A lookup reads at a random place, and
/// with large pages it waits for memory once, without one or two more accesses to page tables.
///
/// A map for each slot would have large pages for only half of its slot, because slots begin behind the store header.
/// It would also need many maps, of which a process may have some ten thousand.
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

    /// Sets which segment the slot holds, and where its frames end so far, from the slot's start.
    pub(crate) fn set_segment(&self, slot: u64, sequence: u64, end: u64) {
        let (_, slot) = self.slot(slot);
        slot.end.store(end, Ordering::Release);
        slot.sequence.store(sequence, Ordering::Release);
    }

    /// Moves the end of the frames in `slot` forward to `end`. Must be called after the write of the last frame has
    /// returned, and before a record of it enters the index.
    pub(crate) fn set_end(&self, slot: u64, end: u64) {
        self.slot(slot).1.end.store(end, Ordering::Release);
    }

    /// Marks a slot as free. Its records must have left the index before.
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
        let (slot_number, within) = self.split(address);
        let (chunk, slot) = self.slot(slot_number);
        let sequence = slot.sequence.load(Ordering::Acquire);
        if sequence == 0 {
            return Err(self.corrupt(address, FormatError::Damaged("the index points into a free slot")));
        }
        let position = sequence * self.segment_bytes + within;
        // A damaged length must not lead the read to bytes that are being written.
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
        // SAFETY: no thread writes to these bytes meanwhile. Both slices lie between the first frame of a slot and the
        // end of its frames as read above (`limit`). Headers and close marks lie before the first frame, footers behind
        // the end. In between, the file is written
        // - by the writer's appends, each behind the end of that time. The end moves when the write has returned, by a
        //   `Release` store that the `Acquire` load above has seen, so all writes below `end` happened before this
        //   read.
        // - when the slot is recycled, cut off, or zeroed because it was cut off. The slot is freed before that, and
        //   its records leave the index before it is freed, which waits for this call: the caller holds the lock of the
        //   index's shard, which removing an address takes, or the flight of the key, without which no record leaves
        //   the index. If the slot was freed earlier, the sequence above was 0: no address of the index leads there.
        // - by recovery, which rewrites the end of the log after it has filled the index, on one thread and before any
        //   other code has this reader.
        let length = unsafe { map.read(at, RECORD_HEADER_BYTES, record_length) }.ok_or_else(outside)?;
        let length = length.map_err(|fault| self.corrupt(address, fault))?;
        if length as u64 > limit {
            return Err(outside());
        }
        // SAFETY: as above; and `decode` and `read` do not write to the file: they copy out of the record, or append to
        // memory.
        unsafe { map.read(at, length, decode) }.ok_or_else(outside)?
    }

    /// Copies `length_bytes` bytes at `address` without a check, or fewer if the frames of the segment end before that.
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
        // SAFETY: as in `record`: the bytes lie between the first frame of the slot and the end of its frames, and the
        // caller keeps the slot from being freed. Copying them writes only to new memory.
        let bytes = unsafe { map.read(at, length, <[u8]>::to_vec) };
        bytes.ok_or_else(|| self.corrupt(address, BEYOND_WRITTEN))
    }

    fn read_unmapped(&self, address: Address, limit: u64) -> Result<Vec<u8>> {
        /// Most records are shorter and take one read.
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

    /// The position that `address` has now.
    #[cfg(test)]
    fn position(&self, address: Address) -> u64 {
        let (slot, within) = self.split(address);
        self.sequence(slot) * self.segment_bytes + within
    }

    /// Whether a reader may read the bytes at `address`.
    #[cfg(test)]
    pub(crate) fn shows(&self, address: Address) -> bool {
        let (slot, within) = self.split(address);
        let (_, slot) = self.slot(slot);
        slot.sequence.load(Ordering::Acquire) != 0 && readable(within, slot.end.load(Ordering::Acquire)) > 0
    }

    pub(crate) fn io(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::io(&self.path, operation, source)
    }

    fn corrupt(&self, address: Address, fault: FormatError) -> Error {
        Error::corrupt(&self.path, address.offset(), fault.reason())
    }

    /// The slot of `address`, and the offset in the slot.
    pub(crate) fn split(&self, address: Address) -> (u64, u64) {
        let offset = address.offset() - STORE_HEADER_BYTES;
        (offset / self.segment_bytes, offset % self.segment_bytes)
    }

    /// The chunk of `slot`, and its entry in the table.
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

    fn map<'c>(&self, chunk: &'c Chunk) -> Option<&'c Map> {
        let make = || {
            let bytes = chunk.slot_count * self.segment_bytes;
            // Without address space, or at the limit on maps, the slots are read without a map.
            let length = usize::try_from(bytes + MAP_ALIGNMENT_BYTES).ok()?;
            self.storage.map(chunk.map_offset, length).unwrap_or(None)
        };
        chunk.map.get_or_init(make).as_ref()
    }
}

/// How many bytes may be read at `within`, in a slot whose frames end at `end`: none before the first frame, and none
/// behind the last.
fn readable(within: u64, end: u64) -> u64 {
    if within < FIRST_FRAME_OFFSET { 0 } else { end.saturating_sub(within) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::{Kind, Value, stamp};
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;
    use crate::storage::{FileStorage, MemoryStorage, write_all_at};

    const PARAMETERS: Parameters = Parameters { segment_bytes: 1 << 16, file_id: [0; 16], secret: [0; 16] };

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

    /// Writes a record of the key `name` at `within` in `slot`, which holds the segment with the sequence `slot + 1`.
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
        stamp(&mut bytes, ((slot + 1) << 16) + within);
        reader.set_segment(slot, slot + 1, PARAMETERS.segment_bytes);
        let address = Address::new(reader.slot_offset(slot) + within).unwrap();
        write_all_at(storage, &bytes, address.offset()).unwrap();
        address
    }

    fn name_at(reader: &Reader, address: Address) -> Result<Vec<u8>> {
        reader.record(address, |_, record| record.key.name().to_vec())
    }

    /// A reader of a new file in `directory`, with maps or without.
    fn reader_of_file(directory: &Path, mmap: bool) -> (Arc<FileStorage>, Reader) {
        let path = directory.join(format!("{mmap}.once"));
        let storage = Arc::new(FileStorage::open(&path, true, mmap).unwrap());
        let reader = Reader::new(Arc::clone(&storage) as Arc<dyn Storage>, path, &PARAMETERS);
        (storage, reader)
    }

    #[test]
    fn records_are_read_from_every_chunk_while_the_file_grows() {
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            // The first and last slots of the first chunks, and some in between.
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
                // A read behind the end of the file would end the process with SIGBUS.
                storage.set_len(reader.slot_offset(1)).unwrap();
                let refusal = name_at(&reader, address).unwrap_err().to_string();
                assert!(refusal.contains(&address.offset().to_string()), "{mmap}: {refusal}");
            }
        }
    }

    #[test]
    fn no_read_goes_beyond_the_end_of_frames_whatever_a_record_says() {
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
            // An address of the index may be wrong as well.
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
    fn a_slot_far_away_allocates_one_page_of_the_table() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        let last = (1 << 27) - 1;
        reader.set_segment(last, 7, 4_096);
        assert_eq!(reader.sequence(last), 7);
        let pages = reader.slot(last).0.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!(pages, 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_many_slots_takes_few_maps() {
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
