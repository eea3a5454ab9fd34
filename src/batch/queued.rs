//! The entries that a batch holds until it is committed.

use std::sync::Arc;

use super::answers::Answer;
use crate::completion::Completion;
use crate::doubt::Doubt;
use crate::engine::{Began, Engine, Entry, EntryDone, EntryKind, Finish, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::{Typing, Value};
use crate::held_grant::HeldGrant;
use crate::key::{AnyKey, Key};
use crate::lease::Lease;
use crate::messages::Messages;
use crate::status::Version;
use crate::typed::Encoded;

/// An entry that was added to a batch.
pub(super) enum Queued<'a> {
    Begin {
        key: AnyKey<'a>,
        request: Request,
        terms: Terms,
        reruns: bool,
    },
    Record {
        key: AnyKey<'a>,
        request: Request,
        terms: Terms,
        result: StoredResult,
        messages: Messages,
    },
    Complete {
        held: &'a mut HeldGrant,
        result: StoredResult,
        /// Those of the attempt, and those that were attached. Not kept in the attempt, so that a batch that is dropped
        /// leaves it as it was.
        messages: Messages,
    },
    Release {
        held: &'a mut HeldGrant,
    },
    BeginAgain {
        held: &'a mut HeldGrant,
        terms: Terms,
    },
    /// The entry was refused when it was added.
    Refused {
        error: Error,
    },
}

/// A result that the batch owns until it is written.
pub(super) struct StoredResult {
    /// None if the result could not be recorded.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) typing: Option<Typing>,
}

impl StoredResult {
    pub(super) fn bytes(result: &[u8]) -> StoredResult {
        StoredResult { bytes: Some(result.to_vec()), typing: None }
    }

    pub(super) fn encoded<T>(encoded: Encoded<T>) -> StoredResult {
        StoredResult { bytes: Some(encoded.bytes), typing: Some(encoded.typing) }
    }

    pub(super) fn value(&self) -> Value<'_> {
        Value {
            result: self.bytes.as_deref(),
            not_kept: self.bytes.is_none(),
            typing: self.typing,
            ..Value::NONE
        }
    }
}

impl Queued<'_> {
    /// The entry as the engine takes it.
    pub(super) fn entry(&mut self, defaults: Terms) -> Entry<'_> {
        match self {
            Queued::Begin { key, request, terms, reruns } => Entry {
                key: key.as_key(),
                terms: *terms,
                kind: EntryKind::Begin { request: *request, reruns: *reruns },
                messages: &[],
            },
            Queued::Record { key, request, terms, result, messages } => Entry {
                key: key.as_key(),
                terms: *terms,
                kind: EntryKind::Record { request: *request, value: result.value() },
                messages: messages.list(),
            },
            Queued::Complete { held, result, messages } => {
                let finish = held.completion(result.value());
                held.end_entry(finish, messages.list())
            }
            Queued::Release { held } => held.end_entry(Finish::Released, &[]),
            Queued::BeginAgain { held, terms } => held.begin_again_entry(*terms),
            Queued::Refused { error } => {
                let kind = EntryKind::Known(Err(error.clone()));
                Entry { key: Key::new(""), terms: defaults, kind, messages: &[] }
            }
        }
    }

    /// Returns the public form of the answer. The flag says whether the answer is a lease of an attempt that has no
    /// predecessor in doubt.
    pub(super) fn answer(self, engine: &Arc<Engine>, done: Result<EntryDone>) -> (Result<Answer>, bool) {
        let (key, terms) = match &self {
            Queued::Begin { key, terms, .. } | Queued::Record { key, terms, .. } => (key.as_key(), *terms),
            Queued::BeginAgain { held, terms } => (held.key.as_key(), *terms),
            Queued::Complete { held, .. } | Queued::Release { held } => (held.key.as_key(), held.terms),
            Queued::Refused { error } => return (Err(error.clone()), false),
        };
        let is_fresh = matches!(done, Ok(EntryDone::Began(Began::Acquired(_))));
        let answer = match done {
            Err(error) => Err(error),
            Ok(EntryDone::Began(Began::Acquired(grant)) | EntryDone::BeganAgain(grant)) => {
                Ok(Answer::Acquired(Lease::new(engine, key, &terms, grant)))
            }
            Ok(EntryDone::Began(Began::InDoubt(grant))) => {
                Ok(Answer::InDoubt(Doubt::new(engine, key, &terms, grant)))
            }
            Ok(EntryDone::Began(Began::InProgress { attempt })) => Ok(Answer::InProgress { attempt }),
            Ok(EntryDone::Began(Began::Completed(found)) | EntryDone::Recorded(Err(found))) => {
                Ok(Answer::AlreadyDone(Completion::new(key, found)))
            }
            Ok(EntryDone::Recorded(Ok(version))) => Ok(Answer::Done(version)),
            Ok(EntryDone::Finished(version)) => self.ended(engine, version),
        };
        (answer, is_fresh)
    }

    /// Notes in the lease or doubt that it has ended, and answers the entry.
    fn ended(self, engine: &Engine, version: Version) -> Result<Answer> {
        let answer = match self {
            Queued::Complete { held, .. } => {
                held.note_completed(version);
                Answer::Done(version)
            }
            _ => Answer::Released,
        };
        engine.check_in_place().map(|()| answer)
    }
}
