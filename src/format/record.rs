//! Records: a change of a key, as bytes. [`crate::record`] interprets what a record means for its key.

mod message;

pub(crate) use message::{ACKNOWLEDGEMENT_BYTES, MAX_TOPIC_BYTES, MESSAGE_OVERHEAD_BYTES, message_value};

pub(crate) use super::kind::Kind;
use super::layout::{record_header, typing};
use super::{ALIGNMENT_BYTES, FormatError, Seed, align, narrow};
use crate::hash::{Domain, KeyHasher};
use crate::key::{Fingerprint, Key, MAX_KEY_BYTES};
use crate::planted::{Bug, planted};
use crate::status::Version;

/// The length of the fixed part of a record.
pub(crate) const RECORD_HEADER_BYTES: usize = record_header::RESULT_EXPIRES_MS.end();
/// The maximum length of a record without a result.
pub(crate) const MAX_BARE_RECORD_BYTES: u64 =
    align((RECORD_HEADER_BYTES + MAX_EXTENSION_BYTES + 2 * MAX_KEY_BYTES) as u64);

const _: () = assert!((RECORD_HEADER_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(MAX_BARE_RECORD_BYTES == 80 + 16 + 1_024 + 1_024);

const FLAG_SCOPE: u8 = 1;
const FLAG_RESULT: u8 = 2;
const FLAG_NOT_KEPT: u8 = 4;
const FLAG_GIVEN_UP: u8 = 8;
const KNOWN_FLAGS: u8 = FLAG_SCOPE | FLAG_RESULT | FLAG_NOT_KEPT | FLAG_GIVEN_UP;

/// The number of the extension that holds a [`Typing`].
const TYPING: u8 = 1;
/// The length of an extension's fields before its content: the number, and the length of the content.
const EXTENSION_HEADER_BYTES: usize = typing::CONTENT_LENGTH.end();
/// The length of the content of a typing without a shape.
const TYPING_BYTES: u8 = 2;
/// The length of the content of a typing with a shape.
const SHAPED_TYPING_BYTES: u8 = 10;
const _: () = assert!(typing::CODEC.end() == EXTENSION_HEADER_BYTES + TYPING_BYTES as usize);
const _: () = assert!(typing::SHAPE.end() == MAX_EXTENSION_BYTES);
/// The maximum length of an extension.
const MAX_EXTENSION_BYTES: usize = EXTENSION_HEADER_BYTES + SHAPED_TYPING_BYTES as usize;

/// How the typed interface made a record. A later call needs this to read the result with the same codec and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Typing {
    /// How the fingerprint was made: 0 by the caller, 1 from a typed request.
    pub(crate) scheme: u8,
    /// The codec's number.
    pub(crate) codec: u8,
    /// The shape of the result's type, if the codec is positional and there is a result.
    pub(crate) shape: Option<u64>,
}

impl Typing {
    fn content_bytes(self) -> u8 {
        if self.shape.is_some() { SHAPED_TYPING_BYTES } else { TYPING_BYTES }
    }
}

/// The result in a record, or why there is none, and how the typed interface made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value<'a> {
    /// The result, or None if there is none. An empty result is a result. In a record of kind [`Kind::Begun`], the note.
    pub(crate) result: Option<&'a [u8]>,
    /// Whether the operation is done but its result was never recorded.
    pub(crate) not_kept: bool,
    /// Whether a step was given up: its doubt does not keep its operation from being completed.
    pub(crate) given_up: bool,
    /// How the typed interface made the record, if it did.
    pub(crate) typing: Option<Typing>,
}

impl<'a> Value<'a> {
    /// A value without a result.
    pub(crate) const NONE: Value<'static> =
        Value { result: None, not_kept: false, given_up: false, typing: None };

    /// Returns the value for a result that the caller passed as bytes.
    pub(crate) fn bytes(result: &'a [u8]) -> Value<'a> {
        Value { result: Some(result), ..Value::NONE }
    }

    /// Returns the value for a result that a codec encoded.
    pub(crate) fn typed(result: &'a [u8], typing: Typing) -> Value<'a> {
        Value { result: Some(result), typing: Some(typing), ..Value::NONE }
    }

    /// Returns the value for a result that could not be recorded.
    pub(crate) fn not_kept(typing: Option<Typing>) -> Value<'static> {
        Value { not_kept: true, typing, ..Value::NONE }
    }

    /// Returns the value of an attempt that begins, which has no result yet.
    pub(crate) fn begun(typing: Option<Typing>) -> Value<'static> {
        Value { typing, ..Value::NONE }
    }

    /// Returns the value without its result, for the tombstone of a key that outlives its result.
    pub(crate) fn without_result(self) -> Value<'static> {
        let typing = self.typing.map(|typing| Typing { shape: None, ..typing });
        Value { result: None, not_kept: self.not_kept, given_up: self.given_up, typing }
    }

    /// Returns the length of the result.
    pub(crate) fn result_bytes(&self) -> usize {
        self.result.map_or(0, <[u8]>::len)
    }

    /// Returns the length of the extension.
    fn extension_bytes(&self) -> usize {
        self.typing.map_or(0, |typing| EXTENSION_HEADER_BYTES + usize::from(typing.content_bytes()))
    }
}

