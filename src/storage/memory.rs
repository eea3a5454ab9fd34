//! A storage in memory, for stores without a file and for tests.

use super::Storage;
use crate::map::Map;
use crate::sync::RwLock;
use std::fmt;
use std::io;

/// The size of a chunk. Growing allocates whole chunks and never moves existing ones.
const CHUNK_BYTES: usize = 64 * 1024;

/// A storage in memory, for `Store::in_memory()` and for tests.
///
/// Its bytes are lost when it is dropped, and a sync does nothing. It is never mapped, because a reader would have to keep
/// the lock for as long as it has the map.
#[derive(Default)]
pub(crate) struct MemoryStorage {
    /// A single lock protects all bytes. A write copies at most one frame, so no thread waits long.
    contents: RwLock<Contents>,
}

/// The bytes of a [`MemoryStorage`].
#[derive(Default)]
struct Contents {
    /// Exactly as many chunks as `length` needs. The bytes beyond `length` in the last chunk are zero, so that growing need
    /// not clear them.
    chunks: Vec<Box<[u8]>>,
    /// The length in bytes.
    length: usize,
}

impl Contents {
    /// Changes the length; see [`Storage::set_len`].
    fn resize(&mut self, length: usize) -> io::Result<()> {
        let chunk_count = length.div_ceil(CHUNK_BYTES);
        if let Some(missing) = chunk_count.checked_sub(self.chunks.len()) {
            self.chunks.try_reserve(missing).map_err(|_| out_of_memory())?;
            self.chunks.resize_with(chunk_count, || vec![0; CHUNK_BYTES].into_boxed_slice());
        } else {
            self.chunks.truncate(chunk_count);
        }
        if length < self.length
            && let Some(cut) = self.chunks.get_mut(length / CHUNK_BYTES)
        {
            cut[length % CHUNK_BYTES..].fill(0);
        }
        self.length = length;
        Ok(())
    }
}

impl MemoryStorage {
    /// Creates an empty storage.
    pub(crate) fn new() -> MemoryStorage {
        MemoryStorage::default()
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        u64::try_from(self.contents.read().length).map_err(|_| out_of_memory())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| out_of_memory())?;
        self.contents.write().resize(length)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let contents = self.contents.read();
        // An offset beyond the address space is beyond the end, so nothing is read, as from a file.
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = buffer.len().min(contents.length.saturating_sub(offset));
        let mut done = 0;
        while done < length {
            let within = (offset + done) % CHUNK_BYTES;
            let piece_bytes = (CHUNK_BYTES - within).min(length - done);
            let chunk = &contents.chunks[(offset + done) / CHUNK_BYTES];
            buffer[done..done + piece_bytes].copy_from_slice(&chunk[within..within + piece_bytes]);
            done += piece_bytes;
        }
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        // Writing nothing does not extend a file.
        if bytes.is_empty() {
            return Ok(0);
        }
        let offset = usize::try_from(offset).map_err(|_| out_of_memory())?;
        let end = offset.checked_add(bytes.len()).ok_or_else(out_of_memory)?;
        let mut contents = self.contents.write();
        if end > contents.length {
            contents.resize(end)?;
        }
        let mut done = 0;
        while done < bytes.len() {
            let within = (offset + done) % CHUNK_BYTES;
            let piece_bytes = (CHUNK_BYTES - within).min(bytes.len() - done);
            let chunk = &mut contents.chunks[(offset + done) / CHUNK_BYTES];
            chunk[within..within + piece_bytes].copy_from_slice(&bytes[done..done + piece_bytes]);
            done += piece_bytes;
        }
        Ok(bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
        Ok(None)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // This must not wait for the lock: the thread that prints this may have locked it, or may be diagnosing a deadlock.
        let length = self.contents.try_read().map(|contents| contents.length);
        formatter.debug_struct("MemoryStorage").field("len", &length).finish_non_exhaustive()
    }
}

