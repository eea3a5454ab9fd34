//! [`Batch`]: many begins, records and completions with one sync.
//!
//! This module keeps the entries of a batch and the leases that they end. The engine decides and writes them.

mod answers;
mod queued;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::doubt::Doubt;
use crate::engine::{Engine, Entry, FrameSize, Handle, NewMessage, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::held_grant::HeldGrant;
use crate::key::Key;
use crate::lease::Lease;
use crate::messages::Messages;
use crate::operation::Operation;
use crate::policy::{BatchPolicy, KeepInDoubt};
use crate::typed::Unfit;
pub use answers::{Answer, Answers};
use queued::{Queued, StoredResult};

/// Gathers begins, records and completions, and writes them with one sync. [`Store::batch`](crate::Store::batch) returns
/// an empty one.
///
/// Each entry is a call of its own, with its own key, request and terms, and gets its own [`Answer`]. The batch is only a
/// way to pay for them together: a consumer that polls 500 messages begins them all with one sync, and completes them all
/// with another one.
///
/// ```
/// use oncekey::{Answer, Store};
///
/// let store = Store::in_memory()?;
/// let messages = [("m1", "ship"), ("m2", "ship"), ("m1", "ship")]; // the queue delivered m1 twice
///
/// let mut begins = store.batch();
/// for (id, body) in &messages {
///     begins.begin(store.operation(*id).request(body).max_result(64))?;
/// }
/// let mut leases = Vec::new();
/// for ((id, _), answer) in messages.iter().zip(begins.commit()?) {
///     match answer? {
///         Answer::Acquired(lease) => leases.push(lease),
///         Answer::InProgress { .. } => println!("{id}: there twice"),
///         Answer::AlreadyDone(done) => println!("{id}: done before: {:?}", done.result()),
///         Answer::InDoubt(doubt) => println!("{id}: did attempt {} happen?", doubt.attempt()),
///         _ => unreachable!(),
///     }
/// }
/// assert_eq!(leases.len(), 2);
///
/// // .. the side effects ..
///
/// let mut ends = store.batch();
/// for lease in &mut leases {
///     ends.complete(lease, b"shipped")?;
/// }
/// for answer in ends.commit()? {
///     answer?;
/// }
/// assert!(store.get("m2")?.is_completed());
/// # Ok::<(), oncekey::Error>(())
/// ```
///
/// # What a batch promises
///
/// - **One sync.** The records go into as many frames as they need, and one sync covers all frames. When
///   [`commit`](Batch::commit) returns, each record is as durable as its entry asked for.
/// - **Answers in order.** An entry that is refused (a mismatch, no space) gets its error as its answer and stops no other
///   entry. In particular a completion is not refused because there is no space for a begin beside it.
/// - **One entry after the other.** A key that is there twice is answered as if two calls had been made in that order.
/// - **No waiting.** An entry whose key another caller has begun, or is changing right now, is in progress at once;
///   [`wait`](Operation::wait) does not apply. Only the end of an attempt may wait for another thread's write to the same
///   key.
/// - **A failed disk changes nothing in the batch.** If [`commit`](Batch::commit) returns an error, the entries, their
///   leases and their results are still there.
///
/// The entries of a batch are independent: a crash during the commit can keep some and lose others, and each of them is
/// then as if its own call had been interrupted. [`atomic`](Batch::atomic) makes them all or nothing.
///
/// # Begin ahead only what can be resolved
///
/// If the process ends between the two commits, every operation that was begun is in doubt, although most of their side
/// effects never ran. The next process begins them again and gets each as [`Answer::InDoubt`]. It finds out what happened
/// and adds [`complete`](Batch::complete) or [`begin_again`](Batch::begin_again) to a batch, again with one sync for all. If
/// the side effect is itself idempotent, add the begins with [`rerun`](Operation::rerun), which needs no answer about the
/// past. If you have neither a way to find out nor an idempotent side effect, do not begin ahead.
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch<'a> {
    engine: Handle,
    entries: Vec<Queued<'a>>,
    is_atomic: bool,
    size: FrameSize,
}

/// An attempt that an entry of a batch can end: made from a `&mut` [`Lease`] or a `&mut` [`Doubt`].
///
/// The batch borrows it until it is dropped, and does not consume it. So if a commit fails, the lease is still there.
pub struct HeldAttempt<'a>(&'a mut HeldGrant);

impl<'a> From<&'a mut Lease> for HeldAttempt<'a> {
    fn from(lease: &'a mut Lease) -> HeldAttempt<'a> {
        HeldAttempt(lease.held())
    }
}

impl<'a> From<&'a mut Doubt> for HeldAttempt<'a> {
    fn from(doubt: &'a mut Doubt) -> HeldAttempt<'a> {
        HeldAttempt(doubt.held())
    }
}

