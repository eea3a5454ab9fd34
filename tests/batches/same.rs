//! Compares a batch with the same calls, made one after the other: the answers and the states of the keys must be the same.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::{Answer, Begin, Doubt, Error, Lease, ManualClock, Recorded, Result, Store};

use crate::common::random::{Random, seed};
use crate::common::{START_MS, clocked};

const KEYS: usize = 5;

/// What an entry does. The number is a key.
#[derive(Debug, Clone, Copy)]
enum Call {
    Begin(usize, bool),
    Record(usize, bool),
    Complete(usize),
    Release(usize),
    BeginAgain(usize),
}

/// A store, and the leases and doubts that its caller holds.
struct Side {
    store: Store,
    clock: ManualClock,
    leases: BTreeMap<usize, Lease>,
    doubts: BTreeMap<usize, Doubt>,
}

/// The answer of a call, with the lease or the doubt that it gives to the caller.
enum Given {
    Lease(Lease),
    Doubt(Doubt),
    Nothing,
}

impl Side {
    fn new() -> Side {
        let clock = ManualClock::new(START_MS);
        let store = clocked(&clock).max_result(100).open_in_memory().unwrap();
        Side { store, clock, leases: BTreeMap::new(), doubts: BTreeMap::new() }
    }

    /// The states of all keys.
    fn states(&self) -> Vec<String> {
        let state = |key| {
            let state = self.store.get(&name(key)).unwrap();
            format!("{key}: {:?} {} {:?}", state.status(), state.attempt(), state.result())
        };
        (0..KEYS).map(state).collect()
    }
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

fn result(key: usize, round: u32) -> Vec<u8> {
    format!("{key} in {round}").into_bytes()
}

fn describe(error: &Error) -> String {
    match error {
        Error::Fenced { .. } => "fenced".to_owned(),
        Error::InProgress { attempt, .. } => format!("error: attempt {attempt} in progress"),
        Error::InDoubt { attempt, .. } => format!("error: attempt {attempt} in doubt"),
        Error::Mismatch { .. } => "mismatch".to_owned(),
        Error::Conflict { .. } => "conflict".to_owned(),
        other => panic!("{other}"),
    }
}

/// Makes the calls one after the other.
fn one_by_one(side: &mut Side, calls: &[Call], round: u32) -> Vec<(String, Given)> {
    let mut ended = (std::mem::take(&mut side.leases), std::mem::take(&mut side.doubts));
    let store = &side.store;
    let call = |call: &Call| -> Result<(String, Given)> {
        Ok(match *call {
            Call::Begin(key, other) => match store.operation(name(key)).request(&other).begin()? {
                Begin::Acquired(lease) => (format!("acquired {}", lease.attempt()), Given::Lease(lease)),
                Begin::InDoubt(doubt) => (format!("in doubt {}", doubt.attempt()), Given::Doubt(doubt)),
                Begin::InProgress { attempt, .. } => (format!("in progress {attempt}"), Given::Nothing),
                Begin::Completed(done) => (format!("already done {:?}", done.result()), Given::Nothing),
                other => panic!("{other:?}"),
            },
            Call::Record(key, other) => {
                match store.operation(name(key)).request(&other).record(&result(key, round))? {
                    Recorded::Done(_) => ("done".to_owned(), Given::Nothing),
                    Recorded::AlreadyDone(done) => {
                        (format!("already done {:?}", done.result()), Given::Nothing)
                    }
                    other => panic!("{other:?}"),
                }
            }
            Call::Complete(key) => {
                let result = result(key, round);
                match (ended.0.get_mut(&key), ended.1.get_mut(&key)) {
                    (Some(lease), _) => lease.complete(&result)?,
                    (None, Some(doubt)) => doubt.complete(&result)?,
                    (None, None) => panic!("nothing to complete"),
                };
                ("done".to_owned(), Given::Nothing)
            }
            Call::Release(key) => {
                match (ended.0.remove(&key), ended.1.remove(&key)) {
                    (Some(lease), _) => lease.release()?,
                    (None, Some(doubt)) => doubt.release()?,
                    (None, None) => panic!("nothing to release"),
                }
                ("released".to_owned(), Given::Nothing)
            }
            Call::BeginAgain(key) => {
                let lease = ended.1.remove(&key).unwrap().begin_again()?;
                (format!("acquired {}", lease.attempt()), Given::Lease(lease))
            }
        })
    };
    let mut call = call;
    let answers = calls
        .iter()
        .map(|one| call(one).unwrap_or_else(|error| (describe(&error), Given::Nothing)))
        .collect();
    (side.leases, side.doubts) = ended;
    answers
}

/// Makes the calls in a batch.
fn together(side: &mut Side, calls: &[Call], round: u32) -> Vec<(String, Given)> {
    let mut held: BTreeMap<usize, (Option<Lease>, Option<Doubt>)> = BTreeMap::new();
    for (key, lease) in std::mem::take(&mut side.leases) {
        held.entry(key).or_default().0 = Some(lease);
    }
    for (key, doubt) in std::mem::take(&mut side.doubts) {
        held.entry(key).or_default().1 = Some(doubt);
    }
    let store = &side.store;
    let before = store.stats().syncs;
    let answers = {
        let mut free: BTreeMap<usize, _> = held.iter_mut().map(|(key, held)| (*key, held)).collect();
        let mut batch = store.batch();
        for call in calls {
            match *call {
                Call::Begin(key, other) => batch.begin(store.operation(name(key)).request(&other)),
                Call::Record(key, other) => {
                    batch.record(store.operation(name(key)).request(&other), &result(key, round))
                }
                Call::Complete(key) => match free.remove(&key).unwrap() {
                    (Some(lease), _) => batch.complete(lease, &result(key, round)),
                    (_, Some(doubt)) => batch.complete(doubt, &result(key, round)),
                    _ => panic!("nothing to complete"),
                },
                Call::Release(key) => match free.remove(&key).unwrap() {
                    (Some(lease), _) => batch.release(lease),
                    (_, Some(doubt)) => batch.release(doubt),
                    _ => panic!("nothing to release"),
                },
                Call::BeginAgain(key) => batch.begin_again(free.remove(&key).unwrap().1.as_mut().unwrap()),
            }
            .unwrap();
        }
        batch.commit().unwrap()
    };
    assert!(store.stats().syncs - before <= 1);
    // The single calls consume what they release or begin again.
    for call in calls {
        if let Call::Release(key) | Call::BeginAgain(key) = call {
            held.remove(key);
        }
    }
    for (key, (lease, doubt)) in held {
        side.leases.extend(lease.map(|lease| (key, lease)));
        side.doubts.extend(doubt.map(|doubt| (key, doubt)));
    }
    let describe = |answer: Result<Answer>| match answer {
        Ok(Answer::Acquired(lease)) => (format!("acquired {}", lease.attempt()), Given::Lease(lease)),
        Ok(Answer::InDoubt(doubt)) => (format!("in doubt {}", doubt.attempt()), Given::Doubt(doubt)),
        Ok(Answer::InProgress { attempt, .. }) => (format!("in progress {attempt}"), Given::Nothing),
        Ok(Answer::AlreadyDone(done)) => (format!("already done {:?}", done.result()), Given::Nothing),
        Ok(Answer::Done(_)) => ("done".to_owned(), Given::Nothing),
        Ok(Answer::Released) => ("released".to_owned(), Given::Nothing),
        Ok(other) => panic!("{other:?}"),
        Err(error) => (describe(&error), Given::Nothing),
    };
    answers.map(describe).collect()
}

/// Chooses calls. Each lease and each doubt is used at most once.
fn calls(side: &Side, random: &mut Random) -> Vec<Call> {
    let mut held: Vec<(usize, bool)> = side.leases.keys().map(|key| (*key, true)).collect();
    held.extend(side.doubts.keys().filter(|key| !side.leases.contains_key(key)).map(|key| (*key, false)));
    let mut calls = Vec::new();
    for _ in 0..1 + random.below(8) {
        let key = random.below(KEYS);
        let is_other = random.percent(15);
        calls.push(match random.below(10) {
            0..3 => Call::Begin(key, is_other),
            3..5 => Call::Record(key, is_other),
            choice => match held.pop() {
                Some((key, _)) if choice < 8 => Call::Complete(key),
                Some((key, is_lease)) if is_lease || choice == 8 => Call::Release(key),
                Some((key, _)) => Call::BeginAgain(key),
                None => Call::Begin(key, is_other),
            },
        });
    }
    calls
}

/// Keeps some of what the answers gave to the caller.
fn keep(side: &mut Side, given: Vec<(usize, Given)>, fates: &[usize]) {
    for ((key, given), fate) in given.into_iter().zip(fates) {
        match (given, fate) {
            (Given::Lease(lease), 0..7) => drop(side.leases.insert(key, lease)),
            (Given::Doubt(doubt), 0..7) => drop(side.doubts.insert(key, doubt)),
            // Dropping it leaves the operation in doubt.
            (Given::Lease(_) | Given::Doubt(_) | Given::Nothing, _) => {}
        }
    }
}

#[test]
fn a_batch_answers_as_if_one_call_followed_the_other() {
    for script in 0..200 {
        let mut random = Random(seed() * 1_000 + script);
        let (mut single, mut batched) = (Side::new(), Side::new());
        for round in 0..30 {
            let calls = calls(&single, &mut random);
            let key = |call: &Call| match *call {
                Call::Begin(key, _) | Call::Record(key, _) => key,
                Call::Complete(key) | Call::Release(key) | Call::BeginAgain(key) => key,
            };
            let fates: Vec<usize> = calls.iter().map(|_| random.below(10)).collect();
            let expected = one_by_one(&mut single, &calls, round);
            let answers = together(&mut batched, &calls, round);
            for ((call, (expected, _)), (answer, _)) in calls.iter().zip(&expected).zip(&answers) {
                assert_eq!(answer, expected, "script {script}, round {round}: {call:?} in {calls:?}");
            }
            let with_keys = |answers: Vec<(String, Given)>| -> Vec<(usize, Given)> {
                calls.iter().map(key).zip(answers.into_iter().map(|(_, given)| given)).collect()
            };
            keep(&mut single, with_keys(expected), &fates);
            keep(&mut batched, with_keys(answers), &fates);
            assert_eq!(batched.states(), single.states(), "script {script}, round {round}: {calls:?}");
            if random.percent(10) {
                for side in [&single, &batched] {
                    side.clock.advance(Duration::from_secs(1));
                }
            }
        }
        for side in [single, batched] {
            let Side { store, leases, doubts, .. } = side;
            drop((leases, doubts));
            assert_eq!(store.stats().reserved_bytes, 0, "space is still reserved");
            store.close().unwrap();
        }
    }
}
