//! What a record means: how it stands for its key at a given store time.
//!
//! A status is never stored. It follows from the key's last record, from the time, and, for an attempt that began,
//! from whether a lease on it is alive in this process (see [`Liveness::Begun`]).

use std::fmt;

use crate::format::NEVER_MS;
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record};
use crate::planted::{Bug, planted};
use crate::status::{Event, Status, transition};

/// How `{:?}` prints a result: by its length, because what is in it is the caller's business and not a log's.
pub(crate) struct Length(pub(crate) usize);

impl fmt::Debug for Length {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "<{} bytes>", self.0)
    }
}

/// What a key's last record leaves of it at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Nothing: forgotten, or its retention has passed.
    Gone,
    /// The act did not happen; only the number of attempts is remembered, until the segment is retired.
    Released,
    /// An attempt began. In progress while its lease is alive, in doubt otherwise; never ended by time.
    Begun,
    /// Done, and the result is still kept.
    Completed,
    /// Done, and the result has been given up.
    CompletedWithoutResult,
    /// Something that cannot be read any more; see [`lost_life`].
    Unreadable,
}

/// What a record leaves of its key that cannot be read, going by what it was, if that is known.
pub(crate) fn lost_liveness(was: Option<Kind>, key_expires_ms: u64, now_ms: u64) -> Liveness {
    match was {
        Some(Kind::Begun) => Liveness::Begun,
        // Of a released key only the count of attempts is lost.
        Some(Kind::Released | Kind::Forgotten | Kind::Ignorable) => Liveness::Gone,
        Some(Kind::Completed | Kind::Unreadable) | None if now_ms >= key_expires_ms => Liveness::Gone,
        Some(Kind::Completed) => Liveness::Completed,
        // Nobody knows whether it happened.
        Some(Kind::Unreadable) | None => Liveness::Begun,
    }
}

pub(crate) fn liveness(record: &Record<'_>, now_ms: u64) -> Liveness {
    let status = match record.kind {
        Kind::Forgotten | Kind::Ignorable => return Liveness::Gone,
        Kind::Begun => Status::InDoubt,
        Kind::Released => Status::Absent,
        Kind::Completed => Status::Completed,
        Kind::Unreadable if now_ms >= record.key_expires_ms => return Liveness::Gone,
        Kind::Unreadable => return Liveness::Unreadable,
    };
    if now_ms >= record.key_expires_ms && transition(status, Event::ExpireKey).is_ok() {
        return Liveness::Gone;
    }
    match record.kind {
        Kind::Forgotten | Kind::Ignorable => Liveness::Gone,
        Kind::Begun => Liveness::Begun,
        Kind::Unreadable => Liveness::Unreadable,
        Kind::Released => Liveness::Released,
        Kind::Completed if record.value.result.is_none() || now_ms >= record.result_expires_ms => {
            Liveness::CompletedWithoutResult
        }
        Kind::Completed => Liveness::Completed,
    }
}

/// What becomes of a key's last record when its segment is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retirement {
    /// It leaves the index and the log.
    Drop,
    /// It is appended again as it is.
    Keep,
    /// It is appended again without its result: the tombstone of a key that outlives its result.
    KeepWithoutResult,
}

pub(crate) fn retirement(record: &Record<'_>, now_ms: u64) -> Retirement {
    match liveness(record, now_ms) {
        Liveness::Gone => Retirement::Drop,
        Liveness::CompletedWithoutResult if planted(Bug::TombstoneDropped) => Retirement::Drop,
        Liveness::CompletedWithoutResult if record.value.result.is_some() => Retirement::KeepWithoutResult,
        // The count of attempts is a courtesy, not worth a place in the log.
        Liveness::Released if !planted(Bug::ReleasedKept) => Retirement::Drop,
        Liveness::Unreadable if planted(Bug::UnreadableDropped) => Retirement::Drop,
        Liveness::Released
        | Liveness::Begun
        | Liveness::Completed
        | Liveness::CompletedWithoutResult
        | Liveness::Unreadable => Retirement::Keep,
    }
}

/// How long a finished operation is remembered, counted from its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    pub(crate) key_ms: u64,
    pub(crate) result_ms: u64,
}

impl Retention {
    /// (key expiry, result expiry) of what finishes at `now_ms`. Saturates at "never".
    pub(crate) fn expiries(self, now_ms: u64) -> (u64, u64) {
        (now_ms.saturating_add(self.key_ms), now_ms.saturating_add(self.result_ms))
    }
}

/// The parts of a record's length and when each of them stops being of use: what reclaiming counts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordSize {
    pub(crate) kind: Kind,
    pub(crate) length_bytes: u64,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
}

/// What a tombstone takes, roughly: the fixed part of a record and a key of usual length. Only an estimate is
/// needed, and the footer does not know the key's length.
const TOMBSTONE_ESTIMATE_BYTES: u64 = 120;

impl RecordSize {
    pub(crate) fn of(record: &Record<'_>, length_bytes: u64) -> RecordSize {
        RecordSize {
            kind: record.kind,
            length_bytes,
            key_expires_ms: record.key_expires_ms,
            result_expires_ms: record.result_expires_ms,
        }
    }

    /// The same, as the footer says it.
    pub(crate) fn listed(entry: &FooterEntry) -> RecordSize {
        RecordSize {
            kind: entry.kind,
            length_bytes: entry.length,
            key_expires_ms: entry.key_expires_ms,
            result_expires_ms: entry.result_expires_ms,
        }
    }

