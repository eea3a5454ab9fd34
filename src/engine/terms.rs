//! What one call asks for: its durability, its request, its retention, what it expects and what it puts in its place.
//!
//! Data only. The defaults of a store are its [`Settings`]; a call may have [`Terms`] of its own.

use std::fmt;

use crate::format::record::{Typing, Value};
use crate::key::Fingerprint;
use crate::log::commit::Until;
use crate::record::{Length, Retention};
use crate::status::{Status, Version};
use crate::sync::Patience;

/// What a change has survived when the call that made it returns.
///
/// ```
/// use oncekey::{Durability, Options};
///
/// // Records survive a crash of the process at once, and a loss of power from the next `sync` on.
/// let store = Options::new().durability(Durability::Buffered).open_in_memory()?;
/// store.sync()?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// The change survives a loss of power: it is written and synced.
    #[default]
    Sync,
    /// The change survives a crash of the process: it is written to the operating system.
    /// [`Store::sync`](crate::Store::sync) makes it survive a loss of power.
    Buffered,
}

impl Durability {
    /// How far a record of this durability must have come before its call returns.
    pub(crate) fn until(self) -> Until {
        match self {
            Durability::Sync => Until::Synced,
            Durability::Buffered => Until::Written,
        }
    }
}

/// What a call says of its request: a key is used again for the same request only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// The fingerprint that is recorded if the call begins or records something.
    pub(crate) fingerprint: Fingerprint,
    /// Another fingerprint of the same request: the one that an earlier version of the program computed.
    pub(crate) or: Option<Fingerprint>,
}

impl Request {
    /// Whether a record with this fingerprint is of the same request.
    pub(super) fn is(self, stored: Fingerprint) -> bool {
        stored == self.fingerprint || self.or == Some(stored)
    }
}

impl From<Fingerprint> for Request {
    fn from(fingerprint: Fingerprint) -> Request {
        Request { fingerprint, or: None }
    }
}

/// What one call asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) durability: Durability,
    /// The begin record is written and not synced. The side effect may run twice, so a begin that a loss of power undoes
    /// does no harm.
    pub(crate) begin_unsynced: bool,
    pub(crate) retention: Retention,
    /// How long after its begin a lease may be taken over; None: never.
    pub(crate) lease_ms: Option<u64>,
    /// What a begin record says of the typed interface.
    pub(crate) typing: Option<Typing>,
    /// How long the call waits for other callers, from its start and however often it is woken.
    pub(crate) patience: Patience,
}

/// The settings of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    /// The result retention that was set; None: results are kept as long as their keys.
    pub(crate) result_retention_ms: Option<u64>,
    pub(crate) max_result_bytes: usize,
}

/// What a finished attempt leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish<'a> {
    /// Its result, or that the result could not be recorded.
    Completed(Value<'a>),
    /// Nothing but the count of attempts: the side effect certainly did not happen.
    Released,
}

/// The state that [`Store::compare_and_set`](crate::Store::compare_and_set) expects.
///
/// A state that went away and came back has another version, so comparing versions is safe where comparing states is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// The store knows nothing of the key.
    Absent,
    /// The key is in progress, in doubt or completed, and its last record has this version.
    Present {
        /// The status.
        status: Status,
        /// The version of the record that made it so.
        version: Version,
    },
}

/// The state that [`Store::compare_and_set`](crate::Store::compare_and_set) sets.
///
/// `{:?}` prints the length of the result, never the result.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next<'a> {
    /// The side effect certainly did not happen, or what is known of it is given up.
    Absent,
    /// An attempt without a lease began, or may have begun. Only [`Store::begin`](crate::Store::begin) gives a lease, so
    /// there is no "in progress" here.
    InDoubt {
        /// The fingerprint of the request. If the key is in progress or in doubt, it must be the stored one.
        fingerprint: Fingerprint,
    },
    /// The side effect happened, with this result.
    Completed {
        /// The fingerprint of the request. If the key is in progress or in doubt, it must be the stored one.
        fingerprint: Fingerprint,
        /// The result.
        result: &'a [u8],
    },
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Next::Absent => out.write_str("Absent"),
            Next::InDoubt { fingerprint } => {
                out.debug_struct("InDoubt").field("fingerprint", fingerprint).finish()
            }
            Next::Completed { fingerprint, result } => out
                .debug_struct("Completed")
                .field("fingerprint", fingerprint)
                .field("result", &Length(result.len()))
                .finish(),
        }
    }
}

impl Next<'_> {
    /// The fingerprint of what is set, if it has one.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Next::Absent => None,
            Next::InDoubt { fingerprint } | Next::Completed { fingerprint, .. } => Some(*fingerprint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_state_is_printed_without_its_result() {
        let fingerprint = Fingerprint::NONE;
        let printed = format!("{:?}", Next::Completed { fingerprint, result: b"secret" });
        assert!(printed.starts_with("Completed {") && printed.ends_with("result: <6 bytes> }"), "{printed}");
        assert!(format!("{:?}", Next::InDoubt { fingerprint }).starts_with("InDoubt { fingerprint: "));
        assert_eq!(format!("{:?}", Next::Absent), "Absent");
    }
}
