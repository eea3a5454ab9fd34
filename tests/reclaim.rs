//! Giving space back: what is live stays, what is dead goes, and a store under steady load keeps its size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{
    NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_of_open, perform, seconds, small,
};
use oncekey::{Begin, Durability, Error, Expected, ManualClock, Next, Status, Store};

#[test]
fn a_store_under_steady_load_with_a_short_retention_keeps_its_size() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(10)).durability(Durability::Buffered);
    let store = options.open(&place.path).unwrap();
    let mut sizes = Vec::new();
    // 20 retentions of 1,000 operations each.
    for n in 0..20_000 {
        perform(&store, &format!("k{n}"), &[1; 200]);
        clock.advance(std::time::Duration::from_millis(10));
        if n % 1_000 == 999 {
            sizes.push(store.stats().file_bytes);
        }
    }
    let live_bytes = 1_000 * (80 + 8 + 200 + 48);
    let largest = sizes[4..].iter().max().unwrap();
    assert_eq!(sizes[5..].iter().max(), sizes[10..].iter().max(), "it does not grow any more: {sizes:?}");
    assert!(*largest < 3 * live_bytes + 6 * SEGMENT, "{sizes:?}");
    assert!(store.stats().keys < 3_000, "the index forgets as well");
    assert!(place.length() <= largest + SEGMENT, "and so is the file on disk");
}

#[test]
fn live_records_of_every_kind_survive_reclaiming_with_their_versions() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store =
        clocked(&clock).retention(seconds(1_000)).result_retention(seconds(500)).open(&place.path).unwrap();
    perform(&store, "done", b"result");
    perform(&store, "empty", b"");
    abandon(&store, "doubt");
    let lease = acquire(&store, "progress");
    acquire(&store, "released").release().unwrap();
    store.operation("tombstone").retain_result(seconds(1)).record(&[9; 300]).unwrap();
    store.record("forgotten", NONE, b"old").unwrap();
    store.forget("forgotten").unwrap();
    let keys = ["done", "empty", "doubt", "progress", "released"];
    let before: Vec<_> = keys.iter().map(|key| store.get(key).unwrap()).collect();
    for n in 0..20_000 {
        store.operation(&format!("short{n}")).retain(seconds(2)).record(&[0; 100]).unwrap();
        clock.advance(std::time::Duration::from_millis(10));
    }
    assert!(store.stats().segments_retired > 20, "{:?}", store.stats());
    let check = |store: &Store, statuses: [Status; 5]| {
        for ((key, before), status) in keys.iter().zip(&before).zip(statuses) {
            let now = store.get(key).unwrap();
            assert_eq!(now.status(), status, "{key}");
            assert_eq!(now.version(), before.version(), "{key}: a moved record keeps its version");
            assert_eq!(now.result(), before.result(), "{key}");
            // How often a released key was tried need not be remembered.
            assert!(now.attempt() == before.attempt() || *key == "released" && now.attempt() == 0, "{key}");
        }
        assert!(store.get("forgotten").unwrap().is_absent());
        assert!(matches!(store.begin("tombstone", NONE), Err(Error::ResultExpired { .. })));
    };
    use Status::{Absent, Completed, InDoubt, InProgress};
    check(&store, [Completed, Completed, InDoubt, InProgress, Absent]);
    store.compact().unwrap();
    check(&store, [Completed, Completed, InDoubt, InProgress, Absent]);
    let crashed = copy_of_open(&place.path);
    let again = clocked(&clock).open(&crashed.path).unwrap();
    check(&again, [Completed, Completed, InDoubt, InDoubt, Absent]);
    let mut lease = lease;
    lease.complete(b"after all that").unwrap();
}

#[test]
fn compact_gives_everything_back_when_nothing_is_live() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(10)).open(&place.path).unwrap();
    for n in 0..3_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    let grown = place.length();
    assert!(grown > 12 * SEGMENT);
    clock.advance(seconds(10));
    store.compact().unwrap();
    assert_eq!(place.length(), 4_096 + SEGMENT, "one segment is the least");
    assert_eq!(store.stats().keys, 0);
    perform(&store, "k", b"r");
    store.close().unwrap();
    let store = clocked(&clock).open(&place.path).unwrap();
    assert!(store.get("k").unwrap().is_completed());
}

