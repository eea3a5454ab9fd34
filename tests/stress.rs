//! Checks that the answers of a store on a real file to unsynchronized threads are consistent with one order of their
//! calls.
//!
//! The test cannot compare answers with a model while the threads are running: the model would need a lock around the
//! calls, and the lock would order them. Instead each thread keeps its own log of its calls and their outcomes, with the
//! tick of a shared counter before and after each call. If the tick after one call is less than the tick before another,
//! the first call happened before the second. Otherwise both orders are possible. The test compares the logs afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::random::Random;
use common::{NONE, Place, acquire, small};
use oncekey::{
    Begin, CasOutcome, Doubt, Durability, Error, Expected, KeyState, Lease, Next, Recorded, Status, Store,
    Version,
};

const THREADS: u64 = 8;
const TURNS: usize = 8_000;
const KEYS: usize = 30;
/// The key of a lease that the test keeps until all threads have ended, so that none of them can close the store.
const ANCHOR: &str = "anchor";

/// Whether no takeover is possible on this key: its leases have no deadline, and no thread changes it by
/// compare-and-set. On such a key, two side effects that run at the same time are a failure.
fn is_exclusive(key: usize) -> bool {
    key.is_multiple_of(3)
}

// The logs.

/// The state in which a call left or found a key. The number in the first bytes of a result is unique and identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Begun,
    Completed(u64),
}

/// The ticks before and after a call.
#[derive(Debug, Clone, Copy)]
struct Span {
    before: u64,
    after: u64,
}

/// A change that took effect. A release or a forget returns no version.
#[derive(Debug, Clone, Copy)]
struct Change {
    span: Span,
    state: State,
    version: Option<u64>,
    /// The version of the lease or doubt that the change ended.
    ends: Option<u64>,
}

/// A state that a call found.
#[derive(Debug, Clone, Copy)]
struct Observation {
    span: Span,
    state: State,
    version: Option<u64>,
}

#[derive(Default)]
struct Log {
    changes: Vec<Change>,
    observations: Vec<Observation>,
}

/// Makes a result of random length that begins with `number`.
fn result_of(number: u64, random: &mut Random) -> Vec<u8> {
    let mut filler = Random(number);
    let length = random.below(600);
    let filler = std::iter::repeat_with(|| filler.next().to_le_bytes()).flatten().take(length);
    number.to_le_bytes().into_iter().chain(filler).collect()
}

/// Returns the number of a result, after checking that the bytes are those that `result_of` makes from it.
fn number_of(result: &[u8]) -> u64 {
    let (number, rest) = result.split_at(8);
    let number = u64::from_le_bytes(number.try_into().unwrap());
    let mut filler = Random(number);
    let filler = std::iter::repeat_with(|| filler.next().to_le_bytes()).flatten();
    assert!(rest.iter().copied().eq(filler.take(rest.len())), "a result that no thread recorded");
    number
}

// The threads.

struct Worker<'a> {
    store: Store,
    /// The number of threads that are running the side effect of each key.
    running: &'a [AtomicU64],
    ticks: &'a AtomicU64,
    random: Random,
    logs: Vec<Log>,
}

