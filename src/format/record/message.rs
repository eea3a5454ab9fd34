//! The value of a message's record.

use super::{ALIGNMENT_BYTES, Kind, MAX_EXTENSION_BYTES, RECORD_HEADER_BYTES, Record};

impl<'a> Record<'a> {
    /// Returns the topic and the payload of a message. None if the record is of another kind.
    pub(crate) fn message(&self) -> Option<(&'a str, &'a [u8])> {
        if self.kind != Kind::Message {
            return None;
        }
        let (length, rest) = self.value.result?.split_first()?;
        let (topic, payload) = rest.split_at_checked(usize::from(*length)).filter(|_| *length > 0)?;
        Some((std::str::from_utf8(topic).ok()?, payload))
    }
}

/// The maximum length of a topic, in bytes.
pub(crate) const MAX_TOPIC_BYTES: usize = 255;

/// Returns the value of a message: the length of the topic in one byte, the topic, which has 1 to [`MAX_TOPIC_BYTES`], and
/// the payload.
pub(crate) fn message_value(topic: &str, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(topic.len())
        .unwrap_or_else(|_| unreachable!("topics are checked when a message is emitted"));
    let mut value = Vec::with_capacity(1 + topic.len() + payload.len());
    value.push(length);
    value.extend_from_slice(topic.as_bytes());
    value.extend_from_slice(payload);
    value
}

/// The length of a record that acknowledges a message.
pub(crate) const ACKNOWLEDGEMENT_BYTES: u64 = RECORD_HEADER_BYTES as u64;
/// The maximum number of bytes that the record of a message has in addition to its key, scope, topic and payload.
pub(crate) const MESSAGE_OVERHEAD_BYTES: u64 =
    (RECORD_HEADER_BYTES + MAX_EXTENSION_BYTES + 1) as u64 + ALIGNMENT_BYTES - 1;
