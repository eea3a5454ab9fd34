//! Durable records while nine in ten of a million operations expire, and without that.
//!
//! oncekey gives space back by itself, two bytes for each that is written. The others know no expiry, so that a second
//! thread deletes for them, at the same pace: two operations for each that is recorded, a thousand in a commit.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use oncekey::{Fingerprint, ManualClock, Options, Recorded, Store};

use super::commit::{self, Case};
use crate::bench::{self, Bench};
use crate::contestant::{Contestant, Durability, FLOOR, Kind, ONCEKEY};
use crate::floor::Room;
use crate::load::{self, Load};
use crate::operations::{Change, Purpose, RESULT, key};
use crate::results::{Metrics, Subject};
use crate::stores::oncekey::file;

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// One operation in so many stays.
const KEPT: u64 = 10;
/// Operations deleted in one commit.
const SWEEP: u64 = 1_000;

pub fn run(bench: &Bench) {
    let load = Load { threads: 1, duration: bench.arguments.duration };
    for keys in bench.arguments.keys.clone().unwrap_or_else(|| vec![1_000_000]) {
        for round in 0..bench.arguments.rounds {
            for (case, expires) in [("nothing expires", false), ("nine in ten expire", true)] {
                let subject = Subject::new("reclaim", case, 1, keys);
                let metrics = commit::floor(Case::Record, load, &bench.place(), Room::There);
                bench.note(&subject, FLOOR, round, metrics);
                for kind in bench.as_they_come() {
                    let place = bench.place();
                    let metrics = if kind.name == ONCEKEY {
                        expiring(&place, keys, expires, load, bench.next_cell())
                    } else {
                        swept(kind, &place, keys, expires, load, bench.next_cell())
                    };
                    bench.note(&subject, kind.name, round, metrics);
                }
            }
        }
    }
}

fn expiring(directory: &Path, keys: u64, expires: bool, load: Load, cell: u64) -> Metrics {
    let clock = ManualClock::new(1_700_000_000_000);
    let options = Options::new().manual_clock(clock.clone()).retention(30 * DAY);
    let store = options.open(file(directory)).expect("oncekey opens");
    for number in 0..keys {
        let retention = if number.is_multiple_of(KEPT) { 30 * DAY } else { DAY };
        let key = key(Purpose::Filled, number);
        let operation = store.operation(&key).retain(retention).durability(oncekey::Durability::Buffered);
        operation.record(RESULT).expect("oncekey records");
    }
    store.sync().expect("oncekey syncs");
    if expires {
        clock.advance(2 * DAY);
    }
    let before = store.stats();
    let mut metrics = load::run(load, |thread| recording(&store, cell, thread)).metrics();
    let after = store.stats();
    let retired = after.segments_retired - before.segments_retired;
    metrics.insert("segments_retired".to_owned(), retired as f64);
    metrics.insert("moved_bytes".to_owned(), (after.moved_bytes - before.moved_bytes) as f64);
    store.close().expect("oncekey closes");
    metrics
}

fn recording(store: &Store, cell: u64, thread: u32) -> impl FnMut() {
    let mut number = 0;
    move || {
        let key = key(Purpose::Written { cell, thread }, number);
        number += 1;
        let recorded = store.record(&key, Fingerprint::NONE, RESULT).expect("oncekey records");
        assert!(matches!(recorded, Recorded::Done(_)), "every key is new");
    }
}

fn swept(kind: &Kind, directory: &Path, keys: u64, expires: bool, load: Load, cell: u64) -> Metrics {
    bench::fill_open(kind, directory, keys).close();
    let contestant = (kind.open)(directory, Durability::Synced);
    let (paid, payments) = mpsc::channel();
    let (mut metrics, removed) = std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| sweep(&*contestant, keys, payments));
        let outcome = load::run(load, |thread| {
            let (contestant, paid) = (&*contestant, paid.clone());
            let mut number = 0;
            move || {
                let key = key(Purpose::Written { cell, thread }, number);
                number += 1;
                assert!(contestant.record(&key), "every key is new");
                if expires && number.is_multiple_of(SWEEP / 2) {
                    // Nobody listens any more when everything is removed.
                    let _ = paid.send(());
                }
            }
        });
        drop(paid);
        (outcome.metrics(), sweeper.join().expect("the sweeper does not panic"))
    });
    contestant.close();
    metrics.insert("removed".to_owned(), removed as f64);
    metrics
}

/// Deletes what has expired, a sweep for each payment. Says how many operations it deleted.
fn sweep(contestant: &dyn Contestant, keys: u64, payments: mpsc::Receiver<()>) -> usize {
    let expired = (0..keys).filter(|number| !number.is_multiple_of(KEPT));
    let mut changes = expired.map(|number| Change::Remove(key(Purpose::Filled, number)));
    let mut removed = 0;
    for () in payments {
        let sweep: Vec<Change> = changes.by_ref().take(SWEEP as usize).collect();
        if sweep.is_empty() {
            break;
        }
        contestant.apply(&sweep);
        removed += sweep.len();
    }
    removed
}
