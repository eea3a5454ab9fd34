//! Numbers the combinations of the fields that most records of a segment share, so that a packed footer entry states one
//! short number instead of those fields. Only the footer builder uses it.
//!
//! The versions and the expiries of the records in one segment lie close together, as a rule. So the upper bits of these
//! fields, the kind, and the time between the two expiries form few combinations, called classes here. Nothing depends on
//! that: a builder that gets no number for a class stores the fields unpacked.

use std::collections::HashMap;

use crate::format::NEVER_MS;
use crate::format::footer::FooterEntry;
use crate::format::record::Kind;
use crate::status::Version;

/// The number of lower bits of a version and an expiry that are not part of the class: more versions than a segment has
/// records, and 4 hours and 39 minutes.
const LOW_BITS: u32 = 24;
/// The number of lower bits of a length, in units of [`ALIGNMENT_BYTES`](crate::format::ALIGNMENT_BYTES), that are not part
/// of the class. They hold lengths below 4 KiB.
pub(super) const LENGTH_LOW_BITS: u32 = 9;
/// The maximum number of classes. All their numbers fit 12 bits, and one number of 12 bits stays free.
const MAX_CLASSES: usize = (1 << 12) - 1;
/// The minimum number of new classes between two searches for unused ones that find few.
const MIN_PAUSE: usize = 16;

/// How the expiry of the key follows from that of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum KeyExpiry {
    Never,
    /// So many milliseconds later. The sum wraps, so that this covers every pair of expiries.
    After(u64),
}

/// The fields of a footer entry that many entries share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Class {
    version_high: u64,
    result_expires_high: u64,
    key_expires: KeyExpiry,
    length_high: u64,
    kind: Kind,
}

/// The fields of a footer entry that distinguish it from others of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LowBits {
    /// [`LOW_BITS`] of the version.
    pub(super) version: u32,
    /// [`LOW_BITS`] of the expiry of the result.
    pub(super) expiry: u32,
    /// [`LENGTH_LOW_BITS`] of the length.
    pub(super) length: u32,
}

/// Separates the lower bits of a number from the others.
#[expect(clippy::cast_possible_truncation, reason = "the mask leaves fewer than 32 bits")]
fn cut(number: u64, low_bits: u32) -> (u64, u32) {
    (number >> low_bits, (number & ((1 << low_bits) - 1)) as u32)
}

/// Splits an entry, whose length is `length_units`, into its class and the rest.
pub(super) fn split(entry: &FooterEntry, length_units: u64) -> (Class, LowBits) {
    let (version_high, version) = cut(entry.version.as_u64(), LOW_BITS);
    let (result_expires_high, expiry) = cut(entry.result_expires_ms, LOW_BITS);
    let (length_high, length) = cut(length_units, LENGTH_LOW_BITS);
    let key_expires = match entry.key_expires_ms {
        NEVER_MS => KeyExpiry::Never,
        key_ms => KeyExpiry::After(key_ms.wrapping_sub(entry.result_expires_ms)),
    };
    let class = Class { version_high, result_expires_high, key_expires, length_high, kind: entry.kind };
    (class, LowBits { version, expiry, length })
}

impl Class {
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn version(&self, low: LowBits) -> Version {
        Version::from_u64(self.version_high << LOW_BITS | u64::from(low.version))
    }

    pub(super) fn length_units(&self, low: LowBits) -> u64 {
        self.length_high << LENGTH_LOW_BITS | u64::from(low.length)
    }

    /// Returns the expiries of the key and of the result.
    pub(super) fn expiries(&self, low: LowBits) -> (u64, u64) {
        let result_ms = self.result_expires_high << LOW_BITS | u64::from(low.expiry);
        match self.key_expires {
            KeyExpiry::Never => (NEVER_MS, result_ms),
            KeyExpiry::After(after_ms) => (result_ms.wrapping_add(after_ms), result_ms),
        }
    }
}

/// The classes of the entries of one segment, and their numbers.
#[derive(Debug, Default)]
pub(super) struct EntryClasses {
    /// By number: the class, and how many entries have it.
    classes: Vec<(Class, u32)>,
    numbers: HashMap<Class, u16>,
    /// The numbers that are not in use.
    free: Vec<u16>,
    /// The number that was looked up last, and the one before. Begun and completed records alternate, as a rule.
    recent: [Option<u16>; 2],
    /// How many new classes come before the next search for unused ones, if no number is free. A search that finds few is
    /// not repeated soon, so that new classes stay cheap.
    pause: usize,
}

