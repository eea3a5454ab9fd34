//! sled.

use std::fs::File;
use std::path::Path;

use sled::{Config, Db};

use super::CACHE_BYTES;
use super::key_locks::KeyLocks;
use crate::contestant::{Contestant, Durability, Lookup, Reader, which_apply};
use crate::operations::{Change, Key};

struct Sled {
    database: Db,
    durability: Durability,
    locks: KeyLocks,
    log: File,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    let path = directory.join("operations.sled");
    let database =
        Config::new().path(&path).cache_capacity(CACHE_BYTES).open().expect("sled cannot open the database");
    let log = File::open(path.join("db")).expect("cannot open the log of sled");
    Box::new(Sled { database, durability, locks: KeyLocks::new(), log })
}

impl Contestant for Sled {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let applied = match changes {
            // sled has an atomic operation for a single put, which needs no lock.
            [Change::PutIfAbsent(key, value)] => {
                let absent: Option<&[u8]> = None;
                let swapped = self.database.compare_and_swap(key, absent, Some(*value));
                vec![swapped.expect("sled cannot write").is_ok()]
            }
            _ => {
                let _locked = self.locks.lock(changes);
                let applied = which_apply(changes, |key| {
                    self.database.contains_key(key).expect("sled cannot look up a key")
                });
                let mut batch = sled::Batch::default();
                for (change, _) in changes.iter().zip(&applied).filter(|(_, applied)| **applied) {
                    match change {
                        Change::PutIfAbsent(key, value) | Change::Overwrite(key, value) => {
                            batch.insert(key.as_slice(), *value);
                        }
                        Change::Remove(key) => batch.remove(key.as_slice()),
                    }
                }
                self.database.apply_batch(batch).expect("sled cannot write");
                applied
            }
        };
        if self.durability == Durability::Synced {
            self.sync();
        }
        applied
    }

    /// On Linux sled's flush calls `sync_file_range`, which flushes neither the disk's cache nor the file's length, so the
    /// data does not survive a loss of power. Therefore the log is synced as well.
    fn sync(&self) {
        self.database.flush().expect("sled cannot flush");
        self.log.sync_data().expect("cannot sync the log of sled");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Lookup(|key: &Key| {
            let value = self.database.get(key).expect("sled cannot look up a key")?;
            Some(value.to_vec())
        }))
    }

    /// Waits until sled's threads have unlocked the file, which can happen a little after the last handle is dropped.
    fn close(self: Box<Self>) {
        let Sled { database, log, .. } = *self;
        drop(database);
        log.lock().expect("cannot lock the log of sled");
        log.unlock().expect("cannot unlock the log of sled");
    }
}
