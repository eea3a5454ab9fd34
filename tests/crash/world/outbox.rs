//! Completes operations with messages, publishes the messages, and compares both with the oracle.

use oncekey::{Answer, Begin, Durability, Error, Key, Messages, Status};

use super::act::Act;
use super::oracle::{Emitted, Known, Model, TOPICS};
use super::{NONE, World, name, result};

impl World {
    /// Completes the key's operation together with one, two or three messages.
    pub fn perform_emit(&mut self, act: Act, mut next: Model) -> Result<(), Error> {
        let (key, size, is_buffered) = match act {
            Act::Emit(key, size) => (key, size, false),
            Act::EmitBuffered(key, size) => (key, size, true),
            _ => return Ok(()),
        };
        if self.replaced {
            return Ok(());
        }
        // The completion of a job depends on its steps, which other acts check.
        if next.get(&key).is_some_and(|known| !known.steps.is_empty()) {
            return Ok(());
        }
        let now_ms = self.time_ms;
        let nonce = self.oracle.history.len();
        let bytes = result(key, size.min(5_000), nonce);
        let mut messages = Messages::new();
        let mut emitted = Vec::new();
        for number in 1..=1 + nonce % 3 {
            let topic = TOPICS[(nonce + number) % TOPICS.len()];
            let payload = format!("{nonce}/{number}/{}", "m".repeat(usize::from(size) / 8)).into_bytes();
            messages.emit_bytes(topic, &payload).unwrap();
            let token = format!("{}~{number}", Key::new(&name(key)).token());
            emitted.push(Emitted { topic, token, payload });
        }
        let known = next.get(&key).cloned();
        let before = known.as_ref().map_or(Status::Absent, |known| known.status);
        let attempts = known.as_ref().map_or(vec![0], |known| known.attempts.clone());
        let store = self.store.as_ref().unwrap();
        let lease = self.leases.remove(&key);
        let attempts = match before {
            Status::Absent => attempts.into_iter().chain([0]).map(|count| count + 1).collect(),
            _ => attempts,
        };
        if before != Status::Completed {
            next.insert(key, Known::completed(attempts, bytes.clone(), now_ms));
            next.messages.extend(emitted);
            self.oracle.in_flight = Some(next.clone());
        }
        let durability = if is_buffered { Durability::Buffered } else { Durability::Sync };
        let version = match (before, lease) {
            // Each second lease emits by itself, in a call of its own.
            (Status::InDoubt, Some(mut lease)) if nonce.is_multiple_of(2) => {
                let mut batch = store.batch();
                batch.complete(&mut lease, &bytes).unwrap();
                batch.attach(messages).unwrap();
                match batch.commit().map(|mut answers| answers.next().unwrap()) {
                    Ok(Ok(Answer::Done(version))) => Ok(version),
                    Ok(Ok(other)) => panic!("{act:?}: {other:?}"),
                    Ok(Err(error)) | Err(error) => Err(error),
                }
            }
            (Status::InDoubt, lease) => {
                drop(lease);
                match store.begin(&name(key), NONE) {
                    Ok(Begin::InDoubt(mut doubt)) => doubt.complete_with(&bytes, messages),
                    Ok(other) => panic!("{act:?}: {other:?}"),
                    Err(error) => {
                        self.oracle.in_flight = None;
                        return self.failed(act, error);
                    }
                }
            }
            (_, lease) => {
                drop(lease);
                let name = name(key);
                let mut batch = store.batch();
                batch.record(store.operation(&name).durability(durability), &bytes).unwrap();
                batch.attach(messages).unwrap();
                let answer = batch.commit().map(|mut answers| answers.next().unwrap());
                match (before, answer) {
                    (Status::Absent, Ok(Ok(Answer::Done(version)))) => Ok(version),
                    (
                        Status::Completed,
                        Ok(Ok(Answer::AlreadyDone(_)) | Err(Error::ResultExpired { .. })),
                    ) => {
                        return Ok(());
                    }
                    (_, Ok(Ok(other))) => panic!("{act:?}: {other:?} but the oracle has {before:?}"),
                    (_, Ok(Err(error)) | Err(error)) => Err(error),
                }
            }
        };
        match version {
            Ok(version) => {
                next.get_mut(&key).unwrap().version = Some(version);
                // The messages have the versions that follow.
                self.oracle.highest = self.checked_new(version);
            }
            Err(error) => return self.failed(act, error),
        }
        let durable = if before == Status::Absent { !is_buffered } else { !self.buffered };
        self.acknowledge(next, durable);
        Ok(())
    }

    /// Takes messages out of a topic, compares them with the oracle, and acknowledges them.
    pub fn perform_publish(&mut self, act: Act, count: u8, mut next: Model) -> Result<(), Error> {
        let topic = TOPICS[usize::from(count) % TOPICS.len()];
        let outbox = self.store().outbox();
        let deliveries = match outbox.next_many(topic, usize::from(count).max(1)) {
            Ok(Some(deliveries)) => deliveries,
            Ok(None) => {
                assert_eq!(next.pending(topic).count(), 0, "{act:?}: handed out nothing");
                return Ok(());
            }
            Err(error) => return self.failed(act, error),
        };
        for (message, expected) in deliveries.messages().iter().zip(next.pending(topic)) {
            assert_eq!(message.token(), expected.token, "{act:?}: out of order");
            assert_eq!(message.payload(), expected.payload, "{act:?}");
        }
        let taken = deliveries.messages().len();
        assert!(deliveries.messages().is_sorted_by_key(oncekey::Message::id), "{act:?}: ids");
        // What was handed out must survive a loss of power from now on, and everything before it.
        let last = next.pending(topic).nth(taken - 1).expect("no more than there are").clone();
        let emitted_at = self.oracle.history.iter().position(|model| model.messages.contains(&last));
        self.oracle.durable = self.oracle.durable.max(emitted_at.unwrap());
        let mut left = taken;
        next.messages.retain(|message| {
            let is_taken = message.topic == topic && left > 0;
            left -= usize::from(is_taken);
            !is_taken
        });
        self.oracle.in_flight = Some(next.clone());
        if let Err(error) = deliveries.ack() {
            return self.failed(act, error);
        }
        self.acknowledge(next, false);
        Ok(())
    }
}
