//! Commits a batch with an entry of every kind, and compares its answers with the oracle.

use oncekey::{Answer, Error, Status};

use super::act::Act;
use super::oracle::{Known, Model};
use super::{KEYS, World, name, result};

/// The number of keys that the entries of a batch are spread over, not including the last entry.
const SPREAD: u8 = 5;
/// The size of the result of the second entry for the first key.
const SECOND_BYTES: u16 = 30;

/// An entry, with its key and the result that it would record.
#[derive(Debug, Clone)]
struct Planned {
    key: u8,
    what: What,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Begin,
    Record,
    Complete,
    Release,
}

impl World {
    /// Chooses an entry for each of the keys from `first` on, by the states of the keys, then a second one for the first key, and
    /// last a begin whose lease will not be taken. Leaves out keys whose record is damaged.
    fn plan_batch(&self, first: u8, size: u16, next: &Model) -> Vec<Planned> {
        let nonce = self.oracle.history.len();
        let mut entries: Vec<Planned> = Vec::new();
        for number in 0..SPREAD {
            let key = (first + number) % KEYS;
            let is_absent = next.get(&key).is_none_or(|known| known.status == Status::Absent);
            let is_doubt = next.get(&key).is_some_and(|known| known.status == Status::InDoubt);
            let what = match self.leases.contains_key(&key) {
                true if (usize::from(key) + nonce).is_multiple_of(3) => What::Release,
                true => What::Complete,
                false if is_doubt || is_absent && number % 2 == 1 => What::Begin,
                false => What::Record,
            };
            entries.push(Planned { key, what, bytes: result(key, size, nonce) });
        }
        entries.push(Planned { key: first, what: What::Record, bytes: result(first, SECOND_BYTES, nonce) });
        entries.push(Planned { key: (first + SPREAD) % KEYS, what: What::Begin, bytes: Vec::new() });
        // The calls on jobs are acts of their own.
        let is_plain = |known: &Known| !known.damaged && known.steps.is_empty() && known.input.is_none();
        entries.retain(|entry| next.get(&entry.key).is_none_or(is_plain));
        entries
    }

    /// Applies an entry to the model, if it changes the key. `held` is the keys with a lease.
    fn apply_entry(model: &mut Model, entry: &Planned, now_ms: u64) {
        let known = model.get(&entry.key);
        let is_absent = known.is_none_or(|known| known.status == Status::Absent);
        let attempts = known.map_or(vec![0], |known| known.attempts.clone());
        let mut next_attempts: Vec<u32> = attempts.iter().map(|count| count + 1).collect();
        next_attempts.push(1);
        let changed = match entry.what {
            What::Begin if is_absent => Known::begun(next_attempts),
            What::Record if is_absent => Known::completed(next_attempts, entry.bytes.clone(), now_ms),
            What::Complete => Known::completed(attempts, entry.bytes.clone(), now_ms),
            What::Release => Known::released(attempts, now_ms),
            What::Begin | What::Record => return,
        };
        model.insert(entry.key, changed);
    }

