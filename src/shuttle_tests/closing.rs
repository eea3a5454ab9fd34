//! Checks that a store can be closed while calls of every kind are running, waiting or starting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::thread;

use super::{DEADLOCK, Effort, WHOLE_STORE, explore, must_find_planted};
use crate::format::record::Value;
use crate::planted::Bug;
use crate::storage::simulated::SimulatedDisk;
use crate::{Begin, Durability, Error, Fingerprint, Key, ManualClock, Options, Recorded, Store};

const NONE: Fingerprint = Fingerprint::NONE;
/// The effort for a scenario with a long compaction in every interleaving.
const WITH_COMPACTION: Effort = Effort(300);

fn options() -> Options {
    let clock = ManualClock::new(1_700_000_000_000);
    Options::new()
        .segment_size(64 << 10)
        .max_result(12_000)
        .durability(Durability::Buffered)
        .manual_clock(clock)
}

fn open(disk: &SimulatedDisk) -> Store {
    options().open_simulated(disk).unwrap_or_else(|error| panic!("the store does not open: {error}"))
}

fn spawn<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || work(&store))
}

/// Records without a sync. Returns true if the record was acknowledged, and false if the store was closed.
fn record(store: &Store, key: &str) -> bool {
    match store.record(key, NONE, b"r") {
        Ok(Recorded::Done(_)) => true,
        Err(Error::Closed) => false,
        other => panic!("{key}: {other:?}"),
    }
}

/// Begins and completes an operation. No close may succeed in between, because a lease that was acquired must be able to
/// complete. Returns false if the store was closed.
fn perform(store: &Store, key: &str) -> bool {
    match store.begin(key, NONE) {
        Ok(Begin::Acquired(mut lease)) => {
            lease
                .complete(b"r")
                .unwrap_or_else(|error| panic!("{key}: acquired a lease and cannot complete it: {error}"));
            true
        }
        Err(Error::Closed) => false,
        other => panic!("{key}: {other:?}"),
    }
}

/// Closes the store as soon as no lease is alive. Returns whether this call closed it.
fn close(store: &Store) -> bool {
    loop {
        match store.close() {
            Ok(()) => return true,
            Err(Error::Closed) => return false,
            Err(Error::LeasesAlive { count }) => assert!(count > 0),
            Err(error) => panic!("{error}"),
        }
        thread::yield_now();
    }
}

/// Checks that nothing was written after the close, and that every acknowledged record survives a power loss after it.
fn check(disk: &SimulatedDisk, acknowledged: &[&str]) {
    assert_eq!(disk.touched_unlocked(), 0, "the file was read or written after it was unlocked");
    assert_eq!(disk.undecided(), 0, "something was written after the close mark");
    let store = open(&disk.crash(|_| 0));
    for key in acknowledged {
        let seen = store.get(*key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(seen.is_completed(), "{key} was acknowledged and is {:?} after the close", seen.status());
    }
}

/// Two threads change the store while a third closes it.
fn close_among_changes() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    let recording = spawn(&store, |store| record(store, "a"));
    let performing = spawn(&store, |store| perform(store, "b"));
    assert!(close(&store));
    let mut acknowledged = Vec::new();
    acknowledged.extend(recording.join().unwrap().then_some("a"));
    acknowledged.extend(performing.join().unwrap().then_some("b"));
    assert!(matches!(store.record("c", NONE, b""), Err(Error::Closed)));
    check(&disk, &acknowledged);
}

/// Two threads close at once, and exactly one of them succeeds. A third records meanwhile, and must not wait for ever.
fn close_and_close() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    let closing = spawn(&store, close);
    let recording = spawn(&store, |store| record(store, "a"));
    let closed_here = close(&store);
    assert!(closed_here != closing.join().unwrap(), "exactly one of two threads must close the store");
    let acknowledged = if recording.join().unwrap() { &["a"][..] } else { &[] };
    check(&disk, acknowledged);
}

/// A thread waits for the lease of another thread while a third closes the store.
fn close_and_wait() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    let Begin::Acquired(lease) = store.begin("a", NONE).unwrap() else { unreachable!() };
    let waiting = spawn(&store, |store| match store.operation("a").wait(Duration::MAX).begin() {
        Ok(Begin::InDoubt(mut doubt)) => {
            doubt
                .complete(b"r")
                .unwrap_or_else(|error| panic!("holds a doubt and cannot complete it: {error}"));
            true
        }
        Err(Error::Closed) => false,
        other => panic!("waited, and then {other:?}"),
    });
    let dropping = spawn(&store, move |_| drop(lease));
    assert!(close(&store));
    dropping.join().unwrap();
    let acknowledged = if waiting.join().unwrap() { &["a"][..] } else { &[] };
    check(&disk, acknowledged);
}

