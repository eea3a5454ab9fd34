//! What is recorded of operations that are done.

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

/// What is recorded of an operation that is done.
///
/// `{:?}` prints the length of the result and not what is in it.
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

    /// The result, byte for byte as it was recorded.
    #[must_use]
    pub fn result(&self) -> &[u8] {
        &self.result
    }

    /// The result, without a copy.
    #[must_use]
    pub fn into_result(self) -> Vec<u8> {
        self.result
    }

    /// The typed result, decoded by the codec that the record names, or the default one.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: it was recorded as another type, or by a codec that is not of this crate.
    pub fn decode<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let decoded = typed::decode_as(self.typing, &self.result);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// The same with a codec of the program's own.
    ///
    /// # Errors
    ///
    /// As [`decode`](Completion::decode).
    pub fn decode_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<T> {
        let decoded = typed::decode(codec, &self.result, self.typing);
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// The version of the record.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The attempt that performed the act.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When it was recorded, in store time: ms since the Unix epoch.
    #[must_use]
    pub fn completed_at_ms(&self) -> u64 {
        self.completed_at_ms
    }
}

/// How [`Store::record`](crate::Store::record) came out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recorded {
    /// This call recorded it, with this version.
    Done(Version),
    /// It was recorded before, with this result.
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
