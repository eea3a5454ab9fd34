//! Ends attempts: with a result, without one, or, for an attempt in doubt, with the result that a caller has found out since.

use super::assembly::Engine;
use super::call::{Call, PathRule};
use super::change::{ChangeOutcome, Grant, check_result};
use super::decide::{self, Decision};
use super::records::{Found, HashedKey, Sight, Want};
use super::terms::{Finish, NewMessage, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::log::Reservation;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, liveness};
use crate::status::Version;

/// The outcome of recording the result that a caller found out for an attempt in doubt.
#[derive(Debug)]
pub(crate) enum Applied {
    /// This call recorded the result.
    Recorded,
    /// The key was completed before, with this result.
    AlreadyCompleted(Found),
}

impl Engine {
    /// Ends the attempt of `version`. The caller either holds the lease on this attempt or is resolving the doubt about it. The
    /// deadline of the lease may have passed, as long as no other caller has taken over. Returns the version of the record that ends
    /// the attempt.
    ///
    /// If this fails before the record is appended, `reservation` still holds the space that it reserved.
    pub(crate) fn finish(
        &self,
        key: HashedKey<'_>,
        version: Version,
        (finish, messages): (Finish<'_>, &[NewMessage]),
        terms: &Terms,
        reservation: &mut Reservation,
    ) -> Result<Version> {
        let _events = crate::events::hold_back();
        let hashed = self.admit_again(key)?;
        if let Some(value) = finish.value() {
            check_result(key.key, &value, terms)?;
            self.check_messages(key.key, &value, messages)?;
        }
        let call = Call { messages, ..Call::new(hashed, terms, PathRule::EndsAttempt) };
        let outcome =
            self.change(&call, Some(reservation), |view| Ok(decide::finish(view, version, finish, terms)))?;
        match outcome {
            ChangeOutcome::Written(written) => Ok(written.version),
            _ => Err(self.fenced(key.key, version)),
        }
    }

    /// Compares `value` with the one that the record of `version` completed the operation with. Only the results are
    /// compared, not how they were encoded.
    ///
    /// Returns [`Error::Conflict`] if they differ, and [`Error::Fenced`] or [`Error::ResultExpired`] if the store no longer
    /// has the result, because the record was replaced or has expired.
    pub(crate) fn check_completed_with(
        &self,
        key: HashedKey<'_>,
        version: Version,
        value: Value<'_>,
    ) -> Result<()> {
        let _events = crate::events::hold_back();
        let hashed = self.admit_again(key)?;
        let now_ms = self.clock.now_ms();
        let compared = self.records.read(hashed, now_ms, |_, _, record| {
            let is_own = record.version == version && liveness(record, now_ms) != Liveness::Gone;
            is_own.then(|| match record.value.result {
                _ if record.value.not_kept != value.result.is_none() => Some(false),
                // The segment was reclaimed after the result had expired, and the record moved without it.
                None if !record.value.not_kept => None,
                result => Some(result == value.result),
            })
        })?;
        let owned = || key.key.to_owned();
        match compared {
            Some(Sight::Read(Some(Some(true)))) => Ok(()),
            Some(Sight::Read(Some(Some(false)))) => Err(Error::Conflict { key: owned() }),
            Some(Sight::Read(Some(None))) => Err(Error::ResultExpired { key: owned() }),
            Some(Sight::Unreadable(lost)) if lost.liveness != Liveness::Gone => Err(lost.error),
            Some(_) | None => Err(self.fenced(key.key, version)),
        }
    }

    /// Records the result of an attempt in doubt, whose side effect turned out to have happened. If the attempt is still in doubt,
    /// the result completes it. If it is no longer in doubt and the key is absent, the result is recorded as if no attempt had been
    /// made. A key that is completed already is left as it is. The choice and the write are one step, so no other call can change the
    /// key in between.
    ///
    /// Returns [`Error::Fenced`], and changes nothing, if the key now belongs to a different attempt.
    pub(crate) fn record_applied(
        &self,
        key: HashedKey<'_>,
        doubt: &Grant,
        request: Request,
        (value, messages): (Value<'_>, &[NewMessage]),
        terms: &Terms,
    ) -> Result<Applied> {
        let _events = crate::events::hold_back();
        let hashed = self.admit_again(key)?;
        let call = Call {
            request: Some(request),
            want: Want::Result,
            messages: if planted(Bug::ReconcileLosesMessages) { &[] } else { messages },
            ..Call::new(hashed, terms, PathRule::EndsAttempt)
        };
        let attempt = (doubt.version, doubt.attempt);
        let outcome = self.change(&call, None, |view| {
            let decision = decide::applied(view, attempt, request, value, terms);
            // The size is checked only if a record will be written. If the key is completed, the call returns what is stored,
            // whatever the size of its own result.
            if let Decision::Write(_) = decision {
                check_result(key.key, &value, terms)?;
                self.check_messages(key.key, &value, messages)?;
            }
            Ok(decision)
        })?;
        match outcome {
            ChangeOutcome::Written(_) => Ok(Applied::Recorded),
            ChangeOutcome::Completed(found) => Ok(Applied::AlreadyCompleted(found)),
            _ => Err(self.fenced(key.key, doubt.version)),
        }
    }
}
