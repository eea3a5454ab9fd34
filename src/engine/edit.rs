//! Calls that change a key without an attempt: record a completed operation, forget, compare-and-set.

use super::assembly::Engine;
use super::call::{Call, PathRule};
use super::change::{Answer, ChangeOutcome, check_result};
use super::counters::Counted;
use super::decide::{self, Decision};
use super::records::Found;
use super::step_reading::StepInfo;
use super::terms::{Expected, NewMessage, Next, Request, Terms};
use super::view::View;
use crate::error::{Error, Result};
use crate::format::record::{Typing, Value};
use crate::key::Key;
use crate::status::{Status, Version};

/// The outcome of a forget.
#[derive(Debug)]
pub(crate) struct Forgotten {
    /// Whether there was anything to forget.
    pub(crate) was_present: bool,
    /// The steps of the operation, or why one of them cannot be read.
    pub(crate) steps: Vec<Result<StepInfo>>,
}

/// The outcome of a compare-and-set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Swap {
    /// The key has the next state, under this version. The version is zero if the key was absent and stays so.
    Done(Version),
    /// The key does not have the expected state.
    Differs,
}

impl Engine {
    /// Records an operation as completed without an attempt. Returns the version of its record, or, if the operation
    /// was completed already, the inner error with what was found.
    pub(crate) fn record(
        &self,
        key: Key<'_>,
        request: Request,
        value: Value<'_>,
        messages: &[NewMessage],
        terms: &Terms,
    ) -> Result<std::result::Result<Version, Found>> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        check_result(key, &value, terms)?;
        self.check_messages(key, &value, messages)?;
        let call = Call { messages, ..Call::beginning(hashed, request, terms) };
        let outcome = loop {
            match self.change(&call, None, |view| Ok(decide::record(view, request, value, terms)))? {
                ChangeOutcome::Waited => {}
                outcome => break outcome,
            }
        };
        match outcome {
            ChangeOutcome::Written(written) => Ok(Ok(written.version)),
            ChangeOutcome::Completed(found) => Ok(Err(found)),
            ChangeOutcome::InProgress { attempt } => Err(Error::InProgress { key: key.to_owned(), attempt }),
            _ => match self.look_and_answer(hashed, request, terms)? {
                Answer::Completed(found) => Ok(Err(found)),
                Answer::InProgress { attempt } => Err(Error::InProgress { key: key.to_owned(), attempt }),
            },
        }
    }

    /// Discards everything that the store has recorded for the key, with the steps of its operation. Returns false if there
    /// was nothing to discard.
    pub(crate) fn forget(&self, key: Key<'_>, terms: &Terms) -> Result<bool> {
        self.forget_with_steps(key, terms, false).map(|forgotten| forgotten.was_present)
    }

    /// Forgets a key like [`Engine::forget`]. If `lists`, also returns the steps that were given up with it.
    pub(crate) fn forget_with_steps(&self, key: Key<'_>, terms: &Terms, lists: bool) -> Result<Forgotten> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        let call = Call { accepts_unreadable: true, ..Call::new(hashed, terms, PathRule::RemovesState) };
        let mut steps = Vec::new();
        let outcome = self.change(&call, None, |view| {
            let decision = decide::forget(view, terms);
            if lists && matches!(decision, Decision::Write(_)) {
                // Read under the flight, just before the record of the forget: no step can begin in between.
                steps = self.read_steps(hashed.hash, None);
            }
            Ok(decision)
        })?;
        match outcome {
            // An attempt that never ran leaves nothing to forget, although that had to be written.
            ChangeOutcome::Written(written) => {
                Ok(Forgotten { was_present: written.previous_status != Status::Absent, steps })
            }
            ChangeOutcome::InProgress { attempt } => Err(Error::InProgress { key: key.to_owned(), attempt }),
            _ => Ok(Forgotten { was_present: false, steps: Vec::new() }),
        }
    }

    /// Atomically sets the key's state to `next` if it still matches `expected`.
    pub(crate) fn compare_and_set(
        &self,
        key: Key<'_>,
        expected: Expected,
        (next, typing): (Next<'_>, Option<Typing>),
        messages: &[NewMessage],
        terms: &Terms,
    ) -> Result<Swap> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        let value = match next {
            Next::Completed { result, .. } => Value { typing, ..Value::bytes(result) },
            Next::Absent | Next::InDoubt { .. } => Value::NONE,
        };
        check_result(key, &value, terms)?;
        self.check_messages(key, &value, messages)?;
        let rules = Call::new(hashed, terms, PathRule::RemovesState);
        let call = Call { accepts_unreadable: true, compares: true, messages, ..rules };
        let decide = |view: &View| Ok(decide::compare_and_set(view, expected, next, value, terms));
        let outcome = self.change(&call, None, decide)?;
        match outcome {
            ChangeOutcome::Written(written) => {
                if matches!(next, Next::InDoubt { .. })
                    && !matches!(written.previous_status, Status::InDoubt | Status::Stopped)
                {
                    self.counters.add(Counted::Doubted);
                    crate::events::in_doubt(key, written.attempt);
                }
                Ok(Swap::Done(written.version))
            }
            ChangeOutcome::Nothing => Ok(Swap::Done(Version::from_u64(0))),
            _ => Ok(Swap::Differs),
        }
    }
}
