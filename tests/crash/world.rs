//! A store on a simulated disk, and the oracle beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::simulation::{DiskFault, PathTarget, SimulatedDisk};
use oncekey::{
    Begin, CasOutcome, Doubt, Durability, Error, Expected, Fingerprint, Lease, ManualClock, Next, Options,
    Recorded, Status, Store, Version,
};

pub const START_MS: u64 = 1_700_000_000_000;
const NONE: Fingerprint = Fingerprint::NONE;

/// One thing that a history does. Keys are small numbers, so that they collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Begin(u8),
    Complete(u8, u16),
    Release(u8),
    /// The lease is dropped, as by a panic.
    Abandon(u8),
    Record(u8, u16),
    /// The same, not synced.
    RecordBuffered(u8, u16),
    Forget(u8),
    /// Somebody finds out about a doubt: 0 applied, 1 not applied, 2 begin again.
    Resolve(u8, u8),
    /// A compare-and-set on whatever stands there, to completed.
    Set(u8, u16),
    Sync,
    Compact,
    /// The path leads to another file from now on, until the store is opened again; a sync notices.
    Replace,
    /// A clean close, and an opening.
    Reopen,
    /// Handles are dropped without a close, and the store is opened again.
    Drop,
    /// The same, and until it is opened again nothing is synced that does not ask for it.
    DropToBuffered,
    /// The same, and the opening makes the file longer.
    DropToLonger,
    Advance(u32),
    /// A clean close, the wall clock is set back by so much (more than the small steps that are followed), and an
    /// opening.
    ReopenBack(u32),
    /// The wall clock is set forward or back by so much (more than the small steps that are followed).
    Step(i64),
    /// A clean close, a reboot for which the machine is down so long, and an opening.
    Reboot(u32),
    /// As `Record`, and remembered for so many ms.
    RecordFor(u8, u16, u64),
    /// The key's last record rots, if it lies in a full segment: at one of some places in it.
    Rot(u8, u8),
}

impl Act {
    /// The key that it changes or wants to.
    fn key(self) -> Option<u8> {
        match self {
            Act::Begin(key)
            | Act::Complete(key, _)
            | Act::Release(key)
            | Act::Abandon(key)
            | Act::Record(key, _)
            | Act::RecordBuffered(key, _)
            | Act::RecordFor(key, ..)
            | Act::Forget(key)
            | Act::Resolve(key, _)
            | Act::Set(key, _) => Some(key),
            _ => None,
        }
    }
}

/// What the oracle knows of one key. Absent keys without remembered attempts are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub status: Status,
    /// What the count of attempts may be: that of a released key may have been given up before the key was used again.
    pub attempts: Vec<u32>,
    /// The record of this state was damaged: the key says so, or shows this state by an older copy of the record.
    pub rotten: bool,
    pub result: Vec<u8>,
    /// None while the record is under way: nobody was told.
    pub version: Option<Version>,
    pub result_expires_ms: u64,
    pub expires_ms: u64,
}

pub type Model = BTreeMap<u8, Known>;

/// All that was acknowledged, in order. A crash leaves a prefix of it.
#[derive(Debug, Clone)]
pub struct Oracle {
    /// After each record.
    pub history: Vec<Model>,
    /// The store time of each: no opening may be earlier.
    pub times_ms: Vec<u64>,
    /// The first of them that a crash may leave: everything up to here was said to be on disk.
    pub durable: usize,
    /// What would be if the call that failed had worked.
    pub in_flight: Option<Model>,
    pub highest: Version,
}

impl Oracle {
    fn new() -> Oracle {
        Oracle {
            history: vec![Model::new()],
            times_ms: vec![START_MS],
            durable: 0,
            in_flight: None,
            highest: Version::from_u64(0),
        }
    }

    fn now(&self) -> &Model {
        self.history.last().unwrap()
    }
}

pub struct World {
    pub disk: SimulatedDisk,
    pub clock: ManualClock,
    pub oracle: Oracle,
    /// What store time must be: it does not follow a wall clock that is set.
    pub time_ms: u64,
    /// How far the wall clock was ahead of store time, each with the length of the history from which on it was so.
    offsets_ms: Vec<(usize, i64)>,
    /// Whether what does not say how durable it is wanted is only written.
    buffered: bool,
    /// Whether the disk can reserve room.
    reserves: bool,
    /// Whether the store has noticed that its path leads elsewhere.
    replaced: bool,
    store: Option<Store>,
    leases: BTreeMap<u8, Lease>,
}

