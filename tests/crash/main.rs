//! The harness that tries to make the store lose what it acknowledged.
//!
//! `world` drives a store on a simulated disk and keeps, beside it, an oracle: a model of what was acknowledged, what
//! was not, and what may go either way. `points` crashes it at every step, `faults` lets every call fail, `threads`
//! lets one fail while others are inside, `damage` flips, cuts and replaces bytes, `space` lets it go on without
//! growing. The fault model of the disk is written down where it is made
//! (`src/storage/simulated.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod bugs;
#[path = "../common/mod.rs"]
mod common;
mod damage;
mod doubts;
mod faults;
mod openings;
mod points;
mod space;
mod threads;
mod world;
