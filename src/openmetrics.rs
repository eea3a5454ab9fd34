//! Prints [`Stats`] in the OpenMetrics text format.
//!
//! [`METRICS`] has one row for each metric. A test requires that every figure of the statistics is printed.

use std::fmt::{self, Write as _};

use crate::stats::Stats;

impl Stats {
    /// Prints the figures in the [OpenMetrics](https://openmetrics.io) text format 1.0, which Prometheus and others read.
    ///
    /// The content type is `application/openmetrics-text; version=1.0.0; charset=utf-8`. The text is a whole exposition: it
    /// ends with `# EOF`. Names begin with `oncekey_`. A program with several stores uses
    /// [`openmetrics_of`](Stats::openmetrics_of). Counters start at zero when the store is opened.
    ///
    /// ```
    /// use oncekey::{Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// store.record("order-1", Fingerprint::NONE, b"receipt")?;
    /// let text = store.stats().to_openmetrics();
    /// assert!(text.contains("\n# TYPE oncekey_completed counter\n"));
    /// assert!(text.contains("\noncekey_completed_total 1\n"));
    /// assert!(text.contains("\noncekey_in_doubt 0\n") && text.ends_with("\n# EOF\n"));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn to_openmetrics(&self) -> String {
        print(&[(None, self)])
    }

    /// Prints the figures of several stores as [`to_openmetrics`](Stats::to_openmetrics) does those of one, each with the
    /// label `store`.
    ///
    /// ```
    /// use oncekey::{Stats, Store};
    ///
    /// let (payments, mails) = (Store::in_memory()?, Store::in_memory()?);
    /// let text = Stats::openmetrics_of([("payments", &payments.stats()), ("mails", &mails.stats())]);
    /// assert!(text.contains("\noncekey_keys{store=\"payments\"} 0\noncekey_keys{store=\"mails\"} 0\n"));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn openmetrics_of<'a>(stores: impl IntoIterator<Item = (&'a str, &'a Stats)>) -> String {
        let stores: Vec<_> = stores.into_iter().map(|(name, stats)| (Some(name), stats)).collect();
        print(&stores)
    }
}

