//! Finds, creates, opens and locks the file. Only [`FileStorage`](super::FileStorage) uses this module.

use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::sync::Patience;

/// The mode of a new file. Only its owner may read it, because keys and results can be confidential.
pub(super) const MODE: u32 = 0o600;

/// The pauses between attempts to take the lock, 47 ms in total; see [`lock`].
const LOCK_PAUSES_MILLIS: [u64; 6] = [1, 2, 4, 8, 16, 16];

/// The pause between attempts to take the lock of another process that the caller waits for.
const WAITING_PAUSE: Duration = Duration::from_millis(10);

/// Why a file could not be opened as a storage.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Another store, in this process or another one, has the file open.
    Locked,
    /// The path refers to a directory.
    Directory,
    /// The path refers to something that is neither a regular file nor a directory: a pipe, a device, a socket.
    NotRegular,
    /// There is no such file, and creating one was not requested.
    NotFound,
    /// A system call failed.
    Io {
        /// The attempted operation, in words that can follow "could not", such as "open the file".
        operation: &'static str,
        /// The error that the call returned.
        source: io::Error,
    },
}

impl OpenError {
    /// Returns a function for `map_err`, which turns an error during `operation` into an [`OpenError::Io`].
    pub(super) fn during(operation: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        move |source| OpenError::Io { operation, source }
    }
}

/// The absolute paths of a file, which need not exist, and of its directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvedPath {
    /// The path of the file. It contains no symbolic links, unless the file itself is a dangling link.
    pub(super) file: PathBuf,
    /// The directory that contains the file's entry.
    pub(super) directory: PathBuf,
}

impl ResolvedPath {
    /// Resolves `path`. The file need not exist, but its directory must.
    pub(super) fn resolve(path: &Path, create: bool) -> Result<ResolvedPath, OpenError> {
        // A path with a trailing slash means a directory. `Path` ignores the slash, so a file would be created.
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

/// The directory of the file. Syncing it makes the file's entry durable.
#[derive(Debug)]
pub(super) enum Directory {
    /// A handle to the directory. A path would not do, because the process may change its working directory, and the
    /// directory may be renamed.
    Open(File),
    /// The process may search the directory but not read it, so it cannot open it. Instead, the whole file system is
    /// synced through the file's handle, which includes the entry but takes longer.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Unreadable,
}

impl Directory {
    /// Opens the directory at `path`.
    pub(super) fn open(path: &Path) -> Result<Directory, OpenError> {
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
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        match self {
            Directory::Open(directory) => directory.sync_all(),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Directory::Unreadable => rustix::fs::syncfs(file).map_err(io::Error::from),
        }
    }
}

/// Creates an empty file at `path`. Fails if the path exists.
pub(super) fn create_new(path: &Path) -> Result<(), OpenError> {
    let resolved = ResolvedPath::resolve(path, true)?;
    let created = OpenOptions::new().write(true).create_new(true).mode(MODE).open(resolved.file);
    created.map(|_| ()).map_err(OpenError::during("create a new file"))
}

/// Opens `file`. Creates it if it does not exist and `create` is set.
pub(super) fn open_or_create(file: &Path, create: bool) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if create {
        match options.clone().create_new(true).mode(MODE).open(file) {
            Ok(file) => {
                let permitted = permit_owner(&file);
                return permitted.map(|()| file).map_err(OpenError::during("set the mode of the new file"));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(OpenError::during("create the file")(error)),
        }
    }
    match options.open(file) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            // The file existed a moment ago, or the path is a dangling symbolic link. The target of such a link is not
            // created, because it would be a different file.
            let reason = "it is a dangling symbolic link, or was removed at this moment";
            Err(OpenError::during("create the file")(io::Error::new(io::ErrorKind::AlreadyExists, reason)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NotFound),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(OpenError::Directory),
        Err(error) => Err(OpenError::during("open the file")(error)),
    }
}

/// Restores the owner's permissions on a new file if the umask removed any. Without them, the owner could not open the
/// file again.
fn permit_owner(file: &File) -> io::Result<()> {
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & MODE == MODE {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(MODE))
}

/// Opens `file`, which must exist, for reading.
pub(super) fn open_to_read(file: &Path) -> Result<File, OpenError> {
    // Without waiting: opening a pipe for reading would wait for its other end.
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::NotFound),
        Err(error) => return Err(OpenError::during("inspect the file")(error)),
    };
    require_regular(metadata.file_type())?;
    match File::open(file) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NotFound),
        Err(error) => Err(OpenError::during("open the file")(error)),
    }
}

