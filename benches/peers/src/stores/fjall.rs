//! fjall.

use std::path::Path;

use fjall::config::CompressionPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::CACHE_BYTES;
use super::key_locks::KeyLocks;
use crate::contestant::{Contestant, Durability, Lookup, Reader, which_apply};
use crate::grouped::Grouped;
use crate::operations::{Change, Key};

struct Fjall {
    database: Database,
    operations: Keyspace,
    persist: PersistMode,
    locks: KeyLocks,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Fjall::open(directory, durability))
}

pub fn open_grouped(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Grouped::new(Fjall::open(directory, durability)))
}

impl Fjall {
    fn open(directory: &Path, durability: Durability) -> Fjall {
        let database = Database::builder(directory.join("operations.fjall"))
            .cache_size(CACHE_BYTES)
            .open()
            .expect("fjall cannot open the database");
        // No store compresses.
        let options =
            || KeyspaceCreateOptions::default().data_block_compression_policy(CompressionPolicy::disabled());
        let operations = database.keyspace("operations", options).expect("fjall cannot open its keyspace");
        let persist = match durability {
            // This is fdatasync, which is enough: of the journal's metadata only the length has to be durable.
            Durability::Synced => PersistMode::SyncData,
            Durability::Buffered => PersistMode::Buffer,
        };
        Fjall { database, operations, persist, locks: KeyLocks::new() }
    }
}

impl Contestant for Fjall {
    /// The batch is persisted within its commit. After an insert and a separate `persist`, another thread could read the
    /// value before it is durable.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let _locked = self.locks.lock(changes);
        let applied = which_apply(changes, |key| {
            self.operations.contains_key(key).expect("fjall cannot look up a key")
        });
        let mut batch = self.database.batch().durability(Some(self.persist));
        for (change, _) in changes.iter().zip(&applied).filter(|(_, applied)| **applied) {
            match change {
                Change::PutIfAbsent(key, value) | Change::Overwrite(key, value) => {
                    batch.insert(&self.operations, key, *value);
                }
                Change::Remove(key) => batch.remove(&self.operations, key),
            }
        }
        batch.commit().expect("fjall cannot commit");
        applied
    }

    fn sync(&self) {
        self.database.persist(PersistMode::SyncData).expect("fjall cannot sync its journal");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| {
            let value = self.operations.get(key).expect("fjall cannot look up a key")?;
            Some(value.to_vec())
        }))
    }
}
