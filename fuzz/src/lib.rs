//! What the fuzz targets share: how an input is read, how a file is put together from it, and a store to damage.
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
#[path = "../../tests/crash/world.rs"]
#[allow(dead_code, unused_imports)]
pub mod world;

/// The size of a segment wherever a target may choose: the smallest there is.
pub const SEGMENT_BYTES: usize = 64 << 10;
/// Where slot 0 begins.
pub const HEADER_BYTES: usize = 4_096;
/// Where the frames of a slot begin.
pub const FIRST_FRAME: usize = 4_096;
