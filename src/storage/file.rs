//! The file of a store: opened once, locked while it is open, and synced together with its directory entry.

#[cfg(not(unix))]
compile_error!(
    "oncekey runs on unix only: it relies on positional reads and writes, on syncing a directory, and on a \
     file lock that belongs to the open file"
);

mod opened;
mod opening;
mod new_file;
mod read_only;

use super::Storage;
use crate::map::Map;
use crate::sync::Patience;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use opening::{Directory, ResolvedPath, create_new, lock, open_existing, open_or_create, require_regular};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

pub(crate) use new_file::NewFile;
pub(crate) use opening::OpenError;
pub(crate) use read_only::ReadOnlyFile;

/// A storage in a regular file that no other store has open.
///
/// The operating system would release the lock only with the last handle to the open file. A forked process also has such a
/// handle, until it ends or runs a different program, and on Linux so does a [`Map`] of the file. So the lock is released
/// explicitly: by [`Storage::unlock`] when the store is closed, and on drop. The drop compares process ids, because a forked
/// process must not release the lock of its parent.
#[derive(Debug)]
pub(crate) struct FileStorage {
    /// The locked file.
    file: File,
    /// The identity of the file, for comparison with the file that the path refers to later.
    identity: FileIdentity,
    /// The path that was opened. It is absolute, but symbolic links are not resolved, so another process that opens it
    /// follows them again.
    path: PathBuf,
    /// The process that locked the file. None if it was opened for reading only, without a lock.
    locked_by: Option<u32>,
    /// The lock was released.
    is_unlocked: AtomicBool,
    /// The directory of the file.
    directory: Directory,
    /// Whether [`Storage::map`] may map the file.
    mmap: bool,
    /// Whether overwriting bytes may need new space on the medium. False if that is unknown.
    copies_on_write: AtomicBool,
    /// Bytes below this offset were within the limit on file sizes when they were first written or reserved.
    within_limit: AtomicU64,
}

impl FileStorage {
    /// Opens the file at `path` for reading and writing, and locks it before reading any of it.
    ///
    /// With `create`, a missing file is created; only its owner may read and write it. An existing file is never truncated.
    /// With `mmap`, [`Storage::map`] maps the file. Symbolic links are followed: [`Storage::sync_all`] syncs the directory
    /// that contains the file, not the one that contains the link.
    ///
    /// If another process has the lock, waits for it as long as `patience` says. If this process has it, waits only for the
    /// time that closing a store takes.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Only a regular file is opened: opening a pipe would wait for its other end, and opening a device
    /// may have side effects.
    pub(crate) fn open(
        path: &Path,
        create: bool,
        mmap: bool,
        patience: Patience,
    ) -> Result<FileStorage, OpenError> {
        /// The maximum number of attempts, if the path refers to a different file each time.
        const MAX_ATTEMPTS: usize = 10;
        for _ in 0..MAX_ATTEMPTS {
            let storage = FileStorage::open_once(path, create, mmap, patience)?;
            // If the file was removed or replaced before it was locked, another process could open the path too.
            if storage.is_in_place().map_err(OpenError::during("inspect the file"))? {
                return Ok(storage);
            }
        }
        let source = io::Error::new(io::ErrorKind::NotFound, "its path refers to a different file each time");
        Err(OpenError::during("open the file")(source))
    }

    fn open_once(
        path: &Path,
        create: bool,
        mmap: bool,
        patience: Patience,
    ) -> Result<FileStorage, OpenError> {
        let resolved = ResolvedPath::resolve(path, create)?;
        let path = std::path::absolute(path).map_err(OpenError::during("resolve the path"))?;
        let directory = Directory::open(&resolved.directory)?;
        match fs::metadata(&resolved.file) {
            Ok(metadata) => require_regular(metadata.file_type())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::during("inspect the file")(error)),
        }

