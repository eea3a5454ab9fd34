//! redb.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::CACHE_BYTES;
use crate::contestant::{Contestant, Durability, Lookup, Reader};
use crate::grouped::Grouped;
use crate::operations::{Change, Key};

/// The type has the length of a key, so redb does not store it.
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
        let cache_bytes = usize::try_from(CACHE_BYTES).expect("64 bit");
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create(directory.join("operations.redb"))
            .expect("redb opens");
        let durability = match durability {
            Durability::Synced => redb::Durability::Immediate,
            Durability::Buffered => redb::Durability::None,
        };
        Redb { database, durability }
    }

    fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let transaction = self.database.begin_read().expect("redb begins to read");
        match transaction.open_table(OPERATIONS) {
            Ok(table) => Some(table.get(key).expect("redb reads")?.value().to_vec()),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => panic!("redb opens its table: {error}"),
        }
    }
}

impl Contestant for Redb {
    /// redb admits one writer at a time, so what this transaction reads does not change before it commits.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let mut transaction = self.database.begin_write().expect("redb begins to write");
        transaction.set_durability(self.durability).expect("redb takes the durability");
        let applied = {
            let mut table = transaction.open_table(OPERATIONS).expect("redb opens its table");
            let apply = |change: &Change| match change {
                Change::PutIfAbsent(key, value) => {
                    let is_absent = table.get(key).expect("redb reads").is_none();
                    if is_absent {
                        table.insert(key, *value).expect("redb inserts");
                    }
                    is_absent
                }
                Change::Overwrite(key, value) => {
                    table.insert(key, *value).expect("redb inserts");
                    true
                }
                Change::Remove(key) => table.remove(key).expect("redb removes").is_some(),
            };
            changes.iter().map(apply).collect()
        };
        transaction.commit().expect("redb commits");
        applied
    }

    /// A durable commit makes all earlier ones durable.
    fn sync(&self) {
        let mut transaction = self.database.begin_write().expect("redb begins to write");
        transaction.set_durability(redb::Durability::Immediate).expect("redb takes the durability");
        transaction.commit().expect("redb commits");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| self.get(key)))
    }

    fn close(self: Box<Self>) {
        self.database.close().expect("redb closes");
    }
}
