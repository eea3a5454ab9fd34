//! Ends attempts: with a result, without one, or with a result that was found out while the attempt was in doubt.

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

/// The outcome of recording a result that was found out while its attempt was in doubt.
#[derive(Debug)]
pub(crate) enum Applied {
    /// This call recorded the result.
    Recorded,
    /// The key was completed already, and this is what it holds.
    Completed(Found),
}

impl Engine {
    /// Ends the attempt of `version`. The caller has its lease, possibly past the deadline if no other caller has taken
    /// over, or resolves the doubt about it. Returns the version of the record that ends the attempt.
    ///
    /// If this fails before the record is appended, `reservation` still has its space.
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

    /// Records the result of the attempt in doubt, whose side effect turned out to have happened. The result completes
    /// that attempt or, if the operation is no longer in doubt and the key is absent, is recorded as if without an
    /// attempt. Both cases are decided in one step, so that no other call can come between. A key that is completed
    /// already is left as it is.
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
        let call =
            Call { request: Some(request), want: Want::Result, ..Call::new(hashed, terms, PathRule::Ends) };
        let attempt = (doubt.version, doubt.attempt);
        let outcome = self.change(&call, None, |view| {
            let decision = decide::applied(view, attempt, request, value, terms);
            // Checked only if a record is to be written: a result that is too large to record may be in the store
            // already.
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
