//! The model: the states that each key of the file may have after a round.

use std::collections::BTreeMap;

use oncekey::{Fingerprint, KeyState, Status, Store};

use crate::protocol::{Answer, Kept, State, all_keys, digest, kept, note_of};

/// A call, as read from the pipe. Lines are numbered across all rounds. A call whose answer has a lower number than the
/// announcement of another call happened before that other call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub state: State,
    /// The number of the line that announced the call.
    pub announced: u64,
    /// The number of the line of the answer. Without an answer, the number of the last line before the kill.
    pub ended: u64,
    pub answer: Option<Answer>,
}

/// A state that a key may have. It comes from a call that was answered, or from one without an answer, which may or may not
/// have taken effect.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    pub state: State,
    pub version: Option<u64>,
    pub attempt: Option<u32>,
    /// As in [`Call`].
    pub ended: u64,
}

/// The state of a key that no call has changed.
pub const NEVER_BEGUN: Candidate = Candidate { state: State::Absent, version: None, attempt: None, ended: 0 };

/// An atomic batch that the child was killed in, on keys that only one thread changes.
#[derive(Debug)]
pub struct AtomicBatch {
    /// The key of each entry, the state in which the entry leaves it, and the highest version when it was announced.
    pub entries: Vec<(String, State, u64)>,
    /// Whether the child has reported that one of the entries took effect.
    pub has_changed: bool,
}

/// What the child wrote in one round.
#[derive(Default)]
pub struct Round {
    /// The calls of all threads, by key.
    pub calls: BTreeMap<String, Vec<Call>>,
    /// The atomic batches that were interrupted by the kill.
    pub interrupted: Vec<AtomicBatch>,
    /// The number of atomic batches that were announced.
    pub atomic_batches: usize,
    /// The number of answers.
    pub answers: usize,
    /// Whether the child had opened the store when it was killed.
    pub opened: bool,
    /// The number of segments that were retired.
    pub retired: u64,
    /// Lines that do not belong to the protocol, such as the message of a panic.
    pub noise: String,
}

/// What the store may contain, according to the messages of all children.
#[derive(Default)]
pub struct Model {
    /// The states that each key may have had at the last check.
    keys: BTreeMap<String, Vec<Candidate>>,
    pub highest_version: u64,
    /// The number of lines that were read.
    pub lines: u64,
}

impl Model {
    /// Checks every key of a store against the last check and the round since then.
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
            assert!(!now.is_empty(), "{key} is {found:?} after {calls:?}, which allow only {may_be:?}");
            self.highest_version = self.highest_version.max(version.unwrap_or(0));
            self.keys.insert(key, now);
        }
        for batch in &round.interrupted {
            check_atomic(store, batch);
        }
        check_unfinished(store);
        assert!(round.calls.is_empty(), "calls on unknown keys: {:?}", round.calls.keys());
        // The index has at most one entry for each key.
        assert!(store.stats().keys <= self.keys.len(), "{:?}", store.stats());
    }
}

/// Checks that the entries of an atomic batch took effect all or none.
fn check_atomic(store: &Store, batch: &AtomicBatch) {
    let took_effect = |(key, state, highest): &(String, State, u64)| {
        let found = store.get(key).unwrap();
        match state {
            State::Absent => found.is_absent(),
            // No other thread changes this key, so a higher version is that of the entry.
            _ => found.version().is_some_and(|version| version.as_u64() > *highest),
        }
    };
    let effective = batch.entries.iter().filter(|entry| took_effect(entry)).count();
    let allowed = if batch.has_changed { &[batch.entries.len()][..] } else { &[0, batch.entries.len()] };
    assert!(allowed.contains(&effective), "{effective} entries of an atomic batch took effect: {batch:?}");
}

