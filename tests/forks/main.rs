//! Checks that after a fork the child can neither change an open store nor hang in it, and that the parent is not affected.
//!
//! A fork needs unsafe code, which the tests do not use. So each test runs this program again with a small preloaded C
//! library (`shim.c`), in which `getppid` forks. Without a C compiler the tests print that they are skipped.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{NONE, START_MS, abandon, acquire, small};
use oncekey::{Begin, Doubt, Expected, Key, Lease, ManualClock, Next, Outcome, Store};

const SCENARIO: &str = "ONCEKEY_FORKS_SCENARIO";
const DIRECTORY: &str = "ONCEKEY_FORKS_DIRECTORY";
const OLD_KERNEL: &str = "ONCEKEY_FORKS_OLD_KERNEL";

// The outer program, which starts an inner one for each scenario.

/// Compiles the shim. Returns `None`, after printing the reason, if there is no C compiler.
fn shim(directory: &Path) -> Option<PathBuf> {
    let library = directory.join("shim.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/forks/shim.c");
    let compiled = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    match compiled {
        Ok(status) => {
            assert!(status.success(), "{source} does not compile");
            Some(library)
        }
        Err(error) => {
            println!("skipped: gcc cannot be started ({error}), and the tests need it to fork");
            None
        }
    }
}

/// Runs a scenario in its own process, once for each way in which the library detects a fork. Kills a process that does not
/// end, together with its children.
fn run(scenario: &str) {
    /// Far longer than any scenario takes, so that only a process that hangs exceeds it.
    const HANG_TIMEOUT: Duration = Duration::from_secs(120);
    let directory = tempfile::tempdir().unwrap();
    let Some(library) = shim(directory.path()) else { return };
    for old_kernel in [false, true] {
        let place = directory.path().join(if old_kernel { "old" } else { "new" });
        std::fs::create_dir(&place).unwrap();
        let log = place.join("log");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "inner", "--nocapture"])
            .env(SCENARIO, scenario)
            .env(DIRECTORY, &place)
            .env("LD_PRELOAD", &library)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        if old_kernel {
            command.env(OLD_KERNEL, "1");
        }
        let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap();
        let began = Instant::now();
        let ended: Option<ExitStatus> = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if began.elapsed() > HANG_TIMEOUT => break None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if ended.is_none() {
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = child.wait();
        }
        let printed = std::fs::read_to_string(log).unwrap();
        assert!(
            ended.is_some_and(|status| status.success()),
            "{scenario}, old kernel {old_kernel}: {}{printed}",
            if ended.is_some() { "" } else { "the process hangs; " }
        );
    }
}

#[test]
fn every_call_in_a_forked_child_fails_without_hanging() {
    run("calls");
}

#[test]
fn a_store_in_memory_fails_in_a_forked_child_too() {
    run("memory");
}

#[test]
fn after_a_fork_in_a_side_effect_only_the_parent_records() {
    run("side effect");
}

#[test]
fn a_living_child_does_not_keep_the_file_locked() {
    run("living child");
}

#[test]
fn drops_in_a_child_change_neither_the_lock_nor_the_file() {
    run("drops");
}

#[test]
fn a_forked_child_and_its_parent_mint_different_keys() {
    run("mint");
}

// The inner program, which runs one scenario.

#[test]
fn inner() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let directory = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    match scenario.as_str() {
        "calls" => calls(&directory),
        "memory" => memory(&directory),
        "side effect" => side_effect(&directory),
        "living child" => living_child(&directory),
        "drops" => drops(&directory),
        "mint" => mint(),
        other => panic!("{other}"),
    }
}

/// The process in which this code runs after a fork, with its end of a pipe from the child to the parent.
enum Side {
    Child(PipeWriter),
    Parent(PipeReader),
}

fn fork() -> Side {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = std::os::unix::process::parent_id();
    if child == 0 { Side::Child(writer) } else { Side::Parent(reader) }
}

/// Waits until the child ends, and returns what it wrote.
fn read_report(mut reader: PipeReader) -> String {
    let mut report = String::new();
    reader.read_to_string(&mut report).unwrap();
    report
}

/// Writes a report to the parent and ends the child.
fn end(mut writer: PipeWriter, report: &str) -> ! {
    writer.write_all(report.as_bytes()).unwrap();
    drop(writer);
    std::process::exit(0)
}

/// Threads that keep using the store, so that some of its locks are held whenever the process forks.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(store: &Store) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..4)
            .map(|number| {
                let (store, stop) = (store.clone(), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut recorded = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("{number}-{}", recorded.len());
                        store.operation(&key).run(|_| Ok::<_, String>(key.clone())).unwrap();
                        assert!(store.get(&key).unwrap().is_completed());
                        if recorded.len() % 50 == 49 && number == 0 {
                            store.compact().unwrap();
                        }
                        assert!(store.stats().keys > 0);
                        recorded.push(key);
                    }
                    recorded
                })
            })
            .collect();
        Load { stop, threads }
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

