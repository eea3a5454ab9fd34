//! How many bytes of the log are dead: what decides when reclaiming is worth its while.
//!
//! An estimate, kept in memory and made anew at open. Bytes die in two ways: a record is superseded, which is known
//! at once, or it expires, which is known in advance and noticed somewhat late (see [`Expiries`]). Bytes that have
//! expired are dead when that is noticed, and not before, also if the record is dropped in between: so each byte is
//! counted once. Whoever has to know exactly counts from the footers, with a [`Tally`].

use super::expiries::{Bucket, Expiries};
use crate::format::NEVER_MS;
use crate::record::Weight;
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
pub(crate) struct Ledger {
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
    pub(crate) fn add(&mut self, weight: &Weight) {
        self.state.total_bytes += weight.length_bytes;
        for (number, (due_ms, bytes)) in weight.shares().into_iter().enumerate() {
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

    pub(crate) fn balance(&self) -> Balance {
        self.state.balance()
    }

    /// The most bytes that can be dead at `now_ms`, if nothing is superseded until then.
    pub(crate) fn at_most_dead_bytes(&self, now_ms: u64) -> u64 {
        let runs = self.runs.iter().filter(|run| run.bucket.has_begun(now_ms));
        self.balance().dead_bytes
            + self.state.expiries.at_most_expired(now_ms)
            + runs.map(|run| run.bytes).sum::<u64>()
    }
}

/// Bytes of records in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Balance {
    pub(crate) total_bytes: u64,
    pub(crate) dead_bytes: u64,
}

impl Ledger {
    pub(crate) fn new() -> Ledger {
        Ledger { state: Mutex::default() }
    }

