//! A storm: hostile traffic against a real store on a real disk, and a check that every charge happened exactly once.
//!
//! ```text
//! cargo run --release --example storm -- [--intents N] [--threads N] [--kills N] [--seed N]
//! ```
//!
//! The operation under test is `charge_once` in `charge.rs`: twenty lines, as a program that uses oncekey has them.
//! Everything else attacks it:
//!
//! - The **service** (`service.rs`: this program again, as a child process) charges from many threads. Every order is
//!   requested several times, at the same moment and again later, and now and then another request uses a key that is
//!   taken. Some charges panic, before or after they happened; some replies are lost.
//! - The **outside world** (`ledger.rs`) is a file to which every charge appends an entry. It takes no idempotency keys
//!   and accepts duplicates. The service can look a charge up in it, and resolves doubts that way.
//! - The **client** (`client.rs`: this process) kills the service with SIGKILL at random moments, also while the service
//!   recovers from the last kill. It starts the service again on the same store, sends again what was not answered, and
//!   remembers every result.
//!
//! At the end the client compares the results that it got, the ledger and the store (`verdict.rs`). The exit status is 1
//! if one charge happened twice, or if one acknowledged result is gone or has changed.
//!
//! A kill does not lose what the operating system has cached, so this does not show what a power loss does.

use std::io::{self, Write};
use std::process::ExitCode;

mod dice;
mod settings;
mod wire;
mod ledger;
mod charge;
mod service;
mod verdict;
mod table;
mod client;

fn main() -> ExitCode {
    let passed = match settings::parse(std::env::args().skip(1)) {
        Ok(Some(settings)) => match &settings.serve_in {
            Some(directory) => service::run(directory, &settings).map(|()| true),
            None => client::run(&settings),
        },
        Ok(None) => writeln!(io::stdout(), "{}", settings::USAGE).map(|()| true).map_err(Into::into),
        Err(problem) => {
            eprintln!("storm: {problem}\n\n{}", settings::USAGE);
            return ExitCode::from(2);
        }
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error}");
            ExitCode::FAILURE
        }
    }
}
