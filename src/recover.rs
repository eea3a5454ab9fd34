//! Opening: scan, decide, and only then change anything.
//!
//! The scan reads headers, footers and the last segment. [`decide`] is a table over what it found and says whether
//! the log ends where it was closed, in a tail that nobody was told about, or in a hole where there had been synced
//! data. Until the verdict stands, and the clock has been judged, not a byte is written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use crate::clock::{OpeningTime, StoreClock, TimeSource, judge_opening};
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::header::{
    CLOSE_MARK_OFFSETS, CloseMark, HeaderProblem, Parameters, Sector, SegmentHeader, decode_store_header,
    encode_store_header,
};
use crate::format::record::Kind;
use crate::format::{SECTOR_BYTES, STORE_HEADER_BYTES};
use crate::index::{Address, Index};
use crate::key::KeyHasher;
use crate::log::Log;
use crate::log::ledger::Ledger;
use crate::log::reader::Reader;
use crate::log::scan::{self, Chain, FrameSpan, Scan};
use crate::log::writer::{FullSegment, Start, Tail};
use crate::record::Weight;
use crate::status::MAX_OPEN_COUNT;
use crate::storage::{Storage, read_exact_at, sync_all, sync_data, write_all_at, write_zeroes_at};

/// How to open.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) create: bool,
    /// Of a new file; an existing one keeps its own.
    pub(crate) segment_bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) accept_clock_jump: bool,
    pub(crate) time_source: Arc<dyn TimeSource>,
}

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
    let (index, ledger) = survey.index(&reader, clock.now_ms())?;
    let was_closed = survey.verdict == Verdict::Closed;
    survey.mend(&medium)?;
    crate::events::opened(path, index.len(), was_closed);

    let max_slots = config.max_bytes.saturating_sub(STORE_HEADER_BYTES) / parameters.segment_bytes;
    let log = Log::new(storage, reader, parameters, max_slots, ledger, survey.start(open_count));
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
    Ok(StoreClock::start(Arc::clone(&config.time_source), high_water_ms))
}

/// The storage, with the path that its errors are told with.
struct Medium<'a> {
    storage: &'a dyn Storage,
    path: &'a Path,
}

