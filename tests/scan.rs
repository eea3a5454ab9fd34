//! Checks that a scan shows every key that is there throughout, whatever moves or changes meanwhile, and that a scope is
//! forgotten whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, flip, record_of, seconds, small};
use oncekey::{Durability, Error, Key, ManualClock, Scan, Status, Store};

fn fill(store: &Store, scope: &str, count: u32, result: &[u8]) {
    for number in 0..count {
        let name = number.to_string();
        store.operation(&name).scope(scope).durability(Durability::Buffered).record(result).unwrap();
    }
}

fn names(scan: Scan<'_>) -> Vec<String> {
    scan.map(|key| key.unwrap().key().as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_condition_selects_by_what_the_last_record_states() {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).open_in_memory().unwrap();
    store.record(Key::new("done").scope("a"), NONE, b"result").unwrap();
    store.record("unscoped", NONE, b"").unwrap();
    abandon(&store, "in doubt");
    acquire(&store, "released").release().unwrap();
    store.record("forgotten", NONE, b"").unwrap();
    assert!(store.forget("forgotten").unwrap());
    store.operation("expired").retain(seconds(10)).record(b"").unwrap();
    clock.advance(seconds(10));
    let lease = acquire(&store, "running");

    let all: BTreeMap<String, _> = store
        .scan()
        .map(|key| key.unwrap())
        .map(|key| (key.key().as_str().unwrap().to_owned(), key))
        .collect();
    let keys: Vec<&str> = all.keys().map(String::as_str).collect();
    assert_eq!(keys, ["done", "in doubt", "running", "unscoped"]);
    let done = &all["done"];
    let state = store.get(Key::new("done").scope("a")).unwrap();
    assert_eq!(
        (done.key(), done.status(), Some(done.version())),
        (state.key(), state.status(), state.version())
    );
    assert_eq!((done.attempt(), Some(done.changed_at_ms())), (state.attempt(), state.changed_at_ms()));
    assert_eq!(done.expires_at_ms(), state.expires_at_ms());
    assert_eq!(done.result_expires_at_ms(), state.result_expires_at_ms());
    assert_eq!((done.result_bytes(), done.record_bytes()), (Some(6), 80 + 8 + 8));
    assert_eq!((all["running"].status(), all["in doubt"].status()), (Status::InProgress, Status::InDoubt));
    assert_eq!((all["in doubt"].expires_at_ms(), all["in doubt"].result_bytes()), (None, None));

    assert_eq!(names(store.scan().scope("a")), ["done"]);
    assert_eq!(names(store.scan().without_scope()), ["unscoped", "in doubt", "running"]);
    assert_eq!(names(store.scan().status(Status::InDoubt)), ["in doubt"]);
    assert_eq!(names(store.scan().status(Status::InProgress)), ["running"]);
    assert_eq!(names(store.scan().status(Status::Absent)), [""; 0]);
    assert_eq!(names(store.scan().changed_before_ms(START_MS + 10_000)), ["done", "unscoped", "in doubt"]);
    drop(lease);
}

/// The caller thinks between two items, and meanwhile the store does everything that a scan might trip over.
#[test]
fn no_key_is_missed_while_its_record_moves_and_segments_are_retired() {
    let store = small().max_result(12_000).open_in_memory().unwrap();
    let kept: BTreeSet<String> = (0..300_u32).map(|number| number.to_string()).collect();
    for number in 0..300_u32 {
        store.record(&number.to_string(), NONE, &[1; 500]).unwrap();
        store.record(&format!("dead {number}"), NONE, &[1; 2_000]).unwrap();
    }
    let mut dead = (0..300_u32).map(|number| format!("dead {number}"));
    let mut shown = BTreeSet::new();
    let mut compactions = 0;
    for (number, key) in store.scan().enumerate() {
        shown.insert(key.unwrap().key().as_str().unwrap().to_owned());
        if let Some(dead) = dead.next() {
            assert!(store.forget(&dead).unwrap());
        }
        if number % 40 == 0 {
            compactions += 1;
            store.compact().unwrap();
        }
    }
    assert!(compactions > 3 && store.stats().segments_retired > 5);
    let missed: Vec<_> = kept.difference(&shown).collect();
    assert!(missed.is_empty(), "missed {missed:?}");
    store.close().unwrap();
}

#[test]
fn no_key_is_missed_while_other_threads_change_the_store() {
    let place = Place::new();
    let store = small().max_result(12_000).durability(Durability::Buffered).open(&place.path).unwrap();
    fill(&store, "kept", 400, &[1; 300]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{thread}/{}", number % 50);
                    store.operation(&key).record(&[1; 2_000]).unwrap();
                    store.forget(&key).unwrap();
                    if number % 300 == 0 {
                        store.compact().unwrap();
                    }
                }
            });
        }
        for _ in 0..30 {
            let shown: BTreeSet<String> = names(store.scan().scope("kept")).into_iter().collect();
            assert_eq!(shown.len(), 400);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(store.stats().segments_retired > 0);
}

