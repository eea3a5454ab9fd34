use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::hash::KeyHasher;
use crate::visit::trees::{
    Fails, Field, Linked, Nested, Node, Rows, Tree, Variant, Wrapped, WrongLength, assert_golden, every_kind,
    medians, on_a_small_stack, pair,
};
use crate::visit::{MAX_DEPTH, Problem};

fn shape<T: Serialize + ?Sized>(value: &T) -> Shape {
    let shape = shape_of(value, false).unwrap();
    assert_eq!(
        shape,
        digest_of(value, false).unwrap().shape,
        "the shape must not depend on whether leaves are hashed"
    );
    shape
}

fn hash<T: Serialize + ?Sized>(value: &T) -> u64 {
    shape(value).hash
}

fn leaves<T: Serialize + ?Sized>(value: &T) -> u128 {
    digest_of(value, false).unwrap().leaves
}

/// Computes the shape of a value whose types are declared in a separate scope, so that two types can share a name.
macro_rules! typed {
    ($value:expr; $($item:item)*) => {{
        $(
            #[derive(Serialize)]
            #[allow(dead_code, reason = "an unused variant shifts the index of others")]
            $item
        )*
        hash(&$value)
    }};
}

#[test]
fn shapes_never_change() {
    // If this test fails, no typed result in an existing file can be replayed.
    struct Table(String);
    impl Rows for Table {
        fn row<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
            for human_readable in [false, true] {
                let Digest { shape, leaves } = digest_of(value, human_readable).unwrap();
                assert_eq!(shape, shape_of(value, human_readable).unwrap());
                let skips = if shape.skips_fields { " skips" } else { "" };
                let reader = if human_readable { " for humans" } else { "" };
                writeln!(self.0, "{name}{reader}: {:016x} {leaves:032x}{skips}", shape.hash).unwrap();
            }
        }
    }
    let mut table = Table(String::new());
    every_kind(&mut table);
    assert_golden(&table.0, include_str!("golden.txt"));
}

/// An independent model of what is hashed, with or without the leaves.
#[derive(Clone, Copy)]
struct Model {
    leaves: bool,
}

impl Model {
    fn leaf(self, kind: &str, value: impl std::fmt::Debug) -> Node {
        Node::new(if self.leaves { format!("{kind} {value:?}") } else { kind.to_owned() }, [])
    }

    fn all(self, values: &[Tree]) -> Vec<Node> {
        values.iter().map(|value| self.of(value)).collect()
    }

    fn fields(self, fields: &[Field]) -> Vec<Node> {
        let kept = fields.iter().filter(|field| !field.is_skipped);
        kept.map(|field| Node::new(format!("field {}", field.name), [self.of(&field.value)])).collect()
    }

    fn of(self, tree: &Tree) -> Node {
        let variant = |Variant { index, name, .. }: &Variant, kind| format!("{kind} variant {index} {name}");
        match tree {
            Tree::Unit | Tree::UnitStruct(_) => Node::new("unit", []),
            Tree::Bool(value) => self.leaf("bool", value),
            Tree::Integer(width, value) => self.leaf(&format!("{width:?}"), value),
            Tree::F32(value) => self.leaf("f32", value.to_bits()),
            Tree::F64(value) => self.leaf("f64", value.to_bits()),
            Tree::Char(value) => self.leaf("char", value),
            Tree::Str(value) => self.leaf("str", value),
            Tree::Bytes(value) => self.leaf("bytes", value),
            Tree::None => Node::new("none", []),
            Tree::Some(value) => Node::new("some", [self.of(value)]),
            Tree::Newtype(_, value) => self.of(value),
            Tree::Seq(values) | Tree::Unordered(values) => Node::bag("sequence", self.all(values)),
            Tree::Map(entries) => {
                let entry = |(key, value): &(Tree, Tree)| Node::new("entry", [self.of(key), self.of(value)]);
                Node::bag("map", entries.iter().map(entry))
            }
            Tree::Tuple(values) | Tree::TupleStruct(_, values) => Node::new("tuple", self.all(values)),
            Tree::Struct(_, fields) => Node::new("struct", self.fields(fields)),
            Tree::UnitVariant(one) => Node::new(variant(one, "unit"), []),
            Tree::NewtypeVariant(one, value) => Node::new(variant(one, "newtype"), [self.of(value)]),
            Tree::TupleVariant(one, values) => Node::new(variant(one, "tuple"), self.all(values)),
            Tree::StructVariant(one, fields) => Node::new(variant(one, "struct"), self.fields(fields)),
        }
    }
}

