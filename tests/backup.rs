//! Backups of a store in use: what they hold, and that no incomplete one can be opened. `restore.rs` is about what a restored
//! copy answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::random::{Random, number_from};
use common::{NONE, Place, START_MS, abandon, acquire, clocked, seconds};
use oncekey::simulation::{Bug, SimulatedDisk, plant, verify_simulated};
use oncekey::{ClockJump, Durability, Error, ManualClock, Options, Status, Store, verify};

/// 300 records take a retention. They are not synced one by one, so that many retentions fit into a test: a backup syncs first.
const RETENTION: Duration = Duration::from_secs(15);

fn options(clock: &ManualClock) -> Options {
    clocked(clock)
        .retention(RETENTION)
        .durability(Durability::Buffered)
        .accept_clock_jump(ClockJump::NotElapsed)
}

/// Opens a copy whose store time goes on from when it was taken.
fn restore(path: &Path, taken_at_ms: u64) -> Result<Store, Error> {
    options(&ManualClock::new(taken_at_ms)).create(false).nothing_was_lost().open(path)
}

fn result(n: u64) -> Vec<u8> {
    vec![u8::try_from(n % 251).unwrap(); 100 + usize::try_from(n % 400).unwrap()]
}

/// Records the key of number `n`. Every tenth key is kept for ever.
fn write(store: &Store, clock: &ManualClock, n: u64) {
    let key = format!("key-{n}");
    let operation = store.operation(&key);
    let operation = if n.is_multiple_of(10) { operation.retain(Duration::MAX) } else { operation };
    operation.record(&result(n)).unwrap();
    clock.advance(Duration::from_millis(50));
}

