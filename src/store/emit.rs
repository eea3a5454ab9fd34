//! The calls of a [`Store`] for messages.

use super::Store;
use crate::engine::{Expected, Next};
use crate::error::{Error, Result};
use crate::key::AnyKey;
use crate::messages::Messages;
use crate::outbox::Outbox;
use crate::stats::CasOutcome;

impl Store {
    /// Atomically sets the state of `key` to `next` if it still matches `expected`, as
    /// [`compare_and_set`](Store::compare_and_set) does, and commits `messages` with it. Messages are committed only with
    /// [`Next::Completed`]. For an operator who resolves a doubt about an operation that would have emitted them.
    ///
    /// See [`Messages`] for an example.
    ///
    /// # Errors
    ///
    /// Those of [`compare_and_set`](Store::compare_and_set). [`Error::TooLarge`] also if the messages and the result do not
    /// fit one frame, a quarter of a segment. [`Error::Option`]: there are messages, and `next` is not completed.
    pub fn compare_and_set_with<'a>(
        &self,
        key: impl Into<AnyKey<'a>>,
        expected: Expected,
        next: Next<'_>,
        messages: &Messages,
    ) -> Result<CasOutcome> {
        if !messages.is_empty() && !matches!(next, Next::Completed { .. }) {
            let reason = "messages are committed with a completion, and the next state is not one".to_owned();
            return Err(Error::Option { option: "messages", reason });
        }
        let key = key.into();
        let key = key.as_key();
        let terms = &self.engine.settings().terms;
        CasOutcome::set(&self.engine, key, expected, (next, None), messages.list(), terms)
    }

    /// Returns the outbox, which hands out the messages that operations have emitted: see [`Outbox`].
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox::new(&self.engine)
    }
}
