//! Durable operations, by one thread and by many.

use std::path::Path;

use crate::bench::Bench;
use crate::contestant::{Contestant, Durability, FLOOR, FLOOR_THAT_GROWS, ONCEKEY, ONCEKEY_SIZED};
use crate::floor::{FileSpace, GroupCommitFloor, SingleThreadFloor};
use crate::load::{self, Load};
use crate::operations::{Case, KeySet, key};
use crate::results::{Metrics, Subject};
use crate::roster::Setup;

pub fn run(bench: &Bench) {
    for threads in bench.arguments.threads.clone() {
        for case in [Case::Record, Case::BeginAndComplete, Case::Rerun] {
            let subject = Subject::new("commit", case.name(), threads, 0);
            let load = Load::full(threads, bench.arguments.duration);
            for round in 0..bench.arguments.rounds {
                bench.add_sample(
                    &subject,
                    FLOOR,
                    round,
                    floor(case, load, &bench.scratch_directory(), FileSpace::Preallocated),
                );
                let growing = floor(case, load, &bench.scratch_directory(), FileSpace::Growing);
                bench.add_sample(&subject, FLOOR_THAT_GROWS, round, growing);
                // In the other stores `rerun` is the same as `record`, so only oncekey takes part.
                let takes_part =
                    |setup: &&Setup| case != Case::Rerun || [ONCEKEY, ONCEKEY_SIZED].contains(&setup.name);
                for setup in bench.arguments.setups.iter().filter(takes_part) {
                    let metrics =
                        turn(setup, case, load, &bench.scratch_directory(), bench.next_measurement());
                    bench.add_sample(&subject, setup.name, round, metrics);
                }
            }
        }
    }
}

/// Measures the floor for an operation.
pub fn floor(case: Case, load: Load, directory: &Path, space: FileSpace) -> Metrics {
    if load.threads == 1 {
        let bare = SingleThreadFloor::new(directory, space);
        let operation: fn(&SingleThreadFloor) = match case {
            Case::Record => SingleThreadFloor::record,
            Case::BeginAndComplete => SingleThreadFloor::begin_and_complete,
            Case::Rerun => SingleThreadFloor::rerun,
            Case::Buffered => SingleThreadFloor::record_buffered,
        };
        load::run(load, |_| || operation(&bare)).metrics()
    } else {
        let group = GroupCommitFloor::new(directory, space);
        let operation: fn(&GroupCommitFloor) = match case {
            Case::Record => GroupCommitFloor::record,
            Case::BeginAndComplete => GroupCommitFloor::begin_and_complete,
            Case::Rerun => GroupCommitFloor::rerun,
            Case::Buffered => GroupCommitFloor::record_buffered,
        };
        load::run(load, |_| || operation(&group)).metrics()
    }
}

/// Opens a store in a directory, measures an operation in it, and closes it.
pub fn turn(setup: &Setup, case: Case, load: Load, directory: &Path, measurement: u64) -> Metrics {
    let durability = if case == Case::Buffered { Durability::Buffered } else { Durability::Synced };
    let contestant = (setup.open)(directory, durability);
    let metrics = perform(&*contestant, case, load, measurement);
    if case == Case::Buffered {
        contestant.sync();
    }
    contestant.close();
    metrics
}

/// Measures an operation in an open store.
pub fn perform(contestant: &dyn Contestant, case: Case, load: Load, measurement: u64) -> Metrics {
    let worker = |thread| {
        let mut number = 0;
        move || {
            let key = key(KeySet::Written { measurement, thread }, number);
            number += 1;
            let is_new = match case {
                Case::Record | Case::Buffered => contestant.record(&key),
                Case::BeginAndComplete => contestant.begin_and_complete(&key),
                Case::Rerun => contestant.rerun(&key),
            };
            assert!(is_new, "a new key was already present");
        }
    };
    load::run(load, worker).metrics()
}
