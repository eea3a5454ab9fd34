//! Checks which values can be recorded, and as which types they can be replayed.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use oncekey::{Bincode, Error, Json, Outcome, RunError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::common::{NONE, Place, abandon, small};
use crate::{Receipt, store};

/// Records `value` with bincode and replays it as an `As`. Returns the text of `Error::Decode` if it does not decode.
fn replayed_as<T, As>(value: T) -> Result<As, String>
where
    T: Serialize + DeserializeOwned,
    As: Serialize + DeserializeOwned,
{
    let store = store();
    store.operation("k").run(|_| Ok::<_, String>(value)).map_err(|error| error.to_string()).unwrap();
    match store.operation("k").run(|_| -> Result<As, String> { panic!("the side effect ran again") }) {
        Ok(Outcome::AlreadyDone(value)) => Ok(value),
        Ok(Outcome::Done(_)) => panic!("the side effect ran again"),
        Err(RunError::Store(error @ Error::Decode { .. })) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

/// Checks that `value` is not replayed as an `As`.
fn assert_refused<T, As>(value: T)
where
    T: Serialize + DeserializeOwned,
    As: Serialize + DeserializeOwned + Debug,
{
    let refusal = replayed_as::<T, As>(value).unwrap_err();
    assert!(refusal.contains("does not decode") || refusal.contains("decode"), "{refusal}");
}

/// Records `value` and returns the replayed value. If the first call could not record the value, returns its error. In both
/// cases, checks that a retry does not run the side effect again.
fn record_and_replay<C: oncekey::Codec + Copy, T>(codec: C, value: T) -> Result<T, Error>
where
    T: Serialize + DeserializeOwned,
{
    let store = store();
    let first = store.operation("k").codec(codec).run(|_| Ok::<_, String>(value));
    let again = store
        .operation("k")
        .codec(codec)
        .run(|_| -> Result<T, String> { panic!("the side effect ran again") });
    assert!(store.get("k").unwrap().is_completed(), "the key is in doubt although the side effect returned");
    match (first, again) {
        (Ok(Outcome::Done(first)), Ok(Outcome::AlreadyDone(again))) => {
            let bytes = |value: &T| codec.encode(value).unwrap();
            assert_eq!(bytes(&first).len(), bytes(&again).len());
            Ok(again)
        }
        (Err(RunError::Unrecorded { source, .. }), Err(RunError::Store(Error::ResultNotKept { .. }))) => {
            assert!(store.get("k").unwrap().result_was_not_kept());
            Err(source)
        }
        (first, again) => panic!(
            "{:?}, {:?}",
            first.map(drop).map_err(|error| error.to_string()),
            again.map(drop).map_err(|error| error.to_string())
        ),
    }
}

/// Checks that `value` cannot be recorded, and that the error contains `why`.
fn assert_unrecorded<C: oncekey::Codec + Copy, T>(codec: C, value: T, why: &str)
where
    T: Serialize + DeserializeOwned + Debug,
{
    let source = record_and_replay(codec, value).unwrap_err();
    assert!(matches!(source, Error::Encode { .. }) && source.to_string().contains(why), "{source}");
}

#[test]
fn a_result_is_not_replayed_as_a_type_with_a_different_shape() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Reordered {
        cents: u64,
        id: u64,
    }
    #[derive(Debug, Serialize, Deserialize)]
    struct Renamed {
        id: u64,
        amount: u64,
    }
    #[derive(Debug, Serialize, Deserialize)]
    enum Before {
        Charged,
        Refused,
    }
    #[derive(Debug, Serialize, Deserialize)]
    enum Inserted {
        Pending,
        Charged,
        Refused,
    }
    let receipt = Receipt { id: 17, cents: 1_000 };
    assert_eq!(replayed_as::<_, Receipt>(receipt.clone()), Ok(receipt.clone()));
    assert_refused::<_, Reordered>(receipt.clone());
    assert_refused::<_, Renamed>(receipt.clone());
    assert_refused::<_, (u64, u64)>(receipt.clone());
    assert_refused::<_, Inserted>(Before::Charged);
    assert_refused::<_, Inserted>(Before::Refused);
    assert_refused::<u32, i32>(1_000);
    assert_refused::<u64, i64>(7);
    assert_refused::<u8, bool>(1);
    assert_refused::<Option<u64>, Vec<u64>>(Some(1));
    assert_refused::<String, Vec<u8>>("abc".to_owned());
    let _ = (Inserted::Pending, Before::Charged);

    let text = replayed_as::<_, Renamed>(receipt).unwrap_err();
    assert!(text.contains("#[serde(rename"), "{text}");
}

#[test]
fn any_shape_or_a_former_name_replays_a_renamed_field() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Renamed {
        id: u64,
        amount: u64,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct WithFormerNames {
        id: u64,
        #[serde(rename = "cents")]
        amount: u64,
    }
    let store = store();
    store.operation("k").run(|_| Ok::<_, String>(Receipt { id: 17, cents: 1_000 })).unwrap();
    let read =
        store.operation("k").codec(Bincode::any_shape()).run(|_| -> Result<Renamed, String> { panic!() });
    assert_eq!(read.unwrap(), Outcome::AlreadyDone(Renamed { id: 17, amount: 1_000 }));
    let read = store.operation("k").run(|_| -> Result<WithFormerNames, String> { panic!() });
    assert_eq!(read.unwrap(), Outcome::AlreadyDone(WithFormerNames { id: 17, amount: 1_000 }));
}

#[test]
fn json_replays_added_and_removed_fields_but_not_other_codecs() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Later {
        cents: u64,
        #[serde(default)]
        note: Option<String>,
    }
    let store = store();
    store.operation("k").codec(Json).run(|_| Ok::<_, String>(Receipt { id: 17, cents: 1_000 })).unwrap();
    let later = store.operation("k").codec(Json).run(|_| -> Result<Later, String> { panic!() });
    assert_eq!(later.unwrap(), Outcome::AlreadyDone(Later { cents: 1_000, note: None }));
    let other = store.operation("k").run(|_| -> Result<Receipt, String> { panic!() });
    assert!(
        matches!(&other, Err(RunError::Store(error @ Error::Decode { .. })) if error.to_string().contains("codec 2"))
    );
    assert_eq!(store.get("k").unwrap().decode::<Receipt>().unwrap(), Some(Receipt { id: 17, cents: 1_000 }));
}

