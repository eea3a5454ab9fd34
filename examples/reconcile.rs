//! A provider that takes no idempotency keys, and a crash after the charge, before its result is recorded.
//!
//! After such a crash only the provider knows whether the charge happened. `reconcile` looks up the charge. If it
//! finds one, the store records its receipt as the result; otherwise the charge runs now.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use oncekey::{Outcome, Store};

fn pay(directory: &Path, crashes: bool) -> Result<Outcome<String>, Box<dyn Error>> {
    let store = Store::open(directory.join("payments.once"))?;
    let provider = Provider(directory.join("statement.txt"));
    let outcome = store
        .operation("order-1729")
        .request(&("charge", "account 42", 1_000))
        .reconcile(|attempt| provider.find(&attempt.token()))
        .run(|attempt| provider.charge(&attempt.token(), crashes))?;
    store.close()?;
    Ok(outcome)
}

/// A provider that charges again on every call of `charge`. The token is only a reference on its statement.
struct Provider(PathBuf);

impl Provider {
    fn charge(&self, reference: &str, crashes: bool) -> io::Result<String> {
        let line = format!("1000 cents, {reference}");
        writeln!(OpenOptions::new().create(true).append(true).open(&self.0)?, "{line}")?;
        println!("  provider: charges {line}");
        if crashes {
            println!("  this process dies before it records the receipt");
            process::exit(1); // Like a kill: no destructor runs.
        }
        Ok(line)
    }

    fn find(&self, reference: &str) -> io::Result<Option<String>> {
        println!("  provider: is asked about {reference}");
        let statement = match fs::read_to_string(&self.0) {
            // If the crash came before the very first charge, there is no statement: nothing was charged.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            statement => statement?,
        };
        Ok(statement.lines().find(|line| line.split(", ").nth(1) == Some(reference)).map(str::to_owned))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // With a directory as its argument, this is the first process, which crashes.
    if let Some(directory) = std::env::args_os().nth(1) {
        return pay(Path::new(&directory), true).map(drop);
    }
    let directory = tempfile::tempdir()?;
    println!("The first process:");
    Command::new(std::env::current_exe()?).arg(directory.path()).status()?;
    println!("The next process:");
    println!("  {:?}", pay(directory.path(), false)?);
    println!("The statement of the provider:");
    print!("  {}", fs::read_to_string(directory.path().join("statement.txt"))?);
    Ok(())
}
