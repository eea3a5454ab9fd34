//! Opening: scan, decide, and only then change anything.
//!
//! The survey reads headers and the last segment. [`decide`](verdict::decide) is a table over what it found and says
//! whether the log ends where it was closed, in a tail that nobody was told about, or in a hole where there had been
//! synced data. Then the index is filled from the footers. Until all that stands, and the clock has been judged, not a
//! byte is written.

mod medium;
mod verdict;
mod survey;
mod fill;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::clock::{OpeningTime, StoreClock, judge_opening};
use crate::error::{Error, Result};
use crate::format::STORE_HEADER_BYTES;
use crate::format::header::encode_store_header;
use crate::index::Index;
use crate::log::Log;
use crate::log::reader::Reader;
use crate::log::writer::{FullSegment, Growing, Start, Tail};
use crate::planted::{Bug, planted};
use crate::status::MAX_OPEN_COUNT;
use crate::storage::{Storage, sync_all, sync_data, write_all_at, write_zeroes_at};

use fill::Filled;
pub(crate) use medium::Config;
use medium::Medium;
use survey::Survey;
use verdict::Verdict;

/// No file is longer: what an address in the index can say.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 43;

/// An open store.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) log: Arc<Log>,
    pub(crate) index: Index,
    pub(crate) clock: StoreClock,
    pub(crate) open_count: u32,
}

/// Opens what is on `storage`, or creates it there.
pub(crate) fn open(storage: Arc<dyn Storage>, path: &Path, config: &Config) -> Result<Recovered> {
    let medium = Medium { storage: &*storage, path };
    // First of all: nothing may be decided on data that a crash could still take away.
    medium.io("sync the file and its directory", sync_all(&*storage))?;
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
    let clock = judge_clock(config, path, survey.high_water_ms())?;
    let open_count = survey.highest_open_count() + 1;
    if open_count > MAX_OPEN_COUNT {
        return Err(Error::VersionsExhausted { path: path.to_owned() });
    }

    let reader = Arc::new(Reader::new(Arc::clone(&storage), path.to_owned(), &parameters));
    let Filled { index, ledger, full } = fill::fill(&medium, &survey, &reader, clock.now_ms())?;
    let was_closed = survey.verdict == Verdict::Closed;
    survey.mend(&medium)?;
    crate::events::opened(path, index.len(), was_closed);

    let max_slots =
        config.max_bytes.min(MAX_FILE_BYTES).saturating_sub(STORE_HEADER_BYTES) / parameters.segment_bytes;
    let min_slots = config.min_bytes.saturating_sub(STORE_HEADER_BYTES).div_ceil(parameters.segment_bytes);
    let growing = Growing { min_slots: min_slots.min(max_slots), max_slots, new_slot: config.new_slot };
    let log = Log::new(storage, reader, parameters, growing, ledger, survey.start(open_count, full));
    log.begin_opening(clock.now_ms())?;
    Ok(Recovered { log: Arc::new(log), index, clock, open_count })
}

fn judge_clock(config: &Config, path: &Path, high_water_ms: u64) -> Result<StoreClock> {
    let wall_ms = config.time_source.wall_ms();
    match judge_opening(wall_ms, high_water_ms) {
        OpeningTime::Accepted => {}
        OpeningTime::Behind { .. } | OpeningTime::Ahead { .. } if config.accept_clock_jump => {
            crate::events::clock_jumped(path, wall_ms, high_water_ms);
        }
        OpeningTime::Behind { .. } | OpeningTime::Ahead { .. } => {
            return Err(Error::Clock { path: path.to_owned(), wall_ms, high_water_ms });
        }
    }
    let from_ms = if planted(Bug::ClockNotClamped) { 0 } else { high_water_ms };
    Ok(StoreClock::start(Arc::clone(&config.time_source), from_ms))
}

impl Survey {
    /// Writes what was decided on: the frames that were not known to be on disk once more, and zeroes behind them. A
    /// sync that failed before the crash may have left pages that only look clean, so nothing less makes them true.
    fn mend(&self, medium: &Medium<'_>) -> Result<()> {
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

    fn start(self, open_count: u32, full: Vec<FullSegment>) -> Start {
        let used: BTreeSet<u64> = full.iter().map(|segment| segment.slot).chain([self.tail_slot]).collect();
        Start {
            open_count,
            head: self.head,
            full: VecDeque::from(full),
            tail: Tail {
                slot: self.tail_slot,
                header: self.tail_header,
                offset: self.scan.end % self.parameters.segment_bytes,
                last_checksum: self.scan.last_checksum,
                time_ms: self.high_water_ms(),
                record_bytes: self.scan.record_bytes,
                entries: self.scan.entries.iter().copied().collect(),
            },
            free: (0..self.slot_count).filter(|slot| !used.contains(slot)).collect(),
            slot_count: self.slot_count,
        }
    }
}
