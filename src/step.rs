//! Steps: the side effects of an operation that has several. This file owns the builder, [`Step`], and the calls on an
//! [`Attempt`] that are about its steps and its input. `side_effect` runs a step, as it runs an operation.

mod held;

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attempt::Attempt;
use crate::codec::{Codec, DefaultCodec};
use crate::engine::{Engine, StepOf, Terms};
use crate::error::{Error, Result};
use crate::key::{Fingerprint, Key};
use crate::listed_step::ListedStep;
use crate::outcome::{Outcome, RunError};
use crate::planted::{Bug, planted};
use crate::policy::{DoubtPolicy, KeepInDoubt, Reconcile, Refuse, ReleaseIf, ReleasePolicy, Rerun};
use crate::side_effect::SideEffect;
use crate::status::Version;
use crate::sync::Patience;
use crate::typed;
use held::StepSubject;

impl Attempt {
    /// Returns a builder for a step: one of several side effects of this operation, which is run once whatever happens to the
    /// others. [`Step::run`] executes it.
    ///
    /// The closure of the operation calls its steps in order. If the process dies, or a step fails, the operation is run
    /// again: the steps that are done return their recorded results without running, and the first one that is not done goes
    /// on by its own rule for doubt. So the closure is the plan of the whole job, and it can be run any number of times. Give
    /// the operation [`rerun`](crate::Operation::rerun): its own code is repeatable, its side effects are in its steps.
    ///
    /// ```
    /// use oncekey::{Attempt, Outcome, RunError, Store};
    ///
    /// # #[derive(Default)] struct World { charged: std::cell::Cell<u32>, is_down: std::cell::Cell<bool> }
    /// # impl World {
    /// #     fn charge(&self, _token: String) -> Result<u64, String> { self.charged.set(self.charged.get() + 1); Ok(17) }
    /// #     fn ship(&self, _token: String) -> Result<String, String> { if self.is_down.get() { Err("refused".into()) } else { Ok("parcel 9".into()) } }
    /// # }
    /// # let (gateway, carrier) = (World::default(), World::default());
    /// let store = Store::in_memory()?;
    /// let order = |job: &Attempt| -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    ///     let receipt = job.step("charge").request(&("order-7", 1_000)).run(|step| gateway.charge(step.token()))?;
    ///     let parcel = job.step("ship").release_if(|error| error == "refused").run(|step| carrier.ship(step.token()))?;
    ///     Ok(format!("receipt {receipt}, {parcel}"))
    /// };
    ///
    /// # carrier.is_down.set(true);
    /// // The charge is done, and the carrier refuses the connection.
    /// let stopped = store.operation("order-7").rerun().run(order);
    /// assert!(matches!(stopped, Err(RunError::Stopped(_))));
    /// # carrier.is_down.set(false);
    /// // The next call takes the receipt from the store, and ships.
    /// let done = store.operation("order-7").rerun().run(order)?;
    /// assert_eq!(done, Outcome::Done("receipt 17, parcel 9".to_owned()));
    /// # assert_eq!(gateway.charged.get(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Names
    ///
    /// A step is known by its name, within its operation: 1 to 1,024 bytes. Name it by what it is about, `ship:item-3`, and
    /// never by its number in a loop: when the list changes between two attempts, a number means another item. A name can be
    /// used once in an attempt; a second use is [`Error::StepReused`], unless the first one was
    /// [released](RunError::Released). An operation has at most 65,536 steps.
    ///
    /// # What a step holds
    ///
    /// A step that began and was not released holds its operation: the operation cannot be released any more, and cannot be
    /// completed while the step is in doubt. Both are [`Error::HasSteps`]. [`give_up`](Attempt::give_up) lets go of a step
    /// whose outcome will never be known. A step ends with its operation, and never by time.
    ///
    /// Steps may run in several threads at once. A step has no steps of its own: in the closure of a step, this call is
    /// [`Error::Option`] when the step is run.
    pub fn step(&self, name: impl AsRef<[u8]>) -> Step<'_> {
        Step { attempt: self, name: name.as_ref().into(), effect: SideEffect::new() }
    }

    /// Lists the steps of the operation that have begun, in the order in which they last changed.
    ///
    /// ```
    /// use oncekey::{Status, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let listed = store.operation("order-7").run(|job| {
    ///     job.step("reserve").run(|_| Ok::<u64, String>(3)).map_err(|error| error.to_string())?;
    ///     let steps = job.steps().map_err(|error| error.to_string())?;
    ///     assert_eq!((steps[0].name(), steps[0].status()), (&b"reserve"[..], Status::Completed));
    ///     Ok::<_, String>(steps.len() as u64)
    /// });
    /// assert_eq!(listed.expect("no step failed").into_inner(), 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], [`Error::Io`]: the record of a step cannot be read. [`Error::Closed`], [`Error::Forked`],
    /// [`Error::Fenced`]: the store is gone.
    pub fn steps(&self) -> Result<Vec<ListedStep>> {
        let operation = self.at_operation();
        let listed = self.engine()?.list_steps(operation.hashed_key())?;
        listed.into_iter().map(|step| Ok(ListedStep::new(operation.key(), step?))).collect()
    }

    /// Gives up a step whose outcome will never be known, so that the operation can be completed in spite of it. The decision
    /// is recorded.
    ///
    /// Returns false if there is nothing to give up: the step did not begin, or it is done or was released. A step that was
    /// given up is still in doubt, and the next attempt at the operation may ask for it again.
    ///
    /// ```
    /// use oncekey::{Error, RunError, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let mailed = store.operation("order-7").run(|job| {
    ///     let sent = job.step("mail").run(|_| Err::<u64, _>("no answer"));
    ///     if sent.is_err() {
    ///         job.give_up("mail").map_err(|error| error.to_string())?; // the customer can live without it
    ///     }
    ///     Ok::<_, String>("done".to_owned())
    /// });
    /// assert_eq!(mailed.expect("completed without the mail").into_inner(), "done");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Fenced`]: the attempt does not own its operation any more, or it is an attempt in doubt.
    /// - [`Error::Key`]: the name is empty or too long.
    /// - [`Error::Full`]: there is no space for the record.
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk failed. [`Error::Closed`], [`Error::Forked`].
    pub fn give_up(&self, name: impl AsRef<[u8]>) -> Result<bool> {
        let operation = self.at_operation();
        let key = operation.key().step(&name);
        key.check_lengths()?;
        self.engine()?.give_up_step(step_of(operation, key), operation.version())
    }

    /// Returns the [input](crate::Operation::input) with which the operation was first begun, decoded with the codec that
    /// encoded it.
    ///
    /// A later attempt gets what the first one was given, also in another process, and whatever its own caller passes.
    ///
    /// ```
    /// use oncekey::{Error, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let ship = |parcels: u32| store.operation("order-7").request(&"order-7").input(&parcels).rerun().run(|job| {
    ///     let parcels: u32 = job.input()?;
    ///     if job.number() == 1 { Err(Error::Closed) } else { Ok(parcels) }
    /// });
    /// assert!(ship(3).is_err());
    /// assert_eq!(ship(99).expect("the second attempt succeeds").into_inner(), 3);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::NoInput`]: the operation was begun without an input, or has ended.
    /// - [`Error::Decode`]: it was recorded as a different type, or with a codec that is not one of this crate's: see
    ///   [`input_with`](Attempt::input_with).
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk failed. [`Error::Closed`], [`Error::Forked`],
    ///   [`Error::Fenced`]: the store is gone.
    pub fn input<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let (bytes, typing) = self.stored_input()?;
        typed::decode_as(typing, &bytes).map_err(|source| Error::decode(self.at_operation().key(), source))
    }

    /// Returns the input like [`input`](Attempt::input), decoded with `codec`.
    ///
    /// # Errors
    ///
    /// Those of [`input`](Attempt::input).
    pub fn input_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<T> {
        let (bytes, typing) = self.stored_input()?;
        typed::decode(codec, &bytes, typing)
            .map_err(|source| Error::decode(self.at_operation().key(), source))
    }

    fn stored_input(&self) -> Result<typed::Stored> {
        let operation = self.at_operation();
        let found = self.engine()?.input(operation.hashed_key())?;
        let Some(found) = found else { return Err(Error::NoInput { key: operation.key().to_owned() }) };
        Ok((found.result.unwrap_or_default(), found.typing))
    }
}

