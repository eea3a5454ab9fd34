//! The part that an operation and a step share: the request, codec and policies of one side effect ([`SideEffect`]), and
//! the loop that runs it at most once.
//!
//! `operation` and `step` are builders around it. The engine does the work. This module orders the calls to it around the
//! caller's closures, none of which runs while a lock of the store is held.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attempt::Attempt;
use crate::codec::{Codec, DEFAULT_CODEC_ID, DefaultCodec};
use crate::engine::{Applied, Engine, Found, Request, Terms};
use crate::error::{Error, Result};
use crate::fingerprint::canonical;
use crate::format::record::{Typing, Value};
use crate::key::{Fingerprint, Key};
use crate::messages::Messages;
use crate::outcome::{Outcome, Reconciled, RunError};
use crate::planted::{Bug, planted};
use crate::policy::{DoubtPolicy, EmitPolicy, KeepInDoubt, NoMessages, Refuse, ReleasePolicy};
use crate::typed::{self, BY_CALLER, BY_MEANING};

/// What is run: an operation, or a step of one. Its methods are the verbs of the engine that [`SideEffect::run`] needs.
pub(crate) trait Subject {
    /// The right to run one attempt. Dropping it leaves the subject in doubt.
    type Lease;
    /// The right to resolve the doubt about one attempt.
    type Doubt;
    /// Marks this thread as inside a closure until it is dropped.
    type InClosure;

    /// The key of the operation or the step.
    fn key(&self) -> Key<'_>;
    fn terms(&self) -> &Terms;
    /// Whether an attempt that ends in doubt notes why.
    fn notes(&self) -> bool;

