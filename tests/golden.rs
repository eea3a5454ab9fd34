//! Proves the stability of the format from two sides. Files that version 1 wrote stay readable. What is written today
//! matches the specification (the docs of `src/format/mod.rs`), as read by a reader that shares no code with the
//! library.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::path::PathBuf;

use common::{NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_of_open, perform, seconds};
use oncekey::{Error, Fingerprint, Key, ManualClock, Operation, Outcome, Recorded, Status, Store};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn request() -> Fingerprint {
    Fingerprint::from_bytes(*b"request of 16 b.")
}

/// The contents of the golden files. After a change here, new golden files must be written beside the old ones, never
/// over them.
fn write_history(store: &Store, clock: &ManualClock) {
    store.record(Key::new("scoped").scope("tenant"), request(), b"in a scope").unwrap();
    store.record(Key::new("scoped").scope(""), request(), b"in the empty scope").unwrap();
    perform(store, "done", b"result");
    perform(store, "empty", b"");
    abandon(store, "doubt");
    acquire(store, "released").release().unwrap();
    store.record("forgotten", NONE, b"old").unwrap();
    store.forget("forgotten").unwrap();
    typed(store).record_value(&("receipt".to_owned(), 17)).unwrap();
    acquire(store, "not kept").complete_without_result().unwrap();
    store.operation("tombstone").retain_result(seconds(1)).record(&[9; 100]).unwrap();
    for n in 0..1_200 {
        let Recorded::Done(_) =
            store.operation(&format!("short{n}")).retain(seconds(20)).record(&[0; 100]).unwrap()
        else {
            panic!("not new")
        };
        clock.advance(std::time::Duration::from_millis(50));
    }
}

/// An operation whose fingerprint and shape are in the golden files.
fn typed(store: &Store) -> Operation<'_> {
    store.operation("typed").request(&("charge", 42_u64, Some(-1_000_i32), [0.5, -0.0]))
}

fn check_history(store: &Store) {
    let again = typed(store).record_value(&("another".to_owned(), 18)).unwrap();
    assert_eq!(again, Outcome::AlreadyDone(("receipt".to_owned(), 17)));
    assert!(store.get("typed").unwrap().decode::<(String, i32)>().is_ok());
    assert!(matches!(store.get("typed").unwrap().decode::<(String, u32)>(), Err(Error::Decode { .. })));
    assert!(matches!(store.begin("not kept", NONE), Err(Error::ResultNotKept { .. })));
    let result = |key: Key<'_>| store.get(key).unwrap().into_result();
    assert_eq!(result(Key::new("scoped").scope("tenant")).unwrap(), b"in a scope");
    assert_eq!(result(Key::new("scoped").scope("")).unwrap(), b"in the empty scope");
    assert_eq!(store.get(Key::new("scoped").scope("")).unwrap().fingerprint(), request());
    assert!(store.get("scoped").unwrap().is_absent());
    assert_eq!(result(Key::new("done")).unwrap(), b"result");
    assert_eq!(result(Key::new("empty")).unwrap(), b"");
    assert_eq!(store.get("done").unwrap().changed_at_ms(), Some(START_MS));
    assert_eq!(store.get("doubt").unwrap().status(), Status::InDoubt);
    assert_eq!(store.get("doubt").unwrap().attempt(), 1);
    let released = store.get("released").unwrap();
    assert!(released.is_absent() && released.attempt() <= 1, "a released key has more than one attempt");
    assert!(store.get("forgotten").unwrap().is_absent());
    let tombstone = store.get("tombstone").unwrap();
    assert!(tombstone.is_completed() && tombstone.result().is_none());
    assert!(store.get("short0").unwrap().is_absent());
    assert_eq!(result(Key::new("short1199")).unwrap(), [0; 100]);
}

/// Writes a golden file, which must not exist. The file of a released version is never replaced.
fn write_once(place: &Place, name: &str) {
    assert!(!golden(name).exists(), "{name} already exists");
    std::fs::copy(&place.path, golden(name)).unwrap();
}

/// A clock at the end of the history.
fn end_of_history() -> ManualClock {
    ManualClock::new(START_MS + 60_000)
}

/// `cargo test --test golden -- --ignored` writes the files of a new version. It fails for those of a released one.
#[test]
#[ignore = "writes the golden files"]
fn write_the_golden_files() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    write_history(&store, &clock);
    write_once(&place, "v1-crashed.once");
    store.close().unwrap();
    write_once(&place, "v1-closed.once");
}

#[test]
fn files_of_version_1_stay_readable_and_writable() {
    for name in ["v1-closed.once", "v1-crashed.once"] {
        let copy = copy_of_open(&golden(name));
        for turn in 0..3 {
            let store = clocked(&end_of_history()).open(&copy.path).unwrap();
            check_history(&store);
            store.record(&format!("new{turn}"), NONE, b"r").unwrap();
            if turn == 1 {
                store.compact().unwrap();
                check_history(&store);
            }
        }
    }
}