#[test]
fn a_file_is_as_long_as_it_is_to_be_at_least_from_the_first_opening_on_and_after_a_compaction() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = || clocked(&clock).retention(seconds(10));
    let store = options().min_size(9 * SEGMENT).open(&place.path).unwrap();
    let length = 4_096 + 9 * SEGMENT;
    assert_eq!(place.length(), length, "rounded up to whole segments behind the header");
    for n in 0..500 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert_eq!(place.length(), length, "there is room enough in it");
    clock.advance(seconds(10));
    store.record("live", NONE, b"r").unwrap();
    store.compact().unwrap();
    assert_eq!((place.length(), store.stats().keys), (length, 1));
    assert!(store.stats().moved_bytes < 200, "moved out of what is dead, and not to the front for nothing");
    for n in 0..3_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    assert!(place.length() > length, "it grows as ever");
    clock.advance(seconds(10));
    store.compact().unwrap();
    assert_eq!(place.length(), length);
    store.close().unwrap();
    // What a file is to have at least is no property of the file: the next opening may want less, or cannot have more.
    let store = options().min_size(100 * SEGMENT).max_size(100 * SEGMENT).open(&place.path).unwrap();
    assert_eq!(place.length(), 4_096 + 99 * SEGMENT, "not over the largest size");
    store.close().unwrap();
    let store = options().open(&place.path).unwrap();
    store.compact().unwrap();
    assert_eq!(place.length(), 4_096 + SEGMENT);
    let nowhere = options().min_size(100 * SEGMENT).segment_size(SEGMENT).open_in_memory().unwrap();
    assert!(nowhere.stats().file_bytes < 10 * SEGMENT, "memory is not taken ahead");
}

#[test]
fn a_file_is_not_made_longer_by_an_opening_that_is_refused() {
    let place = Place::new();
    place.open().close().unwrap();
    let length = place.length();
    // What the file's own segments do not allow is only known when it has been opened.
    let refused = oncekey::Options::new().max_result(100_000).min_size(100 * SEGMENT).open(&place.path);
    assert!(matches!(refused, Err(Error::Option { option: "max_result", .. })), "{refused:?}");
    assert_eq!(place.length(), length);
}

#[test]
fn compact_ends_when_everything_is_live_and_keeps_everything() {
    let place = Place::new();
    let store = place.open();
    for n in 0..2_000 {
        store.record(&format!("k{n}"), NONE, &[0; 200]).unwrap();
    }
    let before = place.length();
    for _ in 0..3 {
        store.compact().unwrap();
        assert!(place.length() <= before);
    }
    for n in 0..2_000 {
        assert!(store.get(&format!("k{n}")).unwrap().is_completed());
    }
}

#[test]
fn compact_leaves_little_beside_the_live_frames() {
    let place = Place::new();
    let store = place.open();
    let live_bytes: u64 = 4_000 * (80 + 40 + 256 + 48);
    for n in 0..4_000 {
        perform(&store, &format!("{n:036}"), &[3; 256]);
    }
    for n in 0..4_000 {
        store.forget(&format!("{n:036}")).unwrap();
        perform(&store, &format!("{n:036}"), &[4; 256]);
    }
    store.compact().unwrap();
    let length = place.length();
    assert!(length < live_bytes * 5 / 4, "{length} bytes for {live_bytes} live ones");
    let reopened = copy_of_open(&place.path).open();
    for n in 0..4_000 {
        assert_eq!(reopened.get(&format!("{n:036}")).unwrap().result(), Some(&[4; 256][..]));
    }
}

#[test]
fn what_was_forgotten_stays_forgotten_when_its_segments_come_and_go() {
    let place = Place::new();
    let store = place.open();
    for n in 0..500 {
        store.record(&format!("k{n}"), NONE, &[0; 100]).unwrap();
    }
    for n in 0..500 {
        assert!(store.forget(&format!("k{n}")).unwrap());
    }
    for turn in 0..6 {
        for n in 0..700 {
            store.record(&format!("filler{turn}-{n}"), NONE, &[0; 100]).unwrap();
            store.forget(&format!("filler{turn}-{n}")).unwrap();
        }
        let reopened = copy_of_open(&place.path).open();
        for n in 0..500 {
            assert!(reopened.get(&format!("k{n}")).unwrap().is_absent(), "k{n} came back in turn {turn}");
        }
    }
    assert!(store.stats().segments_retired > 0);
}

