//! Filling the index from the footers of full segments, and of the last segment from its frames.
//!
//! A footer says little of each key, but there is an entry for every operation that the store remembers, so this is
//! what opening takes its time for. It goes in windows of some segments: first their footers are read and checked,
//! several at a time, and what they say sorted by the shard of the index that it belongs to; then the shards gather
//! theirs, several at a time, each in the order of the log. When all of the log was read, the shards become tables, in the
//! memory in which they were gathered.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::thread;

use super::open_context::OpenContext;
use super::survey::{Link, Survey};
use super::team::with_team;
use crate::error::{Error, Result};
use crate::format::footer::{FooterEntry, Trailer};
use crate::format::record::Kind;
use crate::format::{FormatError, STORE_HEADER_BYTES};
use crate::index::{Address, Candidate, Gathered, Index, IndexUpdate, Packing, SHARD_COUNT, shard_of};
use crate::key::KeyHasher;
use crate::log::reader::Reader;
use crate::log::scan;
use crate::log::space_usage::{SpaceUsage, Tally};
use crate::log::writer::FullSegment;
use crate::record::RecordSize;
use crate::sync::{Mutex, RwLock};

/// A window is this share of the log. What is kept of a window, 16 bytes an entry, is then little beside the 8 bytes for
/// each entry of the log that the shards gather, and the 10 of the index that these become.
const WINDOWS: usize = 32;

/// Of how many segments it is asked how many entries they have, before they are read.
const TRAILERS_ASKED: usize = 256;

/// Segments that each thread reads in a window, at least, or starting the threads would take longer.
const SEGMENTS_FOR_A_THREAD: usize = 4;

/// No window is longer, unless that is less than a segment for each thread.
const MAX_WINDOW_BYTES: u64 = 512 << 20;

/// Logs shorter than this are read by one thread: starting others would take longer.
const PARALLEL_FROM_BYTES: u64 = 16 << 20;

/// More threads than this wait for memory and not for each other.
const MAX_THREADS: usize = 8;

/// What the log's segments said.
pub(super) struct Filled {
    pub(super) index: Index,
    pub(super) space_usage: SpaceUsage,
    pub(super) full: Vec<FullSegment>,
    /// Where the records are that carry unreadable ones, of those that the index points to.
    pub(super) unreadable: Vec<Address>,
}

/// A segment's steps by shard, each shard's from `starts[shard]` to `starts[shard + 1]`.
#[derive(Default)]
struct Sorted {
    steps: Vec<IndexUpdate>,
    starts: Vec<u32>,
}

/// What a segment said.
struct SegmentRead {
    segment: FullSegment,
    sorted: Sorted,
    tally: Tally,
    /// Records that carry unreadable ones: the hashes of their keys, and where they are.
    unreadable: Vec<(u128, Address)>,
}

/// What the threads do together, for each number of a range.
#[derive(Clone, Copy)]
enum Task {
    /// Reads a segment of the window that begins with this link.
    Read { first_link: usize },
    /// Gives a shard what the segments of the window say of it, oldest first.
    Gather,
    /// Makes a shard of the index of what was gathered.
    Index,
}

/// Everything that filling needs to know, and what the threads hand to each other between two tasks.
struct Filler<'a> {
    medium: &'a OpenContext<'a>,
    survey: &'a Survey,
    reader: &'a Reader,
    hasher: KeyHasher,
    packing: Packing,
    now_ms: u64,
    /// Footers that were read to tell whose records they are that cannot be read, by slot.
    footers: Mutex<HashMap<u64, Vec<FooterEntry>>>,
    index: Index,
    space_usage: SpaceUsage,
    shards: Vec<Mutex<Gathered>>,
    /// What was read of the window, by the number of the segment in it.
    read: Mutex<Vec<(usize, Result<SegmentRead>)>>,
    /// The window, oldest segment first.
    window: RwLock<Vec<Sorted>>,
    /// Those of earlier windows, whose memory is used again.
    spare: Mutex<Vec<Sorted>>,
    /// Shards that could not be made.
    failed: Mutex<Vec<(usize, Error)>>,
}

