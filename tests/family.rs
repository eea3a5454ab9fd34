//! Checks that no recorded value is replayed as a different one.
//!
//! A family of types covers the kinds of values and the attributes that programs use. A retry with the same type must get
//! the recorded value or an error. A retry with a different type of the family must get a value with the same names and the
//! same contents, or an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "random values of every width")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;

use common::random::Random;
use oncekey::{Bincode, Codec, Error, Json, Outcome, RunError, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A type with random values.
trait Sample {
    /// Returns a random value.
    fn sample(random: &mut Random) -> Self;
}

macro_rules! integers {
    ($($integer:ty)*) => {
        $(impl Sample for $integer {
            fn sample(random: &mut Random) -> Self {
                // Mostly small numbers, because their encodings resemble each other, and those of lengths and variants.
                if random.below(3) == 0 { random.next() as $integer } else { random.below(4) as $integer }
            }
        })*
    };
}
integers!(u8 u16 u32 u64 i8 i16 i32 i64 i128 u128);

impl Sample for bool {
    fn sample(random: &mut Random) -> bool {
        random.below(2) == 0
    }
}

impl Sample for char {
    fn sample(random: &mut Random) -> char {
        ['a', '\0', 'é', '\u{1F980}'][random.below(4)]
    }
}

impl Sample for String {
    fn sample(random: &mut Random) -> String {
        (0..random.below(4)).map(|_| char::sample(random)).collect()
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(random: &mut Random) -> Option<T> {
        (random.below(2) == 0).then(|| T::sample(random))
    }
}

impl<T: Sample> Sample for Box<T> {
    fn sample(random: &mut Random) -> Box<T> {
        Box::new(T::sample(random))
    }
}

fn several<T: Sample, All: FromIterator<T>>(random: &mut Random) -> All {
    (0..random.below(4)).map(|_| T::sample(random)).collect()
}

macro_rules! collections {
    ($([$($bound:tt)*] $collection:ty;)*) => {
        $(impl<$($bound)*> Sample for $collection {
            fn sample(random: &mut Random) -> Self {
                several(random)
            }
        })*
    };
}
collections! {
    [T: Sample] Vec<T>;
    [T: Sample + Ord] BTreeSet<T>;
    [T: Sample + Eq + std::hash::Hash] HashSet<T>;
    [K: Sample + Ord, V: Sample] BTreeMap<K, V>;
    [K: Sample + Eq + std::hash::Hash, V: Sample] HashMap<K, V>;
}

macro_rules! tuples {
    ($(($($name:ident)*))*) => {
        $(impl<$($name: Sample),*> Sample for ($($name,)*) {
            fn sample(random: &mut Random) -> Self {
                ($($name::sample(random),)*)
            }
        })*
    };
}
tuples!((A) (A B) (A B C));

/// A float that is compared by its bits, so that a NaN equals itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Float(f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Sample for Float {
    fn sample(random: &mut Random) -> Float {
        let special = [0.0, -0.0, f64::NAN, f64::INFINITY, 0.1, f64::MIN_POSITIVE];
        match random.below(8) {
            n @ 0..6 => Float(special[n]),
            _ => Float(f64::from_bits(random.next())),
        }
    }
}

impl Sample for Value {
    fn sample(random: &mut Random) -> Value {
        match random.below(5) {
            0 => Value::Null,
            1 => serde_json::json!(u64::sample(random)),
            2 => serde_json::json!({ "id": 1, "x": 0.5 }),
            3 => serde_json::json!([1, "two"]),
            _ => serde_json::json!(String::sample(random)),
        }
    }
}

macro_rules! structs {
    ($($(#[$of_type:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $kind:ty,)* })*) => {
        $(#[derive(Debug, PartialEq, Serialize, Deserialize)]
        $(#[$of_type])*
        struct $name { $($(#[$of_field])* $field: $kind,)* }

        impl Sample for $name {
            fn sample(random: &mut Random) -> $name {
                let _ = &random;
                $name { $($field: <$kind>::sample(random),)* }
            }
        })*
    };
}

structs! {
    Plain { a: u32, b: i64, }
    Reordered { b: i64, a: u32, }
    Renamed { a: u32, c: i64, }
    RenamedBack { a: u32, #[serde(rename = "b")] c: i64, }
    Wider { a: u64, b: i64, }
    OtherSign { a: i32, b: i64, }
    Longer { a: u32, b: i64, c: u8, }
    Shorter { a: u32, }
    Empty {}
    Optional { a: Option<u32>, b: Option<Option<u8>>, }
    SkipsFirst { #[serde(skip_serializing_if = "Option::is_none", default)] a: Option<u8>, b: u8, }
    SkipsLast { b: u8, #[serde(skip_serializing_if = "Option::is_none", default)] a: Option<u8>, }
    SkipsAlways { #[serde(skip)] a: u8, b: u8, }
    Defaulted { #[serde(default)] a: u32, #[serde(default)] b: i64, }
    Flattened { id: u32, #[serde(flatten)] rest: BTreeMap<String, u32>, }
    FlattenedStruct { id: u32, #[serde(flatten)] rest: Plain, }
    Floats { a: Float, b: f32, }
    Texts { a: String, b: char, c: bool, }
    Collections { a: Vec<Option<u16>>, b: HashMap<u8, Plain>, c: HashSet<String>, d: BTreeMap<String, Float>, }
    #[serde(transparent)]
    Transparent { inner: Plain, }
    #[serde(deny_unknown_fields)]
    Strict { a: u32, b: i64, }
}

macro_rules! enums {
    ($($(#[$of_type:meta])* $name:ident)*) => {
        $(#[derive(Debug, PartialEq, Serialize, Deserialize)]
        $(#[$of_type])*
        enum $name { Charged { id: u32 }, Refused, Number(u8), Pair { a: u8, b: u8 } }

        impl Sample for $name {
            fn sample(random: &mut Random) -> $name {
                match random.below(4) {
                    0 => $name::Charged { id: u32::sample(random) },
                    1 => $name::Refused,
                    2 => $name::Number(u8::sample(random)),
                    _ => $name::Pair { a: u8::sample(random), b: u8::sample(random) },
                }
            }
        })*
    };
}

enums! {
    Plainly
    #[serde(tag = "kind", content = "value")] Adjacent
    #[serde(untagged)] Untagged
    #[serde(rename_all = "lowercase")] Lowercase
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Inserted {
    Pending,
    Charged { id: u32 },
    Refused,
    Number(u8),
}

impl Sample for Inserted {
    fn sample(random: &mut Random) -> Inserted {
        match random.below(4) {
            0 => Inserted::Pending,
            1 => Inserted::Charged { id: u32::sample(random) },
            2 => Inserted::Refused,
            _ => Inserted::Number(u8::sample(random)),
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Charged { id: u32 },
    Refused,
}

impl Sample for Internal {
    fn sample(random: &mut Random) -> Internal {
        if random.below(2) == 0 { Internal::Charged { id: u32::sample(random) } } else { Internal::Refused }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair(u32, i64);

impl Sample for Pair {
    fn sample(random: &mut Random) -> Pair {
        Pair(u32::sample(random), i64::sample(random))
    }
}

/// A type of the family, as functions that do not depend on the type.
struct Member {
    name: &'static str,
    /// Records a random value under "k" and checks the first retry. Returns [`by_names`] of the value, or `None` if it was not
    /// recorded.
    record: fn(&Store, Under, &mut Random) -> Option<Option<Value>>,
    /// Replays the result as this type. Returns [`by_names`] of the value.
    replay: fn(&Store, Under) -> Result<Option<Value>, Error>,
}

#[derive(Debug, Clone, Copy)]
enum Under {
    Bincode,
    Json,
}

/// Converts a value to JSON, which contains all names of fields and variants. Returns `None` if JSON cannot represent it.
///
/// Lists are sorted, because the order of a set is not fixed. The first retry with the same type checks that lists keep
/// their order.
fn by_names(value: &impl Serialize) -> Option<Value> {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(values) => {
                values.iter_mut().for_each(sort);
                values.sort_by_key(Value::to_string);
            }
            Value::Object(fields) => fields.values_mut().for_each(sort),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(value).ok()?;
    sort(&mut value);
    Some(value)
}

fn record<T, C: Codec + Copy>(store: &Store, codec: C, random: &mut Random) -> Option<Option<Value>>
where
    T: Sample + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let operation = || store.operation("k").codec(codec);
    let first = operation().run(|_| Ok::<_, String>(T::sample(random)));
    let again = operation().run(|_| -> Result<T, String> { panic!("the side effect ran again") });
    match (first, again) {
        (Ok(Outcome::Done(first)), Ok(Outcome::AlreadyDone(again))) => {
            assert_eq!(first, again, "the first call and a retry got different values");
            Some(by_names(&first))
        }
        (Err(RunError::Unrecorded { .. }), Err(RunError::Store(Error::ResultNotKept { .. }))) => None,
        (first, again) => panic!("{first:?}, then {again:?}"),
    }
}

fn replay<T, C: Codec + Copy>(store: &Store, codec: C) -> Result<Option<Value>, Error>
where
    T: Serialize + DeserializeOwned + Debug,
{
    match store
        .operation("k")
        .codec(codec)
        .run(|_| -> Result<T, String> { panic!("the side effect ran again") })
    {
        Ok(Outcome::AlreadyDone(replayed)) => Ok(by_names(&replayed)),
        Err(RunError::Store(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

macro_rules! family {
    ($($kind:ty,)*) => {
        [$(Member {
            name: stringify!($kind),
            record: |store, under, random| match under {
                Under::Bincode => record::<$kind, _>(store, Bincode, random),
                Under::Json => record::<$kind, _>(store, Json, random),
            },
            replay: |store, under| match under {
                Under::Bincode => replay::<$kind, _>(store, Bincode),
                Under::Json => replay::<$kind, _>(store, Json),
            },
        }),*]
    };
}

const FAMILY: &[Member] = &family![
    u8, i8, u16, u32, i32, u64, i64, u128, i128, bool, char, String, (), (u8,), (u32, i64), Float, f32Sample, Option<u8>,
    Option<Option<u8>>, Vec<u8>, Vec<u64>, HashSet<u16>, BTreeSet<u16>, HashMap<u8, String>, BTreeMap<String, u8>, Plain,
    Reordered, Renamed, RenamedBack, Wider, OtherSign, Longer, Shorter, Empty, Optional, SkipsFirst, SkipsLast, SkipsAlways,
    Defaulted, Flattened, FlattenedStruct, Floats, Texts, Collections, Transparent, Strict, Plainly, Adjacent, Untagged,
    Lowercase, Inserted, Internal, Pair, Value,
];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "a name for the list of types")]
struct f32Sample(f32);

impl Sample for f32Sample {
    fn sample(random: &mut Random) -> f32Sample {
        f32Sample(f32::sample(random))
    }
}

impl Sample for f32 {
    fn sample(random: &mut Random) -> f32 {
        [0.0, -0.0, 0.1, 1e30][random.below(4)]
    }
}

impl Sample for () {
    fn sample(_random: &mut Random) {}
}

#[test]
fn a_retry_gets_the_recorded_value_or_an_error() {
    let mut random = Random(7);
    let (mut recorded, mut unrecorded, mut read_as_other, mut refused) = (0, 0, 0, 0);
    for under in [Under::Bincode, Under::Json] {
        for member in FAMILY {
            for _ in 0..12 {
                let store = Store::in_memory().unwrap();
                let Some(named) = (member.record)(&store, under, &mut random) else {
                    unrecorded += 1;
                    continue;
                };
                recorded += 1;
                for other in FAMILY {
                    match (other.replay)(&store, under) {
                        Ok(replayed) => {
                            read_as_other += usize::from(other.name != member.name);
                            if matches!(under, Under::Bincode) {
                                assert_eq!(
                                    replayed, named,
                                    "a {} was replayed as a {}",
                                    member.name, other.name
                                );
                            }
                        }
                        Err(Error::Decode { .. }) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }
    assert!(
        recorded > 800 && unrecorded > 100,
        "the test must cover more than {recorded} recorded and {unrecorded} unrecorded values"
    );
    assert!(
        read_as_other > 500 && refused > 10_000,
        "the test must cover more than {read_as_other} values read as a different type and {refused} refusals"
    );
}