#[test]
fn a_callback_reports_progress_and_stops_the_scan() {
    let store = small().open_in_memory().unwrap();
    fill(&store, "s", 2_000, &[1; 300]);
    let mut reports = Vec::new();
    let mut scan = store.scan().scope("nothing").on_progress(|progress| {
        reports.push(*progress);
        ControlFlow::Continue(())
    });
    assert!(scan.next().is_none() && scan.next().is_none() && !scan.is_stopped());
    drop(scan);
    assert!(reports.len() > 10);
    assert!(reports.windows(2).all(|pair| pair[0].done_bytes < pair[1].done_bytes));
    assert!(reports.last().unwrap().is_done() && !reports[0].is_done());

    let mut calls = 0;
    let mut scan = store.scan().on_progress(|_| {
        calls += 1;
        ControlFlow::Break(())
    });
    let shown = scan.by_ref().count();
    assert!(scan.is_stopped() && scan.next().is_none());
    drop(scan);
    assert!(calls == 1 && shown < 300, "{shown} keys of {calls} segments");
}

#[test]
fn a_close_in_a_callback_is_an_error_and_afterwards_it_ends_the_scan() {
    let store = small().open_in_memory().unwrap();
    fill(&store, "s", 1_000, &[1; 300]);
    let other = small().open_in_memory().unwrap();
    let mut scan = store.scan().on_progress(|_| {
        assert!(matches!(store.close(), Err(Error::InCallback)));
        let _ = other.close();
        ControlFlow::Continue(())
    });
    for _ in 0..500 {
        scan.next().unwrap().unwrap();
    }
    assert!(matches!(other.close(), Err(Error::Closed)), "another store can be closed in the callback");
    store.close().unwrap();
    assert!(matches!(scan.next(), Some(Err(Error::Closed))));
    assert!(scan.next().is_none());
    assert!(matches!(store.scan().next(), Some(Err(Error::Closed))));
}

#[test]
fn a_close_in_a_callback_of_a_compaction_is_an_error() {
    let store = small().open_in_memory().unwrap();
    fill(&store, "s", 1_000, &[1; 300]);
    store.forget_scope("s").unwrap();
    let mut calls = 0;
    let compaction = store.compact_with(|progress| {
        calls += 1;
        assert!(matches!(store.close(), Err(Error::InCallback)));
        // Everything else is allowed, also a change and another compaction.
        store.record(&format!("in callback {calls}"), NONE, b"").unwrap();
        if calls == 1 {
            store.compact().unwrap();
        }
        assert!(progress.done_bytes <= progress.total_bytes);
        ControlFlow::Continue(())
    });
    assert!(!compaction.unwrap().is_stopped && calls > 1);
    assert_eq!(store.scan().count(), calls);
    store.close().unwrap();
}

