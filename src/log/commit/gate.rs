//! Per-batch wait points: followers block here until their batch is written or synced.

use std::sync::{Arc, OnceLock};

use crate::planted::{Bug, planted};
use crate::sync::Signal;
use crate::sync::atomic::{AtomicU32, Ordering};

/// How durable a record must be before the call that appended it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The record is written to the operating system.
    Written,
    /// The record is on disk.
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
    /// The position in the log.
    pub(crate) position: u64,
    /// The offset in the file.
    pub(crate) offset: u64,
}

/// The wait point of one batch. The leader wakes followers through it, and followers read it, without the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The lowest bits hold the phase of the batch, the higher bits count nudges. There are two signals, so that
    /// followers that wait for the sync stay asleep when those that wait for the write are woken.
    pub(super) signals: ByUntil<Signal>,
    /// The number of followers that sleep on each signal. Changed with the queue locked.
    pub(super) waiting: ByUntil<AtomicU32>,
    /// Where the batch was written, once it is.
    pub(super) placement: OnceLock<Placement>,
}

/// The bits of a signal that hold the phase. In phase 0 the batch is gathering, is in the queue, or is being written or
/// synced.
const PHASE_BITS: u32 = 0b11;
/// The phase in which the batch is written or, for the other signal, synced.
pub(super) const DONE: u32 = 1;
/// The phase after a failed write or sync. Followers read the outcome for their batch from the queue.
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

    /// Prepares to wake one follower that waits for `until`, so that it becomes a leader. Returns None if there is
    /// none.
    ///
    /// Called with the queue locked, and only for gates whose batch is still in the queue, so it cannot race with
    /// [`Gate::wake`]. This changes the signal, because a follower that is about to sleep would otherwise miss the
    /// nudge.
    pub(super) fn nudge(self: &Arc<Gate>, until: Until) -> Option<Nudge> {
        if self.waiting.of(until).load(Ordering::Relaxed) == 0 {
            return None;
        }
        let signal = self.signals.of(until);
        signal.set(signal.get().wrapping_add(PHASE_BITS + 1));
        Some(Nudge { gate: Arc::clone(self), until })
    }
}

/// A wake-up for one follower, which is to take a free role.
#[derive(Debug)]
#[must_use = "the follower stays asleep until the nudge is sent"]
pub(super) struct Nudge {
    gate: Arc<Gate>,
    pub(super) until: Until,
}

impl Nudge {
    /// Wakes the follower. Called without the queue's lock, because the follower takes that lock as soon as it wakes.
    pub(super) fn send(self) {
        self.gate.signals.of(self.until).wake_one();
    }
}

/// A caller's handle for the records that it appended to a batch, by which it waits until they are durable enough.
#[derive(Debug)]
#[must_use = "a record is neither written nor acknowledged until its ticket has been waited for"]
pub(crate) struct Ticket {
    /// The number of the batch.
    pub(super) number: u64,
    /// Where the first record begins, in bytes from the start of the frame.
    pub(super) at: u64,
    /// How durable the caller wants the records.
    pub(super) until: Until,
    /// The wait point of the batch.
    pub(super) gate: Arc<Gate>,
}

impl Ticket {
    /// Returns where the first record was written, once the batch is as durable as the caller wants it. Most followers
    /// need only this, and not the queue's lock.
    pub(super) fn done(&self) -> Option<Placement> {
        (self.signal().get() & PHASE_BITS == DONE).then(|| self.placement())
    }

    /// The signal on which followers of this kind sleep.
    pub(super) fn signal(&self) -> &Signal {
        self.gate.signals.of(self.until)
    }

    /// The number of followers that sleep on the same signal.
    pub(super) fn waiting(&self) -> &AtomicU32 {
        self.gate.waiting.of(self.until)
    }

    /// Where the first record was written. The batch must be written.
    pub(super) fn placement(&self) -> Placement {
        let frame = self.gate.placement.get().copied().unwrap_or_default();
        Placement { position: frame.position + self.at, offset: frame.offset + self.at }
    }
}
