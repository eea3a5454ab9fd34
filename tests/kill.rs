//! The real thing: a child process on the real file system, killed with SIGKILL at random.
//!
//! The child works on the store with several threads. Before each call that changes something it says through a pipe
//! what it is about to do, and afterwards what came of it. The parent kills it after some number of answers, opens the
//! store and compares. The same file goes through all rounds, so that its slots are recycled many times.
//!
//! 30 rounds by default. A thousand, as before a release:
//!
//! ```text
//! ONCEKEY_ROUNDS=1000 cargo test --release --all-features --test kill -- --nocapture
//! ```
//!
//! `ONCEKEY_SEED=n` chooses what is done and when it is killed. It brings a failure back as far as threads and a
//! SIGKILL allow; the files of a failed run are kept for the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::time::Duration;

use common::random::{Random, number_from, seed};
use common::small;
use oncekey::{
    Begin, CasOutcome, Doubt, Durability, Error, Expected, Fingerprint, KeyState, Lease, Next, Operation,
    Recorded, Status, Store,
};

const PATH: &str = "ONCEKEY_KILL_PATH";
const SEED: &str = "ONCEKEY_SEED";
const ROUNDS: &str = "ONCEKEY_ROUNDS";

const THREADS: usize = 4;
const MAX_RESULT_BYTES: usize = 6_000;
/// The answers after which a child is killed, at most.
const MAX_ANSWERS: usize = 400;

// What both processes know.

/// How long a key's completion is kept. It shows in the key's name, so that both processes know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Longer than any test runs.
    Whole,
    /// As `Whole`, but its result for a millisecond only.
    WithoutResult,
    /// For a millisecond.
    Briefly,
}

fn kept(key: &str) -> Kept {
    match key.split('-').nth(1) {
        Some("brief") => Kept::Briefly,
        Some("faded") => Kept::WithoutResult,
        _ => Kept::Whole,
    }
}

/// Keys of each thread's own, and keys that all threads share.
fn keys_of(owner: &str) -> Vec<String> {
    let named = |kind: &str, count: usize| -> Vec<String> {
        (0..count).map(|number| format!("{owner}-{kind}-{number}")).collect()
    };
    [named("lasting", 24), named("faded", 4), named("brief", 20)].concat()
}

fn shared_keys() -> Vec<String> {
    (0..12).map(|number| format!("shared-lasting-{number}")).collect()
}

fn all_keys() -> Vec<String> {
    let own = (0..THREADS).flat_map(|thread| keys_of(&format!("t{thread}")));
    own.chain(shared_keys()).collect()
}

/// The bytes of a result, from the two numbers that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Payload {
    seed: u64,
    length: usize,
}

impl Payload {
    fn draw(random: &mut Random) -> Payload {
        let limit = match random.below(20) {
            0 => MAX_RESULT_BYTES,
            1..6 => 2_000,
            _ => 200,
        };
        Payload { seed: random.next(), length: random.below(limit + 1) }
    }

    fn bytes(self) -> Vec<u8> {
        let mut random = Random(self.seed);
        std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(self.length).collect()
    }
}

/// FNV-1a: enough to tell results apart that were not made to collide.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// What the file says of a key after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> State {
        match words.next().unwrap() {
            "absent" => State::Absent,
            "begun" => State::Begun,
            "completed" => {
                let seed = words.next().unwrap().parse().unwrap();
                State::Completed(Payload { seed, length: words.next().unwrap().parse().unwrap() })
            }
            other => panic!("state {other}"),
        }
    }
}

/// What came of a call.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// The key is now as was said. A release and a forget do not tell their version; only a begin and its completion
    /// tell the attempt.
    Changed { version: Option<u64>, attempt: Option<u32> },
    /// Nothing was changed.
    Unchanged,
    /// Nothing was changed, because the key is completed with this result.
    Seen { version: u64, digest: u64 },
}

