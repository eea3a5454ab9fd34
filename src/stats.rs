//! The types that describe a store ([`Stats`]) and a key ([`KeyState`], [`CasOutcome`]).

mod cas_outcome;

pub use cas_outcome::CasOutcome;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{CARRIED_REASON, Counted, Engine, Found, found_at};
use crate::error::{Error, Result};
use crate::format::record::{Kind, Record, Typing};
use crate::index::Address;
use crate::key::{Fingerprint, Key, OwnedKey};
use crate::log::reader::RecordLocation;
use crate::record::{Length, Liveness, lost_liveness};
use crate::status::{Status, Version};
use crate::sync::Patience;
use crate::typed;

/// Figures of one store, for metrics. See [`Store::stats`](crate::Store::stats).
///
/// The figures are read one after another, so under load they may not add up. Counts that are "since the store was opened"
/// start at zero each time.
///
/// A poll takes microseconds, and time in proportion to the number of unfinished operations. It can wait for a write by another
/// thread. [`to_openmetrics`](Stats::to_openmetrics) prints the figures for a monitoring system;
/// [the guide](crate::guide::operating#watch) says what to alert on.
///
/// In a forked child, where the store must not take locks, `keys`, `index_bytes`, `file_bytes`, `free_bytes`, `record_bytes`,
/// `dead_bytes`, `reserved_bytes`, `frames` and `records` are 0 and `poisoned` is false. The others are as they were at the fork.
///
/// ```
/// use oncekey::{Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// store.record("a", Fingerprint::NONE, b"result")?;
/// assert_eq!(store.stats().keys, 1);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The number of keys in the index, and of messages that are not acknowledged. Includes keys whose retention has passed,
    /// until their segment is retired.
    pub keys: usize,
    /// The memory of the index, in bytes.
    pub index_bytes: usize,
    /// The number of segments of the log.
    pub segments: u64,
    /// The bytes within the file that are free for new records: free slots, and the rest of the last segment. The file grows
    /// when they are used up.
    pub free_bytes: u64,
    /// The length of the file, in bytes. A slot that is being added counts once it is complete.
    pub file_bytes: u64,
    /// The bytes of the records in the log, dead ones included; without frame headers and footers.
    pub record_bytes: u64,
    /// The part of `record_bytes` that is dead: superseded or expired. An estimate.
    pub dead_bytes: u64,
    /// The space that is reserved for ending the operations in progress, in bytes.
    pub reserved_bytes: u64,
    /// The number of leases and doubts that are alive. [`Store::close`](crate::Store::close) succeeds only if it is 0.
    pub leases: usize,
    /// The number of operations that began and have not ended. [`Store::unfinished`](crate::Store::unfinished) lists them.
    pub unfinished: usize,
    /// The number of those that are in progress: a lease on them is alive.
    pub in_progress: usize,
    /// The number of those that are in doubt or stopped. An operation whose lease has passed its deadline is not counted until another
    /// caller takes it over.
    pub in_doubt: usize,
    /// The number of those in `in_doubt` that are [`Status::Stopped`](crate::Status::Stopped): nothing about them is to be found
    /// out, and the next attempt goes on. 0 in a forked child.
    pub stopped: usize,
    /// The number of steps of unfinished operations, with their inputs.
    pub unfinished_steps: usize,
    /// The memory that the unfinished operations and their steps take, in bytes. 0 in a forked child.
    pub unfinished_bytes: usize,
    /// When the last attempt of the oldest unfinished operation began: in store time, in ms since the Unix epoch. `None` if
    /// there is none, and in a forked child.
    pub oldest_unfinished_ms: Option<u64>,
    /// The number of messages in the [outbox](crate::Store::outbox) that are not acknowledged.
    pub messages: usize,
    /// The bytes of the records of these messages. [`Options::max_outbox`](crate::Options::max_outbox) limits them.
    pub message_bytes: u64,
    /// When the oldest of these messages was emitted, to within 16 ms: in store time, in ms since the Unix epoch. `None` if
    /// there is none, and in a forked child.
    pub oldest_message_ms: Option<u64>,
    /// The number of attempts that began since the store was opened.
    pub begun: u64,
    /// The number of operations that were completed since the store was opened, with an attempt or by
    /// [`Store::record`](crate::Store::record).
    pub completed: u64,
    /// The number of attempts that were released since the store was opened.
    pub released: u64,
    /// The number of keys that were forgotten since the store was opened.
    pub forgotten: u64,
    /// The number of calls that returned a recorded result, or that one is recorded, since the store was opened.
    pub replayed: u64,
    /// The number of calls that were [`Error::Mismatch`] since the store was opened: the same key for different requests.
    pub mismatched: u64,
    /// The number of calls that were [`Error::Fenced`] since the store was opened.
    pub fenced: u64,
    /// The number of attempts that ended in doubt since the store was opened. Those of a process that ended are not in it; they
    /// are in [`in_doubt`](Stats::in_doubt).
    pub doubted: u64,
    /// The number of doubts that were resolved since the store was opened: by a completion, a release, another attempt, or a
    /// [`forget`](crate::Store::forget).
    pub reconciled: u64,
    /// The number of syncs for changes since the store was opened.
    pub syncs: u64,
    /// The number of frames that were written since the store was opened. `records` by this is the size of a group commit.
    pub frames: u64,
    /// The number of records that were written since the store was opened, those that reclaiming moved included.
    pub records: u64,
    /// The bytes of live records that reclaiming moved since the store was opened.
    pub moved_bytes: u64,
    /// The number of segments that reclaiming retired since the store was opened.
    pub segments_retired: u64,
    /// Whether the file system may write changed bytes to a different place on the disk. A completion can then find the disk
    /// full although its space was reserved, which poisons the store.
    ///
    /// True for ZFS, bcachefs and NILFS; for a file on btrfs that this crate did not create, unless it is marked "no copy on
    /// write"; and if the disk was too full to find out when the store was opened. False if nothing is known: on systems
    /// other than Linux and Android, on network file systems, and on an overlay that hides the file system below it.
    pub copy_on_write: bool,
    /// The number of records that are known to be unreadable: those that a call or reclaiming tried to read since the store was
    /// opened, and those that reclaiming moved unread before. Their keys are [`Error::Corrupt`](crate::Error::Corrupt) until
    /// they expire or are [forgotten](crate::Store::forget).
    pub unreadable_records: u64,
    /// Whether reclaiming has stopped because the oldest segment cannot be read. The file then only grows.
    /// [`Store::compact`](crate::Store::compact) returns the error.
    pub reclaiming_stopped: bool,
    /// How often the wall clock was found more than ten seconds away from where it was expected, since the store was opened.
    /// Store time does not follow such a step.
    pub clock_steps_not_followed: u64,
    /// Store time, in ms since the Unix epoch: the time in which retentions and lease deadlines are counted. It starts at the
    /// wall clock when the file is created, and differs from it if the wall clock was or is wrong.
    pub store_time_ms: u64,
    /// Whether a write or a sync has failed. Every change is [`Error::Poisoned`](crate::Error::Poisoned) until the store is
    /// opened again.
    pub poisoned: bool,
    /// Whether the path was found to lead to a different file than the open one, or to no file. Beginning anything new is
    /// then [`Error::Replaced`](crate::Error::Replaced).
    pub replaced: bool,
}