fn doubt(store: &Store, key: &str) -> Doubt {
    abandon(store, key);
    match store.begin(key, NONE).unwrap() {
        Begin::InDoubt(doubt) => doubt,
        other => panic!("{other:?}"),
    }
}

/// The store, leases and doubts that are held across a fork.
struct Held {
    store: Store,
    lease: Lease,
    released: Lease,
    completed: Lease,
    doubts: [Doubt; 3],
}

impl Held {
    fn new(store: Store) -> Held {
        store.record("done", NONE, b"done").unwrap();
        let (lease, released) = (acquire(&store, "lease"), acquire(&store, "released"));
        let mut completed = acquire(&store, "completed");
        completed.complete(b"r").unwrap();
        let doubts = ["a", "b", "c"].map(|name| doubt(&store, &format!("doubt-{name}")));
        Held { store, lease, released, completed, doubts }
    }

    /// Makes every call in the child. Then ends the child, with a report of the calls that did not fail with `Forked`.
    fn in_child(self, child_path: &Path, writer: PipeWriter) -> ! {
        let Held { store, mut lease, released, mut completed, doubts } = self;
        let mut accepted = Vec::new();
        let mut note = |call: &str, outcome: String| {
            if !outcome.contains("Forked") {
                accepted.push(format!("{call}: {outcome}"));
            }
        };
        let next = Next::Completed { fingerprint: NONE, result: b"" };
        note("begin", format!("{:?}", store.begin("new", NONE)));
        note("begin, done", format!("{:?}", store.begin("done", NONE)));
        note("record", format!("{:?}", store.record("new", NONE, b"")));
        note("get", format!("{:?}", store.get("done")));
        note("replay_into", format!("{:?}", store.replay_into("done", NONE, &mut Vec::new())));
        note("compare_and_set", format!("{:?}", store.compare_and_set("new", Expected::Absent, next)));
        note("forget", format!("{:?}", store.forget("done")));
        note("sync", format!("{:?}", store.sync()));
        note("compact", format!("{:?}", store.compact()));
        note("close", format!("{:?}", store.close()));
        note("operation.begin", format!("{:?}", store.operation("new").begin()));
        note("operation.record", format!("{:?}", store.operation("new").record(b"")));
        let ran = store.operation("new").run(|_| Ok::<_, String>(7));
        note("run", format!("{ran:?}"));
        let ran = store.operation("lease").wait(Duration::MAX).rerun();
        note("rerun", format!("{:?}", ran.run(|_| Ok::<_, String>(7))));
        note("a wrong option", format!("{:?}", store.operation("new").retain(Duration::ZERO).begin()));
        note("no key", format!("{:?}", store.get("")));
        note("lease.renew", format!("{:?}", lease.renew(Duration::MAX)));
        note("lease.renew, a wrong option", format!("{:?}", lease.renew(Duration::ZERO)));
        note("lease.retain", format!("{:?}", lease.retain(Duration::MAX)));
        if lease.is_current() {
            note("lease.is_current", "true".to_owned());
        }
        note("lease.complete", format!("{:?}", lease.complete(b"child")));
        note("completed again", format!("{:?}", completed.complete(b"r")));
        note("lease.release", format!("{:?}", released.release()));
        let [mut first, second, third] = doubts;
        note("doubt.complete", format!("{:?}", first.complete(b"child")));
        note("doubt.release", format!("{:?}", second.release()));
        note("doubt.begin_again", format!("{:?}", third.begin_again()));
        // These calls cannot return an error, but they must not hang.
        let infallible =
            (store.stats(), store.path(), store.fingerprint(b"x"), format!("{store:?}{lease:?}"));
        assert!(!format!("{infallible:?}").is_empty());
        drop((lease, completed, store));
        // The child may use a store that it opens itself.
        let store = small().open(child_path).unwrap();
        store.operation(&store.stats().keys.to_string()).record(b"").unwrap();
        store.close().unwrap();
        end(writer, &accepted.join("\n"))
    }

    /// Ends everything that is held, in the parent, as if it had not forked.
    fn in_parent(self) -> Store {
        let Held { store, mut lease, released, completed, doubts } = self;
        lease.complete(b"parent").unwrap();
        released.release().unwrap();
        let [mut first, second, third] = doubts;
        first.complete(b"parent").unwrap();
        second.release().unwrap();
        third.begin_again().unwrap().complete(b"parent").unwrap();
        drop(completed);
        assert_eq!(store.get("lease").unwrap().result(), Some(&b"parent"[..]));
        assert!(store.get("new").unwrap().is_absent());
        store
    }
}

/// Forks repeatedly while other threads of the parent are using the store, and makes every call in each child.
fn call_everything(store: Store, directory: &Path) -> Store {
    let held = Held::new(store);
    let load = Load::start(&held.store);
    while held.store.stats().keys < 40 {
        thread::yield_now();
    }
    for round in 0..10 {
        match fork() {
            Side::Child(writer) => held.in_child(&directory.join(format!("child-{round}.once")), writer),
            Side::Parent(reader) => {
                let accepted = read_report(reader);
                assert!(accepted.is_empty(), "not refused in child {round}:\n{accepted}");
            }
        }
    }
    let recorded = load.stop();
    let store = held.in_parent();
    for key in recorded {
        let seen = store.get(&key).unwrap();
        assert!(seen.is_completed() && seen.attempt() == 1, "{key}: {seen:?}");
    }
    store
}

