//! The oracle: a model of what the store acknowledged, and functions that compare a store with it.

use std::collections::BTreeMap;

use oncekey::simulation::steps;
use oncekey::{Error, KeyState, Status, Store, Version};

use super::steps::{STEPS, step_name};
use super::{KEYS, RESULT_RETENTION_MS, RETENTION_MS, START_MS, name};

/// The acknowledged state of a key. The model has no entry for an absent key without attempts to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub status: Status,
    /// The possible counts of attempts. There can be two, because reclaiming may drop the record of a released key, and its
    /// count with it, before the next attempt begins.
    pub attempts: Vec<u32>,
    /// Whether the record of this state is damaged. If so, the store must report the key as corrupt, or show this state
    /// from an older copy of the record.
    pub damaged: bool,
    pub result: Vec<u8>,
    /// The version that the call returned, or `None` before it returns.
    pub version: Option<Version>,
    pub result_expires_ms: u64,
    pub expires_ms: u64,
    /// The input of an unfinished operation.
    pub input: Option<Vec<u8>>,
    /// The steps of an unfinished operation, by number.
    pub steps: BTreeMap<u16, KnownStep>,
}

/// The acknowledged state of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownStep {
    pub status: StepStatus,
    pub given_up: bool,
    /// The place in the history at which its last attempt began.
    pub begin: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepStatus {
    InDoubt,
    Completed(Vec<u8>),
    Released,
}

impl Known {
    /// A key whose attempt has begun. It is in doubt once the lease is dropped.
    pub fn begun(attempts: Vec<u32>) -> Known {
        Known {
            status: Status::InDoubt,
            attempts,
            damaged: false,
            result: Vec::new(),
            version: None,
            result_expires_ms: u64::MAX,
            expires_ms: u64::MAX,
            input: None,
            steps: BTreeMap::new(),
        }
    }

    pub fn completed(attempts: Vec<u32>, result: Vec<u8>, now_ms: u64) -> Known {
        Known {
            status: Status::Completed,
            attempts,
            damaged: false,
            result,
            version: None,
            result_expires_ms: now_ms + RESULT_RETENTION_MS,
            expires_ms: now_ms + RETENTION_MS,
            input: None,
            steps: BTreeMap::new(),
        }
    }

    pub fn released(attempts: Vec<u32>, now_ms: u64) -> Known {
        Known {
            status: Status::Absent,
            attempts,
            damaged: false,
            result: Vec::new(),
            version: None,
            result_expires_ms: u64::MAX,
            expires_ms: now_ms + RETENTION_MS,
            input: None,
            steps: BTreeMap::new(),
        }
    }
}

impl Known {
    /// Whether a step is in progress or in doubt, and was not given up. Then the operation must not be completed.
    pub fn has_open_step(&self) -> bool {
        self.steps.values().any(|step| step.status == StepStatus::InDoubt && !step.given_up)
    }

    /// Whether a step began and was not released. Then the operation must not be released.
    pub fn is_held(&self) -> bool {
        self.steps.values().any(|step| step.status != StepStatus::Released)
    }

    /// The status that the store shows if no lease is held.
    pub fn shown(&self) -> Status {
        let is_settled = !self.steps.is_empty() && !self.has_open_step();
        if self.status == Status::InDoubt && is_settled { Status::Stopped } else { self.status }
    }
}

/// The acknowledged state of a store: of each key, and the messages that are not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    keys: BTreeMap<u8, Known>,
    /// The pending messages of all topics, in the order of emission.
    pub messages: Vec<Emitted>,
}

/// A message that is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    pub topic: &'static str,
    pub token: String,
    pub payload: Vec<u8>,
}

/// The topics of all messages.
pub const TOPICS: [&str; 2] = ["even", "odd"];

impl Model {
    pub fn new() -> Model {
        Model::default()
    }

    /// The pending messages of a topic, oldest first.
    pub fn pending(&self, topic: &str) -> impl Iterator<Item = &Emitted> {
        self.messages.iter().filter(move |message| message.topic == topic)
    }
}

impl std::ops::Deref for Model {
    type Target = BTreeMap<u8, Known>;

    fn deref(&self) -> &BTreeMap<u8, Known> {
        &self.keys
    }
}

impl std::ops::DerefMut for Model {
    fn deref_mut(&mut self) -> &mut BTreeMap<u8, Known> {
        &mut self.keys
    }
}

/// Every acknowledged state, in order. A crash leaves one of these states, and loses the later ones.
#[derive(Debug, Clone)]
pub struct Oracle {
    /// The model after each acknowledged change. The first entry is the empty store.
    pub history: Vec<Model>,
    /// The store time of each entry of `history`. A store that recovers an entry must not have an earlier store time.
    pub times_ms: Vec<u64>,
    /// The first entry of `history` that a crash may leave, because it was acknowledged as durable.
    pub durable: usize,
    /// The model in case the call that is running, or that failed, has taken effect.
    pub in_flight: Option<Model>,
    /// The models in case only a part of the batch that was running, or that failed, has taken effect.
    pub partial: Vec<Model>,
    /// The highest version that the store has given out.
    pub highest: Version,
}

