//! Codecs, which encode typed results to bytes and decode them. Below the typed calls, the store handles only bytes.
//!
//! [`typed`](crate::typed) is the only module that encodes and decodes with them. The encodings and the ids are on disk.

#[cfg(feature = "bincode")]
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
#[cfg(feature = "bincode")]
use serde::de::{DeserializeSeed, Deserializer};

#[cfg(any(feature = "bincode", feature = "json"))]
mod limited;

#[cfg(any(feature = "bincode", feature = "json"))]
use limited::{Budget, Limited};

/// Why a value could not be encoded, or bytes could not be decoded.
///
/// The codecs of this crate never quote the value in the error, so it is safe to log the error. Your own codec should not
/// quote the value either.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Encodes typed results to bytes and decodes them.
///
/// A result is decoded by whichever version of the program runs when it is replayed, not by the one that wrote it. Choose
/// a codec whose encoding survives the changes that you make to your types until the retention has passed. `Bincode` is
/// compact and tolerates no change of a type. `Json` tolerates added and removed fields.
///
/// A codec encodes results only. The fingerprint of a request does not depend on a codec.
///
/// ```
/// use oncekey::{Codec, Store};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// A codec of the program's own, here JSON.
/// struct Text;
///
/// impl Codec for Text {
///     const ID: u8 = 128;
///     const POSITIONAL: bool = false;
///
///     fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, oncekey::CodecError> {
///         Ok(serde_json::to_vec(value)?)
///     }
///     fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, oncekey::CodecError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// let store = Store::in_memory()?;
/// let outcome = store.operation("greet:1").codec(Text).run(|_| Ok::<_, oncekey::Error>("hello".to_owned()));
/// assert_eq!(outcome.expect("a new operation").into_inner(), "hello");
/// assert_eq!(store.get("greet:1")?.result(), Some(&br#""hello""#[..]));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no codec: nothing says how results become bytes",
    label = "a codec is missing here",
    note = "without the feature `bincode` there is no default codec: turn it on, or choose one with \
            `.codec(..)`: `oncekey::Json` of the feature `json`, or your own",
    note = "or use the store on bytes: `Store::begin`, `Store::record`, `Store::get`"
)]
pub trait Codec {
    /// The number of the encoding. Each typed record contains it, and only the codec with that number decodes the record.
    ///
    /// 0 to 127 are reserved for this crate: `Bincode` is 1 and `Json` is 2. Choose a number from 128 to 255 for a codec of
    /// your own. Choose a new number when the encoding changes. Do not change the number while a store still contains results
    /// of the codec.
    const ID: u8;

    /// Whether the encoding leaves out the names of fields or the kinds of values.
    ///
    /// Bytes that one type wrote can then decode as a different type, without an error but with a different meaning. That can
    /// happen after two fields have changed places, or a `u32` has become an `i32`. Therefore the store records the shape of
    /// each result, a hash of its names and kinds, and compares it with the shape of the decoded value when the result is
    /// replayed.
    ///
    /// A self-describing codec sets this to `false`: its decoder detects such changes, and fields may be added and removed.
    /// The default, `true`, is safe for every codec.
    const POSITIONAL: bool = true;

    /// Whether a replay compares the recorded shape with that of the decoded result.
    ///
    /// Defaults to [`POSITIONAL`](Codec::POSITIONAL). Only a positional codec records shapes, so only such a codec has a
    /// choice: `Bincode::any_shape` returns `false`.
    fn checks_shape(&self) -> bool {
        Self::POSITIONAL
    }

    /// Encodes `value`.
    ///
    /// # Errors
    ///
    /// The value cannot be encoded. The result is then not recorded, and the caller gets
    /// [`Error::Encode`](crate::Error::Encode).
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError>;