    pub fn perform_batch(&mut self, act: Act, now: &Model) -> Result<(), Error> {
        let (first, size, is_atomic) = match act {
            Act::Batch(key, size) => (key % KEYS, size, false),
            Act::AtomicBatch(key, size) => (key % KEYS, size, true),
            _ => return Ok(()),
        };
        if self.replaced {
            return Ok(());
        }
        let now_ms = self.time_ms;
        let planned = self.plan_batch(first, size, now);
        let store = self.store.as_ref().unwrap();
        let mut batch = if is_atomic { store.batch().atomic() } else { store.batch() };
        let mut leases = std::mem::take(&mut self.leases);
        let mut entries: Vec<Planned> = Vec::new();
        let mut free = leases.iter_mut().collect::<std::collections::BTreeMap<_, _>>();
        for entry in planned {
            let operation = store.operation(name(entry.key));
            let added = match entry.what {
                What::Begin => batch.begin(operation.max_result(12_000)),
                What::Record => batch.record(operation, &entry.bytes),
                What::Complete => batch.complete(free.remove(&entry.key).unwrap(), &entry.bytes),
                What::Release => batch.release(free.remove(&entry.key).unwrap()),
            };
            match added {
                Ok(()) => entries.push(entry),
                Err(Error::Option { option: "atomic", .. }) if is_atomic => {}
                Err(error) => panic!("{act:?}: {error}"),
            }
        }
        drop(free);
        // A crash may leave a part of the batch, unless it is atomic.
        let mut model = now.clone();
        let unstarted = std::mem::take(&mut self.unstarted);
        let mut unwritten = unstarted.clone();
        unwritten.retain(|key, _| entries.iter().any(|entry| entry.key == *key));
        for entry in &entries {
            Self::apply_entry(&mut model, entry, now_ms);
            if !is_atomic {
                self.oracle.partial.push(model.clone());
            }
            // The release of an attempt that a batch left is not written while this batch holds the flight of its key. If the
            // entry for the key is lost, the attempt is in doubt.
            unwritten.retain(|key, _| *key != entry.key);
            if !is_atomic && !unwritten.is_empty() {
                let mut model = model.clone();
                model.extend(unwritten.iter().map(|(key, known)| (*key, known.clone())));
                self.oracle.partial.push(model);
            }
        }
        self.oracle.in_flight = Some(model);
        let begun_before = self.store().stats().begun;
        let committed = batch.commit();
        let mut answers = match committed {
            Ok(answers) => answers,
            Err(error) => {
                assert_eq!(batch.len(), entries.len(), "{act:?}: a failed batch lost entries");
                drop(batch);
                let lost = leases.values().filter(|lease| !lease.is_current()).count();
                assert_eq!(lost, 0, "{act:?}: a failed batch ended leases");
                self.leases = leases;
                return self.failed(act, error);
            }
        };
        assert_eq!(answers.len(), entries.len(), "{act:?}");
        // It is missing if the key is one that batches leave out.
        let is_last = |entry: &mut Planned| entry.what == What::Begin && entry.key == (first + SPREAD) % KEYS;
        let last = entries.pop_if(is_last);
        let mut next = now.clone();
        let mut new_leases = Vec::new();
        let mut ended = Vec::new();
        let mut is_refused = false;
        let mut failed = None;
        for (number, (entry, answer)) in entries.iter().zip(answers.by_ref().take(entries.len())).enumerate()
        {
            let Planned { key, what, .. } = *entry;
            let before = next.get(&key).map_or(Status::Absent, |known| known.status);
            let context = format!("{act:?}: entry {number} on {before:?}, {entry:?}: {answer:?}");
            let version = match answer {
                Err(Error::BatchRefused { .. }) if is_atomic => {
                    is_refused = true;
                    continue;
                }
                Err(Error::Full { .. }) if matches!(what, What::Begin | What::Record) => continue,
                Err(Error::ResultExpired { .. }) => {
                    assert!(
                        before == Status::Completed && next[&key].result_expires_ms <= now_ms,
                        "{context}"
                    );
                    continue;
                }
                Ok(Answer::AlreadyDone(done)) => {
                    let expected = &next[&key].result;
                    assert!(before == Status::Completed && done.result() == expected, "{context}");
                    continue;
                }
                Ok(Answer::InDoubt(doubt)) => {
                    assert!(before == Status::InDoubt && what == What::Begin, "{context}");
                    assert!(next[&key].version.is_none_or(|version| version == doubt.version()), "{context}");
                    continue;
                }
                Err(Error::InDoubt { .. } | Error::InProgress { .. }) => {
                    assert!(before == Status::InDoubt && what == What::Record, "{context}");
                    continue;
                }
                Ok(Answer::Acquired(lease)) => {
                    assert!(before == Status::Absent && what == What::Begin, "{context}");
                    assert_eq!(lease.key(), oncekey::Key::new(&name(key)), "{act:?}: answered out of order");
                    Self::apply_entry(&mut next, entry, now_ms);
                    let known = next.get_mut(&key).unwrap();
                    assert!(known.attempts.contains(&lease.attempt()), "{context}");
                    known.attempts = vec![lease.attempt()];
                    let version = lease.version();
                    new_leases.push((key, lease));
                    Some(version)
                }
                Ok(Answer::Done(version)) => {
                    let fits = what == What::Complete || what == What::Record && before == Status::Absent;
                    assert!(fits, "{context}");
                    Self::apply_entry(&mut next, entry, now_ms);
                    Some(version)
                }
                Ok(Answer::Released) => {
                    assert_eq!(what, What::Release, "{context}");
                    Self::apply_entry(&mut next, entry, now_ms);
                    None
                }
                // The key's record cannot be read. That stops no other entry.
                Err(error @ Error::Io { .. }) => {
                    failed = Some(error);
                    continue;
                }
                Ok(_) | Err(_) => panic!("{context}"),
            };
            if matches!(what, What::Complete | What::Release) {
                ended.push(key);
            }
            next.get_mut(&key).unwrap().version = version;
            if let Some(version) = version {
                self.oracle.highest = self.checked_new(version);
            }
        }
        drop(batch);
        // The last begin may have been refused, for lack of space.
        let has_begun = self.store().stats().begun - begun_before > new_leases.len() as u64;
        leases.retain(|key, _| !ended.contains(key));
        leases.extend(new_leases);
        self.leases = leases;
        let durable = !self.buffered;
        let is_absent =
            |entry: &Planned| next.get(&entry.key).is_none_or(|known| known.status == Status::Absent);
        let last = last.filter(|last| last.what == What::Begin && is_absent(last) && !is_refused);
        let Some(last) = last else {
            drop(answers);
            self.acknowledge_batch(now, next, unstarted);
            return failed.map_or(Ok(()), |error| self.failed(act, error));
        };
        // If the last begin was not refused, it is durable, and its release is not.
        let mut begun = next.clone();
        Self::apply_entry(&mut begun, &last, now_ms);
        drop(answers);
        // Only one read fails, and the answers must not be lost with it.
        let look = || self.store().get(&name(last.key));
        let seen = match look().or_else(|_| look()) {
            Ok(seen) => seen,
            Err(error) => return self.failed(act, error),
        };
        assert_eq!(seen.status(), Status::Absent, "{act:?}: a lease that was not taken was not released");
        let attempts = vec![seen.attempt()];
        if !has_begun {
            self.acknowledge_batch(now, next, unstarted);
            return failed.map_or(Ok(()), |error| self.failed(act, error));
        }
        assert!(begun[&last.key].attempts.contains(&seen.attempt()), "{act:?}: {seen:?}");
        begun.get_mut(&last.key).unwrap().attempts = attempts.clone();
        self.unstarted.insert(last.key, begun[&last.key].clone());
        self.acknowledge_parts();
        self.acknowledge(begun, durable);
        // The retention runs from when the release is written. By then an expired one may be gone, or not.
        next.insert(last.key, Known { expires_ms: u64::MAX, ..Known::released(attempts, now_ms) });
        self.acknowledge(next, false);
        failed.map_or(Ok(()), |error| self.failed(act, error))
    }

    /// Acknowledges the parts of a batch that a power loss may leave, before the batch itself.
    fn acknowledge_parts(&mut self) {
        for part in std::mem::take(&mut self.oracle.partial) {
            self.acknowledge(part, false);
        }
    }

    /// Acknowledges a batch that left no attempt behind. A batch that has changed no key has written nothing either, so what an
    /// earlier one left is still to be written.
    fn acknowledge_batch(&mut self, now: &Model, next: Model, unstarted: Model) {
        if next == *now {
            self.oracle.in_flight = None;
            self.oracle.partial.clear();
            self.unstarted = unstarted;
        } else {
            self.acknowledge_parts();
            self.acknowledge(next, !self.buffered);
        }
    }
}
