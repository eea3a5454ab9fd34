//! Checks what a call waits for, and for how long. It never waits for another caller's sync longer than its timeout, and
//! never for its own thread.
//!
//! The simulated disk holds syncs until a test releases them, so a call that waits for such a sync does not return.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use common::{NONE, START_MS, abandon, acquire, clocked, perform, seconds, small};
use oncekey::simulation::SimulatedDisk;
use oncekey::{
    Begin, Durability, Error, ErrorKind, ManualClock, Outcome, Reconciled, Recorded, RunError, Status, Store,
};

/// The timeout after which a call that must not wait counts as waiting.
const HANG_TIMEOUT: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_millis(10);

/// Runs `call` in another thread and returns its value. The call must not wait for a later step of the test.
fn at_once<T: Send + 'static>(store: &Store, call: impl FnOnce(&Store) -> T + Send + 'static) -> T {
    let (sender, outcome) = mpsc::channel();
    let store = store.clone();
    std::thread::spawn(move || {
        let _ = sender.send(call(&store));
    });
    outcome.recv_timeout(HANG_TIMEOUT).expect("the call waits for another caller")
}

fn on_slow_disk() -> (SimulatedDisk, Store) {
    let disk = SimulatedDisk::new();
    let store = small().open_simulated(&disk).unwrap();
    (disk, store)
}

/// Starts a call in another thread and returns once the call is waiting for its sync. The call ends when the disk releases
/// syncs.
fn syncing<T: Send + 'static>(
    disk: &SimulatedDisk,
    store: &Store,
    call: impl FnOnce(&Store) -> T + Send + 'static,
) -> JoinHandle<T> {
    disk.delay_syncs();
    let store = store.clone();
    let thread = std::thread::spawn(move || call(&store));
    disk.wait_for_delayed_sync();
    thread
}

/// Starts a completion of "k", which waits for its sync.
fn completing(disk: &SimulatedDisk, store: &Store) -> JoinHandle<()> {
    let mut lease = acquire(store, "k");
    syncing(disk, store, move |_| {
        lease.complete(b"done").unwrap();
    })
}

#[test]
fn a_read_does_not_wait_for_a_change_in_progress() {
    let (disk, store) = on_slow_disk();
    let completing = completing(&disk, &store);
    assert_eq!(at_once(&store, |store| store.get("k").unwrap().status()), Status::InProgress);
    let replayed = at_once(&store, |store| store.replay_into("k", NONE, &mut Vec::new()).unwrap());
    assert_eq!(replayed, None);
    disk.release_syncs();
    completing.join().unwrap();
    assert_eq!(store.get("k").unwrap().result(), Some(&b"done"[..]));

    let beginning = syncing(&disk, &store, |store| acquire(store, "l"));
    assert_eq!(at_once(&store, |store| store.get("l").unwrap().status()), Status::Absent);
    disk.release_syncs();
    let lease = beginning.join().unwrap();
    assert_eq!(store.get("l").unwrap().status(), Status::InProgress);
    drop(lease);
    assert_eq!(store.get("l").unwrap().status(), Status::InDoubt);
}

#[test]
fn a_begin_without_wait_returns_in_progress_at_once() {
    let (disk, store) = on_slow_disk();
    let changing = completing(&disk, &store);
    let began = at_once(&store, |store| store.begin("k", NONE).unwrap());
    assert!(matches!(began, Begin::InProgress { attempt: 1, .. }), "{began:?}");
    let recorded = at_once(&store, |store| store.record("k", NONE, b"another"));
    assert!(matches!(recorded, Err(Error::InProgress { attempt: 1, .. })), "{recorded:?}");
    let ran = at_once(&store, |store| store.operation("k").run(|_| Ok::<_, Error>(1)));
    assert!(matches!(ran, Err(RunError::Store(Error::InProgress { .. }))), "{ran:?}");
    disk.release_syncs();
    changing.join().unwrap();

    let changing = syncing(&disk, &store, |store| acquire(store, "l"));
    let began = at_once(&store, |store| store.begin("l", NONE).unwrap());
    assert!(matches!(began, Begin::InProgress { attempt: 1, .. }), "{began:?}");
    disk.release_syncs();
    drop(changing.join().unwrap());

    let changing = syncing(&disk, &store, |store| store.record("m", NONE, b"first").unwrap());
    let recorded = at_once(&store, |store| store.record("m", NONE, b"second"));
    assert!(matches!(recorded, Err(Error::InProgress { attempt: 1, .. })), "{recorded:?}");
    disk.release_syncs();
    assert!(matches!(changing.join().unwrap(), Recorded::Done(_)));
}

