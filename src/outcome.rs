//! What the closures of an operation receive and return: the handle to an attempt, the outcome and error of `run`, and
//! the finding of `reconcile`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::doubt::Doubt;
use crate::engine::{Engine, HashedKey};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Typing;
use crate::key::{Key, OwnedKey};
use crate::lease::Lease;
use crate::messages::Messages;
use crate::options::{check_renewal, operation_retention};
use crate::record::Retention;
use crate::status::Version;
use crate::sync::Mutex;
use crate::typed;

/// A boxed error, for programs that do not need the concrete type any more. See [`RunError::into_boxed`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A handle to an attempt: the one that the closure of [`run`](crate::Operation::run) runs, or the one that the closure
/// of [`reconcile`](crate::Operation::reconcile) searches for.
///
/// It can be cloned, sent to other threads and kept. It does not keep the store open. After the attempt has ended,
/// [`renew`](Attempt::renew) and [`retain`](Attempt::retain) are [`Error::Fenced`].
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
/// assert_eq!(outcome.expect("the charge succeeds").into_inner(), 17);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
pub struct Attempt {
    shared: Arc<Shared>,
}

struct Shared {
    /// Weak, so that a handle that a program keeps does not keep the file locked.
    engine: Weak<Engine>,
    key: OwnedKey,
    /// The hash of the key.
    hash: u128,
    number: u32,
    version: Version,
    /// The retention of the completed operation. Read after the closure has returned.
    retention: Mutex<Retention>,
    /// The messages that are committed with the completion. Read after the closure has returned.
    messages: Mutex<Messages>,
    /// The codec of the operation.
    typing: Option<Typing>,
}

impl Attempt {
    pub(crate) fn of_lease(engine: &Arc<Engine>, lease: &Lease) -> Attempt {
        let attempt = (lease.attempt(), lease.version());
        Attempt::new(engine, lease.hashed_key(), attempt, lease.retention(), lease.new_messages())
    }

    pub(crate) fn of_doubt(engine: &Arc<Engine>, doubt: &Doubt) -> Attempt {
        let retention = engine.settings().terms.retention;
        let attempt = (doubt.attempt(), doubt.version());
        Attempt::new(engine, doubt.hashed_key(), attempt, retention, doubt.new_messages())
    }

    fn new(
        engine: &Arc<Engine>,
        HashedKey { key, hash }: HashedKey<'_>,
        (number, version): (u32, Version),
        retention: Retention,
        messages: Messages,
    ) -> Attempt {
        let (engine, key, retention) = (Arc::downgrade(engine), key.to_owned(), Mutex::new(retention));
        let (typing, messages) = (messages.typing(), Mutex::new(messages));
        let shared = Shared { engine, key, hash, number, version, retention, messages, typing };
        Attempt { shared: Arc::new(shared) }
    }

