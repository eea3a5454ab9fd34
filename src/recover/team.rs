//! A team of threads that work through tasks together, with as many threads as can be started. The survey reads the
//! headers of many slots with it, and filling the index the footers.
//!
//! The threads are started once and share one task after another, so that each allocates its buffers once. It is not an
//! error if a thread cannot be started, because the others do its share. But a thread that was started can still fail
//! before it runs code of this crate: the standard library and the C library allocate memory for it, and end the
//! process if they cannot. So threads are started only if there is enough space for everything that they allocate.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::map::threads_that_fit;
use crate::sync::{Condvar, Mutex};

/// The size of each thread's stack. Calls in these threads are only a few functions deep.
const STACK_BYTES: usize = 1 << 20;

/// The state that the leader and its helpers share.
struct Shared<Task> {
    state: Mutex<State<Task>>,
    /// Notified when there is a task, or when the team is dissolved.
    arrived: Condvar,
    /// Notified when the last helper has finished its share.
    finished: Condvar,
    /// The first item of the task that no thread has taken.
    next: AtomicUsize,
}

struct State<Task> {
    /// The task, and the number of its items.
    task: Option<(Task, usize)>,
    /// The number of tasks so far.
    round: u64,
    /// The number of helpers that have not finished the task.
    busy: usize,
    /// Whether a helper has panicked.
    has_panicked: bool,
    /// Whether the helpers must end.
    is_dissolved: bool,
}

/// The number of items that a thread of [`map_in_order`] takes at a time. Taking one costs a lock.
const MAPPED_TOGETHER: usize = 16;

/// Calls `map` for each item with at most `threads` threads, and returns the answers in the order of the items.
///
/// # Errors
///
/// The error of the first item, in that order, for which `map` fails. The threads skip items after it.
pub(super) fn map_in_order<Item: Sync, Answer: Send, Error: Send>(
    threads: usize,
    items: &[Item],
    map: impl Fn(&Item) -> Result<Answer, Error> + Sync,
) -> Result<Vec<Answer>, Error> {
    let pieces: Vec<&[Item]> = items.chunks(MAPPED_TOGETHER).collect();
    let answers = Mutex::new(Vec::new());
    let first_failed = AtomicUsize::new(usize::MAX);
    let work = |(), number: usize, (): &mut ()| {
        if number > first_failed.load(Ordering::Relaxed) {
            return;
        }
        let answer: Result<Vec<Answer>, Error> = pieces[number].iter().map(&map).collect();
        if answer.is_err() {
            first_failed.fetch_min(number, Ordering::Relaxed);
        }
        answers.lock().push((number, answer));
    };
    with_team(threads, &work, |team| team.run((), pieces.len()));
    let mut answers = answers.into_inner();
    answers.sort_unstable_by_key(|(number, _)| *number);
    let mut all = Vec::with_capacity(items.len());
    for (_, answer) in answers {
        all.append(&mut answer?);
    }
    Ok(all)
}

/// The leader's handle to its team. The leader is the thread that called [`with_team`].
pub(super) struct Team<'a, Task, Buffers, Work> {
    shared: &'a Shared<Task>,
    helpers: usize,
    buffers: Buffers,
    work: &'a Work,
}

/// Calls `lead` with a team of at most `threads` threads, including this one.
///
/// For each task that `lead` runs, the team calls `work` once for each item, with the buffers of the calling thread.
/// Each thread starts with default buffers and keeps them until the team is dissolved.
pub(super) fn with_team<Task, Buffers, Work, Answer>(
    threads: usize,
    work: &Work,
    lead: impl FnOnce(&mut Team<'_, Task, Buffers, Work>) -> Answer,
) -> Answer
where
    Task: Copy + Send,
    Buffers: Default,
    Work: Fn(Task, usize, &mut Buffers) + Sync,
{
    let state = State { task: None, round: 0, busy: 0, has_panicked: false, is_dissolved: false };
    let shared = Shared {
        state: Mutex::new(state),
        arrived: Condvar::default(),
        finished: Condvar::default(),
        next: AtomicUsize::new(0),
    };
    let shared = &shared;
    thread::scope(|scope| {
        // This is dropped even if `lead` panics. Otherwise the scope would wait for the helpers forever.
        let _dissolved = Dissolve(shared);
        let start =
            |_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || help(shared, work));
        // If a thread cannot be started, no further one is tried, and the others do the work.
        let wanted = threads_that_fit(threads.saturating_sub(1), STACK_BYTES);
        let helpers = (0..wanted).map_while(|helper| start(helper).ok()).count();
        lead(&mut Team { shared, helpers, buffers: Buffers::default(), work })
    })
}

