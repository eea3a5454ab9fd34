//! The typed interface: run a side effect once, and return its result to every retry. This file owns the builder,
//! [`Operation`], and what it passes to the engine ([`Terms`], [`Request`]); `run` has the calls with typed results.

mod emit;
mod run;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attempt::Attempt;
use crate::begin::Begin;
use crate::codec::{Codec, DefaultCodec};
use crate::completion::Recorded;
use crate::engine::{Durability, Engine, Found, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::{Typing, Value};
use crate::key::{AnyKey, Fingerprint};
use crate::options::{check_lease, check_retention, operation_retention};
#[cfg(doc)]
use crate::outcome::{Finding, Reconciled, RunError};
use crate::policy::{KeepInDoubt, NoMessages, Reconcile, Refuse, ReleaseIf, Rerun};
use crate::side_effect::SideEffect;
use crate::sync::Patience;

/// A builder for one operation: a side effect that must run only once under its key.
/// [`Store::operation`](crate::Store::operation) returns it, and [`run`](Operation::run) executes it.
///
/// | to say | call | without it |
/// |---|---|---|
/// | what the request is | [`request`](Operation::request) | the key alone identifies the request |
/// | what to do about a doubt | [`reconcile`](Operation::reconcile) or [`rerun`](Operation::rerun) | [`Error::InDoubt`] |
/// | which errors mean that nothing happened | [`release_if`](Operation::release_if) | every error leaves a doubt |
/// | which messages to publish once it is done | [`emits`](Operation::emits) and [`on_complete`](Operation::on_complete) or [`Attempt::emit`] | none |
/// | how long to wait for another thread | [`wait`](Operation::wait) | [`Error::InProgress`] at once |
/// | what any process needs to go on with it | [`input`](Operation::input) | only the caller can retry it |
/// | how long to remember it | [`retain`](Operation::retain) | [`Options::retention`](crate::Options::retention) |
///
/// ```
/// use oncekey::{Outcome, Store};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Debug, PartialEq)]
/// struct Receipt { id: u64 }
///
/// # struct Gateway;
/// # #[derive(Debug)] enum GatewayError { Connect, Timeout }
/// # impl GatewayError { fn is_connect(&self) -> bool { matches!(self, GatewayError::Connect) } }
/// # impl std::fmt::Display for GatewayError { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") } }
/// # impl Gateway {
/// #     fn charge(&self, _token: String, _cents: u64) -> Result<Receipt, GatewayError> { Ok(Receipt { id: 17 }) }
/// #     fn find(&self, _token: String) -> Result<Option<Receipt>, GatewayError> { Ok(None) }
/// # }
/// # let (gateway, account, cents) = (Gateway, 42, 1_000);
/// let store = Store::in_memory()?;
/// let outcome = store
///     .operation("charge:order-1729")
///     .request(&("charge", account, cents))
///     .reconcile(|attempt| gateway.find(attempt.token()))
///     .release_if(|error: &GatewayError| error.is_connect())
///     .run(|attempt| gateway.charge(attempt.token(), cents))?;
///
/// match outcome {
///     Outcome::Done(receipt) => assert_eq!(receipt.id, 17),         // this call charged
///     Outcome::AlreadyDone(receipt) => assert_eq!(receipt.id, 17),  // an earlier call did; the same receipt
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an operation does nothing until it is run"]
pub struct Operation<'a, C = DefaultCodec, D = Refuse, R = KeepInDoubt, M = NoMessages> {
    engine: &'a Arc<Engine>,
    key: AnyKey<'a>,
    effect: SideEffect<C, D, R, M>,
    unchecked: Unchecked,
    /// The input, or why it cannot be stored.
    input: Option<Result<StoredInput>>,
}

/// An encoded input.
#[derive(Clone)]
pub(crate) struct StoredInput {
    bytes: Vec<u8>,
    typing: Typing,
}

impl StoredInput {
    pub(crate) fn value(&self) -> Value<'_> {
        Value::typed(&self.bytes, self.typing)
    }
}

/// The terms that the caller set, before [`Operation::terms`] has checked them.
#[derive(Debug, Clone, Copy, Default)]
struct Unchecked {
    retention: Option<Duration>,
    result_retention: Option<Duration>,
    lease: Option<Duration>,
    wait: Option<Duration>,
    durability: Option<Durability>,
    emits_bytes: usize,
}

/// What an entry of a batch needs of an operation.
pub(crate) struct Parts<'a> {
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) key: AnyKey<'a>,
    pub(crate) terms: Result<(Request, Terms)>,
}

