//! Work that several threads share, as many as can be had.
//!
//! A thread that cannot be started is an error to the one that starts it, and the others do its share. A thread that was
//! started can still fail before it runs anything of this crate: the standard library and the C library ask for memory then,
//! and end the process if there is none. So threads are started only if there is room for all that they ask for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::map::threads_with_room;

/// The stack of a thread; what they do calls a few functions deep.
const STACK_BYTES: usize = 1 << 20;

/// Does `work` for every number below `count`, on so many threads or as many as can be had, and gives the answers in
/// order. What a thread keeps from one number to the next begins as the default.
pub(super) fn spread<T: Send, Kept: Default>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut Kept) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut kept = Kept::default();
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push((number, work(number, &mut kept)));
        }
    };
    let others = threads_with_room(threads.min(count).saturating_sub(1), STACK_BYTES);
    let mut done = thread::scope(|scope| {
        // One that cannot be started leaves its share to the others.
        let start = || thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, take);
        let others: Vec<_> = (0..others).map_while(|_| start().ok()).collect();
        let mut done = take();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_spread_is_done_once_and_answered_in_order() {
        for (threads, count) in [(1, 0), (1, 10), (3, 2), (4, 1_000)] {
            let done = AtomicUsize::new(0);
            let answers = spread(threads, count, |number, (): &mut ()| {
                done.fetch_add(1, Ordering::Relaxed);
                number * 2
            });
            assert_eq!(answers, (0..count).map(|number| number * 2).collect::<Vec<_>>());
            assert_eq!(done.into_inner(), count);
        }
    }
}
