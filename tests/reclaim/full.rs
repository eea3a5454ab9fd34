//! Checks stores at their `max_size`: which calls they refuse, which calls still succeed, and when there is space again.

use oncekey::{Begin, Error, Expected, ManualClock, Next, Store};

use crate::common::{NONE, Place, SEGMENT, START_MS, clocked, copy_while_open, perform, seconds, small};

/// Fills a store with leases and completed operations. Returns the leases, and the number of operations that began.
fn fill(store: &Store) -> (Vec<oncekey::Lease>, u32) {
    let mut leases = Vec::new();
    for n in 0_u32.. {
        match store.begin(&format!("k{n}"), NONE) {
            Ok(Begin::Acquired(mut lease)) if n % 3 == 0 => {
                lease.complete(&[1; 1_000]).unwrap();
            }
            Ok(Begin::Acquired(lease)) => leases.push(lease),
            Err(Error::Full { reason, .. }) => {
                assert!(reason.contains("max_size"), "{reason}");
                return (leases, n);
            }
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

#[test]
fn a_full_store_refuses_begins_but_not_completions() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(100)).max_size(4_096 + 8 * SEGMENT).max_result(4_000);
    let store = options.open(&place.path).unwrap();
    let (leases, begun) = fill(&store);
    assert!(begun > 20, "{begun}");
    let reserved_bytes = store.stats().reserved_bytes;
    let min_bytes = leases.len() as u64 * 4_000;
    assert!((min_bytes..2 * min_bytes).contains(&reserved_bytes), "{reserved_bytes} for {begun} results");
    assert!(matches!(store.record("one more", NONE, &[0; 4_000]), Err(Error::Full { .. })));
    let next = Next::Completed { fingerprint: NONE, result: &[0; 4_000] };
    let set = store.compare_and_set("one more", Expected::Absent, next);
    assert!(matches!(set, Err(Error::Full { .. })), "a full store completed an absent key: {set:?}");
    assert!(store.get("one more").unwrap().is_absent());
    for (n, mut lease) in leases.into_iter().enumerate() {
        if n % 2 == 0 {
            lease.complete(&[2; 4_000]).unwrap();
        } else {
            lease.release().unwrap();
        }
    }
    assert!(place.length() <= 4_096 + 8 * SEGMENT);
    assert_eq!(store.stats().reserved_bytes, 0, "a reservation was neither used nor returned");

    // There is space again once the retention has passed, and again once keys are forgotten.
    clock.advance(seconds(100));
    let (leases, begun_again) = fill(&store);
    assert!(begun_again >= begun / 2, "{begun_again} of {begun}");
    drop(leases);
    for n in 0..begun_again {
        store.forget(&format!("k{n}")).unwrap();
    }
    perform(&store, "space again", &[0; 4_000]);
    store.close().unwrap();
    let store = options.open(&place.path).unwrap();
    assert!(store.get("space again").unwrap().is_completed());
}

/// Without a limit of its own, each begin reserves space for the largest result that the store allows.
#[test]
fn an_operation_reserves_space_for_its_own_maximum_result() {
    let store = small().max_result(4_000).open_in_memory().unwrap();
    let reserved_bytes = |operation: oncekey::Operation<'_>| {
        let before = store.stats().reserved_bytes;
        let Begin::Acquired(lease) = operation.begin().unwrap() else { unreachable!() };
        let reserved_bytes = store.stats().reserved_bytes - before;
        drop(lease);
        reserved_bytes
    };
    let (whole, part) =
        (reserved_bytes(store.operation("a")), reserved_bytes(store.operation("b").max_result(16)));
    assert_eq!(whole - part, 4_000 - 16, "{whole} and {part}");
    let refused = store.operation("c").max_result(4_001).begin();
    assert!(matches!(refused, Err(Error::Option { option: "max_result", .. })), "{refused:?}");
    let refused = store.operation("c").max_result(16).record(&[0; 17]);
    assert!(matches!(refused, Err(Error::TooLarge { limit_bytes: 16, .. })), "{refused:?}");
    let unrecorded = store.operation("c").max_result(16).run(|_| Ok::<_, String>([7_u8; 32]));
    let Err(oncekey::RunError::Unrecorded {
        result, source: Error::TooLarge { limit_bytes: 16, .. }, ..
    }) = unrecorded
    else {
        panic!("{unrecorded:?}")
    };
    assert_eq!(*result, [7; 32]);
}

