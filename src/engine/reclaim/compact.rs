//! Reclaims at once, for `Store::compact` and for a caller that finds the store full. If the estimate of dead bytes
//! does not justify that, both count exactly before they return without reclaiming.

use super::count::Count;
use super::retire::{Reclaim, State};
use crate::error::{Error, Result};
use crate::log::Rotate;
use crate::log::reservations::NoRoom;
use crate::log::space_usage::SpaceTotals;

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

    /// Retires every segment that exists now, and cuts off the slots that this frees at the end of the file.
    pub(in crate::engine) fn compact(&self) -> Result<Compaction> {
        let mut done = Compaction::default();
        let mut length_before_bytes = None;
        loop {
            let _inside = self.admission.enter()?;
            self.path_check.look()?;
            let before_bytes = *length_before_bytes.get_or_insert_with(|| self.log().file_bytes());
            match self.compact_until_closing(&mut done) {
                // The call stopped because a close was waiting for it. It is admitted again if the close is refused.
                Err(Error::Closed) => {}
                outcome => {
                    outcome?;
                    done.freed_bytes = before_bytes.saturating_sub(self.log().file_bytes());
                    return Ok(done);
                }
            }
        }
    }

    /// Compacts until done, and adds what was achieved to `done`. Returns [`Error::Closed`] as soon as a close is
    /// waiting for this call; the moves made until then stay.
    fn compact_until_closing(&self, done: &mut Compaction) -> Result<()> {
        self.log().check_poison()?;
        let mut state = self.state.lock();
        // Both counters change only with the state locked, so the differences are due to this call alone.
        let (expired_before, moved_before_bytes) = (self.expired_keys(), self.moved_bytes());
        let moved = self.move_together(&mut state);
        done.expired_keys += self.expired_keys() - expired_before;
        done.moved_bytes += self.moved_bytes() - moved_before_bytes;
        state.not_before_dead_bytes = 0;
        // Even if there was no space to move every record, cut off the slots that were freed.
        self.log().check_poison()?;
        self.log().shrink()?;
        moved
    }

    /// Moves all live records together, so that the rest of the file is free.
    fn move_together(&self, state: &mut State) -> Result<()> {
        let now_ms = self.clock.now_ms();
        let is_worth_it = |totals: SpaceTotals| totals.dead_bytes * WORTH_MOVING_SHARE > totals.total_bytes;
        let mut damage = None;
        let mut moves = is_worth_it(self.log().space_usage().totals(now_ms));
        if !moves {
            let count = Count::take(&self.records, now_ms)?;
            moves = is_worth_it(count.totals());
            damage = count.into_damage();
        }
        if moves {
            // Check that the oldest segment can be read before the rest of the tail is given up: reclaiming may need
            // that space for moves.
            if self.begin_pass(state) {
                self.has_current(state).inspect_err(|error| self.note_stop(state, error))?;
            }
            let (_, tail) = self.log().span();
            let is_first = self.rotate(Rotate::IfSpare)?;
            if self.begin_pass(state) {
                self.retire_all(state)?;
            }
            // If there was no space to spare for the rotation, the old tail is retired last. By now it is the oldest
            // segment, unless there was no space to move the segments before it.
            if !is_first && self.log().span().0 == tail && self.rotate(Rotate::IfWritten)? {
                self.begin_pass_to(state, tail);
                self.retire_all(state)?;
            }
        }
        // The first copies were appended after the originals. Now that the originals are gone, moving those copies once
        // more into the freed slots lets the file end earlier. The copies are in the oldest segments now, so the pass
        // visits nothing else. The second pass is for the segment that was written during the first one.
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

    /// Makes the log go on in the next segment. Returns false if there is no space for that.
    fn rotate(&self, rotate: Rotate) -> Result<bool> {
        match self.log().rotate(rotate) {
            Err(Error::Full { .. }) => Ok(false),
            rotated => rotated.map(|()| true),
        }
    }

    /// Retires every segment of the pass, until there is no space left for moves. Returns [`Error::Closed`] if a close
    /// is waiting for this call.
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
                // There is no space to move more live records. Free the slots of the segments retired so far.
                Err(Error::Full { .. }) => {
                    state.pass = None;
                    return self.log().publish_head().map(|_| ());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
