//! Checks that the codecs decode every value that they encode, and that no input makes them panic, overflow the stack or
//! exhaust memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod generated;
mod kinds;
mod limits;

use std::fmt::Debug;

use oncekey::Codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The byte that precedes a `u64` in bincode's encoding.
const U64: u8 = 253;

/// Encodes a length as bincode does, for a forged input.
fn forged_length(length: u64) -> Vec<u8> {
    let mut bytes = vec![U64];
    bytes.extend(length.to_le_bytes());
    bytes
}

fn assert_round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(codec: &impl Codec, value: &T) {
    let bytes = codec.encode(value).unwrap();
    assert_eq!(codec.decode::<T>(&bytes).unwrap(), *value, "{bytes:?}");
}