impl<Task: Copy, Buffers, Work: Fn(Task, usize, &mut Buffers)> Team<'_, Task, Buffers, Work> {
    /// Runs `task` for every item below `count`, and returns when all are done.
    pub(super) fn run(&mut self, task: Task, count: usize) {
        let Team { shared, helpers, buffers, work } = self;
        shared.next.store(0, Ordering::Relaxed);
        if *helpers > 0 {
            let mut state = shared.state.lock();
            state.task = Some((task, count));
            state.round += 1;
            state.busy = *helpers;
            shared.arrived.notify_all();
        }
        do_items(shared, task, count, buffers, *work);
        if *helpers > 0 {
            let mut state = shared.state.lock();
            while state.busy > 0 {
                shared.finished.wait(&mut state);
            }
            // The scope reports the panic of the helper itself.
            assert!(!state.has_panicked, "a thread of the team panicked");
        }
    }
}

/// Runs a helper's share of each task, until the team is dissolved.
fn help<Task: Copy, Buffers: Default>(shared: &Shared<Task>, work: &impl Fn(Task, usize, &mut Buffers)) {
    let mut buffers = Buffers::default();
    let mut round = 0;
    loop {
        let (task, count) = {
            let mut state = shared.state.lock();
            while state.round == round && !state.is_dissolved {
                shared.arrived.wait(&mut state);
            }
            round = state.round;
            match state.task {
                Some(task) if !state.is_dissolved => task,
                _ => return,
            }
        };
        let _share = Share(shared);
        do_items(shared, task, count, &mut buffers, work);
    }
}

/// Takes items of the task and does them, until none is left.
fn do_items<Task: Copy, Buffers>(
    shared: &Shared<Task>,
    task: Task,
    count: usize,
    buffers: &mut Buffers,
    work: &impl Fn(Task, usize, &mut Buffers),
) {
    loop {
        let item = shared.next.fetch_add(1, Ordering::Relaxed);
        if item >= count {
            return;
        }
        work(task, item, buffers);
    }
}

/// A helper's share of a task. It is dropped when the helper has finished the share or panics.
struct Share<'a, Task>(&'a Shared<Task>);

impl<Task> Drop for Share<'_, Task> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.has_panicked |= thread::panicking();
        state.busy -= 1;
        if state.busy == 0 {
            self.0.finished.notify_one();
        }
    }
}

/// Dissolves the team when it is dropped.
struct Dissolve<'a, Task>(&'a Shared<Task>);

impl<Task> Drop for Dissolve<'_, Task> {
    fn drop(&mut self) {
        self.0.state.lock().is_dissolved = true;
        self.0.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_done_once_before_the_next_task() {
        for (threads, count) in [(1, 0), (1, 10), (3, 2), (4, 1_000)] {
            let done: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let work = |task: usize, item: usize, (): &mut ()| {
                assert_eq!(done[item].swap(task, Ordering::Relaxed), task - 1);
            };
            with_team(threads, &work, |team| {
                for task in 1..=50 {
                    team.run(task, count);
                    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == task));
                }
            });
        }
    }

    #[test]
    fn a_thread_keeps_its_buffers_between_tasks() {
        let max_items = AtomicUsize::new(0);
        let work = |(), _: usize, items: &mut usize| {
            *items += 1;
            max_items.fetch_max(*items, Ordering::Relaxed);
        };
        with_team(2, &work, |team| (0..100).for_each(|_| team.run((), 3)));
        assert!(max_items.into_inner() >= 150, "one of two threads must count at least half of 300 items");
    }

    #[test]
    fn answers_and_the_first_error_are_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..1_000).collect();
        for threads in [1, 4] {
            for failing in [&[][..], &[0], &[999], &[17, 500, 16, 900], &[31, 32]] {
                let map = |item: &usize| if failing.contains(item) { Err(*item) } else { Ok(item * 2) };
                let expected: Result<Vec<_>, _> = items.iter().map(map).collect();
                assert_eq!(map_in_order(threads, &items, map), expected, "{threads} threads, {failing:?}");
            }
        }
    }

    /// The later of two errors is first in time, because the item with the earlier one waits for it. If the second thread
    /// is slow, or cannot be started, the item stops waiting.
    #[test]
    fn an_error_of_a_later_item_does_not_hide_an_earlier_one() {
        let failed = AtomicUsize::new(0);
        let items: Vec<usize> = (0..=2 * MAPPED_TOGETHER).collect();
        let map = |item: &usize| match *item {
            0 => {
                let has_failed = |_: &u32| {
                    failed.load(Ordering::Acquire) > 0 || {
                        thread::yield_now();
                        false
                    }
                };
                (0..1_000_000).find(has_failed);
                Err(0)
            }
            MAPPED_TOGETHER.. => {
                failed.store(1, Ordering::Release);
                Err(*item)
            }
            item => Ok(item),
        };
        assert_eq!(map_in_order(2, &items, map), Err(0));
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_team() {
        for lead_panics in [false, true] {
            let work = |(), item: usize, (): &mut ()| assert_ne!(item, 77);
            let outcome = std::panic::catch_unwind(|| {
                with_team(3, &work, |team| {
                    assert!(!lead_panics, "the leader panics before any task");
                    team.run((), 100);
                });
            });
            assert!(outcome.is_err());
        }
    }
}
