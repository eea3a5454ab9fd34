//! The shape of a value: a hash of its type, as far as the value shows it.
//!
//! A positional codec writes no names, so bytes that one type wrote can decode as a different type with a different meaning.
//! The store therefore saves the shape of a result together with its bytes, and refuses to replay bytes that decode to a
//! different shape. [`typed`](crate::typed) is the only caller. The hash is on disk: the golden table in the tests pins it.
//!
//! # What counts
//!
//! - The kind of each leaf with its width: `u32` differs from `i32`. The values of leaves and the lengths of strings are
//!   ignored.
//! - The names of fields, the names and indices of variants, and whether an option is `None` or `Some`.
//! - The order and the number of a struct's or tuple's fields.
//! - The elements of a sequence and the entries of a map, as a multiset of shapes, because a `HashMap` has a different order
//!   each time. Their number counts as well. That refuses no valid replay, because decoding restores the number.
//!
//! The names of structs and enums are ignored. A newtype struct equals its content, a tuple struct a tuple and a unit struct
//! a unit: their encodings are the same, so renaming a type does not change any value.
//!
//! An empty sequence and a `None` do not show the type of their content. They contain nothing that could be misread.
//!
//! # Leaves
//!
//! [`digest_of`] hashes the leaves as well, together with everything that counts for the shape. Two digests are equal if
//! the values are equal up to the order of elements in sequences and maps. A key stays with its value, and the fields of
//! an element stay together. Floats are compared by their bits.
//!
//! The digest shows whether a value survived its encoding, even if it contains a `HashMap`. Comparing the bytes would not
//! show that, because a `HashMap` is encoded in a different order each time. The digest is not on disk.

mod serializer;

use serde::Serialize;

use crate::visit::{Depth, VisitError, fold, mix_bytes, mix_name};

/// The shape of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The hash. Values of the same type that differ only in their leaves have the same hash.
    pub(crate) hash: u64,
    /// Whether a field was skipped, or a container has a different number of elements than it declared. A positional codec
    /// cannot decode the bytes of such a value.
    pub(crate) skips_fields: bool,
}

/// The shape of a value and a digest of its leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) shape: Shape,
    /// The hash of the shape and the leaves.
    pub(crate) leaves: u128,
}

/// Returns the shape of `value`. `human_readable` is that of the codec's serializer, because some types serialise differently
/// for a human-readable format.
///
/// # Errors
///
/// The value is nested deeper than [`MAX_DEPTH`](crate::visit::MAX_DEPTH), or one of its `Serialize` implementations
/// fails.
pub(crate) fn shape_of<T>(value: &T, human_readable: bool) -> Result<Shape, VisitError>
where
    T: Serialize + ?Sized,
{
    let mut walk = Walk::<false>::new(human_readable);
    value.serialize(&mut walk)?;
    Ok(walk.shape())
}

/// Returns the shape of `value` and a digest of its leaves, computed in one walk. Unlike [`shape_of`], this reads every leaf.
///
/// # Errors
///
/// The errors of [`shape_of`].
pub(crate) fn digest_of<T>(value: &T, human_readable: bool) -> Result<Digest, VisitError>
where
    T: Serialize + ?Sized,
{
    let mut walk = Walk::<true>::new(human_readable);
    value.serialize(&mut walk)?;
    let [low, high] = walk.state.leaves.map(u128::from);
    Ok(Digest { shape: walk.shape(), leaves: high << 64 | low })
}

// More hexadecimal digits of pi; the factors are made odd. The first three are on disk, inside shapes.
const SHAPE_SEED: u64 = 0xA409_3822_299F_31D0;
const SHAPE_FACTOR: u64 = 0x082E_FA98_EC4E_6C89;
const ELEMENT_FACTOR: u64 = 0x9216_D5D9_8979_FB1B;
const LEAF_SEEDS: [u64; 2] = [0x4528_21E6_38D0_1377, 0xBE54_66CF_34E9_0C6C];
const LEAF_FACTORS: [u64; 2] = [0xC0AC_29B7_C97C_50DD, 0x3F84_D5B5_B547_0917];

/// The kinds of things that a walk visits. The number of each kind is mixed into shapes, and so is on disk.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Unit = 1,
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Str,
    Bytes,
    None,
    Some,
    Sequence,
    Map,
    Tuple,
    Struct,
    UnitVariant,
    NewtypeVariant,
    TupleVariant,
    StructVariant,
    /// The end of a tuple or struct.
    End,
}

/// The intermediate hashes.
#[derive(Debug, Clone, Copy)]
struct State {
    shape: u64,
    /// Two lanes, because 64 bits are too few to compare many values.
    leaves: [u64; 2],
}

impl State {
    const START: State = State { shape: SHAPE_SEED, leaves: LEAF_SEEDS };
    const ZERO: State = State { shape: 0, leaves: [0; 2] };
}

/// A serializer that computes the shape of a value and, with `LEAVES`, the digest of its leaves.
#[derive(Debug)]
struct Walk<const LEAVES: bool> {
    state: State,
    depth: Depth,
    skips_fields: bool,
    human_readable: bool,
}

impl<const LEAVES: bool> Walk<LEAVES> {
    fn new(human_readable: bool) -> Walk<LEAVES> {
        Walk { state: State::START, depth: Depth::default(), skips_fields: false, human_readable }
    }

