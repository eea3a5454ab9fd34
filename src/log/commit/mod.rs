//! Group commit: leader and followers. Knows no files; what it writes to is a [`CommitSink`].
//!
//! Appenders put their records into the gathering batch under a short lock and then wait for it. The first waiter
//! that finds nobody leading takes the oldest batch, writes it as one frame and syncs it once, outside every lock
//! that an appender or a reader needs, while the next batch gathers. There is no timer and no thread: a batch is as
//! large as what came while the one before it was on its way.
//!
//! To write and to sync are two duties, each of one thread at a time, and who wants a record only written does not wait for
//! the sync of those who want more: it writes the next batch while another thread syncs what was written before. Were it to
//! wait, an operation that spares a sync would take as long as one that does not, and a store that syncs now and then would
//! stand still meanwhile. Who wants a sync does not write during another one: its record shares the next sync in any case,
//! and a batch is the larger the later it is written. So nobody who waits sleeps unasked while the duty that it could do is
//! nobody's.
//!
//! A write or a sync that fails, or a leader that unwinds, poisons the queue for good, because nobody can know any more what
//! is on disk. From the moment at which the queue knows of it nobody who waits is acknowledged, of earlier batches neither;
//! until then a record may be acknowledged as written, which it is.

mod gate;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

pub(crate) use gate::{Placement, Ticket, Until};

use gate::{Asked, DONE, FAILED, Gate};

use crate::format::Seed;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::Record;
use crate::planted::{Bug, planted};
use crate::record::RecordSize;
use crate::status::Version;
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex, MutexGuard, Patience};

/// What the footer and the index need to know of one record of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingRecord {
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) size: RecordSize,
    /// From the start of the frame, in bytes.
    pub(crate) at: u64,
}

/// Records on their way to become one frame.
#[derive(Debug, Default)]
pub(crate) struct PendingFrame {
    /// Room for the frame header, then the encoded records.
    pub(crate) frame: Vec<u8>,
    pub(crate) entries: Vec<PendingRecord>,
    /// The room that was promised to these records; free again for others when they are written.
    pub(crate) reserved_bytes: u64,
}

impl PendingFrame {
    /// What the batch takes of a segment: its frame and its footer entries.
    fn cost_bytes(&self) -> u64 {
        self.frame.len() as u64 + self.entries.len() as u64 * ENTRY_BYTES
    }
}

/// What one record takes of a segment at most: itself, a footer entry, and a frame header if it is alone.
pub(crate) const fn record_cost_bytes(encoded_bytes: u64) -> u64 {
    encoded_bytes + ENTRY_BYTES + FRAME_HEADER_BYTES as u64
}

/// What batches are written to. One thread may write and another one sync at the same time; a sync owes nothing to a write that
/// had not returned when it was called.
pub(crate) trait CommitSink {
    /// Writes the batch as one frame.
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement>;
    /// Makes everything written so far survive power loss.
    fn sync(&self) -> io::Result<()>;
}

/// A batch that still gathers, or waits for its turn.
#[derive(Debug)]
struct Gathering {
    number: u64,
    batch: PendingFrame,
    wants_sync: bool,
    wants_write: bool,
    gate: Arc<Gate>,
}

impl Gathering {
    /// A place in the batch, for somebody who wants this of it.
    fn ticket(&mut self, at: u64, until: Until) -> Ticket {
        match until {
            Until::Written => self.wants_write = true,
            Until::Synced => self.wants_sync = true,
        }
        Ticket { number: self.number, at, until, gate: Arc::clone(&self.gate) }
    }
}

/// A batch that is written and wants to be synced.
#[derive(Debug)]
struct Unsynced {
    number: u64,
    gate: Arc<Gate>,
}

/// What a thread does for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Duty {
    /// It writes the oldest batch.
    writes: bool,
    /// It syncs what is written, of which that batch then is the last.
    syncs: bool,
}

#[derive(Debug)]
struct Queue {
    batches: VecDeque<Gathering>,
    /// Written, and neither synced nor given up. What is being synced is among them.
    unsynced: VecDeque<Unsynced>,
    next_number: u64,
    writing: bool,
    syncing: bool,
    /// The number of the last batch of which somebody wanted no more than that it is written.
    last_wants_write: Option<u64>,
    /// Numbers of the last batch written and of the last batch synced.
    written: u64,
    synced: u64,
    poison: Option<Arc<io::Error>>,
    /// Buffers of batches that are done, so that the steady state allocates nothing of a frame's size.
    spare: Vec<PendingFrame>,
    /// Threads that wait for the end of a sync, and no longer than they have patience.
    impatient: u32,
}

