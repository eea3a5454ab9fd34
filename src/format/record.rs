//! One record: what one change of one key says, as bytes.

use super::{ALIGNMENT_BYTES, FormatError, Seed, align, array, get_u16, get_u32, get_u64, narrow, put};
use crate::key::{Fingerprint, Key, KeyHasher, MAX_KEY_BYTES};
use crate::planted::{Bug, planted};
use crate::status::Version;

/// The fixed part of a record.
pub(crate) const RECORD_HEADER_BYTES: usize = 80;
/// The longest record without a value.
pub(crate) const MAX_BARE_RECORD_BYTES: u64 =
    align((RECORD_HEADER_BYTES + MAX_EXTENSION_BYTES + 2 * MAX_KEY_BYTES) as u64);

const _: () = assert!((RECORD_HEADER_BYTES as u64).is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(MAX_BARE_RECORD_BYTES == 80 + 16 + 1_024 + 1_024);

const FLAG_SCOPE: u8 = 1;
const FLAG_RESULT: u8 = 2;
const FLAG_NOT_KEPT: u8 = 4;
const KNOWN_FLAGS: u8 = FLAG_SCOPE | FLAG_RESULT | FLAG_NOT_KEPT;

/// The number of the extension that holds a [`Typing`], and the bytes before its content: its number and its length.
const TYPING: u8 = 1;
const EXTENSION_HEADER_BYTES: usize = 2;
/// The content of a typing without a shape, and with one.
const TYPING_BYTES: u8 = 2;
const SHAPED_TYPING_BYTES: u8 = 10;
/// The longest extension of a record.
const MAX_EXTENSION_BYTES: usize = EXTENSION_HEADER_BYTES + SHAPED_TYPING_BYTES as usize;
const IGNORABLE: u8 = 0x80;

/// What a record does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An attempt began.
    Begun,
    /// The act was performed.
    Completed,
    /// The last attempt certainly did not perform the act.
    Released,
    /// What was known of the key was given up.
    Forgotten,
    /// A record that could not be read any more was carried along in this one.
    Unreadable,
    /// Of a later version of the format, which says that it may be passed over.
    Ignorable,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Begun),
            2 => Some(Kind::Completed),
            3 => Some(Kind::Released),
            4 => Some(Kind::Forgotten),
            5 => Some(Kind::Unreadable),
            unknown if unknown & IGNORABLE != 0 => Some(Kind::Ignorable),
            _ => None,
        }
    }

    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Kind::Begun => 1,
            Kind::Completed => 2,
            Kind::Released => 3,
            Kind::Forgotten => 4,
            Kind::Unreadable => 5,
            Kind::Ignorable => IGNORABLE,
        }
    }
}

/// How the typed interface made a record: what a later call needs to read it as what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Typing {
    /// How the fingerprint was made: 0 = by the caller, 1 = from the meaning of a typed request.
    pub(crate) scheme: u8,
    /// The codec's number.
    pub(crate) codec: u8,
    /// The shape of the result, if the codec is positional and there is a result.
    pub(crate) shape: Option<u64>,
}

impl Typing {
    fn content_bytes(self) -> u8 {
        if self.shape.is_some() { SHAPED_TYPING_BYTES } else { TYPING_BYTES }
    }
}

/// The value that a record has for its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value<'a> {
    /// None: there is no result. An empty result is a result.
    pub(crate) result: Option<&'a [u8]>,
    /// The operation has a result that was never recorded.
    pub(crate) not_kept: bool,
    pub(crate) typing: Option<Typing>,
}

impl<'a> Value<'a> {
    /// No result.
    pub(crate) const NONE: Value<'static> = Value { result: None, not_kept: false, typing: None };

    /// A result that the caller gave as bytes.
    pub(crate) fn bytes(result: &'a [u8]) -> Value<'a> {
        Value { result: Some(result), ..Value::NONE }
    }

    /// A result that a codec encoded.
    pub(crate) fn typed(result: &'a [u8], typing: Typing) -> Value<'a> {
        Value { result: Some(result), typing: Some(typing), ..Value::NONE }
    }

    /// A result that could not be recorded.
    pub(crate) fn not_kept(typing: Option<Typing>) -> Value<'static> {
        Value { not_kept: true, typing, ..Value::NONE }
    }

    /// No result yet, of an operation of the typed interface.
    pub(crate) fn begun(typing: Option<Typing>) -> Value<'static> {
        Value { typing, ..Value::NONE }
    }

