//! Which claims this thread works under: those of the `run`s whose closures it is in.
//!
//! A call from such a closure that waited for the claim would wait for itself. Work that a closure gives to another thread is
//! not known here.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::flights::{Claim, Flights};
use crate::planted::{Bug, planted};

/// A claim of one store. The store outlives the closure, so the address of its flights is unique.
type Held = (*const Flights, u128, Claim);

#[cfg(not(oncekey_shuttle))]
thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

// Shuttle runs all its threads on one.
#[cfg(oncekey_shuttle)]
shuttle::thread_local! {
    static HELD: RefCell<Vec<Held>> = RefCell::new(Vec::new());
}

/// This thread is in the closure of a `run`, until this is dropped: at the end of the closure or of its panic.
#[derive(Debug)]
#[must_use = "the closure is over when this is dropped"]
pub(crate) struct InClosure {
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for InClosure {
    fn drop(&mut self) {
        // The closures that a thread is in end in the reverse order.
        let _ = HELD.try_with(|held| held.borrow_mut().pop());
    }
}

/// This thread is about to call the closure that runs under `claim`.
pub(super) fn enter(flights: &Arc<Flights>, hash: u128, claim: Claim) -> InClosure {
    HELD.with(|held| held.borrow_mut().push((Arc::as_ptr(flights), hash, claim)));
    InClosure { _of_this_thread: PhantomData }
}

/// Whether this thread is in the closure that runs under `claim`.
pub(super) fn is_own(flights: &Flights, hash: u128, claim: Claim) -> bool {
    let is_own = |held: &Held| std::ptr::eq(held.0, flights) && held.1 == hash && held.2.is(claim);
    !planted(Bug::WaitsForItself) && HELD.with(|held| held.borrow().iter().any(is_own))
}