/// The step of this key, as the engine takes it. Its key has the name of the step, so that errors have it, too.
fn step_of<'a>(operation: &Attempt, key: Key<'a>) -> StepOf<'a> {
    StepOf::new(key, operation.hashed_key().hash)
}

/// A builder for one step of an operation. [`Attempt::step`] returns it, and [`run`](Step::run) executes it.
///
/// A step is an operation under another one, and its methods mean what they mean for an
/// [`Operation`](crate::Operation). It has no scope, retention, lease, wait or durability of its own: those of the operation
/// apply.
///
/// | to say | call | without it |
/// |---|---|---|
/// | what the request is | [`request`](Step::request) | the name alone identifies the step |
/// | what to do about a doubt | [`reconcile`](Step::reconcile) or [`rerun`](Step::rerun) | [`Error::InDoubt`] |
/// | which errors mean that nothing happened | [`release_if`](Step::release_if) | every error leaves a doubt |
#[must_use = "a step does nothing until it is run"]
pub struct Step<'a, C = DefaultCodec, D = Refuse, R = KeepInDoubt> {
    attempt: &'a Attempt,
    name: Box<[u8]>,
    effect: SideEffect<C, D, R>,
}

impl<'a, C, R> Step<'a, C, Refuse, R> {
    /// Resolves a doubt about the step with `reconcile`, a closure that finds out whether its side effect happened: see
    /// [`Operation::reconcile`](crate::Operation::reconcile). The closure receives the attempt at the step, and searches by
    /// its [`token`](Attempt::token).
    pub fn reconcile<F, Found>(self, reconcile: F) -> Step<'a, C, Reconcile<F>, R>
    where
        F: FnOnce(&Attempt) -> Found,
    {
        self.with_effect(|effect| effect.with_doubt(Reconcile::new(reconcile)))
    }

