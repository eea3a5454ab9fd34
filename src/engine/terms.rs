//! The parameters of one call: its durability, request and retention, the state it expects and the state it sets.
//!
//! Data only. A store has default [`Terms`] in its [`Settings`]; a call may override them.

use std::fmt;

use crate::format::footer::ENTRY_BYTES;
use crate::format::record::{ACKNOWLEDGEMENT_BYTES, MESSAGE_OVERHEAD_BYTES, Typing, Value, message_value};
use crate::key::{Fingerprint, Key};
use crate::log::commit::{Until, record_cost_bytes};
use crate::record::{Length, Retention};
use crate::status::{Status, Version};
use crate::sync::Patience;

/// Which failures a change survives once the call that made it has returned.
///
/// ```
/// use oncekey::{Durability, Options};
///
/// // Each record survives a crash of the process when its call returns, and a loss of power after the next `sync`.
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
    /// The state that a record must reach before a call with this durability returns.
    pub(crate) fn until(self) -> Until {
        match self {
            Durability::Sync => Until::Synced,
            Durability::Buffered => Until::Written,
        }
    }
}

/// The request of a call. A key may be reused only for the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// The fingerprint that is recorded if the call begins or records something.
    pub(crate) fingerprint: Fingerprint,
    /// An alternative fingerprint of the same request, as an earlier version of the program computed it.
    pub(crate) or: Option<Fingerprint>,
    /// The version of the first begin of the operation that the call may go on with. If that operation has ended without a
    /// completion, or was forgotten, the call is fenced and begins nothing. None for a call that may begin an operation.
    pub(crate) only: Option<Version>,
}

impl Request {
    /// Whether a record with the fingerprint `stored` belongs to the same request.
    pub(super) fn is(self, stored: Fingerprint) -> bool {
        stored == self.fingerprint || self.or == Some(stored)
    }
}

impl From<Fingerprint> for Request {
    fn from(fingerprint: Fingerprint) -> Request {
        Request { fingerprint, or: None, only: None }
    }
}

/// The parameters of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) durability: Durability,
    /// Whether the begin record is written without a sync. For side effects that may run twice: a begin that is lost
    /// with a loss of power does no harm there.
    pub(crate) begin_unsynced: bool,
    pub(crate) retention: Retention,
    /// The time after its begin from which a lease may be taken over. None means never.
    pub(crate) lease_ms: Option<u64>,
    /// The note of the typed interface in a begin record.
    pub(crate) typing: Option<Typing>,
    /// How long the call waits for other callers in total, counted from its start.
    pub(crate) patience: Patience,
    /// The maximum length of the result. A begin reserves space for a result of this length.
    pub(crate) max_result_bytes: usize,
    /// The maximum size of all messages of an attempt together: see [`NewMessage::bytes`]. A begin reserves this space.
    pub(crate) emits_bytes: usize,
}

/// A message that is to be committed with the completion of its operation.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct NewMessage {
    /// The topic and the payload, as a record stores them.
    value: Vec<u8>,
    topic_bytes: usize,
    typing: Option<Typing>,
}

impl NewMessage {
    /// Makes a message. The topic has 1 to [`MAX_TOPIC_BYTES`].
    pub(crate) fn new(topic: &str, payload: &[u8], typing: Option<Typing>) -> NewMessage {
        NewMessage { value: message_value(topic, payload), topic_bytes: topic.len(), typing }
    }

    pub(crate) fn topic(&self) -> &str {
        std::str::from_utf8(&self.value[1..=self.topic_bytes]).unwrap_or_default()
    }

    pub(super) fn value(&self) -> Value<'_> {
        Value { typing: self.typing, ..Value::bytes(&self.value) }
    }

    /// The size of the message, as [`Operation::emits`](crate::Operation::emits) counts it: no less than what the record
    /// and the later acknowledgement take of a segment.
    pub(crate) fn bytes(&self, key: Key<'_>) -> usize {
        let key_bytes = key.name().len() + key.scope_name().map_or(0, <[u8]>::len);
        MESSAGE_OVERHEAD + key_bytes + self.value.len() - 1
    }
}

impl fmt::Debug for NewMessage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NewMessage")
            .field("topic", &self.topic())
            .field("payload", &Length(self.value.len() - 1 - self.topic_bytes))
            .finish()
    }
}

/// What the size of a message has in addition to the lengths of its key, scope, topic and payload.
pub(crate) const MESSAGE_OVERHEAD: usize = 332;
const _: () = assert!(
    MESSAGE_OVERHEAD as u64
        == MESSAGE_OVERHEAD_BYTES + ENTRY_BYTES + record_cost_bytes(ACKNOWLEDGEMENT_BYTES)
);

/// The settings of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    /// The retention that was set for results. None means that results are kept as long as their keys.
    pub(crate) result_retention_ms: Option<u64>,
    /// Whether an attempt that ends in doubt notes why.
    pub(crate) notes: bool,
    /// The maximum number of bytes of messages that are not acknowledged. None means that there is no limit.
    pub(crate) max_outbox_bytes: Option<u64>,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish<'a> {
    /// The side effect happened. The value is its result, or the note that the result could not be recorded.
    Completed(Value<'a>),
    /// A caller that holds the doubt about the attempt found out that the side effect happened, with this value. It completes
    /// the operation even if a step of it is in doubt: what happened as a whole is known.
    FoundApplied(Value<'a>),
    /// The side effect certainly did not happen. Only the count of attempts is kept.
    Released,
}

impl<'a> Finish<'a> {
    /// What is recorded of an operation that is completed.
    pub(crate) fn value(&self) -> Option<Value<'a>> {
        match *self {
            Finish::Completed(value) | Finish::FoundApplied(value) => Some(value),
            Finish::Released => None,
        }
    }
}

/// The state that [`Store::compare_and_set`](crate::Store::compare_and_set) expects.
///
/// A key that left a state and returned to it has a different version, so comparing versions detects changes that
/// comparing states would miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// The key is absent: the store has no record of it.
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
    /// The key is absent: the side effect certainly did not happen, or its record is to be discarded.
    Absent,
    /// An attempt without a lease began, or may have begun. Only [`Store::begin`](crate::Store::begin) gives a lease,
    /// so this enum has no "in progress".
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
    /// The fingerprint of the next state, if that has one.
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
