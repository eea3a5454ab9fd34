//! Takes care of a store's file from the command line: lists keys, resolves doubts, shows figures, frees space.
//!
//! ```text
//! cargo run --example care -- list PATH                  while the service runs, or after a crash
//! cargo run --example care -- resolve PATH KEY --absent  while the service is stopped
//! ```
//!
//! Without arguments it prints all verbs. Each verb is a function in a module of its own, and a row in [`VERBS`].

mod arguments;
mod backup;
mod compact;
mod forget;
mod list;
mod output;
mod repair;
mod resolve;
mod stats;
mod verify;

use std::process::ExitCode;

use arguments::Arguments;

/// The error of a verb.
type Failure = Box<dyn std::error::Error>;

/// One verb of the program.
struct Verb {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    /// The options that take a value, and those that do not.
    options: (&'static [&'static str], &'static [&'static str]),
    run: fn(&mut Arguments) -> Result<(), Failure>,
}

const VERBS: &[Verb] = &[
    Verb {
        name: "list",
        usage: "list PATH [--unfinished] [--scope SCOPE] [--status STATUS] [--json]",
        help: "List keys, beside the process that has the store open.",
        options: (&["--scope", "--status"], &["--unfinished", "--json"]),
        run: list::run,
    },
    Verb {
        name: "resolve",
        usage: "resolve PATH KEY [--scope SCOPE] (--absent | --completed RESULT | --without-result) [--wait SECONDS] [--json]",
        help: "End an operation in doubt, once you know whether its side effect happened.",
        options: (&["--scope", "--completed", "--wait"], &["--absent", "--without-result", "--json"]),
        run: resolve::run,
    },
    Verb {
        name: "stats",
        usage: "stats PATH [--openmetrics] [--wait SECONDS] [--json]",
        help: "Open the store and show its figures.",
        options: (&["--wait"], &["--openmetrics", "--json"]),
        run: stats::run,
    },
    Verb {
        name: "forget",
        usage: "forget PATH --scope SCOPE [--wait SECONDS] [--json]",
        help: "Forget every key of a scope.",
        options: (&["--scope", "--wait"], &["--json"]),
        run: forget::run,
    },
    Verb {
        name: "compact",
        usage: "compact PATH [--wait SECONDS] [--json]",
        help: "Free dead space and shorten the file.",
        options: (&["--wait"], &["--json"]),
        run: compact::run,
    },
    Verb {
        name: "verify",
        usage: "verify PATH [--json]",
        help: "Check the whole file. Nothing is written.",
        options: (&[], &["--json"]),
        run: verify::run,
    },
    Verb {
        name: "backup",
        usage: "backup PATH TO [--wait SECONDS] [--json]",
        help: "Copy the store into a new file.",
        options: (&["--wait"], &["--json"]),
        run: backup::run,
    },
    Verb {
        name: "repair",
        usage: "repair PATH TO [--json]",
        help: "Save what a damaged file still holds into a new file.",
        options: (&[], &["--json"]),
        run: repair::run,
    },
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        eprintln!("usage: care VERB PATH ..");
        for verb in VERBS {
            eprintln!("  {}\n      {}", verb.usage, verb.help);
        }
        eprintln!("Keys and scopes are shown, and read, with bytes that are not printable as \\xNN.");
        return ExitCode::from(2);
    };
    let mut arguments = match Arguments::parse(words, verb.options) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("care: {problem}\nusage: care {}", verb.usage);
            return ExitCode::from(2);
        }
    };
    match (verb.run)(&mut arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("care: {error}");
            ExitCode::FAILURE
        }
    }
}
