//! Real threads, the real file, a small key space, and no order imposed on anybody.
//!
//! Nothing is checked while the threads run, because a model beside the store would need a lock around its calls and
//! put them into an order. Each thread keeps a diary of its own instead: what it called, what came of it, and two
//! ticks of a shared counter, before and after. If the tick after one call is less than the tick before another, the
//! one happened before the other; otherwise both orders are possible. The diaries are compared afterwards.
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
/// Held from the beginning to the end, so that an attempt to close the store finds a lease.
const ANCHOR: &str = "anchor";

/// On every third key nobody takes anything over: no lease has a deadline and nothing is set. There, two acts at once
/// are a failure by themselves.
fn is_exclusive(key: usize) -> bool {
    key.is_multiple_of(3)
}

// The diaries.

/// What a key is after a call or was seen to be. A result is known by the number that it begins with, which no other
/// result has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Begun,
    Completed(u64),
}

/// From when to when a call took.
#[derive(Debug, Clone, Copy)]
struct Span {
    before: u64,
    after: u64,
}

/// A change that took place. Releases and forgets do not tell their version.
#[derive(Debug, Clone, Copy)]
struct Change {
    span: Span,
    state: State,
    version: Option<u64>,
    /// The version of the lease or doubt that it ended.
    ends: Option<u64>,
}

/// How a key was found.
#[derive(Debug, Clone, Copy)]
struct Sight {
    span: Span,
    state: State,
    version: Option<u64>,
}

#[derive(Default)]
struct Diary {
    changes: Vec<Change>,
    sights: Vec<Sight>,
}

fn result_of(number: u64, random: &mut Random) -> Vec<u8> {
    let mut filler = Random(number);
    let length = random.below(600);
    let filler = std::iter::repeat_with(|| filler.next().to_le_bytes()).flatten().take(length);
    number.to_le_bytes().into_iter().chain(filler).collect()
}

/// The number of a result, after its bytes have been compared with what belongs to the number.
fn number_of(result: &[u8]) -> u64 {
    let (number, rest) = result.split_at(8);
    let number = u64::from_le_bytes(number.try_into().unwrap());
    let mut filler = Random(number);
    let filler = std::iter::repeat_with(|| filler.next().to_le_bytes()).flatten();
    assert!(rest.iter().copied().eq(filler.take(rest.len())), "a result that nobody recorded");
    number
}

// The threads.

struct Worker<'a> {
    store: Store,
    /// What is outside the store: how many perform the act of each key at this moment.
    acting: &'a [AtomicU64],
    ticks: &'a AtomicU64,
    random: Random,
    diaries: Vec<Diary>,
}

