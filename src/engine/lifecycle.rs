//! Closes a store, and lets go of one that is not closed.
//!
//! A store is closed in this order; each step relies on the one before:
//!
//! 1. While claims are alive the close is refused, and nothing has changed.
//! 2. New calls are blocked. No waiter has to be woken: calls wait only for a claim, and there is none.
//! 3. The calls inside end. Any of them may still take a claim, so claims are counted again. If there are any, the
//!    blocked calls go on and the close is refused.
//! 4. No call is inside and none can enter. Everything is synced and the close mark is written. No frame can follow it.
//! 5. Reads, which are not admitted, are refused from now on. The close waits for those under way: each holds the lock
//!    of its index shard. Then no call reads the file any more, and the file is unlocked.

use std::ops::Deref;
use std::sync::Arc;

use super::assembly::Engine;
use super::reclaim::Compaction;
use crate::error::{Error, Result};
use crate::planted::{Bug, planted};

impl Engine {
    /// Makes everything that was changed before this call survive a loss of power.
    pub(crate) fn sync(&self) -> Result<()> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let in_place = self.path_check.look();
        self.log().sync()?;
        in_place
    }

    /// Retires every segment that is there now, and cuts off what comes free at the end of the file.
    pub(crate) fn compact(&self) -> Result<Compaction> {
        let _events = crate::events::hold_back();
        self.reclaim.compact()
    }

    /// Marks the log as closed. No call may be inside: the mark states the counter of the last version.
    fn mark_closed(&self) -> Result<()> {
        self.log().mark_closed(self.versions.last_counter())
    }

    /// Closes the store, unless claims are alive: see the [module](self).
    ///
    /// The disk may fail while the close mark is written. The store is closed all the same, because nothing can be
    /// written to it any more, and this and every later call says what failed.
    pub(crate) fn close(&self) -> Result<()> {
        let _events = crate::events::hold_back();
        self.admission.check_process()?;
        if !self.admission.is_closed() {
            self.check_no_claims()?;
        }
        let Some(mut closing) = self.admission.begin_closing() else {
            // The store may have been closed by a close that failed. This caller must not take that for a success either.
            self.log().check_poison()?;
            self.path_check.check()?;
            return Err(Error::Closed);
        };
        if !planted(Bug::ClaimsCountedOnce) {
            self.check_no_claims()?;
        }
        closing.decide();
        let in_place = self.path_check.look();
        let marked = self.log().sync().and_then(|()| self.mark_closed());
        closing.refuse_reads();
        if !planted(Bug::ReadersNotWaitedFor) {
            self.index().wait_for_readers();
        }
        self.log().storage().unlock();
        drop(closing);
        marked.and(in_place)
    }

    fn check_no_claims(&self) -> Result<()> {
        match self.flights.claims() {
            0 => Ok(()),
            count => Err(Error::LeasesAlive { count }),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _events = crate::events::hold_back();
        // The last handle is gone, so this is the close. An error here costs only that the next opening rewrites the end of
        // the log.
        if self.admission.check_open().is_err() {
            return;
        }
        if self.log().check_poison().is_ok() {
            let _ = self.log().sync().and_then(|()| self.mark_closed());
        }
        // Not left to the drop of the file handle: a process that was forked meanwhile has a copy of the handle.
        self.log().storage().unlock();
    }
}

/// The handle by which a [`Store`](crate::Store), a lease or a doubt holds the engine.
///
/// A forked child never drops the engine. Another thread of the parent may have been changing any part of it at the moment of
/// the fork, so the child cannot even free its memory safely. The memory ends with the child.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Engine>);

impl Handle {
    pub(crate) fn new(engine: Arc<Engine>) -> Handle {
        Handle(engine)
    }
}

impl Deref for Handle {
    type Target = Arc<Engine>;

    fn deref(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.admission.has_forked() {
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}
