//! Proves how the store behaves under the limits of a process: on the size of files, on memory, and on the number of
//! threads.
//!
//! Each test runs this program again as a child under a limit. Where a limit cannot be set, the test prints that it is
//! skipped and why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{NONE, Place, SEGMENT, acquire, skipped, small};
use oncekey::{Begin, Durability, Error, Lease, Store};

/// The environment variables that tell a child what to do, and with which file.
const ROLE: &str = "ONCEKEY_LIMITS_ROLE";
const PATH: &str = "ONCEKEY_LIMITS_PATH";

/// Does nothing unless a test below starts it.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    match &*role {
        "list" => println!("played: {}", small().open(&path).unwrap().stats().keys),
        "open" => match small().open(&path) {
            Ok(_) => println!("played: opened"),
            Err(error) => println!("played: {error}"),
        },
        "open with a min_size" => match small().min_size(1 << 20).open(&path) {
            Ok(_) => println!("played: opened"),
            Err(error) => println!("played: {error}"),
        },
        "fill" => {
            let store = small().open(&path).unwrap();
            println!("played: {}", begin_until_full_and_complete(&store));
        }
        "fill under a limit that is set later" => {
            let store = small().open(&path).unwrap();
            drop(acquire(&store, "first"));
            set_file_size_limit(512 << 10);
            println!("played: {}", begin_until_full_and_complete(&store));
        }
        other => panic!("no such role: {other}"),
    }
}

/// Runs this program as a child that plays `role`, after `preparation` in a shell. Kills a child that hangs.
fn play(preparation: &str, role: &str, path: &Path) -> Output {
    let child = Command::new("sh")
        .arg("-c")
        .arg(format!("{preparation} || exit 99; exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .envs([(ROLE, role.as_ref()), (PATH, path.as_os_str())])
        // Out of memory, the standard library can deadlock while it prints a backtrace.
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (ended, has_ended) = mpsc::channel::<()>();
    let killer = thread::spawn(move || {
        if has_ended.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    killer.join().unwrap();
    output
}

/// The line that the child printed. It must have ended by itself.
fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "ended by a signal or a panic: {output:?}");
    text.lines().find_map(|line| line.split_once("played: ")).unwrap().1.to_owned()
}

/// Begins operations until there is no room for another, then completes all of them. Returns the text of `Error::Full`.
fn begin_until_full_and_complete(store: &Store) -> String {
    let mut leases: Vec<Lease> = Vec::new();
    let reason = loop {
        let key = format!("key {}", leases.len());
        match store.begin(&key, NONE) {
            Ok(Begin::Acquired(lease)) => leases.push(lease),
            Ok(other) => panic!("{other:?}"),
            Err(error @ Error::Full { .. }) => break error.to_string(),
            Err(error) => panic!("{error}"),
        }
    };
    let count = leases.len();
    for mut lease in leases {
        lease.complete(&[7; 1_000]).unwrap();
    }
    for number in 0..count {
        assert_eq!(store.get(&format!("key {number}")).unwrap().result(), Some(&[7; 1_000][..]));
    }
    reason
}

/// Sets the limit on the size of files, as another process could by `prlimit`.
fn set_file_size_limit(bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: None }).unwrap();
}

/// A store whose file is long enough to be read by several threads.
fn long_store() -> Place {
    let place = Place::new();
    let store = small().durability(Durability::Buffered).open(&place.path).unwrap();
    for number in 0..KEYS {
        store.record(&format!("key {number}"), NONE, &[7; 8_000]).unwrap();
    }
    store.close().unwrap();
    assert!(place.length() > 17 << 20);
    place
}

/// The number of keys of [`long_store`].
const KEYS: usize = 2_400;

/// Whether the store opens under this limit on address space. If not, an allocation failed, and Rust ended the process.
fn opens_with(limit_kib: u64, preparation: &str, path: &Path) -> bool {
    let output = play(&format!("{preparation}ulimit -v {limit_kib}"), "list", path);
    let listed = String::from_utf8_lossy(&output.stdout).contains(&format!("played: {KEYS}"));
    assert_eq!(listed, output.status.success(), "at {limit_kib} KiB: {output:?}");
    listed
}