const RETENTION_MS: u64 = 100_000;
const RESULT_RETENTION_MS: u64 = 60_000;

const SEGMENT_BYTES: usize = 64 << 10;

pub fn options(clock: &ManualClock) -> Options {
    Options::new()
        .segment_size(SEGMENT_BYTES as u64)
        .retention(Duration::from_millis(RETENTION_MS))
        .result_retention(Duration::from_millis(RESULT_RETENTION_MS))
        .manual_clock(clock.clone())
}

pub fn name(key: u8) -> String {
    format!("key-{key}")
}

/// A result that no other record has.
fn result(key: u8, size: u16, nonce: usize) -> Vec<u8> {
    let mut result = format!("{key}/{nonce}/").into_bytes();
    let length = result.len().max(usize::from(size));
    result.resize(length, key ^ u8::try_from(nonce % 251).unwrap());
    result
}

impl World {
    /// A world whose disk meets `faults` (by step); None if the store could not even be created.
    pub fn new(disk: SimulatedDisk) -> Result<World, Error> {
        let clock = ManualClock::new(START_MS);
        let store = options(&clock).open_simulated(&disk)?;
        Ok(World {
            disk,
            clock,
            oracle: Oracle::new(),
            time_ms: START_MS,
            offsets_ms: vec![(0, 0)],
            buffered: false,
            reserves: false,
            replaced: false,
            store: Some(store),
            leases: BTreeMap::new(),
        })
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// What was in progress is in doubt.
    pub fn drop_leases(&mut self) {
        self.leases.clear();
    }

    /// Ends the process: handles go, and nothing of it is any use.
    pub fn die(&mut self) {
        self.leases.clear();
        self.store = None;
        assert_eq!(self.disk.touched_unlocked(), 0, "a file that was unlocked was read or written");
    }

    /// Performs one act, and tells the oracle. An error is what the disk did, never what the oracle did not expect:
    /// that is a panic.
    pub fn perform(&mut self, act: Act) -> Result<(), Error> {
        let now_ms = self.time_ms;
        let mut next = self.oracle.now().clone();
        expire(&mut next, now_ms);
        let nonce = self.oracle.history.len();
        let store = self.store.as_ref().unwrap();
        let status = |model: &Model, key: u8| model.get(&key).map_or(Status::Absent, |known| known.status);
        if let Some(key) = act.key().filter(|key| next.get(key).is_some_and(|known| known.rotten)) {
            return self.perform_on_rotten(act, key, next);
        }
        let attempts =
            |model: &Model, key: u8| model.get(&key).map_or(vec![0], |known| known.attempts.clone());
        // The next attempt's number, if those before it are still counted.
        let next_attempts = |model: &Model, key: u8| {
            let mut counts = attempts(model, key);
            if status(model, key) == Status::Absent {
                counts.push(0);
            }
            counts.iter().map(|count| count + 1).collect::<Vec<_>>()
        };
        let held = |leases: &BTreeMap<u8, Lease>, key: u8| leases.contains_key(&key);
        let mut durable = !self.buffered;
        match act {
            Act::Begin(key) => {
                let before = (status(&next, key), held(&self.leases, key));
                let expected = Known {
                    status: Status::InDoubt,
                    attempts: next_attempts(&next, key),
                    rotten: false,
                    result: Vec::new(),
                    version: None,
                    result_expires_ms: u64::MAX,
                    expires_ms: u64::MAX,
                };
                if before.0 == Status::Absent {
                    next.insert(key, expected);
                    self.oracle.in_flight = Some(next.clone());
                }
                let begun = store.operation(&name(key)).begin();
                match (begun, before) {
                    (Ok(Begin::Acquired(lease)), (Status::Absent, _)) => {
                        assert!(next[&key].attempts.contains(&lease.attempt()), "{act:?}: {lease:?}");
                        let known = next.get_mut(&key).unwrap();
                        (known.version, known.attempts) = (Some(lease.version()), vec![lease.attempt()]);
                        self.oracle.highest = self.grown(lease.version());
                        self.leases.insert(key, lease);
                    }
                    (Ok(Begin::InProgress { .. }), (Status::InDoubt, true)) => return Ok(()),
                    (Ok(Begin::InDoubt(doubt)), (Status::InDoubt, false)) => {
                        assert_eq!(Some(doubt.version()), next[&key].version);
                        return Ok(());
                    }
                    (Ok(Begin::Completed(done)), (Status::Completed, _)) => {
                        assert_eq!(done.result(), next[&key].result, "{act:?}: replayed another result");
                        return Ok(());
                    }
                    (Err(Error::ResultExpired { .. }), (Status::Completed, _)) => {
                        assert!(next[&key].result.is_empty() && next[&key].result_expires_ms <= now_ms);
                        return Ok(());
                    }
                    (Ok(other), _) => panic!("{act:?}: {other:?} where the oracle knows {before:?}"),
                    (Err(error), _) => return self.failed(act, error),
                }
            }
            Act::Complete(key, size) => {
                let Some(mut lease) = self.leases.remove(&key) else { return Ok(()) };
                let bytes = result(key, size, nonce);
                next.insert(key, completed(attempts(&next, key), bytes.clone(), now_ms));
                self.oracle.in_flight = Some(next.clone());
                match lease.complete(&bytes) {
                    Ok(version) => {
                        assert!(!self.replaced, "{act:?}: its caller was not told");
                        next.get_mut(&key).unwrap().version = Some(version);
                        self.oracle.highest = self.grown(version);
                    }
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Release(key) => {
                let Some(lease) = self.leases.remove(&key) else { return Ok(()) };
                next.insert(key, released(attempts(&next, key), now_ms));
                self.oracle.in_flight = Some(next.clone());
                match lease.release() {
                    Ok(()) => assert!(!self.replaced, "{act:?}: its caller was not told"),
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Abandon(key) => {
                self.leases.remove(&key);
                return Ok(());
            }
            Act::Record(key, size) | Act::RecordBuffered(key, size) | Act::RecordFor(key, size, _) => {
                let before = status(&next, key);
                let bytes = result(key, size, nonce);
                if before == Status::Absent {
                    let mut expected = completed(next_attempts(&next, key), bytes.clone(), now_ms);
                    if let Act::RecordFor(_, _, kept_ms) = act {
                        expected.expires_ms = now_ms + kept_ms;
                        expected.result_expires_ms = now_ms + kept_ms;
                    }
                    next.insert(key, expected);
                    self.oracle.in_flight = Some(next.clone());
                }
                durable = !matches!(act, Act::RecordBuffered(..));
                let durability = if durable { Durability::Sync } else { Durability::Buffered };
                let name = name(key);
                let mut operation = store.operation(&name).durability(durability);
                if let Act::RecordFor(_, _, kept_ms) = act {
                    let kept = Duration::from_millis(kept_ms);
                    operation = operation.retain(kept).retain_result(kept);
                }
                match (operation.record(&bytes), before) {
                    (Ok(Recorded::Done(version)), Status::Absent) => {
                        next.get_mut(&key).unwrap().version = Some(version);
                        self.oracle.highest = self.grown(version);
                    }
                    (Ok(Recorded::AlreadyDone(done)), Status::Completed) => {
                        assert_eq!(done.result(), next[&key].result, "{act:?}: replayed another result");
                        return Ok(());
                    }
                    (Err(Error::InProgress { .. } | Error::InDoubt { .. }), Status::InDoubt) => return Ok(()),
                    (Err(Error::ResultExpired { .. }), Status::Completed) => {
                        assert!(next[&key].result_expires_ms <= now_ms);
                        return Ok(());
                    }
                    (Ok(other), _) => panic!("{act:?}: {other:?} where the oracle knows {before:?}"),
                    (Err(error), _) => return self.failed(act, error),
                }
            }
            Act::Forget(key) => {
                let before = (status(&next, key), held(&self.leases, key));
                if before != (Status::Absent, false) && !before.1 {
                    next.remove(&key);
                    self.oracle.in_flight = Some(next.clone());
                }
                match (store.forget(&name(key)), before) {
                    (Ok(true), (Status::InDoubt | Status::Completed, false)) => {}
                    (Ok(false), (Status::Absent, _)) => return Ok(()),
                    (Err(Error::InProgress { .. }), (_, true)) => return Ok(()),
                    (Ok(other), _) => panic!("{act:?}: {other:?} where the oracle knows {before:?}"),
                    (Err(error), _) => return self.failed(act, error),
                }
            }
            Act::Resolve(key, how) => {
                if status(&next, key) != Status::InDoubt || held(&self.leases, key) {
                    return Ok(());
                }
                let mut doubt: Doubt = match store.begin(&name(key), NONE) {
                    Ok(Begin::InDoubt(doubt)) => doubt,
                    Ok(other) => panic!("{act:?}: {other:?}"),
                    Err(error) => {
                        self.oracle.in_flight = None;
                        return self.failed(act, error);
                    }
                };
                let bytes = result(key, 40, nonce);
                let known = vec![doubt.attempt()];
                assert!(next[&key].attempts.contains(&known[0]), "{act:?}: {doubt:?}");
                let expected = match how % 3 {
                    0 => completed(known, bytes.clone(), now_ms),
                    1 => released(known, now_ms),
                    _ => Known { attempts: vec![known[0] + 1], version: None, ..next[&key].clone() },
                };
                next.insert(key, expected);
                self.oracle.in_flight = Some(next.clone());
                let version = match how % 3 {
                    0 => doubt.complete(&bytes).map(Some),
                    1 => doubt.release().map(|()| None),
                    _ => doubt.begin_again().map(|lease| {
                        let version = lease.version();
                        self.leases.insert(key, lease);
                        Some(version)
                    }),
                };
                match version {
                    Ok(version) => {
                        next.get_mut(&key).unwrap().version = version;
                        self.oracle.highest =
                            version.map_or(self.oracle.highest, |version| self.grown(version));
                    }
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Set(key, size) => {
                let before = status(&next, key);
                if before == Status::Completed {
                    return Ok(());
                }
                let expected = match next.get(&key).filter(|_| before != Status::Absent) {
                    Some(known) => Expected::Present {
                        status: if held(&self.leases, key) { Status::InProgress } else { Status::InDoubt },
                        version: known.version.unwrap(),
                    },
                    None => Expected::Absent,
                };
                let bytes = result(key, size, nonce);
                let attempts =
                    if before == Status::Absent { next_attempts(&next, key) } else { attempts(&next, key) };
                next.insert(key, completed(attempts, bytes.clone(), now_ms));
                self.oracle.in_flight = Some(next.clone());
                let to = Next::Completed { fingerprint: NONE, result: &bytes };
                match store.compare_and_set(&name(key), expected, to) {
                    Ok(CasOutcome::Done(version)) => {
                        next.get_mut(&key).unwrap().version = Some(version);
                        self.oracle.highest = self.grown(version);
                        if let Some(mut lease) = self.leases.remove(&key) {
                            match lease.complete(b"late") {
                                Err(Error::Fenced { .. } | Error::Io { .. }) => {}
                                other => panic!("{act:?}: the lease that it fenced: {other:?}"),
                            }
                        }
                    }
                    Ok(other) => panic!("{act:?}: {other:?}"),
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Sync | Act::Replace => {
                if act == Act::Replace {
                    self.disk.set_path_target(PathTarget::Elsewhere);
                    self.replaced = true;
                }
                match store.sync() {
                    Ok(()) => assert!(!self.replaced, "{act:?}: a sync did not notice"),
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
                self.oracle.durable = self.oracle.history.len() - 1;
                return Ok(());
            }
            Act::Compact => {
                if let Err(error) = store.compact() {
                    return self.failed(act, error);
                }
                return Ok(());
            }
            Act::Reopen
            | Act::Drop
            | Act::DropToBuffered
            | Act::DropToLonger
            | Act::ReopenBack(_)
            | Act::Reboot(_) => {
                self.leases.clear();
                let store = self.store.take().unwrap();
                if let Act::ReopenBack(by_ms) = act {
                    self.step(-i64::from(by_ms));
                }
                if matches!(act, Act::Reopen | Act::ReopenBack(_) | Act::Reboot(_)) {
                    let closed = store.close();
                    // Closed well or not, it is closed, and no later call takes it for what it is not.
                    match (&closed, store.close()) {
                        (Ok(()), Err(Error::Closed))
                        | (Err(Error::Poisoned { .. }), Err(Error::Poisoned { .. }))
                        | (Err(Error::Replaced { .. }), Err(Error::Replaced { .. })) => {}
                        (first, second) => panic!("{act:?}: closed with {first:?} and then {second:?}"),
                    }
                    assert!(matches!(store.get("k"), Err(Error::Closed)));
                    match closed {
                        Ok(()) => assert!(!self.replaced, "{act:?}: its caller was not told"),
                        Err(Error::Replaced { .. }) if self.replaced => {}
                        Err(error) => return self.failed(act, error),
                    }
                    self.oracle.durable = self.oracle.history.len() - 1;
                } else {
                    drop(store);
                }
                if let Act::Reboot(down_ms) = act {
                    self.clock.reboot(Duration::from_millis(u64::from(down_ms)));
                    self.time_ms += u64::from(down_ms);
                }
                self.disk.set_path_target(PathTarget::Here);
                self.replaced = false;
                self.buffered = act == Act::DropToBuffered;
                if self.buffered {
                    // Every other time the store has to make room by writing zeroes all the same.
                    self.reserves = !self.reserves;
                    self.disk.set_reserves(self.reserves);
                }
                let durability = if self.buffered { Durability::Buffered } else { Durability::Sync };
                let options = options(&self.clock).durability(durability);
                let before = self.disk.bytes().len();
                let longer = (before + 2 * SEGMENT_BYTES).min(12 * SEGMENT_BYTES).max(before);
                let mut opened = match act {
                    Act::DropToLonger => options.clone().min_size(longer as u64).open_simulated(&self.disk),
                    _ => options.open_simulated(&self.disk),
                };
                if let (Act::DropToLonger, Err(Error::Full { .. })) = (act, &opened) {
                    let length = self.disk.bytes().len();
                    assert!(length <= before, "what was refused leaves {length} bytes of {before}");
                    opened = options.open_simulated(&self.disk);
                } else if act == Act::DropToLonger && opened.is_ok() {
                    assert!(self.disk.bytes().len() >= longer, "{act:?}: it is as long as was asked for");
                }
                match opened {
                    Ok(store) => {
                        assert_eq!(
                            store.stats().store_time_ms,
                            self.time_ms,
                            "{act:?}: time goes on where it was"
                        );
                        self.store = Some(store);
                        // An opening decides nothing on what a crash could still take away.
                        self.oracle.durable = self.oracle.history.len() - 1;
                    }
                    Err(error) => return self.failed(act, error),
                }
                return Ok(());
            }
            Act::Step(by_ms) => {
                self.step(by_ms);
                return Ok(());
            }
            Act::Rot(key, place) => {
                // Otherwise a crash might take away the footer that says whose record it was.
                match store.sync() {
                    Ok(()) => {}
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
                self.oracle.durable = self.oracle.history.len() - 1;
                let Some(at) = last_record_of(&self.disk.bytes(), name(key).as_bytes()) else {
                    return Ok(());
                };
                self.disk.rot(at + ROTTEN_PLACES[usize::from(place) % ROTTEN_PLACES.len()], 0x41);
                let Some(version) = next.get(&key).and_then(|known| known.version) else { return Ok(()) };
                for known in self.oracle.history.iter_mut().filter_map(|model| model.get_mut(&key)) {
                    known.rotten |= known.version == Some(version);
                }
                return Ok(());
            }
            Act::Advance(by_ms) => {
                self.clock.advance(Duration::from_millis(u64::from(by_ms)));
                self.time_ms += u64::from(by_ms);
                return Ok(());
            }
        }
        let ends = matches!(act, Act::Complete(..) | Act::Release(_));
        assert!(!self.replaced || ends, "{act:?}: done although the path leads elsewhere");
        self.acknowledge(next, durable);
        Ok(())
    }

    /// The key cannot be read, and it can be given up.
    fn perform_on_rotten(&mut self, act: Act, key: u8, mut next: Model) -> Result<(), Error> {
        let store = self.store.as_ref().unwrap();
        let known = next[&key].clone();
        let is_held = self.leases.contains_key(&key);
        let refused = match act {
            Act::Begin(_) | Act::Resolve(..) => store.begin(&name(key), NONE).map(drop),
            Act::Record(..) | Act::RecordBuffered(..) | Act::RecordFor(..) => {
                store.record(&name(key), NONE, b"other").map(drop)
            }
            Act::Complete(..) => match self.leases.remove(&key) {
                Some(mut lease) => lease.complete(b"late").map(drop),
                None => return Ok(()),
            },
            Act::Release(_) => match self.leases.remove(&key) {
                Some(lease) => lease.release(),
                None => return Ok(()),
            },
            Act::Set(_, size) if size % 4 == 0 => {
                let to = Next::Completed { fingerprint: NONE, result: b"other" };
                let status = if is_held { Status::InProgress } else { known.status };
                let expected = Expected::Present { status, version: known.version.unwrap() };
                store.compare_and_set(&name(key), expected, to).map(drop)
            }
            Act::Set(..) => {
                next.remove(&key);
                self.oracle.in_flight = Some(next.clone());
                let status = if is_held { Status::InProgress } else { known.status };
                let expected = Expected::Present { status, version: known.version.unwrap() };
                match store.compare_and_set(&name(key), expected, Next::Absent) {
                    Ok(CasOutcome::Done(version)) => self.oracle.highest = self.grown(version),
                    // What carried it rotted too: nothing says any more what it was.
                    Err(Error::Corrupt { .. }) => {
                        self.oracle.in_flight = None;
                        return Ok(());
                    }
                    Ok(other) => panic!("{act:?}: {other:?}"),
                    Err(error) => return self.failed(act, error),
                }
                self.leases.remove(&key);
                self.acknowledge(next, !self.buffered);
                return Ok(());
            }
            Act::Forget(_) if is_held => match store.forget(&name(key)) {
                Err(Error::InProgress { .. }) => return Ok(()),
                other => other.map(drop),
            },
            Act::Forget(_) => {
                next.remove(&key);
                self.oracle.in_flight = Some(next.clone());
                match store.forget(&name(key)) {
                    Ok(true) => self.acknowledge(next, !self.buffered),
                    Ok(false) => panic!("{act:?}: there was nothing, where the oracle knows {known:?}"),
                    Err(error) => return self.failed(act, error),
                }
                return Ok(());
            }
            _ => {
                self.leases.remove(&key);
                return Ok(());
            }
        };
        match refused {
            Err(Error::Corrupt { .. }) => Ok(()),
            Ok(()) => panic!("{act:?}: it worked, though {known:?}"),
            Err(error) => self.failed(act, error),
        }
    }

    fn acknowledge(&mut self, next: Model, durable: bool) {
        self.oracle.in_flight = None;
        self.oracle.history.push(next);
        self.oracle.times_ms.push(self.time_ms);
        if durable {
            self.oracle.durable = self.oracle.history.len() - 1;
        }
    }

    fn grown(&self, version: Version) -> Version {
        assert!(version > self.oracle.highest, "{version} after {}", self.oracle.highest);
        version
    }

    fn failed(&mut self, act: Act, error: Error) -> Result<(), Error> {
        match error {
            Error::Replaced { .. } if self.replaced => {
                self.oracle.in_flight = None;
                Ok(())
            }
            Error::Poisoned { .. } | Error::Io { .. } | Error::Full { .. } => Err(error),
            other => panic!("{act:?}: an error that no disk causes: {other:?}"),
        }
    }

    fn step(&mut self, by_ms: i64) {
        self.clock.jump_wall(self.clock.now_ms().saturating_add_signed(by_ms));
        let (_, offset_ms) = self.offsets_ms[self.offsets_ms.len() - 1];
        self.offsets_ms.push((self.oracle.history.len(), offset_ms + by_ms));
    }

    /// How far the wall clock was ahead of store time at any time since what is certainly on disk.
    pub fn offsets_since_durable(&self) -> impl Iterator<Item = i64> {
        let before = self.offsets_ms.iter().take_while(|(from, _)| *from <= self.oracle.durable).count();
        self.offsets_ms.iter().skip(before.saturating_sub(1)).map(|(_, offset_ms)| *offset_ms)
    }

    /// The store, unless an opening failed.
    pub fn open_store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether an attempt at it began and has not ended.
    pub fn has_begun(&self, key: u8) -> bool {
        self.oracle.now().get(&key).is_some_and(|known| known.status == Status::InDoubt)
    }

    /// A full disk refused the act: nothing happened, and that is certain.
    pub fn was_refused(&mut self) {
        self.oracle.in_flight = None;
    }

    /// An opening found the history here, and everything that it answers is on disk from then on.
    pub fn settle_at(&mut self, at: usize) {
        if let Some(in_flight) = self.oracle.in_flight.take()
            && at == self.oracle.history.len()
        {
            self.oracle.history.push(in_flight);
            self.oracle.times_ms.push(self.time_ms);
        }
        self.oracle.history.truncate(at + 1);
        self.oracle.times_ms.truncate(at + 1);
        self.oracle.durable = at;
    }

    /// Checks a store that was opened after a crash. Returns where in the history it is.
    pub fn check(&self, store: &Store) -> Result<usize, String> {
        let at = check(&self.oracle, store)?;
        // In the boot in which it crashed nothing of the time is lost, whatever else is.
        match store.stats().store_time_ms {
            time_ms if time_ms == self.time_ms => Ok(at),
            time_ms => Err(format!("store time is {time_ms} ms and not {} ms", self.time_ms)),
        }
    }
}

fn completed(attempts: Vec<u32>, result: Vec<u8>, now_ms: u64) -> Known {
    Known {
        status: Status::Completed,
        attempts,
        rotten: false,
        result,
        version: None,
        result_expires_ms: now_ms + RESULT_RETENTION_MS,
        expires_ms: now_ms + RETENTION_MS,
    }
}

fn released(attempts: Vec<u32>, now_ms: u64) -> Known {
    Known {
        status: Status::Absent,
        attempts,
        rotten: false,
        result: Vec::new(),
        version: None,
        result_expires_ms: u64::MAX,
        expires_ms: now_ms + RETENTION_MS,
    }
}

/// What time takes away.
pub fn expire(model: &mut Model, now_ms: u64) {
    model.retain(|_, known| now_ms < known.expires_ms);
    for known in model.values_mut() {
        if known.status == Status::Completed && now_ms >= known.result_expires_ms {
            known.result = Vec::new();
        }
    }
}

/// The highest key that histories use.
pub const KEYS: u8 = 24;

/// Where a record rots: its checksum, its version, its fingerprint, its attempt, its times and the beginning of what follows
/// the key. Not its length and its key, by which the test finds it again.
const ROTTEN_PLACES: [usize; 8] = [1, 17, 33, 48, 57, 65, 73, 88];

/// Where the last record of a key begins in the file, if that is in a full segment.
fn last_record_of(file: &[u8], name: &[u8]) -> Option<usize> {
    const FILE_HEADER: usize = 4_096;
    const FRAME_HEADER: usize = 56;
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let slots = (FILE_HEADER..).step_by(SEGMENT_BYTES).take_while(|at| at + SEGMENT_BYTES <= file.len());
    let slots: Vec<usize> = slots.filter(|at| file[*at..].starts_with(b"ONCESEGM")).collect();
    let head = slots.iter().map(|at| u64_at(at + 80)).max()?;
    let segments: BTreeMap<u64, usize> =
        slots.into_iter().map(|at| (u64_at(at + 72), at)).filter(|(sequence, _)| *sequence >= head).collect();
    let mut last = None;
    for (sequence, slot) in &segments {
        let mut frame = slot + FILE_HEADER;
        let position_of = |at: usize| sequence * SEGMENT_BYTES as u64 + (at - slot) as u64;
        while frame + FRAME_HEADER <= slot + SEGMENT_BYTES && u64_at(frame + 8) == position_of(frame) {
            // The frame that starts an opening has no records, and something else in their place.
            let has_records = u32_at(frame + 36) > 0;
            let mut record = frame + FRAME_HEADER;
            while has_records && record < frame + u32_at(frame + 4) {
                let carries = if file[record + 8] == 5 { 80 } else { 0 };
                let inner = record + carries;
                let key_at = inner + 80;
                if file[key_at..].starts_with(name) && usize::from(file[inner + 10]) == name.len() {
                    last = Some((*sequence, record));
                }
                record += u32_at(record + 4);
            }
            frame += u32_at(frame + 4);
        }
    }
    let (tail, _) = segments.last_key_value()?;
    last.filter(|(sequence, _)| sequence < tail).map(|(_, at)| at)
}

/// What a store says of every key; None: it cannot be read.
pub fn read(store: &Store) -> Result<BTreeMap<u8, Option<oncekey::KeyState>>, Error> {
    let read = |key| match store.get(&name(key)) {
        Err(Error::Corrupt { .. }) => Ok((key, None)),
        seen => seen.map(|seen| (key, Some(seen))),
    };
    (0..KEYS).map(read).collect()
}

fn agrees(model: &Model, seen: &BTreeMap<u8, Option<oncekey::KeyState>>, now_ms: u64) -> Result<(), String> {
    let mut model = model.clone();
    expire(&mut model, now_ms);
    for (key, seen) in seen {
        let Some(seen) = seen else {
            if model.get(key).is_some_and(|known| known.rotten) {
                continue;
            }
            return Err(format!("{key}: cannot be read, and nothing happened to it"));
        };
        let Some(known) = model.get(key) else {
            if seen.status() != Status::Absent || seen.attempt() != 0 {
                return Err(format!("{key}: {seen:?}, and nothing is known of it"));
            }
            continue;
        };
        let has_result = known.status == Status::Completed && now_ms < known.result_expires_ms;
        let same = seen.status() == known.status
            && (known.attempts.contains(&seen.attempt())
                || known.status == Status::Absent && seen.attempt() == 0)
            && seen.result() == has_result.then_some(&known.result[..])
            && (known.version.is_none() || known.status == Status::Absent || seen.version() == known.version);
        if !same {
            let result_bytes = seen.result().map(<[u8]>::len);
            return Err(format!(
                "{key}: {:?} attempt {} version {:?} result {result_bytes:?} bytes; expected {:?} attempts {:?} version {:?} \
                 {} bytes",
                seen.status(),
                seen.attempt(),
                seen.version(),
                known.status,
                known.attempts,
                known.version,
                known.result.len()
            ));
        }
    }
    Ok(())
}

/// Whether the store is at some point of the history that a crash may leave it at.
pub fn check(oracle: &Oracle, store: &Store) -> Result<usize, String> {
    let now_ms = store.stats().store_time_ms;
    let seen = read(store).map_err(|error| format!("cannot be read: {error}"))?;
    let last = oracle.history.len() - 1;
    let mut why = String::new();
    let in_flight = oracle.in_flight.iter().map(|model| (last + 1, model));
    let acknowledged = oracle.history.iter().enumerate().skip(oracle.durable).rev();
    for (at, model) in in_flight.chain(acknowledged) {
        match agrees(model, &seen, now_ms) {
            Ok(()) if oracle.times_ms.get(at).is_some_and(|time_ms| now_ms < *time_ms) => {
                return Err(format!("store time is {now_ms} ms, before that of what it holds"));
            }
            Ok(()) => return Ok(at),
            Err(reason) if at == last => why = reason,
            Err(_) => {}
        }
    }
    Err(format!("at no point from {} to {} of the history; against the last: {why}", oracle.durable, last))
}

/// A store that is still open shows what it acknowledged and nothing else, or says why it cannot be read.
pub fn live_agrees(world: &World, store: &Store) -> Result<(), String> {
    let now_ms = world.time_ms;
    let mut model = world.oracle.now().clone();
    expire(&mut model, now_ms);
    for key in 0..KEYS {
        let seen = match store.get(&name(key)) {
            Ok(seen) => seen,
            Err(Error::Poisoned { .. } | Error::Io { .. } | Error::Closed) => continue,
            Err(Error::Corrupt { .. }) if model.get(&key).is_some_and(|known| known.rotten) => continue,
            Err(error) => return Err(format!("{key}: {error}")),
        };
        let expected = model.get(&key).map_or(Status::Absent, |known| known.status);
        let status = if seen.status() == Status::InProgress { Status::InDoubt } else { seen.status() };
        let result = model.get(&key).filter(|_| expected == Status::Completed).map(|known| &known.result[..]);
        let same_result = seen.result().is_none_or(|seen| Some(seen) == result);
        if status != expected || !same_result {
            return Err(format!("{key}: shows {status:?}, acknowledged was {expected:?}"));
        }
    }
    Ok(())
}

/// After a crash and an opening, the store must not only be right but work.
pub fn exercise(world: &World, store: &Store) -> Result<(), String> {
    let told = |error: Error| format!("it does not go on: {error}");
    let Recorded::Done(version) = store.record("after the crash", NONE, b"works").map_err(told)? else {
        return Err("the probe was there already".into());
    };
    if version <= world.oracle.highest {
        return Err(format!("version {version} was given out after {}", world.oracle.highest));
    }
    if store.get("after the crash").map_err(told)?.result() != Some(b"works") {
        return Err("the probe is not there".into());
    }
    Ok(())
}

/// A store that goes on buffered makes room behind whatever the crash left at the end of the file.
pub fn grow(store: &Store) -> Result<(), String> {
    let told = |error: Error| format!("it does not grow: {error}");
    let value = |number: u8| [number; 12_000];
    for number in 0..8 {
        store.record(&format!("growing-{number}"), NONE, &value(number)).map_err(told)?;
    }
    for number in 0..8 {
        if store.get(&format!("growing-{number}")).map_err(told)?.result() != Some(&value(number)[..]) {
            return Err(format!("what was recorded while it grew, {number}, is not there"));
        }
    }
    Ok(())
}

/// Plans a power loss at a step.
pub fn power_loss_at(disk: &SimulatedDisk, step: u64) {
    disk.fault_at(step, DiskFault::PowerLoss);
}