impl Medium<'_> {
    fn io<T>(&self, operation: &'static str, outcome: std::io::Result<T>) -> Result<T> {
        outcome.map_err(|error| Error::io(self.path, operation, error))
    }

    fn corrupt<T>(&self, offset: u64, reason: impl Into<String>) -> Result<T> {
        Err(Error::corrupt(self.path, offset, reason))
    }

    fn length(&self) -> Result<u64> {
        self.io("find the length of the file", self.storage.len())
    }

    fn sector(&self, offset: u64) -> Result<Sector> {
        let mut sector = [0; SECTOR_BYTES];
        self.io("read a header", read_exact_at(self.storage, &mut sector, offset))?;
        Ok(sector)
    }

    /// What the store header says; None if the file was never finished.
    fn parameters(&self, config: &Config) -> Result<Option<Parameters>> {
        let length = self.length()?;
        if length == 0 {
            return Ok(None);
        }
        if length < STORE_HEADER_BYTES {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            self.io("read the header", read_exact_at(self.storage, &mut bytes, 0))?;
            return match bytes.iter().all(|byte| *byte == 0) {
                true => Ok(None),
                false if bytes.starts_with(b"ONCEKEY") => {
                    self.corrupt(length, "the file was cut short within its header")
                }
                false => self.foreign("it is too short and begins with something else"),
            };
        }
        match decode_store_header(&self.sector(0)?) {
            Ok(parameters) => Ok(Some(parameters)),
            Err(HeaderProblem::Foreign) => self.foreign("it begins with something else"),
            Err(HeaderProblem::Damaged(fault)) => self.corrupt(0, fault.0),
            Err(HeaderProblem::Unsupported(reason)) => {
                Err(Error::Unsupported { path: self.path.to_owned(), reason })
            }
            Err(HeaderProblem::Blank) => self.creation_was_cut_short(length, config).map(|()| None),
        }
    }

    fn foreign<T>(&self, reason: &str) -> Result<T> {
        Err(Error::NotAStore { path: self.path.to_owned(), reason: reason.into() })
    }

    /// A blank store header is either the sign of a creation that was cut short, or of damage. It is written last, so
    /// in the first case there is one slot at most, of sequence 1, and no frame in it.
    fn creation_was_cut_short(&self, length: u64, config: &Config) -> Result<()> {
        let lost = |what: &str| {
            self.corrupt(
                0,
                format!("the store header is blank, and {what}: not a creation that was cut short"),
            )
        };
        if length < STORE_HEADER_BYTES + SECTOR_BYTES as u64 {
            return Ok(());
        }
        let Ok(header) = SegmentHeader::decode(&self.sector(STORE_HEADER_BYTES)?) else {
            let longest = STORE_HEADER_BYTES + config.segment_bytes;
            return if length <= longest { Ok(()) } else { lost("the file is longer than a new one") };
        };
        let parameters = header.parameters;
        if header.sequence != 1 || length > STORE_HEADER_BYTES + parameters.segment_bytes {
            return lost("there is a log");
        }
        if length == STORE_HEADER_BYTES + parameters.segment_bytes {
            let frame = scan::first_frame(self.storage, STORE_HEADER_BYTES, &parameters);
            if self.io("read the first frame", frame)?.is_some() {
                return lost("there is a log");
            }
        }
        Ok(())
    }

    /// Makes the file: length, slot 0 with its header, and only when those are on disk the store header.
    fn create(&self, config: &Config) -> Result<Parameters> {
        let parameters = Parameters {
            segment_bytes: config.segment_bytes,
            file_id: random_bytes(),
            secret: random_bytes(),
        };
        let first = SegmentHeader {
            parameters,
            sequence: 1,
            head: 1,
            previous_end: 0,
            previous_checksum: 0,
            open_count: 0,
            time_ms: config.time_source.wall_ms(),
        };
        let create = || {
            // Emptied first: what a creation that was cut short left behind must not be taken for anything.
            self.storage.set_len(0)?;
            // The header's sector holds synced zeroes before the header is written over them, so that a crash leaves
            // one or the other and never garbage.
            self.storage.set_len(STORE_HEADER_BYTES)?;
            sync_all(self.storage)?;
            write_zeroes_at(self.storage, STORE_HEADER_BYTES, parameters.segment_bytes)?;
            sync_data(self.storage)?;
            write_all_at(self.storage, &first.encode(), STORE_HEADER_BYTES)?;
            sync_data(self.storage)?;
            write_all_at(self.storage, &encode_store_header(&parameters), 0)?;
            sync_all(self.storage)
        };
        self.io("create the store", create())?;
        Ok(parameters)
    }
}

/// Random bytes from the seeds that the operating system gives every process for its hash tables: a keyed
/// pseudo-random function of them, over a counter.
fn random_bytes() -> [u8; 16] {
    let state = RandomState::new();
    let mut bytes = [0; 16];
    for (counter, half) in bytes.chunks_exact_mut(8).enumerate() {
        half.copy_from_slice(&state.hash_one(("oncekey", counter)).to_le_bytes());
    }
    bytes
}

/// What the close marks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// There is none in the last segment.
    None,
    /// The store was closed here once and went on later.
    Earlier { attested: u64 },
    /// The store was closed just where the scan ended.
    AtEnd,
    /// The store was closed beyond where the scan ended.
    Beyond,
    /// The mark names a place or a frame that the log does not have.
    Contradicts,
}

