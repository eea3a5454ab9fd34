//! A storm: hostile traffic against a real store on a real disk, and a proof that every act happened once.
//!
//! ```text
//! cargo run --release --example storm -- [--intents N] [--threads N] [--kills N] [--seed N]
//! ```
//!
//! - The **service** (this program again, as a child process) performs acts with many threads, under the guard of the
//!   store. Every intent comes several times, at the same moment and again later, and now and then another request
//!   comes under a key that is taken. Some acts panic, before or after the deed; some replies are lost.
//! - The **outside world** is a ledger: a file to which every act appends an entry. It does not mind repetitions. It can
//!   be asked whether an act happened, and that is how the service settles what is in doubt.
//! - The **client** (this process) kills the service with SIGKILL at random moments, also while it recovers from the last
//!   kill, starts it again on the same store, and sends again what was not answered. It writes down every result.
//!
//! At the end the client's notes, the ledger and the store are compared. The exit status is 1 if one act happened twice,
//! or if one acknowledged result is gone or has changed.
//!
//! What this does not show is power loss: a kill leaves the operating system's cache alone.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// What can fail for reasons that lie outside of this program.
type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

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

#[path = "storm/settings.rs"]
mod settings;

#[path = "storm/dice.rs"]
mod dice;

#[path = "storm/wire.rs"]
mod wire;

#[path = "storm/ledger.rs"]
mod ledger;

#[path = "storm/service.rs"]
mod service;

#[path = "storm/client.rs"]
mod client;

#[path = "storm/verdict.rs"]
mod verdict;

#[path = "storm/table.rs"]
mod table;
