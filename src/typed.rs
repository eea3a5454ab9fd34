//! Encoding and decoding of typed results, with the checks that make a replay safe.
//!
//! Invariant: a retry returns the value that the first call returned, or an error.
//!
//! - A value is recorded only if its bytes decode to a value that has the same shape, and the same leaves or encoded bytes
//!   (see [`shape`](crate::shape)). The first caller gets the decoded value, not its own.
//! - A stored value is decoded only by the codec that encoded it. If a shape was recorded and the codec [checks
//!   shapes](Codec::checks_shape), the decoded value must also have that shape.
//!
//! The typed calls use this module: `operation`, `lease`, `completion` and `stats`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "bincode")]
use crate::codec::Bincode;
#[cfg(feature = "json")]
use crate::codec::Json;
use crate::codec::{Codec, CodecError, DEFAULT_CODEC_ID};
use crate::error::Error;
use crate::format::record::{Typing, Value};
use crate::key::Key;
use crate::shape::{digest_of, shape_of};

/// The [`Typing::scheme`] of a fingerprint that the caller computed, or of no fingerprint.
pub(crate) const BY_CALLER: u8 = 0;
/// The [`Typing::scheme`] of the fingerprint of a typed request.
pub(crate) const BY_MEANING: u8 = 1;

/// An encoded value that passed the checks, ready to be recorded.
pub(crate) struct Encoded<T> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) typing: Typing,
    /// The value that the bytes decode to: what the first caller gets.
    pub(crate) returned: T,
}

impl<T> Encoded<T> {
    /// Returns the value in the form in which a record stores it.
    pub(crate) fn value(&self) -> Value<'_> {
        Value::typed(&self.bytes, self.typing)
    }
}

/// A value as a record stores it.
pub(crate) type Stored = (Vec<u8>, Option<Typing>);

/// Why a value cannot be recorded.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Its encoding exceeds the limit.
    TooLarge { length_bytes: usize, limit_bytes: usize },
    /// It cannot be encoded, or a replay would return a different value.
    Codec(CodecError),
}

impl Unfit {
    pub(crate) fn into_error(self, key: Key<'_>) -> Error {
        match self {
            Unfit::TooLarge { length_bytes, limit_bytes } => {
                Error::TooLarge { key: key.to_owned(), length_bytes, limit_bytes }
            }
            Unfit::Codec(source) => Error::encode(key, source),
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::TooLarge { length_bytes, limit_bytes } => {
                write!(out, "{length_bytes} bytes; the limit is {limit_bytes}")
            }
            Unfit::Codec(source) => write!(out, "it cannot be encoded: {source}"),
        }
    }
}

impl<E: Into<CodecError>> From<E> for Unfit {
    fn from(error: E) -> Unfit {
        Unfit::Codec(error.into())
    }
}

/// Encodes `value`, and refuses it if it has too many bytes or would be replayed as a different value. `begun` is the typing
/// in the record that began the attempt.
pub(crate) fn encode<C, T>(
    codec: &C,
    begun: Option<Typing>,
    value: &T,
    limit_bytes: usize,
) -> Result<Encoded<T>, Unfit>
where
    C: Codec,
    T: Serialize + DeserializeOwned,
{
    // The side effect has happened. A panic in the value's serde code must become an error here: if it unwound, the
    // operation would stay in doubt although its outcome is known.
    let encoded = catch_unwind(AssertUnwindSafe(|| encode_or_unwind(codec, begun, value, limit_bytes)));
    encoded.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(format!("its `Serialize` or `Deserialize` code panicked: {text}").into())
    })
}

fn encode_or_unwind<C, T>(
    codec: &C,
    begun: Option<Typing>,
    value: &T,
    limit_bytes: usize,
) -> Result<Encoded<T>, Unfit>
where
    C: Codec,
    T: Serialize + DeserializeOwned,
{
    // The digest is computed before encoding, because it limits the depth of the value, and an encoder may not.
    let given = digest_of(value, !C::POSITIONAL)?;
    if C::POSITIONAL && given.shape.skips_fields {
        return Err(
            "a field is skipped (`skip_serializing_if`), and this codec stores no field names, so it could not \
             decode the others: remove that attribute, or use a codec that stores names, such as `Json`"
                .into(),
        );
    }
    let bytes = codec.encode(value)?;
    if bytes.len() > limit_bytes {
        return Err(Unfit::TooLarge { length_bytes: bytes.len(), limit_bytes });
    }
    let returned: T =
        codec.decode(&bytes).map_err(|error| format!("its encoding does not decode: {error}"))?;
    let back = digest_of(&returned, !C::POSITIONAL)?;
    // If the leaves differ, equal bytes still prove that the value survived: a type may serialise differently for the
    // digest than for the codec.
    let is_same = given.shape == back.shape
        && (given.leaves == back.leaves || codec.encode(&returned).is_ok_and(|again| again == bytes));
    if !is_same {
        return Err(
            "it would be replayed as another value: what its `Serialize` writes, its `Deserialize` must \
                    read back"
                .into(),
        );
    }
    let scheme = begun.map_or(BY_CALLER, |begun| begun.scheme);
    let typing = Typing { scheme, codec: C::ID, shape: C::POSITIONAL.then_some(given.shape.hash) };
    Ok(Encoded { bytes, typing, returned })
}

