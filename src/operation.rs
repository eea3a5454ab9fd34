//! The typed interface: run a side effect once, and give every retry its result.

mod run;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::codec::{Codec, DEFAULT_CODEC_ID, DefaultCodec};
use crate::completion::Recorded;
use crate::engine::{Durability, Engine, Request, Terms};
use crate::error::{Error, Result};
use crate::fingerprint::canonical;
use crate::format::record::{Typing, Value};
use crate::key::{AnyKey, Fingerprint};
use crate::lease::Begin;
use crate::options::{check_lease, check_retention, own_retention};
use crate::outcome::Attempt;
#[cfg(doc)]
use crate::outcome::{Finding, Reconciled, RunError};
use crate::policy::{KeepInDoubt, Reconcile, Refuse, ReleaseIf, Rerun};
use crate::sync::Patience;
use crate::typed::{BY_CALLER, BY_MEANING};

/// A side effect to be run once, under a key. Made by [`Store::operation`](crate::Store::operation), ended by
/// [`run`](Operation::run).
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
///     Outcome::AlreadyDone(receipt) => assert_eq!(receipt.id, 17),  // an earlier one did; the same receipt
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an operation does nothing until it is run"]
pub struct Operation<'a, C = DefaultCodec, D = Refuse, R = KeepInDoubt> {
    engine: &'a Arc<Engine>,
    key: AnyKey<'a>,
    request: Result<Request>,
    /// How the fingerprint was made, and the codec's number, if there is a codec.
    scheme: u8,
    codec_id: Option<u8>,
    asked: Asked,
    codec: C,
    doubt: D,
    release: R,
}

/// What was asked for, before it has been checked.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    retention: Option<Duration>,
    result_retention: Option<Duration>,
    lease: Option<Duration>,
    wait: Option<Duration>,
    durability: Option<Durability>,
}

impl<'a> Operation<'a> {
    pub(crate) fn new(engine: &'a Arc<Engine>, key: AnyKey<'a>) -> Operation<'a> {
        Operation {
            engine,
            key,
            request: Ok(Fingerprint::NONE.into()),
            scheme: BY_CALLER,
            codec_id: DEFAULT_CODEC_ID,
            asked: Asked::default(),
            codec: DefaultCodec::default(),
            doubt: Refuse,
            release: KeepInDoubt,
        }
    }
}

impl<'a, C, R> Operation<'a, C, Refuse, R> {
    /// Asks `reconcile` when an earlier attempt is in doubt: did its side effect happen? It is only asked then, one caller at
    /// a time, and must be **authoritative**: [`Reconciled::NotApplied`] runs the side effect again. A look into a cache,
    /// or into a system that may yet process what was sent, is not enough; [`Reconciled::Unknown`] leaves everything as it is
    /// and is [`Error::InDoubt`], which carries the reason.
    ///
    /// It returns an `Option<T>`, a `Result<Option<T>, E>` or a [`Reconciled<T>`](Reconciled): see [`Finding`]. A closure that
    /// ends in `Ok(..)` names its error: `|attempt| -> anyhow::Result<_> { .. Ok(found) }`. It sees the
    /// [`Attempt`] that is in doubt; search by its [`token`](Attempt::token). If it panics, the doubt stays.
    ///
    /// What it says holds for the attempt that it was asked about, whatever others do to the key meanwhile. After
    /// [`Reconciled::Applied`] the call never runs the side effect: the result is recorded, also if the doubt has gone and
    /// the key is absent; a result that is recorded by then is given instead; and if another attempt has the key, or
    /// the result cannot be recorded, it comes back in [`RunError::Unrecorded`]. It is asked at most once in a call: a second
    /// doubt in that call is [`Error::InDoubt`].
    pub fn reconcile<F, Found>(self, reconcile: F) -> Operation<'a, C, Reconcile<F>, R>
    where
        F: FnOnce(&Attempt) -> Found,
    {
        self.with_doubt(Reconcile::new(reconcile))
    }

    /// Runs the side effect again when an earlier attempt is in doubt, because it is itself idempotent.
    ///
    /// The begin is then written and not synced, so that the whole operation takes one sync and not two: if power is lost in
    /// between, nothing remembers that it began, and the next call simply runs it again. For that very reason
    /// **every caller of the key must use `rerun`**: to another one, a begin that a crash took back looks as if the
    /// side effect had never been tried.
    pub fn rerun(self) -> Operation<'a, C, Rerun, R> {
        self.with_doubt(Rerun)
    }
}

