//! The events that a store reports through [`tracing`](https://docs.rs/tracing), with the feature `tracing`.
//!
//! All have the target `oncekey`. Which one it is shows in the beginning of its message.
//!
//! | message | level | fields | when |
//! |---|---|---|---|
//! | `opened` | info | `path`, `keys`, `was_closed` | A store was opened. `was_closed`: it had been closed, and not left by a crash. |
//! | `the wall clock jumped` | warn | `path`, `wall_ms`, `last_wall_ms`, `accepted` | An opening accepted a jump of the wall clock ([`Options::accept_clock_jump`](crate::Options::accept_clock_jump)). |
//! | `copy on write` | warn | `path` | At an opening: completions may find the disk full ([`Stats::copy_on_write`](crate::Stats::copy_on_write)). |
//! | `replayed` | debug | `key`, `scope` | A call was answered with what is recorded. |
//! | `mismatch` | warn | `key`, `scope` | A call was refused: [`Error::Mismatch`]. |
//! | `in doubt` | warn | `key`, `scope`, `attempt` | An attempt ended in doubt: its lease was dropped unfinished (also by an error or a panic of the closure of [`Operation::run`](crate::Operation::run)), another call took it over after its deadline, or [`Store::compare_and_set`](crate::Store::compare_and_set) put the key in doubt. Once for each attempt. |
//! | `found in doubt` | info | `key`, `scope`, `attempt` | A call met an attempt that is in doubt, be it of this process or of an earlier one. At every such call. |
//! | `unreadable` | error | `path`, `offset` | A record cannot be read ([`Stats::unreadable_records`](crate::Stats::unreadable_records)). Once for each record. |
//! | `reclaimed` | debug | `path`, `sequence`, `record_bytes`, `moved_bytes` | A segment was retired. |
//! | `reclaiming stopped` | error | `path`, `error` | The oldest segment cannot be read, so the file grows. Once until reclaiming goes on. |
//! | `poisoned` | error | `path`, `error` | A write or a sync failed. Once for each opened store, by the first call that is refused for it. |
//! | `replaced` | error | `path` | The path was seen to lead to another file, or to none. Once for each opened store. |
//!
//! Keys are in the events, escaped where they are not printable; requests and results never are. `scope` is absent where
//! the key has none. Paths are escaped too. An attempt whose process ended emits no `in doubt`; the next call that meets
//! it emits `found in doubt`.
//!
//! # When a subscriber runs
//!
//! Events are emitted by the thread and at the end of the call that caused them, or at the end of the drop of a lease.
//! That call holds no lock then and does not count as a call under way, so a subscriber may use the store:
//! [`Store::close`](crate::Store::close) does not wait for the call whose event it is. Events of the calls that a
//! subscriber makes are emitted after it returned, one after another. A subscriber that answers every event with a call
//! that causes another event never ends.
//!
//! If a subscriber panics, the panic hook reports it and the panic goes no further, neither out of a drop nor out of a
//! call: what the call did stands, and a lease that it acquired must reach its caller.

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

/// Holds this thread's events back until it is dropped: the first thing in every call of the engine that may cause one, so
/// that it outlives every lock. Where several are alive, the one that was made first counts.
#[must_use = "events are held back until this is dropped"]
pub(crate) struct HeldBack {
    /// The events are this thread's.
    _not_send: PhantomData<*const ()>,
}

/// Holds events back; see [`HeldBack`].
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

/// The attempt ended, and nobody knows whether its side effect happened.
pub(crate) fn in_doubt(key: Key<'_>, attempt: u32) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::InDoubt { key: key.to_owned(), attempt });
}

/// A call met the attempt, which had ended in doubt before.
pub(crate) fn found_in_doubt(key: Key<'_>, attempt: u32) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::INFO, || Event::FoundInDoubt { key: key.to_owned(), attempt });
}

pub(crate) fn opened(path: &Path, keys: usize, was_closed: bool) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::INFO, || Event::Opened { path: path.into(), keys, was_closed });
}

