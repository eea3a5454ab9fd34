//! Group commit: leader and followers. Knows no files; what it writes to is a [`Medium`].
//!
//! Appenders put their records into the gathering batch under a short lock and then wait for it. The first waiter
//! that finds nobody leading takes the oldest batch, writes it as one frame and syncs it once, outside every lock
//! that an appender or a reader needs, while the next batch gathers. There is no timer and no thread: a batch is as
//! large as what came while the one before it was on its way.
//!
//! A write or a sync that fails, or a leader that unwinds, poisons the queue for good: nobody in that batch or a later one is
//! acknowledged, because nobody can know any more what is on disk.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, OnceLock};

use crate::format::Seed;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::Record;
use crate::planted::{Bug, planted};
use crate::record::Weight;
use crate::status::Version;
use crate::sync::{Mutex, MutexGuard, Signal};

/// What the footer and the index need to know of one record of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) hash: u128,
    pub(crate) version: Version,
    pub(crate) weight: Weight,
    /// From the start of the frame, in bytes.
    pub(crate) at: u64,
}

/// Records on their way to become one frame.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Room for the frame header, then the encoded records.
    pub(crate) frame: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    /// The room that was promised to these records; free again for others when they are written.
    pub(crate) promised_bytes: u64,
    /// The latest store time of its records.
    pub(crate) time_ms: u64,
}

impl Batch {
    /// What the batch takes of a segment: its frame and its footer entries.
    fn cost_bytes(&self) -> u64 {
        self.frame.len() as u64 + self.entries.len() as u64 * ENTRY_BYTES
    }
}

/// What one record takes of a segment at most: itself, a footer entry, and a frame header if it is alone.
pub(crate) const fn record_cost_bytes(encoded_bytes: u64) -> u64 {
    encoded_bytes + ENTRY_BYTES + FRAME_HEADER_BYTES as u64
}

/// Where a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placement {
    /// In the log.
    pub(crate) position: u64,
    /// In the file.
    pub(crate) offset: u64,
}

/// What batches are written to.
pub(crate) trait Medium {
    /// Writes the batch as one frame.
    fn write(&self, batch: &mut Batch) -> io::Result<Placement>;
    /// Makes everything written so far survive power loss.
    fn sync(&self) -> io::Result<()>;
}

/// Whether the caller wants its record on disk or only with the operating system before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Written,
    Synced,
}

impl Until {
    /// Who is asked first to lead: those who have to wait for a sync anyway.
    const IN_ORDER_OF_LEADING: [Until; 2] = [Until::Synced, Until::Written];
}

/// Something for each of the two.
#[derive(Debug, Default)]
struct ByUntil<T> {
    written: T,
    synced: T,
}

impl<T> ByUntil<T> {
    fn of(&self, until: Until) -> &T {
        match until {
            Until::Written => &self.written,
            Until::Synced => &self.synced,
        }
    }

    fn of_mut(&mut self, until: Until) -> &mut T {
        match until {
            Until::Written => &mut self.written,
            Until::Synced => &mut self.synced,
        }
    }
}

/// A batch that still gathers, or waits for its turn.
#[derive(Debug)]
struct Gathering {
    number: u64,
    batch: Batch,
    wants_sync: bool,
    has_unsynced_waiters: bool,
    /// Threads that wait at the gate for the batch to be taken.
    waiting: ByUntil<u32>,
    gate: Arc<Gate>,
}

/// What the waiters of one batch are told. Told without the queue's lock, and seen without it.
#[derive(Debug, Default)]
struct Gate {
    /// Whether the batch is where these want it (the lowest bits), and how often one of them was asked to come and lead (the
    /// rest). Two, so that who waits for the sync sleeps on when the others are told of the write.
    told: ByUntil<Signal>,
    placement: OnceLock<Placement>,
}

/// The phase; 0 while the batch gathers or is on its way.
const PHASE_BITS: u32 = 0b11;
/// It is where they want it.
const DONE: u32 = 1;
/// Something failed: what became of the batch is for the queue to say.
const FAILED: u32 = 2;

impl Gate {
    fn tell(&self, until: Until, phase: u32) {
        let told = self.told.of(until);
        if planted(Bug::OneFollowerTold) {
            told.change(phase);
            told.wake_one();
        } else {
            told.tell_all(phase);
        }
    }

