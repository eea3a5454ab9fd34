//! [`Completion`], the stored outcome of an operation that is done, and [`Recorded`], the outcome of
//! [`Store::record`](crate::Store::record).

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::Found;
use crate::error::{Error, Result};
use crate::format::record::Typing;
use crate::key::{Key, OwnedKey};
use crate::record::Length;
use crate::status::Version;
use crate::typed;

/// The stored outcome of a completed operation: its result and how it was recorded.
///
/// `{:?}` prints the length of the result instead of its bytes, so that results do not end up in logs.
///
/// ```
/// use oncekey::{Begin, Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// store.record("charge:1", Fingerprint::NONE, b"receipt 17")?;
/// let Begin::Completed(done) = store.begin("charge:1", Fingerprint::NONE)? else { unreachable!() };
/// assert_eq!(done.result(), b"receipt 17");
/// assert_eq!(done.attempt(), 1);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Completion {
    key: OwnedKey,
    typing: Option<Typing>,
    result: Vec<u8>,
    version: Version,
    attempt: u32,
    completed_at_ms: u64,
}

impl fmt::Debug for Completion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Completion")
            .field("key", &self.key)
            .field("result", &Length(self.result.len()))
            .field("version", &self.version)
            .field("attempt", &self.attempt)
            .field("completed_at_ms", &self.completed_at_ms)
            .finish_non_exhaustive()
    }
}

impl Completion {
    pub(crate) fn new(key: Key<'_>, found: Found) -> Completion {
        Completion {
            key: key.to_owned(),
            typing: found.typing,
            result: found.result.unwrap_or_default(),
            version: found.version,
            attempt: found.attempt,
            completed_at_ms: found.time_ms,
        }
    }

    /// Returns the result: the bytes that were recorded.
    #[must_use]
    pub fn result(&self) -> &[u8] {
        &self.result
    }

    /// Returns the result as an owned vector, without a copy.
    #[must_use]
    pub fn into_result(self) -> Vec<u8> {
        self.result
    }

    /// Decodes the result as a `T`, with the codec that recorded it.
    ///
    /// Each record of a typed result contains the number of its codec. A result that was recorded as plain bytes is
    /// decoded with the [`DefaultCodec`](crate::DefaultCodec).
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the result was recorded as a different type, or its codec is not built in. In the second
    /// case, the codec is the program's own or its feature is off: call [`decode_with`](Completion::decode_with).
    pub fn decode<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let decoded = typed::decode_as(self.typing, &self.result);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// Decodes the result as a `T` with `codec`.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the result was recorded as a different type or by a different codec.
    pub fn decode_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<T> {
        let decoded = typed::decode(codec, &self.result, self.typing);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// The version of the record, which identifies this change of the key.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The number of the attempt that ran the side effect, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the result was recorded, in store time: milliseconds since the Unix epoch.
    #[must_use]
    pub fn completed_at_ms(&self) -> u64 {
        self.completed_at_ms
    }
}

/// The outcome of [`Store::record`](crate::Store::record).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recorded {
    /// This call recorded the result, under this version.
    Done(Version),
    /// The operation was completed before, with this result. This call changed nothing.
    AlreadyDone(Completion),
}

impl Recorded {
    pub(crate) fn new(key: Key<'_>, recorded: std::result::Result<Version, Found>) -> Recorded {
        match recorded {
            Ok(version) => Recorded::Done(version),
            Err(found) => Recorded::AlreadyDone(Completion::new(key, found)),
        }
    }
}
