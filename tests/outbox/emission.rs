//! Which calls commit messages, and which do not.

use oncekey::{
    Begin, CasOutcome, Error, Expected, Fingerprint, Messages, Next, Options, Outcome, RunError, Status,
    Store,
};

use crate::{drain, tokens};

const NONE: Fingerprint = Fingerprint::NONE;

fn messages(topic: &str, payloads: &[&[u8]]) -> Messages {
    let mut messages = Messages::new();
    for payload in payloads {
        messages.emit_bytes(topic, payload).unwrap();
    }
    messages
}

#[test]
fn messages_are_there_exactly_if_the_operation_is_completed() {
    let store = Store::in_memory().unwrap();
    let run = |key: &'static str, fails: bool| {
        store.operation(key).scope("acct").emits(4_096).release_if(|error: &String| error == "nothing").run(
            |attempt| {
                attempt.emit("t", &1_u64).map_err(|error| error.to_string())?;
                attempt.emit("t", &2_u64).map_err(|error| error.to_string())?;
                if fails {
                    Err(if key == "b" { "nothing" } else { "timeout" }.to_owned())
                } else {
                    Ok(17_u64)
                }
            },
        )
    };
    assert!(matches!(run("a", true), Err(RunError::InDoubt { .. })));
    assert!(matches!(run("b", true), Err(RunError::Released(_))));
    assert_eq!(store.stats().messages, 0);
    assert!(matches!(run("c", false), Ok(Outcome::Done(17))));
    assert!(matches!(run("c", false), Ok(Outcome::AlreadyDone(17))), "a replay");
    assert_eq!(store.stats().messages, 2, "and it emitted nothing");
    let delivery = store.outbox().next("t").unwrap().unwrap();
    assert_eq!((delivery.token().as_str(), delivery.number()), ("acct/c~1", 1));
    assert_eq!(delivery.decode::<u64>().unwrap(), 1);
    delivery.ack().unwrap();
    assert_eq!(tokens(&store, "t"), ["acct/c~2"]);
    assert_eq!(tokens(&store, "u"), [""; 0]);
}

#[test]
fn what_reconcile_finds_is_completed_with_the_messages_of_its_result() {
    let store = Store::in_memory().unwrap();
    let operation = || {
        store
            .operation("k")
            .emits(4_096)
            .reconcile(|attempt| {
                assert!(
                    matches!(attempt.emit("t", &1_u64), Err(Error::Fenced { .. })),
                    "an attempt in doubt"
                );
                Some(17_u64)
            })
            .on_complete(|result: &u64, outbox| outbox.emit("t", result))
    };
    let lost = operation().run(|attempt| {
        attempt.emit("t", &99_u64).unwrap();
        Err::<u64, _>("timeout")
    });
    assert!(matches!(lost, Err(RunError::InDoubt { .. })));
    assert!(matches!(operation().run(|_| Err::<u64, _>("not run")), Ok(Outcome::AlreadyDone(17))));
    assert!(matches!(operation().run(|_| Err::<u64, _>("not run")), Ok(Outcome::AlreadyDone(17))));
    let delivery = store.outbox().next("t").unwrap().unwrap();
    assert_eq!(delivery.decode::<u64>().unwrap(), 17, "the message of the lost attempt is gone with it");
    delivery.ack().unwrap();
    assert_eq!(tokens(&store, "t"), [""; 0]);
}

#[test]
fn on_complete_comes_after_the_attempt_and_serves_every_typed_completion() {
    let store = Store::in_memory().unwrap();
    let emit = |result: &u64, outbox: &mut Messages| outbox.emit_bytes("t", result.to_string().as_bytes());
    let ran = store.operation("a").emits(4_096).on_complete(emit).run(|attempt| {
        attempt.emit_bytes("t", b"first")?;
        Ok::<u64, Error>(1)
    });
    assert!(ran.is_ok());
    for result in [2, 3] {
        store.operation("b").emits(4_096).on_complete(emit).record_value(&result).unwrap();
    }
    let absent = Expected::Absent;
    for _ in 0..2 {
        store.operation("c").emits(4_096).on_complete(emit).complete_if(absent, &4).unwrap();
    }
    let expected = [("a~1", "first"), ("a~2", "1"), ("b~1", "2"), ("c~1", "4")];
    let expected: Vec<_> = expected.map(|(token, text)| (token.to_owned(), text.as_bytes().to_vec())).into();
    assert_eq!(drain(&store, "t"), expected);
}

#[test]
fn a_result_is_not_recorded_without_its_messages() {
    let store = Store::in_memory().unwrap();
    let operation = |emits| {
        store
            .operation("k")
            .emits(emits)
            .reconcile(|_| Some(5_u64))
            .on_complete(|result: &u64, outbox| outbox.emit("t", result))
    };
    for _ in 0..2 {
        let failed = operation(100).run(|_| Ok::<u64, String>(5));
        let Err(RunError::Unrecorded { result, source: Error::TooLarge { limit_bytes: 100, .. }, .. }) =
            failed
        else {
            panic!("{failed:?}")
        };
        assert_eq!(*result, 5);
        assert_eq!(store.get("k").unwrap().status(), Status::InDoubt);
    }
    assert!(matches!(operation(4_096).run(|_| Ok::<u64, String>(6)), Ok(Outcome::AlreadyDone(5))));
    assert_eq!(tokens(&store, "t"), ["k~1"]);
}

