//! One run of the program: its directory, the samples so far, and the filled stores.

use std::cell::{Cell, RefCell};
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::arguments::Arguments;
use crate::contestant::{Contestant, Durability};
use crate::machine::Machine;
use crate::operations::{Change, KeySet, RESULT, key};
use crate::results::{self, Metrics, Results, Sample, Subject};
use crate::roster::Setup;

pub struct Bench {
    pub arguments: Arguments,
    results: RefCell<Results>,
    /// When the run began, in seconds since the Unix epoch. It identifies the run.
    run: u64,
    measurements: Cell<u64>,
}

/// A temporary directory for one measurement. Dropping it syncs the parent directory, so that the file system frees the blocks
/// now and not during the next measurement.
pub struct ScratchDirectory {
    directory: Option<TempDir>,
    parent: PathBuf,
}

impl ScratchDirectory {
    pub fn new(parent: &Path) -> ScratchDirectory {
        let directory = TempDir::new_in(parent).expect("cannot create a temporary directory");
        ScratchDirectory { directory: Some(directory), parent: parent.to_owned() }
    }
}

impl Deref for ScratchDirectory {
    type Target = Path;
    fn deref(&self) -> &Path {
        self.directory.as_ref().expect("the directory should exist until it is dropped").path()
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        drop(self.directory.take());
        if let Ok(parent) = fs::File::open(&self.parent) {
            let _ = parent.sync_all();
        }
    }
}

/// Creates a store with this many operations, written in large batches, and makes them durable.
pub fn fill_open(setup: &Setup, directory: &Path, keys: u64) -> Box<dyn Contestant> {
    let contestant = (setup.open)(directory, Durability::Buffered);
    let mut next = 0;
    while next < keys {
        let end = keys.min(next + 1_000);
        let changes: Vec<Change> =
            (next..end).map(|number| Change::PutIfAbsent(key(KeySet::Filled, number), RESULT)).collect();
        let applied = contestant.apply(&changes);
        assert!(applied.into_iter().all(|applied| applied), "{}: a new key was already present", setup.name);
        next = end;
        // Several stores cannot reuse space that was freed after the last sync.
        if next.is_multiple_of(100_000) {
            contestant.sync();
        }
    }
    contestant.sync();
    contestant
}

impl Bench {
    pub fn new(arguments: Arguments) -> Bench {
        fs::create_dir_all(&arguments.directory).expect("cannot create the directory");
        let run =
            SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock should be after 1970").as_secs();
        let mut results = Results::load(&arguments.out);
        results.runs.insert(run, Machine::describe(&arguments.directory));
        Bench { arguments, results: RefCell::new(results), run, measurements: Cell::new(0) }
    }

    /// Returns a number for [`KeySet::Written`] that no other measurement of this or any other run has.
    pub fn next_measurement(&self) -> u64 {
        self.measurements.set(self.measurements.get() + 1);
        self.run << 16 | self.measurements.get()
    }

    pub fn scratch_directory(&self) -> ScratchDirectory {
        ScratchDirectory::new(&self.arguments.directory)
    }

    /// Returns the directory of a closed store with this many operations, and fills it first if it does not exist. It is
    /// kept for later runs, because filling takes longer than measuring.
    pub fn filled(&self, setup: &Setup, keys: u64) -> PathBuf {
        let name: String = setup.name.chars().filter(|character| character.is_alphanumeric()).collect();
        let directory = self.arguments.directory.join("filled").join(format!("{name}-{keys}"));
        let complete = directory.with_extension("complete");
        if !complete.exists() {
            eprintln!("  filling {} with {keys} operations", setup.name);
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).expect("cannot create the directory");
            fill_open(setup, &directory, keys).close();
            fs::write(complete, "").expect("cannot write the marker file");
        }
        directory
    }

    /// Returns one setup for each chosen store, leaving out the variants.
    pub fn plain_setups(&self) -> impl Iterator<Item = &Setup> {
        self.arguments.setups.iter().filter(|setup| !setup.is_variant)
    }

    /// Adds the metrics of one contestant in one round, and prints the most important ones.
    pub fn add_sample(&self, subject: &Subject, contestant: &str, round: u32, metrics: Metrics) {
        let printed = [results::RATE, results::CPU, "mean_ns", "p99_ns", "open_ns", "anonymous_bytes"];
        let shown: Vec<String> = printed
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

    /// Saves all results, and prints the results of one measure in this run.
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
