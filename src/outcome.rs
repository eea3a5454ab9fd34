//! What a side effect is told about its attempt, and how operations come out.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, OwnedKey};
use crate::lease::{Doubt, Lease};
use crate::options::{check_renewal, own_retention};
use crate::record::Retention;
use crate::status::Version;
use crate::sync::Mutex;

/// What a program's own errors become where their type does not matter any more.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A handle to the attempt that a closure runs, or is asked about.
///
/// It can be cloned, sent to other threads and kept. After the attempt has ended, its calls are [`Error::Fenced`].
///
/// ```
/// use oncekey::Store;
///
/// let store = Store::in_memory()?;
/// let outcome = store.operation("charge:order-1729").scope("acct_42").run(|attempt| {
///     assert_eq!(attempt.token(), "acct_42/charge:order-1729");
///     assert_eq!(attempt.number(), 1);
///     assert!(attempt.is_current());
///     Ok::<_, String>(17)
/// });
/// assert_eq!(outcome.expect("performed").into_inner(), 17);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
pub struct Attempt {
    shared: Arc<Shared>,
}

struct Shared {
    /// Weak, so that a handle that is kept does not keep the file open.
    engine: Weak<Engine>,
    key: OwnedKey,
    number: u32,
    version: Version,
    /// How long the completed operation is remembered.
    retention: Mutex<Retention>,
}

impl Attempt {
    pub(crate) fn of_lease(engine: &Arc<Engine>, lease: &Lease) -> Attempt {
        Attempt::new(engine, lease.key(), lease.attempt(), lease.version(), lease.retention())
    }

    pub(crate) fn of_doubt(engine: &Arc<Engine>, doubt: &Doubt) -> Attempt {
        Attempt::new(engine, doubt.key(), doubt.attempt(), doubt.version(), engine.settings().terms.retention)
    }

    fn new(
        engine: &Arc<Engine>,
        key: Key<'_>,
        number: u32,
        version: Version,
        retention: Retention,
    ) -> Attempt {
        let (engine, key, retention) = (Arc::downgrade(engine), key.to_owned(), Mutex::new(retention));
        Attempt { shared: Arc::new(Shared { engine, key, number, version, retention }) }
    }

    /// The idempotency key. For the outside world use [`token`](Attempt::token).
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.shared.key.as_key()
    }

    /// The idempotency key for the outside world: one printable string of at most 255 characters, made of scope and key.
    /// It is the same for every attempt at this operation, in every process, and no other operation has it. See
    /// [`Key::token`].
    ///
    /// Give it to the provider as its idempotency key, and search by it when you [`reconcile`](crate::Operation::reconcile).
    #[must_use]
    pub fn token(&self) -> String {
        self.key().token()
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.shared.number
    }

    /// The fencing token: the version of the attempt's begin. It grows from attempt to attempt, so that a system that
    /// remembers the highest one can refuse an attempt that was taken over.
    #[must_use]
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// Whether this attempt still owns its operation. False once it ended or another attempt took it over; the answer can be
    /// out of date as soon as it is given, so it saves work and fences nothing.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.owner().is_some()
    }

    /// The engine, while the attempt owns its operation.
    fn owner(&self) -> Option<Arc<Engine>> {
        self.shared.engine.upgrade().filter(|engine| engine.is_current(self.key(), self.shared.version))
    }

    /// Extends the attempt's lease to end after `lease` from now; see [`Lease::renew`].
    ///
    /// # Errors
    ///
    /// As [`Lease::renew`]. [`Error::Fenced`] also of an attempt in doubt, which has no lease.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let Some(engine) = self.owner() else { return Err(self.fenced()) };
        let lease_ms = check_renewal(lease, *self.shared.retention.lock())?;
        engine.renew(self.key(), self.shared.version, lease_ms)
    }

    /// How long the operation is remembered once it is completed, and its result with it, instead of what was said before:
    /// for a closure that learns it from the answer. `Duration::MAX` is for ever. The last call counts.
    ///
    /// # Errors
    ///
    /// [`Error::Option`]: less than a millisecond. [`Error::Fenced`]: the attempt does not own its operation any more.
    pub fn retain(&self, retention: Duration) -> Result<()> {
        let Some(engine) = self.owner() else { return Err(self.fenced()) };
        *self.shared.retention.lock() = own_retention(retention, engine.settings())?;
        Ok(())
    }

    pub(crate) fn retention(&self) -> Retention {
        *self.shared.retention.lock()
    }

    fn fenced(&self) -> Error {
        Error::Fenced { key: self.shared.key.clone(), version: self.shared.version }
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Attempt")
            .field("key", &self.shared.key)
            .field("number", &self.shared.number)
            .field("version", &self.shared.version)
            .finish_non_exhaustive()
    }
}

