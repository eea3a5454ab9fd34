//! The acts that a script consists of.

/// An outcome for [`Act::Resolve`]: the side effect was applied.
pub const APPLIED: u8 = 0;
/// An outcome for [`Act::Resolve`]: the side effect was not applied.
pub const NOT_APPLIED: u8 = 1;
/// An outcome for [`Act::Resolve`]: unknown, so another attempt begins.
pub const BEGIN_AGAIN: u8 = 2;

/// A size for [`Act::Set`] on a key whose record is damaged: tries to set the key to completed.
pub const TO_COMPLETED: u16 = 4;
/// A size for [`Act::Set`] on a key whose record is damaged: sets the key to absent.
pub const TO_ABSENT: u16 = 1;

/// The fields for [`Act::Rot`].
pub mod field {
    pub const CHECKSUM: u8 = 0;
    pub const VERSION: u8 = 1;
    pub const FINGERPRINT: u8 = 2;
    pub const ATTEMPT: u8 = 3;
    pub const TIME: u8 = 4;
    pub const KEY_EXPIRY: u8 = 5;
    pub const RESULT_EXPIRY: u8 = 6;
    /// The result, or the padding after the key in a record without a result.
    pub const RESULT: u8 = 7;
}

/// One act of a script. Keys are small numbers, so that several acts of a script change the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Begins an operation on the key.
    Begin(u8),
    /// Completes the key's lease, if there is one, with a result of at least this many bytes.
    Complete(u8, u16),
    /// Releases the key's lease, if there is one.
    Release(u8),
    /// Drops the key's lease, as a panic would.
    Abandon(u8),
    /// Records a result of at least this many bytes for the key.
    Record(u8, u16),
    /// `Record` with `Durability::Buffered`.
    RecordBuffered(u8, u16),
    /// Commits a batch of begins, records, completions and releases, chosen by the states of this key and the ones after it, with
    /// results of at least this many bytes. The lease of its last begin is not taken from the answers.
    Batch(u8, u16),
    /// `Batch`, but atomic. Leaves out what does not fit one frame.
    AtomicBatch(u8, u16),
    /// Forgets the key.
    Forget(u8),
    /// Ends a doubt. The second number, modulo 3, is the outcome: [`APPLIED`], [`NOT_APPLIED`] or [`BEGIN_AGAIN`].
    Resolve(u8, u8),
    /// A compare-and-set from the key's present state to completed, with a result of at least this many bytes.
    ///
    /// If the key's record is damaged, the number chooses the new state. A multiple of 4 ([`TO_COMPLETED`]) stands for
    /// completed, which the store must refuse; any other number ([`TO_ABSENT`]) stands for absent.
    Set(u8, u16),
    /// Syncs the store.
    Sync,
    /// Compacts the store.
    Compact,
    /// Makes the path lead to another file until the store is opened again. The sync that follows must notice.
    Replace,
    /// Closes the store and opens it again.
    Reopen,
    /// Drops the store without a close and opens it again.
    DropStore,
    /// `DropStore`, but opens the store with `Durability::Buffered` as its default.
    DropAndReopenBuffered,
    /// `DropStore`, but opens the store with a `min_size` that makes the file longer.
    DropAndReopenLarger,
    /// Moves all clocks forward by this many milliseconds.
    Advance(u32),
    /// Closes the store, sets the wall clock back by this many milliseconds, and opens the store again. Store time must
    /// not follow a step of that size.
    ReopenWithClockSetBack(u32),
    /// Moves the wall clock by this many milliseconds. Store time must not follow a step of that size.
    StepWallClock(i64),
    /// Closes the store, reboots, which takes this many milliseconds, and opens the store again.
    Reboot(u32),
    /// `Record` with a retention of this many milliseconds.
    RecordFor(u8, u16, u64),
    /// Begins an operation with an input of at least this many bytes, if the key is absent.
    BeginJob(u8, u16),
    /// Runs a step of the operation whose lease is held. The number, modulo 4, is the step, and the result has at least as
    /// many bytes.
    Step(u8, u16),
    /// Begins a step, and leaves it in progress.
    LeaveStep(u8, u16),
    /// Begins a step and releases it.
    ReleaseStep(u8, u16),
    /// Completes a step that `LeaveStep` left, perhaps after another attempt at the operation took over.
    LateStep(u8, u16),
    /// Gives a step up.
    GiveUp(u8, u16),
    /// Completes the key's operation with messages, whatever its state: its lease, its doubt, or a record of an absent key.
    /// For a completed key, a replay, which must emit nothing. The result and the messages have at least this many bytes.
    Emit(u8, u16),
    /// `Emit` with `Durability::Buffered`, for an absent key.
    EmitBuffered(u8, u16),
    /// Takes up to this many messages out of a topic, which the parity of the number chooses, and acknowledges them.
    Publish(u8),
    /// Damages one byte of the key's last record, if that record lies in a full segment. The second number, modulo 8,
    /// is the [`field`] that holds the byte.
    Rot(u8, u8),
}

impl Act {
    /// Returns the key that a call of the store changes or tries to change. `Rot` has none, because it damages the disk
    /// and not the store.
    pub fn key(self) -> Option<u8> {
        match self {
            Act::Begin(key)
            | Act::Complete(key, _)
            | Act::Release(key)
            | Act::Abandon(key)
            | Act::Record(key, _)
            | Act::RecordBuffered(key, _)
            | Act::RecordFor(key, ..)
            | Act::Emit(key, _)
            | Act::EmitBuffered(key, _)
            | Act::Forget(key)
            | Act::BeginJob(key, _)
            | Act::Step(key, _)
            | Act::LeaveStep(key, _)
            | Act::ReleaseStep(key, _)
            | Act::LateStep(key, _)
            | Act::GiveUp(key, _)
            | Act::Resolve(key, _)
            | Act::Set(key, _) => Some(key),
            _ => None,
        }
    }
}
