//! Checks how store time continues from one session to the next after steps of the wall clock, reboots, crashes and
//! restored machines, and when a store refuses to open because of the clock. Uses the public interface only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{NONE, Place, START_MS, clocked, copy_while_open, seconds, small};
use oncekey::{ClockJump, Error, ManualClock, Options, Recorded, Store};

const DAY_MS: u64 = 24 * 3_600_000;

fn days(count: u64) -> Duration {
    Duration::from_millis(count * DAY_MS)
}

fn open(clock: &ManualClock, path: &Path) -> Store {
    clocked(clock).open(path).unwrap()
}

/// Ends the session. Closes the store, or copies the file in the state in which a kill would leave it; a copy, because the file
/// of an open store is locked.
fn end(store: &Store, place: Place, killed: bool) -> Place {
    if killed {
        return copy_while_open(&place.path);
    }
    store.close().unwrap();
    place
}

#[test]
fn a_wall_clock_step_in_the_same_boot_expires_nothing() {
    for killed in [false, true] {
        for to_ms in [START_MS + 8 * DAY_MS, START_MS + 4_000 * DAY_MS, START_MS - 8 * DAY_MS, 0] {
            for while_open in [true, false] {
                let (place, clock) = (Place::new(), ManualClock::new(START_MS));
                let store = open(&clock, &place.path);
                if while_open {
                    clock.jump_wall(to_ms);
                    clock.advance(seconds(10));
                    // The store reads the wall clock when a call needs the time.
                    assert!(store.get("k").unwrap().is_absent());
                    assert_eq!(store.stats().clock_steps_not_followed, 1);
                }
                store.record("k", NONE, b"r").unwrap();
                clock.advance(seconds(10));
                let before_ms = store.stats().store_time_ms;
                let place = end(&store, place, killed);
                if !while_open {
                    clock.jump_wall(to_ms);
                }
                clock.advance(seconds(30));
                let store = open(&clock, &place.path);
                assert!(store.get("k").unwrap().is_completed());
                assert_eq!(store.stats().store_time_ms, before_ms + 30_000, "to {to_ms}, killed: {killed}");
                clock.advance(days(7));
                assert!(store.get("k").unwrap().is_absent(), "store time does not advance");
            }
        }
    }
}

#[test]
fn a_clock_corrected_from_1970_in_the_same_boot_is_accepted() {
    let (place, clock) = (Place::new(), ManualClock::new(5_000));
    let store = open(&clock, &place.path);
    store.record("k", NONE, b"r").unwrap();
    clock.advance(seconds(1));
    clock.jump_wall(START_MS);
    store.close().unwrap();
    let store = open(&clock, &place.path);
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().store_time_ms, 6_000);
    store.close().unwrap();
    // The clock is right at the next boot. The time mark of the second session has the corrected wall clock.
    clock.reboot(days(1));
    let store = open(&clock, &place.path);
    assert!(store.get("k").unwrap().is_completed());
    assert_eq!(store.stats().store_time_ms, 6_000 + DAY_MS);
}

#[test]
fn a_clock_corrected_from_1970_while_down_must_be_accepted_once() {
    let (place, clock) = (Place::new(), ManualClock::new(5_000));
    let store = open(&clock, &place.path);
    store.record("k", NONE, b"r").unwrap();
    store.close().unwrap();
    clock.reboot(seconds(1));
    clock.jump_wall(START_MS);
    let error = clocked(&clock).open(&place.path).unwrap_err();
    let text = error.to_string();
    for part in ["19675 days", "ahead of", "1700000000000 ms", "(Options::accept_clock_jump)", "NotElapsed"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let Error::Clock { wall_ms, last_wall_ms, store_time_ms, .. } = error else { panic!("{error:?}") };
    assert_eq!((wall_ms, last_wall_ms, store_time_ms), (START_MS, 5_000, 5_000));
    let store = clocked(&clock).accept_clock_jump(ClockJump::NotElapsed).open(&place.path).unwrap();
    assert!(store.get("k").unwrap().is_completed(), "a record of a second ago expired");
    store.close().unwrap();
    for _ in 0..2 {
        clock.reboot(seconds(60));
        let store = open(&clock, &place.path);
        assert!(store.get("k").unwrap().is_completed());
        store.close().unwrap();
    }
    clock.reboot(days(8));
    assert!(
        open(&clock, &place.path).get("k").unwrap().is_absent(),
        "store time did not continue from the accepted clock"
    );
}

#[test]
fn a_clock_300_days_ahead_expires_nothing() {
    for killed in [false, true] {
        let (place, clock) = (Place::new(), ManualClock::new(START_MS));
        let store = open(&clock, &place.path);
        store.record("k", NONE, b"r").unwrap();
        let place = end(&store, place, killed);
        clock.jump_wall(START_MS + 300 * DAY_MS);
        let store = open(&clock, &place.path);
        assert!(store.get("k").unwrap().is_completed());
        let place = end(&store, place, killed);
        clock.jump_wall(START_MS + 1_000);
        let store = open(&clock, &place.path);
        assert!(store.get("k").unwrap().is_completed());
        store.close().unwrap();
        clock.reboot(seconds(60));
        assert!(open(&clock, &place.path).get("k").unwrap().is_completed());
    }
}

#[test]
fn a_reboot_longer_than_max_downtime_is_refused() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let options = || clocked(&clock).max_downtime(days(10));
    let store = options().open(&place.path).unwrap();
    store.record("k", NONE, b"r").unwrap();
    store.close().unwrap();
    clock.reboot(days(300));
    assert!(matches!(options().open(&place.path), Err(Error::Clock { .. })));
    clock.jump_wall(START_MS + 1_000);
    assert!(options().open(&place.path).unwrap().get("k").unwrap().is_completed());
    for (down, refused) in [(days(10), false), (days(10) + Duration::from_millis(1), true)] {
        clock.reboot(down);
        assert_eq!(options().open(&place.path).is_err(), refused, "{down:?}");
    }
    clock.reboot(days(0));
    assert!(options().max_downtime(Duration::MAX).open(&place.path).is_ok());
}