fn skips(tree: &Tree) -> bool {
    match tree {
        Tree::Some(value) | Tree::Newtype(_, value) | Tree::NewtypeVariant(_, value) => skips(value),
        Tree::Seq(values)
        | Tree::Unordered(values)
        | Tree::Tuple(values)
        | Tree::TupleStruct(_, values)
        | Tree::TupleVariant(_, values) => values.iter().any(skips),
        Tree::Map(entries) => entries.iter().any(|(key, value)| skips(key) || skips(value)),
        Tree::Struct(_, fields) | Tree::StructVariant(_, fields) => {
            fields.iter().any(|field| field.is_skipped || skips(&field.value))
        }
        _ => false,
    }
}

#[test]
fn shapes_and_leaves_are_equal_exactly_if_the_models_are() {
    let counters: [Cell<u32>; 4] = Default::default();
    let count = |at: usize| counters[at].set(counters[at].get() + 1);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(4_000) });
    let tried = runner.run(&pair(), |(one, other)| {
        let same_shape = Model { leaves: false }.of(&one) == Model { leaves: false }.of(&other);
        let same_leaves = Model { leaves: true }.of(&one) == Model { leaves: true }.of(&other);
        count(usize::from(same_shape));
        count(2 + usize::from(same_leaves));
        proptest::prop_assert_eq!(hash(&one) == hash(&other), same_shape);
        proptest::prop_assert_eq!(leaves(&one) == leaves(&other), same_leaves);
        proptest::prop_assert_eq!(shape(&one).skips_fields, skips(&one));
        Ok(())
    });
    tried.unwrap();
    // If any of the four outcomes were rare, the property would prove little.
    assert!(counters.iter().all(|count| count.get() > 400), "{counters:?}");
}

#[test]
fn types_with_confusable_bytes_have_different_shapes() {
    let all = [
        typed!(Receipt { id: 17, cents: 1000 }; struct Receipt { id: u64, cents: u64 }),
        typed!(Receipt { cents: 17, id: 1000 }; struct Receipt { cents: u64, id: u64 }),
        typed!(Receipt { id: 17, amount: 1000 }; struct Receipt { id: u64, amount: u64 }),
        typed!(Receipt { id: 17, cents: 500 }; struct Receipt { id: u64, cents: i64 }),
        typed!(Answer::Charged; enum Answer { Charged, Refused }),
        typed!(Answer::Refused; enum Answer { Refused, Charged }),
        typed!(Answer::Charged(1); enum Answer { Charged(u8) }),
        typed!(Answer::Charged { id: 1 }; enum Answer { Charged { id: u8 } }),
        hash(&1_u8),
        hash(&1_i8),
        hash(&1_u32),
        hash(&1_i32),
        hash(&1_u64),
        hash(&1_i64),
        hash(&1_u128),
        hash(&1.0_f32),
        hash(&1.0_f64),
        hash(&true),
        hash(&'a'),
        hash("a"),
        hash(&()),
        hash(&None::<u8>),
        hash(&Some(1_u8)),
        hash(&(1_u8, 1_u8)),
        hash(&(1_u8, 1_u8, 1_u8)),
        hash(&((1_u8, 1_u8), 1_u8)),
        hash(&vec![1_u8, 1]),
        hash(&BTreeMap::from([(1_u8, 1_u8)])),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[at + 1..].contains(one), "shape {at} occurs twice");
    }
}

