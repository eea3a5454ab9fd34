//! The turns of the child that commit batches. The first batch begins and records. A second one ends what the first has begun.

use oncekey::{Answer as Answered, Answers, Doubt, Error, Lease, Status, Version};

use crate::child::{Worker, operation, send};
use crate::protocol::{Answer, LANES, Payload, State, all_last, digest};

/// The key of an entry, and the state in which it should leave that key.
type Planned = (String, State);

impl Worker<'_> {
    /// Commits a batch of begins and records, and then one that ends what was begun. The first is on keys of this thread and on
    /// shared ones, or it is atomic and on absent keys of this thread.
    pub fn commit_batches(&mut self, own: &[String], shared: &[String]) {
        let is_atomic = self.random.percent(50);
        let keys = self.draw_keys(own, shared, is_atomic);
        let mut batch = if is_atomic { self.store.batch().atomic() } else { self.store.batch() };
        let mut planned: Vec<Planned> = Vec::new();
        for key in &keys {
            let payload = Payload::draw(&mut self.random);
            let operation = operation(self.store, key, &mut self.random);
            let is_begin = self.random.percent(60);
            let added = match is_begin {
                true => batch.begin(operation),
                false => batch.record(operation, &payload.bytes()),
            };
            if fits(added) {
                planned.push((key.clone(), if is_begin { State::Begun } else { State::Completed(payload) }));
            }
        }
        self.announce(&planned, is_atomic);
        let mut answers = batch.commit().unwrap();
        drop(batch);
        // What is not taken from the answers is released by their drop.
        let left =
            if !is_atomic && self.random.percent(30) { self.random.below(planned.len() + 1) } else { 0 };
        let (mut leases, mut doubts) = (Vec::new(), Vec::new());
        for (lane, (key, state)) in planned.iter().enumerate() {
            if lane >= planned.len() - left {
                self.report(lane, Answer::Unknown);
                if *state == State::Begun {
                    self.leave(lane, key);
                }
                continue;
            }
            match self.take(lane, &mut answers) {
                Some(Answered::Acquired(lease)) => leases.push((key.clone(), lease)),
                Some(Answered::InDoubt(doubt)) => doubts.push((key.clone(), doubt)),
                _ => {}
            }
        }
        drop(answers);
        self.end_all(leases, doubts);
    }

    fn draw_keys(&mut self, own: &[String], shared: &[String], is_atomic: bool) -> Vec<String> {
        let count = 2 + self.random.below(LANES - 1);
        let mut keys: Vec<String> = Vec::new();
        for _ in 0..count {
            let among = if is_atomic || self.random.percent(75) { own } else { shared };
            keys.push(among[self.random.below(among.len())].clone());
        }
        if is_atomic {
            // Each entry must change its key, and stay visible, or the parent could not see whether it took effect.
            keys.sort();
            keys.dedup();
            keys.retain(|key| all_last(&[key]) && self.store.get(key).unwrap().status() == Status::Absent);
        }
        keys
    }

    /// Ends these leases and doubts in one batch, except those that it drops.
    fn end_all(&mut self, mut leases: Vec<(String, Lease)>, mut doubts: Vec<(String, Doubt)>) {
        leases.retain(|_| self.random.percent(80));
        doubts.retain(|_| self.random.percent(80));
        let attempts: Vec<u32> = (leases.iter().map(|(_, lease)| lease.attempt()))
            .chain(doubts.iter().map(|(_, doubt)| doubt.attempt()))
            .collect();
        let keys: Vec<&String> =
            leases.iter().map(|(key, _)| key).chain(doubts.iter().map(|(key, _)| key)).collect();
        let is_own = keys.iter().all(|key| key.starts_with(&format!("t{}-", self.thread)));
        let is_atomic = is_own && all_last(&keys) && self.random.percent(50);
        let mut batch = if is_atomic { self.store.batch().atomic() } else { self.store.batch() };
        let mut planned: Vec<Planned> = Vec::new();
        let mut of_attempts = Vec::new();
        let mut attempts = attempts.into_iter();
        for (key, lease) in &mut leases {
            let attempt = attempts.next();
            let payload = Payload::draw(&mut self.random);
            let (state, added) = match self.random.percent(75) {
                true => (State::Completed(payload), batch.complete(lease, &payload.bytes())),
                false => (State::Absent, batch.release(lease)),
            };
            if fits(added) {
                planned.push((key.clone(), state));
                of_attempts.push(attempt);
            }
        }
        for (key, doubt) in &mut doubts {
            let attempt = attempts.next();
            let payload = Payload::draw(&mut self.random);
            let (state, added) = match self.random.below(3) {
                0 => (State::Completed(payload), batch.complete(doubt, &payload.bytes())),
                1 => (State::Absent, batch.release(doubt)),
                _ => (State::Begun, batch.begin_again(doubt)),
            };
            if fits(added) {
                planned.push((key.clone(), state));
                of_attempts.push(attempt);
            }
        }
        self.announce(&planned, is_atomic);
        let mut answers = batch.commit().unwrap();
        for (lane, attempt) in of_attempts.into_iter().enumerate() {
            self.take_end(lane, attempt, &mut answers);
        }
    }

    /// Announces every entry of a batch, each in a lane of its own.
    fn announce(&self, planned: &[Planned], is_atomic: bool) {
        for (lane, (key, state)) in planned.iter().enumerate() {
            send(format_args!("call {} {lane} {key} {state}", self.thread));
        }
        if is_atomic && !planned.is_empty() {
            send(format_args!("atomic {} {}", self.thread, planned.len()));
        }
    }

    fn report(&self, lane: usize, answer: Answer) {
        send(format_args!("done {} {lane} {answer}", self.thread));
    }

    /// Announces that the attempt whose lease was left in the answers is released, now or with a later frame, if it began at all.
    fn leave(&self, lane: usize, key: &str) {
        send(format_args!("call {} {lane} {key} {}", self.thread, State::Absent));
        self.report(lane, Answer::Unknown);
    }

    /// Takes the answer of a begin or a record, and reports it.
    fn take(&self, lane: usize, answers: &mut Answers) -> Option<Answered> {
        let answered = self.unless_refused(answers.next().unwrap());
        let answer = match &answered {
            Some(Answered::Acquired(lease)) => changed(lease.version(), Some(lease.attempt())),
            Some(Answered::Done(version)) => changed(*version, None),
            Some(Answered::AlreadyDone(done)) => {
                Answer::Seen { version: done.version().as_u64(), digest: digest(done.result()) }
            }
            _ => Answer::Unchanged,
        };
        self.report(lane, answer);
        answered
    }

    /// Takes the answer of an entry that ends the attempt with this number, and reports it.
    fn take_end(&self, lane: usize, attempt: Option<u32>, answers: &mut Answers) {
        let answer = match self.unless_refused(answers.next().unwrap()) {
            Some(Answered::Acquired(lease)) => changed(lease.version(), Some(lease.attempt())),
            Some(Answered::Done(version)) => changed(version, attempt),
            Some(Answered::Released) => Answer::Changed { version: None, attempt: None },
            Some(other) => panic!("{other:?}"),
            None => Answer::Unchanged,
        };
        self.report(lane, answer);
    }

    fn unless_refused(&self, answered: Result<Answered, Error>) -> Option<Answered> {
        match answered {
            Ok(answered) => Some(answered),
            // These are answers about a key that other threads are changing. Any other error ends the child.
            Err(
                Error::InProgress { .. }
                | Error::InDoubt { .. }
                | Error::ResultExpired { .. }
                | Error::Fenced { .. }
                | Error::BatchRefused { .. },
            ) => None,
            Err(error) => panic!("thread {}: {error}", self.thread),
        }
    }
}

fn changed(version: Version, attempt: Option<u32>) -> Answer {
    Answer::Changed { version: Some(version.as_u64()), attempt }
}

/// Whether an entry was added. An atomic batch refuses what does not fit one frame.
fn fits(added: Result<(), Error>) -> bool {
    match added {
        Ok(()) => true,
        Err(Error::Option { option: "atomic", .. }) => false,
        Err(error) => panic!("{error}"),
    }
}