impl Display for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Changed { version, attempt } => {
                // Neither is ever 0.
                write!(out, "changed {} {}", version.unwrap_or(0), attempt.unwrap_or(0))
            }
            Answer::Unchanged => out.write_str("unchanged"),
            Answer::Seen { version, digest } => write!(out, "seen {version} {digest}"),
        }
    }
}

impl Answer {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Answer {
        let kind = words.next().unwrap();
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        match kind {
            "changed" => {
                let version = Some(number()).filter(|version| *version > 0);
                let attempt = u32::try_from(number()).ok().filter(|attempt| *attempt > 0);
                Answer::Changed { version, attempt }
            }
            "unchanged" => Answer::Unchanged,
            "seen" => Answer::Seen { version: number(), digest: number() },
            other => panic!("answer {other}"),
        }
    }
}

// The child.

/// Tells the parent a line. Standard error has no buffer and libtest does not capture it when it is written to like
/// this: one line is one write. When the parent is gone this fails, and the child goes too.
fn tell(line: impl Display) {
    std::io::stderr().write_all(format!("> {line}\n").as_bytes()).unwrap();
}

#[test]
#[ignore = "it is the process that the other test kills"]
fn child() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let mut random = Random(std::env::var(SEED).unwrap().parse().unwrap());
    loop {
        tell("opening");
        let durability = if random.percent(50) { Durability::Sync } else { Durability::Buffered };
        let options = small().max_result(MAX_RESULT_BYTES).durability(durability).mmap(random.percent(80));
        let store = options.open(&path).unwrap();
        tell("open");
        let calls = 10 + random.below(200);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let worker = Worker { store: &store, thread, random: Random(random.next()), retired: 0 };
                scope.spawn(move || worker.work(calls));
            }
        });
        if random.percent(50) {
            store.close().unwrap();
        }
    }
}

struct Worker<'a> {
    store: &'a Store,
    thread: usize,
    random: Random,
    retired: u64,
}

