//! The command line.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::dice;

pub(crate) const USAGE: &str = "\
usage: storm [--intents N] [--threads N] [--kills N] [--seed N]

  --intents N   the number of orders, each to be charged once        (default 50000)
  --threads N   the number of threads that charge them               (default 16)
  --kills N     the number of kills of the process that charges them (default 100)
  --seed N      determines the failures, as far as threads allow     (default: random)

Exit status: 0 if every charge happened once and every result stayed the same, 1 if not, 2 for wrong arguments.";

/// The number of requests for each intent.
pub(crate) const REQUESTS_PER_INTENT: u32 = 5;

/// A result with any kind of error.
pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) struct Settings {
    pub(crate) intents: u32,
    pub(crate) threads: u32,
    pub(crate) kills: u32,
    pub(crate) seed: u64,
    /// The directory of store and ledger, if this process is the service. Only the supervisor passes this argument.
    pub(crate) serve_in: Option<PathBuf>,
    /// The first request that the service processes.
    pub(crate) first_request: u32,
}

impl Settings {
    /// Returns the number of requests.
    pub(crate) fn requests(&self) -> u32 {
        self.intents * REQUESTS_PER_INTENT
    }
}

/// Parses the command line. Returns `None` if the user asks for help.
pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Settings>, String> {
    // Keep the seed short enough to be typed in again.
    let seed = dice::unguessable() >> 40;
    let mut settings =
        Settings { intents: 50_000, threads: 16, kills: 100, seed, serve_in: None, first_request: 0 };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--intents" => settings.intents = number(&word, &value()?, 1..=50_000_000)?,
            "--threads" => settings.threads = number(&word, &value()?, 1..=1_000)?,
            "--kills" => settings.kills = number(&word, &value()?, 0..=100_000)?,
            "--seed" => settings.seed = number(&word, &value()?, 0..=u64::MAX)?,
            "--serve-in" => settings.serve_in = Some(PathBuf::from(value()?)),
            "--from" => settings.first_request = number(&word, &value()?, 0..=u32::MAX)?,
            _ => return Err(format!("unknown argument {word:?}")),
        }
    }
    Ok(Some(settings))
}

fn number<N>(name: &str, text: &str, range: RangeInclusive<N>) -> Result<N, String>
where
    N: FromStr + PartialOrd + Display,
{
    let (min, max) = range.into_inner();
    match text.parse() {
        Ok(number) if min <= number && number <= max => Ok(number),
        _ => Err(format!("{name} needs a number from {min} to {max}, not {text:?}")),
    }
}
