//! Decoding with limits, so that hostile or damaged bytes cannot exhaust the stack or the memory, or take unlimited time.
//!
//! The codecs of this crate decode through [`Limited`], which wraps the format's deserializer and everything that it passes
//! on. It forwards every call and adds three limits:
//!
//! - **Depth.** A container is a sequence, tuple, map or struct, or the content of a variant. A wrapper is a `Some` or a
//!   newtype struct. At most [`MAX_DEPTH`] of each may be nested, the same limit as when serialising. They are counted where
//!   the format passes a value's content to the type, so a leaf, `None` and a unit variant add no level. Wrappers are counted
//!   separately, so that a linked list of `Option<Box<Node>>` can have as many nodes as lists can be nested.
//! - **A budget of values**, computed from the number of bytes. Without it, a forged length of elements without bytes, such
//!   as `()`, would keep the decoder busy for years. A value whose leaves take at least a byte each cannot exceed the budget,
//!   because at most 128 containers lead to one leaf.
//! - **No allocation by a claimed length.** A size hint is capped at the number of bytes. Strings and byte buffers are
//!   requested as borrowed ones: a format that decodes from a slice then checks the length against the slice, instead of
//!   allocating a buffer of that length first. Serde requires visitors of owned strings to accept borrowed ones.
//!
//! A type that buffers, such as an untagged enum, decodes its buffer through serde's own deserializer, which has no
//! limits. The buffer itself was filled within them.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

#[cfg(doc)]
use crate::visit::MAX_DEPTH;
use crate::visit::{Depth, TOO_DEEP};

#[cfg(test)]
mod tests;

/// The maximum number of values that may be decoded for each byte.
const VALUES_PER_BYTE: u64 = 128;

/// Bytes that are added to the input when its budget is computed, so that a short input can have elements without bytes.
const EXTRA_BYTES: u64 = 1024;

/// The limits for decoding one input.
#[derive(Debug)]
pub(super) struct Budget {
    /// The number of values that may still be decoded.
    values: Cell<u64>,
    /// The length of the input.
    bytes: usize,
}

impl Budget {
    /// The budget for decoding an input of `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Budget {
        let values = (bytes as u64).saturating_add(EXTRA_BYTES).saturating_mul(VALUES_PER_BYTE);
        Budget { values: Cell::new(values), bytes }
    }

    #[inline]
    fn spend<E: Error>(&self) -> Result<(), E> {
        match self.values.get().checked_sub(1) {
            Some(left) => {
                self.values.set(left);
                Ok(())
            }
            None => Err(too_many()),
        }
    }
}

const TOO_MANY: &str = "more values than the bytes can hold";

/// Whether the text is that of an error of a limit of this module.
pub(super) fn is_limit(text: &str) -> bool {
    text.starts_with(TOO_MANY) || text.starts_with(TOO_DEEP)
}

#[cold]
fn too_many<E: Error>() -> E {
    E::custom(TOO_MANY)
}

/// A deserializer, visitor, seed or access of serde, limited by the budget and by its depth.
#[derive(Debug)]
pub(super) struct Limited<'b, I> {
    inner: I,
    budget: &'b Budget,
    depth: Depth,
}

impl<'b, I> Limited<'b, I> {
    /// Wraps the outermost deserializer.
    pub(super) fn new(inner: I, budget: &'b Budget) -> Limited<'b, I> {
        Limited { inner, budget, depth: Depth::default() }
    }

    /// Wraps `other` with the same budget and depth.
    #[inline]
    fn with<J>(&self, other: J) -> Limited<'b, J> {
        Limited { inner: other, budget: self.budget, depth: self.depth }
    }

    #[inline]
    fn enter_container<E: Error>(mut self) -> Result<Limited<'b, I>, E> {
        self.depth.enter_container().map_err(E::custom)?;
        Ok(self)
    }

    #[inline]
    fn enter_wrapper<E: Error>(mut self) -> Result<Limited<'b, I>, E> {
        self.depth.enter_wrapper().map_err(E::custom)?;
        Ok(self)
    }

    /// Caps a size hint at the number of bytes of the input and at the remaining budget.
    #[inline]
    fn cap(&self, hint: Option<usize>) -> Option<usize> {
        let left = usize::try_from(self.budget.values.get()).unwrap_or(usize::MAX);
        hint.map(|claimed| claimed.min(self.budget.bytes).min(left))
    }
}

