//! How many bytes of the log are dead: what decides when reclaiming is worth its while.
//!
//! An estimate, kept in memory and made anew at open. Bytes die in two ways: a record is superseded, which is known
//! at once, or it expires, which is known in advance and noticed somewhat late (see [`Expiries`]). Bytes that have
//! expired are dead when that is noticed, and not before, also if the record is dropped in between: so each byte is
//! counted once. Whoever has to know exactly counts from the footers, with a [`Tally`].

use super::expiries::{Bucket, Expiries};
use crate::format::NEVER_MS;
use crate::record::RecordSize;
use crate::sync::Mutex;

#[derive(Debug, Default)]
struct State {
    total_bytes: u64,
    /// Below zero while a segment is gone whose records had expired and this was not noticed yet.
    dead_bytes: i64,
    expiries: Expiries,
    /// How many bytes were superseded, ever.
    superseded_bytes: u64,
}

/// The account of one log's dead bytes.
#[derive(Debug)]
pub(crate) struct SpaceUsage {
    state: Mutex<State>,
}

/// What some records weigh at one time, counted apart and added at once: opening counts millions of them.
#[derive(Debug)]
pub(crate) struct Tally {
    state: State,
    /// The run that each of the two shares of the last record fell into. Records that were written together expire
    /// together.
    runs: [Run; 2],
}

/// Bytes that expire in one bucket, after the time of the tally. By default the bucket of nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// What is due later than this, and not later than `last_ms`, falls into the bucket.
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
    /// With nothing in it; what is added has expired or not at `now_ms`.
    pub(crate) fn at(now_ms: u64) -> Tally {
        let mut state = State::default();
        state.advance(now_ms);
        Tally { state, runs: [Run::default(); 2] }
    }

    /// Opening calls this for every record of the log, and most fall into the runs of the one before.
    #[inline]
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

    /// Adds what does not fall into the run.
    #[cold]
    fn begin_run(&mut self, number: usize, due_ms: u64, bytes: u64) {
        if due_ms == NEVER_MS {
            return;
        }
        let expiries = &self.state.expiries;
        if expiries.has_expired(due_ms) {
            self.state.die(bytes);
            return;
        }
        let bucket = expiries.bucket_for(due_ms);
        // Its bucket begins after now, because it is narrower than the distance. The last one reaches to what never expires.
        let last_ms = bucket.end_ms().min(NEVER_MS - 1);
        let run = Run { after_ms: bucket.after_ms(), last_ms, bytes, bucket };
        let earlier = std::mem::replace(&mut self.runs[number], run);
        self.state.put(earlier.bucket, earlier.bytes);
    }

    /// Records that were superseded within their own segment, as the footer tells at open.
    pub(crate) fn add_dead(&mut self, bytes: u64) {
        self.state.total_bytes += bytes;
        self.state.die(bytes);
    }

    pub(crate) fn totals(&self) -> SpaceTotals {
        self.state.totals()
    }

    /// The most bytes that can be dead at `now_ms`, if nothing is superseded until then.
    pub(crate) fn at_most_dead_bytes(&self, now_ms: u64) -> u64 {
        let runs = self.runs.iter().filter(|run| run.bucket.has_begun(now_ms));
        self.totals().dead_bytes
            + self.state.expiries.at_most_expired(now_ms)
            + runs.map(|run| run.bytes).sum::<u64>()
    }
}

/// Bytes of records in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceTotals {
    pub(crate) total_bytes: u64,
    pub(crate) dead_bytes: u64,
}

impl SpaceUsage {
    pub(crate) fn new() -> SpaceUsage {
        SpaceUsage { state: Mutex::default() }
    }

    /// A record was appended at `now_ms` and is its key's last.
    pub(crate) fn add(&self, size: &RecordSize, now_ms: u64) {
        let mut state = self.state.lock();
        // Or the distance of what comes now would be counted from an earlier time, and noticed later for it.
        state.advance(now_ms);
        state.total_bytes += size.length_bytes;
        for (due_ms, bytes) in size.shares().into_iter().filter(|(due_ms, _)| *due_ms != NEVER_MS) {
            if state.expiries.has_expired(due_ms) {
                state.die(bytes);
            } else {
                let bucket = state.expiries.bucket_for(due_ms);
                state.put(bucket, bytes);
            }
        }
    }

