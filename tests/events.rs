//! Which events there are, how often, and what a subscriber may do in them.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fmt::Debug;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::subscriber::OnEvent;
use common::{NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, flip, record_of, seconds, small};
use oncekey::{Begin, Doubt, Durability, Error, Expected, Lease, ManualClock, Next, RunError, Store};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn of(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|text| text.starts_with(what)).count()
    }

    /// Keeps the message of an event, and returns it.
    fn note(&self, event: &Event<'_>) -> String {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        self.0.lock().unwrap().push(message.clone());
        message
    }

    fn subscriber(&self) -> impl Subscriber + use<> {
        let told = self.clone();
        OnEvent(move |event: &Event<'_>| {
            told.note(event);
        })
    }
}

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

fn records(store: &Store, name: &str, count: u32, retention: u64) {
    for n in 0..count {
        let key = format!("{name}/{n}");
        let operation = store.operation(&key).retain(seconds(retention)).durability(Durability::Buffered);
        operation.record(&[1; 400]).unwrap();
    }
}

#[test]
fn damage_is_told_of_once_and_not_at_every_visit() {
    let told = Told::default();
    let _guard = tracing::subscriber::set_default(told.subscriber());
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000));
    let store = options.open(&place.path).unwrap();
    store.record("seen first", NONE, &[9; 300]).unwrap();
    store.record("moved first", NONE, &[9; 300]).unwrap();
    records(&store, "filler", 300, 1_000_000);
    for key in ["seen first", "moved first"] {
        flip(&place, record_of(&place, key) + 60);
    }
    for _ in 0..3 {
        assert!(store.get("seen first").is_err() && store.begin("seen first", NONE).is_err());
    }
    assert_eq!(told.of("unreadable"), 1);
    for round in 0..30 {
        records(&store, &format!("short/{round}"), 100, 1);
        clock.advance(seconds(2));
    }
    assert!(store.stats().segments_retired > 10 && told.of("reclaimed") > 10);
    assert!(store.get("moved first").is_err() && store.get("seen first").is_err());
    assert_eq!((told.of("unreadable"), told.of("reclaiming stopped")), (2, 0), "each once");
}

#[test]
fn that_reclaiming_stopped_is_told_of_once_until_it_goes_on() {
    let told = Told::default();
    let _guard = tracing::subscriber::set_default(told.subscriber());
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000_000)).open(&place.path).unwrap();
    store.record("rotten", NONE, &[9; 300]).unwrap();
    records(&store, "filler", 300, 1_000_000);
    flip(&place, record_of(&place, "rotten") + 60);
    flip(&place, 4_096 + SEGMENT - 10);
    for round in 0..30 {
        records(&store, &format!("short/{round}"), 100, 1);
        clock.advance(seconds(2));
    }
    assert!(store.stats().reclaiming_stopped && store.compact().is_err() && store.compact().is_err());
    assert_eq!(told.of("reclaiming stopped"), 1);
}

/// Calls `cause` with a store and a subscriber that acts on that store, in a thread that must come to its end.
fn acting(
    store: Store,
    act: impl Fn(&str, &Store) + Send + Sync + 'static,
    cause: impl FnOnce(&Store) + Send + 'static,
) -> Told {
    let told = Told::default();
    let (noted, used) = (told.clone(), store.clone());
    let acting = OnEvent(move |event: &Event<'_>| act(&noted.note(event), &used));
    let (ends, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _guard = tracing::subscriber::set_default(acting);
        cause(&store);
        ends.send(()).unwrap();
    });
    // Only so that a failure is one: whatever waits for itself would never come back.
    match ended.recv_timeout(seconds(60)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("the call and its subscriber wait for each other")
        }
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
    told
}

