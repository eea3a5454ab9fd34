//! Lookups: of keys that are known, which copy the result out, and of keys that are not.

use std::collections::HashMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::bench::Bench;
use crate::contestant::{Durability, FLOOR, Reader};
use crate::latency::Latencies;
use crate::load::{Load, Outcome};
use crate::machine;
use crate::operations::{Key, Purpose, RESULT, chosen, key};
use crate::results::{Metrics, Subject};

/// The most keys that are looked up, again and again. Enough to come by nearly every page of ten million.
const MOST_LOOKED_UP: u64 = 1_000_000;
/// So many lookups are timed together, and then one alone: to time each would cost as much as the fastest of them.
const TOGETHER: usize = 63;

/// The floor: nothing but a map in memory that can be written while it is read, as an index can.
pub struct ShardedMap {
    shards: Vec<RwLock<HashMap<Key, Box<[u8]>>>>,
}

impl ShardedMap {
    pub fn filled(keys: u64) -> ShardedMap {
        let map = ShardedMap { shards: (0..64).map(|_| RwLock::default()).collect() };
        for number in 0..keys {
            let key = key(Purpose::Filled, number);
            map.shard(&key).write().insert(key, RESULT.into());
        }
        map
    }

    /// Keys are random already, so that a sum over the last digits spreads them.
    fn shard(&self, key: &Key) -> &RwLock<HashMap<Key, Box<[u8]>>> {
        let digits = [key[35], key[34], key[33], key[32]].map(usize::from);
        &self.shards[(digits[0] + 7 * digits[1] + 29 * digits[2] + 113 * digits[3]) % self.shards.len()]
    }
}

impl Reader for &ShardedMap {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        Some(self.shard(key).read().get(key)?.to_vec())
    }

    fn is_known(&mut self, key: &Key) -> bool {
        self.shard(key).read().contains_key(key)
    }
}

/// What is looked up.
struct Lookups {
    known: Vec<Key>,
    unknown: Vec<Key>,
}

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        let count = keys.min(MOST_LOOKED_UP);
        let lookups = Lookups {
            known: chosen(count, keys).map(|number| key(Purpose::Filled, number)).collect(),
            unknown: (0..count).map(|number| key(Purpose::Unknown, number)).collect(),
        };
        for kind in bench.as_they_come() {
            bench.filled(kind, keys);
        }
        for round in 0..bench.arguments.rounds {
            let map = ShardedMap::filled(keys);
            turn(bench, &lookups, keys, round, FLOOR, &|| Box::new(&map));
            drop(map);
            for kind in bench.as_they_come() {
                let directory = bench.filled(kind, keys);
                machine::warm(&directory);
                let contestant = (kind.open)(&directory, Durability::Synced);
                turn(bench, &lookups, keys, round, kind.name, &|| contestant.reader());
                contestant.close();
            }
        }
    }
}

type MakeReader<'a> = &'a (dyn Fn() -> Box<dyn Reader + 'a> + Sync);

fn turn(bench: &Bench, lookups: &Lookups, keys: u64, round: u32, contestant: &str, reader: MakeReader<'_>) {
    for threads in [1, 2] {
        let load = Load { threads, duration: bench.arguments.duration };
        let known = look_up(load, &lookups.known, reader, |reader, key| {
            let result = reader.replay(key).expect("what was filled in is there");
            assert_eq!(std::hint::black_box(result).len(), RESULT.len());
        });
        bench.note(&Subject::new("replay", "known", threads, keys), contestant, round, known);
        let unknown = look_up(load, &lookups.unknown, reader, |reader, key| {
            assert!(!reader.is_known(key), "nobody has written it");
        });
        bench.note(&Subject::new("replay", "unknown", threads, keys), contestant, round, unknown);
    }
}

fn look_up(
    load: Load,
    keys: &[Key],
    reader: MakeReader<'_>,
    look_up: impl Fn(&mut dyn Reader, &Key) + Sync,
) -> Metrics {
    let ready = Barrier::new(load.threads as usize);
    let outcomes: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads as usize)
            .map(|thread| {
                let (ready, look_up) = (&ready, &look_up);
                scope.spawn(move || {
                    let mut reader = reader();
                    // Threads begin at different places: they are not to warm each other's caches.
                    let start = keys.len() / load.threads as usize * thread;
                    let mut turn = keys.iter().cycle().skip(start);
                    // Each of them once before anything counts, unless that takes very long.
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
        threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    let per_second: f64 =
        outcomes.iter().map(|(count, outcome)| *count as f64 / outcome.elapsed.as_secs_f64()).sum();
    let mut latencies = Latencies::new();
    for (_, outcome) in &outcomes {
        latencies.absorb(&outcome.latencies);
    }
    let mut metrics = Outcome { latencies, elapsed: load.duration }.metrics();
    metrics.insert("operations_per_second".to_owned(), per_second);
    metrics.insert("mean_ns".to_owned(), f64::from(load.threads) * 1e9 / per_second);
    metrics
}

/// Looks up for a time; how many that were, and how long those took that were timed alone.
fn timed<'a>(
    duration: Duration,
    keys: &mut impl Iterator<Item = &'a Key>,
    mut look_up: impl FnMut(&'a Key),
) -> (u64, Outcome) {
    let mut latencies = Latencies::new();
    let (mut count, start) = (0, Instant::now());
    loop {
        for key in keys.by_ref().take(TOGETHER) {
            look_up(key);
        }
        let alone = keys.next().expect("the keys go round");
        let before = Instant::now();
        look_up(alone);
        let after = Instant::now();
        latencies.note(after - before);
        count += TOGETHER as u64 + 1;
        let elapsed = after - start;
        if elapsed >= duration {
            return (count, Outcome { latencies, elapsed });
        }
    }
}
