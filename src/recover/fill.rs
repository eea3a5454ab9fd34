//! Fills the index, from the footers of full segments and from the frames of the last segment.
//!
//! Footers have an entry for every operation that the store remembers, so this takes most of the time of an opening.
//! The log is read in windows of some segments. For each window, the threads first read and check the footers, several
//! at a time, and sort the entries by the shard of the index that they belong to. Then each shard gathers its entries,
//! several shards at a time, each in the order of the log. When the whole log is read, the threads turn the shards into
//! tables, in the memory in which the entries were gathered.

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
use crate::hash::KeyHasher;
use crate::index::{Address, Candidate, Index, IndexUpdate, Packing, SHARD_COUNT, ShardUpdates, shard_of};
use crate::log::reader::Reader;
use crate::log::scan;
use crate::log::space_usage::{SpaceUsage, Tally};
use crate::log::writer::FullSegment;
use crate::record::RecordSize;
use crate::sync::{Mutex, RwLock};

/// The number of windows that a log is read in, unless the limits below say otherwise. A window's updates take 16 bytes
/// an entry. For a 32nd of the log that is little beside the 8 bytes an entry of the whole log that the shards gather,
/// and the 10 bytes of the finished index.
const WINDOWS: usize = 32;

/// The number of trailers, at most, that are read beforehand to estimate the number of entries.
const SAMPLED_TRAILERS: usize = 256;

/// The number of segments in a window for each thread, at least. With fewer, sharing the work costs more than it saves.
const SEGMENTS_FOR_A_THREAD: usize = 4;

/// The length of a window, at most, unless that is less than a segment for each thread.
const MAX_WINDOW_BYTES: u64 = 512 << 20;

/// One thread reads a log that is shorter: starting others would take longer.
const PARALLEL_FROM_BYTES: u64 = 16 << 20;

/// The number of threads, at most. More would mostly wait for memory.
const MAX_THREADS: usize = 8;

/// The filled index, and what else the footers and frames contain.
pub(super) struct FilledIndex {
    pub(super) index: Index,
    pub(super) space_usage: SpaceUsage,
    pub(super) full: Vec<FullSegment>,
    /// Addresses of the records of kind `Unreadable` that the index points to.
    pub(super) unreadable: Vec<Address>,
}

/// The index updates of a segment by shard: those of a shard are at `starts[shard]..starts[shard + 1]`.
#[derive(Default)]
struct Sorted {
    updates: Vec<IndexUpdate>,
    starts: Vec<u32>,
}

/// A segment that was read.
struct SegmentRead {
    segment: FullSegment,
    sorted: Sorted,
    tally: Tally,
    /// The records of kind `Unreadable`: the hashes of their keys, and their addresses.
    unreadable: Vec<(u128, Address)>,
}

/// A task that the threads share, item by item.
#[derive(Clone, Copy)]
enum Task {
    /// Reads one segment of the window that begins with this link.
    Read { first_link: usize },
    /// Appends the updates of the window to one shard, oldest segment first.
    Gather,
    /// Builds one shard of the index from its gathered updates.
    Build,
}

/// The input of filling, and the results that the threads hand over from one task to the next.
struct Filler<'a> {
    context: &'a OpenContext<'a>,
    survey: &'a Survey,
    reader: &'a Reader,
    hasher: KeyHasher,
    packing: Packing,
    now_ms: u64,
    /// Entries of footers that were read to identify the keys of unreadable records, by slot.
    footers: Mutex<HashMap<u64, Vec<FooterEntry>>>,
    index: Index,
    space_usage: SpaceUsage,
    shards: Vec<Mutex<ShardUpdates>>,
    /// The segments read of the window, each with its number in the window.
    read: Mutex<Vec<(usize, Result<SegmentRead>)>>,
    /// The window, oldest segment first.
    window: RwLock<Vec<Sorted>>,
    /// Updates of earlier windows, whose memory is used again.
    spare: Mutex<Vec<Sorted>>,
    /// Shards that could not be built.
    failed: Mutex<Vec<(usize, Error)>>,
}