    /// Resolves a doubt about the step by running its side effect again: see
    /// [`Operation::rerun`](crate::Operation::rerun). The begin of the step is then not synced, so the step takes one sync.
    pub fn rerun(self) -> Step<'a, C, Rerun, R> {
        self.with_effect(|effect| effect.with_doubt(Rerun))
    }
}

impl<'a, C, D> Step<'a, C, D, KeepInDoubt> {
    /// Releases the step if `nothing_happened` returns true for the error of the closure: see
    /// [`Operation::release_if`](crate::Operation::release_if). A step that was released does not hold its operation, and
    /// can be run again in the same attempt.
    pub fn release_if<E, F>(self, nothing_happened: F) -> Step<'a, C, D, ReleaseIf<E, F>>
    where
        F: FnOnce(&E) -> bool,
    {
        self.with_effect(|effect| effect.with_release(ReleaseIf::new(nothing_happened)))
    }
}

impl<'a, C, D, R> Step<'a, C, D, R> {
    fn with_effect<B, E, S>(
        self,
        change: impl FnOnce(SideEffect<C, D, R>) -> SideEffect<B, E, S>,
    ) -> Step<'a, B, E, S> {
        let Step { attempt, name, effect } = self;
        Step { attempt, name, effect: change(effect) }
    }

    /// Encodes and decodes the result with `codec` instead of the default codec.
    pub fn codec<B: Codec>(self, codec: B) -> Step<'a, B, D, R> {
        self.with_effect(|effect| effect.with_codec(codec))
    }

    /// Sets the request, so that a step of the same name with a different request is [`Error::Mismatch`]: see
    /// [`Operation::request`](crate::Operation::request). Pass the item that the step is about: it finds the mistake that two
    /// attempts mean different items by one name.
    pub fn request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        match self.attempt.engine() {
            Ok(engine) => {
                let key = self.attempt.key();
                self.effect.set_request(&engine, key.step(&self.name), request);
            }
            Err(error) => self.effect.request = Err(error),
        }
        self
    }

    /// Also accepts a step that was recorded with the fingerprint of `request`: see
    /// [`Operation::or_request`](crate::Operation::or_request).
    pub fn or_request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        match self.attempt.engine() {
            Ok(engine) => {
                let key = self.attempt.key();
                self.effect.set_or_request(&engine, key.step(&self.name), request);
            }
            Err(error) => self.effect.request = Err(error),
        }
        self
    }

    /// Sets a fingerprint that the caller made itself, instead of a [`request`](Step::request).
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.effect.set_fingerprint(fingerprint);
        self
    }

    /// Sets the maximum length of the step's result, in bytes, instead of
    /// [`Options::max_result`](crate::Options::max_result): see
    /// [`Operation::max_result`](crate::Operation::max_result).
    pub fn max_result(mut self, bytes: usize) -> Self {
        self.effect.set_max_result(bytes);
        self
    }

    /// Runs the side effect of the step unless it ran before, and returns its result in both cases.
    ///
    /// It returns the result itself and not an [`Outcome`], because the code of a job must do the same whether a step ran now
    /// or in an earlier attempt: what it did only for a step that ran now, it would skip after a crash.
    ///
    /// Everything else is as for [`Operation::run`](crate::Operation::run): what is recorded, what an error means for the
    /// step, and the annotation that a closure needs which ends in `Ok(..)`. The operator `?` converts the error to an
    /// `anyhow::Error` or a `Box<dyn Error>`; for an enum of your own, see [`RunError::flatten`].
    ///
    /// # Errors
    ///
    /// - [`RunError::Released`], [`RunError::InDoubt`]: `effect` failed. Return the error from the closure of the operation,
    ///   so that its next attempt goes on with this step.
    /// - [`RunError::Unrecorded`]: the side effect happened, in this call or as `reconcile` found out, but its result was not
    ///   recorded. The error contains the result.
    /// - [`RunError::Store`]: the store returned an error, and this call did not run the side effect.
    ///   - [`Error::StepReused`]: this attempt has asked for the step before.
    ///   - [`Error::Mismatch`]: the step was run with a different request.
    ///   - [`Error::InDoubt`], [`Error::ResultNotKept`], [`Error::Decode`]: answers about the step.
    ///   - [`Error::Fenced`]: the attempt does not own its operation any more, or it is an attempt in doubt.
    ///   - [`Error::Full`]: there is no space to begin the step. The operation can go on once there is.
    ///   - [`Error::TooManySteps`], [`Error::Key`]; [`Error::Option`]: a setting has an invalid value, or the call was made
    ///     in the closure of a step.
    ///   - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`], [`Error::Replaced`], [`Error::VersionsExhausted`],
    ///     [`Error::Closed`], [`Error::Forked`]: as for [`Store::begin`](crate::Store::begin).
    pub fn run<T, E, F>(self, effect: F) -> std::result::Result<T, RunError<T, E>>
    where
        C: Codec,
        T: Serialize + DeserializeOwned,
        D: DoubtPolicy<T>,
        R: ReleasePolicy<E>,
        E: fmt::Display,
        F: FnOnce(&Attempt) -> std::result::Result<T, E>,
    {
        let engine = self.attempt.engine()?;
        engine.check_process()?;
        self.check_not_nested(&engine)?;
        let key = self.attempt.key().step(&self.name).to_owned();
        key.as_key().check_lengths().map_err(Error::from)?;
        let terms = Terms {
            begin_unsynced: D::RERUNS,
            typing: self.effect.typing(),
            patience: Patience::None,
            max_result_bytes: self.effect.max_result_bytes(&engine, 0)?,
            ..*self.attempt.terms()
        };
        let subject = StepSubject { engine, operation: self.attempt, key, terms };
        self.effect.run(&subject, effect).map(Outcome::into_inner)
    }

    /// Refuses a step in the closure of a step: on the handle of the inner closure, or on that of the operation, which the
    /// inner closure can use as well.
    fn check_not_nested(&self, engine: &Arc<Engine>) -> Result<()> {
        let operation = self.attempt.at_operation();
        if planted(Bug::StepInStep)
            || std::ptr::eq(operation, self.attempt) && !InStep::is_inside(engine, operation)
        {
            return Ok(());
        }
        let reason =
            "a step has no steps of its own; run it in the closure of the operation, after the other one"
                .into();
        Err(Error::Option { option: "step", reason })
    }
}

