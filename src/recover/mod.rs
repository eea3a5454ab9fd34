//! Recovery: opens the log of an existing file, or creates a new one. Only `options` calls it.
//!
//! Recovery has two phases. The first phase only reads: [`survey()`] reads the headers and the last segment, decides
//! how the log ended, and checks the clock; [`Surveyed::fill`] fills the index from the footers. The second phase,
//! [`Filled::begin`], writes: it extends the file to its minimum size, rewrites the end of the log, and records in the
//! log that the store was opened. Between the phases, the caller checks its options against the file.
//!
//! Invariant: if recovery refuses an existing store, it has changed no byte of it. This includes a file that cannot be
//! extended to its minimum size.
//!
//! # How the log ended
//!
//! A crash can tear the frame that is being written. Recovery cuts off such a torn tail, because it was never
//! acknowledged as durable. Damage to durable frames looks the same at first: a position without a valid frame. Cutting
//! off the log there would lose acknowledged operations, so recovery refuses that file. It distinguishes the two cases
//! by headers and marks that were written later, because they attest how much of the log was on disk. If the last
//! frames are damaged and nothing was written after them, the damage cannot be distinguished from a crash: see "What
//! recovery accepts" in [`crate::format`].
//!
//! The survey scans the last segment up to the **end**: the first position without a valid frame that continues the
//! one before. Four conditions then select one row of the table:
//!
//! - **footer**: whether the last segment has a footer, valid or damaged.
//! - **close mark**: *beyond end* if the latest close mark of the segment states a later end. It *contradicts* the log
//!   if no frame with its checksum ends where it states. Otherwise it is *at end* or *earlier*.
//! - **later headers**: *synced* if a valid frame header after the end, or the segment header, has a `synced_to` beyond
//!   the end; otherwise *unsynced* if there is a valid frame header after the end.
//! - **torn frame**: whether the bytes at the end may be the remains of a frame that was written there.
//!
//! | case | footer | close mark | later headers | torn frame | verdict | why |
//! |---|---|---|---|---|---|---|
//! | `NextSegmentLost` | yes | any | any | any | corrupt | A footer is written only after the next segment's header is on disk. |
//! | `ClosedBeyondEnd` | no | beyond end | any | any | corrupt | A close mark is written only after everything before it is on disk. |
//! | `MarkContradictsLog` | no | contradicts | any | any | corrupt | Frames before a close mark do not change after it is written. |
//! | `SyncedBeyondEnd` | no | none, earlier, at end | synced | any | corrupt | A header attests only what an earlier sync made durable. |
//! | `CleanClose` | no | at end | none | no | closed | No frame was written after the close mark. |
//! | `TornAfterClose` | no | at end | none | yes | crashed | The next session crashed while it was writing its first frame. |
//! | `UnsyncedAfterClose` | no | at end | unsynced | any | crashed | The next session wrote frames and crashed before the first of them was on disk. |
//! | `NotClosed` | no | none, earlier | none, unsynced | any | crashed | The last session did not close the store, and nothing attests a frame at the end. |
//!
//! - **closed**: recovery accepts the end and rewrites nothing.
//! - **crashed**: recovery rewrites the frames that are not known to be on disk, and zeroes the rest of the segment.
//! - **corrupt**: recovery refuses the file with [`Error::Corrupt`] at the offset of the end.
//!
//! A record of an unknown kind is neither torn nor damaged. If there is one at the end, recovery refuses the file with
//! [`Error::Unsupported`] and does not use the table.

mod open_context;
mod verdict;
mod team;
mod survey;
mod listed;
mod steps;
mod fill;
mod beside;
mod rehearsal;
pub(crate) mod salvage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::clock::{Jumped, OpeningTime, Reading, StoreClock, judge_opening};
use crate::error::{Error, Result};
use crate::format::header::encode_store_header;
use crate::format::{CopyState, STORE_HEADER_BYTES};
use crate::index::{Address, Index};
use crate::log::reader::Reader;
use crate::log::slots::Growing;
use crate::log::writer::{FullSegment, Start, Tail};
use crate::log::{Log, Reservation, VersionsBefore};
use crate::planted::{Bug, planted};
use crate::record::PendingMessage;
use crate::step_set::FoundUnfinished;
use crate::storage::{Storage, sync_all, sync_data, write_all_at, write_zeroes_at};

pub(crate) use beside::View;
use fill::FilledIndex;
pub(crate) use open_context::Config;
use open_context::OpenContext;
pub(crate) use rehearsal::{Rehearsal, rehearse};
use survey::Survey;
use verdict::Verdict;

/// The maximum length of a file. An address in the index cannot exceed it.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 43;

