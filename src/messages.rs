//! [`Messages`]: gathers the messages that are committed with the completion of an operation.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::NewMessage;
use crate::error::{Error, Result};
use crate::format::record::{MAX_TOPIC_BYTES, Typing};
use crate::key::{Key, OwnedKey};
use crate::typed::{self, Encoded, Unfit};

/// Messages that become real together with the result of an operation: a crash keeps all of them and the result, or nothing.
///
/// In the closure of [`run`](crate::Operation::run), [`Attempt::emit`](crate::Attempt::emit) gathers them. This type is for
/// the calls that complete an operation elsewhere: [`Operation::on_complete`](crate::Operation::on_complete) passes one to
/// its closure, and [`Doubt::complete_with`](crate::Doubt::complete_with),
/// [`Store::compare_and_set_with`](crate::Store::compare_and_set_with) and [`Batch::attach`](crate::Batch::attach) take one.
///
/// [`Store::outbox`](crate::Store::outbox) hands the messages out. The guide has a page about
/// [publishing](crate::guide::publishing).
///
/// ```
/// use oncekey::{Expected, Fingerprint, Messages, Next, Store};
///
/// let store = Store::in_memory()?;
/// let mut messages = Messages::new();
/// messages.emit_bytes("shipped", b"order 1729")?;
/// let next = Next::Completed { fingerprint: Fingerprint::NONE, result: b"parcel 99" };
/// store.compare_and_set_with("ship:1729", Expected::Absent, next, &messages)?;
/// let delivery = store.outbox().next("shipped")?.expect("the message was committed with the result");
/// assert_eq!(delivery.payload(), b"order 1729");
/// delivery.ack()?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Messages {
    list: Vec<NewMessage>,
    /// The operation and its limit. None before it is known.
    bound: Option<Bound>,
}

/// The operation that messages belong to.
#[derive(Clone)]
struct Bound {
    key: OwnedKey,
    /// The codec of the operation.
    typing: Option<Typing>,
    /// The maximum size of all messages together.
    limit_bytes: usize,
}

impl Messages {
    /// Makes an empty collection, for any operation.
    #[must_use]
    pub fn new() -> Messages {
        Messages::default()
    }

    /// Makes an empty collection for the operation of `key`, whose messages may have `limit_bytes` together.
    pub(crate) fn of(key: Key<'_>, typing: Option<Typing>, limit_bytes: usize) -> Messages {
        let key = key.to_owned();
        Messages { list: Vec::new(), bound: Some(Bound { key, typing, limit_bytes }) }
    }

    /// The codec of the operation.
    pub(crate) fn typing(&self) -> Option<Typing> {
        self.bound.as_ref().and_then(|bound| bound.typing)
    }

    /// A copy of the messages, without their limit.
    pub(crate) fn unbound(&self) -> Messages {
        Messages { list: self.list.clone(), bound: None }
    }

    /// Adds those of another collection.
    pub(crate) fn append(&mut self, mut other: Messages) {
        self.list.append(&mut other.list);
    }

    pub(crate) fn list(&self) -> &[NewMessage] {
        &self.list
    }

    /// The number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a message to a topic, encoded with the codec of the operation, or with the default codec.
    ///
    /// The topic has 1 to 255 bytes. Messages of one topic are handed out in the order in which their operations were
    /// completed, and those of one operation in the order in which they were added.
    ///
    /// # Errors
    ///
    /// - [`Error::Option`]: the topic is empty or too long; or the collection belongs to no operation yet, and the message
    ///   cannot be encoded.
    /// - [`Error::Encode`]: the message cannot be encoded, its bytes would decode to a different value, or the codec of the
    ///   operation is not one of this crate's: see [`emit_with`](Messages::emit_with).
    /// - [`Error::TooLarge`]: the messages would take more than [`Operation::emits`](crate::Operation::emits) allows.
    pub fn emit<T: Serialize + DeserializeOwned>(&mut self, topic: &str, message: &T) -> Result<()> {
        self.add_encoded(topic, typed::encode_as(self.typing(), message, usize::MAX))
    }

    /// Adds a message to a topic, encoded with `codec`, which need not be that of the operation. For consumers that expect a
    /// certain encoding.
    ///
    /// # Errors
    ///
    /// Those of [`emit`](Messages::emit).
    pub fn emit_with<C: Codec, T>(&mut self, topic: &str, codec: &C, message: &T) -> Result<()>
    where
        T: Serialize + DeserializeOwned,
    {
        self.add_encoded(topic, typed::encode(codec, None, message, usize::MAX))
    }

    /// Adds a message to a topic as bytes, without a codec.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] and [`Error::TooLarge`], as for [`emit`](Messages::emit).
    pub fn emit_bytes(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        self.add(topic, payload, None)
    }

    pub(crate) fn add_encoded<T>(
        &mut self,
        topic: &str,
        encoded: std::result::Result<Encoded<T>, Unfit>,
    ) -> Result<()> {
        let encoded = encoded.map_err(|unfit| match (&self.bound, unfit) {
            (Some(bound), unfit) => unfit.into_error(bound.key.as_key()),
            (None, unfit) => Error::Option { option: "message", reason: unfit.to_string() },
        })?;
        self.add(topic, &encoded.bytes, Some(encoded.typing))
    }

    pub(crate) fn add(&mut self, topic: &str, payload: &[u8], typing: Option<Typing>) -> Result<()> {
        if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES {
            let reason = format!("a topic is 1 to {MAX_TOPIC_BYTES} bytes; this one has {}", topic.len());
            return Err(Error::Option { option: "topic", reason });
        }
        let message = NewMessage::new(topic, payload, typing);
        if let Some(Bound { key, limit_bytes, .. }) = &self.bound {
            let limit_bytes = *limit_bytes;
            let all = self.list.iter().chain([&message]).map(|message| message.bytes(key.as_key()));
            let length_bytes = all.fold(0_usize, usize::saturating_add);
            if length_bytes > limit_bytes {
                return Err(Error::TooLarge { key: key.clone(), length_bytes, limit_bytes });
            }
        }
        self.list.push(message);
        Ok(())
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(&self.list).finish()
    }
}
