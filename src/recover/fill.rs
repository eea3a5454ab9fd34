//! Fills the index from the footers of the full segments and from the frames of the last segment.
//!
//! The footers together have an entry for every operation that the store remembers, so this takes most of the time of
//! recovery. The log is read in windows of several segments. For each window, the threads first read and check the
//! footers, several at a time, and sort their entries by index shard. Then they append the entries to the shards,
//! several shards at a time, each in the order of the log. After the last window, the threads turn each shard into a
//! table, in the memory in which its entries were gathered.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::thread;

use super::listed::{Listed, ListedMessages, SegmentContents, SortedUpdates, StepCandidates, Unsorted};
use super::open_context::OpenContext;
use super::steps::StepFinder;
use super::survey::{Link, Survey};
use super::team::with_team;
use crate::error::{Error, Result};
use crate::format::STORE_HEADER_BYTES;
use crate::format::footer::{Entries, FooterEntry, Trailer};
use crate::format::record::Kind;
use crate::hash::KeyHasher;
use crate::index::{Address, Candidate, Index, Packing, SHARD_COUNT, ShardUpdates};
use crate::log::footer_builder::FooterBuilder;
use crate::log::reader::Reader;
use crate::log::scan;
use crate::log::space_usage::SpaceUsage;
use crate::log::writer::FullSegment;
use crate::record::{PendingMessage, RecordSize};
use crate::status::Version;
use crate::step_set::FoundUnfinished;
use crate::sync::{Mutex, RwLock};

/// The number of windows in which a log is read, unless one of the limits below changes it. An entry takes 8 bytes
/// while its window is being read. With 32 windows, that is a quarter of a byte for each entry of the whole log: little
/// compared with the 8 bytes that each entry takes in the shards, and with its 10 bytes in the finished index.
const WINDOWS: usize = 32;

/// The maximum number of trailers that are read in advance to estimate the number of entries.
const MAX_SAMPLED_TRAILERS: usize = 256;

/// The minimum number of segments in a window for each thread, unless the window would exceed [`MAX_WINDOW_BYTES`].
/// With fewer segments, sharing the work costs more than it saves.
const MIN_SEGMENTS_PER_THREAD: usize = 4;

/// The maximum length of a window. Only a window with a single segment for each thread may be longer.
const MAX_WINDOW_BYTES: u64 = 512 << 20;

/// The minimum length of a log that several threads read. Reading a shorter log takes less time than starting threads.
const MIN_PARALLEL_BYTES: u64 = 16 << 20;

/// The maximum number of threads. More threads would mostly wait for memory.
const MAX_THREADS: usize = 8;

/// The number of entries of a [`FooterBuilder`] that are unpacked at a time: 20 KiB.
const ADDED_TOGETHER: usize = 256;

/// The filled index, and everything else that recovery collects from the footers and frames.
pub(super) struct FilledIndex {
    /// The index, with the last record of each key.
    pub(super) index: Index,
    /// The space that the records of the log take.
    pub(super) space_usage: SpaceUsage,
    /// The full segments, oldest first.
    pub(super) full: Vec<FullSegment>,
    /// Addresses of the records of kind `Unreadable` that the index points to.
    pub(super) unreadable: Vec<Address>,
    /// The operations that began and have not ended, with their steps.
    pub(super) begun: Vec<FoundUnfinished>,
    /// The messages that are not acknowledged, in the order of their ids.
    pub(super) messages: Vec<PendingMessage>,
}

/// A task that the threads share, item by item.
#[derive(Clone, Copy)]
enum Task {
    /// Reads the segments of the window that begins with this link. Each item is a segment.
    Read { first_link: usize },
    /// Appends the updates of the window to the shards, oldest segment first. Each item is a shard.
    Gather,
    /// Builds the index from the gathered updates. Each item is a shard.
    Build,
}

/// The input for filling the index, and the results that one task leaves for the next.
struct Filler<'a> {
    context: &'a OpenContext<'a>,
    survey: &'a Survey,
    reader: &'a Reader,
    hasher: KeyHasher,
    packing: Packing,
    now_ms: u64,
    /// The entries of each footer that was read to identify the key of an unreadable record, by slot.
    footers: Mutex<HashMap<u64, Vec<FooterEntry>>>,
    index: Index,
    space_usage: SpaceUsage,
    /// The updates that each shard has gathered so far.
    shards: Vec<Mutex<ShardUpdates>>,
    /// The result of reading each segment of the window, with the number of the segment in the window.
    results: Mutex<Vec<(usize, Result<SegmentContents>)>>,
    /// The updates of the window's segments, oldest segment first.
    window: RwLock<Vec<SortedUpdates>>,
    /// The updates of earlier windows, whose memory is reused.
    spare: Mutex<Vec<SortedUpdates>>,
    /// The operations that began and have not ended, of the shards that are built. Without their steps.
    begun: Mutex<Vec<FoundUnfinished>>,
    /// The shards that could not be built, by number.
    failures: Mutex<Vec<(usize, Error)>>,
}

