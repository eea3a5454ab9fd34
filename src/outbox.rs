//! [`Outbox`]: hands out the messages that were committed with the results of operations, in order, until each is
//! acknowledged.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{HandedOut, Handle, Ticket};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::record::Length;
use crate::status::Version;
use crate::typed;

/// The outbox of a store. [`Store::outbox`](crate::Store::outbox) returns it.
///
/// A program emits messages in the closure of [`run`](crate::Operation::run). They are committed with the result, in one
/// write. A publisher, usually a thread of the same program, takes them out, passes them on, and acknowledges them:
///
/// ```
/// use oncekey::Store;
///
/// let store = Store::in_memory()?;
/// store.operation("charge:order-1729").emits(4_096).run(|attempt| {
///     // .. charge ..
///     attempt.emit("charged", &("order-1729".to_owned(), 1_000_u64))?;
///     Ok::<_, oncekey::Error>("receipt 17".to_owned())
/// })?;
///
/// let outbox = store.outbox();
/// while let Some(delivery) = outbox.next("charged")? {
///     assert_eq!(delivery.token(), "charge:order-1729~1");
///     assert_eq!(delivery.decode::<(String, u64)>()?, ("order-1729".to_owned(), 1_000));
///     // .. publish, with the token, by which consumers recognize a repetition ..
///     delivery.ack()?;
/// }
/// assert_eq!(store.stats().messages, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What it promises
///
/// - **Both or neither.** The messages are in the same frame as the completion. A crash keeps both or neither, and a retry
///   that replays the result emits nothing.
/// - **At least once.** A message is handed out until it is acknowledged, after crashes too, and whatever happens to the key:
///   retention, [`forget`](crate::Store::forget) and reclaiming do not touch it. After a crash a message may be handed out
///   again although it was acknowledged, because acknowledgements are not synced. So consumers deduplicate by the
///   [`token`](Message::token).
/// - **Nothing is taken back.** What is handed out is on disk: no loss of power undoes the operation that emitted it.
/// - **In order.** A topic hands out its messages in the order of their [ids](Message::id), which grow with each delivery,
///   and has one delivery out at a time. So the messages of a topic are published one after another, even by several
///   publishers.
/// - **Never refused.** The space for each acknowledgement is reserved, so a full disk does not stop the publisher.
///
/// The outbox has no thread and no timer. It is a handle like a clone of the store, and can be used from any thread.
#[derive(Clone)]
pub struct Outbox {
    engine: Handle,
}

impl Outbox {
    pub(crate) fn new(engine: &Handle) -> Outbox {
        Outbox { engine: engine.clone() }
    }

    /// Hands out the oldest message of a topic that is not acknowledged. Returns `None` if there is none, if another
    /// delivery of the topic is out, or if one was dropped a moment ago. Does not wait for any of them.
    ///
    /// If the message is not on disk yet, because it was emitted under
    /// [`Durability::Buffered`](crate::Durability::Buffered), this call syncs.
    ///
    /// # Errors
    ///
    /// - [`Error::Poisoned`]: the disk failed, now or before. Nothing is handed out until the store is opened again.
    /// - [`Error::Corrupt`], [`Error::Io`]: the message cannot be read. The topic does not go on without it: see
    ///   [`skip_unreadable`](Outbox::skip_unreadable).
    /// - [`Error::Closed`], [`Error::Forked`].
    pub fn next(&self, topic: &str) -> Result<Option<Delivery>> {
        let many = self.next_many(topic, 1)?;
        Ok(many.map(|many| Delivery { many }))
    }

    /// Hands out the oldest messages of a topic that are not acknowledged, at most `max`. They are acknowledged together, in
    /// one write. Otherwise as [`next`](Outbox::next).
    ///
    /// There may be fewer than `max` although more are there: the acknowledgements of a delivery fit one frame, which has a
    /// quarter of a segment ([`Options::segment_size`](crate::Options::segment_size)).
    ///
    /// ```
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// for order in ["order-1", "order-2"] {
    ///     store.operation(order).emits(4_096).run(|attempt| attempt.emit_bytes("shipped", b"parcel"))?;
    /// }
    /// let deliveries = store.outbox().next_many("shipped", 500)?.expect("two messages");
    /// let tokens: Vec<String> = deliveries.messages().iter().map(|message| message.token()).collect();
    /// assert_eq!(tokens, ["order-1~1", "order-2~1"]);
    /// deliveries.ack()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`next`](Outbox::next). If a message cannot be read, those before it are handed out first.
    pub fn next_many(&self, topic: &str, max: usize) -> Result<Option<Deliveries>> {
        let Some((ticket, messages)) = self.engine.next_messages(topic, max)? else { return Ok(None) };
        let messages = messages.into_iter().map(|message| Message { message }).collect();
        Ok(Some(Deliveries { engine: self.engine.clone(), ticket: Some(ticket), messages }))
    }

    /// Reads the messages of a topic that are not acknowledged, and hands none of them out. For this crate's own tests.
    ///
    /// # Errors
    ///
    /// Those of [`next`](Outbox::next).
    #[cfg(feature = "__simulation")]
    #[doc(hidden)]
    pub fn pending(&self, topic: &str) -> Result<Vec<Message>> {
        let messages = self.engine.pending_messages(topic)?;
        Ok(messages.into_iter().map(|message| Message { message }).collect())
    }

