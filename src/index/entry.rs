//! Index entries: the address of a record and 24 bits of its key's hash, in 8 bytes.

/// The number of shards: one for each value of the top 8 bits of a hash.
pub(crate) const SHARD_COUNT: usize = 256;

/// The number of bits in an entry for the tag.
pub(super) const TAG_BITS: u32 = 24;

/// The number of bits in an entry for the address, which is in units of [`ADDRESS_UNIT_BYTES`].
pub(super) const ADDRESS_BITS: u32 = 40;

/// The unit of addresses, in bytes: the alignment of records in the log.
pub(super) const ADDRESS_UNIT_BYTES: u64 = 8;

/// The value of an empty bucket. No entry is zero, because no address is zero.
pub(super) const EMPTY: u64 = 0;

/// The address of a record: its byte offset in the file, a multiple of 8, above zero and below 2^43.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address(u64);

impl Address {
    /// An address at which there is no record: the file begins with a header.
    pub(crate) const NOWHERE: Address = Address(ADDRESS_UNIT_BYTES);

    /// Returns the address of the record at `offset_bytes` of the file. `None` if the offset is zero, not a multiple of 8,
    /// or 2^43 (8 TiB) or more.
    pub(crate) fn new(offset_bytes: u64) -> Option<Address> {
        let fits = offset_bytes != 0
            && offset_bytes.is_multiple_of(ADDRESS_UNIT_BYTES)
            && offset_bytes < ADDRESS_UNIT_BYTES << ADDRESS_BITS;
        fits.then_some(Address(offset_bytes))
    }

    /// Returns the offset in the file, in bytes.
    pub(crate) fn offset(self) -> u64 {
        self.0
    }
}

/// Returns the number of the shard for `hash`.
pub(crate) fn shard_of(hash: u128) -> u8 {
    hash.to_be_bytes()[0]
}

/// Returns the tag of a hash: the 24 bits that an entry stores, and by which a table is sorted.
pub(super) fn tag_of_hash(hash: u128) -> u64 {
    // The 8 bits above the tag determine the shard, so they are the same in the whole table.
    let tag = (hash >> 96) & ((1 << TAG_BITS) - 1);
    tag as u64
}

/// Returns the tag of an entry.
pub(super) fn tag_of_entry(entry: u64) -> u64 {
    entry >> ADDRESS_BITS
}

/// Returns the entry for `tag` and `address`. The tag is in the upper bits, so that entries compare by tag first.
pub(super) fn entry_of(tag: u64, address: Address) -> u64 {
    tag << ADDRESS_BITS | (address.0 / ADDRESS_UNIT_BYTES)
}

/// Returns the address of an entry.
pub(super) fn address_of_entry(entry: u64) -> Address {
    Address((entry & ((1 << ADDRESS_BITS) - 1)) * ADDRESS_UNIT_BYTES)
}