impl Stats {
    /// The part of `record_bytes` that is live. An estimate.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.record_bytes.saturating_sub(self.dead_bytes)
    }

    /// The time since the last attempt of the oldest unfinished operation began, in ms of store time. 0 if there is none.
    #[must_use]
    pub fn oldest_unfinished_age_ms(&self) -> u64 {
        self.oldest_unfinished_ms.map_or(0, |since_ms| self.store_time_ms.saturating_sub(since_ms))
    }

    /// The time since the oldest message that is not acknowledged was emitted, in ms of store time. 0 if there is none.
    #[must_use]
    pub fn oldest_message_age_ms(&self) -> u64 {
        self.oldest_message_ms.map_or(0, |emitted_ms| self.store_time_ms.saturating_sub(emitted_ms))
    }

    pub(crate) fn of(engine: &Engine) -> Stats {
        let log = engine.log();
        let (head, tail) = log.span();
        let (moved_bytes, segments_retired) = engine.reclaimed();
        let (unfinished, in_doubt) = engine.unfinished_counts();
        let (messages, message_bytes) = engine.message_counts();
        let mut stats = Stats {
            keys: 0,
            index_bytes: 0,
            segments: tail - head + 1,
            free_bytes: 0,
            file_bytes: 0,
            record_bytes: 0,
            dead_bytes: 0,
            reserved_bytes: 0,
            leases: engine.claim_count(),
            unfinished,
            in_progress: unfinished - in_doubt,
            in_doubt,
            stopped: 0,
            unfinished_steps: engine.unfinished_steps(),
            unfinished_bytes: 0,
            begun: engine.counted(Counted::Begun),
            completed: engine.counted(Counted::Completed),
            released: engine.counted(Counted::Released),
            forgotten: engine.counted(Counted::Forgotten),
            replayed: engine.counted(Counted::Replayed),
            mismatched: engine.counted(Counted::Mismatched),
            fenced: engine.counted(Counted::Fenced),
            doubted: engine.counted(Counted::Doubted),
            reconciled: engine.counted(Counted::Resolved),
            frames: 0,
            records: 0,
            oldest_unfinished_ms: None,
            messages,
            message_bytes,
            oldest_message_ms: None,
            syncs: log.syncs(),
            moved_bytes,
            segments_retired,
            unreadable_records: engine.unreadable_records(),
            reclaiming_stopped: engine.reclaiming_stopped(),
            copy_on_write: log.copies_on_write(),
            clock_steps_not_followed: engine.clock().steps_not_followed(),
            store_time_ms: engine.clock().latest_ms(),
            poisoned: false,
            replaced: engine.is_replaced(),
        };
        // Everything above reads atomics only. The rest takes locks, which in a forked child may be held by a thread that
        // does not exist there.
        if !engine.has_forked() {
            stats.store_time_ms = engine.clock().now_ms();
            let totals = log.space_usage().totals(stats.store_time_ms);
            (stats.record_bytes, stats.dead_bytes) = (totals.total_bytes, totals.dead_bytes);
            (stats.keys, stats.index_bytes) = (engine.index().len(), engine.index().allocated_bytes());
            stats.stopped = engine.stopped();
            stats.unfinished_bytes = engine.unfinished_bytes();
            stats.oldest_unfinished_ms = engine.oldest_unfinished_ms();
            stats.oldest_message_ms = engine.oldest_message_ms();
            let figures = log.figures();
            (stats.file_bytes, stats.free_bytes) = (figures.file_bytes, figures.free_bytes);
            (stats.frames, stats.records) = (figures.written.frames, figures.written.records);
            stats.reserved_bytes = log.reserved_bytes();
            stats.poisoned = log.check_poison().is_err();
        }
        stats
    }
}

