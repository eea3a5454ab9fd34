//! The steps of one unfinished operation: where the last record of each is, and what it means.
//!
//! A step has no entry in the index. Its operation's entry in the table of unfinished operations holds it, and with that
//! entry all steps of the operation end at once, however many they are. A step takes about 50 bytes, and up to twice as
//! much while the set grows.

use std::collections::HashMap;

use crate::format::record::Kind;
use crate::hash::ByHash;
use crate::index::Address;
use crate::record::RecordSize;
use crate::status::Version;

/// The maximum number of steps of one operation.
pub(crate) const MAX_STEPS: usize = 1 << 16;

/// What the last record of a step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StepState {
    /// An attempt at the step began. It is in progress while its claim counts, and in doubt afterwards.
    Begun,
    /// Like `Begun`, but the doubt does not keep the operation from being completed.
    GivenUp,
    /// The step is done.
    Completed,
    /// The last attempt at the step certainly had no effect.
    Released,
    /// Not a step: the input of the operation.
    Input,
}

impl StepState {
    /// The state of a step whose last record is of this kind. None if a record of the kind is not a step's.
    pub(crate) fn of(kind: Kind, given_up: bool, is_input: bool) -> Option<StepState> {
        match kind {
            Kind::StepBegun if given_up => Some(StepState::GivenUp),
            // What an unreadable record says is unknown if its kind is. The step may have happened, so it is in doubt.
            Kind::StepBegun | Kind::StepUnreadable => Some(StepState::Begun),
            Kind::StepCompleted if is_input => Some(StepState::Input),
            Kind::StepCompleted => Some(StepState::Completed),
            Kind::StepReleased => Some(StepState::Released),
            _ => None,
        }
    }

    /// Whether the step began and has not ended.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, StepState::Begun | StepState::GivenUp)
    }
}

/// A step of an unfinished operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// The version of the last record.
    pub(crate) version: Version,
    /// The address of the last record.
    pub(crate) address: Address,
    /// The length of the last record, in bytes.
    pub(crate) length_bytes: u32,
    pub(crate) state: StepState,
    /// The generation of the operation in which a caller claimed the step: it runs the step, or resolves the doubt about
    /// it. 0 if no caller has. The claim counts only while the operation has the same generation.
    pub(crate) claim: u32,
    /// Whether the last attempt at the operation has asked for the step.
    pub(crate) is_visited: bool,
}

impl Step {
    /// Makes a step from its last record, as recovery finds it. No caller has claimed it.
    pub(crate) fn found(version: Version, address: Address, size: &RecordSize, state: StepState) -> Step {
        let length_bytes = u32::try_from(size.length_bytes).unwrap_or(u32::MAX);
        Step { version, address, length_bytes, state, claim: 0, is_visited: false }
    }
}

/// An unfinished operation, as recovery finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundUnfinished {
    /// The hash of the key.
    pub(crate) hash: u128,
    /// When the last attempt began, in store time.
    pub(crate) since_ms: u64,
    /// The version of the last attempt's begin.
    pub(crate) version: Version,
    /// The version of the first begin; 0 if the record cannot be read.
    pub(crate) origin: Version,
    /// The hash and the last record of each step, and of the input.
    pub(crate) steps: Vec<(u128, Step)>,
}

/// How many steps of an operation are in which state. The input is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StepCounts {
    /// Those that are done.
    pub(crate) completed: u32,
    /// Those that are in progress or in doubt, without those given up.
    pub(crate) open: u32,
    /// Those that were given up.
    pub(crate) given_up: u32,
    /// Those that were released.
    pub(crate) released: u32,
    /// Later attempts at the operation, and their steps, may be forgotten.
    pub(crate) may_be_forgotten: bool,
}

impl StepCounts {
    /// Whether a step began that was not released. Then the operation must not be released.
    pub(crate) fn hold(self) -> bool {
        self.completed + self.open + self.given_up > 0
    }

    /// Whether there are steps, and the outcome of each is known or was given up.
    pub(crate) fn are_settled(self) -> bool {
        !self.may_be_forgotten && self.open == 0 && self.completed + self.given_up + self.released > 0
    }

    /// The number of steps.
    pub(crate) fn total(self) -> usize {
        let total = self.completed + self.open + self.given_up + self.released;
        usize::try_from(total).unwrap_or(usize::MAX)
    }

