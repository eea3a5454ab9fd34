//! The synchronization primitives of the crate: locks, condition variables, [`Signal`], atomics and `yield_now`. Also
//! [`Patience`], which is how long a call waits.
//!
//! Normal builds use parking_lot and the standard library. Builds with `--cfg oncekey_shuttle` use
//! [shuttle](https://docs.rs/shuttle) behind the same interface, so that the tests in `shuttle_tests` choose the next
//! thread at every lock, wait and atomic access.
//!
//! Every module whose code can run on several threads must take its primitives from here. Shuttle runs all threads of a
//! test on one thread of the operating system. If a thread blocks on a lock that shuttle does not control, and a
//! suspended thread holds that lock, all of them stop.
//!
//! Shuttle explores interleavings of sequentially consistent steps. It does not reorder memory accesses, so it cannot find
//! an `Ordering` that is too weak.

#[cfg(not(oncekey_shuttle))]
mod chosen {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread::yield_now;
    #[cfg(feature = "tracing")]
    pub(crate) use std::thread_local;
}

#[cfg(oncekey_shuttle)]
mod chosen {
    pub(crate) use super::explored::{Condvar, Mutex, MutexGuard, RwLock};
    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::thread::yield_now;
    #[cfg(feature = "tracing")]
    pub(crate) use shuttle::thread_local;
}

#[cfg(feature = "tracing")]
pub(crate) use chosen::thread_local;
pub(crate) use chosen::{Condvar, Mutex, MutexGuard, RwLock, atomic, yield_now};
pub(crate) use signal::Signal;

use std::time::{Duration, Instant};

/// How long a call waits for other calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The call does not wait for another caller's claim, disk access or sync.
    None,
    /// The call waits until this moment.
    Until(Instant),
    /// The call waits without limit.
    Endless,
}

impl Patience {
    /// Returns the patience to wait for `wait` from now, or [`Patience::Endless`] if the clock cannot represent the
    /// end.
    pub(crate) fn of(wait: Duration) -> Patience {
        Instant::now().checked_add(wait).map_or(Patience::Endless, Patience::Until)
    }

    /// Whether the call must not wait any longer.
    pub(crate) fn is_over(self) -> bool {
        match self {
            Patience::None => true,
            Patience::Until(until) => Instant::now() >= until,
            Patience::Endless => false,
        }
    }
}

/// Yields the processor to other threads, and returns how long that took.
#[cfg(not(oncekey_shuttle))]
pub(crate) fn timed_yield() -> Duration {
    let before = Instant::now();
    yield_now();
    before.elapsed()
}

/// Yields to other threads. The length is drawn by shuttle, because no test may depend on a clock: usually short, and
/// sometimes a time slice of another process.
#[cfg(oncekey_shuttle)]
pub(crate) fn timed_yield() -> Duration {
    use shuttle::rand::Rng;
    yield_now();
    let is_long = shuttle::rand::thread_rng().gen_ratio(1, 8);
    if is_long { Duration::from_millis(4) } else { Duration::from_micros(10) }
}

