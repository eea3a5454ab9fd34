//! Shared parts of the two serializers of this crate: the mix (a 64-bit hash) of a name, the depth limit, the error and
//! [`unordered`].
//!
//! [`fingerprint`](crate::fingerprint) and [`shape`](crate::shape) walk a value through `Serialize` without building a
//! document. They use this module, and so does decoding in [`codec`](crate::codec), which has the same depth limit. The
//! mix is on disk, inside fingerprints and shapes. It must never change: a test pins it.

use std::fmt::{self, Display};

use serde::{Serialize, Serializer};

#[cfg(test)]
pub(crate) mod trees;

/// The maximum number of nested containers, and of nested wrappers. See [`Depth`].
pub(crate) const MAX_DEPTH: u8 = 128;

/// The beginning of the error text for a value that is nested too deep.
pub(crate) const TOO_DEEP: &str = "the value is nested more than";

/// The name of the newtype struct by which [`unordered`] marks a sequence for the serializers of this crate.
pub(crate) const UNORDERED: &str = "$oncekey::private::unordered";

/// Serialises a sequence whose order has no meaning, such as a `HashSet`, so that a fingerprint ignores the order.
///
/// The fingerprint of a request depends on the order of each sequence, because serde does not distinguish a set from a
/// list. Put this function on a field to ignore the order: `#[serde(serialize_with = "oncekey::unordered")]`. An element
/// that occurs twice still counts twice. A `BTreeSet` has a fixed order and does not need it. Neither does a map: the
/// order of its entries is always ignored.
///
/// The field must serialise as a sequence, tuple or array, possibly inside an `Option` or a newtype struct. For anything else
/// there is no fingerprint, and the operation fails with [`Error::Encode`](crate::Error::Encode).
///
/// Other serializers see a newtype struct around the sequence. bincode, serde_json and most other formats write a newtype
/// struct as its content, so the encoding is that of the plain sequence.
///
/// ```
/// use std::collections::HashSet;
///
/// use serde::Serialize;
///
/// #[derive(Serialize)]
/// struct Notify {
///     #[serde(serialize_with = "oncekey::unordered")]
///     recipients: HashSet<String>,
/// }
///
/// let notify = Notify { recipients: HashSet::from(["ada@example.com".to_owned()]) };
/// assert_eq!(serde_json::to_string(&notify)?, r#"{"recipients":["ada@example.com"]}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # Errors
///
/// Those of the serializer.
pub fn unordered<T, S>(sequence: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Serialize + ?Sized,
    S: Serializer,
{
    serializer.serialize_newtype_struct(UNORDERED, sequence)
}

/// Multiplies two words to 128 bits and xors the halves of the product.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the product")]
pub(crate) const fn fold(word: u64, factor: u64) -> u64 {
    let product = word as u128 * factor as u128;
    product as u64 ^ (product >> 64) as u64
}

// Hexadecimal digits of pi after the point, made odd. They are on disk, inside every mix.
const NAME_SEED: u64 = 0x243F_6A88_85A3_08D3;
const NAME_FACTOR: u64 = 0x1319_8A2E_0370_7345;

/// Returns the mix of the name of a struct, enum, variant or field.
///
/// `h = fold(SEED ^ length, FACTOR)`, then `h = fold(h ^ word, FACTOR)` for each 8 bytes of the name as a little-endian word,
/// the last one padded with zeros. Names come from the program and not from its clients, so the mix needs no secret. The
/// compiler evaluates it for names that are known at compile time.
#[inline(always)]
pub(crate) fn mix_name(name: &'static str) -> u64 {
    mix_bytes(NAME_SEED, NAME_FACTOR, name.as_bytes())
}

/// Returns the mix of any bytes with the given seed and factor.
#[inline(always)]
pub(crate) fn mix_bytes(seed: u64, factor: u64, bytes: &[u8]) -> u64 {
    let mut mixed = fold(seed ^ bytes.len() as u64, factor);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        mixed = fold(mixed ^ u64::from_le_bytes(*word), factor);
    }
    if !rest.is_empty() {
        let mut word = 0;
        for (at, byte) in rest.iter().enumerate() {
            word |= u64::from(*byte) << (8 * at);
        }
        mixed = fold(mixed ^ word, factor);
    }
    mixed
}

/// Implements a serde trait for containers whose elements have neither names nor keys.
macro_rules! visit_elements {
    ([$($generics:tt)*] $container:ty, $trait:ident, $method:ident) => {
        impl<$($generics)*> serde::ser::$trait for $container {
            type Ok = ();
            type Error = VisitError;

            #[inline]
            fn $method<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
                self.element(value)
            }

            #[inline]
            fn end(self) -> Result<(), VisitError> {
                self.finish()
            }
        }
    };
}

/// Implements a serde trait for containers with named fields.
macro_rules! visit_fields {
    ([$($generics:tt)*] $container:ty, $trait:ident) => {
        impl<$($generics)*> serde::ser::$trait for $container {
            type Ok = ();
            type Error = VisitError;

            #[inline]
            fn serialize_field<T>(&mut self, name: &'static str, value: &T) -> Result<(), VisitError>
            where
                T: serde::Serialize + ?Sized,
            {
                self.field(name, value)
            }

            #[inline]
            fn skip_field(&mut self, _: &'static str) -> Result<(), VisitError> {
                self.skip();
                Ok(())
            }

            #[inline]
            fn end(self) -> Result<(), VisitError> {
                self.finish()
            }
        }
    };
}

pub(crate) use {visit_elements, visit_fields};

/// The current depth of a walk.
///
/// A container is a sequence, tuple, map, struct or variant with content. A wrapper is a `Some` or a newtype struct. A walk
/// enters at most [`MAX_DEPTH`] of each on the way to a leaf, so its recursion is at most twice that deep. They are counted
/// separately, so that a linked list of `Option<Box<Node>>` can have as many nodes as lists can be nested.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Depth {
    containers: u8,
    wrappers: u8,
}

