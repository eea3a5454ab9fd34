use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::hint::black_box;

use proptest::test_runner::{Config, TestRunner};
use serde::ser::Serializer;
use serde::ser::{SerializeMap as _, SerializeSeq as _};

use super::*;
use crate::hash::KeyHasher;
use crate::unordered;
use crate::visit::MAX_DEPTH;
use crate::visit::trees::{
    Fails, Field, Linked, Nested, Node, Rows, Tree, Variant, Wrapped, WrongLength, assert_golden, every_kind,
    medians, on_a_small_stack, pair,
};

const SECRET: [u8; 16] = *b"0123456789abcdef";

fn bytes<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    canonical(value, &mut out).unwrap();
    out
}

fn problem<T: Serialize + ?Sized>(value: &T) -> VisitError {
    let mut out = Vec::new();
    canonical(value, &mut out).unwrap_err()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Computes the canonical bytes of a value whose types are declared in a separate scope, so that two types can share a name.
macro_rules! typed {
    ($value:expr; $($item:item)*) => {{
        $(
            #[derive(Serialize)]
            $item
        )*
        bytes(&$value)
    }};
}

#[test]
fn canonical_bytes_and_fingerprints_never_change() {
    // If this test fails, the fingerprints in existing files have become meaningless.
    struct Table(String);
    impl Rows for Table {
        fn row<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
            let bytes = bytes(value);
            let fingerprint = KeyHasher::new(SECRET).fingerprint(&bytes);
            writeln!(self.0, "{name}: {} {}", hex(&bytes), hex(&fingerprint.to_bytes())).unwrap();
        }
    }
    let mut table = Table(String::new());
    every_kind(&mut table);
    for text in [
        "0",
        "-0",
        "-7",
        "340282366920938463463374607431768211456",
        "-1e400",
        "1.50",
        "0.10000000000000000001",
    ] {
        table.row(&format!("JSON number {text}"), &JsonNumber::of(text));
    }
    assert_golden(&table.0, include_str!("golden.txt"));
}

fn texts(tree: &[Tree]) -> Vec<Node> {
    tree.iter().map(model).collect()
}

fn fields(fields: &[Field]) -> Vec<Node> {
    let kept = fields.iter().filter(|field| !field.is_skipped);
    kept.map(|field| Node::new(format!("field {}", field.name), [model(&field.value)])).collect()
}

/// Returns the meaning of a request as a tree that can be compared, computed independently of the canonical bytes.
fn model(tree: &Tree) -> Node {
    let leaf = |label: String| Node::new(label, []);
    let of = |Variant { of, name, .. }: &Variant, kind| format!("{kind} variant {of}::{name}");
    match tree {
        Tree::Unit => leaf("unit".into()),
        Tree::Bool(value) => leaf(format!("bool {value}")),
        Tree::Integer(_, value) => leaf(format!("integer {value}")),
        Tree::F32(value) if *value == 0.0 => leaf("f32 0".into()),
        Tree::F32(value) => leaf(format!("f32 {value}")),
        Tree::F64(value) if *value == 0.0 => leaf("f64 0".into()),
        Tree::F64(value) => leaf(format!("f64 {value}")),
        Tree::Char(value) => leaf(format!("char {value}")),
        Tree::Str(value) => leaf(format!("str {value}")),
        Tree::Bytes(value) => leaf(format!("bytes {value:?}")),
        Tree::None => leaf("none".into()),
        Tree::Some(value) => match model(value) {
            value if value.label == "none" || value.label == "some" => Node::new("some", [value]),
            value => value,
        },
        Tree::UnitStruct(name) => leaf(format!("unit struct {name}")),
        Tree::Newtype(_, value) => model(value),
        Tree::Seq(values) => Node::new("sequence", texts(values)),
        Tree::Unordered(values) => Node::bag("unordered", texts(values)),
        Tree::Map(entries) => {
            let entries = entries.iter().map(|(key, value)| Node::new("entry", [model(key), model(value)]));
            Node::bag("map", entries)
        }
        Tree::Tuple(values) => Node::new("tuple", texts(values)),
        Tree::TupleStruct(name, values) => Node::new(format!("tuple struct {name}"), texts(values)),
        Tree::Struct(name, all) => Node::bag(format!("struct {name}"), fields(all)),
        Tree::UnitVariant(one) => leaf(of(one, "unit")),
        Tree::NewtypeVariant(one, value) => Node::new(of(one, "newtype"), [model(value)]),
        Tree::TupleVariant(one, values) => Node::new(of(one, "tuple"), texts(values)),
        Tree::StructVariant(one, all) => Node::bag(of(one, "struct"), fields(all)),
    }
}

