//! Locks, condition variables, signals, atomics and `yield_now`, from where the build wants them; and how long a call waits.
//!
//! Normally these are parking_lot's and the standard library's own. Under `--cfg oncekey_shuttle` they are
//! [shuttle](https://docs.rs/shuttle)'s, behind the same interface, so that the tests in `shuttle_tests` decide at
//! every lock, wait and atomic access which thread goes on. Every module that can meet another thread takes them from
//! here: a lock that shuttle did not know of, held where shuttle changes threads, would stop all of them.
//!
//! What shuttle explores are interleavings of sequentially consistent steps. It does not reorder memory accesses, so
//! an `Ordering` that is too weak is not found this way.

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
    /// It does not wait for another caller's claim, disk access or sync.
    None,
    Until(Instant),
    Endless,
}

impl Patience {
    /// From now on. A wait that ends later than the clock goes has no end.
    pub(crate) fn of(wait: Duration) -> Patience {
        Instant::now().checked_add(wait).map_or(Patience::Endless, Patience::Until)
    }

    pub(crate) fn is_over(self) -> bool {
        match self {
            Patience::None => true,
            Patience::Until(until) => Instant::now() >= until,
            Patience::Endless => false,
        }
    }
}

/// A number that many threads wait for to change.
///
/// Whoever waits on a condition variable has to take its lock again, one after the other, each woken by the one before:
/// among many threads that chain is what takes most of the time. Here one call wakes all of them at once, and none needs a
/// lock to see what it was told.
#[cfg(all(not(oncekey_shuttle), any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod signal {
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct Signal {
        number: AtomicU32,
        /// Threads that wait or are about to. Counted before they look at the number for the last time, so that whoever
        /// changes it and sees nobody here needs no system call: they will see the change. Sequentially consistent,
        /// both, because each side writes the one and reads the other.
        waiting: AtomicU32,
    }

    impl Signal {
        pub(crate) fn get(&self) -> u32 {
            self.number.load(Ordering::SeqCst)
        }

        /// Waits until the number is another than `seen`.
        pub(crate) fn wait_while(&self, seen: u32) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while self.get() == seen {
                atomic_wait::wait(&self.number, seen);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }

        /// Changes the number and wakes everybody.
        pub(crate) fn tell_all(&self, number: u32) {
            self.number.store(number, Ordering::SeqCst);
            if self.waiting.load(Ordering::SeqCst) > 0 {
                atomic_wait::wake_all(&self.number);
            }
        }

        /// Changes the number and wakes nobody yet.
        pub(crate) fn change(&self, number: u32) {
            self.number.store(number, Ordering::SeqCst);
        }

        /// Wakes one thread; the others see a change when they are woken for another reason.
        pub(crate) fn wake_one(&self) {
            if self.waiting.load(Ordering::SeqCst) > 0 {
                atomic_wait::wake_one(&self.number);
            }
        }
    }
}

/// The same by a lock and a condition variable.
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

        pub(crate) fn tell_all(&self, number: u32) {
            *self.number.lock() = number;
            self.changed.notify_all();
        }

        pub(crate) fn change(&self, number: u32) {
            *self.number.lock() = number;
        }

        pub(crate) fn wake_one(&self) {
            self.changed.notify_one();
        }
    }
}

