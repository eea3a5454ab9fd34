//! Checks that a retry of a typed operation gets the value that the first call got, or an error, but never a different
//! value.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod attempts;
#[path = "../common/mod.rs"]
mod common;
mod requests;
mod results;

use oncekey::Store;
use serde::{Deserialize, Serialize};

/// Opens a store in memory.
fn store() -> Store {
    Store::in_memory().unwrap()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub id: u64,
    pub cents: u64,
}
