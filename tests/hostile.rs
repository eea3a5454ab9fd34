//! Files that were made to be slow to open: what opening does is in proportion to what a file really holds.
//!
//! Counted are system calls that read, and never time. They are those of the whole process, so the tests take turns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![cfg(target_os = "linux")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{NONE, Place, SEGMENT, perform, skipped, small};
use oncekey::{Durability, Error, Options};

const HEADER: u64 = 4_096;
const TRAILER: usize = 64;
const ENTRY: usize = 48;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many system calls of this process have read so far; None, and the reason printed, if the kernel does not count.
fn reads() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/self/io");
    let reads = counts.as_ref().ok().and_then(|counts| {
        counts.lines().find_map(|line| line.strip_prefix("syscr: ")).and_then(|count| count.parse().ok())
    });
    if reads.is_none() {
        skipped(format_args!("the kernel does not count the reads of a process: {counts:?}"));
    }
    reads
}

/// Opens the store and says what that came to, and how many reads it took.
fn open_counted(options: &Options, path: &Path) -> Option<(Result<usize, Error>, u64)> {
    let before = reads()?;
    let opened = options.open(path).map(|store| store.stats().keys);
    Some((opened, reads()? - before))
}

/// Makes a file longer without giving it anything to hold. False, and the reason printed, if it cannot be that long or the
/// file system cannot say where it holds nothing.
fn make_sparse(path: &Path, length: u64) -> bool {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    if let Err(error) = file.set_len(length) {
        skipped(format_args!("no file here can have {length} bytes: {error}"));
        return false;
    }
    let can_tell = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(length - 1)).is_err();
    if !can_tell {
        skipped("the file system does not say where a file holds nothing");
    }
    can_tell
}

#[test]
fn a_file_that_is_long_and_holds_little_is_opened_with_few_reads() {
    let _turn = turn();
    for length in [128_u64 << 30, 1 << 42] {
        let place = Place::new();
        let store = place.open();
        for n in 0..100 {
            perform(&store, &format!("key {n}"), &[7; 1_000]);
        }
        store.close().unwrap();
        let Some((_, usual)) = open_counted(&small(), &place.path) else { return };
        if !make_sparse(&place.path, length) {
            return;
        }
        let (opened, reads) = open_counted(&small(), &place.path).unwrap();
        assert_eq!(opened.unwrap(), 100);
        assert!(reads <= usual + 20, "{length}: {reads} reads, {usual} before it was made long");

        let store = place.open();
        perform(&store, "later", b"result");
        assert!(
            store.stats().file_bytes < 1 << 20,
            "what is a hole is no room: {}",
            store.stats().file_bytes
        );
        store.compact().unwrap();
        assert!(place.length() < 1 << 20, "and is cut off: {}", place.length());
        assert_eq!(store.get("key 7").unwrap().result(), Some(&[7; 1_000][..]));
    }
}

#[test]
fn a_blank_file_that_is_long_and_holds_little_is_judged_with_few_reads() {
    let _turn = turn();
    let place = Place::new();
    File::create(&place.path).unwrap();
    if !make_sparse(&place.path, 128 << 30) {
        return;
    }
    let Some((opened, reads)) = open_counted(&small(), &place.path) else { return };
    assert_eq!(opened.unwrap(), 0, "a creation that was cut short");
    assert!(reads < 100, "{reads} reads");
}

#[test]
fn slots_that_hold_a_bad_sector_and_nothing_else_are_read_where_they_hold_something() {
    const LARGE: u64 = 64 << 20;
    const SLOTS: u64 = 1_000;
    let _turn = turn();
    let place = Place::new();
    let options = Options::new().segment_size(LARGE).durability(Durability::Buffered);
    options.open(&place.path).unwrap().close().unwrap();
    if !make_sparse(&place.path, HEADER + SLOTS * LARGE) {
        return;
    }
    let file = OpenOptions::new().write(true).open(&place.path).unwrap();
    for slot in 1..SLOTS {
        file.write_all_at(b"bad", HEADER + slot * LARGE).unwrap();
    }
    let before = read_bytes();
    options.open(&place.path).unwrap();
    let read = read_bytes().zip(before).map(|(after, before)| after - before);
    let Some(read) = read else { return };
    // A slot holds a block of 4,096 bytes; the last segment of the log is read whole.
    assert!(read < LARGE + SLOTS * 64 * 1_024, "{read} bytes were read");
}

