//! What a store must be able to do to be measured. The stores implement this; `roster` lists them.

use std::collections::HashMap;

use crate::operations::{BEGUN, Change, Key, RESULT};

/// The name of the floor, with which everything is compared.
pub const FLOOR: &str = "floor";
/// The name of the floor in a file that grows meanwhile. Nothing is compared with it; it shows what growing costs.
pub const FLOOR_THAT_GROWS: &str = "floor that grows";
/// The name of oncekey.
pub const ONCEKEY: &str = "oncekey";
/// The name of oncekey with [`Options::min_size`](oncekey::Options::min_size).
pub const ONCEKEY_SIZED: &str = "oncekey sized";

/// How durable a change is when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk: it survives a loss of power.
    Synced,
    /// In the store or the operating system. [`Contestant::sync`] makes it durable.
    Buffered,
}

/// An open store.
pub trait Contestant: Send + Sync {
    /// Makes these changes in one commit. Returns for each whether it changed anything. Linearizable: of two concurrent
    /// callers that put the same absent key, exactly one gets `true`.
    fn apply(&self, changes: &[Change]) -> Vec<bool>;

    /// Makes buffered changes durable.
    fn sync(&self);

    /// A reader for one thread.
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

    /// Runs an operation that may be run again after a crash, so that its begin need not be durable.
    fn rerun(&self, key: &Key) -> bool {
        self.record(key)
    }

    /// Closes the store as its documentation recommends.
    fn close(self: Box<Self>) {}
}

/// Looks keys up.
pub trait Reader {
    /// Returns the result of a known key, copied into a buffer of the caller's own.
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>>;

    /// Whether the key is known.
    fn is_known(&mut self, key: &Key) -> bool {
        self.replay(key).is_some()
    }
}

/// A reader that is a closure.
pub struct Lookup<F>(pub F);

impl<F: FnMut(&Key) -> Option<Vec<u8>>> Reader for Lookup<F> {
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        (self.0)(key)
    }
}

/// Returns for each change of a batch whether it takes effect, for stores that do not report that themselves.
/// `is_present` looks a key up in the store; earlier changes of the batch are taken into account.
pub fn effects(changes: &[Change], mut is_present: impl FnMut(&Key) -> bool) -> Vec<bool> {
    let mut after_earlier = HashMap::new();
    let mut effect = |change: &Change| {
        let key = *change.key();
        let present = after_earlier.get(&key).copied();
        let mut present = || present.unwrap_or_else(|| is_present(&key));
        let (takes_effect, present_after) = match change {
            Change::PutIfAbsent(..) => (!present(), true),
            Change::Overwrite(..) => (true, true),
            Change::Remove(_) => (true, false),
        };
        if changes.len() > 1 {
            after_earlier.insert(key, present_after);
        }
        takes_effect
    };
    changes.iter().map(&mut effect).collect()
}
