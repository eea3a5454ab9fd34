//! Finds the steps of unfinished operations, once the index is filled.
//!
//! Records of steps are read only if their operation is unfinished: a part of the hash of the operation's key, which the
//! footer states, selects them. A step belongs to an operation if the hash of the key matches and its version is greater
//! than the operation's origin. It is of an earlier operation of the same key otherwise, because each change of a step is
//! made while its operation is unfinished.

use std::collections::HashMap;

use super::listed::StepCandidates;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::record::Kind;
use crate::hash::{ByHash, KeyHasher};
use crate::index::Address;
use crate::log::reader::Reader;
use crate::planted::{Bug, planted};
use crate::record::RecordSize;
use crate::status::Version;
use crate::step_set::{FoundUnfinished, Step, StepState};

/// The last record of a step, as it was found.
struct FoundStep {
    parent: u128,
    hash: u128,
    step: Step,
    /// The record carries an unreadable one.
    is_carrier: bool,
}

impl FoundStep {
    /// Describes a step by the kind of its record. None if that is not a step's.
    fn new(
        (parent, hash): (u128, u128),
        (version, address): (Version, Address),
        size: &RecordSize,
        state: Option<StepState>,
    ) -> Option<FoundStep> {
        let step = Step::found(version, address, size, state?);
        Some(FoundStep { parent, hash, step, is_carrier: size.kind == Kind::StepUnreadable })
    }
}

/// A set of tags, as a bit for each. A log may have millions of steps, nearly all of operations that have ended.
struct TagSet(Vec<u64>);

impl TagSet {
    fn of(begun: &[FoundUnfinished]) -> TagSet {
        // Without an unfinished operation, no memory is needed.
        let mut words = vec![0; if begun.is_empty() { 0 } else { StepCandidates::TAGS / 64 }];
        for operation in begun {
            let tag = StepCandidates::tag(operation.hash);
            words[tag as usize / 64] |= 1 << (tag % 64);
        }
        TagSet(words)
    }

    fn contains(&self, tag: u32) -> bool {
        self.0.get(tag as usize / 64).is_some_and(|word| word >> (tag % 64) & 1 == 1)
    }
}

/// Reads the records of steps.
pub(super) struct StepFinder<'a> {
    pub(super) reader: &'a Reader,
    pub(super) hasher: &'a KeyHasher,
    /// Returns the entry of a record that cannot be read, from the footer of its segment.
    pub(super) listed: &'a dyn Fn(Address) -> Result<Option<FooterEntry>>,
}

/// The steps of unfinished operations, other than those that were added to their operations.
pub(super) struct FoundSteps {
    /// The addresses of those that carry an unreadable record.
    pub(super) carriers: Vec<Address>,
    /// The length of the records that are not the last one of a step, or are of an operation that has ended.
    pub(super) dead_bytes: u64,
}

impl StepFinder<'_> {
    /// Adds the steps among `candidates` to their operations in `begun`.
    pub(super) fn add_steps(
        &self,
        candidates: &StepCandidates,
        begun: &mut [FoundUnfinished],
    ) -> Result<FoundSteps> {
        let wanted = TagSet::of(begun);
        let origins: HashMap<u128, Version, ByHash> =
            begun.iter().map(|operation| (operation.hash, operation.origin)).collect();
        let mut of_parent: HashMap<u128, HashMap<u128, FoundStep, ByHash>, ByHash> = HashMap::default();
        let candidates_of_begun = candidates.iter().filter(|(tag, _)| wanted.contains(*tag));
        for (_, address) in candidates_of_begun {
            let Some(found) = self.step_at(address, &origins)? else { continue };
            // A later record of a step replaces an earlier one.
            let is_of_operation =
                |origin: &Version| found.step.version > *origin || planted(Bug::StepsOutliveOperation);
            if origins.get(&found.parent).is_some_and(is_of_operation) {
                of_parent.entry(found.parent).or_default().insert(found.hash, found);
            }
        }
        let (mut live_bytes, mut carriers) = (0, Vec::new());
        for operation in begun {
            let Some(steps) = of_parent.remove(&operation.hash) else { continue };
            for (hash, FoundStep { step, is_carrier, .. }) in steps {
                live_bytes += u64::from(step.length_bytes);
                operation.steps.push((hash, step));
                carriers.extend(is_carrier.then_some(step.address));
            }
        }
        Ok(FoundSteps { carriers, dead_bytes: candidates.record_bytes.saturating_sub(live_bytes) })
    }

    /// Reads the record of a step. None if it is not one.
    fn step_at(
        &self,
        address: Address,
        origins: &HashMap<u128, Version, ByHash>,
    ) -> Result<Option<FoundStep>> {
        // The name of an unreadable step is lost, but that of the input is known.
        let is_lost_input = |parent: u128, hash: u128| {
            origins.get(&parent).is_some_and(|origin| self.hasher.step(parent, origin.as_u64(), b"") == hash)
        };
        let read = self.reader.record(address, |place, record| {
            let (parent, hash) = (record.parent_hash(), record.key_hash(self.hasher));
            let is_input = match record.kind {
                Kind::StepUnreadable => is_lost_input(parent, hash),
                _ => record.key.name().is_empty(),
            };
            let kind = record.carried_kind().unwrap_or(record.kind);
            let state = StepState::of(kind, record.value.given_up, is_input);
            let size = RecordSize::of(record, place.length_bytes);
            FoundStep::new((parent, hash), (record.version, address), &size, state)
        });
        match read {
            // Only this step is unreadable, so its error is that of calls on the step and not of the opening.
            Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                let entry = (self.listed)(address)?.ok_or(error)?;
                let (parent, hash) = (entry.parent_hash(), entry.hash);
                let state = StepState::of(entry.kind, false, is_lost_input(parent, hash));
                let size = RecordSize::listed(&entry);
                Ok(FoundStep::new((parent, hash), (entry.version, address), &size, state))
            }
            read => read,
        }
    }
}
