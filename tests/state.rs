//! The state of a key, as a caller meets it: every row of the table, in memory and in a file alike.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{NONE, Place, START_MS, abandon, acquire, clocked, perform, seconds, small};
use oncekey::{
    Begin, CasOutcome, Error, Expected, Fingerprint, Key, ManualClock, Next, Outcome, Reconciled, Recorded,
    RunError, Status, Store, Version,
};

/// Runs a test against a store in memory and one in a file: they must behave alike.
fn both(test: impl Fn(&Store, &ManualClock)) {
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50));
    test(&options.open_in_memory().unwrap(), &clock);
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50));
    test(&options.open(&place.path).unwrap(), &clock);
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let options = clocked(&clock).retention(seconds(100)).result_retention(seconds(50)).mmap(false);
    test(&options.open(&place.path).unwrap(), &clock);
}

fn status(store: &Store, key: &str) -> Status {
    store.get(key).unwrap().status()
}

#[test]
fn a_completed_operation_replays_its_result_byte_for_byte() {
    both(|store, _| {
        let result: Vec<u8> = (0..=255).collect();
        perform(store, "k", &result);
        let Begin::Completed(done) = store.begin("k", NONE).unwrap() else { panic!("not completed") };
        assert_eq!(done.result(), result);
        assert_eq!(done.attempt(), 1);
        assert_eq!(done.completed_at_ms(), START_MS);
    });
}

#[test]
fn a_replay_into_a_buffer_says_what_a_begin_would_and_begins_nothing() {
    both(|store, clock| {
        let mut buffer = b"of an earlier call".to_vec();
        let version = store.replay_into("k", NONE, &mut buffer).unwrap();
        assert!(version.is_none() && buffer.is_empty() && status(store, "k") == Status::Absent);
        let mut lease = acquire(store, "k");
        assert_eq!(store.replay_into("k", NONE, &mut buffer).unwrap(), None, "in progress");
        let version = lease.complete(b"result").unwrap();
        assert_eq!(store.replay_into("k", NONE, &mut buffer).unwrap(), Some(version));
        assert_eq!(buffer, b"result");
        let other = store.fingerprint(b"another request");
        assert!(matches!(store.replay_into("k", other, &mut buffer), Err(Error::Mismatch { .. })));
        assert!(buffer.is_empty(), "the result of another request shows nowhere");
        abandon(store, "doubt");
        assert_eq!(store.replay_into("doubt", NONE, &mut buffer).unwrap(), None);
        assert!(matches!(store.replay_into("doubt", other, &mut buffer), Err(Error::Mismatch { .. })));
        acquire(store, "released").release().unwrap();
        assert_eq!(store.replay_into("released", other, &mut buffer).unwrap(), None);
        clock.advance(seconds(50));
        assert!(matches!(store.replay_into("k", NONE, &mut buffer), Err(Error::ResultExpired { .. })));
        assert!(buffer.is_empty());
        clock.advance(seconds(50));
        assert_eq!(store.replay_into("k", NONE, &mut buffer).unwrap(), None);
    });
}

#[test]
fn an_empty_result_is_told_from_none() {
    both(|store, _| {
        assert_eq!(store.get("k").unwrap().result(), None);
        perform(store, "k", b"");
        assert_eq!(store.get("k").unwrap().result(), Some(&b""[..]));
    });
}

#[test]
fn while_a_lease_lives_others_get_in_progress_and_after_its_drop_in_doubt() {
    both(|store, _| {
        let lease = acquire(store, "k");
        assert_eq!(status(store, "k"), Status::InProgress);
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1 }));
        drop(lease);
        assert_eq!(status(store, "k"), Status::InDoubt);
        let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!("no doubt") };
        assert_eq!(doubt.attempt(), 1);
    });
}

#[test]
fn while_a_doubt_is_looked_into_others_get_in_progress() {
    both(|store, _| {
        abandon(store, "k");
        let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!("no doubt") };
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1 }));
        drop(doubt);
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InDoubt(_)), "dropped, the doubt stays");
    });
}

