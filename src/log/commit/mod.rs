//! Group commit. Owns the queue of batches and the two roles that move it; knows no files: what it writes to is a
//! [`CommitSink`]. Called by the log only.
//!
//! Appenders copy their encoded records into the gathering batch under a short lock, and then wait for it. The first
//! waiter that finds no leader becomes one: it takes the oldest batch, writes it as one frame and syncs it once, outside
//! every lock that an appender or a reader needs, while the next batch gathers. There is no timer and no thread: a batch
//! holds what came while the one before it was on its way.
//!
//! Writing and syncing are separate roles, each held by one thread at a time:
//!
//! - A caller that needs only a write can become the writer while another thread syncs. If it waited for that sync, an
//!   operation that spares a sync would take as long as one that does not, and a buffered store would stand still
//!   whenever it syncs.
//! - A caller that needs a sync does not write during another one. Its record shares the next sync in any case, and the
//!   later a batch is written, the more records it holds.
//!
//! Invariants:
//!
//! - No waiter sleeps while a role that it could take is free: a leader that gives up a role nudges one waiter for it.
//! - A write or a sync that fails, or a leader that unwinds, poisons the queue for good, because what is on disk is
//!   unknown from then on. Once the queue is poisoned no waiter is acknowledged, whatever its batch. Before that, a
//!   record may still be acknowledged as written, which is true.

mod gate;
mod queue;

use std::io;
use std::sync::Arc;

pub(crate) use gate::{Placement, Ticket, Until};
pub(crate) use queue::{NewRecord, PendingFrame, record_cost_bytes};

use gate::{DONE, Gate, Nudge};
use queue::{Batch, Queue, Roles};

use crate::planted::{Bug, planted};
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex, MutexGuard, Patience};

/// What batches are written to. One thread may write while another one syncs; a sync need not cover a write that had not
/// returned when the sync was called.
pub(crate) trait CommitSink {
    /// Writes the batch as one frame.
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement>;
    /// Makes everything written so far survive power loss.
    fn sync(&self) -> io::Result<()>;
}

/// The queue of batches and its leaders.
#[derive(Debug)]
pub(crate) struct Commit {
    queue: Mutex<Queue>,
    /// A sync has ended. For callers that wait with a deadline; followers of a batch wait at its gate.
    sync_ended: Condvar,
    /// The most that a batch may take of a segment.
    limit_bytes: u64,
}

impl Commit {
    pub(crate) fn new(limit_bytes: u64) -> Commit {
        Commit { queue: Mutex::new(Queue::new()), sync_ended: Condvar::default(), limit_bytes }
    }

