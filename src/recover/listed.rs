//! Takes the index updates of one segment from its footer's entries, and sorts them by index shard. Only filling the index
//! uses it.

use crate::format::footer::FooterEntry;
use crate::format::record::Kind;
use crate::format::{ALIGNMENT_BYTES, FormatError, NEVER_MS};
use crate::index::{Address, Packing, SHARD_COUNT, ShardUpdates, shard_of};
use crate::log::space_usage::Tally;
use crate::log::writer::FullSegment;
use crate::record::{PendingMessage, RecordSize};
use crate::status::Version;

/// The index updates of a segment, sorted by shard. The words of one shard are `words[starts[shard]..starts[shard + 1]]`.
#[derive(Default)]
pub(super) struct SortedUpdates {
    words: Vec<u64>,
    starts: Vec<u32>,
    /// The shard and the word of each update that removes its key, sorted by shard.
    removals: Vec<(u8, u64)>,
    /// The shard and the word of each update that may be the last one of an unfinished operation, sorted by shard.
    begun: Vec<(u8, u64)>,
}

/// The words of one shard in a list that is sorted by shard.
fn of_shard(sorted: &[(u8, u64)], shard: usize) -> impl ExactSizeIterator<Item = u64> {
    let from = sorted.partition_point(|(other, _)| usize::from(*other) < shard);
    let count = sorted[from..].partition_point(|(other, _)| usize::from(*other) == shard);
    sorted[from..from + count].iter().map(|(_, word)| *word)
}

impl SortedUpdates {
    /// Appends the updates of one shard to the gathered ones.
    pub(super) fn append_to(&self, gathered: &mut ShardUpdates, shard: usize) {
        let words = &self.words[self.starts[shard] as usize..self.starts[shard + 1] as usize];
        gathered.append(words, of_shard(&self.removals, shard), of_shard(&self.begun, shard));
    }
}

/// Everything that filling the index takes from one segment.
pub(super) struct SegmentContents {
    /// The slot and the end of the segment.
    pub(super) segment: FullSegment,
    /// What the segment's records change in the index.
    pub(super) updates: SortedUpdates,
    /// The space that the segment's records take.
    pub(super) tally: Tally,
    /// The key hash and the address of each record of kind `Unreadable`.
    pub(super) unreadable: Vec<(u128, Address)>,
    /// The records of steps.
    pub(super) steps: StepCandidates,
    pub(super) messages: ListedMessages,
}

/// The records of steps that recovery has met, in the order of the log. Most are of operations that have ended, so each
/// takes only 8 bytes until the unfinished operations are known.
#[derive(Default)]
pub(super) struct StepCandidates {
    /// A part of the hash of the operation's key, and the address of the record.
    words: Vec<u64>,
    /// The length of these records.
    pub(super) record_bytes: u64,
}

impl StepCandidates {
    /// The number of bits of a word for the address, in units of 8 bytes.
    const ADDRESS_BITS: u32 = 40;
    /// The number of tags.
    pub(super) const TAGS: usize = 1 << 24;

    fn push(&mut self, entry: &FooterEntry, address: Address) {
        let tag = StepCandidates::tag(entry.parent_hash());
        let units = address.offset() / ALIGNMENT_BYTES;
        self.words.push(u64::from(tag) << StepCandidates::ADDRESS_BITS | units);
        self.record_bytes += entry.length;
    }

    pub(super) fn append(&mut self, mut later: StepCandidates) {
        self.words.append(&mut later.words);
        self.record_bytes += later.record_bytes;
    }

    /// The part of the hash of an operation's key by which its steps are selected.
    pub(super) fn tag(parent_hash: u128) -> u32 {
        u32::try_from(parent_hash >> 96 & 0xFF_FFFF).unwrap_or(0)
    }

    /// The tag and the address of each record.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Address)> {
        self.words.iter().filter_map(|word| {
            let units = word & ((1 << StepCandidates::ADDRESS_BITS) - 1);
            let tag = u32::try_from(word >> StepCandidates::ADDRESS_BITS).unwrap_or(0);
            Address::new(units * ALIGNMENT_BYTES).map(|address| (tag, address))
        })
    }
}

