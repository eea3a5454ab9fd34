//! What an operator sees of steps and does with them: listings, `get` and compare-and-set by `Key::step`, and events.

use std::sync::{Arc, Mutex};

use oncekey::{CasOutcome, Error, Expected, Key, Next, Outcome, OwnedKey, Status, Store};

use crate::common::{NONE, Place, START_MS};
use crate::{done, fails};

/// A store with a job "k" whose step "a" is done and whose step "b" is in doubt.
fn in_doubt() -> Store {
    let store = Store::in_memory().unwrap();
    let lost = store.operation("k").run(|job| {
        done(job, "a", 1_u64).map_err(|error| error.to_string())?;
        Err::<u64, _>(fails(job, "b").to_string())
    });
    assert!(lost.is_err());
    store
}

fn expected(store: &Store, key: Key<'_>) -> Expected {
    let state = store.get(key).unwrap();
    Expected::Present { status: state.status(), version: state.version().unwrap() }
}

#[test]
fn a_step_can_be_looked_at_by_its_key() {
    let store = in_doubt();
    let a = store.get(Key::new("k").step("a")).unwrap();
    assert_eq!((a.status(), a.attempt(), a.decode::<u64>().unwrap()), (Status::Completed, 1, Some(1)));
    assert_eq!((a.expires_at_ms(), a.result_expires_at_ms()), (None, None), "time never ends a step");
    let b = store.get(Key::new("k").step("b")).unwrap();
    assert_eq!((b.status(), b.result()), (Status::InDoubt, None));
    assert_eq!(b.key(), Key::new("k").step("b"));
    for absent in [Key::new("k").step("c"), Key::new("other").step("a"), Key::new("k").scope("s").step("a")] {
        assert!(store.get(absent).unwrap().is_absent());
    }
    let states = store.get_many([Key::new("k").step("a"), Key::new("k"), Key::new("k").step("b")]);
    let states: Vec<_> = states.into_iter().map(|state| state.unwrap().status()).collect();
    assert_eq!(states, [Status::Completed, Status::InDoubt, Status::InDoubt]);
    assert!(store.get(Key::new("a")).unwrap().is_absent(), "the name of a step is no key");
}

#[test]
fn an_operator_resolves_a_step() {
    let store = in_doubt();
    let b = Key::new("k").step("b");
    let seen = expected(&store, b);
    assert!(matches!(store.operation(b).complete_if(seen, &7_u64).unwrap(), CasOutcome::Done(_)));
    let CasOutcome::Differs(state) = store.compare_and_set(b, seen, Next::Absent).unwrap() else { panic!() };
    assert!(state.is_completed(), "not twice");
    assert_eq!(store.get("k").unwrap().status(), Status::Stopped);
    let run = store.operation("k").run(|job| {
        done(job, "a", 9_u64)?;
        done(job, "b", 9_u64)
    });
    assert_eq!(run.unwrap(), Outcome::Done(7));

    let store = in_doubt();
    let completed = Next::Completed { fingerprint: NONE, result: b"raw" };
    assert!(matches!(store.compare_and_set(b, expected(&store, b), completed).unwrap(), CasOutcome::Done(_)));
    assert_eq!(store.get(b).unwrap().result(), Some(&b"raw"[..]));

    let store = in_doubt();
    assert!(matches!(
        store.compare_and_set(b, expected(&store, b), Next::Absent).unwrap(),
        CasOutcome::Done(_)
    ));
    assert!(store.get(b).unwrap().is_absent());
    let run = store.operation("k").run(|job| done(job, "b", 3_u64));
    assert_eq!(run.unwrap(), Outcome::Done(3), "it ran as if for the first time");
}

#[test]
fn an_operator_does_not_undo_or_invent_a_step() {
    let store = in_doubt();
    let a = Key::new("k").step("a");
    assert!(matches!(
        store.compare_and_set(a, expected(&store, a), Next::Absent),
        Err(Error::Conflict { .. })
    ));
    let c = Key::new("k").step("c");
    let completed = Next::Completed { fingerprint: NONE, result: b"r" };
    assert!(matches!(store.compare_and_set(c, Expected::Absent, completed), Err(Error::Conflict { .. })));
    let other = Next::Completed { fingerprint: store.fingerprint(b"other"), result: b"r" };
    let b = Key::new("k").step("b");
    assert!(matches!(store.compare_and_set(b, expected(&store, b), other), Err(Error::Mismatch { .. })));
}

#[test]
fn a_step_that_an_operator_resolves_while_it_is_reconciled_is_not_run_again() {
    let b = Key::new("k").step("b");
    for applied in [None, Some(5_u64)] {
        let store = in_doubt();
        let run = store.operation("k").rerun().run(|job| {
            let step = job.step("b").reconcile(|_| {
                let state = store.get(b).unwrap();
                assert_eq!(state.status(), Status::InProgress, "a caller is resolving it");
                store.operation(b).complete_if(expected(&store, b), &7_u64).unwrap();
                applied
            });
            step.run(|_| Err::<u64, _>("it must not run".to_owned()))
        });
        assert_eq!(run.unwrap(), Outcome::Done(7), "{applied:?}");
    }
}