impl Worker<'_> {
    fn work(mut self) -> Vec<Log> {
        for _ in 0..TURNS {
            self.take_turn();
        }
        self.logs
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> (Span, T) {
        let before = self.tick();
        let outcome = call();
        (Span { before, after: self.tick() }, outcome)
    }

    fn changed(
        &mut self,
        key: usize,
        span: Span,
        state: State,
        version: Option<Version>,
        ends: Option<Version>,
    ) {
        let (version, ends) = (version.map(Version::as_u64), ends.map(Version::as_u64));
        self.logs[key].changes.push(Change { span, state, version, ends });
    }

    fn saw(&mut self, key: usize, span: Span, state: State, version: Option<Version>) {
        self.logs[key].observations.push(Observation { span, state, version: version.map(Version::as_u64) });
    }

    fn saw_state(&mut self, key: usize, span: Span, seen: &KeyState) {
        let state = match seen.status() {
            Status::Absent => State::Absent,
            Status::Completed => State::Completed(number_of(seen.result().unwrap())),
            _ => State::Begun,
        };
        self.saw(key, span, state, seen.version());
    }

    fn take_turn(&mut self) {
        let key = self.random.below(KEYS);
        match self.random.below(1_000) {
            0..450 => self.begin(key),
            450..530 => self.record(key),
            530..700 => self.forget(key),
            700..850 => {
                let (span, seen) = self.timed(|| self.store.get(&name(key)).unwrap());
                self.saw_state(key, span, &seen);
            }
            850..950 if !is_exclusive(key) => self.compare_and_set(key),
            950..960 => self.store.sync().unwrap(),
            960..962 => {
                self.store.compact().unwrap();
            }
            962..980 => self.store = self.store.clone(),
            980..990 => match self.store.close() {
                Err(Error::LeasesAlive { count, .. }) => assert!(count > 0),
                other => panic!("closing a store with a live lease returned {other:?}"),
            },
            _ => assert!(self.store.stats().leases > 0),
        }
    }

    fn begin(&mut self, key: usize) {
        let name = name(key);
        let mut operation = self.store.operation(&name).durability(Durability::Buffered);
        match self.random.below(10) {
            0 => operation = operation.durability(Durability::Sync),
            1 => operation = operation.wait(Duration::from_millis(1)),
            2..5 if !is_exclusive(key) => operation = operation.lease(Duration::from_millis(1)),
            _ => {}
        }
        let (span, began) = self.timed(|| operation.begin().unwrap());
        match began {
            Begin::Acquired(lease) => {
                self.changed(key, span, State::Begun, Some(lease.version()), None);
                self.run(key, lease);
            }
            Begin::Completed(done) => {
                let state = State::Completed(number_of(done.result()));
                self.saw(key, span, state, Some(done.version()));
            }
            Begin::InDoubt(doubt) => {
                self.saw(key, span, State::Begun, Some(doubt.version()));
                self.resolve(key, doubt);
            }
            Begin::InProgress { attempt, .. } => assert!(attempt > 0),
            other => panic!("{other:?}"),
        }
    }

    /// Runs the side effect and ends the lease in one of three ways.
    fn run(&mut self, key: usize, mut lease: Lease) {
        let others = self.running[key].fetch_add(1, Ordering::SeqCst);
        assert!(
            others == 0 || !is_exclusive(key),
            "two threads ran the side effect of {} at once",
            name(key)
        );
        for _ in 0..self.random.below(4) {
            std::thread::yield_now();
        }
        self.running[key].fetch_sub(1, Ordering::SeqCst);
        let version = lease.version();
        match self.random.below(10) {
            0..7 => {
                let number = self.random.next();
                let result = result_of(number, &mut self.random);
                let (span, completed) = self.timed(|| lease.complete(&result));
                assert!(completed.is_ok() || !is_exclusive(key), "{}: {completed:?}", name(key));
                self.ended(key, span, State::Completed(number), version, completed.map(Some));
            }
            7 => {
                let (span, released) = self.timed(|| lease.release());
                assert!(released.is_ok() || !is_exclusive(key), "{}: {released:?}", name(key));
                self.ended(key, span, State::Absent, version, released.map(|()| None));
            }
            _ => drop(lease),
        }
    }

    fn resolve(&mut self, key: usize, mut doubt: Doubt) {
        let version = doubt.version();
        match self.random.below(4) {
            0 => {
                let number = self.random.next();
                let result = result_of(number, &mut self.random);
                let (span, completed) = self.timed(|| doubt.complete(&result));
                self.ended(key, span, State::Completed(number), version, completed.map(Some));
            }
            1 => {
                let (span, released) = self.timed(|| doubt.release());
                self.ended(key, span, State::Absent, version, released.map(|()| None));
            }
            2 => match self.timed(|| doubt.begin_again()) {
                (span, Ok(lease)) => {
                    self.changed(key, span, State::Begun, Some(lease.version()), Some(version));
                    self.run(key, lease);
                }
                // Another thread may forget the key while this one holds the doubt.
                (_, Err(error)) => assert!(matches!(error, Error::Fenced { .. }), "{}: {error}", name(key)),
            },
            _ => drop(doubt),
        }
    }

    fn ended(
        &mut self,
        key: usize,
        span: Span,
        state: State,
        ends: Version,
        outcome: Result<Option<Version>, Error>,
    ) {
        match outcome {
            Ok(version) => self.changed(key, span, state, version, Some(ends)),
            Err(error) => assert!(matches!(error, Error::Fenced { .. }), "{}: {error}", name(key)),
        }
    }

    fn record(&mut self, key: usize) {
        let number = self.random.next();
        let result = result_of(number, &mut self.random);
        let name = name(key);
        let durability = if self.random.below(10) == 0 { Durability::Sync } else { Durability::Buffered };
        let operation = self.store.operation(&name).durability(durability);
        match self.timed(|| operation.record(&result)) {
            (span, Ok(Recorded::Done(version))) => {
                self.changed(key, span, State::Completed(number), Some(version), None);
            }
            (span, Ok(Recorded::AlreadyDone(done))) => {
                let state = State::Completed(number_of(done.result()));
                self.saw(key, span, state, Some(done.version()));
            }
            (span, Err(Error::InDoubt { version, .. })) => {
                self.saw(key, span, State::Begun, Some(version));
            }
            (_, Err(Error::InProgress { .. })) => {}
            (_, other) => panic!("{other:?}"),
        }
    }

    fn forget(&mut self, key: usize) {
        match self.timed(|| self.store.forget(&name(key))) {
            (span, Ok(true)) => self.changed(key, span, State::Absent, None, None),
            (span, Ok(false)) => self.saw(key, span, State::Absent, None),
            (_, Err(Error::InProgress { .. })) => {}
            (_, Err(other)) => panic!("{other}"),
        }
    }

    fn compare_and_set(&mut self, key: usize) {
        let name = name(key);
        let (span, seen) = self.timed(|| self.store.get(&name).unwrap());
        self.saw_state(key, span, &seen);
        let expected = match seen.version() {
            Some(version) => Expected::Present { status: seen.status(), version },
            None => Expected::Absent,
        };
        let number = self.random.next();
        let result = result_of(number, &mut self.random);
        let (state, next) = match self.random.below(3) {
            0 => (State::Absent, Next::Absent),
            1 => (State::Begun, Next::InDoubt { fingerprint: NONE }),
            _ => (State::Completed(number), Next::Completed { fingerprint: NONE, result: &result }),
        };
        match self.timed(|| self.store.compare_and_set(&name, expected, next)) {
            // Version 0 means that an absent key stayed absent.
            (span, Ok(CasOutcome::Done(version))) if version.as_u64() == 0 => {
                self.saw(key, span, State::Absent, None);
            }
            (span, Ok(CasOutcome::Done(version))) => {
                self.changed(key, span, state, Some(version), seen.version());
            }
            (span, Ok(CasOutcome::Differs(seen))) => self.saw_state(key, span, &seen),
            (_, Err(Error::Conflict { .. })) => assert!(seen.is_completed()),
            (_, other) => panic!("{other:?}"),
        }
    }
}

