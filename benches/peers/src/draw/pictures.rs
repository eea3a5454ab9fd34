//! The plots, and the data of each.

use std::path::Path;

use plotters::prelude::*;

use super::plot::{Area, Row, bars, height_of_rows, legend, lines, spans};
use crate::contestant::FLOOR;
use crate::measure::conditions::{ON_ONE_CORE, WITH_NEIGHBOUR, WITH_SLEEP, WITH_WORK};
use crate::results::{CPU, RATE, Sample, Subject, contestants, figure, subjects};

/// Draws a plot into a file. Returns false if there is nothing to draw.
type Picture = fn(&[&Sample], &Path) -> bool;

pub const PICTURES: [(&str, Picture); 10] = [
    ("commit-throughput", |samples, path| {
        let panels = panels(samples, "commit", &["record", "begin and complete"]);
        barred(samples, path, &panels, RATE, "a second")
    }),
    ("commit-cpu", |samples, path| {
        let panels = panels(samples, "commit", &["record", "begin and complete"]);
        barred(samples, path, &panels, CPU, "CPU time of one")
    }),
    ("conditions", |samples, path| {
        let cases = [WITH_WORK, WITH_SLEEP, ON_ONE_CORE, WITH_NEIGHBOUR];
        barred(samples, path, &panels(samples, "conditions", &cases), RATE, "a second")
    }),
    ("commit-latency", |samples, path| {
        let panels = panels(samples, "commit", &["record", "begin and complete"]);
        spanned(samples, path, &panels, &["p50_ns", "p99_ns", "p999_ns"], "p50, p99, p99.9")
    }),
    ("buffered", |samples, path| {
        let panels = panels(samples, "buffered", &["record", "100 records durable together"]);
        barred(samples, path, &panels, RATE, "a second")
    }),
    ("reclaim", |samples, path| {
        let panels = panels(samples, "reclaim", &["nothing expires", "nine in ten expire"]);
        spanned(samples, path, &panels, &["p50_ns", "p99_ns", "worst_ns"], "p50, p99, longest")
    }),
    ("replay", |samples, path| {
        let graphs = [
            Graph::new("replay", "known", 1, "mean_ns", "Known key, one thread"),
            Graph::new("replay", "unknown", 1, "mean_ns", "Unknown key, one thread"),
            Graph::new("replay", "known", 2, RATE, "Known keys a second, two threads"),
            Graph::new("replay", "unknown", 2, RATE, "Unknown keys a second, two threads"),
        ];
        graphed(samples, path, &graphs)
    }),
    ("open", |samples, path| {
        let graphs = [
            Graph::new("open", "closed", 0, "open_ns", "Opening a closed store"),
            Graph::new("open", "after a crash", 0, "open_ns", "Opening a store after a crash"),
        ];
        graphed(samples, path, &graphs)
    }),
    ("memory", |samples, path| {
        let graphs = [
            Graph::new("memory", "filled", 0, "anonymous_per_key_bytes", "Anonymous memory for each key"),
            Graph::new(
                "memory",
                "filled",
                0,
                "peak_anonymous_per_key_bytes",
                "Peak of anonymous memory for each key",
            ),
            Graph::new(
                "memory",
                "filled",
                0,
                "used_anonymous_bytes",
                "Memory after opening and 100,000 lookups",
            ),
            Graph::new("memory", "filled", 0, "disk_per_key_bytes", "Disk for each key"),
        ];
        graphed(samples, path, &graphs)
    }),
    ("scale", |samples, path| {
        let graphs = [
            Graph::new("scale", "record", 1, RATE, "Durable records a second"),
            Graph::new("scale", "record", 1, "p99_ns", "Durable record, p99"),
            Graph::new("open", "closed", 0, "open_ns", "Opening"),
            Graph::new("memory", "filled", 0, "anonymous_bytes", "Anonymous memory"),
        ];
        graphed(samples, path, &graphs)
    }),
];

/// Returns the subjects of these cases, in the order of the cases.
fn panels(samples: &[&Sample], measure: &str, cases: &[&str]) -> Vec<Subject> {
    let of_case = |case: &&str| -> Vec<Subject> {
        let subjects = subjects(samples).into_iter();
        subjects.filter(|subject| subject.measure == measure && subject.case == *case).collect()
    };
    cases.iter().flat_map(of_case).collect()
}

fn title(subject: &Subject) -> String {
    let plural = if subject.threads == 1 { "" } else { "s" };
    format!("{}, {} thread{plural}", subject.case, subject.threads)
}

