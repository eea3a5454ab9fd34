//! Checks the list of unfinished operations, its counts, and the notes of attempts that ended in doubt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, abandon, acquire as begin, small};
use oncekey::{Begin, CasOutcome, Expected, ManualClock, Next, Options, Status, Store, UnfinishedOperation};
use std::time::Duration;

fn listed(store: &Store) -> Vec<UnfinishedOperation> {
    store.unfinished().unwrap().collect::<Result<_, _>>().unwrap()
}

fn names(store: &Store) -> Vec<String> {
    listed(store).iter().map(|one| String::from_utf8(one.key().name().to_vec()).unwrap()).collect()
}

fn note_of(store: &Store, key: &str) -> Option<String> {
    let listed = listed(store);
    let one = listed.iter().find(|one| one.key().name() == key.as_bytes()).unwrap();
    one.note().map(str::to_owned)
}

#[test]
fn the_list_has_what_began_and_has_not_ended_oldest_first() {
    let clock = ManualClock::new(1_000_000);
    let store = Options::new().manual_clock(clock.clone()).open_in_memory().unwrap();
    let mut leases = Vec::new();
    for key in ["b", "a", "c", "d", "e", "f"] {
        leases.push(begin(&store, key));
        clock.advance(Duration::from_millis(1));
    }
    store.record("recorded", NONE, b"").unwrap();
    assert_eq!(names(&store), ["b", "a", "c", "d", "e", "f"]);
    assert_eq!((store.stats().unfinished, store.stats().in_doubt), (6, 0));
    assert_eq!(store.stats().oldest_unfinished_ms, Some(1_000_000));
    let mut list = store.unfinished().unwrap();
    assert_eq!(list.size_hint(), (0, Some(6)));
    list.next().unwrap().unwrap();
    assert_eq!(list.size_hint(), (0, Some(5)));

    let mut leases = leases.into_iter();
    leases.next().unwrap().complete(b"").unwrap();
    leases.next().unwrap().release().unwrap();
    drop(leases.next());
    drop(leases.next());
    drop(leases.next());
    store.forget("d").unwrap();
    let seen = store.get("e").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    let next = Next::Completed { fingerprint: NONE, result: b"" };
    assert!(matches!(store.compare_and_set("e", expected, next).unwrap(), CasOutcome::Done(_)));

    let left = listed(&store);
    assert_eq!(names(&store), ["c", "f"]);
    assert_eq!((left[0].status(), left[1].status()), (Status::InDoubt, Status::InProgress));
    assert_eq!((left[0].attempt(), left[0].since_ms()), (1, 1_000_002));
    assert_eq!(Some(left[0].version()), store.get("c").unwrap().version());
    assert_eq!((store.stats().unfinished, store.stats().in_doubt), (2, 1));
    assert_eq!(store.stats().oldest_unfinished_ms, Some(1_000_002));

    // A second attempt is younger than the first one was.
    let Begin::InDoubt(doubt) = store.begin("c", NONE).unwrap() else { panic!() };
    let again = doubt.begin_again().unwrap();
    assert_eq!(names(&store), ["f", "c"]);
    assert_eq!(listed(&store)[1].attempt(), 2);
    drop((again, leases));
    assert_eq!((store.stats().unfinished, store.stats().in_doubt), (2, 2));
}

#[test]
fn an_operation_that_ends_after_the_list_was_made_is_left_out() {
    let store = Store::in_memory().unwrap();
    let (mut first, second) = (begin(&store, "first"), begin(&store, "second"));
    let mut list = store.unfinished().unwrap();
    first.complete(b"").unwrap();
    assert_eq!(list.next().unwrap().unwrap().key().name(), b"second");
    assert!(list.next().is_none());
    drop(second);
    let mut closed = store.unfinished().unwrap();
    store.close().unwrap();
    assert!(matches!(closed.next(), Some(Err(oncekey::Error::Closed))));
    assert!(matches!(store.unfinished(), Err(oncekey::Error::Closed)));
}