#[test]
fn a_doubt_can_be_resolved_either_way_or_begun_again() {
    both(|store, _| {
        let doubt = |key: &str| {
            abandon(store, key);
            match store.begin(key, NONE).unwrap() {
                Begin::InDoubt(doubt) => doubt,
                other => panic!("{other:?}"),
            }
        };
        doubt("applied").complete(b"found").unwrap();
        assert_eq!(store.get("applied").unwrap().result(), Some(&b"found"[..]));
        doubt("not applied").release().unwrap();
        assert_eq!(status(store, "not applied"), Status::Absent);
        let first = doubt("again");
        let before = first.version();
        let mut lease = first.begin_again().unwrap();
        assert_eq!(lease.attempt(), 2);
        assert!(lease.version() > before);
        lease.complete(b"second").unwrap();
        assert_eq!(store.get("again").unwrap().attempt(), 2);
    });
}

#[test]
fn a_release_frees_the_key_and_the_count_of_attempts_is_remembered() {
    both(|store, clock| {
        acquire(store, "k").release().unwrap();
        assert_eq!(status(store, "k"), Status::Absent);
        assert_eq!(store.get("k").unwrap().attempt(), 1);
        let lease = acquire(store, "k");
        assert_eq!(lease.attempt(), 2);
        lease.release().unwrap();
        clock.advance(seconds(100));
        assert_eq!(acquire(store, "k").attempt(), 1, "for the key retention, and no longer");
    });
}

#[test]
fn another_request_is_a_mismatch_before_anything_else() {
    both(|store, _| {
        let (one, other) = (store.fingerprint(b"one"), store.fingerprint(b"other"));
        let mismatch = |key: &str| {
            assert!(matches!(store.begin(key, other), Err(Error::Mismatch { .. })), "begin {key}");
            assert!(matches!(store.record(key, other, b"r"), Err(Error::Mismatch { .. })), "record {key}");
            assert!(
                matches!(store.begin(key, NONE), Err(Error::Mismatch { .. })),
                "none is another one, {key}"
            );
        };
        let Begin::Acquired(mut lease) = store.begin("progress", one).unwrap() else { panic!() };
        mismatch("progress");
        lease.complete(b"done").unwrap();
        mismatch("progress");
        drop(store.begin("doubt", one).unwrap());
        mismatch("doubt");
        let Begin::Acquired(lease) = store.begin("released", one).unwrap() else { panic!() };
        lease.release().unwrap();
        assert!(
            matches!(store.begin("released", other).unwrap(), Begin::Acquired(_)),
            "nothing is left to differ"
        );
    });
}

#[test]
fn a_result_expires_before_its_key_and_is_never_a_second_run() {
    both(|store, clock| {
        perform(store, "k", b"result");
        clock.advance(seconds(50) - std::time::Duration::from_millis(1));
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::Completed(_)));
        clock.advance(std::time::Duration::from_millis(1));
        assert!(matches!(store.begin("k", NONE), Err(Error::ResultExpired { .. })));
        assert!(matches!(store.record("k", NONE, b"r"), Err(Error::ResultExpired { .. })));
        let seen = store.get("k").unwrap();
        assert_eq!((seen.status(), seen.result()), (Status::Completed, None));
        clock.advance(seconds(50));
        assert_eq!(status(store, "k"), Status::Absent);
        assert_eq!(acquire(store, "k").attempt(), 1, "a new life");
    });
}

#[test]
fn in_progress_and_in_doubt_are_never_forgotten_by_time() {
    both(|store, clock| {
        let lease = acquire(store, "progress");
        abandon(store, "doubt");
        for _ in 0..10 {
            clock.advance(seconds(1_000_000));
        }
        assert_eq!(status(store, "progress"), Status::InProgress);
        assert_eq!(status(store, "doubt"), Status::InDoubt);
        drop(lease);
    });
}

#[test]
fn a_lease_past_its_deadline_is_taken_over_only_when_somebody_asks() {
    both(|store, clock| {
        let begin = || store.operation("k").lease(seconds(10)).begin().unwrap();
        let Begin::Acquired(mut late) = begin() else { panic!() };
        clock.advance(seconds(9));
        assert!(matches!(begin(), Begin::InProgress { .. }));
        clock.advance(seconds(1));
        assert_eq!(status(store, "k"), Status::InDoubt);
        late.complete(b"late").unwrap();
        assert_eq!(store.get("k").unwrap().result(), Some(&b"late"[..]), "nobody had taken over");
    });
}

