//! Checks batches: their answers, how many syncs they take, and what a crash, a full store or a drop leaves of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod drops;
mod rests;
mod same;
mod space;

use oncekey::simulation::SimulatedDisk;
use oncekey::{Answer, Durability, Error, Lease, Options, RunError, Status, Store};

use common::{NONE, Place, acquire, small};

/// Returns the leases of a batch in which each begin acquires its key.
fn begin_all(store: &Store, keys: &[String]) -> Vec<Lease> {
    let mut batch = store.batch();
    for key in keys {
        batch.begin(store.operation(key).max_result(64)).unwrap();
    }
    let acquired = |answer: oncekey::Result<Answer>| match answer.unwrap() {
        Answer::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    };
    batch.commit().unwrap().map(acquired).collect()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("message-{number}")).collect()
}

#[test]
fn five_hundred_entries_take_one_sync() {
    let place = Place::new();
    let store = place.open();
    let keys = keys(500);
    let before = store.stats().syncs;
    let mut leases = begin_all(&store, &keys);
    assert_eq!(store.stats().syncs - before, 1, "one sync for the begins");
    let mut batch = store.batch();
    for lease in &mut leases {
        let result = format!("result of {}", lease.key());
        batch.complete(lease, result.as_bytes()).unwrap();
    }
    assert_eq!(batch.len(), 500);
    let answers = batch.commit().unwrap();
    assert_eq!(answers.len(), 500);
    assert!(batch.is_empty() && answers.into_iter().all(|answer| matches!(answer, Ok(Answer::Done(_)))));
    assert_eq!(store.stats().syncs - before, 2, "one sync for the completions");
    drop(batch);
    drop(leases);
    // A frame of this store holds 16 KiB, so the records of 40 results take several. A crash finds all of them.
    let mut batch = store.batch();
    for key in 0..40 {
        batch.record(store.operation(format!("large-{key}")), &[key; 4_000]).unwrap();
    }
    assert!(batch.commit().unwrap().all(|answer| matches!(answer, Ok(Answer::Done(_)))));
    assert_eq!(store.stats().syncs - before, 3, "one sync for several frames");
    let copy = common::copy_while_open(&place.path);
    let reopened = copy.open();
    for state in reopened.get_many(&keys) {
        let state = state.unwrap();
        assert_eq!(state.result(), Some(format!("result of {}", state.key()).as_bytes()));
    }
    for key in 0..40 {
        assert_eq!(reopened.get(&format!("large-{key}")).unwrap().result(), Some(&[key; 4_000][..]));
    }
}

#[test]
fn the_disk_sees_one_sync_for_five_hundred_entries() {
    let disk = SimulatedDisk::new();
    let options = Options::new().segment_size(1 << 20).min_size(4 << 20).max_size(8 << 20);
    let store = options.open_simulated(&disk).unwrap();
    store.record("first", NONE, b"").unwrap();
    let keys = keys(500);
    let (before, steps) = (disk.syncs(), disk.steps());
    let mut leases = begin_all(&store, &keys);
    assert_eq!(disk.syncs() - before, 1, "one sync for the begins");
    assert_eq!(disk.steps() - steps, 2, "one write for the begins: they fit one frame");
    let mut batch = store.batch();
    for lease in &mut leases {
        batch.complete(lease, b"result").unwrap();
    }
    assert!(batch.commit().unwrap().all(|answer| answer.is_ok()));
    assert_eq!(disk.syncs() - before, 2, "one sync for the completions");
    for key in &keys {
        store.forget(key).unwrap();
    }
    let single = disk.syncs() - before - 2;
    assert_eq!(single, 500, "a call of its own syncs on its own");
}

#[test]
fn answers_are_in_the_order_of_the_entries() {
    let store = small().open_in_memory().unwrap();
    let mut batch = store.batch();
    assert!(batch.is_empty());
    let keys = keys(64);
    for key in keys.iter().rev().chain(&keys) {
        batch.record(store.operation(key), key.as_bytes()).unwrap();
    }
    assert!(!batch.is_empty());
    let answers: Vec<_> = batch.commit().unwrap().collect();
    for (key, answer) in keys.iter().rev().zip(&answers) {
        assert!(
            matches!(answer, Ok(Answer::Done(version)) if store.get(key).unwrap().version() == Some(*version))
        );
    }
    for (key, answer) in keys.iter().zip(&answers[64..]) {
        assert!(
            matches!(answer, Ok(Answer::AlreadyDone(done)) if done.result() == key.as_bytes()),
            "{answer:?}"
        );
    }
}

#[test]
fn a_result_that_is_too_large_for_a_doubt_is_refused_and_the_doubt_stays() {
    let store = small().max_result(1_000).open_in_memory().unwrap();
    drop(acquire(&store, "lost"));
    let oncekey::Begin::InDoubt(mut doubt) = store.begin("lost", NONE).unwrap() else { panic!() };
    let mut batch = store.batch();
    batch.complete(&mut doubt, &[0; 1_001]).unwrap();
    let answer = batch.commit().unwrap().next().unwrap();
    assert!(
        matches!(answer, Err(Error::TooLarge { length_bytes: 1_001, limit_bytes: 1_000, .. })),
        "{answer:?}"
    );
    drop(batch);
    doubt.complete(&[0; 1_000]).unwrap();
}