    fn shape(&self) -> Shape {
        Shape { hash: self.state.shape, skips_fields: self.skips_fields }
    }

    /// Mixes a word into the shape and into the leaves.
    #[inline(always)]
    fn mix(&mut self, word: u64) {
        self.state.shape = fold(self.state.shape ^ word, SHAPE_FACTOR);
        self.mix_leaf(word);
    }

    #[inline(always)]
    fn mix_leaf(&mut self, word: u64) {
        if LEAVES {
            for (lane, factor) in self.state.leaves.iter_mut().zip(LEAF_FACTORS) {
                *lane = fold(*lane ^ word, factor);
            }
        }
    }

    #[inline(always)]
    fn kind(&mut self, kind: Kind) {
        self.mix(kind as u64);
    }

    #[inline(always)]
    fn leaf(&mut self, kind: Kind, value: u64) -> Result<(), VisitError> {
        self.kind(kind);
        self.mix_leaf(value);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves")]
    fn wide_leaf(&mut self, kind: Kind, value: u128) -> Result<(), VisitError> {
        self.leaf(kind, value as u64)?;
        self.mix_leaf((value >> 64) as u64);
        Ok(())
    }

    #[inline(always)]
    fn text(&mut self, kind: Kind, text: &[u8]) -> Result<(), VisitError> {
        self.kind(kind);
        if LEAVES {
            for (lane, factor) in self.state.leaves.iter_mut().zip(LEAF_FACTORS) {
                *lane = mix_bytes(*lane, factor, text);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn variant(&mut self, kind: Kind, index: u32, variant: &'static str) {
        self.kind(kind);
        self.mix(u64::from(index));
        self.mix(mix_name(variant));
    }

    #[inline(always)]
    fn wrapped<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        self.depth.enter_wrapper()?;
        value.serialize(&mut *self)?;
        self.depth.leave_wrapper();
        Ok(())
    }

    #[inline(always)]
    fn fields(&mut self, declared: usize) -> Result<Fields<'_, LEAVES>, VisitError> {
        self.depth.enter_container()?;
        Ok(Fields { walk: self, declared, count: 0 })
    }

    #[inline(always)]
    fn elements(&mut self, kind: Kind, declared: Option<usize>) -> Result<Elements<'_, LEAVES>, VisitError> {
        self.depth.enter_container()?;
        self.kind(kind);
        let outer = std::mem::replace(&mut self.state, State::START);
        Ok(Elements { walk: self, declared, count: 0, outer, sum: State::ZERO })
    }
}

/// A tuple or struct that is being visited, or a variant that contains either.
#[derive(Debug)]
struct Fields<'w, const LEAVES: bool> {
    walk: &'w mut Walk<LEAVES>,
    declared: usize,
    count: usize,
}

impl<const LEAVES: bool> Fields<'_, LEAVES> {
    #[inline(always)]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        self.count += 1;
        value.serialize(&mut *self.walk)
    }

    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), VisitError> {
        self.walk.mix(mix_name(name));
        self.element(value)
    }

    #[inline(always)]
    fn skip(&mut self) {
        self.walk.skips_fields = true;
    }

    #[inline(always)]
    fn finish(self) -> Result<(), VisitError> {
        self.walk.depth.leave_container();
        self.walk.skips_fields |= self.count != self.declared;
        self.walk.kind(Kind::End);
        self.walk.mix(self.count as u64);
        Ok(())
    }
}

/// A sequence or map that is being visited.
#[derive(Debug)]
struct Elements<'w, const LEAVES: bool> {
    /// The walk. During the sequence, its state is that of the current element only.
    walk: &'w mut Walk<LEAVES>,
    declared: Option<usize>,
    count: usize,
    /// The state before the sequence.
    outer: State,
    /// The sum of the elements' hashes, which does not depend on their order.
    sum: State,
}

impl<const LEAVES: bool> Elements<'_, LEAVES> {
    #[inline(always)]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        value.serialize(&mut *self.walk)?;
        self.end_element();
        Ok(())
    }

    #[inline(always)]
    fn end_element(&mut self) {
        self.count += 1;
        // Each hash is folded once more before it is added. Without that, the sums of small numbers collide, because their
        // hashes are too regular.
        let finished = |mixed: u64| fold(mixed ^ mixed >> 32, ELEMENT_FACTOR);
        let element = std::mem::replace(&mut self.walk.state, State::START);
        self.sum.shape = self.sum.shape.wrapping_add(finished(element.shape));
        if LEAVES {
            for (sum, lane) in self.sum.leaves.iter_mut().zip(element.leaves) {
                *sum = sum.wrapping_add(finished(lane));
            }
        }
    }

    #[inline(always)]
    fn finish(self) -> Result<(), VisitError> {
        let walk = self.walk;
        walk.depth.leave_container();
        walk.skips_fields |= self.declared.is_some_and(|declared| declared != self.count);
        walk.state = self.outer;
        walk.mix(self.count as u64);
        walk.state.shape = fold(walk.state.shape ^ self.sum.shape, SHAPE_FACTOR);
        if LEAVES {
            for (at, lane) in walk.state.leaves.iter_mut().enumerate() {
                *lane = fold(*lane ^ self.sum.leaves[at], LEAF_FACTORS[at]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
