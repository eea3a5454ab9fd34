//! What a store must be able to do to be measured, and who can.

use std::path::Path;

use crate::operations::{BEGUN, Change, Key, RESULT};
use crate::stores;

/// How durable a change is when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk: no loss of power takes it back.
    Synced,
    /// With the operating system, or with the store: [`Contestant::sync`] makes it durable.
    Buffered,
}

/// A store, open.
pub trait Contestant: Send + Sync {
    /// Makes these changes in one commit, and says of each whether it changed anything. Correct for callers at the same
    /// moment: of two that put the same absent key, exactly one is told that it did.
    fn apply(&self, changes: &[Change]) -> Vec<bool>;

    /// Makes what was buffered durable.
    fn sync(&self);

    /// A reader for one thread.
    fn reader(&self) -> Box<dyn Reader + '_>;

    /// Records an operation with its result, in one commit. True if it was not there.
    fn record(&self, key: &Key) -> bool {
        self.apply(&[Change::PutIfAbsent(*key, RESULT)])[0]
    }

    /// Begins an operation and then completes it, in two commits. True if it was not there.
    fn begin_and_complete(&self, key: &Key) -> bool {
        let begun = self.apply(&[Change::PutIfAbsent(*key, BEGUN)])[0];
        begun && self.apply(&[Change::Overwrite(*key, RESULT)])[0]
    }

    /// Performs an operation that may be performed again: what a crash leaves of its begin does not matter.
    fn rerun(&self, key: &Key) -> bool {
        self.record(key)
    }

    /// Closes the store as its documentation asks for.
    fn close(self: Box<Self>) {}
}

/// What looks keys up.
pub trait Reader {
    /// The result of a known key, in a buffer of the caller's own.
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>>;

    /// Whether the key is known.
    fn is_known(&mut self, key: &Key) -> bool {
        self.replay(key).is_some()
    }
}

/// A reader that needs nothing of its own.
pub struct Lookup<F>(pub F);

impl<F: FnMut(&Key) -> Option<Vec<u8>>> Reader for Lookup<F> {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        (self.0)(key)
    }
}

/// Says what becomes of each change of a batch, for stores that do not say so themselves: `is_present` asks the store,
/// and what earlier changes of the batch did is taken into account.
pub fn effects(changes: &[Change], mut is_present: impl FnMut(&Key) -> bool) -> Vec<bool> {
    let mut before = std::collections::HashMap::new();
    let mut effect = |change: &Change| {
        let key = *change.key();
        let present = before.get(&key).copied();
        let mut present = || present.unwrap_or_else(|| is_present(&key));
        let (changes_something, present_after) = match change {
            Change::PutIfAbsent(..) => (!present(), true),
            Change::Overwrite(..) => (true, true),
            Change::Remove(_) => (true, false),
        };
        if changes.len() > 1 {
            before.insert(key, present_after);
        }
        changes_something
    };
    changes.iter().map(&mut effect).collect()
}

/// A store that can be opened.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// The same store in another setting that matters to durable operations alone: with a group commit of ours around it,
    /// or in a file that is long enough from the beginning.
    pub is_variant: bool,
    /// In a directory that is there.
    pub open: fn(&Path, Durability) -> Box<dyn Contestant>,
}

/// The name of what everything is compared with.
pub const FLOOR: &str = "floor";
/// The same in a file that grows meanwhile. The others are not compared with it; it shows what growing costs.
pub const FLOOR_THAT_GROWS: &str = "floor that grows";
/// The name of the store that this is about.
pub const ONCEKEY: &str = "oncekey";
/// The same with [`Options::min_size`](oncekey::Options::min_size).
pub const ONCEKEY_SIZED: &str = "oncekey sized";

/// Everybody, the store that this is about first.
pub fn all() -> Vec<Kind> {
    let kinds = [
        Some(Kind { name: ONCEKEY, is_variant: false, open: stores::oncekey::open }),
        Some(Kind { name: ONCEKEY_SIZED, is_variant: true, open: stores::oncekey::open_sized }),
        #[cfg(feature = "redb")]
        Some(Kind { name: "redb", is_variant: false, open: stores::redb::open }),
        #[cfg(feature = "redb")]
        Some(Kind { name: "redb grouped", is_variant: true, open: stores::redb::open_grouped }),
        #[cfg(feature = "fjall")]
        Some(Kind { name: "fjall", is_variant: false, open: stores::fjall::open }),
        #[cfg(feature = "fjall")]
        Some(Kind { name: "fjall grouped", is_variant: true, open: stores::fjall::open_grouped }),
        #[cfg(feature = "lmdb")]
        Some(Kind { name: "LMDB", is_variant: false, open: stores::lmdb::open }),
        #[cfg(feature = "lmdb")]
        Some(Kind { name: "LMDB grouped", is_variant: true, open: stores::lmdb::open_grouped }),
        #[cfg(feature = "sqlite")]
        Some(Kind { name: "SQLite", is_variant: false, open: stores::sqlite::open }),
        #[cfg(feature = "sqlite")]
        Some(Kind { name: "SQLite grouped", is_variant: true, open: stores::sqlite::open_grouped }),
        #[cfg(feature = "rocksdb")]
        Some(Kind { name: "RocksDB", is_variant: false, open: stores::rocksdb::open }),
        #[cfg(feature = "sled")]
        Some(Kind { name: "sled", is_variant: false, open: stores::sled::open }),
    ];
    kinds.into_iter().flatten().collect()
}
