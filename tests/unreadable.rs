//! Checks what happens to a record that is damaged while the store is open. Reclaiming moves its bytes unchanged, the store
//! reports it as corrupt, its key can be forgotten or set to absent, and it never becomes readable again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{
    NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_while_open, flip, record_of, seconds,
};
use oncekey::{
    Begin, CasOutcome, Durability, Error, Expected, Key, ManualClock, Next, Recorded, Status, Store, Version,
};

/// Writes short-lived records, which fill several segments, and lets them expire.
fn traffic(store: &Store, clock: &ManualClock, rounds: std::ops::Range<u32>) {
    for round in rounds {
        for n in 0..100 {
            let key = format!("short/{round}/{n}");
            let operation = store.operation(&key).retain(seconds(1)).durability(Durability::Buffered);
            operation.record(&[1; 400]).unwrap();
        }
        clock.advance(seconds(2));
    }
}

/// Writes enough long-lived records that all earlier records lie in full segments. Reclaiming has not moved any record.
fn fill(store: &Store) {
    for n in 0..300 {
        let key = format!("filler/{n}");
        let operation = store.operation(&key).retain(seconds(1_000_000)).durability(Durability::Buffered);
        operation.record(&[1; 400]).unwrap();
    }
    store.sync().unwrap();
    assert!(store.stats().segments_retired == 0 && store.stats().segments > 2);
}

fn assert_corrupt<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    match outcome {
        Err(Error::Corrupt { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn reclaiming_moves_a_damaged_record_until_its_key_is_forgotten() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000));
    let store = options.open(&place.path).unwrap();
    store.record("damaged result", NONE, &[9; 700]).unwrap();
    store.record("undamaged", NONE, &[8; 700]).unwrap();
    abandon(&store, "damaged doubt");
    assert_eq!(store.stats().unreadable_records, 0);
    fill(&store);
    flip(&place, record_of(&place, "damaged result") + 200);
    flip(&place, record_of(&place, "damaged doubt") + 20);
    traffic(&store, &clock, 3..60);
    let stats = store.stats();
    assert!(stats.segments_retired > 20 && !stats.reclaiming_stopped, "{stats:?}");
    assert_eq!(stats.unreadable_records, 2, "not all damaged records were counted as unreadable");
    assert!(stats.dead_bytes <= stats.record_bytes);
    assert!(place.length() < 4_096 + 20 * SEGMENT, "{} bytes", place.length());
    for key in ["damaged result", "damaged doubt"] {
        assert_corrupt(store.get(key));
        assert_corrupt(store.begin(key, NONE));
        assert_corrupt(store.record(key, NONE, b"other"));
        assert_corrupt(store.replay_into(key, NONE, &mut Vec::new()));
    }
    store.compact().unwrap();
    assert_corrupt(store.get("damaged result"));
    store.close().unwrap();
    let store = options.open(&place.path).unwrap();
    assert_eq!(store.stats().unreadable_records, 2, "reclaiming dropped a damaged record");
    for key in ["damaged result", "damaged doubt"] {
        assert_corrupt(store.get(key));
        assert!(store.forget(key).unwrap());
        assert!(store.get(key).unwrap().is_absent());
        assert!(!store.forget(key).unwrap());
    }
    assert_eq!(store.stats().unreadable_records, 0);
    assert_eq!(acquire(&store, "damaged doubt").attempt(), 1);
    assert_eq!(store.get("undamaged").unwrap().result(), Some(&[8; 700][..]));
}

