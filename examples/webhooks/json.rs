//! A codec of our own, as a program would write one for a format that oncekey does not have.

use oncekey::{Codec, CodecError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes results as JSON, as `oncekey::Json` does. That one is behind a feature, which this example does without.
pub(crate) struct JsonCodec;

impl Codec for JsonCodec {
    const ID: u8 = 128;
    const POSITIONAL: bool = false;

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
