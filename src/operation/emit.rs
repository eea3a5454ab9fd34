//! The messages of an [`Operation`].

use super::Operation;
#[cfg(doc)]
use crate::attempt::Attempt;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::messages::Messages;
#[cfg(doc)]
use crate::outcome::RunError;
use crate::policy::{NoMessages, OnComplete};

impl<'a, C, D, R> Operation<'a, C, D, R, NoMessages> {
    /// Makes messages from the result, which are committed with it like those of [`Attempt::emit`].
    ///
    /// The closure is called by whatever completes the operation with this call: after the side effect, and also if
    /// [`reconcile`](Operation::reconcile) finds that an earlier attempt happened. So a message of an attempt that crashed
    /// after its side effect is not lost. It is called in [`run`](Operation::run), [`record_value`](Operation::record_value)
    /// and [`complete_if`](Operation::complete_if), never for a result that is replayed, and its messages come after those of
    /// the attempt. Set [`emits`](Operation::emits), or every message is [`Error::TooLarge`].
    ///
    /// If the closure returns an error, the result is not recorded either, because the messages would be lost:
    /// [`run`](Operation::run) returns it in [`RunError::Unrecorded`], and the operation is in doubt. With `reconcile`, the
    /// next call tries again.
    ///
    /// ```
    /// use oncekey::{Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("charge:1").run(|_| Err::<u64, _>("timed out"));
    /// assert!(lost.is_err());
    /// let found = store
    ///     .operation("charge:1")
    ///     .emits(1_024)
    ///     .reconcile(|_| Some(17)) // the gateway has charged
    ///     .on_complete(|receipt: &u64, outbox| outbox.emit("charged", receipt))
    ///     .run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(found, Ok(Outcome::AlreadyDone(17))));
    /// assert_eq!(store.outbox().next("charged")?.expect("a message").decode::<u64>()?, 17);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn on_complete<T, F>(self, make_messages: F) -> Operation<'a, C, D, R, OnComplete<T, F>>
    where
        F: FnOnce(&T, &mut Messages) -> Result<()>,
    {
        self.with_effect(|effect| effect.with_emit(OnComplete::new(make_messages)))
    }
}

impl<C, D, R, M> Operation<'_, C, D, R, M> {
    /// Sets the maximum size of this operation's messages together, in bytes. Default: none, so that a message is
    /// [`Error::TooLarge`].
    ///
    /// A message counts the lengths of its payload, its topic, its key and scope, and 332 bytes for its record, its entry in
    /// a footer and its acknowledgement. A begin sets aside that much space in the file, so that neither the messages nor
    /// their acknowledgements find the disk full. Messages and result must fit one frame, a quarter of a segment
    /// ([`Options::segment_size`](crate::Options::segment_size)): more is [`Error::Option`]. Without a
    /// [`max_result`](Operation::max_result), the messages lessen the maximum length of the result if need be.
    ///
    /// If the messages that are not acknowledged take more than [`Options::max_outbox`](crate::Options::max_outbox), the begin
    /// of an operation that says `emits` is [`Error::Full`].
    pub fn emits(mut self, bytes: usize) -> Self {
        self.unchecked.emits_bytes = bytes;
        self
    }
}
