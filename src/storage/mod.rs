//! The interface between the log and the medium on which it is stored.
//!
//! All other modules access the medium only through a [`Storage`], so that tests can replace the file with a medium that
//! loses power, fills up or fails. The trait promises no more than a file does: reads and writes may be short or
//! interrupted. The functions of this module continue or repeat them for every storage, so a caller either gets the whole
//! operation done or an error.
//!
//! These are the only assumptions about the medium:
//!
//! - If a sync reports success, everything that was written before it is durable.
//! - If a sector (512 bytes) with synced bytes is overwritten, it contains either the old bytes or the new ones after a
//!   crash (powersafe overwrite, as SQLite and redb assume).
//! - Any other bytes that were not synced may be lost, kept or garbage, in any order.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod overwriting;
mod file;
mod memory;
#[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
pub(crate) mod simulated;

pub(crate) use file::{FileStorage, NewFile, OpenError, ReadOnlyFile, file_size_limit};
pub(crate) use memory::MemoryStorage;

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use crate::map::Map;

/// A resizable array of bytes that can be made durable: the file, or a replacement.
///
/// All methods take `&self`, so that readers do not wait while the commit leader writes. A caller must not read or write
/// bytes while another thread is writing them. Doing so is memory-safe, but the bytes are unspecified.
///
/// The [module documentation](self) lists what is assumed of the medium.
pub(crate) trait Storage: Send + Sync + Debug {
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the storage to `length` bytes, or extends it with bytes that read as zero.
    ///
    /// Extending reserves no space on the medium, so a later write to the new bytes may find the disk full. Use
    /// [`Storage::reserve`] or [`write_zeroes_at`] to reserve space.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Reads at `offset`, possibly fewer bytes than fit into `buffer`. Returns the number of bytes read, which is 0 at or
    /// beyond the end. See [`read_exact_at`].
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Tells the medium that these bytes are about to be read, so that it can read them ahead. Only a hint.
    fn will_read(&self, _offset: u64, _length: u64) {}

    /// Returns the first range at or after `offset` in which bytes may be other than zero. None if only zeroes follow, or
    /// nothing. A storage that does not track holes returns everything from `offset` on.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.len()?;
        Ok((offset < length).then_some(offset..length))
    }

    /// Writes at `offset`, possibly only the first part of `bytes`. Returns the number of bytes written. Writing past the
    /// end extends the storage, and a gap before `offset` reads as zero. See [`write_all_at`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Reserves space on the medium for `length` bytes at `offset` without writing them, so that a later write does not find
    /// the disk full. Extends the storage if these bytes lie beyond its end. Existing bytes stay; new ones read as zero.
    ///
    /// Returns `false` if this storage cannot reserve space. The storage may have become longer in that case, and after an
    /// error.
    ///
    /// On a copy-on-write file system, a later write may find the disk full although this reported success; see
    /// [`Storage::copies_on_write`].
    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Gives the file its own copy of each block that it shares with another file, because overwriting a shared block needs
    /// new space. If the disk is too full for that, [`Storage::copies_on_write`] is true afterwards.
    fn unshare(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether overwriting bytes may need new space on the medium. False if that is unknown.
    fn copies_on_write(&self) -> bool {
        false
    }

    /// Returns the process's limit on the length of the storage, in bytes, or None if there is no limit. The limit may
    /// change between calls. A write beyond it returns an error and writes nothing.
    fn size_limit(&self) -> Option<u64> {
        None
    }

    /// Makes the data durable, and the metadata that is needed to read it back (fdatasync).
    ///
    /// After any failure except an interruption, it is unknown which bytes are durable. Callers must not retry, because a
    /// second call may report success for data that is lost. See [`sync_data`].
    fn sync_data(&self) -> io::Result<()>;

    /// Makes data and all metadata durable, then the file's entry in its directory.
    ///
    /// Callers must not retry this either after a failure, as with [`Storage::sync_data`]. See [`sync_all`].
    fn sync_all(&self) -> io::Result<()>;

    /// Whether the path by which the file was opened still refers to that file, rather than to a different file or to none.
    /// A storage without a path is always in place.
    ///
    /// # Errors
    ///
    /// The operating system cannot resolve the path.
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Releases the lock on the file, so that it can be opened again even while maps or forked processes still refer to it.
    /// The caller must not read or write afterwards.
    fn unlock(&self) {}

    /// Maps `length` bytes at `offset` into memory. Returns `None` if this storage can be read only with
    /// [`Storage::read_at`].
    fn map(&self, offset: u64, length: usize) -> io::Result<Option<Map>>;
}

/// The number of bytes that [`write_zeroes_at`] writes at a time: enough to need few system calls. A file system may cache
/// a piece that begins at a multiple of its length as one unit, which also makes the next sync cheaper.
pub(crate) const ZEROES_BYTES: usize = 256 * 1024;

