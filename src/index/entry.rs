//! Index entries: the address of a record and 24 bits of its key's hash, in 8 bytes.

/// Number of shards: one for each value of the top 8 bits of a hash.
pub(crate) const SHARD_COUNT: usize = 256;

/// Bits of an entry that hold the tag.
pub(super) const TAG_BITS: u32 = 24;

/// Bits of an entry that hold the address, in units of [`ADDRESS_UNIT_BYTES`].
pub(super) const ADDRESS_BITS: u32 = 40;

/// Addresses are multiples of this: the alignment of records in the log, in bytes.
pub(super) const ADDRESS_UNIT_BYTES: u64 = 8;

/// The value of an empty bucket. No entry is zero, because no address is zero.
pub(super) const EMPTY: u64 = 0;

/// The address of a record: its byte offset in the file, a multiple of 8, above zero and below 2^43.
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

/// The tag of a hash: the 24 bits that an entry stores and that a table is sorted by.
pub(super) fn tag_of_hash(hash: u128) -> u64 {
    // The 8 bits above chose the shard and are the same in the whole table.
    let tag = (hash >> 96) & ((1 << TAG_BITS) - 1);
    tag as u64
}

/// The tag of an entry.
pub(super) fn tag_of_entry(entry: u64) -> u64 {
    entry >> ADDRESS_BITS
}

/// The entry for `tag` and `address`. The tag is in the upper bits, so that entries compare by tag first.
pub(super) fn entry_of(tag: u64, address: Address) -> u64 {
    tag << ADDRESS_BITS | (address.0 / ADDRESS_UNIT_BYTES)
}

/// The address of an entry.
pub(super) fn address_of_entry(entry: u64) -> Address {
    Address((entry & ((1 << ADDRESS_BITS) - 1)) * ADDRESS_UNIT_BYTES)
}
