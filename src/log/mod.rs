//! The log: a queue of segments in the slots of one file, appended to by group commit.
//!
//! [`Log`] owns the file while a store is open, and combines the parts below. It deals with records, frames and
//! segments, and not with the states of keys. Recovery creates the log, and the engine uses it.
//!
//! | module | what it owns |
//! |---|---|
//! | `log_position` | how far the log is written, and how far it is durable |
//! | `entry_classes`, `footer_builder` | the entries of the footer of the segment that is being written |
//! | `reservations` | the space that is reserved for records |
//! | `expiries`, `space_usage` | the estimate of dead bytes, and of when live bytes die |
//! | `reader` | reading single records, through memory maps |
//! | `scan` | reading whole segments, frame by frame |
//! | `commit` | batches, their leaders and followers |
//! | `limits` | the maximum sizes of a frame, a record and a result |
//! | `figures` | the figures of the log for the statistics |
//! | `slots` | the free slots, and the length of the file |
//! | `pins` | the segments that are being copied, and whose slots are not reused meanwhile |
//! | `writer` | the end of the log, and the switch to the next segment |
//! | `full_segment` | reading the entries of a full segment |
//! | `versions` | the choice of the first version of a session |
//! | `copying` | a copy of the log in a new file, while the log is in use |
//! | `building` | a new log of given records, in a new file |
//! | `acknowledgements` | the space for acknowledging the messages of an earlier session |

// Each module uses only those above it.
pub(crate) mod log_position;
mod entry_classes;
pub(crate) mod footer_builder;
pub(crate) mod reservations;
mod expiries;
pub(crate) mod space_usage;
pub(crate) mod reader;
pub(crate) mod scan;
pub(crate) mod commit;
mod limits;
mod figures;
pub(crate) mod slots;
mod pins;
pub(crate) mod writer;
mod full_segment;
mod versions;
pub(crate) mod copying;
pub(crate) mod building;
mod acknowledgements;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::Seed;
use crate::format::footer::FooterEntry;
use crate::format::header::Parameters;
use crate::format::record::Record;
use crate::hash::KeyHasher;
use crate::index::Address;
use crate::planted::{Bug, planted};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, Patience};
use commit::{Commit, CommitSink, NewRecord, PendingFrame, Placement, Ticket, Until};
pub(crate) use limits::{
    acknowledgement_cost_bytes, batch_limit_bytes, largest_carried_bytes, largest_result_bytes,
};
use log_position::LogPosition;
use reader::Reader;
pub(crate) use reservations::Reservation;
use reservations::{CannotGrow, FreeSpace, NoRoom, ReservationClass, SpaceReservations};
use slots::Growing;
use space_usage::SpaceUsage;
pub(crate) use versions::VersionsBefore;
pub(crate) use writer::Rotate;
use writer::{FullSegment, Start, Writer};

