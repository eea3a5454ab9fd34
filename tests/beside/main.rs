//! Runs a reader, or a process that waits for the lock, beside a process that has the store open.
//!
//! `ONCEKEY_READER_SECONDS` is how long the reader works beside a process under full load: 3 by default. Before a release:
//!
//! ```text
//! ONCEKEY_READER_SECONDS=60 cargo test --release --all-features --test beside under_full_load -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod child;
mod reader;
mod waiting;