/// A record, whose key and result are borrowed from the log or from the caller.
///
/// In a record that carries an unreadable one, some fields have a different meaning: see [`FooterEntry::carrying`]. In a
/// record of a step, `key` is the name of the step, `origin` that of its operation, and the two expiries hold the hash of
/// the operation's key: see [`Record::parent_hash`].
/// message, `version` is its id, `key` that of the operation that emitted it, `attempt` its number within that operation,
/// `key_expires_ms` the hash of its topic, and `result_expires_ms` the time of its emission; `value` begins with the topic:
/// see [`Record::message`]. An acknowledgement has the `version` of its message, the same two fields, and no key.
///
/// [`FooterEntry::carrying`]: super::footer::FooterEntry::carrying
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// How the record changed the key.
    pub(crate) kind: Kind,
    /// The key.
    pub(crate) key: Key<'a>,
    /// The version of the change.
    pub(crate) version: Version,
    /// The version of the first begin of the operation.
    pub(crate) origin: Version,
    /// The fingerprint of the request.
    pub(crate) fingerprint: Fingerprint,
    /// The number of attempts so far.
    pub(crate) attempt: u32,
    /// The store time of the change.
    pub(crate) time_ms: u64,
    /// The store time from which the key is absent.
    pub(crate) key_expires_ms: u64,
    /// The store time from which the result is gone.
    pub(crate) result_expires_ms: u64,
    /// The result, or why there is none.
    pub(crate) value: Value<'a>,
}

/// Returns the hash of an operation's key from the two fields that hold the expiries in a record of a key: the lower half,
/// then the upper one.
pub(super) fn joined(lower: u64, upper: u64) -> u128 {
    u128::from(upper) << 64 | u128::from(lower)
}

/// Returns the two fields that hold the hash of an operation's key in a record of a step.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the hash")]
pub(crate) fn halves(parent_hash: u128) -> (u64, u64) {
    (parent_hash as u64, (parent_hash >> 64) as u64)
}

/// Returns the length of a record with this key and value.
pub(crate) fn encoded_bytes(key: Key<'_>, value: &Value<'_>) -> u64 {
    bytes_of_parts(key, value.extension_bytes(), value.result_bytes())
}

/// Returns the maximum length of a record with this key and a result of at most `max_result_bytes`.
pub(crate) fn max_encoded_bytes(key: Key<'_>, max_result_bytes: usize) -> u64 {
    bytes_of_parts(key, MAX_EXTENSION_BYTES, max_result_bytes)
}

fn bytes_of_parts(key: Key<'_>, extension_bytes: usize, result_bytes: usize) -> u64 {
    let scope = key.scope_name().map_or(0, <[u8]>::len);
    align((RECORD_HEADER_BYTES + extension_bytes + scope + key.name().len() + result_bytes) as u64)
}

/// Returns the number with which a record's checksum is combined, so that it matches at one position only. Without it, a
/// lookup that checks a single record could mistake a record left over from an earlier segment for it.
fn position_tie(position: u64) -> u32 {
    (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// The number of bytes that are gathered before a record is copied: enough for a whole record of usual length, because a checksum
/// takes longer over several short parts than over one.
const HEAD_BYTES: usize = 448;
const _: () = assert!(RECORD_HEADER_BYTES + MAX_EXTENSION_BYTES <= HEAD_BYTES);

/// A record that is ready to be copied into a frame. Its header and checksum are encoded, and its result is still borrowed
/// from the caller.
///
/// A thread encodes a record before it locks the commit queue, so that it only copies while the queue is locked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncodedRecord<'a> {
    /// The header and the extension, then the key, the result and the padding as far as they fit.
    head: [u8; HEAD_BYTES],
    /// The number of bytes in use in `head`.
    head_bytes: usize,
    /// The scope and the name of the key, and the result. Those in `head` are empty here.
    rest: [&'a [u8]; 3],
    /// The number of zeroes that align the end of the record and are not in `head`.
    padding_bytes: usize,
    /// The length of the whole record.
    length_bytes: usize,
}

impl EncodedRecord<'_> {
    /// Returns the length of the record.
    pub(crate) fn length_bytes(&self) -> u64 {
        self.length_bytes as u64
    }

    /// Returns the parts that follow the head. Few records have more than one of them, and a checksum takes longer over many
    /// short parts.
    fn tail_parts(&self) -> impl Iterator<Item = &[u8]> {
        let padding: &[u8] = &[0; 8][..self.padding_bytes];
        self.rest.into_iter().chain([padding]).filter(|part| !part.is_empty())
    }

    /// Appends the record to `out`.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.length_bytes);
        out.extend_from_slice(&self.head[..self.head_bytes]);
        self.tail_parts().for_each(|part| out.extend_from_slice(part));
    }
}

impl<'a> Record<'a> {
    /// Returns the hash of what the record is about: its key, its step or its message.
    pub(crate) fn key_hash(&self, hasher: &KeyHasher) -> u128 {
        match self.kind {
            Kind::Message | Kind::Acknowledged | Kind::MessageUnreadable => {
                hasher.message(self.version.as_u64())
            }
            Kind::Unreadable | Kind::StepUnreadable if !planted(Bug::UnreadableKeyHashLost) => {
                u128::from_le_bytes(self.fingerprint.to_bytes())
            }
            Kind::StepBegun | Kind::StepCompleted | Kind::StepReleased => {
                hasher.step(self.parent_hash(), self.origin.as_u64(), self.key.name())
            }
            _ => hasher.key(self.key),
        }
    }

