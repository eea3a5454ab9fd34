//! Builds the footer of the segment that is being written: a list of the last record of each key in that segment, in
//! the order of the log. Only the writer uses it, under the writer's lock.
//!
//! A segment may have millions of keys, so an entry is packed, and found through a table of positions. A record that
//! supersedes an earlier one of its key takes that one's place and no more memory. The entries are brought into the order
//! of the log when the footer is written, which costs little, because most of them are in order. All of it stays in memory:
//! an entry has to describe its record even if the record cannot be read back.

use std::hash::BuildHasher;

use crate::format::footer::FooterEntry;
use crate::format::record::Kind;
use crate::format::{ALIGNMENT_BYTES, NEVER_MS};
use crate::hash::ByHash;
use crate::status::Version;

/// A footer entry without padding. All fields have an alignment of 4 bytes.
#[derive(Debug, Clone, Copy)]
struct PackedEntry {
    hash: [u32; 4],
    version: [u32; 2],
    /// The offset in the slot, in units of [`ALIGNMENT_BYTES`].
    offset_units: u32,
    /// The length in the lower 24 bits, in units of [`ALIGNMENT_BYTES`]; then the kind, and [`IN_PAIRS`].
    length_and_kind: u32,
    /// Both expiries, if they are equal: in milliseconds after `base_ms`, or [`NEVER`]. Otherwise an index in `pairs`.
    expiries: u32,
}

/// The bit of `length_and_kind` that is set if `expiries` is an index. No kind has it.
const IN_PAIRS: u32 = 1 << 30;
/// The value of `expiries` for a record that never expires.
const NEVER: u32 = u32::MAX;
/// The number of entries that are allocated at once.
const CHUNK_ENTRIES: usize = 1_024;
const MIN_TABLE: usize = 64;

/// The entries of a future footer.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    /// The entries, one for each key, in the order in which the keys came. Allocated in chunks, because a vector that
    /// doubles would leave up to half of its memory unused.
    chunks: Vec<Vec<PackedEntry>>,
    len: usize,
    /// A hash table of the entries, with linear probing: one more than the index of an entry, or 0. At most three
    /// quarters of it are in use.
    table: Vec<u32>,
    by_hash: ByHash,
    /// The time from which `expiries` count. Records of one segment expire within days of each other, as a rule.
    base_ms: Option<u64>,
    /// The expiries of the key and the result, where they differ or are too far from `base_ms`.
    pairs: Vec<(u64, u64)>,
    /// The indices in `pairs` that are not in use.
    free_pairs: Vec<u32>,
}

impl FooterBuilder {
    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds the entry of a record that follows all others in the segment. It replaces an earlier entry of the same key.
    pub(crate) fn push(&mut self, entry: FooterEntry) {
        if (self.len + 1) * 4 > self.table.len() * 3 {
            self.grow_table();
        }
        let hash = split(entry.hash);
        let (bucket, earlier) = self.find(hash);
        if let Some(at) = earlier {
            let replaced = *self.at(at);
            if replaced.length_and_kind & IN_PAIRS != 0 {
                self.free_pairs.push(replaced.expiries);
            }
        }
        let (expiries, flag) = self.pack_expiries(entry.key_expires_ms, entry.result_expires_ms);
        let version = entry.version.as_u64();
        let packed = PackedEntry {
            hash,
            version: [low(version), low(version >> 32)],
            offset_units: low(entry.offset / ALIGNMENT_BYTES),
            length_and_kind: low(entry.length / ALIGNMENT_BYTES)
                | u32::from(entry.kind.to_byte()) << 24
                | flag,
            expiries,
        };
        if let Some(at) = earlier {
            self.chunks[at / CHUNK_ENTRIES][at % CHUNK_ENTRIES] = packed;
            return;
        }
        if self.len == self.chunks.len() * CHUNK_ENTRIES {
            // The first chunk grows as needed, because most segments of a store that is rarely used stay short.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK_ENTRIES };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks[self.len / CHUNK_ENTRIES].push(packed);
        self.len += 1;
        self.table[bucket] = low(self.len as u64);
    }

    /// The entries, in the order of the log.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        let mut order: Vec<u64> = (0_u64..)
            .zip(self.packed())
            .map(|(at, entry)| u64::from(entry.offset_units) << 32 | at)
            .collect();
        order.sort_unstable();
        order.into_iter().map(|at| self.unpack(self.at(low(at) as usize)))
    }

    /// The entry of the record at `offset` in the slot.
    pub(crate) fn at_offset(&self, offset: u64) -> Option<FooterEntry> {
        let found = self.packed().find(|entry| u64::from(entry.offset_units) * ALIGNMENT_BYTES == offset);
        found.map(|entry| self.unpack(entry))
    }

    /// Removes all entries and frees their memory: the next segment may have far fewer keys.
    pub(crate) fn clear(&mut self) {
        *self = FooterBuilder { by_hash: self.by_hash.clone(), ..FooterBuilder::default() };
    }

    fn packed(&self) -> impl Iterator<Item = &PackedEntry> {
        self.chunks.iter().flatten()
    }

    fn at(&self, at: usize) -> &PackedEntry {
        &self.chunks[at / CHUNK_ENTRIES][at % CHUNK_ENTRIES]
    }

