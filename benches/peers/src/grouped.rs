//! A group commit around a store that has no group commit, as a careful user would write it.

use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

use crate::contestant::{Contestant, Reader};
use crate::operations::Change;

/// A store inside a group commit. Threads add their changes to the gathering batch. A thread that finds no leader becomes the
/// leader and commits the batch for all its followers, while the next batch gathers.
pub struct Grouped<C> {
    contestant: C,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    gathering: Vec<Change>,
    gate: Arc<Gate>,
    has_leader: bool,
}

/// Per-batch wait point: followers block here until their batch is committed.
#[derive(Default)]
struct Gate {
    committed: Condvar,
    applied: OnceLock<Vec<bool>>,
}

impl<C> Grouped<C> {
    pub fn new(contestant: C) -> Grouped<C> {
        Grouped { contestant, queue: Mutex::default() }
    }
}

impl<C: Contestant> Contestant for Grouped<C> {
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let mut queue = self.queue.lock();
        let gate = Arc::clone(&queue.gate);
        let start = queue.gathering.len();
        queue.gathering.extend_from_slice(changes);
        loop {
            if let Some(applied) = gate.applied.get() {
                return applied[start..start + changes.len()].to_vec();
            }
            if queue.has_leader {
                gate.committed.wait(&mut queue);
                continue;
            }
            // There is no leader and this thread's batch is not committed, so this batch is still the gathering one.
            queue.has_leader = true;
            let batch = std::mem::take(&mut queue.gathering);
            queue.gate = Arc::default();
            drop(queue);
            let applied = self.contestant.apply(&batch);
            queue = self.queue.lock();
            queue.has_leader = false;
            gate.applied.set(applied).expect("a batch should be committed once");
            gate.committed.notify_all();
            // Wake only one waiter of the next batch, to lead it. The others would go back to sleep.
            queue.gate.committed.notify_one();
        }
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
