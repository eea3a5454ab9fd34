//! What messages survive: a restart, retention, `forget` and reclaiming.

use std::path::Path;
use std::time::Duration;

use oncekey::{ManualClock, Messages, Options, Store};

use crate::{drain, tokens};

const RETENTION: Duration = Duration::from_secs(60);

fn open(path: &Path, clock: &ManualClock) -> Store {
    Options::new().segment_size(64 << 10).retention(RETENTION).manual_clock(clock.clone()).open(path).unwrap()
}

fn emit(store: &Store, key: &str, payload: &[u8]) {
    let mut batch = store.batch();
    batch.record(store.operation(key), b"").unwrap();
    let mut messages = Messages::new();
    messages.emit_bytes("t", payload).unwrap();
    batch.attach(messages).unwrap();
    batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
}

/// Fills and frees segments, so that everything that was there before is moved or dropped.
fn churn(store: &Store, clock: &ManualClock) {
    for turn in 0..4 {
        for number in 0..12 {
            store.operation(format!("fill-{turn}-{number}")).record(&[7; 12_000]).unwrap();
        }
        clock.advance(RETENTION + Duration::from_secs(1));
        store.compact().unwrap();
    }
}

#[test]
fn messages_survive_a_restart_in_order_and_acknowledged_ones_do_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let clock = ManualClock::new(1_700_000_000_000);
    let store = open(&path, &clock);
    for number in 0..300 {
        emit(&store, &format!("k{number}"), &[3; 500]);
    }
    let deliveries = store.outbox().next_many("t", 100).unwrap().unwrap();
    let last = deliveries.messages().last().unwrap().id();
    deliveries.ack().unwrap();
    let before = store.stats();
    store.close().unwrap();
    let store = open(&path, &clock);
    let stats = store.stats();
    assert_eq!(
        (stats.messages, stats.message_bytes, stats.oldest_message_ms),
        (before.messages, before.message_bytes, before.oldest_message_ms)
    );
    let delivery = store.outbox().next("t").unwrap().unwrap();
    assert!(delivery.id() > last && delivery.deliveries() == 1);
    drop(delivery);
    drop(store);
    let store = open(&path, &clock);
    emit(&store, "later", b"");
    let expected: Vec<String> =
        (100..300).map(|number| format!("k{number}~1")).chain(["later~1".into()]).collect();
    assert_eq!(tokens(&store, "t"), expected);
    store.close().unwrap();
    assert_eq!(open(&path, &clock).stats().messages, 0);
}

#[test]
fn messages_outlive_their_operation_and_are_moved_until_they_are_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let clock = ManualClock::new(1_700_000_000_000);
    let store = open(&path, &clock);
    for number in 0..40 {
        emit(&store, &format!("k{number}"), format!("payload {number}").as_bytes());
    }
    store.forget("k30").unwrap();
    let acknowledged = store.outbox().next_many("t", 20).unwrap().unwrap();
    acknowledged.ack().unwrap();
    churn(&store, &clock);
    assert!(store.get("k35").unwrap().is_absent(), "its retention has passed");
    assert_eq!(store.stats().messages, 20);
    // The copies are of the last 20 only, and small: the log must not keep the others.
    assert!(store.stats().record_bytes < 30 * 200, "{:?}", store.stats());
    store.close().unwrap();
    let store = open(&path, &clock);
    churn(&store, &clock);
    let drained = drain(&store, "t");
    let expected: Vec<_> =
        (20..40).map(|number| (format!("k{number}~1"), format!("payload {number}").into_bytes())).collect();
    assert_eq!(drained, expected);
    churn(&store, &clock);
    store.close().unwrap();
    let store = open(&path, &clock);
    assert_eq!((store.stats().messages, tokens(&store, "t")), (0, Vec::new()));
}

#[test]
fn an_unreadable_message_stops_its_topic_until_it_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let clock = ManualClock::new(1_700_000_000_000);
    for is_carried in [false, true] {
        let store = open(&path, &clock);
        let keys = ["one", "two", "three"].map(|name| format!("{name}-{is_carried}"));
        for key in &keys {
            emit(&store, key, b"the payload");
        }
        (0..12).for_each(|number| drop(store.operation(format!("{number}")).record(&[7; 12_000]).unwrap()));
        let mut bytes = std::fs::read(&path).unwrap();
        let wanted = format!("{}\u{1}tthe payload", keys[1]);
        let at = bytes.windows(wanted.len()).rposition(|window| window == wanted.as_bytes()).unwrap();
        bytes[at + wanted.len() - 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        if is_carried {
            churn(&store, &clock);
            store.close().unwrap();
        } else {
            drop(store);
        }
        let store = open(&path, &clock);
        assert_eq!(store.stats().messages, 3);
        let outbox = store.outbox();
        assert_eq!(outbox.skip_unreadable("t").unwrap(), None, "the first one can be read");
        let first = outbox.next_many("t", 3).unwrap().unwrap();
        assert_eq!(first.messages().len(), 1, "those before the unreadable one");
        first.ack().unwrap();
        for _ in 0..2 {
            assert!(matches!(outbox.next("t"), Err(oncekey::Error::Corrupt { .. })));
        }
        assert!(outbox.skip_unreadable("t").unwrap().is_some());
        assert_eq!(tokens(&store, "t"), [format!("{}~1", keys[2])]);
        store.close().unwrap();
        assert_eq!(open(&path, &clock).stats().messages, 0);
    }
}

/// Two keys share a tag of the index with a probability that tests cannot wait for. The kind is compared first even so.
#[test]
fn a_message_never_answers_for_its_key() {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = Options::new().retention(RETENTION).manual_clock(clock.clone()).open_in_memory().unwrap();
    emit(&store, "k", b"payload");
    clock.advance(RETENTION);
    assert!(store.get("k").unwrap().is_absent());
    assert_eq!(store.unfinished().unwrap().count(), 0);
    assert!(!store.forget("k").unwrap());
    assert_eq!(tokens(&store, "t"), ["k~1"]);
}
