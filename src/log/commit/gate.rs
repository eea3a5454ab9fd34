//! Where those wait who want something of a batch, and what they are told there.

use std::sync::{Arc, OnceLock};

use crate::planted::{Bug, planted};
use crate::sync::Signal;
use crate::sync::atomic::{AtomicU32, Ordering};

/// Whether the caller wants its record on disk or only with the operating system before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Written,
    Synced,
}

/// Something for each of the two.
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

/// Where a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placement {
    /// In the log.
    pub(crate) position: u64,
    /// In the file.
    pub(crate) offset: u64,
}

/// What the waiters of one batch are told: that it is done without the queue's lock, and seen without it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whether the batch is where these want it (the lowest bits), and how often one of them was asked to come and lead (the
    /// rest). Two, so that who waits for the sync sleeps on when the others are told of the write.
    pub(super) told: ByUntil<Signal>,
    /// How many wait at the gate, until it tells them that the batch is where they want it. Changed with the queue locked.
    pub(super) waiting: ByUntil<AtomicU32>,
    pub(super) placement: OnceLock<Placement>,
}

/// The phase; 0 while the batch gathers or is on its way.
const PHASE_BITS: u32 = 0b11;
/// It is where they want it.
pub(super) const DONE: u32 = 1;
/// Something failed: what became of the batch is for the queue to say.
pub(super) const FAILED: u32 = 2;

impl Gate {
    pub(super) fn tell(&self, until: Until, phase: u32) {
        let told = self.told.of(until);
        if planted(Bug::OnlyOneFollowerWoken) {
            told.change(phase);
            told.wake_one();
        } else {
            told.tell_all(phase);
        }
    }

    pub(super) fn tell_all(&self, phase: u32) {
        self.tell(Until::Synced, phase);
        self.tell(Until::Written, phase);
    }

    /// Lets those who wait see that one of them is to come and lead, if any of them does: the number must change, or one who is
    /// about to wait would sleep through being woken. The phase stays, because they are told nothing else meanwhile: of gates
    /// in the queue those are asked who are told later, when their batch has been taken from it, or now, with the queue locked.
    pub(super) fn ask(self: &Arc<Gate>, until: Until) -> Option<Asked> {
        if self.waiting.of(until).load(Ordering::Relaxed) == 0 {
            return None;
        }
        let told = self.told.of(until);
        told.change(told.get().wrapping_add(PHASE_BITS + 1));
        Some(Asked { gate: Arc::clone(self), until })
    }
}

/// A place in a batch.
#[derive(Debug)]
#[must_use = "a record is neither written nor acknowledged until its ticket has been waited for"]
pub(crate) struct Ticket {
    pub(super) number: u64,
    pub(super) at: u64,
    pub(super) until: Until,
    pub(super) gate: Arc<Gate>,
}

impl Ticket {
    /// Where the record went, if the gate says that it is there: the way of most followers, which needs no lock.
    pub(super) fn told(&self) -> Option<Placement> {
        (self.signal().get() & PHASE_BITS == DONE).then(|| self.placement())
    }

    pub(super) fn signal(&self) -> &Signal {
        self.gate.told.of(self.until)
    }

    /// How many wait for the same.
    pub(super) fn waiting(&self) -> &AtomicU32 {
        self.gate.waiting.of(self.until)
    }

    pub(super) fn placement(&self) -> Placement {
        let frame = self.gate.placement.get().copied().unwrap_or_default();
        Placement { position: frame.position + self.at, offset: frame.offset + self.at }
    }
}

/// Who is to be woken to do something for all.
#[derive(Debug)]
pub(super) struct Asked {
    gate: Arc<Gate>,
    pub(super) until: Until,
}

impl Asked {
    pub(super) fn wake(self) {
        self.gate.told.of(self.until).wake_one();
    }
}
