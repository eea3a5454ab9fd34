//! The codecs by themselves: what they encode comes back, and no bytes harm the process that decodes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::{self, Debug};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use oncekey::{Bincode, Codec, CodecError, Json};
use proptest::prelude::*;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How deep values may be nested, as containers and as wrappers.
const LIMIT: usize = 128;
/// How deep serde_json lets containers be nested.
const JSON_LIMIT: usize = 127;
/// Far beyond what a small stack can hold.
const DEEP: usize = 20_000;
/// A `u64` in bincode's encoding follows this byte.
const U64: u8 = 253;

fn claim(length: u64) -> Vec<u8> {
    let mut bytes = vec![U64];
    bytes.extend(length.to_le_bytes());
    bytes
}

/// On a stack that is far too small for a decoder that follows every level of its input.
fn on_a_small_stack<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(128 << 10).spawn(what).unwrap().join().unwrap()
}

fn assert_comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(codec: &impl Codec, value: &T) {
    let bytes = codec.encode(value).unwrap();
    assert_eq!(codec.decode::<T>(&bytes).unwrap(), *value, "{bytes:?}");
}

fn assert_too_deep<T: Debug>(decoded: Result<T, CodecError>) {
    let text = decoded.unwrap_err().to_string();
    assert!(text.contains("levels deep") || text.contains("recursion limit"), "{text}");
}

