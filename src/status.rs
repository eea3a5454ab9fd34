//! The state of a key: one table, pure, and the only place where a status changes.
//!
//! | from | event | to |
//! |---|---|---|
//! | Absent | begin | InProgress, the next attempt; durable before the caller may act |
//! | InProgress | complete | Completed: status and result in one record |
//! | InProgress | release (the act certainly did not happen) | Absent; the attempts are remembered for a while: for the key retention at most, until reclaiming wants their room |
//! | InProgress | doubt: lease dropped, panic, process gone, or its deadline passed and somebody else asks | InDoubt |
//! | InDoubt | begin | InProgress, the next attempt, and the caller is told of the doubt |
//! | InDoubt | complete, release, by someone who found out | Completed, Absent |
//! | Absent | record ("seen and done" in one) | Completed |
//! | Completed | result retention passes | Completed, without its result |
//! | Completed | key retention passes | Absent |
//! | InDoubt, Completed | forget | Absent |
//!
//! Everything else is refused, by [`transition`], with the reason. InProgress and InDoubt are never ended by
//! time: only a completion, a release or a `forget` ends them.

use std::fmt;
use std::str::FromStr;

/// Where a key stands.
///
/// ```
/// use oncekey::{Fingerprint, Status, Store};
///
/// let store = Store::in_memory()?;
/// assert_eq!(store.get("charge:1")?.status(), Status::Absent);
/// store.record("charge:1", Fingerprint::NONE, b"receipt")?;
/// assert_eq!(store.get("charge:1")?.status(), Status::Completed);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Nothing is known of the key: it was never begun, or it was released, forgotten, or its retention passed.
    Absent,
    /// A lease on it is alive in this process.
    InProgress,
    /// An attempt began and nobody knows whether the act happened.
    InDoubt,
    /// The act was performed and its result recorded.
    Completed,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Status::Absent => "absent",
            Status::InProgress => "in progress",
            Status::InDoubt => "in doubt",
            Status::Completed => "completed",
        })
    }
}

/// Which change of its key a record is: the fencing token.
///
/// Versions are unique and grow for ever within one file, across restarts, power loss, deletion and compaction;
/// moving a record does not change its version. The upper 24 bits count the openings of the file that did not follow a
/// clean close, the lower 40 the changes since: after a clean close both go on where they were. Hand it to the outside
/// world with the act, and let that refuse an older one.
///
/// ```
/// use oncekey::{Fingerprint, Store, Begin};
///
/// let store = Store::in_memory()?;
/// let Begin::Acquired(first) = store.begin("a", Fingerprint::NONE)? else { unreachable!() };
/// let Begin::Acquired(second) = store.begin("b", Fingerprint::NONE)? else { unreachable!() };
/// assert!(second.version() > first.version());
/// assert_eq!(second.version().to_string().parse(), Ok(second.version()), "from a log, for instance");
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

/// How many bits of a version count the changes in one opening.
const COUNTER_BITS: u32 = 40;
/// The highest count of openings that a version can hold.
pub(crate) const MAX_OPEN_COUNT: u32 = (1 << (64 - COUNTER_BITS)) - 1;
const _: () = assert!(MAX_OPEN_COUNT == 0x00FF_FFFF);
/// The highest count of changes that a version can hold.
pub(crate) const MAX_COUNTER: u64 = (1 << COUNTER_BITS) - 1;
const _: () = assert!(MAX_COUNTER == 0x00FF_FFFF_FFFF);

impl Version {
    /// The version number `counter` of opening `open_count`; None when either is beyond its bits.
    pub(crate) fn compose(open_count: u32, counter: u64) -> Option<Version> {
        let fits = open_count <= MAX_OPEN_COUNT && counter <= MAX_COUNTER;
        fits.then(|| Version(u64::from(open_count) << COUNTER_BITS | counter))
    }

    /// Which of the counted openings of the file it comes from.
    pub(crate) fn open_count(self) -> u32 {
        u32::try_from(self.0 >> COUNTER_BITS).unwrap_or(MAX_OPEN_COUNT)
    }

    /// Which change it is under that open count.
    pub(crate) fn counter(self) -> u64 {
        self.0 & MAX_COUNTER
    }

    /// The version as a number: for logs, for headers, for a fencing check outside.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The version that [`Version::as_u64`] gave.
    #[must_use]
    pub const fn from_u64(version: u64) -> Version {
        Version(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.open_count(), self.counter())
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    /// The version that `Display` printed like this: the opening and the change in it, as in `3.1729`.
    fn from_str(text: &str) -> Result<Version, ParseVersionError> {
        let (open_count, counter) = text.split_once('.').ok_or(ParseVersionError(()))?;
        let open_count = open_count.parse().map_err(|_| ParseVersionError(()))?;
        let counter = counter.parse().map_err(|_| ParseVersionError(()))?;
        let version = Version::compose(open_count, counter).ok_or(ParseVersionError(()))?;
        // Neither signs nor zeroes in front: what is compared as text must be one text.
        if version.to_string() == text { Ok(version) } else { Err(ParseVersionError(())) }
    }
}

/// The text is not one that a [`Version`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseVersionError(());

impl fmt::Display for ParseVersionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("not a version: expected the opening and the change in it, as in 3.1729")
    }
}

