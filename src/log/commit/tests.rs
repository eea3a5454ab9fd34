use super::*;
use crate::format::NEVER_MS;
use crate::format::record::{Kind, Value};
use crate::key::{Fingerprint, Key};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

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
    Commit::new(Seed::NONE, 16 << 10)
}

#[test]
fn what_a_batch_takes_of_a_segment_is_never_more_than_its_records_were_promised() {
    let commit = commit();
    let key = "a key of 24 bytes, or so";
    let length = crate::format::record::encoded_bytes(Key::new(key), &Value::NONE);
    let promised = record_cost_bytes(length);
    assert_eq!(promised, length + 48 + 56, "a frame header and an entry, should it be alone");
    for records in 1..=5 {
        let _ = commit.append(&record(key), 1, promised, Until::Written).unwrap();
        let queue = commit.queue.lock();
        let batch = &queue.batches[0].batch;
        assert_eq!(batch.cost_bytes(), 56 + records * (length + 48));
        assert!(batch.cost_bytes() <= batch.reserved_bytes, "covered by what was promised");
        assert_eq!(batch.reserved_bytes, records * promised);
    }
}

#[test]
fn buffers_are_used_again_but_few_and_none_that_a_large_result_made_large() {
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
fn what_waits_together_is_one_write_and_one_sync() {
    let (commit, medium) = (commit(), Counting::default());
    let tickets: Vec<_> =
        (0..10).map(|_| commit.append(&record("k"), 1, 0, Until::Synced).unwrap()).collect();
    let places: Vec<_> = tickets.iter().map(|t| commit.wait(t, &medium).unwrap()).collect();
    assert_eq!((medium.writes.into_inner(), medium.syncs.into_inner()), (1, 1));
    let length = crate::format::record::encoded_bytes(Key::new("k"), &Value::NONE);
    for (place, number) in places.iter().zip(0..) {
        let at = FRAME_HEADER_BYTES as u64 + number * length;
        assert_eq!((place.position, place.offset), (at, at));
    }
}

/// Waits until it is so, on any machine; what never comes to be so fails, and does not hang.
fn until(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came to be so");
        std::thread::yield_now();
    }
}

/// Ends a sync, and a write of more than one record, only when somebody has said that it goes on.
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
        let medium = Patient {
            syncs_go_on: Mutex::new(syncs_go_on),
            writes_go_on: Mutex::new(writes_go_on),
            syncs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        };
        (GoingOn { syncs, writes }, medium)
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

/// A queue over a patient medium, and threads that wait there.
struct Bench<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    commit: &'env Commit,
    medium: &'env Patient,
}

impl<'scope> Bench<'scope, '_> {
    fn append(&self, wanted: Until) -> Ticket {
        self.commit.append(&record("k"), 1, 0, wanted).unwrap()
    }

    fn wait(&self, ticket: Ticket) -> ScopedJoinHandle<'scope, ()> {
        let (commit, medium) = (self.commit, self.medium);
        self.scope.spawn(move || commit.wait(&ticket, medium).map(drop).unwrap())
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
        let before = self.medium.syncs.load(Ordering::SeqCst);
        let thread = self.wait(self.append(Until::Synced));
        until(|| self.medium.syncs.load(Ordering::SeqCst) == before + 1);
        thread
    }
}

fn with_patience(story: impl FnOnce(&Bench<'_, '_>, &GoingOn)) {
    let ((going_on, medium), commit) = (Patient::new(), commit());
    std::thread::scope(|scope| story(&Bench { scope, commit: &commit, medium: &medium }, &going_on));
}

#[test]
fn who_wants_its_record_written_does_not_wait_for_the_sync_and_wakes_none_of_those_who_do() {
    with_patience(|bench, going_on| {
        let synced = bench.append(Until::Synced);
        let gate = Arc::clone(&synced.gate);
        let written = bench.append(Until::Written);
        going_on.writes.send(()).unwrap();
        let leading = bench.wait(synced);
        bench.wait(written).join().unwrap();
        assert_eq!(gate.told.synced.get(), 0);
        going_on.syncs.send(()).unwrap();
        leading.join().unwrap();
    });
}

#[test]
fn who_wants_its_record_written_writes_it_while_another_thread_syncs() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        for _ in 0..3 {
            bench.wait(bench.append(Until::Written)).join().unwrap();
        }
        assert_eq!(bench.medium.writes.load(Ordering::SeqCst), 5);
        assert!(!syncing.is_finished());
        going_on.syncs.send(()).unwrap();
        syncing.join().unwrap();
    });
}

#[test]
fn it_is_remembered_for_some_batches_that_somebody_wanted_no_more_than_a_write() {
    let commit = commit();
    let mut queue = commit.queue.lock();
    assert!(!queue.somebody_only_writes(1));
    queue.last_wants_write = Some(5);
    // A batch that is taken after a later one was begun is earlier than that.
    for (number, expected) in [(4, true), (5, true), (69, true), (70, false)] {
        assert_eq!(queue.somebody_only_writes(number), expected, "{number}");
    }
}

