//! The right to resolve a doubt: what a begin returns when it is unknown whether an earlier attempt's side effect happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{Applied, Engine, Grant, HashedKey, InClosure, Request, Terms};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::record::Value;
use crate::held_grant::HeldGrant;
use crate::key::Key;
use crate::lease::Lease;
use crate::messages::Messages;
use crate::status::Version;

/// The right to resolve a doubt: an earlier attempt began, and it is unknown whether its side effect happened.
///
/// Find out from an authoritative source, then call [`complete`](Doubt::complete), [`release`](Doubt::release) or
/// [`begin_again`](Doubt::begin_again). While the `Doubt` is alive, every other caller gets
/// [`Begin::InProgress`](crate::Begin::InProgress). Dropping it leaves the operation in doubt, for the next caller.
///
/// Holding a doubt takes no space in the file, but ending it does. A part of the file is reserved for that, and is used
/// when the store is too full to begin anything new: see [`complete`](Doubt::complete).
///
/// ```
/// use oncekey::{Begin, Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// drop(store.begin("ship:7", Fingerprint::NONE)?); // as a crash would
/// let Begin::InDoubt(mut doubt) = store.begin("ship:7", Fingerprint::NONE)? else { unreachable!() };
/// // The carrier has it.
/// doubt.complete(b"parcel 99")?;
/// assert_eq!(store.get("ship:7")?.result(), Some(&b"parcel 99"[..]));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[must_use = "a doubt that is dropped leaves its operation in doubt"]
pub struct Doubt {
    held: HeldGrant,
}