    /// What is left of it when its result is given up.
    pub(crate) fn without_result(self) -> Value<'static> {
        let typing = self.typing.map(|typing| Typing { shape: None, ..typing });
        Value { result: None, not_kept: self.not_kept, typing }
    }

    pub(crate) fn result_bytes(&self) -> usize {
        self.result.map_or(0, <[u8]>::len)
    }

    fn extension_bytes(&self) -> usize {
        self.typing.map_or(0, |typing| EXTENSION_HEADER_BYTES + usize::from(typing.content_bytes()))
    }
}

/// A record, its variable parts borrowed from the log or from the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) key: Key<'a>,
    pub(crate) version: Version,
    pub(crate) origin: Version,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: u32,
    pub(crate) time_ms: u64,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
    pub(crate) value: Value<'a>,
}

/// The bytes that a record with these parts takes in the log.
pub(crate) fn encoded_bytes(key: Key<'_>, value: &Value<'_>) -> u64 {
    bytes_of_parts(key, value.extension_bytes(), value.result_bytes())
}

/// The most bytes that a record takes whose result is no longer than this.
pub(crate) fn most_encoded_bytes(key: Key<'_>, max_result_bytes: usize) -> u64 {
    bytes_of_parts(key, MAX_EXTENSION_BYTES, max_result_bytes)
}

fn bytes_of_parts(key: Key<'_>, extension_bytes: usize, result_bytes: usize) -> u64 {
    let scope = key.scope_name().map_or(0, <[u8]>::len);
    align((RECORD_HEADER_BYTES + extension_bytes + scope + key.name().len() + result_bytes) as u64)
}

/// What ties a record's checksum to its position.
fn place(position: u64) -> u32 {
    (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// A record's header with the longest extension.
const MAX_HEAD_BYTES: usize = RECORD_HEADER_BYTES + MAX_EXTENSION_BYTES;

/// A record as it goes into a frame: header and checksum are encoded, key and result are still the caller's.
///
/// What is left to do is to copy it. Encoding happens before a thread takes the lock of the commit queue, copying while
/// it holds the lock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncodedRecord<'a> {
    /// Header and extension.
    head: [u8; MAX_HEAD_BYTES],
    head_bytes: usize,
    scope: &'a [u8],
    name: &'a [u8],
    result: &'a [u8],
    padding_bytes: usize,
    length_bytes: usize,
}

impl EncodedRecord<'_> {
    pub(crate) fn length_bytes(&self) -> u64 {
        self.length_bytes as u64
    }

    /// What follows header and extension.
    fn tail_parts(&self) -> [&[u8]; 4] {
        [self.scope, self.name, self.result, &[0; 8][..self.padding_bytes]]
    }

    /// Copies the record to the end of `out`.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.length_bytes);
        out.extend_from_slice(&self.head[..self.head_bytes]);
        self.tail_parts().into_iter().for_each(|part| out.extend_from_slice(part));
    }
}

impl<'a> Record<'a> {
    /// The identity of the key that the record is of.
    pub(crate) fn key_hash(&self, hasher: &KeyHasher) -> u128 {
        match self.kind {
            Kind::Unreadable if !planted(Bug::UnreadableKeyHashLost) => {
                u128::from_le_bytes(self.fingerprint.to_bytes())
            }
            _ => hasher.key(self.key),
        }
    }

    /// What kind of record was carried along in this one, if that is known.
    pub(crate) fn carried_kind(&self) -> Option<Kind> {
        u8::try_from(self.attempt).ok().filter(|_| self.kind == Kind::Unreadable).and_then(Kind::from_byte)
    }

