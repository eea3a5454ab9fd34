//! The acts that a history consists of.

/// One act of a history. Keys are small numbers, so that acts collide on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Begin(u8),
    Complete(u8, u16),
    Release(u8),
    /// Drops the lease, as a panic would.
    Abandon(u8),
    Record(u8, u16),
    /// `Record` with `Durability::Buffered`.
    RecordBuffered(u8, u16),
    Forget(u8),
    /// Ends a doubt. The second number, modulo 3, says how: 0 applied, 1 not applied, 2 begin again.
    Resolve(u8, u8),
    /// A compare-and-set from the key's present state to completed.
    Set(u8, u16),
    Sync,
    Compact,
    /// The path leads to another file until the store is opened again. A sync must notice.
    Replace,
    /// A clean close, then an opening.
    Reopen,
    /// Drops the handles without a close, then opens the store again.
    Drop,
    /// `Drop`, then an opening with `Durability::Buffered` as the store's default.
    DropToBuffered,
    /// `Drop`, then an opening with a `min_size` that makes the file longer.
    DropToLonger,
    Advance(u32),
    /// A clean close, a wall clock set back by so many milliseconds, then an opening. Store time does not follow a step
    /// that large.
    ReopenBack(u32),
    /// Moves the wall clock by so many milliseconds. Store time does not follow a step that large.
    Step(i64),
    /// A clean close, a reboot that takes so many milliseconds, then an opening.
    Reboot(u32),
    /// `Record` with a retention of so many milliseconds.
    RecordFor(u8, u16, u64),
    /// Damages the key's last record if it lies in a full segment. The second number chooses the byte.
    Rot(u8, u8),
}

impl Act {
    /// The key that the act changes or tries to change.
    pub fn key(self) -> Option<u8> {
        match self {
            Act::Begin(key)
            | Act::Complete(key, _)
            | Act::Release(key)
            | Act::Abandon(key)
            | Act::Record(key, _)
            | Act::RecordBuffered(key, _)
            | Act::RecordFor(key, ..)
            | Act::Forget(key)
            | Act::Resolve(key, _)
            | Act::Set(key, _) => Some(key),
            _ => None,
        }
    }
}
