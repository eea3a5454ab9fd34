use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use super::*;
use crate::key::Key;

/// An error that can have a source.
#[derive(Debug)]
struct Caused(&'static str, Option<Box<Caused>>);

impl fmt::Display for Caused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl StdError for Caused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.1.as_deref().map(|cause| cause as &dyn StdError)
    }
}

const CAUSES: [&str; 3] = ["the nearest cause", "the cause of that cause", "the root cause"];

fn caused() -> Caused {
    let [nearest, middle, root] = CAUSES;
    Caused(nearest, Some(Box::new(Caused(middle, Some(Box::new(Caused(root, None)))))))
}

/// Returns one error of each variant, and whether it is retryable.
fn one_of_each() -> Vec<(Error, bool)> {
    let key = || Key::new("k").scope("s").to_owned();
    let path = || PathBuf::from("/store.once");
    let version = Version::from_u64(7);
    let reason = || "the reason".to_owned();
    let io = || Arc::new(io::Error::other(caused()));
    let doubt = |reason| Error::InDoubt { key: key(), attempt: 1, version, reason };
    vec![
        (Error::Key { problem: KeyProblem::Empty }, false),
        (Error::BatchRefused { entry: 3 }, false),
        (Error::Mismatch { key: key() }, false),
        (Error::InProgress { key: key(), attempt: 1 }, true),
        (Error::Busy { path: path(), key: Some(key()) }, true),
        (Error::Busy { path: path(), key: None }, true),
        (Error::InCallback, false),
        (Error::WouldWaitForItself { key: key() }, false),
        (doubt(None), false),
        (doubt(Some(reason())), true),
        (Error::ResultExpired { key: key() }, false),
        (Error::ResultNotKept { key: key() }, false),
        (Error::Conflict { key: key() }, false),
        (Error::HasSteps { key: key(), finished: 2, in_doubt: 1 }, false),
        (Error::StepReused { key: key() }, false),
        (Error::NoInput { key: key() }, false),
        (Error::TooManySteps { key: key(), limit: 65_536 }, false),
        (Error::Fenced { key: key(), version }, false),
        (Error::TooLarge { key: key(), length_bytes: 2, limit_bytes: 1 }, false),
        (Error::Full { path: path(), reason: reason() }, true),
        (Error::Poisoned { path: path(), source: io() }, false),
        (Error::Locked { path: path() }, true),
        (Error::NotAStore { path: path(), reason: reason() }, false),
        (Error::Unsupported { path: path(), reason: reason() }, false),
        (Error::Corrupt { path: path(), offset: 1, reason: reason() }, false),
        (Error::Copy { path: path(), taken_at_ms: 1 }, false),
        (Error::Stopped { path: path() }, false),
        (Error::Clock { path: path(), wall_ms: 1, last_wall_ms: 2, store_time_ms: 3 }, false),
        (Error::Decode { key: key(), source: Arc::new(caused()) }, false),
        (Error::Encode { key: key(), source: Arc::new(caused()) }, false),
        (Error::Option { option: "lease", reason: reason() }, false),
        (Error::LeasesAlive { count: 2 }, true),
        (Error::Closed, false),
        (Error::Forked, false),
        (Error::Replaced { path: path() }, false),
        (Error::VersionsExhausted { path: path(), reason: reason() }, false),
        (Error::Random { source: io() }, true),
        (Error::Io { path: path(), operation: "read", source: io() }, true),
    ]
}

/// Returns the number of a variant. A new variant does not compile until it has a number, and fails a test until
/// `one_of_each` has an example of it.
fn number_of(error: &Error) -> usize {
    match error {
        Error::Key { .. } => 0,
        Error::Mismatch { .. } => 1,
        Error::InProgress { .. } => 2,
        Error::Busy { .. } => 3,
        Error::WouldWaitForItself { .. } => 4,
        Error::InDoubt { .. } => 5,
        Error::ResultExpired { .. } => 6,
        Error::ResultNotKept { .. } => 7,
        Error::Conflict { .. } => 8,
        Error::Fenced { .. } => 9,
        Error::TooLarge { .. } => 10,
        Error::Full { .. } => 11,
        Error::Poisoned { .. } => 12,
        Error::Locked { .. } => 13,
        Error::NotAStore { .. } => 14,
        Error::Unsupported { .. } => 15,
        Error::Corrupt { .. } => 16,
        Error::Clock { .. } => 17,
        Error::Decode { .. } => 18,
        Error::Encode { .. } => 19,
        Error::Option { .. } => 20,
        Error::LeasesAlive { .. } => 21,
        Error::Closed => 22,
        Error::Forked => 23,
        Error::Replaced { .. } => 24,
        Error::VersionsExhausted { .. } => 25,
        Error::Random { .. } => 26,
        Error::BatchRefused { .. } => 27,
        Error::Io { .. } => 28,
        Error::HasSteps { .. } => 29,
        Error::StepReused { .. } => 30,
        Error::TooManySteps { .. } => 31,
        Error::InCallback => 32,
        Error::Copy { .. } => 33,
        Error::Stopped { .. } => 34,
        Error::NoInput { .. } => 35,
    }
}

