//! Fills a shard of the index while a store is being opened.
//!
//! No look-up happens before all keys are known, so updates can be added without searching for their keys. The updates of a shard
//! are gathered in the order of the log, sorted by tag once they are complete, and laid out as a table in one pass, in the memory
//! that they were gathered in. Only updates that share a tag are compared, because only they may belong to the same key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;

use super::entry::{
    ADDRESS_BITS, ADDRESS_UNIT_BYTES, Address, TAG_BITS, address_of_entry, shard_of, tag_of_entry,
};
use super::table::Table;

/// How an update is packed into a word of 8 bytes. The low bits hold the address, as many as the length of the file requires; the
/// other bits hold a part of the hash.
///
/// A table entry holds 24 bits of the hash, in addition to the 8 that select the shard. A word holds more, unless the file is close
/// to its maximum length. Among ten million keys, twelve thousand pairs share shard and tag. Telling such a pair apart by reading
/// its records costs as much as 100 other updates, or 100,000 if the records are not cached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing {
    address_bits: u32,
}

impl Packing {
    /// The packing for addresses below `end_bytes`.
    pub(crate) fn for_addresses_below(end_bytes: u64) -> Packing {
        let units = end_bytes.div_ceil(ADDRESS_UNIT_BYTES);
        Packing { address_bits: (u64::BITS - units.leading_zeros()).min(ADDRESS_BITS) }
    }

    fn address_mask(self) -> u64 {
        (1 << self.address_bits) - 1
    }

    /// The word for an update that the record at `address` makes to the key with `hash`.
    pub(crate) fn word(self, hash: u128, address: Address) -> u64 {
        let units = address.offset() / ADDRESS_UNIT_BYTES;
        debug_assert!(units <= self.address_mask(), "the address is too high for this packing");
        // The first byte of the hash chose the shard.
        let [_, hash @ .., _, _, _, _, _, _, _] = hash.to_be_bytes();
        u64::from_be_bytes(hash) & !self.address_mask() | units
    }

    /// The table entry for a word.
    fn entry(self, word: u64) -> u64 {
        tag_of_entry(word) << ADDRESS_BITS | word & self.address_mask()
    }

    /// The bits of the hash in a word. If two words differ in them, so do their keys. If not, the records must be read to tell.
    fn hash_bits(self, word: u64) -> u64 {
        word & !self.address_mask()
    }
}

/// What a record does to the index: it sets its key's entry or removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IndexUpdate {
    word: u64,
    removes: bool,
}

/// The updates of one shard, in the order of the log.
#[derive(Debug)]
pub(crate) struct ShardUpdates {
    packing: Packing,
    shard: u8,
    words: Vec<u64>,
    /// The words of the updates that remove their key, in the same order. There are few, unless the store was closed for longer
    /// than its retention.
    removals: Vec<u64>,
    /// The words of the updates that may be the last one of an unfinished operation, 8 bytes for each begin that a footer
    /// lists.
    begun: Vec<u64>,
}

impl ShardUpdates {
    /// An empty list of updates for `shard`.
    pub(crate) fn new(packing: Packing, shard: u8) -> ShardUpdates {
        ShardUpdates { packing, shard, words: Vec::new(), removals: Vec::new(), begun: Vec::new() }
    }

    pub(super) fn shard(&self) -> u8 {
        self.shard
    }

    /// Reserves memory for a table of `expected` updates, plus some slack, because shards are not equally full.
    ///
    /// Reserving too much costs little: unused memory is rarely touched, and the table frees what it does not need. Reserving too
    /// little makes the vector reallocate, which leaves holes in the heap that are too small for another table.
    pub(crate) fn expecting(mut self, expected: usize) -> ShardUpdates {
        if expected > 0 {
            let buckets = Table::room_for(expected + 4 * expected.isqrt(), self.shard);
            // `expected` is an estimate. If this much memory is not available, the vector grows as needed instead.
            let _ = self.words.try_reserve_exact(buckets);
        }
        self
    }

