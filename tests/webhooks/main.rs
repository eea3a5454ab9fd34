//! Checks that the example `webhooks` processes each delivery exactly once, even if it is killed. The tests run it as its
//! users do: as a program, on files.
//!
//! `cargo test` builds the examples too, but `cargo test --test webhooks` does not. With the latter, these tests run the
//! program that was built last, for example by `cargo build --example webhooks`.
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
fn redeliveries_get_the_result_of_the_first_delivery() {
    let deliveries = Deliveries::generate(1, 100);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);

    let counts = place.run(&["--threads", "3"]);

    assert_eq!(counts, deliveries.counts_of_a_first_run());
    place.assert_ledger_holds_each_once(&deliveries);
    place.assert_answers_agree_with_the_ledger(&deliveries);
}

#[test]
fn a_second_run_only_replays() {
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
        // The lines that reuse an id are refused, and not the deliveries to which those ids belong.
        place.assert_answers_agree_with_the_ledger(&deliveries);
    }
}

/// The recorded deliveries are outside the repository. Without them the test is skipped.
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
