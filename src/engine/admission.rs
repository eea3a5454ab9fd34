//! Whether the store is open, which calls may change it, and which process it belongs to.
//!
//! Every call that changes something is **admitted**: it holds an [`Admitted`] from before it enters a flight until it
//! has left it. It does not hold one while the caller's own code runs, nor while it waits for another caller's lease:
//! a call that waited is admitted again, as a new call. Admission is taken before every other lock of the engine.
//!
//! A process that is **forked** from the one that opened the store inherits its memory, with locks held by threads that
//! it does not have, and its open file. It must touch neither: see [`Admission::check_process`].
//!
//! `lifecycle` closes the store with what is here.

use crate::error::{Error, Result};
use crate::map::ForkMark;
use crate::planted::{Bug, planted};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The phase of a store, in the lowest bits of [`Admission::state`].
const OPEN: u64 = 0;
const CLOSING: u64 = 1;
const CLOSED: u64 = 3;
const PHASE: u64 = 3;
/// One call inside, in the same number.
const CALL: u64 = 4;

/// A number on a cache line of its own: every change writes to it, and reads must not wait for that.
#[derive(Debug)]
#[repr(align(128))]
struct Counted(AtomicU64);

/// Which calls may change the store. See the [module](self).
#[derive(Debug)]
pub(super) struct Admission {
    fork_mark: ForkMark,
    /// Set once, when no call is inside any more. The only part that a read checks.
    closed: AtomicBool,
    /// The phase, and above it the number of calls inside. In one number, so that a call is counted and reads the phase in one
    /// step: either the closing thread sees the call, or the call sees that the store is closing.
    state: Counted,
    /// Held by the one call that closes the store.
    closer: Mutex<()>,
    /// Locked by a thread that waits for one of the two conditions, and by the thread that makes it true.
    gate: Mutex<()>,
    /// No call is inside.
    emptied: Condvar,
    /// The store is open again, or closed.
    decided: Condvar,
}

impl Admission {
    pub(super) fn new() -> Admission {
        Admission {
            fork_mark: ForkMark::new(),
            closed: AtomicBool::new(false),
            state: Counted(AtomicU64::new(OPEN)),
            closer: Mutex::default(),
            gate: Mutex::default(),
            emptied: Condvar::default(),
            decided: Condvar::default(),
        }
    }

    /// Whether this process was forked from the one that opened the store. Touches no lock.
    pub(super) fn has_forked(&self) -> bool {
        self.fork_mark.has_forked()
    }

    /// [`Error::Forked`] if it was. Every call that can return an error calls this before anything else.
    pub(super) fn check_process(&self) -> Result<()> {
        if self.has_forked() { Err(Error::Forked) } else { Ok(()) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Refuses a call in a forked process or on a closed store. Enough for a read; writes to no shared memory.
    pub(super) fn check_open(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Whether a close waits for the calls inside. A long call then leaves and enters again.
    pub(super) fn is_closing(&self) -> bool {
        self.state.0.load(Ordering::Relaxed) & PHASE == CLOSING
    }

    /// Admits a call that changes the store. Waits while a close is under way.
    pub(super) fn enter(&self) -> Result<Admitted<'_>> {
        self.check_process()?;
        loop {
            let before = self.state.0.fetch_add(CALL, Ordering::SeqCst);
            let admitted = Admitted { admission: self };
            match before & PHASE {
                OPEN => return Ok(admitted),
                CLOSED => return Err(Error::Closed),
                _ => {}
            }
            drop(admitted);
            let mut gate = self.gate.lock();
            while self.state.0.load(Ordering::SeqCst) & PHASE == CLOSING {
                self.decided.wait(&mut gate);
            }
        }
    }

    /// Blocks new calls and waits for those inside, and for another close. None if the store is closed.
    pub(super) fn begin_closing(&self) -> Option<Closing<'_>> {
        let closer = self.closer.lock();
        if self.is_closed() {
            return None;
        }
        self.state.0.fetch_or(CLOSING, Ordering::SeqCst);
        let closing = Closing { admission: self, is_decided: false, _closer: closer };
        let mut gate = self.gate.lock();
        while self.state.0.load(Ordering::SeqCst) >= CALL && !planted(Bug::CallsInsideIgnored) {
            self.emptied.wait(&mut gate);
        }
        drop(gate);
        Some(closing)
    }
}

/// The right to change the store, for one call.
#[derive(Debug)]
#[must_use = "the store may be closed once this is dropped"]
pub(super) struct Admitted<'a> {
    admission: &'a Admission,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let before = self.admission.state.0.fetch_sub(CALL, Ordering::SeqCst);
        // The last call inside.
        if before & PHASE == CLOSING && before < 2 * CALL {
            let _gate = self.admission.gate.lock();
            self.admission.emptied.notify_all();
        }
    }
}

/// A close under way, with no call inside. Dropping it lets the blocked calls go on, or refuses them if it was decided.
#[derive(Debug)]
pub(super) struct Closing<'a> {
    admission: &'a Admission,
    is_decided: bool,
    _closer: MutexGuard<'a, ()>,
}

impl Closing<'_> {
    /// The store will be closed, even if writing the close mark fails or panics: the mark may be on disk, and no frame may
    /// follow it.
    pub(super) fn decide(&mut self) {
        self.is_decided = true;
    }

    /// Refuses new reads. Those under way may still go on.
    pub(super) fn refuse_reads(&self) {
        self.admission.closed.store(true, Ordering::SeqCst);
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if self.is_decided {
            self.refuse_reads();
            self.admission.state.0.fetch_or(CLOSED, Ordering::SeqCst);
        } else {
            self.admission.state.0.fetch_and(!PHASE, Ordering::SeqCst);
        }
        if !planted(Bug::BlockedCallsNotWoken) {
            let _gate = self.admission.gate.lock();
            self.admission.decided.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decided_close_refuses_every_call_and_an_undecided_one_none() {
        let admission = Admission::new();
        drop(admission.begin_closing().unwrap());
        assert!(admission.enter().is_ok() && admission.check_open().is_ok() && !admission.is_closing());
        let mut closing = admission.begin_closing().unwrap();
        assert!(
            admission.is_closing() && admission.check_open().is_ok(),
            "reads go on until the close is decided"
        );
        closing.decide();
        drop(closing);
        assert!(matches!(admission.enter(), Err(Error::Closed)));
        assert!(matches!(admission.check_open(), Err(Error::Closed)));
        assert!(admission.begin_closing().is_none() && admission.is_closed() && !admission.is_closing());
    }

    #[test]
    fn a_close_waits_for_calls_inside_and_blocks_new_ones() {
        for is_decided in [false, true] {
            let admission = Admission::new();
            let (first, last) = (admission.enter().unwrap(), admission.enter().unwrap());
            assert!(!admission.is_closing());
            let has_left = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let close = scope.spawn(|| {
                    let mut closing = admission.begin_closing().unwrap();
                    assert!(has_left.load(Ordering::SeqCst), "a call is inside");
                    if is_decided {
                        closing.decide();
                    }
                });
                while !admission.is_closing() && !close.is_finished() {
                    std::thread::yield_now();
                }
                let call = scope.spawn(|| admission.enter().is_ok());
                drop(first);
                has_left.store(true, Ordering::SeqCst);
                drop(last);
                close.join().unwrap();
                assert_eq!(call.join().unwrap(), !is_decided);
            });
        }
    }
}
