//! Records that are known to be unreadable: counts them, so that each is reported once.
//!
//! A record is known when a lookup or reclaiming has met it, or when it was carried along before the store was opened. It is
//! removed here when its key gets another record, expires or is given up.

use std::collections::BTreeSet;

use crate::index::Address;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct UnreadableRecords {
    /// Their offsets in the file.
    known: Mutex<BTreeSet<u64>>,
    /// How many there are. Read without the lock, because every change of a key checks whether there are any.
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

    /// Notes that the record at `address` cannot be read. True if that was not known.
    pub(super) fn add(&self, address: Address) -> bool {
        self.change(|known| known.insert(address.offset()))
    }

    /// Notes that the record at `address` is no key's last one any more.
    pub(super) fn remove(&self, address: Address) {
        if self.count() > 0 {
            self.change(|known| known.remove(&address.offset()));
        }
    }

    /// Notes that the record was moved.
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
