//! Checks reclaiming in a store that is being used: the size of the file, and which records are kept.

use oncekey::{Durability, Error, ManualClock, Status, Store};

use crate::common::{
    FOOTER_ENTRY, NONE, Place, RECORD_HEADER, SEGMENT, START_MS, abandon, acquire, clocked, copy_while_open,
    perform, seconds,
};

#[test]
fn a_store_under_steady_load_keeps_its_size() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(10)).durability(Durability::Buffered);
    let store = options.open(&place.path).unwrap();
    let mut sizes = Vec::new();
    // 20 times the retention, with 1,000 operations in each.
    for n in 0..20_000 {
        perform(&store, &format!("k{n}"), &[1; 200]);
        clock.advance(std::time::Duration::from_millis(10));
        if n % 1_000 == 999 {
            sizes.push(store.stats().file_bytes);
        }
    }
    // A key has up to six bytes, which are padded to eight.
    let live_bytes = 1_000 * (RECORD_HEADER + 8 + 200 + FOOTER_ENTRY);
    let largest = sizes[4..].iter().max().unwrap();
    assert_eq!(sizes[5..].iter().max(), sizes[10..].iter().max(), "the file keeps growing: {sizes:?}");
    assert!(*largest < 3 * live_bytes + 6 * SEGMENT, "{sizes:?}");
    assert!(store.stats().keys < 3_000, "the index keeps expired keys");
    assert!(place.length() <= largest + SEGMENT, "the file is longer than `stats` reports");
}

#[test]
fn live_records_survive_reclaiming_with_their_versions() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store =
        clocked(&clock).retention(seconds(1_000)).result_retention(seconds(500)).open(&place.path).unwrap();
    perform(&store, "done", b"result");
    perform(&store, "empty", b"");
    abandon(&store, "doubt");
    let lease = acquire(&store, "progress");
    acquire(&store, "released").release().unwrap();
    store.operation("tombstone").retain_result(seconds(1)).record(&[9; 300]).unwrap();
    store.record("forgotten", NONE, b"old").unwrap();
    store.forget("forgotten").unwrap();
    let keys = ["done", "empty", "doubt", "progress", "released"];
    let before: Vec<_> = keys.iter().map(|key| store.get(key).unwrap()).collect();
    for n in 0..20_000 {
        store.operation(&format!("short{n}")).retain(seconds(2)).record(&[0; 100]).unwrap();
        clock.advance(std::time::Duration::from_millis(10));
    }
    assert!(store.stats().segments_retired > 20, "{:?}", store.stats());
    let check = |store: &Store, statuses: [Status; 5]| {
        for ((key, before), status) in keys.iter().zip(&before).zip(statuses) {
            let now = store.get(key).unwrap();
            assert_eq!(now.status(), status, "{key}");
            assert_eq!(now.version(), before.version(), "{key}: a moved record changed its version");
            assert_eq!(now.result(), before.result(), "{key}");
            // The store may drop the record of a released key, and the count of attempts with it.
            assert!(now.attempt() == before.attempt() || *key == "released" && now.attempt() == 0, "{key}");
        }
        assert!(store.get("forgotten").unwrap().is_absent());
        assert!(matches!(store.begin("tombstone", NONE), Err(Error::ResultExpired { .. })));
    };
    use Status::{Absent, Completed, InDoubt, InProgress};
    check(&store, [Completed, Completed, InDoubt, InProgress, Absent]);
    store.compact().unwrap();
    check(&store, [Completed, Completed, InDoubt, InProgress, Absent]);
    let crashed = copy_while_open(&place.path);
    let again = clocked(&clock).open(&crashed.path).unwrap();
    check(&again, [Completed, Completed, InDoubt, InDoubt, Absent]);
    let mut lease = lease;
    lease.complete(b"late").unwrap();
}

#[test]
fn a_forgotten_key_stays_forgotten_while_its_segments_are_reclaimed() {
    let place = Place::new();
    let store = place.open();
    for n in 0..500 {
        store.record(&format!("k{n}"), NONE, &[0; 100]).unwrap();
    }
    for n in 0..500 {
        assert!(store.forget(&format!("k{n}")).unwrap());
    }
    for turn in 0..6 {
        for n in 0..700 {
            store.record(&format!("filler{turn}-{n}"), NONE, &[0; 100]).unwrap();
            store.forget(&format!("filler{turn}-{n}")).unwrap();
        }
        let reopened = copy_while_open(&place.path).open();
        for n in 0..500 {
            assert!(reopened.get(&format!("k{n}")).unwrap().is_absent(), "k{n} came back in turn {turn}");
        }
    }
    assert!(store.stats().segments_retired > 0);
}