#[test]
fn leases_and_doubts_commit_messages_with_their_completion() {
    let store = Store::in_memory().unwrap();
    let begin = |key| match store.operation(key).emits(4_096).begin().unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    };
    let mut lease = begin("a");
    lease.emit("t", &1_u64).unwrap();
    lease.complete(b"r").unwrap();
    lease.complete(b"r").unwrap();
    assert_eq!(tokens(&store, "t"), ["a~1"], "completing once more emits nothing");
    let mut lease = begin("b");
    lease.emit_bytes("t", b"").unwrap();
    lease.release().unwrap();
    drop(begin("b"));
    assert_eq!(tokens(&store, "t"), [""; 0]);
    let Begin::InDoubt(mut doubt) = store.begin("b", NONE).unwrap() else { panic!() };
    doubt.complete_with(b"r", messages("t", &[b"1", b"2"])).unwrap();
    assert_eq!(tokens(&store, "t"), ["b~1", "b~2"]);
    let mut lease = begin("c");
    assert!(matches!(lease.emit_bytes("t", &[0; 5_000]), Err(Error::TooLarge { limit_bytes: 4_096, .. })));
    lease.complete_value(&1_u64).unwrap();
    let Begin::Acquired(mut lease) = store.begin("d", NONE).unwrap() else { panic!() };
    assert!(matches!(lease.emit_bytes("t", b""), Err(Error::TooLarge { limit_bytes: 0, .. })));
    assert_eq!(tokens(&store, "t"), [""; 0]);
}

#[test]
fn compare_and_set_commits_messages_only_if_it_completes() {
    let store = Store::in_memory().unwrap();
    let (absent, done) = (Expected::Absent, Next::Completed { fingerprint: NONE, result: b"r" });
    let messages = messages("t", &[b"x"]);
    for next in [Next::Absent, Next::InDoubt { fingerprint: NONE }] {
        let refused = store.compare_and_set_with("k", absent, next, &messages);
        assert!(matches!(refused, Err(Error::Option { option: "messages", .. })));
    }
    assert!(matches!(store.compare_and_set_with("k", absent, done, &messages), Ok(CasOutcome::Done(_))));
    assert!(matches!(store.compare_and_set_with("k", absent, done, &messages), Ok(CasOutcome::Differs(_))));
    assert_eq!(tokens(&store, "t"), ["k~1"]);
}

#[test]
fn messages_of_a_batch_hang_on_their_entries() {
    let store = Store::in_memory().unwrap();
    store.record("done", NONE, b"").unwrap();
    let Begin::Acquired(mut lease) = store.operation("lease").emits(1_024).begin().unwrap() else { panic!() };
    lease.emit_bytes("t", b"own").unwrap();
    let Begin::Acquired(mut other) = store.begin("other", NONE).unwrap() else { panic!() };
    let mut batch = store.batch();
    assert!(matches!(batch.attach(messages("t", &[b""])), Err(Error::Option { option: "messages", .. })));
    batch.record(store.operation("a"), b"").unwrap();
    batch.attach(messages("t", &[b"1", b"2"])).unwrap();
    batch.record(store.operation("done"), b"").unwrap();
    batch.attach(messages("t", &[b"a replay"])).unwrap();
    batch.record(store.operation("a"), b"").unwrap();
    batch.attach(messages("t", &[b"a replay of the same batch"])).unwrap();
    batch.complete(&mut lease, b"r").unwrap();
    batch.attach(messages("t", &[b"attached"])).unwrap();
    batch.begin(store.operation("b")).unwrap();
    assert!(matches!(batch.attach(messages("t", &[b""])), Err(Error::Option { .. })));
    batch.release(&mut other).unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    drop(batch);
    let drained = drain(&store, "t");
    let expected = [("a~1", "1"), ("a~2", "2"), ("lease~1", "own"), ("lease~2", "attached")];
    let expected: Vec<_> = expected.map(|(token, text)| (token.to_owned(), text.as_bytes().to_vec())).into();
    assert_eq!(drained, expected);
    lease.complete(b"r").unwrap();
    assert_eq!(tokens(&store, "t"), [""; 0]);
}

