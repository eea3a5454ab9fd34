//! What a restored copy answers for steps of jobs that it may have forgotten, and which messages it still has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{NONE, Place, START_MS, clocked};
use oncekey::simulation::{Bug, plant};
use oncekey::{
    CasOutcome, Error, Expected, Key, ManualClock, Messages, Next, Options, RunError, Status, Store, verify,
};

const WINDOW: Duration = Duration::from_secs(5_000);
const STEPS: [&str; 4] = ["a", "b", "c", "d"];

/// The outside world: which side effects happened.
#[derive(Default)]
struct World {
    acts: RefCell<Vec<String>>,
    /// The number of side effects until the job fails, and the step that is refused.
    left: Cell<usize>,
    refused: Cell<&'static str>,
}

impl World {
    /// Runs a job of four steps, whose doubts the world resolves. It fails before side effect `left`, counted from 0.
    fn job(&self, store: &Store, key: &str, left: usize, refused: &'static str) -> bool {
        self.left.set(left);
        self.refused.set(refused);
        let ran = store.operation(key).rerun().release_if(|error: &String| error == "early").run(|job| {
            if left == 0 {
                return Err("early".to_owned());
            }
            for name in STEPS {
                let step = job.step(name).release_if(|error: &String| error == "refused");
                let step = step.reconcile(|step| self.find(&step.token()));
                step.run(|step| self.act(name, step.token())).map_err(|error| error.to_string())?;
            }
            Ok(4_u64)
        });
        ran.is_ok()
    }

    fn act(&self, name: &str, token: String) -> Result<usize, String> {
        if name == self.refused.get() {
            return Err("refused".to_owned());
        }
        if self.left.get() == 0 {
            return Err("no answer".to_owned());
        }
        self.left.set(self.left.get() - 1);
        self.acts.borrow_mut().push(token);
        Ok(self.acts.borrow().len())
    }

    fn find(&self, token: &str) -> Option<usize> {
        self.acts.borrow().iter().position(|act| act == token)
    }

    fn times(&self, key: &str, name: &str) -> usize {
        let token = Key::new(key).step(name).token();
        self.acts.borrow().iter().filter(|act| **act == token).count()
    }
}

/// The history before the loss. Each job has side effects before the backup, after it, or both. Returns the path of the copy.
fn history(place: &Place, clock: &ManualClock, world: &World) -> PathBuf {
    let store = clocked(clock).open(&place.path).unwrap();
    assert!(!world.job(&store, "both", 1, "b"));
    assert!(!world.job(&store, "doubtful", 2, ""));
    let copy = place.path.with_extension("copy");
    store.backup(&copy).unwrap();
    assert!(!world.job(&store, "both", 2, "d"));
    assert!(!world.job(&store, "after", 3, ""));
    assert!(world.job(&store, "finished", 4, ""));
    copy
}

fn nothing_is_repeated() {
    let (place, clock, world) = (Place::new(), ManualClock::new(START_MS), World::default());
    let copy = history(&place, &clock, &world);
    // Two sessions: what is noted in the first one holds in the second one.
    drop(clocked(&clock).may_have_forgotten(WINDOW).open(&copy).unwrap());
    for left in [0, 1, 4] {
        let store = clocked(&clock).open(&copy).unwrap();
        for key in ["both", "doubtful", "after", "finished", "new"] {
            assert!(world.job(&store, key, left, "") || left < 4, "{key}");
        }
    }
    for key in ["both", "doubtful", "after", "finished", "new"] {
        for name in STEPS {
            assert_eq!(world.times(key, name), 1, "step {name} of {key}");
        }
    }
}

#[test]
fn within_the_window_no_side_effect_of_a_step_is_repeated() {
    nothing_is_repeated();
}

fn finds(bug: Bug, test: fn()) -> bool {
    plant(Some(bug));
    let found = catch_unwind(AssertUnwindSafe(test)).is_err();
    plant(None);
    found
}

#[test]
fn finds_a_forgotten_step_that_just_runs() {
    assert!(finds(Bug::ForgottenStepRuns, nothing_is_repeated));
}

