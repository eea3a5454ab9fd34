//! The targets for oncekey, and whether it meets them.

use std::fmt::Write;

use crate::contestant::{FLOOR, ONCEKEY, ONCEKEY_SIZED};
use crate::results::{RATE, Sample, Subject, contestants, figure, ratio, readable_ratio};

/// A figure, identified by subject, contestant and metric.
type FigureId<'a> = (&'a Subject, &'a str, &'a str);

/// The range of figures that meets a target.
enum Bound {
    /// The figure must not be lower.
    AtLeast(f64),
    /// The figure must not be higher.
    AtMost(f64),
}

/// Writes a Markdown table of the targets for which there are results.
pub fn markdown(samples: &[&Sample]) -> String {
    let mut text = String::from("# Targets\n\n| what | target | figure | met |\n|---|---:|---:|---|\n");
    for (what, bound, value) in targets(samples) {
        let Some(value) = value else { continue };
        let (target, met) = match bound {
            Bound::AtLeast(min) => (format!("≥ {min}"), value >= min),
            Bound::AtMost(max) => (format!("≤ {max}"), value <= max),
        };
        let met = if met { "yes" } else { "**no**" };
        let _ = writeln!(text, "| {what} | {target} | {} | {met} |", readable_ratio(value));
    }
    text
}

/// Returns a description, a bound and the figure of each target.
fn targets(samples: &[&Sample]) -> Vec<(String, Bound, Option<f64>)> {
    use Bound::{AtLeast, AtMost};
    const MILLION: u64 = 1_000_000;
    let over = |one: FigureId<'_>, other: FigureId<'_>| ratio(samples, one, other);
    let to_floor =
        |subject: &Subject, metric: &str| over((subject, ONCEKEY, metric), (subject, FLOOR, metric));
    let record = |threads| Subject::new("commit", "record", threads, 0);
    let mut targets = vec![
        ("durable record, 1 thread, of the floor".to_owned(), AtLeast(0.95), to_floor(&record(1), RATE)),
        (
            "begin and complete, 1 thread, of the floor".to_owned(),
            AtLeast(0.95),
            to_floor(&Subject::new("commit", "begin and complete", 1, 0), RATE),
        ),
    ];
    let crowd = record(64);
    // The floor's file is preallocated, as the file of "oncekey sized" is.
    for (ours, file) in [(ONCEKEY, ""), (ONCEKEY_SIZED, ", in a preallocated file")] {
        let against = |threads, name: &str, metric| {
            let subject = record(threads);
            over((&subject, ours, metric), (&subject, name, metric))
        };
        for (threads, min) in [(8, 0.65), (64, 0.6)] {
            let what = format!("durable record, {threads} threads{file}, of the floor");
            targets.push((what, AtLeast(min), against(threads, FLOOR, RATE)));
        }
        let what = format!("durable record, 64 threads{file}, of RocksDB");
        targets.push((what, AtLeast(4.0), against(64, "RocksDB", RATE)));
        let what = format!("durable record, 64 threads{file}, of the best with a group commit around it");
        let grouped = contestants(samples, &crowd).into_iter().filter(|name| name.contains("grouped"));
        let lowest = grouped.filter_map(|name| against(64, name, RATE)).reduce(f64::min);
        targets.push((what, AtLeast(2.0), lowest));
        let what = format!("p99, 64 threads{file}, of the floor's");
        targets.push((what, AtMost(1.5), against(64, FLOOR, "p99_ns")));
    }

    let looked_up = |case, threads| Subject::new("replay", case, threads, MILLION);
    let (known, unknown, by_two) = (looked_up("known", 1), looked_up("unknown", 1), looked_up("known", 2));
    let mean = "mean_ns";
    targets.push(("replay at 1,000,000, of the map's time".to_owned(), AtMost(1.5), to_floor(&known, mean)));
    let lmdb = over((&known, "LMDB", mean), (&known, ONCEKEY, mean));
    targets.push(("replay at 1,000,000, LMDB's time of ours".to_owned(), AtLeast(2.0), lmdb));
    let two = over((&by_two, ONCEKEY, RATE), (&known, ONCEKEY, RATE));
    targets.push(("replays a second, two threads of one".to_owned(), AtLeast(1.7), two));
    let absent = over((&unknown, ONCEKEY, mean), (&known, ONCEKEY, mean));
    targets.push(("unknown key, of the time of a known one".to_owned(), AtMost(1.0), absent));

    let buffered = Subject::new("buffered", "record", 1, 0);
    targets.push(("buffered record, of the floor".to_owned(), AtLeast(0.8), to_floor(&buffered, RATE)));
    let opened = Subject::new("open", "closed", 0, 10 * MILLION);
    let what = "opening 10,000,000, of the time to read the footers".to_owned();
    targets.push((what, AtMost(5.0), to_floor(&opened, "open_ns")));

    let filled = Subject::new("memory", "filled", 0, 10 * MILLION);
    let bytes = figure(samples, &filled, ONCEKEY, "anonymous_per_key_bytes").map(|figure| figure.median);
    targets.push(("anonymous memory for each of 10,000,000 keys, bytes".to_owned(), AtMost(12.0), bytes));
    let peak = over((&filled, ONCEKEY, "peak_anonymous_bytes"), (&filled, ONCEKEY, "anonymous_bytes"));
    targets.push(("memory at its peak, of what stays".to_owned(), AtMost(1.2), peak));

    let calm = Subject::new("reclaim", "nothing expires", 1, MILLION);
    let busy = Subject::new("reclaim", "nine in ten expire", 1, MILLION);
    let slower = over((&busy, ONCEKEY, "p99_ns"), (&calm, ONCEKEY, "p99_ns"));
    targets.push(("p99 while reclaiming, of that without".to_owned(), AtMost(1.5), slower));
    let worst = over((&busy, ONCEKEY, "worst_ns"), (&busy, ONCEKEY, "p50_ns"));
    targets.push(("the longest while reclaiming, of the median".to_owned(), AtMost(20.0), worst));

    let (few, many) =
        (Subject::new("scale", "record", 1, 1_000), Subject::new("scale", "record", 1, 10 * MILLION));
    let kept = over((&many, ONCEKEY, RATE), (&few, ONCEKEY, RATE));
    targets.push(("durable records a second, 10,000,000 keys of 1,000".to_owned(), AtLeast(0.85), kept));
    targets
}