        let file = open_or_create(&resolved.file, create)?;
        // The path may have been replaced since the check above, so the opened file is checked too.
        let metadata = file.metadata().map_err(OpenError::during("inspect the file"))?;
        require_regular(metadata.file_type())?;
        let identity = FileIdentity::of(&metadata);
        lock(&file, patience, || opened::is_open(identity))?;
        opened::add(identity);
        let copies_on_write = AtomicBool::new(prefer_in_place(&file, metadata.len() == 0));
        Ok(FileStorage {
            file,
            identity,
            path,
            locked_by: Some(std::process::id()),
            directory,
            mmap,
            copies_on_write,
            within_limit: AtomicU64::new(0),
            is_unlocked: AtomicBool::new(false),
        })
    }

    /// Opens the file at `path` for reading only, without a lock and without maps. Another process may be writing to it.
    pub(crate) fn open_to_read(path: &Path) -> Result<FileStorage, OpenError> {
        let resolved = ResolvedPath::resolve(path, false)?;
        let path = std::path::absolute(path).map_err(OpenError::during("resolve the path"))?;
        let directory = Directory::open(&resolved.directory)?;
        let file = open_existing(&resolved.file)?;
        let metadata = file.metadata().map_err(OpenError::during("inspect the file"))?;
        Ok(FileStorage {
            identity: FileIdentity::of(&metadata),
            file,
            path,
            locked_by: None,
            directory,
            mmap: false,
            copies_on_write: AtomicBool::new(false),
            within_limit: AtomicU64::new(0),
            is_unlocked: AtomicBool::new(false),
        })
    }

    /// Creates an empty file at `path`, for [`FileStorage::open`]. Fails if the path exists.
    pub(crate) fn create_new(path: &Path) -> Result<(), OpenError> {
        create_new(path)
    }

    /// Refuses to use bytes beyond the process's limit on file sizes. The operating system would refuse that too, but would
    /// also send SIGXFSZ, which by default ends the process. Reading the limit is a system call, so it is read only for
    /// bytes that were never used before.
    fn check_size_limit(&self, end: u64) -> io::Result<()> {
        if end <= self.within_limit.load(Ordering::Relaxed) {
            return Ok(());
        }
        match file_size_limit() {
            Some(limit) if end > limit => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "byte {end} is beyond the limit of {limit} bytes for files of this process (RLIMIT_FSIZE)"
                ),
            )),
            _ => {
                self.within_limit.fetch_max(end, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        if self.locked_by == Some(std::process::id()) {
            self.unlock();
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.check_size_limit(length)?;
        self.file.set_len(length)?;
        // Bytes that are cut off now and written again later must be checked against the limit at that time.
        self.within_limit.fetch_min(length, Ordering::Relaxed);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn will_read(&self, offset: u64, length: u64) {
        use rustix::fs::{Advice, fadvise};
        let _ = fadvise(&self.file, offset, std::num::NonZeroU64::new(length), Advice::WillNeed);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        next_data(&self.file, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.check_size_limit(offset.saturating_add(bytes.len() as u64))?;
        self.file.write_at(bytes, offset)
    }

    fn size_limit(&self) -> Option<u64> {
        file_size_limit()
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn unshare(&self) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        let flags = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
        let mut at = 0;
        // Holes are skipped, because the call would allocate blocks for them.
        while let Some(run) = self.next_data(at)?.filter(|run| run.end > at) {
            match fallocate(&self.file, flags, run.start, run.end - run.start) {
                Ok(()) => at = run.end,
                // The call is repeated. It may have been interrupted at the beginning or after most of its work.
                Err(Errno::INTR) => {}
                // XFS needs some free space even if nothing is shared. A full disk must not prevent the store from being
                // opened.
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    self.copies_on_write.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Err(Errno::IO) => return Err(Errno::IO.into()),
                // The file system does not share blocks, or `prefer_in_place` has already found that it copies on write.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn copies_on_write(&self) -> bool {
        self.copies_on_write.load(Ordering::Relaxed)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn reserve(&self, offset: u64, length: u64) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        self.check_size_limit(offset.saturating_add(length))?;
        match fallocate(&self.file, FallocateFlags::empty(), offset, length) {
            Ok(()) => Ok(true),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
            // The file system or a sandbox does not support the call. If something else is wrong, the zeroes that the caller
            // writes instead fail too. An interrupted call is not repeated either: it may have undone its work, so the loop
            // might never end.
            Err(_) => Ok(false),
        }
    }

    // On Apple systems, the standard library uses F_FULLFSYNC for both kinds of sync. A plain fsync would not flush the
    // drive's cache.
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    // The file is synced first, so that after a crash the entry cannot refer to a file that did not survive. It is an error
    // if the file system cannot sync a directory, because nothing else makes the entry durable.
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()?;
        self.directory.sync(&self.file)
    }

    fn is_in_place(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(FileIdentity::of(&metadata) == self.identity),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn unlock(&self) {
        if self.locked_by.is_none() {
            return;
        }
        if !self.is_unlocked.swap(true, Ordering::Relaxed) {
            opened::remove(self.identity);
        }
        // Unlocking can fail only for a handle that does not refer to a file.
        let _ = self.file.unlock();
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Option<Map>> {
        // On OpenBSD, mapped pages do not show what is written through the file, so a map would miss new records.
        if !self.mmap || cfg!(target_os = "openbsd") {
            return Ok(None);
        }
        Map::new(&self.file, offset, length).map(Some)
    }
}

/// Returns the first range of a file at or after `offset` that is not a hole.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let length = file.metadata()?.len();
    // These calls move the file's cursor, which nothing else uses, because all reads and writes are positional.
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // The file system does not support the call, so there may be data from `offset` on.
        Err(_) => offset,
    };
    let end = seek(file, SeekFrom::Hole(start)).map_or(length, |end| end.min(length));
    Ok((start < end).then_some(start..end))
}

/// The identity of a file, independent of its name. Two files that exist at the same time have different identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(metadata: &fs::Metadata) -> FileIdentity {
        FileIdentity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Marks an empty file "no copy on write" if the file system supports that mark. Returns whether the file system is known to
/// copy overwritten bytes all the same.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn prefer_in_place(file: &File, is_empty: bool) -> bool {
    use super::overwriting::{copies_on_write, may_support_nocow};
    use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
    let Ok(status) = fstatfs(file) else { return false };
    // The width and the sign of the field differ between architectures, but magic numbers have 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "magic numbers have 32 bits")]
    let file_system = status.f_type as u32;
    let flags = || ioctl_getflags(file).unwrap_or(IFlags::empty());
    if is_empty && may_support_nocow(file_system) {
        // If this is refused, the flags stay as they were. They are read back below.
        let _ = ioctl_setflags(file, flags() | IFlags::NOCOW);
    }
    copies_on_write(file_system, flags().contains(IFlags::NOCOW))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn prefer_in_place(_file: &File, _is_empty: bool) -> bool {
    false
}

/// Returns the process's limit on the length of a file, in bytes. None if there is no limit, or it cannot be read.
pub(crate) fn file_size_limit() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return None;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::super::{read_exact_at, sync_all, sync_data, write_all_at};
    use super::opening::MODE;
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    fn in_new_directory(name: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        (directory, path)
    }

    #[test]
    fn written_bytes_survive_reopening() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        assert_eq!(storage.len().unwrap(), 0);
        write_all_at(&storage, b"receipt", 4096).unwrap();
        sync_data(&storage).unwrap();
        sync_all(&storage).unwrap();
        drop(storage);

        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        assert_eq!(storage.len().unwrap(), 4103);
        let mut buffer = [0xff; 8];
        read_exact_at(&storage, &mut buffer, 4095).unwrap();
        assert_eq!(&buffer, b"\0receipt");
    }

    #[test]
    fn a_second_open_in_the_same_process_is_refused() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        write_all_at(&storage, b"mine", 0).unwrap();
        for create in [false, true] {
            assert!(matches!(FileStorage::open(&path, create, true, Patience::None), Err(OpenError::Locked)));
        }
        assert_eq!(storage.len().unwrap(), 4);
    }

    #[test]
    fn dropping_the_storage_releases_the_lock() {
        let (_directory, path) = in_new_directory("store.once");
        drop(FileStorage::open(&path, true, true, Patience::None).unwrap());
        FileStorage::open(&path, false, true, Patience::None).unwrap();
    }

    #[test]
    fn the_lock_applies_to_symbolic_and_hard_links() {
        let (directory, path) = in_new_directory("store.once");
        let _storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        let symbolic = directory.path().join("symbolic");
        symlink(&path, &symbolic).unwrap();
        assert!(matches!(FileStorage::open(&symbolic, true, true, Patience::None), Err(OpenError::Locked)));
        let hard = directory.path().join("hard");
        fs::hard_link(&path, &hard).unwrap();
        assert!(matches!(FileStorage::open(&hard, true, true, Patience::None), Err(OpenError::Locked)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn reserved_bytes_have_blocks_and_read_as_zero() {
        use std::os::unix::fs::MetadataExt;
        const LENGTH: u64 = 1 << 20;
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        write_all_at(&storage, &[7; 4_096], 0).unwrap();
        if !storage.reserve(4_096, LENGTH).unwrap() {
            assert_eq!(
                storage.len().unwrap(),
                4_096,
                "a file system that cannot reserve must change nothing"
            );
            return;
        }
        assert_eq!(storage.len().unwrap(), 4_096 + LENGTH);
        // A copy-on-write file system may report success and reserve nothing.
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks < 16 || blocks * 512 >= 4_096 + LENGTH, "{blocks} blocks");
        let mut bytes = vec![1; 4_096 + 1_048_576];
        read_exact_at(&storage, &mut bytes, 0).unwrap();
        assert!(bytes[..4_096].iter().all(|byte| *byte == 7));
        assert!(bytes[4_096..].iter().all(|byte| *byte == 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_map_does_not_keep_the_lock() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        storage.set_len(4096).unwrap();
        let map = storage.map(0, 4096).unwrap().unwrap();
        storage.unlock();
        let storage = FileStorage::open(&path, false, true, Patience::None).unwrap();
        let second = storage.map(0, 4096).unwrap().unwrap();
        drop(storage);
        FileStorage::open(&path, false, true, Patience::None).unwrap();
        drop((map, second));
    }

    #[test]
    fn the_file_is_in_place_while_its_path_refers_to_it() {
        let (directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        assert!(storage.is_in_place().unwrap());
        let away = directory.path().join("away");
        fs::rename(&path, &away).unwrap();
        assert!(!storage.is_in_place().unwrap());
        fs::write(&path, b"").unwrap();
        assert!(!storage.is_in_place().unwrap());
        fs::rename(&away, &path).unwrap();
        assert!(storage.is_in_place().unwrap());
        fs::remove_file(&path).unwrap();
        symlink(&path, &path).unwrap();
        assert!(storage.is_in_place().is_err(), "a cycle of links must be an error");
    }

    #[test]
    fn open_waits_for_a_briefly_held_lock() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        let (ready, wait_for_ready) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                ready.send(()).unwrap();
                thread::sleep(Duration::from_millis(5));
                drop(storage);
            });
            wait_for_ready.recv().unwrap();
            FileStorage::open(&path, false, true, Patience::None).unwrap();
        });
    }

    #[test]
    fn only_the_owner_may_access_a_created_file() {
        let (_directory, path) = in_new_directory("store.once");
        let _storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn the_mode_of_an_existing_file_stays_unchanged() {
        let (_directory, path) = in_new_directory("store.once");
        fs::write(&path, b"").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let _storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_missing_file_is_created_only_on_request() {
        let (directory, path) = in_new_directory("store.once");
        assert!(matches!(FileStorage::open(&path, false, true, Patience::None), Err(OpenError::NotFound)));
        assert!(!path.exists());
        let deeper = directory.path().join("missing/store.once");
        assert!(matches!(FileStorage::open(&deeper, false, true, Patience::None), Err(OpenError::NotFound)));
        assert!(matches!(
            FileStorage::open(Path::new(""), true, true, Patience::None),
            Err(OpenError::NotFound)
        ));
    }

    #[test]
    fn the_error_for_a_missing_directory_mentions_the_directory() {
        let (directory, _) = in_new_directory("store.once");
        let error =
            FileStorage::open(&directory.path().join("missing/store.once"), true, true, Patience::None)
                .unwrap_err();
        let OpenError::Io { operation, source } = error else { panic!("{error:?}") };
        assert!(operation.contains("directory"), "{operation}");
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_is_refused() {
        let (directory, path) = in_new_directory("store.once");
        for path in [directory.path(), Path::new("/"), Path::new("."), Path::new("..")] {
            for create in [false, true] {
                assert!(
                    matches!(
                        FileStorage::open(path, create, true, Patience::None),
                        Err(OpenError::Directory)
                    ),
                    "{path:?}"
                );
            }
        }
        let with_trailing_slash = path.join("");
        assert!(matches!(
            FileStorage::open(&with_trailing_slash, true, true, Patience::None),
            Err(OpenError::Directory)
        ));
        assert!(!path.exists());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let (_directory, path) = in_new_directory("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for create in [false, true] {
            assert!(matches!(
                FileStorage::open(&path, create, true, Patience::None),
                Err(OpenError::NotRegular)
            ));
        }
    }

    #[test]
    fn a_socket_and_a_device_are_refused() {
        let (_directory, path) = in_new_directory("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        for path in [path.as_path(), Path::new("/dev/null")] {
            for create in [false, true] {
                assert!(
                    matches!(
                        FileStorage::open(path, create, true, Patience::None),
                        Err(OpenError::NotRegular)
                    ),
                    "{path:?}"
                );
            }
        }
    }

    #[test]
    fn the_target_of_a_dangling_link_is_not_created() {
        let (directory, path) = in_new_directory("link");
        let target = directory.path().join("target");
        symlink(&target, &path).unwrap();
        assert!(matches!(FileStorage::open(&path, false, true, Patience::None), Err(OpenError::NotFound)));
        assert!(matches!(FileStorage::open(&path, true, true, Patience::None), Err(OpenError::Io { .. })));
        assert!(!target.exists());
    }

    #[test]
    fn the_file_is_mapped_only_on_request() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, false, Patience::None).unwrap();
        storage.set_len(4096).unwrap();
        assert!(storage.map(0, 4096).unwrap().is_none());
    }

    #[cfg(not(target_os = "openbsd"))]
    #[test]
    fn a_map_shows_later_writes_and_zeroes_after_a_cut() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true, Patience::None).unwrap();
        storage.set_len(16_384).unwrap();
        let map = storage.map(4096, 8192).unwrap().unwrap();
        write_all_at(&storage, b"later", 4100).unwrap();
        assert_eq!(map.read_in_test(4, 5, <[u8]>::to_vec).unwrap(), b"later");

        storage.set_len(4096).unwrap();
        storage.set_len(16_384).unwrap();
        assert_eq!(map.read_in_test(4, 5, <[u8]>::to_vec).unwrap(), [0; 5]);
    }
}
