//! Checks which files a store opens and what it then finds, which files and options it refuses and with which error, and that
//! a refusal changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod opening;
mod refusals;
mod sessions;

use std::path::Path;

use common::small;
use oncekey::Error;

/// Opens a file that the store must refuse and leave unchanged. Returns the error.
fn refuse(path: &Path) -> Error {
    let before = std::fs::read(path).unwrap_or_default();
    let error = small().open(path).expect_err("the file was accepted");
    assert_eq!(std::fs::read(path).unwrap_or_default(), before, "a refused file was changed: {error}");
    assert!(
        error.to_string().contains(&path.display().to_string()),
        "the error does not contain the path of the file: {error}"
    );
    error
}