/// The parts of an open store.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The log, ready to be appended to.
    pub(crate) log: Arc<Log>,
    /// The index, with the last record of each key.
    pub(crate) index: Index,
    /// The clock, at the store time from which this session continues.
    pub(crate) clock: Arc<StoreClock>,
    /// The open count of this session.
    pub(crate) open_count: u32,
    /// The counter from which the versions of this session continue.
    pub(crate) counter: u64,
    /// Addresses of the records of kind `Unreadable` that the index points to.
    pub(crate) unreadable: Vec<Address>,
    /// The operations that began and have not ended, with their steps.
    pub(crate) begun: Vec<FoundUnfinished>,
    /// The messages that are not acknowledged, in the order of their ids.
    pub(crate) messages: Vec<PendingMessage>,
    /// Space for the acknowledgements of these messages.
    pub(crate) acknowledgement_room: Reservation,
    /// What the store may have forgotten, if its file is a copy.
    pub(crate) copy: CopyState,
}

/// The file that is being opened, and the options for that.
struct OpenRequest<'a> {
    storage: Arc<dyn Storage>,
    path: &'a Path,
    config: &'a Config,
}

impl OpenRequest<'_> {
    fn context(&self) -> OpenContext<'_> {
        OpenContext { storage: &*self.storage, path: self.path }
    }
}

/// A store whose end and clock recovery has accepted. Nothing has been written yet, unless the store was created.
pub(crate) struct Surveyed<'a> {
    request: OpenRequest<'a>,
    survey: Survey,
    versions: VersionsBefore,
    /// What the caller says of a copy that no caller has opened yet: the store time until which an unknown key is in doubt.
    in_doubt_until_ms: Option<u64>,
    clock: Arc<StoreClock>,
    time: OpeningTime,
    wall_ms: u64,
}

/// A store whose index is filled. Nothing has been written yet, unless the store was created.
pub(crate) struct Filled<'a> {
    surveyed: Surveyed<'a>,
    reader: Arc<Reader>,
    filled: FilledIndex,
}

/// Reads the layout and the end of the log on `storage`, and checks the clock.
///
/// If `config.create` is set, first creates a new store in a file that is empty or whose creation was interrupted. The
/// caller has checked the options for a new store.
pub(crate) fn survey<'a>(
    storage: Arc<dyn Storage>,
    path: &'a Path,
    config: &'a Config,
) -> Result<Surveyed<'a>> {
    let request = OpenRequest { storage, path, config };
    let context = request.context();
    context.check_size_limit()?;
    // The sync comes before the first read, because recovery must not base a decision on data that a later crash could
    // still discard.
    context.io("sync the file and its directory", sync_all(context.storage))?;
    let parameters = match context.parameters(config.segment_bytes)? {
        Some(parameters) => parameters,
        None if config.create => context.create(config)?,
        None => {
            return Err(Error::NotAStore {
                path: path.to_owned(),
                reason:
                    "the file is empty, because its creation was interrupted; open it with Options::create(true) \
                     to finish that"
                        .into(),
            });
        }
    };
    let survey = Survey::take(&context, parameters)?;
    let copy = survey.copy_state();
    let is_unanswered = parameters.copied_seed.is_some() && copy.answered_by == 0;
    if is_unanswered && config.forgotten_ms.is_none() {
        return Err(Error::Copy { path: path.to_owned(), taken_at_ms: survey.tail_header.mark.wall_ms });
    }
    let now = config.time_source.read();
    let time = judge_clock(config, path, &survey, &now)?;
    let clock = StoreClock::start(Arc::clone(&config.time_source), now, time.store_ms);
    let versions = survey.versions();
    if versions.next(true).is_none() {
        return Err(Error::openings_exhausted(path));
    }
    // A copy of a copy keeps the doubts that the first one still had.
    let in_doubt_until_ms = config.forgotten_ms.filter(|_| is_unanswered).map(|forgotten_ms| {
        let until_ms = if forgotten_ms == 0 { 0 } else { time.store_ms.saturating_add(forgotten_ms) };
        until_ms.max(copy.in_doubt_until_ms)
    });
    let clock = Arc::new(clock);
    Ok(Surveyed { request, survey, versions, in_doubt_until_ms, clock, time, wall_ms: now.wall_ms })
}

/// Decides at which store time the session continues, or refuses a wall clock that has jumped too far.
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
    /// Returns the segment size of the file. The option of that name applies to new files only.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.survey.parameters.segment_bytes
    }

    /// Fills the index from the footers, and from the frames of the last segment.
    pub(crate) fn fill(self) -> Result<Filled<'a>> {
        let OpenRequest { storage, path, .. } = &self.request;
        let reader = Reader::new(Arc::clone(storage), path.to_path_buf(), &self.survey.parameters);
        let reader = Arc::new(reader);
        let filled = fill::fill(&self.request.context(), &self.survey, &reader, self.time.store_ms)?;
        Ok(Filled { surveyed: self, reader, filled })
    }
}

