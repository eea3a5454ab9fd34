//! Checks that each store has its own secret, and that no debug text contains a result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, abandon, small};
use oncekey::{Expected, Next, RunError, Store};

#[test]
fn no_two_stores_share_a_secret() {
    let stores: Vec<Store> = (0..8).map(|_| small().open_in_memory().unwrap()).collect();
    let mut fingerprints: Vec<_> = stores.iter().map(|store| store.fingerprint(b"r").to_bytes()).collect();
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), stores.len());
}

#[test]
fn debug_texts_show_only_the_length_of_a_result() {
    let store = small().open_in_memory().unwrap();
    let secret = b"the secret of a customer";
    let next = Next::Completed { fingerprint: NONE, result: secret };
    let mut printed = vec![
        format!("{next:?}"),
        format!("{:?}", store.record("k", NONE, secret).unwrap()),
        format!("{:?}", store.record("k", NONE, secret).unwrap()),
        format!("{:?}", store.begin("k", NONE).unwrap()),
        format!("{:?}", store.get("k").unwrap()),
        format!("{:?}", store.compare_and_set("k", Expected::Absent, next).unwrap()),
    ];
    let strict = small().max_result(4).open_in_memory().unwrap();
    abandon(&strict, "k");
    let text = String::from_utf8(secret.to_vec()).unwrap();
    let ran = strict.operation("k").rerun().run(|_| Ok::<_, oncekey::Error>(text.clone()));
    assert!(matches!(&ran, Err(RunError::Unrecorded { result, .. }) if **result == text));
    printed.push(format!("{:?}", ran.unwrap_err()));
    // Neither the text nor its bytes as numbers may appear.
    let bytes = format!("{}, {}", secret[0], secret[1]);
    for line in &printed {
        assert!(!line.contains("secret of") && !line.contains(&bytes), "{line}");
    }
    assert_eq!(printed.iter().filter(|line| line.contains("<24 bytes>")).count(), 5, "{printed:#?}");
}
