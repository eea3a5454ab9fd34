//! Implements serde's `Serializer` for [`CanonicalWriter`]: the encoding of each kind of value.

use std::fmt::{self, Display, Write as _};

use serde::Serialize;
use serde::ser::{self, Serializer};

use super::{
    BOOL, BYTES, CHAR, CanonicalWriter, Container, Content, F32, F32_NAN, JSON_NUMBER, JSON_RAW_VALUE, MAP,
    NEWTYPE_VARIANT, NONE, SEQUENCE, SOME, STR, STRUCT, STRUCT_VARIANT, TUPLE, TUPLE_STRUCT, TUPLE_VARIANT,
    UNIT, UNIT_STRUCT, UNIT_VARIANT, UNORDERED_SEQUENCE,
};
use crate::visit::{Problem, UNORDERED, VisitError, visit_elements, visit_fields};

/// Writes the text of a `Display` directly to the output.
struct Text<'g>(&'g mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Forwards an integer to the method for a wider one, because only the value counts.
macro_rules! as_wide {
    ($($method:ident($type:ty) = $wide:ident;)*) => {
        $(
            #[inline]
            fn $method(self, value: $type) -> Result<(), VisitError> {
                self.$wide(value.into())
            }
        )*
    };
}

impl<'g> Serializer for &'g mut CanonicalWriter {
    type Ok = ();
    type Error = VisitError;
    type SerializeSeq = Container<'g>;
    type SerializeTuple = Container<'g>;
    type SerializeTupleStruct = Container<'g>;
    type SerializeTupleVariant = Container<'g>;
    type SerializeMap = Container<'g>;
    type SerializeStruct = Container<'g>;
    type SerializeStructVariant = Container<'g>;

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), VisitError> {
        self.put([BOOL, u8::from(value)]);
        Ok(())
    }

    as_wide! {
        serialize_i8(i8) = serialize_i64;
        serialize_i16(i16) = serialize_i64;
        serialize_i32(i32) = serialize_i64;
        serialize_u8(u8) = serialize_u64;
        serialize_u16(u16) = serialize_u64;
        serialize_u32(u32) = serialize_u64;
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), VisitError> {
        self.put_integer(value < 0, value.unsigned_abs());
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), VisitError> {
        self.put_wide_integer(value < 0, value.unsigned_abs());
        Ok(())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), VisitError> {
        self.put_integer(false, value);
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<(), VisitError> {
        self.put_wide_integer(false, value);
        Ok(())
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<(), VisitError> {
        self.put([F32]);
        // Adding 0.0 turns -0.0 into 0.0 and changes no other number.
        self.put(if value.is_nan() { F32_NAN } else { (value + 0.0).to_bits() }.to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), VisitError> {
        self.put_f64(value);
        Ok(())
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<(), VisitError> {
        self.put([CHAR]);
        self.put(u32::from(value).to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), VisitError> {
        self.put_text(STR, value.as_bytes());
        Ok(())
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), VisitError> {
        self.put([STR]);
        let at = self.begin_item();
        write!(Text(&mut self.out), "{value}").map_err(ser::Error::custom)?;
        self.end_item(at);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), VisitError> {
        self.put_text(BYTES, value);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), VisitError> {
        self.put([NONE]);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), VisitError> {
        self.depth.enter_wrapper()?;
        let at = self.out.len();
        self.value(value)?;
        if matches!(self.out.get(at), Some(&(NONE | SOME))) {
            self.out.insert(at, SOME);
        }
        self.depth.leave_wrapper();
        Ok(())
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), VisitError> {
        self.put([UNIT]);
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, name: &'static str) -> Result<(), VisitError> {
        self.put_tag_and_name(UNIT_STRUCT, name);
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), VisitError> {
        self.put_tag_and_name(UNIT_VARIANT, name);
        self.put_name(variant);
        Ok(())
    }

    #[inline]
    fn serialize_newtype_struct<T>(self, name: &'static str, value: &T) -> Result<(), VisitError>
    where
        T: Serialize + ?Sized,
    {
        self.depth.enter_wrapper()?;
        if name == UNORDERED {
            let at = self.out.len();
            self.unordered = true;
            self.value(value)?;
            self.unordered = false;
            // This checks the tag and not the flag, because a leaf does not clear the flag, but a sequence inside a struct
            // does.
            if !matches!(self.out.get(at), Some(&(UNORDERED_SEQUENCE | NONE | SOME))) {
                self.has_failed = true;
                return Err(VisitError::new(Problem::NotASequence));
            }
        } else {
            self.value(value)?;
        }
        self.depth.leave_wrapper();
        Ok(())
    }

    #[inline]
    fn serialize_newtype_variant<T>(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), VisitError>
    where
        T: Serialize + ?Sized,
    {
        self.depth.enter_container()?;
        self.put_tag_and_name(NEWTYPE_VARIANT, name);
        self.put_name(variant);
        self.value(value)?;
        self.depth.leave_container();
        Ok(())
    }

    #[inline]
    fn serialize_seq(self, _: Option<usize>) -> Result<Container<'g>, VisitError> {
        self.sequence(SEQUENCE)
    }

    #[inline]
    fn serialize_tuple(self, _: usize) -> Result<Container<'g>, VisitError> {
        self.sequence(TUPLE)
    }

    #[inline]
    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Container<'g>, VisitError> {
        self.put_tag_and_name(TUPLE_STRUCT, name);
        self.container(Content::Ordered)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Container<'g>, VisitError> {
        self.put_tag_and_name(TUPLE_VARIANT, name);
        self.put_name(variant);
        self.container(Content::Ordered)
    }

    #[inline]
    fn serialize_map(self, _: Option<usize>) -> Result<Container<'g>, VisitError> {
        self.put([MAP]);
        self.container(Content::Sorted)
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Container<'g>, VisitError> {
        if name == JSON_NUMBER {
            return self.container(Content::Number);
        }
        if name == JSON_RAW_VALUE {
            return Err(VisitError::new(Problem::RawValue));
        }
        self.put_tag_and_name(STRUCT, name);
        self.container(Content::Sorted)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Container<'g>, VisitError> {
        self.put_tag_and_name(STRUCT_VARIANT, name);
        self.put_name(variant);
        self.container(Content::Sorted)
    }
}

visit_elements!([] Container<'_>, SerializeSeq, serialize_element);
visit_elements!([] Container<'_>, SerializeTuple, serialize_element);
visit_elements!([] Container<'_>, SerializeTupleStruct, serialize_field);
visit_elements!([] Container<'_>, SerializeTupleVariant, serialize_field);
visit_fields!([] Container<'_>, SerializeStruct);
visit_fields!([] Container<'_>, SerializeStructVariant);

impl ser::SerializeMap for Container<'_> {
    type Ok = ();
    type Error = VisitError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), VisitError> {
        if self.key_at.is_some() {
            self.writer.has_failed = true;
            return Err(VisitError::new(Problem::Inconsistent));
        }
        self.key_at = Some(self.writer.begin_item());
        self.writer.value(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        let Some(at) = self.key_at.take() else {
            self.writer.has_failed = true;
            return Err(VisitError::new(Problem::Inconsistent));
        };
        self.writer.value(value)?;
        self.writer.end_item(at);
        self.count += 1;
        Ok(())
    }

    #[inline]
    fn end(self) -> Result<(), VisitError> {
        if self.key_at.is_some() {
            self.writer.has_failed = true;
            return Err(VisitError::new(Problem::Inconsistent));
        }
        self.finish()
    }
}
