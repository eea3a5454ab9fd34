//! What a store tells about itself, and what it tells about a key.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{Engine, Found, Swap};
use crate::error::{Error, Result};
use crate::format::record::Typing;
use crate::key::{Fingerprint, Key, OwnedKey};
use crate::record::{Length, Liveness};
use crate::status::{Status, Version};
use crate::sync::Patience;
use crate::typed;

/// Figures of one store at one moment, for a dashboard. They are gathered one after the other, so that under load they
/// need not add up.
///
/// In a process that was forked from the one that opened the store, no lock can be taken. `keys`, `index_bytes`, `file_bytes`,
/// `record_bytes`, `dead_bytes` and `reserved_bytes` are 0 there and `poisoned` is false; the rest is as it was at the fork.
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
    /// Keys in the index. Includes keys whose retention has passed, until their segment is retired.
    pub keys: usize,
    /// Memory of the index, in bytes.
    pub index_bytes: usize,
    /// Segments of the log.
    pub segments: u64,
    /// Length of the file, but for a slot that is being made: header and slots, in bytes.
    pub file_bytes: u64,
    /// Bytes of records in the log, dead ones included; without frame headers and footers.
    pub record_bytes: u64,
    /// Of these, how many are estimated to be dead: superseded or expired.
    pub dead_bytes: u64,
    /// Room that is set aside for operations in progress, in bytes.
    pub reserved_bytes: u64,
    /// Leases and doubts that are alive: those that keep [`Store::close`](crate::Store::close) from closing.
    pub leases: usize,
    /// Syncs of the commit path since the store was opened.
    pub syncs: u64,
    /// Bytes of live records that reclaiming moved since the store was opened.
    pub moved_bytes: u64,
    /// Segments that reclaiming retired since the store was opened.
    pub segments_retired: u64,
    /// The file system may write changed bytes to another place, so that a completion can find the disk full although its
    /// room was set aside; the store is then poisoned. True for ZFS, bcachefs and NILFS, for a file on btrfs that was not
    /// created by this crate (nor otherwise marked "no copy on write"), and where it was opened on a disk too full to tell.
    /// False where nothing is known: on systems other than Linux and Android, over a network, and on an overlay whose lower
    /// file system is not seen.
    pub copy_on_write: bool,
    /// Records that cannot be read, of those known now: their keys are [`Error::Corrupt`](crate::Error::Corrupt) until they
    /// expire or [`Store::forget`](crate::Store::forget) gives them up. Counted is what a call or reclaiming came across
    /// since the store was opened, and what reclaiming had carried along before.
    pub unreadable_records: u64,
    /// Whether reclaiming cannot go on, because it cannot read the oldest segment: the file then grows.
    /// [`Store::compact`](crate::Store::compact) says why.
    pub reclaiming_stopped: bool,
    /// How often since the store was opened the wall clock was found more than ten seconds from where it was expected.
    /// Store time does not follow such a step.
    pub clock_steps_not_followed: u64,
    /// Store time, in ms since the Unix epoch: what retention and leases count in. It begins as the wall clock says when
    /// the file is created, and where that was or is wrong the two differ.
    pub store_time_ms: u64,
    /// Whether a write or a sync failed: every change is [`Error::Poisoned`](crate::Error::Poisoned) until the store is
    /// opened again.
    pub poisoned: bool,
    /// Whether the path was seen to lead to another file, or to none: nothing begins any more, it is
    /// [`Error::Replaced`](crate::Error::Replaced).
    pub replaced: bool,
}

