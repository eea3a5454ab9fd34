//! Group commit. Owns the queue of batches, and the two roles of the threads that write and sync them. Does not use
//! files: batches are written to a [`CommitSink`]. Only the log calls this module.
//!
//! Appenders copy their encoded records into the gathering batch under a short lock, and then wait for that batch. The
//! first waiter that finds no leader becomes the leader. It takes the oldest batch, writes it as one frame and syncs it
//! once, outside every lock that an appender or a reader needs, while the next batch gathers. There is no timer and no
//! background thread: a batch contains the records that were appended while the batch before it was being written and
//! synced.
//!
//! Writing and syncing are separate roles, each held by one thread at a time:
//!
//! - A caller that needs only a write can become the writer while another thread is syncing. If it had to wait for that
//!   sync, an unsynced write would take as long as a synced one, and a buffered store would stop whenever it syncs.
//! - A caller that needs a sync does not write while another thread is syncing. Its record has to wait for the next
//!   sync in any case, and a batch that is written later contains more records.
//!
//! Invariants:
//!
//! - No waiter sleeps while a role that it could take is free: a leader that gives up a role nudges one waiter to take
//!   it.
//! - A write or a sync that fails, or a leader that unwinds, poisons the queue for good, because from then on it is
//!   unknown what is on disk. Once the queue is poisoned, no further batch counts as written or synced. A batch that
//!   was written or synced before may still be acknowledged as such, which is true.

mod gate;
mod linger;
mod queue;

use std::io;
use std::sync::Arc;

pub(crate) use gate::{Placement, Ticket, Until};
pub(crate) use queue::{NewRecord, PendingFrame, record_cost_bytes};

use gate::{DONE, Gate, Nudge};
use linger::Linger;
use queue::{Batch, Queue, Roles, UnsyncedBatch};

use crate::planted::{Bug, planted};
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex, MutexGuard, Patience, timed_yield};

/// The destination of batches. One thread may write while another one syncs. A sync need not cover a write that has not
/// returned before the sync is called.
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
    /// Notified when a sync has ended, for callers of [`Commit::sync_within`]. Followers of a batch wait at its gate
    /// instead.
    sync_ended: Condvar,
    /// The maximum number of bytes that a batch may take of a segment.
    limit_bytes: u64,
}

impl Commit {
    pub(crate) fn new(limit_bytes: u64) -> Commit {
        Commit { queue: Mutex::new(Queue::new()), sync_ended: Condvar::default(), limit_bytes }
    }

    /// Copies `records` into the gathering batch, all of them into the same frame. `reserved_bytes` is the space that
    /// is reserved for them.
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