fn version(recorded: Recorded) -> Version {
    match recorded {
        Recorded::Done(version) => version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_with_a_damaged_record_can_be_removed() {
    for (in_tail, moved) in [(true, false), (false, false), (false, true)] {
        for by_compare_and_set in [false, true] {
            let place = Place::new();
            let clock = ManualClock::new(START_MS);
            let options = clocked(&clock).retention(seconds(1_000_000));
            let store = options.open(&place.path).unwrap();
            let done = version(store.record("done", NONE, &[9; 300]).unwrap());
            let doubt = acquire(&store, "doubt").version();
            let lease = acquire(&store, "leased");
            let leased = lease.version();
            if !in_tail {
                fill(&store);
            }
            for key in ["done", "doubt", "leased"] {
                flip(&place, record_of(&place, key) + 60);
                if !moved {
                    assert_corrupt(store.get(key));
                    assert_corrupt(store.get(key));
                }
            }
            if moved {
                traffic(&store, &clock, 3..30);
                assert!(store.stats().segments_retired > 5);
            }
            assert_eq!(store.stats().unreadable_records, 3);
            // A live lease protects its key, even if the record cannot be read.
            assert!(matches!(store.forget("leased"), Err(Error::InProgress { .. })));
            let remove = |key: &str, status, version: Version| {
                if !by_compare_and_set {
                    return assert!(store.forget(key).unwrap(), "{key}");
                }
                let expected = |status, version| Expected::Present { status, version };
                let other = Version::from_u64(version.as_u64() + 1);
                assert_corrupt(store.compare_and_set(key, expected(status, other), Next::Absent));
                assert_corrupt(store.compare_and_set(key, Expected::Absent, Next::Absent));
                let completed = Next::Completed { fingerprint: NONE, result: b"r" };
                assert_corrupt(store.compare_and_set(key, expected(status, version), completed));
                let swapped = store.compare_and_set(key, expected(status, version), Next::Absent).unwrap();
                assert!(matches!(swapped, CasOutcome::Done(_)), "{key}: {swapped:?}");
            };
            remove("done", Status::Completed, done);
            remove("doubt", Status::InDoubt, doubt);
            if by_compare_and_set {
                remove("leased", Status::InProgress, leased);
                assert!(matches!(lease.release(), Err(Error::Fenced { .. })));
            } else {
                drop(lease);
                remove("leased", Status::InDoubt, leased);
            }
            assert_eq!(store.stats().unreadable_records, 0);
            for key in ["done", "doubt", "leased"] {
                assert!(store.get(key).unwrap().is_absent());
                assert!(matches!(store.begin(key, NONE).unwrap(), Begin::Acquired(_)));
            }
        }
    }
}

#[test]
fn an_unreadable_record_is_kept_for_its_retention() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open(&place.path).unwrap();
    store.operation("kept").retain(seconds(1_000)).record(&[9; 300]).unwrap();
    store.operation("expired").retain(seconds(10)).record(&[9; 300]).unwrap();
    abandon(&store, "doubt");
    fill(&store);
    flip(&place, record_of(&place, "kept") + 90);
    flip(&place, record_of(&place, "doubt") + 30);
    flip(&place, record_of(&place, "expired") + 90);
    assert_corrupt(store.get("expired"));
    traffic(&store, &clock, 3..20);
    for key in ["kept", "doubt"] {
        assert_corrupt(store.get(key));
    }
    assert!(store.get("expired").unwrap().is_absent());
    clock.advance(seconds(1_000));
    for key in ["kept", "expired"] {
        assert!(store.get(key).unwrap().is_absent());
        assert_eq!(store.replay_into(key, NONE, &mut Vec::new()).unwrap(), None);
        assert!(!store.forget(key).unwrap());
    }
    assert_corrupt(store.get("doubt"));
    assert!(matches!(store.begin("kept", NONE).unwrap(), Begin::Acquired(_)));
    store.compact().unwrap();
    assert_corrupt(store.get("doubt"));
    assert_eq!(store.stats().unreadable_records, 1, "only the doubt is left, because it does not expire");
}

#[test]
fn a_released_key_with_a_damaged_record_stays_absent() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open(&place.path).unwrap();
    acquire(&store, "released").release().unwrap();
    fill(&store);
    flip(&place, record_of(&place, "released") + 60);
    assert!(store.get("released").unwrap().is_absent());
    assert_eq!(store.stats().unreadable_records, 0);
    assert_eq!(acquire(&store, "released").attempt(), 1, "the damage must reset only the count of attempts");
}