    fn tell_all(&self, phase: u32) {
        self.tell(Until::Synced, phase);
        self.tell(Until::Written, phase);
    }

    /// Lets the waiters of a batch that still gathers see that one of them is to come and lead: the number must change,
    /// or one who is about to wait would sleep through being woken. Only called with the queue locked, as the batch is
    /// taken: the phase stays.
    fn ask_to_lead(&self, until: Until) {
        let told = self.told.of(until);
        told.change(told.get().wrapping_add(PHASE_BITS + 1));
    }
}

/// A place in a batch.
#[derive(Debug)]
#[must_use = "a record is neither written nor acknowledged until its ticket has been waited for"]
pub(crate) struct Ticket {
    number: u64,
    at: u64,
    until: Until,
    gate: Arc<Gate>,
}

impl Ticket {
    /// Where the record went, if the gate says that it is there: the way of most followers, which needs no lock.
    fn told(&self) -> Option<Placement> {
        (self.signal().get() & PHASE_BITS == DONE).then(|| self.placement())
    }

    fn signal(&self) -> &Signal {
        self.gate.told.of(self.until)
    }

    fn placement(&self) -> Placement {
        let frame = self.gate.placement.get().copied().unwrap_or_default();
        Placement { position: frame.position + self.at, offset: frame.offset + self.at }
    }
}

#[derive(Debug)]
struct Queue {
    batches: VecDeque<Gathering>,
    next_number: u64,
    leading: bool,
    /// Numbers of the last batch written and of the last batch synced.
    written: u64,
    synced: u64,
    poison: Option<Arc<io::Error>>,
    /// Buffers of batches that are done, so that the steady state allocates nothing of a frame's size.
    spare: Vec<Batch>,
}

/// The queue of batches.
#[derive(Debug)]
pub(crate) struct Commit {
    queue: Mutex<Queue>,
    seed: Seed,
    /// The most that a batch may take of a segment.
    limit_bytes: u64,
}

impl Commit {
    pub(crate) fn new(seed: Seed, limit_bytes: u64) -> Commit {
        let queue = Queue {
            batches: VecDeque::new(),
            next_number: 1,
            leading: false,
            written: 0,
            synced: 0,
            poison: None,
            spare: Vec::new(),
        };
        Commit { queue: Mutex::new(queue), seed, limit_bytes }
    }

    /// Puts a record into the gathering batch. `promised_bytes` is room that was set aside for it.
    pub(crate) fn append(
        &self,
        record: &Record<'_>,
        hash: u128,
        promised_bytes: u64,
        until: Until,
    ) -> Result<Ticket, Arc<io::Error>> {
        let length = crate::format::record::encoded_bytes(record.key, record.result.map_or(0, <[u8]>::len));
        let mut queue = self.queue.lock();
        if let Some(poison) = &queue.poison {
            return Err(Arc::clone(poison));
        }
        let gathering =
            queue.gathering(|batch| batch.cost_bytes() + length + ENTRY_BYTES <= self.limit_bytes);
        let at = gathering.batch.frame.len() as u64;
        record.encode(&mut gathering.batch.frame, self.seed);
        let weight = Weight::of(record, length);
        gathering.batch.entries.push(Entry { hash, version: record.version, weight, at });
        gathering.batch.promised_bytes += promised_bytes;
        gathering.batch.time_ms = gathering.batch.time_ms.max(record.time_ms);
        gathering.wants_sync |= until == Until::Synced;
        gathering.has_unsynced_waiters |= until == Until::Written;
        Ok(Ticket { number: gathering.number, at, until, gate: Arc::clone(&gathering.gate) })
    }

