//! The contestants, one module each. Every setting that is not the default says why.

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
#[cfg(test)]
mod tests;

/// What each peer with a cache of its own may keep of its data in memory. oncekey and LMDB use that of the operating
/// system, which is as large as the machine's memory.
const CACHE_BYTES: u64 = 1 << 30;
