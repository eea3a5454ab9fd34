//! Steps on bytes, for this crate's own tests: a thin layer over the engine's calls, without types and policies.

use std::sync::Arc;

use crate::begin::Begin;
use crate::engine::{Engine, HashedKey, StepBegan, StepEnd, StepGrant, StepOf};
use crate::error::Result;
use crate::format::record::Value;
use crate::key::{Fingerprint, Key, OwnedKey};
use crate::lease::Lease;
use crate::status::{Status, Version};
use crate::store::Store;

/// The outcome of the begin of a step.
#[derive(Debug)]
pub enum BegunStep {
    /// An attempt at the step began.
    Acquired(StepLease),
    /// The step is in doubt.
    InDoubt(StepLease),
    /// The step is done, with this result.
    Completed(Vec<u8>),
}

/// The right to run one attempt at a step, or to resolve the doubt about one.
#[derive(Debug)]
pub struct StepLease {
    engine: Arc<Engine>,
    parent: OwnedKey,
    parent_hash: u128,
    /// The version of the attempt at the operation.
    attempt: Version,
    name: String,
    grant: StepGrant,
}

/// A step, as a listing shows it: its name, its status, and whether it was given up.
pub type ListedStep = (String, Status, bool);

/// Begins an operation with an input.
pub fn begin_with_input(store: &Store, key: &str, input: &[u8]) -> Result<Begin> {
    let (key, engine) = (Key::new(key), store.engine());
    let terms = &engine.settings().terms;
    let input = Some(Value::bytes(input));
    let began = engine.begin_with(key, Fingerprint::NONE.into(), terms, true, input)?;
    Ok(Begin::new(engine, key, terms, began))
}

/// Begins a step under the attempt of `lease`.
pub fn begin_step(lease: &Lease, name: &str) -> Result<BegunStep> {
    let engine = lease.engine();
    let parent = lease.hashed_key();
    let (attempt, terms) = (lease.version(), engine.settings().terms);
    let step = StepOf { parent, name: name.as_bytes() };
    let began = engine.begin_step(step, attempt, Fingerprint::NONE.into(), &terms, true)?;
    let held = |grant| StepLease {
        engine: Arc::clone(engine),
        parent: parent.key.to_owned(),
        parent_hash: parent.hash,
        attempt,
        name: name.to_owned(),
        grant,
    };
    Ok(match began {
        StepBegan::Acquired(grant) => BegunStep::Acquired(held(grant)),
        StepBegan::InDoubt(grant) => BegunStep::InDoubt(held(grant)),
        StepBegan::Completed(found) => BegunStep::Completed(found.result.unwrap_or_default()),
        // Never: the call takes doubts.
        StepBegan::LeftInDoubt { .. } => BegunStep::Completed(Vec::new()),
    })
}

/// Gives a step up under the attempt of `lease`. Returns false if it is not in doubt.
pub fn give_up(lease: &Lease, name: &str) -> Result<bool> {
    let step = StepOf { parent: lease.hashed_key(), name: name.as_bytes() };
    lease.engine().give_up_step(step, lease.version())
}

/// Returns the input of an unfinished operation.
pub fn input(store: &Store, key: &str) -> Result<Option<Vec<u8>>> {
    let parent = store.engine().hashed(Key::new(key))?;
    Ok(store.engine().input(parent)?.and_then(|found| found.result))
}

/// Lists the steps of an unfinished operation. A step that cannot be read is an error of its own.
pub fn steps(store: &Store, key: &str) -> Result<Vec<Result<ListedStep>>> {
    let parent = store.engine().hashed(Key::new(key))?;
    let listed = store.engine().list_steps(parent)?.into_iter();
    let shown = listed.map(|step| {
        step.map(|step| (String::from_utf8_lossy(&step.name).into_owned(), step.status, step.given_up))
    });
    Ok(shown.collect())
}

/// Returns the result of a completed step.
pub fn result_of(store: &Store, key: &str, name: &str) -> Result<Option<Vec<u8>>> {
    let parent = store.engine().hashed(Key::new(key))?;
    let (_, found) = store.engine().get_step(StepOf { parent, name: name.as_bytes() })?;
    Ok(found.and_then(|found| found.result))
}

impl StepLease {
    fn end(&mut self, end: StepEnd<'_>) -> Result<()> {
        let StepLease { engine, parent, parent_hash, name, grant, .. } = self;
        let parent = HashedKey { key: parent.as_key(), hash: *parent_hash };
        let terms = engine.settings().terms;
        engine.end_step(StepOf { parent, name: name.as_bytes() }, grant, end, &terms).map(drop)
    }

    /// Completes the step.
    pub fn complete(&mut self, result: &[u8]) -> Result<()> {
        self.end(StepEnd::Completed(Value::bytes(result)))
    }

    /// Releases the step.
    pub fn release(&mut self) -> Result<()> {
        self.end(StepEnd::Released)
    }

    /// Begins another attempt at the step, to resolve the doubt.
    pub fn begin_again(&mut self) -> Result<()> {
        let parent = HashedKey { key: self.parent.as_key(), hash: self.parent_hash };
        let step = StepOf { parent, name: self.name.as_bytes() };
        let terms = self.engine.settings().terms;
        self.grant = self.engine.begin_step_again(step, self.attempt, &self.grant, &terms)?;
        Ok(())
    }
}

impl Drop for StepLease {
    fn drop(&mut self) {
        self.engine.abandon_step(self.parent_hash, &self.grant);
    }
}