#[test]
fn a_stopped_compaction_has_done_a_segment_and_no_harm() {
    let place = Place::new();
    let store = place.open();
    // Every segment holds a few records that have to be moved.
    for number in 0..300 {
        store.operation(&number.to_string()).durability(Durability::Buffered).record(&[1; 300]).unwrap();
        fill(&store, &format!("gone {number}"), 3, &[1; 300]);
    }
    for number in 0..300 {
        for name in ["0", "1", "2"] {
            store.forget(Key::new(name).scope(&format!("gone {number}"))).unwrap();
        }
    }
    let before = store.stats();
    let compaction = store.compact_with(|_| ControlFlow::Break(())).unwrap();
    assert!(compaction.is_stopped);
    assert_eq!(store.stats().segments_retired, before.segments_retired + 1);
    let shown: BTreeSet<String> = names(store.scan()).into_iter().collect();
    assert_eq!(shown.len(), 300);
    let rest = store.compact().unwrap();
    assert!(!rest.is_stopped && rest.freed_bytes > SEGMENT);
    assert_eq!(names(store.scan()).len(), 300);
    store.close().unwrap();
    assert_eq!(names(place.open().scan()).len(), 300);
}

#[test]
fn a_record_that_cannot_be_read_is_an_item_and_hides_no_other() {
    let place = Place::new();
    let store = place.open();
    fill(&store, "s", 1_000, &[1; 300]);
    store.record(Key::new("damaged key").scope("s"), NONE, b"result").unwrap();
    fill(&store, "t", 1_000, &[1; 300]);
    store.close().unwrap();
    flip(&place, record_of(&place, "sdamaged key") + 100);
    let store = place.open();
    for scan in [store.scan(), store.scan().scope("s"), store.scan().scope("t")] {
        let (good, bad): (Vec<_>, Vec<_>) = scan.partition(Result::is_ok);
        assert!(good.len() >= 1_000 && bad.len() == 1, "{} and {bad:?}", good.len());
        assert!(matches!(bad[0], Err(Error::Corrupt { .. })));
    }
    let forgotten = store.forget_scope("s").unwrap();
    assert_eq!((forgotten.forgotten, forgotten.unreadable), (1_000, 1));
    assert_eq!(store.scan().scope("t").filter(Result::is_ok).count(), 1_000);
}

#[test]
fn a_scope_is_forgotten_whole_and_durably_with_few_syncs() {
    let place = Place::new();
    let store = place.open();
    fill(&store, "gone", 1_000, &[1; 100]);
    fill(&store, "kept", 100, &[1; 100]);
    store.record("0", NONE, b"").unwrap();
    for name in ["doubtful", "doubtful too"] {
        drop(store.begin(Key::new(name).scope("gone"), NONE).unwrap());
    }
    let lease = store.begin(Key::new("running").scope("gone"), NONE).unwrap();
    let before = store.stats().syncs;
    let forgotten = store.forget_scope("gone").unwrap();
    assert_eq!((forgotten.forgotten, forgotten.in_progress, forgotten.is_stopped), (1_002, 1, false));
    assert!(store.stats().syncs <= before + 2, "one sync for each walk that found something");
    assert_eq!(names(store.scan().scope("gone")), ["running"]);
    assert_eq!(store.scan().count(), 102);
    drop(lease);
    // As a power loss would leave it: whatever is not synced is lost.
    assert_eq!(store.forget_scope("gone").unwrap().forgotten, 1);
    assert_eq!(store.forget_scope("gone").unwrap(), oncekey::ForgottenScope::default());
}

