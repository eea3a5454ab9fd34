//! The names of steps: each once in an attempt, none in a step, and at most 65,536.

use std::cell::Cell;

use oncekey::simulation::{Bug, plant};
use oncekey::{Durability, Error, Key, Options, RunError, Status, Store};

use crate::{done, fails};

#[test]
fn a_name_is_used_once_in_an_attempt() {
    let store = Store::in_memory().unwrap();
    let job = |expected: u32| {
        store.operation("k").rerun().run(move |job| {
            assert_eq!(done(job, "a", 1_u64).unwrap(), 1);
            let again = done(job, "a", 2_u64);
            let Err(RunError::Store(Error::StepReused { key, .. })) = &again else { panic!("{again:?}") };
            assert_eq!(key.as_key(), Key::new("k").step("a"));
            if job.number() < expected { Err("stop") } else { Ok(1_u64) }
        })
    };
    assert!(job(2).is_err());
    assert!(job(2).is_ok(), "the next attempt asks for the steps anew");
}

#[test]
fn a_step_that_failed_in_doubt_counts_as_used() {
    let store = Store::in_memory().unwrap();
    let lost = store.operation("k").rerun().run(|job| {
        fails(job, "a");
        // If this ran, a mistake in the names would give one item the result of another.
        let again = job.step("a").rerun().run(|_| Ok::<u64, String>(1));
        assert!(matches!(again, Err(RunError::Store(Error::StepReused { .. }))), "{again:?}");
        Err::<u64, _>("stop")
    });
    assert!(lost.is_err());
}

#[test]
fn a_step_that_was_released_can_be_tried_again_in_the_same_attempt() {
    let store = Store::in_memory().unwrap();
    let tries = Cell::new(0);
    let outcome = store.operation("k").run(|job| {
        loop {
            let step = job.step("a").release_if(|_: &String| true).run(|step| {
                tries.set(tries.get() + 1);
                assert_eq!(step.number(), tries.get());
                if tries.get() < 3 { Err("refused".to_owned()) } else { Ok(7_u64) }
            });
            match step {
                Err(RunError::Released(_)) => assert_eq!(job.steps().unwrap()[0].status(), Status::Absent),
                step => break step.map_err(|error| error.to_string()),
            }
        }
    });
    assert_eq!((outcome.unwrap().into_inner(), tries.get()), (7, 3));
}

/// Whether a step in a step is refused, on either handle.
fn is_nesting_refused(with_outer_handle: bool) -> bool {
    let store = Store::in_memory().unwrap();
    let refused = Cell::new(false);
    let outcome = store.operation("k").run(|job| {
        job.step("outer").run(|step| {
            let handle = if with_outer_handle { job } else { step };
            let inner = done(handle, "inner", 1_u64);
            refused.set(matches!(inner, Err(RunError::Store(Error::Option { option: "step", .. }))));
            Ok::<u64, String>(1)
        })
    });
    assert!(outcome.is_ok());
    // The steps of another operation are not in this step.
    let other = store.operation("k2").run(|job| {
        job.step("outer").run(|_| {
            let other = store.operation("k3").run(|job| done(job, "inner", 1_u64));
            Ok::<u64, String>(other.unwrap().into_inner())
        })
    });
    assert_eq!(other.unwrap().into_inner(), 1);
    refused.get()
}

#[test]
fn a_step_has_no_steps_of_its_own() {
    assert!(is_nesting_refused(false));
    assert!(is_nesting_refused(true));
    plant(Some(Bug::StepInStep));
    let is_found = !is_nesting_refused(true);
    plant(None);
    assert!(is_found, "the planted bug was not found");
}

#[test]
fn a_name_has_1_to_1_024_bytes() {
    let store = Store::in_memory().unwrap();
    let outcome = store.operation("k").run(|job| {
        for name in [String::new(), "n".repeat(1_025)] {
            assert!(matches!(done(job, &name, 1_u64), Err(RunError::Store(Error::Key { .. }))));
            assert!(matches!(job.give_up(&name), Err(Error::Key { .. })));
        }
        done(job, &"n".repeat(1_024), 1_u64)
    });
    assert_eq!(outcome.unwrap().into_inner(), 1);
}

#[test]
fn another_request_under_the_name_of_a_step_is_a_mismatch() {
    let store = Store::in_memory().unwrap();
    let first = store.operation("k").run(|job| {
        let reserved = job.step("reserve").request("lamp").run(|_| Ok::<_, String>(1_u64));
        Err::<u64, _>(format!("stop after {}", reserved.unwrap()))
    });
    assert!(matches!(first, Err(RunError::Stopped(_))));
    let seen = Cell::new(false);
    let other = store.operation("k").rerun().run(|job| {
        let step = job.step("reserve").request("desk").run(|_| Ok::<_, String>(2_u64));
        seen.set(matches!(&step, Err(RunError::Store(Error::Mismatch { key, .. }))
            if key.as_key() == Key::new("k").step("reserve")));
        step
    });
    assert!(other.is_err() && seen.get());
    let renamed = store
        .operation("k")
        .rerun()
        .run(|job| job.step("reserve").request("desk").or_request("lamp").run(|_| Ok::<_, String>(2_u64)));
    assert_eq!(renamed.unwrap().into_inner(), 1, "the former request is accepted");
}

#[test]
fn an_operation_has_at_most_65_536_steps() {
    // The file holds all records, so that nothing is reclaimed meanwhile.
    let options = Options::new().durability(Durability::Buffered).min_size(64 << 20);
    let store = options.open_in_memory().unwrap();
    let outcome = store.operation("k").input(&1_u64).run(|job| {
        for number in 0..65_536_u32 {
            let step = job.step(number.to_string()).max_result(8).run(|_| Ok::<_, String>(()));
            step.map_err(|error| error.to_string())?;
        }
        let one_more = job.step("one more").max_result(8).run(|_| Ok::<_, String>(()));
        let Err(RunError::Store(Error::TooManySteps { limit, .. })) = one_more else {
            panic!("{one_more:?}")
        };
        assert_eq!(limit, 65_536);
        assert_eq!(job.steps().unwrap().len(), 65_536);
        Ok::<u64, String>(1)
    });
    assert!(outcome.is_ok());
    assert_eq!(store.stats().unfinished_steps, 0);
}