    /// Returns the hash of the key of a step's operation.
    pub(crate) fn parent_hash(&self) -> u128 {
        joined(self.key_expires_ms, self.result_expires_ms)
    }

    /// Returns the kind of the unreadable record that this record carries. None if it carries none, or the kind is unknown.
    pub(crate) fn carried_kind(&self) -> Option<Kind> {
        u8::try_from(self.attempt).ok().filter(|_| self.kind.is_carrier()).and_then(Kind::from_byte)
    }

    /// Decodes the record in `bytes` without checking its checksum. Only a planted bug uses this.
    pub(crate) fn decode_regardless(bytes: &'a mut [u8]) -> Result<Record<'a>, FormatError> {
        let length = record_length(bytes)?.min(bytes.len());
        let checksum = Seed::NONE.checksum(&bytes[record_header::CHECKSUM.end()..length]) ^ position_tie(0);
        record_header::CHECKSUM.put(bytes, checksum.to_le_bytes());
        Record::decode(bytes, 0, Seed::NONE)
    }

    /// Encodes the record's header and computes its checksum, without copying the key or the result.
    ///
    /// The checksum is not tied to a position yet. [`tie_to_position`] does that once the position is known.
    pub(crate) fn encode(&self, seed: Seed) -> EncodedRecord<'a> {
        let scope = self.key.scope_name();
        let result = self.value.result.unwrap_or_default();
        let length_bytes = usize::try_from(encoded_bytes(self.key, &self.value))
            .unwrap_or_else(|_| unreachable!("lengths are bounded by max_frame_bytes"));
        let flags = if scope.is_some() { FLAG_SCOPE } else { 0 }
            | if self.value.result.is_some() { FLAG_RESULT } else { 0 }
            | if self.value.not_kept { FLAG_NOT_KEPT } else { 0 }
            | if self.value.given_up { FLAG_GIVEN_UP } else { 0 };
        let mut head = [0; HEAD_BYTES];
        let scope_length = narrow_u16(scope.map_or(0, <[u8]>::len));
        let extension_length = narrow_u16(self.value.extension_bytes());
        record_header::LENGTH.put(&mut head, narrow(length_bytes).to_le_bytes());
        record_header::KIND.put(&mut head, [self.kind.to_byte()]);
        record_header::FLAGS.put(&mut head, [flags]);
        record_header::KEY_LENGTH.put(&mut head, narrow_u16(self.key.name().len()).to_le_bytes());
        record_header::SCOPE_LENGTH.put(&mut head, scope_length.to_le_bytes());
        record_header::EXTENSION_LENGTH.put(&mut head, extension_length.to_le_bytes());
        record_header::VERSION.put(&mut head, self.version.as_u64().to_le_bytes());
        record_header::ORIGIN.put(&mut head, self.origin.as_u64().to_le_bytes());
        record_header::FINGERPRINT.put(&mut head, self.fingerprint.to_bytes());
        record_header::ATTEMPT.put(&mut head, self.attempt.to_le_bytes());
        record_header::VALUE_LENGTH.put(&mut head, narrow(result.len()).to_le_bytes());
        record_header::TIME_MS.put(&mut head, self.time_ms.to_le_bytes());
        record_header::KEY_EXPIRES_MS.put(&mut head, self.key_expires_ms.to_le_bytes());
        record_header::RESULT_EXPIRES_MS.put(&mut head, self.result_expires_ms.to_le_bytes());
        if let Some(Typing { scheme, codec, shape }) = self.value.typing {
            let extension = &mut head[RECORD_HEADER_BYTES..];
            typing::NUMBER.put(extension, [TYPING]);
            typing::CONTENT_LENGTH
                .put(extension, [if shape.is_some() { SHAPED_TYPING_BYTES } else { TYPING_BYTES }]);
            typing::SCHEME.put(extension, [scheme]);
            typing::CODEC.put(extension, [codec]);
            if let Some(shape) = shape {
                typing::SHAPE.put(extension, shape.to_le_bytes());
            }
        }
        let mut head_bytes = RECORD_HEADER_BYTES + self.value.extension_bytes();
        let mut padding_bytes =
            length_bytes - (head_bytes + usize::from(scope_length) + self.key.name().len() + result.len());
        let mut rest = [scope.unwrap_or_default(), self.key.name(), result];
        for part in &mut rest {
            if let Some(space) = head.get_mut(head_bytes..head_bytes + part.len()) {
                space.copy_from_slice(part);
                head_bytes += part.len();
                *part = &[];
            } else {
                // A part that does not fit ends the head, because the parts must stay in order.
                break;
            }
        }
        // Zeroes are there already.
        if head_bytes + padding_bytes == length_bytes && length_bytes <= HEAD_BYTES {
            head_bytes = length_bytes;
            padding_bytes = 0;
        }
        let mut hasher = seed.hasher();
        hasher.update(&head[record_header::CHECKSUM.end()..head_bytes]);
        let mut encoded = EncodedRecord { head, head_bytes, rest, padding_bytes, length_bytes };
        encoded.tail_parts().for_each(|part| hasher.update(part));
        record_header::CHECKSUM.put(&mut encoded.head, hasher.finalize().to_le_bytes());
        encoded
    }

