//! Builds the footer of the segment that is being written: a list of the last record of each key in that segment, in
//! the order of the log. Only the writer uses it, under the writer's lock.
//!
//! A segment may have millions of keys, so an entry is packed into 27 bytes, and found through hash tables of 4 bytes a
//! place. A record that supersedes an earlier one of its key takes that one's place and no more memory. The entries are
//! brought into the order of the log when the footer is written, which costs little, because most of them are in order. All
//! of it stays in memory: an entry has to describe its record even if the record cannot be read back.

use super::entry_classes::{self, EntryClasses, LENGTH_LOW_BITS, LowBits};
use crate::format::ALIGNMENT_BYTES;
use crate::format::footer::FooterEntry;
use crate::hash::{Domain, Scatter};

/// A footer entry without one byte of its hash, its tag, which is in the place that leads to the entry. In this order: 64
/// bits of the hash, 56 of its scattered half, 24 of the version, 24 of the expiry, 27 of the offset, 9 of the length, and
/// the number of the class, or [`UNPACKED`].
#[derive(Debug, Clone, Copy)]
struct PackedEntry([u8; 27]);

/// The number in place of a class that states that the bits of version and expiry are an index in `unpacked`.
const UNPACKED: u16 = (1 << 12) - 1;
const OFFSET_BITS: u32 = 27;
/// The number of entries that are allocated at once.
const CHUNK_ENTRIES: usize = 512;
/// The number of bits of the scattered half that determine the table.
const TABLE_BITS: u32 = 4;
const TABLES: usize = 1 << TABLE_BITS;

const _: () = assert!(crate::format::MAX_SEGMENT_BYTES / ALIGNMENT_BYTES <= 1 << OFFSET_BITS);
const _: () = assert!(OFFSET_BITS + LENGTH_LOW_BITS + 12 == 48);

/// The key of an entry, as tables find it.
#[derive(Debug, Clone, Copy)]
struct Located {
    /// The upper half of the hash.
    upper: u64,
    /// The lower half of the hash, scattered. The upper bits determine the table and the place, the lowest byte is the tag.
    scattered: u64,
}

impl Located {
    fn tag(self) -> u32 {
        low(self.scattered & 0xFF)
    }

    fn table(self) -> usize {
        low(self.scattered >> (64 - TABLE_BITS)) as usize
    }
}

impl PackedEntry {
    fn new(key: Located, low_bits: LowBits, offset_units: u32, class: u16) -> PackedEntry {
        let mut bytes = [0; 27];
        let place = u64::from(class) << (OFFSET_BITS + LENGTH_LOW_BITS)
            | u64::from(low_bits.length) << OFFSET_BITS
            | u64::from(offset_units);
        bytes[..8].copy_from_slice(&key.upper.to_le_bytes());
        bytes[8..15].copy_from_slice(&(key.scattered >> 8).to_le_bytes()[..7]);
        bytes[15..18].copy_from_slice(&low_bits.version.to_le_bytes()[..3]);
        bytes[18..21].copy_from_slice(&low_bits.expiry.to_le_bytes()[..3]);
        bytes[21..].copy_from_slice(&place.to_le_bytes()[..6]);
        PackedEntry(bytes)
    }

    /// The 8 bytes from `at`, as a number.
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|byte| self.0[at + byte]))
    }

    fn key(&self, tag: u32) -> Located {
        Located { upper: self.word(0), scattered: self.word(7) & !0xFF | u64::from(tag) }
    }

    fn is_of(&self, key: Located) -> bool {
        self.word(0) == key.upper && self.word(7) >> 8 == key.scattered >> 8
    }

    fn low_bits(&self) -> LowBits {
        let both = self.word(13) >> 16;
        let length = self.word(19) >> (16 + OFFSET_BITS);
        LowBits {
            version: low(both & 0xFF_FFFF),
            expiry: low(both >> 24),
            length: low(length & ((1 << LENGTH_LOW_BITS) - 1)),
        }
    }

    fn offset_units(&self) -> u32 {
        low(self.word(19) >> 16) & ((1 << OFFSET_BITS) - 1)
    }

    fn class(&self) -> u16 {
        u16::from_le_bytes([self.0[25], self.0[26]]) >> 4
    }

    /// The index in `unpacked`, if the entry is there.
    fn unpacked_at(&self) -> Option<usize> {
        let LowBits { version, expiry, .. } = self.low_bits();
        (self.class() == UNPACKED).then_some((expiry << 24 | version) as usize)
    }
}

