//! The table of one shard: a hash table that is sorted.

use crate::map::Words;
use crate::planted::{Bug, planted};

use super::entry::{
    ADDRESS_BITS, Address, EMPTY, SHARD_COUNT, TAG_BITS, address_of_entry, entry_of, tag_of_entry,
};

/// The least capacity of a table that has been used.
pub(super) const MIN_CAPACITY: usize = 8;

/// The entries of one shard: a hash table with open addressing and linear probing to the right.
///
/// Invariants:
///
/// - The tags of the entries do not decrease from left to right.
/// - An entry lies in its home bucket or to the right of it.
/// - No bucket between the home of an entry and the entry is empty.
#[derive(Default)]
pub(super) struct Table {
    /// `capacity` buckets, and then the slack: buckets for entries that probing pushes past the last of these. Wrapping
    /// around instead would break the order.
    pub(super) buckets: Words,
    /// The number of buckets that are the home of some tag. Zero until the first insertion.
    pub(super) capacity: usize,
    /// The number of entries.
    pub(super) len: usize,
}

impl Table {
    /// The bucket at which probing for `tag` starts in a table of `capacity` buckets. It is monotonic in the tag, so that
    /// sorting and probing agree.
    pub(super) fn home(tag: u64, capacity: usize) -> usize {
        ((tag * capacity as u64) >> TAG_BITS) as usize
    }

    /// The first bucket, from the home of `tag` on, that is empty or holds this tag or a greater one; one past the slack if
    /// there is none.
    fn start_of(&self, tag: u64) -> usize {
        let home = Table::home(tag, self.capacity);
        // Both sides are reduced by one: an empty bucket wraps to the greatest number. For tag 0, nothing is smaller.
        let smallest = (tag << ADDRESS_BITS).saturating_sub(1);
        let smaller = |entry: &&u64| entry.wrapping_sub(1) < smallest;
        home + self.buckets[home..].iter().take_while(smaller).count()
    }

    /// The entries with `tag`. `start` is [`start_of`](Table::start_of) the tag.
    fn entries_from(&self, start: usize, tag: u64) -> impl Iterator<Item = u64> {
        let same = move |entry: &u64| *entry != EMPTY && tag_of_entry(*entry) == tag;
        self.buckets[start..].iter().copied().take_while(same)
    }

    /// The bucket that holds exactly `entry`.
    pub(super) fn bucket_of(&self, entry: u64) -> Option<usize> {
        let tag = tag_of_entry(entry);
        let start = self.start_of(tag);
        Some(start + self.entries_from(start, tag).position(|other| other == entry)?)
    }

    /// The bucket behind the entries with `tag`, where a further one belongs.
    fn behind(&self, tag: u64) -> usize {
        let start = self.start_of(tag);
        start + self.entries_from(start, tag).count()
    }

    /// Calls `confirm` with each address under `tag` until it returns `Some`, and returns that.
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

    /// Inserts `entry`. If the table must grow, the number of the shard determines by how much.
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
            "each address is inserted once: it is that of one record"
        );
        self.place(entry, self.behind(tag_of_entry(entry)));
        self.len += 1;
    }

    /// Puts `entry` into `bucket` and shifts the entries from there to the next empty bucket right.
    fn place(&mut self, entry: u64, bucket: usize) {
        let mut pushed = entry;
        for bucket in &mut self.buckets[bucket..] {
            std::mem::swap(bucket, &mut pushed);
            if pushed == EMPTY {
                return;
            }
        }
        unreachable!("the last bucket is empty before every insertion");
    }

    /// Removes `entry`, and shrinks the table if few are left. Returns `false` if there is no such entry.
    pub(super) fn remove(&mut self, entry: u64) -> bool {
        let Some(bucket) = self.bucket_of(entry) else { return false };
        // Entries that probing pushed to the right move back. Otherwise there would be an empty bucket between them and
        // their home, and a look-up would end there without finding them.
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
        // From two fifths full to two thirds, which is far from both limits: many insertions or removals pass before the
        // next resize.
        if self.capacity > MIN_CAPACITY
            && !planted(Bug::TablesNeverShrink)
            && self.len * 10 < self.capacity * 4
        {
            self.resize((self.len + self.len / 2).max(MIN_CAPACITY));
        }
        true
    }

    /// The capacity to grow to. Shards hold about equally many keys. If all grew by the same factor, they would grow at about
    /// the same time, and just after that the index would use its memory worst. The factor is 1.2 in the first shard
    /// and rises to 1.3 in the last.
    fn grown(capacity: usize, shard: u8) -> usize {
        (capacity + capacity / 5 + capacity / 10 * usize::from(shard) / SHARD_COUNT).max(MIN_CAPACITY)
    }

    /// The capacity for `expected` entries: as full as a table that grew to hold them is on average, and like those not
    /// equally full in all shards.
    pub(super) fn capacity_for(expected: usize, shard: u8) -> usize {
        let fitting = ((expected + expected / 4 * usize::from(shard) / SHARD_COUNT) * 10).div_ceil(9);
        fitting.max(MIN_CAPACITY)
    }

    /// The number of free buckets behind the last entry of a new table of `capacity` buckets, of which `overflow` entries
    /// lie in the slack. At nine tenths full, a handful of uniformly random tags overflow. Tags that are not random
    /// overflow more often; the share of `overflow` keeps the number of resizes low for them.
    fn spare(capacity: usize, overflow: usize) -> usize {
        2 + (capacity / 64).min(32) + overflow / 4
    }

    /// The number of buckets, slack included, of a table for `expected` entries.
    pub(super) fn room_for(expected: usize, shard: u8) -> usize {
        let capacity = Table::capacity_for(expected, shard);
        capacity + Table::spare(capacity, 0)
    }

    /// Moves the entries into a new table of `capacity` buckets and slack.
    fn resize(&mut self, capacity: usize) {
        let entries = self.buckets.iter().copied().filter(|entry| *entry != EMPTY);
        *self = Table::lay_out(entries, capacity, Vec::new());
    }

    /// Makes a table of entries in sorted order, with `capacity` buckets and slack. It uses the memory of `room` if that is
    /// enough.
    pub(super) fn lay_out(
        entries: impl Iterator<Item = u64> + Clone,
        capacity: usize,
        mut room: Vec<u64>,
    ) -> Table {
        // In sorted order, each entry lands in its home or directly behind its predecessor.
        let landing = |entry: u64, free: usize| Table::home(tag_of_entry(entry), capacity).max(free);

        let (mut free, mut len) = (0, 0);
        for entry in entries.clone() {
            free = landing(entry, free) + 1;
            len += 1;
        }
        let overflow = free.saturating_sub(capacity);
        let size = capacity + overflow + Table::spare(capacity, overflow);
        const { assert!(EMPTY == 0, "new words are empty buckets") };
        let mut buckets = if room.capacity() < size {
            drop(room);
            Words::zeroed(size)
        } else {
            room.clear();
            room.resize(size, EMPTY);
            Words::from(room)
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
