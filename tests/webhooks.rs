//! The example `webhooks`, run as its users run it: as a program, on files, killed at times.
//!
//! `cargo test` builds the examples too; `cargo test --test webhooks` alone does not, and then these tests run whatever
//! `cargo build --example webhooks` built last.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::random::Random;
use oncekey::{Begin, Store};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn each_delivery_is_performed_once_and_every_redelivery_is_answered_with_the_first_result() {
    let deliveries = Deliveries::generate(1, 100);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);

    let counts = place.run(&["--threads", "3"]);

    assert_eq!(counts, deliveries.counts_of_a_first_run());
    place.assert_ledger_holds_each_once(&deliveries);
    place.assert_answers_agree_with_the_ledger(&deliveries);
}

#[test]
fn a_second_run_performs_nothing_and_gives_the_same_answers() {
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
    assert_eq!(place.ledger_bytes(), ledger, "the ledger is left as it was");
    place.assert_answers_agree_with_the_ledger(&deliveries);
}

#[test]
fn the_counts_do_not_depend_on_the_number_of_threads() {
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
        // The refused ones are the misuses, and not the deliveries whose ids they carry.
        place.assert_answers_agree_with_the_ledger(&deliveries);
    }
}

/// The deliveries come through a pipe that stays open, so that the program cannot come to its end by itself: every
/// kill meets it alive, wherever it is by then, on however slow a machine.
#[cfg(unix)]
#[test]
fn killed_25_times_anywhere_and_run_again_the_ledger_holds_each_delivery_exactly_once() {
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
            let wanted = random.below(17).min(deliveries.ids.len() - entries);
            let threads = ["1", "2", "4"][random.below(3)];
            kill_during_run(
                &place,
                &deliveries,
                threads,
                entries + wanted,
                std::time::Duration::from_micros(random.below(1_500) as u64),
            );
            assert_eq!(performed_again(&place.whole_entries()), [""; 0], "seed {seed}, kill {kill}");
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
    println!("found in the ledger by the last runs: {reconciled}; ledgers torn by a kill: {torn}");
}

#[test]
fn a_delivery_in_doubt_that_is_in_the_ledger_is_not_performed_again() {
    let deliveries = Deliveries::generate(4, 20);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    place.run(&[]);
    let (ledger, entries) = (place.ledger_bytes(), place.whole_entries());
    // As a crash leaves it between the second step, the ledger's line, and the third, the result in the store.
    place.put_in_doubt(&entries[7].delivery);
    place.put_in_doubt(&entries[19].delivery);

    let counts = place.run(&[]);

    assert_eq!((counts.performed, counts.replayed, counts.reconciled), (0, deliveries.lines() - 7, 2));
    assert_eq!(place.ledger_bytes(), ledger, "the ledger is left as it was");
    place.assert_answers_agree_with_the_ledger(&deliveries);
    assert_eq!(place.run(&[]).reconciled, 0, "it is in doubt no more");
}

#[test]
fn a_delivery_in_doubt_whose_line_in_the_ledger_is_torn_or_missing_is_performed() {
    let deliveries = Deliveries::generate(5, 20);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    place.run(&[]);
    let (ledger, last) = (place.ledger_bytes(), place.whole_entries().pop().unwrap());
    let line_bytes = ledger.split_inclusive(|byte| *byte == b'\n').next_back().unwrap().len();

    for missing_bytes in [1, 2, line_bytes / 2, line_bytes - 1, line_bytes] {
        // As a crash leaves it between the first step, the begin in the store, and the end of the second.
        place.put_in_doubt(&last.delivery);
        fs::write(place.ledger(), &ledger[..ledger.len() - missing_bytes]).unwrap();

        let counts = place.run(&[]);

        assert_eq!(
            (counts.performed, counts.replayed),
            (1, deliveries.lines() - 8),
            "{missing_bytes} missing"
        );
        assert_eq!(place.ledger_bytes(), ledger, "{missing_bytes} bytes missing: the same entry again");
    }
}