    /// Acknowledges the oldest message of a topic if it cannot be read, so that the topic goes on without it. Returns its id,
    /// or `None` if it can be read, or nothing can be handed out now.
    ///
    /// For an operator: the message is lost. Find out what it was from the operation that emitted it.
    ///
    /// # Errors
    ///
    /// Those of [`Deliveries::ack`].
    pub fn skip_unreadable(&self, topic: &str) -> Result<Option<Version>> {
        self.engine.skip_unreadable(topic)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Outbox").field("path", &self.engine.path()).finish_non_exhaustive()
    }
}

/// A message that was handed out.
///
/// `{:?}` prints the length of the payload instead of its bytes.
pub struct Message {
    message: HandedOut,
}

impl Message {
    /// The id: a number that grows with each message of a topic. It is a different one if the operation is completed again,
    /// for instance after its completion was lost in a power loss; the [`token`](Message::token) is the same.
    #[must_use]
    pub fn id(&self) -> Version {
        self.message.id
    }

    /// What a consumer deduplicates by: one printable string of at most 255 characters, made of the scope and the key of the
    /// operation and the number of the message within it.
    ///
    /// It is the same whenever the message is handed out, in every process, and if the operation is completed once more. It
    /// is the operation's own token ([`Key::token`]), `~` and the number, and differs from every token of a key.
    #[must_use]
    pub fn token(&self) -> String {
        self.key().token_of_message(self.message.number)
    }

    /// The key of the operation that emitted the message.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.message.key.as_key()
    }

    /// The number of the message within its operation, counted from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.message.number
    }

    /// The payload, as it was encoded when the message was emitted.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// Decodes the payload with the codec that was recorded with it, or the default one.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the message was emitted as a different type, or with a codec that is not one of this crate's.
    pub fn decode<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let decoded = typed::decode_as(self.message.typing, self.payload());
        decoded.map_err(|source| Error::decode(self.key(), source))
    }

    /// Decodes the payload with `codec`.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the message was emitted as a different type, or with a different codec.
    pub fn decode_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<T> {
        let decoded = typed::decode(codec, self.payload(), self.message.typing);
        decoded.map_err(|source| Error::decode(self.key(), source))
    }

    /// How often the message was handed out, this time included. A lower bound: the count starts again when the store is
    /// opened.
    #[must_use]
    pub fn deliveries(&self) -> u32 {
        self.message.deliveries
    }

    /// When the message was emitted: in store time, in ms since the Unix epoch.
    #[must_use]
    pub fn emitted_at_ms(&self) -> u64 {
        self.message.emitted_ms
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Message")
            .field("id", &self.id())
            .field("key", &self.message.key)
            .field("number", &self.number())
            .field("payload", &Length(self.payload().len()))
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}

/// Several messages of a topic, handed out and acknowledged together: see [`Outbox::next_many`].
///
/// Dropping it without an [`ack`](Deliveries::ack) gives the messages back, in memory and without I/O. They are handed out
/// again after a pause, of 100 ms at first, that doubles with each drop up to a minute. Until then the topic hands out
/// nothing, because messages must not overtake each other. A dropped delivery of a store that is closed or poisoned changes
/// nothing.
#[must_use = "messages that are not acknowledged are handed out again"]
pub struct Deliveries {
    engine: Handle,
    /// None once the delivery has ended.
    ticket: Option<Ticket>,
    messages: Vec<Message>,
}

impl Deliveries {
    /// The messages, in the order of their ids. There is at least one.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Acknowledges the messages: they are not handed out again.
    ///
    /// The acknowledgement is written and not synced. If power is lost, the messages may be handed out again, with the same
    /// tokens. The space for it is reserved, so a full disk does not refuse it.
    ///
    /// # Errors
    ///
    /// After an error it is unknown whether the messages are acknowledged. They are not handed out again before the store is
    /// opened again, and neither are the later ones of the topic.
    ///
    /// - [`Error::Poisoned`]: the disk failed, now or before.
    /// - [`Error::Io`], [`Error::Closed`], [`Error::Forked`].
    pub fn ack(mut self) -> Result<()> {
        // Taken first, so that the drop after an error does not give the messages back.
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        let ids: Vec<Version> = self.messages.iter().map(Message::id).collect();
        self.engine.acknowledge(ticket, &ids)
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take().filter(|_| !self.engine.has_forked()) {
            self.engine.give_back(ticket);
        }
    }
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Deliveries").field(&self.messages).finish()
    }
}

/// A message of a topic that is handed out: see [`Outbox::next`]. It is a [`Message`] that can be acknowledged.
///
/// Dropping it without an [`ack`](Delivery::ack) gives the message back: see [`Deliveries`].
#[must_use = "a message that is not acknowledged is handed out again"]
pub struct Delivery {
    /// Exactly one message.
    many: Deliveries,
}

impl Delivery {
    /// Acknowledges the message: it is not handed out again. See [`Deliveries::ack`].
    ///
    /// # Errors
    ///
    /// Those of [`Deliveries::ack`].
    pub fn ack(self) -> Result<()> {
        self.many.ack()
    }
}

impl std::ops::Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.many.messages[0]
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Delivery").field(&**self).finish()
    }
}

// A caught panic is harmless for the same reasons as for the store (see `store`).
impl std::panic::UnwindSafe for Deliveries {}
impl std::panic::RefUnwindSafe for Deliveries {}
impl std::panic::UnwindSafe for Outbox {}
impl std::panic::RefUnwindSafe for Outbox {}
