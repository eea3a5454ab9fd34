//! A shard of the index while opening fills it.
//!
//! Nobody asks for a key before all of them are known, so opening searches for none. What footers and frames say is
//! gathered in the order of the log, put into the order of tags once all of it is there, and laid out as a table in one
//! pass, in the memory in which it was gathered. Only what shares a tag is compared: it may be of one key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;

use super::entry::{
    ADDRESS_BITS, ADDRESS_UNIT_BYTES, Address, TAG_BITS, address_of_entry, shard_of, tag_of_entry,
};
use super::table::Table;

/// How a word holds what a record says: the address takes as many bits as the longest needs, and the hash behind the
/// shard's number all of the others. That is the tag, and more of the hash than an entry has, unless the file is as long as
/// addresses reach. Among ten million keys twelve thousand pairs share shard and tag, and to tell two keys apart by their
/// records takes as long as a hundred others take, or a hundred thousand if the records are not in the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing {
    address_bits: u32,
}

impl Packing {
    /// For addresses below `end_bytes`.
    pub(crate) fn for_addresses_below(end_bytes: u64) -> Packing {
        let units = end_bytes.div_ceil(ADDRESS_UNIT_BYTES);
        Packing { address_bits: (u64::BITS - units.leading_zeros()).min(ADDRESS_BITS) }
    }

    fn address_mask(self) -> u64 {
        (1 << self.address_bits) - 1
    }

    fn word(self, hash: u128, address: Address) -> u64 {
        let units = address.offset() / ADDRESS_UNIT_BYTES;
        debug_assert!(units <= self.address_mask(), "an address beyond those that were promised");
        let [_, hash @ .., _, _, _, _, _, _, _] = hash.to_be_bytes();
        u64::from_be_bytes(hash) & !self.address_mask() | units
    }

    /// The entry that a word becomes.
    fn entry(self, word: u64) -> u64 {
        tag_of_entry(word) << ADDRESS_BITS | word & self.address_mask()
    }

    /// What a word says of the hash. Two words can be of one key if they say the same, and are if their hashes agree.
    fn hash_bits(self, word: u64) -> u64 {
        word & !self.address_mask()
    }
}

/// What a record does to its key's entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct IndexUpdate {
    word: u64,
    /// It leaves no entry.
    ends: bool,
}

impl IndexUpdate {
    /// The step of a record at `address`, of the key with `hash`.
    pub(crate) fn new(packing: Packing, hash: u128, address: Address, leaves_something: bool) -> IndexUpdate {
        IndexUpdate { word: packing.word(hash, address), ends: !leaves_something }
    }
}

/// The steps of a shard, in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    words: Vec<u64>,
    /// The words, again, of those that leave no entry: few, unless the store was closed for as long as it remembers.
    ended: Vec<u64>,
}

impl Gathered {
    /// With room for the table of `shard` that `expected` steps become, or some more of them, because shards are not equally
    /// full. Where it is too much, most of it is never touched; where it is too little, memory is moved, and leaves holes
    /// that nothing else fits into. Either way it is given back in the end.
    pub(crate) fn expecting(expected: usize, shard: u8) -> Gathered {
        let mut gathered = Gathered::default();
        if expected > 0 {
            let room = Table::room_for(expected + 4 * expected.isqrt(), shard);
            // Only a guess: without room, memory is found as it is needed.
            let _ = gathered.words.try_reserve_exact(room);
        }
        gathered
    }

    /// Takes what comes next in the log.
    pub(crate) fn append(&mut self, steps: &[IndexUpdate]) {
        make_room(&mut self.words, steps.len());
        self.words.extend(steps.iter().map(|step| step.word));
        let ended = || steps.iter().filter(|step| step.ends).map(|step| step.word);
        make_room(&mut self.ended, ended().count());
        self.ended.extend(ended());
    }

