//! Checks every transition of a key as a caller sees it, on a store in memory, in a file, and in a file without memory maps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod compare_and_set;
mod run;
mod transitions;

use common::{Place, START_MS, clocked, seconds};
use oncekey::{ManualClock, Status, Store};

/// Runs a test on a store in memory, on one in a file, and on one in a file without memory maps.
fn each_store(test: impl Fn(&Store, &ManualClock)) {
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50));
    test(&options.open_in_memory().unwrap(), &clock);
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50));
    test(&options.open(&place.path).unwrap(), &clock);
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50)).mmap(false);
    test(&options.open(&place.path).unwrap(), &clock);
}

fn status(store: &Store, key: &str) -> Status {
    store.get(key).unwrap().status()
}
