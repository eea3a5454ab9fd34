//! The canonical bytes of a typed request: the input of its fingerprint.
//!
//! Two requests have the same canonical bytes if and only if they mean the same. The bytes do not depend on a codec. They
//! are hashed with the secret of the file ([`KeyHasher::fingerprint`](crate::hash::KeyHasher::fingerprint)) and not stored.
//! The hash is stored, so the encoding below is part of the file format: the golden table in the tests pins it.
//! [`canonical`] is the only entry point, and `operation` its only caller.
//!
//! # What means the same
//!
//! - The order of a struct's fields and of a map's entries is ignored. The order of a sequence counts, except under
//!   [`unordered`](crate::unordered).
//! - Integers are compared by value: `7u8` equals `7i64`. An `f32` differs from an `f64`, and both differ from an integer.
//!   -0.0 equals 0.0, and all NaNs are equal.
//! - A newtype struct equals its content.
//! - `Some(x)` equals `x`, so a field may become optional. Only `Some(None)` differs from `None`, because within one type
//!   different values must stay different.
//! - A skipped field is absent. A field that is `None` is present: a request that clears a field differs from one that
//!   leaves it alone. An optional field that is added later needs `skip_serializing_if` to keep old requests equal.
//!
//! Everything else counts: the names of structs, enums, variants and fields, the kind of a leaf, the number of elements.
//! The index of a variant does not count. Neither do the lengths that `Serialize` declares, because elements are counted.
//!
//! # The encoding
//!
//! All numbers are little-endian. A *count* or *length* has 4 bytes. A *name* is its [mix](crate::visit::mix_name), 8
//! bytes. An *item* is a length and that many bytes. *Sorted* items are in the order of their bytes, without the length.
//!
//! | tag | value | followed by |
//! |---|---|---|
//! | 1 | unit | |
//! | 2 | bool | 0 or 1, 1 byte |
//! | 3, 4 | integer of magnitude below 2^64: not negative, negative | magnitude, 8 bytes |
//! | 5, 6 | any other integer: not negative, negative | magnitude, 16 bytes |
//! | 7 | f32 | bits, 4 bytes; -0.0 as 0, NaN as 7fc00000 |
//! | 8 | f64 | bits, 8 bytes; -0.0 as 0, NaN as 7ff8000000000000 |
//! | 9 | char | scalar value, 4 bytes |
//! | 10 | str | length, UTF-8 |
//! | 11 | bytes | length, bytes |
//! | 12 | none | |
//! | 13 | some, only around a value with tag 12 or 13 | the value |
//! | 14 | sequence | count, values |
//! | 15 | unordered sequence | count, sorted items: a value each |
//! | 16 | map | count, sorted items: a key and a value each |
//! | 17 | tuple or array | count, values |
//! | 18 | unit struct | name |
//! | 19 | tuple struct | name, count, values |
//! | 20 | struct | name, count, sorted items: the name of a field and its value each |
//! | 21 | unit variant | names of enum and variant |
//! | 22 | newtype variant | both names, value |
//! | 23 | tuple variant | both names, count, values |
//! | 24 | struct variant | both names, count, sorted items as in a struct |
//! | 25, 26 | JSON integer of magnitude 2^128 or more: not negative, negative | length, ASCII digits without leading zeros |
//! | 27, 28 | JSON number that is not the shortest decimal form of an f64: not negative, negative | exponent of ten, 8 bytes; length, ASCII digits without leading and trailing zeros |
//!
//! No encoding is a prefix of another, so two values with different meanings have the same bytes only if two names have
//! the same mix.
//!
//! With its feature `arbitrary_precision`, serde_json serialises a `Number` as a struct with a reserved name. Such a number
//! is encoded as it would be without the feature, if that loses nothing: an integer of magnitude below 2^128 as that integer;
//! a number with a point or an exponent as the f64 whose shortest decimal form it is; `-0` as the f64 0. All other such
//! numbers have the tags 25 to 28.

mod number;
mod serializer;

