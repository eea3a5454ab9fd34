//! The slots of the file: which of them are free, and how the file grows and shrinks.
//!
//! Owned by the [`Writer`](super::writer::Writer), under whose lock everything here happens. A slot counts, as free or in
//! use, once it is at full length and synced; one that is being made at the end of the file does not count yet.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::log_position::LogPosition;
use super::reader::Reader;
use super::reservations::CannotGrow;
use crate::format::STORE_HEADER_BYTES;
use crate::storage::{Storage, ZEROES_BYTES, set_len, write_zeroes_at};

/// How a slot at the end of the file gets its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSlot {
    /// Zeroes are written to it, so that a sync of a record in it finds no metadata of the file system to write.
    Zeroed,
    /// Space is reserved and not written to. In a file that grows and is hardly ever synced this halves what is
    /// written. On a file system that cannot reserve space, zeroes are written.
    Reserved,
}

/// How short and how long a file may be, and how it grows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growing {
    pub(crate) min_slots: u64,
    pub(crate) max_slots: u64,
    pub(crate) new_slot: NewSlot,
}

/// How many zeroes an appended byte pays for.
///
/// The log asks for a slot when a batch's limit is left of the tail, which is a quarter of a segment at most. At this rate the
/// slot is filled before that is full, and the switch to the next segment confirms it.
const ZEROES_PER_BYTE: u64 = 8;
/// The least that is filled at once is a segment divided by this, or [`ENOUGH_BYTES`] if that is less.
///
/// After each piece the next sync also writes the file's new length and extents, which costs as much as a quarter of a
/// MiB. Smaller pieces would pay that more often; larger ones would delay more callers by the one sync that carries them.
const PIECES_PER_SEGMENT: u64 = 16;
const ENOUGH_BYTES: u64 = ZEROES_BYTES as u64;

/// A slot that is being made at the end of the file.
#[derive(Debug, Default)]
struct Growth {
    /// Counts the slots that this process has made.
    number: u64,
    /// Zeroes written, or space reserved, so far.
    filled_bytes: u64,
    /// What appended bytes have paid for and is not filled yet.
    owed_bytes: u64,
}

/// The slots of one file.
#[derive(Debug)]
pub(crate) struct Slots {
    storage: Arc<dyn Storage>,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    segment_bytes: u64,
    /// Slots that hold nothing that a durable header counts to the log. Lowest first, so that the end of the file comes
    /// free.
    free: BTreeSet<u64>,
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

    /// The number of slots below which the file does not shrink.
    pub(crate) fn min_count(&self) -> u64 {
        self.growing.min_slots
    }

    /// Takes the lowest free slot.
    pub(super) fn take(&mut self) -> Option<u64> {
        self.free.pop_first()
    }

    /// No durable header counts the segment in `slot` to the log any more.
    pub(super) fn give_back(&mut self, slot: u64) {
        self.free.insert(slot);
    }

    pub(crate) fn last_is_free(&self) -> bool {
        self.count > 0 && self.free.contains(&(self.count - 1))
    }

    /// Gives up the last slot of the file, which is free. [`Slots::cut`] then shortens the file.
    pub(crate) fn drop_last(&mut self) {
        assert!(self.last_is_free(), "a slot in use is never given up");
        self.count -= 1;
        self.free.remove(&self.count);
    }

    /// Cuts the file off behind its last slot, with what there is of a slot that is being made.
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

    /// Fills what `appended_bytes` pay for of the next slot: a piece of zeroes at a time, or the whole slot where space is
    /// reserved. Returns the number of the slot when it is filled and waits for a sync.
    ///
    /// A full disk, or any other reason not to grow, does no harm here. A caller that needs the slot meets it again in
    /// [`Slots::grow`].
    pub(crate) fn grow_ahead(&mut self, appended_bytes: u64) -> Option<u64> {
        if self.growth_is_filled() {
            return Some(self.growth.number);
        }
        let piece_bytes = (self.segment_bytes / PIECES_PER_SEGMENT).min(ENOUGH_BYTES);
        self.growth.owed_bytes += appended_bytes * ZEROES_PER_BYTE;
        if self.growth.owed_bytes < piece_bytes || self.count >= self.growing.max_slots {
            return None;
        }
        if self.storage.size_limit().is_some_and(|limit| self.reader.slot_offset(self.count + 1) > limit) {
            return None;
        }
        // All that is owed, which after a large frame is more than a piece, or large frames would outrun the zeroes.
        let owed_bytes = std::mem::take(&mut self.growth.owed_bytes);
        self.fill(owed_bytes).ok()?;
        self.growth_is_filled().then_some(self.growth.number)
    }

