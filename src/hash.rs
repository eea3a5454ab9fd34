//! The keyed hash by which a file identifies keys and requests.
//!
//! The hashes are on disk, so they must never change: the tests of this module pin them.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::key::{Fingerprint, Key};

/// The keyed hash of one file: SipHash-2-4 with 128-bit output, under the secret key in the store header.
///
/// Footers store these hashes, so the same bytes must have the same hash for as long as the file exists.
#[derive(Clone)]
pub(crate) struct KeyHasher {
    secret: [u8; 16],
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret prevents clients from choosing keys that collide. It must not reach a log.
        out.write_str("KeyHasher")
    }
}

/// What a hash in a file identifies. Each kind of record belongs to one domain: see
/// [`Kind::domain`](crate::format::record::Kind::domain).
///
/// The hashes of two domains come from inputs that begin with different bytes, so that a step or a message never has the
/// hash of a key that a client chose. A domain may have several such bytes: keys with and without a scope begin differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Domain {
    /// The key of an operation. The index holds its last record.
    Key,
    /// A step of an unfinished operation. The table of unfinished operations holds its last record.
    Step,
    /// A message of the outbox. The index holds its record until it is acknowledged.
    Message,
}

/// The first byte of the hashed input. It keeps the inputs of a key, a scoped key, a request, a step, a message and a topic
/// apart.
const PREFIX_KEY: u8 = 0;
const PREFIX_SCOPED_KEY: u8 = 1;
const PREFIX_REQUEST: u8 = 2;
const PREFIX_STEP: u8 = 3;
const PREFIX_MESSAGE: u8 = 4;
const PREFIX_TOPIC: u8 = 5;

impl KeyHasher {
    pub(crate) fn new(secret: [u8; 16]) -> KeyHasher {
        KeyHasher { secret }
    }

    /// Returns the hash of a key: its identity in the index, in footers and in flights (the per-key locks).
    pub(crate) fn key(&self, key: Key<'_>) -> u128 {
        #[cfg(test)]
        tests::HASHES.set(tests::HASHES.get() + 1);
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        match key.scope_name() {
            None => hasher.write(&[PREFIX_KEY]),
            Some(scope) => {
                hasher.write(&[PREFIX_SCOPED_KEY]);
                // The length separates scope and key: without it ("a", "bc") and ("ab", "c") would be the same key.
                hasher.write(&(scope.len() as u64).to_le_bytes());
                hasher.write(scope);
            }
        }
        hasher.write(key.name());
        hasher.finish128().as_u128()
    }

    /// Returns the hash of the step `name` of an operation. `parent` is the hash of the operation's key, and `origin` is the
    /// version with which the operation first began. Without the origin, an operation under a reused key would meet the steps of the one before.
    pub(crate) fn step(&self, parent: u128, origin: u64, name: &[u8]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(&[PREFIX_STEP]);
        hasher.write(&parent.to_le_bytes());
        hasher.write(&origin.to_le_bytes());
        hasher.write(name);
        hasher.finish128().as_u128()
    }

    /// Returns the hash of the message with this id.
    pub(crate) fn message(&self, id: u64) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(&[PREFIX_MESSAGE]);
        hasher.write(&id.to_le_bytes());
        hasher.finish128().as_u128()
    }

    /// Returns the hash of a topic's name: the lower half of a hash like the others, which fits a field of a footer.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is as good as any other")]
    pub(crate) fn topic(&self, name: &str) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(&[PREFIX_TOPIC]);
        hasher.write(name.as_bytes());
        hasher.finish128().as_u128() as u64
    }

    /// Returns the fingerprint of an encoded request.
    pub(crate) fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        #[cfg(test)]
        tests::HASHES.set(tests::HASHES.get() + 1);
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(&[PREFIX_REQUEST]);
        hasher.write(request);
        let digest = Fingerprint::from_bytes(hasher.finish128().as_u128().to_le_bytes());
        // A request must never look like "no request": the one digest in 2^128 that equals `NONE` is replaced.
        if digest == Fingerprint::NONE { Fingerprint::from_bytes([0xFF; 16]) } else { digest }
    }
}

/// Builds the hashers ([`HashMixer`]) of maps whose keys are hashes from a [`KeyHasher`]. A `HashMixer` mixes such a hash with two random
/// numbers that each map has for itself, by an XOR and a multiplication.
///
/// The keyed hashes alone are not enough. Their secret is in the file, so the author of a hostile file can choose keys
/// whose hashes would all fall into one bucket.
#[derive(Debug, Clone)]
pub(crate) struct ByHash {
    /// The random number that is XORed with each key.
    xor_key: u64,
    /// The random number by which the outcome is multiplied. It is odd, so it is never zero.
    factor: u64,
}

impl Default for ByHash {
    fn default() -> ByHash {
        let state = RandomState::new();
        ByHash { xor_key: state.hash_one(0), factor: state.hash_one(1) | 1 }
    }
}

impl BuildHasher for ByHash {
    type Hasher = HashMixer;

