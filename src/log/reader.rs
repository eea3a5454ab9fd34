//! Reading records by address, from any thread, while others append.
//!
//! Which slot holds which segment is kept here, because a reader needs it to turn an address into the position that
//! the record's checksum is tied to; and how far each of these segments is written, because behind that bytes may be
//! changing while they are read.

#![allow(
    unsafe_code,
    reason = "only the reader of records knows that nothing writes to the bytes that it looks at"
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

/// What a slot holds.
#[derive(Debug, Default)]
struct Slot {
    /// The sequence of its segment; 0 while it is free.
    sequence: AtomicU64,
    /// Where the segment's frames end, from the slot's start. Frames before this place are written and are not written
    /// again before the slot is freed; what follows it may be changing: the next frame, the footer.
    end: AtomicU64,
}

/// Slots that lie behind one another in the file.
#[derive(Debug)]
struct Chunk {
    slot_count: u64,
    /// The slots, [`PAGE_SLOTS`] each, or all of them if there are fewer. Made when the first of them is used: a file may
    /// be long, and hold little.
    pages: Box<[OnceLock<Box<[Slot]>>]>,
    /// Where the map begins in the file.
    map_offset: u64,
    /// A view of all of them, slots that are yet to be made too: they are seen once they are. Made at the first read and
    /// kept until the store is closed: a slot that is cut off and made again is the same range of the same file. None:
    /// the storage is read without maps.
    map: OnceLock<Option<Map>>,
}

/// Chunk `n` of the table has `FIRST_CHUNK << n` slots, so that the table grows without moving what readers hold.
const FIRST_CHUNK: u64 = 64;
const CHUNKS: usize = 32;
/// How many slots are made together.
const PAGE_SLOTS: u64 = 1_024;

/// Maps begin at a multiple of this. Where the operating system keeps a file in its cache in pieces as large as the
/// processor's large pages, it maps them as such, if file and memory are aligned to them alike; and then a lookup, which
/// goes to a place that has nothing to do with the last one, waits once for memory and not once more, or twice, to learn
/// where that place is. A map for each slot would have such pages for half of it, because slots begin behind the store
/// header; and a process may have no more than some ten thousand maps.
const MAP_ALIGNMENT_BYTES: u64 = 2 << 20;

const BEYOND_WRITTEN: FormatError =
    FormatError::Damaged("the record reaches beyond what is written of its segment");

/// The log as readers see it.
#[derive(Debug)]
pub(crate) struct Reader {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    seed: Seed,
    segment_bytes: u64,
    chunks: [OnceLock<Chunk>; CHUNKS],
}

/// Where a record is and how long, beside the record itself.
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

    /// Where slot `slot` begins in the file.
    pub(crate) fn slot_offset(&self, slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * self.segment_bytes
    }

    /// Says which segment a slot holds from now on, and where its frames end so far, from the slot's start.
    pub(crate) fn set_segment(&self, slot: u64, sequence: u64, end: u64) {
        let (_, slot) = self.slot(slot);
        slot.end.store(end, Ordering::Release);
        slot.sequence.store(sequence, Ordering::Release);
    }

    /// Says that the frames of the segment in `slot` end there from now on, further than before. Must be called when
    /// the write of the last of them has returned, and before the index learns of its records.
    pub(crate) fn set_end(&self, slot: u64, end: u64) {
        self.slot(slot).1.end.store(end, Ordering::Release);
    }

    /// Says that a slot is free. Its records must have left the index before.
    pub(crate) fn set_free(&self, slot: u64) {
        self.set_segment(slot, 0, 0);
    }

    /// The sequence of the segment in `slot`; 0 if it is free.
    pub(crate) fn sequence(&self, slot: u64) -> u64 {
        self.slot(slot).1.sequence.load(Ordering::Acquire)
    }

    /// Calls `read` with the record at `address`, every byte of it checked. The caller keeps the index from
    /// giving up the address meanwhile, by holding its shard's lock or the key's flight.
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
        // A length that is rotten must not lead to bytes that are being written.
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
        // SAFETY: nothing writes to these bytes meanwhile. Both slices lie between the first frame of a slot and the end
        // of its frames as it was read above (`limit`), and there the file is written
        // - by appending, each frame behind the end of that time. The end grows when that write has returned, by a store
        //   with `Release` that the load with `Acquire` above has seen; so all writes below `end` happened before this.
        // - when the slot is recycled, cut off, or zeroed because it was cut off. Before that it is freed, before that its
        //   records leave the index, and that waits for this call: the caller holds the lock of the index's shard, which
        //   taking an address out needs, or the flight of the key, without which no record leaves the index. For a slot
        //   that was freed before, the sequence above was 0: no address of the index leads there.
        // - by recovery, which writes the end of the log again after it has filled the index, with one thread and
        //   before anything else has this reader.
        // Headers and close marks lie before the first frame, footers behind the end.
        let length = unsafe { map.read(at, RECORD_HEADER_BYTES, record_length) }.ok_or_else(outside)?;
        let length = length.map_err(|fault| self.corrupt(address, fault))?;
        if length as u64 > limit {
            return Err(outside());
        }
        // SAFETY: as above; and `decode` and what it calls write nothing: they copy out, or append to memory.
        unsafe { map.read(at, length, decode) }.ok_or_else(outside)?
    }

    /// What lies at `address`, not checked: so many bytes, or fewer if the frames of the segment end before. The caller
    /// keeps the segment from being given up, by holding the flight of the key whose record lies there.
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
        // caller keeps the segment from being given up; a copy of them writes to memory of its own.
        let bytes = unsafe { map.read(at, length, <[u8]>::to_vec) };
        bytes.ok_or_else(|| self.corrupt(address, BEYOND_WRITTEN))
    }

    fn read_unmapped(&self, address: Address, limit: u64) -> Result<Vec<u8>> {
        /// Most records are shorter, so that one read is enough.
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

    /// The position of what is at `address` now.
    #[cfg(test)]
    fn position(&self, address: Address) -> u64 {
        let (slot, within) = self.split(address);
        self.sequence(slot) * self.segment_bytes + within
    }

    /// Whether readers may look at the bytes at `address`.
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

    /// The slot that `address` is in, and how far into it.
    pub(crate) fn split(&self, address: Address) -> (u64, u64) {
        let offset = address.offset() - STORE_HEADER_BYTES;
        (offset / self.segment_bytes, offset % self.segment_bytes)
    }

    /// The chunk that `slot` is in, and the slot.
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
            // An address space or a kernel limit that is used up is no reason to fail: the slots are read without a map.
            let length = usize::try_from(bytes + MAP_ALIGNMENT_BYTES).ok()?;
            self.storage.map(chunk.map_offset, length).unwrap_or(None)
        };
        chunk.map.get_or_init(make).as_ref()
    }
}

