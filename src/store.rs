//! The public handle of a store, with the calls on bytes. [`Operation`] is the typed interface.

mod backup;
mod care;
mod emit;
mod jobs;
mod many;

pub use backup::Backup;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::Attempt;
use crate::batch::{Answers, Batch};
use crate::begin::Begin;
use crate::codec::DefaultCodec;
use crate::completion::Recorded;
use crate::doubt::Doubt;
use crate::engine::{Engine, Expected, Handle, Next};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::key::{AnyKey, Fingerprint};
use crate::lease::Lease;
use crate::messages::Messages;
use crate::operation::Operation;
use crate::options::Options;
use crate::outbox::{Deliveries, Outbox};
use crate::stats::{CasOutcome, KeyState, Stats};
use crate::status::Version;
use crate::sync::Patience;

/// An idempotency store, in a file or in memory. It remembers which side effects have happened, with their results.
///
/// [`operation`](Store::operation) is the typed interface, for most programs. The other calls do the same on bytes.
///
/// A `Store` is a handle: clones are cheap, share everything, and can be used from any thread. The file is locked until
/// [`close`](Store::close), or until the last handle and the last [`Lease`](crate::Lease) are dropped: opening it a second
/// time, in this process or another one, is [`Error::Locked`]. The last drop also closes the file cleanly if it can. It
/// cannot report errors, so call [`close`](Store::close) to get them.
///
/// Calls block the thread: on the disk, and where documented on other threads. From async code, call the store in a blocking
/// task.
///
/// A store belongs to the process that opened it. In a forked child, every call that returns a `Result` is
/// [`Error::Forked`](crate::Error::Forked) and does nothing, and drops do nothing.
///
/// A program may use a store after it has caught a panic of its own closure: the operation is in doubt, and nothing else has
/// changed.
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

// Why a store can be used after a panic was caught:
//
// - No code of the caller (a closure, a codec, a `Serialize`, an event subscriber) runs while the store's data is being changed
//   or one of its locks is held. A panic there drops the lease, which puts the operation in doubt; it leaves nothing half done.
// - A panic within the store itself is a bug. If it unwinds out of a write or a sync, the commit queue is poisoned, so
//   that no later change is acknowledged. Elsewhere, guards release what the thread held: the flight of its key (the
//   per-key lock), its claim, and its place among the calls that a close waits for.
//
// The compiler cannot infer this, because of the cells inside the locks. The same applies to the other types that refer
// to an engine: leases, doubts and attempts.
impl UnwindSafe for Store {}
impl RefUnwindSafe for Store {}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    const fn is_send<T: Send + 'static>() {}
    const fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
    is_send_and_sync::<Store>();
    is_send::<Lease>();
    is_send::<Doubt>();
    is_send_and_sync::<Attempt>();
    is_send_and_sync::<Error>();
    is_unwind_safe::<Store>();
    is_unwind_safe::<Lease>();
    is_unwind_safe::<Doubt>();
    is_unwind_safe::<Begin>();
    is_unwind_safe::<Attempt>();
    is_send::<Answers>();
    is_send::<Batch<'static>>();
    is_send_and_sync::<Outbox>();
    is_send_and_sync::<Deliveries>();
    is_unwind_safe::<Deliveries>();
};

impl Store {
    pub(crate) fn engine(&self) -> &Handle {
        &self.engine
    }

    pub(crate) fn new(engine: Engine) -> Store {
        Store { engine: Handle::new(Arc::new(engine)) }
    }

