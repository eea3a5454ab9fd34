//! The store, on bytes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::DefaultCodec;
use crate::completion::Recorded;
use crate::engine::{Compaction, Engine, Expected, Handle, Next};
use crate::error::Result;
use crate::format::record::Value;
use crate::key::{AnyKey, Fingerprint};
use crate::lease::Begin;
use crate::operation::Operation;
use crate::options::Options;
use crate::stats::{CasOutcome, KeyState, Stats};
use crate::status::Version;
use crate::sync::Patience;

/// An idempotency store: one file, or memory, that remembers what has been done.
///
/// A `Store` is a handle: clones are cheap, share everything, and can be used from any thread. The file stays locked
/// until [`close`](Store::close), or until the last handle and the last [`Lease`](crate::Lease) are gone; the last one to
/// go also marks the file as closed, as well as it can.
///
/// A store belongs to the process that opened it. In a child that was forked from it, every call that returns a
/// `Result` is [`Error::Forked`](crate::Error::Forked) and does nothing, and drops do nothing.
///
/// [`operation`](Store::operation) is the typed face. What stands beside it here is the same on bytes.
///
/// ```
/// use oncekey::{Outcome, Store};
///
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("mail.once");
/// let store = Store::open(&path)?;
/// for _ in 0..2 {
///     let outcome = store.operation("welcome:ada").run(|_attempt| {
///         // .. send the mail ..
///         Ok::<_, std::io::Error>("message 17".to_owned())
///     })?;
///     assert_eq!(outcome.into_inner(), "message 17");
/// }
/// store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Store {
    engine: Handle,
}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    const fn is_send<T: Send + 'static>() {}
    is_send_and_sync::<Store>();
    is_send::<crate::lease::Lease>();
    is_send::<crate::lease::Doubt>();
    is_send_and_sync::<crate::error::Error>();
};

impl Store {
    pub(crate) fn new(engine: Engine) -> Store {
        Store { engine: Handle::new(Arc::new(engine)) }
    }