    fn build_hasher(&self) -> HashMixer {
        HashMixer { hash: 0, xor_key: self.xor_key, factor: self.factor }
    }
}

/// The hasher that [`ByHash`] builds.
#[derive(Debug)]
pub(crate) struct HashMixer {
    /// The lower half of the key, which is a hash itself.
    hash: u64,
    xor_key: u64,
    factor: u64,
}

impl Hasher for HashMixer {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the product are combined by an XOR")]
    fn finish(&self) -> u64 {
        let product = u128::from(self.hash ^ self.xor_key) * u128::from(self.factor);
        product as u64 ^ (product >> 64) as u64
    }
    // The trait requires this method. A key of type `u128` calls `write_u128` instead.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = self.hash.rotate_left(8) ^ u64::from(*byte);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is as good as any other")]
    fn write_u128(&mut self, hash: u128) {
        self.hash = hash as u64;
    }
}

/// Mixes the lower half of a keyed hash with random numbers, by an XOR and a multiplication. Unlike the mixing of [`ByHash`] this
/// can be undone, so a table that stores the outcome need not store the half as well.
#[derive(Debug, Clone)]
pub(crate) struct Scatter {
    xor_key: u64,
    factor: u64,
    /// The number by which a multiplication with `factor` is undone.
    inverse: u64,
}

impl Default for Scatter {
    fn default() -> Scatter {
        let ByHash { xor_key, factor } = ByHash::default();
        // `factor` is odd, and an odd number is its own inverse modulo 8. So it is a first guess with three correct bits. Each step
        // of Newton's iteration doubles their number.
        let inverse = (0..5).fold(factor, |inverse, _| {
            inverse.wrapping_mul(2_u64.wrapping_sub(factor.wrapping_mul(inverse)))
        });
        Scatter { xor_key, factor, inverse }
    }
}

impl Scatter {
    /// Scatters the lower half of a keyed hash. All bits of the outcome are as good as random.
    pub(crate) fn scatter(&self, half: u64) -> u64 {
        let product = (half ^ self.xor_key).wrapping_mul(self.factor);
        product ^ (product >> 32)
    }

    /// Undoes [`scatter`](Self::scatter): returns the half from its outcome.
    pub(crate) fn unscatter(&self, scattered: u64) -> u64 {
        (scattered ^ (scattered >> 32)).wrapping_mul(self.inverse) ^ self.xor_key
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// The number of keys and requests that this thread has hashed.
        pub(crate) static HASHES: Cell<u64> = const { Cell::new(0) };
    }

    #[test]
    fn unscatter_undoes_scatter() {
        for _ in 0..100 {
            let scatter = Scatter::default();
            for half in [0, 1, u64::MAX, 1 << 63, 0x0123_4567_89AB_CDEF, scatter.xor_key] {
                assert_eq!(scatter.unscatter(scatter.scatter(half)), half, "{scatter:?}");
            }
        }
    }

    #[test]
    fn scoped_keys_unscoped_keys_and_requests_hash_differently() {
        let hasher = KeyHasher::new(*b"0123456789abcdef");
        let hashes = [
            hasher.key(Key::new("abc")),
            hasher.key(Key::new("abc").scope("")),
            hasher.key(Key::new("bc").scope("a")),
            hasher.key(Key::new("c").scope("ab")),
            u128::from_le_bytes(hasher.fingerprint(b"abc").to_bytes()),
            hasher.step(0, 0, b"abc"),
            hasher.step(1, 0, b"abc"),
            hasher.step(0, 1, b"abc"),
            hasher.step(0, 0, b""),
            hasher.message(0),
            hasher.message(1),
            u128::from(hasher.topic("abc")),
            u128::from(hasher.topic("")),
        ];
        for (at, one) in hashes.iter().enumerate() {
            assert!(!hashes[at + 1..].contains(one), "hash {at} occurs twice");
        }
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        // If this test fails, the footers of every existing file have become meaningless.
        let hasher = KeyHasher::new(*b"0123456789abcdef");
        assert_eq!(hasher.key(Key::new("charge:order-1729")), 0x1fda99f7273dfea4089df9ee4d41d999);
        assert_eq!(hasher.key(Key::new("order-1729").scope("acct_42")), 0x2a5c39f32c0dabd2b1f23f24904a4ee1);
        assert_eq!(
            u128::from_le_bytes(hasher.fingerprint(b"amount=10").to_bytes()),
            0xbcd8658db30c639d492ad490b497a756
        );
        assert_eq!(hasher.message(1_729), 0x7ec4fc93c68582e0b164f2c231f3f81c);
        assert_eq!(hasher.topic("orders"), 0xc4620d7508a621ee);
    }

    #[test]
    fn the_hash_matches_the_siphash_reference_vector() {
        // The first reference vector for SipHash-2-4 with 128-bit output: key 00..0f, empty input.
        let key: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let expected = 0x9302_55c7_1472_f66d_e6a8_25ba_047f_81a3;
        assert_eq!(SipHasher24::new_with_key(&key).finish128().as_u128(), expected);
    }
}
