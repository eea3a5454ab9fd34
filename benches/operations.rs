//! Operations of one thread on a real file, each compared with its floor: a bare loop that writes and syncs as many bytes, in a
//! file of zeroes that are on disk. `cargo bench` prints both. Quote the ratio; the times depend on the disk.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark that fails should stop"
)]

use std::convert::Infallible;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use oncekey::{Attempt, Begin, Durability, Fingerprint, Options, Store};

const RESULT: [u8; 256] = [7; 256];
/// The size of a frame with one record of these keys and results: frame header, fixed part, padded key, result.
const FRAME_BYTES: usize = 56 + 80 + 40 + 256;

fn key(number: u64) -> String {
    format!("{number:036}")
}

/// Creates a file of zeroes that are on disk, as the store's segment slots are before they are written to.
fn preallocated(directory: &tempfile::TempDir) -> File {
    let file = File::create_new(directory.path().join("floor")).unwrap();
    file.write_all_at(&vec![0; 64 << 20], 0).unwrap();
    file.sync_all().unwrap();
    file
}

/// Returns the position of a write. The floor wraps around before the end of the file.
fn position(turn: u64) -> u64 {
    turn * FRAME_BYTES as u64 % (60 << 20)
}

fn durable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable");
    let directory = tempfile::tempdir_in(".").unwrap();
    let file = preallocated(&directory);
    let mut turn = 0;
    group.bench_function("floor: one write, one sync", |bencher| {
        bencher.iter(|| {
            turn += 1;
            file.write_all_at(&[1; FRAME_BYTES], position(turn)).unwrap();
            file.sync_data().unwrap();
        });
    });
    let store = Store::open(directory.path().join("record.once")).unwrap();
    let mut number = 0;
    group.bench_function("record", |bencher| {
        bencher.iter(|| {
            number += 1;
            store.record(&key(number), Fingerprint::NONE, &RESULT).unwrap()
        });
    });
    group.bench_function("floor: two writes, two syncs", |bencher| {
        bencher.iter(|| {
            for _ in 0..2 {
                turn += 1;
                file.write_all_at(&[1; FRAME_BYTES], position(turn)).unwrap();
                file.sync_data().unwrap();
            }
        });
    });
    group.bench_function("floor: two writes, one sync", |bencher| {
        bencher.iter(|| {
            for _ in 0..2 {
                turn += 1;
                file.write_all_at(&[1; FRAME_BYTES], position(turn)).unwrap();
            }
            file.sync_data().unwrap();
        });
    });
    let store = Store::open(directory.path().join("rerun.once")).unwrap();
    group.bench_function("a rerunnable operation: two writes, one sync", |bencher| {
        bencher.iter(|| {
            number += 1;
            let key = key(number);
            let side_effect = |_: &Attempt| Ok::<_, Infallible>(RESULT.to_vec());
            store.operation(&key).rerun().run(side_effect).unwrap()
        });
    });
    let store = Store::open(directory.path().join("begin.once")).unwrap();
    group.bench_function("begin and complete", |bencher| {
        bencher.iter(|| {
            number += 1;
            let Begin::Acquired(mut lease) = store.begin(&key(number), Fingerprint::NONE).unwrap() else {
                unreachable!("a new key was already present")
            };
            lease.complete(&RESULT).unwrap()
        });
    });
    group.finish();
}

fn buffered(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("buffered");
    let directory = tempfile::tempdir_in(".").unwrap();
    let file = preallocated(&directory);
    let mut turn = 0;
    group.bench_function("floor: one write", |bencher| {
        bencher.iter(|| {
            turn += 1;
            file.write_all_at(&[1; FRAME_BYTES], position(turn)).unwrap();
        });
    });
    let store =
        Options::new().durability(Durability::Buffered).open(directory.path().join("buffered.once")).unwrap();
    let mut number = 0;
    group.bench_function("record", |bencher| {
        bencher.iter(|| {
            number += 1;
            store.record(&key(number), Fingerprint::NONE, &RESULT).unwrap()
        });
    });
    group.finish();
}

