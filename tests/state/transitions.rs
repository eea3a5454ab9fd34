//! Checks the transitions of a key by begin, completion, release, record, forget, the passing of time and the end of the
//! process.

use oncekey::{Begin, Error, Key, Recorded, Status, Version};

use crate::common::{NONE, Place, START_MS, abandon, acquire, copy_while_open, perform, seconds, small};
use crate::{each_store, status};

#[test]
fn a_completed_operation_replays_its_result_byte_for_byte() {
    each_store(|store, _| {
        let result: Vec<u8> = (0..=255).collect();
        perform(store, "k", &result);
        let Begin::Completed(done) = store.begin("k", NONE).unwrap() else { panic!("not completed") };
        assert_eq!(done.result(), result);
        assert_eq!(done.attempt(), 1);
        assert_eq!(done.completed_at_ms(), START_MS);
    });
}

#[test]
fn replay_into_answers_like_begin_but_begins_nothing() {
    each_store(|store, clock| {
        let mut buffer = b"from an earlier call".to_vec();
        let version = store.replay_into("k", NONE, &mut buffer).unwrap();
        assert!(version.is_none() && buffer.is_empty() && status(store, "k") == Status::Absent);
        let mut lease = acquire(store, "k");
        assert_eq!(
            store.replay_into("k", NONE, &mut buffer).unwrap(),
            None,
            "replayed an operation in progress"
        );
        let version = lease.complete(b"result").unwrap();
        assert_eq!(store.replay_into("k", NONE, &mut buffer).unwrap(), Some(version));
        assert_eq!(buffer, b"result");
        let other = store.fingerprint(b"another request");
        assert!(matches!(store.replay_into("k", other, &mut buffer), Err(Error::Mismatch { .. })));
        assert!(buffer.is_empty(), "the buffer holds the result of another request");
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
fn an_empty_result_differs_from_no_result() {
    each_store(|store, _| {
        assert_eq!(store.get("k").unwrap().result(), None);
        perform(store, "k", b"");
        assert_eq!(store.get("k").unwrap().result(), Some(&b""[..]));
    });
}

#[test]
fn a_key_is_in_doubt_once_its_lease_is_dropped() {
    each_store(|store, _| {
        let lease = acquire(store, "k");
        assert_eq!(status(store, "k"), Status::InProgress);
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1, .. }));
        drop(lease);
        assert_eq!(status(store, "k"), Status::InDoubt);
        let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!("no doubt") };
        assert_eq!(doubt.attempt(), 1);
    });
}

#[test]
fn others_see_a_held_doubt_as_in_progress() {
    each_store(|store, _| {
        abandon(store, "k");
        let Begin::InDoubt(doubt) = store.begin("k", NONE).unwrap() else { panic!("no doubt") };
        assert!(matches!(store.begin("k", NONE).unwrap(), Begin::InProgress { attempt: 1, .. }));
        drop(doubt);
        assert!(
            matches!(store.begin("k", NONE).unwrap(), Begin::InDoubt(_)),
            "dropping the handle ended the doubt"
        );
    });
}