    /// Opens the store at `path`, creating it if it is not there, with the defaults of [`Options`].
    ///
    /// # Errors
    ///
    /// As [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        Options::new().open(path)
    }

    /// A store in memory, for a program's own tests. It behaves as one in a file does and ends with its last handle.
    ///
    /// # Errors
    ///
    /// None that the defaults can cause.
    pub fn in_memory() -> Result<Store> {
        Options::new().open_in_memory()
    }

    /// An operation on `key`: what to perform once, to be said in typed terms. See [`Operation`].
    #[must_use = "an operation does nothing until it is run"]
    pub fn operation<'a>(&'a self, key: impl Into<AnyKey<'a>>) -> Operation<'a, DefaultCodec> {
        Operation::new(&self.engine, key.into())
    }

    /// The fingerprint of a request's bytes, under this file's secret key.
    #[must_use]
    pub fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        self.engine.fingerprint(request)
    }

    /// Begins an attempt at the act that `key` names, or says why not: see [`Begin`]. An attempt that is acquired is
    /// durable before this returns.
    ///
    /// It does not wait while another thread performs the operation or writes its record: that is
    /// [`Begin::InProgress`]. With a deadline, a wait or a retention of its own: [`Operation::begin`].
    ///
    /// # Errors
    ///
    /// - [`Error::Key`](crate::Error::Key): the key is empty or too long.
    /// - [`Error::Mismatch`](crate::Error::Mismatch): the key was used with another fingerprint.
    /// - [`Error::ResultExpired`](crate::Error::ResultExpired): done, and the result is no longer kept.
    /// - [`Error::Full`](crate::Error::Full): no room for another operation. What is in progress, in doubt or
    ///   completed is answered all the same.
    /// - [`Error::Replaced`](crate::Error::Replaced): the path leads to another file than the open one.
    /// - [`Error::Closed`](crate::Error::Closed), [`Error::Forked`](crate::Error::Forked): the store cannot be used any
    ///   more, or not in this process. So does every other call that returns a `Result`.
    /// - [`Error::Poisoned`](crate::Error::Poisoned), [`Error::Corrupt`](crate::Error::Corrupt),
    ///   [`Error::Io`](crate::Error::Io): the disk.
    pub fn begin<'a>(&self, key: impl Into<AnyKey<'a>>, fingerprint: Fingerprint) -> Result<Begin> {
        let (key, terms) = (key.into(), &self.engine.settings().terms);
        let key = key.as_key();
        let began = self.engine.begin(key, fingerprint.into(), terms, true)?;
        Ok(Begin::new(&self.engine, key, terms, began))
    }

    /// Records in one write that the act was seen and done, with its result: for a consumer whose act *is* what it
    /// records. One sync, where a begin and a completion take two.
    ///
    /// # Errors
    ///
    /// As [`begin`](Store::begin), and [`Error::TooLarge`](crate::Error::TooLarge),
    /// [`Error::InProgress`](crate::Error::InProgress), [`Error::InDoubt`](crate::Error::InDoubt).
    pub fn record<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        fingerprint: Fingerprint,
        result: &[u8],
    ) -> Result<Recorded> {
        let terms = &self.engine.settings().terms;
        let key = key.into();
        let key = key.as_key();
        Ok(Recorded::new(key, self.engine.record(key, fingerprint.into(), Value::bytes(result), terms)?))
    }

    /// Where `key` stands. The answer is as durable as a record of this store: under
    /// [`Durability::Sync`](crate::Durability) no crash takes it back.
    ///
    /// It waits for no change that another thread is making: until that is as durable as was asked for, the key stands where
    /// it stood. What was written without a sync, by an operation of another durability, is synced first.
    /// [`get_timeout`](Store::get_timeout) limits the wait for that.
    ///
    /// # Errors
    ///
    /// [`Error::Key`](crate::Error::Key), [`Error::Corrupt`](crate::Error::Corrupt),
    /// [`Error::Io`](crate::Error::Io); [`Error::Poisoned`](crate::Error::Poisoned) if the answer would have to be
    /// made durable first.
    pub fn get<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<KeyState> {
        KeyState::look(&self.engine, key.into().as_key(), Patience::Endless)
    }

    /// As [`get`](Store::get), but where that waits for a sync of another thread, no longer than `timeout`. A sync that no
    /// thread is at is done by this call, however long it takes, unless `timeout` is zero.
    ///
    /// ```
    /// use oncekey::{Durability, Error, Store};
    /// use std::time::Duration;
    ///
    /// let store = Store::in_memory()?;
    /// store.operation("hook:1").durability(Durability::Buffered).record(b"seen")?;
    /// assert!(matches!(store.get_timeout("hook:1", Duration::ZERO), Err(Error::Busy { .. })), "not synced");
    /// assert!(store.get_timeout("hook:1", Duration::from_secs(1))?.is_completed());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Busy`](crate::Error::Busy): the time was not enough. The rest as [`get`](Store::get).
    pub fn get_timeout<'a>(&self, key: impl Into<AnyKey<'a>>, timeout: Duration) -> Result<KeyState> {
        let patience = if timeout.is_zero() { Patience::None } else { Patience::of(timeout) };
        KeyState::look(&self.engine, key.into().as_key(), patience)
    }

    /// Copies the recorded result of `key` into `buffer`, whose former content goes, and returns the version of the record;
    /// None, with an empty buffer, if the operation is not completed. Nothing is begun, and nothing is allocated once the
    /// buffer is large enough: for a program that answers retries far more often than it acts.
    ///
    /// The answer is as durable as a record of this store: under [`Durability::Sync`](crate::Durability) no crash takes it
    /// back.
    ///
    /// ```
    /// use oncekey::{Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let mut answer = Vec::with_capacity(256);
    /// assert_eq!(store.replay_into("hook:1", Fingerprint::NONE, &mut answer)?, None);
    /// store.record("hook:1", Fingerprint::NONE, b"seen")?;
    /// assert!(store.replay_into("hook:1", Fingerprint::NONE, &mut answer)?.is_some());
    /// assert_eq!(answer, b"seen");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Mismatch`](crate::Error::Mismatch): the key was used with another fingerprint.
    /// - [`Error::ResultExpired`](crate::Error::ResultExpired): done, and the result is no longer kept.
    /// - The rest as [`get`](Store::get). The buffer is empty then too.
    pub fn replay_into<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        fingerprint: Fingerprint,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Version>> {
        buffer.clear();
        self.engine
            .replay_into(key.into().as_key(), fingerprint.into(), buffer)
            .inspect_err(|_| buffer.clear())
    }

    /// Puts `next` in the place of `expected`, if the key still stands there: an operator's tool, for operations in
    /// doubt above all. Every other change is this one with its own expectations.
    ///
    /// A lease on the key is fenced by it, and whoever waits for the key looks again. A completed operation can be
    /// given up, but neither brought back into doubt nor given another result.
    ///
    /// Of a key whose record cannot be read, version and status are those that the footer of its segment says, and the
    /// only thing that can be put there is [`Next::Absent`](crate::Next::Absent); everything else is
    /// [`Error::Corrupt`](crate::Error::Corrupt). [`forget`](Store::forget) needs no version.
    ///
    /// ```
    /// use oncekey::{Expected, Fingerprint, Next, Store, CasOutcome};
    ///
    /// let store = Store::in_memory()?;
    /// drop(store.begin("charge:1", Fingerprint::NONE)?); // as a crash would
    /// let seen = store.get("charge:1")?;
    /// // The gateway's own records say that it was charged.
    /// let expected = Expected::Present { status: seen.status(), version: seen.version().expect("present") };
    /// let next = Next::Completed { fingerprint: seen.fingerprint(), result: b"receipt 17" };
    /// assert!(matches!(store.compare_and_set("charge:1", expected, next)?, CasOutcome::Done(_)));
    /// assert!(matches!(store.compare_and_set("charge:1", expected, next)?, CasOutcome::Differs(_)), "not twice");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`](crate::Error::Conflict): the key is completed as expected, and `next` is not absent.
    /// - [`Error::Mismatch`](crate::Error::Mismatch): the stored fingerprint is another.
    /// - [`Error::Full`](crate::Error::Full): no room. What is in progress or in doubt can be set to completed or absent
    ///   in room that is kept for ending it.
    /// - The rest as [`record`](Store::record).
    pub fn compare_and_set<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        expected: Expected,
        next: Next<'_>,
    ) -> Result<CasOutcome> {
        let key = key.into();
        let key = key.as_key();
        let swap = self.engine.compare_and_set(key, expected, next, None, &self.engine.settings().terms)?;
        CasOutcome::of(&self.engine, key, swap)
    }

    /// Gives up what is known of `key`, so that its act can be performed as if for the first time. True if there was
    /// anything. For operators; retention does this by itself.
    ///
    /// An intent's key is for ever: the outside world has seen its [token](crate::Key::token) and still knows it. A key that
    /// was forgotten may be used again for the same intended act, and for no other.
    ///
    /// A key in doubt can be forgotten, also while somebody looks into the doubt: whoever holds its
    /// [`Doubt`](crate::Doubt) is fenced.
    ///
    /// A key whose record cannot be read ([`Error::Corrupt`](crate::Error::Corrupt)) can be forgotten too: that takes only
    /// what the footer of its segment says. Find out first, from the outside world, what had become of it.
    ///
    /// # Errors
    ///
    /// [`Error::InProgress`](crate::Error::InProgress) while a lease on it is alive;
    /// [`Error::Corrupt`](crate::Error::Corrupt) if the footer is damaged as well;
    /// [`Error::Key`](crate::Error::Key), [`Error::Poisoned`](crate::Error::Poisoned),
    /// [`Error::Replaced`](crate::Error::Replaced).
    pub fn forget<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<bool> {
        self.engine.forget(key.into().as_key(), &self.engine.settings().terms)
    }

    /// Makes everything that was written before this call survive power loss.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`](crate::Error::Poisoned). [`Error::Replaced`](crate::Error::Replaced): everything was made durable,
    /// in a file that the path does not lead to.
    pub fn sync(&self) -> Result<()> {
        self.engine.sync()
    }

    /// Gives all space back at once: moves what is alive together and cuts off the rest of the file, down to
    /// [`Options::min_size`](crate::Options::min_size). Reclaiming does this by itself, bit by bit, only without shortening
    /// the file. Readers and writers go on meanwhile. Keys whose retention has passed leave the index too, which gives
    /// their memory back ([`Stats::index_bytes`](crate::Stats::index_bytes)). Returns what was done.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`](crate::Error::Poisoned), [`Error::Corrupt`](crate::Error::Corrupt),
    /// [`Error::Io`](crate::Error::Io); [`Error::Full`](crate::Error::Full) if there is no room to begin with it;
    /// [`Error::Replaced`](crate::Error::Replaced); [`Error::Closed`](crate::Error::Closed) also if the store is closed
    /// meanwhile.
    pub fn compact(&self) -> Result<Compaction> {
        self.engine.compact()
    }

    /// Figures about the store.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.engine)
    }

    /// Where the store is; `:memory:` if it is nowhere.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.engine.path()
    }

    /// Closes the store for all its handles: everything is made durable, the file is marked as whole, and its lock is
    /// given up, whatever clones and leases still live. Each of them then gets [`Error::Closed`](crate::Error::Closed), on this
    /// handle and on every clone. A [`Lease`](crate::Lease) keeps a store open only while its
    /// operation is in progress.
    ///
    /// Calls under way are waited for, and calls that come meanwhile wait; they fail once the store is closed. A call
    /// from the closure of an operation is `LeasesAlive`, and does not wait for itself.
    ///
    /// ```
    /// use oncekey::{Error, Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lease = store.begin("ship:7", Fingerprint::NONE)?;
    /// assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
    /// drop(lease);
    /// store.close()?;
    /// assert!(matches!(store.get("ship:7"), Err(Error::Closed)));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::LeasesAlive`](crate::Error::LeasesAlive): there are leases or doubts. Nothing has changed.
    /// - [`Error::Poisoned`](crate::Error::Poisoned): the disk failed, now or before. The store is closed and the file
    ///   is unlocked; opening it again finds out what is on disk.
    /// - [`Error::Replaced`](crate::Error::Replaced): the store is closed, and the path leads to another file.
    /// - [`Error::Closed`](crate::Error::Closed): it was closed before, and well; if not, the same error again.
    /// - [`Error::Forked`](crate::Error::Forked).
    pub fn close(&self) -> Result<()> {
        self.engine.close()
    }
}

