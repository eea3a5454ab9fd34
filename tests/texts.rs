//! What errors and events say is so, where it happens, and on one line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, SEGMENT, abandon, acquire, small};
use oncekey::{Begin, Error, ErrorKind, Expected, Next, RunError, Store};

#[test]
fn what_is_too_large_is_said_without_a_lease_that_is_not_there() {
    let store = small().max_result(4).open_in_memory().unwrap();
    let recorded = store.record("k", NONE, b"12345").unwrap_err();
    let ran = store.operation("l").run(|_| Ok::<_, Error>("12345".to_owned())).unwrap_err();
    let RunError::Unrecorded { source: ran, .. } = ran else { panic!("{ran}") };
    for error in [recorded, ran] {
        let said = error.to_string();
        assert!(matches!(error, Error::TooLarge { .. }) && !said.contains("lease"), "{said}");
        assert!(said.contains("nothing was recorded") && said.contains("reference"), "{said}");
    }
}

#[test]
fn a_conflict_of_a_compare_and_set_speaks_of_the_operation_and_not_of_a_lease() {
    let store = small().open_in_memory().unwrap();
    store.record("k", NONE, b"r").unwrap();
    let seen = store.get("k").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    let next = Next::Completed { fingerprint: NONE, result: b"other" };
    let said = store.compare_and_set("k", expected, next).unwrap_err().to_string();
    assert!(said.contains("completed already") && !said.contains("lease"), "{said}");
    let mut lease = acquire(&store, "l");
    lease.complete(b"r").unwrap();
    let said = lease.complete(b"other").unwrap_err().to_string();
    assert!(said.contains("what was recorded first stands"), "{said}");
}

#[test]
fn one_lease_is_one_lease() {
    let store = small().open_in_memory().unwrap();
    let first = acquire(&store, "a");
    let said = store.clone().close().unwrap_err().to_string();
    assert!(said.starts_with("1 lease is alive") && said.contains("drop it"), "{said}");
    let second = acquire(&store, "b");
    let said = store.clone().close().unwrap_err().to_string();
    assert!(said.starts_with("2 leases are alive") && said.contains("drop them"), "{said}");
    drop((first, second));
}

#[test]
fn an_empty_path_is_refused_as_what_it_is() {
    let error = Store::open("").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller);
    assert_eq!(error.to_string(), "option path: it is empty; name a file");
}

#[test]
fn a_path_is_printed_on_one_line_whatever_is_in_it() {
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
        let said = error.to_string();
        assert!(
            !said.contains(|character: char| character.is_control() || character == '\u{202e}'),
            "{said:?}"
        );
        assert!(said.contains(r"\u{1b}[31mred\nCorrupt: no\u{202e}") && said.contains('\u{e9}'), "{said}");
    }
}

#[test]
fn that_the_file_was_left_as_it_is_is_said_at_the_opening_and_not_of_a_record_that_is_read() {
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
    // A record of the first segment is read later: the opening does not look at it.
    damage(4_096 + 8_192);
    let store = place.open();
    let said = (0..200).find_map(|n| store.get(&format!("k{n}")).err()).unwrap().to_string();
    assert!(said.contains("corrupt at offset") && !said.contains("left as it"), "{said}");
    assert!(!said.contains("nothing was changed"), "{said}");
    drop(store);
    // The header of a segment is checked at once, and refused.
    damage(4_096 + usize::try_from(SEGMENT).unwrap() + 8);
    let said = small().open(&place.path).unwrap_err().to_string();
    assert!(said.contains("corrupt at offset") && said.contains("the file was left as it is"), "{said}");
}

#[test]
fn a_full_store_says_what_can_still_be_done() {
    let store = small().max_size(4_096 + 8 * SEGMENT).open_in_memory().unwrap();
    abandon(&store, "doubt");
    let full = (0..).find_map(|n| store.record(&format!("{n}"), NONE, &[1; 10_000]).err()).unwrap();
    let said = full.to_string();
    assert!(said.contains("can still be ended") && said.contains("raise Options::max_size"), "{said}");
    let Begin::InDoubt(doubt) = store.begin("doubt", NONE).unwrap() else { panic!("no doubt") };
    let said = doubt.begin_again().unwrap_err().to_string();
    assert!(said.contains("nothing was begun"), "{said}");
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
    fn the_field_of_a_key_is_the_key() {
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