use std::cmp::Ordering;

use serde::Serialize;

use number::put_json_number;

use crate::visit::{Depth, Problem, VisitError, mix_name};

const UNIT: u8 = 1;
const BOOL: u8 = 2;
const NON_NEGATIVE: u8 = 3;
const NEGATIVE: u8 = 4;
const WIDE_NON_NEGATIVE: u8 = 5;
const WIDE_NEGATIVE: u8 = 6;
const F32: u8 = 7;
const F64: u8 = 8;
const CHAR: u8 = 9;
const STR: u8 = 10;
const BYTES: u8 = 11;
const NONE: u8 = 12;
const SOME: u8 = 13;
const SEQUENCE: u8 = 14;
const UNORDERED_SEQUENCE: u8 = 15;
const MAP: u8 = 16;
const TUPLE: u8 = 17;
const UNIT_STRUCT: u8 = 18;
const TUPLE_STRUCT: u8 = 19;
const STRUCT: u8 = 20;
const UNIT_VARIANT: u8 = 21;
const NEWTYPE_VARIANT: u8 = 22;
const TUPLE_VARIANT: u8 = 23;
const STRUCT_VARIANT: u8 = 24;
const HUGE_NON_NEGATIVE: u8 = 25;
const HUGE_NEGATIVE: u8 = 26;
const DECIMAL_NON_NEGATIVE: u8 = 27;
const DECIMAL_NEGATIVE: u8 = 28;

const F32_NAN: u32 = 0x7FC0_0000;
const F64_NAN: u64 = 0x7FF8_0000_0000_0000;

/// The capacity that a usual request and its sorting need, so that the buffer does not grow.
const USUAL_BYTES: usize = 1_000;

/// The size of a count or a length, in bytes.
const LENGTH: usize = 4;

/// The reserved struct names by which serde_json passes values that serde's data model lacks.
const JSON_NUMBER: &str = "$serde_json::private::Number";
const JSON_RAW_VALUE: &str = "$serde_json::private::RawValue";

/// Replaces the content of `out` with the canonical bytes of `request`.
///
/// # Errors
///
/// The request is nested too deep, its canonical bytes are 4 GiB or more, it contains a `RawValue`, or one of its `Serialize`
/// implementations fails. After an error, `out` contains a part of the bytes.
pub(crate) fn canonical<T: Serialize + ?Sized>(request: &T, out: &mut Vec<u8>) -> Result<(), VisitError> {
    out.clear();
    out.reserve(USUAL_BYTES);
    let mut writer = CanonicalWriter { out: std::mem::take(out), ..CanonicalWriter::default() };
    let outcome = request.serialize(&mut writer);
    let has_failed = writer.has_failed;
    *out = writer.out;
    outcome?;
    if has_failed {
        return Err(VisitError::new(Problem::Inconsistent));
    }
    // Every length and count in the bytes is at most this length, so this check proves that none of them was truncated.
    length(out.len()).map(|_| ())
}

fn length(length: usize) -> Result<u32, VisitError> {
    u32::try_from(length).map_err(|_| VisitError::new(Problem::TooLarge))
}

/// A serializer that appends the canonical bytes of a value to `out`.
#[derive(Debug, Default)]
struct CanonicalWriter {
    out: Vec<u8>,
    depth: Depth,
    /// Whether the next sequence is unordered.
    unordered: bool,
    /// Whether a part of the value failed. If so, the whole walk must fail, even if the `Serialize` implementation around
    /// that part ignores the error.
    has_failed: bool,
}

