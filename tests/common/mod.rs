//! Helpers that the integration tests share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

pub mod random;
pub mod subscriber;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oncekey::{Begin, Fingerprint, Lease, ManualClock, Options, Store};

/// A time in November 2023, in milliseconds.
pub const START_MS: u64 = 1_700_000_000_000;
pub const NONE: Fingerprint = Fingerprint::NONE;

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A path for a store in its own temporary directory, which is removed on drop.
pub struct Place {
    _directory: tempfile::TempDir,
    pub path: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.once");
        Place { _directory: directory, path }
    }

    pub fn open(&self) -> Store {
        small().open(&self.path).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    pub fn length(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().len()
    }
}

/// Options with the smallest segments, so that a test covers many of them.
pub fn small() -> Options {
    Options::new().segment_size(SEGMENT)
}

pub const SEGMENT: u64 = 64 << 10;
/// The length of the store header, which precedes the segments in the file.
pub const STORE_HEADER: u64 = 4_096;
/// The length of the fixed part of a record.
pub const RECORD_HEADER: u64 = 80;
/// The length of the entry of a record in the footer of its segment.
pub const FOOTER_ENTRY: u64 = 48;

/// Options with the smallest segments and a manual clock.
pub fn clocked(clock: &ManualClock) -> Options {
    small().manual_clock(clock.clone())
}

/// Begins an operation, which must acquire the key.
pub fn acquire(store: &Store, key: &str) -> Lease {
    match store.begin(key, NONE).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{key}: {other:?}"),
    }
}

/// Begins and completes an operation.
pub fn perform(store: &Store, key: &str, result: &[u8]) {
    acquire(store, key).complete(result).unwrap();
}

/// Prints the reason for which a test is skipped. Writes to standard error directly, because the test harness discards
/// what a passing test prints.
pub fn skipped(reason: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Begins an operation and drops its lease, which leaves the key in doubt.
pub fn abandon(store: &Store, key: &str) {
    drop(acquire(store, key));
}

/// Copies the file of an open store, in the state in which a kill would leave it: without a close mark. The original cannot be
/// opened, because it is locked.
pub fn copy_while_open(path: &Path) -> Place {
    let place = Place::new();
    std::fs::copy(path, &place.path).unwrap();
    place
}

/// Flips a bit of the byte at this offset of the file.
pub fn flip(place: &Place, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&place.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Returns the offset in the file of the last record of this key.
pub fn record_of(place: &Place, key: &str) -> u64 {
    let bytes = place.bytes();
    let found = bytes.windows(key.len()).rposition(|window| window == key.as_bytes());
    found.unwrap() as u64 - RECORD_HEADER
}
