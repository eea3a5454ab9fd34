//! Checks how short `compact` makes the file, with and without `min_size`, that it keeps live records, and when `min_size`
//! extends the file.

use oncekey::{Error, ManualClock};

use crate::common::{
    FOOTER_ENTRY, NONE, Place, RECORD_HEADER, SEGMENT, START_MS, STORE_HEADER, clocked, copy_while_open,
    perform, seconds, small,
};

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
    assert_eq!(place.length(), STORE_HEADER + SEGMENT, "more than one segment is left");
    assert_eq!(store.stats().keys, 0);
    perform(&store, "k", b"r");
    store.close().unwrap();
    let store = clocked(&clock).open(&place.path).unwrap();
    assert!(store.get("k").unwrap().is_completed());
}

#[test]
fn min_size_applies_at_creation_and_after_a_compaction() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = || clocked(&clock).retention(seconds(10));
    let store = options().min_size(9 * SEGMENT).open(&place.path).unwrap();
    let length = STORE_HEADER + 9 * SEGMENT;
    assert_eq!(place.length(), length, "min_size did not give the file nine segments");
    for n in 0..500 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert_eq!(place.length(), length, "the file grew although it had space");
    clock.advance(seconds(10));
    store.record("live", NONE, b"r").unwrap();
    store.compact().unwrap();
    assert_eq!((place.length(), store.stats().keys), (length, 1));
    // The key and the result of this record have five bytes together, which are padded to eight.
    assert_eq!(
        store.stats().moved_bytes,
        RECORD_HEADER + 8,
        "compact did not move the live record exactly once: a second move is useless, because min_size forbids a shorter file"
    );
    for n in 0..3_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert!(place.length() > length, "the file did not grow beyond min_size");
    clock.advance(seconds(10));
    store.compact().unwrap();
    assert_eq!(place.length(), length);
}

#[test]
fn each_session_sets_its_own_min_size() {
    let place = Place::new();
    small().min_size(9 * SEGMENT).open(&place.path).unwrap().close().unwrap();
    // `min_size` is not stored in the file. A later session may set a larger one, up to `max_size`, or none at all.
    let store = small().min_size(100 * SEGMENT).max_size(100 * SEGMENT).open(&place.path).unwrap();
    // The header counts towards `max_size`, so only 99 whole segments fit.
    assert_eq!(place.length(), STORE_HEADER + 99 * SEGMENT);
    store.close().unwrap();
    let store = small().open(&place.path).unwrap();
    store.compact().unwrap();
    assert_eq!(place.length(), STORE_HEADER + SEGMENT);
}

#[test]
fn min_size_has_no_effect_in_memory() {
    let in_memory = small().min_size(100 * SEGMENT).open_in_memory().unwrap();
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
fn compact_leaves_little_more_than_the_live_records() {
    let place = Place::new();
    let store = place.open();
    // A key has 36 bytes, its result 256, and the padding after them 4. Moved records share frames, so frame headers take little space.
    let live_bytes = 4_000 * (RECORD_HEADER + 36 + 256 + 4 + FOOTER_ENTRY);
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
    let reopened = copy_while_open(&place.path).open();
    for n in 0..4_000 {
        assert_eq!(reopened.get(&format!("{n:036}")).unwrap().result(), Some(&[4; 256][..]));
    }
}
