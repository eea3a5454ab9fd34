//! The stores, one module each. A comment gives the reason for each setting that is not the default.

#[cfg(feature = "fjall")]
pub mod fjall;
mod key_locks;
#[cfg(feature = "lmdb")]
pub mod lmdb;
pub mod oncekey;
#[cfg(feature = "redb")]
pub mod redb;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;
#[cfg(feature = "sled")]
pub mod sled;
#[cfg(feature = "sqlite")]
pub mod sqlite;

/// The cache size of each peer that has a cache of its own. oncekey and LMDB read through the operating system's page cache,
/// which can use all free memory.
const CACHE_BYTES: u64 = 1 << 30;
