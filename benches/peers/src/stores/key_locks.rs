//! Locks on keys, for stores in which a lookup and the write that depends on it are separate steps.

use std::hash::BuildHasher;

use parking_lot::{Mutex, MutexGuard};

use crate::operations::Change;

/// The number of shards, large enough that threads with different keys rarely share a shard.
const SHARDS: usize = 1_024;

pub struct KeyLocks {
    shards: Vec<Mutex<()>>,
    hasher: std::hash::RandomState,
}

impl KeyLocks {
    pub fn new() -> KeyLocks {
        KeyLocks { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: Default::default() }
    }

    /// Locks all keys of the batch. Every caller takes the locks in the same order, so callers cannot deadlock.
    pub fn lock(&self, changes: &[Change]) -> Vec<MutexGuard<'_, ()>> {
        let mut shards: Vec<usize> = changes.iter().map(|change| self.shard(change)).collect();
        shards.sort_unstable();
        shards.dedup();
        shards.into_iter().map(|shard| self.shards[shard].lock()).collect()
    }

    fn shard(&self, change: &Change) -> usize {
        self.hasher.hash_one(change.key()) as usize % SHARDS
    }
}
