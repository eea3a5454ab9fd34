//! The state of a key, the versions of its records, and the table of all changes of state.
//!
//! [`CASES`] has one row for each pair of status and event; [`transition`] looks up a pair in it. The module is pure: it uses
//! no records, clocks or leases. `record` and `engine::view` derive a key's [`Status`]; every module that changes a key calls
//! [`transition`] first.
//!
//! Invariants:
//!
//! - Time never ends an operation that is in progress, in doubt or stopped. Only a completion, a release or a forget does.
//! - A completed key never runs again and never changes its result. It loses the result, and later the key, when their
//!   retentions pass. A forget removes both at once.

use std::fmt;
use std::str::FromStr;

/// The state of a key.
///
/// | status | the side effect | how it ends |
/// |---|---|---|
/// | `Absent` | is not known to have run | a begin, or [`Store::record`](crate::Store::record) |
/// | `InProgress` | may be running now | completion or release; anything else leaves it in doubt |
/// | `InDoubt` | may have happened | completion, release, another attempt, or [`Store::forget`](crate::Store::forget); never by time |
/// | `Stopped` | is in steps, each of which is done, released or given up | another attempt, completion, or [`Store::forget`](crate::Store::forget); never by time |
/// | `Completed` | has happened | when the key's retention passes, or [`Store::forget`](crate::Store::forget) |
/// | `Begun` | may be running now, or may have happened | as `InProgress` or `InDoubt`; only a [`Reader`](crate::Reader) reports it |
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
    /// The key has no operation: none ever began, or it was released or forgotten, or its retention has passed.
    Absent,
    /// A lease on the key is alive in this process, and its deadline, if it has one, has not passed.
    InProgress,
    /// An attempt began, its lease is gone or past its deadline, and it is unknown whether its side effect happened.
    InDoubt,
    /// The last attempt at an operation of several steps has ended, and the outcome of every step that began is known: it is
    /// done, released or given up. There is nothing to find out, so the next begin goes on with the next attempt.
    Stopped,
    /// The side effect happened, and the store has recorded that.
    Completed,
    /// An attempt began and has not ended. Only a [`Reader`](crate::Reader) reports this, while another process may have
    /// the store open: it cannot know whether that process is running the attempt.
    Begun,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Status::Absent => "absent",
            Status::InProgress => "in progress",
            Status::InDoubt => "in doubt",
            Status::Stopped => "stopped",
            Status::Completed => "completed",
            Status::Begun => "begun",
        })
    }
}

/// The version of a record: a number that identifies one change of one key, and serves as a fencing token.
///
/// Versions are unique within a file, and a later version of a key is always higher than an earlier one. This holds across
/// restarts, power loss, deletion and compaction, which moves records without changing their versions. Pass the version to
/// the outside world together with the side effect, so that the outside world can refuse an attempt whose version is lower
/// than the highest it has seen.
///
/// The upper 24 bits are the open count: how often the file was opened without a clean close before. The lower 40 bits count
/// the changes since then. Opening the file after a clean close normally continues both counts.
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

/// How many bits of a version count the changes under one open count.
const COUNTER_BITS: u32 = 40;
/// The highest open count that a version can hold.
pub(crate) const MAX_OPEN_COUNT: u32 = (1 << (64 - COUNTER_BITS)) - 1;
const _: () = assert!(MAX_OPEN_COUNT == 0x00FF_FFFF);
/// The highest count of changes that a version can hold.
pub(crate) const MAX_COUNTER: u64 = (1 << COUNTER_BITS) - 1;
const _: () = assert!(MAX_COUNTER == 0x00FF_FFFF_FFFF);

impl Version {
    /// Returns the version of change `counter` under `open_count`, or `None` if either does not fit into its bits.
    pub(crate) fn compose(open_count: u32, counter: u64) -> Option<Version> {
        let fits = open_count <= MAX_OPEN_COUNT && counter <= MAX_COUNTER;
        fits.then(|| Version(u64::from(open_count) << COUNTER_BITS | counter))
    }

    /// The open count: how often the file had been opened without a clean close before when this version was made.
    pub(crate) fn open_count(self) -> u32 {
        u32::try_from(self.0 >> COUNTER_BITS).unwrap_or(MAX_OPEN_COUNT)
    }