/// A hash table of entries, with linear probing. A place is 0, or one more than the index of an entry and, in the upper 8
/// bits, the tag of that entry. Because of the tag, a search reads few entries of other keys, even in a table that is
/// 92% full.
#[derive(Debug, Default)]
struct Table {
    places: Vec<u32>,
    len: usize,
}

const INDEX_BITS: u32 = 24;
/// The minimum number of places of a table that grows by an eighth. The tables of a segment of 4 MiB stay smaller.
const MIN_SLOW_GROWTH: usize = 4_096;

impl Table {
    /// The place at which the search for a key begins.
    fn home(&self, key: Located) -> usize {
        let within = key.scattered << TABLE_BITS;
        usize::try_from((u128::from(within) * self.places.len() as u128) >> 64).unwrap_or(0)
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.places.len() { 0 } else { place + 1 }
    }

    /// Returns the place of the key's entry and its index, or the empty place where it belongs and None.
    fn find(&self, key: Located, entries: &Entries) -> (usize, Option<usize>) {
        let mut place = self.home(key);
        loop {
            match self.places[place] {
                0 => return (place, None),
                taken if taken >> INDEX_BITS == key.tag() && entries.at(index_of(taken)).is_of(key) => {
                    return (place, Some(index_of(taken)));
                }
                _ => place = self.after(place),
            }
        }
    }

    fn is_full(&self) -> bool {
        (self.len + 1) * 25 > self.places.len() * 23
    }

    /// Makes the table larger: a small one by a half, which costs less time, and others by an eighth. The first size depends
    /// on `number`, so that the tables do not all grow at the same time.
    fn grow(&mut self, number: usize, entries: &Entries) {
        let old = std::mem::take(&mut self.places);
        let size = match old.len() {
            0 => 4 + number % 4,
            small @ ..MIN_SLOW_GROWTH => small + (small / 2).max(4),
            large => large + large / 8,
        };
        self.places = vec![0; size];
        for taken in old.into_iter().filter(|taken| *taken != 0) {
            let mut place = self.home(entries.at(index_of(taken)).key(taken >> INDEX_BITS));
            while self.places[place] != 0 {
                place = self.after(place);
            }
            self.places[place] = taken;
        }
    }
}

/// The index of the entry to which a place leads.
fn index_of(taken: u32) -> usize {
    (taken & ((1 << INDEX_BITS) - 1)) as usize - 1
}

/// The entries, one for each key, in the order in which the keys came. Allocated in chunks, because a vector that doubles
/// would leave up to half of its memory unused.
#[derive(Debug, Default)]
struct Entries {
    chunks: Vec<Vec<PackedEntry>>,
    len: usize,
}

impl Entries {
    fn at(&self, at: usize) -> &PackedEntry {
        &self.chunks[at / CHUNK_ENTRIES][at % CHUNK_ENTRIES]
    }

    fn push(&mut self, entry: PackedEntry) {
        if self.len == self.chunks.len() * CHUNK_ENTRIES {
            // The first chunk grows as needed, because most segments of a store that is rarely used stay short.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK_ENTRIES };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks[self.len / CHUNK_ENTRIES].push(entry);
        self.len += 1;
    }
}

/// The entries of a future footer.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    entries: Entries,
    tables: [Table; TABLES],
    scatter: Scatter,
    classes: EntryClasses,
    /// The entries that are not packed, because there are too many classes.
    unpacked: Vec<FooterEntry>,
    /// The indices in `unpacked` that are not in use.
    free_unpacked: Vec<u32>,
}

