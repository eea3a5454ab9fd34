//! LMDB, through heed.

#![allow(unsafe_code, reason = "opening a map with heed is unsafe; no other process has these files")]

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, PutFlags};

use crate::contestant::{Contestant, Durability, Lookup, Reader};
use crate::grouped::Grouped;
use crate::operations::{Change, Key};

/// The size of the map: more than ten million operations need. It takes address space, not memory.
const MAP_BYTES: usize = 64 << 30;

struct Lmdb {
    environment: Env,
    operations: heed::Database<'static, Bytes, Bytes>,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Lmdb::open(directory, durability))
}

pub fn open_grouped(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Grouped::new(Lmdb::open(directory, durability)))
}

impl Lmdb {
    fn open(directory: &Path, durability: Durability) -> Lmdb {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES);
        // The default is to sync every commit.
        if durability == Durability::Buffered {
            // SAFETY: without syncs a crash of the machine can damage the file. It is a temporary file.
            unsafe { options.flags(EnvFlags::NO_SYNC) };
        }
        // SAFETY: the file is opened once in this process, and no other process changes it.
        let environment = unsafe { options.open(directory) }.expect("LMDB cannot open the environment");
        let transaction = environment.write_txn().expect("LMDB cannot begin a write transaction");
        let operations = environment
            .create_databases_and_commit(transaction, |opener, transaction| {
                opener.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
            })
            .expect("LMDB cannot open its database")
            .unwrap_commit();
        Lmdb { environment, operations }
    }
}

impl Contestant for Lmdb {
    /// LMDB admits one writer at a time, so what this transaction reads does not change before it commits.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let mut transaction = self.environment.write_txn().expect("LMDB cannot begin a write transaction");
        let apply = |change: &Change| match change {
            Change::PutIfAbsent(key, value) => {
                let put = self.operations.put_with_flags(
                    &mut transaction,
                    PutFlags::NO_OVERWRITE,
                    key.as_slice(),
                    value,
                );
                match put {
                    Ok(()) => true,
                    Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => false,
                    Err(error) => panic!("LMDB cannot put a key: {error}"),
                }
            }
            Change::Overwrite(key, value) => {
                self.operations.put(&mut transaction, key.as_slice(), value).expect("LMDB cannot put a key");
                true
            }
            Change::Remove(key) => {
                self.operations.delete(&mut transaction, key.as_slice()).expect("LMDB cannot delete a key")
            }
        };
        let applied = changes.iter().map(apply).collect();
        transaction.commit().expect("LMDB cannot commit");
        applied
    }

    fn sync(&self) {
        self.environment.force_sync().expect("LMDB cannot sync");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        // Each lookup has its own transaction, because an older transaction would not see later records.
        Box::new(Lookup(|key: &Key| {
            let transaction = self.environment.read_txn().expect("LMDB cannot begin a read transaction");
            let value = self.operations.get(&transaction, key.as_slice()).expect("LMDB cannot read a key")?;
            Some(value.to_vec())
        }))
    }

    fn close(self: Box<Self>) {
        self.environment.prepare_for_closing().wait();
    }
}
