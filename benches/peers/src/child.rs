//! What must happen in a process of its own: memory is measured in a fresh one, and one is
//! killed to leave what a crash leaves.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::bench;
use crate::contestant::{self, Durability, FLOOR, Kind};
use crate::machine::anonymous_bytes;
use crate::measure::replay::ShardedMap;
use crate::operations::{Purpose, chosen, key};
use crate::results::Metrics;

/// The first word of a child's command line.
pub const COMMAND: &str = "as-child";

const CRASH: &str = "crash";
const FILL: &str = "fill";
const REOPEN: &str = "reopen";

/// How many operations a child records before it is killed, and what it then says.
const LAST_OPERATIONS: u64 = 1_000;
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

/// Memory while and after a store is filled in a fresh process.
pub fn memory_filling(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([FILL, contestant, &keys.to_string(), "0"], directory)
}

/// Memory of a fresh process that opened a filled store and looked some of it up.
pub fn memory_reopened(contestant: &str, keys: u64, directory: &Path) -> Metrics {
    metrics_of([REOPEN, contestant, &keys.to_string(), "0"], directory)
}

/// Opens the store in a process that records something, durably, and is killed before it closes it.
pub fn crash(kind: &Kind, cell: u64, directory: &Path) {
    let words = [CRASH, kind.name, "0", &cell.to_string()];
    let mut child = command(words, directory).spawn().expect("a child can be started");
    let mut said = String::new();
    let stdout = child.stdout.take().expect("it was asked for");
    BufReader::new(stdout).read_line(&mut said).expect("a child can be listened to");
    assert_eq!(said.trim(), RECORDED, "the child failed before it was killed");
    child.kill().expect("a child can be killed");
    child.wait().expect("a child that was killed is gone");
}

/// The work of a child.
pub fn run(words: &[String]) {
    let [what, name, keys, cell, directory] = words else { panic!("started by hand") };
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let (keys, cell, directory) = (number(keys), number(cell), PathBuf::from(directory));
    let kind = contestant::all().into_iter().find(|kind| kind.name == name);
    let metrics = match (what.as_str(), kind) {
        (CRASH, Some(kind)) => {
            let contestant = (kind.open)(&directory, Durability::Synced);
            for number in 0..LAST_OPERATIONS {
                contestant.record(&key(Purpose::Written { cell, thread: 0 }, number));
            }
            println!("{RECORDED}");
            loop {
                std::thread::park();
            }
        }
        (FILL, Some(kind)) => filling(|| bench::fill_open(&kind, &directory, keys)),
        (FILL, None) if name == FLOOR => filling(|| ShardedMap::filled(keys)),
        (REOPEN, Some(kind)) => reopened(&kind, &directory, keys),
        _ => panic!("started by hand"),
    };
    println!("{}", serde_json::to_string(&metrics).expect("figures are plain data"));
}

/// Fills something, watches how much memory that takes, and keeps it until that is known.
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
        // What works behind the scenes may end what it began.
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

fn reopened(kind: &Kind, directory: &Path, keys: u64) -> Metrics {
    let before = anonymous_bytes();
    let contestant = (kind.open)(directory, Durability::Synced);
    let opened = anonymous_bytes();
    let mut reader = contestant.reader();
    for number in chosen(100_000, keys) {
        assert!(reader.is_known(&key(Purpose::Filled, number)), "{}: it was filled", kind.name);
    }
    let looked_up = anonymous_bytes();
    drop(reader);
    contestant.close();
    Metrics::from([
        ("opened_anonymous_bytes".to_owned(), opened.saturating_sub(before) as f64),
        ("used_anonymous_bytes".to_owned(), looked_up.saturating_sub(before) as f64),
    ])
}
