//! One run: where it works, what it has measured so far, and the stores that it has filled.

use std::cell::{Cell, RefCell};
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::arguments::Arguments;
use crate::contestant::{Contestant, Durability, Kind};
use crate::machine::Machine;
use crate::operations::{Change, Purpose, RESULT, key};
use crate::results::{self, Metrics, Results, Sample, Subject};

pub struct Bench {
    pub arguments: Arguments,
    results: RefCell<Results>,
    run: u64,
    cells: Cell<u64>,
}

/// A directory for one measurement. When it goes, its blocks are given back before anything else is measured.
pub struct Place(Option<TempDir>, PathBuf);

impl Place {
    pub fn new(parent: &Path) -> Place {
        Place(Some(TempDir::new_in(parent).expect("a directory can be made")), parent.to_owned())
    }
}

impl Deref for Place {
    type Target = Path;
    fn deref(&self) -> &Path {
        self.0.as_ref().expect("there until it is dropped").path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.0.take());
        if let Ok(parent) = fs::File::open(&self.1) {
            let _ = parent.sync_all();
        }
    }
}

/// Writes so many operations into a new store, many at a time, and makes them durable.
pub fn fill_open(kind: &Kind, directory: &Path, keys: u64) -> Box<dyn Contestant> {
    let contestant = (kind.open)(directory, Durability::Buffered);
    let mut next = 0;
    while next < keys {
        let end = keys.min(next + 1_000);
        let changes: Vec<Change> =
            (next..end).map(|number| Change::PutIfAbsent(key(Purpose::Filled, number), RESULT)).collect();
        let applied = contestant.apply(&changes);
        assert!(applied.into_iter().all(|applied| applied), "{}: every key is new", kind.name);
        next = end;
        // Some cannot use space again that they freed since they were last synced.
        if next.is_multiple_of(100_000) {
            contestant.sync();
        }
    }
    contestant.sync();
    contestant
}

impl Bench {
    pub fn new(arguments: Arguments) -> Bench {
        fs::create_dir_all(&arguments.directory).expect("the directory can be made");
        let run = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let mut results = Results::load(&arguments.out);
        results.runs.insert(run, Machine::here(&arguments.directory));
        Bench { arguments, results: RefCell::new(results), run, cells: Cell::new(0) }
    }

    /// Tells keys that are written in one measurement from those of all others.
    pub fn next_cell(&self) -> u64 {
        self.cells.set(self.cells.get() + 1);
        self.run << 16 | self.cells.get()
    }

    pub fn place(&self) -> Place {
        Place::new(&self.arguments.directory)
    }

    /// A store with so many operations, closed. It is kept: filling takes longer than what is measured with it.
    pub fn filled(&self, kind: &Kind, keys: u64) -> PathBuf {
        let name: String = kind.name.chars().filter(|character| character.is_alphanumeric()).collect();
        let directory = self.arguments.directory.join("filled").join(format!("{name}-{keys}"));
        let complete = directory.with_extension("complete");
        if !complete.exists() {
            eprintln!("  filling {} with {keys} operations", kind.name);
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).expect("the directory can be made");
            fill_open(kind, &directory, keys).close();
            fs::write(complete, "").expect("the mark can be written");
        }
        directory
    }

    /// The stores, each set up in one way.
    pub fn as_they_come(&self) -> impl Iterator<Item = &Kind> {
        self.arguments.kinds.iter().filter(|kind| !kind.is_variant)
    }

    /// Takes what one contestant did in one round.
    pub fn note(&self, subject: &Subject, contestant: &str, round: u32, metrics: Metrics) {
        let some = ["operations_per_second", "mean_ns", "p99_ns", "open_ns", "anonymous_bytes"];
        let shown: Vec<String> = some
            .iter()
            .filter_map(|metric| Some(results::readable(metric, *metrics.get(*metric)?)))
            .collect();
        let Subject { measure, case, threads, keys } = subject;
        eprintln!(
            "  round {} {measure}: {case}, {threads} threads, {keys} keys: {contestant}: {}",
            round + 1,
            shown.join(", ")
        );
        self.results.borrow_mut().samples.push(Sample {
            subject: subject.clone(),
            contestant: contestant.to_owned(),
            round,
            run: self.run,
            metrics,
        });
    }

    /// Writes everything down and prints what this run has of the measure.
    pub fn finish(&self, measure: &str) {
        let results = self.results.borrow();
        results.save(&self.arguments.out);
        let samples: Vec<&Sample> = results
            .samples
            .iter()
            .filter(|sample| sample.run == self.run && sample.subject.measure == measure)
            .collect();
        results::print(&samples);
    }
}