/// The ledger meets a limit on the size of files, which cuts its last line short.
#[cfg(target_os = "linux")]
#[test]
fn a_ledger_that_cannot_be_written_ends_the_run_and_the_next_one_goes_on_from_there() {
    let deliveries = Deliveries::generate(6, 40);
    let place = Place::new();
    place.write_deliveries(&deliveries.text);
    // The limit is on all files, so the ledger has to be larger than the store: its first entry is a long one.
    let long = format!("{{\"entry\":1,\"delivery\":\"long\",\"event\":\"{}\"}}\n", "e".repeat(6 << 20));
    fs::write(place.ledger(), &long).unwrap();
    let limit_blocks = long.len() / 512 + 2;

    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {limit_blocks}; exec \"$@\"")).arg("sh");
    limited.arg(program()).args(place.arguments(&place.deliveries())).args(["--threads", "1"]);
    let output = limited.output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("ledger"), "{output:?}");
    assert!(output.stdout.is_empty(), "what did not end has no counts: {output:?}");
    let ledger = place.ledger_bytes();
    assert_eq!(ledger.len(), limit_blocks * 512);
    assert!(!ledger.ends_with(b"\n"), "the last line is torn");

    let entries = place.whole_entries().len() - 1;
    let counts = place.run(&["--threads", "1"]);

    assert_eq!(counts.performed, (deliveries.ids.len() - entries) as u64);
    assert_eq!(counts.lines, counts.performed + counts.replayed + counts.mismatched);
    let entries = place.whole_entries();
    assert_eq!(performed_again(&entries), [""; 0]);
    assert_eq!(entries.len(), deliveries.ids.len() + 1, "and the long one");
}

