//! Reclaims at once, for `Store::compact` and for a caller that finds the store full. If the estimate of dead bytes
//! does not justify that, both count exactly before they return without reclaiming.

use std::ops::ControlFlow;

use super::count::Count;
use super::retire::{Reclaim, State};
use crate::error::{Error, Result};
use crate::log::reservations::NoRoom;
use crate::log::space_usage::SpaceTotals;
use crate::log::{Log, Rotate};
use crate::planted::{Bug, planted};
use crate::progress::Progress;

/// For a caller that finds the store full, segments are retired only if that frees at least one byte in this many.
const MIN_DEAD_SHARE: u64 = 64;
/// `compact` moves records only if more than one byte in this many is dead.
const WORTH_MOVING_SHARE: u64 = 64;

/// What [`Store::compact`](crate::Store::compact) did.
///
/// ```
/// use std::time::Duration;
/// use oncekey::{Fingerprint, ManualClock, Options};
///
/// let clock = ManualClock::new(1_700_000_000_000);
/// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
/// store.operation("seen:1").retain(Duration::from_secs(60)).record(b"")?;
/// store.record("seen:2", Fingerprint::NONE, b"")?;
/// clock.advance(Duration::from_secs(61));
/// let compaction = store.compact()?;
/// assert_eq!(compaction.expired_keys, 1);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Compaction {
    /// The number of keys whose retention had passed and that this call removed from the index. Keys are not counted if
    /// earlier reclaiming or a new operation on the key had removed them, or if they were released, because only their
    /// count of attempts was kept.
    pub expired_keys: u64,
    /// The number of bytes of live records that this call moved. A record that was moved twice counts twice.
    pub moved_bytes: u64,
    /// By how many bytes the file became shorter. Zero if it did not. The file is never shorter than
    /// [`Options::min_size`](crate::Options::min_size); free space within it is reused. If other calls make the file
    /// longer meanwhile, this number is smaller by as much.
    pub freed_bytes: u64,
    /// Whether the callback of [`Store::compact_with`](crate::Store::compact_with) stopped the call. What was moved until
    /// then stays moved.
    pub is_stopped: bool,
}

impl Reclaim {
    /// Retires segments until a segment's worth of space is free, for a caller that needs space while the file cannot
    /// grow. The caller holds no flight. `reason` is why the file cannot grow, and becomes the error if nothing can be
    /// freed.
    pub(in crate::engine) fn make_room(&self, reason: NoRoom) -> Result<()> {
        let full = |reason: NoRoom| Err(reason.into_error(self.records.path()));
        let mut state = self.state.lock();
        // If retired segments still occupy slots, free those now instead of with the next segment switch.
        if self.log().publish_head()? {
            return Ok(());
        }
        // Moving live records frees nothing, so a pass is worth while only if enough of the log is dead.
        let (head, tail) = self.log().span();
        let segment_bytes = self.log().segment_bytes();
        let min_bytes = (segment_bytes / 4).max((tail - head) * segment_bytes / MIN_DEAD_SHARE);
        if !self.has_dead_log_bytes(&mut state, min_bytes)? || !self.begin_pass(&mut state) {
            return full(reason);
        }
        let before_bytes = self.freed_bytes();
        while self.freed_bytes() - before_bytes < self.log().segment_bytes() {
            match self.retire_one(&mut state) {
                // A close is waiting for this call. The call gives up its admission, and decides anew if the store
                // stays open.
                Ok(true) if self.admission.is_closing() => return self.log().publish_head().map(|_| ()),
                Ok(true) => {}
                Ok(false) | Err(Error::Full { .. }) => break,
                // The damage is not in the caller's record. If it is why no space can be freed, it is added to that
                // error.
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                    let freed_bytes = self.freed_bytes() - before_bytes;
                    self.log().publish_head()?;
                    let reason = reason.with_reason(&format!("nothing can be reclaimed: {error}"));
                    return if freed_bytes == 0 { full(reason) } else { Ok(()) };
                }
                Err(error) => return Err(error),
            }
        }
        let freed_bytes = self.freed_bytes() - before_bytes;
        self.log().publish_head()?;
        if freed_bytes == 0 { full(reason) } else { Ok(()) }
    }

    /// Whether retiring all full segments would free at least `min_bytes`. If the estimate is lower, this counts
    /// exactly, because the estimate counts expiries late and no caller may be refused for that.
    fn has_dead_log_bytes(&self, state: &mut State, min_bytes: u64) -> Result<bool> {
        if self.dead_log_bytes() >= min_bytes {
            return Ok(true);
        }
        let now_ms = self.clock.now_ms();
        if let Some(last) = &state.last_count
            && !last.may_have_reached(min_bytes, self.log(), now_ms)
        {
            return Ok(false);
        }
        let count = Count::take(&self.records, now_ms)?;
        let is_enough = count.dead_log_bytes() >= min_bytes;
        state.last_count = (!is_enough).then_some(count);
        Ok(is_enough)
    }

    /// Retires every segment that exists now, and cuts off the slots that this frees at the end of the file. Calls
    /// `on_progress` after each segment.
    pub(in crate::engine) fn compact(&self, on_progress: OnProgress<'_>) -> Result<Compaction> {
        let done = Compaction::default();
        Compacting { reclaim: self, on_progress, done, worked_bytes: 0 }.run()
    }

    /// Makes the log go on in the next segment. Returns false if there is no space for that.
    fn rotate(&self, rotate: Rotate) -> Result<bool> {
        match self.log().rotate(rotate) {
            Err(Error::Full { .. }) => Ok(false),
            rotated => rotated.map(|()| true),
        }
    }

    /// Retires the oldest segment if its sequence is at most `last`. Returns false if there is none to retire, or no space to
    /// move its records into.
    fn retire_up_to(&self, state: &mut State, last: u64) -> Result<bool> {
        let is_left = self.log().span().0 <= last;
        if is_left {
            self.extend_pass_to(state, last);
        }
        let retired = if is_left { self.retire_one(state) } else { Ok(false) };
        let retired = match retired {
            // There is no space to move more live records. Free the slots of the segments retired so far.
            Err(Error::Full { .. }) => {
                state.pass = None;
                false
            }
            retired => retired?,
        };
        self.log().publish_head()?;
        Ok(retired)
    }
}