    /// Begins an attempt, or returns the state that prevents it. A doubt is given to this caller if `takes_doubt`, and is an
    /// error otherwise.
    fn begin(&self, request: Request, takes_doubt: bool) -> Result<Beginning<Self::Lease, Self::Doubt>>;
    /// Begins the next attempt, because that of the doubt did not happen or may happen again.
    fn begin_again(&self, doubt: Self::Doubt) -> Result<Self::Lease>;
    /// The handle for the closure that runs the attempt.
    fn running(&self, lease: &Self::Lease) -> (Attempt, Self::InClosure);
    /// The handle for the closure that finds out about the attempt in doubt.
    fn reconciling(&self, doubt: &Self::Doubt) -> (Attempt, Self::InClosure);
    /// Takes the messages that the closure has emitted.
    fn emitted(&self, attempt: &Attempt) -> Messages;
    /// Records the end of the attempt whose closure got this handle, and commits the messages with it.
    fn complete(
        &self,
        lease: &mut Self::Lease,
        attempt: &Attempt,
        ending: (Value<'_>, Messages),
    ) -> Result<()>;
    fn release(&self, lease: Self::Lease) -> Result<()>;
    /// Leaves the attempt in doubt, with a note why.
    fn leave_in_doubt(&self, lease: Self::Lease, note: &str);
    /// Whether the attempt has left nothing in doubt, because the outcome of each of its steps is known.
    fn is_stopped(&self, attempt: &Attempt) -> bool;
    /// A collection for the messages that are committed with the end of the doubt.
    fn new_messages(&self, doubt: &Self::Doubt) -> Messages;
    /// Records the result that a caller found out as the end of the doubt, and commits the messages with it.
    fn record_applied(
        &self,
        doubt: &mut Self::Doubt,
        request: Request,
        ending: (Value<'_>, &Messages),
    ) -> Result<Applied>;
}

/// The outcome of the begin of a [`Subject`].
pub(crate) enum Beginning<L, D> {
    Acquired(L),
    InDoubt(D),
    InProgress { attempt: u32 },
    Completed(Found),
}

/// The parts of a [`SideEffect`] whose types the builder changes.
struct Policies<C, D, R, M> {
    codec: C,
    doubt: D,
    release: R,
    emit: M,
}

/// The request, codec and policies of a side effect.
pub(crate) struct SideEffect<C, D, R, M = NoMessages> {
    pub(crate) request: Result<Request>,
    /// Whether the caller has set the request.
    pub(crate) has_request: bool,
    /// How the fingerprint was made: [`BY_CALLER`] or [`BY_MEANING`].
    scheme: u8,
    /// The number of the codec, or `None` if there is no codec.
    codec_id: Option<u8>,
    /// The maximum length of the result, if the caller set one.
    max_result_bytes: Option<usize>,
    pub(crate) codec: C,
    pub(crate) doubt: D,
    release: R,
    pub(crate) emit: M,
}

impl SideEffect<DefaultCodec, Refuse, KeepInDoubt> {
    pub(crate) fn new() -> Self {
        SideEffect {
            request: Ok(Fingerprint::NONE.into()),
            has_request: false,
            scheme: BY_CALLER,
            codec_id: DEFAULT_CODEC_ID,
            max_result_bytes: None,
            codec: DefaultCodec::default(),
            doubt: Refuse,
            release: KeepInDoubt,
            emit: NoMessages,
        }
    }
}

impl<C, D, R, M> SideEffect<C, D, R, M> {
    pub(crate) fn with_doubt<E>(self, doubt: E) -> SideEffect<C, E, R, M> {
        self.with(|policies| Policies {
            codec: policies.codec,
            doubt,
            release: policies.release,
            emit: policies.emit,
        })
    }

    pub(crate) fn with_release<S>(self, release: S) -> SideEffect<C, D, S, M> {
        self.with(|policies| Policies {
            codec: policies.codec,
            doubt: policies.doubt,
            release,
            emit: policies.emit,
        })
    }

    pub(crate) fn with_emit<N>(self, emit: N) -> SideEffect<C, D, R, N> {
        self.with(|policies| Policies {
            codec: policies.codec,
            doubt: policies.doubt,
            release: policies.release,
            emit,
        })
    }

    pub(crate) fn with_codec<B: Codec>(mut self, codec: B) -> SideEffect<B, D, R, M> {
        self.codec_id = Some(B::ID);
        self.with(|policies| Policies {
            codec,
            doubt: policies.doubt,
            release: policies.release,
            emit: policies.emit,
        })
    }

    fn with<B, E, S, N>(
        self,
        change: impl FnOnce(Policies<C, D, R, M>) -> Policies<B, E, S, N>,
    ) -> SideEffect<B, E, S, N> {
        let SideEffect {
            request,
            has_request,
            scheme,
            codec_id,
            max_result_bytes,
            codec,
            doubt,
            release,
            emit,
        } = self;
        let Policies { codec, doubt, release, emit } = change(Policies { codec, doubt, release, emit });
        SideEffect { request, has_request, scheme, codec_id, max_result_bytes, codec, doubt, release, emit }
    }

    pub(crate) fn set_request<T: Serialize + ?Sized>(&mut self, engine: &Engine, key: Key<'_>, request: &T) {
        let fingerprint = fingerprint_of(engine, key, request);
        self.request = fingerprint.map(|fingerprint| self.request_with(fingerprint));
        (self.scheme, self.has_request) = (BY_MEANING, true);
    }

    pub(crate) fn set_or_request<T: Serialize + ?Sized>(
        &mut self,
        engine: &Engine,
        key: Key<'_>,
        request: &T,
    ) {
        let or = fingerprint_of(engine, key, request);
        self.request = self.request.clone().and_then(|first| Ok(Request { or: Some(or?), ..first }));
    }

    pub(crate) fn set_fingerprint(&mut self, fingerprint: Fingerprint) {
        self.request = Ok(self.request_with(fingerprint));
        (self.scheme, self.has_request) = (BY_CALLER, true);
    }

    /// Takes over the request of this operation, and restricts the call to it.
    pub(crate) fn go_on_with(&mut self, begun: &Found) {
        let only = Some(begun.origin);
        self.request = Ok(Request { fingerprint: begun.fingerprint, or: None, only });
        (self.scheme, self.has_request) = (begun.typing.map_or(BY_CALLER, |typing| typing.scheme), true);
    }

    /// Makes a request with this fingerprint, which keeps what else was set.
    fn request_with(&self, fingerprint: Fingerprint) -> Request {
        match &self.request {
            Ok(request) => Request { fingerprint, ..*request },
            Err(_) => fingerprint.into(),
        }
    }

    pub(crate) fn set_max_result(&mut self, bytes: usize) {
        self.max_result_bytes = Some(bytes);
    }

    /// The maximum length of the result of a side effect that emits messages of `emits_bytes` together. More than the store
    /// allows is an error.
    pub(crate) fn max_result_bytes(&self, engine: &Engine, emits_bytes: usize) -> Result<usize> {
        let allowed_bytes = engine.settings().terms.max_result_bytes;
        let frame_bytes = usize::try_from(engine.largest_result_bytes()).unwrap_or(usize::MAX);
        let Some(bytes) = self.max_result_bytes else {
            // What the messages leave of a frame.
            let left_bytes = frame_bytes.checked_sub(emits_bytes);
            return left_bytes.map_or_else(
                || refuse_emits(emits_bytes, 0, frame_bytes),
                |left| Ok(left.min(allowed_bytes)),
            );
        };
        if bytes > allowed_bytes {
            let reason = format!("{bytes} bytes; the store allows {allowed_bytes}");
            return Err(Error::Option { option: "max_result", reason });
        }
        if emits_bytes > 0 && bytes.saturating_add(emits_bytes) > frame_bytes {
            return refuse_emits(emits_bytes, bytes, frame_bytes);
        }
        Ok(bytes)
    }

    /// The typing that a begin record stores, so that a later completion uses the same codec.
    pub(crate) fn typing(&self) -> Option<Typing> {
        self.codec_id.map(|codec| Typing { scheme: self.scheme, codec, shape: None })
    }

    /// Runs the side effect unless it ran before, and returns its result in both cases. See
    /// [`Operation::run`](crate::Operation::run).
    pub(crate) fn run<S, T, E, F>(
        mut self,
        subject: &S,
        effect: F,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        S: Subject,
        C: Codec,
        T: Serialize + DeserializeOwned,
        D: DoubtPolicy<T>,
        R: ReleasePolicy<E>,
        M: EmitPolicy<T>,
        E: fmt::Display,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        let key = subject.key();
        let request = self.request.clone()?;
        let mut has_reconciled = false;
        loop {
            let takes_doubt = D::TAKES_DOUBT && !has_reconciled;
            match subject.begin(request, takes_doubt)? {
                Beginning::Acquired(lease) => return self.run_attempt(subject, lease, effect),
                Beginning::Completed(found) => return Ok(Outcome::AlreadyDone(self.decode(key, &found)?)),
                Beginning::InProgress { attempt } => {
                    return Err(Error::InProgress { key: key.to_owned(), attempt }.into());
                }
                Beginning::InDoubt(mut doubt) => {
                    // The closure of `reconcile` runs only once. `rerun` needs no closure and begins again as often as needed.
                    has_reconciled = !D::RERUNS;
                    let (attempt, in_closure) = subject.reconciling(&doubt);
                    let reconciled = self.doubt.reconcile(&attempt);
                    drop(in_closure);
                    match reconciled {
                        Reconciled::Applied(result) => {
                            match self.record_applied(subject, &mut doubt, (request, result)) {
                                Err(RunError::Unrecorded { source: Error::Fenced { .. }, .. })
                                    if planted(Bug::AppliedEffectRunAgain) => {}
                                outcome => return outcome,
                            }
                        }
                        Reconciled::NotApplied => match subject.begin_again(doubt) {
                            Ok(lease) => return self.run_attempt(subject, lease, effect),
                            // Another caller has resolved the doubt, so begin again with the key as it is now.
                            Err(Error::Fenced { .. }) => {}
                            Err(error) => return Err(error.into()),
                        },
                        Reconciled::Unknown { reason } => {
                            let reason = reason.or_else(|| {
                                Some("it returned Reconciled::Unknown without a reason".to_owned())
                            });
                            let (key, version) = (key.to_owned(), attempt.version());
                            let attempt = attempt.number();
                            return Err(Error::InDoubt { key, attempt, version, reason }.into());
                        }
                    }
                }
            }
        }
    }

    /// Runs the side effect under its lease, and records its outcome.
    fn run_attempt<S, T, E, F>(
        mut self,
        subject: &S,
        mut lease: S::Lease,
        effect: F,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        S: Subject,
        C: Codec,
        T: Serialize + DeserializeOwned,
        R: ReleasePolicy<E>,
        M: EmitPolicy<T>,
        E: fmt::Display,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        let (attempt, in_closure) = subject.running(&lease);
        let returned = effect(&attempt);
        drop(in_closure);
        let (error, release_failed) = match returned {
            Ok(result) => {
                let mut messages = subject.emitted(&attempt);
                if let Err(source) = self.emit.emit(&result, &mut messages) {
                    // The result is not recorded without its messages, because they would be lost.
                    return Err(RunError::Unrecorded { result: Box::new(result), source });
                }
                let kept = self.keep(subject, &result, |value| {
                    subject.complete(&mut lease, &attempt, (value, messages))
                });
                return match kept {
                    Ok(((), Ok(returned))) => Ok(Outcome::Done(returned)),
                    Ok(((), Err(source))) | Err(source) => {
                        Err(RunError::Unrecorded { result: Box::new(result), source })
                    }
                };
            }
            Err(error) if self.release.nothing_happened(&error) => match subject.release(lease) {
                Ok(()) => return Err(RunError::Released(error)),
                // Without the record, the next caller finds the operation in doubt.
                Err(failed) => (error, Some(Box::new(failed))),
            },
            Err(error) => {
                match subject.notes() {
                    true => subject.leave_in_doubt(lease, &error.to_string()),
                    false => drop(lease),
                }
                (error, None)
            }
        };
        let is_held = matches!(release_failed.as_deref(), None | Some(Error::HasSteps { .. }));
        if is_held && subject.is_stopped(&attempt) {
            return Err(RunError::Stopped(error));
        }
        Err(RunError::InDoubt { error, release_failed })
    }

    /// Records the result that `reconcile` found. The side effect happened, so from here on this call neither runs it nor loses
    /// its result, whatever other callers did to the key meanwhile.
    fn record_applied<S, T, E>(
        &mut self,
        subject: &S,
        doubt: &mut S::Doubt,
        (request, result): (Request, T),
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        S: Subject,
        C: Codec,
        T: Serialize + DeserializeOwned,
        M: EmitPolicy<T>,
    {
        let mut messages = subject.new_messages(doubt);
        if let Err(source) = self.emit.emit(&result, &mut messages) {
            return Err(RunError::Unrecorded { result: Box::new(result), source });
        }
        let kept =
            self.keep(subject, &result, |value| subject.record_applied(doubt, request, (value, &messages)));
        let outcome = kept.and_then(|(applied, kept)| match applied {
            Applied::Recorded => kept,
            // The first recorded result stands: every retry must get the same one.
            Applied::AlreadyCompleted(found) => self.decode(subject.key(), &found),
        });
        match outcome {
            Ok(result) => Ok(Outcome::AlreadyDone(result)),
            Err(source) => Err(RunError::Unrecorded { result: Box::new(result), source }),
        }
    }

    /// Calls `record` with the encoded result, or without a result if it cannot be recorded. Returns the value that
    /// `record` returned, and either the result that retries get or the reason why they get none.
    fn keep<S: Subject, T, Recorded>(
        &self,
        subject: &S,
        result: &T,
        record: impl FnOnce(Value<'_>) -> Result<Recorded>,
    ) -> Result<(Recorded, Result<T>)>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        match self.encode(result, subject.terms().max_result_bytes) {
            Ok(encoded) => Ok((record(encoded.value())?, Ok(encoded.returned))),
            Err(unfit) => {
                let recorded = record(Value::not_kept(self.typing()))?;
                Ok((recorded, Err(unfit.into_error(subject.key()))))
            }
        }
    }

    pub(crate) fn encode<T>(
        &self,
        result: &T,
        limit_bytes: usize,
    ) -> std::result::Result<typed::Encoded<T>, typed::Unfit>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        typed::encode(&self.codec, self.typing(), result, limit_bytes)
    }

    pub(crate) fn decode<T: Serialize + DeserializeOwned>(&self, key: Key<'_>, found: &Found) -> Result<T>
    where
        C: Codec,
    {
        let decoded = typed::decode(&self.codec, found.result.as_deref().unwrap_or_default(), found.typing);
        decoded.map_err(|source| Error::decode(key, source))
    }
}

/// The error of messages that do not fit one frame together with the result.
fn refuse_emits(emits_bytes: usize, result_bytes: usize, frame_bytes: usize) -> Result<usize> {
    let reason = format!(
        "{emits_bytes} bytes of messages and a result of {result_bytes} bytes; a frame of this store holds {frame_bytes}"
    );
    Err(Error::Option { option: "emits", reason })
}

fn fingerprint_of<T: Serialize + ?Sized>(engine: &Engine, key: Key<'_>, request: &T) -> Result<Fingerprint> {
    let mut bytes = Vec::new();
    match canonical(request, &mut bytes) {
        Ok(()) => Ok(engine.fingerprint(&bytes)),
        Err(error) => Err(Error::encode(key, error.into())),
    }
}
