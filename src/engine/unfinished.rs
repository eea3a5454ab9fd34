//! The table of unfinished operations: those that began and have not ended, whether they are in progress or in doubt.
//!
//! An operation is in the table while the index points to a record of an attempt that began. The table does not hold the
//! address of that record, which is the index's, so reclaiming can move it without changing the table, and a listing reads
//! each record that it returns. It knows the record by the version.
//!
//! The steps of an operation are in the table and not in the index, with the addresses of their records. So a step takes
//! no memory once its operation has ended, all steps end with one change, and a lookup of a key never meets a step.
//!
//! The table is filled by recovery, and changed only under the key's flight (the per-key lock), except that a claim on a
//! step ends without it. It takes 80 bytes an operation, and up to twice as much while it grows.

use std::collections::HashMap;

use crate::hash::ByHash;
use crate::index::Address;
use crate::planted::{Bug, planted};
use crate::status::Version;
use crate::step_set::{FoundUnfinished, Step, StepCounts, StepSet};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// An operation in the table.
#[derive(Debug)]
struct Operation {
    /// When the last attempt began, in store time.
    since_ms: u64,
    /// The version of the last attempt's begin.
    version: Version,
    /// The version of the first begin.
    origin: Version,
    /// Counts the begins in this session, from 1. Claims on steps count only in the generation in which they were made.
    generation: u32,
    /// Boxed, because most operations have no steps.
    steps: Option<Box<StepSet>>,
}

/// An unfinished operation in a list of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListedOperation {
    /// When the last attempt began, in store time.
    since_ms: u64,
    /// The version of the last attempt's begin.
    version: Version,
    /// The hash of the key. Two numbers, because one of 128 bits would make each operation a half larger.
    hash: [u64; 2],
}

impl ListedOperation {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the hash")]
    fn new(hash: u128, operation: &Operation) -> ListedOperation {
        let Operation { since_ms, version, .. } = *operation;
        ListedOperation { since_ms, version, hash: [(hash >> 64) as u64, hash as u64] }
    }

    pub(crate) fn hash(&self) -> u128 {
        u128::from(self.hash[0]) << 64 | u128::from(self.hash[1])
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }
}

impl Operation {
    /// How many of the steps are in which state.
    fn step_counts(&self) -> StepCounts {
        self.steps.as_ref().map_or(StepCounts::default(), |steps| steps.counts())
    }
}

/// The operations of one shard, by the hash of the key.
type Shard = HashMap<u128, Operation, ByHash>;

/// What the table knows of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OperationState {
    /// The version of the last attempt's begin.
    pub(super) version: Version,
    /// The version of the first begin.
    pub(super) origin: Version,
    pub(super) generation: u32,
    pub(super) counts: StepCounts,
    /// The number of steps, the input included.
    pub(super) step_count: usize,
}

/// When an attempt began, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BegunAttempt {
    pub(super) since_ms: u64,
    pub(super) version: Version,
    /// The version of the operation's first begin.
    pub(super) origin: Version,
}

const SHARDS: usize = 64;

/// A shard with fewer operations than this never gives memory back.
const MIN_SHRUNK: usize = 64;

/// The unfinished operations of one store.
#[derive(Debug)]
pub(super) struct UnfinishedTable {
    shards: Box<[Mutex<Shard>]>,
    /// The number of operations. Kept as an atomic, so that it can be read in a forked child.
    count: AtomicUsize,
    /// The number of steps of all operations, their inputs included.
    step_count: AtomicUsize,
}

impl UnfinishedTable {
    /// Creates the table from what recovery found.
    pub(super) fn new(begun: Vec<FoundUnfinished>) -> UnfinishedTable {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let table = UnfinishedTable { shards, count: AtomicUsize::new(0), step_count: AtomicUsize::new(0) };
        for FoundUnfinished { hash, since_ms, version, origin, steps } in begun {
            table.insert(hash, BegunAttempt { since_ms, version, origin });
            for (step_hash, step) in steps {
                table.put_step(hash, step_hash, step);
            }
        }
        table
    }

