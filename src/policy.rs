//! The policies of an [`Operation`](crate::Operation): what it does about a doubt and about an error of its closure,
//! and which messages it makes from its result.
//!
//! [`operation`](crate::operation) and [`batch`](crate::batch) are the only callers.

use std::fmt;
use std::marker::PhantomData;

use crate::attempt::Attempt;
use crate::error::Result;
use crate::messages::Messages;
use crate::outcome::{Finding, Reconciled};

/// What an [`Operation`](crate::Operation) does if an earlier attempt is in doubt: [`Refuse`], [`Rerun`] or
/// [`Reconcile`].
///
/// The builder methods of `Operation` choose the policy. This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`reconcile` does not return a finding about the result of `run`",
    note = "return an `Option<T>`, a `Result<Option<T>, E>` or a `Reconciled<T>` from `reconcile`, with the `T` of `run`"
)]
pub trait DoubtPolicy<T>: sealed::Sealed {
    #[doc(hidden)]
    const TAKES_DOUBT: bool;
    #[doc(hidden)]
    const RERUNS: bool;
    #[doc(hidden)]
    fn reconcile(&mut self, attempt: &Attempt) -> Reconciled<T>;
}

/// Fails with [`Error::InDoubt`](crate::Error::InDoubt) if an earlier attempt is in doubt. The default.
#[derive(Debug, Clone, Copy)]
pub struct Refuse;

/// Runs the side effect of an operation in doubt again: [`Operation::rerun`](crate::Operation::rerun).
#[derive(Debug, Clone, Copy)]
pub struct Rerun;

/// Finds out what happened to an operation that is in doubt: [`Operation::reconcile`](crate::Operation::reconcile).
pub struct Reconcile<F> {
    /// `None` after the closure was called.
    closure: Option<F>,
}

impl<F> Reconcile<F> {
    pub(crate) fn new(closure: F) -> Reconcile<F> {
        Reconcile { closure: Some(closure) }
    }
}

impl<F> fmt::Debug for Reconcile<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reconcile")
    }
}

impl<T> DoubtPolicy<T> for Refuse {
    const TAKES_DOUBT: bool = false;
    const RERUNS: bool = false;
    fn reconcile(&mut self, _attempt: &Attempt) -> Reconciled<T> {
        Reconciled::Unknown { reason: None }
    }
}

impl<T> DoubtPolicy<T> for Rerun {
    const TAKES_DOUBT: bool = true;
    const RERUNS: bool = true;
    fn reconcile(&mut self, _attempt: &Attempt) -> Reconciled<T> {
        Reconciled::NotApplied
    }
}

impl<T, Found: Finding<T>, F: FnOnce(&Attempt) -> Found> DoubtPolicy<T> for Reconcile<F> {
    const TAKES_DOUBT: bool = true;
    const RERUNS: bool = false;
    fn reconcile(&mut self, attempt: &Attempt) -> Reconciled<T> {
        let closure = self.closure.take();
        closure.map_or(Reconciled::Unknown { reason: None }, |closure| closure(attempt).into_reconciled())
    }
}

/// The policies for doubts that an entry of a [`Batch`](crate::Batch) can have: [`Refuse`] or [`Rerun`].
///
/// This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "a batch runs no closures, so it takes no operation with `reconcile`",
    note = "leave out `reconcile`, and resolve the doubt when its answer is `Answer::InDoubt`"
)]
pub trait BatchPolicy: sealed::Sealed {
    #[doc(hidden)]
    const RERUNS: bool;
}

impl BatchPolicy for Refuse {
    const RERUNS: bool = false;
}

impl BatchPolicy for Rerun {
    const RERUNS: bool = true;
}

/// What an [`Operation`](crate::Operation) does if its closure returns an error: [`KeepInDoubt`] or [`ReleaseIf`].
///
/// The builder methods of `Operation` choose the policy. This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`release_if` takes a different error type than the closure of `run` returns, which is `{E}`",
    note = "name the type: `.release_if(|error: &MyError| ..)` and `.run(|attempt| -> Result<_, MyError> {{ .. }})`"
)]
pub trait ReleasePolicy<E>: sealed::Sealed {
    #[doc(hidden)]
    fn nothing_happened(self, error: &E) -> bool;
}

/// Leaves the operation in doubt after any error of its closure. The default.
#[derive(Debug, Clone, Copy)]
pub struct KeepInDoubt;

/// Releases the operation after an error that proves that the side effect did not happen:
/// [`Operation::release_if`](crate::Operation::release_if).
pub struct ReleaseIf<E, F> {
    nothing_happened: F,
    error: PhantomData<fn(&E)>,
}

impl<E, F> ReleaseIf<E, F> {
    pub(crate) fn new(nothing_happened: F) -> ReleaseIf<E, F> {
        ReleaseIf { nothing_happened, error: PhantomData }
    }
}

impl<E, F> fmt::Debug for ReleaseIf<E, F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ReleaseIf")
    }
}

impl<E> ReleasePolicy<E> for KeepInDoubt {
    fn nothing_happened(self, _error: &E) -> bool {
        false
    }
}

impl<E, F: FnOnce(&E) -> bool> ReleasePolicy<E> for ReleaseIf<E, F> {
    fn nothing_happened(self, error: &E) -> bool {
        (self.nothing_happened)(error)
    }
}

/// Which messages an [`Operation`](crate::Operation) emits besides those of its closure: [`NoMessages`] or [`OnComplete`].
///
/// The builder methods of `Operation` choose the policy. This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`on_complete` takes a different result type than the call records, which is `{T}`",
    note = "name the type: `.on_complete(|result: &MyResult, outbox| ..)`"
)]
pub trait EmitPolicy<T>: sealed::Sealed {
    #[doc(hidden)]
    fn emit(&mut self, result: &T, messages: &mut Messages) -> Result<()>;
}

/// Emits no other messages than the closure of the operation. The default.
#[derive(Debug, Clone, Copy)]
pub struct NoMessages;

/// Makes messages from the result: [`Operation::on_complete`](crate::Operation::on_complete).
pub struct OnComplete<T, F> {
    /// `None` after the closure was called.
    closure: Option<F>,
    result: PhantomData<fn(&T)>,
}

impl<T, F> OnComplete<T, F> {
    pub(crate) fn new(closure: F) -> OnComplete<T, F> {
        OnComplete { closure: Some(closure), result: PhantomData }
    }
}

impl<T, F> fmt::Debug for OnComplete<T, F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("OnComplete")
    }
}

impl<T> EmitPolicy<T> for NoMessages {
    fn emit(&mut self, _result: &T, _messages: &mut Messages) -> Result<()> {
        Ok(())
    }
}

impl<T, F: FnOnce(&T, &mut Messages) -> Result<()>> EmitPolicy<T> for OnComplete<T, F> {
    fn emit(&mut self, result: &T, messages: &mut Messages) -> Result<()> {
        self.closure.take().map_or(Ok(()), |closure| closure(result, messages))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Refuse {}
    impl Sealed for super::Rerun {}
    impl<F> Sealed for super::Reconcile<F> {}
    impl Sealed for super::KeepInDoubt {}
    impl<E, F> Sealed for super::ReleaseIf<E, F> {}
    impl Sealed for super::NoMessages {}
    impl<T, F> Sealed for super::OnComplete<T, F> {}
}