/// Shuttle's primitives behind parking_lot's interface, as much of it as this crate uses.
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

    /// A lock that, like parking_lot's, does not care whether somebody panicked while holding it.
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

    /// Knows its lock, so that a [`Condvar`] can let go of it and take it again in place.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// None only within [`Condvar`]'s waits.
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
            self.inner.as_ref().unwrap_or_else(|| unreachable!("the lock is only let go of within a wait"))
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.inner.as_mut().unwrap_or_else(|| unreachable!("the lock is only let go of within a wait"))
        }
    }

    /// Somebody who waits.
    #[derive(Debug)]
    struct Waiter {
        thread: Thread,
        told: AtomicBool,
    }

    /// A condition variable of its own, and not shuttle's, whose waits with a timeout never time out.
    ///
    /// A wait that has a timeout may be told that it has passed at any moment, decided by shuttle and not by a clock:
    /// that covers every order of the timeout and what it races with. A wait without one that nobody ends is reported
    /// as a deadlock. Who is told by `notify_one` is anybody who waits, as the documentation of parking_lot promises no
    /// order.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar {
        /// Never locked across a step that shuttle decides about, so that a real lock does.
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
        /// A thread that waits with a timeout is told that it has passed with one chance in this many, each time it is
        /// its turn: often enough to happen, seldom enough that others come before it.
        const TIMEOUT_CHANCE: u32 = 4;

        fn waiters(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
            self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Begins to wait, still under the lock, so that nobody's notification can come in between.
        fn enlist(&self) -> Arc<Waiter> {
            let waiter =
                Arc::new(Waiter { thread: shuttle::thread::current(), told: AtomicBool::new(false) });
            self.waiters().push(Arc::clone(&waiter));
            waiter
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let waiter = self.enlist();
            guard.unlock();
            while !waiter.told.load(Ordering::SeqCst) {
                shuttle::thread::park();
            }
            guard.lock_again();
        }

        /// The moment is not looked at: whether it has come is for shuttle to decide.
        pub(crate) fn wait_until<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            _until: Instant,
        ) -> WaitTimeoutResult {
            let waiter = self.enlist();
            guard.unlock();
            while !waiter.told.load(Ordering::SeqCst) {
                if shuttle::rand::thread_rng().gen_ratio(1, Condvar::TIMEOUT_CHANCE) {
                    break;
                }
                shuttle::thread::yield_now();
            }
            // Looked at in one step with leaving the list: whoever is told later has been told by nobody.
            let mut waiters = self.waiters();
            let told = waiter.told.load(Ordering::SeqCst);
            waiters.retain(|other| !Arc::ptr_eq(other, &waiter));
            drop(waiters);
            guard.lock_again();
            WaitTimeoutResult(!told)
        }

        fn tell(waiter: &Waiter) {
            waiter.told.store(true, Ordering::SeqCst);
            waiter.thread.unpark();
        }

        pub(crate) fn notify_one(&self) {
            let count = self.waiters().len();
            if count == 0 {
                return;
            }
            // Chosen before the list is locked: choosing is a step of its own to shuttle. One who left meanwhile was
            // not the only one who could be chosen.
            let chosen = shuttle::rand::thread_rng().gen_range(0..count);
            let waiter = {
                let mut waiters = self.waiters();
                let chosen = chosen.min(waiters.len().saturating_sub(1));
                (!waiters.is_empty()).then(|| waiters.swap_remove(chosen))
            };
            if let Some(waiter) = waiter {
                Condvar::tell(&waiter);
            }
        }

        pub(crate) fn notify_all(&self) {
            let waiters = std::mem::take(&mut *self.waiters());
            for waiter in waiters {
                Condvar::tell(&waiter);
            }
        }
    }

    /// The same for a lock that many may hold to read.
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

    /// Two threads hand a number to and fro; one wake-up that is lost, and they wait for ever.
    #[test]
    fn nobody_who_waits_on_a_signal_misses_a_change() {
        const TURNS: u32 = 20_000;
        let (there, back) = (Signal::default(), Signal::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..TURNS {
                    there.wait_while(turn);
                    back.change(turn + 1);
                    back.wake_one();
                }
            });
            for turn in 0..TURNS {
                there.tell_all(turn + 1);
                back.wait_while(turn);
            }
        });
        assert_eq!((there.get(), back.get()), (TURNS, TURNS));
    }

    #[test]
    fn everybody_who_waits_on_a_signal_is_woken_by_one_change() {
        let signal = Signal::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| signal.wait_while(0));
            }
            yield_now();
            signal.tell_all(1);
        });
    }
}