impl Stats {
    pub(crate) fn of(engine: &Engine) -> Stats {
        let log = engine.log();
        let (head, tail) = log.span();
        let (moved_bytes, segments_retired) = engine.reclaimed();
        let mut stats = Stats {
            keys: 0,
            index_bytes: 0,
            segments: tail - head + 1,
            file_bytes: 0,
            record_bytes: 0,
            dead_bytes: 0,
            reserved_bytes: 0,
            leases: engine.claim_count(),
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
        // Everything above reads atomic numbers only. The rest takes locks, which nobody may ever release in a forked child.
        if !engine.has_forked() {
            stats.store_time_ms = engine.clock().now_ms();
            let totals = log.space_usage().totals(stats.store_time_ms);
            (stats.record_bytes, stats.dead_bytes) = (totals.total_bytes, totals.dead_bytes);
            (stats.keys, stats.index_bytes) = (engine.index().len(), engine.index().allocated_bytes());
            stats.file_bytes = log.file_bytes();
            stats.reserved_bytes = log.reserved_bytes();
            stats.poisoned = log.check_poison().is_err();
        }
        stats
    }
}

/// Where a key stands, as [`Store::get`](crate::Store::get) saw it.
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
/// `{:?}` prints the length of the result and not what is in it.
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
    /// Where the key stands now; see [`Engine::get`].
    pub(crate) fn look(engine: &Engine, key: Key<'_>, patience: Patience) -> Result<KeyState> {
        let (status, found) = engine.get(key, patience)?;
        Ok(KeyState::new(key, status, found))
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
                status: Status::Absent,
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

    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether nothing is known of the key.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.status == Status::Absent
    }

    /// Whether the act was performed and recorded.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.status == Status::Completed
    }

    /// The version of the record that made it so: what [`Store::compare_and_set`](crate::Store::compare_and_set)
    /// wants to see. None if the key is absent.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The fingerprint of the request; [`Fingerprint::NONE`] if none was given or the key is absent.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// How many attempts began. For an absent key: how many were released, as long as that is remembered: a courtesy,
    /// which lasts for the retention of the key at most and goes when its room is wanted for something else.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The key that was asked for.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// The result of a completed operation; None if its retention has passed, if it was
    /// [never recorded](KeyState::result_was_not_kept), or if there is none yet.
    #[must_use]
    pub fn result(&self) -> Option<&[u8]> {
        self.result.as_deref()
    }

    /// The result, without a copy.
    #[must_use]
    pub fn into_result(self) -> Option<Vec<u8>> {
        self.result
    }

    /// The typed result of a completed operation, decoded by the codec that the record names, or the default one; None where
    /// [`result`](KeyState::result) is.
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
    /// [`Error::Decode`]: it was recorded as another type, or by a codec that is not of this crate.
    pub fn decode<T: Serialize + DeserializeOwned>(&self) -> Result<Option<T>> {
        let decoded = self.result().map(|result| typed::decode_as(self.typing, result)).transpose();
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// The same with a codec of the program's own.
    ///
    /// # Errors
    ///
    /// As [`decode`](KeyState::decode).
    pub fn decode_with<C: Codec, T: Serialize + DeserializeOwned>(&self, codec: &C) -> Result<Option<T>> {
        let decoded = self.result().map(|result| typed::decode(codec, result, self.typing)).transpose();
        decoded.map_err(|source| Error::decode(self.key.as_key(), source))
    }

    /// Whether the operation is completed and its result was never recorded, because it could not be: see
    /// [`Error::ResultNotKept`].
    #[must_use]
    pub fn result_was_not_kept(&self) -> bool {
        self.not_kept
    }

    /// When the attempt began or the operation was completed, in store time: ms since the Unix epoch.
    #[must_use]
    pub fn changed_at_ms(&self) -> Option<u64> {
        self.changed_at_ms
    }

    /// When the result will be given up, in store time: ms since the Unix epoch.
    #[must_use]
    pub fn result_expires_at_ms(&self) -> Option<u64> {
        self.result_expires_at_ms
    }

    /// When the key will be absent again, in store time: ms since the Unix epoch.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }
}

/// How [`Store::compare_and_set`](crate::Store::compare_and_set) came out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CasOutcome {
    /// It is as was wanted, by the record of this version (0 if absent stayed absent).
    Done(Version),
    /// The key did not stand where it was expected; it stands here.
    Differs(KeyState),
}

impl CasOutcome {
    /// How it came out; what stands there otherwise is looked up now.
    pub(crate) fn of(engine: &Engine, key: Key<'_>, swap: Swap) -> Result<CasOutcome> {
        match swap {
            Swap::Done(version) => Ok(CasOutcome::Done(version)),
            Swap::Differs => KeyState::look(engine, key, Patience::Endless).map(CasOutcome::Differs),
        }
    }
}