    fn shard(&self, hash: u128) -> &Mutex<Shard> {
        // These bits select neither a shard of the index or of the flights nor a bucket of the map.
        let at = usize::try_from(hash >> 80 & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[at]
    }

    /// Notes that an attempt began. It replaces the operation's earlier attempt and keeps its steps. Returns the steps
    /// that end, because they were those of another operation of the key.
    pub(super) fn insert(&self, hash: u128, attempt: BegunAttempt) -> Option<Box<StepSet>> {
        let BegunAttempt { since_ms, version, origin } = attempt;
        let mut shard = self.shard(hash).lock();
        let Some(operation) = shard.get_mut(&hash) else {
            shard.insert(hash, Operation { since_ms, version, origin, generation: 1, steps: None });
            self.count.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        // The first begin has its own version as its origin. So this one is not of another operation of the key.
        if version != origin {
            self.learn_origin(operation, origin);
        }
        let ended = if operation.origin == origin { None } else { operation.steps.take() };
        (operation.since_ms, operation.version, operation.origin) = (since_ms, version, origin);
        // Claims of the earlier attempt on steps no longer count.
        if !planted(Bug::StepClaimsOutliveTakeover) {
            operation.generation = operation.generation.wrapping_add(1).max(1);
        }
        if let Some(steps) = &mut operation.steps {
            steps.begin_attempt();
        }
        self.note_ended(ended)
    }

    /// Notes that an operation ended, and its steps with it. Returns them.
    pub(super) fn remove(&self, hash: u128) -> Option<Box<StepSet>> {
        let mut shard = self.shard(hash).lock();
        let removed = shard.remove(&hash);
        if removed.is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        // A shard keeps at most four times the memory that it needs.
        if shard.capacity() > MIN_SHRUNK && shard.len() < shard.capacity() / 4 {
            let len = shard.len();
            shard.shrink_to(2 * len);
        }
        drop(shard);
        self.note_ended(removed.and_then(|operation| operation.steps))
    }

    /// Notes what the record of an operation's last attempt says, if it could not be read when the store was opened, and counts
    /// the steps of the operation. Until then the steps of all operations of the key that are still in the log are taken for
    /// its own.
    pub(super) fn learn(&self, hash: u128, attempt: BegunAttempt) -> StepCounts {
        let mut shard = self.shard(hash).lock();
        let Some(operation) = shard.get_mut(&hash) else { return StepCounts::default() };
        if operation.origin.as_u64() == 0 {
            (operation.since_ms, operation.version) = (attempt.since_ms, attempt.version);
            self.learn_origin(operation, attempt.origin);
        }
        operation.step_counts()
    }

    fn learn_origin(&self, operation: &mut Operation, origin: Version) {
        if operation.origin.as_u64() > 0 {
            return;
        }
        operation.origin = origin;
        if let Some(steps) = &mut operation.steps {
            let before = steps.len();
            steps.remove_up_to(origin);
            self.step_count.fetch_sub(before - steps.len(), Ordering::SeqCst);
        }
    }

    fn note_ended(&self, steps: Option<Box<StepSet>>) -> Option<Box<StepSet>> {
        let steps = steps?;
        self.step_count.fetch_sub(steps.len(), Ordering::SeqCst);
        Some(steps)
    }

    /// What the table knows of the operation of a key. None if it is not unfinished.
    pub(super) fn get(&self, hash: u128) -> Option<OperationState> {
        let shard = self.shard(hash).lock();
        let operation = shard.get(&hash)?;
        let Operation { version, origin, generation, ref steps, .. } = *operation;
        let counts = operation.step_counts();
        let step_count = steps.as_ref().map_or(0, |steps| steps.len());
        Some(OperationState { version, origin, generation, counts, step_count })
    }

    /// How many steps of the operation are in which state.
    pub(super) fn step_counts(&self, hash: u128) -> StepCounts {
        self.get(hash).map_or(StepCounts::default(), |operation| operation.counts)
    }

    /// Calls `with` with the steps of an operation. None if it has none.
    fn with_steps<R>(&self, hash: u128, with: impl FnOnce(&mut StepSet) -> Option<R>) -> Option<R> {
        let mut shard = self.shard(hash).lock();
        with(shard.get_mut(&hash)?.steps.as_mut()?)
    }

    /// The last record of a step of the operation whose key has the hash `parent`.
    pub(super) fn step(&self, parent: u128, hash: u128) -> Option<Step> {
        self.with_steps(parent, |steps| steps.get(hash).copied())
    }

    /// Whether the last record of a step is at `address`.
    pub(super) fn holds_step(&self, parent: u128, hash: u128, address: Address) -> bool {
        self.step(parent, hash).is_some_and(|step| step.address == address)
    }

    /// All steps of an operation, and its input, in the order of the versions of their last records.
    pub(super) fn steps(&self, parent: u128) -> Vec<(u128, Step)> {
        self.with_steps(parent, |steps| Some(steps.in_order())).unwrap_or_default()
    }

    /// Sets the last record of a step. Returns the length of the record that is dead now: the one that it replaces, or the
    /// new one if the operation has ended.
    pub(super) fn put_step(&self, parent: u128, hash: u128, step: Step) -> u64 {
        let mut shard = self.shard(parent).lock();
        let Some(operation) = shard.get_mut(&parent) else { return u64::from(step.length_bytes) };
        let steps = operation.steps.get_or_insert_default();
        let before = steps.len();
        let dead_bytes = steps.put(hash, step);
        self.step_count.fetch_add(steps.len() - before, Ordering::SeqCst);
        dead_bytes
    }

    /// Changes the step if its last record has this version.
    pub(super) fn change_step(&self, parent: u128, hash: u128, change: impl FnOnce(&mut Step)) {
        self.with_steps(parent, |steps| steps.get_mut(hash).map(change));
    }

    /// Claims a step in the present generation of its operation, and notes that the attempt has asked for it.
    pub(super) fn claim_step(&self, parent: u128, hash: u128) {
        let mut shard = self.shard(parent).lock();
        let Some(operation) = shard.get_mut(&parent) else { return };
        let generation = operation.generation;
        if let Some(step) = operation.steps.as_mut().and_then(|steps| steps.get_mut(hash)) {
            (step.claim, step.is_visited) = (generation, true);
        }
    }

    /// Ends the claim on the attempt of `version` at a step, which is in doubt from then on. Changes memory only and cannot
    /// fail, because a drop calls it.
    pub(super) fn end_step_claim(&self, parent: u128, hash: u128, (version, claim): (Version, u32)) {
        self.change_step(parent, hash, |step| {
            if step.version == version && step.claim == claim {
                step.claim = 0;
            }
        });
    }

    /// The hash of the key and the version of the last attempt of each operation whose steps leave nothing in doubt.
    pub(super) fn settled(&self) -> Vec<(u128, Version)> {
        let mut settled = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let is_settled = |operation: &Operation| {
                operation.steps.as_ref().is_some_and(|steps| steps.counts().are_settled())
            };
            let of_shard = shard.iter().filter(|(_, operation)| is_settled(operation));
            settled.extend(of_shard.map(|(hash, operation)| (*hash, operation.version)));
        }
        settled
    }

    /// The number of operations. Takes no lock.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// The number of steps of all operations, their inputs included. Takes no lock.
    pub(super) fn step_count(&self) -> usize {
        self.step_count.load(Ordering::SeqCst)
    }

    /// The memory that the table takes, in bytes.
    pub(super) fn allocated_bytes(&self) -> usize {
        let of_shard = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            let steps = shard.values().filter_map(|operation| operation.steps.as_ref());
            shard.capacity() * (size_of::<(u128, Operation)>() + 1)
                + steps.map(|steps| steps.allocated_bytes()).sum::<usize>()
        };
        self.shards.iter().map(of_shard).sum()
    }