#[test]
fn steps_just_below_ten_seconds_do_not_add_up() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).retention(seconds(3_600)).open(&place.path).unwrap();
    store.record("k", NONE, b"r").unwrap();
    let mut passed = 0;
    while store.get("k").unwrap().is_completed() {
        clock.advance(seconds(1));
        clock.jump_wall(clock.now_ms() + 9_999);
        passed += 1;
    }
    assert!((3_598..=3_600).contains(&passed), "an hour of retention ended after {passed} s");
    assert!(store.stats().clock_steps_not_followed > 1_000, "the steps were not counted");
}

#[test]
fn a_clock_jump_must_be_accepted_only_once() {
    for (jump, time_passed) in [(ClockJump::Elapsed, true), (ClockJump::NotElapsed, false)] {
        for killed in [false, true] {
            let (place, clock) = (Place::new(), ManualClock::new(START_MS));
            let always = || clocked(&clock).accept_clock_jump(jump);
            let store = always().open(&place.path).unwrap();
            store.record("k", NONE, b"r").unwrap();
            store.close().unwrap();
            clock.reboot(days(1));
            let store = always().open(&place.path).unwrap();
            assert_eq!(
                store.stats().store_time_ms,
                START_MS + DAY_MS,
                "{jump:?}: a day was taken for a jump"
            );
            store.close().unwrap();

            clock.reboot(days(400));
            assert!(matches!(clocked(&clock).open(&place.path), Err(Error::Clock { .. })));
            let store = always().open(&place.path).unwrap();
            assert_eq!(store.get("k").unwrap().is_absent(), time_passed, "{jump:?}");
            let time_ms = store.stats().store_time_ms;
            assert_eq!(time_ms, START_MS + DAY_MS + if time_passed { 400 * DAY_MS } else { 0 });
            let place = end(&store, place, killed);
            clock.reboot(seconds(1));
            let store = open(&clock, &place.path);
            assert_eq!(store.stats().store_time_ms, time_ms + 1_000, "{jump:?}, killed: {killed}");
            store.close().unwrap();

            clock.jump_wall(clock.now_ms() - 40 * DAY_MS);
            clock.reboot(seconds(1));
            match clocked(&clock).open(&place.path) {
                Err(error @ Error::Clock { .. }) => {
                    assert!(error.to_string().contains("39 days and 23 hours behind"), "{error}");
                }
                other => panic!("{other:?}"),
            }
            let store = always().open(&place.path).unwrap();
            assert_eq!(store.stats().store_time_ms, time_ms + 1_000, "store time went back");
            store.close().unwrap();
            clock.reboot(seconds(2));
            assert_eq!(open(&clock, &place.path).stats().store_time_ms, time_ms + 3_000);
        }
    }
}

#[test]
fn a_store_created_at_time_zero_refuses_a_jump_too() {
    for killed in [false, true] {
        let (place, clock) = (Place::new(), ManualClock::new(0));
        let store = open(&clock, &place.path);
        store.record("k", NONE, b"r").unwrap();
        assert_eq!(store.stats().store_time_ms, 0);
        let place = end(&store, place, killed);
        for wall_ms in [START_MS, 100 * START_MS, 367 * DAY_MS, u64::MAX] {
            let bytes = place.bytes();
            let refused = clocked(&ManualClock::new(wall_ms)).open(&place.path);
            assert!(matches!(refused, Err(Error::Clock { .. })), "{wall_ms}: {refused:?}");
            assert_eq!(place.bytes(), bytes);
        }
        assert!(open(&ManualClock::new(0), &place.path).get("k").unwrap().is_completed());
        assert!(open(&ManualClock::new(DAY_MS), &place.path).get("k").unwrap().is_completed());
    }
    // A store in which nothing was ever recorded has a time mark too.
    let place = Place::new();
    open(&ManualClock::new(0), &place.path).close().unwrap();
    let refused = clocked(&ManualClock::new(START_MS)).open(&place.path);
    assert!(matches!(refused, Err(Error::Clock { .. })), "{refused:?}");
}

