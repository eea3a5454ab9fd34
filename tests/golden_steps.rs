//! Checks the format of steps: a file with steps that version 1 wrote stays readable, and its records and footers match
//! the specification (`src/format/format.md`), as read without the library.
#![cfg(feature = "__simulation")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::path::PathBuf;

use common::{NONE, Place, SEGMENT, START_MS, clocked, copy_while_open};
use oncekey::simulation::steps::{self, BegunStep};
use oncekey::{Begin, Lease, ManualClock, Status, Store};
use siphasher::sip128::{Hasher128, SipHasher24};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-steps.once")
}

fn run(lease: &Lease, step: &str, result: &[u8]) {
    match steps::begin_step(lease, step).unwrap() {
        BegunStep::Acquired(mut held) => held.complete(result).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Writes the contents of the golden file, and fills the segment, so that it has a footer.
fn write_contents(store: &Store) {
    let Begin::Acquired(lease) = steps::begin_with_input(store, "job", b"the input").unwrap() else {
        panic!()
    };
    run(&lease, "reserve", b"stock 7");
    let BegunStep::Acquired(mut released) = steps::begin_step(&lease, "charge").unwrap() else { panic!() };
    released.release().unwrap();
    drop(steps::begin_step(&lease, "ship").unwrap());
    drop(steps::begin_step(&lease, "mail").unwrap());
    assert!(steps::give_up(&lease, "mail").unwrap());
    drop(lease);
    let Begin::Acquired(mut lease) = steps::begin_with_input(store, "finished", b"").unwrap() else {
        panic!()
    };
    run(&lease, "only", b"r");
    lease.complete(b"done").unwrap();
    for number in 0..8 {
        store.record(&format!("filler {number}"), NONE, &[number; 12_000]).unwrap();
    }
}

fn check_contents(store: &Store) {
    assert_eq!(store.get("job").unwrap().status(), Status::InDoubt);
    assert_eq!(steps::input(store, "job").unwrap().as_deref(), Some(&b"the input"[..]));
    let mut listed: Vec<_> = steps::steps(store, "job").unwrap().into_iter().map(Result::unwrap).collect();
    listed.sort_by(|one, other| one.0.cmp(&other.0));
    let expected = [
        ("charge", Status::Absent, false),
        ("mail", Status::InDoubt, true),
        ("reserve", Status::Completed, false),
        ("ship", Status::InDoubt, false),
    ];
    assert!(
        listed.iter().map(|(name, status, given_up)| (&name[..], *status, *given_up)).eq(expected),
        "{listed:?}"
    );
    assert_eq!(steps::result_of(store, "job", "reserve").unwrap().as_deref(), Some(&b"stock 7"[..]));
    assert!(store.get("finished").unwrap().is_completed());
    assert!(steps::steps(store, "finished").unwrap().is_empty());
    assert!(store.get("reserve").unwrap().is_absent(), "a step is not a key");
}

fn written() -> Place {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    write_contents(&store);
    store.close().unwrap();
    place
}

/// `cargo test --all-features --test golden_steps -- --ignored` writes the file of a new format version.
#[test]
#[ignore = "writes the golden file"]
fn write_the_golden_file() {
    assert!(!golden().exists(), "a file of a released version must not change");
    std::fs::copy(&written().path, golden()).unwrap();
}

#[test]
fn a_file_with_steps_of_version_1_stays_readable_and_writable() {
    let copy = copy_while_open(&golden());
    let clock = ManualClock::new(START_MS + 60_000);
    for turn in 0..3 {
        let store = clocked(&clock).open(&copy.path).unwrap();
        check_contents(&store);
        store.record(&format!("new{turn}"), NONE, b"r").unwrap();
        if turn == 1 {
            store.compact().unwrap();
            check_contents(&store);
        }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(number)
}

#[test]
fn the_records_and_footers_of_steps_match_the_specification() {
    let bytes = written().bytes();
    let secret: [u8; 16] = bytes[48..64].try_into().unwrap();
    let hash = |parts: &[&[u8]]| {
        use std::hash::Hasher;
        let mut hasher = SipHasher24::new_with_key(&secret);
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish128().as_u128()
    };
    let job = hash(&[&[0], b"job"]);
    let slot = 4_096;
    let footer_end = slot + usize::try_from(SEGMENT).unwrap() - 64;
    assert_eq!(&bytes[footer_end..footer_end + 8], b"ONCEFOOT");
    let count = usize::try_from(number::<4>(&bytes, footer_end + 12)).unwrap();
    let entries = (0..count).map(|n| footer_end - 48 * (count - n));
    let mut seen = Vec::new();
    let mut origin = None;
    for entry in entries {
        let at = slot + 8 * usize::try_from(number::<4>(&bytes, entry + 40)).unwrap();
        let (kind, flags) = (bytes[at + 8], bytes[at + 9]);
        assert_eq!(bytes[entry + 47], kind, "the footer repeats the kind");
        assert_eq!(bytes[entry + 24..entry + 40], bytes[at + 64..at + 80], "and the two fields of expiries");
        let key_length = usize::try_from(number::<2>(&bytes, at + 10)).unwrap();
        let extension = usize::try_from(number::<2>(&bytes, at + 14)).unwrap();
        let name_at = at + 80 + extension;
        let name = String::from_utf8(bytes[name_at..name_at + key_length].to_vec()).unwrap();
        if kind == 1 && name == "job" {
            origin = Some(number::<8>(&bytes, at + 16));
            assert_eq!(bytes[entry..entry + 16], job.to_le_bytes());
        }
        if !(16..=19).contains(&kind) || bytes[at + 64..at + 80] != job.to_le_bytes() {
            continue;
        }
        assert_eq!(number::<2>(&bytes, at + 12), 0, "a step has no scope");
        assert_eq!(number::<8>(&bytes, at + 24), origin.unwrap(), "a step has the origin of its operation");
        assert!(number::<8>(&bytes, at + 16) > origin.unwrap(), "and a greater version");
        let step = hash(&[&[3], &job.to_le_bytes(), &origin.unwrap().to_le_bytes(), name.as_bytes()]);
        assert_eq!(bytes[entry..entry + 16], step.to_le_bytes(), "{name}");
        let value = usize::try_from(number::<4>(&bytes, at + 52)).unwrap();
        let value = &bytes[name_at + key_length..name_at + key_length + value];
        seen.push((kind, flags, name, value.to_vec()));
    }
    let expected = [
        (17, 2, String::new(), b"the input".to_vec()),
        (17, 2, "reserve".to_owned(), b"stock 7".to_vec()),
        (18, 0, "charge".to_owned(), Vec::new()),
        (16, 0, "ship".to_owned(), Vec::new()),
        (16, 8, "mail".to_owned(), Vec::new()),
    ];
    assert_eq!(seen, expected);
}
