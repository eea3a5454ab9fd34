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
    /// The only connection that writes. SQLite admits one writer at a time. A writer that finds the database locked sleeps and
    /// retries, which is slower than waiting for this mutex.
    writer: Mutex<Connection>,
}

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Sqlite::open(directory, durability))
}

pub fn open_grouped(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    Box::new(Grouped::new(Sqlite::open(directory, durability)))
}

fn connect(path: &Path, durability: Durability) -> Connection {
    let connection = Connection::open(path).expect("SQLite cannot open the database");
    // In WAL mode FULL syncs the log at every commit; NORMAL would not.
    let synchronous = match durability {
        Durability::Synced => "FULL",
        Durability::Buffered => "OFF",
    };
    connection.pragma_update(None, "journal_mode", "WAL").expect("SQLite cannot set the journal mode");
    connection.pragma_update(None, "synchronous", synchronous).expect("SQLite cannot set `synchronous`");
    // A cache of 256 MiB for each connection, in KiB. Reads go through a memory map of the largest size that SQLite allows.
    connection.pragma_update(None, "cache_size", -(256 << 10)).expect("SQLite cannot set the cache size");
    connection.pragma_update(None, "mmap_size", 1_i64 << 40).expect("SQLite cannot set the map size");
    connection
}

impl Sqlite {
    fn open(directory: &Path, durability: Durability) -> Sqlite {
        let path = directory.join("operations.sqlite");
        let connection = connect(&path, durability);
        // With WITHOUT ROWID a lookup searches one tree instead of two.
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS operations (key BLOB PRIMARY KEY, result BLOB NOT NULL) WITHOUT ROWID",
            )
            .expect("SQLite cannot create its table");
        Sqlite { path, durability, writer: Mutex::new(connection) }
    }
}

impl Contestant for Sqlite {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let connection = self.writer.lock();
        let prepared =
            |statement| connection.prepare_cached(statement).expect("SQLite cannot prepare a statement");
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
            changed.expect("SQLite cannot write a change") == 1
        };
        if let [change] = changes {
            // A single statement is a transaction by itself.
            return vec![apply(change)];
        }
        prepared("BEGIN IMMEDIATE").execute([]).expect("SQLite cannot begin a transaction");
        let applied = changes.iter().map(apply).collect();
        prepared("COMMIT").execute([]).expect("SQLite cannot commit");
        applied
    }

    /// Makes changes that were written under `synchronous = OFF` durable, by a checkpoint under `synchronous = FULL`.
    fn sync(&self) {
        let connection = self.writer.lock();
        let configured = if self.durability == Durability::Synced { "FULL" } else { "OFF" };
        connection.pragma_update(None, "synchronous", "FULL").expect("SQLite cannot set `synchronous`");
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .expect("SQLite cannot checkpoint its log");
        connection.pragma_update(None, "synchronous", configured).expect("SQLite cannot set `synchronous`");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(Connected(connect(&self.path, self.durability)))
    }
}

/// The connection of one reading thread. Readers wait neither for each other nor for the writer.
struct Connected(Connection);

impl Reader for Connected {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        let mut statement = self
            .0
            .prepare_cached("SELECT result FROM operations WHERE key = ?1")
            .expect("SQLite cannot prepare a statement");
        statement.query_row(params![key], |row| row.get(0)).optional().expect("SQLite cannot read a key")
    }
}