/// The state of one key at the moment of a call such as [`Store::get`](crate::Store::get).
///
/// ```
/// use oncekey::{Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// store.record("mail:3", Fingerprint::NONE, b"")?;
/// let seen = store.get("mail:3")?;
/// assert!(seen.is_completed());
/// assert_eq!(seen.result(), Some(&b""[..]), "an empty result is a result");
/// assert_eq!(seen.attempt(), 1);
/// # Ok::<(), oncekey::Error>(())
/// ```
///
/// `{:?}` prints the length of the result instead of its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyState {
    key: OwnedKey,
    status: Status,
    version: Option<Version>,
    fingerprint: Fingerprint,
    attempt: u32,
    result: Option<Vec<u8>>,
    not_kept: bool,
    typing: Option<Typing>,
    changed_at_ms: Option<u64>,
    result_expires_at_ms: Option<u64>,
    expires_at_ms: Option<u64>,
}

impl fmt::Debug for KeyState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KeyState")
            .field("key", &self.key)
            .field("status", &self.status)
            .field("version", &self.version)
            .field("fingerprint", &self.fingerprint)
            .field("attempt", &self.attempt)
            .field("result", &self.result.as_ref().map(|result| Length(result.len())))
            .field("changed_at_ms", &self.changed_at_ms)
            .field("result_expires_at_ms", &self.result_expires_at_ms)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

impl KeyState {
    /// Reads the current state of the key: see [`Engine::get`].
    pub(crate) fn read(engine: &Engine, key: Key<'_>, patience: Patience) -> Result<KeyState> {
        let (status, found) = match key.step_name() {
            None => engine.get(key, patience)?,
            Some(_) => engine.get_step(engine.step(key)?)?,
        };
        Ok(KeyState::new(key, status, found))
    }