impl Depth {
    #[inline]
    pub(crate) fn enter_container(&mut self) -> Result<(), VisitError> {
        if self.containers == MAX_DEPTH {
            return Err(VisitError::new(Problem::TooDeep));
        }
        self.containers += 1;
        Ok(())
    }

    #[inline]
    pub(crate) fn leave_container(&mut self) {
        self.containers -= 1;
    }

    #[inline]
    pub(crate) fn enter_wrapper(&mut self) -> Result<(), VisitError> {
        if self.wrappers == MAX_DEPTH {
            return Err(VisitError::new(Problem::TooDeep));
        }
        self.wrappers += 1;
        Ok(())
    }

    #[inline]
    pub(crate) fn leave_wrapper(&mut self) {
        self.wrappers -= 1;
    }
}

/// Why the fingerprint or the shape of a value could not be computed.
///
/// The cause is boxed, because the walk returns a result for each leaf, and a result of one word is returned in a register.
#[derive(Debug)]
pub(crate) struct VisitError(Box<Problem>);

/// The cause of a [`VisitError`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// More than [`MAX_DEPTH`] containers or wrappers are nested.
    TooDeep,
    /// The canonical bytes are 4 GiB or more.
    TooLarge,
    /// The value contains a `serde_json::value::RawValue`.
    RawValue,
    /// The text of a `serde_json::Number` is not a number, or its exponent does not fit into 64 bits.
    Number(Box<str>),
    /// [`unordered`] is on a value that is not a sequence.
    NotASequence,
    /// A `Serialize` implementation ignored an error, or wrote a map's key without a value or a value without a key.
    Inconsistent,
    /// A `Serialize` implementation failed with this text.
    Message(Box<str>),
}

impl VisitError {
    #[cold]
    pub(crate) fn new(problem: Problem) -> VisitError {
        VisitError(Box::new(problem))
    }

    pub(crate) fn problem(&self) -> &Problem {
        &self.0
    }
}

impl Display for VisitError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problem() {
            Problem::TooDeep => write!(out, "{TOO_DEEP} {MAX_DEPTH} levels deep"),
            Problem::TooLarge => out.write_str("the value is larger than 4 GiB"),
            Problem::RawValue => out.write_str(
                "the value contains a serde_json RawValue, and two texts of it can mean the same: use \
                 serde_json::Value instead",
            ),
            Problem::Number(text) => {
                write!(out, "the JSON number {text:?} is not a number, or its exponent is too large")
            }
            Problem::NotASequence => out.write_str(
                "oncekey::unordered is on a field that does not serialise as a sequence: remove it there",
            ),
            Problem::Inconsistent => out.write_str(
                "a Serialize implementation ignored an error, or wrote a map's key without its value",
            ),
            Problem::Message(text) => out.write_str(text),
        }
    }
}

impl std::error::Error for VisitError {}

impl serde::ser::Error for VisitError {
    #[cold]
    fn custom<T: Display>(message: T) -> VisitError {
        VisitError::new(Problem::Message(message.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_of_a_name_never_changes() {
        // If this test fails, the fingerprints and shapes in existing files have become meaningless.
        let mixes = ["", "a", "account", "12345678", "123456789", "an_account_number", "ä"].map(mix_name);
        let pinned = [
            0xe052ed86abb7a4aa,
            0x78eae53ace5ce544,
            0x5ae187c4d108277d,
            0x66d8094d5d2b3ffd,
            0xc75fd58a25e33ac0,
            0x5dea9fa81b005fbc,
            0xfa0e43a5e8158110,
        ];
        assert_eq!(mixes, pinned, "{mixes:#018x?}");
    }

    #[test]
    fn similar_names_have_different_mixes() {
        let names = ["", "a", "b", "aa", "a\0", "\0a", "\0", "\0\0", "12345678", "12345678\0", "87654321"];
        let mut mixes = names.map(mix_name);
        mixes.sort_unstable();
        assert!(mixes.is_sorted_by(|one, other| one < other), "{mixes:x?}");
    }

    #[test]
    fn an_unordered_sequence_is_encoded_as_a_plain_sequence() {
        struct Set(Vec<u16>);
        impl Serialize for Set {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                unordered(&self.0, serializer)
            }
        }
        let plain = vec![300, 2, 1];
        let set = Set(plain.clone());
        assert_eq!(serde_json::to_string(&set).unwrap(), "[300,2,1]");
        assert_eq!(serde_json::to_value(&set).unwrap(), serde_json::json!([300, 2, 1]));
        #[cfg(feature = "bincode")]
        {
            let config = bincode::config::standard();
            let bytes = bincode::serde::encode_to_vec(&set, config).unwrap();
            assert_eq!(bytes, bincode::serde::encode_to_vec(&plain, config).unwrap());
            let (back, read): (Vec<u16>, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
            assert_eq!((back, read), (plain, bytes.len()));
        }
    }
}