/// What the scan found at the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Evidence {
    /// Where the first frame that does not check would be.
    end: u64,
    mark: Mark,
    /// The highest `synced_to` of any frame header behind the end, if there is one.
    later: Option<u64>,
    /// The footer of the last segment is there, so there was a segment after it.
    has_footer: bool,
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It was closed, and there is nothing behind the end.
    Closed,
    /// It was cut off. What follows the end was promised to nobody.
    CutOff,
    /// Data that was on disk is gone.
    Corrupt(&'static str),
}

/// The table of recovery.
fn decide(evidence: &Evidence) -> Verdict {
    let Evidence { end, mark, later, has_footer } = *evidence;
    match (has_footer, mark, later) {
        (true, _, _) => Verdict::Corrupt("the segment was finished and the one after it is missing"),
        (_, Mark::Beyond, _) => Verdict::Corrupt("the store was closed beyond this place"),
        (_, Mark::Contradicts, _) => Verdict::Corrupt("the close mark does not agree with the log"),
        (_, _, Some(synced_to)) if synced_to > end => {
            Verdict::Corrupt("a later frame says that this place was on disk")
        }
        (_, Mark::AtEnd, None) => Verdict::Closed,
        // A left-over behind the mark: the opening after the close got no further than that.
        (_, Mark::AtEnd, Some(_)) => Verdict::CutOff,
        (_, Mark::None | Mark::Earlier { .. }, _) => Verdict::CutOff,
    }
}

/// A full segment as the scan found it.
#[derive(Debug)]
struct Found {
    segment: FullSegment,
    entries: Vec<FooterEntry>,
}

/// Everything that opening reads.
struct Survey {
    parameters: Parameters,
    head: u64,
    full: Vec<Found>,
    tail_slot: u64,
    tail_header: SegmentHeader,
    tail_bytes: Vec<u8>,
    scan: Scan,
    marks: Vec<CloseMark>,
    slot_count: u64,
    verdict: Verdict,
}

impl Survey {
    fn take(medium: &Medium<'_>, parameters: Parameters) -> Result<Survey> {
        let length = medium.length()?;
        let segment_bytes = parameters.segment_bytes;
        let slot_count = length.saturating_sub(STORE_HEADER_BYTES) / segment_bytes;
        let slot_offset = |slot: u64| STORE_HEADER_BYTES + slot * segment_bytes;
        let headers = Survey::headers(medium, &parameters, length, slot_count)?;
        let Some(head) = headers.values().map(|(_, header)| header.head).max() else {
            return medium.corrupt(STORE_HEADER_BYTES, "no segment has a header that checks");
        };
        let tail_sequence = headers.keys().max().copied().unwrap_or(head);
        if let Some((sequence, (slot, _))) =
            headers.iter().find(|(sequence, (slot, _))| **sequence >= head && *slot >= slot_count)
        {
            return medium.corrupt(slot_offset(*slot), format!("segment {sequence} is cut short"));
        }

        let hasher = KeyHasher::new(parameters.secret);
        let mut full = Vec::new();
        for sequence in head..tail_sequence {
            let (Some((slot, header)), Some((next_slot, next))) =
                (headers.get(&sequence), headers.get(&(sequence + 1)))
            else {
                let missing = if headers.contains_key(&sequence) { sequence + 1 } else { sequence };
                return medium.corrupt(
                    length,
                    format!("segment {missing} of the log's {head} to {tail_sequence} is missing"),
                );
            };
            let found =
                Survey::full_segment(medium, &parameters, &hasher, (*slot, header), (*next_slot, next))?;
            full.push(found);
        }

        let Some(&(tail_slot, tail_header)) = headers.get(&tail_sequence) else {
            return medium.corrupt(length, format!("segment {tail_sequence} is missing"));
        };
        let offset = slot_offset(tail_slot);
        let tail_bytes =
            medium.io("read the last segment", scan::read_slot(medium.storage, offset, segment_bytes))?;
        let chain = Chain {
            checksum: tail_header.previous_checksum,
            open_count: tail_header.open_count,
            time_ms: tail_header.time_ms,
        };
        let scan = scan::scan(&tail_bytes, tail_sequence, chain, &parameters, &hasher);
        let marks = Survey::marks(&tail_bytes, tail_sequence, &parameters);
        let footer = scan::read_footer(medium.storage, offset, tail_sequence, &parameters);
        let later = scan::later_attestation(&tail_bytes, tail_sequence, scan.end, &parameters);
        let evidence = Evidence {
            end: scan.end,
            mark: judge_marks(&marks, &scan, tail_header.previous_checksum),
            later: later.map(|(synced_to, _)| synced_to),
            has_footer: medium.io("read the last segment", footer)?.is_ok(),
        };
        let verdict = decide(&evidence);
        if let Verdict::Corrupt(reason) = verdict {
            return medium.corrupt(
                offset + scan.end % segment_bytes,
                format!("{reason}, and what is there does not check: {}", scan.stop),
            );
        }
        Ok(Survey {
            parameters,
            head,
            full,
            tail_slot,
            tail_header,
            tail_bytes,
            scan,
            marks,
            slot_count,
            verdict,
        })
    }

