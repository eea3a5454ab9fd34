//! Runs the example `storm` with a small load, and checks that it reports no side effect as lost or doubled. Also checks that it
//! refuses bad arguments.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "common/example.rs"]
mod example;

use std::process::{Command, Output};

use example::program;

fn storm(arguments: &[&str]) -> Output {
    Command::new(program("storm")).args(arguments).output().unwrap()
}

/// Reads the count in the row with this name.
fn count(table: &str, name: &str) -> usize {
    let row = table.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    row.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn every_side_effect_of_a_small_storm_happens_once() {
    let output = storm(&["--intents", "600", "--threads", "8", "--kills", "12", "--seed", "1729"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}{errors}");
    assert!(
        !errors.contains("panicked"),
        "a panic that the storm caused on purpose printed a message: {errors}"
    );
    assert!(table.starts_with("seed 1729, 8 threads\n"), "{table}");
    // The storm must have covered every case.
    assert_eq!((count(&table, "intents"), count(&table, "kills")), (600, 12), "{table}");
    assert_eq!(count(&table, "jobs"), 150, "{table}");
    assert_eq!((count(&table, "duplicates"), count(&table, "lost")), (0, 0), "{table}");
    let outcomes = ["performed", "replayed", "waited", "reconciled", "refused", "no result"];
    for name in outcomes.into_iter().chain(["found in doubt"]) {
        assert!(count(&table, name) > 0, "{name}: {table}");
    }
    let sum: usize = outcomes.iter().map(|name| count(&table, name)).sum();
    assert_eq!(count(&table, "calls"), sum, "the outcomes do not add up to the calls: {table}");
}

#[test]
fn bad_arguments_print_the_usage() {
    let wrong: [&[&str]; 5] =
        [&["--intents"], &["--intents", "0"], &["--threads", "many"], &["--kill", "3"], &["storm"]];
    for arguments in wrong {
        let output = storm(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(arguments[0]) && errors.contains("usage: storm"), "{errors}");
    }
    let help = storm(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(help.stdout.starts_with(b"usage: storm"));
}
