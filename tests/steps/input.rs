//! The input of a job: stored with the first begin, the same for every attempt, and enough to go on.

use std::cell::Cell;

use oncekey::simulation::{Bug, plant};
use oncekey::{Begin, Error, Json, Options, Outcome, RunError, Status, Store};
use serde::{Deserialize, Serialize};

use crate::common::{Place, SEGMENT, copy_while_open, perform, small};
use crate::done;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    id: String,
    items: Vec<String>,
}

fn order(id: &str) -> Order {
    Order { id: id.to_owned(), items: vec!["lamp".to_owned(), "desk".to_owned()] }
}

#[test]
fn a_crash_right_after_the_begin_keeps_the_input() {
    let place = Place::new();
    let store = place.open();
    let copy = Cell::new(None);
    let run = store.operation("k").input(&order("k")).run(|_| {
        copy.set(Some(copy_while_open(&place.path)));
        Ok::<u64, String>(1)
    });
    assert!(run.is_ok());
    let copy = copy.into_inner().unwrap();
    let store = copy.open();
    let (stored, resumed) = store.resume::<Order>("k").unwrap().unwrap();
    assert_eq!(stored, order("k"));
    let run = resumed.rerun().run(|job| {
        assert_eq!((job.number(), job.input::<Order>().unwrap()), (2, order("k")));
        Ok::<u64, String>(2)
    });
    assert_eq!(run.unwrap(), Outcome::Done(2));
}

#[test]
fn the_input_outlives_attempts_openings_and_reclaiming() {
    let place = Place::new();
    let large = Order { items: vec!["x".repeat(8_000)], ..order("k") };
    for attempt in 1..=4 {
        let store = place.open();
        let run = store.operation("k").request("k").input(&large).rerun().run(|job| {
            assert_eq!(job.number(), attempt);
            let read: Order = job.input().map_err(|error| error.to_string())?;
            assert_eq!(read, large, "attempt {attempt}");
            done(job, &format!("step of attempt {attempt}"), 1_u64).map_err(|error| error.to_string())?;
            Err::<u64, _>("stop".to_owned())
        });
        assert!(matches!(run, Err(RunError::Stopped(_))), "{run:?}");
        let retired = store.stats().segments_retired;
        for number in 0..3 * SEGMENT / 4_000 {
            perform(&store, &format!("other {number}"), &[7; 4_000]);
            store.forget(&format!("other {number}")).unwrap();
        }
        store.compact().unwrap();
        assert!(store.stats().segments_retired > retired, "the segment of the job was reclaimed");
        let listed = store.unfinished().unwrap().next().unwrap().unwrap();
        assert_eq!(listed.steps().len(), attempt as usize, "and so are its steps");
        store.close().unwrap();
    }
    let store = place.open();
    let (stored, resumed) = store.resume::<Order>("k").unwrap().unwrap();
    assert_eq!(stored, large);
    let run = resumed.run(|job| {
        (1..=4).map(|attempt| done(job, &format!("step of attempt {attempt}"), 9_u64)).sum::<Result<u64, _>>()
    });
    assert_eq!(run.unwrap(), Outcome::Done(4));
}

#[test]
fn a_later_caller_does_not_change_the_input() {
    let store = Store::in_memory().unwrap();
    let run = |input: u64| {
        store.operation("k").request("k").input(&input).rerun().run(|job| {
            let read: u64 = job.input().map_err(|error| error.to_string())?;
            if job.number() == 1 { Err("stop".to_owned()) } else { Ok(read) }
        })
    };
    assert!(run(1).is_err());
    assert_eq!(run(2).unwrap(), Outcome::Done(1));
}

#[test]
fn the_input_is_the_request_unless_there_is_another() {
    let store = Store::in_memory().unwrap();
    assert!(store.operation("k").input(&1_u64).run(|_| Ok::<u64, String>(1)).is_ok());
    let other = store.operation("k").input(&2_u64).run(|_| Ok::<u64, String>(2));
    assert!(matches!(other, Err(RunError::Store(Error::Mismatch { .. }))), "{other:?}");
    let same = store.operation("k").request(&1_u64).input(&2_u64).run(|_| Ok::<u64, String>(2));
    assert_eq!(same.unwrap(), Outcome::AlreadyDone(1));
    let same = store.operation("k").input(&2_u64).request(&1_u64).run(|_| Ok::<u64, String>(2));
    assert_eq!(same.unwrap(), Outcome::AlreadyDone(1), "in any order");
}

#[test]
fn a_lease_has_an_input_too() {
    let place = Place::new();
    let store = place.open();
    let Begin::Acquired(lease) = store.operation("k").input(&7_u64).begin().unwrap() else { panic!() };
    drop(lease);
    let (input, resumed) = store.resume::<u64>("k").unwrap().unwrap();
    assert_eq!(input, 7);
    assert_eq!(resumed.rerun().run(|_| Ok::<u64, String>(1)).unwrap(), Outcome::Done(1));
}

