//! Code that the fuzz targets share: decoding an input, building a file from it, and a store to damage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::must_use_candidate,
    reason = "a target fails by panicking"
)]

pub mod acts;
pub mod allocated;
pub mod edits;
pub mod input;
pub mod seal;
pub mod sparse;
pub mod specimen;
#[path = "../../tests/crash/world/mod.rs"]
#[allow(dead_code, unused_imports)]
pub mod world;

/// The segment size of the targets: the smallest that oncekey allows.
pub const SEGMENT_BYTES: usize = 64 << 10;
/// The size of the store header: the offset of slot 0.
pub const HEADER_BYTES: usize = 4_096;
/// The offset of the first frame within a slot.
pub const FIRST_FRAME: usize = 4_096;
