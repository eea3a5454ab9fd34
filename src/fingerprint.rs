//! The canonical bytes of a typed request, of which its fingerprint is made.
//!
//! Two requests have the same canonical bytes if and only if they mean the same. The bytes depend on no codec. They are
//! hashed once, with the secret of the file ([`KeyHasher::fingerprint`](crate::key::KeyHasher::fingerprint)), and are
//! not stored. The hash is stored: the form below is part of the file format, and the golden table in the tests pins it.
//! [`canonical`] is the only entry; typed operations call it.
//!
//! # What is the same
//!
//! - The order of a struct's fields and of a map's entries does not matter. The order of a sequence does, except under
//!   [`unordered`](crate::unordered).
//! - An integer is its value: `7u8` is `7i64`. `f32` and `f64` are different from each other and from integers. -0.0 is
//!   0.0, and all NaNs are one.
//! - A newtype struct is its content.
//! - `Some(x)` is `x`, so a field may become optional. It is marked only where that would be ambiguous: `Some(None)` is not
//!   `None`. Within one type, different values always stay different.
//! - A skipped field is absent. A field that is `None` is present: a request that clears a field is not one that leaves
//!   it alone. An optional field that is added later needs `skip_serializing_if` to leave old requests as they were.
//!
//! Everything else makes a difference: the names of structs, enums, variants and fields, the kind of a leaf, the number of
//! elements. The index of a variant does not, and neither do the lengths that `Serialize` declares: elements are counted.
//!
//! # The form
//!
//! All numbers are little-endian. A *count* or *length* is 4 bytes. A *name* is 8 bytes, its
//! [mix](crate::visit::mix_name). An *item* is a length and that many bytes. *Sorted* items stand in the order of their
//! bytes, the length left aside.
//!
//! | tag | value | then |
//! |---|---|---|
//! | 1 | unit | |
//! | 2 | bool | 0 or 1, 1 byte |
//! | 3, 4 | integer of less than 2^64: not negative, negative | magnitude, 8 bytes |
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
//! | 25, 26 | JSON integer of 2^128 or more: not negative, negative | length, ASCII digits without leading zeros |
//! | 27, 28 | JSON number that no f64 stands for: not negative, negative | exponent of ten, 8 bytes; length, ASCII digits without leading and trailing zeros |
//!
//! No form is the beginning of another, so two values share bytes only if two names share a mix.
//!
//! A `serde_json::Number` gives itself away by the name of its struct when the feature `arbitrary_precision` is on. It is
//! written as what it would be without the feature where that loses nothing: an integer of 128 bits as one; a number with
//! a point or exponent as the f64 whose shortest decimal form it is; `-0` as the f64 0. Tags 25 to 28 are for the rest.

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

/// Room for a usual request and for sorting it, so that its buffer does not grow.
const USUAL_BYTES: usize = 1_000;

/// Bytes of a count and of a length.
const LENGTH: usize = 4;

/// The names of the structs by which serde_json passes what serde has no word for.
const JSON_NUMBER: &str = "$serde_json::private::Number";
const JSON_RAW_VALUE: &str = "$serde_json::private::RawValue";

/// Replaces the content of `out` by the canonical bytes of `request`.
///
/// # Errors
///
/// The request is nested too deep, has 4 GiB or more, contains a `RawValue`, or one of its `Serialize` implementations
/// fails. `out` is then left with a part of the bytes.
pub(crate) fn canonical<T: Serialize + ?Sized>(request: &T, out: &mut Vec<u8>) -> Result<(), VisitError> {
    out.clear();
    out.reserve(USUAL_BYTES);
    let mut gather = Gather { out: std::mem::take(out), ..Gather::default() };
    let gathered = request.serialize(&mut gather);
    let broken = gather.broken;
    *out = gather.out;
    gathered?;
    if broken {
        return Err(VisitError::new(Problem::Inconsistent));
    }
    // Every length and count within is at most this one, so none of them was cut off.
    length(out.len()).map(|_| ())
}