#[test]
fn renaming_or_wrapping_a_type_keeps_the_shape() {
    let before = typed!(Receipt { id: 17 }; struct Receipt { id: u64 });
    assert_eq!(typed!(Charged { id: 18 }; struct Charged { id: u64 }), before);
    assert_eq!(typed!(Receipt { id: Id(1) }; struct Id(u64); struct Receipt { id: Id }), before);
    assert_eq!(typed!(A::Refused(1); enum A { Refused(u8) }), typed!(B::Refused(2); enum B { Refused(u8) }));
    assert_eq!(typed!(Pair(1, 2); struct Pair(u8, u16);), hash(&(3_u8, 4_u16)));
    assert_eq!(hash(&7_usize), hash(&7_u64));
}

#[test]
fn only_the_order_of_elements_is_ignored() {
    assert_eq!(leaves(&vec![(1, 2), (3, 4)]), leaves(&vec![(3, 4), (1, 2)]));
    assert_ne!(leaves(&vec![(1, 2), (3, 4)]), leaves(&vec![(1, 4), (3, 2)]));
    assert_ne!(leaves(&BTreeMap::from([(1, 2), (3, 4)])), leaves(&BTreeMap::from([(1, 4), (3, 2)])));
    assert_ne!(leaves(&BTreeMap::from([(1, 2)])), leaves(&BTreeMap::from([(2, 1)])));
    assert_ne!(leaves(&vec![vec![1, 2], vec![3]]), leaves(&vec![vec![1], vec![2, 3]]));
    assert_ne!(leaves(&vec![1, 1]), leaves(&vec![1]));
    assert_ne!(leaves(&(vec![1], vec![2])), leaves(&(vec![2], vec![1])));
    assert_ne!(leaves(&("ab", "c")), leaves(&("a", "bc")));
    let map = || -> HashMap<String, u32> { (0..20).map(|at| (at.to_string(), at)).collect() };
    let first = digest_of(&map(), true).unwrap();
    for _ in 0..20 {
        assert_eq!(digest_of(&map(), true).unwrap(), first);
    }
}

#[test]
fn floats_are_compared_by_their_bits() {
    assert_ne!(leaves(&-0.0_f64), leaves(&0.0_f64));
    assert_eq!(leaves(&f64::NAN), leaves(&f64::NAN));
    assert_ne!(leaves(&f64::NAN), leaves(&f64::from_bits(f64::NAN.to_bits() + 1)));
    assert_ne!(leaves(&f32::NAN), leaves(&f32::from_bits(f32::NAN.to_bits() + 1)));
}

#[test]
fn every_bit_of_a_leaf_counts() {
    for at in 0..128 {
        assert_ne!(leaves(&(1_u128 << at)), leaves(&0_u128), "bit {at}");
        assert_ne!(leaves(&(1_i128 << at)), leaves(&0_i128), "bit {at}");
    }
    for at in 0..20 {
        let mut text = *b"twenty-byte long key";
        text[at] ^= 1;
        assert_ne!(leaves(std::str::from_utf8(&text).unwrap()), leaves("twenty-byte long key"), "byte {at}");
    }
}

#[test]
fn sequences_of_small_numbers_have_distinct_digests() {
    let pairs = (0_u8..=255).flat_map(|one| (one..=255).map(move |other| vec![one, other]));
    let triples = (0_u8..=40).flat_map(|a| (a..=40).flat_map(move |b| (b..=40).map(move |c| vec![a, b, c])));
    let digests: Vec<u128> = pairs.chain(triples).map(|values| leaves(&values)).collect();
    // Check both lanes together, and each alone.
    for lane in [|digest: u128| digest, |digest| digest >> 64, |digest| digest & u128::from(u64::MAX)] {
        let mut lanes: Vec<u128> = digests.iter().copied().map(lane).collect();
        lanes.sort_unstable();
        assert!(lanes.is_sorted_by(|one, other| one < other));
    }
}

