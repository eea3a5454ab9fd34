//! SQLite, through rusqlite.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use crate::contestant::{Contestant, Durability, Reader};
use crate::grouped::Grouped;
use crate::operations::{Change, Key};

struct Sqlite {
    path: PathBuf,
    durability: Durability,
    /// The one connection that writes. SQLite admits one writer at a time, and a writer that finds the database locked
    /// sleeps and tries again, which is slower than waiting for this lock.
    writer: Mutex<Connection>,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Sqlite::open(directory, durability))
}

pub fn open_grouped(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Grouped::new(Sqlite::open(directory, durability)))
}

fn connect(path: &Path, durability: Durability) -> Connection {
    let connection = Connection::open(path).expect("SQLite opens");
    // In WAL mode FULL syncs the log at every commit; NORMAL would not.
    let synchronous = match durability {
        Durability::Synced => "FULL",
        Durability::Buffered => "OFF",
    };
    connection.pragma_update(None, "journal_mode", "WAL").expect("SQLite takes the journal mode");
    connection.pragma_update(None, "synchronous", synchronous).expect("SQLite takes the setting");
    // A cache of 256 MiB for each connection, in KiB. Reads go through a memory map of the largest size that SQLite allows.
    connection.pragma_update(None, "cache_size", -(256 << 10)).expect("SQLite takes the cache size");
    connection.pragma_update(None, "mmap_size", 1_i64 << 40).expect("SQLite takes the map size");
    connection
}

impl Sqlite {
    fn open(directory: &Path, durability: Durability) -> Sqlite {
        let path = directory.join("operations.sqlite");
        let connection = connect(&path, durability);
        // WITHOUT ROWID: one tree to search instead of two.
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS operations (key BLOB PRIMARY KEY, result BLOB NOT NULL) WITHOUT ROWID",
            )
            .expect("SQLite creates its table");
        Sqlite { path, durability, writer: Mutex::new(connection) }
    }
}

impl Contestant for Sqlite {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let connection = self.writer.lock();
        let prepared = |statement| connection.prepare_cached(statement).expect("SQLite prepares");
        let apply = |change: &Change| {
            let changed = match change {
                Change::PutIfAbsent(key, value) => {
                    prepared("INSERT OR IGNORE INTO operations VALUES (?1, ?2)").execute(params![key, value])
                }
                Change::Overwrite(key, value) => {
                    prepared("UPDATE operations SET result = ?2 WHERE key = ?1").execute(params![key, value])
                }
                Change::Remove(key) => {
                    prepared("DELETE FROM operations WHERE key = ?1").execute(params![key])
                }
            };
            changed.expect("SQLite writes") == 1
        };
        if let [change] = changes {
            // A single statement is a transaction by itself.
            return vec![apply(change)];
        }
        prepared("BEGIN IMMEDIATE").execute([]).expect("SQLite begins");
        let applied = changes.iter().map(apply).collect();
        prepared("COMMIT").execute([]).expect("SQLite commits");
        applied
    }

    /// Syncs what was written with `synchronous = OFF` by a checkpoint with `synchronous = FULL`.
    fn sync(&self) {
        let connection = self.writer.lock();
        let own = if self.durability == Durability::Synced { "FULL" } else { "OFF" };
        connection.pragma_update(None, "synchronous", "FULL").expect("SQLite takes the setting");
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .expect("SQLite moves its log into the file");
        connection.pragma_update(None, "synchronous", own).expect("SQLite takes the setting");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Connected(connect(&self.path, self.durability)))
    }
}

/// A connection of one reading thread. Readers wait neither for each other nor for the writer.
struct Connected(Connection);

impl Reader for Connected {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        let mut statement =
            self.0.prepare_cached("SELECT result FROM operations WHERE key = ?1").expect("SQLite prepares");
        statement.query_row(params![key], |row| row.get(0)).optional().expect("SQLite reads")
    }
}
