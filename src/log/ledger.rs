//! How many bytes of the log are dead: what decides when reclaiming is worth its while.
//!
//! An estimate, kept in memory and made anew at open. Bytes die in two ways: a record is superseded, which is known
//! at once, or it expires, which is known in advance. The second is a histogram over the time of expiry whose
//! buckets widen as they become many, so that it stays small whatever retentions are in use.

use std::collections::BTreeMap;

use crate::format::NEVER_MS;
use crate::record::Weight;
use crate::sync::Mutex;

/// Above this many buckets the histogram's granularity is doubled.
const MAX_BUCKETS: usize = 4_096;
const FIRST_GRANULARITY_MS: u64 = 16;

#[derive(Debug)]
struct State {
    total_bytes: u64,
    dead_bytes: u64,
    /// Time of expiry, rounded up to the granularity -> bytes.
    expiring: BTreeMap<u64, u64>,
    granularity_ms: u64,
    /// Buckets up to here have been counted as dead.
    drained_to_ms: u64,
}

/// The account of one log's dead bytes.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
}

/// What some records weigh, counted apart and added at once: opening counts millions of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    state: State,
    /// The bucket, of the first granularity, that each of the two shares of the last record fell into, and what has
    /// fallen into it since. Records that were written together expire together.
    runs: [(u64, u64); 2],
}

impl Tally {
    pub(crate) fn add(&mut self, weight: &Weight) {
        self.state.total_bytes += weight.length_bytes;
        for (run, (due_ms, bytes)) in self.runs.iter_mut().zip(weight.shares()) {
            let (bucket, gathered) = run;
            if bucket.checked_sub(due_ms).is_some_and(|early| early < FIRST_GRANULARITY_MS) {
                *gathered += bytes;
                continue;
            }
            self.state.expect(*bucket, *gathered);
            *run = (due_ms.checked_next_multiple_of(FIRST_GRANULARITY_MS).unwrap_or(NEVER_MS), bytes);
        }
    }

    /// Records that were superseded within their own segment, as the footer tells at open.
    pub(crate) fn add_dead(&mut self, bytes: u64) {
        self.state.total_bytes += bytes;
        self.state.dead_bytes += bytes;
    }
}

/// Bytes of records in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Balance {
    pub(crate) total_bytes: u64,
    pub(crate) dead_bytes: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            total_bytes: 0,
            dead_bytes: 0,
            expiring: BTreeMap::new(),
            granularity_ms: FIRST_GRANULARITY_MS,
            drained_to_ms: 0,
        }
    }
}

impl Ledger {
    pub(crate) fn new() -> Ledger {
        Ledger { state: Mutex::default() }
    }

    /// A record was appended and is its key's last.
    pub(crate) fn add(&self, weight: &Weight) {
        let mut state = self.state.lock();
        state.total_bytes += weight.length_bytes;
        for (due_ms, bytes) in weight.shares() {
            state.expect(due_ms, bytes);
        }
    }

    /// All that was counted apart.
    pub(crate) fn absorb(&self, tally: Tally) {
        let mut state = self.state.lock();
        state.total_bytes += tally.state.total_bytes;
        state.dead_bytes += tally.state.dead_bytes;
        // Or `bury` would look for finer buckets than those that come in here.
        while state.granularity_ms < tally.state.granularity_ms {
            state.coarsen();
        }
        for (due_ms, bytes) in tally.state.expiring.into_iter().chain(tally.runs) {
            state.expect(due_ms, bytes);
        }
    }

    /// A record that was added is no longer its key's last, or was dropped.
    pub(crate) fn bury(&self, weight: &Weight) {
        let mut state = self.state.lock();
        for (due_ms, bytes) in weight.shares() {
            state.bury(due_ms, bytes);
        }
    }

    /// A segment left the log; everything in it had been buried.
    pub(crate) fn remove(&self, record_bytes: u64) {
        let mut state = self.state.lock();
        state.total_bytes = state.total_bytes.saturating_sub(record_bytes);
        state.dead_bytes = state.dead_bytes.saturating_sub(record_bytes);
    }

