//! Checks completions with messages, publishers, acknowledgements and reclaiming against each other: the messages of a topic
//! are handed out in the order of their ids, each is acknowledged once, and none that was acknowledged comes back.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shuttle::thread;

use super::{WHOLE_STORE, explore, must_find_planted};
use crate::planted::Bug;
use crate::storage::simulated::SimulatedDisk;
use crate::{Durability, Expected, Fingerprint, ManualClock, Messages, Next, Options, Store, Version};

fn options(clock: &ManualClock) -> Options {
    Options::new()
        .segment_size(64 << 10)
        .max_result(1 << 10)
        .durability(Durability::Buffered)
        .manual_clock(clock.clone())
}

/// Completes the operation of a key with two messages.
fn complete(store: &Store, key: &str) {
    let mut messages = Messages::new();
    for number in [b"1", b"2"] {
        messages.emit_bytes("t", number).unwrap();
    }
    let next = Next::Completed { fingerprint: Fingerprint::NONE, result: b"" };
    store.compare_and_set_with(key, Expected::Absent, next, &messages).unwrap();
}

/// Takes messages out, `turns` times at most. Drops each third delivery, and acknowledges the others.
fn publish(store: &Store, clock: &ManualClock, published: &Mutex<Vec<(Version, String)>>, turns: usize) {
    let outbox = store.outbox();
    for turn in 1..=turns {
        let Some(deliveries) = outbox.next_many("t", turn).unwrap() else {
            thread::yield_now();
            continue;
        };
        // No other thread publishes the topic until the delivery ends.
        let messages = deliveries.messages().iter();
        published.lock().extend(messages.map(|message| (message.id(), message.token())));
        thread::yield_now();
        if turn % 3 == 0 {
            drop(deliveries);
            clock.advance(Duration::from_secs(60));
        } else {
            deliveries.ack().unwrap();
        }
    }
}

/// Two threads complete operations, and two publish. At the end everything is published, in order.
fn commits_and_publishers() {
    let clock = ManualClock::new(1_700_000_000_000);
    let store = options(&clock).open_in_memory().unwrap();
    let published = Arc::new(Mutex::new(Vec::new()));
    let completing = [["a", "b"], ["c", "d"]].map(|keys| {
        let store = store.clone();
        thread::spawn(move || keys.iter().for_each(|key| complete(&store, key)))
    });
    let publishing = [3, 4].map(|turns| {
        let (store, clock, published) = (store.clone(), clock.clone(), Arc::clone(&published));
        thread::spawn(move || publish(&store, &clock, &published, turns))
    });
    completing.into_iter().chain(publishing).for_each(|thread| thread.join().unwrap());
    clock.advance(Duration::from_secs(60));
    while store.stats().messages > 0 {
        publish(&store, &clock, &published, 2);
    }
    let published = published.lock();
    let mut distinct: Vec<(Version, String)> = Vec::new();
    for message in &*published {
        // What was dropped comes again before anything that follows it.
        match distinct.iter().position(|seen| seen == message) {
            None => distinct.push(message.clone()),
            Some(_) => assert!(distinct.contains(message)),
        }
    }
    assert!(distinct.is_sorted_by_key(|(id, _)| *id), "out of order: {published:?}");
    let mut tokens: Vec<&str> = distinct.iter().map(|(_, token)| token.as_str()).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, ["a~1", "a~2", "b~1", "b~2", "c~1", "c~2", "d~1", "d~2"]);
    assert_eq!(store.stats().reserved_bytes, 0, "no space is left reserved");
    store.close().unwrap();
}

/// A thread acknowledges messages while another one moves them. None comes back when the store is opened again.
fn acknowledgements_and_reclaiming() {
    let clock = ManualClock::new(1_700_000_000_000);
    let disk = SimulatedDisk::new();
    let store = options(&clock).open_simulated(&disk).unwrap();
    ["a", "b", "c"].iter().for_each(|key| complete(&store, key));
    for key in ["a", "b"] {
        store.forget(key).unwrap();
    }
    let compacting = {
        let store = store.clone();
        thread::spawn(move || store.compact().map(drop).unwrap())
    };
    let acknowledging = {
        let store = store.clone();
        thread::spawn(move || {
            for count in [1, 2] {
                store.outbox().next_many("t", count).unwrap().unwrap().ack().unwrap();
            }
        })
    };
    compacting.join().unwrap();
    acknowledging.join().unwrap();
    drop(store);
    let store = options(&clock).open_simulated(&disk).unwrap();
    let rest = store.outbox().next_many("t", 9).unwrap().unwrap();
    let tokens: Vec<String> = rest.messages().iter().map(crate::Message::token).collect();
    assert_eq!(tokens, ["b~2", "c~1", "c~2"], "after a restart");
    rest.ack().unwrap();
}

#[test]
fn shuttle_outbox() {
    explore("completions and publishers", WHOLE_STORE, commits_and_publishers);
    explore("acknowledgements and reclaiming", WHOLE_STORE, acknowledgements_and_reclaiming);
}

#[test]
fn shuttle_finds_a_message_that_overtakes() {
    // The outbox may be asked for the message before it is committed.
    let expected = ["out of order", "the index has no entry for a message"];
    must_find_planted(Bug::MessageOvertakes, WHOLE_STORE, &expected, commits_and_publishers);
}