    /// Returns the bucket of the entry with this hash and its index, or the empty bucket where it belongs and None.
    fn find(&self, hash: [u32; 4]) -> (usize, Option<usize>) {
        let mut bucket = self.home(hash);
        loop {
            match (self.table[bucket] as usize).checked_sub(1) {
                None => return (bucket, None),
                Some(at) if self.at(at).hash == hash => return (bucket, Some(at)),
                Some(_) => bucket = if bucket + 1 == self.table.len() { 0 } else { bucket + 1 },
            }
        }
    }

    /// The bucket at which the search for a hash begins.
    fn home(&self, hash: [u32; 4]) -> usize {
        let spread = u128::from(self.by_hash.hash_one(join(hash)));
        usize::try_from((spread * self.table.len() as u128) >> 64).unwrap_or(0)
    }

    fn grow_table(&mut self) {
        let buckets = (self.table.len() + self.table.len() / 8).max(MIN_TABLE);
        self.table = vec![0; buckets];
        for at in 0..self.len {
            let (bucket, _) = self.find(self.at(at).hash);
            self.table[bucket] = low(at as u64 + 1);
        }
    }

    /// Packs the two expiries. Also returns [`IN_PAIRS`] if they are in `pairs`.
    fn pack_expiries(&mut self, key_ms: u64, result_ms: u64) -> (u32, u32) {
        if key_ms == result_ms {
            if key_ms == NEVER_MS {
                return (NEVER, 0);
            }
            let base_ms = *self.base_ms.get_or_insert(key_ms.saturating_sub(1 << 31));
            let after = key_ms.checked_sub(base_ms).and_then(|after_ms| u32::try_from(after_ms).ok());
            if let Some(after) = after.filter(|after| *after != NEVER) {
                return (after, 0);
            }
        }
        let free = self.free_pairs.pop();
        let at = free.unwrap_or(low(self.pairs.len() as u64));
        match self.pairs.get_mut(at as usize) {
            Some(pair) => *pair = (key_ms, result_ms),
            None => self.pairs.push((key_ms, result_ms)),
        }
        (at, IN_PAIRS)
    }

    fn unpack(&self, packed: &PackedEntry) -> FooterEntry {
        let (key_expires_ms, result_expires_ms) = if packed.length_and_kind & IN_PAIRS != 0 {
            self.pairs[packed.expiries as usize]
        } else if packed.expiries == NEVER {
            (NEVER_MS, NEVER_MS)
        } else {
            let due_ms = self.base_ms.unwrap_or(0) + u64::from(packed.expiries);
            (due_ms, due_ms)
        };
        let [_, _, _, kind] = (packed.length_and_kind & !IN_PAIRS).to_le_bytes();
        FooterEntry {
            hash: join(packed.hash),
            version: Version::from_u64(u64::from(packed.version[1]) << 32 | u64::from(packed.version[0])),
            key_expires_ms,
            result_expires_ms,
            offset: u64::from(packed.offset_units) * ALIGNMENT_BYTES,
            length: u64::from(packed.length_and_kind & 0xFF_FFFF) * ALIGNMENT_BYTES,
            kind: Kind::from_byte(kind).unwrap_or_else(|| unreachable!("packed from a kind")),
        }
    }
}

/// The lower 32 bits. Offsets and lengths in a segment, in units of [`ALIGNMENT_BYTES`], fit 32 and 24 bits, as in a footer.
fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn split(hash: u128) -> [u32; 4] {
    let bytes = hash.to_le_bytes();
    std::array::from_fn(|part| u32::from_le_bytes(std::array::from_fn(|at| bytes[4 * part + at])))
}

fn join(parts: [u32; 4]) -> u128 {
    parts.into_iter().rev().fold(0, |hash, part| hash << 32 | u128::from(part))
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
        let entries: usize =
            builder.chunks.iter().map(|chunk| chunk.capacity() * size_of::<PackedEntry>()).sum();
        let lists = size_of::<Vec<PackedEntry>>() * builder.chunks.capacity();
        entries
            + lists
            + 4 * builder.table.capacity()
            + 16 * builder.pairs.capacity()
            + 4 * builder.free_pairs.capacity()
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
        assert!(builder.pairs.len() <= expected.len(), "{} pairs", builder.pairs.len());
    }

    #[test]
    fn a_key_takes_43_bytes_and_a_superseded_record_none() {
        let mut builder = FooterBuilder::default();
        let mut worst = 0.0_f64;
        for number in 0..200_000_u64 {
            let due_ms = 1_700_000_000_000 + number;
            let completed = FooterEntry {
                kind: Kind::Completed,
                key_expires_ms: due_ms,
                result_expires_ms: due_ms,
                ..entry(hash_of(number), 16 * number + 8)
            };
            builder.push(FooterEntry {
                key_expires_ms: NEVER_MS,
                result_expires_ms: NEVER_MS,
                ..entry(hash_of(number), 16 * number)
            });
            builder.push(completed);
            if number > 50_000 {
                worst = worst.max(allocated_bytes(&builder) as f64 / (number + 1) as f64);
            }
        }
        println!("{worst} bytes an entry");
        assert!(worst <= 43.0, "{worst} bytes an entry");

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
