//! What acts say about themselves, and how operations come out.

use std::fmt;

use crate::error::Error;
use crate::key::Key;
use crate::lease::{Doubt, Lease};
use crate::status::Version;

/// What a closure is told about the attempt that it performs, or asked about.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    key: Key<'a>,
    number: u32,
    version: Version,
}

impl<'a> Attempt<'a> {
    pub(crate) fn of_lease(lease: &'a Lease) -> Attempt<'a> {
        Attempt { key: lease.key(), number: lease.attempt(), version: lease.version() }
    }

    pub(crate) fn of_doubt(doubt: &'a Doubt) -> Attempt<'a> {
        Attempt { key: doubt.key(), number: doubt.attempt(), version: doubt.version() }
    }

    /// The idempotency key: hand it to the outside world, so that it can tell a repetition too.
    #[must_use]
    pub fn key(&self) -> Key<'a> {
        self.key
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The fencing token: the version of the attempt's begin.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }
}

/// How an operation came out.
///
/// There is no third case, so this is not `non_exhaustive`: a match over both is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome<T> {
    /// This call performed the act.
    Done(T),
    /// An earlier call did; this is the result that it recorded.
    AlreadyDone(T),
}

impl<T> Outcome<T> {
    /// The result, whoever performed the act.
    #[must_use]
    pub fn into_inner(self) -> T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// The result, whoever performed the act.
    #[must_use]
    pub fn as_inner(&self) -> &T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// Whether an earlier call performed the act.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        matches!(self, Outcome::AlreadyDone(_))
    }
}

/// What an act that did not succeed says about itself.
///
/// A plain error turns into [`Failure::InDoubt`], so that `?` fails safe: say [`Failure::NotApplied`] only where you know.
///
/// ```
/// use oncekey::{Failure, RunError, Status, Store};
///
/// let store = Store::in_memory()?;
/// let refused = store.operation("charge:1").run(|_| -> Result<u32, Failure<&str>> {
///     // The connection could not even be opened: certainly nothing happened.
///     Err(Failure::NotApplied("connection refused"))
/// });
/// assert!(matches!(refused, Err(RunError::NotApplied(_))));
/// assert_eq!(store.get("charge:1")?.status(), Status::Absent);
///
/// let lost = store.operation("charge:1").run(|_| -> Result<u32, Failure<&str>> {
///     Err("timed out while waiting for the answer")?
/// });
/// assert!(matches!(lost, Err(RunError::InDoubt(_))));
/// assert_eq!(store.get("charge:1")?.status(), Status::InDoubt);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure<E> {
    /// The act certainly did not happen. The key is free again.
    NotApplied(E),
    /// The act may have happened. The operation stays in doubt until somebody finds out.
    InDoubt(E),
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Failure<E> {
        Failure::InDoubt(error)
    }
}

/// Why [`Operation::run`](crate::Operation::run) gave no outcome.
///
/// `{:?}` shows nothing of the result: an error ends up in logs.
#[derive(Clone)]
#[non_exhaustive]
pub enum RunError<T, E> {
    /// The store says why: the act was not performed by this call.
    Store(Error),
    /// The act certainly did not happen, and the key is free again.
    NotApplied(E),
    /// The act may have happened, and the operation is in doubt.
    InDoubt(E),
    /// The act was performed, by this call or, as `reconcile` said, before it, and its result could not be recorded.
    Unrecorded {
        /// What the act gave, or `reconcile` found.
        result: T,
        /// Why it could not be recorded.
        source: Error,
    },
}

impl<T, E> From<Error> for RunError<T, E> {
    fn from(error: Error) -> RunError<T, E> {
        RunError::Store(error)
    }
}

impl<T, E: fmt::Display> fmt::Display for RunError<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Store(error) => write!(out, "{error}"),
            RunError::NotApplied(error) => write!(out, "the act was not applied: {error}"),
            RunError::InDoubt(error) => write!(out, "the act may have been applied: {error}"),
            RunError::Unrecorded { source, .. } => {
                write!(out, "the act was performed and its result could not be recorded: {source}")
            }
        }
    }
}

impl<T, E: fmt::Debug> fmt::Debug for RunError<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Store(error) => out.debug_tuple("Store").field(error).finish(),
            RunError::NotApplied(error) => out.debug_tuple("NotApplied").field(error).finish(),
            RunError::InDoubt(error) => out.debug_tuple("InDoubt").field(error).finish(),
            RunError::Unrecorded { source, .. } => {
                out.debug_struct("Unrecorded").field("source", source).finish_non_exhaustive()
            }
        }
    }
}

impl<T, E: std::error::Error + 'static> std::error::Error for RunError<T, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => Some(error),
            RunError::NotApplied(error) | RunError::InDoubt(error) => Some(error),
        }
    }
}

/// What was found out about an attempt in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reconciled<T> {
    /// The act happened, with this result.
    Applied(T),
    /// The act certainly did not happen and cannot happen any more: it is performed now.
    NotApplied,
    /// Nobody can say. The operation stays in doubt.
    Unknown,
}

impl<T> From<Option<T>> for Reconciled<T> {
    fn from(found: Option<T>) -> Reconciled<T> {
        found.map_or(Reconciled::NotApplied, Reconciled::Applied)
    }
}

impl<T, E> From<Result<Option<T>, E>> for Reconciled<T> {
    fn from(found: Result<Option<T>, E>) -> Reconciled<T> {
        found.map_or(Reconciled::Unknown, Reconciled::from)
    }
}
