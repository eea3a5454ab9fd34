//! Space usage: estimates how many bytes of records the log contains, and how many of them are dead. Reclaiming begins
//! when this estimate shows that it is worth while.
//!
//! The estimate is kept in memory and computed anew whenever the store is opened. Bytes become dead in two ways. If a
//! record is superseded, its bytes count as dead at once. If it expires, they count when their bucket ends, which is a
//! little late (see [`Expiries`]). Even if an expired record is dropped before its bucket ends, its bytes count only at
//! that end. So each byte is counted once.
//!
//! If reclaiming needs exact numbers, it counts them from the footers, in a [`Tally`].

use super::expiries::{Bucket, Expiries};
use crate::format::NEVER_MS;
use crate::record::RecordSize;
use crate::sync::Mutex;

/// The numbers that [`SpaceUsage`] and [`Tally`] keep.
#[derive(Debug, Default)]
struct State {
    total_bytes: u64,
    /// Negative after a segment was removed whose records had expired but were not counted yet, until their bucket
    /// ends.
    dead_bytes: i64,
    /// The live bytes that will expire.
    expiries: Expiries,
    /// The number of bytes that were superseded or dropped so far.
    superseded_bytes: u64,
}

/// The space usage of one log.
#[derive(Debug)]
pub(crate) struct SpaceUsage {
    state: Mutex<State>,
}

/// The space usage of several records at one time. It is added to that of the log in one step, because recovery counts
/// millions of records.
#[derive(Debug)]
pub(crate) struct Tally {
    state: State,
    /// For each of the two shares of a record's bytes, a cache of the bucket that the last record fell into. Records
    /// that were written together expire together, so most records fall into the same bucket as the one before.
    runs: [Run; 2],
}

/// Bytes that expire in the same bucket, after the time of the tally, and are not in the histogram yet. The default run
/// contains no time.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// The run contains the expiries after this time, up to and including `last_ms`.
    after_ms: u64,
    last_ms: u64,
    bytes: u64,
    bucket: Bucket,
}

impl Run {
    fn contains(&self, due_ms: u64) -> bool {
        self.after_ms < due_ms && due_ms <= self.last_ms
    }
}

impl Tally {
    /// Makes an empty tally at the store time `now_ms`. Expiries up to and including that time count as passed.
    pub(crate) fn at(now_ms: u64) -> Tally {
        let mut state = State::default();
        state.advance(now_ms);
        Tally { state, runs: [Run::default(); 2] }
    }

    /// Adds a record.
    pub(crate) fn add(&mut self, size: &RecordSize) {
        self.state.total_bytes += size.length_bytes;
        for (number, (due_ms, bytes)) in size.shares().into_iter().enumerate() {
            if self.runs[number].contains(due_ms) {
                self.runs[number].bytes += bytes;
            } else {
                self.begin_run(number, due_ms, bytes);
            }
        }
    }

    /// Adds records until one cannot be read, and returns its error.
    ///
    /// Does what [`add`](Tally::add) does for each, but keeps the numbers in registers while the records fall into the
    /// current runs.
    #[inline]
    pub(crate) fn add_each<E>(
        &mut self,
        sizes: impl Iterator<Item = Result<RecordSize, E>>,
    ) -> Result<(), E> {
        let (mut runs, mut added_bytes) = (self.runs, [0; 2]);
        for size in sizes {
            let size = size?;
            let [(result_due_ms, result_bytes), (key_due_ms, key_bytes)] = size.shares();
            if runs[0].contains(result_due_ms) && runs[1].contains(key_due_ms) {
                added_bytes[0] += result_bytes;
                added_bytes[1] += key_bytes;
            } else {
                self.add_to_runs(std::mem::take(&mut added_bytes));
                self.add(&size);
                runs = self.runs;
            }
        }
        self.add_to_runs(added_bytes);
        Ok(())
    }

    /// Adds bytes to the current runs.
    fn add_to_runs(&mut self, added_bytes: [u64; 2]) {
        for (run, bytes) in self.runs.iter_mut().zip(added_bytes) {
            run.bytes += bytes;
            self.state.total_bytes += bytes;
        }
    }

