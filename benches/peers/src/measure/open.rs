//! Opening a store with many operations, with its files in the page cache: a store that was closed, and one whose process was
//! killed before it closed the store.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::bench::Bench;
use crate::contestant::{Durability, FLOOR, ONCEKEY};
use crate::machine;
use crate::operations::{KeySet, key};
use crate::results::{Metrics, Subject};
use crate::roster::Setup;
use crate::{child, stores};

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        for setup in bench.plain_setups() {
            bench.filled(setup, keys);
        }
        let closed = Subject::new("open", "closed", 0, keys);
        let crashed = Subject::new("open", "after a crash", 0, keys);
        for round in 0..bench.arguments.rounds {
            for setup in bench.plain_setups() {
                let directory = bench.filled(setup, keys);
                machine::warm(&directory);
                // The floor reads the file that oncekey then opens.
                let floor = (setup.name == ONCEKEY).then(|| sum_footers(&stores::oncekey::file(&directory)));
                let floor = floor.flatten().map(|took_ns| Metrics::from([("open_ns".to_owned(), took_ns)]));
                for (subject, crashes) in [(&closed, false), (&crashed, true)] {
                    if let Some(metrics) = &floor {
                        bench.add_sample(subject, FLOOR, round, metrics.clone());
                    }
                    if crashes {
                        child::crash(setup, bench.next_measurement(), &directory);
                    }
                    bench.add_sample(subject, setup.name, round, open(setup, &directory));
                }
            }
        }
    }
}

/// Measures opening alone, and opening together with a first lookup, because several stores postpone work until then.
fn open(setup: &Setup, directory: &Path) -> Metrics {
    let start = Instant::now();
    let contestant = (setup.open)(directory, Durability::Synced);
    let opened = start.elapsed();
    let is_known = contestant.reader().is_known(&key(KeySet::Filled, 0));
    let looked_up = start.elapsed();
    assert!(is_known, "{}: a filled key is missing", setup.name);
    contestant.close();
    Metrics::from([
        ("open_ns".to_owned(), opened.as_nanos() as f64),
        ("open_and_look_up_ns".to_owned(), looked_up.as_nanos() as f64),
    ])
}

/// Reads the footers of all full segments and adds up their words. Returns how long that took, in nanoseconds, or `None` if
/// no segment is full.
fn sum_footers(path: &Path) -> Option<f64> {
    let file = File::open(path).expect("cannot open the file");
    let footers = footers(&file);
    let longest = footers.iter().map(|(_, length)| *length).max()?;
    let mut buffer = vec![0; longest];
    let start = Instant::now();
    let mut sum = 0_u64;
    for (position, length) in footers {
        let bytes = &mut buffer[..length];
        file.read_exact_at(bytes, position).expect("cannot read a footer");
        let (words, _) = bytes.as_chunks::<8>();
        sum = words.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    }
    std::hint::black_box(sum);
    Some(start.elapsed().as_nanos() as f64)
}

/// Returns the position and the length of each footer, according to the specification of the file format.
fn footers(file: &File) -> Vec<(u64, usize)> {
    const STORE_HEADER_BYTES: u64 = 4_096;
    const TRAILER_BYTES: u64 = 64;
    const ENTRY_BYTES: u64 = 48;
    fn field<const LENGTH: usize>(file: &File, position: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        file.read_exact_at(&mut bytes, position).expect("cannot read a field");
        bytes
    }
    let segment_bytes = u64::from(u32::from_le_bytes(field(file, 28)));
    let slots =
        (file.metadata().expect("cannot read the file's length").len() - STORE_HEADER_BYTES) / segment_bytes;
    let footer = |slot: u64| {
        let start = STORE_HEADER_BYTES + slot * segment_bytes;
        let trailer = start + segment_bytes - TRAILER_BYTES;
        let sequence: [u8; 8] = field(file, start + 72);
        let is_footer = field(file, trailer) == *b"ONCEFOOT" && field(file, trailer + 16) == sequence;
        let entries = u64::from(u32::from_le_bytes(field(file, trailer + 12)));
        let length = entries * ENTRY_BYTES + TRAILER_BYTES;
        is_footer.then(|| (start + segment_bytes - length, length as usize))
    };
    (0..slots).filter_map(footer).collect()
}
