//! The answers of a batch.

use std::fmt;
use std::vec;

use crate::completion::Completion;
use crate::doubt::Doubt;
use crate::error::Result;
use crate::lease::Lease;
use crate::planted::{Bug, planted};
use crate::status::Version;

/// The answer of one entry of a [`Batch`](super::Batch). A [`Lease`] in it that is dropped leaves its operation in doubt.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answer {
    /// An attempt began, and the caller runs it: the answer of a begin.
    Acquired(Lease),
    /// An earlier attempt began, and it is unknown whether its side effect happened. The caller must resolve that doubt; see
    /// [`Begin::InDoubt`](crate::Begin::InDoubt). The answer of a begin.
    InDoubt(Doubt),
    /// Another caller in this process, or an earlier entry of the batch, is running an attempt or resolving a doubt. The
    /// answer of a begin.
    #[non_exhaustive]
    InProgress {
        /// The number of that attempt, counted from 1.
        attempt: u32,
    },
    /// The entry recorded the result, under this version: the answer of a record or a completion.
    Done(Version),
    /// The operation was completed before, with this result, and the entry changed nothing: the answer of a begin or a
    /// record.
    AlreadyDone(Completion),
    /// The attempt was released: the key is absent.
    Released,
}

/// The answers of a [`Batch`](super::Batch), in the order of its entries.
///
/// A lease belongs to the caller once this iterator has returned it. If the answers are dropped before, the attempts whose
/// leases are left never run, so they are released: their keys are absent at once, in memory. The next frame that the store
/// writes records that; if the process ends before, they are in doubt. An attempt that resolved a doubt stays in doubt, because
/// the attempt before it may have run.
///
/// Do not collect the answers into a `Result<Vec<_>>`: the first error drops the leases that were already taken, which leaves
/// their operations in doubt. Collect them into a `Vec<Result<_>>`.
#[must_use = "attempts whose leases were not taken from the answers are released"]
pub struct Answers {
    /// Each answer, and whether it is a lease of an attempt that has no predecessor in doubt.
    answers: vec::IntoIter<(Result<Answer>, bool)>,
}

impl Answers {
    pub(super) fn new(answers: Vec<(Result<Answer>, bool)>) -> Answers {
        Answers { answers: answers.into_iter() }
    }
}

impl Iterator for Answers {
    type Item = Result<Answer>;

    fn next(&mut self) -> Option<Result<Answer>> {
        self.answers.next().map(|(answer, _)| answer)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.answers.size_hint()
    }
}

impl ExactSizeIterator for Answers {}

impl Drop for Answers {
    fn drop(&mut self) {
        for (answer, is_fresh) in self.answers.by_ref() {
            if planted(Bug::BatchLeaseLeaked) {
                std::mem::forget(answer);
            } else if let Ok(Answer::Acquired(lease)) = answer
                && is_fresh
            {
                lease.release_unstarted();
            }
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Answers").field("left", &self.answers.len()).finish()
    }
}
