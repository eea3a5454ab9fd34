#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use super::*;

/// An event as a subscriber receives it.
#[derive(Default)]
struct Seen {
    level: String,
    message: String,
    fields: Vec<String>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push(name.to_owned()),
        }
    }
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

impl Subscriber for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        assert_eq!(event.metadata().target(), "oncekey");
        let level = event.metadata().level().to_string().to_lowercase();
        let mut seen = Seen { level, ..Seen::default() };
        event.record(&mut seen);
        self.0.lock().unwrap().push(seen);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn the_table_in_the_docs_lists_every_event() {
    let (path, key) = (Path::new("a.once"), Key::new("k").scope("s"));
    let error = Arc::new(io::Error::other("for a test"));
    let collector = Collector::default();
    tracing::subscriber::with_default(collector.clone(), || {
        let held_back = hold_back();
        opened(path, 1, true);
        clock_jumped(path, 1, 2, ClockJump::NotElapsed);
        found_copy_on_write(path);
        replayed(key);
        mismatched(key);
        in_doubt(key, 1);
        found_in_doubt(key, 1);
        step_unvisited(key, b"ship");
        unreadable(path, 1);
        reclaimed(path, 1, 1, 1);
        reclaiming_stopped(path, &Error::Closed);
        poisoned(path, &error);
        replaced(path);
        assert!(collector.0.lock().unwrap().is_empty(), "no event may be emitted while events are held back");
        drop(held_back);
    });
    let listed: Vec<[String; 3]> = include_str!("../events.rs")
        .lines()
        .filter(|line| line.starts_with("//! | `"))
        .map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            [cells[1], cells[2], cells[3]].map(|cell| cell.replace('`', ""))
        })
        .collect();
    let seen = collector.0.lock().unwrap();
    assert_eq!(seen.len(), listed.len());
    for (seen, [message, level, fields]) in seen.iter().zip(&listed) {
        assert!(seen.message.starts_with(message.as_str()), "{} is listed as {message}", seen.message);
        assert_eq!((&seen.level, &seen.fields.join(", ")), (level, fields), "{message}");
    }
}
