//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::conditions::{Surroundings, Work};
use crate::contestant::ONCEKEY;
use crate::operations::Case;
use crate::roster::{self, Setup};

pub const USAGE: &str = "\
usage: compare COMMAND [OPTIONS]

  commit    durable operations: record, begin and complete, rerun
  conditions
            durable records with pauses in between, on one core, beside a busy process
  replay    lookups of known and of unknown keys
  buffered  records that are not synced, and batches of records that are
  open      opening a closed store, and a store after a crash
  reclaim   durable records while most operations expire
  memory    memory and disk for each key
  scale     durable records in stores with more and more operations
  all       all of these
  draw      plots and tables of the results
  turn      one turn of one contestant, whose figures are printed as JSON

  --rounds N       the number of rounds; every store has one turn in each (default: 5)
  --seconds S      how long a turn is measured (default: 2)
  --threads N,..   the numbers of threads for commit, conditions and turn (default: 1,2,8,64)
  --keys N,..      the numbers of operations in the store
                   (default: 1000,10000,100000,1000000,10000000; for reclaim: 1000000)
  --only NAME,..   the stores to measure, by name or by prefix of a name (default: all)
  --dir PATH       a directory on the disk to be measured (default: the working directory)
  --out FILE       the file to which results are added (default: results.json)
  --drawings PATH  the directory into which `draw` writes (default: drawings)

options of turn:
  --contestant NAME    a store, or floor (default: oncekey)
  --case NAME          record, begin-and-complete, rerun or buffered (default: record)
  --work busy:US       what a thread does between two operations: it computes (busy) or sleeps
         sleep:US      (sleep) for some microseconds (default: nothing)
  --cores N            the number of cores (default: all)
  --neighbours N       0 or 1 processes that compete for the cores (default: 0)";

/// What the command `turn` measures.
#[derive(Clone)]
pub struct Turn {
    pub contestant: String,
    pub case: Case,
    pub work: Work,
    pub surroundings: Surroundings,
}

/// The parsed and checked command line.
#[derive(Clone)]
pub struct Arguments {
    pub command: String,
    pub rounds: u32,
    pub duration: Duration,
    pub threads: Vec<u32>,
    /// The numbers of operations in the store; `None` for the default of the command.
    pub keys: Option<Vec<u64>>,
    pub setups: Vec<Setup>,
    pub directory: PathBuf,
    pub out: PathBuf,
    pub drawings: PathBuf,
    pub turn: Turn,
}

fn list<T: std::str::FromStr>(option: &str, text: &str) -> Result<Vec<T>, String> {
    let parse = |item: &str| item.parse().map_err(|_| format!("{option}: {item} is not a number"));
    text.split(',').map(parse).collect()
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments {
            command: words.next().ok_or("no command")?,
            rounds: 5,
            duration: Duration::from_secs(2),
            threads: vec![1, 2, 8, 64],
            keys: None,
            setups: roster::all(),
            directory: PathBuf::from("."),
            out: PathBuf::from("results.json"),
            drawings: PathBuf::from("drawings"),
            turn: Turn {
                contestant: ONCEKEY.to_owned(),
                case: Case::Record,
                work: Work::None,
                surroundings: Surroundings::default(),
            },
        };
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            let not_a_number = |_| format!("{option}: {value} is not a number");
            match option.as_str() {
                "--rounds" => arguments.rounds = value.parse().map_err(not_a_number)?,
                "--seconds" => {
                    let seconds: f64 =
                        value.parse().map_err(|_| format!("{option}: {value} is not a number"))?;
                    arguments.duration =
                        Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                }
                "--threads" => arguments.threads = list(&option, &value)?,
                "--keys" => arguments.keys = Some(list(&option, &value)?),
                "--only" => arguments.setups = chosen(&value)?,
                "--dir" => arguments.directory = PathBuf::from(value),
                "--out" => arguments.out = PathBuf::from(value),
                "--drawings" => arguments.drawings = PathBuf::from(value),
                "--contestant" => arguments.turn.contestant = value,
                "--case" => arguments.turn.case = case(&value)?,
                "--work" => arguments.turn.work = work(&value)?,
                "--cores" => {
                    let cores: usize = value.parse().map_err(not_a_number)?;
                    arguments.turn.surroundings.cores = Some(cores.max(1));
                }
                "--neighbours" => {
                    let neighbours: u32 = value.parse().map_err(not_a_number)?;
                    arguments.turn.surroundings.has_neighbour = neighbours > 0;
                }
                unknown => return Err(format!("{unknown}: no such option")),
            }
        }
        if arguments.rounds == 0 || arguments.duration.is_zero() || arguments.threads.contains(&0) {
            return Err("nothing would be measured".into());
        }
        Ok(arguments)
    }

    /// Returns the numbers of operations in the store, to be measured one after the other.
    pub fn keys(&self) -> Vec<u64> {
        self.keys.clone().unwrap_or_else(|| vec![1_000, 10_000, 100_000, 1_000_000, 10_000_000])
    }
}

/// Returns the setups whose names begin with one of these comma-separated names.
fn chosen(names: &str) -> Result<Vec<Setup>, String> {
    let mut setups = roster::all();
    let names: Vec<String> = names.split(',').map(str::to_lowercase).collect();
    let is_named = |name: &String, setup: &Setup| setup.name.to_lowercase().starts_with(name.as_str());
    if let Some(unknown) = names.iter().find(|name| !setups.iter().any(|setup| is_named(name, setup))) {
        return Err(format!("{unknown}: no such store in this build"));
    }
    setups.retain(|setup| names.iter().any(|name| is_named(name, setup)));
    Ok(setups)
}

/// Returns the case with this name, in which hyphens may replace the spaces.
fn case(name: &str) -> Result<Case, String> {
    let is_named = |case: &Case| case.name().replace(' ', "-") == name.replace(' ', "-");
    Case::ALL.into_iter().find(is_named).ok_or_else(|| format!("{name}: no such case"))
}

/// Parses what a thread does between two operations.
fn work(text: &str) -> Result<Work, String> {
    let (kind, microseconds) = text.split_once(':').ok_or_else(|| format!("{text}: not KIND:US"))?;
    let microseconds = microseconds.parse().map_err(|_| format!("{text}: not KIND:US"))?;
    match kind {
        "busy" => Ok(Work::Busy(Duration::from_micros(microseconds))),
        "sleep" => Ok(Work::Sleeping(Duration::from_micros(microseconds))),
        _ => Err(format!("{kind}: neither busy nor sleep")),
    }
}