fn name(key: usize) -> String {
    format!("k{key}")
}

// The comparison.

/// What is certain about a key at a tick.
#[derive(Debug, Clone, Copy, Default)]
struct Certain {
    /// The latest tick before a change that had ended by then.
    last_before: u64,
    /// The highest version among the changes and observations that had ended by then.
    highest_version: u64,
}

/// Returns what is certain at the end of each change or observation.
fn certain_by_tick(log: &Log) -> BTreeMap<u64, Certain> {
    let of_changes = log.changes.iter().map(|change| (change.span, true, change.version));
    let of_observations =
        log.observations.iter().map(|observation| (observation.span, false, observation.version));
    let mut ends: Vec<_> = of_changes.chain(of_observations).collect();
    ends.sort_by_key(|(span, ..)| span.after);
    let mut certain = Certain::default();
    let mut by_tick = BTreeMap::from([(0, certain)]);
    for (span, is_change, version) in ends {
        if is_change {
            certain.last_before = certain.last_before.max(span.before);
        }
        certain.highest_version = certain.highest_version.max(version.unwrap_or(0));
        by_tick.insert(span.after, certain);
    }
    by_tick
}

/// Checks that every observation shows the state of a change that had begun and that no other change had certainly
/// replaced.
fn check_observations(key: usize, log: &Log) {
    let by_tick = certain_by_tick(log);
    let by_version: HashMap<u64, &Change> =
        log.changes.iter().filter_map(|change| Some((change.version?, change))).collect();
    for observation in &log.observations {
        let (_, certain) = by_tick.range(..=observation.span.before).next_back().unwrap();
        let could_show = |change: &Change| {
            change.state == observation.state
                && change.span.before < observation.span.after
                && change.span.after > certain.last_before
                && change.version.is_none_or(|version| version >= certain.highest_version)
        };
        let shown = match observation.version {
            Some(version) => by_version.get(&version).is_some_and(|change| could_show(change)),
            None => certain.last_before == 0 || log.changes.iter().any(could_show),
        };
        assert!(shown, "{}: {observation:?} contradicts what was certain by then: {certain:?}", name(key));
    }
}

