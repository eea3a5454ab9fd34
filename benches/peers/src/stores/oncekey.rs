//! oncekey, with its defaults; and in a file that is long enough from the beginning, as the floor's file is.

use std::path::Path;

use oncekey::{Attempt, Begin, Fingerprint, Options, Recorded, Store};

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

/// More than one turn of `commit` writes to a file.
const SIZED_BYTES: u64 = 512 << 20;

pub fn open(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    open_with(Options::new(), directory, durability)
}

pub fn open_sized(directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    open_with(Options::new().min_size(SIZED_BYTES), directory, durability)
}

fn open_with(options: Options, directory: &Path, durability: Durability) -> Box<dyn Contestant> {
    let own = match durability {
        Durability::Synced => oncekey::Durability::Sync,
        Durability::Buffered => oncekey::Durability::Buffered,
    };
    let store = options.durability(own).open(file(directory)).expect("oncekey opens");
    Box::new(Oncekey { store, durability })
}

impl Contestant for Oncekey {
    /// oncekey has no batches: the changes are written buffered and then synced once.
    fn apply(&self, changes: &[Change]) -> Vec<bool> {
        let apply = |change: &Change| match change {
            Change::PutIfAbsent(key, value) => {
                let operation = self.store.operation(key).durability(oncekey::Durability::Buffered);
                matches!(operation.record(value).expect("oncekey records"), Recorded::Done(_))
            }
            Change::Remove(key) => self.store.forget(key).expect("oncekey forgets"),
            Change::Overwrite(..) => unreachable!("a result is never overwritten"),
        };
        let applied = changes.iter().map(apply).collect();
        if self.durability == Durability::Synced {
            self.sync();
        }
        applied
    }

    fn sync(&self) {
        self.store.sync().expect("oncekey syncs");
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(&self.store)
    }

    fn record(&self, key: &Key) -> bool {
        let recorded = self.store.record(key, Fingerprint::NONE, RESULT).expect("oncekey records");
        matches!(recorded, Recorded::Done(_))
    }

    fn begin_and_complete(&self, key: &Key) -> bool {
        match self.store.begin(key, Fingerprint::NONE).expect("oncekey begins") {
            Begin::Acquired(mut lease) => {
                lease.complete(RESULT).expect("oncekey completes");
                true
            }
            _ => false,
        }
    }

    fn rerun(&self, key: &Key) -> bool {
        let side_effect = |_: &Attempt| Ok::<_, std::io::Error>(RESULT.to_vec());
        let outcome = self.store.operation(key).rerun().run(side_effect).expect("oncekey runs");
        matches!(outcome, oncekey::Outcome::Done(_))
    }

    fn close(self: Box<Self>) {
        self.store.close().expect("oncekey closes");
    }
}

impl Reader for &Store {
    /// As a retry does: it begins, and gets the stored result.
    fn replay(&mut self, key: &Key) -> Option<Vec<u8>> {
        match self.begin(key, Fingerprint::NONE).expect("oncekey begins") {
            Begin::Completed(done) => Some(done.into_result()),
            _ => None,
        }
    }

    /// `get`, because a begin of an unknown key would write.
    fn is_known(&mut self, key: &Key) -> bool {
        !self.get(key).expect("oncekey looks up").is_absent()
    }
}
