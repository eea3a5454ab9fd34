use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::Options;
use crate::engine::begin::Began;
use crate::engine::change::Grant;
use crate::engine::step_reading::{StepInfo, StepOf};
use crate::engine::terms::{Expected, Finish, Next, Terms};
use crate::error::Error;
use crate::format::record::Value;
use crate::key::Key;
use crate::status::Status;
use crate::sync::Patience;

fn job() -> Key<'static> {
    Key::new("job")
}

fn engine() -> Arc<Engine> {
    Arc::new(Options::new().open_nowhere().unwrap())
}

fn open(path: &Path) -> Arc<Engine> {
    Arc::new(Options::new().segment_size(64 << 10).open_file(path).unwrap())
}

fn terms(engine: &Engine) -> Terms {
    engine.settings().terms
}

/// Begins an attempt at the job, which must be possible without resolving a doubt.
fn begin(engine: &Arc<Engine>) -> Grant {
    match engine.begin(job(), Fingerprint::NONE.into(), &terms(engine), true).unwrap() {
        Began::Acquired(grant) => grant,
        other => panic!("{other:?}"),
    }
}

/// Begins the next attempt at the job, which is in doubt.
fn begin_again(engine: &Arc<Engine>) -> Grant {
    let Began::InDoubt(doubt) = engine.begin(job(), Fingerprint::NONE.into(), &terms(engine), true).unwrap()
    else {
        panic!("the job is not in doubt")
    };
    let grant = engine.begin_again(doubt.of(job()), doubt.version, &terms(engine)).unwrap();
    engine.abandon(doubt.of(job()), doubt.claim);
    grant
}

fn abandon(engine: &Engine, grant: &Grant) {
    engine.abandon(grant.of(job()), grant.claim);
}

fn step<'a>(grant: &Grant, name: &'a str) -> StepOf<'a> {
    StepOf { parent: grant.of(job()), name: name.as_bytes() }
}

fn try_begin_step(engine: &Engine, grant: &Grant, name: &str) -> Result<StepBegan> {
    engine.begin_step(step(grant, name), grant.version, Fingerprint::NONE.into(), &terms(engine), true)
}

