//! How typed results become bytes. The store itself knows bytes only.

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

/// Why something could not be encoded or decoded.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Turns typed results into bytes and back.
///
/// A result is decoded by the program that runs then, not by the one that wrote it. Choose a codec whose encoding
/// survives what happens to your types until the retention has passed: `Bincode` is compact and forgives no change;
/// `Json` forgives added and removed fields. Requests are not encoded: their fingerprints depend on no codec.
///
/// ```
/// use oncekey::{Codec, Store};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// JSON, by hand.
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
/// assert_eq!(outcome.expect("performed").into_inner(), "hello");
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
    /// Which encoding this is. It is written into each typed record, so that a result is never decoded by another codec
    /// than the one that wrote it.
    ///
    /// 0 to 127 belong to this crate: `Bincode` is 1 and `Json` is 2. Choose one from 128 to 255 for your own codec, and
    /// another when its encoding changes. It must stay the same for as long as a store holds results of the codec.
    const ID: u8;

    /// Whether the encoding says neither the names nor the kinds of what it holds.
    ///
    /// Bytes of one type can then decode as another type, without an error and with another meaning: fields that
    /// changed places, a `u32` read as an `i32`. The store therefore records the shape of each result, which is a hash of
    /// its names and kinds, and compares it when the result is replayed. A self-describing codec says `false`: its
    /// decoder sees such changes, and fields can come and go.
    ///
    /// The default is `true`, which is safe for every codec.
    const POSITIONAL: bool = true;

    /// Whether a replay compares the shape that was recorded with that of the decoded result.
    ///
    /// A positional codec compares it, unless it is told not to, as by `Bincode::any_shape`.
    fn checks_shape(&self) -> bool {
        Self::POSITIONAL
    }

    /// The bytes of `value`.
    ///
    /// # Errors
    ///
    /// Whatever keeps the value from being encoded.
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError>;

    /// The value of `bytes`. Must refuse bytes that are left over.
    ///
    /// The bytes can be damaged, or those of another type. They must not exhaust the stack or the memory: a thread whose
    /// stack overflows ends the process, and each retry would do it again.
    ///
    /// # Errors
    ///
    /// Whatever keeps the bytes from being a `T`.
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// The default codec: bincode 2 with its standard configuration. Compact, and not self-describing: a type that
/// gains, loses or reorders fields does not decode what it wrote before. The feature `bincode` brings it.
///
/// Decoding is limited. At most 128 containers may be nested (sequences, tuples, maps, structs and the contents of
/// variants), and at most 128 wrappers (`Some` and newtype structs). Elements without bytes, as in a `Vec<()>`, may be
/// 131,072 and 128 more for each byte. There is no other limit: a length that the bytes claim allocates nothing until
/// as many bytes are there.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bincode;

#[cfg(feature = "bincode")]
impl Bincode {
    /// The same codec, for results whose type has been renamed on purpose: a replay does not compare shapes.
    ///
    /// It decodes whatever the bytes decode as. Use it for an operation whose recorded results have the same fields in the
    /// same order, of the same types, under other names; and only until their retention has passed. Where the old names
    /// can be kept in the encoding, `#[serde(rename = "..")]` is the safer way.
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
        // bincode's own limit counts the memory that a value takes, and refuses many small integers.
        let (value, read) = bincode::serde::seed_decode_from_slice(
            Within { budget: &Budget::new(bytes.len()), of: PhantomData },
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

/// Decodes a `T` within the limits. A seed, because only so does bincode say how much it has read.
#[cfg(feature = "bincode")]
struct Within<'b, T> {
    budget: &'b Budget,
    of: PhantomData<T>,
}

#[cfg(feature = "bincode")]
impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Within<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(Limited::new(deserializer, self.budget))
    }
}

/// [`Bincode`] that replays a result whatever its recorded shape is: [`Bincode::any_shape`].
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnyShape {
    bincode: Bincode,
}

#[cfg(feature = "bincode")]
impl Codec for AnyShape {
    const ID: u8 = Bincode::ID;

