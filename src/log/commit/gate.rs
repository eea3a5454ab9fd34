//! Per-batch wait points: followers block here until their batch is written or synced.

use std::sync::{Arc, OnceLock};

use crate::planted::{Bug, planted};
use crate::sync::Signal;
use crate::sync::atomic::{AtomicU32, Ordering};

/// How far a record must have come before its caller goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Handed to the operating system.
    Written,
    /// On the disk.
    Synced,
}

/// One value for each [`Until`].
#[derive(Debug, Default)]
pub(super) struct ByUntil<T> {
    pub(super) written: T,
    pub(super) synced: T,
}

impl<T> ByUntil<T> {
    pub(super) fn of(&self, until: Until) -> &T {
        match until {
            Until::Written => &self.written,
            Until::Synced => &self.synced,
        }
    }
}

/// Where a frame or a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placement {
    /// Its position in the log.
    pub(crate) position: u64,
    /// Its offset in the file.
    pub(crate) offset: u64,
}

/// The wait point of one batch. The leader wakes it, and followers read it, without the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// In the lowest bits the phase of the batch; above them a counter of nudges. Two signals, so that followers that
    /// wait for the sync sleep on when those that wait for the write are woken.
    pub(super) signals: ByUntil<Signal>,
    /// Followers that sleep on each signal. Changed with the queue locked.
    pub(super) waiting: ByUntil<AtomicU32>,
    pub(super) placement: OnceLock<Placement>,
}

/// The bits of a signal that hold the phase. Phase 0: the batch still gathers, or a leader has it.
const PHASE_BITS: u32 = 0b11;
/// The batch is written, or synced.
pub(super) const DONE: u32 = 1;
/// A write or a sync failed. The queue knows what became of the batch.
pub(super) const FAILED: u32 = 2;

impl Gate {
    /// Sets the phase and wakes every follower that waits for `until`.
    pub(super) fn wake(&self, until: Until, phase: u32) {
        let signal = self.signals.of(until);
        if planted(Bug::OnlyOneFollowerWoken) {
            signal.set(phase);
            signal.wake_one();
        } else {
            signal.set_and_wake_all(phase);
        }
    }

    /// Sets the phase of both signals and wakes every follower.
    pub(super) fn wake_all(&self, phase: u32) {
        self.wake(Until::Synced, phase);
        self.wake(Until::Written, phase);
    }

    /// Prepares to wake one follower that waits for `until`, if there is one, so that it becomes a leader.
    ///
    /// Called with the queue locked, and only for gates whose batch is still in the queue, so it cannot race with
    /// [`Gate::wake`]. It changes the signal, because a follower that is about to sleep would otherwise sleep through
    /// the nudge.
    pub(super) fn nudge(self: &Arc<Gate>, until: Until) -> Option<Nudge> {
        if self.waiting.of(until).load(Ordering::Relaxed) == 0 {
            return None;
        }
        let signal = self.signals.of(until);
        signal.set(signal.get().wrapping_add(PHASE_BITS + 1));
        Some(Nudge { gate: Arc::clone(self), until })
    }
}

/// A follower that is to be woken so that it takes a free role.
#[derive(Debug)]
#[must_use = "the follower sleeps on until it is sent"]
pub(super) struct Nudge {
    gate: Arc<Gate>,
    pub(super) until: Until,
}

impl Nudge {
    /// Wakes the follower. Called without the queue's lock, which is the first thing that the follower takes.
    pub(super) fn send(self) {
        self.gate.signals.of(self.until).wake_one();
    }
}

/// A caller's claim on a batch: the records that it appended there, and how durable it wants them.
#[derive(Debug)]
#[must_use = "a record is neither written nor acknowledged until its ticket has been waited for"]
pub(crate) struct Ticket {
    /// The number of the batch.
    pub(super) number: u64,
    /// Where the first record begins, in bytes from the start of the frame.
    pub(super) at: u64,
    pub(super) until: Until,
    pub(super) gate: Arc<Gate>,
}

impl Ticket {
    /// Where the first record was written, once the batch is as durable as the caller wants it. Most followers go on by
    /// this alone, without the queue's lock.
    pub(super) fn done(&self) -> Option<Placement> {
        (self.signal().get() & PHASE_BITS == DONE).then(|| self.placement())
    }

    pub(super) fn signal(&self) -> &Signal {
        self.gate.signals.of(self.until)
    }

    /// Followers that wait for the same batch to be as durable.
    pub(super) fn waiting(&self) -> &AtomicU32 {
        self.gate.waiting.of(self.until)
    }

    pub(super) fn placement(&self) -> Placement {
        let frame = self.gate.placement.get().copied().unwrap_or_default();
        Placement { position: frame.position + self.at, offset: frame.offset + self.at }
    }
}
