//! Reclaims at once: for `Store::compact`, and for a caller that finds the store full. Neither goes by an estimate
//! alone.

use super::count::Count;
use super::retire::{Reclaim, State};
use crate::error::{Error, Result};
use crate::log::Rotate;
use crate::log::reservations::NoRoom;
use crate::log::space_usage::SpaceTotals;

/// For a caller that finds the store full, segments are retired only if more than one byte in this many comes free.
const LEAST_DEAD_SHARE: u64 = 64;
/// `compact` moves nothing if no more than one byte in this many is dead.
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
    /// or a new operation on the key had dropped before, and released keys, of which only the count of attempts was
    /// kept.
    pub expired_keys: u64,
    /// Bytes of live records that this call moved. A record that was moved twice counts twice.
    pub moved_bytes: u64,
    /// By how many bytes the file became shorter. Zero if it did not: what is free within the file is used again, but a
    /// file is never shorter than [`Options::min_size`](crate::Options::min_size). If other calls make the file longer
    /// meanwhile, the figure is that much lower.
    pub freed_bytes: u64,
}

impl Reclaim {
    /// Retires segments until a slot is free, for a caller that needs one while the file cannot grow. The caller holds
    /// no flight. `reason` says why the file cannot grow.
    pub(in crate::engine) fn make_room(&self, reason: NoRoom) -> Result<()> {
        let full = |reason: NoRoom| Err(reason.into_error(self.records.path()));
        let mut state = self.state.lock();
        // The slots of segments that are retired already would come free with the next switch. Free them now.
        if self.log().publish_head()? {
            return Ok(());
        }
        // Moving live records alone gains nothing: enough of what may have to be moved must be dead.
        let (head, tail) = self.log().span();
        let segment_bytes = self.log().segment_bytes();
        let least_bytes = (segment_bytes / 4).max((tail - head) * segment_bytes / LEAST_DEAD_SHARE);
        if !self.has_dead_log_bytes(&mut state, least_bytes)? || !self.begin_pass(&mut state) {
            return full(reason);
        }
        let before_bytes = self.freed_bytes();
        while self.freed_bytes() - before_bytes < self.log().segment_bytes() {
            match self.retire_one(&mut state) {
                // A close waits for this call. The call leaves, and decides anew if the store stays open.
                Ok(true) if self.admission.is_closing() => return self.log().publish_head().map(|_| ()),
                Ok(true) => {}
                Ok(false) | Err(Error::Full { .. }) => break,
                // The caller is not concerned by the damage, only by the lack of space that follows from it.
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

    /// Whether retiring all full segments would free that much. If not by the estimate, it is counted: no caller may be
    /// refused because an expiry was not noticed yet.
    fn has_dead_log_bytes(&self, state: &mut State, least_bytes: u64) -> Result<bool> {
        if self.dead_log_bytes() >= least_bytes {
            return Ok(true);
        }
        let now_ms = self.clock.now_ms();
        if let Some(last) = &state.last_count
            && !last.may_have_reached(least_bytes, self.log(), now_ms)
        {
            return Ok(false);
        }
        let count = Count::take(self.log(), self.records.index(), now_ms)?;
        let is_enough = count.dead_log_bytes() >= least_bytes;
        state.last_count = (!is_enough).then_some(count);
        Ok(is_enough)
    }

    /// Retires every segment that is there now, and cuts off what comes free at the end of the file.
    pub(in crate::engine) fn compact(&self) -> Result<Compaction> {
        let mut done = Compaction::default();
        let mut length_before_bytes = None;
        loop {
            let _inside = self.admission.enter()?;
            self.path_check.look()?;
            let before_bytes = *length_before_bytes.get_or_insert_with(|| self.log().file_bytes());
            match self.compact_until_closing(&mut done) {
                // The call left for a close, and enters again if that is refused.
                Err(Error::Closed) => {}
                outcome => {
                    outcome?;
                    done.freed_bytes = before_bytes.saturating_sub(self.log().file_bytes());
                    return Ok(done);
                }
            }
        }
    }

    /// [`Error::Closed`] if a close waits for this call; what was moved until then stays moved.
    fn compact_until_closing(&self, done: &mut Compaction) -> Result<()> {
        self.log().check_poison()?;
        let mut state = self.state.lock();
        // Both change only with the state locked, so the differences are this call's own.
        let (expired_before, moved_before_bytes) = (self.expired_keys(), self.moved_bytes());
        let moved = self.move_together(&mut state);
        done.expired_keys += self.expired_keys() - expired_before;
        done.moved_bytes += self.moved_bytes() - moved_before_bytes;
        state.not_before_dead_bytes = 0;
        // Even if there was no space to move everything, what came free is given back.
        self.log().check_poison()?;
        self.log().shrink()?;
        moved
    }

    /// Moves all live records together, so that the rest of the file comes free.
    fn move_together(&self, state: &mut State) -> Result<()> {
        let now_ms = self.clock.now_ms();
        let is_worth_it =
            |totals: SpaceTotals| totals.dead_bytes * NOTHING_TO_GAIN_SHARE > totals.total_bytes;
        let mut damage = None;
        let mut moves = is_worth_it(self.log().space_usage().totals(now_ms));
        if !moves {
            let count = Count::take(self.log(), self.records.index(), now_ms)?;
            moves = is_worth_it(count.totals());
            damage = count.into_damage();
        }
        if moves {
            // Only once the oldest segment is known to be readable: the rest of the tail is kept for moves.
            if self.begin_pass(state) {
                self.has_current(state).inspect_err(|error| self.note_stop(state, error))?;
            }
            let (_, tail) = self.log().span();
            let is_first = self.rotate(Rotate::IfSpare)?;
            if self.begin_pass(state) {
                self.retire_all(state)?;
            }
            // Where there was no space to spare, the old tail comes last. It is the oldest segment now, unless there
            // was no space to move what is before it.
            if !is_first && self.log().span().0 == tail && self.rotate(Rotate::IfWritten)? {
                self.begin_pass_to(state, tail);
                self.retire_all(state)?;
            }
        }
        // The first copies lie behind the originals. Once the originals are gone, moving those copies once more lets
        // the file end earlier. They are the oldest segments now, so the pass is over them alone. The second pass is
        // for the segment that was written meanwhile.
        for _ in 0..2 {
            let Some(last) = self.log().shorter_by_moving() else { break };
            if last == self.log().span().1 {
                self.log().rotate(Rotate::Always)?;
            }
            self.begin_pass_to(state, last);
            self.retire_all(state)?;
        }
        damage.map_or(Ok(()), Err)
    }

    /// Goes on in the next segment. False if there is no space for that.
    fn rotate(&self, rotate: Rotate) -> Result<bool> {
        match self.log().rotate(rotate) {
            Err(Error::Full { .. }) => Ok(false),
            rotated => rotated.map(|()| true),
        }
    }

    /// Retires every segment of the pass.
    fn retire_all(&self, state: &mut State) -> Result<()> {
        loop {
            match self.retire_one(state) {
                Ok(true) => {
                    self.log().publish_head()?;
                    if self.admission.is_closing() {
                        return Err(Error::Closed);
                    }
                }
                Ok(false) => return self.log().publish_head().map(|_| ()),
                // There is no space to move live records. What could be freed is free.
                Err(Error::Full { .. }) => {
                    state.pass = None;
                    return self.log().publish_head().map(|_| ());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