#[test]
fn a_value_that_does_not_decode_from_its_own_bytes_is_unrecorded() {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u64),
    }
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Charged { id: u64 },
    }
    #[derive(Debug, Serialize, Deserialize)]
    struct SkipsFirst {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        note: Option<u8>,
        id: u64,
    }
    #[derive(Debug, Serialize, Deserialize)]
    struct SkipsLast {
        id: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        note: Option<u8>,
    }
    assert_unrecorded(Bincode, serde_json::json!({ "id": 17 }), "");
    assert_unrecorded(Bincode, Untagged::Number(7), "");
    assert_unrecorded(Bincode, Tagged::Charged { id: 7 }, "");
    assert_unrecorded(Bincode, SkipsFirst { note: None, id: 7 }, "skip_serializing_if");
    assert_unrecorded(Bincode, SkipsLast { id: 7, note: None }, "skip_serializing_if");
    assert_unrecorded(Json, f64::NAN, "");
    assert_unrecorded(Json, f64::INFINITY, "");
    assert_unrecorded(Json, Some(None::<u8>), "another value");
    // Other values of these types decode to the same value, so they are recorded.
    assert!(record_and_replay(Json, serde_json::json!({ "id": 17, "x": 0.1 })).is_ok());
    assert!(matches!(record_and_replay(Json, Untagged::Number(7)), Ok(Untagged::Number(7))));
    assert!(record_and_replay(Json, SkipsLast { id: 7, note: None }).is_ok());
    assert!(record_and_replay(Bincode, SkipsLast { id: 7, note: Some(1) }).is_ok());
    assert_eq!(record_and_replay(Bincode, Some(None::<u8>)).unwrap(), Some(None));
    assert!(record_and_replay(Bincode, f64::NAN).unwrap().is_nan());
    assert_eq!(record_and_replay(Json, 0.1 + 0.2).unwrap(), 0.1 + 0.2);
    let map: HashMap<u64, String> = (0..50).map(|n| (n, n.to_string())).collect();
    assert_eq!(record_and_replay(Bincode, map.clone()).unwrap(), map);
    let set: HashSet<u64> = (0..50).collect();
    assert_eq!(record_and_replay(Bincode, set.clone()).unwrap(), set);
}

#[test]
fn the_first_caller_gets_the_same_value_as_retries() {
    /// A type with a field that is not serialized.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct WithSecret {
        id: u64,
        #[serde(skip)]
        note: String,
    }
    let value = || WithSecret { id: 7, note: "only in memory".to_owned() };
    let store = store();
    let first = store.operation("k").run(|_| Ok::<_, String>(value())).unwrap().into_inner();
    let again = store.operation("k").run(|_| Ok::<_, String>(value())).unwrap();
    assert_eq!(
        first,
        WithSecret { id: 7, note: String::new() },
        "the first caller got a field that was not recorded"
    );
    assert_eq!(again, Outcome::AlreadyDone(first));
}