    /// The key of the operation. For the outside world, use the [`token`](Attempt::token) instead.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.shared.key.as_key()
    }

    /// The idempotency key for the outside world: scope and key as one printable string of at most 255 characters. It is the
    /// same for every attempt at this operation, in every process, and differs from that of every other operation. See
    /// [`Key::token`].
    ///
    /// Give it to the provider as its idempotency key, and search by it in [`reconcile`](crate::Operation::reconcile).
    #[must_use]
    pub fn token(&self) -> String {
        self.key().token()
    }

    /// The number of this attempt at the operation, counted from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.shared.number
    }

    /// The fencing token: the version of the attempt's begin. Each attempt has a higher one than the attempt before, so a
    /// system that remembers the highest version it has seen can refuse an attempt that was taken over.
    #[must_use]
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// Whether this attempt still owns its operation: its lease is alive, and no other caller has taken the operation over.
    /// Always false for an attempt in doubt.
    ///
    /// The answer can be out of date as soon as it is returned. So it can save work, but it does not prevent a second side
    /// effect; [`version`](Attempt::version) does.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.owner().is_some()
    }

    fn hashed_key(&self) -> HashedKey<'_> {
        HashedKey { key: self.key(), hash: self.shared.hash }
    }

    /// Returns the engine if the attempt owns its operation and the store still exists.
    fn owner(&self) -> Option<Arc<Engine>> {
        self.shared
            .engine
            .upgrade()
            .filter(|engine| engine.is_current(self.hashed_key(), self.shared.version))
    }

    /// Moves the deadline of the attempt's lease to `lease` from now: see [`Lease::renew`].
    ///
    /// # Errors
    ///
    /// Those of [`Lease::renew`]. An attempt in doubt has no lease, and is [`Error::Fenced`]. So is every attempt of a store
    /// that is closed or was opened by the parent of this process.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let Some(engine) = self.owner() else { return Err(self.fenced()) };
        let lease_ms = check_renewal(lease, *self.shared.retention.lock())?;
        engine.renew(self.hashed_key(), self.shared.version, lease_ms)
    }

    /// Sets how long the operation, and its result with it, is remembered after its completion: see [`Lease::retain`]. For a
    /// closure that learns the retention from the provider's answer. Only calls before the closure returns have an effect, and
    /// the last of them counts.
    ///
    /// ```
    /// use oncekey::{ManualClock, Options};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new(1_700_000_000_000);
    /// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
    /// store.operation("quote:7").run(|attempt| {
    ///     let valid_for = Duration::from_secs(900); // from the supplier's answer
    ///     attempt.retain(valid_for)?;
    ///     Ok::<_, oncekey::Error>(1_000)
    /// })?;
    /// clock.advance(Duration::from_secs(900));
    /// assert!(store.get("quote:7")?.is_absent());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Option`]: the retention is shorter than a millisecond. [`Error::Fenced`]: the attempt does not own its
    /// operation any more.
    pub fn retain(&self, retention: Duration) -> Result<()> {
        let Some(engine) = self.owner() else { return Err(self.fenced()) };
        *self.shared.retention.lock() = operation_retention(retention, engine.settings())?;
        Ok(())
    }

    /// Adds a message to a topic of the [outbox](crate::Store::outbox). It is committed with the result of the operation, in
    /// one write: if the operation is not completed, the message never existed, and a retry that replays the result emits
    /// nothing.
    ///
    /// The messages of an attempt are numbered in the order of these calls, and the number is part of their
    /// [`token`](crate::Message::token). So emit them in the same order in every attempt. Only calls before the closure
    /// returns have an effect. Their sizes together may be what [`Operation::emits`](crate::Operation::emits) allows, which is
    /// nothing by default.
    ///
    /// If the operation can be completed without this closure, by [`reconcile`](crate::Operation::reconcile), make the
    /// messages in [`on_complete`](crate::Operation::on_complete) instead: those of an attempt that is in doubt are gone.
    ///
    /// ```
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// let ship = || store.operation("ship:7").rerun().emits(1_024).run(|attempt| {
    ///     // .. print a label, which may be printed twice ..
    ///     attempt.emit("shipped", &7)?;
    ///     Ok::<_, oncekey::Error>("parcel 99".to_owned())
    /// });
    /// ship()?;
    /// ship()?; // replays the result
    /// assert_eq!(store.stats().messages, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Messages::emit`]. [`Error::Fenced`]: the attempt does not own its operation any more, or is in doubt.
    pub fn emit<T: Serialize + DeserializeOwned>(&self, topic: &str, message: &T) -> Result<()> {
        // Encoded before the lock is taken, because that runs the caller's code.
        let encoded = typed::encode_as(self.shared.typing, message, usize::MAX);
        self.with_messages(|messages| messages.add_encoded(topic, encoded))
    }

    /// Adds a message that is encoded with `codec`: see [`Messages::emit_with`].
    ///
    /// # Errors
    ///
    /// Those of [`emit`](Attempt::emit).
    pub fn emit_with<C: Codec, T>(&self, topic: &str, codec: &C, message: &T) -> Result<()>
    where
        T: Serialize + DeserializeOwned,
    {
        let encoded = typed::encode(codec, None, message, usize::MAX);
        self.with_messages(|messages| messages.add_encoded(topic, encoded))
    }

    /// Adds a message as bytes: see [`emit`](Attempt::emit).
    ///
    /// # Errors
    ///
    /// Those of [`Messages::emit_bytes`], and [`Error::Fenced`].
    pub fn emit_bytes(&self, topic: &str, payload: &[u8]) -> Result<()> {
        self.with_messages(|messages| messages.emit_bytes(topic, payload))
    }

    fn with_messages(&self, add: impl FnOnce(&mut Messages) -> Result<()>) -> Result<()> {
        if self.owner().is_none() {
            return Err(self.fenced());
        }
        add(&mut self.shared.messages.lock())
    }

    /// Takes the messages that the closure has emitted.
    pub(crate) fn take_messages(&self) -> Messages {
        std::mem::take(&mut *self.shared.messages.lock())
    }

    pub(crate) fn retention(&self) -> Retention {
        *self.shared.retention.lock()
    }

    fn fenced(&self) -> Error {
        Error::Fenced { key: self.shared.key.clone(), version: self.shared.version }
    }
}

// A caught panic is harmless for the same reasons as for the store (see `store`). The only state that an attempt adds is the
// retention, which is always replaced as a whole.
impl UnwindSafe for Attempt {}
impl RefUnwindSafe for Attempt {}

impl fmt::Debug for Attempt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Attempt")
            .field("key", &self.shared.key)
            .field("number", &self.shared.number)
            .field("version", &self.shared.version)
            .finish_non_exhaustive()
    }
}

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
            RunError::Released(_) | RunError::InDoubt { .. } => ErrorKind::Effect,
        }
    }

    /// Whether the same call can succeed later: yes if the closure failed, and no if its result was not recorded. For
    /// an error of the store, see [`Error::is_retryable`].
    ///
    /// A retry after [`RunError::InDoubt`] is safe: it runs `reconcile`, runs the side effect again only under
    /// [`rerun`](crate::Operation::rerun), or is [`Error::InDoubt`], which is not retryable.
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
            RunError::InDoubt { error, release_failed } => {
                (in_doubt_text(release_failed.as_deref()), error.into())
            }
            RunError::Unrecorded { source, .. } => (String::from(UNRECORDED), source.into()),
        };
        Box::new(Boxed { text, source })
    }
}

const RELEASED: &str = "the side effect failed and did not happen";
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
            // The text includes the store's error itself.
            RunError::Store(error) | RunError::Unrecorded { source: error, .. } => error.source(),
            RunError::Released(_) | RunError::InDoubt { .. } => None,
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