    /// Decodes the record at the start of `bytes`, at `position` of the log.
    pub(crate) fn decode(bytes: &'a [u8], position: u64, seed: Seed) -> Result<Record<'a>, FormatError> {
        let length = record_length(bytes)?;
        if bytes.len() < length {
            return Err(FormatError::Damaged("the record is longer than what holds it"));
        }
        let bytes = &bytes[..length];
        let checksum = record_header::CHECKSUM.u32(bytes) ^ position_tie(position);
        if checksum != seed.checksum(&bytes[record_header::CHECKSUM.end()..]) {
            return Err(FormatError::Damaged("the record's checksum does not match"));
        }
        let kind = Kind::from_byte(record_header::KIND.u8(bytes))
            .ok_or(FormatError::Unknown("the record is of an unknown kind"))?;
        let flags = record_header::FLAGS.u8(bytes);
        let scope_length = usize::from(record_header::SCOPE_LENGTH.u16(bytes));
        let extension_length = usize::from(record_header::EXTENSION_LENGTH.u16(bytes));
        let key_length = usize::from(record_header::KEY_LENGTH.u16(bytes));
        let value_length = usize::try_from(record_header::VALUE_LENGTH.u32(bytes))
            .map_err(|_| FormatError::Damaged("the record's value is too long"))?;
        let scope_at = RECORD_HEADER_BYTES + extension_length;
        let key_at = scope_at + scope_length;
        let value_at = key_at + key_length;
        let end = value_at
            .checked_add(value_length)
            .ok_or(FormatError::Damaged("the record's value is too long"))?;
        if end > length || (length - end) as u64 >= ALIGNMENT_BYTES {
            return Err(FormatError::Damaged("the record's parts do not add up to its length"));
        }
        if kind != Kind::Ignorable && flags & !KNOWN_FLAGS != 0 {
            return Err(FormatError::Unknown("the record has unknown flags"));
        }
        let typing = match kind {
            Kind::Ignorable => None,
            _ => decode_extension(&bytes[RECORD_HEADER_BYTES..scope_at])?,
        };
        let key = Key::new(&bytes[key_at..value_at]);
        let key = if flags & FLAG_SCOPE != 0 { key.scope(&bytes[scope_at..key_at]) } else { key };
        let is_step = kind.domain() == Some(Domain::Step);
        if kind == Kind::Acknowledged {
            if flags != 0 || scope_length != 0 || key_length != 0 || extension_length != 0 {
                return Err(FormatError::Damaged("the acknowledgement has parts that it cannot have"));
            }
        } else if kind.is_carrier() {
            let is_plain =
                flags == FLAG_RESULT && scope_length == 0 && key_length == 0 && extension_length == 0;
            let carried_kind = record_header::ATTEMPT.u32(bytes);
            let kinds = match kind {
                Kind::Unreadable => &CARRIED_KINDS[..],
                Kind::StepUnreadable => &CARRIED_STEP_KINDS,
                _ => &CARRIED_MESSAGE_KINDS,
            };
            if !is_plain || carried_kind != 0 && !kinds.iter().any(|kind| u32::from(*kind) == carried_kind) {
                return Err(FormatError::Damaged(
                    "the record that carries an unreadable one has parts or a kind that it cannot have",
                ));
            }
        } else if kind != Kind::Ignorable {
            // A step has a name and no scope. A completed one without a name holds the input.
            let is_input = kind == Kind::StepCompleted && key_length == 0;
            let is_in_range = (is_input || key.check().is_ok()) && !(is_step && flags & FLAG_SCOPE != 0);
            if !is_in_range || (flags & FLAG_SCOPE == 0 && scope_length != 0) {
                return Err(FormatError::Damaged("the record's key is out of range"));
            }
        }
        if flags & FLAG_RESULT == 0 && value_length != 0 {
            return Err(FormatError::Damaged("the record has a value and lacks the flag for it"));
        }
        let not_kept = flags & FLAG_NOT_KEPT != 0;
        let is_completed = matches!(kind, Kind::Completed | Kind::StepCompleted);
        if kind != Kind::Ignorable && not_kept && (flags & FLAG_RESULT != 0 || !is_completed) {
            return Err(FormatError::Damaged(
                "the record has the flag of a result not kept, and has a result or cannot have one",
            ));
        }
        let given_up = flags & FLAG_GIVEN_UP != 0;
        if kind != Kind::Ignorable && given_up && kind != Kind::StepBegun {
            return Err(FormatError::Damaged(
                "the record has the flag of a step that was given up, and is not one",
            ));
        }
        let record = Record {
            kind,
            key,
            version: Version::from_u64(record_header::VERSION.u64(bytes)),
            origin: Version::from_u64(record_header::ORIGIN.u64(bytes)),
            fingerprint: Fingerprint::from_bytes(record_header::FINGERPRINT.get(bytes)),
            attempt: record_header::ATTEMPT.u32(bytes),
            time_ms: record_header::TIME_MS.u64(bytes),
            key_expires_ms: record_header::KEY_EXPIRES_MS.u64(bytes),
            result_expires_ms: record_header::RESULT_EXPIRES_MS.u64(bytes),
            value: Value {
                result: (flags & FLAG_RESULT != 0).then(|| &bytes[value_at..end]),
                not_kept,
                given_up,
                typing,
            },
        };
        if kind == Kind::Message && record.message().is_none() {
            return Err(FormatError::Damaged("the message has no topic"));
        }
        Ok(record)
    }
}

/// The kinds of the records that a record of kind `Unreadable` can carry.
const CARRIED_KINDS: [u8; 3] = [1, 2, 3];
/// The kinds of the records that a record of kind `StepUnreadable` can carry.
const CARRIED_STEP_KINDS: [u8; 3] = [16, 17, 18];
/// The kinds of the records that a record of kind `MessageUnreadable` can carry.
const CARRIED_MESSAGE_KINDS: [u8; 1] = [32];

/// Decodes the extension of a record, which is absent if `bytes` is empty.
fn decode_extension(bytes: &[u8]) -> Result<Option<Typing>, FormatError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let unknown = FormatError::Unknown("the record has an unknown extension");
    if bytes.len() < typing::CODEC.end()
        || typing::NUMBER.u8(bytes) != TYPING
        || EXTENSION_HEADER_BYTES + usize::from(typing::CONTENT_LENGTH.u8(bytes)) != bytes.len()
    {
        return Err(unknown);
    }
    let shape = match typing::CONTENT_LENGTH.u8(bytes) {
        TYPING_BYTES => None,
        SHAPED_TYPING_BYTES => Some(typing::SHAPE.u64(bytes)),
        _ => return Err(FormatError::Damaged("the length of the record's typing is out of range")),
    };
    Ok(Some(Typing { scheme: typing::SCHEME.u8(bytes), codec: typing::CODEC.u8(bytes), shape }))
}

