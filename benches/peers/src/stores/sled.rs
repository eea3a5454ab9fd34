//! sled.

use std::path::Path;

use sled::{Config, Db};

use super::CACHE_BYTES;
use super::key_locks::KeyLocks;
use crate::contestant::{Contestant, Durability, Lookup, Reader, effects};
use crate::operations::{Change, Key};

struct Sled {
    database: Db,
    durability: Durability,
    locks: KeyLocks,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    let database = Config::new()
        .path(directory.join("operations.sled"))
        .cache_capacity(CACHE_BYTES)
        .open()
        .expect("sled opens");
    Box::new(Sled { database, durability, locks: KeyLocks::new() })
}

impl Contestant for Sled {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let applied = match changes {
            // Its own step for what is asked here, which needs no lock.
            [Change::PutIfAbsent(key, value)] => {
                let absent: Option<&[u8]> = None;
                let swapped = self.database.compare_and_swap(key, absent, Some(*value));
                vec![swapped.expect("sled writes").is_ok()]
            }
            _ => {
                let _locked = self.locks.lock(changes);
                let applied =
                    effects(changes, |key| self.database.contains_key(key).expect("sled looks a key up"));
                let mut batch = sled::Batch::default();
                for (change, _) in changes.iter().zip(&applied).filter(|(_, applied)| **applied) {
                    match change {
                        Change::PutIfAbsent(key, value) | Change::Overwrite(key, value) => {
                            batch.insert(key.as_slice(), *value);
                        }
                        Change::Remove(key) => batch.remove(key.as_slice()),
                    }
                }
                self.database.apply_batch(batch).expect("sled writes");
                applied
            }
        };
        if self.durability == Durability::Synced {
            self.sync();
        }
        applied
    }

    fn sync(&self) {
        self.database.flush().expect("sled flushes");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| {
            let value = self.database.get(key).expect("sled looks a key up")?;
            Some(value.to_vec())
        }))
    }
}
