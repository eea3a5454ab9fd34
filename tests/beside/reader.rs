//! What a reader shows, and that it changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use oncekey::{Durability, Error, Key, ManualClock, Options, Reader, Result, ScannedKey, Status, Store};

use crate::child::{KEPT, Other};
use crate::common::{
    NONE, Place, START_MS, abandon, acquire, clocked, flip, perform, record_of, seconds, small,
};

fn by_name(keys: impl Iterator<Item = Result<ScannedKey>>) -> BTreeMap<String, ScannedKey> {
    keys.map(|key| key.unwrap()).map(|key| (key.key().as_str().unwrap().to_owned(), key)).collect()
}

/// A store with records of every kind in several segments.
fn filled(place: &Place, clock: &ManualClock) -> Store {
    let store = clocked(clock).retention(seconds(1_000)).open(&place.path).unwrap();
    for number in 0..600 {
        store.operation(&format!("n{number}")).durability(Durability::Buffered).record(&[1; 400]).unwrap();
        store.operation(&format!("gone{number}")).durability(Durability::Buffered).record(&[1; 400]).unwrap();
    }
    for number in 0..600 {
        store.forget(&format!("gone{number}")).unwrap();
    }
    store.compact().unwrap();
    perform(&store, "performed", b"result");
    abandon(&store, "in doubt");
    acquire(&store, "released").release().unwrap();
    store.operation("expiring").retain(seconds(10)).record(b"").unwrap();
    store
}

#[test]
fn a_reader_shows_what_the_store_shows() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = filled(&place, &clock);
    clock.advance(seconds(1));
    let lease = acquire(&store, "running");
    let reader = clocked(&clock).open_reader(&place.path).unwrap();
    for key in ["performed", "n0", "n599", "gone0", "expiring", "released", "never there"] {
        assert_eq!(reader.get(key).unwrap(), store.get(key).unwrap());
    }
    for key in ["in doubt", "running"] {
        let (seen, state) = (reader.get(key).unwrap(), store.get(key).unwrap());
        assert_eq!((seen.status(), seen.version(), seen.attempt()), (Status::Begun, state.version(), 1));
    }
    let (seen, shown) = (by_name(reader.scan()), by_name(store.scan()));
    assert_eq!(seen.len(), 604);
    for (name, key) in &shown {
        if key.status() == Status::Completed {
            assert_eq!(&seen[name], key);
        } else {
            assert_eq!((seen[name].version(), seen[name].status()), (key.version(), Status::Begun));
        }
    }
    assert_eq!(seen.len(), shown.len());
    assert_eq!(reader.scan().status(Status::Begun).count(), 2);
    let unfinished: Vec<_> = reader.unfinished().into_iter().map(|item| item.unwrap()).collect();
    let names: Vec<_> =
        unfinished.iter().map(|operation| operation.key().as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["in doubt", "running"]);

    clock.advance(seconds(10));
    assert!(reader.get("expiring").unwrap().is_absent(), "time goes on for a reader");
    store.record("later", NONE, b"").unwrap();
    assert!(reader.get("later").unwrap().is_absent(), "it shows the log as it was");
    reader.refresh().unwrap();
    assert!(reader.get("later").unwrap().is_completed());
    drop(lease);
    store.close().unwrap();
    reader.refresh().unwrap();
    assert_eq!(reader.get("in doubt").unwrap().status(), Status::InDoubt, "no process has it open");
    assert_eq!(reader.scan().status(Status::InDoubt).count(), 2);
}

#[test]
fn a_record_whose_space_was_reused_is_found_where_it_is_now() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = filled(&place, &clock);
    let reader = clocked(&clock).open_reader(&place.path).unwrap();
    let mut scan = reader.scan();
    scan.next().unwrap().unwrap();
    for round in 0..6 {
        for number in 0..200 {
            store
                .operation(&format!("gone{number}"))
                .durability(Durability::Buffered)
                .record(&[round; 4_000])
                .unwrap();
            store.forget(&format!("gone{number}")).unwrap();
        }
        store.compact().unwrap();
    }
    assert!(reader.get("n0").unwrap().is_completed());
    let shown = by_name(scan);
    assert!((0..600).all(|number| shown.contains_key(&format!("n{number}"))));
}

