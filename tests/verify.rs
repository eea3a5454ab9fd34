//! Checks files with `verify`: what it counts, what it reports, and that it changes nothing. `tests/crash` has the harness of
//! damages and crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::ops::ControlFlow;

use common::{NONE, Place, SEGMENT, STORE_HEADER, abandon};
use oncekey::simulation::{Bug, plant};
use oncekey::{Consequence, Error, Key, Store, verify, verify_with};

/// A closed store of several segments with the keys `key-0` to `key-299`.
fn closed() -> Place {
    let place = Place::new();
    let store = place.open();
    for n in 0..300 {
        store.record(&format!("key-{n}"), NONE, &[7; 500]).unwrap();
    }
    store.close().unwrap();
    place
}

fn damage(place: &Place, offset: u64) {
    let mut bytes = place.bytes();
    bytes[usize::try_from(offset).unwrap()] ^= 1;
    std::fs::write(&place.path, bytes).unwrap();
}

/// The offset of the first record of `key`.
fn record_of(place: &Place, key: &str) -> u64 {
    let at = place.bytes().windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
    at as u64 - common::RECORD_HEADER
}

#[test]
fn a_sound_store_is_counted_and_left_as_it_is() {
    let place = closed();
    let before = place.bytes();
    let verification = verify(&place.path).unwrap();
    assert!(verification.is_sound() && verification.opens && verification.was_closed, "{verification:?}");
    assert_eq!((verification.keys, verification.records), (300, 300));
    assert!(verification.segments > 2 && verification.frames >= 300, "{verification:?}");
    assert_eq!(verification.segments_without_footer, 0);
    assert!(place.bytes() == before);
    // Checking a file needs no permission to write.
    let mut permissions = std::fs::metadata(&place.path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&place.path, permissions).unwrap();
    assert!(verify(&place.path).unwrap().is_sound());
}

#[test]
fn a_check_that_writes_is_found() {
    let place = closed();
    let before = place.bytes();
    plant(Some(Bug::VerifyOpensToWrite));
    let _ = verify(&place.path);
    plant(None);
    assert!(place.bytes() != before, "the planted bug changes the file, which the test above compares");
}

#[test]
fn a_damaged_record_is_reported_with_its_key() {
    let place = closed();
    // The checksum field: the key in the record is still right, and the footer proves that.
    damage(&place, record_of(&place, "key-7"));
    let verification = verify(&place.path).unwrap();
    let [fault] = &verification.faults[..] else { panic!("{verification:?}") };
    assert_eq!(fault.consequence, Consequence::KeyUnreadable);
    assert_eq!(fault.key.as_ref().map(|key| key.as_key()), Some(Key::new("key-7")));
    assert!(fault.offset == record_of(&place, "key-7") && fault.length_bytes > 500, "{fault:?}");
    assert!(verification.opens && verification.records == 299);
}

#[test]
fn a_damaged_record_that_was_superseded_is_harmless() {
    let place = Place::new();
    let store = place.open();
    abandon(&store, "key-7");
    for n in 0..300 {
        store.record(&format!("other-{n}"), NONE, &[7; 500]).unwrap();
    }
    assert!(store.forget("key-7").unwrap());
    store.close().unwrap();
    damage(&place, record_of(&place, "key-7"));
    let verification = verify(&place.path).unwrap();
    let [fault] = &verification.faults[..] else { panic!("{verification:?}") };
    assert_eq!(fault.consequence, Consequence::Harmless);
}

#[test]
fn damage_that_prevents_an_opening_is_reported_as_that() {
    let place = closed();
    let slots = (place.length() - STORE_HEADER) / SEGMENT;
    for offset in [20, STORE_HEADER + 100, STORE_HEADER + SEGMENT + 80] {
        damage(&place, offset);
        let verification = verify(&place.path).unwrap();
        assert!(!verification.opens && slots > 2, "{verification:?}");
        let refused = verification.faults.iter().filter(|fault| fault.consequence == Consequence::Refused);
        assert_eq!(refused.count(), 1, "{verification:?}");
        assert!(matches!(Store::open(&place.path), Err(Error::Corrupt { .. })));
        damage(&place, offset);
    }
}

#[test]
fn an_open_store_is_locked_and_a_check_locks_the_store() {
    let place = Place::new();
    let store = place.open();
    assert!(matches!(verify(&place.path), Err(Error::Locked { .. })));
    store.close().unwrap();
    let mut calls = 0;
    let both = verify_with(&place.path, |_| {
        calls += 1;
        assert!(verify(&place.path).is_ok(), "two checks at a time");
        assert!(matches!(Store::open(&place.path), Err(Error::Locked { .. })));
        ControlFlow::Continue(())
    });
    assert!(both.unwrap().is_sound() && calls == 1);
    Store::open(&place.path).unwrap();
}

