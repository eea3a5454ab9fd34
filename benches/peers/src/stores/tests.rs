//! What must hold of everybody before a figure of theirs means anything.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::contestant::{self, Durability};
use crate::operations::{Change, Purpose, RESULT, key};

const THREADS: u64 = 8;
const KEYS: u64 = 50;

#[test]
fn of_callers_at_the_same_moment_exactly_one_records() {
    for kind in contestant::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (kind.open)(directory.path(), Durability::Buffered);
        let recorded = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for number in 0..KEYS {
                        let is_new = contestant.record(&key(Purpose::Filled, number));
                        recorded.fetch_add(u64::from(is_new), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(recorded.into_inner(), KEYS, "{}", kind.name);
        contestant.close();
    }
}

#[test]
fn what_was_recorded_and_completed_is_there_when_it_is_opened_again() {
    for kind in contestant::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (kind.open)(directory.path(), Durability::Synced);
        assert!(contestant.record(&key(Purpose::Filled, 0)), "{}", kind.name);
        assert!(!contestant.record(&key(Purpose::Filled, 0)), "{}", kind.name);
        assert!(contestant.begin_and_complete(&key(Purpose::Filled, 1)), "{}", kind.name);
        assert!(!contestant.begin_and_complete(&key(Purpose::Filled, 1)), "{}", kind.name);
        assert!(contestant.rerun(&key(Purpose::Filled, 2)), "{}", kind.name);
        contestant.close();
        let contestant = (kind.open)(directory.path(), Durability::Synced);
        let mut reader = contestant.reader();
        for number in 0..2 {
            let result = reader.replay(&key(Purpose::Filled, number));
            assert_eq!(result.as_deref(), Some(RESULT), "{}", kind.name);
        }
        assert!(reader.is_known(&key(Purpose::Filled, 2)), "{}", kind.name);
        assert!(!reader.is_known(&key(Purpose::Unknown, 0)), "{}", kind.name);
        drop(reader);
        contestant.close();
    }
}

#[test]
fn a_batch_says_of_each_of_its_changes_what_became_of_it() {
    for kind in contestant::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (kind.open)(directory.path(), Durability::Synced);
        let put = |number| Change::PutIfAbsent(key(Purpose::Filled, number), RESULT);
        let applied = contestant.apply(&[put(0), put(1), put(0)]);
        assert_eq!(applied, [true, true, false], "{}", kind.name);
        assert_eq!(contestant.apply(&[put(1), put(2)]), [false, true], "{}", kind.name);
        contestant.apply(&[Change::Remove(key(Purpose::Filled, 1)), Change::Remove(key(Purpose::Filled, 2))]);
        let mut reader = contestant.reader();
        let known = [0, 1, 2].map(|number| reader.is_known(&key(Purpose::Filled, number)));
        assert_eq!(known, [true, false, false], "{}", kind.name);
        drop(reader);
        contestant.close();
    }
}

#[test]
fn the_floor_writes_as_many_bytes_as_oncekey() {
    let store = oncekey::Store::in_memory().unwrap();
    let empty = store.stats().record_bytes;
    store.record(&key(Purpose::Filled, 0), oncekey::Fingerprint::NONE, RESULT).unwrap();
    let recorded = store.stats().record_bytes;
    let _begun = store.begin(&key(Purpose::Filled, 1), oncekey::Fingerprint::NONE).unwrap();
    let begun = store.stats().record_bytes;
    assert_eq!(recorded - empty, crate::floor::RECORD_BYTES as u64);
    assert_eq!(begun - recorded, crate::floor::BEGIN_BYTES as u64);
}
