//! The comparison as Markdown.

use std::fmt::Write;

use crate::contestant::FLOOR;
use crate::measure::conditions::{ON_ONE_CORE, WITH_NEIGHBOUR, WITH_SLEEP, WITH_WORK};
use crate::results::{
    CPU, Figure, RATE, Sample, Subject, contestants, figure, readable, readable_ratio, subjects,
};

/// One table of the comparison, for one metric of one case of a measure.
struct Section {
    measure: &'static str,
    case: &'static str,
    metric: &'static str,
    title: &'static str,
}

const fn section(
    measure: &'static str,
    case: &'static str,
    metric: &'static str,
    title: &'static str,
) -> Section {
    Section { measure, case, metric, title }
}

const SECTIONS: &[Section] = &[
    section("commit", "record", RATE, "Durable records a second"),
    section("commit", "record", "p50_ns", "Durable record, p50"),
    section("commit", "record", "p99_ns", "Durable record, p99"),
    section("commit", "record", "p999_ns", "Durable record, p99.9"),
    section("commit", "begin and complete", RATE, "Durable begin and complete, a second"),
    section("commit", "begin and complete", "p99_ns", "Durable begin and complete, p99"),
    section("commit", "rerun", RATE, "With `rerun()`, a second"),
    section("commit", "record", CPU, "CPU time of a durable record"),
    section("commit", "begin and complete", CPU, "CPU time of a durable begin and complete"),
    section("commit", "rerun", CPU, "CPU time with `rerun()`"),
    section("conditions", WITH_WORK, RATE, "Durable records a second, 50 µs of work between"),
    section("conditions", WITH_WORK, CPU, "CPU time with 50 µs of work between, the work included"),
    section("conditions", WITH_SLEEP, RATE, "Durable records a second, 50 µs of sleep between"),
    section("conditions", WITH_SLEEP, CPU, "CPU time with 50 µs of sleep between"),
    section("conditions", ON_ONE_CORE, RATE, "Durable records a second, on one core"),
    section("conditions", ON_ONE_CORE, CPU, "CPU time on one core"),
    section("conditions", WITH_NEIGHBOUR, RATE, "Durable records a second, beside a busy process"),
    section("conditions", WITH_NEIGHBOUR, CPU, "CPU time beside a busy process"),
    section("buffered", "record", RATE, "Buffered records a second"),
    section("buffered", "record", CPU, "CPU time of a buffered record"),
    section("buffered", "100 records durable together", RATE, "Records a second, 100 durable together"),
    section("replay", "known", "mean_ns", "Replay of a known key"),
    section("replay", "unknown", "mean_ns", "Lookup of an unknown key"),
    section("open", "closed", "open_ns", "Opening a closed store"),
    section("open", "closed", "open_and_look_up_ns", "Opening a closed store, and a first lookup"),
    section("open", "after a crash", "open_ns", "Opening a store after a crash"),
    section("memory", "filled", "anonymous_per_key_bytes", "Anonymous memory for each key, after filling"),
    section(
        "memory",
        "filled",
        "peak_anonymous_per_key_bytes",
        "Peak of anonymous memory for each key, while filling",
    ),
    section("memory", "filled", "disk_per_key_bytes", "Disk for each key"),
    section("reclaim", "nothing expires", "p99_ns", "Durable record while nothing expires, p99"),
    section("reclaim", "nine in ten expire", "p99_ns", "Durable record while nine in ten expire, p99"),
    section("reclaim", "nine in ten expire", "worst_ns", "Durable record while nine in ten expire, longest"),
    section("scale", "record", RATE, "Durable records a second, by operations in the store"),
];

pub fn markdown(samples: &[&Sample], provenance: &[String], drawn: &[&str]) -> String {
    let mut text = String::from("# oncekey compared with other embedded stores\n\n");
    for sentence in provenance {
        let _ = writeln!(text, "{sentence}\n");
    }
    text += "Keys of 36 bytes, results of 256. Medians over rounds in which every store had one turn; in brackets the median \
             of the ratios to the floor of the same round. The best figure of each column, floors excepted, is bold. \
             benches/peers/README.md describes the floors and the setup of each store.\n";
    for name in drawn {
        let _ = write!(text, "\n![{name}]({name}.svg)\n");
    }
    for section in SECTIONS {
        text += &table(samples, section);
    }
    text
}

/// Writes one table: a row for each contestant, a column for each number of threads and of keys.
fn table(samples: &[&Sample], section: &Section) -> String {
    let columns: Vec<Subject> = subjects(samples)
        .into_iter()
        .filter(|subject| subject.measure == section.measure && subject.case == section.case)
        .collect();
    let mut rows: Vec<&str> = Vec::new();
    for subject in &columns {
        let new: Vec<&str> =
            contestants(samples, subject).into_iter().filter(|name| !rows.contains(name)).collect();
        rows.extend(new);
    }
    let cells: Vec<Vec<Option<Figure>>> = rows
        .iter()
        .map(|name| columns.iter().map(|subject| figure(samples, subject, name, section.metric)).collect())
        .collect();
    if cells.iter().flatten().all(Option::is_none) {
        return String::new();
    }
    let best: Vec<Option<usize>> =
        (0..columns.len()).map(|column| best(&rows, &cells, column, section.metric)).collect();

    let mut text = format!("\n## {}\n\n| |", section.title);
    for subject in &columns {
        let _ = write!(text, " {} |", heading(subject, &columns));
    }
    text += "\n|---|";
    text += &"---:|".repeat(columns.len());
    text += "\n";
    for (row, name) in rows.iter().enumerate().filter(|(row, _)| cells[*row].iter().any(Option::is_some)) {
        let _ = write!(text, "| {name} |");
        for (column, cell) in cells[row].iter().enumerate() {
            let shown = cell.map_or(String::new(), |figure| {
                let value = readable(section.metric, figure.median);
                let value = if best[column] == Some(row) { format!("**{value}**") } else { value };
                let ratio = figure.to_floor.filter(|_| *name != FLOOR);
                ratio.map_or(value.clone(), |ratio| format!("{value} ({})", readable_ratio(ratio)))
            });
            let _ = write!(text, " {shown} |");
        }
        text += "\n";
    }
    text
}

/// Returns the row with the best figure of a column, floors excepted.
fn best(rows: &[&str], cells: &[Vec<Option<Figure>>], column: usize, metric: &str) -> Option<usize> {
    let sign = if metric.ends_with("_per_second") { -1.0 } else { 1.0 };
    let others = (0..rows.len()).filter(|row| !rows[*row].starts_with(FLOOR));
    let figures = others.filter_map(|row| Some((row, sign * cells[row][column]?.median)));
    figures.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(row, _)| row)
}

/// Returns a column heading with the properties in which the columns differ.
fn heading(subject: &Subject, columns: &[Subject]) -> String {
    let differ = |of: fn(&Subject) -> u64| columns.iter().any(|other| of(other) != of(subject));
    let mut parts = Vec::new();
    if subject.keys > 0 && (differ(|subject| subject.keys) || subject.threads == 0) {
        parts.push(format!("{} keys", grouped(subject.keys)));
    }
    if differ(|subject| u64::from(subject.threads)) || parts.is_empty() {
        let plural = if subject.threads == 1 { "" } else { "s" };
        parts.push(format!("{} thread{plural}", subject.threads));
    }
    parts.join(", ")
}

/// Formats a number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
