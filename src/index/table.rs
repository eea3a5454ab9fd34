//! The table of one shard: a hash table whose entries are sorted by tag.

use crate::map::Words;
use crate::planted::{Bug, planted};

use super::entry::{
    ADDRESS_BITS, Address, EMPTY, SHARD_COUNT, TAG_BITS, address_of_entry, entry_of, tag_of_entry,
};

/// The minimum capacity of a table that has had entries.
pub(super) const MIN_CAPACITY: usize = 8;

/// The entries of one shard: a hash table with open addressing and linear probing to the right.
///
/// Invariants:
///
/// - The tags of the entries do not decrease from left to right.
/// - An entry lies in its home bucket or to the right of it.
/// - No bucket between an entry's home and the entry itself is empty.
#[derive(Default)]
pub(super) struct Table {
    /// `capacity` buckets, followed by the slack: further buckets for entries that probing pushes past the first `capacity`.
    /// If probing wrapped around instead, the entries would not be in order.
    pub(super) buckets: Words,
    /// The number of home buckets. Zero until the first insertion.
    pub(super) capacity: usize,
    /// The number of entries.
    pub(super) len: usize,
}

impl Table {
    /// Returns the home of `tag` in a table of `capacity` buckets: the bucket at which probing starts. It increases with the
    /// tag, so that sorting and probing agree.
    pub(super) fn home(tag: u64, capacity: usize) -> usize {
        ((tag * capacity as u64) >> TAG_BITS) as usize
    }

    /// Returns the first bucket, from the home of `tag` on, that is empty or has an entry with this tag or a greater one. If
    /// there is none, returns the number of buckets.
    fn start_of(&self, tag: u64) -> usize {
        let home = Table::home(tag, self.capacity);
        // Both sides are reduced by one, so that an empty bucket wraps to the greatest number and ends the search. For tag
        // 0, no entry is smaller.
        let smallest = (tag << ADDRESS_BITS).saturating_sub(1);
        let smaller = |entry: &&u64| entry.wrapping_sub(1) < smallest;
        home + self.buckets[home..].iter().take_while(smaller).count()
    }

    /// Returns the entries with `tag`. `start` must be [`start_of`](Table::start_of) that tag.
    fn entries_from(&self, start: usize, tag: u64) -> impl Iterator<Item = u64> {
        let same = move |entry: &u64| *entry != EMPTY && tag_of_entry(*entry) == tag;
        self.buckets[start..].iter().copied().take_while(same)
    }

    /// Returns the bucket that contains exactly `entry`.
    pub(super) fn bucket_of(&self, entry: u64) -> Option<usize> {
        let tag = tag_of_entry(entry);
        let start = self.start_of(tag);
        Some(start + self.entries_from(start, tag).position(|other| other == entry)?)
    }

    /// Returns the bucket after the entries with `tag`, where a further entry with that tag belongs.
    fn end_of(&self, tag: u64) -> usize {
        let start = self.start_of(tag);
        start + self.entries_from(start, tag).count()
    }

    /// Calls `confirm` with the address of each entry with `tag` until it returns `Some`, and returns that.
    #[inline]
    pub(super) fn search<R>(&self, tag: u64, confirm: impl FnMut(Address) -> Option<R>) -> Option<R> {
        self.entries_from(self.start_of(tag), tag).map(address_of_entry).find_map(confirm)
    }

    /// Replaces the address of the entry for `tag` and `old`. Returns `false` if there is none.
    pub(super) fn replace(&mut self, tag: u64, old: Address, new: Address) -> bool {
        let Some(bucket) = self.bucket_of(entry_of(tag, old)) else { return false };
        self.buckets[bucket] = entry_of(tag, new);
        true
    }

    /// Inserts `entry`. If the table must grow, `shard` determines by how much.
    pub(super) fn insert(&mut self, entry: u64, shard: u8) {
        if (self.len + 1) * 10 > self.capacity * 9 {
            self.resize(Table::grown(self.capacity, shard));
        }
        if self.buckets.last() != Some(&EMPTY) {
            // Only the number of keys changes the capacity. Keys that share a tag collide at every capacity, so growing
            // here would never end.
            self.resize(self.capacity);
        }
        debug_assert!(
            self.bucket_of(entry).is_none(),
            "an address must be inserted only once, because each record has its own"
        );
        self.place(entry, self.end_of(tag_of_entry(entry)));
        self.len += 1;
    }

