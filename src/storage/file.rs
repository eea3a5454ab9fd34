//! The file: opened once, locked for as long as it is open, synced together with its directory entry.

#[cfg(not(unix))]
compile_error!(
    "oncekey runs on unix only: it relies on positional reads and writes, on syncing a directory, and on a \
     file lock that belongs to the open file"
);

use super::Storage;
use crate::map::Map;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Owner only: keys and results are the owner's business.
const MODE: u32 = 0o600;

/// How long to wait before each further try to get the lock; see [`lock`]. About 50 ms together.
const LOCK_PAUSES_MILLIS: [u64; 6] = [1, 2, 4, 8, 16, 16];

/// Why a file could not be opened as a storage.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Somebody has it open: another store in this process, or another process.
    Locked,
    /// The path names a directory.
    Directory,
    /// The path names something that is neither a regular file nor a directory: a pipe, a device, a socket.
    NotRegular,
    /// There is no such file, and it was not to be created.
    NotFound,
    /// The operating system refused one of the operations that opening consists of.
    Io {
        /// What was being done, to follow "could not": "open the file".
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl OpenError {
    /// A closure that makes an [`OpenError::Io`] of an error, for `map_err`.
    fn during(operation: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        move |source| OpenError::Io { operation, source }
    }
}

/// A storage in a regular file, which it has to itself.
///
/// The lock belongs to the open file and would end with the last handle to it. That is this value, and beside it
/// what the operating system counts as one: a process forked meanwhile, until it runs another program or
/// ends, and on Linux a [`Map`] of the file. It is therefore given up by hand: by [`Storage::unlock`] when the store is
/// closed, and by the drop, in which a forked process is told apart by its id because its copy must not give up the
/// lock of the other one.
#[derive(Debug)]
pub(crate) struct FileStorage {
    /// The locked file.
    file: File,
    identity: Identity,
    /// The path that was opened, with symbolic links and all, but independent of the working directory: what another
    /// process would open.
    path: PathBuf,
    /// The process that opened it.
    process_id: u32,
    /// The directory that holds its entry.
    directory: Directory,
    /// Whether it may be mapped.
    mmap: bool,
    /// Bytes that are written again may have to find room on the medium.
    copies_on_write: AtomicBool,
    /// Up to here, bytes were within the limit on the size of files when they were written or made room for.
    within_limit: AtomicU64,
}

impl FileStorage {
    /// Opens the file at `path` for reading and writing and locks it, before anything in it is looked at.
    ///
    /// With `create`, a file that is not there is created, readable and writable by its owner only; a file
    /// that is there is never emptied. With `mmap`, [`Storage::map`] maps it. Symbolic links are followed,
    /// and the directory synced by [`Storage::sync_all`] is the one that holds the file and not the link.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Nothing that is not a regular file is opened: a pipe would wait for a peer, and a
    /// device may act on being opened.
    pub(crate) fn open(path: &Path, create: bool, mmap: bool) -> Result<FileStorage, OpenError> {
        /// A path that leads elsewhere each time is being replaced by somebody who does not stop.
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let storage = FileStorage::open_once(path, create, mmap)?;
            // Removed or replaced before it was locked, it would be a file that no other process finds locked.
            if storage.is_in_place().map_err(OpenError::during("inspect the file"))? {
                return Ok(storage);
            }
        }
        let source = io::Error::new(io::ErrorKind::NotFound, "its path leads to another file each time");
        Err(OpenError::during("open the file")(source))
    }

    fn open_once(path: &Path, create: bool, mmap: bool) -> Result<FileStorage, OpenError> {
        let resolved = ResolvedPath::resolve(path, create)?;
        let path = std::path::absolute(path).map_err(OpenError::during("resolve the path"))?;
        let directory = Directory::open(&resolved.directory)?;
        match fs::metadata(&resolved.file) {
            Ok(metadata) => require_regular(metadata.file_type())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::during("inspect the file")(error)),
        }

        let file = open_or_create(&resolved.file, create)?;
        // The path may have come to name something else in between; the handle cannot.
        let metadata = file.metadata().map_err(OpenError::during("inspect the file"))?;
        require_regular(metadata.file_type())?;
        lock(&file)?;
        let copies_on_write = AtomicBool::new(prefer_in_place(&file, metadata.len() == 0));
        let identity = Identity::of(&metadata);
        Ok(FileStorage {
            file,
            identity,
            path,
            process_id: std::process::id(),
            directory,
            mmap,
            copies_on_write,
            within_limit: AtomicU64::new(0),
        })
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        if std::process::id() == self.process_id {
            self.unlock();
        }
    }
}