    pub(crate) fn balance(&self, now_ms: u64) -> Balance {
        let mut state = self.state.lock();
        state.drain(now_ms);
        Balance { total_bytes: state.total_bytes, dead_bytes: state.dead_bytes.min(state.total_bytes) }
    }
}

impl State {
    fn bucket(&self, due_ms: u64) -> u64 {
        due_ms.checked_next_multiple_of(self.granularity_ms).unwrap_or(NEVER_MS)
    }

    fn expect(&mut self, due_ms: u64, bytes: u64) {
        let bucket = self.bucket(due_ms);
        if due_ms == NEVER_MS || bytes == 0 {
            return;
        }
        if bucket <= self.drained_to_ms {
            self.dead_bytes += bytes;
            return;
        }
        *self.expiring.entry(bucket).or_default() += bytes;
        if self.expiring.len() > MAX_BUCKETS {
            self.coarsen();
        }
    }

    fn bury(&mut self, due_ms: u64, bytes: u64) {
        let bucket = self.bucket(due_ms);
        // What was drained is in the dead bytes already.
        if due_ms != NEVER_MS && bucket <= self.drained_to_ms {
            return;
        }
        if let Some(expected) = self.expiring.get_mut(&bucket) {
            *expected = expected.saturating_sub(bytes);
            if *expected == 0 {
                self.expiring.remove(&bucket);
            }
        }
        self.dead_bytes += bytes;
    }

    fn drain(&mut self, now_ms: u64) {
        while let Some(first) = self.expiring.first_entry() {
            if *first.key() > now_ms {
                break;
            }
            self.drained_to_ms = *first.key();
            self.dead_bytes += first.remove();
        }
    }

