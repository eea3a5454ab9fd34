//! The command line.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

pub(crate) const USAGE: &str =
    "usage: webhooks FILE --store PATH --ledger PATH [--threads N] [--answers PATH]

  FILE            the deliveries, one JSON object on each line: delivery, event, payload
  --store PATH    the idempotency store; created if it does not exist
  --ledger PATH   the ledger, to which each delivery adds one line; created if it does not exist
  --threads N     the number of threads that handle deliveries (default: the number of processors)
  --answers PATH  a new file for the answer to each line, as its sender would get it";

/// The parsed command line.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) deliveries: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) ledger: PathBuf,
    pub(crate) threads: NonZeroUsize,
    pub(crate) answers: Option<PathBuf>,
}

impl Arguments {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
        let (mut deliveries, mut store, mut ledger, mut threads, mut answers) =
            (None, None, None, None, None);
        while let Some(argument) = arguments.next() {
            let (slot, value) = match argument.to_str() {
                Some("--store") => (&mut store, arguments.next()),
                Some("--ledger") => (&mut ledger, arguments.next()),
                Some("--threads") => (&mut threads, arguments.next()),
                Some("--answers") => (&mut answers, arguments.next()),
                Some(option) if option.starts_with("--") => return Err(format!("unknown option {option}")),
                _ => (&mut deliveries, Some(argument.clone())),
            };
            let name = argument.display();
            let value = value.ok_or_else(|| format!("{name} needs a value"))?;
            if slot.replace(value).is_some() {
                return Err(format!("{name} is one argument too many"));
            }
        }
        let threads = match threads {
            Some(number) => number
                .to_str()
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| format!("--threads needs a number from 1, not {}", number.display()))?,
            None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        Ok(Arguments {
            deliveries: deliveries.ok_or("FILE is missing")?.into(),
            store: store.ok_or("--store is missing")?.into(),
            ledger: ledger.ok_or("--ledger is missing")?.into(),
            threads,
            answers: answers.map(PathBuf::from),
        })
    }
}
