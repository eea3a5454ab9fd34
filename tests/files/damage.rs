//! Checks that recovery repairs a file that a crash left incomplete, and that a damaged file is refused or reported.

use oncekey::{Error, Store};

use crate::common::{NONE, Place, SEGMENT, acquire, copy_while_open, perform, small};
use crate::refuse;

#[test]
fn an_interrupted_creation_is_finished_but_not_a_lost_header() {
    for length in [0, 1, 511, 512, 4_096, 4_097, 4_608, 4_096 + SEGMENT] {
        let place = Place::new();
        std::fs::write(&place.path, vec![0; usize::try_from(length).unwrap()]).unwrap();
        let store = place.open();
        perform(&store, "k", b"r");
    }
    // The segment header was written, but the store header was not.
    let place = Place::new();
    drop(place.open());
    let mut bytes = place.bytes();
    bytes[..4_096].fill(0);
    let segment_header_end = 4_096 + 512;
    let mut early = bytes.clone();
    early[segment_header_end..].fill(0);
    std::fs::write(&place.path, early).unwrap();
    perform(&place.open(), "k", b"r");
    // Here the segment contains a frame as well, so the store header was lost after the creation.
    std::fs::write(&place.path, bytes).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { offset: 0, .. }));
}

#[test]
fn a_torn_tail_is_dropped_unless_a_later_frame_attests_it() {
    // Power is lost while the third record is being written. The first two are synced, so only the third may be torn.
    let place = Place::new();
    let store = place.open();
    store.record("first", NONE, b"1").unwrap();
    store.record("second", NONE, b"2").unwrap();
    let before = copy_while_open(&place.path);
    store.record("third", NONE, b"3").unwrap();
    let crashed = copy_while_open(&place.path);
    let old = before.bytes();
    let new = crashed.bytes();
    let changed: Vec<usize> = (0..new.len()).filter(|at| new[*at] != old[*at]).collect();
    let (from, to) = (changed[0], changed[changed.len() - 1] + 1);

    // Wherever the third is torn, it is lost, the others are kept, and the store accepts records.
    for cut in [from, from + 8, (from + to) / 2, to - 1] {
        let mut torn = new.clone();
        torn[cut..to].copy_from_slice(&old[cut..to]);
        std::fs::write(&crashed.path, torn).unwrap();
        let store = crashed.open();
        assert!(store.get("first").unwrap().is_completed() && store.get("second").unwrap().is_completed());
        assert!(store.get("third").unwrap().is_absent());
        store.record("third", NONE, b"again").unwrap();
        drop(store);
        assert_eq!(crashed.open().get("third").unwrap().result(), Some(&b"again"[..]));
    }

    // The third frame attests that everything before it was on disk. So damage before it is refused, with the offset.
    let mut damaged = new.clone();
    damaged[from - 40] ^= 1;
    std::fs::write(&crashed.path, damaged).unwrap();
    match refuse(&crashed.path) {
        Error::Corrupt { offset, reason, .. } => {
            assert!(offset < from as u64, "{offset}");
            assert!(reason.contains("later frame"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_to_the_last_record_is_noticed_after_a_close() {
    let place = Place::new();
    let store = place.open();
    store.record("last", NONE, b"result").unwrap();
    store.close().unwrap();
    let bytes = place.bytes();
    let record = bytes.windows(6).position(|window| window == b"result").unwrap();
    let mut damaged = bytes.clone();
    damaged[record] ^= 1;
    std::fs::write(&place.path, &damaged).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { .. }));
    // The result is the same if one of the two close marks is damaged too, because the other suffices.
    damaged[4_096 + 512] ^= 1;
    std::fs::write(&place.path, &damaged).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { .. }));
}

#[test]
fn a_truncated_file_is_refused_or_loses_only_free_space() {
    let place = Place::new();
    let store = place.open();
    for n in 0..600 {
        perform(&store, &format!("k{n}"), &[7; 100]);
    }
    store.close().unwrap();
    let bytes = place.bytes();
    let cuts = (1..bytes.len()).step_by(9_973).chain([1, 100, 511, 4_095, 4_096, bytes.len() - 1]);
    for cut in cuts {
        std::fs::write(&place.path, &bytes[..cut]).unwrap();
        let opened = small().create(false).open(&place.path);
        match opened {
            Ok(store) => {
                for n in 0..600 {
                    assert!(store.get(&format!("k{n}")).unwrap().is_completed(), "cut at {cut} lost k{n}");
                }
            }
            Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => {
                assert_eq!(
                    std::fs::read(&place.path).unwrap(),
                    &bytes[..cut],
                    "cut at {cut}: the refused file was changed"
                );
            }
            Err(other) => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn a_torn_footer_is_rebuilt_from_the_records() {
    let place = Place::new();
    let store = place.open();
    for n in 0..600 {
        perform(&store, &format!("k{n}"), &[7; 100]);
    }
    drop(store);
    let mut bytes = place.bytes();
    let footers: Vec<usize> = (4_096..bytes.len())
        .step_by(usize::try_from(SEGMENT).unwrap())
        .map(|slot| slot + usize::try_from(SEGMENT).unwrap() - 64)
        .filter(|at| bytes.get(*at..*at + 8) == Some(b"ONCEFOOT"))
        .collect();
    assert!(footers.len() > 2);
    for footer in footers {
        bytes[footer..footer + 64].fill(0xEE);
    }
    std::fs::write(&place.path, bytes).unwrap();
    let store = place.open();
    for n in 0..600 {
        assert!(store.get(&format!("k{n}")).unwrap().is_completed());
    }
    store.compact().unwrap();
    assert!(store.get("k0").unwrap().is_completed());
}

#[test]
fn damage_to_a_moved_last_record_is_noticed() {
    let place = Place::new();
    let store = place.open();
    for n in 0..900 {
        store.record(&format!("gone{n}"), NONE, &[0; 100]).unwrap();
        store.forget(&format!("gone{n}")).unwrap();
    }
    store.record("kept", NONE, b"acknowledged long ago").unwrap();
    store.compact().unwrap();
    assert!(store.stats().moved_bytes > 0);
    let crashed = copy_while_open(&place.path);
    let mut bytes = crashed.bytes();
    let record = bytes.windows(12).rposition(|window| window == b"acknowledged").unwrap();
    bytes[record] ^= 1;
    std::fs::write(&crashed.path, bytes).unwrap();
    match refuse(&crashed.path) {
        Error::Corrupt { reason, .. } => assert!(reason.contains("header"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// If several records have the same hash, they are read while the store is being opened, to compare their keys. A record
/// that cannot be read must then affect only its own key.
#[test]
fn a_damaged_record_of_an_earlier_key_affects_only_that_key() {
    let place = Place::new();
    let store = place.open();
    let mut leases: Vec<_> = (0..10).map(|n| acquire(&store, &format!("twice-{n}"))).collect();
    let perform_many =
        |from| (from..from + 600).for_each(|n| perform(&store, &format!("once-{n}"), &[7; 300]));
    perform_many(0);
    for lease in &mut leases {
        lease.complete(b"done").unwrap();
    }
    perform_many(600);
    drop(leases);
    store.close().unwrap();
    let whole = std::fs::read(&place.path).unwrap();
    let counts = |store: &Store| (store.stats().keys, store.stats().record_bytes, store.stats().dead_bytes);
    let store = place.open();
    let expected = counts(&store);
    assert_eq!(expected.0, 1_210);
    store.close().unwrap();
    let records: Vec<usize> =
        whole.windows(7).enumerate().filter(|(_, at)| at == b"twice-3").map(|(at, _)| at).collect();
    assert_eq!(records.len(), 2, "the key must have two records, a begin and a completion");
    assert!((records[1] - records[0]) as u64 > 2 * SEGMENT, "the two records must be in different segments");

    for damaged in [&records[..1], &records[1..], &records[..]] {
        let mut bytes = whole.clone();
        for at in damaged {
            bytes[*at] ^= 1;
        }
        std::fs::write(&place.path, bytes).unwrap();
        let store = place.open();
        assert_eq!(counts(&store), expected, "a record was counted twice");
        match store.get("twice-3") {
            Ok(seen) => assert_eq!((seen.result(), damaged), (Some(&b"done"[..]), &records[..1])),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
                assert_eq!(damaged.last(), records.last());
            }
        }
        for n in (0..10).filter(|n| *n != 3) {
            assert_eq!(store.get(&format!("twice-{n}")).unwrap().result(), Some(&b"done"[..]));
        }
    }
}
