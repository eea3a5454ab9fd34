//! The end of the log: writes frames, and switches to the next segment.
//!
//! The log locks the writer, so one thread at a time writes a batch, publishes a head, or grows or shrinks the file.
//! Readers and threads that sync do not wait for the writer. Recovery relies on the order of the steps in
//! [`Writer::switch`] and [`Writer::publish_head`].
//!
//! Invariant: **after a change of the file has failed, the writer is never used again**, because the content of the
//! file then differs from the state in memory. After a failed segment switch, for example, the new header may be on
//! disk, and it states where the old segment ends. A frame after that end, or a second switch, would make a file that
//! recovery refuses. The commit queue is poisoned too, but only after the failing thread has unlocked the writer. Other
//! threads that have passed the queue's check earlier may be waiting for that lock. So the writer itself refuses them:
//! every method that changes the file goes through [`Writer::change`].

mod opening;
mod pinning;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use super::commit::{PendingFrame, Placement};
use super::figures::Written;
use super::footer_builder::FooterBuilder;
use super::log_position::LogPosition;
use super::pins::Pins;
use super::reader::Reader;
use super::reservations::{CannotGrow, FreeSpace};
use super::slots::{Growing, Slots};
use crate::clock::{StoreClock, TimeMark};
use crate::format::footer::{self, FooterEntry, TRAILER_BYTES, footer_bytes};
use crate::format::frame::{self, Stamp};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters, SegmentHeader};
use crate::format::{CopyState, FIRST_FRAME_OFFSET, Seed};
use crate::planted::{Bug, one_late, planted};
use crate::status::MAX_COUNTER;
use crate::storage::{Storage, write_all_at};

pub(super) use pinning::Pinned;

/// Under which condition [`Log::rotate`] goes on to the next segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotate {
    /// The tail contains frames, and enough space stays free for new operations.
    IfSpare,
    /// The tail contains frames.
    IfWritten,
    /// No condition.
    Always,
}

/// A full segment of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FullSegment {
    pub(crate) slot: u64,
    /// The position at which its frames end.
    pub(crate) end: u64,
    pub(crate) record_bytes: u64,
}

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) slot: u64,
    pub(crate) header: SegmentHeader,
    /// Where the next frame begins, in bytes from the start of the slot.
    pub(crate) offset: u64,
    /// The checksum of the last frame, in this segment or an earlier one.
    pub(crate) last_checksum: u32,
    /// The length of all records in the segment together.
    pub(crate) record_bytes: u64,
    /// The entries of the future footer.
    pub(crate) entries: FooterBuilder,
}

/// The writer of one log.
#[derive(Debug)]
pub(crate) struct Writer {
    storage: Arc<dyn Storage>,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    /// The clock that stamps frames, headers and close marks when they are written. The times in records are no
    /// substitute: records may be older, and moved ones much older.
    clock: Arc<StoreClock>,
    parameters: Parameters,
    seed: Seed,
    open_count: u32,
    /// What the store may have forgotten, if its file is a copy. Every header and opening frame carries it on.
    copy: CopyState,
    /// The sequence of the oldest segment that a durable header still counts as part of the log.
    head: u64,
    /// The full segments in order. The first has the sequence `head`.
    full: VecDeque<FullSegment>,
    tail: Tail,
    slots: Slots,
    /// What was written since the store was opened.
    written: Written,
    /// The segments that are being copied.
    pub(super) pins: Pins,
    /// A change of the file is under way, or one has failed or unwound, so the file may differ from the state in
    /// memory.
    is_half_done: bool,
}

/// The state of the log as recovery has found it, from which a [`Writer`] continues.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) clock: Arc<StoreClock>,
    /// What the store may have forgotten, if its file is a copy.
    pub(crate) copy: CopyState,
    /// The sequence of the oldest segment.
    pub(crate) head: u64,
    /// The full segments in order. The first has the sequence `head`.
    pub(crate) full: VecDeque<FullSegment>,
    pub(crate) tail: Tail,
    /// The free slots.
    pub(crate) free: BTreeSet<u64>,
    /// The number of slots, free or in use.
    pub(crate) slot_count: u64,
}

