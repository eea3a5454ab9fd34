//! Durable records while more and more operations are there. What opening, lookups and memory do meanwhile, `open`,
//! `replay` and `memory` say.

use super::commit::{self, Case};
use crate::bench::{self, Bench};
use crate::contestant::{Durability, FLOOR};
use crate::floor::Room;
use crate::load::Load;
use crate::results::Subject;

/// Stores with fewer operations are filled anew for each round, because what is measured would soon outnumber them.
const KEPT_FROM: u64 = 1_000_000;

pub fn run(bench: &Bench) {
    let load = Load { threads: 1, duration: bench.arguments.duration };
    // The rounds outside: what is to be compared is one size with another, in the same minutes.
    for round in 0..bench.arguments.rounds {
        for keys in bench.arguments.keys() {
            let subject = Subject::new("scale", "record", 1, keys);
            let metrics = commit::floor(Case::Record, load, &bench.place(), Room::There);
            bench.note(&subject, FLOOR, round, metrics);
            for kind in bench.as_they_come() {
                let place;
                let directory = if keys < KEPT_FROM {
                    place = bench.place();
                    bench::fill_open(kind, &place, keys).close();
                    place.to_path_buf()
                } else {
                    place = bench.place();
                    bench.filled(kind, keys)
                };
                let contestant = (kind.open)(&directory, Durability::Synced);
                let metrics = commit::perform(&*contestant, Case::Record, load, bench.next_cell());
                contestant.close();
                drop(place);
                bench.note(&subject, kind.name, round, metrics);
            }
        }
    }
}