/// Measures records that become durable together, in a growing file and in a file whose slots are reclaimed and reused.
fn batched(criterion: &mut Criterion) {
    const BATCH: u64 = 100;
    let mut group = criterion.benchmark_group("100 records made durable together");
    let directory = tempfile::tempdir_in(".").unwrap();
    let file = preallocated(&directory);
    let frame = vec![1; FRAME_BYTES * BATCH as usize];
    let mut turn = 0;
    group.bench_function("floor: 100 writes, one sync", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                turn += 1;
                file.write_all_at(&frame[..FRAME_BYTES], position(turn)).unwrap();
            }
            file.sync_data().unwrap();
        });
    });
    group.bench_function("floor: one write, one sync", |bencher| {
        bencher.iter(|| {
            turn += BATCH;
            file.write_all_at(&frame, position(turn)).unwrap();
            file.sync_data().unwrap();
        });
    });
    let mut number = 0;
    for (name, retention) in [("kept", 3_600), ("kept for a second, and reclaimed", 1)] {
        let path = directory.path().join(format!("batched-{retention}.once"));
        let options =
            Options::new().durability(Durability::Buffered).retention(Duration::from_secs(retention));
        let store = options.open(path).unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..BATCH {
                    number += 1;
                    store.record(&key(number), Fingerprint::NONE, &RESULT).unwrap();
                }
                store.sync().unwrap();
            });
        });
    }
    let store = Store::open(directory.path().join("batch.once")).unwrap();
    group.bench_function("a batch", |bencher| {
        bencher.iter(|| {
            let mut batch = store.batch();
            for _ in 0..BATCH {
                number += 1;
                batch.record(store.operation(key(number)), &RESULT).unwrap();
            }
            assert!(batch.commit().unwrap().all(|answer| answer.is_ok()));
        });
    });
    group.finish();
}

/// Creates a store with `count` completed operations. Returns its path, the store and the keys.
fn filled(directory: &tempfile::TempDir, count: u64) -> (std::path::PathBuf, Store, Vec<String>) {
    let path = directory.path().join("filled.once");
    let store = Options::new().durability(Durability::Buffered).open(&path).unwrap();
    let keys: Vec<String> = (0..count).map(key).collect();
    for key in &keys {
        store.record(key, Fingerprint::NONE, &RESULT).unwrap();
    }
    store.sync().unwrap();
    (path, store, keys)
}

fn open(criterion: &mut Criterion) {
    const KEYS: u64 = 200_000;
    /// The size of a footer entry, one for each record.
    const ENTRY_BYTES: usize = 48;
    let mut group = criterion.benchmark_group("open, 200,000 keys");
    let directory = tempfile::tempdir_in(".").unwrap();
    let (path, store, _) = filled(&directory, KEYS);
    store.close().unwrap();
    let file = File::open(&path).unwrap();
    let mut bytes = vec![0; ENTRY_BYTES * KEYS as usize];
    let written = preallocated(&directory);
    group.bench_function(
        "floor: as many bytes as the footers have, read and summed; one write, one sync",
        |bencher| {
            bencher.iter(|| {
                written.write_all_at(&[1; 48], 0).unwrap();
                written.sync_data().unwrap();
                file.read_exact_at(&mut bytes, 0).unwrap();
                let (words, _) = bytes.as_chunks::<8>();
                black_box(words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word))))
            });
        },
    );
    group.bench_function("open", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let begun = Instant::now();
                let store = Store::open(&path).unwrap();
                spent += begun.elapsed();
                store.close().unwrap();
            }
            spent
        });
    });
    group.finish();
}

fn replay(criterion: &mut Criterion) {
    const KEYS: u64 = 100_000;
    let mut group = criterion.benchmark_group("replay, 100,000 keys");
    let directory = tempfile::tempdir_in(".").unwrap();
    let (_, store, keys) = filled(&directory, KEYS);
    let map: std::collections::HashMap<&str, [u8; 256]> =
        keys.iter().map(|key| (key.as_str(), RESULT)).collect();
    let mut turn = 0;
    // With this stride every key is visited once before any key is visited again.
    let mut next = move || {
        turn = (turn + 61_803) % KEYS;
        usize::try_from(turn).unwrap()
    };
    group.bench_function("floor: a hash map that copies out the result", |bencher| {
        bencher.iter(|| black_box(map[keys[next()].as_str()].to_vec()));
    });
    group.bench_function("a known key", |bencher| {
        bencher.iter(|| store.begin(&keys[next()], Fingerprint::NONE).unwrap());
    });
    let mut answer = Vec::new();
    group.bench_function("a known key, into a buffer", |bencher| {
        bencher.iter(|| store.replay_into(&keys[next()], Fingerprint::NONE, &mut answer).unwrap());
    });
    let unknown: Vec<String> = (KEYS..2 * KEYS).map(key).collect();
    group.bench_function("an unknown key", |bencher| {
        bencher.iter(|| store.get(&unknown[next()]).unwrap());
    });
    group.finish();
}

criterion_group!(benches, durable, buffered, batched, replay, open);
criterion_main!(benches);
