//! The outbox: messages that are committed with the completion of their operation, handed out in order, and acknowledged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod backlog;
mod delivery;
mod emission;
#[cfg(feature = "__simulation")]
mod space;
mod survival;

use oncekey::Store;

/// Takes every message of a topic out and acknowledges it. Returns the tokens and the payloads.
pub fn drain(store: &Store, topic: &str) -> Vec<(String, Vec<u8>)> {
    let outbox = store.outbox();
    let mut drained = Vec::new();
    while let Some(deliveries) = outbox.next_many(topic, 7).unwrap() {
        let messages = deliveries.messages().iter();
        drained.extend(messages.map(|message| (message.token(), message.payload().to_vec())));
        deliveries.ack().unwrap();
    }
    drained
}

/// The tokens of [`drain`].
pub fn tokens(store: &Store, topic: &str) -> Vec<String> {
    drain(store, topic).into_iter().map(|(token, _)| token).collect()
}
