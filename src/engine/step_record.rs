//! Makes the records of steps, and the changes that write them.

use super::records::Records;
use super::write::{Change, Effect, EffectKind, StepChange};
use crate::flights::FlightGuard;
use crate::format::record::{Kind, Record, Value, halves};
use crate::key::{Fingerprint, Key};
use crate::status::Version;
use crate::step_set::StepState;

/// A record of a step that a call has decided to write. Its version is set when it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepRecord<'a> {
    pub(super) kind: Kind,
    /// The hash of the operation's key.
    pub(super) parent: u128,
    /// The version of the operation's first begin.
    pub(super) origin: Version,
    /// The name of the step; empty for the input.
    pub(super) name: &'a [u8],
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
    pub(super) time_ms: u64,
    pub(super) value: Value<'a>,
    /// The generation of the operation in which the step is claimed from then on; 0 if it is not.
    pub(super) claim: u32,
    pub(super) is_visited: bool,
}

impl<'a> StepRecord<'a> {
    /// The record of an operation's input.
    pub(super) fn input(parent: u128, origin: Version, input: Value<'a>, time_ms: u64) -> StepRecord<'a> {
        StepRecord {
            kind: Kind::StepCompleted,
            parent,
            origin,
            name: b"",
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms,
            value: input,
            claim: 0,
            is_visited: false,
        }
    }

    /// The change that writes the record with `version`. `flight` is that of the operation's key.
    pub(super) fn change(
        &self,
        records: &Records,
        version: Version,
        flight: &'a FlightGuard<'a>,
    ) -> Change<'a> {
        let (key_expires_ms, result_expires_ms) = halves(self.parent);
        let record = Record {
            kind: self.kind,
            key: Key::new(self.name),
            version,
            origin: self.origin,
            fingerprint: self.fingerprint,
            attempt: self.attempt,
            time_ms: self.time_ms,
            key_expires_ms,
            result_expires_ms,
            value: self.value,
        };
        let hash = records.log().hasher().step(self.parent, self.origin.as_u64(), self.name);
        let state = StepState::of(self.kind, self.value.given_up, self.name.is_empty());
        let state = state.unwrap_or_else(|| unreachable!("the kinds of steps have states"));
        let step = StepChange { version, state, claim: self.claim, is_visited: self.is_visited };
        let record = records.log().encode(&record, hash);
        let effect = Effect {
            hash,
            size: record.size,
            time_ms: self.time_ms,
            replaced: None,
            kind: EffectKind::StepChanged { parent: self.parent, step },
        };
        Change { record, effect, flight }
    }
}