fn length(length: usize) -> Result<u32, VisitError> {
    u32::try_from(length).map_err(|_| VisitError::new(Problem::TooLarge))
}

/// Collects the canonical bytes.
#[derive(Debug, Default)]
struct Gather {
    out: Vec<u8>,
    depth: Depth,
    /// The next sequence is unordered.
    unordered: bool,
    /// A part failed. Whatever the implementation of `Serialize` around it makes of that, the walk fails.
    broken: bool,
}

impl Gather {
    /// A sequence with this tag, or the one that was marked to have no order.
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

    /// A tag and a name, in one step.
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

    /// Writes the length or count that belongs at `at`, where [`LENGTH`] bytes were left for it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the walk fails at its end if it was cut off")]
    fn fill_in(&mut self, at: usize, length: usize) {
        self.out[at..at + LENGTH].copy_from_slice(&(length as u32).to_le_bytes());
    }

    /// Starts an item: leaves room for its length, and says where.
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
            self.broken = true;
        }
        written
    }

    /// Starts a container whose tag and names are written.
    #[inline(always)]
    fn container(&mut self, content: Content) -> Result<Container<'_>, VisitError> {
        self.depth.enter_container()?;
        let count_at = self.begin_item();
        Ok(Container { gather: self, count_at, count: 0, content, key_at: None })
    }
}

/// What is in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Values, in order.
    Ordered,
    /// Items, to be sorted.
    Sorted,
    /// The text of a [`JSON_NUMBER`].
    Number,
}

/// A container that is being written.
#[derive(Debug)]
struct Container<'g> {
    gather: &'g mut Gather,
    count_at: usize,
    count: usize,
    content: Content,
    /// Where the entry of a map began whose value is still to come.
    key_at: Option<usize>,
}

impl Container<'_> {
    /// A field that is skipped is nothing.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "other walks note it")]
    fn skip(&self) {}

    #[inline(always)]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), VisitError> {
        self.count += 1;
        if self.content == Content::Sorted {
            let at = self.gather.begin_item();
            self.gather.value(value)?;
            self.gather.end_item(at);
            return Ok(());
        }
        self.gather.value(value)
    }

    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), VisitError> {
        self.count += 1;
        if self.content == Content::Number {
            return self.gather.value(value);
        }
        let at = self.gather.out.len();
        let mut head = [0; LENGTH + 8];
        head[LENGTH..].copy_from_slice(&mix_name(name).to_le_bytes());
        self.gather.put(head);
        self.gather.value(value)?;
        self.gather.end_item(at);
        Ok(())
    }

    #[inline(always)]
    fn finish(self) -> Result<(), VisitError> {
        let body = self.count_at + LENGTH;
        self.gather.depth.leave_container();
        self.gather.fill_in(self.count_at, self.count);
        match self.content {
            Content::Ordered => Ok(()),
            Content::Sorted => sort_items(&mut self.gather.out, body, self.count),
            Content::Number => put_json_number(self.gather, self.count_at),
        }
    }
}

/// Where an item stands, for sorting.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    /// The first 8 bytes as a number that compares as they do. Of fields they differ.
    prefix: u64,
    /// Where its length stands, counted from the first item.
    at: u32,
    /// Where it ends.
    end: u32,
}

/// Sorts the `count` items that stand in `out` from `body` to the end.
///
/// Not inlined: its array must not be on the stack of each level of a deep value.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "all offsets are below the length that is checked first")]
fn sort_items(out: &mut Vec<u8>, body: usize, count: usize) -> Result<(), VisitError> {
    /// As many items are sorted without allocating.
    const FEW: usize = 16;
    length(out.len() - body)?;
    let mut few = [Span::default(); FEW];
    let mut many = Vec::new();
    let spans = if count <= FEW {
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
    if count <= FEW {
        // Sorted here and not by the standard library, whose call takes longer than this.
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
    /// Items are copied by so many bytes, with no call for each of them. What is copied too much is written over.
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

/// The first 8 bytes, big-endian, filled up with zeros: compares as the bytes do, as far as they go.
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