/// What a callback is called with, and how it stops the call.
pub(in crate::engine) type OnProgress<'a> = &'a mut dyn FnMut(&Progress) -> ControlFlow<()>;

/// A call of `compact`. It works in steps of at most one segment. In a step it is admitted and has the state locked; between
/// two steps it has neither, so that a close, and other threads that need space, wait for one step at most, and so that the
/// callback may use the store. Other threads may change the state meanwhile, so each step states what it wants.
struct Compacting<'a> {
    reclaim: &'a Reclaim,
    on_progress: OnProgress<'a>,
    done: Compaction,
    /// The length of the segments that were retired so far.
    worked_bytes: u64,
}

impl Compacting<'_> {
    fn log(&self) -> &Log {
        self.reclaim.log()
    }

    fn run(mut self) -> Result<Compaction> {
        let before_bytes = self.step(|reclaim, _| {
            reclaim.path_check.look()?;
            reclaim.log().check_poison()?;
            Ok(reclaim.log().file_bytes())
        })?;
        let moved = self.move_together();
        let is_stopped = matches!(moved, Ok(ControlFlow::Break(())));
        // Even if there was no space to move every record, cut off the slots that were freed.
        let after_bytes = self.step(|reclaim, state| {
            state.not_before_dead_bytes = 0;
            if is_stopped {
                // The appends of other threads must not go on with it.
                state.pass = None;
            }
            reclaim.log().check_poison()?;
            reclaim.log().shrink()?;
            Ok(reclaim.log().file_bytes())
        })?;
        let _ = moved?;
        self.done.is_stopped = is_stopped;
        self.done.freed_bytes = before_bytes.saturating_sub(after_bytes);
        if !is_stopped {
            // Nothing is left that the callback could stop.
            let _ = self.report(0);
        }
        Ok(self.done)
    }

    /// Takes one step, and adds what it achieved to `done`.
    fn step<R>(&mut self, work: impl FnOnce(&Reclaim, &mut State) -> Result<R>) -> Result<R> {
        let _events = crate::events::hold_back();
        let reclaim = self.reclaim;
        let _inside = reclaim.admission.enter()?;
        let mut state = reclaim.state.lock();
        // Both counters change only with the state locked, so the differences are due to this step alone.
        let (expired_before, moved_before_bytes) = (reclaim.expired_keys(), reclaim.moved_bytes());
        let outcome = work(reclaim, &mut state);
        self.done.expired_keys += reclaim.expired_keys() - expired_before;
        self.done.moved_bytes += reclaim.moved_bytes() - moved_before_bytes;
        outcome
    }

    /// Calls the callback, when about `left_bytes` of the log are left to retire.
    fn report(&mut self, left_bytes: u64) -> ControlFlow<()> {
        let _inside = planted(Bug::CloseWaitsForItself).then(|| self.reclaim.admission.enter());
        (self.on_progress)(&Progress::new(self.worked_bytes, left_bytes))
    }

    /// Whether enough bytes are dead to move records. Counts exactly if the estimate is too low. Also returns the damage that
    /// the count found.
    fn is_worth_it(&mut self) -> Result<ControlFlow<(), (bool, Option<Error>)>> {
        let is_worth_it = |totals: SpaceTotals| totals.dead_bytes * WORTH_MOVING_SHARE > totals.total_bytes;
        let now_ms = self.reclaim.clock.now_ms();
        if is_worth_it(self.log().space_usage().totals(now_ms)) {
            return Ok(ControlFlow::Continue((true, None)));
        }
        let mut count = Count::begin(self.log(), now_ms);
        let (segments, segment_bytes) = (count.segments(), self.log().segment_bytes());
        for sequence in segments.clone() {
            self.step(|reclaim, _| count.add_segment(&reclaim.records, sequence))?;
            if self.report((segments.end - segments.start) * segment_bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.step(|reclaim, _| count.add_tail(&reclaim.records))?;
        Ok(ControlFlow::Continue((is_worth_it(count.totals()), count.into_damage())))
    }

    /// Moves all live records together, so that the rest of the file is free.
    fn move_together(&mut self) -> Result<ControlFlow<()>> {
        let ControlFlow::Continue((moves, damage)) = self.is_worth_it()? else {
            return Ok(ControlFlow::Break(()));
        };
        if moves {
            let (old_tail, is_first) = self.step(|reclaim, state| {
                // Check that the oldest segment can be read before the rest of the tail is given up: reclaiming may need
                // that space for moves.
                if reclaim.begin_pass(state) {
                    reclaim.has_current(state).inspect_err(|error| reclaim.note_stop(state, error))?;
                }
                let (_, tail) = reclaim.log().span();
                Ok((tail, reclaim.rotate(Rotate::IfSpare)?))
            })?;
            let last_full = self.log().span().1 - 1;
            if self.retire_all(last_full)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            // If there was no space to spare for the rotation, the old tail is retired last. By now it is the oldest
            // segment, unless there was no space to move the segments before it.
            let is_old_tail_next = self.step(|reclaim, _| {
                let is_oldest = reclaim.log().span().0 == old_tail;
                Ok(!is_first && is_oldest && reclaim.rotate(Rotate::IfWritten)?)
            })?;
            if is_old_tail_next && self.retire_all(old_tail)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        // The first copies were appended after the originals. Now that the originals are gone, moving those copies once
        // more into the freed slots lets the file end earlier. The copies are in the oldest segments now, so the pass
        // visits nothing else. The second pass is for the segment that was written during the first one.
        for _ in 0..2 {
            let last = self.step(|reclaim, _| {
                let last = reclaim.log().shorter_by_moving();
                if last == Some(reclaim.log().span().1) {
                    reclaim.log().rotate(Rotate::Always)?;
                }
                Ok(last)
            })?;
            let Some(last) = last else { break };
            if self.retire_all(last)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        damage.map_or(Ok(ControlFlow::Continue(())), Err)
    }

    /// Retires every segment up to the sequence `last`, until there is no space left for moves.
    fn retire_all(&mut self, last: u64) -> Result<ControlFlow<()>> {
        let segment_bytes = self.log().segment_bytes();
        loop {
            // A step retires more than one segment if their records are all dead.
            let retired = self.step(|reclaim, state| {
                let before = reclaim.segments();
                let goes_on = reclaim.retire_up_to(state, last)?;
                Ok(goes_on.then(|| reclaim.segments() - before))
            })?;
            let Some(retired) = retired else { return Ok(ControlFlow::Continue(())) };
            self.worked_bytes += retired * segment_bytes;
            let left = (last + 1).saturating_sub(self.log().span().0);
            if self.report(left * segment_bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
}
