//! Checks that a store refuses to open with the right error: on a file that is not a store or has a different format version,
//! with invalid options, and after the wall clock has jumped.

use std::os::unix::fs::PermissionsExt;

use oncekey::{Begin, ClockJump, Error, ManualClock, Options, Status};

use crate::common::{
    NONE, Place, SEGMENT, START_MS, abandon, clocked, copy_while_open, perform, seconds, small,
};
use crate::refuse;

#[test]
fn each_file_that_is_not_a_store_gets_the_right_error() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(refuse(directory.path()), Error::NotAStore { .. }));

    let foreign = directory.path().join("notes.txt");
    for content in [b"x".repeat(10), b"hello world ".repeat(2_000)] {
        std::fs::write(&foreign, content).unwrap();
        assert!(matches!(refuse(&foreign), Error::NotAStore { .. }));
    }

    let missing = directory.path().join("missing.once");
    match small().create(false).open(&missing) {
        Err(Error::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    assert!(!missing.exists());

    let empty = directory.path().join("empty.once");
    std::fs::write(&empty, b"").unwrap();
    match small().create(false).open(&empty) {
        Err(Error::NotAStore { reason, .. }) => assert!(reason.contains("empty"), "{reason}"),
        other => panic!("{other:?}"),
    }
    small().open(&empty).unwrap().close().unwrap();

    // Root can open every file, so this part runs only as a different user.
    let private = directory.path().join("private.once");
    std::fs::write(&private, b"").unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&private).is_err() {
        match small().open(&private) {
            Err(Error::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied),
            other => panic!("{other:?}"),
        }
    }
}

/// Changes a field of the store header and corrects the checksum, as if a different version of the library had written them.
fn change_header_field(place: &Place, at: usize, value: u32) {
    let mut bytes = place.bytes();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[12..512]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&place.path, bytes).unwrap();
}

