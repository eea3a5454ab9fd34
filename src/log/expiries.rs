//! Expiries: a histogram of how many bytes expire when, finer the nearer the expiry is.
//!
//! A minute ahead, an expiry matters to within seconds; ten years ahead, to within months. So the distance of an expiry
//! at the time at which it is added selects the width of its bucket: a power of two of milliseconds, at most a 32nd of
//! the distance. An expiry counts when its bucket ends, late by at most that width, whatever else is in the histogram.
//! At most 65 buckets of each width exist at a time, because expiries further away go into wider buckets.
//!
//! Bytes are taken out by the time of their expiry alone, since their distance when they were added is not stored.
//! Widths are powers of two and buckets end at multiples of them, so the buckets that can contain a time are nested.
//! They are searched from the narrowest on. If bytes of one narrow bucket are spread over buckets of different widths,
//! bytes may be taken from another bucket than they were added to. The wider bucket then keeps bytes of an expiry that
//! is gone; the sum stays right, and every later expiry still finds its bytes.
//!
//! Only space usage uses this module.

use std::collections::BTreeMap;

use crate::planted::{Bug, planted};

/// The width of a bucket is at most the distance divided by 2 to this power.
const SHARE_BITS: u32 = 5;
/// The number of widths for distances of 64 bits.
const LEVELS: usize = (u64::BITS - SHARE_BITS) as usize;

/// The time at which a bucket ends, and its width, as the exponent of a power of two. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Bucket {
    end_ms: u64,
    level: u8,
}

impl Bucket {
    /// The bucket of this width that contains `due_ms`. A bucket that would end after the last time ends there.
    fn around(due_ms: u64, level: u8) -> Bucket {
        let end_ms = due_ms.checked_next_multiple_of(1 << level).unwrap_or(u64::MAX);
        Bucket { end_ms, level }
    }

    /// The last time before the bucket.
    pub(super) fn after_ms(self) -> u64 {
        self.end_ms.saturating_sub(1 << self.level)
    }

    /// The last time in the bucket.
    pub(super) fn end_ms(self) -> u64 {
        self.end_ms
    }

    /// Whether bytes in the bucket can have expired at `now_ms`.
    pub(super) fn has_begun(self, now_ms: u64) -> bool {
        self.after_ms() < now_ms
    }
}

/// The histogram.
#[derive(Debug)]
pub(super) struct Expiries {
    buckets: BTreeMap<Bucket, u64>,
    /// How many buckets there are of each width, so that a search skips widths without any.
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
    /// Advances the time to `now_ms`, never back, and removes the buckets that have ended. Returns their bytes.
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

    /// Adds bytes to a bucket. Returns them if the bucket has ended, because they count as expired at once.
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

    /// Removes bytes that were added as expiring at `due_ms`. Does nothing if that has passed: those bytes are gone
    /// already, or go when their bucket ends.
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

    /// An upper bound of the bytes that have expired at `now_ms`: those of every bucket that has begun by then.
    pub(super) fn at_most_expired(&self, now_ms: u64) -> u64 {
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

        fn held_bytes(&self) -> u64 {
            self.buckets.values().sum()
        }

        fn counts_of_levels_hold(&self) -> bool {
            self.in_level.iter().enumerate().all(|(level, count)| {
                self.buckets.keys().filter(|at| usize::from(at.level) == level).count() as u64
                    == u64::from(*count)
            })
        }
    }

    #[test]
    fn an_expiry_counts_at_most_a_32nd_of_its_distance_late_and_never_early() {
        for distance in (0..63).flat_map(|bits| [1_u64 << bits, (1 << bits) + 1, (2 << bits) - 1]) {
            for now in [0, 1, 999, 1_700_000_000_000] {
                let mut expiries = Expiries::default();
                assert_eq!(expiries.advance(now), 0);
                // A much further expiry changes nothing.
                expiries.add(now.saturating_add(distance).saturating_mul(1_000), 1 << 40);
                let due = now + distance;
                assert_eq!(expiries.add(due, 7), 0);
                assert_eq!(expiries.advance(due - 1), 0, "{distance} from {now}");
                assert_eq!(expiries.advance(due + distance / 32), 7, "{distance} from {now}");
            }
        }
    }

    #[test]
    fn the_first_and_the_last_time_expire_like_any_other() {
        let mut expiries = Expiries::default();
        assert_eq!(expiries.add(0, 5), 5, "at time 0");
        assert_eq!(expiries.add(u64::MAX - 1, 5), 0);
        assert_eq!(expiries.add(u64::MAX, 6), 0);
        assert_eq!(expiries.advance(u64::MAX - 2), 0);
        assert_eq!(expiries.advance(u64::MAX), 11);
        assert_eq!((expiries.len(), expiries.advance(3)), (0, 0), "time does not go back");
        assert_eq!(expiries.add(u64::MAX, 6), 6);
    }

    #[test]
    fn neither_an_ended_bucket_nor_zero_bytes_add_a_bucket() {
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
        let mut most = 0;
        for now in 0..200_000_u64 {
            expiries.advance(now * 997);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Up to 2^40 ms, which are 34 years, and each order of magnitude equally often.
            expiries.add(now * 997 + (random >> 24 >> (random % 40)), 1);
            most = most.max(expiries.len());
        }
        assert!(most <= 65 * 36, "{most}");
        assert!(expiries.counts_of_levels_hold());
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
        assert_eq!(expiries.at_most_expired(6_272), 0);
        assert_eq!(expiries.at_most_expired(6_399), 5, "its bucket is 128 ms wide");
        assert_eq!(expiries.advance(6_399), 0);
        assert_eq!(expiries.at_most_expired(640_000), 12);
    }

    proptest! {
        /// Whichever bucket bytes are taken from, none are lost and none are left.
        #[test]
        fn bytes_are_found_whatever_their_distance_was_when_added(
            steps in prop::collection::vec((0..1_u64 << 20, 1..500_u64, 0..20_000_u64, any::<bool>(), any::<prop::sample::Index>()), 1..200)
        ) {
            let mut expiries = Expiries::default();
            let mut there: Vec<(u64, u64)> = Vec::new();
            let (mut now, mut held) = (0, 0);
            for (distance, bytes, passes, takes, which) in steps {
                now += passes;
                held -= expiries.advance(now);
                // Few different times, so that many share a bucket.
                let due = (now + distance).next_multiple_of(4_096);
                prop_assert_eq!(expiries.add(due, bytes), 0);
                there.push((due, bytes));
                held += bytes;
                if takes {
                    let (due, bytes) = there.swap_remove(which.index(there.len()));
                    expiries.take(due, bytes);
                    if due > now {
                        held -= bytes;
                    }
                }
                prop_assert_eq!(expiries.held_bytes(), held);
                prop_assert!(expiries.counts_of_levels_hold());
            }
            for (due, bytes) in there {
                expiries.take(due, bytes);
                held -= if due > now { bytes } else { 0 };
            }
            prop_assert_eq!(expiries.held_bytes(), held);
            prop_assert_eq!(expiries.advance(u64::MAX), held);
            prop_assert_eq!(expiries.len(), 0);
        }
    }
}
