//! A store on a simulated disk that is driven act by act, and an oracle that models what it acknowledged.
//!
//! [`World::perform`] runs one act on the store, compares the answer with the oracle, and records in the oracle what
//! the store acknowledged.
//!
//! - `act` defines the acts.
//! - `batch` commits batches.
//! - `outbox` emits messages, and publishes them.
//! - `oracle` is the model.
//! - `reopen` performs the acts that end one session and begin the next.
//! - `steps` performs the acts on steps.
//! - `rot` damages a record, and performs acts on a key whose record is damaged.

mod act;
mod batch;
mod outbox;
pub mod oracle;
mod reopen;
mod rot;
mod steps;
mod scanned;
mod unfinished;

pub use act::{APPLIED, Act, BEGIN_AGAIN, NOT_APPLIED, TO_ABSENT, TO_COMPLETED, field};
pub use scanned::check_beside;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oncekey::simulation::steps::StepLease;
use oncekey::simulation::{DiskFault, PathTarget, SimulatedDisk};
use oncekey::{
    Begin, CasOutcome, Doubt, Durability, Error, Expected, Fingerprint, Lease, ManualClock, Next, Options,
    Recorded, Status, Store, Version,
};

use oracle::{Known, Model, Oracle, expire};

pub const START_MS: u64 = 1_700_000_000_000;
const NONE: Fingerprint = Fingerprint::NONE;

/// Scripts use keys below this one.
pub const KEYS: u8 = 24;

const RETENTION_MS: u64 = 100_000;
const RESULT_RETENTION_MS: u64 = 60_000;

const SEGMENT_BYTES: usize = 64 << 10;

pub struct World {
    pub disk: SimulatedDisk,
    pub clock: ManualClock,
    pub oracle: Oracle,
    /// The store time that the store must have. It does not follow a wall clock that is set.
    pub time_ms: u64,
    /// By how many milliseconds the wall clock is ahead of store time, after each step of the wall clock. The first number
    /// is the length of the oracle's history at that step.
    offsets_ms: Vec<(usize, i64)>,
    /// Whether the store's default durability is `Buffered`.
    buffered: bool,
    /// Whether the disk can reserve space.
    reserves: bool,
    /// Whether the store has noticed that its path leads to another file.
    replaced: bool,
    /// Whether a record was damaged.
    rotten: bool,
    store: Option<Store>,
    leases: BTreeMap<u8, Lease>,
    /// The steps that the attempt of each lease has asked for.
    visited: BTreeMap<u8, BTreeSet<u16>>,
    /// Steps that were left in progress, with the place in the history at which each began.
    late: BTreeMap<(u8, u16), (StepLease, usize)>,
    /// The attempts that batches left, and whose releases may not be on disk.
    unstarted: Model,
}

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

/// Returns a result that differs from the result of every other record.
fn result(key: u8, size: u16, nonce: usize) -> Vec<u8> {
    let mut result = format!("{key}/{nonce}/").into_bytes();
    let length = result.len().max(usize::from(size));
    result.resize(length, key ^ u8::try_from(nonce % 251).unwrap());
    result
}