/// The bytes that [`write_zeroes_at`] writes. They are read-only, so they take no memory until they are used.
static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// Fills `buffer` from `offset`, continuing after interruptions and short reads.
///
/// # Errors
///
/// [`io::ErrorKind::UnexpectedEof`] if the range ends beyond the storage. The content of `buffer` is unspecified after an
/// error.
pub(crate) fn read_exact_at(storage: &dyn Storage, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = uninterrupted(|| storage.read_at(buffer, offset))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = buffer.get_mut(read..).ok_or_else(wrong_count)?;
        offset = advance(offset, read)?;
    }
    Ok(())
}

/// Reads `length` bytes from `offset` on. Holes are not read, and memory for them is not touched, so the cost is
/// proportional to the data in the range.
pub(crate) fn read_held_at(storage: &dyn Storage, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let end = advance(offset, length)?;
    if end > storage.len()? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; length];
    let mut at = offset;
    while at < end {
        let run = match storage.next_data(at)? {
            Some(run) if run.start < end && run.end > at => run.start.max(at)..run.end.min(end),
            _ => break,
        };
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        let data = bytes.get_mut(within(run.start)..within(run.end)).ok_or_else(wrong_count)?;
        read_exact_at(storage, data, run.start)?;
        at = run.end;
    }
    Ok(bytes)
}

/// Writes all of `bytes` at `offset`, continuing after interruptions and short writes.
///
/// # Errors
///
/// [`io::ErrorKind::WriteZero`] if the storage accepts no more bytes. After any error, it is unknown how much was written.
pub(crate) fn write_all_at(storage: &dyn Storage, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = uninterrupted(|| storage.write_at(bytes, offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(written..).ok_or_else(wrong_count)?;
        offset = advance(offset, written)?;
    }
    Ok(())
}

/// Writes zeroes over `length` bytes at `offset`, in pieces.
///
/// Unlike a hole, written zeroes make the file system allocate the space now, when a full disk does no harm yet. A later
/// write to the range then changes no metadata, which its sync would have to wait for.
pub(crate) fn write_zeroes_at(storage: &dyn Storage, mut offset: u64, length: u64) -> io::Result<()> {
    let end = offset.checked_add(length).ok_or_else(beyond_all_offsets)?;
    while offset < end {
        // All pieces but the first begin at multiples of the piece length.
        let to_multiple = ZEROES_BYTES as u64 - offset % ZEROES_BYTES as u64;
        let piece_bytes = usize::try_from(to_multiple.min(end - offset)).unwrap_or(ZEROES_BYTES);
        write_all_at(storage, &ZEROES[..piece_bytes], offset)?;
        offset = advance(offset, piece_bytes)?;
    }
    Ok(())
}

/// Makes the data durable. Retries only after an interruption.
///
/// Any other failure is final: the operating system may mark the pages that it could not write as clean, so that a second
/// sync succeeds although the data is lost.
pub(crate) fn sync_data(storage: &dyn Storage) -> io::Result<()> {
    uninterrupted(|| storage.sync_data())
}

/// Makes data, metadata and directory entry durable. Retries only after an interruption; see [`sync_data`].
pub(crate) fn sync_all(storage: &dyn Storage) -> io::Result<()> {
    uninterrupted(|| storage.sync_all())
}

/// Changes the length. Retries only after an interruption.
pub(crate) fn set_len(storage: &dyn Storage, length: u64) -> io::Result<()> {
    uninterrupted(|| storage.set_len(length))
}

/// Repeats `call` while signals interrupt it.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Returns `offset + bytes`, or an error on overflow.
fn advance(offset: u64, bytes: usize) -> io::Result<u64> {
    u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes)).ok_or_else(beyond_all_offsets)
}

/// Returns the error for a range that ends beyond the largest offset.
fn beyond_all_offsets() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the range ends beyond the largest offset")
}

