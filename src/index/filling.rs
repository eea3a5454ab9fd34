//! A shard of the index while opening fills it.

use super::entry::{Address, EMPTY, entry_of, shard_of, tag_of_hash};
use super::table::{MIN_CAPACITY, Table};
use crate::sync::RwLockWriteGuard;

/// Where an entry belongs that was looked for in vain, as long as the shard does not change.
#[derive(Debug)]
pub(crate) struct Vacancy(usize);

/// A shard under its lock, while opening puts in what footers say. All hashes given to it must be the shard's own.
pub(crate) struct Filling<'a> {
    pub(super) table: RwLockWriteGuard<'a, Table>,
    pub(super) shard: u8,
    pub(super) expected: usize,
}

impl Filling<'_> {
    /// What [`Index::find`](super::Index::find) does; where it finds nothing, the place at which it stopped looking.
    #[inline]
    pub(crate) fn find<R>(
        &self,
        hash: u128,
        confirm: impl FnMut(Address) -> Option<R>,
    ) -> Result<R, Vacancy> {
        debug_assert_eq!(shard_of(hash), self.shard);
        self.table.search(tag_of_hash(hash), confirm).map_err(Vacancy)
    }

    /// Reads where a search for `hash` begins and does nothing with it. A search waits for memory, most of the time;
    /// several of these in a row, which do not depend on each other, wait once, and the searches after them do not.
    pub(crate) fn fetch(&self, hash: u128) -> u64 {
        let home = Table::home(tag_of_hash(hash), self.table.capacity);
        self.table.buckets.get(home).copied().unwrap_or(EMPTY)
    }

    /// What [`Index::insert`](super::Index::insert) does, for the hash that was not found just now.
    #[inline]
    pub(crate) fn insert(&mut self, Vacancy(bucket): Vacancy, hash: u128, address: Address) {
        debug_assert_eq!(shard_of(hash), self.shard);
        self.table.insert(entry_of(tag_of_hash(hash), address), self.shard, self.expected, Some(bucket));
    }

    /// What [`Index::replace`](super::Index::replace) does.
    pub(crate) fn replace(&mut self, hash: u128, old: Address, new: Address) -> bool {
        self.table.replace(tag_of_hash(hash), old, new)
    }

    /// What [`Index::remove`](super::Index::remove) does, without making the table smaller: more is to come, and [`Filling::trim`] at the end.
    pub(crate) fn remove(&mut self, hash: u128, address: Address) -> bool {
        self.table.take(entry_of(tag_of_hash(hash), address))
    }

    /// Gives back what was made for entries that never came, once all of them have.
    pub(crate) fn trim(&mut self) {
        let fitting = Table::capacity_for(self.table.len, self.shard).max(MIN_CAPACITY);
        if self.table.capacity > fitting + fitting / 4 {
            self.table.resize(fitting);
        }
    }
}
