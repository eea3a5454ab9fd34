//! The results, stored round by round and summarised as medians and ratios.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contestant::FLOOR;
use crate::machine::Machine;

pub type Metrics = BTreeMap<String, f64>;

/// The metric of throughput.
pub const RATE: &str = "operations_per_second";
/// The metric of CPU time, of the process and of the operating system on its behalf.
pub const CPU: &str = "cpu_per_operation_ns";

/// The subject of a measurement. Samples of the same subject are comparable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// The command.
    pub measure: String,
    /// The part of the measure.
    pub case: String,
    pub threads: u32,
    /// The number of operations in the store before the measurement; 0 if it does not matter.
    pub keys: u64,
}

impl Subject {
    pub fn new(measure: &str, case: &str, threads: u32, keys: u64) -> Subject {
        Subject { measure: measure.to_owned(), case: case.to_owned(), threads, keys }
    }
}

/// The metrics of one contestant in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    #[serde(flatten)]
    pub subject: Subject,
    pub contestant: String,
    pub round: u32,
    /// The run, identified by the time at which it began, in seconds since the Unix epoch.
    pub run: u64,
    pub metrics: Metrics,
}

/// The contents of the results file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The machine of each run.
    pub runs: BTreeMap<u64, Machine>,
    pub samples: Vec<Sample>,
}

/// A median over the rounds, absolute and relative.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub median: f64,
    /// The median of the ratios to the floor of the same round.
    pub to_floor: Option<f64>,
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl Results {
    /// Loads the results file, or returns empty results if it does not exist.
    pub fn load(path: &Path) -> Results {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).expect("cannot parse the results file"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Results::default(),
            Err(error) => panic!("{} cannot be read: {error}", path.display()),
        }
    }

    /// Replaces the file atomically, so that an interrupted run does not lose earlier ones.
    pub fn save(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("the results should be serializable");
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, text).expect("cannot write the results");
        fs::rename(&temporary, path).expect("cannot replace the results file");
    }

    /// Returns the samples of each subject's latest run. Samples of different runs are not comparable.
    pub fn latest(&self) -> Vec<&Sample> {
        let mut latest: BTreeMap<&Subject, u64> = BTreeMap::new();
        for sample in &self.samples {
            let run = latest.entry(&sample.subject).or_default();
            *run = (*run).max(sample.run);
        }
        self.samples.iter().filter(|sample| latest[&sample.subject] == sample.run).collect()
    }
}

/// Returns the subjects of these samples, sorted.
pub fn subjects(samples: &[&Sample]) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = samples.iter().map(|sample| sample.subject.clone()).collect();
    subjects.sort();
    subjects.dedup();
    subjects
}

/// Returns the contestants with samples of the subject, in the order in which they were measured.
pub fn contestants<'a>(samples: &[&'a Sample], subject: &Subject) -> Vec<&'a str> {
    let mut contestants: Vec<&str> = Vec::new();
    for sample in samples.iter().filter(|sample| sample.subject == *subject) {
        if !contestants.contains(&sample.contestant.as_str()) {
            contestants.push(&sample.contestant);
        }
    }
    contestants
}

/// Returns a contestant's values of a metric, by round.
fn rounds(samples: &[&Sample], subject: &Subject, contestant: &str, metric: &str) -> BTreeMap<u32, f64> {
    samples
        .iter()
        .filter(|sample| sample.subject == *subject && sample.contestant == contestant)
        .filter_map(|sample| Some((sample.round, *sample.metrics.get(metric)?)))
        .collect()
}

/// Returns the median, over the rounds, of the ratio of one figure to another. A figure is a subject, a contestant and a
/// metric.
pub fn ratio(
    samples: &[&Sample],
    over: (&Subject, &str, &str),
    under: (&Subject, &str, &str),
) -> Option<f64> {
    let (over, under) = (rounds(samples, over.0, over.1, over.2), rounds(samples, under.0, under.1, under.2));
    median(over.iter().filter_map(|(round, value)| Some(value / under.get(round)?)).collect())
}

/// Returns one metric of one contestant, as a median and as a ratio to the floor.
pub fn figure(samples: &[&Sample], subject: &Subject, contestant: &str, metric: &str) -> Option<Figure> {
    let median = median(rounds(samples, subject, contestant, metric).into_values().collect())?;
    let to_floor = ratio(samples, (subject, contestant, metric), (subject, FLOOR, metric));
    Some(Figure { median, to_floor })
}

/// Formats a value in the unit of its metric: nanoseconds, bytes or operations a second.
pub fn readable(metric: &str, value: f64) -> String {
    let scaled = |units: [&str; 4], step: f64| {
        let mut value = value;
        let mut unit = 0;
        while value >= step && unit < 3 {
            value /= step;
            unit += 1;
        }
        let digits = if value >= 100.0 || (unit == 0 && value.fract() == 0.0) { 0 } else { 1 };
        format!("{value:.digits$} {}", units[unit])
    };
    if metric.ends_with("_ns") {
        scaled(["ns", "µs", "ms", "s"], 1_000.0)
    } else if metric.ends_with("bytes") {
        scaled(["B", "kB", "MB", "GB"], 1_000.0)
    } else if metric.ends_with("_per_second") {
        scaled(["/s", "k/s", "M/s", "G/s"], 1_000.0)
    } else {
        format!("{value:.1}")
    }
}

/// Formats a ratio, usually with two or three significant digits.
pub fn readable_ratio(ratio: f64) -> String {
    let digits = if ratio >= 100.0 {
        0
    } else if ratio >= 10.0 {
        1
    } else if ratio >= 0.1 {
        2
    } else {
        4
    };
    format!("{ratio:.digits$}")
}

/// The metrics that are printed last, in this order. All others come before them.
const ORDER: [&str; 5] = ["mean_ns", "p50_ns", "p99_ns", "p999_ns", "worst_ns"];

/// Prints a table for each subject: the medians of every contestant, with the ratios to the floor in brackets.
pub fn print(samples: &[&Sample]) {
    for subject in subjects(samples) {
        let mut title = format!("{}: {}", subject.measure, subject.case);
        if subject.threads > 0 {
            title += &format!(", {} thread{}", subject.threads, if subject.threads == 1 { "" } else { "s" });
        }
        if subject.keys > 0 {
            title += &format!(", {} keys", subject.keys);
        }
        println!("\n{title}");
        let contestants = contestants(samples, &subject);
        let of_subject = samples.iter().filter(|sample| sample.subject == subject);
        let mut metrics: Vec<&str> =
            of_subject.flat_map(|sample| sample.metrics.keys().map(String::as_str)).collect();
        metrics.sort_unstable_by_key(|metric| (ORDER.iter().position(|first| first == metric), *metric));
        metrics.dedup();
        let mut table = vec![vec![String::new()]];
        table[0].extend(metrics.iter().map(|metric| metric.trim_end_matches("_ns").replace('_', " ")));
        for contestant in contestants {
            let cells = metrics.iter().map(|metric| {
                figure(samples, &subject, contestant, metric).map_or(String::new(), |figure| {
                    let ratio = figure
                        .to_floor
                        .map_or(String::new(), |ratio| format!(" ({:>5})", readable_ratio(ratio)));
                    format!("{}{ratio}", readable(metric, figure.median))
                })
            });
            table.push(std::iter::once(contestant.to_owned()).chain(cells).collect());
        }
        print_aligned(&table);
    }
}

fn print_aligned(table: &[Vec<String>]) {
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in table {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column == 0 { print!("{cell:<width$}") } else { print!("   {cell:>width$}") }
        }
        println!();
    }
}