impl<'a> Operation<'a> {
    pub(crate) fn new(engine: &'a Arc<Engine>, key: AnyKey<'a>) -> Operation<'a> {
        let (effect, unchecked) = (SideEffect::new(), Unchecked::default());
        Operation { engine, key, effect, unchecked, input: None }
    }
}

impl<'a> Operation<'a> {
    /// Goes on with the operation of this record, and begins no other one.
    pub(crate) fn going_on(engine: &'a Arc<Engine>, key: AnyKey<'a>, begun: &Found) -> Operation<'a> {
        let mut operation = Operation::new(engine, key);
        operation.effect.go_on_with(begun);
        operation
    }
}

impl<'a, C, R, M> Operation<'a, C, Refuse, R, M> {
    /// Resolves a doubt with `reconcile`, a closure that finds out whether the side effect of the attempt in doubt happened.
    ///
    /// The closure runs only if an earlier attempt is in doubt. Only one caller at a time runs it for a key, and each
    /// call runs it at most once; a second doubt in the same call is [`Error::InDoubt`]. The closure receives the
    /// [`Attempt`] in doubt and searches by its [`token`](Attempt::token). If the closure panics, the operation stays
    /// in doubt.
    ///
    /// Its answer must be **authoritative**, because the call then acts on it:
    ///
    /// | returned | the call |
    /// |---|---|
    /// | `Some(result)`, [`Reconciled::Applied`] | records the result and returns it as [`Outcome::AlreadyDone`](crate::Outcome::AlreadyDone) |
    /// | `None`, [`Reconciled::NotApplied`] | runs the side effect, as the next attempt |
    /// | `Err(error)`, [`Reconciled::Unknown`] | changes nothing and is [`Error::InDoubt`] with the reason |
    ///
    /// Do not return `None` after searching only a cache, or a system that may still process what the attempt sent.
    /// [`Finding`] lists the types that the closure can return. A closure that ends in `Ok(..)` needs a type
    /// annotation: `|attempt| -> anyhow::Result<_> { .. Ok(found) }`.
    ///
    /// Other callers can change the key while the closure runs. After `Applied`, the call never runs the side effect.
    /// It records the result even if the key has become absent meanwhile. If a result has been recorded meanwhile, the
    /// call returns that one. If another attempt owns the key by then, or the result cannot be recorded, the call
    /// returns the closure's result in [`RunError::Unrecorded`].
    pub fn reconcile<F, Found>(self, reconcile: F) -> Operation<'a, C, Reconcile<F>, R, M>
    where
        F: FnOnce(&Attempt) -> Found,
    {
        self.with_effect(|effect| effect.with_doubt(Reconcile::new(reconcile)))
    }

    /// Resolves a doubt by running the side effect again. For a side effect that is itself idempotent.
    ///
    /// The begin is then written but not synced, so the whole operation takes one sync instead of two. If power is lost before
    /// the completion, the begin can be lost, and the next call runs the side effect as if for the first time. Therefore
    /// **every caller of the key must use `rerun`**: any other caller would not see the doubt.
    pub fn rerun(self) -> Operation<'a, C, Rerun, R, M> {
        self.with_effect(|effect| effect.with_doubt(Rerun))
    }
}

impl<'a, C, D, M> Operation<'a, C, D, KeepInDoubt, M> {
    /// Releases the key if `nothing_happened` returns true for the error of the closure: the side effect certainly did not
    /// happen, for instance because the connection was refused or the request was found invalid. The call returns
    /// [`RunError::Released`]. Every other error leaves the operation in doubt, which is the safe choice.
    ///
    /// Only the error that the closure returns is examined. So run one side effect in a closure: if it sends two requests, a
    /// refused connection for the second one says nothing about the first.
    ///
    /// ```
    /// use oncekey::{RunError, Status, Store};
    /// use std::io;
    ///
    /// let store = Store::in_memory()?;
    /// let refused = store
    ///     .operation("charge:1")
    ///     .release_if(|error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused)
    ///     .run(|_| Err::<u64, _>(io::Error::from(io::ErrorKind::ConnectionRefused)));
    /// assert!(matches!(refused, Err(RunError::Released(_))));
    /// assert_eq!(store.get("charge:1")?.status(), Status::Absent);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn release_if<E, F>(self, nothing_happened: F) -> Operation<'a, C, D, ReleaseIf<E, F>, M>
    where
        F: FnOnce(&E) -> bool,
    {
        self.with_effect(|effect| effect.with_release(ReleaseIf::new(nothing_happened)))
    }
}

