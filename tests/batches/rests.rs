//! Checks what an answer rests on: that it is as durable as the entry asks for, and that no other caller's state is changed for it.

use std::time::Duration;

use oncekey::simulation::{Bug, plant};
use oncekey::{
    Answer, Begin, CasOutcome, Durability, Error, Expected, ManualClock, Next, Options, Status, Store,
};

use crate::common::{NONE, Place, acquire, copy_while_open, small};

/// Makes a batch with an unsynced record and a synced duplicate of it. Returns the number of syncs.
fn syncs_of_a_synced_duplicate() -> u64 {
    let place = Place::new();
    let store = place.open();
    let before = store.stats().syncs;
    let mut batch = store.batch();
    batch.record(store.operation("k").durability(Durability::Buffered), b"r").unwrap();
    batch.record(store.operation("k").durability(Durability::Sync), b"r").unwrap();
    let answers: Vec<_> = batch.commit().unwrap().map(Result::unwrap).collect();
    assert!(matches!(&answers[..], [Answer::Done(_), Answer::AlreadyDone(_)]), "{answers:?}");
    store.stats().syncs - before
}

#[test]
fn a_synced_duplicate_of_an_unsynced_entry_is_answered_after_a_sync() {
    assert_eq!(syncs_of_a_synced_duplicate(), 1);
    plant(Some(Bug::AnswerRestsOnUnsynced));
    assert_eq!(syncs_of_a_synced_duplicate(), 0, "the planted bug was not noticed");
    plant(None);
}

#[test]
fn an_atomic_batch_is_refused_if_an_entry_has_no_result_to_replay() {
    let store = Store::in_memory().unwrap();
    acquire(&store, "debit").complete_without_result().unwrap();
    let mut batch = store.batch().atomic();
    batch.record(store.operation("credit"), b"").unwrap();
    batch.record(store.operation("debit"), b"").unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(answers[0], Err(Error::BatchRefused { entry: 1, .. })), "{answers:?}");
    assert!(matches!(answers[1], Err(Error::ResultNotKept { .. })), "{answers:?}");
    assert!(store.get("credit").unwrap().is_absent());
}

/// Begins the keys in a batch and drops the answers.
fn begin_and_drop(store: &Store, keys: &[&str]) {
    let mut batch = store.batch();
    for key in keys {
        batch.begin(store.operation(*key)).unwrap();
    }
    drop(batch.commit().unwrap());
}

#[test]
fn absent_is_durable_once_an_operator_relied_on_it() {
    let place = Place::new();
    let store = place.open();
    begin_and_drop(&store, &["forgotten", "compared", "untouched"]);
    assert!(!store.forget("forgotten").unwrap());
    let compared = store.compare_and_set("compared", Expected::Absent, Next::Absent).unwrap();
    assert!(matches!(compared, CasOutcome::Done(_)));
    let copy = copy_while_open(&place.path).open();
    for key in ["forgotten", "compared"] {
        assert_eq!(copy.get(key).unwrap().status(), Status::Absent, "{key}");
    }
}

#[test]
fn the_release_of_an_attempt_does_not_end_the_doubt_that_another_caller_holds() {
    let clock = ManualClock::new(1_000_000);
    let options = small().manual_clock(clock.clone()).lease(Duration::from_secs(1));
    let store = options.open_in_memory().unwrap();
    let mut batch = store.batch();
    batch.begin(store.operation("k")).unwrap();
    let answers = batch.commit().unwrap();
    clock.advance(Duration::from_secs(2));
    let Begin::InDoubt(mut doubt) = store.begin("k", NONE).unwrap() else { panic!("the lease is over") };
    drop(answers);
    store.record("another", NONE, b"").unwrap();
    doubt.complete(b"found out").unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"found out"[..]));
}

#[test]
fn a_sync_or_a_close_leaves_no_release_unwritten() {
    let place = Place::new();
    let store = Options::new().segment_size(64 << 10).open(&place.path).unwrap();
    begin_and_drop(&store, &["a", "b"]);
    store.sync().unwrap();
    let copy = copy_while_open(&place.path).open();
    assert!(copy.get("a").unwrap().is_absent() && copy.get("b").unwrap().is_absent());
}