/// The smaller the operations are, the larger the share of a segment that its footer takes.
#[test]
fn a_store_full_of_the_smallest_operations_can_complete_them() {
    let place = Place::new();
    let store = small().max_size(4_096 + 8 * SEGMENT).max_result(1).open(&place.path).unwrap();
    let mut leases = Vec::new();
    loop {
        match store.begin(&leases.len().to_string(), NONE) {
            Ok(Begin::Acquired(lease)) => leases.push(lease),
            Err(Error::Full { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(leases.len() > 500, "{}", leases.len());
    for lease in &mut leases {
        lease.complete(b"r").unwrap();
    }
    assert_eq!(store.stats().reserved_bytes, 0);
}

#[test]
fn a_full_store_opens_and_its_doubts_can_be_resolved() {
    let place = Place::new();
    let options = small().max_size(4_096 + 8 * SEGMENT).max_result(4_000);
    let store = options.open(&place.path).unwrap();
    let (leases, _) = fill(&store);
    let keys: Vec<_> = leases.iter().map(|lease| lease.key().to_owned()).collect();
    let crashed = copy_while_open(&place.path);
    drop(leases);
    drop(store);
    let store = options.open(&crashed.path).unwrap();
    for key in &keys {
        let Begin::InDoubt(mut doubt) = store.begin(key, NONE).unwrap() else { panic!("{key}") };
        doubt.complete(b"found").unwrap();
    }
}

/// Fills a store with records, each in its own frame. Returns how many fit.
fn fill_with_records(store: &Store, result: &[u8]) -> u32 {
    (0_u32..)
        .find(|n| match store.record(&format!("filler{n}"), NONE, result) {
            Ok(_) => false,
            Err(Error::Full { .. }) => true,
            Err(error) => panic!("{error}"),
        })
        .unwrap()
}

#[test]
fn a_full_store_has_space_as_soon_as_its_records_expire() {
    for (slots, size) in [(4, 0), (4, 100), (8, 1_000), (8, 4_000)] {
        let clock = ManualClock::new(START_MS);
        let options =
            clocked(&clock).max_size(4_096 + slots * SEGMENT).retention(seconds(10)).max_result(4_000);
        let store = options.open_in_memory().unwrap();
        fill_with_records(&store, &vec![1; size]);
        clock.advance(seconds(10));
        for n in 0..5 {
            let outcome = store.record(&format!("new{n}"), NONE, b"r");
            assert!(
                outcome.is_ok(),
                "{slots} slots, {size} bytes, call {n}: {outcome:?}, {:?}",
                store.stats()
            );
        }
    }
}

#[test]
fn a_full_store_can_be_reopened_any_number_of_times() {
    let place = Place::new();
    let options = small().max_size(4_096 + 4 * SEGMENT).max_result(14_000);
    let store = options.open(&place.path).unwrap();
    let (mut leases, mut keys) = (Vec::new(), Vec::new());
    while let Ok(Begin::Acquired(lease)) = store.begin(&format!("k{}", leases.len()), NONE) {
        keys.push(format!("k{}", leases.len()));
        leases.push(lease);
    }
    for mut lease in leases {
        lease.complete(&[7; 14_000]).unwrap();
    }
    fill_with_records(&store, b"");
    drop(store);
    let mut last = oncekey::Version::from_u64(0);
    for _ in 0..1_500 {
        let store = options.open(&place.path).unwrap();
        let begun = store.begin("k0", NONE).unwrap();
        assert!(matches!(begun, Begin::Completed(done) if done.result() == [7; 14_000]));
    }
    let store = options.open(&place.path).unwrap();
    for key in &keys {
        store.forget(key).unwrap();
    }
    for key in &keys {
        let Begin::Acquired(lease) = store.begin(key, NONE).unwrap() else { panic!("{key}") };
        assert!(lease.version() > last, "a version was given out twice");
        last = lease.version();
        lease.release().unwrap();
    }
}

#[test]
fn reservations_leave_space_for_moving_records() {
    let clock = ManualClock::new(START_MS);
    let options =
        clocked(&clock).max_size(4_096 + 6 * SEGMENT).max_result(14_000).retention(seconds(1_000_000));
    let store = options.open_in_memory().unwrap();
    let mut leases = Vec::new();
    for n in 0.. {
        let retention = if n < 2 { seconds(1_000_000) } else { seconds(10) };
        match store.operation(&format!("k{n}")).retain(retention).begin() {
            Ok(Begin::Acquired(lease)) => leases.push(lease),
            Err(Error::Full { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(leases.len() > 6, "{}", leases.len());
    for mut lease in leases {
        lease.complete(&[7; 14_000]).unwrap();
    }
    clock.advance(seconds(1_000));
    for n in 0..20 {
        let outcome = store.record(&format!("new{n}"), NONE, &[1; 1_000]);
        assert!(outcome.is_ok(), "call {n}: {outcome:?}, {:?}", store.stats());
    }
    assert!(store.get("k0").unwrap().is_completed() && store.get("k1").unwrap().is_completed());
}