#[test]
fn more_threads_need_no_more_memory_for_an_opening_than_one() {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        skipped("with one processor no other thread is started");
        return;
    }
    let has_taskset = Command::new("taskset").args(["-c", "0", "true"]).status();
    if !has_taskset.is_ok_and(|status| status.success()) {
        skipped("there is no taskset, or no processor 0");
        return;
    }
    let place = long_store();
    // The least that one thread needs, by bisection between a limit that never suffices and one that does.
    let alone = "taskset -cp 0 $$ >/dev/null && ";
    let (mut too_little, mut enough) = (1_000, 1 << 20);
    assert!(opens_with(enough, alone, &place.path));
    while enough - too_little > 50 {
        let middle = (too_little + enough) / 2;
        if opens_with(middle, alone, &place.path) { enough = middle } else { too_little = middle }
    }
    // From there on, every limit that suffices for one thread must suffice for several, also one that allows another
    // thread to start and then leaves it no memory. (A higher limit does not always suffice: it may allow the map of
    // the file, which then leaves no memory for anything else.)
    let some = (0..40).map(|step| enough + step * 100);
    let more = (1..12).map(|step| enough + step * 24_000);
    let mut compared = 0;
    for limit in some.chain(more).filter(|limit| opens_with(*limit, alone, &place.path)) {
        assert!(
            opens_with(limit, "", &place.path),
            "{limit} KiB suffice for one thread, but not for several"
        );
        compared += 1;
    }
    assert!(compared > 20, "the test must compare more than {compared} limits");
}

#[test]
fn a_store_opens_where_no_other_thread_can_start() {
    let place = long_store();
    let shim = place.path.with_extension("so");
    let source = "int pthread_create(void *t, void *a, void *f, void *x) { return 11; }";
    let compiled = Command::new("sh")
        .arg("-c")
        .arg(format!("printf '%s' '{source}' | cc -shared -fPIC -x c - -o \"$0\""))
        .arg(&shim)
        .output()
        .unwrap();
    if !compiled.status.success() {
        skipped(format_args!("there is no C compiler: {compiled:?}"));
        return;
    }
    let output = play(&format!("export LD_PRELOAD={}", shim.display()), "list", &place.path);
    assert_eq!(printed(&output), KEYS.to_string());
}

/// The shell command that limits the size of files, which POSIX counts in 512 bytes.
fn file_size_limit(bytes: u64) -> String {
    format!("ulimit -f {}", bytes / 512)
}

#[test]
fn a_file_size_limit_refuses_begins_and_fails_no_completion() {
    let limit = 512 << 10;
    for (preparation, role) in
        [(file_size_limit(limit), "fill"), (String::from("true"), "fill under a limit that is set later")]
    {
        let place = Place::new();
        let reason = printed(&play(&preparation, role, &place.path));
        assert!(reason.contains("RLIMIT_FSIZE") && reason.contains(&limit.to_string()), "{role}: {reason}");
        assert!(reason.contains("can still be ended"), "{role}: {reason}");
        assert!(place.length() <= limit, "{role}: {}", place.length());
        assert!(
            place.length() > limit - 2 * SEGMENT,
            "{role}: the store used less than it may: {}",
            place.length()
        );
        place.open();
    }
}

#[test]
fn a_limit_below_one_segment_refuses_the_creation() {
    let limit = SEGMENT;
    let place = Place::new();
    let refusal = printed(&play(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(!place.path.exists());
    assert_eq!(printed(&play(&file_size_limit(limit + 4_096), "open", &place.path)), "opened");
}

#[test]
fn a_file_longer_than_the_limit_is_refused_unchanged() {
    let place = Place::new();
    small().min_size(1 << 20).open(&place.path).unwrap().record("key", NONE, b"result").unwrap();
    let before = place.bytes();
    let limit = 512 << 10;
    let refusal = printed(&play(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(place.bytes() == before, "the refused file was changed");
    assert_eq!(printed(&play(&file_size_limit(place.length()), "list", &place.path)), "1");
}

#[test]
fn a_min_size_beyond_the_limit_is_refused_and_adds_nothing() {
    let place = Place::new();
    place.open().record("key", NONE, b"result").unwrap();
    let before = place.length();
    let limit = 512 << 10;
    let refusal = printed(&play(&file_size_limit(limit), "open with a min_size", &place.path));
    assert!(refusal.contains("min_size") && refusal.contains("RLIMIT_FSIZE"), "{refusal}");
    assert_eq!(place.length(), before);
}