#[test]
fn a_different_format_version_is_unsupported_rather_than_corrupt() {
    for (at, value, reason_part) in
        [(12, 2, "newer"), (12, 0, "older"), (20, 4, "read-compatible"), (24, 4, "incompatible")]
    {
        let place = Place::new();
        place.open().close().unwrap();
        change_header_field(&place, at, value);
        match refuse(&place.path) {
            Error::Unsupported { reason, .. } => assert!(reason.contains(reason_part), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let place = Place::new();
    place.open().close().unwrap();
    let mut bytes = place.bytes();
    bytes[12] ^= 1;
    std::fs::write(&place.path, bytes).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { offset: 0, .. }));
}

/// Changes the kind of the key's last record and corrects the checksums, as if a later version of the library had written it.
fn change_kind_of_last_record(bytes: &mut [u8], key: &[u8], kind: u8) {
    let record = bytes.windows(key.len()).rposition(|window| window == key).unwrap() - 80;
    let frame = record - 56;
    let seed = crc32fast::hash(&bytes[32..48]);
    let checksum = |bytes: &[u8]| {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(bytes);
        hasher.finalize()
    };
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let position = u64::from_le_bytes(bytes[frame + 8..frame + 16].try_into().unwrap()) + 56;
    let length = usize::try_from(word(record + 4)).unwrap();
    bytes[record + 8] = kind;
    let tie = u32::try_from(position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).unwrap();
    let sum = checksum(&bytes[record + 4..record + length]) ^ tie;
    bytes[record..record + 4].copy_from_slice(&sum.to_le_bytes());
    let records = checksum(&sum.to_le_bytes());
    bytes[frame + 28..frame + 32].copy_from_slice(&records.to_le_bytes());
    let header = checksum(&bytes[frame + 4..frame + 56]);
    bytes[frame..frame + 4].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn an_unknown_record_kind_is_refused_unless_it_is_ignorable() {
    let place = Place::new();
    let store = place.open();
    store.record("known", NONE, b"x").unwrap();
    store.record("newer", NONE, b"x").unwrap();
    let crashed = copy_while_open(&place.path);
    for (kind, opens) in [(48, false), (0x90, true)] {
        let mut bytes = crashed.bytes();
        change_kind_of_last_record(&mut bytes, b"newer", kind);
        let copy = Place::new();
        std::fs::write(&copy.path, bytes).unwrap();
        if opens {
            let store = copy.open();
            assert!(store.get("known").unwrap().is_completed());
            assert!(store.get("newer").unwrap().is_absent());
        } else {
            match refuse(&copy.path) {
                Error::Unsupported { reason, .. } => assert!(reason.contains("unknown kind"), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Gives the footer entry with this version, in the slot `slot`, an ignorable kind of a later format, and corrects the
/// checksum of the footer.
fn make_footer_entry_ignorable(bytes: &mut [u8], slot: usize, version: u64) {
    let seed = crc32fast::hash(&bytes[32..48]);
    let slot_end = 4_096 + (slot + 1) * usize::try_from(SEGMENT).unwrap();
    let trailer_at = slot_end - 64;
    assert_eq!(&bytes[trailer_at..trailer_at + 8], b"ONCEFOOT", "slot {slot} has no footer");
    let count = u32::from_le_bytes(bytes[trailer_at + 12..trailer_at + 16].try_into().unwrap()) as usize;
    let entries_at = trailer_at - count * 48;
    let entry_at = (0..count)
        .map(|entry| entries_at + entry * 48)
        .find(|at| bytes[at + 16..at + 24] == version.to_le_bytes())
        .unwrap();
    bytes[entry_at + 47] = 0x80;
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&bytes[trailer_at + 12..slot_end]);
    hasher.update(&bytes[entries_at..trailer_at]);
    bytes[trailer_at + 8..trailer_at + 12].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[test]
fn an_ignorable_footer_entry_does_not_hide_the_earlier_record() {
    let place = Place::new();
    let store = place.open();
    abandon(&store, "k");
    let fill = |from: u32| {
        for n in from.. {
            store.record(&format!("filler-{n}"), NONE, &[1; 1_000]).unwrap();
            if u64::from(n - from) * 1_000 > SEGMENT {
                break;
            }
        }
    };
    fill(0);
    let Begin::InDoubt(mut doubt) = store.begin("k", NONE).unwrap() else { panic!("no doubt") };
    doubt.complete(b"done").unwrap();
    drop(doubt);
    let version = store.get("k").unwrap().version().unwrap().as_u64();
    fill(1_000);
    fill(2_000);
    store.close().unwrap();
    let mut bytes = place.bytes();
    make_footer_entry_ignorable(&mut bytes, 1, version);
    std::fs::write(&place.path, bytes).unwrap();
    assert_eq!(
        place.open().get("k").unwrap().status(),
        Status::InDoubt,
        "the ignorable entry hides the earlier record"
    );
}

#[test]
fn a_wall_clock_jump_is_refused_before_anything_expires() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let day_ms = 24 * 3_600 * 1_000;
    let store = clocked(&clock).open(&place.path).unwrap();
    perform(&store, "k", b"r");
    store.close().unwrap();
    for jumped_ms in [START_MS - day_ms - 1, START_MS + 366 * day_ms + 1] {
        let bytes = place.bytes();
        let jumped = ManualClock::new(jumped_ms);
        match clocked(&jumped).open(&place.path) {
            Err(Error::Clock { wall_ms, last_wall_ms, store_time_ms, .. }) => {
                assert_eq!((wall_ms, last_wall_ms, store_time_ms), (jumped_ms, START_MS, START_MS));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(place.bytes(), bytes, "the store refused the clock, but changed the file");
    }
    // Store time stands still if the clock is a day behind, and also if it is far behind and the jump is accepted.
    for days in [1, 10] {
        let behind = ManualClock::new(START_MS - days * day_ms);
        let options = clocked(&behind).accept_clock_jump(ClockJump::NotElapsed);
        let store = options.open(&place.path).unwrap();
        assert_eq!(store.stats().store_time_ms, START_MS);
        assert!(store.get("k").unwrap().is_completed());
    }
    let ahead = ManualClock::new(START_MS + 400 * day_ms);
    let store = clocked(&ahead).accept_clock_jump(ClockJump::Elapsed).open(&place.path).unwrap();
    assert!(
        store.get("k").unwrap().is_absent(),
        "the key did not expire although the jump was accepted as elapsed time"
    );
}

#[test]
fn invalid_options_are_refused_and_create_no_file() {
    let place = Place::new();
    let cases: [(&str, Options); 8] = [
        ("segment_size", Options::new().segment_size(1_000)),
        ("segment_size", Options::new().segment_size(32 << 10)),
        ("segment_size", Options::new().segment_size(3 << 20)),
        ("max_size", small().max_size(3 * SEGMENT)),
        ("min_size", small().max_size(10 * SEGMENT).min_size(10 * SEGMENT + 1)),
        ("max_result", small().max_result(20_000)),
        ("result_retention", small().retention(seconds(10)).result_retention(seconds(11))),
        ("lease", small().retention(seconds(10)).lease(seconds(11))),
    ];
    for (expected, options) in cases {
        match options.open(&place.path) {
            Err(Error::Option { option, reason, .. }) => {
                assert_eq!(option, expected);
                assert!(!reason.is_empty());
            }
            other => panic!("{expected}: {other:?}"),
        }
        assert!(!place.path.exists());
    }
}
