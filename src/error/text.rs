//! What errors say. Each text names its cause, and is on one line whatever the caller's names contain.

use std::fmt::{self, Write as _};
use std::path::Path;

use super::Error;

/// A path as errors and events print it: on one line, whatever is in it.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.as_os_str().is_empty() {
            return out.write_str("\"\"");
        }
        write_on_one_line(out, &self.0.to_string_lossy())
    }
}

/// Characters that steer a terminal, break the line or reorder what is shown are escaped.
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
            Error::Key { problem } => write!(out, "unusable key: {problem}"),
            Error::Mismatch { key } => {
                write!(
                    out,
                    "{key}: this key was used before with another request; it is not performed and not replayed"
                )
            }
            Error::InProgress { key, attempt } => {
                write!(
                    out,
                    "{key}: attempt {attempt} is in progress in this process; try again later or wait for it"
                )
            }
            Error::Busy { key } => write!(
                out,
                "{key}: what is known of it is being synced by another thread, and that took longer than this call was to \
                 wait; ask again"
            ),
            Error::WouldWaitForItself { key } => write!(
                out,
                "{key}: this thread is performing or reconciling this very operation, and would wait for itself"
            ),
            Error::InDoubt { key, attempt, version, reason } => {
                write!(
                    out,
                    "{key} is in doubt: attempt {attempt} (version {version}) began and nobody knows whether the side effect happened; "
                )?;
                match reason {
                    None => out.write_str("reconcile it, or rerun it if the act is idempotent"),
                    Some(reason) => {
                        out.write_str("it could not be found out: ")?;
                        write_on_one_line(out, reason)
                    }
                }
            }
            Error::ResultExpired { key } => {
                write!(
                    out,
                    "{key}: done, but its result retention has passed and the result is gone; it is not performed again"
                )
            }
            Error::ResultNotKept { key } => write!(
                out,
                "{key}: done, but its result could not be recorded then and is not known; it is not performed again"
            ),
            Error::Conflict { key } => {
                write!(out, "{key}: the operation is completed already, and what was recorded first stands")
            }
            Error::Fenced { key, version } => write!(
                out,
                "{key}: the lease of version {version} no longer owns the operation; compare what this attempt did \
                 with what the store says now"
            ),
            Error::TooLarge { key, length_bytes, limit_bytes } => write!(
                out,
                "{key}: a result of {length_bytes} bytes is over the limit of {limit_bytes} (Options::max_result); \
                 nothing was recorded; record a reference to where it is kept instead"
            ),
            Error::Full { path, reason } => write!(out, "{}: there is no room: {reason}", Shown(path)),
            Error::Poisoned { path, source } => write!(
                out,
                "{}: an earlier write or sync failed ({source}), nothing can be written until the store is opened again",
                Shown(path)
            ),
            Error::Locked { path } => {
                write!(
                    out,
                    "{}: open already, in this process or another; one store has the file to itself",
                    Shown(path)
                )
            }
            Error::NotAStore { path, reason } => {
                write!(out, "{}: no oncekey store: {reason}", Shown(path))
            }
            Error::Unsupported { path, reason } => write!(out, "{}: {reason}", Shown(path)),
            Error::Corrupt { path, offset, reason } => write!(
                out,
                "{}: corrupt at offset {offset}: {reason}; keep a copy of the file before anything else is tried",
                Shown(path)
            ),
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
                "{key}: the stored result does not decode as the type asked for ({source}); it is not performed again"
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
            Error::Closed => write!(out, "the store was closed, by this handle or another one"),
            Error::Forked => write!(
                out,
                "this process was forked from the one that opened the store; open a store in this process"
            ),
            Error::Replaced { path } => write!(
                out,
                "{}: the path was removed, renamed or replaced while the store was open; nothing begins any more, \
                 close the store and find out which file is the right one",
                Shown(path)
            ),
            Error::VersionsExhausted { path, reason } => {
                write!(out, "{}: the versions are used up: {reason}", Shown(path))
            }
            Error::Io { path, operation, source } => {
                write!(out, "{}: cannot {operation}: {source}", Shown(path))
            }
        }
    }
}

impl std::error::Error for Error {
    /// The cause of the cause: the cause itself is part of the text.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Poisoned { source, .. } | Error::Io { source, .. } => source.source(),
            Error::Decode { source, .. } | Error::Encode { source, .. } => source.source(),
            Error::Key { .. }
            | Error::Mismatch { .. }
            | Error::InProgress { .. }
            | Error::Busy { .. }
            | Error::WouldWaitForItself { .. }
            | Error::InDoubt { .. }
            | Error::ResultExpired { .. }
            | Error::ResultNotKept { .. }
            | Error::Conflict { .. }
            | Error::Fenced { .. }
            | Error::TooLarge { .. }
            | Error::Full { .. }
            | Error::Locked { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Corrupt { .. }
            | Error::Clock { .. }
            | Error::Option { .. }
            | Error::LeasesAlive { .. }
            | Error::Closed
            | Error::Forked
            | Error::Replaced { .. }
            | Error::VersionsExhausted { .. } => None,
        }
    }
}