fn narrow_u16(length_bytes: usize) -> u16 {
    u16::try_from(length_bytes).unwrap_or_else(|_| {
        unreachable!("keys and scopes are checked to be at most 1,024, extensions are shorter")
    })
}

/// Returns the length that the record at the start of `bytes` states. The length is within the limits, but only the record's
/// checksum shows whether it is right.
pub(crate) fn record_length(bytes: &[u8]) -> Result<usize, FormatError> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return Err(FormatError::Damaged("the record is cut short"));
    }
    let length = u64::from(record_header::LENGTH.u32(bytes));
    if length < RECORD_HEADER_BYTES as u64
        || !length.is_multiple_of(ALIGNMENT_BYTES)
        || length > super::MAX_RECORD_BYTES
    {
        return Err(FormatError::Damaged("the record's length is out of range"));
    }
    usize::try_from(length).map_err(|_| FormatError::Damaged("the record's length is out of range"))
}

/// Whether the bytes may begin with a record: its kind is known, and its parts add up to its length. Only its checksum shows
/// whether it is one. A search for records among damaged bytes rules out nearly everything by this, at little cost.
pub(crate) fn may_be_record(bytes: &[u8]) -> bool {
    let Ok(length) = record_length(bytes) else { return false };
    let parts = RECORD_HEADER_BYTES as u64
        + u64::from(record_header::EXTENSION_LENGTH.u16(bytes))
        + u64::from(record_header::SCOPE_LENGTH.u16(bytes))
        + u64::from(record_header::KEY_LENGTH.u16(bytes))
        + u64::from(record_header::VALUE_LENGTH.u32(bytes));
    length <= bytes.len() && align(parts) == length as u64 && record_header::KIND.u8(bytes) != 0
}

