//! Copies the log to a new file while the store is in use: segment by segment, oldest first.
//!
//! The copy is the log as it was when the copy began: every segment from the head on, the last one up to the position that
//! was durable. Segments do not change once they are written, except for their headers, so no lock is held while one is copied.
//! The slot of a segment is not reused before the segment is copied; see `pins`.
//!
//! # What makes a copy
//!
//! - A new file id and the bit that marks a copy, in every header. The seed of the checksums stays, because they cover every
//!   byte that is copied.
//! - In the last segment's header, an open count that is higher by [`COPY_OPEN_COUNTS`], the time, and a `synced_to` at the end:
//!   whatever is cut off of a copy is damage.
//!
//! A copy that is not complete has no store header, and something in its place that no version takes for a store.

use std::path::Path;
use std::sync::Arc;

use super::Log;
use super::full_segment;
use super::writer::{FullSegment, Pinned};
use crate::error::{Error, Result};
use crate::format::header::{Parameters, SegmentHeader, encode_store_header, incomplete_store_header};
use crate::format::{CopyState, FIRST_FRAME_OFFSET, SECTOR_BYTES, STORE_HEADER_BYTES};
use crate::planted::{Bug, planted};
use crate::status::MAX_OPEN_COUNT;
use crate::storage::{Storage, read_exact_at, set_len, sync_all, sync_data, write_all_at, write_zeroes_at};

/// By how much the open count of a copy is higher. The original can be opened this often without a clean close before the two
/// files give the same versions.
pub(crate) const COPY_OPEN_COUNTS: u32 = 65_536;

/// The number of bytes that are copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A new file that a copy is written to.
pub(crate) struct CopyTarget<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) path: &'a Path,
    pub(crate) parameters: Parameters,
}

impl<'a> CopyTarget<'a> {
    /// Begins a copy with the parameters that `choose` makes of a new file id. Marks the new file as incomplete, durably.
    pub(crate) fn begin(
        storage: &'a dyn Storage,
        path: &'a Path,
        choose: impl FnOnce([u8; 16]) -> Parameters,
    ) -> Result<CopyTarget<'a>> {
        let mut file_id = [0; 16];
        let filled = getrandom::fill(&mut file_id).map_err(Into::into);
        filled.map_err(|error| Error::io(path, "get random bytes for the id of the copy", error))?;
        let target = CopyTarget { storage, path, parameters: choose(file_id) };
        let begin = || {
            set_len(storage, 0)?;
            write_all_at(storage, &incomplete_store_header(), 0)?;
            set_len(storage, STORE_HEADER_BYTES)?;
            sync_all(storage)
        };
        target.io(begin())?;
        Ok(target)
    }

    pub(crate) fn io<T>(&self, outcome: std::io::Result<T>) -> Result<T> {
        outcome.map_err(|error| Error::io(self.path, "write the copy", error))
    }

    pub(crate) fn slot_offset(&self, slot: u64) -> u64 {
        STORE_HEADER_BYTES + slot * self.parameters.segment_bytes
    }

    /// Makes all segments durable, and then the file a store.
    pub(crate) fn finish(self) -> Result<()> {
        let finish = || {
            sync_data(self.storage)?;
            write_all_at(self.storage, &encode_store_header(&self.parameters), 0)?;
            sync_all(self.storage)
        };
        self.io(finish())
    }
}

/// A log that is being copied. Its segments are pinned until they are copied, or until this is dropped.
#[derive(Debug)]
pub(crate) struct Copying {
    log: Arc<Log>,
    pinned: Pinned,
    /// The number of segments that are copied.
    copied: usize,
}

impl Log {
    /// Begins a copy of everything that is durable now.
    pub(crate) fn begin_copy(self: &Arc<Log>) -> Result<Copying> {
        let pinned = self.writer.lock().pin();
        // From here on, a drop gives up the pin.
        let copying = Copying { log: Arc::clone(self), pinned, copied: 0 };
        if copying.pinned.header.open_count > MAX_OPEN_COUNT - COPY_OPEN_COUNTS - 1 {
            return Err(Error::openings_exhausted(self.path()));
        }
        Ok(copying)
    }
}

impl Copying {
    /// Begins the new file, whose bytes have the same checksums as those of the original.
    pub(crate) fn target<'a>(&self, storage: &'a dyn Storage, path: &'a Path) -> Result<CopyTarget<'a>> {
        let original = self.log.parameters;
        CopyTarget::begin(storage, path, |file_id| match planted(Bug::CopyWithoutFlag) {
            true => original,
            false => Parameters { file_id, copied_seed: Some(original.seed()), ..original },
        })
    }

