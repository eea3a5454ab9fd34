//! Counts what calls do, for the statistics.
//!
//! Each thread adds to one of several sets of counters, each on cache lines of its own, so that threads do not slow each
//! other down. Reading sums up the sets and takes no lock.

use std::cell::Cell;
// Not from `crate::sync`: no decision depends on a counter, so shuttle need not explore the accesses.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// An attempt began.
    Begun,
    /// An operation was completed, with an attempt or without one.
    Completed,
    /// An attempt was released.
    Released,
    /// A key was forgotten.
    Forgotten,
    /// A call returned a recorded result.
    Replayed,
    /// A call was refused because its key belongs to a different request.
    Mismatched,
    /// A call was refused because its attempt no longer owns the operation.
    Fenced,
    /// An attempt ended in doubt.
    Doubted,
    /// A doubt was resolved.
    Resolved,
}

const COUNTED: usize = 9;
const SETS: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Set([AtomicU64; COUNTED]);

/// The counters of one store.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sets: [Set; SETS],
}

/// The set of the next thread that counts something.
static NEXT_SET: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The set of this thread, or `SETS` if it has none yet.
    static OWN_SET: Cell<usize> = const { Cell::new(SETS) };
}

impl Counters {
    pub(super) fn add(&self, counted: Counted) {
        // While the thread ends, its set may be gone.
        let own = OWN_SET.try_with(|own| {
            if own.get() == SETS {
                own.set(NEXT_SET.fetch_add(1, Ordering::Relaxed) % SETS);
            }
            own.get()
        });
        self.sets[own.unwrap_or(0)].0[counted as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn total(&self, counted: Counted) -> u64 {
        self.sets.iter().map(|set| set.0[counted as usize].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_all_threads_are_summed_up() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SETS {
                scope.spawn(|| (0..100).for_each(|_| counters.add(Counted::Replayed)));
            }
        });
        counters.add(Counted::Resolved);
        assert_eq!(counters.total(Counted::Replayed), 200 * SETS as u64);
        assert_eq!((counters.total(Counted::Resolved), counters.total(Counted::Fenced)), (1, 0));
        assert_eq!(Counted::Resolved as usize + 1, COUNTED);
    }
}
