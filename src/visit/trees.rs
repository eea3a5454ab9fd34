//! Values for the tests of both serializers: generated trees, a golden list of every kind, and misbehaving `Serialize`
//! implementations.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use proptest::prelude::*;
use serde::ser::{
    Error as _, SerializeMap as _, SerializeSeq as _, SerializeStruct as _, SerializeStructVariant as _,
    SerializeTuple as _, SerializeTupleStruct as _, SerializeTupleVariant as _,
};
use serde::{Serialize, Serializer};

use super::unordered;

type Name = &'static str;

/// Only a few names, so that two generated trees often share names.
const NAMES: [Name; 6] = ["a", "b", "amount", "an_account_number", "Charge", "Refund"];

/// One value of serde's data model.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    Unit,
    Bool(bool),
    Integer(Width, i128),
    F32(f32),
    F64(f64),
    Char(char),
    Str(String),
    Bytes(Vec<u8>),
    None,
    Some(Box<Tree>),
    UnitStruct(Name),
    Newtype(Name, Box<Tree>),
    Seq(Vec<Tree>),
    Unordered(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    Tuple(Vec<Tree>),
    TupleStruct(Name, Vec<Tree>),
    Struct(Name, Vec<Field>),
    UnitVariant(Variant),
    NewtypeVariant(Variant, Box<Tree>),
    TupleVariant(Variant, Vec<Tree>),
    StructVariant(Variant, Vec<Field>),
}

#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: Name,
    pub(crate) value: Tree,
    pub(crate) is_skipped: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) of: Name,
    pub(crate) index: u32,
    pub(crate) name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
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
}

const WIDTHS: [Width; 10] = [
    Width::I8,
    Width::I16,
    Width::I32,
    Width::I64,
    Width::I128,
    Width::U8,
    Width::U16,
    Width::U32,
    Width::U64,
    Width::U128,
];

impl Width {
    fn can_represent(self, value: i128) -> bool {
        match self {
            Width::I8 => i8::try_from(value).is_ok(),
            Width::I16 => i16::try_from(value).is_ok(),
            Width::I32 => i32::try_from(value).is_ok(),
            Width::I64 => i64::try_from(value).is_ok(),
            Width::I128 => true,
            Width::U8 => u8::try_from(value).is_ok(),
            Width::U16 => u16::try_from(value).is_ok(),
            Width::U32 => u32::try_from(value).is_ok(),
            Width::U64 => u64::try_from(value).is_ok(),
            Width::U128 => u128::try_from(value).is_ok(),
        }
    }