#[test]
fn what_cannot_be_resumed_says_why_before_anything_begins() {
    let store = Store::in_memory().unwrap();
    assert!(store.resume::<u64>("never began").unwrap().is_none());
    let lost = |key| assert!(store.operation(key).run(|_| Err::<u64, _>("lost")).is_err());
    lost("without input");
    let Err(Error::NoInput { key, .. }) = store.resume::<u64>("without input") else { panic!() };
    assert_eq!(key.to_string(), r#"key "without input""#);
    let run = store.operation("without input").rerun().run(|job| job.input::<u64>());
    assert!(matches!(run, Err(RunError::InDoubt { error: Error::NoInput { .. }, .. })), "{run:?}");
    let run = store.operation("k").input(&order("k")).run(|_| Err::<u64, _>("lost"));
    assert!(run.is_err());
    assert!(matches!(store.resume::<u64>("k"), Err(Error::Decode { .. })));
    let state = store.get("k").unwrap();
    assert_eq!((state.attempt(), state.status()), (1, Status::InDoubt), "nothing has begun");
    assert!(matches!(store.resume::<u64>(""), Err(Error::Key { .. })));
}

#[test]
fn an_input_that_cannot_be_stored_is_refused_before_the_begin() {
    let store = Options::new().max_result(100).open_in_memory().unwrap();
    let run = store.operation("k").input(&[7_u8; 101].as_slice().to_vec()).run(|_| Ok::<u64, String>(1));
    assert!(matches!(run, Err(RunError::Store(Error::TooLarge { .. }))), "{run:?}");
    #[derive(Serialize, Deserialize)]
    struct Skips {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        field: Option<u8>,
    }
    let run = store.operation("k").input(&Skips { field: None }).run(|_| Ok::<u64, String>(1));
    assert!(matches!(run, Err(RunError::Store(Error::Encode { .. }))), "{run:?}");
    assert!(store.get("k").unwrap().is_absent());
    // The limit of the operation is for its result.
    let run = store.operation("k").max_result(8).input(&vec![7_u8; 80]).run(|_| Ok::<u64, String>(1));
    assert!(run.is_ok(), "{run:?}");
    let mut batch = store.batch();
    batch.begin(store.operation("b").input(&1_u64)).unwrap();
    assert!(matches!(batch.commit().unwrap().next(), Some(Err(Error::Option { option: "input", .. }))));
}

#[test]
fn an_input_has_the_codec_that_encoded_it() {
    let store = Store::in_memory().unwrap();
    let lost = store.operation("k").codec(Json).input(&order("k")).run(|_| Err::<u64, _>("lost"));
    assert!(lost.is_err());
    let (stored, resumed) = store.resume::<Order>("k").unwrap().unwrap();
    assert_eq!(stored, order("k"));
    let (stored, _) = store.resume_with::<_, Order>(&Json, "k").unwrap().unwrap();
    assert_eq!(stored, order("k"));
    assert!(matches!(store.resume_with::<_, Order>(&oncekey::Bincode, "k"), Err(Error::Decode { .. })));
    let run = resumed.codec(Json).rerun().run(|job| {
        assert_eq!(job.input_with::<_, Order>(&Json).unwrap(), order("k"));
        assert!(matches!(job.input_with::<_, Order>(&oncekey::Bincode), Err(Error::Decode { .. })));
        job.step("a").codec(Json).run(|step| step.input::<Order>().map(|order| order.id))
    });
    assert_eq!(run.unwrap(), Outcome::Done("k".to_owned()));
}

/// Whether a job that was forgotten after a worker had resumed it is left alone.
fn is_forgotten_job_left_alone() -> bool {
    let store = Store::in_memory().unwrap();
    let begin =
        || store.operation("k").request("k").input(&1_u64).run(|_| Err::<u64, _>("lost")).unwrap_err();
    begin();
    let (_, resumed) = store.resume::<u64>("k").unwrap().unwrap();
    let (_, later) = store.resume::<u64>("k").unwrap().unwrap();
    store.forget("k").unwrap();
    let run = resumed.rerun().run(|_| Ok::<u64, String>(1));
    let is_left_alone = matches!(run, Err(RunError::Store(Error::Fenced { .. })));
    if is_left_alone {
        begin();
        // Another operation under the same key, with the same request.
        let run = later.rerun().run(|_| Ok::<u64, String>(1));
        assert!(matches!(run, Err(RunError::Store(Error::Fenced { .. }))), "{run:?}");
    }
    is_left_alone
}

#[test]
fn a_job_that_was_forgotten_is_not_resumed() {
    assert!(is_forgotten_job_left_alone());
    plant(Some(Bug::ForgottenJobResumed));
    let is_found = !is_forgotten_job_left_alone();
    plant(None);
    assert!(is_found, "the planted bug was not found");
}

#[test]
fn a_job_that_was_completed_meanwhile_replays() {
    let store = small().open_in_memory().unwrap();
    let lost = store.operation("k").input(&1_u64).run(|_| Err::<u64, _>("lost"));
    assert!(lost.is_err());
    let (_, resumed) = store.resume::<u64>("k").unwrap().unwrap();
    let (_, late) = store.resume::<u64>("k").unwrap().unwrap();
    assert_eq!(resumed.rerun().run(|_| Ok::<u64, String>(5)).unwrap(), Outcome::Done(5));
    assert_eq!(late.rerun().run(|_| Ok::<u64, String>(6)).unwrap(), Outcome::AlreadyDone(5));
    assert!(store.resume::<u64>("k").unwrap().is_none());
}
