//! Values as records hold them: encoded only if they come back as they were, and decoded only as what they are.
//!
//! The rule: a retry gets what the first call got, or an error. So a value is recorded if decoding its bytes gives a value of
//! the same shape with the same bytes or the same leaves (see [`shape`](crate::shape)), and it is the decoded value that
//! the first caller gets. And a stored value is decoded only by the codec that encoded it; if that codec is positional, the
//! decoded value must also have the shape that was recorded.

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

/// The fingerprint was made by the caller, or there is none.
pub(crate) const BY_CALLER: u8 = 0;
/// The fingerprint was made from the meaning of a typed request.
pub(crate) const BY_MEANING: u8 = 1;

/// A value that can be recorded.
pub(crate) struct Encoded<T> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) typing: Typing,
    /// The value that its bytes decode to.
    pub(crate) returned: T,
}

impl<T> Encoded<T> {
    /// What the record holds.
    pub(crate) fn value(&self) -> Value<'_> {
        Value::typed(&self.bytes, self.typing)
    }
}

/// Why a value cannot be recorded.
#[derive(Debug)]
pub(crate) enum Unfit {
    TooLarge { length_bytes: usize, limit_bytes: usize },
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

impl<E: Into<CodecError>> From<E> for Unfit {
    fn from(error: E) -> Unfit {
        Unfit::Codec(error.into())
    }
}

/// Encodes `value`, unless its bytes are too many or it would come back as another value. `begun` is what the record of the
/// attempt says.
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
    // A panic of the value's own serde code must not leave a doubt behind a side effect that returned.
    let encoded = catch_unwind(AssertUnwindSafe(|| encode_or_unwind(codec, begun, value, limit_bytes)));
    encoded.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(format!("its serde code panicked: {text}").into())
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
    // First, because it has a limit of depth, and an encoder may have none.
    let given = digest_of(value, !C::POSITIONAL)?;
    if C::POSITIONAL && given.shape.skips_fields {
        return Err(
            "a field is skipped (`skip_serializing_if`), and the codec has no names to find the others by: \
                    without that attribute it can be recorded, or with a codec like `Json`"
                .into(),
        );
    }
    let bytes = codec.encode(value)?;
    if bytes.len() > limit_bytes {
        return Err(Unfit::TooLarge { length_bytes: bytes.len(), limit_bytes });
    }
    let returned: T = codec.decode(&bytes).map_err(|error| format!("it does not come back: {error}"))?;
    let back = digest_of(&returned, !C::POSITIONAL)?;
    // The bytes decide where the serializer that digests sees another value than the codec's.
    let is_same = given.shape == back.shape
        && (given.leaves == back.leaves || codec.encode(&returned).is_ok_and(|again| again == bytes));
    if !is_same {
        return Err("it comes back as another value: what is serialised must be what is deserialised".into());
    }
    let scheme = begun.map_or(BY_CALLER, |begun| begun.scheme);
    let typing = Typing { scheme, codec: C::ID, shape: C::POSITIONAL.then_some(given.shape.hash) };
    Ok(Encoded { bytes, typing, returned })
}

/// Decodes a stored value.
pub(crate) fn decode<C: Codec, T>(codec: &C, bytes: &[u8], typing: Option<Typing>) -> Result<T, CodecError>
where
    T: Serialize + DeserializeOwned,
{
    if let Some(Typing { codec: recorded, .. }) = typing.filter(|typing| typing.codec != C::ID) {
        return Err(format!("it was encoded by codec {recorded}, and this is codec {}", C::ID).into());
    }
    let value: T = codec.decode(bytes)?;
    if let Some(Typing { shape: Some(recorded), .. }) = typing
        && codec.checks_shape()
        && shape_of(&value, !C::POSITIONAL)?.hash != recorded
    {
        return Err("it was recorded as a type of another shape: a field or variant was added, removed, renamed, moved or \
                    made wider or narrower since. If it was only renamed, `#[serde(rename = \"..\")]` with the former name \
                    brings it back"
            .into());
    }
    Ok(value)
}

/// The codec of this crate that a record names, or the default codec if it names none.
enum Known {
    #[cfg(feature = "bincode")]
    Bincode,
    #[cfg(feature = "json")]
    Json,
}

impl Known {
    fn of(typing: Option<Typing>) -> Result<Known, CodecError> {
        match typing.map(|typing| typing.codec).or(DEFAULT_CODEC_ID) {
            #[cfg(feature = "bincode")]
            Some(Bincode::ID) => Ok(Known::Bincode),
            #[cfg(feature = "json")]
            Some(Json::ID) => Ok(Known::Json),
            None => Err("no codec is named and there is no default one: name it".into()),
            Some(number) => Err(format!(
                "codec {number} is the program's own, or its feature is off: call the form that takes a codec"
            )
            .into()),
        }
    }
}

/// [`encode`] with the codec that the record of the attempt names.
#[cfg_attr(
    not(any(feature = "bincode", feature = "json")),
    expect(unused_variables, reason = "there is no codec to hand them to")
)]
pub(crate) fn encode_as<T>(begun: Option<Typing>, value: &T, limit_bytes: usize) -> Result<Encoded<T>, Unfit>
where
    T: Serialize + DeserializeOwned,
{
    match Known::of(begun)? {
        #[cfg(feature = "bincode")]
        Known::Bincode => encode(&Bincode, begun, value, limit_bytes),
        #[cfg(feature = "json")]
        Known::Json => encode(&Json, begun, value, limit_bytes),
    }
}

/// Refuses another codec than the one that the record of the attempt names: a retry could not read what it encodes.
pub(crate) fn check_codec<C: Codec>(typing: Option<Typing>) -> Result<(), Unfit> {
    match typing {
        Some(Typing { codec, .. }) if codec != C::ID => Err(format!(
            "the operation was begun with codec {codec}, and this is codec {}: name that one with `Operation::codec`",
            C::ID
        )
        .into()),
        _ => Ok(()),
    }
}

/// [`decode`] with the codec that the record names.
#[cfg_attr(
    not(any(feature = "bincode", feature = "json")),
    expect(unused_variables, reason = "there is no codec to hand them to")
)]
pub(crate) fn decode_as<T>(typing: Option<Typing>, bytes: &[u8]) -> Result<T, CodecError>
where
    T: Serialize + DeserializeOwned,
{
    match Known::of(typing)? {
        #[cfg(feature = "bincode")]
        Known::Bincode => decode(&Bincode, bytes, typing),
        #[cfg(feature = "json")]
        Known::Json => decode(&Json, bytes, typing),
    }
}
