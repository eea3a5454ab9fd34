//! The seam between the log and the medium it lies on.
//!
//! Everything above speaks to a [`Storage`] and to nothing else, so that a test can put a medium that loses
//! power, fills up or fails in place of the file. The trait promises no more than a file promises: it may
//! read and write short and may be interrupted. The functions of this module turn that into all or an error,
//! once, for every storage.
//!
//! What is assumed of the medium, and nothing beyond it:
//!
//! - a sync that reports success is true;
//! - a sector (512 bytes) that holds synced bytes and is written again holds, after a crash, the old bytes or
//!   the new ones (powersafe overwrite, as SQLite and redb assume);
//! - anything else that was not synced may be lost, kept or garbage, in any order.

mod file;
mod memory;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod overwriting;
#[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
pub(crate) mod simulated;

pub(crate) use file::{FileStorage, OpenError, file_size_limit};
pub(crate) use memory::MemoryStorage;

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use crate::map::Map;

/// A run of bytes that can be read, written, resized and made durable: the file, or what stands in for it.
///
/// All methods take `&self`: readers do not wait for the commit leader's write. Calls that touch the same
/// bytes at the same time, one of them a write, are a mistake of the caller; a storage keeps memory safe then
/// and promises nothing about the bytes.
///
/// What the medium must keep is written in the [module documentation](self).
pub(crate) trait Storage: Send + Sync + Debug {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts off what lies beyond `length`, or extends with bytes that read as zero.
    ///
    /// Extending reserves no room on the medium: a later write into it may still find the disk full. Room is
    /// set aside by [`Storage::reserve`] and [`write_zeroes_at`].
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Reads at `offset`, perhaps less than asked for; 0 is the end of the file. See [`read_exact_at`].
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The first run of bytes at or behind `offset` that may be other than zero; None: from there on there are only zeroes,
    /// or the end. A storage that does not know what it holds answers with all of the rest.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.len()?;
        Ok((offset < length).then_some(offset..length))
    }

    /// Writes at `offset`, perhaps less than given; extends the file when it writes past the end, and a gap
    /// before `offset` reads as zero. See [`write_all_at`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes room on the medium for `length` bytes at `offset`, without writing them: the storage then ends behind them or
    /// later, and writing them finds no disk full. What was there stays, what was not reads as zero. `false` if this
    /// storage cannot do that; after that, and after an error, it may be longer than before.
    ///
    /// A file system that never writes in place may promise it and be full all the same, as it may be for bytes that were
    /// written before; see [`Storage::copies_on_write`].
    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Gives the storage blocks of its own for all that it holds, where a copy shares them; a write to a shared block would
    /// have to find room. Where that cannot be had, [`Storage::copies_on_write`] says so afterwards.
    fn unshare(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether bytes that are written again may have to find room, as far as is known.
    fn copies_on_write(&self) -> bool {
        false
    }

    /// How long the process may let the storage become, in bytes, if something other than the medium limits that. It may be
    /// another limit at the next call. What would go beyond it is an error, and nothing is written there.
    fn size_limit(&self) -> Option<u64> {
        None
    }

    /// Makes the data durable, and whatever metadata is needed to read it back (fdatasync).
    ///
    /// After any failure but an interruption it is unknown what is durable, and a second call may report a
    /// success that is not one: never try again. See [`sync_data`].
    fn sync_data(&self) -> io::Result<()>;

    /// Makes data and all metadata durable, then the directory entry by which the file is found again.
    ///
    /// A failure means what a failure of [`Storage::sync_data`] means. See [`sync_all`].
    fn sync_all(&self) -> io::Result<()>;

    /// Whether the path by which it was opened still leads to it, and not to another file or to none. An error says
    /// that the operating system could not tell. A storage without a path is always in place.
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Lets others open the file, whatever handles, views and forked processes still have it. Nothing may be read or
    /// written afterwards.
    fn unlock(&self) {}

    /// A view of `length` bytes at `offset` that lives as long as itself; `None` if this storage is to be
    /// read with [`Storage::read_at`] only.
    fn map(&self, offset: u64, length: usize) -> io::Result<Option<Map>>;
}

