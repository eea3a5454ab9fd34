//! What a caller waits for who does not wait for ever: whoever is at the disk with a key goes on only when the others
//! have been answered, so that one who waited for it would be a deadlock.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::thread;

use super::{DEADLOCK, THOROUGH, WHOLE_STORE, explore, must_find_planted};
use crate::flights::Flights;
use crate::log::commit::{Commit, CommitSink, PendingFrame, Placement};
use crate::planted::Bug;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, Patience, yield_now};
use crate::{Begin, Fingerprint, ManualClock, Options, Status, Store};

const HASH: u128 = 7;
const START_MS: u64 = 1_700_000_000_000;

/// A thread at the disk with a key, until two others have been answered: one without patience, one with a deadline.
fn at_the_disk() {
    let flights = Arc::new(Flights::new());
    let answered = Arc::new((Mutex::new(0), Condvar::default()));
    let callers: Vec<_> = [Patience::None, Patience::Until(Instant::now())]
        .into_iter()
        .map(|patience| {
            let (flights, answered) = (Arc::clone(&flights), Arc::clone(&answered));
            thread::spawn(move || {
                drop(flights.enter_within(HASH, patience));
                *answered.0.lock() += 1;
                answered.1.notify_all();
            })
        })
        .collect();
    let at_disk = flights.enter(HASH);
    at_disk.note_disk();
    let mut count = answered.0.lock();
    while *count < callers.len() {
        answered.1.wait(&mut count);
    }
    drop(count);
    drop(at_disk);
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(flights.is_empty(), "a flight that is over leaves nothing behind");
}

/// Threads with and without a deadline enter and leave, one of them by way of the disk; whoever has time gets in.
fn in_and_out() {
    let flights = Arc::new(Flights::new());
    let callers: Vec<_> = [Patience::None, Patience::Until(Instant::now()), Patience::Endless]
        .into_iter()
        .map(|patience| {
            let flights = Arc::clone(&flights);
            thread::spawn(move || match flights.enter_within(HASH, patience) {
                Some(guard) => guard.note_disk(),
                None => assert_ne!(patience, Patience::Endless),
            })
        })
        .collect();
    drop(flights.enter(HASH));
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(flights.is_empty(), "a flight that is over leaves nothing behind");
}

/// A medium of which only the syncs matter.
#[derive(Debug, Default)]
struct Disk {
    is_synced: AtomicBool,
}

impl CommitSink for Disk {
    fn write(&self, _batch: &mut PendingFrame) -> io::Result<Placement> {
        Ok(Placement::default())
    }

    fn sync(&self) -> io::Result<()> {
        yield_now();
        self.is_synced.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Three want the same to be durable, and one of them syncs.
fn sync_together() {
    let commit = Arc::new((Commit::new(300), Disk::default()));
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let commit = Arc::clone(&commit);
            thread::spawn(move || {
                let (commit, disk) = &*commit;
                let is_durable = || disk.is_synced.load(Ordering::SeqCst);
                assert!(commit.sync_within(is_durable, Patience::Endless, disk).unwrap());
                assert!(is_durable());
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
}

fn store(clock: &ManualClock) -> Store {
    Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .manual_clock(clock.clone())
        .open_in_memory()
        .unwrap()
}

/// One begins and completes while another looks: the states come in their order, and none of them is a doubt.
fn look_and_complete() {
    let store = store(&ManualClock::new(START_MS));
    let performing = {
        let store = store.clone();
        thread::spawn(move || {
            let Begin::Acquired(mut lease) = store.begin("a", Fingerprint::NONE).unwrap() else { panic!() };
            lease.complete(b"done").unwrap();
        })
    };
    let order = |status| match status {
        Status::Absent => 0,
        Status::InProgress => 1,
        Status::Completed => 2,
        status => panic!("seen {status:?}, though nobody dropped a lease"),
    };
    let mut last = 0;
    for _ in 0..3 {
        let seen = order(store.get("a").unwrap().status());
        assert!(seen >= last, "a state came back");
        last = seen;
    }
    performing.join().unwrap();
    assert_eq!(store.get("a").unwrap().status(), Status::Completed);
}

/// A clock that is moved by hand passes the deadline of a lease that somebody waits for.
fn move_clock_and_wait() {
    let clock = ManualClock::new(START_MS);
    let store = store(&clock);
    let lease = store.operation("a").lease(Duration::from_secs(1)).begin().unwrap();
    let moving = thread::spawn(move || clock.advance(Duration::from_secs(1)));
    let taken = store.operation("a").wait(Duration::MAX).begin().unwrap();
    assert!(matches!(taken, Begin::InDoubt(_)), "{taken:?}");
    moving.join().unwrap();
    drop(lease);
}

#[test]
fn nobody_with_a_deadline_waits_for_the_disk_of_another() {
    explore("waits, at the disk", THOROUGH, at_the_disk);
    explore("waits, in and out", THOROUGH, in_and_out);
}

#[test]
fn one_sync_is_for_all_who_wait_for_it() {
    explore("waits, sync/sync/sync", THOROUGH, sync_together);
}

#[test]
fn a_look_sees_no_doubt_where_there_is_none() {
    explore("waits, look/complete", WHOLE_STORE, look_and_complete);
}

#[test]
fn a_clock_that_is_moved_wakes_who_waits() {
    explore("waits, move clock/wait", WHOLE_STORE, move_clock_and_wait);
}

#[test]
fn finds_flight_wait_unbounded() {
    must_find_planted(Bug::FlightWaitUnbounded, THOROUGH, &[DEADLOCK], at_the_disk);
}

#[test]
fn finds_disk_not_told() {
    must_find_planted(Bug::ImpatientNotWoken, THOROUGH, &[DEADLOCK], at_the_disk);
}

#[test]
fn finds_sync_end_not_told() {
    must_find_planted(Bug::SyncWaitersNotWoken, THOROUGH, &[DEADLOCK], sync_together);
}

#[test]
fn finds_lease_after_index() {
    must_find_planted(Bug::LeaseAfterIndex, WHOLE_STORE, &["nobody dropped a lease"], look_and_complete);
}

#[test]
fn finds_looked_once() {
    must_find_planted(Bug::IndexReadOnce, WHOLE_STORE, &["nobody dropped a lease"], look_and_complete);
}

#[test]
fn finds_clock_move_ignored_by_whoever_is_about_to_wait() {
    must_find_planted(Bug::SeenClaimNotRechecked, WHOLE_STORE, &[DEADLOCK], move_clock_and_wait);
}