#[test]
fn only_get_and_compare_and_set_take_the_key_of_a_step() {
    let store = in_doubt();
    let key = Key::new("k").step("b");
    let refused = |result: Result<(), Error>| {
        let Err(Error::Key { problem, .. }) = result else { panic!("{result:?}") };
        assert!(problem.to_string().contains("step"), "{problem}");
    };
    refused(store.begin(key, NONE).map(drop));
    refused(store.record(key, NONE, b"").map(drop));
    refused(store.forget(key).map(drop));
    refused(store.resume::<u64>(key).map(drop));
    refused(store.forget_with_steps(key).map(drop));
    refused(store.replay_into(key, NONE, &mut Vec::new()).map(drop));
    let run = store.operation(key).run(|_| Ok::<u64, String>(1));
    let Err(oncekey::RunError::Store(error)) = run else { panic!("{run:?}") };
    refused(Err(error));
    refused(store.get(Key::new("k").step("")).map(drop));
}

#[test]
fn unfinished_operations_are_listed_with_their_steps() {
    let place = Place::new();
    let clock = oncekey::ManualClock::new(START_MS);
    let store = crate::common::clocked(&clock).open(&place.path).unwrap();
    let lost = store.operation("k").scope("s").run(|job| {
        done(job, "a", 1_u64).map_err(|error| error.to_string())?;
        clock.advance(crate::common::seconds(1));
        let error = fails(job, "b").to_string();
        let listed = store.unfinished().unwrap().next().unwrap().unwrap();
        assert_eq!(listed.status(), Status::InProgress);
        Err::<u64, _>(error)
    });
    assert!(lost.is_err());
    for store in [store.clone(), {
        store.close().unwrap();
        crate::common::clocked(&clock).open(&place.path).unwrap()
    }] {
        let Ok(mut listed) = store.unfinished() else { continue };
        let listed = listed.next().unwrap().unwrap();
        assert_eq!((listed.status(), listed.unreadable_steps()), (Status::InDoubt, 0));
        let [a, b] = listed.steps() else { panic!("{listed:?}") };
        let key = |name| Key::new("k").scope("s").step(name).to_owned();
        assert_eq!((a.key().to_owned(), a.status(), a.note()), (key("a"), Status::Completed, None));
        assert_eq!(
            (b.key().to_owned(), b.status(), b.note()),
            (key("b"), Status::InDoubt, Some("no answer"))
        );
        assert_eq!((a.attempt(), b.since_ms(), a.version() < b.version()), (1, START_MS + 1_000, true));
        assert_eq!(b.key().to_string(), r#"step "b" of key "k" in scope "s""#);
    }
}

#[cfg(feature = "tracing")]
#[test]
fn a_step_that_the_finished_job_never_asked_for_is_an_event() {
    #[derive(Default)]
    struct Step(String);
    impl tracing::field::Visit for Step {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            if ["key", "step"].contains(&field.name()) {
                self.0 += &format!("{value:?}.");
            }
        }
    }
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let subscriber = crate::common::subscriber::OnEvent(move |event: &tracing::Event<'_>| {
        let mut step = Step::default();
        event.record(&mut step);
        if *event.metadata().level() == tracing::Level::WARN && step.0.matches('.').count() == 2 {
            sink.lock().unwrap().push(step.0);
        }
    });
    tracing::subscriber::with_default(subscriber, || {
        let store = Store::in_memory().unwrap();
        let stopped = store.operation("k").run(|job| {
            for name in ["kept", "renamed", "given up"] {
                done(job, name, 1_u64).map_err(|error| error.to_string())?;
            }
            let refused =
                job.step("released").release_if(|_: &String| true).run(|_| Err::<u64, _>("no".to_owned()));
            Err::<u64, _>(refused.unwrap_err().to_string())
        });
        assert!(stopped.is_err());
        let run = store.operation("k").run(|job| {
            done(job, "given up", 1_u64)?;
            done(job, "new", 1_u64)?;
            done(job, "kept", 1_u64)
        });
        assert!(run.is_ok());
    });
    assert_eq!(*seen.lock().unwrap(), ["k.renamed."]);
}

#[test]
fn the_key_of_a_step_differs_from_that_of_its_operation() {
    let key = Key::new("k").scope("s");
    assert_ne!(key, key.step("a"));
    assert_ne!(key.step("a"), key.step("b"));
    let owned: OwnedKey = key.step("a").to_owned();
    assert_eq!(owned.as_key(), key.step("a"));
    assert_eq!((owned.as_key().step_name(), key.step_name()), (Some(&b"a"[..]), None));
    assert_eq!(key.step("a").token(), "s/k#a");
}