/// How many zeroes [`write_zeroes_at`] writes at once: few system calls, and little memory. What is written at once, and begins at
/// a multiple of its length, a file system may cache as one piece, which is less work, for the sync that follows too.
pub(crate) const ZEROES_BYTES: usize = 256 * 1024;

/// What [`write_zeroes_at`] writes; read-only, so it costs no memory until it is used.
static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// Fills `buffer` from `offset`.
///
/// Interruptions and short reads are continued. A range that reaches beyond the end of the storage is
/// [`io::ErrorKind::UnexpectedEof`], and what `buffer` then holds is unspecified.
pub(crate) fn read_exact_at(storage: &dyn Storage, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = uninterrupted(|| storage.read_at(buffer, offset))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = buffer.get_mut(read..).ok_or_else(more_than_asked)?;
        offset = advance(offset, read)?;
    }
    Ok(())
}

/// The `length` bytes from `offset` on. Where the storage says that it holds nothing, nothing is read, and the memory for it
/// is not touched: what this costs is in proportion to what the storage holds.
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
        let held = bytes.get_mut(within(run.start)..within(run.end)).ok_or_else(more_than_asked)?;
        read_exact_at(storage, held, run.start)?;
        at = run.end;
    }
    Ok(bytes)
}

/// Writes all of `bytes` at `offset`.
///
/// Interruptions and short writes are continued. A write that accepts nothing is
/// [`io::ErrorKind::WriteZero`]. After any error it is unknown how much was written.
pub(crate) fn write_all_at(storage: &dyn Storage, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = uninterrupted(|| storage.write_at(bytes, offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(written..).ok_or_else(more_than_asked)?;
        offset = advance(offset, written)?;
    }
    Ok(())
}

/// Writes zeroes over `length` bytes at `offset`, in pieces.
///
/// Real zeroes and not a hole: the file system must find the room now, where a full disk harms nobody, and a
/// later write into the range then changes no metadata that its sync would have to wait for.
pub(crate) fn write_zeroes_at(storage: &dyn Storage, mut offset: u64, length: u64) -> io::Result<()> {
    let end = offset.checked_add(length).ok_or_else(beyond_all_offsets)?;
    while offset < end {
        // Behind the first one, pieces begin at multiples of their length.
        let to_multiple = ZEROES_BYTES as u64 - offset % ZEROES_BYTES as u64;
        let piece_bytes = usize::try_from(to_multiple.min(end - offset)).unwrap_or(ZEROES_BYTES);
        write_all_at(storage, &ZEROES[..piece_bytes], offset)?;
        offset = advance(offset, piece_bytes)?;
    }
    Ok(())
}

/// Makes the data durable; only an interruption is tried again.
///
/// Any other failure is final. The operating system may drop the pages it could not write and call them
/// clean, so that a second sync succeeds over data that is lost.
pub(crate) fn sync_data(storage: &dyn Storage) -> io::Result<()> {
    uninterrupted(|| storage.sync_data())
}

/// Makes data, metadata and directory entry durable; only an interruption is tried again, for the reason
/// given at [`sync_data`].
pub(crate) fn sync_all(storage: &dyn Storage) -> io::Result<()> {
    uninterrupted(|| storage.sync_all())
}

/// Changes the length; only an interruption is tried again.
pub(crate) fn set_len(storage: &dyn Storage, length: u64) -> io::Result<()> {
    uninterrupted(|| storage.set_len(length))
}

/// Repeats `call` for as long as a signal interrupts it before it did anything.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// `offset` moved on by `bytes`.
fn advance(offset: u64, bytes: usize) -> io::Result<u64> {
    u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes)).ok_or_else(beyond_all_offsets)
}

/// A range whose end no offset can name.
fn beyond_all_offsets() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the range ends beyond the largest offset")
}

