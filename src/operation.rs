//! The typed face: perform an act once, and give every retry its result.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Codec, CodecError, DefaultCodec};
use crate::engine::{Applied, Durability, Engine, Terms};
use crate::error::{Error, Result};
use crate::key::{AnyKey, Fingerprint, Key};
use crate::lease::{Begin, Completion, Doubt, Lease, Recorded};
use crate::options::{check_lease, check_retention};
use crate::outcome::{Attempt, Failure, Outcome, Reconciled, RunError};
use crate::planted::{Bug, planted};
use crate::record::Retention;
use crate::sync::Patience;

/// An act to be performed once, under a key. Made by [`Store::operation`](crate::Store::operation), ended by
/// [`run`](Operation::run).
///
/// ```
/// use oncekey::{Failure, Outcome, Store};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize)]
/// struct Charge { account: u64, cents: u64 }
/// #[derive(Serialize, Deserialize, Debug, PartialEq)]
/// struct Receipt { id: u64 }
///
/// # struct Gateway;
/// # impl Gateway {
/// #     fn charge(&self, _key: &str, _charge: &Charge) -> Result<Receipt, std::io::Error> { Ok(Receipt { id: 17 }) }
/// #     fn find(&self, _key: &str) -> Result<Option<Receipt>, std::io::Error> { Ok(None) }
/// # }
/// # let gateway = Gateway;
/// let store = Store::in_memory()?;
/// let charge = Charge { account: 42, cents: 1_000 };
///
/// let outcome = store
///     .operation("charge:order-1729")
///     .request(&charge)
///     .reconcile(|attempt| gateway.find(attempt.key().as_str().unwrap_or_default()))
///     .run(|attempt| {
///         // `?` on an error of the gateway's leaves the operation in doubt: the charge may have gone through.
///         let receipt = gateway.charge(attempt.key().as_str().unwrap_or_default(), &charge)?;
///         Ok::<_, Failure<std::io::Error>>(receipt)
///     })?;
///
/// match outcome {
///     Outcome::Done(receipt) => assert_eq!(receipt.id, 17),         // this call performed the act
///     Outcome::AlreadyDone(receipt) => assert_eq!(receipt.id, 17),  // an earlier one did; the same receipt
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an operation does nothing until it is run"]
pub struct Operation<'a, C = DefaultCodec, D = Refuse> {
    engine: &'a Arc<Engine>,
    key: AnyKey<'a>,
    fingerprint: Result<Fingerprint>,
    asked: Asked,
    codec: C,
    doubt: D,
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
            fingerprint: Ok(Fingerprint::NONE),
            asked: Asked::default(),
            codec: DefaultCodec::default(),
            doubt: Refuse,
        }
    }
}

impl<'a, C> Operation<'a, C, Refuse> {
    /// Asks `reconcile` when an earlier attempt is in doubt: did its act happen? It is only asked then, one caller at
    /// a time, and must be **authoritative**: [`Reconciled::NotApplied`] performs the act again. A look into a cache,
    /// or into a system that may yet process what was sent, is not enough; [`Reconciled::Unknown`] leaves
    /// everything as it is and is [`Error::InDoubt`].
    ///
    /// What it says holds for the attempt that it was asked about, whatever others do to the key meanwhile. After
    /// [`Reconciled::Applied`] the call never performs the act: the result is recorded, also if the doubt has gone and
    /// the key is absent; a result that is recorded by then is given instead; and if another attempt has the key, or
    /// the result cannot be recorded, it comes back in [`RunError::Unrecorded`]. It is asked once in a call: what is
    /// in doubt again after that is [`Error::InDoubt`].
    ///
    /// It may return a [`Reconciled`]; or an `Option` (something: applied; nothing: not applied); or a `Result` of an
    /// `Option` (an error: unknown). It sees the [`Attempt`] that is in doubt. If it panics, the doubt stays.
    pub fn reconcile<F, R>(self, reconcile: F) -> Operation<'a, C, Reconcile<F>>
    where
        F: FnMut(&Attempt<'_>) -> R,
    {
        self.with_doubt(Reconcile(reconcile))
    }

    /// Performs the act again when an earlier attempt is in doubt, because it is itself idempotent.
    ///
    /// The begin is then written and not synced, so that the whole operation takes one sync and not two: if power is lost in
    /// between, nothing remembers that it began, and the next call simply performs it again. For that very reason
    /// **every caller of the key must use `rerun`**: to another one, a begin that a crash took back looks as if the
    /// act had never been tried.
    pub fn rerun(self) -> Operation<'a, C, Rerun> {
        self.with_doubt(Rerun)
    }
}

