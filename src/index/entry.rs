//! What the index keeps of a key: an address and some bits of the hash, in 8 bytes.

/// How many shards there are: one for each value of the top 8 bits of a hash.
pub(crate) const SHARD_COUNT: usize = 256;

/// Bits of an entry that hold the tag.
pub(super) const TAG_BITS: u32 = 24;

/// Bits of an entry that hold the address, in units of [`ADDRESS_UNIT_BYTES`].
pub(super) const ADDRESS_BITS: u32 = 40;

/// What addresses are multiples of, in bytes: the alignment of records in the log.
pub(super) const ADDRESS_UNIT_BYTES: u64 = 8;

/// A bucket without an entry. No entry is zero, because no address is.
pub(super) const EMPTY: u64 = 0;

/// Where a record lies in the file: a byte offset that is a multiple of 8, above zero and below 2^43.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address(u64);

impl Address {
    /// The address of `offset_bytes`; `None` if that is zero, not a multiple of 8, or 2^43 (8 TiB) or more.
    pub(crate) fn new(offset_bytes: u64) -> Option<Address> {
        let fits = offset_bytes != 0
            && offset_bytes.is_multiple_of(ADDRESS_UNIT_BYTES)
            && offset_bytes < ADDRESS_UNIT_BYTES << ADDRESS_BITS;
        fits.then_some(Address(offset_bytes))
    }

    /// The offset in the file, in bytes.
    pub(crate) fn offset(self) -> u64 {
        self.0
    }
}

/// The number of the shard for `hash`.
pub(crate) fn shard_of(hash: u128) -> u8 {
    hash.to_be_bytes()[0]
}

/// The tag of a hash: the bits that entries keep and tables are sorted by.
pub(super) fn tag_of_hash(hash: u128) -> u64 {
    // The eight bits above these chose the shard and are the same for the whole table.
    let tag = (hash >> 96) & ((1 << TAG_BITS) - 1);
    tag as u64
}

/// The tag of an entry.
pub(super) fn tag_of_entry(entry: u64) -> u64 {
    entry >> ADDRESS_BITS
}

/// The entry for `address` under `tag`. The tag is on top, so entries compare by it first.
pub(super) fn entry_of(tag: u64, address: Address) -> u64 {
    tag << ADDRESS_BITS | (address.0 / ADDRESS_UNIT_BYTES)
}

/// The address in an entry.
pub(super) fn address_of_entry(entry: u64) -> Address {
    Address((entry & ((1 << ADDRESS_BITS) - 1)) * ADDRESS_UNIT_BYTES)
}
