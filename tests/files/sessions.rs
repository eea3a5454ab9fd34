//! Checks a single session: when the file can be opened, when `close` succeeds, which calls sync, and that stores in memory
//! are separate.

use std::os::unix::fs::PermissionsExt;

use oncekey::{Durability, Error, ManualClock, Status, Store};

use crate::common::{NONE, Place, START_MS, acquire, clocked, copy_while_open, perform, seconds, small};

#[test]
fn a_file_is_created_for_its_owner_alone() {
    let place = Place::new();
    drop(place.open());
    assert_eq!(std::fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_file_stays_locked_until_the_last_lease_is_dropped() {
    let place = Place::new();
    let store = place.open();
    let lease = acquire(&store, "k");
    assert!(matches!(small().open(&place.path), Err(Error::Locked { .. })));
    drop(store);
    assert!(matches!(small().open(&place.path), Err(Error::Locked { .. })), "opened while a lease is alive");
    drop(lease);
    assert_eq!(place.open().get("k").unwrap().status(), Status::InDoubt);
}

#[test]
fn close_needs_all_leases_ended_and_closes_every_handle() {
    let place = Place::new();
    let store = place.open();
    let lease = acquire(&store, "k");
    match store.close() {
        Err(Error::LeasesAlive { count: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    lease.release().unwrap();
    let other = store.clone();
    store.close().unwrap();
    assert!(matches!(other.get("k"), Err(Error::Closed)));
    assert!(matches!(other.begin("k", NONE), Err(Error::Closed)));
    assert!(matches!(other.close(), Err(Error::Closed)));
}

#[test]
fn a_clock_step_while_open_is_reported_and_not_followed() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).open_in_memory().unwrap();
    perform(&store, "k", b"r");
    clock.jump_wall(START_MS + 1_000_000_000);
    clock.advance(seconds(5));
    assert!(store.get("k").unwrap().is_completed(), "the jump expired the key");
    assert_eq!(store.stats().clock_steps_not_followed, 1);
    clock.advance(seconds(995));
    assert!(store.get("k").unwrap().is_absent(), "the key did not expire after its retention");
}

#[test]
fn buffered_records_survive_the_process_without_a_sync() {
    let place = Place::new();
    let store = small().durability(Durability::Buffered).open(&place.path).unwrap();
    let before = store.stats().syncs;
    for n in 0..50 {
        perform(&store, &format!("k{n}"), b"r");
    }
    assert_eq!(store.stats().syncs, before, "a buffered record was synced");
    let crashed = copy_while_open(&place.path);
    assert!(crashed.open().get("k49").unwrap().is_completed());
    store.sync().unwrap();
    assert_eq!(store.stats().syncs, before + 1);
    store.sync().unwrap();
    assert_eq!(
        store.stats().syncs,
        before + 1,
        "a second sync reached the disk although nothing was written"
    );
}

#[test]
fn a_read_under_sync_makes_a_buffered_record_durable_first() {
    let store = small().open_in_memory().unwrap();
    let buffered = store.operation("k").durability(Durability::Buffered);
    assert!(matches!(buffered.record(b"r"), Ok(oncekey::Recorded::Done(_))));
    let before = store.stats().syncs;
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().syncs, before + 1, "the record was not synced before the answer");
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().syncs, before + 1);
}

#[test]
fn an_operation_syncs_twice_but_rerun_and_record_once() {
    let store = small().open_in_memory().unwrap();
    let syncs = |work: &dyn Fn()| {
        let before = store.stats().syncs;
        work();
        store.stats().syncs - before
    };
    assert_eq!(syncs(&|| perform(&store, "a", b"r")), 2);
    assert_eq!(syncs(&|| drop(store.record("b", NONE, b"r"))), 1);
    let effect = |_: &oncekey::Attempt| Ok::<_, Error>(1_u8);
    assert_eq!(syncs(&|| drop(store.operation("c").rerun().run(effect))), 1);
    assert_eq!(syncs(&|| drop(store.operation("c").rerun().run(effect))), 0, "a replay synced");
}

#[test]
fn two_stores_in_memory_share_nothing() {
    let (one, other) = (Store::in_memory().unwrap(), Store::in_memory().unwrap());
    perform(&one, "k", b"r");
    assert!(other.get("k").unwrap().is_absent());
    assert_ne!(one.fingerprint(b"x"), other.fingerprint(b"x"), "two stores share a secret");
    one.close().unwrap();
}