#[test]
fn a_bad_line_is_reported_with_its_number_and_does_not_stop_the_rest() {
    let bad: [(&[u8], &str); 14] = [
        (b"", "empty"),
        (b" \t\r", "empty"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{}", "EOF"),
        (b"no JSON", "expected"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{}} {}", "trailing"),
        (b"{\"event\":\"push\",\"payload\":{}}", "`delivery`"),
        (b"{\"delivery\":\"a\",\"payload\":{}}", "`event`"),
        (b"{\"delivery\":\"a\",\"event\":\"push\"}", "`payload`"),
        (b"{\"delivery\":17,\"event\":\"push\",\"payload\":{}}", "expected a string"),
        (b"{\"delivery\":\"a\",\"delivery\":\"b\",\"event\":\"push\",\"payload\":{}}", "duplicate"),
        (b"[\"a\",\"push\",{}]", "object"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":\"\xFF\"}", "UTF-8"),
        (b"{\"delivery\":\"\",\"event\":\"push\",\"payload\":{}}", "empty"),
        (b"{\"delivery\":\"a\",\"event\":null,\"payload\":{}}", "expected a string"),
    ];
    let mut deliveries = Vec::new();
    for (at, (line, _)) in bad.iter().enumerate() {
        deliveries.extend_from_slice(line);
        let good = delivery_line(&format!("good-{at}"), "push", "{}");
        deliveries.extend_from_slice(format!("\n{good}\n").as_bytes());
    }
    let place = Place::new();
    fs::write(place.deliveries(), deliveries).unwrap();

    let output = place.output(&["--threads", "2"]);

    assert_eq!(output.status.code(), Some(0), "bad lines are no failure of the program: {output:?}");
    let counts = Counts::read(&output);
    let some = bad.len() as u64;
    assert_eq!(counts, Counts { lines: 2 * some, performed: some, rejected: some, ..Counts::default() });
    let reports: BTreeMap<u64, String> = reports(&place, &output);
    let numbers: Vec<u64> = reports.keys().copied().collect();
    let expected: Vec<u64> = (0..some).map(|at| 2 * at + 1).collect();
    assert_eq!(numbers, expected);
    for (reason, (_, word)) in reports.values().zip(bad) {
        assert!(reason.contains(word), "{reason} should say {word}");
        assert!(!reason.contains("at line 1"), "{reason} would give two numbers");
    }
    assert_eq!(place.whole_entries().len(), bad.len());
}

#[test]
fn a_delivery_id_of_1024_bytes_is_performed_and_one_of_1025_is_rejected() {
    let place = Place::new();
    let longest = delivery_line(&"i".repeat(1_024), "push", "{}");
    let too_long = delivery_line(&"i".repeat(1_025), "push", "{}");
    place.write_deliveries(&format!("{too_long}\n{longest}\n"));

    let output = place.output(&[]);

    let counts = Counts::read(&output);
    assert_eq!(counts, Counts { lines: 2, performed: 1, rejected: 1, ..Counts::default() });
    assert_eq!(reports(&place, &output).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_used_id_with_another_event_or_with_one_other_byte_of_payload_is_refused() {
    let place = Place::new();
    let lines = [
        delivery_line("a", "push", r#"{"n":12345678901234567890123,"s":"x"}"#),
        delivery_line("a", "pull", r#"{"n":12345678901234567890123,"s":"x"}"#),
        delivery_line("a", "push", r#"{"n":12345678901234567890124,"s":"x"}"#),
        delivery_line("a", "push", r#"{"n":12345678901234567890123, "s":"x"}"#),
        delivery_line("a", "push", r#"{"s":"x","n":12345678901234567890123}"#),
        delivery_line("a", "push", "null"),
        delivery_line("a", "push", r#"{"n":12345678901234567890123,"s":"x"}"#),
    ];
    place.write_deliveries(&lines.join("\n"));

    let output = place.output(&["--threads", "4"]);

    let counts = Counts::read(&output);
    assert_eq!(counts, Counts { lines: 7, performed: 1, replayed: 1, mismatched: 5, ..Counts::default() });
    assert_eq!(reports(&place, &output).into_keys().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
}

#[test]
fn a_redelivery_may_differ_in_what_stands_around_its_event_and_its_payload() {
    let place = Place::new();
    place.write_deliveries(
        "{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{\"payload\":[1,\"}\"]}}\n\
         {\"payload\" : {\"payload\":[1,\"}\"]} ,\"event\":\"p\\u0075sh\", \"delivery\":\"a\",\"again\":{\"payload\":2}}\r\n\
         \u{20}{ \"again\":1, \"delivery\":\"\\u0061\",\"event\":\"push\",\"payload\":\t{\"payload\":[1,\"}\"]}\t}",
    );
    let counts = place.run(&["--threads", "4"]);
    assert_eq!(counts, Counts { lines: 3, performed: 1, replayed: 2, ..Counts::default() });
}

#[test]
fn any_json_value_is_a_payload() {
    let payloads = ["null", "true", "1", "12", "-1.5e400", "\"\"", "\" {\\\"\"", "[]", "[[{}]]", "{}"];
    let lines =
        payloads.iter().enumerate().map(|(at, payload)| delivery_line(&at.to_string(), "push", payload));
    let others = payloads.iter().cycle().skip(1).enumerate();
    let others = others.map(|(at, payload)| delivery_line(&at.to_string(), "push", payload));
    let text: Vec<String> = lines.chain(others.take(payloads.len())).collect();
    let place = Place::new();
    place.write_deliveries(&text.join("\n"));
    let some = payloads.len() as u64;
    assert_eq!(
        place.run(&[]),
        Counts { lines: 2 * some, performed: some, mismatched: some, ..Counts::default() }
    );
}

#[test]
fn an_id_with_quotes_and_line_breaks_is_still_one_line_of_the_ledger() {
    let place = Place::new();
    let id = "a \"b\"\nc\\d \u{1F980}\u{0}";
    let line = delivery_line(id, "push\n", "{}");
    place.write_deliveries(&format!("{line}\n{line}\n"));

    assert_eq!(place.run(&[]), Counts { lines: 2, performed: 1, replayed: 1, ..Counts::default() });
    assert_eq!(place.run(&[]), Counts { lines: 2, replayed: 2, ..Counts::default() });

    let entries = place.whole_entries();
    assert_eq!(entries.len(), 1);
    assert_eq!((&*entries[0].delivery, &*entries[0].event), (id, "push\n"));
}

#[test]
fn an_empty_file_is_no_lines() {
    let place = Place::new();
    place.write_deliveries("");
    assert_eq!(place.run(&[]), Counts::default());
}

#[test]
fn a_file_that_is_no_ledger_is_refused_and_left_as_it_is() {
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
fn a_store_or_a_file_that_cannot_be_used_is_exit_status_1() {
    let place = Place::new();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "there are no deliveries: {output:?}");
    assert!(!place.store().exists(), "nothing is created for nothing");

    place.write_deliveries(&delivery_line("a", "push", "{}"));
    let store = Store::open(place.store()).unwrap();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "the store is in use: {output:?}");
    assert!(!place.ledger().exists(), "the ledger is not touched without the store");
    store.close().unwrap();

    fs::write(place.answers(), "something else").unwrap();
    let output = place.output(&[]);
    assert_eq!(output.status.code(), Some(1), "the answers would overwrite a file: {output:?}");
    assert_eq!(fs::read(place.answers()).unwrap(), b"something else");
}

#[test]
fn bad_arguments_are_exit_status_2_and_the_usage() {
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
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing was created");
}

/// The real deliveries lie beside the repository, where its makers keep them; without them there is nothing to check.
#[test]
fn the_real_deliveries_beside_the_repository_if_they_are_there_are_243_performed_601_replayed_7_mismatched() {
    let deliveries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/deliveries.jsonl");
    if !deliveries.exists() {
        println!("{} is not there: nothing checked", deliveries.display());
        return;
    }
    let place = Place::new();
    let run = || Counts::read(&place.output_of(&deliveries, &[]));
    let counts = Counts { lines: 851, performed: 243, replayed: 601, mismatched: 7, ..Counts::default() };
    assert_eq!(run(), counts);
    let entries = place.whole_entries();
    assert_eq!(performed_again(&entries), [""; 0]);
    assert_eq!(entries.len(), 243);
    assert_eq!(run(), Counts { performed: 0, replayed: 844, ..counts });
    assert_eq!(place.whole_entries().len(), 243);
}

/// Starts a run that cannot end, and kills it a little after the ledger has come to `entries` entries.
#[cfg(unix)]
fn kill_during_run(
    place: &Place,
    deliveries: &Deliveries,
    threads: &str,
    entries: usize,
    a_little: std::time::Duration,
) {
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    /// Only so that a program that hangs is a failure, and not a test that never ends.
    const PATIENCE: Duration = Duration::from_secs(120);
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
            // Fails when the child is killed before it has read everything, as it may be.
            let _ = pipe.write_all(deliveries.text.as_bytes());
            pipe
        });
        let started = Instant::now();
        while place.ledger_bytes().iter().filter(|byte| **byte == b'\n').count() < entries {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            assert!(started.elapsed() < PATIENCE, "it hangs");
        }
        std::thread::sleep(a_little);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        drop(feeder.join().unwrap());
    });
}

/// The program under test, which lies beside the directory that this test was built into.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let program = profile.join("examples").join(format!("webhooks{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is missing: run `cargo test`, which builds the examples, or `cargo build --examples` first",
        program.display()
    );
    program
}

/// A directory with the files of one store.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn deliveries(&self) -> PathBuf {
        self.0.path().join("deliveries.jsonl")
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("webhooks.once")
    }

    fn ledger(&self) -> PathBuf {
        self.0.path().join("ledger.jsonl")
    }

    fn answers(&self) -> PathBuf {
        self.0.path().join("answers.jsonl")
    }

    fn write_deliveries(&self, text: &str) {
        fs::write(self.deliveries(), text).unwrap();
    }

    fn arguments(&self, deliveries: &Path) -> Vec<PathBuf> {
        vec![deliveries.into(), "--store".into(), self.store(), "--ledger".into(), self.ledger()]
    }

    fn output_of(&self, deliveries: &Path, options: &[&str]) -> Output {
        Command::new(program()).args(self.arguments(deliveries)).args(options).output().unwrap()
    }

    /// Runs to the end, with answers.
    fn output(&self, options: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.args(self.arguments(&self.deliveries())).arg("--answers").arg(self.answers()).args(options);
        command.output().unwrap()
    }

    /// Runs to the end, which must be a good one.
    fn run(&self, options: &[&str]) -> Counts {
        if self.answers().exists() {
            fs::remove_file(self.answers()).unwrap();
        }
        Counts::read(&self.output(options))
    }

    fn ledger_bytes(&self) -> Vec<u8> {
        if self.ledger().exists() { fs::read(self.ledger()).unwrap() } else { Vec::new() }
    }

    /// The entries of the ledger, without a torn last one.
    fn whole_entries(&self) -> Vec<Entry> {
        let bytes = self.ledger_bytes();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines.enumerate().map(|(at, line)| Entry::read(at as u64 + 1, line)).collect()
    }

    fn assert_ledger_holds_each_once(&self, deliveries: &Deliveries) {
        assert!(self.ledger_bytes().ends_with(b"\n"), "the last line is whole");
        let mut in_ledger: Vec<String> =
            self.whole_entries().into_iter().map(|entry| entry.delivery).collect();
        in_ledger.sort_unstable();
        let mut expected = deliveries.ids.clone();
        expected.sort_unstable();
        assert_eq!(in_ledger, expected);
    }

    /// Every line was answered once: with the entry of its delivery, or with a refusal if it is a misuse.
    fn assert_answers_agree_with_the_ledger(&self, deliveries: &Deliveries) {
        let entries = self.whole_entries();
        let answers = fs::read_to_string(self.answers()).unwrap();
        let mut lines = HashSet::new();
        for answer in answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let line = answer["line"].as_u64().unwrap();
            assert!(lines.insert(line), "line {line} was answered twice");
            if deliveries.misuses.contains(&line) {
                assert_eq!(answer["answer"], "mismatched", "{answer}");
                assert_eq!(answer.get("entry"), None, "a misuse is not told the result: {answer}");
            } else {
                let entry = &entries[usize::try_from(answer["entry"].as_u64().unwrap()).unwrap() - 1];
                assert_eq!(answer["delivery"], entry.delivery, "{answer}");
                assert_eq!(entry.event, deliveries.event_by_line[&line], "{answer}");
            }
        }
        assert_eq!(lines.len() as u64, deliveries.lines());
    }

    /// Makes the store forget that a delivery was completed, and remember that it was begun.
    fn put_in_doubt(&self, delivery: &str) {
        let store = Store::open(self.store()).unwrap();
        let seen = store.get(delivery).unwrap();
        assert!(seen.is_completed());
        store.forget(delivery).unwrap();
        let begun = store.begin(delivery, seen.fingerprint()).unwrap();
        assert!(matches!(begun, Begin::Acquired(_)), "{begun:?}");
        drop(begun);
        store.close().unwrap();
    }
}