// Here and not beside the other options, because an import that points back down would close a circle.
impl Options {
    /// Opens the store in the file at `path`.
    ///
    /// The file is locked, made durable as it is, and checked; only then is anything in it changed. A new one is
    /// readable and writable by its owner alone.
    ///
    /// # Errors
    ///
    /// - [`Error::Option`](crate::Error::Option): an option makes no sense, alone or with another.
    /// - [`Error::Locked`](crate::Error::Locked): open already, here or elsewhere.
    /// - [`Error::NotAStore`](crate::Error::NotAStore), [`Error::Unsupported`](crate::Error::Unsupported): something else, or of another format version.
    /// - [`Error::Corrupt`](crate::Error::Corrupt): what was on disk is not there any more. Nothing was changed.
    /// - [`Error::Clock`](crate::Error::Clock): the wall clock jumped. Nothing was expired.
    /// - [`Error::Full`](crate::Error::Full), [`Error::Io`](crate::Error::Io): the operating system refused.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Store> {
        self.open_file(path.as_ref()).map(Store::new)
    }

    /// Opens a store that lives in memory and ends with its last handle: for a program's own tests. It behaves as one
    /// in a file does.
    ///
    /// # Errors
    ///
    /// [`Error::Option`](crate::Error::Option).
    pub fn open_in_memory(&self) -> Result<Store> {
        self.open_nowhere().map(Store::new)
    }

    /// Opens a store on a disk that fails, for this crate's own tests.
    #[cfg(any(feature = "__simulation", all(test, oncekey_shuttle)))]
    #[doc(hidden)]
    pub fn open_simulated(&self, disk: &crate::storage::simulated::SimulatedDisk) -> Result<Store> {
        self.open_simulation(disk).map(Store::new)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Store").field("path", &self.path()).finish_non_exhaustive()
    }
}