    /// Waits until the record is where its ticket wants it, leading if nobody else does. Returns where it went.
    pub(crate) fn wait(&self, ticket: &Ticket, medium: &impl Medium) -> Result<Placement, Arc<io::Error>> {
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
            if queue.leading {
                queue.count_waiting(ticket, 1);
                // Read with the queue locked: whatever is told from here on makes it another.
                let seen = ticket.signal().get();
                drop(queue);
                ticket.signal().wait_while(seen);
                if let Some(placement) = ticket.told() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
                queue.count_waiting(ticket, -1);
            } else {
                // Whoever comes by leads the oldest batch, be it somebody else's: its own threads may be gone.
                self.lead(queue, medium);
                if let Some(placement) = ticket.told() {
                    return Ok(placement);
                }
                queue = self.queue.lock();
            }
        }
    }

    /// Makes everything that was written before this call survive power loss.
    pub(crate) fn sync(&self, medium: &impl Medium) -> Result<(), Arc<io::Error>> {
        let ticket = {
            let mut queue = self.queue.lock();
            if let Some(poison) = &queue.poison {
                return Err(Arc::clone(poison));
            }
            if queue.batches.is_empty() && !queue.leading && queue.synced == queue.written {
                return Ok(());
            }
            // An empty batch of its own if none gathers: a sync that is under way may have begun before the
            // caller's records were written.
            let gathering = queue.gathering(|_| true);
            gathering.wants_sync = true;
            Ticket {
                number: gathering.number,
                at: 0,
                until: Until::Synced,
                gate: Arc::clone(&gathering.gate),
            }
        };
        self.wait(&ticket, medium).map(|_| ())
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

    /// Takes the oldest batch, writes it, syncs it if anybody in it wants that, and tells everybody.
    fn lead(&self, mut queue: MutexGuard<'_, Queue>, medium: &impl Medium) {
        let Some(mut gathering) = queue.batches.pop_front() else { return };
        queue.leading = true;
        drop(queue);
        let unwinding = Unwinding { commit: self, gate: &gathering.gate };

        let mut outcome = Ok(());
        if !gathering.batch.entries.is_empty() {
            outcome = medium.write(&mut gathering.batch).map(|placement| {
                let _ = gathering.gate.placement.set(placement);
            });
            if planted(Bug::AcknowledgedBeforeSync) && outcome.is_ok() && gathering.wants_sync {
                self.queue.lock().synced = gathering.number;
                gathering.gate.tell_all(DONE);
            }
            if outcome.is_ok() && gathering.wants_sync && gathering.has_unsynced_waiters {
                self.queue.lock().written = gathering.number;
                gathering.gate.tell(Until::Written, DONE);
            }
        }
        if outcome.is_ok() && gathering.wants_sync {
            outcome = medium.sync();
        }

        std::mem::forget(unwinding);
        let mut queue = self.queue.lock();
        queue.leading = false;
        // A write that failed has no place, so that going on after it would show at once; a sync is what can be ignored.
        if planted(Bug::PoisonIgnored) && gathering.gate.placement.get().is_some() {
            outcome = Ok(());
        }
        if queue.poison.is_some() {
            outcome = Err(io::Error::other("another thread's write or sync failed meanwhile"));
        }
        match outcome {
            Ok(()) => {
                queue.written = gathering.number;
                if gathering.wants_sync {
                    queue.synced = gathering.number;
                }
                queue.recycle(gathering.batch);
                // One waiter is enough to lead the next batch; the others would only wake to wait again. Before this
                // batch is told, so that the disk does not wait for a leader behind all who come from here.
                let next = queue.batches.iter().find_map(|batch| Some((batch, batch.next_leader()?)));
                let next = next.filter(|_| !planted(Bug::NextLeaderNotTold)).map(|(batch, until)| {
                    batch.gate.ask_to_lead(until);
                    (Arc::clone(&batch.gate), until)
                });
                drop(queue);
                // Without the lock, which is the first thing that whoever wakes up wants.
                if let Some((gate, until)) = next {
                    gate.told.of(until).wake_one();
                }
                gathering.gate.tell_all(DONE);
            }
            Err(error) => {
                queue.poison(error);
                drop(queue);
                gathering.gate.tell_all(FAILED);
            }
        }
    }
}

impl Gathering {
    /// Which of those who wait is asked to lead.
    fn next_leader(&self) -> Option<Until> {
        Until::IN_ORDER_OF_LEADING.into_iter().find(|until| *self.waiting.of(*until) > 0)
    }
}