impl Worker<'_> {
    fn work(mut self) -> Vec<Diary> {
        for _ in 0..TURNS {
            self.turn();
        }
        self.diaries
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
        self.diaries[key].changes.push(Change { span, state, version, ends });
    }

    fn saw(&mut self, key: usize, span: Span, state: State, version: Option<Version>) {
        self.diaries[key].sights.push(Sight { span, state, version: version.map(Version::as_u64) });
    }

    fn saw_snapshot(&mut self, key: usize, span: Span, seen: &KeyState) {
        let state = match seen.status() {
            Status::Absent => State::Absent,
            Status::Completed => State::Completed(number_of(seen.result().unwrap())),
            _ => State::Begun,
        };
        self.saw(key, span, state, seen.version());
    }

    fn turn(&mut self) {
        let key = self.random.below(KEYS);
        match self.random.below(1_000) {
            0..450 => self.begin(key),
            450..530 => self.record(key),
            530..700 => self.forget(key),
            700..850 => {
                let (span, seen) = self.timed(|| self.store.get(&name(key)).unwrap());
                self.saw_snapshot(key, span, &seen);
            }
            850..950 if !is_exclusive(key) => self.compare_and_set(key),
            950..960 => self.store.sync().unwrap(),
            960..962 => {
                self.store.compact().unwrap();
            }
            962..980 => self.store = self.store.clone(),
            980..990 => match self.store.close() {
                Err(Error::LeasesAlive { count, .. }) => assert!(count > 0),
                other => panic!("closed under a lease: {other:?}"),
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
                self.act(key, lease);
            }
            Begin::Completed(done) => {
                let state = State::Completed(number_of(done.result()));
                self.saw(key, span, state, Some(done.version()));
            }
            Begin::InDoubt(doubt) => {
                self.saw(key, span, State::Begun, Some(doubt.version()));
                self.resolve(key, doubt);
            }
            Begin::InProgress { attempt } => assert!(attempt > 0),
            other => panic!("{other:?}"),
        }
    }

    /// Performs the act, and ends the lease in one of its three ways.
    fn act(&mut self, key: usize, mut lease: Lease) {
        let others = self.acting[key].fetch_add(1, Ordering::SeqCst);
        assert!(others == 0 || !is_exclusive(key), "two perform the act of {} at once", name(key));
        for _ in 0..self.random.below(4) {
            std::thread::yield_now();
        }
        self.acting[key].fetch_sub(1, Ordering::SeqCst);
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
                    self.act(key, lease);
                }
                // A doubt keeps nobody from forgetting the key.
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
        self.saw_snapshot(key, span, &seen);
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
            // Version 0: absent stayed absent.
            (span, Ok(CasOutcome::Done(version))) if version.as_u64() == 0 => {
                self.saw(key, span, State::Absent, None);
            }
            (span, Ok(CasOutcome::Done(version))) => {
                self.changed(key, span, state, Some(version), seen.version());
            }
            (span, Ok(CasOutcome::Differs(seen))) => self.saw_snapshot(key, span, &seen),
            (_, Err(Error::Conflict { .. })) => assert!(seen.is_completed()),
            (_, other) => panic!("{other:?}"),
        }
    }
}

fn name(key: usize) -> String {
    format!("k{key}")
}

// The comparison.

/// What had certainly been said of a key before some tick.
#[derive(Debug, Clone, Copy, Default)]
struct Settled {
    /// When the last of the changes that were over began.
    last_before: u64,
    /// The highest version among changes that were over and sights that had been had.
    highest_version: u64,
}

/// For each end of a change or a sight, what was settled by then.
fn settled_by_tick(diary: &Diary) -> BTreeMap<u64, Settled> {
    let of_changes = diary.changes.iter().map(|change| (change.span, true, change.version));
    let of_sights = diary.sights.iter().map(|sight| (sight.span, false, sight.version));
    let mut ends: Vec<_> = of_changes.chain(of_sights).collect();
    ends.sort_by_key(|(span, ..)| span.after);
    let mut settled = Settled::default();
    let mut by_tick = BTreeMap::from([(0, settled)]);
    for (span, is_change, version) in ends {
        if is_change {
            settled.last_before = settled.last_before.max(span.before);
        }
        settled.highest_version = settled.highest_version.max(version.unwrap_or(0));
        by_tick.insert(span.after, settled);
    }
    by_tick
}

/// Every sight shows what a change has made that had begun, and that no other change had replaced for certain.
fn check_sights(key: usize, diary: &Diary) {
    let by_tick = settled_by_tick(diary);
    let by_version: HashMap<u64, &Change> =
        diary.changes.iter().filter_map(|change| Some((change.version?, change))).collect();
    for sight in &diary.sights {
        let (_, settled) = by_tick.range(..=sight.span.before).next_back().unwrap();
        let could_show = |change: &Change| {
            change.state == sight.state
                && change.span.before < sight.span.after
                && change.span.after > settled.last_before
                && change.version.is_none_or(|version| version >= settled.highest_version)
        };
        let shown = match sight.version {
            Some(version) => by_version.get(&version).is_some_and(|change| could_show(change)),
            None => settled.last_before == 0 || diary.changes.iter().any(could_show),
        };
        assert!(shown, "{}: {sight:?} with {settled:?} settled before it", name(key));
    }
}

