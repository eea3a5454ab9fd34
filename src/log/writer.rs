//! The end of the log: where the next frame goes, and the slots that it will go to later.
//!
//! One thread at a time is here, who writes a batch, publishes a head, grows or shrinks the file. Readers never wait for it,
//! nor does who syncs.
//!
//! A writer whose change of the file failed is never used again. What is on disk then is not what is in memory: after a failed
//! segment switch the new header may state an end of the old segment, and a frame behind that end, or a second switch, would
//! make a file that no opening accepts. The commit queue is poisoned too, but only after the failing thread has left the
//! writer, and threads that passed the queue's check before may already wait for it. So the writer refuses them itself:
//! every method that changes the file goes through [`Writer::change`].

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use super::commit::{PendingFrame, Placement};
use super::footer_builder::FooterBuilder;
use super::log_position::LogPosition;
use super::reader::Reader;
use super::reservations::{CannotGrow, FreeSpace};
use crate::clock::{StoreClock, TimeMark};
use crate::format::footer::{self, FooterEntry, TRAILER_BYTES, footer_bytes};
use crate::format::frame::{self, OPENING_FRAME_BYTES, Stamp};
use crate::format::header::{CLOSE_MARK_OFFSETS, CloseMark, Parameters, SegmentHeader};
use crate::format::{FIRST_FRAME_OFFSET, STORE_HEADER_BYTES, Seed};
use crate::planted::{Bug, one_late, planted};
use crate::status::MAX_COUNTER;
use crate::storage::{Storage, ZEROES_BYTES, set_len, write_all_at, write_zeroes_at};

/// A segment of the log that is full.
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
    /// Where the next frame goes, from the start of the slot.
    pub(crate) offset: u64,
    pub(crate) last_checksum: u32,
    pub(crate) record_bytes: u64,
    /// What the footer will say.
    pub(crate) entries: FooterBuilder,
}

/// A slot that is being made at the end of the file.
#[derive(Debug, Default)]
struct Growth {
    /// Which one it is of all that this writer makes.
    number: u64,
    /// Zeroes written, or room reserved, so far.
    filled_bytes: u64,
    /// What appended bytes have paid for and is not there yet.
    owed_bytes: u64,
}

/// How a slot at the end of the file comes by its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSlot {
    /// Zeroes are written to it, so that a sync of a record in it finds no metadata of the file system to write.
    Zeroed,
    /// Room is reserved and not written to: half of what is written to a file that grows, where hardly anything is synced
    /// by itself. A file system that cannot do it gets zeroes.
    Reserved,
}

/// How far a file is to grow at least and may grow at most, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growing {
    pub(crate) min_slots: u64,
    pub(crate) max_slots: u64,
    pub(crate) new_slot: NewSlot,
}

/// How many zeroes an appended byte pays for. A slot is asked for when a batch's limit is left of this one, a quarter of a
/// segment at most, and is ready before that is full: the step to the next segment then settles it.
const ZEROES_PER_BYTE: u64 = 8;
/// How many zeroes are worth writing at once: this share of a segment, or as many bytes if that is less. Every piece has the
/// next sync write the file's new length and extents too, which costs as much as a quarter of a MiB: smaller pieces would pay
/// that more often, larger ones would make more threads wait longer for the one sync that carries them.
const PIECES_PER_SEGMENT: u64 = 16;
const ENOUGH_BYTES: u64 = ZEROES_BYTES as u64;

