//! Giving space back at once: what `compact` does, and what is done for a caller that finds the store full. Both walk over
//! the segments as [`reclaim`](super) does, and neither goes by an estimate alone.

use super::count::Count;
use super::{Engine, State};
use crate::error::{Error, Result};
use crate::log::Rotate;
use crate::log::reservations::NoRoom;
use crate::log::space_usage::SpaceTotals;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Room is made by moving, while somebody waits for it, only if more than one byte in this many comes free.
const LEAST_DEAD_SHARE: u64 = 64;
/// `compact` moves nothing when no more than one byte in this many is dead.
const NOTHING_TO_GAIN_SHARE: u64 = 64;

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
    /// Keys whose retention had passed and that this call dropped from the index. Not counted are those that reclaiming
    /// or a new operation on the key had dropped before, and released keys, of which only the count of attempts was kept.
    pub expired_keys: u64,
    /// Bytes of live records that this call moved. A record that was moved twice counts twice.
    pub moved_bytes: u64,
    /// By how many bytes the file became shorter. Zero if it did not: what is free within the file is used again, but a
    /// file is never shorter than [`Options::min_size`](crate::Options::min_size). If other calls make the file longer
    /// meanwhile, the figure is that much lower.
    pub freed_bytes: u64,
}

impl Engine {
    /// Retires segments until something is free, because somebody needs a slot and the file cannot grow. The caller
    /// holds no flight. `reason` says why it cannot grow.
    pub(in crate::engine) fn make_room(&self, reason: NoRoom) -> Result<()> {
        let full = |reason: NoRoom| Err(reason.into_error(self.path()));
        let mut state = self.reclaim.state.lock();
        // What has been retired bit by bit waits for the next segment to come free. It need not.
        if self.log.publish_head()? {
            return Ok(());
        }
        // Moving what is alive from place to place gains nothing: of all that may have to be moved, enough must be dead.
        let (head, tail) = self.log.span();
        let segment_bytes = self.log.segment_bytes();
        let least_bytes = (segment_bytes / 4).max((tail - head) * segment_bytes / LEAST_DEAD_SHARE);
        if !self.has_dead_log_bytes(&mut state, least_bytes)? || !self.begin_pass(&mut state) {
            return full(reason);
        }
        let before_bytes = self.freed_bytes();
        while self.freed_bytes() - before_bytes < self.log.segment_bytes() {
            match self.retire_one(&mut state) {
                // A close waits for this call, which leaves, and decides anew if the store stays open.
                Ok(true) if self.admission.is_closing() => return self.log.publish_head().map(|_| ()),
                Ok(true) => {}
                Ok(false) | Err(Error::Full { .. }) => break,
                // Whoever wants room is told that there is none, and why, and not that something of its own is damaged.
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                    let freed_bytes = self.freed_bytes() - before_bytes;
                    self.log.publish_head()?;
                    let reason = reason.and(&format!("nothing can be reclaimed: {error}"));
                    return if freed_bytes == 0 { full(reason) } else { Ok(()) };
                }
                Err(error) => return Err(error),
            }
        }
        let freed_bytes = self.freed_bytes() - before_bytes;
        self.log.publish_head()?;
        if freed_bytes == 0 { full(reason) } else { Ok(()) }
    }

    /// Whether retiring all full segments would free that much. If the estimate says no it is counted: an expiry that was
    /// not noticed yet must not refuse anybody.
    fn has_dead_log_bytes(&self, state: &mut State, least_bytes: u64) -> Result<bool> {
        if self.dead_log_bytes() >= least_bytes {
            return Ok(true);
        }
        let now_ms = self.clock.now_ms();
        if let Some(last) = &state.last_count
            && !last.may_have_become(least_bytes, &self.log, now_ms)
        {
            return Ok(false);
        }
        let count = Count::take(&self.log, &self.index, now_ms)?;
        let is_enough = count.dead_log_bytes() >= least_bytes;
        state.last_count = (!is_enough).then_some(count);
        Ok(is_enough)
    }

    /// Retires every segment that is there now, and cuts off what comes free at the end of the file.
    pub(crate) fn compact(&self) -> Result<Compaction> {
        let _events = crate::events::hold_back();
        let mut done = Compaction::default();
        let mut length_before_bytes = None;
        loop {
            let _inside = self.admission.enter()?;
            self.path_check.look()?;
            let before_bytes = *length_before_bytes.get_or_insert_with(|| self.log.file_bytes());
            match self.compact_until_closing(&mut done) {
                // Left for the sake of a close, and entered again if that was refused.
                Err(Error::Closed) => {}
                outcome => {
                    outcome?;
                    done.freed_bytes = before_bytes.saturating_sub(self.log.file_bytes());
                    return Ok(done);
                }
            }
        }
    }

    /// [`Error::Closed`] if a close waits for this call; what was moved until then stays moved.
    fn compact_until_closing(&self, done: &mut Compaction) -> Result<()> {
        self.log.check_poison()?;
        let mut state = self.reclaim.state.lock();
        // Both change only with the state locked, so the differences are this call's own.
        let totals = || {
            let moved_bytes = self.reclaim.moved_bytes.load(Ordering::Relaxed);
            (self.reclaim.expired_keys.load(Ordering::Relaxed), moved_bytes)
        };
        let (expired_before, moved_before_bytes) = totals();
        let moved = self.move_together(&mut state);
        let (expired_keys, moved_bytes) = totals();
        done.expired_keys += expired_keys - expired_before;
        done.moved_bytes += moved_bytes - moved_before_bytes;
        state.not_before_dead_bytes = 0;
        // Also if there was no room to move everything: what came free is given back all the same.
        self.log.check_poison()?;
        self.log.shrink()?;
        moved
    }

    fn move_together(&self, state: &mut MutexGuard<'_, State>) -> Result<()> {
        let now_ms = self.clock.now_ms();
        let is_worth_it =
            |totals: SpaceTotals| totals.dead_bytes * NOTHING_TO_GAIN_SHARE > totals.total_bytes;
        let mut damage = None;
        let mut moves = is_worth_it(self.log.space_usage().totals(now_ms));
        if !moves {
            let count = Count::take(&self.log, &self.index, now_ms)?;
            moves = is_worth_it(count.totals());
            damage = count.into_damage();
        }
        if moves {
            // Only when the oldest segment is known to be readable: the rest of this one is kept for moving records.
            if self.begin_pass(state) {
                self.has_current(state).inspect_err(|error| self.note_stop(state, error))?;
            }
            let (_, tail) = self.log.span();
            let is_first = self.rotate(Rotate::IfSpare)?;
            if self.begin_pass(state) {
                self.retire_all(state)?;
            }
            // Where there was no room to spare, the segment that was being written comes last: it is the oldest now, unless
            // there was no room to move what is before it.
            if !is_first && self.log.span().0 == tail && self.rotate(Rotate::IfWritten)? {
                state.pass = Some(self.pass_to(tail));
                self.retire_all(state)?;
            }
        }
        // The first segments of the copy lie behind the originals. Once these are gone, moving them once more lets the
        // file end where the copy does. They are the oldest now, so it is a walk over them alone; a second one is for
        // the segment that was being written meanwhile.
        for _ in 0..2 {
            let Some(last) = self.log.shorter_by_moving() else { break };
            if last == self.log.span().1 {
                self.log.rotate(Rotate::Always)?;
            }
            state.pass = Some(self.pass_to(last));
            self.retire_all(state)?;
        }
        damage.map_or(Ok(()), Err)
    }

    /// Closes the segment that is being written. False if there is no room for that.
    fn rotate(&self, rotate: Rotate) -> Result<bool> {
        match self.log.rotate(rotate) {
            Err(Error::Full { .. }) => Ok(false),
            rotated => rotated.map(|()| true),
        }
    }

    fn retire_all(&self, state: &mut MutexGuard<'_, State>) -> Result<()> {
        loop {
            match self.retire_one(state) {
                Ok(true) => {
                    self.log.publish_head()?;
                    if self.admission.is_closing() {
                        return Err(Error::Closed);
                    }
                }
                Ok(false) => return self.log.publish_head().map(|_| ()),
                // There is no room to move what is alive: what could be freed has been.
                Err(Error::Full { .. }) => {
                    state.pass = None;
                    return self.log.publish_head().map(|_| ());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