/// Returns a row for each contestant that has all of these metrics.
fn rows<'a>(samples: &[&'a Sample], subject: &Subject, metrics: &[&str]) -> Vec<Row<'a>> {
    let row = |name| {
        let values = metrics.iter().map(|metric| Some(figure(samples, subject, name, metric)?.median));
        Some(Row { name, values: values.collect::<Option<Vec<f64>>>()? })
    };
    contestants(samples, subject).into_iter().filter_map(row).collect()
}

/// Returns a white drawing area.
fn sheet(path: &Path, width: u32, height: u32) -> Area<'_> {
    let area = SVGBackend::new(path, (width, height)).into_drawing_area();
    area.fill(&WHITE).expect("cannot draw into the file");
    area
}

const PANEL_WIDTH: u32 = 420;

/// Draws one panel of rows for each subject, two or three next to each other.
fn in_panels(
    path: &Path,
    panels: &[(String, Vec<Row<'_>>)],
    draw: impl Fn(&Area<'_>, &str, &[Row<'_>]),
) -> bool {
    let Some(max_rows) = panels.iter().map(|(_, rows)| rows.len()).max().filter(|rows| *rows > 0) else {
        return false;
    };
    let across = if panels.len().is_multiple_of(3) { 3 } else { panels.len().min(2) };
    let down = panels.len().div_ceil(across);
    let (width, height) = (PANEL_WIDTH * across as u32, height_of_rows(max_rows) * down as u32);
    let areas = sheet(path, width, height).split_evenly((down, across));
    for (area, (title, rows)) in areas.iter().zip(panels) {
        draw(area, title, rows);
    }
    true
}

/// Draws a panel of bars for each subject.
fn barred(samples: &[&Sample], path: &Path, subjects: &[Subject], metric: &str, what: &str) -> bool {
    let panels: Vec<_> = subjects
        .iter()
        .map(|subject| (format!("{}, {what}", title(subject)), rows(samples, subject, &[metric])))
        .collect();
    in_panels(path, &panels, |area, title, rows| bars(area, title, rows, metric))
}

/// Draws a panel of spans for each subject.
fn spanned(samples: &[&Sample], path: &Path, subjects: &[Subject], metrics: &[&str], marks: &str) -> bool {
    let panels: Vec<_> = subjects
        .iter()
        .map(|subject| (format!("{}: {marks}", title(subject)), rows(samples, subject, metrics)))
        .collect();
    in_panels(path, &panels, |area, title, rows| spans(area, title, rows, metrics[0]))
}

/// One graph of a metric over the number of operations.
struct Graph {
    measure: &'static str,
    case: &'static str,
    threads: u32,
    metric: &'static str,
    title: &'static str,
}

impl Graph {
    const fn new(
        measure: &'static str,
        case: &'static str,
        threads: u32,
        metric: &'static str,
        title: &'static str,
    ) -> Graph {
        Graph { measure, case, threads, metric, title }
    }

    /// Returns the points of each contestant.
    fn series<'a>(&self, samples: &[&'a Sample]) -> Vec<(&'a str, Vec<(u64, f64)>)> {
        let subjects = panels(samples, self.measure, &[self.case]);
        let subjects: Vec<Subject> =
            subjects.into_iter().filter(|subject| subject.threads == self.threads).collect();
        let mut series: Vec<(&str, Vec<(u64, f64)>)> = Vec::new();
        for subject in &subjects {
            for name in contestants(samples, subject) {
                let Some(figure) = figure(samples, subject, name, self.metric) else { continue };
                // A logarithmic axis has no zero.
                if figure.median <= 0.0 {
                    continue;
                }
                let point = (subject.keys, figure.median);
                match series.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, points)) => points.push(point),
                    None => series.push((name, vec![point])),
                }
            }
        }
        // The floor comes first, even if its first sample is not the earliest.
        series.sort_by_key(|(name, _)| *name != FLOOR);
        series
    }
}

/// Draws graphs, two next to each other, with one legend.
fn graphed(samples: &[&Sample], path: &Path, graphs: &[Graph]) -> bool {
    let all: Vec<_> = graphs
        .iter()
        .map(|graph| (graph, graph.series(samples)))
        .filter(|(_, series)| !series.is_empty())
        .collect();
    let Some((_, longest)) = all.iter().max_by_key(|(_, series)| series.len()) else { return false };
    let (width, height) = (if all.len() == 1 { 560 } else { 1_120 }, 340 * all.len().div_ceil(2) as u32);
    let names: Vec<&str> = longest.iter().map(|(name, _)| *name).collect();
    let (top, rest) = sheet(path, width, height + 26).split_vertically(26);
    legend(&top, &names);
    let areas = rest.split_evenly((all.len().div_ceil(2), all.len().min(2)));
    for (area, (graph, series)) in areas.iter().zip(&all) {
        lines(area, graph.title, series, graph.metric);
    }
    true
}
