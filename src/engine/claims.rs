//! The calls that a holder of a lease or a doubt makes on its claim: renew it, check it, drop it, and run a closure
//! under it. They change memory only.

use std::sync::Arc;

use super::assembly::Engine;
use super::counters::Counted;
use super::inside::{self, InCallback, InClosure};
use super::records::HashedKey;
use crate::error::Result;
use crate::flights::Claim;
use crate::planted::{Bug, planted};
use crate::status::Version;

impl Engine {
    /// Sets the deadline of the lease on the attempt of `version` to `lease_ms` from now; `u64::MAX` means never.
    /// Writes nothing.
    ///
    /// Returns [`Error::Fenced`] if the lease was taken over or has ended. A lease whose deadline has passed can still
    /// be renewed: the attempt owns the operation until another caller takes it over.
    pub(crate) fn renew(&self, key: HashedKey<'_>, version: Version, lease_ms: u64) -> Result<()> {
        let HashedKey { key, hash } = self.admit_again(key)?;
        let _inside = self.admission.enter()?;
        // Read the time only inside the flight, because this thread may have waited to enter it.
        let deadline_ms = || self.clock.now_ms().saturating_add(lease_ms);
        let is_renewed = if planted(Bug::RenewedWithoutFlight) {
            self.flights.renew_lease(hash, version, deadline_ms())
        } else {
            let flight = self.flights.enter(hash);
            flight.renew_lease(version, deadline_ms())
        };
        if is_renewed { Ok(()) } else { Err(self.fenced(key, version)) }
    }

    /// Whether the lease on the attempt of `version` is alive and no other caller has taken it over. Does not wait.
    pub(crate) fn is_current(&self, key: HashedKey<'_>, version: Version) -> bool {
        // This must come before any lock is taken: in a forked child, a thread that does not exist there may hold the
        // lock.
        if self.admission.check_open().is_err() {
            return false;
        }
        let claim = self.flights.claim(key.hash);
        matches!(claim, Some(Claim::Lease { version: leased, .. }) if leased == version)
    }

    /// Ends the claim of a handle that is being dropped. If its attempt has not ended, the operation is in doubt from
    /// now on. Changes memory only and cannot fail, because `drop` calls it.
    pub(crate) fn abandon(&self, key: HashedKey<'_>, claim: Claim) {
        let _events = crate::events::hold_back();
        let has_ended = self.flights.end_claim(key.hash, claim);
        if has_ended && let Claim::Lease { attempt, .. } = claim {
            self.counters.add(Counted::Doubted);
            crate::events::in_doubt(key.key, attempt);
        }
    }

    /// Registers that this thread is about to call a progress callback.
    pub(crate) fn enter_callback(&self) -> InCallback {
        inside::enter_callback(&self.flights)
    }

    /// Registers that this thread is about to call the closure that runs under `claim`.
    pub(crate) fn enter_closure(self: &Arc<Self>, hash: u128, claim: Claim) -> InClosure {
        inside::enter(&self.flights, hash, claim)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Error;
    use crate::Options;
    use crate::engine::{Began, Terms};
    use crate::key::{Fingerprint, Key};
    use crate::sync::Patience;

    fn engine() -> Arc<Engine> {
        Arc::new(Options::new().open_nowhere().unwrap())
    }

    #[test]
    fn a_closure_does_not_wait_for_its_own_renewed_lease() {
        let engine = engine();
        let key = Key::new("k");
        let terms = Terms { patience: Patience::Endless, ..engine.settings().terms };
        let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        let _inside = engine.enter_closure(grant.hash, grant.claim);
        engine.renew(grant.of(key), grant.version, 1_000_000).unwrap();
        let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true);
        assert!(matches!(began, Err(Error::WouldWaitForItself { .. })), "{began:?}");
    }

    /// The handle of an attempt may try to renew the lease after it was dropped. If that restored the lease, nothing
    /// would end it.
    #[test]
    fn a_dropped_lease_cannot_be_renewed() {
        let engine = engine();
        let key = Key::new("k");
        let began = engine.begin(key, Fingerprint::NONE.into(), &engine.settings().terms, true).unwrap();
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        engine.renew(grant.of(key), grant.version, u64::MAX).unwrap();
        assert!(engine.is_current(grant.of(key), grant.version));
        engine.abandon(grant.of(key), grant.claim);
        assert!(matches!(engine.renew(grant.of(key), grant.version, 1), Err(Error::Fenced { .. })));
        assert!(!engine.is_current(grant.of(key), grant.version));
        assert_eq!(engine.claim_count(), 0);
    }
}
