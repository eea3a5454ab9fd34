//! Tests the limits with a forged deserializer that claims any length, and with serde's own deserializers.

use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, SeqDeserializer, UnitDeserializer};
use serde::{Deserialize, forward_to_deserialize_any};

use super::*;

/// An endless sequence or map with the largest possible size hint.
struct Forged;

impl<'de> SeqAccess<'de> for Forged {
    type Error = ValueError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ValueError> {
        seed.deserialize(UnitDeserializer::new()).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(usize::MAX)
    }
}

impl<'de> MapAccess<'de> for Forged {
    type Error = ValueError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ValueError> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        seed.deserialize(UnitDeserializer::new())
    }

    fn size_hint(&self) -> Option<usize> {
        Some(usize::MAX)
    }
}

impl<'de> Deserializer<'de> for Forged {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_seq(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_map(self)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_borrowed_str("borrowed")
    }

    fn deserialize_string<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ValueError> {
        Err(ValueError::custom("a string was allocated"))
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_borrowed_bytes(b"borrowed")
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ValueError> {
        Err(ValueError::custom("a buffer was allocated"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char option unit unit_struct newtype_struct seq tuple
        tuple_struct struct enum identifier ignored_any
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Counts the elements of a sequence or map and keeps its size hint.
struct Counting<'c> {
    count: &'c mut u64,
    hint: &'c mut Option<usize>,
}

impl<'de> Visitor<'de> for Counting<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        *self.hint = elements.size_hint();
        while elements.next_element::<()>()?.is_some() {
            *self.count += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        *self.hint = entries.size_hint();
        while entries.next_entry::<(), ()>()?.is_some() {
            *self.count += 2;
        }
        Ok(())
    }
}

#[test]
fn the_budget_ends_an_endless_sequence_and_caps_its_hint() {
    for bytes in [0, 1, 1_000] {
        for map in [false, true] {
            let (mut count, mut hint) = (0, None);
            let visitor = Counting { count: &mut count, hint: &mut hint };
            let budget = Budget::new(bytes);
            let forged = Limited::new(Forged, &budget);
            let ended = if map { forged.deserialize_map(visitor) } else { forged.deserialize_seq(visitor) };
            assert!(ended.unwrap_err().to_string().contains("more values"));
            assert_eq!(count, 128 * (bytes as u64 + 1024));
            assert_eq!(hint, Some(bytes));
        }
    }
}

#[test]
fn a_size_hint_is_capped_at_the_remaining_budget() {
    let budget = Budget::new(1_000_000);
    budget.values.set(7);
    let (mut count, mut hint) = (0, None);
    let visitor = Counting { count: &mut count, hint: &mut hint };
    assert!(Limited::new(Forged, &budget).deserialize_seq(visitor).is_err());
    assert_eq!((count, hint), (7, Some(7)));
}

#[test]
fn the_budget_of_the_largest_input_does_not_overflow() {
    assert_eq!(Budget::new(usize::MAX).values.get(), u64::MAX);
}

#[test]
fn strings_and_buffers_are_requested_as_borrowed() {
    let budget = Budget::new(0);
    assert_eq!(String::deserialize(Limited::new(Forged, &budget)).unwrap(), "borrowed");
    assert_eq!(Box::<str>::deserialize(Limited::new(Forged, &budget)).unwrap(), "borrowed".into());
    let buffer = std::ffi::CString::deserialize(Limited::new(Forged, &budget)).unwrap();
    assert_eq!(buffer.to_bytes(), b"borrowed");
}

#[test]
fn is_human_readable_is_forwarded() {
    let budget = Budget::new(0);
    assert!(!Limited::new(Forged, &budget).is_human_readable());
    let readable: SeqDeserializer<_, ValueError> = SeqDeserializer::new(std::iter::empty::<u8>());
    assert!(Limited::new(readable, &budget).is_human_readable());
}

#[test]
fn errors_of_the_format_are_forwarded() {
    let budget = Budget::new(0);
    let text: serde::de::value::StrDeserializer<'_, ValueError> = "text".into_deserializer();
    let error = u8::deserialize(Limited::new(text, &budget)).unwrap_err();
    assert_eq!(error.to_string(), "invalid type: string \"text\", expected u8");
}
