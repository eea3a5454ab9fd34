//! Giving space back: the oldest segment is retired, record by record, paid for by those who append.
//!
//! What is live in it is appended again under its key's flight, with its version, and the index is told when the copy is
//! written; what is dead leaves the index. Then the log does not need the segment any more. One thread at a time is
//! at it; the others leave what they owe.
//!
//! A record that cannot be read is carried along as it is, so that it neither keeps its segment from being retired nor is
//! forgotten. Only where the footer is damaged as well does nobody know whose it was; then reclaiming stops, and says so.

mod compact;
mod count;

pub use compact::Compaction;
use count::Count;

use super::{Engine, largest_carried_bytes};
use crate::error::{Error, Result};
use crate::flights::FlightGuard;
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record, encoded_bytes};
use crate::index::Address;
use crate::log::commit::{Ticket, Until, record_cost_bytes};
use crate::log::reservations::ReservationClass;
use crate::log::space_usage::SpaceTotals;
use crate::log::writer::FullSegment;
use crate::planted::{Bug, planted};
use crate::record::{Liveness, RecordSize, Retirement, lost_liveness, retirement};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// How many bytes of the oldest segment an appended byte pays for. Two: the segments must be left behind faster
/// than they are filled.
const VISITED_PER_BYTE: u64 = 2;
/// The most that one append visits, whatever is owed: its caller waits for it.
const PIECE_BYTES: u64 = 64 << 10;
/// The same for those who have nothing else to do.
const LARGE_PIECE_BYTES: u64 = 1 << 20;
/// How many bytes are owed before anybody looks whether there is something to retire: not every append has to ask.
const LOOK_BYTES: u64 = 32 << 10;
/// A pass is begun when more than one byte in this many is dead.
const DEAD_SHARE: u64 = 4;

/// The segment that is being retired.
#[derive(Debug)]
struct Current {
    sequence: u64,
    segment: FullSegment,
    entries: Vec<FooterEntry>,
    next: usize,
    /// Entries whose keys were in flight when they were visited.
    again: Vec<FooterEntry>,
    moved_bytes: u64,
}

impl Current {
    fn take_note<'a>(&mut self, moves: &mut Vec<Move<'a>>, moved: Move<'a>) {
        self.moved_bytes += moved.new_size.length_bytes;
        moves.push(moved);
    }

    fn is_done(&self) -> bool {
        self.next == self.entries.len() && self.again.is_empty()
    }
}

/// One walk over the segments that were there when it began.
#[derive(Debug, Clone, Copy)]
struct Pass {
    last: u64,
    /// What had been freed when it began.
    freed_before_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    pass: Option<Pass>,
    /// No pass is begun before this many bytes are dead: the last one gained nothing.
    not_before_dead_bytes: u64,
    /// What was dead when that was last counted for a caller who wanted room, and found not to be enough.
    last_count: Option<Count>,
}

#[derive(Debug)]
pub(super) struct Reclaim {
    state: Mutex<State>,
    /// There was a pass when somebody last looked.
    is_retiring: AtomicBool,
    /// The oldest segment could not be read when somebody last tried.
    is_stopped: AtomicBool,
    owed_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    /// Keys that were dropped because their retention had passed. Changed with the state locked, as are the moved bytes.
    expired_keys: AtomicU64,
    /// Of the log, net of what was moved.
    freed_bytes: AtomicU64,
    segments: AtomicU64,
}

impl Reclaim {
    pub(super) fn new() -> Reclaim {
        Reclaim {
            state: Mutex::default(),
            is_retiring: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            owed_bytes: AtomicU64::new(0),
            moved_bytes: AtomicU64::new(0),
            expired_keys: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
        }
    }
}

/// A record that has been appended again and waits to be written.
struct Move<'a> {
    flight: FlightGuard<'a>,
    hash: u128,
    old: Address,
    old_size: RecordSize,
    new_size: RecordSize,
    ticket: Ticket,
}

/// Moves under way. Holds the retiring to itself, so that a segment is not given up while its last records travel.
pub(super) struct Piece<'a> {
    state: MutexGuard<'a, State>,
    moves: Vec<Move<'a>>,
}

/// What became of one entry.
#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
enum Visit<'a> {
    Nothing,
    InFlight,
    Moved(Move<'a>),
}

/// What becomes of a record that the index points to.
enum Fate {
    Dropped { size: RecordSize, has_expired: bool },
    Appended { old_size: RecordSize, new_size: RecordSize, ticket: Ticket },
}