    /// Adds the words of the updates that follow in the log. `removals` are those of them that remove their key, and `begun`
    /// those that may be the last one of an unfinished operation.
    pub(crate) fn append(
        &mut self,
        words: &[u64],
        removals: impl ExactSizeIterator<Item = u64>,
        begun: impl ExactSizeIterator<Item = u64>,
    ) {
        reserve(&mut self.words, words.len());
        self.words.extend_from_slice(words);
        reserve(&mut self.removals, removals.len());
        self.removals.extend(removals);
        reserve(&mut self.begun, begun.len());
        self.begun.extend(begun);
    }

    /// Takes the updates that may be the last one of an unfinished operation. They are, if the filled index holds them.
    pub(crate) fn take_begun(&mut self) -> impl Iterator<Item = Candidate> + use<> {
        let (packing, shard) = (self.packing, self.shard);
        mem::take(&mut self.begun).into_iter().map(move |word| Candidate { packing, shard, word })
    }

    /// Turns the updates into a table.
    ///
    /// `look` reads a candidate's record and returns the hash of its key and a value of the caller's choice. `mark_dead` gets that
    /// value for each record that was read and that a later update of the same key replaces. `spare` is memory for sorting.
    pub(super) fn into_table<W, E>(
        mut self,
        spare: &mut Vec<u64>,
        mut look: impl FnMut(Candidate) -> Result<(u128, W), E>,
        mark_dead: impl FnMut(&W),
    ) -> Result<Table, E> {
        let ShardUpdates { packing, shard, .. } = self;
        sort_by_tag(&mut self.words, spare);
        sort_by_tag(&mut self.removals, &mut Vec::new());
        // Sorting swapped the two buffers. Swap them back: `table_memory` gets the buffer that the updates were gathered in, which
        // has space for the table, and the caller's spare buffer keeps the sorted words, which become the entries.
        let table_memory = mem::replace(spare, self.words);
        let entries = spare;
        let look = |word| look(Candidate { packing, shard, word });
        deduplicate(packing, entries, &self.removals, look, mark_dead)?;
        if entries.is_empty() {
            return Ok(Table::default());
        }
        let capacity = Table::capacity_for(entries.len(), shard);
        Ok(Table::lay_out(entries.iter().copied(), capacity, table_memory))
    }
}

/// A record that must be read, because its word alone does not distinguish its key from another key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    packing: Packing,
    shard: u8,
    word: u64,
}

impl Candidate {
    /// The address of the record.
    pub(crate) fn address(self) -> Address {
        address_of_entry(self.packing.entry(self.word))
    }

    pub(super) fn shard(self) -> u8 {
        self.shard
    }

    /// The entry that the index has for the record, if it is the last one of its key.
    pub(super) fn entry(self) -> u64 {
        self.packing.entry(self.word)
    }

    /// Whether the update can belong to the key with `hash`. If it cannot, the footer and the record disagree.
    pub(crate) fn may_belong_to(self, hash: u128) -> bool {
        shard_of(hash) == self.shard
            && self.packing.hash_bits(self.word)
                == self.packing.hash_bits(self.packing.word(hash, self.address()))
    }
}

/// Reserves memory for `more` words. A full vector grows by at least a quarter: the default doubling would take more memory than
/// the index itself.
fn reserve(words: &mut Vec<u64>, more: usize) {
    if words.capacity() - words.len() < more {
        words.reserve_exact(more.max(words.len() / 4));
    }
}

/// Sorts words by tag. The sort is stable: words with equal tags keep their order. It is a radix sort by the three bytes of the
/// tag, last byte first. `spare` is overwritten, and the two vectors swap their memory.
fn sort_by_tag(words: &mut Vec<u64>, spare: &mut Vec<u64>) {
    // The tag is the first three bytes of a word.
    const _: () = assert!(TAG_BITS == 3 * u8::BITS && TAG_BITS + ADDRESS_BITS == u64::BITS);
    if words.len() <= 1 {
        // The common case in small stores.
        spare.clone_from(words);
        return mem::swap(words, spare);
    }
    spare.resize(words.len(), 0);
    // All bytes are counted in one pass, because sorting does not change how often a value occurs.
    let mut counts = [[0_usize; 1 << u8::BITS]; 3];
    for word in &*words {
        let [first, second, third, ..] = word.to_be_bytes().map(usize::from);
        counts[0][first] += 1;
        counts[1][second] += 1;
        counts[2][third] += 1;
    }
    for byte in [2, 1, 0] {
        let digit = |word: u64| usize::from(word.to_be_bytes()[byte]);
        let next = &mut counts[byte];
        let mut start = 0;
        for count in &mut *next {
            start += mem::replace(count, start);
        }
        for word in &*words {
            let at = &mut next[digit(*word)];
            spare[*at] = *word;
            *at += 1;
        }
        mem::swap(words, spare);
    }
}

