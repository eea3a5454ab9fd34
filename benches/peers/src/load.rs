//! Threads that do one thing over and over, for a time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::latency::Latencies;
use crate::results::Metrics;

/// How much, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub threads: u32,
    pub duration: Duration,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub latencies: Latencies,
    pub elapsed: Duration,
}

impl Outcome {
    pub fn metrics(&self) -> Metrics {
        let Outcome { latencies, elapsed } = self;
        Metrics::from([
            ("operations_per_second".to_owned(), latencies.count() as f64 / elapsed.as_secs_f64()),
            ("mean_ns".to_owned(), latencies.mean()),
            ("p50_ns".to_owned(), latencies.quantile(0.5)),
            ("p99_ns".to_owned(), latencies.quantile(0.99)),
            ("p999_ns".to_owned(), latencies.quantile(0.999)),
            ("worst_ns".to_owned(), latencies.highest()),
        ])
    }
}

/// Runs what `worker` makes for each thread until the time is over. What happens in a fifth of the time before that is not
/// counted: caches fill, files grow to where they stay.
pub fn run<W, O>(load: Load, worker: W) -> Outcome
where
    W: Fn(u32) -> O + Sync,
    O: FnMut(),
{
    let phase = AtomicU8::new(WARMING);
    let ready = Barrier::new(load.threads as usize + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads)
            .map(|thread| {
                let (phase, ready, worker) = (&phase, &ready, &worker);
                scope.spawn(move || {
                    let mut latencies = Latencies::new();
                    let mut operation = worker(thread);
                    ready.wait();
                    let mut before = Instant::now();
                    loop {
                        // What was under way when measuring began or ended is not counted.
                        let phase_before = phase.load(Ordering::Relaxed);
                        if phase_before == OVER {
                            return latencies;
                        }
                        operation();
                        let after = Instant::now();
                        if phase_before == MEASURING && phase.load(Ordering::Relaxed) == MEASURING {
                            latencies.note(after - before);
                        }
                        before = after;
                    }
                })
            })
            .collect();
        ready.wait();
        std::thread::sleep(load.duration / 5);
        let start = Instant::now();
        phase.store(MEASURING, Ordering::Relaxed);
        std::thread::sleep(load.duration);
        phase.store(OVER, Ordering::Relaxed);
        let elapsed = start.elapsed();
        let mut latencies = Latencies::new();
        for thread in threads {
            latencies.absorb(&thread.join().expect("a thread of the load does not panic"));
        }
        Outcome { latencies, elapsed }
    })
}