/// How many threads read a log of `log_bytes`.
fn threads_for(log_bytes: u64) -> usize {
    // Shuttle explores the threads that it started itself, and knows of no others.
    if log_bytes < PARALLEL_FROM_BYTES || cfg!(oncekey_shuttle) {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Fills an index with each key's last record.
pub(super) fn fill(
    medium: &OpenContext<'_>,
    survey: &Survey,
    reader: &Reader,
    now_ms: u64,
) -> Result<Filled> {
    let Survey { parameters, links, .. } = survey;
    let threads = threads_for((links.len() as u64 + 1) * parameters.segment_bytes);
    let last_slot = links.iter().map(|link| link.slot).fold(survey.tail_slot, u64::max);
    // All of them first: to tell two keys apart, a record of any earlier segment may have to be read.
    for link in links {
        reader.set_segment(link.slot, link.sequence, link.end % parameters.segment_bytes);
    }
    let end = survey.scan.end % parameters.segment_bytes;
    reader.set_segment(survey.tail_slot, survey.tail_header.sequence, end);
    let mut filler = Filler {
        medium,
        survey,
        reader,
        hasher: KeyHasher::new(parameters.secret),
        packing: Packing::for_addresses_below(reader.slot_offset(last_slot + 1)),
        now_ms,
        footers: Mutex::default(),
        index: Index::new(),
        space_usage: SpaceUsage::new(),
        shards: Vec::new(),
        read: Mutex::default(),
        window: RwLock::default(),
        spare: Mutex::default(),
        failed: Mutex::default(),
    };
    let expected = filler.expected_steps()?.div_ceil(SHARD_COUNT);
    filler.shards = (0..=u8::MAX).map(|shard| Mutex::new(Gathered::expecting(expected, shard))).collect();

    let mut full = Vec::with_capacity(links.len());
    let mut unreadable = Vec::new();
    let most = usize::try_from(MAX_WINDOW_BYTES / parameters.segment_bytes).unwrap_or(1);
    let window = (links.len() / WINDOWS).max(SEGMENTS_FOR_A_THREAD * threads).min(most).max(threads);
    let work = |task, number, buffers: &mut Buffers| filler.work(task, number, buffers);
    with_team(threads, &work, |team| -> Result<()> {
        let mut take = |read: SegmentRead| {
            unreadable.extend(read.unreadable);
            filler.space_usage.absorb(read.tally);
            filler.window.write().push(read.sorted);
            read.segment
        };
        for first_link in (0..links.len()).step_by(window) {
            team.share(Task::Read { first_link }, window.min(links.len() - first_link));
            let mut read = std::mem::take(&mut *filler.read.lock());
            read.sort_unstable_by_key(|(number, _)| *number);
            for (_, outcome) in read {
                full.push(take(outcome?));
            }
            team.share(Task::Gather, SHARD_COUNT);
            filler.spare.lock().append(&mut filler.window.write());
        }
        let tail = FullSegment {
            slot: survey.tail_slot,
            end: survey.scan.end,
            record_bytes: survey.scan.record_bytes,
        };
        let entries = survey.scan.entries.iter().copied().map(Ok);
        take(filler.sort(tail, entries, &mut Vec::new())?);
        team.share(Task::Gather, SHARD_COUNT);
        team.share(Task::Index, SHARD_COUNT);
        Ok(())
    })?;
    let failed = filler.failed.into_inner();
    if let Some((_, error)) = failed.into_iter().min_by_key(|(shard, _)| *shard) {
        return Err(error);
    }
    unreadable.retain(|(hash, address)| filler.index.holds(*hash, *address));
    let unreadable = unreadable.into_iter().map(|(_, address)| address).collect();
    Ok(Filled { index: filler.index, space_usage: filler.space_usage, full, unreadable })
}

impl Filler<'_> {
    fn work(&self, task: Task, number: usize, buffers: &mut Buffers) {
        match task {
            Task::Read { first_link } => {
                let read = self.read(&self.survey.links[first_link + number], buffers);
                self.read.lock().push((number, read));
            }
            Task::Gather => {
                let mut gathered = self.shards[number].lock();
                for Sorted { steps, starts } in &*self.window.read() {
                    gathered.append(&steps[starts[number] as usize..starts[number + 1] as usize]);
                }
            }
            Task::Index => {
                if let Err(error) = self.index(number, &mut buffers.words) {
                    self.failed.lock().push((number, error));
                }
            }
        }
    }

    /// About how many steps there are: as many as the trailers of some segments say, spread over the log. They are not
    /// checked, and only decide how much room is made beforehand.
    fn expected_steps(&self) -> Result<usize> {
        let Survey { parameters, links, .. } = self.survey;
        let mut asked = Vec::new();
        for link in links.iter().step_by(links.len().div_ceil(TRAILERS_ASKED).max(1)) {
            let offset = self.reader.slot_offset(link.slot);
            let trailer = scan::read_trailer(self.medium.storage, offset, parameters);
            let trailer = self.medium.io("read a footer", trailer)?;
            if let Ok(trailer) = Trailer::decode(&trailer, link.sequence, parameters.segment_bytes) {
                asked.push(trailer.entry_count as usize);
            }
        }
        Ok(extrapolate(&asked, links.len()) + self.survey.scan.entries.len())
    }

    /// What a full segment says, by its footer or, where that is damaged, by its frames.
    fn read(&self, link: &Link, buffers: &mut Buffers) -> Result<SegmentRead> {
        let Survey { parameters, .. } = self.survey;
        let (medium, sequence) = (self.medium, link.sequence);
        let offset = STORE_HEADER_BYTES + link.slot * parameters.segment_bytes;
        let footer = scan::read_footer(medium.storage, offset, sequence, parameters, &mut buffers.footer);
        if let Ok((trailer, entries)) = medium.io("read a footer", footer)? {
            if trailer.end != link.end || trailer.last_checksum != link.checksum {
                return medium.corrupt(offset, "the footer and the next segment's header do not agree");
            }
            let segment =
                FullSegment { slot: link.slot, end: trailer.end, record_bytes: trailer.record_bytes };
            // A kind that this version does not know is told of by the frame that holds it.
            if let Ok(read) = self.sort(segment, entries, &mut buffers.steps) {
                return Ok(read);
            }
        }
        // The footer is written after the next segment's header, so a crash may have torn it. The frames say the same.
        let bytes = scan::read_slot(medium.storage, offset, parameters.segment_bytes);
        let bytes = medium.io("read a segment whose footer does not check", bytes)?;
        let scan = scan::scan(&bytes, sequence, link.chain, parameters, &self.hasher);
        if scan.end != link.end || scan.last_checksum != link.checksum {
            let end = offset + scan.end % parameters.segment_bytes;
            medium.check_known(end, scan.stop)?;
            return medium.corrupt(
                end,
                format!("segment {sequence} was whole on disk and now ends here: {}", scan.stop),
            );
        }
        let segment = FullSegment { slot: link.slot, end: scan.end, record_bytes: scan.record_bytes };
        self.sort(segment, scan.entries.into_iter().map(Ok), &mut buffers.steps)
    }

    /// Sorts a segment's entries by shard, and counts what they weigh. `steps` is room that is used again.
    fn sort(
        &self,
        segment: FullSegment,
        entries: impl Iterator<Item = Result<FooterEntry, FormatError>>,
        steps: &mut Vec<(u8, IndexUpdate)>,
    ) -> Result<SegmentRead> {
        let slot_offset = self.reader.slot_offset(segment.slot);
        let mut tally = Tally::at(self.now_ms);
        let mut sorted = self.spare.lock().pop().unwrap_or_default();
        let starts = &mut sorted.starts;
        starts.clear();
        starts.resize(SHARD_COUNT + 1, 0);
        let mut listed_bytes = 0;
        let mut unreadable = Vec::new();
        steps.clear();
        for entry in entries {
            let entry = entry.map_err(|fault| self.corrupt(slot_offset, fault.reason()))?;
            listed_bytes += entry.length;
            tally.add(&RecordSize::listed(&entry));
            let offset = slot_offset + entry.offset;
            let Some(address) = Address::new(offset) else {
                return Err(self.corrupt(offset, "the footer's address is out of range"));
            };
            let leaves_something = match entry.kind {
                // It says nothing of its key that this version could pass on, and must not hide what does.
                Kind::Ignorable => continue,
                Kind::Forgotten => false,
                Kind::Completed | Kind::Released | Kind::Unreadable => self.now_ms < entry.key_expires_ms,
                Kind::Begun => true,
            };
            if entry.kind == Kind::Unreadable {
                unreadable.push((entry.hash, address));
            }
            let shard = shard_of(entry.hash);
            starts[usize::from(shard) + 1] += 1;
            steps.push((shard, IndexUpdate::new(self.packing, entry.hash, address, leaves_something)));
        }
        tally.add_dead(segment.record_bytes.saturating_sub(listed_bytes));
        for shard in 0..SHARD_COUNT {
            starts[shard + 1] += starts[shard];
        }

        let mut next = starts.clone();
        // Each of them is written, whatever is there from an earlier segment.
        sorted.steps.resize(steps.len(), IndexUpdate::default());
        for (shard, step) in steps {
            let place = &mut next[usize::from(*shard)];
            sorted.steps[*place as usize] = *step;
            *place += 1;
        }
        Ok(SegmentRead { segment, sorted, tally, unreadable })
    }

    /// Makes a shard of the index of what it has gathered.
    fn index(&self, shard: usize, spare: &mut Vec<u64>) -> Result<()> {
        let gathered = std::mem::take(&mut *self.shards[shard].lock());
        let shard = u8::try_from(shard).unwrap_or_else(|_| unreachable!("there are 256"));
        let look = |candidate| self.look(candidate);
        self.index.fill(self.packing, shard, gathered, spare, look, |size| self.space_usage.mark_dead(size))
    }

    /// Whose record it is, and what it weighs.
    fn look(&self, candidate: Candidate) -> Result<(u128, RecordSize)> {
        let address = candidate.address();
        let read = self.reader.record(address, |place, record| {
            (record.key_hash(&self.hasher), RecordSize::of(record, place.length_bytes))
        });
        // One record that cannot be read, or any more, is no reason to refuse all of the others: its segment's footer says
        // whose it was, and whoever asks for that key is told.
        let (hash, size) = read.or_else(|error| self.listed(address)?.ok_or(error))?;
        if candidate.may_be_of(hash) {
            Ok((hash, size))
        } else {
            // The index would not find the record's key, and its act would be performed again.
            Err(self.corrupt(address.offset(), "the footer names another key than this record"))
        }
    }

    /// The same by the footer of the segment, if it has one.
    fn listed(&self, address: Address) -> Result<Option<(u128, RecordSize)>> {
        let (slot, within) = self.reader.split(address);
        if slot == self.survey.tail_slot {
            return Ok(None);
        }
        // Read once and kept: there may be as many records that cannot be read as the footer has entries.
        let mut footers = self.footers.lock();
        let footer = match footers.entry(slot) {
            Entry::Occupied(footer) => footer.into_mut(),
            Entry::Vacant(place) => place.insert(self.footer_of(slot)?),
        };
        let at = footer.binary_search_by_key(&within, |entry| entry.offset);
        Ok(at.ok().map(|at| (footer[at].hash, RecordSize::listed(&footer[at]))))
    }

    /// The entries of the footer in `slot`, by offset; none if it has no footer.
    fn footer_of(&self, slot: u64) -> Result<Vec<FooterEntry>> {
        let Survey { parameters, .. } = self.survey;
        let mut buffer = Vec::new();
        let (offset, sequence) = (self.reader.slot_offset(slot), self.reader.sequence(slot));
        let footer = scan::read_footer(self.medium.storage, offset, sequence, parameters, &mut buffer);
        let footer = self.medium.io("read a footer", footer)?;
        Ok(footer.map_or_else(|_| Vec::new(), |(_, entries)| entries.flatten().collect()))
    }

    fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::corrupt(self.reader.path(), offset, reason)
    }
}

/// How much `count` of them are together, if they are like those of `sample`.
fn extrapolate(sample: &[usize], count: usize) -> usize {
    sample.iter().sum::<usize>() * count / sample.len().max(1)
}

/// What a thread works with, kept from one segment or shard to the next.
#[derive(Default)]
struct Buffers {
    footer: Vec<u8>,
    steps: Vec<(u8, IndexUpdate)>,
    words: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_taken_to_be_like_the_sample() {
        assert_eq!(extrapolate(&[10, 20, 60], 100), 3_000);
        assert_eq!(extrapolate(&[7], 1), 7);
        assert_eq!(extrapolate(&[], 5), 0);
    }
}
