//! Kills the example `order` again and again, and checks that no order has a side effect twice or lacks one.

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

const ORDERS: usize = 60;

/// The items of an order. The carrier refuses a piano.
fn items(order: usize) -> Vec<&'static str> {
    match order % 5 {
        0 => vec!["lamp", "desk"],
        1 => vec!["piano"],
        2 => vec!["chair"],
        3 => vec!["desk", "piano", "lamp"],
        _ => vec!["lamp"],
    }
}

/// The side effects of an order, as the world lists them.
fn expected(order: usize) -> Vec<String> {
    let (items, token) = (items(order), format!("orders/order-{order}"));
    let of_each =
        |deed: &str| items.iter().map(|item| format!("{deed} {token}#{deed}:{item}")).collect::<Vec<_>>();
    let mut deeds = of_each("reserve");
    deeds.push(format!("charge {token}#charge"));
    if items.contains(&"piano") {
        deeds.extend([format!("refuse {token}#ship"), format!("refund {token}#refund")]);
        deeds.extend(of_each("put-back"));
        deeds.push(format!("apologize {token}#mail"));
    } else {
        deeds.extend([format!("ship {token}#ship"), format!("mail {token}#mail")]);
    }
    deeds
}

#[test]
fn an_order_that_is_killed_at_any_moment_ends_in_the_right_place() {
    let directory = tempfile::tempdir().unwrap();
    let line = |order: usize| format!("order-{order} 1000 {}\n", items(order).join(" "));
    fs::write(directory.path().join("orders"), (0..ORDERS).map(line).collect::<String>()).unwrap();
    let mut random = Random(seed());
    let wanted = number_from("ONCEKEY_ROUNDS").unwrap_or(30);
    let mut kills = 0;
    loop {
        let mut fulfils =
            Command::new(program("order")).arg(directory.path()).stdout(Stdio::null()).spawn().unwrap();
        if kills < wanted {
            std::thread::sleep(Duration::from_micros(random.next() % 60_000));
            fulfils.kill().unwrap();
            kills += 1;
        }
        if fulfils.wait().unwrap().success() {
            break;
        }
    }
    let world = fs::read_to_string(directory.path().join("world")).unwrap();
    let mut of_order: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in world.lines() {
        let order = line.split(['/', '#']).nth(1).unwrap();
        of_order.entry(order).or_default().push(line);
    }
    // Once each, in this order, and nothing else.
    for order in 0..ORDERS {
        assert_eq!(of_order[&*format!("order-{order}")], expected(order), "order {order}, {kills} kills");
    }
    assert_eq!(of_order.len(), ORDERS);
    println!("{kills} kills, {ORDERS} orders, {} side effects once each", world.lines().count());
}