/// Returns the error for a storage that reports an impossible count. Slicing by that count would panic in the commit leader.
fn wrong_count() -> io::Error {
    io::Error::other("the storage reports to have moved more bytes than requested")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A storage that interrupts every second read or write, moves at most three bytes in the others, and fails syncs with
    /// the given errors.
    #[derive(Debug, Default)]
    struct Reluctant {
        inner: MemoryStorage,
        /// The number of reads and writes so far.
        calls: AtomicUsize,
        /// The offset and the length of each write.
        writes: Mutex<Vec<(u64, usize)>>,
        /// Whether a call may move more than three bytes.
        moves_all: bool,
        accepts_nothing: bool,
        /// The number of syncs so far.
        syncs: AtomicUsize,
        /// The errors of the next syncs, last one first.
        sync_errors: Mutex<Vec<io::Error>>,
    }

    impl Reluctant {
        fn piece_bytes(&self, requested_bytes: usize) -> io::Result<usize> {
            if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(if self.moves_all { requested_bytes } else { requested_bytes.min(3) })
        }

        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            self.sync_errors.lock().pop().map_or(Ok(()), Err)
        }
    }

    impl Storage for Reluctant {
        fn len(&self) -> io::Result<u64> {
            self.inner.len()
        }

        fn set_len(&self, length: u64) -> io::Result<()> {
            self.inner.set_len(length)
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let piece_bytes = self.piece_bytes(buffer.len())?;
            self.inner.read_at(&mut buffer[..piece_bytes], offset)
        }

        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let piece_bytes = self.piece_bytes(bytes.len())?;
            if self.accepts_nothing {
                return Ok(0);
            }
            self.writes.lock().push((offset, piece_bytes));
            self.inner.write_at(&bytes[..piece_bytes], offset)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.sync()
        }

        fn sync_all(&self) -> io::Result<()> {
            self.sync()
        }

        fn map(&self, offset: u64, length: usize) -> io::Result<Option<Map>> {
            self.inner.map(offset, length)
        }
    }

    /// A storage that reports one byte more than was requested.
    #[derive(Debug)]
    struct Boastful;

    impl Storage for Boastful {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn set_len(&self, _length: u64) -> io::Result<()> {
            Ok(())
        }

        fn read_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
            Ok(buffer.len() + 1)
        }

        fn write_at(&self, bytes: &[u8], _offset: u64) -> io::Result<usize> {
            Ok(bytes.len() + 1)
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

    #[test]
    fn short_and_interrupted_calls_are_continued() {
        let storage = Reluctant::default();
        write_all_at(&storage, b"performed once", 5).unwrap();
        let mut buffer = [0xff; 19];
        read_exact_at(&storage, &mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"\0\0\0\0\0performed once");
        assert_eq!(storage.len().unwrap(), 19);
    }

    #[test]
    fn a_read_beyond_the_end_is_an_error() {
        let storage = Reluctant::default();
        write_all_at(&storage, b"1234567", 0).unwrap();
        for (offset, length) in [(0, 8), (6, 2), (7, 1), (100, 1), (u64::MAX, 1)] {
            let error = read_exact_at(&storage, &mut vec![0; length], offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "offset {offset}, length {length}");
        }
        read_exact_at(&storage, &mut [], 100).unwrap();
    }

    #[test]
    fn a_write_that_accepts_nothing_is_an_error() {
        let storage = Reluctant { accepts_nothing: true, ..Reluctant::default() };
        assert_eq!(write_all_at(&storage, b"x", 0).unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_wrong_count_is_an_error() {
        assert!(write_all_at(&Boastful, b"abc", 0).is_err());
        assert!(read_exact_at(&Boastful, &mut [0; 3], 0).is_err());
    }

    #[test]
    fn a_range_beyond_the_largest_offset_writes_nothing() {
        let storage = MemoryStorage::new();
        for (offset, length) in [(u64::MAX, 1), (1, u64::MAX)] {
            let error = write_zeroes_at(&storage, offset, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "offset {offset}, length {length}");
        }
        assert_eq!(storage.len().unwrap(), 0);
    }

    #[test]
    fn zeroes_cover_exactly_the_range_in_aligned_pieces() {
        let storage = Reluctant { moves_all: true, ..Reluctant::default() };
        let length = ZEROES_BYTES * 2 + 3;
        write_all_at(&storage, &vec![0xff; length + 2], 0).unwrap();
        storage.writes.lock().clear();

        write_zeroes_at(&storage, 1, length as u64).unwrap();

        let mut buffer = vec![0; length + 2];
        read_exact_at(&storage, &mut buffer, 0).unwrap();
        assert_eq!(buffer[0], 0xff);
        assert!(buffer[1..=length].iter().all(|&byte| byte == 0));
        assert_eq!(buffer[length + 1], 0xff);
        let multiple = ZEROES_BYTES as u64;
        let pieces = [(1, ZEROES_BYTES - 1), (multiple, ZEROES_BYTES), (2 * multiple, 4)];
        assert_eq!(
            *storage.writes.lock(),
            pieces,
            "all but the first begin at multiples of the piece length"
        );

        write_zeroes_at(&storage, 1 << 40, 0).unwrap();
        assert_eq!(storage.len().unwrap(), length as u64 + 2);
    }

    #[test]
    fn an_interrupted_sync_is_retried() {
        for sync in [sync_data, sync_all] {
            let storage = Reluctant::default();
            storage.sync_errors.lock().push(io::ErrorKind::Interrupted.into());
            sync(&storage).unwrap();
            assert_eq!(storage.syncs.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn a_failed_sync_is_never_retried() {
        /// The number of EIO, which has no `ErrorKind`. It is the same on every unix.
        const INPUT_OUTPUT_ERROR: i32 = 5;
        for sync in [sync_data, sync_all] {
            let storage = Reluctant::default();
            storage.sync_errors.lock().push(io::Error::from_raw_os_error(INPUT_OUTPUT_ERROR));
            assert_eq!(sync(&storage).unwrap_err().raw_os_error(), Some(INPUT_OUTPUT_ERROR));
            assert_eq!(storage.syncs.load(Ordering::Relaxed), 1);
        }
    }
}