impl<'a, C, D> Operation<'a, C, D, KeepInDoubt> {
    /// Frees the key where `nothing_happened` says of the closure's error that the side effect certainly did not happen: the
    /// connection was refused, the request was found invalid. Every other error leaves the operation in doubt, because that
    /// fails safe.
    ///
    /// It judges the whole closure by its last error. So put one side effect into a closure: where two requests are sent,
    /// a refused connection of the second says nothing about the first.
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
    pub fn release_if<E, F>(self, nothing_happened: F) -> Operation<'a, C, D, ReleaseIf<E, F>>
    where
        F: FnOnce(&E) -> bool,
    {
        let Operation { engine, key, request, scheme, codec_id, asked, codec, doubt, .. } = self;
        let release = ReleaseIf::new(nothing_happened);
        Operation { engine, key, request, scheme, codec_id, asked, codec, doubt, release }
    }
}

impl<'a, C, D, R> Operation<'a, C, D, R> {
    fn with_doubt<E>(self, doubt: E) -> Operation<'a, C, E, R> {
        let Operation { engine, key, request, scheme, codec_id, asked, codec, release, .. } = self;
        Operation { engine, key, request, scheme, codec_id, asked, codec, doubt, release }
    }

    /// Encodes results with `codec` instead of the default. The fingerprint of a request does not depend on it.
    pub fn codec<B: Codec>(self, codec: B) -> Operation<'a, B, D, R> {
        let Operation { engine, key, request, scheme, asked, doubt, release, .. } = self;
        Operation { engine, key, request, scheme, codec_id: Some(B::ID), asked, codec, doubt, release }
    }

    /// The request: the same key with another request is [`Error::Mismatch`].
    ///
    /// Its fingerprint is made of what the request means, not of its bytes: the order of fields, of map entries and the
    /// width of integers do not matter, names and values do. Name what identifies the intent, and leave out what differs from
    /// try to try (a timestamp, a trace id):
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
    /// An optional field that a new version adds carries `#[serde(skip_serializing_if = "Option::is_none")]`, so that requests
    /// without it stay what they were: a skipped field is nothing, a `None` is a value. A set whose order changes is written
    /// with [`unordered`](crate::unordered), or is a `BTreeSet`. When a new version makes other fingerprints of the same
    /// requests, [`or_request`](Operation::or_request) accepts the former ones.
    ///
    /// What cannot be taken apart (nested deeper than 128, an error of its `Serialize`) is [`Error::Encode`] when the operation
    /// is run.
    pub fn request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        let fingerprint = self.fingerprint_of(request);
        self.request = fingerprint.map(|fingerprint| Request { fingerprint, or: self.second() });
        self.scheme = BY_MEANING;
        self
    }

    /// Accepts the fingerprint of `request`, too, for what is recorded already: for a deploy that changes how a request is
    /// written down. What begins now is recorded with [`request`](Operation::request) or
    /// [`fingerprint`](Operation::fingerprint), or, without either, with none.
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
    /// assert_eq!(retried.expect("the same request").into_inner(), before.expect("performed").into_inner());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn or_request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        let or = self.fingerprint_of(request);
        self.request = self.request.and_then(|first| Ok(Request { or: Some(or?), ..first }));
        self
    }

    fn second(&self) -> Option<Fingerprint> {
        self.request.as_ref().ok().and_then(|request| request.or)
    }

    fn fingerprint_of<T: Serialize + ?Sized>(&self, request: &T) -> Result<Fingerprint> {
        let mut bytes = Vec::new();
        match canonical(request, &mut bytes) {
            Ok(()) => Ok(self.engine.fingerprint(&bytes)),
            Err(error) => Err(Error::encode(self.key.as_key(), error.into())),
        }
    }

    /// Puts the key into a scope: a tenant, an account, a consumer.
    pub fn scope<B: AsRef<[u8]> + ?Sized>(mut self, scope: &'a B) -> Self {
        self.key = self.key.scope(scope);
        self
    }

    /// The fingerprint of the request, where the caller makes it itself. See [`request`](Operation::request).
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.request = Ok(Request { fingerprint, or: self.second() });
        self.scheme = BY_CALLER;
        self
    }

    /// How long this operation is remembered, and its result with it, instead of
    /// [`Options::retention`](crate::Options::retention); `Duration::MAX` is for ever. The key of an intent is for ever, however
    /// long it is remembered here: the outside world has seen its [`token`](Attempt::token), so never use it for another
    /// intent. A result retention that the
    /// store was opened with holds all the same, and is cut to this if it is longer; so is a lease.
    pub fn retain(mut self, retention: Duration) -> Self {
        self.asked.retention = Some(retention);
        self
    }

    /// How long its result is kept, instead of
    /// [`Options::result_retention`](crate::Options::result_retention). Longer than its key is [`Error::Option`].
    pub fn retain_result(mut self, retention: Duration) -> Self {
        self.asked.result_retention = Some(retention);
        self
    }

    /// After how long the attempt may be taken over by somebody else who asks. Read
    /// [`Options::lease`](crate::Options::lease) first. Longer than the operation's retention is [`Error::Option`].
    pub fn lease(mut self, lease: Duration) -> Self {
        self.asked.lease = Some(lease);
        self
    }

    /// How long to wait while another thread of this process is at it, instead of [`Error::InProgress`] at once.
    /// Waiters are woken by a completion, a release or a doubt, and then see for themselves. It is counted once for the
    /// whole call, and is no limit for this call's own writes and syncs.
    ///
    /// From the closure of [`run`](Operation::run) or of [`reconcile`](Operation::reconcile), a wait for the key of that
    /// very call would never end: it is [`Error::WouldWaitForItself`]. That is known only in the thread that the closure
    /// runs in. If the closure waits for a thread that waits for the key, or the holder of a [`Lease`](crate::Lease) waits for its own
    /// key, only the wait's limit ends that.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.asked.wait = Some(timeout);
        self
    }

    /// When this operation's records are durable, instead of [`Options::durability`](crate::Options::durability).
    pub fn durability(mut self, durability: Durability) -> Self {
        self.asked.durability = Some(durability);
        self
    }

    /// Begins, on bytes: [`Store::begin`](crate::Store::begin) with everything that was asked for here.
    ///
    /// # Errors
    ///
    /// As [`Store::begin`](crate::Store::begin), and [`Error::Option`].
    pub fn begin(self) -> Result<Begin> {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let began = self.engine.begin(self.key.as_key(), self.request?, &terms, true)?;
        Ok(Begin::new(self.engine, self.key.as_key(), &terms, began))
    }

    /// Records, on bytes: [`Store::record`](crate::Store::record) with everything that was asked for here.
    ///
    /// # Errors
    ///
    /// As [`Store::record`](crate::Store::record), and [`Error::Option`].
    pub fn record(self, result: &[u8]) -> Result<Recorded> {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let value = Value::bytes(result);
        let key = self.key.as_key();
        Ok(Recorded::new(key, self.engine.record(key, self.request?, value, &terms)?))
    }

    fn terms(&self, begin_unsynced: bool) -> Result<Terms> {
        let defaults = self.engine.settings().terms;
        let retention = match (self.asked.retention, self.asked.result_retention) {
            (None, None) => defaults.retention,
            (Some(key), None) => own_retention(key, self.engine.settings())?,
            (key, result) => {
                check_retention(key.unwrap_or(Duration::from_millis(defaults.retention.key_ms)), result)?
            }
        };
        let lease_ms = match self.asked.lease {
            Some(lease) => Some(check_lease(lease, retention)?),
            // Nobody asked for it here: that it is longer is no mistake of this call's.
            None => defaults.lease_ms.map(|lease_ms| lease_ms.min(retention.key_ms)),
        };
        let durability = self.asked.durability.unwrap_or(defaults.durability);
        let patience = self.asked.wait.map_or(Patience::None, Patience::of);
        Ok(Terms { durability, begin_unsynced, retention, lease_ms, typing: self.typing(), patience })
    }

    /// What a begin record says.
    fn typing(&self) -> Option<Typing> {
        self.codec_id.map(|codec| Typing { scheme: self.scheme, codec, shape: None })
    }
}

impl<C, D, R> fmt::Debug for Operation<'_, C, D, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Operation")
            .field("key", &self.key)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}