impl<C, D, R> fmt::Debug for Step<'_, C, D, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Step").field("key", &self.attempt.key().step(&self.name)).finish_non_exhaustive()
    }
}

/// The store, the operation and the attempt at it, of a step: an address in memory, a hash and a version.
type RunningStep = (*const Engine, u128, Version);

// The steps whose closures this thread is running.
#[cfg(not(oncekey_shuttle))]
thread_local! {
    static RUNNING: RefCell<Vec<RunningStep>> = const { RefCell::new(Vec::new()) };
}

// Shuttle runs all its threads on one thread of the operating system, so it needs its own thread-local storage.
#[cfg(oncekey_shuttle)]
shuttle::thread_local! {
    static RUNNING: RefCell<Vec<RunningStep>> = RefCell::new(Vec::new());
}

/// Marks this thread as inside the closure of a step until it is dropped.
#[derive(Debug)]
struct InStep {
    _of_this_thread: PhantomData<*const ()>,
}

impl InStep {
    fn enter(engine: &Arc<Engine>, operation: &Attempt) -> InStep {
        RUNNING.with(|running| running.borrow_mut().push(InStep::mark(engine, operation)));
        InStep { _of_this_thread: PhantomData }
    }

    fn mark(engine: &Arc<Engine>, operation: &Attempt) -> RunningStep {
        (Arc::as_ptr(engine), operation.hashed_key().hash, operation.version())
    }

    fn is_inside(engine: &Arc<Engine>, operation: &Attempt) -> bool {
        let step = InStep::mark(engine, operation);
        RUNNING.with(|running| running.borrow().contains(&step))
    }
}

impl Drop for InStep {
    fn drop(&mut self) {
        // The last closure that the thread entered is the first to end.
        let _ = RUNNING.try_with(|running| running.borrow_mut().pop());
    }
}

// Two attributes, because clippy recognizes only the plain `cfg(test)` as test code.
#[cfg(test)]
#[cfg(all(feature = "bincode", not(oncekey_shuttle)))]
mod tests;
