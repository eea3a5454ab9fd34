//! The storage as recovery sees it, and how a store comes into being on it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::clock::{OpeningRules, TimeMark, TimeSource};
use crate::error::{Error, Result};
use crate::format::header::{
    HeaderProblem, Parameters, Sector, SegmentHeader, decode_store_header, encode_store_header,
};
use crate::format::{FormatError, SECTOR_BYTES, STORE_HEADER_BYTES};
use crate::log::scan;
use crate::log::slots::NewSlot;
use crate::storage::{Storage, read_exact_at, set_len, sync_all, sync_data, write_all_at, write_zeroes_at};

/// How to open.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) create: bool,
    /// Of a new file; an existing one keeps its own.
    pub(crate) segment_bytes: u64,
    pub(crate) min_bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) new_slot: NewSlot,
    pub(crate) clock_rules: OpeningRules,
    pub(crate) time_source: Arc<dyn TimeSource>,
}

/// The storage, with the path that its errors are told with.
pub(super) struct OpenContext<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) path: &'a Path,
}

impl OpenContext<'_> {
    pub(super) fn io<T>(&self, operation: &'static str, outcome: std::io::Result<T>) -> Result<T> {
        outcome.map_err(|error| Error::io(self.path, operation, error))
    }

    pub(super) fn corrupt<T>(&self, offset: u64, reason: impl Into<String>) -> Result<T> {
        Err(Error::corrupt(self.path, offset, reason))
    }

    pub(super) fn length(&self) -> Result<u64> {
        self.io("find the length of the file", self.storage.len())
    }

    /// Refuses a file that the process may not write to its end: the first write there would end the process.
    pub(super) fn check_size_limit(&self) -> Result<()> {
        let length = self.length()?;
        match self.storage.size_limit() {
            Some(limit) if length > limit => Err(Error::Full {
                path: self.path.to_owned(),
                reason: format!(
                    "the file has {length} bytes and the process may write files of {limit} bytes at most (RLIMIT_FSIZE); \
                     raise that limit"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The first run of bytes at or behind `offset` that may be other than zero.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.io("find what the file holds", self.storage.next_data(offset))
    }

    pub(super) fn sector(&self, offset: u64) -> Result<Sector> {
        let mut sector = [0; SECTOR_BYTES];
        self.io("read a header", read_exact_at(self.storage, &mut sector, offset))?;
        Ok(sector)
    }

    /// What the store header says; None if the file was never finished.
    pub(super) fn parameters(&self, config: &Config) -> Result<Option<Parameters>> {
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
            Err(HeaderProblem::Damaged(fault)) => self.corrupt(0, fault.reason()),
            Err(HeaderProblem::Unsupported(reason)) => {
                Err(Error::Unsupported { path: self.path.to_owned(), reason })
            }
            Err(HeaderProblem::Blank) => self.creation_was_cut_short(length, config).map(|()| None),
        }
    }

    /// What a later version of the format wrote is neither damage nor a torn tail.
    pub(super) fn check_known(&self, offset: u64, fault: FormatError) -> Result<()> {
        match fault {
            FormatError::Damaged(_) => Ok(()),
            FormatError::Unknown(reason) => Err(Error::Unsupported {
                path: self.path.to_owned(),
                reason: format!("at offset {offset}: {reason}; a newer oncekey is needed"),
            }),
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
            // A creation with larger segments may have been cut short too, but then it wrote nothing but zeroes.
            if length > longest && !self.is_zero(length)? {
                return lost("the file is longer than a new one");
            }
            // Both headers may be what was lost.
            let resembles = length <= longest && scan::resembles_used_slot(&self.first_slot(length)?);
            return if resembles { lost("there is what looks like a log") } else { Ok(()) };
        };
        let parameters = header.parameters;
        if header.sequence != 1 || length > STORE_HEADER_BYTES + parameters.segment_bytes {
            return lost("there is a log");
        }
        match scan::latest_trace(&self.first_slot(length)?, 0, &parameters) {
            Some(_) => lost("there is a log"),
            None => Ok(()),
        }
    }

    /// What there is of the only slot of a file.
    fn first_slot(&self, length: u64) -> Result<Vec<u8>> {
        let slot = scan::read_slot(self.storage, STORE_HEADER_BYTES, length - STORE_HEADER_BYTES);
        self.io("read the first segment", slot)
    }

    fn is_zero(&self, length: u64) -> Result<bool> {
        let mut piece = vec![0; 64 << 10];
        let mut at = 0;
        while let Some(run) = self.next_data(at)? {
            at = run.start;
            while at < run.end.min(length) {
                let left = usize::try_from(run.end.min(length) - at).unwrap_or(usize::MAX).min(piece.len());
                self.io("read the file", read_exact_at(self.storage, &mut piece[..left], at))?;
                if piece[..left].iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                at += left as u64;
            }
            if run.end >= length {
                break;
            }
        }
        Ok(true)
    }

    /// Makes the file: length, slot 0 with its header, and only when those are on disk the store header.
    pub(super) fn create(&self, config: &Config) -> Result<Parameters> {
        let parameters = Parameters {
            segment_bytes: config.segment_bytes,
            file_id: self.random_bytes()?,
            secret: self.random_bytes()?,
        };
        let first = SegmentHeader {
            parameters,
            sequence: 1,
            head: 1,
            previous_end: 0,
            previous_checksum: 0,
            open_count: 0,
            mark: TimeMark::first(config.time_source.read()),
            synced_to: 0,
        };
        let create = || {
            // Emptied first: what a creation that was cut short left behind must not be taken for anything.
            set_len(self.storage, 0)?;
            // The header's sector holds synced zeroes before the header is written over them, so that a crash leaves
            // one or the other and never garbage.
            set_len(self.storage, STORE_HEADER_BYTES)?;
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

    /// Random bytes of the operating system's, fit for a secret.
    fn random_bytes(&self) -> Result<[u8; 16]> {
        let mut bytes = [0; 16];
        let filled = getrandom::fill(&mut bytes).map_err(Into::into);
        self.io("get random bytes for the secret of a new store", filled)?;
        Ok(bytes)
    }
}