#[test]
fn a_doubt_can_be_resolved_either_way_or_begun_again() {
    each_store(|store, _| {
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
fn a_release_frees_the_key_and_keeps_its_count_of_attempts() {
    each_store(|store, clock| {
        acquire(store, "k").release().unwrap();
        assert_eq!(status(store, "k"), Status::Absent);
        assert_eq!(store.get("k").unwrap().attempt(), 1);
        let lease = acquire(store, "k");
        assert_eq!(lease.attempt(), 2);
        lease.release().unwrap();
        clock.advance(seconds(100));
        assert_eq!(acquire(store, "k").attempt(), 1, "the count of attempts did not expire with the key");
    });
}

#[test]
fn a_different_request_is_a_mismatch_in_every_state() {
    each_store(|store, _| {
        let (one, other) = (store.fingerprint(b"one"), store.fingerprint(b"other"));
        let mismatch = |key: &str| {
            assert!(matches!(store.begin(key, other), Err(Error::Mismatch { .. })), "begin {key}");
            assert!(matches!(store.record(key, other, b"r"), Err(Error::Mismatch { .. })), "record {key}");
            assert!(matches!(store.begin(key, NONE), Err(Error::Mismatch { .. })), "no fingerprint, {key}");
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
            "a released key kept its fingerprint"
        );
    });
}

#[test]
fn a_result_may_expire_before_its_key_without_a_second_run() {
    each_store(|store, clock| {
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
        assert_eq!(acquire(store, "k").attempt(), 1, "the count of attempts did not expire with the key");
    });
}

#[test]
fn operations_in_progress_or_in_doubt_never_expire() {
    each_store(|store, clock| {
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
fn a_late_lease_completes_unless_another_caller_took_over() {
    each_store(|store, clock| {
        let begin = || store.operation("k").lease(seconds(10)).begin().unwrap();
        let Begin::Acquired(mut late) = begin() else { panic!() };
        clock.advance(seconds(9));
        assert!(matches!(begin(), Begin::InProgress { .. }));
        clock.advance(seconds(1));
        assert_eq!(status(store, "k"), Status::InDoubt);
        late.complete(b"late").unwrap();
        assert_eq!(
            store.get("k").unwrap().result(),
            Some(&b"late"[..]),
            "the lease was fenced although no caller took over"
        );
    });
}

#[test]
fn a_late_completion_after_a_takeover_is_fenced() {
    each_store(|store, clock| {
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
fn a_late_completion_wins_over_an_unresolved_doubt() {
    each_store(|store, clock| {
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
fn completing_again_needs_the_same_bytes() {
    each_store(|store, _| {
        let mut lease = acquire(store, "k");
        let version = lease.complete(b"one").unwrap();
        assert_eq!(lease.complete(b"one").unwrap(), version);
        assert!(matches!(lease.complete(b"two"), Err(Error::Conflict { .. })));
        assert!(matches!(lease.release(), Err(Error::Conflict { .. })));
        assert_eq!(store.get("k").unwrap().result(), Some(&b"one"[..]));
    });
}

/// A second completion is compared with the record, so it fails once the record is gone.
#[test]
fn completing_again_compares_with_what_the_store_still_has() {
    each_store(|store, clock| {
        let mut forgotten = acquire(store, "forgotten");
        forgotten.complete(b"one").unwrap();
        store.forget("forgotten").unwrap();
        assert!(matches!(forgotten.complete(b"one"), Err(Error::Fenced { .. })));

        let mut replaced = acquire(store, "replaced");
        replaced.complete(b"one").unwrap();
        store.forget("replaced").unwrap();
        perform(store, "replaced", b"one");
        assert!(matches!(replaced.complete(b"one"), Err(Error::Fenced { .. })));

        let mut without = acquire(store, "without");
        let version = without.complete_without_result().unwrap();
        assert_eq!(without.complete_without_result().unwrap(), version);
        assert!(matches!(without.complete(b""), Err(Error::Conflict { .. })));

        let mut expired = acquire(store, "expired");
        expired.retain(seconds(60)).unwrap();
        expired.complete(b"one").unwrap();
        clock.advance(seconds(60));
        assert!(matches!(expired.complete(b"one"), Err(Error::Fenced { .. })));
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
fn record_completes_in_one_call_or_replays() {
    each_store(|store, _| {
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
fn forget_removes_any_key_without_a_live_lease() {
    each_store(|store, _| {
        assert!(!store.forget("k").unwrap());
        perform(store, "k", b"r");
        assert!(store.forget("k").unwrap());
        assert_eq!(status(store, "k"), Status::Absent);
        let lease = acquire(store, "k");
        assert_eq!(lease.attempt(), 1, "a forget did not reset the count of attempts");
        assert!(matches!(store.forget("k"), Err(Error::InProgress { .. })));
        drop(lease);
        assert!(store.forget("k").unwrap());
        assert_eq!(status(store, "k"), Status::Absent);
    });
}

#[test]
fn versions_grow_across_forgets_and_sessions() {
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
fn each_scope_has_its_own_keys() {
    each_store(|store, _| {
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
fn keys_and_scopes_longer_than_the_limit_are_refused() {
    each_store(|store, _| {
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
fn an_operation_in_progress_at_a_kill_is_in_doubt_afterwards() {
    let place = Place::new();
    let store = place.open();
    perform(&store, "done", b"result");
    let lease = acquire(&store, "open");
    let copy = copy_while_open(&place.path);
    drop(lease);
    let again = copy.open();
    assert_eq!(status(&again, "open"), Status::InDoubt);
    assert_eq!(again.get("done").unwrap().result(), Some(&b"result"[..]));
}
