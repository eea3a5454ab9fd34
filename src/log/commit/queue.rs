//! The queue of batches: those that are not written yet, those that are written but not synced, and the roles in use.
//!
//! One lock protects the queue, and its methods use memory only. [`Commit`](super::Commit) does the I/O outside of the
//! lock.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::gate::{FAILED, Gate, Nudge, Ticket, Until};
use super::linger::Lingering;
use crate::format::Seed;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{EncodedRecord, Record};
use crate::planted::{Bug, planted};
use crate::record::RecordSize;
use crate::status::Version;

/// An encoded record that is not in a frame yet.
#[derive(Debug)]
pub(crate) struct NewRecord<'a> {
    pub(crate) hash: u128,
    pub(crate) size: RecordSize,
    version: Version,
    encoded: EncodedRecord<'a>,
}

impl<'a> NewRecord<'a> {
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Encodes and checksums `record`, whose key has this hash. Takes no lock.
    pub(crate) fn new(record: &Record<'a>, hash: u128, seed: Seed) -> NewRecord<'a> {
        let encoded = record.encode(seed);
        let size = RecordSize::of(record, encoded.length_bytes());
        NewRecord { hash, size, version: record.version, encoded }
    }
}

/// What a footer entry needs of one record in a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingRecord {
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) size: RecordSize,
    /// Where the record begins, in bytes from the start of the frame.
    pub(crate) at: u64,
}

/// Records that will become one frame.
#[derive(Debug, Default)]
pub(crate) struct PendingFrame {
    /// Space for the frame header, then the encoded records.
    pub(crate) frame: Vec<u8>,
    pub(crate) entries: Vec<PendingRecord>,
    /// The space that is reserved for these records. The log gives it back when they are written.
    pub(crate) reserved_bytes: u64,
}

impl PendingFrame {
    /// The number of bytes that the frame and its footer entries take of a segment.
    pub(super) fn cost_bytes(&self) -> u64 {
        self.frame.len() as u64 + self.entries.len() as u64 * ENTRY_BYTES
    }

    /// Copies an encoded record to the end of the frame.
    fn push(&mut self, record: &NewRecord<'_>) {
        let at = self.frame.len() as u64;
        record.encoded.append_to(&mut self.frame);
        let NewRecord { hash, version, size, .. } = *record;
        self.entries.push(PendingRecord { hash, version, size, at });
    }
}

/// The maximum number of bytes that one record takes of a segment: the record, a footer entry, and a frame header in
/// case the record is alone in its frame.
pub(crate) const fn record_cost_bytes(encoded_bytes: u64) -> u64 {
    encoded_bytes + ENTRY_BYTES + FRAME_HEADER_BYTES as u64
}

/// A batch that is not written yet: the last one gathers, the others wait for a writer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) pending: PendingFrame,
    /// A caller waits until the batch is synced.
    pub(super) wants_sync: bool,
    /// A caller waits only until the batch is written.
    pub(super) wants_write: bool,
    /// The number of callers that wait until the batch is synced. Moved records have none.
    pub(super) sync_waiters: u32,
    pub(super) gate: Arc<Gate>,
}

impl Batch {
    /// Makes a ticket for the records that begin at `at`.
    fn ticket(&mut self, at: u64, until: Until) -> Ticket {
        match until {
            Until::Written => self.wants_write = true,
            Until::Synced => {
                self.wants_sync = true;
                self.sync_waiters += 1;
            }
        }
        Ticket { number: self.number, at, until, gate: Arc::clone(&self.gate) }
    }
}

/// A written batch that a caller wants synced.
#[derive(Debug)]
pub(super) struct UnsyncedBatch {
    pub(super) number: u64,
    pub(super) sync_waiters: u32,
    pub(super) gate: Arc<Gate>,
}

/// The roles that one thread takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Roles {
    /// The thread writes the oldest batch.
    pub(super) writes: bool,
    /// The thread syncs what is written. If it also writes, the sync includes its batch.
    pub(super) syncs: bool,
}

/// The numbers of waiters that a syncer wakes before the next sync begins. One waiter is the syncer itself.
const FEW_WAITERS: std::ops::RangeInclusive<u32> = 2..=16;
/// The number of batches for which the queue remembers that a caller wanted only a write.
const REMEMBERED_BATCHES: u64 = 64;
/// The maximum number of buffers that are kept for later batches.
const MAX_SPARE_FRAMES: usize = 2;
/// The maximum capacity of a buffer that is kept, so that the memory of a large result is not held for ever.
const MAX_SPARE_FRAME_BYTES: usize = 256 << 10;

