//! Checks that a released key takes neither space in the file nor an entry in the index once its record is reclaimed, and that
//! reclaiming the record does not bring back an older one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, SEGMENT, START_MS, acquire, clocked, copy_while_open, perform, seconds};
use oncekey::{Begin, Durability, ManualClock};

const DAY: u64 = 86_400;

/// The store's clock does not advance, so expiry frees nothing.
#[test]
fn releases_never_fill_a_store_of_limited_size() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock)
        .retention(seconds(7 * DAY))
        .durability(Durability::Buffered)
        .max_result(1_000)
        .max_size(4_096 + 15 * SEGMENT);
    let store = options.open(&place.path).unwrap();
    for n in 0..30_000 {
        match store.begin(&format!("k{n}"), NONE) {
            Ok(Begin::Acquired(lease)) => lease.release().unwrap(),
            other => panic!("release {n}: {other:?}, {:?}", store.stats()),
        }
    }
    assert!(store.stats().keys < 10_000, "the index keeps released keys: {:?}", store.stats());
    store.compact().unwrap();
    assert_eq!(store.stats().keys, 0);
    assert_eq!(place.length(), 4_096 + SEGMENT, "more than one segment is left");
    assert!(store.get("k17").unwrap().is_absent());
    assert_eq!(store.get("k17").unwrap().attempt(), 0, "the count of attempts must be lost with the record");
    assert_eq!(acquire(&store, "k17").attempt(), 1, "the count of attempts did not restart");
}

#[test]
fn a_released_record_is_dead_but_counts_attempts_until_reclaimed() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    acquire(&store, "k").release().unwrap();
    assert_eq!(store.get("k").unwrap().attempt(), 1);
    let stats = store.stats();
    assert_eq!(
        stats.dead_bytes, stats.record_bytes,
        "the begin or the release is counted as live: {stats:?}"
    );
    assert_eq!(acquire(&store, "k").attempt(), 2);
}

/// Once reclaiming has dropped a release, the begin before it must not reappear, in this process or after a crash at any
/// moment of the reclaiming.
#[test]
fn reclaiming_a_release_does_not_bring_back_older_records() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(DAY)).open(&place.path).unwrap();
    for n in 0..40 {
        acquire(&store, &format!("released{n}")).release().unwrap();
        perform(&store, &format!("kept{n}"), &[1; 300]);
    }
    for round in 0..25 {
        for n in 0..30 {
            let key = format!("filler{round}/{n}");
            store.operation(&key).retain(seconds(1)).record(&[2; 1_500]).unwrap();
        }
        clock.advance(seconds(2));
        let crashed = copy_while_open(&place.path);
        for store in [&store, &clocked(&clock).open(&crashed.path).unwrap()] {
            for n in 0..40 {
                let seen = store.get(&format!("released{n}")).unwrap();
                assert!(seen.is_absent() && seen.attempt() <= 1, "round {round}, {n}: {seen:?}");
                assert_eq!(store.get(&format!("kept{n}")).unwrap().result(), Some(&[1; 300][..]));
            }
        }
    }
    assert!(store.stats().segments_retired > 10, "{:?}", store.stats());
    assert_eq!(store.get("released0").unwrap().attempt(), 0, "the release was not reclaimed");
}
