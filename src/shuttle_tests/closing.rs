//! A store that is closed while calls of every sort are inside, wait, or come.

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
/// With a compaction in every interleaving.
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
    options().open_simulated(disk).unwrap_or_else(|error| panic!("it does not open: {error}"))
}

fn spawn<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || work(&store))
}

/// Records, unsynced. Whether that was acknowledged before the store was closed.
fn record(store: &Store, key: &str) -> bool {
    match store.record(key, NONE, b"r") {
        Ok(Recorded::Done(_)) => true,
        Err(Error::Closed) => false,
        other => panic!("{key}: {other:?}"),
    }
}

/// Begins and completes. A lease that was given must be good for it.
fn perform(store: &Store, key: &str) -> bool {
    match store.begin(key, NONE) {
        Ok(Begin::Acquired(mut lease)) => {
            lease
                .complete(b"r")
                .unwrap_or_else(|error| panic!("{key}: it may act and cannot say so: {error}"));
            true
        }
        Err(Error::Closed) => false,
        other => panic!("{key}: {other:?}"),
    }
}

/// Closes as soon as no lease is alive. Whether this call did it.
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

/// Whatever was acknowledged is there, though power is lost: a close made everything durable, and nothing came after.
fn check(disk: &SimulatedDisk, acknowledged: &[&str]) {
    assert_eq!(disk.touched_unlocked(), 0, "a file that was unlocked was read or written");
    assert_eq!(disk.undecided(), 0, "something was written behind the close mark");
    let store = open(&disk.crash(|_| 0));
    for key in acknowledged {
        let seen = store.get(*key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(seen.is_completed(), "{key} was acknowledged and is {:?} after a close", seen.status());
    }
}

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

/// Of two that close, one does; whoever records meanwhile waits for neither for ever.
fn close_and_close() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    let closing = spawn(&store, close);
    let recording = spawn(&store, |store| record(store, "a"));
    let here = close(&store);
    assert!(here != closing.join().unwrap(), "one of two closes it");
    let acknowledged = if recording.join().unwrap() { &["a"][..] } else { &[] };
    check(&disk, acknowledged);
}

/// One waits for another's lease, in its own call, while a third closes.
fn close_and_wait() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    let Begin::Acquired(lease) = store.begin("a", NONE).unwrap() else { unreachable!() };
    let waiting = spawn(&store, |store| match store.operation("a").wait(Duration::MAX).begin() {
        Ok(Begin::InDoubt(mut doubt)) => {
            doubt.complete(b"r").unwrap_or_else(|error| panic!("it may resolve and cannot: {error}"));
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

/// Reads are not admitted, and yet nobody reads a file that may be another process's already.
fn close_and_read() {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    assert!(record(&store, "a"));
    let reading = spawn(&store, |store| {
        // Many, because the moment between a look at the phase and the read is short.
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

/// A compaction of several segments lets a close in between two of them.
fn close_and_compact(cut_short: &AtomicUsize) {
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
    assert!(close(&store));
    let was_closed = compacting.join().unwrap();
    if was_closed && store.stats().segments_retired > 0 {
        cut_short.fetch_add(1, Ordering::Relaxed);
    }
    let mut acknowledged: Vec<&str> = KEYS.into_iter().filter(|key| !["0", "6"].contains(key)).collect();
    acknowledged.extend(recording.join().unwrap().then_some("a"));
    check(&disk, &acknowledged);
}

/// The log's two ends are looked at, as for `stats()`, while both move on.
fn compact_and_look() {
    let engine = Arc::new(options().open_nowhere().unwrap());
    let (key, terms) = (Key::new("a"), engine.settings().terms);
    assert!(engine.record(key, NONE.into(), Value::bytes(b"r"), &terms).unwrap().is_ok());
    assert!(engine.forget(key, &terms).unwrap());
    let looking = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || {
            for _ in 0..4 {
                let (head, tail) = engine.log().span();
                assert!(head <= tail, "the log begins at segment {head} and ends at {tail}");
            }
        })
    };
    engine.compact().unwrap();
    looking.join().unwrap();
}

#[test]
fn nothing_is_written_behind_a_close_mark_and_no_lease_outlives_it() {
    explore("closing, record/perform/close", WHOLE_STORE, close_among_changes);
}

#[test]
fn one_of_two_closes_and_nobody_stays_blocked() {
    explore("closing, close/close/record", WHOLE_STORE, close_and_close);
}

#[test]
fn who_waits_for_a_lease_learns_of_a_close() {
    explore("closing, wait/drop/close", WHOLE_STORE, close_and_wait);
}

#[test]
fn nobody_reads_a_file_that_was_unlocked() {
    explore("closing, get/replay/close", WHOLE_STORE, close_and_read);
}

#[test]
fn a_compaction_lets_a_close_in_between_two_segments() {
    let cut_short = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cut_short);
    explore("closing, compact/record/close", WITH_COMPACTION, move || close_and_compact(&counted));
    let cut_short = cut_short.load(Ordering::Relaxed);
    println!("compactions that a close cut short: {cut_short}");
    assert!(cut_short > 0);
}

#[test]
fn the_log_never_begins_behind_its_end() {
    explore("closing, compact/span", WHOLE_STORE, compact_and_look);
}

#[test]
fn finds_calls_inside_ignored() {
    let expected = ["behind the close mark", "was acknowledged and is", "was unlocked"];
    must_find_planted(Bug::CallsInsideIgnored, WHOLE_STORE, &expected, close_and_close);
}

#[test]
fn finds_claims_counted_once() {
    let expected = ["it may act and cannot say so"];
    must_find_planted(Bug::ClaimsCountedOnce, WHOLE_STORE, &expected, close_among_changes);
}

#[test]
fn finds_blocked_not_woken() {
    must_find_planted(Bug::BlockedCallsNotWoken, WHOLE_STORE, &[DEADLOCK], close_and_close);
}

#[test]
fn finds_readers_not_waited_for() {
    must_find_planted(Bug::ReadersNotWaitedFor, WHOLE_STORE, &["was unlocked"], close_and_read);
}

#[test]
fn finds_span_read_backwards() {
    let expected = ["the log begins at segment"];
    must_find_planted(Bug::SpanReadBackwards, WHOLE_STORE, &expected, compact_and_look);
}
