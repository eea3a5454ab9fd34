//! Walks over the oldest segments and retires them, a piece at a time.

use std::sync::Arc;

use super::count::Count;
use super::moves::{Move, Mover, Visit};
use crate::clock::StoreClock;
use crate::engine::admission::Admission;
use crate::engine::path_check::PathCheck;
use crate::engine::records::Records;
use crate::engine::write::WritePath;
use crate::error::{Error, Result};
use crate::flights::Flights;
use crate::format::footer::FooterEntry;
use crate::log::Log;
use crate::log::space_usage::SpaceTotals;
use crate::log::writer::FullSegment;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// How many bytes of the oldest segment an appended byte pays for. Two, because segments must be retired faster than they
/// are filled.
const VISITED_PER_BYTE: u64 = 2;
/// The most that one append visits, whatever is owed: its caller waits for it.
const PIECE_BYTES: u64 = 64 << 10;
/// The same for a caller that only reclaims.
const LARGE_PIECE_BYTES: u64 = 1 << 20;
/// How many bytes are owed before a thread looks for something to retire: not every append has to look.
const LOOK_BYTES: u64 = 32 << 10;
/// A pass begins when more than one byte in this many is dead.
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
    fn is_done(&self) -> bool {
        self.next == self.entries.len() && self.again.is_empty()
    }
}

/// One walk over the segments that existed when it began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// The sequence of the last of them.
    last: u64,
    /// [`Reclaim::freed_bytes`] when it began.
    freed_before_bytes: u64,
}

/// What the thread that reclaims has locked.
#[derive(Debug, Default)]
pub(super) struct State {
    current: Option<Current>,
    pub(super) pass: Option<Pass>,
    /// No pass begins before this many bytes are dead: the last one gained nothing.
    pub(super) not_before_dead_bytes: u64,
    /// The last count for a caller that found the store full, if it was not enough.
    pub(super) last_count: Option<Count>,
}

/// Reclaims the space of one store.
#[derive(Debug)]
pub(in crate::engine) struct Reclaim {
    pub(super) records: Arc<Records>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) admission: Arc<Admission>,
    pub(super) path_check: Arc<PathCheck>,
    mover: Mover,
    pub(super) state: Mutex<State>,
    /// There was a pass when a thread last looked.
    is_retiring: AtomicBool,
    /// The oldest segment could not be read when a thread last tried.
    is_stopped: AtomicBool,
    owed_bytes: AtomicU64,
    /// This and the next: changed with the state locked only.
    moved_bytes: AtomicU64,
    /// Keys that were dropped because their retention had passed.
    expired_keys: AtomicU64,
    /// Bytes of the log that came free, less what was moved.
    freed_bytes: AtomicU64,
    /// Segments that were retired.
    segments: AtomicU64,
}

/// Moves that are not written yet. Holds the lock of reclaiming, so that no segment is given up while its last records are on
/// their way.
#[derive(Debug)]
#[must_use = "the moves must be published after the caller's own record"]
pub(in crate::engine) struct Piece<'a> {
    state: MutexGuard<'a, State>,
    moves: Vec<Move<'a>>,
}

impl Reclaim {
    pub(in crate::engine) fn new(
        records: Arc<Records>,
        write: Arc<WritePath>,
        flights: Arc<Flights>,
        clock: Arc<StoreClock>,
        admission: Arc<Admission>,
        path_check: Arc<PathCheck>,
    ) -> Reclaim {
        Reclaim {
            mover: Mover::new(Arc::clone(&records), write, flights, Arc::clone(&clock)),
            records,
            clock,
            admission,
            path_check,
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

    pub(super) fn log(&self) -> &Log {
        self.records.log()
    }

    /// Whether the oldest segment could not be read when a thread last tried to retire it.
    pub(in crate::engine) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Keys that were dropped because their retention had passed, since the store was opened.
    pub(super) fn expired_keys(&self) -> u64 {
        self.expired_keys.load(Ordering::Relaxed)
    }

    /// Bytes of live records that were moved, since the store was opened.
    pub(in crate::engine) fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::Relaxed)
    }

    /// Segments that were retired, since the store was opened.
    pub(in crate::engine) fn segments(&self) -> u64 {
        self.segments.load(Ordering::Relaxed)
    }

