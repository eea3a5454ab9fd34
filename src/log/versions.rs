//! Chooses the versions of a new session: the time from opening a store until it is closed.

use crate::planted::{Bug, planted};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};

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
