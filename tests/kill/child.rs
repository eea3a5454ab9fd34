//! The process that is killed. Its threads make random calls of the store, and report each call and its outcome to the
//! parent.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use oncekey::{
    Begin, CasOutcome, Doubt, Durability, Error, Expected, Key, Lease, Next, Operation, Recorded, RunError,
    Store,
};

use crate::common::random::Random;
use crate::common::small;
use crate::protocol::{
    Answer, Kept, MAX_RESULT_BYTES, PATH, Payload, SEED, State, THREADS, digest, kept, keys_of, note_of,
    shared_keys,
};

/// Sends a line to the parent. Standard error is not buffered, and libtest does not capture direct writes to it, so each line
/// is one write. If the parent has ended, the write fails, which ends the child too.
pub fn send(line: impl Display) {
    std::io::stderr().write_all(format!("> {line}\n").as_bytes()).unwrap();
}

#[test]
#[ignore = "it is the process that the other test kills"]
fn child() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let mut random = Random(std::env::var(SEED).unwrap().parse().unwrap());
    loop {
        send("opening");
        let durability = if random.percent(50) { Durability::Sync } else { Durability::Buffered };
        let options = small().max_result(MAX_RESULT_BYTES).durability(durability).mmap(random.percent(80));
        let store = options.open(&path).unwrap();
        send("open");
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

pub struct Worker<'a> {
    pub store: &'a Store,
    pub thread: usize,
    pub random: Random,
    retired: u64,
}

impl Worker<'_> {
    fn work(mut self, calls: usize) {
        let (own_keys, shared_keys) = (keys_of(&format!("t{}", self.thread)), shared_keys());
        for _ in 0..calls {
            let keys = if self.random.percent(75) { &own_keys } else { &shared_keys };
            let key = &keys[self.random.below(keys.len())];
            if self.random.percent(15) {
                self.commit_batches(&own_keys, &shared_keys);
            } else {
                self.take_turn(key);
            }
            if self.thread == 0 {
                self.send_retired();
            }
        }
    }

    fn send_retired(&mut self) {
        let retired = self.store.stats().segments_retired;
        if retired > self.retired {
            send(format_args!("retired {}", retired - self.retired));
            self.retired = retired;
        }
    }

    /// Makes a call that should bring `key` into `state`. Announces it to the parent before, and reports the outcome after.
    fn call<T>(
        &self,
        key: &str,
        state: State,
        call: impl FnOnce() -> Result<T, Error>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> Option<T> {
        send(format_args!("call {} 0 {key} {state}", self.thread));
        let outcome = match call() {
            Ok(outcome) => Some(outcome),
            // These are answers about a key that other threads are changing. Any other error ends the child.
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
        send(format_args!("done {} 0 {answer}", self.thread));
        outcome
    }

    fn take_turn(&mut self, key: &str) {
        match self.random.below(100) {
            0..45 => self.perform(key),
            45..50 => self.fail(key),
            50..65 => self.record(key),
            65..78 => self.forget(key),
            78..92 => self.compare_and_set(key),
            92..96 => self.store.sync().unwrap(),
            96..99 => self.list_unfinished(),
            _ if self.thread == 0 => {
                self.store.compact().unwrap();
            }
            _ => {}
        }
    }

    fn perform(&mut self, key: &str) {
        let operation = operation(self.store, key, &mut self.random);
        let began = self.call(key, State::Begun, || operation.begin(), answer_to_begin);
        match began {
            Some(Begin::Acquired(lease)) => self.end(key, lease),
            Some(Begin::InDoubt(doubt)) => self.resolve(key, doubt),
            Some(Begin::Completed(_)) if self.random.percent(50) => self.forget(key),
            _ => {}
        }
    }

    /// Ends an operation in doubt by an error, of which the store keeps a note. Only on keys of this thread, because the error does
    /// not say under which version the operation is in doubt. Only on absent ones, because the other results are no numbers.
    fn fail(&mut self, key: &str) {
        let is_own = key.starts_with(&format!("t{}-", self.thread));
        if !is_own || !self.store.get(key).unwrap().is_absent() {
            return;
        }
        let operation = operation(self.store, key, &mut self.random);
        let run = || match operation.run(|_| Err::<u64, _>(note_of(key))) {
            Err(RunError::InDoubt { .. }) => Ok(()),
            Err(RunError::Store(error)) => Err(error),
            other => panic!("{other:?}"),
        };
        self.call(key, State::Begun, run, |()| {
            let seen = self.store.get(key).unwrap();
            Answer::Changed {
                version: seen.version().map(oncekey::Version::as_u64),
                attempt: Some(seen.attempt()),
            }
        });
    }

    /// Lists what is unfinished while other threads change it.
    fn list_unfinished(&self) {
        for listed in self.store.unfinished().unwrap() {
            let listed = listed.unwrap();
            assert!(
                listed
                    .note()
                    .is_none_or(|note| listed.key() == Key::new(&note[note.rfind(' ').unwrap() + 1..]))
            );
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
                self.call(key, State::Absent, || lease.release(), answer_without_version);
            }
            // Leaves the key in doubt, because the begin is already in the file.
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
                self.call(key, State::Absent, || doubt.release(), answer_without_version);
            }
            5..8 => {
                if let Some(lease) = self.call(key, State::Begun, || doubt.begin_again(), answer_to_lease) {
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
        // A compare-and-set takes no retention, so it would keep a key of another kind for too long.
        if kept(key) != Kept::Lasting {
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
            // Version 0 means that an absent key stayed absent.
            CasOutcome::Done(version) if version.as_u64() > 0 => {
                Answer::Changed { version: Some(version.as_u64()), attempt: None }
            }
            _ => Answer::Unchanged,
        });
    }
}

/// Prepares an operation on `key` with the key's retention, at random synced or buffered.
pub fn operation<'a>(store: &'a Store, key: &'a str, random: &mut Random) -> Operation<'a> {
    let durability = if random.percent(50) { Durability::Sync } else { Durability::Buffered };
    let fingerprint = store.fingerprint(key.as_bytes());
    let operation = store.operation(key).durability(durability).fingerprint(fingerprint);
    let moment = Duration::from_millis(1);
    match kept(key) {
        Kept::Lasting => operation,
        Kept::Faded => operation.retain_result(moment),
        Kept::Brief => operation.retain(moment),
    }
}

fn answer_to_begin(began: &Begin) -> Answer {
    match began {
        Begin::Acquired(lease) => answer_to_lease(lease),
        Begin::Completed(done) => {
            Answer::Seen { version: done.version().as_u64(), digest: digest(done.result()) }
        }
        _ => Answer::Unchanged,
    }
}

fn answer_to_lease(lease: &Lease) -> Answer {
    Answer::Changed { version: Some(lease.version().as_u64()), attempt: Some(lease.attempt()) }
}

fn answer_without_version(_: &()) -> Answer {
    Answer::Changed { version: None, attempt: None }
}