    pub(super) fn freed_bytes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed)
    }

    /// Appends a piece of moved records behind a record of `appended_bytes`, if there is a segment to retire and no other
    /// thread does it. The piece must be published after the record has been waited for.
    pub(in crate::engine) fn append_along(&self, appended_bytes: u64) -> Option<Piece<'_>> {
        let owes = appended_bytes * VISITED_PER_BYTE;
        let owed = self.owed_bytes.fetch_add(owes, Ordering::Relaxed) + owes;
        if owed < LOOK_BYTES && !self.is_retiring.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.try_lock()?;
        let is_retiring = state.pass.is_some() || self.begin_pass_if_worth_it(&mut state);
        self.is_retiring.store(is_retiring, Ordering::Relaxed);
        if !is_retiring {
            // What was written while there was nothing to retire owes nothing.
            self.owed_bytes.store(0, Ordering::Relaxed);
            return None;
        }
        // Read again under the lock, the only place where it is lowered: another thread may have paid meanwhile.
        let budget = self.owed_bytes.load(Ordering::Relaxed).min(PIECE_BYTES);
        self.owed_bytes.fetch_sub(budget, Ordering::Relaxed);
        match self.visit(&mut state, budget) {
            Ok(moves) => Some(Piece { state, moves }),
            Err(error) => {
                self.note_stop(&mut state, &error);
                None
            }
        }
    }

    /// Waits for the moved records, points the index to them, and gives up the segment if they were its last.
    pub(in crate::engine) fn publish(&self, piece: Piece<'_>) -> Result<()> {
        let Piece { mut state, moves } = piece;
        self.publish_moves(&mut state, moves)
    }

    fn publish_moves(&self, state: &mut State, moves: Vec<Move<'_>>) -> Result<()> {
        for moved in moves {
            self.mover.publish(&moved)?;
            self.moved_bytes.fetch_add(moved.bytes(), Ordering::Relaxed);
        }
        self.give_up_if_done(state);
        Ok(())
    }

    fn begin_pass_if_worth_it(&self, state: &mut State) -> bool {
        let totals = self.log().space_usage().totals(self.clock.now_ms());
        if totals.dead_bytes * DEAD_SHARE <= totals.total_bytes {
            return false;
        }
        let dead_log_bytes = self.dead_log_bytes_of(totals);
        // Only whole segments come free, so less than one is not worth a move.
        let is_worth_it =
            dead_log_bytes > self.log().segment_bytes() && dead_log_bytes >= state.not_before_dead_bytes;
        is_worth_it && self.begin_pass(state)
    }

    /// How many bytes of the log would come free, by estimate, if all full segments were retired now: their dead share. More
    /// than the bytes of dead records, because frame headers and footers come free with them.
    pub(super) fn dead_log_bytes(&self) -> u64 {
        self.dead_log_bytes_of(self.log().space_usage().totals(self.clock.now_ms()))
    }

    fn dead_log_bytes_of(&self, totals: SpaceTotals) -> u64 {
        let (head, tail) = self.log().span();
        let full_bytes = u128::from((tail - head) * self.log().segment_bytes());
        let dead_bytes = full_bytes * u128::from(totals.dead_bytes) / u128::from(totals.total_bytes.max(1));
        u64::try_from(dead_bytes).unwrap_or(u64::MAX)
    }

    /// Begins a pass over all full segments. False if there is none.
    pub(super) fn begin_pass(&self, state: &mut State) -> bool {
        let (head, tail) = self.log().span();
        if head < tail {
            self.begin_pass_to(state, tail - 1);
        }
        head < tail
    }

    /// Begins a pass over the segments up to this sequence.
    pub(super) fn begin_pass_to(&self, state: &mut State, last: u64) {
        state.pass = Some(Pass { last, freed_before_bytes: self.freed_bytes() });
    }

    fn end_pass(&self, state: &mut State, pass: Pass) {
        state.pass = None;
        let has_gained = self.freed_bytes() - pass.freed_before_bytes >= self.log().segment_bytes();
        // If the estimate exceeds what a whole pass gained, the next pass would begin at once, and so on for ever.
        state.not_before_dead_bytes =
            if has_gained { 0 } else { self.dead_log_bytes() + self.log().segment_bytes() };
    }

    /// Visits records of the oldest segments until it has seen `budget` bytes of them, or the pass is over. Returns an error
    /// only if nothing was moved before it: moves must be waited for, and the next visit meets the error again.
    fn visit(&self, state: &mut State, budget: u64) -> Result<Vec<Move<'_>>> {
        let mut moves = Vec::new();
        let mut seen_bytes = 0;
        while seen_bytes < budget && self.has_current(state)? {
            let Some(current) = &mut state.current else { break };
            let outcome = match current.entries.get(current.next) {
                Some(entry) => {
                    seen_bytes += entry.length;
                    let entry = *entry;
                    self.mover.visit(&current.segment, &entry).map(|visit| {
                        // Not before: an entry that could not be visited must not be passed over.
                        current.next += 1;
                        if !self.note_visit(current, &mut moves, visit) {
                            current.again.push(entry);
                        }
                    })
                }
                None if !current.again.is_empty() => {
                    // One more visit to each entry that was in flight. What still is in flight waits for the next piece.
                    seen_bytes = budget;
                    self.visit_again(current, &mut moves)
                }
                None if moves.is_empty() => {
                    self.give_up_if_done(state);
                    Ok(())
                }
                // The segment is given up when its last moves are written.
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
            let visit = self.mover.visit(&current.segment, &entry)?;
            if self.note_visit(current, moves, visit) {
                current.again.swap_remove(at);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// Takes note of a visit. False if the entry has to be visited again.
    fn note_visit<'a>(&self, current: &mut Current, moves: &mut Vec<Move<'a>>, visit: Visit<'a>) -> bool {
        match visit {
            Visit::InFlight => return false,
            Visit::Superseded => {}
            Visit::Dropped { has_expired } => {
                self.expired_keys.fetch_add(u64::from(has_expired), Ordering::Relaxed);
            }
            Visit::Moved(moved) => {
                current.moved_bytes += moved.bytes();
                moves.push(moved);
            }
        }
        true
    }

    /// Makes sure that a segment of the pass is being retired. False if the pass is over.
    pub(super) fn has_current(&self, state: &mut State) -> Result<bool> {
        if state.current.is_some() {
            return Ok(true);
        }
        let Some(pass) = state.pass else { return Ok(false) };
        let (sequence, _) = self.log().span();
        let found = if sequence <= pass.last { self.log().full_segment(sequence)? } else { None };
        let Some((segment, entries)) = found else {
            self.end_pass(state, pass);
            return Ok(false);
        };
        state.current =
            Some(Current { sequence, segment, entries, next: 0, again: Vec::new(), moved_bytes: 0 });
        Ok(true)
    }

    /// Ends the pass because of damage or an error of the disk, and emits an event, once until reclaiming goes on again. A
    /// full store and a poisoned one are reported by the calls that meet them.
    pub(super) fn note_stop(&self, state: &mut State, error: &Error) {
        if !matches!(error, Error::Corrupt { .. } | Error::Io { .. }) {
            return;
        }
        // Not tried again with every append: it takes reading a whole segment to find out.
        state.pass = None;
        state.not_before_dead_bytes = self.dead_log_bytes() + self.log().segment_bytes();
        if !self.is_stopped.swap(true, Ordering::Relaxed) {
            crate::events::reclaiming_stopped(self.records.path(), error);
        }
    }

    /// Gives up the segment if every record in it has been visited and none is in flight. No move may be unwritten.
    fn give_up_if_done(&self, state: &mut State) {
        if !state.current.as_ref().is_some_and(Current::is_done) {
            return;
        }
        let Some(current) = state.current.take() else { return };
        self.is_stopped.store(false, Ordering::Relaxed);
        let record_bytes = current.segment.record_bytes;
        self.log().retire(current.sequence, record_bytes);
        self.segments.fetch_add(1, Ordering::Relaxed);
        crate::events::reclaimed(self.records.path(), current.sequence, record_bytes, current.moved_bytes);
        let gained = record_bytes.saturating_sub(current.moved_bytes);
        let segment_bytes = self.log().segment_bytes();
        let share = u128::from(segment_bytes) * u128::from(gained) / u128::from(record_bytes.max(1));
        let freed_bytes = match record_bytes {
            0 => segment_bytes,
            _ => u64::try_from(share).unwrap_or(0),
        };
        self.freed_bytes.fetch_add(freed_bytes, Ordering::Relaxed);
    }

    /// Retires the oldest segment now. False if the pass is over.
    pub(super) fn retire_one(&self, state: &mut State) -> Result<bool> {
        let before = self.segments();
        while self.segments() == before {
            let visited = self.has_current(state).and_then(|is_there| {
                if is_there { self.visit(state, LARGE_PIECE_BYTES).map(Some) } else { Ok(None) }
            });
            let Some(moves) = visited.inspect_err(|error| self.note_stop(state, error))? else {
                return Ok(false);
            };
            let only_flights_left = moves.is_empty();
            self.publish_moves(state, moves)?;
            if only_flights_left {
                // Each flight is held for the length of a write, by a thread that does not wait for this one. Nothing
                // would wake this thread when it is left.
                crate::sync::yield_now();
            }
        }
        Ok(true)
    }
}