fn calls(directory: &Path) {
    for round in 0..4 {
        let path = directory.join(format!("{round}.once"));
        let store = call_everything(small().open(&path).unwrap(), directory);
        let keys = store.stats().keys;
        store.close().unwrap();
        drop(store);
        let store = small().open(&path).unwrap();
        assert_eq!(store.stats().keys, keys);
        assert_eq!(store.get("doubt-c").unwrap().result(), Some(&b"parent"[..]));
        assert_eq!(store.get("done").unwrap().attempt(), 1);
    }
}

fn memory(directory: &Path) {
    for _ in 0..2 {
        call_everything(small().open_in_memory().unwrap(), directory);
        // A manual clock has a lock of its own.
        let clock = ManualClock::new(START_MS);
        call_everything(small().manual_clock(clock).open_in_memory().unwrap(), directory);
    }
}

fn side_effect(directory: &Path) {
    let path = directory.join("store.once");
    let store = small().open(&path).unwrap();
    let mut side = None;
    let outcome = store.operation("charge").run(|_| {
        let forked = fork();
        let who = if matches!(forked, Side::Child(_)) { "child" } else { "parent" };
        side = Some(forked);
        Ok::<_, String>(who.to_owned())
    });
    match side.unwrap() {
        Side::Child(writer) => end(writer, &format!("{outcome:?}")),
        Side::Parent(reader) => {
            let report = read_report(reader);
            assert!(report.contains("Unrecorded") && report.contains("Forked"), "the child: {report}");
        }
    }
    assert_eq!(outcome.unwrap(), Outcome::Done("parent".to_owned()));
    store.close().unwrap();
    drop(store);
    let store = small().open(&path).unwrap();
    let again = store.operation("charge").run(|_| Ok::<_, String>("again".to_owned()));
    assert_eq!(again.unwrap(), Outcome::AlreadyDone("parent".to_owned()));
}

/// Forks a child that does nothing until the parent drops the returned writer.
fn sleeping_child() -> (PipeWriter, PipeReader) {
    let (mut asleep, held) = std::io::pipe().unwrap();
    match fork() {
        Side::Child(writer) => {
            drop(held);
            let _ = asleep.read(&mut [0]);
            end(writer, "woke up");
        }
        Side::Parent(reader) => (held, reader),
    }
}

fn living_child(directory: &Path) {
    let path = directory.join("store.once");
    for ends_with_close in [true, false] {
        let store = small().open(&path).unwrap();
        store.record("k", NONE, b"r").unwrap();
        let lease = acquire(&store, &format!("{ends_with_close}"));
        let (held, reader) = sleeping_child();
        drop(lease);
        if ends_with_close {
            store.close().unwrap();
        }
        drop(store);
        let other = small().open(&path);
        let other =
            other.unwrap_or_else(|error| panic!("the file does not open while the child is alive: {error}"));
        assert_eq!(other.get("k").unwrap().result(), Some(&b"r"[..]));
        drop(held);
        assert_eq!(read_report(reader), "woke up");
        other.record(&format!("after {ends_with_close}"), NONE, b"").unwrap();
        other.clone().close().unwrap();
    }
}

fn drops(directory: &Path) {
    let path = directory.join("store.once");
    let store = small().open(&path).unwrap();
    store.record("k", NONE, b"r").unwrap();
    let lease = acquire(&store, "lease");
    let before = std::fs::read(&path).unwrap();
    match fork() {
        Side::Child(writer) => {
            drop(lease);
            drop(store);
            end(writer, "dropped");
        }
        Side::Parent(reader) => assert_eq!(read_report(reader), "dropped"),
    }
    assert!(std::fs::read(&path).unwrap() == before, "the child wrote to the file");
    let second = small().open(&path).unwrap_err();
    assert!(matches!(second, oncekey::Error::Locked { .. }), "the child released the lock: {second}");
    drop(lease);
    drop(store);
    let store = small().open(&path).unwrap();
    assert_eq!(store.get("lease").unwrap().status(), oncekey::Status::InDoubt);
}

fn mint() {
    let keys = || (0..100).map(|_| Key::mint().unwrap()).collect::<Vec<_>>();
    let before = keys();
    match fork() {
        Side::Child(writer) => end(writer, &keys().join("\n")),
        Side::Parent(reader) => {
            let after = keys();
            let in_child = read_report(reader);
            let all = before.iter().chain(&after).map(String::as_str).chain(in_child.lines());
            let distinct: BTreeSet<&str> = all.collect();
            assert_eq!(distinct.len(), 300, "a key was minted twice");
        }
    }
}
