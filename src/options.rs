//! The options of a store, their defaults and checks, and the code that opens an engine with them. The public calls that open
//! a store are in `store`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use checks::whole_ms;
pub(crate) use checks::{check_lease, check_renewal, check_retention, operation_retention};

use crate::clock::{
    ClockJump, DEFAULT_MAX_DOWNTIME_MS, ManualClock, OpeningRules, SystemTimeSource, TimeSource,
};
use crate::engine::{Durability, Engine, Settings, Terms};
use crate::error::{Error, Result};
use crate::format::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, STORE_HEADER_BYTES};
use crate::log::largest_result_bytes;
use crate::log::slots::NewSlot;
use crate::recover::{self, Config, MAX_FILE_BYTES, View};
use crate::storage::{FileStorage, MemoryStorage, OpenError, Storage, file_size_limit};
use crate::sync::Patience;

mod care;
mod checks;

/// A builder for opening a store, with [`open`](Options::open) or [`open_in_memory`](Options::open_in_memory).
///
/// Only [`segment_size`](Options::segment_size) is stored in the file. Every other option applies while the store is open,
/// and can be different the next time. If an option has an invalid value, opening the store fails with [`Error::Option`].
///
/// ```
/// use oncekey::{Durability, Options};
/// use std::time::Duration;
///
/// let directory = tempfile::tempdir()?;
/// let store = Options::new()
///     .retention(Duration::from_secs(30 * 24 * 3600))
///     .result_retention(Duration::from_secs(24 * 3600))
///     .max_result(16 << 10)
///     .open(directory.path().join("payments.once"))?;
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "options do nothing until a store is opened with them"]
pub struct Options {
    create: bool,
    create_new: bool,
    segment_bytes: u64,
    min_bytes: u64,
    max_bytes: Option<u64>,
    max_result_bytes: Option<usize>,
    retention: Duration,
    result_retention: Option<Duration>,
    lease: Option<Duration>,
    durability: Durability,
    mmap: bool,
    clock_rules: OpeningRules,
    manual_clock: Option<ManualClock>,
    notes: bool,
    max_outbox_bytes: Option<u64>,
    lock_wait: Duration,
    forgotten: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options::new()
    }
}

/// The default of [`Options::retention`].
const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The default of [`Options::segment_size`].
const DEFAULT_SEGMENT_BYTES: u64 = 4 << 20;
/// The default of [`Options::max_result`], unless a frame cannot contain that much.
const DEFAULT_MAX_RESULT_BYTES: u64 = 64 << 10;
/// The minimum number of slots. With fewer there is no space for the live records of a segment that is being reclaimed.
const MIN_SLOTS: u64 = 4;

impl Options {
    /// Returns the defaults: the file is created if it does not exist, segments have 4 MiB, results have at most 64 KiB, keys
    /// and results are remembered for 7 days, leases have no deadline, and every change is synced.
    pub fn new() -> Options {
        Options {
            create: true,
            create_new: false,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            min_bytes: 0,
            max_bytes: None,
            max_result_bytes: None,
            retention: DEFAULT_RETENTION,
            result_retention: None,
            lease: None,
            durability: Durability::Sync,
            mmap: true,
            clock_rules: OpeningRules { max_downtime_ms: DEFAULT_MAX_DOWNTIME_MS, accept: None },
            manual_clock: None,
            notes: true,
            max_outbox_bytes: None,
            lock_wait: Duration::ZERO,
            forgotten: None,
        }
    }

    /// Sets whether to create the file, or finish an interrupted creation, if there is no store yet. Default: true.
    pub fn create(mut self, create: bool) -> Options {
        self.create = create;
        self
    }

