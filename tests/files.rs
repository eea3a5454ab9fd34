//! Files: what opening accepts, what it refuses and how it says so, and that refusing changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{
    NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_of_open, perform, seconds, small,
};
use oncekey::{Begin, ClockJump, Durability, Error, ManualClock, Options, Status, Store};

fn refuse(path: &Path) -> Error {
    let before = std::fs::read(path).unwrap_or_default();
    let error = small().open(path).expect_err("must be refused");
    assert_eq!(std::fs::read(path).unwrap_or_default(), before, "a refused file was changed: {error}");
    assert!(error.to_string().contains(&path.display().to_string()), "the error names the file: {error}");
    error
}

#[test]
fn everything_is_there_again_after_closing_and_after_a_crash() {
    let place = Place::new();
    let store = place.open();
    for n in 0..2_000 {
        perform(&store, &format!("done-{n}"), format!("result {n}").as_bytes());
    }
    abandon(&store, "doubt");
    acquire(&store, "released").release().unwrap();
    store.record("forgotten", NONE, b"r").unwrap();
    store.forget("forgotten").unwrap();
    let crashed = copy_of_open(&place.path);
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
            assert!(store.stats().segments > 5, "the test means to see many segments");
        }
    }
}

#[test]
fn a_file_is_created_for_its_owner_alone() {
    let place = Place::new();
    drop(place.open());
    assert_eq!(std::fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_open_is_locked_until_the_last_lease_of_the_first_is_gone() {
    let place = Place::new();
    let store = place.open();
    let lease = acquire(&store, "k");
    assert!(matches!(small().open(&place.path), Err(Error::Locked { .. })));
    drop(store);
    assert!(matches!(small().open(&place.path), Err(Error::Locked { .. })), "a lease is alive");
    drop(lease);
    assert_eq!(place.open().get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn close_refuses_while_leases_live_and_ends_the_store_for_all_handles() {
    let place = Place::new();
    let store = place.open();
    let lease = acquire(&store, "k");
    match store.close() {
        Err(Error::LeasesAlive { count: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    lease.release().unwrap();
    let other = store.clone();
    store.close().unwrap();
    assert!(matches!(other.get("k"), Err(Error::Closed)));
    assert!(matches!(other.begin("k", NONE), Err(Error::Closed)));
    assert!(matches!(other.close(), Err(Error::Closed)));
}

#[test]
fn a_directory_a_foreign_file_a_missing_file_and_one_without_permission_get_their_own_errors() {
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

    // Root may read and write everything, so there is nothing to see then.
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

/// Rewrites a field of the store header and its checksum, as another version of the library would have.
fn with_header_field(place: &Place, at: usize, value: u32) {
    let mut bytes = place.bytes();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[12..512]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&place.path, bytes).unwrap();
}

#[test]
fn another_format_version_and_unknown_features_are_told_apart_from_damage() {
    for (at, value, says) in
        [(12, 2, "newer"), (12, 0, "older"), (20, 4, "read-compatible"), (24, 4, "incompatible")]
    {
        let place = Place::new();
        place.open().close().unwrap();
        with_header_field(&place, at, value);
        match refuse(&place.path) {
            Error::Unsupported { reason, .. } => assert!(reason.contains(says), "{reason}"),
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

#[test]
fn a_creation_that_was_cut_short_is_finished_and_a_lost_header_is_not_taken_for_one() {
    for length in [0, 1, 511, 512, 4_096, 4_097, 4_608, 4_096 + SEGMENT] {
        let place = Place::new();
        std::fs::write(&place.path, vec![0; usize::try_from(length).unwrap()]).unwrap();
        let store = place.open();
        perform(&store, "k", b"r");
    }
    // The segment header was written, the store header was not.
    let place = Place::new();
    drop(place.open());
    let mut bytes = place.bytes();
    bytes[..4_096].fill(0);
    let behind_its_header = 4_096 + 512;
    let mut early = bytes.clone();
    early[behind_its_header..].fill(0);
    std::fs::write(&place.path, early).unwrap();
    perform(&place.open(), "k", b"r");
    // The same, and there had been a frame: the header was lost later.
    std::fs::write(&place.path, bytes).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { offset: 0, .. }));
}

#[test]
fn a_torn_tail_is_dropped_only_if_nothing_behind_it_says_that_it_was_on_disk() {
    // Two synced operations, then the machine loses power while a third is on its way: only the third may be torn.
    let place = Place::new();
    let store = place.open();
    store.record("first", NONE, b"1").unwrap();
    store.record("second", NONE, b"2").unwrap();
    let before = copy_of_open(&place.path);
    store.record("third", NONE, b"3").unwrap();
    let crashed = copy_of_open(&place.path);
    let old = before.bytes();
    let new = crashed.bytes();
    let changed: Vec<usize> = (0..new.len()).filter(|at| new[*at] != old[*at]).collect();
    let (from, to) = (changed[0], changed[changed.len() - 1] + 1);

    // Torn anywhere in its last bytes: the third is gone, the others are there, and the store goes on.
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

    // A hole in front of the third, which says that everything before it was on disk: refused, with the place.
    let mut holed = new.clone();
    holed[from - 40] ^= 1;
    std::fs::write(&crashed.path, holed).unwrap();
    match refuse(&crashed.path) {
        Error::Corrupt { offset, reason, .. } => {
            assert!(offset < from as u64, "{offset}");
            assert!(reason.contains("later frame"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_clean_close_no_byte_of_the_last_record_can_be_lost_unnoticed() {
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
    // One damaged mark leaves the other.
    damaged[4_096 + 512] ^= 1;
    std::fs::write(&place.path, &damaged).unwrap();
    assert!(matches!(refuse(&place.path), Error::Corrupt { .. }));
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused_or_loses_only_what_was_free() {
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
                assert_eq!(std::fs::read(&place.path).unwrap(), &bytes[..cut], "changed at {cut}");
            }
            Err(other) => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn a_footer_that_was_torn_is_made_again_from_the_records() {
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
fn a_wall_clock_that_jumped_is_refused_before_anything_expires() {
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
        assert_eq!(place.bytes(), bytes, "nothing was changed");
    }
    // By a clock that is a little behind, store time stands; by one far behind too, if that is accepted.
    for days in [1, 10] {
        let behind = ManualClock::new(START_MS - days * day_ms);
        let options = clocked(&behind).accept_clock_jump(ClockJump::NotElapsed);
        let store = options.open(&place.path).unwrap();
        assert_eq!(store.stats().store_time_ms, START_MS);
        assert!(store.get("k").unwrap().is_completed());
    }
    let ahead = ManualClock::new(START_MS + 400 * day_ms);
    let store = clocked(&ahead).accept_clock_jump(ClockJump::Elapsed).open(&place.path).unwrap();
    assert!(store.get("k").unwrap().is_absent(), "accepted, the clock is believed");
}

#[test]
fn a_clock_that_steps_while_the_store_is_open_is_not_followed_and_is_reported() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).open_in_memory().unwrap();
    perform(&store, "k", b"r");
    clock.jump_wall(START_MS + 1_000_000_000);
    clock.advance(seconds(5));
    assert!(store.get("k").unwrap().is_completed(), "the jump expired nothing");
    assert_eq!(store.stats().clock_steps_not_followed, 1);
    clock.advance(seconds(995));
    assert!(store.get("k").unwrap().is_absent(), "time that passed did");
}

#[test]
fn what_the_log_holds_is_counted_the_same_after_an_opening() {
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
        assert_eq!(counted(&copy_of_open(&place.path).open()), before, "after a crash");
        store.close().unwrap();
        assert_eq!(counted(&place.open()), before, "after a close");
    }
}

#[test]
fn buffered_records_survive_the_process_and_sync_makes_them_survive_more() {
    let place = Place::new();
    let store = small().durability(Durability::Buffered).open(&place.path).unwrap();
    let before = store.stats().syncs;
    for n in 0..50 {
        perform(&store, &format!("k{n}"), b"r");
    }
    assert_eq!(store.stats().syncs, before, "nothing was synced");
    let crashed = copy_of_open(&place.path);
    assert!(crashed.open().get("k49").unwrap().is_completed());
    store.sync().unwrap();
    assert_eq!(store.stats().syncs, before + 1);
    store.sync().unwrap();
    assert_eq!(store.stats().syncs, before + 1, "there is nothing left to sync");
}

#[test]
fn a_sync_caller_is_never_answered_from_beyond_the_durable_position() {
    let store = small().open_in_memory().unwrap();
    let buffered = store.operation("k").durability(Durability::Buffered);
    assert!(matches!(buffered.record(b"r"), Ok(oncekey::Recorded::Done(_))));
    let before = store.stats().syncs;
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().syncs, before + 1, "the answer was made durable first");
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().syncs, before + 1);
}

#[test]
fn the_number_of_syncs_is_two_an_operation_and_one_with_rerun_or_record() {
    let store = small().open_in_memory().unwrap();
    let syncs = |work: &dyn Fn()| {
        let before = store.stats().syncs;
        work();
        store.stats().syncs - before
    };
    assert_eq!(syncs(&|| perform(&store, "a", b"r")), 2);
    assert_eq!(syncs(&|| drop(store.record("b", NONE, b"r"))), 1);
    let act = |_: &oncekey::Attempt| Ok::<_, Error>(1_u8);
    assert_eq!(syncs(&|| drop(store.operation("c").rerun().run(act))), 1);
    assert_eq!(syncs(&|| drop(store.operation("c").rerun().run(act))), 0, "a replay writes nothing");
}

#[test]
fn options_that_make_no_sense_are_refused_at_open_and_no_file_is_made() {
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
    for (named, options) in cases {
        match options.open(&place.path) {
            Err(Error::Option { option, reason, .. }) => {
                assert_eq!(option, named);
                assert!(!reason.is_empty());
            }
            other => panic!("{named}: {other:?}"),
        }
        assert!(!place.path.exists());
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

#[test]
fn a_store_in_memory_ends_with_its_last_handle_and_two_are_two() {
    let (one, other) = (Store::in_memory().unwrap(), Store::in_memory().unwrap());
    perform(&one, "k", b"r");
    assert!(other.get("k").unwrap().is_absent());
    assert_ne!(one.fingerprint(b"x"), other.fingerprint(b"x"), "each has a secret of its own");
    one.close().unwrap();
}

/// Rewrites the last record as if a later version of the library had written it.
fn with_last_record_of_kind(bytes: &mut [u8], key: &[u8], kind: u8) {
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
    let place = u32::try_from(position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).unwrap();
    let sum = checksum(&bytes[record + 4..record + length]) ^ place;
    bytes[record..record + 4].copy_from_slice(&sum.to_le_bytes());
    let records = checksum(&sum.to_le_bytes());
    bytes[frame + 28..frame + 32].copy_from_slice(&records.to_le_bytes());
    let header = checksum(&bytes[frame + 4..frame + 56]);
    bytes[frame..frame + 4].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn a_record_of_a_later_version_is_refused_and_not_taken_for_a_torn_tail_unless_it_says_that_it_may_be_ignored()
 {
    let place = Place::new();
    let store = place.open();
    store.record("known", NONE, b"x").unwrap();
    store.record("newer", NONE, b"x").unwrap();
    let crashed = copy_of_open(&place.path);
    for (kind, opens) in [(33, false), (0x90, true)] {
        let mut bytes = crashed.bytes();
        with_last_record_of_kind(&mut bytes, b"newer", kind);
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

#[test]
fn a_moved_record_whose_original_is_given_up_cannot_be_lost_unnoticed_even_as_the_last_of_the_log() {
    let place = Place::new();
    let store = place.open();
    for n in 0..900 {
        store.record(&format!("gone{n}"), NONE, &[0; 100]).unwrap();
        store.forget(&format!("gone{n}")).unwrap();
    }
    store.record("kept", NONE, b"acknowledged long ago").unwrap();
    store.compact().unwrap();
    assert!(store.stats().moved_bytes > 0);
    let crashed = copy_of_open(&place.path);
    let mut bytes = crashed.bytes();
    let record = bytes.windows(12).rposition(|window| window == b"acknowledged").unwrap();
    bytes[record] ^= 1;
    std::fs::write(&crashed.path, bytes).unwrap();
    match refuse(&crashed.path) {
        Error::Corrupt { reason, .. } => assert!(reason.contains("header"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// Marks the footer entry of this version as one of a later format that may be passed over, in the segment in slot
/// `slot`, and makes the footer's checksum true again.
fn with_ignorable_footer_entry(bytes: &mut [u8], slot: usize, version: u64) {
    let seed = crc32fast::hash(&bytes[32..48]);
    let slot_end = 4_096 + (slot + 1) * usize::try_from(SEGMENT).unwrap();
    let trailer_at = slot_end - 64;
    assert_eq!(&bytes[trailer_at..trailer_at + 8], b"ONCEFOOT", "slot {slot} has a footer");
    let count = u32::from_le_bytes(bytes[trailer_at + 12..trailer_at + 16].try_into().unwrap()) as usize;
    let entries_at = trailer_at - count * 48;
    let place = (0..count)
        .map(|entry| entries_at + entry * 48)
        .find(|at| bytes[at + 16..at + 24] == version.to_le_bytes())
        .unwrap();
    bytes[place + 47] = 0x80;
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&bytes[trailer_at + 12..slot_end]);
    hasher.update(&bytes[entries_at..trailer_at]);
    bytes[trailer_at + 8..trailer_at + 12].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[test]
fn an_entry_of_a_later_version_in_a_footer_does_not_hide_what_is_known_of_its_key() {
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
    with_ignorable_footer_entry(&mut bytes, 1, version);
    std::fs::write(&place.path, bytes).unwrap();
    assert_eq!(place.open().get("k").unwrap().status(), Status::InDoubt, "what this version knows of it");
}

/// Longer than what one thread reads alone at open: the footers are read and the index is filled by several.
#[test]
fn a_long_log_opens_to_just_what_it_was_whatever_became_of_its_keys() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = || clocked(&clock).retention(seconds(100)).durability(Durability::Buffered);
    let store = options().open(&place.path).unwrap();
    let key = |n: u32| format!("key-{n}");
    const KEYS: u32 = 60_000;
    // Everything that a later segment may say of a key: another record of it, that it is forgotten, nothing.
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
    let look = |store: &Store| {
        let keys: Vec<_> = (0..KEYS).map(|n| store.get(&key(n)).unwrap()).collect();
        let doubts: Vec<_> = (0..KEYS).map(|n| store.get(&format!("doubt-{n}")).unwrap().status()).collect();
        (keys, doubts)
    };
    let before = look(&store);
    let some = |status| before.0.iter().filter(|seen| seen.status() == status).count();
    assert!(some(Status::Completed) > 10_000 && some(Status::Absent) > 10_000, "both are to be seen");
    let expected = store.stats();
    assert!(expected.segments * SEGMENT > 16 << 20, "long enough to be read by several: {expected:?}");
    store.close().unwrap();

    let store = options().open(&place.path).unwrap();
    assert!(look(&store) == before, "the same answers");
    let stats = store.stats();
    // A segment that was given up, and that no header on disk says so of, is counted again, all of it dead.
    let live_bytes = |stats: &oncekey::Stats| stats.record_bytes - stats.dead_bytes;
    assert_eq!(live_bytes(&stats), live_bytes(&expected));
    let live = some(Status::Completed) + KEYS as usize / 500;
    assert_eq!(stats.keys, live, "nothing that expired, nothing twice");
    assert!(stats.index_bytes < live * 12 + (64 << 10), "no larger than an index that grew: {stats:?}");
}

/// Opening looks at the records of a key that has several, to tell them from those of other keys. One that cannot be read
/// any more is the trouble of whoever asks for that key, and of nobody else.
#[test]
fn a_damaged_record_is_no_reason_to_refuse_the_others_though_its_key_has_earlier_ones() {
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
    assert_eq!(records.len(), 2, "the begin and the completion");
    assert!((records[1] - records[0]) as u64 > 2 * SEGMENT, "in segments of their own");

    for damaged in [&records[..1], &records[1..], &records[..]] {
        let mut bytes = whole.clone();
        for at in damaged {
            bytes[*at] ^= 1;
        }
        std::fs::write(&place.path, bytes).unwrap();
        let store = place.open();
        assert_eq!(counts(&store), expected, "nothing twice");
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

/// What was not written since must not let time go back: an opening alone is in the log.
#[test]
fn the_time_of_an_opening_in_which_nothing_was_written_is_kept() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    drop(clocked(&clock).open(&place.path).unwrap());
    clock.advance(seconds(3_600));
    let _store = clocked(&clock).open(&place.path).unwrap();
    let crashed = copy_of_open(&place.path);
    let store = clocked(&ManualClock::new(START_MS)).open(&crashed.path).unwrap();
    assert_eq!(store.stats().store_time_ms, START_MS + 3_600_000);
}
