//! Reads the file of a store beside the process that has it open: without a lock, a map or a write.
//!
//! A [`View`] is the log as it was at one moment, from its head to the end of a frame. Reading it takes a while, and the
//! other process goes on meanwhile, so this relies on the order in which that process writes:
//!
//! - The copies of a segment's live records are written before a header with a head above the segment.
//! - Only after such a header is on disk is the slot of the segment reused, and then its header is overwritten first.
//!
//! So a view reads the headers first, then the tail, and then the full segments, the oldest one first. Whatever was moved
//! out of the segments that those headers still count was written before the tail was read, or is still where it was. A
//! full segment whose slot was reused before it was read is a fault, and the next survey has a higher head. The segments that
//! a survey has taken are not read again, so a reader catches up with a busy store, however long its log is.
//!
//! What is read while it is being written looks like damage. A fault therefore counts only if two surveys find it, with the
//! same headers before, between and after them: the second one comes after every write that the first one met half done,
//! and finds the fault at the same place only if it is on disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::open_context::OpenContext;
use super::survey::{Link, Survey};
use super::verdict::Verdict;
use crate::clock::{HighWater, OpeningRules, TimeSource, judge_opening};
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::header::{Parameters, SegmentHeader};
use crate::format::record::{Kind, Record};
use crate::format::{NEVER_MS, STORE_HEADER_BYTES};
use crate::hash::{ByHash, Domain, KeyHasher};
use crate::index::Address;
use crate::log::reader::{Reader, RecordLocation};
use crate::log::scan;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, lost_liveness};
use crate::storage::Storage;

/// The maximum number of surveys and rounds for one refresh.
const MAX_ROUNDS: usize = 256;
/// The pause after a fault, in which the other process finishes what it is writing.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the last record of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    address: Address,
    position: u64,
}

/// The log of a file as it was at one moment.
#[derive(Debug)]
pub(crate) struct View {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    parameters: Parameters,
    hasher: KeyHasher,
    reader: Reader,
    clock: ViewClock,
    /// The full segments by sequence.
    full: BTreeMap<u64, Link>,
    head: u64,
    tail: u64,
    /// The last records of the keys that the tail lists.
    tail_entries: Vec<FooterEntry>,
    /// All full segments below this sequence were taken.
    taken_to: u64,
    last: HashMap<u128, Last, ByHash>,
    /// The hash of each key whose last record is that of an attempt which began.
    begun: HashSet<u128, ByHash>,
    /// Whether the log ends with a close mark, so that no process had the store open.
    is_closed: bool,
}

/// The store time of a view, which runs on while the view stays as it is.
#[derive(Debug)]
struct ViewClock {
    source: Arc<dyn TimeSource>,
    rules: OpeningRules,
    seen: Option<HighWater>,
}

impl ViewClock {
    /// The store time now. If the wall clock has jumped, the latest time in the log: nothing expires then.
    fn now_ms(&self) -> u64 {
        let Some(seen) = &self.seen else { return 0 };
        judge_opening(seen, &self.source.read(), &self.rules).map_or(seen.store_ms(), |time| time.store_ms)
    }
}

/// The list of a segment, for a walk over the view.
#[derive(Debug)]
pub(crate) struct ViewSegment {
    pub(crate) sequence: u64,
    /// The hash and the address of each record that the segment lists, or why its list cannot be read.
    pub(crate) listed: Result<Vec<(u128, Address)>>,
    /// Whether this is the tail.
    pub(crate) is_last: bool,
    pub(crate) segment_bytes: u64,
    /// The number of bytes of the log after this segment.
    pub(crate) left_bytes: u64,
}

