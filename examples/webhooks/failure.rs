//! Errors that end the run, and how messages are printed.

use std::io::{self, Write};

/// An error that ends the run.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Prints to standard error. Unlike `eprintln!` it does not panic if standard error is closed.
pub(crate) fn print_error(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