    /// Every segment header by its sequence, with its slot. A slot without one is free, unless it holds a frame of
    /// the log.
    fn headers(
        medium: &Medium<'_>,
        parameters: &Parameters,
        length: u64,
        slot_count: u64,
    ) -> Result<HashMap<u64, (u64, SegmentHeader)>> {
        let mut headers: HashMap<u64, (u64, SegmentHeader)> = HashMap::new();
        let mut bad: Vec<u64> = Vec::new();
        // The slot behind the last whole one is looked at too: it must not be a segment that was cut short.
        for slot in 0..=slot_count {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            if offset + SECTOR_BYTES as u64 > length {
                break;
            }
            match SegmentHeader::decode(&medium.sector(offset)?) {
                Ok(header) if header.parameters != *parameters => {
                    return medium
                        .corrupt(offset, "the segment's parameters are not those of the store header");
                }
                Ok(header) => {
                    if let Some((other, _)) = headers.insert(header.sequence, (slot, header)) {
                        return medium.corrupt(
                            offset,
                            format!("segment {} is in slots {other} and {slot}", header.sequence),
                        );
                    }
                }
                Err(_) if slot < slot_count => bad.push(slot),
                Err(_) => {}
            }
        }
        let head = headers.values().map(|(_, header)| header.head).max().unwrap_or(0);
        for slot in bad {
            let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
            let frame = scan::first_frame(medium.storage, offset, parameters);
            if let Some(sequence) = medium.io("read the first frame of a slot", frame)?
                && sequence >= head
            {
                return medium.corrupt(
                    offset,
                    format!("the slot has no header that checks and holds a frame of segment {sequence}"),
                );
            }
        }
        Ok(headers)
    }

    fn full_segment(
        medium: &Medium<'_>,
        parameters: &Parameters,
        hasher: &KeyHasher,
        (slot, header): (u64, &SegmentHeader),
        (next_slot, next): (u64, &SegmentHeader),
    ) -> Result<Found> {
        let sequence = header.sequence;
        let offset = STORE_HEADER_BYTES + slot * parameters.segment_bytes;
        if next.previous_end / parameters.segment_bytes != sequence {
            let next_offset = STORE_HEADER_BYTES + next_slot * parameters.segment_bytes;
            return medium.corrupt(next_offset, "the segment does not say where the one before it ends");
        }
        let footer = scan::read_footer(medium.storage, offset, sequence, parameters);
        if let Ok((trailer, entries)) = medium.io("read a footer", footer)? {
            if trailer.end != next.previous_end || trailer.last_checksum != next.previous_checksum {
                return medium.corrupt(offset, "the footer and the next segment's header do not agree");
            }
            let segment = FullSegment { slot, end: trailer.end, record_bytes: trailer.record_bytes };
            return Ok(Found { segment, entries });
        }
        // The footer is written after the next segment's header, so a crash may have torn it. The frames say the same.
        let bytes = scan::read_slot(medium.storage, offset, parameters.segment_bytes);
        let bytes = medium.io("read a segment whose footer does not check", bytes)?;
        let chain = Chain {
            checksum: header.previous_checksum,
            open_count: header.open_count,
            time_ms: header.time_ms,
        };
        let scan = scan::scan(&bytes, sequence, chain, parameters, hasher);
        if scan.end != next.previous_end || scan.last_checksum != next.previous_checksum {
            return medium.corrupt(
                offset + scan.end % parameters.segment_bytes,
                format!("segment {sequence} was whole on disk and now ends here: {}", scan.stop),
            );
        }
        let segment = FullSegment { slot, end: scan.end, record_bytes: scan.record_bytes };
        Ok(Found { segment, entries: scan.entries })
    }