/// The queue of batches.
#[derive(Debug)]
pub(super) struct Queue {
    /// The batches that no writer has taken yet, oldest first.
    pub(super) batches: VecDeque<Batch>,
    /// The written batches that a caller wants synced, oldest first, including those that are being synced.
    pub(super) unsynced: VecDeque<UnsyncedBatch>,
    /// The number of the next batch.
    next_number: u64,
    /// A thread has the role of the writer.
    pub(super) writing: bool,
    /// A thread has the role of the syncer.
    pub(super) syncing: bool,
    /// The number of the last batch for which a caller wanted only a write.
    pub(super) last_wants_write: Option<u64>,
    /// The number of the last batch that was written.
    pub(super) written: u64,
    /// The number of the last batch that was synced.
    pub(super) synced: u64,
    /// The error that poisoned the queue.
    pub(super) poison: Option<Arc<io::Error>>,
    /// The buffers of finished batches. They are reused, so that usually no batch has to allocate one.
    pub(super) spare: Vec<PendingFrame>,
    /// The number of callers that wait in [`Commit::sync_within`](super::Commit::sync_within).
    pub(super) impatient: u32,
    pub(super) lingering: Lingering,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue {
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
            lingering: Lingering::default(),
        }
    }

    /// Copies all of `records` into the same batch, together with their reservation of `reserved_bytes`. `limit_bytes`
    /// is the maximum number of bytes that a batch may take of a segment; all of `records` must fit.
    pub(super) fn append<'r, 'a: 'r>(
        &mut self,
        records: impl Iterator<Item = &'r NewRecord<'a>> + Clone,
        reserved_bytes: u64,
        until: Until,
        limit_bytes: u64,
    ) -> Ticket {
        let cost_bytes: u64 = records.clone().map(|record| record.size.length_bytes + ENTRY_BYTES).sum();
        assert!(
            cost_bytes + FRAME_HEADER_BYTES as u64 <= limit_bytes,
            "records of one call fit one frame: {cost_bytes} of {limit_bytes} bytes"
        );
        let batch = self.gathering(|pending| pending.cost_bytes() + cost_bytes <= limit_bytes);
        let at = batch.pending.frame.len() as u64;
        records.for_each(|record| batch.pending.push(record));
        batch.pending.reserved_bytes += reserved_bytes;
        let ticket = batch.ticket(at, until);
        if until == Until::Written {
            self.last_wants_write = Some(ticket.number);
        }
        ticket
    }

    /// Makes a ticket that is done once everything written so far is synced. Returns None if it is synced already.
    pub(super) fn ticket_for_sync(&mut self) -> Option<Ticket> {
        let is_idle = self.batches.is_empty() && !self.writing && !self.syncing;
        if is_idle && self.synced == self.written {
            return None;
        }
        // If no batch is gathering, this adds an empty one. The caller cannot rely on a sync that is under way, because
        // that may have begun before the caller's records were written.
        Some(self.gathering(|_| true).ticket(0, Until::Synced))
    }

    /// Returns the gathering batch, or a new one if there is none or `has_space` returns false for it.
    fn gathering(&mut self, has_space: impl FnOnce(&PendingFrame) -> bool) -> &mut Batch {
        let fits = self.batches.back().is_some_and(|last| has_space(&last.pending));
        if !fits {
            let mut pending = self.spare.pop().unwrap_or_default();
            pending.frame.resize(FRAME_HEADER_BYTES, 0);
            let number = self.next_number;
            self.next_number += 1;
            self.batches.push_back(Batch {
                number,
                pending,
                wants_sync: false,
                wants_write: false,
                sync_waiters: 0,
                gate: Arc::default(),
            });
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// The number of the last batch that is as durable as `until` demands.
    pub(super) fn reached(&self, until: Until) -> u64 {
        match until {
            Until::Written => self.written,
            Until::Synced => self.synced,
        }
    }

    /// The roles that a thread should take if the batch of its ticket is not as durable as it wants. None if it can
    /// only wait.
    pub(super) fn free_roles(&self, ticket: &Ticket) -> Option<Roles> {
        let roles = match ticket.until {
            Until::Written => Roles { writes: !self.writing, syncs: false },
            Until::Synced if self.written < ticket.number => {
                let is_idle = !self.writing && !self.syncing;
                // The oldest batch may be an earlier one that is full, whose callers want only a write. It is not
                // synced then.
                Roles { writes: is_idle, syncs: is_idle && self.syncer_writes() }
            }
            // The caller's batch is written, so it syncs even if another thread is writing. Otherwise it would have to
            // wait for callers that want only a write.
            Until::Synced => Roles { writes: !self.syncing && self.syncer_writes(), syncs: !self.syncing },
        };
        (roles.writes || roles.syncs).then_some(roles)
    }

    /// Whether the next syncer first writes the oldest batch, so that its sync covers that batch too.
    fn syncer_writes(&self) -> bool {
        !self.writing && self.batches.front().is_some_and(|next| next.wants_sync)
    }

    /// Whether the waiters of the last sync are woken before the next one begins. The next syncer would otherwise begin
    /// before they come back, and they would wait for that sync and for their own.
    ///
    /// That is not worth while if many are to be woken, or as many wait for the next sync already: they form two groups
    /// that take turns, and waking one overlaps with the sync of the other.
    pub(super) fn wakes_before_next_sync(&self) -> bool {
        let next = self.batches.front().map_or(0, |batch| batch.sync_waiters);
        FEW_WAITERS.contains(&self.lingering.expected) && next < self.lingering.expected
    }

    /// The number of callers that wait for a sync of the ticket's batch, if the batch is one that a thread may linger
    /// for: no thread has written it, its caller wants a sync, no caller waits only for a write, and it still gathers.
    pub(super) fn gathering_waiters(&self, ticket: &Ticket) -> Option<u32> {
        let front = self.batches.front()?;
        let gathers = front.number == ticket.number && self.batches.len() == 1;
        let lingers = gathers && ticket.until == Until::Synced && !front.wants_write;
        (lingers && !self.writing && self.poison.is_none()).then_some(front.sync_waiters)
    }

    /// Whether other callers are likely to want only a write while batch `number` is being synced.
    ///
    /// To let them write, the leader has to lock the queue once more, which is not worth while if every caller wants a
    /// sync. The first caller after a while that wants only a write may have to wait for one sync.
    pub(super) fn may_be_written_to(&self, number: u64) -> bool {
        self.last_wants_write.is_some_and(|last| number.saturating_sub(last) <= REMEMBERED_BATCHES)
    }

    /// Picks one follower for each free role. If more were woken, they would only go back to sleep.
    pub(super) fn nudge_leaders(&self) -> [Option<Nudge>; 2] {
        if planted(Bug::NextLeaderNotWoken) {
            return [None, None];
        }
        let mut gates = self.batches.iter().map(|batch| &batch.gate);
        let mut syncer = None;
        let mut has_writer = self.writing;
        if !self.syncing {
            syncer = self.unsynced.iter().find_map(|batch| batch.gate.nudge(Until::Synced));
            has_writer |= syncer.is_some() && self.syncer_writes();
            if syncer.is_none() && !self.writing {
                syncer = gates.clone().find_map(|gate| gate.nudge(Until::Synced));
                has_writer |= syncer.is_some();
            }
        }
        let writer = if has_writer { None } else { gates.find_map(|gate| gate.nudge(Until::Written)) };
        [syncer, writer]
    }

    /// Notes that the batch which a writer took from the queue is written, and gives up the role of the writer.
    pub(super) fn note_written(&mut self, batch: Batch) {
        self.writing = false;
        self.written = batch.number;
        if batch.wants_sync {
            self.unsynced.push_back(UnsyncedBatch {
                number: batch.number,
                sync_waiters: batch.sync_waiters,
                gate: batch.gate,
            });
        }
        self.recycle(batch.pending);
    }

    /// Notes that everything up to batch `number` is synced. Returns the batches whose followers wait for that sync. The
    /// thread still has the role of the syncer.
    pub(super) fn note_synced(&mut self, number: u64) -> Vec<UnsyncedBatch> {
        self.synced = self.synced.max(number);
        let count = self.unsynced.iter().take_while(|batch| batch.number <= number).count();
        let synced: Vec<_> = self.unsynced.drain(..count).collect();
        self.lingering.expected = synced.iter().map(|batch| batch.sync_waiters).sum();
        synced
    }

    /// Keeps the buffer of a finished batch for a later one, unless it is too large or there are enough.
    pub(super) fn recycle(&mut self, mut pending: PendingFrame) {
        if self.spare.len() < MAX_SPARE_FRAMES && pending.frame.capacity() <= MAX_SPARE_FRAME_BYTES {
            pending.frame.clear();
            pending.entries.clear();
            pending.reserved_bytes = 0;
            self.spare.push(pending);
        }
    }

    /// Poisons the queue with `error`, and gives up the roles. `taken` is the gate of the batch that the thread has
    /// taken from the queue, which is in neither list.
    pub(super) fn fail(&mut self, roles: Roles, error: io::Error, taken: Option<&Gate>) {
        self.writing &= !roles.writes;
        self.syncing &= !roles.syncs;
        self.poison(error);
        if let Some(gate) = taken {
            gate.wake_all(FAILED);
        }
    }

    /// Returns an error if the queue is poisoned. Called after a write or a sync that succeeded, in case that of
    /// another thread has failed meanwhile.
    pub(super) fn check_poison(&self) -> io::Result<()> {
        match self.poison {
            Some(_) => Err(io::Error::other("another thread's write or sync failed meanwhile")),
            None => Ok(()),
        }
    }

    /// Poisons the queue and wakes every follower. Returns the error that poisoned the queue first.
    pub(super) fn poison(&mut self, error: io::Error) -> Arc<io::Error> {
        let poison = self.poison.get_or_insert_with(|| Arc::new(error));
        if !planted(Bug::PoisonedBatchesNotWoken) {
            let unsynced = self.unsynced.drain(..).map(|batch| batch.gate);
            for gate in self.batches.iter().map(|batch| Arc::clone(&batch.gate)).chain(unsynced) {
                gate.wake_all(FAILED);
            }
        }
        Arc::clone(poison)
    }
}
