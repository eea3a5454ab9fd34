//! The output: progress during the storm, and the table at the end.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::settings::{Fallible, Settings};
use crate::verdict::Verdict;
use crate::wire::{Answer, Ending, LedgerAnswer, Source, is_in_parts};

/// The counts of a running storm. Each `Vec` contains the latencies of one kind of call, in microseconds.
///
/// Every call counts in `calls` and in exactly one of `performed`, `replayed`, `waited`, `reconciled`, `refused` and
/// `no_result`. A call that found an earlier attempt in doubt counts in `found_in_doubt` as well.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) kills: usize,
    pub(crate) kills_while_opening: usize,
    pub(crate) syncs: u64,
    calls: Vec<u32>,
    performed: Vec<u32>,
    replayed: Vec<u32>,
    waited: Vec<u32>,
    reconciled: Vec<u32>,
    refused: Vec<u32>,
    no_result: Vec<u32>,
    found_in_doubt: Vec<u32>,
    /// The number of attempts in doubt whose charge was in the ledger.
    doubts_charged: usize,
    /// The number of attempts in doubt whose charge was not in the ledger.
    doubts_not_charged: usize,
}

impl Tally {
    pub(crate) fn count(&mut self, answer: &Answer) {
        let micros = answer.micros;
        self.calls.push(micros);
        match answer.ending {
            Ending::Acknowledged(Source::Performed, _) => self.performed.push(micros),
            Ending::Acknowledged(Source::Replayed, _) => self.replayed.push(micros),
            Ending::Acknowledged(Source::Waited, _) => self.waited.push(micros),
            Ending::Acknowledged(Source::Reconciled, _) => self.reconciled.push(micros),
            Ending::Refused => self.refused.push(micros),
            Ending::TryAgain => self.no_result.push(micros),
            // This ends the storm with an error, so there is no table.
            Ending::Broken(_) => {}
        }
        if let Some(found) = answer.doubt {
            self.found_in_doubt.push(micros);
            self.doubts_charged += usize::from(found == LedgerAnswer::Charged);
            self.doubts_not_charged += usize::from(found == LedgerAnswer::NotCharged);
        }
    }
}

pub(crate) fn print(settings: &Settings, tally: &Tally, verdict: &Verdict) -> Fallible<()> {
    let intents = settings.intents as usize;
    let jobs = (0..settings.intents).filter(|intent| is_in_parts(*intent)).count();
    let opening = format!("{} of them while the store was being opened", tally.kills_while_opening);
    let doubts_unknown = tally.found_in_doubt.len() - tally.doubts_charged - tally.doubts_not_charged;
    let doubts = format!(
        "counted above too; in the ledger: {}, not in it: {}, no answer: {}",
        grouped(tally.doubts_charged),
        grouped(tally.doubts_not_charged),
        grouped(doubts_unknown)
    );
    // The cells are a name, a count, latencies and a remark.
    type Row<'a> = (&'a str, usize, &'a [u32], &'a str);
    fn count<'a>(name: &'a str, count: usize, remark: &'a str) -> Row<'a> {
        (name, count, &[], remark)
    }
    fn calls<'a>(name: &'a str, micros: &'a [u32], remark: &'a str) -> Row<'a> {
        (name, micros.len(), micros, remark)
    }
    let rows = [
        count("intents", intents, "orders, each to be charged once"),
        count("jobs", jobs, "of them, each to be charged in three parts, which are the steps of a job"),
        count("kills", tally.kills, &opening),
        calls("calls", &tally.calls, "the sum of the next six rows"),
        calls("performed", &tally.performed, "this call charged"),
        calls("replayed", &tally.replayed, "an earlier call had charged"),
        calls("waited", &tally.waited, "another thread was charging"),
        calls(
            "reconciled",
            &tally.reconciled,
            "an attempt in doubt had charged: its charge was in the ledger",
        ),
        calls("refused", &tally.refused, "a different request under the same key"),
        calls(
            "no result",
            &tally.no_result,
            "busy, in doubt, or a planned failure: the request is called again",
        ),
        calls("found in doubt", &tally.found_in_doubt, &doubts),
        count("duplicates", verdict.duplicates, "charges that happened again"),
        count("lost", verdict.lost, "acknowledged results that are gone or have changed"),
    ];

    let mut out = io::stdout().lock();
    writeln!(out, "{:20}{:>9}{:>11}{:>11}", "", "count", "median", "p99")?;
    for (name, count, micros, remark) in rows {
        let (median, late) = (percentile(micros, 50), percentile(micros, 99));
        writeln!(out, "{name:20}{:>9}{median:>11}{late:>11}   {remark}", grouped(count))?;
    }
    let syncs_per_operation = tally.syncs as f64 / f64::from(settings.intents);
    writeln!(out, "{:20}{syncs_per_operation:>9.2}\n", "syncs per operation")?;

    for complaint in verdict.complaints.iter().take(MAX_COMPLAINTS) {
        writeln!(out, "{complaint}")?;
    }
    let (intents, calls, kills) = (grouped(intents), grouped(tally.calls.len()), grouped(tally.kills));
    if verdict.passed() {
        writeln!(
            out,
            "{intents} intents, {calls} calls, {kills} kills: every charge happened exactly once, and every \
             acknowledged result is still the same, byte for byte."
        )?;
    } else {
        writeln!(
            out,
            "FAILED: {} charges too many, {} results lost or changed.",
            grouped(verdict.duplicates),
            grouped(verdict.lost)
        )?;
    }
    Ok(())
}

/// The maximum number of complaints that are printed.
const MAX_COMPLAINTS: usize = 5;

/// Formats a percentile of the latencies. Returns an empty string if there are none.
fn percentile(micros: &[u32], percent: usize) -> String {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    match sorted.get(rank.saturating_sub(1)) {
        Some(micros @ 0..1_000) => format!("{micros} µs"),
        Some(micros) => format!("{:.2} ms", f64::from(*micros) / 1_000.0),
        None => String::new(),
    }
}

/// Formats 1234567 as 1,234,567.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Shows the progress of the storm on standard error: a bar on a terminal, a line every few seconds elsewhere.
pub(crate) struct ProgressBar {
    on_terminal: bool,
    shown: Instant,
}

impl ProgressBar {
    pub(crate) fn new() -> ProgressBar {
        ProgressBar { on_terminal: io::stderr().is_terminal(), shown: Instant::now() }
    }

    pub(crate) fn show(&mut self, done: u32, total: u32, kills: usize) {
        const WIDTH: usize = 40;
        let interval = Duration::from_millis(if self.on_terminal { 100 } else { 3_000 });
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let percent = 100 * done as usize / total as usize;
        let text = format!("{percent:3}% of {} requests, {kills} kills", grouped(total as usize));
        if self.on_terminal {
            let bar = "#".repeat(WIDTH * percent / 100);
            eprint!("\r[{bar:.<WIDTH$}] {text}");
        } else {
            eprintln!("{text}");
        }
    }

    /// Erases the bar, before the table is printed.
    pub(crate) fn clear(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