/// The number of threads that read a log of `log_bytes`.
fn threads_for(log_bytes: u64) -> usize {
    // Shuttle explores only threads that it started itself.
    if log_bytes < PARALLEL_FROM_BYTES || cfg!(oncekey_shuttle) {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Fills an index with each key's last record.
pub(super) fn fill(
    context: &OpenContext<'_>,
    survey: &Survey,
    reader: &Reader,
    now_ms: u64,
) -> Result<FilledIndex> {
    let Survey { parameters, links, .. } = survey;
    let threads = threads_for((links.len() as u64 + 1) * parameters.segment_bytes);
    let last_slot = links.iter().map(|link| link.slot).fold(survey.tail_slot, u64::max);
    // All segments first: telling two keys apart may take reading a record of any earlier segment.
    for link in links {
        reader.set_segment(link.slot, link.sequence, link.end % parameters.segment_bytes);
    }
    let end = survey.scan.end % parameters.segment_bytes;
    reader.set_segment(survey.tail_slot, survey.tail_header.sequence, end);
    let mut filler = Filler {
        context,
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
    let expected = filler.estimated_updates()?.div_ceil(SHARD_COUNT);
    let updates = |shard| ShardUpdates::new(filler.packing, shard).expecting(expected);
    filler.shards = (0..=u8::MAX).map(|shard| Mutex::new(updates(shard))).collect();

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
            team.run(Task::Read { first_link }, window.min(links.len() - first_link));
            let mut read = std::mem::take(&mut *filler.read.lock());
            read.sort_unstable_by_key(|(number, _)| *number);
            for (_, outcome) in read {
                full.push(take(outcome?));
            }
            team.run(Task::Gather, SHARD_COUNT);
            filler.spare.lock().append(&mut filler.window.write());
        }
        let tail = FullSegment {
            slot: survey.tail_slot,
            end: survey.scan.end,
            record_bytes: survey.scan.record_bytes,
        };
        let entries = survey.scan.entries.iter().copied().map(Ok);
        take(filler.sort(tail, entries, &mut Vec::new())?);
        team.run(Task::Gather, SHARD_COUNT);
        team.run(Task::Build, SHARD_COUNT);
        Ok(())
    })?;
    let failed = filler.failed.into_inner();
    if let Some((_, error)) = failed.into_iter().min_by_key(|(shard, _)| *shard) {
        return Err(error);
    }
    unreadable.retain(|(hash, address)| filler.index.holds(*hash, *address));
    let unreadable = unreadable.into_iter().map(|(_, address)| address).collect();
    Ok(FilledIndex { index: filler.index, space_usage: filler.space_usage, full, unreadable })
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
                for Sorted { updates, starts } in &*self.window.read() {
                    gathered.append(&updates[starts[number] as usize..starts[number + 1] as usize]);
                }
            }
            Task::Build => {
                if let Err(error) = self.build(number, &mut buffers.words) {
                    self.failed.lock().push((number, error));
                }
            }
        }
    }

    /// Estimates the number of updates from the trailers of some segments, spread over the log. The trailers are not
    /// verified: the estimate only decides how much memory is allocated beforehand.
    fn estimated_updates(&self) -> Result<usize> {
        let Survey { parameters, links, .. } = self.survey;
        let mut sampled = Vec::new();
        for link in links.iter().step_by(links.len().div_ceil(SAMPLED_TRAILERS).max(1)) {
            let offset = self.reader.slot_offset(link.slot);
            let trailer = scan::read_trailer(self.context.storage, offset, parameters);
            let trailer = self.context.io("read a footer", trailer)?;
            if let Ok(trailer) = Trailer::decode(&trailer, link.sequence, parameters.segment_bytes) {
                sampled.push(trailer.entry_count as usize);
            }
        }
        Ok(extrapolate(&sampled, links.len()) + self.survey.scan.entries.len())
    }

    /// Reads a full segment by its footer or, if that is not valid, by its frames.
    fn read(&self, link: &Link, buffers: &mut Buffers) -> Result<SegmentRead> {
        let Survey { parameters, .. } = self.survey;
        let (context, sequence) = (self.context, link.sequence);
        let offset = STORE_HEADER_BYTES + link.slot * parameters.segment_bytes;
        let footer = scan::read_footer(context.storage, offset, sequence, parameters, &mut buffers.footer);
        if let Ok((trailer, entries)) = context.io("read a footer", footer)? {
            if trailer.end != link.end || trailer.last_checksum != link.checksum {
                return context.corrupt(offset, "the footer and the next segment's header do not agree");
            }
            let segment =
                FullSegment { slot: link.slot, end: trailer.end, record_bytes: trailer.record_bytes };
            // An entry of unknown kind fails here. The frames below then yield the error with the record's offset.
            if let Ok(read) = self.sort(segment, entries, &mut buffers.updates) {
                return Ok(read);
            }
        }
        // The footer is written last and not synced by itself, so a crash may have torn it. The frames contain the
        // same.
        let bytes = scan::read_slot(context.storage, offset, parameters.segment_bytes);
        let bytes = context.io("read a segment whose footer is not valid", bytes)?;
        let scan = scan::scan(&bytes, sequence, link.chain, parameters, &self.hasher);
        if scan.end != link.end || scan.last_checksum != link.checksum {
            let end = offset + scan.end % parameters.segment_bytes;
            context.check_known(end, scan.stop)?;
            return context.corrupt(
                end,
                format!("segment {sequence} was whole on disk and now ends here: {}", scan.stop),
            );
        }
        let segment = FullSegment { slot: link.slot, end: scan.end, record_bytes: scan.record_bytes };
        self.sort(segment, scan.entries.into_iter().map(Ok), &mut buffers.updates)
    }

    /// Sorts a segment's entries by shard and adds up the sizes of its records. `updates` is a buffer that is used
    /// again.
    fn sort(
        &self,
        segment: FullSegment,
        entries: impl Iterator<Item = Result<FooterEntry, FormatError>>,
        updates: &mut Vec<(u8, IndexUpdate)>,
    ) -> Result<SegmentRead> {
        let slot_offset = self.reader.slot_offset(segment.slot);
        let mut tally = Tally::at(self.now_ms);
        let mut sorted = self.spare.lock().pop().unwrap_or_default();
        let starts = &mut sorted.starts;
        starts.clear();
        starts.resize(SHARD_COUNT + 1, 0);
        let mut listed_bytes = 0;
        let mut unreadable = Vec::new();
        updates.clear();
        for entry in entries {
            let entry = entry.map_err(|fault| self.corrupt(slot_offset, fault.reason()))?;
            listed_bytes += entry.length;
            tally.add(&RecordSize::listed(&entry));
            let offset = slot_offset + entry.offset;
            let Some(address) = Address::new(offset) else {
                return Err(self.corrupt(offset, "the footer's address is out of range"));
            };
            let leaves_something = match entry.kind {
                // This version cannot read what it says about its key, so it must not hide an earlier record.
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
            updates.push((shard, IndexUpdate::new(self.packing, entry.hash, address, leaves_something)));
        }
        tally.add_dead(segment.record_bytes.saturating_sub(listed_bytes));
        for shard in 0..SHARD_COUNT {
            starts[shard + 1] += starts[shard];
        }

        let mut next = starts.clone();
        // Old values of an earlier segment may remain here: the loop overwrites every element.
        sorted.updates.resize(updates.len(), IndexUpdate::default());
        for (shard, update) in updates {
            let place = &mut next[usize::from(*shard)];
            sorted.updates[*place as usize] = *update;
            *place += 1;
        }
        Ok(SegmentRead { segment, sorted, tally, unreadable })
    }

    /// Builds a shard of the index from its gathered updates.
    fn build(&self, shard: usize, spare: &mut Vec<u64>) -> Result<()> {
        let number = u8::try_from(shard).unwrap_or_else(|_| unreachable!("there are 256"));
        let none = ShardUpdates::new(self.packing, number);
        let updates = std::mem::replace(&mut *self.shards[shard].lock(), none);
        let inspect = |candidate| self.inspect(candidate);
        self.index.fill(updates, spare, inspect, |size| self.space_usage.mark_dead(size))
    }

    /// The hash of the key of a record, and the record's size.
    fn inspect(&self, candidate: Candidate) -> Result<(u128, RecordSize)> {
        let address = candidate.address();
        let read = self.reader.record(address, |place, record| {
            (record.key_hash(&self.hasher), RecordSize::of(record, place.length_bytes))
        });
        // An unreadable record is no reason to refuse the whole file: the footer of its segment identifies the key, and
        // a lookup of that key reports the damage.
        let (hash, size) = read.or_else(|error| self.listed_in_footer(address)?.ok_or(error))?;
        if candidate.may_belong_to(hash) {
            Ok((hash, size))
        } else {
            // The index would not find the record's key, and its operation would run again.
            Err(self.corrupt(address.offset(), "the footer names another key than this record"))
        }
    }

    /// The same from the footer of the segment. None if there is no valid footer, or no entry of this record.
    fn listed_in_footer(&self, address: Address) -> Result<Option<(u128, RecordSize)>> {
        let (slot, within) = self.reader.split(address);
        if slot == self.survey.tail_slot {
            return Ok(None);
        }
        // Kept once read: every record of the segment may be unreadable.
        let mut footers = self.footers.lock();
        let footer = match footers.entry(slot) {
            Entry::Occupied(footer) => footer.into_mut(),
            Entry::Vacant(place) => place.insert(self.footer_of(slot)?),
        };
        let at = footer.binary_search_by_key(&within, |entry| entry.offset);
        Ok(at.ok().map(|at| (footer[at].hash, RecordSize::listed(&footer[at]))))
    }

    /// The entries of the footer in `slot`, by offset; none if the footer is not valid.
    fn footer_of(&self, slot: u64) -> Result<Vec<FooterEntry>> {
        let Survey { parameters, .. } = self.survey;
        let mut buffer = Vec::new();
        let (offset, sequence) = (self.reader.slot_offset(slot), self.reader.sequence(slot));
        let footer = scan::read_footer(self.context.storage, offset, sequence, parameters, &mut buffer);
        let footer = self.context.io("read a footer", footer)?;
        Ok(footer.map_or_else(|_| Vec::new(), |(_, entries)| entries.flatten().collect()))
    }

    fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::corrupt(self.reader.path(), offset, reason)
    }
}

/// The sum of `count` numbers whose average is that of `sample`.
fn extrapolate(sample: &[usize], count: usize) -> usize {
    sample.iter().sum::<usize>() * count / sample.len().max(1)
}

/// The buffers of a thread, kept from one item to the next.
#[derive(Default)]
struct Buffers {
    footer: Vec<u8>,
    updates: Vec<(u8, IndexUpdate)>,
    words: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_scales_the_average_of_the_sample() {
        assert_eq!(extrapolate(&[10, 20, 60], 100), 3_000);
        assert_eq!(extrapolate(&[7], 1), 7);
        assert_eq!(extrapolate(&[], 5), 0);
    }
}
