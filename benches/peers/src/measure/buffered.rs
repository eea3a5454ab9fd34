//! Single records that are not synced, by one thread and by several, and many records that become durable together.

use std::time::{Duration, Instant};

use super::commit;
use crate::bench::Bench;
use crate::contestant::{Contestant, Durability, FLOOR};
use crate::floor::{FRAME_HEADER_BYTES, FileSpace, RECORD_BYTES, SingleThreadFloor};
use crate::load::{self, Load};
use crate::machine::cpu_time;
use crate::operations::{Case, Change, Key, KeySet, RESULT, key};
use crate::results::{CPU, Metrics, RATE, Subject};

/// The number of records that become durable together.
const BATCH: u64 = 100;
/// The number of keys that are generated before the clock starts and then written. Generating them is not measured.
const CHUNK: u64 = 10_000;
/// The numbers of threads that record besides the one thread of [`chunks`]. They generate their keys and read the clock between
/// records.
const SEVERAL: [u32; 2] = [2, 8];

pub fn run(bench: &Bench) {
    let duration = bench.arguments.duration;
    let single = Subject::new("buffered", "record", 1, 0);
    let batched = Subject::new("buffered", "100 records durable together", 1, 0);
    for round in 0..bench.arguments.rounds {
        let scratch = bench.scratch_directory();
        let bare = SingleThreadFloor::new(&scratch, FileSpace::Preallocated);
        bench.add_sample(&single, FLOOR, round, chunks(bench, |_| bare.record_buffered()));
        bare.sync();
        for setup in bench.plain_setups() {
            let scratch = bench.scratch_directory();
            let contestant = (setup.open)(&scratch, Durability::Buffered);
            let metrics =
                chunks(bench, |key| assert!(contestant.record(key), "a new key was already present"));
            contestant.sync();
            contestant.close();
            bench.add_sample(&single, setup.name, round, metrics);
        }

        for threads in SEVERAL {
            let subject = Subject::new("buffered", "record", threads, 0);
            let load = Load::full(threads, duration);
            let scratch = bench.scratch_directory();
            let floor = commit::floor(Case::Buffered, load, &scratch, FileSpace::Preallocated);
            bench.add_sample(&subject, FLOOR, round, floor);
            for setup in bench.plain_setups() {
                let scratch = bench.scratch_directory();
                let metrics = commit::turn(setup, Case::Buffered, load, &scratch, bench.next_measurement());
                bench.add_sample(&subject, setup.name, round, metrics);
            }
        }

        let load = Load::full(1, duration);
        let frames = vec![1; (FRAME_HEADER_BYTES + RECORD_BYTES) * BATCH as usize];
        let outcome = load::run(load, |_| {
            || {
                bare.write(&frames);
                bare.sync();
            }
        });
        bench.add_sample(&batched, FLOOR, round, of_batches(outcome.metrics()));
        for setup in bench.plain_setups() {
            let scratch = bench.scratch_directory();
            let contestant = (setup.open)(&scratch, Durability::Synced);
            let metrics = batches(&*contestant, load, bench.next_measurement());
            contestant.close();
            bench.add_sample(&batched, setup.name, round, metrics);
        }
    }
}

/// Measures writing chunks of keys until the time is over. The latency of single writes is not measured, because reading the
/// clock would take a large part of it.
fn chunks(bench: &Bench, mut write: impl FnMut(&Key)) -> Metrics {
    let measurement = bench.next_measurement();
    let warming = bench.arguments.duration / 5;
    let (mut next, mut spent, mut counted) = (0, Duration::ZERO, (0_u64, Duration::ZERO, Duration::ZERO));
    while counted.1 < bench.arguments.duration {
        let keys: Vec<Key> = (next..next + CHUNK)
            .map(|number| key(KeySet::Written { measurement, thread: 0 }, number))
            .collect();
        let (start, cpu_before) = (Instant::now(), cpu_time());
        keys.iter().for_each(&mut write);
        let (took, cpu) = (start.elapsed(), cpu_time() - cpu_before);
        if spent >= warming {
            counted = (counted.0 + CHUNK, counted.1 + took, counted.2 + cpu);
        }
        spent += took;
        next += CHUNK;
    }
    let mean = counted.1.as_nanos() as f64 / counted.0 as f64;
    let cpu = counted.2.as_nanos() as f64 / counted.0 as f64;
    Metrics::from([("mean_ns".to_owned(), mean), (RATE.to_owned(), 1e9 / mean), (CPU.to_owned(), cpu)])
}

/// Measures batches of [`BATCH`] records that become durable together.
fn batches(contestant: &dyn Contestant, load: Load, measurement: u64) -> Metrics {
    let worker = |thread| {
        let mut next = 0;
        move || {
            let put =
                |number| Change::PutIfAbsent(key(KeySet::Written { measurement, thread }, number), RESULT);
            let changes: Vec<Change> = (next..next + BATCH).map(put).collect();
            next += BATCH;
            let applied = contestant.apply(&changes);
            assert!(applied.into_iter().all(|applied| applied), "a new key was already present");
        }
    };
    of_batches(load::run(load, worker).metrics())
}

/// Converts the rate and the CPU time of batches to those of records. The latencies remain those of a batch.
fn of_batches(mut metrics: Metrics) -> Metrics {
    for (metric, value) in &mut metrics {
        if metric == RATE {
            *value *= BATCH as f64;
        } else if metric == CPU {
            *value /= BATCH as f64;
        }
    }
    metrics
}
