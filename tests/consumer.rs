//! Kills the example `consumer` again and again, and checks that it ships every order exactly once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

#[path = "common/example.rs"]
mod example;
#[path = "common/random.rs"]
#[allow(dead_code, unreachable_pub, reason = "uses a part of it")]
mod random;

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use example::program;
use random::{Random, number_from, seed};

/// The number of messages. Every hundredth one is there twice.
const MESSAGES: usize = 20_000;

#[test]
fn a_consumer_that_is_killed_at_any_moment_ships_every_order_once() {
    let directory = tempfile::tempdir().unwrap();
    let line = |number: usize| {
        let id = if number % 100 == 99 { number - 1 } else { number };
        format!("order-{id} ship it\n")
    };
    fs::write(directory.path().join("messages"), (0..MESSAGES).map(line).collect::<String>()).unwrap();
    let mut random = Random(seed());
    let wanted = number_from("ONCEKEY_ROUNDS").unwrap_or(30);
    let mut kills = 0;
    loop {
        let mut consumer =
            Command::new(program("consumer")).arg(directory.path()).stdout(Stdio::null()).spawn().unwrap();
        if kills < wanted {
            std::thread::sleep(Duration::from_micros(random.next() % 40_000));
            // The queue loses what was committed, now and then, and delivers it again.
            if random.percent(20) {
                let _ = fs::remove_file(directory.path().join("offset"));
            }
            consumer.kill().unwrap();
            kills += 1;
        }
        if consumer.wait().unwrap().success() {
            break;
        }
    }
    let shipped = fs::read_to_string(directory.path().join("shipped")).unwrap();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    shipped.lines().for_each(|token| *counts.entry(token).or_default() += 1);
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "shipped more than once: {twice:?}");
    let lost = (0..MESSAGES).filter(|number| number % 100 != 99);
    let lost: Vec<_> =
        lost.filter(|number| !counts.contains_key(&*format!("orders/order-{number}"))).collect();
    assert!(lost.is_empty(), "never shipped: {lost:?}");
    assert_eq!(counts.len(), MESSAGES - MESSAGES / 100);
    println!("{kills} kills, {} orders shipped once", counts.len());
}
