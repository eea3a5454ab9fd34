//! The index while segments are retired: whoever follows an address under the shard's lock finds the record there.
//!
//! The index and the flights are the real ones. The log is a model whose slots can be freed, and in which reading a
//! freed slot fails the test. What the writers do is what `engine::commit` does, and the retiring goes the way of
//! `engine::reclaim`, step by step.

use std::collections::HashMap;
use std::sync::Arc;

use shuttle::thread;

use super::{THOROUGH, explore, must_find};
use crate::flights::Flights;
use crate::index::{Address, Index};
use crate::sync::{Mutex, yield_now};

/// Two keys that the index cannot tell apart: the same shard and the same tag. Each meets the other's records.
const HASHES: [u128; 2] = [7 << 96 | 1, 7 << 96 | 2];

/// What the model does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// "Not in the index" is believed of a key that is being changed.
    NotAskedWhetherChanging,
    /// A record is moved without the key's flight.
    MovedWithoutFlight,
    /// The index is not asked again once the flight is held.
    NotLookedAgain,
    /// The segment is given up before the index knows where its records went.
    FreedBeforeReplaced,
    /// What is in flight is passed over, and not met again.
    InFlightPassedOver,
    /// The old address is taken out and the new one put in, in two steps.
    ReplacedInTwoSteps,
    /// The address is followed after the shard's lock was let go of.
    ReadOutsideLock,
    /// The writer leaves the flight before the index says what was written.
    AppliedOutsideFlight,
}

/// A record: whose, and the how-manieth of that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    hash: u128,
    count: u64,
}

/// Records by address, in two segments: one that fills up and is then retired, and the one behind it.
#[derive(Debug, Default)]
struct Contents {
    /// The record at each address, and whether it lies in the first segment. Nothing is ever written over.
    records: Vec<(Record, bool)>,
    first_is_full: bool,
    first_is_free: bool,
}

#[derive(Debug)]
struct Model {
    index: Index,
    flights: Flights,
    log: Mutex<Contents>,
    wrong: Wrong,
}

