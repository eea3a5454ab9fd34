//! What was asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::contestant::{self, Kind};

pub const USAGE: &str = "\
usage: compare COMMAND [OPTIONS]

  commit    durable operations: record, begin and complete, rerun
  replay    lookups of known and of unknown keys
  buffered  records that are not synced, and batches that are
  open      opening what was closed, and what a crash left
  reclaim   durable records while most of what is there expires
  memory    memory and disk for each key
  scale     durable records with more and more operations there
  all       all of these
  draw      plots and tables of what was measured, into a directory

  --rounds N       rounds, everybody once in each; 5
  --seconds S      for how long each is measured in a round; 2
  --threads N,..   for commit; 1,8,64
  --keys N,..      operations that are there; 1000,10000,100000,1000000,10000000 (reclaim: 1000000)
  --only NAME,..   of the stores; all. A prefix of a name will do
  --dir PATH       where files are made, on the disk that is to be measured; the working directory
  --out FILE       results are added to it; results.json
  --drawings PATH  where `draw` puts what it draws; drawings";

/// The options, checked.
#[derive(Clone)]
pub struct Arguments {
    pub command: String,
    pub rounds: u32,
    pub duration: Duration,
    pub threads: Vec<u32>,
    /// None: what the command takes by itself.
    pub keys: Option<Vec<u64>>,
    pub kinds: Vec<Kind>,
    pub directory: PathBuf,
    pub out: PathBuf,
    pub drawings: PathBuf,
}

fn list<T: std::str::FromStr>(option: &str, text: &str) -> Result<Vec<T>, String> {
    let parse = |item: &str| item.parse().map_err(|_| format!("{option}: {item} is no number"));
    text.split(',').map(parse).collect()
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments {
            command: words.next().ok_or("no command")?,
            rounds: 5,
            duration: Duration::from_secs(2),
            threads: vec![1, 8, 64],
            keys: None,
            kinds: contestant::all(),
            directory: PathBuf::from("."),
            out: PathBuf::from("results.json"),
            drawings: PathBuf::from("drawings"),
        };
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} wants a value"))?;
            let no_number = |_| format!("{option}: {value} is no number");
            match option.as_str() {
                "--rounds" => arguments.rounds = value.parse().map_err(no_number)?,
                "--seconds" => {
                    let seconds: f64 =
                        value.parse().map_err(|_| format!("{option}: {value} is no number"))?;
                    arguments.duration =
                        Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                }
                "--threads" => arguments.threads = list(&option, &value)?,
                "--keys" => arguments.keys = Some(list(&option, &value)?),
                "--only" => arguments.kinds = chosen(&value)?,
                "--dir" => arguments.directory = PathBuf::from(value),
                "--out" => arguments.out = PathBuf::from(value),
                "--drawings" => arguments.drawings = PathBuf::from(value),
                unknown => return Err(format!("{unknown}: no such option")),
            }
        }
        if arguments.rounds == 0 || arguments.duration.is_zero() || arguments.threads.contains(&0) {
            return Err("nothing would be measured".into());
        }
        Ok(arguments)
    }

    /// How many operations are to be there, one after the other.
    pub fn keys(&self) -> Vec<u64> {
        self.keys.clone().unwrap_or_else(|| vec![1_000, 10_000, 100_000, 1_000_000, 10_000_000])
    }
}

fn chosen(names: &str) -> Result<Vec<Kind>, String> {
    let mut kinds = contestant::all();
    let names: Vec<String> = names.split(',').map(str::to_lowercase).collect();
    let is_named = |name: &String, kind: &Kind| kind.name.to_lowercase().starts_with(name.as_str());
    if let Some(unknown) = names.iter().find(|name| !kinds.iter().any(|kind| is_named(name, kind))) {
        return Err(format!("{unknown}: no such store, or it was left out when this was built"));
    }
    kinds.retain(|kind| names.iter().any(|name| is_named(name, kind)));
    Ok(kinds)
}
