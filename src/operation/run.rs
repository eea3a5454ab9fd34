//! The calls that end an [`Operation`] with a typed result: [`run`](Operation::run),
//! [`record_value`](Operation::record_value) and [`complete_if`](Operation::complete_if). The engine does the work.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Operation, StoredInput};
use crate::attempt::Attempt;
use crate::codec::Codec;
use crate::doubt::Doubt;
use crate::engine::{Applied, Began, Engine, Expected, InClosure, Next, Request, Terms};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::record::Value;
use crate::key::Key;
use crate::lease::Lease;
use crate::messages::Messages;
use crate::outcome::{Outcome, RunError};
use crate::policy::{DoubtPolicy, EmitPolicy, ReleasePolicy};
use crate::side_effect::{Beginning, Subject};
use crate::stats::CasOutcome;
use crate::sync::Patience;
use crate::typed;

/// An operation as what is run.
struct OperationSubject<'a> {
    engine: &'a Arc<Engine>,
    key: Key<'a>,
    terms: &'a Terms,
    input: Option<Value<'a>>,
}

impl Subject for OperationSubject<'_> {
    type Lease = Lease;
    type Doubt = Doubt;
    type InClosure = InClosure;

    fn key(&self) -> Key<'_> {
        self.key
    }

    fn terms(&self) -> &Terms {
        self.terms
    }

    fn notes(&self) -> bool {
        self.engine.settings().notes
    }

    fn begin(&self, request: Request, takes_doubt: bool) -> Result<Beginning<Lease, Doubt>> {
        let OperationSubject { engine, key, terms, input } = *self;
        Ok(match engine.begin_with(key, request, terms, takes_doubt, input)? {
            Began::Acquired(grant) => Beginning::Acquired(Lease::new(engine, key, terms, grant)),
            Began::InDoubt(grant) => Beginning::InDoubt(Doubt::new(engine, key, terms, grant)),
            Began::InProgress { attempt } => Beginning::InProgress { attempt },
            Began::Completed(found) => Beginning::Completed(found),
        })
    }

    fn begin_again(&self, doubt: Doubt) -> Result<Lease> {
        doubt.begin_again()
    }

    fn running(&self, lease: &Lease) -> (Attempt, InClosure) {
        (Attempt::of_lease(self.engine, lease), lease.enter_closure())
    }

    fn reconciling(&self, doubt: &Doubt) -> (Attempt, InClosure) {
        (Attempt::of_doubt(self.engine, doubt), doubt.enter_closure())
    }

    fn emitted(&self, attempt: &Attempt) -> Messages {
        attempt.take_messages()
    }

    fn complete(
        &self,
        lease: &mut Lease,
        attempt: &Attempt,
        (value, messages): (Value<'_>, Messages),
    ) -> Result<()> {
        lease.set_retention(attempt.retention());
        lease.set_messages(messages);
        let unvisited = self.engine.unvisited_steps(attempt.hashed_key(), attempt.version());
        lease.complete_as(value)?;
        let _events = crate::events::hold_back();
        unvisited.iter().for_each(|step| crate::events::step_unvisited(self.key, step));
        Ok(())
    }

    fn release(&self, lease: Lease) -> Result<()> {
        lease.release()
    }

    fn leave_in_doubt(&self, lease: Lease, note: &str) {
        lease.leave_in_doubt(note);
    }

    fn is_stopped(&self, attempt: &Attempt) -> bool {
        self.engine.is_stopped(attempt.hashed_key(), attempt.version())
    }

    fn new_messages(&self, doubt: &Doubt) -> Messages {
        doubt.new_messages()
    }

    fn record_applied(
        &self,
        doubt: &mut Doubt,
        request: Request,
        (value, messages): (Value<'_>, &Messages),
    ) -> Result<Applied> {
        doubt.record_applied(request, value, messages)
    }
}

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
    pub fn run<T, E, F>(self, effect: F) -> std::result::Result<Outcome<T>, RunError<T, E>>
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
        let input = self.input.transpose()?;
        let input = input.as_ref().map(StoredInput::value);
        let subject = OperationSubject { engine: self.engine, key: self.key.as_key(), terms: &terms, input };
        self.effect.run(&subject, effect)
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
        let request = self.effect.request.clone()?;
        let encoded = self.encode(result).map_err(|unfit| unfit.into_error(key))?;
        match self.engine.record(key, request, encoded.value(), messages.list(), &terms)? {
            Ok(_) => Ok(Outcome::Done(encoded.returned)),
            Err(found) => self.effect.decode(key, &found).map(Outcome::AlreadyDone),
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
        let Request { fingerprint, .. } = self.effect.request.clone()?;
        let (_, seen) = match key.step_name() {
            None => self.engine.get(key, Patience::Endless)?,
            Some(_) => self.engine.get_step(self.engine.step(key)?)?,
        };
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
        CasOutcome::set(self.engine, key, expected, next, messages.list(), &terms)
    }

    /// The messages that are made from a result which is recorded without an attempt.
    fn messages_of<T>(&mut self, result: &T, terms: &Terms) -> Result<Messages>
    where
        M: EmitPolicy<T>,
    {
        let mut messages = Messages::of(self.key.as_key(), terms.typing, terms.emits_bytes);
        self.effect.emit.emit(result, &mut messages)?;
        Ok(messages)
    }

    pub(crate) fn encode<T>(&self, result: &T) -> std::result::Result<typed::Encoded<T>, typed::Unfit>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
    {
        // A limit that the store does not allow is refused with the other terms.
        let limit_bytes =
            self.effect.max_result_bytes(self.engine, self.unchecked.emits_bytes).unwrap_or(usize::MAX);
        self.effect.encode(result, limit_bytes)
    }
}