/// Reads fields as the specification places them.
struct Spec<'a> {
    bytes: &'a [u8],
    seed: u32,
}

impl Spec<'_> {
    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap()))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    fn crc(&self, from: usize, to: usize) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(&self.bytes[from..to]);
        hasher.finalize()
    }
}

#[test]
fn written_files_match_the_specification() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    for n in 0..900_u32 {
        store.record(Key::new(&format!("key-{n}")).scope("tenant"), request(), &[n as u8; 50]).unwrap();
    }
    store.close().unwrap();
    let bytes = place.bytes();
    let mut spec = Spec { bytes: &bytes, seed: crc32fast::hash(&bytes[32..48]) };

    assert_eq!(&bytes[..8], b"ONCEKEY\x1a");
    assert_eq!(spec.u32(8), crc32fast::hash(&bytes[12..512]));
    assert_eq!((spec.u32(12), spec.u32(28)), (1, SEGMENT as u32));
    assert_eq!((bytes[64], bytes[65], bytes[66]), (1, 1, 0));
    assert!(bytes[512..4_096].iter().all(|byte| *byte == 0));

    let (segment, mut previous, mut seen, mut last_version) = (SEGMENT as usize, 0_u32, 0_u32, 0_u64);
    let mut previous_end = 0;
    let mut sequence = 1_u64;
    let mut closed_at = None;
    // The clock stands still throughout.
    let boot = bytes[4_096 + 120..4_096 + 136].to_vec();
    assert!(boot.iter().any(|byte| *byte != 0));
    loop {
        // No slot was reused here, so the segments are in order.
        let slot = 4_096 + (sequence as usize - 1) * segment;
        assert_eq!(&bytes[slot..slot + 8], b"ONCESEGM", "segment {sequence}");
        assert_eq!(spec.u32(slot + 8), crc32fast::hash(&bytes[slot + 12..slot + 512]));
        assert_eq!(bytes[slot + 12..slot + 68], bytes[12..68], "the parameters differ");
        assert_eq!((spec.u64(slot + 72), spec.u64(slot + 80)), (sequence, 1));
        assert_eq!((spec.u64(slot + 88), spec.u32(slot + 96)), (previous_end, previous));
        assert_eq!(
            (spec.u64(slot + 104), spec.u64(slot + 112)),
            (START_MS, START_MS),
            "store time, wall clock"
        );
        assert_eq!(
            (&bytes[slot + 120..slot + 136], spec.u64(slot + 136)),
            (&boot[..], 0),
            "boot and its clock"
        );

        let (mut at, mut entries, mut record_bytes) = (slot + 4_096, Vec::new(), 0_u64);
        let position = |at: usize| sequence * SEGMENT + (at - slot) as u64;
        while spec.u64(at + 8) == position(at) {
            let length = spec.u32(at + 4) as usize;
            assert!(length <= segment / 4 && length.is_multiple_of(8));
            assert_eq!(spec.u32(at), spec.crc(at + 4, at + 56), "frame checksum");
            assert!(spec.u64(at + 16) <= position(at), "synced_to");
            assert_eq!(spec.u32(at + 24), previous, "chain");
            assert_eq!(spec.u32(at + 32), 1, "open count");
            assert_eq!(
                (spec.u64(at + 40), spec.u64(at + 48)),
                (START_MS, START_MS),
                "store time, wall clock"
            );
            previous = spec.u32(at);
            if spec.u32(at + 36) == 0 {
                assert_eq!((length, spec.u32(at + 28)), (80, spec.crc(at + 56, at + 80)), "an opening");
                assert_eq!(bytes[at + 56..at + 72], boot, "boot");
                assert_eq!(spec.u64(at + 72), 0, "boot-time clock");
                at += length;
                continue;
            }
            let (mut record, mut count) = (at + 56, 0);
            let mut checksums = crc32fast::Hasher::new_with_initial(spec.seed);
            while record < at + length {
                let length = spec.u32(record + 4) as usize;
                let place = (position(record).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32;
                assert_eq!(
                    spec.u32(record),
                    spec.crc(record + 4, record + length) ^ place,
                    "record checksum"
                );
                checksums.update(&bytes[record..record + 4]);
                let (kind, flags) = (bytes[record + 8], bytes[record + 9]);
                let (key, scope) = (spec.u16(record + 10), spec.u16(record + 12));
                assert_eq!((kind, flags, scope, spec.u16(record + 14)), (2, 3, 6, 0));
                assert!(spec.u64(record + 16) > last_version && spec.u64(record + 16) >> 40 == 1);
                last_version = spec.u64(record + 16);
                assert_eq!(spec.u64(record + 24), last_version, "origin");
                assert_eq!(bytes[record + 32..record + 48], request().to_bytes());
                assert_eq!((spec.u32(record + 48), spec.u32(record + 52)), (1, 50));
                assert_eq!(spec.u64(record + 56), START_MS);
                let week_ms = 7 * 24 * 3_600_000;
                assert_eq!(
                    (spec.u64(record + 64), spec.u64(record + 72)),
                    (START_MS + week_ms, START_MS + week_ms)
                );
                assert_eq!(&bytes[record + 80..record + 86], b"tenant");
                assert_eq!(bytes[record + 86..record + 86 + key], *format!("key-{seen}").as_bytes());
                let value = record + 86 + key;
                assert_eq!(bytes[value..value + 50], [seen as u8; 50]);
                assert!(bytes[value + 50..record + length].iter().all(|byte| *byte == 0));
                entries.push((last_version, START_MS + week_ms, (record - slot) / 8, length / 8));
                (record_bytes, seen, count, record) =
                    (record_bytes + length as u64, seen + 1, count + 1, record + length);
            }
            assert_eq!((spec.u32(at + 36), spec.u32(at + 28)), (count, checksums.finalize()));
            at += length;
        }
        previous_end = position(at);

        let trailer = slot + segment - 64;
        if &bytes[trailer..trailer + 8] != b"ONCEFOOT" {
            for mark in [slot + 512, slot + 1_024] {
                assert_eq!(&bytes[mark..mark + 8], b"ONCEMARK");
                assert_eq!(spec.u32(mark + 8), spec.crc(mark + 12, mark + 512));
                assert_eq!((spec.u32(mark + 12), spec.u32(mark + 24)), (previous, 1));
                assert_eq!((spec.u64(mark + 32), spec.u64(mark + 40)), (START_MS, START_MS));
                assert_eq!((&bytes[mark + 48..mark + 64], spec.u64(mark + 64)), (&boot[..], 0));
                assert_eq!(spec.u64(mark + 72), last_version & 0xFF_FFFF_FFFF, "counter");
                closed_at = Some(spec.u64(mark + 16));
            }
            break;
        }
        assert_eq!(spec.u32(trailer + 12) as usize, entries.len());
        assert_eq!((spec.u64(trailer + 16), spec.u64(trailer + 24)), (sequence, sequence + 1));
        assert_eq!((spec.u64(trailer + 32), spec.u64(trailer + 40)), (previous_end, record_bytes));
        assert_eq!(spec.u32(trailer + 48), previous);
        let first = trailer - entries.len() * 48;
        let mut checksum = crc32fast::Hasher::new_with_initial(spec.seed);
        checksum.update(&bytes[trailer + 12..trailer + 64]);
        checksum.update(&bytes[first..trailer]);
        assert_eq!(spec.u32(trailer + 8), checksum.finalize(), "footer checksum");
        for (n, (version, expires, offset, length)) in entries.into_iter().enumerate() {
            let entry = first + n * 48;
            assert_eq!(
                (spec.u64(entry + 16), spec.u64(entry + 24), spec.u64(entry + 32)),
                (version, expires, expires)
            );
            assert_eq!(spec.u32(entry + 40) as usize, offset);
            assert_eq!((spec.u32(entry + 44) & 0xFF_FFFF, bytes[entry + 47]), (length as u32, 2));
        }
        sequence += 1;
        spec.seed = crc32fast::hash(&bytes[32..48]);
    }
    assert_eq!((seen, closed_at), (900, Some(previous_end)));
    assert!(sequence > 2, "the test must cover several segments");
}