    /// The number of the change under that open count.
    pub(crate) fn counter(self) -> u64 {
        self.0 & MAX_COUNTER
    }

    /// Returns the version as a number, for logs, headers, and fencing checks outside the store. Numbers compare as their
    /// versions do.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Makes a version from the number that [`Version::as_u64`] returned. Every number is a valid version; calls of a store
    /// check whether a record has it.
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

    /// Parses exactly what `Display` prints: the open count and the number of the change, as in `3.1729`.
    fn from_str(text: &str) -> Result<Version, ParseVersionError> {
        let (open_count, counter) = text.split_once('.').ok_or(ParseVersionError(()))?;
        let open_count = open_count.parse().map_err(|_| ParseVersionError(()))?;
        let counter = counter.parse().map_err(|_| ParseVersionError(()))?;
        let version = Version::compose(open_count, counter).ok_or(ParseVersionError(()))?;
        // No signs and no leading zeroes: programs compare versions as text, so each version has one text only.
        if version.to_string() == text { Ok(version) } else { Err(ParseVersionError(())) }
    }
}

/// The error of parsing text that is not a [`Version`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseVersionError(());

impl fmt::Display for ParseVersionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("not a version: expected two numbers and a dot between them, as in 3.1729")
    }
}

impl std::error::Error for ParseVersionError {}

/// What can happen to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A caller wants to run the side effect.
    Begin,
    /// The side effect happened, and its result is to be recorded.
    Complete,
    /// The side effect certainly did not happen.
    Release,
    /// The lease was dropped, its process ended, its deadline passed, or a compare-and-set puts the key in doubt.
    Doubt,
    /// The begin and the completion are to be recorded in one record.
    Record,
    /// The key's retention passed.
    ExpireKey,
    /// An operator removes what the store has recorded about the key.
    Forget,
}

/// Why an event cannot happen to a key in its current status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A lease on the key is alive in this process.
    InProgress,
    /// It is unknown whether the side effect of an earlier attempt happened.
    InDoubt,
    /// The operation is completed: the recorded result is the answer.
    Completed,
    /// There is no operation that the event could end.
    Absent,
    /// Retention begins when an operation is completed or released, and this one is neither.
    NotFinished,
}

/// One row of the state table: the decision for one status and one event.
struct Case {
    /// Names the row in test failures.
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers and tests"))]
    label: &'static str,
    from: Status,
    event: Event,
    decision: Result<Status, Refused>,
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers and tests"))]
    reason: &'static str,
}

const fn case(
    label: &'static str,
    from: Status,
    event: Event,
    decision: Result<Status, Refused>,
    reason: &'static str,
) -> Case {
    Case { label, from, event, decision, reason }
}

const STATUSES: usize = 5;
const EVENTS: usize = 7;

