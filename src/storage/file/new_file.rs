//! A file that gets its name only once it is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::{Storage, read_exact_at, sync_all};
use super::FileStorage;
use super::opening::{OpenError, ResolvedPath};
use crate::sync::Patience;

/// A file that is being written under a name of its own, and is renamed when it is complete. It is removed if this is dropped
/// before.
///
/// The name ends in `.incomplete`. A file of that name that an interrupted process left is overwritten.
#[derive(Debug)]
pub(crate) struct NewFile {
    storage: FileStorage,
    partial: PathBuf,
    path: PathBuf,
    is_published: bool,
}

impl NewFile {
    /// Begins a file for `path`, which must not exist. `is_left_over` is called with the start of a file that has the name
    /// already, and returns whether it may be overwritten.
    pub(crate) fn create(path: &Path, is_left_over: impl Fn(&[u8]) -> bool) -> Result<NewFile, OpenError> {
        let exists = || OpenError::during("create the file")(io::ErrorKind::AlreadyExists.into());
        let resolved = ResolvedPath::resolve(path, true)?;
        if fs::symlink_metadata(&resolved.file).is_ok() {
            return Err(exists());
        }
        let mut name = resolved.file.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        let partial = resolved.directory.join(name);
        let storage = FileStorage::open(&partial, true, false, Patience::None)?;
        let io = || OpenError::during("read the file that an earlier copy left");
        let mut start = [0; 8];
        let length = storage.len().map_err(io())?;
        let is_ours = |start: &mut [u8]| read_exact_at(&storage, start, 0).is_ok() && is_left_over(start);
        if length > 0 && !is_ours(&mut start) {
            return Err(OpenError::during("create the file, next to which another is in the way")(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        Ok(NewFile { storage, partial, path: resolved.file, is_published: false })
    }

    pub(crate) fn storage(&self) -> &FileStorage {
        &self.storage
    }

    /// Gives the file its name, durably. Fails if the name exists by now.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        match fs::hard_link(&self.partial, &self.path) {
            Ok(()) => fs::remove_file(&self.partial)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // The file system has no hard links.
            Err(_) if fs::symlink_metadata(&self.path).is_err() => fs::rename(&self.partial, &self.path)?,
            Err(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        }
        self.is_published = true;
        sync_all(&self.storage)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_published {
            // What is left cannot be opened as a store, and the next copy overwrites it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
