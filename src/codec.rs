//! How typed requests and results become bytes. The store itself knows bytes only.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why something could not be encoded or decoded.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Turns typed requests and results into bytes and back.
///
/// A result is decoded by the program that runs then, not by the one that wrote it. Choose a codec whose encoding
/// survives what happens to your types until the retention has passed: `Bincode` is compact and forgives no change;
/// `Json` forgives added and removed fields.
///
/// The encoding of a request must be the same each time, since its fingerprint is made of it: a `HashMap` in a
/// request has no fixed order, a `BTreeMap` has.
///
/// ```
/// use oncekey::{Codec, Store};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// JSON, by hand.
/// struct Text;
///
/// impl Codec for Text {
///     fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, oncekey::CodecError> {
///         Ok(serde_json::to_vec(value)?)
///     }
///     fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, oncekey::CodecError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// let store = Store::in_memory()?;
/// let outcome = store.operation("greet:1").codec(Text).run(|_| Ok::<_, oncekey::Failure<oncekey::Error>>("hello".to_owned()));
/// assert_eq!(outcome.expect("performed").into_inner(), "hello");
/// assert_eq!(store.get("greet:1")?.result(), Some(&br#""hello""#[..]));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no codec: nothing says how requests and results become bytes",
    label = "a codec is missing here",
    note = "without the feature `bincode` there is no default codec: turn it on, or choose one with \
            `.codec(..)` before `.request(..)` and `.run(..)`: `oncekey::Json` of the feature `json`, or your own",
    note = "or use the store on bytes: `Store::begin`, `Store::record`, `Store::get`"
)]
pub trait Codec {
    /// The bytes of `value`.
    ///
    /// # Errors
    ///
    /// Whatever keeps the value from being encoded.
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError>;

    /// The value of `bytes`. Must refuse bytes that are left over.
    ///
    /// # Errors
    ///
    /// Whatever keeps the bytes from being a `T`.
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// The default codec: bincode 2 with its standard configuration. Compact, and not self-describing: a type that
/// gains, loses or reorders fields does not decode what it wrote before. The feature `bincode` brings it.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bincode;

#[cfg(feature = "bincode")]
impl Codec for Bincode {
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(bincode::serde::encode_to_vec(value, bincode::config::standard())?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        /// No result is longer. A length that damaged or foreign bytes claim must not be allocated before it is
        /// found to be too much.
        const LIMIT_BYTES: usize = 64 << 20;
        let config = bincode::config::standard().with_limit::<LIMIT_BYTES>();
        let (value, read) = bincode::serde::decode_from_slice(bytes, config)?;
        if read != bytes.len() {
            return Err(format!("{} of {} bytes are left over", bytes.len() - read, bytes.len()).into());
        }
        Ok(value)
    }
}

/// JSON, for types that evolve: fields can be added (with a default) and removed.
///
/// ```
/// use oncekey::{Failure, Json, Outcome, Store};
///
/// let store = Store::in_memory()?;
/// let outcome = store.operation("greet:1").codec(Json).run(|_| Ok::<_, Failure<oncekey::Error>>(vec![1, 2]));
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
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// The codec of [`Store::operation`](crate::Store::operation): bincode, if the feature `bincode` is on.
#[cfg(feature = "bincode")]
pub type DefaultCodec = Bincode;

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
    fn bytes_that_are_left_over_are_no_value() {
        assert!(Bincode.decode::<u8>(&[1, 2]).unwrap_err().to_string().contains("left over"));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_without_being_allocated() {
        let claims_a_petabyte = [253, 0, 0, 0, 0, 0, 0, 4, 0];
        assert!(Bincode.decode::<Vec<u8>>(&claims_a_petabyte).is_err());
    }
}
