//! Tracks whether the store is open, which calls are changing it, and which process opened it.
//!
//! Every call that changes something is **admitted**: it takes an [`Admitted`] before it enters a flight (the per-key
//! lock) and keeps it until it has left the flight. It keeps none while the caller's own code runs, or while it waits
//! for another caller's lease; after such a wait it is admitted again, like a new call. Admission is taken before every
//! other lock of the engine.
//!
//! A process that is **forked** from the one that opened the store inherits that process's memory and its open file.
//! Locks in that memory may be held by threads that do not exist in the child. The child must use neither the memory
//! nor the file: see [`Admission::check_process`].
//!
//! The steps of closing a store are in `lifecycle`.

use crate::error::{Error, Result};
use crate::map::ForkMark;
use crate::planted::{Bug, planted};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The phase of an open store. The lowest bits of [`Admission::state`] hold the phase.
const OPEN: u64 = 0;
/// The phase while a close is under way.
const CLOSING: u64 = 1;
/// The phase of a closed store.
const CLOSED: u64 = 3;
/// The bits that hold the phase.
const PHASE: u64 = 3;
/// What one admitted call adds to [`Admission::state`].
const CALL: u64 = 4;

/// An atomic number on its own cache line. Every change of a key writes to it, and must not slow down reads, which load
/// the fields next to it.
#[derive(Debug)]
#[repr(align(128))]
struct CachePadded(AtomicU64);

/// Admits calls that change the store, and holds them back while it is being closed. See the [module](self).
#[derive(Debug)]
pub(super) struct Admission {
    fork_mark: ForkMark,
    /// Set once, after the last admitted call has ended. Apart from the fork mark, a read checks only this.
    closed: AtomicBool,
    /// The phase and, in the bits above it, the number of admitted calls. Both are in one number so that a call is
    /// counted and reads the phase in one step: either the closing thread sees the call, or the call sees that the
    /// store is closing.
    state: CachePadded,
    /// Locked by the one call that is closing the store.
    closer: Mutex<()>,
    /// The mutex of both condition variables below.
    gate: Mutex<()>,
    /// Notified when the last admitted call ends while a close is waiting for it.
    emptied: Condvar,
    /// Notified when a close has ended and the store is open again, or closed.
    close_ended: Condvar,
}

impl Admission {
    pub(super) fn new() -> Admission {
        Admission {
            fork_mark: ForkMark::new(),
            closed: AtomicBool::new(false),
            state: CachePadded(AtomicU64::new(OPEN)),
            closer: Mutex::default(),
            gate: Mutex::default(),
            emptied: Condvar::default(),
            close_ended: Condvar::default(),
        }
    }

    /// Whether this process was forked from the one that opened the store. Touches no lock.
    pub(super) fn has_forked(&self) -> bool {
        self.fork_mark.has_forked()
    }

    /// Returns [`Error::Forked`] in a process that was forked from the one that opened the store. Every call that can
    /// return an error checks this before anything else.
    pub(super) fn check_process(&self) -> Result<()> {
        if self.has_forked() { Err(Error::Forked) } else { Ok(()) }
    }

    /// Whether the store is closed: reads are refused too.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Refuses a call in a forked process or on a closed store. A read needs no more than this check, which writes to
    /// no shared memory.
    pub(super) fn check_open(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Whether a close is waiting for the admitted calls. A long call gives up its admission then, and is admitted
    /// again if the store stays open.
    pub(super) fn is_closing(&self) -> bool {
        self.state.0.load(Ordering::Relaxed) & PHASE == CLOSING
    }

    /// Admits a call that changes the store. Waits while another thread is closing the store.
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
                self.close_ended.wait(&mut gate);
            }
        }
    }

    /// Waits for another close to end, then blocks new calls and waits until every admitted call has ended. Returns
    /// None if the store is closed already.
    pub(super) fn begin_closing(&self) -> Option<Closing<'_>> {
        let closer = self.closer.lock();
        if self.is_closed() {
            return None;
        }
        self.state.0.fetch_or(CLOSING, Ordering::SeqCst);
        let closing = Closing { admission: self, is_final: false, _closer: closer };
        let mut gate = self.gate.lock();
        while self.state.0.load(Ordering::SeqCst) >= CALL && !planted(Bug::CallsInsideIgnored) {
            self.emptied.wait(&mut gate);
        }
        drop(gate);
        Some(closing)
    }
}

/// The admission of one call: its right to change the store.
#[derive(Debug)]
#[must_use = "the store may be closed once this is dropped"]
pub(super) struct Admitted<'a> {
    admission: &'a Admission,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let before = self.admission.state.0.fetch_sub(CALL, Ordering::SeqCst);
        // This was the last admitted call.
        if before & PHASE == CLOSING && before < 2 * CALL {
            let _gate = self.admission.gate.lock();
            self.admission.emptied.notify_all();
        }
    }
}

/// A close under way, after the last admitted call has ended. When this is dropped, the blocked calls go on, or are
/// refused if the close was made final.
#[derive(Debug)]
pub(super) struct Closing<'a> {
    admission: &'a Admission,
    is_final: bool,
    _closer: MutexGuard<'a, ()>,
}

impl Closing<'_> {
    /// Makes sure that the store ends up closed, even if writing the close mark fails or panics. The mark may be on
    /// disk then, and no frame may follow it.
    pub(super) fn make_final(&mut self) {
        self.is_final = true;
    }

    /// Refuses new reads. Reads that have begun may still be running.
    pub(super) fn refuse_reads(&self) {
        self.admission.closed.store(true, Ordering::SeqCst);
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if self.is_final {
            self.refuse_reads();
            self.admission.state.0.fetch_or(CLOSED, Ordering::SeqCst);
        } else {
            self.admission.state.0.fetch_and(!PHASE, Ordering::SeqCst);
        }
        if !planted(Bug::BlockedCallsNotWoken) {
            let _gate = self.admission.gate.lock();
            self.admission.close_ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_close_made_final_refuses_calls() {
        let admission = Admission::new();
        drop(admission.begin_closing().unwrap());
        assert!(admission.enter().is_ok() && admission.check_open().is_ok() && !admission.is_closing());
        let mut closing = admission.begin_closing().unwrap();
        assert!(
            admission.is_closing() && admission.check_open().is_ok(),
            "reads must go on until the close has ended"
        );
        closing.make_final();
        drop(closing);
        assert!(matches!(admission.enter(), Err(Error::Closed)));
        assert!(matches!(admission.check_open(), Err(Error::Closed)));
        assert!(admission.begin_closing().is_none() && admission.is_closed() && !admission.is_closing());
    }

    #[test]
    fn a_close_waits_for_admitted_calls_and_blocks_new_ones() {
        for is_final in [false, true] {
            let admission = Admission::new();
            let (first, last) = (admission.enter().unwrap(), admission.enter().unwrap());
            assert!(!admission.is_closing());
            let has_left = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let close = scope.spawn(|| {
                    let mut closing = admission.begin_closing().unwrap();
                    assert!(has_left.load(Ordering::SeqCst), "the close did not wait for an admitted call");
                    if is_final {
                        closing.make_final();
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
                assert_eq!(call.join().unwrap(), !is_final);
            });
        }
    }
}