impl Writer {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        reader: Arc<Reader>,
        log_position: Arc<LogPosition>,
        parameters: Parameters,
        growing: Growing,
        start: Start,
    ) -> Writer {
        let Start { clock, copy, head, full, tail, free, slot_count } = start;
        let seed = parameters.seed();
        let slots = Slots::new(
            Arc::clone(&storage),
            Arc::clone(&reader),
            Arc::clone(&log_position),
            parameters.segment_bytes,
            growing,
            (slot_count, free),
        );
        let writer = Writer {
            storage,
            reader,
            log_position,
            clock,
            parameters,
            seed,
            // This is replaced when the new session gets its own open count.
            open_count: tail.header.open_count,
            copy,
            head,
            full,
            tail,
            slots,
            written: Written::default(),
            pins: Pins::default(),
            is_half_done: false,
        };
        writer.log_position.set_written(writer.end());
        writer.log_position.set_durable(writer.end());
        writer
    }

    /// The position at which the log ends.
    fn end(&self) -> u64 {
        self.tail.header.sequence * self.parameters.segment_bytes + self.tail.offset
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(crate) fn written(&self) -> Written {
        self.written
    }

    /// Gives access to the slots, for changes of their state in memory. A change of the file must go through a method
    /// of the writer. The exception is [`Slots::grow_ahead`], which writes only after the last slot, where a failure
    /// does no harm.
    pub(crate) fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Whether the tail contains no frames.
    pub(crate) fn tail_is_empty(&self) -> bool {
        self.tail.offset == FIRST_FRAME_OFFSET
    }

    /// The full segment with this sequence. None if there is none.
    pub(crate) fn full_segment(&self, sequence: u64) -> Option<FullSegment> {
        let at = usize::try_from(sequence.checked_sub(self.head)?).ok()?;
        self.full.get(at).copied()
    }

    /// Describes the tail as if it were full now, with the entries of its footer.
    pub(crate) fn tail_listing(&self) -> (FullSegment, Vec<FooterEntry>) {
        let Tail { slot, record_bytes, entries, .. } = &self.tail;
        let segment = FullSegment { slot: *slot, end: self.end(), record_bytes: *record_bytes };
        (segment, entries.iter().collect())
    }

    /// The sequence of the full segment in `slot`.
    pub(crate) fn sequence_of_full(&self, slot: u64) -> Option<u64> {
        let at = self.full.iter().position(|segment| segment.slot == slot)?;
        Some(self.head + at as u64)
    }

    /// The future footer entry of the record at `within` in `slot`. None if the tail is in a different slot, or if the
    /// record is not its key's last one in the tail.
    pub(crate) fn listed_in_tail(&self, slot: u64, within: u64) -> Option<FooterEntry> {
        if slot == self.tail.slot { self.tail.entries.at_offset(within) } else { None }
    }

    /// The space that is free for new frames.
    pub(crate) fn free_space(&self) -> FreeSpace {
        let footer = footer_bytes(self.tail.entries.len() as u64);
        FreeSpace {
            tail_bytes: self.parameters.segment_bytes.saturating_sub(self.tail.offset + footer),
            free_slots: self.slots.free_count(),
            full_segments: self.full.len() as u64,
        }
    }

    /// Whether the batch fits in the tail.
    fn fits(&self, batch: &PendingFrame) -> bool {
        let entries = (self.tail.entries.len() + batch.entries.len()) as u64;
        self.tail.offset + batch.frame.len() as u64 + footer_bytes(entries) <= self.parameters.segment_bytes
    }

    /// Calls `change` to change the file. If an earlier change has failed or unwound, or a sync has failed on any
    /// thread, this returns an error instead.
    fn change<R>(&mut self, change: impl FnOnce(&mut Writer) -> io::Result<R>) -> io::Result<R> {
        let refused = self.is_half_done || self.log_position.sync_has_failed();
        if refused && !planted(Bug::FailedWriterReused) {
            return Err(io::Error::other("an earlier write, sync or change of length failed half-way"));
        }
        self.is_half_done = true;
        let changed = change(self)?;
        self.is_half_done = false;
        Ok(changed)
    }

    /// Writes the batch as one frame, in the next segment if it does not fit in this one. `head` is the sequence of the
    /// oldest segment that is still needed; the copies of all records that were moved from lower segments must be
    /// written already.
    pub(crate) fn write(&mut self, batch: &mut PendingFrame, head: u64) -> io::Result<Placement> {
        self.change(|writer| writer.write_frame(batch, head))
    }

    fn write_frame(&mut self, batch: &mut PendingFrame, head: u64) -> io::Result<Placement> {
        if !self.fits(batch) {
            self.go_to_next_segment(head)?;
        }
        let stamp = self.stamp(batch, &self.clock.mark());
        let checksum = frame::seal(&mut batch.frame, &stamp, self.seed);
        self.append(batch, checksum)
    }

    fn stamp(&self, batch: &PendingFrame, mark: &TimeMark) -> Stamp {
        let position = self.end();
        Stamp {
            position,
            synced_to: self.synced_to(position, batch),
            previous_checksum: self.tail.last_checksum,
            open_count: self.open_count,
            time_ms: mark.store_ms,
            wall_ms: mark.wall_ms,
        }
    }

    /// Appends the sealed frame of the batch to the tail.
    fn append(&mut self, batch: &PendingFrame, checksum: u32) -> io::Result<Placement> {
        let position = self.end();
        let placement =
            Placement { position, offset: self.reader.slot_offset(self.tail.slot) + self.tail.offset };
        write_all_at(&*self.storage, &batch.frame, placement.offset)?;
        for entry in &batch.entries {
            let footer_entry = FooterEntry {
                hash: entry.hash,
                version: entry.version,
                key_expires_ms: entry.size.key_expires_ms,
                result_expires_ms: entry.size.result_expires_ms,
                offset: self.tail.offset + entry.at,
                length: entry.size.length_bytes,
                kind: entry.size.kind,
            };
            self.tail.entries.push(footer_entry);
            self.tail.record_bytes += entry.size.length_bytes;
        }
        self.written.frames += 1;
        self.written.records += batch.entries.len() as u64;
        self.tail.last_checksum = checksum;
        self.tail.offset += batch.frame.len() as u64;
        self.reader.set_end(self.tail.slot, self.tail.offset);
        self.log_position.set_written(self.end());
        Ok(placement)
    }

    /// The position up to which the frame at `position` may state that the log was durable when the frame was written.
    fn synced_to(&self, position: u64, batch: &PendingFrame) -> u64 {
        if planted(Bug::SyncedToTooHigh) && !batch.entries.is_empty() {
            return position;
        }
        one_late(Bug::SyncedToOneFrameStale, self.log_position.durable()).min(position)
    }

    fn sync(&self) -> io::Result<()> {
        self.log_position.sync(&*self.storage)
    }

    /// Goes on to the next segment: syncs the last frame, writes and syncs the new header, and then writes the footer
    /// of the old segment. Because of this order, a footer without a next segment, or a gap between head and tail, is a
    /// sign of damage and never of a crash.
    pub(crate) fn switch(&mut self, head: u64) -> io::Result<()> {
        self.change(|writer| writer.go_to_next_segment(head))
    }

    fn go_to_next_segment(&mut self, head: u64) -> io::Result<()> {
        // Sync only if need be: usually the last batch is synced already, and every appender is waiting for this
        // thread.
        self.log_position.sync_to(self.end(), &*self.storage)?;
        let published = self.head;
        if planted(Bug::SlotReusedEarly) {
            self.free_below(head);
        }
        // There is a free slot: space in it was reserved for a batch that does not fit in the tail, or `Log::rotate`
        // has checked.
        let Some(slot) = self.slots.take() else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no slot for the next segment"));
        };
        let header = SegmentHeader {
            parameters: self.parameters,
            sequence: self.tail.header.sequence + 1,
            head: if planted(Bug::SlotReusedEarly) { published } else { head },
            previous_end: self.end(),
            previous_checksum: self.tail.last_checksum,
            open_count: self.open_count,
            mark: self.clock.mark(),
            synced_to: 0,
            copy: self.copy,
        };
        write_all_at(&*self.storage, &header.encode(), self.reader.slot_offset(slot))?;
        self.sync()?;

        let summary = footer::Summary {
            entry_count: u32::try_from(self.tail.entries.len())
                .unwrap_or_else(|_| unreachable!("each entry has a record in the segment")),
            sequence: self.tail.header.sequence,
            end: self.end(),
            record_bytes: self.tail.record_bytes,
            last_checksum: self.tail.last_checksum,
        };
        let slot_end = self.reader.slot_offset(self.tail.slot) + self.parameters.segment_bytes;
        let mut at = slot_end - footer_bytes(u64::from(summary.entry_count));
        footer::encode(self.tail.entries.iter(), &summary, self.seed, |piece| {
            write_all_at(&*self.storage, piece, at)?;
            at += piece.len() as u64;
            io::Result::Ok(())
        })?;

        self.reader.set_segment(slot, header.sequence, FIRST_FRAME_OFFSET);
        self.full.push_back(FullSegment {
            slot: self.tail.slot,
            end: self.end(),
            record_bytes: self.tail.record_bytes,
        });
        self.tail.slot = slot;
        self.tail.header = header;
        self.tail.offset = FIRST_FRAME_OFFSET;
        self.tail.record_bytes = 0;
        self.tail.entries.clear();
        self.log_position.set_written(self.end());
        self.log_position.set_durable(self.end());
        // The sync of the header began after the next slot was filled, so it covers that. In a store with buffered
        // durability there may be no other sync to confirm the slot.
        self.slots.confirm_growth();
        self.free_below(head);
        Ok(())
    }

    /// Frees the segments below `head` without waiting for the next segment switch, by overwriting the tail's header.
    /// `head` must have been read before this call, so that the sync covers the copies of the moved records. Returns
    /// false if there was nothing to free.
    pub(crate) fn publish_head(&mut self, head: u64) -> io::Result<bool> {
        if head <= self.head {
            return Ok(false);
        }
        self.change(|writer| {
            writer.sync()?;
            // From this header on, the moved records exist only as these copies. If the log ends before `synced_to`,
            // recovery has to treat that as damage.
            let synced_to = writer.log_position.durable().min(writer.end());
            let header = SegmentHeader { head, synced_to, ..writer.tail.header };
            write_all_at(&*writer.storage, &header.encode(), writer.reader.slot_offset(writer.tail.slot))?;
            writer.sync()?;
            writer.tail.header = header;
            writer.free_below(head);
            Ok(true)
        })
    }

    /// Frees the slots of all segments below `head`.
    fn free_below(&mut self, head: u64) {
        while self.head < head {
            let Some(segment) = self.full.pop_front() else { break };
            self.reader.set_free(segment.slot);
            if !self.pins.hold(self.head, segment.slot) {
                self.slots.give_back(segment.slot);
            }
            self.head += 1;
        }
    }

    /// Adds all slots that the file lacks of its minimum, or none. After an outer error it is unknown what is on disk.
    /// The inner error is the reason why the file cannot have its minimum length.
    pub(crate) fn make_min_slots(&mut self) -> io::Result<Result<(), CannotGrow>> {
        if !self.slots.lacks_min_slots() {
            return Ok(Ok(()));
        }
        self.change(|writer| writer.slots.make_min_slots())
    }

    /// Adds the next slot at once. After an outer error it is unknown what is on disk. The inner error is the reason
    /// why the file cannot grow.
    pub(crate) fn try_grow(&mut self) -> io::Result<Result<(), CannotGrow>> {
        if let Err(cause) = self.slots.check_limits() {
            return Ok(Err(cause));
        }
        self.change(|writer| writer.slots.grow())
    }

    /// Cuts off the file after its last slot.
    pub(crate) fn cut(&mut self) -> io::Result<()> {
        self.change(|writer| writer.slots.cut())
    }

    /// The highest slot in use, which keeps the file from becoming shorter.
    pub(crate) fn highest_used_slot(&self) -> u64 {
        self.full.iter().map(|segment| segment.slot).max().unwrap_or(0).max(self.tail.slot)
    }

    /// The sequence of the segment in the highest slot in use.
    pub(crate) fn sequence_in_highest_slot(&self) -> u64 {
        let highest = self.highest_used_slot();
        let at = self.full.iter().position(|segment| segment.slot == highest);
        at.map_or(self.tail.header.sequence, |at| self.head + at as u64)
    }

    /// Writes the close mark, which records the end of the log. It is written twice, so that it survives the damage of
    /// one sector. `counter` is that of the last version that was generated; the next session continues from it.
    pub(crate) fn mark_closed(&mut self, counter: u64) -> io::Result<()> {
        self.change(|writer| writer.write_close_marks(counter))
    }

    fn write_close_marks(&mut self, counter: u64) -> io::Result<()> {
        self.sync()?;
        let mark = CloseMark {
            end: self.end(),
            last_checksum: self.tail.last_checksum,
            open_count: self.open_count,
            time: self.clock.mark(),
            counter: counter.min(MAX_COUNTER),
        };
        let sector = mark.encode(self.seed);
        for offset in CLOSE_MARK_OFFSETS {
            write_all_at(&*self.storage, &sector, self.reader.slot_offset(self.tail.slot) + offset)?;
        }
        self.sync()
    }
}

