//! Threads that interleave on a disk that loses power under them: what any of them was told is there afterwards,
//! whatever of the rest the disk kept.

use std::sync::Arc;

use parking_lot::Mutex;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::{Effort, explore, must_find_planted};
use crate::planted::Bug;
use crate::storage::simulated::{DiskFault, SimulatedDisk};
use crate::{Begin, Durability, Fingerprint, KeyState, ManualClock, Options, Recorded, Status, Store};

const EFFORT: Effort = Effort(3_000);
/// Images that one crash may have left, of each of which a store is opened.
const IMAGES: usize = 3;
/// More than the disk is asked for after the threads have begun, so that some histories meet no power loss.
const STEPS: u64 = 25;

fn open(disk: &SimulatedDisk) -> Store {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().segment_size(64 << 10).max_result(1 << 10).manual_clock(clock);
    options.open_simulated(disk).unwrap_or_else(|error| panic!("a crash made it unreadable: {error}"))
}

/// A store over each of some images that a crash may have left: all that is open lost, all of it kept, and some.
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

/// The same for histories in which one call fails: they go on, and compact twice.
const STEPS_OF_FAILURES: u64 = 40;

/// How a key may stand after a crash: each state that its one thread brought about, in order, from the last one
/// that it was told of to the last one that it asked for.
#[derive(Debug, Clone, Default)]
struct Course {
    states: Vec<Option<&'static [u8]>>,
    told: usize,
}

impl Course {
    /// Asks for the next state and says whether it was told that it is so.
    fn go(&mut self, state: Option<&'static [u8]>, change: impl FnOnce() -> crate::Result<()>) -> bool {
        self.states.push(state);
        let done = change().is_ok();
        if done {
            self.told = self.states.len();
        }
        done
    }

    fn check(&self, key: &str, snapshot: &KeyState) {
        let seen = match snapshot.status() {
            Status::Absent => None,
            Status::Completed => snapshot.result(),
            other => panic!("{key} is {other:?} after a crash"),
        };
        // Before the first of them it was absent.
        let allowed = std::iter::once(&None).chain(&self.states).skip(self.told).any(|state| *state == seen);
        assert!(allowed, "{key} is {seen:?} after a crash; of {:?} it was told {}", self.states, self.told);
    }
}

/// What becomes known of a key that two threads want.
#[derive(Debug, Clone, Default)]
struct Contested {
    begun: bool,
    result: Option<&'static [u8]>,
    replayed: Option<Vec<u8>>,
}

impl Contested {
    fn completed(&mut self, result: &'static [u8]) {
        assert!(self.result.is_none(), "performed twice: {result:?} and {:?}", self.result);
        self.result = Some(result);
    }

    /// Somebody was given the result of another thread, who may not have been told yet.
    fn replayed(&mut self, result: &[u8]) {
        assert_eq!(self.result.unwrap_or(result), result, "another result");
        self.replayed = Some(result.to_vec());
    }

    fn check(&self, snapshot: &KeyState) {
        match (snapshot.status(), self.result.or(self.replayed.as_deref())) {
            (Status::Completed, Some(result)) => {
                assert_eq!(snapshot.result(), Some(result), "another result");
            }
            (Status::Completed, None) => {
                let result = snapshot.result();
                assert!([Some(&b"leased"[..]), Some(b"recorded")].contains(&result), "a result of nobody's");
            }
            (status, Some(_)) => panic!("completed before the crash, {status:?} after it"),
            (Status::InDoubt, None) => {}
            (status, None) => assert!(status == Status::Absent && !self.begun, "begun, and then {status:?}"),
        }
    }
}

/// Two threads want one key, and have others of their own; a third writes without syncing and then syncs, and moves
/// everything from segment to segment. Somewhere in it power is lost.
fn changes_and_power_loss() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    store.record("kept", Fingerprint::NONE, b"kept").unwrap();
    disk.fault_at(disk.steps() + thread_rng().gen_range(0..STEPS), DiskFault::PowerLoss);
    let contested = Arc::new(Mutex::new(Contested::default()));

    let leasing = thread::spawn({
        let (store, contested) = (store.clone(), Arc::clone(&contested));
        move || {
            let mut own = Course::default();
            own.go(Some(b"1"), || store.record("leasing", Fingerprint::NONE, b"1").map(drop));
            if let Ok(Begin::Acquired(mut lease)) = store.begin("contested", Fingerprint::NONE) {
                contested.lock().begun = true;
                if lease.complete(b"leased").is_ok() {
                    contested.lock().completed(b"leased");
                }
            }
            own
        }
    });
    let recording = thread::spawn({
        let (store, contested) = (store.clone(), Arc::clone(&contested));
        move || {
            // Written by another thread and not synced: whoever is told of it may rely on it.
            let look = || store.get("moving").is_ok_and(|moving| moving.status() == Status::Completed);
            let told = look() | look() | look();
            match store.record("contested", Fingerprint::NONE, b"recorded") {
                Ok(Recorded::Done(_)) => contested.lock().completed(b"recorded"),
                Ok(Recorded::AlreadyDone(done)) => contested.lock().replayed(done.result()),
                Err(_) => {}
            }
            let mut own = Course::default();
            let _ = own.go(Some(b"1"), || store.record("recording", Fingerprint::NONE, b"1").map(drop))
                && own.go(None, || store.forget("recording").map(drop))
                && own.go(Some(b"2"), || store.record("recording", Fingerprint::NONE, b"2").map(drop));
            (own, told)
        }
    });
    let moving = thread::spawn({
        let store = store.clone();
        move || {
            let mut own = Course::default();
            let buffered = store.operation("moving").durability(Durability::Buffered).record(b"1");
            own.states.push(Some(b"1"));
            let _ = store.compact();
            if buffered.is_ok() && store.sync().is_ok() {
                own.told = 1;
            }
            own
        }
    });
    let leasing = leasing.join().unwrap();
    let (recording, told) = recording.join().unwrap();
    let mut moving = moving.join().unwrap();
    moving.told = moving.told.max(usize::from(told));
    drop(store);

    let contested = contested.lock().clone();
    for store in after_a_crash(&disk) {
        let look = |key| store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(look("kept").result(), Some(&b"kept"[..]), "lost");
        contested.check(&look("contested"));
        for (key, course) in [("leasing", &leasing), ("recording", &recording), ("moving", &moving)] {
            course.check(key, &look(key));
        }
    }
}

