//! The queue of batches: what gathers, what is written and not synced yet, and which roles are taken.
//!
//! Everything here happens under one lock and touches memory only. [`Commit`](super::Commit) does the I/O outside of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::gate::{FAILED, Gate, Nudge, Ticket, Until};
use crate::format::Seed;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{EncodedRecord, Record};
use crate::planted::{Bug, planted};
use crate::record::RecordSize;
use crate::status::Version;

/// A record that is encoded and not in a frame yet.
#[derive(Debug)]
pub(crate) struct NewRecord<'a> {
    pub(crate) hash: u128,
    pub(crate) size: RecordSize,
    version: Version,
    encoded: EncodedRecord<'a>,
}

impl<'a> NewRecord<'a> {
    /// Encodes and checksums `record`, of the key with this hash. Takes no lock.
    pub(crate) fn new(record: &Record<'a>, hash: u128, seed: Seed) -> NewRecord<'a> {
        let encoded = record.encode(seed);
        let size = RecordSize::of(record, encoded.length_bytes());
        NewRecord { hash, size, version: record.version, encoded }
    }
}

/// What the footer and the index need to know of one record in a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingRecord {
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) size: RecordSize,
    /// In bytes from the start of the frame.
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
    /// What the frame takes of a segment: itself and its footer entries.
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

/// The most that one record takes of a segment: itself, a footer entry, and a frame header if it is alone in its frame.
pub(crate) const fn record_cost_bytes(encoded_bytes: u64) -> u64 {
    encoded_bytes + ENTRY_BYTES + FRAME_HEADER_BYTES as u64
}

/// A batch that is not written yet: the last one gathers, the others wait for a writer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) pending: PendingFrame,
    /// Some caller waits until it is synced.
    pub(super) wants_sync: bool,
    /// Some caller waits until it is written, and no longer.
    pub(super) wants_write: bool,
    pub(super) gate: Arc<Gate>,
}

impl Batch {
    /// A ticket for what begins at `at`.
    fn ticket(&mut self, at: u64, until: Until) -> Ticket {
        match until {
            Until::Written => self.wants_write = true,
            Until::Synced => self.wants_sync = true,
        }
        Ticket { number: self.number, at, until, gate: Arc::clone(&self.gate) }
    }
}

/// A batch that is written and that some caller wants synced.
#[derive(Debug)]
pub(super) struct UnsyncedBatch {
    pub(super) number: u64,
    pub(super) gate: Arc<Gate>,
}

/// The roles that one thread takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Roles {
    /// It writes the oldest batch.
    pub(super) writes: bool,
    /// It syncs what is written; after a write, that includes its batch.
    pub(super) syncs: bool,
}