/// A number whose change threads can wait for: a futex.
///
/// Threads woken from a condition variable reacquire its lock one after the other, each woken by the one before. With many
/// threads that chain takes most of the time. Here one system call wakes all waiters, and they read the number without a
/// lock.
#[cfg(all(not(oncekey_shuttle), any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod signal {
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The number of pauses for which [`Signal::spin_while`] waits: some microseconds, which is as long as a small write
    /// takes, and less than to sleep and be woken.
    const SPINS: u32 = 200;

    #[derive(Debug, Default)]
    pub(crate) struct Signal {
        number: AtomicU32,
        /// The number of threads that are waiting or about to wait. If it is 0, a waker needs no system call.
        ///
        /// A waiter increments this before it reads `number` for the last time, and a waker stores `number` before it
        /// reads this. So a waker that reads 0 has stored `number` before that last read, and the waiter sees the
        /// change. Both accesses are sequentially consistent, because each side writes one of the two and then reads
        /// the other.
        waiting: AtomicU32,
    }

    impl Signal {
        pub(crate) fn get(&self) -> u32 {
            self.number.load(Ordering::SeqCst)
        }

        /// Waits until the number is no longer `seen`.
        pub(crate) fn wait_while(&self, seen: u32) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while self.get() == seen {
                atomic_wait::wait(&self.number, seen);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }

        /// Waits a moment on the processor for the number to be no longer `seen`.
        pub(crate) fn spin_while(&self, seen: u32) {
            for _ in 0..SPINS {
                if self.get() != seen {
                    return;
                }
                std::hint::spin_loop();
            }
        }

        /// Sets the number and wakes all waiters.
        pub(crate) fn set_and_wake_all(&self, number: u32) {
            self.number.store(number, Ordering::SeqCst);
            if self.waiting.load(Ordering::SeqCst) > 0 {
                atomic_wait::wake_all(&self.number);
            }
        }

        /// Sets the number without waking a waiter.
        pub(crate) fn set(&self, number: u32) {
            self.number.store(number, Ordering::SeqCst);
        }

        /// Wakes one waiter. The others notice an earlier change only when they are woken later.
        pub(crate) fn wake_one(&self) {
            if self.waiting.load(Ordering::SeqCst) > 0 {
                atomic_wait::wake_one(&self.number);
            }
        }
    }
}

/// The same interface with a lock and a condition variable, for systems without a futex and for shuttle, which must see
/// every step.
#[cfg(any(oncekey_shuttle, not(any(target_os = "linux", target_os = "android", target_os = "freebsd"))))]
mod signal {
    use super::{Condvar, Mutex};

    #[derive(Debug, Default)]
    pub(crate) struct Signal {
        number: Mutex<u32>,
        changed: Condvar,
    }

    impl Signal {
        pub(crate) fn get(&self) -> u32 {
            *self.number.lock()
        }

        pub(crate) fn wait_while(&self, seen: u32) {
            let mut number = self.number.lock();
            while *number == seen {
                self.changed.wait(&mut number);
            }
        }

        /// Gives other threads one turn, in which the number may change.
        pub(crate) fn spin_while(&self, seen: u32) {
            if self.get() == seen {
                super::yield_now();
            }
        }

        pub(crate) fn set_and_wake_all(&self, number: u32) {
            *self.number.lock() = number;
            self.changed.notify_all();
        }

        pub(crate) fn set(&self, number: u32) {
            *self.number.lock() = number;
        }

        pub(crate) fn wake_one(&self) {
            self.changed.notify_one();
        }
    }
}