    /// Puts `entry` into `bucket`. Shifts the entries from there up to the next empty bucket to the right.
    fn place(&mut self, entry: u64, bucket: usize) {
        let mut pushed = entry;
        for bucket in &mut self.buckets[bucket..] {
            std::mem::swap(bucket, &mut pushed);
            if pushed == EMPTY {
                return;
            }
        }
        unreachable!("the last bucket must be empty before every insertion");
    }

    /// Removes `entry`, and shrinks the table if few entries remain. Returns `false` if there is no such entry.
    pub(super) fn remove(&mut self, entry: u64) -> bool {
        let Some(bucket) = self.bucket_of(entry) else { return false };
        // Entries that probing pushed to the right move back by one bucket. Otherwise there would be an empty bucket between
        // them and their home, and a lookup would end there without finding them.
        let pushed = self.buckets[bucket + 1..]
            .iter()
            .zip(bucket + 1..)
            .take_while(|(other, at)| {
                **other != EMPTY && Table::home(tag_of_entry(**other), self.capacity) < *at
            })
            .count();
        self.buckets.copy_within(bucket + 1..bucket + 1 + pushed, bucket);
        self.buckets[bucket + pushed] = EMPTY;
        self.len -= 1;
        // The table is resized from two fifths full to two thirds full. This is far from the limits for growing and
        // shrinking, so many insertions or removals pass before the next resize.
        if self.capacity > MIN_CAPACITY
            && !planted(Bug::TablesNeverShrink)
            && self.len * 10 < self.capacity * 4
        {
            self.resize((self.len + self.len / 2).max(MIN_CAPACITY));
        }
        true
    }

    /// Returns the capacity to grow to. The factor is 1.2 in the first shard and increases to 1.3 in the last.
    ///
    /// All shards have about the same number of keys. If they all grew by the same factor, they would grow at about the same
    /// time, and immediately afterwards all tables would be at their emptiest.
    fn grown(capacity: usize, shard: u8) -> usize {
        (capacity + capacity / 5 + capacity / 10 * usize::from(shard) / SHARD_COUNT).max(MIN_CAPACITY)
    }

    /// Returns the capacity of a new table for `expected` entries.
    ///
    /// Such a table is nine tenths full in the first shard, and less full in each later one, so that the shards do not all
    /// grow at the same time. Together, the shards are as full as tables that grew to their size are on average.
    pub(super) fn capacity_for(expected: usize, shard: u8) -> usize {
        let fitting = ((expected + expected / 4 * usize::from(shard) / SHARD_COUNT) * 10).div_ceil(9);
        fitting.max(MIN_CAPACITY)
    }

    /// Returns the number of free buckets at the end of the slack of a new table, in which `overflow` entries lie past the
    /// first `capacity` buckets.
    ///
    /// If a table is nine tenths full and its tags are uniformly random, only a handful of entries overflow. If the tags are
    /// not random, more entries do. The part that is proportional to `overflow` keeps the number of resizes low then.
    fn spare(capacity: usize, overflow: usize) -> usize {
        2 + (capacity / 64).min(32) + overflow / 4
    }

    /// Returns the number of buckets of a new table for `expected` entries, slack included.
    pub(super) fn room_for(expected: usize, shard: u8) -> usize {
        let capacity = Table::capacity_for(expected, shard);
        capacity + Table::spare(capacity, 0)
    }

    /// Moves the entries to a new table of `capacity` buckets and slack.
    fn resize(&mut self, capacity: usize) {
        let entries = self.buckets.iter().copied().filter(|entry| *entry != EMPTY);
        *self = Table::lay_out(entries, capacity, Vec::new());
    }

    /// Builds a table of `capacity` buckets and slack from sorted entries, in `memory` if that is large enough.
    pub(super) fn lay_out(
        entries: impl Iterator<Item = u64> + Clone,
        capacity: usize,
        mut memory: Vec<u64>,
    ) -> Table {
        // In sorted order, each entry lands in its home or directly after its predecessor.
        let landing = |entry: u64, free: usize| Table::home(tag_of_entry(entry), capacity).max(free);

        let (mut free, mut len) = (0, 0);
        for entry in entries.clone() {
            free = landing(entry, free) + 1;
            len += 1;
        }
        let overflow = free.saturating_sub(capacity);
        let size = capacity + overflow + Table::spare(capacity, overflow);
        const { assert!(EMPTY == 0, "new words must be empty buckets") };
        let mut buckets = if memory.capacity() < size {
            drop(memory);
            Words::zeroed(size)
        } else {
            memory.clear();
            memory.resize(size, EMPTY);
            Words::from(memory)
        };
        free = 0;
        for entry in entries {
            let bucket = landing(entry, free);
            buckets[bucket] = entry;
            free = bucket + 1;
        }
        Table { buckets, capacity, len }
    }
}