/// The offset of the first record of a file: after the headers of file and segment, the frame of the opening, and the
/// header of its own frame.
const FIRST_RECORD: usize = 4_096 + 4_096 + 80 + 56;

#[test]
fn typed_records_match_the_specification() {
    let extension = |write: &dyn Fn(&Store)| {
        let place = Place::new();
        let store = place.open();
        write(&store);
        store.close().unwrap();
        let bytes = place.bytes();
        let length = usize::from(bytes[FIRST_RECORD + 14]);
        let at = FIRST_RECORD + 80;
        assert_eq!(bytes[at + length], b'k', "the key does not follow the extension");
        (bytes[FIRST_RECORD + 8], bytes[FIRST_RECORD + 9], bytes[at..at + length].to_vec())
    };
    // The shape of a u32, as `src/shape/golden.txt` has it.
    let (kind, flags, typed) = extension(&|store| {
        store.operation("k").request(&1).record_value(&17_u32).unwrap();
    });
    assert_eq!((kind, flags, &typed[..4], typed.len()), (2, 2, &[1, 10, 1, 1][..], 12));
    let by_caller = extension(&|store| {
        store.operation("k").fingerprint(request()).record_value(&17_u32).unwrap();
    });
    assert_eq!(by_caller, (2, 2, [&[1, 10, 0, 1][..], &typed[4..]].concat()));
    let begun = extension(&|store| drop(store.operation("k").request(&1).begin().unwrap()));
    assert_eq!(begun, (1, 0, vec![1, 2, 1, 1]));
    let on_bytes = extension(&|store| drop(store.begin("k", request()).unwrap()));
    assert_eq!(on_bytes, (1, 0, vec![]));
}