#[test]
fn after_the_window_a_step_that_the_copy_has_forgotten_runs_again() {
    let (place, clock, world) = (Place::new(), ManualClock::new(START_MS), World::default());
    let copy = history(&place, &clock, &world);
    drop(clocked(&clock).may_have_forgotten(WINDOW).open(&copy).unwrap());
    clock.advance(WINDOW);
    let store = clocked(&clock).open(&copy).unwrap();
    assert!(world.job(&store, "both", 4, ""));
    let times = STEPS.map(|name| world.times("both", name));
    assert_eq!(times, [1, 2, 2, 1], "the copy knows the first step; the original ran the next two");
}

/// A store with a job whose steps "done" and "released" have ended, so that it is stopped; a copy of it, opened with a window.
fn restored(path: &Path, clock: &ManualClock) -> Store {
    let store = clocked(clock).open(path).unwrap();
    let stopped = store.operation("job").run(|job| {
        job.step("done").run(|_| Ok::<u64, String>(1)).map_err(|error| error.to_string())?;
        let released = job.step("released").release_if(|_: &String| true).run(|_| Err::<u64, _>("no".into()));
        Err::<u64, _>(released.unwrap_err().to_string())
    });
    assert!(matches!(stopped, Err(RunError::Stopped(_))), "{stopped:?}");
    assert_eq!(store.get("job").unwrap().status(), Status::Stopped);
    let finished = store.operation("finished").run(|job| job.step("done").run(|_| Ok::<u64, String>(1)));
    assert!(finished.is_ok());
    let copy = path.with_extension("copy");
    store.backup(&copy).unwrap();
    clocked(clock).may_have_forgotten(WINDOW).open(&copy).unwrap()
}

fn status(store: &Store, key: Key<'_>) -> Status {
    store.get(key).unwrap().status()
}

fn what_the_copy_does_not_know_is_in_doubt() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place.path, &clock);
    let job = Key::new("job");
    assert_eq!(status(&store, job), Status::InDoubt, "a later attempt may be in doubt");
    assert_eq!(store.unfinished().unwrap().next().unwrap().unwrap().status(), Status::InDoubt);
    assert_eq!(store.scan().next().unwrap().unwrap().status(), Status::InDoubt);
    assert_eq!(status(&store, job.step("done")), Status::Completed);
    assert_eq!(status(&store, job.step("released")), Status::InDoubt);
    assert_eq!(status(&store, job.step("unknown")), Status::InDoubt);
    assert_eq!(store.get(job.step("unknown")).unwrap().version(), None, "there is no record of an attempt");
    assert_eq!(status(&store, Key::new("other").step("unknown")), Status::InDoubt);
    assert_eq!(status(&store, Key::new("finished").step("done")), Status::Absent, "steps end with their job");
    let swap = store.compare_and_set(
        job.step("unknown"),
        Expected::Absent,
        Next::Completed { fingerprint: NONE, result: b"" },
    );
    assert!(matches!(swap, Ok(CasOutcome::Differs(state)) if state.status() == Status::InDoubt));
    let ran = store.operation("job").run(|_| Ok::<u64, String>(1));
    assert!(matches!(ran, Err(RunError::Store(Error::InDoubt { .. }))), "{ran:?}");
    clock.advance(WINDOW);
    assert_eq!(status(&store, job), Status::Stopped);
    assert_eq!(status(&store, job.step("released")), Status::Absent);
    assert_eq!(status(&store, job.step("unknown")), Status::Absent);
}

#[test]
fn in_the_window_a_step_that_is_not_known_is_in_doubt_to_every_call() {
    what_the_copy_does_not_know_is_in_doubt();
}

#[test]
fn finds_a_job_that_is_stopped_although_a_later_attempt_may_be_forgotten() {
    assert!(finds(Bug::ForgottenAttemptStopped, what_the_copy_does_not_know_is_in_doubt));
}

