//! Runs the program, and reads its ledger and its answers.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use oncekey::{Begin, Store};
use serde_json::Value;
use tempfile::TempDir;

use crate::counts::{Counts, text};
use crate::deliveries::Deliveries;

/// The path of the program under test: `examples/webhooks` in the target directory of this test.
pub fn program() -> PathBuf {
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
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn deliveries(&self) -> PathBuf {
        self.0.path().join("deliveries.jsonl")
    }

    pub fn store(&self) -> PathBuf {
        self.0.path().join("webhooks.once")
    }

    pub fn ledger(&self) -> PathBuf {
        self.0.path().join("ledger.jsonl")
    }

    pub fn answers(&self) -> PathBuf {
        self.0.path().join("answers.jsonl")
    }

    pub fn write_deliveries(&self, text: &str) {
        fs::write(self.deliveries(), text).unwrap();
    }

    pub fn arguments(&self, deliveries: &Path) -> Vec<PathBuf> {
        vec![deliveries.into(), "--store".into(), self.store(), "--ledger".into(), self.ledger()]
    }

    /// Runs the program on the given deliveries, without a file of answers.
    pub fn output_of(&self, deliveries: &Path, options: &[&str]) -> Output {
        Command::new(program()).args(self.arguments(deliveries)).args(options).output().unwrap()
    }

    /// Runs the program with a file of answers.
    pub fn output(&self, options: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.args(self.arguments(&self.deliveries())).arg("--answers").arg(self.answers()).args(options);
        command.output().unwrap()
    }

    /// Runs the program with a new file of answers, and returns its counts. It must succeed.
    pub fn run(&self, options: &[&str]) -> Counts {
        if self.answers().exists() {
            fs::remove_file(self.answers()).unwrap();
        }
        Counts::read(&self.output(options))
    }

    pub fn ledger_bytes(&self) -> Vec<u8> {
        if self.ledger().exists() { fs::read(self.ledger()).unwrap() } else { Vec::new() }
    }

    /// Reads the complete entries of the ledger, without a torn line at its end.
    pub fn whole_entries(&self) -> Vec<Entry> {
        let bytes = self.ledger_bytes();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines.enumerate().map(|(at, line)| Entry::read(at as u64 + 1, line)).collect()
    }

    pub fn assert_ledger_holds_each_once(&self, deliveries: &Deliveries) {
        assert!(self.ledger_bytes().ends_with(b"\n"), "the last line is torn");
        let mut in_ledger: Vec<String> =
            self.whole_entries().into_iter().map(|entry| entry.delivery).collect();
        in_ledger.sort_unstable();
        let mut expected = deliveries.ids.clone();
        expected.sort_unstable();
        assert_eq!(in_ledger, expected);
    }

    /// Checks that every line was answered once. The answer is the entry of its delivery, or a refusal if the line reuses an
    /// id.
    pub fn assert_answers_agree_with_the_ledger(&self, deliveries: &Deliveries) {
        let entries = self.whole_entries();
        let answers = fs::read_to_string(self.answers()).unwrap();
        let mut lines = HashSet::new();
        for answer in answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let line = answer["line"].as_u64().unwrap();
            assert!(lines.insert(line), "line {line} was answered twice");
            if deliveries.misuses.contains(&line) {
                assert_eq!(answer["answer"], "mismatched", "{answer}");
                assert_eq!(answer.get("entry"), None, "a refused line got the result: {answer}");
            } else {
                let entry = &entries[usize::try_from(answer["entry"].as_u64().unwrap()).unwrap() - 1];
                assert_eq!(answer["delivery"], entry.delivery, "{answer}");
                assert_eq!(entry.event, deliveries.event_by_line[&line], "{answer}");
            }
        }
        assert_eq!(lines.len() as u64, deliveries.lines());
    }

    /// Replaces the completion of a delivery in the store with a begin, so that it is in doubt.
    pub fn put_in_doubt(&self, delivery: &str) {
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
pub struct Entry {
    pub delivery: String,
    pub event: String,
}

impl Entry {
    pub fn read(number: u64, line: &[u8]) -> Entry {
        let entry: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(entry["entry"], number, "{entry}");
        Entry {
            delivery: entry["delivery"].as_str().unwrap().to_owned(),
            event: entry["event"].as_str().unwrap().to_owned(),
        }
    }
}

/// Returns the deliveries that are in the ledger more than once.
pub fn repeated(entries: &[Entry]) -> Vec<&str> {
    let mut seen = HashSet::new();
    entries.iter().map(|entry| &*entry.delivery).filter(|delivery| !seen.insert(*delivery)).collect()
}

/// Reads the reports from standard error, by the line number in the deliveries.
pub fn reports(place: &Place, output: &Output) -> BTreeMap<u64, String> {
    let file = format!("{}:", place.deliveries().display());
    let report = |line: &str| {
        let (number, reason) = line.strip_prefix(&file).unwrap().split_once(": ").unwrap();
        (number.parse().unwrap(), reason.to_owned())
    };
    text(&output.stderr).lines().map(report).collect()
}
