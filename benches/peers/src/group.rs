//! The group commit of the floor, and of the stores that have none.
//!
//! It takes as few syncs and as few system calls as it can, whatever CPU time that costs. A leader gathers: it waits a moment
//! for the threads that the last commit released, because they usually come back at once. Followers spin and yield before they
//! sleep, so that they see the end of a commit without being woken.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long a leader gathers at most: about as long as a sync takes.
const MAX_GATHERING: Duration = Duration::from_micros(100);
/// The number of yields in a row without a new thread after which a leader stops gathering.
const MAX_FRUITLESS_YIELDS: u32 = 30;
/// How often a follower looks before it first yields.
const SPINS: u32 = 50;
/// How long a follower yields before it sleeps: several syncs.
const MAX_YIELDING: Duration = Duration::from_micros(500);

/// Commits batches, each for all threads that have added something to it. A thread that finds no leader becomes the leader.
/// While it commits its batch, the next one gathers.
pub struct GroupCommit<B> {
    queue: Mutex<Queue<B>>,
    // The next three change only while the queue is locked. Waiting threads read them without the lock.
    /// The number of the last committed batch.
    committed: AtomicU64,
    has_leader: AtomicBool,
    /// The number of threads in the gathering batch.
    waiting: AtomicUsize,
    /// The wait points of batches with even and with odd numbers. Two are enough, because only one batch gathers while
    /// another is being committed.
    gates: [Condvar; 2],
}

#[derive(Default)]
struct Queue<B> {
    gathering: B,
    /// The previous batch, emptied, whose memory the next one reuses.
    spare: B,
    /// The number of the gathering batch.
    number: u64,
    /// The number of threads that are expected in the next batch: those of the last one, and those that were already waiting
    /// when it was committed.
    expected: usize,
    /// The number of sleeping threads at each gate.
    sleepers: [usize; 2],
}

impl<B: Default> GroupCommit<B> {
    pub fn new() -> GroupCommit<B> {
        GroupCommit {
            queue: Mutex::new(Queue { number: 1, ..Queue::default() }),
            committed: AtomicU64::new(0),
            has_leader: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            gates: Default::default(),
        }
    }

    /// Calls `add` with the gathering batch, and returns what it returned once that batch is committed. If this thread leads
    /// the batch, it calls `commit`, which makes the batch durable and empties it.
    pub fn commit<T>(&self, add: impl FnOnce(&mut B) -> T, commit: impl FnOnce(&mut B)) -> T {
        let mut queue = self.queue.lock();
        let added = add(&mut queue.gathering);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let number = queue.number;
        while !self.is_committed(number) {
            if !self.has_leader.load(Ordering::Relaxed) {
                // There is no leader and this batch is not committed, so it is still the gathering one.
                self.lead(queue, commit);
                break;
            }
            drop(queue);
            self.follow(number);
            // Without this every thread of the batch would take the lock once more.
            if self.is_committed(number) {
                break;
            }
            queue = self.queue.lock();
        }
        added
    }

    fn is_committed(&self, number: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= number
    }

    /// Waits until this batch is committed or there is no leader.
    fn follow(&self, number: u64) {
        let is_over = || self.is_committed(number) || !self.has_leader.load(Ordering::Relaxed);
        for _ in 0..SPINS {
            if is_over() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < MAX_YIELDING {
            if is_over() {
                return;
            }
            std::thread::yield_now();
        }
        let mut queue = self.queue.lock();
        let gate = (number & 1) as usize;
        while !is_over() {
            queue.sleepers[gate] += 1;
            self.gates[gate].wait(&mut queue);
            queue.sleepers[gate] -= 1;
        }
    }

    /// Commits the gathering batch as its leader.
    fn lead<'a>(&'a self, mut queue: MutexGuard<'a, Queue<B>>, commit: impl FnOnce(&mut B)) {
        self.has_leader.store(true, Ordering::Relaxed);
        let expected = queue.expected;
        if self.waiting.load(Ordering::Relaxed) < expected {
            drop(queue);
            self.gather(expected);
            queue = self.queue.lock();
        }
        let spare = std::mem::take(&mut queue.spare);
        let mut batch = std::mem::replace(&mut queue.gathering, spare);
        let members = self.waiting.swap(0, Ordering::Relaxed);
        let number = queue.number;
        queue.number += 1;
        drop(queue);
        commit(&mut batch);
        let mut queue = self.queue.lock();
        queue.spare = batch;
        queue.expected = members + self.waiting.load(Ordering::Relaxed);
        self.committed.store(number, Ordering::Release);
        self.has_leader.store(false, Ordering::Relaxed);
        let gate = (number & 1) as usize;
        if queue.sleepers[gate] > 0 {
            self.gates[gate].notify_all();
        }
        // One waiter of the next batch is enough, to lead it. The others would go back to sleep.
        if queue.sleepers[1 - gate] > 0 {
            self.gates[1 - gate].notify_one();
        }
    }

    /// Waits until as many threads as expected have added something to the gathering batch, or until a bound is reached.
    fn gather(&self, expected: usize) {
        let start = Instant::now();
        let (mut before, mut fruitless) = (0, 0);
        while fruitless < MAX_FRUITLESS_YIELDS && start.elapsed() < MAX_GATHERING {
            let waiting = self.waiting.load(Ordering::Relaxed);
            if waiting >= expected {
                return;
            }
            fruitless = if waiting > before { 0 } else { fruitless + 1 };
            before = waiting;
            std::thread::yield_now();
        }
    }
}
