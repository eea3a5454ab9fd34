//! Starts a child, reads its messages from the pipe, and kills it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};

use crate::common::random::Random;
use crate::model::{AtomicBatch, Call, Model, Round};
use crate::protocol::{Answer, LANES, PATH, SEED, State, THREADS};

/// The maximum number of answers after which a child is killed.
const MAX_ANSWERS: usize = 400;

/// The pipe from a running child, and what was read from it.
struct Listener {
    pipe: BufReader<ChildStderr>,
    /// For each lane of each thread of the child, the key and the call that has no answer yet, and the highest version when that
    /// call was announced.
    pending: [[Option<(String, Call, u64)>; LANES]; THREADS],
    /// The atomic batch of each thread of which not every entry was answered.
    atomic: [Option<AtomicBatch>; THREADS],
    round: Round,
}

impl Listener {
    /// Reads one line. Returns false at the end of the pipe.
    fn read_line(&mut self, model: &mut Model) -> bool {
        let mut line = String::new();
        let count = self.pipe.read_line(&mut line).unwrap();
        let Some(message) = line.strip_prefix("> ").and_then(|line| line.strip_suffix('\n')) else {
            self.round.noise += &line;
            return count > 0;
        };
        model.lines += 1;
        let mut words = message.split(' ');
        match words.next().unwrap() {
            "opening" => self.round.opened = false,
            "open" => self.round.opened = true,
            "retired" => self.round.retired += words.next().unwrap().parse::<u64>().unwrap(),
            "call" => {
                let (thread, lane) = (number(&mut words), number(&mut words));
                let key = words.next().unwrap().to_owned();
                let state = State::parse(words);
                let call = Call { state, announced: model.lines, ended: u64::MAX, answer: None };
                let pending = &mut self.pending[thread][lane];
                assert!(pending.is_none(), "a thread announced two calls at once");
                *pending = Some((key, call, model.highest_version));
            }
            "atomic" => {
                let (thread, count) = (number(&mut words), number(&mut words));
                let entries = self.pending[thread][..count].iter().flatten();
                let entries =
                    entries.map(|(key, call, highest)| (key.clone(), call.state, *highest)).collect();
                self.round.atomic_batches += 1;
                self.atomic[thread] = Some(AtomicBatch { entries, has_changed: false });
            }
            "done" => {
                let (thread, lane) = (number(&mut words), number(&mut words));
                let (key, call, highest_version) = self.pending[thread][lane].take().unwrap();
                let answer = Answer::parse(words);
                if let Some(batch) = &mut self.atomic[thread] {
                    batch.has_changed |= matches!(answer, Answer::Changed { .. });
                    if self.pending[thread].iter().all(Option::is_none) {
                        self.atomic[thread] = None;
                    }
                }
                if let Answer::Changed { version: Some(version), .. } = answer {
                    assert!(version > highest_version, "{key}: version {version} after {highest_version}");
                    model.highest_version = model.highest_version.max(version);
                }
                self.round.answers += 1;
                let call = Call { ended: model.lines, answer: Some(answer), ..call };
                self.round.calls.entry(key).or_default().push(call);
            }
            other => panic!("unknown message: {other}"),
        }
        true
    }

    /// Returns everything that was read. Called at the end of the pipe.
    fn finish(mut self, model: &Model) -> Round {
        self.round.interrupted.extend(self.atomic.into_iter().flatten());
        for (key, call, _) in self.pending.into_iter().flatten().flatten() {
            let call = Call { ended: model.lines, ..call };
            self.round.calls.entry(key).or_default().push(call);
        }
        self.round
    }
}

fn number(words: &mut std::str::Split<'_, char>) -> usize {
    words.next().unwrap().parse().unwrap()
}

/// When to kill a child. This is counted in answers instead of time, so that it does not depend on the speed of the machine.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// While the child is opening the store, before it can change anything.
    Opening,
    /// After this many answers.
    Answers(usize),
    /// When this many atomic batches were announced, while the child commits the last of them.
    AtomicBatch(usize),
}

impl Moment {
    fn draw(random: &mut Random) -> Moment {
        match random.below(10) {
            0 | 1 => Moment::Opening,
            2 | 3 => Moment::Answers(1 + random.below(10)),
            4 | 5 => Moment::AtomicBatch(1 + random.below(MAX_ANSWERS / 20)),
            _ => Moment::Answers(1 + random.below(MAX_ANSWERS)),
        }
    }
}

/// Starts a child on the store at `path`, kills it, and returns what it wrote.
pub fn run_and_kill(path: &Path, random: &mut Random, model: &mut Model) -> Round {
    let moment = Moment::draw(random);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child::child", "--nocapture"])
        .env(PATH, path)
        .env(SEED, random.next().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = BufReader::new(child.stderr.take().unwrap());
    let (pending, atomic) = ([const { [const { None }; LANES] }; THREADS], [const { None }; THREADS]);
    let mut listener = Listener { pipe, pending, atomic, round: Round::default() };
    loop {
        assert!(listener.read_line(model), "the child ended by itself:\n{}", listener.round.noise);
        let due = match moment {
            Moment::Opening => true,
            Moment::Answers(answers) => listener.round.answers >= answers,
            Moment::AtomicBatch(batches) => listener.round.atomic_batches >= batches,
        };
        if due {
            break;
        }
    }
    // Without a random delay the kill would always come directly after an answer.
    for _ in 0..random.below(64) {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    // What the child wrote into the pipe before the kill counts too.
    while listener.read_line(model) {}
    child.wait().unwrap();
    assert!(listener.round.noise.is_empty(), "the child printed:\n{}", listener.round.noise);
    listener.finish(model)
}
