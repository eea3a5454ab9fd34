//! The measured operations, and the keys and results that are written and looked up. They are the same for every store.

/// A key: 36 bytes, as long and as random as a UUID in text form.
pub type Key = [u8; 36];

/// The result of every operation. The stores do not compress, so results need not differ from key to key.
pub const RESULT: &[u8] = &[7; 256];
/// The value of an operation that has begun, in stores that know only keys and values.
pub const BEGUN: &[u8] = &[1; 16];

/// How an operation is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// One durable record, with the result.
    Record,
    /// A durable begin, then a durable completion.
    BeginAndComplete,
    /// A begin that is only written, then a durable completion.
    Rerun,
    /// One record that is written but not synced. The command `buffered` measures it.
    Buffered,
}

impl Case {
    pub const ALL: [Case; 4] = [Case::Record, Case::BeginAndComplete, Case::Rerun, Case::Buffered];

    pub fn name(self) -> &'static str {
        match self {
            Case::Record => "record",
            Case::BeginAndComplete => "begin and complete",
            Case::Rerun => "rerun",
            Case::Buffered => "buffered",
        }
    }
}

/// A set of keys. Two sets have no key in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySet {
    /// The keys that are in the store before anything is measured.
    Filled,
    /// The keys that one thread writes in one measurement. Each measurement has a unique number.
    Written { measurement: u64, thread: u32 },
    /// Keys that are never written.
    Unknown,
}

fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Returns key `number` of a set. Keys are in random order, because sorted keys would be less work for a tree than keys in
/// practice are.
pub fn key(set: KeySet, number: u64) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let salt = match set {
        KeySet::Filled => 0,
        KeySet::Written { measurement, thread } => 1 << 63 | measurement << 16 | u64::from(thread),
        KeySet::Unknown => 1 << 62,
    };
    let upper = mixed(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ mixed(salt));
    let bits = u128::from(upper) << 64 | u128::from(mixed(upper ^ number));
    let mut key = [b'-'; 36];
    let positions = (0..36).filter(|position| !matches!(position, 8 | 13 | 18 | 23));
    for (digit, position) in positions.enumerate() {
        key[position] = DIGITS[(bits >> (124 - 4 * digit)) as usize & 15];
    }
    key
}

/// Returns `count` pseudo-random numbers below `below`, the same in every run.
pub fn chosen(count: u64, below: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |turn| mixed(turn.wrapping_add(0x5EED)) % below)
}

/// One change of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Puts the key with this value if the key is absent.
    PutIfAbsent(Key, &'static [u8]),
    /// Replaces the value of a key that is present.
    Overwrite(Key, &'static [u8]),
    /// Removes the key.
    Remove(Key),
}

impl Change {
    pub fn key(&self) -> &Key {
        match self {
            Change::PutIfAbsent(key, _) | Change::Overwrite(key, _) | Change::Remove(key) => key,
        }
    }
}