/// Between two completions of a key somebody gave up the first.
fn check_that_completions_stand(key: usize, diary: &Diary) {
    let mut completed: Vec<&Change> =
        diary.changes.iter().filter(|change| matches!(change.state, State::Completed(_))).collect();
    completed.sort_by_key(|change| change.version);
    for pair in completed.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let given_up = diary.changes.iter().any(|change| {
            change.state == State::Absent
                && change.span.after > first.span.before
                && change.span.before < second.span.after
                && change
                    .version
                    .is_none_or(|version| Some(version) > first.version && Some(version) < second.version)
        });
        assert!(given_up, "{}: {first:?} was replaced by {second:?}", name(key));
    }
}

/// An attempt ends once.
fn check_that_attempts_end_once(key: usize, diary: &Diary) {
    let mut ended = HashSet::new();
    for change in &diary.changes {
        if let Some(version) = change.ends {
            assert!(ended.insert(version), "{}: {change:?} ends what had ended", name(key));
        }
    }
}

/// Versions are unique in the whole store and grow with time.
fn check_versions(diaries: &[Diary]) {
    let all = diaries.iter().flat_map(|diary| &diary.changes);
    let mut versioned: Vec<(Span, u64)> =
        all.filter_map(|change| Some((change.span, change.version?))).collect();
    let unique: HashSet<u64> = versioned.iter().map(|(_, version)| *version).collect();
    assert_eq!(unique.len(), versioned.len(), "a version was given twice");
    // In the order of the versions, no change may have been over before an earlier one began.
    versioned.sort_by_key(|(_, version)| *version);
    let mut latest_before = 0;
    for (span, version) in versioned {
        assert!(span.after > latest_before, "version {version} was given before a lower one");
        latest_before = latest_before.max(span.before);
    }
}

/// What each thread wrote about a key, in one diary.
fn merged(of_threads: Vec<Vec<Diary>>) -> Vec<Diary> {
    let mut diaries: Vec<Diary> = (0..KEYS).map(|_| Diary::default()).collect();
    for (key, diary) in of_threads.into_iter().flat_map(|diaries| diaries.into_iter().enumerate()) {
        diaries[key].changes.extend(diary.changes);
        diaries[key].sights.extend(diary.sights);
    }
    diaries
}

fn look_at_all(store: &Store, ticks: &AtomicU64, diaries: &mut Vec<Diary>) {
    let mut worker = Worker {
        store: store.clone(),
        acting: &[],
        ticks,
        random: Random(0),
        diaries: std::mem::take(diaries),
    };
    for key in 0..KEYS {
        let (span, seen) = worker.timed(|| worker.store.get(&name(key)).unwrap());
        worker.saw_snapshot(key, span, &seen);
    }
    *diaries = worker.diaries;
}

#[test]
fn however_threads_meet_every_answer_fits_into_one_order() {
    let place = Place::new();
    let options = small().durability(Durability::Buffered).max_result(4_096);
    let store = options.open(&place.path).unwrap();
    let anchor = acquire(&store, ANCHOR);
    let acting: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let ticks = AtomicU64::new(1);
    let of_threads: Vec<Vec<Diary>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let worker = Worker {
                    store: store.clone(),
                    acting: &acting,
                    ticks: &ticks,
                    random: Random(thread),
                    diaries: (0..KEYS).map(|_| Diary::default()).collect(),
                };
                scope.spawn(move || worker.work())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut diaries = merged(of_threads);

    look_at_all(&store, &ticks, &mut diaries);
    let stats = store.stats();
    assert_eq!(stats.leases, 1, "the anchor");
    assert!(stats.keys <= KEYS + 1, "a key is in the index twice: {stats:?}");
    assert!(stats.segments_retired > 0, "the log has to have gone around");
    drop(anchor);
    store.close().unwrap();
    look_at_all(&options.open(&place.path).unwrap(), &ticks, &mut diaries);

    for (key, diary) in diaries.iter().enumerate() {
        check_sights(key, diary);
        check_that_completions_stand(key, diary);
        check_that_attempts_end_once(key, diary);
    }
    check_versions(&diaries);
    let changes: usize = diaries.iter().map(|diary| diary.changes.len()).sum();
    let sights: usize = diaries.iter().map(|diary| diary.sights.len()).sum();
    println!("{changes} changes, {sights} sights, {} segments retired", stats.segments_retired);
}