#[test]
fn requests_have_equal_bytes_exactly_if_they_mean_the_same() {
    let (equal, different) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(4_000) });
    let tried = runner.run(&pair(), |(one, other)| {
        let expected = model(&one) == model(&other);
        let counter = if expected { &equal } else { &different };
        counter.set(counter.get() + 1);
        let (one, other) = (bytes(&one), bytes(&other));
        proptest::prop_assert_eq!(one == other, expected, "{} and {}", hex(&one), hex(&other));
        // No encoding is a prefix of another.
        proptest::prop_assert!(one == other || !(one.starts_with(&other) || other.starts_with(&one)));
        Ok(())
    });
    tried.unwrap();
    // If there were few equal or few different pairs, the property would prove little.
    assert!(equal.get() > 400 && different.get() > 400, "{equal:?} equal, {different:?} different");
}

#[test]
fn requests_of_different_types_with_equal_values_differ() {
    let all = [
        typed!(Charge { account: 42, cents: 1000 }; struct Charge { account: u32, cents: u32 }),
        typed!(Refund { account: 42, cents: 1000 }; struct Refund { account: u32, cents: u32 }),
        typed!(Transfer { from: 42, to: 1000 }; struct Transfer { from: u32, to: u32 }),
        typed!(Transfer { from: 1000, to: 42 }; struct Transfer { from: u32, to: u32 }),
        typed!(Pair(42, 1000); struct Pair(u32, u32);),
        bytes(&(42_u32, 1000_u16)),
        bytes(&(1000_u32, 42_u16)),
        bytes(&vec![42_u32, 1000]),
        bytes(&BTreeMap::from([("account", 42), ("cents", 1000)])),
        typed!(Command::Charge { account: 42, cents: 1000 }; enum Command { Charge { account: u32, cents: u32 } }),
        typed!(Event::Charge { account: 42, cents: 1000 }; enum Event { Charge { account: u32, cents: u32 } }),
        typed!(Command::Charge(7); enum Command { Charge(u8) }),
        typed!(Command::Refund(7); enum Command { Refund(u8) }),
        bytes(&(0_u8, 7_u8)),
        bytes(&("charge", 42, 1000)),
        bytes(&("refund", 42, 1000)),
        bytes(&("ab", "c")),
        bytes(&("a", "bc")),
        bytes(&7),
        bytes(&7.0_f64),
        bytes(&7.0_f32),
        bytes("7"),
        bytes(&'7'),
        bytes(&()),
        bytes(&None::<()>),
        bytes(&Some(None::<()>)),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[at + 1..].contains(one), "the bytes of request {at} occur twice");
    }
}

#[test]
fn compatible_changes_of_a_type_keep_its_fingerprint() {
    let before = typed!(Pay { account: 42, cents: 1000 }; struct Pay { account: u32, cents: u32 });
    let same = [
        typed!(Pay { account: 42, cents: 1000 }; struct Pay { cents: u32, account: u32 }),
        typed!(Pay { account: 42, cents: 1000 }; struct Pay { cents: i128, account: usize }),
        typed!(Pay { account: 42, cents: Cents(1000) }; struct Cents(u64); struct Pay { account: u32, cents: Cents }),
        typed!(Pay { account: 42, cents: Some(1000) }; struct Pay { account: u32, cents: Option<u32> }),
        typed!(Pay { account: 42, cents: 1000, note: None }; struct Pay {
            account: u32,
            cents: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            note: Option<String>,
        }),
    ];
    for (at, one) in same.iter().enumerate() {
        assert_eq!(*one, before, "change {at}");
    }
    let clears = typed!(Pay { account: 42, cents: 1000, note: None }; struct Pay { account: u32, cents: u32, note: Option<String> });
    assert_ne!(clears, before, "a field that is None is present");
    let first = typed!(Command::Charge(7); enum Command { Charge(u8) });
    let inserted = typed!(Command::Charge(7); enum Command {
        #[allow(dead_code, reason = "shifts the index of the next variant")]
        Refuse,
        Charge(u8),
    });
    assert_eq!(inserted, first, "the index of a variant is not part of the meaning");
}

