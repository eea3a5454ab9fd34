//! [`ListedStep`]: a step of an unfinished operation, as the listings show it.

use crate::engine::StepInfo;
use crate::key::{Key, OwnedKey};
use crate::status::{Status, Version};

/// A step of an operation that has not ended, as [`Attempt::steps`](crate::Attempt::steps) and
/// [`UnfinishedOperation::steps`](crate::UnfinishedOperation::steps) list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedStep {
    key: OwnedKey,
    info: StepInfo,
}

impl ListedStep {
    /// Makes the step of the operation of this key.
    pub(crate) fn new(operation: Key<'_>, info: StepInfo) -> ListedStep {
        ListedStep { key: operation.step(&info.name).to_owned(), info }
    }

    /// The key that [addresses](Key::step) the step, for [`Store::get`](crate::Store::get) and
    /// [`Store::compare_and_set`](crate::Store::compare_and_set). Its [`token`](Key::token) is what the outside world has
    /// seen.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// The name of the step.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.info.name
    }

    /// [`Status::InProgress`], [`Status::InDoubt`], [`Status::Completed`] or, if the step was released, [`Status::Absent`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.info.status
    }

    /// Whether the step is in doubt and was [given up](crate::Attempt::give_up).
    #[must_use]
    pub fn was_given_up(&self) -> bool {
        self.info.given_up
    }

    /// Whether the last attempt at the operation has asked for the step.
    #[must_use]
    pub fn is_visited(&self) -> bool {
        self.info.is_visited
    }

    /// The version of the step's last record.
    #[must_use]
    pub fn version(&self) -> Version {
        self.info.version
    }

    /// The number of the last attempt at the step, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.info.attempt
    }

    /// When the step last changed: in store time, in ms since the Unix epoch.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.info.since_ms
    }

    /// The text of the error with which the last attempt ended in doubt: see
    /// [`UnfinishedOperation::note`](crate::UnfinishedOperation::note).
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.info.note.as_deref()
    }
}
