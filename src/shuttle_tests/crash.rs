//! Checks interleaved threads on a disk that loses power or fails: everything that was acknowledged to any of them survives.

use std::sync::Arc;

use parking_lot::Mutex;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::{Effort, explore, must_find_planted};
use crate::planted::Bug;
use crate::storage::simulated::{DiskFault, SimulatedDisk};
use crate::{Begin, Durability, Fingerprint, KeyState, ManualClock, Options, Recorded, Status, Store};

const EFFORT: Effort = Effort(3_000);
/// The number of disk images to open after each crash.
const IMAGES: usize = 3;
/// The power loss is at a random step below this number. The number exceeds the steps that the threads make, so that some
/// interleavings have no power loss.
const STEPS: u64 = 25;
/// As [`STEPS`], for a call that fails once. The threads continue after the failure, and compact twice, so they make more
/// steps.
const STEPS_OF_FAILURES: u64 = 40;

fn open(disk: &SimulatedDisk) -> Store {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().segment_size(64 << 10).max_result(1 << 10).manual_clock(clock);
    options.open_simulated(disk).unwrap_or_else(|error| panic!("a crash made it unreadable: {error}"))
}

/// Opens a store on three disk images that a crash may leave: one without any unsynced write, one with all of them, and one
/// with a random part of them.
fn after_a_crash(disk: &SimulatedDisk) -> impl Iterator<Item = Store> {
    (0..IMAGES).map(|image| {
        let image = disk.crash(|of| match image {
            0 => 0,
            1 => of - 1,
            _ => thread_rng().gen_range(0..of),
        });
        open(&image)
    })
}

/// The history of a key that one thread changes. After a crash, the key may be in any state from the last acknowledged one
/// to the last requested one.
#[derive(Debug, Clone, Default)]
struct History {
    /// Each requested state, in order: the result of the key, or `None` if it is absent.
    states: Vec<Option<&'static [u8]>>,
    /// The number of states that were acknowledged.
    acknowledged: usize,
}

impl History {
    /// Requests the next state by `change`. Returns whether it was acknowledged.
    fn request(&mut self, state: Option<&'static [u8]>, change: impl FnOnce() -> crate::Result<()>) -> bool {
        self.states.push(state);
        let is_acknowledged = change().is_ok();
        if is_acknowledged {
            self.acknowledged = self.states.len();
        }
        is_acknowledged
    }

    fn check(&self, key: &str, snapshot: &KeyState) {
        let seen = match snapshot.status() {
            Status::Absent => None,
            Status::Completed => snapshot.result(),
            other => panic!("{key} is {other:?} after a crash"),
        };
        // Before the first request the key was absent.
        let all = std::iter::once(&None).chain(&self.states);
        let allowed = all.skip(self.acknowledged).any(|state| *state == seen);
        let (states, acknowledged) = (&self.states, self.acknowledged);
        assert!(allowed, "{key} is {seen:?} after a crash; {acknowledged} of {states:?} were acknowledged");
    }
}

/// What was acknowledged to two threads that compete for the same key.
#[derive(Debug, Clone, Default)]
struct Contested {
    begun: bool,
    /// The result that a thread recorded.
    result: Option<&'static [u8]>,
    /// The result that was replayed to a thread.
    replayed: Option<Vec<u8>>,
}

impl Contested {
    fn completed(&mut self, result: &'static [u8]) {
        assert!(self.result.is_none(), "completed twice: {result:?} and {:?}", self.result);
        self.result = Some(result);
    }

    /// Notes that the result of one thread was replayed to the other, possibly before it was acknowledged to the first.
    fn replayed(&mut self, result: &[u8]) {
        assert_eq!(self.result.unwrap_or(result), result, "a different result was replayed");
        self.replayed = Some(result.to_vec());
    }

    fn check(&self, snapshot: &KeyState) {
        match (snapshot.status(), self.result.or(self.replayed.as_deref())) {
            (Status::Completed, Some(result)) => {
                assert_eq!(snapshot.result(), Some(result), "the key has a different result");
            }
            (Status::Completed, None) => {
                let result = snapshot.result();
                assert!(
                    [Some(&b"leased"[..]), Some(b"recorded")].contains(&result),
                    "a result that no thread recorded"
                );
            }
            (status, Some(_)) => panic!("completed before the crash, {status:?} after it"),
            (Status::InDoubt, None) => {}
            (status, None) => assert!(status == Status::Absent && !self.begun, "begun, and then {status:?}"),
        }
    }
}