/// Returns the error that corresponds to a full disk.
fn out_of_memory() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;

    /// Pseudorandom numbers that are the same in every run (xorshift).
    struct Numbers(u64);

    impl Numbers {
        /// Returns a number below `bound`.
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 16).unwrap() % bound
        }
    }

    #[test]
    fn the_storage_behaves_like_a_vector_of_bytes() {
        const MAX_OFFSET: usize = 5 * CHUNK_BYTES;
        for seed in 1..=16_u64 {
            let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let storage = MemoryStorage::new();
            let mut model: Vec<u8> = Vec::new();
            for step in 0..200 {
                let offset = if numbers.below(3) == 0 {
                    numbers.below(6) * CHUNK_BYTES
                } else {
                    numbers.below(MAX_OFFSET)
                };
                let length_bound = if numbers.below(4) == 0 { 2 * CHUNK_BYTES } else { 100 };
                let length = numbers.below(length_bound);
                match numbers.below(5) {
                    0 => {
                        storage.set_len(offset as u64).unwrap();
                        model.resize(offset, 0);
                    }
                    1 | 2 => {
                        let byte = u8::try_from(numbers.below(256)).unwrap();
                        assert_eq!(storage.write_at(&vec![byte; length], offset as u64).unwrap(), length);
                        if length > 0 && model.len() < offset + length {
                            model.resize(offset + length, 0);
                        }
                        if length > 0 {
                            model[offset..offset + length].fill(byte);
                        }
                    }
                    _ => {
                        let mut buffer = vec![0xaa; length];
                        let read = storage.read_at(&mut buffer, offset as u64).unwrap();
                        let expected =
                            model.get(offset..).map_or(&[][..], |rest| &rest[..rest.len().min(length)]);
                        assert!(buffer[..read] == *expected, "seed {seed}, step {step}, offset {offset}");
                        assert!(buffer[read..].iter().all(|&byte| byte == 0xaa));
                    }
                }
                assert_eq!(storage.len().unwrap(), model.len() as u64, "seed {seed}, step {step}");
            }
            let mut everything = vec![0; model.len()];
            assert_eq!(storage.read_at(&mut everything, 0).unwrap(), model.len());
            assert!(everything == model, "seed {seed}");
        }
    }

    #[test]
    fn bytes_that_were_cut_off_read_as_zero_after_growing() {
        for cut in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1] {
            let storage = MemoryStorage::new();
            let length = 2 * CHUNK_BYTES;
            storage.write_at(&vec![0xff; length], 0).unwrap();
            storage.set_len(cut as u64).unwrap();
            storage.set_len(length as u64).unwrap();
            let mut buffer = vec![0; length];
            assert_eq!(storage.read_at(&mut buffer, 0).unwrap(), length);
            assert!(buffer[..cut].iter().all(|&byte| byte == 0xff), "cut {cut}");
            assert!(buffer[cut..].iter().all(|&byte| byte == 0), "cut {cut}");
        }
    }

    #[test]
    fn growing_does_not_move_existing_bytes() {
        let storage = MemoryStorage::new();
        storage.write_at(b"x", 0).unwrap();
        let before = storage.contents.read().chunks[0].as_ptr();
        storage.set_len(100 * CHUNK_BYTES as u64).unwrap();
        assert_eq!(storage.contents.read().chunks[0].as_ptr(), before);
    }

    #[test]
    fn a_length_beyond_memory_is_an_error() {
        let storage = MemoryStorage::new();
        assert_eq!(storage.set_len(u64::MAX).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(storage.write_at(b"xy", u64::MAX).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(storage.read_at(&mut [0; 2], u64::MAX).unwrap(), 0);
        assert_eq!(storage.len().unwrap(), 0);
    }

    #[test]
    fn memory_is_never_mapped() {
        assert!(MemoryStorage::new().map(0, 0).unwrap().is_none());
    }
}