/// The messages and the acknowledgements that footers list.
#[derive(Default)]
pub(super) struct ListedMessages {
    pub(super) messages: Vec<PendingMessage>,
    /// The ids of the messages that were acknowledged.
    pub(super) acknowledged: Vec<Version>,
}

impl ListedMessages {
    /// Adds those of another segment.
    pub(super) fn append(&mut self, mut other: ListedMessages) {
        self.messages.append(&mut other.messages);
        self.acknowledged.append(&mut other.acknowledged);
    }

    /// Returns the messages that are not acknowledged, in the order of their ids.
    ///
    /// The ids decide that, without the index: an acknowledgement comes after every copy of its message in the log, and is
    /// dropped after all of them.
    pub(super) fn into_pending(self) -> Vec<PendingMessage> {
        let ListedMessages { mut messages, mut acknowledged } = self;
        // A message that reclaiming moved may be listed twice.
        messages.sort_unstable_by_key(|message| message.id);
        messages.dedup_by_key(|message| message.id);
        acknowledged.sort_unstable();
        let mut acknowledged = acknowledged.into_iter().peekable();
        messages.retain(|message| {
            while acknowledged.next_if(|id| *id < message.id).is_some() {}
            acknowledged.peek() != Some(&message.id)
        });
        messages
    }
}

/// The index updates of the segment that a thread is reading, in the order of the log.
#[derive(Default)]
pub(super) struct Unsorted {
    /// The words, and after them what an earlier segment left, so that the memory is zeroed only once.
    words: Vec<u64>,
    /// The shard of each word.
    shards: Vec<u8>,
    /// The number of words.
    len: usize,
}

/// What the entries of a segment have yielded so far.
pub(super) struct Listed<'a> {
    packing: Packing,
    now_ms: u64,
    slot_offset: u64,
    unsorted: &'a mut Unsorted,
    /// The number of updates of each shard.
    counts: [u32; SHARD_COUNT],
    removals: Vec<(u8, u64)>,
    tally: Tally,
    /// The length of the listed records.
    listed_bytes: u64,
    exceptions: Exceptions,
}

/// The records of a segment that are looked at again once the index is filled.
#[derive(Default)]
struct Exceptions {
    /// The key hash and the address of each record of kind `Unreadable`.
    unreadable: Vec<(u128, Address)>,
    /// The shard and the word of each record that may be the last one of an unfinished operation.
    begun: Vec<(u8, u64)>,
    steps: StepCandidates,
    messages: ListedMessages,
}

impl Exceptions {
    /// Returns whether a record that is not of kind `Completed` leaves its key in the index. None if it changes nothing
    /// there. A function of its own, so that the loop over the entries has no jump table.
    #[cold]
    #[inline(never)]
    fn add(&mut self, entry: FooterEntry, address: Address, packing: Packing, now_ms: u64) -> Option<bool> {
        // An unreadable record that never expires may carry a begin. One that expires was a completion.
        if entry.kind == Kind::Begun || entry.kind == Kind::Unreadable && entry.key_expires_ms == NEVER_MS {
            self.begun.push((shard_of(entry.hash), packing.word(entry.hash, address)));
        }
        if entry.kind.is_carrier() {
            self.unreadable.push((entry.hash, address));
        }
        match entry.kind {
            Kind::Forgotten => Some(false),
            Kind::Message | Kind::MessageUnreadable => {
                self.messages.messages.push(PendingMessage {
                    id: entry.version,
                    topic: entry.key_expires_ms,
                    time_ms: entry.result_expires_ms,
                    length_bytes: entry.length,
                });
                Some(true)
            }
            Kind::Acknowledged => {
                self.messages.acknowledged.push(entry.version);
                Some(false)
            }
            Kind::Completed | Kind::Released | Kind::Unreadable => Some(now_ms < entry.key_expires_ms),
            Kind::Begun => Some(true),
            // Steps are not in the index. Which of them are live is known once the index is filled.
            Kind::StepBegun | Kind::StepCompleted | Kind::StepReleased | Kind::StepUnreadable => {
                self.steps.push(&entry, address);
                None
            }
            // This version does not know what an ignorable record changes, so it must not hide an earlier one of its key.
            Kind::Ignorable => None,
        }
    }
}

