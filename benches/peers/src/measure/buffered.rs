//! Records that are not synced, one by one; and many records that are made durable together.

use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::contestant::{Contestant, Durability, FLOOR};
use crate::floor::{Bare, FRAME_HEADER_BYTES, RECORD_BYTES, Room};
use crate::load::{self, Load};
use crate::operations::{Change, Key, Purpose, RESULT, key};
use crate::results::{Metrics, Subject};

/// Records that become durable together.
const BATCH: u64 = 100;
/// Keys that are made beforehand and then written in one go, so that making them does not count.
const STRETCH: u64 = 10_000;

pub fn run(bench: &Bench) {
    let duration = bench.arguments.duration;
    let single = Subject::new("buffered", "record", 1, 0);
    let batched = Subject::new("buffered", "100 records durable together", 1, 0);
    for round in 0..bench.arguments.rounds {
        let place = bench.place();
        let bare = Bare::new(&place, Room::There);
        bench.note(&single, FLOOR, round, stretches(bench, |_| bare.record_buffered()));
        bare.sync();
        for kind in bench.as_they_come() {
            let place = bench.place();
            let contestant = (kind.open)(&place, Durability::Buffered);
            let metrics = stretches(bench, |key| assert!(contestant.record(key), "every key is new"));
            contestant.sync();
            contestant.close();
            bench.note(&single, kind.name, round, metrics);
        }

        let load = Load { threads: 1, duration };
        let frames = vec![1; (FRAME_HEADER_BYTES + RECORD_BYTES) * BATCH as usize];
        let outcome = load::run(load, |_| {
            || {
                bare.write(&frames);
                bare.sync();
            }
        });
        bench.note(&batched, FLOOR, round, of_batches(outcome.metrics()));
        for kind in bench.as_they_come() {
            let place = bench.place();
            let contestant = (kind.open)(&place, Durability::Synced);
            let metrics = batches(&*contestant, load, bench.next_cell());
            contestant.close();
            bench.note(&batched, kind.name, round, metrics);
        }
    }
}

/// Writes stretches of keys until they have taken long enough. There is nothing to say of the latency of single ones: to
/// time each would cost a good part of it.
fn stretches(bench: &Bench, mut write: impl FnMut(&Key)) -> Metrics {
    let cell = bench.next_cell();
    let warming = bench.arguments.duration / 5;
    let (mut next, mut spent, mut counted) = (0, Duration::ZERO, (0_u64, Duration::ZERO));
    while counted.1 < bench.arguments.duration {
        let keys: Vec<Key> =
            (next..next + STRETCH).map(|number| key(Purpose::Written { cell, thread: 0 }, number)).collect();
        let start = Instant::now();
        keys.iter().for_each(&mut write);
        let took = start.elapsed();
        if spent >= warming {
            counted = (counted.0 + STRETCH, counted.1 + took);
        }
        spent += took;
        next += STRETCH;
    }
    let mean = counted.1.as_nanos() as f64 / counted.0 as f64;
    Metrics::from([("mean_ns".to_owned(), mean), ("operations_per_second".to_owned(), 1e9 / mean)])
}

fn batches(contestant: &dyn Contestant, load: Load, cell: u64) -> Metrics {
    let worker = |thread| {
        let mut next = 0;
        move || {
            let put = |number| Change::PutIfAbsent(key(Purpose::Written { cell, thread }, number), RESULT);
            let changes: Vec<Change> = (next..next + BATCH).map(put).collect();
            next += BATCH;
            let applied = contestant.apply(&changes);
            assert!(applied.into_iter().all(|applied| applied), "every key is new");
        }
    };
    of_batches(load::run(load, worker).metrics())
}

/// Latencies are those of a batch; how many a second, that of records.
fn of_batches(mut metrics: Metrics) -> Metrics {
    for (metric, value) in &mut metrics {
        if metric == "operations_per_second" {
            *value *= BATCH as f64;
        }
    }
    metrics
}
