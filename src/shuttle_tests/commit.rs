//! Checks the commit queue: an acknowledged record is written, it is synced if its caller requested that, and no caller waits
//! for ever.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use shuttle::thread;

use super::{DEADLOCK, THOROUGH, explore, must_find_planted};
use crate::format::record::{Kind, Record, Value};
use crate::format::{NEVER_MS, Seed};
use crate::key::{Fingerprint, Key};
use crate::log::commit::{Commit, CommitSink, NewRecord, PendingFrame, Placement, Ticket, Until};
use crate::planted::Bug;
use crate::status::Version;
use crate::sync::{Mutex, Patience, yield_now};

/// A limit on batches that allows only one record in each.
const ONE_RECORD_BYTES: u64 = 300;
/// A limit on batches that allows all records of a scenario in the same batch.
const MANY_RECORDS_BYTES: u64 = 16 << 10;
/// The distance between the positions of frames. It exceeds the length of any frame in these scenarios.
const FRAME_STEP: u64 = 1 << 20;

/// The call of the disk that fails. Calls are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// No call fails.
    Nothing,
    /// The write with this number fails.
    Write(usize),
    /// The sync with this number fails, and so does every later one.
    Sync(usize),
    /// The write with this number panics, which unwinds the leader.
    Leader(usize),
    /// The sync with this number panics, which unwinds the thread that syncs.
    Syncer(usize),
}

/// The state of the modelled disk.
#[derive(Debug, Default)]
struct Contents {
    /// The position and version of each written record.
    written: Vec<(u64, Version)>,
    /// The number of those records that are synced.
    synced: usize,
    /// The number of frames that were written.
    frames: usize,
    /// The number of syncs that began.
    syncs: usize,
    has_failed: bool,
    has_failed_write: bool,
    is_written_to: bool,
    is_being_synced: bool,
}

/// A disk that records every write and sync, and yields in the middle of each.
#[derive(Debug)]
struct Disk {
    contents: Mutex<Contents>,
    failing: Failing,
}

impl Disk {
    fn new(failing: Failing) -> Disk {
        Disk { contents: Mutex::default(), failing }
    }

    /// Checks that a record that was acknowledged at `placement` is written there, and synced if `until` is `Synced`.
    fn check(&self, version: Version, until: Until, placement: Placement) {
        let contents = self.contents.lock();
        let at = contents.written.iter().position(|(_, written)| *written == version);
        let Some(at) = at else { panic!("{version:?} acknowledged and not written") };
        assert_eq!(
            contents.written[at].0, placement.position,
            "acknowledged at the position of another record"
        );
        assert!(until == Until::Written || at < contents.synced, "{version:?} acknowledged and not synced");
    }

    fn has_failed(&self) -> bool {
        self.contents.lock().has_failed
    }
}

impl CommitSink for Disk {
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
        let number = {
            let mut contents = self.contents.lock();
            assert!(!contents.is_written_to, "two threads write at once");
            // No write may begin after a failed write. After a failed sync, one may still begin before the failure is noticed.
            assert!(!contents.has_failed_write, "written to after a failure");
            contents.is_written_to = true;
            contents.frames
        };
        // A write takes time, during which other threads run.
        yield_now();
        let mut contents = self.contents.lock();
        contents.is_written_to = false;
        contents.frames += 1;
        if self.failing == Failing::Write(number) {
            (contents.has_failed, contents.has_failed_write) = (true, true);
            return Err(io::Error::other("planted"));
        }
        if self.failing == Failing::Leader(number) {
            (contents.has_failed, contents.has_failed_write) = (true, true);
            drop(contents);
            // Unwinds without `panic!`, because shuttle ends the test at a panic even if it is caught.
            std::panic::resume_unwind(Box::new("planted"));
        }
        let position = (number as u64 + 1) * FRAME_STEP;
        for entry in &batch.entries {
            contents.written.push((position + entry.at, entry.version));
        }
        Ok(Placement { position, offset: position })
    }

    fn sync(&self) -> io::Result<()> {
        // A sync covers only what was written when it began.
        let (number, reached, had_failed) = {
            let mut contents = self.contents.lock();
            assert!(!contents.is_being_synced, "two threads sync at once");
            contents.is_being_synced = true;
            let number = contents.syncs;
            contents.syncs += 1;
            (number, contents.written.len(), contents.has_failed)
        };
        yield_now();
        let mut contents = self.contents.lock();
        contents.is_being_synced = false;
        if self.failing == Failing::Sync(number) || had_failed {
            contents.has_failed = true;
            return Err(io::Error::other("planted"));
        }
        if self.failing == Failing::Syncer(number) {
            contents.has_failed = true;
            drop(contents);
            std::panic::resume_unwind(Box::new("planted"));
        }
        contents.synced = contents.synced.max(reached);
        Ok(())
    }
}