/// Ties the checksum of the newly encoded record at the start of `bytes` to its position. Returns the checksum as written to
/// disk.
pub(crate) fn tie_to_position(bytes: &mut [u8], position: u64) -> u32 {
    let checksum = record_header::CHECKSUM.u32(bytes) ^ position_tie(position);
    record_header::CHECKSUM.put(bytes, checksum.to_le_bytes());
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::footer::FooterEntry;
    use crate::format::put;
    use proptest::prelude::*;

    const SEED: Seed = Seed(77);
    const POSITION: u64 = 12_345_672;

    // The offsets of the low bytes of fields that the tests change.
    const KIND: usize = record_header::KIND.offset();
    const FLAGS: usize = record_header::FLAGS.offset();
    const KEY_LENGTH: usize = record_header::KEY_LENGTH.offset();
    const SCOPE_LENGTH: usize = record_header::SCOPE_LENGTH.offset();
    const EXTENSION_LENGTH: usize = record_header::EXTENSION_LENGTH.offset();
    const ATTEMPT: usize = record_header::ATTEMPT.offset();
    const VALUE_LENGTH: usize = record_header::VALUE_LENGTH.offset();

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(SEED).append_to(&mut bytes);
        tie_to_position(&mut bytes, POSITION);
        bytes
    }

    fn sample<'a>(key: Key<'a>, result: Option<&'a [u8]>) -> Record<'a> {
        Record {
            kind: Kind::Completed,
            key,
            version: Version::from_u64(7 << 40 | 9),
            origin: Version::from_u64(7 << 40 | 8),
            fingerprint: Fingerprint::from_bytes([3; 16]),
            attempt: 2,
            time_ms: 1_700_000_000_000,
            key_expires_ms: NEVER,
            result_expires_ms: 5,
            value: Value { result, ..Value::NONE },
        }
    }

    const NEVER: u64 = super::super::NEVER_MS;

    proptest! {
        #[test]
        fn a_record_round_trips(
            name in proptest::collection::vec(any::<u8>(), 1..1_024),
            scope in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..1_024)),
            result in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3_000)),
            not_kept: bool,
            typing in proptest::option::of((any::<u8>(), any::<u8>(), any::<Option<u64>>())),
        ) {
            let key = Key::new(&name);
            let key = match &scope { Some(scope) => key.scope(scope), None => key };
            let typing = typing.map(|(scheme, codec, shape)| Typing { scheme, codec, shape });
            let value = Value { result: result.as_deref(), not_kept: result.is_none() && not_kept, typing, ..Value::NONE };
            let record = Record { value, ..sample(key, None) };
            let bytes = encoded(&record);
            prop_assert_eq!(bytes.len() as u64, encoded_bytes(key, &value));
            prop_assert!(bytes.len() as u64 <= max_encoded_bytes(key, value.result_bytes()));
            prop_assert_eq!(Record::decode(&bytes, POSITION, SEED), Ok(record));
        }

        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes, POSITION, SEED);
        }
    }

    /// A record of a step. Its name is the key, and the expiries hold the hash of its operation's key.
    fn step_record<'a>(kind: Kind, name: &'a str, value: Value<'a>) -> Record<'a> {
        let (key_expires_ms, result_expires_ms) = halves(PARENT);
        Record { kind, value, key_expires_ms, result_expires_ms, ..sample(Key::new(name), None) }
    }

    const PARENT: u128 = 0x0123_4567_89AB_CDEF_0F1E_2D3C_4B5A_6978;

    #[test]
    fn every_kind_of_a_step_round_trips() {
        let given_up = Value { given_up: true, ..Value::NONE };
        for (kind, name, value) in [
            (Kind::StepBegun, "reserve", Value::NONE),
            (Kind::StepBegun, "reserve", given_up),
            (Kind::StepCompleted, "reserve", Value::bytes(b"stock 7")),
            (Kind::StepCompleted, "reserve", Value::not_kept(None)),
            (Kind::StepCompleted, "", Value::bytes(b"the input")),
            (Kind::StepReleased, "reserve", Value::NONE),
        ] {
            let record = step_record(kind, name, value);
            assert_eq!(Record::decode(&encoded(&record), POSITION, SEED), Ok(record));
            assert_eq!((record.parent_hash(), kind.domain()), (PARENT, Some(Domain::Step)));
            let hasher = KeyHasher::new([9; 16]);
            let hash = hasher.step(PARENT, record.origin.as_u64(), name.as_bytes());
            assert_eq!(record.key_hash(&hasher), hash);
            let entry = FooterEntry {
                hash,
                version: record.version,
                key_expires_ms: record.key_expires_ms,
                result_expires_ms: record.result_expires_ms,
                offset: 8,
                length: 96,
                kind,
            };
            assert_eq!((entry.parent_hash(), entry.flight_hash()), (PARENT, PARENT));
            let carrier = entry.carrying(b"rotten", 3);
            assert_eq!(Record::decode(&encoded(&carrier), POSITION, SEED), Ok(carrier));
            assert_eq!((carrier.kind, carrier.carried_kind()), (Kind::StepUnreadable, Some(kind)));
            assert_eq!((carrier.key_hash(&hasher), carrier.parent_hash()), (hash, PARENT));
        }
    }

    #[test]
    fn a_step_record_with_parts_that_it_cannot_have_is_refused() {
        let refused = |record: &Record<'_>, reason: &str| {
            let error = Record::decode(&encoded(record), POSITION, SEED).unwrap_err();
            assert!(matches!(error, FormatError::Damaged(_)) && error.reason().contains(reason), "{error}");
        };
        let given_up = Value { given_up: true, ..Value::NONE };
        refused(&step_record(Kind::StepCompleted, "a", given_up), "given up");
        refused(&Record { value: given_up, ..sample(Key::new("a"), None) }, "given up");
        refused(&step_record(Kind::StepBegun, "", Value::NONE), "out of range");
        refused(&step_record(Kind::StepReleased, "", Value::NONE), "out of range");
        let scoped =
            Record { key: Key::new("a").scope("s"), ..step_record(Kind::StepBegun, "a", Value::NONE) };
        refused(&scoped, "out of range");
        refused(&step_record(Kind::StepBegun, "a", Value::not_kept(None)), "not kept");
        let of_key = FooterEntry {
            hash: 5,
            version: Version::from_u64(1),
            key_expires_ms: 1,
            result_expires_ms: 2,
            offset: 8,
            length: 96,
            kind: Kind::Completed,
        };
        refused(&Record { attempt: 16, ..of_key.carrying(b"", 3) }, "kind that it cannot have");
        let of_step = FooterEntry { kind: Kind::StepBegun, ..of_key };
        refused(&Record { attempt: 2, ..of_step.carrying(b"", 3) }, "kind that it cannot have");
    }

    #[test]
    fn a_record_of_a_different_position_or_file_is_refused() {
        let bytes = encoded(&sample(Key::new("k"), Some(b"result")));
        assert!(Record::decode(&bytes, POSITION, SEED).is_ok());
        assert!(Record::decode(&bytes, POSITION + 8, SEED).is_err());
        assert!(Record::decode(&bytes, POSITION, Seed(78)).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_detected() {
        let bytes = encoded(&sample(Key::new("key").scope("scope"), Some(b"result")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&damaged, POSITION, SEED).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_key_round_trips_even_if_it_does_not_fit_the_head() {
        let long = "k".repeat(HEAD_BYTES);
        for (scope, name) in [("s", "k"), ("s", &*long), (&*long, "k"), (&*long, &*long)] {
            let record = sample(Key::new(name).scope(scope), Some(b"result"));
            assert_eq!(Record::decode(&encoded(&record), POSITION, SEED), Ok(record));
        }
    }

    #[test]
    fn an_unknown_kind_is_refused_unless_it_is_ignorable() {
        for (kind, expected) in [(9, None), (20, None), (0x90, Some(Kind::Ignorable))] {
            let bytes = forged(&sample(Key::new("k"), None), |bytes| bytes[KIND] = kind);
            assert_eq!(Record::decode(&bytes, POSITION, SEED).ok().map(|record| record.kind), expected);
        }
    }

    /// Every kind that the specification names.
    const KINDS: [Kind; 9] = [
        Kind::Begun,
        Kind::Completed,
        Kind::Released,
        Kind::Forgotten,
        Kind::Unreadable,
        Kind::StepBegun,
        Kind::StepCompleted,
        Kind::StepReleased,
        Kind::StepUnreadable,
    ];

    #[test]
    fn every_kind_round_trips_through_its_byte() {
        for kind in KINDS.into_iter().chain([Kind::Ignorable]) {
            assert_eq!(Kind::from_byte(kind.to_byte()), Some(kind));
        }
        assert_eq!(Kind::from_byte(0), None);
    }

    #[test]
    fn the_specification_lists_every_kind() {
        let page = include_str!("format.md");
        for kind in KINDS {
            let name = format!("{kind:?}").replace("Step", "step ").to_lowercase();
            assert!(page.contains(&format!("\n| {} | {name} |", kind.to_byte())), "{name}");
        }
    }

    /// Changes bytes of a record and corrects its checksum.
    fn forged(record: &Record<'_>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(SEED).append_to(&mut bytes);
        change(&mut bytes);
        let checksum = SEED.checksum(&bytes[record_header::CHECKSUM.end()..]);
        record_header::CHECKSUM.put(&mut bytes, checksum.to_le_bytes());
        tie_to_position(&mut bytes, POSITION);
        bytes
    }

    #[test]
    fn contradictory_parts_are_refused_despite_a_valid_checksum() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let bytes = forged(&sample(Key::new("key").scope("scope"), Some(b"result")), change);
            Record::decode(&bytes, POSITION, SEED).map(drop).map_err(FormatError::reason)
        };
        assert_eq!(refused(|_| {}), Ok(()));
        let parts = Err("the record's parts do not add up to its length");
        // 80 + 5 + 3 + 6 = 94 bytes, padded to 96. So the value can be two bytes longer, but not three.
        assert_eq!(refused(|bytes| bytes[VALUE_LENGTH] = 8), Ok(()));
        assert_eq!(refused(|bytes| bytes[VALUE_LENGTH] = 9), parts);
        assert_eq!(refused(|bytes| bytes[VALUE_LENGTH] = 1), Ok(()), "seven bytes of padding");
        assert_eq!(refused(|bytes| bytes[VALUE_LENGTH] = 0), parts, "eight bytes of padding");
        assert_eq!(refused(|bytes| bytes[FLAGS] |= 16), Err("the record has unknown flags"));
        let extension = Err("the record has an unknown extension");
        assert_eq!(
            refused(|bytes| (bytes[SCOPE_LENGTH], bytes[EXTENSION_LENGTH]) = (0, 5)),
            extension,
            "an unknown number"
        );
        assert_eq!(
            refused(|bytes| {
                (bytes[SCOPE_LENGTH], bytes[EXTENSION_LENGTH]) = (0, 5);
                put(bytes, RECORD_HEADER_BYTES, &[TYPING, 2]);
            }),
            extension,
            "a content length that does not fit"
        );
        assert_eq!(
            refused(|bytes| {
                (bytes[SCOPE_LENGTH], bytes[EXTENSION_LENGTH]) = (0, 5);
                put(bytes, RECORD_HEADER_BYTES, &[TYPING, 3]);
            }),
            Err("the length of the record's typing is out of range")
        );
        let not_kept =
            Err("the record has the flag of a result not kept, and has a result or cannot have one");
        assert_eq!(refused(|bytes| bytes[FLAGS] |= FLAG_NOT_KEPT), not_kept, "there is a result");
        assert_eq!(
            refused(|bytes| (bytes[KIND], bytes[FLAGS]) = (1, FLAG_SCOPE | FLAG_NOT_KEPT)),
            Err("the record has a value and lacks the flag for it")
        );
        let key = Err("the record's key is out of range");
        assert_eq!(refused(|bytes| (bytes[KEY_LENGTH], bytes[VALUE_LENGTH]) = (0, 8)), key, "an empty key");
        assert_eq!(refused(|bytes| bytes[FLAGS] = FLAG_RESULT), key, "a scope without its flag");
        assert_eq!(
            refused(|bytes| bytes[FLAGS] = FLAG_SCOPE),
            Err("the record has a value and lacks the flag for it")
        );
    }

    #[test]
    fn an_ignorable_record_may_have_any_flags_and_extension() {
        let bytes = forged(&sample(Key::new("key").scope("scope"), Some(b"result")), |bytes| {
            bytes[KIND] = Kind::Ignorable.to_byte();
            bytes[FLAGS] = 0xFF;
            (bytes[SCOPE_LENGTH], bytes[EXTENSION_LENGTH]) = (4, 1);
        });
        assert_eq!(Record::decode(&bytes, POSITION, SEED).map(|record| record.kind), Ok(Kind::Ignorable));
    }

    #[test]
    fn a_record_length_out_of_range_or_unaligned_is_refused() {
        let length = |bytes: u32| {
            let mut header = [0; RECORD_HEADER_BYTES];
            record_header::LENGTH.put(&mut header, bytes.to_le_bytes());
            record_length(&header).map_err(FormatError::reason)
        };
        let out_of_range = Err("the record's length is out of range");
        assert_eq!(length(80), Ok(80));
        assert_eq!(length(72), out_of_range);
        assert_eq!(length(84), out_of_range);
        assert_eq!(length(64 << 20), Ok(64 << 20));
        assert_eq!(length((64 << 20) + 8), out_of_range);
        assert_eq!(
            record_length(&[0; RECORD_HEADER_BYTES - 1]).map_err(FormatError::reason),
            Err("the record is cut short")
        );
    }

    fn listed(kind: Kind, key_expires_ms: u64) -> FooterEntry {
        FooterEntry {
            hash: 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10,
            version: Version::from_u64(7 << 40 | 9),
            key_expires_ms,
            result_expires_ms: 5,
            offset: 4_096,
            length: 88,
            kind,
        }
    }

    /// Pins every byte of the encoding.
    #[test]
    fn the_typing_extension_lies_between_header_and_scope() {
        let typing = Typing { scheme: 1, codec: 2, shape: Some(0x0807_0605_0403_0201) };
        let mut bytes = Vec::new();
        let key = Key::new("k").scope("s");
        Record { value: Value::typed(b"r", typing), ..sample(key, None) }.encode(SEED).append_to(&mut bytes);
        assert_eq!((bytes[9], bytes[14], bytes[15]), (FLAG_SCOPE | FLAG_RESULT, 12, 0));
        assert_eq!(bytes[80..], *b"\x01\x0A\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08skr\0");

        let mut bytes = Vec::new();
        let typing = Typing { shape: None, ..typing };
        Record { value: Value::not_kept(Some(typing)), ..sample(key, None) }
            .encode(SEED)
            .append_to(&mut bytes);
        assert_eq!((bytes[9], bytes[14]), (FLAG_SCOPE | FLAG_NOT_KEPT, 4));
        assert_eq!(bytes[80..], *b"\x01\x02\x01\x02sk\0\0");
    }

    /// Pins every byte of the encoding.
    #[test]
    fn a_carried_record_is_encoded_as_specified() {
        let mut bytes = Vec::new();
        listed(Kind::Completed, 200).carrying(b"whatever is left", 3).encode(SEED).append_to(&mut bytes);
        let mut expected = vec![0; 96];
        put(&mut expected, 4, &96_u32.to_le_bytes());
        (expected[8], expected[9]) = (5, 2);
        put(&mut expected, 16, &(7_u64 << 40 | 9).to_le_bytes());
        put(&mut expected, 32, &[0x10, 0x0F, 0x0E, 0x0D, 0x0C, 0x0B, 0x0A, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        (expected[48], expected[52], expected[56], expected[64], expected[72]) = (2, 16, 3, 200, 5);
        put(&mut expected, 80, b"whatever is left");
        let checksum = SEED.checksum(&expected[4..]);
        put(&mut expected, 0, &checksum.to_le_bytes());
        assert_eq!(bytes, expected);

        tie_to_position(&mut bytes, POSITION);
        let record = Record::decode(&bytes, POSITION, SEED).unwrap();
        let hasher = KeyHasher::new([1; 16]);
        assert_eq!(record.key_hash(&hasher), listed(Kind::Begun, 0).hash);
        assert_eq!(
            (record.carried_kind(), record.value.result),
            (Some(Kind::Completed), Some(&b"whatever is left"[..]))
        );
        assert_eq!((record.key_expires_ms, record.result_expires_ms), (200, 5));
        let begun = listed(Kind::Begun, 200).carrying(b"", 3);
        assert_eq!(
            (begun.carried_kind(), begun.key_expires_ms),
            (Some(Kind::Begun), NEVER),
            "an attempt must not end by time"
        );
        let again = listed(Kind::Unreadable, 200).carrying(b"", 3);
        assert_eq!(
            (again.carried_kind(), again.key_expires_ms),
            (None, 200),
            "the expiry is kept, but the kind is lost"
        );
        let sound = sample(Key::new("k"), None);
        assert_eq!((sound.carried_kind(), sound.key_hash(&hasher)), (None, hasher.key(Key::new("k"))));
    }

    #[test]
    fn an_unreadable_record_with_a_key_or_without_a_value_is_refused() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let bytes = forged(&listed(Kind::Begun, 0).carrying(b"seven..", 3), change);
            Record::decode(&bytes, POSITION, SEED).map(drop).map_err(FormatError::reason)
        };
        assert_eq!(refused(|_| {}), Ok(()));
        let cannot_be =
            Err("the record that carries an unreadable one has parts or a kind that it cannot have");
        assert_eq!(refused(|bytes| (bytes[KEY_LENGTH], bytes[VALUE_LENGTH]) = (1, 6)), cannot_be, "a key");
        assert_eq!(refused(|bytes| bytes[FLAGS] = FLAG_RESULT | FLAG_SCOPE), cannot_be, "a scope");
        assert_eq!(refused(|bytes| (bytes[FLAGS], bytes[VALUE_LENGTH]) = (0, 7)), cannot_be, "no value");
        assert_eq!(refused(|bytes| bytes[ATTEMPT] = 4), cannot_be, "a kind that is never carried");
    }
}