#[test]
fn a_check_reports_its_progress_and_can_be_stopped() {
    let place = closed();
    let mut seen = Vec::new();
    verify_with(&place.path, |progress| {
        seen.push(progress.done_bytes);
        assert_eq!(progress.total_bytes % SEGMENT, 0);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(seen.len() > 2 && seen.windows(2).all(|pair| pair[1] == pair[0] + SEGMENT), "{seen:?}");
    let mut calls = 0;
    let stopped = verify_with(&place.path, |_| {
        calls += 1;
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(Error::Stopped { .. })) && calls == 1);
}

#[test]
fn a_file_that_is_not_a_store_is_refused() {
    let place = Place::new();
    assert!(matches!(verify(&place.path), Err(Error::Io { .. })));
    std::fs::write(&place.path, [b'x'; 100_000]).unwrap();
    assert!(matches!(verify(&place.path), Err(Error::NotAStore { .. })));
    std::fs::write(&place.path, []).unwrap();
    assert!(matches!(verify(&place.path), Err(Error::NotAStore { .. })));
}

/// A closed store with a job in doubt that has a step, the same for a job that is done, and two messages of which the first one is
/// acknowledged. All of them are in full segments.
fn with_steps_and_messages() -> Place {
    let place = Place::new();
    let store = place.open();
    for ends in [false, true] {
        let ran = store.operation(if ends { "finished" } else { "unfinished" }).emits(1_000).run(|job| {
            let name = if ends { "step-of-finished" } else { "step-of-unfinished" };
            job.step(name).run(|_| Ok::<u64, String>(1)).map_err(|error| error.to_string())?;
            job.emit_bytes("mail", b"payload").map_err(|error| error.to_string())?;
            if ends { Ok(1_u64) } else { Err("no answer".to_owned()) }
        });
        assert_eq!(ran.is_ok(), ends);
    }
    let emitted = store.operation("emits").emits(1_000).run(|attempt| {
        attempt.emit_bytes("mail", b"pending payload").map(|()| 1_u64).map_err(|error| error.to_string())
    });
    assert!(emitted.is_ok());
    store.outbox().next("mail").unwrap().unwrap().ack().unwrap();
    for n in 0..300 {
        store.record(&format!("key-{n}"), NONE, &[7; 500]).unwrap();
    }
    store.close().unwrap();
    place
}

#[test]
fn a_damaged_step_or_message_is_reported_with_its_consequence() {
    let unfinished = Key::new("unfinished").step("step-of-unfinished");
    for (text, consequence, key) in [
        ("step-of-unfinished", Consequence::StepUnreadable, Some(unfinished)),
        ("step-of-finished", Consequence::Harmless, Some(Key::new("finished").step("step-of-finished"))),
        ("pending payload", Consequence::MessageUnreadable, Some(Key::new("emits"))),
    ] {
        let place = with_steps_and_messages();
        assert!(verify(&place.path).unwrap().is_sound());
        let bytes = place.bytes();
        let at = bytes.windows(text.len()).rposition(|window| window == text.as_bytes()).unwrap();
        // The checksum of the record: what it states can still be read. A message has its key and its topic before the payload, a
        // step the extension that describes its result.
        let before = if text == "pending payload" { "emits".len() + 1 + "mail".len() } else { 12 };
        damage(&place, (at - before) as u64 - common::RECORD_HEADER);
        let verification = verify(&place.path).unwrap();
        let [fault] = &verification.faults[..] else { panic!("{text}: {verification:?}") };
        assert_eq!(
            (fault.consequence, fault.key.as_ref().map(|key| key.as_key())),
            (consequence, key),
            "{text}"
        );
        assert!(verification.opens);
        let store = Store::open(&place.path).unwrap();
        assert_eq!(store.get(unfinished).is_ok(), consequence != Consequence::StepUnreadable, "{text}");
        assert_eq!(
            store.outbox().next("mail").is_ok(),
            consequence != Consequence::MessageUnreadable,
            "{text}"
        );
    }
    // The first message is acknowledged.
    let place = with_steps_and_messages();
    let bytes = place.bytes();
    let at = bytes.windows(7).position(|window| window == b"payload").unwrap();
    damage(&place, at as u64);
    let verification = verify(&place.path).unwrap();
    let [fault] = &verification.faults[..] else { panic!("{verification:?}") };
    assert_eq!(fault.consequence, Consequence::Harmless);
}
