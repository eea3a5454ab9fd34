//! How messages are handed out, given back and acknowledged.

use std::time::Duration;

use oncekey::{Error, ManualClock, Messages, Options, Store};

use crate::tokens;

fn emit(store: &Store, key: &str, topics: &[&str]) {
    let mut batch = store.batch();
    batch.record(store.operation(key), b"").unwrap();
    let mut messages = Messages::new();
    topics.iter().for_each(|topic| messages.emit_bytes(topic, key.as_bytes()).unwrap());
    batch.attach(messages).unwrap();
    batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
}

#[test]
fn a_topic_has_one_delivery_out_and_others_go_on() {
    let store = Store::in_memory().unwrap();
    emit(&store, "a", &["x", "y", "x"]);
    let outbox = store.outbox();
    let first = outbox.next("x").unwrap().unwrap();
    assert!(outbox.next("x").unwrap().is_none());
    let other = outbox.next("y").unwrap().unwrap();
    assert!(first.id() < other.id());
    other.ack().unwrap();
    let first_id = first.id();
    first.ack().unwrap();
    let second = outbox.next("x").unwrap().unwrap();
    assert!(second.id() > first_id);
    assert_eq!((second.token().as_str(), second.deliveries(), second.key().name()), ("a~3", 1, &b"a"[..]));
    second.ack().unwrap();
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_dropped_delivery_comes_again_after_a_pause_and_holds_its_topic_up() {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = Options::new().manual_clock(clock.clone()).open_in_memory().unwrap();
    emit(&store, "a", &["t", "t"]);
    let outbox = store.outbox();
    let before = store.stats().syncs;
    for (turn, pause_ms) in [(1, 100), (2, 200), (3, 400)] {
        let delivery = outbox.next("t").unwrap().unwrap();
        assert_eq!((delivery.deliveries(), delivery.number()), (turn, 1));
        drop(delivery);
        clock.advance(Duration::from_millis(pause_ms - 1));
        assert!(outbox.next("t").unwrap().is_none(), "turn {turn}");
        clock.advance(Duration::from_millis(1));
    }
    assert_eq!(store.stats().syncs, before, "a drop writes nothing");
    assert_eq!(tokens(&store, "t"), ["a~1", "a~2"]);
}

#[test]
fn many_messages_are_acknowledged_with_one_write() {
    let store = Store::in_memory().unwrap();
    for number in 0..40 {
        emit(&store, &format!("k{number}"), &["t"; 25]);
    }
    let outbox = store.outbox();
    let deliveries = outbox.next_many("t", 600).unwrap().unwrap();
    assert_eq!(deliveries.messages().len(), 600);
    assert!(deliveries.messages().is_sorted_by_key(oncekey::Message::id));
    deliveries.ack().unwrap();
    assert_eq!(store.stats().messages, 400);
    let small = Options::new().segment_size(64 << 10).open_in_memory().unwrap();
    for number in 0..40 {
        emit(&small, &format!("k{number}"), &["t"; 25]);
    }
    let deliveries = small.outbox().next_many("t", usize::MAX).unwrap().unwrap();
    assert_eq!(deliveries.messages().len(), (16_384 - 56) / 128, "what fits one frame");
    deliveries.ack().unwrap();
}

#[test]
fn figures_count_the_messages() {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = Options::new().manual_clock(clock.clone()).open_in_memory().unwrap();
    assert_eq!((store.stats().messages, store.stats().oldest_message_ms), (0, None));
    emit(&store, "a", &["t"]);
    clock.advance(Duration::from_secs(1));
    emit(&store, "b", &["t"]);
    let stats = store.stats();
    assert_eq!((stats.messages, stats.message_bytes), (2, 2 * 88));
    assert_eq!(stats.oldest_message_ms, Some(1_700_000_000_000));
    let delivery = store.outbox().next("t").unwrap().unwrap();
    assert_eq!(delivery.emitted_at_ms(), 1_700_000_000_000);
    delivery.ack().unwrap();
    assert_eq!(store.stats().oldest_message_ms, Some(1_700_000_000_992), "rounded down to 16 ms");
}

#[test]
fn a_closed_store_hands_out_and_acknowledges_nothing() {
    let store = Store::in_memory().unwrap();
    emit(&store, "a", &["t"]);
    let outbox = store.outbox();
    let delivery = outbox.next("t").unwrap().unwrap();
    store.close().unwrap();
    assert!(matches!(delivery.ack(), Err(Error::Closed)));
    assert!(matches!(outbox.next("t"), Err(Error::Closed)));
}

#[test]
fn a_delivery_prints_no_payload() {
    let store = Store::in_memory().unwrap();
    emit(&store, "a", &["t"]);
    let delivery = store.outbox().next("t").unwrap().unwrap();
    let printed = format!("{delivery:?} {:?}", store.outbox());
    assert!(printed.contains("payload: <1 bytes>"), "{printed}");
}

#[test]
fn a_message_decodes_only_as_what_it_was() {
    let store = Store::in_memory().unwrap();
    store
        .operation("a")
        .emits(4_096)
        .run(|attempt| {
            attempt.emit("t", &("x".to_owned(), 7_u32))?;
            Ok::<_, Error>(0_u8)
        })
        .unwrap();
    let delivery = store.outbox().next("t").unwrap().unwrap();
    assert_eq!(delivery.decode::<(String, u32)>().unwrap(), ("x".to_owned(), 7));
    assert!(matches!(delivery.decode::<(String, u64)>(), Err(Error::Decode { .. })));
}
