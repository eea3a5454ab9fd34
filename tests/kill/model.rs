//! The model: which states each key of the file may be in after a round.

use std::collections::BTreeMap;

use oncekey::{Fingerprint, KeyState, Status, Store};

use crate::protocol::{Answer, Kept, State, all_keys, digest, kept};

/// A call, as read from the pipe. The lines of the pipe are numbered through all rounds, and their order is an order in
/// time: a call that was answered before another was announced happened before it.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub state: State,
    pub announced: u64,
    /// The line of the answer, or of the kill if there was no answer.
    pub ended: u64,
    pub answer: Option<Answer>,
}

/// A state that a key may be in: from a call that was answered, or from one that was not and may have taken effect or
/// not.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    pub state: State,
    pub version: Option<u64>,
    pub attempt: Option<u32>,
    pub ended: u64,
}

pub const NEVER_BEGUN: Candidate = Candidate { state: State::Absent, version: None, attempt: None, ended: 0 };

/// What the child wrote in one round.
#[derive(Default)]
pub struct Round {
    pub calls: BTreeMap<String, Vec<Call>>,
    pub answers: usize,
    pub opened: bool,
    pub retired: u64,
    /// Lines that are not of the protocol, such as the message of a panic.
    pub noise: String,
}

/// What the store must hold, as far as the children's messages say.
#[derive(Default)]
pub struct Model {
    /// For every key that was checked before, the states that it may be in.
    keys: BTreeMap<String, Vec<Candidate>>,
    pub highest_version: u64,
    pub lines: u64,
}

impl Model {
    /// Checks every key of an opened store against the round before.
    pub fn check(&mut self, store: &Store, mut round: Round) {
        for key in all_keys() {
            let calls = round.calls.remove(&key).unwrap_or_default();
            let before = self.keys.remove(&key).unwrap_or_else(|| vec![NEVER_BEGUN]);
            let found = store.get(&key).unwrap();
            check_replays(&key, &before, &calls);
            let may_be = survivors(&before, &calls);
            let explains =
                |candidate: &Candidate| fits(&key, candidate, &found, store.fingerprint(key.as_bytes()));
            let version = found.version().map(oncekey::Version::as_u64);
            let now: Vec<Candidate> = may_be
                .iter()
                .filter(|candidate| explains(candidate))
                .map(|candidate| Candidate { version: version.or(candidate.version), ..*candidate })
                .collect();
            assert!(!now.is_empty(), "{key} is {found:?}, but may be {may_be:?} after {calls:?}");
            self.highest_version = self.highest_version.max(version.unwrap_or(0));
            self.keys.insert(key, now);
        }
        assert!(round.calls.is_empty(), "calls on unknown keys: {:?}", round.calls.keys());
        // The index has one entry for a key, and none for a key that never began.
        assert!(store.stats().keys <= self.keys.len(), "{:?}", store.stats());
    }
}

/// Checks that every replayed result was recorded by some call with these bytes.
fn check_replays(key: &str, before: &[Candidate], calls: &[Call]) {
    for call in calls {
        let Some(Answer::Seen { version, digest: seen }) = call.answer else { continue };
        let is_it =
            |state: State| matches!(state, State::Completed(payload) if digest(&payload.bytes()) == seen);
        let known =
            before.iter().any(|candidate| candidate.version == Some(version) && is_it(candidate.state));
        let recorded = calls.iter().any(|other| match other.answer {
            Some(Answer::Changed { version: changed, .. }) => changed == Some(version) && is_it(other.state),
            Some(_) => false,
            None => is_it(other.state),
        });
        assert!(
            known || recorded,
            "{key}: {call:?} replayed a result that no call recorded, {before:?} {calls:?}"
        );
    }
}

/// The states that a key may be in after `calls`: those that no answered change has certainly replaced.
fn survivors(before: &[Candidate], calls: &[Call]) -> Vec<Candidate> {
    let changed = |call: &&Call| matches!(call.answer, Some(Answer::Changed { .. }));
    let last_announced = calls.iter().filter(changed).map(|call| call.announced).max().unwrap_or(0);
    let highest_version = calls.iter().filter_map(|call| match call.answer {
        Some(Answer::Changed { version, .. }) => version,
        // After a version was returned, no earlier one may be found.
        Some(Answer::Seen { version, .. }) => Some(version),
        _ => None,
    });
    let highest_version = highest_version.max().unwrap_or(0);
    let of_calls = calls.iter().filter_map(|call| {
        let Call { state, ended, answer, .. } = *call;
        match answer {
            Some(Answer::Changed { version, attempt }) => Some(Candidate { state, version, attempt, ended }),
            Some(_) => None,
            None => Some(Candidate { state, version: None, attempt: None, ended }),
        }
    });
    let not_replaced = |candidate: &Candidate| {
        candidate.ended >= last_announced
            && candidate.version.is_none_or(|version| version >= highest_version)
    };
    before.iter().copied().chain(of_calls).filter(not_replaced).collect()
}

/// Whether a key in the state of `candidate` can look like `found`.
fn fits(key: &str, candidate: &Candidate, found: &KeyState, fingerprint: Fingerprint) -> bool {
    let completed = matches!(candidate.state, State::Completed(_));
    // A brief key may have expired or not.
    if found.is_absent() {
        return candidate.state == State::Absent || completed && kept(key) == Kept::Briefly;
    }
    let state = match (candidate.state, found.result()) {
        (State::Absent, _) => false,
        // An opening ends all leases, so the key is in doubt.
        (State::Begun, result) => found.status() == Status::InDoubt && result.is_none(),
        (State::Completed(payload), Some(result)) => found.is_completed() && payload.bytes() == result,
        (State::Completed(_), None) => found.is_completed() && kept(key) == Kept::WithoutResult,
    };
    let version = found.version().map(oncekey::Version::as_u64);
    state
        && candidate.version.is_none_or(|wanted| version == Some(wanted))
        && candidate.attempt.is_none_or(|wanted| found.attempt() == wanted)
        && found.fingerprint() == fingerprint
}