/// A commit queue with its disk.
#[derive(Debug)]
struct Queue {
    commit: Commit,
    disk: Disk,
}

impl Queue {
    fn new(limit_bytes: u64, failing: Failing) -> Arc<Queue> {
        Arc::new(Queue { commit: Commit::new(limit_bytes), disk: Disk::new(failing) })
    }

    fn append(&self, version: u64, until: Until) -> Result<Ticket, Arc<io::Error>> {
        let record = Record {
            kind: Kind::Begun,
            key: Key::new("k"),
            version: Version::from_u64(version),
            origin: Version::from_u64(version),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 5,
            key_expires_ms: NEVER_MS,
            result_expires_ms: NEVER_MS,
            value: Value::NONE,
        };
        let new = NewRecord::new(&record, u128::from(version), Seed::NONE);
        self.commit.append(std::iter::once(&new), 0, until)
    }

    /// Appends a record and waits for it. Returns whether it was acknowledged, and checks an acknowledgement.
    fn append_and_wait(&self, version: u64, until: Until) -> bool {
        let Ok(ticket) = self.append(version, until) else {
            assert!(self.disk.has_failed(), "a record was refused although the disk has not failed");
            return false;
        };
        match self.commit.wait(&ticket, &self.disk) {
            Ok(placement) => {
                self.disk.check(Version::from_u64(version), until, placement);
                true
            }
            Err(_) => {
                assert!(self.disk.has_failed(), "a record was refused although the disk has not failed");
                false
            }
        }
    }
}

fn join<T>(threads: Vec<thread::JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Starts threads that append and wait. Every second record must be synced.
fn appenders(queue: &Arc<Queue>, threads: u64, turns: u64) -> Vec<thread::JoinHandle<bool>> {
    let appender = |number: u64| {
        let queue = Arc::clone(queue);
        thread::spawn(move || {
            (0..turns).all(|turn| {
                let until = if (number + turn).is_multiple_of(2) { Until::Synced } else { Until::Written };
                queue.append_and_wait(1 + number * turns + turn, until)
            })
        })
    };
    (0..threads).map(appender).collect()
}

/// Four threads append two records each. The limit allows all records in the same batch, or only one in each.
fn many_appenders(limit_bytes: u64) {
    let queue = Queue::new(limit_bytes, Failing::Nothing);
    assert!(join(appenders(&queue, 4, 2)).into_iter().all(|acknowledged| acknowledged));
    assert_eq!(queue.disk.contents.lock().written.len(), 8, "each record must be written once");
}

/// A thread appends a record without a sync and then calls `sync`, while others append.
fn sync_among_appenders() {
    let queue = Queue::new(MANY_RECORDS_BYTES, Failing::Nothing);
    let others = appenders(&queue, 2, 1);
    let syncing = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            let ticket = queue.append(100, Until::Written).unwrap();
            let placement = queue.commit.wait(&ticket, &queue.disk).unwrap();
            queue.commit.sync(&queue.disk).unwrap();
            queue.disk.check(Version::from_u64(100), Until::Synced, placement);
        })
    };
    join(others);
    syncing.join().unwrap();
}

