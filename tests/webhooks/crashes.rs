//! Checks the run after one that was killed or failed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::random::Random;
use crate::counts::{Counts, text};
use crate::deliveries::Deliveries;
use crate::run::{Place, program, repeated};

/// The deliveries come through a pipe that stays open. So the program cannot end by itself, and every kill finds it running,
/// even on a fast machine.
#[cfg(unix)]
#[test]
fn the_ledger_holds_each_delivery_once_after_25_kills() {
    const STORES: u64 = 5;
    const KILLS: usize = 5;
    let (mut reconciled, mut torn) = (0, 0);
    for seed in 0..STORES {
        let deliveries = Deliveries::generate(100 + seed, 80);
        let mut random = Random(seed);
        let place = Place::new();
        place.write_deliveries(&deliveries.text);
        for kill in 0..KILLS {
            let entries = place.whole_entries().len();
            let more = random.below(17).min(deliveries.ids.len() - entries);
            let threads = ["1", "2", "4"][random.below(3)];
            kill_during_run(
                &place,
                &deliveries,
                threads,
                entries + more,
                std::time::Duration::from_micros(random.below(1_500) as u64),
            );
            assert_eq!(repeated(&place.whole_entries()), [""; 0], "seed {seed}, kill {kill}");
            torn += usize::from(!place.ledger_bytes().ends_with(b"\n"));
        }

        let entries = place.whole_entries().len();
        let counts = place.run(&[]);

        place.assert_ledger_holds_each_once(&deliveries);
        place.assert_answers_agree_with_the_ledger(&deliveries);
        let first = deliveries.counts_of_a_first_run();
        let performed = (deliveries.ids.len() - entries) as u64;
        assert_eq!(
            counts,
            Counts {
                performed,
                replayed: first.lines - performed - first.mismatched,
                reconciled: counts.reconciled,
                ..first
            },
            "seed {seed}"
        );
        reconciled += counts.reconciled;
    }
    println!("deliveries reconciled by the last runs: {reconciled}; ledgers torn by a kill: {torn}");
}

#[test]
fn a_doubt_with_a_ledger_line_is_not_processed_again() {
    let deliveries = Deliveries::generate(4, 20);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    place.run(&[]);
    let (ledger, entries) = (place.ledger_bytes(), place.whole_entries());
    // The state after a crash between the second step (the line in the ledger) and the third (the result in the store).
    place.put_in_doubt(&entries[7].delivery);
    place.put_in_doubt(&entries[19].delivery);

    let counts = place.run(&[]);

    assert_eq!((counts.performed, counts.replayed, counts.reconciled), (0, deliveries.lines() - 7, 2));
    assert_eq!(place.ledger_bytes(), ledger, "the second run changed the ledger");
    place.assert_answers_agree_with_the_ledger(&deliveries);
    assert_eq!(place.run(&[]).reconciled, 0, "the delivery is still in doubt");
}

#[test]
fn a_doubt_with_a_torn_or_missing_ledger_line_is_processed() {
    let deliveries = Deliveries::generate(5, 20);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    place.run(&[]);
    let (ledger, last) = (place.ledger_bytes(), place.whole_entries().pop().unwrap());
    let line_bytes = ledger.split_inclusive(|byte| *byte == b'\n').next_back().unwrap().len();

    for missing_bytes in [1, 2, line_bytes / 2, line_bytes - 1, line_bytes] {
        // The state after a crash between the first step (the begin in the store) and the end of the second.
        place.put_in_doubt(&last.delivery);
        fs::write(place.ledger(), &ledger[..ledger.len() - missing_bytes]).unwrap();

        let counts = place.run(&[]);

        assert_eq!(
            (counts.performed, counts.replayed),
            (1, deliveries.lines() - 8),
            "{missing_bytes} missing"
        );
        assert_eq!(place.ledger_bytes(), ledger, "{missing_bytes} bytes missing: the ledger differs");
    }
}

/// A limit on the size of files cuts the last line of the ledger short.
#[cfg(target_os = "linux")]
#[test]
fn the_next_run_continues_after_a_failed_write_to_the_ledger() {
    let deliveries = Deliveries::generate(6, 40);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    // The limit applies to every file, so a long first entry makes the ledger larger than the store.
    let long = format!("{{\"entry\":1,\"delivery\":\"long\",\"event\":\"{}\"}}\n", "e".repeat(6 << 20));
    fs::write(place.ledger(), &long).unwrap();
    let limit_blocks = long.len() / 512 + 2;

    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {limit_blocks}; exec \"$@\"")).arg("sh");
    limited.arg(program()).args(place.arguments(&place.deliveries())).args(["--threads", "1"]);
    let output = limited.output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("ledger"), "{output:?}");
    assert!(output.stdout.is_empty(), "a run that failed printed counts: {output:?}");
    let ledger = place.ledger_bytes();
    assert_eq!(ledger.len(), limit_blocks * 512);
    assert!(!ledger.ends_with(b"\n"), "the last line is not torn");

    let entries = place.whole_entries().len() - 1;
    let counts = place.run(&["--threads", "1"]);

    assert_eq!(counts.performed, (deliveries.ids.len() - entries) as u64);
    assert_eq!(counts.lines, counts.performed + counts.replayed + counts.mismatched);
    let entries = place.whole_entries();
    assert_eq!(repeated(&entries), [""; 0]);
    assert_eq!(
        entries.len(),
        deliveries.ids.len() + 1,
        "the ledger must have the long entry and one for each delivery"
    );
}

/// Starts a run that cannot end by itself, and kills it `delay` after the ledger has reached `entries` entries.
#[cfg(unix)]
fn kill_during_run(
    place: &Place,
    deliveries: &Deliveries,
    threads: &str,
    entries: usize,
    delay: std::time::Duration,
) {
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    /// The timeout after which the program counts as hanging.
    const HANG_TIMEOUT: Duration = Duration::from_secs(120);
    const SIGKILL: i32 = 9;

    let mut child = Command::new(program())
        .args(place.arguments(Path::new("/dev/stdin")))
        .args(["--threads", threads])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || {
            // This write fails if the child is killed before it has read everything.
            let _ = pipe.write_all(deliveries.text.as_bytes());
            pipe
        });
        let started = Instant::now();
        while place.ledger_bytes().iter().filter(|byte| **byte == b'\n').count() < entries {
            assert_eq!(child.try_wait().unwrap(), None, "the program ended by itself");
            assert!(started.elapsed() < HANG_TIMEOUT, "the program hangs");
        }
        std::thread::sleep(delay);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        drop(feeder.join().unwrap());
    });
}
