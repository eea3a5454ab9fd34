//! Memory and disk for each key. In processes of their own, so that nobody pays for what another left on the heap.

use crate::bench::Bench;
use crate::child;
use crate::contestant::FLOOR;
use crate::machine::disk_bytes;
use crate::results::{Metrics, Subject};

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        let subject = Subject::new("memory", "filled", 0, keys);
        for round in 0..bench.arguments.rounds {
            // The floor is a map in memory, of the keys and their results.
            let metrics = child::memory_filling(FLOOR, keys, &bench.place());
            bench.note(&subject, FLOOR, round, per_key(metrics, keys));
            for kind in bench.as_they_come() {
                let place = bench.place();
                let mut metrics = child::memory_filling(kind.name, keys, &place);
                metrics.extend(child::memory_reopened(kind.name, keys, &place));
                metrics.insert("disk_bytes".to_owned(), disk_bytes(&place) as f64);
                bench.note(&subject, kind.name, round, per_key(metrics, keys));
            }
        }
    }
}

fn per_key(metrics: Metrics, keys: u64) -> Metrics {
    let shares: Vec<(String, f64)> = metrics
        .iter()
        .map(|(name, bytes)| (name.replace("_bytes", "_per_key_bytes"), bytes / keys as f64))
        .collect();
    metrics.into_iter().chain(shares).collect()
}