/// The disk fails at a given call. A thread that was refused is refused again, and every acknowledgement is true.
fn failing_disk(limit_bytes: u64, failing: Failing) {
    let queue = Queue::new(limit_bytes, failing);
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let work = || {
                    let until = if number == 1 { Until::Written } else { Until::Synced };
                    if !queue.append_and_wait(2 * number + 1, until) {
                        assert!(
                            !queue.append_and_wait(2 * number + 2, until),
                            "a record was accepted after a refusal"
                        );
                    }
                };
                if !matches!(failing, Failing::Leader(_) | Failing::Syncer(_)) {
                    work();
                    return false;
                }
                // The leader or the thread that syncs unwinds. All others must still return.
                catch_unwind(AssertUnwindSafe(work)).is_err()
            })
        })
        .collect();
    let panicked = join(threads).into_iter().filter(|panicked| *panicked).count();
    let unwinds = matches!(failing, Failing::Leader(_) | Failing::Syncer(_));
    let expected = usize::from(unwinds && queue.disk.has_failed());
    assert_eq!(panicked, expected, "exactly the thread whose call panicked must unwind");
    assert_eq!(queue.commit.poison().is_some(), queue.disk.has_failed());
}

/// The queue is poisoned while frames are being written, as happens when the writer cannot write a header or a close mark.
fn poisoned_from_outside() {
    let queue = Queue::new(ONE_RECORD_BYTES, Failing::Nothing);
    let appending = {
        let queue = Arc::clone(&queue);
        move |version| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let Ok(ticket) = queue.append(version, Until::Synced) else { return };
                if let Ok(placement) = queue.commit.wait(&ticket, &queue.disk) {
                    queue.disk.check(Version::from_u64(version), Until::Synced, placement);
                }
            })
        }
    };
    let threads = (1..=3).map(appending).collect();
    queue.commit.poison_with(io::Error::other("planted"));
    assert!(queue.append(9, Until::Written).is_err(), "appended after the queue was poisoned");
    join(threads);
}

/// A thread appends and drops its ticket without waiting. All others must still be acknowledged.
fn abandoned_ticket(limit_bytes: u64) {
    let queue = Queue::new(limit_bytes, Failing::Nothing);
    let leaving = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || drop(queue.append(100, Until::Synced).unwrap()))
    };
    assert!(join(appenders(&queue, 3, 1)).into_iter().all(|acknowledged| acknowledged));
    leaving.join().unwrap();
}

/// Three threads append three synced records each, so that a thread that returns from a sync is expected back and the next
/// syncer lingers for it. `writes_only` more threads append records that need only a write.
fn returning_callers(writes_only: u64) {
    let queue = Queue::new(MANY_RECORDS_BYTES, Failing::Nothing);
    let appender = |number: u64, until| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || (0..3).all(|turn| queue.append_and_wait(1 + number * 3 + turn, until)))
    };
    let mut threads: Vec<_> = (0..3).map(|number| appender(number, Until::Synced)).collect();
    threads.extend((3..3 + writes_only).map(|number| appender(number, Until::Written)));
    let count = threads.len() * 3;
    assert!(join(threads).into_iter().all(|acknowledged| acknowledged));
    assert_eq!(queue.disk.contents.lock().written.len(), count, "each record must be written once");
}

/// One thread appends again after a sync and lingers for the other thread that the sync woke, which poisons the queue instead.
/// A third waits with patience for the lingering thread to sync a record that is written.
fn poisoned_among_returning_callers() {
    let queue = Queue::new(MANY_RECORDS_BYTES, Failing::Nothing);
    let append_and_check = |queue: &Queue, version| {
        let Ok(ticket) = queue.append(version, Until::Synced) else { return };
        if let Ok(placement) = queue.commit.wait(&ticket, &queue.disk) {
            queue.disk.check(Version::from_u64(version), Until::Synced, placement);
        }
    };
    let returning = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || (1..=2).for_each(|version| append_and_check(&queue, version)))
    };
    let poisoning = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            append_and_check(&queue, 3);
            queue.commit.poison_with(io::Error::other("planted"));
        })
    };
    let syncing = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            let Ok(ticket) = queue.append(4, Until::Written) else { return };
            if queue.commit.wait(&ticket, &queue.disk).is_err() {
                return;
            }
            let written = queue.disk.contents.lock().written.len();
            let is_durable = || queue.disk.contents.lock().synced >= written;
            let _ = queue.commit.sync_within(is_durable, Patience::Endless, &queue.disk);
        })
    };
    join(vec![returning, poisoning, syncing]);
}

