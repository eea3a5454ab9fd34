//! What can go wrong, where it went wrong, and what to do next.
//!
//! Every error of the store is one [`Error`]. Its variants fall into three families, and [`Error::kind`] tells them
//! apart: the *answer* is an error (a mismatch, an operation in doubt), the *caller* made one (a key too long, an
//! option that makes no sense), or the *world* failed (a disk, a file, a clock).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::key::{KeyProblem, OwnedKey};
use crate::status::Version;

/// The result of a call to the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, where, and what to do about it.
///
/// Errors that concern a key carry it; errors that concern the file carry its path and, where there is one, the
/// offset in it. Payloads (requests, results) are never part of an error's text.
///
/// ```
/// use oncekey::{Error, Store};
///
/// let store = Store::in_memory()?;
/// let too_long = "k".repeat(2_000);
/// match store.get(&too_long) {
///     Err(Error::Key { problem }) => assert!(problem.to_string().contains("1,024")),
///     other => panic!("a key of 2,000 bytes is refused, not {other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The key or its scope is not usable. Nothing was looked at or changed.
    Key {
        /// Which rule it breaks.
        problem: KeyProblem,
    },
    /// The key was used before with another request. The stored operation is untouched and its result is not
    /// given out: find out why two different requests carry one key.
    Mismatch {
        /// The key in question.
        key: OwnedKey,
    },
    /// Another thread of this process is performing the operation right now, or writing down what is known of it. Try again
    /// later, or wait with [`Operation::wait`](crate::Operation::wait).
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
    InDoubt {
        /// The key in question.
        key: OwnedKey,
        /// The attempt whose outcome nobody knows.
        attempt: u32,
        /// The version of that attempt, for [`Store::compare_and_set`](crate::Store::compare_and_set).
        version: Version,
    },
    /// The operation is done, but its result was given up: the result retention passed and the key retention did
    /// not. It is not performed again.
    ResultExpired {
        /// The key in question.
        key: OwnedKey,
    },
    /// The operation is completed already, and what was to happen to it now would change that: another result from the
    /// same [`Lease`](crate::Lease) or [`Doubt`](crate::Doubt), a release of either, or a compare-and-set to anything
    /// but absent. What was recorded first stands.
    Conflict {
        /// The key in question.
        key: OwnedKey,
    },
    /// The lease no longer owns the operation: another attempt, a compare-and-set or a `forget` came between. What
    /// this attempt did must be reconciled with what the store says now.
    Fenced {
        /// The key in question.
        key: OwnedKey,
        /// The version that the lease held.
        version: Version,
    },
    /// The result is larger than `Options::max_result`, and nothing was recorded. Record something smaller, for
    /// instance a reference to where the result is kept: a [`Lease`](crate::Lease) or [`Doubt`](crate::Doubt) that was
    /// to be completed is still usable for that. After [`Operation::run`](crate::Operation::run) there is none: the
    /// operation is in doubt, and [`RunError::Unrecorded`](crate::RunError::Unrecorded) has the result.
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
    Full {
        /// The store's file.
        path: PathBuf,
        /// Why the file cannot grow.
        reason: String,
    },
    /// An earlier write or sync failed, so what reached the disk since is unknown. Nothing can be written until
    /// the store is opened again; durable records can still be read.
    Poisoned {
        /// The store's file.
        path: PathBuf,
        /// What failed first.
        source: Arc<io::Error>,
    },
    /// The file is open already, in this process or another. The lock lives until the other one is closed, or its last
    /// `Store` and its last lease are gone. If its process was killed and had forked, its children keep the lock until
    /// they end or run another program.
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The path names something that is no oncekey store. It was left as it is.
    NotAStore {
        /// What was opened.
        path: PathBuf,
        /// What it is instead, as far as one can tell.
        reason: String,
    },
    /// The file was written in a format that this version of oncekey cannot read, or uses a feature that it does
    /// not know. It was left as it is.
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
    Decode {
        /// The key in question.
        key: OwnedKey,
        /// What the codec said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The request or the result could not be encoded.
    Encode {
        /// The key in question.
        key: OwnedKey,
        /// What the codec said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// An option, or a combination of options, makes no sense.
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with its value, with the figures.
        reason: String,
    },
    /// `close` was called while leases are alive. Complete, release or drop them first.
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
    Replaced {
        /// The path by which the store was opened.
        path: PathBuf,
    },
    /// The versions are used up. After 2^39 changes in one opening nothing can be written until the store is opened
    /// again. After 2^24 openings that did not follow a clean close the file cannot be opened any more; what it remembers
    /// cannot be carried into another.
    VersionsExhausted {
        /// The store's file.
        path: PathBuf,
        /// Which of the two, and what to do.
        reason: String,
    },
    /// The operating system refused something.
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

/// A path as errors and events print it: on one line, whatever is in it. Characters that steer a terminal, break the
/// line or reorder what is shown are escaped.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn is_safe(character: char) -> bool {
            let reorders = matches!(character, '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
            !character.is_control() && !reorders
        }
        if self.0.as_os_str().is_empty() {
            return out.write_str("\"\"");
        }
        for character in self.0.to_string_lossy().chars() {
            if is_safe(character) {
                fmt::Write::write_char(out, character)?;
            } else {
                write!(out, "{}", character.escape_default())?;
            }
        }
        Ok(())
    }
}

