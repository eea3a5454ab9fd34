//! [`CasOutcome`], the outcome of a compare-and-set.

use super::KeyState;
use crate::engine::{Engine, Expected, NewMessage, Next, Swap, Terms};
use crate::error::{Error, Result};
use crate::format::record::Typing;
use crate::key::Key;
use crate::status::Version;
use crate::sync::Patience;

/// The outcome of [`Store::compare_and_set`](crate::Store::compare_and_set).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CasOutcome {
    /// The state was set, by a record of this version. If an absent key was set to absent, nothing was recorded and the
    /// version is 0.
    Done(Version),
    /// The key did not match what was expected, and nothing has changed. This is its state.
    Differs(KeyState),
}

impl CasOutcome {
    /// Sets the state of an operation or a step. A differing state is read only afterwards, so it can be newer than the one
    /// that was compared.
    pub(crate) fn set(
        engine: &Engine,
        key: Key<'_>,
        expected: Expected,
        (next, typing): (Next<'_>, Option<Typing>),
        messages: &[NewMessage],
        terms: &Terms,
    ) -> Result<CasOutcome> {
        let swap = match key.step_name() {
            None => engine.compare_and_set(key, expected, (next, typing), messages, terms)?,
            Some(_) if !messages.is_empty() => {
                let reason =
                    "messages are committed with the completion of an operation, not of a step".to_owned();
                return Err(Error::Option { option: "messages", reason });
            }
            Some(_) => {
                let version = engine.set_step(engine.step(key)?, expected, next, typing, terms)?;
                version.map_or(Swap::Differs, Swap::Done)
            }
        };
        match swap {
            Swap::Done(version) => Ok(CasOutcome::Done(version)),
            Swap::Differs => KeyState::read(engine, key, Patience::Endless).map(CasOutcome::Differs),
        }
    }
}
