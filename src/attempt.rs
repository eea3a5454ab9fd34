//! [`Attempt`]: the handle to one attempt, which the closures of an operation receive.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::doubt::Doubt;
use crate::engine::{Engine, HashedKey, Terms};
use crate::error::{Error, Result};
use crate::format::record::Typing;
use crate::key::{Key, OwnedKey};
use crate::lease::Lease;
use crate::messages::Messages;
use crate::options::{check_renewal, operation_retention};
use crate::record::Retention;
use crate::status::Version;
use crate::sync::Mutex;
use crate::typed;

/// A handle to an attempt: the one that the closure of [`run`](crate::Operation::run) runs, or the one that the closure
/// of [`reconcile`](crate::Operation::reconcile) searches for.
///
/// It can be cloned, sent to other threads and kept. It does not keep the store open. After the attempt has ended, its calls
/// are [`Error::Fenced`].
///
/// An operation of several side effects runs each of them as a [`step`](Attempt::step). The closures of a step receive a
/// handle, too: its key, token, number and version are those of the step, and its other calls are about the operation.
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
    /// The key of the operation or the step.
    key: OwnedKey,
    /// The hash of the operation's key.
    hash: u128,
    number: u32,
    version: Version,
    of: Of,
}

/// What an attempt is at.
#[expect(clippy::large_enum_variant, reason = "there is one for each attempt, behind an `Arc`")]
enum Of {
    Operation {
        terms: Terms,
        /// The retention of the completed operation. Read after the closure has returned.
        retention: Mutex<Retention>,
        /// The messages that are committed with the completion. Read after the closure has returned.
        messages: Mutex<Messages>,
        /// The codec of the operation.
        typing: Option<Typing>,
    },
    Step {
        operation: Attempt,
    },
}

impl Of {
    fn operation(terms: &Terms, retention: Retention, messages: Messages) -> Of {
        let (typing, messages) = (messages.typing(), Mutex::new(messages));
        Of::Operation { terms: *terms, retention: Mutex::new(retention), messages, typing }
    }
}

impl Attempt {
    pub(crate) fn of_lease(engine: &Arc<Engine>, lease: &Lease) -> Attempt {
        let of = Of::operation(lease.terms(), lease.terms().retention, lease.new_messages());
        Attempt::new(engine, lease.hashed_key(), (lease.attempt(), lease.version()), of)
    }

    pub(crate) fn of_doubt(engine: &Arc<Engine>, doubt: &Doubt) -> Attempt {
        let of = Of::operation(doubt.terms(), engine.settings().terms.retention, doubt.new_messages());
        Attempt::new(engine, doubt.hashed_key(), (doubt.attempt(), doubt.version()), of)
    }

    /// The attempt at the step of this key, which is made in this attempt at the operation.
    pub(crate) fn at_step(
        &self,
        engine: &Arc<Engine>,
        key: Key<'_>,
        (number, version): (u32, Version),
    ) -> Attempt {
        let of = Of::Step { operation: self.clone() };
        Attempt::new(engine, HashedKey { key, hash: self.shared.hash }, (number, version), of)
    }

    fn new(
        engine: &Arc<Engine>,
        HashedKey { key, hash }: HashedKey<'_>,
        (number, version): (u32, Version),
        of: Of,
    ) -> Attempt {
        let (engine, key) = (Arc::downgrade(engine), key.to_owned());
        Attempt { shared: Arc::new(Shared { engine, key, hash, number, version, of }) }
    }

    /// The attempt at the operation, of an attempt at a step; otherwise itself.
    pub(crate) fn at_operation(&self) -> &Attempt {
        match &self.shared.of {
            Of::Operation { .. } => self,
            Of::Step { operation } => operation,
        }
    }

    /// The terms of the operation, and its retention as the closure has set it.
    fn terms_and_retention(&self) -> (&Terms, &Mutex<Retention>) {
        match &self.shared.of {
            Of::Operation { terms, retention, .. } => (terms, retention),
            Of::Step { operation } => operation.terms_and_retention(),
        }
    }

    pub(crate) fn terms(&self) -> &Terms {
        self.terms_and_retention().0
    }

    /// Returns the engine, or an error if the store is gone.
    pub(crate) fn engine(&self) -> Result<Arc<Engine>> {
        self.shared.engine.upgrade().ok_or_else(|| self.fenced())
    }

    /// The key of the operation or the step. For the outside world, use the [`token`](Attempt::token) instead.
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

    /// The key, with the hash of the operation's key.
    pub(crate) fn hashed_key(&self) -> HashedKey<'_> {
        HashedKey { key: self.key(), hash: self.shared.hash }
    }

    /// Returns the attempt at the operation and the engine, if that attempt owns the operation and the store still exists.
    fn owner(&self) -> Option<(&Attempt, Arc<Engine>)> {
        let operation = self.at_operation();
        let Shared { engine, version, .. } = &*operation.shared;
        let engine = engine.upgrade()?;
        engine.is_current(operation.hashed_key(), *version).then_some((operation, engine))
    }

    /// Moves the deadline of the attempt's lease to `lease` from now: see [`Lease::renew`].
    ///
    /// # Errors
    ///
    /// Those of [`Lease::renew`]. An attempt in doubt has no lease, and is [`Error::Fenced`]. So is every attempt of a store
    /// that is closed or was opened by the parent of this process.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let Some((operation, engine)) = self.owner() else { return Err(self.fenced()) };
        let lease_ms = check_renewal(lease, self.retention())?;
        engine.renew(operation.hashed_key(), operation.version(), lease_ms)
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
        let Some((_, engine)) = self.owner() else { return Err(self.fenced()) };
        *self.terms_and_retention().1.lock() = operation_retention(retention, engine.settings())?;
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
    /// [`Error::Option`] also for the handle that the closure of a step receives: a later attempt does not run a finished step
    /// again, so its message would be lost.
    pub fn emit<T: Serialize + DeserializeOwned>(&self, topic: &str, message: &T) -> Result<()> {
        // Encoded before the lock is taken, because that runs the caller's code.
        let Of::Operation { typing, .. } = &self.shared.of else { return Err(in_step()) };
        let encoded = typed::encode_as(*typing, message, usize::MAX);
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
        let Of::Operation { messages, .. } = &self.shared.of else { return Err(in_step()) };
        if self.owner().is_none() {
            return Err(self.fenced());
        }
        add(&mut messages.lock())
    }

    /// Takes the messages that the closure has emitted.
    pub(crate) fn take_messages(&self) -> Messages {
        match &self.shared.of {
            Of::Operation { messages, .. } => std::mem::take(&mut *messages.lock()),
            Of::Step { .. } => Messages::new(),
        }
    }

    pub(crate) fn retention(&self) -> Retention {
        *self.terms_and_retention().1.lock()
    }

    fn fenced(&self) -> Error {
        Error::Fenced { key: self.shared.key.clone(), version: self.shared.version }
    }
}

/// The error of a message that the closure of a step emits.
fn in_step() -> Error {
    let reason = "the closure of a step emits no messages, because a later attempt does not run it again; emit in the \
                  closure of the operation"
        .to_owned();
    Error::Option { option: "emit", reason }
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