impl<'a, C, D> Operation<'a, C, D> {
    fn with_doubt<E>(self, doubt: E) -> Operation<'a, C, E> {
        let Operation { engine, key, fingerprint, asked, codec, .. } = self;
        Operation { engine, key, fingerprint, asked, codec, doubt }
    }

    /// Encodes with `codec` instead of the default. Say so before [`request`](Operation::request).
    pub fn codec<B: Codec>(self, codec: B) -> Operation<'a, B, D> {
        let Operation { engine, key, fingerprint, asked, doubt, .. } = self;
        Operation { engine, key, fingerprint, asked, codec, doubt }
    }

    /// Puts the key into a scope: a tenant, an account, a consumer.
    pub fn scope<B: AsRef<[u8]> + ?Sized>(mut self, scope: &'a B) -> Self {
        self.key = self.key.scope(scope);
        self
    }

    /// The fingerprint of the request, where the caller makes it itself. See [`request`](Operation::request).
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Ok(fingerprint);
        self
    }

    /// How long this operation is remembered, and its result with it, instead of
    /// [`Options::retention`](crate::Options::retention); `Duration::MAX` is for ever. A result retention that the
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
    /// runs in. If the closure waits for a thread that waits for the key, or the holder of a [`Lease`] waits for its own
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
        let began = self.engine.begin(self.key.as_key(), self.fingerprint?, &terms, true)?;
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
        Ok(Recorded::new(self.engine.record(self.key.as_key(), self.fingerprint?, result, &terms)?))
    }

    fn terms(&self, begin_unsynced: bool) -> Result<Terms> {
        let defaults = self.engine.settings().terms;
        let retention = match (self.asked.retention, self.asked.result_retention) {
            (None, None) => defaults.retention,
            (Some(key), None) => {
                let Retention { key_ms, .. } = check_retention(key, None)?;
                let result_ms = self.engine.settings().result_retention_ms.unwrap_or(key_ms).min(key_ms);
                Retention { key_ms, result_ms }
            }
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
        Ok(Terms { durability, begin_unsynced, retention, lease_ms, patience })
    }
}

// The codec is asked for by each method and not by the impl: where it is missing, the compiler then shows its hint.
impl<'a, C, D> Operation<'a, C, D> {
    /// The request, from which the fingerprint is made: the same key with another request is [`Error::Mismatch`].
    /// Its encoding must be the same each time; see [`Codec`].
    pub fn request<T: Serialize + ?Sized>(mut self, request: &T) -> Self
    where
        C: Codec,
    {
        self.fingerprint = match self.codec.encode(request) {
            Ok(bytes) => Ok(self.engine.fingerprint(&bytes)),
            Err(source) => Err(encode_error(self.key.as_key(), source)),
        };
        self
    }

