//! The index: for each key, the address of its last record, in memory.
//!
//! An entry is 8 bytes: 40 bits of address and 24 bits of hash. The keys themselves stay in the log. So a look-up finds
//! *candidates*, which the caller confirms by reading the log, and a key takes about 10 bytes of memory whatever its length.
//!
//! The index is split into 256 shards by the hash, each a table under its own lock. A table is sorted by the 24 bits of
//! hash that its entries store (the *tag*), and the tag alone determines where an entry belongs. So a look-up of an unknown
//! key ends early, and resizing a table is one linear pass that does not read the log. Each shard grows separately and by a
//! slightly different factor, so there is never a second copy of the whole index, and growth is spread over time.
//!
//! Opening a store fills the index with [`Index::fill`]. After that, only a caller that holds a key's flight (the per-key lock)
//! changes its entry.

mod entry;
mod table;
mod filling;

use std::fmt;

pub(crate) use entry::{Address, SHARD_COUNT, shard_of};
pub(crate) use filling::{Candidate, Packing, ShardUpdates};

use entry::{entry_of, tag_of_hash};
use table::Table;

use crate::sync::RwLock;

/// A table and its lock, on a cache line of its own. Taking a lock writes to it, so readers of shards on the same cache line would
/// slow each other down.
#[repr(align(64))]
#[derive(Default)]
struct Shard {
    /// The entries whose hashes begin with the number of this shard.
    table: RwLock<Table>,
}

/// The index of a store. Safe for use from any thread.
///
/// It stores hashes and not keys: two keys may share a shard and a tag, so callers confirm each candidate in the log.
/// Changes of one key are serialized by its flight, which the changing thread holds. Changes and look-ups of different keys
/// need no coordination.
pub(crate) struct Index {
    /// By the top 8 bits of the hash.
    shards: Box<[Shard; SHARD_COUNT]>,
}

impl Index {
    /// An empty index. A table allocates memory at its first insertion.
    pub(crate) fn new() -> Index {
        Index { shards: Box::new(std::array::from_fn(|_| Shard::default())) }
    }

    /// The table of the shard for `hash`.
    fn table(&self, hash: u128) -> &RwLock<Table> {
        &self.shards[usize::from(shard_of(hash))].table
    }

    /// Calls `confirm` with each candidate for `hash` until it returns `Some`, and returns that.
    ///
    /// `confirm` runs under the shard's read lock, so that the space of the record is not reused in the meantime. It must not
    /// call the index: taking the lock of the same shard twice can deadlock.
    ///
    /// If the record's page is not in memory, `confirm` waits for the disk with the shard locked. Until then, changes of the
    /// keys in this shard wait, one key in 256, and so do lookups that come after such a change. A check before the lock is
    /// taken would cost every lookup more than that: whether a page is in memory takes a system call to find out
    /// (`mincore`, `preadv2` with `RWF_NOWAIT`), which took longer than a whole lookup, and so does having it read
    /// (`MADV_POPULATE_READ`), which took about as long as one.
    pub(crate) fn find<R>(&self, hash: u128, confirm: impl FnMut(Address) -> Option<R>) -> Option<R> {
        self.table(hash).read().search(tag_of_hash(hash), confirm)
    }

    /// Whether there is an entry with the tag of `hash` and this address.
    pub(crate) fn holds(&self, hash: u128, address: Address) -> bool {
        self.table(hash).read().bucket_of(entry_of(tag_of_hash(hash), address)).is_some()
    }

    /// Whether the index points to the record of a candidate.
    pub(crate) fn holds_candidate(&self, candidate: Candidate) -> bool {
        let table = self.shards[usize::from(candidate.shard())].table.read();
        table.bucket_of(candidate.entry()).is_some()
    }

    /// Inserts an entry. The caller must be sure that the key has none yet.
    pub(crate) fn insert(&self, hash: u128, address: Address) {
        let entry = entry_of(tag_of_hash(hash), address);
        self.table(hash).write().insert(entry, shard_of(hash));
    }