#[test]
fn human_readable_serialisation_has_a_different_shape() {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert_eq!(shape_of(&address, true).unwrap(), shape("127.0.0.1"));
    assert_ne!(shape_of(&address, false).unwrap(), shape("127.0.0.1"));
}

#[test]
fn skipped_fields_and_wrong_lengths_are_noted() {
    #[derive(Serialize)]
    struct Note {
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<u8>,
    }
    #[derive(Serialize)]
    enum Event {
        Noted {
            #[serde(skip_serializing_if = "Option::is_none")]
            text: Option<u8>,
        },
    }
    assert!(!shape(&Note { text: Some(1) }).skips_fields);
    assert!(shape(&Note { text: None }).skips_fields);
    assert!(!shape(&Event::Noted { text: Some(1) }).skips_fields);
    assert!(shape(&Event::Noted { text: None }).skips_fields);
    assert!(shape(&vec![Some((1, Note { text: None }))]).skips_fields, "a nested field");
    let lengths = [WrongLength::Sequence, WrongLength::Tuple, WrongLength::Struct, WrongLength::Map];
    for (at, value) in lengths.iter().enumerate() {
        assert!(shape(value).skips_fields, "the wrong length of value {at} must be noted");
    }
}

#[test]
fn a_value_nested_too_deep_is_refused() {
    on_a_small_stack(|| {
        let limit = u32::from(MAX_DEPTH);
        shape(&Nested { depth: limit });
        shape(&Linked { length: limit });
        shape(&Wrapped { depth: limit });
        for depth in [limit + 1, 20_000] {
            assert_eq!(*shape_of(&Nested { depth }, false).unwrap_err().problem(), Problem::TooDeep);
            assert_eq!(*digest_of(&Nested { depth }, false).unwrap_err().problem(), Problem::TooDeep);
            assert_eq!(*shape_of(&Linked { length: depth }, false).unwrap_err().problem(), Problem::TooDeep);
            assert_eq!(*digest_of(&Linked { length: depth }, false).unwrap_err().problem(), Problem::TooDeep);
            assert_eq!(*shape_of(&Wrapped { depth }, false).unwrap_err().problem(), Problem::TooDeep);
        }
        // The depth of each branch counts, not the sum of them.
        shape(&vec![Nested { depth: limit - 1 }, Nested { depth: limit - 1 }]);
        shape(&(Some(Wrapped { depth: limit - 1 }), Wrapped { depth: limit }));
    });
}

#[test]
fn an_error_of_serialize_fails_the_shape() {
    assert_eq!(shape_of(&(1, Some(Fails)), false).unwrap_err().to_string(), "the card has expired");
}

#[derive(Serialize)]
struct Receipt {
    id: String,
    cents: u64,
    currency: String,
    captured: bool,
    at_ms: u64,
    fee: Option<u32>,
    attempt: u16,
    gateway: String,
}

#[test]
#[ignore = "a benchmark: prints timings, for a build with optimisation"]
fn shape_time() {
    let receipt = Receipt {
        id: "ch_3MmlLrLkdIwHu7ix0snN0B15".to_owned(),
        cents: 1_729,
        currency: "EUR".to_owned(),
        captured: true,
        at_ms: 1_700_000_000_000,
        fee: Some(29),
        attempt: 1,
        gateway: "gateway-2".to_owned(),
    };
    let hasher = KeyHasher::new([7; 16]);
    let [shape, digest, siphash] = medians([
        &mut || {
            black_box(shape_of(black_box(&receipt), false).unwrap());
        },
        &mut || {
            black_box(digest_of(black_box(&receipt), false).unwrap());
        },
        &mut || {
            black_box(hasher.fingerprint(black_box(&[7; 64])));
        },
    ]);
    println!("shape of a receipt of 8 fields: {shape:.1} ns; with its leaves: {digest:.1} ns");
    println!("SipHash of 64 bytes: {siphash:.1} ns; the shape takes {:.2} times that", shape / siphash);
}
