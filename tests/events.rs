//! What is told of damage, and how often.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fmt::Debug;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::{NONE, Place, SEGMENT, START_MS, clocked, seconds};
use oncekey::{Durability, ManualClock, Store};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn of(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|text| text.starts_with(what)).count()
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

impl Subscriber for Told {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        self.0.lock().unwrap().push(message);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn flip(place: &Place, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&place.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn record_of(place: &Place, key: &str) -> u64 {
    let bytes = place.bytes();
    bytes.windows(key.len()).rposition(|window| window == key.as_bytes()).unwrap() as u64 - 80
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
    let _guard = tracing::subscriber::set_default(told.clone());
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
    let _guard = tracing::subscriber::set_default(told.clone());
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