/// The log of one store.
#[derive(Debug)]
pub(crate) struct Log {
    storage: Arc<dyn Storage>,
    parameters: Parameters,
    hasher: KeyHasher,
    seed: Seed,
    reader: Arc<Reader>,
    log_position: Arc<LogPosition>,
    writer: Mutex<Writer>,
    commit: Commit,
    reservations: Arc<SpaceReservations>,
    space_usage: SpaceUsage,
    /// The oldest sequence that is still needed: the live records below it were moved, and the copies are written.
    needed_from: AtomicU64,
    /// One more than the growth number of the slot that was filled and is to be confirmed by the next sync to begin; 0
    /// for none. A switch to the next segment may have confirmed the slot already.
    slot_awaits_sync: AtomicU64,
    /// The number of syncs by group commit.
    syncs: AtomicU64,
    /// The event was emitted that the commit queue is poisoned.
    has_reported_poison: AtomicBool,
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
        let reservations = Arc::new(SpaceReservations::new(parameters.segment_bytes, limit));
        reservations.update(writer.free_space(), 0);
        Log {
            storage,
            parameters,
            hasher: KeyHasher::new(parameters.secret),
            seed: parameters.seed(),
            reader,
            log_position,
            writer: Mutex::new(writer),
            commit: Commit::new(limit),
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

    /// Makes an empty reservation.
    pub(crate) fn no_reservation(&self) -> Reservation {
        self.reservations.empty_reservation()
    }

    /// Reserves `bytes`, and grows the file if need be. The inner error explains why there is no space.
    pub(crate) fn reserve(&self, bytes: u64, class: ReservationClass) -> Result<Result<Reservation, NoRoom>> {
        loop {
            if let Some(reservation) = self.reservations.reservation(bytes, class) {
                return Ok(Ok(reservation));
            }
            let mut writer = self.writer.lock();
            // Another thread may have grown the file while this one waited for the writer.
            if let Some(reservation) = self.reservations.reservation(bytes, class) {
                return Ok(Ok(reservation));
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

    /// Reserves space in the existing slots, without growing the file. Does not take the lock of the writer.
    pub(crate) fn reserve_in_present_slots(
        &self,
        bytes: u64,
        class: ReservationClass,
    ) -> Option<Reservation> {
        self.reservations.reservation(bytes, class)
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.parameters.segment_bytes
    }

    /// Encodes and checksums a record, whose key has this hash. Takes no lock.
    pub(crate) fn encode<'a>(&self, record: &Record<'a>, hash: u128) -> NewRecord<'a> {
        NewRecord::new(record, hash, self.seed)
    }

    /// Copies `records` into the gathering batch, which becomes one frame, so that a crash keeps all of them or none.
    pub(crate) fn append<'r, 'a: 'r>(
        &self,
        records: impl Iterator<Item = &'r NewRecord<'a>> + Clone,
        reservation: Reservation,
        until: Until,
    ) -> Result<Ticket> {
        let bytes = reservation.spend();
        self.commit.append(records, bytes, until).map_err(|poison| {
            self.reservations.give_back(bytes);
            self.poisoned(poison)
        })
    }

    /// Waits until the ticket's records are as durable as it demands. Returns where the first of them was written.
    pub(crate) fn wait(&self, ticket: &Ticket) -> Result<Placement> {
        self.commit.wait(ticket, self).map_err(|poison| self.poisoned(poison))
    }

    /// Returns the address of a record that was written at this offset in the file.
    pub(crate) fn address_at(&self, offset: u64) -> Result<Address> {
        Address::new(offset).ok_or_else(|| {
            Error::corrupt(self.path(), offset, "the file is longer than an address can express")
        })
    }

    /// Makes everything written before this call survive power loss.
    pub(crate) fn sync(&self) -> Result<()> {
        self.commit.sync(self).map_err(|poison| self.poisoned(poison))
    }

    /// Returns once everything before `position` survives power loss.
    pub(crate) fn sync_to(&self, position: u64) -> Result<()> {
        if self.is_durable(position) { Ok(()) } else { self.sync() }
    }

    /// Whether everything before `position` survives power loss.
    pub(crate) fn is_durable(&self, position: u64) -> bool {
        position <= self.log_position.durable()
    }

    /// Returns true once everything before `position` survives power loss, or false if another thread's sync takes
    /// longer than `patience`. If no thread is syncing, this one does, unless its patience is over.
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

    /// Returns an error if the commit queue is poisoned.
    pub(crate) fn check_poison(&self) -> Result<()> {
        self.commit.poison().map_or(Ok(()), |poison| Err(self.poisoned(poison)))
    }

    /// Makes the error of a call that the poisoned queue refuses. The first such call, on any thread, emits the event.
    fn poisoned(&self, source: Arc<io::Error>) -> Error {
        if !self.has_reported_poison.swap(true, Ordering::Relaxed) {
            crate::events::poisoned(self.path(), &source);
        }
        Error::Poisoned { path: self.path().to_owned(), source }
    }

    /// Poisons the commit queue, and returns the error of the call.
    fn poison_with(&self, error: io::Error) -> Error {
        let poison = self.commit.poison_with(error);
        self.poisoned(poison)
    }

    /// Extends the file to `Options::min_size` by adding all slots that it lacks, or none.
    pub(crate) fn make_min_slots(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        let made = writer.make_min_slots();
        let made = made.map_err(|error| self.reader.io("extend the file to its minimum length", error))?;
        self.reservations.update(writer.free_space(), 0);
        made.map_err(|cause| match cause {
            CannotGrow::Full(reason) => Error::Full { path: self.path().to_owned(), reason },
            CannotGrow::Failed(error) => {
                Error::io(self.path(), "extend the file to Options::min_size", error)
            }
        })
    }

    /// The sequences of the oldest segment that is still needed and of the tail. The first is never higher than the
    /// second, whatever other threads do meanwhile.
    pub(crate) fn span(&self) -> (u64, u64) {
        // Both sequences only grow, so the lower one is read first. The tail is computed from the end of the log and
        // not read from the writer, because every commit calls this and must not wait for the writer's lock.
        let tail = || self.log_position.written() / self.parameters.segment_bytes;
        let early = if planted(Bug::SpanReadBackwards) { Some(tail()) } else { None };
        let head = self.needed_from.load(Ordering::Acquire);
        (head, early.unwrap_or_else(tail))
    }

    /// Whether the file system is known to copy on write: overwriting a block then needs free space for the copy.
    pub(crate) fn copies_on_write(&self) -> bool {
        self.storage.copies_on_write()
    }

    /// Returns the address of the record that a footer entry of `segment` lists.
    pub(crate) fn address(&self, segment: &FullSegment, entry: &FooterEntry) -> Result<Address> {
        let offset = self.reader.slot_offset(segment.slot) + entry.offset;
        Address::new(offset)
            .ok_or_else(|| Error::corrupt(self.path(), offset, "the footer's address is out of range"))
    }

    /// Reads the footer entries of a full segment from its footer or, if that is damaged, from its records. Returns
    /// None if there is no full segment with that sequence.
    pub(crate) fn full_segment(&self, sequence: u64) -> Result<Option<(FullSegment, Vec<FooterEntry>)>> {
        let Some(segment) = self.writer.lock().full_segment(sequence) else { return Ok(None) };
        let (storage, hasher) = (&*self.storage, &self.hasher);
        full_segment::read_entries(storage, &self.reader, &self.parameters, hasher, (sequence, &segment))
            .map(|entries| Some((segment, entries)))
    }

    /// Returns the footer entry of the record at `address`, or the future entry if the record is in the tail. Returns
    /// None if the entries of the segment cannot be read, or if the record is not its key's last one in the segment.
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

    /// Tells the storage that the records of a full segment are about to be read.
    pub(crate) fn will_read(&self, segment: &FullSegment) {
        let length = segment.end % self.parameters.segment_bytes;
        self.storage.will_read(self.reader.slot_offset(segment.slot), length);
    }

    /// Describes the tail as if it were full now, with the entries of its footer.
    pub(crate) fn tail_listing(&self) -> (FullSegment, Vec<FooterEntry>) {
        self.writer.lock().tail_listing()
    }

    /// Notes that the oldest segment is no longer needed: its live records were moved, and the copies are written.
    pub(crate) fn retire(&self, sequence: u64, record_bytes: u64) {
        self.space_usage.remove(record_bytes);
        self.needed_from.store(sequence + 1, Ordering::Release);
    }

    /// Frees the slots of retired segments now, instead of with the next switch. Returns false if there were none.
    pub(crate) fn publish_head(&self) -> Result<bool> {
        // This must be read before the writer syncs, so that the sync covers the copies of all records below the head.
        let head = self.needed_from.load(Ordering::Acquire);
        self.with_writer(|writer| writer.publish_head(head))
    }

    /// Goes on to the next segment if `rotate` is fulfilled. Everything written so far is in full segments then.
    pub(crate) fn rotate(&self, rotate: Rotate) -> Result<()> {
        let head = self.needed_from.load(Ordering::Acquire);
        let full = |cause| Err(NoRoom { class: ReservationClass::Move, cause }.into_error(self.path()));
        self.with_writer(|writer| {
            if rotate != Rotate::Always && writer.tail_is_empty() {
                return Ok(Ok(()));
            }
            // The rest of the tail stays unused, so the other space must cover every reservation.
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

    /// The last sequence that has to be moved to a lower slot to make the file shorter. None if moving does not help.
    pub(crate) fn shorter_by_moving(&self) -> Option<u64> {
        let writer = self.writer.lock();
        let lowest_free = writer.slots().lowest_free()?;
        let highest_used = writer.highest_used_slot();
        (lowest_free < highest_used && highest_used >= writer.slots().min_count())
            .then(|| writer.sequence_in_highest_slot())
    }

    /// Cuts off free slots at the end of the file that no reservation needs.
    pub(crate) fn shrink(&self) -> Result<()> {
        self.with_writer(|writer| {
            while writer.slots().last_is_free() && writer.slots().count() > writer.slots().min_count() {
                let free_space = writer.free_space();
                let after = FreeSpace { free_slots: free_space.free_slots.saturating_sub(1), ..free_space };
                if !self.reservations.lower(after, ReservationClass::Move) {
                    break;
                }
                writer.slots_mut().drop_last();
            }
            writer.cut()
        })
    }

    /// Writes the close marks, which record the end of the log and `counter`, that of the last version. No version may
    /// be generated afterwards, because the next session continues from `counter`.
    pub(crate) fn mark_closed(&self, counter: u64) -> Result<()> {
        self.with_writer(|writer| writer.mark_closed(counter))
    }

    /// Locks the writer and calls `change` with it. An error of `change` poisons the commit queue.
    fn with_writer<R>(&self, change: impl FnOnce(&mut Writer) -> io::Result<R>) -> Result<R> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        let outcome = change(&mut writer);
        self.reservations.update(writer.free_space(), 0);
        outcome.map_err(|error| self.poison_with(error))
    }
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
        // The copies of all live records below the head were written before `needed_from` was raised.
        let head = self.needed_from.load(Ordering::Acquire);
        let mut writer = self.writer.lock();
        let placement = writer.write(batch, head)?;
        // A slot that is filled ahead counts as free only after a sync.
        let is_scarce = self.reservations.update(writer.free_space(), batch.reserved_bytes);
        if is_scarce && let Some(number) = writer.slots_mut().grow_ahead(batch.frame.len() as u64) {
            self.slot_awaits_sync.store(number + 1, Ordering::Release);
        }
        Ok(placement)
    }

    fn sync_written(&self) -> io::Result<()> {
        let filled_slot = self.slot_awaits_sync.swap(0, Ordering::AcqRel).checked_sub(1);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.log_position.sync(&*self.storage)?;
        if let Some(number) = filled_slot {
            // Do not wait for the writer's lock. The thread that holds it may sync three times to switch segments, and
            // every caller that waits for this sync would wait for those syncs, too. If the switch does not confirm the
            // slot, the next sync does.
            if let Some(mut writer) = self.writer.try_lock() {
                writer.slots_mut().confirm_growth_of(number);
                self.reservations.update(writer.free_space(), 0);
            } else {
                let awaits = &self.slot_awaits_sync;
                let _ = awaits.compare_exchange(0, number + 1, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
