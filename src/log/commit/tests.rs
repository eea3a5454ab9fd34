use super::*;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::Record;
use crate::format::record::{Kind, Value};
use crate::format::{NEVER_MS, Seed};
use crate::key::{Fingerprint, Key};
use crate::status::Version;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

/// A sink that counts its calls. Tests can make it fail or panic.
#[derive(Default)]
struct Counting {
    writes: AtomicU64,
    syncs: AtomicU64,
    records: AtomicU64,
    fail_write: bool,
    fail_sync: bool,
    panic: bool,
}

impl CommitSink for Counting {
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
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
        value: Value::NONE,
    }
}

fn commit() -> Commit {
    Commit::new(16 << 10)
}

fn try_append(
    commit: &Commit,
    key: &str,
    reserved_bytes: u64,
    until: Until,
) -> Result<Ticket, Arc<io::Error>> {
    let new = NewRecord::new(&record(key), 1, Seed::NONE);
    commit.append(std::iter::once(&new), reserved_bytes, until)
}

fn append(commit: &Commit, key: &str, reserved_bytes: u64, until: Until) -> Ticket {
    try_append(commit, key, reserved_bytes, until).unwrap()
}

#[test]
fn reservations_cover_what_a_batch_takes_of_a_segment() {
    let commit = commit();
    let key = "a key of 24 bytes, or so";
    let length = crate::format::record::encoded_bytes(Key::new(key), &Value::NONE);
    let cost = record_cost_bytes(length);
    assert_eq!(cost, length + 48 + 56, "the cost must include an entry and a frame header");
    for records in 1..=5 {
        let _ = append(&commit, key, cost, Until::Written);
        let queue = commit.queue.lock();
        let batch = &queue.batches[0].pending;
        assert_eq!(batch.cost_bytes(), 56 + records * (length + 48));
        assert!(batch.cost_bytes() <= batch.reserved_bytes, "the batch takes more than was reserved");
        assert_eq!(batch.reserved_bytes, records * cost);
    }
}

#[test]
fn at_most_two_small_buffers_are_kept() {
    let commit = commit();
    let batch = |capacity: usize| PendingFrame {
        frame: Vec::with_capacity(capacity),
        reserved_bytes: 9,
        ..PendingFrame::default()
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
    assert_eq!(spare.reserved_bytes, 0);
}

#[test]
fn records_that_wait_together_share_one_write_and_one_sync() {
    let (commit, sink) = (commit(), Counting::default());
    let tickets: Vec<_> = (0..10).map(|_| append(&commit, "k", 0, Until::Synced)).collect();
    let places: Vec<_> = tickets.iter().map(|t| commit.wait(t, &sink).unwrap()).collect();
    assert_eq!((sink.writes.into_inner(), sink.syncs.into_inner()), (1, 1));
    let length = crate::format::record::encoded_bytes(Key::new("k"), &Value::NONE);
    for (place, number) in places.iter().zip(0..) {
        let at = FRAME_HEADER_BYTES as u64 + number * length;
        assert_eq!((place.position, place.offset), (at, at));
    }
}

/// Waits until the condition is true. Fails after a minute instead of hanging.
fn until(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the condition did not become true");
        std::thread::yield_now();
    }
}

/// A sink that completes a sync, and a write of more than one record, only when the test permits it.
struct Patient {
    sync_permits: Mutex<Receiver<()>>,
    write_permits: Mutex<Receiver<()>>,
    syncs: AtomicU64,
    writes: AtomicU64,
}

/// Permits the writes and syncs of a [`Patient`] sink.
struct Permits {
    syncs: Sender<()>,
    writes: Sender<()>,
}

impl Patient {
    fn new() -> (Permits, Patient) {
        let (syncs, sync_permits) = channel();
        let (writes, write_permits) = channel();
        let sink = Patient {
            sync_permits: Mutex::new(sync_permits),
            write_permits: Mutex::new(write_permits),
            syncs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        };
        (Permits { syncs, writes }, sink)
    }

    /// Waits for a permit. The timeout is long enough for any machine, so that only a permit that is never given
    /// exceeds it.
    fn wait(permits: &Mutex<Receiver<()>>) -> io::Result<()> {
        permits.lock().recv_timeout(Duration::from_secs(60)).map_err(io::Error::other)
    }
}