/// Forwards these methods with a limited visitor. Owned strings and buffers are requested as borrowed ones: see the module.
macro_rules! forward {
    ($($method:ident($($name:ident: $kind:ty),*) = $as:ident;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $kind,)* visitor: V) -> Result<V::Value, Self::Error> {
            let visitor = self.with(visitor);
            self.inner.$as($($name,)* visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Limited<'_, D> {
    type Error = D::Error;

    forward! {
        deserialize_any() = deserialize_any;
        deserialize_bool() = deserialize_bool;
        deserialize_i8() = deserialize_i8;
        deserialize_i16() = deserialize_i16;
        deserialize_i32() = deserialize_i32;
        deserialize_i64() = deserialize_i64;
        deserialize_i128() = deserialize_i128;
        deserialize_u8() = deserialize_u8;
        deserialize_u16() = deserialize_u16;
        deserialize_u32() = deserialize_u32;
        deserialize_u64() = deserialize_u64;
        deserialize_u128() = deserialize_u128;
        deserialize_f32() = deserialize_f32;
        deserialize_f64() = deserialize_f64;
        deserialize_char() = deserialize_char;
        deserialize_str() = deserialize_str;
        deserialize_string() = deserialize_str;
        deserialize_bytes() = deserialize_bytes;
        deserialize_byte_buf() = deserialize_bytes;
        deserialize_option() = deserialize_option;
        deserialize_unit() = deserialize_unit;
        deserialize_unit_struct(name: &'static str) = deserialize_unit_struct;
        deserialize_newtype_struct(name: &'static str) = deserialize_newtype_struct;
        deserialize_seq() = deserialize_seq;
        deserialize_tuple(len: usize) = deserialize_tuple;
        deserialize_tuple_struct(name: &'static str, len: usize) = deserialize_tuple_struct;
        deserialize_map() = deserialize_map;
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) = deserialize_struct;
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) = deserialize_enum;
        deserialize_identifier() = deserialize_identifier;
        deserialize_ignored_any() = deserialize_ignored_any;
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Forwards the visits of these leaves.
macro_rules! leaves {
    ($($method:ident($kind:ty);)*) => {$(
        #[inline]
        fn $method<E: Error>(self, value: $kind) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Limited<'_, V> {
    type Value = V::Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(out)
    }

    leaves! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_f64(f64);
        visit_char(char);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let within = self.enter_wrapper()?;
        let deserializer = within.with(deserializer);
        within.inner.visit_some(deserializer)
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let within = self.enter_wrapper()?;
        let deserializer = within.with(deserializer);
        within.inner.visit_newtype_struct(deserializer)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<V::Value, A::Error> {
        let within = self.enter_container()?;
        let elements = within.with(elements);
        within.inner.visit_seq(elements)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let within = self.enter_container()?;
        let entries = within.with(entries);
        within.inner.visit_map(entries)
    }

    // This adds no level, because the content of the variant does.
    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let variant = self.with(variant);
        self.inner.visit_enum(variant)
    }
}

// Each value in a container is decoded through a seed, so this is where the budget is spent.
impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Limited<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.budget.spend()?;
        let deserializer = self.with(deserializer);
        self.inner.deserialize(deserializer)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.with(seed);
        self.inner.next_element_seed(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.cap(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.with(seed);
        self.inner.next_key_seed(seed)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.next_value_seed(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.cap(self.inner.size_hint())
    }
}

impl<'b, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Limited<'b, A> {
    type Error = A::Error;
    type Variant = Limited<'b, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let Limited { inner, budget, depth } = self;
        let (name, variant) = inner.variant_seed(Limited { inner: seed, budget, depth })?;
        Ok((name, Limited { inner: variant, budget, depth }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let within = self.enter_container()?;
        let seed = within.with(seed);
        within.inner.newtype_variant_seed(seed)
    }

    // These two methods add no level, because the format visits the content as a sequence or a map, which adds one.
    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.tuple_variant(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}