#[test]
fn a_late_completion_after_a_takeover_is_fenced_and_changes_nothing() {
    both(|store, clock| {
        let begin = || store.operation("k").lease(seconds(10)).begin().unwrap();
        let Begin::Acquired(mut late) = begin() else { panic!() };
        clock.advance(seconds(10));
        let Begin::InDoubt(doubt) = begin() else { panic!() };
        let mut second = doubt.begin_again().unwrap();
        assert!(
            matches!(late.complete(b"late"), Err(Error::Fenced { version, .. }) if version == late.version())
        );
        second.complete(b"second").unwrap();
        assert!(matches!(late.complete(b"late"), Err(Error::Fenced { .. })));
        assert!(matches!(late.release(), Err(Error::Fenced { .. })));
        assert_eq!(store.get("k").unwrap().result(), Some(&b"second"[..]));
    });
}

#[test]
fn a_late_completion_wins_over_somebody_who_only_looks_into_the_doubt() {
    both(|store, clock| {
        let begin = || store.operation("k").lease(seconds(10)).begin().unwrap();
        let Begin::Acquired(mut late) = begin() else { panic!() };
        clock.advance(seconds(10));
        let Begin::InDoubt(mut doubt) = begin() else { panic!() };
        late.complete(b"late").unwrap();
        assert!(matches!(doubt.complete(b"found"), Err(Error::Fenced { .. })));
        assert_eq!(store.get("k").unwrap().result(), Some(&b"late"[..]));
    });
}

#[test]
fn completing_twice_is_fine_with_the_same_bytes_and_a_conflict_with_others() {
    both(|store, _| {
        let mut lease = acquire(store, "k");
        let version = lease.complete(b"one").unwrap();
        assert_eq!(lease.complete(b"one").unwrap(), version);
        assert!(matches!(lease.complete(b"two"), Err(Error::Conflict { .. })));
        assert!(matches!(lease.release(), Err(Error::Conflict { .. })));
        assert_eq!(store.get("k").unwrap().result(), Some(&b"one"[..]));
    });
}

#[test]
fn a_result_that_is_too_large_leaves_the_lease_usable() {
    let store = small().max_result(1_000).open_in_memory().unwrap();
    let mut lease = acquire(&store, "k");
    match lease.complete(&[0; 1_001]) {
        Err(Error::TooLarge { length_bytes: 1_001, limit_bytes: 1_000, .. }) => {}
        other => panic!("{other:?}"),
    }
    lease.complete(&[1; 1_000]).unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&[1; 1_000][..]));
    assert!(matches!(store.record("r", NONE, &[0; 1_001]), Err(Error::TooLarge { .. })));
}

#[test]
fn record_is_seen_and_done_in_one() {
    both(|store, _| {
        let Recorded::Done(version) = store.record("k", NONE, b"one").unwrap() else { panic!() };
        let Recorded::AlreadyDone(done) = store.record("k", NONE, b"two").unwrap() else { panic!() };
        assert_eq!((done.result(), done.version()), (&b"one"[..], version));
        let _lease = acquire(store, "progress");
        assert!(matches!(store.record("progress", NONE, b"r"), Err(Error::InProgress { attempt: 1, .. })));
        abandon(store, "doubt");
        assert!(matches!(store.record("doubt", NONE, b"r"), Err(Error::InDoubt { attempt: 1, .. })));
    });
}

#[test]
fn forget_gives_up_what_is_finished_or_in_doubt_and_never_what_is_leased() {
    both(|store, _| {
        assert!(!store.forget("k").unwrap());
        perform(store, "k", b"r");
        assert!(store.forget("k").unwrap());
        assert_eq!(status(store, "k"), Status::Absent);
        let lease = acquire(store, "k");
        assert_eq!(lease.attempt(), 1, "forgotten altogether");
        assert!(matches!(store.forget("k"), Err(Error::InProgress { .. })));
        drop(lease);
        assert!(store.forget("k").unwrap());
        assert_eq!(status(store, "k"), Status::Absent);
    });
}