    // It records the shape, for those that compare it.
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

/// JSON, for types that evolve: fields can be added (with a default) and removed.
///
/// Finite floats come back bit for bit. Decoding is limited: at most 127 arrays and objects may be nested, and at most
/// 128 wrappers (`Some` and newtype structs).
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
        // serde_json limits how deep arrays and objects are nested, but not wrappers, which take no bytes in JSON.
        let budget = Budget::new(bytes.len());
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value =
            T::deserialize(Limited::new(&mut json, &budget)).and_then(|value| json.end().map(|()| value));
        value.map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                let place = format!(" (line {}, column {})", error.line(), error.column());
                without_values(&error.to_string(), &place).into()
            }
            // These say what is wrong with the text, and nothing of what is in it.
            _ => error.into(),
        })
    }
}

#[cfg(any(feature = "bincode", feature = "json"))]
const NO_SUCH_VALUE: &str = "the bytes are not those of such a value";

/// What may be said of an error that serde made. Its texts can quote the value, and errors end up in logs: so only those
/// are passed on that name nothing but a type's own fields, or a limit.
#[cfg(any(feature = "bincode", feature = "json"))]
fn without_values(text: &str, place: &str) -> String {
    let names_a_field = text.starts_with("missing field `") || text.starts_with("duplicate field `");
    if names_a_field || limited::is_limit(text) || text.starts_with("recursion limit") {
        // Whatever follows the first line is not serde's.
        return text.lines().next().unwrap_or_default().to_owned();
    }
    format!("{NO_SUCH_VALUE}{place}")
}

/// The codec of [`Store::operation`](crate::Store::operation): bincode, if the feature `bincode` is on.
#[cfg(feature = "bincode")]
pub type DefaultCodec = Bincode;

/// The number of the default codec, if there is one.
#[cfg(feature = "bincode")]
pub(crate) const DEFAULT_CODEC_ID: Option<u8> = Some(Bincode::ID);
/// The number of the default codec, if there is one.
#[cfg(not(feature = "bincode"))]
pub(crate) const DEFAULT_CODEC_ID: Option<u8> = None;

/// Without the feature `bincode` there is no default: choose one with
/// [`Operation::codec`](crate::Operation::codec) before encoding anything.
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
    fn the_encoding_of_bincode_is_pinned() {
        // Results in existing files were written like this. If it changes, they do not decode any more.
        let charged =
            Receipt::Charged { id: "ch_1".into(), cents: 1_729, tags: vec![-1, 300], at: Some(0.5) };
        let bytes =
            [1, 4, b'c', b'h', b'_', b'1', 251, 193, 6, 2, 1, 251, 88, 2, 1, 0, 0, 0, 0, 0, 0, 224, 63];
        assert_eq!(Bincode.encode(&charged).unwrap(), bytes);
        assert_eq!(Bincode.decode::<Receipt>(&bytes).unwrap(), charged);
        assert_eq!(Bincode.encode(&Receipt::Refused { code: 402 }).unwrap(), [0, 251, 146, 1]);
    }

    #[test]
    fn the_ids_of_codecs_are_pinned() {
        // Typed records hold them.
        assert_eq!((Bincode::ID, Bincode::POSITIONAL, Bincode.checks_shape()), (1, true, true));
        assert_eq!((AnyShape::ID, AnyShape::POSITIONAL), (1, true));
        assert!(!Bincode::any_shape().checks_shape());
        #[cfg(feature = "json")]
        assert_eq!((Json::ID, Json::POSITIONAL, Json.checks_shape()), (2, false, false));
    }

    #[test]
    fn any_shape_has_the_encoding_of_bincode() {
        let refused = Receipt::Refused { code: 402 };
        let bytes = Bincode::any_shape().encode(&refused).unwrap();
        assert_eq!(bytes, Bincode.encode(&refused).unwrap());
        assert_eq!(Bincode::any_shape().decode::<Receipt>(&bytes).unwrap(), refused);
        assert!(Bincode::any_shape().decode::<u8>(&[1, 2]).is_err());
    }
}
