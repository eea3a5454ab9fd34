//! Opening: survey, decide, and only then change anything.
//!
//! An opening is two halves. [`survey`] and [`Surveyed::fill`] read and return values. The survey reads headers and the
//! last segment; [`decide`](verdict::decide) is a table over what it found and says whether the log ends where it was
//! closed, in a tail that was never acknowledged, or in a hole where there had been synced data; and the clock is judged.
//! Then the index is filled from the footers. Until all that stands, and the caller has checked its options against what
//! was found, not a byte of an existing file is written. [`Filled::begin`] is the other half: it makes the file as long
//! as it is to be at least, or refuses and leaves it as it was; writes the end of the log again; and begins the opening
//! on disk.

mod open_context;
mod verdict;
mod survey;
mod team;
mod fill;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::clock::{Jumped, OpeningTime, Reading, StoreClock, judge_opening};
use crate::error::{Error, Result};
use crate::format::STORE_HEADER_BYTES;
use crate::format::header::encode_store_header;
use crate::index::{Address, Index};
use crate::log::reader::Reader;
use crate::log::slots::Growing;
use crate::log::writer::{FullSegment, Start, Tail};
use crate::log::{Log, VersionsBefore};
use crate::planted::{Bug, planted};
use crate::storage::{Storage, sync_all, sync_data, write_all_at, write_zeroes_at};

pub(crate) use open_context::Config;
use fill::FilledIndex;
use open_context::OpenContext;
use survey::Survey;
use verdict::Verdict;

/// No file is longer: what an address in the index can say.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 43;

/// An open store.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) log: Arc<Log>,
    pub(crate) index: Index,
    pub(crate) clock: Arc<StoreClock>,
    pub(crate) open_count: u32,
    /// The counter that the versions of this opening go on from.
    pub(crate) counter: u64,
    /// Where the records are that carry unreadable ones.
    pub(crate) unreadable: Vec<Address>,
}

/// What is read on the way to an open store, and what it is read with.
struct Opening<'a> {
    storage: Arc<dyn Storage>,
    path: &'a Path,
    config: &'a Config,
}

impl Opening<'_> {
    fn medium(&self) -> OpenContext<'_> {
        OpenContext { storage: &*self.storage, path: self.path }
    }
}

/// A store whose end and clock were found good. Nothing has been written.
pub(crate) struct Surveyed<'a> {
    opening: Opening<'a>,
    survey: Survey,
    versions: VersionsBefore,
    clock: Arc<StoreClock>,
    time: OpeningTime,
    wall_ms: u64,
}

/// A store whose index is filled. Nothing has been written.
pub(crate) struct Filled<'a> {
    surveyed: Surveyed<'a>,
    reader: Arc<Reader>,
    filled: FilledIndex,
}

/// Reads how the log on `storage` lies and ends, and judges the clock. What is not there yet is created first, if it may
/// be; the options for that must have been checked.
pub(crate) fn survey<'a>(
    storage: Arc<dyn Storage>,
    path: &'a Path,
    config: &'a Config,
) -> Result<Surveyed<'a>> {
    let opening = Opening { storage, path, config };
    let medium = opening.medium();
    medium.check_size_limit()?;
    // First of all: nothing may be decided on data that a crash could still take away.
    medium.io("sync the file and its directory", sync_all(medium.storage))?;
    let parameters = match medium.parameters(config)? {
        Some(parameters) => parameters,
        None if config.create => medium.create(config)?,
        None => {
            return Err(Error::NotAStore {
                path: path.to_owned(),
                reason:
                    "the file is empty, a creation that was cut short; open it with Options::create(true) to \
                         finish it"
                        .into(),
            });
        }
    };
    let survey = Survey::take(&medium, parameters)?;
    let now = config.time_source.read();
    let time = judge_clock(config, path, &survey, &now)?;
    let clock = StoreClock::start(Arc::clone(&config.time_source), now, time.store_ms);
    let versions = survey.versions();
    if versions.next(true).is_none() {
        return Err(Error::openings_exhausted(path));
    }
    Ok(Surveyed { opening, survey, versions, clock: Arc::new(clock), time, wall_ms: now.wall_ms })
}

fn judge_clock(config: &Config, path: &Path, survey: &Survey, now: &Reading) -> Result<OpeningTime> {
    let seen = survey.latest_time();
    let mut time = judge_opening(&seen, now, &config.clock_rules).map_err(|Jumped| Error::Clock {
        path: path.to_owned(),
        wall_ms: now.wall_ms,
        last_wall_ms: seen.wall_ms(),
        store_time_ms: seen.store_ms(),
    })?;
    if planted(Bug::ClockNotClamped) {
        time.store_ms = now.wall_ms;
    }
    Ok(time)
}

