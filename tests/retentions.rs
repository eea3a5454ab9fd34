//! Checks that the space of expired records becomes free, in a store that mixes retentions of every order of magnitude.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, SEGMENT, START_MS, clocked, seconds};
use oncekey::{Durability, Error, ManualClock, Store};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// Retentions from a second to ten years, in seconds.
const RETENTIONS: [u64; 10] =
    [1, 10, MINUTE, 10 * MINUTE, 2 * HOUR, DAY, 10 * DAY, 100 * DAY, 3 * YEAR, 10 * YEAR];

fn record_for(store: &Store, key: &str, retention: u64, bytes: usize) -> Result<(), Error> {
    let operation = store.operation(key).retain(seconds(retention)).retain_result(seconds(retention));
    operation.record(&vec![7; bytes]).map(drop)
}

/// In each minute, records with a retention of a minute fill about half of the file. The file also contains thousands of
/// records with retentions from a day to ten years, all of them different.
#[test]
fn a_store_with_max_size_reuses_the_space_of_expired_records() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).durability(Durability::Buffered).max_size(4_096 + 32 * SEGMENT);
    let options = options.max_result(1_000);
    let mut store = options.open(&place.path).unwrap();
    for n in 0..4_500_u64 {
        record_for(&store, &format!("long{n}"), DAY + n * (10 * YEAR / 4_500), 0).unwrap();
    }
    let (mut refused, mut recorded) = (0, 0);
    for round in 0..48 {
        for n in 0..1_200 {
            match record_for(&store, &format!("{round}/{n}"), MINUTE, 400) {
                Ok(()) => recorded += 1,
                Err(Error::Full { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        clock.advance(seconds(MINUTE));
        if round % 12 == 11 {
            store.close().unwrap();
            store = options.open(&place.path).unwrap();
        }
    }
    assert_eq!(refused, 0, "some of {} records were refused, {:?}", refused + recorded, store.stats());
    assert!(place.length() <= 4_096 + 32 * SEGMENT);
    assert!(store.get("long0").unwrap().is_completed() && store.get("long4499").unwrap().is_completed());
}

/// The clock advances in steps of every order of magnitude. After each step, new records fit into the space of those that
/// have just expired.
#[test]
fn the_space_of_expired_records_is_free_at_once() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).durability(Durability::Buffered).max_size(4_096 + 40 * SEGMENT);
    let store = options.max_result(1_000).open(&place.path).unwrap();
    let fill = |name: &str, retention: u64, count: u32| {
        for n in 0..count {
            let outcome = record_for(&store, &format!("{name}/{retention}/{n}"), retention, 400);
            outcome
                .unwrap_or_else(|error| panic!("{name}, {retention} s, {n}: {error}, {:?}", store.stats()));
        }
    };
    // Records for ten years take a third of the file.
    fill("whole", 10 * YEAR, 1_200);
    for (at, retention) in RETENTIONS[..9].iter().enumerate() {
        fill(&format!("a{at}"), *retention, 1_500);
        // Advance by exactly the retention. The estimate of dead bytes may be late, but the space must be free.
        clock.advance(seconds(*retention));
        fill(&format!("b{at}"), 1, 1_500);
        clock.advance(seconds(1));
    }
    for n in 0..1_200 {
        assert!(store.get(&format!("whole/{}/{n}", 10 * YEAR)).unwrap().is_completed(), "{n}");
    }
}

/// A compaction removes records exactly when they expire, to the millisecond. That holds for every retention, and also after
/// the store was reopened.
#[test]
fn compact_removes_expired_records_to_the_millisecond() {
    for reopened in [false, true] {
        for retention in RETENTIONS {
            let place = Place::new();
            let clock = ManualClock::new(START_MS);
            let options = clocked(&clock).durability(Durability::Buffered);
            let mut store = options.open(&place.path).unwrap();
            for n in 0..1_000 {
                record_for(&store, &format!("k{n}"), retention, 400).unwrap();
            }
            if reopened {
                store.close().unwrap();
                store = options.open(&place.path).unwrap();
            }
            clock.advance(seconds(retention) - std::time::Duration::from_millis(1));
            store.compact().unwrap();
            assert_eq!(store.stats().keys, 1_000, "{retention} s: a record expired a millisecond early");
            assert!(place.length() > 8 * SEGMENT);
            clock.advance(std::time::Duration::from_millis(1));
            store.compact().unwrap();
            assert_eq!(place.length(), 4_096 + SEGMENT, "{retention} s, reopened: {reopened}");
            assert_eq!(store.stats().keys, 0);
        }
    }
}

/// An expired record counts as dead after at most a fixed share of its own retention, whatever other records there are.
#[test]
fn other_records_do_not_delay_noticing_an_expiry() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).durability(Durability::Buffered).open_in_memory().unwrap();
    // Thousands of expiries in the future, as far apart as possible.
    for n in 0..6_000_u64 {
        record_for(&store, &format!("far{n}"), DAY + n * (10 * YEAR / 6_000), 1).unwrap();
    }
    for retention in RETENTIONS {
        let before = store.stats().dead_bytes;
        for n in 0..20 {
            record_for(&store, &format!("near{retention}/{n}"), retention, 400).unwrap();
        }
        clock.advance(seconds(retention) + seconds(retention) / 16);
        let dead = store.stats().dead_bytes - before;
        assert!(dead >= 20 * 480, "{retention} s: only {dead} bytes are counted as dead");
    }
    store.record("k", NONE, b"r").unwrap();
}