/// Checks that a completion is only ever followed by another one after a change that removed the first.
fn check_that_completions_persist(key: usize, log: &Log) {
    let mut completed: Vec<&Change> =
        log.changes.iter().filter(|change| matches!(change.state, State::Completed(_))).collect();
    completed.sort_by_key(|change| change.version);
    for pair in completed.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let removed = log.changes.iter().any(|change| {
            change.state == State::Absent
                && change.span.after > first.span.before
                && change.span.before < second.span.after
                && change
                    .version
                    .is_none_or(|version| Some(version) > first.version && Some(version) < second.version)
        });
        assert!(removed, "{}: {second:?} replaced {first:?}, which no change had removed", name(key));
    }
}

/// Checks that no attempt ends twice.
fn check_that_attempts_end_once(key: usize, log: &Log) {
    let mut ended = HashSet::new();
    for change in &log.changes {
        if let Some(version) = change.ends {
            assert!(ended.insert(version), "{}: {change:?} ended an attempt for the second time", name(key));
        }
    }
}

/// Checks that versions are unique in the whole store and grow with time.
fn check_versions(logs: &[Log]) {
    let all = logs.iter().flat_map(|log| &log.changes);
    let mut versioned: Vec<(Span, u64)> =
        all.filter_map(|change| Some((change.span, change.version?))).collect();
    let unique: HashSet<u64> = versioned.iter().map(|(_, version)| *version).collect();
    assert_eq!(unique.len(), versioned.len(), "a version was given out twice");
    // In the order of the versions, no change may have ended before an earlier one began.
    versioned.sort_by_key(|(_, version)| *version);
    let mut latest_before = 0;
    for (span, version) in versioned {
        assert!(span.after > latest_before, "version {version} was given out before a lower one");
        latest_before = latest_before.max(span.before);
    }
}

/// Merges the logs of all threads into one log for each key.
fn merged(of_threads: Vec<Vec<Log>>) -> Vec<Log> {
    let mut logs: Vec<Log> = (0..KEYS).map(|_| Log::default()).collect();
    for (key, log) in of_threads.into_iter().flat_map(|logs| logs.into_iter().enumerate()) {
        logs[key].changes.extend(log.changes);
        logs[key].observations.extend(log.observations);
    }
    logs
}

/// Reads every key once more, and adds the observations to `logs`.
fn read_all(store: &Store, ticks: &AtomicU64, logs: &mut Vec<Log>) {
    let mut worker =
        Worker { store: store.clone(), running: &[], ticks, random: Random(0), logs: std::mem::take(logs) };
    for key in 0..KEYS {
        let (span, seen) = worker.timed(|| worker.store.get(&name(key)).unwrap());
        worker.saw_state(key, span, &seen);
    }
    *logs = worker.logs;
}

#[test]
fn answers_to_unsynchronized_threads_fit_one_order() {
    let place = Place::new();
    let options = small().durability(Durability::Buffered).max_result(4_096);
    let store = options.open(&place.path).unwrap();
    let anchor = acquire(&store, ANCHOR);
    let running: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let ticks = AtomicU64::new(1);
    let of_threads: Vec<Vec<Log>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let worker = Worker {
                    store: store.clone(),
                    running: &running,
                    ticks: &ticks,
                    random: Random(thread),
                    logs: (0..KEYS).map(|_| Log::default()).collect(),
                };
                scope.spawn(move || worker.work())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut logs = merged(of_threads);

    read_all(&store, &ticks, &mut logs);
    let stats = store.stats();
    assert_eq!(stats.leases, 1, "a lease other than the anchor is alive");
    assert!(stats.keys <= KEYS + 1, "the index has more entries than there are keys: {stats:?}");
    assert!(stats.segments_retired > 0, "the test must cover retired segments");
    drop(anchor);
    store.close().unwrap();
    read_all(&options.open(&place.path).unwrap(), &ticks, &mut logs);

    for (key, log) in logs.iter().enumerate() {
        check_observations(key, log);
        check_that_completions_persist(key, log);
        check_that_attempts_end_once(key, log);
    }
    check_versions(&logs);
    let changes: usize = logs.iter().map(|log| log.changes.len()).sum();
    let observations: usize = logs.iter().map(|log| log.observations.len()).sum();
    println!("{changes} changes, {observations} observations, {} segments retired", stats.segments_retired);
}
