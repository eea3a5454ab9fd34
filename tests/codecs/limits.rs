//! Inputs that are nested too deep, or that claim lengths beyond their own: refused, without exhausting the stack or
//! memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;

use oncekey::{Bincode, Codec, CodecError, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kinds::Bytes;
use crate::{assert_comes_back, claim};

/// How deep values may be nested, as containers and as wrappers.
const LIMIT: usize = 128;
/// How deep serde_json lets containers be nested.
const JSON_LIMIT: usize = 127;
/// Far beyond what a small stack can hold.
const DEEP: usize = 20_000;

/// Runs `what` on a stack that is far too small for a decoder that recurses into every level of its input.
fn on_a_small_stack<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(128 << 10).spawn(what).unwrap().join().unwrap()
}

fn assert_too_deep<T: Debug>(decoded: Result<T, CodecError>) {
    let text = decoded.unwrap_err().to_string();
    assert!(text.contains("levels deep") || text.contains("recursion limit"), "{text}");
}

// Types that nest, each through another kind of the data model. With bincode a level of each is the byte 1, and the end
// is the byte 0.

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(Vec<Sequence>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Wrapper(Option<Box<Wrapper>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Linked {
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
pub enum Tuples {
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

/// A type without values, whose decoding reads no byte.
#[derive(Debug, Serialize, Deserialize)]
pub struct Endless(Box<Endless>);

fn levels(count: usize) -> Vec<u8> {
    let mut bytes = vec![1; count];
    bytes.push(0);
    bytes
}

/// Checks that `allowed` levels of `T` come back, and that one more is an error, as is a great many.
fn assert_limited<T: DeserializeOwned + Serialize + Debug + PartialEq + Send + 'static>(allowed: usize) {
    on_a_small_stack(move || {
        assert_too_deep(Bincode.decode::<T>(&levels(DEEP)));
        assert_too_deep(Bincode.decode::<T>(&levels(allowed + 1)));
        let value = Bincode.decode::<T>(&levels(allowed)).unwrap();
        assert_eq!(Bincode.encode(&value).unwrap(), levels(allowed));
    });
}

#[test]
fn bincode_refuses_sequences_nested_too_deep() {
    // The last one holds the empty sequence.
    assert_limited::<Sequence>(LIMIT - 1);
}

#[test]
fn bincode_refuses_wrappers_nested_too_deep() {
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
fn bincode_refuses_variants_nested_too_deep() {
    assert_limited::<Newtypes>(LIMIT);
    assert_limited::<Tuples>(LIMIT);
    assert_limited::<Structs>(LIMIT);
}

#[test]
fn bincode_refuses_maps_nested_too_deep() {
    assert_limited::<Maps>(LIMIT - 1);
}

#[test]
fn a_recursive_type_that_reads_no_byte_is_refused() {
    on_a_small_stack(|| assert_too_deep(Bincode.decode::<Endless>(&[])));
    on_a_small_stack(|| assert_too_deep(Json.decode::<Endless>(b"1")));
    on_a_small_stack(|| assert_too_deep(Json.decode::<Wrapper>(b"1")));
}

#[test]
fn json_refuses_values_nested_too_deep() {
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
fn many_small_integers_decode_to_eight_times_their_bytes() {
    // 9 MB as bincode writes them, 72 MB as a `Vec<u64>`.
    let many = vec![7_u64; 9_000_000];
    let bytes = Bincode.encode(&many).unwrap();
    assert!(bytes.len() < 10 << 20);
    assert!(Bincode.decode::<Vec<u64>>(&bytes).unwrap() == many);
}

#[test]
fn a_length_beyond_the_input_is_refused_without_an_allocation() {
    // A petabyte exceeds the address space of a process on x86-64, so an allocation would abort the test.
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
fn a_forged_count_of_zero_sized_elements_is_refused() {
    for length in [1 << 60, u64::MAX >> 1] {
        assert!(Bincode.decode::<Vec<()>>(&claim(length)).is_err());
        assert!(Bincode.decode::<Vec<[u8; 0]>>(&claim(length)).is_err());
        assert!(Bincode.decode::<Vec<((), ())>>(&claim(length)).is_err());
        assert!(Bincode.decode::<HashMap<(), ()>>(&claim(length)).is_err());
    }
    assert_comes_back(&Bincode, &vec![(); 100_000]);
}
