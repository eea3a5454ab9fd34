//! What is written and looked up: the same keys and results for everybody.

/// A key: 36 bytes, as long as a UUID in text and as random.
pub type Key = [u8; 36];

/// What every operation returned. Nobody compresses, so that its bytes need not differ from key to key.
pub const RESULT: &[u8] = &[7; 256];
/// What stands for an operation that has begun, in stores that know only keys and values.
pub const BEGUN: &[u8] = &[1; 16];

/// Keys of the operations of one purpose; two purposes share none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Those that are there before anything is measured.
    Filled,
    /// Those that are written while it is measured, by one thread in one measurement.
    Written { cell: u64, thread: u32 },
    /// Those that nobody ever writes.
    Unknown,
}

fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// The key of operation `number`. Keys come in no order: sorted ones would spare trees the work that real ones cost.
pub fn key(purpose: Purpose, number: u64) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let salt = match purpose {
        Purpose::Filled => 0,
        Purpose::Written { cell, thread } => 1 << 63 | cell << 16 | u64::from(thread),
        Purpose::Unknown => 1 << 62,
    };
    let upper = mixed(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ mixed(salt));
    let bits = u128::from(upper) << 64 | u128::from(mixed(upper ^ number));
    let mut key = [b'-'; 36];
    let places = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (digit, place) in places.enumerate() {
        key[place] = DIGITS[(bits >> (124 - 4 * digit)) as usize & 15];
    }
    key
}

/// A walk through `count` numbers below `below`, in no order.
pub fn chosen(count: u64, below: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |turn| mixed(turn.wrapping_add(0x5EED)) % below)
}

/// One change in a batch.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    PutIfAbsent(Key, &'static [u8]),
    Overwrite(Key, &'static [u8]),
    Remove(Key),
}

impl Change {
    pub fn key(&self) -> &Key {
        match self {
            Change::PutIfAbsent(key, _) | Change::Overwrite(key, _) | Change::Remove(key) => key,
        }
    }
}
