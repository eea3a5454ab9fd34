//! A histogram of the expiries of bytes, in which nearer expiries have narrower buckets.
//!
//! An expiry in a minute matters to within seconds, one in ten years only to within months. So the width of a bucket
//! follows from the distance: the time between adding an expiry and its due time. The width is a power of two in
//! milliseconds, and at most a 32nd of the distance. An expiry counts when its bucket ends, so it counts late by at
//! most that width, whatever else is in the histogram. At most 65 buckets of each width exist at a time, because
//! expiries further away go into wider buckets.
//!
//! The distance at which bytes were added is not stored, so they are removed by their due time alone. Widths are powers
//! of two and buckets end at multiples of them, so the buckets that can contain a time are nested. They are searched
//! from the narrowest to the widest. If bytes that are due at about the same time are spread over buckets of different
//! widths, they may be removed from a different bucket than they were added to. The wider bucket then keeps bytes whose
//! record was removed. The sum stays exact, and every later removal still finds its bytes.
//!
//! Only `space_usage` uses this module.

use std::collections::BTreeMap;

use crate::planted::{Bug, planted};

/// The maximum width of a bucket is the distance divided by two to this power.
const SHARE_BITS: u32 = 5;
/// The number of different widths, for distances of up to 64 bits.
const LEVELS: usize = (u64::BITS - SHARE_BITS) as usize;

/// A bucket: the time at which it ends, and its level. The width is two to the power of the level. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Bucket {
    end_ms: u64,
    level: u8,
}

impl Bucket {
    /// The bucket at `level` that contains `due_ms`. A bucket that would end after the last representable time ends
    /// there.
    fn around(due_ms: u64, level: u8) -> Bucket {
        let end_ms = due_ms.checked_next_multiple_of(1 << level).unwrap_or(u64::MAX);
        Bucket { end_ms, level }
    }

    /// The last time before the bucket begins.
    pub(super) fn after_ms(self) -> u64 {
        self.end_ms.saturating_sub(1 << self.level)
    }

    /// The last time in the bucket.
    pub(super) fn end_ms(self) -> u64 {
        self.end_ms
    }

    /// Whether any bytes in the bucket can have expired at `now_ms`.
    pub(super) fn has_begun(self, now_ms: u64) -> bool {
        self.after_ms() < now_ms
    }
}

/// The histogram of expiries.
#[derive(Debug)]
pub(super) struct Expiries {
    /// The buckets that hold bytes, and how many.
    buckets: BTreeMap<Bucket, u64>,
    /// The number of buckets at each level, so that a search can skip empty levels.
    in_level: [u32; LEVELS],
    /// The latest time passed to [`advance`](Expiries::advance).
    now_ms: u64,
}

impl Default for Expiries {
    fn default() -> Expiries {
        Expiries { buckets: BTreeMap::new(), in_level: [0; LEVELS], now_ms: 0 }
    }
}