#[test]
fn the_order_of_a_map_and_of_an_unordered_set_is_ignored() {
    #[derive(Serialize)]
    struct Notify {
        #[serde(serialize_with = "unordered")]
        tags: HashSet<String>,
        headers: HashMap<String, u32>,
    }
    let make = || Notify {
        tags: (0..20).map(|at| format!("tag {at}")).collect(),
        headers: (0..20).map(|at| (format!("header {at}"), at)).collect(),
    };
    let first = bytes(&make());
    for _ in 0..20 {
        assert_eq!(bytes(&make()), first);
    }
}

/// Serialises its content with [`unordered`].
struct Unordered<T>(T);

impl<T: Serialize> Serialize for Unordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        unordered(&self.0, serializer)
    }
}

#[test]
fn unordered_applies_to_sequences_only() {
    let set = bytes(&Unordered(vec![1, 2, 2]));
    assert_eq!(bytes(&Unordered(vec![2, 1, 2])), set);
    assert_eq!(bytes(&Unordered(Some([2, 2, 1]))), set);
    assert_eq!(bytes(&Unordered(Unordered([2, 2, 1]))), set);
    assert_ne!(bytes(&Unordered(vec![1, 2])), set, "an element that occurs twice counts twice");
    assert_ne!(bytes(&vec![1, 2, 2]), set);
    assert_eq!(bytes(&Unordered(None::<Vec<u8>>)), bytes(&None::<Vec<u8>>));
    // It applies to the sequence itself only, not to sequences inside or after it.
    assert_ne!(bytes(&Unordered(vec![vec![1, 2]])), bytes(&Unordered(vec![vec![2, 1]])));
    let none = Unordered(None::<Vec<u8>>);
    assert_ne!(bytes(&(&none, vec![1, 2])), bytes(&(&none, vec![2, 1])));
    assert_eq!(*problem(&Unordered(7)).problem(), Problem::NotASequence);
    assert_eq!(*problem(&Unordered(BTreeMap::from([(vec![1, 2], 3)]))).problem(), Problem::NotASequence);
    assert_eq!(*problem(&Unordered("text")).problem(), Problem::NotASequence);
}

#[test]
fn any_number_of_entries_is_sorted() {
    // The largest counts exceed the array on the stack. The keys share their first bytes, so that comparing prefixes is not
    // enough.
    struct InOrder<'o>(&'o [u32]);
    impl Serialize for InOrder<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            for at in self.0 {
                map.serialize_entry(&format!("a long common beginning {at}"), at)?;
            }
            map.end()
        }
    }
    for count in [1, 2, 15, 16, 17, 100] {
        let sorted: Vec<u32> = (0..count).collect();
        let mut turned = sorted.clone();
        turned.reverse();
        assert_eq!(bytes(&InOrder(&turned)), bytes(&InOrder(&sorted)), "{count} entries");
        turned.rotate_left(count as usize / 3);
        assert_eq!(bytes(&InOrder(&turned)), bytes(&InOrder(&sorted)), "{count} entries");
    }
}

#[test]
fn nested_options_are_unambiguous() {
    let all: [Option<Option<Option<u8>>>; 4] = [None, Some(None), Some(Some(None)), Some(Some(Some(7)))];
    let distinct: BTreeSet<Vec<u8>> = all.iter().map(bytes).collect();
    assert_eq!(distinct.len(), all.len());
    assert_eq!(bytes(&all[3]), bytes(&7));
    assert_ne!(bytes(&Some(())), bytes(&None::<()>));
}

#[test]
fn all_zeros_are_equal_and_all_nans_are_equal() {
    assert_eq!(bytes(&-0.0_f64), bytes(&0.0_f64));
    assert_eq!(bytes(&-0.0_f32), bytes(&0.0_f32));
    assert_eq!(bytes(&f64::from_bits(0xFFF8_0000_0000_0001)), bytes(&f64::NAN));
    assert_eq!(bytes(&f32::from_bits(0xFFC0_0001)), bytes(&f32::NAN));
    assert_ne!(bytes(&f64::INFINITY), bytes(&f64::NEG_INFINITY));
    assert_ne!(bytes(&f64::MIN_POSITIVE), bytes(&0.0_f64));
    assert_ne!(bytes(&1.5_f32), bytes(&1.5_f64));
}

