//! Checks the index while a segment is being retired: a thread that follows an address under the shard's lock finds the record
//! at that address.
//!
//! The index and the flights (the per-key locks) are real. The log is a model with a slot that can be freed, and a read from
//! the freed slot fails the test. Writers follow the steps of the engine's commit, and retiring a segment follows those of
//! `engine::reclaim`.

use std::collections::HashMap;
use std::sync::Arc;

use shuttle::thread;

use super::{THOROUGH, explore, must_find};
use crate::flights::Flights;
use crate::index::{Address, Index};
use crate::sync::{Mutex, yield_now};

/// The hashes of two keys that the index cannot distinguish, because they have the same shard and the same tag. A lookup of
/// one key may also read the record of the other.
const HASHES: [u128; 2] = [7 << 96 | 1, 7 << 96 | 2];

/// The bug that is planted in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelBug {
    /// No bug.
    None,
    /// A key that is not in the index counts as gone, even while a thread is changing it.
    ChangeInFlightIgnored,
    /// Retiring moves a record without holding the key's flight.
    MovedWithoutFlight,
    /// Retiring does not read the index again once it holds the flight.
    IndexNotReread,
    /// The segment is freed before the index points to the moved records.
    FreedBeforeReplaced,
    /// Retiring skips a key whose flight is held, and does not visit it again.
    InFlightSkipped,
    /// Retiring removes the old address and inserts the new one in two steps.
    ReplacedInTwoSteps,
    /// A lookup follows the address after it has released the shard's lock.
    ReadOutsideLock,
    /// A writer leaves the flight before the index points to its record.
    AppliedOutsideFlight,
}

/// A record of the modelled log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    /// The hash of the record's key.
    hash: u128,
    /// The number of earlier records of the same key.
    count: u64,
}

/// The records of a log of two segments. The first segment becomes full and is then retired.
#[derive(Debug, Default)]
struct Contents {
    /// The record at each address, and whether it is in the first segment. No record is ever overwritten.
    records: Vec<(Record, bool)>,
    first_is_full: bool,
    first_is_free: bool,
}

#[derive(Debug)]
struct Model {
    index: Index,
    flights: Flights,
    log: Mutex<Contents>,
    bug: ModelBug,
}

impl Model {
    /// Creates a model in which both keys have a record in the first segment.
    fn new(bug: ModelBug) -> Arc<Model> {
        let model = Model { index: Index::new(), flights: Flights::new(), log: Mutex::default(), bug };
        for hash in HASHES {
            let address = model.append(Record { hash, count: 0 });
            model.index.insert(hash, address);
        }
        Arc::new(model)
    }

    fn append(&self, record: Record) -> Address {
        let mut log = self.log.lock();
        let in_first = !log.first_is_full;
        log.records.push((record, in_first));
        Address::new(log.records.len() as u64 * 8).unwrap()
    }

    fn read(&self, address: Address) -> Record {
        let log = self.log.lock();
        let (record, in_first) = log.records[usize::try_from(address.offset() / 8).unwrap() - 1];
        assert!(!(in_first && log.first_is_free), "{record:?} was read from a free slot");
        record
    }

    /// Looks up the key's last record and its address.
    fn look_up(&self, hash: u128) -> Option<(Address, Record)> {
        if self.bug == ModelBug::ReadOutsideLock {
            let mut candidates = Vec::new();
            let none: Option<()> = self.index.find(hash, |address| {
                candidates.push(address);
                None
            });
            assert!(none.is_none());
            // These steps leave enough time for a segment to be retired.
            (0..8).for_each(|_| yield_now());
            let read = candidates.into_iter().map(|address| (address, self.read(address)));
            return read.into_iter().find(|(_, record)| record.hash == hash);
        }
        self.index.find(hash, |address| {
            let record = self.read(address);
            (record.hash == hash).then_some((address, record))
        })
    }

