//! The log: a queue of segments in the slots of one file, appended to by group commit.
//!
//! `scan` reads it, `reader` reads single records of it, `writer` knows its end, `progress` how far it is on disk, `commit`
//! gathers what is written together, `listing` is what a footer will say, `room` promises space, `ledger` counts what is
//! dead, `expiries` when it dies. [`Log`] puts them together; it knows records and their places, and nothing of keys' states.

pub(crate) mod commit;
mod expiries;
pub(crate) mod space_usage;
pub(crate) mod footer_builder;
pub(crate) mod log_position;
pub(crate) mod reader;
pub(crate) mod reservations;
pub(crate) mod scan;
pub(crate) mod writer;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::frame::OPENING_FRAME_BYTES;
use crate::format::header::Parameters;
use crate::format::record::Record;
use crate::format::{FIRST_FRAME_OFFSET, max_frame_bytes};
use crate::index::Address;
use crate::key::KeyHasher;
use crate::planted::{Bug, planted};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, Patience};
use commit::{Commit, CommitSink, PendingFrame, Placement, Ticket, Until};
use log_position::LogPosition;
use reader::Reader;
use reservations::{CannotGrow, FreeSpace, NoRoom, ReservationClass, SpaceReservations};
use scan::Chain;
use space_usage::SpaceUsage;
use writer::{FullSegment, Growing, Start, Writer};

/// The most that a batch may take of a segment, footer entries included.
pub(crate) fn batch_limit_bytes(segment_bytes: u64) -> u64 {
    max_frame_bytes(segment_bytes)
}

/// Whether to go on in the next segment even if nothing was written to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotate {
    /// If something was, and if what is kept for moving records is left then.
    IfSpare,
    IfWritten,
    Always,
}

/// Where the versions of a log go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionsBefore {
    /// The highest open count anywhere in the log.
    pub(crate) open_count: u32,
    /// The counter of the last version under it, if the log was closed and not opened since.
    pub(crate) closed_at: Option<u64>,
}

impl VersionsBefore {
    /// Open count and counter that an opening goes on from; None if there are no more.
    pub(crate) fn next(self, can_go_on: bool) -> Option<(u32, u64)> {
        // Half of the counter is left for the changes of one opening: more than any can make.
        match self.closed_at.filter(|counter| can_go_on && *counter <= MAX_COUNTER / 2) {
            Some(_) if planted(Bug::CounterRestarted) => Some((self.open_count, 0)),
            Some(counter) => Some((self.open_count, counter)),
            None => (self.open_count < MAX_OPEN_COUNT).then_some((self.open_count + 1, 0)),
        }
    }
}

/// The log of one store.
#[derive(Debug)]
pub(crate) struct Log {
    storage: Arc<dyn Storage>,
    parameters: Parameters,
    hasher: KeyHasher,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    writer: Mutex<Writer>,
    commit: Commit,
    reservations: SpaceReservations,
    space_usage: SpaceUsage,
    /// The oldest sequence that is still needed: everything that was live below it has been moved and written.
    needed_from: AtomicU64,
    /// The number of a slot that was filled and waits for a sync that begins after that, plus one; or the step to the next
    /// segment has settled it since, and the next sync asks in vain. 0 for none.
    slot_awaits_sync: AtomicU64,
    syncs: AtomicU64,
    /// Some call was refused because the queue is poisoned, and the event was emitted.
    has_reported_poison: AtomicBool,
}

/// Room that was promised and is given back when this is dropped.
#[derive(Debug)]
#[must_use = "the room is given back when this is dropped"]
pub(crate) struct Reservation {
    log: Arc<Log>,
    bytes: u64,
}