/// A line of the ledger.
#[derive(Debug)]
struct Entry {
    delivery: String,
    event: String,
}

impl Entry {
    fn read(number: u64, line: &[u8]) -> Entry {
        let entry: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(entry["entry"], number, "{entry}");
        Entry {
            delivery: entry["delivery"].as_str().unwrap().to_owned(),
            event: entry["event"].as_str().unwrap().to_owned(),
        }
    }
}

/// The deliveries that took effect more than once.
fn performed_again(entries: &[Entry]) -> Vec<&str> {
    let mut seen = HashSet::new();
    entries.iter().map(|entry| &*entry.delivery).filter(|delivery| !seen.insert(*delivery)).collect()
}

/// What the program prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    lines: u64,
    performed: u64,
    replayed: u64,
    mismatched: u64,
    rejected: u64,
    reconciled: u64,
}

impl Counts {
    fn read(output: &Output) -> Counts {
        assert!(output.status.success(), "{output:?}");
        let printed = text(&output.stdout);
        assert_eq!(printed.lines().count(), 1, "one line: {printed}");
        let object: Value = serde_json::from_str(printed).unwrap();
        let count = |name: &str| object[name].as_u64().unwrap();
        let counts = Counts {
            lines: count("lines"),
            performed: count("performed"),
            replayed: count("replayed"),
            mismatched: count("mismatched"),
            rejected: count("rejected"),
            reconciled: count("reconciled"),
        };
        let Counts { lines, performed, replayed, mismatched, rejected, reconciled } = counts;
        assert_eq!(lines, performed + replayed + mismatched + rejected, "{counts:?}");
        assert!(reconciled <= replayed, "{counts:?}");
        counts
    }
}