    /// Copies `records` into the gathering batch: all of them into one frame. `reserved_bytes` is the space that is
    /// reserved for them.
    pub(crate) fn append<'r, 'a: 'r>(
        &self,
        records: impl Iterator<Item = &'r NewRecord<'a>> + Clone,
        reserved_bytes: u64,
        until: Until,
    ) -> Result<Ticket, Arc<io::Error>> {
        let mut queue = self.queue.lock();
        match &queue.poison {
            Some(poison) => Err(Arc::clone(poison)),
            None => Ok(queue.append(records, reserved_bytes, until, self.limit_bytes)),
        }
    }

    /// Waits until the ticket's batch is as durable as its caller wants it, leading if no other thread does. Returns
    /// where the first record of the ticket was written.
    pub(crate) fn wait(&self, ticket: &Ticket, sink: &impl CommitSink) -> Result<Placement, Arc<io::Error>> {
        if let Some(placement) = ticket.done() {
            return Ok(placement);
        }
        let mut queue = self.queue.lock();
        loop {
            if queue.reached(ticket.until) >= ticket.number {
                return Ok(ticket.placement());
            }
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            if let Some(roles) = queue.free_roles(ticket) {
                // The oldest batch, even if it is another caller's: the threads that filled it may be gone.
                self.lead(queue, roles, sink);
                if let Some(placement) = ticket.done() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
            } else {
                ticket.waiting().fetch_add(1, Ordering::Relaxed);
                // Read with the queue locked: every wake and nudge from here on changes it.
                let seen = ticket.signal().get();
                drop(queue);
                ticket.signal().wait_while(seen);
                if let Some(placement) = ticket.done() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
                ticket.waiting().fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Makes everything that was written before this call survive power loss.
    pub(crate) fn sync(&self, sink: &impl CommitSink) -> Result<(), Arc<io::Error>> {
        let ticket = {
            let mut queue = self.queue.lock();
            match &queue.poison {
                Some(poison) => return Err(Arc::clone(poison)),
                None => queue.ticket_for_sync(),
            }
        };
        ticket.map_or(Ok(()), |ticket| self.wait(&ticket, sink).map(|_| ()))
    }

    /// Makes what was written survive power loss, until `is_durable` holds. Waits for another thread's sync no longer
    /// than `patience`, and returns false then. A sync that no thread has begun is made by this one, and cannot be cut
    /// short.
    pub(crate) fn sync_within(
        &self,
        is_durable: impl Fn() -> bool,
        patience: Patience,
        sink: &impl CommitSink,
    ) -> Result<bool, Arc<io::Error>> {
        let mut queue = self.queue.lock();
        loop {
            if is_durable() {
                return Ok(true);
            }
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            if patience.is_over() {
                return Ok(false);
            }
            if !queue.syncing {
                self.lead(queue, Roles { writes: false, syncs: true }, sink);
                queue = self.queue.lock();
                continue;
            }
            queue.impatient += 1;
            let timed_out = match patience {
                Patience::Until(until) => self.sync_ended.wait_until(&mut queue, until).timed_out(),
                Patience::None | Patience::Endless => {
                    self.sync_ended.wait(&mut queue);
                    false
                }
            };
            queue.impatient -= 1;
            if timed_out {
                return Ok(is_durable());
            }
        }
    }

    /// What poisoned the queue, if anything did.
    pub(crate) fn poison(&self) -> Option<Arc<io::Error>> {
        self.queue.lock().poison.clone()
    }

    /// Poisons the queue from outside: a failed write of a header or a close mark is as bad as one of a frame.
    pub(crate) fn poison_with(&self, error: io::Error) -> Arc<io::Error> {
        self.queue.lock().poison(error)
    }

    /// Takes the roles, does their work, gives them up, and wakes the followers whose batches are done.
    fn lead(&self, mut queue: MutexGuard<'_, Queue>, roles: Roles, sink: &impl CommitSink) {
        queue.syncing |= roles.syncs;
        let taken = if roles.writes { queue.batches.pop_front() } else { None };
        let Some(mut taken) = taken else {
            debug_assert!(roles.syncs, "a writer has a batch to write");
            let written = queue.written;
            // Followers may have been passed over because a syncer would write for them.
            let nudges = queue.nudge_leaders();
            drop(queue);
            send(nudges);
            return self.sync_up_to(written, None, sink);
        };
        queue.writing = true;
        let others_write = !roles.syncs || taken.wants_write || queue.may_be_written_to(taken.number);
        drop(queue);

        let unwinding = Unwinding { commit: self, roles, gate: Some(&taken.gate) };
        let mut outcome = Ok(());
        if !taken.pending.entries.is_empty() {
            outcome = sink.write(&mut taken.pending).map(|placement| {
                let _ = taken.gate.placement.set(placement);
            });
        }
        std::mem::forget(unwinding);
        if planted(Bug::AcknowledgedBeforeSync) && outcome.is_ok() && roles.syncs {
            self.queue.lock().synced = taken.number;
            taken.gate.wake(Until::Synced, DONE);
        }

        if outcome.is_ok() && !others_write {
            return self.sync_up_to(taken.number, Some(taken), sink);
        }
        let mut queue = self.queue.lock();
        if let Err(error) = outcome.and_then(|()| queue.check_poison()) {
            self.wake_impatient(&queue);
            return queue.fail(roles, error, Some(&taken.gate));
        }
        let (number, gate) = (taken.number, Arc::clone(&taken.gate));
        let is_waited_for = taken.wants_write;
        queue.note_written(taken);
        let nudges = queue.nudge_leaders();
        drop(queue);
        send(nudges);
        if is_waited_for {
            gate.wake(Until::Written, DONE);
        }
        if roles.syncs {
            self.sync_up_to(number, None, sink);
        }
    }

    /// Syncs what is written, which is everything up to batch `written` at least, and wakes the followers that wait for
    /// that. `unnoted` is that batch, if the queue does not know yet that it is written.
    fn sync_up_to(&self, written: u64, unnoted: Option<Batch>, sink: &impl CommitSink) {
        let roles = Roles { writes: unnoted.is_some(), syncs: true };
        let unwinding = Unwinding { commit: self, roles, gate: unnoted.as_ref().map(|batch| &*batch.gate) };
        let mut outcome = sink.sync();
        std::mem::forget(unwinding);

        let mut queue = self.queue.lock();
        if planted(Bug::PoisonIgnored) {
            outcome = Ok(());
        }
        if let Err(error) = outcome.and_then(|()| queue.check_poison()) {
            self.wake_impatient(&queue);
            return queue.fail(roles, error, unnoted.as_ref().map(|batch| &*batch.gate));
        }
        if let Some(batch) = unnoted {
            queue.note_written(batch);
        }
        let synced = queue.note_synced(written);
        let nudges = queue.nudge_leaders();
        self.wake_impatient(&queue);
        drop(queue);
        // Before the followers: the disk must not wait for a leader that comes behind all of them.
        send(nudges);
        for batch in synced {
            batch.gate.wake(Until::Synced, DONE);
        }
    }

    /// Wakes the callers that wait for the end of a sync. Called with the queue locked, so whether before or after the
    /// role is given up does not matter.
    fn wake_impatient(&self, queue: &Queue) {
        if queue.impatient > 0 && !planted(Bug::SyncWaitersNotWoken) {
            self.sync_ended.notify_all();
        }
    }
}

fn send(nudges: [Option<Nudge>; 2]) {
    nudges.into_iter().flatten().for_each(Nudge::send);
}

/// Poisons the queue if a leader unwinds outside the lock: its followers must not wait for ever.
struct Unwinding<'a> {
    commit: &'a Commit,
    roles: Roles,
    gate: Option<&'a Gate>,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        let error = io::Error::other("a thread panicked while it wrote or synced for the others");
        let mut queue = self.commit.queue.lock();
        self.commit.wake_impatient(&queue);
        queue.fail(self.roles, error, self.gate);
    }
}

#[cfg(test)]
mod tests;