impl std::error::Error for ParseVersionError {}

/// What can happen to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody wants to perform the act.
    Begin,
    /// The act happened and this is its result.
    Complete,
    /// The act certainly did not happen.
    Release,
    /// Whoever was at it is gone, or its time is up.
    Doubt,
    /// Seen and done, in one.
    Record,
    /// The key retention passed.
    ExpireKey,
    /// An operator gives up what is known of the key.
    Forget,
}

/// Why an event cannot happen to a key as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Somebody in this process is at it.
    InProgress,
    /// Nobody knows whether an earlier attempt happened.
    InDoubt,
    /// It is done: what is recorded is the answer.
    Completed,
    /// There is nothing that the event could end.
    Absent,
    /// The rules of retention do not apply to a key that is not finished.
    NotFinished,
}

/// The table.
pub(crate) fn transition(from: Status, event: Event) -> Result<Status, Refused> {
    use Event::{Begin, Complete, Doubt, ExpireKey, Forget, Record, Release};
    use Status::{Absent, Completed, InDoubt, InProgress};
    match (from, event) {
        (Absent | InDoubt, Begin) => Ok(InProgress),
        (InProgress, Begin | Record | Forget) => Err(Refused::InProgress),
        (Completed, Begin | Record) => Err(Refused::Completed),

        (InProgress | InDoubt, Complete) => Ok(Completed),
        (InProgress | InDoubt, Release) => Ok(Absent),
        (Completed, Complete | Release) => Err(Refused::Completed),
        (Absent, Complete | Release) => Err(Refused::Absent),

        (InProgress | InDoubt, Doubt) => Ok(InDoubt),
        (Completed, Doubt) => Err(Refused::Completed),
        (Absent, Doubt) => Err(Refused::Absent),

        (Absent, Record) => Ok(Completed),
        (InDoubt, Record) => Err(Refused::InDoubt),

        (Absent | Completed, ExpireKey) => Ok(Absent),
        (InProgress | InDoubt, ExpireKey) => Err(Refused::NotFinished),

        (InDoubt | Completed, Forget) => Ok(Absent),
        (Absent, Forget) => Err(Refused::Absent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_as_specified() {
        use Status::{Absent, Completed, InDoubt, InProgress};
        let events = [
            Event::Begin,
            Event::Complete,
            Event::Release,
            Event::Doubt,
            Event::Record,
            Event::ExpireKey,
            Event::Forget,
        ];
        let expected = [
            (
                Absent,
                [
                    Ok(InProgress),
                    Err(Refused::Absent),
                    Err(Refused::Absent),
                    Err(Refused::Absent),
                    Ok(Completed),
                    Ok(Absent),
                    Err(Refused::Absent),
                ],
            ),
            (
                InProgress,
                [
                    Err(Refused::InProgress),
                    Ok(Completed),
                    Ok(Absent),
                    Ok(InDoubt),
                    Err(Refused::InProgress),
                    Err(Refused::NotFinished),
                    Err(Refused::InProgress),
                ],
            ),
            (
                InDoubt,
                [
                    Ok(InProgress),
                    Ok(Completed),
                    Ok(Absent),
                    Ok(InDoubt),
                    Err(Refused::InDoubt),
                    Err(Refused::NotFinished),
                    Ok(Absent),
                ],
            ),
            (
                Completed,
                [
                    Err(Refused::Completed),
                    Err(Refused::Completed),
                    Err(Refused::Completed),
                    Err(Refused::Completed),
                    Err(Refused::Completed),
                    Ok(Absent),
                    Ok(Absent),
                ],
            ),
        ];
        for (from, row) in expected {
            for (event, to) in events.into_iter().zip(row) {
                assert_eq!(transition(from, event), to, "{from:?} x {event:?}");
            }
        }
    }

    #[test]
    fn a_status_says_its_name() {
        let names =
            [Status::Absent, Status::InProgress, Status::InDoubt, Status::Completed].map(|s| s.to_string());
        assert_eq!(names, ["absent", "in progress", "in doubt", "completed"]);
    }

    #[test]
    fn versions_of_a_later_opening_are_higher_than_all_of_an_earlier_one() {
        let last = Version::compose(1, (1 << COUNTER_BITS) - 1).unwrap();
        let next = Version::compose(2, 0).unwrap();
        assert!(next > last);
        assert_eq!(next.open_count(), 2);
        assert_eq!(next.to_string(), "2.0");
    }

    #[test]
    fn a_version_beyond_its_bits_is_none_and_never_wraps() {
        assert_eq!(Version::compose(MAX_OPEN_COUNT + 1, 0), None);
        assert_eq!(Version::compose(0, 1 << COUNTER_BITS), None);
        assert!(Version::compose(MAX_OPEN_COUNT, (1 << COUNTER_BITS) - 1).is_some());
    }
}