    /// The table of `shard` that the steps make. `spare` is room to sort them in. `look` says what hash the key of a
    /// record has, and something else about it that `bury` is given when another takes its place.
    pub(super) fn into_table<W, E>(
        mut self,
        packing: Packing,
        shard: u8,
        spare: &mut Vec<u64>,
        mut look: impl FnMut(Candidate) -> Result<(u128, W), E>,
        mark_dead: impl FnMut(&W),
    ) -> Result<Table, E> {
        sort_by_tag(&mut self.words, spare);
        sort_by_tag(&mut self.ended, &mut Vec::new());
        // The memory in which they were gathered, which has room for the table if so many were expected.
        let room = mem::replace(spare, self.words);
        let entries = spare;
        let look = |word| look(Candidate { packing, shard, word });
        deduplicate(packing, entries, &self.ended, look, mark_dead)?;
        if entries.is_empty() {
            return Ok(Table::default());
        }
        let capacity = Table::capacity_for(entries.len(), shard);
        Ok(Table::lay_out(entries.iter().copied(), capacity, room))
    }
}

/// A record that has to be looked at, to tell its key from others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    packing: Packing,
    shard: u8,
    word: u64,
}

impl Candidate {
    /// Where it is.
    pub(crate) fn address(self) -> Address {
        address_of_entry(self.packing.entry(self.word))
    }

    /// Whether what was gathered of it can be of the key with `hash`. If not, footer and record contradict each other.
    pub(crate) fn may_be_of(self, hash: u128) -> bool {
        shard_of(hash) == self.shard
            && self.packing.hash_bits(self.word)
                == self.packing.hash_bits(self.packing.word(hash, self.address()))
    }
}

/// Makes room for so many more, and where that takes memory, for a quarter more: twice as many, as vectors grow by
/// themselves, would take more than the index does.
fn make_room(words: &mut Vec<u64>, more: usize) {
    if words.capacity() - words.len() < more {
        words.reserve_exact(more.max(words.len() / 4));
    }
}

/// Sorts words by tag, and leaves those with one tag in the order in which they are: by the tag's last byte, the one before
/// it and the first. What was in `spare` is lost, and the memory of the two changes hands.
fn sort_by_tag(words: &mut Vec<u64>, spare: &mut Vec<u64>) {
    // The tag's bytes are the first of a word.
    const _: () = assert!(TAG_BITS == 3 * u8::BITS && TAG_BITS + ADDRESS_BITS == u64::BITS);
    if words.len() <= 1 {
        // As the shards of small stores are.
        spare.clone_from(words);
        return mem::swap(words, spare);
    }
    spare.resize(words.len(), 0);
    for byte in [2, 1, 0] {
        let digit = |word: u64| usize::from(word.to_be_bytes()[byte]);
        let mut next = [0_usize; 1 << u8::BITS];
        for word in &*words {
            next[digit(*word)] += 1;
        }
        let mut start = 0;
        for count in &mut next {
            start += mem::replace(count, start);
        }
        for word in &*words {
            let place = &mut next[digit(*word)];
            spare[*place] = *word;
            *place += 1;
        }
        mem::swap(words, spare);
    }
}

/// Makes entries of sorted words, and leaves the last of each key, if that is not among the `ended`, which are sorted too.
fn deduplicate<W, E>(
    packing: Packing,
    words: &mut Vec<u64>,
    ended: &[u64],
    mut look: impl FnMut(u64) -> Result<(u128, W), E>,
    mut mark_dead: impl FnMut(&W),
) -> Result<(), E> {
    let mut ended = ended.iter().peekable();
    // No two words are alike: each has the address of a record of its own.
    let mut step = |word: u64| IndexUpdate { word, ends: ended.next_if_eq(&&word).is_some() };
    let (mut at, mut kept) = (0, 0);
    while at < words.len() {
        let tag = tag_of_entry(words[at]);
        let same = words[at..].iter().take_while(|word| tag_of_entry(**word) == tag).count();
        if same == 1 {
            let step = step(words[at]);
            words[kept] = packing.entry(step.word);
            kept += usize::from(!step.ends);
        } else {
            let steps = words[at..at + same].iter().map(|word| step(*word));
            let lasts = if same <= COMPARED_WITH_EACH_OTHER {
                last_of_each_of_few(packing, steps, &mut look, &mut mark_dead)
            } else {
                last_of_each_key(packing, steps, &mut look, &mut mark_dead)
            };
            for word in lasts? {
                words[kept] = packing.entry(word);
                kept += 1;
            }
        }
        at += same;
    }
    words.truncate(kept);
    Ok(())
}

/// The last step of its key so far, and what its record says, if it has been looked at.
struct Last<W> {
    word: u64,
    seen: Option<(u128, W)>,
}