    /// Returns the first width that can represent `value`, starting the search at the width number `at`.
    fn for_value(value: i128, at: usize) -> Width {
        let mut widths = WIDTHS.iter().cycle().skip(at % WIDTHS.len());
        *widths.find(|width| width.can_represent(value)).unwrap()
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Unit => serializer.serialize_unit(),
            Tree::Bool(value) => serializer.serialize_bool(*value),
            Tree::Integer(width, value) => match width {
                Width::I8 => serializer.serialize_i8((*value).try_into().unwrap()),
                Width::I16 => serializer.serialize_i16((*value).try_into().unwrap()),
                Width::I32 => serializer.serialize_i32((*value).try_into().unwrap()),
                Width::I64 => serializer.serialize_i64((*value).try_into().unwrap()),
                Width::I128 => serializer.serialize_i128(*value),
                Width::U8 => serializer.serialize_u8((*value).try_into().unwrap()),
                Width::U16 => serializer.serialize_u16((*value).try_into().unwrap()),
                Width::U32 => serializer.serialize_u32((*value).try_into().unwrap()),
                Width::U64 => serializer.serialize_u64((*value).try_into().unwrap()),
                Width::U128 => serializer.serialize_u128((*value).try_into().unwrap()),
            },
            Tree::F32(value) => serializer.serialize_f32(*value),
            Tree::F64(value) => serializer.serialize_f64(*value),
            Tree::Char(value) => serializer.serialize_char(*value),
            Tree::Str(value) => serializer.serialize_str(value),
            Tree::Bytes(value) => serializer.serialize_bytes(value),
            Tree::None => serializer.serialize_none(),
            Tree::Some(value) => serializer.serialize_some(value),
            Tree::UnitStruct(name) => serializer.serialize_unit_struct(name),
            Tree::Newtype(name, value) => serializer.serialize_newtype_struct(name, value),
            Tree::Seq(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| seq.serialize_element(value))?;
                seq.end()
            }
            Tree::Unordered(values) => unordered(values, serializer),
            Tree::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
            Tree::Tuple(values) => {
                let mut tuple = serializer.serialize_tuple(values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_element(value))?;
                tuple.end()
            }
            Tree::TupleStruct(name, values) => {
                let mut tuple = serializer.serialize_tuple_struct(name, values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Tree::Struct(name, fields) => {
                let mut all = serializer.serialize_struct(name, serialized_count(fields))?;
                for field in fields {
                    match field.is_skipped {
                        true => all.skip_field(field.name)?,
                        false => all.serialize_field(field.name, &field.value)?,
                    }
                }
                all.end()
            }
            Tree::UnitVariant(Variant { of, index, name }) => {
                serializer.serialize_unit_variant(of, *index, name)
            }
            Tree::NewtypeVariant(Variant { of, index, name }, value) => {
                serializer.serialize_newtype_variant(of, *index, name, value)
            }
            Tree::TupleVariant(Variant { of, index, name }, values) => {
                let mut tuple = serializer.serialize_tuple_variant(of, *index, name, values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Tree::StructVariant(Variant { of, index, name }, fields) => {
                let mut all =
                    serializer.serialize_struct_variant(of, *index, name, serialized_count(fields))?;
                for field in fields {
                    match field.is_skipped {
                        true => all.skip_field(field.name)?,
                        false => all.serialize_field(field.name, &field.value)?,
                    }
                }
                all.end()
            }
        }
    }
}

fn serialized_count(fields: &[Field]) -> usize {
    fields.iter().filter(|field| !field.is_skipped).count()
}

fn name() -> impl Strategy<Value = Name> {
    (0..NAMES.len()).prop_map(|at| NAMES[at])
}

fn variant() -> impl Strategy<Value = Variant> {
    (name(), 0_u32..3, name()).prop_map(|(of, index, name)| Variant { of, index, name })
}

fn leaf() -> impl Strategy<Value = Tree> {
    let number = prop_oneof![-2_i128..3, Just(200), Just(70_000), Just(1 << 40), Just(-(1 << 70))];
    prop_oneof![
        Just(Tree::Unit),
        any::<bool>().prop_map(Tree::Bool),
        (number, 0..WIDTHS.len()).prop_map(|(value, at)| Tree::Integer(Width::for_value(value, at), value)),
        prop_oneof![Just(0.0), Just(-0.0), Just(1.0), Just(f32::NAN)].prop_map(Tree::F32),
        prop_oneof![Just(0.0), Just(-0.0), Just(1.0), Just(f64::NAN)].prop_map(Tree::F64),
        prop_oneof![Just('a'), Just('1')].prop_map(Tree::Char),
        "[ab\0]{0,3}".prop_map(Tree::Str),
        prop::collection::vec(97_u8..99, 0..3).prop_map(Tree::Bytes),
        Just(Tree::None),
        name().prop_map(Tree::UnitStruct),
        variant().prop_map(Tree::UnitVariant),
    ]
}

pub(crate) fn tree() -> impl Strategy<Value = Tree> {
    leaf().prop_recursive(4, 32, 4, |inner| {
        let values = || prop::collection::vec(inner.clone(), 0..4);
        let fields = || {
            let field = (name(), inner.clone(), prop::bool::weighted(0.1))
                .prop_map(|(name, value, is_skipped)| Field { name, value, is_skipped });
            prop::collection::vec(field, 0..5)
        };
        prop_oneof![
            inner.clone().prop_map(|value| Tree::Some(value.into())),
            (name(), inner.clone()).prop_map(|(name, value)| Tree::Newtype(name, value.into())),
            values().prop_map(Tree::Seq),
            values().prop_map(Tree::Unordered),
            prop::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Tree::Map),
            values().prop_map(Tree::Tuple),
            (name(), values()).prop_map(|(name, values)| Tree::TupleStruct(name, values)),
            (name(), fields()).prop_map(|(name, fields)| Tree::Struct(name, fields)),
            (variant(), inner.clone()).prop_map(|(one, value)| Tree::NewtypeVariant(one, value.into())),
            (variant(), values()).prop_map(|(one, values)| Tree::TupleVariant(one, values)),
            (variant(), fields()).prop_map(|(one, fields)| Tree::StructVariant(one, fields)),
        ]
    })
}

/// Generates a tree and a copy of it with a few mutations, some of which keep its meaning.
pub(crate) fn pair() -> impl Strategy<Value = (Tree, Tree)> {
    let mutations = prop::collection::vec((any::<usize>(), any::<usize>(), any::<usize>()), 0..4);
    (tree(), mutations).prop_map(|(one, mutations)| {
        let mut other = one.clone();
        for (at, how, detail) in mutations {
            let at = at % count(&other);
            mutate(nth(&mut other, &mut { at }).unwrap(), how, detail);
        }
        (one, other)
    })
}

fn children(tree: &mut Tree) -> Vec<&mut Tree> {
    match tree {
        Tree::Some(value) | Tree::Newtype(_, value) | Tree::NewtypeVariant(_, value) => vec![value],
        Tree::Seq(values)
        | Tree::Unordered(values)
        | Tree::Tuple(values)
        | Tree::TupleStruct(_, values)
        | Tree::TupleVariant(_, values) => values.iter_mut().collect(),
        Tree::Map(entries) => entries.iter_mut().flat_map(|(key, value)| [key, value]).collect(),
        Tree::Struct(_, fields) | Tree::StructVariant(_, fields) => {
            fields.iter_mut().map(|field| &mut field.value).collect()
        }
        _ => Vec::new(),
    }
}

fn count(tree: &Tree) -> usize {
    1 + children(&mut tree.clone()).iter().map(|child| count(child)).sum::<usize>()
}

/// Returns the node that has `left` nodes before it in depth-first order.
fn nth<'t>(tree: &'t mut Tree, left: &mut usize) -> Option<&'t mut Tree> {
    if *left == 0 {
        return Some(tree);
    }
    *left -= 1;
    children(tree).into_iter().find_map(|child| nth(child, left))
}