    /// The record in `bytes` whatever its checksum says: what a planted bug does.
    pub(crate) fn decode_regardless(bytes: &'a mut [u8]) -> Result<Record<'a>, FormatError> {
        let length = record_length(bytes)?.min(bytes.len());
        let checksum = Seed::NONE.checksum(&bytes[4..length]) ^ place(0);
        put(bytes, 0, &checksum.to_le_bytes());
        Record::decode(bytes, 0, Seed::NONE)
    }

    /// Encodes the record's header and computes its checksum, without copying the key or the result.
    ///
    /// The checksum is not tied to a position yet: [`stamp`] does that once the position is known.
    pub(crate) fn encode(&self, seed: Seed) -> EncodedRecord<'a> {
        let scope = self.key.scope_name();
        let result = self.value.result.unwrap_or_default();
        let length_bytes = usize::try_from(encoded_bytes(self.key, &self.value))
            .unwrap_or_else(|_| unreachable!("lengths are bounded by max_frame_bytes"));
        let flags = if scope.is_some() { FLAG_SCOPE } else { 0 }
            | if self.value.result.is_some() { FLAG_RESULT } else { 0 }
            | if self.value.not_kept { FLAG_NOT_KEPT } else { 0 };
        let mut head = [0; MAX_HEAD_BYTES];
        put(&mut head, 4, &narrow(length_bytes).to_le_bytes());
        head[8] = self.kind.to_byte();
        head[9] = flags;
        put(&mut head, 10, &narrow_u16(self.key.name().len()).to_le_bytes());
        put(&mut head, 12, &narrow_u16(scope.map_or(0, <[u8]>::len)).to_le_bytes());
        put(&mut head, 14, &narrow_u16(self.value.extension_bytes()).to_le_bytes());
        put(&mut head, 16, &self.version.as_u64().to_le_bytes());
        put(&mut head, 24, &self.origin.as_u64().to_le_bytes());
        put(&mut head, 32, &self.fingerprint.to_bytes());
        put(&mut head, 48, &self.attempt.to_le_bytes());
        put(&mut head, 52, &narrow(result.len()).to_le_bytes());
        put(&mut head, 56, &self.time_ms.to_le_bytes());
        put(&mut head, 64, &self.key_expires_ms.to_le_bytes());
        put(&mut head, 72, &self.result_expires_ms.to_le_bytes());
        if let Some(typing) = self.value.typing {
            let fixed = [TYPING, typing.content_bytes(), typing.scheme, typing.codec];
            put(&mut head, RECORD_HEADER_BYTES, &fixed);
            if let Some(shape) = typing.shape {
                put(&mut head, RECORD_HEADER_BYTES + fixed.len(), &shape.to_le_bytes());
            }
        }
        let head_bytes = RECORD_HEADER_BYTES + self.value.extension_bytes();
        let (scope, name) = (scope.unwrap_or_default(), self.key.name());
        let padding_bytes = length_bytes - (head_bytes + scope.len() + name.len() + result.len());
        let mut encoded =
            EncodedRecord { head, head_bytes, scope, name, result, padding_bytes, length_bytes };
        let mut hasher = seed.hasher();
        hasher.update(&head[4..head_bytes]);
        encoded.tail_parts().into_iter().for_each(|part| hasher.update(part));
        put(&mut encoded.head, 0, &hasher.finalize().to_le_bytes());
        encoded
    }

