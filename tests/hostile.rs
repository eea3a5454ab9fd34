//! Checks that a hostile file cannot make a store slow to open: the work is in proportion to the data in the file.
//!
//! The tests count read system calls and do not measure time. The counts are those of the whole process, so the tests
//! run one at a time.
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

/// Waits until no other test of this file is running.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the number of read system calls of this process so far. Returns `None`, after printing the reason, if the
/// kernel does not count them.
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

/// Opens the store. Returns its number of keys or the error, and the number of read system calls.
fn open_counted(options: &Options, path: &Path) -> Option<(Result<usize, Error>, u64)> {
    let before = reads()?;
    let opened = options.open(path).map(|store| store.stats().keys);
    Some((opened, reads()? - before))
}

/// Extends a file with a hole. Returns false, after printing the reason, if the file system does not allow that length
/// or does not report holes.
fn make_sparse(path: &Path, length: u64) -> bool {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    if let Err(error) = file.set_len(length) {
        skipped(format_args!("this file system allows no file of {length} bytes: {error}"));
        return false;
    }
    let reports_holes = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(length - 1)).is_err();
    if !reports_holes {
        skipped("this file system does not report the holes of a file");
    }
    reports_holes
}

#[test]
fn a_long_sparse_file_is_opened_with_few_reads() {
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
        assert!(reads <= usual + 20, "{length}: {reads} reads, {usual} before the hole");

        let store = place.open();
        perform(&store, "later", b"result");
        assert!(
            store.stats().file_bytes < 1 << 20,
            "the store counts the hole as its own space: {}",
            store.stats().file_bytes
        );
        store.compact().unwrap();
        assert!(place.length() < 1 << 20, "the hole was not cut off: {}", place.length());
        assert_eq!(store.get("key 7").unwrap().result(), Some(&[7; 1_000][..]));
    }
}

#[test]
fn a_long_sparse_file_without_data_is_opened_with_few_reads() {
    let _turn = turn();
    let place = Place::new();
    File::create(&place.path).unwrap();
    if !make_sparse(&place.path, 128 << 30) {
        return;
    }
    let Some((opened, reads)) = open_counted(&small(), &place.path) else { return };
    assert_eq!(opened.unwrap(), 0, "the new store has keys");
    assert!(reads < 100, "{reads} reads");
}

#[test]
fn only_the_data_of_sparse_slots_is_read() {
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
    // Each slot has one block of data, 4,096 bytes or more, and the last segment of the log is read completely.
    assert!(read < LARGE + SLOTS * 64 * 1_024, "{read} bytes were read");
}

/// Returns the number of bytes that this process has read so far, if the kernel counts them.
fn read_bytes() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/self/io").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")).and_then(|count| count.parse().ok())
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Changes the entries of every footer of the store and corrects the checksums. Returns the number of entries.
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

/// Creates a store with this many keys, and closes it.
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
fn footers_with_the_same_hash_for_all_records_are_refused() {
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

/// When a store is opened, it looks up each unreadable record in the footer of its segment.
#[test]
fn each_footer_is_read_once_for_all_unreadable_records() {
    let _turn = turn();
    let place = store_of(5_000);
    let Some((_, usual)) = open_counted(&small().mmap(false), &place.path) else { return };
    // All entries have the same hash, so the store must read each record to compare its key. And every record is damaged.
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
    // One read for each damaged record, and two for each footer.
    assert!(
        reads < usual + entries as u64 + entries as u64 / 4,
        "{reads} reads for {entries} entries; {usual} reads before the damage"
    );
}
