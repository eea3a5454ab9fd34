//! When a thread that would write and sync lets the batch gather first. Owns the decision only:
//! [`Commit`](super::Commit) holds the role and yields.
//!
//! The callers that a sync wakes usually come back with their next record a moment later. A thread that syncs before
//! they do spends a whole sync on its own record, and they wait for it and for their own. So it *lingers*: it yields the
//! processor until as many callers wait for the batch as the last sync woke.
//!
//! - Callers count, not records: a caller that appends twice still waits once, and records that reclaiming moves have no
//!   caller.
//! - A thread alone never lingers, because the last sync woke only itself.
//! - A thread does not linger while a caller waits only for a write, which takes less time than a yield may.
//! - A yield returns late if other processes use the processor. The role of the syncer is held meanwhile, so one late
//!   yield turns lingering off for a multiple of the time that it took.

use std::time::{Duration, Instant};

/// The number of yields in a row after which no further caller is expected.
const MAX_FRUITLESS_YIELDS: u32 = 3;
/// The maximum time for which a thread lingers.
const MAX_LINGER: Duration = Duration::from_micros(100);
/// A yield that takes longer than this has given the processor to another process for a time slice.
const LATE: Duration = Duration::from_millis(1);
/// For how many times the duration of a late yield lingering is off. It costs at most this fraction of the time.
const OFF_FACTOR: u32 = 20;

/// What the queue remembers about lingering.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// The number of callers that waited for the last sync.
    pub(super) expected: u32,
    /// The end of the time during which no thread lingers.
    off_until: Option<Instant>,
}

impl Lingering {
    /// Whether a thread should linger before it writes and syncs a batch for which `waiters` callers wait.
    pub(super) fn is_worth_while(&self, waiters: u32) -> bool {
        waiters < self.expected && self.off_until.is_none_or(|off_until| Instant::now() >= off_until)
    }

    /// Turns lingering off for a while, because a yield took this long.
    fn turn_off_after(&mut self, late: Duration) {
        self.off_until = Instant::now().checked_add(late.saturating_mul(OFF_FACTOR));
    }
}

/// One thread's lingering, from its first yield on.
#[derive(Debug)]
pub(super) struct Linger {
    waiters: u32,
    fruitless_yields: u32,
    lingered: Duration,
}

impl Linger {
    /// Begins to linger before a batch for which `waiters` callers wait.
    pub(super) fn new(waiters: u32) -> Linger {
        Linger { waiters, fruitless_yields: 0, lingered: Duration::ZERO }
    }

    /// Whether the thread should yield once more, after a yield that took `took` and left `waiters` callers waiting.
    pub(super) fn goes_on(&mut self, took: Duration, waiters: u32, lingering: &mut Lingering) -> bool {
        if took > LATE {
            lingering.turn_off_after(took);
            return false;
        }
        self.fruitless_yields = if waiters > self.waiters { 0 } else { self.fruitless_yields + 1 };
        self.waiters = waiters;
        self.lingered += took;
        waiters < lingering.expected
            && self.fruitless_yields < MAX_FRUITLESS_YIELDS
            && self.lingered < MAX_LINGER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(5);

    fn expecting(expected: u32) -> Lingering {
        Lingering { expected, off_until: None }
    }

    #[test]
    fn a_thread_lingers_only_for_callers_that_the_last_sync_woke() {
        assert!(!expecting(0).is_worth_while(1), "nothing was synced yet");
        assert!(!expecting(1).is_worth_while(1), "the only caller waits already");
        assert!(expecting(8).is_worth_while(7));
        assert!(!expecting(8).is_worth_while(8));
        assert!(!expecting(8).is_worth_while(9));
    }

    #[test]
    fn lingering_ends_when_the_batch_is_complete() {
        let mut lingering = expecting(3);
        let mut linger = Linger::new(1);
        assert!(linger.goes_on(SHORT, 2, &mut lingering));
        assert!(!linger.goes_on(SHORT, 3, &mut lingering));
    }

    #[test]
    fn lingering_ends_after_three_yields_that_brought_no_caller() {
        let mut lingering = expecting(8);
        let mut linger = Linger::new(1);
        assert!(linger.goes_on(SHORT, 1, &mut lingering));
        assert!(linger.goes_on(SHORT, 1, &mut lingering));
        assert!(linger.goes_on(SHORT, 2, &mut lingering), "a caller came, so the count begins anew");
        assert!(linger.goes_on(SHORT, 2, &mut lingering));
        assert!(linger.goes_on(SHORT, 2, &mut lingering));
        assert!(!linger.goes_on(SHORT, 2, &mut lingering));
    }

    #[test]
    fn lingering_ends_after_its_maximum_time_even_if_callers_come() {
        let mut lingering = expecting(100);
        let mut linger = Linger::new(1);
        let took = MAX_LINGER / 2;
        assert!(linger.goes_on(took, 2, &mut lingering));
        assert!(!linger.goes_on(took, 3, &mut lingering));
    }

    #[test]
    fn a_late_yield_turns_lingering_off() {
        let mut lingering = expecting(8);
        let mut linger = Linger::new(1);
        assert!(!linger.goes_on(Duration::from_secs(3_600), 2, &mut lingering));
        assert!(!lingering.is_worth_while(1));
        // The time is over.
        lingering.off_until = Some(Instant::now());
        assert!(lingering.is_worth_while(1));
    }
}
