//! Durable records in stores with increasing numbers of operations. The commands `open`, `replay` and `memory` measure how
//! opening, lookups and memory scale.

use super::commit;
use crate::bench::{self, Bench};
use crate::contestant::{Durability, FLOOR};
use crate::floor::FileSpace;
use crate::load::Load;
use crate::operations::Case;
use crate::results::Subject;

/// The number of operations from which on a filled store is reused in later rounds. A smaller store is filled again for each
/// round, because the measured records would soon outnumber the operations that it was filled with.
const MIN_REUSED: u64 = 1_000_000;

pub fn run(bench: &Bench) {
    let load = Load::full(1, bench.arguments.duration);
    // Rounds are the outer loop, so that the sizes, which are compared with each other, are measured in quick succession.
    for round in 0..bench.arguments.rounds {
        for keys in bench.arguments.keys() {
            let subject = Subject::new("scale", "record", 1, keys);
            let metrics =
                commit::floor(Case::Record, load, &bench.scratch_directory(), FileSpace::Preallocated);
            bench.add_sample(&subject, FLOOR, round, metrics);
            for setup in bench.plain_setups() {
                let scratch;
                let directory = if keys < MIN_REUSED {
                    scratch = bench.scratch_directory();
                    bench::fill_open(setup, &scratch, keys).close();
                    scratch.to_path_buf()
                } else {
                    scratch = bench.scratch_directory();
                    bench.filled(setup, keys)
                };
                let contestant = (setup.open)(&directory, Durability::Synced);
                let metrics = commit::perform(&*contestant, Case::Record, load, bench.next_measurement());
                contestant.close();
                drop(scratch);
                bench.add_sample(&subject, setup.name, round, metrics);
            }
        }
    }
}
