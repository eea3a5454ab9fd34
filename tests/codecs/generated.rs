//! Checks that generated values decode to the same value, and that forged or damaged bytes do not make a codec panic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use oncekey::{Bincode, Codec, Json};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::forged_length;
use crate::kinds::{Bytes, Flat, Kind, Tagged, Untagged};
use crate::limits::{Endless, Linked, Sequence, Tuples, Wrapper};

/// Floats that compare by their bits.
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

/// Decodes `bytes` as types of every kind, and encodes each value that decodes. Most attempts return an error; none may
/// panic.
fn decode_as_every_type(codec: &impl Codec, bytes: &[u8]) {
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

/// Generates bytes that often mean something to bincode: small numbers, long lengths, and random bytes.
fn forged() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::collection::vec(0..13_u8, 0..8),
        2 => any::<u64>().prop_map(forged_length),
        2 => (0..40_u32).prop_map(|shift| forged_length(u64::MAX >> shift)),
        2 => prop::collection::vec(any::<u8>(), 0..16),
        1 => (any::<u8>(), 0..400_usize).prop_map(|(byte, count)| vec![byte; count]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Generates pieces of JSON in random order.
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
    fn bincode_decodes_what_it_encodes(value in family(any_floats())) {
        let bytes = Bincode.encode(&value).unwrap();
        prop_assert_eq!(Bincode.decode::<Family>(&bytes).unwrap(), value);
    }

    #[test]
    fn json_decodes_what_it_encodes(value in family(finite_floats())) {
        let bytes = Json.encode(&value).unwrap();
        prop_assert_eq!(Json.decode::<Family>(&bytes).unwrap(), value);
    }

    #[test]
    fn json_preserves_every_bit_of_finite_floats(value in prop::collection::vec(finite_floats(), 0..64)) {
        let bytes = Json.encode(&value).unwrap();
        prop_assert_eq!(Json.decode::<Vec<Bits>>(&bytes).unwrap(), value);
    }

    #[test]
    fn forged_bytes_do_not_make_a_codec_panic(bytes in forged(), text in forged_json()) {
        for bytes in [bytes, text] {
            decode_as_every_type(&Bincode, &bytes);
            decode_as_every_type(&Json, &bytes);
        }
    }

    #[test]
    fn damaged_bytes_do_not_make_a_codec_panic(
        value in family(any_floats()), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        for mut bytes in [Bincode.encode(&value).unwrap(), Json.encode(&value).unwrap()] {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            decode_as_every_type(&Bincode, &bytes);
            decode_as_every_type(&Json, &bytes);
        }
    }
}