pub(crate) fn copies_on_write(path: &Path) {
    #[cfg(feature = "tracing")]
    pending::add(tracing::Level::WARN, || Event::CopiesOnWrite { path: path.into() });
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

/// An event that may have to wait.
#[cfg(feature = "tracing")]
enum Event {
    Opened { path: Box<Path>, keys: usize, was_closed: bool },
    ClockJumped { path: Box<Path>, wall_ms: u64, last_wall_ms: u64, accepted: ClockJump },
    CopiesOnWrite { path: Box<Path> },
    Replayed { key: OwnedKey },
    Mismatched { key: OwnedKey },
    InDoubt { key: OwnedKey, attempt: u32 },
    FoundInDoubt { key: OwnedKey, attempt: u32 },
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

    /// Where all events of this crate come from.
    const TARGET: &str = "oncekey";

    /// The key's own bytes, escaped where they are not printable; the scope is a field of its own.
    fn name_of(key: &OwnedKey) -> impl tracing::Value {
        display(key.as_key().name().escape_ascii())
    }

    fn scope_of(key: &OwnedKey) -> Option<impl tracing::Value> {
        key.as_key().scope_name().map(|scope| display(scope.escape_ascii()))
    }

    impl Event {
        /// Gives the event to the subscriber, which may do what it likes.
        pub(super) fn emit(self) {
            match self {
                Event::Opened { path, keys, was_closed } => {
                    tracing::info!(target: TARGET, path = %Shown(&path), keys, was_closed, "opened");
                }
                Event::ClockJumped { path, wall_ms, last_wall_ms, accepted } => tracing::warn!(
                    target: TARGET, path = %Shown(&path), wall_ms, last_wall_ms, accepted = ?accepted,
                    "the wall clock jumped; accepted"
                ),
                Event::CopiesOnWrite { path } => tracing::warn!(
                    target: TARGET,
                    path = %Shown(&path),
                    "copy on write: the file system may write changed bytes elsewhere, so completions may find the disk full"
                ),
                Event::Replayed { key } => tracing::debug!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key),
                    "replayed: done before, answered with the recorded result"
                ),
                Event::Mismatched { key } => tracing::warn!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key),
                    "mismatch: the key was used before with another request"
                ),
                Event::InDoubt { key, attempt } => tracing::warn!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key), attempt,
                    "in doubt: the attempt ended, and it is not known whether its side effect happened"
                ),
                Event::FoundInDoubt { key, attempt } => tracing::info!(
                    target: TARGET, key = name_of(&key), scope = scope_of(&key), attempt,
                    "found in doubt: it is not known whether the side effect of an earlier attempt happened"
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
                    "reclaiming stopped: the oldest segment cannot be given up"
                ),
                Event::Poisoned { path, error } => tracing::error!(
                    target: TARGET, path = %Shown(&path), %error,
                    "poisoned: nothing is written any more"
                ),
                Event::Replaced { path } => tracing::error!(
                    target: TARGET, path = %Shown(&path),
                    "replaced: the path leads to another file than the open one, or to none"
                ),
            }
        }
    }
}

/// This thread's events that wait for its call to end.
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
        /// How many [`HeldBack`](super::HeldBack) are alive.
        holders: Cell<usize>,
        /// A subscriber may be running, called from here.
        is_emitting: Cell<bool>,
        /// Without memory whenever it is empty. So there is nothing to drop, and a lease that is dropped with the thread's
        /// local variables finds it still there.
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

    /// Adds an event, unless no subscriber wants its level. Runs no code of a subscriber, which is why it does not ask one.
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

        /// Emits what waits, if no call is under way. A call that a subscriber makes leaves its events to the loop that
        /// called the subscriber: nested, each could call for the next, and `tracing` drops events of a subscriber's own.
        fn emit_if_free(&self) {
            if self.holders.get() > 0 || self.is_emitting.get() || self.events.borrow().is_empty() {
                return;
            }
            while let Some(event) = self.next() {
                self.is_emitting.set(true);
                // This may be in a drop, and the thread may be panicking.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| event.emit())) {
                    // Dropped, it could panic again.
                    std::mem::forget(panic);
                }
                self.is_emitting.set(false);
            }
        }
    }
}

#[cfg(all(test, feature = "tracing", not(oncekey_shuttle)))]
mod tests;
