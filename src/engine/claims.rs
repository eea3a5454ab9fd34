//! What holders of leases and doubts do with their claims: renew them, drop them, run closures under them. In memory only.

use std::sync::Arc;

use super::assembly::Engine;
use super::inside::{self, InClosure};
use crate::error::{Error, Result};
use crate::flights::Claim;
use crate::key::Key;
use crate::planted::{Bug, planted};
use crate::status::Version;

impl Engine {
    /// Gives the lease on the attempt of `version` a deadline `lease_ms` from now; `u64::MAX`: never. Writes nothing.
    ///
    /// [`Error::Fenced`] if the lease was taken over or has ended. A passed deadline alone is no
    /// reason: as long as no other caller takes over, the attempt owns the operation.
    pub(crate) fn renew(&self, key: Key<'_>, version: Version, lease_ms: u64) -> Result<()> {
        let hash = self.admit(key)?.hash;
        let _inside = self.admission.enter()?;
        // The time is read under the flight: entering it may have waited for another caller's write.
        let deadline_ms = || self.clock.now_ms().saturating_add(lease_ms);
        let is_renewed = if planted(Bug::RenewedWithoutFlight) {
            self.flights.renew_lease(hash, version, deadline_ms())
        } else {
            let flight = self.flights.enter(hash);
            flight.renew_lease(version, deadline_ms())
        };
        if is_renewed { Ok(()) } else { Err(Error::Fenced { key: key.to_owned(), version }) }
    }

    /// Whether the lease on the attempt of `version` is alive and no other caller has taken it over. Does not wait.
    pub(crate) fn is_current(&self, key: Key<'_>, version: Version) -> bool {
        // Before any lock: in a forked child it may be held by a thread that is not there.
        if self.admission.check_open().is_err() {
            return false;
        }
        let claim = self.flights.claim(self.log().hasher().key(key));
        matches!(claim, Some(Claim::Lease { version: leased, .. }) if leased == version)
    }

    /// Ends the claim of a handle that is dropped. If its attempt has not ended, the operation is in doubt from now on.
    /// Touches memory only and cannot fail, because drops call it.
    pub(crate) fn abandon(&self, key: Key<'_>, claim: Claim) {
        let _events = crate::events::hold_back();
        let has_ended = self.flights.end_claim(self.log().hasher().key(key), claim);
        if has_ended && let Claim::Lease { attempt, .. } = claim {
            crate::events::in_doubt(key, attempt);
        }
    }

    /// This thread is about to call the closure that runs under `claim`.
    pub(crate) fn enter_closure(self: &Arc<Self>, key: Key<'_>, claim: Claim) -> InClosure {
        inside::enter(&self.flights, self.log().hasher().key(key), claim)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Options;
    use crate::engine::{Began, Terms};
    use crate::key::Fingerprint;
    use crate::sync::Patience;

    fn engine() -> Arc<Engine> {
        Arc::new(Options::new().open_nowhere().unwrap())
    }

    #[test]
    fn a_closure_with_a_renewed_lease_does_not_wait_for_itself() {
        let engine = engine();
        let key = Key::new("k");
        let terms = Terms { patience: Patience::Endless, ..engine.settings().terms };
        let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        let _inside = engine.enter_closure(key, grant.claim);
        engine.renew(key, grant.version, 1_000_000).unwrap();
        let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true);
        assert!(matches!(began, Err(Error::WouldWaitForItself { .. })), "{began:?}");
    }

    /// An attempt's handle may renew after the lease is gone. A lease that came back then would never end.
    #[test]
    fn a_dropped_lease_cannot_be_renewed() {
        let engine = engine();
        let key = Key::new("k");
        let began = engine.begin(key, Fingerprint::NONE.into(), &engine.settings().terms, true).unwrap();
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        engine.renew(key, grant.version, u64::MAX).unwrap();
        assert!(engine.is_current(key, grant.version));
        engine.abandon(key, grant.claim);
        assert!(matches!(engine.renew(key, grant.version, 1), Err(Error::Fenced { .. })));
        assert!(!engine.is_current(key, grant.version));
        assert_eq!(engine.claim_count(), 0);
    }
}
