//! Notes in the log that a session has begun.

use std::io;

use super::Writer;
use crate::clock::TimeMark;
use crate::format::CopyState;
use crate::format::frame::{self, COPY_OPENING_FRAME_BYTES, OPENING_FRAME_BYTES};
use crate::format::header::SegmentHeader;
use crate::log::commit::PendingFrame;
use crate::planted::{Bug, planted};
use crate::storage::write_all_at;

impl Writer {
    /// The length of an opening frame in this file.
    pub(crate) fn opening_frame_bytes(&self) -> usize {
        if self.parameters.copied_seed.is_some() { COPY_OPENING_FRAME_BYTES } else { OPENING_FRAME_BYTES }
    }

    /// Sets what the store may have forgotten. Written with the opening that follows.
    pub(crate) fn set_copy_state(&mut self, copy: CopyState) {
        self.copy = copy;
    }

    /// Makes the open count and the time mark of a new session durable, before any of its versions is generated, by
    /// writing an opening frame, which has no records.
    pub(crate) fn begin_opening(&mut self, open_count: u32, head: u64) -> io::Result<()> {
        self.open_count = open_count;
        let mut batch = PendingFrame::default();
        batch.frame.resize(self.opening_frame_bytes(), 0);
        self.change(|writer| {
            if !writer.fits(&batch) {
                writer.go_to_next_segment(head)?;
            }
            let mark = writer.opening_mark();
            let stamp = writer.stamp(&batch, &mark);
            let checksum = frame::seal_opening(
                &mut batch.frame,
                &stamp,
                mark.boot,
                mark.boot_ms,
                &writer.copy,
                writer.seed,
            );
            writer.append(&batch, checksum)?;
            // If the header is overwritten later, it must not take this back.
            writer.tail.header.copy = writer.copy;
            if planted(Bug::OpeningNotSynced) {
                return Ok(());
            }
            writer.sync()
        })
    }

    /// The time mark of a new session.
    fn opening_mark(&self) -> TimeMark {
        let (mark, earlier) = (self.clock.mark(), self.tail.header.mark);
        if planted(Bug::MarkKeepsOldWall) {
            return TimeMark { wall_ms: earlier.wall_ms, ..mark };
        }
        if planted(Bug::MarkKeepsOldBoot) {
            return TimeMark { boot: earlier.boot, boot_ms: earlier.boot_ms, ..mark };
        }
        mark
    }

    /// Makes the open count and the time mark of a new session durable when there is no space for an opening frame, by
    /// overwriting the header of the last segment. The open count must be higher than any before, because nothing else
    /// shows that a close mark at the end of the log is outdated.
    pub(crate) fn note_opening(&mut self, open_count: u32) -> io::Result<()> {
        self.open_count = open_count;
        let header =
            SegmentHeader { open_count, mark: self.opening_mark(), copy: self.copy, ..self.tail.header };
        self.change(|writer| {
            write_all_at(&*writer.storage, &header.encode(), writer.reader.slot_offset(writer.tail.slot))?;
            writer.tail.header = header;
            writer.sync()
        })
    }
}
