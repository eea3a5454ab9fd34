//! Checks that reclaiming and compaction free the space of dead records and keep every live one, that the file of a store
//! under steady load does not keep growing, and that operations in progress can be ended in a full store.
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
mod compaction;
mod full;
mod reclaiming;