/// How many bytes may be read from `within` on, in a slot whose frames end at `end`: none of the slot's headers, and none
/// behind its frames.
fn readable(within: u64, end: u64) -> u64 {
    if within < FIRST_FRAME_OFFSET { 0 } else { end.saturating_sub(within) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::{Kind, Value, stamp};
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;
    use crate::storage::{FileStorage, MemoryStorage, write_all_at};

    const PARAMETERS: Parameters = Parameters { segment_bytes: 1 << 16, file_id: [0; 16], secret: [0; 16] };

    #[test]
    fn every_slot_of_the_table_is_its_own() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        for slot in 0..1_000 {
            reader.set_segment(slot, slot + 1, 4_096);
        }
        for slot in 0..1_000 {
            let address = Address::new(reader.slot_offset(slot) + 4_096).unwrap();
            assert_eq!(reader.position(address), ((slot + 1) << 16) + 4_096);
        }
    }

    /// Writes a record with `name` as its key where `slot` has `within`, of a segment with the sequence `slot + 1`.
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

    /// A reader of a file in `directory`, with maps or without.
    fn reader_of_file(directory: &Path, mmap: bool) -> (Arc<FileStorage>, Reader) {
        let path = directory.join(format!("{mmap}.once"));
        let storage = Arc::new(FileStorage::open(&path, true, mmap).unwrap());
        let reader = Reader::new(Arc::clone(&storage) as Arc<dyn Storage>, path, &PARAMETERS);
        (storage, reader)
    }

    #[test]
    fn a_record_is_read_wherever_it_is_and_the_file_grows_under_the_maps() {
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            // The first and last slots of the table's first chunks, and some between.
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
    fn a_record_that_reaches_into_the_next_slot_is_refused_where_the_map_goes_on_too() {
        let directory = tempfile::tempdir().unwrap();
        for mmap in [true, false] {
            let (storage, reader) = reader_of_file(directory.path(), mmap);
            // It fits with 88 bytes: the header and a key.
            let fits = write_record(&*storage, &reader, 0, (1 << 16) - 88, b"inside");
            assert_eq!(name_at(&reader, fits).unwrap(), b"inside");
            for within in [(1 << 16) - 80, (1 << 16) - 72] {
                let address = write_record(&*storage, &reader, 0, within, b"across");
                // To look behind the end of the file would end the process.
                storage.set_len(reader.slot_offset(1)).unwrap();
                let refusal = name_at(&reader, address).unwrap_err().to_string();
                assert!(refusal.contains(&address.offset().to_string()), "{mmap}: {refusal}");
            }
        }
    }

    #[test]
    fn a_record_whose_length_is_rotten_is_refused_and_nothing_behind_what_is_written_is_looked_at() {
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
            for rotten in [96, 1_024, (1 << 16) - WITHIN, 1 << 16] {
                let rotten = u32::try_from(rotten).unwrap();
                write_all_at(&*storage, &rotten.to_le_bytes(), address.offset() + 4).unwrap();
                let refusal = name_at(&reader, address).unwrap_err().to_string();
                assert!(refusal.contains("beyond what is written"), "{mmap}, {rotten}: {refusal}");
            }
            // The index may be wrong as well.
            for within in [0, 512, 4_088, end - 8, end, end + 8] {
                let address = Address::new(reader.slot_offset(0) + within).unwrap();
                assert!(name_at(&reader, address).is_err(), "{mmap}, {within}");
            }
            assert_eq!(furthest() > 0, mmap);
            assert!(furthest() <= reader.slot_offset(0) + end, "{} of {end}", furthest());
        }
    }

    #[test]
    fn nothing_is_readable_before_the_first_frame_or_behind_the_last() {
        assert_eq!([0, 512, 4_088].map(|within| readable(within, 60_000)), [0; 3]);
        assert_eq!(readable(4_096, 60_000), 55_904);
        assert_eq!(readable(59_992, 60_000), 8);
        assert_eq!([60_000, 60_008].map(|within| readable(within, 60_000)), [0; 2]);
        assert_eq!(readable(4_096, 0), 0, "a free slot");
    }

    #[test]
    fn a_slot_far_away_takes_little_memory() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        let last = (1 << 27) - 1;
        reader.set_segment(last, 7, 4_096);
        assert_eq!(reader.sequence(last), 7);
        let pages = reader.slot(last).0.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!(pages, 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_many_slots_takes_few_of_the_maps_that_a_process_may_have() {
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
