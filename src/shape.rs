//! The shape of a serialised value: a hash of its type as far as the value shows it.
//!
//! A positional codec writes no names. Bytes that one type wrote can decode as another and become another value. The
//! shape of the first value is stored beside its bytes, and a value that decodes to another shape is refused. The codecs
//! and typed operations are the callers. The hash is on disk: the golden table in the tests pins it.
//!
//! # What the shape depends on
//!
//! - The kind of each leaf, with its width: `u32` is not `i32`. Not the values of leaves, nor the lengths of strings.
//! - The names of fields, the names and indices of variants, whether an option is `None` or `Some`.
//! - The order of fields and of places in a tuple, and their number.
//! - The elements of a sequence and the entries of a map as a multiset of shapes, because a `HashMap` comes in another
//!   order each time. Their number counts; it costs nothing, since a value and what its bytes decode to agree on it.
//!
//! It does not depend on the names of structs and enums. A newtype struct is its content, a tuple struct a tuple, a unit
//! struct a unit: they have the same bytes, and renaming a type changes no value.
//!
//! An empty sequence and a `None` do not show what they could hold. Nothing can be misread in them.
//!
//! # Leaves
//!
//! [`digest_of`] also hashes the leaves, with everything that the shape depends on. Two digests are equal if the values
//! are equal up to the order of elements in sequences and maps; a key stays with its value, and the fields of an element
//! stay together. Floats are compared by their bits. It finds out whether a value came back from its own bytes when the
//! bytes do not: a `HashMap` is encoded in another order. It is not on disk.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{self, Serializer};

use crate::visit::{Depth, VisitError, fold, mix_bytes, mix_name, visit_elements, visit_fields};

/// The shape of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The hash. Equal for values of one type that differ in their leaves only.
    pub(crate) hash: u64,
    /// A field was skipped, or a container has another number of elements than it declared. A positional codec cannot
    /// read the bytes of such a value.
    pub(crate) skips_fields: bool,
}

/// The shape of a value and a digest of its leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) shape: Shape,
    /// See the module.
    pub(crate) leaves: u128,
}

/// The shape of `value`. `human_readable` is what the codec's serializer says of itself, since some types serialise
/// differently by it.
///
/// # Errors
///
/// The value is nested too deep, or one of its `Serialize` implementations fails.
pub(crate) fn shape_of<T>(value: &T, human_readable: bool) -> Result<Shape, VisitError>
where
    T: Serialize + ?Sized,
{
    let mut walk = Walk::<false>::new(human_readable);
    value.serialize(&mut walk)?;
    Ok(walk.shape())
}

/// The shape of `value` and a digest of its leaves, in one walk. It reads every leaf; [`shape_of`] does not.
///
/// # Errors
///
/// As [`shape_of`].
pub(crate) fn digest_of<T>(value: &T, human_readable: bool) -> Result<Digest, VisitError>
where
    T: Serialize + ?Sized,
{
    let mut walk = Walk::<true>::new(human_readable);
    value.serialize(&mut walk)?;
    let [low, high] = walk.state.leaves.map(u128::from);
    Ok(Digest { shape: walk.shape(), leaves: high << 64 | low })
}

// More digits of pi, those of factors made odd. The first three are on disk, inside shapes.
const SHAPE_SEED: u64 = 0xA409_3822_299F_31D0;
const SHAPE_FACTOR: u64 = 0x082E_FA98_EC4E_6C89;
const ELEMENT_FACTOR: u64 = 0x9216_D5D9_8979_FB1B;
const LEAF_SEEDS: [u64; 2] = [0x4528_21E6_38D0_1377, 0xBE54_66CF_34E9_0C6C];
const LEAF_FACTORS: [u64; 2] = [0xC0AC_29B7_C97C_50DD, 0x3F84_D5B5_B547_0917];

/// What a walk visits, as the word that is mixed in for it.
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

/// What has been mixed so far.
#[derive(Debug, Clone, Copy)]
struct State {
    shape: u64,
    /// Two lanes, because 64 bits are few for the comparison of many values.
    leaves: [u64; 2],
}

impl State {
    const START: State = State { shape: SHAPE_SEED, leaves: LEAF_SEEDS };
    const ZERO: State = State { shape: 0, leaves: [0; 2] };
}

/// Visits a value. Without `LEAVES` it mixes the shape only.
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

    /// Mixes a word into the shape, and into the leaves.
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
    fn places(&mut self, declared: usize) -> Result<Places<'_, LEAVES>, VisitError> {
        self.depth.enter_container()?;
        Ok(Places { walk: self, declared, count: 0 })
    }

    #[inline(always)]
    fn elements(&mut self, kind: Kind, declared: Option<usize>) -> Result<Elements<'_, LEAVES>, VisitError> {
        self.depth.enter_container()?;
        self.kind(kind);
        let outer = std::mem::replace(&mut self.state, State::START);
        Ok(Elements { walk: self, declared, count: 0, outer, sum: State::ZERO })
    }
}

/// A tuple or struct that is being visited, or a variant with either.
#[derive(Debug)]
struct Places<'w, const LEAVES: bool> {
    walk: &'w mut Walk<LEAVES>,
    declared: usize,
    count: usize,
}