impl Doubt {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, grant: Grant) -> Doubt {
        Doubt { held: HeldGrant::new(engine, key, terms, grant) }
    }

    pub(crate) fn held(&mut self) -> &mut HeldGrant {
        &mut self.held
    }

    /// Marks this thread as inside the closure that reconciles the attempt.
    pub(crate) fn enter_closure(&self) -> InClosure {
        self.held.enter_closure()
    }

    /// A collection for the messages that are committed with the completion.
    pub(crate) fn new_messages(&self) -> Messages {
        self.held.new_messages()
    }

    pub(crate) fn hashed_key(&self) -> HashedKey<'_> {
        self.held.hashed_key()
    }

    /// The key of the operation.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.held.key.as_key()
    }

    /// The number of the attempt that is in doubt, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.held.grant.attempt
    }

    /// The version of the begin of that attempt.
    #[must_use]
    pub fn version(&self) -> Version {
        self.held.grant.version
    }

    /// Sets how long the operation is remembered after this doubt, or the attempt that it [begins
    /// again](Doubt::begin_again), has completed it. See [`Lease::retain`].
    ///
    /// # Errors
    ///
    /// Those of [`Lease::retain`].
    pub fn retain(&mut self, retention: Duration) -> Result<()> {
        self.held.retain(retention)
    }

    /// Records that the side effect happened, with this result. Returns the record's version once the record is as durable
    /// as was asked for. Completing once more with the same bytes returns the same version and writes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Lease::complete`]; where the lease would still be usable, so is the doubt. A step that is in doubt does not
    /// prevent this call: its caller has found out that the operation as a whole is done. In addition:
    ///
    /// - [`Error::Fenced`]: also if the thread that ran the attempt completed it meanwhile.
    /// - [`Error::Full`]: the space that is reserved for ending doubts is used up too. Nothing was recorded. The doubt is
    ///   still usable and can be completed once there is space.
    pub fn complete(&mut self, result: &[u8]) -> Result<Version> {
        self.held.complete(Value::bytes(result))
    }

    /// Records that the side effect happened, with this result, and commits `messages` with it. Otherwise as
    /// [`complete`](Doubt::complete).
    ///
    /// The messages that the attempt in doubt would have emitted are gone, so the call that completes it has to emit them. For an
    /// operation with [`on_complete`](crate::Operation::on_complete), a retry of its call does; this is for an operator's tool.
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, Messages, Store};
    ///
    /// let store = Store::in_memory()?;
    /// drop(store.begin("ship:7", Fingerprint::NONE)?); // as a crash would
    /// let Begin::InDoubt(mut doubt) = store.begin("ship:7", Fingerprint::NONE)? else { unreachable!() };
    /// let mut messages = Messages::new();
    /// messages.emit_bytes("shipped", b"order 7")?;
    /// doubt.complete_with(b"parcel 99", messages)?;
    /// assert_eq!(store.stats().messages, 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`complete`](Doubt::complete). [`Error::TooLarge`] also if the messages and the result do not fit one frame, a
    /// quarter of a segment. The doubt is still usable.
    pub fn complete_with(&mut self, result: &[u8], messages: Messages) -> Result<Version> {
        self.held.messages = messages;
        self.held.complete(Value::bytes(result))
    }

    /// Records a typed result, as [`complete`](Doubt::complete) does for bytes. The codec is the one that was recorded
    /// with the attempt, or the default one. For an operator's tool that has found out the result.
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("charge:1").run(|_| Err::<u64, _>("timed out"));
    /// assert!(lost.is_err());
    /// let Begin::InDoubt(mut doubt) = store.begin("charge:1", Fingerprint::NONE)? else { unreachable!() };
    /// doubt.resolve(&17_u64)?;
    /// let retried = store.operation("charge:1").run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(retried, Ok(Outcome::AlreadyDone(17))));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`complete`](Doubt::complete), and [`Error::Encode`]: the result cannot be encoded, its bytes would
    /// decode to a different value, or the codec is not one of this crate's. The doubt is still usable.
    pub fn resolve<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        self.held.complete_value(result)
    }

    /// Records a typed result that is encoded with `codec`. An attempt that was begun by an
    /// [`Operation`](crate::Operation) has a [codec](crate::Operation::codec), which must be the same one.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`](Doubt::resolve). A different codec is [`Error::Encode`].
    pub fn resolve_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        self.held.complete_value_with(codec, result)
    }

    /// Records that the side effect happened, without its result: see [`Lease::complete_without_result`].
    ///
    /// # Errors
    ///
    /// Those of [`complete`](Doubt::complete).
    pub fn complete_without_result(&mut self) -> Result<Version> {
        self.held.complete_without_result()
    }

    /// Records that the side effect certainly did not happen, and does not begin another attempt: the key is absent again.
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`]: this doubt was completed before, and the completion stands.
    /// - [`Error::HasSteps`]: a step of the operation has happened or may have happened. Nothing was recorded.
    /// - [`Error::Fenced`]: another caller ended the operation meanwhile. Nothing was recorded.
    /// - [`Error::Replaced`]: the release was recorded, in the open file, to which the path no longer leads.
    /// - The other errors of [`complete`](Doubt::complete), including [`Error::Full`]. The operation is in doubt as
    ///   before, for the next caller.
    pub fn release(mut self) -> Result<()> {
        self.held.release()
    }

    /// Begins the next attempt, because the side effect certainly did not happen or is allowed to happen again.
    ///
    /// # Errors
    ///
    /// - [`Error::Fenced`]: the thread that ran the attempt completed it meanwhile, or another caller ended the operation.
    /// - [`Error::Conflict`]: this doubt was completed before.
    /// - [`Error::Full`]: another attempt needs as much space as a [`begin`](crate::Store::begin). The operation is in doubt
    ///   as before, for the next caller.
    /// - [`Error::Replaced`]: the path no longer leads to the open file. The operation is in doubt, for the next caller.
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk failed.
    /// - [`Error::VersionsExhausted`], [`Error::Forked`].
    pub fn begin_again(self) -> Result<Lease> {
        self.held.check_not_completed()?;
        let HeldGrant { engine, key, terms, grant, .. } = &self.held;
        let terms = &Terms { typing: grant.typing.or(terms.typing), ..*terms };
        let grant = engine.begin_again(grant.of(key.as_key()), grant.version, terms)?;
        Ok(Lease::new(engine, key.as_key(), terms, grant))
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.held.terms
    }

    /// Records the result as the end of this doubt. If the key has become absent, records a begin and a completion in
    /// one write.
    pub(crate) fn record_applied(
        &self,
        request: Request,
        value: Value<'_>,
        messages: &Messages,
    ) -> Result<Applied> {
        let HeldGrant { engine, key, terms, grant, .. } = &self.held;
        let ending = (value, messages.list());
        engine.record_applied(grant.of(key.as_key()), grant, request, ending, terms)
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Doubt")
            .field("key", &self.held.key)
            .field("attempt", &self.attempt())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