impl Oracle {
    pub fn new() -> Oracle {
        Oracle {
            history: vec![Model::new()],
            times_ms: vec![START_MS],
            durable: 0,
            in_flight: None,
            partial: Vec::new(),
            highest: Version::from_u64(0),
        }
    }

    pub fn now(&self) -> &Model {
        self.history.last().unwrap()
    }

    /// Returns the entry of the history that matches the store. Returns an error if a crash cannot leave such a state.
    pub fn locate(&self, store: &Store) -> Result<usize, String> {
        let now_ms = store.stats().store_time_ms;
        let seen = read(store).map_err(|error| format!("a key cannot be read: {error}"))?;
        let jobs = read_jobs(store, &seen).map_err(|error| format!("a step cannot be read: {error}"))?;
        let pending = read_messages(store)?;
        let last = self.history.len() - 1;
        let mut why = String::new();
        let in_flight = self.in_flight.iter().chain(&self.partial).enumerate();
        let in_flight = in_flight.map(|(number, model)| (last + 1 + number, model));
        let acknowledged = self.history.iter().enumerate().skip(self.durable).rev();
        for (at, model) in in_flight.chain(acknowledged) {
            match agrees(model, &seen, &jobs, now_ms).and_then(|()| same_messages(model, &pending)) {
                Ok(()) if self.times_ms.get(at).is_some_and(|time_ms| now_ms < *time_ms) => {
                    return Err(format!(
                        "store time is {now_ms} ms, earlier than one of the records in the store"
                    ));
                }
                Ok(()) => return Ok(at),
                Err(reason) if at == last => why = reason,
                Err(_) => {}
            }
        }
        Err(format!(
            "the store matches no entry of the history from {} to {last}; difference from the last: {why}",
            self.durable
        ))
    }

    /// Checks that each key of an open store shows exactly what was acknowledged, or returns an error that the disk explains.
    pub fn check_live(&self, store: &Store, now_ms: u64) -> Result<(), String> {
        let mut model = self.now().clone();
        expire(&mut model, now_ms);
        for key in 0..KEYS {
            let seen = match store.get(&name(key)) {
                Ok(seen) => seen,
                Err(Error::Poisoned { .. } | Error::Io { .. } | Error::Closed) => continue,
                Err(Error::Corrupt { .. }) if model.get(&key).is_some_and(|known| known.damaged) => continue,
                Err(error) => return Err(format!("{key}: {error}")),
            };
            let in_progress = seen.status() == Status::InProgress;
            let known = model.get(&key);
            let shown = |known: &Known| if in_progress { known.status } else { known.shown() };
            let expected = known.map_or(Status::Absent, shown);
            let status = if in_progress { Status::InDoubt } else { seen.status() };
            let result =
                model.get(&key).filter(|_| expected == Status::Completed).map(|known| &known.result[..]);
            let same_result = seen.result().is_none_or(|seen| Some(seen) == result);
            if status != expected || !same_result {
                return Err(format!("{key}: is {status:?}, but was acknowledged as {expected:?}"));
            }
            let job = match read_job(store, key) {
                Ok(job) => job,
                Err(Error::Poisoned { .. } | Error::Io { .. } | Error::Closed) => continue,
                Err(error) => return Err(format!("{key}: a step: {error}")),
            };
            if let Some(known) = known {
                agrees_with_job(known, &job).map_err(|why| format!("{key}: {why}"))?;
            }
        }
        // A failed acknowledgement leaves its messages counted.
        let (seen, expected) = (store.stats().messages, model.messages.len());
        if seen != expected {
            return Err(format!("{seen} messages are pending, but {expected} were acknowledged as emitted"));
        }
        Ok(())
    }
}

/// Removes what has expired by `now_ms`.
pub fn expire(model: &mut Model, now_ms: u64) {
    model.retain(|_, known| now_ms < known.expires_ms);
    for known in model.values_mut() {
        if known.status == Status::Completed && now_ms >= known.result_expires_ms {
            known.result = Vec::new();
        }
    }
}

/// Returns the state of every key, or `None` for a corrupt key.
pub fn read(store: &Store) -> Result<BTreeMap<u8, Option<KeyState>>, Error> {
    let read = |key| match store.get(&name(key)) {
        Err(Error::Corrupt { .. }) => Ok((key, None)),
        seen => seen.map(|seen| (key, Some(seen))),
    };
    (0..KEYS).map(read).collect()
}

/// The input and the steps of an unfinished operation, as the store shows them.
#[derive(Debug, Default)]
pub struct Job {
    input: Option<Vec<u8>>,
    steps: BTreeMap<u16, (StepStatus, bool)>,
}

