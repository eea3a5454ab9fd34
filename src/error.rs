//! What can go wrong, where it went wrong, and what to do next.
//!
//! Every error of the store is one [`Error`]. Its variants fall into three families, and [`Error::kind`] tells them
//! apart: the *answer* is an error (a mismatch, an operation in doubt), the *caller* made one (a key too long, an
//! option that makes no sense), or the *world* failed (a disk, a file, a clock). What they say is in `text`.

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

/// What failed, where, and what to do about it.
///
/// Errors that concern a key carry it; errors that concern the file carry its path and, where there is one, the
/// offset in it. Payloads (requests, results) are never part of an error's text, unless a codec
/// of the program's own, or its `Serialize`, puts them into the text of its error.
///
/// The text says the cause too. [`source`](std::error::Error::source) is the cause of that cause, so that a program
/// that prints the whole chain prints nothing twice.
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
    /// The key or its scope is not usable. Nothing was looked at or changed.
    #[non_exhaustive]
    Key {
        /// Which rule it breaks.
        problem: KeyProblem,
    },
    /// The key was used before with another request. The stored operation is untouched and its result is not
    /// given out: find out why two different requests carry one key.
    #[non_exhaustive]
    Mismatch {
        /// The key in question.
        key: OwnedKey,
    },
    /// Another thread of this process is performing the operation right now, or writing down what is known of it. Try again
    /// later, or wait with [`Operation::wait`](crate::Operation::wait).
    #[non_exhaustive]
    InProgress {
        /// The key in question.
        key: OwnedKey,
        /// Which attempt is running.
        attempt: u32,
    },
    /// What is known of the key is not durable yet, and the sync of another thread took longer than
    /// [`Store::get_timeout`](crate::Store::get_timeout) was to wait. Nothing is wrong: ask again, or with
    /// [`Store::get`](crate::Store::get), which waits as long as it takes.
    #[non_exhaustive]
    Busy {
        /// The key in question.
        key: OwnedKey,
    },
    /// The call would wait for an attempt that this very thread performs or looks into: it was made from the closure of
    /// [`Operation::run`](crate::Operation::run) or [`Operation::reconcile`](crate::Operation::reconcile) for the same
    /// key. Nothing was done. Use the closure's own result, another key, or no
    /// [`wait`](crate::Operation::wait), which is [`Error::InProgress`].
    #[non_exhaustive]
    WouldWaitForItself {
        /// The key in question.
        key: OwnedKey,
    },
    /// An earlier attempt began and nobody knows whether its act happened. Find out and say so with
    /// [`Operation::reconcile`](crate::Operation::reconcile), or, if the act is itself idempotent, perform it
    /// again with [`Operation::rerun`](crate::Operation::rerun).
    #[non_exhaustive]
    InDoubt {
        /// The key in question.
        key: OwnedKey,
        /// The attempt whose outcome nobody knows.
        attempt: u32,
        /// The version of that attempt, for [`Store::compare_and_set`](crate::Store::compare_and_set).
        version: Version,
        /// What [`reconcile`](crate::Operation::reconcile) could not find out, and why, if it was asked.
        reason: Option<String>,
    },
    /// The operation is done, but its result was given up: the result retention passed and the key retention did
    /// not. It is not performed again.
    #[non_exhaustive]
    ResultExpired {
        /// The key in question.
        key: OwnedKey,
    },
    /// The operation is done, but its result was never recorded: it could not be encoded, did not come back from its own
    /// encoding as it was, or was too large. The call that performed it was given the result. It is not performed again.
    #[non_exhaustive]
    ResultNotKept {
        /// The key in question.
        key: OwnedKey,
    },
    /// The operation is completed already, and what was to happen to it now would change that: another result from the
    /// same [`Lease`](crate::Lease) or [`Doubt`](crate::Doubt), a release of either, or a compare-and-set to anything
    /// but absent. What was recorded first stands.
    #[non_exhaustive]
    Conflict {
        /// The key in question.
        key: OwnedKey,
    },
    /// The lease no longer owns the operation: another attempt, a compare-and-set or a `forget` came between. What
    /// this attempt did must be reconciled with what the store says now.
    #[non_exhaustive]
    Fenced {
        /// The key in question.
        key: OwnedKey,
        /// The version that the lease held.
        version: Version,
    },
    /// The result is larger than `Options::max_result`, and nothing was recorded. Record something smaller, for
    /// instance a reference to where the result is kept: a [`Lease`](crate::Lease) or [`Doubt`](crate::Doubt) that was
    /// to be completed is still usable for that. After [`Operation::run`](crate::Operation::run) there is none: the
    /// operation is completed without its result, and [`RunError::Unrecorded`](crate::RunError::Unrecorded) has it.
    #[non_exhaustive]
    TooLarge {
        /// The key in question.
        key: OwnedKey,
        /// The size of the result, in bytes.
        length_bytes: usize,
        /// The largest size allowed, in bytes.
        limit_bytes: usize,
    },
    /// There is no room: the disk, a quota, [`Options::max_size`](crate::Options::max_size) or the limit of the
    /// process on the size of its files lets the file grow no
    /// more, and reclaiming found nothing to free. Nothing was changed, and the store goes on when there is room again.
    ///
    /// Usually for another operation to begin. A lease has the room for its end; a doubt can be ended in room that is
    /// kept for that, and only when this is used up too is it `Full`, and stays. Or, at an opening, for
    /// [`Options::min_size`](crate::Options::min_size): the file is as long as it was, and can be opened with less.
    #[non_exhaustive]
    Full {
        /// The store's file.
        path: PathBuf,
        /// Why the file cannot grow.
        reason: String,
    },
    /// An earlier write or sync failed, so what reached the disk since is unknown. Nothing can be written until
    /// the store is opened again; durable records can still be read.
    #[non_exhaustive]
    Poisoned {
        /// The store's file.
        path: PathBuf,
        /// What failed first.
        source: Arc<io::Error>,
    },
    /// The file is open already, in this process or another. The lock lives until the other one is closed, or its last
    /// `Store` and its last lease are gone. If its process was killed and had forked, its children keep the lock until
    /// they end or run another program.
    #[non_exhaustive]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The path names something that is no oncekey store. It was left as it is.
    #[non_exhaustive]
    NotAStore {
        /// What was opened.
        path: PathBuf,
        /// What it is instead, as far as one can tell.
        reason: String,
    },
    /// The file was written in a format that this version of oncekey cannot read, or uses a feature that it does
    /// not know. It was left as it is.
    #[non_exhaustive]
    Unsupported {
        /// The store's file.
        path: PathBuf,
        /// Which version or feature, and what is supported.
        reason: String,
    },
    /// The file contradicts itself: bytes that were known to be on disk are not what they were. Keep a copy of the file
    /// before you try anything.
    ///
    /// From an opening: headers, footers and the last segment are checked then, and the file was left as it is. From a
    /// store that is open: a record is checked when it is read. The key that was asked for cannot be answered or
    /// changed, others can. What it said is lost to the store:
    /// find out from the outside world, and give the key up with [`Store::forget`](crate::Store::forget).
    #[non_exhaustive]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// Which check failed.
        reason: String,
    },
    /// Since the store was last written the machine was booted again, and the wall clock went back by more than a day, or
    /// forward by more than [`Options::max_downtime`](crate::Options::max_downtime): nothing says how much time passed.
    /// Correct the clock, or say what is true with
    /// [`Options::accept_clock_jump`](crate::Options::accept_clock_jump). Nothing was expired, and the file was left as it
    /// is.
    #[non_exhaustive]
    Clock {
        /// The store's file.
        path: PathBuf,
        /// What the wall clock says, in ms since the Unix epoch.
        wall_ms: u64,
        /// What the wall clock said when the store was last written, in ms since the Unix epoch.
        last_wall_ms: u64,
        /// Store time at that moment, in ms since the Unix epoch.
        store_time_ms: u64,
    },
    /// The stored result does not decode as the type that the caller asked for. The operation is done and is not
    /// performed again; read the bytes with [`Store::get`](crate::Store::get).
    #[non_exhaustive]
    Decode {
        /// The key in question.
        key: OwnedKey,
        /// What the codec said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The request or the result could not be encoded.
    #[non_exhaustive]
    Encode {
        /// The key in question.
        key: OwnedKey,
        /// What the codec said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// An option, or a combination of options, makes no sense.
    #[non_exhaustive]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with its value, with the figures.
        reason: String,
    },
    /// `close` was called while leases are alive. Complete, release or drop them first.
    #[non_exhaustive]
    LeasesAlive {
        /// How many there are.
        count: usize,
    },
    /// The store was closed, by this handle or another one.
    Closed,
    /// This process was forked from the one that opened the store, which goes on using it. Nothing was done. Open the
    /// store in the child, after the parent has closed it, or open another one there.
    Forked,
    /// The path leads to another file than the one that is open, or to none: it was removed, renamed or replaced, and
    /// another process that opens the path works with another file. Nothing can begin any more. What had begun before is
    /// ended in the open file all the same, durably, and the call that ends it returns this; reads go on.
    ///
    /// Close the store. Find out which of the two files is the right one and put it in place, and what happened by the
    /// other one since.
    ///
    /// A process that changes its root directory must open its stores afterwards, because their paths lead nowhere then.
    #[non_exhaustive]
    Replaced {
        /// The path by which the store was opened.
        path: PathBuf,
    },
    /// The versions are used up. After 2^39 changes in one opening nothing can be written until the store is opened
    /// again. After 2^24 openings that did not follow a clean close the file cannot be opened any more; what it remembers
    /// cannot be carried into another.
    #[non_exhaustive]
    VersionsExhausted {
        /// The store's file.
        path: PathBuf,
        /// Which of the two, and what to do.
        reason: String,
    },
    /// The operating system refused something.
    #[non_exhaustive]
    Io {
        /// The store's file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
}

/// Whose move it is after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store works; this is its answer about the key.
    Answer,
    /// The call cannot work as it was made.
    Caller,
    /// A disk, a file, a clock or another process stands in the way.
    World,
    /// The side effect failed: see [`RunError::kind`](crate::RunError::kind).
    Effect,
}