#[test]
fn a_wait_times_out_while_another_caller_syncs() {
    let (disk, store) = on_slow_disk();
    let changing = completing(&disk, &store);
    let began = at_once(&store, |store| store.operation("k").wait(SHORT).begin().unwrap());
    assert!(matches!(began, Begin::InProgress { attempt: 1, .. }), "{began:?}");
    let recorded = at_once(&store, |store| store.operation("k").wait(SHORT).record(b"another"));
    assert!(matches!(recorded, Err(Error::InProgress { attempt: 1, .. })), "{recorded:?}");
    let ran = at_once(&store, |store| store.operation("k").wait(SHORT).run(|_| Ok::<_, Error>(1)));
    assert!(matches!(ran, Err(RunError::Store(Error::InProgress { .. }))), "{ran:?}");
    // A caller with a longer timeout still gets the result.
    let (sender, receiver) = mpsc::channel();
    let waiting = std::thread::spawn({
        let store = store.clone();
        move || {
            sender.send(()).unwrap();
            store.operation("k").wait(seconds(600)).begin().unwrap()
        }
    });
    receiver.recv().unwrap();
    disk.release_syncs();
    changing.join().unwrap();
    let Begin::Completed(done) = waiting.join().unwrap() else { panic!("not completed") };
    assert_eq!(done.result(), b"done");
}

#[test]
fn a_waiter_notices_a_lease_deadline_that_a_manual_clock_has_passed() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).lease(seconds(3_600)).open_in_memory().unwrap();
    for key in ["k", "l", "m"] {
        let lease = acquire(&store, key);
        let (sender, receiver) = mpsc::channel();
        let store = store.clone();
        let waiting = std::thread::spawn(move || {
            let _ = sender.send(());
            let began = store.operation(key).wait(Duration::MAX).begin();
            let _ = sender.send(());
            began
        });
        receiver.recv().unwrap();
        // The clock moves in steps, because the thread may begin to wait before, between or after them.
        for _ in 0..4 {
            std::thread::sleep(SHORT);
            clock.advance(seconds(1_000));
        }
        receiver
            .recv_timeout(HANG_TIMEOUT)
            .expect("the thread is still waiting although the deadline has passed");
        let began = waiting.join().unwrap().unwrap();
        assert!(matches!(began, Begin::InDoubt(_)), "{began:?}");
        drop(lease);
    }
}

