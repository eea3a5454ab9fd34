//! Reading records by address, from any thread, while others append.
//!
//! Which slot holds which segment is kept here, because a reader needs it to turn an address into the position that
//! the record's checksum is tied to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::format::header::Parameters;
use crate::format::record::{RECORD_HEADER_BYTES, Record, record_length};
use crate::format::{Fault, STORE_HEADER_BYTES, Seed};
use crate::index::Address;
use crate::map::Map;
use crate::storage::{Storage, read_exact_at};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Slots that lie behind one another in the file.
#[derive(Debug)]
struct Chunk {
    /// The sequence of the segment in each slot; 0 while it is free.
    sequences: Box<[AtomicU64]>,
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

/// Maps begin at a multiple of this. Where the operating system keeps a file in its cache in pieces as large as the
/// processor's large pages, it maps them as such, if file and memory are aligned to them alike; and then a lookup, which
/// goes to a place that has nothing to do with the last one, waits once for memory and not once more, or twice, to learn
/// where that place is. A map for each slot would have such pages for half of it, because slots begin behind the store
/// header; and a process may have no more than some ten thousand maps.
const MAP_ALIGNMENT_BYTES: u64 = 2 << 20;

const BEYOND_SEGMENT: Fault = Fault::Damaged("the record reaches beyond its segment");

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
pub(crate) struct Place {
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

    /// Says which sequence a slot holds from now on; 0 when it is free. Its records must have left the index before it
    /// is freed.
    pub(crate) fn set_sequence(&self, slot: u64, sequence: u64) {
        let (chunk, at) = self.chunk(slot);
        chunk.sequences[at].store(sequence, Ordering::Release);
    }

    /// Calls `read` with the record at `address`, every byte of it checked. The caller keeps the index from
    /// giving up the address meanwhile, by holding its shard's lock or the key's flight.
    pub(crate) fn record<R>(
        &self,
        address: Address,
        read: impl FnOnce(Place, &Record<'_>) -> R,
    ) -> Result<R> {
        let (slot_number, within) = self.split(address);
        let (chunk, at) = self.chunk(slot_number);
        let sequence = chunk.sequences[at].load(Ordering::Acquire);
        if sequence == 0 {
            return Err(self.corrupt(address, Fault::Damaged("the index points into a free slot")));
        }
        let position = sequence * self.segment_bytes + within;
        let limit = self.segment_bytes - within;
        let decode = |bytes: &[u8]| match Record::decode(bytes, position, self.seed) {
            Ok(record) => Ok(read(Place { position, length_bytes: bytes.len() as u64 }, &record)),
            Err(fault) => Err(self.corrupt(address, fault)),
        };
        let Some(map) = self.map(chunk) else {
            return decode(&self.read_unmapped(address, limit)?);
        };
        let at = usize::try_from(address.offset() - chunk.map_offset).unwrap_or(usize::MAX);
        let outside = || self.corrupt(address, BEYOND_SEGMENT);
        // The map goes on behind the slot, where another segment's bytes may be changing and the file may end.
        if limit < RECORD_HEADER_BYTES as u64 {
            return Err(outside());
        }
        let length = map.read(at, RECORD_HEADER_BYTES, record_length).ok_or_else(outside)?;
        let length = length.map_err(|fault| self.corrupt(address, fault))?;
        if length as u64 > limit {
            return Err(outside());
        }
        map.read(at, length, decode).ok_or_else(outside)?
    }

    /// What lies at `address`, not checked: so many bytes, or fewer if the segment ends before. Nothing may be
    /// written there any more, and the caller keeps the segment from being given up.
    pub(crate) fn unchecked(&self, address: Address, length_bytes: u64) -> Result<Vec<u8>> {
        let (slot_number, within) = self.split(address);
        let (chunk, _) = self.chunk(slot_number);
        let length = usize::try_from(length_bytes.min(self.segment_bytes - within)).unwrap_or(0);
        let Some(map) = self.map(chunk) else {
            let mut bytes = vec![0; length];
            let read = read_exact_at(&*self.storage, &mut bytes, address.offset());
            return read.map(|()| bytes).map_err(|error| self.io("read a record", error));
        };
        let at = usize::try_from(address.offset() - chunk.map_offset).unwrap_or(usize::MAX);
        map.read(at, length, <[u8]>::to_vec).ok_or_else(|| self.corrupt(address, BEYOND_SEGMENT))
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
            return Err(self.corrupt(address, BEYOND_SEGMENT));
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
        let (chunk, at) = self.chunk(slot);
        chunk.sequences[at].load(Ordering::Acquire) * self.segment_bytes + within
    }

    pub(crate) fn io(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::io(&self.path, operation, source)
    }

    fn corrupt(&self, address: Address, fault: Fault) -> Error {
        Error::corrupt(&self.path, address.offset(), fault.reason())
    }

    /// The slot that `address` is in, and how far into it.
    pub(crate) fn split(&self, address: Address) -> (u64, u64) {
        let offset = address.offset() - STORE_HEADER_BYTES;
        (offset / self.segment_bytes, offset % self.segment_bytes)
    }

    /// The chunk that `slot` is in, and its place there.
    fn chunk(&self, slot: u64) -> (&Chunk, usize) {
        // Chunk n begins at FIRST_CHUNK x (2^n - 1).
        let number = (slot / FIRST_CHUNK + 1).ilog2();
        let first = FIRST_CHUNK * ((1 << number) - 1);
        let chunk = self.chunks[number as usize].get_or_init(|| Chunk {
            sequences: (0..FIRST_CHUNK << number).map(|_| AtomicU64::default()).collect(),
            map_offset: self.slot_offset(first) / MAP_ALIGNMENT_BYTES * MAP_ALIGNMENT_BYTES,
            map: OnceLock::new(),
        });
        (chunk, usize::try_from(slot - first).unwrap_or(0))
    }

    fn map<'c>(&self, chunk: &'c Chunk) -> Option<&'c Map> {
        let make = || {
            let bytes = chunk.sequences.len() as u64 * self.segment_bytes;
            // An address space or a kernel limit that is used up is no reason to fail: the slots are read without a map.
            let length = usize::try_from(bytes + MAP_ALIGNMENT_BYTES).ok()?;
            self.storage.map(chunk.map_offset, length).unwrap_or(None)
        };
        chunk.map.get_or_init(make).as_ref()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::{Kind, stamp};
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;
    use crate::storage::{FileStorage, MemoryStorage, write_all_at};

    const PARAMETERS: Parameters = Parameters { segment_bytes: 1 << 16, file_id: [0; 16], secret: [0; 16] };

    #[test]
    fn every_slot_of_the_table_is_its_own() {
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &PARAMETERS);
        for slot in 0..1_000 {
            reader.set_sequence(slot, slot + 1);
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
            result: None,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes, PARAMETERS.seed());
        stamp(&mut bytes, ((slot + 1) << 16) + within);
        reader.set_sequence(slot, slot + 1);
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
