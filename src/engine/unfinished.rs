//! The table of unfinished operations: those that began and have not ended, whether they are in progress or in doubt.
//!
//! An operation is in the table while the index points to a record of an attempt that began. The table holds no
//! addresses, which are the index's, and nothing that the record states except the time by which the operations are
//! ordered. So reclaiming can move a record without changing the table, and a listing reads each record that it returns.
//!
//! It is filled by recovery, and changed only by the write path, under the key's flight (the per-key lock). It takes 32
//! bytes an operation, and up to twice as much while the table grows.

use std::collections::HashMap;

use crate::hash::ByHash;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// When the last attempt of each operation began, in store time, by the hash of the key.
type Shard = HashMap<u128, u64, ByHash>;

const SHARDS: usize = 64;

/// A shard with fewer operations than this never gives memory back.
const MIN_SHRUNK: usize = 64;

/// The unfinished operations of one store.
#[derive(Debug)]
pub(super) struct UnfinishedTable {
    shards: Box<[Mutex<Shard>]>,
    /// The number of operations. Kept as an atomic, so that it can be read in a forked child.
    count: AtomicUsize,
}

impl UnfinishedTable {
    /// Creates the table from the key hash of each unfinished operation, and the time at which its last attempt began.
    pub(super) fn new(begun: Vec<(u128, u64)>) -> UnfinishedTable {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let table = UnfinishedTable { shards, count: AtomicUsize::new(0) };
        for (hash, since_ms) in begun {
            table.insert(hash, since_ms);
        }
        table
    }

    fn shard(&self, hash: u128) -> &Mutex<Shard> {
        // These bits select neither a shard of the index or of the flights nor a bucket of the map.
        let at = usize::try_from(hash >> 80 & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[at]
    }

    /// Notes that an attempt began. It replaces the operation's earlier attempt.
    pub(super) fn insert(&self, hash: u128, since_ms: u64) {
        if self.shard(hash).lock().insert(hash, since_ms).is_none() {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Notes that an operation ended.
    pub(super) fn remove(&self, hash: u128) {
        let mut shard = self.shard(hash).lock();
        if shard.remove(&hash).is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        // A shard keeps at most four times the memory that it needs.
        if shard.capacity() > MIN_SHRUNK && shard.len() < shard.capacity() / 4 {
            let len = shard.len();
            shard.shrink_to(2 * len);
        }
    }

    /// The number of operations. Takes no lock.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// When the oldest of the last attempts began. None if there is none.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.lock().values().min().copied()).min()
    }

    /// The key hashes of all operations, oldest first.
    pub(super) fn oldest_first(&self) -> Vec<u128> {
        let mut begun: Vec<(u64, u128)> = Vec::with_capacity(self.count());
        for shard in &self.shards {
            begun.extend(shard.lock().iter().map(|(hash, since_ms)| (*since_ms, *hash)));
        }
        begun.sort_unstable();
        begun.into_iter().map(|(_, hash)| hash).collect()
    }

    /// The number of operations for which memory is allocated.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash whose bits differ in every part.
    fn hash(number: u64) -> u128 {
        u128::from(number) << 80 | u128::from(number)
    }

    #[test]
    fn operations_are_listed_by_age_and_counted_once() {
        let table = UnfinishedTable::new(vec![(hash(1), 30), (hash(2), 10)]);
        table.insert(hash(3), 20);
        assert_eq!(table.oldest_first(), [hash(2), hash(3), hash(1)]);
        assert_eq!((table.count(), table.oldest_ms()), (3, Some(10)));
        table.insert(hash(2), 40);
        assert_eq!(table.oldest_first(), [hash(3), hash(1), hash(2)], "a later attempt began");
        table.remove(hash(3));
        table.remove(hash(3));
        assert_eq!((table.count(), table.oldest_ms()), (2, Some(30)));
        table.remove(hash(1));
        table.remove(hash(2));
        assert_eq!((table.count(), table.oldest_ms(), table.oldest_first().len()), (0, None, 0));
    }

    #[test]
    fn the_memory_of_ended_operations_is_given_back() {
        let table = UnfinishedTable::new((0..100_000).map(|number| (hash(number), 1)).collect());
        assert!(table.capacity() >= 100_000);
        (0..100_000).for_each(|number| table.remove(hash(number)));
        assert!(table.capacity() <= 2 * SHARDS * MIN_SHRUNK, "{}", table.capacity());
    }
}