#[test]
fn compare_and_set_obeys_the_table_in_every_combination() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Target {
        Absent,
        InDoubt,
        Completed,
    }
    let statuses = [Status::Absent, Status::InProgress, Status::InDoubt, Status::Completed];
    both(|store, _| {
        for (at, from) in statuses.into_iter().enumerate() {
            for (to_at, to) in [Target::Absent, Target::InDoubt, Target::Completed].into_iter().enumerate() {
                let key = format!("{at}-{to_at}");
                let mut lease = (from != Status::Absent).then(|| acquire(store, &key));
                match from {
                    Status::InDoubt => lease = None,
                    Status::Completed => {
                        lease.as_mut().unwrap().complete(b"old").unwrap();
                    }
                    _ => {}
                }
                let seen = store.get(&key).unwrap();
                assert_eq!(seen.status(), from);
                let expected = match seen.version() {
                    Some(version) => Expected::Present { status: from, version },
                    None => Expected::Absent,
                };
                let next = match to {
                    Target::Absent => Next::Absent,
                    Target::InDoubt => Next::InDoubt { fingerprint: NONE },
                    Target::Completed => Next::Completed { fingerprint: NONE, result: b"new" },
                };
                let outcome = store.compare_and_set(&key, expected, next);
                let after = store.get(&key).unwrap();
                if from == Status::Completed && to != Target::Absent {
                    assert!(
                        matches!(outcome, Err(Error::Conflict { .. })),
                        "{from:?} to {to:?}: {outcome:?}"
                    );
                    assert_eq!(after.result(), Some(&b"old"[..]), "an acknowledged result never changes");
                    continue;
                }
                let CasOutcome::Done(version) = outcome.unwrap() else { panic!("{from:?} to {to:?}") };
                let expected_after = match to {
                    Target::Absent => (Status::Absent, None),
                    Target::InDoubt => (Status::InDoubt, None),
                    Target::Completed => (Status::Completed, Some(&b"new"[..])),
                };
                assert_eq!((after.status(), after.result()), expected_after, "{from:?} to {to:?}");
                assert!(after.version().is_none_or(|after| after == version));
                if from == Status::InProgress {
                    let fenced = lease.unwrap().complete(b"late");
                    assert!(matches!(fenced, Err(Error::Fenced { .. })), "{from:?} to {to:?}");
                }
            }
        }
    });
}

#[test]
fn compare_and_set_with_another_version_status_or_fingerprint_changes_nothing() {
    both(|store, _| {
        abandon(store, "k");
        let seen = store.get("k").unwrap();
        let version = seen.version().unwrap();
        let next = Next::Completed { fingerprint: NONE, result: b"r" };
        let elsewhere = [
            Expected::Absent,
            Expected::Present { status: Status::InProgress, version },
            Expected::Present { status: Status::InDoubt, version: Version::from_u64(version.as_u64() + 1) },
        ];
        for expected in elsewhere {
            let CasOutcome::Differs(stands) = store.compare_and_set("k", expected, next).unwrap() else {
                panic!()
            };
            assert_eq!(stands, seen);
        }
        let right = Expected::Present { status: Status::InDoubt, version };
        let foreign = Next::Completed { fingerprint: store.fingerprint(b"x"), result: b"r" };
        assert!(matches!(store.compare_and_set("k", right, foreign), Err(Error::Mismatch { .. })));
        assert_eq!(store.get("k").unwrap(), seen);
    });
}

#[test]
fn versions_grow_with_every_change_across_forget_and_reopening() {
    let place = Place::new();
    let mut last = Version::from_u64(0);
    for _ in 0..3 {
        let store = place.open();
        for _ in 0..3 {
            let mut lease = acquire(&store, "k");
            assert!(lease.version() > last);
            last = lease.complete(b"r").unwrap();
            assert!(last > lease.version());
            assert!(store.forget("k").unwrap());
        }
        store.close().unwrap();
    }
}

#[test]
fn keys_in_scopes_are_keys_of_their_own() {
    both(|store, _| {
        for (at, key) in
            [Key::new("a"), Key::new("a").scope(""), Key::new("a").scope("s"), Key::new("s").scope("a")]
                .into_iter()
                .enumerate()
        {
            assert!(store.get(key).unwrap().is_absent());
            store.record(key, NONE, &[u8::try_from(at).unwrap()]).unwrap();
        }
        assert_eq!(store.get(Key::new("a").scope("")).unwrap().result(), Some(&[1][..]));
        assert_eq!(store.stats().keys, 4);
    });
}

