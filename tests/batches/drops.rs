//! Checks what is left of the leases that the answers of a batch did not give out.

use oncekey::{Answer, Begin, Error, Status, Store};

use crate::common::{NONE, Place, copy_while_open};
use crate::keys;

/// Begins all keys and takes the leases of the first `taken`, which are returned.
fn begin_and_take(store: &Store, keys: &[String], taken: usize) -> Vec<oncekey::Lease> {
    let mut batch = store.batch();
    for key in keys {
        batch.begin(store.operation(key).max_result(100)).unwrap();
    }
    let mut answers = batch.commit().unwrap();
    let leases = answers.by_ref().take(taken).map(|answer| match answer.unwrap() {
        Answer::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    });
    let leases = leases.collect();
    drop(answers);
    leases
}

#[test]
fn leases_that_were_not_taken_are_released_at_once_in_memory() {
    let store = Store::in_memory().unwrap();
    let keys = keys(4);
    let leases = begin_and_take(&store, &keys, 1);
    assert_eq!(store.get(&keys[0]).unwrap().status(), Status::InProgress);
    for key in &keys[1..] {
        let state = store.get(key).unwrap();
        assert_eq!((state.status(), state.attempt()), (Status::Absent, 1), "{key}");
        assert_eq!(store.replay_into(key, store.fingerprint(b"another"), &mut Vec::new()).unwrap(), None);
    }
    let begun = store.begin(&keys[1], store.fingerprint(b"another")).unwrap();
    assert!(matches!(&begun, Begin::Acquired(lease) if lease.attempt() == 2), "{begun:?}");
    store.record(&keys[2], NONE, b"recorded").unwrap();
    assert!(!store.forget(&keys[3]).unwrap());
    assert_eq!(store.get(&keys[2]).unwrap().attempt(), 2);
    drop(begun);
    assert_eq!(store.get(&keys[1]).unwrap().status(), Status::InDoubt, "the second attempt did begin");
    assert!(matches!(store.close(), Err(Error::LeasesAlive { count: 1, .. })));
    drop(leases);
    assert_eq!(store.get(&keys[0]).unwrap().status(), Status::InDoubt);
    assert_eq!(store.stats().reserved_bytes, 0, "the space for the completions is given back");
    store.close().unwrap();
}

#[test]
fn the_releases_are_on_disk_with_the_next_frame() {
    let place = Place::new();
    let store = place.open();
    let keys = keys(50);
    let leases = begin_and_take(&store, &keys, 2);
    let status = |place: &Place| -> Vec<Status> {
        let store = place.open();
        store.get_many(&keys).into_iter().map(|state| state.unwrap().status()).collect()
    };
    let before = status(&copy_while_open(&place.path));
    assert!(before.iter().all(|status| *status == Status::InDoubt), "a drop does no I/O: {before:?}");
    store.record("another", NONE, b"").unwrap();
    let after = status(&copy_while_open(&place.path));
    assert!(after[..2].iter().all(|status| *status == Status::InDoubt), "{after:?}");
    assert!(after[2..].iter().all(|status| *status == Status::Absent), "{after:?}");
    drop(leases);
}

#[test]
fn the_releases_are_on_disk_after_a_close_a_sync_or_the_last_drop() {
    for end in [|store: Store| store.close().unwrap(), |store: Store| drop(store)] {
        let place = Place::new();
        let store = place.open();
        let keys = keys(5);
        drop(begin_and_take(&store, &keys, 0));
        end(store);
        let store = place.open();
        assert!(store.get_many(&keys).into_iter().all(|state| state.unwrap().is_absent()));
        drop(begin_and_take(&store, &keys, 0));
        store.sync().unwrap();
        let copied = copy_while_open(&place.path).open();
        assert!(copied.get_many(&keys).into_iter().all(|state| state.unwrap().attempt() == 2));
    }
}

/// The attempt before it may have run, so the key must not become absent.
#[test]
fn an_attempt_that_resolved_a_doubt_stays_in_doubt() {
    let store = Store::in_memory().unwrap();
    let keys = keys(2);
    drop(begin_and_take(&store, &keys, 2));
    let mut batch = store.batch();
    batch.begin(store.operation(&keys[0]).rerun()).unwrap();
    drop(batch.commit().unwrap());
    let Begin::InDoubt(mut doubt) = store.begin(&keys[1], NONE).unwrap() else { panic!() };
    let mut batch = store.batch();
    batch.begin_again(&mut doubt).unwrap();
    drop(batch.commit().unwrap());
    drop(batch);
    drop(doubt);
    for key in &keys {
        let state = store.get(key).unwrap();
        assert_eq!((state.status(), state.attempt()), (Status::InDoubt, 2), "{key}");
    }
    store.close().unwrap();
}