/// The queue of batches.
#[derive(Debug)]
pub(crate) struct Commit {
    queue: Mutex<Queue>,
    /// A sync has ended.
    sync_ended: Condvar,
    seed: Seed,
    /// The most that a batch may take of a segment.
    limit_bytes: u64,
}

impl Commit {
    pub(crate) fn new(seed: Seed, limit_bytes: u64) -> Commit {
        let queue = Queue {
            batches: VecDeque::new(),
            unsynced: VecDeque::new(),
            next_number: 1,
            writing: false,
            syncing: false,
            last_wants_write: None,
            written: 0,
            synced: 0,
            poison: None,
            spare: Vec::new(),
            impatient: 0,
        };
        Commit { queue: Mutex::new(queue), sync_ended: Condvar::default(), seed, limit_bytes }
    }

    /// Puts a record into the gathering batch. `reserved_bytes` is room that was set aside for it.
    pub(crate) fn append(
        &self,
        record: &Record<'_>,
        hash: u128,
        reserved_bytes: u64,
        until: Until,
    ) -> Result<Ticket, Arc<io::Error>> {
        let length = crate::format::record::encoded_bytes(record.key, &record.value);
        let mut queue = self.queue.lock();
        if let Some(poison) = &queue.poison {
            return Err(Arc::clone(poison));
        }
        let gathering =
            queue.gathering(|batch| batch.cost_bytes() + length + ENTRY_BYTES <= self.limit_bytes);
        let at = gathering.batch.frame.len() as u64;
        record.encode(&mut gathering.batch.frame, self.seed);
        let size = RecordSize::of(record, length);
        gathering.batch.entries.push(PendingRecord { hash, version: record.version, size, at });
        gathering.batch.reserved_bytes += reserved_bytes;
        let ticket = gathering.ticket(at, until);
        if until == Until::Written {
            queue.last_wants_write = Some(ticket.number);
        }
        Ok(ticket)
    }

