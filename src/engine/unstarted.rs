//! The list of attempts that never run, and whose release is yet to be written.
//!
//! A batch begins many attempts at once and gives out their leases one by one. If its answers are dropped before that, no
//! caller has seen the other leases, so their side effects certainly did not happen. The drop must do no I/O. It puts the
//! attempts into this list, and the next call that writes a frame writes their releases too.

use crate::key::OwnedKey;
use crate::log::Reservation;
use crate::planted::{Bug, planted};
use crate::record::Retention;
use crate::status::Version;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// An attempt that never runs.
#[derive(Debug)]
pub(super) struct Unstarted {
    pub(super) key: OwnedKey,
    pub(super) hash: u128,
    pub(super) version: Version,
    pub(super) retention: Retention,
    /// Space for the record that releases the attempt.
    pub(super) reservation: Reservation,
}

/// The attempts of one store that are to be released.
#[derive(Debug, Default)]
pub(super) struct UnstartedList {
    list: Mutex<Vec<Unstarted>>,
    /// The length of the list. Kept as an atomic because every commit reads it, and must not take the lock for that.
    count: AtomicUsize,
}

impl UnstartedList {
    pub(super) fn add(&self, attempts: impl IntoIterator<Item = Unstarted>) {
        let mut list = self.list.lock();
        list.extend(attempts);
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// Empties the list and returns its content.
    pub(super) fn take(&self) -> Vec<Unstarted> {
        if self.count.load(Ordering::SeqCst) == 0 || planted(Bug::UnstartedNotReleased) {
            return Vec::new();
        }
        let mut list = self.list.lock();
        self.count.store(0, Ordering::SeqCst);
        std::mem::take(&mut *list)
    }
}
