//! The events that a store emits through [`tracing`](https://docs.rs/tracing), with the feature `tracing`.
//!
//! All events have the target `oncekey`. The beginning of the message identifies the event.
//!
//! | message | level | fields | when |
//! |---|---|---|---|
//! | `opened` | info | `path`, `keys`, `was_closed` | A store was opened. `was_closed` is true after a clean close, false after a crash. |
//! | `the wall clock jumped` | warn | `path`, `wall_ms`, `last_wall_ms`, `accepted` | A store was opened although the wall clock had jumped ([`Options::accept_clock_jump`](crate::Options::accept_clock_jump)). |
//! | `copy on write` | warn | `path` | A store was opened on a file system where a completion may find the disk full ([`Stats::copy_on_write`](crate::Stats::copy_on_write)). |
//! | `replayed` | debug | `key`, `scope` | A call returned the recorded result. |
//! | `mismatch` | warn | `key`, `scope` | A call returned [`Error::Mismatch`]. |
//! | `in doubt` | warn | `key`, `scope`, `attempt` | An attempt ended in doubt: its lease was dropped before it was completed or released (for example because the closure of [`Operation::run`](crate::Operation::run) failed or panicked), another call took over the operation after the deadline, or [`Store::compare_and_set`](crate::Store::compare_and_set) put the key in doubt. Once for each attempt. |
//! | `found in doubt` | info | `key`, `scope`, `attempt` | A call found in doubt an attempt of this process or of an earlier one. Once for each such call. |
//! | `step_unvisited` | warn | `key`, `scope`, `step` | An operation was completed, and its last attempt never asked for this step, which an earlier attempt had done ([`Attempt::step`](crate::Attempt::step)). Has the name of the step changed in a deploy, or is its side effect to be undone? |
//! | `unreadable` | error | `path`, `offset` | A record cannot be read ([`Stats::unreadable_records`](crate::Stats::unreadable_records)). Once for each record. |
//! | `reclaimed` | debug | `path`, `sequence`, `record_bytes`, `moved_bytes` | A segment was retired: its live records were moved, and its space is free. |
//! | `reclaiming stopped` | error | `path`, `error` | The oldest segment cannot be read, so no space is freed and the file grows. Once until reclaiming continues. |
//! | `poisoned` | error | `path`, `error` | A write or a sync failed. Once for each open store, from the first call that returns [`Error::Poisoned`]. |
//! | `replaced` | error | `path` | The path leads to a different file than the open one, or to no file. Once for each open store. |
//!
//! Events contain keys and paths, with characters that are not printable escaped. They never contain requests or results.
//! `scope` is absent if the key has none. A process that ends emits no `in doubt` for its attempts; the next call that finds
//! such an attempt emits `found in doubt`.
//!
//! # When a subscriber runs
//!
//! A thread emits the events of a call, or of the drop of a lease, when the call or drop ends; those of a compaction, after each segment. At that point the thread holds
//! no lock of the store and the call counts as finished, so a subscriber may use the store:
//! [`Store::close`](crate::Store::close) does not wait for the call that caused the event. Events of calls that a subscriber
//! makes are emitted after it has returned, one after another. A subscriber that answers every event with a call that causes
//! another event never ends.
//!
//! If a subscriber panics, the panic hook runs, but the panic does not unwind out of the call or drop that caused the event.
//! The effects of the call remain, and its caller still gets the lease that it acquired.

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, clippy::unused_self, reason = "without the feature nothing is reported")
)]

use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use crate::clock::ClockJump;
use crate::error::Error;
use crate::key::Key;

/// A guard that holds back this thread's events until it is dropped. If guards are nested, dropping the outermost one emits
/// the events.
///
/// Every call of the engine that may cause an event creates a guard before anything else, so that the guard outlives every
/// lock.
#[must_use = "events are held back until this is dropped"]
pub(crate) struct HeldBack {
    /// The queue of events is local to the thread, so the guard must not move to another thread.
    _not_send: PhantomData<*const ()>,
}

/// Holds back this thread's events: see [`HeldBack`].
#[inline]
pub(crate) fn hold_back() -> HeldBack {
    #[cfg(feature = "tracing")]
    pending::enter();
    HeldBack { _not_send: PhantomData }
}

impl Drop for HeldBack {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "tracing")]
        pending::leave();
    }
}

pub(crate) fn replayed(key: Key<'_>) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::DEBUG, || Event::Replayed { key: key.to_owned() });
}

pub(crate) fn mismatched(key: Key<'_>) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::Mismatched { key: key.to_owned() });
}

/// Adds the event of an attempt that has just ended without a known outcome.
pub(crate) fn in_doubt(key: Key<'_>, attempt: u32) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::InDoubt { key: key.to_owned(), attempt });
}