/// A number as serde_json passes it under `arbitrary_precision`.
#[derive(Serialize)]
#[serde(rename = "$serde_json::private::Number")]
struct JsonNumber {
    #[serde(rename = "$serde_json::private::Number")]
    text: String,
}

impl JsonNumber {
    fn of(text: &str) -> JsonNumber {
        JsonNumber { text: text.to_owned() }
    }
}

#[test]
fn json_numbers_of_arbitrary_precision_are_compared_by_value() {
    let number = |text: &str| bytes(&JsonNumber::of(text));
    assert_eq!(number("0"), bytes(&0));
    assert_eq!(number("7"), bytes(&7));
    assert_eq!(number("1000"), bytes(&1000));
    assert_eq!(number("-7"), bytes(&-7));
    assert_eq!(number("18446744073709551616"), bytes(&(1_u128 << 64)));
    assert_eq!(number(&u128::MAX.to_string()), bytes(&u128::MAX));
    assert_eq!(number(&i128::MIN.to_string()), bytes(&i128::MIN));
    for (text, float) in [
        ("-0", 0.0),
        ("0.0", 0.0),
        ("-0.0e5", 0.0),
        ("1.5", 1.5),
        ("1.50", 1.5),
        ("15e-1", 1.5),
        ("-0.15E+1", -1.5),
        ("1.0", 1.0),
        ("1e2", 100.0),
        ("0.1", 0.1),
        ("1.7976931348623157e308", f64::MAX),
        ("5e-324", f64::from_bits(1)),
    ] {
        assert_eq!(number(text), bytes(&float), "{text}");
    }
    // Numbers that are neither an f64 nor a u128 are compared exactly, however they are written.
    assert_ne!(number("0.10000000000000000001"), number("0.1"));
    assert_eq!(number("0.10000000000000000001"), number("10000000000000000001.0e-20"));
    assert_ne!(number("1e400"), number("1e401"));
    assert_ne!(number("1e400"), number("-1e400"));
    assert_ne!(number("1e-400"), number("0.0"));
    let huge = format!("1{}", "0".repeat(400));
    assert_ne!(number(&huge), number("1e400"), "an integer equals no float");
    assert_ne!(number(&huge), number(&format!("{huge}0")));
    // Rewriting a nested number keeps the bytes around it.
    assert_eq!(bytes(&(1, Some(JsonNumber::of("2")), 3)), bytes(&(1, 2, 3)));
    for text in ["", "-", "+1", "1.", ".5", "1e", "one", "0x10", "NaN", "1e99999999999999999999"] {
        assert_eq!(*problem(&JsonNumber::of(text)).problem(), Problem::Number(text.into()), "{text}");
    }
    assert!(problem(&JsonNumber::of("one")).to_string().contains("\"one\""));
}