    /// Waits until the record is where its ticket wants it, leading if nobody else does. Returns where it went.
    pub(crate) fn wait(
        &self,
        ticket: &Ticket,
        medium: &impl CommitSink,
    ) -> Result<Placement, Arc<io::Error>> {
        if let Some(placement) = ticket.told() {
            return Ok(placement);
        }
        let mut queue = self.queue.lock();
        loop {
            let reached = match ticket.until {
                Until::Written => queue.written,
                Until::Synced => queue.synced,
            };
            if reached >= ticket.number {
                return Ok(ticket.placement());
            }
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            if let Some(duty) = queue.duty(ticket) {
                // Whoever comes by leads the oldest batch, be it somebody else's: its own threads may be gone.
                self.lead(queue, duty, medium);
                if let Some(placement) = ticket.told() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
            } else {
                ticket.waiting().fetch_add(1, Ordering::Relaxed);
                // Read with the queue locked: whatever is told from here on makes it another.
                let seen = ticket.signal().get();
                drop(queue);
                ticket.signal().wait_while(seen);
                if let Some(placement) = ticket.told() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
                ticket.waiting().fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Makes everything that was written before this call survive power loss.
    pub(crate) fn sync(&self, medium: &impl CommitSink) -> Result<(), Arc<io::Error>> {
        let ticket = {
            let mut queue = self.queue.lock();
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            let is_idle = queue.batches.is_empty() && !queue.writing && !queue.syncing;
            if is_idle && queue.synced == queue.written {
                return Ok(());
            }
            // An empty batch of its own if none gathers: a sync that is under way may have begun before the
            // caller's records were written.
            queue.gathering(|_| true).ticket(0, Until::Synced)
        };
        self.wait(&ticket, medium).map(|_| ())
    }

    /// Makes what was written survive power loss until `is_durable` says that it does. Waits for the sync of another thread no
    /// longer than `patience`: false, then. A sync that nobody is at is done by this thread, which can no more be cut short
    /// than any other.
    pub(crate) fn sync_within(
        &self,
        is_durable: impl Fn() -> bool,
        patience: Patience,
        medium: &impl CommitSink,
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
                self.lead(queue, Duty { writes: false, syncs: true }, medium);
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

    /// Poisons the queue from outside: a failed write of a header or a mark is as bad as one of a frame.
    pub(crate) fn poison_with(&self, error: io::Error) -> Arc<io::Error> {
        let mut queue = self.queue.lock();
        queue.poison(error)
    }

    /// Does for all what is to be done, and tells everybody.
    fn lead(&self, mut queue: MutexGuard<'_, Queue>, duty: Duty, medium: &impl CommitSink) {
        queue.syncing |= duty.syncs;
        let taken = if duty.writes { queue.batches.pop_front() } else { None };
        let Some(mut taken) = taken else {
            debug_assert!(duty.syncs, "who is to write is asked for a batch");
            let written = queue.written;
            // They may have been told that who syncs would write for them.
            let asked = queue.ask_leaders();
            drop(queue);
            wake(asked);
            return self.sync_up_to(written, None, medium);
        };
        queue.writing = true;
        let others_write = !duty.syncs || taken.wants_write || queue.somebody_only_writes(taken.number);
        drop(queue);

        let unwinding = Unwinding { commit: self, duty, gate: Some(&taken.gate) };
        let mut outcome = Ok(());
        if !taken.batch.entries.is_empty() {
            outcome = medium.write(&mut taken.batch).map(|placement| {
                let _ = taken.gate.placement.set(placement);
            });
        }
        std::mem::forget(unwinding);
        if planted(Bug::AcknowledgedBeforeSync) && outcome.is_ok() && duty.syncs {
            self.queue.lock().synced = taken.number;
            taken.gate.tell(Until::Synced, DONE);
        }

        if outcome.is_ok() && !others_write {
            return self.sync_up_to(taken.number, Some(taken), medium);
        }
        let mut queue = self.queue.lock();
        if let Err(error) = outcome.and_then(|()| queue.check_poison()) {
            self.tell_sync_ended(&queue);
            return queue.fail(duty, error, Some(&taken.gate));
        }
        let (number, gate) = (taken.number, Arc::clone(&taken.gate));
        let is_waited_for = taken.wants_write;
        queue.note_written(taken);
        let asked = queue.ask_leaders();
        drop(queue);
        wake(asked);
        if is_waited_for {
            gate.tell(Until::Written, DONE);
        }
        if duty.syncs {
            self.sync_up_to(number, None, medium);
        }
    }

    /// Called with the queue locked, before or after the duty is given up: who is told looks only when the lock is free.
    fn tell_sync_ended(&self, queue: &Queue) {
        if queue.impatient > 0 && !planted(Bug::SyncWaitersNotWoken) {
            self.sync_ended.notify_all();
        }
    }

    /// Syncs what is written, which is everything up to batch `written` at least, and tells those who wait for that.
    /// `unnoted` is that batch, if nobody knows yet that it is written.
    fn sync_up_to(&self, written: u64, unnoted: Option<Gathering>, medium: &impl CommitSink) {
        let duty = Duty { writes: unnoted.is_some(), syncs: true };
        let unwinding = Unwinding { commit: self, duty, gate: unnoted.as_ref().map(|batch| &*batch.gate) };
        let mut outcome = medium.sync();
        std::mem::forget(unwinding);

        let mut queue = self.queue.lock();
        if planted(Bug::PoisonIgnored) {
            outcome = Ok(());
        }
        if let Err(error) = outcome.and_then(|()| queue.check_poison()) {
            self.tell_sync_ended(&queue);
            return queue.fail(duty, error, unnoted.as_ref().map(|batch| &*batch.gate));
        }
        if let Some(batch) = unnoted {
            queue.note_written(batch);
        }
        queue.syncing = false;
        queue.synced = queue.synced.max(written);
        let count = queue.unsynced.iter().take_while(|batch| batch.number <= written).count();
        let synced: Vec<Unsynced> = queue.unsynced.drain(..count).collect();
        let asked = queue.ask_leaders();
        self.tell_sync_ended(&queue);
        drop(queue);
        wake(asked);
        for batch in synced {
            batch.gate.tell(Until::Synced, DONE);
        }
    }
}

/// Without the lock, which is the first thing that whoever wakes up wants; and before a batch is told, so that the disk does
/// not wait for a leader behind all who come from there.
fn wake(asked: [Option<Asked>; 2]) {
    asked.into_iter().flatten().for_each(Asked::wake);
}

/// For how many batches it is remembered that somebody wanted a record only written.
const REMEMBERED_BATCHES: u64 = 64;

impl Queue {
    /// Whether somebody may want to write while batch `number` is synced. To let them costs its leader the lock once more,
    /// which is not worth it where everybody wants everything synced; who is the first after a while waits for one sync.
    fn somebody_only_writes(&self, number: u64) -> bool {
        self.last_wants_write.is_some_and(|last| number.saturating_sub(last) <= REMEMBERED_BATCHES)
    }

    /// The batch that was taken is written.
    fn note_written(&mut self, taken: Gathering) {
        self.writing = false;
        self.written = taken.number;
        if taken.wants_sync {
            self.unsynced.push_back(Unsynced { number: taken.number, gate: taken.gate });
        }
        self.recycle(taken.batch);
    }

    /// A duty ends for good. `taken` is the gate of the batch that was taken with it, which is in no list.
    fn fail(&mut self, duty: Duty, error: io::Error, taken: Option<&Gate>) {
        self.writing &= !duty.writes;
        self.syncing &= !duty.syncs;
        self.poison(error);
        if let Some(gate) = taken {
            gate.tell_all(FAILED);
        }
    }

    /// What somebody can do for all whose ticket is not where it is to be. None if there is nothing but to wait.
    fn duty(&self, ticket: &Ticket) -> Option<Duty> {
        let duty = match ticket.until {
            Until::Written => Duty { writes: !self.writing, syncs: false },
            Until::Synced if self.written < ticket.number => {
                let is_idle = !self.writing && !self.syncing;
                // A batch that went full before its own is perhaps of those who want no more than that it is written.
                Duty { writes: is_idle, syncs: is_idle && self.syncer_writes() }
            }
            // Whatever is being written: who waits for a sync would otherwise wait for all who only write.
            Until::Synced => Duty { writes: !self.syncing && self.syncer_writes(), syncs: !self.syncing },
        };
        (duty.writes || duty.syncs).then_some(duty)
    }

    /// Whether who syncs next writes the next batch before, so that the sync is for that too.
    fn syncer_writes(&self) -> bool {
        !self.writing && self.batches.front().is_some_and(|next| next.wants_sync)
    }

    /// Asks one waiter for each duty that nobody has: all of them would only wake to wait again.
    fn ask_leaders(&self) -> [Option<Asked>; 2] {
        if planted(Bug::NextLeaderNotWoken) {
            return [None, None];
        }
        let mut gathering = self.batches.iter().map(|batch| &batch.gate);
        let mut syncer = None;
        let mut is_written = self.writing;
        if !self.syncing {
            syncer = self.unsynced.iter().find_map(|batch| batch.gate.ask(Until::Synced));
            is_written |= syncer.is_some() && self.syncer_writes();
            if syncer.is_none() && !self.writing {
                syncer = gathering.clone().find_map(|gate| gate.ask(Until::Synced));
                is_written |= syncer.is_some();
            }
        }
        let writer = if is_written { None } else { gathering.find_map(|gate| gate.ask(Until::Written)) };
        [syncer, writer]
    }

    /// The batch that gathers, or a new one if there is none or `has_room` says no.
    fn gathering(&mut self, has_room: impl FnOnce(&PendingFrame) -> bool) -> &mut Gathering {
        let fits = self.batches.back().is_some_and(|last| has_room(&last.batch));
        if !fits {
            let mut batch = self.spare.pop().unwrap_or_default();
            batch.frame.resize(FRAME_HEADER_BYTES, 0);
            let number = self.next_number;
            self.next_number += 1;
            self.batches.push_back(Gathering {
                number,
                batch,
                wants_sync: false,
                wants_write: false,
                gate: Arc::default(),
            });
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    fn recycle(&mut self, mut batch: PendingFrame) {
        /// A large result must not keep its buffer for ever.
        const KEEP_BYTES: usize = 256 << 10;
        if self.spare.len() < 2 && batch.frame.capacity() <= KEEP_BYTES {
            batch.frame.clear();
            batch.entries.clear();
            batch.reserved_bytes = 0;
            self.spare.push(batch);
        }
    }

    /// Refuses what went well while it went wrong for another thread.
    fn check_poison(&self) -> io::Result<()> {
        match self.poison {
            Some(_) => Err(io::Error::other("another thread's write or sync failed meanwhile")),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: io::Error) -> Arc<io::Error> {
        let poison = self.poison.get_or_insert_with(|| Arc::new(error));
        if !planted(Bug::PoisonedBatchesNotWoken) {
            let unsynced = self.unsynced.drain(..).map(|batch| batch.gate);
            for gate in self.batches.iter().map(|batch| Arc::clone(&batch.gate)).chain(unsynced) {
                gate.tell_all(FAILED);
            }
        }
        Arc::clone(poison)
    }
}

/// Stands guard while a leader is outside the lock: if it unwinds, its followers must not wait for ever.
struct Unwinding<'a> {
    commit: &'a Commit,
    duty: Duty,
    gate: Option<&'a Gate>,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        let error = io::Error::other("a thread panicked while it wrote or synced for the others");
        let mut queue = self.commit.queue.lock();
        self.commit.tell_sync_ended(&queue);
        queue.fail(self.duty, error, self.gate);
    }
}

#[cfg(test)]
mod tests;
