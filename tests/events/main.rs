//! Checks which events the store emits, that it emits each as often as documented, and that a subscriber may use the store
//! in every event.
#![cfg(feature = "tracing")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod counts;
#[cfg(feature = "__simulation")]
mod poisoning;
mod subscribers;

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use common::subscriber::OnEvent;
use common::{NONE, seconds};
use oncekey::{Durability, Store};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};

/// The messages of all events, in order.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl Messages {
    /// The number of messages that begin with `prefix`.
    fn count(&self, prefix: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|text| text.starts_with(prefix)).count()
    }

    /// Stores the message of an event and returns it.
    fn push(&self, event: &Event<'_>) -> String {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        self.0.lock().unwrap().push(message.clone());
        message
    }

    fn subscriber(&self) -> impl Subscriber + use<> {
        let messages = self.clone();
        OnEvent(move |event: &Event<'_>| {
            messages.push(event);
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

/// Writes buffered records with this retention in seconds.
fn write_records(store: &Store, name: &str, count: u32, retention: u64) {
    for n in 0..count {
        let key = format!("{name}/{n}");
        let operation = store.operation(&key).retain(seconds(retention)).durability(Durability::Buffered);
        operation.record(&[1; 400]).unwrap();
    }
}

/// Calls `cause` with a store, under a subscriber that calls `react` with each message and the same store. Both run in a
/// thread that must not hang. Returns the messages.
fn with_subscriber(
    store: Store,
    react: impl Fn(&str, &Store) + Send + Sync + 'static,
    cause: impl FnOnce(&Store) + Send + 'static,
) -> Messages {
    let messages = Messages::default();
    let (pushed_to, store_for_subscriber) = (messages.clone(), store.clone());
    let subscriber = OnEvent(move |event: &Event<'_>| react(&pushed_to.push(event), &store_for_subscriber));
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _guard = tracing::subscriber::set_default(subscriber);
        cause(&store);
        sender.send(()).unwrap();
    });
    // The timeout only turns a deadlock into a failure.
    match receiver.recv_timeout(seconds(60)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("the call and its subscriber wait for each other")
        }
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
    messages
}

/// Makes every call that a subscriber may make: on the key of the event, on another key, and on the whole store.
fn call_everything(_: &str, store: &Store) {
    thread_local! {
        static EVENTS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    // These calls cause events too, so without a limit a key that stays in doubt would cause events for ever.
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
