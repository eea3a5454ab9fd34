//! Chance: what the seed decides, and what nobody can foresee.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A small generator, SplitMix64. Whatever happens is drawn from dice of its own, so that it does not depend on which
/// thread came first.
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64, purpose: &[u32]) -> Dice {
        Dice { state: purpose.iter().fold(mix(seed), |state, part| mix(state ^ u64::from(*part))) }
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.state = self.state.wrapping_add(STRIDE);
        u32::try_from(mix(self.state) % u64::from(limit.max(1))).unwrap_or_default()
    }

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

/// A number that no seed brings back. Every deed gets one, so that no second deed looks like the first.
pub(crate) fn unguessable() -> u64 {
    RandomState::new().build_hasher().finish()
}