/// Fills a store of limited size with leases and records until it says that it is full.
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
fn only_begin_and_record_say_full_and_everything_that_began_can_be_completed() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(100)).max_size(4_096 + 8 * SEGMENT).max_result(4_000);
    let store = options.open(&place.path).unwrap();
    let (leases, begun) = fill(&store);
    assert!(begun > 20, "{begun}");
    let reserved_bytes = store.stats().reserved_bytes;
    let least_bytes = leases.len() as u64 * 4_000;
    assert!((least_bytes..2 * least_bytes).contains(&reserved_bytes), "{reserved_bytes} for {begun} results");
    assert!(matches!(store.record("one more", NONE, &[0; 4_000]), Err(Error::Full { .. })));
    let next = Next::Completed { fingerprint: NONE, result: &[0; 4_000] };
    let set = store.compare_and_set("one more", Expected::Absent, next);
    assert!(matches!(set, Err(Error::Full { .. })), "nothing ends by it: {set:?}");
    assert!(store.get("one more").unwrap().is_absent());
    for (n, mut lease) in leases.into_iter().enumerate() {
        if n % 2 == 0 {
            lease.complete(&[2; 4_000]).unwrap();
        } else {
            lease.release().unwrap();
        }
    }
    assert!(place.length() <= 4_096 + 8 * SEGMENT);
    assert_eq!(store.stats().reserved_bytes, 0, "every promise was kept or given back");

    // There is room again when the retention has passed, and again when something is forgotten.
    clock.advance(seconds(100));
    let (leases, begun_again) = fill(&store);
    assert!(begun_again >= begun / 2, "{begun_again} of {begun}");
    drop(leases);
    for n in 0..begun_again {
        store.forget(&format!("k{n}")).unwrap();
    }
    perform(&store, "room again", &[0; 4_000]);
    store.close().unwrap();
    let store = options.open(&place.path).unwrap();
    assert!(store.get("room again").unwrap().is_completed());
}

/// The smaller the operations, the larger the share of a segment that its footer takes.
#[test]
fn a_store_that_is_full_of_the_smallest_operations_has_room_to_complete_every_one() {
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
fn a_segment_whose_footer_is_damaged_is_reclaimed_by_its_frames() {
    let place = Place::new();
    let store = place.open();
    for n in 0..1_000 {
        store.record(&format!("k{n}"), NONE, &[7; 200]).unwrap();
    }
    for n in (0..1_000).filter(|n| n % 10 != 0) {
        store.forget(&format!("k{n}")).unwrap();
    }
    store.close().unwrap();
    let mut bytes = place.bytes();
    let segment = usize::try_from(SEGMENT).unwrap();
    let slots = bytes.len() / segment;
    for slot in 0..slots - 1 {
        let trailer = 4_096 + (slot + 1) * segment - 64;
        bytes[trailer..trailer + 8].fill(0xEE);
    }
    std::fs::write(&place.path, bytes).unwrap();
    let store = place.open();
    store.compact().unwrap();
    assert!(store.stats().segments_retired >= 4, "{:?}", store.stats());
    assert!(place.length() < (slots as u64 - 2) * SEGMENT);
    for n in 0..1_000 {
        assert_eq!(store.get(&format!("k{n}")).unwrap().is_completed(), n % 10 == 0, "{n}");
    }
}

#[test]
fn a_full_store_opens_and_its_doubts_can_be_resolved() {
    let place = Place::new();
    let options = small().max_size(4_096 + 8 * SEGMENT).max_result(4_000);
    let store = options.open(&place.path).unwrap();
    let (leases, _) = fill(&store);
    let keys: Vec<_> = leases.iter().map(|lease| lease.key().to_owned()).collect();
    let crashed = copy_of_open(&place.path);
    drop(leases);
    drop(store);
    let store = options.open(&crashed.path).unwrap();
    for key in &keys {
        let Begin::InDoubt(mut doubt) = store.begin(key, NONE).unwrap() else { panic!("{key}") };
        doubt.complete(b"found").unwrap();
    }
}

#[test]
fn slots_are_used_again_and_the_lowest_first() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1)).durability(Durability::Buffered);
    let store = options.open(&place.path).unwrap();
    for n in 0..30_000 {
        store.record(&format!("k{n}"), NONE, &[0; 100]).unwrap();
        clock.advance(std::time::Duration::from_millis(1));
    }
    let written = store.stats().segments_retired + store.stats().segments;
    let slots = (store.stats().file_bytes - 4_096) / SEGMENT;
    assert!(written > 5 * slots, "{written} segments in {slots} slots");
    let crashed = copy_of_open(&place.path);
    let store = clocked(&clock).retention(seconds(1)).open(&crashed.path).unwrap();
    assert!(store.get("k29999").unwrap().is_completed());
}