    /// The record at `position`, which `bytes` starts with.
    pub(crate) fn decode(bytes: &'a [u8], position: u64, seed: Seed) -> Result<Record<'a>, FormatError> {
        let length = record_length(bytes)?;
        if bytes.len() < length {
            return Err(FormatError::Damaged("the record is longer than what holds it"));
        }
        let bytes = &bytes[..length];
        if get_u32(bytes, 0) ^ place(position) != seed.checksum(&bytes[4..]) {
            return Err(FormatError::Damaged("the record's checksum does not fit"));
        }
        let kind =
            Kind::from_byte(bytes[8]).ok_or(FormatError::Unknown("the record is of an unknown kind"))?;
        let flags = bytes[9];
        let scope_length = usize::from(get_u16(bytes, 12));
        let extension_length = usize::from(get_u16(bytes, 14));
        let key_length = usize::from(get_u16(bytes, 10));
        let value_length = usize::try_from(get_u32(bytes, 52))
            .map_err(|_| FormatError::Damaged("the record's value is too long"))?;
        let scope_at = RECORD_HEADER_BYTES + extension_length;
        let key_at = scope_at + scope_length;
        let value_at = key_at + key_length;
        let end = value_at
            .checked_add(value_length)
            .ok_or(FormatError::Damaged("the record's value is too long"))?;
        if end > length || length - end >= 8 {
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
        if kind == Kind::Unreadable {
            let is_plain =
                flags == FLAG_RESULT && scope_length == 0 && key_length == 0 && extension_length == 0;
            if !is_plain || get_u32(bytes, 48) > u32::from(Kind::Released.to_byte()) {
                return Err(FormatError::Damaged(
                    "the record that carries an unreadable one is not what such records are",
                ));
            }
        } else if kind != Kind::Ignorable
            && (key.check().is_err() || (flags & FLAG_SCOPE == 0 && scope_length != 0))
        {
            return Err(FormatError::Damaged("the record's key is out of range"));
        }
        if flags & FLAG_RESULT == 0 && value_length != 0 {
            return Err(FormatError::Damaged("the record has a value and says that it has none"));
        }
        let not_kept = flags & FLAG_NOT_KEPT != 0;
        if kind != Kind::Ignorable && not_kept && (flags & FLAG_RESULT != 0 || kind != Kind::Completed) {
            return Err(FormatError::Damaged(
                "the record says that no result was kept where none can be missing",
            ));
        }
        Ok(Record {
            kind,
            key,
            version: Version::from_u64(get_u64(bytes, 16)),
            origin: Version::from_u64(get_u64(bytes, 24)),
            fingerprint: Fingerprint::from_bytes(array(bytes, 32)),
            attempt: get_u32(bytes, 48),
            time_ms: get_u64(bytes, 56),
            key_expires_ms: get_u64(bytes, 64),
            result_expires_ms: get_u64(bytes, 72),
            value: Value {
                result: (flags & FLAG_RESULT != 0).then(|| &bytes[value_at..end]),
                not_kept,
                typing,
            },
        })
    }
}

/// What the extension of a record says.
fn decode_extension(bytes: &[u8]) -> Result<Option<Typing>, FormatError> {
    match bytes {
        [] => Ok(None),
        [TYPING, length, scheme, codec, shape @ ..]
            if usize::from(*length) == usize::from(TYPING_BYTES) + shape.len() =>
        {
            let shape = match shape.len() {
                0 => None,
                8 => Some(get_u64(shape, 0)),
                _ => {
                    return Err(FormatError::Damaged("the record's typing is of no length that it can have"));
                }
            };
            Ok(Some(Typing { scheme: *scheme, codec: *codec, shape }))
        }
        _ => Err(FormatError::Unknown("the record has an unknown extension")),
    }
}

fn narrow_u16(length_bytes: usize) -> u16 {
    u16::try_from(length_bytes).unwrap_or_else(|_| {
        unreachable!("keys and scopes are checked to be at most 1,024, extensions are shorter")
    })
}

/// The length that the record at the start of `bytes` gives itself, checked to be possible but not to be true.
pub(crate) fn record_length(bytes: &[u8]) -> Result<usize, FormatError> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return Err(FormatError::Damaged("the record is cut short"));
    }
    let length = u64::from(get_u32(bytes, 4));
    if length < RECORD_HEADER_BYTES as u64
        || !length.is_multiple_of(ALIGNMENT_BYTES)
        || length > super::MAX_RECORD_BYTES
    {
        return Err(FormatError::Damaged("the record's length is out of range"));
    }
    usize::try_from(length).map_err(|_| FormatError::Damaged("the record's length is out of range"))
}