impl CanonicalWriter {
    /// Starts a sequence: an unordered one after [`unordered`](crate::unordered), otherwise one with this tag.
    #[inline(always)]
    fn sequence(&mut self, tag: u8) -> Result<Container<'_>, VisitError> {
        if std::mem::take(&mut self.unordered) {
            self.put([UNORDERED_SEQUENCE]);
            return self.container(Content::Sorted);
        }
        self.put([tag]);
        self.container(Content::Ordered)
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out.extend_from_slice(&bytes);
    }

    #[inline(always)]
    fn put_name(&mut self, name: &'static str) {
        self.put(mix_name(name).to_le_bytes());
    }

    /// Writes a tag and a name with one call to the vector.
    #[inline(always)]
    fn put_tag_and_name(&mut self, tag: u8, name: &'static str) {
        let mut bytes = [tag; 9];
        bytes[1..].copy_from_slice(&mix_name(name).to_le_bytes());
        self.put(bytes);
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the walk fails at its end if it was cut off")]
    fn put_text(&mut self, tag: u8, text: &[u8]) {
        let mut head = [tag; 1 + LENGTH];
        head[1..].copy_from_slice(&(text.len() as u32).to_le_bytes());
        self.out.reserve(head.len() + text.len());
        self.put(head);
        self.out.extend_from_slice(text);
    }

    #[inline(always)]
    fn put_integer(&mut self, negative: bool, magnitude: u64) {
        let mut bytes = [if negative { NEGATIVE } else { NON_NEGATIVE }; 9];
        bytes[1..].copy_from_slice(&magnitude.to_le_bytes());
        self.put(bytes);
    }

    fn put_wide_integer(&mut self, negative: bool, magnitude: u128) {
        if let Ok(magnitude) = u64::try_from(magnitude) {
            return self.put_integer(negative, magnitude);
        }
        self.put([if negative { WIDE_NEGATIVE } else { WIDE_NON_NEGATIVE }]);
        self.put(magnitude.to_le_bytes());
    }

    fn put_f64(&mut self, number: f64) {
        self.put([F64]);
        self.put(if number.is_nan() { F64_NAN } else { (number + 0.0).to_bits() }.to_le_bytes());
    }

    /// Writes a length or count at `at`, where [`LENGTH`] bytes were reserved for it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the walk fails at its end if it was cut off")]
    fn fill_in(&mut self, at: usize, length: usize) {
        self.out[at..at + LENGTH].copy_from_slice(&(length as u32).to_le_bytes());
    }

    /// Starts an item: reserves the bytes of its length and returns their position.
    #[inline(always)]
    fn begin_item(&mut self) -> usize {
        let at = self.out.len();
        self.put([0; LENGTH]);
        at
    }

    #[inline(always)]
    fn end_item(&mut self, at: usize) {
        self.fill_in(at, self.out.len() - at - LENGTH);
    }

    #[inline(always)]
    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        let written = value.serialize(&mut *self);
        if written.is_err() {
            self.has_failed = true;
        }
        written
    }

    /// Starts a container whose tag and names have been written.
    #[inline(always)]
    fn container(&mut self, content: Content) -> Result<Container<'_>, VisitError> {
        self.depth.enter_container()?;
        let count_at = self.begin_item();
        Ok(Container { writer: self, count_at, count: 0, content, key_at: None })
    }
}

/// The kind of a container's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Values, kept in order.
    Ordered,
    /// Items, sorted at the end.
    Sorted,
    /// The text of a [`JSON_NUMBER`].
    Number,
}

/// A container that is being written.
#[derive(Debug)]
struct Container<'g> {
    writer: &'g mut CanonicalWriter,
    count_at: usize,
    count: usize,
    content: Content,
    /// The start of a map's entry whose key has been written and whose value has not.
    key_at: Option<usize>,
}

impl Container<'_> {
    /// Ignores a skipped field: it is absent.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "the containers of `shape` need it, and share the macros")]
    fn skip(&self) {}

    #[inline(always)]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        self.count += 1;
        if self.content == Content::Sorted {
            let at = self.writer.begin_item();
            self.writer.value(value)?;
            self.writer.end_item(at);
            return Ok(());
        }
        self.writer.value(value)
    }

    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), VisitError> {
        self.count += 1;
        if self.content == Content::Number {
            return self.writer.value(value);
        }
        let at = self.writer.out.len();
        let mut head = [0; LENGTH + 8];
        head[LENGTH..].copy_from_slice(&mix_name(name).to_le_bytes());
        self.writer.put(head);
        self.writer.value(value)?;
        self.writer.end_item(at);
        Ok(())
    }

    #[inline(always)]
    fn finish(self) -> Result<(), VisitError> {
        let body = self.count_at + LENGTH;
        self.writer.depth.leave_container();
        self.writer.fill_in(self.count_at, self.count);
        match self.content {
            Content::Ordered => Ok(()),
            Content::Sorted => sort_items(&mut self.writer.out, body, self.count),
            Content::Number => put_json_number(self.writer, self.count_at),
        }
    }
}