/// Turns sorted words into entries. Keeps the last word of each key, unless that word is among `removals`, which are sorted too.
fn deduplicate<W, E>(
    packing: Packing,
    words: &mut Vec<u64>,
    mut removals: &[u64],
    mut look: impl FnMut(u64) -> Result<(u128, W), E>,
    mut mark_dead: impl FnMut(&W),
) -> Result<(), E> {
    // Words are unique, because each has the address of its own record. So a removal matches exactly one word.
    let mut update = |word: u64| {
        let removes = removals.first() == Some(&word);
        removals = &removals[usize::from(removes)..];
        IndexUpdate { word, removes }
    };
    let (mut at, mut kept) = (0, 0);
    while let Some(&word) = words.get(at) {
        let shares_tag = |other: &u64| tag_of_entry(*other) == tag_of_entry(word);
        // Nearly every word has a tag of its own.
        if !words.get(at + 1).is_some_and(shares_tag) {
            words[kept] = packing.entry(word);
            kept += usize::from(!update(word).removes);
            at += 1;
            continue;
        }
        let same = words[at..].iter().take_while(|other| shares_tag(other)).count();
        let updates = words[at..at + same].iter().map(|word| update(*word));
        let latest = if same <= MAX_COMPARED_PAIRWISE {
            latest_of_few(packing, updates, &mut look, &mut mark_dead)
        } else {
            latest_of_each_key(packing, updates, &mut look, &mut mark_dead)
        };
        for word in latest? {
            words[kept] = packing.entry(word);
            kept += 1;
        }
        at += same;
    }
    words.truncate(kept);
    Ok(())
}

/// The latest update of a key so far.
struct Latest<W> {
    word: u64,
    /// What `look` returned for its record, if it was read.
    seen: Option<(u128, W)>,
}

impl<W> Latest<W> {
    fn new(word: u64) -> Latest<W> {
        Latest { word, seen: None }
    }

    /// The hash of the key. The first call reads the record.
    fn hash<E>(&mut self, look: &mut impl FnMut(u64) -> Result<(u128, W), E>) -> Result<u128, E> {
        if let Some((hash, _)) = &self.seen {
            return Ok(*hash);
        }
        let (hash, value) = look(self.word)?;
        self.seen = Some((hash, value));
        Ok(hash)
    }
}

/// The maximum number of updates with the same tag that are compared pairwise, which is faster than a map.
const MAX_COMPARED_PAIRWISE: usize = 8;

/// Does what [`latest_of_each_key`] does, for a few updates.
fn latest_of_few<W, E>(
    packing: Packing,
    updates: impl Iterator<Item = IndexUpdate>,
    look: &mut impl FnMut(u64) -> Result<(u128, W), E>,
    mark_dead: &mut impl FnMut(&W),
) -> Result<Vec<u64>, E> {
    let mut latest: Vec<Latest<W>> = Vec::new();
    for IndexUpdate { word, removes } in updates {
        let mut new = Latest::new(word);
        for at in 0..latest.len() {
            let old = &mut latest[at];
            if packing.hash_bits(old.word) == packing.hash_bits(word) && old.hash(look)? == new.hash(look)? {
                if let Some((_, value)) = &old.seen {
                    mark_dead(value);
                }
                latest.swap_remove(at);
                break;
            }
        }
        if !removes {
            latest.push(new);
        }
    }
    Ok(latest.into_iter().map(|update| update.word).collect())
}

/// The latest update of each key, for the keys whose words hold equal bits of the hash.
enum Alike<W> {
    /// One update. Its record need not be read.
    One(Latest<W>),
    /// Updates by the hash of their key.
    Several(HashMap<u128, Latest<W>>),
}

