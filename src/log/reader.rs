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
use crate::storage::{Map, Storage, read_exact_at};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What readers know of one slot.
#[derive(Debug, Default)]
struct Slot {
    /// The sequence of the segment in it; 0 while it is free.
    sequence: AtomicU64,
    /// Made at the first read and kept until the store is closed: a slot that is cut off and made again is the same
    /// range of the same file. None: the storage is read without maps.
    map: OnceLock<Option<Map>>,
}

/// Chunk `n` of the table has `FIRST_CHUNK << n` slots, so that the table grows without moving what readers hold.
const FIRST_CHUNK: u64 = 64;
const CHUNKS: usize = 32;

/// The log as readers see it.
#[derive(Debug)]
pub(crate) struct Reader {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    seed: Seed,
    segment_bytes: u64,
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
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
        self.slot(slot).sequence.store(sequence, Ordering::Release);
    }

    /// Calls `read` with the record at `address`, every byte of it checked. The caller keeps the index from
    /// giving up the address meanwhile, by holding its shard's lock or the key's flight.
    pub(crate) fn record<R>(
        &self,
        address: Address,
        read: impl FnOnce(Place, &Record<'_>) -> R,
    ) -> Result<R> {
        let (slot_number, within) = self.split(address);
        let slot = self.slot(slot_number);
        let sequence = slot.sequence.load(Ordering::Acquire);
        if sequence == 0 {
            return Err(self.corrupt(address, Fault::Damaged("the index points into a free slot")));
        }
        let position = sequence * self.segment_bytes + within;
        let limit = self.segment_bytes - within;
        let decode = |bytes: &[u8]| match Record::decode(bytes, position, self.seed) {
            Ok(record) => Ok(read(Place { position, length_bytes: bytes.len() as u64 }, &record)),
            Err(fault) => Err(self.corrupt(address, fault)),
        };
        let Some(map) = self.map(slot_number, slot)? else {
            return decode(&self.read_unmapped(address, limit)?);
        };
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        let outside = || self.corrupt(address, Fault::Damaged("the record reaches beyond its segment"));
        let length = map
            .read(at, RECORD_HEADER_BYTES, record_length)
            .ok_or_else(outside)?
            .map_err(|fault| self.corrupt(address, fault))?;
        map.read(at, length, decode).ok_or_else(outside)?
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
            return Err(self.corrupt(address, Fault::Damaged("the record reaches beyond its segment")));
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
        self.slot(slot).sequence.load(Ordering::Acquire) * self.segment_bytes + within
    }

    pub(crate) fn io(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::io(&self.path, operation, source)
    }

    fn corrupt(&self, address: Address, fault: Fault) -> Error {
        Error::corrupt(&self.path, address.offset(), fault.reason())
    }

    fn split(&self, address: Address) -> (u64, u64) {
        let offset = address.offset() - STORE_HEADER_BYTES;
        (offset / self.segment_bytes, offset % self.segment_bytes)
    }

    fn slot(&self, slot: u64) -> &Slot {
        // Chunk n begins at FIRST_CHUNK x (2^n - 1).
        let chunk = (slot / FIRST_CHUNK + 1).ilog2();
        let within = slot - FIRST_CHUNK * ((1 << chunk) - 1);
        let size = usize::try_from(FIRST_CHUNK << chunk).unwrap_or(0);
        let chunk = self.chunks[chunk as usize].get_or_init(|| (0..size).map(|_| Slot::default()).collect());
        &chunk[usize::try_from(within).unwrap_or(0)]
    }

    fn map<'s>(&self, number: u64, slot: &'s Slot) -> Result<Option<&'s Map>> {
        if let Some(map) = slot.map.get() {
            return Ok(map.as_ref());
        }
        let length = usize::try_from(self.segment_bytes).unwrap_or(0);
        // An address space or a kernel limit that is used up is no reason to fail: the slot is read without a map.
        let map = self.storage.map(self.slot_offset(number), length).unwrap_or(None);
        Ok(slot.map.get_or_init(|| map).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn every_slot_of_the_table_is_its_own() {
        let parameters = Parameters { segment_bytes: 1 << 16, file_id: [0; 16], secret: [0; 16] };
        let reader = Reader::new(Arc::new(MemoryStorage::new()), PathBuf::new(), &parameters);
        for slot in 0..1_000 {
            reader.set_sequence(slot, slot + 1);
        }
        for slot in 0..1_000 {
            let address = Address::new(reader.slot_offset(slot) + 4_096).unwrap();
            assert_eq!(reader.position(address), ((slot + 1) << 16) + 4_096);
        }
    }
}
