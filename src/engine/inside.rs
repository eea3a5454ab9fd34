//! Tracks the claims that this thread works under: those of the calls of `run` whose closures it is running.
//!
//! If a call made in such a closure waited for the claim, it would wait for itself. Work that a closure passes to
//! another thread is not tracked.
//!
//! Also tracks the progress callbacks of long calls that this thread is in. A close in one of them would close the store
//! under the call that it reports about.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::flights::{Claim, Flights};
use crate::planted::{Bug, planted};

/// A claim, with the hash of its key and the address of its store's flights. The store outlives the closure, so the
/// address identifies it.
type HeldClaim = (*const Flights, u128, Claim);

#[cfg(not(oncekey_shuttle))]
thread_local! {
    static HELD: RefCell<Vec<HeldClaim>> = const { RefCell::new(Vec::new()) };
    static CALLBACKS: RefCell<Vec<*const Flights>> = const { RefCell::new(Vec::new()) };
}

// Shuttle runs all its threads on one thread of the operating system, so it needs its own thread-local storage.
#[cfg(oncekey_shuttle)]
shuttle::thread_local! {
    static HELD: RefCell<Vec<HeldClaim>> = RefCell::new(Vec::new());
    static CALLBACKS: RefCell<Vec<*const Flights>> = RefCell::new(Vec::new());
}

/// Marks this thread as running the closure of a `run`. Dropped when the closure returns or unwinds.
#[derive(Debug)]
#[must_use = "the thread no longer counts as inside the closure once this is dropped"]
pub(crate) struct InClosure {
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for InClosure {
    fn drop(&mut self) {
        // The last closure that the thread entered is the first to end.
        let _ = HELD.try_with(|held| held.borrow_mut().pop());
    }
}

/// Registers that this thread is about to call the closure that runs under `claim`.
pub(super) fn enter(flights: &Arc<Flights>, hash: u128, claim: Claim) -> InClosure {
    HELD.with(|held| held.borrow_mut().push((Arc::as_ptr(flights), hash, claim)));
    InClosure { _of_this_thread: PhantomData }
}

/// Whether this thread is running the closure that runs under `claim`.
pub(super) fn is_own(flights: &Flights, hash: u128, claim: Claim) -> bool {
    let is_own = |held: &HeldClaim| std::ptr::eq(held.0, flights) && held.1 == hash && held.2.is(claim);
    !planted(Bug::WaitsForItself) && HELD.with(|held| held.borrow().iter().any(is_own))
}

/// Marks this thread as in a progress callback of a store. Dropped when the callback returns or unwinds.
#[derive(Debug)]
#[must_use = "the thread no longer counts as in the callback once this is dropped"]
pub(crate) struct InCallback {
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for InCallback {
    fn drop(&mut self) {
        let _ = CALLBACKS.try_with(|callbacks| callbacks.borrow_mut().pop());
    }
}

/// Registers that this thread is about to call a progress callback of the store with these flights.
pub(super) fn enter_callback(flights: &Flights) -> InCallback {
    CALLBACKS.with(|callbacks| callbacks.borrow_mut().push(std::ptr::from_ref(flights)));
    InCallback { _of_this_thread: PhantomData }
}

/// Whether this thread is in a progress callback of the store with these flights.
pub(super) fn is_in_callback(flights: &Flights) -> bool {
    !planted(Bug::CloseWaitsForItself)
        && CALLBACKS.with(|callbacks| callbacks.borrow().iter().any(|other| std::ptr::eq(*other, flights)))
}
