//! Typed results: a retry gets what the first call got, or an error, and never another value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

use common::{NONE, Place, abandon, small};
use oncekey::{
    Begin, Bincode, CasOutcome, Error, Expected, Json, Outcome, Reconciled, RunError, Status, Store,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn store() -> Store {
    Store::in_memory().unwrap()
}

/// Records `value` under bincode, and replays it as an `As`.
fn replayed_as<T, As>(value: T) -> Result<As, String>
where
    T: Serialize + DeserializeOwned,
    As: Serialize + DeserializeOwned,
{
    let store = store();
    store.operation("k").run(|_| Ok::<_, String>(value)).map_err(|error| error.to_string()).unwrap();
    match store.operation("k").run(|_| -> Result<As, String> { panic!("run again") }) {
        Ok(Outcome::AlreadyDone(value)) => Ok(value),
        Ok(Outcome::Done(_)) => panic!("run again"),
        Err(RunError::Store(error @ Error::Decode { .. })) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

fn is_refused<T, As>(value: T)
where
    T: Serialize + DeserializeOwned,
    As: Serialize + DeserializeOwned + Debug,
{
    let refusal = replayed_as::<T, As>(value).unwrap_err();
    assert!(refusal.contains("does not decode") || refusal.contains("decode"), "{refusal}");
}

/// Records `value`. If the first call says that it is recorded, a retry must get the same; if not, no retry may run again.
fn comes_back_or_is_unrecorded<C: oncekey::Codec + Copy, T>(codec: C, value: T) -> Result<T, Error>
where
    T: Serialize + DeserializeOwned,
{
    let store = store();
    let first = store.operation("k").codec(codec).run(|_| Ok::<_, String>(value));
    let again = store.operation("k").codec(codec).run(|_| -> Result<T, String> { panic!("run again") });
    assert!(store.get("k").unwrap().is_completed(), "no doubt is left behind a side effect that returned");
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

fn is_unrecorded<C: oncekey::Codec + Copy, T>(codec: C, value: T, why: &str)
where
    T: Serialize + DeserializeOwned + Debug,
{
    let source = comes_back_or_is_unrecorded(codec, value).unwrap_err();
    assert!(matches!(source, Error::Encode { .. }) && source.to_string().contains(why), "{source}");
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Receipt {
    id: u64,
    cents: u64,
}

#[test]
fn a_result_is_not_replayed_as_a_type_of_another_shape() {
    #[derive(Debug, Serialize, Deserialize)]
    struct CasOutcome {
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
    is_refused::<_, CasOutcome>(receipt.clone());
    is_refused::<_, Renamed>(receipt.clone());
    is_refused::<_, (u64, u64)>(receipt.clone());
    is_refused::<_, Inserted>(Before::Charged);
    is_refused::<_, Inserted>(Before::Refused);
    is_refused::<u32, i32>(1_000);
    is_refused::<u64, i64>(7);
    is_refused::<u8, bool>(1);
    is_refused::<Option<u64>, Vec<u64>>(Some(1));
    is_refused::<String, Vec<u8>>("abc".to_owned());
    let _ = (Inserted::Pending, Before::Charged);

    let text = replayed_as::<_, Renamed>(receipt).unwrap_err();
    assert!(text.contains("#[serde(rename"), "{text}");
}

#[test]
fn a_type_that_was_renamed_on_purpose_is_read_with_any_shape_or_under_its_former_names() {
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
fn under_json_fields_may_come_and_go_and_another_codec_is_refused() {
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
fn what_does_not_come_back_from_its_own_bytes_is_unrecorded_and_not_run_again() {
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
    is_unrecorded(Bincode, serde_json::json!({ "id": 17 }), "");
    is_unrecorded(Bincode, Untagged::Number(7), "");
    is_unrecorded(Bincode, Tagged::Charged { id: 7 }, "");
    is_unrecorded(Bincode, SkipsFirst { note: None, id: 7 }, "skip_serializing_if");
    is_unrecorded(Bincode, SkipsLast { id: 7, note: None }, "skip_serializing_if");
    is_unrecorded(Json, f64::NAN, "");
    is_unrecorded(Json, f64::INFINITY, "");
    is_unrecorded(Json, Some(None::<u8>), "another value");
    // Where nothing is lost, they are recorded.
    assert!(comes_back_or_is_unrecorded(Json, serde_json::json!({ "id": 17, "x": 0.1 })).is_ok());
    assert!(matches!(comes_back_or_is_unrecorded(Json, Untagged::Number(7)), Ok(Untagged::Number(7))));
    assert!(comes_back_or_is_unrecorded(Json, SkipsLast { id: 7, note: None }).is_ok());
    assert!(comes_back_or_is_unrecorded(Bincode, SkipsLast { id: 7, note: Some(1) }).is_ok());
    assert_eq!(comes_back_or_is_unrecorded(Bincode, Some(None::<u8>)).unwrap(), Some(None));
    assert!(comes_back_or_is_unrecorded(Bincode, f64::NAN).unwrap().is_nan());
    assert_eq!(comes_back_or_is_unrecorded(Json, 0.1 + 0.2).unwrap(), 0.1 + 0.2);
    let map: HashMap<u64, String> = (0..50).map(|n| (n, n.to_string())).collect();
    assert_eq!(comes_back_or_is_unrecorded(Bincode, map.clone()).unwrap(), map);
    let set: HashSet<u64> = (0..50).collect();
    assert_eq!(comes_back_or_is_unrecorded(Bincode, set.clone()).unwrap(), set);
}

#[test]
fn the_first_caller_gets_what_every_retry_gets() {
    /// Loses its note on the way.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct WithSecret {
        id: u64,
        #[serde(skip)]
        note: String,
    }
    let given = || WithSecret { id: 7, note: "only in memory".to_owned() };
    let store = store();
    let first = store.operation("k").run(|_| Ok::<_, String>(given())).unwrap().into_inner();
    let again = store.operation("k").run(|_| Ok::<_, String>(given())).unwrap();
    assert_eq!(first, WithSecret { id: 7, note: String::new() }, "the result is data");
    assert_eq!(again, Outcome::AlreadyDone(first));
}

#[test]
fn serde_code_that_panics_or_lies_leaves_no_doubt_behind() {
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
    struct ComesBackAsAnother(u64);
    impl<'de> Deserialize<'de> for ComesBackAsAnother {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u64::deserialize(deserializer).map(|number| ComesBackAsAnother(number + 1))
        }
    }
    is_unrecorded(Bincode, Panics, "as planned");
    is_unrecorded(Bincode, ComesBackAsAnother(7), "another value");
    is_unrecorded(Json, ComesBackAsAnother(7), "another value");
}

/// As deep as it is long.
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
fn what_is_nested_too_deep_is_unrecorded_whatever_the_stack() {
    let deep = |codec: u8| {
        let store = store();
        let first = match codec {
            1 => store.operation("k").run(|_| Ok::<_, String>(Chain::of(20_000))),
            _ => store.operation("k").codec(Json).run(|_| Ok::<_, String>(Chain::of(20_000))),
        };
        assert!(matches!(first, Err(RunError::Unrecorded { source: Error::Encode { .. }, .. })));
        let again = store.operation("k").run(|_| -> Result<Chain, String> { panic!("run again") });
        assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    };
    for codec in [1, 2] {
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || deep(codec)).unwrap().join().unwrap();
    }
    assert!(comes_back_or_is_unrecorded(Bincode, Chain::of(40)).is_ok());
}

#[test]
fn a_result_of_many_small_integers_is_limited_by_its_bytes_and_not_by_its_memory() {
    let store =
        oncekey::Options::new().segment_size(256 << 20).max_result(10 << 20).open_in_memory().unwrap();
    let numbers = || vec![7_u64; 9 << 20];
    store.operation("k").run(|_| Ok::<_, String>(numbers())).unwrap();
    let again = store.operation("k").run(|_| -> Result<Vec<u64>, String> { panic!("run again") });
    assert!(again.unwrap().into_inner() == numbers());
}

#[test]
fn a_result_that_is_too_large_is_completed_without_it_also_after_a_doubt() {
    let store = small().max_result(10).open_in_memory().unwrap();
    let long = || "longer than ten bytes".to_owned();
    let first = store.operation("k").run(|_| Ok::<_, String>(long()));
    assert!(
        matches!(&first, Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) if **result == long())
    );
    let again = store.operation("k").run(|_| -> Result<String, String> { panic!("run again") });
    assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));

    abandon(&store, "d");
    let found = store
        .operation("d")
        .reconcile(|_| Some(long()))
        .run(|_| -> Result<String, String> { panic!("applied") });
    assert!(
        matches!(&found, Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) if **result == long())
    );
    for _ in 0..2 {
        let again = store
            .operation("d")
            .reconcile(|_| Some(long()))
            .run(|_| -> Result<String, String> { panic!("run again") });
        assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    }
}

#[test]
fn what_was_completed_without_its_result_stays_so_on_disk_and_when_it_is_moved() {
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
    let again = store.operation("k").run(|_| -> Result<String, String> { panic!("run again") });
    assert!(matches!(again, Err(RunError::Store(Error::ResultNotKept { .. }))));
    assert!(store.get("k").unwrap().result_was_not_kept());
}

#[test]
fn another_intent_under_one_key_is_a_mismatch() {
    #[derive(Serialize)]
    struct Charge {
        account: u64,
        cents: u64,
    }
    #[derive(Serialize)]
    struct Refund {
        account: u64,
        cents: u64,
    }
    #[derive(Serialize)]
    struct Transfer {
        from: u32,
        to: u16,
    }
    #[derive(Serialize)]
    enum Command {
        Charge(u8),
    }
    fn differ(first: &impl Serialize, second: &impl Serialize) {
        let store = store();
        store.operation("k").request(first).run(|_| Ok::<_, String>(17)).unwrap();
        let other = store.operation("k").request(second).run(|_| -> Result<i32, String> { panic!("run") });
        assert!(matches!(other, Err(RunError::Store(Error::Mismatch { .. }))));
    }
    differ(&Charge { account: 42, cents: 1_000 }, &Refund { account: 42, cents: 1_000 });
    differ(&(42_u32, 1_000_u16), &Transfer { from: 42, to: 1_000 });
    differ(&Command::Charge(7), &(0_u8, 7_u8));
    differ(&"7", &7);
    differ(&1.0_f32, &1.0_f64);
    differ(&None::<u8>, &());
}

#[test]
fn an_equal_request_is_the_same_request_however_it_is_written_down() {
    #[derive(Serialize)]
    struct Charge {
        account: u64,
        cents: i64,
    }
    #[derive(Serialize)]
    #[serde(rename = "Charge")]
    struct Later {
        cents: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        account: u16,
    }
    fn agree(first: &impl Serialize, second: &impl Serialize) {
        let store = store();
        store.operation("k").request(first).codec(Json).run(|_| Ok::<_, String>(17)).unwrap();
        let again = store
            .operation("k")
            .codec(Json)
            .request(second)
            .run(|_| -> Result<i32, String> { panic!("run") });
        assert_eq!(again.unwrap(), Outcome::AlreadyDone(17));
    }
    for _ in 0..20 {
        let map = || (0..10).map(|n| (n.to_string(), n)).collect::<HashMap<_, _>>();
        agree(&map(), &map());
        agree(&map(), &map().into_iter().collect::<BTreeMap<_, _>>());
    }
    agree(&-0.0, &0.0);
    agree(&Charge { account: 42, cents: 1_000 }, &Later { account: 42, cents: 1_000, note: None });
}

#[test]
fn a_former_fingerprint_is_accepted_beside_the_new_one_and_what_begins_has_the_new_one() {
    let store = store();
    store.operation("old").request(&("charge", 42)).run(|_| Ok::<_, String>(17)).unwrap();
    let both = |key| store.operation(key).request(&("charge", 42, "EUR")).or_request(&("charge", 42));
    assert_eq!(both("old").run(|_| Ok::<_, String>(18)).unwrap(), Outcome::AlreadyDone(17));
    assert_eq!(both("new").run(|_| Ok::<_, String>(19)).unwrap(), Outcome::Done(19));
    let new = store.operation("new").request(&("charge", 42, "EUR")).run(|_| Ok::<_, String>(20));
    assert_eq!(new.unwrap(), Outcome::AlreadyDone(19));
    let former = store.operation("new").request(&("charge", 42)).run(|_| Ok::<_, String>(20));
    assert!(matches!(former, Err(RunError::Store(Error::Mismatch { .. }))));
    let reordered = store
        .operation("new")
        .or_request(&("charge", 42, "EUR"))
        .request(&("x", 1))
        .run(|_| Ok::<_, String>(20));
    assert_eq!(reordered.unwrap(), Outcome::AlreadyDone(19), "in either order");
}

#[test]
fn an_error_of_the_closure_leaves_a_doubt_unless_it_says_that_nothing_happened() {
    #[derive(Debug, PartialEq)]
    enum Trouble {
        Connect,
        Timeout,
    }
    let store = store();
    let run = |trouble| {
        store
            .operation("k")
            .release_if(|error: &Trouble| *error == Trouble::Connect)
            .run(|_| Err::<u8, _>(trouble))
    };
    assert!(matches!(run(Trouble::Connect), Err(RunError::Released(Trouble::Connect))));
    assert_eq!(store.get("k").unwrap().status(), Status::Absent);
    let lost = run(Trouble::Timeout);
    assert!(matches!(lost, Err(RunError::InDoubt { error: Trouble::Timeout, release_failed: None, .. })));
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn a_reconcile_that_failed_says_why_in_the_error() {
    let store = store();
    abandon(&store, "k");
    let asked = Cell::new(0);
    let failed = store
        .operation("k")
        .reconcile(|_| {
            asked.set(asked.get() + 1);
            Err::<Option<u8>, _>("401, key expired")
        })
        .run(|_| -> Result<u8, String> { panic!("run") })
        .unwrap_err();
    assert_eq!(asked.get(), 1);
    assert!(failed.to_string().contains("401, key expired") && failed.is_retryable(), "{failed}");
    let RunError::Store(Error::InDoubt { reason: Some(reason), .. }) = failed else { panic!("{failed}") };
    assert_eq!(reason, "401, key expired");
    let refused = store.operation("k").run(|_| -> Result<u8, String> { panic!("run") }).unwrap_err();
    assert!(matches!(refused, RunError::Store(Error::InDoubt { reason: None, .. })));
    let unknown = Reconciled::<u8>::Unknown { reason: Some("nobody home".to_owned()) };
    let unknown =
        store.operation("k").reconcile(|_| unknown).run(|_| -> Result<u8, String> { panic!("run") });
    assert!(unknown.unwrap_err().to_string().contains("nobody home"));
}

#[test]
fn an_operator_completes_in_typed_terms_what_a_retry_then_gets() {
    let place = Place::new();
    let store = place.open();
    for (key, json) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        let lost = match json {
            true => store.operation(key).codec(Json).request(&1).run(|_| Err::<Receipt, _>("lost")),
            false => store.operation(key).request(&1).run(|_| Err::<Receipt, _>("lost")),
        };
        assert!(matches!(lost, Err(RunError::InDoubt { .. })));
    }
    let receipt = Receipt { id: 17, cents: 1_000 };
    for key in ["a", "b"] {
        let Begin::InDoubt(mut doubt) = store.operation(key).request(&1).begin().unwrap() else { panic!() };
        doubt.resolve(&receipt).unwrap();
        doubt.resolve(&receipt).unwrap();
        assert!(matches!(doubt.resolve(&Receipt { id: 18, cents: 1 }), Err(Error::Conflict { .. })));
    }
    for (key, json) in [("c", false), ("d", true)] {
        let seen = store.get(key).unwrap();
        let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
        let operation = store.operation(key).fingerprint(seen.fingerprint());
        let swapped = match json {
            true => operation.codec(Json).complete_if(expected, &receipt),
            false => operation.complete_if(expected, &receipt),
        };
        assert!(matches!(swapped, Ok(CasOutcome::Done(_))), "{swapped:?}");
    }
    drop(store);
    let store = place.open();
    for (key, json) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        let again = match json {
            true => {
                store.operation(key).codec(Json).request(&1).run(|_| -> Result<Receipt, String> { panic!() })
            }
            false => store.operation(key).request(&1).run(|_| -> Result<Receipt, String> { panic!() }),
        };
        assert_eq!(again.unwrap(), Outcome::AlreadyDone(receipt.clone()), "{key}");
        assert_eq!(store.get(key).unwrap().decode::<Receipt>().unwrap(), Some(receipt.clone()));
        let Begin::Completed(done) = store.operation(key).request(&1).begin().unwrap() else { panic!() };
        assert_eq!(done.decode::<Receipt>().unwrap(), receipt);
        assert!(done.decode::<String>().is_err());
    }
}

