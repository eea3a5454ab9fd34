//! Threads that repeat one operation for a given time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::conditions::Work;
use crate::latency::Latencies;
use crate::machine::cpu_time;
use crate::results::{CPU, Metrics, RATE};

/// The number of threads, what each of them does between two operations, and the time for which they are measured.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub threads: u32,
    pub duration: Duration,
    pub work: Work,
}

impl Load {
    /// Returns a load of threads that start their next operation as soon as the last one has returned.
    pub fn full(threads: u32, duration: Duration) -> Load {
        Load { threads, duration, work: Work::None }
    }
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// The measured latencies.
#[derive(Debug)]
pub struct Timings {
    pub latencies: Latencies,
    pub elapsed: Duration,
    /// The CPU time of the process while they were measured.
    pub cpu: Option<Duration>,
}

impl Timings {
    pub fn metrics(&self) -> Metrics {
        let Timings { latencies, elapsed, cpu } = self;
        let operations = latencies.count() as f64;
        let mut metrics = Metrics::from([
            (RATE.to_owned(), operations / elapsed.as_secs_f64()),
            ("mean_ns".to_owned(), latencies.mean()),
            ("p50_ns".to_owned(), latencies.quantile(0.5)),
            ("p99_ns".to_owned(), latencies.quantile(0.99)),
            ("p999_ns".to_owned(), latencies.quantile(0.999)),
            ("worst_ns".to_owned(), latencies.highest()),
        ]);
        if let Some(cpu) = cpu {
            metrics.insert(CPU.to_owned(), cpu.as_nanos() as f64 / operations.max(1.0));
        }
        metrics
    }
}

/// Calls `worker` once in each thread, and repeats the operation that it returns until the time is over. Before measuring,
/// runs for a fifth of the time as a warm-up, in which caches fill and files grow to their final size.
pub fn run<W, O>(load: Load, worker: W) -> Timings
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
                        // An operation that was running when measuring began or ended is not counted.
                        let phase_before = phase.load(Ordering::Relaxed);
                        if phase_before == OVER {
                            return latencies;
                        }
                        operation();
                        let after = Instant::now();
                        if phase_before == MEASURING && phase.load(Ordering::Relaxed) == MEASURING {
                            latencies.record(after - before);
                        }
                        before = load.work.perform(after);
                    }
                })
            })
            .collect();
        ready.wait();
        std::thread::sleep(load.duration / 5);
        let (start, cpu_before) = (Instant::now(), cpu_time());
        phase.store(MEASURING, Ordering::Relaxed);
        std::thread::sleep(load.duration);
        phase.store(OVER, Ordering::Relaxed);
        let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu_before);
        let mut latencies = Latencies::new();
        for thread in threads {
            latencies.merge(&thread.join().expect("a thread of the load panicked"));
        }
        Timings { latencies, elapsed, cpu: Some(cpu) }
    })
}