/// How many bytes this process has read so far.
fn read_bytes() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/self/io").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")).and_then(|count| count.parse().ok())
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Changes the entries of every footer of the store, and makes the footers' checksums true again.
fn forge_footers(path: &Path, mut forge: impl FnMut(&mut [u8])) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let seed = crc32fast::hash(&bytes[32..48]);
    let segment = usize::try_from(SEGMENT).unwrap();
    let mut forged = 0;
    for slot in bytes[4_096..].chunks_exact_mut(segment) {
        let trailer_at = segment - TRAILER;
        if !slot[trailer_at..].starts_with(b"ONCEFOOT") {
            continue;
        }
        let count = u32_at(slot, trailer_at + 12);
        for entry in slot[trailer_at - count * ENTRY..trailer_at].chunks_exact_mut(ENTRY) {
            forge(entry);
            forged += 1;
        }
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&slot[trailer_at + 12..]);
        hasher.update(&slot[trailer_at - count * ENTRY..trailer_at]);
        slot[trailer_at + 8..trailer_at + 12].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
    forged
}

/// A store of so many keys, closed.
fn store_of(keys: usize) -> Place {
    let place = Place::new();
    let store = small().durability(Durability::Buffered).open(&place.path).unwrap();
    for n in 0..keys {
        store.record(&format!("key {n}"), NONE, b"").unwrap();
    }
    store.close().unwrap();
    place
}

#[test]
fn footers_that_name_the_same_hash_for_all_records_are_refused_as_a_contradiction() {
    let _turn = turn();
    let place = store_of(5_000);
    assert!(forge_footers(&place.path, |entry| entry[..16].fill(0x5A)) > 2_000);
    let Some((opened, reads)) = open_counted(&small().mmap(false), &place.path) else { return };
    match opened {
        Err(Error::Corrupt { reason, .. }) => assert!(reason.contains("another key"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(reads < 2_000, "{reads} reads");
}

/// Each record that cannot be read is looked up in its segment's footer.
#[test]
fn the_footers_of_records_that_cannot_be_read_are_read_once_each() {
    let _turn = turn();
    let place = store_of(5_000);
    let Some((_, usual)) = open_counted(&small().mmap(false), &place.path) else { return };
    // All of one key, so that each has to be told from the one before it; and no record checks.
    let entries = forge_footers(&place.path, |entry| entry[..16].fill(0x5A));
    let mut bytes = std::fs::read(&place.path).unwrap();
    let segment = usize::try_from(SEGMENT).unwrap();
    let mut damaged = 0;
    for slot in bytes[4_096..].chunks_exact_mut(segment) {
        if !slot[segment - TRAILER..].starts_with(b"ONCEFOOT") {
            continue;
        }
        let count = u32_at(slot, segment - TRAILER + 12);
        for entry in 0..count {
            let at = segment - TRAILER - (count - entry) * ENTRY;
            let record = u32_at(slot, at + 40) * 8;
            slot[record + 16] ^= 0xFF;
            damaged += 1;
        }
    }
    assert_eq!(damaged, entries);
    std::fs::write(&place.path, bytes).unwrap();

    let (opened, reads) = open_counted(&small().mmap(false), &place.path).unwrap();
    opened.unwrap();
    // One read for each record that does not check, and for each footer two.
    assert!(
        reads < usual + entries as u64 + entries as u64 / 4,
        "{reads} reads, {usual} before; {entries} entries"
    );
}