impl CommitSink for Patient {
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if batch.entries.len() > 1 {
            Patient::wait(&self.write_permits)?;
        }
        Ok(Placement::default())
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Patient::wait(&self.sync_permits)
    }
}

/// A queue with a patient sink, and the scope of the threads that wait in it.
struct Bench<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    commit: &'env Commit,
    sink: &'env Patient,
}

impl<'scope> Bench<'scope, '_> {
    fn append(&self, wanted: Until) -> Ticket {
        append(self.commit, "k", 0, wanted)
    }

    fn wait(&self, ticket: Ticket) -> ScopedJoinHandle<'scope, ()> {
        let (commit, sink) = (self.commit, self.sink);
        self.scope.spawn(move || commit.wait(&ticket, sink).map(drop).unwrap())
    }

    /// Starts a thread that waits for the ticket, and returns once that thread is about to sleep.
    fn sleep(&self, ticket: Ticket) -> ScopedJoinHandle<'scope, ()> {
        let gate = Arc::clone(&ticket.gate);
        let wanted = ticket.until;
        let before = gate.waiting.of(wanted).load(Ordering::SeqCst);
        let thread = self.wait(ticket);
        until(|| gate.waiting.of(wanted).load(Ordering::SeqCst) == before + 1);
        thread
    }

    /// Starts a thread that syncs, and returns once its sync is under way.
    fn syncing(&self) -> ScopedJoinHandle<'scope, ()> {
        let before = self.sink.syncs.load(Ordering::SeqCst);
        let thread = self.wait(self.append(Until::Synced));
        until(|| self.sink.syncs.load(Ordering::SeqCst) == before + 1);
        thread
    }
}

/// Runs a test on a queue with a patient sink.
fn with_patience(test: impl FnOnce(&Bench<'_, '_>, &Permits)) {
    let ((permits, sink), commit) = (Patient::new(), commit());
    std::thread::scope(|scope| test(&Bench { scope, commit: &commit, sink: &sink }, &permits));
}

#[test]
fn a_write_only_caller_does_not_wait_for_a_sync() {
    with_patience(|bench, permits| {
        let synced = bench.append(Until::Synced);
        let gate = Arc::clone(&synced.gate);
        let written = bench.append(Until::Written);
        permits.writes.send(()).unwrap();
        let leading = bench.wait(synced);
        bench.wait(written).join().unwrap();
        assert_eq!(gate.signals.synced.get(), 0, "callers that wait for the sync must not be woken");
        permits.syncs.send(()).unwrap();
        leading.join().unwrap();
    });
}

#[test]
fn a_write_only_caller_writes_while_another_thread_syncs() {
    with_patience(|bench, permits| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        for _ in 0..3 {
            bench.wait(bench.append(Until::Written)).join().unwrap();
        }
        assert_eq!(bench.sink.writes.load(Ordering::SeqCst), 5);
        assert!(!syncing.is_finished());
        permits.syncs.send(()).unwrap();
        syncing.join().unwrap();
    });
}

#[test]
fn write_only_callers_are_remembered_for_64_batches() {
    let commit = commit();
    let mut queue = commit.queue.lock();
    assert!(!queue.may_be_written_to(1));
    queue.last_wants_write = Some(5);
    // The number may also be lower than the last one: a batch can be taken after a later one was begun.
    for (number, expected) in [(4, true), (5, true), (69, true), (70, false)] {
        assert_eq!(queue.may_be_written_to(number), expected, "{number}");
    }
}