    /// Reads the current states of the keys: see [`Engine::get_many`].
    pub(crate) fn read_many(engine: &Engine, keys: &[Key<'_>]) -> Vec<Result<KeyState>> {
        let states = keys.iter().zip(engine.get_many(keys));
        let state = |(key, state): (&Key<'_>, Result<(Status, Option<Found>)>)| match key.step_name() {
            None => state.map(|(status, found)| KeyState::new(*key, status, found)),
            Some(_) => KeyState::read(engine, *key, Patience::Endless),
        };
        states.map(state).collect()
    }

    /// The state of a key that is absent.
    pub(crate) fn absent(key: Key<'_>) -> KeyState {
        KeyState::new(key, Status::Absent, None)
    }

    /// The state of a key by its last record, in the file of a store that may be open in another process. `begun` is the status
    /// of an operation that began and has not ended. The error of a record that cannot be read is an offset and a reason.
    pub(crate) fn of_record(
        key: Key<'_>,
        (address, place): (Address, RecordLocation),
        record: &Record<'_>,
        (now_ms, begun): (u64, Status),
    ) -> std::result::Result<KeyState, (u64, &'static str)> {
        if record.kind == Kind::Unreadable {
            return match lost_liveness(record.carried_kind(), record.key_expires_ms, now_ms) {
                Liveness::Gone => Ok(KeyState::absent(key)),
                _ => Err((address.offset(), CARRIED_REASON)),
            };
        }
        let mut found = found_at(address, place, record, now_ms);
        let status = match found.liveness {
            Liveness::Gone | Liveness::Message => return Ok(KeyState::absent(key)),
            Liveness::Released => Status::Absent,
            Liveness::Begun | Liveness::Unreadable => begun,
            Liveness::Completed | Liveness::CompletedWithoutResult => Status::Completed,
        };
        if found.liveness == Liveness::Completed {
            found.result = record.value.result.map(<[u8]>::to_vec);
        }
        Ok(KeyState::new(key, status, Some(found)))
    }

    fn new(key: Key<'_>, status: Status, found: Option<Found>) -> KeyState {
        let key = key.to_owned();
        let attempt = found.as_ref().map_or(0, |found| found.attempt);
        match found {
            Some(found) if status != Status::Absent => {
                let finite = |ms: u64| (ms != u64::MAX).then_some(ms);
                KeyState {
                    key,
                    status,
                    version: Some(found.version),
                    fingerprint: found.fingerprint,
                    attempt,
                    changed_at_ms: Some(found.time_ms),
                    result_expires_at_ms: finite(found.result_expires_ms)
                        .filter(|_| found.liveness == Liveness::Completed),
                    expires_at_ms: finite(found.key_expires_ms),
                    not_kept: found.not_kept,
                    typing: found.typing,
                    result: found.result,
                }
            }
            _ => KeyState {
                key,
                // A key can be in doubt without a record, if a copy may have forgotten it.
                status,
                version: None,
                fingerprint: Fingerprint::NONE,
                attempt,
                result: None,
                not_kept: false,
                typing: None,
                changed_at_ms: None,
                result_expires_at_ms: None,
                expires_at_ms: None,
            },
        }
    }

    /// The status of the key.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the status is [`Status::Absent`].
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.status == Status::Absent
    }

    /// Whether the status is [`Status::Completed`].
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.status == Status::Completed
    }

    /// The version of the key's latest record, for [`Store::compare_and_set`](crate::Store::compare_and_set). `None` if the key
    /// is absent, or in doubt only because the store [may have forgotten](crate::Options::may_have_forgotten) an operation.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The fingerprint of the request; [`Fingerprint::NONE`] if the operation has none or the key is absent.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The number of attempts at the operation that began. For an absent key, the number of released attempts; that count is
    /// kept at most for the retention of the key, and is dropped earlier if its space is reclaimed.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// The recorded result. `None` if the operation is not completed, if the retention of the result has passed, or if the
    /// result was [never recorded](KeyState::result_was_not_kept).
    #[must_use]
    pub fn result(&self) -> Option<&[u8]> {
        self.result.as_deref()
    }

    /// The recorded result as [`result`](KeyState::result) returns it, without a copy.
    #[must_use]
    pub fn into_result(self) -> Option<Vec<u8>> {
        self.result
    }

    /// Decodes the recorded result, with the codec that was recorded with it or the default one. Returns `None` if
    /// [`result`](KeyState::result) does.
    ///
    /// ```
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// store.operation("mail:3").record_value(&"message 17".to_owned())?;
    /// assert_eq!(store.get("mail:3")?.decode::<String>()?.as_deref(), Some("message 17"));
    /// assert!(store.get("mail:3")?.decode::<u64>().is_err(), "not a number");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the result was recorded as a different type, or with a codec that is not one of this crate's.
    pub fn decode<T: Serialize + DeserializeOwned>(&self) -> Result<Option<T>> {
        let decoded = self.result().map(|result| typed::decode_as(self.typing, result)).transpose();
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// Decodes the recorded result with `codec`. Returns `None` if [`result`](KeyState::result) does.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: the result was recorded as a different type, or with a different codec.
    pub fn decode_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<Option<T>> {
        let decoded = self.result().map(|result| typed::decode(codec, result, self.typing)).transpose();
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// Whether the operation is completed but its result could not be recorded: see [`Error::ResultNotKept`].
    #[must_use]
    pub fn result_was_not_kept(&self) -> bool {
        self.not_kept
    }

    /// When the key's latest record was written, which is its begin or its completion: in store time, in ms since the Unix
    /// epoch. `None` if the key is absent.
    #[must_use]
    pub fn changed_at_ms(&self) -> Option<u64> {
        self.changed_at_ms
    }

    /// When the retention of the result ends, in store time, in ms since the Unix epoch. `None` if there is no result, or if it
    /// never expires.
    #[must_use]
    pub fn result_expires_at_ms(&self) -> Option<u64> {
        self.result_expires_at_ms
    }

    /// When the retention of the key ends and the key becomes absent, in store time, in ms since the Unix epoch. `None` if
    /// the operation is not completed or never expires.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }
}
