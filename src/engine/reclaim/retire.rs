//! Visits the records of the oldest segments a piece at a time, and retires each segment when it is done.

use std::sync::Arc;

use super::count::Count;
use super::moves::{Mover, Moves, Visit};
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

/// The number of bytes of the oldest segment that are to be visited for each appended byte. More than one, because
/// segments must be retired faster than they are filled.
const VISITED_PER_BYTE: u64 = 2;
/// The maximum number of bytes that one append visits, even if more are owed, because its caller waits meanwhile.
const MAX_PIECE_BYTES: u64 = 64 << 10;
/// The maximum number of bytes in one piece of a call that does nothing but reclaim.
const MAX_LARGE_PIECE_BYTES: u64 = 1 << 20;
/// The number of owed bytes from which an append checks whether there is a segment to retire, so that not every append
/// does.
const MIN_OWED_BYTES: u64 = 32 << 10;
/// A pass begins when more than one byte in this many is dead.
const DEAD_SHARE: u64 = 4;

/// The segment that is being retired.
#[derive(Debug)]
struct Current {
    sequence: u64,
    segment: FullSegment,
    entries: Vec<FooterEntry>,
    /// The index in `entries` of the next one to visit.
    next: usize,
    /// Entries to visit again, because another thread was changing their keys.
    again: Vec<FooterEntry>,
    /// The bytes of this segment that were moved so far.
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
    /// The sequence of the last segment of the pass.
    last: u64,
    /// [`Reclaim::freed_bytes`] when the pass began.
    freed_before_bytes: u64,
}

/// The state of reclaiming, locked by the one thread that reclaims.
#[derive(Debug, Default)]
pub(super) struct State {
    current: Option<Current>,
    pub(super) pass: Option<Pass>,
    /// No pass begins on its own before this many bytes are dead, because the last one freed nothing or failed.
    pub(super) not_before_dead_bytes: u64,
    /// The last exact count for a caller that found the store full, if it found too few dead bytes.
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
    /// A pass was under way when an append last checked.
    is_retiring: AtomicBool,
    /// The oldest segment could not be read when a thread last tried to retire it.
    is_stopped: AtomicBool,
    /// The number of bytes that appends have yet to visit.
    owed_bytes: AtomicU64,
    /// The number of bytes of live records that were moved. Changed only with the state locked, as is the next field.
    moved_bytes: AtomicU64,
    /// The number of keys that were dropped because their retention had passed.
    expired_keys: AtomicU64,
    /// The number of bytes of the log that were freed, minus those that the moved records took.
    freed_bytes: AtomicU64,
    /// The number of segments that were retired.
    segments: AtomicU64,
}