impl fmt::Debug for HeldAttempt<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("HeldAttempt").field(&self.0.key).finish()
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(engine: &Arc<Engine>) -> Batch<'a> {
        let size = FrameSize::empty(engine);
        let engine = Handle::new(Arc::clone(engine));
        Batch { engine, entries: Vec::new(), is_atomic: false, size }
    }

    /// Makes the batch all or nothing: a crash during the commit keeps all of its records or none.
    ///
    /// All records are written in one frame, so they must fit: a quarter of a segment ([`Options::segment_size`]), and at most
    /// 64 MiB. An entry that does not fit is refused when it is added. If an entry is refused at the commit, nothing is
    /// written, and the answer of each entry that would have been written is [`Error::BatchRefused`]. A replay
    /// ([`Answer::AlreadyDone`]) is not a refusal.
    ///
    /// ```
    /// use oncekey::{Error, Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// store.record("debit:7", store.fingerprint(b"5 EUR"), b"")?;
    /// let mut transfer = store.batch().atomic();
    /// transfer.record(store.operation("credit:7"), b"")?;
    /// transfer.record(store.operation("debit:7"), b"")?; // another request
    /// let answers: Vec<_> = transfer.commit()?.collect();
    /// assert!(matches!(answers[0], Err(Error::BatchRefused { entry: 1, .. })));
    /// assert!(matches!(answers[1], Err(Error::Mismatch { .. })));
    /// assert!(store.get("credit:7")?.is_absent());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// [`Options::segment_size`]: crate::Options::segment_size
    pub fn atomic(mut self) -> Batch<'a> {
        self.is_atomic = true;
        self
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the batch has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the begin of an attempt, with the request and the terms of `operation`: the batch's
    /// [`Operation::begin`].
    ///
    /// The answer is [`Answer::Acquired`], [`Answer::InProgress`], [`Answer::InDoubt`] or [`Answer::AlreadyDone`]. If the
    /// operation is in doubt and has [`rerun`](Operation::rerun), its next attempt begins, and the begin is written but not
    /// synced, as for a single call. A batch runs no closures, so it takes no operation with `reconcile` or `release_if`.
    ///
    /// Each begin reserves space for the largest result that it allows. Set
    /// [`max_result`](Operation::max_result), or 500 begins with the default reserve 32 MB.
    ///
    /// # Errors
    ///
    /// - [`Error::Option`]: the batch is [atomic](Batch::atomic) and the entry does not fit, or the operation belongs to a
    ///   different store. The entry was not added.
    ///
    /// Whatever else is wrong with the entry (its key, a setting, its request) is its answer.
    pub fn begin<C, D: BatchPolicy>(&mut self, operation: Operation<'a, C, D, KeepInDoubt>) -> Result<()> {
        let parts = operation.into_parts(D::RERUNS);
        self.check_store(parts.engine)?;
        let key = parts.key;
        match parts.terms {
            Err(error) => self.add_refused(error),
            Ok((request, terms)) => {
                self.add_size(key.as_key(), &Value::begun(terms.typing))?;
                self.entries.push(Queued::Begin { key, request, terms, reruns: D::RERUNS });
            }
        }
        Ok(())
    }

    /// Adds the record of a completed operation: the batch's [`Operation::record`].
    ///
    /// The answer is [`Answer::Done`] or [`Answer::AlreadyDone`]. An operation that was begun and has not ended is an
    /// error, as for the single call.
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin).
    pub fn record<C, D: BatchPolicy>(
        &mut self,
        operation: Operation<'a, C, D, KeepInDoubt>,
        result: &[u8],
    ) -> Result<()> {
        self.add_record(operation, Ok(StoredResult::bytes(result)))
    }

    /// Adds the record of a completed operation with a typed result: the batch's
    /// [`Operation::record_value`].
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin). A result that cannot be recorded is the answer [`Error::Encode`] or
    /// [`Error::TooLarge`].
    pub fn record_value<C: Codec, D: BatchPolicy, T: Serialize + DeserializeOwned>(
        &mut self,
        operation: Operation<'a, C, D, KeepInDoubt>,
        result: &T,
    ) -> Result<()> {
        let encoded = operation.encode(result).map(StoredResult::encoded);
        self.add_record(operation, encoded)
    }

    fn add_record<C, D: BatchPolicy>(
        &mut self,
        operation: Operation<'a, C, D, KeepInDoubt>,
        result: std::result::Result<StoredResult, Unfit>,
    ) -> Result<()> {
        let parts = operation.into_parts(false);
        self.check_store(parts.engine)?;
        let key = parts.key;
        let result = result.map_err(|unfit| unfit.into_error(key.as_key()));
        match parts.terms.and_then(|terms| Ok((terms, result?))) {
            Err(error) => self.add_refused(error),
            Ok(((request, terms), result)) => {
                self.add_size(key.as_key(), &result.value())?;
                self.entries.push(Queued::Record { key, request, terms, result, messages: Messages::new() });
            }
        }
        Ok(())
    }

    /// Adds the completion of a lease or a doubt with this result: the batch's [`Lease::complete`].
    ///
    /// The answer is [`Answer::Done`]. The begin of a lease reserved the space for this record. The batch borrows the lease
    /// until it is dropped; the lease is usable afterwards, whatever the answer is.
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin).
    pub fn complete(&mut self, attempt: impl Into<HeldAttempt<'a>>, result: &[u8]) -> Result<()> {
        self.add_completion(attempt.into(), Ok(StoredResult::bytes(result)))
    }

    /// Adds the completion of a lease or a doubt with a typed result: the batch's [`Lease::complete_value`].
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin). A result that cannot be recorded is the answer [`Error::Encode`] or
    /// [`Error::TooLarge`]; the lease is still usable.
    pub fn complete_value<T: Serialize + DeserializeOwned>(
        &mut self,
        attempt: impl Into<HeldAttempt<'a>>,
        result: &T,
    ) -> Result<()> {
        let attempt = attempt.into();
        let encoded = attempt.0.encode(result);
        self.add_completion(attempt, encoded.map(StoredResult::encoded))
    }

    /// Adds the completion of a lease or a doubt with a result that is encoded with `codec`: the batch's
    /// [`Lease::complete_value_with`].
    ///
    /// # Errors
    ///
    /// Those of [`complete_value`](Batch::complete_value).
    pub fn complete_value_with<C: Codec, T: Serialize + DeserializeOwned>(
        &mut self,
        attempt: impl Into<HeldAttempt<'a>>,
        codec: &C,
        result: &T,
    ) -> Result<()> {
        let attempt = attempt.into();
        let encoded = attempt.0.encode_with(codec, result);
        self.add_completion(attempt, encoded.map(StoredResult::encoded))
    }

    /// Adds the completion of a lease or a doubt without a result: the batch's [`Lease::complete_without_result`].
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin).
    pub fn complete_without_result(&mut self, attempt: impl Into<HeldAttempt<'a>>) -> Result<()> {
        let attempt = attempt.into();
        let typing = attempt.0.grant.typing;
        self.add_completion(attempt, Ok(StoredResult { bytes: None, typing }))
    }

    fn add_completion(
        &mut self,
        HeldAttempt(held): HeldAttempt<'a>,
        result: std::result::Result<StoredResult, Unfit>,
    ) -> Result<()> {
        self.check_store(&held.engine)?;
        match result {
            Err(unfit) => self.add_refused(unfit.into_error(held.key.as_key())),
            Ok(result) => {
                let size = self.size;
                self.add_size(held.key.as_key(), &result.value())?;
                if let Err(error) = self.add_messages(held.key.as_key(), held.messages.list()) {
                    self.size = size;
                    return Err(error);
                }
                let messages = held.messages.unbound();
                self.entries.push(Queued::Complete { held, result, messages });
            }
        }
        Ok(())
    }

    /// Adds messages to the entry that was added last, which must be a record or a completion. They are committed with it: in
    /// its frame, or not at all. A completion also commits the messages of its lease ([`Lease::emit`]), which come first.
    ///
    /// ```
    /// use oncekey::{Messages, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let mut batch = store.batch();
    /// for id in ["m1", "m2"] {
    ///     batch.record(store.operation(id), b"")?;
    ///     let mut messages = Messages::new();
    ///     messages.emit_bytes("received", id.as_bytes())?;
    ///     batch.attach(messages)?;
    /// }
    /// batch.commit()?.for_each(drop);
    /// assert_eq!(store.stats().messages, 2);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Option`]: the last entry is of another kind, or there is none; or the batch is [atomic](Batch::atomic) and
    ///   the messages do not fit. Nothing was added.
    pub fn attach(&mut self, messages: Messages) -> Result<()> {
        let key = match self.entries.last() {
            Some(Queued::Record { key, .. }) => key.as_key().to_owned(),
            Some(Queued::Complete { held, .. }) => held.key.clone(),
            // The entry was refused, and its messages with it.
            Some(Queued::Refused { .. }) => return Ok(()),
            Some(Queued::Begin { .. } | Queued::Release { .. } | Queued::BeginAgain { .. }) | None => {
                let reason =
                    "messages are committed with a record or a completion, and the last entry is neither";
                return Err(Error::Option { option: "messages", reason: reason.into() });
            }
        };
        self.add_messages(key.as_key(), messages.list())?;
        if let Some(Queued::Record { messages: attached, .. } | Queued::Complete { messages: attached, .. }) =
            self.entries.last_mut()
        {
            attached.append(messages);
        }
        Ok(())
    }

    /// Adds the size of messages. Refuses them if the batch is atomic and would no longer fit one frame.
    fn add_messages(&mut self, key: Key<'_>, messages: &[NewMessage]) -> Result<()> {
        let mut size = self.size;
        size.add_messages(key, messages);
        if self.is_atomic {
            check_fits(size)?;
        }
        self.size = size;
        Ok(())
    }

    /// Adds the release of a lease or a doubt, because its side effect certainly did not happen: the batch's
    /// [`Lease::release`]. The answer is [`Answer::Released`]; after that, the lease is [`Error::Fenced`].
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin).
    pub fn release(&mut self, attempt: impl Into<HeldAttempt<'a>>) -> Result<()> {
        let HeldAttempt(held) = attempt.into();
        self.check_store(&held.engine)?;
        self.add_size(held.key.as_key(), &Value::NONE)?;
        self.entries.push(Queued::Release { held });
        Ok(())
    }

    /// Adds the begin of the next attempt of a doubt, because the side effect certainly did not happen or is allowed to
    /// happen again: the batch's [`Doubt::begin_again`].
    ///
    /// The answer is [`Answer::Acquired`] with the lease of that attempt; after that, the doubt is [`Error::Fenced`].
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Batch::begin).
    pub fn begin_again(&mut self, doubt: &'a mut Doubt) -> Result<()> {
        let held = doubt.held();
        self.check_store(&held.engine)?;
        let terms = Terms { typing: held.grant.typing.or(held.terms.typing), ..held.terms };
        self.add_size(held.key.as_key(), &Value::begun(terms.typing))?;
        self.entries.push(Queued::BeginAgain { held, terms });
        Ok(())
    }

    fn add_refused(&mut self, error: Error) {
        self.entries.push(Queued::Refused { error });
    }

    fn check_store(&self, engine: &Arc<Engine>) -> Result<()> {
        if Arc::ptr_eq(engine, &self.engine) {
            return Ok(());
        }
        Err(Error::Option {
            option: "batch",
            reason: "the operation, lease or doubt belongs to a different store".into(),
        })
    }

    /// Adds the size of an entry's record. Refuses it if the batch is atomic and would no longer fit one frame.
    fn add_size(&mut self, key: Key<'_>, value: &Value<'_>) -> Result<()> {
        let mut size = self.size;
        size.add(key, value);
        if self.is_atomic {
            check_fits(size)?;
        }
        self.size = size;
        Ok(())
    }

    /// Commits the entries with one sync, and returns the answer of each in order. The batch is empty afterwards.
    ///
    /// # Errors
    ///
    /// None of the entries has an answer, and nothing was acknowledged. The entries are still in the batch.
    ///
    /// - [`Error::Poisoned`], [`Error::Io`]: the disk failed, now or before. Opening the store again shows what was recorded.
    /// - [`Error::Option`]: the batch was made [atomic](Batch::atomic) after more was added than fits.
    /// - [`Error::Closed`], [`Error::Forked`], [`Error::VersionsExhausted`].
    pub fn commit(&mut self) -> Result<Answers> {
        self.engine.check_process()?;
        if self.is_atomic {
            check_fits(self.size)?;
        }
        let engine = Handle::clone(&self.engine);
        let defaults = engine.settings().terms;
        let mut entries: Vec<Entry<'_>> =
            self.entries.iter_mut().map(|queued| queued.entry(defaults)).collect();
        let answers = engine.commit_batch(&mut entries, self.is_atomic)?;
        drop(entries);
        self.size = FrameSize::empty(&engine);
        let queued = std::mem::take(&mut self.entries);
        let answers: Vec<_> =
            queued.into_iter().zip(answers).map(|(queued, done)| queued.answer(&engine, done)).collect();
        Ok(Answers::new(answers))
    }
}

fn check_fits(size: FrameSize) -> Result<()> {
    if !size.is_exceeded() {
        return Ok(());
    }
    let FrameSize { used_bytes, limit_bytes } = size;
    let reason = format!(
        "the records of the batch take {used_bytes} bytes, and one frame of this store holds {limit_bytes}; \
         use a smaller batch, or larger segments (Options::segment_size)"
    );
    Err(Error::Option { option: "atomic", reason })
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Batch")
            .field("entries", &self.entries.len())
            .field("is_atomic", &self.is_atomic)
            .finish_non_exhaustive()
    }
}
