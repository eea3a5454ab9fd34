//! A full or failing disk.

use oncekey::simulation::{Bug, DiskFault, SimulatedDisk, plant};
use oncekey::{Durability, Error, Messages, Options, Store};

use crate::tokens;

fn options() -> Options {
    Options::new().segment_size(64 << 10).max_size(4_096 + 6 * (64 << 10)).min_size(4_096 + 6 * (64 << 10))
}

fn emit(store: &Store, key: &str, payload: &[u8]) -> Result<(), Error> {
    let mut batch = store.batch();
    batch.record(store.operation(key), b"")?;
    let mut messages = Messages::new();
    messages.emit_bytes("t", payload)?;
    batch.attach(messages)?;
    batch.commit()?.try_for_each(|answer| answer.map(drop))
}

/// Emits messages, fills the store, uses up the space that is kept for forgets, and acknowledges all messages.
fn acknowledge_in_a_full_store(reopens: bool) -> Result<(), String> {
    const MESSAGES: usize = 600;
    let bytes = 4_096 + 16 * (64 << 10);
    let options = options().max_size(bytes).min_size(bytes);
    let disk = SimulatedDisk::new();
    let mut store = options.open_simulated(&disk).unwrap();
    for number in 0..MESSAGES {
        emit(&store, &format!("k{number}"), b"").map_err(|error| error.to_string())?;
    }
    let fills = |number: u32| store.operation(format!("{number}")).record(&[1; 12_000]).is_ok();
    let filled = (0..).take_while(|number| fills(*number)).count();
    assert!(filled > 20, "{filled} records fill the store");
    for number in 0..MESSAGES {
        match store.forget(&format!("k{number}")) {
            Ok(_) => {}
            Err(Error::Full { .. }) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    if reopens {
        drop(store);
        store = options.open_simulated(&disk).map_err(|error| error.to_string())?;
    }
    let outbox = store.outbox();
    for acknowledged in 0..MESSAGES {
        let delivery =
            outbox.next("t").map_err(|error| error.to_string())?.ok_or("nothing was handed out")?;
        delivery.ack().map_err(|error| format!("after {acknowledged} acknowledgements: {error}"))?;
    }
    Ok(())
}

#[test]
fn an_acknowledgement_is_never_refused_by_a_full_store() {
    for reopens in [false, true] {
        acknowledge_in_a_full_store(reopens).unwrap();
    }
    plant(Some(Bug::AcknowledgementNeedsSpace));
    let found = acknowledge_in_a_full_store(false);
    plant(None);
    let why = found.expect_err("the planted bug must be found");
    assert!(why.contains("there is no room"), "{why}");
}

#[test]
fn the_space_of_acknowledgements_is_given_back() {
    let disk = SimulatedDisk::new();
    let store = options().open_simulated(&disk).unwrap();
    for number in 0..10 {
        emit(&store, &format!("k{number}"), b"").unwrap();
    }
    assert_eq!(store.stats().reserved_bytes, 10 * 184);
    drop(store);
    let store = options().open_simulated(&disk).unwrap();
    assert_eq!(store.stats().reserved_bytes, 10 * 184);
    store.outbox().next("t").unwrap().unwrap().ack().unwrap();
    assert_eq!(store.stats().reserved_bytes, 9 * 184);
    store.outbox().next_many("t", 100).unwrap().unwrap().ack().unwrap();
    assert_eq!(store.stats().reserved_bytes, 0);
}

#[test]
fn a_poisoned_store_hands_out_nothing_and_what_failed_to_be_acknowledged_stays_out() {
    let disk = SimulatedDisk::new();
    let store = options().open_simulated(&disk).unwrap();
    for key in ["a", "b", "c"] {
        emit(&store, key, b"").unwrap();
    }
    let outbox = store.outbox();
    let delivery = outbox.next("t").unwrap().unwrap();
    disk.fault_at(disk.steps(), DiskFault::Error);
    assert!(matches!(delivery.ack(), Err(Error::Poisoned { .. })));
    assert!(matches!(outbox.next("t"), Err(Error::Poisoned { .. })));
    drop((outbox, store));
    let store = options().open_simulated(&disk).unwrap();
    let tokens = tokens(&store, "t");
    assert!(tokens == ["a~1", "b~1", "c~1"] || tokens == ["b~1", "c~1"], "{tokens:?}");
}

/// Publishes a message of a buffered operation, and loses power. Fails if the operation is gone then.
fn publish_and_lose_power() -> Result<(), String> {
    let disk = SimulatedDisk::new();
    let store = options().durability(Durability::Buffered).open_simulated(&disk).unwrap();
    emit(&store, "k", b"payload").unwrap();
    let published = store.outbox().next("t").unwrap().unwrap();
    std::mem::forget(published);
    let image = disk.crash(|_| 0);
    let after = options().open_simulated(&image).unwrap();
    if !after.get("k").unwrap().is_completed() {
        return Err("what was published did not happen".to_owned());
    }
    assert_eq!(tokens(&after, "t"), ["k~1"]);
    Ok(())
}

#[test]
fn what_is_handed_out_is_durable() {
    publish_and_lose_power().unwrap();
    plant(Some(Bug::MessageNotDurable));
    let found = publish_and_lose_power();
    plant(None);
    assert!(found.is_err(), "the planted bug must be found");
}

/// An operation in doubt is completed by `reconcile`. Fails if nothing was emitted.
fn complete_by_reconcile() -> Result<(), String> {
    let store = Store::in_memory().unwrap();
    let operation = || {
        store
            .operation("k")
            .emits(1_024)
            .reconcile(|_| Some(5_u64))
            .on_complete(|result: &u64, outbox| outbox.emit("t", result))
    };
    assert!(operation().run(|_| Err::<u64, _>("timeout")).is_err());
    assert!(operation().run(|_| Err::<u64, _>("not run")).is_ok());
    match &tokens(&store, "t")[..] {
        [token] if token == "k~1" => Ok(()),
        other => Err(format!("{other:?} were emitted")),
    }
}

#[test]
fn a_completion_by_reconcile_emits() {
    complete_by_reconcile().unwrap();
    plant(Some(Bug::ReconcileLosesMessages));
    let found = complete_by_reconcile();
    plant(None);
    assert!(found.is_err(), "the planted bug must be found");
}

/// A slot that a buffered store has reserved and not written to is a hole when the store is opened again.
#[test]
fn the_space_of_acknowledgements_is_there_after_a_restart() {
    for reserves in [false, true] {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let options = options().min_size(0).durability(Durability::Buffered);
        let store = options.open_simulated(&disk).unwrap();
        let mut count = 0;
        while emit(&store, &format!("k{count}"), b"").is_ok() {
            count += 1;
        }
        store.close().unwrap();
        let store = options.open_simulated(&disk).unwrap();
        assert_eq!(store.stats().reserved_bytes, count * 184);
        for acknowledged in 0..count {
            let acked = store.outbox().next("t").unwrap().unwrap().ack();
            assert!(acked.is_ok(), "after {acknowledged} of {count}: {acked:?}");
        }
    }
}