    fn marks(tail_bytes: &[u8], sequence: u64, parameters: &Parameters) -> Vec<CloseMark> {
        CLOSE_MARK_OFFSETS
            .iter()
            .filter_map(|offset| {
                let at = usize::try_from(*offset).ok()?;
                let sector = tail_bytes.get(at..)?.first_chunk::<SECTOR_BYTES>()?;
                CloseMark::decode(sector, parameters.seed(), sequence, parameters.segment_bytes)
            })
            .collect()
    }

    fn high_water_ms(&self) -> u64 {
        let marked = self.marks.iter().map(|mark| mark.time_ms).max().unwrap_or(0);
        self.scan.time_ms.max(marked)
    }

    fn highest_open_count(&self) -> u32 {
        let marked = self.marks.iter().map(|mark| mark.open_count).max().unwrap_or(0);
        self.scan.open_count.max(marked)
    }

    /// Fills an index with each key's last record, oldest segment first.
    fn index(&self, reader: &Reader, now_ms: u64) -> Result<(Index, Ledger)> {
        let (index, ledger) = (Index::new(), Ledger::new());
        let hasher = KeyHasher::new(self.parameters.secret);
        let tail = Found {
            segment: FullSegment {
                slot: self.tail_slot,
                end: self.scan.end,
                record_bytes: self.scan.record_bytes,
            },
            entries: self.scan.entries.clone(),
        };
        let segments = self.full.iter().chain([&tail]);
        for (found, sequence) in segments.clone().zip(self.head..) {
            reader.set_sequence(found.segment.slot, sequence);
        }
        for found in segments {
            let listed: u64 = found.entries.iter().map(|entry| entry.length).sum();
            ledger.add_dead(found.segment.record_bytes.saturating_sub(listed));
            for entry in &found.entries {
                let offset = reader.slot_offset(found.segment.slot) + entry.offset;
                let Some(address) = Address::new(offset) else {
                    return Err(Error::corrupt(
                        reader.path(),
                        offset,
                        "the footer's address is out of range",
                    ));
                };
                replay(&index, &ledger, reader, &hasher, entry, address, now_ms)?;
            }
        }
        Ok((index, ledger))
    }