    /// Adds a share that does not fall into the current run, and begins the run of its bucket.
    #[cold]
    fn begin_run(&mut self, number: usize, due_ms: u64, bytes: u64) {
        if due_ms == NEVER_MS {
            return;
        }
        let expiries = &self.state.expiries;
        if expiries.has_expired(due_ms) {
            self.state.count_dead(bytes);
            return;
        }
        let bucket = expiries.bucket_for(due_ms);
        // The bucket is narrower than the distance from now to its end. So it begins after now, and no expired bytes
        // fall into the run. The last bucket of all would include `NEVER_MS`, which does not stand for a time.
        let last_ms = bucket.end_ms().min(NEVER_MS - 1);
        let run = Run { after_ms: bucket.after_ms(), last_ms, bytes, bucket };
        let earlier = std::mem::replace(&mut self.runs[number], run);
        self.state.put(earlier.bucket, earlier.bytes);
    }

    /// Adds records that were superseded within their segment. The footer includes them in its sum, but does not list
    /// them.
    pub(crate) fn add_dead(&mut self, bytes: u64) {
        self.state.total_bytes += bytes;
        self.state.count_dead(bytes);
    }

    /// The totals at the time of the tally.
    pub(crate) fn totals(&self) -> SpaceTotals {
        self.state.totals()
    }

    /// An upper bound of the number of bytes that are dead at `now_ms`, if no record is superseded until then.
    pub(crate) fn max_dead_bytes(&self, now_ms: u64) -> u64 {
        let runs = self.runs.iter().filter(|run| run.bucket.has_begun(now_ms));
        self.totals().dead_bytes
            + self.state.expiries.max_expired_bytes(now_ms)
            + runs.map(|run| run.bytes).sum::<u64>()
    }
}

/// The numbers of bytes of records in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceTotals {
    /// All bytes, live and dead.
    pub(crate) total_bytes: u64,
    /// The dead bytes among them.
    pub(crate) dead_bytes: u64,
}

impl SpaceUsage {
    pub(crate) fn new() -> SpaceUsage {
        SpaceUsage { state: Mutex::default() }
    }

    /// Adds a record that was appended at `now_ms` and is the last one of its key.
    pub(crate) fn add(&self, size: &RecordSize, now_ms: u64) {
        let mut state = self.state.lock();
        // Otherwise the distance to the expiry would be measured from an earlier time, and the bucket would be wider
        // than necessary.
        state.advance(now_ms);
        state.total_bytes += size.length_bytes;
        for (due_ms, bytes) in size.shares().into_iter().filter(|(due_ms, _)| *due_ms != NEVER_MS) {
            if state.expiries.has_expired(due_ms) {
                state.count_dead(bytes);
            } else {
                let bucket = state.expiries.bucket_for(due_ms);
                state.put(bucket, bytes);
            }
        }
    }

    /// Adds all records of a tally.
    pub(crate) fn absorb(&self, tally: Tally) {
        let mut state = self.state.lock();
        state.advance(tally.state.expiries.now_ms());
        state.total_bytes += tally.state.total_bytes;
        state.dead_bytes = state.dead_bytes.saturating_add(tally.state.dead_bytes);
        let runs = tally.runs.into_iter().map(|run| (run.bucket, run.bytes));
        for (bucket, bytes) in tally.state.expiries.into_buckets().chain(runs) {
            state.put(bucket, bytes);
        }
    }

    /// Counts a record that was added earlier as dead, because it is no longer the last one of its key or was dropped.
    pub(crate) fn mark_dead(&self, size: &RecordSize) {
        let mut state = self.state.lock();
        for (due_ms, bytes) in size.shares() {
            // Expired bytes are counted as dead already, or will be when their bucket ends.
            if due_ms == NEVER_MS || !state.expiries.has_expired(due_ms) {
                state.expiries.take(due_ms, bytes);
                state.count_dead(bytes);
                state.superseded_bytes += bytes;
            }
        }
    }

