//! A grant that a caller holds, with everything that is needed to end it. Only [`Lease`](crate::Lease) and
//! [`Doubt`](crate::Doubt) use it. They differ in what they allow the caller to do.
//!
//! Invariant: dropping a [`HeldGrant`] ends its claim in memory and writes nothing. So an attempt that was neither
//! completed nor released is in doubt afterwards.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{
    Engine, Entry, EntryKind, Finish, Grant, Handle, HashedKey, InClosure, MAX_NOTE_BYTES, NewMessage, Terms,
};
use crate::error::{Error, Result};
use crate::flights::Claim;
use crate::format::record::Value;
use crate::key::{Key, OwnedKey};
use crate::messages::Messages;
use crate::options::{check_renewal, operation_retention};
use crate::status::Version;
use crate::typed::{self, Encoded, Unfit};

/// The right to run one attempt, or to resolve a doubt, held by a caller. See the [module](self).
pub(crate) struct HeldGrant {
    pub(crate) engine: Handle,
    pub(crate) key: OwnedKey,
    pub(crate) terms: Terms,
    pub(crate) grant: Grant,
    /// The messages that are committed with the completion.
    pub(crate) messages: Messages,
    /// The version of the completion that this grant recorded.
    completed: Option<Version>,
}

impl HeldGrant {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, grant: Grant) -> HeldGrant {
        let engine = Handle::new(Arc::clone(engine));
        let messages = Messages::of(key, grant.typing, terms.emits_bytes);
        HeldGrant { engine, key: key.to_owned(), terms: *terms, grant, messages, completed: None }
    }

    /// Completes the operation. Completing it again with the same result returns the same version and writes no record.
    ///
    /// [`Error::Replaced`] is returned after the record was written to the open file.
    pub(crate) fn complete(&mut self, value: Value<'_>) -> Result<Version> {
        self.engine.check_process()?;
        let version = match self.known_completion(value) {
            Some(known) => known?,
            None => {
                let version = self.finish(self.completion(value))?;
                self.note_completed(version);
                version
            }
        };
        self.engine.check_in_place().map(|()| version)
    }

    /// The answer of a completion with this value, if this grant has completed the operation before. A second completion is
    /// rare, so the first one keeps neither a copy of the result nor a digest of it, and the stored record is compared.
    fn known_completion(&self, value: Value<'_>) -> Option<Result<Version>> {
        let version = self.completed?;
        Some(self.engine.check_completed_with(self.hashed_key(), version, value).map(|()| version))
    }

    /// Notes that this grant has completed the operation.
    pub(crate) fn note_completed(&mut self, version: Version) {
        self.completed = Some(version);
    }

    /// The end of the attempt with this value. The holder of a doubt has found out that the side effect happened.
    pub(crate) fn completion<'v>(&self, value: Value<'v>) -> Finish<'v> {
        match self.grant.claim {
            Claim::Doubt { .. } => Finish::FoundApplied(value),
            Claim::Lease { .. } | Claim::Unstarted { .. } => Finish::Completed(value),
        }
    }

    /// The entry of a batch that ends the attempt.
    pub(crate) fn end_entry<'e>(&'e mut self, finish: Finish<'e>, messages: &'e [NewMessage]) -> Entry<'e> {
        let known = match finish.value() {
            Some(value) => self.known_completion(value),
            None => self.check_not_completed().err().map(Err),
        };
        let Grant { version, reservation, .. } = &mut self.grant;
        let kind = match known {
            Some(known) => EntryKind::Known(known),
            None => EntryKind::Finish { version: *version, finish, reservation },
        };
        Entry { key: self.key.as_key(), terms: self.terms, kind, messages }
    }

    /// The entry of a batch that begins the next attempt, with these terms.
    pub(crate) fn begin_again_entry(&self, terms: Terms) -> Entry<'_> {
        let kind = match self.check_not_completed() {
            Ok(()) => EntryKind::BeginAgain { version: self.grant.version },
            Err(error) => EntryKind::Known(Err(error)),
        };
        Entry { key: self.key.as_key(), terms, kind, messages: &[] }
    }

    fn complete_typed<T>(&mut self, encoded: std::result::Result<Encoded<T>, Unfit>) -> Result<Version> {
        let encoded = encoded.map_err(|unfit| unfit.into_error(self.key.as_key()))?;
        self.complete(encoded.value())
    }

    pub(crate) fn complete_value<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        self.complete_typed(self.encode(result))
    }

    pub(crate) fn complete_value_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        self.complete_typed(self.encode_with(codec, result))
    }

    /// Encodes a result with the codec of the attempt.
    pub(crate) fn encode<T>(&self, result: &T) -> std::result::Result<Encoded<T>, Unfit>
    where
        T: Serialize + DeserializeOwned,
    {
        typed::encode_as(self.grant.typing, result, self.terms.max_result_bytes)
    }

    /// Encodes a result with `codec`, which must be the codec of the attempt if that has one.
    pub(crate) fn encode_with<C: Codec, T>(
        &self,
        codec: &C,
        result: &T,
    ) -> std::result::Result<Encoded<T>, Unfit>
    where
        T: Serialize + DeserializeOwned,
    {
        typed::check_codec::<C>(self.grant.typing)
            .and_then(|()| typed::encode(codec, self.grant.typing, result, self.terms.max_result_bytes))
    }

    pub(crate) fn complete_without_result(&mut self) -> Result<Version> {
        self.complete(Value::not_kept(self.grant.typing))
    }

    /// Releases the operation. [`Error::Replaced`] is returned after the record was written to the open file.
    pub(crate) fn release(&mut self) -> Result<()> {
        self.check_not_completed()?;
        self.finish(Finish::Released)?;
        self.engine.check_in_place()
    }

    /// Notes why the attempt ends in doubt, if there is space for it. A longer note is cut. A failure is not reported: the caller returns an error
    /// already, and a failed write poisons the store.
    pub(crate) fn note(&mut self, note: &str) {
        let key = HashedKey { key: self.key.as_key(), hash: self.grant.hash };
        let Grant { version, reservation, .. } = &mut self.grant;
        let bytes = (0..=MAX_NOTE_BYTES.min(note.len())).rev().find(|at| note.is_char_boundary(*at));
        let _ = self.engine.note(key, *version, &note[..bytes.unwrap_or(0)], reservation);
    }

    pub(crate) fn check_not_completed(&self) -> Result<()> {
        self.engine.check_process()?;
        if self.completed.is_some() { Err(self.conflict()) } else { Ok(()) }
    }

    pub(crate) fn retain(&mut self, retention: Duration) -> Result<()> {
        self.check_not_completed()?;
        let terms = &mut self.terms;
        terms.retention = operation_retention(retention, self.engine.settings())?;
        // If this is a doubt that begins the next attempt, that attempt's lease must not be longer than the retention.
        terms.lease_ms = terms.lease_ms.map(|lease_ms| lease_ms.min(terms.retention.key_ms));
        Ok(())
    }

    pub(crate) fn renew(&self, lease: Duration) -> Result<()> {
        self.engine.check_process()?;
        let lease_ms = check_renewal(lease, self.terms.retention)?;
        self.engine.renew(self.hashed_key(), self.grant.version, lease_ms)
    }

    /// A collection for the messages of this attempt.
    pub(crate) fn new_messages(&self) -> Messages {
        Messages::of(self.key.as_key(), self.grant.typing, self.terms.emits_bytes)
    }

    pub(crate) fn hashed_key(&self) -> HashedKey<'_> {
        self.grant.of(self.key.as_key())
    }

    fn conflict(&self) -> Error {
        Error::Conflict { key: self.key.clone() }
    }

    /// Marks this thread as inside the closure of this grant, so that a wait for its own key is an error and not a deadlock.
    pub(crate) fn enter_closure(&self) -> InClosure {
        self.engine.enter_closure(self.grant.hash, self.grant.claim)
    }

    fn finish(&mut self, finish: Finish<'_>) -> Result<Version> {
        let key = HashedKey { key: self.key.as_key(), hash: self.grant.hash };
        let Grant { version, reservation, .. } = &mut self.grant;
        let ending = (finish, self.messages.list());
        self.engine.finish(key, *version, ending, &self.terms, reservation)
    }
}

impl HeldGrant {
    /// Releases the attempt, whose lease no caller has got: see [`Engine::release_unstarted`].
    pub(crate) fn release_unstarted(&mut self) {
        if self.engine.has_forked() {
            return;
        }
        let reservation = self.grant.reservation.split_all();
        self.engine.release_unstarted(self.key.clone(), &self.terms, self.grant.claim, reservation);
    }
}

impl Drop for HeldGrant {
    fn drop(&mut self) {
        if self.engine.has_forked() {
            // The claim and the reserved space belong to the parent process. Giving them back would take locks, which a
            // thread that does not exist here may hold.
            self.grant.reservation.split_all().spend();
            return;
        }
        self.engine.abandon(self.hashed_key(), self.grant.claim);
    }
}

// A caught panic is harmless for the same reasons as for the store (see `store`). A call that unwinds leaves this value
// unchanged, except that reserved space may have been spent. The next call gets the state of the operation from the engine.
impl UnwindSafe for HeldGrant {}
impl RefUnwindSafe for HeldGrant {}
