//! Closes a store, and releases one that is dropped without being closed.
//!
//! A store is closed in five steps, each of which relies on the one before:
//!
//! 1. While claims are alive the close is refused, and nothing has changed.
//! 2. New calls are blocked. No waiter has to be woken, because calls wait outside of admission only for claims, and
//!    there are none.
//! 3. The close waits until the admitted calls have ended. Any of them may have taken a claim, so claims are counted
//!    again. If there are any, the blocked calls go on and the close is refused.
//! 4. No call is admitted any more. Everything is synced and the close mark is written, which no frame can follow.
//! 5. From now on reads, which are not admitted, are refused. The close waits for the reads that are running, each of
//!    which holds the lock of its index shard. After that no call reads the file, and the file is unlocked.

use std::ops::Deref;
use std::sync::Arc;

use super::assembly::Engine;
use super::inside;
use super::reclaim::{Compaction, OnProgress};
use crate::error::{Error, Result};
use crate::planted::{Bug, planted};

impl Engine {
    /// Makes everything that was changed before this call survive a loss of power. Also checks that the path still
    /// leads to the open file.
    pub(crate) fn sync(&self) -> Result<()> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let in_place = self.path_check.look();
        let released = self.write_releases();
        self.log().sync()?;
        released.and(in_place)
    }

    /// Retires every segment that exists now, and cuts off the slots that this frees at the end of the file.
    /// Calls `on_progress` after each segment, while the call holds no lock and is not admitted.
    pub(crate) fn compact(&self, on_progress: OnProgress<'_>) -> Result<Compaction> {
        self.reclaim.compact(&mut |progress| {
            let _in_callback = self.enter_callback();
            on_progress(progress)
        })
    }

    /// Marks the log as closed. No call may be admitted, because the mark contains the counter of the last version.
    fn mark_closed(&self) -> Result<()> {
        self.log().mark_closed(self.versions.last_counter())
    }

    /// Closes the store, unless claims are alive: see the [module](self).
    ///
    /// The disk may fail while the close mark is being written. The store is closed even so, because nothing can be
    /// written to it any more, and this and every later call returns the failure.
    pub(crate) fn close(&self) -> Result<()> {
        let _events = crate::events::hold_back();
        self.admission.check_process()?;
        if inside::is_in_callback(&self.flights) {
            return Err(Error::InCallback);
        }
        if !self.admission.is_closed() {
            self.check_no_claims()?;
        }
        let Some(mut closing) = self.admission.begin_closing() else {
            // The close that closed the store may have failed. This caller must not take that for a success.
            self.log().check_poison()?;
            self.path_check.check()?;
            return Err(Error::Closed);
        };
        if !planted(Bug::ClaimsCountedOnce) {
            self.check_no_claims()?;
        }
        closing.make_final();
        let in_place = self.path_check.look();
        let released = self.write_releases();
        let marked = self.log().sync().and_then(|()| self.mark_closed());
        closing.refuse_reads();
        if !planted(Bug::ReadersNotWaitedFor) {
            self.index().wait_for_readers();
        }
        self.log().storage().unlock();
        drop(closing);
        marked.and(released).and(in_place)
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
        // The last handle is gone, so the store is closed now. If that fails, the next recovery has to rewrite the end
        // of the log, and nothing else is lost.
        if self.admission.check_open().is_err() {
            return;
        }
        if self.log().check_poison().is_ok() {
            let _ = self.write_releases();
            let _ = self.log().sync().and_then(|()| self.mark_closed());
        }
        // Dropping the file handle would not unlock the file if a child process, forked since, has a copy of the
        // handle.
        self.log().storage().unlock();
    }
}

/// A reference to the engine, owned by a [`Store`](crate::Store), a lease or a doubt.
///
/// A forked child never drops the engine. Another thread of the parent may have been changing any part of it at the
/// moment of the fork, so the child cannot even free the engine's memory safely. The child keeps the memory until it
/// exits.
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
