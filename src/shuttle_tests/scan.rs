//! Checks a scan while other threads change the store, reclaim its segments and close it, and a close in a callback.

use std::ops::ControlFlow;

use shuttle::thread;

use super::{DEADLOCK, Effort, explore, must_find_planted};
use crate::planted::Bug;
use crate::{Begin, Durability, Error, Fingerprint, Key, ManualClock, Options, Status, Store};

/// The effort for scenarios that fill several segments in every interleaving.
const SEVERAL_SEGMENTS: Effort = Effort(300);

fn open() -> Store {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().segment_size(64 << 10).max_result(12_000).durability(Durability::Buffered);
    options.manual_clock(clock).open_in_memory().unwrap()
}

/// Records two keys that stay, among others that do not, in three segments.
fn fill(store: &Store) {
    let record = |name: &str, bytes: usize| {
        store.record(Key::new(name), Fingerprint::NONE, &vec![1; bytes]).unwrap();
    };
    for number in 0..14 {
        match number {
            0 => record("kept first", 10),
            13 => record("kept last", 10),
            _ => record(&format!("gone {number}"), 10_000),
        }
    }
    for number in 1..13 {
        store.forget(&format!("gone {number}")).unwrap();
    }
}

/// Returns the names that a scan shows, or None if the store was closed meanwhile.
fn scan(store: &Store) -> Option<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for item in store.scan() {
        match item {
            Ok(key) => {
                let is_completed = key.status() == Status::Completed;
                let name = key.key().name().to_vec();
                assert!(is_completed || key.status() == Status::InProgress, "no lease was dropped");
                assert!(!name.starts_with(b"gone"), "a key was shown after it was forgotten");
                names.push(name);
            }
            Err(Error::Closed) => return None,
            Err(error) => panic!("a scan fails: {error}"),
        }
    }
    Some(names)
}

fn check_kept(names: &[Vec<u8>]) {
    for kept in [&b"kept first"[..], b"kept last"] {
        assert!(names.iter().any(|name| name == kept), "a key is missing");
    }
}

fn scan_among_changes() {
    let store = open();
    fill(&store);
    let spawn = |work: fn(&Store)| {
        let store = store.clone();
        thread::spawn(move || work(&store))
    };
    let moving = spawn(|store| assert!(!store.compact().unwrap().is_stopped));
    let changing = spawn(|store| {
        let Begin::Acquired(mut lease) = store.begin("changed", Fingerprint::NONE).unwrap() else {
            panic!("the key is free")
        };
        lease.complete(b"done").unwrap();
        // A key that stays, with a new record in a later segment.
        store.forget("kept first").unwrap_or_default();
        store.record("kept first", Fingerprint::NONE, b"").unwrap();
    });
    let scanning = spawn(|store| {
        let names = scan(store).unwrap();
        assert!(names.iter().any(|name| name == b"kept last"), "a key is missing");
    });
    for thread in [moving, changing, scanning] {
        thread.join().unwrap();
    }
    check_kept(&scan(&store).unwrap());
    store.close().unwrap();
}

fn scan_among_moves() {
    let store = open();
    fill(&store);
    let moving = {
        let store = store.clone();
        thread::spawn(move || assert!(!store.compact().unwrap().is_stopped))
    };
    check_kept(&scan(&store).unwrap());
    moving.join().unwrap();
}

fn scan_while_the_store_is_closed() {
    let store = open();
    fill(&store);
    let closing = {
        let store = store.clone();
        thread::spawn(move || store.close().unwrap())
    };
    if let Some(names) = scan(&store) {
        check_kept(&names);
    }
    closing.join().unwrap();
    assert!(scan(&store).is_none());
}

fn close_in_a_callback() {
    let store = open();
    fill(&store);
    let recording = {
        let store = store.clone();
        thread::spawn(move || drop(store.record("beside", Fingerprint::NONE, b"").unwrap()))
    };
    let compaction = store.compact_with(|_| {
        assert!(matches!(store.close(), Err(Error::InCallback)));
        ControlFlow::Continue(())
    });
    assert!(!compaction.unwrap().is_stopped);
    recording.join().unwrap();
    store.close().unwrap();
}

/// Another thread closes the store while the callback waits for it.
fn close_by_another_thread_during_a_callback() {
    let store = open();
    fill(&store);
    let mut closed = false;
    let recording = {
        let store = store.clone();
        thread::spawn(move || store.record("beside", Fingerprint::NONE, b"").map(drop))
    };
    let compaction = store.compact_with(|_| {
        let closing = {
            let store = store.clone();
            thread::spawn(move || store.close())
        };
        closed |= closing.join().unwrap().is_ok();
        ControlFlow::Continue(())
    });
    assert!(closed && matches!(compaction, Err(Error::Closed)));
    assert!(matches!(recording.join().unwrap(), Ok(()) | Err(Error::Closed)));
}

#[test]
fn a_scan_shows_every_key_that_stays() {
    explore("scan, changes and moves", SEVERAL_SEGMENTS, scan_among_changes);
    explore("scan, moves", SEVERAL_SEGMENTS, scan_among_moves);
    explore("scan, close", SEVERAL_SEGMENTS, scan_while_the_store_is_closed);
}

#[test]
fn a_callback_can_wait_for_a_close_but_not_close() {
    explore("close in a callback", SEVERAL_SEGMENTS, close_in_a_callback);
    explore("close during a callback", SEVERAL_SEGMENTS, close_by_another_thread_during_a_callback);
}

#[test]
fn finds_a_key_that_was_moved_behind_the_scan() {
    must_find_planted(Bug::ScanEndsAtOldTail, SEVERAL_SEGMENTS, &["a key is missing"], scan_among_moves);
}

#[test]
fn finds_a_close_that_waits_for_itself() {
    must_find_planted(Bug::CloseWaitsForItself, SEVERAL_SEGMENTS, &[DEADLOCK], close_in_a_callback);
}