impl Model {
    /// A store in which both keys have a record in the first segment.
    fn new(wrong: Wrong) -> Arc<Model> {
        let model = Model { index: Index::new(), flights: Flights::new(), log: Mutex::default(), wrong };
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

    /// The key's last record and where it is.
    fn look_up(&self, hash: u128) -> Option<(Address, Record)> {
        if self.wrong == Wrong::ReadOutsideLock {
            let mut candidates = Vec::new();
            let none: Option<()> = self.index.find(hash, |address| {
                candidates.push(address);
                None
            });
            assert!(none.is_none());
            // Long enough for a segment to be retired.
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
            // Until it is as durable as was asked for.
            yield_now();
            if self.wrong == Wrong::AppliedOutsideFlight {
                drop(flight);
                yield_now();
                self.index.replace(hash, old, new);
                continue;
            }
            assert!(self.index.replace(hash, old, new), "the flight keeps the entry where it is");
            flight.note_change();
        }
    }

    /// Gives up what is known of the key, and then knows something of it again.
    fn forget_and_begin(&self, hash: u128) {
        let flight = self.flights.enter(hash);
        let Some((old, record)) = self.look_up(hash) else { panic!("{hash} is lost") };
        self.append(Record { count: record.count + 1, ..record });
        yield_now();
        assert!(self.index.remove(hash, old));
        flight.note_change();
        drop(flight);

        let flight = self.flights.enter(hash);
        assert!(self.look_up(hash).is_none(), "forgotten");
        let new = self.append(Record { count: record.count + 2, ..record });
        yield_now();
        self.index.insert(hash, new);
        flight.note_change();
    }

    /// Looks the key up, `turns` times; it never goes away and never goes back.
    fn keep_reading(&self, hash: u128, turns: u64) {
        let mut last = 0;
        for _ in 0..turns {
            let Some((_, record)) = self.look_up(hash) else { panic!("{hash} is lost") };
            assert!(last <= record.count, "{hash} went back from {last} to {}", record.count);
            last = record.count;
        }
    }

    /// What the footer of the first segment names: each key's last record in it. Nothing is added to it from now on.
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

    /// Moves what is alive in the first segment behind it, and gives the segment up.
    fn retire_first(&self) {
        let mut entries = self.close_first();
        if self.wrong == Wrong::FreedBeforeReplaced {
            // What it would copy is still in its hands; it is the readers who are let down.
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
            if self.wrong == Wrong::InFlightPassedOver {
                break;
            }
            yield_now();
        }
        self.free_first();
    }

    /// False if the key is in flight.
    fn visit(&self, hash: u128, old: Address) -> bool {
        if self.wrong == Wrong::MovedWithoutFlight {
            if self.index.holds(hash, old) {
                let new = self.append(self.read(old));
                yield_now();
                assert!(self.index.replace(hash, old, new), "moved while it was changed");
            }
            return true;
        }
        if self.wrong != Wrong::NotAskedWhetherChanging && self.flights.is_changing(hash) {
            return false;
        }
        if !self.index.holds(hash, old) {
            return true;
        }
        if self.wrong == Wrong::NotLookedAgain {
            // Long enough for a whole change.
            (0..8).for_each(|_| yield_now());
        }
        let Some(flight) = self.flights.try_enter(hash) else { return false };
        if self.wrong != Wrong::NotLookedAgain && !self.index.holds(hash, old) {
            return true;
        }
        let new = self.append(self.read(old));
        yield_now();
        if self.wrong == Wrong::ReplacedInTwoSteps {
            assert!(self.index.remove(hash, old));
            self.index.insert(hash, new);
        } else {
            assert!(self.index.replace(hash, old, new), "the flight keeps the entry where it is");
        }
        drop(flight);
        true
    }
}

fn spawn(model: &Arc<Model>, work: impl FnOnce(&Model) + Send + 'static) -> thread::JoinHandle<()> {
    let model = Arc::clone(model);
    thread::spawn(move || work(&model))
}

/// One writes, one reads, and the segment with the records of both keys is retired.
fn read_while_retiring(wrong: Wrong) {
    let model = Model::new(wrong);
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
    assert_eq!(counts, [Some(2), Some(0)], "what was written last is what is found");
    assert!(model.flights.is_empty());
}

/// A key is forgotten and begun again while the segment that holds its records is retired.
fn forget_while_retiring(wrong: Wrong) {
    let model = Model::new(wrong);
    let threads = [
        spawn(&model, |model| model.forget_and_begin(HASHES[0])),
        spawn(&model, |model| model.keep_reading(HASHES[1], 2)),
        spawn(&model, Model::retire_first),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    let counts = HASHES.map(|hash| model.look_up(hash).map(|(_, record)| record.count));
    assert_eq!(counts, [Some(2), Some(0)], "what was written last is what is found");
    assert_eq!(model.index.len(), 2, "and nothing else");
    assert!(model.flights.is_empty());
}

/// What a wrong way may come to light by, whichever thread meets it first.
const SYMPTOMS: [&str; 6] = [
    "from a free slot",
    "moved while it was changed",
    "the flight keeps the entry",
    "is lost",
    "went back",
    "is what is found",
];

fn must_find_wrong(wrong: Wrong) {
    must_find(&format!("{wrong:?}"), THOROUGH, &SYMPTOMS, move || read_while_retiring(wrong));
}

#[test]
fn nobody_reads_a_free_slot_and_nobody_misses_a_record() {
    explore("index, read/write/retire", THOROUGH, || read_while_retiring(Wrong::Nothing));
    explore("index, forget/begin/retire", THOROUGH, || forget_while_retiring(Wrong::Nothing));
}

#[test]
fn finds_not_asked_whether_changing() {
    must_find_wrong(Wrong::NotAskedWhetherChanging);
}

#[test]
fn finds_moved_without_flight() {
    must_find_wrong(Wrong::MovedWithoutFlight);
}

#[test]
fn finds_not_looked_again() {
    must_find_wrong(Wrong::NotLookedAgain);
}

#[test]
fn finds_freed_before_replaced() {
    must_find_wrong(Wrong::FreedBeforeReplaced);
}

#[test]
fn finds_in_flight_passed_over() {
    must_find_wrong(Wrong::InFlightPassedOver);
}

#[test]
fn finds_replaced_in_two_steps() {
    must_find_wrong(Wrong::ReplacedInTwoSteps);
}

#[test]
fn finds_read_outside_lock() {
    must_find_wrong(Wrong::ReadOutsideLock);
}

#[test]
fn finds_applied_outside_flight() {
    must_find_wrong(Wrong::AppliedOutsideFlight);
}