/// Two threads compete for the same key, and each also changes a key that no other thread changes. A third thread writes
/// without a sync, compacts and then syncs. Power is lost at a random step.
fn changes_and_power_loss() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    store.record("kept", Fingerprint::NONE, b"kept").unwrap();
    disk.fault_at(disk.steps() + thread_rng().gen_range(0..STEPS), DiskFault::PowerLoss);
    let contested = Arc::new(Mutex::new(Contested::default()));

    let leasing = thread::spawn({
        let (store, contested) = (store.clone(), Arc::clone(&contested));
        move || {
            let mut history = History::default();
            history.request(Some(b"1"), || store.record("leasing", Fingerprint::NONE, b"1").map(drop));
            if let Ok(Begin::Acquired(mut lease)) = store.begin("contested", Fingerprint::NONE) {
                contested.lock().begun = true;
                if lease.complete(b"leased").is_ok() {
                    contested.lock().completed(b"leased");
                }
            }
            history
        }
    });
    let recording = thread::spawn({
        let (store, contested) = (store.clone(), Arc::clone(&contested));
        move || {
            // Another thread writes this record without a sync. But once a `get` has returned the record, it must survive.
            let was_read = || store.get("moving").is_ok_and(|moving| moving.status() == Status::Completed);
            let was_seen = was_read() | was_read() | was_read();
            match store.record("contested", Fingerprint::NONE, b"recorded") {
                Ok(Recorded::Done(_)) => contested.lock().completed(b"recorded"),
                Ok(Recorded::AlreadyDone(done)) => contested.lock().replayed(done.result()),
                Err(_) => {}
            }
            let mut history = History::default();
            let _ = history
                .request(Some(b"1"), || store.record("recording", Fingerprint::NONE, b"1").map(drop))
                && history.request(None, || store.forget("recording").map(drop))
                && history
                    .request(Some(b"2"), || store.record("recording", Fingerprint::NONE, b"2").map(drop));
            (history, was_seen)
        }
    });
    let moving = thread::spawn({
        let store = store.clone();
        move || {
            let mut history = History::default();
            let buffered = store.operation("moving").durability(Durability::Buffered).record(b"1");
            history.states.push(Some(b"1"));
            let _ = store.compact();
            if buffered.is_ok() && store.sync().is_ok() {
                history.acknowledged = 1;
            }
            history
        }
    });
    let leasing = leasing.join().unwrap();
    let (recording, was_seen) = recording.join().unwrap();
    let mut moving = moving.join().unwrap();
    moving.acknowledged = moving.acknowledged.max(usize::from(was_seen));
    drop(store);

    let contested = contested.lock().clone();
    for store in after_a_crash(&disk) {
        let read = |key| store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(read("kept").result(), Some(&b"kept"[..]), "lost");
        contested.check(&read("contested"));
        for (key, history) in [("leasing", &leasing), ("recording", &recording), ("moving", &moving)] {
            history.check(key, &read(key));
        }
    }
}

/// One thread writes without syncing, while another syncs each of its records. Power is lost at a random step.
fn writes_during_syncs_and_power_loss() {
    const KEYS: [&str; 3] = ["1", "2", "3"];
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    disk.fault_at(disk.steps() + thread_rng().gen_range(0..STEPS), DiskFault::PowerLoss);
    let writing = thread::spawn({
        let store = store.clone();
        move || {
            for key in ["a", "b", "c"] {
                let _ = store.operation(key).durability(Durability::Buffered).record(b"written");
            }
        }
    });
    let acknowledged = KEYS.map(|key| store.record(key, Fingerprint::NONE, b"synced").is_ok());
    writing.join().unwrap();
    drop(store);
    for store in after_a_crash(&disk) {
        for (key, acknowledged) in KEYS.iter().zip(acknowledged) {
            let seen = store.get(*key).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert!(!acknowledged || seen.result() == Some(b"synced"), "{key} is {seen:?} after a crash");
        }
    }
}

