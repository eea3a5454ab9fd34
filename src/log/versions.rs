//! Where the versions of a log go on after an opening.

use crate::planted::{Bug, planted};
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};

/// Where the versions of a log go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionsBefore {
    /// The highest open count anywhere in the log.
    pub(crate) open_count: u32,
    /// The counter of the last version under it, if the log was closed and not opened since.
    pub(crate) closed_at: Option<u64>,
}

impl VersionsBefore {
    /// Open count and counter that an opening goes on from; None if there are no more.
    pub(crate) fn next(self, can_go_on: bool) -> Option<(u32, u64)> {
        // Half of the counter is left for the changes of one opening: more than any can make.
        match self.closed_at.filter(|counter| can_go_on && *counter <= MAX_COUNTER / 2) {
            Some(_) if planted(Bug::CounterRestarted) => Some((self.open_count, 0)),
            Some(counter) => Some((self.open_count, counter)),
            None => (self.open_count < MAX_OPEN_COUNT).then_some((self.open_count + 1, 0)),
        }
    }
}
