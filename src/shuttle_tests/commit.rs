//! The commit queue: an acknowledged record is written, and synced if its caller requested that, and no caller waits for
//! ever.

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
use crate::sync::{Mutex, yield_now};

/// A batch limit that fits one record, so that every record is a batch of its own.
const ONE_RECORD_BYTES: u64 = 300;
/// A batch limit that fits all records of a scenario.
const MANY_RECORDS_BYTES: u64 = 16 << 10;
/// The distance between the positions of frames: more than the length of any frame here.
const FRAME_STEP: u64 = 1 << 20;

/// The call of the disk that fails. Numbers count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Nothing,
    /// This write fails.
    Write(usize),
    /// This sync fails, and so does every later one.
    Sync(usize),
    /// This write panics, in the thread that leads.
    Leader(usize),
    /// This sync panics, in the thread that syncs.
    Syncer(usize),
}

/// The state of the modelled disk.
#[derive(Debug, Default)]
struct Contents {
    /// The position and version of each written record.
    written: Vec<(u64, Version)>,
    /// How many of those are synced.
    synced: usize,
    frames: usize,
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

    /// Checks that a record that was acknowledged at `placement` is there, and synced if `until` says so.
    fn check(&self, version: Version, until: Until, placement: Placement) {
        let contents = self.contents.lock();
        let at = contents.written.iter().position(|(_, written)| *written == version);
        let Some(at) = at else { panic!("{version:?} acknowledged and not written") };
        assert_eq!(contents.written[at].0, placement.position, "acknowledged at another record's place");
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
            assert!(!contents.is_written_to, "two write at once");
            // Only a failed write rules out further writes: one that began before a failed sync was noticed is allowed.
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
            // Not by `panic!`: shuttle ends the test at a panic, even if it is caught.
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
            assert!(!contents.is_being_synced, "two sync at once");
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
struct Bench {
    commit: Commit,
    disk: Disk,
}

impl Bench {
    fn new(limit_bytes: u64, failing: Failing) -> Arc<Bench> {
        Arc::new(Bench { commit: Commit::new(limit_bytes), disk: Disk::new(failing) })
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

    /// Appends a record and waits for it. True if it was acknowledged; the acknowledgement is then checked.
    fn append_and_wait(&self, version: u64, until: Until) -> bool {
        let Ok(ticket) = self.append(version, until) else {
            assert!(self.disk.has_failed(), "refused although the disk has not failed");
            return false;
        };
        match self.commit.wait(&ticket, &self.disk) {
            Ok(placement) => {
                self.disk.check(Version::from_u64(version), until, placement);
                true
            }
            Err(_) => {
                assert!(self.disk.has_failed(), "refused although the disk has not failed");
                false
            }
        }
    }
}

fn join<T>(threads: Vec<thread::JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Threads that append and wait. Every other record is to be synced.
fn appenders(bench: &Arc<Bench>, threads: u64, turns: u64) -> Vec<thread::JoinHandle<bool>> {
    let appender = |number: u64| {
        let bench = Arc::clone(bench);
        thread::spawn(move || {
            (0..turns).all(|turn| {
                let until = if (number + turn).is_multiple_of(2) { Until::Synced } else { Until::Written };
                bench.append_and_wait(1 + number * turns + turn, until)
            })
        })
    };
    (0..threads).map(appender).collect()
}

/// Four threads append, to one batch or to a batch for each record.
fn many_appenders(limit_bytes: u64) {
    let bench = Bench::new(limit_bytes, Failing::Nothing);
    assert!(join(appenders(&bench, 4, 2)).into_iter().all(|acknowledged| acknowledged));
    assert_eq!(bench.disk.contents.lock().written.len(), 8, "each record is written once");
}

/// A thread writes a record without a sync and then syncs, while others append.
fn sync_among_appenders() {
    let bench = Bench::new(MANY_RECORDS_BYTES, Failing::Nothing);
    let others = appenders(&bench, 2, 1);
    let syncing = {
        let bench = Arc::clone(&bench);
        thread::spawn(move || {
            let ticket = bench.append(100, Until::Written).unwrap();
            let placement = bench.commit.wait(&ticket, &bench.disk).unwrap();
            bench.commit.sync(&bench.disk).unwrap();
            bench.disk.check(Version::from_u64(100), Until::Synced, placement);
        })
    };
    join(others);
    syncing.join().unwrap();
}

/// The disk fails at some point. A thread that saw the failure is refused from then on; every acknowledgement is true.
fn failing_disk(limit_bytes: u64, failing: Failing) {
    let bench = Bench::new(limit_bytes, failing);
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let bench = Arc::clone(&bench);
            thread::spawn(move || {
                let work = || {
                    let until = if number == 1 { Until::Written } else { Until::Synced };
                    if !bench.append_and_wait(2 * number + 1, until) {
                        assert!(!bench.append_and_wait(2 * number + 2, until), "a refusal is permanent");
                    }
                };
                if !matches!(failing, Failing::Leader(_) | Failing::Syncer(_)) {
                    work();
                    return false;
                }
                // The thread that leads unwinds. All others must still return.
                catch_unwind(AssertUnwindSafe(work)).is_err()
            })
        })
        .collect();
    let panicked = join(threads).into_iter().filter(|panicked| *panicked).count();
    let unwinds = matches!(failing, Failing::Leader(_) | Failing::Syncer(_));
    let expected = usize::from(unwinds && bench.disk.has_failed());
    assert_eq!(panicked, expected, "only the leader unwinds");
    assert_eq!(bench.commit.poison().is_some(), bench.disk.has_failed());
}

/// The writer poisons the queue, as it does when it cannot write a header or a mark, while frames are being written.
fn poisoned_from_outside() {
    let bench = Bench::new(ONE_RECORD_BYTES, Failing::Nothing);
    let appending = {
        let bench = Arc::clone(&bench);
        move |version| {
            let bench = Arc::clone(&bench);
            thread::spawn(move || {
                let Ok(ticket) = bench.append(version, Until::Synced) else { return };
                if let Ok(placement) = bench.commit.wait(&ticket, &bench.disk) {
                    bench.disk.check(Version::from_u64(version), Until::Synced, placement);
                }
            })
        }
    };
    let threads = (1..=3).map(appending).collect();
    bench.commit.poison_with(io::Error::other("planted"));
    assert!(bench.append(9, Until::Written).is_err(), "appended after the queue was poisoned");
    join(threads);
}

/// A thread appends and drops its ticket without waiting. All others must still be acknowledged.
fn abandoned_ticket(limit_bytes: u64) {
    let bench = Bench::new(limit_bytes, Failing::Nothing);
    let leaving = {
        let bench = Arc::clone(&bench);
        thread::spawn(move || drop(bench.append(100, Until::Synced).unwrap()))
    };
    assert!(join(appenders(&bench, 3, 1)).into_iter().all(|acknowledged| acknowledged));
    leaving.join().unwrap();
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