/// For how many batches the queue remembers that a caller wanted a record written and no more.
const REMEMBERED_BATCHES: u64 = 64;
/// How many buffers are kept for later batches.
const SPARE_FRAMES: usize = 2;
/// The largest buffer that is kept: a large result must not hold its memory for ever.
const SPARE_FRAME_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Queue {
    /// Oldest first.
    pub(super) batches: VecDeque<Batch>,
    /// Written, oldest first, the one that is being synced included.
    pub(super) unsynced: VecDeque<UnsyncedBatch>,
    next_number: u64,
    /// Some thread has the role of the writer.
    pub(super) writing: bool,
    /// Some thread has the role of the syncer.
    pub(super) syncing: bool,
    /// The last batch of which a caller wanted no more than that it is written.
    pub(super) last_wants_write: Option<u64>,
    /// The last batch that was written.
    pub(super) written: u64,
    /// The last batch that was synced.
    pub(super) synced: u64,
    pub(super) poison: Option<Arc<io::Error>>,
    /// Buffers of finished batches, so that the steady state allocates nothing of a frame's size.
    pub(super) spare: Vec<PendingFrame>,
    /// Callers that wait for the end of a sync with a deadline of their own.
    pub(super) impatient: u32,
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
        }
    }

    /// Copies `records` into one batch, all of them, and adds `reserved_bytes` to it. `limit_bytes` is the maximum that a batch
    /// may take of a segment, which the records must not exceed.
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

    /// A ticket that is done when everything written so far is synced; None if that is so already.
    pub(super) fn ticket_for_sync(&mut self) -> Option<Ticket> {
        let is_idle = self.batches.is_empty() && !self.writing && !self.syncing;
        if is_idle && self.synced == self.written {
            return None;
        }
        // An empty batch if none gathers: a sync that is under way may have begun before the caller's records were
        // written.
        Some(self.gathering(|_| true).ticket(0, Until::Synced))
    }

    /// The batch that gathers, or a new one if there is none or `has_space` refuses it.
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
                gate: Arc::default(),
            });
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// The number of the last batch that is as durable as `until` asks.
    pub(super) fn reached(&self, until: Until) -> u64 {
        match until {
            Until::Written => self.written,
            Until::Synced => self.synced,
        }
    }

    /// The roles that a thread takes whose batch is not as durable as it wants. None if it can only wait.
    pub(super) fn free_roles(&self, ticket: &Ticket) -> Option<Roles> {
        let roles = match ticket.until {
            Until::Written => Roles { writes: !self.writing, syncs: false },
            Until::Synced if self.written < ticket.number => {
                let is_idle = !self.writing && !self.syncing;
                // An older batch that went full may have callers that want no more than a write.
                Roles { writes: is_idle, syncs: is_idle && self.syncer_writes() }
            }
            // Whatever another thread writes now: this caller must not wait for all that only want to write.
            Until::Synced => Roles { writes: !self.syncing && self.syncer_writes(), syncs: !self.syncing },
        };
        (roles.writes || roles.syncs).then_some(roles)
    }

    /// Whether the next syncer first writes the oldest batch, so that its sync covers that too.
    fn syncer_writes(&self) -> bool {
        !self.writing && self.batches.front().is_some_and(|next| next.wants_sync)
    }

    /// Whether some caller may want to write while batch `number` is synced.
    ///
    /// To let it, the leader has to take the queue's lock once more, which does not pay where every caller wants a
    /// sync. The first such caller after a while waits for one sync.
    pub(super) fn may_be_written_to(&self, number: u64) -> bool {
        self.last_wants_write.is_some_and(|last| number.saturating_sub(last) <= REMEMBERED_BATCHES)
    }

    /// Picks one follower for each free role. All of them would wake only to wait again.
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

    /// The batch that a writer took from the queue is written.
    pub(super) fn note_written(&mut self, batch: Batch) {
        self.writing = false;
        self.written = batch.number;
        if batch.wants_sync {
            self.unsynced.push_back(UnsyncedBatch { number: batch.number, gate: batch.gate });
        }
        self.recycle(batch.pending);
    }

    /// Everything up to batch `number` is synced. Returns the batches whose followers wait for that.
    pub(super) fn note_synced(&mut self, number: u64) -> Vec<UnsyncedBatch> {
        self.syncing = false;
        self.synced = self.synced.max(number);
        let count = self.unsynced.iter().take_while(|batch| batch.number <= number).count();
        self.unsynced.drain(..count).collect()
    }

    pub(super) fn recycle(&mut self, mut pending: PendingFrame) {
        if self.spare.len() < SPARE_FRAMES && pending.frame.capacity() <= SPARE_FRAME_BYTES {
            pending.frame.clear();
            pending.entries.clear();
            pending.reserved_bytes = 0;
            self.spare.push(pending);
        }
    }

    /// Gives up roles for good after `error`. `taken` is the gate of the batch that the thread took from the queue, which
    /// is in no list.
    pub(super) fn fail(&mut self, roles: Roles, error: io::Error, taken: Option<&Gate>) {
        self.writing &= !roles.writes;
        self.syncing &= !roles.syncs;
        self.poison(error);
        if let Some(gate) = taken {
            gate.wake_all(FAILED);
        }
    }

    /// Refuses what succeeded while another thread's write or sync failed.
    pub(super) fn check_poison(&self) -> io::Result<()> {
        match self.poison {
            Some(_) => Err(io::Error::other("another thread's write or sync failed meanwhile")),
            None => Ok(()),
        }
    }

    /// Poisons the queue and wakes every follower. Returns the first error, which stays the reason.
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
