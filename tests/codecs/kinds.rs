//! Checks values of every kind of serde's data model, and which of serde's attributes each codec supports.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Debug};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use oncekey::{Bincode, Codec, Json};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::assert_round_trip;

/// A byte string, as `serde_bytes` encodes it.
#[derive(Debug, PartialEq)]
pub struct Bytes(Vec<u8>);

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
pub enum Kind {
    Unit,
    Newtype(u8),
    Tuple(u8, String),
    Struct { at: u64, what: Option<bool> },
}

/// Checks that values of every kind of serde's data model decode to the same value.
fn check_every_kind(codec: &impl Codec) {
    fn each<T: Serialize + DeserializeOwned + PartialEq + Debug>(codec: &impl Codec, values: &[T]) {
        for value in values {
            assert_round_trip(codec, value);
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
fn bincode_decodes_every_kind_of_value() {
    check_every_kind(&Bincode);
    assert_round_trip(&Bincode, &Some(Some(1)));
    assert_round_trip(&Bincode, &Some(None::<u8>));
    assert_round_trip(&Bincode, &vec![Some(Unit), None]);
    assert_round_trip(&Bincode, &Bytes(vec![0, 1, 255]));
    assert_round_trip(&Bincode, &std::ffi::CString::new("c").unwrap());
    assert_round_trip(&Bincode, &BTreeMap::from([((1, 2), Kind::Unit)]));
    for value in [f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::NAN, f64::from_bits(0xfff8_0000_0000_0001)] {
        let bytes = Bincode.encode(&value).unwrap();
        assert_eq!(Bincode.decode::<f64>(&bytes).unwrap().to_bits(), value.to_bits());
    }
}

#[test]
fn json_decodes_every_kind_of_value() {
    check_every_kind(&Json);
    assert_round_trip(&Json, &serde_json::json!({"a": [1, -1, 0.1, "s", null, true], "b": {}}));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Tagged {
    Charged { cents: u64, at: f64 },
    Refused { code: i16 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Flat {
    id: u32,
    #[serde(flatten)]
    rest: BTreeMap<String, i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Untagged {
    Number(u64),
    Text(String),
    Several(Vec<Untagged>),
}

#[test]
fn serde_attributes_that_need_names_work_with_json() {
    assert_round_trip(&Json, &Tagged::Charged { cents: 5, at: 0.1 });
    assert_round_trip(&Json, &Tagged::Refused { code: -1 });
    assert_round_trip(&Json, &Flat { id: 1, rest: BTreeMap::from([("a".into(), -1)]), note: None });
    assert_round_trip(&Json, &Untagged::Several(vec![Untagged::Number(1), Untagged::Text("b".into())]));
    // Unknown fields are ignored, whatever their values are.
    assert_eq!(
        Json.decode::<Named>(br#"{"id": 1, "more": [{"a": [null]}], "name": "n"}"#).unwrap(),
        Named { id: 1, name: "n".into() }
    );
}

#[test]
fn serde_attributes_that_need_names_are_errors_with_bincode() {
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
fn trailing_bytes_are_an_error() {
    assert!(Bincode.decode::<u8>(&[1, 2]).unwrap_err().to_string().contains("left over"));
    assert!(Bincode.decode::<()>(&[1]).is_err());
    assert!(Json.decode::<u8>(b"1 2").is_err());
    assert!(Json.decode::<u8>(b"1,").is_err());
    assert_eq!(Json.decode::<u8>(b" 1\n").unwrap(), 1);
}
