//! Checks how a store behaves under the limits of a process: on the size of files, on memory, and on the number of threads.
//!
//! Each test runs this program again as a child under a limit. If the limit cannot be set, the test prints the reason and is
//! skipped.
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

/// The environment variable with the role of a child.
const ROLE: &str = "ONCEKEY_LIMITS_ROLE";
/// The environment variable with the path of the file that a child opens.
const PATH: &str = "ONCEKEY_LIMITS_PATH";

/// The child process. Does nothing unless one of the tests below starts it.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    match &*role {
        "list" => println!("outcome: {}", small().open(&path).unwrap().stats().keys),
        "open" => match small().open(&path) {
            Ok(_) => println!("outcome: opened"),
            Err(error) => println!("outcome: {error}"),
        },
        "open with a min_size" => match small().min_size(1 << 20).open(&path) {
            Ok(_) => println!("outcome: opened"),
            Err(error) => println!("outcome: {error}"),
        },
        "fill" => {
            let store = small().open(&path).unwrap();
            println!("outcome: {}", begin_until_full_and_complete(&store));
        }
        "fill under a limit that is set later" => {
            let store = small().open(&path).unwrap();
            drop(acquire(&store, "first"));
            set_file_size_limit(512 << 10);
            println!("outcome: {}", begin_until_full_and_complete(&store));
        }
        other => panic!("no such role: {other}"),
    }
}

/// Runs this program as a child with this role, after `preparation` in a shell. Kills a child that hangs.
fn run_child(preparation: &str, role: &str, path: &Path) -> Output {
    let child = Command::new("sh")
        .arg("-c")
        .arg(format!("{preparation} || exit 99; exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .envs([(ROLE, role.as_ref()), (PATH, path.as_os_str())])
        // When memory is exhausted, the standard library can deadlock while printing a backtrace.
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel::<()>();
    let killer = thread::spawn(move || {
        if receiver.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(sender);
    killer.join().unwrap();
    output
}

/// Returns the outcome that the child printed. The child must have ended successfully.
fn outcome(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "the child ended by a signal or a panic: {output:?}");
    text.lines().find_map(|line| line.split_once("outcome: ")).unwrap().1.to_owned()
}

/// Begins operations until there is no space for another, then completes all of them. Returns the text of `Error::Full`.
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

/// Sets the limit on the size of files, as a different process could with `prlimit`.
fn set_file_size_limit(bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: None }).unwrap();
}

/// Creates a store whose file is so long that several threads read it when it is opened.
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

/// Whether the store opens under this limit on address space. If it does not, an allocation failed, and Rust aborted the
/// process.
fn opens_with(limit_kib: u64, preparation: &str, path: &Path) -> bool {
    let output = run_child(&format!("{preparation}ulimit -v {limit_kib}"), "list", path);
    let listed = String::from_utf8_lossy(&output.stdout).contains(&format!("outcome: {KEYS}"));
    assert_eq!(listed, output.status.success(), "at {limit_kib} KiB: {output:?}");
    listed
}

#[test]
fn opening_with_several_threads_needs_no_more_memory() {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        skipped("with one processor, a store is opened by one thread");
        return;
    }
    let has_taskset = Command::new("taskset").args(["-c", "0", "true"]).status();
    if !has_taskset.is_ok_and(|status| status.success()) {
        skipped("there is no taskset, or no processor 0");
        return;
    }
    let place = long_store();
    // Finds the smallest limit that suffices for one thread, by bisection.
    let one_thread = "taskset -cp 0 $$ >/dev/null && ";
    let (mut too_little, mut enough) = (1_000, 1 << 20);
    assert!(opens_with(enough, one_thread, &place.path));
    while enough - too_little > 50 {
        let middle = (too_little + enough) / 2;
        if opens_with(middle, one_thread, &place.path) { enough = middle } else { too_little = middle }
    }
    // Every higher limit that suffices for one thread must suffice for several. This includes a limit under which another
    // thread can start but has no memory left. Not every higher limit suffices for one thread: it may allow the memory map
    // of the file, and then leave no memory for anything else.
    let small_steps = (0..40).map(|step| enough + step * 100);
    let large_steps = (1..12).map(|step| enough + step * 24_000);
    let mut compared = 0;
    for limit in small_steps.chain(large_steps).filter(|limit| opens_with(*limit, one_thread, &place.path)) {
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
    let output = run_child(&format!("export LD_PRELOAD={}", shim.display()), "list", &place.path);
    assert_eq!(outcome(&output), KEYS.to_string());
}

/// Returns the shell command that limits the size of files, which POSIX counts in blocks of 512 bytes.
fn file_size_limit(bytes: u64) -> String {
    format!("ulimit -f {}", bytes / 512)
}

#[test]
fn a_file_size_limit_refuses_begins_but_no_completion() {
    let limit = 512 << 10;
    for (preparation, role) in
        [(file_size_limit(limit), "fill"), (String::from("true"), "fill under a limit that is set later")]
    {
        let place = Place::new();
        let reason = outcome(&run_child(&preparation, role, &place.path));
        assert!(reason.contains("RLIMIT_FSIZE") && reason.contains(&limit.to_string()), "{role}: {reason}");
        assert!(reason.contains("can still be completed"), "{role}: {reason}");
        assert!(place.length() <= limit, "{role}: {}", place.length());
        assert!(
            place.length() > limit - 2 * SEGMENT,
            "{role}: the store could use more of the limit: {}",
            place.length()
        );
        place.open();
    }
}

#[test]
fn a_limit_below_one_segment_refuses_the_creation() {
    let limit = SEGMENT;
    let place = Place::new();
    let refusal = outcome(&run_child(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(!place.path.exists());
    assert_eq!(outcome(&run_child(&file_size_limit(limit + 4_096), "open", &place.path)), "opened");
}

#[test]
fn a_file_longer_than_the_limit_is_refused_unchanged() {
    let place = Place::new();
    small().min_size(1 << 20).open(&place.path).unwrap().record("key", NONE, b"result").unwrap();
    let before = place.bytes();
    let limit = 512 << 10;
    let refusal = outcome(&run_child(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(place.bytes() == before, "the refused file was changed");
    assert_eq!(outcome(&run_child(&file_size_limit(place.length()), "list", &place.path)), "1");
}

#[test]
fn a_min_size_beyond_the_limit_is_refused_unchanged() {
    let place = Place::new();
    place.open().record("key", NONE, b"result").unwrap();
    let before = place.length();
    let limit = 512 << 10;
    let refusal = outcome(&run_child(&file_size_limit(limit), "open with a min_size", &place.path));
    assert!(refusal.contains("min_size") && refusal.contains("RLIMIT_FSIZE"), "{refusal}");
    assert_eq!(place.length(), before);
}