impl Worker<'_> {
    fn work(mut self, calls: usize) {
        let (own, shared) = (keys_of(&format!("t{}", self.thread)), shared_keys());
        for _ in 0..calls {
            let keys = if self.random.percent(75) { &own } else { &shared };
            let key = &keys[self.random.below(keys.len())];
            self.turn(key);
            if self.thread == 0 {
                self.tell_retired();
            }
        }
    }

    fn tell_retired(&mut self) {
        let retired = self.store.stats().segments_retired;
        if retired > self.retired {
            tell(format_args!("retired {}", retired - self.retired));
            self.retired = retired;
        }
    }

    /// One call of the store that is to leave `key` in `state`, told before and after.
    fn call<T>(
        &self,
        key: &str,
        state: State,
        call: impl FnOnce() -> Result<T, Error>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> Option<T> {
        tell(format_args!("call {} {key} {state}", self.thread));
        let outcome = match call() {
            Ok(outcome) => Some(outcome),
            // The store's answers about a key on which others are at work. Anything else ends the child.
            Err(
                Error::InProgress { .. }
                | Error::InDoubt { .. }
                | Error::ResultExpired { .. }
                | Error::Fenced { .. }
                | Error::Conflict { .. },
            ) => None,
            Err(error) => panic!("{key}: {error}"),
        };
        let answer = outcome.as_ref().map_or(Answer::Unchanged, answer);
        tell(format_args!("done {} {answer}", self.thread));
        outcome
    }

    fn turn(&mut self, key: &str) {
        match self.random.below(100) {
            0..50 => self.perform(key),
            50..65 => self.record(key),
            65..78 => self.forget(key),
            78..92 => self.compare_and_set(key),
            92..99 => self.store.sync().unwrap(),
            _ if self.thread == 0 => {
                self.store.compact().unwrap();
            }
            _ => {}
        }
    }

    fn perform(&mut self, key: &str) {
        let operation = operation(self.store, key, &mut self.random);
        let began = self.call(key, State::Begun, || operation.begin(), of_begin);
        match began {
            Some(Begin::Acquired(lease)) => self.end(key, lease),
            Some(Begin::InDoubt(doubt)) => self.resolve(key, doubt),
            Some(Begin::Completed(_)) if self.random.percent(50) => self.forget(key),
            _ => {}
        }
    }

    fn end(&mut self, key: &str, mut lease: Lease) {
        let attempt = Some(lease.attempt());
        match self.random.below(10) {
            0..7 => {
                let payload = Payload::draw(&mut self.random);
                let complete = || lease.complete(&payload.bytes());
                self.call(key, State::Completed(payload), complete, |version| Answer::Changed {
                    version: Some(version.as_u64()),
                    attempt,
                });
            }
            7 => {
                self.call(key, State::Absent, || lease.release(), of_nameless_change);
            }
            // In doubt. The file says already that it began.
            _ => drop(lease),
        }
    }

    fn resolve(&mut self, key: &str, mut doubt: Doubt) {
        match self.random.below(10) {
            0..4 => {
                let payload = Payload::draw(&mut self.random);
                let attempt = Some(doubt.attempt());
                let complete = || doubt.complete(&payload.bytes());
                self.call(key, State::Completed(payload), complete, |version| Answer::Changed {
                    version: Some(version.as_u64()),
                    attempt,
                });
            }
            4 => {
                self.call(key, State::Absent, || doubt.release(), of_nameless_change);
            }
            5..8 => {
                if let Some(lease) = self.call(key, State::Begun, || doubt.begin_again(), of_lease) {
                    self.end(key, lease);
                }
            }
            _ => drop(doubt),
        }
    }

    fn record(&mut self, key: &str) {
        let payload = Payload::draw(&mut self.random);
        let operation = operation(self.store, key, &mut self.random);
        let record = || operation.record(&payload.bytes());
        self.call(key, State::Completed(payload), record, |recorded| match recorded {
            Recorded::Done(version) => Answer::Changed { version: Some(version.as_u64()), attempt: None },
            Recorded::AlreadyDone(done) => {
                Answer::Seen { version: done.version().as_u64(), digest: digest(done.result()) }
            }
            other => panic!("{other:?}"),
        });
    }

    fn forget(&mut self, key: &str) {
        self.call(
            key,
            State::Absent,
            || self.store.forget(key),
            |forgot| match forgot {
                true => Answer::Changed { version: None, attempt: None },
                false => Answer::Unchanged,
            },
        );
    }

    fn compare_and_set(&mut self, key: &str) {
        // It has no retention of its own, so it would keep for long what is known as brief.
        if kept(key) != Kept::Whole {
            return;
        }
        let seen = self.store.get(key).unwrap();
        let expected = match seen.version() {
            Some(version) => Expected::Present { status: seen.status(), version },
            None => Expected::Absent,
        };
        let fingerprint = self.store.fingerprint(key.as_bytes());
        let payload = Payload::draw(&mut self.random);
        let bytes = payload.bytes();
        let (state, next) = match self.random.below(3) {
            0 => (State::Absent, Next::Absent),
            1 => (State::Begun, Next::InDoubt { fingerprint }),
            _ => (State::Completed(payload), Next::Completed { fingerprint, result: &bytes }),
        };
        let set = || self.store.compare_and_set(key, expected, next);
        self.call(key, state, set, |swapped| match swapped {
            // Version 0: absent stayed absent.
            CasOutcome::Done(version) if version.as_u64() > 0 => {
                Answer::Changed { version: Some(version.as_u64()), attempt: None }
            }
            _ => Answer::Unchanged,
        });
    }
}

/// An operation on `key` with the retention that goes with it, synced or not.
fn operation<'a>(store: &'a Store, key: &'a str, random: &mut Random) -> Operation<'a> {
    let durability = if random.percent(50) { Durability::Sync } else { Durability::Buffered };
    let fingerprint = store.fingerprint(key.as_bytes());
    let operation = store.operation(key).durability(durability).fingerprint(fingerprint);
    let moment = Duration::from_millis(1);
    match kept(key) {
        Kept::Whole => operation,
        Kept::WithoutResult => operation.retain_result(moment),
        Kept::Briefly => operation.retain(moment),
    }
}