    /// Atomically replaces the address of an entry: a reader finds the old one or the new one. Returns `false` and changes
    /// nothing if there is no entry for `hash` and `old`.
    pub(crate) fn replace(&self, hash: u128, old: Address, new: Address) -> bool {
        self.table(hash).write().replace(tag_of_hash(hash), old, new)
    }

    /// Removes the entry for `hash` and `address`. Returns `false` if there is none.
    pub(crate) fn remove(&self, hash: u128, address: Address) -> bool {
        self.table(hash).write().remove(entry_of(tag_of_hash(hash), address))
    }

    /// Fills an empty shard with the entries that result from its updates.
    ///
    /// `look` reads a candidate's record and returns the hash of its key and a value of the caller's choice. `mark_dead` gets that
    /// value for each record that was read and that a later update of the same key replaces. `spare` is a scratch buffer that a
    /// thread reuses between calls.
    pub(crate) fn fill<W, E>(
        &self,
        updates: ShardUpdates,
        spare: &mut Vec<u64>,
        look: impl FnMut(Candidate) -> Result<(u128, W), E>,
        mark_dead: impl FnMut(&W),
    ) -> Result<(), E> {
        let shard = updates.shard();
        let filled = updates.into_table(spare, look, mark_dead)?;
        let mut table = self.shards[usize::from(shard)].table.write();
        debug_assert_eq!(table.len, 0, "a shard is filled before anything is inserted");
        *table = filled;
        Ok(())
    }

    /// Waits for every look-up in progress. Look-ups that begin later see what the caller did before this call.
    pub(crate) fn wait_for_readers(&self) {
        for shard in self.shards.iter() {
            drop(shard.table.write());
        }
    }

