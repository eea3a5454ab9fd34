//! Runs the example `care` as an operator does: beside a store that is open, and on one that is closed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;
#[path = "common/example.rs"]
mod example;

use std::process::{Command, Output};

use common::{NONE, Place, abandon};
use example::program;
use oncekey::Key;
use serde_json::Value;

fn care(arguments: &[&str]) -> Output {
    Command::new(program("care")).args(arguments).output().unwrap()
}

/// Runs a verb that must succeed, and returns the lines of JSON that it prints.
fn json(arguments: &[&str]) -> Vec<Value> {
    let output = care(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_operator_lists_resolves_forgets_and_compacts() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let store = place.open();
    store.record(Key::new("order-1").scope("acme"), NONE, b"receipt").unwrap();
    store.record(Key::new(&[0xFF, b'\n']).scope("other"), NONE, b"").unwrap();
    abandon(&store, "lost");
    for number in 0..100 {
        drop(store.begin(&format!("doubt {number}"), NONE).unwrap());
    }

    let listed = json(&["list", path]);
    assert_eq!(listed.len(), 103);
    assert_eq!(listed[0]["key"], "order-1");
    assert_eq!((&listed[0]["status"], &listed[0]["result_bytes"]), (&"completed".into(), &7.into()));
    assert_eq!(listed[1]["key"], r"\xff\n");
    assert_eq!(json(&["list", path, "--scope", "acme"]).len(), 1);
    assert_eq!(json(&["list", path, "--status", "begun"]).len(), 101);
    assert_eq!(json(&["list", path, "--unfinished"])[0]["status"], "begun");
    let table = String::from_utf8(care(&["list", path, "--scope", "acme"]).stdout).unwrap();
    assert!(table.starts_with("scope  key      status"), "{table}");

    let locked = care(&["stats", path]);
    assert_eq!(locked.status.code(), Some(1));
    assert!(String::from_utf8(locked.stderr).unwrap().contains("already open"));
    store.close().unwrap();

    assert_eq!(json(&["list", path, "--unfinished"])[0]["status"], "in doubt");
    assert_eq!(json(&["resolve", path, "lost", "--completed", "receipt"])[0]["status"], "completed");
    assert_eq!(json(&["resolve", path, "doubt 0", "--absent"])[0]["status"], "absent");
    assert_eq!(json(&["resolve", path, "doubt 1", "--without-result"])[0]["status"], "completed");
    let again = care(&["resolve", path, "lost", "--absent"]);
    assert!(!again.status.success(), "it is no longer in doubt");
    assert_eq!(json(&["forget", path, "--scope", "acme"])[0]["forgotten"], 1);
    assert!(json(&["compact", path])[0]["moved_bytes"].is_u64());
    let stats = &json(&["stats", path])[0];
    assert_eq!((&stats["keys"], &stats["in_doubt"]), (&101.into(), &98.into()));
    let text = String::from_utf8(care(&["stats", path, "--openmetrics"]).stdout).unwrap();
    assert!(text.ends_with("# EOF\n"));

    let store = place.open();
    assert_eq!(store.get("lost").unwrap().result(), Some(&b"receipt"[..]));
}

#[test]
fn an_operator_checks_backs_up_and_repairs() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let store = place.open();
    store.record("order-1", NONE, b"receipt").unwrap();
    store.close().unwrap();
    let sound = json(&["verify", path]);
    assert_eq!((sound.len(), &sound[0]["opens"], &sound[0]["keys"]), (1, &true.into(), &1.into()));
    let copy = place.path.with_extension("copy");
    assert!(json(&["backup", path, copy.to_str().unwrap()])[0]["bytes"].as_u64().unwrap() > 4_096);
    let refused = care(&["stats", copy.to_str().unwrap()]);
    assert!(!refused.status.success(), "a copy says that it is one");

    let mut bytes = std::fs::read(path).unwrap();
    let record = bytes.windows(7).position(|window| window == b"order-1").unwrap();
    bytes[record + 8] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let damaged = care(&["verify", path, "--json"]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    assert!(String::from_utf8(damaged.stdout).unwrap().lines().count() > 1, "the fault is listed");
    let saved = place.path.with_extension("saved");
    assert_eq!(json(&["repair", path, saved.to_str().unwrap()])[0]["is_copy"], true);
}

#[test]
fn a_wrong_command_is_refused_with_its_usage() {
    for (arguments, expected) in [
        (&[][..], "usage: care VERB"),
        (&["list", "x", "--unknown"], "unknown option --unknown"),
        (&["resolve", "x", "--scope"], "--scope needs a value"),
    ] {
        let output = care(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(expected), "{arguments:?}");
    }
    let missing = care(&["list", "/no/such/file.once"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!care(&["resolve", "/no/such/file.once", "k"]).status.success());
}