    /// Supersedes the key's record `turns` times.
    fn write(&self, hash: u128, turns: u64) {
        for _ in 0..turns {
            let flight = self.flights.enter(hash);
            let Some((old, record)) = self.look_up(hash) else { panic!("{hash} is lost") };
            let new = self.append(Record { count: record.count + 1, ..record });
            // Writing the record takes time, during which other threads run.
            yield_now();
            if self.bug == ModelBug::AppliedOutsideFlight {
                drop(flight);
                yield_now();
                self.index.replace(hash, old, new);
                continue;
            }
            assert!(self.index.replace(hash, old, new), "the entry changed although the flight was held");
            flight.note_change();
        }
    }

    /// Forgets the key and then begins it again.
    fn forget_and_begin(&self, hash: u128) {
        let flight = self.flights.enter(hash);
        let Some((old, record)) = self.look_up(hash) else { panic!("{hash} is lost") };
        self.append(Record { count: record.count + 1, ..record });
        yield_now();
        assert!(self.index.remove(hash, old));
        flight.note_change();
        drop(flight);

        let flight = self.flights.enter(hash);
        assert!(self.look_up(hash).is_none(), "a forgotten key is still in the index");
        let new = self.append(Record { count: record.count + 2, ..record });
        yield_now();
        self.index.insert(hash, new);
        flight.note_change();
    }

    /// Looks up the key `turns` times. The key must never be absent, and must never return to an earlier record.
    fn keep_reading(&self, hash: u128, turns: u64) {
        let mut last = 0;
        for _ in 0..turns {
            let Some((_, record)) = self.look_up(hash) else { panic!("{hash} is lost") };
            assert!(last <= record.count, "{hash} went back from {last} to {}", record.count);
            last = record.count;
        }
    }

    /// Closes the first segment and returns the entries of its footer: the last record of each key in it.
    fn close_first(&self) -> Vec<(u128, Address)> {
        let mut log = self.log.lock();
        log.first_is_full = true;
        let mut last = HashMap::new();
        for (at, (record, in_first)) in log.records.iter().enumerate() {
            if *in_first {
                last.insert(record.hash, Address::new((at as u64 + 1) * 8).unwrap());
            }
        }
        let mut entries: Vec<_> = last.into_iter().collect();
        entries.sort_unstable_by_key(|(hash, _)| *hash);
        entries
    }

    fn free_first(&self) {
        self.log.lock().first_is_free = true;
    }

    /// Moves the live records of the first segment to the second, and frees the first.
    fn retire_first(&self) {
        let mut entries = self.close_first();
        if self.bug == ModelBug::FreedBeforeReplaced {
            // The records are copied before the segment is freed, so that only readers can notice the bug.
            let copies: Vec<_> = entries.iter().map(|(hash, old)| (*hash, *old, self.read(*old))).collect();
            self.free_first();
            for (hash, old, record) in copies {
                let new = self.append(record);
                self.index.replace(hash, old, new);
            }
            return;
        }
        while !entries.is_empty() {
            entries.retain(|(hash, address)| !self.visit(*hash, *address));
            if self.bug == ModelBug::InFlightSkipped {
                break;
            }
            yield_now();
        }
        self.free_first();
    }

    /// Moves the record at `old` if it is live. Returns false if another thread holds the key's flight, in which case the key
    /// must be visited again.
    fn visit(&self, hash: u128, old: Address) -> bool {
        if self.bug == ModelBug::MovedWithoutFlight {
            if self.index.holds(hash, old) {
                let new = self.append(self.read(old));
                yield_now();
                assert!(self.index.replace(hash, old, new), "moved while it was being changed");
            }
            return true;
        }
        if self.bug != ModelBug::ChangeInFlightIgnored && self.flights.is_changing(hash) {
            return false;
        }
        if !self.index.holds(hash, old) {
            return true;
        }
        if self.bug == ModelBug::IndexNotReread {
            // These steps leave enough time for another thread to change the key.
            (0..8).for_each(|_| yield_now());
        }
        let Some(flight) = self.flights.try_enter(hash) else { return false };
        if self.bug != ModelBug::IndexNotReread && !self.index.holds(hash, old) {
            return true;
        }
        let new = self.append(self.read(old));
        yield_now();
        if self.bug == ModelBug::ReplacedInTwoSteps {
            assert!(self.index.remove(hash, old));
            self.index.insert(hash, new);
        } else {
            assert!(self.index.replace(hash, old, new), "the entry changed although the flight was held");
        }
        drop(flight);
        true
    }
}