impl Queue {
    /// The batch that gathers, or a new one if there is none or `has_room` says no.
    fn gathering(&mut self, has_room: impl FnOnce(&Batch) -> bool) -> &mut Gathering {
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
                has_unsynced_waiters: false,
                waiting: ByUntil::default(),
                gate: Arc::default(),
            });
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// Counts a thread in or out of the gate of a batch that has not been taken yet.
    fn count_waiting(&mut self, ticket: &Ticket, change: i32) {
        if let Some(batch) = self.batches.iter_mut().find(|batch| batch.number == ticket.number) {
            let waiting = batch.waiting.of_mut(ticket.until);
            *waiting = waiting.saturating_add_signed(change);
        }
    }

    fn recycle(&mut self, mut batch: Batch) {
        /// A large result must not keep its buffer for ever.
        const KEEP_BYTES: usize = 256 << 10;
        if self.spare.len() < 2 && batch.frame.capacity() <= KEEP_BYTES {
            batch.frame.clear();
            batch.entries.clear();
            (batch.promised_bytes, batch.time_ms) = (0, 0);
            self.spare.push(batch);
        }
    }

    fn poison(&mut self, error: io::Error) -> Arc<io::Error> {
        let poison = self.poison.get_or_insert_with(|| Arc::new(error));
        for waiting in self.batches.iter().filter(|_| !planted(Bug::PoisonNotTold)) {
            waiting.gate.tell_all(FAILED);
        }
        Arc::clone(poison)
    }
}

