//! Random numbers: numbers that the seed determines, and numbers that do not depend on it.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A small random number generator, SplitMix64. Every decision uses its own generator, so that the decision does not depend on
/// the order in which threads run.
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    /// Returns a generator for the decision that `purpose` identifies, for example by an intent and an attempt.
    pub(crate) fn new(seed: u64, purpose: &[u32]) -> Dice {
        Dice { state: purpose.iter().fold(mix(seed), |state, part| mix(state ^ u64::from(*part))) }
    }

    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.state = self.state.wrapping_add(STRIDE);
        u32::try_from(mix(self.state) % u64::from(limit.max(1))).unwrap_or_default()
    }

    /// Returns true in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// Returns a number that does not depend on the seed. Every charge contains such a number, so that a second charge of the
/// same order differs from the first.
pub(crate) fn unguessable() -> u64 {
    RandomState::new().build_hasher().finish()
}