    /// Rounding up twice, to a granularity and to its double, is rounding up to the double: buckets merge exactly, so
    /// that `bury` finds what `expect` put in before.
    fn coarsen(&mut self) {
        self.granularity_ms *= 2;
        // What was drained stays drained: rounded like the buckets, or bytes that are dead already would be buried again.
        self.drained_to_ms = self.bucket(self.drained_to_ms);
        let finer = std::mem::take(&mut self.expiring);
        for (due_ms, bytes) in finer {
            let bucket = self.bucket(due_ms);
            *self.expiring.entry(bucket).or_default() += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Kind;

    fn weight(kind: Kind, length_bytes: u64, result_expires_ms: u64, key_expires_ms: u64) -> Weight {
        Weight { kind, length_bytes, key_expires_ms, result_expires_ms }
    }

    #[test]
    fn what_expires_is_dead_from_its_bucket_on_the_result_before_the_key() {
        let ledger = Ledger::new();
        ledger.add(&weight(Kind::Completed, 1_120, 1_000, 2_000));
        assert_eq!(ledger.balance(999).dead_bytes, 0);
        assert_eq!(ledger.balance(1_016).dead_bytes, 1_000);
        assert_eq!(ledger.balance(2_016).dead_bytes, 1_120);
    }

    #[test]
    fn what_is_counted_apart_is_what_would_have_been_added_one_by_one() {
        let records: Vec<_> = (0..3_000_u64)
            .map(|n| match n % 5 {
                0 => weight(Kind::Begun, 90, NEVER_MS, NEVER_MS),
                1 => weight(Kind::Forgotten, 80, 0, 0),
                2 => weight(Kind::Released, 88, 0, 100 + n / 7),
                _ => weight(Kind::Completed, 400 + n, 50 + n / 3, 9_000 - n),
            })
            .collect();
        let (one_by_one, at_once) = (Ledger::new(), Ledger::new());
        let mut tally = Tally::default();
        for record in &records {
            one_by_one.add(record);
            tally.add(record);
        }
        at_once.absorb(tally);
        let mut superseded = Tally::default();
        superseded.add_dead(77);
        superseded.add_dead(3);
        let superseded_alone = Ledger::new();
        superseded_alone.absorb(superseded);
        assert_eq!(superseded_alone.balance(0), Balance { total_bytes: 80, dead_bytes: 80 });
        for now_ms in [0, 16, 57, 110, 400, 1_000, 7_000, 20_000] {
            assert_eq!(at_once.balance(now_ms), one_by_one.balance(now_ms), "at {now_ms}");
        }
        for record in &records {
            at_once.bury(record);
        }
        assert!(at_once.state.lock().expiring.is_empty(), "bury found every bucket");
    }

    #[test]
    fn a_tally_of_many_times_stays_small_and_its_records_are_found_to_be_buried() {
        let records: Vec<_> =
            (0..30_000_u64).map(|n| weight(Kind::Released, 100, 0, 1_000 + n * 777)).collect();
        let mut tally = Tally::default();
        records.iter().for_each(|record| tally.add(record));
        assert!(tally.state.expiring.len() <= MAX_BUCKETS);
        let ledger = Ledger::new();
        ledger.absorb(tally);
        records.iter().for_each(|record| ledger.bury(record));
        assert_eq!(ledger.balance(0), Balance { total_bytes: 3_000_000, dead_bytes: 3_000_000 });
        assert!(ledger.state.lock().expiring.is_empty(), "bury found every bucket");
    }

    #[test]
    fn nothing_is_buried_twice_however_it_died() {
        let ledger = Ledger::new();
        let expiring = weight(Kind::Completed, 500, 1_000, 1_000);
        let begun = weight(Kind::Begun, 100, NEVER_MS, NEVER_MS);
        ledger.add(&expiring);
        ledger.add(&begun);
        ledger.bury(&begun);
        assert_eq!(ledger.balance(5_000), Balance { total_bytes: 600, dead_bytes: 600 });
        ledger.bury(&expiring);
        assert_eq!(ledger.balance(5_000), Balance { total_bytes: 600, dead_bytes: 600 });
        ledger.remove(600);
        assert_eq!(ledger.balance(5_000), Balance::default());
    }

    #[test]
    fn what_expired_before_it_was_counted_is_dead_at_once_and_what_never_expires_is_not_expected() {
        let ledger = Ledger::new();
        ledger.add(&weight(Kind::Released, 100, 0, 1_000));
        assert_eq!(ledger.balance(5_000).dead_bytes, 100);
        ledger.add(&weight(Kind::Released, 30, 0, 990));
        assert_eq!(ledger.balance(5_000).dead_bytes, 130);
        ledger.add(&weight(Kind::Begun, 90, NEVER_MS, NEVER_MS));
        ledger.add(&weight(Kind::Completed, 60, NEVER_MS, NEVER_MS));
        assert!(ledger.state.lock().expiring.is_empty());
        assert_eq!(ledger.balance(u64::MAX), Balance { total_bytes: 280, dead_bytes: 130 });
    }

    #[test]
    fn what_was_drained_at_a_finer_granularity_is_not_buried_again() {
        let ledger = Ledger::new();
        let early: Vec<_> = (1..100_u64).map(|n| weight(Kind::Released, 100, 0, n * 16)).collect();
        for record in &early {
            ledger.add(record);
        }
        assert_eq!(ledger.balance(33 * 16).dead_bytes, 3_300);
        for n in 0..10_000_u64 {
            ledger.add(&weight(Kind::Released, 1, 0, 100_000 + n * 16));
        }
        assert!(ledger.state.lock().granularity_ms > 16, "the test means to coarsen");
        for record in &early {
            ledger.bury(record);
        }
        assert_eq!(ledger.balance(99_999).dead_bytes, 9_900);
    }

    #[test]
    fn the_histogram_stays_small_and_exact_in_its_sum() {
        let ledger = Ledger::new();
        let records: Vec<_> =
            (0..50_000_u64).map(|n| weight(Kind::Released, 100, 0, 1_000 + n * 777)).collect();
        for record in &records {
            ledger.add(record);
        }
        assert!(ledger.state.lock().expiring.len() <= MAX_BUCKETS);
        for record in &records[..20_000] {
            ledger.bury(record);
        }
        assert_eq!(ledger.balance(0).dead_bytes, 2_000_000);
        assert_eq!(ledger.balance(u64::MAX).dead_bytes, 5_000_000);
        assert!(ledger.state.lock().expiring.is_empty(), "bury found every bucket");
    }
}