#[test]
fn serde_json_numbers_equal_rust_numbers() {
    // With and without the feature `arbitrary_precision`, which any crate of the program can turn on.
    let value: serde_json::Value = serde_json::from_str(r#"{"b": [1, -2, 0.5, -0.0], "a": null}"#).unwrap();
    let parts = (
        serde_json::json!(1),
        serde_json::json!(-2),
        serde_json::json!(0.5),
        serde_json::from_str::<serde_json::Value>("-0.0").unwrap(),
    );
    assert_eq!(bytes(&parts), bytes(&(1, -2, 0.5, 0.0)));
    assert_eq!(bytes(&value["b"]), bytes(&vec![parts.0, parts.1, parts.2, parts.3]));
    assert_eq!(bytes(&value), bytes(&serde_json::json!({"a": null, "b": [1, -2, 0.5, 0.0]})));
}

#[test]
fn a_raw_value_is_refused() {
    #[derive(Serialize)]
    #[serde(rename = "$serde_json::private::RawValue")]
    struct RawValue {
        #[serde(rename = "$serde_json::private::RawValue")]
        json: &'static str,
    }
    let refused = problem(&Some(RawValue { json: "{}" }));
    assert_eq!(*refused.problem(), Problem::RawValue);
    assert!(refused.to_string().contains("RawValue"));
}

#[test]
fn a_value_nested_too_deep_is_refused() {
    on_a_small_stack(|| {
        let limit = u32::from(MAX_DEPTH);
        let mut out = Vec::new();
        canonical(&Nested { depth: limit }, &mut out).unwrap();
        canonical(&Linked { length: limit }, &mut out).unwrap();
        canonical(&Wrapped { depth: limit }, &mut out).unwrap();
        for depth in [limit + 1, 20_000] {
            assert_eq!(*problem(&Nested { depth }).problem(), Problem::TooDeep);
            assert_eq!(*problem(&Linked { length: depth }).problem(), Problem::TooDeep);
            assert_eq!(*problem(&Wrapped { depth }).problem(), Problem::TooDeep);
        }
        // The depth of each branch counts, not the sum of them.
        canonical(&vec![Nested { depth: limit - 1 }, Nested { depth: limit - 1 }], &mut out).unwrap();
        canonical(&(Some(Wrapped { depth: limit - 1 }), Wrapped { depth: limit }), &mut out).unwrap();
    });
}

#[test]
fn an_error_of_serialize_fails_the_fingerprint() {
    assert_eq!(problem(&(1, Some(Fails))).to_string(), "the card has expired");
}

#[test]
fn an_error_that_serialize_ignores_still_fails_the_fingerprint() {
    struct Ignores;
    impl Serialize for Ignores {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(None)?;
            let _ignored = seq.serialize_element(&(1, Fails));
            seq.end()
        }
    }
    struct HalfAnEntry(bool);
    impl Serialize for HalfAnEntry {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            if self.0 {
                map.serialize_key(&1)?;
            } else {
                map.serialize_value(&1)?;
            }
            map.end()
        }
    }
    assert_eq!(*problem(&Ignores).problem(), Problem::Inconsistent);
    assert_eq!(*problem(&HalfAnEntry(true)).problem(), Problem::Inconsistent);
    assert_eq!(*problem(&HalfAnEntry(false)).problem(), Problem::Inconsistent);
}

#[test]
fn a_wrong_declared_length_is_ignored() {
    assert_eq!(bytes(&WrongLength::Sequence), bytes(&vec![1, 2]));
    assert_eq!(bytes(&WrongLength::Tuple), bytes(&(1, 2)));
    assert_eq!(
        bytes(&WrongLength::Struct),
        typed!(Transfer { from: 1, to: 2 }; struct Transfer { from: u8, to: u8 })
    );
    assert_eq!(bytes(&WrongLength::Map), bytes(&BTreeMap::from([("from", 1), ("to", 2)])));
}

#[derive(Serialize)]
struct Request {
    account: u64,
    cents: u64,
    currency: &'static str,
    order: &'static str,
    customer: u32,
    capture: bool,
    note: Option<&'static str>,
    attempt: u16,
}

#[test]
#[ignore = "a benchmark: prints timings, for a build with optimisation"]
fn fingerprint_time() {
    let request = Request {
        account: 42,
        cents: 1_729,
        currency: "EUR",
        order: "order-1729",
        customer: 7,
        capture: true,
        note: Some("second reminder"),
        attempt: 2,
    };
    let hasher = KeyHasher::new(SECRET);
    let mut out = Vec::new();
    canonical(&request, &mut out).unwrap();
    let canonical_bytes = out.clone();
    let [siphash, kept, allocated] = medians([
        &mut || {
            black_box(hasher.fingerprint(black_box(&canonical_bytes)));
        },
        &mut || {
            canonical(black_box(&request), &mut out).unwrap();
            black_box(hasher.fingerprint(&out));
        },
        &mut || {
            let mut out = Vec::new();
            canonical(black_box(&request), &mut out).unwrap();
            black_box(hasher.fingerprint(&out));
        },
    ]);
    println!("SipHash of {} bytes: {siphash:.1} ns", canonical_bytes.len());
    println!("fingerprint, buffer kept: {kept:.1} ns, {:.2} times that", kept / siphash);
    println!("fingerprint, buffer allocated: {allocated:.1} ns, {:.2} times that", allocated / siphash);
}