/// One thread writes without syncing while another syncs what it writes. Somewhere in it power is lost.
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
    let told = KEYS.map(|key| store.record(key, Fingerprint::NONE, b"synced").is_ok());
    writing.join().unwrap();
    drop(store);
    for store in after_a_crash(&disk) {
        for (key, told) in KEYS.iter().zip(told) {
            let snapshot = store.get(*key).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert!(!told || snapshot.result() == Some(b"synced"), "{key} is {snapshot:?} after a crash");
        }
    }
}

/// One call of the disk fails, once, while other threads are inside: two record, one of them without syncing, and a third
/// moves everything from segment to segment and closes segments on the way. What any of them was told must be there when the
/// file is opened again, by the next process or after a power loss, and it must open.
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
            let mut own = Course::default();
            let record = |result| store.operation(key).durability(durability).record(result).map(drop);
            let _ = own.go(Some(b"1"), || record(b"1"))
                && own.go(None, || store.forget(key).map(drop))
                && own.go(Some(b"2"), || record(b"2"));
            own
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

    let check = |store: &Store, buffered: &Course| {
        let look = |key| store.get(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(look("kept").result(), Some(&b"kept"[..]), "lost");
        assert!(look("dead").is_absent(), "forgotten, and after a crash it is back");
        synced.check("synced", &look("synced"));
        buffered.check("buffered", &look("buffered"));
    };
    // A power loss may take what was only written; a forget of the same key syncs what is before it.
    let lost = Course { told: if buffered.told >= 2 { 2 } else { 0 }, ..buffered.clone() };
    for store in after_a_crash(&disk) {
        check(&store, &lost);
    }
    disk.heal();
    let next = open(&disk);
    check(&next, &buffered);
    next.record("after", Fingerprint::NONE, b"after")
        .unwrap_or_else(|error| panic!("it does not go on: {error}"));
    drop(next);
    for store in after_a_crash(&disk) {
        check(&store, &buffered);
        assert_eq!(store.get("after").unwrap().result(), Some(&b"after"[..]), "lost");
    }
}

#[test]
fn a_call_that_fails_while_others_are_inside_leaves_a_file_that_opens_with_all_that_was_acknowledged() {
    explore("store, one failure among threads", EFFORT, changes_and_one_failure);
}

#[test]
fn a_crash_takes_nothing_that_was_synced_while_another_thread_wrote() {
    explore("store, writes during syncs, power loss", EFFORT, writes_during_syncs_and_power_loss);
}

#[test]
fn a_crash_among_threads_takes_nothing_from_any_of_them() {
    explore("store, power loss among threads", EFFORT, changes_and_power_loss);
}

/// How a loss shows.
const LOST: [&str; 4] = ["after a crash", "after it", "and then Absent", "lost"];

#[test]
fn finds_in_a_crash_acknowledged_before_sync() {
    must_find_planted(Bug::AcknowledgedBeforeSync, EFFORT, &LOST, changes_and_power_loss);
}

#[test]
fn finds_in_a_crash_a_sync_that_covers_too_much() {
    let expected = [&LOST[..], &["unreadable"]].concat();
    must_find_planted(Bug::SyncCoversTooMuch, EFFORT, &expected, writes_during_syncs_and_power_loss);
}

#[test]
fn finds_in_a_failure_a_half_done_writer_that_is_used() {
    let expected = ["unreadable", "free slot", "lost"];
    must_find_planted(Bug::FailedWriterReused, EFFORT, &expected, changes_and_one_failure);
}

#[test]
fn finds_in_a_crash_sync_skipped() {
    must_find_planted(Bug::SyncSkipped, EFFORT, &LOST, changes_and_power_loss);
}