impl<const LEAVES: bool> Places<'_, LEAVES> {
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
    /// Its state is that of the current element.
    walk: &'w mut Walk<LEAVES>,
    declared: Option<usize>,
    count: usize,
    /// The state before the sequence.
    outer: State,
    /// The sum of the elements so far.
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
        // One more step before the sum: small numbers that were mixed once have sums that are too regular.
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

/// Implements the methods of the serializer for leaves whose value is a word.
macro_rules! leaves {
    ($($method:ident, $kind:ident, $type:ty, $value:ident => $word:expr;)*) => {
        $(
            #[inline]
            fn $method(self, $value: $type) -> Result<(), VisitError> {
                self.leaf(Kind::$kind, $word)
            }
        )*
    };
}

impl<'w, const LEAVES: bool> Serializer for &'w mut Walk<LEAVES> {
    type Ok = ();
    type Error = VisitError;
    type SerializeSeq = Elements<'w, LEAVES>;
    type SerializeTuple = Places<'w, LEAVES>;
    type SerializeTupleStruct = Places<'w, LEAVES>;
    type SerializeTupleVariant = Places<'w, LEAVES>;
    type SerializeMap = Elements<'w, LEAVES>;
    type SerializeStruct = Places<'w, LEAVES>;
    type SerializeStructVariant = Places<'w, LEAVES>;

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.human_readable
    }

    leaves! {
        serialize_bool, Bool, bool, value => u64::from(value);
        serialize_i8, I8, i8, value => i64::from(value).cast_unsigned();
        serialize_i16, I16, i16, value => i64::from(value).cast_unsigned();
        serialize_i32, I32, i32, value => i64::from(value).cast_unsigned();
        serialize_i64, I64, i64, value => value.cast_unsigned();
        serialize_u8, U8, u8, value => u64::from(value);
        serialize_u16, U16, u16, value => u64::from(value);
        serialize_u32, U32, u32, value => u64::from(value);
        serialize_u64, U64, u64, value => value;
        serialize_f32, F32, f32, value => u64::from(value.to_bits());
        serialize_f64, F64, f64, value => value.to_bits();
        serialize_char, Char, char, value => u64::from(value);
    }

    fn serialize_i128(self, value: i128) -> Result<(), VisitError> {
        self.wide_leaf(Kind::I128, value.cast_unsigned())
    }

    fn serialize_u128(self, value: u128) -> Result<(), VisitError> {
        self.wide_leaf(Kind::U128, value)
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), VisitError> {
        self.text(Kind::Str, value.as_bytes())
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), VisitError> {
        if LEAVES {
            return self.text(Kind::Str, value.to_string().as_bytes());
        }
        // The text does not matter to the shape.
        self.kind(Kind::Str);
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), VisitError> {
        self.text(Kind::Bytes, value)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), VisitError> {
        self.kind(Kind::None);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), VisitError> {
        self.kind(Kind::Some);
        self.wrapped(value)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), VisitError> {
        self.kind(Kind::Unit);
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), VisitError> {
        self.kind(Kind::Unit);
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), VisitError> {
        self.variant(Kind::UnitVariant, index, variant);
        Ok(())
    }

    #[inline]
    fn serialize_newtype_struct<T>(self, _: &'static str, value: &T) -> Result<(), VisitError>
    where
        T: Serialize + ?Sized,
    {
        self.wrapped(value)
    }

    #[inline]
    fn serialize_newtype_variant<T>(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), VisitError>
    where
        T: Serialize + ?Sized,
    {
        self.depth.enter_container()?;
        self.variant(Kind::NewtypeVariant, index, variant);
        value.serialize(&mut *self)?;
        self.depth.leave_container();
        Ok(())
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Elements<'w, LEAVES>, VisitError> {
        self.elements(Kind::Sequence, len)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Places<'w, LEAVES>, VisitError> {
        self.kind(Kind::Tuple);
        self.places(len)
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Places<'w, LEAVES>, VisitError> {
        self.serialize_tuple(len)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Places<'w, LEAVES>, VisitError> {
        self.variant(Kind::TupleVariant, index, variant);
        self.places(len)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Elements<'w, LEAVES>, VisitError> {
        self.elements(Kind::Map, len)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Places<'w, LEAVES>, VisitError> {
        self.kind(Kind::Struct);
        self.places(len)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Places<'w, LEAVES>, VisitError> {
        self.variant(Kind::StructVariant, index, variant);
        self.places(len)
    }
}

visit_elements!([const LEAVES: bool] Elements<'_, LEAVES>, SerializeSeq, serialize_element);
visit_elements!([const LEAVES: bool] Places<'_, LEAVES>, SerializeTuple, serialize_element);
visit_elements!([const LEAVES: bool] Places<'_, LEAVES>, SerializeTupleStruct, serialize_field);
visit_elements!([const LEAVES: bool] Places<'_, LEAVES>, SerializeTupleVariant, serialize_field);
visit_fields!([const LEAVES: bool] Places<'_, LEAVES>, SerializeStruct);
visit_fields!([const LEAVES: bool] Places<'_, LEAVES>, SerializeStructVariant);

impl<const LEAVES: bool> ser::SerializeMap for Elements<'_, LEAVES> {
    type Ok = ();
    type Error = VisitError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), VisitError> {
        key.serialize(&mut *self.walk)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result<(), VisitError> {
        self.finish()
    }
}

#[cfg(test)]
mod tests;