    /// Sets whether opening the store must create the file. Default: false.
    ///
    /// If anything exists at the path, even an empty file, opening the store fails with [`Error::Io`] of kind
    /// [`AlreadyExists`](std::io::ErrorKind::AlreadyExists) and changes nothing. Overrides [`create`](Options::create). Has
    /// no effect on a store in memory.
    ///
    /// If the creation of a file is interrupted, an empty file is left. To finish it, open the file without this option.
    ///
    /// ```
    /// use oncekey::Options;
    ///
    /// let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("payments.once");
    /// Options::new().create_new(true).open(&path)?.close()?;
    /// assert!(Options::new().create_new(true).open(&path).is_err(), "it exists now");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_new(mut self, create_new: bool) -> Options {
        self.create_new = create_new;
        self
    }

    /// Sets the segment size of a new file, in bytes: a power of two from 64 KiB to 1 GiB. An existing file keeps its own.
    /// Default: 4 MiB.
    ///
    /// A segment is the unit in which the file grows and space is reclaimed. A result takes at most about a quarter of it.
    pub fn segment_size(mut self, bytes: u64) -> Options {
        self.segment_bytes = bytes;
        self
    }

    /// Sets the minimum size of the file, in bytes. Opening the store extends the file to that size, and
    /// [`compact`](crate::Store::compact) does not make it shorter. Rounded up to whole segments, or down where
    /// [`max_size`](Options::max_size) requires it. Has no effect on a store in memory. Default: 0.
    ///
    /// A file that grows is filled with zeroes before it is used, so every byte is written twice. With this option, the
    /// zeroes are written while the store is opened, which takes as long as writing that much. If the disk does not have the
    /// space, opening the store fails with [`Error::Full`] and the file keeps its length. Under [`Durability::Buffered`], the
    /// space is reserved but not filled (see [`durability`](Options::durability)), not even by a later session with a
    /// different durability.
    pub fn min_size(mut self, bytes: u64) -> Options {
        self.min_bytes = bytes;
        self
    }

    /// Sets the maximum size of the file, in bytes: at least a header and four segments. A change that needs more fails with
    /// [`Error::Full`]. Default: no limit.
    ///
    /// On Linux and Android, the process's limit on file sizes (RLIMIT_FSIZE, `ulimit -f`) applies as well. The store reads
    /// that limit whenever the file grows. Opening a file that is longer fails with [`Error::Full`]. If the limit is lowered
    /// below the length of the file while the store is open, a write can still end the process with SIGXFSZ.
    pub fn max_size(mut self, bytes: u64) -> Options {
        self.max_bytes = Some(bytes);
        self
    }

    /// Sets the maximum size of a result, in bytes. A larger result is [`Error::TooLarge`]. Default: 64 KiB, or about a
    /// quarter of a segment if that is less.
    ///
    /// Each operation in progress reserves this much space in the file, so that its completion does not find the disk full.
    /// Ten thousand leases with 64 KiB reserve 640 MiB.
    pub fn max_result(mut self, bytes: usize) -> Options {
        self.max_result_bytes = Some(bytes);
        self
    }

    /// Sets how long a completed operation is remembered, in store time from its completion. Choose the longest time after
    /// which a retry can still come: afterwards the key is absent, and a retry runs the side effect again. `Duration::MAX`
    /// means for ever. Default: 7 days.
    ///
    /// Each record stores its own expiry when the operation ends. Opening the file with a different retention does not change
    /// these.
    pub fn retention(mut self, retention: Duration) -> Options {
        self.retention = retention;
        self
    }

    /// Sets how long the result of a completed operation is kept, in store time from its completion; at most as long as its
    /// key. Default: as long as the key.
    ///
    /// When the result is gone and the key is not, a retry is [`Error::ResultExpired`], and the side effect still does not
    /// run again. Like [`retention`](Options::retention), this applies to operations that end from now on. An operation that
    /// sets a shorter [`retain`](crate::Operation::retain) keeps its result as long as its key.
    pub fn result_retention(mut self, retention: Duration) -> Options {
        self.result_retention = Some(retention);
        self
    }

    /// Sets the deadline of leases, in store time from the begin; at most the retention. After the deadline, another caller
    /// that begins the operation gets a [`Doubt`](crate::Doubt) about the attempt. Default: no deadline. If an operation sets
    /// a shorter [`retain`](crate::Operation::retain), its lease has that length.
    ///
    /// The deadline does not stop the thread that holds the lease. If its side effect is merely slow, the side effect can
    /// happen twice. Use this only if the outside world refuses an older [`Version`](crate::Version), or if the side effect
    /// is idempotent. A thread that needs longer can [renew](crate::Lease::renew) its lease.
    pub fn lease(mut self, lease: Duration) -> Options {
        self.lease = Some(lease);
        self
    }

    /// Sets how durable a change is before its call returns. Default: [`Durability::Sync`]. A single operation can override
    /// it with [`Operation::durability`](crate::Operation::durability).
    ///
    /// On Linux and Android, [`Durability::Buffered`] as an option of the store also changes how the file grows: the
    /// operating system reserves the space, and the store does not fill it with zeroes. That halves the bytes that are
    /// written while the file grows, but makes a sync of data in new space slower.
    pub fn durability(mut self, durability: Durability) -> Options {
        self.durability = durability;
        self
    }

    /// Sets whether to read records through memory maps. Default: true.
    ///
    /// With maps, a read error of the disk, or truncation of the file by another program, ends the process with SIGBUS.
    /// Without maps, both are errors, and each lookup takes a system call.
    ///
    /// Maps take address space but no memory of their own: the length of 64 segments, or for a longer file at most twice its
    /// length plus 64 segments. If there is not enough address space, records are read without maps.
    pub fn mmap(mut self, mmap: bool) -> Options {
        self.mmap = mmap;
        self
    }

    /// Sets the maximum time, by the wall clock, from the last write to the store until the store is opened after a reboot,
    /// in whole milliseconds. Default: 366 days.
    ///
    /// Across a reboot, only the wall clock shows how much time has passed. If it is ahead by more than this maximum, it is
    /// probably wrong, so opening the store fails with [`Error::Clock`] and nothing expires. If a machine is never down for
    /// longer than a week, set a week so that a clock that comes up a month ahead cannot make everything expire.
    ///
    /// On Linux and Android, this option has no effect within the same boot, because store time runs on the boot-time clock,
    /// which cannot be set and counts suspend. On other systems, the store is always opened as if after a reboot.
    pub fn max_downtime(mut self, longest: Duration) -> Options {
        self.clock_rules.max_downtime_ms = whole_ms(longest);
        self
    }

    /// Sets what to do if the wall clock jumped across a reboot: back by more than a day since the last write, or ahead by
    /// more than [`max_downtime`](Options::max_downtime). Without this option, opening the store fails with [`Error::Clock`].
    ///
    /// Opening the store records the clock's reading, so the option is not needed the next time. If the clock did not jump,
    /// the option has no effect. So a machine whose clock always comes up wrong, before a time service corrects it, can
    /// always set [`ClockJump::NotElapsed`].
    ///
    /// ```
    /// use oncekey::{ClockJump, Error, Fingerprint, ManualClock, Options};
    /// use std::time::Duration;
    ///
    /// let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("payments.once");
    /// let clock = ManualClock::new(0); // no battery: January 1970
    /// let options = Options::new().manual_clock(clock.clone());
    /// let store = options.clone().open(&path)?;
    /// store.record("a", Fingerprint::NONE, b"result")?;
    /// store.close()?;
    ///
    /// clock.reboot(Duration::from_secs(60));
    /// clock.jump_wall(1_700_000_000_000); // November 2023, from a time service
    /// assert!(matches!(options.clone().open(&path), Err(Error::Clock { .. })));
    ///
    /// let store = options.clone().accept_clock_jump(ClockJump::NotElapsed).open(&path)?;
    /// assert!(store.get("a")?.is_completed(), "those 53 years have not passed");
    /// store.close()?;
    /// options.open(&path)?; // the new mark is in the file
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn accept_clock_jump(mut self, jump: ClockJump) -> Options {
        self.clock_rules.accept = Some(jump);
        self
    }

    /// Makes the store use a clock that a test advances by hand, for tests of retention and leases: see [`ManualClock`].
    pub fn manual_clock(mut self, clock: ManualClock) -> Options {
        self.manual_clock = Some(clock);
        self
    }

    /// Sets whether [`run`](crate::Operation::run) keeps the text of the error with which a side effect ended in doubt, for
    /// [`Store::unfinished`](crate::Store::unfinished). Switch it off if these texts may contain secrets: they are written to the
    /// file. Default: true.
    pub fn notes(mut self, notes: bool) -> Options {
        self.notes = notes;
        self
    }

    /// Reads the file of a store beside the process that has it open.
    pub(crate) fn view_file(&self, path: &Path) -> Result<View> {
        let storage = FileStorage::open_to_read(path).map_err(|error| open_error(path, error))?;
        View::new(Arc::new(storage), path, (self.time_source(), self.clock_rules))
    }

    /// Reads a simulated disk as if another process had the store open.
    #[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
    pub(crate) fn view_simulation(&self, disk: &crate::storage::simulated::SimulatedDisk) -> Result<View> {
        let (storage, path) = (Arc::new(disk.clone()), Path::new(":simulation:"));
        View::new(storage, path, (self.time_source(), self.clock_rules))
    }

    fn time_source(&self) -> Arc<dyn TimeSource> {
        match &self.manual_clock {
            Some(clock) => Arc::new(clock.clone()),
            None => Arc::new(SystemTimeSource::new()),
        }
    }

    /// Opens the engine for the store at `path`.
    pub(crate) fn open_file(&self, path: &Path) -> Result<Engine> {
        let settings = self.check()?;
        if path.as_os_str().is_empty() {
            return Err(Error::Option { option: "path", reason: "it is empty; name a file".into() });
        }
        self.check_file_size_limit(path)?;
        if self.create_new {
            FileStorage::create_new(path).map_err(|error| open_error(path, error))?;
        }
        let patience = if self.lock_wait.is_zero() { Patience::None } else { Patience::of(self.lock_wait) };
        let storage = FileStorage::open(path, self.create, self.mmap, patience)
            .map_err(|error| open_error(path, error))?;
        if self.create_new && storage.len().map_err(|error| Error::io(path, "inspect the file", error))? > 0 {
            // Another process created a store in it before this one had the lock.
            return Err(Error::io(path, "create a new file", std::io::ErrorKind::AlreadyExists.into()));
        }
        self.open_storage(Arc::new(storage), path, settings)
    }

    /// Opens the engine for a store on a simulated disk.
    #[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
    pub(crate) fn open_simulation(&self, disk: &crate::storage::simulated::SimulatedDisk) -> Result<Engine> {
        let settings = self.check()?;
        disk.lock();
        self.open_storage(Arc::new(disk.clone()), Path::new(":simulation:"), settings)
    }

    /// Opens the engine for a store in memory.
    pub(crate) fn open_nowhere(&self) -> Result<Engine> {
        let settings = self.check()?;
        // The minimum size is ignored, because it would only take memory: there is no disk on which to reserve space.
        let options = Options { min_bytes: 0, ..self.clone() };
        options.open_storage(Arc::new(MemoryStorage::new()), Path::new(":memory:"), settings)
    }

    fn open_storage(&self, storage: Arc<dyn Storage>, path: &Path, settings: Settings) -> Result<Engine> {
        let _events = crate::events::hold_back();
        let time_source = self.time_source();
        let config = Config {
            create: self.create || self.create_new,
            segment_bytes: self.segment_bytes,
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes.unwrap_or(u64::MAX),
            new_slot: match self.durability {
                Durability::Sync => NewSlot::Zeroed,
                Durability::Buffered => NewSlot::Reserved,
            },
            forgotten_ms: self.forgotten.map(whole_ms),
            clock_rules: self.clock_rules,
            time_source,
        };
        // The survey and the fill change nothing in the file, and the text of their errors includes that.
        let left_as_it_was = |error| match error {
            Error::Corrupt { path, offset, reason } => {
                Error::Corrupt { path, offset, reason: reason + "; the file was left as it is" }
            }
            error => error,
        };
        let surveyed = recover::survey(storage, path, &config).map_err(left_as_it_was)?;
        // The segment size of the file is known only now. Nothing has been written yet.
        self.check_max_size(surveyed.segment_bytes())?;
        let settings = self.settings_for(surveyed.segment_bytes(), settings)?;
        Ok(Engine::new(surveyed.fill().map_err(left_as_it_was)?.begin()?, settings))
    }

    /// Checks the options as far as is possible without the file.
    fn check(&self) -> Result<Settings> {
        let refuse = |option, reason: String| Err(Error::Option { option, reason });
        if !self.segment_bytes.is_power_of_two()
            || !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes)
        {
            return refuse(
                "segment_size",
                format!("{} bytes; it is a power of two from 65,536 to 1,073,741,824", self.segment_bytes),
            );
        }
        self.check_max_size(self.segment_bytes)?;
        if let Some(max_bytes) = self.max_bytes.filter(|max_bytes| *max_bytes < self.min_bytes) {
            return refuse(
                "min_size",
                format!("{} bytes; max_size allows no more than {max_bytes}", self.min_bytes),
            );
        }
        if self.min_bytes > MAX_FILE_BYTES {
            return refuse(
                "min_size",
                format!("{} bytes; no file is longer than {MAX_FILE_BYTES}", self.min_bytes),
            );
        }
        let retention = check_retention(self.retention, self.result_retention)?;
        let lease_ms = self.lease.map(|lease| check_lease(lease, retention)).transpose()?;
        let terms = Terms {
            typing: None,
            durability: self.durability,
            begin_unsynced: false,
            retention,
            lease_ms,
            patience: Patience::None,
            max_result_bytes: 0, // until `settings_for` knows the segment size
            emits_bytes: 0,
        };
        let result_retention_ms = self.result_retention.map(whole_ms);
        let Options { notes, max_outbox_bytes, .. } = *self;
        let settings = Settings { terms, result_retention_ms, notes, max_outbox_bytes };
        self.settings_for(self.segment_bytes, settings)
    }

    fn check_max_size(&self, segment_bytes: u64) -> Result<()> {
        let needed_bytes = STORE_HEADER_BYTES + MIN_SLOTS * segment_bytes;
        match self.max_bytes {
            Some(max_bytes) if max_bytes < needed_bytes => Err(Error::Option {
                option: "max_size",
                reason: format!(
                    "{max_bytes} bytes; four segments of {segment_bytes} and a header need {needed_bytes}"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses to create a file whose first segment would exceed the process's limit on file sizes. This is checked before
    /// the file is created, because the write would end the process with SIGXFSZ.
    fn check_file_size_limit(&self, path: &Path) -> Result<()> {
        let needed_bytes = STORE_HEADER_BYTES + self.segment_bytes;
        let is_new = || std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        match file_size_limit() {
            Some(limit) if limit < needed_bytes && is_new() => Err(Error::Full {
                path: path.to_owned(),
                reason: format!(
                    "a header and a segment need {needed_bytes} bytes, and the process may write files of at most \
                     {limit} bytes (RLIMIT_FSIZE)"
                ),
            }),
            _ => Ok(()),
        }
    }

    fn settings_for(&self, segment_bytes: u64, mut settings: Settings) -> Result<Settings> {
        let largest = largest_result_bytes(segment_bytes);
        let wanted = match self.max_result_bytes {
            Some(wanted) if wanted as u64 > largest => {
                let reason = format!(
                    "{wanted} bytes; a frame in segments of {segment_bytes} bytes holds at most {largest}"
                );
                return Err(Error::Option { option: "max_result", reason });
            }
            given => given.map_or(DEFAULT_MAX_RESULT_BYTES.min(largest), |wanted| wanted as u64),
        };
        settings.terms.max_result_bytes = usize::try_from(wanted).unwrap_or(usize::MAX);
        Ok(settings)
    }
}

pub(crate) fn open_error(path: &Path, error: OpenError) -> Error {
    let not_a_store = |reason: &str| Error::NotAStore { path: path.to_owned(), reason: reason.into() };
    match error {
        OpenError::Locked => Error::Locked { path: path.to_owned() },
        OpenError::Directory => not_a_store("a directory; name a file in it"),
        OpenError::NotRegular => not_a_store("not a regular file"),
        OpenError::NotFound => Error::io(path, "find the file", std::io::ErrorKind::NotFound.into()),
        OpenError::Io { operation, source } => Error::io(path, operation, source),
    }
}
