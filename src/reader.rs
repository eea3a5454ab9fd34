//! Reads a store beside the process that has it open.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::{InCallback, ListedRecord, Listing, WalkedKey, WalkedSegment};
use crate::error::{Error, Result};
use crate::key::AnyKey;
use crate::key_filter::KeyFilter;
use crate::options::Options;
use crate::recover::View;
use crate::scan::{KeySource, Scan};
use crate::stats::KeyState;
use crate::status::Status;
use crate::sync::Mutex;
use crate::unfinished::UnfinishedOperation;

/// Reads the file of a store while another process has the store open, for operators and their tools.
///
/// A reader takes no lock, writes nothing and maps nothing, so it cannot disturb the other process. It needs permission to
/// read the file and its directory. Nothing can be begun with it: there is no call that changes a key.
///
/// It shows the log as it was when the reader was opened or last [refreshed](Reader::refresh). If the other process has
/// reused the space of a record meanwhile, the reader refreshes by itself. What it shows may not be durable yet.
///
/// **Do not decide by its "absent".** A key that is absent here may have begun a moment ago. Only
/// [`Store::begin`](crate::Store::begin), in the process that has the store open, decides whether a side effect may run.
///
/// An operation that began and has not ended is [`Status::Begun`], because only the process that has the store open knows
/// whether it is in progress or in doubt. It is [`Status::InDoubt`] if the store was closed: then no process can be running
/// it. After a crash it is `Begun` until the store has been opened and closed.
///
/// A reader takes about 50 bytes of memory for each key, and opening it reads all footers. It can be used from any thread; its
/// calls wait for each other.
///
/// ```
/// use oncekey::{Fingerprint, Reader, Status, Store};
///
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("payments.once");
/// let store = Store::open(&path)?; // in your service
/// store.record("order-1", Fingerprint::NONE, b"receipt")?;
/// let lease = store.begin("order-2", Fingerprint::NONE)?;
///
/// let reader = Reader::open(&path)?; // in a tool, at the same time
/// assert_eq!(reader.get("order-1")?.result(), Some(&b"receipt"[..]));
/// assert_eq!(reader.get("order-2")?.status(), Status::Begun);
/// assert_eq!(reader.scan().count(), 2);
///
/// drop(lease);
/// store.close()?;
/// reader.refresh()?;
/// assert_eq!(reader.get("order-2")?.status(), Status::InDoubt);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reader {
    view: Arc<Mutex<View>>,
    path: PathBuf,
}

impl Reader {
    /// Opens the file at `path` for reading, with the default [`Options`].
    ///
    /// # Errors
    ///
    /// Those of [`Options::open_reader`].
    pub fn open(path: impl AsRef<Path>) -> Result<Reader> {
        Options::new().open_reader(path)
    }

    /// Returns the path by which the file was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was written since the reader was opened or refreshed. From then on, the reader shows the log as it was at
    /// one moment during this call.
    ///
    /// # Errors
    ///
    /// - [`Error::Busy`]: the other process changed the file each time that this one was reading it. Try again.
    /// - [`Error::Replaced`]: the path leads to a different file now. Open a new reader.
    /// - [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub fn refresh(&self) -> Result<()> {
        self.view.lock().refresh()
    }

    /// Returns the state of `key`, as [`Store::get`](crate::Store::get) does, except for what [`Reader`] says about its
    /// status.
    ///
    /// # Errors
    ///
    /// [`Error::Key`], also for the key of a [step](crate::Key::step); [`Error::Corrupt`] if the key's record cannot be read; those of [`refresh`](Reader::refresh).
    pub fn get<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<KeyState> {
        let key = key.into();
        let key = key.as_key();
        key.check()?;
        let mut view = self.view.lock();
        let (hash, now_ms) = (view.hasher().key(key), view.now_ms());
        let begun = begun_status(&view);
        let read = view.read(hash, None, |address, place, record| {
            KeyState::of_record(key, (address, place), record, (now_ms, begun))
        })?;
        let state = read.unwrap_or_else(|| Ok(KeyState::absent(key)));
        state.map_err(|(offset, reason)| Error::corrupt(&self.path, offset, reason))
    }

    /// Lists every key that is not absent, as [`Store::scan`](crate::Store::scan) does, except for what [`Reader`] says
    /// about the status of operations that have not ended.
    ///
    /// The walk ends at the end of the log as it is when the walk gets there, so it refreshes the reader.
    pub fn scan<'a>(&self) -> Scan<'a> {
        Scan::of(Box::new(FileKeys { view: Arc::clone(&self.view) }))
    }

    /// Lists the operations that began and have not ended, oldest first. Each is [`Status::Begun`] or [`Status::InDoubt`]:
    /// see [`Reader`].
    ///
    /// ```
    /// use oncekey::{Reader, Store};
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("payments.once");
    /// let store = Store::open(&path)?;
    /// assert!(store.operation("charge:1").run(|_| Err::<u64, _>("connection reset")).is_err());
    ///
    /// let unfinished = Reader::open(&path)?.unfinished();
    /// let first = unfinished.into_iter().next().expect("one has not ended")?;
    /// assert_eq!((first.key().as_str(), first.note()), (Some("charge:1"), Some("connection reset")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Each operation has its own result, with the errors of [`get`](Reader::get). Errors come first.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Result<UnfinishedOperation>> {
        let hashes: Vec<u128> = self.view.lock().begun().collect();
        let read = |hash| read_listed(&self.view, hash, None, Listing::Unfinished).transpose();
        let mut listed: Vec<_> = hashes.into_iter().filter_map(read).collect();
        let since = |listed: &Result<ListedRecord>| listed.as_ref().map_or(0, |listed| listed.found.time_ms);
        listed.sort_by_key(since);
        listed.into_iter().map(|listed| listed.map(UnfinishedOperation::without_steps)).collect()
    }

    /// The store time now, in ms since the Unix epoch: the time in which retentions are counted.
    #[must_use]
    pub fn store_time_ms(&self) -> u64 {
        self.view.lock().now_ms()
    }
}

