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

/// Counts its calls, and fails or panics as the test sets it up.
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
fn a_batch_takes_no_more_of_a_segment_than_was_reserved() {
    let commit = commit();
    let key = "a key of 24 bytes, or so";
    let length = crate::format::record::encoded_bytes(Key::new(key), &Value::NONE);
    let promised = record_cost_bytes(length);
    assert_eq!(promised, length + 48 + 56, "a frame header and an entry, should it be alone");
    for records in 1..=5 {
        let _ = append(&commit, key, promised, Until::Written);
        let queue = commit.queue.lock();
        let batch = &queue.batches[0].pending;
        assert_eq!(batch.cost_bytes(), 56 + records * (length + 48));
        assert!(batch.cost_bytes() <= batch.reserved_bytes, "covered by what was promised");
        assert_eq!(batch.reserved_bytes, records * promised);
    }
}

#[test]
fn few_and_small_buffers_are_kept_for_later_batches() {
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

/// Waits until the condition holds. Fails after a minute instead of hanging.
fn until(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the condition never held");
        std::thread::yield_now();
    }
}

/// Ends a sync, and a write of more than one record, only when the test lets it go on.
struct Patient {
    syncs_go_on: Mutex<Receiver<()>>,
    writes_go_on: Mutex<Receiver<()>>,
    syncs: AtomicU64,
    writes: AtomicU64,
}

struct GoingOn {
    syncs: Sender<()>,
    writes: Sender<()>,
}

impl Patient {
    fn new() -> (GoingOn, Patient) {
        let (syncs, syncs_go_on) = channel();
        let (writes, writes_go_on) = channel();
        let sink = Patient {
            syncs_go_on: Mutex::new(syncs_go_on),
            writes_go_on: Mutex::new(writes_go_on),
            syncs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        };
        (GoingOn { syncs, writes }, sink)
    }

    /// Long enough for any machine; only a wait that never ends gets there.
    fn wait(goes_on: &Mutex<Receiver<()>>) -> io::Result<()> {
        goes_on.lock().recv_timeout(Duration::from_secs(60)).map_err(io::Error::other)
    }
}

impl CommitSink for Patient {
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if batch.entries.len() > 1 {
            Patient::wait(&self.writes_go_on)?;
        }
        Ok(Placement::default())
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Patient::wait(&self.syncs_go_on)
    }
}

/// A queue over a patient sink, and threads that wait there.
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

    /// A thread that waits for the ticket and does nothing else, by now.
    fn sleep(&self, ticket: Ticket) -> ScopedJoinHandle<'scope, ()> {
        let gate = Arc::clone(&ticket.gate);
        let wanted = ticket.until;
        let before = gate.waiting.of(wanted).load(Ordering::SeqCst);
        let thread = self.wait(ticket);
        until(|| gate.waiting.of(wanted).load(Ordering::SeqCst) == before + 1);
        thread
    }

    /// A thread whose sync is under way.
    fn syncing(&self) -> ScopedJoinHandle<'scope, ()> {
        let before = self.sink.syncs.load(Ordering::SeqCst);
        let thread = self.wait(self.append(Until::Synced));
        until(|| self.sink.syncs.load(Ordering::SeqCst) == before + 1);
        thread
    }
}

fn with_patience(story: impl FnOnce(&Bench<'_, '_>, &GoingOn)) {
    let ((going_on, sink), commit) = (Patient::new(), commit());
    std::thread::scope(|scope| story(&Bench { scope, commit: &commit, sink: &sink }, &going_on));
}

#[test]
fn a_write_only_caller_neither_waits_for_the_sync_nor_wakes_its_waiters() {
    with_patience(|bench, going_on| {
        let synced = bench.append(Until::Synced);
        let gate = Arc::clone(&synced.gate);
        let written = bench.append(Until::Written);
        going_on.writes.send(()).unwrap();
        let leading = bench.wait(synced);
        bench.wait(written).join().unwrap();
        assert_eq!(gate.signals.synced.get(), 0);
        going_on.syncs.send(()).unwrap();
        leading.join().unwrap();
    });
}

#[test]
fn a_write_only_caller_writes_while_another_thread_syncs() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        for _ in 0..3 {
            bench.wait(bench.append(Until::Written)).join().unwrap();
        }
        assert_eq!(bench.sink.writes.load(Ordering::SeqCst), 5);
        assert!(!syncing.is_finished());
        going_on.syncs.send(()).unwrap();
        syncing.join().unwrap();
    });
}

#[test]
fn write_only_callers_are_remembered_for_64_batches() {
    let commit = commit();
    let mut queue = commit.queue.lock();
    assert!(!queue.may_be_written_to(1));
    queue.last_wants_write = Some(5);
    // A batch that is taken after a later one was begun is earlier than that.
    for (number, expected) in [(4, true), (5, true), (69, true), (70, false)] {
        assert_eq!(queue.may_be_written_to(number), expected, "{number}");
    }
}