impl<W> Last<W> {
    fn new(word: u64) -> Last<W> {
        Last { word, seen: None }
    }

    fn hash<E>(&mut self, look: &mut impl FnMut(u64) -> Result<(u128, W), E>) -> Result<u128, E> {
        if let Some((hash, _)) = &self.seen {
            return Ok(*hash);
        }
        let (hash, about) = look(self.word)?;
        self.seen = Some((hash, about));
        Ok(hash)
    }
}

/// So many steps that share a tag, or fewer, are compared with each other: that is faster than a map.
const COMPARED_WITH_EACH_OTHER: usize = 8;

/// [`last_of_each_key`] of a few steps.
fn last_of_each_of_few<W, E>(
    packing: Packing,
    steps: impl Iterator<Item = IndexUpdate>,
    look: &mut impl FnMut(u64) -> Result<(u128, W), E>,
    mark_dead: &mut impl FnMut(&W),
) -> Result<Vec<u64>, E> {
    let mut lasts: Vec<Last<W>> = Vec::new();
    for IndexUpdate { word, ends } in steps {
        let mut new = Last::new(word);
        for at in 0..lasts.len() {
            let old = &mut lasts[at];
            if packing.hash_bits(old.word) == packing.hash_bits(word) && old.hash(look)? == new.hash(look)? {
                if let Some((_, about)) = &old.seen {
                    mark_dead(about);
                }
                lasts.swap_remove(at);
                break;
            }
        }
        if !ends {
            lasts.push(new);
        }
    }
    Ok(lasts.into_iter().map(|last| last.word).collect())
}

/// The last steps of keys of which their words say the same.
enum Alike<W> {
    /// There is one, and its record need not be looked at.
    One(Last<W>),
    /// By their hashes.
    Several(HashMap<u128, Last<W>>),
}

