//! When how many bytes expire: a histogram that is as fine as the expiry is near.
//!
//! What expires in a minute is wanted to within seconds, what expires in ten years to within months. So the distance of
//! an expiry, at the moment at which it is added, chooses the width of its bucket: a power of two of milliseconds, at
//! most a 32nd of the distance. An expiry is noticed when its bucket ends, late by at most that much, whatever else is in
//! here. Of each width there are at most 65 buckets at a time, because what is further away goes into wider ones.
//!
//! Bytes are taken out by the time of their expiry alone: nobody remembers how far away that was when they were added.
//! Widths are powers of two and buckets end at multiples of them, so the buckets that a time can be in are nested. They
//! are looked through from the narrowest on. If two expiries of one narrow bucket are in buckets of different widths, the
//! one may be taken for the other, which then stays in the wider one; and every later one still finds its bytes.

use std::collections::BTreeMap;

use crate::planted::{Bug, planted};

/// A bucket is at most this share of the distance of what it is for, as a power of two.
const SHARE_BITS: u32 = 5;
/// As many widths as a distance of 64 bits can ask for.
const LEVELS: usize = (u64::BITS - SHARE_BITS) as usize;

/// The time at which a bucket ends, and its width, as the exponent of a power of two. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Bucket {
    end_ms: u64,
    level: u8,
}

impl Bucket {
    /// The bucket of this width that `due_ms` is in. One that would end beyond all time ends there.
    fn around(due_ms: u64, level: u8) -> Bucket {
        let end_ms = due_ms.checked_next_multiple_of(1 << level).unwrap_or(u64::MAX);
        Bucket { end_ms, level }
    }

    /// The last time before those that are in it.
    pub(super) fn after_ms(self) -> u64 {
        self.end_ms.saturating_sub(1 << self.level)
    }

    /// The last time that is in it.
    pub(super) fn end_ms(self) -> u64 {
        self.end_ms
    }

    /// Whether some of what it can contain has expired at `now_ms`.
    pub(super) fn has_begun(self, now_ms: u64) -> bool {
        self.after_ms() < now_ms
    }
}

/// The histogram. Its time is the latest that it was told.
#[derive(Debug)]
pub(super) struct Expiries {
    buckets: BTreeMap<Bucket, u64>,
    /// How many buckets there are of each width, so that nobody looks for one where there is none.
    in_level: [u32; LEVELS],
    now_ms: u64,
}

impl Default for Expiries {
    fn default() -> Expiries {
        Expiries { buckets: BTreeMap::new(), in_level: [0; LEVELS], now_ms: 0 }
    }
}

impl Expiries {
    /// Goes on to `now_ms`, unless it is there already, and takes out the buckets that have ended. Returns their bytes.
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

    /// The bucket for what expires at `due_ms`, which is yet to come.
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

    /// Puts bytes into a bucket. Returns those that have expired already, because it has ended.
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

    /// Takes out bytes that were added as expiring at `due_ms`. What has expired since is gone, or goes with its bucket.
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

    /// The most bytes that can have expired at `now_ms`: those of every bucket that has begun by then.
    pub(super) fn at_most_expired(&self, now_ms: u64) -> u64 {
        self.buckets.iter().filter(|(bucket, _)| bucket.has_begun(now_ms)).map(|(_, bytes)| bytes).sum()
    }

    /// All that is in here.
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
    fn an_expiry_is_noticed_at_most_a_32nd_of_its_distance_late_and_never_early() {
        for distance in (0..63).flat_map(|bits| [1_u64 << bits, (1 << bits) + 1, (2 << bits) - 1]) {
            for now in [0, 1, 999, 1_700_000_000_000] {
                let mut expiries = Expiries::default();
                assert_eq!(expiries.advance(now), 0);
                // Much further ones, and nearer ones, change nothing.
                expiries.add(now.saturating_add(distance).saturating_mul(1_000), 1 << 40);
                let due = now + distance;
                assert_eq!(expiries.add(due, 7), 0);
                assert_eq!(expiries.advance(due - 1), 0, "{distance} from {now}");
                assert_eq!(expiries.advance(due + distance / 32), 7, "{distance} from {now}");
            }
        }
    }

    #[test]
    fn what_has_expired_when_it_is_added_is_so_at_once_and_time_has_two_ends() {
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
    fn a_bucket_that_has_ended_takes_nothing_in_and_nothing_makes_no_bucket() {
        let mut expiries = Expiries::default();
        let bucket = expiries.bucket_for(6_400);
        assert_eq!((expiries.put(bucket, 0), expiries.len()), (0, 0));
        expiries.advance(bucket.end_ms());
        assert_eq!((expiries.put(bucket, 5), expiries.len()), (5, 0));
    }

    #[test]
    fn there_are_never_many_buckets_whatever_comes_and_goes() {
        let mut expiries = Expiries::default();
        let mut random = 1_u64;
        let mut most = 0;
        for now in 0..200_000_u64 {
            expiries.advance(now * 997);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Up to 2^40 ms, which are 34 years, each order of magnitude as often as the others.
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
    fn a_bucket_has_not_begun_when_something_is_put_into_it() {
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
    fn what_can_have_expired_is_all_of_each_bucket_that_has_begun() {
        let mut expiries = Expiries::default();
        expiries.add(6_400, 5);
        expiries.add(640_000, 7);
        assert_eq!(expiries.at_most_expired(6_272), 0);
        assert_eq!(expiries.at_most_expired(6_399), 5, "its bucket is 128 ms wide");
        assert_eq!(expiries.advance(6_399), 0);
        assert_eq!(expiries.at_most_expired(640_000), 12);
    }

    proptest! {
        /// Whatever is taken for whatever, nothing is lost and nothing is left.
        #[test]
        fn what_is_taken_out_is_found_however_far_away_it_was_when_it_was_added(
            steps in prop::collection::vec((0..1_u64 << 20, 1..500_u64, 0..20_000_u64, any::<bool>(), any::<prop::sample::Index>()), 1..200)
        ) {
            let mut expiries = Expiries::default();
            let mut there: Vec<(u64, u64)> = Vec::new();
            let (mut now, mut held) = (0, 0);
            for (distance, bytes, passes, takes, which) in steps {
                now += passes;
                held -= expiries.advance(now);
                // Few times, so that many share their buckets.
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
