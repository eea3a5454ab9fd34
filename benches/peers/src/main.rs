//! Compares oncekey with other embedded stores, and all of them with a bare loop. The README describes the method.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that fails should stop and show where"
)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "figures for people")]
#![cfg_attr(
    not(all(feature = "redb", feature = "fjall", feature = "lmdb", feature = "rocksdb", feature = "sled")),
    allow(dead_code, reason = "used only by peers that are not in this build")
)]

mod operations;
mod contestant;
mod group;
mod grouped;
mod stores;
mod roster;
mod conditions;
mod arguments;
mod machine;
mod results;
mod latency;
mod load;
mod floor;
mod sharded_map;
mod bench;
mod child;
mod measure;
mod turn;
mod draw;

use std::process::ExitCode;

use arguments::{Arguments, USAGE};
use bench::Bench;

/// The name of a command, and the function that runs it.
type Measure = (&'static str, fn(&Bench));

const MEASURES: [Measure; 8] = [
    ("commit", measure::commit::run),
    ("conditions", measure::conditions::run),
    ("replay", measure::replay::run),
    ("buffered", measure::buffered::run),
    ("open", measure::open::run),
    ("reclaim", measure::reclaim::run),
    ("memory", measure::memory::run),
    ("scale", measure::scale::run),
];

fn main() -> ExitCode {
    // Without this, the other threads could wait for ever for a thread that panicked.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == child::COMMAND) {
        child::run(&words[1..]);
        return ExitCode::SUCCESS;
    }
    if words.first().is_some_and(|word| word == conditions::NEIGHBOUR) {
        conditions::run_neighbour();
    }
    if words.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::parse(words.into_iter()) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.command == "draw" {
        draw::run(&arguments);
        return ExitCode::SUCCESS;
    }
    if arguments.command == "turn" {
        turn::run(&arguments);
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<Measure> = MEASURES
        .into_iter()
        .filter(|(name, _)| arguments.command == *name || arguments.command == "all")
        .collect();
    if wanted.is_empty() {
        eprintln!("{}: no such command\n\n{USAGE}", arguments.command);
        return ExitCode::FAILURE;
    }
    if cfg!(debug_assertions) {
        eprintln!("built without optimisation: the figures are meaningless");
    }
    let bench = Bench::new(arguments);
    for (name, run) in wanted {
        eprintln!("{name}");
        run(&bench);
        bench.finish(name);
    }
    ExitCode::SUCCESS
}
