//! The floor for lookups and for the memory of a store: a hash map in memory. It shows roughly the least time and space that
//! they can take.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::contestant::Reader;
use crate::operations::{Key, KeySet, RESULT, key};

/// A hash map with one lock for each shard, so that one thread can write it while others read it, like the index of a store.
pub struct ShardedMap {
    shards: Vec<RwLock<HashMap<Key, Box<[u8]>>>>,
}

impl ShardedMap {
    /// Returns a map with this number of keys.
    pub fn filled(keys: u64) -> ShardedMap {
        let map = ShardedMap { shards: (0..64).map(|_| RwLock::default()).collect() };
        for number in 0..keys {
            let key = key(KeySet::Filled, number);
            map.shard(&key).write().insert(key, RESULT.into());
        }
        map
    }

    /// Returns the shard of a key: a weighted sum of its last four digits, which are random.
    ///
    /// With these weights, each shard gets its equal share of the keys to within about one percent. A sum without weights
    /// would crowd around its mean: some shards would get 1.7 times their share.
    fn shard(&self, key: &Key) -> &RwLock<HashMap<Key, Box<[u8]>>> {
        let digits = [key[35], key[34], key[33], key[32]].map(usize::from);
        &self.shards[(digits[0] + 7 * digits[1] + 29 * digits[2] + 113 * digits[3]) % self.shards.len()]
    }
}

impl Reader for &ShardedMap {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        Some(self.shard(key).read().get(key)?.to_vec())
    }

    fn is_known(&mut self, key: &Key) -> bool {
        self.shard(key).read().contains_key(key)
    }
}
