//! The messages of errors: what failed, where, and what to do next. Each message includes its cause, and is one line,
//! whatever bytes keys, paths and reasons contain.

use std::fmt::{self, Write as _};
use std::path::Path;

use super::Error;

/// Prints a path in an error or event on one line, with control characters escaped.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.as_os_str().is_empty() {
            return out.write_str("\"\"");
        }
        write_on_one_line(out, &self.0.to_string_lossy())
    }
}

/// Escapes characters that control a terminal, break the line or reorder the text: a name in an error must not be able to
/// forge another line of a log.
fn write_on_one_line(out: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        let reorders =
            matches!(character, '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || reorders {
            write!(out, "{}", character.escape_default())?;
        } else {
            out.write_char(character)?;
        }
    }
    Ok(())
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Key { problem } => write!(out, "invalid key: {problem}"),
            Error::BatchRefused { entry } => {
                write!(
                    out,
                    "entry {entry} of the same atomic batch was refused, so nothing was written; see its answer"
                )
            }
            Error::Mismatch { key } => {
                write!(
                    out,
                    "{key}: this key was used before with a different request; nothing was run or replayed; find out why two \
                     requests share the key"
                )
            }
            Error::InProgress { key, attempt } => {
                write!(
                    out,
                    "{key}: attempt {attempt} is in progress in this process; try again later, or wait with Operation::wait"
                )
            }
            Error::Busy { path, key: None } => write!(
                out,
                "{}: another process changed the file each time that this one was reading it; try again",
                Shown(path)
            ),
            Error::Busy { key: Some(key), .. } => write!(
                out,
                "{key}: another thread is still syncing the latest record, and the timeout has passed; try again"
            ),
            Error::WouldWaitForItself { key } => write!(
                out,
                "{key}: this thread is running or reconciling the same operation, so it would wait for itself; leave out the \
                 wait, or the call"
            ),
            Error::InDoubt { key, attempt: 0, reason: None, .. } => write!(
                out,
                "{key} is in doubt: this store is a copy that may have forgotten an operation of this key, and it is unknown \
                 whether its side effect happened; reconcile it, or rerun it if the side effect is idempotent"
            ),
            Error::InDoubt { key, attempt, version, reason } => {
                write!(
                    out,
                    "{key} is in doubt: attempt {attempt} (version {version}) began, and it is unknown whether its side effect \
                     happened; "
                )?;
                match reason {
                    None => out.write_str("reconcile it, or rerun it if the side effect is idempotent"),
                    Some(reason) => {
                        out.write_str("reconcile did not find out: ")?;
                        write_on_one_line(out, reason)
                    }
                }
            }
            Error::ResultExpired { key } => {
                write!(
                    out,
                    "{key}: done, but the retention of the result has passed and the result is gone; the side effect is not run \
                     again"
                )
            }
            Error::ResultNotKept { key } => write!(
                out,
                "{key}: done, but the result could not be recorded and is unknown; the side effect is not run again"
            ),
            Error::Conflict { key } => {
                write!(out, "{key}: the operation is completed already, and what was recorded first stands")
            }
            Error::HasSteps { key, finished, in_doubt } => write!(
                out,
                "{key}: steps of the operation stand in the way ({finished} done, {in_doubt} in progress or in doubt); begin the \
                 operation again to finish them, or forget it with all its steps"
            ),
            Error::StepReused { key } => {
                write!(out, "{key}: this attempt has asked for this step before; two steps need two names")
            }
            Error::NoInput { key } => {
                write!(out, "{key}: the operation has no input, because its first begin stored none")
            }
            Error::TooManySteps { key, limit } => {
                write!(out, "{key}: an operation has at most {limit} steps, and this one has as many")
            }
            Error::Fenced { key, version } => write!(
                out,
                "{key}: the attempt of version {version} no longer owns the operation; compare what it did with what the \
                 store has recorded now"
            ),
            Error::TooLarge { key, length_bytes, limit_bytes } => write!(
                out,
                "{key}: a result of {length_bytes} bytes is too large to record, the limit is {limit_bytes} bytes \
                 (max_result, or emits for messages); record a reference to where it is kept instead"
            ),
            Error::Full { path, reason } => write!(out, "{}: there is no room: {reason}", Shown(path)),
            Error::Poisoned { path, source } => write!(
                out,
                "{}: an earlier write or sync failed ({source}); nothing can be written until the store is opened again",
                Shown(path)
            ),
            Error::Locked { path } => {
                write!(
                    out,
                    "{}: already open, in this process or another one; only one store can have a file open at a time",
                    Shown(path)
                )
            }
            Error::NotAStore { path, reason } => {
                write!(out, "{}: not a oncekey store: {reason}", Shown(path))
            }
            Error::Unsupported { path, reason } => write!(out, "{}: {reason}", Shown(path)),
            Error::Corrupt { path, offset, reason } => write!(
                out,
                "{}: corrupt at offset {offset}: {reason}; keep a copy of the file before you try anything",
                Shown(path)
            ),
            Error::Copy { path, taken_at_ms } => write!(
                out,
                "{}: a copy that was taken at {taken_at_ms} ms since the Unix epoch, and it does not know what happened since; \
                 open it once with Options::may_have_forgotten, or with Options::nothing_was_lost if nothing did",
                Shown(path)
            ),
            Error::Stopped { path } => {
                write!(out, "{}: the caller's progress function stopped the call", Shown(path))
            }
            Error::Clock { path, wall_ms, last_wall_ms, store_time_ms } => {
                let seconds = wall_ms.abs_diff(*last_wall_ms) / 1_000;
                let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
                let direction = if wall_ms < last_wall_ms { "behind" } else { "ahead of" };
                write!(
                    out,
                    "{}: the wall clock ({wall_ms} ms) is {days} days and {hours} hours {direction} the {last_wall_ms} ms \
                     that it showed in an earlier boot, when store time was {store_time_ms} ms; correct the clock, or \
                     accept it (Options::accept_clock_jump): ClockJump::Elapsed if that time has passed, \
                     ClockJump::NotElapsed if the clock was or is wrong",
                    Shown(path)
                )
            }
            Error::Decode { key, source } => write!(
                out,
                "{key}: the stored result does not decode as the requested type ({source}); the side effect is not run again"
            ),
            Error::Encode { key, source } => {
                write!(out, "{key}: the request or result cannot be encoded: {source}")
            }
            Error::Option { option, reason } => write!(out, "option {option}: {reason}"),
            Error::LeasesAlive { count } => {
                let (leases, them) = if *count == 1 { ("lease is", "it") } else { ("leases are", "them") };
                write!(
                    out,
                    "{count} {leases} alive; complete, release or drop {them} before closing the store"
                )
            }
            Error::InCallback => write!(
                out,
                "this is a progress callback of a call on the same store; stop that call, and close the store after it has \
                 returned"
            ),
            Error::Closed => {
                write!(out, "the store is closed, by this handle or a clone of it; open it again")
            }
            Error::Forked => write!(
                out,
                "this process was forked from the one that opened the store; open a store in this process"
            ),
            Error::Replaced { path } => write!(
                out,
                "{}: the path was removed, renamed or replaced while the store was open; nothing new can be begun; \
                 close the store and find out which file is the right one",
                Shown(path)
            ),
            Error::VersionsExhausted { path, reason } => {
                write!(out, "{}: the versions are used up: {reason}", Shown(path))
            }
            Error::Random { source } => {
                write!(out, "cannot get random bytes for a new key: {source}")
            }
            Error::Io { path, operation, source } => {
                write!(out, "{}: cannot {operation}: {source}", Shown(path))
            }
        }
    }
}

impl std::error::Error for Error {
    /// Returns the cause of the cause, because the text includes the cause itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Poisoned { source, .. } | Error::Random { source } | Error::Io { source, .. } => {
                source.source()
            }
            Error::Decode { source, .. } | Error::Encode { source, .. } => source.source(),
            Error::Key { .. }
            | Error::BatchRefused { .. }
            | Error::Mismatch { .. }
            | Error::InProgress { .. }
            | Error::Busy { .. }
            | Error::WouldWaitForItself { .. }
            | Error::InDoubt { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::HasSteps { .. }
            | Error::StepReused { .. }
            | Error::NoInput { .. }
            | Error::TooManySteps { .. }
            | Error::Fenced { .. }
            | Error::TooLarge { .. }
            | Error::Full { .. }
            | Error::Locked { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Copy { .. }
            | Error::Stopped { .. }
            | Error::Clock { .. }
            | Error::Option { .. }
            | Error::LeasesAlive { .. }
            | Error::InCallback
            | Error::Closed
            | Error::Forked
            | Error::Replaced { .. }
            | Error::VersionsExhausted { .. } => None,
        }
    }
}
