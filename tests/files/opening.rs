//! Checks that a reopened store finds every key, reports the same figures as its writer, and continues store time.

use oncekey::{Durability, Error, ManualClock, Options, Status, Store};

use crate::common::{
    NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_while_open, perform, seconds, small,
};

#[test]
fn every_key_survives_a_close_and_a_crash() {
    let place = Place::new();
    let store = place.open();
    for n in 0..2_000 {
        perform(&store, &format!("done-{n}"), format!("result {n}").as_bytes());
    }
    abandon(&store, "doubt");
    acquire(&store, "released").release().unwrap();
    store.record("forgotten", NONE, b"r").unwrap();
    store.forget("forgotten").unwrap();
    let crashed = copy_while_open(&place.path);
    store.close().unwrap();
    for place in [place, crashed] {
        for _ in 0..3 {
            let store = place.open();
            for n in 0..2_000 {
                let seen = store.get(&format!("done-{n}")).unwrap();
                assert_eq!(seen.result(), Some(format!("result {n}").as_bytes()));
            }
            assert_eq!(store.get("doubt").unwrap().status(), Status::InDoubt);
            assert_eq!(store.get("released").unwrap().attempt(), 1);
            assert_eq!(store.get("forgotten").unwrap().status(), Status::Absent);
            assert!(store.stats().segments > 5, "the test must cover many segments");
        }
    }
}

/// The log is so long that several threads read the footers and fill the index.
#[test]
fn a_long_log_that_several_threads_read_gives_the_same_answers() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = || clocked(&clock).retention(seconds(100)).durability(Durability::Buffered);
    let store = options().open(&place.path).unwrap();
    let key = |n: u32| format!("key-{n}");
    const KEYS: u32 = 60_000;
    // For each key, a later segment has another record of it, a tombstone, or nothing.
    for n in 0..KEYS {
        if n == KEYS / 3 {
            clock.advance(seconds(50));
        }
        store.record(&key(n), NONE, &[u8::try_from(n % 251).unwrap(); 120]).unwrap();
        if n > 9_000 && n % 3 == 0 {
            store.forget(&key(n - 9_000)).unwrap();
        }
        if n > 12_000 && n % 9 == 0 {
            store.record(&key(n - 12_000), NONE, b"again").unwrap();
        }
        if n % 500 == 0 {
            drop(store.begin(&format!("doubt-{n}"), NONE).unwrap());
        }
    }
    clock.advance(seconds(60));
    let read_all = |store: &Store| {
        let keys: Vec<_> = (0..KEYS).map(|n| store.get(&key(n)).unwrap()).collect();
        let doubts: Vec<_> = (0..KEYS).map(|n| store.get(&format!("doubt-{n}")).unwrap().status()).collect();
        (keys, doubts)
    };
    let before = read_all(&store);
    let count = |status| before.0.iter().filter(|seen| seen.status() == status).count();
    assert!(count(Status::Completed) > 10_000 && count(Status::Absent) > 10_000, "the test must cover both");
    let expected = store.stats();
    assert!(expected.segments * SEGMENT > 16 << 20, "too short to be read by several threads: {expected:?}");
    store.close().unwrap();

    let store = options().open(&place.path).unwrap();
    assert!(read_all(&store) == before, "the answers differ");
    let stats = store.stats();
    // A retired segment that no later header excludes yet is counted again, with all of its bytes as dead.
    let live_bytes = |stats: &oncekey::Stats| stats.record_bytes - stats.dead_bytes;
    assert_eq!(live_bytes(&stats), live_bytes(&expected));
    let live = count(Status::Completed) + KEYS as usize / 500;
    assert_eq!(stats.keys, live, "the index has an expired key, or a key twice");
    assert!(
        stats.index_bytes < live * 12 + (64 << 10),
        "the index takes more memory than one that grew record by record: {stats:?}"
    );
}

#[test]
fn a_reopened_store_has_the_same_stats_as_its_writer() {
    for segments in [0, 3] {
        let place = Place::new();
        let store = small().open(&place.path).unwrap();
        let mut number = 0;
        while store.stats().segments <= segments || number < 20 {
            number += 1;
            perform(&store, &format!("{number}"), &[7; 1_000]);
        }
        for number in 1..=10 {
            store.forget(&format!("{number}")).unwrap();
        }
        let counted = |store: &Store| {
            let stats = store.stats();
            (stats.keys, stats.segments, stats.record_bytes, stats.dead_bytes)
        };
        let before = counted(&store);
        assert!(before.2 > 20_000 && before.3 > 10_000, "{before:?}");
        assert_eq!(counted(&copy_while_open(&place.path).open()), before, "after a crash");
        store.close().unwrap();
        assert_eq!(counted(&place.open()), before, "after a close");
    }
}

#[test]
fn an_existing_file_keeps_its_segment_size() {
    let place = Place::new();
    place.open().close().unwrap();
    let store = Options::new().open(&place.path).unwrap();
    perform(&store, "k", &[0; 10_000]);
    assert_eq!((store.stats().file_bytes - 4_096) % SEGMENT, 0);
    assert!(matches!(acquire(&store, "l").complete(&[0; 30_000]), Err(Error::TooLarge { .. })));
}

/// The second session begins an hour after the first, and ends with a crash before it has written a record. Its opening
/// frame must preserve the later time.
#[test]
fn store_time_survives_a_session_without_records() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    drop(clocked(&clock).open(&place.path).unwrap());
    clock.advance(seconds(3_600));
    let _store = clocked(&clock).open(&place.path).unwrap();
    let crashed = copy_while_open(&place.path);
    let store = clocked(&ManualClock::new(START_MS)).open(&crashed.path).unwrap();
    assert_eq!(store.stats().store_time_ms, START_MS + 3_600_000);
}
