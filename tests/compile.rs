//! Checks that the compiler's messages for common mistakes say what is missing. Runs with one version of the compiler
//! only, because each version words its messages differently.
#![allow(missing_docs, reason = "tests")]
#![cfg(not(miri))]

mod common;

/// The version whose messages are in `tests/compile`.
const COMPILER: &str = "rustc 1.95";

#[test]
fn compiler_messages_for_common_mistakes_say_what_is_missing() {
    let version = std::process::Command::new("rustc").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with(&format!("{COMPILER}.")) {
        common::skipped(format_args!(
            "the expected messages are those of {COMPILER}, but this compiler is {}",
            version.trim_end()
        ));
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile/*.rs");
}
