//! Checks which requests count as the same, and which are a mismatch.

use std::collections::{BTreeMap, HashMap};

use oncekey::{Error, Json, Outcome, RunError};
use serde::Serialize;

use crate::store;

#[test]
fn a_different_request_under_the_same_key_is_a_mismatch() {
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
        let other = store
            .operation("k")
            .request(second)
            .run(|_| -> Result<i32, String> { panic!("the side effect ran") });
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
fn equal_requests_have_the_same_fingerprint_in_any_form() {
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
            .run(|_| -> Result<i32, String> { panic!("the side effect ran") });
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
fn or_request_accepts_a_former_fingerprint() {
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
    assert_eq!(reordered.unwrap(), Outcome::AlreadyDone(19), "the order of request and or_request matters");
}