/// The position of an item, for sorting.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    /// The first 8 bytes of the content, as a number that compares as those bytes do. For a field it is the mix of its name,
    /// so two fields rarely need a further comparison.
    prefix: u64,
    /// The position of the item's length, from the first item.
    at: u32,
    /// The position just past the item.
    end: u32,
}

/// Sorts the `count` items in `out` from `body` to the end.
///
/// Not inlined, because its array would otherwise be on the stack once for each level of a deep value.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "all offsets are below the length that is checked first")]
fn sort_items(out: &mut Vec<u8>, body: usize, count: usize) -> Result<(), VisitError> {
    /// The maximum number of items that are sorted without allocating.
    const MAX_ON_STACK: usize = 16;
    length(out.len() - body)?;
    let mut few = [Span::default(); MAX_ON_STACK];
    let mut many = Vec::new();
    let spans = if count <= MAX_ON_STACK {
        &mut few[..count]
    } else {
        many.resize(count, Span::default());
        &mut many[..]
    };
    let items = &out[body..];
    let content = |span: &Span| &items[span.at as usize + LENGTH..span.end as usize];
    let mut at = 0;
    for span in spans.iter_mut() {
        let mut length = [0; LENGTH];
        length.copy_from_slice(&items[at..at + LENGTH]);
        let end = at + LENGTH + u32::from_le_bytes(length) as usize;
        *span = Span { prefix: 0, at: at as u32, end: end as u32 };
        span.prefix = prefix(content(span));
        at = end;
    }
    let is_in_order = |one: &Span, other: &Span| match one.prefix.cmp(&other.prefix) {
        Ordering::Equal => content(one) <= content(other),
        order => order.is_lt(),
    };
    if count <= MAX_ON_STACK {
        // An insertion sort, because for so few items the standard library's sort takes longer.
        for unsorted in 1..count {
            let mut at = unsorted;
            while at > 0 && !is_in_order(&spans[at - 1], &spans[at]) {
                spans.swap(at - 1, at);
                at -= 1;
            }
        }
    } else {
        spans.sort_unstable_by(|one, other| {
            one.prefix.cmp(&other.prefix).then_with(|| content(one).cmp(content(other)))
        });
    }
    arrange(out, body, spans);
    Ok(())
}

/// Moves the items of `out`, from `body` to the end, into the order of `spans`.
#[inline(always)]
fn arrange(out: &mut Vec<u8>, body: usize, spans: &[Span]) {
    /// Items are copied in chunks of this many bytes, because a call of `memcpy` for each costs more. The excess of an item's
    /// last chunk is overwritten by the next item.
    const CHUNK: usize = 32;
    let end = out.len();
    let length = end - body;
    out.resize(end + length + 2 * CHUNK, 0);
    let (items, arranged) = out[body..].split_at_mut(length + CHUNK);
    let mut to = 0;
    for span in spans {
        let (from, length) = (span.at as usize, (span.end - span.at) as usize);
        for at in (0..length).step_by(CHUNK) {
            arranged[to + at..][..CHUNK].copy_from_slice(&items[from + at..][..CHUNK]);
        }
        to += length;
    }
    items[..length].copy_from_slice(&arranged[..length]);
    out.truncate(end);
}

/// Returns the first 8 bytes as a big-endian number, padded with zeros. Such numbers compare as those bytes do.
#[inline(always)]
fn prefix(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    let mut first = [0; 8];
    first[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests;
