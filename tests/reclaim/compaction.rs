//! Checks how short `compact` makes the file, with and without `min_size`.

use oncekey::{Error, ManualClock};

use crate::common::{NONE, Place, SEGMENT, START_MS, clocked, copy_of_open, perform, seconds};

#[test]
fn compact_frees_the_file_when_nothing_is_live() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(10)).open(&place.path).unwrap();
    for n in 0..3_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    let grown = place.length();
    assert!(grown > 12 * SEGMENT);
    clock.advance(seconds(10));
    store.compact().unwrap();
    assert_eq!(place.length(), 4_096 + SEGMENT, "more than one segment is left");
    assert_eq!(store.stats().keys, 0);
    perform(&store, "k", b"r");
    store.close().unwrap();
    let store = clocked(&clock).open(&place.path).unwrap();
    assert!(store.get("k").unwrap().is_completed());
}

#[test]
fn min_size_applies_from_the_first_session_and_after_a_compaction() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = || clocked(&clock).retention(seconds(10));
    let store = options().min_size(9 * SEGMENT).open(&place.path).unwrap();
    let length = 4_096 + 9 * SEGMENT;
    assert_eq!(place.length(), length, "the length is not that of the header and whole segments");
    for n in 0..500 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert_eq!(place.length(), length, "the file grew although it had space");
    clock.advance(seconds(10));
    store.record("live", NONE, b"r").unwrap();
    store.compact().unwrap();
    assert_eq!((place.length(), store.stats().keys), (length, 1));
    assert!(
        store.stats().moved_bytes < 200,
        "compact moved a record only to free a slot that min_size keeps"
    );
    for n in 0..3_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert!(place.length() > length, "the file did not grow beyond min_size");
    clock.advance(seconds(10));
    store.compact().unwrap();
    assert_eq!(place.length(), length);
    store.close().unwrap();
    // `min_size` is an option of the session and not a property of the file. A later session may have a larger one, which
    // `max_size` limits, or none.
    let store = options().min_size(100 * SEGMENT).max_size(100 * SEGMENT).open(&place.path).unwrap();
    assert_eq!(place.length(), 4_096 + 99 * SEGMENT, "longer than max_size");
    store.close().unwrap();
    let store = options().open(&place.path).unwrap();
    store.compact().unwrap();
    assert_eq!(place.length(), 4_096 + SEGMENT);
    let in_memory = options().min_size(100 * SEGMENT).segment_size(SEGMENT).open_in_memory().unwrap();
    assert!(in_memory.stats().file_bytes < 10 * SEGMENT, "a store in memory reserved min_size");
}

#[test]
fn a_store_that_refuses_to_open_does_not_grow_the_file() {
    let place = Place::new();
    place.open().close().unwrap();
    let length = place.length();
    // The store can check this `max_result` only once it has read the segment size from the header of the file.
    let refused = oncekey::Options::new().max_result(100_000).min_size(100 * SEGMENT).open(&place.path);
    assert!(matches!(refused, Err(Error::Option { option: "max_result", .. })), "{refused:?}");
    assert_eq!(place.length(), length);
}

#[test]
fn compact_keeps_everything_if_all_records_are_live() {
    let place = Place::new();
    let store = place.open();
    for n in 0..2_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    let before = place.length();
    for _ in 0..3 {
        store.compact().unwrap();
        assert!(place.length() <= before);
    }
    for n in 0..2_000 {
        assert!(store.get(&format!("k{n}")).unwrap().is_completed());
    }
}

#[test]
fn compact_leaves_little_more_than_the_live_frames() {
    let place = Place::new();
    let store = place.open();
    let live_bytes: u64 = 4_000 * (80 + 40 + 256 + 48);
    for n in 0..4_000 {
        perform(&store, &format!("{n:036}"), &[3; 256]);
    }
    for n in 0..4_000 {
        store.forget(&format!("{n:036}")).unwrap();
        perform(&store, &format!("{n:036}"), &[4; 256]);
    }
    store.compact().unwrap();
    let length = place.length();
    assert!(length < live_bytes * 5 / 4, "the file has {length} bytes, of which {live_bytes} are live");
    let reopened = copy_of_open(&place.path).open();
    for n in 0..4_000 {
        assert_eq!(reopened.get(&format!("{n:036}")).unwrap().result(), Some(&[4; 256][..]));
    }
}
