//! Ending an operation in typed terms.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Operation;
use crate::codec::Codec;
use crate::engine::{Applied, Began, Expected, Found, Next, Request};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::lease::{Doubt, Lease};
use crate::outcome::{Attempt, Outcome, Reconciled, RunError};
use crate::planted::{Bug, planted};
use crate::policy::{DoubtPolicy, ReleasePolicy};
use crate::stats::CasOutcome;
use crate::sync::Patience;
use crate::typed;

// The codec is asked for by each method and not by the impl: where it is missing, the compiler then shows its hint.
impl<C, D, R> Operation<'_, C, D, R> {
    /// Runs the side effect, unless it has been run before; gives its result either way.
    ///
    /// The begin is durable before `effect` is called, and the result is durable before this returns. An error of `effect`
    /// leaves the operation in doubt, because it may have happened all the same; see
    /// [`release_if`](Operation::release_if). A definite refusal ("card declined") is a result like any other: make it part
    /// of `T`. If `effect` panics, the operation is in doubt and the panic goes on.
    ///
    /// A closure that ends in a call that returns a `Result` needs no types. One that ends in `Ok(..)` names them:
    /// `|attempt| -> anyhow::Result<_> { .. Ok(receipt) }`.
    ///
    /// The result is data: what is recorded is what its `Serialize` writes. It is recorded only if it comes back as the same
    /// value; and it is the value that came back that the first caller gets as well. So the first call and a retry differ in
    /// nothing that is recorded. What is not (a field under `#[serde(skip)]`) is made anew by each of them. What cannot be recorded is [`RunError::Unrecorded`], the caller has the result in hand, and every retry is
    /// [`Error::ResultNotKept`], also where its serde code panics. The side effect is not run again.
    ///
    /// A result that was recorded as bytes ([`Lease::complete`](crate::Lease::complete),
    /// [`Store::record`](crate::Store::record)) names neither a codec nor a shape: it is whatever it decodes as.
    ///
    /// # Errors
    ///
    /// - [`RunError::Released`], [`RunError::InDoubt`]: `effect` failed.
    /// - [`RunError::Unrecorded`]: the side effect happened, in this call or as `reconcile` said, and its result was not
    ///   recorded; here it is.
    /// - [`RunError::Store`]: this call did not run the side effect. [`Error::Mismatch`], [`Error::InProgress`],
    ///   [`Error::InDoubt`], [`Error::ResultExpired`], [`Error::ResultNotKept`] and [`Error::Decode`] answer about the key;
    ///   the others are those of [`Store::begin`](crate::Store::begin).
    pub fn run<T, E, F>(mut self, effect: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        D: DoubtPolicy<T>,
        R: ReleasePolicy<E>,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        self.engine.check_process()?;
        let terms = self.terms(D::RERUNS)?;
        let request = self.request.clone()?;
        let mut was_asked = false;
        loop {
            let takes_doubt = D::TAKES_DOUBT && !was_asked;
            let key = self.key.as_key();
            match self.engine.begin(key, request, &terms, takes_doubt)? {
                Began::Acquired(grant) => {
                    let lease = Lease::new(self.engine, key, &terms, grant);
                    return self.perform(lease, effect);
                }
                Began::Completed(found) => return Ok(Outcome::AlreadyDone(self.decode(&found)?)),
                Began::InProgress { attempt } => {
                    return Err(Error::InProgress { key: key.to_owned(), attempt }.into());
                }
                Began::InDoubt(grant) => {
                    let doubt = Doubt::new(self.engine, key, &terms, grant);
                    // Who may simply run it again may do so as often as it takes.
                    was_asked = !D::RERUNS;
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
                            Ok(lease) => return self.perform(lease, effect),
                            // The doubt has gone, or another has it: what the key says now decides.
                            Err(Error::Fenced { .. }) => {}
                            Err(error) => return Err(error.into()),
                        },
                        Reconciled::Unknown { reason } => {
                            let (key, attempt) = (key.to_owned(), doubt.attempt());
                            let reason = reason.or_else(|| Some("reconcile does not know".to_owned()));
                            let version = doubt.version();
                            return Err(Error::InDoubt { key, attempt, version, reason }.into());
                        }
                    }
                }
            }
        }
    }

    /// Records in one write that a side effect was seen and done, with its result, as
    /// [`Store::record`](crate::Store::record) does on bytes. An earlier result is given instead.
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
    /// As [`record`](Operation::record), and [`Error::Encode`] or [`Error::TooLarge`] of a result that cannot be recorded;
    /// then nothing is. [`Error::Decode`]: the recorded result is of another type.
    pub fn record_value<T>(self, result: &T) -> Result<Outcome<T>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let key = self.key.as_key();
        let request = self.request.clone()?;
        let encoded = self.encode(result).map_err(|unfit| unfit.into_error(key))?;
        match self.engine.record(key, request, encoded.value(), &terms)? {
            Ok(_) => Ok(Outcome::Done(encoded.returned)),
            Err(found) => self.decode(&found).map(Outcome::AlreadyDone),
        }
    }

    /// Puts a completed operation with this result in the place of `expected`, as
    /// [`Store::compare_and_set`](crate::Store::compare_and_set) does on bytes, so that a retry of [`run`](Operation::run)
    /// gets it. The fingerprint must be the stored one: give the same request, or the
    /// [`fingerprint`](crate::KeyState::fingerprint) that was seen.
    ///
    /// ```
    /// use oncekey::{Expected, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("charge:1").run(|_| Err::<u64, _>("timed out"));
    /// assert!(lost.is_err());
    /// // The gateway's own records say that it was charged.
    /// let seen = store.get("charge:1")?;
    /// let expected = Expected::Present { status: seen.status(), version: seen.version().expect("present") };
    /// store.operation("charge:1").complete_if(expected, &17_u64)?;
    /// let retried = store.operation("charge:1").run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(retried, Ok(Outcome::AlreadyDone(17))));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Store::compare_and_set`](crate::Store::compare_and_set), and [`Error::Encode`], also if the attempt was begun with
    /// another [`codec`](Operation::codec).
    pub fn complete_if<T>(self, expected: Expected, result: &T) -> Result<CasOutcome>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        self.engine.check_process()?;
        let terms = self.terms(false)?;
        let key = self.key.as_key();
        let Request { fingerprint, .. } = self.request.clone()?;
        let (_, seen) = self.engine.get(key, Patience::Endless)?;
        // Only the record that is expected decides about the codec: at another version nothing is recorded, and the answer
        // is `Differs`. The status does not matter here. It can change while the version stays, and then the codec that
        // was not checked would be recorded.
        let begun_with = seen
            .filter(|seen| matches!(expected, Expected::Present { version, .. } if version == seen.version))
            .and_then(|seen| seen.typing);
        let encoded = typed::check_codec::<C>(begun_with)
            .and_then(|()| self.encode(result))
            .map_err(|unfit| unfit.into_error(key))?;
        let next = Next::Completed { fingerprint, result: &encoded.bytes };
        let swap = self.engine.compare_and_set(key, expected, next, Some(encoded.typing), &terms)?;
        CasOutcome::of(self.engine, key, swap)
    }

    /// Runs the side effect under its lease.
    fn perform<T, E, F>(self, mut lease: Lease, effect: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        R: ReleasePolicy<E>,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        let attempt = Attempt::of_lease(self.engine, &lease);
        let in_closure = lease.enter_closure();
        let performed = effect(&attempt);
        drop(in_closure);
        lease.set_retention(attempt.retention());
        match performed {
            Ok(result) => match self.keep(&result, |value| lease.complete_as(value)) {
                Ok((_, Ok(returned))) => Ok(Outcome::Done(returned)),
                Ok((_, Err(source))) | Err(source) => {
                    Err(RunError::Unrecorded { result: Box::new(result), source })
                }
            },
            Err(error) if self.release.nothing_happened(&error) => match lease.release() {
                Ok(()) => Err(RunError::Released(error)),
                // What could not be recorded is not known to the next one who asks.
                Err(failed) => Err(RunError::InDoubt { error, release_failed: Some(Box::new(failed)) }),
            },
            Err(error) => {
                drop(lease);
                Err(RunError::InDoubt { error, release_failed: None })
            }
        }
    }

    /// Records what was found out about a doubt. The side effect happened, so from here on this call neither runs it nor
    /// loses its result, whatever became of the doubt.
    fn record_applied<T, E>(
        &self,
        doubt: &Doubt,
        request: Request,
        result: T,
    ) -> std::result::Result<Outcome<T>, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        let kept = self.keep(&result, |value| doubt.record_applied(request, value));
        let given = kept.and_then(|(applied, kept)| match applied {
            Applied::Recorded => kept,
            // The first recorded result stands, and every retry must get the same.
            Applied::Completed(found) => self.decode(&found),
        });
        match given {
            Ok(given) => Ok(Outcome::AlreadyDone(given)),
            Err(source) => Err(RunError::Unrecorded { result: Box::new(result), source }),
        }
    }

    /// Records by `record` that the side effect happened: with its result, or without one that cannot be recorded. Returns what
    /// `record` did, and the result that retries get or why they get none.
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

    fn encode<T>(&self, result: &T) -> std::result::Result<typed::Encoded<T>, typed::Unfit>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        typed::encode(&self.codec, self.typing(), result, self.engine.settings().max_result_bytes)
    }

    fn decode<T: Serialize + DeserializeOwned>(&self, found: &Found) -> Result<T>
    where
        C: Codec,
    {
        let decoded = typed::decode(&self.codec, found.result.as_deref().unwrap_or_default(), found.typing);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }
}
