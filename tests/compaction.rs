//! Checks what `compact` reports, and that the index frees memory once its keys are removed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, seconds};
use oncekey::{Durability, ManualClock, Store};

fn record(store: &Store, name: &str, count: u32, retention: u64) {
    for n in 0..count {
        let key = format!("{name}/{n}");
        let operation = store.operation(&key).retain(seconds(retention)).durability(Durability::Buffered);
        operation.record(&[1; 400]).unwrap();
    }
}

#[test]
fn compact_reports_expired_keys_moved_bytes_and_freed_bytes() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).open(&place.path).unwrap();
    record(&store, "long", 20, 1_000);
    record(&store, "short", 700, 10);
    record(&store, "forgotten", 30, 10);
    for n in 0..30 {
        assert!(store.forget(&format!("forgotten/{n}")).unwrap());
    }
    acquire(&store, "released").release().unwrap();
    abandon(&store, "in doubt");
    clock.advance(seconds(10));
    let (before, length) = (store.stats(), place.length());
    assert_eq!(before.keys, 722, "expired or released keys were dropped before the compaction");
    let compaction = store.compact().unwrap();
    let after = store.stats();
    assert_eq!(compaction.expired_keys, 700, "forgotten or released keys were counted as expired");
    assert_eq!(after.keys, 21);
    assert_eq!(compaction.moved_bytes, after.moved_bytes - before.moved_bytes);
    assert!(compaction.moved_bytes >= 20 * 400, "{compaction:?}");
    assert_eq!(compaction.freed_bytes, length - place.length());
    assert!(compaction.freed_bytes >= 4 * SEGMENT, "{compaction:?}");
    let again = store.compact().unwrap();
    assert_eq!((again.expired_keys, again.moved_bytes, again.freed_bytes), (0, 0, 0));
}

#[test]
fn compact_does_not_count_keys_that_reclaiming_dropped() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).open(&place.path).unwrap();
    let mut counted = 0;
    for round in 0..20 {
        record(&store, &format!("{round}"), 300, 1);
        clock.advance(seconds(2));
        if round % 5 == 4 {
            let before = store.stats().keys as u64;
            let expired_keys = store.compact().unwrap().expired_keys;
            assert_eq!(expired_keys, before - store.stats().keys as u64);
            counted += expired_keys;
        }
    }
    assert!(
        store.stats().segments_retired > 10 && counted < 20 * 300,
        "the test must cover keys that reclaiming drops"
    );
}

/// Returns the size of the index in bytes when it has many keys, and after `remove` has removed them.
fn index_bytes(remove: impl FnOnce(&Store, &ManualClock)) -> (usize, usize) {
    let clock = ManualClock::new(START_MS);
    let options = oncekey::Options::new().manual_clock(clock.clone()).retention(seconds(10));
    let store = options.segment_size(1 << 20).durability(Durability::Buffered).open_in_memory().unwrap();
    for n in 0..KEYS {
        store.record(&n.to_le_bytes(), NONE, b"").unwrap();
    }
    let large = store.stats().index_bytes;
    remove(&store, &clock);
    assert_eq!(store.stats().keys, 0);
    (large, store.stats().index_bytes)
}

const KEYS: u32 = 60_000;

#[test]
fn the_index_frees_memory_once_its_keys_are_removed() {
    let (large, expired) = index_bytes(|store, clock| {
        clock.advance(seconds(10));
        assert_eq!(store.compact().unwrap().expired_keys, u64::from(KEYS));
    });
    assert!(large > 500_000 && expired < large / 10, "{large} bytes, then {expired}");
    let (large, forgotten) = index_bytes(|store, _| {
        for n in 0..KEYS {
            assert!(store.forget(&n.to_le_bytes()).unwrap());
        }
    });
    assert!(large > 500_000 && forgotten < large / 10, "{large} bytes, then {forgotten}");
}

#[cfg(feature = "__simulation")]
#[test]
fn finds_an_index_that_keeps_its_memory() {
    use oncekey::simulation::{Bug, plant};
    let (large, kept) = index_bytes(|store, clock| {
        plant(Some(Bug::TablesNeverShrink));
        clock.advance(seconds(10));
        store.compact().unwrap();
        plant(None);
    });
    assert_eq!(kept, large);
}