    /// Removes the records of a segment that was retired. All of them are dead.
    pub(crate) fn remove(&self, record_bytes: u64) {
        let mut state = self.state.lock();
        state.total_bytes = state.total_bytes.saturating_sub(record_bytes);
        state.dead_bytes = state.dead_bytes.saturating_sub_unsigned(record_bytes);
    }

    /// The totals at `now_ms`.
    pub(crate) fn totals(&self, now_ms: u64) -> SpaceTotals {
        let mut state = self.state.lock();
        state.advance(now_ms);
        state.totals()
    }

    /// The number of bytes that were superseded or dropped so far. Never decreases.
    pub(crate) fn superseded_bytes(&self) -> u64 {
        self.state.lock().superseded_bytes
    }
}

impl State {
    fn advance(&mut self, now_ms: u64) {
        let expired_bytes = self.expiries.advance(now_ms);
        self.count_dead(expired_bytes);
    }

    fn put(&mut self, bucket: Bucket, bytes: u64) {
        let expired_bytes = self.expiries.put(bucket, bytes);
        self.count_dead(expired_bytes);
    }

    fn count_dead(&mut self, bytes: u64) {
        self.dead_bytes = self.dead_bytes.saturating_add_unsigned(bytes);
    }

    fn totals(&self) -> SpaceTotals {
        let dead_bytes = u64::try_from(self.dead_bytes).unwrap_or(0).min(self.total_bytes);
        SpaceTotals { total_bytes: self.total_bytes, dead_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Kind;

    fn size(kind: Kind, length_bytes: u64, result_expires_ms: u64, key_expires_ms: u64) -> RecordSize {
        RecordSize { kind, length_bytes, key_expires_ms, result_expires_ms }
    }

    /// The size of a completed record that is too short to have a share that expires with the result.
    fn expiring(bytes: u64, due_ms: u64) -> RecordSize {
        assert!(bytes <= 120);
        size(Kind::Completed, bytes, due_ms, due_ms)
    }

    fn is_empty(space_usage: &SpaceUsage) -> bool {
        space_usage.state.lock().expiries.len() == 0
    }

    #[test]
    fn the_shares_of_result_and_key_expire_separately() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&size(Kind::Completed, 1_120, 1_000, 2_000), 0);
        assert_eq!(space_usage.totals(999).dead_bytes, 0);
        assert_eq!(space_usage.totals(1_000 + 1_000 / 32).dead_bytes, 1_000);
        assert_eq!(space_usage.totals(1_999).dead_bytes, 1_000);
        assert_eq!(space_usage.totals(2_000 + 2_000 / 32).dead_bytes, 1_120);
    }

