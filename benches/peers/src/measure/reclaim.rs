//! Durable records while nine in ten of a million operations expire, and while none does.
//!
//! oncekey reclaims space by itself, two bytes for each byte that is written. The other stores have no expiry, so a second
//! thread deletes their operations at the same pace: two for each operation that is recorded, a thousand in a commit.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use oncekey::{Fingerprint, ManualClock, Options, Recorded, Store};

use super::commit;
use crate::bench::{self, Bench};
use crate::contestant::{Contestant, Durability, FLOOR, ONCEKEY};
use crate::floor::FileSpace;
use crate::load::{self, Load};
use crate::operations::{Case, Change, KeySet, RESULT, key};
use crate::results::{Metrics, Subject};
use crate::roster::Setup;
use crate::stores::oncekey::file;

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// One operation in this many does not expire.
const KEPT: u64 = 10;
/// The number of operations that are deleted in one commit.
const SWEEP: u64 = 1_000;

pub fn run(bench: &Bench) {
    let load = Load::full(1, bench.arguments.duration);
    for keys in bench.arguments.keys.clone().unwrap_or_else(|| vec![1_000_000]) {
        for round in 0..bench.arguments.rounds {
            for (case, expires) in [("nothing expires", false), ("nine in ten expire", true)] {
                let subject = Subject::new("reclaim", case, 1, keys);
                let metrics =
                    commit::floor(Case::Record, load, &bench.scratch_directory(), FileSpace::Preallocated);
                bench.add_sample(&subject, FLOOR, round, metrics);
                for setup in bench.plain_setups() {
                    let scratch = bench.scratch_directory();
                    let metrics = if setup.name == ONCEKEY {
                        expiring(&scratch, keys, expires, load, bench.next_measurement())
                    } else {
                        swept(setup, &scratch, keys, expires, load, bench.next_measurement())
                    };
                    bench.add_sample(&subject, setup.name, round, metrics);
                }
            }
        }
    }
}

/// Measures oncekey, which expires operations and reclaims space by itself.
fn expiring(directory: &Path, keys: u64, expires: bool, load: Load, measurement: u64) -> Metrics {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().manual_clock(clock.clone()).retention(30 * DAY);
    let store = options.open(file(directory)).expect("oncekey cannot open the store");
    for number in 0..keys {
        let retention = if number.is_multiple_of(KEPT) { 30 * DAY } else { DAY };
        let key = key(KeySet::Filled, number);
        let operation = store.operation(&key).retain(retention).durability(oncekey::Durability::Buffered);
        operation.record(RESULT).expect("oncekey cannot record an operation");
    }
    store.sync().expect("oncekey cannot sync");
    if expires {
        clock.advance(2 * DAY);
    }
    let before = store.stats();
    let mut metrics = load::run(load, |thread| recording(&store, measurement, thread)).metrics();
    let after = store.stats();
    let retired = after.segments_retired - before.segments_retired;
    metrics.insert("segments_retired".to_owned(), retired as f64);
    metrics.insert("moved_bytes".to_owned(), (after.moved_bytes - before.moved_bytes) as f64);
    store.close().expect("oncekey cannot close the store");
    metrics
}

/// Returns a closure that durably records a new operation at each call.
fn recording(store: &Store, measurement: u64, thread: u32) -> impl FnMut() {
    let mut number = 0;
    move || {
        let key = key(KeySet::Written { measurement, thread }, number);
        number += 1;
        let recorded =
            store.record(&key, Fingerprint::NONE, RESULT).expect("oncekey cannot record an operation");
        assert!(matches!(recorded, Recorded::Done(_)), "a new key was already present");
    }
}

/// Measures one of the other stores, with a thread that deletes expired operations.
fn swept(setup: &Setup, directory: &Path, keys: u64, expires: bool, load: Load, measurement: u64) -> Metrics {
    bench::fill_open(setup, directory, keys).close();
    let contestant = (setup.open)(directory, Durability::Synced);
    let (due, sweeps_due) = mpsc::channel();
    let (mut metrics, removed) = std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| sweep(&*contestant, keys, sweeps_due));
        let outcome = load::run(load, |thread| {
            let (contestant, due) = (&*contestant, due.clone());
            let mut number = 0;
            move || {
                let key = key(KeySet::Written { measurement, thread }, number);
                number += 1;
                assert!(contestant.record(&key), "a new key was already present");
                if expires && number.is_multiple_of(SWEEP / 2) {
                    // Fails once everything is removed and the sweeper has returned. That is no error.
                    let _ = due.send(());
                }
            }
        });
        drop(due);
        (outcome.metrics(), sweeper.join().expect("the sweeper panicked"))
    });
    contestant.close();
    metrics.insert("removed".to_owned(), removed as f64);
    metrics
}

/// Deletes expired operations, one sweep for each message. Returns how many operations it deleted.
fn sweep(contestant: &dyn Contestant, keys: u64, sweeps_due: mpsc::Receiver<()>) -> usize {
    let expired = (0..keys).filter(|number| !number.is_multiple_of(KEPT));
    let mut changes = expired.map(|number| Change::Remove(key(KeySet::Filled, number)));
    let mut removed = 0;
    for () in sweeps_due {
        let sweep: Vec<Change> = changes.by_ref().take(SWEEP as usize).collect();
        if sweep.is_empty() {
            break;
        }
        contestant.apply(&sweep);
        removed += sweep.len();
    }
    removed
}
