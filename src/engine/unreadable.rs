//! Keeps the set of records that are known to be unreadable, so that each is counted and reported once.
//!
//! A record is added when a lookup or reclaiming fails to read it, and by recovery if an earlier session has carried it
//! along. It is removed when its key gets a new record, expires or is forgotten.

use std::collections::BTreeSet;

use crate::index::Address;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The unreadable records of one store.
#[derive(Debug)]
pub(super) struct UnreadableRecords {
    /// The offsets of the records in the file.
    known: Mutex<BTreeSet<u64>>,
    /// The number of records. Kept as an atomic because every change of a key reads it, and must not take the lock for
    /// that.
    count: AtomicU64,
}

impl UnreadableRecords {
    pub(super) fn new(known: Vec<Address>) -> UnreadableRecords {
        let known: BTreeSet<u64> = known.into_iter().map(Address::offset).collect();
        UnreadableRecords { count: AtomicU64::new(known.len() as u64), known: Mutex::new(known) }
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Adds the record at `address`. Returns whether it is new in the set.
    pub(super) fn add(&self, address: Address) -> bool {
        self.change(|known| known.insert(address.offset()))
    }

    /// Removes the record at `address`, if it is in the set, because it is no longer the last record of its key.
    pub(super) fn remove(&self, address: Address) {
        if self.count() > 0 {
            self.change(|known| known.remove(&address.offset()));
        }
    }

    /// Replaces the address of a record that was moved, if it is in the set.
    pub(super) fn replace(&self, old: Address, new: Address) {
        if self.count() > 0 {
            self.change(|known| known.remove(&old.offset()) && known.insert(new.offset()));
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) -> bool {
        let mut known = self.known.lock();
        let changed = change(&mut known);
        self.count.store(known.len() as u64, Ordering::SeqCst);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_record_is_still_counted_once() {
        let at = |number: u64| Address::new(number * 8).unwrap();
        let records = UnreadableRecords::new(vec![at(1)]);
        assert!(!records.add(at(1)) && records.add(at(2)) && !records.add(at(2)));
        records.replace(at(2), at(3));
        records.replace(at(7), at(8));
        assert!(records.count() == 2 && !records.add(at(3)) && records.count() == 2);
        records.remove(at(1));
        records.remove(at(2));
        assert_eq!(records.count(), 1);
        records.remove(at(3));
        records.remove(at(3));
        records.replace(at(3), at(4));
        assert_eq!(records.count(), 0);
    }
}