    fn of(&mut self, state: StepState) -> Option<&mut u32> {
        match state {
            StepState::Begun => Some(&mut self.open),
            StepState::GivenUp => Some(&mut self.given_up),
            StepState::Completed => Some(&mut self.completed),
            StepState::Released => Some(&mut self.released),
            StepState::Input => None,
        }
    }
}

/// The steps of one operation.
/// Its maximum size is [`MAX_STEPS`] and the input.
#[derive(Debug, Default)]
pub(crate) struct StepSet {
    steps: HashMap<u128, Step, ByHash>,
    counts: StepCounts,
    /// The length of the last records of all steps, which are live.
    live_bytes: u64,
}

impl StepSet {
    pub(crate) fn get(&self, hash: u128) -> Option<&Step> {
        self.steps.get(&hash)
    }

    pub(crate) fn get_mut(&mut self, hash: u128) -> Option<&mut Step> {
        self.steps.get_mut(&hash)
    }

    pub(crate) fn counts(&self) -> StepCounts {
        self.counts
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// The addresses of the last records of the steps.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.steps.values().map(|step| step.address)
    }

    /// The memory that the steps take, in bytes.
    pub(crate) fn allocated_bytes(&self) -> usize {
        size_of::<StepSet>() + self.steps.capacity() * (size_of::<(u128, Step)>() + 1)
    }

    /// Sets the last record of a step. Returns the length of the record that it replaces, which is dead.
    pub(crate) fn put(&mut self, hash: u128, step: Step) -> u64 {
        let old = self.steps.insert(hash, step);
        if let Some(count) = self.counts.of(step.state) {
            *count += 1;
        }
        if let Some(count) = old.and_then(|old| self.counts.of(old.state)) {
            *count -= 1;
        }
        let dead_bytes = old.map_or(0, |old| u64::from(old.length_bytes));
        self.live_bytes = self.live_bytes + u64::from(step.length_bytes) - dead_bytes;
        dead_bytes
    }

    /// Removes the steps whose last record is not later than `origin`: they are those of an earlier operation of the key.
    pub(crate) fn remove_up_to(&mut self, origin: Version) {
        let StepSet { steps, counts, live_bytes } = self;
        steps.retain(|_, step| {
            if step.version > origin {
                return true;
            }
            if let Some(count) = counts.of(step.state) {
                *count -= 1;
            }
            *live_bytes -= u64::from(step.length_bytes);
            false
        });
    }

    /// Notes that another attempt at the operation began: it has asked for no step yet.
    pub(crate) fn begin_attempt(&mut self) {
        self.steps.values_mut().for_each(|step| step.is_visited = false);
    }

    /// The steps, in the order of the versions of their last records.
    pub(crate) fn in_order(&self) -> Vec<(u128, Step)> {
        let mut steps: Vec<(u128, Step)> = self.steps.iter().map(|(hash, step)| (*hash, *step)).collect();
        steps.sort_unstable_by_key(|(_, step)| step.version);
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(version: u64, state: StepState, length_bytes: u32) -> Step {
        let (version, address) = (Version::from_u64(version), Address::NOWHERE);
        Step { version, address, length_bytes, state, claim: 0, is_visited: false }
    }

    #[test]
    fn a_step_is_counted_once_whatever_its_last_record() {
        let mut set = StepSet::default();
        assert_eq!(set.put(1, step(1, StepState::Begun, 100)), 0);
        assert_eq!(set.put(2, step(2, StepState::Input, 1_000)), 0);
        assert_eq!(set.counts(), StepCounts { open: 1, ..StepCounts::default() });
        assert_eq!(set.put(1, step(3, StepState::Completed, 140)), 100);
        assert_eq!(set.counts(), StepCounts { completed: 1, ..StepCounts::default() });
        assert_eq!((set.len(), set.live_bytes()), (2, 1_140));
        assert_eq!(set.in_order().iter().map(|(hash, _)| *hash).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_holds_an_operation_and_what_stops_it() {
        let one = |state| {
            let mut set = StepSet::default();
            set.put(1, step(1, state, 8));
            (set.counts().hold(), set.counts().are_settled())
        };
        assert_eq!(one(StepState::Begun), (true, false));
        assert_eq!(one(StepState::GivenUp), (true, true));
        assert_eq!(one(StepState::Completed), (true, true));
        assert_eq!(one(StepState::Released), (false, true));
        assert_eq!(one(StepState::Input), (false, false), "an input is not a step");
        assert!(!StepCounts::default().are_settled(), "an operation without steps is in doubt");
    }
}
