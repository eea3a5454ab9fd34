//! Checks that in every event a subscriber may call the store, close it, or panic, because no event is emitted under a lock.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use oncekey::{Begin, Durability, Error, Expected, Lease, Next, RunError, Store};

use crate::common::{NONE, Place, SEGMENT, abandon, acquire, seconds, small};
use crate::{call_everything, with_subscriber, write_records};

/// The message of an event, a function that opens a store, and a function that causes the event on it.
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
            write_records(&store, "short", 400, 1_000);
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
        let messages = with_subscriber(open(&place), call_everything, cause);
        assert!(messages.count(event) > 0, "{number}: {event}: {:?}", messages.0.lock().unwrap());
    }
}

#[test]
fn a_subscriber_may_close_the_store_in_the_event_of_a_call() {
    for (number, (event, open, cause)) in CAUSES.iter().enumerate() {
        if matches!(*event, "replaced" | "unreadable") {
            continue;
        }
        let place = Place::new();
        let held = Arc::new(Mutex::new(Vec::new()));
        let outcomes = Arc::clone(&held);
        let close = move |_: &str, store: &Store| outcomes.lock().unwrap().push(store.close());
        with_subscriber(open(&place), close, cause);
        // This call is about to return a doubt, which counts as alive already.
        let returns_doubt = *event == "found in doubt" && number == 6;
        let outcome = held.lock().unwrap().remove(0);
        match outcome {
            Ok(()) if !returns_doubt => drop(place.open()),
            Err(Error::LeasesAlive { count: 1, .. }) if returns_doubt => {}
            other => panic!("{number}: {event}: {other:?}"),
        }
    }
}

#[test]
fn a_subscriber_may_call_open_in_the_opened_event() {
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
    let messages = with_subscriber(unrelated, locked, move |_| Store::open(path).unwrap().close().unwrap());
    assert_eq!(messages.count("opened"), 1);
}

#[test]
fn events_caused_by_a_subscriber_come_after_the_current_one() {
    let place = Place::new();
    let depth = Arc::new(Mutex::new(0));
    let left = Mutex::new(1_000);
    let react = move |_: &str, store: &Store| {
        assert!(
            depth.try_lock().is_ok_and(|mut inside| std::mem::replace(&mut *inside, 1) == 0),
            "an event was emitted within another"
        );
        let may_continue = {
            let mut left = left.lock().unwrap();
            *left -= 1;
            *left > 0
        };
        if may_continue {
            store.record("k", NONE, b"r").unwrap();
        }
        *depth.lock().unwrap() = 0;
    };
    let messages = with_subscriber(completed(&place), react, |store| drop(store.begin("k", NONE).unwrap()));
    assert_eq!(messages.count("replayed"), 1_000, "an event was lost");
}

#[test]
fn a_subscribers_panic_escapes_neither_a_call_nor_a_drop() {
    let place = Place::new();
    let messages = with_subscriber(
        place.open(),
        |message, _| panic!("on purpose, about: {message}"),
        |store| {
            drop(acquire(store, "dropped"));
            store.record("k", NONE, b"r").unwrap();
            store.record("k", NONE, b"r").unwrap();
            let next = store.begin("dropped", NONE).unwrap();
            assert!(matches!(next, Begin::InDoubt(_)), "{next:?}");
            drop(next);
            // During the unwinding of another panic, a second one would abort the process.
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _lease = acquire(store, "panicked");
                panic!("of the caller");
            }));
            assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "of the caller");
            store.close().unwrap();
        },
    );
    assert_eq!(
        (messages.count("in doubt"), messages.count("found in doubt"), messages.count("replayed")),
        (2, 1, 1)
    );
}

/// A lease in a thread-local variable is dropped while its thread is ending. `tracing` no longer passes the event to the
/// subscriber of that thread, but the drop must neither panic nor hang.
#[test]
fn a_lease_may_be_dropped_with_its_threads_local_variables() {
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
fn finds_an_event_emitted_under_a_lock() {
    use oncekey::simulation::{Bug, plant};
    let place = Place::new();
    let (sender, results) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let is_under_lock = move |_: &str, store: &Store| {
        // A close waits for every call that is running. With the planted bug, the call that emitted this event is still running.
        let (ends, ended) = std::sync::mpsc::channel();
        let store = store.clone();
        std::thread::spawn(move || {
            let _ = store.close();
            let _ = ends.send(());
        });
        let _ = sender.lock().unwrap().send(ended.recv_timeout(seconds(1)).is_err());
    };
    with_subscriber(completed(&place), is_under_lock, |store| {
        plant(Some(Bug::EventUnderLocks));
        drop(store.record("k", NONE, b"r").unwrap());
        plant(None);
    });
    assert!(results.recv().unwrap(), "the test missed the planted bug");
}