#[test]
fn a_record_written_during_a_sync_is_synced_by_the_next_one() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        going_on.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        going_on.syncs.send(()).unwrap();
        syncing.join().unwrap();
        until(|| bench.sink.syncs.load(Ordering::SeqCst) == 2);
        assert!(!waiting.is_finished(), "the sync under way began before it was written");
        going_on.syncs.send(()).unwrap();
        waiting.join().unwrap();
        assert_eq!(bench.sink.writes.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_caller_that_waits_for_a_sync_does_not_wait_for_later_writes() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        going_on.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        // A batch of two records, so that its write waits until the test lets it go on.
        let (one, other) = (bench.append(Until::Written), bench.append(Until::Written));
        let writing = [bench.wait(one), bench.wait(other)];
        until(|| bench.sink.writes.load(Ordering::SeqCst) == 4);
        for _ in 0..2 {
            going_on.syncs.send(()).unwrap();
        }
        for thread in [syncing, waiting] {
            thread.join().unwrap();
        }
        going_on.writes.send(()).unwrap();
        for thread in writing {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_thread_that_starts_a_sync_nudges_a_waiting_writer() {
    with_patience(|bench, going_on| {
        let synced = bench.append(Until::Synced);
        bench.commit.lead(bench.commit.queue.lock(), Roles { writes: true, syncs: false }, bench.sink);
        bench.commit.queue.lock().writing = true;
        let writing = bench.sleep(bench.append(Until::Written));
        bench.commit.queue.lock().writing = false;
        let syncing = bench.wait(synced);
        writing.join().unwrap();
        assert!(!syncing.is_finished());
        going_on.syncs.send(()).unwrap();
        syncing.join().unwrap();
    });
}

#[test]
fn a_write_only_batch_is_not_synced_for_the_batch_behind_it() {
    let (commit, sink) = (Commit::new(300), Counting::default());
    // Each in a batch of its own: the limit has room for one.
    let written = append(&commit, "a", 0, Until::Written);
    let synced = append(&commit, "b", 0, Until::Synced);
    commit.wait(&synced, &sink).unwrap();
    commit.wait(&written, &sink).unwrap();
    assert_eq!((sink.writes.into_inner(), sink.syncs.into_inner()), (2, 1));
}

#[test]
fn callers_that_come_during_a_sync_share_the_next_write_and_sync() {
    with_patience(|bench, going_on| {
        let mut threads = vec![bench.syncing()];
        for _ in 0..15 {
            threads.push(bench.sleep(bench.append(Until::Synced)));
        }
        assert_eq!(
            bench.sink.writes.load(Ordering::SeqCst),
            1,
            "a caller that would wait anyway does not write"
        );
        going_on.writes.send(()).unwrap();
        for _ in 0..2 {
            going_on.syncs.send(()).unwrap();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(bench.sink.syncs.load(Ordering::SeqCst), 2, "one for the first, one for the fifteen");
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
    assert_eq!(nudged(&commit), both, "the one that waits for the sync anyway");
    commit.queue.lock().syncing = true;
    assert_eq!(nudged(&commit), write, "while another thread syncs");
    commit.queue.lock().writing = true;
    assert_eq!(nudged(&commit), [None, None]);
    (commit.queue.lock().writing, commit.queue.lock().syncing) = (false, false);

    // Written by a thread that does not sync.
    let writes = Roles { writes: true, syncs: false };
    commit.lead(commit.queue.lock(), writes, &sink);
    assert_eq!(nudged(&commit), both);
    commit.queue.lock().writing = true;
    assert_eq!(nudged(&commit), both, "a sync waits for no write");
    commit.queue.lock().writing = false;
    appended(&commit, Until::Written);
    assert_eq!(nudged(&commit), [Some(Until::Synced), Some(Until::Written)]);
    appended(&commit, Until::Synced);
    assert_eq!(nudged(&commit), both, "the syncer writes first");
}

#[test]
fn a_batch_never_outgrows_its_limit() {
    let (commit, sink) = (commit(), Counting::default());
    let tickets: Vec<_> = (0..1_000).map(|_| append(&commit, "k", 0, Until::Written)).collect();
    for batch in &commit.queue.lock().batches {
        assert!(batch.pending.cost_bytes() <= 16 << 10);
    }
    // Waited for by many threads at once: an older batch must not be skipped for a newer one.
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
        assert!(commit.wait(&first, &sink).is_err(), "asking again does not help");
    }
}

#[test]
fn a_leader_that_unwinds_poisons_the_queue_and_wakes_all() {
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
    assert_eq!(panicked, 1, "the leader");
    assert!(outcomes.into_iter().flatten().all(|refused| refused));
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
fn a_batch_whose_threads_are_gone_blocks_no_later_one() {
    let (commit, sink) = (Commit::new(300), Counting::default());
    // Each in a batch of its own: the limit has room for one.
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