/// Returns the texts along the chain of sources, starting with the error's own.
fn chain(error: &Error) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    texts
}

#[test]
fn one_of_each_has_an_example_of_every_variant() {
    let numbers: std::collections::BTreeSet<_> =
        one_of_each().iter().map(|(error, _)| number_of(error)).collect();
    assert!(numbers.into_iter().eq(0..36));
}

#[test]
fn a_chain_of_errors_states_each_cause_once() {
    for (error, _) in one_of_each() {
        let chain = chain(&error);
        for (at, text) in chain.iter().enumerate() {
            let again =
                chain.iter().enumerate().find(|(other, cause)| *other != at && cause.contains(&text[..]));
            assert!(again.is_none(), "{text:?} is repeated in {chain:?}");
        }
        let has_cause = matches!(
            error,
            Error::Io { .. }
                | Error::Random { .. }
                | Error::Poisoned { .. }
                | Error::Decode { .. }
                | Error::Encode { .. }
        );
        let whole = chain.join("\n");
        for cause in CAUSES {
            assert_eq!(whole.matches(cause).count(), usize::from(has_cause), "{cause:?} in {chain:?}");
        }
        assert_eq!(chain.len(), if has_cause { 3 } else { 1 }, "{chain:?}");
    }
}

#[test]
fn only_errors_that_can_go_away_are_retryable() {
    for (error, is_retryable) in one_of_each() {
        assert_eq!(error.is_retryable(), is_retryable, "{error}");
    }
    let of = |kind: io::ErrorKind| Error::io("/store.once", "open the file", kind.into()).is_retryable();
    for transient in [io::ErrorKind::Interrupted, io::ErrorKind::OutOfMemory, io::ErrorKind::StorageFull] {
        assert!(of(transient), "{transient}");
    }
    for permanent in
        [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem]
    {
        assert!(!of(permanent), "{permanent}");
    }
    #[cfg(unix)]
    for (number, is_transient) in [(24, true), (5, true), (13, false), (2, false)] {
        // Too many open files; an error of the disk; no permission; no such file.
        let error = Error::io("/store.once", "open the file", io::Error::from_raw_os_error(number));
        assert_eq!(error.is_retryable(), is_transient, "{error}");
    }
}

#[test]
fn the_table_of_retryable_errors_names_every_variant() {
    let source = include_str!("../error.rs");
    let table = source.lines().map(str::trim_start).filter(|line| line.starts_with("/// | `"));
    let table: Vec<_> = table.collect();
    for (error, _) in one_of_each() {
        let debug = format!("{error:?}");
        let name = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap();
        assert!(table.iter().any(|row| row.contains(&format!("`{name}`"))), "{name} has no row");
    }
}

#[test]
fn a_result_that_was_not_kept_is_an_answer() {
    let error = Error::ResultNotKept { key: Key::new("k").to_owned() };
    assert_eq!(error.kind(), ErrorKind::Answer);
    let text = error.to_string();
    assert!(
        text.contains("done") && text.contains("could not be recorded") && text.contains("not run again")
    );
}

#[test]
fn a_doubt_states_on_one_line_why_it_was_not_resolved() {
    let doubt = |reason: Option<&str>| {
        let (key, version) = (Key::new("k").to_owned(), Version::from_u64(7));
        Error::InDoubt { key, attempt: 1, version, reason: reason.map(str::to_owned) }.to_string()
    };
    let text = doubt(None);
    assert!(text.ends_with("reconcile it, or rerun it if the side effect is idempotent"), "{text}");
    let text = doubt(Some("401, key\nexpired\u{202e}"));
    assert!(text.ends_with(r"reconcile did not find out: 401, key\nexpired\u{202e}"), "{text}");
    assert!(text.contains("it is unknown whether its side effect happened"), "{text}");
}