    /// All that was counted apart.
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

    /// A record that was added is no longer its key's last, or was dropped.
    pub(crate) fn mark_dead(&self, size: &RecordSize) {
        let mut state = self.state.lock();
        for (due_ms, bytes) in size.shares() {
            // What has expired is dead already, or will be when that is noticed.
            if due_ms == NEVER_MS || !state.expiries.has_expired(due_ms) {
                state.expiries.take(due_ms, bytes);
                state.die(bytes);
                state.superseded_bytes += bytes;
            }
        }
    }

    /// A segment left the log; everything in it had been buried.
    pub(crate) fn remove(&self, record_bytes: u64) {
        let mut state = self.state.lock();
        state.total_bytes = state.total_bytes.saturating_sub(record_bytes);
        state.dead_bytes = state.dead_bytes.saturating_sub_unsigned(record_bytes);
    }

    pub(crate) fn totals(&self, now_ms: u64) -> SpaceTotals {
        let mut state = self.state.lock();
        state.advance(now_ms);
        state.totals()
    }

    /// How many bytes were superseded since the store was opened.
    pub(crate) fn superseded_bytes(&self) -> u64 {
        self.state.lock().superseded_bytes
    }
}

impl State {
    fn advance(&mut self, now_ms: u64) {
        let expired_bytes = self.expiries.advance(now_ms);
        self.die(expired_bytes);
    }

    fn put(&mut self, bucket: Bucket, bytes: u64) {
        let expired_bytes = self.expiries.put(bucket, bytes);
        self.die(expired_bytes);
    }

