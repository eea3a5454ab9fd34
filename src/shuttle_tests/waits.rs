//! Checks what a caller may wait for if it has a deadline or does not wait at all.
//!
//! If a wait must not depend on another thread, the scenario lets that thread continue only after the waiter has returned. A
//! waiter that depends on it then causes a deadlock.

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

/// A thread holds a key's flight (the per-key lock) and does disk I/O until two other callers have returned: one that does not
/// wait, and one with a deadline.
fn wait_during_disk_io() {
    let flights = Arc::new(Flights::new());
    let returned = Arc::new((Mutex::new(0), Condvar::default()));
    let callers: Vec<_> = [Patience::None, Patience::Until(Instant::now())]
        .into_iter()
        .map(|patience| {
            let (flights, returned) = (Arc::clone(&flights), Arc::clone(&returned));
            thread::spawn(move || {
                drop(flights.enter_within(HASH, patience));
                *returned.0.lock() += 1;
                returned.1.notify_all();
            })
        })
        .collect();
    let at_disk = flights.enter(HASH);
    at_disk.note_disk();
    let mut count = returned.0.lock();
    while *count < callers.len() {
        returned.1.wait(&mut count);
    }
    drop(count);
    drop(at_disk);
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(flights.is_empty(), "a flight was left behind");
}

/// Three threads enter a flight, start disk I/O and leave: one that does not wait, one with a deadline, and one without a
/// limit, which must be able to enter.
fn enter_and_leave() {
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
    assert!(flights.is_empty(), "a flight was left behind");
}

/// A disk that records only whether it was synced.
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

/// Three threads wait for the same sync, which one of them does.
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

/// One thread begins and completes while another reads the state. The reader must see the states in order, and never a doubt.
fn read_and_complete() {
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
        status => panic!("saw {status:?}, although no lease was dropped"),
    };
    let mut last = 0;
    for _ in 0..3 {
        let seen = order(store.get("a").unwrap().status());
        assert!(seen >= last, "the reader saw an earlier state again");
        last = seen;
    }
    performing.join().unwrap();
    assert_eq!(store.get("a").unwrap().status(), Status::Completed);
}

/// A manual clock is moved past the deadline of a lease for which a thread is waiting.
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
fn a_wait_with_a_limit_does_not_depend_on_disk_io() {
    explore("waits, wait/disk I/O", THOROUGH, wait_during_disk_io);
    explore("waits, enter/leave", THOROUGH, enter_and_leave);
}

#[test]
fn one_sync_serves_all_that_wait_for_it() {
    explore("waits, sync/sync/sync", THOROUGH, sync_together);
}

#[test]
fn a_reader_never_sees_a_doubt_of_a_live_lease() {
    explore("waits, read/complete", WHOLE_STORE, read_and_complete);
}

#[test]
fn moving_a_manual_clock_wakes_waiters() {
    explore("waits, move clock/wait", WHOLE_STORE, move_clock_and_wait);
}

#[test]
fn finds_flight_wait_unbounded() {
    must_find_planted(Bug::FlightWaitUnbounded, THOROUGH, &[DEADLOCK], wait_during_disk_io);
}

#[test]
fn finds_impatient_not_woken() {
    must_find_planted(Bug::ImpatientNotWoken, THOROUGH, &[DEADLOCK], wait_during_disk_io);
}

#[test]
fn finds_sync_waiters_not_woken() {
    must_find_planted(Bug::SyncWaitersNotWoken, THOROUGH, &[DEADLOCK], sync_together);
}

#[test]
fn finds_lease_after_index() {
    must_find_planted(Bug::LeaseAfterIndex, WHOLE_STORE, &["no lease was dropped"], read_and_complete);
}

#[test]
fn finds_index_read_once() {
    must_find_planted(Bug::IndexReadOnce, WHOLE_STORE, &["no lease was dropped"], read_and_complete);
}

#[test]
fn finds_seen_claim_not_rechecked_after_a_clock_move() {
    must_find_planted(Bug::SeenClaimNotRechecked, WHOLE_STORE, &[DEADLOCK], move_clock_and_wait);
}
