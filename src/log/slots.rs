//! The slots of the file: keeps the set of free ones, and grows and shrinks the file.
//!
//! The [`Writer`](super::writer::Writer) owns the slots, and its lock protects them. A slot counts, as free or in use,
//! once it has its full length and is synced. A slot that is still being filled at the end of the file does not count
//! yet.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::log_position::LogPosition;
use super::reader::Reader;
use super::reservations::CannotGrow;
use crate::storage::{Storage, ZEROES_BYTES, set_len, write_zeroes_at};

/// How a slot at the end of the file gets its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSlot {
    /// The slot is filled with zeroes, so that a later sync of a record in it has no metadata of the file system to
    /// write.
    Zeroed,
    /// The file system reserves the space, and nothing is written to it. This halves the number of bytes written to a
    /// file that grows and is rarely synced. If the file system cannot reserve space, zeroes are written.
    Reserved,
}

/// The limits on the length of the file, and the way it grows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growing {
    pub(crate) min_slots: u64,
    pub(crate) max_slots: u64,
    pub(crate) new_slot: NewSlot,
}

/// The number of bytes of the next slot to fill for each appended byte.
///
/// The log begins to fill a slot when the rest of the tail is smaller than the maximum size of a batch, which is at
/// most a quarter of a segment. At this rate the slot is filled before the tail is full, and the switch to the next
/// segment confirms it.
const ZEROES_PER_BYTE: u64 = 8;
/// The minimum number of bytes to fill at once is the segment size divided by this, or [`MAX_MIN_PIECE_BYTES`] if that
/// is less.
///
/// After each piece the next sync also writes the file's new length and extents, which takes as long as writing a
/// quarter of a MiB. Smaller pieces would cause that more often; larger ones would delay more callers during the sync
/// that follows.
const PIECES_PER_SEGMENT: u64 = 16;
/// The upper limit on the minimum number of bytes to fill at once. Larger pieces end at a multiple of this.
const MAX_MIN_PIECE_BYTES: u64 = ZEROES_BYTES as u64;

/// The slot that is being filled at the end of the file.
#[derive(Debug, Default)]
struct Growth {
    /// Identifies the slot among all that were begun in this session, because a slot may be cut off and begun again.
    number: u64,
    /// The number of bytes that were filled with zeroes or reserved so far.
    filled_bytes: u64,
    /// The number of bytes that are to be filled because of appended bytes, and are not filled yet.
    owed_bytes: u64,
}

/// The slots of one file.
#[derive(Debug)]
pub(crate) struct Slots {
    storage: Arc<dyn Storage>,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    segment_bytes: u64,
    /// The slots that no durable header counts as part of the log. The lowest one is used first, so that the slots at
    /// the end of the file become free and can be cut off.
    free: BTreeSet<u64>,
    /// The number of slots, free or in use.
    count: u64,
    pub(super) growing: Growing,
    growth: Growth,
}

