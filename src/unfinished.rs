//! The list of operations that began and have not ended.

use std::string::FromUtf8Error;
use std::vec;

use crate::engine::{Engine, Handle, HashedKey, ListedOperation, ListedRecord};
use crate::error::Result;
use crate::key::{Key, OwnedKey};
use crate::listed_step::ListedStep;
use crate::status::{Status, Version};
use crate::store::Store;

impl Store {
    /// Lists the operations that began and have not ended, oldest first: those in progress, in doubt and stopped, with their
    /// [steps](crate::Attempt::step).
    ///
    /// A key whose operation is in doubt stays so until a retry or an operator resolves it. An operator lists what is in
    /// doubt, finds out from the outside world whether each side effect happened, and resolves each with
    /// [`begin`](Store::begin) or [`compare_and_set`](Store::compare_and_set): see
    /// [the guide](crate::guide::operating#resolve-a-doubt).
    ///
    /// The list is made now, from memory, and each operation is read when the iterator gets to it. One that has ended
    /// meanwhile is left out, and one that begins after this call may be missing. No lock is held between two items. What
    /// is listed may not be durable yet; the calls that resolve a doubt make it so.
    ///
    /// [`Stats::unfinished`](crate::Stats::unfinished) and [`Stats::in_doubt`](crate::Stats::in_doubt) are the counts.
    ///
    /// ```
    /// use oncekey::{Status, Store};
    ///
    /// let store = Store::in_memory()?;
    /// assert!(store.operation("charge:1").run(|_| Err::<u64, _>("connection reset")).is_err());
    ///
    /// let unfinished = store.unfinished()?.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(unfinished.len(), 1);
    /// assert_eq!(unfinished[0].key().to_string(), r#"key "charge:1""#);
    /// assert_eq!(unfinished[0].status(), Status::InDoubt);
    /// assert_eq!(unfinished[0].note(), Some("connection reset"));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Forked`](crate::Error::Forked). An item of the iterator is also
    /// [`Error::Corrupt`](crate::Error::Corrupt), if a record cannot be read, or [`Error::Io`](crate::Error::Io). The
    /// iterator goes on after it.
    pub fn unfinished(&self) -> Result<Unfinished> {
        Unfinished::of(self.engine())
    }
}

/// An operation that began and has not ended. [`Store::unfinished`](crate::Store::unfinished) lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedOperation {
    key: OwnedKey,
    status: Status,
    version: Version,
    attempt: u32,
    since_ms: u64,
    note: Option<String>,
    steps: Vec<ListedStep>,
    unreadable_steps: usize,
}

impl UnfinishedOperation {
    /// The operation of a record in the file of a store that may be open in another process. Its steps are not read.
    pub(crate) fn without_steps(record: ListedRecord) -> UnfinishedOperation {
        let ListedRecord { key, status, found, note, .. } = record;
        let lossy = |note: FromUtf8Error| String::from_utf8_lossy(note.as_bytes()).into_owned();
        UnfinishedOperation {
            key,
            status,
            version: found.version,
            attempt: found.attempt,
            since_ms: found.time_ms,
            note: note.map(|note| String::from_utf8(note).unwrap_or_else(lossy)),
            steps: Vec::new(),
            unreadable_steps: 0,
        }
    }

    fn of(engine: &Engine, hash: u128, record: ListedRecord) -> Result<UnfinishedOperation> {
        let has_steps = record.has_steps;
        let mut operation = UnfinishedOperation::without_steps(record);
        // Listing steps waits for a thread that is changing the operation, so it is done only for an operation that has any.
        if !has_steps {
            return Ok(operation);
        }
        let listed = engine.list_steps(HashedKey { key: operation.key(), hash })?;
        let count = listed.len();
        let steps = listed.into_iter().flatten().map(|step| ListedStep::new(operation.key(), step));
        operation.steps = steps.collect();
        operation.unreadable_steps = count - operation.steps.len();
        Ok(operation)
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// [`Status::InProgress`], [`Status::InDoubt`] or [`Status::Stopped`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The version of the last attempt, for [`Store::compare_and_set`](crate::Store::compare_and_set).
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The number of the last attempt, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the last attempt began: in store time, in ms since the Unix epoch. Compare it with
    /// [`Stats::store_time_ms`](crate::Stats::store_time_ms).
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// The text of the error with which the last attempt ended in doubt, at most 512 bytes of it. `None` if it did not end with an
    /// error, if a crash came before the text was on disk, if there was no space for it, or if
    /// [`Options::notes`](crate::Options::notes) is off.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The steps of the operation, in the order in which they last changed. Empty if it has none.
    #[must_use]
    pub fn steps(&self) -> &[ListedStep] {
        &self.steps
    }

    /// The number of steps that are missing in [`steps`](UnfinishedOperation::steps), because their records cannot be read.
    #[must_use]
    pub fn unreadable_steps(&self) -> usize {
        self.unreadable_steps
    }
}

/// An iterator over the unfinished operations of a store, oldest first. Made by
/// [`Store::unfinished`](crate::Store::unfinished).
#[derive(Debug)]
#[must_use = "an iterator does nothing until it is used"]
pub struct Unfinished {
    engine: Handle,
    listed: vec::IntoIter<ListedOperation>,
}

impl Unfinished {
    pub(crate) fn of(engine: &Handle) -> Result<Unfinished> {
        Ok(Unfinished { engine: engine.clone(), listed: engine.unfinished()?.into_iter() })
    }

    fn read(engine: &Engine, listed: &ListedOperation) -> Option<Result<UnfinishedOperation>> {
        let record = engine.listed_operation(listed).transpose()?;
        Some(record.and_then(|record| UnfinishedOperation::of(engine, listed.hash(), record)))
    }
}

impl Iterator for Unfinished {
    type Item = Result<UnfinishedOperation>;

    fn next(&mut self) -> Option<Result<UnfinishedOperation>> {
        self.listed.find_map(|listed| Unfinished::read(&self.engine, &listed))
    }

    /// The upper bound counts the operations that were unfinished when the list was made. Some may have ended since.
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.listed.len()))
    }
}