/// Shuttle's primitives, with the part of parking_lot's interface that this crate uses.
#[cfg(oncekey_shuttle)]
mod explored {
    use std::ops::{Deref, DerefMut};
    use std::sync::Arc;
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use shuttle::rand::Rng;
    use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};
    use shuttle::thread::Thread;

    /// A lock without poisoning, like parking_lot's.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            MutexGuard { mutex: self, inner: Some(inner) }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            use std::sync::TryLockError::{Poisoned, WouldBlock};
            let inner = match self.0.try_lock() {
                Ok(inner) => inner,
                Err(Poisoned(poisoned)) => poisoned.into_inner(),
                Err(WouldBlock) => return None,
            };
            Some(MutexGuard { mutex: self, inner: Some(inner) })
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// A guard that refers to its lock, so that a [`Condvar`] can release and reacquire the lock in place.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// `None` only while a [`Condvar`] waits.
        inner: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    impl<T> MutexGuard<'_, T> {
        fn unlock(&mut self) {
            self.inner = None;
        }

        fn lock_again(&mut self) {
            self.inner = self.mutex.lock().inner.take();
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.inner.as_ref().unwrap_or_else(|| unreachable!("the lock is released only during a wait"))
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.inner.as_mut().unwrap_or_else(|| unreachable!("the lock is released only during a wait"))
        }
    }

    /// A waiting thread.
    #[derive(Debug)]
    struct Waiter {
        thread: Thread,
        is_notified: AtomicBool,
    }

    /// A condition variable whose timeouts shuttle chooses. The one that shuttle provides never times out.
    ///
    /// A wait with a timeout can end at any step, chosen by shuttle's random numbers and not by a clock. That covers every
    /// order of the timeout and the events that it races with. Shuttle reports a wait without a timeout that never ends as
    /// a deadlock. `notify_one` wakes any of the waiters, since parking_lot's documentation promises no order.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar {
        /// An ordinary lock is enough: no thread holds it across a step at which shuttle may switch threads.
        waiters: std::sync::Mutex<Vec<Arc<Waiter>>>,
    }

    /// How a wait with a timeout ended.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub(crate) fn timed_out(self) -> bool {
            self.0
        }
    }

    impl Condvar {
        /// Each time a thread that waits with a timeout is scheduled, its wait times out with a chance of one in this
        /// many: often enough that timeouts happen, seldom enough that other threads often run first.
        const TIMEOUT_CHANCE: u32 = 4;

        fn waiters(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
            self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Adds this thread to the waiters. Called with the caller's lock held, so that no notification is missed.
        fn enlist(&self) -> Arc<Waiter> {
            let waiter =
                Arc::new(Waiter { thread: shuttle::thread::current(), is_notified: AtomicBool::new(false) });
            self.waiters().push(Arc::clone(&waiter));
            waiter
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let waiter = self.enlist();
            guard.unlock();
            while !waiter.is_notified.load(Ordering::SeqCst) {
                shuttle::thread::park();
            }
            guard.lock_again();
        }

        /// Ignores the deadline, because shuttle chooses whether it has passed.
        pub(crate) fn wait_until<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            _until: Instant,
        ) -> WaitTimeoutResult {
            let waiter = self.enlist();
            guard.unlock();
            while !waiter.is_notified.load(Ordering::SeqCst) {
                if shuttle::rand::thread_rng().gen_ratio(1, Condvar::TIMEOUT_CHANCE) {
                    break;
                }
                shuttle::thread::yield_now();
            }
            // Read in the same step in which this thread leaves the list. A notification between two steps would be
            // lost, although another waiter could have used it.
            let mut waiters = self.waiters();
            let is_notified = waiter.is_notified.load(Ordering::SeqCst);
            waiters.retain(|other| !Arc::ptr_eq(other, &waiter));
            drop(waiters);
            guard.lock_again();
            WaitTimeoutResult(!is_notified)
        }

        fn notify(waiter: &Waiter) {
            waiter.is_notified.store(true, Ordering::SeqCst);
            waiter.thread.unpark();
        }

        pub(crate) fn notify_one(&self) {
            let count = self.waiters().len();
            if count == 0 {
                return;
            }
            // The waiter is chosen before the list is locked, because shuttle may switch threads when it draws a
            // number. If waiters have left meanwhile, any of those that remain is a valid choice.
            let chosen = shuttle::rand::thread_rng().gen_range(0..count);
            let waiter = {
                let mut waiters = self.waiters();
                let chosen = chosen.min(waiters.len().saturating_sub(1));
                (!waiters.is_empty()).then(|| waiters.swap_remove(chosen))
            };
            if let Some(waiter) = waiter {
                Condvar::notify(&waiter);
            }
        }

        pub(crate) fn notify_all(&self) {
            let waiters = std::mem::take(&mut *self.waiters());
            for waiter in waiters {
                Condvar::notify(&waiter);
            }
        }
    }

    /// A reader-writer lock without poisoning, like parking_lot's.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.0.try_read().ok()
        }
    }
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use super::*;

    /// Two threads take turns. If one wake-up is lost, both wait for ever.
    #[test]
    fn a_signal_never_loses_a_wake_up() {
        const TURNS: u32 = 20_000;
        let (there, back) = (Signal::default(), Signal::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..TURNS {
                    there.wait_while(turn);
                    back.set(turn + 1);
                    back.wake_one();
                }
            });
            for turn in 0..TURNS {
                there.set_and_wake_all(turn + 1);
                back.wait_while(turn);
            }
        });
        assert_eq!((there.get(), back.get()), (TURNS, TURNS));
    }

    #[test]
    fn one_change_of_a_signal_wakes_all_waiters() {
        let signal = Signal::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| signal.wait_while(0));
            }
            yield_now();
            signal.set_and_wake_all(1);
        });
    }
}