#[test]
fn a_lease_is_completed_in_typed_terms_or_without_its_result() {
    let store = store();
    let Begin::Acquired(mut lease) = store.operation("k").codec(Json).begin().unwrap() else { panic!() };
    assert!(matches!(lease.complete_value(&Some(None::<u8>)), Err(Error::Encode { .. })));
    lease.complete_value(&Receipt { id: 17, cents: 1 }).unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&br#"{"id":17,"cents":1}"#[..]));
    let Begin::Acquired(mut lease) = store.begin("bare", NONE).unwrap() else { panic!() };
    lease.complete_without_result().unwrap();
    lease.complete_without_result().unwrap();
    assert!(matches!(lease.complete(b""), Err(Error::Conflict { .. })));
    assert!(matches!(store.begin("bare", NONE), Err(Error::ResultNotKept { .. })));
    assert!(matches!(store.record("bare", NONE, b"r"), Err(Error::ResultNotKept { .. })));
}

#[test]
fn the_handle_of_an_attempt_outlives_it_and_is_fenced() {
    let store = store();
    let kept = Cell::new(None);
    let outcome = store.operation("k").scope("tenant").run(|attempt| {
        assert!(attempt.is_current());
        attempt.renew(common::seconds(60)).unwrap();
        attempt.retain(common::seconds(5)).unwrap();
        let handle = attempt.clone();
        std::thread::spawn(move || assert!(handle.is_current())).join().unwrap();
        kept.set(Some(attempt.clone()));
        Ok::<_, String>(attempt.token())
    });
    assert_eq!(outcome.unwrap().into_inner(), "tenant/k");
    let seen = store.get(oncekey::Key::new("k").scope("tenant")).unwrap();
    assert_eq!(seen.expires_at_ms().unwrap() - seen.changed_at_ms().unwrap(), 5_000);
    let attempt = kept.take().unwrap();
    for _ in 0..2 {
        assert!(!attempt.is_current());
        assert!(matches!(attempt.renew(common::seconds(1)), Err(Error::Fenced { .. })));
        assert!(matches!(attempt.retain(common::seconds(1)), Err(Error::Fenced { .. })));
        store.close().ok();
    }
}