#[test]
fn a_reader_takes_no_lock_and_writes_nothing() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    filled(&place, &clock).close().unwrap();
    let before = place.bytes();
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o400)).unwrap();
    let reader = clocked(&clock).open_reader(&place.path).unwrap();
    assert_eq!(reader.scan().filter(Result::is_ok).count(), 603);
    reader.refresh().unwrap();
    assert!(place.bytes() == before);
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o600)).unwrap();
    let store = clocked(&clock).open(&place.path).unwrap();
    drop(reader);
    assert!(
        matches!(clocked(&clock).open(&place.path), Err(Error::Locked { .. })),
        "the lock is still the store's"
    );
    drop(store);
}

#[test]
fn the_files_of_the_format_read_as_they_open() {
    for name in ["v1-closed", "v1-crashed"] {
        let golden = format!("{}/tests/golden/{name}.once", env!("CARGO_MANIFEST_DIR"));
        let reader =
            Options::new().accept_clock_jump(oncekey::ClockJump::NotElapsed).open_reader(&golden).unwrap();
        let seen = by_name(reader.scan());
        let place = Place::new();
        fs::copy(&golden, &place.path).unwrap();
        let store =
            Options::new().accept_clock_jump(oncekey::ClockJump::NotElapsed).open(&place.path).unwrap();
        let shown = by_name(store.scan());
        assert!(!shown.is_empty() && seen.keys().eq(shown.keys()), "{name}: {seen:?} {shown:?}");
    }
}

#[test]
fn damage_is_reported_where_it_is_and_not_taken_for_a_write() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    filled(&place, &clock).close().unwrap();
    let open = || clocked(&clock).open_reader(&place.path);
    flip(&place, record_of(&place, "n300") + 90);
    let reader = open().unwrap();
    assert!(matches!(reader.get("n300"), Err(Error::Corrupt { .. })));
    assert!(reader.get("n301").unwrap().is_completed());
    let (good, bad): (Vec<_>, Vec<_>) = reader.scan().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (602, 1));
    flip(&place, 200);
    assert!(matches!(open(), Err(Error::Corrupt { .. })), "the store header");
    fs::write(&place.path, b"something else").unwrap();
    assert!(matches!(open(), Err(Error::NotAStore { .. })));
    fs::remove_file(&place.path).unwrap();
    assert!(matches!(open(), Err(Error::Io { .. })) && !place.path.exists());
}

#[test]
fn a_reader_notices_that_the_path_leads_to_a_different_file() {
    let place = Place::new();
    let store = place.open();
    store.record("first", NONE, b"").unwrap();
    let reader = Reader::open(&place.path).unwrap();
    let other = Place::new();
    other.open().close().unwrap();
    fs::rename(&other.path, &place.path).unwrap();
    assert!(matches!(reader.refresh(), Err(Error::Replaced { .. })));
    assert!(reader.get("first").unwrap().is_completed(), "it still shows what it has read");
    assert!(Reader::open(&place.path).unwrap().get("first").unwrap().is_absent());
}

