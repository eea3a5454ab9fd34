//! The storage that is being opened: reads that return the crate's errors, and the creation of a new store.
//!
//! This module also distinguishes three kinds of file without a store header: a new file, one whose creation was
//! interrupted, and a store that lost its header.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::clock::{OpeningRules, TimeMark, TimeSource};
use crate::error::{Error, Result};
use crate::format::header::{
    HeaderProblem, Parameters, Sector, SegmentHeader, decode_store_header, encode_store_header, is_incomplete,
};
use crate::format::{CopyState, FormatError, SECTOR_BYTES, STORE_HEADER_BYTES};
use crate::log::scan;
use crate::log::slots::NewSlot;
use crate::storage::{Storage, read_exact_at, set_len, sync_all, sync_data, write_all_at, write_zeroes_at};

/// The options with which a store is opened.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Whether an empty file, or one whose creation was interrupted, becomes a new store.
    pub(crate) create: bool,
    /// The segment size of a new file. An existing file keeps its own.
    pub(crate) segment_bytes: u64,
    /// The minimum length of the file. It is rounded up to whole slots.
    pub(crate) min_bytes: u64,
    /// The maximum length of the file. It is rounded down to whole slots.
    pub(crate) max_bytes: u64,
    /// How a slot at the end of the file gets its space.
    pub(crate) new_slot: NewSlot,
    /// What the caller says of a copy that no caller has opened yet: for how long after this opening a key that the store does
    /// not know is in doubt. None if it says nothing.
    pub(crate) forgotten_ms: Option<u64>,
    /// How far recovery trusts the wall clock.
    pub(crate) clock_rules: OpeningRules,
    /// The clocks of the machine, or their replacement.
    pub(crate) time_source: Arc<dyn TimeSource>,
}

/// A storage, and the path that its errors state.
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

    /// Refuses a file that is longer than the process may write. A write beyond that limit raises SIGXFSZ, which by
    /// default ends the process.
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

    /// Returns the first range at or after `offset` that may contain anything other than zeroes.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.io("find the data in the file", self.storage.next_data(offset))
    }

    /// Reads the sector at `offset`.
    pub(super) fn sector(&self, offset: u64) -> Result<Sector> {
        let mut sector = [0; SECTOR_BYTES];
        self.io("read a header", read_exact_at(self.storage, &mut sector, offset))?;
        Ok(sector)
    }

    /// Reads the parameters of the store from its header. None if the file is empty or its creation was interrupted.
    ///
    /// `new_segment_bytes` is the segment size of a new store, whose interrupted creation may have left a file of that length.
    pub(super) fn parameters(&self, new_segment_bytes: u64) -> Result<Option<Parameters>> {
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
                false => self.foreign("the file is too short and does not begin like a store header"),
            };
        }
        let sector = self.sector(0)?;
        match decode_store_header(&sector) {
            Ok(parameters) => Ok(Some(parameters)),
            Err(HeaderProblem::Foreign) if is_incomplete(&sector) => self
                .foreign("a copy that was not completed, because the backup or the repair was interrupted"),
            Err(HeaderProblem::Foreign) => self.foreign("the file does not begin with a store header"),
            Err(HeaderProblem::Damaged(fault)) => self.corrupt(0, fault.reason()),
            Err(HeaderProblem::Unsupported(reason)) => {
                Err(Error::Unsupported { path: self.path.to_owned(), reason })
            }
            Err(HeaderProblem::Blank) => {
                self.check_interrupted_creation(length, new_segment_bytes).map(|()| None)
            }
        }
    }

    /// Reads the parameters of a store that exists from its header.
    pub(super) fn existing_parameters(&self) -> Result<Parameters> {
        if self.length()? < STORE_HEADER_BYTES {
            return self.foreign("the file is too short for a store header");
        }
        match decode_store_header(&self.sector(0)?) {
            Ok(parameters) => Ok(parameters),
            Err(HeaderProblem::Foreign) => self.foreign("the file does not begin with a store header"),
            Err(HeaderProblem::Damaged(fault)) => self.corrupt(0, fault.reason()),
            Err(HeaderProblem::Unsupported(reason)) => {
                Err(Error::Unsupported { path: self.path.to_owned(), reason })
            }
            Err(HeaderProblem::Blank) => {
                self.foreign("the store header is blank, because the store is being created, or its creation was interrupted")
            }
        }
    }

    /// Refuses bytes that a later version of the format wrote, because they are neither damage nor a torn tail.
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

    /// Accepts a file with a blank store header if an interrupted creation could have left it. Otherwise refuses it as
    /// corrupt.
    ///
    /// The store header is written last when a store is created. So an interrupted creation left at most one slot,
    /// which has no frame, and either no header or one of sequence 1. A file with more than that is a store that lost
    /// its header.
    fn check_interrupted_creation(&self, length: u64, new_segment_bytes: u64) -> Result<()> {
        let lost = |what: &str| {
            self.corrupt(
                0,
                format!("the store header is blank, but {what}, so this is not an interrupted creation"),
            )
        };
        if length < STORE_HEADER_BYTES + SECTOR_BYTES as u64 {
            return Ok(());
        }
        let Ok(header) = SegmentHeader::decode(&self.sector(STORE_HEADER_BYTES)?) else {
            let longest = STORE_HEADER_BYTES + new_segment_bytes;
            // The interrupted creation may have been one with larger segments, but then it wrote only zeroes.
            if length > longest && !self.is_zero(length)? {
                return lost("the file is longer than a new one");
            }
            // A store may have lost both its store header and its first segment header.
            let resembles = length <= longest && scan::resembles_used_slot(&self.first_slot(length)?);
            return if resembles { lost("the file holds what looks like a log") } else { Ok(()) };
        };
        let parameters = header.parameters;
        if header.sequence != 1 || length > STORE_HEADER_BYTES + parameters.segment_bytes {
            return lost("the file holds a log");
        }
        match scan::latest_trace(&self.first_slot(length)?, 0, &parameters) {
            Some(_) => lost("the file holds a log"),
            None => Ok(()),
        }
    }

    /// Reads the bytes after the store header: the only slot of the file, whole or in part.
    fn first_slot(&self, length: u64) -> Result<Vec<u8>> {
        let slot = scan::read_slot(self.storage, STORE_HEADER_BYTES, length - STORE_HEADER_BYTES);
        self.io("read the first segment", slot)
    }

    /// Whether the first `length` bytes of the file are all zero.
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

    /// Creates the store: empties the file, writes slot 0 and its header, and writes the store header once those are on
    /// disk.
    pub(super) fn create(&self, config: &Config) -> Result<Parameters> {
        let parameters = Parameters {
            segment_bytes: config.segment_bytes,
            file_id: self.random_bytes()?,
            secret: self.random_bytes()?,
            copied_seed: None,
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
            copy: CopyState::default(),
        };
        let create = || {
            // The file is emptied first, so that nothing that an interrupted creation left becomes part of the new
            // store.
            set_len(self.storage, 0)?;
            // The zeroes in the sector of the store header are synced before the header is written, so a crash leaves
            // either the zeroes or the header, and never garbage.
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

    /// Returns random bytes from the operating system that are suitable for a secret.
    fn random_bytes(&self) -> Result<[u8; 16]> {
        let mut bytes = [0; 16];
        let filled = getrandom::fill(&mut bytes).map_err(Into::into);
        self.io("get random bytes for the secret of a new store", filled)?;
        Ok(bytes)
    }
}