#[test]
fn a_doubt_about_a_forgotten_step_is_noted_and_resolved() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place.path, &clock);
    let unknown = Key::new("job").step("unknown");
    let ran = store.operation("job").rerun().run(|job| {
        let ran = job.step("unknown").run(|_| Ok::<u64, String>(1));
        let Err(RunError::Store(Error::InDoubt { attempt: 0, .. })) = ran else { panic!("{ran:?}") };
        Ok::<u64, String>(1)
    });
    let Err(RunError::Unrecorded { source: Error::HasSteps { finished: 1, in_doubt: 1, .. }, .. }) = ran
    else {
        panic!("{ran:?}")
    };
    clock.advance(WINDOW);
    store.close().unwrap();
    let store = clocked(&clock).open(place.path.with_extension("copy")).unwrap();
    let state = store.get(unknown).unwrap();
    assert_eq!(
        (state.status(), state.attempt()),
        (Status::InDoubt, 0),
        "time does not end a doubt that was noted"
    );
    let expected = Expected::Present { status: state.status(), version: state.version().unwrap() };
    assert!(matches!(store.operation(unknown).complete_if(expected, &7_u64).unwrap(), CasOutcome::Done(_)));
    let ran = store.operation("job").run(|job| job.step("unknown").run(|_| Ok::<u64, String>(1)));
    assert_eq!(ran.unwrap().into_inner(), 7);
}

#[test]
fn a_step_that_was_released_since_runs() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = restored(&place.path, &clock);
    let step = Key::new("job").step("released");
    let state = store.get(step).unwrap();
    let expected = Expected::Present { status: state.status(), version: state.version().unwrap() };
    assert!(matches!(store.compare_and_set(step, expected, Next::Absent), Ok(CasOutcome::Done(_))));
    assert_eq!(status(&store, step), Status::Absent);
    let ran = store.operation("job").rerun().run(|job| {
        let released =
            job.step("other").rerun().release_if(|_: &String| true).run(|_| Err::<u64, _>("no".into()));
        assert!(matches!(released, Err(RunError::Released(_))), "{released:?}");
        job.step("other").run(|_| Ok::<u64, String>(2)).map_err(|error| error.to_string())?;
        job.step("released").run(|_| Ok::<u64, String>(3)).map_err(|error| error.to_string())
    });
    assert_eq!(ran.unwrap().into_inner(), 3);
}

/// Takes out all messages and acknowledges them. Returns their tokens and payloads.
fn deliver(store: &Store, topic: &str) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    while let Some(delivery) = store.outbox().next(topic).unwrap() {
        seen.push((delivery.token(), delivery.payload().to_vec()));
        delivery.ack().unwrap();
    }
    seen
}

fn emit(store: &Store, key: &str, payload: &[u8]) {
    let mut batch = store.batch();
    batch.record(store.operation(key), b"").unwrap();
    let mut messages = Messages::new();
    messages.emit_bytes("mail", payload).unwrap();
    batch.attach(messages).unwrap();
    batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
}