    /// (time from which they are dead, bytes), twice: what goes with the result, and what goes with the key.
    pub(crate) fn shares(&self) -> [(u64, u64); 2] {
        match self.kind {
            Kind::Begun => [(NEVER_MS, self.length_bytes), (NEVER_MS, 0)],
            Kind::Unreadable => [(self.key_expires_ms, self.length_bytes), (NEVER_MS, 0)],
            Kind::Released if planted(Bug::ReleasedKept) => {
                [(self.key_expires_ms, self.length_bytes), (NEVER_MS, 0)]
            }
            // Nothing of these has to be moved.
            Kind::Released | Kind::Forgotten | Kind::Ignorable => [(0, self.length_bytes), (NEVER_MS, 0)],
            Kind::Completed => {
                let with_result = self.length_bytes.saturating_sub(TOMBSTONE_ESTIMATE_BYTES);
                let result_expires_ms = self.result_expires_ms.min(self.key_expires_ms);
                [(result_expires_ms, with_result), (self.key_expires_ms, self.length_bytes - with_result)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Value;
    use crate::key::{Fingerprint, Key};
    use crate::status::Version;

    fn record(kind: Kind, result: Option<&'static [u8]>) -> Record<'static> {
        Record {
            kind,
            key: Key::new("k"),
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 0,
            key_expires_ms: 200,
            result_expires_ms: 100,
            value: Value { result, ..Value::NONE },
        }
    }

    #[test]
    fn a_completed_record_loses_its_result_first_and_its_key_last_each_at_its_own_millisecond() {
        let completed = record(Kind::Completed, Some(b""));
        for (now_ms, expected) in [
            (0, Liveness::Completed),
            (99, Liveness::Completed),
            (100, Liveness::CompletedWithoutResult),
            (199, Liveness::CompletedWithoutResult),
            (200, Liveness::Gone),
            (u64::MAX, Liveness::Gone),
        ] {
            assert_eq!(liveness(&completed, now_ms), expected, "at {now_ms}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_kept_until_its_key_would_expire() {
        let unreadable = record(Kind::Unreadable, Some(b"bytes"));
        for (now_ms, expected, becomes) in
            [(199, Liveness::Unreadable, Retirement::Keep), (200, Liveness::Gone, Retirement::Drop)]
        {
            assert_eq!(liveness(&unreadable, now_ms), expected, "at {now_ms}");
            assert_eq!(retirement(&unreadable, now_ms), becomes, "at {now_ms}");
        }
    }

    #[test]
    fn a_lost_record_leaves_what_its_kind_allows_and_a_doubt_where_that_is_not_known() {
        for (was, before, from_expiry_on) in [
            (Some(Kind::Begun), Liveness::Begun, Liveness::Begun),
            (Some(Kind::Completed), Liveness::Completed, Liveness::Gone),
            (Some(Kind::Unreadable), Liveness::Begun, Liveness::Gone),
            (None, Liveness::Begun, Liveness::Gone),
            (Some(Kind::Released), Liveness::Gone, Liveness::Gone),
            (Some(Kind::Forgotten), Liveness::Gone, Liveness::Gone),
            (Some(Kind::Ignorable), Liveness::Gone, Liveness::Gone),
        ] {
            assert_eq!(lost_liveness(was, 200, 199), before, "{was:?}");
            assert_eq!(lost_liveness(was, 200, 200), from_expiry_on, "{was:?}");
        }
    }

    #[test]
    fn a_released_record_is_not_moved_and_all_of_it_is_dead_at_once() {
        let released = record(Kind::Released, None);
        assert_eq!(
            (liveness(&released, 199), retirement(&released, 199)),
            (Liveness::Released, Retirement::Drop)
        );
        assert_eq!(RecordSize::of(&released, 88).shares(), [(0, 88), (NEVER_MS, 0)]);
    }

    #[test]
    fn a_result_is_printed_by_its_length() {
        assert_eq!(format!("{:?}", Length(7)), "<7 bytes>");
    }

    #[test]
    fn time_never_ends_an_attempt_that_began() {
        assert_eq!(
            liveness(&record(Kind::Begun, None), u64::MAX),
            Liveness::Begun,
            "though its expiry is at 200"
        );
        assert_eq!(retirement(&record(Kind::Begun, None), u64::MAX), Retirement::Keep);
    }

    #[test]
    fn a_result_is_dropped_on_the_way_only_once_it_has_expired() {
        let completed = record(Kind::Completed, Some(b"result"));
        assert_eq!(retirement(&completed, 99), Retirement::Keep);
        assert_eq!(retirement(&completed, 100), Retirement::KeepWithoutResult);
        assert_eq!(retirement(&record(Kind::Completed, None), 100), Retirement::Keep);
        assert_eq!(retirement(&completed, 200), Retirement::Drop);
    }

    #[test]
    fn the_two_shares_of_a_record_are_all_of_it() {
        for (kind, length_bytes) in [
            (Kind::Begun, 88),
            (Kind::Completed, 88),
            (Kind::Completed, 65_536),
            (Kind::Released, 88),
            (Kind::Forgotten, 88),
            (Kind::Unreadable, 168),
        ] {
            let size = RecordSize::of(&record(kind, None), length_bytes);
            let [(_, first), (_, second)] = size.shares();
            assert_eq!(first + second, length_bytes, "{kind:?}");
        }
    }

    #[test]
    fn retention_saturates_at_never() {
        let retention = Retention { key_ms: u64::MAX, result_ms: 5 };
        assert_eq!(retention.expiries(10), (NEVER_MS, 15));
    }
}