#[test]
fn under_full_load_a_reader_finds_every_key_and_no_damage() {
    let length = std::env::var("ONCEKEY_READER_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    let place = Place::new();
    let other = Other::start("works", &place.path);
    let until = Instant::now() + Duration::from_secs(length);
    let (mut openings, mut refreshes, mut gets, mut scans, mut busy) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut is_busy = |error: Error| {
        assert!(matches!(error, Error::Busy { .. }) && error.is_retryable(), "a false fault: {error}");
        busy += 1;
    };
    // On a slow machine, a scan may take longer than that.
    while Instant::now() < until || scans == 0 && Instant::now() < until + Duration::from_secs(60) {
        openings += 1;
        let reader = match Reader::open(&place.path) {
            Ok(reader) => reader,
            Err(error) => {
                is_busy(error);
                continue;
            }
        };
        for round in 0..5 {
            match reader.refresh() {
                Ok(()) => refreshes += 1,
                Err(error) => is_busy(error),
            }
            for number in (0..KEPT).skip(round).step_by(17) {
                gets += 1;
                match reader.get(Key::new(&number.to_string()).scope("kept")) {
                    Ok(state) => assert_eq!(state.result(), Some(&[7; 200][..]), "{number}: {state:?}"),
                    Err(error) => is_busy(error),
                }
            }
            for key in ["always in doubt", "always running", "begun again and again"] {
                match reader.get(key) {
                    Ok(state) => assert_eq!(state.status(), Status::Begun, "{key}"),
                    Err(error) => is_busy(error),
                }
            }
        }
        let mut is_whole = true;
        let mut shown = std::collections::HashMap::new();
        for key in reader.scan() {
            match key {
                Ok(key) => drop(shown.insert(key.key().to_owned(), key.status())),
                Err(error) => {
                    is_busy(error);
                    is_whole = false;
                }
            }
        }
        if is_whole {
            scans += 1;
            let kept = shown.keys().filter(|key| key.as_key().scope_name() == Some(b"kept")).count();
            assert_eq!(kept, KEPT as usize, "a scan misses keys that were there throughout");
            let unfinished = reader.unfinished();
            let begun = unfinished.iter().filter(|item| item.is_ok()).count();
            assert!(begun >= 3 || unfinished.iter().any(std::result::Result::is_err), "{unfinished:?}");
        }
    }
    println!(
        "{length} s: opened {openings} times, refreshed {refreshes} times, {gets} lookups, {scans} whole scans, busy {busy} times"
    );
    assert!(busy < openings.max(20), "a reader is hardly ever ahead of the writer");
    other.end();
    let reader = Reader::open(&place.path).unwrap();
    assert_eq!(reader.scan().scope("kept").count(), KEPT as usize);
    assert_eq!(reader.get("always running").unwrap().status(), Status::InDoubt);
}

#[test]
fn a_killed_process_leaves_a_file_that_a_reader_reads() {
    let place = Place::new();
    let other = Other::start("works", &place.path);
    let reader = Reader::open(&place.path).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    other.kill();
    reader.refresh().unwrap();
    assert_eq!(reader.get("always running").unwrap().status(), Status::Begun);
    assert_eq!(reader.scan().scope("kept").count(), KEPT as usize);
    let store = small().open(&place.path).unwrap();
    assert_eq!(store.scan().scope("kept").count(), KEPT as usize);
}

#[test]
fn a_reader_shows_keys_beside_steps_and_messages() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    let reader = clocked(&clock).open_reader(&place.path).unwrap();
    for number in 0..60 {
        let ran = store.operation(format!("job-{number}")).emits(3_000).run(|job| {
            let done = job.step("step").run(|_| Ok::<_, String>(vec![7_u8; 2_000]));
            done.map_err(|error| error.to_string())?;
            job.emit_bytes("mail", &[7; 2_000]).map_err(|error| error.to_string())?;
            if number % 2 == 0 { Ok(0_u64) } else { Err("no answer".to_owned()) }
        });
        assert_eq!(ran.is_ok(), number % 2 == 0);
    }
    for _ in 0..10 {
        store.outbox().next("mail").unwrap().unwrap().ack().unwrap();
    }
    for closed in [false, true] {
        reader.refresh().unwrap();
        let shown = by_name(reader.scan());
        assert_eq!((shown.len(), reader.scan().count(), reader.unfinished().len()), (60, 60, 30));
        for (name, key) in &shown {
            let begun = if closed { Status::InDoubt } else { Status::Begun };
            assert!([Status::Completed, begun].contains(&key.status()), "{name}: {key:?}");
            assert_eq!(reader.get(name.as_str()).unwrap().status(), key.status());
        }
        assert!(reader.get("step").unwrap().is_absent() && reader.get("mail").unwrap().is_absent());
        // Which attempt is the last one is known only to the process that has the store open, and so is what its steps are.
        let Err(Error::Key { problem, .. }) = reader.get(Key::new("job-1").step("step")) else { panic!() };
        assert!(problem.to_string().contains("step"), "{problem}");
        if !closed {
            store.compact().unwrap();
            store.close().unwrap();
        }
    }
}
