//! Visits the records of a segment that is being retired, one by one: moves each live record and drops each dead one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::StoreClock;
use crate::engine::records::{IndexEntry, Records};
use crate::engine::write::{Change, Effect, EffectKind, WritePath};
use crate::error::{Error, Result};
use crate::flights::{FlightGuard, Flights};
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record};
use crate::hash::{ByHash, Domain};
use crate::index::Address;
use crate::log::commit::{Ticket, Until, record_cost_bytes};
use crate::log::largest_carried_bytes;
use crate::log::reservations::ReservationClass;
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, RecordSize, Retirement, lost_liveness, retirement};

/// A copy of a record that was appended and may not be written yet.
#[derive(Debug)]
struct Move {
    /// The hash of the key whose flight covers the move.
    flight_hash: u128,
    effect: Effect,
    ticket: Ticket,
}

/// Moves that may not be written yet, and the flights of their keys.
///
/// A flight is entered once and covers every record that is moved under it: those of a key's operation and of all its steps.
/// If each record needed the flight for itself, a piece could move only one record of a job.
#[derive(Debug, Default)]
#[must_use = "the segment must not be retired before the moves are published"]
pub(super) struct Moves<'a> {
    flights: HashMap<u128, FlightGuard<'a>, ByHash>,
    moves: Vec<Move>,
}

impl Moves<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }
}

/// The outcome of visiting one footer entry of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Visit {
    /// The record is not the last one of its key or step, or the step's operation has ended.
    Superseded,
    /// The record was removed from the index. `has_expired` is set if it completed an operation whose retention has
    /// passed.
    Dropped { has_expired: bool },
    /// Another thread is changing the key. The entry has to be visited again.
    InFlight,
    /// A copy of the record with this length was appended.
    Moved { bytes: u64 },
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

    /// Appends a copy of the record of `entry` if it is live, and adds that to `moves`, or removes the record from the index
    /// if it is dead.
    pub(super) fn visit<'a>(
        &'a self,
        moves: &mut Moves<'a>,
        segment: &FullSegment,
        entry: &FooterEntry,
    ) -> Result<Visit> {
        let log = self.records.log();
        let address = log.address(segment, entry)?;
        // The thread that appended this record holds the key's flight until the index points to the record. So while
        // the flight is held, a record that is not in the index may be about to enter it. Retiring the segment then
        // would leave the index pointing into a free slot.
        let takes_flight = !planted(Bug::MoveWithoutFlight);
        let flight_hash = entry.flight_hash();
        let is_held = moves.flights.contains_key(&flight_hash);
        if takes_flight && !is_held && self.flights.is_changing(flight_hash) {
            return Ok(Visit::InFlight);
        }
        let revives = planted(Bug::MessageOutlivesAcknowledgement) && entry.kind == Kind::Message;
        if !self.points_to(entry, address) && !revives {
            return Ok(Visit::Superseded);
        }
        let entered = match is_held {
            true => None,
            false if takes_flight => self.flights.try_enter(flight_hash),
            false => self.flights.barge_in(flight_hash),
        };
        let Some(flight) = entered.as_ref().or_else(|| moves.flights.get(&flight_hash)) else {
            return Ok(Visit::InFlight);
        };
        if !self.points_to(entry, address) && !revives {
            return Ok(Visit::Superseded);
        }
        let visited = Visited { entry, address, flight, now_ms: self.clock.now_ms() };
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
            Fate::Move(effect, ticket) => {
                let bytes = effect.size.length_bytes;
                if let Some(entered) = entered {
                    moves.flights.insert(flight_hash, entered);
                }
                moves.moves.push(Move { flight_hash, effect, ticket });
                Ok(Visit::Moved { bytes })
            }
            Fate::Drop { size, has_expired } => {
                self.records.index().remove(entry.hash, address);
                self.records.unreadable().remove(address);
                log.space_usage().mark_dead(&size);
                flight.note_change();
                Ok(Visit::Dropped { has_expired })
            }
        }
    }

    /// Whether the record of `entry` is live, as far as the index or the table of unfinished operations tells.
    fn points_to(&self, entry: &FooterEntry, address: Address) -> bool {
        let is_step = entry.kind.domain() == Some(Domain::Step);
        if is_step && planted(Bug::LiveStepDropped) {
            return false;
        }
        is_step && planted(Bug::DeadStepKept) || self.records.points_to(entry, address)
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
        let (replaced, kind) = match entry.kind.domain() {
            Some(Domain::Step) => {
                (None, EffectKind::StepMoved { parent: entry.parent_hash(), from: address })
            }
            // A message that is acknowledged is not in the index. Only a planted bug moves one.
            Some(Domain::Message) if !self.points_to(entry, address) => (None, EffectKind::Moved),
            _ => (Some(IndexEntry { address, size: old_size }), EffectKind::Moved),
        };
        let effect = Effect { hash: entry.hash, size: record.size, time_ms: now_ms, replaced, kind };
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

    /// Waits until the copies are written, and points the index or the steps to them. Returns the length of those for which
    /// that succeeded, and the first error.
    pub(super) fn publish(&self, moves: &Moves<'_>) -> (u64, Result<()>) {
        let mut bytes = 0;
        for Move { flight_hash, effect, ticket } in &moves.moves {
            // Always there: a move is added together with its flight.
            let Some(flight) = moves.flights.get(flight_hash) else { continue };
            if let Err(error) = self.write.finish_along(effect, flight, ticket) {
                return (bytes, Err(error));
            }
            bytes += effect.size.length_bytes;
        }
        (bytes, Ok(()))
    }
}