/// How an operation came out.
///
/// There is no third case, so this is not `non_exhaustive`: a match over both is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome<T> {
    /// This call ran the side effect.
    Done(T),
    /// An earlier call did; this is the result that it recorded.
    AlreadyDone(T),
}

impl<T> Outcome<T> {
    /// The result, whichever call ran the side effect.
    #[must_use]
    pub fn into_inner(self) -> T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// The result, whichever call ran the side effect.
    #[must_use]
    pub fn as_inner(&self) -> &T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// Whether an earlier call ran the side effect.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        matches!(self, Outcome::AlreadyDone(_))
    }
}

/// Why [`Operation::run`](crate::Operation::run) gave no outcome.
///
/// `E` is the closure's own error type, whatever it is. `{}` says it inline, and the store's error as well. `{:?}` shows nothing of
/// the result, because errors end up in logs.
///
/// With `?` it becomes a `Box<dyn Error>` or an `anyhow::Error`. That keeps the text of `E` and not its causes, because `E` need be
/// no [`Error`](std::error::Error). Where the causes matter, use [`into_boxed`](RunError::into_boxed), which keeps the chain.
///
/// ```
/// use oncekey::{Outcome, RunError, Store};
///
/// let store = Store::in_memory()?;
/// let answer = store.operation("charge:1").run(|_| Err::<u32, _>("timed out while waiting for the answer"));
/// match answer {
///     Ok(outcome) => println!("{}", outcome.into_inner()),
///     Err(RunError::Released(error)) => println!("nothing happened: {error}"),
///     Err(RunError::InDoubt { error, .. }) => assert_eq!(error, "timed out while waiting for the answer"),
///     Err(RunError::Unrecorded { result, .. }) => println!("{result}, but retries will not get it"),
///     Err(error) => println!("not run: {error}"),
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum RunError<T, E> {
    /// The store gave no outcome, and this call did not run the side effect.
    Store(Error),
    /// The closure failed, and [`release_if`](crate::Operation::release_if) said that nothing happened. The key is free
    /// again.
    Released(E),
    /// The closure failed and the side effect may have happened: the operation is in doubt.
    #[non_exhaustive]
    InDoubt {
        /// What the closure returned.
        error: E,
        /// The key was to be free again, and this is why that could not be recorded. Boxed, so that a `Result` stays small.
        release_failed: Option<Box<Error>>,
    },
    /// The side effect happened, in this call or as `reconcile` said, and its result was not recorded.
    ///
    /// If the result itself could not be recorded ([`Error::Encode`], [`Error::TooLarge`]), the operation is completed without
    /// it, and every retry is [`Error::ResultNotKept`]. With any other error the operation is as that error says: in doubt if a
    /// disk failed, another attempt's if it is [`Error::Fenced`].
    #[non_exhaustive]
    Unrecorded {
        /// What the closure returned, or `reconcile` found.
        result: Box<T>,
        /// Why it was not recorded.
        source: Error,
    },
}

impl<T, E> RunError<T, E> {
    /// Whose move it is. [`ErrorKind::Effect`] if the closure failed; otherwise that of the store's error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.kind(),
            RunError::Released(_) | RunError::InDoubt { .. } => ErrorKind::Effect,
        }
    }

    /// Whether the same call, made again later, may give an outcome: where the closure failed, and where
    /// [`Error::is_retryable`] says so of the store's error. After [`RunError::InDoubt`] the next call asks `reconcile`, or
    /// is [`Error::InDoubt`], which is not retryable; it never runs a side effect that may have happened.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            RunError::Store(error) => error.is_retryable(),
            RunError::Released(_) | RunError::InDoubt { .. } => true,
            RunError::Unrecorded { .. } => false,
        }
    }
}

impl<T, E: Into<BoxError>> RunError<T, E> {
    /// The same as a boxed error whose chain of causes goes through the closure's own error, also where that is a box
    /// or text.
    ///
    /// ```
    /// use oncekey::{BoxError, Store};
    ///
    /// fn charge(store: &Store) -> Result<u64, BoxError> {
    ///     let outcome = store
    ///         .operation("charge:order-1729")
    ///         .run(|_| -> Result<u64, BoxError> { Ok("17".parse()?) })
    ///         .map_err(oncekey::RunError::into_boxed)?;
    ///     Ok(outcome.into_inner())
    /// }
    /// assert_eq!(charge(&Store::in_memory()?)?, 17);
    /// # Ok::<(), BoxError>(())
    /// ```
    #[must_use]
    pub fn into_boxed(self) -> BoxError {
        let (says, source) = match self {
            RunError::Store(error) => return error.into(),
            RunError::Released(error) => (String::from(RELEASED), error.into()),
            RunError::InDoubt { error, release_failed } => {
                (in_doubt_text(release_failed.as_deref()), error.into())
            }
            RunError::Unrecorded { source, .. } => (String::from(UNRECORDED), source.into()),
        };
        Box::new(Boxed { says, source })
    }
}

