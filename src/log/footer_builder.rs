//! What the footer of the segment that is being written will list: each key's last record in it, in the order of the
//! log.

use std::collections::HashMap;

use crate::format::footer::FooterEntry;
use crate::key::ByHash;

/// The list. In order from the beginning, so that nobody has to wait while it is sorted when the segment is full.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    /// None: superseded within the segment.
    entries: Vec<Option<FooterEntry>>,
    /// Where each key's entry is.
    places: HashMap<u128, usize, ByHash>,
}

impl FooterBuilder {
    /// How many keys are listed.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Lists a record that lies behind all that are listed, in the place of an earlier one of its key.
    pub(crate) fn push(&mut self, entry: FooterEntry) {
        if let Some(earlier) = self.places.insert(entry.hash, self.entries.len()) {
            self.entries[earlier] = None;
        }
        self.entries.push(Some(entry));
    }

    /// The entries, in the order of the log.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        self.entries.iter().flatten().copied()
    }

    /// Lists nothing any more, and keeps its memory for the next segment.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.places.clear();
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
    fn each_key_is_listed_once_by_its_last_record_in_the_order_of_the_log() {
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
        assert_eq!(listed(&footer_builder), [(1, 100)], "nothing of before is in the way");
    }
}
