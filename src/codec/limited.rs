//! Decoding with limits: what a codec decodes through, so that no bytes exhaust the stack, the memory or the time.
//!
//! [`Limited`] stands between a type's `Deserialize` and the format's deserializer. It passes everything on and adds:
//!
//! - **A depth.** A container is a sequence, tuple, map or struct, or the content of a variant; a wrapper is a `Some` or
//!   a newtype struct. At most [`MAX_DEPTH`] of each may be nested in one another, as when they were serialised. Both
//!   are counted where the format hands a value's content to the type, so a leaf, `None` and a unit variant are no
//!   level. Wrappers have a count of their own, so that a list of `Option<Box<Node>>` may be as long as nested lists are
//!   deep.
//! - **A budget of values**, from the number of bytes to read. An element without bytes, such as `()`, would let a forged
//!   length keep the decoder busy for years. A value whose leaves take a byte each never runs out: at most 128
//!   containers lead to one leaf.
//! - **No allocation by claim.** A size hint is at most the number of bytes to read. Strings and byte buffers are asked
//!   for as borrowed ones: a format that decodes a slice then refuses a length beyond its end, where it would have
//!   allocated a buffer of that length first. A visitor of owned strings takes borrowed ones too, says serde.
//!
//! A type that buffers (an untagged enum) replays the buffer through serde's own deserializer, which has no limits; the
//! buffer was filled within them.

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

/// How many values may be visited for each byte.
const VALUES_PER_BYTE: u64 = 128;

/// How many bytes more than there are count for the budget, so that a short input may have elements without bytes.
const EXTRA_BYTES: u64 = 1024;

/// What one decoding has left.
#[derive(Debug)]
pub(super) struct Budget {
    values: Cell<u64>,
    /// The number of bytes to read.
    bytes: usize,
}

impl Budget {
    /// The budget for reading `bytes` bytes.
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

const TOO_MANY: &str = "more values than so many bytes can hold";

/// Whether the text is that of an error made here.
pub(super) fn is_limit(text: &str) -> bool {
    text.starts_with(TOO_MANY) || text.starts_with(TOO_DEEP)
}

#[cold]
fn too_many<E: Error>() -> E {
    E::custom(TOO_MANY)
}

/// A deserializer, visitor, seed or access of `serde`, with the limits of where it stands.
#[derive(Debug)]
pub(super) struct Limited<'b, I> {
    inner: I,
    budget: &'b Budget,
    depth: Depth,
}

impl<'b, I> Limited<'b, I> {
    /// The outermost deserializer.
    pub(super) fn new(inner: I, budget: &'b Budget) -> Limited<'b, I> {
        Limited { inner, budget, depth: Depth::default() }
    }

    /// `other` with the limits of this place.
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

    /// A hint of at most as many elements as there are bytes.
    #[inline]
    fn cap(&self, hint: Option<usize>) -> Option<usize> {
        let left = usize::try_from(self.budget.values.get()).unwrap_or(usize::MAX);
        hint.map(|claimed| claimed.min(self.budget.bytes).min(left))
    }
}

/// Passes these methods on, with the visitor limited.
macro_rules! pass_on {
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

    pass_on! {
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

/// Passes these leaves on.
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

    // The content of the variant is the level.
    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let variant = self.with(variant);
        self.inner.visit_enum(variant)
    }
}

// Each value in a container comes through a seed, so this is where the budget is spent.
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

    // The format visits both as a sequence or a map, and that is the level.
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