/// Checks that the list of unfinished operations has exactly the keys in doubt, each once, the oldest first.
fn check_unfinished(store: &Store) {
    let listed: Vec<_> = store.unfinished().unwrap().map(Result::unwrap).collect();
    let mut expected = Vec::new();
    for key in all_keys() {
        let found = store.get(&key).unwrap();
        if found.status() == Status::InDoubt {
            expected.push((key, found.version().unwrap(), found.attempt()));
        }
    }
    let mut seen: Vec<_> = listed
        .iter()
        .map(|operation| {
            assert_eq!(operation.status(), Status::InDoubt, "the kill ended all leases: {operation:?}");
            let key = String::from_utf8(operation.key().name().to_vec()).unwrap();
            let is_its_own = operation.note().is_none_or(|note| note == note_of(&key));
            assert!(is_its_own, "the note of another key: {operation:?}");
            (key, operation.version(), operation.attempt())
        })
        .collect();
    assert!(listed.is_sorted_by_key(|operation| operation.since_ms()), "not the oldest first: {listed:?}");
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected, "what is listed and what is in doubt");
    let stats = store.stats();
    assert_eq!((stats.unfinished, stats.in_doubt), (seen.len(), seen.len()), "{stats:?}");
}

/// Checks that every replayed result was recorded by a call with the same bytes.
fn check_replays(key: &str, before: &[Candidate], calls: &[Call]) {
    for call in calls {
        let Some(Answer::Seen { version, digest: seen }) = call.answer else { continue };
        let is_seen =
            |state: State| matches!(state, State::Completed(payload) if digest(&payload.bytes()) == seen);
        let known =
            before.iter().any(|candidate| candidate.version == Some(version) && is_seen(candidate.state));
        let recorded = calls.iter().any(|other| match other.answer {
            Some(Answer::Changed { version: changed, .. }) => {
                changed == Some(version) && is_seen(other.state)
            }
            None | Some(Answer::Unknown) => is_seen(other.state),
            Some(_) => false,
        });
        assert!(
            known || recorded,
            "{key}: {call:?} replayed a result that no call recorded; before: {before:?}, calls: {calls:?}"
        );
    }
}

/// Returns the states that a key may have after `calls`: those that no answered change has certainly replaced.
fn survivors(before: &[Candidate], calls: &[Call]) -> Vec<Candidate> {
    let changed = |call: &&Call| matches!(call.answer, Some(Answer::Changed { .. }));
    let last_announced = calls.iter().filter(changed).map(|call| call.announced).max().unwrap_or(0);
    let highest_version = calls.iter().filter_map(|call| match call.answer {
        Some(Answer::Changed { version, .. }) => version,
        // Once a version was returned, the key cannot have an earlier one.
        Some(Answer::Seen { version, .. }) => Some(version),
        _ => None,
    });
    let highest_version = highest_version.max().unwrap_or(0);
    let of_calls = calls.iter().filter_map(|call| {
        let Call { state, ended, answer, .. } = *call;
        match answer {
            Some(Answer::Changed { version, attempt }) => Some(Candidate { state, version, attempt, ended }),
            None | Some(Answer::Unknown) => Some(Candidate { state, version: None, attempt: None, ended }),
            Some(_) => None,
        }
    });
    let not_replaced = |candidate: &Candidate| {
        candidate.ended >= last_announced
            && candidate.version.is_none_or(|version| version >= highest_version)
    };
    before.iter().copied().chain(of_calls).filter(not_replaced).collect()
}

/// Whether `found` is consistent with the state of `candidate`.
fn fits(key: &str, candidate: &Candidate, found: &KeyState, fingerprint: Fingerprint) -> bool {
    let completed = matches!(candidate.state, State::Completed(_));
    // A brief key may or may not have expired.
    if found.is_absent() {
        return candidate.state == State::Absent || completed && kept(key) == Kept::Brief;
    }
    let fits_state = match (candidate.state, found.result()) {
        (State::Absent, _) => false,
        // The kill ended all leases, so the key is in doubt.
        (State::Begun, result) => found.status() == Status::InDoubt && result.is_none(),
        (State::Completed(payload), Some(result)) => found.is_completed() && payload.bytes() == result,
        (State::Completed(_), None) => found.is_completed() && kept(key) == Kept::Faded,
    };
    let version = found.version().map(oncekey::Version::as_u64);
    fits_state
        && candidate.version.is_none_or(|expected| version == Some(expected))
        && candidate.attempt.is_none_or(|expected| found.attempt() == expected)
        && found.fingerprint() == fingerprint
}