/// Fills a store with records of one frame each until it says that it is full.
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
fn a_full_store_whose_records_have_expired_has_room_at_the_first_call_whatever_their_size() {
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
fn a_full_store_can_be_opened_as_often_as_one_likes() {
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
        assert!(lease.version() > last, "no version is given out twice");
        last = lease.version();
        lease.release().unwrap();
    }
}

#[test]
fn what_completions_fill_can_be_reclaimed_because_room_for_moving_was_not_promised_away() {
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

#[test]
fn tombstones_with_long_keys_are_not_taken_for_dead_once_they_have_been_moved() {
    let clock = ManualClock::new(START_MS);
    let options = clocked(&clock).retention(seconds(1_000_000)).result_retention(seconds(10));
    let store = options.open_in_memory().unwrap();
    let padding = "k".repeat(300);
    for n in 0..3_000 {
        store.record(&format!("{padding}{n}"), NONE, &[1; 50]).unwrap();
    }
    clock.advance(seconds(10));
    store.compact().unwrap();
    let stats = store.stats();
    assert!(stats.dead_bytes * 10 < stats.record_bytes, "{stats:?}");
}

#[test]
fn the_high_water_mark_of_time_does_not_fall_when_old_records_are_moved() {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000_000_000)).open(&place.path).unwrap();
    for n in 0..60 {
        store.record(&format!("live{n}"), NONE, &[1; 6_000]).unwrap();
        store.operation(&format!("dead{n}")).retain(seconds(10)).record(&[1; 6_000]).unwrap();
    }
    let two_days = seconds(2 * 86_400);
    let mut refused = 0;
    for n in 0..60 {
        clock.advance(two_days);
        store.operation(&format!("later{n}")).retain(seconds(10)).record(&[1; 9_000]).unwrap();
        let behind = ManualClock::new(clock.now_ms() - 90_000_000);
        match clocked(&behind).open(&copy_of_open(&place.path).path) {
            Err(Error::Clock { last_wall_ms, store_time_ms, .. }) => {
                assert_eq!((last_wall_ms, store_time_ms), (clock.now_ms(), clock.now_ms()));
                refused += 1;
            }
            other => panic!("round {n}: a clock that is 25 hours behind was accepted: {other:?}"),
        }
    }
    assert!(refused == 60 && store.stats().moved_bytes > 0, "the test means to see records moved");
}

/// Making room is paid for by appends, and stops when there is enough of it.
#[test]
fn a_file_is_no_longer_than_its_segments_and_what_the_next_ones_need() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let place = Place::new();
        let clock = ManualClock::new(START_MS);
        let options = clocked(&clock).retention(seconds(10)).durability(durability);
        let store = options.open(&place.path).unwrap();
        let mut most = 0;
        for number in 0..1_200 {
            if number % 400 == 0 {
                // That something has expired is noticed at most a 32nd of its retention late.
                clock.advance(seconds(10) + seconds(10) / 32);
            }
            perform(&store, &format!("{number}"), &[7; 1_000]);
            let (segments, slots) = (store.stats().segments, (place.length() - 4_096) / SEGMENT);
            if number < 400 {
                assert!(slots <= segments + 5, "{durability:?}: {slots} slots for {segments} segments");
                most = slots;
            } else {
                assert!(slots <= most + 3, "{durability:?}: {slots} slots, and {most} had been enough");
            }
        }
        assert!(store.stats().segments_retired > 8);
    }
}
