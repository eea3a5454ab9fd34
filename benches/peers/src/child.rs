//! Measurements in a child process: memory, which needs a fresh heap, and crashes, which need a process to kill.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::bench;
use crate::contestant::{Durability, FLOOR};
use crate::machine::anonymous_bytes;
use crate::operations::{KeySet, chosen, key};
use crate::results::Metrics;
use crate::roster::{self, Setup};
use crate::sharded_map::ShardedMap;

/// The first word of a child's command line.
pub const COMMAND: &str = "as-child";

const CRASH: &str = "crash";
const FILL: &str = "fill";
const REOPEN: &str = "reopen";

/// How many operations a child records before it is killed.
const LAST_OPERATIONS: u64 = 1_000;
/// What it prints when it has done so.
const RECORDED: &str = "recorded";

fn command(words: [&str; 4], directory: &Path) -> Command {
    let program = std::env::current_exe().expect("a program knows where it is");
    let mut command = Command::new(program);
    command.arg(COMMAND).args(words).arg(directory).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn metrics_of(words: [&str; 4], directory: &Path) -> Metrics {
    let output = command(words, directory).output().expect("a child can be started");
    assert!(output.status.success(), "the child failed: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a child prints its figures")
}

/// Measures memory while and after a fresh process fills a store.
pub fn memory_filling(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([FILL, contestant, &keys.to_string(), "0"], directory)
}

/// Measures memory of a fresh process that opens a filled store and looks some keys up.
pub fn memory_reopened(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([REOPEN, contestant, &keys.to_string(), "0"], directory)
}

/// Starts a process that opens the store and records some operations durably, and kills it before it closes the store.
pub fn crash(setup: &Setup, measurement: u64, directory: &Path) {
    let words = [CRASH, setup.name, "0", &measurement.to_string()];
    let mut child = command(words, directory).spawn().expect("a child can be started");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("the child's output can be read");
    assert_eq!(line.trim(), RECORDED, "the child failed before it was killed");
    child.kill().expect("a child can be killed");
    child.wait().expect("a killed child can be waited for");
}

/// Runs the child: the words after [`COMMAND`] say what it does.
pub fn run(words: &[String]) {
    let [what, name, keys, measurement, directory] = words else { panic!("not started by this program") };
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let (keys, measurement, directory) = (number(keys), number(measurement), PathBuf::from(directory));
    let setup = roster::all().into_iter().find(|setup| setup.name == name);
    let metrics = match (what.as_str(), setup) {
        (CRASH, Some(setup)) => {
            let contestant = (setup.open)(&directory, Durability::Synced);
            for number in 0..LAST_OPERATIONS {
                contestant.record(&key(KeySet::Written { measurement, thread: 0 }, number));
            }
            println!("{RECORDED}");
            loop {
                std::thread::park();
            }
        }
        (FILL, Some(setup)) => filling(|| bench::fill_open(&setup, &directory, keys)),
        (FILL, None) if name == FLOOR => filling(|| ShardedMap::filled(keys)),
        (REOPEN, Some(setup)) => reopened(&setup, &directory, keys),
        _ => panic!("not started by this program"),
    };
    println!("{}", serde_json::to_string(&metrics).expect("figures are plain data"));
}

/// Measures the memory that `fill` takes, at its peak and at the end. Drops what it returns only after that.
fn filling<T>(fill: impl FnOnce() -> T) -> Metrics {
    let (highest, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let before = anonymous_bytes();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                highest.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let filled = fill();
        // Background threads may still be working.
        std::thread::sleep(Duration::from_millis(500));
        let after = anonymous_bytes();
        over.store(true, Ordering::Relaxed);
        drop(filled);
        let over_before = |bytes: u64| bytes.saturating_sub(before) as f64;
        let highest = highest.load(Ordering::Relaxed).max(after);
        Metrics::from([
            ("anonymous_bytes".to_owned(), over_before(after)),
            ("peak_anonymous_bytes".to_owned(), over_before(highest)),
        ])
    })
}

fn reopened(setup: &Setup, directory: &Path, keys: u64) -> Metrics {
    let before = anonymous_bytes();
    let contestant = (setup.open)(directory, Durability::Synced);
    let opened = anonymous_bytes();
    let mut reader = contestant.reader();
    for number in chosen(100_000, keys) {
        assert!(reader.is_known(&key(KeySet::Filled, number)), "{}: it was filled", setup.name);
    }
    let looked_up = anonymous_bytes();
    drop(reader);
    contestant.close();
    Metrics::from([
        ("opened_anonymous_bytes".to_owned(), opened.saturating_sub(before) as f64),
        ("used_anonymous_bytes".to_owned(), looked_up.saturating_sub(before) as f64),
    ])
}