impl FooterBuilder {
    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len
    }

    /// Adds the entry of a record that follows all others in the segment. It replaces an earlier entry of the same key.
    pub(crate) fn push(&mut self, entry: FooterEntry) {
        let key = self.locate(entry.hash);
        let number = key.table();
        if self.tables[number].is_full() {
            self.tables[number].grow(number, &self.entries);
        }
        let (place, earlier) = self.tables[number].find(key, &self.entries);
        if let Some(at) = earlier {
            let replaced = *self.entries.at(at);
            match replaced.unpacked_at() {
                Some(at) => self.free_unpacked.push(low(at as u64)),
                None => self.classes.leave(replaced.class()),
            }
        }
        let packed = self.pack(key, entry);
        if let Some(at) = earlier {
            self.entries.chunks[at / CHUNK_ENTRIES][at % CHUNK_ENTRIES] = packed;
            return;
        }
        self.entries.push(packed);
        let table = &mut self.tables[number];
        table.places[place] = key.tag() << INDEX_BITS | low(self.entries.len as u64);
        table.len += 1;
    }

    /// The entries, in the order of the log.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        let mut order = vec![0; self.len()];
        for taken in self.taken() {
            let at = index_of(taken);
            order[at] = u64::from(self.entries.at(at).offset_units()) << 32 | u64::from(taken);
        }
        order.sort_unstable();
        order.into_iter().map(|taken| self.unpack(low(taken)))
    }

    /// The entry of the record at `offset` in the slot.
    pub(crate) fn at_offset(&self, offset: u64) -> Option<FooterEntry> {
        let is_there = |taken: &u32| {
            u64::from(self.entries.at(index_of(*taken)).offset_units()) * ALIGNMENT_BYTES == offset
        };
        self.taken().find(is_there).map(|taken| self.unpack(taken))
    }

    /// Removes all entries and frees their memory: the next segment may have far fewer keys.
    pub(crate) fn clear(&mut self) {
        *self = FooterBuilder { scatter: self.scatter.clone(), ..FooterBuilder::default() };
    }

    /// The places in use of all tables.
    fn taken(&self) -> impl Iterator<Item = u32> {
        self.tables.iter().flat_map(|table| &table.places).copied().filter(|taken| *taken != 0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of the hash")]
    fn locate(&self, hash: u128) -> Located {
        Located { upper: (hash >> 64) as u64, scattered: self.scatter.scatter(hash as u64) }
    }

    fn pack(&mut self, key: Located, entry: FooterEntry) -> PackedEntry {
        let offset_units = low(entry.offset / ALIGNMENT_BYTES);
        let (class, low_bits) = entry_classes::split(&entry, entry.length / ALIGNMENT_BYTES);
        // The fields in which other records hold expiries differ from step to step, so classes of steps would displace all
        // others.
        let is_step = entry.kind.domain() == Some(Domain::Step);
        if let Some(number) = if is_step { None } else { self.classes.enter(class) } {
            return PackedEntry::new(key, low_bits, offset_units, number);
        }
        let at = self.free_unpacked.pop().unwrap_or(low(self.unpacked.len() as u64));
        match self.unpacked.get_mut(at as usize) {
            Some(free) => *free = entry,
            None => self.unpacked.push(entry),
        }
        let index = LowBits { version: at & 0xFF_FFFF, expiry: at >> 24, length: 0 };
        PackedEntry::new(key, index, offset_units, UNPACKED)
    }

    /// Unpacks the entry to which a place leads.
    fn unpack(&self, taken: u32) -> FooterEntry {
        let packed = self.entries.at(index_of(taken));
        if let Some(at) = packed.unpacked_at() {
            return self.unpacked[at];
        }
        let (class, low_bits) = (self.classes.get(packed.class()), packed.low_bits());
        let (key_expires_ms, result_expires_ms) = class.expiries(low_bits);
        let key = packed.key(taken >> INDEX_BITS);
        FooterEntry {
            hash: u128::from(key.upper) << 64 | u128::from(self.scatter.unscatter(key.scattered)),
            version: class.version(low_bits),
            key_expires_ms,
            result_expires_ms,
            offset: u64::from(packed.offset_units()) * ALIGNMENT_BYTES,
            length: class.length_units(low_bits) * ALIGNMENT_BYTES,
            kind: class.kind(),
        }
    }
}

/// The lower 32 bits. Every number that is passed here is less than that, or those are the bits that are wanted.
fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl FromIterator<FooterEntry> for FooterBuilder {
    fn from_iter<I: IntoIterator<Item = FooterEntry>>(entries: I) -> FooterBuilder {
        let mut footer_builder = FooterBuilder::default();
        for entry in entries {
            footer_builder.push(entry);
        }
        footer_builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NEVER_MS;
    use crate::format::record::Kind;
    use crate::status::Version;

    fn entry(hash: u128, offset: u64) -> FooterEntry {
        FooterEntry {
            hash,
            version: Version::from_u64(offset),
            key_expires_ms: 0,
            result_expires_ms: 0,
            offset,
            length: 88,
            kind: Kind::Begun,
        }
    }

    #[test]
    fn the_footer_has_the_last_record_of_each_key_in_log_order() {
        let mut footer_builder: FooterBuilder =
            [entry(1, 800), entry(2, 1600), entry(1, 2400), entry(3, 3200), entry(1, 4000)]
                .into_iter()
                .collect();
        let listed = |footer_builder: &FooterBuilder| {
            footer_builder.iter().map(|entry| (entry.hash, entry.offset)).collect::<Vec<_>>()
        };
        assert_eq!(listed(&footer_builder), [(2, 1600), (3, 3200), (1, 4000)]);
        assert_eq!(footer_builder.len(), 3);
        footer_builder.clear();
        assert_eq!((footer_builder.len(), listed(&footer_builder)), (0, vec![]));
        footer_builder.push(entry(1, 800));
        assert_eq!(listed(&footer_builder), [(1, 800)], "an entry from before the clear must not remain");
    }

    fn allocated_bytes(builder: &FooterBuilder) -> usize {
        let chunks = &builder.entries.chunks;
        chunks.iter().map(|chunk| chunk.capacity() * size_of::<PackedEntry>()).sum::<usize>()
            + size_of::<Vec<PackedEntry>>() * chunks.capacity()
            + builder.tables.iter().map(|table| 4 * table.places.capacity()).sum::<usize>()
            + builder.classes.allocated_bytes()
            + size_of::<FooterEntry>() * builder.unpacked.capacity()
            + 4 * builder.free_unpacked.capacity()
    }

    /// Like the hashes of keys, all bits of these are in use.
    fn hash_of(number: u64) -> u128 {
        u128::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    }

    #[test]
    fn every_entry_is_returned_as_it_was_added() {
        const BASE: u64 = 1_700_000_000_000;
        let times = [
            0,
            1,
            BASE - (1 << 31),
            BASE,
            BASE + 1,
            BASE + (1 << 31),
            BASE + (1 << 33),
            NEVER_MS - 1,
            NEVER_MS,
        ];
        let kinds = [Kind::Begun, Kind::Completed, Kind::Released, Kind::Forgotten, Kind::Unreadable];
        let mut builder = FooterBuilder::default();
        let mut expected = Vec::new();
        for round in 0..3_u64 {
            expected.clear();
            for (number, (key_ms, result_ms)) in
                (0..).zip(times.iter().flat_map(|key| times.iter().map(move |result| (*key, *result))))
            {
                let entry = FooterEntry {
                    hash: u128::MAX - hash_of(number),
                    version: Version::from_u64(u64::MAX - number),
                    key_expires_ms: if round == 1 { NEVER_MS } else { key_ms },
                    result_expires_ms: if round == 1 { NEVER_MS } else { result_ms },
                    offset: (round * 1_000 + number) * 8,
                    length: ((1 << 24) - 1 - number) * 8,
                    kind: kinds[usize::try_from(number).unwrap() % kinds.len()],
                };
                builder.push(entry);
                expected.push(entry);
            }
            assert_eq!(builder.iter().collect::<Vec<_>>(), expected, "round {round}");
        }
        assert_eq!(builder.at_offset(expected[7].offset), Some(expected[7]));
        assert_eq!(builder.at_offset(8), None, "superseded");
        builder.clear();
        let last = FooterEntry { offset: (1 << 30) - 8, ..expected[7] };
        builder.push(last);
        assert_eq!(builder.iter().collect::<Vec<_>>(), [last], "the end of the largest segment");
    }

    #[test]
    fn entries_that_have_nothing_in_common_are_returned_as_they_were_added() {
        let mut builder = FooterBuilder::default();
        let mut expected = Vec::new();
        for round in 0..3_u64 {
            expected.clear();
            for number in 0..6_000_u64 {
                let random = u64::try_from(hash_of(3 * number + round) >> 64).unwrap();
                let entry = FooterEntry {
                    version: Version::from_u64(random),
                    key_expires_ms: random.rotate_left(17),
                    result_expires_ms: random.rotate_left(31),
                    ..entry(hash_of(number), (round * 6_000 + number) * 8)
                };
                builder.push(entry);
                expected.push(entry);
            }
            assert!(builder.iter().eq(expected.iter().copied()), "round {round}");
        }
        let unpacked = builder.unpacked.len() - builder.free_unpacked.len();
        assert!((1_000..6_000).contains(&unpacked), "{unpacked} of 6,000 entries are not packed");
        assert!(builder.unpacked.len() <= 6_000, "{} entries", builder.unpacked.len());
        assert_eq!(builder.at_offset(expected[5_999].offset), Some(expected[5_999]));
    }

    #[test]
    fn a_key_takes_32_bytes_and_a_superseded_record_none() {
        let mut builder = FooterBuilder::default();
        let mut worst = 0.0_f64;
        for number in 0..300_000_u64 {
            let due_ms = 1_700_000_000_000 + number;
            let completed = FooterEntry {
                kind: Kind::Completed,
                key_expires_ms: due_ms,
                result_expires_ms: due_ms,
                version: Version::from_u64(2 * number + 1),
                ..entry(hash_of(number), 16 * number + 8)
            };
            builder.push(FooterEntry {
                key_expires_ms: NEVER_MS,
                result_expires_ms: NEVER_MS,
                version: Version::from_u64(2 * number),
                ..entry(hash_of(number), 16 * number)
            });
            builder.push(completed);
            if number > 150_000 {
                worst = worst.max(allocated_bytes(&builder) as f64 / (number + 1) as f64);
            }
        }
        println!("{worst} bytes an entry");
        assert!(worst <= 32.0, "{worst} bytes an entry");

        builder.clear();
        assert_eq!(allocated_bytes(&builder), 0);
        for number in 0..500_000_u64 {
            // With an expiry of its own for the result, as an option of the store.
            builder.push(FooterEntry {
                result_expires_ms: number,
                key_expires_ms: NEVER_MS,
                ..entry(1, 16 * number)
            });
            builder.push(FooterEntry { kind: Kind::Forgotten, ..entry(1, 16 * number + 8) });
        }
        assert_eq!(builder.len(), 1);
        let bytes = allocated_bytes(&builder);
        assert!(bytes <= 1_024, "one key that was recorded and forgotten takes {bytes} bytes");
    }
}
