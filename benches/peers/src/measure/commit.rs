//! Durable operations, by one thread and by many.

use std::path::Path;

use crate::bench::Bench;
use crate::contestant::{Contestant, Durability, FLOOR, FLOOR_THAT_GROWS, Kind, ONCEKEY, ONCEKEY_SIZED};
use crate::floor::{Bare, Group, Room};
use crate::load::{self, Load};
use crate::operations::{Purpose, key};
use crate::results::{Metrics, Subject};

/// How an operation is performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    Record,
    BeginAndComplete,
    Rerun,
}

impl Case {
    pub fn name(self) -> &'static str {
        match self {
            Case::Record => "record",
            Case::BeginAndComplete => "begin and complete",
            Case::Rerun => "rerun",
        }
    }
}

pub fn run(bench: &Bench) {
    for threads in bench.arguments.threads.clone() {
        for case in [Case::Record, Case::BeginAndComplete, Case::Rerun] {
            let subject = Subject::new("commit", case.name(), threads, 0);
            let load = Load { threads, duration: bench.arguments.duration };
            for round in 0..bench.arguments.rounds {
                bench.note(&subject, FLOOR, round, floor(case, load, &bench.place(), Room::There));
                let grown = floor(case, load, &bench.place(), Room::Grown);
                bench.note(&subject, FLOOR_THAT_GROWS, round, grown);
                // To the others an operation that may be performed again is one that is recorded.
                let takes_part =
                    |kind: &&Kind| case != Case::Rerun || [ONCEKEY, ONCEKEY_SIZED].contains(&kind.name);
                for kind in bench.arguments.kinds.iter().filter(takes_part) {
                    let place = bench.place();
                    let contestant = (kind.open)(&place, Durability::Synced);
                    let metrics = perform(&*contestant, case, load, bench.next_cell());
                    contestant.close();
                    bench.note(&subject, kind.name, round, metrics);
                }
            }
        }
    }
}

pub fn floor(case: Case, load: Load, directory: &Path, room: Room) -> Metrics {
    if load.threads == 1 {
        let bare = Bare::new(directory, room);
        let operation: fn(&Bare) = match case {
            Case::Record => Bare::record,
            Case::BeginAndComplete => Bare::begin_and_complete,
            Case::Rerun => Bare::rerun,
        };
        load::run(load, |_| || operation(&bare)).metrics()
    } else {
        let group = Group::new(directory, room);
        let operation: fn(&Group) = match case {
            Case::Record => Group::record,
            Case::BeginAndComplete => Group::begin_and_complete,
            Case::Rerun => Group::rerun,
        };
        load::run(load, |_| || operation(&group)).metrics()
    }
}

pub fn perform(contestant: &dyn Contestant, case: Case, load: Load, cell: u64) -> Metrics {
    let worker = |thread| {
        let mut number = 0;
        move || {
            let key = key(Purpose::Written { cell, thread }, number);
            number += 1;
            let is_new = match case {
                Case::Record => contestant.record(&key),
                Case::BeginAndComplete => contestant.begin_and_complete(&key),
                Case::Rerun => contestant.rerun(&key),
            };
            assert!(is_new, "every key is new");
        }
    };
    load::run(load, worker).metrics()
}