/// An attempt ends behind the walk: at the end of the log, after the walk has taken the list of the tail.
#[test]
fn a_key_that_is_completed_behind_the_walk_is_forgotten_by_the_next_one() {
    let forget = || {
        let store = small().open_in_memory().unwrap();
        fill(&store, "gone", 300, &[1; 300]);
        let mut lease = match store.begin(Key::new("running").scope("gone"), NONE).unwrap() {
            oncekey::Begin::Acquired(lease) => Some(lease),
            other => panic!("{other:?}"),
        };
        let forgotten = store.forget_scope_with("gone", |progress| {
            if progress.is_done()
                && let Some(mut lease) = lease.take()
            {
                lease.complete(b"").unwrap();
            }
            ControlFlow::Continue(())
        });
        (forgotten.unwrap(), store.scan().scope("gone").count())
    };
    let (forgotten, left) = forget();
    assert_eq!((forgotten.forgotten, forgotten.in_progress, left), (301, 0, 0));
    #[cfg(feature = "__simulation")]
    {
        use oncekey::simulation::{Bug, plant};
        plant(Some(Bug::ForgetScopeWalksOnce));
        let (_, left) = forget();
        plant(None);
        assert_eq!(left, 1, "the planted bug must be found");
    }
}

#[test]
fn a_scan_that_ends_where_the_log_ended_before_is_found() {
    let scan = || {
        let store = small().open_in_memory().unwrap();
        fill(&store, "kept", 300, &[1; 300]);
        fill(&store, "gone", 1_000, &[1; 300]);
        store.forget_scope("gone").unwrap();
        let scan = store.scan();
        // Every record is moved behind the end of the log.
        store.compact().unwrap();
        let shown: BTreeSet<String> = names(scan).into_iter().collect();
        shown.len()
    };
    assert_eq!(scan(), 300);
    #[cfg(feature = "__simulation")]
    {
        use oncekey::simulation::{Bug, plant};
        plant(Some(Bug::ScanEndsAtOldTail));
        let shown = scan();
        plant(None);
        assert!(shown < 300, "the planted bug must be found");
    }
}

#[test]
fn a_stopped_forget_says_so_and_keeps_what_it_did() {
    let store = small().open_in_memory().unwrap();
    fill(&store, "gone", 1_000, &[1; 300]);
    let forgotten = store.forget_scope_with("gone", |_| ControlFlow::Break(())).unwrap();
    assert!(forgotten.is_stopped && forgotten.forgotten > 0);
    assert_eq!(store.scan().count() as u64, 1_000 - forgotten.forgotten);
    assert_eq!(store.forget_scope("gone").unwrap().forgotten, 1_000 - forgotten.forgotten);
}

/// Prints how long each long call takes, beside `cp` and `cksum` of the same file:
///
/// ```text
/// cargo test --release --all-features --test scan a_gigabyte -- --ignored --nocapture
/// ```
#[test]
#[ignore = "writes several gigabytes; for the figures"]
fn a_gigabyte_is_scanned_and_compacted_with_progress() {
    let place = Place::new();
    let store = oncekey::Options::new().durability(Durability::Buffered).open(&place.path).unwrap();
    const KEYS: u64 = 250_000;
    let mut batch = store.batch();
    for number in 0..KEYS {
        let scope = if number % 2 == 0 { "even" } else { "odd" };
        batch.record(store.operation(number.to_string()).scope(scope), &[1; 4_000]).unwrap();
        if number % 1_000 == 999 {
            drop(std::mem::replace(&mut batch, store.batch()).commit().unwrap());
        }
    }
    drop(batch);
    store.sync().unwrap();
    let mib = place.length() >> 20;
    let timed = |what: &str, call: &mut dyn FnMut()| {
        let began = std::time::Instant::now();
        call();
        let seconds = began.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s for {mib} MiB, {:.0} MiB/s", mib as f64 / seconds);
    };
    let run = |program: &str, arguments: &[&std::path::Path]| {
        assert!(std::process::Command::new(program).args(arguments).output().unwrap().status.success());
    };
    let copy = place.path.with_extension("copy");
    for round in ["first", "again"] {
        timed(&format!("cksum, {round}"), &mut || run("cksum", &[&place.path]));
        timed(&format!("cp, {round}"), &mut || run("cp", &[&place.path, &copy]));
        timed(&format!("scan, {round}"), &mut || assert_eq!(store.scan().count() as u64, KEYS));
        timed(&format!("scan of another scope, {round}"), &mut || {
            assert_eq!(store.scan().scope("none").count(), 0);
        });
    }
    let mut reader = None;
    timed("opening a reader", &mut || reader = Some(oncekey::Reader::open(&place.path).unwrap()));
    let reader = reader.unwrap();
    timed("a refresh of the reader", &mut || reader.refresh().unwrap());
    timed("a scan of the reader", &mut || assert_eq!(reader.scan().count() as u64, KEYS));
    let (mut calls, mut last, mut longest) = (0_u64, std::time::Instant::now(), std::time::Duration::ZERO);
    timed("forget_scope of half", &mut || {
        assert_eq!(store.forget_scope("even").unwrap().forgotten, KEYS / 2);
    });
    timed("compact", &mut || {
        last = std::time::Instant::now();
        store
            .compact_with(|_| {
                (calls, longest) = (calls + 1, longest.max(last.elapsed()));
                last = std::time::Instant::now();
                ControlFlow::Continue(())
            })
            .unwrap();
    });
    println!("compact: {calls} calls of the callback, at most {longest:?} apart");
    let began = std::time::Instant::now();
    let mut scan = store.scan().scope("none").on_progress(|_| ControlFlow::Break(()));
    assert!(scan.next().is_none() && scan.is_stopped());
    println!("a scan that is stopped at once: {:?}", began.elapsed());
    drop(scan);
    assert_eq!(store.scan().count() as u64, KEYS / 2);
    store.close().unwrap();
}

