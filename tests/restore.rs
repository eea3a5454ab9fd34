//! What a restored copy answers for keys that it may have forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::{NONE, Place, START_MS, abandon, clocked, seconds};
use oncekey::simulation::{Bug, plant};
use oncekey::{
    Answer, Begin, CasOutcome, Durability, Error, Expected, ManualClock, Next, Options, RunError, Status,
    Store, Version,
};

const KEYS: u32 = 1_000;
const RETENTION: Duration = Duration::from_secs(1_000);
const WINDOW: Duration = Duration::from_secs(5_000);

fn options(clock: &ManualClock) -> Options {
    // A backup syncs what it copies, and nothing else here depends on a sync.
    clocked(clock).retention(RETENTION).durability(Durability::Buffered)
}

/// The outside world: how often each side effect happened, and with which fencing tokens.
#[derive(Default)]
struct World {
    effects: RefCell<BTreeMap<u32, u32>>,
    tokens: RefCell<Vec<Version>>,
}

impl World {
    fn perform(&self, n: u32, version: Version) -> u32 {
        self.tokens.borrow_mut().push(version);
        *self.effects.borrow_mut().entry(n).and_modify(|count| *count += 1).or_insert(1)
    }

    /// Runs the operation of key `n`. The world itself says whether an earlier attempt had its effect. One key in seven fails
    /// before its effect, and one after it.
    fn run(&self, store: &Store, n: u32, fails: bool) -> Result<u32, RunError<u32, String>> {
        let key = format!("key-{n}");
        let operation = store
            .operation(&key)
            .request(&("effect", n))
            .reconcile(|_| self.effects.borrow().get(&n).map(|_| 1_u32))
            .release_if(|error: &String| error == "refused");
        let outcome = operation.run(|attempt| match n % 7 {
            1 if fails => Err("refused".to_owned()),
            2 if fails => {
                self.perform(n, attempt.version());
                Err("no answer".to_owned())
            }
            _ => Ok(self.perform(n, attempt.version())),
        })?;
        Ok(outcome.into_inner())
    }

    fn most(&self) -> u32 {
        self.effects.borrow().values().copied().max().unwrap_or(0)
    }
}

/// The history before the loss: keys 0 to 599 before the backup, and 400 to 799 after it. Some of those before expire.
fn history(path: &Path, copy: &Path, clock: &ManualClock) -> World {
    let world = World::default();
    let store = options(clock).open(path).unwrap();
    for n in 0..200 {
        let _ = world.run(&store, n, true);
    }
    clock.advance(RETENTION + seconds(1));
    for n in 200..600 {
        let _ = world.run(&store, n, true);
    }
    store.backup(copy).unwrap();
    // The original is killed and opened again several times, so its open count goes on as well.
    let mut store = store;
    for kill in 0..5 {
        let killed = path.with_extension(format!("{kill}"));
        std::fs::copy(store.path(), &killed).unwrap();
        store = options(clock).open(&killed).unwrap();
    }
    // It gives more versions than the restored copy will have given when its first side effect runs.
    for n in 0..3_000 {
        store.record(&format!("extra-{n}"), NONE, b"").unwrap();
    }
    for n in 400..800 {
        let _ = world.run(&store, n, n % 2 == 0);
    }
    drop(store);
    assert_eq!(world.most(), 1);
    world
}

/// Restores the copy and retries every key twice. `forgotten` sets what the copy may have forgotten.
fn retry(forgotten: fn(Options) -> Options, wait: Duration) -> World {
    let place = Place::new();
    let (copy, clock) = (place.path.with_extension("copy"), ManualClock::new(START_MS));
    let world = history(&place.path, &copy, &clock);
    let before = world.tokens.borrow().iter().max().copied().unwrap();
    let given = world.tokens.borrow().len();
    drop(forgotten(options(&clock)).open(&copy).unwrap());
    // The window is stated once, and counts from then on.
    clock.advance(wait);
    for fails in [true, false] {
        let store = options(&clock).open(&copy).unwrap();
        for n in 0..KEYS {
            let _ = world.run(&store, n, fails);
        }
    }
    let after = world.tokens.borrow()[given..].iter().min().copied();
    assert!(after.is_none_or(|after| after > before), "{after:?} is not above {before}");
    world
}