#[test]
fn the_list_survives_an_opening_and_reclaiming() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    for number in 0..20 {
        abandon(&store, &format!("doubt {number}"));
    }
    let mut lease = begin(&store, "ends in a later segment");
    // Fill segments, so that begins and ends are in different ones, and retire the first.
    for number in 0..2_000 {
        store.record(format!("{number}"), NONE, &[7; 200]).unwrap();
    }
    lease.complete(b"").unwrap();
    abandon(&store, "in the last segment");
    store.compact().unwrap();
    let before = listed(&store);
    assert_eq!(before.len(), 21);
    let check = |store: &Store, how: &str| {
        assert_eq!(listed(store), before, "{how}");
        assert_eq!((store.stats().unfinished, store.stats().in_doubt), (21, 21), "{how}");
    };
    check(&common::copy_while_open(&place.path).open(), "after a kill");
    store.close().unwrap();
    check(&place.open(), "after a close");
}

#[test]
fn the_error_of_a_side_effect_is_noted_and_changes_nothing_else() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    let mut version = None;
    let failed = store.operation("charge:1").run(|attempt| {
        version = Some(attempt.version());
        Err::<u64, _>("connection reset by peer")
    });
    assert!(failed.is_err());
    assert_eq!(note_of(&store, "charge:1").as_deref(), Some("connection reset by peer"));
    let seen = store.get("charge:1").unwrap();
    assert_eq!((seen.version(), seen.attempt(), seen.status()), (version, 1, Status::InDoubt));
    assert_eq!(store.stats().reserved_bytes, 0, "the rest of the reserved space must be given back");

    // The note moves with its record, and is there after the next opening.
    for number in 0..2_000 {
        store.record(format!("{number}"), NONE, &[7; 200]).unwrap();
    }
    store.compact().unwrap();
    store.close().unwrap();
    let store = small().open(&place.path).unwrap();
    assert_eq!(note_of(&store, "charge:1").as_deref(), Some("connection reset by peer"));

    // The next attempt has no note until it fails, and its end removes it from the list.
    let Begin::InDoubt(doubt) = store.begin("charge:1", NONE).unwrap() else { panic!() };
    let mut lease = doubt.begin_again().unwrap();
    assert_eq!(note_of(&store, "charge:1"), None);
    lease.complete(b"").unwrap();
    assert!(listed(&store).is_empty());
}

#[test]
fn a_note_is_cut_between_two_characters() {
    let store = Store::in_memory().unwrap();
    let long = "x".repeat(511) + "é and more";
    begin(&store, "a").leave_in_doubt(&long);
    assert_eq!(note_of(&store, "a"), Some("x".repeat(511)));
    begin(&store, "b").leave_in_doubt("");
    assert_eq!(note_of(&store, "b").as_deref(), Some(""));
}

#[test]
fn without_the_option_no_text_of_an_error_is_written() {
    let store = Options::new().notes(false).open_in_memory().unwrap();
    assert!(store.operation("k").run(|_| Err::<u8, _>("secret")).is_err());
    assert_eq!(note_of(&store, "k"), None);
    begin(&store, "chosen").leave_in_doubt("chosen by the caller");
    assert_eq!(note_of(&store, "chosen").as_deref(), Some("chosen by the caller"));
}

#[test]
fn an_attempt_that_ended_or_was_taken_over_leaves_no_note() {
    let clock = ManualClock::new(1_000_000);
    let options = Options::new().manual_clock(clock.clone()).lease(Duration::from_secs(1));
    let store = options.open_in_memory().unwrap();
    let mut completed = begin(&store, "completed");
    completed.complete(b"result").unwrap();
    completed.leave_in_doubt("too late");
    assert_eq!(store.get("completed").unwrap().result(), Some(&b"result"[..]));

    let taken_over = begin(&store, "taken over");
    clock.advance(Duration::from_secs(2));
    let Begin::InDoubt(doubt) = store.begin("taken over", NONE).unwrap() else { panic!() };
    let mut second = doubt.begin_again().unwrap();
    taken_over.leave_in_doubt("too late");
    assert_eq!(note_of(&store, "taken over"), None);
    second.complete(b"").unwrap();
}

#[test]
fn a_note_that_does_not_fit_into_the_reserved_space_is_skipped() {
    let store = Options::new().max_result(8).open_in_memory().unwrap();
    begin(&store, "k").leave_in_doubt(&"long ".repeat(20));
    assert_eq!(note_of(&store, "k"), None);
    assert_eq!(store.stats().reserved_bytes, 0);
    begin(&store, "l").leave_in_doubt("short");
    assert_eq!(note_of(&store, "l").as_deref(), Some("short"));
}
