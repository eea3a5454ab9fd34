//! A store that was closed cleanly, to be damaged: several segments, a recycled slot, every status there is.

use std::collections::BTreeMap;

use oncekey::simulation::SimulatedDisk;
use oncekey::{ManualClock, KeyState, Status, Store, Version};

use crate::world::{Act, Known, Model, World, expire, options, read};
use crate::{HEADER_BYTES, SEGMENT_BYTES};

pub struct Specimen {
    pub bytes: Vec<u8>,
    pub clock: ManualClock,
    /// What it answers.
    pub answers: BTreeMap<u8, KeyState>,
    /// All that it would have answered at some time before.
    pub history: Vec<Model>,
    pub highest: Version,
    /// Where the slot of its last segment begins.
    pub tail: usize,
}

/// The acts that make it. Results of 12,000 bytes fill a segment with five records.
pub fn script() -> Vec<Act> {
    use Act::*;
    let mut acts = vec![Begin(20), Record(21, 50), Begin(22), Abandon(22), Record(23, 300)];
    for key in 0..12 {
        acts.push(Record(key, 12_000));
    }
    for key in 0..9 {
        acts.push(Forget(key));
    }
    // Moves what is alive, frees slots at the front; what follows uses them again.
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
        Resolve(16, 2),
    ]);
    for key in [1, 3, 17, 18] {
        acts.push(Record(key, 9_000));
    }
    acts.extend([Drop, Forget(4), Record(19, 40), Begin(8), Complete(8, 100), RecordBuffered(4, 5)]);
    acts
}

impl Specimen {
    pub fn make() -> Specimen {
        Specimen::of(&script())
    }

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
        let answers =
            answers.into_iter().map(|(key, seen)| (key, seen.expect("nothing is damaged"))).collect();
        drop(store);
        let tail = (HEADER_BYTES..bytes.len())
            .step_by(SEGMENT_BYTES)
            .filter(|at| bytes[*at..].starts_with(b"ONCESEGM"))
            .max_by_key(|at| u64::from_le_bytes(bytes[at + 72..at + 80].try_into().unwrap()))
            .unwrap();
        assert!([512, 1_024].iter().all(|at| bytes[tail + at..].starts_with(b"ONCEMARK")), "it was closed");
        let highest = world.oracle.highest;
        Specimen { bytes, clock, answers, history: world.oracle.history, highest, tail }
    }

    /// Whether one of the two marks that say where the log ends is untouched.
    pub fn is_marked(&self, damaged: &[u8]) -> bool {
        [512, 1_024].iter().any(|at| {
            let sector = self.tail + at..self.tail + at + 512;
            damaged.get(sector.clone()) == self.bytes.get(sector)
        })
    }

    /// Whether the answers are those of some one moment of the past; what could not be read left out.
    pub fn was_once(&self, answers: &BTreeMap<u8, Option<KeyState>>) -> bool {
        let now_ms = self.clock.now_ms();
        self.history.iter().rev().any(|model| {
            let mut model = model.clone();
            expire(&mut model, now_ms);
            answers
                .iter()
                .all(|(key, seen)| seen.as_ref().is_none_or(|seen| fits(model.get(key), seen, now_ms)))
        })
    }
}

fn fits(known: Option<&Known>, seen: &KeyState, now_ms: u64) -> bool {
    let Some(known) = known else { return seen.status() == Status::Absent && seen.attempt() == 0 };
    let has_result = known.status == Status::Completed && now_ms < known.result_expires_ms;
    seen.status() == known.status
        && (known.attempts.contains(&seen.attempt()) || known.status == Status::Absent && seen.attempt() == 0)
        && seen.result() == has_result.then_some(&known.result[..])
}

/// What a store says of every key, one by one: None where it says that the file is corrupt.
///
/// # Panics
///
/// If it fails for another reason: nothing else is wrong with the disk.
pub fn answers(store: &Store) -> BTreeMap<u8, Option<KeyState>> {
    (0..crate::world::KEYS)
        .map(|key| match store.get(&crate::world::name(key)) {
            Ok(seen) => (key, Some(seen)),
            Err(oncekey::Error::Corrupt { .. }) => (key, None),
            Err(error) => panic!("key {key}: {error:?}"),
        })
        .collect()
}

/// A snapshot in one line, whatever the length of its result.
pub fn told(seen: &KeyState) -> String {
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
