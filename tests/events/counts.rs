//! Checks that an event is emitted once for what happened, and not again for each call that finds it.

use oncekey::{Begin, Expected, ManualClock, Next};

use crate::common::{NONE, Place, SEGMENT, START_MS, acquire, clocked, flip, record_of, seconds};
use crate::{Messages, write_records};

#[test]
fn damage_to_a_record_causes_one_event() {
    let messages = Messages::default();
    let _guard = tracing::subscriber::set_default(messages.subscriber());
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000));
    let store = options.open(&place.path).unwrap();
    store.record("seen first", NONE, &[9; 300]).unwrap();
    store.record("moved first", NONE, &[9; 300]).unwrap();
    write_records(&store, "filler", 300, 1_000_000);
    for key in ["seen first", "moved first"] {
        flip(&place, record_of(&place, key) + 60);
    }
    for _ in 0..3 {
        assert!(store.get("seen first").is_err() && store.begin("seen first", NONE).is_err());
    }
    assert_eq!(messages.count("unreadable"), 1);
    for round in 0..30 {
        write_records(&store, &format!("short/{round}"), 100, 1);
        clock.advance(seconds(2));
    }
    assert!(store.stats().segments_retired > 10 && messages.count("reclaimed") > 10);
    assert!(store.get("moved first").is_err() && store.get("seen first").is_err());
    assert_eq!(
        (messages.count("unreadable"), messages.count("reclaiming stopped")),
        (2, 0),
        "each damaged record must cause one event, and reclaiming must not stop"
    );
}

#[test]
fn a_stop_of_reclaiming_causes_one_event() {
    let messages = Messages::default();
    let _guard = tracing::subscriber::set_default(messages.subscriber());
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000_000)).open(&place.path).unwrap();
    store.record("rotten", NONE, &[9; 300]).unwrap();
    write_records(&store, "filler", 300, 1_000_000);
    flip(&place, record_of(&place, "rotten") + 60);
    flip(&place, 4_096 + SEGMENT - 10);
    for round in 0..30 {
        write_records(&store, &format!("short/{round}"), 100, 1);
        clock.advance(seconds(2));
    }
    assert!(store.stats().reclaiming_stopped && store.compact().is_err() && store.compact().is_err());
    assert_eq!(messages.count("reclaiming stopped"), 1);
}

#[test]
fn an_attempt_left_in_doubt_causes_one_event() {
    let messages = Messages::default();
    let _guard = tracing::subscriber::set_default(messages.subscriber());
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).open_in_memory().unwrap();
    let counts = || (messages.count("in doubt"), messages.count("found in doubt"));
    drop(acquire(&store, "dropped"));
    assert_eq!(counts(), (1, 0));
    let Begin::InDoubt(doubt) = store.begin("dropped", NONE).unwrap() else { panic!() };
    assert!(store.record("dropped", NONE, b"r").is_err());
    drop(doubt);
    assert_eq!(
        counts(),
        (1, 2),
        "one event for the end of the attempt, and one for each caller that found it, are expected"
    );
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
    assert_eq!(counts(), (2, 2), "an attempt that had ended or was fenced caused an event");
    let Begin::Acquired(late) = store.operation("late").lease(seconds(1)).begin().unwrap() else { panic!() };
    clock.advance(seconds(1));
    assert_eq!(counts(), (2, 2));
    drop(store.begin("late", NONE).unwrap());
    assert_eq!(counts(), (3, 2), "the takeover caused no event");
    drop(late);
    assert_eq!(counts(), (3, 2));
    let done = Next::Completed { fingerprint: NONE, result: b"r" };
    store.compare_and_set("set", Expected::Absent, done).unwrap();
    assert_eq!(counts(), (3, 2), "setting a key to completed caused an event");
}