impl View {
    /// Reads the log on `storage`, which was opened for reading.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        path: &Path,
        (source, rules): (Arc<dyn TimeSource>, OpeningRules),
    ) -> Result<View> {
        let context = OpenContext { storage: &*storage, path };
        let parameters = stable(&context, || context.existing_parameters())?;
        let reader = Reader::new(Arc::clone(&storage), path.to_path_buf(), &parameters);
        let mut view = View {
            storage,
            path: path.to_path_buf(),
            parameters,
            hasher: KeyHasher::new(parameters.secret),
            reader,
            clock: ViewClock { source, rules, seen: None },
            full: BTreeMap::new(),
            head: 0,
            tail: 0,
            tail_entries: Vec::new(),
            taken_to: 0,
            last: HashMap::default(),
            begun: HashSet::default(),
            is_closed: false,
        };
        view.refresh()?;
        Ok(view)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The hash of each key whose last record is that of an attempt which began.
    pub(crate) fn begun(&self) -> impl Iterator<Item = u128> {
        self.begun.iter().copied()
    }

    fn context(&self) -> OpenContext<'_> {
        OpenContext { storage: &*self.storage, path: &self.path }
    }

    fn slot_offset(&self, slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * self.parameters.segment_bytes
    }

    /// Returns a checksum of the headers of all slots, if they can be read.
    fn headers(&self) -> Option<u64> {
        use std::hash::Hasher as _;
        let context = self.context();
        let mut hasher = std::hash::DefaultHasher::new();
        for slot in Survey::slots(&context, self.parameters.segment_bytes).ok()? {
            hasher.write_u64(slot);
            hasher.write(&context.sector(self.slot_offset(slot)).ok()?);
        }
        Some(hasher.finish())
    }

    /// Reads what was written since the last time. The view is then the log as it is at one moment during this call.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if the other process was ahead each time. [`Error::Replaced`] if the path leads to a different file.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        if matches!(self.storage.is_in_place(), Ok(false)) {
            return Err(Error::Replaced { path: self.path.clone() });
        }
        let mut faults = Faults::default();
        for _ in 0..MAX_ROUNDS {
            // The headers are compared only once something is wrong, because reading them takes most of the time.
            let before = if faults.last.is_some() { self.headers() } else { None };
            match self.take_survey() {
                Ok(()) => return Ok(()),
                Err(error) => faults.judge(before, error, || self.headers())?,
            }
        }
        Err(Error::Busy { path: self.path.clone(), key: None })
    }

    /// Takes what a new survey finds.
    fn take_survey(&mut self) -> Result<()> {
        let survey = Survey::take(&self.context(), self.parameters)?;
        self.full.retain(|sequence, _| *sequence >= survey.head);
        for link in &survey.links {
            self.full.insert(link.sequence, *link);
            if link.sequence < self.taken_to {
                continue;
            }
            let entries = self.entries_of(link)?;
            let end = link.end % self.parameters.segment_bytes;
            self.reader.set_segment(link.slot, link.sequence, end);
            self.take(link.sequence, link.slot, &entries)?;
            self.taken_to = link.sequence + 1;
        }
        let tail = survey.tail_header.sequence;
        self.reader.set_segment(survey.tail_slot, tail, survey.scan.end % self.parameters.segment_bytes);
        let entries: Vec<FooterEntry> = survey.scan.entries.iter().collect();
        self.take(tail, survey.tail_slot, &entries)?;
        self.clock.seen = Some(survey.latest_time());
        self.is_closed = survey.verdict == Verdict::Closed;
        if survey.head > self.head {
            // What was live in the segments below the head was written again since, and was taken.
            let from = survey.head * self.parameters.segment_bytes;
            self.last.retain(|_, last| last.position >= from);
            self.begun.retain(|hash| self.last.contains_key(hash));
        }
        (self.head, self.tail) = (survey.head, tail);
        self.tail_entries = entries;
        Ok(())
    }

    /// Takes the last records of the keys that a segment lists. The segments before it were taken.
    fn take(&mut self, sequence: u64, slot: u64, entries: &[FooterEntry]) -> Result<()> {
        // Steps and messages are no keys, and this version does not know what a record of an unknown kind changes.
        for entry in entries.iter().filter(|entry| entry.kind.domain() == Some(Domain::Key)) {
            let address = self.address(slot, entry)?;
            let is_begun = entry.kind == Kind::Begun
                || entry.kind == Kind::Unreadable && entry.key_expires_ms == NEVER_MS;
            if is_begun {
                self.begun.insert(entry.hash)
            } else {
                self.begun.remove(&entry.hash)
            };
            if entry.kind == Kind::Forgotten {
                self.last.remove(&entry.hash);
            } else {
                let position = sequence * self.parameters.segment_bytes + entry.offset;
                self.last.insert(entry.hash, Last { address, position });
            }
        }
        Ok(())
    }

    fn address(&self, slot: u64, entry: &FooterEntry) -> Result<Address> {
        let offset = self.slot_offset(slot) + entry.offset;
        Address::new(offset)
            .ok_or_else(|| Error::corrupt(&self.path, offset, "the footer's address is out of range"))
    }

    /// Reads what a full segment lists, from its footer or, if that is not valid, from its frames.
    fn entries_of(&self, link: &Link) -> Result<Vec<FooterEntry>> {
        let (context, storage) = (self.context(), &*self.storage);
        let offset = self.slot_offset(link.slot);
        let footer = scan::read_footer_entries(storage, offset, link.sequence, &self.parameters);
        if let Ok((trailer, entries)) = context.io("read a footer", footer)?
            && (trailer.end, trailer.last_checksum) == (link.end, link.checksum)
        {
            return Ok(entries);
        }
        let bytes = scan::read_slot(storage, offset, self.parameters.segment_bytes);
        let bytes = context.io("read a segment", bytes)?;
        let scan = scan::scan(&bytes, link.sequence, link.chain, &self.parameters, &self.hasher);
        if scan.end != link.end || scan.last_checksum != link.checksum {
            let end = offset + scan.end % self.parameters.segment_bytes;
            context.check_known(end, scan.stop)?;
            return context.corrupt(end, format!("segment {} ends here: {}", link.sequence, scan.stop));
        }
        Ok(scan.entries.iter().collect())
    }

    /// Calls `read` with the last record of the key with this hash. None if there is none, or if `at` is given and it is not
    /// there. If the other process has overwritten the record since the last refresh, refreshes and looks again.
    pub(crate) fn read<R>(
        &mut self,
        hash: u128,
        at: Option<Address>,
        mut read: impl FnMut(Address, RecordLocation, &Record<'_>) -> R,
    ) -> Result<Option<R>> {
        for _ in 0..MAX_ROUNDS {
            let Some(last) = self.last.get(&hash).copied() else { return Ok(None) };
            if at.is_some_and(|at| at != last.address) {
                return Ok(None);
            }
            match self.reader.record(last.address, |place, record| read(last.address, place, record)) {
                Ok(value) => return Ok(Some(value)),
                Err(error) if self.is_in_place(last)? => {
                    // As for a store: the footer may state that the key is gone in any case.
                    let is_gone = |entry: FooterEntry| {
                        let liveness = lost_liveness(Some(entry.kind), entry.key_expires_ms, self.now_ms());
                        liveness == Liveness::Gone
                    };
                    return if self.listed(last).is_some_and(is_gone) { Ok(None) } else { Err(error) };
                }
                Err(_) => self.refresh()?,
            }
        }
        Err(Error::Busy { path: self.path.clone(), key: None })
    }

    /// The footer entry of a record, or the future entry if the record is in the tail. None if the entries of its segment
    /// cannot be read.
    fn listed(&self, last: Last) -> Option<FooterEntry> {
        let (_, within) = self.reader.split(last.address);
        let sequence = last.position / self.parameters.segment_bytes;
        let is_it = |entry: &FooterEntry| entry.offset == within;
        match self.full.get(&sequence) {
            Some(link) => self.entries_of(link).ok()?.into_iter().find(is_it),
            None if sequence == self.tail => self.tail_entries.iter().copied().find(is_it),
            None => None,
        }
    }

    /// Whether the segment of a record is still in its slot. The header of a slot is the first thing in it that is
    /// overwritten, so whatever was read of the segment before this call is what the segment holds.
    fn is_in_place(&self, last: Last) -> Result<bool> {
        let (slot, _) = self.reader.split(last.address);
        self.holds(slot, last.position / self.parameters.segment_bytes)
    }

    /// Whether the slot holds the segment with this sequence.
    fn holds(&self, slot: u64, sequence: u64) -> Result<bool> {
        match self.context().sector(self.slot_offset(slot)) {
            Ok(sector) => Ok(SegmentHeader::decode(&sector).is_ok_and(|header| header.sequence == sequence)),
            // The slot was cut off.
            Err(error) if Faults::may_be_half_done(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the list of the first segment from `from` on, for a walk over all keys. At the tail, refreshes first, and
    /// goes on if the tail has moved.
    pub(crate) fn walk(&mut self, from: u64) -> Result<ViewSegment> {
        let segment_bytes = self.parameters.segment_bytes;
        for _ in 0..MAX_ROUNDS {
            let sequence = from.max(self.head);
            let left_bytes = self.tail.saturating_sub(sequence) * segment_bytes;
            let segment =
                |listed, is_last| ViewSegment { sequence, listed, is_last, segment_bytes, left_bytes };
            let listed = |slot: u64, entries: &mut Vec<FooterEntry>| {
                entries.sort_unstable_by_key(|entry| entry.offset);
                entries
                    .iter()
                    .map(|entry| Ok((entry.hash, self.address(slot, entry)?)))
                    .collect::<Result<_>>()
            };
            if let Some(link) = self.full.get(&sequence).copied() {
                match self.entries_of(&link) {
                    Ok(mut entries) => return Ok(segment(listed(link.slot, &mut entries), false)),
                    Err(error) if self.holds(link.slot, sequence)? => return Ok(segment(Err(error), false)),
                    Err(_) => self.refresh()?,
                }
                continue;
            }
            self.refresh()?;
            if self.tail == sequence {
                let hashes = self.tail_entries.iter().filter_map(|entry| {
                    self.last.get(&entry.hash).map(|last| Ok((entry.hash, last.address)))
                });
                let listed = hashes.collect();
                return Ok(ViewSegment { sequence, listed, is_last: true, segment_bytes, left_bytes: 0 });
            }
        }
        Err(Error::Busy { path: self.path.clone(), key: None })
    }
}

/// What the last survey found wrong.
#[derive(Debug, Default)]
struct Faults {
    /// The headers before the survey, if they could be read, and the fault.
    last: Option<(Option<u64>, String)>,
}

impl Faults {
    /// Whether an error may be due to bytes that were half written, or cut off, when they were read.
    fn may_be_half_done(error: &Error) -> bool {
        match error {
            Error::Corrupt { .. } | Error::Unsupported { .. } | Error::NotAStore { .. } => true,
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::UnexpectedEof,
            _ => false,
        }
    }

    /// Judges a fault that a survey found. Returns it if it counts. `headers` reads the headers again.
    fn judge(
        &mut self,
        before: Option<u64>,
        error: Error,
        headers: impl FnOnce() -> Option<u64>,
    ) -> Result<()> {
        // The text of the error includes the offset.
        let fault = (before, error.to_string());
        let counts = !Faults::may_be_half_done(&error)
            || planted(Bug::FaultOfOneSurvey)
            || before.is_some() && self.last.as_ref() == Some(&fault) && headers() == before;
        if counts {
            return Err(error);
        }
        self.last = Some(fault);
        std::thread::sleep(PAUSE);
        Ok(())
    }
}

/// Repeats `read` until it succeeds, or fails twice in the same way.
fn stable<T>(context: &OpenContext<'_>, read: impl Fn() -> Result<T>) -> Result<T> {
    let mut faults = Faults::default();
    for _ in 0..MAX_ROUNDS {
        match read() {
            Ok(value) => return Ok(value),
            Err(error) => faults.judge(Some(0), error, || Some(0))?,
        }
    }
    Err(Error::Busy { path: context.path.to_owned(), key: None })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::DEFAULT_MAX_DOWNTIME_MS;
    use crate::map::Map;
    use crate::storage::FileStorage;
    use crate::{Fingerprint, ManualClock, Options};

    /// A file of which a sector is read half written.
    #[derive(Debug)]
    struct HalfWritten {
        file: FileStorage,
        offset: u64,
        /// The number of reads of the sector that are still to be half written.
        left: AtomicUsize,
        /// Whether the sector is different each time, as that of a header that changes.
        changes: bool,
    }

    impl Storage for HalfWritten {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn set_len(&self, _length: u64) -> io::Result<()> {
            unreachable!("a reader writes nothing")
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let count = self.file.read_at(buffer, offset)?;
            let within = self.offset.checked_sub(offset).map(|within| usize::try_from(within).unwrap());
            if let Some(byte) = within.and_then(|within| buffer[..count].get_mut(within)) {
                let left = self.left.load(Ordering::Relaxed);
                if left > 0 {
                    self.left.store(left - 1, Ordering::Relaxed);
                    *byte ^= if self.changes { u8::try_from(left % 255).unwrap() + 1 } else { 1 };
                }
            }
            Ok(count)
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            self.file.next_data(offset)
        }
        fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
            unreachable!("a reader writes nothing")
        }
        fn sync_data(&self) -> io::Result<()> {
            unreachable!("a reader writes nothing")
        }
        fn sync_all(&self) -> io::Result<()> {
            unreachable!("a reader writes nothing")
        }
        fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
            unreachable!("a reader maps nothing")
        }
    }

    const SEGMENT: u64 = 64 << 10;

    /// Reads a store of several segments, of which the sector at `offset` is half written the first `times` times. Returns
    /// the number of keys.
    fn read(offset: u64, times: usize, changes: bool) -> Result<usize> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.once");
        let clock = ManualClock::new(1_700_000_000_000);
        let store = Options::new().segment_size(SEGMENT).manual_clock(clock.clone()).open(&path).unwrap();
        for number in 0..20_u32 {
            store.record(&number.to_le_bytes(), Fingerprint::NONE, &[1; 10_000]).unwrap();
        }
        let file = FileStorage::open_to_read(&path).unwrap();
        let storage = HalfWritten { file, offset, left: AtomicUsize::new(times), changes };
        let rules = OpeningRules { max_downtime_ms: DEFAULT_MAX_DOWNTIME_MS, accept: None };
        View::new(Arc::new(storage), &path, (Arc::new(clock), rules)).map(|view| view.last.len())
    }

    const STORE_HEADER: u64 = 100;
    const FIRST_SEGMENT_HEADER: u64 = STORE_HEADER_BYTES + 200;
    const A_FULL_SEGMENT: u64 = STORE_HEADER_BYTES + 4_096 + 30;

    #[test]
    fn what_is_half_written_once_is_no_damage() {
        for offset in [STORE_HEADER, FIRST_SEGMENT_HEADER, A_FULL_SEGMENT] {
            for times in [0, 1] {
                assert_eq!(read(offset, times, false).unwrap(), 20, "{offset}");
            }
        }
        #[cfg(feature = "__simulation")]
        for offset in [STORE_HEADER, FIRST_SEGMENT_HEADER] {
            crate::planted::plant(Some(Bug::FaultOfOneSurvey));
            let mistaken = read(offset, 1, false);
            crate::planted::plant(None);
            assert!(
                matches!(mistaken, Err(Error::Corrupt { .. })),
                "the planted bug must be found: {mistaken:?}"
            );
        }
    }

    #[test]
    fn what_stays_wrong_is_damage_unless_the_headers_change_meanwhile() {
        for offset in [STORE_HEADER, FIRST_SEGMENT_HEADER] {
            let damaged = read(offset, usize::MAX, false);
            assert!(matches!(damaged, Err(Error::Corrupt { .. })), "{offset}: {damaged:?}");
        }
        let busy = read(FIRST_SEGMENT_HEADER, usize::MAX, true);
        assert!(matches!(&busy, Err(error @ Error::Busy { .. }) if error.is_retryable()), "{busy:?}");
    }
}
