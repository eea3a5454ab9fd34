//! A file that is only read: that of a store which is not open, for checks and repairs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::Storage;
use super::opening::{OpenError, ResolvedPath, lock_shared, open_to_read};
use crate::map::Map;

/// A storage in a regular file that no store has open, and that nothing can write to through this handle.
///
/// The lock is shared. Several readers can have the file open at a time, and a store can open it only after the last of them
/// is done: bytes that change while they are read would look like damage. The file may be on a medium that is mounted
/// read-only.
#[derive(Debug)]
pub(crate) struct ReadOnlyFile {
    file: File,
    process_id: u32,
}

impl ReadOnlyFile {
    /// Opens and locks the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<ReadOnlyFile, OpenError> {
        let resolved = ResolvedPath::resolve(path, false)?;
        let file = open_to_read(&resolved.file)?;
        lock_shared(&file)?;
        Ok(ReadOnlyFile { file, process_id: std::process::id() })
    }

    fn refuse<T>() -> io::Result<T> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Drop for ReadOnlyFile {
    fn drop(&mut self) {
        // A forked process must not release the lock of its parent.
        if std::process::id() == self.process_id {
            self.unlock();
        }
    }
}

impl Storage for ReadOnlyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        ReadOnlyFile::refuse()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        super::next_data(&self.file, offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        ReadOnlyFile::refuse()
    }

    fn sync_data(&self) -> io::Result<()> {
        ReadOnlyFile::refuse()
    }

    fn sync_all(&self) -> io::Result<()> {
        ReadOnlyFile::refuse()
    }

    fn unlock(&self) {
        // Unlocking can fail only for a handle that does not refer to a file.
        let _ = self.file.unlock();
    }

    fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
        Ok(None)
    }
}