/// Stands guard while a leader is outside the lock: if it unwinds, its followers must not wait for ever.
struct Unwinding<'a> {
    commit: &'a Commit,
    gate: &'a Gate,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        let mut queue = self.commit.queue.lock();
        queue.leading = false;
        queue.poison(io::Error::other("a thread panicked while it wrote for the others"));
        drop(queue);
        self.gate.tell_all(FAILED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::Kind;
    use crate::key::{Fingerprint, Key};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts, and fails or panics when told to.
    #[derive(Default)]
    struct Counting {
        writes: AtomicU64,
        syncs: AtomicU64,
        records: AtomicU64,
        fail_write: bool,
        fail_sync: bool,
        panic: bool,
    }

    impl Medium for Counting {
        fn write(&self, batch: &mut Batch) -> io::Result<Placement> {
            assert!(!self.panic, "planted");
            if self.fail_write {
                return Err(io::Error::other("planted"));
            }
            let before = self.writes.fetch_add(1, Ordering::SeqCst);
            self.records.fetch_add(batch.entries.len() as u64, Ordering::SeqCst);
            Ok(Placement { position: before * 1_000_000, offset: before * 1_000_000 })
        }
        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            if self.fail_sync { Err(io::Error::other("planted")) } else { Ok(()) }
        }
    }

    fn record(key: &str) -> Record<'_> {
        Record {
            kind: Kind::Begun,
            key: Key::new(key),
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 5,
            key_expires_ms: NEVER_MS,
            result_expires_ms: NEVER_MS,
            result: None,
        }
    }

    fn commit() -> Commit {
        Commit::new(Seed::NONE, 16 << 10)
    }

    #[test]
    fn what_a_batch_takes_of_a_segment_is_never_more_than_its_records_were_promised() {
        let commit = commit();
        let key = "a key of 24 bytes, or so";
        let length = crate::format::record::encoded_bytes(Key::new(key), 0);
        let promised = record_cost_bytes(length);
        assert_eq!(promised, length + 48 + 48, "a frame header and an entry, should it be alone");
        for records in 1..=5 {
            let _ = commit.append(&record(key), 1, promised, Until::Written).unwrap();
            let queue = commit.queue.lock();
            let batch = &queue.batches[0].batch;
            assert_eq!(batch.cost_bytes(), 48 + records * (length + 48));
            assert!(batch.cost_bytes() <= batch.promised_bytes, "covered by what was promised");
            assert_eq!(batch.promised_bytes, records * promised);
            assert_eq!(batch.time_ms, 5);
        }
    }

    #[test]
    fn buffers_are_used_again_but_few_and_none_that_a_large_result_made_large() {
        let commit = commit();
        let batch = |capacity: usize| Batch {
            frame: Vec::with_capacity(capacity),
            time_ms: 9,
            promised_bytes: 9,
            ..Batch::default()
        };
        let mut queue = commit.queue.lock();
        queue.recycle(batch((256 << 10) + 1));
        assert_eq!(queue.spare.len(), 0);
        for expected in [1, 2, 2] {
            queue.recycle(batch(256 << 10));
            assert_eq!(queue.spare.len(), expected);
        }
        let spare = queue.spare.pop().unwrap();
        assert!(spare.frame.capacity() >= 256 << 10 && spare.frame.is_empty() && spare.entries.is_empty());
        assert_eq!((spare.promised_bytes, spare.time_ms), (0, 0));
    }

    #[test]
    fn what_waits_together_is_one_write_and_one_sync() {
        let (commit, medium) = (commit(), Counting::default());
        let tickets: Vec<_> =
            (0..10).map(|_| commit.append(&record("k"), 1, 0, Until::Synced).unwrap()).collect();
        let places: Vec<_> = tickets.iter().map(|t| commit.wait(t, &medium).unwrap()).collect();
        assert_eq!((medium.writes.into_inner(), medium.syncs.into_inner()), (1, 1));
        let length = crate::format::record::encoded_bytes(Key::new("k"), 0);
        for (place, number) in places.iter().zip(0..) {
            let at = FRAME_HEADER_BYTES as u64 + number * length;
            assert_eq!((place.position, place.offset), (at, at));
        }
    }

    /// Waits until it is so, on any machine; what never comes to be so fails, and does not hang.
    fn until(is_so: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it never came to be so");
            std::thread::yield_now();
        }
    }

    /// Syncs only when somebody has said that it goes on.
    struct Patient {
        goes_on: Mutex<std::sync::mpsc::Receiver<()>>,
        syncs: AtomicU64,
    }

    impl Patient {
        fn new() -> (std::sync::mpsc::Sender<()>, Patient) {
            let (going_on, goes_on) = std::sync::mpsc::channel();
            (going_on, Patient { goes_on: Mutex::new(goes_on), syncs: AtomicU64::new(0) })
        }
    }

    impl Medium for Patient {
        fn write(&self, _batch: &mut Batch) -> io::Result<Placement> {
            Ok(Placement::default())
        }
        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            // Long enough for any machine; only a wait that never ends gets there.
            self.goes_on.lock().recv_timeout(std::time::Duration::from_secs(60)).map_err(io::Error::other)
        }
    }

    #[test]
    fn who_wants_its_record_written_does_not_wait_for_the_sync_and_wakes_none_of_those_who_do() {
        let (going_on, medium) = Patient::new();
        let commit = commit();
        let synced = commit.append(&record("synced"), 1, 0, Until::Synced).unwrap();
        let written = commit.append(&record("written"), 2, 0, Until::Written).unwrap();
        std::thread::scope(|scope| {
            let leading = scope.spawn(|| commit.wait(&synced, &medium).map(drop));
            until(|| commit.queue.lock().leading);
            commit.wait(&written, &medium).unwrap();
            assert_eq!(synced.signal().get(), 0);
            going_on.send(()).unwrap();
            leading.join().unwrap().unwrap();
        });
    }

    #[test]
    fn all_who_come_while_a_sync_is_under_way_share_the_next_one() {
        let (going_on, medium) = Patient::new();
        let commit = commit();
        std::thread::scope(|scope| {
            let wait = |ticket| commit.wait(&ticket, &medium).map(drop);
            let append = |number| commit.append(&record("k"), number, 0, Until::Synced).unwrap();
            let first = append(0);
            let mut threads = vec![scope.spawn(move || wait(first))];
            until(|| commit.queue.lock().leading);
            for number in 1..=15 {
                let ticket = append(number);
                threads.push(scope.spawn(move || wait(ticket)));
            }
            until(|| commit.queue.lock().batches.front().is_some_and(|batch| batch.waiting.synced == 15));
            for _ in 0..2 {
                going_on.send(()).unwrap();
            }
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(medium.syncs.into_inner(), 2, "one of the first, one of the fifteen");
    }

    #[test]
    fn who_waits_for_the_sync_anyway_is_asked_to_lead_before_who_does_not() {
        let (going_on, medium) = Patient::new();
        let (commit, medium) = (commit(), &medium);
        std::thread::scope(|scope| {
            let append = |wanted| commit.append(&record("k"), 1, 0, wanted).unwrap();
            let waiting_for =
                |wanted| commit.queue.lock().batches.front().map(|batch| *batch.waiting.of(wanted));
            let spawn = |ticket| {
                let commit = &commit;
                scope.spawn(move || commit.wait(&ticket, medium).map(drop))
            };
            let mut threads = vec![spawn(append(Until::Synced))];
            until(|| commit.queue.lock().leading);
            for wanted in [Until::Written, Until::Synced] {
                threads.push(spawn(append(wanted)));
                until(|| waiting_for(wanted) == Some(1));
                assert_eq!(commit.queue.lock().batches[0].next_leader(), Some(wanted));
            }
            for _ in 0..2 {
                going_on.send(()).unwrap();
            }
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn a_batch_never_outgrows_its_limit() {
        let (commit, medium) = (commit(), Counting::default());
        let tickets: Vec<_> =
            (0..1_000).map(|_| commit.append(&record("k"), 1, 0, Until::Written).unwrap()).collect();
        for gathering in &commit.queue.lock().batches {
            assert!(gathering.batch.cost_bytes() <= 16 << 10);
        }
        // Waited for from the last one: a batch in front of it has waiters of its own and must not be skipped.
        std::thread::scope(|scope| {
            for ticket in &tickets {
                scope.spawn(|| commit.wait(ticket, &medium).unwrap());
            }
        });
        assert_eq!(medium.records.into_inner(), 1_000);
        assert_eq!(medium.syncs.into_inner(), 0, "nobody asked for a sync");
    }

    #[test]
    fn after_a_failed_write_or_sync_nobody_is_acknowledged_any_more() {
        for (fail_write, fail_sync) in [(true, false), (false, true)] {
            let commit = commit();
            let medium = Counting { fail_write, fail_sync, ..Counting::default() };
            let first = commit.append(&record("a"), 1, 0, Until::Synced).unwrap();
            assert!(commit.wait(&first, &medium).is_err());
            assert!(commit.append(&record("b"), 2, 0, Until::Synced).is_err());
            assert!(commit.sync(&medium).is_err());
            assert!(commit.wait(&first, &medium).is_err(), "asking again does not help");
        }
    }

    #[test]
    fn a_leader_that_unwinds_poisons_and_wakes_everybody() {
        let commit = commit();
        let medium = Counting { panic: true, ..Counting::default() };
        let tickets: Vec<_> =
            (0..8).map(|_| commit.append(&record("k"), 1, 0, Until::Synced).unwrap()).collect();
        let (commit, medium) = (&commit, &medium);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = tickets
                .iter()
                .map(|ticket| scope.spawn(move || commit.wait(ticket, medium).is_err()))
                .collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let panicked = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(panicked, 1, "the leader");
        assert!(outcomes.into_iter().flatten().all(|refused| refused));
    }

    #[test]
    fn sync_without_anything_unsynced_touches_nothing_and_otherwise_syncs_once() {
        let (commit, medium) = (commit(), Counting::default());
        commit.sync(&medium).unwrap();
        assert_eq!(medium.syncs.load(Ordering::SeqCst), 0);
        let ticket = commit.append(&record("k"), 1, 0, Until::Written).unwrap();
        commit.wait(&ticket, &medium).unwrap();
        commit.sync(&medium).unwrap();
        commit.sync(&medium).unwrap();
        assert_eq!(medium.syncs.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_batch_whose_threads_are_gone_keeps_nobody_waiting() {
        let (commit, medium) = (Commit::new(Seed::NONE, 300), Counting::default());
        // Each in a batch of its own: the limit has room for one.
        let abandoned = commit.append(&record("a"), 1, 0, Until::Synced).unwrap();
        let ticket = commit.append(&record("b"), 2, 0, Until::Synced).unwrap();
        assert_ne!(abandoned.number, ticket.number);
        drop(abandoned);
        commit.wait(&ticket, &medium).unwrap();
        assert_eq!(medium.records.into_inner(), 2);
    }

    #[test]
    fn every_record_of_many_threads_is_written_once_with_fewer_syncs_than_records() {
        let (commit, medium) = (commit(), Counting::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for turn in 0..200 {
                        let until = if turn % 3 == 0 { Until::Written } else { Until::Synced };
                        let ticket = commit.append(&record("k"), 1, 0, until).unwrap();
                        commit.wait(&ticket, &medium).unwrap();
                    }
                });
            }
        });
        assert_eq!(medium.records.into_inner(), 1_600);
        assert!(medium.syncs.into_inner() <= 1_600);
    }
}