/// The state table: every event by every status, in the order of the two enums.
#[rustfmt::skip]
const CASES: [[Case; STATUSES]; EVENTS] = {
    use Event::{Begin, Complete, Doubt, ExpireKey, Forget, Record, Release};
    use Status::{Absent, Completed, InDoubt, InProgress, Stopped};
    [
        [
            case("begin, absent", Absent, Begin, Ok(InProgress),
                "No attempt is known, so this one may run, once its begin record is as durable as was asked for."),
            case("begin, in progress", InProgress, Begin, Err(Refused::InProgress),
                "A lease is alive: a second attempt would run the side effect at the same time."),
            case("begin, in doubt", InDoubt, Begin, Ok(InProgress),
                "The next attempt may run. The engine first gives the caller the doubt, so that the caller makes that decision."),
            case("begin, stopped", Stopped, Begin, Ok(InProgress),
                "Nothing is in doubt: the next attempt gets the results of the finished steps and goes on after them."),
            case("begin, completed", Completed, Begin, Err(Refused::Completed),
                "The side effect happened: the caller gets the recorded result and never runs it again."),
        ],
        [
            case("complete, absent", Absent, Complete, Err(Refused::Absent),
                "The attempt was released or forgotten meanwhile, so its lease is fenced."),
            case("complete, in progress", InProgress, Complete, Ok(Completed),
                "The side effect happened: one record holds the status and the result, so no crash separates them."),
            case("complete, in doubt", InDoubt, Complete, Ok(Completed),
                "A caller found out that the side effect happened, or its own lease completes it after the deadline."),
            case("complete, stopped", Stopped, Complete, Ok(Completed),
                "The attempt's own lease completes it after the deadline, or a caller found out that all of it is done."),
            case("complete, completed", Completed, Complete, Err(Refused::Completed),
                "The first recorded result stands: every retry must get the same one."),
        ],
        [
            case("release, absent", Absent, Release, Err(Refused::Absent),
                "The attempt was released or forgotten meanwhile, so its lease is fenced."),
            case("release, in progress", InProgress, Release, Ok(Absent),
                "The side effect certainly did not happen: the next begin starts as if for the first time."),
            case("release, in doubt", InDoubt, Release, Ok(Absent),
                "A caller found out that the side effect certainly did not happen."),
            case("release, stopped", Stopped, Release, Ok(Absent),
                "Only if no step holds the operation: the engine refuses the release while a step is finished or given up."),
            case("release, completed", Completed, Release, Err(Refused::Completed),
                "A side effect that is recorded as done cannot turn out not to have happened; only a forget removes it."),
        ],
        [
            case("doubt, absent", Absent, Doubt, Err(Refused::Absent),
                "There is no attempt whose outcome could be unknown; a begin must come first."),
            case("doubt, in progress", InProgress, Doubt, Ok(InDoubt),
                "No thread owns the attempt any more, and it may have run its side effect before."),
            case("doubt, in doubt", InDoubt, Doubt, Ok(InDoubt),
                "Nothing changes but the version, which fences a caller that is resolving the earlier doubt."),
            case("doubt, stopped", Stopped, Doubt, Ok(Stopped),
                "Nothing changes but the version: the outcome of every step stays known."),
            case("doubt, completed", Completed, Doubt, Err(Refused::Completed),
                "A known outcome does not become unknown again."),
        ],
        [
            case("record, absent", Absent, Record, Ok(Completed),
                "No attempt is known: one record holds the begin and the completion."),
            case("record, in progress", InProgress, Record, Err(Refused::InProgress),
                "The result of the attempt that is running must not be pre-empted."),
            case("record, in doubt", InDoubt, Record, Err(Refused::InDoubt),
                "The earlier attempt may have happened with a different result: the doubt must be resolved first."),
            case("record, stopped", Stopped, Record, Err(Refused::InDoubt),
                "Steps of the operation are done: a result from outside must not hide those that are missing."),
            case("record, completed", Completed, Record, Err(Refused::Completed),
                "The first recorded result stands, and the caller gets it."),
        ],
        [
            case("expire key, absent", Absent, ExpireKey, Ok(Absent),
                "A released key keeps only its count of attempts, which expires too."),
            case("expire key, in progress", InProgress, ExpireKey, Err(Refused::NotFinished),
                "If a running attempt were forgotten, a retry would run its side effect again."),
            case("expire key, in doubt", InDoubt, ExpireKey, Err(Refused::NotFinished),
                "If a doubt were forgotten, a retry would run its side effect again, although it may have happened."),
            case("expire key, stopped", Stopped, ExpireKey, Err(Refused::NotFinished),
                "If a stopped job were forgotten, a retry would run its finished steps again."),
            case("expire key, completed", Completed, ExpireKey, Ok(Absent),
                "Retries were expected only within the retention, which has passed."),
        ],
        [
            case("forget, absent", Absent, Forget, Err(Refused::Absent),
                "There is nothing to forget, and nothing to write."),
            case("forget, in progress", InProgress, Forget, Err(Refused::InProgress),
                "The side effect may be running now; the lease must end first."),
            case("forget, in doubt", InDoubt, Forget, Ok(Absent),
                "An operator decides that the doubt no longer matters; a caller that is resolving it is fenced."),
            case("forget, stopped", Stopped, Forget, Ok(Absent),
                "An operator gives the job up, with all its steps."),
            case("forget, completed", Completed, Forget, Ok(Absent),
                "An operator removes the key before its retention passes."),
        ],
    ]
};

