//! A histogram of latencies. Its buckets are wider for longer latencies, so that recording takes a few instructions and the
//! relative error is below one in a hundred.
//!
//! The buckets form groups, each of [`PARTS`] buckets. In group 0, each bucket is one nanosecond wide and the group covers the latencies
//! below [`PARTS`] ns. Each further group covers one power of two and divides it into parts of equal width.

use std::time::Duration;

/// The number of buckets in a group.
const PARTS: u64 = 128;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// The number of buckets: enough for latencies below 2^40 ns, about 18 minutes. Longer latencies count in the last bucket.
const BUCKETS: usize = (PARTS as usize) * (40 - PART_BITS as usize + 1);

/// The latencies of some operations. `highest` and `sum` are exact, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// The number of latencies in each bucket.
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
    // The width of the buckets of a group is 2^`shift` ns.
    let shift = nanoseconds.ilog2() - PART_BITS;
    let group = u64::from(shift) + 1;
    let part = (nanoseconds >> shift) - PARTS;
    ((group * PARTS + part) as usize).min(BUCKETS - 1)
}

/// Returns the lowest latency of a bucket, in nanoseconds.
fn lowest_of(bucket: usize) -> u64 {
    let (group, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    if group == 0 { part } else { (PARTS + part) << (group - 1) }
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

    /// Returns the quantile for `share`, in nanoseconds: the lowest latency L such that at least this share of all latencies are L
    /// or shorter. L is rounded down to the start of its bucket. Returns 0 if there are no latencies.
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