fn read_job(store: &Store, key: u8) -> Result<Job, Error> {
    let mut job = Job { input: steps::input(store, &name(key))?, steps: BTreeMap::new() };
    for listed in steps::steps(store, &name(key))? {
        let (step, status, given_up) = listed?;
        let status = match status {
            Status::Completed => {
                let result = steps::result_of(store, &name(key), &step)?;
                StepStatus::Completed(result.unwrap_or_default())
            }
            Status::Absent => StepStatus::Released,
            _ => StepStatus::InDoubt,
        };
        let number = (0..STEPS).find(|number| step_name(*number) == step).unwrap();
        job.steps.insert(number, (status, given_up));
    }
    Ok(job)
}

fn read_jobs(store: &Store, seen: &BTreeMap<u8, Option<KeyState>>) -> Result<BTreeMap<u8, Job>, Error> {
    let readable = seen.iter().filter(|(_, seen)| seen.is_some());
    readable.map(|(key, _)| read_job(store, *key).map(|job| (*key, job))).collect()
}

fn agrees_with_job(known: &Known, job: &Job) -> Result<(), String> {
    if known.input != job.input {
        return Err(format!("the input is {:?}, expected {:?}", job.input, known.input));
    }
    let steps = known.steps.iter();
    let expected = steps.map(|(number, step)| (*number, (step.status.clone(), step.given_up))).collect();
    if job.steps == expected {
        Ok(())
    } else {
        Err(format!("the steps are {:?}, expected {expected:?}", job.steps))
    }
}

/// Returns the pending messages of each topic.
fn read_messages(store: &Store) -> Result<Vec<Vec<Emitted>>, String> {
    let outbox = store.outbox();
    let read = |topic| {
        let pending = outbox.pending(topic).map_err(|error| format!("a message cannot be read: {error}"))?;
        let emitted = pending.iter().map(|message| Emitted {
            topic,
            token: message.token(),
            payload: message.payload().to_vec(),
        });
        Ok(emitted.collect())
    };
    let messages: Vec<Vec<Emitted>> = TOPICS.into_iter().map(read).collect::<Result<_, String>>()?;
    let count: usize = messages.iter().map(Vec::len).sum();
    if count != store.stats().messages {
        return Err(format!("{count} messages are pending, and {} are counted", store.stats().messages));
    }
    Ok(messages)
}

/// Checks that the same messages are pending, in the same order within each topic.
fn same_messages(model: &Model, pending: &[Vec<Emitted>]) -> Result<(), String> {
    for (topic, seen) in TOPICS.iter().zip(pending) {
        let tokens = |messages: Vec<&Emitted>| -> Vec<String> {
            messages.into_iter().map(|message| message.token.clone()).collect()
        };
        let expected: Vec<&Emitted> = model.pending(topic).collect();
        if !seen.iter().eq(expected.iter().copied()) {
            let (seen, expected) = (tokens(seen.iter().collect()), tokens(expected));
            return Err(format!("topic {topic}: {seen:?} are pending, expected {expected:?}"));
        }
    }
    Ok(())
}

fn agrees(
    model: &Model,
    seen: &BTreeMap<u8, Option<KeyState>>,
    jobs: &BTreeMap<u8, Job>,
    now_ms: u64,
) -> Result<(), String> {
    let mut model = model.clone();
    expire(&mut model, now_ms);
    for (key, seen) in seen {
        let Some(seen) = seen else {
            if model.get(key).is_some_and(|known| known.damaged) {
                continue;
            }
            return Err(format!("{key}: is corrupt although nothing damaged it"));
        };
        let Some(known) = model.get(key) else {
            let has_steps = jobs.get(key).is_some_and(|job| !job.steps.is_empty() || job.input.is_some());
            if seen.status() != Status::Absent || seen.attempt() != 0 || has_steps {
                return Err(format!("{key}: {seen:?}, but the oracle has no such key"));
            }
            continue;
        };
        let has_result = known.status == Status::Completed && now_ms < known.result_expires_ms;
        if let Some(job) = jobs.get(key) {
            agrees_with_job(known, job).map_err(|why| format!("{key}: {why}"))?;
        }
        let same = seen.status() == known.shown()
            && (known.attempts.contains(&seen.attempt())
                || known.status == Status::Absent && seen.attempt() == 0)
            && seen.result() == has_result.then_some(&known.result[..])
            && (known.version.is_none() || known.status == Status::Absent || seen.version() == known.version);
        if !same {
            let result_bytes = seen.result().map(<[u8]>::len);
            return Err(format!(
                "{key}: {:?} attempt {} version {:?} result {result_bytes:?} bytes; expected {:?} attempts {:?} version {:?} \
                 {} bytes",
                seen.status(),
                seen.attempt(),
                seen.version(),
                known.status,
                known.attempts,
                known.version,
                known.result.len()
            ));
        }
    }
    Ok(())
}