/// Returns the maximum number of threads that read a log of `log_bytes`.
fn threads_for(log_bytes: u64) -> usize {
    // Shuttle explores only threads that it started itself.
    if log_bytes < MIN_PARALLEL_BYTES || cfg!(oncekey_shuttle) {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Fills an index with the last record of each key.
pub(super) fn fill(
    context: &OpenContext<'_>,
    survey: &Survey,
    reader: &Reader,
    now_ms: u64,
) -> Result<FilledIndex> {
    let Survey { parameters, links, .. } = survey;
    let threads = threads_for((links.len() as u64 + 1) * parameters.segment_bytes);
    let last_slot = links.iter().map(|link| link.slot).fold(survey.tail_slot, u64::max);
    // The reader needs all segments before the index is built, because to distinguish two keys, their records are read,
    // which may be in any segment.
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
        results: Mutex::default(),
        window: RwLock::default(),
        spare: Mutex::default(),
        begun: Mutex::default(),
        failures: Mutex::default(),
    };
    let expected = filler.estimated_updates()?.div_ceil(SHARD_COUNT);
    let updates = |shard| ShardUpdates::new(filler.packing, shard).expecting(expected);
    filler.shards = (0..=u8::MAX).map(|shard| Mutex::new(updates(shard))).collect();

    let mut full = Vec::with_capacity(links.len());
    let mut unreadable = Vec::new();
    let mut steps = StepCandidates::default();
    let mut messages = ListedMessages::default();
    let max_window = usize::try_from(MAX_WINDOW_BYTES / parameters.segment_bytes).unwrap_or(1);
    let min_window = MIN_SEGMENTS_PER_THREAD * threads;
    let window = (links.len() / WINDOWS).max(min_window).min(max_window).max(threads);
    let work = |task, number, buffers: &mut Buffers| filler.work(task, number, buffers);
    with_team(threads, &work, |team| -> Result<()> {
        let mut add_to_window = |contents: SegmentContents| {
            unreadable.extend(contents.unreadable);
            steps.append(contents.steps);
            messages.append(contents.messages);
            filler.space_usage.absorb(contents.tally);
            filler.window.write().push(contents.updates);
            contents.segment
        };
        for first_link in (0..links.len()).step_by(window) {
            team.run(Task::Read { first_link }, window.min(links.len() - first_link));
            let mut results = std::mem::take(&mut *filler.results.lock());
            results.sort_unstable_by_key(|(number, _)| *number);
            for (_, result) in results {
                full.push(add_to_window(result?));
            }
            team.run(Task::Gather, SHARD_COUNT);
            filler.spare.lock().append(&mut filler.window.write());
        }
        let tail = FullSegment {
            slot: survey.tail_slot,
            end: survey.scan.end,
            record_bytes: survey.scan.record_bytes,
        };
        add_to_window(filler.sort(tail, &survey.scan.entries, &mut Unsorted::default())?);
        team.run(Task::Gather, SHARD_COUNT);
        team.run(Task::Build, SHARD_COUNT);
        Ok(())
    })?;
    let failures = std::mem::take(&mut *filler.failures.lock());
    if let Some((_, error)) = failures.into_iter().min_by_key(|(shard, _)| *shard) {
        return Err(error);
    }
    unreadable.retain(|(hash, address)| filler.index.holds(*hash, *address));
    let mut unreadable: Vec<Address> = unreadable.into_iter().map(|(_, address)| address).collect();
    let mut begun = std::mem::take(&mut *filler.begun.lock());
    let listed = |address| filler.entry_of(address);
    let finder = StepFinder { reader, hasher: &filler.hasher, listed: &listed };
    let found = finder.add_steps(&steps, &mut begun)?;
    filler.space_usage.mark_dead(&RecordSize::of_steps(found.dead_bytes));
    unreadable.extend(found.carriers);
    let messages = messages.into_pending();
    Ok(FilledIndex {
        index: filler.index,
        space_usage: filler.space_usage,
        full,
        unreadable,
        begun,
        messages,
    })
}

impl Filler<'_> {
    /// Does item `number` of `task`.
    fn work(&self, task: Task, number: usize, buffers: &mut Buffers) {
        match task {
            Task::Read { first_link } => {
                let result = self.read_segment(&self.survey.links[first_link + number], buffers);
                self.results.lock().push((number, result));
            }
            Task::Gather => {
                let mut gathered = self.shards[number].lock();
                for updates in &*self.window.read() {
                    updates.append_to(&mut gathered, number);
                }
            }
            Task::Build => {
                if let Err(error) = self.build(number, &mut buffers.words) {
                    self.failures.lock().push((number, error));
                }
            }
        }
    }

    /// Estimates the number of updates from the trailers of a sample of segments, spread over the log. The trailers are
    /// not verified, because the estimate only determines how much memory is allocated in advance.
    fn estimated_updates(&self) -> Result<usize> {
        let Survey { parameters, links, .. } = self.survey;
        let mut sampled = Vec::new();
        for link in links.iter().step_by(links.len().div_ceil(MAX_SAMPLED_TRAILERS).max(1)) {
            let offset = self.reader.slot_offset(link.slot);
            let trailer = scan::read_trailer(self.context.storage, offset, parameters);
            let trailer = self.context.io("read a footer", trailer)?;
            if let Ok(trailer) = Trailer::decode(&trailer, link.sequence, parameters.segment_bytes) {
                sampled.push(trailer.entry_count as usize);
            }
        }
        Ok(extrapolate(&sampled, links.len()) + self.survey.scan.entries.len())
    }

    /// Returns the operation whose last record is that of this candidate, without its steps, unless that record is known to
    /// be of an operation that ended. If the record cannot be read, the operation counts as the oldest, and its origin as 0,
    /// so that no step of it is taken for one of an earlier operation.
    fn begun(&self, candidate: Candidate) -> Result<Option<FoundUnfinished>> {
        let address = candidate.address();
        let unknown = Version::from_u64(0);
        let found = |hash, since_ms, version, origin| FoundUnfinished {
            hash,
            since_ms,
            version,
            origin,
            steps: Vec::new(),
        };
        let begun = self.reader.record(address, |_, record| {
            let (is_begun, origin) = match record.kind {
                Kind::Unreadable => (matches!(record.carried_kind(), None | Some(Kind::Begun)), unknown),
                _ => (true, record.origin),
            };
            let hash = || record.key_hash(&self.hasher);
            is_begun.then(|| found(hash(), record.time_ms, record.version, origin))
        });
        match begun {
            Ok(begun) => Ok(begun.filter(|begun| candidate.may_belong_to(begun.hash))),
            // Only this key is unreadable, so its error is that of calls on the key and not of the opening.
            Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                let entry = self.entry_of(address)?.ok_or(error)?;
                Ok(Some(found(entry.hash, 0, unknown, unknown)))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a full segment by its footer or, if that is not valid, by its frames.
    fn read_segment(&self, link: &Link, buffers: &mut Buffers) -> Result<SegmentContents> {
        let Survey { parameters, .. } = self.survey;
        let (context, sequence) = (self.context, link.sequence);
        let offset = STORE_HEADER_BYTES + link.slot * parameters.segment_bytes;
        let slot_offset = self.reader.slot_offset(link.slot);
        let Buffers { footer, unsorted, .. } = buffers;
        let mut listed = self.listed(slot_offset, unsorted);
        let take = |entries: Entries<'_>| listed.add(entries);
        // This fails if an entry is of unknown kind, too. Then the frames are read, and the error that they yield has the
        // offset of the record.
        let trailer = scan::read_footer(context.storage, offset, sequence, parameters, footer, take);
        if let Ok(trailer) = context.io("read a footer", trailer)? {
            if trailer.end != link.end || trailer.last_checksum != link.checksum {
                return context.corrupt(offset, "the footer and the next segment's header do not agree");
            }
            let segment =
                FullSegment { slot: link.slot, end: trailer.end, record_bytes: trailer.record_bytes };
            return Ok(listed.sort(segment, self.spare_updates()));
        }
        // The footer is written last and not synced by itself, so a crash may have torn it. The frames contain the same
        // information.
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
        self.sort(segment, &scan.entries, unsorted)
    }

    /// Begins to take the updates of the segment whose slot is at `slot_offset`.
    fn listed<'b>(&self, slot_offset: u64, unsorted: &'b mut Unsorted) -> Listed<'b> {
        Listed::new(self.packing, self.now_ms, slot_offset, unsorted)
    }

    /// Returns the memory of updates of an earlier window, if there are any.
    fn spare_updates(&self) -> SortedUpdates {
        self.spare.lock().pop().unwrap_or_default()
    }

    /// Sorts the entries of a segment that was read by its frames.
    fn sort(
        &self,
        segment: FullSegment,
        entries: &FooterBuilder,
        unsorted: &mut Unsorted,
    ) -> Result<SegmentContents> {
        let slot_offset = self.reader.slot_offset(segment.slot);
        let mut listed = self.listed(slot_offset, unsorted);
        let (mut entries, mut piece) = (entries.iter(), Vec::with_capacity(ADDED_TOGETHER));
        loop {
            piece.clear();
            piece.extend(entries.by_ref().take(ADDED_TOGETHER));
            if piece.is_empty() {
                break;
            }
            let added = listed.add(piece.iter().copied().map(Ok));
            added.map_err(|fault| self.corrupt(slot_offset, fault.reason()))?;
        }
        Ok(listed.sort(segment, self.spare_updates()))
    }

    /// Builds a shard of the index from its gathered updates, and finds the unfinished operations in it.
    fn build(&self, shard: usize, spare: &mut Vec<u64>) -> Result<()> {
        let number = u8::try_from(shard).unwrap_or_else(|_| unreachable!("there are 256 shards"));
        let empty = ShardUpdates::new(self.packing, number);
        let mut updates = std::mem::replace(&mut *self.shards[shard].lock(), empty);
        let candidates = updates.take_begun();
        let inspect = |candidate| self.inspect(candidate);
        self.index.fill(updates, spare, inspect, |size| self.space_usage.mark_dead(size))?;
        for candidate in candidates.filter(|candidate| self.index.holds_candidate(*candidate)) {
            if let Some(begun) = self.begun(candidate)? {
                self.begun.lock().push(begun);
            }
        }
        Ok(())
    }

    /// Reads the record of a candidate. Returns the hash of its key, and its size.
    fn inspect(&self, candidate: Candidate) -> Result<(u128, RecordSize)> {
        let address = candidate.address();
        let read = self.reader.record(address, |place, record| {
            (record.key_hash(&self.hasher), RecordSize::of(record, place.length_bytes))
        });
        // An unreadable record is no reason to refuse the whole file, because the footer of its segment identifies its
        // key, and a lookup of that key reports the damage.
        let (hash, size) = match read {
            Ok(read) => read,
            Err(error) => {
                let entry = self.listed_in_footer(address)?.ok_or(error)?;
                (entry.hash, RecordSize::listed(&entry))
            }
        };
        if candidate.may_belong_to(hash) {
            Ok((hash, size))
        } else {
            // With the hash from the footer, a lookup of the record's key would not find it, and its operation would
            // run again.
            Err(self.corrupt(address.offset(), "the footer lists this record under another key"))
        }
    }

    /// Returns the entry of the record at `address` in the footer of its segment. None if the segment has no valid footer,
    /// or the footer has no entry for the record.
    fn listed_in_footer(&self, address: Address) -> Result<Option<FooterEntry>> {
        let (slot, within) = self.reader.split(address);
        if slot == self.survey.tail_slot {
            return Ok(None);
        }
        // A footer that was read is kept, because every record of its segment may be unreadable.
        let mut footers = self.footers.lock();
        let footer = match footers.entry(slot) {
            Entry::Occupied(footer) => footer.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.footer_of(slot)?),
        };
        let at = footer.binary_search_by_key(&within, |entry| entry.offset);
        Ok(at.ok().map(|at| footer[at]))
    }

    /// Returns the entry of a record in the footer of its segment, or what the last segment's will be.
    fn entry_of(&self, address: Address) -> Result<Option<FooterEntry>> {
        Ok(self.listed_in_footer(address)?.or_else(|| self.scanned(address)))
    }

    /// Returns the entry of a record in the last segment, which has no footer yet.
    fn scanned(&self, address: Address) -> Option<FooterEntry> {
        let (slot, within) = self.reader.split(address);
        if slot == self.survey.tail_slot { self.survey.scan.entries.at_offset(within) } else { None }
    }

    /// Reads the entries of the footer in `slot`, in the order of their offsets. Empty if the footer is not valid.
    fn footer_of(&self, slot: u64) -> Result<Vec<FooterEntry>> {
        let Survey { parameters, .. } = self.survey;
        let (offset, sequence) = (self.reader.slot_offset(slot), self.reader.sequence(slot));
        let footer = scan::read_footer_entries(self.context.storage, offset, sequence, parameters);
        Ok(self.context.io("read a footer", footer)?.map_or_else(|_| Vec::new(), |(_, entries)| entries))
    }

    fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::corrupt(self.reader.path(), offset, reason)
    }
}

/// Estimates the sum of `count` numbers from the average of `sample`.
fn extrapolate(sample: &[usize], count: usize) -> usize {
    sample.iter().sum::<usize>() * count / sample.len().max(1)
}

/// The buffers of a thread, reused for one item after another.
#[derive(Default)]
struct Buffers {
    footer: Vec<u8>,
    unsorted: Unsorted,
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
