//! Limits that the operating system sets to a process: the size of its files, and the memory and threads that it may have.
//!
//! Each test runs this program again as a child under a limit. Where a limit cannot be set, the test prints that it is
//! skipped and why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{NONE, Place, SEGMENT, acquire, small};
use oncekey::{Begin, Error, Lease, Store};

/// Tells the test binary what to do as a child, and with what file.
const ROLE: &str = "ONCEKEY_LIMITS_ROLE";
const PATH: &str = "ONCEKEY_LIMITS_PATH";

/// Does nothing unless a test below starts it.
#[test]
fn a_child_plays_the_role_that_it_is_told() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    match &*role {
        "list" => println!("played: {}", small().open(&path).unwrap().stats().keys),
        "open" => match small().open(&path) {
            Ok(_) => println!("played: opened"),
            Err(error) => println!("played: {error}"),
        },
        "open with a least size" => match small().min_size(1 << 20).open(&path) {
            Ok(_) => println!("played: opened"),
            Err(error) => println!("played: {error}"),
        },
        "fill" => {
            let store = small().open(&path).unwrap();
            println!("played: {}", begin_until_full_and_complete(&store));
        }
        "fill under a limit that comes later" => {
            let store = small().open(&path).unwrap();
            drop(acquire(&store, "first"));
            set_file_size_limit(512 << 10);
            println!("played: {}", begin_until_full_and_complete(&store));
        }
        other => panic!("no such role: {other}"),
    }
}

/// Runs this program as a child that plays `role`, after `preparation` in a shell.
fn play(preparation: &str, role: &str, path: &Path) -> Output {
    Command::new("sh")
        .arg("-c")
        .arg(format!("{preparation} || exit 99; exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_plays_the_role_that_it_is_told", "--nocapture", "--test-threads=1"])
        .envs([(ROLE, role.as_ref()), (PATH, path.as_os_str())])
        .output()
        .unwrap()
}

/// What the child said, which must have come to its end by itself.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "no signal and no panic: {output:?}");
    text.lines().find_map(|line| line.split_once("played: ")).unwrap().1.to_owned()
}

/// Begins operations until there is no room for another, then completes all of them; why there was no more room.
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

/// Lets no file of this process become longer from now on, as `prlimit` lets another process do.
fn set_file_size_limit(bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: None }).unwrap();
}

/// In units of 512 bytes, as POSIX has it.
fn file_size_limit(bytes: u64) -> String {
    format!("ulimit -f {}", bytes / 512)
}

#[test]
fn a_limit_on_the_size_of_files_is_full_to_who_begins_and_neither_a_signal_nor_a_failed_completion() {
    let limit = 512 << 10;
    for (preparation, role) in
        [(file_size_limit(limit), "fill"), (String::from("true"), "fill under a limit that comes later")]
    {
        let place = Place::new();
        let reason = said(&play(&preparation, role, &place.path));
        assert!(reason.contains("RLIMIT_FSIZE") && reason.contains(&limit.to_string()), "{role}: {reason}");
        assert!(reason.contains("can still be completed"), "{role}: {reason}");
        assert!(place.length() <= limit, "{role}: {}", place.length());
        assert!(place.length() > limit - 2 * SEGMENT, "{role}: it used what it may: {}", place.length());
        place.open();
    }
}

#[test]
fn a_new_file_that_may_not_be_as_long_as_a_store_needs_is_refused_and_not_created() {
    let limit = 4 * SEGMENT;
    let place = Place::new();
    let refusal = said(&play(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(!place.path.exists());
    assert_eq!(said(&play(&file_size_limit(limit + 4_096), "open", &place.path)), "opened");
}

#[test]
fn a_file_that_is_longer_than_the_process_may_write_is_refused_and_left_alone() {
    let place = Place::new();
    small().min_size(1 << 20).open(&place.path).unwrap().record("key", NONE, b"result").unwrap();
    let before = place.bytes();
    let limit = 512 << 10;
    let refusal = said(&play(&file_size_limit(limit), "open", &place.path));
    assert!(refusal.contains("RLIMIT_FSIZE") && refusal.contains(&limit.to_string()), "{refusal}");
    assert!(place.bytes() == before, "it was changed");
    assert_eq!(said(&play(&file_size_limit(place.length()), "list", &place.path)), "1");
}

#[test]
fn a_least_size_beyond_what_the_process_may_write_is_refused_and_the_file_stays_as_long_as_it_was() {
    let place = Place::new();
    place.open().record("key", NONE, b"result").unwrap();
    let before = place.length();
    let limit = 512 << 10;
    let refusal = said(&play(&file_size_limit(limit), "open with a least size", &place.path));
    assert!(refusal.contains("min_size") && refusal.contains("RLIMIT_FSIZE"), "{refusal}");
    assert_eq!(place.length(), before);
}