#[test]
fn a_refused_entry_stops_no_other() {
    let store = small().max_result(1_000).open_in_memory().unwrap();
    let lease = acquire(&store, "begun");
    store.record("done", store.fingerprint(b"a request"), b"r").unwrap();
    drop(acquire(&store, "in doubt"));
    let mut batch = store.batch();
    batch.record(store.operation("first"), b"1").unwrap();
    batch.begin(store.operation("begun")).unwrap();
    batch.record(store.operation("begun"), b"").unwrap();
    batch.begin(store.operation("done").request(&7)).unwrap();
    batch.record(store.operation("in doubt"), b"").unwrap();
    batch.begin(store.operation("")).unwrap();
    batch.record(store.operation("large"), &[0; 1_001]).unwrap();
    batch.begin(store.operation("retained").retain(std::time::Duration::ZERO)).unwrap();
    batch.record(store.operation("last"), b"2").unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(answers[0], Ok(Answer::Done(_))));
    assert!(matches!(answers[1], Ok(Answer::InProgress { attempt: 1, .. })));
    assert!(matches!(answers[2], Err(Error::InProgress { attempt: 1, .. })));
    assert!(matches!(answers[3], Err(Error::Mismatch { .. })));
    assert!(matches!(answers[4], Err(Error::InDoubt { attempt: 1, .. })));
    assert!(matches!(answers[5], Err(Error::Key { .. })));
    assert!(matches!(answers[6], Err(Error::TooLarge { length_bytes: 1_001, limit_bytes: 1_000, .. })));
    assert!(matches!(answers[7], Err(Error::Option { .. })));
    assert!(matches!(answers[8], Ok(Answer::Done(_))));
    assert!(store.get("last").unwrap().is_completed());
    drop(lease);
}

#[test]
fn an_entry_of_a_different_store_is_refused_at_once() {
    let (store, other) = (Store::in_memory().unwrap(), Store::in_memory().unwrap());
    let mut lease = acquire(&other, "k");
    let mut batch = store.batch();
    let refused = [
        batch.begin(other.operation("a")),
        batch.record(other.operation("a"), b""),
        batch.complete(&mut lease, b""),
    ];
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::Option { option: "batch", .. }))));
    assert!(batch.is_empty());
}

#[test]
fn an_atomic_batch_refuses_what_does_not_fit_and_writes_all_or_nothing() {
    let store = small().open_in_memory().unwrap();
    store.record("done", NONE, b"r").unwrap();
    let mut batch = store.batch().atomic();
    batch.record(store.operation("a"), &[1; 8_000]).unwrap();
    let refused = batch.record(store.operation("b"), &[2; 8_300]);
    assert!(matches!(refused, Err(Error::Option { option: "atomic", .. })), "{refused:?}");
    assert_eq!(batch.len(), 1);
    batch.record(store.operation("done"), b"other").unwrap();
    batch.begin(store.operation("begun").max_result(10)).unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(
        &answers[..],
        [Ok(Answer::Done(_)), Ok(Answer::AlreadyDone(_)), Ok(Answer::Acquired(_))]
    ));

    batch.record(store.operation("c"), b"").unwrap();
    batch.begin(store.operation("begun")).unwrap();
    batch.begin(store.operation("d")).unwrap();
    let again: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(again[0], Err(Error::BatchRefused { entry: 1, .. })));
    assert!(matches!(again[1], Ok(Answer::InProgress { .. })));
    assert!(matches!(again[2], Err(Error::BatchRefused { entry: 1, .. })));
    for key in ["c", "d"] {
        assert!(store.get(key).unwrap().is_absent(), "{key}");
    }
    drop(answers);
    store.close().unwrap();
}

#[test]
fn doubts_are_resolved_with_one_sync() {
    let place = Place::new();
    let store = place.open();
    let keys = keys(30);
    let leases = begin_all(&store, &keys);
    let copy = common::copy_while_open(&place.path);
    drop(leases);
    let store = copy.open();
    let before = store.stats().syncs;
    let mut batch = store.batch();
    for key in &keys {
        batch.begin(store.operation(key)).unwrap();
    }
    let doubt = |answer: oncekey::Result<Answer>| match answer.unwrap() {
        Answer::InDoubt(doubt) => doubt,
        other => panic!("{other:?}"),
    };
    let mut doubts: Vec<_> = batch.commit().unwrap().map(doubt).collect();
    assert_eq!(store.stats().syncs, before, "a doubt writes nothing");
    for (number, doubt) in doubts.iter_mut().enumerate() {
        match number % 3 {
            0 => batch.complete(doubt, b"found").unwrap(),
            1 => batch.release(doubt).unwrap(),
            _ => batch.begin_again(doubt).unwrap(),
        }
    }
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert_eq!(store.stats().syncs - before, 1);
    for (number, (key, answer)) in keys.iter().zip(&answers).enumerate() {
        let (expected, fits) = match number % 3 {
            0 => (Status::Completed, matches!(answer, Ok(Answer::Done(_)))),
            1 => (Status::Absent, matches!(answer, Ok(Answer::Released))),
            _ => (Status::InProgress, matches!(answer, Ok(Answer::Acquired(lease)) if lease.attempt() == 2)),
        };
        assert!(fits && store.get(key).unwrap().status() == expected, "{key}: {answer:?}");
    }
    drop(batch);
    for doubt in &mut doubts[1..3] {
        assert!(matches!(doubt.complete(b"late"), Err(Error::Fenced { .. })));
    }
}

