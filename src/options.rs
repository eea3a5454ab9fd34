//! How a store is opened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{
    ClockJump, DEFAULT_MAX_DOWNTIME_MS, ManualClock, OpeningRules, SystemTimeSource, TimeSource,
};
use crate::engine::{Durability, Engine, Settings, Terms};
use crate::error::{Error, Result};
use crate::format::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, STORE_HEADER_BYTES};
use crate::log::largest_result_bytes;
use crate::log::slots::NewSlot;
use crate::record::Retention;
use crate::recover::{self, Config, MAX_FILE_BYTES};
use crate::storage::{FileStorage, MemoryStorage, OpenError, Storage, file_size_limit};
use crate::sync::Patience;

/// How a store is opened: a builder that ends in [`open`](Options::open) or
/// [`open_in_memory`](Options::open_in_memory).
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
/// The default of [`Options::max_result`], where a frame can hold it.
const DEFAULT_MAX_RESULT_BYTES: u64 = 64 << 10;
/// A store smaller than this has no room to move its live records while it is reclaimed.
const MIN_SLOTS: u64 = 4;

impl Options {
    /// The defaults: a file that is created if it is not there, segments of 4 MiB, results up to 64 KiB, 7 days of
    /// retention for keys and results, no lease deadline, every write synced.
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
        }
    }

    /// Whether a file that is not there, or whose creation was cut short, is created. Default: yes.
    pub fn create(mut self, create: bool) -> Options {
        self.create = create;
        self
    }

    /// Whether the file must be a new one: if there is anything at the path, be it an empty file, the opening is
    /// [`Error::Io`] of the kind [`AlreadyExists`](std::io::ErrorKind::AlreadyExists) and leaves it as it is. Overrides
    /// [`create`](Options::create); a store in memory is always new. Default: no.
    ///
    /// A creation that is cut short leaves an empty file, which is there from then on: to try again, open it without
    /// this.
    ///
    /// ```
    /// use oncekey::Options;
    ///
    /// let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("payments.once");
    /// Options::new().create_new(true).open(&path)?.close()?;
    /// assert!(Options::new().create_new(true).open(&path).is_err(), "it is there now");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_new(mut self, create_new: bool) -> Options {
        self.create_new = create_new;
        self
    }

    /// The size of a segment of a new file, in bytes: a power of two from 64 KiB to 1 GiB. An existing file keeps its
    /// own. Default: 4 MiB.
    ///
    /// A segment is what the file grows by and what reclaiming frees; a result is at most about a quarter of one.
    pub fn segment_size(mut self, bytes: u64) -> Options {
        self.segment_bytes = bytes;
        self
    }

    /// The least size of the file, in bytes: this opening makes it that long, and [`compact`](crate::Store::compact) makes
    /// it no shorter. Rounded up to whole segments, or down where [`max_size`](Options::max_size) allows no more. It is not
    /// kept in the file, and a store in memory has none. Default: 0: the file is as long as what is written needs.
    ///
    /// New room is filled with zeroes before it is used, so that a file that grows is written twice. The room up to this
    /// size is filled at the opening instead, which takes as long as writing it; a disk that has less makes the opening
    /// fail with [`Error::Full`] and leaves the file as it was. Under [`Durability::Buffered`] room is only reserved, as
    /// [`durability`](Options::durability) says, and stays so when the file is opened otherwise later.
    pub fn min_size(mut self, bytes: u64) -> Options {
        self.min_bytes = bytes;
        self
    }

    /// The largest size of the file, in bytes; at least four segments. Beyond it, [`Error::Full`]. Default: none.
    ///
    /// A limit of the process on the size of its files (RLIMIT_FSIZE, `ulimit -f`) counts as one, where the system says
    /// what it is (Linux and Android). It is looked at whenever the file grows; an opening of a file that is longer is
    /// [`Error::Full`]. A limit that is lowered later than that, below what the file uses already, may still end the
    /// process with SIGXFSZ.
    pub fn max_size(mut self, bytes: u64) -> Options {
        self.max_bytes = Some(bytes);
        self
    }

    /// The largest result, in bytes. Every operation in progress has this much room set aside in the file, so that its
    /// completion cannot find the disk full: ten thousand leases at 64 KiB are 640 MiB of file. Default: 64 KiB, or
    /// what a frame can hold if that is less.
    pub fn max_result(mut self, bytes: usize) -> Options {
        self.max_result_bytes = Some(bytes);
        self
    }

    /// How long a finished operation is remembered, counted from its completion in store time: for as long as a
    /// retry may come. Afterwards its key is free for another act. Default: 7 days; `Duration::MAX` is for ever.
    ///
    /// It is written into each record when the operation ends. Opening the file with another retention later does
    /// nothing for the records that are there: they expire when they were to expire, neither earlier nor later.
    pub fn retention(mut self, retention: Duration) -> Options {
        self.retention = retention;
        self
    }

    /// How long the result of a finished operation is kept, at most as long as its key. When it has gone and the key
    /// has not, a retry is [`Error::ResultExpired`] and the act is still not performed again. Default: as the key. Like
    /// [`retention`](Options::retention), it holds for what ends from now on.
    ///
    /// An operation with a shorter [`retain`](crate::Operation::retain) of its own keeps its result as long as its
    /// key.
    pub fn result_retention(mut self, retention: Duration) -> Options {
        self.result_retention = Some(retention);
        self
    }

    /// After how long a lease may be taken over by somebody else who asks; at most the retention. Default: never. An
    /// operation with a shorter [`retain`](crate::Operation::retain) of its own has a lease as long as that.
    ///
    /// A thread whose lease was taken over goes on all the same: if its act is slow and not dead, the act happens
    /// twice. Use this only if the outside world refuses the older [`Version`](crate::Version), or the act is
    /// idempotent. A thread that works longer than that can [renew](crate::Lease::renew) its lease.
    pub fn lease(mut self, lease: Duration) -> Options {
        self.lease = Some(lease);
        self
    }

    /// When a change returns. Default: [`Durability::Sync`].
    ///
    /// Under [`Durability::Buffered`], as the store's own and not as that of a single operation, the file grows by room
    /// that the operating system reserves, where it can (Linux and Android), and is not filled with zeroes first. That
    /// halves what is written while the file grows, and a sync of what is written to new room takes longer.
    pub fn durability(mut self, durability: Durability) -> Options {
        self.durability = durability;
        self
    }

    /// Whether records are read through memory maps. Default: yes.
    ///
    /// With maps, a medium error under a record that is read, or a file that another program cuts, ends the process
    /// with SIGBUS. Without them both are errors, and a lookup costs a system call.
    ///
    /// Maps take addresses of the process and no memory of their own: of 64 segments, and for a longer file of at most
    /// twice its length and 64 segments. Where there are not so many addresses, records are read without maps.
    pub fn mmap(mut self, mmap: bool) -> Options {
        self.mmap = mmap;
        self
    }

    /// The longest time that may have passed, by the wall clock, between the last write to the store and an opening in
    /// another boot of the machine; in whole milliseconds. Default: 366 days.
    ///
    /// Within one boot time goes by the boot-time clock, which cannot be set and counts suspend, and this does not matter
    /// (on Linux and Android; elsewhere every opening counts as one in another boot). Across a reboot there is only the
    /// wall clock. Further ahead than this it is more likely wrong than right: the opening is [`Error::Clock`], and nothing
    /// expires. Where a machine is never down for longer than a week, say so: a clock that came up a month ahead then
    /// cannot make the store forget.
    pub fn max_downtime(mut self, longest: Duration) -> Options {
        self.clock_rules.max_downtime_ms = whole_ms(longest);
        self
    }

    /// What is true if this opening finds that the wall clock jumped, which otherwise is [`Error::Clock`]: in another boot
    /// of the machine it is more than a day behind where the store saw it last, or further ahead than
    /// [`max_downtime`](Options::max_downtime). Default: not said.
    ///
    /// The opening writes down where the clock is now, so that the next one needs no answer. Where nothing jumped the
    /// option does nothing: a machine whose clock always comes up wrong, before a time service corrects it, may always say
    /// [`ClockJump::NotElapsed`].
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

    /// Runs the store by a clock that is moved by hand, for tests of retention and leases.
    pub fn manual_clock(mut self, clock: ManualClock) -> Options {
        self.manual_clock = Some(clock);
        self
    }

    /// The works of the store at `path`.
    pub(crate) fn open_file(&self, path: &Path) -> Result<Engine> {
        let settings = self.check()?;
        if path.as_os_str().is_empty() {
            return Err(Error::Option { option: "path", reason: "it is empty; name a file".into() });
        }
        self.check_file_size_limit(path)?;
        if self.create_new {
            FileStorage::create_new(path).map_err(|error| open_error(path, error))?;
        }
        let storage =
            FileStorage::open(path, self.create, self.mmap).map_err(|error| open_error(path, error))?;
        if self.create_new && storage.len().map_err(|error| Error::io(path, "look at the file", error))? > 0 {
            // Another opening made a store of it before this one had the lock.
            return Err(Error::io(path, "create a new file", std::io::ErrorKind::AlreadyExists.into()));
        }
        self.open_storage(Arc::new(storage), path, settings)
    }

    /// The works of a store on a disk that fails.
    #[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
    pub(crate) fn open_simulation(&self, disk: &crate::storage::simulated::SimulatedDisk) -> Result<Engine> {
        let settings = self.check()?;
        disk.lock();
        self.open_storage(Arc::new(disk.clone()), Path::new(":simulation:"), settings)
    }

    /// The works of a store in memory.
    pub(crate) fn open_nowhere(&self) -> Result<Engine> {
        let settings = self.check()?;
        // Zeroes in memory are room that is taken and not room that is made.
        let options = Options { min_bytes: 0, ..self.clone() };
        options.open_storage(Arc::new(MemoryStorage::new()), Path::new(":memory:"), settings)
    }

    fn open_storage(&self, storage: Arc<dyn Storage>, path: &Path, settings: Settings) -> Result<Engine> {
        let _events = crate::events::hold_back();
        let time_source: Arc<dyn TimeSource> = match &self.manual_clock {
            Some(clock) => Arc::new(clock.clone()),
            None => Arc::new(SystemTimeSource::new()),
        };
        let config = Config {
            create: self.create || self.create_new,
            segment_bytes: self.segment_bytes,
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes.unwrap_or(u64::MAX),
            new_slot: match self.durability {
                Durability::Sync => NewSlot::Zeroed,
                Durability::Buffered => NewSlot::Reserved,
            },
            clock_rules: self.clock_rules,
            time_source,
        };
        // Until here an opening has changed nothing, and says so.
        let left_as_it_was = |error| match error {
            Error::Corrupt { path, offset, reason } => {
                Error::Corrupt { path, offset, reason: reason + "; the file was left as it is" }
            }
            error => error,
        };
        let surveyed = recover::survey(storage, path, &config).map_err(left_as_it_was)?;
        // The file's own segment size holds, which only now is known. Nothing has been written yet.
        self.check_max_size(surveyed.segment_bytes())?;
        let settings = self.settings_for(surveyed.segment_bytes(), settings)?;
        Ok(Engine::new(surveyed.fill().map_err(left_as_it_was)?.begin()?, settings))
    }

    /// What can be said against the options before anything is opened.
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
        };
        let result_retention_ms = self.result_retention.map(whole_ms);
        self.settings_for(self.segment_bytes, Settings { terms, result_retention_ms, max_result_bytes: 0 })
    }

    fn check_max_size(&self, segment_bytes: u64) -> Result<()> {
        let least_bytes = STORE_HEADER_BYTES + MIN_SLOTS * segment_bytes;
        match self.max_bytes {
            Some(max_bytes) if max_bytes < least_bytes => Err(Error::Option {
                option: "max_size",
                reason: format!(
                    "{max_bytes} bytes; four segments of {segment_bytes} and a header need {least_bytes}"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses a new file that the process may not make as long as it is at first, before it is created.
    fn check_file_size_limit(&self, path: &Path) -> Result<()> {
        let least_bytes = STORE_HEADER_BYTES + self.segment_bytes;
        let is_new = || std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        match file_size_limit() {
            Some(limit) if limit < least_bytes && is_new() => Err(Error::Full {
                path: path.to_owned(),
                reason: format!(
                    "a header and a segment need {least_bytes} bytes, and the process may write files of {limit} bytes at \
                     most (RLIMIT_FSIZE)"
                ),
            }),
            _ => Ok(()),
        }
    }

    fn settings_for(&self, segment_bytes: u64, settings: Settings) -> Result<Settings> {
        let largest = largest_result_bytes(segment_bytes);
        let wanted = match self.max_result_bytes {
            Some(wanted) if wanted as u64 > largest => {
                return Err(Error::Option {
                    option: "max_result",
                    reason: format!(
                        "{wanted} bytes; a frame in segments of {segment_bytes} bytes holds at most {largest}"
                    ),
                });
            }
            Some(wanted) => wanted as u64,
            None => DEFAULT_MAX_RESULT_BYTES.min(largest),
        };
        Ok(Settings { max_result_bytes: usize::try_from(wanted).unwrap_or(usize::MAX), ..settings })
    }
}

/// Checks one key retention against the result retention that goes with it.
pub(crate) fn check_retention(key: Duration, result: Option<Duration>) -> Result<Retention> {
    let key_ms = whole_ms(key);
    let result_ms = result.map_or(key_ms, whole_ms);
    if key_ms == 0 {
        return Err(Error::Option {
            option: "retention",
            reason: "less than a millisecond: the retry that it is kept for would always come too late"
                .into(),
        });
    }
    if result_ms > key_ms {
        return Err(Error::Option {
            option: "result_retention",
            reason: format!("{result_ms} ms is longer than the retention of the key, {key_ms} ms"),
        });
    }
    Ok(Retention { key_ms, result_ms })
}

/// Checks a lease against the retention.
pub(crate) fn check_lease(lease: Duration, retention: Retention) -> Result<u64> {
    let lease_ms = whole_ms(lease);
    if lease_ms == 0 {
        return Err(Error::Option {
            option: "lease",
            reason: "less than a millisecond: everybody could take over at once".into(),
        });
    }
    if lease_ms > retention.key_ms {
        return Err(Error::Option {
            option: "lease",
            reason: format!(
                "{lease_ms} ms is longer than the retention, {} ms: a completion could be forgotten before the \
                 lease of a retry of it ends",
                retention.key_ms
            ),
        });
    }
    Ok(lease_ms)
}

/// Checks the renewal of a lease against the retention. `Duration::MAX` is never, as where no lease was asked for.
pub(crate) fn check_renewal(lease: Duration, retention: Retention) -> Result<u64> {
    if lease == Duration::MAX { Ok(u64::MAX) } else { check_lease(lease, retention) }
}

/// The retention of one operation of a store: of its key, and of its result if the store was not opened with a shorter one
/// for results.
pub(crate) fn own_retention(key: Duration, store: &Settings) -> Result<Retention> {
    let Retention { key_ms, .. } = check_retention(key, None)?;
    let result_ms = store.result_retention_ms.unwrap_or(key_ms).min(key_ms);
    Ok(Retention { key_ms, result_ms })
}

pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn open_error(path: &Path, error: OpenError) -> Error {
    let not_a_store = |reason: &str| Error::NotAStore { path: path.to_owned(), reason: reason.into() };
    match error {
        OpenError::Locked => Error::Locked { path: path.to_owned() },
        OpenError::Directory => not_a_store("it is a directory; name a file in it"),
        OpenError::NotRegular => not_a_store("it is no regular file"),
        OpenError::NotFound => Error::io(path, "find the file", std::io::ErrorKind::NotFound.into()),
        OpenError::Io { operation, source } => Error::io(path, operation, source),
    }
}