#[test]
fn a_copy_has_the_unfinished_jobs_and_the_pending_messages() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    let run = |store: &Store, fails: bool| {
        let ran = store.operation("job").request(&"job").input(&17_u64).rerun().run(|job| {
            let first = job.step("first").run(|job| Ok::<_, String>(job.number()));
            let first = first.map_err(|error| error.to_string())?;
            if fails {
                drop(job.step("second").run(|_| Err::<u64, _>("no answer".to_owned())));
                return Err("stop".to_owned());
            }
            let second =
                job.step("second").reconcile(|_| Some(5_u64)).run(|_| Err::<u64, _>("again".to_owned()));
            Ok((job.input::<u64>().unwrap(), first, second.map_err(|error| error.to_string())?))
        });
        ran.map(oncekey::Outcome::into_inner)
    };
    assert!(run(&store, true).is_err());
    // Over several segments, so that messages and steps are also in full ones, and moved.
    for n in 0..60 {
        emit(&store, &format!("sent-{n}"), &[n; 2_000]);
    }
    for _ in 0..20 {
        store.outbox().next("mail").unwrap().unwrap().ack().unwrap();
    }
    store.compact().unwrap();
    // Which steps the attempt has asked for is known only while it runs.
    let steps = |store: &Store| {
        let unfinished = store.unfinished().unwrap().next().unwrap().unwrap();
        format!("{:?}", unfinished.steps()).replace("is_visited: true", "is_visited: false")
    };
    let (copies, before) = (["one", "two"].map(|name| place.path.with_extension(name)), steps(&store));
    let last = store.get(Key::new("job").step("second")).unwrap().version();
    for copy in &copies {
        store.backup(copy).unwrap();
        assert!(verify(copy).unwrap().is_sound());
    }
    let original = deliver(&store, "mail");
    assert_eq!(original.len(), 40);
    assert_eq!(run(&store, false).unwrap(), (17, 1, 5));
    let forgotten: [fn(Options) -> Options; 2] =
        [Options::nothing_was_lost, |options| options.may_have_forgotten(WINDOW)];
    for (copy, forgotten) in copies.iter().zip(forgotten) {
        let store = forgotten(clocked(&clock)).open(copy).unwrap();
        assert_eq!(steps(&store), before);
        assert_eq!((store.stats().messages, store.stats().unfinished_steps), (40, 3));
        assert_eq!(deliver(&store, "mail"), original, "consumers know the tokens");
        assert_eq!(run(&store, false).unwrap(), (17, 1, 5));
        let version =
            store.operation("new").rerun().run(|attempt| Ok::<_, String>(attempt.version().as_u64()));
        assert!(
            version.unwrap().into_inner() > last.unwrap().as_u64() + (60_000 << 40),
            "a token is not given again"
        );
        let later = store.operation("later").emits(1_000).rerun().run(|attempt| {
            attempt.emit_bytes("mail", b"later").map(|()| 1_u64).map_err(|error| error.to_string())
        });
        assert!(later.is_ok());
        assert_eq!(deliver(&store, "mail").len(), 1);
    }
}

/// Runs a job with two steps of long results, and lets it fail after them or end.
fn two_steps(store: &Store, key: &str, ends: bool) {
    let ran = store.operation(key).retain(Duration::from_secs(1)).rerun().run(|job| {
        for name in ["one", "two"] {
            let done = job
                .step(name)
                .run(|job| Ok::<_, String>(vec![u8::try_from(job.key().name().len()).unwrap(); 1_500]));
            done.map_err(|error| error.to_string())?;
        }
        if ends { Ok(0_u64) } else { Err("later".to_owned()) }
    });
    assert_eq!(ran.is_ok(), ends, "{key}: {ran:?}");
}

#[test]
fn a_backup_during_compactions_has_the_steps_as_they_were() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    let keys: Vec<String> = (0..60).map(|n| format!("job-{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        two_steps(&store, key, false);
        two_steps(&store, &format!("ended-{n}"), true);
    }
    let copy = place.path.with_extension("copy");
    let mut ending = keys.iter();
    let mut calls = 0;
    clock.advance(Duration::from_secs(2));
    store
        .backup_with(&copy, |_| {
            calls += 1;
            store.compact().unwrap();
            for key in ending.by_ref().take(10) {
                two_steps(&store, key, true);
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert!(calls > 5 && store.stats().segments_retired > 3, "{calls}");
    assert!(verify(&copy).unwrap().is_sound());
    let copied = clocked(&clock).nothing_was_lost().open(&copy).unwrap();
    // In the copy, the steps are moved once more.
    for round in 0..2 {
        assert_eq!((copied.stats().unfinished, copied.stats().unfinished_steps), (60, 120), "{round}");
        for key in &keys {
            for name in ["one", "two"] {
                let state = copied.get(Key::new(key).step(name)).unwrap();
                let bytes = state.decode::<Vec<u8>>().unwrap().unwrap();
                assert_eq!((state.status(), bytes.len()), (Status::Completed, 1_500), "{key} {name}");
            }
        }
        copied.compact().unwrap();
    }
    for key in &keys {
        two_steps(&copied, key, true);
    }
    assert_eq!(store.stats().unfinished_steps, 2 * ending.count());
}