    /// Decodes all of `bytes`. An implementation must refuse bytes that are left over.
    ///
    /// The bytes may be damaged, or be the encoding of a different type. An implementation must not let them exhaust the
    /// stack or the memory. A stack overflow ends the process, and each retry would end it again.
    ///
    /// # Errors
    ///
    /// The bytes are not the encoding of a `T`. The caller gets [`Error::Decode`](crate::Error::Decode).
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// The default codec: bincode 2 in its standard configuration. Requires the feature `bincode`.
///
/// The encoding is compact and contains no names. A result recorded before its type gained, lost, renamed or reordered a
/// field fails with [`Error::Decode`](crate::Error::Decode) when it is replayed. Use `Json` for types that evolve.
///
/// # Limits
///
/// Decoding accepts at most 128 nested containers (sequences, tuples, maps, structs and the contents of variants) and at most
/// 128 nested wrappers (`Some` and newtype structs). It accepts at most 131,072 values plus 128 for each byte; only elements
/// without bytes, as in a `Vec<()>`, can reach that limit. A forged length allocates no memory beyond the bytes that are
/// there.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bincode;

#[cfg(feature = "bincode")]
impl Bincode {
    /// Returns the same codec without the comparison of shapes on replay, for results whose fields were renamed on purpose.
    ///
    /// It accepts any bytes that decode as the type. Use it for an operation whose recorded results have the same fields in
    /// the same order, of the same types, under other names, and only until their retention has passed. If possible, keep the
    /// former names for serde with `#[serde(rename = "..")]` instead, which is safer.
    ///
    /// ```
    /// use oncekey::{Bincode, Codec};
    ///
    /// let bytes = Bincode.encode(&("ch_1", 1_000_u32))?;
    /// let codec = Bincode::any_shape();
    /// assert_eq!(codec.decode::<(String, u32)>(&bytes)?, ("ch_1".to_owned(), 1_000));
    /// assert!(Bincode.checks_shape() && !codec.checks_shape());
    /// # Ok::<(), oncekey::CodecError>(())
    /// ```
    #[must_use]
    pub const fn any_shape() -> AnyShape {
        AnyShape { bincode: Bincode }
    }
}

#[cfg(feature = "bincode")]
impl Codec for Bincode {
    const ID: u8 = 1;

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(bincode::serde::encode_to_vec(value, bincode::config::standard())?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        // bincode's own limit is not used, because it counts the memory that a value takes, and so refuses values of many
        // small integers.
        let (value, read) = bincode::serde::seed_decode_from_slice(
            LimitedSeed { budget: &Budget::new(bytes.len()), value: PhantomData },
            bytes,
            bincode::config::standard(),
        )
        .map_err(|error| match error {
            bincode::error::DecodeError::OtherString(text) => without_values(&text, "").into(),
            bincode::error::DecodeError::UnexpectedEnd { .. } => "the bytes end too early".into(),
            _ => CodecError::from(NO_SUCH_VALUE),
        })?;
        if read != bytes.len() {
            return Err(format!("{} of {} bytes are left over", bytes.len() - read, bytes.len()).into());
        }
        Ok(value)
    }
}

/// Decodes a `T` within the limits. This is a seed, because only `seed_decode_from_slice` both takes a deserializer to wrap
/// and returns how many bytes were read.
#[cfg(feature = "bincode")]
struct LimitedSeed<'b, T> {
    budget: &'b Budget,
    value: PhantomData<T>,
}

#[cfg(feature = "bincode")]
impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for LimitedSeed<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(Limited::new(deserializer, self.budget))
    }
}

/// [`Bincode`] without the comparison of shapes on replay: see [`Bincode::any_shape`].
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnyShape {
    bincode: Bincode,
}

#[cfg(feature = "bincode")]
impl Codec for AnyShape {
    const ID: u8 = Bincode::ID;

    // It records the shape all the same, for a later replay that compares it.
    const POSITIONAL: bool = Bincode::POSITIONAL;

    fn checks_shape(&self) -> bool {
        false
    }

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        self.bincode.encode(value)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        self.bincode.decode(bytes)
    }
}

/// JSON, for types that evolve: fields can be removed, and added with `#[serde(default)]`. Requires the feature `json`.
///
/// Finite floats are decoded bit for bit. A result that contains a NaN or an infinity cannot be recorded, because JSON has
/// no form for them.
///
/// Decoding accepts at most 127 nested arrays and objects, and at most 128 nested wrappers (`Some` and newtype structs).
///
/// ```
/// use oncekey::{Json, Outcome, Store};
///
/// let store = Store::in_memory()?;
/// let outcome = store.operation("greet:1").codec(Json).run(|_| Ok::<_, oncekey::Error>(vec![1, 2]));
/// assert!(matches!(outcome, Ok(Outcome::Done(_))));
/// assert_eq!(store.get("greet:1")?.result(), Some(&b"[1,2]"[..]));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json;