fn spawn(model: &Arc<Model>, work: impl FnOnce(&Model) + Send + 'static) -> thread::JoinHandle<()> {
    let model = Arc::clone(model);
    thread::spawn(move || work(&model))
}

/// One thread writes a key and two others read both keys, while the segment with their records is being retired.
fn read_while_retiring(bug: ModelBug) {
    let model = Model::new(bug);
    let threads = [
        spawn(&model, |model| model.write(HASHES[0], 2)),
        spawn(&model, |model| model.keep_reading(HASHES[0], 2)),
        spawn(&model, |model| model.keep_reading(HASHES[1], 2)),
        spawn(&model, Model::retire_first),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    let counts = HASHES.map(|hash| model.look_up(hash).map(|(_, record)| record.count));
    assert_eq!(counts, [Some(2), Some(0)], "the last record of each key is found");
    assert!(model.flights.is_empty());
}

/// A key is forgotten and begun again while the segment with its records is being retired.
fn forget_while_retiring(bug: ModelBug) {
    let model = Model::new(bug);
    let threads = [
        spawn(&model, |model| model.forget_and_begin(HASHES[0])),
        spawn(&model, |model| model.keep_reading(HASHES[1], 2)),
        spawn(&model, Model::retire_first),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    let counts = HASHES.map(|hash| model.look_up(hash).map(|(_, record)| record.count));
    assert_eq!(counts, [Some(2), Some(0)], "the last record of each key is found");
    assert_eq!(model.index.len(), 2, "the index must have one entry for each key");
    assert!(model.flights.is_empty());
}

/// The assertion messages that report a bug. They differ by the thread that notices it first.
const SYMPTOMS: [&str; 6] = [
    "from a free slot",
    "moved while it was being changed",
    "the entry changed although the flight was held",
    "is lost",
    "went back",
    "the last record of each key is found",
];

fn must_find_in_model(bug: ModelBug) {
    must_find(&format!("{bug:?}"), THOROUGH, &SYMPTOMS, move || read_while_retiring(bug));
}

#[test]
fn no_lookup_reads_a_free_slot_or_misses_a_record() {
    explore("index, read/write/retire", THOROUGH, || read_while_retiring(ModelBug::None));
    explore("index, forget/begin/retire", THOROUGH, || forget_while_retiring(ModelBug::None));
}

#[test]
fn finds_change_in_flight_ignored() {
    must_find_in_model(ModelBug::ChangeInFlightIgnored);
}

#[test]
fn finds_moved_without_flight() {
    must_find_in_model(ModelBug::MovedWithoutFlight);
}

#[test]
fn finds_index_not_reread() {
    must_find_in_model(ModelBug::IndexNotReread);
}

#[test]
fn finds_freed_before_replaced() {
    must_find_in_model(ModelBug::FreedBeforeReplaced);
}

#[test]
fn finds_in_flight_skipped() {
    must_find_in_model(ModelBug::InFlightSkipped);
}

#[test]
fn finds_replaced_in_two_steps() {
    must_find_in_model(ModelBug::ReplacedInTwoSteps);
}

#[test]
fn finds_read_outside_lock() {
    must_find_in_model(ModelBug::ReadOutsideLock);
}

#[test]
fn finds_applied_outside_flight() {
    must_find_in_model(ModelBug::AppliedOutsideFlight);
}
