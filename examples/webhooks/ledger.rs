//! The outside world: a file to which each delivery adds a line.
//!
//! An entry counts only once it is synced, because the side effect must be as durable as the record of it in the store.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

/// The result of a delivery: the number of its ledger entry, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    entry: u64,
}

/// A line of the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct LedgerEntry<'text> {
    entry: u64,
    #[serde(borrow)]
    delivery: Cow<'text, str>,
    #[serde(borrow)]
    event: Cow<'text, str>,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    file: File,
    /// The synced entries by delivery id.
    receipts: HashMap<String, Receipt>,
    last_entry: u64,
    /// The reason of a failed write or sync. The end of the file is unknown after that, so nothing may be appended.
    failure: Option<String>,
}

impl Ledger {
    /// Opens or creates the ledger and reads its entries. Cuts off a torn last line.
    pub(crate) fn open(path: &Path) -> Result<Ledger, LedgerError> {
        let cannot =
            |doing: &str, error: io::Error| LedgerError::new(path, format!("cannot {doing}: {error}"));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| cannot("open", error))?;
        if !file.metadata().map_err(|error| cannot("open", error))?.is_file() {
            return Err(LedgerError::new(path, "not a regular file"));
        }
        // Without this lock, two programs with different stores could use the same ledger, and one of them could cut off a
        // line that the other is writing.
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => LedgerError::new(path, "locked by another process"),
            TryLockError::Error(error) => cannot("lock", error),
        })?;

        let (mut receipts, mut last_entry, mut whole_bytes) = (HashMap::new(), 0, 0);
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        let torn = loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(|error| cannot("read", error))?;
            if line.last() != Some(&b'\n') {
                break &line;
            }
            let number = last_entry + 1;
            let entry = serde_json::from_slice::<LedgerEntry<'_>>(&line)
                .ok()
                .filter(|entry| entry.entry == number)
                .ok_or_else(|| LedgerError::new(path, format!("line {number} is not entry {number}")))?;
            receipts.insert(entry.delivery.into_owned(), Receipt { entry: number });
            last_entry = number;
            whole_bytes += length as u64;
        };
        if !torn.is_empty() {
            // A line without its end was never synced, so its delivery was never acknowledged. Cut off the line, but only if
            // it is the beginning of the next entry. Otherwise the path may be mistyped and the file may not be a ledger.
            let beginning = beginning_of_entry(last_entry + 1);
            if !torn.starts_with(&beginning) && !beginning.starts_with(torn) {
                return Err(LedgerError::new(path, format!("does not end in entry {}", last_entry + 1)));
            }
            file.set_len(whole_bytes).map_err(|error| cannot("cut off a torn line", error))?;
        }
        // The last run may have written an entry without syncing it. This entry can become the result of a delivery, so it has
        // to be durable first. (If a sync fails, find the cause before the next run. After a failed sync, a file system may
        // report that the next sync succeeded although the data was not written.)
        file.sync_all().map_err(|error| cannot("sync", error))?;
        sync_directory_of(path).map_err(|error| cannot("sync the directory", error))?;
        let entries = Entries { file, receipts, last_entry, failure: None };
        Ok(Ledger { path: path.to_owned(), entries: Mutex::new(entries) })
    }

    /// Returns the entry of a delivery, if there is one.
    pub(crate) fn find(&self, delivery: &str) -> Result<Option<Receipt>, LedgerError> {
        Ok(self.entries()?.receipts.get(delivery).copied())
    }

    /// Appends the entry of a delivery and syncs it.
    ///
    /// The lock is held until the line is synced. So only the last line can be torn, and two lines cannot interleave.
    pub(crate) fn append(&self, delivery: &str, event: &str) -> Result<Receipt, LedgerError> {
        let mut entries = self.entries().map_err(LedgerError::before_writing)?;
        let number = entries.last_entry + 1;
        let entry = LedgerEntry { entry: number, delivery: delivery.into(), event: event.into() };
        let written = serde_json::to_vec(&entry).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            entries.file.write_all(&line)?;
            entries.file.sync_data()
        });
        if let Err(error) = written {
            // The line may be in the file nevertheless. `open` finds it in the next run.
            let reason = format!("cannot write entry {number}: {error}");
            entries.failure = Some(reason.clone());
            return Err(LedgerError::new(&self.path, reason));
        }
        let receipt = Receipt { entry: number };
        entries.receipts.insert(delivery.to_owned(), receipt);
        entries.last_entry = number;
        Ok(receipt)
    }

    /// Locks the entries. Fails if an earlier write failed, because the entries may then differ from the file.
    fn entries(&self) -> Result<MutexGuard<'_, Entries>, LedgerError> {
        let entries = self
            .entries
            .lock()
            .map_err(|_| LedgerError::new(&self.path, "a thread panicked while using it"))?;
        match &entries.failure {
            Some(reason) => {
                Err(LedgerError::new(&self.path, format!("unusable since an earlier failure: {reason}")))
            }
            None => Ok(entries),
        }
    }
}

/// Returns the beginning of an entry's line, by which a torn line is recognized.
fn beginning_of_entry(number: u64) -> Vec<u8> {
    format!("{{\"entry\":{number},").into_bytes()
}

/// Syncs the directory, so that the name of a new file is as durable as the file.
#[cfg(unix)]
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Does nothing: other systems cannot open a directory as a file, and make the name durable by themselves.
#[cfg(not(unix))]
fn sync_directory_of(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// An error of the ledger, with its path.
#[derive(Debug)]
pub(crate) struct LedgerError {
    path: PathBuf,
    reason: Cow<'static, str>,
    /// Whether it is certain that no entry was written. The operation can then be released instead of being left in doubt.
    pub(crate) nothing_was_written: bool,
}

impl LedgerError {
    fn new(path: &Path, reason: impl Into<Cow<'static, str>>) -> LedgerError {
        LedgerError { path: path.to_owned(), reason: reason.into(), nothing_was_written: false }
    }

    /// Marks this as an error that happened before anything was written.
    fn before_writing(self) -> LedgerError {
        LedgerError { nothing_was_written: true, ..self }
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ledger {}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for LedgerError {}
