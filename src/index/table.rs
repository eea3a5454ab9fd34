//! One shard's entries: a hash table that is sorted.

use crate::map::Words;
use crate::planted::{Bug, planted};

use super::entry::{
    ADDRESS_BITS, Address, EMPTY, SHARD_COUNT, TAG_BITS, address_of_entry, entry_of, tag_of_entry,
};

/// The fewest buckets of a table that has been used.
pub(super) const MIN_CAPACITY: usize = 8;

/// One shard's entries, by open addressing with linear probing to the right.
///
/// Three things always hold. The tags of the entries never decrease from left to right. An entry lies at its home
/// bucket or to the right of it. Between its home and itself no bucket is empty.
#[derive(Default)]
pub(super) struct Table {
    /// `capacity` buckets, and behind them the slack: room for entries that probing pushes past the last bucket.
    /// Wrapping around instead would break the order.
    pub(super) buckets: Words,
    /// How many buckets are the home of some tag. Zero until the first insertion.
    pub(super) capacity: usize,
    /// How many entries there are.
    pub(super) len: usize,
}

impl Table {
    /// The bucket at which probing for `tag` starts, in a table of `capacity` buckets. It grows with the tag, which
    /// is what lets order and probing agree.
    pub(super) fn home(tag: u64, capacity: usize) -> usize {
        ((tag * capacity as u64) >> TAG_BITS) as usize
    }

    /// The first bucket from the home of `tag` on that is empty or holds this tag or a greater one; one past the
    /// slack if there is none.
    fn start_of(&self, tag: u64) -> usize {
        let home = Table::home(tag, self.capacity);
        // Both less one, so that an empty bucket is greater than everything; for tag 0, nothing is smaller.
        let smallest = (tag << ADDRESS_BITS).saturating_sub(1);
        let smaller = |entry: &&u64| entry.wrapping_sub(1) < smallest;
        home + self.buckets[home..].iter().take_while(smaller).count()
    }

    /// The entries with `tag`, if `start` is what [`start_of`](Table::start_of) says of it.
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

    /// The bucket behind the entries with `tag`, where another one belongs.
    fn behind(&self, tag: u64) -> usize {
        let start = self.start_of(tag);
        start + self.entries_from(start, tag).count()
    }

    /// Offers the addresses under `tag` to `confirm`, one by one, until it answers `Some`; returns that answer.
    #[inline]
    pub(super) fn search<R>(&self, tag: u64, confirm: impl FnMut(Address) -> Option<R>) -> Option<R> {
        self.entries_from(self.start_of(tag), tag).map(address_of_entry).find_map(confirm)
    }

    /// Swaps the address of the entry for `tag` and `old`; `false` if there is none.
    pub(super) fn replace(&mut self, tag: u64, old: Address, new: Address) -> bool {
        let Some(bucket) = self.bucket_of(entry_of(tag, old)) else { return false };
        self.buckets[bucket] = entry_of(tag, new);
        true
    }

    /// Adds `entry`. `shard` is the number of the shard and decides by how much the table grows, if it must.
    pub(super) fn insert(&mut self, entry: u64, shard: u8) {
        if (self.len + 1) * 10 > self.capacity * 9 {
            self.resize(Table::grown(self.capacity, shard));
        }
        if self.buckets.last() != Some(&EMPTY) {
            // Capacity follows the number of keys alone. Were it to grow here, keys that share a tag, which no
            // capacity tells apart, would make it grow without bound.
            self.resize(self.capacity);
        }
        debug_assert!(
            self.bucket_of(entry).is_none(),
            "an address is the place of one record: it comes once"
        );
        self.place(entry, self.behind(tag_of_entry(entry)));
        self.len += 1;
    }

    /// Puts `entry` into `bucket` and pushes what is there to the right, up to the next empty bucket.
    fn place(&mut self, entry: u64, bucket: usize) {
        let mut pushed = entry;
        for bucket in &mut self.buckets[bucket..] {
            std::mem::swap(bucket, &mut pushed);
            if pushed == EMPTY {
                return;
            }
        }
        unreachable!("the last bucket is empty whenever something is put in");
    }

    /// Takes `entry` out, and makes the table smaller if few are left; `false` if it is not there.
    pub(super) fn remove(&mut self, entry: u64) -> bool {
        let Some(bucket) = self.bucket_of(entry) else { return false };
        // What probing pushed to the right moves back. Left where it is, it would have an empty bucket between
        // itself and its home, and a search would end there without seeing it.
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
        // From two fifths full to two thirds: far enough from both limits that many insertions or removals lie
        // between one resize and the next.
        if self.capacity > MIN_CAPACITY
            && !planted(Bug::TablesNeverShrink)
            && self.len * 10 < self.capacity * 4
        {
            self.resize((self.len + self.len / 2).max(MIN_CAPACITY));
        }
        true
    }

    /// The capacity to grow to. Shards hold about equally many keys; were they all to grow by the same factor, they
    /// would do so at about the same moment, and between those moments all of them would be emptiest together. The
    /// factor goes from 1.2 in the first shard to 1.3 in the last.
    fn grown(capacity: usize, shard: u8) -> usize {
        (capacity + capacity / 5 + capacity / 10 * usize::from(shard) / SHARD_COUNT).max(MIN_CAPACITY)
    }

    /// The capacity for so many entries: as full as a table that grew to hold them is on average, and like such tables not
    /// equally full in all shards.
    pub(super) fn capacity_for(expected: usize, shard: u8) -> usize {
        let fitting = ((expected + expected / 4 * usize::from(shard) / SHARD_COUNT) * 10).div_ceil(9);
        fitting.max(MIN_CAPACITY)
    }

    /// How many buckets of slack stay free behind the last entry when a table of `capacity` buckets is made, of
    /// which `overflow` entries lie in the slack already. At nine tenths full a handful of uniformly random tags
    /// overflow; the share of `overflow` is for tags that are not random, so that many more of them do not mean
    /// many more resizes.
    fn spare(capacity: usize, overflow: usize) -> usize {
        2 + (capacity / 64).min(32) + overflow / 4
    }

    /// How many buckets a table has that is made for so many entries.
    pub(super) fn room_for(expected: usize, shard: u8) -> usize {
        let capacity = Table::capacity_for(expected, shard);
        capacity + Table::spare(capacity, 0)
    }

    /// Moves the entries into new buckets, `capacity` of them and the slack.
    fn resize(&mut self, capacity: usize) {
        let entries = self.buckets.iter().copied().filter(|entry| *entry != EMPTY);
        *self = Table::lay_out(entries, capacity, Vec::new());
    }

    /// The table of entries that come in sorted order, with `capacity` buckets and the slack. Its memory is that of `room`,
    /// if that has enough.
    pub(super) fn lay_out(
        entries: impl Iterator<Item = u64> + Clone,
        capacity: usize,
        mut room: Vec<u64>,
    ) -> Table {
        // In sorted order each entry lands on its home or right behind its predecessor.
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