#[test]
fn a_record_written_during_a_sync_is_synced_by_the_next_one() {
    with_patience(|bench, permits| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        permits.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        permits.syncs.send(()).unwrap();
        syncing.join().unwrap();
        until(|| bench.sink.syncs.load(Ordering::SeqCst) == 2);
        assert!(!waiting.is_finished(), "the first sync began too early to cover the record");
        permits.syncs.send(()).unwrap();
        waiting.join().unwrap();
        assert_eq!(bench.sink.writes.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_caller_that_waits_for_a_sync_does_not_wait_for_later_writes() {
    with_patience(|bench, permits| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        permits.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        // A batch of two records, so that its write waits until the test lets it go on.
        let (one, other) = (bench.append(Until::Written), bench.append(Until::Written));
        let writing = [bench.wait(one), bench.wait(other)];
        until(|| bench.sink.writes.load(Ordering::SeqCst) == 4);
        for _ in 0..2 {
            permits.syncs.send(()).unwrap();
        }
        for thread in [syncing, waiting] {
            thread.join().unwrap();
        }
        permits.writes.send(()).unwrap();
        for thread in writing {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_thread_that_starts_a_sync_nudges_a_waiting_writer() {
    with_patience(|bench, permits| {
        let synced = bench.append(Until::Synced);
        bench.commit.lead(bench.commit.queue.lock(), Roles { writes: true, syncs: false }, bench.sink);
        bench.commit.queue.lock().writing = true;
        let writing = bench.sleep(bench.append(Until::Written));
        bench.commit.queue.lock().writing = false;
        let syncing = bench.wait(synced);
        writing.join().unwrap();
        assert!(!syncing.is_finished());
        permits.syncs.send(()).unwrap();
        syncing.join().unwrap();
    });
}

#[test]
fn an_earlier_write_only_batch_is_not_synced_separately() {
    let (commit, sink) = (Commit::new(300), Counting::default());
    // Each record is in its own batch, because the limit leaves space for only one.
    let written = append(&commit, "a", 0, Until::Written);
    let synced = append(&commit, "b", 0, Until::Synced);
    commit.wait(&synced, &sink).unwrap();
    commit.wait(&written, &sink).unwrap();
    assert_eq!((sink.writes.into_inner(), sink.syncs.into_inner()), (2, 1));
}

#[test]
fn callers_that_come_during_a_sync_share_the_next_write_and_sync() {
    with_patience(|bench, permits| {
        let mut threads = vec![bench.syncing()];
        for _ in 0..15 {
            threads.push(bench.sleep(bench.append(Until::Synced)));
        }
        assert_eq!(
            bench.sink.writes.load(Ordering::SeqCst),
            1,
            "a caller that has to wait for the next sync must not write yet"
        );
        permits.writes.send(()).unwrap();
        for _ in 0..2 {
            permits.syncs.send(()).unwrap();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(bench.sink.syncs.load(Ordering::SeqCst), 2, "one sync for the first, one for all others");
        assert_eq!(bench.sink.writes.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn one_waiter_is_nudged_for_each_free_role() {
    let nudged = |commit: &Commit| commit.queue.lock().nudge_leaders().map(|nudge| Some(nudge?.until));
    let appended = |commit: &Commit, wanted| {
        let ticket = append(commit, "k", 0, wanted);
        ticket.waiting().fetch_add(1, Ordering::Relaxed);
    };
    let (both, write) = ([Some(Until::Synced), None], [None, Some(Until::Written)]);

    let (sink, commit) = (Counting::default(), commit());
    assert_eq!(nudged(&commit), [None, None]);
    appended(&commit, Until::Written);
    assert_eq!(nudged(&commit), write);
    appended(&commit, Until::Synced);
    assert_eq!(nudged(&commit), both, "the caller that waits for the sync must take both roles");
    commit.queue.lock().syncing = true;
    assert_eq!(nudged(&commit), write, "while another thread syncs");
    commit.queue.lock().writing = true;
    assert_eq!(nudged(&commit), [None, None]);
    (commit.queue.lock().writing, commit.queue.lock().syncing) = (false, false);

    // A thread that does not sync writes the batch.
    let writes = Roles { writes: true, syncs: false };
    commit.lead(commit.queue.lock(), writes, &sink);
    assert_eq!(nudged(&commit), both);
    commit.queue.lock().writing = true;
    assert_eq!(nudged(&commit), both, "a sync must not wait for a write");
    commit.queue.lock().writing = false;
    appended(&commit, Until::Written);
    assert_eq!(nudged(&commit), [Some(Until::Synced), Some(Until::Written)]);
    appended(&commit, Until::Synced);
    assert_eq!(nudged(&commit), both, "the syncer must write first");
}

#[test]
fn a_batch_never_outgrows_its_limit() {
    let (commit, sink) = (commit(), Counting::default());
    let tickets: Vec<_> = (0..1_000).map(|_| append(&commit, "k", 0, Until::Written)).collect();
    for batch in &commit.queue.lock().batches {
        assert!(batch.pending.cost_bytes() <= 16 << 10);
    }
    // Many threads wait at once, so a leader could wrongly take a newer batch before an older one.
    std::thread::scope(|scope| {
        for ticket in &tickets {
            scope.spawn(|| commit.wait(ticket, &sink).unwrap());
        }
    });
    assert_eq!(sink.records.into_inner(), 1_000);
    assert_eq!(sink.syncs.into_inner(), 0, "no caller needed a sync");
}

#[test]
fn after_a_failed_write_or_sync_no_caller_is_acknowledged() {
    for (fail_write, fail_sync) in [(true, false), (false, true)] {
        let commit = commit();
        let sink = Counting { fail_write, fail_sync, ..Counting::default() };
        let first = append(&commit, "a", 0, Until::Synced);
        assert!(commit.wait(&first, &sink).is_err());
        assert!(try_append(&commit, "b", 0, Until::Synced).is_err());
        assert!(commit.sync(&sink).is_err());
        assert!(commit.wait(&first, &sink).is_err(), "waiting again must fail, too");
    }
}

#[test]
fn a_leader_that_unwinds_poisons_the_queue() {
    let commit = commit();
    let sink = Counting { panic: true, ..Counting::default() };
    let tickets: Vec<_> = (0..8).map(|_| append(&commit, "k", 0, Until::Synced)).collect();
    let (commit, sink) = (&commit, &sink);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            tickets.iter().map(|ticket| scope.spawn(move || commit.wait(ticket, sink).is_err())).collect();
        threads.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let panicked = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(panicked, 1, "only the leader may panic");
    assert!(outcomes.into_iter().flatten().all(|refused| refused), "every other caller must get an error");
}

#[test]
fn a_sync_syncs_once_if_anything_is_unsynced() {
    let (commit, sink) = (commit(), Counting::default());
    commit.sync(&sink).unwrap();
    assert_eq!(sink.syncs.load(Ordering::SeqCst), 0);
    let ticket = append(&commit, "k", 0, Until::Written);
    commit.wait(&ticket, &sink).unwrap();
    commit.sync(&sink).unwrap();
    commit.sync(&sink).unwrap();
    assert_eq!(sink.syncs.load(Ordering::SeqCst), 1);
}

#[test]
fn a_batch_that_no_thread_waits_for_blocks_no_later_one() {
    let (commit, sink) = (Commit::new(300), Counting::default());
    // Each record is in its own batch, because the limit leaves space for only one.
    let abandoned = append(&commit, "a", 0, Until::Synced);
    let ticket = append(&commit, "b", 0, Until::Synced);
    assert_ne!(abandoned.number, ticket.number);
    drop(abandoned);
    commit.wait(&ticket, &sink).unwrap();
    assert_eq!(sink.records.into_inner(), 2);
}

#[test]
fn every_record_of_many_threads_is_written_once() {
    let (commit, sink) = (commit(), Counting::default());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for turn in 0..200 {
                    let until = if turn % 3 == 0 { Until::Written } else { Until::Synced };
                    let ticket = append(&commit, "k", 0, until);
                    commit.wait(&ticket, &sink).unwrap();
                }
            });
        }
    });
    assert_eq!(sink.records.into_inner(), 1_600);
    assert!(sink.syncs.into_inner() <= 1_600);
}

fn ticket(queue: &mut Queue, until: Until) -> Ticket {
    let record = record("k");
    let new = NewRecord::new(&record, 1, Seed::NONE);
    queue.append(std::iter::once(&new), 0, until, 16 << 10)
}

/// A queue of which `written` batches were written and three were synced.
fn queue(written: u64, writing: bool, syncing: bool) -> Queue {
    let mut queue = Queue::new();
    (queue.written, queue.synced, queue.writing, queue.syncing) = (written, 3, writing, syncing);
    queue
}

#[test]
fn a_sync_needs_no_ticket_only_if_nothing_is_pending_or_under_way() {
    assert!(queue(3, false, false).ticket_for_sync().is_none());
    assert!(queue(3, true, false).ticket_for_sync().is_some(), "a thread is writing");
    assert!(queue(3, false, true).ticket_for_sync().is_some(), "a thread is syncing");
    assert!(queue(4, false, false).ticket_for_sync().is_some(), "a batch is not synced");
    let mut gathering = queue(3, false, false);
    drop(ticket(&mut gathering, Until::Written));
    assert!(gathering.ticket_for_sync().is_some(), "a batch is gathering");
    let reached = queue(4, false, false);
    assert_eq!((reached.reached(Until::Written), reached.reached(Until::Synced)), (4, 3));
}

#[test]
fn a_batch_counts_the_callers_that_want_a_sync_and_remembers_those_that_want_a_write() {
    let mut queue = Queue::new();
    for _ in 0..3 {
        drop(ticket(&mut queue, Until::Synced));
    }
    assert!(!queue.may_be_written_to(1), "no caller wants only a write");
    drop(ticket(&mut queue, Until::Written));
    assert!(queue.may_be_written_to(1));
    let batch = &queue.batches[0];
    assert_eq!((batch.sync_waiters, batch.wants_sync, batch.wants_write), (3, true, true));
}

#[test]
fn a_thread_takes_only_roles_that_are_free() {
    // Whether a thread has the role of the writer and of the syncer, and the roles that are left for a caller that wants a
    // write, and for one that wants a sync.
    let (both, write, none) = ((true, true), (true, false), None);
    let cases = [
        ((false, false), Some(write), Some(both)),
        ((true, false), none, none),
        ((false, true), Some(write), none),
        ((true, true), none, none),
    ];
    for ((writing, syncing), for_write, for_sync) in cases {
        for (until, expected) in [(Until::Written, for_write), (Until::Synced, for_sync)] {
            let mut queue = Queue::new();
            let ticket = ticket(&mut queue, until);
            (queue.writing, queue.syncing) = (writing, syncing);
            let roles = queue.free_roles(&ticket).map(|roles| (roles.writes, roles.syncs));
            assert_eq!(roles, expected, "{until:?}: writing {writing}, syncing {syncing}");
        }
    }
}

#[test]
fn a_few_waiters_are_woken_before_the_next_sync_unless_as_many_wait_for_it() {
    let wakes = |expected: u32, next: u32| {
        let mut queue = Queue::new();
        queue.lingering.expected = expected;
        (0..next).for_each(|_| drop(ticket(&mut queue, Until::Synced)));
        queue.wakes_before_next_sync()
    };
    assert!(!wakes(1, 0), "one waiter is the syncer itself");
    assert!(wakes(2, 0) && wakes(16, 15) && wakes(4, 3));
    assert!(!wakes(17, 0), "waking many takes too long");
    assert!(!wakes(4, 4) && !wakes(4, 5), "as many wait already");
}

#[test]
fn a_thread_lingers_only_for_the_one_batch_that_gathers_and_wants_a_sync() {
    let mut queue = Queue::new();
    let first = ticket(&mut queue, Until::Synced);
    assert_eq!(queue.gathering_waiters(&first), Some(1));
    drop(ticket(&mut queue, Until::Synced));
    assert_eq!(queue.gathering_waiters(&first), Some(2));
    queue.writing = true;
    assert_eq!(queue.gathering_waiters(&first), None, "a thread is writing");
    queue.writing = false;
    queue.batches[0].number += 1;
    assert_eq!(queue.gathering_waiters(&first), None, "the batch was taken");
    queue.batches[0].number -= 1;
    let wants_write = ticket(&mut queue, Until::Written);
    assert_eq!(queue.gathering_waiters(&first), None, "a caller waits only for a write");
    queue.batches[0].wants_write = false;
    assert_eq!(queue.gathering_waiters(&wants_write), None, "the caller itself wants only a write");
    assert_eq!(queue.gathering_waiters(&first), Some(2));
    let _full =
        queue.append(std::iter::once(&NewRecord::new(&record("k"), 1, Seed::NONE)), 0, Until::Synced, 300);
    assert_eq!(queue.batches.len(), 2);
    assert_eq!(queue.gathering_waiters(&first), None, "the batch is full");
    queue.batches.pop_back();
    assert_eq!(queue.gathering_waiters(&first), Some(2));
    queue.poison(io::Error::other("planted"));
    assert_eq!(queue.gathering_waiters(&first), None, "the queue is poisoned");
}

#[test]
fn a_failure_gives_up_the_roles_of_the_thread_and_poisons_for_good() {
    let roles = |writes, syncs| Roles { writes, syncs };
    for (given_up, left) in [
        (roles(true, false), (false, true)),
        (roles(false, true), (true, false)),
        (roles(true, true), (false, false)),
    ] {
        let mut queue = queue(3, true, true);
        assert!(queue.check_poison().is_ok());
        queue.fail(given_up, io::Error::other("the first"), None);
        assert_eq!((queue.writing, queue.syncing), left, "{given_up:?}");
        assert!(queue.check_poison().is_err());
        assert_eq!(queue.poison(io::Error::other("the second")).to_string(), "the first");
    }
}