impl From<KeyProblem> for Error {
    fn from(problem: KeyProblem) -> Error {
        Error::Key { problem }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Key { problem } => write!(out, "unusable key: {problem}"),
            Error::Mismatch { key } => {
                write!(
                    out,
                    "{key}: this key was used before with another request; it is not performed and not replayed"
                )
            }
            Error::InProgress { key, attempt } => {
                write!(
                    out,
                    "{key}: attempt {attempt} is in progress in this process; try again later or wait for it"
                )
            }
            Error::Busy { key } => write!(
                out,
                "{key}: what is known of it is being synced by another thread, and that took longer than this call was to \
                 wait; ask again"
            ),
            Error::WouldWaitForItself { key } => write!(
                out,
                "{key}: this thread is performing or reconciling this very operation, and would wait for itself"
            ),
            Error::InDoubt { key, attempt, version } => write!(
                out,
                "{key}: attempt {attempt} (version {version}) began and nobody knows whether the act happened; \
                 reconcile it, or rerun it if the act is idempotent"
            ),
            Error::ResultExpired { key } => {
                write!(
                    out,
                    "{key}: done, but its result retention has passed and the result is gone; it is not performed again"
                )
            }
            Error::Conflict { key } => {
                write!(out, "{key}: the operation is completed already, and what was recorded first stands")
            }
            Error::Fenced { key, version } => write!(
                out,
                "{key}: the lease of version {version} no longer owns the operation; compare what this attempt did \
                 with what the store says now"
            ),
            Error::TooLarge { key, length_bytes, limit_bytes } => write!(
                out,
                "{key}: a result of {length_bytes} bytes is over the limit of {limit_bytes} (Options::max_result); \
                 nothing was recorded; record a reference to where it is kept instead"
            ),
            Error::Full { path, reason } => write!(out, "{}: there is no room: {reason}", Shown(path)),
            Error::Poisoned { path, source } => write!(
                out,
                "{}: an earlier write or sync failed ({source}), nothing can be written until the store is opened again",
                Shown(path)
            ),
            Error::Locked { path } => {
                write!(
                    out,
                    "{}: open already, in this process or another; one store has the file to itself",
                    Shown(path)
                )
            }
            Error::NotAStore { path, reason } => {
                write!(out, "{}: no oncekey store: {reason}", Shown(path))
            }
            Error::Unsupported { path, reason } => write!(out, "{}: {reason}", Shown(path)),
            Error::Corrupt { path, offset, reason } => write!(
                out,
                "{}: corrupt at offset {offset}: {reason}; keep a copy of the file before anything else is tried",
                Shown(path)
            ),
            Error::Clock { path, wall_ms, last_wall_ms, store_time_ms } => {
                let seconds = wall_ms.abs_diff(*last_wall_ms) / 1_000;
                let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
                let direction = if wall_ms < last_wall_ms { "behind" } else { "ahead of" };
                write!(
                    out,
                    "{}: the wall clock ({wall_ms} ms) is {days} days and {hours} hours {direction} the {last_wall_ms} ms \
                     that it showed in an earlier boot, when store time was {store_time_ms} ms; correct the clock, or \
                     accept it (Options::accept_clock_jump): ClockJump::Elapsed if that time has passed, \
                     ClockJump::NotElapsed if the clock was or is wrong",
                    Shown(path)
                )
            }
            Error::Decode { key, source } => write!(
                out,
                "{key}: the stored result does not decode as the type asked for ({source}); it is not performed again"
            ),
            Error::Encode { key, source } => {
                write!(out, "{key}: the request or result cannot be encoded: {source}")
            }
            Error::Option { option, reason } => write!(out, "option {option}: {reason}"),
            Error::LeasesAlive { count } => {
                let (leases, them) = if *count == 1 { ("lease is", "it") } else { ("leases are", "them") };
                write!(
                    out,
                    "{count} {leases} alive; complete, release or drop {them} before closing the store"
                )
            }
            Error::Closed => write!(out, "the store was closed, by this handle or another one"),
            Error::Forked => write!(
                out,
                "this process was forked from the one that opened the store; open a store in this process"
            ),
            Error::Replaced { path } => write!(
                out,
                "{}: the path was removed, renamed or replaced while the store was open; nothing begins any more, \
                 close the store and find out which file is the right one",
                Shown(path)
            ),
            Error::VersionsExhausted { path, reason } => {
                write!(out, "{}: the versions are used up: {reason}", Shown(path))
            }
            Error::Io { path, operation, source } => {
                write!(out, "{}: cannot {operation}: {source}", Shown(path))
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Poisoned { source, .. } | Error::Io { source, .. } => Some(&**source),
            Error::Decode { source, .. } | Error::Encode { source, .. } => Some(&**source),
            _ => None,
        }
    }
}