impl EntryClasses {
    /// Counts one more entry of this class, and returns its number. None if there are too many classes.
    pub(super) fn enter(&mut self, class: Class) -> Option<u16> {
        let recent = self.recent.into_iter().flatten();
        let known = recent.into_iter().find(|number| self.classes[usize::from(*number)].0 == class);
        let number = match known.or_else(|| self.numbers.get(&class).copied()) {
            Some(number) => number,
            None => self.add(class)?,
        };
        if self.recent[0] != Some(number) {
            self.recent = [Some(number), self.recent[0]];
        }
        self.classes[usize::from(number)].1 += 1;
        Some(number)
    }

    /// Counts one entry of the class with this number less.
    pub(super) fn leave(&mut self, number: u16) {
        self.classes[usize::from(number)].1 -= 1;
    }

    pub(super) fn get(&self, number: u16) -> &Class {
        &self.classes[usize::from(number)].0
    }

    fn add(&mut self, class: Class) -> Option<u16> {
        if self.free.is_empty() {
            match self.pause {
                0 => self.free_unused(),
                _ => self.pause -= 1,
            }
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.classes[usize::from(number)] = (class, 0);
                number
            }
            None if self.classes.len() == MAX_CLASSES => return None,
            None => {
                self.classes.push((class, 0));
                u16::try_from(self.classes.len() - 1).ok()?
            }
        };
        self.numbers.insert(class, number);
        Some(number)
    }

    /// Frees the numbers of classes without entries.
    fn free_unused(&mut self) {
        let (classes, free) = (&self.classes, &mut self.free);
        self.numbers.retain(|_, number| {
            let is_used = classes[usize::from(*number)].1 > 0;
            if !is_used {
                free.push(*number);
            }
            is_used
        });
        self.recent = [None; 2];
        let found_many = self.free.len() * 2 >= self.classes.len();
        self.pause = if found_many { 0 } else { self.classes.len().max(MIN_PAUSE) };
    }

    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        // A map has a byte of its own for each place, and at least seven eighths of its places can be used.
        let places = self.numbers.capacity() * 8 / 7;
        size_of::<(Class, u32)>() * self.classes.capacity()
            + (size_of::<(Class, u16)>() + 1) * places
            + 2 * self.free.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(number: u64) -> Class {
        let entry = FooterEntry {
            hash: 0,
            version: Version::from_u64(number << LOW_BITS),
            key_expires_ms: 0,
            result_expires_ms: 0,
            offset: 0,
            length: 0,
            kind: Kind::Completed,
        };
        split(&entry, 0).0
    }

    #[test]
    fn numbers_are_unique_and_those_of_unused_classes_are_given_again() {
        let mut classes = EntryClasses::default();
        let numbers: Vec<u16> = (0..4_095).map(|number| classes.enter(class(number)).unwrap()).collect();
        for (number, at) in (0..).zip(&numbers) {
            assert_eq!(*classes.get(*at), class(number));
            assert_eq!(classes.enter(class(number)), Some(*at));
            classes.leave(*at);
        }
        assert_eq!(classes.enter(class(4_095)), None, "numbers have 12 bits, and one number stays free");
        assert!((0..10_000).all(|other| classes.enter(class(5_000 + other)).is_none()), "each has an entry");
        classes.leave(numbers[1]);
        let given = (0..10_000).find_map(|other| Some((other, classes.enter(class(20_000 + other))?)));
        let (other, number) = given.expect("a number of an unused class");
        assert_eq!(number, numbers[1]);
        assert_eq!(*classes.get(number), class(20_000 + other));
        assert_eq!(classes.enter(class(0)), Some(numbers[0]), "a class with entries keeps its number");
        assert_eq!(classes.enter(class(1)), None, "the other class has its number now");
    }

    #[test]
    fn classes_that_come_and_go_take_little_memory() {
        let mut classes = EntryClasses::default();
        for number in 0..100_000 {
            let at = classes.enter(class(number)).unwrap();
            classes.leave(at);
        }
        let bytes = classes.allocated_bytes();
        assert!(bytes <= 8_192, "{bytes} bytes");
    }
}