#[test]
fn a_moved_or_restored_store_follows_the_wall_clock() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let restored = clock.snapshot();
    let store = open(&clock, &place.path);
    clock.advance(days(2));
    store.record("k", NONE, b"r").unwrap();
    store.close().unwrap();
    // The snapshot has the same boot id, but its boot-time clock is earlier than the one in the file.
    let bytes = place.bytes();
    let refused = clocked(&restored).open(&place.path);
    assert!(
        matches!(refused, Err(Error::Clock { .. })),
        "a clock that is two days behind was not refused: {refused:?}"
    );
    assert_eq!(place.bytes(), bytes);
    restored.jump_wall(START_MS + 3 * DAY_MS);
    let store = open(&restored, &place.path);
    assert_eq!(store.stats().store_time_ms, START_MS + 3 * DAY_MS);
    store.close().unwrap();

    let elsewhere = ManualClock::new(START_MS + 4 * DAY_MS);
    elsewhere.advance(days(1));
    let store = open(&elsewhere, &place.path);
    assert_eq!(store.stats().store_time_ms, START_MS + 5 * DAY_MS);
}

#[test]
fn moved_records_do_not_set_store_time_back_after_a_crash() {
    // Reclaiming moves old records to the end of the log. Their times must not count as the time of the last write.
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = open(&clock, &place.path);
    for n in 0..600 {
        store.record(&format!("{n}"), NONE, &[1; 100]).unwrap();
    }
    for n in 0..590 {
        store.forget(&format!("{n}")).unwrap();
    }
    clock.advance(days(3));
    store.compact().unwrap();
    store.sync().unwrap();
    let copy = copy_while_open(&place.path);
    clock.reboot(seconds(5));
    let store = open(&clock, &copy.path);
    assert_eq!(store.stats().store_time_ms, START_MS + 3 * DAY_MS + 5_000);
}

#[test]
fn closed_sessions_share_one_open_count() {
    let place = Place::new();
    let mut last = None;
    for n in 0..100 {
        let store = small().open(&place.path).unwrap();
        let Recorded::Done(version) = store.record(&format!("{n}"), NONE, b"r").unwrap() else { panic!() };
        assert!(last < Some(version), "{version} after {last:?}");
        assert_eq!(version.as_u64() >> 40, 1, "{version}");
        last = Some(version);
        if n % 2 == 0 {
            store.close().unwrap();
        }
    }
    // Only a session that does not follow a close takes a new open count.
    let killed = small().open(&place.path).unwrap();
    let copy = copy_while_open(&place.path);
    let store = small().open(&copy.path).unwrap();
    let Recorded::Done(version) = store.record("after", NONE, b"r").unwrap() else { panic!() };
    assert_eq!(version.as_u64() >> 40, 2);
    drop(killed);
}

#[test]
fn a_store_that_refuses_to_open_leaves_the_file_unchanged() {
    let refused = |options: Options, path: &Path| match options.open(path) {
        Err(Error::Option { .. } | Error::Clock { .. }) => {}
        other => panic!("{other:?}"),
    };
    for killed in [false, true] {
        let (place, clock) = (Place::new(), ManualClock::new(START_MS));
        let store = open(&clock, &place.path);
        store.record("k", NONE, b"r").unwrap();
        let place = end(&store, place, killed);
        let bytes = place.bytes();
        let far = ManualClock::new(START_MS * 2);
        for _ in 0..10 {
            refused(Options::new().max_result(500_000), &place.path);
            refused(clocked(&clock).max_size(100_000), &place.path);
            refused(clocked(&far), &place.path);
            assert!(place.bytes() == bytes);
        }
        let store = open(&clock, &place.path);
        let Recorded::Done(version) = store.record("after", NONE, b"r").unwrap() else { panic!() };
        assert_eq!(
            version.as_u64() >> 40,
            if killed { 2 } else { 1 },
            "the open count includes a session that was refused"
        );
    }
    let large = Place::new();
    Options::new().open(&large.path).unwrap().close().unwrap();
    let bytes = large.bytes();
    refused(small().max_size(1 << 20), &large.path);
    assert!(large.bytes() == bytes);
    let new = Place::new();
    refused(small().max_result(500_000), &new.path);
    assert!(!new.path.exists(), "a refused option created a file");
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_clocks_continue_store_time_across_sessions() {
    let place = Place::new();
    let store = small().open(&place.path).unwrap();
    let before_ms = store.stats().store_time_ms;
    store.close().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let store = small().open(&place.path).unwrap();
    let passed_ms = store.stats().store_time_ms - before_ms;
    assert!((20..60_000).contains(&passed_ms), "{passed_ms}");
}
