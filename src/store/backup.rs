//! Backups: a copy of an open store in a new file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::Store;
use crate::error::{Error, Result};
use crate::format::STORE_HEADER_BYTES;
use crate::format::header::is_incomplete;
use crate::options::open_error;
use crate::progress::Progress;
use crate::storage::NewFile;

/// What [`Store::backup`] has made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// The path of the copy.
    pub path: PathBuf,
    /// The length of the copy, in bytes.
    pub bytes: u64,
    /// When the copy was taken: by the wall clock, in ms since the Unix epoch. It holds what was changed before.
    pub taken_at_ms: u64,
}

impl Store {
    /// Copies the store to a new file at `path`, while it is in use. The copy holds every change that returned before this call
    /// began, and is durable when this returns.
    ///
    /// The copy says that it is one. Opening it is [`Error::Copy`](crate::Error::Copy) until a program states what it may have
    /// forgotten: see [`Options::may_have_forgotten`](crate::Options::may_have_forgotten) and [the
    /// guide](crate::guide::backup_and_restore). Versions that a restored copy gives are higher than all that the original gave,
    /// as long as the original is opened less than 65,536 times without a clean close after the backup.
    ///
    /// Other calls go on meanwhile, and wait at most while the log switches to the next segment. Space that reclaiming frees is
    /// reused only once it is copied, so the file can grow by what is yet to be copied. Until the copy is complete, its file is
    /// named `path` with `.incomplete` added, and cannot be opened. If this fails, that file is removed. The copy shares no blocks
    /// with the original, so damage to the one is no damage to the other.
    ///
    /// This reads and checks footers, but not every record. [`verify`](crate::verify()) checks the copy.
    ///
    /// ```
    /// use oncekey::{Fingerprint, Options, Store, verify};
    ///
    /// let directory = tempfile::tempdir()?;
    /// let store = Store::open(directory.path().join("payments.once"))?;
    /// store.record("charge:1", Fingerprint::NONE, b"receipt")?;
    /// let backup = store.backup(directory.path().join("backup.once"))?;
    /// assert!(verify(&backup.path)?.is_sound());
    ///
    /// let restored = Options::new().nothing_was_lost().open(&backup.path)?;
    /// assert!(restored.get("charge:1")?.is_completed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Io`](crate::Error::Io): the copy cannot be written, for instance because `path` exists or the disk is full; or
    ///   the store cannot be read.
    /// - [`Error::Locked`](crate::Error::Locked): another backup to the same path is running.
    /// - [`Error::Corrupt`](crate::Error::Corrupt): a segment of the store is damaged so that the copy could not be opened. Records
    ///   that cannot be read are no error: they cannot be read in the copy either.
    /// - [`Error::Poisoned`](crate::Error::Poisoned), [`Error::VersionsExhausted`](crate::Error::VersionsExhausted).
    /// - [`Error::Closed`](crate::Error::Closed): the store was closed, before or meanwhile.
    ///   [`Error::Forked`](crate::Error::Forked).
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<Backup> {
        self.backup_with(path, |_| ControlFlow::Continue(()))
    }

    /// Copies the store as [`backup`](Store::backup) does, and calls `progress` after each segment. If that returns `Break`, this
    /// stops and removes what it has copied.
    ///
    /// The store may be used and closed in `progress`. It holds no lock.
    ///
    /// # Errors
    ///
    /// Those of [`backup`](Store::backup), and [`Error::Stopped`](crate::Error::Stopped).
    pub fn backup_with(
        &self,
        path: impl AsRef<Path>,
        progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Backup> {
        let path = path.as_ref();
        self.engine.check_process()?;
        let file = NewFile::create(path, is_incomplete).map_err(|error| open_error(path, error))?;
        let copied = self.engine.copy_to(file.storage(), path, progress)?;
        file.publish().map_err(|error| Error::io(path, "give the copy its name", error))?;
        let bytes = STORE_HEADER_BYTES + copied.segments * self.engine.log().segment_bytes();
        Ok(Backup { path: path.to_owned(), bytes, taken_at_ms: copied.taken_at_ms })
    }

    /// Copies the store to a simulated disk, for this crate's own tests.
    #[cfg(feature = "__simulation")]
    #[doc(hidden)]
    pub fn backup_simulated(
        &self,
        disk: &crate::storage::simulated::SimulatedDisk,
        progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        self.engine.copy_to(disk, Path::new(":simulation:"), progress).map(drop)
    }
}