/// Given updates that share a tag, returns the last word of each key that keeps an entry.
///
/// Each update costs one look-up in a map, even in a file that was forged so that all of its keys share a tag. Maps of the standard
/// library are used, because a forger cannot know their random seeds.
fn latest_of_each_key<W, E>(
    packing: Packing,
    updates: impl Iterator<Item = IndexUpdate>,
    look: &mut impl FnMut(u64) -> Result<(u128, W), E>,
    mark_dead: &mut impl FnMut(&W),
) -> Result<Vec<u64>, E> {
    let mut latest: HashMap<u64, Alike<W>> = HashMap::new();
    for IndexUpdate { word, removes } in updates {
        let mut new = Latest::new(word);
        let mut alike = match latest.entry(packing.hash_bits(word)) {
            Entry::Vacant(vacant) => {
                if !removes {
                    vacant.insert(Alike::One(new));
                }
                continue;
            }
            Entry::Occupied(occupied) => occupied,
        };
        if let Alike::One(old) = alike.get_mut() {
            let mut old = Latest { word: old.word, seen: old.seen.take() };
            let hash = old.hash(look)?;
            alike.insert(Alike::Several(HashMap::from([(hash, old)])));
        }
        let Alike::Several(several) = alike.get_mut() else { continue };
        let hash = new.hash(look)?;
        if let Some(Latest { seen: Some((_, value)), .. }) = several.remove(&hash) {
            mark_dead(&value);
        }
        if !removes {
            several.insert(hash, new);
        } else if several.is_empty() {
            alike.remove();
        }
    }
    let words = latest.into_values().flat_map(|alike| match alike {
        Alike::One(update) => vec![update.word],
        Alike::Several(several) => several.into_values().map(|update| update.word).collect(),
    });
    Ok(words.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::entry::{entry_of, tag_of_hash};
    use super::super::{Index, SHARD_COUNT};
    use super::*;

    fn address(number: usize) -> Address {
        Address::new(8 + 8 * number as u64).unwrap()
    }

    fn number_at(address: Address) -> usize {
        usize::try_from(address.offset() / 8 - 1).unwrap()
    }

    /// One packing with short addresses and many bits of the hash, and one whose words hold only the tag.
    const PACKINGS: [Packing; 2] = [Packing { address_bits: 20 }, Packing { address_bits: ADDRESS_BITS }];

    impl IndexUpdate {
        fn new(packing: Packing, hash: u128, address: Address, keeps_key: bool) -> IndexUpdate {
            IndexUpdate { word: packing.word(hash, address), removes: !keeps_key }
        }
    }

    fn append(gathered: &mut ShardUpdates, updates: &[IndexUpdate]) {
        let words: Vec<_> = updates.iter().map(|update| update.word).collect();
        let removals: Vec<_> =
            updates.iter().filter(|update| update.removes).map(|update| update.word).collect();
        gathered.append(&words, removals.into_iter(), std::iter::empty());
    }

    fn shard_updates(
        packing: Packing,
        shard: u8,
        updates: impl IntoIterator<Item = IndexUpdate>,
    ) -> ShardUpdates {
        let mut gathered = ShardUpdates::new(packing, shard);
        append(&mut gathered, &updates.into_iter().collect::<Vec<_>>());
        gathered
    }

    /// Hashes in shard 7. Any two of them may share the tag, all bits that a word holds, or neither.
    fn colliding_hash() -> impl Strategy<Value = u128> {
        let tag = prop_oneof![Just(0), Just(1), Just(0x80_0000), Just(0xFF_FFFF), 0..0x100_0000_u128];
        (tag, prop_oneof![Just(0), Just(0xFFFF), 0..0x1_0000_u128], 0..3_u128)
            .prop_map(|(tag, more, rest)| 7 << 120 | tag << 96 | more << 76 | rest)
    }

    /// Pseudorandom hashes, the same in every run.
    fn random_hash(number: usize) -> u128 {
        let mut bits = (number as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        bits ^= bits >> 61;
        bits.wrapping_mul(0xBF58_476D_1CE4_E5B9_94D0_49BB_1331_11EB)
    }

    fn in_shard(shard: u8, number: usize) -> u128 {
        random_hash(number) & (u128::MAX >> 8) | u128::from(shard) << 120
    }

    fn no_look(candidate: Candidate) -> Result<(u128, ()), Address> {
        Err(candidate.address())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_last_update_of_each_key_wins_and_replaced_records_are_marked_dead(
            hashes in prop::collection::vec(colliding_hash(), 1..40),
            picks in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.8)), 0..200),
            pieces in 1..5_usize,
            expected in 0..300_usize,
            packing in prop::sample::select(&PACKINGS[..]),
        ) {
            let updates: Vec<(u128, bool)> = picks.iter().map(|(pick, leaves)| (*pick.get(&hashes), *leaves)).collect();
            let mut model: BTreeMap<u128, usize> = BTreeMap::new();
            let mut replaced = Vec::new();
            for (number, (hash, leaves)) in updates.iter().enumerate() {
                replaced.extend(model.remove(hash));
                if *leaves {
                    model.insert(*hash, number);
                }
            }

            let index = Index::new();
            let mut gathered = ShardUpdates::new(packing, 7).expecting(expected);
            let new = |(number, (hash, leaves)): (usize, &(u128, bool))| {
                IndexUpdate::new(packing, *hash, address(number), *leaves)
            };
            let all: Vec<IndexUpdate> = updates.iter().enumerate().map(new).collect();
            for piece in all.chunks(all.len().div_ceil(pieces).max(1)) {
                append(&mut gathered, piece);
            }
            let mut dead = Vec::new();
            let look = |candidate: Candidate| {
                let number = number_at(candidate.address());
                assert!(candidate.may_belong_to(updates[number].0) && !candidate.may_belong_to(updates[number].0 ^ 1 << 127));
                Ok::<_, Infallible>((updates[number].0, number))
            };
            let mark_dead = |number: &usize| dead.push(*number);
            index.fill(gathered, &mut Vec::new(), look, mark_dead).unwrap();

            for hash in &hashes {
                let mut found = Vec::new();
                index.find(*hash, |at| -> Option<()> {
                    let number = number_at(at);
                    found.extend((updates[number].0 == *hash).then_some(number));
                    None
                });
                prop_assert_eq!(found, model.get(hash).copied().into_iter().collect::<Vec<_>>());
            }
            prop_assert_eq!(index.len(), model.len());
            replaced.sort_unstable();
            dead.sort_unstable();
            prop_assert_eq!(dead, replaced);
        }

        #[test]
        fn sorting_by_tag_is_stable(
            tags in prop::collection::vec(prop_oneof![0..0x100_0000_u64, 0..3_u64, (0..3_u64).prop_map(|n| n << 16)], 0..500),
        ) {
            let words: Vec<u64> = (0..).zip(&tags).map(|(at, tag)| tag << ADDRESS_BITS | (500 - at)).collect();
            let mut sorted = words.clone();
            sort_by_tag(&mut sorted, &mut Vec::new());
            let mut expected = words;
            expected.sort_by_key(|word| word >> ADDRESS_BITS);
            prop_assert_eq!(sorted, expected);
        }

        #[test]
        fn a_word_becomes_the_entry_of_its_tag_and_address(
            hash: u128,
            units in prop_oneof![1..1_u64 << 20, 1..1_u64 << 40, Just((1 << 40) - 1)],
        ) {
            let address = Address::new(units * ADDRESS_UNIT_BYTES).unwrap();
            for end in [address.offset() + 1, (address.offset() * 2).min(8 << 40), 8 << 40] {
                let packing = Packing::for_addresses_below(end);
                let entry = packing.entry(packing.word(hash, address));
                prop_assert_eq!(entry, entry_of(tag_of_hash(hash), address), "below {}", end);
            }
        }
    }

    #[test]
    fn records_that_differ_in_the_extra_hash_bits_are_not_read() {
        let index = Index::new();
        let packing = Packing::for_addresses_below(5 << 30);
        let hashes: Vec<u128> = (0..1 << 10).map(|more| 7 << 120 | 5 << 96 | more << 86).collect();
        let updates =
            (0..).zip(&hashes).map(|(at, hash)| IndexUpdate::new(packing, *hash, address(at), at != 3));
        index.fill(shard_updates(packing, 7, updates), &mut Vec::new(), no_look, |()| {}).unwrap();
        assert_eq!(index.len(), hashes.len() - 1, "one update removes its key");
    }

    #[test]
    fn each_record_is_read_once_even_if_many_words_are_equal() {
        const COUNT: usize = 100_000;
        let of_the_same_key = |_: usize| 7_u128 << 120;
        let of_keys_with_equal_words = |number: usize| 7_u128 << 120 | number as u128;
        for hash in [&of_the_same_key as &dyn Fn(usize) -> u128, &of_keys_with_equal_words] {
            let index = Index::new();
            let updates = (0..COUNT).map(|at| IndexUpdate::new(PACKINGS[0], hash(at), address(at), true));
            let (mut looked, mut dead) = (0, 0);
            let look = |candidate: Candidate| {
                looked += 1;
                Ok::<_, Infallible>((hash(number_at(candidate.address())), ()))
            };
            let updates = shard_updates(PACKINGS[0], 7, updates);
            index.fill(updates, &mut Vec::new(), look, |()| dead += 1).unwrap();
            assert_eq!(looked, COUNT);
            assert_eq!(index.len() + dead, COUNT);
        }
    }

    #[test]
    fn filling_stops_at_the_first_read_error() {
        let index = Index::new();
        let hash = in_shard(7, 1);
        let updates = [4, 5].map(|at| IndexUpdate::new(PACKINGS[0], hash, address(at), true));
        let updates = shard_updates(PACKINGS[0], 7, updates);
        let refused = index.fill(updates, &mut Vec::new(), no_look, |()| {});
        assert_eq!(refused, Err(address(4)));
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn a_filled_index_is_at_most_a_tenth_larger_than_a_grown_one() {
        let mut spare = Vec::new();
        for expected in [0, 10, 300, 10_000] {
            let (filled, grown) = (Index::new(), Index::new());
            for shard in 0..=u8::MAX {
                let mut gathered = ShardUpdates::new(PACKINGS[0], shard).expecting(expected);
                for at in 0..300 {
                    append(
                        &mut gathered,
                        &[IndexUpdate::new(PACKINGS[0], in_shard(shard, at), address(at), true)],
                    );
                    grown.insert(in_shard(shard, at), address(at));
                }
                filled.fill(gathered, &mut spare, no_look, |()| {}).unwrap();
                assert!((0..300).all(|at| filled.holds(in_shard(shard, at), address(at))));
            }
            assert_eq!(filled.len(), 300 * SHARD_COUNT);
            assert!(filled.allocated_bytes() < grown.allocated_bytes() * 11 / 10, "{expected}");
        }
    }

    #[test]
    fn a_table_reuses_the_memory_of_its_gathered_updates() {
        // If shards have 1,000 updates on average, about one shard in ten thousand has more than 1,120.
        let updates =
            (0..1_120).map(|at| IndexUpdate::new(PACKINGS[0], in_shard(200, at), address(at), true));
        let mut gathered = ShardUpdates::new(PACKINGS[0], 200).expecting(1_000);
        let reserved = gathered.words.capacity();
        assert!(reserved < 1_600, "{reserved}");
        append(&mut gathered, &updates.collect::<Vec<_>>());
        let table = gathered.into_table(&mut Vec::new(), no_look, |()| {}).unwrap();
        assert!(table.buckets.len() <= reserved, "{} buckets in {reserved} words", table.buckets.len());
    }

    #[test]
    fn an_unreserved_buffer_wastes_little_memory_and_rarely_reallocates() {
        let mut gathered = ShardUpdates::new(PACKINGS[0], 200).expecting(0);
        assert_eq!(gathered.words.capacity(), 0);
        let mut moved = 0;
        for piece in 1..=1_000 {
            let before = gathered.words.capacity();
            append(&mut gathered, &[IndexUpdate { word: 1, removes: true }; 10]);
            moved += usize::from(gathered.words.capacity() != before);
            for words in [&gathered.words, &gathered.removals] {
                assert!(words.capacity() <= piece * 10 * 5 / 4 + 10);
            }
        }
        assert!(moved < 40, "{moved}");
    }

    #[test]
    fn a_shard_filled_with_nothing_takes_no_memory_and_can_grow() {
        let index = Index::new();
        let empty_bytes = index.allocated_bytes();
        let removal = IndexUpdate::new(PACKINGS[0], in_shard(9, 1), address(1), false);
        index.fill(shard_updates(PACKINGS[0], 9, [removal]), &mut Vec::new(), no_look, |()| {}).unwrap();
        assert_eq!(index.allocated_bytes(), empty_bytes);
        index.insert(in_shard(9, 1), address(1));
        assert!(index.holds(in_shard(9, 1), address(1)));
    }
}