// These methods are not in `options`, because a module uses only those declared before it.
impl Options {
    /// Opens the file at `path` for reading beside the process that has the store open: see [`Reader`]. Of the options, only
    /// those of the clock have an effect. If the wall clock has jumped, nothing expires for the reader.
    ///
    /// # Errors
    ///
    /// - [`Error::Busy`]: another process changed the file each time that this one was reading it. Try again.
    /// - [`Error::NotAStore`], [`Error::Unsupported`]: the file is not a store, or has a different format version.
    /// - [`Error::Corrupt`]: bytes that were on disk are damaged, and stay so when they are read again.
    /// - [`Error::Io`]: the operating system returned an error, for instance because the file does not exist.
    pub fn open_reader(&self, path: impl AsRef<Path>) -> Result<Reader> {
        let path = path.as_ref();
        let view = self.view_file(path)?;
        Ok(Reader { view: Arc::new(Mutex::new(view)), path: path.to_owned() })
    }
}

#[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
impl Options {
    /// Opens a simulated disk for reading, for this crate's own tests.
    #[doc(hidden)]
    pub fn open_reader_simulated(&self, disk: &crate::storage::simulated::SimulatedDisk) -> Result<Reader> {
        let view = self.view_simulation(disk)?;
        Ok(Reader { path: view.path().to_owned(), view: Arc::new(Mutex::new(view)) })
    }
}

/// The status of an operation that began and has not ended.
fn begun_status(view: &View) -> Status {
    if view.is_closed() { Status::InDoubt } else { Status::Begun }
}

/// Reads the last record of a key. None if it is not listed.
fn read_listed(
    view: &Mutex<View>,
    hash: u128,
    key: Option<WalkedKey>,
    listing: Listing<'_>,
) -> Result<Option<ListedRecord>> {
    let mut view = view.lock();
    let (now_ms, begun) = (view.now_ms(), begun_status(&view));
    let at = key.and_then(|key| key.at);
    let read = view.read(hash, at, |address, place, record| {
        ListedRecord::beside((address, place), record, (now_ms, begun), listing)
    })?;
    match read {
        Some(Ok(listed)) => Ok(listed),
        Some(Err((offset, reason))) => Err(Error::corrupt(view.path(), offset, reason)),
        None => Ok(None),
    }
}

/// The keys of a file.
#[derive(Debug)]
struct FileKeys {
    view: Arc<Mutex<View>>,
}

impl KeySource for FileKeys {
    fn walk(&self, from: u64) -> Result<WalkedSegment> {
        let segment = self.view.lock().walk(from)?;
        let is_last = segment.is_last;
        let walked = |(hash, address)| WalkedKey { hash, at: (!is_last).then_some(address) };
        Ok(WalkedSegment {
            sequence: segment.sequence,
            keys: segment.listed.map(|listed| listed.into_iter().map(walked).collect()),
            is_last,
            segment_bytes: segment.segment_bytes,
            left_bytes: segment.left_bytes,
        })
    }

    fn read(&self, key: WalkedKey, filter: &KeyFilter) -> Result<Option<ListedRecord>> {
        read_listed(&self.view, key.hash, Some(key), Listing::Keys(filter))
    }

    fn enter_callback(&self) -> Option<InCallback> {
        None
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}