/// Moves a damaged record again and again, also after a close, after a crash, and with a damaged footer.
#[test]
fn a_moved_damaged_record_never_becomes_readable_again() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000));
    let mut store = options.open(&place.path).unwrap();
    store.record("damaged", NONE, &[9; 300]).unwrap();
    fill(&store);
    flip(&place, record_of(&place, "damaged") + 200);
    for round in 1..6 {
        traffic(&store, &clock, 10 * round..10 * round + 10);
        assert_corrupt(store.get("damaged"));
        let crashed = copy_while_open(&place.path);
        let mut bytes = crashed.bytes();
        for trailer in (4_096 + 65_536 - 64..bytes.len()).step_by(65_536) {
            bytes[trailer + 8] ^= 1;
        }
        let damaged = Place::new();
        std::fs::write(&damaged.path, bytes).unwrap();
        for place in [crashed, damaged] {
            let again = options.open(&place.path).unwrap();
            assert_eq!(again.stats().unreadable_records, 1);
            assert_corrupt(again.get("damaged"));
            again.compact().unwrap();
            assert_corrupt(again.get("damaged"));
            assert!(again.forget("damaged").unwrap());
        }
        if round % 2 == 0 {
            store.close().unwrap();
            store = options.open(&place.path).unwrap();
        }
    }
    // Damage the record into which reclaiming copied the damaged one.
    let bytes = place.bytes();
    let carried = bytes.windows(150).rposition(|window| window == [9; 150]).unwrap() as u64;
    flip(&place, carried);
    traffic(&store, &clock, 100..140);
    assert_corrupt(store.get("damaged"));
    assert!(store.forget("damaged").unwrap() && store.get("damaged").unwrap().is_absent());
}

#[test]
fn the_largest_possible_damaged_record_can_be_moved() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let refused = clocked(&clock).max_result(1 << 20).open_in_memory();
    let Err(Error::Option { reason, .. }) = refused else { panic!("{refused:?}") };
    let largest: usize = reason.rsplit(' ').next().unwrap().parse().unwrap();
    let options = clocked(&clock).retention(seconds(1_000_000)).max_result(largest);
    let store = options.open(&place.path).unwrap();
    let (name, scope) = ("n".repeat(1_024), "s".repeat(1_024));
    let key = Key::new(&name).scope(&scope);
    store.record(key, NONE, &vec![9; largest]).unwrap();
    fill(&store);
    let at = record_of(&place, &scope);
    flip(&place, at + 5_000);
    traffic(&store, &clock, 3..40);
    assert_corrupt(store.get(key));
    assert!(store.stats().segments_retired > 10, "{:?}", store.stats());
    // All of its bytes are still in the file, so that they can be analysed.
    let bytes = place.bytes();
    let whole = bytes.windows(4_000).any(|window| window == [9; 4_000]);
    assert!(whole && store.forget(key).unwrap());
}

/// If the footer is damaged too, the store cannot find the key of the damaged record. Reclaiming must then stop, and the
/// store must report that.
#[test]
fn a_stop_of_reclaiming_is_reported() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options =
        clocked(&clock).retention(seconds(1_000_000)).max_size(4_096 + 30 * SEGMENT).max_result(1_000);
    let store = options.open(&place.path).unwrap();
    store.record("damaged", NONE, &[9; 300]).unwrap();
    fill(&store);
    flip(&place, record_of(&place, "damaged") + 200);
    flip(&place, 4_096 + SEGMENT - 10);
    assert_corrupt(store.get("damaged"));
    assert_corrupt(store.forget("damaged"));
    assert_eq!(store.stats().unreadable_records, 1);
    assert!(!store.stats().reclaiming_stopped);
    let mut stopped = None;
    for n in 0..20_000 {
        let outcome = store.operation(&format!("{n}")).retain(seconds(1)).record(&[1; 400]);
        clock.advance(std::time::Duration::from_millis(50));
        match outcome {
            Ok(_) => {}
            Err(Error::Full { reason, .. }) => {
                stopped = Some(reason);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let reason = stopped.expect("the store never became full although it reclaims nothing");
    assert!(reason.contains("nothing can be reclaimed") && reason.contains("corrupt at offset"), "{reason}");
    let stats = store.stats();
    assert!(stats.reclaiming_stopped && stats.segments_retired == 0, "{stats:?}");
    assert_corrupt(store.compact());
    // Undo the damage to the footer, as if the disk had only misread it.
    flip(&place, 4_096 + SEGMENT - 10);
    store.compact().unwrap();
    assert!(!store.stats().reclaiming_stopped, "{:?}", store.stats());
    assert_corrupt(store.get("damaged"));
    assert!(store.forget("damaged").unwrap());
}

#[test]
fn a_damaged_record_is_moved_without_memory_maps_too() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000_000)).mmap(false).open(&place.path).unwrap();
    store.record("damaged", NONE, &[9; 700]).unwrap();
    fill(&store);
    // Damage the length of the record.
    flip(&place, record_of(&place, "damaged") + 5);
    traffic(&store, &clock, 3..40);
    assert!(store.stats().segments_retired > 10);
    assert_corrupt(store.get("damaged"));
    assert!(store.forget("damaged").unwrap());
}
