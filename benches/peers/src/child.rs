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
/// The line that the child prints once it has recorded them.
const RECORDED: &str = "recorded";

fn command(words: [&str; 4], directory: &Path) -> Command {
    let program = std::env::current_exe().expect("cannot determine the path of this program");
    let mut command = Command::new(program);
    command.arg(COMMAND).args(words).arg(directory).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn metrics_of(words: [&str; 4], directory: &Path) -> Metrics {
    let output = command(words, directory).output().expect("cannot start a child");
    assert!(output.status.success(), "the child failed: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("the child should print its figures")
}

/// Measures the memory of a fresh process during and after filling a store.
pub fn memory_filling(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([FILL, contestant, &keys.to_string(), "0"], directory)
}

/// Measures the memory of a fresh process that opens a filled store and looks up keys.
pub fn memory_reopened(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([REOPEN, contestant, &keys.to_string(), "0"], directory)
}

/// Starts a process that opens the store and durably records [`LAST_OPERATIONS`] operations. Kills the process before it
/// closes the store.
pub fn crash(setup: &Setup, measurement: u64, directory: &Path) {
    let words = [CRASH, setup.name, "0", &measurement.to_string()];
    let mut child = command(words, directory).spawn().expect("cannot start a child");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("the child's output should be piped");
    BufReader::new(stdout).read_line(&mut line).expect("cannot read the child's output");
    assert_eq!(line.trim(), RECORDED, "the child failed before it was killed");
    child.kill().expect("cannot kill the child");
    child.wait().expect("cannot wait for the killed child");
}

/// Runs the child. `words` are the arguments after [`COMMAND`].
pub fn run(words: &[String]) {
    let [action, name, keys, measurement, directory] = words else { panic!("not started by this program") };
    let number = |text: &String| text.parse::<u64>().expect("a count and a measurement should be numbers");
    let (keys, measurement, directory) = (number(keys), number(measurement), PathBuf::from(directory));
    let setup = roster::all().into_iter().find(|setup| setup.name == name);
    let metrics = match (action.as_str(), setup) {
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
    println!("{}", serde_json::to_string(&metrics).expect("the figures should be serializable"));
}

/// Measures the memory that `fill` takes, at its peak and at the end. Drops the filled store only after measuring.
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

/// Measures the memory of this process after opening a filled store, and after lookups.
fn reopened(setup: &Setup, directory: &Path, keys: u64) -> Metrics {
    let before = anonymous_bytes();
    let contestant = (setup.open)(directory, Durability::Synced);
    let opened = anonymous_bytes();
    let mut reader = contestant.reader();
    for number in chosen(100_000, keys) {
        assert!(reader.is_known(&key(KeySet::Filled, number)), "{}: a filled key is missing", setup.name);
    }
    let looked_up = anonymous_bytes();
    drop(reader);
    contestant.close();
    Metrics::from([
        ("opened_anonymous_bytes".to_owned(), opened.saturating_sub(before) as f64),
        ("used_anonymous_bytes".to_owned(), looked_up.saturating_sub(before) as f64),
    ])
}