#[test]
fn a_segment_with_a_damaged_footer_is_reclaimed_by_its_frames() {
    let place = Place::new();
    let store = place.open();
    for n in 0..1_000 {
        store.record(&format!("k{n}"), NONE, &[7; 200]).unwrap();
    }
    for n in (0..1_000).filter(|n| n % 10 != 0) {
        store.forget(&format!("k{n}")).unwrap();
    }
    store.close().unwrap();
    let mut bytes = place.bytes();
    let segment = usize::try_from(SEGMENT).unwrap();
    let slots = bytes.len() / segment;
    for slot in 0..slots - 1 {
        let trailer = 4_096 + (slot + 1) * segment - 64;
        bytes[trailer..trailer + 8].fill(0xEE);
    }
    std::fs::write(&place.path, bytes).unwrap();
    let store = place.open();
    store.compact().unwrap();
    assert!(store.stats().segments_retired >= 4, "{:?}", store.stats());
    assert!(place.length() < (slots as u64 - 2) * SEGMENT);
    for n in 0..1_000 {
        assert_eq!(store.get(&format!("k{n}")).unwrap().is_completed(), n % 10 == 0, "{n}");
    }
}

#[test]
fn slots_are_reused() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1)).durability(Durability::Buffered);
    let store = options.open(&place.path).unwrap();
    for n in 0..30_000 {
        store.record(&format!("k{n}"), NONE, &[0; 100]).unwrap();
        clock.advance(std::time::Duration::from_millis(1));
    }
    let written = store.stats().segments_retired + store.stats().segments;
    let slots = (store.stats().file_bytes - 4_096) / SEGMENT;
    assert!(written > 5 * slots, "{written} segments in {slots} slots");
    let crashed = copy_while_open(&place.path);
    let store = clocked(&clock).retention(seconds(1)).open(&crashed.path).unwrap();
    assert!(store.get("k29999").unwrap().is_completed());
}

#[test]
fn moved_tombstones_with_long_keys_count_as_live() {
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000)).result_retention(seconds(10));
    let store = options.open_in_memory().unwrap();
    let padding = "k".repeat(300);
    for n in 0..3_000 {
        store.record(&format!("{padding}{n}"), NONE, &[1; 50]).unwrap();
    }
    clock.advance(seconds(10));
    store.compact().unwrap();
    let stats = store.stats();
    assert!(stats.dead_bytes * 10 < stats.record_bytes, "{stats:?}");
}

#[test]
fn moving_old_records_does_not_set_store_time_back() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000_000_000)).open(&place.path).unwrap();
    for n in 0..60 {
        store.record(&format!("live{n}"), NONE, &[1; 6_000]).unwrap();
        store.operation(&format!("dead{n}")).retain(seconds(10)).record(&[1; 6_000]).unwrap();
    }
    let two_days = seconds(2 * 86_400);
    let mut refused = 0;
    for n in 0..60 {
        clock.advance(two_days);
        store.operation(&format!("later{n}")).retain(seconds(10)).record(&[1; 9_000]).unwrap();
        let behind = ManualClock::new(clock.now_ms() - 90_000_000);
        match clocked(&behind).open(&copy_while_open(&place.path).path) {
            Err(Error::Clock { last_wall_ms, store_time_ms, .. }) => {
                assert_eq!((last_wall_ms, store_time_ms), (clock.now_ms(), clock.now_ms()));
                refused += 1;
            }
            other => panic!("round {n}: a clock that is 25 hours behind was accepted: {other:?}"),
        }
    }
    assert!(refused == 60 && store.stats().moved_bytes > 0, "the test must cover moved records");
}

/// The store makes slots before the log needs them, but only a few.
#[test]
fn a_file_has_only_a_few_slots_more_than_segments() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let place = Place::new();
        let clock = ManualClock::new(START_MS);
        let options = clocked(&clock).retention(seconds(10)).durability(durability);
        let store = options.open(&place.path).unwrap();
        let mut max_slots = 0;
        for number in 0..1_200 {
            if number % 400 == 0 {
                // An expiry is noticed at most a 32nd of the retention late.
                clock.advance(seconds(10) + seconds(10) / 32);
            }
            perform(&store, &format!("{number}"), &[7; 1_000]);
            let (segments, slots) = (store.stats().segments, (place.length() - 4_096) / SEGMENT);
            if number < 400 {
                assert!(slots <= segments + 5, "{durability:?}: {slots} slots for {segments} segments");
                max_slots = slots;
            } else {
                assert!(slots <= max_slots + 3, "{durability:?}: {slots} slots, where {max_slots} sufficed");
            }
        }
        assert!(store.stats().segments_retired > 8);
    }
}