impl FileStorage {
    /// Refuses what would take the file beyond the limit on the size of files. The operating system would refuse it too,
    /// and by default end the process with SIGXFSZ. The limit is asked for only where the file is used for the first time:
    /// it is a system call.
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

    /// Creates an empty file at `path`, for [`FileStorage::open`], where there is nothing yet.
    pub(crate) fn create_new(path: &Path) -> Result<(), OpenError> {
        let resolved = ResolvedPath::resolve(path, true)?;
        let mut options = OpenOptions::new();
        let created = options.write(true).create_new(true).mode(MODE).open(resolved.file);
        created.map(|_| ()).map_err(OpenError::during("create a new file"))
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.check_size_limit(length)?;
        self.file.set_len(length)?;
        // What is cut off will be made anew, under the limit of that time.
        self.within_limit.fetch_min(length, Ordering::Relaxed);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let length = self.len()?;
        // These move the file's cursor, which nothing uses: all reads and writes say where.
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that cannot tell.
            Err(_) => offset,
        };
        let end = seek(&self.file, SeekFrom::Hole(start)).map_or(length, |end| end.min(length));
        Ok((start < end).then_some(start..end))
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
        // What is no data is left alone: the call would make room for it.
        while let Some(run) = self.next_data(at)?.filter(|run| run.end > at) {
            match fallocate(&self.file, flags, run.start, run.end - run.start) {
                Ok(()) => at = run.end,
                // It may have been interrupted before it did anything, or after all but a little.
                Err(Errno::INTR) => {}
                // XFS wants some room even if it has nothing to do. A full disk is no reason not to open the store.
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    self.copies_on_write.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Err(Errno::IO) => return Err(Errno::IO.into()),
                // No blocks are shared here, or it is `copies_on_write` that says how they are.
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
            // The file system, or a sandbox, knows no such call; or something is wrong, and whoever writes the zeroes hears
            // of it. Interrupted, it may have undone what it did: tried again, it need never come to an end.
            Err(_) => Ok(false),
        }
    }

    // On Apple systems std syncs with F_FULLFSYNC, here and below; a plain fsync would stop at the drive's
    // cache.
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    // The file first: an entry that survives must not lead to a file that did not. A file system that cannot
    // sync a directory is an error, because nothing else could keep the promise that was made to the caller.
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()?;
        self.directory.sync(&self.file)
    }

    fn is_in_place(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Identity::of(&metadata) == self.identity),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn unlock(&self) {
        // It can only fail for a handle that is no file's.
        let _ = self.file.unlock();
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Option<Map>> {
        // OpenBSD keeps mapped pages apart from what is written through the file, so a map would miss new
        // records.
        if !self.mmap || cfg!(target_os = "openbsd") {
            return Ok(None);
        }
        Map::new(&self.file, offset, length).map(Some)
    }
}

/// Which file it is, whatever its name: no two that exist at the same time have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Asks for a file that holds nothing yet to be overwritten in place, where the file system can be asked; whether it will
/// not be, as far as is known.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn prefer_in_place(file: &File, is_empty: bool) -> bool {
    use super::overwriting::{copies_on_write, knows_nocow};
    use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
    let Ok(status) = fstatfs(file) else { return false };
    // Its width and sign differ between architectures; magic numbers have 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "as said above")]
    let file_system = status.f_type as u32;
    let flags = || ioctl_getflags(file).unwrap_or(IFlags::empty());
    if is_empty && knows_nocow(file_system) {
        // Refused: it is as it was, and what it is, is asked for below.
        let _ = ioctl_setflags(file, flags() | IFlags::NOCOW);
    }
    copies_on_write(file_system, flags().contains(IFlags::NOCOW))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn prefer_in_place(_file: &File, _is_empty: bool) -> bool {
    false
}