/// Everything that a subscriber may want: of the key whose event it is, of others, and of the whole store.
fn use_everything(_: &str, store: &Store) {
    thread_local! {
        static EVENTS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    // These calls cause events too, where the key is in doubt and stays so at each of them: that would go on for ever.
    EVENTS.set(EVENTS.get() + 1);
    if EVENTS.get() > 20 {
        return;
    }
    let _ = store.get("k");
    let _ = store.record("k", NONE, b"other");
    let _ = store.forget("k");
    let _ = store.record("another", NONE, b"");
    let _ = store.sync();
    let _ = store.compact();
    let _ = store.stats();
    let _ = store.close();
}

/// Something that causes an event, with the store that it happens to.
type Cause = (&'static str, fn(&Place) -> Store, fn(&Store));

fn completed(place: &Place) -> Store {
    let store = place.open();
    store.record("k", NONE, b"r").unwrap();
    store
}

fn in_doubt(place: &Place) -> Store {
    let store = place.open();
    abandon(&store, "k");
    store
}

fn fingerprint(store: &Store) -> oncekey::Fingerprint {
    store.fingerprint(b"another request")
}

const CAUSES: &[Cause] = &[
    ("replayed", completed, |store| drop(store.begin("k", NONE).unwrap())),
    ("replayed", completed, |store| drop(store.record("k", NONE, b"r").unwrap())),
    ("replayed", completed, |store| {
        assert!(store.replay_into("k", NONE, &mut Vec::new()).unwrap().is_some());
    }),
    ("mismatch", completed, |store| assert!(store.begin("k", fingerprint(store)).is_err())),
    ("mismatch", completed, |store| assert!(store.record("k", fingerprint(store), b"r").is_err())),
    ("mismatch", in_doubt, |store| assert!(store.begin("k", fingerprint(store)).is_err())),
    ("found in doubt", in_doubt, |store| drop(store.begin("k", NONE).unwrap())),
    ("found in doubt", in_doubt, |store| assert!(store.record("k", NONE, b"r").is_err())),
    ("found in doubt", in_doubt, |store| {
        assert!(store.operation("k").run(|_| Ok::<_, Error>(())).is_err());
    }),
    ("in doubt", Place::open, |store| drop(acquire(store, "k"))),
    ("in doubt", Place::open, |store| {
        let outcome = store.operation("k").run(|_| Err::<(), _>("no answer"));
        assert!(matches!(outcome, Err(RunError::InDoubt { error: "no answer", .. })));
    }),
    ("in doubt", Place::open, |store| {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = store.operation("k").run(|_| -> Result<(), Error> { panic!("on purpose") });
        }));
        assert!(panicked.is_err());
    }),
    ("in doubt", Place::open, |store| {
        let next = Next::InDoubt { fingerprint: NONE };
        store.compare_and_set("k", Expected::Absent, next).unwrap();
    }),
    ("replaced", completed, |store| {
        std::fs::rename(store.path(), store.path().with_extension("moved")).unwrap();
        assert!(store.sync().is_err() && store.begin("k2", NONE).is_err());
    }),
    ("unreadable", completed, |store| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(store.path()).unwrap();
        let mut bytes = vec![0; usize::try_from(4_096 + SEGMENT).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let at = bytes.windows(2).rposition(|window| window == b"kr").unwrap();
        file.write_all_at(b"!", at as u64 + 1).unwrap();
        assert!(store.begin("k", NONE).is_err());
    }),
    ("replaced", completed, |store| {
        std::fs::rename(store.path(), store.path().with_extension("moved")).unwrap();
        assert!(store.close().is_err());
    }),
    (
        "reclaimed",
        |place| {
            let options = small().durability(Durability::Buffered);
            let store = options.open(&place.path).unwrap();
            records(&store, "short", 400, 1_000);
            for n in 0..300 {
                assert!(store.forget(&format!("short/{n}")).unwrap());
            }
            store
        },
        |store| drop(store.compact()),
    ),
];

#[test]
fn a_subscriber_may_use_the_store_in_every_event() {
    for (number, (event, open, cause)) in CAUSES.iter().enumerate() {
        let place = Place::new();
        let told = acting(open(&place), use_everything, cause);
        assert!(told.of(event) > 0, "{number}: {event}: {:?}", told.0.lock().unwrap());
    }
}

#[test]
fn a_store_can_be_closed_in_the_event_of_a_call_on_it() {
    for (number, (event, open, cause)) in CAUSES.iter().enumerate() {
        if matches!(*event, "replaced" | "unreadable") {
            continue;
        }
        let place = Place::new();
        let held = Arc::new(Mutex::new(Vec::new()));
        let outcomes = Arc::clone(&held);
        let close = move |_: &str, store: &Store| outcomes.lock().unwrap().push(store.close());
        acting(open(&place), close, cause);
        // Of a doubt that is being handed out, the claim is alive already.
        let hands_out = *event == "found in doubt" && number == 6;
        let outcome = held.lock().unwrap().remove(0);
        match outcome {
            Ok(()) if !hands_out => drop(place.open()),
            Err(Error::LeasesAlive { count: 1, .. }) if hands_out => {}
            other => panic!("{number}: {event}: {other:?}"),
        }
    }
}