/// Decodes a stored value, and checks that its codec and shape are the recorded ones.
pub(crate) fn decode<C: Codec, T>(codec: &C, bytes: &[u8], typing: Option<Typing>) -> Result<T, CodecError>
where
    T: Serialize + DeserializeOwned,
{
    if let Some(Typing { codec: recorded, .. }) = typing.filter(|typing| typing.codec != C::ID) {
        return Err(format!("it was encoded by codec {recorded}, but this is codec {}", C::ID).into());
    }
    let value: T = codec.decode(bytes)?;
    if let Some(Typing { shape: Some(recorded), .. }) = typing
        && codec.checks_shape()
        && shape_of(&value, !C::POSITIONAL)?.hash != recorded
    {
        return Err("it was recorded as a type of another shape: a field or variant has since been added, removed, renamed, \
                    moved, or changed in width. If it was only renamed, restore the former name with \
                    `#[serde(rename = \"..\")]`"
            .into());
    }
    Ok(value)
}

/// A codec of this crate.
enum BuiltIn {
    #[cfg(feature = "bincode")]
    Bincode,
    #[cfg(feature = "json")]
    Json,
}

impl BuiltIn {
    /// Returns the codec that was recorded, or the default codec if none was.
    fn of(typing: Option<Typing>) -> Result<BuiltIn, CodecError> {
        match typing.map(|typing| typing.codec).or(DEFAULT_CODEC_ID) {
            #[cfg(feature = "bincode")]
            Some(Bincode::ID) => Ok(BuiltIn::Bincode),
            #[cfg(feature = "json")]
            Some(Json::ID) => Ok(BuiltIn::Json),
            None => Err(
                "the record names no codec, and without the feature `bincode` there is no default codec: \
                         call the form that takes a codec"
                    .into(),
            ),
            Some(number) => Err(format!(
                "codec {number} is not built in, or its feature is off: call the form that takes a codec"
            )
            .into()),
        }
    }
}

/// Calls [`encode`] with the codec in the record that began the attempt.
#[cfg_attr(
    not(any(feature = "bincode", feature = "json")),
    expect(unused_variables, reason = "there is no codec to hand them to")
)]
pub(crate) fn encode_as<T>(begun: Option<Typing>, value: &T, limit_bytes: usize) -> Result<Encoded<T>, Unfit>
where
    T: Serialize + DeserializeOwned,
{
    match BuiltIn::of(begun)? {
        #[cfg(feature = "bincode")]
        BuiltIn::Bincode => encode(&Bincode, begun, value, limit_bytes),
        #[cfg(feature = "json")]
        BuiltIn::Json => encode(&Json, begun, value, limit_bytes),
    }
}

/// Refuses a codec other than the one with which the operation began, because a retry could not decode the result.
pub(crate) fn check_codec<C: Codec>(typing: Option<Typing>) -> Result<(), Unfit> {
    match typing {
        Some(Typing { codec, .. }) if codec != C::ID => Err(format!(
            "the operation was begun with codec {codec}, but this is codec {}: use codec {codec}, or choose this one with \
             `Operation::codec` when the operation begins",
            C::ID
        )
        .into()),
        _ => Ok(()),
    }
}

/// Calls [`decode`] with the codec in the record.
#[cfg_attr(
    not(any(feature = "bincode", feature = "json")),
    expect(unused_variables, reason = "there is no codec to hand them to")
)]
pub(crate) fn decode_as<T>(typing: Option<Typing>, bytes: &[u8]) -> Result<T, CodecError>
where
    T: Serialize + DeserializeOwned,
{
    match BuiltIn::of(typing)? {
        #[cfg(feature = "bincode")]
        BuiltIn::Bincode => decode(&Bincode, bytes, typing),
        #[cfg(feature = "json")]
        BuiltIn::Json => decode(&Json, bytes, typing),
    }
}