#[cfg(feature = "json")]
impl Codec for Json {
    const ID: u8 = 2;
    const POSITIONAL: bool = false;

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        // serde_json limits the nesting of arrays and objects, but not that of wrappers, which have no bytes in JSON.
        let budget = Budget::new(bytes.len());
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value =
            T::deserialize(Limited::new(&mut json, &budget)).and_then(|value| json.end().map(|()| value));
        value.map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                let place = format!(" (line {}, column {})", error.line(), error.column());
                without_values(&error.to_string(), &place).into()
            }
            // Errors of syntax and of an early end describe what is wrong with the text and do not quote it.
            _ => error.into(),
        })
    }
}

#[cfg(any(feature = "bincode", feature = "json"))]
const NO_SUCH_VALUE: &str = "the bytes are not the encoding of this type";

/// Returns the text of a serde error if it quotes no part of the value; otherwise [`NO_SUCH_VALUE`] and the place.
///
/// Errors end up in logs, and results may be secret. Only texts that name a field of the type, or a limit, are kept.
#[cfg(any(feature = "bincode", feature = "json"))]
fn without_values(text: &str, place: &str) -> String {
    let names_a_field = text.starts_with("missing field `") || text.starts_with("duplicate field `");
    if names_a_field || limited::is_limit(text) || text.starts_with("recursion limit") {
        // Further lines may come from the value's own code.
        return text.lines().next().unwrap_or_default().to_owned();
    }
    format!("{NO_SUCH_VALUE}{place}")
}

/// The codec of an [`Operation`](crate::Operation) that does not choose one: `Bincode`, if the feature `bincode` is on.
#[cfg(feature = "bincode")]
pub type DefaultCodec = Bincode;

/// The id of the default codec, if there is one.
#[cfg(feature = "bincode")]
pub(crate) const DEFAULT_CODEC_ID: Option<u8> = Some(Bincode::ID);
/// The id of the default codec, if there is one.
#[cfg(not(feature = "bincode"))]
pub(crate) const DEFAULT_CODEC_ID: Option<u8> = None;

/// Stands for the missing default codec if the feature `bincode` is off. It is not a [`Codec`].
///
/// Choose a codec with [`Operation::codec`](crate::Operation::codec).
#[cfg(not(feature = "bincode"))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DefaultCodec {}

#[cfg(all(test, feature = "bincode"))]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Receipt {
        Refused { code: u16 },
        Charged { id: String, cents: u64, tags: Vec<i32>, at: Option<f64> },
    }

    #[test]
    fn the_encoding_of_bincode_never_changes() {
        // Existing files hold results in this encoding. If it changes, they no longer decode.
        let charged =
            Receipt::Charged { id: "ch_1".into(), cents: 1_729, tags: vec![-1, 300], at: Some(0.5) };
        let bytes =
            [1, 4, b'c', b'h', b'_', b'1', 251, 193, 6, 2, 1, 251, 88, 2, 1, 0, 0, 0, 0, 0, 0, 224, 63];
        assert_eq!(Bincode.encode(&charged).unwrap(), bytes);
        assert_eq!(Bincode.decode::<Receipt>(&bytes).unwrap(), charged);
        assert_eq!(Bincode.encode(&Receipt::Refused { code: 402 }).unwrap(), [0, 251, 146, 1]);
    }

    #[test]
    fn the_ids_of_codecs_never_change() {
        // Typed records contain them.
        assert_eq!((Bincode::ID, Bincode::POSITIONAL, Bincode.checks_shape()), (1, true, true));
        assert_eq!((AnyShape::ID, AnyShape::POSITIONAL), (1, true));
        assert!(!Bincode::any_shape().checks_shape());
        #[cfg(feature = "json")]
        assert_eq!((Json::ID, Json::POSITIONAL, Json.checks_shape()), (2, false, false));
    }

    #[test]
    fn any_shape_encodes_as_bincode_does() {
        let refused = Receipt::Refused { code: 402 };
        let bytes = Bincode::any_shape().encode(&refused).unwrap();
        assert_eq!(bytes, Bincode.encode(&refused).unwrap());
        assert_eq!(Bincode::any_shape().decode::<Receipt>(&bytes).unwrap(), refused);
        assert!(Bincode::any_shape().decode::<u8>(&[1, 2]).is_err());
    }
}
