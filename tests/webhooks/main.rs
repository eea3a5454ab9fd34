//! Proves that the example `webhooks` processes each delivery exactly once, also when it is killed. It runs as its
//! users run it: as a program, on files.
//!
//! `cargo test` builds the examples too. `cargo test --test webhooks` does not: then these tests run the program that
//! `cargo build --example webhooks` built last.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot be set up has failed"
)]

#[path = "../common/mod.rs"]
mod common;
mod counts;
mod crashes;
mod deliveries;
mod input;
mod run;
mod usage;

use std::path::Path;

use counts::Counts;
use deliveries::Deliveries;
use run::{Place, repeated};

#[test]
fn a_delivery_is_processed_once_and_its_redeliveries_get_the_first_result() {
    let deliveries = Deliveries::generate(1, 100);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);

    let counts = place.run(&["--threads", "3"]);

    assert_eq!(counts, deliveries.counts_of_a_first_run());
    place.assert_ledger_holds_each_once(&deliveries);
    place.assert_answers_agree_with_the_ledger(&deliveries);
}

#[test]
fn a_second_run_processes_nothing_and_gives_the_same_answers() {
    let deliveries = Deliveries::generate(2, 100);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    place.run(&[]);
    let ledger = place.ledger_bytes();

    let counts = place.run(&[]);

    assert_eq!(
        counts,
        Counts { performed: 0, replayed: deliveries.lines() - 7, ..deliveries.counts_of_a_first_run() }
    );
    assert_eq!(place.ledger_bytes(), ledger, "the second run changed the ledger");
    place.assert_answers_agree_with_the_ledger(&deliveries);
}

#[test]
fn the_counts_are_the_same_for_any_number_of_threads() {
    let deliveries = Deliveries::generate(3, 100);
    for threads in ["1", "4", "13"] {
        let place = Place::new();
        place.write_deliveries(&deliveries.text);
        assert_eq!(
            place.run(&["--threads", threads]),
            deliveries.counts_of_a_first_run(),
            "{threads} threads"
        );
        place.assert_ledger_holds_each_once(&deliveries);
        // The lines that reuse an id are refused, and not the deliveries whose ids they carry.
        place.assert_answers_agree_with_the_ledger(&deliveries);
    }
}

/// The recorded deliveries lie outside the repository. Without them there is nothing to check.
#[test]
fn recorded_deliveries_give_the_known_counts() {
    let deliveries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/deliveries.jsonl");
    if !deliveries.exists() {
        println!("skipped: {} does not exist", deliveries.display());
        return;
    }
    let place = Place::new();
    let run = || Counts::read(&place.output_of(&deliveries, &[]));
    let counts = Counts { lines: 851, performed: 243, replayed: 601, mismatched: 7, ..Counts::default() };
    assert_eq!(run(), counts);
    let entries = place.whole_entries();
    assert_eq!(repeated(&entries), [""; 0]);
    assert_eq!(entries.len(), 243);
    assert_eq!(run(), Counts { performed: 0, replayed: 844, ..counts });
    assert_eq!(place.whole_entries().len(), 243);
}
