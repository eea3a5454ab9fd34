//! Implements serde's `Serializer` for [`Walk`]: what each kind of value mixes into the shape and the leaves.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{self, Serializer};

use super::{Elements, Fields, Kind, Walk};
use crate::visit::{VisitError, visit_elements, visit_fields};

/// Implements the methods for leaves whose value fits into one word.
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
    type SerializeTuple = Fields<'w, LEAVES>;
    type SerializeTupleStruct = Fields<'w, LEAVES>;
    type SerializeTupleVariant = Fields<'w, LEAVES>;
    type SerializeMap = Elements<'w, LEAVES>;
    type SerializeStruct = Fields<'w, LEAVES>;
    type SerializeStructVariant = Fields<'w, LEAVES>;

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
        // The value is not formatted, because the shape does not depend on the text.
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
    fn serialize_tuple(self, len: usize) -> Result<Fields<'w, LEAVES>, VisitError> {
        self.kind(Kind::Tuple);
        self.fields(len)
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Fields<'w, LEAVES>, VisitError> {
        self.serialize_tuple(len)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Fields<'w, LEAVES>, VisitError> {
        self.variant(Kind::TupleVariant, index, variant);
        self.fields(len)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Elements<'w, LEAVES>, VisitError> {
        self.elements(Kind::Map, len)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Fields<'w, LEAVES>, VisitError> {
        self.kind(Kind::Struct);
        self.fields(len)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Fields<'w, LEAVES>, VisitError> {
        self.variant(Kind::StructVariant, index, variant);
        self.fields(len)
    }
}

visit_elements!([const LEAVES: bool] Elements<'_, LEAVES>, SerializeSeq, serialize_element);
visit_elements!([const LEAVES: bool] Fields<'_, LEAVES>, SerializeTuple, serialize_element);
visit_elements!([const LEAVES: bool] Fields<'_, LEAVES>, SerializeTupleStruct, serialize_field);
visit_elements!([const LEAVES: bool] Fields<'_, LEAVES>, SerializeTupleVariant, serialize_field);
visit_fields!([const LEAVES: bool] Fields<'_, LEAVES>, SerializeStruct);
visit_fields!([const LEAVES: bool] Fields<'_, LEAVES>, SerializeStructVariant);

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
