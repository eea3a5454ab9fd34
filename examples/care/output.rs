//! A table for people, JSON lines for programs, and a progress bar on a terminal.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use oncekey::Progress;
use serde_json::Value;

/// Prints rows as a table, or as one JSON object a line.
pub(crate) struct Output {
    columns: &'static [&'static str],
    is_json: bool,
    rows: Vec<Vec<Value>>,
}

impl Output {
    pub(crate) fn new(columns: &'static [&'static str], is_json: bool) -> Output {
        Output { columns, is_json, rows: Vec::new() }
    }

    /// Adds a row. As JSON it is printed at once, because a store may have more keys than fit in memory.
    pub(crate) fn row(&mut self, row: Vec<Value>) {
        if self.is_json {
            let fields = self.columns.iter().map(|column| (*column).to_owned()).zip(row);
            println!("{}", Value::Object(fields.collect()));
        } else {
            self.rows.push(row);
        }
    }

    /// Prints the table.
    pub(crate) fn finish(self) {
        if self.is_json {
            return;
        }
        let text = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let header = self.columns.iter().map(|column| (*column).to_owned()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(header)
            .chain(self.rows.iter().map(|row| row.iter().map(text).collect()))
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}

/// Prints one object: a line for each field, or JSON.
pub(crate) fn print_fields(fields: Vec<(&'static str, Value)>, is_json: bool) {
    if is_json {
        println!(
            "{}",
            Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        );
        return;
    }
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        println!("{name:width$}  {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
}

/// Draws a progress bar on the terminal, if there is one.
pub(crate) fn bar(progress: &Progress) -> ControlFlow<()> {
    const WIDTH: usize = 40;
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let marks = (0..WIDTH).filter(|mark| (*mark as f64) < WIDTH as f64 * progress.fraction()).count();
        let end = if progress.is_done() { "\r\x1b[K" } else { "" };
        let percent = 100.0 * progress.fraction();
        let _ = write!(terminal, "\r[{:WIDTH$}] {percent:3.0} %{end}", "#".repeat(marks));
    }
    ControlFlow::Continue(())
}
