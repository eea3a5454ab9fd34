//! Builds a new log of given records, in a new file. Only `repair` uses it.
//!
//! The file is complete before it becomes a store, so nothing here is ordered for a crash.

use std::convert::Infallible;

use super::copying::CopyTarget;
use crate::clock::TimeMark;
use crate::error::Result;
use crate::format::footer::{self, FooterEntry, Summary, footer_bytes};
use crate::format::frame::{self, FRAME_HEADER_BYTES, Stamp};
use crate::format::header::SegmentHeader;
use crate::format::record::Record;
use crate::format::{CopyState, FIRST_FRAME_OFFSET, max_frame_bytes};
use crate::storage::{write_all_at, write_zeroes_at};

/// The number of bytes from which on a frame gets no more records.
const FULL_FRAME_BYTES: usize = 64 << 10;

/// What the headers of a new log state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heading {
    /// The time at which the store goes on.
    pub(crate) mark: TimeMark,
    /// The open count of the frames.
    pub(crate) open_count: u32,
    /// The open count from which the next session goes on.
    pub(crate) next_open_count: u32,
    pub(crate) copy: CopyState,
}

/// A log that is being built. Each key has at most one record in it.
pub(crate) struct LogBuilder<'a> {
    target: CopyTarget<'a>,
    heading: Heading,
    /// The header of the segment that is being filled.
    header: SegmentHeader,
    /// The bytes of its slot from the first frame on.
    frames: Vec<u8>,
    entries: Vec<FooterEntry>,
    record_bytes: u64,
    last_checksum: u32,
    /// The frame that is being filled, and the entries of its records. Their offsets count from the start of the frame.
    frame: Vec<u8>,
    pending: Vec<FooterEntry>,
}

impl<'a> LogBuilder<'a> {
    pub(crate) fn new(target: CopyTarget<'a>, heading: Heading) -> LogBuilder<'a> {
        let header = SegmentHeader {
            parameters: target.parameters,
            sequence: 1,
            head: 1,
            previous_end: 0,
            previous_checksum: 0,
            open_count: heading.open_count,
            mark: heading.mark,
            synced_to: 0,
            copy: heading.copy,
        };
        LogBuilder {
            target,
            heading,
            header,
            frames: Vec::new(),
            entries: Vec::new(),
            record_bytes: 0,
            last_checksum: 0,
            frame: vec![0; FRAME_HEADER_BYTES],
            pending: Vec::new(),
        }
    }

    /// Appends the only record of the key with this hash.
    pub(crate) fn add(&mut self, record: &Record<'_>, hash: u128) -> Result<()> {
        let encoded = record.encode(self.target.parameters.seed());
        let length = encoded.length_bytes();
        let bytes = self.frame.len() as u64 + length + footer_bytes(self.pending.len() as u64 + 1);
        let is_full = self.frame.len() >= FULL_FRAME_BYTES;
        if is_full || bytes > max_frame_bytes(self.target.parameters.segment_bytes) {
            self.end_frame()?;
        }
        self.pending.push(FooterEntry {
            hash,
            version: record.version,
            key_expires_ms: record.key_expires_ms,
            result_expires_ms: record.result_expires_ms,
            offset: self.frame.len() as u64,
            length,
            kind: record.kind,
        });
        encoded.append_to(&mut self.frame);
        Ok(())
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.target.parameters.segment_bytes
    }

    /// The position at which the frames end.
    fn end(&self) -> u64 {
        let first = self.header.sequence * self.target.parameters.segment_bytes + FIRST_FRAME_OFFSET;
        first + self.frames.len() as u64
    }

    fn end_frame(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let entries = (self.entries.len() + self.pending.len()) as u64;
        let bytes =
            FIRST_FRAME_OFFSET + (self.frames.len() + self.frame.len()) as u64 + footer_bytes(entries);
        if bytes > self.target.parameters.segment_bytes {
            self.end_segment()?;
        }
        let position = self.end();
        let Heading { mark, open_count, .. } = self.heading;
        let stamp = Stamp {
            position,
            synced_to: position,
            previous_checksum: self.last_checksum,
            open_count,
            time_ms: mark.store_ms,
            wall_ms: mark.wall_ms,
        };
        self.last_checksum = frame::seal(&mut self.frame, &stamp, self.target.parameters.seed());
        let offset = FIRST_FRAME_OFFSET + self.frames.len() as u64;
        for entry in self.pending.drain(..) {
            self.record_bytes += entry.length;
            self.entries.push(FooterEntry { offset: offset + entry.offset, ..entry });
        }
        self.frames.append(&mut self.frame);
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        Ok(())
    }

    /// Writes the segment and its footer, and begins the next one.
    fn end_segment(&mut self) -> Result<()> {
        let (end, sequence) = (self.end(), self.header.sequence);
        let seed = self.target.parameters.seed();
        let entries = std::mem::take(&mut self.entries);
        let summary = Summary {
            entry_count: u32::try_from(entries.len())
                .unwrap_or_else(|_| unreachable!("each entry has a record in the segment")),
            sequence,
            end,
            record_bytes: self.record_bytes,
            last_checksum: self.last_checksum,
        };
        let mut footer = Vec::new();
        let Ok(()) = footer::encode(entries, &summary, seed, |piece| {
            footer.extend_from_slice(piece);
            Ok::<(), Infallible>(())
        });
        self.write_segment(&footer)?;
        self.frames.clear();
        self.record_bytes = 0;
        self.header = SegmentHeader {
            sequence: sequence + 1,
            previous_end: end,
            previous_checksum: self.last_checksum,
            ..self.header
        };
        Ok(())
    }

    /// Writes the whole slot of the segment, without holes: the disk could be full when the store writes to one.
    fn write_segment(&self, footer: &[u8]) -> Result<()> {
        let CopyTarget { storage, parameters, .. } = &self.target;
        let slot = self.target.slot_offset(self.header.sequence - 1);
        let (end, footer_at) = (
            slot + FIRST_FRAME_OFFSET + self.frames.len() as u64,
            slot + parameters.segment_bytes - footer.len() as u64,
        );
        let write = || {
            write_zeroes_at(*storage, slot, FIRST_FRAME_OFFSET)?;
            write_all_at(*storage, &self.header.encode(), slot)?;
            write_all_at(*storage, &self.frames, slot + FIRST_FRAME_OFFSET)?;
            write_zeroes_at(*storage, end, footer_at - end)?;
            write_all_at(*storage, footer, footer_at)
        };
        self.target.io(write())
    }

    /// Completes the file. Returns its length.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.end_frame()?;
        self.header.open_count = self.heading.next_open_count;
        self.header.synced_to = self.end();
        self.write_segment(&[])?;
        let bytes = self.target.slot_offset(self.header.sequence);
        self.target.finish()?;
        Ok(bytes)
    }
}
