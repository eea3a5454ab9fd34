//! A consumer of webhooks that are delivered at least once: repeatedly, late, out of order, and sometimes under an id that
//! was used for a different delivery. The side effect of a delivery is one line in a ledger, and it happens exactly once.
//!
//! ```text
//! cargo run --release --example webhooks -- FILE --store PATH --ledger PATH [--threads N] [--answers PATH]
//! ```
//!
//! FILE contains one delivery on each line: a JSON object with `delivery`, `event` and `payload`. `delivery` is the id, which
//! a redelivery repeats and which serves as the idempotency key. Each line is counted as one of these:
//!
//! - **performed**: the first delivery with this id. Its result is the number of the ledger entry. This number cannot be
//!   computed again, so it has to be stored.
//! - **replayed**: a redelivery. Its result is the entry number of the first delivery.
//! - **mismatched**: the id was used before with a different event or payload. The delivery is refused.
//! - **rejected**: the line is not a delivery.
//!
//! The program prints the counts as one line of JSON. Refusals and rejections go to standard error as
//! `FILE:LINE: reason` and do not change the exit status: another run could not process those lines either, so a
//! supervisor that restarts failed programs would restart this one for ever. The exit status is 1 if the store, the
//! ledger or another file fails, and 2 if the arguments are wrong.
//!
//! If you kill the program at any moment and run it again on the same store and ledger, the ledger still contains each
//! delivery exactly once. Each delivery takes three durable steps, in this order:
//!
//! 1. the store records that the attempt began;
//! 2. the ledger line is written and synced;
//! 3. the store records the result.
//!
//! After a crash between 1 and 3 the operation is in doubt. The next run looks up the delivery in the ledger. If the entry is
//! there, its number becomes the result; otherwise the delivery is performed. (`reconciled` counts the entries that were found.
//! They are also counted in `replayed`.)

mod answer;
mod arguments;
mod delivery;
mod failure;
mod json;
mod ledger;
mod queues;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use oncekey::{Error, Options, Outcome, RunError, Store};

use answer::{Answer, Answers, Counts};
use arguments::{Arguments, USAGE};
use delivery::Delivery;
use failure::{Failure, print_error};
use json::JsonCodec;
use ledger::{Ledger, LedgerError, Receipt};

/// Performs a delivery once, however often it arrives. This function is the core of the example.
fn handle(
    store: &Store,
    ledger: &Ledger,
    delivery: &Delivery,
) -> Result<Answer, RunError<Receipt, LedgerError>> {
    let found_in_ledger = Cell::new(false);
    let outcome = store
        .operation(&delivery.id)
        .codec(JsonCodec)
        .request(&(&delivery.event, &delivery.payload))
        .reconcile(|_attempt| {
            // This lookup is authoritative, because this process has locked the ledger and every entry is synced before it is
            // in the map. A delivery that is not found was not performed.
            let found = ledger.find(&delivery.id);
            found_in_ledger.set(matches!(found, Ok(Some(_))));
            found
        })
        .release_if(|error: &LedgerError| error.nothing_was_written)
        .run(|_attempt| ledger.append(&delivery.id, &delivery.event));
    match outcome {
        Ok(Outcome::Done(receipt)) => Ok(Answer::Performed(receipt)),
        Ok(Outcome::AlreadyDone(receipt)) => {
            Ok(Answer::Replayed { receipt, reconciled: found_in_ledger.get() })
        }
        Err(RunError::Store(error @ Error::Mismatch { .. })) => {
            Ok(Answer::Mismatched { reason: error.to_string() })
        }
        // An empty or overlong id is the sender's mistake, as a missing id is.
        Err(RunError::Store(error @ Error::Key { .. })) => Ok(Answer::Rejected { reason: error.to_string() }),
        Err(error) => Err(error),
    }
}

/// How long a delivery is remembered: longer than the time until the last possible redelivery. If the retention is too short, a
/// delivery is performed twice; if it is too long, each delivery takes a few hundred bytes for longer. Senders redeliver for a
/// few days. A month also covers an outage of this program, or a person who repeats last week's deliveries.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(reason) => {
            print_error(&format!("webhooks: {reason}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let printed = run(&arguments).and_then(|counts| {
        let line = serde_json::to_string(&counts)?;
        writeln!(io::stdout(), "{line}").map_err(|error| format!("standard output: {error}"))?;
        Ok(())
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print_error(&format!("webhooks: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Opens the files, handles every delivery and closes the store.
fn run(arguments: &Arguments) -> Result<Counts, Failure> {
    let path = &arguments.deliveries;
    let input = File::open(path).map_err(|error| format!("{}: cannot open: {error}", path.display()))?;
    // Open the store before the ledger, so that the store's lock keeps a second run of this program away from both.
    let store = Options::new().retention(RETENTION).open(&arguments.store)?;
    let ledger = Ledger::open(&arguments.ledger)?;
    let answers = Answers::create(path, arguments.answers.as_deref())?;
    let counts =
        queues::run(input, arguments.threads, &answers, |delivery| handle(&store, &ledger, delivery))?;
    answers.close()?;
    store.close()?;
    Ok(counts)
}