#[test]
fn a_disk_that_fails_leaves_a_doubt_and_is_reported_beside_the_error_of_the_closure() {
    use oncekey::simulation::{DiskFault, SimulatedDisk};
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let refused = store.operation("k").release_if(|_: &&str| true).run(|_| {
        disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
        Err::<u8, _>("connection refused")
    });
    let Err(error @ RunError::InDoubt { error: "connection refused", release_failed: Some(_), .. }) = refused
    else {
        panic!("{refused:?}")
    };
    let text = error.to_string();
    assert!(text.contains("connection refused") && text.contains("could not be recorded"), "{text}");
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);

    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let lost = store.operation("k").run(|_| {
        disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
        Ok::<_, String>(17)
    });
    assert!(
        matches!(lost, Err(RunError::Unrecorded { result, source: Error::Poisoned { .. }, .. }) if *result == 17)
    );
    assert_eq!(store.get("k").unwrap().status(), Status::InDoubt, "only a failed disk leaves one");
}

#[test]
fn no_error_text_quotes_a_result() {
    #[derive(Debug, Serialize, Deserialize)]
    enum Known {
        Charged,
    }
    fn is_silent<C: oncekey::Codec + Copy, As: Serialize + DeserializeOwned + Debug>(codec: C) {
        let store = store();
        store.operation("k").codec(codec).run(|_| Ok::<_, String>("secret-card-4242".to_owned())).unwrap();
        let error =
            store.operation("k").codec(codec).run(|_| -> Result<As, String> { panic!() }).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("secret") && !text.contains("4242"), "{text}");
    }
    is_silent::<_, u8>(Json);
    is_silent::<_, Known>(Json);
    is_silent::<_, (u8, Receipt)>(Json);
    is_silent::<_, u8>(Bincode);
    is_silent::<_, Known>(Bincode);
    is_silent::<_, char>(Bincode);
    is_silent::<_, Vec<bool>>(Bincode);
    let _ = Known::Charged;
}

#[test]
fn nothing_is_completed_with_a_codec_that_a_retry_of_the_operation_could_not_read() {
    let store = store();
    let lost = store.operation("k").codec(Json).run(|_| Err::<u64, _>("lost"));
    assert!(lost.is_err());
    let seen = store.get("k").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    let other = store.operation("k").complete_if(expected, &17_u64);
    assert!(
        matches!(&other, Err(error @ Error::Encode { .. }) if error.to_string().contains("codec 2")),
        "{other:?}"
    );
    let Begin::InDoubt(mut doubt) = store.operation("k").begin().unwrap() else { panic!() };
    assert!(matches!(doubt.resolve_with(&Bincode, &17_u64), Err(Error::Encode { .. })));
    drop(doubt);
    store.operation("k").codec(Json).complete_if(expected, &17_u64).unwrap();
    let again = store.operation("k").codec(Json).run(|_| -> Result<u64, String> { panic!() });
    assert_eq!(again.unwrap(), Outcome::AlreadyDone(17));
}
