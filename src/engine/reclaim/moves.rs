//! Visits the records of a segment that is being retired, one by one: moves each live record and drops each dead one.

use std::sync::Arc;

use crate::clock::StoreClock;
use crate::engine::records::{IndexEntry, Records};
use crate::engine::write::{Change, Effect, EffectKind, WritePath};
use crate::error::{Error, Result};
use crate::flights::{FlightGuard, Flights};
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record};
use crate::index::Address;
use crate::log::commit::{Ticket, Until, record_cost_bytes};
use crate::log::largest_carried_bytes;
use crate::log::reservations::ReservationClass;
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, RecordSize, Retirement, lost_liveness, retirement};

/// A copy of a record that was appended and may not be written yet. Holds the key's flight.
#[derive(Debug)]
#[must_use = "the segment must not be retired before the move is published"]
pub(super) struct Move<'a> {
    flight: FlightGuard<'a>,
    effect: Effect,
    ticket: Ticket,
}

impl Move<'_> {
    /// The length of the copy.
    pub(super) fn bytes(&self) -> u64 {
        self.effect.size.length_bytes
    }
}

/// The outcome of visiting one footer entry of a segment.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is destructured at once")]
pub(super) enum Visit<'a> {
    /// The index does not point to the record, because a later record replaced it.
    Superseded,
    /// The record was removed from the index. `has_expired` is set if it completed an operation whose retention has
    /// passed.
    Dropped { has_expired: bool },
    /// Another thread is changing the key. The entry has to be visited again.
    InFlight,
    /// A copy of the record was appended.
    Moved(Move<'a>),
}

/// What to do with a record that the index points to.
enum Fate {
    /// Remove it from the index.
    Drop { size: RecordSize, has_expired: bool },
    /// Point the index to the copy, which was appended.
    Move(Effect, Ticket),
}

/// A record of the oldest segment that the index points to.
#[derive(Clone, Copy)]
struct Visited<'a> {
    entry: &'a FooterEntry,
    address: Address,
    flight: &'a FlightGuard<'a>,
    now_ms: u64,
}

/// Moves records. Has access only to what a move may touch: the records, the write path, the flights and the clock.
#[derive(Debug)]
pub(super) struct Mover {
    records: Arc<Records>,
    write: Arc<WritePath>,
    flights: Arc<Flights>,
    clock: Arc<StoreClock>,
}

impl Mover {
    pub(super) fn new(
        records: Arc<Records>,
        write: Arc<WritePath>,
        flights: Arc<Flights>,
        clock: Arc<StoreClock>,
    ) -> Mover {
        Mover { records, write, flights, clock }
    }

    /// Appends a copy of the record of `entry` if it is live, or removes it from the index if it is dead.
    pub(super) fn visit(&self, segment: &FullSegment, entry: &FooterEntry) -> Result<Visit<'_>> {
        let log = self.records.log();
        let address = log.address(segment, entry)?;
        // The thread that appended this record holds the key's flight until the index points to the record. So while
        // the flight is held, a record that is not in the index may be about to enter it. Retiring the segment then
        // would leave the index pointing into a free slot.
        let takes_flight = !planted(Bug::MoveWithoutFlight);
        if takes_flight && self.flights.is_changing(entry.hash) {
            return Ok(Visit::InFlight);
        }
        if !self.records.index().holds(entry.hash, address) {
            return Ok(Visit::Superseded);
        }
        let flight =
            if takes_flight { self.flights.try_enter(entry.hash) } else { self.flights.barge_in(entry.hash) };
        let Some(flight) = flight else { return Ok(Visit::InFlight) };
        if !self.records.index().holds(entry.hash, address) {
            return Ok(Visit::Superseded);
        }
        let visited = Visited { entry, address, flight: &flight, now_ms: self.clock.now_ms() };
        let read = log.reader().record(address, |place, record| {
            let old_size = RecordSize::of(record, place.length_bytes);
            match retirement(record, visited.now_ms) {
                Retirement::Drop => {
                    let has_expired = record.carried_kind().unwrap_or(record.kind) == Kind::Completed;
                    Ok(Fate::Drop { size: old_size, has_expired })
                }
                Retirement::Keep => self.append_again(visited, record, old_size),
                // The tombstone has no result, so its result expiry is set to that of the key. Space usage would
                // otherwise count a share of it as expired.
                Retirement::KeepWithoutResult => {
                    let value = record.value.without_result();
                    let kept = Record { value, result_expires_ms: record.key_expires_ms, ..*record };
                    self.append_again(visited, &kept, old_size)
                }
            }
        });
        let fate = match read {
            Ok(fate) => fate?,
            Err(Error::Corrupt { .. }) => self.carry(visited)?,
            Err(error) => return Err(error),
        };
        match fate {
            Fate::Move(effect, ticket) => Ok(Visit::Moved(Move { flight, effect, ticket })),
            Fate::Drop { size, has_expired } => {
                self.records.index().remove(entry.hash, address);
                self.records.unreadable().remove(address);
                log.space_usage().mark_dead(&size);
                flight.note_change();
                Ok(Visit::Dropped { has_expired })
            }
        }
    }

    /// Appends `kept`, the new form of a live record.
    fn append_again(&self, visited: Visited<'_>, kept: &Record<'_>, old_size: RecordSize) -> Result<Fate> {
        let Visited { entry, address, flight, now_ms } = visited;
        let log = self.records.log();
        let record = log.encode(kept, entry.hash);
        let cost_bytes = record_cost_bytes(record.size.length_bytes);
        let Some(reservation) = log.reserve_in_present_slots(cost_bytes, ReservationClass::Move) else {
            return Err(Error::Full {
                path: self.records.path().to_owned(),
                reason: "there is no space to move live records".into(),
            });
        };
        let effect = Effect {
            hash: entry.hash,
            size: record.size,
            time_ms: now_ms,
            replaced: Some(IndexEntry { address, size: old_size }),
            kind: EffectKind::Moved,
        };
        let change = Change { record, effect, flight };
        let ticket = self.write.append(std::slice::from_ref(&change), reservation, Until::Written)?;
        Ok(Fate::Move(change.effect, ticket))
    }

    /// Appends the bytes of a record that cannot be read, inside a record that marks them as unreadable. Drops the
    /// record instead if the footer shows that it is dead. A live one must be kept, or its operation could run again.
    fn carry(&self, visited: Visited<'_>) -> Result<Fate> {
        let Visited { entry, address, now_ms, .. } = visited;
        let old_size = RecordSize::listed(entry);
        let liveness = lost_liveness(Some(entry.kind), entry.key_expires_ms, now_ms);
        if liveness == Liveness::Gone || planted(Bug::UnreadableDropped) {
            return Ok(Fate::Drop { size: old_size, has_expired: entry.kind == Kind::Completed });
        }
        self.records.note_unreadable(entry.hash, address);
        let max_bytes = largest_carried_bytes(self.records.log().segment_bytes());
        let mut bytes = self.records.log().reader().unchecked(address, entry.length.min(max_bytes))?;
        if planted(Bug::UnreadableRechecksummed)
            && let Ok(record) = Record::decode_regardless(&mut bytes)
        {
            return self.append_again(visited, &record, old_size);
        }
        self.append_again(visited, &entry.carrying(&bytes, now_ms), old_size)
    }

    /// Waits until the copy is written, and points the index to it.
    pub(super) fn publish(&self, moved: &Move<'_>) -> Result<()> {
        self.write.finish_along(&moved.effect, &moved.flight, &moved.ticket)
    }
}