/// What was said on standard error, by line of the deliveries.
fn reports(place: &Place, output: &Output) -> BTreeMap<u64, String> {
    let file = format!("{}:", place.deliveries().display());
    let report = |line: &str| {
        let (number, reason) = line.strip_prefix(&file).unwrap().split_once(": ").unwrap();
        (number.parse().unwrap(), reason.to_owned())
    };
    text(&output.stderr).lines().map(report).collect()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// A line of deliveries; `payload` is the text of some JSON.
fn delivery_line(id: &str, event: &str, payload: &str) -> String {
    let (id, event) = (Value::from(id), Value::from(event));
    format!("{{\"delivery\":{id},\"event\":{event},\"payload\":{payload}}}")
}

/// Made-up deliveries that come as real ones do: twice and more, late, out of order, and seven times under an id that
/// was used for something else.
struct Deliveries {
    text: String,
    ids: Vec<String>,
    /// The numbers of the lines that carry a used id.
    misuses: HashSet<u64>,
    event_by_line: BTreeMap<u64, String>,
}

impl Deliveries {
    const MISUSES: usize = 7;

    fn generate(seed: u64, distinct: usize) -> Deliveries {
        let mut random = Random(seed);
        let ids: Vec<String> = (0..distinct).map(|at| format!("{:016x}-{at}", random.next())).collect();
        let event_of = |at: usize| ["push", "issues", "check_run", "release"][at % 4].to_owned();

        // Each line is a delivery by its place in `ids`, and whether it is a misuse of that id.
        let mut order: Vec<(usize, bool)> = Vec::new();
        for at in 0..distinct {
            order.extend(std::iter::repeat_n((at, false), 1 + random.below(5)));
        }
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for _ in 0..Self::MISUSES {
            let of = random.below(distinct);
            let first = order.iter().position(|line| *line == (of, false)).unwrap();
            // Anywhere behind the first, and often right behind it, where threads could still change places.
            let behind = if random.below(2) == 0 { 0 } else { random.below(order.len() - first) };
            order.insert(first + 1 + behind, (of, true));
        }

        let mut deliveries =
            Deliveries { text: String::new(), ids, misuses: HashSet::new(), event_by_line: BTreeMap::new() };
        for (number, (at, misuse)) in (1..).zip(order) {
            let mut event = event_of(at);
            let mut payload = format!(
                "{{\"number\": {at}, \"title\": \"caf\u{e9} \\\"{at}\\\"\", \"labels\": [{{}}, null]}}"
            );
            if misuse {
                deliveries.misuses.insert(number);
                if at % 2 == 0 { event.push('d') } else { payload.insert(1, ' ') }
            }
            writeln!(deliveries.text, "{}", delivery_line(&deliveries.ids[at], &event, &payload)).unwrap();
            deliveries.event_by_line.insert(number, event);
        }
        deliveries
    }

    fn lines(&self) -> u64 {
        self.event_by_line.len() as u64
    }

    fn counts_of_a_first_run(&self) -> Counts {
        let (lines, performed, mismatched) = (self.lines(), self.ids.len() as u64, self.misuses.len() as u64);
        Counts { lines, performed, replayed: lines - performed - mismatched, mismatched, ..Counts::default() }
    }
}
