//! Checks that every store does the same work, without which the figures could not be compared.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::contestant::Durability;
use crate::operations::{Change, KeySet, RESULT, key};
use crate::{floor, roster, stores};

const THREADS: u64 = 8;
const KEYS: u64 = 50;

#[test]
fn one_of_several_concurrent_callers_records_a_key() {
    for setup in roster::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (setup.open)(directory.path(), Durability::Buffered);
        let recorded = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for number in 0..KEYS {
                        let is_new = contestant.record(&key(KeySet::Filled, number));
                        recorded.fetch_add(u64::from(is_new), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(recorded.into_inner(), KEYS, "{}", setup.name);
        contestant.close();
    }
}

#[test]
fn recorded_and_completed_operations_survive_a_reopen() {
    for setup in roster::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (setup.open)(directory.path(), Durability::Synced);
        assert!(contestant.record(&key(KeySet::Filled, 0)), "{}", setup.name);
        assert!(!contestant.record(&key(KeySet::Filled, 0)), "{}", setup.name);
        assert!(contestant.begin_and_complete(&key(KeySet::Filled, 1)), "{}", setup.name);
        assert!(!contestant.begin_and_complete(&key(KeySet::Filled, 1)), "{}", setup.name);
        assert!(contestant.rerun(&key(KeySet::Filled, 2)), "{}", setup.name);
        contestant.close();
        let contestant = (setup.open)(directory.path(), Durability::Synced);
        let mut reader = contestant.reader();
        for number in 0..2 {
            let result = reader.replay(&key(KeySet::Filled, number));
            assert_eq!(result.as_deref(), Some(RESULT), "{}", setup.name);
        }
        assert!(reader.is_known(&key(KeySet::Filled, 2)), "{}", setup.name);
        assert!(!reader.is_known(&key(KeySet::Unknown, 0)), "{}", setup.name);
        drop(reader);
        contestant.close();
    }
}

#[test]
fn a_batch_reports_which_changes_were_applied() {
    for setup in roster::all() {
        let directory = tempfile::tempdir().unwrap();
        let contestant = (setup.open)(directory.path(), Durability::Synced);
        let put = |number| Change::PutIfAbsent(key(KeySet::Filled, number), RESULT);
        let applied = contestant.apply(&[put(0), put(1), put(0)]);
        assert_eq!(applied, [true, true, false], "{}", setup.name);
        assert_eq!(contestant.apply(&[put(1), put(2)]), [false, true], "{}", setup.name);
        contestant.apply(&[Change::Remove(key(KeySet::Filled, 1)), Change::Remove(key(KeySet::Filled, 2))]);
        let mut reader = contestant.reader();
        let known = [0, 1, 2].map(|number| reader.is_known(&key(KeySet::Filled, number)));
        assert_eq!(known, [true, false, false], "{}", setup.name);
        drop(reader);
        contestant.close();
    }
}

#[test]
fn the_floor_writes_as_many_bytes_as_oncekey() {
    let store = oncekey::Store::in_memory().unwrap();
    let empty = store.stats().record_bytes;
    store.record(&key(KeySet::Filled, 0), oncekey::Fingerprint::NONE, RESULT).unwrap();
    let recorded = store.stats().record_bytes;
    let _begun = store.begin(&key(KeySet::Filled, 1), oncekey::Fingerprint::NONE).unwrap();
    let begun = store.stats().record_bytes;
    assert_eq!(recorded - empty, floor::RECORD_BYTES as u64);
    assert_eq!(begun - recorded, floor::BEGIN_BYTES as u64);
}

/// Reads the length of a frame from the file, at the offset that the file format specifies.
#[test]
fn the_floors_frame_header_is_as_long_as_oncekeys() {
    const FIRST_FRAME: usize = 4_096 + 4_096;
    const OPENING_FRAME_BYTES: usize = 80;
    let directory = tempfile::tempdir().unwrap();
    let contestant = stores::oncekey::open(directory.path(), Durability::Synced);
    assert!(contestant.record(&key(KeySet::Filled, 0)));
    contestant.close();
    let file = std::fs::read(stores::oncekey::file(directory.path())).unwrap();
    let length = |at: usize| u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap()) as usize;
    assert_eq!(length(FIRST_FRAME), OPENING_FRAME_BYTES);
    let frame_bytes = floor::FRAME_HEADER_BYTES + floor::RECORD_BYTES;
    assert_eq!(length(FIRST_FRAME + OPENING_FRAME_BYTES), frame_bytes);
}
