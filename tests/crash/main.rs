//! Checks that no crash, failed call or damaged byte makes the store lose or change what it acknowledged.
//!
//! All of these tests use a simulated disk, whose fault model is documented in `src/storage/simulated.rs`.
//!
//! - `world` drives a store act by act, and compares each answer with an oracle: a model of what the store acknowledged,
//!   and of the change that a crash may keep or lose.
//! - `scripts` has the sequences of acts. `points` runs each and crashes it at every step of the disk; it also crashes
//!   random scripts at random steps.
//! - `openings` varies the clocks between two sessions, and crashes the store while it is being opened.
//! - `faults` makes each call of the disk fail, in one thread. `threads` makes one call fail while several threads use the
//!   store.
//! - `damage` flips bits, overwrites and swaps sectors, and truncates the file.
//! - `repairs` repairs damaged files.
//! - `batches` checks batches on a failing disk.
//! - `doubts`, `growth` and `space` limit the size of the disk or of the file, or check how the file grows.
//! - `bugs` plants bugs one at a time, and requires that the tests above find each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod batches;
mod bugs;
#[path = "../common/mod.rs"]
mod common;
mod damage;
mod doubts;
mod faults;
mod growth;
mod openings;
mod points;
mod repairs;
mod scripts;
mod space;
mod threads;
mod world;