/// Adds the event of a call that found an attempt in doubt that had ended earlier.
pub(crate) fn found_in_doubt(key: Key<'_>, attempt: u32) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::INFO, || Event::FoundInDoubt { key: key.to_owned(), attempt });
}

/// Adds the event of a step that an earlier attempt had done, and for which the attempt that completed the operation did not
/// ask.
pub(crate) fn step_unvisited(key: Key<'_>, step: &[u8]) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::StepUnvisited { key: key.step(step).to_owned() });
}

pub(crate) fn opened(path: &Path, keys: usize, was_closed: bool) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::INFO, || Event::Opened { path: path.into(), keys, was_closed });
}

pub(crate) fn found_copy_on_write(path: &Path) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::FoundCopyOnWrite { path: path.into() });
}

pub(crate) fn reclaimed(path: &Path, sequence: u64, record_bytes: u64, moved_bytes: u64) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::DEBUG, || Event::Reclaimed {
        path: path.into(),
        sequence,
        record_bytes,
        moved_bytes,
    });
}

pub(crate) fn unreadable(path: &Path, offset: u64) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::ERROR, || Event::Unreadable { path: path.into(), offset });
}

pub(crate) fn reclaiming_stopped(path: &Path, error: &Error) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::ERROR, || Event::ReclaimingStopped {
        path: path.into(),
        error: error.clone(),
    });
}

pub(crate) fn poisoned(path: &Path, error: &Arc<io::Error>) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::ERROR, || Event::Poisoned { path: path.into(), error: Arc::clone(error) });
}

pub(crate) fn replaced(path: &Path) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::ERROR, || Event::Replaced { path: path.into() });
}

pub(crate) fn clock_jumped(path: &Path, wall_ms: u64, last_wall_ms: u64, accepted: ClockJump) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::ClockJumped {
        path: path.into(),
        wall_ms,
        last_wall_ms,
        accepted,
    });
}

/// An event that is held back until its call ends.
#[cfg(feature = "tracing")]
enum Event {
    Opened { path: Box<Path>, keys: usize, was_closed: bool },
    ClockJumped { path: Box<Path>, wall_ms: u64, last_wall_ms: u64, accepted: ClockJump },
    FoundCopyOnWrite { path: Box<Path> },
    Replayed { key: OwnedKey },
    Mismatched { key: OwnedKey },
    InDoubt { key: OwnedKey, attempt: u32 },
    FoundInDoubt { key: OwnedKey, attempt: u32 },
    StepUnvisited { key: OwnedKey },
    Unreadable { path: Box<Path>, offset: u64 },
    Reclaimed { path: Box<Path>, sequence: u64, record_bytes: u64, moved_bytes: u64 },
    ReclaimingStopped { path: Box<Path>, error: Error },
    Poisoned { path: Box<Path>, error: Arc<io::Error> },
    Replaced { path: Box<Path> },
}

#[cfg(feature = "tracing")]
use crate::key::OwnedKey;

#[cfg(feature = "tracing")]
mod emit {
    use tracing::field::display;

    use super::Event;
    use crate::error::Shown;
    use crate::key::OwnedKey;

    /// The target of every event of this crate.
    const TARGET: &str = "oncekey";

    /// Returns the key without its scope, which has a field of its own. Bytes that are not printable are escaped.
    fn name_of(key: &OwnedKey) -> impl tracing::Value {
        display(key.as_key().name().escape_ascii())
    }

    fn scope_of(key: &OwnedKey) -> Option<impl tracing::Value> {
        key.as_key().scope_name().map(|scope| display(scope.escape_ascii()))
    }

    fn step_of(key: &OwnedKey) -> Option<impl tracing::Value> {
        key.as_key().step_name().map(|step| display(step.escape_ascii()))
    }

