//! Durable records under conditions that are less favourable to a group commit than a full load on idle cores.

use std::time::Duration;

use super::commit;
use crate::bench::Bench;
use crate::conditions::{Surroundings, Work};
use crate::contestant::FLOOR;
use crate::floor::FileSpace;
use crate::load::Load;
use crate::operations::Case;
use crate::results::Subject;

const WORK: Duration = Duration::from_micros(50);
const USUAL: Surroundings = Surroundings { cores: None, has_neighbour: false };

pub const WITH_WORK: &str = "record, 50 µs of work between";
pub const WITH_SLEEP: &str = "record, 50 µs of sleep between";
pub const ON_ONE_CORE: &str = "record, on one core";
pub const WITH_NEIGHBOUR: &str = "record, beside a busy process";

/// The cases. Each differs from `commit` in one condition.
const CONDITIONS: [(&str, Work, Surroundings); 4] = [
    (WITH_WORK, Work::Busy(WORK), USUAL),
    (WITH_SLEEP, Work::Sleeping(WORK), USUAL),
    (ON_ONE_CORE, Work::None, Surroundings { cores: Some(1), ..USUAL }),
    (WITH_NEIGHBOUR, Work::None, Surroundings { has_neighbour: true, ..USUAL }),
];

pub fn run(bench: &Bench) {
    for (case, work, surroundings) in CONDITIONS {
        for threads in bench.arguments.threads.clone() {
            let subject = Subject::new("conditions", case, threads, 0);
            let load = Load { threads, duration: bench.arguments.duration, work };
            let _established = surroundings.establish();
            for round in 0..bench.arguments.rounds {
                let scratch = bench.scratch_directory();
                let floor = commit::floor(Case::Record, load, &scratch, FileSpace::Preallocated);
                bench.add_sample(&subject, FLOOR, round, floor);
                for setup in &bench.arguments.setups {
                    let scratch = bench.scratch_directory();
                    let metrics = commit::turn(setup, Case::Record, load, &scratch, bench.next_measurement());
                    bench.add_sample(&subject, setup.name, round, metrics);
                }
            }
        }
    }
}
