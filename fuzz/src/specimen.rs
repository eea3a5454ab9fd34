//! A cleanly closed store to be damaged. It has several segments, a recycled slot, and keys of every status.

use std::collections::BTreeMap;

use oncekey::simulation::SimulatedDisk;
use oncekey::{KeyState, ManualClock, Status, Store, Version};

use crate::world::oracle::{Known, Model, expire, read};
use crate::world::{Act, BEGIN_AGAIN, World, options};
use crate::{HEADER_BYTES, SEGMENT_BYTES};

pub struct Specimen {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// The clock of the store, at the time of the close.
    pub clock: ManualClock,
    /// The state of every key.
    pub answers: BTreeMap<u8, KeyState>,
    /// The states of all keys after every act of the history.
    pub history: Vec<Model>,
    /// The highest version that the store has given out.
    pub highest: Version,
    /// The offset of the slot of the last segment.
    pub tail: usize,
}

/// Returns the acts that create the specimen. Five records with results of 12,000 bytes fill a segment.
pub fn script() -> Vec<Act> {
    use Act::*;
    let mut acts = vec![Begin(20), Record(21, 50), Begin(22), Abandon(22), Record(23, 300)];
    for key in 0..12 {
        acts.push(Record(key, 12_000));
    }
    for key in 0..9 {
        acts.push(Forget(key));
    }
    // Compaction moves live records and frees the slots at the front, which the later acts reuse.
    acts.extend([Compact, Reopen, Advance(61_000), Begin(12), Complete(12, 700), Begin(13), Release(13)]);
    for key in 0..7 {
        acts.push(if key % 2 == 0 { Record(key, 12_000) } else { RecordBuffered(key, 12_000) });
    }
    acts.extend([
        Forget(1),
        Forget(3),
        Set(14, 2_000),
        Record(15, 0),
        Begin(16),
        Abandon(16),
        Resolve(16, BEGIN_AGAIN),
    ]);
    for key in [1, 3, 17, 18] {
        acts.push(Record(key, 9_000));
    }
    acts.extend([DropStore, Forget(4), Record(19, 40), Begin(8), Complete(8, 100), RecordBuffered(4, 5)]);
    acts.extend([Begin(9), Batch(9, 200), AtomicBatch(10, 100)]);
    acts
}

impl Specimen {
    /// Creates the specimen of [`script`].
    pub fn make() -> Specimen {
        Specimen::of(&script())
    }

    /// Creates a specimen by performing these acts.
    pub fn of(script: &[Act]) -> Specimen {
        let disk = SimulatedDisk::new();
        let mut world = World::new(disk.clone()).unwrap();
        for act in script {
            world.perform(*act).unwrap();
        }
        world.perform(Act::Reopen).unwrap();
        world.die();
        let clock = world.clock.clone();
        let open = || options(&clock).create(false).open_simulated(&disk).unwrap();
        open().close().unwrap();
        let bytes = disk.bytes();
        let store = open();
        let answers = read(&store).unwrap();
        let answers = answers
            .into_iter()
            .map(|(key, seen)| (key, seen.expect("an undamaged key should be readable")))
            .collect();
        drop(store);
        let tail = (HEADER_BYTES..bytes.len())
            .step_by(SEGMENT_BYTES)
            .filter(|at| bytes[*at..].starts_with(b"ONCESEGM"))
            .max_by_key(|at| u64::from_le_bytes(bytes[at + 72..at + 80].try_into().unwrap()))
            .unwrap();
        assert!(
            [512, 1_024].iter().all(|at| bytes[tail + at..].starts_with(b"ONCEMARK")),
            "the specimen has no close marks"
        );
        let highest = world.oracle.highest;
        Specimen { bytes, clock, answers, history: world.oracle.history, highest, tail }
    }

    /// Whether one of the two close marks, which point to the end of the log, is undamaged.
    pub fn has_close_mark(&self, damaged: &[u8]) -> bool {
        [512, 1_024].iter().any(|at| {
            let sector = self.tail + at..self.tail + at + 512;
            damaged.get(sector.clone()) == self.bytes.get(sector)
        })
    }

    /// Whether the states of all keys are those of the same earlier moment. Keys that could not be read are ignored.
    pub fn is_past_state(&self, answers: &BTreeMap<u8, Option<KeyState>>) -> bool {
        let now_ms = self.clock.now_ms();
        self.history.iter().rev().any(|model| {
            let mut model = model.clone();
            expire(&mut model, now_ms);
            answers.iter().all(|(key, seen)| {
                seen.as_ref().is_none_or(|seen| matches_model(model.get(key), seen, now_ms))
            })
        })
    }
}

fn matches_model(known: Option<&Known>, seen: &KeyState, now_ms: u64) -> bool {
    let Some(known) = known else { return seen.status() == Status::Absent && seen.attempt() == 0 };
    let has_result = known.status == Status::Completed && now_ms < known.result_expires_ms;
    seen.status() == known.status
        && (known.attempts.contains(&seen.attempt()) || known.status == Status::Absent && seen.attempt() == 0)
        && seen.result() == has_result.then_some(&known.result[..])
}

/// Returns the state of every key, with `None` for a key that is `Error::Corrupt`.
///
/// # Panics
///
/// Panics on any other error, because the disk has no other fault.
pub fn answers(store: &Store) -> BTreeMap<u8, Option<KeyState>> {
    (0..crate::world::KEYS)
        .map(|key| match store.get(&crate::world::name(key)) {
            Ok(seen) => (key, Some(seen)),
            Err(oncekey::Error::Corrupt { .. }) => (key, None),
            Err(error) => panic!("key {key}: {error:?}"),
        })
        .collect()
}

/// Formats the state of a key in one line, with only the beginning of its result.
pub fn summary(seen: &KeyState) -> String {
    let result = seen.result().map(|result| {
        let beginning = String::from_utf8_lossy(&result[..result.len().min(8)]).into_owned();
        format!("{} bytes, {beginning:?}", result.len())
    });
    format!(
        "{:?}, attempt {}, version {:?}, result {result:?}",
        seen.status(),
        seen.attempt(),
        seen.version()
    )
}