#[test]
fn a_record_that_another_thread_wrote_during_a_sync_is_synced_by_the_next_one() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        going_on.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        going_on.syncs.send(()).unwrap();
        syncing.join().unwrap();
        until(|| bench.medium.syncs.load(Ordering::SeqCst) == 2);
        assert!(!waiting.is_finished(), "the sync under way began before it was written");
        going_on.syncs.send(()).unwrap();
        waiting.join().unwrap();
        assert_eq!(bench.medium.writes.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn who_waits_for_a_sync_waits_for_nobody_who_writes_something_later() {
    with_patience(|bench, going_on| {
        bench.wait(bench.append(Until::Written)).join().unwrap();
        let syncing = bench.syncing();
        let waiting = bench.sleep(bench.append(Until::Synced));
        going_on.writes.send(()).unwrap();
        bench.wait(bench.append(Until::Written)).join().unwrap();
        // Of two records, so that its writing takes until it is told to go on.
        let (one, other) = (bench.append(Until::Written), bench.append(Until::Written));
        let writing = [bench.wait(one), bench.wait(other)];
        until(|| bench.medium.writes.load(Ordering::SeqCst) == 4);
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
fn who_begins_a_sync_leaves_nobody_asleep_who_could_write_meanwhile() {
    with_patience(|bench, going_on| {
        let synced = bench.append(Until::Synced);
        bench.commit.lead(bench.commit.queue.lock(), Duty { writes: true, syncs: false }, bench.medium);
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
fn a_batch_that_nobody_wants_synced_is_not_synced_for_who_waits_behind_it() {
    let (commit, medium) = (Commit::new(Seed::NONE, 300), Counting::default());
    // Each in a batch of its own: the limit has room for one.
    let written = commit.append(&record("a"), 1, 0, Until::Written).unwrap();
    let synced = commit.append(&record("b"), 2, 0, Until::Synced).unwrap();
    commit.wait(&synced, &medium).unwrap();
    commit.wait(&written, &medium).unwrap();
    assert_eq!((medium.writes.into_inner(), medium.syncs.into_inner()), (2, 1));
}

#[test]
fn all_who_come_while_a_sync_is_under_way_share_the_next_write_and_the_next_sync() {
    with_patience(|bench, going_on| {
        let mut threads = vec![bench.syncing()];
        for _ in 0..15 {
            threads.push(bench.sleep(bench.append(Until::Synced)));
        }
        assert_eq!(
            bench.medium.writes.load(Ordering::SeqCst),
            1,
            "nobody writes who would wait all the same"
        );
        going_on.writes.send(()).unwrap();
        for _ in 0..2 {
            going_on.syncs.send(()).unwrap();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(bench.medium.syncs.load(Ordering::SeqCst), 2, "one of the first, one of the fifteen");
        assert_eq!(bench.medium.writes.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn one_is_asked_to_write_and_to_sync_who_waits_for_both_and_another_only_to_write_what_it_would_not() {
    let asked = |commit: &Commit| commit.queue.lock().ask_leaders().map(|asked| Some(asked?.until));
    let appended = |commit: &Commit, wanted| {
        let ticket = commit.append(&record("k"), 1, 0, wanted).unwrap();
        ticket.waiting().fetch_add(1, Ordering::Relaxed);
    };
    let (both, write) = ([Some(Until::Synced), None], [None, Some(Until::Written)]);

    let (medium, commit) = (Counting::default(), commit());
    assert_eq!(asked(&commit), [None, None]);
    appended(&commit, Until::Written);
    assert_eq!(asked(&commit), write);
    appended(&commit, Until::Synced);
    assert_eq!(asked(&commit), both, "who waits for the sync anyway");
    commit.queue.lock().syncing = true;
    assert_eq!(asked(&commit), write, "while somebody syncs");
    commit.queue.lock().writing = true;
    assert_eq!(asked(&commit), [None, None]);
    (commit.queue.lock().writing, commit.queue.lock().syncing) = (false, false);

    // Written by somebody who does not sync.
    let writes = Duty { writes: true, syncs: false };
    commit.lead(commit.queue.lock(), writes, &medium);
    assert_eq!(asked(&commit), both);
    commit.queue.lock().writing = true;
    assert_eq!(asked(&commit), both, "a sync waits for no write");
    commit.queue.lock().writing = false;
    appended(&commit, Until::Written);
    assert_eq!(asked(&commit), [Some(Until::Synced), Some(Until::Written)]);
    appended(&commit, Until::Synced);
    assert_eq!(asked(&commit), both, "who syncs writes before");
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
    let tickets: Vec<_> = (0..8).map(|_| commit.append(&record("k"), 1, 0, Until::Synced).unwrap()).collect();
    let (commit, medium) = (&commit, &medium);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            tickets.iter().map(|ticket| scope.spawn(move || commit.wait(ticket, medium).is_err())).collect();
        threads.into_iter().map(ScopedJoinHandle::join).collect()
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