/// Ties the checksum of the freshly encoded record at the start of `bytes` to its position; returns the checksum as
/// it goes to disk.
pub(crate) fn stamp(bytes: &mut [u8], position: u64) -> u32 {
    let checksum = get_u32(bytes, 0) ^ place(position);
    put(bytes, 0, &checksum.to_le_bytes());
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::footer::FooterEntry;
    use proptest::prelude::*;

    const SEED: Seed = Seed(77);
    const POSITION: u64 = 12_345_672;

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(SEED).append_to(&mut bytes);
        stamp(&mut bytes, POSITION);
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
        fn a_record_comes_back_as_it_was_written(
            name in proptest::collection::vec(any::<u8>(), 1..1_024),
            scope in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..1_024)),
            result in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3_000)),
            not_kept: bool,
            typing in proptest::option::of((any::<u8>(), any::<u8>(), any::<Option<u64>>())),
        ) {
            let key = Key::new(&name);
            let key = match &scope { Some(scope) => key.scope(scope), None => key };
            let typing = typing.map(|(scheme, codec, shape)| Typing { scheme, codec, shape });
            let value = Value { result: result.as_deref(), not_kept: result.is_none() && not_kept, typing };
            let record = Record { value, ..sample(key, None) };
            let bytes = encoded(&record);
            prop_assert_eq!(bytes.len() as u64, encoded_bytes(key, &value));
            prop_assert!(bytes.len() as u64 <= most_encoded_bytes(key, value.result_bytes()));
            prop_assert_eq!(Record::decode(&bytes, POSITION, SEED), Ok(record));
        }

        #[test]
        fn arbitrary_bytes_never_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes, POSITION, SEED);
        }
    }

    #[test]
    fn a_record_of_another_position_or_file_does_not_pass() {
        let bytes = encoded(&sample(Key::new("k"), Some(b"result")));
        assert!(Record::decode(&bytes, POSITION, SEED).is_ok());
        assert!(Record::decode(&bytes, POSITION + 8, SEED).is_err());
        assert!(Record::decode(&bytes, POSITION, Seed(78)).is_err());
    }

    #[test]
    fn no_flipped_bit_of_a_record_goes_unnoticed() {
        let bytes = encoded(&sample(Key::new("key").scope("scope"), Some(b"result")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&damaged, POSITION, SEED).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_unknown_kind_is_refused_unless_it_is_ignorable() {
        for (kind, expected) in [(9, None), (16, None), (0x90, Some(Kind::Ignorable))] {
            let mut bytes = Vec::new();
            sample(Key::new("k"), None).encode(SEED).append_to(&mut bytes);
            bytes[8] = kind;
            let checksum = SEED.checksum(&bytes[4..]);
            put(&mut bytes, 0, &checksum.to_le_bytes());
            stamp(&mut bytes, POSITION);
            assert_eq!(Record::decode(&bytes, POSITION, SEED).ok().map(|record| record.kind), expected);
        }
    }

    #[test]
    fn every_kind_comes_back_from_its_byte() {
        for kind in
            [Kind::Begun, Kind::Completed, Kind::Released, Kind::Forgotten, Kind::Unreadable, Kind::Ignorable]
        {
            assert_eq!(Kind::from_byte(kind.to_byte()), Some(kind));
        }
        assert_eq!(Kind::from_byte(0), None);
    }

    /// Changes bytes of a record and makes its checksum true again.
    fn forged(record: &Record<'_>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(SEED).append_to(&mut bytes);
        change(&mut bytes);
        let checksum = SEED.checksum(&bytes[4..]);
        put(&mut bytes, 0, &checksum.to_le_bytes());
        stamp(&mut bytes, POSITION);
        bytes
    }

    #[test]
    fn a_record_whose_parts_contradict_each_other_is_refused_though_its_checksum_fits() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let bytes = forged(&sample(Key::new("key").scope("scope"), Some(b"result")), change);
            Record::decode(&bytes, POSITION, SEED).map(drop).map_err(FormatError::reason)
        };
        assert_eq!(refused(|_| {}), Ok(()));
        let parts = Err("the record's parts do not add up to its length");
        // 80 + 5 + 3 + 6 bytes are 94, padded to 96: two more belong to the padding, three do not exist.
        assert_eq!(refused(|bytes| bytes[52] = 8), Ok(()));
        assert_eq!(refused(|bytes| bytes[52] = 9), parts);
        assert_eq!(refused(|bytes| bytes[52] = 1), Ok(()), "seven bytes of padding");
        assert_eq!(refused(|bytes| bytes[52] = 0), parts, "eight would be none");
        assert_eq!(refused(|bytes| bytes[9] |= 8), Err("the record has unknown flags"));
        let extension = Err("the record has an unknown extension");
        assert_eq!(refused(|bytes| (bytes[12], bytes[14]) = (0, 5)), extension, "another number");
        assert_eq!(
            refused(|bytes| {
                (bytes[12], bytes[14]) = (0, 5);
                put(bytes, RECORD_HEADER_BYTES, &[TYPING, 2]);
            }),
            extension,
            "another length than there is"
        );
        assert_eq!(
            refused(|bytes| {
                (bytes[12], bytes[14]) = (0, 5);
                put(bytes, RECORD_HEADER_BYTES, &[TYPING, 3]);
            }),
            Err("the record's typing is of no length that it can have")
        );
        let not_kept = Err("the record says that no result was kept where none can be missing");
        assert_eq!(refused(|bytes| bytes[9] |= FLAG_NOT_KEPT), not_kept, "there is one");
        assert_eq!(
            refused(|bytes| (bytes[8], bytes[9]) = (1, FLAG_SCOPE | FLAG_NOT_KEPT)),
            Err("the record has a value and says that it has none")
        );
        let key = Err("the record's key is out of range");
        assert_eq!(refused(|bytes| (bytes[10], bytes[52]) = (0, 8)), key, "no key");
        assert_eq!(refused(|bytes| bytes[9] = FLAG_RESULT), key, "a scope, and none");
        assert_eq!(
            refused(|bytes| bytes[9] = FLAG_SCOPE),
            Err("the record has a value and says that it has none")
        );
    }

    #[test]
    fn a_record_of_a_later_version_may_be_passed_over_whatever_its_flags_and_extension() {
        let bytes = forged(&sample(Key::new("key").scope("scope"), Some(b"result")), |bytes| {
            bytes[8] = IGNORABLE;
            bytes[9] = 0xFF;
            (bytes[12], bytes[14]) = (4, 1);
        });
        assert_eq!(Record::decode(&bytes, POSITION, SEED).map(|record| record.kind), Ok(Kind::Ignorable));
    }

    #[test]
    fn a_length_is_possible_from_a_bare_header_to_what_a_footer_can_say_in_steps_of_eight() {
        let length = |bytes: u32| {
            let mut header = [0; RECORD_HEADER_BYTES];
            put(&mut header, 4, &bytes.to_le_bytes());
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

    /// Pins the encoding, byte by byte.
    #[test]
    fn the_typing_of_a_record_lies_between_header_and_scope() {
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

    /// Pins the encoding, byte by byte.
    #[test]
    fn a_record_that_carries_an_unreadable_one_is_as_specified() {
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

        stamp(&mut bytes, POSITION);
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
            "time does not end it"
        );
        let again = listed(Kind::Unreadable, 200).carrying(b"", 3);
        assert_eq!(
            (again.carried_kind(), again.key_expires_ms),
            (None, 200),
            "it is kept as long, and no longer known"
        );
        let sound = sample(Key::new("k"), None);
        assert_eq!((sound.carried_kind(), sound.key_hash(&hasher)), (None, hasher.key(Key::new("k"))));
    }

    #[test]
    fn a_record_that_carries_an_unreadable_one_has_no_key_and_something_to_carry() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let bytes = forged(&listed(Kind::Begun, 0).carrying(b"seven..", 3), change);
            Record::decode(&bytes, POSITION, SEED).map(drop).map_err(FormatError::reason)
        };
        assert_eq!(refused(|_| {}), Ok(()));
        let not_such = Err("the record that carries an unreadable one is not what such records are");
        assert_eq!(refused(|bytes| (bytes[10], bytes[52]) = (1, 6)), not_such, "a key");
        assert_eq!(refused(|bytes| bytes[9] = FLAG_RESULT | FLAG_SCOPE), not_such, "a scope");
        assert_eq!(refused(|bytes| (bytes[9], bytes[52]) = (0, 7)), not_such, "nothing");
        assert_eq!(refused(|bytes| bytes[48] = 4), not_such, "of a kind that is never carried");
    }
}