fn of_begin(began: &Begin) -> Answer {
    match began {
        Begin::Acquired(lease) => of_lease(lease),
        Begin::Completed(done) => {
            Answer::Seen { version: done.version().as_u64(), digest: digest(done.result()) }
        }
        _ => Answer::Unchanged,
    }
}

fn of_lease(lease: &Lease) -> Answer {
    Answer::Changed { version: Some(lease.version().as_u64()), attempt: Some(lease.attempt()) }
}

fn of_nameless_change(_: &()) -> Answer {
    Answer::Changed { version: None, attempt: None }
}

// The parent: what it heard.

/// A call, as the pipe told of it. The lines of the pipe are numbered through all rounds, and their order is an order
/// in time: a call that was answered before another one was announced happened before it.
#[derive(Debug, Clone, Copy)]
struct Call {
    state: State,
    announced: u64,
    /// The line of the answer; of the kill if there was none.
    ended: u64,
    answer: Option<Answer>,
}

/// A state in which a key may be: by a call that was answered, or by one that was not and may have gone either way.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    state: State,
    version: Option<u64>,
    attempt: Option<u32>,
    ended: u64,
}

const NEVER_BEGUN: Candidate = Candidate { state: State::Absent, version: None, attempt: None, ended: 0 };

/// What one round told.
#[derive(Default)]
struct Round {
    calls: BTreeMap<String, Vec<Call>>,
    answers: usize,
    opened: bool,
    retired: u64,
    /// Whatever else came out of the child: why it panicked.
    noise: String,
}

/// The parent's end of the pipe.
struct Ear {
    pipe: BufReader<ChildStderr>,
    /// Per thread of the child, the call that is not answered yet, and the highest version when it was announced.
    pending: [Option<(String, Call, u64)>; THREADS],
    round: Round,
}

impl Ear {
    /// Takes in one line. False at the end.
    fn hear(&mut self, model: &mut Model) -> bool {
        let mut line = String::new();
        let count = self.pipe.read_line(&mut line).unwrap();
        let Some(told) = line.strip_prefix("> ").and_then(|line| line.strip_suffix('\n')) else {
            self.round.noise += &line;
            return count > 0;
        };
        model.lines += 1;
        let mut words = told.split(' ');
        match words.next().unwrap() {
            "opening" => self.round.opened = false,
            "open" => self.round.opened = true,
            "retired" => self.round.retired += words.next().unwrap().parse::<u64>().unwrap(),
            "call" => {
                let thread: usize = words.next().unwrap().parse().unwrap();
                let key = words.next().unwrap().to_owned();
                let state = State::parse(words);
                let call = Call { state, announced: model.lines, ended: u64::MAX, answer: None };
                assert!(self.pending[thread].is_none(), "a thread does one thing at a time");
                self.pending[thread] = Some((key, call, model.highest_version));
            }
            "done" => {
                let thread: usize = words.next().unwrap().parse().unwrap();
                let (key, call, highest_version) = self.pending[thread].take().unwrap();
                let answer = Answer::parse(words);
                if let Answer::Changed { version: Some(version), .. } = answer {
                    assert!(version > highest_version, "{key}: version {version} after {highest_version}");
                    model.highest_version = model.highest_version.max(version);
                }
                self.round.answers += 1;
                let call = Call { ended: model.lines, answer: Some(answer), ..call };
                self.round.calls.entry(key).or_default().push(call);
            }
            other => panic!("the child said {other}"),
        }
        true
    }

    /// What was told in all, when nothing more comes.
    fn all(mut self, model: &Model) -> Round {
        for (key, call, _) in self.pending.into_iter().flatten() {
            let call = Call { ended: model.lines, ..call };
            self.round.calls.entry(key).or_default().push(call);
        }
        self.round
    }
}

/// When a child is killed. Not by the time, so that it does not depend on how fast the machine is.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// While it opens the store, before it could change anything.
    Opening,
    /// After so many answers.
    Answers(usize),
}