impl Expiries {
    /// Advances the time to `now_ms`, unless it is later already, and removes the buckets that have ended. Returns the
    /// number of their bytes.
    pub(super) fn advance(&mut self, now_ms: u64) -> u64 {
        self.now_ms = self.now_ms.max(now_ms);
        let mut expired_bytes = 0;
        while let Some(first) = self.buckets.first_entry() {
            if first.key().end_ms > self.now_ms {
                break;
            }
            self.in_level[usize::from(first.key().level)] -= 1;
            expired_bytes += first.remove();
        }
        expired_bytes
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Whether an expiry at `due_ms` has passed.
    pub(super) fn has_expired(&self, due_ms: u64) -> bool {
        due_ms <= self.now_ms
    }

    /// The bucket for an expiry at `due_ms`, which is in the future.
    pub(super) fn bucket_for(&self, due_ms: u64) -> Bucket {
        let distance_ms = due_ms.saturating_sub(self.now_ms);
        let mut level = distance_ms.checked_ilog2().unwrap_or(0).saturating_sub(SHARE_BITS);
        if planted(Bug::ExpiriesTooCoarse)
            && let Some(coarsest) = self.in_level.iter().rposition(|buckets| *buckets > 0)
        {
            level = level.max(u32::try_from(coarsest).unwrap_or(0));
        }
        Bucket::around(due_ms, u8::try_from(level).unwrap_or(0))
    }

    /// Adds bytes to a bucket. If the bucket has ended already, returns their number instead, because they count as
    /// expired at once; otherwise returns zero.
    pub(super) fn put(&mut self, bucket: Bucket, bytes: u64) -> u64 {
        if bytes == 0 || self.has_expired(bucket.end_ms) {
            return bytes;
        }
        *self.buckets.entry(bucket).or_insert_with(|| {
            self.in_level[usize::from(bucket.level)] += 1;
            0
        }) += bytes;
        0
    }

    /// Removes bytes that were added with an expiry at `due_ms`. Does nothing if that time has passed: the bytes were
    /// removed with their bucket, or will be when it ends.
    pub(super) fn take(&mut self, due_ms: u64, bytes: u64) {
        if self.has_expired(due_ms) {
            return;
        }
        let mut left = bytes;
        for level in 0..LEVELS {
            if self.in_level[level] == 0 || left == 0 {
                continue;
            }
            let level = u8::try_from(level).unwrap_or(0);
            let bucket = Bucket::around(due_ms, level);
            let Some(there) = self.buckets.get_mut(&bucket) else { continue };
            let taken = left.min(*there);
            *there -= taken;
            left -= taken;
            if *there == 0 {
                self.buckets.remove(&bucket);
                self.in_level[usize::from(level)] -= 1;
            }
        }
    }

    /// An upper bound of the number of bytes that have expired at `now_ms`: the bytes of every bucket that has begun by
    /// then.
    pub(super) fn max_expired_bytes(&self, now_ms: u64) -> u64 {
        self.buckets.iter().filter(|(bucket, _)| bucket.has_begun(now_ms)).map(|(_, bytes)| bytes).sum()
    }

    /// The buckets and their bytes.
    pub(super) fn into_buckets(self) -> impl Iterator<Item = (Bucket, u64)> {
        self.buckets.into_iter()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Expiries {
        fn add(&mut self, due_ms: u64, bytes: u64) -> u64 {
            if self.has_expired(due_ms) { bytes } else { self.put(self.bucket_for(due_ms), bytes) }
        }

        fn total_bytes(&self) -> u64 {
            self.buckets.values().sum()
        }

        fn level_counts_are_right(&self) -> bool {
            self.in_level.iter().enumerate().all(|(level, count)| {
                self.buckets.keys().filter(|at| usize::from(at.level) == level).count() as u64
                    == u64::from(*count)
            })
        }
    }

    #[test]
    fn an_expiry_counts_late_by_at_most_a_32nd_of_its_distance() {
        for distance in (0..63).flat_map(|bits| [1_u64 << bits, (1 << bits) + 1, (2 << bits) - 1]) {
            for now in [0, 1, 999, 1_700_000_000_000] {
                let mut expiries = Expiries::default();
                assert_eq!(expiries.advance(now), 0);
                // An expiry much further away must not make the other one less precise.
                expiries.add(now.saturating_add(distance).saturating_mul(1_000), 1 << 40);
                let due = now + distance;
                assert_eq!(expiries.add(due, 7), 0);
                assert_eq!(expiries.advance(due - 1), 0, "{distance} from {now}");
                assert_eq!(expiries.advance(due + distance / 32), 7, "{distance} from {now}");
            }
        }
    }

    #[test]
    fn expiries_at_the_first_and_the_last_time_count() {
        let mut expiries = Expiries::default();
        assert_eq!(expiries.add(0, 5), 5, "at time 0");
        assert_eq!(expiries.add(u64::MAX - 1, 5), 0);
        assert_eq!(expiries.add(u64::MAX, 6), 0);
        assert_eq!(expiries.advance(u64::MAX - 2), 0);
        assert_eq!(expiries.advance(u64::MAX), 11);
        assert_eq!((expiries.len(), expiries.advance(3)), (0, 0), "the time must not go back");
        assert_eq!(expiries.add(u64::MAX, 6), 6);
    }

    #[test]
    fn adding_zero_bytes_or_to_an_ended_bucket_creates_none() {
        let mut expiries = Expiries::default();
        let bucket = expiries.bucket_for(6_400);
        assert_eq!((expiries.put(bucket, 0), expiries.len()), (0, 0));
        expiries.advance(bucket.end_ms());
        assert_eq!((expiries.put(bucket, 5), expiries.len()), (5, 0));
    }

    #[test]
    fn there_are_at_most_65_buckets_of_each_width() {
        let mut expiries = Expiries::default();
        let mut random = 1_u64;
        let mut max_buckets = 0;
        for now in 0..200_000_u64 {
            expiries.advance(now * 997);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Distances of up to 2^40 ms, which is 34 years, with each order of magnitude equally often.
            expiries.add(now * 997 + (random >> 24 >> (random % 40)), 1);
            max_buckets = max_buckets.max(expiries.len());
        }
        assert!(max_buckets <= 65 * 36, "{max_buckets}");
        assert!(expiries.level_counts_are_right());
        for (level, count) in expiries.in_level.iter().enumerate() {
            assert!(*count <= 65, "{count} of width 2^{level}");
        }
    }

    #[test]
    fn no_bucket_for_a_future_expiry_has_begun() {
        for now in [0, 1, 999, 1_700_000_000_000] {
            let mut expiries = Expiries::default();
            expiries.advance(now);
            for distance in
                (0..64).flat_map(|bits| [1_u64 << bits, (1 << bits) + 1, ((1 << bits) - 1).max(1)])
            {
                let due = now.saturating_add(distance);
                assert!(!expiries.bucket_for(due).has_begun(now), "{distance} from {now}");
            }
        }
    }

    #[test]
    fn the_bound_counts_all_of_each_bucket_that_has_begun() {
        let mut expiries = Expiries::default();
        expiries.add(6_400, 5);
        expiries.add(640_000, 7);
        assert_eq!(expiries.max_expired_bytes(6_272), 0);
        assert_eq!(expiries.max_expired_bytes(6_399), 5, "its bucket is 128 ms wide");
        assert_eq!(expiries.advance(6_399), 0);
        assert_eq!(expiries.max_expired_bytes(640_000), 12);
    }

    proptest! {
        /// No bytes are lost, and none remain in the end, whichever buckets they are removed from.
        #[test]
        fn bytes_are_found_whatever_their_distance_when_added(
            steps in prop::collection::vec((0..1_u64 << 20, 1..500_u64, 0..20_000_u64, any::<bool>(), any::<prop::sample::Index>()), 1..200)
        ) {
            let mut expiries = Expiries::default();
            let mut there: Vec<(u64, u64)> = Vec::new();
            let (mut now, mut expected) = (0, 0);
            for (distance, bytes, passes, takes, which) in steps {
                now += passes;
                expected -= expiries.advance(now);
                // Use few different times, so that many expiries share a bucket.
                let due = (now + distance).next_multiple_of(4_096);
                prop_assert_eq!(expiries.add(due, bytes), 0);
                there.push((due, bytes));
                expected += bytes;
                if takes {
                    let (due, bytes) = there.swap_remove(which.index(there.len()));
                    expiries.take(due, bytes);
                    if due > now {
                        expected -= bytes;
                    }
                }
                prop_assert_eq!(expiries.total_bytes(), expected);
                prop_assert!(expiries.level_counts_are_right());
            }
            for (due, bytes) in there {
                expiries.take(due, bytes);
                expected -= if due > now { bytes } else { 0 };
            }
            prop_assert_eq!(expiries.total_bytes(), expected);
            prop_assert_eq!(expiries.advance(u64::MAX), expected);
            prop_assert_eq!(expiries.len(), 0);
        }
    }
}
