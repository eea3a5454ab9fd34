//! Checks that the small examples print what `examples/README.md` shows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

#[path = "common/example.rs"]
mod example;

use std::process::Command;

use example::program;

/// Returns the output that the README shows after the command.
fn shown_output(name: &str) -> &'static str {
    let readme = include_str!("../examples/README.md");
    let command = format!("```text\n$ cargo run --example {name}\n");
    let (_, after) = readme.split_once(&command).unwrap_or_else(|| panic!("README: no output of {name}"));
    after.split_once("```").unwrap().0
}

#[test]
fn the_small_examples_print_what_the_readme_shows() {
    for name in ["charge", "reconcile", "consumer", "publisher", "order"] {
        let output = Command::new(program(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), shown_output(name), "{name}");
    }
}