#[test]
fn a_store_can_be_used_in_the_event_that_its_path_was_opened() {
    let place = Place::new();
    completed(&place).close().unwrap();
    let path = place.path.clone();
    let unrelated = Store::in_memory().unwrap();
    let locked = move |message: &str, _: &Store| {
        if message.starts_with("opened") {
            assert!(matches!(Store::open(&path), Err(Error::Locked { .. })));
        }
    };
    let path = place.path.clone();
    let told = acting(unrelated, locked, move |_| Store::open(path).unwrap().close().unwrap());
    assert_eq!(told.of("opened"), 1);
}

#[test]
fn events_that_a_subscriber_causes_come_after_the_one_that_it_is_given() {
    let place = Place::new();
    let depth = Arc::new(Mutex::new(0));
    let left = Mutex::new(1_000);
    let act = move |_: &str, store: &Store| {
        assert!(depth.try_lock().is_ok_and(|mut inside| std::mem::replace(&mut *inside, 1) == 0), "nested");
        let goes_on = {
            let mut left = left.lock().unwrap();
            *left -= 1;
            *left > 0
        };
        if goes_on {
            store.record("k", NONE, b"r").unwrap();
        }
        *depth.lock().unwrap() = 0;
    };
    let told = acting(completed(&place), act, |store| drop(store.begin("k", NONE).unwrap()));
    assert_eq!(told.of("replayed"), 1_000, "none is lost, and none is emitted within another");
}

#[test]
fn a_panic_of_a_subscriber_leaves_neither_a_drop_nor_a_call() {
    let place = Place::new();
    let told = acting(
        place.open(),
        |message, _| panic!("on purpose, about: {message}"),
        |store| {
            drop(acquire(store, "dropped"));
            store.record("k", NONE, b"r").unwrap();
            store.record("k", NONE, b"r").unwrap();
            let next = store.begin("dropped", NONE).unwrap();
            assert!(matches!(next, Begin::InDoubt(_)), "{next:?}");
            drop(next);
            // While another panic unwinds, one more would end the process.
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _lease = acquire(store, "panicked");
                panic!("of the caller");
            }));
            assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "of the caller");
            store.close().unwrap();
        },
    );
    assert_eq!((told.of("in doubt"), told.of("found in doubt"), told.of("replayed")), (2, 1, 1));
}

#[test]
fn an_attempt_is_told_to_be_in_doubt_when_it_ends_and_only_then() {
    let told = Told::default();
    let _guard = tracing::subscriber::set_default(told.subscriber());
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    let counts = || (told.of("in doubt"), told.of("found in doubt"));
    drop(acquire(&store, "dropped"));
    assert_eq!(counts(), (1, 0));
    let Begin::InDoubt(doubt) = store.begin("dropped", NONE).unwrap() else { panic!() };
    assert!(store.record("dropped", NONE, b"r").is_err());
    drop(doubt);
    assert_eq!(counts(), (1, 2), "the attempt ended once, and was met twice");
    let mut lease = acquire(&store, "completed");
    lease.complete(b"r").unwrap();
    drop(lease);
    acquire(&store, "released").release().unwrap();
    let fenced = acquire(&store, "fenced");
    let seen = store.get("fenced").unwrap();
    let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
    store.compare_and_set("fenced", expected, Next::InDoubt { fingerprint: NONE }).unwrap();
    assert_eq!(counts(), (2, 2));
    drop(fenced);
    assert_eq!(counts(), (2, 2), "neither what was ended nor what was taken over is in doubt once more");
    let Begin::Acquired(late) = store.operation("late").lease(seconds(1)).begin().unwrap() else { panic!() };
    clock.advance(seconds(1));
    assert_eq!(counts(), (2, 2));
    drop(store.begin("late", NONE).unwrap());
    assert_eq!(counts(), (3, 2), "taken over");
    drop(late);
    assert_eq!(counts(), (3, 2));
    let done = Next::Completed { fingerprint: NONE, result: b"r" };
    store.compare_and_set("set", Expected::Absent, done).unwrap();
    assert_eq!(counts(), (3, 2), "what is set as completed is in no doubt");
}

