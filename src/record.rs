//! Derives the meaning of a record for its key at a given store time. Pure functions.
//!
//! The status of a key is never stored. It follows from the last record of the key, from store time and, for an attempt
//! that began, from whether a lease on it is alive in this process (see [`Liveness::Begun`]).
//!
//! The encoding of records is in [`crate::format::record`].

use std::fmt;

use crate::format::NEVER_MS;
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record};
use crate::hash::Domain;
use crate::planted::{Bug, planted};
use crate::status::{Event, Status, Version, transition};

/// Prints a result in `{:?}` as its length only, because the content may be confidential and must not reach a log.
pub(crate) struct Length(pub(crate) usize);

impl fmt::Debug for Length {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "<{} bytes>", self.0)
    }
}

/// The meaning of the last record of a key at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// The key is absent: it was forgotten, or its retention has passed.
    Gone,
    /// The key is absent: the side effect of the last attempt certainly did not happen. The number of attempts is kept
    /// until the segment is reclaimed.
    Released,
    /// An attempt began. It is in progress while its lease is alive, and in doubt afterwards. Time never ends the
    /// doubt.
    Begun,
    /// The operation is completed, and its result is kept.
    Completed,
    /// The operation is completed. Its result has expired, or was never recorded.
    CompletedWithoutResult,
    /// The record carries the bytes of a record that failed its checksum; see [`lost_liveness`].
    Unreadable,
    /// A message that is not acknowledged. Not a meaning for a key.
    Message,
}

/// Returns the liveness of a key whose last record cannot be read. `was` is the kind of that record, if known.
pub(crate) fn lost_liveness(was: Option<Kind>, key_expires_ms: u64, now_ms: u64) -> Liveness {
    match was {
        Some(Kind::Begun | Kind::StepBegun | Kind::StepUnreadable) => Liveness::Begun,
        // A step does not expire.
        Some(Kind::StepCompleted) => Liveness::Completed,
        Some(Kind::StepReleased) => Liveness::Released,
        Some(Kind::Message | Kind::MessageUnreadable) => Liveness::Message,
        // The key is absent in each of these cases. The number of attempts of a released key is lost.
        Some(Kind::Released | Kind::Forgotten | Kind::Acknowledged | Kind::Ignorable) => Liveness::Gone,
        Some(Kind::Completed | Kind::Unreadable) | None if now_ms >= key_expires_ms => Liveness::Gone,
        Some(Kind::Completed) => Liveness::Completed,
        // It is unknown whether the operation was completed, so the key is in doubt.
        Some(Kind::Unreadable) | None => Liveness::Begun,
    }
}

/// Returns the liveness of the key whose last record is `record`.
pub(crate) fn liveness(record: &Record<'_>, now_ms: u64) -> Liveness {
    let status = match record.kind {
        Kind::Forgotten | Kind::Acknowledged | Kind::Ignorable => return Liveness::Gone,
        // Time never ends a message: only its acknowledgement does.
        Kind::Message | Kind::MessageUnreadable => return Liveness::Message,
        Kind::Begun => Status::InDoubt,
        Kind::Released => Status::Absent,
        Kind::Completed => Status::Completed,
        Kind::Unreadable if now_ms >= record.key_expires_ms => return Liveness::Gone,
        Kind::Unreadable | Kind::StepUnreadable => return Liveness::Unreadable,
        // Time never ends a step: it ends with its operation.
        Kind::StepBegun => return Liveness::Begun,
        Kind::StepReleased => return Liveness::Released,
        Kind::StepCompleted if record.value.result.is_none() => return Liveness::CompletedWithoutResult,
        Kind::StepCompleted => return Liveness::Completed,
    };
    if now_ms >= record.key_expires_ms && transition(status, Event::ExpireKey).is_ok() {
        return Liveness::Gone;
    }
    match status {
        Status::Absent => Liveness::Released,
        Status::Completed if record.value.result.is_none() || now_ms >= record.result_expires_ms => {
            Liveness::CompletedWithoutResult
        }
        Status::Completed => Liveness::Completed,
        _ => Liveness::Begun,
    }
}

/// What reclaiming a segment does with the last record of a key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retirement {
    /// Removes it from the index and the log.
    Drop,
    /// Appends it again unchanged.
    Keep,
    /// Appends it again without its result, as the tombstone of a key that outlives its result.
    KeepWithoutResult,
}

/// Decides what reclaiming a segment does with `record`, the last one of its key.
///
/// A step is kept with its operation. The caller drops the steps of an operation that has ended.
pub(crate) fn retirement(record: &Record<'_>, now_ms: u64) -> Retirement {
    if record.kind.domain() == Some(Domain::Step) {
        return Retirement::Keep;
    }
    match liveness(record, now_ms) {
        Liveness::Gone => Retirement::Drop,
        Liveness::CompletedWithoutResult if planted(Bug::TombstoneDropped) => Retirement::Drop,
        Liveness::CompletedWithoutResult if record.value.result.is_some() => Retirement::KeepWithoutResult,
        // The number of attempts alone is not worth space in the log.
        Liveness::Released if !planted(Bug::ReleasedKept) => Retirement::Drop,
        Liveness::Unreadable if planted(Bug::UnreadableDropped) => Retirement::Drop,
        Liveness::Message if planted(Bug::MessageExpires) && now_ms >= record.time_ms + 100_000 => {
            Retirement::Drop
        }
        Liveness::Released
        | Liveness::Begun
        | Liveness::Completed
        | Liveness::CompletedWithoutResult
        | Liveness::Unreadable
        | Liveness::Message => Retirement::Keep,
    }
}

/// How long a finished operation is kept, counted from its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    pub(crate) key_ms: u64,
    pub(crate) result_ms: u64,
}