impl Engine {
    /// Appends a piece of moved records behind a record of `appended_bytes`, if there is anything to retire and
    /// nobody else is at it. The piece must be finished after the record has been waited for.
    pub(super) fn reclaim_along(&self, appended_bytes: u64) -> Option<Piece<'_>> {
        let owes = appended_bytes * VISITED_PER_BYTE;
        let owed = self.reclaim.owed_bytes.fetch_add(owes, Ordering::Relaxed) + owes;
        if owed < LOOK_BYTES && !self.reclaim.is_retiring.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.reclaim.state.try_lock()?;
        let is_retiring = state.pass.is_some() || self.begin_pass_if_worth_it(&mut state);
        self.reclaim.is_retiring.store(is_retiring, Ordering::Relaxed);
        if !is_retiring {
            // Nothing is owed for what was written while there was nothing to retire.
            self.reclaim.owed_bytes.store(0, Ordering::Relaxed);
            return None;
        }
        // Looked at again under the lock, where alone it is lowered: another thread may have paid, or been let off.
        let budget = self.reclaim.owed_bytes.load(Ordering::Relaxed).min(PIECE_BYTES);
        self.reclaim.owed_bytes.fetch_sub(budget, Ordering::Relaxed);
        match self.visit(&mut state, budget) {
            Ok(moves) => Some(Piece { state, moves }),
            Err(error) => {
                self.note_stop(&mut state, &error);
                None
            }
        }
    }

    /// Waits for the moved records, tells the index, and gives up the segment if it was the last of them.
    pub(super) fn finish_piece(&self, piece: Piece<'_>) -> Result<()> {
        let Piece { mut state, moves } = piece;
        self.publish_moves(&mut state, moves)
    }

    fn publish_moves(&self, state: &mut State, moves: Vec<Move<'_>>) -> Result<()> {
        for moved in moves {
            let address = self.log.wait(&moved.ticket)?;
            let replaced = self.index.replace(moved.hash, moved.old, address);
            debug_assert!(replaced, "the flight keeps the entry where it is");
            self.unreadable.replace(moved.old, address);
            self.log.space_usage().mark_dead(&moved.old_size);
            self.log.space_usage().add(&moved.new_size, self.clock.now_ms());
            self.reclaim.moved_bytes.fetch_add(moved.new_size.length_bytes, Ordering::Relaxed);
            drop(moved.flight);
        }
        self.give_up_if_empty(state);
        Ok(())
    }

    fn begin_pass_if_worth_it(&self, state: &mut State) -> bool {
        let totals = self.log.space_usage().totals(self.clock.now_ms());
        if totals.dead_bytes * DEAD_SHARE <= totals.total_bytes {
            return false;
        }
        let dead_log_bytes = self.dead_log_bytes_of(totals);
        // Only whole segments come free, so less than one is not worth moving anything.
        let worth_it =
            dead_log_bytes > self.log.segment_bytes() && dead_log_bytes >= state.not_before_dead_bytes;
        worth_it && self.begin_pass(state)
    }

    fn pass_to(&self, last: u64) -> Pass {
        Pass { last, freed_before_bytes: self.freed_bytes() }
    }

    fn freed_bytes(&self) -> u64 {
        self.reclaim.freed_bytes.load(Ordering::Relaxed)
    }

    /// How many bytes of the log are estimated to come free, were it walked over now: the dead share of its full
    /// segments. Not the bytes of dead records, because frame headers and footers come free with them.
    fn dead_log_bytes(&self) -> u64 {
        self.dead_log_bytes_of(self.log.space_usage().totals(self.clock.now_ms()))
    }

    fn dead_log_bytes_of(&self, totals: SpaceTotals) -> u64 {
        let (head, tail) = self.log.span();
        let full_bytes = u128::from((tail - head) * self.log.segment_bytes());
        let dead_bytes = full_bytes * u128::from(totals.dead_bytes) / u128::from(totals.total_bytes.max(1));
        u64::try_from(dead_bytes).unwrap_or(u64::MAX)
    }

    /// False if there is no full segment to walk over.
    fn begin_pass(&self, state: &mut State) -> bool {
        let (head, tail) = self.log.span();
        if head < tail {
            state.pass = Some(self.pass_to(tail - 1));
        }
        head < tail
    }

    /// Visits records of the oldest segments until `budget` bytes of them have been seen or the pass is over. An error is
    /// told only if nothing was moved before it: what was must be waited for, and the next visit meets it again.
    fn visit(&self, state: &mut State, budget: u64) -> Result<Vec<Move<'_>>> {
        let mut moves = Vec::new();
        let mut seen_bytes = 0;
        while seen_bytes < budget && self.has_current(state)? {
            let Some(current) = &mut state.current else { break };
            let outcome = match current.entries.get(current.next) {
                Some(entry) => {
                    seen_bytes += entry.length;
                    let entry = *entry;
                    self.visit_one(&current.segment, &entry).map(|visit| {
                        // Only now: an entry that could not be visited must not be passed over.
                        current.next += 1;
                        match visit {
                            Visit::Nothing => {}
                            Visit::InFlight => current.again.push(entry),
                            Visit::Moved(moved) => current.take_note(&mut moves, moved),
                        }
                    })
                }
                None if !current.again.is_empty() => {
                    // The rest were in flight. One more look each; what still is waits for the next piece.
                    seen_bytes = budget;
                    self.visit_again(current, &mut moves)
                }
                None if moves.is_empty() => {
                    self.give_up_if_empty(state);
                    Ok(())
                }
                // The segment is given up when its last records have been written.
                None => break,
            };
            match outcome {
                Ok(()) => {}
                Err(error) if moves.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(moves)
    }

    fn visit_again<'a>(&'a self, current: &mut Current, moves: &mut Vec<Move<'a>>) -> Result<()> {
        let mut at = 0;
        while let Some(entry) = current.again.get(at).copied() {
            match self.visit_one(&current.segment, &entry)? {
                Visit::InFlight => at += 1,
                Visit::Nothing => {
                    current.again.swap_remove(at);
                }
                Visit::Moved(moved) => {
                    current.again.swap_remove(at);
                    current.take_note(moves, moved);
                }
            }
        }
        Ok(())
    }

    /// Makes sure that a segment of the pass is being retired. False if the pass is over.
    fn has_current(&self, state: &mut State) -> Result<bool> {
        if state.current.is_some() {
            return Ok(true);
        }
        let Some(pass) = state.pass else { return Ok(false) };
        let (sequence, _) = self.log.span();
        let found = if sequence <= pass.last { self.log.full_segment(sequence)? } else { None };
        let Some((segment, entries)) = found else {
            self.end_pass(state, pass);
            return Ok(false);
        };
        state.current =
            Some(Current { sequence, segment, entries, next: 0, again: Vec::new(), moved_bytes: 0 });
        Ok(true)
    }

    /// Reclaiming could not go on. Damage and errors of the disk are told, once until it goes on again; that there is no
    /// room, or that the store is poisoned, is told by whoever meets it.
    fn note_stop(&self, state: &mut State, error: &Error) {
        if !matches!(error, Error::Corrupt { .. } | Error::Io { .. }) {
            return;
        }
        // Not again with every append: it reads a whole segment to find out that it cannot.
        state.pass = None;
        state.not_before_dead_bytes = self.dead_log_bytes() + self.log.segment_bytes();
        if !self.reclaim.is_stopped.swap(true, Ordering::Relaxed) {
            crate::events::reclaiming_stopped(self.path(), error);
        }
    }

    /// Whether reclaiming could not go on when it was last tried.
    pub(crate) fn reclaiming_stopped(&self) -> bool {
        self.reclaim.is_stopped.load(Ordering::Relaxed)
    }

    fn end_pass(&self, state: &mut State, pass: Pass) {
        state.pass = None;
        let gained = self.freed_bytes() - pass.freed_before_bytes >= self.log.segment_bytes();
        // An estimate that promises more than a whole walk gained would begin the next walk at once, for ever.
        state.not_before_dead_bytes =
            if gained { 0 } else { self.dead_log_bytes() + self.log.segment_bytes() };
    }

    fn visit_one(&self, segment: &FullSegment, entry: &FooterEntry) -> Result<Visit<'_>> {
        let address = self.log.address(segment, entry)?;
        // Whoever appended this record holds the flight until the index says so. While it is held, "not in the index"
        // may mean "not yet", and, of a forgotten key, "no longer" may not be true yet: giving up the segment would
        // leave the index pointing into a free slot.
        let takes_flight = !planted(Bug::MoveWithoutFlight);
        if takes_flight && self.flights.is_changing(entry.hash) {
            return Ok(Visit::InFlight);
        }
        if !self.index.holds(entry.hash, address) {
            return Ok(Visit::Nothing);
        }
        let flight =
            if takes_flight { self.flights.try_enter(entry.hash) } else { self.flights.barge_in(entry.hash) };
        let Some(flight) = flight else { return Ok(Visit::InFlight) };
        if !self.index.holds(entry.hash, address) {
            return Ok(Visit::Nothing);
        }
        let now_ms = self.clock.now_ms();
        let read = self.log.reader().record(address, |place, record| {
            let old_size = RecordSize::of(record, place.length_bytes);
            match retirement(record, now_ms) {
                Retirement::Drop => {
                    let has_expired = record.carried_kind().unwrap_or(record.kind) == Kind::Completed;
                    Ok(Fate::Dropped { size: old_size, has_expired })
                }
                Retirement::Keep => self.append_again(record, entry.hash, old_size),
                // Nothing expires before the key any more, and must not be counted as if it did.
                Retirement::KeepWithoutResult => {
                    let value = record.value.without_result();
                    let kept = Record { value, result_expires_ms: record.key_expires_ms, ..*record };
                    self.append_again(&kept, entry.hash, old_size)
                }
            }
        });
        let fate = match read {
            Ok(fate) => fate?,
            Err(Error::Corrupt { .. }) => self.carry(entry, address, now_ms)?,
            Err(error) => return Err(error),
        };
        Ok(match fate {
            Fate::Appended { old_size, new_size, ticket } => {
                Visit::Moved(Move { flight, hash: entry.hash, old: address, old_size, new_size, ticket })
            }
            Fate::Dropped { size, has_expired } => {
                self.index.remove(entry.hash, address);
                self.reclaim.expired_keys.fetch_add(u64::from(has_expired), Ordering::Relaxed);
                self.unreadable.remove(address);
                self.log.space_usage().mark_dead(&size);
                flight.note_change();
                Visit::Nothing
            }
        })
    }

    /// Appends a live record again.
    fn append_again(&self, kept: &Record<'_>, hash: u128, old_size: RecordSize) -> Result<Fate> {
        let length = encoded_bytes(kept.key, &kept.value);
        let Some(reservation) =
            self.log.reserve_in_present_slots(record_cost_bytes(length), ReservationClass::Move)
        else {
            return Err(Error::Full {
                path: self.path().to_owned(),
                reason: "there is no room to move live records".into(),
            });
        };
        let ticket = self.log.append(kept, hash, reservation, Until::Written)?;
        Ok(Fate::Appended { old_size, new_size: RecordSize::of(kept, length), ticket })
    }

    /// Appends the bytes of a live record that cannot be read, as what they are. Its key must not look as if nothing had
    /// ever been known of it.
    fn carry(&self, entry: &FooterEntry, address: Address, now_ms: u64) -> Result<Fate> {
        let old_size = RecordSize::listed(entry);
        let liveness = lost_liveness(Some(entry.kind), entry.key_expires_ms, now_ms);
        if liveness == Liveness::Gone || planted(Bug::UnreadableDropped) {
            return Ok(Fate::Dropped { size: old_size, has_expired: entry.kind == Kind::Completed });
        }
        self.note_unreadable(entry.hash, address);
        let most = largest_carried_bytes(self.log.segment_bytes());
        let mut bytes = self.log.reader().unchecked(address, entry.length.min(most))?;
        if planted(Bug::UnreadableRechecksummed)
            && let Ok(record) = Record::decode_regardless(&mut bytes)
        {
            return self.append_again(&record, entry.hash, old_size);
        }
        self.append_again(&entry.carrying(&bytes, now_ms), entry.hash, old_size)
    }

    /// Gives up the segment if every record in it has been visited and none is still in flight. No moves may be under way.
    fn give_up_if_empty(&self, state: &mut State) {
        if !state.current.as_ref().is_some_and(Current::is_done) {
            return;
        }
        let Some(current) = state.current.take() else { return };
        self.reclaim.is_stopped.store(false, Ordering::Relaxed);
        self.log.retire(current.sequence, current.segment.record_bytes);
        self.reclaim.segments.fetch_add(1, Ordering::Relaxed);
        crate::events::reclaimed(
            self.path(),
            current.sequence,
            current.segment.record_bytes,
            current.moved_bytes,
        );
        let gained = current.segment.record_bytes.saturating_sub(current.moved_bytes);
        let share = u128::from(self.log.segment_bytes()) * u128::from(gained)
            / u128::from(current.segment.record_bytes.max(1));
        let freed_bytes = if current.segment.record_bytes == 0 {
            self.log.segment_bytes()
        } else {
            u64::try_from(share).unwrap_or(0)
        };
        self.reclaim.freed_bytes.fetch_add(freed_bytes, Ordering::Relaxed);
    }

    /// Retires the oldest segment now. False if the pass is over.
    fn retire_one(&self, state: &mut MutexGuard<'_, State>) -> Result<bool> {
        let before = self.reclaim.segments.load(Ordering::Relaxed);
        while self.reclaim.segments.load(Ordering::Relaxed) == before {
            let visited = self.has_current(state).and_then(|is_there| {
                if is_there { self.visit(state, LARGE_PIECE_BYTES).map(Some) } else { Ok(None) }
            });
            let Some(moves) = visited.inspect_err(|error| self.note_stop(state, error))? else {
                return Ok(false);
            };
            let only_flights_left = moves.is_empty();
            self.publish_moves(state, moves)?;
            if only_flights_left {
                // Each is held for the length of a write by a thread that does not wait for this one; there is nothing to
                // be told by.
                crate::sync::yield_now();
            }
        }
        Ok(true)
    }

    /// Bytes of live records that were moved, and segments that were retired, since the store was opened.
    pub(crate) fn reclaimed(&self) -> (u64, u64) {
        (self.reclaim.moved_bytes.load(Ordering::Relaxed), self.reclaim.segments.load(Ordering::Relaxed))
    }
}
