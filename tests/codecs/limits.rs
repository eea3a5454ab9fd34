//! Checks that the codecs refuse inputs that are nested too deep, or that contain lengths beyond their own, without
//! exhausting the stack or memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;

use oncekey::{Bincode, Codec, CodecError, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kinds::Bytes;
use crate::{assert_round_trip, forged_length};

/// The maximum depth of nested containers and wrappers.
const MAX_DEPTH: usize = 128;
/// The maximum depth of nested containers in serde_json.
const MAX_JSON_DEPTH: usize = 127;
/// A depth that would overflow a small stack by far.
const DEEP: usize = 20_000;

/// Runs `test` on a stack that is far too small for a decoder that recurses into every level of its input.
fn on_a_small_stack<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(128 << 10).spawn(test).unwrap().join().unwrap()
}

fn assert_too_deep<T: Debug>(decoded: Result<T, CodecError>) {
    let text = decoded.unwrap_err().to_string();
    assert!(text.contains("levels deep") || text.contains("recursion limit"), "{text}");
}

// Recursive types, each through a different kind of the data model. Bincode encodes one level of each as the byte 1, and
// the end as the byte 0.

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

/// A type without values. Decoding it recurses without end and reads no byte.
#[derive(Debug, Serialize, Deserialize)]
pub struct Endless(Box<Endless>);

fn levels(count: usize) -> Vec<u8> {
    let mut bytes = vec![1; count];
    bytes.push(0);
    bytes
}

/// Checks that `max_levels` levels of `T` decode, and that one more level, or very many more, are refused.
fn assert_limited<T: DeserializeOwned + Serialize + Debug + PartialEq + Send + 'static>(max_levels: usize) {
    on_a_small_stack(move || {
        assert_too_deep(Bincode.decode::<T>(&levels(DEEP)));
        assert_too_deep(Bincode.decode::<T>(&levels(max_levels + 1)));
        let value = Bincode.decode::<T>(&levels(max_levels)).unwrap();
        assert_eq!(Bincode.encode(&value).unwrap(), levels(max_levels));
    });
}

#[test]
fn bincode_refuses_sequences_nested_too_deep() {
    // The innermost sequence is empty, and counts as a level too.
    assert_limited::<Sequence>(MAX_DEPTH - 1);
}

#[test]
fn bincode_refuses_wrappers_nested_too_deep() {
    // Each level is a newtype and a `Some`. The innermost newtype contains `None`.
    assert_limited::<Wrapper>(MAX_DEPTH / 2 - 1);
}

#[test]
fn bincode_refuses_a_linked_list_that_is_too_long() {
    // The first node is not inside a `Some`.
    assert_limited::<Linked>(MAX_DEPTH - 1);
    assert_limited::<Pair>(MAX_DEPTH - 1);
}

#[test]
fn bincode_refuses_variants_nested_too_deep() {
    assert_limited::<Newtypes>(MAX_DEPTH);
    assert_limited::<Tuples>(MAX_DEPTH);
    assert_limited::<Structs>(MAX_DEPTH);
}

#[test]
fn bincode_refuses_maps_nested_too_deep() {
    assert_limited::<Maps>(MAX_DEPTH - 1);
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
        for count in [MAX_JSON_DEPTH, DEEP] {
            assert_too_deep(Json.decode::<Sequence>(&nested("[", "[]", "]", count)));
            assert_too_deep(Json.decode::<Linked>(&nested(r#"{"next":"#, r#"{"next":null}"#, "}", count)));
            assert_too_deep(Json.decode::<Newtypes>(&nested(r#"{"More":"#, r#"{"More":"End"}"#, "}", count)));
            assert_too_deep(Json.decode::<serde_json::Value>(&nested("[", "[]", "]", count)));
        }
        assert!(Json.decode::<Sequence>(&nested("[", "[]", "]", MAX_JSON_DEPTH - 1)).is_ok());
        assert!(
            Json.decode::<Linked>(&nested(r#"{"next":"#, r#"{"next":null}"#, "}", MAX_JSON_DEPTH - 1))
                .is_ok()
        );
    });
}

#[test]
fn small_integers_decode_to_eight_times_their_encoded_size() {
    // The numbers take 9 MB in bincode's encoding, and 72 MB as a `Vec<u64>`.
    let numbers = vec![7_u64; 9_000_000];
    let bytes = Bincode.encode(&numbers).unwrap();
    assert!(bytes.len() < 10 << 20);
    assert!(Bincode.decode::<Vec<u64>>(&bytes).unwrap() == numbers);
}

#[test]
fn a_length_beyond_the_input_is_refused_without_an_allocation() {
    // A petabyte exceeds the address space of a process on x86-64, so allocating that much would abort the test.
    fn refused<T: DeserializeOwned + Debug>() {
        for length in [1 << 50, u64::MAX >> 1, u64::MAX] {
            for rest in [0, 1, 100] {
                let mut bytes = forged_length(length);
                bytes.extend(vec![0; rest]);
                assert!(
                    Bincode.decode::<T>(&bytes).is_err(),
                    "a length of {length} with {rest} bytes was accepted"
                );
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
        assert!(Bincode.decode::<Vec<()>>(&forged_length(length)).is_err());
        assert!(Bincode.decode::<Vec<[u8; 0]>>(&forged_length(length)).is_err());
        assert!(Bincode.decode::<Vec<((), ())>>(&forged_length(length)).is_err());
        assert!(Bincode.decode::<HashMap<(), ()>>(&forged_length(length)).is_err());
    }
    assert_round_trip(&Bincode, &vec![(); 100_000]);
}
