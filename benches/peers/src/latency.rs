//! A histogram of latencies. Its buckets grow with the latency, so that recording takes a few instructions and the relative
//! error is below one in a hundred.

use std::time::Duration;

/// The number of buckets for each power of two.
const PARTS: u64 = 128;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// The number of buckets: enough for latencies up to 2^40 ns, about a quarter of an hour.
const BUCKETS: usize = (PARTS as usize) * (40 - PART_BITS as usize + 1);

#[derive(Debug, Clone)]
pub struct Latencies {
    buckets: Vec<u32>,
    count: u64,
    highest: u64,
    sum: u64,
}

/// Returns the bucket of a latency.
fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < PARTS {
        return nanoseconds as usize;
    }
    let shift = nanoseconds.ilog2() - PART_BITS;
    let bucket = (u64::from(shift) + 1) * PARTS + (nanoseconds >> shift) - PARTS;
    (bucket as usize).min(BUCKETS - 1)
}

/// Returns the lowest latency of a bucket, in nanoseconds.
fn lowest_of(bucket: usize) -> u64 {
    let (shift, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    if shift == 0 { part } else { (PARTS + part) << (shift - 1) }
}

impl Latencies {
    pub fn new() -> Latencies {
        Latencies { buckets: vec![0; BUCKETS], count: 0, highest: 0, sum: 0 }
    }

    pub fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.sum += nanoseconds;
        self.highest = self.highest.max(nanoseconds);
    }

    pub fn merge(&mut self, other: &Latencies) {
        for (count, added) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += added;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.highest = self.highest.max(other.highest);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the mean, in nanoseconds.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// Returns the highest latency, in nanoseconds.
    pub fn highest(&self) -> f64 {
        self.highest as f64
    }

    /// Returns the quantile for this share, in nanoseconds: the latency that this share of all latencies does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted.max(1) {
                return lowest_of(bucket) as f64;
            }
        }
        self.highest as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_spans_at_most_one_percent() {
        for nanoseconds in [0, 1, 127, 128, 129, 255, 256, 1_000, 123_456, 98_765_432_109] {
            let lowest = lowest_of(bucket(nanoseconds));
            assert!(
                lowest <= nanoseconds && nanoseconds - lowest <= nanoseconds / 100,
                "{nanoseconds}: {lowest}"
            );
        }
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut latencies = Latencies::new();
        for microseconds in 1..=1_000 {
            latencies.record(Duration::from_micros(microseconds));
        }
        for (share, expected) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0)] {
            assert!((latencies.quantile(share) / expected - 1.0).abs() < 0.01, "{share}");
        }
        assert_eq!((latencies.count(), latencies.highest()), (1_000, 1_000_000.0));
    }
}
