//! Checks batches on stores that are full, or nearly.

use oncekey::{Answer, Error, ManualClock, Store};

use crate::common::{NONE, SEGMENT, START_MS, clocked, seconds};

/// Begins single operations until the store is full.
fn fill(store: &Store) -> Vec<oncekey::Lease> {
    let mut leases = Vec::new();
    for number in 0.. {
        match store.begin(&format!("filler-{number}"), NONE) {
            Ok(oncekey::Begin::Acquired(lease)) => leases.push(lease),
            Err(Error::Full { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    leases
}

#[test]
fn a_full_store_refuses_the_begins_of_a_batch_and_none_of_its_completions() {
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(100)).max_size(4_096 + 8 * SEGMENT).max_result(4_000);
    let store = options.open_in_memory().unwrap();
    let mut leases = fill(&store);
    let count = leases.len();
    assert!(count > 10, "{count}");
    let mut batch = store.batch();
    for (number, lease) in leases.iter_mut().enumerate() {
        batch.begin(store.operation(format!("more-{number}"))).unwrap();
        batch.complete(lease, &[1; 4_000]).unwrap();
    }
    let answers: Vec<_> = batch.commit().unwrap().collect();
    for pair in answers.chunks(2) {
        assert!(matches!(pair[0], Err(Error::Full { .. })), "{:?}", pair[0]);
        assert!(matches!(pair[1], Ok(Answer::Done(_))), "{:?}", pair[1]);
    }
    drop(batch);
    drop(leases);
    assert_eq!(store.stats().reserved_bytes, 0);

    // After the retention there is space, which the batch makes itself.
    clock.advance(seconds(101));
    let mut batch = store.batch();
    for number in 0..10 {
        batch.begin(store.operation(format!("later-{number}"))).unwrap();
    }
    assert!(batch.commit().unwrap().all(|answer| matches!(answer, Ok(Answer::Acquired(_)))));
}

/// A batch of more begins than fit gets as many as fit.
#[test]
fn a_batch_that_is_larger_than_the_space_begins_what_fits() {
    let store = clocked(&ManualClock::new(START_MS))
        .max_size(4_096 + 8 * SEGMENT)
        .max_result(4_000)
        .open_in_memory()
        .unwrap();
    let mut batch = store.batch();
    for number in 0..500 {
        batch.begin(store.operation(format!("{number}"))).unwrap();
    }
    batch.begin(store.operation("small").max_result(0)).unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    let begun = answers.iter().filter(|answer| matches!(answer, Ok(Answer::Acquired(_)))).count();
    let full = answers.iter().filter(|answer| matches!(answer, Err(Error::Full { .. }))).count();
    assert!(begun > 10 && full > 100 && begun + full == 501, "{begun} begun, {full} refused");
}
