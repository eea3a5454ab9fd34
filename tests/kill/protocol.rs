//! What the test and the child process that it kills have in common: the environment variables, the keys, the results and the
//! messages.

use std::fmt::{self, Display};

use crate::common::random::Random;

pub const PATH: &str = "ONCEKEY_KILL_PATH";
pub const SEED: &str = "ONCEKEY_SEED";

pub const THREADS: usize = 4;
/// The maximum number of calls that a thread has announced and not answered: the entries of a batch. Each has a lane.
pub const LANES: usize = 6;
pub const MAX_RESULT_BYTES: usize = 6_000;

/// How long the completion of a key is kept. This is part of the key's name, so both processes know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Longer than any test runs.
    Lasting,
    /// Like `Lasting`, but the result expires after a millisecond.
    Faded,
    /// For one millisecond.
    Brief,
}

pub fn kept(key: &str) -> Kept {
    match key.split('-').nth(1) {
        Some("brief") => Kept::Brief,
        Some("faded") => Kept::Faded,
        _ => Kept::Lasting,
    }
}

/// Whether the completions of all these keys are kept longer than any test runs.
pub fn all_last(keys: &[&String]) -> bool {
    keys.iter().all(|key| kept(key) == Kept::Lasting)
}

/// The text of the error with which an operation on this key ends in doubt, which the store keeps as a note.
pub fn note_of(key: &str) -> String {
    format!("no answer for {key}")
}

/// The keys that only the thread `owner` uses.
pub fn keys_of(owner: &str) -> Vec<String> {
    let named = |kind: &str, count: usize| -> Vec<String> {
        (0..count).map(|number| format!("{owner}-{kind}-{number}")).collect()
    };
    [named("lasting", 24), named("faded", 4), named("brief", 20)].concat()
}

/// The keys that all threads use.
pub fn shared_keys() -> Vec<String> {
    (0..12).map(|number| format!("shared-lasting-{number}")).collect()
}

/// All keys, of each thread and shared.
pub fn all_keys() -> Vec<String> {
    let of_threads = (0..THREADS).flat_map(|thread| keys_of(&format!("t{thread}")));
    of_threads.chain(shared_keys()).collect()
}

/// The two numbers from which the bytes of a result are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    pub seed: u64,
    pub length: usize,
}

impl Payload {
    pub fn draw(random: &mut Random) -> Payload {
        let limit = match random.below(20) {
            0 => MAX_RESULT_BYTES,
            1..6 => 2_000,
            _ => 200,
        };
        Payload { seed: random.next(), length: random.below(limit + 1) }
    }

    pub fn bytes(self) -> Vec<u8> {
        let mut random = Random(self.seed);
        std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(self.length).collect()
    }
}

/// Hashes a result with FNV-1a, which suffices because no one chooses results that collide.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// The state in which a call leaves a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    Begun,
    Completed(Payload),
}

impl Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Absent => out.write_str("absent"),
            State::Begun => out.write_str("begun"),
            State::Completed(Payload { seed, length }) => write!(out, "completed {seed} {length}"),
        }
    }
}

impl State {
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> State {
        match words.next().unwrap() {
            "absent" => State::Absent,
            "begun" => State::Begun,
            "completed" => {
                let seed = words.next().unwrap().parse().unwrap();
                State::Completed(Payload { seed, length: words.next().unwrap().parse().unwrap() })
            }
            other => panic!("unknown state {other}"),
        }
    }
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// The key is now in the state that the child announced before the call. A release or a forget returns no version. Only a begin and its completion return the
    /// number of the attempt.
    Changed { version: Option<u64>, attempt: Option<u32> },
    /// Nothing was changed.
    Unchanged,
    /// The child did not see whether the key was changed, or the change is yet to be written.
    Unknown,
    /// Nothing was changed, because the key is already completed with this result.
    Seen { version: u64, digest: u64 },
}

impl Display for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Changed { version, attempt } => {
                // Neither number can be 0, so 0 stands for `None`.
                write!(out, "changed {} {}", version.unwrap_or(0), attempt.unwrap_or(0))
            }
            Answer::Unchanged => out.write_str("unchanged"),
            Answer::Unknown => out.write_str("unknown"),
            Answer::Seen { version, digest } => write!(out, "seen {version} {digest}"),
        }
    }
}

impl Answer {
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Answer {
        let kind = words.next().unwrap();
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        match kind {
            "changed" => {
                let version = Some(number()).filter(|version| *version > 0);
                let attempt = u32::try_from(number()).ok().filter(|attempt| *attempt > 0);
                Answer::Changed { version, attempt }
            }
            "unchanged" => Answer::Unchanged,
            "unknown" => Answer::Unknown,
            "seen" => Answer::Seen { version: number(), digest: number() },
            other => panic!("unknown answer {other}"),
        }
    }
}
