//! Proves that the compiler's messages for the usual mistakes name what is missing. Runs with one version of the
//! compiler only, because its messages change.
#![allow(missing_docs, reason = "tests")]
#![cfg(not(miri))]

mod common;

/// The version whose messages are in `tests/compile`.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn compiler_messages_name_the_usual_mistakes() {
    let version = std::process::Command::new("rustc").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with(COMPILER) {
        common::skipped(format_args!(
            "the expected messages are those of {COMPILER}, this compiler is {version}"
        ));
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile/*.rs");
}