/// Runs an operation on "k" inside another one on "k". The inner one waits for `wait`, if that is given.
fn run_inside(store: &Store, wait: Option<Duration>) -> Result<Outcome<u32>, RunError<u32, Error>> {
    store.operation("k").release_if(|_: &Error| true).run(|_| {
        let operation = store.operation("k");
        let operation = if let Some(wait) = wait { operation.wait(wait) } else { operation };
        match operation.run(|_| Ok::<u32, Error>(7)) {
            Ok(outcome) => Ok(outcome.into_inner()),
            Err(RunError::Store(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    })
}

#[test]
fn run_inside_run_of_the_same_key_does_not_wait() {
    let store = small().open_in_memory().unwrap();
    for wait in [Duration::MAX, seconds(3_600)] {
        let ran = at_once(&store, move |store| run_inside(store, Some(wait)));
        assert!(matches!(&ran, Err(RunError::Released(error)) if is_would_wait_for_itself(error)), "{ran:?}");
        assert!(store.get("k").unwrap().is_absent());
    }
    let ran = run_inside(&store, None);
    assert!(matches!(ran, Err(RunError::Released(Error::InProgress { attempt: _, .. }))), "{ran:?}");
}

fn is_would_wait_for_itself(error: &Error) -> bool {
    matches!(error, Error::WouldWaitForItself { key, .. } if key.as_key().as_str() == Some("k"))
        && error.kind() == ErrorKind::Caller
}

#[test]
fn reconcile_does_not_wait_for_its_own_doubt() {
    let store = small().open_in_memory().unwrap();
    abandon(&store, "k");
    let ran = at_once(&store, |store| {
        store
            .operation("k")
            .reconcile(|_| {
                let begun = store.operation("k").wait(Duration::MAX).begin();
                assert!(matches!(&begun, Err(error) if is_would_wait_for_itself(error)), "{begun:?}");
                let recorded = store.operation("k").wait(Duration::MAX).record(b"x");
                assert!(matches!(&recorded, Err(Error::InDoubt { .. })), "{recorded:?}");
                Reconciled::<u32>::Unknown { reason: None }
            })
            .run(|_| Ok::<u32, Error>(1))
    });
    assert!(matches!(ran, Err(RunError::Store(Error::InDoubt { .. }))), "{ran:?}");
}

#[test]
fn a_wait_for_itself_needs_the_same_key_store_and_thread() {
    let (store, other) = (small().open_in_memory().unwrap(), small().open_in_memory().unwrap());
    let held = acquire(&other, "k");
    store
        .operation("k")
        .run(|_| {
            // Two levels deep, this thread still holds the outer key.
            store
                .operation("l")
                .run(|_| {
                    let begun = store.operation("k").wait(Duration::MAX).begin();
                    assert!(matches!(&begun, Err(error) if is_would_wait_for_itself(error)), "{begun:?}");
                    let begun = other.operation("k").wait(SHORT).begin().unwrap();
                    assert!(
                        matches!(begun, Begin::InProgress { .. }),
                        "a key of another store counts as held by this thread: {begun:?}"
                    );
                    Ok::<u32, Error>(1)
                })
                .unwrap();
            let begun = std::thread::scope(|scope| {
                scope.spawn(|| store.operation("k").wait(SHORT).begin().unwrap()).join().unwrap()
            });
            assert!(
                matches!(begun, Begin::InProgress { attempt: 1, .. }),
                "another thread counts as the one that runs the operation: {begun:?}"
            );
            Ok::<u32, Error>(1)
        })
        .unwrap();
    drop(held);
    // A closure that panicked no longer holds its key.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.operation("m").run(|_| -> Result<u32, Error> { panic!("as planned") })
    }));
    assert!(panicked.is_err());
    let begun = store.operation("m").wait(SHORT).begin().unwrap();
    assert!(matches!(begun, Begin::InDoubt(_)), "{begun:?}");
}

#[test]
fn get_timeout_limits_the_wait_for_another_callers_sync() {
    let (disk, store) = on_slow_disk();
    perform(&store, "synced", b"1");
    store.operation("k").durability(Durability::Buffered).record(b"seen").unwrap();
    let without_wait = store.get_timeout("k", Duration::ZERO);
    assert!(
        matches!(&without_wait, Err(error @ Error::Busy { .. }) if error.kind() == ErrorKind::Answer),
        "{without_wait:?}"
    );
    let syncing = syncing(&disk, &store, |store| store.sync().unwrap());
    for timeout in [Duration::ZERO, SHORT] {
        let busy = at_once(&store, move |store| store.get_timeout("k", timeout));
        assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
        assert!(at_once(&store, move |store| store.get_timeout("synced", timeout)).unwrap().is_completed());
        assert!(at_once(&store, move |store| store.get_timeout("nothing", timeout)).unwrap().is_absent());
    }
    let waiting = std::thread::spawn({
        let store = store.clone();
        move || store.get_timeout("k", seconds(600))
    });
    disk.release_syncs();
    syncing.join().unwrap();
    assert_eq!(waiting.join().unwrap().unwrap().result(), Some(&b"seen"[..]));
    assert!(store.get_timeout("k", Duration::ZERO).unwrap().is_completed());
    // If no other caller is syncing, the call syncs by itself.
    store.operation("l").durability(Durability::Buffered).record(b"seen").unwrap();
    let syncs = disk.syncs();
    assert!(store.get_timeout("l", seconds(600)).unwrap().is_completed());
    assert_eq!(disk.syncs(), syncs + 1);
}

#[test]
fn finds_a_wait_for_itself() {
    use oncekey::simulation::{Bug, plant};
    let store = small().open_in_memory().unwrap();
    plant(Some(Bug::WaitsForItself));
    let ran = run_inside(&store, Some(SHORT));
    plant(None);
    assert!(
        matches!(ran, Err(RunError::Released(Error::InProgress { .. }))),
        "the planted bug did not make the inner operation wait: {ran:?}"
    );
}
