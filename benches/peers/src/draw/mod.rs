//! Plots and tables of the results.

mod pictures;
mod plot;
mod table;
mod targets;

use std::collections::BTreeSet;
use std::fs;

use crate::arguments::Arguments;
use crate::machine::Machine;
use crate::results::{Results, Sample};

/// Draws the latest samples of each subject in the file of results.
pub fn run(arguments: &Arguments) {
    let results = Results::load(&arguments.out);
    let samples = results.latest();
    if samples.is_empty() {
        eprintln!("{} has no results", arguments.out.display());
        return;
    }
    fs::create_dir_all(&arguments.drawings).expect("cannot create the directory");
    let mut drawn = Vec::new();
    for (name, draw) in pictures::PICTURES {
        let path = arguments.drawings.join(format!("{name}.svg"));
        if draw(&samples, &path) {
            drawn.push(name);
        }
    }
    let text = table::markdown(&samples, &provenance(&results, &samples), &drawn);
    let path = arguments.drawings.join("comparison.md");
    fs::write(&path, text).expect("cannot write the tables");
    println!("{} and {} plots", path.display(), drawn.len());
    let targets = targets::markdown(&samples);
    fs::write(arguments.drawings.join("targets.md"), &targets).expect("cannot write the targets");
    println!("\n{targets}");
}

/// Describes the machines and versions in one sentence, or in several if they differ between subjects.
fn provenance(results: &Results, samples: &[&Sample]) -> Vec<String> {
    let runs: BTreeSet<u64> = samples.iter().map(|sample| sample.run).collect();
    let machines = runs.iter().filter_map(|run| results.runs.get(run));
    let sentences: BTreeSet<String> = machines.map(sentence).collect();
    sentences.into_iter().collect()
}

/// Describes one machine and its versions in a sentence.
fn sentence(machine: &Machine) -> String {
    let Machine { processor, cores, memory_gib, kernel, file_system, compiler, versions, date } = machine;
    let kernel = kernel.split('-').next().unwrap_or(kernel);
    let compiler = compiler.split(" (").next().unwrap_or(compiler);
    format!(
        "Measured {date} on {processor}, {cores} cores, {memory_gib} GiB of memory, Linux {kernel}, {file_system}; \
         {compiler}; {versions}."
    )
}