impl<'a> Listed<'a> {
    /// Begins with the segment whose slot is at `slot_offset`. `unsorted` is overwritten.
    pub(super) fn new(
        packing: Packing,
        now_ms: u64,
        slot_offset: u64,
        unsorted: &'a mut Unsorted,
    ) -> Listed<'a> {
        unsorted.len = 0;
        Listed {
            packing,
            now_ms,
            slot_offset,
            unsorted,
            counts: [0; SHARD_COUNT],
            removals: Vec::new(),
            tally: Tally::at(now_ms),
            listed_bytes: 0,
            exceptions: Exceptions::default(),
        }
    }

    /// Adds the next entries.
    ///
    /// It goes through them twice, because the numbers of both loops together do not fit into the registers.
    pub(super) fn add(
        &mut self,
        entries: impl ExactSizeIterator<Item = Result<FooterEntry, FormatError>> + Clone,
    ) -> Result<(), FormatError> {
        let (packing, now_ms, slot_offset) = (self.packing, self.now_ms, self.slot_offset);
        let Listed {
            unsorted: Unsorted { words, shards, len },
            counts,
            removals,
            exceptions,
            tally,
            listed_bytes,
            ..
        } = self;
        // The buffers are extended before the loop and not in it, so that its pointers stay in registers.
        let end = *len + entries.len();
        if words.len() < end {
            words.resize(end, 0);
            shards.resize(end, 0);
        }
        let mut places = words[*len..end].iter_mut().zip(&mut shards[*len..end]);
        let mut length_bytes = 0;
        tally.add_each(entries.clone().map(|entry| {
            let size = RecordSize::listed(&entry?);
            length_bytes += size.length_bytes;
            Ok(size)
        }))?;
        *listed_bytes += length_bytes;
        for entry in entries {
            let entry = entry?;
            let Some(address) = Address::new(slot_offset + entry.offset) else {
                return Err(FormatError::Damaged("the footer's address is out of range"));
            };
            let keeps_key = if entry.kind == Kind::Completed {
                now_ms < entry.key_expires_ms
            } else {
                match exceptions.add(entry, address, packing, now_ms) {
                    Some(keeps_key) => keeps_key,
                    None => continue,
                }
            };
            let shard = shard_of(entry.hash);
            let word = packing.word(entry.hash, address);
            if let Some(place) = places.next() {
                (*place.0, *place.1) = (word, shard);
            }
            counts[usize::from(shard)] += 1;
            if !keeps_key {
                removals.push((shard, word));
            }
        }
        *len = end - places.len();
        Ok(())
    }

    /// Sorts the updates by shard, in the memory of `sorted`.
    ///
    /// The entries were gone through once, to make a word of each and to count those of each shard. Now the words, a fifth
    /// of the entries' size, go to their places. Going through the entries twice instead took longer.
    pub(super) fn sort(mut self, segment: FullSegment, mut sorted: SortedUpdates) -> SegmentContents {
        let Unsorted { words, shards, len } = self.unsorted;
        let (words, shards) = (&words[..*len], &shards[..*len]);
        let mut next = self.counts;
        let mut count = 0;
        for start in &mut next {
            count += std::mem::replace(start, count);
        }
        sorted.starts.clear();
        sorted.starts.extend(next);
        sorted.starts.push(count);
        // Writing zeroes to the whole buffer first brings it into the cache in order, which is faster than if the writes
        // below did so all over it.
        sorted.words.clear();
        sorted.words.resize(words.len(), 0);
        for (word, shard) in words.iter().zip(shards) {
            let position = &mut next[usize::from(*shard)];
            sorted.words[*position as usize] = *word;
            *position += 1;
        }
        self.removals.sort_unstable();
        sorted.removals = self.removals;
        self.tally.add_dead(segment.record_bytes.saturating_sub(self.listed_bytes));
        let Listed { tally, exceptions: Exceptions { unreadable, mut begun, steps, messages }, .. } = self;
        begun.sort_unstable();
        sorted.begun = begun;
        SegmentContents { segment, updates: sorted, tally, unreadable, steps, messages }
    }
}
