//! A storm: hostile traffic against a real store on a real disk, and a check that every charge happened exactly once.
//!
//! ```text
//! cargo run --release --example storm -- [--intents N] [--threads N] [--kills N] [--seed N]
//! ```
//!
//! The operations under test are in `charge.rs`, twenty lines each, as in a program that uses oncekey: `charge_once`, and for
//! every fourth order `charge_in_parts`, a job of three steps. The rest of this program attacks them:
//!
//! - The **service** (`service.rs`: this program again, as a child process) processes orders with many threads. Every order
//!   is requested several times, at the same moment and again later, and occasionally a different request uses a key that
//!   is already taken. Attempts at a charge panic, before or after it happens, and replies are lost.
//! - The **outside world** (`ledger.rs`) is a file to which every charge appends an entry. It takes no idempotency keys
//!   and accepts duplicates. The service resolves doubts by looking up charges in it.
//! - The **supervisor** (`supervisor.rs`: this process) kills the service with SIGKILL at random moments, also while the
//!   service is recovering from the last kill. The supervisor then starts the service on the same store, from the first
//!   request without a result, and remembers every result. It sends no requests: the service derives them from the seed.
//!
//! Each charge emits a message, and a thread of the service publishes it to a file.
//!
//! At the end the supervisor compares its results with the ledger, the store and the published messages (`verdict.rs`). The
//! exit status is 1 if any charge happened twice, if any acknowledged result is gone or has changed, or if the message of a
//! charge was not published or was published with different contents.
//!
//! A kill does not affect the cache of the operating system, so the storm does not test power loss.

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
mod supervisor;

fn main() -> ExitCode {
    let passed = match settings::parse(std::env::args().skip(1)) {
        Ok(Some(settings)) => match &settings.serve_in {
            Some(directory) => service::run(directory, &settings).map(|()| true),
            None => supervisor::run(&settings),
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
