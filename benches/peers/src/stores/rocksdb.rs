//! RocksDB, built without compression.

use std::path::Path;

use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use super::CACHE_BYTES;
use super::key_locks::KeyLocks;
use crate::contestant::{Contestant, Durability, Lookup, Reader, which_apply};
use crate::operations::{Change, Key};

struct RocksDb {
    database: DB,
    is_synced: bool,
    locks: KeyLocks,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    let mut options = Options::default();
    options.create_if_missing(true);
    // This adds Bloom filters and a hash index in the blocks: the workload looks up single keys and never scans.
    options.optimize_for_point_lookup(CACHE_BYTES >> 20);
    // As many background threads for flushes and compactions as the machine has cores.
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    options.increase_parallelism(i32::try_from(cores).unwrap_or(2));
    // A recycled log file has its blocks already, which makes its syncs cheaper.
    options.set_recycle_log_file_num(4);
    let database =
        DB::open(&options, directory.join("operations.rocksdb")).expect("RocksDB cannot open the database");
    Box::new(RocksDb { database, is_synced: durability == Durability::Synced, locks: KeyLocks::new() })
}

impl Contestant for RocksDb {
    /// Threads with different keys are batched by RocksDB's own group commit.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let _locked = self.locks.lock(changes);
        let applied = which_apply(changes, |key| {
            self.database.get_pinned(key).expect("RocksDB cannot look up a key").is_some()
        });
        let mut options = WriteOptions::default();
        options.set_sync(self.is_synced);
        let mut batch = WriteBatch::default();
        for (change, _) in changes.iter().zip(&applied).filter(|(_, applied)| **applied) {
            match change {
                Change::PutIfAbsent(key, value) | Change::Overwrite(key, value) => batch.put(key, value),
                Change::Remove(key) => batch.delete(key),
            }
        }
        self.database.write_opt(batch, &options).expect("RocksDB cannot write a batch");
        applied
    }

    fn sync(&self) {
        self.database.flush_wal(true).expect("RocksDB cannot sync its log");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| self.database.get(key).expect("RocksDB cannot look up a key")))
    }
}
