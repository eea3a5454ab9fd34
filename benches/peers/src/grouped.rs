//! A group commit around a store that has no group commit, as a careful user would write it.

use std::sync::{Arc, OnceLock};

use crate::contestant::{Contestant, Reader};
use crate::group::GroupCommit;
use crate::operations::Change;

/// A store inside a group commit, which commits the changes of all waiting threads in one commit of the store.
pub struct Grouped<C> {
    contestant: C,
    group: GroupCommit<Batch>,
}

#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    /// Which changes were applied, once the batch is committed. The threads of the batch share it.
    applied: Arc<OnceLock<Vec<bool>>>,
}

impl<C> Grouped<C> {
    pub fn new(contestant: C) -> Grouped<C> {
        Grouped { contestant, group: GroupCommit::new() }
    }
}

impl<C: Contestant> Contestant for Grouped<C> {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let add = |batch: &mut Batch| {
            let start = batch.changes.len();
            batch.changes.extend_from_slice(changes);
            (start, Arc::clone(&batch.applied))
        };
        let commit = |batch: &mut Batch| {
            let applied = self.contestant.apply(&batch.changes);
            batch.applied.set(applied).expect("a batch should be committed once");
            batch.changes.clear();
            batch.applied = Arc::default();
        };
        let (start, applied) = self.group.commit(add, commit);
        let applied = applied.get().expect("the batch should be committed when the call returns");
        applied[start..start + changes.len()].to_vec()
    }

    fn sync(&self) {
        self.contestant.sync();
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        self.contestant.reader()
    }

    fn close(self: Box<Self>) {
        Box::new(self.contestant).close();
    }
}
