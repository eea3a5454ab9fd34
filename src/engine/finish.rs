//! Ends attempts: with a result, without one, or with what a doubt turned out to be.

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

/// How a result that was found out came to be recorded.
#[derive(Debug)]
pub(crate) enum Applied {
    /// By this call.
    Recorded,
    /// The key is completed, and this stands.
    Completed(Found),
}

impl Engine {
    /// Ends the attempt of `version`: by its lease, by a doubt that was resolved, or late by a lease that no caller took over.
    /// Returns the version of the record that ended it. `reservation` is kept if this fails before the record is appended.
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
        let call = Call::new(hashed, terms, PathRule::Ends);
        let outcome =
            self.change(&call, Some(reservation), |view| Ok(decide::finish(view, version, finish, terms)))?;
        match outcome {
            ChangeOutcome::Written(written) => Ok(written.version),
            _ => Err(Error::Fenced { key: key.to_owned(), version }),
        }
    }

    /// Records the result that the attempt in doubt turned out to have: as its end, or, if the doubt has gone and left the key
    /// absent, as seen and done. Decided in one step, so that nothing can come between. If the key is completed, that stands.
    ///
    /// [`Error::Fenced`] if another attempt has the key now; then nothing is changed.
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
        let call =
            Call { request: Some(request), want: Want::Result, ..Call::new(hashed, terms, PathRule::Ends) };
        let attempt = (doubt.version, doubt.attempt);
        let outcome = self.change(&call, None, |view| {
            let decision = decide::applied(view, attempt, request, value, terms);
            // Only now: a result that is too large to be recorded may be there already.
            if let Decision::Write(_) = decision {
                self.check_result(key, &value)?;
            }
            Ok(decision)
        })?;
        match outcome {
            ChangeOutcome::Written(_) => Ok(Applied::Recorded),
            ChangeOutcome::Completed(found) => Ok(Applied::Completed(found)),
            _ => Err(Error::Fenced { key: key.to_owned(), version: doubt.version }),
        }
    }
}