impl Slots {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        reader: Arc<Reader>,
        log_position: Arc<LogPosition>,
        segment_bytes: u64,
        growing: Growing,
        (count, free): (u64, BTreeSet<u64>),
    ) -> Slots {
        let growth = Growth::default();
        Slots { storage, reader, log_position, segment_bytes, free, count, growing, growth }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn free_count(&self) -> u64 {
        self.free.len() as u64
    }

    pub(crate) fn lowest_free(&self) -> Option<u64> {
        self.free.first().copied()
    }

    /// The minimum number of slots, below which the file does not shrink.
    pub(crate) fn min_count(&self) -> u64 {
        self.growing.min_slots
    }

    /// Takes the lowest free slot.
    pub(super) fn take(&mut self) -> Option<u64> {
        self.free.pop_first()
    }

    /// Marks `slot` as free. No durable header may count its segment as part of the log any more.
    pub(super) fn give_back(&mut self, slot: u64) {
        self.free.insert(slot);
    }

    pub(crate) fn last_is_free(&self) -> bool {
        self.count > 0 && self.free.contains(&(self.count - 1))
    }

    /// Removes the last slot, which must be free. [`Slots::cut`] then shortens the file.
    pub(crate) fn drop_last(&mut self) {
        assert!(self.last_is_free(), "the last slot of the file is in use");
        self.count -= 1;
        self.free.remove(&self.count);
    }

    /// Cuts off the file after its last slot. A slot that is still being filled is cut off, too.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        self.begin_growth();
        let length = self.reader.slot_offset(self.count);
        if self.storage.len()? > length {
            set_len(&*self.storage, length)?;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.log_position.sync(&*self.storage)
    }

    /// Fills a part of the next slot, in proportion to `appended_bytes`: one piece of zeroes at a time, or the whole
    /// slot if space is reserved instead. Returns the growth number of the slot if it is filled and only has to be
    /// synced.
    ///
    /// If the file cannot grow, for example because the disk is full, this does nothing. A caller that needs the slot
    /// gets the error from [`Writer::try_grow`](super::writer::Writer::try_grow).
    pub(crate) fn grow_ahead(&mut self, appended_bytes: u64) -> Option<u64> {
        if self.growth_is_filled() {
            return Some(self.growth.number);
        }
        let piece_bytes = (self.segment_bytes / PIECES_PER_SEGMENT).min(MAX_MIN_PIECE_BYTES);
        self.growth.owed_bytes += appended_bytes * ZEROES_PER_BYTE;
        if self.growth.owed_bytes < piece_bytes || self.count >= self.growing.max_slots {
            return None;
        }
        if self.storage.size_limit().is_some_and(|limit| self.reader.slot_offset(self.count + 1) > limit) {
            return None;
        }
        // Fill all that is owed, even if a large frame makes that more than a piece. Otherwise large frames could fill
        // the tail before the next slot is ready.
        let owed_bytes = std::mem::take(&mut self.growth.owed_bytes);
        self.fill(owed_bytes).ok()?;
        self.growth_is_filled().then_some(self.growth.number)
    }

    fn growth_is_filled(&self) -> bool {
        self.growth.filled_bytes == self.segment_bytes
    }

    /// Fills at least `bytes` more of the next slot, or what is left of it.
    fn fill(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.segment_bytes - self.growth.filled_bytes;
        if left == 0 {
            return Ok(());
        }
        let at = self.reader.slot_offset(self.count) + self.growth.filled_bytes;
        if self.growing.new_slot == NewSlot::Reserved && self.storage.reserve(at, left)? {
            self.growth.filled_bytes += left;
            return Ok(());
        }
        // A large piece is extended to a boundary, so that the page cache can hold the next piece as a unit.
        let up_to_piece = if bytes < MAX_MIN_PIECE_BYTES {
            bytes
        } else {
            (at + bytes).next_multiple_of(MAX_MIN_PIECE_BYTES) - at
        };
        let bytes = up_to_piece.min(left);
        write_zeroes_at(&*self.storage, at, bytes)?;
        self.growth.filled_bytes += bytes;
        Ok(())
    }

    /// Makes the next slot usable if it is filled. A sync that began after that must have succeeded.
    pub(super) fn confirm_growth(&mut self) {
        if self.growth_is_filled() {
            self.free.insert(self.count);
            self.count += 1;
            self.begin_growth();
        }
    }

    /// Makes the next slot usable if it is filled and has this growth number. While the caller was syncing, another
    /// thread may have confirmed that slot and filled the next one, for which the sync began too early.
    pub(crate) fn confirm_growth_of(&mut self, number: u64) {
        if self.growth.number == number {
            self.confirm_growth();
        }
    }

    /// Begins to fill a new slot.
    fn begin_growth(&mut self) {
        self.growth = Growth { number: self.growth.number + 1, ..Growth::default() };
    }

    /// Adds the next slot at once. After an outer error it is unknown what is on disk. The inner error is the reason
    /// why the file cannot grow.
    pub(super) fn grow(&mut self) -> io::Result<Result<(), CannotGrow>> {
        // The slot contains nothing, so a failed write to it does no harm.
        if let Err(error) = self.fill(self.segment_bytes) {
            return Ok(Err(CannotGrow::new(error)));
        }
        self.sync()?;
        self.confirm_growth();
        Ok(Ok(()))
    }

    /// Returns an error if a limit does not allow the file to have another slot.
    pub(super) fn check_limits(&self) -> Result<(), CannotGrow> {
        let segment_bytes = self.segment_bytes;
        let (now_bytes, end) = (self.reader.slot_offset(self.count), self.reader.slot_offset(self.count + 1));
        if self.count >= self.growing.max_slots {
            return Err(CannotGrow::Full(format!(
                "another segment of {segment_bytes} bytes would take the file, now {now_bytes} bytes, over Options::max_size"
            )));
        }
        match self.storage.size_limit().filter(|limit| end > *limit) {
            Some(limit) => Err(CannotGrow::Full(format!(
                "another segment of {segment_bytes} bytes would take the file, now {now_bytes} bytes, over the {limit} bytes \
                 that the process may write (RLIMIT_FSIZE)"
            ))),
            None => Ok(()),
        }
    }

    /// Whether the file has fewer slots than its minimum.
    pub(super) fn lacks_min_slots(&self) -> bool {
        self.count < self.growing.min_slots
    }

    /// Adds all slots that the file lacks of its minimum, with one sync, or none. After an outer error it is unknown
    /// what is on disk. The inner error is the reason why the file cannot have its minimum length.
    pub(super) fn make_min_slots(&mut self) -> io::Result<Result<(), CannotGrow>> {
        let (from, to) = (self.count, self.growing.min_slots);
        let (at, end) = (self.reader.slot_offset(from), self.reader.slot_offset(to));
        if let Some(limit) = self.storage.size_limit().filter(|limit| end > *limit) {
            return Ok(Err(CannotGrow::Full(format!(
                "Options::min_size asks for a file of {end} bytes, and the process may write files of {limit} bytes at \
                 most (RLIMIT_FSIZE); raise that limit, or ask for less"
            ))));
        }
        let length = self.storage.len()?;
        // Space is reserved before it is filled, so that a disk without enough space refuses at once and does not run
        // full first. Bytes that an earlier growth left after the last slot are overwritten last, so that until then a
        // refusal leaves the file unchanged.
        let made = self.storage.reserve(at, end - at).and_then(|is_reserved| match self.growing.new_slot {
            NewSlot::Reserved if is_reserved => Ok(()),
            _ => write_zeroes_at(&*self.storage, length, end.saturating_sub(length)),
        });
        let left_over = length.min(end).saturating_sub(at);
        let made = made.and_then(|()| write_zeroes_at(&*self.storage, at, left_over));
        if let Err(error) = made {
            // Shorten the file again, so that it does not fill the disk without using the space.
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
        self.count = to;
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::Parameters;
    use crate::storage::MemoryStorage;
    use std::path::PathBuf;

    #[test]
    fn only_a_large_piece_of_zeroes_is_extended_to_a_boundary() {
        let ends = |segment_bytes: u64, asked: u64| {
            let parameters =
                Parameters { segment_bytes, file_id: [0; 16], secret: [0; 16], copied_seed: None };
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
            let reader = Arc::new(Reader::new(Arc::clone(&storage), PathBuf::new(), &parameters));
            let growing = Growing { min_slots: 0, max_slots: 10, new_slot: NewSlot::Zeroed };
            let slots = (1, BTreeSet::new());
            let mut slots =
                Slots::new(Arc::clone(&storage), reader, Arc::default(), segment_bytes, growing, slots);
            slots.fill(asked).unwrap();
            (slots.reader.slot_offset(1), storage.len().unwrap())
        };
        let (slot, end) = ends(4 << 20, 100);
        assert_eq!(end, slot + 100);
        assert_eq!(ends(4 << 20, 256 << 10).1, 18 * (256 << 10));
        assert_eq!(ends(4 << 20, 600 << 10).1, 19 * (256 << 10));
        let (slot, end) = ends(300 << 10, 256 << 10);
        assert_eq!(end, slot + (300 << 10), "the piece must end with the slot");
    }

    #[test]
    fn the_lowest_free_slot_is_used_first() {
        let parameters =
            Parameters { segment_bytes: 64 << 10, file_id: [0; 16], secret: [0; 16], copied_seed: None };
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let reader = Arc::new(Reader::new(Arc::clone(&storage), PathBuf::new(), &parameters));
        let growing = Growing { min_slots: 0, max_slots: 10, new_slot: NewSlot::Zeroed };
        let mut slots =
            Slots::new(storage, reader, Arc::default(), 64 << 10, growing, (7, BTreeSet::from([6, 3, 4])));
        assert_eq!((slots.lowest_free(), slots.take()), (Some(3), Some(3)));
        slots.drop_last();
        slots.give_back(2);
        assert_eq!((slots.lowest_free(), slots.count(), slots.free_count()), (Some(2), 6, 2));
    }
}