/// One call of the disk fails once, while three threads are using the store. Two of them record, one without a sync, and the
/// third compacts, which also closes segments. The file must then open with everything that was acknowledged, in the next
/// process and after a power loss.
fn changes_and_one_failure() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    store.record("kept", Fingerprint::NONE, b"kept").unwrap();
    store.record("dead", Fingerprint::NONE, &[1; 500]).unwrap();
    store.forget("dead").unwrap();
    disk.fault_at(disk.steps() + thread_rng().gen_range(0..STEPS_OF_FAILURES), DiskFault::Error);

    let recording = |key: &'static str, durability: Durability| {
        let store = store.clone();
        thread::spawn(move || {
            let mut history = History::default();
            let record = |result| store.operation(key).durability(durability).record(result).map(drop);
            let _ = history.request(Some(b"1"), || record(b"1"))
                && history.request(None, || store.forget(key).map(drop))
                && history.request(Some(b"2"), || record(b"2"));
            history
        })
    };
    let synced = recording("synced", Durability::Sync);
    let buffered = recording("buffered", Durability::Buffered);
    let compacting = thread::spawn({
        let store = store.clone();
        move || drop(store.compact().and_then(|_| store.compact()))
    });
    let (synced, buffered) = (synced.join().unwrap(), buffered.join().unwrap());
    compacting.join().unwrap();
    drop(store);

    let check = |store: &Store, buffered: &History| {
        let read = |key| store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(read("kept").result(), Some(&b"kept"[..]), "lost");
        assert!(read("dead").is_absent(), "a forgotten key is back after a crash");
        synced.check("synced", &read("synced"));
        buffered.check("buffered", &read("buffered"));
    };
    // A power loss may lose records that were written but not synced. The forget syncs its own record and all earlier ones.
    let synced_states = if buffered.acknowledged >= 2 { 2 } else { 0 };
    let after_power_loss = History { acknowledged: synced_states, ..buffered.clone() };
    for store in after_a_crash(&disk) {
        check(&store, &after_power_loss);
    }
    disk.heal();
    let next = open(&disk);
    check(&next, &buffered);
    next.record("after", Fingerprint::NONE, b"after")
        .unwrap_or_else(|error| panic!("the next process cannot record: {error}"));
    drop(next);
    for store in after_a_crash(&disk) {
        check(&store, &buffered);
        assert_eq!(store.get("after").unwrap().result(), Some(&b"after"[..]), "lost");
    }
}

#[test]
fn after_a_failed_call_the_file_opens_with_every_acknowledged_record() {
    explore("store, one failure among threads", EFFORT, changes_and_one_failure);
}

#[test]
fn a_crash_loses_no_record_synced_while_another_thread_wrote() {
    explore("store, writes during syncs, power loss", EFFORT, writes_during_syncs_and_power_loss);
}

#[test]
fn a_crash_loses_no_acknowledged_record_of_any_thread() {
    explore("store, power loss among threads", EFFORT, changes_and_power_loss);
}

/// The assertion messages that report a lost record.
const LOST: [&str; 4] = ["after a crash", "after it", "and then Absent", "lost"];

#[test]
fn finds_in_a_crash_acknowledged_before_sync() {
    must_find_planted(Bug::AcknowledgedBeforeSync, EFFORT, &LOST, changes_and_power_loss);
}

#[test]
fn finds_in_a_crash_sync_covers_too_much() {
    let expected = [&LOST[..], &["unreadable"]].concat();
    must_find_planted(Bug::SyncCoversTooMuch, EFFORT, &expected, writes_during_syncs_and_power_loss);
}

#[test]
fn finds_after_a_failure_failed_writer_reused() {
    let expected = ["unreadable", "free slot", "lost"];
    must_find_planted(Bug::FailedWriterReused, EFFORT, &expected, changes_and_one_failure);
}

#[test]
fn finds_in_a_crash_sync_skipped() {
    must_find_planted(Bug::SyncSkipped, EFFORT, &LOST, changes_and_power_loss);
}
