//! The path is removed, renamed or replaced while the store is open: another process that opens the path gets another
//! file, so nothing may begin here any more, and what already began must say so.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{NONE, START_MS, abandon, acquire, clocked, seconds};
use oncekey::{Begin, Error, Expected, ManualClock, Next, Result, RunError, Status, Store};

/// A way to take the path away from an open store, whose file is `directory/sub/store.once`, opened through `link`.
type Way = (&'static str, fn(&Path));

const WAYS: [Way; 7] = [
    ("removed", |directory| fs::remove_file(directory.join("sub/store.once")).unwrap()),
    ("renamed", |directory| {
        fs::rename(directory.join("sub/store.once"), directory.join("sub/other.once")).unwrap();
    }),
    ("renamed over", |directory| {
        fs::write(directory.join("new"), b"").unwrap();
        fs::rename(directory.join("new"), directory.join("sub/store.once")).unwrap();
    }),
    ("replaced by a copy", |directory| {
        fs::copy(directory.join("sub/store.once"), directory.join("new")).unwrap();
        fs::rename(directory.join("new"), directory.join("sub/store.once")).unwrap();
    }),
    ("its directory renamed", |directory| {
        fs::rename(directory.join("sub"), directory.join("moved")).unwrap();
    }),
    ("its directory replaced by a file", |directory| {
        fs::rename(directory.join("sub"), directory.join("moved")).unwrap();
        fs::write(directory.join("sub"), b"").unwrap();
    }),
    ("the link led elsewhere", |directory| {
        fs::write(directory.join("elsewhere"), b"").unwrap();
        fs::remove_file(directory.join("link")).unwrap();
        symlink(directory.join("elsewhere"), directory.join("link")).unwrap();
    }),
];

struct Setup {
    directory: tempfile::TempDir,
    clock: ManualClock,
    store: Store,
}

impl Setup {
    fn new() -> Setup {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        let clock = ManualClock::new(START_MS);
        let path = directory.path().join("sub/store.once");
        clocked(&clock).open(&path).unwrap().close().unwrap();
        symlink(&path, directory.path().join("link")).unwrap();
        let store = clocked(&clock).open(directory.path().join("link")).unwrap();
        Setup { directory, clock, store }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("link")
    }
}

fn is_replaced<T: Debug>(outcome: &Result<T>, path: &Path) -> bool {
    let said = format!("{outcome:?}");
    said.contains("Replaced") && said.contains(path.to_str().unwrap())
}

#[test]
fn nothing_begins_once_the_path_leads_elsewhere_and_reads_go_on() {
    for (way, take_away) in WAYS {
        let setup = Setup::new();
        let (store, path) = (&setup.store, setup.path());
        store.record("done", NONE, b"r").unwrap();
        abandon(store, "doubt");
        let doubt = match store.begin("doubt", NONE).unwrap() {
            Begin::InDoubt(doubt) => doubt,
            other => panic!("{other:?}"),
        };
        take_away(setup.directory.path());
        setup.clock.advance(seconds(1));

        assert!(is_replaced(&store.begin("new", NONE), &path), "{way}");
        assert!(is_replaced(&store.record("new", NONE, b""), &path), "{way}");
        assert!(is_replaced(&store.forget("done"), &path), "{way}");
        let next = Next::Completed { fingerprint: NONE, result: b"" };
        assert!(is_replaced(&store.compare_and_set("new", Expected::Absent, next), &path), "{way}");
        assert!(is_replaced(&doubt.begin_again(), &path), "{way}");
        let ran = store
            .operation("new")
            .run(|_| -> std::result::Result<(), String> { panic!("{way}: another process may run it too") });
        assert!(format!("{ran:?}").contains("Replaced"), "{way}: {ran:?}");
        assert!(is_replaced(&store.compact(), &path), "{way}");

        assert_eq!(store.get("done").unwrap().result(), Some(&b"r"[..]), "{way}");
        assert!(store.get("new").unwrap().is_absent(), "{way}");
        let mut buffer = Vec::new();
        assert!(store.replay_into("done", NONE, &mut buffer).unwrap().is_some(), "{way}");
    }
}

#[test]
fn what_began_is_completed_in_the_open_file_and_its_caller_is_told() {
    for (way, take_away) in WAYS {
        let setup = Setup::new();
        let (store, path) = (&setup.store, setup.path());
        let (mut lease, released) = (acquire(store, "lease"), acquire(store, "released"));
        abandon(store, "doubt");
        let mut doubt = match store.begin("doubt", NONE).unwrap() {
            Begin::InDoubt(doubt) => doubt,
            other => panic!("{other:?}"),
        };
        let outcome = store.operation("act").run(|_| {
            take_away(setup.directory.path());
            setup.clock.advance(seconds(1));
            assert!(is_replaced(&store.begin("new", NONE), &path), "{way}");
            Ok::<_, String>(17)
        });
        let is_told = matches!(&outcome, Err(RunError::Unrecorded { result, source: Error::Replaced { .. }, .. }) if **result == 17);
        assert!(is_told, "{way}: {outcome:?}");

        for _ in 0..2 {
            assert!(is_replaced(&lease.complete(b"r"), &path), "{way}: completing once more changes nothing");
        }
        assert!(matches!(lease.complete(b"other"), Err(Error::Conflict { .. })), "{way}");
        assert!(is_replaced(&released.release(), &path), "{way}");
        assert!(is_replaced(&doubt.complete(b"found"), &path), "{way}");
        assert!(store.get("act").unwrap().is_completed(), "{way}");
        assert_eq!(store.get("lease").unwrap().result(), Some(&b"r"[..]), "{way}");
        assert_eq!(store.get("released").unwrap().status(), Status::Absent, "{way}");
        assert_eq!(store.get("doubt").unwrap().result(), Some(&b"found"[..]), "{way}");
    }
}

#[test]
fn a_sync_a_compaction_and_a_close_look_at_the_path_at_once() {
    for (way, take_away) in WAYS {
        let calls: [fn(&Store) -> Result<()>; 2] = [Store::sync, |store| store.compact().map(drop)];
        for call in calls {
            let setup = Setup::new();
            take_away(setup.directory.path());
            assert!(is_replaced(&call(&setup.store), &setup.path()), "{way}");
            assert!(is_replaced(&setup.store.begin("new", NONE), &setup.path()), "{way}: no second passed");
        }
        let setup = Setup::new();
        let clone = setup.store.clone();
        setup.store.record("k", NONE, b"r").unwrap();
        take_away(setup.directory.path());
        assert!(is_replaced(&clone.close(), &setup.path()), "{way}");
        assert!(matches!(setup.store.get("k"), Err(Error::Closed)), "{way}: it is closed all the same");
    }
}

#[test]
fn a_new_segment_looks_at_the_path_although_the_clock_stands_still() {
    let setup = Setup::new();
    let (store, path) = (&setup.store, setup.path());
    WAYS[0].1(setup.directory.path());
    // Five of these fill a segment; the sixth is the first in the next one, and not acknowledged.
    let refused =
        (0..20).find(|number| is_replaced(&store.record(&format!("{number}"), NONE, &[1; 12_000]), &path));
    assert_eq!(refused, Some(5));
    assert!(is_replaced(&store.begin("after it", NONE), &path));

    // A begin that is the first in a segment gives no lease.
    let setup = Setup::new();
    let (store, path) = (&setup.store, setup.path());
    WAYS[0].1(setup.directory.path());
    for number in 0..5 {
        store.record(&format!("{number}"), NONE, &[1; 12_000]).unwrap();
    }
    let refused = (0..100).find(|number| is_replaced(&store.begin(&format!("b-{number}"), NONE), &path));
    assert!(refused.is_some());
    assert_eq!(store.stats().leases, 0, "every other one was dropped");
}

#[test]
fn a_path_that_leads_to_the_same_file_is_no_other() {
    let setup = Setup::new();
    let (store, directory) = (&setup.store, setup.directory.path());
    let goes_on = |what: &str| {
        setup.clock.advance(seconds(1));
        store.record(what, NONE, b"").unwrap_or_else(|error| panic!("{what}: {error}"));
        store.sync().unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    let file = directory.join("sub/store.once");
    fs::hard_link(&file, directory.join("hard")).unwrap();
    goes_on("another name beside it");
    fs::rename(&file, directory.join("away")).unwrap();
    fs::rename(directory.join("away"), &file).unwrap();
    goes_on("away and back again, unseen");
    fs::rename(&file, directory.join("away")).unwrap();
    symlink(directory.join("away"), &file).unwrap();
    goes_on("a link in its place");
    // The system cannot say what the path leads to: that it is another file is not known.
    fs::rename(directory.join("sub"), directory.join("moved")).unwrap();
    symlink("sub", directory.join("sub")).unwrap();
    goes_on("a circle of links");
    fs::remove_file(directory.join("sub")).unwrap();
    fs::rename(directory.join("moved"), directory.join("sub")).unwrap();
    store.close().unwrap();
}

#[test]
fn a_path_that_was_another_for_a_moment_is_not_trusted_again() {
    let setup = Setup::new();
    let store = &setup.store;
    let (file, away) = (setup.directory.path().join("sub/store.once"), setup.directory.path().join("away"));
    fs::rename(&file, &away).unwrap();
    assert!(is_replaced(&store.sync(), &setup.path()));
    fs::rename(&away, &file).unwrap();
    setup.clock.advance(seconds(10));
    assert!(is_replaced(&store.begin("new", NONE), &setup.path()), "another process may have been there");
    assert!(is_replaced(&store.close(), &setup.path()));
    clocked(&setup.clock).open(setup.path()).unwrap().record("new", NONE, b"").unwrap();
}