#[test]
fn the_longest_key_and_scope_work_and_longer_ones_are_refused_before_anything_happens() {
    both(|store, _| {
        let longest = vec![b'x'; 1_024];
        let key = Key::new(&longest).scope(&longest);
        store.record(key, NONE, b"r").unwrap();
        assert!(store.get(key).unwrap().is_completed());
        for bad in [Key::new(""), Key::new(&vec![0; 1_025]), Key::new("k").scope(&vec![0; 1_025])] {
            assert!(matches!(store.begin(bad, NONE), Err(Error::Key { .. })));
            assert!(matches!(store.record(bad, NONE, b""), Err(Error::Key { .. })));
            assert!(matches!(store.get(bad), Err(Error::Key { .. })));
            assert!(matches!(store.forget(bad), Err(Error::Key { .. })));
        }
        assert_eq!(store.stats().keys, 1);
    });
}

#[test]
fn what_was_in_progress_when_the_process_ended_is_in_doubt_when_it_starts_again() {
    let place = Place::new();
    let store = place.open();
    perform(&store, "done", b"result");
    let lease = acquire(&store, "open");
    let copy = common::copy_of_open(&place.path);
    drop(lease);
    let again = copy.open();
    assert_eq!(status(&again, "open"), Status::InDoubt);
    assert_eq!(again.get("done").unwrap().result(), Some(&b"result"[..]));
}

#[derive(Debug)]
struct Lost;
impl std::fmt::Display for Lost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the reply was lost")
    }
}
impl std::error::Error for Lost {}

fn act<T>(result: T) -> impl FnOnce(&oncekey::Attempt) -> Result<T, Lost> {
    move |_| Ok(result)
}

#[test]
fn run_performs_once_and_tells_a_replay_apart() {
    both(|store, _| {
        let run = |result: u32| store.operation("k").request("ten").run(act(result)).unwrap();
        assert_eq!(run(1), Outcome::Done(1));
        assert_eq!(run(2), Outcome::AlreadyDone(1));
        let other = store.operation("k").request("six").run(act(3));
        assert!(matches!(other, Err(RunError::Store(Error::Mismatch { .. }))));
    });
}

#[test]
fn an_act_that_was_not_applied_frees_the_key_and_a_plain_error_leaves_doubt() {
    both(|store, _| {
        let not_applied =
            store.operation("a").release_if(|_: &Lost| true).run(|_| -> Result<u32, _> { Err(Lost) });
        assert!(matches!(not_applied, Err(RunError::Released(Lost))));
        assert_eq!(status(store, "a"), Status::Absent);
        let lost = store.operation("b").run(|_| -> Result<u32, Lost> {
            Err(Lost)?;
            Ok(1)
        });
        assert!(matches!(lost, Err(RunError::InDoubt { error: Lost, .. })));
        assert_eq!(status(store, "b"), Status::InDoubt);
        let refused = store.operation("b").run(act(1));
        assert!(matches!(refused, Err(RunError::Store(Error::InDoubt { attempt: 1, .. }))));
        assert_eq!(store.operation("b").rerun().run(act(7)).unwrap(), Outcome::Done(7));
        assert_eq!(store.get("b").unwrap().attempt(), 2);
    });
}

#[test]
fn reconcile_is_asked_only_in_doubt_and_its_three_answers_do_what_they_say() {
    both(|store, _| {
        let fresh =
            store.operation("fresh").reconcile(|_| -> Reconciled<u32> { panic!("asked") }).run(act(1));
        assert_eq!(fresh.unwrap(), Outcome::Done(1));

        abandon(store, "k");
        let before = store.get("k").unwrap();
        let unknown =
            store.operation("k").reconcile(|_| Reconciled::<u32>::Unknown { reason: None }).run(act(1));
        assert!(matches!(unknown, Err(RunError::Store(Error::InDoubt { .. }))));
        assert_eq!(store.get("k").unwrap(), before, "version and attempt stay");

        let applied = store.operation("k").reconcile(|attempt| {
            assert_eq!((attempt.number(), Some(attempt.version())), (1, before.version()));
            Some(9_u32)
        });
        assert_eq!(applied.run(act(1)).unwrap(), Outcome::AlreadyDone(9));

        abandon(store, "n");
        let not_applied = store.operation("n").reconcile(|_| None::<u32>).run(act(5));
        assert_eq!(not_applied.unwrap(), Outcome::Done(5));
        assert_eq!(store.get("n").unwrap().attempt(), 2);
    });
}