/// A storage that broke its contract: an error, because a wrong count must not become a panic in the commit
/// leader.
fn more_than_asked() -> io::Error {
    io::Error::other("the storage claims to have moved more bytes than it was asked to")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Interrupts every second call, moves at most three bytes in the others, and fails syncs as told.
    #[derive(Debug, Default)]
    struct Reluctant {
        inner: MemoryStorage,
        calls: AtomicUsize,
        writes: Mutex<Vec<(u64, usize)>>,
        generous: bool,
        accepts_nothing: bool,
        syncs: AtomicUsize,
        sync_errors: Mutex<Vec<io::Error>>,
    }

    impl Reluctant {
        fn piece_bytes(&self, asked_bytes: usize) -> io::Result<usize> {
            if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(if self.generous { asked_bytes } else { asked_bytes.min(3) })
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

    /// Claims to have moved one byte more than it was given room for.
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
    fn short_and_interrupted_reads_and_writes_are_continued() {
        let storage = Reluctant::default();
        write_all_at(&storage, b"performed once", 5).unwrap();
        let mut buffer = [0xff; 19];
        read_exact_at(&storage, &mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"\0\0\0\0\0performed once");
        assert_eq!(storage.len().unwrap(), 19);
    }

    #[test]
    fn a_read_beyond_the_end_is_an_error_and_not_short() {
        let storage = Reluctant::default();
        write_all_at(&storage, b"1234567", 0).unwrap();
        for (offset, length) in [(0, 8), (6, 2), (7, 1), (100, 1), (u64::MAX, 1)] {
            let error = read_exact_at(&storage, &mut vec![0; length], offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "offset {offset}, length {length}");
        }
        read_exact_at(&storage, &mut [], 100).unwrap();
    }

    #[test]
    fn a_write_that_accepts_nothing_is_an_error_and_not_an_endless_loop() {
        let storage = Reluctant { accepts_nothing: true, ..Reluctant::default() };
        assert_eq!(write_all_at(&storage, b"x", 0).unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_storage_that_claims_too_much_is_an_error_and_not_a_panic() {
        assert!(write_all_at(&Boastful, b"abc", 0).is_err());
        assert!(read_exact_at(&Boastful, &mut [0; 3], 0).is_err());
    }

    #[test]
    fn a_range_beyond_the_largest_offset_is_refused_before_anything_is_written() {
        let storage = MemoryStorage::new();
        for (offset, length) in [(u64::MAX, 1), (1, u64::MAX)] {
            let error = write_zeroes_at(&storage, offset, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "offset {offset}, length {length}");
        }
        assert_eq!(storage.len().unwrap(), 0);
    }

    #[test]
    fn zeroes_cover_the_range_exactly_and_come_in_pieces() {
        let storage = Reluctant { generous: true, ..Reluctant::default() };
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
        assert_eq!(*storage.writes.lock(), pieces, "behind the first, from multiples of their length on");

        write_zeroes_at(&storage, 1 << 40, 0).unwrap();
        assert_eq!(storage.len().unwrap(), length as u64 + 2);
    }

    #[test]
    fn an_interrupted_sync_is_tried_again() {
        for sync in [sync_data, sync_all] {
            let storage = Reluctant::default();
            storage.sync_errors.lock().push(io::ErrorKind::Interrupted.into());
            sync(&storage).unwrap();
            assert_eq!(storage.syncs.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn a_failed_sync_is_never_tried_again() {
        /// EIO, which has no kind of its own; the number is the same on every unix.
        const INPUT_OUTPUT_ERROR: i32 = 5;
        for sync in [sync_data, sync_all] {
            let storage = Reluctant::default();
            storage.sync_errors.lock().push(io::Error::from_raw_os_error(INPUT_OUTPUT_ERROR));
            assert_eq!(sync(&storage).unwrap_err().raw_os_error(), Some(INPUT_OUTPUT_ERROR));
            assert_eq!(storage.syncs.load(Ordering::Relaxed), 1);
        }
    }
}