impl<'a, C, D, R, M> Operation<'a, C, D, R, M> {
    fn with_effect<B, E, S, N>(
        self,
        change: impl FnOnce(SideEffect<C, D, R, M>) -> SideEffect<B, E, S, N>,
    ) -> Operation<'a, B, E, S, N> {
        let Operation { engine, key, effect, unchecked, input } = self;
        Operation { engine, key, effect: change(effect), unchecked, input }
    }

    /// Encodes and decodes results with `codec` instead of the default codec. The fingerprint of a request does not depend on
    /// the codec.
    pub fn codec<B: Codec>(self, codec: B) -> Operation<'a, B, D, R, M> {
        self.with_effect(|effect| effect.with_codec(codec))
    }

    /// Sets the request, so that a call with the same key and a different request is [`Error::Mismatch`].
    ///
    /// The store keeps a fingerprint of the request: a keyed hash of its names and values. The order of fields and of map
    /// entries and the width of integers do not change it. Include what identifies the intent, and leave out what differs
    /// from retry to retry (a timestamp, a trace id):
    ///
    /// ```
    /// use oncekey::{Error, Outcome, RunError, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let (account, cents) = (42, 1_000);
    /// let charged = store.operation("order-7").request(&("charge", account, cents)).run(|_| Ok::<u64, String>(17));
    /// assert!(matches!(charged, Ok(Outcome::Done(17))));
    /// let refunded = store.operation("order-7").request(&("refund", account, cents)).run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(refunded, Err(RunError::Store(Error::Mismatch { .. }))), "not the answer to the charge");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// When a new version of the program adds an optional field, put `#[serde(skip_serializing_if = "Option::is_none")]` on it:
    /// a skipped field does not count, a `None` does. Serialize a set whose order changes with
    /// [`unordered`](crate::unordered), or use a `BTreeSet`. If a new version changes the fingerprints of the same requests,
    /// accept the former ones with [`or_request`](Operation::or_request).
    ///
    /// A request whose `Serialize` fails, or that is nested more than 128 levels deep, is [`Error::Encode`] when the
    /// operation is executed.
    pub fn request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        self.effect.set_request(self.engine, self.key.as_key(), request);
        self
    }

    /// Also accepts operations that were recorded with the fingerprint of `request`. For a deployment that changes how
    /// requests are serialized.
    ///
    /// A new attempt is recorded with the fingerprint of [`request`](Operation::request) or
    /// [`fingerprint`](Operation::fingerprint), or without either with [`Fingerprint::NONE`].
    ///
    /// ```
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// let before = store.operation("order-7").request(&("charge", 42)).run(|_| Ok::<u64, String>(17));
    /// let retried = store
    ///     .operation("order-7")
    ///     .request(&("charge", 42, "EUR"))
    ///     .or_request(&("charge", 42))
    ///     .run(|_| Ok::<u64, String>(18));
    /// let charged = before.expect("the charge succeeds").into_inner();
    /// assert_eq!(retried.expect("the former request is accepted").into_inner(), charged);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn or_request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        self.effect.set_or_request(self.engine, self.key.as_key(), request);
        self
    }

    /// Stores what the operation is about, so that any process can go on with it: the whole order, and not only the id that
    /// identifies it.
    ///
    /// The input is stored with the first begin, in one write, and kept until the operation ends. Every attempt gets it from
    /// [`Attempt::input`]. [`Store::resume`](crate::Store::resume) needs only the key, for a worker that takes what
    /// [`Store::unfinished`](crate::Store::unfinished) lists after a crash. A later call does not change the input.
    ///
    /// Without a [`request`](Operation::request) or [`fingerprint`](Operation::fingerprint), the input is the request, too: a
    /// call with a different one is [`Error::Mismatch`]. Set a request if a part of the input differs from retry to retry.
    ///
    /// The input is encoded with the operation's codec, so choose a [`codec`](Operation::codec) before. What cannot be
    /// encoded, or would decode to a different value, is [`Error::Encode`] when the operation is executed, and nothing has
    /// begun. It may be as long as [`Options::max_result`](crate::Options::max_result) allows for a result; a longer one is
    /// [`Error::TooLarge`].
    ///
    /// ```
    /// use oncekey::{RunError, Store};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Order { id: String, items: Vec<String> }
    ///
    /// let store = Store::in_memory()?;
    /// let order = Order { id: "order-7".into(), items: vec!["lamp".into()] };
    /// let crashed = store.operation(&order.id).input(&order).rerun().run(|_| Err::<usize, _>("crashed"));
    /// assert!(matches!(crashed, Err(RunError::InDoubt { .. })));
    ///
    /// // A worker that knows nothing of the order:
    /// for operation in store.unfinished()? {
    ///     let operation = operation?;
    ///     let Some((order, resumed)) = store.resume::<Order>(operation.key())? else { continue };
    ///     let shipped = resumed.rerun().run(|_| Ok::<_, String>(order.items.len()));
    ///     assert_eq!(shipped.expect("it can be run again").into_inner(), 1);
    /// }
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn input<T: Serialize + DeserializeOwned>(mut self, input: &T) -> Self
    where
        C: Codec,
    {
        if !self.effect.has_request {
            self.effect.set_request(self.engine, self.key.as_key(), input);
            self.effect.has_request = false;
        }
        let limit_bytes = self.engine.settings().terms.max_result_bytes;
        let encoded = self.effect.encode(input, limit_bytes);
        let stored = encoded.map(|encoded| StoredInput { bytes: encoded.bytes, typing: encoded.typing });
        self.input = Some(stored.map_err(|unfit| unfit.into_error(self.key.as_key())));
        self
    }

    /// Puts the key into a scope: a tenant, an account, a consumer. The same key in two scopes is two operations; see
    /// [`Key`](crate::Key).
    pub fn scope<B: AsRef<[u8]> + ?Sized>(mut self, scope: &'a B) -> Self {
        self.key = self.key.scope(scope);
        self
    }

    /// Sets a fingerprint that the caller made itself, for instance with [`Store::fingerprint`](crate::Store::fingerprint),
    /// instead of a [`request`](Operation::request).
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.effect.set_fingerprint(fingerprint);
        self
    }

    /// Sets how long this operation, and its result with it, is remembered after its completion, instead of
    /// [`Options::retention`](crate::Options::retention). `Duration::MAX` means for ever. Shorter than a millisecond is
    /// [`Error::Option`].
    ///
    /// If the store was opened with a [result retention](crate::Options::result_retention) or a
    /// [lease](crate::Options::lease), these still apply, but no longer than `retention`.
    ///
    /// A key belongs to one intent for ever, however short the retention: the outside world has seen its
    /// [`token`](Attempt::token). Never use it for another intent.
    pub fn retain(mut self, retention: Duration) -> Self {
        self.unchecked.retention = Some(retention);
        self
    }

    /// Sets how long the result is kept after the completion, instead of
    /// [`Options::result_retention`](crate::Options::result_retention). Longer than the retention of the key is
    /// [`Error::Option`].
    pub fn retain_result(mut self, retention: Duration) -> Self {
        self.unchecked.result_retention = Some(retention);
        self
    }

    /// Sets the deadline of the attempt's lease, in store time from its begin. After the deadline, another caller can
    /// take over the operation. Read [`Options::lease`](crate::Options::lease) first. Shorter than a millisecond, or
    /// longer than the operation's retention, is [`Error::Option`].
    pub fn lease(mut self, lease: Duration) -> Self {
        self.unchecked.lease = Some(lease);
        self
    }

    /// Sets how long to wait while another thread of this process is running the operation or resolving a doubt about
    /// it. Without a `wait`, the call returns [`Error::InProgress`] at once.
    ///
    /// A completion, a release or a doubt ends the wait, and the call continues with the key's new state. The timeout
    /// applies once to the whole call, in real time, but not to this call's own writes and syncs.
    ///
    /// In the closure of [`run`](Operation::run) or [`reconcile`](Operation::reconcile), waiting for the key of that
    /// same call would never end, so it is [`Error::WouldWaitForItself`]. The store detects this only in the thread
    /// that runs the closure. Two cases are not detected, so only the timeout ends them: the closure waits for another
    /// thread that is waiting for the key, or the holder of a [`Lease`](crate::Lease) waits for its own key.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.unchecked.wait = Some(timeout);
        self
    }

    /// Sets how durable this operation's records are before its calls return, instead of
    /// [`Options::durability`](crate::Options::durability).
    pub fn durability(mut self, durability: Durability) -> Self {
        self.unchecked.durability = Some(durability);
        self
    }

    /// Sets the maximum length of this operation's result, in bytes, instead of
    /// [`Options::max_result`](crate::Options::max_result). More than that is [`Error::Option`].
    ///
    /// A begin sets aside space in the file for a result of this length. So a program with many operations in progress
    /// at a time, such as a consumer that begins a whole [`Batch`](crate::Batch), should set it to what their results
    /// need. A longer result is [`Error::TooLarge`].
    ///
    /// ```
    /// use oncekey::{Begin, Error, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let Begin::Acquired(mut lease) = store.operation("ship:7").max_result(16).begin()? else { unreachable!() };
    /// assert!(matches!(lease.complete(&[0; 17]), Err(Error::TooLarge { limit_bytes: 16, .. })));
    /// lease.complete(b"parcel 99")?;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn max_result(mut self, bytes: usize) -> Self {
        self.effect.set_max_result(bytes);
        self
    }

    fn terms(&self, begin_unsynced: bool) -> Result<Terms> {
        let defaults = self.engine.settings().terms;
        let retention = match (self.unchecked.retention, self.unchecked.result_retention) {
            (None, None) => defaults.retention,
            (Some(key), None) => operation_retention(key, self.engine.settings())?,
            (key, result) => {
                check_retention(key.unwrap_or(Duration::from_millis(defaults.retention.key_ms)), result)?
            }
        };
        let lease_ms = match self.unchecked.lease {
            Some(lease) => Some(check_lease(lease, retention)?),
            // The store's default is shortened, because it is not a mistake of the caller if that default exceeds the
            // retention of this operation.
            None => defaults.lease_ms.map(|lease_ms| lease_ms.min(retention.key_ms)),
        };
        let durability = self.unchecked.durability.unwrap_or(defaults.durability);
        let patience = self.unchecked.wait.map_or(Patience::None, Patience::of);
        let emits_bytes = self.unchecked.emits_bytes;
        let max_result_bytes = self.effect.max_result_bytes(self.engine, emits_bytes)?;
        let typing = self.effect.typing();
        Ok(Terms {
            durability,
            begin_unsynced,
            retention,
            lease_ms,
            typing,
            patience,
            max_result_bytes,
            emits_bytes,
        })
    }
}