    impl Event {
        /// Passes the event to the subscriber, which may call the store, block or panic.
        pub(super) fn emit(self) {
            match self {
                Event::Opened { path, keys, was_closed } => {
                    tracing::info!(target: TARGET, path = %Shown(&path), keys, was_closed, "opened");
                }
                Event::ClockJumped { path, wall_ms, last_wall_ms, accepted } => tracing::warn!(
                    target: TARGET, path = %Shown(&path), wall_ms, last_wall_ms, accepted = ?accepted,
                    "the wall clock jumped; accepted"
                ),
                Event::FoundCopyOnWrite { path } => tracing::warn!(
                    target: TARGET,
                    path = %Shown(&path),
                    "copy on write: the file system may write changed bytes elsewhere, so completions may find the disk full"
                ),
                Event::Replayed { key } => tracing::debug!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key),
                    "replayed: done before; returned the recorded result"
                ),
                Event::Mismatched { key } => tracing::warn!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key),
                    "mismatch: the key was used before with a different request"
                ),
                Event::InDoubt { key, attempt } => tracing::warn!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key), attempt,
                    "in doubt: the attempt ended, and it is unknown whether its side effect happened"
                ),
                Event::FoundInDoubt { key, attempt } => tracing::info!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key), attempt,
                    "found in doubt: it is unknown whether the side effect of an earlier attempt happened"
                ),
                Event::StepUnvisited { key } => tracing::warn!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key), step = step_of(&key),
                    "step_unvisited: an earlier attempt did this step, and the one that completed the operation did not ask for it"
                ),
                Event::Unreadable { path, offset } => tracing::error!(
                    target: TARGET, path = %Shown(&path), offset,
                    "unreadable: the record here is not what was written"
                ),
                Event::Reclaimed { path, sequence, record_bytes, moved_bytes } => tracing::debug!(
                    target: TARGET, path = %Shown(&path), sequence, record_bytes, moved_bytes,
                    "reclaimed a segment"
                ),
                Event::ReclaimingStopped { path, error } => tracing::error!(
                    target: TARGET, path = %Shown(&path), %error,
                    "reclaiming stopped: the oldest segment cannot be read, so the file grows"
                ),
                Event::Poisoned { path, error } => tracing::error!(
                    target: TARGET, path = %Shown(&path), %error,
                    "poisoned: a write or sync failed; nothing can be written until the store is opened again"
                ),
                Event::Replaced { path } => tracing::error!(
                    target: TARGET, path = %Shown(&path),
                    "replaced: the path leads to a different file than the open one, or to no file; nothing new can be begun"
                ),
            }
        }
    }
}

/// The events of this thread that are held back.
#[cfg(feature = "tracing")]
mod pending {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::mem::ManuallyDrop;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tracing::Level;
    use tracing::level_filters::LevelFilter;

    use super::Event;
    use crate::planted::{Bug, planted};
    use crate::sync::thread_local;

    struct Pending {
        /// The number of [`HeldBack`](super::HeldBack) guards that are alive.
        holders: Cell<usize>,
        /// Whether the loop that emits events is running, so that a subscriber may be on the stack.
        is_emitting: Cell<bool>,
        /// Needs no drop, because it owns no memory while it is empty. A thread-local that needs a drop may already be gone
        /// when another thread-local is destroyed. If that other one contains a lease, dropping the lease emits an event.
        events: ManuallyDrop<RefCell<VecDeque<Event>>>,
    }

    thread_local! {
        static PENDING: Pending = const { Pending {
            holders: Cell::new(0),
            is_emitting: Cell::new(false),
            events: ManuallyDrop::new(RefCell::new(VecDeque::new())),
        } };
    }

    pub(super) fn enter() {
        let _ = PENDING.try_with(|pending| pending.holders.set(pending.holders.get() + 1));
    }

    pub(super) fn leave() {
        let _ = PENDING.try_with(|pending| {
            pending.holders.set(pending.holders.get().saturating_sub(1));
            pending.emit_if_free();
        });
    }

    /// Adds an event, unless every subscriber ignores its level. Compares the level with the global maximum only, because
    /// asking a subscriber whether it is interested would run its code while the caller holds locks.
    pub(super) fn add(level: Level, event: impl FnOnce() -> Event) {
        if level > LevelFilter::current() {
            return;
        }
        if planted(Bug::EventUnderLocks) {
            return event().emit();
        }
        let _ = PENDING.try_with(|pending| {
            pending.events.borrow_mut().push_back(event());
            pending.emit_if_free();
        });
    }

    impl Pending {
        fn next(&self) -> Option<Event> {
            let mut events = self.events.borrow_mut();
            let event = events.pop_front();
            if event.is_none() {
                *events = VecDeque::new();
            }
            event
        }

        /// Emits the events, if no call of the store is running in this thread. A call that a subscriber makes leaves its
        /// events to the loop that called the subscriber, because nested loops could recurse without a bound, and because
        /// `tracing` drops events that are emitted within a subscriber.
        fn emit_if_free(&self) {
            if self.holders.get() > 0 || self.is_emitting.get() || self.events.borrow().is_empty() {
                return;
            }
            while let Some(event) = self.next() {
                self.is_emitting.set(true);
                // The caller may be a drop during a panic, where a second panic would abort the process.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| event.emit())) {
                    // The payload is leaked, because dropping it could panic as well.
                    std::mem::forget(panic);
                }
                self.is_emitting.set(false);
            }
        }
    }
}

#[cfg(all(test, feature = "tracing", not(oncekey_shuttle)))]
mod tests;
