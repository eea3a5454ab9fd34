//! What the compiler says about the usual mistakes. Compared on one version of the compiler only, because its texts change.
#![allow(missing_docs, reason = "tests")]
#![cfg(not(miri))]

mod common;

/// The version whose messages are in `tests/compile`.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn the_compiler_says_what_is_missing_where_a_program_makes_a_usual_mistake() {
    let version = std::process::Command::new("rustc").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with(COMPILER) {
        common::skipped(format_args!("the messages are those of {COMPILER}, and this is {version}"));
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile/*.rs");
}