/// Reads are not admitted in the way that changes are, but no read may touch the file after a close has unlocked it.
fn close_and_read() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    assert!(record(&store, "a"));
    let reading = spawn(&store, |store| {
        // Many reads are needed, because the window between the check whether the store is open and the read is short.
        for _ in 0..8 {
            match store.get("a") {
                Ok(seen) => assert_eq!(seen.result(), Some(&b"r"[..])),
                Err(Error::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let replaying = spawn(&store, |store| match store.begin("a", NONE) {
        Ok(Begin::Completed(done)) => assert_eq!(done.result(), b"r"),
        Err(Error::Closed) => {}
        other => panic!("{other:?}"),
    });
    assert!(close(&store));
    reading.join().unwrap();
    replaying.join().unwrap();
    check(&disk, &["a"]);
}

/// How often a thread lets others run before it closes the store whether or not the compaction has retired a segment.
const WAITS_FOR_COMPACTION: usize = 200;

/// A compaction has several segments to compact. The close interrupts it between two of them.
fn close_and_compact(interrupted: &AtomicUsize) {
    const KEYS: [&str; 12] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"];
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    for key in KEYS {
        store.record(key, NONE, &[1; 12_000]).unwrap();
    }
    assert!(store.forget("0").unwrap() && store.forget("6").unwrap());
    let compacting = spawn(&store, |store| match store.compact() {
        Ok(_) => false,
        Err(Error::Closed) => true,
        Err(error) => panic!("{error}"),
    });
    let recording = spawn(&store, |store| record(store, "a"));
    // A compaction is admitted anew for each segment. A close that comes before the first one says little.
    for _ in 0..WAITS_FOR_COMPACTION {
        if store.stats().segments_retired > 0 {
            break;
        }
        thread::yield_now();
    }
    assert!(close(&store));
    let was_closed = compacting.join().unwrap();
    if was_closed && store.stats().segments_retired > 0 {
        interrupted.fetch_add(1, Ordering::Relaxed);
    }
    let mut acknowledged: Vec<&str> = KEYS.into_iter().filter(|key| !["0", "6"].contains(key)).collect();
    acknowledged.extend(recording.join().unwrap().then_some("a"));
    check(&disk, &acknowledged);
}

/// A thread reads the head and the tail of the log, as `stats()` does, while both advance.
fn compact_and_read_span() {
    let engine = Arc::new(options().open_nowhere().unwrap());
    let (key, terms) = (Key::new("a"), engine.settings().terms);
    assert!(engine.record(key, NONE.into(), Value::bytes(b"r"), &[], &terms).unwrap().is_ok());
    assert!(engine.forget(key, &terms).unwrap());
    let reading = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || {
            for _ in 0..4 {
                let (head, tail) = engine.log().span();
                assert!(head <= tail, "the log begins at segment {head} and ends at {tail}");
            }
        })
    };
    engine.compact(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    reading.join().unwrap();
}

#[test]
fn a_close_loses_no_acknowledged_record_and_no_lease() {
    explore("closing, record/perform/close", WHOLE_STORE, close_among_changes);
}

#[test]
fn exactly_one_of_two_closes_succeeds_and_no_call_stays_blocked() {
    explore("closing, close/close/record", WHOLE_STORE, close_and_close);
}

#[test]
fn a_close_ends_a_wait_for_a_lease() {
    explore("closing, wait/drop/close", WHOLE_STORE, close_and_wait);
}

#[test]
fn a_read_never_touches_the_file_after_it_is_unlocked() {
    explore("closing, get/replay/close", WHOLE_STORE, close_and_read);
}

#[test]
fn a_close_interrupts_a_compaction_between_two_segments() {
    let interrupted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&interrupted);
    explore("closing, compact/record/close", WITH_COMPACTION, move || close_and_compact(&counted));
    let interrupted = interrupted.load(Ordering::Relaxed);
    println!("compactions that a close interrupted: {interrupted}");
    assert!(interrupted > 0, "the test must cover an interrupted compaction");
}

#[test]
fn the_head_of_the_log_is_never_after_its_tail() {
    explore("closing, compact/span", WHOLE_STORE, compact_and_read_span);
}

#[test]
fn finds_calls_inside_ignored() {
    let expected = ["after the close mark", "was acknowledged and is", "after it was unlocked"];
    must_find_planted(Bug::CallsInsideIgnored, WHOLE_STORE, &expected, close_and_close);
}

#[test]
fn finds_claims_counted_once() {
    let expected = ["acquired a lease and cannot complete it"];
    must_find_planted(Bug::ClaimsCountedOnce, WHOLE_STORE, &expected, close_among_changes);
}

#[test]
fn finds_blocked_calls_not_woken() {
    must_find_planted(Bug::BlockedCallsNotWoken, WHOLE_STORE, &[DEADLOCK], close_and_close);
}

#[test]
fn finds_readers_not_waited_for() {
    must_find_planted(Bug::ReadersNotWaitedFor, WHOLE_STORE, &["after it was unlocked"], close_and_read);
}

#[test]
fn finds_span_read_backwards() {
    let expected = ["the log begins at segment"];
    must_find_planted(Bug::SpanReadBackwards, WHOLE_STORE, &expected, compact_and_read_span);
}
