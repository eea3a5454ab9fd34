//! Proves that reclaiming and compaction free the space of dead records and keep every live one, that a store under
//! steady load keeps its size, and that a full store can end what has begun.
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