/// Refuses everything but a regular file.
pub(super) fn require_regular(file_type: FileType) -> Result<(), OpenError> {
    if file_type.is_file() {
        Ok(())
    } else if file_type.is_dir() {
        Err(OpenError::Directory)
    } else {
        Err(OpenError::NotRegular)
    }
}

/// Opens an existing regular file for reading. Does not wait for the other end of a pipe.
pub(super) fn open_existing(file: &Path) -> Result<File, OpenError> {
    let not_found = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::metadata(file) {
        Ok(metadata) => require_regular(metadata.file_type())?,
        Err(error) if not_found(&error) => return Err(OpenError::NotFound),
        Err(error) => return Err(OpenError::during("inspect the file")(error)),
    }
    let opened = File::open(file).map_err(|error| match error {
        error if not_found(&error) => OpenError::NotFound,
        error => OpenError::during("open the file")(error),
    })?;
    let metadata = opened.metadata().map_err(OpenError::during("inspect the file"))?;
    require_regular(metadata.file_type())?;
    Ok(opened)
}

/// Takes the exclusive lock. If the lock is not free, tries again for about 50 ms, and then as long as `patience` says,
/// unless `is_own`: a store of this process has the lock.
///
/// When a thread of this process starts a program, the child process has a copy of every handle until it runs that
/// program. If a store is closed and opened again during that time, its lock may not be free yet.
///
/// The operating system can wait for a lock, but not for a limited time, so this polls.
pub(super) fn lock(file: &File, patience: Patience, is_own: impl Fn() -> bool) -> Result<(), OpenError> {
    lock_by(|| file.try_lock(), || patience.is_over() || is_own())
}

/// Takes a shared lock, which keeps stores from opening the file and lets other readers do so. If the lock is not free, tries
/// again for about 50 ms.
pub(super) fn lock_shared(file: &File) -> Result<(), OpenError> {
    lock_by(|| file.try_lock_shared(), || true)
}

/// Takes a lock. If it is not free, tries again for about 50 ms, and then until `gives_up`.
fn lock_by(
    try_lock: impl Fn() -> Result<(), TryLockError>,
    gives_up: impl Fn() -> bool,
) -> Result<(), OpenError> {
    let mut pauses = LOCK_PAUSES_MILLIS.into_iter();
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => match pauses.next() {
                Some(pause_millis) => thread::sleep(Duration::from_millis(pause_millis)),
                None if gives_up() => return Err(OpenError::Locked),
                None => thread::sleep(WAITING_PAUSE),
            },
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(OpenError::during("lock the file")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_directory_of_a_bare_name_is_the_working_directory() {
        let working_directory = fs::canonicalize(".").unwrap();
        let name = "no-file-of-this-name-is-here.once";
        let expected = ResolvedPath { file: working_directory.join(name), directory: working_directory };
        assert_eq!(ResolvedPath::resolve(Path::new(name), true).unwrap(), expected);
    }

    #[test]
    fn the_directory_of_a_linked_file_is_that_of_the_target() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, link) = (first.path().join("store.once"), second.path().join("link"));
        fs::write(&path, b"").unwrap();
        symlink(&path, &link).unwrap();
        let resolved = ResolvedPath::resolve(&link, true).unwrap();
        assert_eq!(resolved.directory, fs::canonicalize(first.path()).unwrap());
    }
}