#[test]
fn callers_that_return_are_waited_for_and_acknowledged() {
    explore("commit, returning callers", THOROUGH, || returning_callers(0));
    explore("commit, returning callers and a write-only one", THOROUGH, || returning_callers(1));
    explore("commit, poisoned among returning callers", THOROUGH, poisoned_among_returning_callers);
}

#[test]
fn finds_next_syncer_not_woken_after_few() {
    let bug = Bug::NextSyncerNotWokenAfterFew;
    must_find_planted(bug, THOROUGH, &[DEADLOCK], || returning_callers(0));
}

#[test]
fn finds_a_lingerer_that_keeps_its_role() {
    must_find_planted(Bug::LingererKeepsRole, THOROUGH, &[DEADLOCK], || returning_callers(1));
}

#[test]
fn finds_a_lingerer_that_wakes_nobody() {
    let scenario = poisoned_among_returning_callers;
    must_find_planted(Bug::LingererWakesNobody, THOROUGH, &[DEADLOCK], scenario);
}

#[test]
fn an_acknowledged_record_is_on_disk() {
    explore("commit, one batch", THOROUGH, || many_appenders(MANY_RECORDS_BYTES));
    explore("commit, a batch for each record", THOROUGH, || many_appenders(ONE_RECORD_BYTES));
}

#[test]
fn a_sync_covers_what_was_written_before_it() {
    explore("commit, sync among appenders", THOROUGH, sync_among_appenders);
}

#[test]
fn after_a_failure_no_record_is_acknowledged_and_no_caller_hangs() {
    for limit_bytes in [ONE_RECORD_BYTES, MANY_RECORDS_BYTES] {
        for failing in [Failing::Write(0), Failing::Write(1), Failing::Sync(0), Failing::Sync(1)] {
            let name = format!("commit, {failing:?}, batches of up to {limit_bytes} bytes");
            explore(&name, THOROUGH, move || failing_disk(limit_bytes, failing));
        }
    }
    explore("commit, poisoned from outside", THOROUGH, poisoned_from_outside);
}

#[test]
fn a_leader_that_unwinds_leaves_no_caller_waiting() {
    for limit_bytes in [ONE_RECORD_BYTES, MANY_RECORDS_BYTES] {
        for failing in [Failing::Leader(0), Failing::Syncer(0)] {
            let name = format!("commit, {failing:?} unwinds, batches of up to {limit_bytes} bytes");
            explore(&name, THOROUGH, move || failing_disk(limit_bytes, failing));
        }
    }
}

#[test]
fn an_abandoned_ticket_leaves_no_caller_waiting() {
    explore("commit, abandoned in one batch", THOROUGH, || abandoned_ticket(MANY_RECORDS_BYTES));
    explore("commit, abandoned in its own batch", THOROUGH, || abandoned_ticket(ONE_RECORD_BYTES));
}

#[test]
fn finds_acknowledged_before_sync() {
    let bug = Bug::AcknowledgedBeforeSync;
    must_find_planted(bug, THOROUGH, &["acknowledged and not synced"], || many_appenders(MANY_RECORDS_BYTES));
}

#[test]
fn finds_only_one_follower_woken() {
    must_find_planted(Bug::OnlyOneFollowerWoken, THOROUGH, &[DEADLOCK], || {
        many_appenders(MANY_RECORDS_BYTES)
    });
}

#[test]
fn finds_next_leader_not_woken() {
    must_find_planted(Bug::NextLeaderNotWoken, THOROUGH, &[DEADLOCK], || many_appenders(ONE_RECORD_BYTES));
}

#[test]
fn finds_poisoned_batches_not_woken() {
    let scenario = || failing_disk(ONE_RECORD_BYTES, Failing::Write(0));
    must_find_planted(Bug::PoisonedBatchesNotWoken, THOROUGH, &[DEADLOCK], scenario);
}

#[test]
fn finds_poison_ignored() {
    let expected = ["acknowledged and not synced"];
    let scenario = || failing_disk(MANY_RECORDS_BYTES, Failing::Sync(0));
    must_find_planted(Bug::PoisonIgnored, THOROUGH, &expected, scenario);
}
