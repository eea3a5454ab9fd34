//! What an operation does about a doubt, and about an error of its closure.

use std::fmt;
use std::marker::PhantomData;

use crate::outcome::{Attempt, Finding, Reconciled};

/// What an [`Operation`](crate::Operation) does about a doubt: [`Refuse`], [`Rerun`] or [`Reconcile`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "what `reconcile` returns is no finding about the result of `run`",
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

/// An operation in doubt is [`Error::InDoubt`](crate::Error::InDoubt): the default.
#[derive(Debug, Clone, Copy)]
pub struct Refuse;

/// An operation in doubt is run again: [`Operation::rerun`](crate::Operation::rerun).
#[derive(Debug, Clone, Copy)]
pub struct Rerun;

/// An operation in doubt is looked into: [`Operation::reconcile`](crate::Operation::reconcile).
pub struct Reconcile<F> {
    /// Until it was asked.
    ask: Option<F>,
}

impl<F> Reconcile<F> {
    pub(crate) fn new(ask: F) -> Reconcile<F> {
        Reconcile { ask: Some(ask) }
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
        self.ask.take().map_or(Reconciled::Unknown { reason: None }, |ask| ask(attempt).into_reconciled())
    }
}

/// What an [`Operation`](crate::Operation) does about an error of its closure: [`KeepInDoubt`] or [`ReleaseIf`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "`release_if` judges another error than the closure of `run` returns, which is `{E}`",
    note = "name the type: `.release_if(|error: &MyError| ..)` and `.run(|attempt| -> Result<_, MyError> {{ .. }})`"
)]
pub trait ReleasePolicy<E>: sealed::Sealed {
    #[doc(hidden)]
    fn nothing_happened(self, error: &E) -> bool;
}

/// Every error leaves the operation in doubt: the default.
#[derive(Debug, Clone, Copy)]
pub struct KeepInDoubt;

/// Some errors say that nothing happened: [`Operation::release_if`](crate::Operation::release_if).
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

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Refuse {}
    impl Sealed for super::Rerun {}
    impl<F> Sealed for super::Reconcile<F> {}
    impl Sealed for super::KeepInDoubt {}
    impl<E, F> Sealed for super::ReleaseIf<E, F> {}
}
