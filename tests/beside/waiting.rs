//! Waiting for another process to let go of the file.

use std::fs;
use std::time::{Duration, Instant};

use oncekey::{Error, Options, Store};

use crate::child::Other;
use crate::common::{NONE, Place};

const LONG: Duration = Duration::from_secs(120);

fn waiting() -> Options {
    Options::new().lock_wait(LONG)
}

#[test]
fn opening_waits_until_the_other_process_lets_go() {
    let place = Place::new();
    for is_killed in [false, true] {
        let other = Other::start("holds", &place.path);
        assert!(matches!(Store::open(&place.path), Err(Error::Locked { .. })), "without lock_wait");
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| waiting().open(&place.path));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!opening.is_finished(), "the other process has the file open");
            if is_killed {
                other.kill();
            } else {
                other.end();
            }
            opening.join().unwrap().unwrap().close().unwrap();
        });
    }
}

#[test]
fn a_wait_that_is_too_short_is_locked() {
    let place = Place::new();
    let other = Other::start("holds", &place.path);
    let options = Options::new().lock_wait(Duration::from_millis(200));
    let began = Instant::now();
    assert!(matches!(options.open(&place.path), Err(Error::Locked { .. })));
    assert!(began.elapsed() >= Duration::from_millis(200));
    other.end();
}

/// A process that waited for its own store to be closed would wait in vain, or for ever.
#[test]
fn a_store_that_is_open_in_this_process_is_locked_at_once() {
    let place = Place::new();
    let store = waiting().open(&place.path).unwrap();
    let link = place.path.with_extension("link");
    fs::hard_link(&place.path, &link).unwrap();
    let began = Instant::now();
    for path in [&place.path, &link] {
        assert!(matches!(waiting().open(path), Err(Error::Locked { .. })));
    }
    assert!(began.elapsed() < LONG / 2);
    store.close().unwrap();
    waiting().open(&link).unwrap();
    drop(store);
    waiting().open(&place.path).unwrap();
}

#[test]
fn a_file_that_was_replaced_during_the_wait_is_opened_anew() {
    let (place, successor) = (Place::new(), Place::new());
    let store = Store::open(&successor.path).unwrap();
    store.record("in the successor", NONE, b"").unwrap();
    store.close().unwrap();
    let other = Other::start("holds", &place.path);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| waiting().open(&place.path).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        fs::rename(&successor.path, &place.path).unwrap();
        // The close of the other process fails, because its path leads elsewhere, but it lets go.
        drop(other);
        let store = opening.join().unwrap();
        assert!(store.get("in the successor").unwrap().is_completed());
        store.close().unwrap();
    });
}
