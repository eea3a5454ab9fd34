//! Proves that no crash, failed call or damaged byte makes the store lose or change what it acknowledged.
//!
//! All of it runs on a simulated disk, whose fault model is documented in `src/storage/simulated.rs`.
//!
//! - `world` drives a store act by act and keeps an oracle beside it: a model of what the store acknowledged, what it
//!   did not, and what may go either way after a crash.
//! - `scripts` has the histories; `points` crashes each at every step of the disk, and crashes random ones.
//! - `openings` varies the clocks between two sessions and crashes the opening.
//! - `faults` makes every call of the disk fail, `threads` one call while other threads are in the store.
//! - `damage` flips, cuts, swaps and replaces bytes of a file.
//! - `doubts`, `growth` and `space` limit the size of the disk or of the file, or watch the file grow.
//! - `bugs` plants bugs one at a time and requires that the tests above find each.
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
mod growth;
mod openings;
mod points;
mod scripts;
mod space;
mod threads;
mod world;
