//! What a call of `run` returns, and what the closure of `reconcile` returns: the outcome, the error and the finding.

use std::fmt;

#[cfg(doc)]
use crate::attempt::Attempt;
use crate::error::{Error, ErrorKind, Result};

/// A boxed error, for programs that do not need the concrete type any more. See [`RunError::into_boxed`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The outcome of an operation that is done: its result, and whether this call ran the side effect.
///
/// There is no third case, so this enum is not `non_exhaustive`: a match over both variants is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome<T> {
    /// This call ran the side effect, with this result.
    Done(T),
    /// The side effect ran before this call, or `reconcile` found that it had. This is the recorded result.
    AlreadyDone(T),
}

impl<T> Outcome<T> {
    /// Returns the result, whichever call ran the side effect.
    #[must_use]
    pub fn into_inner(self) -> T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// Borrows the result, whichever call ran the side effect.
    #[must_use]
    pub fn as_inner(&self) -> &T {
        match self {
            Outcome::Done(result) | Outcome::AlreadyDone(result) => result,
        }
    }

    /// Whether this is [`AlreadyDone`](Outcome::AlreadyDone): this call did not run the side effect.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        matches!(self, Outcome::AlreadyDone(_))
    }
}

/// The error of [`Operation::run`](crate::Operation::run): an error of the store, or the error of the closure and what
/// it means for the key.
///
/// `E` is the error type of the closure, which can be any type. `{}` prints the error of the closure or the store on
/// the same line. `{:?}` never prints the result, because errors end up in logs.
///
/// The operator `?` converts it to a `Box<dyn Error>` or an `anyhow::Error`. That keeps the text of `E` but not its causes,
/// because `E` need not implement [`Error`](std::error::Error). Where the causes matter, use
/// [`into_boxed`](RunError::into_boxed), which keeps them.
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
    /// The store returned an error, and this call did not run the side effect.
    Store(Error),
    /// The closure failed with this error, and [`release_if`](crate::Operation::release_if) returned that the side
    /// effect certainly did not happen. The key is absent again, and the call can be retried.
    Released(E),
    /// The closure of an operation with [steps](Attempt::step) failed, and the outcome of each step is known: done, released
    /// or given up. Nothing is in doubt. The next call goes on with the first step that is not done.
    Stopped(E),
    /// The closure failed, and the side effect may have happened: the operation is in doubt.
    #[non_exhaustive]
    InDoubt {
        /// The error of the closure.
        error: E,
        /// Why the release could not be recorded, if [`release_if`](crate::Operation::release_if) returned that the
        /// side effect did not happen. Boxed, so that a `Result` stays small.
        release_failed: Option<Box<Error>>,
    },
    /// The side effect happened, in this call or as `reconcile` found out, but its result was not recorded. Keep the result:
    /// no retry gets it from the store.
    ///
    /// | `source` | the operation |
    /// |---|---|
    /// | [`Error::Encode`], [`Error::TooLarge`] | is completed without its result; every retry is [`Error::ResultNotKept`] |
    /// | [`Error::Fenced`] | belongs to another attempt, or has ended |
    /// | [`Error::Replaced`] | is completed, with its result, in the open file, to which the path no longer leads |
    /// | [`Error::Poisoned`] | is in doubt; opening the store again shows whether the result was recorded |
    /// | [`Error::HasSteps`] | is in doubt, because one of its [steps](Attempt::step) is |
    /// | any other | is as that error describes |
    #[non_exhaustive]
    Unrecorded {
        /// The result of the side effect, as the closure returned it or `reconcile` found it.
        result: Box<T>,
        /// Why it was not recorded.
        source: Error,
    },
}

impl<T, E> RunError<T, E> {
    /// Returns [`ErrorKind::Effect`] if the closure failed; otherwise the kind of the store's error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.kind(),
            RunError::Released(_) | RunError::Stopped(_) | RunError::InDoubt { .. } => ErrorKind::Effect,
        }
    }

    /// Whether the same call can succeed later: yes if the closure failed, and no if its result was not recorded. For
    /// an error of the store, see [`Error::is_retryable`].
    ///
    /// A retry after [`RunError::InDoubt`] is safe: it runs `reconcile`, runs the side effect again only under
    /// [`rerun`](crate::Operation::rerun), or is [`Error::InDoubt`], which is not retryable. After [`RunError::Stopped`] it
    /// runs only what is not done yet.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            RunError::Store(error) => error.is_retryable(),
            RunError::Released(_) | RunError::Stopped(_) | RunError::InDoubt { .. } => true,
            RunError::Unrecorded { .. } => false,
        }
    }
}