/// Changes one node. About half of the changes keep its meaning.
fn mutate(tree: &mut Tree, how: usize, detail: usize) {
    let other_name = NAMES[detail % NAMES.len()];
    match (how % 10, &mut *tree) {
        (0, _) => *tree = Tree::Newtype(other_name, tree.clone().into()),
        (1, _) => *tree = Tree::Some(tree.clone().into()),
        (2, Tree::Some(value) | Tree::Newtype(_, value)) => *tree = (**value).clone(),
        (3, _) => *tree = Tree::None,
        (4, Tree::Seq(values)) => *tree = Tree::Unordered(values.clone()),
        (4, Tree::Unordered(values)) => *tree = Tree::Tuple(values.clone()),
        (4, Tree::Tuple(values)) => *tree = Tree::TupleStruct(other_name, values.clone()),
        (4, Tree::TupleStruct(_, values)) => *tree = Tree::Seq(values.clone()),
        (_, Tree::Integer(width, value)) => match detail % 3 {
            0 => *tree = Tree::Integer(Width::for_value(*value + 1, detail), *value + 1),
            _ => *width = Width::for_value(*value, detail),
        },
        (_, Tree::F32(value)) => *value = if value.is_nan() { f32::from_bits(0xFFC0_0001) } else { -*value },
        (_, Tree::F64(value)) => *value = if value.is_nan() { -f64::NAN } else { -*value },
        (_, Tree::Str(value)) => *tree = Tree::Bytes(value.clone().into()),
        (_, Tree::Bool(value)) => *value = !*value,
        (_, Tree::UnitStruct(name)) => *name = other_name,
        (
            5,
            Tree::UnitVariant(one)
            | Tree::NewtypeVariant(one, _)
            | Tree::TupleVariant(one, _)
            | Tree::StructVariant(one, _),
        ) => match detail % 3 {
            0 => one.of = other_name,
            1 => one.index += 1,
            _ => one.name = other_name,
        },
        (6, Tree::TupleVariant(one, values)) => {
            *tree = Tree::NewtypeVariant(*one, Tree::Tuple(values.clone()).into());
        }
        (_, Tree::Map(entries)) if !entries.is_empty() => {
            let (at, length) = (detail % entries.len(), entries.len());
            match how % 10 {
                5 => drop(entries.remove(at)),
                6 => entries.push(entries[at].clone()),
                7 => {
                    let (key, value) = entries[at].clone();
                    entries[at] = (value, key);
                }
                8 => {
                    let value = entries[at].1.clone();
                    entries[at].1 = std::mem::replace(&mut entries[length - 1].1, value);
                }
                _ => entries.rotate_left(at),
            }
        }
        (
            _,
            Tree::Seq(values)
            | Tree::Unordered(values)
            | Tree::Tuple(values)
            | Tree::TupleStruct(_, values)
            | Tree::TupleVariant(_, values),
        ) if !values.is_empty() => {
            let at = detail % values.len();
            match how % 10 {
                5 => drop(values.remove(at)),
                6 => values.push(values[at].clone()),
                _ => values.rotate_left(at),
            }
        }
        (5, Tree::Struct(name, _)) => *name = other_name,
        (_, Tree::Struct(_, fields) | Tree::StructVariant(_, fields)) if !fields.is_empty() => {
            let (at, last) = (detail % fields.len(), fields.len() - 1);
            match how % 10 {
                6 => fields[at].is_skipped = !fields[at].is_skipped,
                7 => fields[at].name = other_name,
                8 => {
                    let value = fields[at].value.clone();
                    fields[at].value = std::mem::replace(&mut fields[last].value, value);
                }
                _ => fields.rotate_left(at),
            }
        }
        _ => {}
    }
}

