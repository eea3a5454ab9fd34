//! Checks the event that a store emits when a failed disk poisons it.

use oncekey::simulation::{DiskFault, SimulatedDisk};
use oncekey::{Begin, Doubt, Durability, Error, Expected, Next, RunError, Store};

use crate::common::{NONE, abandon, small};
use crate::{Messages, call_everything, with_subscriber};

#[test]
fn a_poisoning_causes_one_event_however_many_calls_fail() {
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let messages = with_subscriber(store, call_everything, move |store| {
        store.record("k", NONE, b"r").unwrap();
        disk.fault_at(disk.steps() + 1, DiskFault::ErrorFromNowOn);
        for n in 0..5 {
            assert!(matches!(
                store.record(&format!("{n}"), NONE, b"r"),
                Err(Error::Poisoned { .. } | Error::Closed)
            ));
        }
        assert!(store.sync().is_err() && store.close().is_err());
    });
    assert_eq!(messages.count("poisoned"), 1, "{:?}", messages.0.lock().unwrap());
}

/// Each call holds different locks when the disk fails.
#[test]
fn a_subscriber_may_use_the_store_in_any_call_that_poisons_it() {
    type Call = fn(&Store) -> oncekey::Result<()>;
    type Finish = fn(Doubt) -> oncekey::Result<()>;
    let calls: [(&str, Call); 9] = [
        ("begin", |store| store.begin("k", NONE).map(drop)),
        ("record", |store| store.record("k", NONE, b"").map(drop)),
        ("forget", |store| store.forget("done").map(drop)),
        ("compare and set", |store| {
            store.compare_and_set("k", Expected::Absent, Next::InDoubt { fingerprint: NONE }).map(drop)
        }),
        ("run", |store| match store.operation("k").run(|_| Ok::<_, Error>(())) {
            Err(RunError::Store(error)) => Err(error),
            other => panic!("{other:?}"),
        }),
        ("sync", Store::sync),
        ("compact", |store| store.compact().map(drop)),
        ("close", Store::close),
        ("get", |store| store.get("buffered").map(drop)),
    ];
    for (name, call) in calls {
        let disk = SimulatedDisk::new();
        let store = small().open_simulated(&disk).unwrap();
        store.record("done", NONE, &[1; 2_000]).unwrap();
        store.record("dead", NONE, &[1; 2_000]).unwrap();
        store.forget("dead").unwrap();
        store.operation("buffered").durability(Durability::Buffered).record(b"").unwrap();
        let messages = with_subscriber(store, call_everything, move |store| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            assert!(matches!(call(store), Err(Error::Poisoned { .. })), "{name}");
        });
        assert_eq!(messages.count("poisoned"), 1, "{name}");
    }
    let finishes: [(&str, Finish); 3] = [
        ("complete", |mut doubt| doubt.complete(b"").map(drop)),
        ("release", Doubt::release),
        ("begin again", |doubt| doubt.begin_again().map(drop)),
    ];
    for (name, finish) in finishes {
        let disk = SimulatedDisk::new();
        let store = small().open_simulated(&disk).unwrap();
        abandon(&store, "k");
        let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!("{name}") };
        let messages = with_subscriber(store, call_everything, move |_| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            assert!(matches!(finish(doubt), Err(Error::Poisoned { .. })), "{name}");
        });
        assert_eq!(messages.count("poisoned"), 1, "{name}");
    }
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    abandon(&store, "k");
    let react = |message: &str, store: &Store| {
        // Only in this event, because these calls would end the doubt in an earlier one.
        if message.starts_with("poisoned") {
            call_everything(message, store);
        }
    };
    let messages = with_subscriber(store, react, move |store| {
        let reconciled = store.operation("k").reconcile(|_| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            Some(17)
        });
        let outcome = reconciled
            .run(|_| -> Result<i32, Error> { panic!("the side effect ran although it was applied") });
        assert!(
            matches!(outcome, Err(RunError::Unrecorded { source: Error::Poisoned { .. }, .. })),
            "{outcome:?}"
        );
    });
    assert_eq!(messages.count("poisoned"), 1);
}

/// After one failed write, the calls of all threads fail.
#[test]
fn a_poisoning_causes_one_event_among_all_threads() {
    for _ in 0..20 {
        let (messages, disk) = (Messages::default(), SimulatedDisk::new());
        let store = small().open_simulated(&disk).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (messages, store) = (messages.clone(), &store);
                scope.spawn(move || {
                    let _guard = tracing::subscriber::set_default(messages.subscriber());
                    let record = |n: u32| store.record(&format!("{thread}/{n}"), NONE, b"r");
                    let refused = (0..).find_map(|n| record(n).err());
                    assert!(matches!(refused, Some(Error::Poisoned { .. })));
                });
            }
            disk.fault_at(disk.steps() + 20, DiskFault::ErrorFromNowOn);
        });
        assert_eq!(messages.count("poisoned"), 1);
    }
}