/// Several segments of jobs "job-0" to "job-29" in scope "jobs", each with a step "step" and a message of topic "mail". The even
/// ones are done.
fn jobs(store: &Store) {
    for number in 0..30 {
        let ran = store.operation(format!("job-{number}")).scope("jobs").emits(3_000).run(|job| {
            let done = job.step("step").run(|_| Ok::<_, String>(vec![7_u8; 2_000]));
            done.map_err(|error| error.to_string())?;
            job.emit_bytes("mail", &[7; 2_000]).map_err(|error| error.to_string())?;
            if number % 2 == 0 { Ok(0_u64) } else { Err("no answer".to_owned()) }
        });
        assert_eq!(ran.is_ok(), number % 2 == 0);
    }
}

#[test]
fn a_scan_shows_no_step_and_no_message_and_a_scope_is_forgotten_with_its_steps() {
    let place = Place::new();
    let store = place.open();
    jobs(&store);
    store.record("other", NONE, b"").unwrap();
    let step = Key::new("job-1").scope("jobs").step("step");
    for round in 0..3 {
        let mut shown = HashMap::new();
        for key in store.scan() {
            let key = key.unwrap();
            *shown.entry((key.key().as_str().unwrap().to_owned(), key.status())).or_insert(0) += 1;
        }
        let job = |number| {
            let status = if number % 2 == 0 { Status::Completed } else { Status::Stopped };
            ((format!("job-{number}"), status), 1)
        };
        let expected = (0..30).map(job).chain([(("other".to_owned(), Status::Completed), 1)]);
        assert_eq!(shown, expected.collect::<HashMap<_, _>>(), "{round}");
        store.compact().unwrap();
    }
    let listed = store.forget_with_steps(Key::new("job-1").scope("jobs")).unwrap().unwrap();
    assert_eq!((listed.len(), listed[0].key(), listed[0].status()), (1, step, Status::Completed));
    assert!(store.get(step).unwrap().is_absent());
    let forgotten = store.forget_scope("jobs").unwrap();
    assert_eq!((forgotten.forgotten, forgotten.in_progress, forgotten.unreadable), (29, 0, 0));
    let stats = store.stats();
    assert_eq!(
        (stats.unfinished, stats.unfinished_steps, stats.messages),
        (0, 0, 15),
        "messages outlive their keys"
    );
    assert_eq!(names(store.scan()), ["other"]);
    store.close().unwrap();
    let store = place.open();
    assert_eq!((store.stats().unfinished_steps, store.stats().messages), (0, 15));
    assert_eq!(names(store.scan()), ["other"]);
}
