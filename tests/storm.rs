//! The example `storm`, small enough for every run of the tests, and its command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::process::{Command, Output};

/// The example, which `cargo test` builds with the tests. Built here if only this test was asked for.
fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target.join("examples").join("storm").with_extension(std::env::consts::EXE_EXTENSION);
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "storm", "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    }
    program
}

fn storm(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().unwrap()
}

/// The count that the table gives in the row of this name.
fn count(table: &str, name: &str) -> usize {
    let row = table.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    row.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn every_act_of_a_small_storm_happens_once() {
    let output = storm(&["--intents", "600", "--threads", "8", "--kills", "12", "--seed", "1729"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}{told}");
    assert!(!told.contains("panicked"), "planted panics are silent: {told}");
    assert!(table.starts_with("seed 1729, 8 threads\n"), "{table}");
    // The storm is one: it meets with what it is there for.
    assert_eq!((count(&table, "intents"), count(&table, "kills")), (600, 12), "{table}");
    assert_eq!((count(&table, "duplicates"), count(&table, "lost")), (0, 0), "{table}");
    for name in ["requests", "performed", "replayed", "waited", "in doubt", "reconciled", "refused"] {
        assert!(count(&table, name) > 0, "{name}: {table}");
    }
}

#[test]
fn wrong_arguments_are_told_with_the_usage() {
    let wrong: [&[&str]; 5] =
        [&["--intents"], &["--intents", "0"], &["--threads", "many"], &["--kill", "3"], &["storm"]];
    for arguments in wrong {
        let output = storm(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(arguments[0]) && told.contains("usage: storm"), "{told}");
    }
    let help = storm(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(help.stdout.starts_with(b"usage: storm"));
}