#[test]
fn a_begin_with_rerun_begins_an_operation_in_doubt_again_without_a_sync() {
    let store = small().open_in_memory().unwrap();
    drop(acquire(&store, "a"));
    let before = store.stats().syncs;
    let mut batch = store.batch();
    batch.begin(store.operation("a").rerun()).unwrap();
    batch.begin(store.operation("b").rerun()).unwrap();
    let mut leases: Vec<_> = batch
        .commit()
        .unwrap()
        .map(|answer| match answer.unwrap() {
            Answer::Acquired(lease) => lease,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(leases.iter().map(Lease::attempt).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(store.stats().syncs, before, "the begins of `rerun` need no sync");
    let mut batch = store.batch();
    for lease in &mut leases {
        batch.complete_value(lease, &17_u64).unwrap();
    }
    assert!(batch.commit().unwrap().all(|answer| answer.is_ok()));
    drop(batch);
    let replayed = store.operation("a").run(|_| Ok::<u64, String>(0)).unwrap();
    assert_eq!(replayed, oncekey::Outcome::AlreadyDone(17));
}

#[test]
fn a_lease_that_a_batch_completed_behaves_as_if_it_had_completed_itself() {
    let store = small().open_in_memory().unwrap();
    let mut lease = acquire(&store, "a");
    let version = {
        let mut batch = store.batch();
        batch.complete(&mut lease, b"r").unwrap();
        match batch.commit().unwrap().next() {
            Some(Ok(Answer::Done(version))) => version,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lease.complete(b"r").unwrap(), version);
    assert!(matches!(lease.complete(b"other"), Err(Error::Conflict { .. })));
    for (result, is_same) in [(&b"r"[..], true), (b"other", false)] {
        let mut batch = store.batch();
        batch.complete(&mut lease, result).unwrap();
        let answer = batch.commit().unwrap().next().unwrap();
        match answer {
            Ok(Answer::Done(again)) => assert!(is_same && again == version),
            Err(Error::Conflict { .. }) => assert!(!is_same),
            other => panic!("{other:?}"),
        }
    }
    let mut batch = store.batch();
    batch.release(&mut lease).unwrap();
    assert!(matches!(batch.commit().unwrap().next(), Some(Err(Error::Conflict { .. }))));
}

#[test]
fn a_completion_that_cannot_be_recorded_leaves_its_lease_usable() {
    let store = small().open_in_memory().unwrap();
    let mut batch = store.batch();
    batch.begin(store.operation("a").max_result(4)).unwrap();
    let Some(Ok(Answer::Acquired(mut lease))) = batch.commit().unwrap().next() else { panic!() };
    let mut batch = store.batch();
    batch.complete_value(&mut lease, &"too long".to_owned()).unwrap();
    assert!(matches!(batch.commit().unwrap().next(), Some(Err(Error::TooLarge { limit_bytes: 4, .. }))));
    drop(batch);
    let mut batch = store.batch();
    batch.complete_without_result(&mut lease).unwrap();
    assert!(matches!(batch.commit().unwrap().next(), Some(Ok(Answer::Done(_)))));
    let retried = store.operation("a").run(|_| Ok::<u64, String>(1));
    assert!(matches!(retried, Err(RunError::Store(Error::ResultNotKept { .. }))));
}

#[test]
fn many_keys_are_read_with_at_most_one_sync() {
    let store = Options::new().open_in_memory().unwrap();
    let keys = keys(20);
    for key in &keys[..10] {
        store.operation(key).durability(Durability::Buffered).record(b"seen").unwrap();
    }
    let before = store.stats().syncs;
    let states = store.get_many(&keys);
    assert_eq!(store.stats().syncs - before, 1);
    for (number, (key, state)) in keys.iter().zip(states).enumerate() {
        let state = state.unwrap();
        assert_eq!(state.key(), oncekey::Key::new(key));
        assert_eq!(state.is_completed(), number < 10, "{key}");
    }
    assert!(store.get_many(&keys).iter().all(Result::is_ok));
    assert_eq!(store.stats().syncs - before, 1, "everything is durable already");
    let states = store.get_many(["", "message-1"]);
    assert!(matches!(states[0], Err(Error::Key { .. })) && states[1].as_ref().unwrap().is_completed());
}
