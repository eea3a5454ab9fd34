//! Memory and disk space for each key. Each turn runs in a separate process, so that no store inherits the heap of another.

use crate::bench::Bench;
use crate::child;
use crate::contestant::FLOOR;
use crate::machine::disk_bytes;
use crate::results::{Metrics, Subject};

pub fn run(bench: &Bench) {
    for keys in bench.arguments.keys() {
        let subject = Subject::new("memory", "filled", 0, keys);
        for round in 0..bench.arguments.rounds {
            // The floor is a map of the keys and their results in memory.
            let metrics = child::memory_filling(FLOOR, keys, &bench.scratch_directory());
            bench.add_sample(&subject, FLOOR, round, per_key(metrics, keys));
            for setup in bench.plain_setups() {
                let scratch = bench.scratch_directory();
                let mut metrics = child::memory_filling(setup.name, keys, &scratch);
                metrics.extend(child::memory_reopened(setup.name, keys, &scratch));
                metrics.insert("disk_bytes".to_owned(), disk_bytes(&scratch) as f64);
                bench.add_sample(&subject, setup.name, round, per_key(metrics, keys));
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