/// The decisions alone, so that a lookup reads one small table and the binary contains no labels and reasons. The compiler
/// computes this table, and checks that each row is where [`transition`] looks it up.
const DECISIONS: [[Result<Status, Refused>; STATUSES]; EVENTS] = {
    let mut decisions = [[Err(Refused::Absent); STATUSES]; EVENTS];
    let mut event = 0;
    while event < EVENTS {
        let mut from = 0;
        while from < STATUSES {
            let case = &CASES[event][from];
            assert!(case.event as usize == event && case.from as usize == from, "a row is out of order");
            decisions[event][from] = case.decision;
            from += 1;
        }
        event += 1;
    }
    decisions
};

/// Returns the status that a key in status `from` has after `event`, or why the event cannot happen to it: the decision of
/// [`CASES`].
pub(crate) fn transition(from: Status, event: Event) -> Result<Status, Refused> {
    // Only readers report this status, and no reader changes a key.
    let from = if from == Status::Begun { Status::InProgress } else { from };
    DECISIONS[event as usize][from as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use Event::{Begin, Complete, Doubt, ExpireKey, Forget, Record, Release};
    use Status::{Absent, Completed, InDoubt, InProgress, Stopped};

    const EVERY_STATUS: [Status; STATUSES] = [Absent, InProgress, InDoubt, Stopped, Completed];
    const EVERY_EVENT: [Event; EVENTS] = [Begin, Complete, Release, Doubt, Record, ExpireKey, Forget];

    /// The same decisions, written a second time and arranged by status, so that a mistake in [`CASES`] shows as a
    /// difference.
    const SPECIFIED: [(Status, [Result<Status, Refused>; EVENTS]); STATUSES] = [
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
            Stopped,
            [
                Ok(InProgress),
                Ok(Completed),
                Ok(Absent),
                Ok(Stopped),
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

    /// Returns the row for this pair, found by its columns and not by its position.
    fn case_of(from: Status, event: Event) -> &'static Case {
        const ROWS: &[[Case; STATUSES]; EVENTS] = &CASES;
        let mut rows = ROWS.iter().flatten().filter(|case| case.from == from && case.event == event);
        let case = rows.next().unwrap_or_else(|| panic!("no row for {from} x {event:?}"));
        assert!(rows.next().is_none(), "two rows for {from} x {event:?}");
        case
    }

    #[test]
    fn every_status_and_event_is_decided_as_specified() {
        for (from, specified) in SPECIFIED {
            for (event, specified) in EVERY_EVENT.into_iter().zip(specified) {
                let Case { label, reason, decision, .. } = case_of(from, event);
                assert_eq!(transition(from, event), specified, "row \"{label}\": {reason}");
                assert_eq!(*decision, specified, "row \"{label}\": {reason}");
            }
        }
    }

    #[test]
    fn every_row_is_labelled_by_its_condition_and_gives_a_reason() {
        for (from, event) in EVERY_STATUS.into_iter().flat_map(|from| EVERY_EVENT.map(|event| (from, event)))
        {
            let Case { label, reason, .. } = case_of(from, event);
            let (of_event, of_status) = label.split_once(", ").unwrap();
            assert_eq!(of_status, from.to_string(), "row \"{label}\"");
            assert_eq!(of_event.replace(' ', ""), format!("{event:?}").to_lowercase(), "row \"{label}\"");
            assert!(reason.ends_with('.') && reason.len() > 20, "row \"{label}\" gives no reason");
        }
    }

    #[test]
    fn a_status_prints_its_name() {
        let names = EVERY_STATUS.map(|status| status.to_string());
        assert_eq!(names, ["absent", "in progress", "in doubt", "stopped", "completed"]);
    }

    #[test]
    fn a_higher_open_count_makes_every_version_higher() {
        let last = Version::compose(1, (1 << COUNTER_BITS) - 1).unwrap();
        let next = Version::compose(2, 0).unwrap();
        assert!(next > last);
        assert_eq!(next.open_count(), 2);
        assert_eq!(next.to_string(), "2.0");
    }

    #[test]
    fn a_version_that_does_not_fit_its_bits_is_none() {
        assert_eq!(Version::compose(MAX_OPEN_COUNT + 1, 0), None);
        assert_eq!(Version::compose(0, 1 << COUNTER_BITS), None);
        assert!(Version::compose(MAX_OPEN_COUNT, (1 << COUNTER_BITS) - 1).is_some());
    }
}