/// Of steps that share a tag, the words of those that leave an entry.
///
/// Each step costs one search, however many there are and whatever their hashes: a file may have been made so that all of
/// them share a tag. The maps are those of the standard library, whose order no file can know beforehand.
fn last_of_each_key<W, E>(
    packing: Packing,
    steps: impl Iterator<Item = IndexUpdate>,
    look: &mut impl FnMut(u64) -> Result<(u128, W), E>,
    mark_dead: &mut impl FnMut(&W),
) -> Result<Vec<u64>, E> {
    let mut lasts: HashMap<u64, Alike<W>> = HashMap::new();
    for IndexUpdate { word, ends } in steps {
        let mut new = Last::new(word);
        let mut place = match lasts.entry(packing.hash_bits(word)) {
            Entry::Vacant(place) => {
                if !ends {
                    place.insert(Alike::One(new));
                }
                continue;
            }
            Entry::Occupied(place) => place,
        };
        if let Alike::One(old) = place.get_mut() {
            let mut old = Last { word: old.word, seen: old.seen.take() };
            let hash = old.hash(look)?;
            place.insert(Alike::Several(HashMap::from([(hash, old)])));
        }
        let Alike::Several(several) = place.get_mut() else { continue };
        let hash = new.hash(look)?;
        if let Some(Last { seen: Some((_, about)), .. }) = several.remove(&hash) {
            mark_dead(&about);
        }
        if !ends {
            several.insert(hash, new);
        } else if several.is_empty() {
            place.remove();
        }
    }
    let words = lasts.into_values().flat_map(|alike| match alike {
        Alike::One(last) => vec![last.word],
        Alike::Several(several) => several.into_values().map(|last| last.word).collect(),
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

    /// Room for addresses of some thousand records, and as much of the hash as is possible; and for none but the tag.
    const PACKINGS: [Packing; 2] = [Packing { address_bits: 20 }, Packing { address_bits: ADDRESS_BITS }];

    fn gathered(steps: impl IntoIterator<Item = IndexUpdate>) -> Gathered {
        let mut gathered = Gathered::default();
        gathered.append(&steps.into_iter().collect::<Vec<_>>());
        gathered
    }

    /// Hashes of shard 7 that have much in common: the tag, or the tag and all that a word holds, or nothing.
    fn colliding_hash() -> impl Strategy<Value = u128> {
        let tag = prop_oneof![Just(0), Just(1), Just(0x80_0000), Just(0xFF_FFFF), 0..0x100_0000_u128];
        (tag, prop_oneof![Just(0), Just(0xFFFF), 0..0x1_0000_u128], 0..3_u128)
            .prop_map(|(tag, more, rest)| 7 << 120 | tag << 96 | more << 76 | rest)
    }

    /// Numbers spread over all of their bits, the same in every run.
    fn random_hash(number: usize) -> u128 {
        let mut bits = (number as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        bits ^= bits >> 61;
        bits.wrapping_mul(0xBF58_476D_1CE4_E5B9_94D0_49BB_1331_11EB)
    }

    fn in_shard(shard: u8, number: usize) -> u128 {
        random_hash(number) & (u128::MAX >> 8) | u128::from(shard) << 120
    }

    fn nobody_looks(candidate: Candidate) -> Result<(u128, ()), Address> {
        Err(candidate.address())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_left_is_the_last_of_each_key_and_each_that_it_replaced_is_told_of_once(
            hashes in prop::collection::vec(colliding_hash(), 1..40),
            picks in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.8)), 0..200),
            pieces in 1..5_usize,
            expected in 0..300_usize,
            packing in prop::sample::select(&PACKINGS[..]),
        ) {
            let steps: Vec<(u128, bool)> = picks.iter().map(|(pick, leaves)| (*pick.get(&hashes), *leaves)).collect();
            let mut model: BTreeMap<u128, usize> = BTreeMap::new();
            let mut replaced = Vec::new();
            for (number, (hash, leaves)) in steps.iter().enumerate() {
                replaced.extend(model.remove(hash));
                if *leaves {
                    model.insert(*hash, number);
                }
            }

            let index = Index::new();
            let mut gathered = Gathered::expecting(expected, 7);
            let new = |(number, (hash, leaves)): (usize, &(u128, bool))| {
                IndexUpdate::new(packing, *hash, address(number), *leaves)
            };
            let all: Vec<IndexUpdate> = steps.iter().enumerate().map(new).collect();
            for piece in all.chunks(all.len().div_ceil(pieces).max(1)) {
                gathered.append(piece);
            }
            let mut buried = Vec::new();
            let look = |candidate: Candidate| {
                let number = number_at(candidate.address());
                assert!(candidate.may_be_of(steps[number].0) && !candidate.may_be_of(steps[number].0 ^ 1 << 127));
                Ok::<_, Infallible>((steps[number].0, number))
            };
            let mark_dead = |number: &usize| buried.push(*number);
            index.fill(packing, 7, gathered, &mut Vec::new(), look, mark_dead).unwrap();

            for hash in &hashes {
                let mut found = Vec::new();
                index.find(*hash, |at| -> Option<()> {
                    let number = number_at(at);
                    found.extend((steps[number].0 == *hash).then_some(number));
                    None
                });
                prop_assert_eq!(found, model.get(hash).copied().into_iter().collect::<Vec<_>>());
            }
            prop_assert_eq!(index.len(), model.len());
            replaced.sort_unstable();
            buried.sort_unstable();
            prop_assert_eq!(buried, replaced);
        }

        #[test]
        fn words_are_sorted_by_their_tags_and_as_they_came_under_each(
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
        fn a_word_becomes_the_entry_of_its_tag_and_address_however_long_the_file(
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
    fn keys_of_one_tag_are_told_apart_by_more_of_their_hashes_and_their_records_not_looked_at() {
        let index = Index::new();
        let packing = Packing::for_addresses_below(5 << 30);
        let hashes: Vec<u128> = (0..1 << 10).map(|more| 7 << 120 | 5 << 96 | more << 86).collect();
        let steps =
            (0..).zip(&hashes).map(|(at, hash)| IndexUpdate::new(packing, *hash, address(at), at != 3));
        index.fill(packing, 7, gathered(steps), &mut Vec::new(), nobody_looks, |()| {}).unwrap();
        assert_eq!(index.len(), hashes.len() - 1, "and one of them has ended");
    }

    #[test]
    fn each_record_is_looked_at_once_however_many_share_all_that_a_word_holds() {
        const COUNT: usize = 100_000;
        let of_one_key = |_: usize| 7_u128 << 120;
        let of_keys_that_are_alike = |number: usize| 7_u128 << 120 | number as u128;
        for hash in [&of_one_key as &dyn Fn(usize) -> u128, &of_keys_that_are_alike] {
            let index = Index::new();
            let steps = (0..COUNT).map(|at| IndexUpdate::new(PACKINGS[0], hash(at), address(at), true));
            let (mut looked, mut buried) = (0, 0);
            let look = |candidate: Candidate| {
                looked += 1;
                Ok::<_, Infallible>((hash(number_at(candidate.address())), ()))
            };
            index.fill(PACKINGS[0], 7, gathered(steps), &mut Vec::new(), look, |()| buried += 1).unwrap();
            assert_eq!(looked, COUNT);
            assert_eq!(index.len() + buried, COUNT);
        }
    }

    #[test]
    fn a_record_that_cannot_be_looked_at_is_no_reason_to_go_on() {
        let index = Index::new();
        let hash = in_shard(7, 1);
        let steps = [4, 5].map(|at| IndexUpdate::new(PACKINGS[0], hash, address(at), true));
        let refused = index.fill(PACKINGS[0], 7, gathered(steps), &mut Vec::new(), nobody_looks, |()| {});
        assert_eq!(refused, Err(address(4)));
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn a_shard_that_was_made_for_more_than_came_or_for_less_is_no_larger_than_one_that_grew() {
        let mut spare = Vec::new();
        for expected in [0, 10, 300, 10_000] {
            let (filled, grown) = (Index::new(), Index::new());
            for shard in 0..=u8::MAX {
                let mut gathered = Gathered::expecting(expected, shard);
                for at in 0..300 {
                    gathered.append(&[IndexUpdate::new(PACKINGS[0], in_shard(shard, at), address(at), true)]);
                    grown.insert(in_shard(shard, at), address(at));
                }
                filled.fill(PACKINGS[0], shard, gathered, &mut spare, nobody_looks, |()| {}).unwrap();
                assert!((0..300).all(|at| filled.holds(in_shard(shard, at), address(at))));
            }
            assert_eq!(filled.len(), 300 * SHARD_COUNT);
            assert!(filled.allocated_bytes() < grown.allocated_bytes() * 11 / 10, "{expected}");
        }
    }

    #[test]
    fn a_table_takes_the_memory_in_which_its_steps_were_gathered_also_where_there_are_some_more_than_expected()
     {
        // Of shards that have 1,000 each on average, all but one in some ten thousand have no more than that.
        let steps = (0..1_120).map(|at| IndexUpdate::new(PACKINGS[0], in_shard(200, at), address(at), true));
        let mut gathered = Gathered::expecting(1_000, 200);
        let room = gathered.words.capacity();
        assert!(room < 1_600, "{room}");
        gathered.append(&steps.collect::<Vec<_>>());
        let table = gathered.into_table(PACKINGS[0], 200, &mut Vec::new(), nobody_looks, |()| {}).unwrap();
        assert!(table.buckets.len() <= room, "{} in {room}", table.buckets.len());
    }

    #[test]
    fn what_nobody_expected_is_gathered_in_little_more_memory_than_it_takes_and_seldom_moved() {
        let mut gathered = Gathered::expecting(0, 200);
        assert_eq!(gathered.words.capacity(), 0);
        let mut moved = 0;
        for piece in 1..=1_000 {
            let before = gathered.words.capacity();
            gathered.append(&[IndexUpdate { word: 1, ends: true }; 10]);
            moved += usize::from(gathered.words.capacity() != before);
            for words in [&gathered.words, &gathered.ended] {
                assert!(words.capacity() <= piece * 10 * 5 / 4 + 10);
            }
        }
        assert!(moved < 40, "{moved}");
    }

    #[test]
    fn of_nothing_comes_a_table_without_memory_and_it_can_be_grown() {
        let index = Index::new();
        let empty_bytes = index.allocated_bytes();
        let ended = gathered([IndexUpdate::new(PACKINGS[0], in_shard(9, 1), address(1), false)]);
        index.fill(PACKINGS[0], 9, ended, &mut Vec::new(), nobody_looks, |()| {}).unwrap();
        assert_eq!(index.allocated_bytes(), empty_bytes);
        index.insert(in_shard(9, 1), address(1));
        assert!(index.holds(in_shard(9, 1), address(1)));
    }
}
