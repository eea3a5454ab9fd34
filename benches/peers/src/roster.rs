//! The stores that are compared, and how to open each of them. The modules in `stores` do not depend on this one.

use std::path::Path;

use crate::contestant::{Contestant, Durability, ONCEKEY, ONCEKEY_SIZED};
use crate::stores;

#[cfg(test)]
mod tests;

/// A store in one setup, ready to be opened.
#[derive(Clone, Copy)]
pub struct Setup {
    pub name: &'static str,
    /// Whether this is a second setup of a store, in which only durable operations differ: with a group commit around the
    /// store, or in a file that has its full length from the start.
    pub is_variant: bool,
    /// Opens or creates the store in an existing directory.
    pub open: fn(&Path, Durability) -> Box<dyn Contestant>,
}

/// Returns all stores in this build, oncekey first.
pub fn all() -> Vec<Setup> {
    vec![
        Setup { name: ONCEKEY, is_variant: false, open: stores::oncekey::open },
        Setup { name: ONCEKEY_SIZED, is_variant: true, open: stores::oncekey::open_sized },
        #[cfg(feature = "redb")]
        Setup { name: "redb", is_variant: false, open: stores::redb::open },
        #[cfg(feature = "redb")]
        Setup { name: "redb grouped", is_variant: true, open: stores::redb::open_grouped },
        #[cfg(feature = "fjall")]
        Setup { name: "fjall", is_variant: false, open: stores::fjall::open },
        #[cfg(feature = "fjall")]
        Setup { name: "fjall grouped", is_variant: true, open: stores::fjall::open_grouped },
        #[cfg(feature = "lmdb")]
        Setup { name: "LMDB", is_variant: false, open: stores::lmdb::open },
        #[cfg(feature = "lmdb")]
        Setup { name: "LMDB grouped", is_variant: true, open: stores::lmdb::open_grouped },
        #[cfg(feature = "sqlite")]
        Setup { name: "SQLite", is_variant: false, open: stores::sqlite::open },
        #[cfg(feature = "sqlite")]
        Setup { name: "SQLite grouped", is_variant: true, open: stores::sqlite::open_grouped },
        #[cfg(feature = "rocksdb")]
        Setup { name: "RocksDB", is_variant: false, open: stores::rocksdb::open },
        #[cfg(feature = "sled")]
        Setup { name: "sled", is_variant: false, open: stores::sled::open },
    ]
}