/// Moves that may not be written yet. Holds the lock of [`State`], so that no segment is retired before its last moves
/// are published.
#[derive(Debug)]
#[must_use = "the moves must be published after the caller's own record is written"]
pub(in crate::engine) struct Piece<'a> {
    state: MutexGuard<'a, State>,
    moves: Moves<'a>,
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

    /// The number of keys that were dropped since the store was opened because their retention had passed.
    pub(super) fn expired_keys(&self) -> u64 {
        self.expired_keys.load(Ordering::Relaxed)
    }

    /// The number of bytes of live records that were moved since the store was opened.
    pub(in crate::engine) fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::Relaxed)
    }

    /// The number of segments that were retired since the store was opened.
    pub(in crate::engine) fn segments(&self) -> u64 {
        self.segments.load(Ordering::Relaxed)
    }

    /// The number of bytes of the log that were freed since the store was opened, minus those that the moved records
    /// took.
    pub(super) fn freed_bytes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed)
    }

    /// Appends a piece of moves after the caller's own record of `appended_bytes`, if there is a segment to retire and
    /// no other thread is reclaiming. The caller must publish the piece after it has waited for its own record.
    pub(in crate::engine) fn append_along(&self, appended_bytes: u64) -> Option<Piece<'_>> {
        let owes = appended_bytes * VISITED_PER_BYTE;
        let owed = self.owed_bytes.fetch_add(owes, Ordering::Relaxed) + owes;
        if owed < MIN_OWED_BYTES && !self.is_retiring.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.try_lock()?;
        let is_retiring = state.pass.is_some() || self.begin_pass_if_worth_it(&mut state);
        self.is_retiring.store(is_retiring, Ordering::Relaxed);
        if !is_retiring {
            // Bytes that were appended while there was nothing to retire do not count later.
            self.owed_bytes.store(0, Ordering::Relaxed);
            return None;
        }
        // Read again, because another thread may have reduced the number meanwhile. That happens only with the state
        // locked.
        let budget = self.owed_bytes.load(Ordering::Relaxed).min(MAX_PIECE_BYTES);
        self.owed_bytes.fetch_sub(budget, Ordering::Relaxed);
        match self.visit(&mut state, budget) {
            Ok(moves) => Some(Piece { state, moves }),
            Err(error) => {
                self.note_stop(&mut state, &error);
                None
            }
        }
    }

    /// Waits until the copies are written, points the index to them, and retires the segment if they were its last
    /// records.
    pub(in crate::engine) fn publish(&self, piece: Piece<'_>) -> Result<()> {
        let Piece { mut state, moves } = piece;
        self.publish_moves(&mut state, moves)
    }

    fn publish_moves(&self, state: &mut State, moves: Moves<'_>) -> Result<()> {
        let (moved_bytes, published) = self.mover.publish(&moves);
        drop(moves);
        self.moved_bytes.fetch_add(moved_bytes, Ordering::Relaxed);
        published?;
        self.retire_if_done(state);
        Ok(())
    }

    fn begin_pass_if_worth_it(&self, state: &mut State) -> bool {
        let totals = self.log().space_usage().totals(self.clock.now_ms());
        if totals.dead_bytes * DEAD_SHARE <= totals.total_bytes {
            return false;
        }
        let dead_log_bytes = self.dead_log_bytes_of(totals);
        // Only whole segments can be freed, so a pass that would free less than one is not worth its moves.
        let is_worth_it =
            dead_log_bytes > self.log().segment_bytes() && dead_log_bytes >= state.not_before_dead_bytes;
        is_worth_it && self.begin_pass(state)
    }

    /// Estimates the number of bytes of the log that would be freed by retiring all full segments now: their dead
    /// share. This is more than the bytes of dead records, because frame headers and footers are freed too.
    pub(super) fn dead_log_bytes(&self) -> u64 {
        self.dead_log_bytes_of(self.log().space_usage().totals(self.clock.now_ms()))
    }

    fn dead_log_bytes_of(&self, totals: SpaceTotals) -> u64 {
        let (head, tail) = self.log().span();
        let full_bytes = u128::from((tail - head) * self.log().segment_bytes());
        let dead_bytes = full_bytes * u128::from(totals.dead_bytes) / u128::from(totals.total_bytes.max(1));
        u64::try_from(dead_bytes).unwrap_or(u64::MAX)
    }

    /// Begins a pass over all full segments. Returns false if there are none.
    pub(super) fn begin_pass(&self, state: &mut State) -> bool {
        let (head, tail) = self.log().span();
        if head < tail {
            self.begin_pass_to(state, tail - 1);
        }
        head < tail
    }

    /// Begins a pass over the segments up to sequence `last`.
    fn begin_pass_to(&self, state: &mut State, last: u64) {
        state.pass = Some(Pass { last, freed_before_bytes: self.freed_bytes() });
    }

    /// Makes sure that the pass, if there is one, reaches at least up to sequence `last`, and begins one if there is none.
    pub(super) fn extend_pass_to(&self, state: &mut State, last: u64) {
        match &mut state.pass {
            Some(pass) => pass.last = pass.last.max(last),
            None => self.begin_pass_to(state, last),
        }
    }

    fn end_pass(&self, state: &mut State, pass: Pass) {
        state.pass = None;
        let has_gained = self.freed_bytes() - pass.freed_before_bytes >= self.log().segment_bytes();
        // If the estimate is higher than what a whole pass can free, the next pass would begin at once, again and
        // again. So it has to wait until another segment's worth of bytes is dead.
        state.not_before_dead_bytes =
            if has_gained { 0 } else { self.dead_log_bytes() + self.log().segment_bytes() };
    }

    /// Visits records of the oldest segments until it has seen `budget` bytes of them, or the pass is over. Returns an
    /// error only if there are no moves yet. Otherwise it returns the moves, which must be waited for, and the next
    /// visit runs into the error again.
    fn visit(&self, state: &mut State, budget: u64) -> Result<Moves<'_>> {
        let mut moves = Moves::default();
        let mut seen_bytes = 0;
        while seen_bytes < budget && self.has_current(state)? {
            let Some(current) = &mut state.current else { break };
            let outcome = match current.entries.get(current.next) {
                Some(entry) => {
                    seen_bytes += entry.length;
                    let entry = *entry;
                    self.mover.visit(&mut moves, &current.segment, &entry).map(|visit| {
                        // Advance only now, so that an entry whose visit failed is not skipped.
                        current.next += 1;
                        if !self.note_visit(current, visit) {
                            current.again.push(entry);
                        }
                    })
                }
                None if !current.again.is_empty() => {
                    // Visit once more each entry whose key was being changed. If it still is, the entry is left to the
                    // next piece.
                    seen_bytes = budget;
                    self.visit_again(current, &mut moves)
                }
                None if moves.is_empty() => {
                    self.retire_if_done(state);
                    Ok(())
                }
                // The segment is retired when its last moves are published.
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

    /// Visits each entry in `current.again` once more.
    fn visit_again<'a>(&'a self, current: &mut Current, moves: &mut Moves<'a>) -> Result<()> {
        let mut at = 0;
        // A job may have thousands of records that wait for one flight.
        let mut busy = None;
        while let Some(entry) = current.again.get(at).copied() {
            if busy == Some(entry.flight_hash()) {
                at += 1;
                continue;
            }
            let visit = self.mover.visit(moves, &current.segment, &entry)?;
            if self.note_visit(current, visit) {
                current.again.swap_remove(at);
            } else {
                busy = Some(entry.flight_hash());
                at += 1;
            }
        }
        Ok(())
    }

    /// Records the outcome of a visit. Returns false if the entry has to be visited again.
    fn note_visit(&self, current: &mut Current, visit: Visit) -> bool {
        match visit {
            Visit::InFlight => return false,
            Visit::Superseded => {}
            Visit::Dropped { has_expired } => {
                self.expired_keys.fetch_add(u64::from(has_expired), Ordering::Relaxed);
            }
            Visit::Moved { bytes } => current.moved_bytes += bytes,
        }
        true
    }

    /// Makes sure that there is a current segment, by taking the next one of the pass if need be. Returns false if the
    /// pass is over.
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

    /// Ends the pass because of damage or a disk error, and emits an event if this is the first such error since a
    /// segment was last retired. Does nothing for other errors: a full or poisoned store is reported by the calls that
    /// fail because of it.
    pub(super) fn note_stop(&self, state: &mut State, error: &Error) {
        if !matches!(error, Error::Corrupt { .. } | Error::Io { .. }) {
            return;
        }
        // Appends must not try again each time, because that means reading a whole segment.
        state.pass = None;
        state.not_before_dead_bytes = self.dead_log_bytes() + self.log().segment_bytes();
        if !self.is_stopped.swap(true, Ordering::Relaxed) {
            crate::events::reclaiming_stopped(self.records.path(), error);
        }
    }

    /// Retires the current segment if every entry of it has been visited and none has to be visited again. All moves
    /// must have been published.
    fn retire_if_done(&self, state: &mut State) {
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

    /// Retires the oldest segment now. Returns false if the pass is over.
    pub(super) fn retire_one(&self, state: &mut State) -> Result<bool> {
        let before = self.segments();
        while self.segments() == before {
            let visited = self.has_current(state).and_then(|is_there| {
                if is_there { self.visit(state, MAX_LARGE_PIECE_BYTES).map(Some) } else { Ok(None) }
            });
            let Some(moves) = visited.inspect_err(|error| self.note_stop(state, error))? else {
                return Ok(false);
            };
            let has_only_flights_left = moves.is_empty();
            self.publish_moves(state, moves)?;
            if has_only_flights_left {
                // Other threads hold the flights of the keys that are left, each for the length of a write, and do not
                // wait for this thread. Nothing would wake this thread when they leave, so it polls.
                crate::sync::yield_now();
            }
        }
        Ok(true)
    }
}
