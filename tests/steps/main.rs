//! Checks jobs of several steps: what a crash, a takeover, a release or a completion leaves of them, and what resumes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod ending;
mod errors;
mod input;
mod names;
mod operator;
mod resume;
mod takeover;
mod world;

use oncekey::{Attempt, RunError};

/// Runs a step that succeeds with this result.
fn done<T: serde::Serialize + serde::de::DeserializeOwned>(
    job: &Attempt,
    name: &str,
    result: T,
) -> Result<T, RunError<T, String>> {
    job.step(name).run(|_| Ok(result))
}

/// Runs a step whose closure fails.
fn fails(job: &Attempt, name: &str) -> RunError<u64, String> {
    job.step(name).run(|_| Err::<u64, _>("no answer".to_owned())).unwrap_err()
}