    /// A record was appended at `now_ms` and is its key's last.
    pub(crate) fn add(&self, weight: &Weight, now_ms: u64) {
        let mut state = self.state.lock();
        // Or the distance of what comes now would be counted from an earlier time, and noticed later for it.
        state.advance(now_ms);
        state.total_bytes += weight.length_bytes;
        for (due_ms, bytes) in weight.shares().into_iter().filter(|(due_ms, _)| *due_ms != NEVER_MS) {
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
    pub(crate) fn bury(&self, weight: &Weight) {
        let mut state = self.state.lock();
        for (due_ms, bytes) in weight.shares() {
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

    pub(crate) fn balance(&self, now_ms: u64) -> Balance {
        let mut state = self.state.lock();
        state.advance(now_ms);
        state.balance()
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

    fn balance(&self) -> Balance {
        let dead_bytes = u64::try_from(self.dead_bytes).unwrap_or(0).min(self.total_bytes);
        Balance { total_bytes: self.total_bytes, dead_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Kind;

    fn weight(kind: Kind, length_bytes: u64, result_expires_ms: u64, key_expires_ms: u64) -> Weight {
        Weight { kind, length_bytes, key_expires_ms, result_expires_ms }
    }

    /// Too short to lose a part of it with the result.
    fn expiring(bytes: u64, due_ms: u64) -> Weight {
        assert!(bytes <= 120);
        weight(Kind::Completed, bytes, due_ms, due_ms)
    }

    fn is_empty(ledger: &Ledger) -> bool {
        ledger.state.lock().expiries.len() == 0
    }

    #[test]
    fn what_expires_is_dead_from_its_bucket_on_the_result_before_the_key() {
        let ledger = Ledger::new();
        ledger.add(&weight(Kind::Completed, 1_120, 1_000, 2_000), 0);
        assert_eq!(ledger.balance(999).dead_bytes, 0);
        assert_eq!(ledger.balance(1_000 + 1_000 / 32).dead_bytes, 1_000);
        assert_eq!(ledger.balance(1_999).dead_bytes, 1_000);
        assert_eq!(ledger.balance(2_000 + 2_000 / 32).dead_bytes, 1_120);
    }

    #[test]
    fn what_is_released_or_forgotten_is_dead_at_once() {
        let ledger = Ledger::new();
        ledger.add(&weight(Kind::Released, 88, 1_000, 2_000), 0);
        ledger.add(&weight(Kind::Forgotten, 80, NEVER_MS, NEVER_MS), 0);
        assert_eq!(ledger.balance(0), Balance { total_bytes: 168, dead_bytes: 168 });
    }

    #[test]
    fn what_is_counted_apart_is_what_would_have_been_added_one_by_one() {
        const NOW: u64 = 60;
        let records: Vec<_> = (0..3_000_u64)
            .map(|n| match n % 5 {
                0 => weight(Kind::Begun, 90, NEVER_MS, NEVER_MS),
                1 => weight(Kind::Forgotten, 80, 0, 0),
                2 => expiring(88, 100 + n / 7),
                _ => weight(Kind::Completed, 400 + n, 50 + n / 3, 9_000 - n),
            })
            .collect();
        let (one_by_one, at_once) = (Ledger::new(), Ledger::new());
        // Several threads count, and each has a part.
        let mut tallies = [Tally::at(NOW), Tally::at(NOW), Tally::at(NOW)];
        for (n, record) in records.iter().enumerate() {
            one_by_one.add(record, NOW);
            tallies[n / 7 % 3].add(record);
        }
        let dead_bytes: u64 = tallies.iter().map(|tally| tally.balance().dead_bytes).sum();
        assert_eq!(dead_bytes, one_by_one.balance(NOW).dead_bytes);
        let at_most = |now_ms| tallies.iter().map(|tally| tally.at_most_dead_bytes(now_ms)).sum::<u64>();
        assert!(at_most(1_000) >= one_by_one.balance(1_000).dead_bytes);
        tallies.into_iter().for_each(|tally| at_once.absorb(tally));
        let mut superseded = Tally::at(NOW);
        superseded.add_dead(77);
        superseded.add_dead(3);
        let superseded_alone = Ledger::new();
        superseded_alone.absorb(superseded);
        assert_eq!(superseded_alone.balance(0), Balance { total_bytes: 80, dead_bytes: 80 });
        // Exact but for the delay, which is at most a 32nd of the longest of them.
        for now_ms in [400_u64, 1_000, 7_000] {
            let (early, late) = (now_ms - now_ms / 30, now_ms);
            let exact = records.iter().flat_map(Weight::shares).filter(|(due_ms, _)| *due_ms <= early);
            let dead_bytes = at_once.balance(late).dead_bytes;
            assert!(dead_bytes >= exact.map(|(_, bytes)| bytes).sum(), "at {now_ms}");
        }
        for record in &records {
            at_once.bury(record);
        }
        assert_eq!(at_once.balance(20_000).dead_bytes, at_once.balance(20_000).total_bytes);
        assert!(is_empty(&at_once), "bury found every bucket, or it ended");
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
        let ledger = Ledger::new();
        ledger.absorb(tally);
        assert_eq!(ledger.balance(991).dead_bytes, 0);
        assert_eq!(ledger.balance(992).dead_bytes, 50);
        assert_eq!(ledger.balance(1_007).dead_bytes, 50);
        assert_eq!(ledger.balance(1_008), Balance { total_bytes: 150, dead_bytes: 150 });
    }

    #[test]
    fn what_never_expires_is_not_counted_with_what_does_so_at_the_end_of_time() {
        let mut tally = Tally::at(0);
        tally.add(&expiring(100, NEVER_MS - 1));
        tally.add(&weight(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        let ledger = Ledger::new();
        ledger.absorb(tally);
        assert_eq!(ledger.balance(u64::MAX), Balance { total_bytes: 190, dead_bytes: 100 });
    }

    #[test]
    fn what_had_expired_when_it_was_counted_apart_does_not_die_again() {
        let mut tally = Tally::at(5_000);
        tally.add(&expiring(100, 1_000));
        tally.add(&weight(Kind::Begun, 1_000, NEVER_MS, NEVER_MS));
        let ledger = Ledger::new();
        ledger.absorb(tally);
        ledger.bury(&expiring(100, 1_000));
        assert_eq!(ledger.balance(0), Balance { total_bytes: 1_100, dead_bytes: 100 });
        assert_eq!(ledger.superseded_bytes(), 0);
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
        let ledger = Ledger::new();
        let expiring = weight(Kind::Completed, 500, 1_000, 1_000);
        let begun = weight(Kind::Begun, 100, NEVER_MS, NEVER_MS);
        ledger.add(&expiring, 0);
        ledger.add(&begun, 0);
        ledger.bury(&begun);
        assert_eq!(ledger.superseded_bytes(), 100);
        assert_eq!(ledger.balance(5_000), Balance { total_bytes: 600, dead_bytes: 600 });
        ledger.bury(&expiring);
        assert_eq!(ledger.balance(5_000), Balance { total_bytes: 600, dead_bytes: 600 });
        ledger.remove(600);
        assert_eq!(ledger.balance(5_000), Balance::default());
        assert_eq!(ledger.superseded_bytes(), 100);
    }

    /// Reclaiming drops what has expired, whether or not that was noticed: the sums are right again when it is.
    #[test]
    fn what_is_dropped_before_its_expiry_was_noticed_is_counted_once() {
        let ledger = Ledger::new();
        let long = expiring(100, 100_000);
        let others = weight(Kind::Begun, 1_000, NEVER_MS, NEVER_MS);
        ledger.add(&long, 0);
        ledger.add(&others, 0);
        assert_eq!(ledger.balance(100_001).dead_bytes, 0, "not noticed yet");
        ledger.bury(&long);
        ledger.remove(100);
        assert_eq!(ledger.balance(100_001), Balance { total_bytes: 1_000, dead_bytes: 0 });
        assert_eq!(ledger.balance(104_000), Balance { total_bytes: 1_000, dead_bytes: 0 });
        ledger.bury(&others);
        assert_eq!(ledger.balance(104_000), Balance { total_bytes: 1_000, dead_bytes: 1_000 });
    }

    #[test]
    fn what_expired_before_it_was_counted_is_dead_at_once_and_what_never_expires_is_not_expected() {
        let ledger = Ledger::new();
        ledger.add(&expiring(100, 1_000), 5_000);
        assert_eq!(ledger.balance(0).dead_bytes, 100);
        ledger.add(&weight(Kind::Begun, 90, NEVER_MS, NEVER_MS), 5_000);
        ledger.add(&expiring(60, NEVER_MS), 5_000);
        assert!(is_empty(&ledger));
        assert_eq!(ledger.balance(u64::MAX), Balance { total_bytes: 250, dead_bytes: 100 });
        ledger.bury(&weight(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        assert_eq!(ledger.balance(u64::MAX).dead_bytes, 190, "at the end of time, too");
    }

    #[test]
    fn the_histogram_stays_small_and_exact_in_its_sum() {
        let ledger = Ledger::new();
        let records: Vec<_> = (0..50_000_u64).map(|n| expiring(100, 1_000 + n * 777)).collect();
        for record in &records {
            ledger.add(record, 0);
        }
        assert!(ledger.state.lock().expiries.len() <= 1_200);
        for record in &records[..20_000] {
            ledger.bury(record);
        }
        assert_eq!(ledger.balance(0).dead_bytes, 2_000_000);
        assert_eq!(ledger.balance(u64::MAX).dead_bytes, 5_000_000);
        assert!(is_empty(&ledger), "bury found every bucket");
    }
}