/// The model's view of a [`Tree`]: equal nodes stand for values that a serializer must treat as the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) label: String,
    pub(crate) children: Vec<Node>,
}

impl Node {
    pub(crate) fn new(label: impl Into<String>, children: impl IntoIterator<Item = Node>) -> Node {
        Node { label: label.into(), children: children.into_iter().collect() }
    }

    /// Makes a node that ignores the order of its children.
    pub(crate) fn bag(label: impl Into<String>, children: impl IntoIterator<Item = Node>) -> Node {
        let mut bag = Node::new(label, children);
        bag.children.sort();
        bag
    }
}

/// Receives each value of a golden table.
pub(crate) trait Rows {
    fn row<T: Serialize + ?Sized>(&mut self, name: &str, value: &T);
}

pub(crate) struct Bytes<'b>(pub(crate) &'b [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[derive(Serialize)]
struct UnitStruct;

#[derive(Serialize)]
struct Newtype(u8);

#[derive(Serialize)]
struct TupleStruct(u8, u16);

#[derive(Serialize)]
struct Transfer {
    from: u32,
    to: u32,
}

#[derive(Serialize)]
struct Skips {
    to: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<u8>,
}

#[derive(Serialize)]
struct Flattens {
    id: u8,
    #[serde(flatten)]
    transfer: Transfer,
}

#[derive(Serialize)]
struct Set {
    #[serde(serialize_with = "unordered")]
    tags: Vec<u8>,
}

#[derive(Serialize)]
enum Command {
    Nothing,
    Charge(u8),
    Move(u8, u16),
    Transfer { from: u32, to: u32 },
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum InternallyTagged {
    Transfer { from: u32 },
}

#[derive(Serialize)]
#[serde(tag = "type", content = "of")]
enum AdjacentlyTagged {
    Charge(u8),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
}

/// Passes a value of each kind in serde's data model to `rows`.
pub(crate) fn every_kind(rows: &mut impl Rows) {
    rows.row("unit", &());
    rows.row("false", &false);
    rows.row("true", &true);
    rows.row("0u8", &0_u8);
    rows.row("7i8", &7_i8);
    rows.row("7i16", &7_i16);
    rows.row("7i32", &7_i32);
    rows.row("7i64", &7_i64);
    rows.row("7i128", &7_i128);
    rows.row("7isize", &7_isize);
    rows.row("7u8", &7_u8);
    rows.row("7u16", &7_u16);
    rows.row("7u32", &7_u32);
    rows.row("7u64", &7_u64);
    rows.row("7u128", &7_u128);
    rows.row("7usize", &7_usize);
    rows.row("-7i8", &-7_i8);
    rows.row("i64::MIN", &i64::MIN);
    rows.row("u64::MAX", &u64::MAX);
    rows.row("2^64", &(1_u128 << 64));
    rows.row("i128::MIN", &i128::MIN);
    rows.row("u128::MAX", &u128::MAX);
    rows.row("0f32", &0.0_f32);
    rows.row("-0f32", &-0.0_f32);
    rows.row("1.5f32", &1.5_f32);
    rows.row("NaN f32", &f32::from_bits(0xFFC0_0001));
    rows.row("0f64", &0.0_f64);
    rows.row("-0f64", &-0.0_f64);
    rows.row("1.5f64", &1.5_f64);
    rows.row("-infinity f64", &f64::NEG_INFINITY);
    rows.row("NaN f64", &f64::from_bits(0xFFF8_0000_0000_0001));
    rows.row("char", &'ä');
    rows.row("str", "charge");
    rows.row("long str", "a name of more than two words");
    rows.row("empty str", "");
    rows.row("displayed str", &format_args!("charge"));
    rows.row("bytes", &Bytes(b"charge"));
    rows.row("none", &None::<u8>);
    rows.row("some", &Some(7_u8));
    rows.row("some unit", &Some(()));
    rows.row("some none", &Some(None::<u8>));
    rows.row("some some none", &Some(Some(None::<u8>)));
    rows.row("some some", &Some(Some(7_u8)));
    rows.row("unit struct", &UnitStruct);
    rows.row("newtype struct", &Newtype(7));
    rows.row("sequence", &vec![2_u8, 1]);
    rows.row("empty sequence", &Vec::<u8>::new());
    rows.row("nested sequence", &vec![vec![2_u8, 1], vec![]]);
    rows.row("map", &BTreeMap::from([(2_u8, "two"), (1, "one")]));
    rows.row("empty map", &BTreeMap::<u8, u8>::new());
    rows.row("tuple", &(7_u8, 8_u16));
    rows.row("array", &[7_u8, 8]);
    rows.row("empty array", &[0_u8; 0]);
    rows.row("tuple struct", &TupleStruct(7, 8));
    rows.row("struct", &Transfer { from: 1, to: 2 });
    rows.row("skipped field", &Skips { to: 1, note: None });
    rows.row("field not skipped", &Skips { to: 1, note: Some(2) });
    rows.row("flattened struct", &Flattens { id: 7, transfer: Transfer { from: 1, to: 2 } });
    rows.row("unordered sequence", &Set { tags: vec![2, 1, 2] });
    rows.row("unit variant", &Command::Nothing);
    rows.row("newtype variant", &Command::Charge(7));
    rows.row("tuple variant", &Command::Move(7, 8));
    rows.row("struct variant", &Command::Transfer { from: 1, to: 2 });
    rows.row("internally tagged", &InternallyTagged::Transfer { from: 1 });
    rows.row("adjacently tagged", &AdjacentlyTagged::Charge(7));
    rows.row("untagged", &Untagged::Number(7));
    rows.row("result", &Ok::<u8, ()>(7));
    rows.row("address", &IpAddr::V4(Ipv4Addr::LOCALHOST));
    rows.row("duration", &std::time::Duration::new(1, 5));
}

/// Compares `table` with the golden table, and prints `table` if they differ.
pub(crate) fn assert_golden(table: &str, golden: &str) {
    for (line, (one, other)) in table.lines().zip(golden.lines()).enumerate() {
        assert_eq!(one, other, "line {}; the whole table is\n{table}", line + 1);
    }
    assert_eq!(table.lines().count(), golden.lines().count(), "the whole table is\n{table}");
}

/// Nested lists, `depth` deep.
pub(crate) struct Nested {
    pub(crate) depth: u32,
}

impl Serialize for Nested {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        if self.depth > 1 {
            seq.serialize_element(&Nested { depth: self.depth - 1 })?;
        }
        seq.end()
    }
}

/// A linked list of `length` nodes, as a struct with an optional boxed `next`.
pub(crate) struct Linked {
    pub(crate) length: u32,
}

impl Serialize for Linked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut node = serializer.serialize_struct("Node", 2)?;
        node.serialize_field("value", &self.length)?;
        let next = (self.length > 1).then(|| Box::new(Linked { length: self.length - 1 }));
        node.serialize_field("next", &next)?;
        node.end()
    }
}

