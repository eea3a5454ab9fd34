//! Checks that the texts of errors and events are true wherever they are returned, and fit on one line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, SEGMENT, abandon, acquire, small};
use oncekey::{Begin, Error, ErrorKind, Expected, Next, RunError, Store};

#[test]
fn too_large_mentions_no_lease_if_there_is_none() {
    let store = small().max_result(4).open_in_memory().unwrap();
    let recorded = store.record("k", NONE, b"12345").unwrap_err();
    let ran = store.operation("l").run(|_| Ok::<_, Error>("12345".to_owned())).unwrap_err();
    let RunError::Unrecorded { source: ran, .. } = ran else { panic!("{ran}") };
    for error in [recorded, ran] {
        let text = error.to_string();
        assert!(matches!(error, Error::TooLarge { .. }) && !text.contains("lease"), "{text}");
        assert!(text.contains("too large to record") && text.contains("reference"), "{text}");
    }
}

#[test]
fn a_conflict_of_compare_and_set_mentions_no_lease() {
    let store = small().open_in_memory().unwrap();
    store.record("k", NONE, b"r").unwrap();
    let seen = store.get("k").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    let next = Next::Completed { fingerprint: NONE, result: b"other" };
    let text = store.compare_and_set("k", expected, next).unwrap_err().to_string();
    assert!(text.contains("completed already") && !text.contains("lease"), "{text}");
    let mut lease = acquire(&store, "l");
    lease.complete(b"r").unwrap();
    let text = lease.complete(b"other").unwrap_err().to_string();
    assert!(text.contains("what was recorded first stands"), "{text}");
}

#[test]
fn leases_alive_counts_in_singular_and_plural() {
    let store = small().open_in_memory().unwrap();
    let first = acquire(&store, "a");
    let text = store.clone().close().unwrap_err().to_string();
    assert!(text.starts_with("1 lease is alive") && text.contains("drop it"), "{text}");
    let second = acquire(&store, "b");
    let text = store.clone().close().unwrap_err().to_string();
    assert!(text.starts_with("2 leases are alive") && text.contains("drop them"), "{text}");
    drop((first, second));
}

#[test]
fn an_empty_path_is_reported_as_empty() {
    let error = Store::open("").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller);
    assert_eq!(error.to_string(), "option path: it is empty; name a file");
}

#[test]
fn any_path_is_printed_on_one_line() {
    let place = Place::new();
    let directory = place.path.parent().unwrap().join("\x1b[31mred\nCorrupt: no\u{202e}\u{e9}");
    std::fs::create_dir(&directory).unwrap();
    let errors = [
        small().open(&directory).unwrap_err(),
        small().create(false).open(directory.join("missing")).unwrap_err(),
        {
            let path = directory.join("store");
            let _open = small().open(&path).unwrap();
            small().open(&path).unwrap_err()
        },
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            !text.contains(|character: char| character.is_control() || character == '\u{202e}'),
            "{text:?}"
        );
        assert!(text.contains(r"\u{1b}[31mred\nCorrupt: no\u{202e}") && text.contains('\u{e9}'), "{text}");
    }
}

#[test]
fn only_an_error_of_open_says_that_the_file_is_unchanged() {
    let place = Place::new();
    let store = place.open();
    for n in 0..200 {
        store.record(&format!("k{n}"), NONE, &[7; 1_000]).unwrap();
    }
    store.close().unwrap();
    let whole = place.bytes();
    let damage = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&place.path, bytes).unwrap();
    };
    // The records of the first segment are not read while the store is being opened.
    damage(4_096 + 8_192);
    let store = place.open();
    let text = (0..200).find_map(|n| store.get(&format!("k{n}")).err()).unwrap().to_string();
    assert!(text.contains("corrupt at offset") && !text.contains("left as it"), "{text}");
    assert!(!text.contains("nothing was changed"), "{text}");
    drop(store);
    // The header of every segment is checked while the store is being opened.
    damage(4_096 + usize::try_from(SEGMENT).unwrap() + 8);
    let text = small().open(&place.path).unwrap_err().to_string();
    assert!(text.contains("corrupt at offset") && text.contains("the file was left as it is"), "{text}");
}

#[test]
fn the_error_of_a_full_store_says_what_can_still_be_done() {
    let store = small().max_size(4_096 + 8 * SEGMENT).open_in_memory().unwrap();
    abandon(&store, "doubt");
    let full = (0..).find_map(|n| store.record(&format!("{n}"), NONE, &[1; 10_000]).err()).unwrap();
    let text = full.to_string();
    assert!(text.contains("can still be completed") && text.contains("raise Options::max_size"), "{text}");
    let Begin::InDoubt(doubt) = store.begin("doubt", NONE).unwrap() else { panic!("no doubt") };
    let text = doubt.begin_again().unwrap_err().to_string();
    assert!(text.contains("nothing was begun"), "{text}");
}

#[cfg(feature = "tracing")]
mod events {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::Event;
    use tracing::field::{Field, Visit};

    use crate::common::subscriber::OnEvent;

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0 += &format!("{}={value:?} ", field.name());
        }
    }

    #[test]
    fn an_events_key_field_is_the_key() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let subscriber = OnEvent(move |event: &Event<'_>| {
            let mut line = Line(String::new());
            event.record(&mut line);
            seen.lock().unwrap().push(line.0);
        });
        tracing::subscriber::with_default(subscriber, || {
            let store = small().open_in_memory().unwrap();
            for _ in 0..2 {
                store.record("charge:1\n", NONE, b"r").unwrap();
                store.operation("charge:2").scope("acct 42").record(b"r").unwrap();
            }
        });
        let lines = lines.lock().unwrap().join("\n");
        assert!(lines.contains(r"key=charge:1\n "), "{lines}");
        assert!(lines.contains("key=charge:2 scope=acct 42 "), "{lines}");
        assert!(!lines.contains("key \""), "{lines}");
    }
}