const _: () = assert!(TRAILER_BYTES < FIRST_FRAME_OFFSET);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, TimeSource};
    use crate::format::frame::FRAME_HEADER_BYTES;
    use crate::format::record::{Kind, Record, Value};
    use crate::format::{NEVER_MS, STORE_HEADER_BYTES};
    use crate::index::Address;
    use crate::key::{Fingerprint, Key};
    use crate::log::slots::NewSlot;
    use crate::map::Map;
    use crate::status::Version;
    use crate::storage::MemoryStorage;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{OnceLock, Weak};

    const SEGMENT_BYTES: u64 = 1 << 16;

    fn parameters() -> Parameters {
        Parameters { segment_bytes: SEGMENT_BYTES, file_id: [0; 16], secret: [0; 16], copied_seed: None }
    }

    /// Makes the writer of a log in memory that has one empty segment.
    fn writer() -> Writer {
        writer_on(Arc::new(MemoryStorage::new()))
    }

    fn writer_on(storage: Arc<dyn Storage>) -> Writer {
        let parameters = parameters();
        let source = ManualClock::new(0);
        let now = source.read();
        let header = SegmentHeader {
            parameters,
            sequence: 1,
            head: 1,
            previous_end: 0,
            previous_checksum: 0,
            open_count: 1,
            mark: TimeMark::first(now),
            synced_to: 0,
            copy: CopyState::default(),
        };
        let tail = Tail {
            slot: 0,
            header,
            offset: FIRST_FRAME_OFFSET,
            last_checksum: 0,
            record_bytes: 0,
            entries: FooterBuilder::default(),
        };
        let start = Start {
            copy: CopyState::default(),
            clock: Arc::new(StoreClock::start(Arc::new(source), now, 0)),
            head: 1,
            full: VecDeque::new(),
            tail,
            free: BTreeSet::new(),
            slot_count: 1,
        };
        let reader = Arc::new(Reader::new(Arc::clone(&storage), PathBuf::new(), &parameters));
        let growing = Growing { min_slots: 0, max_slots: 10, new_slot: NewSlot::Zeroed };
        Writer::new(storage, reader, Arc::default(), parameters, growing, start)
    }

    /// A storage in memory that counts the calls that change it, and fails one of them.
    #[derive(Debug, Default)]
    struct FailsAt {
        memory: MemoryStorage,
        calls: AtomicU64,
        /// The number of the call that fails, counted from 1.
        failing: AtomicU64,
    }

    impl FailsAt {
        fn call(&self) -> io::Result<()> {
            let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            if number == self.failing.load(Ordering::SeqCst) {
                Err(io::Error::other("planted"))
            } else {
                Ok(())
            }
        }
    }

    impl Storage for FailsAt {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.call().and_then(|()| self.memory.set_len(length))
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.memory.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.call().and_then(|()| self.memory.write_at(bytes, offset))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.call()
        }
        fn sync_all(&self) -> io::Result<()> {
            self.call()
        }
        fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
            Ok(None)
        }
    }

    type Change = (&'static str, fn(&mut Writer) -> io::Result<()>);

    /// All methods that change the file, in an order in which each of them has something to do.
    const CHANGES: [Change; 8] = [
        ("make_min_slots", |writer| writer.make_min_slots().map(drop)),
        ("begin_opening", |writer| writer.begin_opening(1, 1)),
        ("note_opening", |writer| writer.note_opening(2)),
        ("write", |writer| {
            let mut batch = PendingFrame::default();
            batch.frame.resize(FRAME_HEADER_BYTES, 0);
            writer.write(&mut batch, 1).map(drop)
        }),
        ("switch", |writer| writer.switch(1)),
        ("publish_head", |writer| writer.publish_head(2).map(drop)),
        ("cut", |writer| {
            while writer.slots.last_is_free() {
                writer.slots.drop_last();
            }
            writer.cut()
        }),
        ("mark_closed", |writer| writer.mark_closed(1)),
    ];

    #[test]
    fn after_any_disk_error_no_method_changes_the_file() {
        let storage_that_fails_at = |failing: u64| {
            let storage = Arc::new(FailsAt::default());
            storage.failing.store(failing, Ordering::SeqCst);
            let mut writer = writer_on(Arc::clone(&storage) as Arc<dyn Storage>);
            writer.slots.growing.min_slots = 3;
            (storage, writer)
        };
        let (storage, mut writer) = storage_that_fails_at(0);
        for (name, change) in CHANGES {
            let before = storage.calls.load(Ordering::SeqCst);
            change(&mut writer).unwrap();
            assert!(storage.calls.load(Ordering::SeqCst) > before, "{name} did not change the file");
        }
        let calls = storage.calls.load(Ordering::SeqCst);

        for failing in 1..=calls {
            let (storage, mut writer) = storage_that_fails_at(failing);
            let failed = CHANGES.iter().position(|(_, change)| change(&mut writer).is_err());
            // If no method returned the error, it was reported as a reason not to grow, and the file is as before.
            let Some(failed) = failed else { continue };
            let calls = storage.calls.load(Ordering::SeqCst);
            for (name, change) in CHANGES.iter().filter(|(name, _)| *name != "make_min_slots") {
                let has_nothing_to_do = name == &"publish_head" && writer.head >= 2;
                let is_refused = has_nothing_to_do || change(&mut writer).is_err();
                assert!(is_refused, "{name} succeeded after {} failed", CHANGES[failed].0);
            }
            assert!(writer.make_min_slots().is_err() || failed > 0);
            assert!(writer.try_grow().is_err());
            assert_eq!(
                storage.calls.load(Ordering::SeqCst),
                calls,
                "the file was changed after {} failed",
                CHANGES[failed].0
            );
        }
    }

    #[test]
    fn a_failed_sync_of_another_thread_stops_the_writer() {
        let storage = Arc::new(FailsAt::default());
        let mut writer = writer_on(Arc::clone(&storage) as Arc<dyn Storage>);
        storage.failing.store(1, Ordering::SeqCst);
        let log_position = Arc::clone(&writer.log_position);
        assert!(log_position.sync(&*storage).is_err());
        let (_, write) = CHANGES[3];
        assert!(write(&mut writer).is_err());
        assert_eq!(storage.calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_sync_does_not_confirm_a_slot_that_was_filled_later() {
        let mut writer = writer();
        let first = writer.slots.grow_ahead(SEGMENT_BYTES).unwrap();
        // While another thread is syncing that slot, the switch to the next segment confirms it, and later writes fill
        // the next slot.
        writer.slots.confirm_growth();
        assert_eq!(writer.slots.count(), 2);
        let second = writer.slots.grow_ahead(SEGMENT_BYTES).unwrap();
        assert_eq!(writer.slots.grow_ahead(0), Some(second));
        writer.slots.confirm_growth_of(first);
        assert_eq!((writer.slots.count(), writer.free_space().free_slots), (2, 1));
        writer.slots.confirm_growth_of(second);
        assert_eq!((writer.slots.count(), writer.free_space().free_slots), (3, 2));

        // The same must hold if a compaction cuts off the slot meanwhile.
        let third = writer.slots.grow_ahead(SEGMENT_BYTES).unwrap();
        writer.cut().unwrap();
        let fourth = writer.slots.grow_ahead(SEGMENT_BYTES).unwrap();
        writer.slots.confirm_growth_of(third);
        assert_eq!(writer.slots.count(), 3);
        writer.slots.confirm_growth_of(fourth);
        assert_eq!(writer.slots.count(), 4);
    }

    /// A storage in memory that fails a write to bytes that readers may be reading.
    #[derive(Debug, Default)]
    struct Watched {
        memory: MemoryStorage,
        reader: OnceLock<Weak<Reader>>,
        writes: AtomicU64,
    }

    impl Watched {
        fn check(&self, from: u64, to: u64) -> io::Result<()> {
            let Some(reader) = self.reader.get().and_then(Weak::upgrade) else { return Ok(()) };
            self.writes.fetch_add(1, Ordering::Relaxed);
            for at in (from..to).step_by(8).filter(|at| *at >= STORE_HEADER_BYTES) {
                if reader.shows(Address::new(at / 8 * 8).unwrap()) {
                    return Err(io::Error::other(format!(
                        "a write to byte {at}, which readers may be reading"
                    )));
                }
            }
            Ok(())
        }
    }

    impl Storage for Watched {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.check(length, self.memory.len()?)?;
            self.memory.set_len(length)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.memory.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.check(offset, offset + bytes.len() as u64)?;
            self.memory.write_at(bytes, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }
        fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
            Ok(None)
        }
    }

    #[test]
    fn no_write_touches_bytes_that_readers_may_read() {
        let storage = Arc::new(Watched::default());
        let mut writer = writer_on(Arc::clone(&storage) as Arc<dyn Storage>);
        storage.reader.set(Arc::downgrade(&writer.reader)).unwrap();
        writer.reader.set_segment(0, 1, FIRST_FRAME_OFFSET);
        let record = Record {
            kind: Kind::Completed,
            key: Key::new("key"),
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 0,
            key_expires_ms: NEVER_MS,
            result_expires_ms: NEVER_MS,
            value: Value::bytes(&[7; 4_000]),
        };
        let write_segment = |writer: &mut Writer, head: u64| {
            if writer.free_space().free_slots == 0 {
                writer.try_grow().unwrap().unwrap();
            }
            let sequence = writer.tail.header.sequence;
            while writer.tail.header.sequence == sequence {
                let mut batch = PendingFrame::default();
                batch.frame.resize(FRAME_HEADER_BYTES, 0);
                record.encode(writer.seed).append_to(&mut batch.frame);
                let placement = writer.write(&mut batch, head).unwrap();
                let end = placement.offset + batch.frame.len() as u64;
                assert!(
                    writer.reader.shows(Address::new(placement.offset).unwrap()),
                    "the start of a written frame must be readable"
                );
                assert!(
                    writer.reader.shows(Address::new(end - 8).unwrap()),
                    "the end of a written frame must be readable"
                );
                assert!(
                    !writer.reader.shows(Address::new(end).unwrap()),
                    "bytes after the last frame must not be readable"
                );
            }
        };
        for sequence in 1..12 {
            // The head follows the tail at a distance of two segments, so slots are recycled.
            write_segment(&mut writer, u64::saturating_sub(sequence, 2).max(1));
        }
        writer.publish_head(11).unwrap();
        writer.mark_closed(1).unwrap();
        while writer.slots.last_is_free() {
            writer.slots.drop_last();
        }
        writer.cut().unwrap();
        assert!(storage.writes.load(Ordering::Relaxed) > 100, "too few writes were checked");
    }
}
