//! Ends attempts: with a result, without one, or, for an attempt in doubt, with the result that a caller has found out since.

use super::assembly::Engine;
use super::change::{Call, ChangeOutcome, Grant, PathRule};
use super::decide::{self, Decision};
use super::records::{Found, Want};
use super::terms::{Finish, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::key::Key;
use crate::log::Reservation;
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
        key: Key<'_>,
        version: Version,
        finish: Finish<'_>,
        terms: &Terms,
        reservation: &mut Reservation,
    ) -> Result<Version> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        if let Finish::Completed(value) = finish {
            self.check_result(key, &value)?;
        }
        let call = Call::new(hashed, terms, PathRule::EndsAttempt);
        let outcome =
            self.change(&call, Some(reservation), |view| Ok(decide::finish(view, version, finish, terms)))?;
        match outcome {
            ChangeOutcome::Written(written) => Ok(written.version),
            _ => Err(Error::Fenced { key: key.to_owned(), version }),
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
        key: Key<'_>,
        doubt: &Grant,
        request: Request,
        value: Value<'_>,
        terms: &Terms,
    ) -> Result<Applied> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        let call = Call {
            request: Some(request),
            want: Want::Result,
            ..Call::new(hashed, terms, PathRule::EndsAttempt)
        };
        let attempt = (doubt.version, doubt.attempt);
        let outcome = self.change(&call, None, |view| {
            let decision = decide::applied(view, attempt, request, value, terms);
            // The size is checked only if a record will be written. If the key is completed, the call returns what is stored,
            // whatever the size of its own result.
            if let Decision::Write(_) = decision {
                self.check_result(key, &value)?;
            }
            Ok(decision)
        })?;
        match outcome {
            ChangeOutcome::Written(_) => Ok(Applied::Recorded),
            ChangeOutcome::Completed(found) => Ok(Applied::AlreadyCompleted(found)),
            _ => Err(Error::Fenced { key: key.to_owned(), version: doubt.version }),
        }
    }
}