fn nothing_is_repeated_within_the_window() {
    let world = retry(|options| options.may_have_forgotten(WINDOW), Duration::ZERO);
    assert_eq!(world.effects.borrow().len(), KEYS as usize, "every key is performed in the end");
    assert_eq!(world.most(), 1, "a side effect was repeated");
}

#[test]
fn within_the_window_no_side_effect_is_repeated() {
    nothing_is_repeated_within_the_window();
}

#[test]
fn after_the_window_what_the_copy_has_forgotten_runs_again() {
    let world = retry(|options| options.may_have_forgotten(seconds(100)), seconds(101));
    let effects = world.effects.borrow();
    assert!((600..800).filter(|n| n % 7 > 2).all(|n| effects[&n] == 2), "{effects:?}");
    // What the copy remembers does not.
    assert!((200..600).filter(|n| n % 7 > 2).all(|n| effects[&n] == 1), "{effects:?}");
}

#[test]
fn if_nothing_was_lost_unknown_keys_are_absent() {
    let world = retry(Options::nothing_was_lost, Duration::ZERO);
    let effects = world.effects.borrow();
    assert!(
        (600..800).filter(|n| n % 7 > 2).all(|n| effects[&n] == 2),
        "the statement was not true: {effects:?}"
    );
    assert!((800..1_000).all(|n| effects[&n] == 1));
}

fn finds(bug: Bug) -> bool {
    plant(Some(bug));
    let found = std::panic::catch_unwind(nothing_is_repeated_within_the_window).is_err();
    plant(None);
    found
}

#[test]
fn finds_a_forgotten_key_that_is_absent() {
    assert!(finds(Bug::ForgottenKeyAbsent));
}

#[test]
fn finds_fencing_tokens_that_are_given_again() {
    assert!(finds(Bug::CopyKeepsOpenCount));
}

/// A copy with these keys, opened with a window.
fn restored(place: &Place, clock: &ManualClock) -> Store {
    let store = options(clock).open(&place.path).unwrap();
    store.record("expired", NONE, b"r").unwrap();
    clock.advance(RETENTION + seconds(1));
    store.record("done", NONE, b"r").unwrap();
    abandon(&store, "doubtful");
    let Begin::Acquired(lease) = store.begin("released", NONE).unwrap() else { panic!() };
    lease.release().unwrap();
    store.record("forgotten", NONE, b"r").unwrap();
    assert!(store.forget("forgotten").unwrap());
    let copy = place.path.with_extension("copy");
    store.backup(&copy).unwrap();
    options(clock).may_have_forgotten(WINDOW).open(&copy).unwrap()
}

#[test]
fn in_the_window_a_key_that_is_not_known_is_in_doubt_to_every_call() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place, &clock);
    for key in ["expired", "released", "forgotten", "unknown", "doubtful"] {
        assert_eq!(store.get(key).unwrap().status(), Status::InDoubt, "{key}");
    }
    assert!(store.get("done").unwrap().is_completed());
    let states = store.get_many(["unknown", "done"]);
    assert_eq!(states[0].as_ref().unwrap().status(), Status::InDoubt);
    assert_eq!(store.get("unknown").unwrap().version(), None, "there is no record of an attempt");
    assert_eq!(store.unfinished().unwrap().count(), 1, "only what is recorded is listed");

    let refused = store.record("unknown", NONE, b"r").unwrap_err();
    assert!(matches!(refused, Error::InDoubt { attempt: 0, .. }), "{refused:?}");
    assert!(refused.to_string().contains("a copy that may have forgotten"), "{refused}");
    let swap = store.compare_and_set("unknown", Expected::Absent, Next::InDoubt { fingerprint: NONE });
    assert!(matches!(swap, Ok(CasOutcome::Differs(state)) if state.status() == Status::InDoubt));
    let mut buffer = Vec::new();
    assert_eq!(store.replay_into("unknown", NONE, &mut buffer).unwrap(), None);

    // The first begin writes what the doubt is about.
    let Begin::InDoubt(mut doubt) = store.begin("unknown", NONE).unwrap() else { panic!() };
    assert_eq!((doubt.attempt(), store.unfinished().unwrap().count()), (0, 2));
    assert!(matches!(store.begin("unknown", NONE).unwrap(), Begin::InProgress { .. }));
    doubt.complete(b"found").unwrap();
    assert_eq!(store.get("unknown").unwrap().result(), Some(&b"found"[..]));

    let ran = store.operation("other").run(|_| Ok::<u32, String>(1));
    assert!(matches!(ran, Err(RunError::Store(Error::InDoubt { attempt: 0, .. }))), "{ran:?}");
    let ran = store.operation("another").rerun().run(|attempt| Ok::<u32, String>(attempt.number()));
    assert_eq!(ran.unwrap().into_inner(), 1);
    clock.advance(WINDOW);
    assert_eq!(store.get("never seen").unwrap().status(), Status::Absent);
    assert_eq!(
        store.get("other").unwrap().status(),
        Status::InDoubt,
        "time does not end a doubt that was noted"
    );
}