impl Moment {
    fn draw(random: &mut Random) -> Moment {
        match random.below(10) {
            0 | 1 => Moment::Opening,
            2 | 3 => Moment::Answers(1 + random.below(10)),
            _ => Moment::Answers(1 + random.below(MAX_ANSWERS)),
        }
    }
}

/// Starts a child on the store at `path`, kills it, and gives what it told.
fn run_and_kill(path: &Path, random: &mut Random, model: &mut Model) -> Round {
    let moment = Moment::draw(random);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(PATH, path)
        .env(SEED, random.next().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = BufReader::new(child.stderr.take().unwrap());
    let mut ear = Ear { pipe, pending: [const { None }; THREADS], round: Round::default() };
    loop {
        assert!(ear.hear(model), "the child ended by itself:\n{}", ear.round.noise);
        let due = match moment {
            Moment::Opening => true,
            Moment::Answers(answers) => ear.round.answers >= answers,
        };
        if due {
            break;
        }
    }
    // The kill would else always hit at the moment of an answer.
    for _ in 0..random.below(64) {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    // What it had written into the pipe before counts.
    while ear.hear(model) {}
    child.wait().unwrap();
    assert!(ear.round.noise.is_empty(), "the child complained:\n{}", ear.round.noise);
    ear.all(model)
}

// The parent: what must be in the file.

#[derive(Default)]
struct Model {
    /// For every key that was ever touched, the states in which it may be.
    keys: BTreeMap<String, Vec<Candidate>>,
    highest_version: u64,
    lines: u64,
}

impl Model {
    /// Checks every key of an opened store against what was told in the round before.
    fn check(&mut self, store: &Store, mut round: Round) {
        for key in all_keys() {
            let calls = round.calls.remove(&key).unwrap_or_default();
            let before = self.keys.remove(&key).unwrap_or_else(|| vec![NEVER_BEGUN]);
            let found = store.get(&key).unwrap();
            check_what_was_seen(&key, &before, &calls);
            let may_be = survivors(&before, &calls);
            let explains =
                |candidate: &Candidate| fits(&key, candidate, &found, store.fingerprint(key.as_bytes()));
            let version = found.version().map(oncekey::Version::as_u64);
            let now: Vec<Candidate> = may_be
                .iter()
                .filter(|candidate| explains(candidate))
                .map(|candidate| Candidate { version: version.or(candidate.version), ..*candidate })
                .collect();
            assert!(!now.is_empty(), "{key} is {found:?}, but may be {may_be:?} after {calls:?}");
            self.highest_version = self.highest_version.max(version.unwrap_or(0));
            self.keys.insert(key, now);
        }
        assert!(round.calls.is_empty(), "keys that nobody knows: {:?}", round.calls.keys());
        // Each key has one entry, and there is none for what was never begun.
        assert!(store.stats().keys <= self.keys.len(), "{:?}", store.stats());
    }
}

/// A result that was given out was recorded by somebody, and given out as it was recorded.
fn check_what_was_seen(key: &str, before: &[Candidate], calls: &[Call]) {
    for call in calls {
        let Some(Answer::Seen { version, digest: seen }) = call.answer else { continue };
        let is_it =
            |state: State| matches!(state, State::Completed(payload) if digest(&payload.bytes()) == seen);
        let known =
            before.iter().any(|candidate| candidate.version == Some(version) && is_it(candidate.state));
        let recorded = calls.iter().any(|other| match other.answer {
            Some(Answer::Changed { version: changed, .. }) => changed == Some(version) && is_it(other.state),
            Some(_) => false,
            None => is_it(other.state),
        });
        assert!(known || recorded, "{key}: {call:?} saw what nobody recorded, {before:?} {calls:?}");
    }
}

/// The states in which a key may be after `calls`: those that no answered change has replaced for certain.
fn survivors(before: &[Candidate], calls: &[Call]) -> Vec<Candidate> {
    let changed = |call: &&Call| matches!(call.answer, Some(Answer::Changed { .. }));
    let last_announced = calls.iter().filter(changed).map(|call| call.announced).max().unwrap_or(0);
    let highest_version = calls.iter().filter_map(|call| match call.answer {
        Some(Answer::Changed { version, .. }) => version,
        // Whoever was shown a version must not be shown an earlier one.
        Some(Answer::Seen { version, .. }) => Some(version),
        _ => None,
    });
    let highest_version = highest_version.max().unwrap_or(0);
    let of_calls = calls.iter().filter_map(|call| {
        let Call { state, ended, answer, .. } = *call;
        match answer {
            Some(Answer::Changed { version, attempt }) => Some(Candidate { state, version, attempt, ended }),
            Some(_) => None,
            None => Some(Candidate { state, version: None, attempt: None, ended }),
        }
    });
    let not_replaced = |candidate: &Candidate| {
        candidate.ended >= last_announced
            && candidate.version.is_none_or(|version| version >= highest_version)
    };
    before.iter().copied().chain(of_calls).filter(not_replaced).collect()
}

/// Whether a key that is as the candidate says looks like what was found.
fn fits(key: &str, candidate: &Candidate, found: &KeyState, fingerprint: Fingerprint) -> bool {
    let completed = matches!(candidate.state, State::Completed(_));
    // Whether a millisecond has passed is left open.
    if found.is_absent() {
        return candidate.state == State::Absent || completed && kept(key) == Kept::Briefly;
    }
    let state = match (candidate.state, found.result()) {
        (State::Absent, _) => false,
        // There is no lease after an opening.
        (State::Begun, result) => found.status() == Status::InDoubt && result.is_none(),
        (State::Completed(payload), Some(result)) => found.is_completed() && payload.bytes() == result,
        (State::Completed(_), None) => found.is_completed() && kept(key) == Kept::WithoutResult,
    };
    let version = found.version().map(oncekey::Version::as_u64);
    state
        && candidate.version.is_none_or(|wanted| version == Some(wanted))
        && candidate.attempt.is_none_or(|wanted| found.attempt() == wanted)
        && found.fingerprint() == fingerprint
}

// The parent: the rounds.

/// The files of the test. If it fails they stay, and how to repeat it is told.
struct Scene {
    directory: Option<tempfile::TempDir>,
    seed: u64,
    rounds: usize,
}

impl Scene {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.directory.take().unwrap().keep();
            let Scene { seed, rounds, .. } = self;
            eprintln!(
                "{SEED}={seed} {ROUNDS}={rounds} cargo test --release --all-features --test kill\n\
                 the files are kept in {}",
                kept.display()
            );
        }
    }
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    let seed = seed();
    let rounds = usize::try_from(number_from(ROUNDS).unwrap_or(30)).unwrap();
    let directory = Some(tempfile::tempdir().unwrap());
    let scene = Scene { directory, seed, rounds };
    let (original, copy) = (scene.file("killed.once"), scene.file("copy.once"));

    let (mut random, mut model) = (Random(seed), Model::default());
    let (mut answers, mut checked, mut kills_while_opening, mut retired) = (0, 0, 0, 0);
    for _ in 0..rounds {
        let round = run_and_kill(&original, &mut random, &mut model);
        answers += round.answers;
        kills_while_opening += usize::from(!round.opened);
        retired += round.retired;
        if !original.exists() {
            assert_eq!(round.answers, 0, "the child worked on a file that is not there");
            continue;
        }
        // If the copy is opened, the next child finds the file as the kill left it. If the original is opened, the
        // copy keeps what the kill left for whoever looks into a failure.
        std::fs::copy(&original, &copy).unwrap();
        let opened = if random.percent(50) { &original } else { &copy };
        let store = small().max_result(MAX_RESULT_BYTES).open(opened).unwrap();
        model.check(&store, round);
        checked += all_keys().len();
        store.close().unwrap();
    }
    println!(
        "{rounds} rounds, {kills_while_opening} kills while opening, {answers} acknowledgements, \
         {checked} keys checked, {retired} segments retired"
    );
    // Otherwise the slots were never used again, and half of what this is for was not tried.
    assert!(retired > 0 || rounds < 30, "no segment was retired");
    assert!(answers >= rounds, "{answers} acknowledgements");
}