    /// Waits until the ticket's batch is as durable as its caller wants it. Becomes the leader if no other thread is.
    /// Returns where the first record of the ticket was written.
    pub(crate) fn wait(&self, ticket: &Ticket, sink: &impl CommitSink) -> Result<Placement, Arc<io::Error>> {
        if let Some(placement) = ticket.done() {
            return Ok(placement);
        }
        let mut queue = self.queue.lock();
        let mut has_lingered = false;
        loop {
            if queue.reached(ticket.until) >= ticket.number {
                return Ok(ticket.placement());
            }
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            if let Some(roles) = queue.free_roles(ticket) {
                if !has_lingered && roles.writes && roles.syncs {
                    has_lingered = true;
                    queue = self.linger(queue, ticket);
                    continue;
                }
                // Lead the oldest batch, even if it is not this caller's: the threads that filled it may not wait for
                // it.
                self.lead(queue, roles, sink);
                if let Some(placement) = ticket.done() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
            } else {
                ticket.waiting().fetch_add(1, Ordering::Relaxed);
                // Read the signal while the queue is locked: every later wake-up or nudge changes it.
                let seen = ticket.signal().get();
                drop(queue);
                if ticket.until == Until::Written {
                    ticket.signal().spin_while(seen);
                }
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

    /// Waits until `is_durable` returns true, which a sync of everything written so far brings about. Waits for another
    /// thread's sync no longer than `patience`, and returns false if that is over. If no thread is syncing, this one
    /// does, for as long as the sync takes.
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

    /// The error that poisoned the queue. None if it is not poisoned.
    pub(crate) fn poison(&self) -> Option<Arc<io::Error>> {
        self.queue.lock().poison.clone()
    }

    /// Poisons the queue because of an error outside of it: a failed write of a header or a close mark is as bad as
    /// that of a frame.
    pub(crate) fn poison_with(&self, error: io::Error) -> Arc<io::Error> {
        self.queue.lock().poison(error)
    }

    /// Lets the ticket's batch gather for a moment, if that is worth while. Meanwhile the thread has the role of the
    /// syncer, so that no other thread syncs a part of the batch. It does not have the role of the writer: a caller that
    /// wants only a write writes the batch itself.
    ///
    /// Returns the locked queue with the role given up. No thread needs a nudge for that role: the caller takes it again
    /// under the same lock, or another thread is writing the batch and nudges a syncer when that is done.
    fn linger<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, ticket: &Ticket) -> MutexGuard<'a, Queue> {
        let Some(waiters) = queue.gathering_waiters(ticket) else { return queue };
        if !queue.lingering.is_worth_while(waiters) {
            return queue;
        }
        queue.syncing = true;
        let mut linger = Linger::new(waiters);
        loop {
            drop(queue);
            let took = timed_yield();
            queue = self.queue.lock();
            let Some(waiters) = queue.gathering_waiters(ticket) else { break };
            if !linger.goes_on(took, waiters, &mut queue.lingering) {
                break;
            }
        }
        if planted(Bug::LingererKeepsRole) && queue.gathering_waiters(ticket).is_none() {
            return queue;
        }
        queue.syncing = false;
        // Unless this thread syncs now, the role is free for others.
        if queue.gathering_waiters(ticket).is_none() && !planted(Bug::LingererWakesNobody) {
            self.wake_impatient(&queue);
        }
        queue
    }

    /// Takes the roles, does their work, gives up the roles, and wakes the followers whose batches are done.
    fn lead(&self, mut queue: MutexGuard<'_, Queue>, roles: Roles, sink: &impl CommitSink) {
        queue.syncing |= roles.syncs;
        let taken = if roles.writes { queue.batches.pop_front() } else { None };
        let Some(mut taken) = taken else {
            debug_assert!(
                roles.syncs,
                "a thread took only the role of the writer, but there is no batch to write"
            );
            let written = queue.written;
            // Nudge a writer now: a follower may not have been nudged before, because a syncer was expected to write
            // its batch.
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

    /// Syncs what is written, which is at least everything up to batch `written`, and wakes the followers that wait for
    /// that. `unnoted` is that batch, if the queue has not been updated yet after its write.
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
        if queue.wakes_before_next_sync() {
            // Keep the role until the followers are woken. A caller that needs only a write need not wait.
            let nudges = queue.nudge_leaders();
            drop(queue);
            send(nudges);
            wake(synced);
            if planted(Bug::NextSyncerNotWokenAfterFew) {
                self.queue.lock().syncing = false;
                return;
            }
            self.give_up_syncing(self.queue.lock());
        } else {
            // Wake the next leader first, so that the disk is not idle while all the followers are being woken.
            self.give_up_syncing(queue);
            wake(synced);
        }
    }

    /// Gives up the role of the syncer, and nudges the thread that takes it next.
    fn give_up_syncing(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.syncing = false;
        let nudges = queue.nudge_leaders();
        self.wake_impatient(&queue);
        drop(queue);
        send(nudges);
    }

    /// Wakes the callers that wait for the end of a sync. The queue is locked, so this may be called before or after
    /// the role of the syncer is given up.
    fn wake_impatient(&self, queue: &Queue) {
        if queue.impatient > 0 && !planted(Bug::SyncWaitersNotWoken) {
            self.sync_ended.notify_all();
        }
    }
}

/// Wakes the followers that wait for a sync of these batches.
fn wake(synced: Vec<UnsyncedBatch>) {
    for batch in synced {
        batch.gate.wake(Until::Synced, DONE);
    }
}

fn send(nudges: [Option<Nudge>; 2]) {
    nudges.into_iter().flatten().for_each(Nudge::send);
}

/// Poisons the queue if a leader unwinds while it does not hold the lock, because its followers would wait for ever
/// otherwise.
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
