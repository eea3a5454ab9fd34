//! Measures a backlog of a million messages: memory, the rate of handing out and acknowledging, and opening the store.
//!
//! `cargo test --all-features --test outbox backlog -- --ignored --nocapture` prints the figures. `ONCEKEY_MESSAGES` changes
//! the number of messages.

use std::path::Path;
use std::time::{Duration, Instant};

use oncekey::{Durability, Messages, Options, Store};

fn open(path: &Path) -> Store {
    Options::new().durability(Durability::Buffered).open(path).unwrap()
}

/// Records `count` keys without a message, or half as many with one message each, so that both stores have as many records.
fn fill(path: &Path, count: usize, emits: bool) {
    let store = open(path);
    let mut number = 0;
    while number < count {
        let mut batch = store.batch();
        for _ in 0..1_000 {
            batch.record(store.operation(format!("key-{number}")), b"0123456789abcdef").unwrap();
            if emits {
                let mut messages = Messages::new();
                messages.emit_bytes("t", b"0123456789abcdef").unwrap();
                batch.attach(messages).unwrap();
            }
            number += 1;
        }
        batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
    }
    store.close().unwrap();
}

/// The anonymous memory of this process, in bytes.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

/// The time that this thread has spent on a processor. On a busy machine, the time on a clock says little.
fn on_processor() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(statistics.split_whitespace().next().unwrap().parse().unwrap())
}

/// Takes out and acknowledges `count` messages, `together` at a time. Returns how many a second of processor time.
fn publish(store: &Store, count: usize, together: usize) -> f64 {
    let outbox = store.outbox();
    let start = on_processor();
    let mut published = 0;
    while published < count {
        let deliveries = outbox.next_many("t", together).unwrap().unwrap();
        published += deliveries.messages().len();
        deliveries.ack().unwrap();
    }
    published as f64 / (on_processor() - start).as_secs_f64()
}

#[test]
#[ignore = "measures"]
#[expect(clippy::cast_precision_loss, reason = "figures")]
fn backlog() {
    let count: usize = std::env::var("ONCEKEY_MESSAGES").map_or(1_000_000, |count| count.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let [keys, messages] = ["keys", "messages"].map(|name| directory.path().join(name));
    // A message and its operation are two records: the same number of keys, and as many entries in the index.
    fill(&keys, 2 * count, false);
    fill(&messages, count, true);
    let mut ratios = Vec::new();
    for round in 0..5 {
        let timed = |path: &Path| {
            let (before, start) = (anonymous_bytes(), Instant::now());
            let store = open(path);
            let took = start.elapsed();
            let used = anonymous_bytes().saturating_sub(before);
            assert_eq!(store.stats().keys, 2 * count);
            drop(store);
            (took, used as f64 / count as f64)
        };
        let ((keys_took, keys_used), (took, used)) = (timed(&keys), timed(&messages));
        let ratio = took.as_secs_f64() / keys_took.as_secs_f64();
        println!(
            "round {round}: opening {} keys {keys_took:.1?}, {count} messages {took:.1?}, ratio {ratio:.2}; \
             bytes a message: {:.1} more than two keys ({used:.1} - {keys_used:.1})",
            2 * count,
            used - keys_used,
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("opening: median ratio {:.2}", ratios[ratios.len() / 2]);
    let store = open(&messages);
    for round in 0..5 {
        let one_by_one = publish(&store, count / 200, 1);
        let together = publish(&store, count / 10, 500);
        println!(
            "round {round}: one by one {one_by_one:.0} messages a second of processor time, 500 at a time {together:.0}, ratio {:.1}",
            together / one_by_one
        );
    }
    assert!(store.stats().messages > 0);
}