impl<'a> Surveyed<'a> {
    /// The file's own, which holds whatever the options say.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.survey.parameters.segment_bytes
    }

    /// Fills the index.
    pub(crate) fn fill(self) -> Result<Filled<'a>> {
        let Opening { storage, path, .. } = &self.opening;
        let reader = Reader::new(Arc::clone(storage), path.to_path_buf(), &self.survey.parameters);
        let reader = Arc::new(reader);
        let filled = fill::fill(&self.opening.medium(), &self.survey, &reader, self.time.store_ms)?;
        Ok(Filled { surveyed: self, reader, filled })
    }
}

impl Filled<'_> {
    /// Begins the opening on disk. If the file cannot be made as long as it is to be at least, that is all that is tried.
    pub(crate) fn begin(self) -> Result<Recovered> {
        let Filled { surveyed, reader, filled } = self;
        let Surveyed { opening, survey, versions, clock, time, wall_ms } = surveyed;
        let FilledIndex { index, space_usage, full, unreadable } = filled;
        let Opening { storage, path, config } = &opening;
        let segment_bytes = survey.parameters.segment_bytes;
        let slots = |bytes: u64| bytes.saturating_sub(STORE_HEADER_BYTES);
        let max_slots = slots(config.max_bytes.min(MAX_FILE_BYTES)) / segment_bytes;
        let min_slots = slots(config.min_bytes).div_ceil(segment_bytes).min(max_slots);
        let growing = Growing { min_slots, max_slots, new_slot: config.new_slot };

        let start = survey.start(Arc::clone(&clock), full);
        let log = Log::new(Arc::clone(storage), reader, survey.parameters, growing, space_usage, start);
        log.make_min_slots()?;
        opening.medium().io("give the file blocks of its own", storage.unshare())?;
        survey.mend(&opening.medium())?;
        let (open_count, counter) = log.begin_opening(versions)?;
        if let Some(jump) = time.accepted_jump {
            crate::events::clock_jumped(path, wall_ms, survey.latest_time().wall_ms(), jump);
        }
        crate::events::opened(path, index.len(), survey.verdict == Verdict::Closed);
        if storage.copies_on_write() {
            crate::events::copies_on_write(path);
        }
        Ok(Recovered { log: Arc::new(log), index, clock, open_count, counter, unreadable })
    }
}

impl Survey {
    /// Writes what was decided on: the frames that were not known to be on disk once more, and zeroes behind them. A
    /// sync that failed before the crash may have left pages that only look clean, so nothing less makes them true.
    fn mend(&self, medium: &OpenContext<'_>) -> Result<()> {
        if self.verdict == Verdict::Closed || planted(Bug::TornTailKept) {
            return Ok(());
        }
        let segment_bytes = self.parameters.segment_bytes;
        let offset = STORE_HEADER_BYTES + self.tail_slot * segment_bytes;
        let attested = self.attested();
        let first = self.scan.frames.iter().find(|frame| frame.position + frame.length > attested);
        let from = first.map_or(self.scan.end, |frame| frame.position) % segment_bytes;
        let end = self.scan.end % segment_bytes;
        let mend = || {
            let at = |within: u64| usize::try_from(within).unwrap_or(usize::MAX);
            // The headers too: the last sync of a session that failed is the one that they may have been waiting for.
            if self.highest_open_count() == 0 {
                write_all_at(medium.storage, &encode_store_header(&self.parameters), 0)?;
            }
            write_all_at(medium.storage, &self.tail_header.encode(), offset)?;
            let again = self.tail_bytes.get(at(from)..at(end)).unwrap_or_default();
            write_all_at(medium.storage, again, offset + from)?;
            // A store that was never written to holds the zeroes of its creation.
            let is_new =
                self.scan.frames.is_empty() && self.tail_bytes[at(end)..].iter().all(|byte| *byte == 0);
            if !is_new {
                write_zeroes_at(medium.storage, offset + end, segment_bytes - end)?;
            }
            sync_data(medium.storage)
        };
        medium.io("write the end of the log again", mend())
    }

    /// Everything below this position is known to have been on disk.
    fn attested(&self) -> u64 {
        let frames = self.scan.frames.iter().map(|frame| frame.synced_to).max().unwrap_or(0);
        let marks = self.marks.iter().map(|mark| mark.end).max().unwrap_or(0);
        frames.max(marks).max(self.tail_header.synced_to)
    }

    fn start(&self, clock: Arc<StoreClock>, full: Vec<FullSegment>) -> Start {
        let used: BTreeSet<u64> = full.iter().map(|segment| segment.slot).chain([self.tail_slot]).collect();
        Start {
            clock,
            head: self.head,
            full: VecDeque::from(full),
            tail: Tail {
                slot: self.tail_slot,
                header: self.tail_header,
                offset: self.scan.end % self.parameters.segment_bytes,
                last_checksum: self.scan.last_checksum,
                record_bytes: self.scan.record_bytes,
                entries: self.scan.entries.iter().copied().collect(),
            },
            free: self.held.iter().copied().filter(|slot| !used.contains(slot)).collect(),
            slot_count: self.held.last().map_or(0, |last| last + 1),
        }
    }
}
