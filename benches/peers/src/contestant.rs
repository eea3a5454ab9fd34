//! The interface that every measured store implements. `roster` lists the stores.

use std::collections::HashMap;

use crate::operations::{BEGUN, Change, Key, RESULT};

/// The name of the floor, with which all contestants are compared.
pub const FLOOR: &str = "floor";
/// The name of the floor in a file that grows while it is being written. No contestant is compared with it; it shows the cost
/// of growing.
pub const FLOOR_THAT_GROWS: &str = "floor that grows";
/// The name of oncekey.
pub const ONCEKEY: &str = "oncekey";
/// The name of oncekey with [`Options::min_size`](oncekey::Options::min_size).
pub const ONCEKEY_SIZED: &str = "oncekey sized";

/// How durable a change is when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk: it survives a loss of power.
    Synced,
    /// In the store or the operating system. [`Contestant::sync`] makes it durable.
    Buffered,
}

/// An open store.
pub trait Contestant: Send + Sync {
    /// Makes these changes in one commit. Returns one value for each change: whether it was applied. Linearizable: if two
    /// callers put the same absent key concurrently, exactly one gets `true`.
    fn apply(&self, changes: &[Change]) -> Vec<bool>;

    /// Makes buffered changes durable.
    fn sync(&self);

    /// Returns a reader for one thread.
    fn reader(&self) -> Box<dyn Reader + '_>;

    /// Records an operation with its result, in one commit. Returns true if the key was absent.
    fn record(&self, key: &Key) -> bool {
        self.apply(&[Change::PutIfAbsent(*key, RESULT)])[0]
    }

    /// Begins an operation and then completes it, in two commits. Returns true if the key was absent.
    fn begin_and_complete(&self, key: &Key) -> bool {
        let begun = self.apply(&[Change::PutIfAbsent(*key, BEGUN)])[0];
        begun && self.apply(&[Change::Overwrite(*key, RESULT)])[0]
    }

    /// Runs an operation that can be rerun after a crash, so that its begin need not be durable. Returns true if the key was
    /// absent.
    fn rerun(&self, key: &Key) -> bool {
        self.record(key)
    }

    /// Closes the store as its documentation recommends.
    fn close(self: Box<Self>) {}
}

/// Looks up keys.
pub trait Reader {
    /// Returns a copy of the result of a known key, or `None` for an unknown key.
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>>;

    /// Whether the key is known.
    fn is_known(&mut self, key: &Key) -> bool {
        self.replay(key).is_some()
    }
}

/// A [`Reader`] made of a closure.
pub struct Lookup<F>(pub F);

impl<F: FnMut(&Key) -> Option<Vec<u8>>> Reader for Lookup<F> {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        (self.0)(key)
    }
}

/// Returns one value for each change of a batch: whether the change applies. For stores that do not report this themselves.
/// `is_present` looks up a key in the store. The earlier changes of the batch are taken into account.
pub fn which_apply(changes: &[Change], mut is_present: impl FnMut(&Key) -> bool) -> Vec<bool> {
    let mut after_earlier = HashMap::new();
    let mut applies = |change: &Change| {
        let key = *change.key();
        let present = after_earlier.get(&key).copied();
        let mut present = || present.unwrap_or_else(|| is_present(&key));
        let (applies, present_after) = match change {
            Change::PutIfAbsent(..) => (!present(), true),
            Change::Overwrite(..) => (true, true),
            Change::Remove(_) => (true, false),
        };
        if changes.len() > 1 {
            after_earlier.insert(key, present_after);
        }
        applies
    };
    changes.iter().map(&mut applies).collect()
}
