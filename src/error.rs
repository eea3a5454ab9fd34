//! The error type of the store: what failed, where, and what to do next.
//!
//! This module owns [`Error`], its classification ([`ErrorKind`], [`Error::is_retryable`]) and its constructors for the
//! other modules. `text` has the messages. `error/tests.rs` checks that both cover every variant.

mod text;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::key::{Key, KeyProblem, OwnedKey};
use crate::status::Version;

#[cfg(feature = "tracing")]
pub(crate) use text::Shown;

/// The result of a call to the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a call to the store: what failed, where, and what to do next.
///
/// An error that concerns a key carries the key. An error that concerns the file carries its path and, where there is one,
/// the offset. [`kind`](Error::kind) distinguishes an answer about the key, a mistake of the caller and a failure of the
/// environment. [`is_retryable`](Error::is_retryable) returns whether the same call can succeed later.
///
/// The text is one line and includes the cause. [`source`](std::error::Error::source) returns the cause of that cause, so a
/// program that prints the whole chain prints nothing twice. Requests and results never appear in the text, unless the
/// program's own codec or `Serialize` puts them into the text of its error.
///
/// ```
/// use oncekey::{Error, Store};
///
/// let store = Store::in_memory()?;
/// let too_long = "k".repeat(2_000);
/// match store.get(&too_long) {
///     Err(Error::Key { problem, .. }) => assert!(problem.to_string().contains("1,024")),
///     other => panic!("a key of 2,000 bytes is refused, not {other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The key or its scope is empty or too long. The call did nothing.
    #[non_exhaustive]
    Key {
        /// Which limit the key breaks.
        problem: KeyProblem,
    },
    /// Another entry of the same atomic batch was refused, so nothing of the [`Batch`](crate::Batch) was written. The
    /// answer of that entry says why.
    #[non_exhaustive]
    BatchRefused {
        /// The number of the first entry that was refused, counted from 0.
        entry: usize,
    },
    /// The key was used before with a different request. The stored operation is unchanged, and its result is not returned.
    /// Find out why two different requests have the same key.
    #[non_exhaustive]
    Mismatch {
        /// The key of the call.
        key: OwnedKey,
    },
    /// Another thread of this process is running the operation or resolving a doubt about it, or it is writing the key's
    /// record. Try again later, or wait with [`Operation::wait`](crate::Operation::wait).
    #[non_exhaustive]
    InProgress {
        /// The key of the call.
        key: OwnedKey,
        /// The number of the attempt that is running, counted from 1.
        attempt: u32,
    },
    /// Another thread or process is at work, and the call has not waited for it. Try again.
    ///
    /// From [`Store::get_timeout`](crate::Store::get_timeout): the key's latest record is not durable yet, and the sync by
    /// another thread took longer than the timeout. [`Store::get`](crate::Store::get) waits as long as the sync takes. From a
    /// [`Reader`](crate::Reader): another process changed the file again and again while this one read it.
    #[non_exhaustive]
    Busy {
        /// The file of the store.
        path: PathBuf,
        /// The key of the call. `None` if a reader was reading the whole file.
        key: Option<OwnedKey>,
    },
    /// The call would wait for an attempt that its own thread is running or reconciling, so the wait would never end. The
    /// call was made from the closure of [`Operation::run`](crate::Operation::run) or
    /// [`Operation::reconcile`](crate::Operation::reconcile) for the same key. The call did nothing. Use the closure's own
    /// result or a different key, or leave out [`wait`](crate::Operation::wait) to get [`Error::InProgress`] instead.
    #[non_exhaustive]
    WouldWaitForItself {
        /// The key of the call.
        key: OwnedKey,
    },
    /// An earlier attempt began, and it is unknown whether its side effect happened. Find out with
    /// [`Operation::reconcile`](crate::Operation::reconcile). If the side effect is itself idempotent, run it again with
    /// [`Operation::rerun`](crate::Operation::rerun).
    #[non_exhaustive]
    InDoubt {
        /// The key of the call.
        key: OwnedKey,
        /// The number of the attempt that is in doubt, counted from 1. 0 if no attempt is known, and the store [may have
        /// forgotten](crate::Options::may_have_forgotten) one.
        attempt: u32,
        /// The version of that attempt, for [`Store::compare_and_set`](crate::Store::compare_and_set). 0 from a call that does not
        /// begin the operation, if no attempt is known: begin it to get one.
        version: Version,
        /// Why [`reconcile`](crate::Operation::reconcile) could not find out; `None` if the operation has no `reconcile`, or
        /// this call did not run it.
        reason: Option<String>,
    },
    /// The operation is done, but its result has expired: the retention of the result has passed, and that of the key has
    /// not. The side effect does not run again.
    #[non_exhaustive]
    ResultExpired {
        /// The key of the call.
        key: OwnedKey,
    },
    /// The operation is done, but its result was never recorded: it could not be encoded, did not decode to the same value,
    /// or was too large. Only the call that ran the side effect got the result. The side effect does not run again.
    #[non_exhaustive]
    ResultNotKept {
        /// The key of the call.
        key: OwnedKey,
    },
    /// The operation is already completed, and the call would change that: by completing the same [`Lease`](crate::Lease) or
    /// [`Doubt`](crate::Doubt) with a different result, by releasing either, or by a compare-and-set to anything but absent.
    /// The first recorded outcome stands.
    #[non_exhaustive]
    Conflict {
        /// The key of the call.
        key: OwnedKey,
    },
    /// The lease or doubt no longer owns the operation: another attempt began, the operation ended, or a compare-and-set or
    /// `forget` changed it. Compare what this attempt did with what the store has recorded now.
    #[non_exhaustive]
    Fenced {
        /// The key of the call.
        key: OwnedKey,
        /// The version of the attempt that was fenced.
        version: Version,
    },
    /// Steps of the operation stand in the way of the call, which changed nothing. An operation cannot be released while one
    /// of its steps is done or in doubt, because its side effects have happened or may have. It cannot be completed while a
    /// step is in progress or in doubt, unless that step was given up.
    ///
    /// Begin the operation again, so that its next attempt finishes the steps. [`Store::forget`](crate::Store::forget) gives
    /// the operation up together with all its steps.
    #[non_exhaustive]
    HasSteps {
        /// The key of the call.
        key: OwnedKey,
        /// The number of steps that are done.
        finished: usize,
        /// The number of steps that are in progress or in doubt.
        in_doubt: usize,
    },
    /// The same attempt has asked for this step before. Two steps of an operation need two names, even if they do the same:
    /// name a step by the item that it is about.
    #[non_exhaustive]
    StepReused {
        /// The key of the step.
        key: OwnedKey,
    },
    /// The operation was begun without an [input](crate::Operation::input), so no caller but its own can go on with it.
    #[non_exhaustive]
    NoInput {
        /// The key of the operation.
        key: OwnedKey,
    },
    /// The operation has as many steps as an operation can have. The step did not begin.
    #[non_exhaustive]
    TooManySteps {
        /// The key of the step.
        key: OwnedKey,
        /// The maximum number of steps.
        limit: usize,
    },
    /// The result is larger than [`Options::max_result`](crate::Options::max_result) or
    /// [`Operation::max_result`](crate::Operation::max_result) allows, and was not recorded. Record something smaller, for instance a reference to where the result is kept. A [`Lease`](crate::Lease) or [`Doubt`](crate::Doubt)
    /// is still usable for that. After [`Operation::run`](crate::Operation::run) the operation is completed without its result,
    /// and [`RunError::Unrecorded`](crate::RunError::Unrecorded) returns the result.
    #[non_exhaustive]
    TooLarge {
        /// The key of the call.
        key: OwnedKey,
        /// The size of the result, in bytes.
        length_bytes: usize,
        /// The largest size allowed, in bytes.
        limit_bytes: usize,
    },
    /// The file has no space left and cannot grow, because of the disk, a quota,
    /// [`Options::max_size`](crate::Options::max_size) or the process's limit on file sizes. Reclaiming found nothing to
    /// free. Nothing was changed, and the store continues to work once there is space.
    ///
    /// Mostly, calls that begin something new return this. Space is reserved for the end of every lease. No space is reserved
    /// for a single doubt, but a part of the file is reserved for ending doubts. Only when that is used up too, ending a
    /// doubt is `Full`; the operation is then in doubt as before. Opening a store is `Full` if the file cannot be made as
    /// long as [`Options::min_size`](crate::Options::min_size); the file keeps its length and can be opened with a smaller
    /// `min_size`.
    #[non_exhaustive]
    Full {
        /// The file of the store.
        path: PathBuf,
        /// Why the file cannot grow, and what to do.
        reason: String,
    },
    /// An earlier write or sync failed, so it is unknown which changes since then have reached the disk. Nothing can be
    /// written until the store is opened again. Durable records can still be read.
    #[non_exhaustive]
    Poisoned {
        /// The file of the store.
        path: PathBuf,
        /// The first failure.
        source: Arc<io::Error>,
    },
    /// The file is open already, in this process or another one. The lock lasts until the other store is closed, or until the
    /// last handle and the last lease of that store are dropped. If a process with forked children was killed, the children
    /// keep the lock until they end or execute another program.
    #[non_exhaustive]
    Locked {
        /// The file of the store.
        path: PathBuf,
    },
    /// The path leads to something that is not a oncekey store. The file was not changed.
    #[non_exhaustive]
    NotAStore {
        /// The path that was to be opened.
        path: PathBuf,
        /// What the path leads to, as far as that is known.
        reason: String,
    },
    /// The file has a format version or uses a feature that this version of oncekey does not support. The file was not
    /// changed.
    #[non_exhaustive]
    Unsupported {
        /// The file of the store.
        path: PathBuf,
        /// Which version or feature, and what is supported.
        reason: String,
    },
    /// The file is damaged: bytes on disk are not what the store wrote. Keep a copy of the file before you try anything.
    ///
    /// Opening a store checks headers, footers and the last segment. If that returns this error, the file was not changed.
    ///
    /// An open store checks each record that it reads. The error then concerns one key, which can be neither read nor
    /// changed; other keys can. The store has lost the record of that key. Find out from the outside world whether the side
    /// effect happened, then remove the key with [`Store::forget`](crate::Store::forget).
    #[non_exhaustive]
    Corrupt {
        /// The file of the store.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// Which check failed.
        reason: String,
    },
    /// The file is a copy that was made by [`Store::backup`](crate::Store::backup), or by [`repair`](crate::repair()) of a
    /// damaged file, and no program has opened it yet. It does not know what happened after it was made. Open it once with
    /// [`Options::may_have_forgotten`](crate::Options::may_have_forgotten), or with
    /// [`Options::nothing_was_lost`](crate::Options::nothing_was_lost) if nothing did. The file was not changed.
    #[non_exhaustive]
    Copy {
        /// The file of the store.
        path: PathBuf,
        /// When the copy was made, or for a repaired file when the damaged one was last written: by the wall clock, in ms
        /// since the Unix epoch.
        taken_at_ms: u64,
    },
    /// The caller's own progress function stopped the call. The documentation of the call describes what it has done by then.
    #[non_exhaustive]
    Stopped {
        /// The file of the store.
        path: PathBuf,
    },
    /// The wall clock jumped across a reboot of the machine, and it is unknown how much time passed: since the store was last
    /// written, the clock went back by more than a day, or forward by more than
    /// [`Options::max_downtime`](crate::Options::max_downtime). Correct the clock, or declare whether the time has passed
    /// with [`Options::accept_clock_jump`](crate::Options::accept_clock_jump). Nothing expired, and the file was not changed.
    #[non_exhaustive]
    Clock {
        /// The file of the store.
        path: PathBuf,
        /// The wall clock now, in ms since the Unix epoch.
        wall_ms: u64,
        /// The wall clock when the store was last written, in ms since the Unix epoch.
        last_wall_ms: u64,
        /// Store time at that moment, in ms since the Unix epoch.
        store_time_ms: u64,
    },
    /// The stored result does not decode as the type that the caller asked for. The operation is done, and the side effect does
    /// not run again. [`Store::get`](crate::Store::get) returns the bytes.
    #[non_exhaustive]
    Decode {
        /// The key of the call.
        key: OwnedKey,
        /// The error of the codec, or how the types differ.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The request or the result cannot be encoded, the encoded result would decode to a different value, or the codec is not
    /// the one with which the operation was begun. The value was not recorded. After
    /// [`Operation::run`](crate::Operation::run) the operation is completed without its result, as for [`Error::TooLarge`].
    #[non_exhaustive]
    Encode {
        /// The key of the call.
        key: OwnedKey,
        /// The error of the codec, or why the value cannot be recorded.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// An option has an invalid value, alone or in combination with another option. The call did nothing.
    #[non_exhaustive]
    Option {
        /// The name of the option.
        option: &'static str,
        /// What is wrong with its value, with the figures.
        reason: String,
    },
    /// [`Store::close`](crate::Store::close) was called while leases or doubts are alive. The store is still open. Complete,
    /// release or drop them first.
    #[non_exhaustive]
    LeasesAlive {
        /// How many leases and doubts are alive.
        count: usize,
    },
    /// The call was made from a [progress](crate::Progress) callback of the same store, and would close the store under the
    /// call that reports its progress. The store is still open. Stop that call from the callback, and close the store after it
    /// has returned.
    InCallback,
    /// The store is closed: [`Store::close`](crate::Store::close) was called on this handle or a clone of it.
    Closed,
    /// This process was forked from the one that opened the store, which still uses it. The call did nothing. In the child,
    /// open the store after the parent has closed it, or open a different store.
    Forked,
    /// The path no longer leads to the open file: the file was removed, renamed or replaced. Another process that opens the
    /// path gets a different file, so both could run the same side effect. Nothing new can be begun any more. Operations that
    /// began before can still be ended: the record is written durably to the open file, and the call that writes it returns
    /// this error. Reads still work.
    ///
    /// Close the store. Find out which of the two files is the right one, put it in place, and reconcile what happened under
    /// the other one.
    ///
    /// A process that changes its root directory must open its stores after the change, because earlier paths then lead
    /// nowhere.
    #[non_exhaustive]
    Replaced {
        /// The path by which the store was opened.
        path: PathBuf,
    },
    /// The store has used up its version numbers.
    ///
    /// Each time a store is opened, it can make at least 2^39 changes. After that, nothing can be written until the store is
    /// opened again. A file can be opened 2^24 times without a clean close before. After that, it cannot be opened any more,
    /// and its records cannot be moved to another file.
    #[non_exhaustive]
    VersionsExhausted {
        /// The file of the store.
        path: PathBuf,
        /// Which of the two limits was reached, and what to do.
        reason: String,
    },
    /// The operating system has no random bytes, so [`Key::mint`](crate::Key::mint) made no key. Try again.
    #[non_exhaustive]
    Random {
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The operating system returned an error. The documentation of the call describes what the call has done by then;
    /// nothing was acknowledged.
    #[non_exhaustive]
    Io {
        /// The file of the store.
        path: PathBuf,
        /// What the store was doing, as in "cannot (..)".
        operation: &'static str,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
}

/// What an [`Error`] is about, and therefore who must act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store works, and this is its answer about the key. The program handles it like any other outcome.
    Answer,
    /// The call cannot work as it was made. The program must change.
    Caller,
    /// A disk, a file, a clock or another process prevents the call. An operator must act.
    World,
    /// The side effect failed. Only [`RunError::kind`](crate::RunError::kind) returns this.
    Effect,
}

impl Error {
    /// Returns what the error is about, and therefore who must act on it.
    ///
    /// ```
    /// use oncekey::{ErrorKind, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let error = store.get("").expect_err("an empty key is refused");
    /// assert_eq!(error.kind(), ErrorKind::Caller);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BatchRefused { .. }
            | Error::Mismatch { .. }
            | Error::InProgress { .. }
            | Error::Busy { .. }
            | Error::InDoubt { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::HasSteps { .. }
            | Error::Fenced { .. } => ErrorKind::Answer,
            Error::Key { .. }
            | Error::NoInput { .. }
            | Error::StepReused { .. }
            | Error::TooManySteps { .. }
            | Error::TooLarge { .. }
            | Error::Decode { .. }
            | Error::Encode { .. }
            | Error::Option { .. }
            | Error::LeasesAlive { .. }
            | Error::WouldWaitForItself { .. }
            | Error::InCallback
            | Error::Stopped { .. }
            | Error::Closed
            | Error::Forked => ErrorKind::Caller,
            Error::Full { .. }
            | Error::Poisoned { .. }
            | Error::Locked { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Copy { .. }
            | Error::Clock { .. }
            | Error::Replaced { .. }
            | Error::VersionsExhausted { .. }
            | Error::Random { .. }
            | Error::Io { .. } => ErrorKind::World,
        }
    }

    /// Whether the same call can succeed later without a change to the program. A program that retries should wait longer
    /// before each retry.
    ///
    /// | error | retryable | because |
    /// |---|---|---|
    /// | `InProgress` | yes | the attempt ends |
    /// | `Busy` | yes | the sync ends, or the other process pauses |
    /// | `InDoubt` with a `reason` | yes | `reconcile` ran, and may find out the next time |
    /// | `InDoubt` without one | no | the operation does not resolve doubts: use [`reconcile`](crate::Operation::reconcile) or [`rerun`](crate::Operation::rerun) |
    /// | `LeasesAlive` | yes | leases end |
    /// | `Full` | yes | retention passes, and other programs free space |
    /// | `Locked` | yes | the other process closes the store or ends |
    /// | `Random`, `Io` | mostly | memory, file handles or a network disk come back; not if the path or a permission is wrong |
    /// | `BatchRefused` | no | another entry was refused: see its answer |
    /// | `Mismatch`, `ResultExpired`, `ResultNotKept`, `Conflict` | no | what is recorded does not change |
    /// | `HasSteps` | no | the steps stay until the operation is begun again, completed or forgotten |
    /// | `StepReused`, `TooManySteps` | no | the names of the steps stay as they are |
    /// | `NoInput` | no | only the first begin stores an input |
    /// | `Fenced` | no | the operation no longer belongs to this lease |
    /// | `Key`, `TooLarge`, `Encode`, `Option` | no | the arguments stay as they are |
    /// | `Decode` | no | the bytes and the type stay as they are |
    /// | `WouldWaitForItself`, `InCallback` | no | the same call from the same closure or callback would fail again |
    /// | `Closed`, `Forked`, `Poisoned`, `Replaced` | no | the store must be opened again, after someone has found out what happened |
    /// | `VersionsExhausted` | no | the store must be opened again, or a new file started |
    /// | `NotAStore`, `Unsupported`, `Corrupt` | no | the file stays as it is |
    /// | `Clock` | no | the clock must be corrected, or the jump accepted |
    /// | `Copy` | no | an operator must say what the copy may have forgotten |
    /// | `Stopped` | no | the program itself stopped the call |
    ///
    /// ```
    /// use oncekey::{Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lease = store.begin("ship:7", Fingerprint::NONE)?;
    /// assert!(store.record("ship:7", Fingerprint::NONE, b"").expect_err("in progress").is_retryable());
    /// assert!(!store.record("", Fingerprint::NONE, b"").expect_err("no key").is_retryable());
    /// # drop(lease);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::InProgress { .. }
            | Error::Busy { .. }
            | Error::LeasesAlive { .. }
            | Error::Full { .. }
            | Error::Locked { .. } => true,
            Error::InDoubt { reason, .. } => reason.is_some(),
            Error::Random { source } | Error::Io { source, .. } => is_transient(source.kind()),
            Error::Key { .. }
            | Error::BatchRefused { .. }
            | Error::Mismatch { .. }
            | Error::WouldWaitForItself { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::HasSteps { .. }
            | Error::StepReused { .. }
            | Error::NoInput { .. }
            | Error::TooManySteps { .. }
            | Error::Fenced { .. }
            | Error::TooLarge { .. }
            | Error::Poisoned { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Copy { .. }
            | Error::Stopped { .. }
            | Error::Clock { .. }
            | Error::Decode { .. }
            | Error::Encode { .. }
            | Error::Option { .. }
            | Error::InCallback
            | Error::Closed
            | Error::Forked
            | Error::Replaced { .. }
            | Error::VersionsExhausted { .. } => false,
        }
    }

    pub(crate) fn decode(key: Key<'_>, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Decode { key: key.to_owned(), source: Arc::from(source) }
    }

    pub(crate) fn encode(key: Key<'_>, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Encode { key: key.to_owned(), source: Arc::from(source) }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, operation: &'static str, source: io::Error) -> Error {
        Error::Io { path: path.into(), operation, source: Arc::new(source) }
    }

    pub(crate) fn random(source: io::Error) -> Error {
        Error::Random { source: Arc::new(source) }
    }

    /// Returns the error for a counter of changes (the lower bits of a version) that is used up. The counter can span several
    /// sessions, because opening a store after a clean close continues it. If more than half of it is used up by then,
    /// opening the store starts a new counter.
    pub(crate) fn changes_exhausted(path: impl Into<PathBuf>) -> Error {
        let reason =
            "the counter of changes has reached 2^40; open the store again, which starts a new one".into();
        Error::VersionsExhausted { path: path.into(), reason }
    }

    /// Returns the error for an open count (the upper bits of a version) that is used up.
    pub(crate) fn openings_exhausted(path: impl Into<PathBuf>) -> Error {
        let reason = "the file was opened 2^24 times without a clean close before, and cannot be opened any more; start a \
                      new file at another path, which has none of the records of this one"
            .into();
        Error::VersionsExhausted { path: path.into(), reason }
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: path.into(), offset, reason: reason.into() }
    }
}

/// Whether an error of the operating system can go away by itself. A shortage can; a wrong path or permission cannot. An
/// error that has no kind of its own (too many open files, a failing disk) counts as one that can.
fn is_transient(kind: io::ErrorKind) -> bool {
    !matches!(
        kind,
        io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::Unsupported
    )
}

impl From<KeyProblem> for Error {
    fn from(problem: KeyProblem) -> Error {
        Error::Key { problem }
    }
}
