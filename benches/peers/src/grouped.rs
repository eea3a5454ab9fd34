//! A group commit written around a store that has none: what a careful user of it would do.

use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

use crate::contestant::{Contestant, Reader};
use crate::operations::Change;

/// Threads put their changes into the gathering batch; the first that finds nobody leading commits the batch for all,
/// while the next one gathers.
pub struct Grouped<C> {
    contestant: C,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    gathering: Vec<Change>,
    gate: Arc<Gate>,
    leading: bool,
}

/// Where those of one batch wait for what became of it.
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
        let place = queue.gathering.len();
        queue.gathering.extend_from_slice(changes);
        loop {
            if let Some(applied) = gate.applied.get() {
                return applied[place..place + changes.len()].to_vec();
            }
            if queue.leading {
                gate.committed.wait(&mut queue);
                continue;
            }
            // Nobody leads and this batch is not committed: it is the one that gathers.
            queue.leading = true;
            let batch = std::mem::take(&mut queue.gathering);
            queue.gate = Arc::default();
            drop(queue);
            let applied = self.contestant.apply(&batch);
            queue = self.queue.lock();
            queue.leading = false;
            gate.applied.set(applied).expect("a batch is committed once");
            gate.committed.notify_all();
            // One of those who wait for the next batch leads it; more would only wake to wait again.
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
