//! redb.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::CACHE_BYTES;
use crate::contestant::{Contestant, Durability, Lookup, Reader};
use crate::grouped::Grouped;
use crate::operations::{Change, Key};

/// The key type has a fixed length, so redb does not store the length.
const OPERATIONS: TableDefinition<'_, &[u8; 36], &[u8]> = TableDefinition::new("operations");

struct Redb {
    database: Database,
    durability: redb::Durability,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Redb::open(directory, durability))
}

pub fn open_grouped(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Grouped::new(Redb::open(directory, durability)))
}

impl Redb {
    fn open(directory: &Path, durability: Durability) -> Redb {
        let cache_bytes = usize::try_from(CACHE_BYTES).expect("the target should be 64-bit");
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create(directory.join("operations.redb"))
            .expect("redb cannot open the database");
        let durability = match durability {
            Durability::Synced => redb::Durability::Immediate,
            Durability::Buffered => redb::Durability::None,
        };
        Redb { database, durability }
    }

    fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let transaction = self.database.begin_read().expect("redb cannot begin a read transaction");
        match transaction.open_table(OPERATIONS) {
            Ok(table) => Some(table.get(key).expect("redb cannot read a key")?.value().to_vec()),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => panic!("redb cannot open its table: {error}"),
        }
    }
}

impl Contestant for Redb {
    /// redb admits one writer at a time, so what this transaction reads does not change before it commits.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let mut transaction = self.database.begin_write().expect("redb cannot begin a write transaction");
        transaction.set_durability(self.durability).expect("redb cannot set the durability");
        let applied = {
            let mut table = transaction.open_table(OPERATIONS).expect("redb cannot open its table");
            let apply = |change: &Change| match change {
                Change::PutIfAbsent(key, value) => {
                    let is_absent = table.get(key).expect("redb cannot read a key").is_none();
                    if is_absent {
                        table.insert(key, *value).expect("redb cannot insert a key");
                    }
                    is_absent
                }
                Change::Overwrite(key, value) => {
                    table.insert(key, *value).expect("redb cannot insert a key");
                    true
                }
                Change::Remove(key) => table.remove(key).expect("redb cannot remove a key").is_some(),
            };
            changes.iter().map(apply).collect()
        };
        transaction.commit().expect("redb cannot commit");
        applied
    }

    /// Commits an empty durable transaction, which makes all earlier commits durable.
    fn sync(&self) {
        let mut transaction = self.database.begin_write().expect("redb cannot begin a write transaction");
        transaction.set_durability(redb::Durability::Immediate).expect("redb cannot set the durability");
        transaction.commit().expect("redb cannot commit");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| self.get(key)))
    }

    fn close(self: Box<Self>) {
        self.database.close().expect("redb cannot close the database");
    }
}