/// Checks that the copy at `path` is sound, and holds the keys below `count` that had not expired when it was taken.
fn check_copy(path: &Path, taken_at_ms: u64, count: u64) -> Result<(), String> {
    let verification = verify(path).map_err(|error| error.to_string())?;
    if !verification.is_sound() || !verification.opens {
        return Err(format!("{verification:?}"));
    }
    match Store::open(path) {
        Err(Error::Copy { taken_at_ms: stated, .. }) if stated == taken_at_ms => {}
        other => return Err(format!("opened without a word: {other:?}")),
    }
    let store = restore(path, taken_at_ms).map_err(|error| error.to_string())?;
    for n in 0..count {
        let expires_at_ms = START_MS + n * 50 + 15_000;
        let state = store.get(&format!("key-{n}")).map_err(|error| error.to_string())?;
        let is_kept = n.is_multiple_of(10) || taken_at_ms < expires_at_ms;
        if is_kept && state.result() != Some(&result(n)[..]) {
            return Err(format!("key {n} of {count}: {state:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_backup_under_load_with_reclaiming_holds_what_was_durable_when_it_began() {
    let backups = number_from("ONCEKEY_ROUNDS").unwrap_or(40);
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = options(&clock).open(&place.path).unwrap();
    // The writer stops at a limit, so that a slow machine does not make a longer history.
    let (next, limit, stop) = (AtomicU64::new(0), AtomicU64::new(1_000), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The only writer of the keys that are checked, so that all below `next` are acknowledged.
            while stop.load(Ordering::SeqCst) == 0 {
                let n = next.load(Ordering::SeqCst);
                if n >= limit.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                    continue;
                }
                write(&store, &clock, n);
                next.store(n + 1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut random = Random(7);
            while stop.load(Ordering::SeqCst) == 0 {
                let key = format!("other-{}", random.below(50));
                if let Ok(oncekey::Begin::Acquired(lease)) = store.begin(&key, NONE) {
                    if random.below(2) == 0 { drop(lease) } else { lease.release().unwrap() }
                }
            }
        });
        let copies = || {
            for round in 0..backups {
                let path = place.path.with_extension(format!("{round}"));
                while next.load(Ordering::SeqCst) < 1_000 {
                    std::thread::yield_now();
                }
                let count = next.load(Ordering::SeqCst);
                limit.store(count + 300, Ordering::SeqCst);
                // One in 20 is slow: this copy takes 20 retentions.
                let is_slow = round % 20 == 1;
                let backup = store
                    .backup_with(&path, |progress| {
                        let share = 20 * 300 * progress.done_bytes / progress.total_bytes;
                        if is_slow {
                            limit.store(count + share + 300, Ordering::SeqCst);
                        }
                        while is_slow && next.load(Ordering::SeqCst) < count + share {
                            std::thread::yield_now();
                        }
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                assert_eq!(std::fs::metadata(&path).unwrap().len(), backup.bytes);
                check_copy(&path, backup.taken_at_ms, count).unwrap_or_else(|why| panic!("{round}: {why}"));
                std::fs::remove_file(&path).unwrap();
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(copies));
        stop.store(1, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(store.stats().segments_retired > 100, "{:?}", store.stats());
    store.close().unwrap();
}

/// Makes a backup during which the same thread writes, so that every slot of the copied segments would be used again.
fn slow_backup() -> Result<(), String> {
    let place = Place::new();
    let clock = ManualClock::new(START_MS);
    let store = options(&clock).open(&place.path).unwrap();
    let mut n = 0;
    let mut write_some = |count| {
        for _ in 0..count {
            write(&store, &clock, n);
            n += 1;
        }
        n
    };
    let count = write_some(1_000);
    let path = place.path.with_extension("copy");
    let before = store.stats().file_bytes;
    let backup = store.backup_with(&path, |_| {
        write_some(600);
        ControlFlow::Continue(())
    });
    let backup = backup.map_err(|error| error.to_string())?;
    check_copy(&path, backup.taken_at_ms, count)?;
    let (after, copied) = (store.stats().file_bytes, backup.bytes);
    if after > before + copied + (1 << 20) {
        return Err(format!(
            "a slow backup of {copied} bytes let the file grow from {before} to {after} bytes"
        ));
    }
    store.compact().map_err(|error| error.to_string())?;
    if store.stats().file_bytes > before {
        return Err("the slots that were kept for the backup are not free again".into());
    }
    Ok(())
}

/// Plants a bug and returns whether `check` finds it.
fn finds(bug: Bug, check: fn() -> Result<(), String>) -> bool {
    plant(Some(bug));
    let outcome = std::panic::catch_unwind(check);
    plant(None);
    outcome.is_err() || outcome.is_ok_and(|outcome| outcome.is_err())
}

#[test]
fn a_slot_is_not_reused_before_it_is_copied() {
    slow_backup().unwrap();
}

#[test]
fn finds_a_slot_that_is_reused_before_it_is_copied() {
    assert!(finds(Bug::CopiedSlotReused, slow_backup));
}

#[test]
fn finds_a_copy_that_does_not_say_that_it_is_one() {
    assert!(finds(Bug::CopyWithoutFlag, slow_backup));
}

#[test]
fn what_is_unfinished_is_in_doubt_in_the_copy() {
    let place = Place::new();
    let store = place.open();
    abandon(&store, "doubtful");
    let running = acquire(&store, "running");
    store.record("done", NONE, b"r").unwrap();
    let path = place.path.with_extension("copy");
    store.backup(&path).unwrap();
    running.release().unwrap();
    let copy = Options::new().nothing_was_lost().open(&path).unwrap();
    for (key, status) in [
        ("doubtful", Status::InDoubt),
        ("running", Status::InDoubt),
        ("done", Status::Completed),
        ("unknown", Status::Absent),
    ] {
        assert_eq!(copy.get(key).unwrap().status(), status, "{key}");
    }
    copy.close().unwrap();
    assert!(Store::open(&path).unwrap().get("done").unwrap().is_completed(), "the answer is in the file");
}

#[test]
fn a_backup_that_fails_leaves_nothing_and_overwrites_nothing() {
    let place = Place::new();
    let store = place.open();
    store.record("done", NONE, b"r").unwrap();
    let path = place.path.with_extension("copy");
    let partial = place.path.with_extension("copy.incomplete");
    let stopped = store.backup_with(&path, |_| {
        assert!(partial.exists() && !path.exists());
        assert!(matches!(Options::new().create(false).open(&partial), Err(Error::Locked { .. })));
        assert!(matches!(store.backup(&path), Err(Error::Locked { .. })), "a second one to the same path");
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
    assert!(!partial.exists() && !path.exists());

    std::fs::write(&partial, b"a file of someone else").unwrap();
    assert!(matches!(store.backup(&path), Err(Error::Io { .. })));
    assert_eq!(std::fs::read(&partial).unwrap(), b"a file of someone else");
    // What a killed process leaves, in contrast, is overwritten.
    let mut left_over = vec![0; 200_000];
    left_over[..8].copy_from_slice(b"ONCEPART");
    std::fs::write(&partial, left_over).unwrap();
    assert!(matches!(Options::new().open(&partial), Err(Error::NotAStore { .. })));
    store.backup(&path).unwrap();
    assert!(path.exists() && !partial.exists());
    assert!(matches!(store.backup(&path), Err(Error::Io { .. })), "the path exists");
    assert!(verify(&path).unwrap().is_sound());
}

#[test]
fn a_store_can_be_closed_while_it_is_copied() {
    let place = Place::new();
    let store = place.open();
    for n in 0..300 {
        store.record(&format!("key-{n}"), NONE, &[7; 500]).unwrap();
    }
    let path = place.path.with_extension("copy");
    let closed = store.backup_with(&path, |_| {
        let _ = store.close();
        ControlFlow::Continue(())
    });
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
    assert!(!path.exists());
    assert!(matches!(store.backup(&path), Err(Error::Closed)));
}

#[test]
fn a_copy_that_a_crash_interrupted_cannot_be_opened() {
    let clock = ManualClock::new(START_MS);
    let original = SimulatedDisk::new();
    let store = options(&clock).open_simulated(&original).unwrap();
    for n in 0..400 {
        write(&store, &clock, n);
    }
    let whole = SimulatedDisk::new();
    store.backup_simulated(&whole, |_| ControlFlow::Continue(())).unwrap();
    let steps = whole.steps();
    let mut random = Random(3);
    let open = |disk: &SimulatedDisk, options: Options| options.create(false).open_simulated(disk);
    for step in 0..=steps {
        let disk = SimulatedDisk::new();
        disk.fault_at(step, oncekey::simulation::DiskFault::PowerLoss);
        let copied = store.backup_simulated(&disk, |_| ControlFlow::Continue(()));
        assert_eq!(copied.is_ok(), step == steps, "step {step}");
        for _ in 0..4 {
            let image = disk.crash(|of| random.below(of));
            match open(&image, options(&clock)) {
                Err(Error::NotAStore { .. } | Error::Corrupt { .. }) if copied.is_err() => {}
                Err(Error::Copy { .. }) => {
                    // The last sync may have taken effect before the power failed. Then the copy is complete.
                    let verification = verify_simulated(&image).unwrap();
                    assert!(
                        verification.is_sound() && verification.records >= 400,
                        "step {step}: {verification:?}"
                    );
                    let store = open(&image, options(&clock).nothing_was_lost()).unwrap();
                    assert!((200..400).all(|n| store.get(&format!("key-{n}")).unwrap().is_completed()));
                }
                other => panic!("step {step}: {other:?}"),
            }
        }
    }
    assert!(store.close().is_ok() && seconds(1) > Duration::ZERO);
}

/// Each crash during the first opening of a copy leaves it unanswered or answered as asked.
#[test]
fn the_answer_is_durable_before_the_first_call() {
    let clock = ManualClock::new(START_MS);
    let original = SimulatedDisk::new();
    let store = options(&clock).open_simulated(&original).unwrap();
    (0..400).for_each(|n| write(&store, &clock, n));
    let copy = SimulatedDisk::new();
    store.backup_simulated(&copy, |_| ControlFlow::Continue(())).unwrap();
    let answered = || options(&clock).may_have_forgotten(seconds(1_000));
    let mut outcomes = BTreeMap::new();
    for step in 0..40 {
        let disk = SimulatedDisk::holding(copy.bytes());
        disk.fault_at(step, oncekey::simulation::DiskFault::PowerLoss);
        let has_opened =
            answered().open_simulated(&disk).is_ok_and(|store| store.record("k", NONE, b"").is_err());
        for image in [disk.crash(|_| 0), disk.crash(|of| of - 1)] {
            let is_answered = match options(&clock).open_simulated(&image) {
                Ok(store) => {
                    assert_eq!(store.get("unknown").unwrap().status(), Status::InDoubt);
                    true
                }
                Err(Error::Copy { .. }) => false,
                Err(error) => panic!("step {step}: {error}"),
            };
            assert!(is_answered || !has_opened, "step {step}");
            *outcomes.entry(is_answered).or_insert(0) += 1;
        }
    }
    assert!(outcomes.len() == 2, "{outcomes:?}");
}

/// Prints how long a backup and a check of a file of 1 GB take, beside `cp` and `cksum` of the same file.
#[test]
#[ignore = "prints figures; needs 3 GB of disk"]
fn the_speed_of_a_backup_and_a_check_beside_cp_and_cksum() {
    let place = Place::new();
    let store = Options::new().durability(Durability::Buffered).open(&place.path).unwrap();
    for n in 0..250_000 {
        store.record(&format!("key-{n}"), NONE, &[7; 4_000]).unwrap();
    }
    store.sync().unwrap();
    let run = |program: &str, arguments: &[&Path]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success());
    };
    let timed = |what: &mut dyn FnMut()| {
        let begun = std::time::Instant::now();
        what();
        begun.elapsed().as_secs_f64()
    };
    let (copy, other) = (place.path.with_extension("copy"), place.path.with_extension("cp"));
    for round in 0..3 {
        let copied = timed(&mut || {
            run("cp", &[Path::new("--reflink=never"), &place.path, &other]);
            run("sync", &[&other]);
        });
        let backed_up = timed(&mut || drop(store.backup(&copy).unwrap()));
        let summed = timed(&mut || run("cksum", &[&copy]));
        let verified = timed(&mut || assert!(verify(&copy).unwrap().is_sound()));
        println!(
            "round {round}: backup {:.2} of cp and sync ({copied:.2} s), verify {:.2} of cksum ({summed:.2} s)",
            backed_up / copied,
            verified / summed
        );
        std::fs::remove_file(&copy).unwrap();
        std::fs::remove_file(&other).unwrap();
    }
}