    /// The number of segments, and the wall clock when the copy began.
    pub(crate) fn segments(&self) -> (u64, u64) {
        (self.pinned.full.len() as u64 + 1, self.pinned.header.mark.wall_ms)
    }

    /// Copies the next segment and gives it up. Returns false if all are copied. The store must stay open during the call.
    pub(crate) fn copy_next(&mut self, target: &CopyTarget<'_>) -> Result<bool> {
        let sequence = self.pinned.header.head + self.copied as u64;
        match self.pinned.full.get(self.copied) {
            Some(segment) => self.copy_full(sequence, segment, target)?,
            None if self.copied == self.pinned.full.len() => self.copy_tail(target)?,
            None => return Ok(false),
        }
        self.copied += 1;
        self.release(Some(sequence + 1));
        Ok(true)
    }

    fn release(&self, below: Option<u64>) {
        let mut writer = self.log.writer.lock();
        writer.unpin(self.pinned.pin, below);
        self.log.reservations.update(writer.free_space(), 0);
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let read = read_exact_at(&*self.log.storage, buffer, offset);
        read.map_err(|error| self.log.reader.io("read a segment to copy it", error))
    }

    /// Copies the bytes from `from` to `to` of a slot, and then zeroes up to the end of the slot. The copy has no holes: the disk
    /// could be full when the restored store writes to one.
    fn copy_bytes(&self, slot: u64, from: u64, to: u64, target: &CopyTarget<'_>) -> Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let (source, end) = (self.log.reader.slot_offset(slot), target.slot_offset(self.copied as u64));
        let mut at = from;
        while at < to {
            let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            self.read(&mut piece[..length], source + at)?;
            target.io(write_all_at(target.storage, &piece[..length], end + at))?;
            at += length as u64;
        }
        let rest = target.parameters.segment_bytes - to;
        target.io(write_zeroes_at(target.storage, end + to, rest))
    }

    fn write_header(&self, header: &SegmentHeader, target: &CopyTarget<'_>) -> Result<()> {
        let header = SegmentHeader { parameters: target.parameters, ..*header };
        let offset = target.slot_offset(self.copied as u64);
        target.io(write_all_at(target.storage, &header.encode(), offset))
    }

    fn copy_full(&self, sequence: u64, segment: &FullSegment, target: &CopyTarget<'_>) -> Result<()> {
        let offset = self.log.reader.slot_offset(segment.slot);
        let mut sector = [0; SECTOR_BYTES];
        self.read(&mut sector, offset)?;
        let header = SegmentHeader::decode(&sector)
            .ok()
            .filter(|header| header.sequence == sequence && header.parameters == self.log.parameters);
        let header = header.ok_or_else(|| {
            Error::corrupt(self.log.path(), offset, "the header of a segment that is to be copied is damaged")
        })?;
        // A copy that cannot be opened is worth nothing. Its frames are whole if their footer says so, or themselves.
        let Log { storage, reader, parameters, hasher, .. } = &*self.log;
        full_segment::read_entries(&**storage, reader, parameters, hasher, (sequence, segment))?;
        self.copy_bytes(segment.slot, SECTOR_BYTES as u64, target.parameters.segment_bytes, target)?;
        self.write_header(&header, target)
    }

    /// Copies the last segment up to the position that was durable. It may have become longer since, or full.
    fn copy_tail(&self, target: &CopyTarget<'_>) -> Result<()> {
        let Pinned { header, tail_slot, end, .. } = &self.pinned;
        let to = end % target.parameters.segment_bytes;
        // There are no close marks: the copy is not closed, and those of the original are of other sessions.
        let before = FIRST_FRAME_OFFSET - SECTOR_BYTES as u64;
        let offset = target.slot_offset(self.copied as u64);
        target.io(write_zeroes_at(target.storage, offset + SECTOR_BYTES as u64, before))?;
        self.copy_bytes(*tail_slot, FIRST_FRAME_OFFSET, to, target)?;
        let raised = if planted(Bug::CopyKeepsOpenCount) { 0 } else { COPY_OPEN_COUNTS };
        let open_count = header.open_count + raised;
        let copy = CopyState { answered_by: 0, ..header.copy };
        self.write_header(&SegmentHeader { open_count, copy, ..*header }, target)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.release(None);
    }
}