    /// Writes what was decided on: the frames that were not known to be on disk once more, and zeroes behind them. A
    /// sync that failed before the crash may have left pages that only look clean, so nothing less makes them true.
    fn mend(&self, medium: &Medium<'_>) -> Result<()> {
        if self.verdict == Verdict::Closed {
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
        frames.max(marks)
    }

    fn start(self, open_count: u32) -> Start {
        let used: BTreeSet<u64> =
            self.full.iter().map(|found| found.segment.slot).chain([self.tail_slot]).collect();
        Start {
            open_count,
            head: self.head,
            full: self.full.iter().map(|found| found.segment).collect::<VecDeque<_>>(),
            tail: Tail {
                slot: self.tail_slot,
                header: self.tail_header,
                offset: self.scan.end % self.parameters.segment_bytes,
                last_checksum: self.scan.last_checksum,
                record_bytes: self.scan.record_bytes,
                entries: self.scan.entries.iter().map(|entry| (entry.hash, *entry)).collect(),
            },
            free: (0..self.slot_count).filter(|slot| !used.contains(slot)).collect(),
            slot_count: self.slot_count,
        }
    }
}

fn judge_marks(marks: &[CloseMark], scan: &Scan, before_first: u32) -> Mark {
    let Some(mark) = marks.iter().max_by_key(|mark| mark.end) else { return Mark::None };
    if mark.end > scan.end {
        return Mark::Beyond;
    }
    let ends_there = |frame: &&FrameSpan| frame.position + frame.length == mark.end;
    let checksum = match scan.frames.iter().find(ends_there) {
        Some(frame) => Some(frame.checksum),
        None if scan.frames.first().is_none_or(|first| first.position == mark.end) => Some(before_first),
        None => None,
    };
    if checksum != Some(mark.last_checksum) {
        return Mark::Contradicts;
    }
    if mark.end == scan.end { Mark::AtEnd } else { Mark::Earlier { attested: mark.end } }
}

/// Applies one record to the index as if it had just been written.
fn replay(
    index: &Index,
    ledger: &Ledger,
    reader: &Reader,
    hasher: &KeyHasher,
    entry: &FooterEntry,
    address: Address,
    now_ms: u64,
) -> Result<()> {
    let weight = Weight {
        kind: entry.kind,
        length_bytes: entry.length,
        key_expires_ms: entry.key_expires_ms,
        result_expires_ms: entry.result_expires_ms,
    };
    ledger.add(&weight);
    if entry.kind == Kind::Ignorable {
        return Ok(());
    }
    let earlier = index.find(entry.hash, |candidate| {
        let confirm = reader.record(candidate, |place, record| {
            (hasher.key(record.key) == entry.hash)
                .then(|| (candidate, Weight::of(record, place.length_bytes)))
        });
        confirm.transpose()
    });
    let expired = matches!(entry.kind, Kind::Completed | Kind::Released) && now_ms >= entry.key_expires_ms;
    let leaves_something = entry.kind != Kind::Forgotten && !expired;
    match earlier.transpose()? {
        Some((old, old_weight)) => {
            ledger.bury(&old_weight);
            if leaves_something {
                index.replace(entry.hash, old, address);
            } else {
                index.remove(entry.hash, old);
            }
        }
        None if leaves_something => index.insert(entry.hash, address),
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 10_000;

    #[test]
    fn every_row_of_the_recovery_table_is_as_specified() {
        let closed_before = "beyond";
        let marks =
            [Mark::None, Mark::Earlier { attested: 5_000 }, Mark::AtEnd, Mark::Beyond, Mark::Contradicts];
        let laters = [None, Some(END), Some(END + 8)];
        for mark in marks {
            for later in laters {
                for has_footer in [false, true] {
                    let verdict = decide(&Evidence { end: END, mark, later, has_footer });
                    let corrupt = has_footer
                        || matches!(mark, Mark::Beyond | Mark::Contradicts)
                        || later == Some(END + 8);
                    let closed = !corrupt && mark == Mark::AtEnd && later.is_none();
                    match verdict {
                        Verdict::Corrupt(reason) => {
                            assert!(corrupt, "{mark:?} {later:?} {has_footer}");
                            assert!(mark != Mark::Beyond || has_footer || reason.contains(closed_before));
                        }
                        Verdict::Closed => assert!(closed, "{mark:?} {later:?} {has_footer}"),
                        Verdict::CutOff => assert!(!corrupt && !closed, "{mark:?} {later:?} {has_footer}"),
                    }
                }
            }
        }
    }

    #[test]
    fn random_bytes_differ_from_call_to_call() {
        assert_ne!(random_bytes(), random_bytes());
    }
}
