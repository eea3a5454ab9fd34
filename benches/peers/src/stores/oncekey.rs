//! oncekey with its defaults, and in a file that has its full length from the start, as the floor's file has.

use std::path::Path;

use oncekey::{Answer, Attempt, Begin, Fingerprint, Options, Recorded, Store};

use crate::contestant::{Contestant, Durability, Reader};
use crate::operations::{Change, Key, RESULT};

struct Oncekey {
    store: Store,
    durability: Durability,
}

/// The path of the store's file in a directory.
pub fn file(directory: &Path) -> std::path::PathBuf {
    directory.join("operations.once")
}

/// The initial length of the file in `open_sized`: more bytes than one turn of `commit` writes.
const SIZED_BYTES: u64 = 512 << 20;

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    open_with(Options::new(), directory, durability)
}

pub fn open_sized(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    open_with(Options::new().min_size(SIZED_BYTES), directory, durability)
}

fn open_with(options: Options, directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    let durability_of_store = match durability {
        Durability::Synced => oncekey::Durability::Sync,
        Durability::Buffered => oncekey::Durability::Buffered,
    };
    let store =
        options.durability(durability_of_store).open(file(directory)).expect("oncekey cannot open the store");
    Box::new(Oncekey { store, durability })
}

impl Contestant for Oncekey {
    /// Records go into one batch. A batch has no removals, so changes with one are written buffered and then synced once.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        if changes.iter().all(|change| matches!(change, Change::PutIfAbsent(..))) {
            let mut batch = self.store.batch();
            for change in changes {
                if let Change::PutIfAbsent(key, value) = change {
                    batch.record(self.store.operation(key), value).expect("oncekey cannot add to a batch");
                }
            }
            let answers = batch.commit().expect("oncekey cannot commit a batch");
            return answers.map(|answer| matches!(answer, Ok(Answer::Done(_)))).collect();
        }
        let apply = |change: &Change| match change {
            Change::PutIfAbsent(key, value) => {
                let operation = self.store.operation(key).durability(oncekey::Durability::Buffered);
                matches!(
                    operation.record(value).expect("oncekey cannot record an operation"),
                    Recorded::Done(_)
                )
            }
            Change::Remove(key) => self.store.forget(key).expect("oncekey cannot forget a key"),
            Change::Overwrite(..) => unreachable!("a result is never overwritten"),
        };
        let applied = changes.iter().map(apply).collect();
        if self.durability == Durability::Synced {
            self.sync();
        }
        applied
    }

    fn sync(&self) {
        self.store.sync().expect("oncekey cannot sync");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(&self.store)
    }

    fn record(&self, key: &Key) -> bool {
        let recorded =
            self.store.record(key, Fingerprint::NONE, RESULT).expect("oncekey cannot record an operation");
        matches!(recorded, Recorded::Done(_))
    }

    fn begin_and_complete(&self, key: &Key) -> bool {
        match self.store.begin(key, Fingerprint::NONE).expect("oncekey cannot begin an operation") {
            Begin::Acquired(mut lease) => {
                lease.complete(RESULT).expect("oncekey cannot complete an operation");
                true
            }
            _ => false,
        }
    }

    fn rerun(&self, key: &Key) -> bool {
        let side_effect = |_: &Attempt| Ok::<_, std::io::Error>(RESULT.to_vec());
        let outcome =
            self.store.operation(key).rerun().run(side_effect).expect("oncekey cannot run an operation");
        matches!(outcome, oncekey::Outcome::Done(_))
    }

    fn close(self: Box<Self>) {
        self.store.close().expect("oncekey cannot close the store");
    }
}

impl Reader for &Store {
    /// Begins the operation, as a retry does, and returns the stored result.
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        match self.begin(key, Fingerprint::NONE).expect("oncekey cannot begin an operation") {
            Begin::Completed(done) => Some(done.into_result()),
            _ => None,
        }
    }

    /// Uses `get`, because a begin of an unknown key would write.
    fn is_known(&mut self, key: &Key) -> bool {
        !self.get(key).expect("oncekey cannot look up a key").is_absent()
    }
}
