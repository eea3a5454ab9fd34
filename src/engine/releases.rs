//! Writes the releases of attempts that never ran: see [`unstarted`](super::unstarted).

use super::assembly::Engine;
use super::decide::{self, Decision};
use super::records::{HashedKey, Want};
use super::terms::{Finish, Terms};
use super::unstarted::Unstarted;
use super::write::{Change, Effect};
use crate::error::Result;
use crate::flights::{Claim, FlightGuard};
use crate::format::record::{Value, encoded_bytes};
use crate::key::OwnedKey;
use crate::log::Reservation;
use crate::log::commit::{Ticket, Until, record_cost_bytes};

/// A release that was appended and may not be written yet. Holds the key's flight.
#[derive(Debug)]
#[must_use = "the key must be changed in the index once the record is written"]
pub(super) struct Release<'a> {
    flight: FlightGuard<'a>,
    effect: Effect,
    ticket: Ticket,
}

impl Engine {
    /// Releases the attempt of the lease `claim`, because no caller has got the lease. From now on the key counts as released.
    /// The next frame contains the record of that; if the process ends before, the attempt is in doubt.
    ///
    /// Changes memory only and cannot fail, because a drop calls it.
    pub(crate) fn release_unstarted(
        &self,
        key: OwnedKey,
        terms: &Terms,
        claim: Claim,
        mut reservation: Reservation,
    ) {
        let Claim::Lease { version, .. } = claim else { return };
        let hash = self.log().hasher().key(key.as_key());
        if self.records.unfinished().get(hash).is_some_and(|operation| operation.step_count > 0) {
            // The steps of an earlier attempt would end with the release. The job goes on with its next attempt instead.
            self.flights.end_claim(hash, claim);
            return;
        }
        let cost_bytes = record_cost_bytes(encoded_bytes(key.as_key(), &Value::NONE));
        let reservation = reservation.split(cost_bytes);
        let retention = terms.retention;
        // First into the list: once the claim no longer counts as held, the store may be closed, and that close must find
        // the attempt in the list.
        self.unstarted.add([Unstarted { key, hash, version, retention, reservation }]);
        self.flights.note_unstarted(hash, claim, version);
    }

    /// Appends the releases of attempts that never ran, except for those of keys that another thread is changing.
    /// The caller must publish them after it has waited for its own records.
    pub(super) fn append_releases(&self) -> Vec<Release<'_>> {
        let mut appended = Vec::new();
        let mut kept = Vec::new();
        for mut attempt in self.unstarted.take() {
            match self.append_release(&mut attempt) {
                Some(Ok(Some(release))) => appended.push(release),
                // A later record has replaced that of the attempt.
                Some(Ok(None)) => {}
                // Another thread is changing the key, or the disk has failed. In the second case the attempt is in doubt
                // once the store is opened again.
                Some(Err(_)) | None => kept.push(attempt),
            }
        }
        if !kept.is_empty() {
            self.unstarted.add(kept);
        }
        appended
    }

    /// Appends the release of one attempt. Returns None if another thread is changing the key.
    fn append_release(&self, attempt: &mut Unstarted) -> Option<Result<Option<Release<'_>>>> {
        let flight = self.flights.try_enter(attempt.hash)?;
        let appended = self.append_release_in(&flight, attempt);
        Some(appended.map(|appended| appended.map(|(effect, ticket)| Release { flight, effect, ticket })))
    }

    fn append_release_in(
        &self,
        flight: &FlightGuard<'_>,
        attempt: &mut Unstarted,
    ) -> Result<Option<(Effect, Ticket)>> {
        let key = HashedKey { key: attempt.key.as_key(), hash: attempt.hash };
        let mut view = self.viewer.view(key, flight, self.clock.now_ms(), (Want::State, None))?;
        let is_ours = match view.claim {
            // Between its entry into the list and the change of its claim, the attempt still has its lease.
            Some(Claim::Unstarted { version } | Claim::Lease { version, .. }) => version == attempt.version,
            // Another caller is resolving the doubt about the attempt, which only that caller may end.
            Some(Claim::Doubt { .. }) | None => false,
        };
        if !is_ours {
            return Ok(None);
        }
        if view.unreadable.is_some() {
            // The operation counts as in doubt, as its record says nothing else.
            flight.set_claim(None);
            return Ok(None);
        }
        view.show_unstarted();
        let terms = &self.settings.terms;
        let Decision::Write(draft) = decide::finish(&view, attempt.version, Finish::Released, terms) else {
            return Ok(None);
        };
        let version = self.versions.next()?;
        let change = Change::new(&self.records, (key, &view), &draft, attempt.retention, version, flight);
        let reservation = attempt.reservation.split_all();
        let ticket = self.write.append(std::slice::from_ref(&change), reservation, Until::Written)?;
        Ok(Some((change.effect, ticket)))
    }

    /// Waits until the releases are written, and applies them. A failure is not the caller's: the next change returns it.
    pub(super) fn publish_releases(&self, releases: Vec<Release<'_>>) {
        for Release { flight, effect, ticket } in releases {
            let _ = self.write.finish_along(&effect, &flight, &ticket);
            flight.note_change();
        }
    }

    /// Writes the releases of all attempts that never ran. Waits for other threads that are changing their keys.
    pub(super) fn write_releases(&self) -> Result<()> {
        let releases = self.append_releases();
        self.publish_releases(releases);
        // What is left are keys that another thread was changing. Each is waited for on its own, because a thread that holds
        // a flight does not wait for another one.
        let mut left = self.unstarted.take().into_iter();
        while let Some(mut attempt) = left.next() {
            let flight = self.flights.enter(attempt.hash);
            let written = match self.append_release_in(&flight, &mut attempt) {
                Ok(Some((effect, ticket))) => {
                    let written = self.write.finish_along(&effect, &flight, &ticket);
                    flight.note_change();
                    written
                }
                Ok(None) => Ok(()),
                Err(error) => {
                    self.unstarted.add([attempt]);
                    Err(error)
                }
            };
            if written.is_err() {
                self.unstarted.add(left);
                return written;
            }
        }
        Ok(())
    }
}