    fn die(&mut self, bytes: u64) {
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

    /// Too short to lose a part of it with the result.
    fn expiring(bytes: u64, due_ms: u64) -> RecordSize {
        assert!(bytes <= 120);
        size(Kind::Completed, bytes, due_ms, due_ms)
    }

    fn is_empty(space_usage: &SpaceUsage) -> bool {
        space_usage.state.lock().expiries.len() == 0
    }

    #[test]
    fn what_expires_is_dead_from_its_bucket_on_the_result_before_the_key() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&size(Kind::Completed, 1_120, 1_000, 2_000), 0);
        assert_eq!(space_usage.totals(999).dead_bytes, 0);
        assert_eq!(space_usage.totals(1_000 + 1_000 / 32).dead_bytes, 1_000);
        assert_eq!(space_usage.totals(1_999).dead_bytes, 1_000);
        assert_eq!(space_usage.totals(2_000 + 2_000 / 32).dead_bytes, 1_120);
    }

    #[test]
    fn what_is_released_or_forgotten_is_dead_at_once() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&size(Kind::Released, 88, 1_000, 2_000), 0);
        space_usage.add(&size(Kind::Forgotten, 80, NEVER_MS, NEVER_MS), 0);
        assert_eq!(space_usage.totals(0), SpaceTotals { total_bytes: 168, dead_bytes: 168 });
    }

    #[test]
    fn what_is_counted_apart_is_what_would_have_been_added_one_by_one() {
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
        // Several threads count, and each has a part.
        let mut tallies = [Tally::at(NOW), Tally::at(NOW), Tally::at(NOW)];
        for (n, record) in records.iter().enumerate() {
            one_by_one.add(record, NOW);
            tallies[n / 7 % 3].add(record);
        }
        let dead_bytes: u64 = tallies.iter().map(|tally| tally.totals().dead_bytes).sum();
        assert_eq!(dead_bytes, one_by_one.totals(NOW).dead_bytes);
        let at_most = |now_ms| tallies.iter().map(|tally| tally.at_most_dead_bytes(now_ms)).sum::<u64>();
        assert!(at_most(1_000) >= one_by_one.totals(1_000).dead_bytes);
        tallies.into_iter().for_each(|tally| at_once.absorb(tally));
        let mut superseded = Tally::at(NOW);
        superseded.add_dead(77);
        superseded.add_dead(3);
        let superseded_alone = SpaceUsage::new();
        superseded_alone.absorb(superseded);
        assert_eq!(superseded_alone.totals(0), SpaceTotals { total_bytes: 80, dead_bytes: 80 });
        // Exact but for the delay, which is at most a 32nd of the longest of them.
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
        assert!(is_empty(&at_once), "mark_dead found every bucket, or it ended");
    }

    /// The bucket of 1000 ms, seen from 0, is 16 ms wide and ends at 1008.
    #[test]
    fn what_is_counted_apart_is_noticed_when_its_own_bucket_ends() {
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
    fn what_never_expires_is_not_counted_with_what_does_so_at_the_end_of_time() {
        let mut tally = Tally::at(0);
        tally.add(&expiring(100, NEVER_MS - 1));
        tally.add(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        let space_usage = SpaceUsage::new();
        space_usage.absorb(tally);
        assert_eq!(space_usage.totals(u64::MAX), SpaceTotals { total_bytes: 190, dead_bytes: 100 });
    }

    #[test]
    fn what_had_expired_when_it_was_counted_apart_does_not_die_again() {
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
    fn at_most_dead_is_what_is_dead_and_all_that_can_have_expired() {
        let mut tally = Tally::at(0);
        tally.add_dead(1);
        tally.add(&expiring(10, 1_000));
        tally.add(&expiring(50, 2_000));
        tally.add(&expiring(100, 3_000));
        assert_eq!(tally.at_most_dead_bytes(0), 1);
        assert_eq!(tally.at_most_dead_bytes(999), 11, "the bucket has begun");
        assert_eq!(tally.at_most_dead_bytes(2_000), 61);
        assert_eq!(tally.at_most_dead_bytes(3_000), 161, "the last is not in the histogram yet");
    }

    #[test]
    fn nothing_is_buried_twice_however_it_died() {
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

    /// Reclaiming drops what has expired, whether or not that was noticed: the sums are right again when it is.
    #[test]
    fn what_is_dropped_before_its_expiry_was_noticed_is_counted_once() {
        let space_usage = SpaceUsage::new();
        let long = expiring(100, 100_000);
        let others = size(Kind::Begun, 1_000, NEVER_MS, NEVER_MS);
        space_usage.add(&long, 0);
        space_usage.add(&others, 0);
        assert_eq!(space_usage.totals(100_001).dead_bytes, 0, "not noticed yet");
        space_usage.mark_dead(&long);
        space_usage.remove(100);
        assert_eq!(space_usage.totals(100_001), SpaceTotals { total_bytes: 1_000, dead_bytes: 0 });
        assert_eq!(space_usage.totals(104_000), SpaceTotals { total_bytes: 1_000, dead_bytes: 0 });
        space_usage.mark_dead(&others);
        assert_eq!(space_usage.totals(104_000), SpaceTotals { total_bytes: 1_000, dead_bytes: 1_000 });
    }

    #[test]
    fn what_expired_before_it_was_counted_is_dead_at_once_and_what_never_expires_is_not_expected() {
        let space_usage = SpaceUsage::new();
        space_usage.add(&expiring(100, 1_000), 5_000);
        assert_eq!(space_usage.totals(0).dead_bytes, 100);
        space_usage.add(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS), 5_000);
        space_usage.add(&expiring(60, NEVER_MS), 5_000);
        assert!(is_empty(&space_usage));
        assert_eq!(space_usage.totals(u64::MAX), SpaceTotals { total_bytes: 250, dead_bytes: 100 });
        space_usage.mark_dead(&size(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        assert_eq!(space_usage.totals(u64::MAX).dead_bytes, 190, "at the end of time, too");
    }

    #[test]
    fn the_histogram_stays_small_and_exact_in_its_sum() {
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
        assert!(is_empty(&space_usage), "mark_dead found every bucket");
    }
}
