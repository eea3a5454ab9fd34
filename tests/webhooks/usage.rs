//! Checks which arguments and files the program refuses.

use std::fs;
use std::process::Command;

use oncekey::Store;

use crate::counts::text;
use crate::deliveries::delivery_line;
use crate::run::{Place, program};

#[test]
fn a_file_that_is_not_a_ledger_is_refused_unchanged() {
    for foreign in
        ["a note", "a note\n", "{\"entry\":2,\"delivery\":\"a\",\"event\":\"push\"}\n", "{\"entry\":2,"]
    {
        let place = Place::new();
        place.write_deliveries(&delivery_line("a", "push", "{}"));
        fs::write(place.ledger(), foreign).unwrap();

        let output = place.output(&[]);

        assert_eq!(output.status.code(), Some(1), "{foreign:?}: {output:?}");
        assert!(text(&output.stderr).contains("entry"), "{output:?}");
        assert_eq!(text(&place.ledger_bytes()), foreign);
    }
}

#[test]
fn the_program_exits_with_1_if_it_cannot_use_a_file() {
    let place = Place::new();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "without deliveries: {output:?}");
    assert!(!place.store().exists(), "a store was created without deliveries");

    place.write_deliveries(&delivery_line("a", "push", "{}"));
    let store = Store::open(place.store()).unwrap();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "with the store in use: {output:?}");
    assert!(!place.ledger().exists(), "the ledger was created without the store");
    store.close().unwrap();

    fs::write(place.answers(), "something else").unwrap();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "with answers that would overwrite a file: {output:?}");
    assert_eq!(fs::read(place.answers()).unwrap(), b"something else");
}

#[test]
fn bad_arguments_print_the_usage_and_exit_with_2() {
    let bad: [&[&str]; 9] = [
        &[],
        &["file"],
        &["file", "--store", "s"],
        &["--store", "s", "--ledger", "l"],
        &["file", "--store", "s", "--ledger"],
        &["file", "file", "--store", "s", "--ledger", "l"],
        &["file", "--store", "s", "--ledger", "l", "--threads", "0"],
        &["file", "--store", "s", "--ledger", "l", "--threads", "many"],
        &["file", "--store", "s", "--ledger", "l", "--no-such-option"],
    ];
    let directory = tempfile::tempdir().unwrap();
    for arguments in bad {
        let output = Command::new(program()).args(arguments).current_dir(&directory).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(
            text(&output.stderr).contains("usage: webhooks FILE --store PATH"),
            "{arguments:?}: {output:?}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "a file was created");
}
