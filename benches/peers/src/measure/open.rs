//! Opening a store with many operations, its files in the cache of the operating system: one that was closed, and one whose
//! process ended without closing it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::bench::Bench;
use crate::contestant::{Durability, FLOOR, Kind, ONCEKEY};
use crate::machine;
use crate::operations::{Purpose, key};
use crate::results::{Metrics, Subject};
use crate::{child, stores};

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        for kind in bench.as_they_come() {
            bench.filled(kind, keys);
        }
        let closed = Subject::new("open", "closed", 0, keys);
        let crashed = Subject::new("open", "after a crash", 0, keys);
        for round in 0..bench.arguments.rounds {
            for kind in bench.as_they_come() {
                let directory = bench.filled(kind, keys);
                machine::warm(&directory);
                // The floor reads the very file that is opened next.
                let floor = (kind.name == ONCEKEY).then(|| sum_footers(&stores::oncekey::file(&directory)));
                let floor = floor.flatten().map(|took_ns| Metrics::from([("open_ns".to_owned(), took_ns)]));
                for (subject, crashes) in [(&closed, false), (&crashed, true)] {
                    if let Some(metrics) = &floor {
                        bench.note(subject, FLOOR, round, metrics.clone());
                    }
                    if crashes {
                        child::crash(kind, bench.next_cell(), &directory);
                    }
                    bench.note(subject, kind.name, round, open(kind, &directory));
                }
            }
        }
    }
}

/// How long opening takes, and opening together with a first lookup: some put off till then what others do at once.
fn open(kind: &Kind, directory: &Path) -> Metrics {
    let start = Instant::now();
    let contestant = (kind.open)(directory, Durability::Synced);
    let opened = start.elapsed();
    let is_known = contestant.reader().is_known(&key(Purpose::Filled, 0));
    let looked_up = start.elapsed();
    assert!(is_known, "{}: what was filled in is there", kind.name);
    contestant.close();
    Metrics::from([
        ("open_ns".to_owned(), opened.as_nanos() as f64),
        ("open_and_look_up_ns".to_owned(), looked_up.as_nanos() as f64),
    ])
}

/// How long it takes to read the footers of all full segments and sum up their bytes, as words; in nanoseconds. None if
/// there is no full segment.
fn sum_footers(path: &Path) -> Option<f64> {
    let file = File::open(path).expect("the file is there");
    let footers = footers(&file);
    let longest = footers.iter().map(|(_, length)| *length).max()?;
    let mut buffer = vec![0; longest];
    let start = Instant::now();
    let mut sum = 0_u64;
    for (place, length) in footers {
        let bytes = &mut buffer[..length];
        file.read_exact_at(bytes, place).expect("a footer can be read");
        let (words, _) = bytes.as_chunks::<8>();
        sum = words.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    }
    std::hint::black_box(sum);
    Some(start.elapsed().as_nanos() as f64)
}

/// Where the footers lie and how long they are, by the specification of the file format.
fn footers(file: &File) -> Vec<(u64, usize)> {
    const STORE_HEADER_BYTES: u64 = 4_096;
    const TRAILER_BYTES: u64 = 64;
    const ENTRY_BYTES: u64 = 48;
    fn field<const LENGTH: usize>(file: &File, place: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        file.read_exact_at(&mut bytes, place).expect("a field can be read");
        bytes
    }
    let segment_bytes = u64::from(u32::from_le_bytes(field(file, 28)));
    let slots = (file.metadata().expect("a file has a length").len() - STORE_HEADER_BYTES) / segment_bytes;
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
