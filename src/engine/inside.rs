//! Which claims this thread's own callers work under: those of the `run`s whose closures it is in.
//!
//! A call from such a closure that waited for the claim would wait for itself. What a closure has another thread do is not
//! known here.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use super::Engine;
use crate::flights::Claim;
use crate::key::Key;
use crate::planted::{Bug, planted};

/// A claim of one store. The store cannot go while the closure runs, so its address tells it from every other.
type Held = (*const Engine, u128, Claim);

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

impl Engine {
    /// This thread is about to call the closure that acts under `claim`.
    pub(crate) fn enter_closure(self: &Arc<Self>, key: Key<'_>, claim: Claim) -> InClosure {
        let hash = self.log.hasher().key(key);
        HELD.with(|held| held.borrow_mut().push((Arc::as_ptr(self), hash, claim)));
        InClosure { _of_this_thread: PhantomData }
    }

    /// Whether this thread is in the closure that acts under `claim`.
    pub(super) fn is_own(&self, hash: u128, claim: Claim) -> bool {
        let is_own = |held: &Held| std::ptr::eq(held.0, self) && held.1 == hash && held.2.is(claim);
        !planted(Bug::WaitsForItself) && HELD.with(|held| held.borrow().iter().any(is_own))
    }
}