impl Filled<'_> {
    /// Extends the file to its minimum size, makes the end of the log durable, and records in the log that the store
    /// was opened.
    ///
    /// Refuses a file that cannot be extended before anything else is written.
    pub(crate) fn begin(self) -> Result<Recovered> {
        let Filled { surveyed, reader, filled } = self;
        let Surveyed { request, mut survey, versions, in_doubt_until_ms, clock, time, wall_ms } = surveyed;
        let FilledIndex { index, space_usage, full, unreadable, begun, messages } = filled;
        let OpenRequest { storage, path, config } = &request;
        let segment_bytes = survey.parameters.segment_bytes;
        let slots = |bytes: u64| bytes.saturating_sub(STORE_HEADER_BYTES);
        let max_slots = slots(config.max_bytes.min(MAX_FILE_BYTES)) / segment_bytes;
        let min_slots = slots(config.min_bytes).div_ceil(segment_bytes).min(max_slots);
        let growing = Growing { min_slots, max_slots, new_slot: config.new_slot };

        let start = survey.start(Arc::clone(&clock), full);
        let log = Log::new(Arc::clone(storage), reader, survey.parameters, growing, space_usage, start);
        log.make_min_slots()?;
        request.context().io("give the file blocks of its own", storage.unshare())?;
        survey.rewrite_end(&request.context())?;
        // Reserved before the opening frame, which must not take this space.
        let acknowledgement_room = log.reserve_for_acknowledgements(messages.len() as u64)?;
        let (open_count, counter) = log.begin_opening(versions, in_doubt_until_ms)?;
        if let Some(jump) = time.accepted_jump {
            crate::events::clock_jumped(path, wall_ms, survey.latest_time().wall_ms(), jump);
        }
        crate::events::opened(path, index.len(), survey.verdict == Verdict::Closed);
        if storage.copies_on_write() {
            crate::events::found_copy_on_write(path);
        }
        let copy = match in_doubt_until_ms {
            Some(in_doubt_until_ms) => CopyState { in_doubt_until_ms, answered_by: open_count },
            None => survey.copy_state(),
        };
        Ok(Recovered {
            log: Arc::new(log),
            index,
            clock,
            open_count,
            counter,
            unreadable,
            begun,
            messages,
            acknowledgement_room,
            copy,
        })
    }
}

impl Survey {
    /// Makes the end of a log that was not closed durable: rewrites the frames that are not known to be on disk, and
    /// zeroes the rest of the segment.
    ///
    /// A sync would not be enough. If a sync failed in the last session, the kernel may have marked pages as clean
    /// although their bytes never reached the disk. It writes such a page only if the page is written to again.
    fn rewrite_end(&self, context: &OpenContext<'_>) -> Result<()> {
        if self.verdict == Verdict::Closed || planted(Bug::TornTailKept) {
            return Ok(());
        }
        let segment_bytes = self.parameters.segment_bytes;
        let offset = STORE_HEADER_BYTES + self.tail_slot * segment_bytes;
        let durable_to = self.durable_to();
        let first = self.scan.frames.iter().find(|frame| frame.position + frame.length > durable_to);
        let from = first.map_or(self.scan.end, |frame| frame.position) % segment_bytes;
        let end = self.scan.end % segment_bytes;
        let rewrite = || {
            let at = |within: u64| usize::try_from(within).unwrap_or(usize::MAX);
            // The headers are rewritten too, because the failed sync may have been the one that should have made them
            // durable. For the store header, that is possible only if the store was never opened successfully.
            if self.highest_open_count() == 0 {
                write_all_at(context.storage, &encode_store_header(&self.parameters), 0)?;
            }
            write_all_at(context.storage, &self.tail_header.encode(), offset)?;
            let frames = self.tail_bytes.get(at(from)..at(end)).unwrap_or_default();
            write_all_at(context.storage, frames, offset + from)?;
            // A segment without frames that already reads as zeroes, as in a new store, need not be zeroed.
            let is_blank =
                self.scan.frames.is_empty() && self.tail_bytes[at(end)..].iter().all(|byte| *byte == 0);
            if !is_blank {
                write_zeroes_at(context.storage, offset + end, segment_bytes - end)?;
            }
            sync_data(context.storage)
        };
        context.io("write the end of the log again", rewrite())
    }

    /// Returns the position below which every frame is known to be on disk.
    fn durable_to(&self) -> u64 {
        let frames = self.scan.frames.iter().map(|frame| frame.synced_to).max().unwrap_or(0);
        let marks = self.marks.iter().map(|mark| mark.end).max().unwrap_or(0);
        frames.max(marks).max(self.tail_header.synced_to)
    }

    /// Returns the state from which the log's writer starts.
    fn start(&mut self, clock: Arc<StoreClock>, full: Vec<FullSegment>) -> Start {
        let used: BTreeSet<u64> = full.iter().map(|segment| segment.slot).chain([self.tail_slot]).collect();
        Start {
            clock,
            copy: self.copy_state(),
            head: self.head,
            full: VecDeque::from(full),
            tail: Tail {
                slot: self.tail_slot,
                header: self.tail_header,
                offset: self.scan.end % self.parameters.segment_bytes,
                last_checksum: self.scan.last_checksum,
                record_bytes: self.scan.record_bytes,
                entries: std::mem::take(&mut self.scan.entries),
            },
            free: self.data_slots.iter().copied().filter(|slot| !used.contains(slot)).collect(),
            slot_count: self.data_slots.last().map_or(0, |last| last + 1),
        }
    }
}