/// How long this process may let a file become, in bytes; None: as long as it likes, or the operating system does not say.
pub(crate) fn file_size_limit() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return None;
}

/// How the directory that holds the file's entry is made durable.
#[derive(Debug)]
enum Directory {
    /// By a handle and not a path, so that the process may change its working directory and another one may rename
    /// the directory.
    Open(File),
    /// The process may search the directory and not read it, so it cannot open it. The whole file system is synced
    /// instead, through the file's own handle: that takes longer and covers the entry too.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Unreadable,
}

impl Directory {
    fn open(path: &Path) -> Result<Directory, OpenError> {
        match File::open(path) {
            Ok(directory) => Ok(Directory::Open(directory)),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Directory::Unreadable),
            Err(error) => Err(OpenError::during(
                "open the directory of the file (to sync its entry there, the process needs permission to read it)",
            )(error)),
        }
    }

    /// Makes the entry of `file` durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        match self {
            Directory::Open(directory) => directory.sync_all(),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Directory::Unreadable => rustix::fs::syncfs(file).map_err(io::Error::from),
        }
    }
}

/// Where a file is, or will be, independent of the working directory.
#[derive(Debug, PartialEq, Eq)]
struct ResolvedPath {
    /// The file, without symbolic links unless it is itself one that leads nowhere.
    file: PathBuf,
    /// The directory that holds its entry.
    directory: PathBuf,
}

impl ResolvedPath {
    /// Finds the place that `path` names; the file need not exist, its directory must.
    fn resolve(path: &Path, create: bool) -> Result<ResolvedPath, OpenError> {
        // `Path` ignores a slash at the end, and would have a file created where a directory was meant.
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(OpenError::Directory);
        }
        match fs::canonicalize(path) {
            Ok(file) => {
                let directory = file.parent().ok_or(OpenError::Directory)?.to_path_buf();
                return Ok(ResolvedPath { file, directory });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::during("resolve the path")(error)),
        }

        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(OpenError::NotFound);
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match fs::canonicalize(parent) {
            Ok(directory) => Ok(ResolvedPath { file: directory.join(name), directory }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !create => Err(OpenError::NotFound),
            Err(error) => Err(OpenError::during("resolve the directory of the file")(error)),
        }
    }
}

/// Opens `file`, creating it if told to and if it is not there.
fn open_or_create(file: &Path, create: bool) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if create {
        match options.clone().create_new(true).mode(MODE).open(file) {
            Ok(file) => {
                let given = give_to_owner(&file);
                return given.map(|()| file).map_err(OpenError::during("set the mode of the new file"));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(OpenError::during("create the file")(error)),
        }
    }
    match options.open(file) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            // It was there a moment ago and could not be created for that reason: a link that leads nowhere,
            // and creating what it leads to is not what "create this file" says.
            let reason = "it is a symbolic link to nothing, or was removed at this moment";
            Err(OpenError::during("create the file")(io::Error::new(io::ErrorKind::AlreadyExists, reason)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NotFound),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(OpenError::Directory),
        Err(error) => Err(OpenError::during("open the file")(error)),
    }
}

/// Gives the owner of a new file the permissions that the umask of the process took away: without them the owner could not
/// open it again.
fn give_to_owner(file: &File) -> io::Result<()> {
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & MODE == MODE {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(MODE))
}

/// Refuses whatever is not a regular file.
fn require_regular(file_type: FileType) -> Result<(), OpenError> {
    if file_type.is_file() {
        Ok(())
    } else if file_type.is_dir() {
        Err(OpenError::Directory)
    } else {
        Err(OpenError::NotRegular)
    }
}

