//! Builds the footer of the segment that is being written: a list of the last record of each key in that segment, in
//! the order of the log. Only the writer uses it, under the writer's lock.

use std::collections::HashMap;

use crate::format::footer::FooterEntry;
use crate::hash::ByHash;

/// Footer entries in the order of the log. They are kept in order as they are added, because sorting them at the end of
/// a segment would delay every thread that is waiting for that batch.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    /// The entries. An entry that a later record of the same key superseded is None.
    entries: Vec<Option<FooterEntry>>,
    /// The index in `entries` of each key's entry, by the hash of the key.
    positions: HashMap<u128, usize, ByHash>,
}

impl FooterBuilder {
    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Adds the entry of a record that follows all others in the segment. It replaces an earlier entry of the same key.
    pub(crate) fn push(&mut self, entry: FooterEntry) {
        if let Some(earlier) = self.positions.insert(entry.hash, self.entries.len()) {
            self.entries[earlier] = None;
        }
        self.entries.push(Some(entry));
    }

    /// The entries, in the order of the log.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        self.entries.iter().flatten().copied()
    }

    /// Removes all entries, but keeps the memory for the next segment.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.positions.clear();
    }
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
            [entry(1, 100), entry(2, 200), entry(1, 300), entry(3, 400), entry(1, 500)].into_iter().collect();
        let listed = |footer_builder: &FooterBuilder| {
            footer_builder.iter().map(|entry| (entry.hash, entry.offset)).collect::<Vec<_>>()
        };
        assert_eq!(listed(&footer_builder), [(2, 200), (3, 400), (1, 500)]);
        assert_eq!(footer_builder.len(), 3);
        footer_builder.clear();
        assert_eq!((footer_builder.len(), listed(&footer_builder)), (0, vec![]));
        footer_builder.push(entry(1, 100));
        assert_eq!(listed(&footer_builder), [(1, 100)], "an entry from before the clear must not remain");
    }
}