// Types that nest, each by another kind. With bincode a level of each is the byte 1, and the end is the byte 0.

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Sequence(Vec<Sequence>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wrapper(Option<Box<Wrapper>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Linked {
    next: Option<Box<Linked>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair((), Option<Box<Pair>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Newtypes {
    End,
    More(Box<Newtypes>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Tuples {
    End,
    More((), Box<Tuples>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Structs {
    End,
    More { next: Box<Structs> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Maps(BTreeMap<(), Maps>);

/// No value of it exists, and decoding one asks for no byte.
#[derive(Debug, Serialize, Deserialize)]
struct Endless(Box<Endless>);

fn levels(count: usize) -> Vec<u8> {
    let mut bytes = vec![1; count];
    bytes.push(0);
    bytes
}

/// `allowed` levels of `T` come back, one more is an error, and so is a great many.
fn assert_limited<T: DeserializeOwned + Serialize + Debug + PartialEq + Send + 'static>(allowed: usize) {
    on_a_small_stack(move || {
        assert_too_deep(Bincode.decode::<T>(&levels(DEEP)));
        assert_too_deep(Bincode.decode::<T>(&levels(allowed + 1)));
        let value = Bincode.decode::<T>(&levels(allowed)).unwrap();
        assert_eq!(Bincode.encode(&value).unwrap(), levels(allowed));
    });
}

#[test]
fn bincode_refuses_sequences_that_are_nested_too_deep() {
    // The last one holds the empty sequence.
    assert_limited::<Sequence>(LIMIT - 1);
}

#[test]
fn bincode_refuses_wrappers_that_are_nested_too_deep() {
    // A newtype and a `Some` each; the last newtype holds `None`.
    assert_limited::<Wrapper>(LIMIT / 2 - 1);
}

#[test]
fn bincode_refuses_a_linked_list_that_is_too_long() {
    // The first node has no `Some` around it.
    assert_limited::<Linked>(LIMIT - 1);
    assert_limited::<Pair>(LIMIT - 1);
}

#[test]
fn bincode_refuses_variants_that_are_nested_too_deep() {
    assert_limited::<Newtypes>(LIMIT);
    assert_limited::<Tuples>(LIMIT);
    assert_limited::<Structs>(LIMIT);
}

#[test]
fn bincode_refuses_maps_that_are_nested_too_deep() {
    assert_limited::<Maps>(LIMIT - 1);
}

#[test]
fn a_type_that_asks_for_no_byte_is_no_endless_recursion() {
    on_a_small_stack(|| assert_too_deep(Bincode.decode::<Endless>(&[])));
    on_a_small_stack(|| assert_too_deep(Json.decode::<Endless>(b"1")));
    on_a_small_stack(|| assert_too_deep(Json.decode::<Wrapper>(b"1")));
}

#[test]
fn json_refuses_what_is_nested_too_deep() {
    let nested = |open: &str, end: &str, close: &str, count: usize| {
        [open.repeat(count), end.into(), close.repeat(count)].concat().into_bytes()
    };
    on_a_small_stack(move || {
        for count in [JSON_LIMIT, DEEP] {
            assert_too_deep(Json.decode::<Sequence>(&nested("[", "[]", "]", count)));
            assert_too_deep(Json.decode::<Linked>(&nested(r#"{"next":"#, r#"{"next":null}"#, "}", count)));
            assert_too_deep(Json.decode::<Newtypes>(&nested(r#"{"More":"#, r#"{"More":"End"}"#, "}", count)));
            assert_too_deep(Json.decode::<serde_json::Value>(&nested("[", "[]", "]", count)));
        }
        assert!(Json.decode::<Sequence>(&nested("[", "[]", "]", JSON_LIMIT - 1)).is_ok());
        assert!(
            Json.decode::<Linked>(&nested(r#"{"next":"#, r#"{"next":null}"#, "}", JSON_LIMIT - 1)).is_ok()
        );
    });
}

#[test]
fn many_small_integers_decode_whatever_memory_they_take() {
    // 9 MB as bincode writes them, 72 MB as a `Vec<u64>`.
    let many = vec![7_u64; 9_000_000];
    let bytes = Bincode.encode(&many).unwrap();
    assert!(bytes.len() < 10 << 20);
    assert!(Bincode.decode::<Vec<u64>>(&bytes).unwrap() == many);
}

/// Bytes as `serde_bytes` has them.
#[derive(Debug, PartialEq)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Buffer;
        impl Visitor<'_> for Buffer {
            type Value = Vec<u8>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Buffer).map(Bytes)
    }
}

#[test]
fn a_length_beyond_the_input_is_refused_without_being_allocated() {
    // A petabyte exceeds the address space of a process on x86-64: allocating it would abort the test.
    fn refused<T: DeserializeOwned + Debug>() {
        for length in [1 << 50, u64::MAX >> 1, u64::MAX] {
            for rest in [0, 1, 100] {
                let mut bytes = claim(length);
                bytes.extend(vec![0; rest]);
                assert!(Bincode.decode::<T>(&bytes).is_err(), "{length} and {rest} bytes");
            }
        }
    }
    refused::<String>();
    refused::<Bytes>();
    refused::<Box<str>>();
    refused::<Vec<u8>>();
    refused::<Vec<u64>>();
    refused::<Vec<[u64; 32]>>();
    refused::<Vec<String>>();
    refused::<Vec<Vec<u64>>>();
    refused::<VecDeque<u64>>();
    refused::<Box<[u64]>>();
    refused::<HashMap<u64, u64>>();
    refused::<HashSet<[u64; 32]>>();
    refused::<BTreeMap<String, Vec<u8>>>();
    refused::<BTreeSet<u8>>();
    refused::<std::path::PathBuf>();
    refused::<std::ffi::CString>();
}

#[test]
fn a_forged_count_of_elements_without_bytes_ends() {
    for length in [1 << 60, u64::MAX >> 1] {
        assert!(Bincode.decode::<Vec<()>>(&claim(length)).is_err());
        assert!(Bincode.decode::<Vec<[u8; 0]>>(&claim(length)).is_err());
        assert!(Bincode.decode::<Vec<((), ())>>(&claim(length)).is_err());
        assert!(Bincode.decode::<HashMap<(), ()>>(&claim(length)).is_err());
    }
    assert_comes_back(&Bincode, &vec![(); 100_000]);
}

// Every kind of serde's data model.

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(u16);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Point(i32, i32);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Named {
    id: u64,
    name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Unit,
    Newtype(u8),
    Tuple(u8, String),
    Struct { at: u64, what: Option<bool> },
}

fn every_kind(codec: &impl Codec) {
    fn each<T: Serialize + DeserializeOwned + PartialEq + Debug>(codec: &impl Codec, values: &[T]) {
        for value in values {
            assert_comes_back(codec, value);
        }
    }
    each(codec, &[false, true]);
    each(codec, &[0, i8::MIN, i8::MAX]);
    each(codec, &[0, i16::MIN, i16::MAX]);
    each(codec, &[0, i32::MIN, i32::MAX]);
    each(codec, &[0, i64::MIN, i64::MAX]);
    each(codec, &[0, i128::MIN, i128::MAX]);
    each(codec, &[0, u8::MAX]);
    each(codec, &[0, 250, 251, u16::MAX]);
    each(codec, &[0, 1 << 16, u32::MAX]);
    each(codec, &[0, 1 << 32, u64::MAX]);
    each(codec, &[0, 1 << 64, u128::MAX]);
    each(codec, &[0, usize::MAX]);
    each(codec, &[0.0, 0.1, f32::MIN, f32::MAX, f32::MIN_POSITIVE]);
    each(codec, &[0.0, 0.1, f64::MIN, f64::MAX, f64::MIN_POSITIVE, 5e-324]);
    each(codec, &['a', '\0', 'é', '€', '🦀', char::MAX]);
    each(codec, &[String::new(), "a \"b\" é 🦀 \0".to_owned()]);
    each(codec, &[Some(1), None]);
    each(codec, &[()]);
    each(codec, &[Unit]);
    each(codec, &[Newtype(7)]);
    each(codec, &[Vec::new(), vec![1_u64, 1 << 40]]);
    each(codec, &[(1_u8, "b".to_owned(), [1.5_f64; 3])]);
    each(codec, &[Point(-1, 1)]);
    each(codec, &[BTreeMap::from([(1_u64, "one".to_owned()), (2, "two".to_owned())])]);
    each(codec, &[HashMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)])]);
    each(codec, &[HashSet::from([1, 2, 3])]);
    each(codec, &[Named { id: 1, name: "n".into() }]);
    each(
        codec,
        &[
            Kind::Unit,
            Kind::Newtype(1),
            Kind::Tuple(1, "b".into()),
            Kind::Struct { at: 1, what: Some(true) },
            Kind::Struct { at: 1, what: None },
        ],
    );
    each(codec, &[Ok(1), Err("no".to_owned())]);
    each(codec, &[Duration::new(1, 999_999_999)]);
    each(codec, &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    each(codec, &[std::path::PathBuf::from("/tmp/a")]);
}

#[test]
fn every_kind_of_serde_comes_back_from_bincode() {
    every_kind(&Bincode);
    assert_comes_back(&Bincode, &Some(Some(1)));
    assert_comes_back(&Bincode, &Some(None::<u8>));
    assert_comes_back(&Bincode, &vec![Some(Unit), None]);
    assert_comes_back(&Bincode, &Bytes(vec![0, 1, 255]));
    assert_comes_back(&Bincode, &std::ffi::CString::new("c").unwrap());
    assert_comes_back(&Bincode, &BTreeMap::from([((1, 2), Kind::Unit)]));
    for value in [f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::NAN, f64::from_bits(0xfff8_0000_0000_0001)] {
        let bytes = Bincode.encode(&value).unwrap();
        assert_eq!(Bincode.decode::<f64>(&bytes).unwrap().to_bits(), value.to_bits());
    }
}

#[test]
fn every_kind_of_serde_comes_back_from_json() {
    every_kind(&Json);
    assert_comes_back(&Json, &serde_json::json!({"a": [1, -1, 0.1, "s", null, true], "b": {}}));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Charged { cents: u64, at: f64 },
    Refused { code: i16 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(flatten)]
    rest: BTreeMap<String, i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
    Several(Vec<Untagged>),
}

#[test]
fn attributes_of_serde_that_need_names_work_with_json() {
    assert_comes_back(&Json, &Tagged::Charged { cents: 5, at: 0.1 });
    assert_comes_back(&Json, &Tagged::Refused { code: -1 });
    assert_comes_back(&Json, &Flat { id: 1, rest: BTreeMap::from([("a".into(), -1)]), note: None });
    assert_comes_back(&Json, &Untagged::Several(vec![Untagged::Number(1), Untagged::Text("b".into())]));
    // An unknown field is ignored, whatever it holds.
    assert_eq!(
        Json.decode::<Named>(br#"{"id": 1, "more": [{"a": [null]}], "name": "n"}"#).unwrap(),
        Named { id: 1, name: "n".into() }
    );
}

#[test]
fn attributes_of_serde_that_need_names_are_an_error_with_bincode() {
    fn refused<T: Serialize + DeserializeOwned + Debug>(value: &T) {
        let decoded = Bincode.encode(value).and_then(|bytes| Bincode.decode::<T>(&bytes));
        assert!(decoded.is_err(), "{decoded:?}");
    }
    refused(&Tagged::Refused { code: -1 });
    refused(&Flat { id: 1, rest: BTreeMap::from([("a".into(), -1)]), note: None });
    refused(&Untagged::Number(1));
    refused(&serde_json::json!([1]));
}

#[test]
fn bytes_that_are_left_over_are_no_value() {
    assert!(Bincode.decode::<u8>(&[1, 2]).unwrap_err().to_string().contains("left over"));
    assert!(Bincode.decode::<()>(&[1]).is_err());
    assert!(Json.decode::<u8>(b"1 2").is_err());
    assert!(Json.decode::<u8>(b"1,").is_err());
    assert_eq!(Json.decode::<u8>(b" 1\n").unwrap(), 1);
}

// A generated family of values.

/// A float that equals another with the same bits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Bits(f64, f32);

impl PartialEq for Bits {
    fn eq(&self, other: &Bits) -> bool {
        self.0.to_bits() == other.0.to_bits() && self.1.to_bits() == other.1.to_bits()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Family {
    Nothing,
    Flags(bool, Option<bool>),
    Small(i8, u8, i16, u16, char),
    Large { signed: i64, unsigned: u64, wide: i128, wider: u128 },
    Floats(Bits),
    Text(String),
    Maybe(Option<Box<Family>>),
    List(Vec<Family>),
    Sorted(BTreeMap<String, Family>),
    Hashed(HashMap<u32, Family>),
    Set(BTreeSet<i32>),
    Pair(Box<(Family, Family)>),
    Record { id: u32, inner: Box<Family>, unit: (), tail: Vec<u16> },
}

fn family(floats: impl Strategy<Value = Bits> + 'static) -> impl Strategy<Value = Family> {
    let leaf = prop_oneof![
        Just(Family::Nothing),
        any::<(bool, Option<bool>)>().prop_map(|(flag, maybe)| Family::Flags(flag, maybe)),
        any::<(i8, u8, i16, u16, char)>().prop_map(|(a, b, c, d, e)| Family::Small(a, b, c, d, e)),
        any::<(i64, u64, i128, u128)>().prop_map(|(signed, unsigned, wide, wider)| Family::Large {
            signed,
            unsigned,
            wide,
            wider
        }),
        floats.prop_map(Family::Floats),
        any::<String>().prop_map(Family::Text),
        prop::collection::btree_set(any::<i32>(), 0..5).prop_map(Family::Set),
    ];
    leaf.prop_recursive(6, 40, 4, |inner| {
        prop_oneof![
            prop::option::of(inner.clone()).prop_map(|maybe| Family::Maybe(maybe.map(Box::new))),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Family::List),
            prop::collection::btree_map(any::<String>(), inner.clone(), 0..4).prop_map(Family::Sorted),
            prop::collection::hash_map(any::<u32>(), inner.clone(), 0..4).prop_map(Family::Hashed),
            (inner.clone(), inner.clone()).prop_map(|pair| Family::Pair(Box::new(pair))),
            (any::<u32>(), inner, prop::collection::vec(any::<u16>(), 0..4)).prop_map(|(id, inner, tail)| {
                Family::Record { id, inner: Box::new(inner), unit: (), tail }
            }),
        ]
    })
}

fn any_floats() -> impl Strategy<Value = Bits> {
    any::<(u64, u32)>().prop_map(|(long, short)| Bits(f64::from_bits(long), f32::from_bits(short)))
}

fn finite_floats() -> impl Strategy<Value = Bits> {
    any_floats().prop_filter("finite", |bits| bits.0.is_finite() && bits.1.is_finite())
}

/// Decodes `bytes` as types of every kind. What decodes must be encodable; most of it is an error.
fn decode_as_everything(codec: &impl Codec, bytes: &[u8]) {
    fn decode<T: Serialize + DeserializeOwned>(codec: &impl Codec, bytes: &[u8]) {
        if let Ok(value) = codec.decode::<T>(bytes) {
            drop(codec.encode(&value));
        }
    }
    decode::<Family>(codec, bytes);
    decode::<Vec<Family>>(codec, bytes);
    decode::<String>(codec, bytes);
    decode::<Bytes>(codec, bytes);
    decode::<Vec<()>>(codec, bytes);
    decode::<Vec<Vec<u64>>>(codec, bytes);
    decode::<HashMap<String, Vec<Kind>>>(codec, bytes);
    decode::<BTreeMap<u64, Option<String>>>(codec, bytes);
    decode::<(u128, i128, char, f64, bool)>(codec, bytes);
    decode::<Sequence>(codec, bytes);
    decode::<Wrapper>(codec, bytes);
    decode::<Linked>(codec, bytes);
    decode::<Tuples>(codec, bytes);
    decode::<Endless>(codec, bytes);
    decode::<Tagged>(codec, bytes);
    decode::<Untagged>(codec, bytes);
    decode::<Flat>(codec, bytes);
    decode::<serde_json::Value>(codec, bytes);
    decode::<Duration>(codec, bytes);
    decode::<IpAddr>(codec, bytes);
}

/// Bytes as bincode uses them: small numbers, long lengths, and any.
fn forged() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::collection::vec(0..13_u8, 0..8),
        2 => any::<u64>().prop_map(claim),
        2 => (0..40_u32).prop_map(|shift| claim(u64::MAX >> shift)),
        2 => prop::collection::vec(any::<u8>(), 0..16),
        1 => (any::<u8>(), 0..400_usize).prop_map(|(byte, count)| vec![byte; count]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Pieces of JSON in any order.
fn forged_json() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "null", "true", "1", "-0.1e9", "\"Text\"", "\"next\"", "\"kind\"",
            "\"\\ud800\"", "1e999", " ", "\"List\":[", "{\"More\":",
        ]).prop_map(str::to_owned),
        1 => (prop::sample::select(vec!["[", "{\"Maybe\":", "{\"next\":"]), 0..300_usize)
            .prop_map(|(piece, count)| piece.repeat(count)),
    ];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_bincode_encodes_comes_back(value in family(any_floats())) {
        let bytes = Bincode.encode(&value).unwrap();
        prop_assert_eq!(Bincode.decode::<Family>(&bytes).unwrap(), value);
    }

    #[test]
    fn what_json_encodes_comes_back(value in family(finite_floats())) {
        let bytes = Json.encode(&value).unwrap();
        prop_assert_eq!(Json.decode::<Family>(&bytes).unwrap(), value);
    }

    #[test]
    fn finite_floats_come_back_from_json_bit_for_bit(value in prop::collection::vec(finite_floats(), 0..64)) {
        let bytes = Json.encode(&value).unwrap();
        prop_assert_eq!(Json.decode::<Vec<Bits>>(&bytes).unwrap(), value);
    }

    #[test]
    fn no_bytes_make_a_codec_panic(bytes in forged(), text in forged_json()) {
        for bytes in [bytes, text] {
            decode_as_everything(&Bincode, &bytes);
            decode_as_everything(&Json, &bytes);
        }
    }

    #[test]
    fn damaged_bytes_make_no_codec_panic(
        value in family(any_floats()), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        for mut bytes in [Bincode.encode(&value).unwrap(), Json.encode(&value).unwrap()] {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            decode_as_everything(&Bincode, &bytes);
            decode_as_everything(&Json, &bytes);
        }
    }
}