/// Takes the exclusive lock.
///
/// "Locked" is believed only when it stays so for a moment. When any thread starts a program, its child has a
/// copy of every handle until that program runs; a store that is closed and opened again in that moment would
/// otherwise find itself locked by nobody that could be named.
fn lock(file: &File) -> Result<(), OpenError> {
    let mut pauses = LOCK_PAUSES_MILLIS.into_iter();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => match pauses.next() {
                Some(pause_millis) => thread::sleep(Duration::from_millis(pause_millis)),
                None => return Err(OpenError::Locked),
            },
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(OpenError::during("lock the file")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::super::{read_exact_at, sync_all, sync_data, write_all_at};
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    fn in_new_directory(name: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        (directory, path)
    }

    #[test]
    fn what_was_written_is_there_after_closing_and_opening_again() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
        assert_eq!(storage.len().unwrap(), 0);
        write_all_at(&storage, b"receipt", 4096).unwrap();
        sync_data(&storage).unwrap();
        sync_all(&storage).unwrap();
        drop(storage);

        let storage = FileStorage::open(&path, true, true).unwrap();
        assert_eq!(storage.len().unwrap(), 4103);
        let mut buffer = [0xff; 8];
        read_exact_at(&storage, &mut buffer, 4095).unwrap();
        assert_eq!(&buffer, b"\0receipt");
    }

    #[test]
    fn a_second_open_in_this_process_is_locked_and_changes_nothing() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
        write_all_at(&storage, b"mine", 0).unwrap();
        for create in [false, true] {
            assert!(matches!(FileStorage::open(&path, create, true), Err(OpenError::Locked)));
        }
        assert_eq!(storage.len().unwrap(), 4);
    }

    #[test]
    fn the_lock_is_gone_after_drop() {
        let (_directory, path) = in_new_directory("store.once");
        drop(FileStorage::open(&path, true, true).unwrap());
        FileStorage::open(&path, false, true).unwrap();
    }

    #[test]
    fn the_lock_is_met_through_a_symbolic_link_and_a_hard_link() {
        let (directory, path) = in_new_directory("store.once");
        let _storage = FileStorage::open(&path, true, true).unwrap();
        let symbolic = directory.path().join("symbolic");
        symlink(&path, &symbolic).unwrap();
        assert!(matches!(FileStorage::open(&symbolic, true, true), Err(OpenError::Locked)));
        let hard = directory.path().join("hard");
        fs::hard_link(&path, &hard).unwrap();
        assert!(matches!(FileStorage::open(&hard, true, true), Err(OpenError::Locked)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_reserved_has_its_room_reads_as_zero_and_leaves_what_is_before_it_alone() {
        use std::os::unix::fs::MetadataExt;
        const LENGTH: u64 = 1 << 20;
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
        write_all_at(&storage, &[7; 4_096], 0).unwrap();
        if !storage.reserve(4_096, LENGTH).unwrap() {
            assert_eq!(storage.len().unwrap(), 4_096, "a file system that cannot do it changes nothing");
            return;
        }
        assert_eq!(storage.len().unwrap(), 4_096 + LENGTH);
        // A file system that copies what it writes may say yes and set nothing aside.
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
        let storage = FileStorage::open(&path, true, true).unwrap();
        storage.set_len(4096).unwrap();
        let map = storage.map(0, 4096).unwrap().unwrap();
        storage.unlock();
        let storage = FileStorage::open(&path, false, true).unwrap();
        let second = storage.map(0, 4096).unwrap().unwrap();
        drop(storage);
        FileStorage::open(&path, false, true).unwrap();
        drop((map, second));
    }

    #[test]
    fn it_is_in_place_as_long_as_its_path_leads_to_it() {
        let (directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
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
        assert!(storage.is_in_place().is_err(), "a circle of links says nothing of the file");
    }

    #[test]
    fn a_lock_that_is_held_for_a_moment_only_is_waited_for() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
        let (ready, wait_for_ready) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                ready.send(()).unwrap();
                thread::sleep(Duration::from_millis(5));
                drop(storage);
            });
            wait_for_ready.recv().unwrap();
            FileStorage::open(&path, false, true).unwrap();
        });
    }

    #[test]
    fn a_created_file_belongs_to_its_owner_alone() {
        let (_directory, path) = in_new_directory("store.once");
        let _storage = FileStorage::open(&path, true, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn the_mode_of_a_file_that_was_there_is_left_alone() {
        let (_directory, path) = in_new_directory("store.once");
        fs::write(&path, b"").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let _storage = FileStorage::open(&path, true, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_is_not_there_is_not_found_and_not_created_unless_told_to() {
        let (directory, path) = in_new_directory("store.once");
        assert!(matches!(FileStorage::open(&path, false, true), Err(OpenError::NotFound)));
        assert!(!path.exists());
        let deeper = directory.path().join("missing/store.once");
        assert!(matches!(FileStorage::open(&deeper, false, true), Err(OpenError::NotFound)));
        assert!(matches!(FileStorage::open(Path::new(""), true, true), Err(OpenError::NotFound)));
    }

    #[test]
    fn a_missing_directory_is_named_when_the_file_was_to_be_created() {
        let (directory, _) = in_new_directory("store.once");
        let error = FileStorage::open(&directory.path().join("missing/store.once"), true, true).unwrap_err();
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
                    matches!(FileStorage::open(path, create, true), Err(OpenError::Directory)),
                    "{path:?}"
                );
            }
        }
        let meant_as_a_directory = path.join("");
        assert!(matches!(FileStorage::open(&meant_as_a_directory, true, true), Err(OpenError::Directory)));
        assert!(!path.exists());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_a_peer() {
        let (_directory, path) = in_new_directory("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for create in [false, true] {
            assert!(matches!(FileStorage::open(&path, create, true), Err(OpenError::NotRegular)));
        }
    }

    #[test]
    fn a_socket_and_a_device_are_refused() {
        let (_directory, path) = in_new_directory("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        for path in [path.as_path(), Path::new("/dev/null")] {
            for create in [false, true] {
                assert!(
                    matches!(FileStorage::open(path, create, true), Err(OpenError::NotRegular)),
                    "{path:?}"
                );
            }
        }
    }

    #[test]
    fn a_symbolic_link_to_nothing_is_refused_and_nothing_is_created_behind_it() {
        let (directory, path) = in_new_directory("link");
        let target = directory.path().join("target");
        symlink(&target, &path).unwrap();
        assert!(matches!(FileStorage::open(&path, false, true), Err(OpenError::NotFound)));
        assert!(matches!(FileStorage::open(&path, true, true), Err(OpenError::Io { .. })));
        assert!(!target.exists());
    }

    #[test]
    fn the_directory_of_a_bare_name_is_the_working_directory() {
        let working_directory = fs::canonicalize(".").unwrap();
        let name = "no-file-of-this-name-is-here.once";
        let expected = ResolvedPath { file: working_directory.join(name), directory: working_directory };
        assert_eq!(ResolvedPath::resolve(Path::new(name), true).unwrap(), expected);
    }

    #[test]
    fn the_directory_of_a_linked_file_is_the_one_that_holds_the_file() {
        let (first, path) = in_new_directory("store.once");
        fs::write(&path, b"").unwrap();
        let (_second, link) = in_new_directory("link");
        symlink(&path, &link).unwrap();
        let resolved = ResolvedPath::resolve(&link, true).unwrap();
        assert_eq!(resolved.directory, fs::canonicalize(first.path()).unwrap());
    }

    #[test]
    fn it_is_mapped_only_if_told_to() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, false).unwrap();
        storage.set_len(4096).unwrap();
        assert!(storage.map(0, 4096).unwrap().is_none());
    }

    #[cfg(not(target_os = "openbsd"))]
    #[test]
    fn a_map_sees_bytes_that_are_written_afterwards_and_zeroes_where_the_file_was_cut_off_and_grown() {
        let (_directory, path) = in_new_directory("store.once");
        let storage = FileStorage::open(&path, true, true).unwrap();
        storage.set_len(16_384).unwrap();
        let map = storage.map(4096, 8192).unwrap().unwrap();
        write_all_at(&storage, b"later", 4100).unwrap();
        assert_eq!(map.look(4, 5, <[u8]>::to_vec).unwrap(), b"later");

        storage.set_len(4096).unwrap();
        storage.set_len(16_384).unwrap();
        assert_eq!(map.look(4, 5, <[u8]>::to_vec).unwrap(), [0; 5]);
    }
}