fn begin_step(engine: &Engine, grant: &Grant, name: &str) -> StepGrant {
    match try_begin_step(engine, grant, name).unwrap() {
        StepBegan::Acquired(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn end_step(engine: &Engine, grant: &Grant, name: &str, held: &mut StepGrant) -> Result<Version> {
    let end = StepEnd::Completed(Value::bytes(name.as_bytes()));
    engine.end_step(step(grant, name), held, end, &terms(engine))
}

/// Runs a step, whose result is its name.
fn run_step(engine: &Engine, grant: &Grant, name: &str) {
    let mut held = begin_step(engine, grant, name);
    end_step(engine, grant, name, &mut held).unwrap();
}

fn finish(engine: &Engine, grant: &mut Grant, finish: Finish<'_>) -> Result<Version> {
    engine.finish(grant.of(job()), grant.version, (finish, &[]), &terms(engine), &mut grant.reservation)
}

fn complete(engine: &Engine, grant: &mut Grant) -> Result<Version> {
    finish(engine, grant, Finish::Completed(Value::bytes(b"done")))
}

fn status(engine: &Engine) -> Status {
    engine.get(job(), Patience::Endless).unwrap().0
}

/// The steps of the job: name and status.
fn listed(engine: &Engine, grant: &Grant) -> Vec<(String, Status)> {
    let steps = engine.list_steps(grant.of(job())).unwrap();
    let shown = |step: Result<StepInfo>| {
        let step = step.unwrap();
        (String::from_utf8(step.name).unwrap(), step.status)
    };
    steps.into_iter().map(shown).collect()
}

fn held_by(error: Result<Version>) -> (usize, usize) {
    match error {
        Err(Error::HasSteps { finished, in_doubt, .. }) => (finished, in_doubt),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_next_attempt_gets_the_results_of_finished_steps() {
    let engine = engine();
    let first = begin(&engine);
    run_step(&engine, &first, "reserve");
    abandon(&engine, &first);
    assert_eq!(status(&engine), Status::Stopped, "nothing is in doubt");
    let mut second = begin(&engine);
    assert_eq!(second.attempt, 2);
    let StepBegan::Completed(found) = try_begin_step(&engine, &second, "reserve").unwrap() else { panic!() };
    assert_eq!(found.result.as_deref(), Some(&b"reserve"[..]));
    run_step(&engine, &second, "ship");
    complete(&engine, &mut second).unwrap();
    assert_eq!((status(&engine), engine.unfinished_steps()), (Status::Completed, 0));
    assert!(listed(&engine, &second).is_empty(), "steps end with their operation");
}

#[test]
fn a_step_that_did_not_end_is_in_doubt_and_so_is_its_operation() {
    let engine = engine();
    let first = begin(&engine);
    run_step(&engine, &first, "reserve");
    let charge = begin_step(&engine, &first, "charge");
    assert_eq!(listed(&engine, &first)[1], ("charge".to_owned(), Status::InProgress));
    engine.abandon_step(first.hash, &charge);
    assert_eq!(listed(&engine, &first)[1], ("charge".to_owned(), Status::InDoubt));
    abandon(&engine, &first);
    assert_eq!(status(&engine), Status::InDoubt);
    let second = begin_again(&engine);
    let StepBegan::InDoubt(doubt) = try_begin_step(&engine, &second, "charge").unwrap() else { panic!() };
    let mut again =
        engine.begin_step_again(step(&second, "charge"), second.version, &doubt, &terms(&engine)).unwrap();
    assert_eq!(again.attempt, 2);
    end_step(&engine, &second, "charge", &mut again).unwrap();
}

#[test]
fn a_name_used_twice_in_one_attempt_is_refused() {
    let engine = engine();
    let grant = begin(&engine);
    let mut held = begin_step(&engine, &grant, "mail");
    let reused = |answer| matches!(answer, Err(Error::StepReused { .. }));
    assert!(reused(try_begin_step(&engine, &grant, "mail")), "while it is in progress");
    end_step(&engine, &grant, "mail", &mut held).unwrap();
    assert!(reused(try_begin_step(&engine, &grant, "mail")), "once it is done");
    let mut held = begin_step(&engine, &grant, "call");
    engine.end_step(step(&grant, "call"), &mut held, StepEnd::Released, &terms(&engine)).unwrap();
    let again = begin_step(&engine, &grant, "call");
    assert_eq!(again.attempt, 2, "a released step may be tried again");
}

#[test]
fn an_operation_cannot_be_released_over_a_step_that_began() {
    let engine = engine();
    let mut grant = begin(&engine);
    let mut held = begin_step(&engine, &grant, "reserve");
    assert_eq!(held_by(finish(&engine, &mut grant, Finish::Released)), (0, 1));
    end_step(&engine, &grant, "reserve", &mut held).unwrap();
    assert_eq!(held_by(finish(&engine, &mut grant, Finish::Released)), (1, 0));
    let expected = Expected::Present { status: Status::InProgress, version: grant.version };
    let swap = engine.compare_and_set(job(), expected, (Next::Absent, None), &[], &terms(&engine));
    assert!(matches!(swap, Err(Error::HasSteps { finished: 1, in_doubt: 0, .. })), "{swap:?}");

    let released = Key::new("released");
    let Began::Acquired(mut other) =
        engine.begin(released, Fingerprint::NONE.into(), &terms(&engine), true).unwrap()
    else {
        panic!()
    };
    let of_other = StepOf { parent: other.of(released), name: b"reserve" };
    let began =
        engine.begin_step(of_other, other.version, Fingerprint::NONE.into(), &terms(&engine), true).unwrap();
    let StepBegan::Acquired(mut held) = began else { panic!("{began:?}") };
    engine.end_step(of_other, &mut held, StepEnd::Released, &terms(&engine)).unwrap();
    let (of, version) = (other.of(released), other.version);
    engine.finish(of, version, (Finish::Released, &[]), &terms(&engine), &mut other.reservation).unwrap();
}

#[test]
fn an_operation_is_completed_over_a_doubtful_step_only_if_that_was_given_up() {
    let engine = engine();
    let mut grant = begin(&engine);
    let held = begin_step(&engine, &grant, "charge");
    assert_eq!(held_by(complete(&engine, &mut grant)), (0, 1), "in progress");
    engine.abandon_step(grant.hash, &held);
    assert_eq!(held_by(complete(&engine, &mut grant)), (0, 1), "in doubt");
    let expected = Expected::Present { status: Status::InProgress, version: grant.version };
    let next = Next::Completed { fingerprint: Fingerprint::NONE, result: b"r" };
    let swap = engine.compare_and_set(job(), expected, (next, None), &[], &terms(&engine));
    assert!(matches!(swap, Err(Error::HasSteps { .. })), "{swap:?}");
    assert!(engine.give_up_step(step(&grant, "charge"), grant.version).unwrap());
    assert_eq!(held_by(finish(&engine, &mut grant, Finish::Released)), (0, 1), "it may have happened");
    complete(&engine, &mut grant).unwrap();
}

#[test]
fn a_caller_that_found_out_completes_the_operation_over_a_doubtful_step() {
    let engine = engine();
    let first = begin(&engine);
    drop(begin_step(&engine, &first, "charge"));
    abandon(&engine, &first);
    let began = engine.begin(job(), Fingerprint::NONE.into(), &terms(&engine), true).unwrap();
    let Began::InDoubt(mut doubt) = began else { panic!("{began:?}") };
    finish(&engine, &mut doubt, Finish::FoundApplied(Value::bytes(b"r"))).unwrap();
    assert_eq!((status(&engine), engine.unfinished_steps()), (Status::Completed, 0));
}

#[test]
fn an_attempt_that_was_taken_over_begins_no_step_and_keeps_a_late_result() {
    let engine = engine();
    let first = begin(&engine);
    let mut charge = begin_step(&engine, &first, "charge");
    let mut ship = begin_step(&engine, &first, "ship");
    abandon(&engine, &first);
    let second = begin_again(&engine);
    let late = try_begin_step(&engine, &first, "mail");
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert_eq!(
        listed(&engine, &second)[0].1,
        Status::InDoubt,
        "the claim of the first attempt no longer counts"
    );
    // No one has begun the first step again, so its late result is kept.
    end_step(&engine, &first, "charge", &mut charge).unwrap();
    let StepBegan::Completed(_) = try_begin_step(&engine, &second, "charge").unwrap() else { panic!() };
    let StepBegan::InDoubt(doubt) = try_begin_step(&engine, &second, "ship").unwrap() else { panic!() };
    let again =
        engine.begin_step_again(step(&second, "ship"), second.version, &doubt, &terms(&engine)).unwrap();
    let late = end_step(&engine, &first, "ship", &mut ship);
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert_eq!(listed(&engine, &second)[1], ("ship".to_owned(), Status::InProgress), "{again:?}");
}

#[test]
fn a_key_that_is_used_again_does_not_meet_the_steps_of_the_earlier_operation() {
    let engine = engine();
    let mut grant = begin(&engine);
    let mut late = begin_step(&engine, &grant, "charge");
    run_step(&engine, &grant, "reserve");
    abandon(&engine, &grant);
    let forgotten = engine.forget_with_steps(job(), &terms(&engine), true).unwrap();
    let names: Vec<_> = forgotten.steps.into_iter().map(|step| step.unwrap().name).collect();
    assert!(forgotten.was_present && names == [b"charge".to_vec(), b"reserve".to_vec()], "{names:?}");
    let ended = end_step(&engine, &grant, "charge", &mut late);
    assert!(matches!(ended, Err(Error::Fenced { .. })), "{ended:?}");
    grant = begin(&engine);
    let ended = end_step(&engine, &grant, "charge", &mut late);
    assert!(matches!(ended, Err(Error::Fenced { .. })), "{ended:?}");
    run_step(&engine, &grant, "reserve");
}

#[test]
fn the_input_is_stored_with_the_first_begin_and_found_by_later_attempts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let engine = open(&path);
    let input = Some(Value::bytes(b"the order"));
    let request = Fingerprint::NONE.into();
    let syncs = engine.log().syncs();
    let began = engine.begin_with(job(), request, &terms(&engine), true, input).unwrap();
    assert_eq!(engine.log().syncs(), syncs + 1, "one frame");
    let Began::Acquired(grant) = began else { panic!("{began:?}") };
    let stored = |engine: &Engine| engine.input(grant.of(job())).unwrap().unwrap().result;
    assert_eq!(stored(&engine).as_deref(), Some(&b"the order"[..]));
    assert!(listed(&engine, &grant).is_empty(), "the input is not a step");
    abandon(&engine, &grant);
    assert_eq!(status(&engine), Status::InDoubt);
    drop(engine);
    let engine = open(&path);
    let mut again = begin_again(&engine);
    assert_eq!(stored(&engine).as_deref(), Some(&b"the order"[..]));
    finish(&engine, &mut again, Finish::Released).unwrap();
    assert!(engine.input(grant.of(job())).unwrap().is_none(), "it ends with the operation");
}

#[test]
fn steps_are_found_by_recovery_and_moved_by_reclaiming() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let mut engine = open(&path);
    let grant = begin(&engine);
    for name in ["reserve", "charge", "ship"] {
        run_step(&engine, &grant, name);
    }
    drop(begin_step(&engine, &grant, "mail"));
    abandon(&engine, &grant);
    let expected = [
        ("reserve".to_owned(), Status::Completed),
        ("charge".to_owned(), Status::Completed),
        ("ship".to_owned(), Status::Completed),
        ("mail".to_owned(), Status::InDoubt),
    ];
    for round in 0..4 {
        for number in 0..20 {
            let key = format!("filler {round} {number}");
            let value = Value::bytes(&[7; 10_000]);
            let terms = terms(&engine);
            engine.record(Key::new(&key), Fingerprint::NONE.into(), value, &[], &terms).unwrap().unwrap();
            engine.forget(Key::new(&key), &terms).unwrap();
        }
        engine.compact(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        // With and without a clean close.
        if round % 2 == 0 {
            engine.close().unwrap();
        }
        drop(engine);
        engine = open(&path);
        let parent = HashedKey { key: job(), hash: engine.log().hasher().key(job()) };
        let steps = engine.list_steps(parent).unwrap().into_iter().map(|step| {
            let step = step.unwrap();
            (String::from_utf8(step.name).unwrap(), step.status)
        });
        assert_eq!(steps.collect::<Vec<_>>(), expected, "round {round}");
    }
    assert!(engine.log().span().0 > 1, "the segment in which the steps began is gone");
}

/// The index stores only a part of each hash, so the record of a step must never answer for a key, even if the step has the
/// key's name and an entry of the index leads to it.
fn a_step_answers_for_a_key() -> bool {
    let engine = engine();
    let grant = begin(&engine);
    run_step(&engine, &grant, "charge");
    let (hash, step) = engine.known_step(step(&grant, "charge")).unwrap().unwrap();
    let user_key = Key::new("charge");
    let user_hash = engine.log().hasher().key(user_key);
    assert_ne!(hash, user_hash);
    engine.index().insert(user_hash, step.address);
    let seen = engine.get(user_key, Patience::Endless).unwrap().0;
    assert!(engine.index().remove(user_hash, step.address));
    seen != Status::Absent
}

#[test]
fn a_step_never_answers_for_a_key_with_its_name() {
    assert!(!a_step_answers_for_a_key());
}

/// Returns how many bytes of steps were moved after their jobs had ended, and how many steps were lost before.
fn moved_after_their_end() -> (u64, usize) {
    let engine = Arc::new(Options::new().segment_size(64 << 10).open_nowhere().unwrap());
    let mut grant = begin(&engine);
    for number in 0..40 {
        run_step(&engine, &grant, &format!("step {number}"));
    }
    engine.compact(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let lost = 40 - engine.list_steps(grant.of(job())).unwrap().iter().filter(|step| step.is_ok()).count();
    complete(&engine, &mut grant).unwrap();
    let before = engine.reclaimed().0;
    engine.compact(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    (engine.reclaimed().0 - before, lost)
}

#[test]
fn reclaiming_keeps_a_step_exactly_while_its_operation_is_unfinished() {
    let (moved_bytes, lost) = moved_after_their_end();
    assert!(moved_bytes < 200, "{moved_bytes} bytes were moved for one completed key");
    assert_eq!(lost, 0);
}

#[test]
fn the_space_of_steps_is_dead_once_their_operation_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let engine = open(&path);
    let dead = |engine: &Engine| engine.log().space_usage().totals(engine.clock.now_ms()).dead_bytes;
    let live = |engine: &Engine| {
        let totals = engine.log().space_usage().totals(engine.clock.now_ms());
        totals.total_bytes.saturating_sub_signed(i64::try_from(totals.dead_bytes).unwrap())
    };
    let mut grant = begin(&engine);
    for number in 0..400 {
        run_step(&engine, &grant, &format!("step {number}"));
    }
    abandon(&engine, &grant);
    let before = live(&engine);
    let dead_before = dead(&engine);
    drop(engine);
    let engine = open(&path);
    assert_eq!((live(&engine), dead(&engine)), (before, dead_before), "recovery counts as the session did");
    grant = begin(&engine);
    complete(&engine, &mut grant).unwrap();
    assert!(live(&engine) < 300, "{} bytes are live", live(&engine));
    let after = live(&engine);
    drop(engine);
    let engine = open(&path);
    assert_eq!(live(&engine), after, "recovery counts as the session did");
}

#[test]
fn opening_reads_only_the_steps_of_unfinished_operations() {
    use crate::log::reader::tests::RECORDS_READ;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let engine = Arc::new(
        Options::new()
            .segment_size(64 << 10)
            .durability(crate::Durability::Buffered)
            .open_file(&path)
            .unwrap(),
    );
    let terms = terms(&engine);
    for number in 0..300 {
        let name = format!("job {number}");
        let key = Key::new(&name);
        let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::Acquired(mut grant) = began else { panic!("{began:?}") };
        for step in ["a", "b", "c", "d", "e"] {
            let of = StepOf { parent: grant.of(key), name: step.as_bytes() };
            let began = engine.begin_step(of, grant.version, Fingerprint::NONE.into(), &terms, true).unwrap();
            let StepBegan::Acquired(mut held) = began else { panic!("{began:?}") };
            engine.end_step(of, &mut held, StepEnd::Completed(Value::bytes(b"r")), &terms).unwrap();
        }
        if number % 100 != 0 {
            let finish = Finish::Completed(Value::bytes(b"r"));
            engine
                .finish(grant.of(key), grant.version, (finish, &[]), &terms, &mut grant.reservation)
                .unwrap();
        }
    }
    assert!(engine.log().span().1 > 3, "the steps fill several segments");
    drop(engine);
    RECORDS_READ.set(0);
    let engine = open(&path);
    // Each unfinished operation and its last record of each step; a begin in an earlier segment counts twice.
    let read = RECORDS_READ.get();
    assert!((18..=3 * 11).contains(&read), "{read} records were read");
    assert_eq!((engine.unfinished_steps(), engine.unfinished_counts().0), (15, 3));
}

#[test]
fn a_job_writes_little_more_than_its_results_and_is_resumed_in_linear_time() {
    use crate::log::reader::tests::RECORDS_READ;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.once");
    let options = Options::new().durability(crate::Durability::Buffered).min_size(32 << 20);
    let engine = Arc::new(options.segment_size(16 << 20).open_file(&path).unwrap());
    let grant = begin(&engine);
    let result = [7; 10_000];
    for number in 0..1_000 {
        let name = format!("item {number}");
        let mut held = begin_step(&engine, &grant, &name);
        let end = StepEnd::Completed(Value::bytes(&result));
        engine.end_step(step(&grant, &name), &mut held, end, &terms(&engine)).unwrap();
    }
    // Each record is alone in its frame, and has an entry in a footer.
    let record_bytes = engine.log().space_usage().totals(engine.clock.now_ms()).total_bytes;
    let written_bytes = record_bytes + 2_001 * (56 + 48);
    let sum_bytes = 1_000 * 10_000;
    assert!(written_bytes * 100 <= sum_bytes * 105, "{written_bytes} bytes for {sum_bytes} bytes of results");
    assert_eq!(engine.reclaimed().0, 0, "nothing is rewritten");
    drop(engine);
    RECORDS_READ.set(0);
    let engine = open(&path);
    let mut again = begin(&engine);
    for number in 0..1_000 {
        let began = try_begin_step(&engine, &again, &format!("item {number}")).unwrap();
        assert!(matches!(began, StepBegan::Completed(_)), "{began:?}");
    }
    complete(&engine, &mut again).unwrap();
    let read = RECORDS_READ.get();
    assert!(read <= 4 * 1_000, "{read} records were read");
}

#[test]
fn an_operation_has_at_most_65536_steps_and_memory_for_each() {
    let options = Options::new().durability(crate::Durability::Buffered).max_result(100);
    let engine = Arc::new(options.open_nowhere().unwrap());
    let mut grant = begin(&engine);
    for number in 0..crate::step_set::MAX_STEPS {
        run_step(&engine, &grant, &number.to_string());
    }
    let refused = try_begin_step(&engine, &grant, "one more");
    assert!(matches!(refused, Err(Error::TooManySteps { limit: 65_536, .. })), "{refused:?}");
    let bytes = engine.unfinished_bytes();
    assert!(bytes < 130 * crate::step_set::MAX_STEPS, "{} bytes a step", bytes / crate::step_set::MAX_STEPS);
    complete(&engine, &mut grant).unwrap();
    assert!(engine.unfinished_bytes() < 100_000, "the memory of steps is given back");
}

#[test]
fn a_step_without_space_leaves_its_operation_resumable() {
    let options = Options::new().segment_size(64 << 10).max_size(4_096 + 6 * (64 << 10)).max_result(12_000);
    let engine = Arc::new(options.open_nowhere().unwrap());
    let grant = begin(&engine);
    let big = [7; 12_000];
    let mut done = 0;
    let full = loop {
        let name = format!("step {done}");
        match try_begin_step(&engine, &grant, &name) {
            Ok(StepBegan::Acquired(mut held)) => {
                let end = StepEnd::Completed(Value::bytes(&big));
                engine.end_step(step(&grant, &name), &mut held, end, &terms(&engine)).unwrap();
                done += 1;
            }
            other => break other,
        }
    };
    assert!(matches!(full, Err(Error::Full { .. })) && done > 2, "{full:?} after {done} steps");
    abandon(&engine, &grant);
    assert_eq!(status(&engine), Status::Stopped);
    let mut again = begin(&engine);
    for number in 0..done {
        let began = try_begin_step(&engine, &again, &format!("step {number}")).unwrap();
        assert!(matches!(began, StepBegan::Completed(_)), "{began:?}");
    }
    complete(&engine, &mut again).unwrap();
    let fresh = begin_key(&engine, "another job");
    assert!(matches!(fresh, Ok(Began::Acquired(_))), "the space of the steps is free: {fresh:?}");
}

fn begin_key(engine: &Arc<Engine>, key: &str) -> Result<Began> {
    engine.begin(Key::new(key), Fingerprint::NONE.into(), &terms(engine), true)
}

#[test]
fn an_operator_sets_the_state_of_a_step() {
    let engine = engine();
    let grant = begin(&engine);
    drop(begin_step(&engine, &grant, "charge"));
    run_step(&engine, &grant, "ship");
    abandon(&engine, &grant);
    let charge = step(&grant, "charge");
    let (state, found) = engine.get_step(charge).unwrap();
    assert_eq!(state, Status::InDoubt);
    let expected = Expected::Present { status: Status::InDoubt, version: found.unwrap().version };
    let next = Next::Completed { fingerprint: Fingerprint::NONE, result: b"found" };
    let set = |step, expected, next| engine.set_step(step, expected, next, None, &terms(&engine));
    assert!(set(charge, Expected::Absent, next).unwrap().is_none());
    assert!(set(charge, expected, next).unwrap().is_some());
    assert!(set(charge, expected, Next::Absent).unwrap().is_none(), "it has another version");
    assert_eq!(engine.get_step(charge).unwrap().1.unwrap().result.as_deref(), Some(&b"found"[..]));
    assert_eq!(status(&engine), Status::Stopped, "nothing is in doubt any more");
    let (_, ship) = engine.get_step(step(&grant, "ship")).unwrap();
    let expected = Expected::Present { status: Status::Completed, version: ship.unwrap().version };
    let undone = set(step(&grant, "ship"), expected, Next::Absent);
    assert!(matches!(undone, Err(Error::Conflict { .. })), "{undone:?}");
}

#[test]
fn a_job_that_a_batch_left_is_not_released_over_its_steps() {
    let engine = engine();
    let first = begin(&engine);
    run_step(&engine, &first, "reserve");
    abandon(&engine, &first);
    let again = begin(&engine);
    let (key, claim) = (job().to_owned(), again.claim);
    engine.release_unstarted(key, &terms(&engine), claim, engine.log().no_reservation());
    assert_eq!((status(&engine), engine.unfinished_steps()), (Status::Stopped, 1));
}

#[cfg(feature = "__simulation")]
mod planted_bugs {
    use super::*;
    use crate::planted::plant;

    /// Runs `check` with a bug planted, which must change what it returns.
    fn with<R>(bug: Bug, check: impl FnOnce() -> R) -> R {
        plant(Some(bug));
        let seen = check();
        plant(None);
        seen
    }

    #[test]
    fn finds_a_step_that_answers_for_a_key() {
        assert!(with(Bug::StepAnswersForKey, a_step_answers_for_a_key));
    }

    #[test]
    fn finds_steps_that_reclaiming_keeps_or_drops_wrongly() {
        assert!(with(Bug::DeadStepKept, moved_after_their_end).0 > 1_000);
    }

    #[test]
    fn finds_claims_that_outlive_a_takeover() {
        let engine = engine();
        let first = begin(&engine);
        let held = begin_step(&engine, &first, "charge");
        abandon(&engine, &first);
        let second = with(Bug::StepClaimsOutliveTakeover, || begin_again(&engine));
        assert_eq!(listed(&engine, &second)[0].1, Status::InProgress, "{held:?}");
    }

    #[test]
    fn finds_a_step_that_an_attempt_begins_after_it_was_taken_over() {
        let engine = engine();
        let first = begin(&engine);
        abandon(&engine, &first);
        let _second = begin_again(&engine);
        let late = with(Bug::StepBegunAfterTakeover, || try_begin_step(&engine, &first, "mail"));
        assert!(matches!(late, Ok(StepBegan::Acquired(_))), "{late:?}");
    }
}
