//! The calls on many keys at once.

use super::Store;
use crate::batch::Batch;
use crate::error::Result;
use crate::key::{AnyKey, Key};
use crate::stats::KeyState;

impl Store {
    /// Returns an empty [`Batch`], which writes many begins, records and completions with one sync.
    ///
    /// ```
    /// use oncekey::{Answer, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let before = store.stats().syncs;
    /// let mut batch = store.batch();
    /// for message in ["1", "2", "3", "1"] {
    ///     batch.record(store.operation(message).scope("queue"), b"seen")?;
    /// }
    /// let answers = batch.commit()?;
    /// let first: Vec<bool> = answers.map(|answer| matches!(answer, Ok(Answer::Done(_)))).collect();
    /// assert_eq!(first, [true, true, true, false]);
    /// assert_eq!(store.stats().syncs, before + 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn batch<'a>(&self) -> Batch<'a> {
        Batch::new(&self.engine)
    }

    /// Returns the states of many keys, in order, as [`get`](Store::get) does for one. If a sync is needed, one sync covers all
    /// keys.
    ///
    /// The states are read one after the other, so they are not all of the same moment.
    ///
    /// ```
    /// use oncekey::{Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// store.record("hook:1", Fingerprint::NONE, b"seen")?;
    /// let states = store.get_many(["hook:1", "hook:2"]);
    /// let seen: Vec<bool> = states.into_iter().map(|state| Ok(state?.is_completed())).collect::<oncekey::Result<_>>()?;
    /// assert_eq!(seen, [true, false]);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Each key has its own result, with the errors of [`get`](Store::get): a key whose record cannot be read does not hide
    /// the others.
    #[must_use]
    pub fn get_many<'a, K: Into<AnyKey<'a>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<KeyState>> {
        let keys: Vec<AnyKey<'a>> = keys.into_iter().map(Into::into).collect();
        let keys: Vec<Key<'_>> = keys.iter().map(AnyKey::as_key).collect();
        KeyState::read_many(&self.engine, &keys)
    }
}
