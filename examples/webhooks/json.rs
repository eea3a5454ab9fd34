//! A custom codec, as a program would write one for a format that oncekey does not support.

use oncekey::{Codec, CodecError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes results as JSON, as `oncekey::Json` does. `oncekey::Json` needs a feature that this example does not enable.
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