    /// Performs the act, unless it has been performed before; gives its result either way.
    ///
    /// The begin is durable before `act` is called, and the result is durable before this returns. `act` says with
    /// its error what is known: [`Failure::NotApplied`] frees the key, [`Failure::InDoubt`] leaves it in doubt, and
    /// so does a `?` on a plain error, because that fails safe. A definite refusal ("card declined") is a result
    /// like any other: make it part of `T`.
    ///
    /// If `act` panics, the operation is in doubt and the panic goes on.
    ///
    /// # Errors
    ///
    /// - [`RunError::NotApplied`], [`RunError::InDoubt`]: what `act` said.
    /// - [`RunError::Unrecorded`]: the act was performed, by this call or as `reconcile` said, and its result could not
    ///   be recorded; here it is. The operation is in doubt, or somebody else's.
    /// - [`RunError::Store`]: the act was not performed by this call. [`Error::Mismatch`], [`Error::InProgress`],
    ///   [`Error::InDoubt`], [`Error::ResultExpired`], [`Error::Decode`] answer about the key; the others are those
    ///   of [`Store::begin`](crate::Store::begin).
    pub fn run<T, E, F>(mut self, act: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        D: DoubtPolicy<T>,
        F: FnOnce(&Attempt<'_>) -> std::result::Result<T, Failure<E>>,
    {
        self.engine.check_process()?;
        let terms = self.terms(D::RERUNS)?;
        let fingerprint = self.fingerprint.clone()?;
        let mut was_asked = false;
        loop {
            let takes_doubt = D::TAKES_DOUBT && !was_asked;
            let began = self.engine.begin(self.key.as_key(), fingerprint, &terms, takes_doubt)?;
            match Begin::new(self.engine, self.key.as_key(), &terms, began) {
                Begin::Acquired(lease) => return self.perform(lease, act),
                Begin::Completed(done) => return Ok(Outcome::AlreadyDone(self.decode(&done)?)),
                Begin::InProgress { attempt } => {
                    return Err(Error::InProgress { key: self.key.as_key().to_owned(), attempt }.into());
                }
                Begin::InDoubt(doubt) => {
                    let in_doubt = Error::InDoubt {
                        key: self.key.as_key().to_owned(),
                        attempt: doubt.attempt(),
                        version: doubt.version(),
                        reason: None,
                    };
                    // Who may simply perform it again may do so as often as it takes.
                    was_asked = !D::RERUNS;
                    let in_closure = doubt.enter_closure();
                    let reconciled = self.doubt.reconcile(&Attempt::of_doubt(&doubt));
                    drop(in_closure);
                    match reconciled {
                        Reconciled::Applied(result) => match self.record_applied(&doubt, fingerprint, result)
                        {
                            Err(RunError::Unrecorded { source: Error::Fenced { .. }, .. })
                                if planted(Bug::AppliedThenPerformed) => {}
                            outcome => return outcome,
                        },
                        Reconciled::NotApplied => match doubt.begin_again() {
                            Ok(lease) => return self.perform(lease, act),
                            // The doubt has gone, or another has it: what the key says now decides.
                            Err(Error::Fenced { .. }) => {}
                            Err(error) => return Err(error.into()),
                        },
                        Reconciled::Unknown => return Err(in_doubt.into()),
                    }
                }
            }
        }
    }
}

impl<C: Codec, D> Operation<'_, C, D> {
    /// Performs the act under its lease.
    fn perform<T, E, F>(&self, mut lease: Lease, act: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        T: Serialize,
        F: FnOnce(&Attempt<'_>) -> std::result::Result<T, Failure<E>>,
    {
        let in_closure = lease.enter_closure();
        let performed = act(&Attempt::of_lease(&lease));
        drop(in_closure);
        match performed {
            Ok(result) => {
                let recorded = self.encode(&result).and_then(|bytes| lease.complete(&bytes));
                match recorded {
                    Ok(_) => Ok(Outcome::Done(result)),
                    Err(source) => Err(RunError::Unrecorded { result, source }),
                }
            }
            Err(Failure::NotApplied(error)) => match lease.release() {
                Ok(()) => Err(RunError::NotApplied(error)),
                // What could not be recorded is not known to the next one who asks.
                Err(_) => Err(RunError::InDoubt(error)),
            },
            Err(Failure::InDoubt(error)) => {
                drop(lease);
                Err(RunError::InDoubt(error))
            }
        }
    }

    /// Records what was found out about a doubt. The act happened, so from here on this call neither performs it nor
    /// loses its result, whatever became of the doubt.
    fn record_applied<T, E>(
        &self,
        doubt: &Doubt,
        fingerprint: Fingerprint,
        result: T,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        T: Serialize + DeserializeOwned,
    {
        let recorded = self.encode(&result).and_then(|bytes| {
            match doubt.record_applied(fingerprint, &bytes)? {
                Applied::Recorded => Ok(None),
                // The first recorded result stands, and every retry must get the same.
                Applied::Completed(found) => self.decode(&Completion::new(found)).map(Some),
            }
        });
        match recorded {
            Ok(stored) => Ok(Outcome::AlreadyDone(stored.unwrap_or(result))),
            Err(source) => Err(RunError::Unrecorded { result, source }),
        }
    }

    fn encode<T: Serialize>(&self, result: &T) -> Result<Vec<u8>> {
        self.codec.encode(result).map_err(|source| encode_error(self.key.as_key(), source))
    }

    fn decode<T: DeserializeOwned>(&self, done: &Completion) -> Result<T> {
        self.codec
            .decode(done.result())
            .map_err(|source| Error::Decode { key: self.key.as_key().to_owned(), source: Arc::from(source) })
    }
}

fn encode_error(key: Key<'_>, source: CodecError) -> Error {
    Error::Encode { key: key.to_owned(), source: Arc::from(source) }
}

impl<C, D> fmt::Debug for Operation<'_, C, D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Operation")
            .field("key", &self.key)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

/// What an [`Operation`] does about a doubt: [`Refuse`], [`Rerun`] or [`Reconcile`]. Sealed.
pub trait DoubtPolicy<T>: sealed::Sealed {
    #[doc(hidden)]
    const TAKES_DOUBT: bool;
    #[doc(hidden)]
    const RERUNS: bool;
    #[doc(hidden)]
    fn reconcile(&mut self, attempt: &Attempt<'_>) -> Reconciled<T>;
}

/// An operation in doubt is [`Error::InDoubt`]: the default.
#[derive(Debug, Clone, Copy)]
pub struct Refuse;

/// An operation in doubt is performed again: [`Operation::rerun`].
#[derive(Debug, Clone, Copy)]
pub struct Rerun;

/// An operation in doubt is looked into: [`Operation::reconcile`].
pub struct Reconcile<F>(F);

impl<F> fmt::Debug for Reconcile<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reconcile")
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Refuse {}
    impl Sealed for super::Rerun {}
    impl<F> Sealed for super::Reconcile<F> {}
}

impl<T> DoubtPolicy<T> for Refuse {
    const TAKES_DOUBT: bool = false;
    const RERUNS: bool = false;
    fn reconcile(&mut self, _attempt: &Attempt<'_>) -> Reconciled<T> {
        Reconciled::Unknown
    }
}

impl<T> DoubtPolicy<T> for Rerun {
    const TAKES_DOUBT: bool = true;
    const RERUNS: bool = true;
    fn reconcile(&mut self, _attempt: &Attempt<'_>) -> Reconciled<T> {
        Reconciled::NotApplied
    }
}

impl<T, R: Into<Reconciled<T>>, F: FnMut(&Attempt<'_>) -> R> DoubtPolicy<T> for Reconcile<F> {
    const TAKES_DOUBT: bool = true;
    const RERUNS: bool = false;
    fn reconcile(&mut self, attempt: &Attempt<'_>) -> Reconciled<T> {
        (self.0)(attempt).into()
    }
}