/// Newtypes and options nested in each other, `depth` deep.
pub(crate) struct Wrapped {
    pub(crate) depth: u32,
}

impl Serialize for Wrapped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let inner = Wrapped { depth: self.depth.saturating_sub(1) };
        match self.depth {
            0 => serializer.serialize_none(),
            odd if odd % 2 == 1 => serializer.serialize_some(&inner),
            _ => serializer.serialize_newtype_struct("Wrapped", &inner),
        }
    }
}

/// Fails to serialise, with a text.
pub(crate) struct Fails;

impl Serialize for Fails {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("the card has expired"))
    }
}

/// Declares 9 elements and has 2.
pub(crate) enum WrongLength {
    Sequence,
    Tuple,
    Struct,
    Map,
}

impl Serialize for WrongLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            WrongLength::Sequence => {
                let mut seq = serializer.serialize_seq(Some(9))?;
                seq.serialize_element(&1_u8)?;
                seq.serialize_element(&2_u8)?;
                seq.end()
            }
            WrongLength::Tuple => {
                let mut tuple = serializer.serialize_tuple(9)?;
                tuple.serialize_element(&1_u8)?;
                tuple.serialize_element(&2_u8)?;
                tuple.end()
            }
            WrongLength::Struct => {
                let mut fields = serializer.serialize_struct("Transfer", 9)?;
                fields.serialize_field("from", &1_u8)?;
                fields.serialize_field("to", &2_u8)?;
                fields.end()
            }
            WrongLength::Map => {
                let mut map = serializer.serialize_map(Some(9))?;
                map.serialize_entry("from", &1_u8)?;
                map.serialize_entry("to", &2_u8)?;
                map.end()
            }
        }
    }
}

/// Runs `test` on a stack so small that a walk without a depth limit overflows it.
pub(crate) fn on_a_small_stack(test: fn()) {
    std::thread::Builder::new().stack_size(128 << 10).spawn(test).unwrap().join().unwrap();
}

/// Returns the duration of each call in nanoseconds: the median of many rounds in which the calls take turns.
pub(crate) fn medians<const N: usize>(mut calls: [&mut dyn FnMut(); N]) -> [f64; N] {
    const ROUNDS: usize = 401;
    const CALLS: u32 = 2_000;
    let mut rounds = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (call, rounds) in calls.iter_mut().zip(&mut rounds) {
            let start = Instant::now();
            (0..CALLS).for_each(|_| call());
            rounds.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
        }
    }
    rounds.map(|mut rounds| {
        rounds.sort_by(f64::total_cmp);
        rounds[ROUNDS / 2]
    })
}
