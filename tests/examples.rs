//! Checks that the small examples print what `examples/README.md` shows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::path::PathBuf;
use std::process::Command;

/// Returns the path of an example. `cargo test` has built it, but `cargo test --test examples` has not, so this builds it if
/// it is missing.
fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", name, "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    }
    program
}

/// Returns the output that the README shows after the command.
fn shown_output(name: &str) -> &'static str {
    let readme = include_str!("../examples/README.md");
    let command = format!("```text\n$ cargo run --example {name}\n");
    let (_, after) = readme.split_once(&command).unwrap_or_else(|| panic!("README: no output of {name}"));
    after.split_once("```").unwrap().0
}

#[test]
fn the_small_examples_print_what_the_readme_shows() {
    for name in ["charge", "reconcile", "consumer"] {
        let output = Command::new(program(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), shown_output(name), "{name}");
    }
}