impl<'a, C, D, R> Operation<'a, C, D, R, NoMessages> {
    /// Begins an attempt without running a closure: [`Store::begin`](crate::Store::begin) with the request, terms and codec of
    /// this operation. For a side effect that ends elsewhere, in another function or thread.
    ///
    /// `reconcile`, `rerun` and `release_if` do not apply: a doubt is returned as [`Begin::InDoubt`].
    ///
    /// # Errors
    ///
    /// Those of [`Store::begin`](crate::Store::begin). [`Error::Option`]: a setting of this operation has an invalid
    /// value. [`Error::Encode`]: the request cannot be serialized. [`Error::WouldWaitForItself`]: see
    /// [`wait`](Operation::wait).
    pub fn begin(self) -> Result<Begin> {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let input = self.input.transpose()?;
        let input = input.as_ref().map(StoredInput::value);
        let request = self.effect.request?;
        let began = self.engine.begin_with(self.key.as_key(), request, &terms, true, input)?;
        Ok(Begin::new(self.engine, self.key.as_key(), &terms, began))
    }

    /// Records the begin and the completion in one write: [`Store::record`](crate::Store::record) with the request and
    /// terms of this operation. `result` is recorded as bytes, without a codec.
    ///
    /// # Errors
    ///
    /// Those of [`Store::record`](crate::Store::record), and [`Error::Option`], [`Error::Encode`] and
    /// [`Error::WouldWaitForItself`] as for [`begin`](Operation::begin).
    pub fn record(self, result: &[u8]) -> Result<Recorded> {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let value = Value::bytes(result);
        let key = self.key.as_key();
        Ok(Recorded::new(key, self.engine.record(key, self.effect.request?, value, &[], &terms)?))
    }

    /// Takes the operation apart, for an entry of a batch.
    pub(crate) fn into_parts(self, begin_unsynced: bool) -> Parts<'a> {
        let terms = self.terms(begin_unsynced);
        let terms = self.effect.request.and_then(|request| Ok((request, terms?)));
        let reason = || "a batch stores no inputs; begin this operation by a call of its own".into();
        let terms = match self.input {
            Some(_) => Err(Error::Option { option: "input", reason: reason() }),
            None => terms,
        };
        Parts { engine: self.engine, key: self.key, terms }
    }
}

impl<C, D, R, M> fmt::Debug for Operation<'_, C, D, R, M> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Operation")
            .field("key", &self.key)
            .field("terms", &self.unchecked)
            .finish_non_exhaustive()
    }
}
