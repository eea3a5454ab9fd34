//! Checks small promises of the public interface: `create_new` refuses an existing path, versions parse from their printed
//! form, and any string or bytes can be a key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, acquire, small};
use oncekey::{Error, Key, Store, Version};

fn already_exists(opened: Result<Store, Error>) -> bool {
    match opened {
        Err(Error::Io { source, .. }) => source.kind() == std::io::ErrorKind::AlreadyExists,
        _ => false,
    }
}

#[test]
fn create_new_refuses_any_existing_path() {
    let place = Place::new();
    let new = || small().create_new(true);
    let store = new().open(&place.path).unwrap();
    store.record("k", NONE, b"r").unwrap();
    assert!(already_exists(new().open(&place.path)), "an open store was accepted");
    store.close().unwrap();
    let bytes = place.bytes();
    assert!(already_exists(new().create(false).open(&place.path)), "a closed store was accepted");
    assert_eq!(place.bytes(), bytes);
    std::fs::write(&place.path, b"").unwrap();
    assert!(already_exists(new().open(&place.path)), "an empty file was accepted");
    std::fs::remove_file(&place.path).unwrap();
    std::os::unix::fs::symlink(place.path.with_extension("nowhere"), &place.path).unwrap();
    assert!(already_exists(new().open(&place.path)), "a dangling link was accepted");
    std::fs::remove_file(&place.path).unwrap();
    new().create(false).open(&place.path).unwrap();
}

#[test]
fn a_version_parses_from_its_printed_form() {
    let store = small().open_in_memory().unwrap();
    let version = acquire(&store, "k").version();
    for version in [version, Version::from_u64(0), Version::from_u64(u64::MAX)] {
        assert_eq!(version.to_string().parse::<Version>(), Ok(version));
    }
    for text in [
        "",
        "1",
        "1.",
        ".1",
        "1.2.3",
        "+1.2",
        "01.2",
        "1.02",
        " 1.2",
        "1.1099511627776",
        "16777216.1",
        "-1.2",
    ] {
        assert!(text.parse::<Version>().is_err(), "{text:?}");
    }
    assert!("x".parse::<Version>().unwrap_err().to_string().contains("as in 3.1729"));
}

#[test]
fn a_key_converts_from_any_string_or_bytes() {
    let store = small().open_in_memory().unwrap();
    store.record(format!("charge:{}", 1), NONE, b"r").unwrap();
    let owned = Key::new("charge:1").to_owned();
    let seen = [
        store.get("charge:1"),
        store.get(&format!("charge:{}", 1)),
        store.get(String::from("charge:1")),
        store.get(b"charge:1".to_vec()),
        store.get(b"charge:1"),
        store.get(&"charge:1"),
        store.get(Key::new("charge:1")),
        store.get(&owned),
        store.get(owned.clone()),
    ];
    assert!(seen.iter().all(|seen| seen.as_ref().unwrap().is_completed()), "{seen:?}");
    // The operation owns its key, so it can be used after the statement that made the key.
    let operation = store.operation(format!("charge:{}", 2)).scope("acct 42");
    operation.record(b"r").unwrap();
    assert!(store.get(Key::new("charge:2").scope("acct 42")).unwrap().is_completed());
    assert!(store.get("charge:2").unwrap().is_absent());
    assert!(store.forget(Key::new("charge:2").scope("acct 42").to_owned()).unwrap());
    assert!(matches!(store.get(String::new()), Err(Error::Key { .. })));
}
