//! Lookups of known keys, which copy out the result, and of unknown keys.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::contestant::{Durability, FLOOR, Reader};
use crate::latency::Latencies;
use crate::load::{Load, Timings};
use crate::machine;
use crate::operations::{Key, KeySet, RESULT, chosen, key};
use crate::results::{Metrics, Subject};
use crate::sharded_map::ShardedMap;

/// The maximum number of different keys that are looked up, repeatedly. They are spread over nearly every page of ten million
/// keys.
const MAX_LOOKED_UP: u64 = 1_000_000;
/// The number of lookups between two that are timed individually. Reading the clock takes as long as the fastest lookup, so
/// timing each lookup would distort the mean.
const TOGETHER: usize = 63;

/// The keys that are looked up.
struct Lookups {
    known: Vec<Key>,
    unknown: Vec<Key>,
}

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        let count = keys.min(MAX_LOOKED_UP);
        let lookups = Lookups {
            known: chosen(count, keys).map(|number| key(KeySet::Filled, number)).collect(),
            unknown: (0..count).map(|number| key(KeySet::Unknown, number)).collect(),
        };
        for setup in bench.plain_setups() {
            bench.filled(setup, keys);
        }
        for round in 0..bench.arguments.rounds {
            let map = ShardedMap::filled(keys);
            turn(bench, &lookups, keys, round, FLOOR, &|| Box::new(&map));
            drop(map);
            for setup in bench.plain_setups() {
                let directory = bench.filled(setup, keys);
                machine::warm(&directory);
                let contestant = (setup.open)(&directory, Durability::Synced);
                turn(bench, &lookups, keys, round, setup.name, &|| contestant.reader());
                contestant.close();
            }
        }
    }
}

type MakeReader<'a> = &'a (dyn Fn() -> Box<dyn Reader + 'a> + Sync);

/// Measures one contestant: known and unknown keys, with one thread and with two.
fn turn(bench: &Bench, lookups: &Lookups, keys: u64, round: u32, contestant: &str, reader: MakeReader<'_>) {
    for threads in [1, 2] {
        let load = Load::full(threads, bench.arguments.duration);
        let known = look_up(load, &lookups.known, reader, |reader, key| {
            let result = reader.replay(key).expect("a filled key is missing");
            assert_eq!(std::hint::black_box(result).len(), RESULT.len());
        });
        bench.add_sample(&Subject::new("replay", "known", threads, keys), contestant, round, known);
        let unknown = look_up(load, &lookups.unknown, reader, |reader, key| {
            assert!(!reader.is_known(key), "an unknown key was found");
        });
        bench.add_sample(&Subject::new("replay", "unknown", threads, keys), contestant, round, unknown);
    }
}

/// Looks up these keys again and again, in several threads, until the time is over.
fn look_up(
    load: Load,
    keys: &[Key],
    reader: MakeReader<'_>,
    look_up: impl Fn(&mut dyn Reader, &Key) + Sync,
) -> Metrics {
    let ready = Barrier::new(load.threads as usize);
    let outcomes: Vec<(u64, Timings)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads as usize)
            .map(|thread| {
                let (ready, look_up) = (&ready, &look_up);
                scope.spawn(move || {
                    let mut reader = reader();
                    // Threads begin at different keys, so that they do not warm the cache for each other.
                    let start = keys.len() / load.threads as usize * thread;
                    let mut turn = keys.iter().cycle().skip(start);
                    // Warm up by looking up each key once, unless that takes very long.
                    let before = Instant::now();
                    for key in turn.by_ref().take(keys.len()) {
                        look_up(&mut *reader, key);
                        if before.elapsed() > 10 * load.duration {
                            break;
                        }
                    }
                    ready.wait();
                    timed(load.duration, &mut turn, |key| look_up(&mut *reader, key))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a reader panicked")).collect()
    });
    let per_second: f64 =
        outcomes.iter().map(|(count, outcome)| *count as f64 / outcome.elapsed.as_secs_f64()).sum();
    let mut latencies = Latencies::new();
    for (_, outcome) in &outcomes {
        latencies.merge(&outcome.latencies);
    }
    let mut metrics = Timings { latencies, elapsed: load.duration, cpu: None }.metrics();
    metrics.insert("operations_per_second".to_owned(), per_second);
    metrics.insert("mean_ns".to_owned(), f64::from(load.threads) * 1e9 / per_second);
    metrics
}

/// Looks up keys until the time is over. Returns the number of lookups, and the latencies of the lookups that were timed
/// individually.
fn timed<'a>(
    duration: Duration,
    keys: &mut impl Iterator<Item = &'a Key>,
    mut look_up: impl FnMut(&'a Key),
) -> (u64, Timings) {
    let mut latencies = Latencies::new();
    let (mut count, start) = (0, Instant::now());
    loop {
        for key in keys.by_ref().take(TOGETHER) {
            look_up(key);
        }
        let key = keys.next().expect("the keys should be an endless cycle");
        let before = Instant::now();
        look_up(key);
        let after = Instant::now();
        latencies.record(after - before);
        count += TOGETHER as u64 + 1;
        let elapsed = after - start;
        if elapsed >= duration {
            return (count, Timings { latencies, elapsed, cpu: None });
        }
    }
}