#[test]
fn serde_code_that_panics_or_is_wrong_leaves_no_doubt() {
    #[derive(Debug)]
    struct Panics;
    impl Serialize for Panics {
        fn serialize<S: serde::Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
            panic!("as planned")
        }
    }
    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: serde::Deserializer<'de>>(_deserializer: D) -> Result<Panics, D::Error> {
            Ok(Panics)
        }
    }
    #[derive(Debug, Serialize)]
    struct DecodesWrongly(u64);
    impl<'de> Deserialize<'de> for DecodesWrongly {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u64::deserialize(deserializer).map(|number| DecodesWrongly(number + 1))
        }
    }
    assert_unrecorded(Bincode, Panics, "as planned");
    assert_unrecorded(Bincode, DecodesWrongly(7), "another value");
    assert_unrecorded(Json, DecodesWrongly(7), "another value");
}

/// A linked list, which serializes with one level of nesting for each element.
#[derive(Serialize, Deserialize)]
struct Chain(Option<Box<Chain>>);

impl Chain {
    fn of(length: usize) -> Chain {
        (0..length).fold(Chain(None), |chain, _| Chain(Some(Box::new(chain))))
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut chain) = next {
            next = chain.0.take();
        }
    }
}

#[test]
fn a_value_nested_too_deep_is_unrecorded_even_on_a_small_stack() {
    let deep = |codec: u8| {
        let store = store();
        let first = match codec {
            1 => store.operation("k").run(|_| Ok::<_, String>(Chain::of(20_000))),
            _ => store.operation("k").codec(Json).run(|_| Ok::<_, String>(Chain::of(20_000))),
        };
        assert!(matches!(first, Err(RunError::Unrecorded { source: Error::Encode { .. }, .. })));
        let again =
            store.operation("k").run(|_| -> Result<Chain, String> { panic!("the side effect ran again") });
        assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    };
    for codec in [1, 2] {
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || deep(codec)).unwrap().join().unwrap();
    }
    assert!(record_and_replay(Bincode, Chain::of(40)).is_ok());
}

#[test]
fn max_result_limits_encoded_bytes_rather_than_memory() {
    let store =
        oncekey::Options::new().segment_size(256 << 20).max_result(10 << 20).open_in_memory().unwrap();
    let numbers = || vec![7_u64; 9 << 20];
    store.operation("k").run(|_| Ok::<_, String>(numbers())).unwrap();
    let again =
        store.operation("k").run(|_| -> Result<Vec<u64>, String> { panic!("the side effect ran again") });
    assert!(again.unwrap().into_inner() == numbers());
}

#[test]
fn an_operation_completes_without_a_result_that_is_too_large() {
    let store = small().max_result(10).open_in_memory().unwrap();
    let long = || "longer than ten bytes".to_owned();
    let first = store.operation("k").run(|_| Ok::<_, String>(long()));
    assert!(
        matches!(&first, Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) if **result == long())
    );
    let again =
        store.operation("k").run(|_| -> Result<String, String> { panic!("the side effect ran again") });
    assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));

    abandon(&store, "d");
    let found = store
        .operation("d")
        .reconcile(|_| Some(long()))
        .run(|_| -> Result<String, String> { panic!("the side effect ran although it was applied") });
    assert!(
        matches!(&found, Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) if **result == long())
    );
    for _ in 0..2 {
        let again = store
            .operation("d")
            .reconcile(|_| Some(long()))
            .run(|_| -> Result<String, String> { panic!("the side effect ran again") });
        assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    }
}

#[test]
fn a_completion_without_its_result_survives_reclaiming_and_reopening() {
    let place = Place::new();
    let store = small().max_result(1_000).open(&place.path).unwrap();
    store.operation("k").run(|_| Ok::<_, String>("x".repeat(2_000))).unwrap_err();
    for round in 0..300 {
        store.record("other", NONE, &[0; 900]).ok();
        store.forget("other").unwrap();
        if round == 200 {
            store.compact().unwrap();
        }
    }
    drop(store);
    let store = small().max_result(1_000).open(&place.path).unwrap();
    let again =
        store.operation("k").run(|_| -> Result<String, String> { panic!("the side effect ran again") });
    assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    assert!(store.get("k").unwrap().result_was_not_kept());
}

#[test]
fn no_error_text_quotes_a_result() {
    #[derive(Debug, Serialize, Deserialize)]
    enum Known {
        Charged,
    }
    fn assert_not_quoted<C: oncekey::Codec + Copy, As: Serialize + DeserializeOwned + Debug>(codec: C) {
        let store = store();
        store.operation("k").codec(codec).run(|_| Ok::<_, String>("secret-card-4242".to_owned())).unwrap();
        let error =
            store.operation("k").codec(codec).run(|_| -> Result<As, String> { panic!() }).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("secret") && !text.contains("4242"), "{text}");
    }
    assert_not_quoted::<_, u8>(Json);
    assert_not_quoted::<_, Known>(Json);
    assert_not_quoted::<_, (u8, Receipt)>(Json);
    assert_not_quoted::<_, u8>(Bincode);
    assert_not_quoted::<_, Known>(Bincode);
    assert_not_quoted::<_, char>(Bincode);
    assert_not_quoted::<_, Vec<bool>>(Bincode);
    let _ = Known::Charged;
}
