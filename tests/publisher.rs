//! Kills the example `publisher` again and again, and checks its journal.

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

const ORDERS: usize = 2_000;

#[test]
fn a_publisher_that_is_killed_at_any_moment_publishes_every_message_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(seed());
    let wanted = number_from("ONCEKEY_ROUNDS").unwrap_or(30);
    let mut kills = 0;
    loop {
        let mut publisher = Command::new(program("publisher"))
            .arg(directory.path())
            .arg(ORDERS.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        if kills < wanted {
            std::thread::sleep(Duration::from_micros(random.next() % 300_000));
            publisher.kill().unwrap();
            kills += 1;
        }
        if publisher.wait().unwrap().success() {
            break;
        }
    }
    let journal = fs::read_to_string(directory.path().join("journal")).unwrap();
    // By token: the line without its id, which a completion that is made again would change.
    let mut published: HashMap<&str, (&str, &str)> = HashMap::new();
    let mut last_ids: HashMap<&str, u64> = HashMap::new();
    let mut repeated = 0;
    for line in journal.lines() {
        let parts: Vec<&str> = line.trim_end().split('\t').collect();
        let [topic, id, token, payload] = parts[..] else { panic!("{line}") };
        if let Some(before) = published.insert(token, (topic, payload)) {
            assert_eq!(before, (topic, payload), "{token} is there twice, with other contents");
            repeated += 1;
            continue;
        }
        let id = id.parse().unwrap();
        let last = last_ids.insert(topic, id).unwrap_or(0);
        assert!(last < id, "{line}: out of order, after id {last}");
    }
    for order in 0..ORDERS {
        let token = |number: u32| format!("charge/order-{order}~{number}");
        let of =
            |number| published.remove(&*token(number)).map(|(topic, payload)| (topic, payload.to_owned()));
        let [charged, mail] = [1, 2].map(of);
        if order % 10 == 9 {
            assert_eq!((charged, mail), (None, None), "order {order} was not completed");
        } else {
            assert_eq!(charged, Some(("charged", format!("{} cents", 100 * order))), "order {order}");
            assert_eq!(mail, Some(("mail", format!("receipt of order {order}"))), "order {order}");
        }
    }
    assert!(published.is_empty(), "{published:?}");
    println!("{kills} kills, {repeated} messages published more than once");
}