#[test]
fn a_panic_in_the_act_or_in_reconcile_leaves_the_doubt_and_the_panic_goes_on() {
    both(|store, _| {
        let panics = |run: &dyn Fn()| {
            let run = std::panic::AssertUnwindSafe(run);
            std::panic::catch_unwind(run).unwrap_err();
        };
        panics(&|| {
            let _ = store.operation("k").run(|_| -> Result<u32, Lost> { panic!("planted") });
        });
        let before = store.get("k").unwrap();
        assert_eq!(before.status(), Status::InDoubt);
        panics(&|| {
            let _ = store.operation("k").reconcile(|_| -> Reconciled<u32> { panic!("planted") }).run(act(1));
        });
        assert_eq!(store.get("k").unwrap(), before);
        assert_eq!(store.stats().leases, 0);
    });
}

#[test]
fn a_result_that_does_not_decode_is_an_error_that_names_the_key_and_performs_nothing() {
    both(|store, _| {
        store.record("k", NONE, b"\xff\xff\xff\xff").unwrap();
        let outcome = store.operation("k").run(|_| -> Result<String, Lost> { panic!("performed") });
        match outcome {
            Err(RunError::Store(Error::Decode { key, .. })) => assert_eq!(key.as_key(), Key::new("k")),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_result_that_cannot_be_recorded_is_handed_back() {
    let store = small().max_result(10).open_in_memory().unwrap();
    let outcome = store.operation("k").run(act("a result that is too large".to_owned()));
    match outcome {
        Err(RunError::Unrecorded { result, source: Error::TooLarge { .. }, .. }) => {
            assert_eq!(*result, "a result that is too large");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(status(&store, "k"), Status::Completed, "that it was performed is recorded");
}

#[test]
fn an_operation_has_its_own_retention_and_options_that_make_no_sense_are_refused() {
    both(|store, clock| {
        store.operation("short").retain(seconds(5)).run(act(1)).unwrap();
        store.operation("long").retain(seconds(500)).retain_result(seconds(400)).run(act(1)).unwrap();
        clock.advance(seconds(5));
        assert_eq!(status(store, "short"), Status::Absent);
        clock.advance(seconds(394));
        assert!(store.get("long").unwrap().result().is_some());
        clock.advance(seconds(1));
        assert!(store.get("long").unwrap().is_completed());
        assert_eq!(store.get("long").unwrap().result(), None);

        let refused = |option: &str, outcome: Result<Begin, Error>| match outcome {
            Err(Error::Option { option: named, .. }) => assert_eq!(named, option),
            other => panic!("{option}: {other:?}"),
        };
        refused("retention", store.operation("x").retain(seconds(0)).begin());
        refused("result_retention", store.operation("x").retain_result(seconds(101)).begin());
        refused("lease", store.operation("x").lease(seconds(101)).begin());
        refused("lease", store.operation("x").lease(seconds(0)).begin());
        assert!(store.get("x").unwrap().is_absent());
    });
}

#[test]
fn a_scope_of_an_operation_is_the_scope_of_its_key() {
    both(|store, _| {
        store.operation("k").scope("tenant").run(act(1)).unwrap();
        assert!(store.get("k").unwrap().is_absent());
        assert!(store.get(Key::new("k").scope("tenant")).unwrap().is_completed());
    });
}

#[test]
fn errors_carry_the_key_and_say_what_to_do() {
    let store = Store::in_memory().unwrap();
    abandon(&store, "charge:1");
    let error = store.operation("charge:1").run(act(1)).unwrap_err().to_string();
    assert!(error.contains("charge:1") && error.contains("reconcile"), "{error}");
    store.record("r", store.fingerprint(b"secret"), b"").unwrap();
    let error = store.begin("r", Fingerprint::NONE).unwrap_err().to_string();
    assert!(error.contains("another request") && !error.contains("secret"), "{error}");
}