impl Reservation {
    /// The room goes with a record; the log gives it back when that is written.
    pub(crate) fn spend(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// All of it, in another hand.
    pub(crate) fn take(&mut self) -> Reservation {
        self.split(self.bytes)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Parts the promise in two.
    pub(crate) fn split(&mut self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Reservation { log: Arc::clone(&self.log), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.log.reservations.give_back(self.bytes);
        }
    }
}

impl Log {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        reader: Arc<Reader>,
        parameters: Parameters,
        growing: Growing,
        space_usage: SpaceUsage,
        start: Start,
    ) -> Log {
        let limit = batch_limit_bytes(parameters.segment_bytes);
        let log_position = Arc::new(LogPosition::default());
        let needed_from = AtomicU64::new(start.head);
        let writer = Writer::new(
            Arc::clone(&storage),
            Arc::clone(&reader),
            Arc::clone(&log_position),
            parameters,
            growing,
            start,
        );
        let reservations = SpaceReservations::new(parameters.segment_bytes, limit);
        reservations.update(writer.free_space(), 0);
        Log {
            storage,
            parameters,
            hasher: KeyHasher::new(parameters.secret),
            reader,
            log_position,
            writer: Mutex::new(writer),
            commit: Commit::new(parameters.seed(), limit),
            reservations,
            space_usage,
            needed_from,
            slot_awaits_sync: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            has_reported_poison: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.reader.path()
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    pub(crate) fn space_usage(&self) -> &SpaceUsage {
        &self.space_usage
    }

    /// A promise of nothing.
    pub(crate) fn no_reservation(self: &Arc<Self>) -> Reservation {
        Reservation { log: Arc::clone(self), bytes: 0 }
    }

    /// Promises room for `bytes`, growing the file if need be. None, with the reason, if there is none to be had.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        bytes: u64,
        class: ReservationClass,
    ) -> Result<Result<Reservation, NoRoom>> {
        loop {
            if self.reservations.reserve(bytes, class) {
                return Ok(Ok(Reservation { log: Arc::clone(self), bytes }));
            }
            let mut writer = self.writer.lock();
            // Somebody may have grown the file while this thread waited for the writer.
            if self.reservations.reserve(bytes, class) {
                return Ok(Ok(Reservation { log: Arc::clone(self), bytes }));
            }
            self.check_poison()?;
            match writer.try_grow() {
                Ok(Ok(())) => {
                    self.reservations.update(writer.free_space(), 0);
                }
                Ok(Err(cause)) => return Ok(Err(NoRoom { class, cause })),
                Err(error) => return Err(self.poison_with(error)),
            }
        }
    }

    /// Promises room in the slots that there are, without growing the file. Needs no lock that a writer holds.
    pub(crate) fn reserve_in_present_slots(
        self: &Arc<Self>,
        bytes: u64,
        class: ReservationClass,
    ) -> Option<Reservation> {
        self.reservations.reserve(bytes, class).then(|| Reservation { log: Arc::clone(self), bytes })
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.parameters.segment_bytes
    }

    /// Puts a record into the gathering batch, with the room that was promised for it.
    pub(crate) fn append(
        &self,
        record: &Record<'_>,
        hash: u128,
        reservation: Reservation,
        until: Until,
    ) -> Result<Ticket> {
        let bytes = reservation.spend();
        self.commit.append(record, hash, bytes, until).map_err(|poison| {
            self.reservations.give_back(bytes);
            self.poisoned(poison)
        })
    }

    /// Waits until the record is as durable as its ticket wants it. Returns where it went.
    pub(crate) fn wait(&self, ticket: &Ticket) -> Result<Address> {
        let placement = self.commit.wait(ticket, self).map_err(|poison| self.poisoned(poison))?;
        Address::new(placement.offset).ok_or_else(|| {
            Error::corrupt(self.path(), placement.offset, "the file is longer than an address can say")
        })
    }

    /// Makes everything written before this call survive power loss.
    pub(crate) fn sync(&self) -> Result<()> {
        self.commit.sync(self).map_err(|poison| self.poisoned(poison))
    }

    /// Returns when everything before `position` survives power loss.
    pub(crate) fn sync_to(&self, position: u64) -> Result<()> {
        if position <= self.log_position.durable() { Ok(()) } else { self.sync() }
    }

    /// The same, but waits for a sync of another caller's no longer than `patience`: false, then. A sync that nobody is at is
    /// done by this thread, unless its patience is over.
    pub(crate) fn sync_to_within(&self, position: u64, patience: Patience) -> Result<bool> {
        if patience == Patience::Endless {
            return self.sync_to(position).map(|()| true);
        }
        let is_durable = || position <= self.log_position.durable();
        if is_durable() {
            return Ok(true);
        }
        self.commit.sync_within(is_durable, patience, self).map_err(|poison| self.poisoned(poison))
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.commit.poison().map_or(Ok(()), |poison| Err(self.poisoned(poison)))
    }

    /// What a call gets that is refused because of `source`. The first one reports it: whatever poisoned the queue, and
    /// whichever thread that was, somebody is refused for it.
    fn poisoned(&self, source: Arc<io::Error>) -> Error {
        if !self.has_reported_poison.swap(true, Ordering::Relaxed) {
            crate::events::poisoned(self.path(), &source);
        }
        Error::Poisoned { path: self.path().to_owned(), source }
    }

    fn poison_with(&self, error: io::Error) -> Error {
        let poison = self.commit.poison_with(error);
        self.poisoned(poison)
    }

    /// Makes open count and mark of this opening durable before any of its versions is given out. Returns the open count,
    /// and the counter that its versions go on from.
    pub(crate) fn begin_opening(&self, before: VersionsBefore) -> Result<(u32, u64)> {
        // A frame for each opening must not eat up what is kept for moving: a full store would be full for ever.
        let frame_bytes = OPENING_FRAME_BYTES as u64;
        let has_room = self.reservations.reserve(frame_bytes, ReservationClass::Begin);
        // Noted in a header, an opening leaves a close mark where it is, and only its own open count outdates that.
        let Some((open_count, counter)) = before.next(has_room) else {
            return Err(Error::openings_exhausted(self.path()));
        };
        let head = self.needed_from.load(Ordering::Acquire);
        let mut writer = self.writer.lock();
        let begun = match has_room {
            true => writer.begin_opening(open_count, head),
            false => writer.note_opening(open_count),
        };
        begun.map_err(|error| self.reader.io("begin this opening", error))?;
        self.reservations.update(writer.free_space(), if has_room { frame_bytes } else { 0 });
        Ok((open_count, counter))
    }

    /// Makes the slots that the file is to have at least, all or none.
    pub(crate) fn make_min_slots(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        let made = writer.make_min_slots();
        let made = made.map_err(|error| self.reader.io("make the file as long as it is to be", error))?;
        self.reservations.update(writer.free_space(), 0);
        made.map_err(|cause| match cause {
            CannotGrow::Full(reason) => Error::Full { path: self.path().to_owned(), reason },
            CannotGrow::Failed(error) => {
                Error::io(self.path(), "make the file as long as Options::min_size asks for", error)
            }
        })
    }

    /// Sequences of the oldest segment that is still needed and of the one being written. The first is never above the
    /// second, whatever other threads do meanwhile.
    pub(crate) fn span(&self) -> (u64, u64) {
        // Both only grow, so the one that is never above the other is read first. From the position of the end and not
        // from the writer: this is asked at every commit.
        let tail = || self.log_position.written() / self.parameters.segment_bytes;
        let early = if planted(Bug::SpanReadBackwards) { Some(tail()) } else { None };
        let head = self.needed_from.load(Ordering::Acquire);
        (head, early.unwrap_or_else(tail))
    }

    /// Header and slots, without a slot that is being made.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.reader.slot_offset(self.writer.lock().slot_count())
    }

    /// Whether bytes that are written again may have to find room on the medium, as far as is known.
    pub(crate) fn copies_on_write(&self) -> bool {
        self.storage.copies_on_write()
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reservations.reserved_bytes()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(crate) fn address(&self, segment: &FullSegment, entry: &FooterEntry) -> Result<Address> {
        let offset = self.reader.slot_offset(segment.slot) + entry.offset;
        Address::new(offset)
            .ok_or_else(|| Error::corrupt(self.path(), offset, "the footer's address is out of range"))
    }

    /// The footer entries of a full segment, from its footer or, if that is damaged, from its records.
    pub(crate) fn full_segment(&self, sequence: u64) -> Result<Option<(FullSegment, Vec<FooterEntry>)>> {
        let Some(segment) = self.writer.lock().full_segment(sequence) else { return Ok(None) };
        let slot_offset = self.reader.slot_offset(segment.slot);
        let io = |error| self.reader.io("read a segment to retire it", error);
        let mut buffer = Vec::new();
        let footer = scan::read_footer(&*self.storage, slot_offset, sequence, &self.parameters, &mut buffer)
            .map_err(io)?;
        if let Ok(entries) = footer.and_then(|(_, entries)| entries.collect()) {
            return Ok(Some((segment, entries)));
        }
        let bytes =
            scan::read_slot(&*self.storage, slot_offset, self.parameters.segment_bytes).map_err(io)?;
        let first = sequence * self.parameters.segment_bytes + FIRST_FRAME_OFFSET;
        let chain = first_chain(&bytes, first, &self.parameters);
        let scan = scan::scan(&bytes, sequence, chain, &self.parameters, &self.hasher);
        if scan.end != segment.end {
            let offset = slot_offset + (scan.end % self.parameters.segment_bytes);
            return Err(Error::corrupt(self.path(), offset, scan.stop.reason()));
        }
        Ok(Some((segment, scan.entries)))
    }

    /// What the footer says of the record at `address`, or will say if its segment is still being written. None if it is
    /// damaged, or if no key's last record in the segment is there.
    pub(crate) fn listed(&self, address: Address) -> Result<Option<FooterEntry>> {
        let (slot, within) = self.reader.split(address);
        let (in_tail, sequence) = {
            let writer = self.writer.lock();
            (writer.listed_in_tail(slot, within), writer.sequence_of_full(slot))
        };
        let (None, Some(sequence)) = (in_tail, sequence) else { return Ok(in_tail) };
        match self.full_segment(sequence) {
            Ok(full) => {
                Ok(full.and_then(|(_, entries)| entries.into_iter().find(|entry| entry.offset == within)))
            }
            Err(Error::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the footer of the segment that is being written will say, were it finished now.
    pub(crate) fn tail_listing(&self) -> (FullSegment, Vec<FooterEntry>) {
        self.writer.lock().footer_builder()
    }

    /// The oldest segment is not needed any more: what was live in it has been moved, and the moved records written.
    pub(crate) fn retire(&self, sequence: u64, record_bytes: u64) {
        self.space_usage.remove(record_bytes);
        self.needed_from.store(sequence + 1, Ordering::Release);
    }

    /// Makes the slots of retired segments free now, instead of with the next segment.
    /// False if there were none.
    pub(crate) fn publish_head(&self) -> Result<bool> {
        // Read before the writer's sync, which then covers everything that was moved to make it so.
        let head = self.needed_from.load(Ordering::Acquire);
        self.with_writer(|writer| writer.publish_head(head))
    }

    /// Closes the tail, so that everything written so far lies in full segments.
    pub(crate) fn rotate(&self, rotate: Rotate) -> Result<()> {
        let head = self.needed_from.load(Ordering::Acquire);
        let full = |cause| Err(NoRoom { class: ReservationClass::Move, cause }.into_error(self.path()));
        self.with_writer(|writer| {
            if rotate != Rotate::Always && writer.tail_is_empty() {
                return Ok(Ok(()));
            }
            // What is left of the tail is given up: every promise must be covered without it.
            let class =
                if rotate == Rotate::IfSpare { ReservationClass::Begin } else { ReservationClass::Move };
            loop {
                let free_space = writer.free_space();
                let after = FreeSpace {
                    tail_bytes: self.reservations.usable_bytes(),
                    free_slots: free_space.free_slots.saturating_sub(1),
                    full_segments: free_space.full_segments + 1,
                };
                if free_space.free_slots > 0 && self.reservations.lower(after, class) {
                    return writer.switch(head).map(Ok);
                }
                if let Err(cause) = writer.try_grow()? {
                    return Ok(full(cause));
                }
                self.reservations.update(writer.free_space(), 0);
            }
        })?
    }

    /// Whether moving segments to lower slots would let the file end earlier; the sequence up to which.
    pub(crate) fn shorter_by_moving(&self) -> Option<u64> {
        let writer = self.writer.lock();
        let lowest_free = writer.lowest_free_slot()?;
        let highest_used = writer.highest_used_slot();
        (lowest_free < highest_used && highest_used >= writer.min_slots())
            .then(|| writer.sequence_in_highest_slot())
    }

    /// Cuts off free slots at the end of the file that no promise needs.
    pub(crate) fn shrink(&self) -> Result<()> {
        self.with_writer(|writer| {
            while writer.last_slot_is_free() && writer.slot_count() > writer.min_slots() {
                let free_space = writer.free_space();
                let after = FreeSpace { free_slots: free_space.free_slots.saturating_sub(1), ..free_space };
                if !self.reservations.lower(after, ReservationClass::Move) {
                    break;
                }
                writer.drop_last_slot();
            }
            writer.cut()
        })
    }

    /// Writes down that the log ends here, and that versions have come to `counter`. No version may be given out
    /// afterwards: the next opening goes on from there.
    pub(crate) fn mark_closed(&self, counter: u64) -> Result<()> {
        self.with_writer(|writer| writer.mark_closed(counter))
    }

    fn with_writer<R>(&self, change: impl FnOnce(&mut Writer) -> io::Result<R>) -> Result<R> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        let outcome = change(&mut writer);
        self.reservations.update(writer.free_space(), 0);
        outcome.map_err(|error| self.poison_with(error))
    }
}

/// The chain that the first frame of a segment says it continues: in a full segment, whose end is known, that end is
/// the check.
fn first_chain(slot: &[u8], first: u64, parameters: &Parameters) -> Chain {
    let at = usize::try_from(FIRST_FRAME_OFFSET).unwrap_or(usize::MAX);
    let header = crate::format::frame::FrameHeader::decode(
        slot.get(at..).unwrap_or_default(),
        first,
        max_frame_bytes(parameters.segment_bytes),
        parameters.seed(),
    );
    Chain { checksum: header.map_or(0, |header| header.stamp.previous_checksum) }
}

impl CommitSink for Log {
    fn write(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
        self.write_frame(batch)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_written()
    }
}

impl Log {
    fn write_frame(&self, batch: &mut PendingFrame) -> io::Result<Placement> {
        // Read before the writer is entered: what was moved to make it so has been written.
        let head = self.needed_from.load(Ordering::Acquire);
        let mut writer = self.writer.lock();
        let placement = writer.write(batch, head)?;
        // A slot that is made ahead counts as supply only when it is synced.
        let is_scarce = self.reservations.update(writer.free_space(), batch.reserved_bytes);
        if is_scarce && let Some(number) = writer.grow_ahead(batch.frame.len() as u64) {
            self.slot_awaits_sync.store(number + 1, Ordering::Release);
        }
        Ok(placement)
    }

    fn sync_written(&self) -> io::Result<()> {
        let filled_slot = self.slot_awaits_sync.swap(0, Ordering::AcqRel).checked_sub(1);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.log_position.sync(&*self.storage)?;
        if let Some(number) = filled_slot {
            // Who has the writer may sync three times for the step to the next segment, and all who wait for this sync would
            // wait for those. The step settles the slot too, or the next sync does.
            if let Some(mut writer) = self.writer.try_lock() {
                writer.confirm_growth_of(number);
                self.reservations.update(writer.free_space(), 0);
            } else {
                let awaits = &self.slot_awaits_sync;
                let _ = awaits.compare_exchange(0, number + 1, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