#[test]
fn what_an_operator_decides_in_the_window_stands() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place, &clock);
    let Begin::InDoubt(doubt) = store.begin("resolved", NONE).unwrap() else { panic!() };
    doubt.release().unwrap();
    for key in ["unknown", "doubtful", "done"] {
        assert!(store.forget(key).unwrap(), "{key}");
    }
    for round in 0..2 {
        for key in ["resolved", "unknown", "doubtful", "done"] {
            assert_eq!(store.get(key).unwrap().status(), Status::Absent, "{key}, {round}");
        }
        if round == 0 {
            store.close().unwrap();
            let again = options(&clock).open(place.path.with_extension("copy")).unwrap();
            assert_eq!(again.get("released").unwrap().status(), Status::InDoubt);
            assert_eq!(again.get("unknown").unwrap().status(), Status::Absent);
            assert!(matches!(again.begin("unknown", NONE).unwrap(), Begin::Acquired(_)));
            return;
        }
    }
}

#[test]
fn a_batch_gives_the_doubts_of_forgotten_keys() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place, &clock);
    let mut batch = store.batch();
    batch.begin(store.operation("b-1")).unwrap();
    batch.begin(store.operation("b-2").rerun()).unwrap();
    batch.record(store.operation("b-3"), b"r").unwrap();
    batch.record(store.operation("done"), b"r").unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(&answers[0], Ok(Answer::InDoubt(doubt)) if doubt.attempt() == 0), "{:?}", answers[0]);
    assert!(matches!(&answers[1], Ok(Answer::Acquired(_))), "{:?}", answers[1]);
    assert!(matches!(&answers[2], Err(Error::InDoubt { attempt: 0, .. })), "{:?}", answers[2]);
    assert!(matches!(&answers[3], Ok(Answer::AlreadyDone(_))), "{:?}", answers[3]);
}

#[test]
fn the_window_outlives_the_segment_in_which_it_was_stated() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    drop(restored(&place, &clock));
    let copy = place.path.with_extension("copy");
    for session in 0..4 {
        let store = options(&clock).open(&copy).unwrap();
        for n in 0..300 {
            store
                .operation(&format!("{session}-{n}"))
                .retain(seconds(1))
                .rerun()
                .run(|_| Ok::<_, Error>(vec![7_u8; 300]))
                .unwrap();
        }
        clock.advance(seconds(2));
        store.compact().unwrap();
        assert_eq!(store.get("never seen").unwrap().status(), Status::InDoubt, "{session}");
    }
    // A copy of the copy keeps the window, even if nothing was lost since.
    let store = options(&clock).open(&copy).unwrap();
    let second = place.path.with_extension("second");
    store.backup(&second).unwrap();
    assert!(matches!(options(&clock).open(&second), Err(Error::Copy { .. })), "it must be stated again");
    let store = options(&clock).nothing_was_lost().open(&second).unwrap();
    assert_eq!(store.get("never seen").unwrap().status(), Status::InDoubt);
    clock.advance(WINDOW);
    assert_eq!(store.get("never seen").unwrap().status(), Status::Absent);
}

#[test]
fn a_file_that_is_not_a_copy_ignores_what_may_be_forgotten() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = options(&clock).may_have_forgotten(WINDOW).open(&place.path).unwrap();
    assert_eq!(store.get("unknown").unwrap().status(), Status::Absent);
}