impl Error {
    /// Whose move it is.
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
            Error::Mismatch { .. }
            | Error::InProgress { .. }
            | Error::Busy { .. }
            | Error::InDoubt { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::Fenced { .. } => ErrorKind::Answer,
            Error::Key { .. }
            | Error::TooLarge { .. }
            | Error::Decode { .. }
            | Error::Encode { .. }
            | Error::Option { .. }
            | Error::LeasesAlive { .. }
            | Error::WouldWaitForItself { .. }
            | Error::Closed
            | Error::Forked => ErrorKind::Caller,
            Error::Full { .. }
            | Error::Poisoned { .. }
            | Error::Locked { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Clock { .. }
            | Error::Replaced { .. }
            | Error::VersionsExhausted { .. }
            | Error::Io { .. } => ErrorKind::World,
        }
    }

    /// Whether the same call, made again later, may come out otherwise without anybody having changed anything. A program
    /// that tries again should wait a little longer each time.
    ///
    /// | error | | because |
    /// |---|---|---|
    /// | `InProgress` | yes | the attempt ends |
    /// | `Busy` | yes | the sync ends |
    /// | `InDoubt` with a `reason` | yes | `reconcile` was asked, and may find out the next time |
    /// | `InDoubt` without | no | the operation has no rule for a doubt: [`reconcile`](crate::Operation::reconcile) or [`rerun`](crate::Operation::rerun) |
    /// | `LeasesAlive` | yes | leases end |
    /// | `Full` | yes | retention passes, and others free space |
    /// | `Locked` | yes | the other process closes the store or ends |
    /// | `Io` | mostly | memory, file handles or a network disk come back; not if the path or a permission is wrong |
    /// | `Mismatch`, `ResultExpired`, `ResultNotKept`, `Conflict` | no | what is recorded stands |
    /// | `Fenced` | no | the operation is no longer this lease's |
    /// | `Key`, `TooLarge`, `Encode`, `Option` | no | what was given stays as it is |
    /// | `Decode` | no | the bytes and the type stay as they are |
    /// | `WouldWaitForItself` | no | it would from there every time |
    /// | `Closed`, `Forked`, `Poisoned`, `Replaced` | no | the store must be opened again, after what happened was looked into |
    /// | `VersionsExhausted` | no | the store must be opened again, or the file given up |
    /// | `NotAStore`, `Unsupported`, `Corrupt` | no | the file stays as it is |
    /// | `Clock` | no | the clock must be set, or accepted |
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
            Error::Io { source, .. } => is_passing(source.kind()),
            Error::Key { .. }
            | Error::Mismatch { .. }
            | Error::WouldWaitForItself { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::Fenced { .. }
            | Error::TooLarge { .. }
            | Error::Poisoned { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Clock { .. }
            | Error::Decode { .. }
            | Error::Encode { .. }
            | Error::Option { .. }
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

    /// 2^40 changes were made in this opening.
    pub(crate) fn changes_exhausted(path: impl Into<PathBuf>) -> Error {
        let reason = "2^40 changes were made since the store was opened; open it again".into();
        Error::VersionsExhausted { path: path.into(), reason }
    }

    /// The file was opened 2^24 times without a clean close before.
    pub(crate) fn openings_exhausted(path: impl Into<PathBuf>) -> Error {
        let reason =
            "the file was opened 2^24 times without a clean close before and cannot be opened any more; begin a new one at another path, \
                      which knows nothing of what this one remembers"
                .into();
        Error::VersionsExhausted { path: path.into(), reason }
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: path.into(), offset, reason: reason.into() }
    }
}

/// Whether what the operating system refused it may grant later: a shortage passes, a wrong path or permission does not.
/// What has no kind of its own (too many open files, an error of the disk) counts as passing.
fn is_passing(kind: io::ErrorKind) -> bool {
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