impl Retention {
    /// Returns the key expiry and the result expiry of an operation that finishes at `now_ms`. Both saturate at
    /// [`NEVER_MS`].
    pub(crate) fn expiries(self, now_ms: u64) -> (u64, u64) {
        (now_ms.saturating_add(self.key_ms), now_ms.saturating_add(self.result_ms))
    }
}

/// The length of a record and the times at which parts of it become dead, for space accounting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordSize {
    pub(crate) kind: Kind,
    pub(crate) length_bytes: u64,
    pub(crate) key_expires_ms: u64,
    pub(crate) result_expires_ms: u64,
}

/// The estimated length of a tombstone: the fixed part of a record and a key of typical length. A footer does not
/// contain the length of the key, and an estimate is enough.
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

    /// The size of several records of steps with this length in all.
    pub(crate) fn of_steps(length_bytes: u64) -> RecordSize {
        let (key_expires_ms, result_expires_ms) = (NEVER_MS, NEVER_MS);
        RecordSize { kind: Kind::StepBegun, length_bytes, key_expires_ms, result_expires_ms }
    }

    /// The size of the record that a footer entry lists.
    pub(crate) fn listed(entry: &FooterEntry) -> RecordSize {
        RecordSize {
            kind: entry.kind,
            length_bytes: entry.length,
            key_expires_ms: entry.key_expires_ms,
            result_expires_ms: entry.result_expires_ms,
        }
    }

    /// The two shares of the record, that of the result and that of the key. Each is a pair: the time from which its
    /// bytes are dead, and their number.
    #[inline]
    pub(crate) fn shares(&self) -> [(u64, u64); 2] {
        // Nearly every record of a store is completed, and recovery calls this for each. With a jump table for the kinds
        // instead, opening took about 4% more CPU time.
        if self.kind != Kind::Completed {
            return self.shares_unless_completed();
        }
        let result_bytes = self.length_bytes.saturating_sub(TOMBSTONE_ESTIMATE_BYTES);
        let result_expires_ms = self.result_expires_ms.min(self.key_expires_ms);
        [(result_expires_ms, result_bytes), (self.key_expires_ms, self.length_bytes - result_bytes)]
    }

    #[cold]
    #[inline(never)]
    fn shares_unless_completed(&self) -> [(u64, u64); 2] {
        match self.kind {
            // A step lives as long as its operation is unfinished. The change that ends the operation counts its steps as dead.
            Kind::Begun
            | Kind::StepBegun
            | Kind::StepCompleted
            | Kind::StepReleased
            | Kind::StepUnreadable
            | Kind::Message
            | Kind::MessageUnreadable => [(NEVER_MS, self.length_bytes), (NEVER_MS, 0)],
            Kind::Unreadable => [(self.key_expires_ms, self.length_bytes), (NEVER_MS, 0)],
            Kind::Released if planted(Bug::ReleasedKept) => {
                [(self.key_expires_ms, self.length_bytes), (NEVER_MS, 0)]
            }
            // Reclaiming never moves the first four, so they are dead from the start. The caller handles `Completed`.
            Kind::Released | Kind::Forgotten | Kind::Acknowledged | Kind::Ignorable | Kind::Completed => {
                [(0, self.length_bytes), (NEVER_MS, 0)]
            }
        }
    }
}

/// A message that is not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingMessage {
    pub(crate) id: Version,
    /// The hash of the topic's name.
    pub(crate) topic: u64,
    /// When the message was emitted, in store time.
    pub(crate) time_ms: u64,
    /// The length of its record.
    pub(crate) length_bytes: u64,
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
    fn result_and_key_expire_exactly_at_their_milliseconds() {
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
    fn an_unreadable_record_is_kept_until_its_key_expires() {
        let unreadable = record(Kind::Unreadable, Some(b"bytes"));
        for (now_ms, expected, becomes) in
            [(199, Liveness::Unreadable, Retirement::Keep), (200, Liveness::Gone, Retirement::Drop)]
        {
            assert_eq!(liveness(&unreadable, now_ms), expected, "at {now_ms}");
            assert_eq!(retirement(&unreadable, now_ms), becomes, "at {now_ms}");
        }
    }

    #[test]
    fn the_liveness_of_a_lost_record_follows_from_its_kind() {
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
    fn a_released_record_is_dead_at_once_and_never_moved() {
        let released = record(Kind::Released, None);
        assert_eq!(
            (liveness(&released, 199), retirement(&released, 199)),
            (Liveness::Released, Retirement::Drop)
        );
        assert_eq!(RecordSize::of(&released, 88).shares(), [(0, 88), (NEVER_MS, 0)]);
    }

    #[test]
    fn a_result_is_printed_as_its_length() {
        assert_eq!(format!("{:?}", Length(7)), "<7 bytes>");
    }

    #[test]
    fn time_never_ends_an_attempt_that_began() {
        assert_eq!(
            liveness(&record(Kind::Begun, None), u64::MAX),
            Liveness::Begun,
            "an attempt must not end at the expiry in its record"
        );
        assert_eq!(retirement(&record(Kind::Begun, None), u64::MAX), Retirement::Keep);
    }

    #[test]
    fn reclaiming_drops_a_result_only_after_it_expired() {
        let completed = record(Kind::Completed, Some(b"result"));
        assert_eq!(retirement(&completed, 99), Retirement::Keep);
        assert_eq!(retirement(&completed, 100), Retirement::KeepWithoutResult);
        assert_eq!(retirement(&record(Kind::Completed, None), 100), Retirement::Keep);
        assert_eq!(retirement(&completed, 200), Retirement::Drop);
    }

    #[test]
    fn the_two_shares_of_a_record_add_up_to_its_length() {
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
