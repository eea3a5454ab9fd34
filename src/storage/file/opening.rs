//! Finding, creating, opening and locking the file. Used by [`FileStorage::open`](super::FileStorage::open) only.

use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Mode of a new file. Only the owner may read it: keys and results can be confidential.
pub(super) const MODE: u32 = 0o600;

/// Pauses before each further attempt to take the lock, about 50 ms together; see [`lock`].
const LOCK_PAUSES_MILLIS: [u64; 6] = [1, 2, 4, 8, 16, 16];

/// Why a file could not be opened as a storage.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Another store, in this process or another one, has the file open.
    Locked,
    /// The path names a directory.
    Directory,
    /// The path names something that is neither a regular file nor a directory: a pipe, a device, a socket.
    NotRegular,
    /// There is no such file, and creating one was not requested.
    NotFound,
    /// A system call failed.
    Io {
        /// The attempted operation, to follow "could not": "open the file".
        operation: &'static str,
        source: io::Error,
    },
}

impl OpenError {
    /// For `map_err`: makes an [`OpenError::Io`] of an error during `operation`.
    pub(super) fn during(operation: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        move |source| OpenError::Io { operation, source }
    }
}

/// The absolute path of a file, which need not exist, and of its directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvedPath {
    /// Free of symbolic links, unless the file is itself a link to nothing.
    pub(super) file: PathBuf,
    /// The directory that holds the file's entry.
    pub(super) directory: PathBuf,
}

impl ResolvedPath {
    /// Resolves `path`. The file need not exist, its directory must.
    pub(super) fn resolve(path: &Path, create: bool) -> Result<ResolvedPath, OpenError> {
        // `Path` ignores a trailing slash. A file would be created where the caller meant a directory.
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

/// The directory of the file, for making the file's entry in it durable.
#[derive(Debug)]
pub(super) enum Directory {
    /// A handle instead of a path: the process may change its working directory, and the directory may be renamed.
    Open(File),
    /// The process may search the directory but not read it, so it cannot open it. A sync of the whole file system
    /// through the file's handle covers the entry too, and takes longer.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Unreadable,
}

impl Directory {
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

/// Creates an empty file at `path`, where none may exist.
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
            // It existed a moment ago, or it is a symbolic link to nothing. Creating the target of a link is not
            // creating this file.
            let reason = "it is a symbolic link to nothing, or was removed at this moment";
            Err(OpenError::during("create the file")(io::Error::new(io::ErrorKind::AlreadyExists, reason)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NotFound),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(OpenError::Directory),
        Err(error) => Err(OpenError::during("open the file")(error)),
    }
}

/// Gives the owner of a new file the permissions that the umask removed. Without them the owner could not open the file
/// again.
fn permit_owner(file: &File) -> io::Result<()> {
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & MODE == MODE {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(MODE))
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

/// Takes the exclusive lock, and tries again for about 50 ms while it is held.
///
/// When a thread of this process starts a program, the child has a copy of every handle until it runs that program. A
/// store that is closed and opened again in that moment finds its own lock still held.
pub(super) fn lock(file: &File) -> Result<(), OpenError> {
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