impl World {
    /// Creates a store on `disk`, which may fail at planned steps. Returns an error if the store cannot be created.
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
            rotten: false,
            store: Some(store),
            leases: BTreeMap::new(),
            visited: BTreeMap::new(),
            late: BTreeMap::new(),
            unstarted: Model::new(),
        })
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Drops all leases, which leaves their keys in doubt.
    pub fn drop_leases(&mut self) {
        self.late.clear();
        self.leases.clear();
    }

    /// Simulates the end of the process: drops the leases, and the store without a close.
    pub fn die(&mut self) {
        self.late.clear();
        self.leases.clear();
        self.store = None;
        assert_eq!(
            self.disk.touched_unlocked(),
            0,
            "the file was read or written after its lock was released"
        );
    }

    /// Performs one act and records in the oracle what the store acknowledged.
    ///
    /// Returns an error if the act failed for a reason that the disk explains. Panics if the answer contradicts the
    /// oracle.
    pub fn perform(&mut self, act: Act) -> Result<(), Error> {
        let now_ms = self.time_ms;
        let mut next = self.oracle.now().clone();
        expire(&mut next, now_ms);
        let nonce = self.oracle.history.len();
        let store = self.store.as_ref().unwrap();
        let status = |model: &Model, key: u8| model.get(&key).map_or(Status::Absent, |known| known.status);
        if let Some(key) = act.key().filter(|key| next.get(key).is_some_and(|known| known.damaged)) {
            return self.perform_on_damaged(act, key, next);
        }
        let attempts =
            |model: &Model, key: u8| model.get(&key).map_or(vec![0], |known| known.attempts.clone());
        // The number of the next attempt. It is 1 if the store has dropped the record of a released key.
        let next_attempts = |model: &Model, key: u8| {
            let mut counts = attempts(model, key);
            if status(model, key) == Status::Absent {
                counts.push(0);
            }
            counts.iter().map(|count| count + 1).collect::<Vec<_>>()
        };
        let held = |leases: &BTreeMap<u8, Lease>, key: u8| leases.contains_key(&key);
        let mut durable = !self.buffered;
        self.oracle.partial.clear();
        // The last attempt at a job has ended, and nothing is in doubt.
        let stopped = |model: &Model, key: u8| {
            model.get(&key).is_some_and(|known| known.shown() == Status::Stopped)
                && !self.leases.contains_key(&key)
        };
        match act {
            Act::BeginJob(key, _)
            | Act::Step(key, _)
            | Act::LeaveStep(key, _)
            | Act::ReleaseStep(key, _)
            | Act::LateStep(key, _)
            | Act::GiveUp(key, _) => return self.perform_step(act, key, next),
            Act::Batch(..) | Act::AtomicBatch(..) => return self.perform_batch(act, &next),
            Act::Emit(..) | Act::EmitBuffered(..) => return self.perform_emit(act, next),
            Act::Publish(count) => return self.perform_publish(act, count, next),
            Act::Begin(key) => {
                let before = (status(&next, key), held(&self.leases, key));
                let expected = if stopped(&next, key) {
                    let attempts = next[&key].attempts.iter().map(|count| count + 1).collect();
                    Known { attempts, version: None, ..next[&key].clone() }
                } else {
                    Known::begun(next_attempts(&next, key))
                };
                let before = (if stopped(&next, key) { Status::Stopped } else { before.0 }, before.1);
                if matches!(before.0, Status::Absent | Status::Stopped) {
                    next.insert(key, expected);
                    self.oracle.in_flight = Some(next.clone());
                }
                let begun = store.operation(&name(key)).begin();
                match (begun, before) {
                    (Ok(Begin::Acquired(lease)), (Status::Absent | Status::Stopped, _)) => {
                        assert!(next[&key].attempts.contains(&lease.attempt()), "{act:?}: {lease:?}");
                        let known = next.get_mut(&key).unwrap();
                        (known.version, known.attempts) = (Some(lease.version()), vec![lease.attempt()]);
                        self.oracle.highest = self.checked_new(lease.version());
                        self.leases.insert(key, lease);
                        self.visited.remove(&key);
                    }
                    (Ok(Begin::InProgress { .. }), (Status::InDoubt, true)) => return Ok(()),
                    (Ok(Begin::InDoubt(doubt)), (Status::InDoubt, false)) => {
                        assert_eq!(Some(doubt.version()), next[&key].version);
                        return Ok(());
                    }
                    (Ok(Begin::Completed(done)), (Status::Completed, _)) => {
                        assert_eq!(done.result(), next[&key].result, "{act:?}: replayed a different result");
                        return Ok(());
                    }
                    (Err(Error::ResultExpired { .. }), (Status::Completed, _)) => {
                        assert!(next[&key].result.is_empty() && next[&key].result_expires_ms <= now_ms);
                        return Ok(());
                    }
                    (Ok(other), _) => panic!("{act:?}: {other:?} but the oracle has {before:?}"),
                    (Err(error), _) => return self.failed(act, error),
                }
            }
            Act::Complete(key, size) => {
                let Some(mut lease) = self.leases.remove(&key) else { return Ok(()) };
                let bytes = result(key, size, nonce);
                let is_refused = next[&key].has_open_step();
                if !is_refused {
                    let known = Known::completed(attempts(&next, key), bytes.clone(), now_ms);
                    next.insert(key, known);
                    self.oracle.in_flight = Some(next.clone());
                }
                match lease.complete(&bytes) {
                    Err(Error::HasSteps { .. }) if is_refused => return Ok(()),
                    Ok(version) => {
                        assert!(
                            !is_refused,
                            "{act:?}: completed over a step that is in progress or in doubt"
                        );
                        assert!(!self.replaced, "{act:?}: did not report that the path was replaced");
                        next.get_mut(&key).unwrap().version = Some(version);
                        self.oracle.highest = self.checked_new(version);
                    }
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Release(key) => {
                let Some(lease) = self.leases.remove(&key) else { return Ok(()) };
                let is_refused = next[&key].is_held();
                if !is_refused {
                    let known = Known::released(attempts(&next, key), now_ms);
                    next.insert(key, known);
                    self.oracle.in_flight = Some(next.clone());
                }
                match lease.release() {
                    Err(Error::HasSteps { .. }) if is_refused => return Ok(()),
                    Ok(()) if is_refused => panic!("{act:?}: released over a step that began"),
                    Ok(()) => assert!(!self.replaced, "{act:?}: did not report that the path was replaced"),
                    Err(Error::Replaced { .. }) if self.replaced => {}
                    Err(error) => return self.failed(act, error),
                }
            }
            Act::Abandon(key) => {
                // Every second attempt notes why, which must change nothing else.
                match self.leases.remove(&key) {
                    Some(lease) if nonce.is_multiple_of(2) => lease.leave_in_doubt("abandoned on purpose"),
                    lease => drop(lease),
                }
                return Ok(());
            }
            Act::Record(key, size) | Act::RecordBuffered(key, size) | Act::RecordFor(key, size, _) => {
                let before = status(&next, key);
                let bytes = result(key, size, nonce);
                if before == Status::Absent {
                    let mut expected = Known::completed(next_attempts(&next, key), bytes.clone(), now_ms);
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
                        self.oracle.highest = self.checked_new(version);
                    }
                    (Ok(Recorded::AlreadyDone(done)), Status::Completed) => {
                        assert_eq!(done.result(), next[&key].result, "{act:?}: replayed a different result");
                        return Ok(());
                    }
                    (Err(Error::InProgress { .. } | Error::InDoubt { .. }), Status::InDoubt) => return Ok(()),
                    (Err(Error::ResultExpired { .. }), Status::Completed) => {
                        assert!(next[&key].result_expires_ms <= now_ms);
                        return Ok(());
                    }
                    (Ok(other), _) => panic!("{act:?}: {other:?} but the oracle has {before:?}"),
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
                    (Ok(other), _) => panic!("{act:?}: {other:?} but the oracle has {before:?}"),
                    (Err(error), _) => return self.failed(act, error),
                }
            }
            Act::Resolve(key, outcome) => {
                if status(&next, key) != Status::InDoubt || held(&self.leases, key) || stopped(&next, key) {
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
                let expected = match outcome % 3 {
                    APPLIED => Known::completed(known, bytes.clone(), now_ms),
                    NOT_APPLIED => Known::released(known, now_ms),
                    _ => Known { attempts: vec![known[0] + 1], version: None, ..next[&key].clone() },
                };
                let is_refused = outcome % 3 == NOT_APPLIED && next[&key].is_held();
                if !is_refused {
                    next.insert(key, expected);
                    self.oracle.in_flight = Some(next.clone());
                }
                let version = match outcome % 3 {
                    APPLIED => doubt.complete(&bytes).map(Some),
                    NOT_APPLIED => doubt.release().map(|()| None),
                    _ => doubt.begin_again().map(|lease| {
                        let version = lease.version();
                        self.leases.insert(key, lease);
                        self.visited.remove(&key);
                        Some(version)
                    }),
                };
                match version {
                    Err(Error::HasSteps { .. }) if is_refused => return Ok(()),
                    Ok(_) if is_refused => panic!("{act:?}: released over a step that began"),
                    Ok(version) => {
                        next.get_mut(&key).unwrap().version = version;
                        self.oracle.highest =
                            version.map_or(self.oracle.highest, |version| self.checked_new(version));
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
                        status: if held(&self.leases, key) { Status::InProgress } else { known.shown() },
                        version: known.version.unwrap(),
                    },
                    None => Expected::Absent,
                };
                let bytes = result(key, size, nonce);
                let attempts =
                    if before == Status::Absent { next_attempts(&next, key) } else { attempts(&next, key) };
                let is_refused = next.get(&key).is_some_and(Known::has_open_step);
                if !is_refused {
                    next.insert(key, Known::completed(attempts, bytes.clone(), now_ms));
                    self.oracle.in_flight = Some(next.clone());
                }
                let to = Next::Completed { fingerprint: NONE, result: &bytes };
                match store.compare_and_set(&name(key), expected, to) {
                    Err(Error::HasSteps { .. }) if is_refused => return Ok(()),
                    Ok(CasOutcome::Done(version)) => {
                        assert!(
                            !is_refused,
                            "{act:?}: completed over a step that is in progress or in doubt"
                        );
                        next.get_mut(&key).unwrap().version = Some(version);
                        self.oracle.highest = self.checked_new(version);
                        if let Some(mut lease) = self.leases.remove(&key) {
                            match lease.complete(b"late") {
                                Err(Error::Fenced { .. } | Error::Io { .. }) => {}
                                other => panic!("{act:?}: the fenced lease was accepted: {other:?}"),
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
                    Ok(()) => {
                        assert!(
                            !self.replaced,
                            "{act:?}: the sync did not notice that the path was replaced"
                        );
                    }
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
            | Act::DropStore
            | Act::DropAndReopenBuffered
            | Act::DropAndReopenLarger
            | Act::ReopenWithClockSetBack(_)
            | Act::Reboot(_) => return self.open_again(act),
            Act::StepWallClock(by_ms) => {
                self.step_wall_clock(by_ms);
                return Ok(());
            }
            Act::Rot(key, field) => return self.rot(act, key, field, &next),
            Act::Advance(by_ms) => {
                self.clock.advance(Duration::from_millis(u64::from(by_ms)));
                self.time_ms += u64::from(by_ms);
                return Ok(());
            }
        }
        let ends_operation = matches!(act, Act::Complete(..) | Act::Release(_));
        assert!(
            !self.replaced || ends_operation,
            "{act:?}: succeeded although the path leads to another file"
        );
        self.acknowledge(next, durable);
        Ok(())
    }

    fn acknowledge(&mut self, next: Model, durable: bool) {
        self.oracle.in_flight = None;
        self.oracle.partial.clear();
        self.oracle.history.push(next);
        self.oracle.times_ms.push(self.time_ms);
        if durable {
            self.oracle.durable = self.oracle.history.len() - 1;
        }
    }

    /// Checks that `version` is above every version given out before, and returns it.
    fn checked_new(&self, version: Version) -> Version {
        assert!(version > self.oracle.highest, "{version} after {}", self.oracle.highest);
        version
    }

    /// Passes on an error that the disk explains and panics at any other.
    fn failed(&mut self, act: Act, error: Error) -> Result<(), Error> {
        match error {
            Error::Replaced { .. } if self.replaced => {
                self.oracle.in_flight = None;
                Ok(())
            }
            Error::Poisoned { .. } | Error::Io { .. } | Error::Full { .. } => Err(error),
            other => panic!("{act:?}: an error that the disk does not explain: {other:?}"),
        }
    }

    /// Moves the wall clock.
    fn step_wall_clock(&mut self, by_ms: i64) {
        self.clock.jump_wall(self.clock.now_ms().saturating_add_signed(by_ms));
        let (_, offset_ms) = self.offsets_ms[self.offsets_ms.len() - 1];
        self.offsets_ms.push((self.oracle.history.len(), offset_ms + by_ms));
    }

    /// Returns every offset of the wall clock from store time, in milliseconds, since the last durable entry of the history.
    pub fn offsets_since_durable(&self) -> impl Iterator<Item = i64> {
        let before = self.offsets_ms.iter().take_while(|(from, _)| *from <= self.oracle.durable).count();
        self.offsets_ms.iter().skip(before.saturating_sub(1)).map(|(_, offset_ms)| *offset_ms)
    }

    /// Returns the store, or `None` if it could not be opened again.
    pub fn open_store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether an attempt on the key has begun and not ended.
    pub fn has_begun(&self, key: u8) -> bool {
        self.oracle.now().get(&key).is_some_and(|known| known.status == Status::InDoubt)
    }

    /// Whether the last attempt at a job has ended, and the outcome of every step is known.
    pub fn is_stopped(&self, key: u8) -> bool {
        self.oracle.now().get(&key).is_some_and(|known| known.shown() == Status::Stopped)
    }

    /// Records in the oracle that a full disk refused the act, which therefore had no effect.
    pub fn note_refusal(&mut self) {
        self.oracle.in_flight = None;
    }

    /// Resets the oracle to entry `at` of the history, which recovery found. That entry is durable from then on.
    pub fn resume_at(&mut self, at: usize) {
        let last = self.oracle.history.len() - 1;
        let mut in_flight = self.oracle.in_flight.take().into_iter().chain(self.oracle.partial.drain(..));
        let found = if at > last { in_flight.nth(at - last - 1) } else { None };
        if let Some(found) = found {
            self.oracle.history.push(found);
            self.oracle.times_ms.push(self.time_ms);
        }
        let at = at.min(self.oracle.history.len() - 1);
        self.oracle.history.truncate(at + 1);
        self.oracle.times_ms.truncate(at + 1);
        self.oracle.durable = at;
    }

    /// Checks a store that was opened after a crash. Returns the entry of the history that matches it.
    pub fn check(&self, store: &Store) -> Result<usize, String> {
        let at = self.oracle.locate(store)?;
        unfinished::check(store)?;
        scanned::check(store)?;
        // A crash may lose records, but in the same boot it loses no store time.
        match store.stats().store_time_ms {
            time_ms if time_ms == self.time_ms => Ok(at),
            time_ms => Err(format!("store time is {time_ms} ms, expected {} ms", self.time_ms)),
        }
    }

    /// Checks that the open store shows what was acknowledged and nothing else.
    pub fn check_live(&self, store: &Store) -> Result<(), String> {
        self.oracle.check_live(store, self.time_ms)?;
        unfinished::check(store)?;
        scanned::check(store)
    }

    /// Checks that a store opened after a crash accepts a new record, with a new version.
    pub fn exercise(&self, store: &Store) -> Result<(), String> {
        let context = |error: Error| format!("the store does not accept a record: {error}");
        let Recorded::Done(version) = store.record("after the crash", NONE, b"works").map_err(context)?
        else {
            return Err("the probe was already there".into());
        };
        if version <= self.oracle.highest {
            return Err(format!("version {version} was given out after {}", self.oracle.highest));
        }
        if store.get("after the crash").map_err(context)?.result() != Some(b"works") {
            return Err("the probe is missing".into());
        }
        Ok(())
    }
}

/// Fills more than one segment, so that a buffered store grows beyond the bytes that the crash left at the end of the file.
pub fn grow(store: &Store) -> Result<(), String> {
    let context = |error: Error| format!("the store does not grow: {error}");
    let value = |number: u8| [number; 12_000];
    for number in 0..8 {
        store.record(&format!("growing-{number}"), NONE, &value(number)).map_err(context)?;
    }
    for number in 0..8 {
        if store.get(&format!("growing-{number}")).map_err(context)?.result() != Some(&value(number)[..]) {
            return Err(format!("record {number}, written while the store grew, is missing"));
        }
    }
    Ok(())
}

/// Plans a power loss at a step of the disk.
pub fn power_loss_at(disk: &SimulatedDisk, step: u64) {
    disk.fault_at(step, DiskFault::PowerLoss);
}
