//! The calls that end an [`Operation`] with a typed result: [`run`](Operation::run),
//! [`record_value`](Operation::record_value) and [`complete_if`](Operation::complete_if). The engine does the work.
//! This module orders the calls to it around the caller's closures, none of which runs while a lock of the store is
//! held.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Operation;
use crate::codec::Codec;
use crate::doubt::Doubt;
use crate::engine::{Applied, Began, Expected, Found, Next, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::lease::Lease;
use crate::messages::Messages;
use crate::outcome::{Attempt, Outcome, Reconciled, RunError};
use crate::planted::{Bug, planted};
use crate::policy::{DoubtPolicy, EmitPolicy, ReleasePolicy};
use crate::stats::CasOutcome;
use crate::sync::Patience;
use crate::typed;

// Each method requires `C: Codec`, instead of the impl: if the codec is missing, the compiler then shows the hint of `Codec`.
impl<C, D, R, M> Operation<'_, C, D, R, M> {
    /// Runs the side effect unless it ran before, and returns its result in both cases.
    ///
    /// Under [`Durability::Sync`](crate::Durability::Sync), the default, the begin is on disk before `effect` is
    /// called, and the result is on disk before this returns. (Under [`rerun`](Operation::rerun), the begin is written
    /// but not synced.)
    ///
    /// If `effect` returns an error, the operation is in doubt, because the side effect may have happened all the same.
    /// Use [`release_if`](Operation::release_if) for errors that prove that it did not. A definite refusal ("card
    /// declined") is a result and not an error: make it part of `T`. If `effect` panics, the operation is in doubt and
    /// the panic continues.
    ///
    /// The text of that error is kept for the operator who [resolves the doubt](crate::Store::unfinished): its `Display`, at most
    /// 512 bytes. It is not synced, so a crash may lose it. [`Options::notes`](crate::Options::notes) switches this off.
    ///
    /// A closure that ends in a call that returns a `Result` needs no type annotation. One that ends in `Ok(..)` needs one:
    /// `|attempt| -> anyhow::Result<_> { .. Ok(receipt) }`.
    ///
    /// # What is recorded
    ///
    /// The store records what the `Serialize` of the result writes, if those bytes decode to the same value. The first caller
    /// gets that decoded value too, so it sees what a retry sees. A field under `#[serde(skip)]` is not recorded; each caller
    /// gets its default.
    ///
    /// A result that cannot be recorded, for example because its serde code panics, is returned in
    /// [`RunError::Unrecorded`]. The operation is completed without the result: every retry gets
    /// [`Error::ResultNotKept`], and the side effect does not run again.
    ///
    /// A result that was recorded as bytes ([`Lease::complete`](crate::Lease::complete),
    /// [`Store::record`](crate::Store::record)) has neither codec nor shape recorded. This operation's codec decodes
    /// it, and nothing checks that its bytes were meant as a `T`.
    ///
    /// ```
    /// use oncekey::{Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let mail = || store.operation("welcome:ada").run(|attempt| {
    ///     // .. send the mail, with `attempt.token()` as its message id ..
    ///     Ok::<_, std::io::Error>(format!("sent {}", attempt.token()))
    /// });
    /// assert_eq!(mail()?, Outcome::Done("sent welcome:ada".to_owned()));
    /// assert_eq!(mail()?, Outcome::AlreadyDone("sent welcome:ada".to_owned()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`RunError::Released`], [`RunError::InDoubt`]: `effect` failed.
    /// - [`RunError::Unrecorded`]: the side effect happened, in this call or as `reconcile` found out, but its result was not
    ///   recorded. The error contains the result.
    /// - [`RunError::Store`]: the store returned an error, and this call did not run the side effect. [`Error::Mismatch`],
    ///   [`Error::InProgress`], [`Error::InDoubt`], [`Error::ResultExpired`], [`Error::ResultNotKept`] and [`Error::Decode`]
    ///   are answers about the key. The others are those of [`Store::begin`](crate::Store::begin) and
    ///   [`begin`](Operation::begin).
    pub fn run<T, E, F>(mut self, effect: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        D: DoubtPolicy<T>,
        R: ReleasePolicy<E>,
        M: EmitPolicy<T>,
        E: fmt::Display,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        self.engine.check_process()?;
        let terms = self.terms(D::RERUNS)?;
        let request = self.request.clone()?;
        let mut has_reconciled = false;
        loop {
            let takes_doubt = D::TAKES_DOUBT && !has_reconciled;
            let key = self.key.as_key();
            match self.engine.begin(key, request, &terms, takes_doubt)? {
                Began::Acquired(grant) => {
                    let lease = Lease::new(self.engine, key, &terms, grant);
                    return self.run_attempt(lease, effect);
                }
                Began::Completed(found) => return Ok(Outcome::AlreadyDone(self.decode(&found)?)),
                Began::InProgress { attempt } => {
                    return Err(Error::InProgress { key: key.to_owned(), attempt }.into());
                }
                Began::InDoubt(grant) => {
                    let doubt = Doubt::new(self.engine, key, &terms, grant);
                    // The closure of `reconcile` runs only once. `rerun` needs no closure and begins again as often as needed.
                    has_reconciled = !D::RERUNS;
                    let in_closure = doubt.enter_closure();
                    let reconciled = self.doubt.reconcile(&Attempt::of_doubt(self.engine, &doubt));
                    drop(in_closure);
                    match reconciled {
                        Reconciled::Applied(result) => match self.record_applied(&doubt, request, result) {
                            Err(RunError::Unrecorded { source: Error::Fenced { .. }, .. })
                                if planted(Bug::AppliedEffectRunAgain) => {}
                            outcome => return outcome,
                        },
                        Reconciled::NotApplied => match doubt.begin_again() {
                            Ok(lease) => return self.run_attempt(lease, effect),
                            // Another caller has resolved the doubt, so begin again with the key as it is now.
                            Err(Error::Fenced { .. }) => {}
                            Err(error) => return Err(error.into()),
                        },
                        Reconciled::Unknown { reason } => {
                            let (key, attempt) = (key.to_owned(), doubt.attempt());
                            let reason = reason.or_else(|| {
                                Some("it returned Reconciled::Unknown without a reason".to_owned())
                            });
                            let version = doubt.version();
                            return Err(Error::InDoubt { key, attempt, version, reason }.into());
                        }
                    }
                }
            }
        }
    }

    /// Records the begin and the completion in one write, with a typed result: the typed form of
    /// [`Store::record`](crate::Store::record). If a result is already recorded, returns that one.
    ///
    /// ```
    /// use oncekey::{Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// assert_eq!(store.operation("hook:1").record_value(&17)?, Outcome::Done(17));
    /// assert_eq!(store.operation("hook:1").record_value(&18)?, Outcome::AlreadyDone(17));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`record`](Operation::record). [`Error::Encode`], [`Error::TooLarge`]: the result cannot be recorded,
    /// and nothing was recorded. [`Error::Decode`]: a result of a different type is already recorded.
    pub fn record_value<T>(mut self, result: &T) -> Result<Outcome<T>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        M: EmitPolicy<T>,
    {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let messages = self.messages_of(result, &terms)?;
        let key = self.key.as_key();
        let request = self.request.clone()?;
        let encoded = self.encode(result).map_err(|unfit| unfit.into_error(key))?;
        match self.engine.record(key, request, encoded.value(), messages.list(), &terms)? {
            Ok(_) => Ok(Outcome::Done(encoded.returned)),
            Err(found) => self.decode(&found).map(Outcome::AlreadyDone),
        }
    }

    /// Atomically completes the operation with a typed result if the key still matches `expected`: the typed form of
    /// [`Store::compare_and_set`](crate::Store::compare_and_set). A retry of [`run`](Operation::run) returns the
    /// result.
    ///
    /// If the key is in progress or in doubt, the fingerprint must be the stored one: set the same
    /// [`request`](Operation::request), or the [`fingerprint`](crate::KeyState::fingerprint) of the state that was seen.
    ///
    /// ```
    /// use oncekey::{Expected, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("charge:1").run(|_| Err::<u64, _>("timed out"));
    /// assert!(lost.is_err());
    /// // The gateway's own records show that it was charged.
    /// let seen = store.get("charge:1")?;
    /// let expected = Expected::Present { status: seen.status(), version: seen.version().expect("the key is present") };
    /// store.operation("charge:1").complete_if(expected, &17_u64)?;
    /// let retried = store.operation("charge:1").run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(retried, Ok(Outcome::AlreadyDone(17))));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Store::compare_and_set`](crate::Store::compare_and_set). [`Error::Encode`]: the result cannot be encoded,
    /// or the attempt of the expected version was begun with a different [`codec`](Operation::codec).
    pub fn complete_if<T>(mut self, expected: Expected, result: &T) -> Result<CasOutcome>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        M: EmitPolicy<T>,
    {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let messages = self.messages_of(result, &terms)?;
        let key = self.key.as_key();
        let Request { fingerprint, .. } = self.request.clone()?;
        let (_, seen) = self.engine.get(key, Patience::Endless)?;
        // The codec is checked against the record of the expected version only: at any other version nothing is recorded, and
        // the outcome is `Differs`. The status is not compared here. It can change while the version stays the same, so a
        // comparison could skip the check for a completion that is then recorded.
        let begun_with = seen
            .filter(|seen| matches!(expected, Expected::Present { version, .. } if version == seen.version))
            .and_then(|seen| seen.typing);
        let encoded = typed::check_codec::<C>(begun_with)
            .and_then(|()| self.encode(result))
            .map_err(|unfit| unfit.into_error(key))?;
        let next = Next::Completed { fingerprint, result: &encoded.bytes };
        let next = (next, Some(encoded.typing));
        let swap = self.engine.compare_and_set(key, expected, next, messages.list(), &terms)?;
        CasOutcome::of(self.engine, key, swap)
    }

    /// Runs the side effect under its lease, and records its outcome.
    fn run_attempt<T, E, F>(
        mut self,
        mut lease: Lease,
        effect: F,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        R: ReleasePolicy<E>,
        M: EmitPolicy<T>,
        E: fmt::Display,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        let attempt = Attempt::of_lease(self.engine, &lease);
        let in_closure = lease.enter_closure();
        let returned = effect(&attempt);
        drop(in_closure);
        lease.set_retention(attempt.retention());
        match returned {
            Ok(result) => {
                let mut messages = attempt.take_messages();
                if let Err(source) = self.emit.emit(&result, &mut messages) {
                    // The result is not recorded without its messages, because they would be lost.
                    return Err(RunError::Unrecorded { result: Box::new(result), source });
                }
                lease.set_messages(messages);
                match self.keep(&result, |value| lease.complete_as(value)) {
                    Ok((_, Ok(returned))) => Ok(Outcome::Done(returned)),
                    Ok((_, Err(source))) | Err(source) => {
                        Err(RunError::Unrecorded { result: Box::new(result), source })
                    }
                }
            }
            Err(error) if self.release.nothing_happened(&error) => match lease.release() {
                Ok(()) => Err(RunError::Released(error)),
                // Without the record, the next caller finds the operation in doubt.
                Err(failed) => Err(RunError::InDoubt { error, release_failed: Some(Box::new(failed)) }),
            },
            Err(error) => {
                match self.engine.settings().notes {
                    true => lease.leave_in_doubt(&error.to_string()),
                    false => drop(lease),
                }
                Err(RunError::InDoubt { error, release_failed: None })
            }
        }
    }

    /// Records the result that `reconcile` found. The side effect happened, so from here on this call neither runs it nor loses
    /// its result, whatever other callers did to the key meanwhile.
    fn record_applied<T, E>(
        &mut self,
        doubt: &Doubt,
        request: Request,
        result: T,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        M: EmitPolicy<T>,
    {
        let mut messages = doubt.new_messages();
        if let Err(source) = self.emit.emit(&result, &mut messages) {
            return Err(RunError::Unrecorded { result: Box::new(result), source });
        }
        let kept = self.keep(&result, |value| doubt.record_applied(request, value, &messages));
        let outcome = kept.and_then(|(applied, kept)| match applied {
            Applied::Recorded => kept,
            // The first recorded result stands: every retry must get the same one.
            Applied::AlreadyCompleted(found) => self.decode(&found),
        });
        match outcome {
            Ok(result) => Ok(Outcome::AlreadyDone(result)),
            Err(source) => Err(RunError::Unrecorded { result: Box::new(result), source }),
        }
    }

    /// The messages that are made from a result which is recorded without an attempt.
    fn messages_of<T>(&mut self, result: &T, terms: &Terms) -> Result<Messages>
    where
        M: EmitPolicy<T>,
    {
        let mut messages = Messages::of(self.key.as_key(), terms.typing, terms.emits_bytes);
        self.emit.emit(result, &mut messages)?;
        Ok(messages)
    }

    /// Calls `record` with the encoded result, or without a result if it cannot be recorded. Returns the value that
    /// `record` returned, and either the result that retries get or the reason why they get none.
    fn keep<T, Recorded>(
        &self,
        result: &T,
        record: impl FnOnce(Value<'_>) -> Result<Recorded>,
    ) -> Result<(Recorded, Result<T>)>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        match self.encode(result) {
            Ok(encoded) => Ok((record(encoded.value())?, Ok(encoded.returned))),
            Err(unfit) => {
                let recorded = record(Value::not_kept(self.typing()))?;
                Ok((recorded, Err(unfit.into_error(self.key.as_key()))))
            }
        }
    }

    pub(crate) fn encode<T>(&self, result: &T) -> std::result::Result<typed::Encoded<T>, typed::Unfit>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        typed::encode(&self.codec, self.typing(), result, self.max_result_bytes())
    }

    fn decode<T: Serialize + DeserializeOwned>(&self, found: &Found) -> Result<T>
    where
        C: Codec,
    {
        let decoded = typed::decode(&self.codec, found.result.as_deref().unwrap_or_default(), found.typing);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }
}