#[test]
fn an_atomic_batch_that_is_refused_emits_nothing() {
    let store = Options::new().segment_size(64 << 10).open_in_memory().unwrap();
    store.record("done", store.fingerprint(b"other"), b"").unwrap();
    let mut batch = store.batch().atomic();
    batch.record(store.operation("a"), b"").unwrap();
    batch.attach(messages("t", &[b"1"])).unwrap();
    assert!(matches!(
        batch.attach(messages("t", &[&[0; 17_000]])),
        Err(Error::Option { option: "atomic", .. })
    ));
    batch.record(store.operation("done"), b"").unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!(answers[0], Err(Error::BatchRefused { entry: 1, .. })), "{answers:?}");
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_message_of_a_batch_is_in_the_frame_of_its_completion() {
    // Each entry takes more than half a frame, so each is in a frame of its own.
    let store = Options::new().segment_size(64 << 10).open_in_memory().unwrap();
    let mut batch = store.batch();
    let payload = vec![7; 9_000];
    for number in 0..5 {
        batch.record(store.operation(format!("{number}")), b"").unwrap();
        batch.attach(messages("t", &[&payload])).unwrap();
    }
    batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
    let drained = drain(&store, "t");
    assert!(drained.iter().all(|(_, drained)| *drained == payload));
    let tokens: Vec<_> = drained.into_iter().map(|(token, _)| token).collect();
    assert_eq!(tokens, ["0~1", "1~1", "2~1", "3~1", "4~1"]);
}

#[test]
fn messages_that_do_not_fit_are_refused_before_anything_is_written() {
    let store = Options::new().segment_size(64 << 10).open_in_memory().unwrap();
    let large = messages("t", &[&[0; 9_000], &[0; 9_000]]);
    let done = Next::Completed { fingerprint: NONE, result: b"r" };
    let refused = store.compare_and_set_with("k", Expected::Absent, done, &large);
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    let refused = store.operation("k").emits(17_000).run(|_| Ok::<u64, String>(1));
    assert!(matches!(refused, Err(RunError::Store(Error::Option { option: "emits", .. }))));
    let refused = store.operation("k").emits(8_000).max_result(8_000).begin();
    assert!(matches!(refused, Err(Error::Option { option: "emits", .. })));
    assert!(store.get("k").unwrap().is_absent());
    let ran = store.operation("k").emits(13_000).run(|attempt| {
        attempt.emit_bytes("t", &[0; 12_000])?;
        Ok::<_, Error>(0_u8)
    });
    assert!(ran.is_ok(), "the messages lessen the result: {ran:?}");
    assert_eq!(tokens(&store, "t"), ["k~1"]);
}

#[test]
fn topics_are_checked_and_messages_may_be_empty() {
    let mut messages = Messages::new();
    for topic in ["", &"t".repeat(256)] {
        assert!(
            matches!(messages.emit_bytes(topic, b""), Err(Error::Option { option: "topic", .. })),
            "{topic}"
        );
    }
    let longest = "t".repeat(255);
    messages.emit_bytes(&longest, b"").unwrap();
    assert_eq!((messages.len(), format!("{messages:?}").contains("<0 bytes>")), (1, true));
    let store = Store::in_memory().unwrap();
    let done = Next::Completed { fingerprint: NONE, result: b"r" };
    store.compare_and_set_with("k", Expected::Absent, done, &messages).unwrap();
    assert_eq!(drain(&store, &longest), [("k~1".to_owned(), Vec::new())]);
}

#[test]
fn an_attempt_that_has_ended_emits_nothing() {
    let store = Store::in_memory().unwrap();
    let mut kept = None;
    let ran = store.operation("k").emits(1_024).run(|attempt| {
        kept = Some(attempt.clone());
        attempt.emit_bytes("t", b"1")?;
        Ok::<_, Error>(1_u8)
    });
    assert!(ran.is_ok());
    assert!(matches!(kept.unwrap().emit_bytes("t", b"2"), Err(Error::Fenced { .. })));
    assert_eq!(store.stats().messages, 1);
}

#[test]
fn a_store_with_too_many_messages_begins_nothing_that_emits() {
    let store = Options::new().max_outbox(200).open_in_memory().unwrap();
    let run = |key: &'static str| {
        store.operation(key).emits(4_096).run(|attempt| {
            attempt.emit_bytes("t", &[0; 200])?;
            Ok::<_, Error>(1_u8)
        })
    };
    let Begin::Acquired(mut lease) = store.operation("begun").emits(1_024).begin().unwrap() else { panic!() };
    run("a").unwrap();
    assert!(store.stats().message_bytes >= 200);
    let full = |outcome: Result<_, RunError<u8, Error>>| match outcome {
        Err(RunError::Store(Error::Full { reason, .. })) => {
            assert!(reason.contains("max_outbox"), "{reason}");
        }
        other => panic!("{other:?}"),
    };
    full(run("b"));
    assert!(store.get("b").unwrap().is_absent());
    assert!(matches!(run("a"), Ok(Outcome::AlreadyDone(1))), "a replay is not refused");
    assert!(store.operation("c").run(|_| Ok::<u8, String>(1)).is_ok(), "an operation without messages");
    lease.emit_bytes("t", b"x").unwrap();
    lease.complete(b"").unwrap();
    let mut batch = store.batch();
    batch.begin(store.operation("d").emits(1_024)).unwrap();
    batch.begin(store.operation("e")).unwrap();
    let answers: Vec<_> = batch.commit().unwrap().collect();
    assert!(matches!((&answers[0], &answers[1]), (Err(Error::Full { .. }), Ok(_))), "{answers:?}");
    assert_eq!(tokens(&store, "t"), ["a~1", "begun~1"]);
    run("b").unwrap();
}