    /// When the oldest of the last attempts began. None if there is none.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let oldest = |shard: &Mutex<Shard>| shard.lock().values().map(|operation| operation.since_ms).min();
        self.shards.iter().filter_map(oldest).min()
    }

    /// All operations, oldest first. Those that began at the same time are in the order of their versions, which is mostly
    /// that of their records in the log.
    pub(super) fn oldest_first(&self) -> Vec<ListedOperation> {
        let mut listed = Vec::with_capacity(self.count());
        for shard in &self.shards {
            let shard = shard.lock();
            listed.extend(shard.iter().map(|(hash, operation)| ListedOperation::new(*hash, operation)));
        }
        listed.sort_unstable_by_key(|operation| (operation.since_ms, operation.version));
        listed
    }

    /// The number of operations for which memory is allocated.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(since_ms: u64, version: u64) -> BegunAttempt {
        BegunAttempt { since_ms, version: Version::from_u64(version), origin: Version::from_u64(1) }
    }

    fn hashes(table: &UnfinishedTable) -> Vec<u128> {
        table.oldest_first().iter().map(ListedOperation::hash).collect()
    }

    fn found(hash: u128, since_ms: u64) -> FoundUnfinished {
        let version = Version::from_u64(1);
        FoundUnfinished { hash, since_ms, version, origin: version, steps: Vec::new() }
    }

    /// A hash whose bits differ in every part.
    fn hash(number: u64) -> u128 {
        u128::from(number) << 80 | u128::from(number)
    }

    #[test]
    fn an_operation_in_a_list_takes_32_bytes() {
        assert_eq!(size_of::<ListedOperation>(), 32);
    }

    #[test]
    fn operations_are_listed_by_age_and_counted_once() {
        let table = UnfinishedTable::new(vec![found(hash(1), 30), found(hash(2), 10)]);
        table.insert(hash(3), begun(20, 2));
        assert_eq!(hashes(&table), [hash(2), hash(3), hash(1)]);
        assert_eq!((table.count(), table.oldest_ms()), (3, Some(10)));
        table.insert(hash(2), begun(40, 4));
        assert_eq!(hashes(&table), [hash(3), hash(1), hash(2)], "a later attempt began");
        assert_eq!(table.oldest_first()[2].version(), Version::from_u64(4));
        table.insert(hash(4), begun(30, 6));
        table.insert(hash(5), begun(30, 5));
        assert_eq!(hashes(&table), [hash(3), hash(1), hash(5), hash(4), hash(2)], "the version decides");
        table.remove(hash(4));
        table.remove(hash(5));
        table.remove(hash(3));
        table.remove(hash(3));
        assert_eq!((table.count(), table.oldest_ms()), (2, Some(30)));
        table.remove(hash(1));
        table.remove(hash(2));
        assert_eq!((table.count(), table.oldest_ms(), table.oldest_first().len()), (0, None, 0));
    }

    #[test]
    fn the_memory_of_ended_operations_is_given_back() {
        let table = UnfinishedTable::new((0..100_000).map(|number| found(hash(number), 1)).collect());
        assert!(table.capacity() >= 100_000);
        (0..100_000).for_each(|number| drop(table.remove(hash(number))));
        assert!(table.capacity() <= 2 * SHARDS * MIN_SHRUNK, "{}", table.capacity());
    }

    #[test]
    fn a_shard_keeps_what_it_needs_and_at_most_four_times_as_much() {
        // All in one shard: these bits do not select it.
        let table = UnfinishedTable::new((0..10_000).map(|number| found(number, 1)).collect());
        let mut allocated = table.capacity();
        let mut shrunk = 0;
        for (left, number) in (0..10_000).rev().zip(0..10_000_u128) {
            table.remove(number);
            let capacity = table.capacity();
            assert!(capacity <= MIN_SHRUNK.max(4 * left + 4), "{capacity} for {left}");
            // The map itself gives up single places when an operation is removed.
            if capacity < allocated - allocated / 4 {
                assert!(left <= allocated / 4 && capacity >= 2 * left, "{allocated} to {capacity} at {left}");
                shrunk += 1;
            }
            allocated = capacity;
        }
        // Shrinking to twice of what is left keeps the number of copies small.
        assert!((1..16).contains(&shrunk), "{shrunk}");
        let table = UnfinishedTable::new((0..6_400).map(|number| found(number << 80, 1)).collect());
        let shards = table.shards.iter().map(|shard| shard.lock().len());
        assert!(shards.into_iter().all(|len| len == 100), "the operations are not spread over the shards");
    }
}