    /// The number of entries. Approximate while other threads insert and remove.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.table.read().len).sum()
    }

    /// The memory that the index has allocated, in bytes, not counting that large tables are rounded up to whole pages.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let tables: usize = self.shards.iter().map(|shard| size_of_val(&*shard.table.read().buckets)).sum();
        size_of_val(&*self.shards) + tables
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Index").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::entry::{ADDRESS_UNIT_BYTES, EMPTY, TAG_BITS, address_of_entry, tag_of_entry};
    use super::table::MIN_CAPACITY;
    use super::*;

    impl Index {
        /// Calls `visit` with every address, shard by shard, each under its read lock. `visit` must not call the index.
        fn for_each(&self, mut visit: impl FnMut(Address)) {
            for shard in self.shards.iter() {
                let table = shard.table.read();
                for entry in table.buckets.iter().filter(|entry| **entry != EMPTY) {
                    visit(address_of_entry(*entry));
                }
            }
        }
    }

    const LAST_TAG: u64 = (1 << TAG_BITS) - 1;

    fn hash_of(shard: u8, tag: u64, rest: u128) -> u128 {
        u128::from(shard) << 120 | u128::from(tag) << 96 | (rest & ((1 << 96) - 1))
    }

    /// The `number`th address, counted from 1.
    fn address(number: u64) -> Address {
        Address::new(number * ADDRESS_UNIT_BYTES).unwrap()
    }

    /// Two numbers of SplitMix64: hashes as uniform as those of the keyed hash, and the same in every run.
    fn random_hash(number: u64) -> u128 {
        let mix = |seed: u64| {
            let mut bits = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bits ^ (bits >> 31)
        };
        u128::from(mix(2 * number + 1)) << 64 | u128::from(mix(2 * number + 2))
    }

    fn candidates(index: &Index, hash: u128) -> Vec<u64> {
        let mut found = Vec::new();
        let none: Option<()> = index.find(hash, |address| {
            found.push(address.offset());
            None
        });
        assert!(none.is_none());
        found.sort_unstable();
        found
    }

    /// Looks up the `number`th random hash. Returns `number` if its address is found.
    fn look_up(index: &Index, number: u64) -> Option<u64> {
        index.find(random_hash(number), |found| (found == address(number)).then_some(number))
    }

    fn check_invariants(index: &Index) {
        for (number, shard) in index.shards.iter().enumerate() {
            let table = shard.table.read();
            let mut last_tag = 0;
            let mut last_empty = None;
            let mut len = 0;
            for (bucket, entry) in table.buckets.iter().copied().enumerate() {
                if entry == EMPTY {
                    last_empty = Some(bucket);
                    continue;
                }
                let tag = tag_of_entry(entry);
                let home = Table::home(tag, table.capacity);
                assert!(last_tag <= tag, "shard {number}: tag {tag} at {bucket} after {last_tag}");
                assert!(home <= bucket, "shard {number}: {bucket} is left of home {home}");
                assert!(last_empty.is_none_or(|gap| gap < home), "shard {number}: gap in {home}..{bucket}");
                last_tag = tag;
                len += 1;
            }
            assert_eq!(table.len, len, "shard {number} counts its entries");
            assert!(len * 10 <= table.capacity * 9, "shard {number}: {len} in {}", table.capacity);
            let least = if table.capacity <= MIN_CAPACITY { 0 } else { table.capacity * 4 / 10 };
            assert!(
                table.len >= least,
                "shard {number} is too sparse: {} entries in {} buckets",
                table.len,
                table.capacity
            );
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { hash: u128 },
        Replace { pick: prop::sample::Index },
        ReplaceAbsent { hash: u128 },
        Remove { pick: prop::sample::Index },
        RemoveAbsent { hash: u128 },
        RemoveMany { pick: prop::sample::Index },
        Find { hash: u128 },
    }

    fn colliding_hash() -> impl Strategy<Value = u128> {
        let shard = prop_oneof![Just(0_u8), Just(7), Just(255)];
        let tag = prop_oneof![
            4 => prop_oneof![Just(0), Just(1), Just(1 << 23), Just(LAST_TAG - 1), Just(LAST_TAG)],
            2 => 0..=LAST_TAG,
            2 => (LAST_TAG - (1 << 16))..=LAST_TAG,
        ];
        (shard, tag, 0..3_u128).prop_map(|(shard, tag, rest)| hash_of(shard, tag, rest))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => colliding_hash().prop_map(|hash| Step::Insert { hash }),
            3 => any::<prop::sample::Index>().prop_map(|pick| Step::Replace { pick }),
            1 => colliding_hash().prop_map(|hash| Step::ReplaceAbsent { hash }),
            4 => any::<prop::sample::Index>().prop_map(|pick| Step::Remove { pick }),
            1 => colliding_hash().prop_map(|hash| Step::RemoveAbsent { hash }),
            1 => any::<prop::sample::Index>().prop_map(|pick| Step::RemoveMany { pick }),
            3 => colliding_hash().prop_map(|hash| Step::Find { hash }),
        ]
    }

    /// The candidates that the model expects: all addresses that share shard and tag.
    fn expected(model: &BTreeMap<u64, u128>, hash: u128) -> Vec<u64> {
        model.iter().filter(|(_, other)| **other >> 96 == hash >> 96).map(|(offset, _)| *offset).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_index_behaves_like_a_sorted_multimap(
            steps in prop::collection::vec(step(), 1..400)
        ) {
            let index = Index::new();
            // From offset to hash: entries may share a hash, never an address.
            let mut model: BTreeMap<u64, u128> = BTreeMap::new();
            let mut fresh = (1..).map(address);
            let entry_at = |model: &BTreeMap<u64, u128>, pick: &prop::sample::Index| {
                (!model.is_empty()).then(|| {
                    let (offset, hash) = model.iter().nth(pick.index(model.len())).unwrap();
                    (Address::new(*offset).unwrap(), *hash)
                })
            };
            for step in steps {
                match step {
                    Step::Insert { hash } => {
                        let at = fresh.next().unwrap();
                        prop_assert!(!index.holds(hash, at));
                        index.insert(hash, at);
                        model.insert(at.offset(), hash);
                        prop_assert!(index.holds(hash, at));
                    }
                    Step::Replace { pick } => if let Some((old, hash)) = entry_at(&model, &pick) {
                        let new = fresh.next().unwrap();
                        prop_assert!(index.replace(hash, old, new));
                        model.remove(&old.offset());
                        model.insert(new.offset(), hash);
                        prop_assert!(index.holds(hash, new) && !index.holds(hash, old));
                    },
                    Step::ReplaceAbsent { hash } => {
                        let (unused, new) = (fresh.next().unwrap(), fresh.next().unwrap());
                        prop_assert!(!index.replace(hash, unused, new));
                        prop_assert!(!index.holds(hash, new));
                    }
                    Step::Remove { pick } => if let Some((at, hash)) = entry_at(&model, &pick) {
                        prop_assert!(index.remove(hash, at));
                        model.remove(&at.offset());
                        prop_assert!(!index.holds(hash, at));
                        prop_assert!(!index.remove(hash, at));
                    },
                    Step::RemoveAbsent { hash } => prop_assert!(!index.remove(hash, fresh.next().unwrap())),
                    Step::RemoveMany { pick } => if !model.is_empty() {
                        for _ in 0..pick.index(model.len()) {
                            let (at, hash) = entry_at(&model, &pick).unwrap();
                            prop_assert!(index.remove(hash, at));
                            model.remove(&at.offset());
                            check_invariants(&index);
                        }
                    },
                    Step::Find { hash } => {
                        prop_assert_eq!(candidates(&index, hash), expected(&model, hash));
                    }
                }
                check_invariants(&index);
                prop_assert_eq!(index.len(), model.len());
            }
            for hash in model.values() {
                prop_assert_eq!(candidates(&index, *hash), expected(&model, *hash));
            }
            let mut offsets = Vec::new();
            index.for_each(|at| offsets.push(at.offset()));
            offsets.sort_unstable();
            prop_assert_eq!(offsets, model.into_keys().collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_address_is_aligned_nonzero_and_below_8_tib() {
        for offset in [8, 4_096, (1 << 43) - 8] {
            assert_eq!(Address::new(offset).map(Address::offset), Some(offset));
        }
        for offset in [0, 1, 4, 12, (1 << 43) - 1, 1 << 43, (1 << 43) + 8, u64::MAX, u64::MAX - 7] {
            assert_eq!(Address::new(offset), None, "{offset}");
        }
    }

    #[test]
    fn the_greatest_tag_and_address_round_trip() {
        let index = Index::new();
        let last = Address::new((1 << 43) - 8).unwrap();
        index.insert(u128::MAX, last);
        index.insert(0, last);
        assert_eq!(candidates(&index, u128::MAX), [last.offset()]);
        assert_eq!(candidates(&index, 0), [last.offset()]);
        assert!(index.holds(u128::MAX, last) && !index.holds(u128::MAX >> 8, last));
    }

    #[test]
    fn each_value_of_the_top_8_bits_has_its_own_shard() {
        let index = Index::new();
        for shard in 0..=255 {
            index.insert(hash_of(shard, 5, 0), address(1 + u64::from(shard)));
        }
        assert!(index.shards.iter().all(|shard| shard.table.read().len == 1));
        assert_eq!(candidates(&index, hash_of(130, 5, 0)), [address(131).offset()]);
    }

    #[test]
    fn a_look_up_ends_at_the_first_confirmed_candidate() {
        let index = Index::new();
        for number in 1..=5 {
            index.insert(hash_of(3, 9, u128::from(number)), address(number));
        }
        let mut calls = 0;
        let answer = index.find(hash_of(3, 9, 0), |_| {
            calls += 1;
            (calls == 2).then_some("confirmed")
        });
        assert_eq!((answer, calls), (Some("confirmed"), 2));
    }

    #[test]
    fn an_unused_shard_allocates_nothing() {
        let index = Index::new();
        let empty_bytes = index.allocated_bytes();
        assert_eq!(empty_bytes, SHARD_COUNT * size_of::<Shard>());
        assert!(!index.remove(1, address(1)) && !index.replace(1, address(1), address(2)));
        assert!(candidates(&index, u128::MAX).is_empty());
        assert_eq!(index.allocated_bytes(), empty_bytes);
        index.insert(hash_of(200, 5, 0), address(1));
        assert!(index.allocated_bytes() < empty_bytes + 128, "one small table");
    }

    #[test]
    fn growth_keeps_every_entry() {
        let index = Index::new();
        for number in 1..=20_000 {
            index.insert(random_hash(number), address(number));
            if number % 1_000 == 0 {
                check_invariants(&index);
                assert!((1..=number).all(|known| look_up(&index, known) == Some(known)));
            }
        }
        assert!((20_001..40_000).all(|unknown| look_up(&index, unknown).is_none()));
    }

    #[test]
    fn shrinking_keeps_every_entry_and_frees_memory() {
        let index = Index::new();
        for number in 1..=100_000 {
            index.insert(random_hash(number), address(number));
        }
        let full_bytes = index.allocated_bytes();
        for number in 1..=90_000 {
            assert!(index.remove(random_hash(number), address(number)));
        }
        check_invariants(&index);
        assert!((90_001..=100_000).all(|known| look_up(&index, known) == Some(known)));
        assert!((1..=90_000).all(|gone| look_up(&index, gone).is_none()));
        let fixed_bytes = size_of_val(&*index.shards);
        let bytes_per_key = (index.allocated_bytes() - fixed_bytes) / index.len();
        assert!(bytes_per_key <= 22, "{bytes_per_key} bytes per key; the full index took {full_bytes} bytes");

        for number in 90_001..=100_000 {
            assert!(index.remove(random_hash(number), address(number)));
        }
        assert_eq!(index.len(), 0);
        let most = fixed_bytes + SHARD_COUNT * 8 * (2 * MIN_CAPACITY);
        assert!(index.allocated_bytes() <= most, "every shard has the smallest table and a little slack");
    }

    #[test]
    fn inserting_and_removing_one_key_resizes_nothing() {
        let index = Index::new();
        for number in 1..=5_000 {
            index.insert(random_hash(number) & (u128::MAX >> 8), address(number));
        }
        // The first insertion may resize the table; after that the table must be well between the limits at which it grows and shrinks.
        let hash = hash_of(0, 77, 0);
        index.insert(hash, address(9_999));
        let buckets = |index: &Index| index.shards[0].table.read().buckets.as_ptr();
        let before = buckets(&index);
        for _ in 0..100 {
            assert!(index.remove(hash, address(9_999)));
            index.insert(hash, address(9_999));
            assert_eq!(buckets(&index), before);
        }
    }

    #[test]
    fn with_20_000_keys_or_more_a_key_takes_at_most_12_bytes() {
        let index = Index::new();
        let most = if cfg!(debug_assertions) { 200_000 } else { 3_000_000 };
        let mut worst = 0.0_f64;
        for number in 1..=most {
            index.insert(random_hash(number), address(number));
            let due = if number < 200_000 { number % 500 == 0 } else { number % 10_000 == 0 };
            if due && number >= 20_000 {
                worst = worst.max(index.allocated_bytes() as f64 / number as f64);
            }
        }
        assert!(worst <= 12.0, "{worst} bytes per key");
    }

    #[test]
    fn a_thousand_keys_take_48_kib_and_a_million_10_bytes_each() {
        for (count, most_bytes) in [(1_000, 48 << 10), (100_000, 1_100_000), (1_000_000, 10_500_000)] {
            let index = Index::new();
            for number in 1..=count {
                index.insert(random_hash(number), address(number));
            }
            check_invariants(&index);
            let bytes = index.allocated_bytes();
            assert!(bytes <= most_bytes, "{count} keys take {bytes} bytes");
            assert!(bytes as u64 >= 8 * count, "no entry is smaller than 8 bytes");
        }
    }

    #[test]
    fn ten_thousand_keys_with_the_same_tag_take_bounded_memory() {
        for tag in [0, 1 << 23, LAST_TAG] {
            let index = Index::new();
            for number in 1..=10_000 {
                index.insert(hash_of(8, tag, u128::from(number)), address(number));
            }
            check_invariants(&index);
            let found = candidates(&index, hash_of(8, tag, 0));
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 10_000);
            let bytes = index.allocated_bytes() - size_of_val(&*index.shards);
            assert!(bytes <= 10_000 * 8 * 3, "{bytes} bytes under tag {tag}");

            for number in 1..=10_000 {
                assert!(index.remove(hash_of(8, tag, 0), address(number)));
            }
            assert_eq!(index.len(), 0);
            check_invariants(&index);
            let left = index.allocated_bytes() - size_of_val(&*index.shards);
            assert!(left <= 256, "{left} bytes are left under tag {tag}");
        }
    }

    #[test]
    fn a_full_overflow_area_grows_without_growing_the_capacity() {
        let index = Index::new();
        // Seven entries are fewer than nine tenths of the smallest table holds, but all of them belong in its last bucket.
        for number in 1..=7 {
            index.insert(hash_of(0, LAST_TAG, 0), address(number));
        }
        let table = index.shards[0].table.read();
        assert_eq!(table.capacity, MIN_CAPACITY);
        assert!(table.buckets.len() >= MIN_CAPACITY + 6);
    }

    #[test]
    fn shards_do_not_grow_all_at_once() {
        let index = Index::new();
        for number in 1..=300_000 {
            index.insert(random_hash(number), address(number));
        }
        let capacities: BTreeSet<usize> =
            index.shards.iter().map(|shard| shard.table.read().capacity).collect();
        assert!(capacities.len() > 50, "{capacities:?}");
        let (least, most) = (capacities.first().unwrap(), capacities.last().unwrap());
        assert!(*most as f64 / *least as f64 > 1.2, "{least}..{most}");
    }

    #[test]
    fn readers_never_miss_a_key_while_a_writer_changes_shards() {
        const PERMANENT_KEYS: u64 = 2_000;
        let index = Index::new();
        for number in 1..=PERMANENT_KEYS {
            index.insert(random_hash(number), address(number));
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..2_u64 {
                let (index, done) = (&index, &done);
                scope.spawn(move || {
                    let mut round = reader;
                    while !done.load(Ordering::Relaxed) {
                        let number = round % PERMANENT_KEYS + 1;
                        let moved = address(number + 1_000_000);
                        let found = index.find(random_hash(number), |at| {
                            (at == address(number) || at == moved).then_some(())
                        });
                        assert!(found.is_some(), "key {number} was missed");
                        round += 1;
                    }
                });
            }
            for _ in 0..5 {
                for number in PERMANENT_KEYS + 1..=30_000 {
                    index.insert(random_hash(number), address(number));
                }
                for number in 1..=PERMANENT_KEYS {
                    assert!(index.replace(random_hash(number), address(number), address(number + 1_000_000)));
                }
                for number in PERMANENT_KEYS + 1..=30_000 {
                    assert!(index.remove(random_hash(number), address(number)));
                }
                for number in 1..=PERMANENT_KEYS {
                    assert!(index.replace(random_hash(number), address(number + 1_000_000), address(number)));
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        check_invariants(&index);
        assert_eq!(index.len() as u64, PERMANENT_KEYS);
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -- --ignored --nocapture cost_of_a_lookup"]
    fn cost_of_a_lookup() {
        const COUNT: u64 = 1_000_000;
        let index = Index::new();
        let time = |what: &str, work: &mut dyn FnMut(u64)| {
            let start = std::time::Instant::now();
            for number in 1..=COUNT {
                work(number);
            }
            println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / COUNT as f64);
        };
        time("insert", &mut |number| index.insert(random_hash(number), address(number)));
        // In a different order from the insertions, so that neighbours are not cached.
        let order = |number: u64| number * 7_919 % COUNT + 1;
        time("hit", &mut |number| assert!(look_up(&index, order(number)).is_some()));
        let mut misses = 0;
        time("miss", &mut |number| misses += u64::from(look_up(&index, order(number) + COUNT).is_none()));
        assert_eq!(misses, COUNT);
        time("remove", &mut |number| {
            assert!(index.remove(random_hash(order(number)), address(order(number))));
        });
    }
}
