//! One turn of one contestant, in a process of its own. A script can interleave the turns of two builds of oncekey with it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::arguments::Arguments;
use crate::bench::ScratchDirectory;
use crate::contestant::FLOOR;
use crate::floor::FileSpace;
use crate::load::Load;
use crate::measure::commit;
use crate::results::{CPU, RATE};
use crate::roster;

/// Measures the turn and prints a line of JSON with its rate and its CPU time for each operation.
pub fn run(arguments: &Arguments) {
    let Arguments { turn, duration, directory, threads, .. } = arguments;
    let _established = turn.surroundings.establish();
    let load = Load { threads: threads[0], duration: *duration, work: turn.work };
    let scratch = ScratchDirectory::new(directory);
    let metrics = if turn.contestant == FLOOR {
        commit::floor(turn.case, load, &scratch, FileSpace::Preallocated)
    } else {
        let setup = roster::all().into_iter().find(|setup| setup.name == turn.contestant);
        let setup = setup.expect("the contestant should be in this build");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock should be after 1970");
        commit::turn(&setup, turn.case, load, &scratch, now.as_secs() << 16)
    };
    let line = serde_json::json!({
        "contestant": turn.contestant,
        "case": turn.case.name(),
        "threads": load.threads,
        "rate": metrics[RATE],
        "cpu_us_per_op": metrics[CPU] / 1_000.0,
        "p50_us": metrics["p50_ns"] / 1_000.0,
        "p99_us": metrics["p99_ns"] / 1_000.0,
    });
    println!("{line}");
}