const RELEASED: &str = "the side effect failed and did not happen";
const UNRECORDED: &str = "the side effect happened and its result was not recorded";

fn in_doubt_text(release_failed: Option<&Error>) -> String {
    let mut text = String::from("the side effect failed and may have happened");
    if let Some(error) = release_failed {
        text.push_str(&format!(" (that it did not could not be recorded: {error})"));
    }
    text
}

/// An error and its cause, for [`RunError::into_boxed`].
#[derive(Debug)]
struct Boxed {
    says: String,
    source: BoxError,
}

impl fmt::Display for Boxed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.says)
    }
}

impl std::error::Error for Boxed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

impl<T, E> From<Error> for RunError<T, E> {
    fn from(error: Error) -> RunError<T, E> {
        RunError::Store(error)
    }
}

impl<T, E: fmt::Display> fmt::Display for RunError<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Store(error) => fmt::Display::fmt(error, out),
            RunError::Released(error) => write!(out, "{RELEASED}: {error}"),
            RunError::InDoubt { error, release_failed } => {
                write!(out, "{}: {error}", in_doubt_text(release_failed.as_deref()))
            }
            RunError::Unrecorded { source, .. } => write!(out, "{UNRECORDED}: {source}"),
        }
    }
}

impl<T, E: fmt::Debug> fmt::Debug for RunError<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Store(error) => out.debug_tuple("Store").field(error).finish(),
            RunError::Released(error) => out.debug_tuple("Released").field(error).finish(),
            RunError::InDoubt { error, release_failed } => out
                .debug_struct("InDoubt")
                .field("error", error)
                .field("release_failed", release_failed)
                .finish(),
            RunError::Unrecorded { source, .. } => {
                out.debug_struct("Unrecorded").field("source", source).finish_non_exhaustive()
            }
        }
    }
}

impl<T, E: fmt::Debug + fmt::Display> std::error::Error for RunError<T, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The store's error is said inline.
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.source(),
            RunError::Released(_) | RunError::InDoubt { .. } => None,
        }
    }
}

/// What was found out about an attempt in doubt.
///
/// A closure for [`reconcile`](crate::Operation::reconcile) returns this, or an `Option` or a `Result` that becomes it: see
/// [`Finding`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reconciled<T> {
    /// The side effect happened, with this result.
    Applied(T),
    /// The side effect certainly did not happen and cannot happen any more: it is run now.
    NotApplied,
    /// Nobody can say. The operation stays in doubt.
    Unknown {
        /// Why not, for [`Error::InDoubt`].
        reason: Option<String>,
    },
}

/// What a closure for [`reconcile`](crate::Operation::reconcile) may return. Sealed.
///
/// | returned | means |
/// |---|---|
/// | `Some(result)`, `Ok(Some(result))` | the side effect happened, with this result |
/// | `None`, `Ok(None)` | it certainly did not happen |
/// | `Err(error)` | nobody can say; [`Error::InDoubt`] carries the text of `error` |
/// | a [`Reconciled`] | what it says |
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say whether the side effect happened",
    label = "return an `Option<T>`, a `Result<Option<T>, E>` or a `Reconciled<T>` here, with the `T` of `run`"
)]
pub trait Finding<T>: sealed::Sealed {
    #[doc(hidden)]
    fn into_reconciled(self) -> Reconciled<T>;
}

impl<T> Finding<T> for Reconciled<T> {
    fn into_reconciled(self) -> Reconciled<T> {
        self
    }
}

impl<T> Finding<T> for Option<T> {
    fn into_reconciled(self) -> Reconciled<T> {
        self.map_or(Reconciled::NotApplied, Reconciled::Applied)
    }
}

impl<T, E: fmt::Display> Finding<T> for Result<Option<T>, E> {
    fn into_reconciled(self) -> Reconciled<T> {
        match self {
            Ok(found) => found.into_reconciled(),
            Err(error) => Reconciled::Unknown { reason: Some(error.to_string()) },
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl<T> Sealed for super::Reconciled<T> {}
    impl<T> Sealed for Option<T> {}
    impl<T, E> Sealed for super::Result<Option<T>, E> {}
}
