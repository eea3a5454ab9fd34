//! Chooses the versions of a new session, the time from opening a store until it is closed, and notes the session in the log.

use super::Log;
use super::reservations::ReservationClass;
use crate::error::{Error, Result};
use crate::format::CopyState;
use crate::planted::{Bug, planted};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};
use crate::sync::atomic::Ordering;

/// The highest versions of the earlier sessions, as far as recovery has found them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionsBefore {
    /// The highest open count anywhere in the log.
    pub(crate) open_count: u32,
    /// The counter of the last version under that open count. Present only if the log was closed and has not been
    /// opened since.
    pub(crate) closed_at: Option<u64>,
}

impl VersionsBefore {
    /// Returns the open count of the new session, and the counter that its versions continue from. `can_go_on` allows
    /// it to keep the open count of the last session. None if the open count is exhausted.
    pub(crate) fn next(self, can_go_on: bool) -> Option<(u32, u64)> {
        // This leaves at least half of the counter for the changes of the new session, which is more than any session
        // can make.
        match self.closed_at.filter(|counter| can_go_on && *counter <= MAX_COUNTER / 2) {
            Some(_) if planted(Bug::CounterRestarted) => Some((self.open_count, 0)),
            Some(counter) => Some((self.open_count, counter)),
            None => (self.open_count < MAX_OPEN_COUNT).then_some((self.open_count + 1, 0)),
        }
    }
}

impl Log {
    /// Makes the open count and the time mark of a new session durable, before any of its versions is generated.
    /// Returns the open count, and the counter that its versions continue from. `in_doubt_until_ms` is what the caller says of
    /// a copy that it opens for the first time; it becomes durable with the opening.
    pub(crate) fn begin_opening(
        &self,
        before: VersionsBefore,
        in_doubt_until_ms: Option<u64>,
    ) -> Result<(u32, u64)> {
        // The opening frame must not use the space that is kept for moves. Otherwise opening a full store several times
        // could use it up, and the store would stay full for ever.
        let frame_bytes = self.writer.lock().opening_frame_bytes() as u64;
        let has_space = self.reservations.reserve(frame_bytes, ReservationClass::Begin);
        // Without space, the session is noted in the segment header, and a close mark of the last session stays in
        // place. Only a higher open count makes that mark outdated.
        let Some((open_count, counter)) = before.next(has_space) else {
            return Err(Error::openings_exhausted(self.path()));
        };
        let head = self.needed_from.load(Ordering::Acquire);
        let mut writer = self.writer.lock();
        if let Some(in_doubt_until_ms) = in_doubt_until_ms {
            writer.set_copy_state(CopyState { in_doubt_until_ms, answered_by: open_count });
        }
        let begun = match has_space {
            true => writer.begin_opening(open_count, head),
            false => writer.note_opening(open_count),
        };
        begun.map_err(|error| self.reader.io("record that the store was opened", error))?;
        self.reservations.update(writer.free_space(), if has_space { frame_bytes } else { 0 });
        Ok((open_count, counter))
    }
}