impl<T, E> RunError<T, E> {
    /// Returns the error of the closure or, if it did not fail, that of the store, as an error of the program's own type. What
    /// the error means for the key is lost.
    ///
    /// With it, the operator `?` converts an error of a [step](Attempt::step) to the error type of its operation, whatever
    /// the result of the step:
    ///
    /// ```
    /// use oncekey::{Error, RunError, Store};
    ///
    /// #[derive(Debug, PartialEq)]
    /// enum JobError { Declined, Network(String), Store(String) }
    /// impl From<Error> for JobError { fn from(error: Error) -> Self { JobError::Store(error.to_string()) } }
    /// impl From<String> for JobError { fn from(error: String) -> Self { JobError::Network(error) } }
    ///
    /// impl<T, E> From<RunError<T, E>> for JobError where JobError: From<E> {
    ///     fn from(error: RunError<T, E>) -> Self { error.flatten() }
    /// }
    /// # impl std::fmt::Display for JobError { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") } }
    ///
    /// let store = Store::in_memory()?;
    /// let shipped = store.operation("order-7").run(|job| -> Result<u64, JobError> {
    ///     let receipt: u64 = job.step("charge").run(|_| Err::<_, String>("timed out".into()))?;
    ///     Ok(receipt)
    /// });
    /// let Err(RunError::InDoubt { error, .. }) = shipped else { panic!("{shipped:?}") };
    /// assert_eq!(error, JobError::Network("timed out".into()));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn flatten<F: From<E> + From<Error>>(self) -> F {
        match self {
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.into(),
            RunError::Released(error) | RunError::Stopped(error) | RunError::InDoubt { error, .. } => {
                error.into()
            }
        }
    }
}

impl<T, E: Into<BoxError>> RunError<T, E> {
    /// Converts the error to a boxed error whose chain of sources contains the closure's own error, even if that is a
    /// box or a string.
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
        let (text, source) = match self {
            RunError::Store(error) => return error.into(),
            RunError::Released(error) => (String::from(RELEASED), error.into()),
            RunError::Stopped(error) => (String::from(STOPPED), error.into()),
            RunError::InDoubt { error, release_failed } => {
                (in_doubt_text(release_failed.as_deref()), error.into())
            }
            RunError::Unrecorded { source, .. } => (String::from(UNRECORDED), source.into()),
        };
        Box::new(Boxed { text, source })
    }
}

const RELEASED: &str = "the side effect failed and did not happen";
const STOPPED: &str = "the operation stopped between its steps and can go on";
const UNRECORDED: &str = "the side effect happened and its result was not recorded";

fn in_doubt_text(release_failed: Option<&Error>) -> String {
    let mut text = String::from("the side effect failed and may have happened");
    if let Some(error) = release_failed {
        text.push_str(&format!(" (the release could not be recorded: {error})"));
    }
    text
}

/// A text and its source, for [`RunError::into_boxed`].
#[derive(Debug)]
struct Boxed {
    text: String,
    source: BoxError,
}

impl fmt::Display for Boxed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
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
            RunError::Stopped(error) => write!(out, "{STOPPED}: {error}"),
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
            RunError::Stopped(error) => out.debug_tuple("Stopped").field(error).finish(),
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
            // The text includes the store's error itself.
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.source(),
            RunError::Released(_) | RunError::Stopped(_) | RunError::InDoubt { .. } => None,
        }
    }
}

/// What a closure for [`reconcile`](crate::Operation::reconcile) found out about the attempt in doubt.
///
/// The closure returns this, or an `Option` or a `Result` that is converted to it: see [`Finding`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reconciled<T> {
    /// The side effect happened, with this result.
    Applied(T),
    /// The side effect certainly did not happen and cannot happen any more. The call runs it now.
    NotApplied,
    /// It is unknown whether the side effect happened. The operation stays in doubt.
    // Not `non_exhaustive`: closures construct it.
    Unknown {
        /// Why it is unknown, for [`Error::InDoubt`].
        reason: Option<String>,
    },
}

/// The types that a closure for [`reconcile`](crate::Operation::reconcile) can return. This trait is sealed.
///
/// | returned | is | meaning |
/// |---|---|---|
/// | `Some(result)`, `Ok(Some(result))` | [`Reconciled::Applied`] | the side effect happened, with this result |
/// | `None`, `Ok(None)` | [`Reconciled::NotApplied`] | it certainly did not happen and cannot happen any more |
/// | `Err(error)` | [`Reconciled::Unknown`] | unknown; [`Error::InDoubt`] carries the text of `error` |
/// | a [`Reconciled`] | itself | |
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