    /// Opens the store in the file at `path` with the default [`Options`]. Creates the file if it does not exist.
    ///
    /// # Errors
    ///
    /// Those of [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        Options::new().open(path)
    }

    /// Opens a store in memory, for a program's own tests. It behaves like one in a file and is lost when its last handle
    /// is dropped.
    ///
    /// # Errors
    ///
    /// None with the default options.
    pub fn in_memory() -> Result<Store> {
        Options::new().open_in_memory()
    }

    /// Returns a builder for the operation under `key`. This is the typed interface: see [`Operation`].
    ///
    /// ```
    /// use oncekey::{Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let charge = || store.operation("charge:1").request(&("EUR", 1_000)).run(|_| Ok::<u64, String>(17));
    /// assert_eq!(charge().expect("the charge succeeds"), Outcome::Done(17));
    /// assert_eq!(charge().expect("a retry succeeds"), Outcome::AlreadyDone(17));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use = "an operation does nothing until it is run"]
    pub fn operation<'a>(&'a self, key: impl Into<AnyKey<'a>>) -> Operation<'a, DefaultCodec> {
        Operation::new(&self.engine, key.into())
    }

    /// Returns the fingerprint of a request: a keyed hash of its bytes, with the secret key of this store's file. The
    /// same bytes have a different fingerprint in a different file.
    #[must_use]
    pub fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        self.engine.fingerprint(request)
    }

    /// Begins an attempt at the operation of `key`, or returns why no attempt can begin: see [`Begin`].
    ///
    /// When this returns, the begin record is as durable as [`Options::durability`] requires. Pass the same fingerprint
    /// in every call for the key: that of the request ([`fingerprint`](Store::fingerprint)), or [`Fingerprint::NONE`].
    ///
    /// If another thread is running the operation or writing its record, this returns [`Begin::InProgress`] without
    /// waiting. [`Operation::begin`] can wait, and can set a deadline or a retention.
    ///
    /// # Errors
    ///
    /// - [`Error::Key`]: the key or scope is empty or too long.
    /// - [`Error::Mismatch`]: the key was used before with a different fingerprint.
    /// - [`Error::ResultExpired`], [`Error::ResultNotKept`]: the operation is done, but its result has expired or was
    ///   never recorded.
    /// - [`Error::Full`]: there is no space for another attempt. The call still succeeds for a key that is in progress,
    ///   in doubt or completed.
    /// - [`Error::Replaced`]: the path no longer leads to the open file.
    /// - [`Error::Closed`], [`Error::Forked`]: the store is closed, or belongs to the parent process. Every other call that
    ///   returns a `Result` can return these as well.
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk failed.
    /// - [`Error::VersionsExhausted`]: the store has used up its version numbers.
    pub fn begin<'a>(&self, key: impl Into<AnyKey<'a>>, fingerprint: Fingerprint) -> Result<Begin> {
        let (key, terms) = (key.into(), &self.engine.settings().terms);
        let key = key.as_key();
        let began = self.engine.begin(key, fingerprint.into(), terms, true)?;
        Ok(Begin::new(&self.engine, key, terms, began))
    }

    /// Records the begin and the completion of an operation in one write, with its result. For a consumer whose side
    /// effect *is* this record, such as "message 17 was seen". This takes one sync; a begin and a completion take two.
    ///
    /// If the operation is already completed, this returns what is recorded: [`Recorded::AlreadyDone`].
    ///
    /// ```
    /// use oncekey::{Fingerprint, Recorded, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let first = store.record("message:17", Fingerprint::NONE, b"")?;
    /// assert!(matches!(first, Recorded::Done(_)));
    /// let redelivered = store.record("message:17", Fingerprint::NONE, b"")?;
    /// assert!(matches!(redelivered, Recorded::AlreadyDone(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Store::begin). In addition:
    ///
    /// - [`Error::TooLarge`]: the result is larger than [`Options::max_result`].
    /// - [`Error::InProgress`], [`Error::InDoubt`]: the operation was begun with [`begin`](Store::begin) and has not ended.
    pub fn record<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        fingerprint: Fingerprint,
        result: &[u8],
    ) -> Result<Recorded> {
        let terms = &self.engine.settings().terms;
        let key = key.into();
        let key = key.as_key();
        Ok(Recorded::new(key, self.engine.record(key, fingerprint.into(), Value::bytes(result), &[], terms)?))
    }

    /// Returns the state of `key`: its status and what is recorded. Does not begin an attempt.
    ///
    /// The answer is as durable as the records of this store: under [`Durability::Sync`](crate::Durability::Sync) no
    /// crash can revert it. This does not wait for a change that another thread is making: until that change is as
    /// durable as was asked for, the answer is the state before the change. If the record was written without a sync,
    /// by an operation with a different durability, this call syncs it first. [`get_timeout`](Store::get_timeout)
    /// limits that wait.
    ///
    /// There is one exception: after the [`Answers`](crate::Answers) of a batch were dropped, a key whose lease was not taken
    /// is absent. Until the next frame or [`sync`](Store::sync), a crash leaves it in doubt.
    ///
    /// # Errors
    ///
    /// [`Error::Key`], [`Error::Corrupt`], [`Error::Io`]. [`Error::Poisoned`]: the answer is not durable yet, and can no longer
    /// be made so. [`Error::Closed`], [`Error::Forked`].
    pub fn get<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<KeyState> {
        KeyState::read(&self.engine, key.into().as_key(), Patience::Endless)
    }

    /// Returns the state of `key` as [`get`](Store::get) does, but waits at most `timeout` for a sync by another thread.
    ///
    /// If a sync is needed and no other thread is syncing, this call syncs, however long that takes, unless `timeout` is zero.
    ///
    /// ```
    /// use oncekey::{Durability, Error, Store};
    /// use std::time::Duration;
    ///
    /// let store = Store::in_memory()?;
    /// store.operation("hook:1").durability(Durability::Buffered).record(b"seen")?;
    /// assert!(matches!(store.get_timeout("hook:1", Duration::ZERO), Err(Error::Busy { .. })), "a sync is needed");
    /// assert!(store.get_timeout("hook:1", Duration::from_secs(1))?.is_completed());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](Store::get), and [`Error::Busy`]: the timeout has passed, or is zero and a sync is needed.
    pub fn get_timeout<'a>(&self, key: impl Into<AnyKey<'a>>, timeout: Duration) -> Result<KeyState> {
        let patience = if timeout.is_zero() { Patience::None } else { Patience::of(timeout) };
        KeyState::read(&self.engine, key.into().as_key(), patience)
    }

    /// Copies the recorded result of `key` into `buffer`, replacing its content, and returns the version of the record.
    /// Returns `None` and an empty buffer if the operation is not completed.
    ///
    /// For a program that answers retries far more often than it runs side effects. This does not begin an attempt, and
    /// does not allocate if the buffer is large enough. The answer is as durable as that of [`get`](Store::get).
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
    /// Those of [`get`](Store::get), and those listed here. After any error the buffer is empty.
    ///
    /// - [`Error::Mismatch`]: the key was used before with a different fingerprint.
    /// - [`Error::ResultExpired`], [`Error::ResultNotKept`]: the operation is done, but its result has expired or was
    ///   never recorded.
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

    /// Atomically sets the state of `key` to `next` if it still matches `expected`. For operators and their tools, mostly to
    /// resolve doubts.
    ///
    /// Returns [`CasOutcome::Done`] with the new version. If the key does not match `expected`, returns
    /// [`CasOutcome::Differs`] with the key's actual state, and changes nothing. After a change, a lease or doubt on the key
    /// is fenced, and callers that wait for the key continue with its new state. A completed operation can be set to
    /// [`Next::Absent`], but not back to in doubt, and not to a different result.
    ///
    /// If the key's record cannot be read ([`Error::Corrupt`]), the footer of its segment still has its version and status.
    /// Such a key can be set to [`Next::Absent`] only; [`forget`](Store::forget) does that without a version.
    ///
    /// ```
    /// use oncekey::{Expected, Fingerprint, Next, Store, CasOutcome};
    ///
    /// let store = Store::in_memory()?;
    /// drop(store.begin("charge:1", Fingerprint::NONE)?); // as a crash would
    /// let seen = store.get("charge:1")?;
    /// // The gateway's own records show that it was charged.
    /// let expected = Expected::Present { status: seen.status(), version: seen.version().expect("the key is present") };
    /// let next = Next::Completed { fingerprint: seen.fingerprint(), result: b"receipt 17" };
    /// assert!(matches!(store.compare_and_set("charge:1", expected, next)?, CasOutcome::Done(_)));
    /// assert!(matches!(store.compare_and_set("charge:1", expected, next)?, CasOutcome::Differs(_)), "not twice");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`]: the key matches `expected` and is completed, and `next` is not absent.
    /// - [`Error::HasSteps`]: `next` is absent and a step of the operation has happened or may have happened, or `next` is
    ///   completed and a step is in progress or in doubt.
    /// - [`Error::Mismatch`]: the key is in progress or in doubt with a different fingerprint from that of `next`.
    /// - [`Error::Full`]: there is no space for the record. Setting a key that is in progress or in doubt to completed
    ///   or absent can use the space that is reserved for ending operations.
    /// - [`Error::Key`], [`Error::TooLarge`], [`Error::Replaced`], [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`],
    ///   [`Error::VersionsExhausted`], [`Error::Closed`], [`Error::Forked`]: as for [`record`](Store::record).
    pub fn compare_and_set<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        expected: Expected,
        next: Next<'_>,
    ) -> Result<CasOutcome> {
        self.compare_and_set_with(key, expected, next, &Messages::new())
    }

    /// Makes `key` absent, so that its side effect can run as if for the first time. Returns false if the key was
    /// already absent. For operators: a key becomes absent by itself when its retention ends.
    ///
    /// A key belongs to one intent for ever, because the outside world has seen its [token](crate::Key::token) and
    /// still remembers it. A forgotten key may be reused for the same intent, and for no other.
    /// [`forget_with_steps`](Store::forget_with_steps) also lists the [steps](Attempt::step) that this gives up.
    ///
    /// A key in doubt can be forgotten even while another caller is resolving the doubt: that caller's
    /// [`Doubt`](crate::Doubt) is fenced.
    ///
    /// The steps of an operation are forgotten with it, whatever their state.
    ///
    /// A key whose record cannot be read ([`Error::Corrupt`]) can be forgotten too, as long as the footer of its segment can be
    /// read. Find out first, from the outside world, whether its side effect happened.
    ///
    /// # Errors
    ///
    /// - [`Error::InProgress`]: a lease on the key is alive.
    /// - [`Error::Corrupt`]: the record cannot be read, and neither can the footer.
    /// - [`Error::Full`]: there is no space for the record that makes the key absent.
    /// - [`Error::Key`], [`Error::Poisoned`], [`Error::Replaced`], [`Error::Io`], [`Error::VersionsExhausted`],
    ///   [`Error::Closed`], [`Error::Forked`].
    pub fn forget<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<bool> {
        self.engine.forget(key.into().as_key(), &self.engine.settings().terms)
    }

    /// Makes every change that returned before this call durable: it survives power loss.
    ///
    /// Needed only under [`Durability::Buffered`](crate::Durability::Buffered), for instance once after a batch.
    ///
    /// ```
    /// use oncekey::{Durability, Options};
    ///
    /// let store = Options::new().durability(Durability::Buffered).open_in_memory()?;
    /// for message in ["1", "2", "3"] {
    ///     store.operation(message).scope("queue").record(b"")?;
    /// }
    /// store.sync()?; // acknowledge the three messages after this
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Poisoned`]: the disk failed, now or before. What was not durable before may be lost.
    /// - [`Error::Replaced`]: everything is durable, in the open file, to which the path no longer leads.
    /// - [`Error::Closed`], [`Error::Forked`].
    pub fn sync(&self) -> Result<()> {
        self.engine.sync()
    }

    /// Returns figures about the store, for metrics. Does no I/O, but can wait for a write by another thread.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.engine)
    }

    /// Returns the path by which the store was opened; `:memory:` for a store in memory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.engine.path()
    }

    /// Closes the store for all its handles: makes everything durable, marks the file as cleanly closed, and unlocks it.
    ///
    /// Afterwards every call on this handle and its clones is [`Error::Closed`]. While a [`Lease`] or [`Doubt`] of an
    /// operation that has not ended is alive, the store is not closed. A lease or doubt of an operation that has ended
    /// does not prevent the close.
    ///
    /// This waits for calls that are running in other threads. Calls that start meanwhile wait for the close, and fail
    /// if it succeeds. In the closure of an operation, this returns `LeasesAlive` and does not wait for that
    /// operation's own call.
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
    /// - [`Error::LeasesAlive`]: leases or doubts are alive. The store is still open, and nothing has changed.
    /// - [`Error::Poisoned`]: the disk failed, now or before. The store is closed and the file unlocked; opening the
    ///   store again finds out what is on disk.
    /// - [`Error::InCallback`]: this is a [progress](crate::Progress) callback of a call on the same store. The store is still open.
    /// - [`Error::Replaced`]: the store is closed, and its path no longer leads to the file that was open.
    /// - [`Error::Closed`]: the store was closed before, without an error. If that close failed, its error is returned
    ///   again.
    /// - [`Error::Forked`].
    pub fn close(&self) -> Result<()> {
        self.engine.close()
    }
}

// These methods are not in `options`, because a module uses only those declared before it.
impl Options {
    /// Opens the store in the file at `path`.
    ///
    /// Locks the file, syncs it as it is, and checks headers, footers and the last segment. Only then does it change
    /// anything in the file. After a crash it also repairs the end of the log, and operations that were in progress are
    /// then in doubt. A new file is readable and writable by its owner only.
    ///
    /// Opening a store reads the footer of every segment, so it takes longer the more the store remembers.
    ///
    /// # Errors
    ///
    /// - [`Error::Option`]: an option has an invalid value, alone or in combination with another option.
    /// - [`Error::Locked`]: the file is open already, in this process or another one.
    /// - [`Error::NotAStore`], [`Error::Unsupported`]: the file is not a store, or has a different format version.
    /// - [`Error::Corrupt`]: bytes that were on disk are damaged. The file was not changed.
    /// - [`Error::Clock`]: the wall clock jumped across a reboot. Nothing expired, and the file was not changed.
    /// - [`Error::Full`]: the file cannot be made as long as [`Options::min_size`], or the process may not write files of its
    ///   length.
    /// - [`Error::VersionsExhausted`]: the file was opened too often without a clean close.
    /// - [`Error::Io`]: the operating system returned an error, for instance because the file does not exist and
    ///   [`Options::create`] is off.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Store> {
        self.open_file(path.as_ref()).map(Store::new)
    }

    /// Opens a store in memory, for a program's own tests. It behaves like one in a file and is lost when its last handle
    /// is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Option`]: an option has an invalid value, alone or in combination with another option.
    pub fn open_in_memory(&self) -> Result<Store> {
        self.open_nowhere().map(Store::new)
    }

    /// Opens a store on a simulated disk that can fail, for this crate's own tests.
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