/// The end of the log and the slots of the file.
#[derive(Debug)]
pub(crate) struct Writer {
    storage: Arc<dyn Storage>,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    /// What frames, headers and marks say of time is read when they are written: records may be older, moved ones by far.
    clock: Arc<StoreClock>,
    parameters: Parameters,
    seed: Seed,
    open_count: u32,
    /// The oldest sequence that a durable header still counts to the log.
    head: u64,
    /// Sequences head.. in order; the tail is not among them.
    full: VecDeque<FullSegment>,
    tail: Tail,
    /// Slots at full length, synced, holding nothing that a durable header counts to the log. Lowest first, so that
    /// the end of the file falls free.
    free: BTreeSet<u64>,
    /// Slots at full length and synced.
    slot_count: u64,
    growing: Growing,
    growth: Growth,
    /// A change of the file is under way, or one has failed or unwound: file and memory may differ.
    is_half_done: bool,
}

/// Where a [`Writer`] begins.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) clock: Arc<StoreClock>,
    pub(crate) head: u64,
    pub(crate) full: VecDeque<FullSegment>,
    pub(crate) tail: Tail,
    pub(crate) free: BTreeSet<u64>,
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
        let Start { clock, head, full, tail, free, slot_count } = start;
        let seed = parameters.seed();
        let growth = Growth::default();
        let writer = Writer {
            storage,
            reader,
            log_position,
            clock,
            parameters,
            seed,
            // Until this opening is given one.
            open_count: tail.header.open_count,
            head,
            full,
            tail,
            free,
            slot_count,
            growing,
            growth,
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

    pub(crate) fn slot_count(&self) -> u64 {
        self.slot_count
    }

    pub(crate) fn tail_is_empty(&self) -> bool {
        self.tail.offset == FIRST_FRAME_OFFSET
    }

    /// The full segment of that sequence, if it is one.
    pub(crate) fn full_segment(&self, sequence: u64) -> Option<FullSegment> {
        let at = usize::try_from(sequence.checked_sub(self.head)?).ok()?;
        self.full.get(at).copied()
    }

    /// The segment that is being written, were it finished now, and what its footer would say.
    pub(crate) fn footer_builder(&self) -> (FullSegment, Vec<FooterEntry>) {
        let Tail { slot, record_bytes, entries, .. } = &self.tail;
        let segment = FullSegment { slot: *slot, end: self.end(), record_bytes: *record_bytes };
        (segment, entries.iter().collect())
    }

    /// The sequence of the full segment in `slot`.
    pub(crate) fn sequence_of_full(&self, slot: u64) -> Option<u64> {
        let at = self.full.iter().position(|segment| segment.slot == slot)?;
        Some(self.head + at as u64)
    }

    /// What the footer of the segment that is being written will say of the record at `within`, if it is in `slot`.
    pub(crate) fn listed_in_tail(&self, slot: u64, within: u64) -> Option<FooterEntry> {
        let mut entries = self.tail.entries.iter().filter(|_| slot == self.tail.slot);
        entries.find(|entry| entry.offset == within)
    }

    pub(crate) fn free_space(&self) -> FreeSpace {
        let footer = footer_bytes(self.tail.entries.len() as u64);
        FreeSpace {
            tail_bytes: self.parameters.segment_bytes.saturating_sub(self.tail.offset + footer),
            free_slots: self.free.len() as u64,
            full_segments: self.full.len() as u64,
        }
    }

    fn fits(&self, batch: &PendingFrame) -> bool {
        let entries = (self.tail.entries.len() + batch.entries.len()) as u64;
        self.tail.offset + batch.frame.len() as u64 + footer_bytes(entries) <= self.parameters.segment_bytes
    }

    /// Changes the file by `change`. After a change that failed or unwound, and after a failed sync of any thread, every
    /// further one is refused.
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

    /// Writes the batch as one frame, in the next segment if it does not fit this one. `head` is the oldest
    /// sequence that is still needed; what was moved away from below it was written before this call.
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

    /// Writes the sealed frame behind the others.
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
        self.tail.last_checksum = checksum;
        self.tail.offset += batch.frame.len() as u64;
        self.reader.set_end(self.tail.slot, self.tail.offset);
        self.log_position.set_written(self.end());
        Ok(placement)
    }

    /// What the frame at `position` may say was on disk before it.
    fn synced_to(&self, position: u64, batch: &PendingFrame) -> u64 {
        if planted(Bug::SyncedToTooHigh) && !batch.entries.is_empty() {
            return position;
        }
        one_late(Bug::SyncedToOneFrameStale, self.log_position.durable()).min(position)
    }

    fn sync(&self) -> io::Result<()> {
        self.log_position.sync(&*self.storage)
    }

    /// Makes the open count and the mark of this opening durable before any of its versions is given out, by a frame
    /// without records.
    pub(crate) fn begin_opening(&mut self, open_count: u32, head: u64) -> io::Result<()> {
        self.open_count = open_count;
        let mut batch = PendingFrame::default();
        batch.frame.resize(OPENING_FRAME_BYTES, 0);
        self.change(|writer| {
            if !writer.fits(&batch) {
                writer.go_to_next_segment(head)?;
            }
            let mark = writer.opening_mark();
            let stamp = writer.stamp(&batch, &mark);
            let checksum =
                frame::seal_opening(&mut batch.frame, &stamp, mark.boot, mark.boot_ms, writer.seed);
            writer.append(&batch, checksum)?;
            if planted(Bug::OpeningNotSynced) {
                return Ok(());
            }
            writer.sync()
        })
    }

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

    /// The same where there is no room for a frame: in the header of the last segment, written again in place. The open
    /// count must be higher than any before: it is all that says that a close mark at the end of the log is outdated.
    pub(crate) fn note_opening(&mut self, open_count: u32) -> io::Result<()> {
        self.open_count = open_count;
        let header = SegmentHeader { open_count, mark: self.opening_mark(), ..self.tail.header };
        self.change(|writer| {
            write_all_at(&*writer.storage, &header.encode(), writer.reader.slot_offset(writer.tail.slot))?;
            writer.tail.header = header;
            writer.sync()
        })
    }

    /// Goes on in the next segment. The order of the four steps is what makes a footer without its successor, and
    /// a gap between head and tail, signs of damage and never of a crash.
    pub(crate) fn switch(&mut self, head: u64) -> io::Result<()> {
        self.change(|writer| writer.go_to_next_segment(head))
    }

    fn go_to_next_segment(&mut self, head: u64) -> io::Result<()> {
        // Most often the last batch was synced already, and everybody waits for this one.
        self.log_position.sync_to(self.end(), &*self.storage)?;
        let published = self.head;
        if planted(Bug::SlotReusedEarly) {
            self.free_below(head);
        }
        // There is one: a batch that does not fit the tail was promised room in a slot, and `Log::rotate` makes sure of one.
        let Some(slot) = self.free.pop_first() else {
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
        };
        write_all_at(&*self.storage, &header.encode(), self.reader.slot_offset(slot))?;
        self.sync()?;

        let footer = footer::encode(
            self.tail.entries.iter(),
            self.tail.header.sequence,
            self.end(),
            self.tail.record_bytes,
            self.tail.last_checksum,
            self.seed,
        );
        let slot_end = self.reader.slot_offset(self.tail.slot) + self.parameters.segment_bytes;
        write_all_at(&*self.storage, &footer, slot_end - footer.len() as u64)?;

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
        // The sync of the header began after whatever was filled. A store that nobody syncs has no other.
        self.confirm_growth();
        self.free_below(head);
        Ok(())
    }

    /// Frees what lies below `head` without waiting for the next segment, by writing the tail's header again in
    /// place. `head` must have been read before this call, so that the sync covers what was moved. False if there was
    /// nothing to free.
    pub(crate) fn publish_head(&mut self, head: u64) -> io::Result<bool> {
        if head <= self.head {
            return Ok(false);
        }
        self.change(|writer| {
            writer.sync()?;
            // What was moved lies here now and nowhere else: from this header on, a log that ends before it is damaged.
            let synced_to = writer.log_position.durable().min(writer.end());
            let header = SegmentHeader { head, synced_to, ..writer.tail.header };
            write_all_at(&*writer.storage, &header.encode(), writer.reader.slot_offset(writer.tail.slot))?;
            writer.sync()?;
            writer.tail.header = header;
            writer.free_below(head);
            Ok(true)
        })
    }

    fn free_below(&mut self, head: u64) {
        while self.head < head {
            let Some(segment) = self.full.pop_front() else { break };
            self.reader.set_free(segment.slot);
            self.free.insert(segment.slot);
            self.head += 1;
        }
    }

    /// Pays for the next slot what `appended_bytes` owe it: a piece of zeroes at a time, or all of it at once where room
    /// is reserved. Its number when it is filled and waits for a sync.
    ///
    /// A disk that is full, or any other reason not to grow, is met here where it harms nobody; whoever needs the slot meets
    /// it again in [`Writer::try_grow`].
    pub(crate) fn grow_ahead(&mut self, appended_bytes: u64) -> Option<u64> {
        if self.growth_is_filled() {
            return Some(self.growth.number);
        }
        let piece_bytes = (self.parameters.segment_bytes / PIECES_PER_SEGMENT).min(ENOUGH_BYTES);
        self.growth.owed_bytes += appended_bytes * ZEROES_PER_BYTE;
        if self.growth.owed_bytes < piece_bytes
            || self.slot_count >= self.growing.max_slots
            || self
                .storage
                .size_limit()
                .is_some_and(|limit| self.reader.slot_offset(self.slot_count + 1) > limit)
        {
            return None;
        }
        // All that is owed, which after a large frame is more than a piece, or large frames would outrun the zeroes.
        let owed_bytes = std::mem::take(&mut self.growth.owed_bytes);
        self.fill(owed_bytes).ok()?;
        self.growth_is_filled().then_some(self.growth.number)
    }

    fn growth_is_filled(&self) -> bool {
        self.growth.filled_bytes == self.parameters.segment_bytes
    }

    fn fill(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.parameters.segment_bytes - self.growth.filled_bytes;
        if left == 0 {
            return Ok(());
        }
        let at = self.reader.slot_offset(self.slot_count) + self.growth.filled_bytes;
        if self.growing.new_slot == NewSlot::Reserved && self.storage.reserve(at, left)? {
            self.growth.filled_bytes += left;
            return Ok(());
        }
        // What is large goes on to where the next piece can be cached as one.
        let up_to_piece =
            if bytes < ENOUGH_BYTES { bytes } else { (at + bytes).next_multiple_of(ENOUGH_BYTES) - at };
        let bytes = up_to_piece.min(left);
        write_zeroes_at(&*self.storage, at, bytes)?;
        self.growth.filled_bytes += bytes;
        Ok(())
    }

    /// Makes all the slots that there are to be at least, with one sync; or none. The outer error is one that leaves unknown
    /// what is on disk; the inner one says why the file cannot be that long.
    pub(crate) fn make_min_slots(&mut self) -> io::Result<Result<(), CannotGrow>> {
        let (from, to) = (self.slot_count, self.growing.min_slots);
        if from >= to {
            return Ok(Ok(()));
        }
        self.change(|writer| writer.make_slots(from, to))
    }

    fn make_slots(&mut self, from: u64, to: u64) -> io::Result<Result<(), CannotGrow>> {
        let (at, end) = (self.reader.slot_offset(from), self.reader.slot_offset(to));
        if let Some(limit) = self.storage.size_limit().filter(|limit| end > *limit) {
            return Ok(Err(CannotGrow::Full(format!(
                "Options::min_size asks for a file of {end} bytes, and the process may write files of {limit} bytes at \
                 most (RLIMIT_FSIZE); raise that limit, or ask for less"
            ))));
        }
        let length = self.storage.len()?;
        // Reserved before it is filled: a disk that has no room for it says so at once, and not when it is full. What an
        // earlier growth left behind the last slot is overwritten last: until then a refusal can leave it as it was.
        let made = self.storage.reserve(at, end - at).and_then(|is_reserved| match self.growing.new_slot {
            NewSlot::Reserved if is_reserved => Ok(()),
            _ => write_zeroes_at(&*self.storage, length, end.saturating_sub(length)),
        });
        let left_over = length.min(end).saturating_sub(at);
        let made = made.and_then(|()| write_zeroes_at(&*self.storage, at, left_over));
        if let Err(error) = made {
            // Whoever else needs the disk should not find it full for nothing.
            if self.storage.len()? > length {
                set_len(&*self.storage, length)?;
                self.sync()?;
            }
            return Ok(Err(match CannotGrow::new(error) {
                CannotGrow::Full(why) => CannotGrow::Full(format!(
                    "Options::min_size asks for a file of {end} bytes, and it cannot grow beyond its {at}: {why}; free \
                     disk space, or ask for less"
                )),
                failed @ CannotGrow::Failed(_) => failed,
            }));
        }
        self.sync()?;
        self.free.extend(from..to);
        self.slot_count = to;
        Ok(Ok(()))
    }

    /// The filled slot is usable: a sync that began after it was filled has succeeded.
    pub(crate) fn confirm_growth(&mut self) {
        if self.growth_is_filled() {
            self.free.insert(self.slot_count);
            self.slot_count += 1;
            self.begin_growth();
        }
    }

    /// The same if it is that slot. While somebody synced, another may have settled it and filled the next, which that sync
    /// began too early for.
    pub(crate) fn confirm_growth_of(&mut self, number: u64) {
        if self.growth.number == number {
            self.confirm_growth();
        }
    }

    fn begin_growth(&mut self) {
        self.growth = Growth { number: self.growth.number + 1, ..Growth::default() };
    }

    /// Makes the next slot at once. The outer error is one that leaves unknown what is on disk; the inner one says
    /// why the file cannot grow.
    pub(crate) fn try_grow(&mut self) -> io::Result<Result<(), CannotGrow>> {
        if self.slot_count >= self.growing.max_slots {
            let now_bytes = STORE_HEADER_BYTES + self.slot_count * self.parameters.segment_bytes;
            return Ok(Err(CannotGrow::Full(format!(
                "another segment of {} bytes would take the file, now {now_bytes} bytes, over Options::max_size",
                self.parameters.segment_bytes
            ))));
        }
        let (now_bytes, end) =
            (self.reader.slot_offset(self.slot_count), self.reader.slot_offset(self.slot_count + 1));
        if let Some(limit) = self.storage.size_limit().filter(|limit| end > *limit) {
            return Ok(Err(CannotGrow::Full(format!(
                "another segment of {} bytes would take the file, now {now_bytes} bytes, over the {limit} bytes that the \
                 process may write (RLIMIT_FSIZE)",
                self.parameters.segment_bytes
            ))));
        }
        self.change(|writer| {
            // Nothing is in a slot that is being made, so a write to it that fails leaves nothing half done.
            if let Err(error) = writer.fill(writer.parameters.segment_bytes) {
                return Ok(Err(CannotGrow::new(error)));
            }
            writer.sync()?;
            writer.confirm_growth();
            Ok(Ok(()))
        })
    }

    /// How many slots there are to be at least.
    pub(crate) fn min_slots(&self) -> u64 {
        self.growing.min_slots
    }

    pub(crate) fn last_slot_is_free(&self) -> bool {
        self.slot_count > 0 && self.free.contains(&(self.slot_count - 1))
    }

    /// Gives up the last slot of the file, which is free; [`Writer::cut`] then makes it so on disk.
    pub(crate) fn drop_last_slot(&mut self) {
        assert!(self.last_slot_is_free(), "a slot in use is never given up");
        self.slot_count -= 1;
        self.free.remove(&self.slot_count);
    }

    /// Cuts the file behind its last slot.
    pub(crate) fn cut(&mut self) -> io::Result<()> {
        self.change(Writer::cut_behind_last_slot)
    }

    fn cut_behind_last_slot(&mut self) -> io::Result<()> {
        self.begin_growth();
        let length = self.reader.slot_offset(self.slot_count);
        if self.storage.len()? > length {
            set_len(&*self.storage, length)?;
            self.sync()?;
        }
        Ok(())
    }

    /// The highest slot in use: what keeps the file from being shorter.
    pub(crate) fn highest_used_slot(&self) -> u64 {
        self.full.iter().map(|segment| segment.slot).max().unwrap_or(0).max(self.tail.slot)
    }

    /// The sequence of the segment in the highest slot in use.
    pub(crate) fn sequence_in_highest_slot(&self) -> u64 {
        let highest = self.highest_used_slot();
        let at = self.full.iter().position(|segment| segment.slot == highest);
        at.map_or(self.tail.header.sequence, |at| self.head + at as u64)
    }

    pub(crate) fn lowest_free_slot(&self) -> Option<u64> {
        self.free.first().copied()
    }

    /// Writes down where the log ends, twice, so that one damaged sector does not take the knowledge away.
    /// `counter` is that of the last version that was given out: the next opening goes on from there.
    pub(crate) fn mark_closed(&mut self, counter: u64) -> io::Result<()> {
        self.change(|writer| writer.write_close_marks(counter))
    }

    fn write_close_marks(&mut self, counter: u64) -> io::Result<()> {
        self.sync()?;
        let mark = CloseMark {
            end: self.end(),
            last_checksum: self.tail.last_checksum,
            open_count: self.open_count,
            mark: self.clock.mark(),
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
    use crate::format::NEVER_MS;
    use crate::format::frame::FRAME_HEADER_BYTES;
    use crate::format::record::{Kind, Record, Value};
    use crate::index::Address;
    use crate::key::{Fingerprint, Key};
    use crate::map::Map;
    use crate::status::Version;
    use crate::storage::MemoryStorage;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{OnceLock, Weak};

    const SEGMENT_BYTES: u64 = 1 << 16;

    fn parameters() -> Parameters {
        Parameters { segment_bytes: SEGMENT_BYTES, file_id: [0; 16], secret: [0; 16] }
    }

    /// Of a log in memory whose one segment is empty.
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

    /// Memory of which one call fails, once, and which counts the calls that change it.
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

    /// All that changes the file, in an order in which each has something to do.
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
            while writer.last_slot_is_free() {
                writer.drop_last_slot();
            }
            writer.cut()
        }),
        ("mark_closed", |writer| writer.mark_closed(1)),
    ];

    #[test]
    fn after_a_call_of_the_disk_that_failed_in_any_change_no_change_touches_the_file() {
        let storage_that_fails_at = |failing: u64| {
            let storage = Arc::new(FailsAt::default());
            storage.failing.store(failing, Ordering::SeqCst);
            let mut writer = writer_on(Arc::clone(&storage) as Arc<dyn Storage>);
            writer.growing.min_slots = 3;
            (storage, writer)
        };
        let (storage, mut writer) = storage_that_fails_at(0);
        for (name, change) in CHANGES {
            let before = storage.calls.load(Ordering::SeqCst);
            change(&mut writer).unwrap();
            assert!(storage.calls.load(Ordering::SeqCst) > before, "{name} has something to do");
        }
        let calls = storage.calls.load(Ordering::SeqCst);

        for failing in 1..=calls {
            let (storage, mut writer) = storage_that_fails_at(failing);
            let failed = CHANGES.iter().position(|(_, change)| change(&mut writer).is_err());
            // Room that cannot be made is reported, and leaves the file as it was.
            let Some(failed) = failed else { continue };
            let calls = storage.calls.load(Ordering::SeqCst);
            for (name, change) in CHANGES.iter().filter(|(name, _)| *name != "make_min_slots") {
                let refused = name == &"publish_head" && writer.head >= 2;
                assert!(refused || change(&mut writer).is_err(), "{name} after {}", CHANGES[failed].0);
            }
            assert!(writer.make_min_slots().is_err() || failed > 0);
            assert!(writer.try_grow().is_err());
            assert_eq!(storage.calls.load(Ordering::SeqCst), calls, "touched after {}", CHANGES[failed].0);
        }
    }

    #[test]
    fn a_sync_of_another_thread_that_failed_stops_the_writer_too() {
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
    fn a_slot_that_is_filled_after_a_sync_began_is_not_settled_by_it() {
        let mut writer = writer();
        let first = writer.grow_ahead(SEGMENT_BYTES).unwrap();
        // While another thread syncs that, the step to the next segment settles it, and what is written there fills the next.
        writer.confirm_growth();
        assert_eq!(writer.slot_count(), 2);
        let second = writer.grow_ahead(SEGMENT_BYTES).unwrap();
        assert_eq!(writer.grow_ahead(0), Some(second));
        writer.confirm_growth_of(first);
        assert_eq!((writer.slot_count(), writer.free_space().free_slots), (2, 1));
        writer.confirm_growth_of(second);
        assert_eq!((writer.slot_count(), writer.free_space().free_slots), (3, 2));

        // Or a compaction cuts it off again.
        let third = writer.grow_ahead(SEGMENT_BYTES).unwrap();
        writer.cut().unwrap();
        let fourth = writer.grow_ahead(SEGMENT_BYTES).unwrap();
        writer.confirm_growth_of(third);
        assert_eq!(writer.slot_count(), 3);
        writer.confirm_growth_of(fourth);
        assert_eq!(writer.slot_count(), 4);
    }

    /// Fails a write to bytes that readers may be looking at.
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
                    return Err(io::Error::other(format!("a write to byte {at}, which readers may look at")));
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
    fn nothing_is_ever_written_where_readers_may_look() {
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
                record.encode(&mut batch.frame, writer.seed);
                let placement = writer.write(&mut batch, head).unwrap();
                let end = placement.offset + batch.frame.len() as u64;
                assert!(
                    writer.reader.shows(Address::new(placement.offset).unwrap()),
                    "written, so it can be read"
                );
                assert!(writer.reader.shows(Address::new(end - 8).unwrap()), "to its end");
                assert!(!writer.reader.shows(Address::new(end).unwrap()), "and no further");
            }
        };
        for sequence in 1..12 {
            // The head follows two segments behind, so slots are recycled.
            write_segment(&mut writer, u64::saturating_sub(sequence, 2).max(1));
        }
        writer.publish_head(11).unwrap();
        writer.mark_closed(1).unwrap();
        while writer.last_slot_is_free() {
            writer.drop_last_slot();
        }
        writer.cut().unwrap();
        assert!(storage.writes.load(Ordering::Relaxed) > 100, "the test means to watch");
    }

    #[test]
    fn what_is_filled_ends_where_the_next_piece_can_be_cached_as_one_unless_it_is_small() {
        let ends = |segment_bytes, asked: u64| {
            let mut writer = Writer { parameters: Parameters { segment_bytes, ..parameters() }, ..writer() };
            writer.fill(asked).unwrap();
            writer.storage.len().unwrap()
        };
        let slot = STORE_HEADER_BYTES + SEGMENT_BYTES;
        assert_eq!(ends(4 << 20, 100), slot + 100);
        assert_eq!(ends(4 << 20, 256 << 10), 512 << 10);
        assert_eq!(ends(4 << 20, 600 << 10), 768 << 10);
        assert_eq!(ends(300 << 10, 256 << 10), slot + (300 << 10), "no further than the slot");
    }
}