    #[test]
    fn a_released_or_forgotten_record_is_dead_at_once() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&size(Kind::Released, 88, 1_000, 2_000), 0);
        space_usage.add(&size(Kind::Forgotten, 80, NEVER_MS, NEVER_MS), 0);
        assert_eq!(space_usage.totals(0), SpaceTotals { total_bytes: 168, dead_bytes: 168 });
    }

    #[test]
    fn tallies_count_the_same_as_adding_one_by_one() {
        const NOW: u64 = 60;
        let records: Vec<_> = (0..3_000_u64)
            .map(|n| match n % 5 {
                0 => size(Kind::Begun, 90, NEVER_MS, NEVER_MS),
                1 => size(Kind::Forgotten, 80, 0, 0),
                2 => expiring(88, 100 + n / 7),
                _ => size(Kind::Completed, 400 + n, 50 + n / 3, 9_000 - n),
            })
            .collect();
        let (one_by_one, at_once) = (SpaceUsage::new(), SpaceUsage::new());
        // Three tallies, as if three threads had counted.
        let mut tallies = [Tally::at(NOW), Tally::at(NOW), Tally::at(NOW)];
        records.iter().for_each(|record| one_by_one.add(record, NOW));
        for (number, piece) in records.chunks(7).enumerate() {
            let tally = &mut tallies[number % 3];
            if number % 2 == 0 {
                piece.iter().for_each(|record| tally.add(record));
            } else {
                tally.add_each(piece.iter().map(|record| Ok::<_, ()>(*record))).unwrap();
            }
        }
        let dead_bytes: u64 = tallies.iter().map(|tally| tally.totals().dead_bytes).sum();
        assert_eq!(dead_bytes, one_by_one.totals(NOW).dead_bytes);
        let max_dead_bytes = |now_ms| tallies.iter().map(|tally| tally.max_dead_bytes(now_ms)).sum::<u64>();
        assert!(max_dead_bytes(1_000) >= one_by_one.totals(1_000).dead_bytes);
        tallies.into_iter().for_each(|tally| at_once.absorb(tally));
        let mut superseded = Tally::at(NOW);
        superseded.add_dead(77);
        superseded.add_dead(3);
        let superseded_alone = SpaceUsage::new();
        superseded_alone.absorb(superseded);
        assert_eq!(superseded_alone.totals(0), SpaceTotals { total_bytes: 80, dead_bytes: 80 });
        // The numbers are exact except for the delay, which is at most a 32nd of the distance.
        for now_ms in [400_u64, 1_000, 7_000] {
            let (early, late) = (now_ms - now_ms / 30, now_ms);
            let exact = records.iter().flat_map(RecordSize::shares).filter(|(due_ms, _)| *due_ms <= early);
            let dead_bytes = at_once.totals(late).dead_bytes;
            assert!(dead_bytes >= exact.map(|(_, bytes)| bytes).sum(), "at {now_ms}");
        }
        for record in &records {
            at_once.mark_dead(record);
        }
        assert_eq!(at_once.totals(20_000).dead_bytes, at_once.totals(20_000).total_bytes);
        assert!(is_empty(&at_once), "mark_dead must find every bucket that has not ended");
    }

    /// The bucket for an expiry at 1000 ms that is added at 0 is 16 ms wide and ends at 1008.
    #[test]
    fn tallied_bytes_die_when_their_own_bucket_ends() {
        let mut tally = Tally::at(0);
        tally.add(&expiring(10, 1_000));
        tally.add(&expiring(20, 992));
        tally.add(&expiring(30, 991));
        tally.add(&expiring(40, 1_008));
        tally.add(&expiring(50, 1_000));
        let space_usage = SpaceUsage::new();
        space_usage.absorb(tally);
        assert_eq!(space_usage.totals(991).dead_bytes, 0);
        assert_eq!(space_usage.totals(992).dead_bytes, 50);
        assert_eq!(space_usage.totals(1_007).dead_bytes, 50);
        assert_eq!(space_usage.totals(1_008), SpaceTotals { total_bytes: 150, dead_bytes: 150 });
    }

    #[test]
    fn the_last_bucket_excludes_bytes_that_never_expire() {
        let mut tally = Tally::at(0);
        tally.add(&expiring(100, NEVER_MS - 1));
        tally.add(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        let space_usage = SpaceUsage::new();
        space_usage.absorb(tally);
        assert_eq!(space_usage.totals(u64::MAX), SpaceTotals { total_bytes: 190, dead_bytes: 100 });
    }

    #[test]
    fn bytes_that_were_tallied_as_expired_do_not_die_again() {
        let mut tally = Tally::at(5_000);
        tally.add(&expiring(100, 1_000));
        tally.add(&size(Kind::Begun, 1_000, NEVER_MS, NEVER_MS));
        let space_usage = SpaceUsage::new();
        space_usage.absorb(tally);
        space_usage.mark_dead(&expiring(100, 1_000));
        assert_eq!(space_usage.totals(0), SpaceTotals { total_bytes: 1_100, dead_bytes: 100 });
        assert_eq!(space_usage.superseded_bytes(), 0);
    }

    #[test]
    fn the_bound_on_dead_bytes_counts_every_bucket_that_has_begun() {
        let mut tally = Tally::at(0);
        tally.add_dead(1);
        tally.add(&expiring(10, 1_000));
        tally.add(&expiring(50, 2_000));
        tally.add(&expiring(100, 3_000));
        assert_eq!(tally.max_dead_bytes(0), 1);
        assert_eq!(tally.max_dead_bytes(999), 11, "the bucket of 1000 has begun");
        assert_eq!(tally.max_dead_bytes(2_000), 61);
        assert_eq!(
            tally.max_dead_bytes(3_000),
            161,
            "the bytes of the last run, which are not in the histogram yet, must count"
        );
    }

    #[test]
    fn no_byte_dies_twice() {
        let space_usage = SpaceUsage::new();
        let expiring = size(Kind::Completed, 500, 1_000, 1_000);
        let begun = size(Kind::Begun, 100, NEVER_MS, NEVER_MS);
        space_usage.add(&expiring, 0);
        space_usage.add(&begun, 0);
        space_usage.mark_dead(&begun);
        assert_eq!(space_usage.superseded_bytes(), 100);
        assert_eq!(space_usage.totals(5_000), SpaceTotals { total_bytes: 600, dead_bytes: 600 });
        space_usage.mark_dead(&expiring);
        assert_eq!(space_usage.totals(5_000), SpaceTotals { total_bytes: 600, dead_bytes: 600 });
        space_usage.remove(600);
        assert_eq!(space_usage.totals(5_000), SpaceTotals::default());
        assert_eq!(space_usage.superseded_bytes(), 100);
    }

    /// Reclaiming may drop an expired record before its bucket ends. The sums are exact again when the bucket ends.
    #[test]
    fn a_record_dropped_before_its_bucket_ends_is_counted_once() {
        let space_usage = SpaceUsage::new();
        let long = expiring(100, 100_000);
        let others = size(Kind::Begun, 1_000, NEVER_MS, NEVER_MS);
        space_usage.add(&long, 0);
        space_usage.add(&others, 0);
        assert_eq!(space_usage.totals(100_001).dead_bytes, 0, "its bucket has not ended");
        space_usage.mark_dead(&long);
        space_usage.remove(100);
        assert_eq!(space_usage.totals(100_001), SpaceTotals { total_bytes: 1_000, dead_bytes: 0 });
        assert_eq!(space_usage.totals(104_000), SpaceTotals { total_bytes: 1_000, dead_bytes: 0 });
        space_usage.mark_dead(&others);
        assert_eq!(space_usage.totals(104_000), SpaceTotals { total_bytes: 1_000, dead_bytes: 1_000 });
    }

    #[test]
    fn a_record_that_is_added_after_its_expiry_is_dead_at_once() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&expiring(100, 1_000), 5_000);
        assert_eq!(space_usage.totals(0).dead_bytes, 100);
        space_usage.add(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS), 5_000);
        space_usage.add(&expiring(60, NEVER_MS), 5_000);
        assert!(is_empty(&space_usage));
        assert_eq!(space_usage.totals(u64::MAX), SpaceTotals { total_bytes: 250, dead_bytes: 100 });
        space_usage.mark_dead(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        assert_eq!(
            space_usage.totals(u64::MAX).dead_bytes,
            190,
            "a record that never expires dies when it is superseded"
        );
    }

    #[test]
    fn the_histogram_stays_small_and_its_sum_exact() {
        let space_usage = SpaceUsage::new();
        let records: Vec<_> = (0..50_000_u64).map(|n| expiring(100, 1_000 + n * 777)).collect();
        for record in &records {
            space_usage.add(record, 0);
        }
        assert!(space_usage.state.lock().expiries.len() <= 1_200);
        for record in &records[..20_000] {
            space_usage.mark_dead(record);
        }
        assert_eq!(space_usage.totals(0).dead_bytes, 2_000_000);
        assert_eq!(space_usage.totals(u64::MAX).dead_bytes, 5_000_000);
        assert!(is_empty(&space_usage), "mark_dead must find every bucket");
    }
}