    fn growth_is_filled(&self) -> bool {
        self.growth.filled_bytes == self.segment_bytes
    }

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
        // A large piece goes on to where the page cache can hold the next one as a unit.
        let up_to_piece =
            if bytes < ENOUGH_BYTES { bytes } else { (at + bytes).next_multiple_of(ENOUGH_BYTES) - at };
        let bytes = up_to_piece.min(left);
        write_zeroes_at(&*self.storage, at, bytes)?;
        self.growth.filled_bytes += bytes;
        Ok(())
    }

    /// The filled slot is usable: a sync that began after it was filled has succeeded.
    pub(super) fn confirm_growth(&mut self) {
        if self.growth_is_filled() {
            self.free.insert(self.count);
            self.count += 1;
            self.begin_growth();
        }
    }

    /// The same for the slot with this number. While a thread synced, another may have confirmed that slot and filled the
    /// next one, for which that sync began too early.
    pub(crate) fn confirm_growth_of(&mut self, number: u64) {
        if self.growth.number == number {
            self.confirm_growth();
        }
    }

    fn begin_growth(&mut self) {
        self.growth = Growth { number: self.growth.number + 1, ..Growth::default() };
    }

    /// Makes the next slot at once. The outer error leaves unknown what is on disk; the inner one says why the file cannot
    /// grow.
    pub(super) fn grow(&mut self) -> io::Result<Result<(), CannotGrow>> {
        // The slot holds nothing, so a write to it that fails leaves nothing half done.
        if let Err(error) = self.fill(self.segment_bytes) {
            return Ok(Err(CannotGrow::new(error)));
        }
        self.sync()?;
        self.confirm_growth();
        Ok(Ok(()))
    }

    /// Whether a limit forbids the file to have another slot.
    pub(super) fn check_limits(&self) -> Result<(), CannotGrow> {
        let segment_bytes = self.segment_bytes;
        if self.count >= self.growing.max_slots {
            let now_bytes = STORE_HEADER_BYTES + self.count * segment_bytes;
            return Err(CannotGrow::Full(format!(
                "another segment of {segment_bytes} bytes would take the file, now {now_bytes} bytes, over Options::max_size"
            )));
        }
        let (now_bytes, end) = (self.reader.slot_offset(self.count), self.reader.slot_offset(self.count + 1));
        match self.storage.size_limit().filter(|limit| end > *limit) {
            Some(limit) => Err(CannotGrow::Full(format!(
                "another segment of {segment_bytes} bytes would take the file, now {now_bytes} bytes, over the {limit} bytes \
                 that the process may write (RLIMIT_FSIZE)"
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn lacks_min_slots(&self) -> bool {
        self.count < self.growing.min_slots
    }

    /// Makes the slots that the file lacks of its minimum, with one sync; or none. The outer error leaves unknown what is on
    /// disk; the inner one says why the file cannot be that long.
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
        // Reserved before it is filled: a disk without space for it refuses at once, and not when it is full. What an earlier
        // growth left behind the last slot is overwritten last: until then a refusal can leave it as it was.
        let made = self.storage.reserve(at, end - at).and_then(|is_reserved| match self.growing.new_slot {
            NewSlot::Reserved if is_reserved => Ok(()),
            _ => write_zeroes_at(&*self.storage, length, end.saturating_sub(length)),
        });
        let left_over = length.min(end).saturating_sub(at);
        let made = made.and_then(|()| write_zeroes_at(&*self.storage, at, left_over));
        if let Err(error) = made {
            // Other users of the disk must not find it full for nothing.
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
    fn a_large_piece_of_zeroes_ends_on_a_boundary_and_a_small_one_does_not() {
        let ends = |segment_bytes: u64, asked: u64| {
            let parameters = Parameters { segment_bytes, file_id: [0; 16], secret: [0; 16] };
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
        assert_eq!(end, slot + (300 << 10), "no further than the slot");
    }
}
