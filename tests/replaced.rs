//! Checks what an open store does when its path is removed, renamed or replaced. Another process that opens the path gets a
//! different file, so nothing may begin in this store any more, and calls that end an operation must report it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{NONE, START_MS, abandon, acquire, clocked, seconds};
use oncekey::{Begin, Error, Expected, ManualClock, Next, Result, RunError, Status, Store};

/// The name of a way to replace the path of an open store, and a function that does so. The function gets the directory that
/// contains `link`, through which the store was opened, and the file `sub/store.once`, to which `link` leads.
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
    ("the link leads to another file", |directory| {
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
    let text = format!("{outcome:?}");
    text.contains("Replaced") && text.contains(path.to_str().unwrap())
}

#[test]
fn a_replaced_path_stops_new_operations_but_not_reads() {
    for (way, replace_path) in WAYS {
        let setup = Setup::new();
        let (store, path) = (&setup.store, setup.path());
        store.record("done", NONE, b"r").unwrap();
        abandon(store, "doubt");
        let doubt = match store.begin("doubt", NONE).unwrap() {
            Begin::InDoubt(doubt) => doubt,
            other => panic!("{other:?}"),
        };
        replace_path(setup.directory.path());
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
fn calls_that_end_an_operation_report_a_replaced_path() {
    for (way, replace_path) in WAYS {
        let setup = Setup::new();
        let (store, path) = (&setup.store, setup.path());
        let (mut lease, released) = (acquire(store, "lease"), acquire(store, "released"));
        abandon(store, "doubt");
        let mut doubt = match store.begin("doubt", NONE).unwrap() {
            Begin::InDoubt(doubt) => doubt,
            other => panic!("{other:?}"),
        };
        let outcome = store.operation("run").run(|_| {
            replace_path(setup.directory.path());
            setup.clock.advance(seconds(1));
            assert!(is_replaced(&store.begin("new", NONE), &path), "{way}");
            Ok::<_, String>(17)
        });
        let is_reported = matches!(&outcome, Err(RunError::Unrecorded { result, source: Error::Replaced { .. }, .. }) if **result == 17);
        assert!(is_reported, "{way}: {outcome:?}");

        for _ in 0..2 {
            assert!(is_replaced(&lease.complete(b"r"), &path), "{way}: a repeated completion");
        }
        assert!(matches!(lease.complete(b"other"), Err(Error::Conflict { .. })), "{way}");
        assert!(is_replaced(&released.release(), &path), "{way}");
        assert!(is_replaced(&doubt.complete(b"found"), &path), "{way}");
        assert!(store.get("run").unwrap().is_completed(), "{way}");
        assert_eq!(store.get("lease").unwrap().result(), Some(&b"r"[..]), "{way}");
        assert_eq!(store.get("released").unwrap().status(), Status::Absent, "{way}");
        assert_eq!(store.get("doubt").unwrap().result(), Some(&b"found"[..]), "{way}");
    }
}

#[test]
fn sync_compact_and_close_check_the_path_at_once() {
    for (way, replace_path) in WAYS {
        let calls: [fn(&Store) -> Result<()>; 2] = [Store::sync, |store| store.compact().map(drop)];
        for call in calls {
            let setup = Setup::new();
            replace_path(setup.directory.path());
            assert!(is_replaced(&call(&setup.store), &setup.path()), "{way}");
            assert!(
                is_replaced(&setup.store.begin("new", NONE), &setup.path()),
                "{way}: a later begin did not report what the call found"
            );
        }
        let setup = Setup::new();
        let clone = setup.store.clone();
        setup.store.record("k", NONE, b"r").unwrap();
        replace_path(setup.directory.path());
        assert!(is_replaced(&clone.close(), &setup.path()), "{way}");
        assert!(matches!(setup.store.get("k"), Err(Error::Closed)), "{way}: the store is not closed");
    }
}

#[test]
fn a_new_segment_checks_the_path_immediately() {
    let setup = Setup::new();
    let (store, path) = (&setup.store, setup.path());
    WAYS[0].1(setup.directory.path());
    // Five of these records fill a segment. The sixth would be the first in a new segment, and is not acknowledged.
    let refused =
        (0..20).find(|number| is_replaced(&store.record(&format!("{number}"), NONE, &[1; 12_000]), &path));
    assert_eq!(refused, Some(5));
    assert!(is_replaced(&store.begin("after it", NONE), &path));

    // A begin that would be the first record in a new segment returns no lease.
    let setup = Setup::new();
    let (store, path) = (&setup.store, setup.path());
    WAYS[0].1(setup.directory.path());
    for number in 0..5 {
        store.record(&format!("{number}"), NONE, &[1; 12_000]).unwrap();
    }
    let refused = (0..100).find(|number| is_replaced(&store.begin(&format!("b-{number}"), NONE), &path));
    assert!(refused.is_some());
    assert_eq!(store.stats().leases, 0, "the refused begin left a lease");
}

#[test]
fn a_path_that_still_leads_to_the_file_is_accepted() {
    let setup = Setup::new();
    let (store, directory) = (&setup.store, setup.directory.path());
    let assert_accepted = |what: &str| {
        setup.clock.advance(seconds(1));
        store.record(what, NONE, b"").unwrap_or_else(|error| panic!("{what}: {error}"));
        store.sync().unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    let file = directory.join("sub/store.once");
    fs::hard_link(&file, directory.join("hard")).unwrap();
    assert_accepted("a second hard link to the file");
    fs::rename(&file, directory.join("away")).unwrap();
    fs::rename(directory.join("away"), &file).unwrap();
    assert_accepted("renamed and renamed back between two checks");
    fs::rename(&file, directory.join("away")).unwrap();
    symlink(directory.join("away"), &file).unwrap();
    assert_accepted("a symbolic link in place of the file");
    // The system cannot resolve the path, but that does not prove that the path leads to another file.
    fs::rename(directory.join("sub"), directory.join("moved")).unwrap();
    symlink("sub", directory.join("sub")).unwrap();
    assert_accepted("a cycle of symbolic links");
    fs::remove_file(directory.join("sub")).unwrap();
    fs::rename(directory.join("moved"), directory.join("sub")).unwrap();
    store.close().unwrap();
}

#[test]
fn a_store_never_trusts_a_replaced_path_again() {
    let setup = Setup::new();
    let store = &setup.store;
    let (file, away) = (setup.directory.path().join("sub/store.once"), setup.directory.path().join("away"));
    fs::rename(&file, &away).unwrap();
    assert!(is_replaced(&store.sync(), &setup.path()));
    fs::rename(&away, &file).unwrap();
    setup.clock.advance(seconds(10));
    assert!(
        is_replaced(&store.begin("new", NONE), &setup.path()),
        "an operation began although another process may have used the path"
    );
    assert!(is_replaced(&store.close(), &setup.path()));
    clocked(&setup.clock).open(setup.path()).unwrap().record("new", NONE, b"").unwrap();
}