/// The value of a metric.
enum Value {
    Count(u64),
    Milliseconds(u64),
    Flag(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Count(count) => write!(out, "{count}"),
            Value::Milliseconds(ms) => write!(out, "{}.{:03}", ms / 1_000, ms % 1_000),
            Value::Flag(flag) => write!(out, "{}", u8::from(*flag)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Gauge,
    Counter,
}
use Type::{Counter, Gauge};

/// One metric.
struct Metric {
    /// The name without `oncekey_`. It ends with the unit, if there is one.
    name: &'static str,
    kind: Type,
    help: &'static str,
    value: fn(&Stats) -> Value,
}

const fn metric(name: &'static str, kind: Type, help: &'static str, value: fn(&Stats) -> Value) -> Metric {
    Metric { name, kind, help, value }
}

/// The units that a name may end with.
const UNITS: [&str; 2] = ["bytes", "seconds"];

fn number(count: usize) -> Value {
    Value::Count(count as u64)
}

#[rustfmt::skip]
const METRICS: &[Metric] = &[
    metric("unfinished", Gauge, "Operations that began and have not ended.", |stats| number(stats.unfinished)),
    metric("in_progress", Gauge, "Unfinished operations on which a lease is alive.", |stats| number(stats.in_progress)),
    metric("in_doubt", Gauge, "Unfinished operations that are in doubt or stopped.", |stats| number(stats.in_doubt)),
    metric("stopped", Gauge, "Those in doubt of which nothing is to be found out: the next attempt goes on.", |stats| number(stats.stopped)),
    metric("unfinished_steps", Gauge, "Steps of unfinished operations, with their inputs.", |stats| number(stats.unfinished_steps)),
    metric("unfinished_bytes", Gauge, "Memory of the unfinished operations and their steps.", |stats| number(stats.unfinished_bytes)),
    metric("oldest_unfinished_age_seconds", Gauge, "Time since the last attempt of the oldest unfinished operation began.", |stats| Value::Milliseconds(stats.oldest_unfinished_age_ms())),
    metric("messages", Gauge, "Messages that are not acknowledged.", |stats| number(stats.messages)),
    metric("message_bytes", Gauge, "Length of the records of these messages.", |stats| Value::Count(stats.message_bytes)),
    metric("oldest_message_age_seconds", Gauge, "Time since the oldest of these messages was emitted.", |stats| Value::Milliseconds(stats.oldest_message_age_ms())),
    metric("leases", Gauge, "Leases and doubts that are alive.", |stats| number(stats.leases)),
    metric("poisoned", Gauge, "1 if a write or a sync has failed.", |stats| Value::Flag(stats.poisoned)),
    metric("replaced", Gauge, "1 if the path leads to a different file.", |stats| Value::Flag(stats.replaced)),
    metric("unreadable_records", Gauge, "Records that are known to be unreadable.", |stats| Value::Count(stats.unreadable_records)),
    metric("reclaiming_stopped", Gauge, "1 if the oldest segment cannot be read, so that the file grows.", |stats| Value::Flag(stats.reclaiming_stopped)),
    metric("copy_on_write", Gauge, "1 if a completion may find the disk full.", |stats| Value::Flag(stats.copy_on_write)),
    metric("keys", Gauge, "Keys in the index.", |stats| number(stats.keys)),
    metric("index_bytes", Gauge, "Memory of the index.", |stats| number(stats.index_bytes)),
    metric("segments", Gauge, "Segments of the log.", |stats| Value::Count(stats.segments)),
    metric("file_bytes", Gauge, "Length of the file.", |stats| Value::Count(stats.file_bytes)),
    metric("free_bytes", Gauge, "Space within the file that is free for new records.", |stats| Value::Count(stats.free_bytes)),
    metric("reserved_bytes", Gauge, "Space that is reserved for ending the operations in progress.", |stats| Value::Count(stats.reserved_bytes)),
    metric("record_bytes", Gauge, "Length of all records in the log.", |stats| Value::Count(stats.record_bytes)),
    metric("live_bytes", Gauge, "Length of the records that are live. An estimate.", |stats| Value::Count(stats.live_bytes())),
    metric("dead_bytes", Gauge, "Length of the records that are superseded or expired. An estimate.", |stats| Value::Count(stats.dead_bytes)),
    metric("store_time_seconds", Gauge, "Store time, since the Unix epoch.", |stats| Value::Milliseconds(stats.store_time_ms)),
    metric("begun", Counter, "Attempts that began.", |stats| Value::Count(stats.begun)),
    metric("completed", Counter, "Operations that were completed.", |stats| Value::Count(stats.completed)),
    metric("released", Counter, "Attempts that were released.", |stats| Value::Count(stats.released)),
    metric("forgotten", Counter, "Keys that were forgotten.", |stats| Value::Count(stats.forgotten)),
    metric("replayed", Counter, "Calls that returned a recorded result.", |stats| Value::Count(stats.replayed)),
    metric("mismatched", Counter, "Calls whose key belongs to a different request.", |stats| Value::Count(stats.mismatched)),
    metric("fenced", Counter, "Calls whose attempt no longer owns the operation.", |stats| Value::Count(stats.fenced)),
    metric("doubted", Counter, "Attempts that ended in doubt.", |stats| Value::Count(stats.doubted)),
    metric("reconciled", Counter, "Doubts that were resolved.", |stats| Value::Count(stats.reconciled)),
    metric("syncs", Counter, "Syncs for changes.", |stats| Value::Count(stats.syncs)),
    metric("frames", Counter, "Frames that were written.", |stats| Value::Count(stats.frames)),
    metric("records", Counter, "Records that were written, moved ones included.", |stats| Value::Count(stats.records)),
    metric("moved_bytes", Counter, "Length of the live records that reclaiming moved.", |stats| Value::Count(stats.moved_bytes)),
    metric("segments_retired", Counter, "Segments that reclaiming retired.", |stats| Value::Count(stats.segments_retired)),
    metric("clock_steps_not_followed", Counter, "Steps of the wall clock by more than ten seconds.", |stats| Value::Count(stats.clock_steps_not_followed)),
];

fn print(stores: &[(Option<&str>, &Stats)]) -> String {
    let mut text = String::new();
    for metric in METRICS {
        // Writing to a string cannot fail.
        let _ = print_metric(&mut text, metric, stores);
    }
    text.push_str("# EOF\n");
    text
}

fn print_metric(text: &mut String, metric: &Metric, stores: &[(Option<&str>, &Stats)]) -> fmt::Result {
    let Metric { name, kind, help, value } = metric;
    let (type_name, suffix) = if *kind == Counter { ("counter", "_total") } else { ("gauge", "") };
    writeln!(text, "# TYPE oncekey_{name} {type_name}")?;
    if let Some(unit) =
        UNITS.into_iter().find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
    {
        writeln!(text, "# UNIT oncekey_{name} {unit}")?;
    }
    writeln!(text, "# HELP oncekey_{name} {help}")?;
    for (store, stats) in stores {
        let value = value(stats);
        match store {
            None => writeln!(text, "oncekey_{name}{suffix} {value}")?,
            Some(store) => {
                let store = store.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                writeln!(text, "oncekey_{name}{suffix}{{store=\"{store}\"}} {value}")?;
            }
        }
    }
    Ok(())
}
