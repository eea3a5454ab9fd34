//! A team of threads that share tasks, of as many as can be had.
//!
//! The threads are started once and share one task after another, so that what each of them keeps, its buffers, is allocated
//! once. A thread that cannot be started is an error to the one that starts it, and the others do its share. A thread that was
//! started can still fail before it runs anything of this crate: the standard library and the C library ask for memory then,
//! and end the process if there is none. So threads are started only if there is room for all that they ask for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::map::threads_with_room;
use crate::sync::{Condvar, Mutex};

/// The stack of a thread. The deepest of their calls are a few functions deep.
const STACK_BYTES: usize = 1 << 20;

/// What the leader and its helpers share.
struct Shared<Task> {
    state: Mutex<State<Task>>,
    /// A task came, or the team is dissolved.
    came: Condvar,
    /// The last helper finished its share.
    finished: Condvar,
    /// The number of the task that is done next.
    next: AtomicUsize,
}

struct State<Task> {
    /// The task, and how many numbers it has.
    task: Option<(Task, usize)>,
    /// How many tasks there were.
    round: u64,
    /// Helpers that are not done with the task.
    busy: usize,
    has_panicked: bool,
    is_dissolved: bool,
}

/// The leader of a team, which is the thread that called [`with_team`].
pub(super) struct Team<'a, Task, Kept, Work> {
    shared: &'a Shared<Task>,
    helpers: usize,
    kept: Kept,
    work: &'a Work,
}

/// Calls `lead` with a team of at most so many threads, this one included. For each task that `lead` shares, the team calls
/// `work` once for each of its numbers, with what the calling thread keeps, which begins as the default.
pub(super) fn with_team<Task, Kept, Work, Answer>(
    threads: usize,
    work: &Work,
    lead: impl FnOnce(&mut Team<'_, Task, Kept, Work>) -> Answer,
) -> Answer
where
    Task: Copy + Send,
    Kept: Default,
    Work: Fn(Task, usize, &mut Kept) + Sync,
{
    let state = State { task: None, round: 0, busy: 0, has_panicked: false, is_dissolved: false };
    let shared = Shared {
        state: Mutex::new(state),
        came: Condvar::default(),
        finished: Condvar::default(),
        next: AtomicUsize::new(0),
    };
    let shared = &shared;
    thread::scope(|scope| {
        // Also when `lead` panics, or the scope would wait for its helpers for ever.
        let _dissolved = Dissolve(shared);
        let start =
            |_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || help(shared, work));
        // One that cannot be started leaves its share to the others.
        let wanted = threads_with_room(threads.saturating_sub(1), STACK_BYTES);
        let helpers = (0..wanted).map_while(|number| start(number).ok()).count();
        lead(&mut Team { shared, helpers, kept: Kept::default(), work })
    })
}

impl<Task: Copy, Kept, Work: Fn(Task, usize, &mut Kept)> Team<'_, Task, Kept, Work> {
    /// Does `task` for every number below `count`. Returns when all of it is done.
    pub(super) fn share(&mut self, task: Task, count: usize) {
        let Team { shared, helpers, kept, work } = self;
        shared.next.store(0, Ordering::Relaxed);
        if *helpers > 0 {
            let mut state = shared.state.lock();
            state.task = Some((task, count));
            state.round += 1;
            state.busy = *helpers;
            shared.came.notify_all();
        }
        do_numbers(shared, task, count, kept, *work);
        if *helpers > 0 {
            let mut state = shared.state.lock();
            while state.busy > 0 {
                shared.finished.wait(&mut state);
            }
            // The scope says what the panic was.
            assert!(!state.has_panicked, "a thread of the team panicked");
        }
    }
}

/// What a helper does until the team is dissolved.
fn help<Task: Copy, Kept: Default>(shared: &Shared<Task>, work: &impl Fn(Task, usize, &mut Kept)) {
    let mut kept = Kept::default();
    let mut round = 0;
    loop {
        let (task, count) = {
            let mut state = shared.state.lock();
            while state.round == round && !state.is_dissolved {
                shared.came.wait(&mut state);
            }
            round = state.round;
            match state.task {
                Some(task) if !state.is_dissolved => task,
                _ => return,
            }
        };
        let _share = Share(shared);
        do_numbers(shared, task, count, &mut kept, work);
    }
}

fn do_numbers<Task: Copy, Kept>(
    shared: &Shared<Task>,
    task: Task,
    count: usize,
    kept: &mut Kept,
    work: &impl Fn(Task, usize, &mut Kept),
) {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return;
        }
        work(task, number, kept);
    }
}

/// A helper's share of a task. Dropped, it is done, or will never be because the helper panics.
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
        self.0.came.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_each_task_is_done_once_and_before_the_next_task() {
        for (threads, count) in [(1, 0), (1, 10), (3, 2), (4, 1_000)] {
            let done: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let work = |task: usize, number: usize, (): &mut ()| {
                assert_eq!(done[number].swap(task, Ordering::Relaxed), task - 1);
            };
            with_team(threads, &work, |team| {
                for task in 1..=50 {
                    team.share(task, count);
                    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == task));
                }
            });
        }
    }

    #[test]
    fn what_a_thread_keeps_lasts_from_task_to_task() {
        let most = AtomicUsize::new(0);
        let work = |(), _: usize, kept: &mut usize| {
            *kept += 1;
            most.fetch_max(*kept, Ordering::Relaxed);
        };
        with_team(2, &work, |team| (0..100).for_each(|_| team.share((), 3)));
        assert!(most.into_inner() >= 150, "two threads did 300");
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_team() {
        for lead_panics in [false, true] {
            let work = |(), number: usize, (): &mut ()| assert_ne!(number, 77);
            let outcome = std::panic::catch_unwind(|| {
                with_team(3, &work, |team| {
                    assert!(!lead_panics, "before any task");
                    team.share((), 100);
                });
            });
            assert!(outcome.is_err());
        }
    }
}