/// The disk fails under several threads at once.
#[cfg(feature = "__simulation")]
#[test]
fn a_poisoned_store_is_told_of_once_however_many_calls_are_refused() {
    use oncekey::simulation::{DiskFault, SimulatedDisk};
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    let told = acting(store, use_everything, move |store| {
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
    assert_eq!(told.of("poisoned"), 1, "{:?}", told.0.lock().unwrap());
}

/// Whichever call it is in which the disk fails, it holds a lock of its own kind.
#[cfg(feature = "__simulation")]
#[test]
fn a_subscriber_may_use_the_store_in_whatever_call_it_is_poisoned() {
    use oncekey::simulation::{DiskFault, SimulatedDisk};
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
        let told = acting(store, use_everything, move |store| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            assert!(matches!(call(store), Err(Error::Poisoned { .. })), "{name}");
        });
        assert_eq!(told.of("poisoned"), 1, "{name}");
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
        let told = acting(store, use_everything, move |_| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            assert!(matches!(finish(doubt), Err(Error::Poisoned { .. })), "{name}");
        });
        assert_eq!(told.of("poisoned"), 1, "{name}");
    }
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    abandon(&store, "k");
    let act = |message: &str, store: &Store| {
        // Not before: it would take the doubt away.
        if message.starts_with("poisoned") {
            use_everything(message, store);
        }
    };
    let told = acting(store, act, move |store| {
        let reconciled = store.operation("k").reconcile(|_| {
            disk.fault_at(disk.steps(), DiskFault::ErrorFromNowOn);
            Some(17)
        });
        let outcome = reconciled.run(|_| -> Result<i32, Error> { panic!("it was applied") });
        assert!(
            matches!(outcome, Err(RunError::Unrecorded { source: Error::Poisoned { .. }, .. })),
            "{outcome:?}"
        );
    });
    assert_eq!(told.of("poisoned"), 1);
}

/// One thread's write fails for all.
#[cfg(feature = "__simulation")]
#[test]
fn a_poisoned_store_is_told_of_once_in_all_threads() {
    use oncekey::simulation::{DiskFault, SimulatedDisk};
    for _ in 0..20 {
        let (told, disk) = (Told::default(), SimulatedDisk::new());
        let store = small().open_simulated(&disk).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (told, store) = (told.clone(), &store);
                scope.spawn(move || {
                    let _guard = tracing::subscriber::set_default(told.subscriber());
                    let record = |n: u32| store.record(&format!("{thread}/{n}"), NONE, b"r");
                    let refused = (0..).find_map(|n| record(n).err());
                    assert!(matches!(refused, Some(Error::Poisoned { .. })));
                });
            }
            disk.fault_at(disk.steps() + 20, DiskFault::ErrorFromNowOn);
        });
        assert_eq!(told.of("poisoned"), 1);
    }
}

/// A lease that a thread keeps to its very end is dropped with what else is the thread's own. `tracing` gives the event to
/// no subscriber of that thread then, but nothing may panic or wait.
#[test]
fn a_lease_can_be_dropped_with_the_local_variables_of_its_thread() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Lease>> = const { std::cell::RefCell::new(None) };
    }
    let store = Store::in_memory().unwrap();
    let clone = store.clone();
    std::thread::spawn(move || KEPT.set(Some(acquire(&clone, "k")))).join().unwrap();
    store.close().unwrap();
}

#[cfg(feature = "__simulation")]
#[test]
fn an_event_that_is_emitted_under_a_lock_is_noticed() {
    use oncekey::simulation::{Bug, plant};
    let place = Place::new();
    let (noticed, notices) = std::sync::mpsc::channel();
    let noticed = Mutex::new(noticed);
    let is_under_lock = move |_: &str, store: &Store| {
        // The close waits for the call that is in this very event: how long this waits decides nothing.
        let (ends, ended) = std::sync::mpsc::channel();
        let store = store.clone();
        std::thread::spawn(move || {
            let _ = store.close();
            let _ = ends.send(());
        });
        let _ = noticed.lock().unwrap().send(ended.recv_timeout(seconds(1)).is_err());
    };
    acting(completed(&place), is_under_lock, |store| {
        plant(Some(Bug::EventUnderLocks));
        drop(store.record("k", NONE, b"r").unwrap());
        plant(None);
    });
    assert!(notices.recv().unwrap(), "the close waited for the call whose event it was");
}
