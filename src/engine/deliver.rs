//! Hands out messages of the outbox, and acknowledges them.
//!
//! A message is handed out only if no crash can take it back: its record is on disk, which a sync here brings about if
//! need be, and the store is not poisoned. Its acknowledgement is written like the forget of a key, under the flight (the
//! per-key lock) of the message's hash, and is not synced: a crash may repeat a message, and never loses one.

use super::assembly::Engine;
use super::outbox::{Taken, Ticket};
use super::records::{IndexEntry, Sight};
use super::write::{Change, Effect, EffectKind};
use crate::error::{Error, Result};
use crate::flights::FlightGuard;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{ACKNOWLEDGEMENT_BYTES, Kind, Record, Typing, Value};
use crate::key::{Fingerprint, Key, OwnedKey};
use crate::log::commit::Until;
use crate::log::reservations::ReservationClass;
use crate::log::{acknowledgement_cost_bytes, batch_limit_bytes};
use crate::planted::{Bug, planted};
use crate::record::RecordSize;
use crate::status::Version;

/// A message that is handed out.
#[derive(Debug)]
pub(crate) struct HandedOut {
    pub(crate) id: Version,
    /// The key of the operation that emitted it.
    pub(crate) key: OwnedKey,
    /// Its number within the operation, counted from 1.
    pub(crate) number: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) typing: Option<Typing>,
    pub(crate) emitted_ms: u64,
    /// How often it was handed out since the store was opened, this time included.
    pub(crate) deliveries: u32,
}

/// The content of a message's record.
struct Content {
    message: HandedOut,
    /// The position in the log at which the record ends.
    end: u64,
}

impl Engine {
    /// Hands out the first messages of a topic, at most `max`. Returns None if there are none, if others of the topic are
    /// out, or if a delivery of it was dropped a moment ago.
    pub(crate) fn next_messages(&self, topic: &str, max: usize) -> Result<Option<(Ticket, Vec<HandedOut>)>> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        self.log().check_poison()?;
        let hash = self.log().hasher().topic(topic);
        let max = max.min(self.max_delivery());
        let Some(taken) = self.records.outbox().take(hash, max, self.clock.now_ms()) else {
            return Ok(None);
        };
        match self.read_taken(&taken, topic) {
            Ok(messages) => Ok(Some((taken.ticket, messages))),
            Err(error) => {
                self.records.outbox().reduce(taken.ticket, 0);
                Err(error)
            }
        }
    }

    /// The maximum number of messages in one delivery: their acknowledgements fit one frame.
    fn max_delivery(&self) -> usize {
        let limit_bytes = batch_limit_bytes(self.log().segment_bytes()) - FRAME_HEADER_BYTES as u64;
        usize::try_from(limit_bytes / (ACKNOWLEDGEMENT_BYTES + ENTRY_BYTES)).unwrap_or(usize::MAX)
    }

    /// Reads the messages that were taken, and makes sure that they are durable. If one of them cannot be read, those
    /// before it are handed out without it.
    fn read_taken(&self, taken: &Taken, topic: &str) -> Result<Vec<HandedOut>> {
        let mut messages = Vec::with_capacity(taken.messages.len());
        let mut end = 0;
        for (id, deliveries) in &taken.messages {
            match self.read_message(*id, topic) {
                Ok(Content { message, end: message_end }) => {
                    end = end.max(message_end);
                    messages.push(HandedOut { deliveries: *deliveries, ..message });
                }
                Err(error) if messages.is_empty() => return Err(error),
                Err(_) => {
                    self.records.outbox().reduce(taken.ticket, messages.len());
                    break;
                }
            }
        }
        if !planted(Bug::MessageNotDurable) {
            self.log().sync_to(end)?;
        }
        // The store may have been poisoned meanwhile. Nothing is published from then on, because it is unknown what is
        // on disk.
        self.log().check_poison()?;
        Ok(messages)
    }

    fn read_message(&self, id: Version, topic: &str) -> Result<Content> {
        let sight = self.records.read_message(id, self.clock.now_ms(), |_, place, record| {
            let (stored_topic, payload) = record.message().unwrap_or_default();
            let message = HandedOut {
                id,
                key: record.key.to_owned(),
                number: record.attempt,
                payload: payload.to_vec(),
                typing: record.value.typing,
                emitted_ms: record.time_ms,
                deliveries: 0,
            };
            let content = Content { message, end: place.position + place.length_bytes };
            (content, stored_topic == topic, place.position)
        })?;
        match sight {
            Some(Sight::Read((content, true, _))) => Ok(content),
            Some(Sight::Read((_, false, position))) => {
                // Two topics of a million share the hash with a probability of one in ten million.
                Err(Error::corrupt(
                    self.path(),
                    position,
                    "the message is of another topic with the same hash",
                ))
            }
            Some(Sight::Unreadable(lost)) => Err(lost.error),
            None => Err(Error::corrupt(
                self.path(),
                0,
                "the index has no entry for a message that is not acknowledged",
            )),
        }
    }

    /// Acknowledges the messages of a delivery. They are never handed out again, unless a crash takes the acknowledgement
    /// back. After an error, they are not handed out again either until the store is opened again.
    pub(crate) fn acknowledge(&self, ticket: Ticket, ids: &[Version]) -> Result<()> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let now_ms = self.clock.now_ms();
        let mut hashed: Vec<(u128, Version)> =
            ids.iter().map(|id| (self.log().hasher().message(id.as_u64()), *id)).collect();
        // Flights are entered in the order of their hashes, as by a batch.
        hashed.sort_unstable();
        let flights: Vec<FlightGuard<'_>> =
            hashed.iter().map(|(hash, _)| self.flights.enter(*hash)).collect();
        let mut changes = Vec::with_capacity(ids.len());
        for ((_, id), flight) in hashed.iter().zip(&flights) {
            let sight = self.records.read_message(*id, now_ms, |address, place, record| IndexEntry {
                address,
                size: RecordSize::of(record, place.length_bytes),
            })?;
            let replaced = match sight {
                Some(Sight::Read(entry)) => entry,
                Some(Sight::Unreadable(lost)) => IndexEntry { address: lost.address, size: lost.size },
                None => continue,
            };
            changes.push(self.acknowledgement(*id, flight, replaced, now_ms));
        }
        let cost_bytes = ids.len() as u64 * acknowledgement_cost_bytes();
        let room = self.records.outbox().take_room(cost_bytes);
        let room = if room.bytes() >= cost_bytes {
            room
        } else {
            // Never, unless a bug is planted.
            let reserved = self.log().reserve(cost_bytes, ReservationClass::Forget)?;
            reserved.map_err(|no_room| no_room.into_error(self.path()))?
        };
        if !changes.is_empty() {
            let count = changes.len();
            self.commit_frames(&changes, vec![(count, room)], Until::Written)?;
        }
        self.records.outbox().remove(ticket);
        Ok(())
    }

    /// Makes the change that acknowledges a message.
    fn acknowledgement<'a>(
        &self,
        id: Version,
        flight: &'a FlightGuard<'a>,
        replaced: IndexEntry,
        now_ms: u64,
    ) -> Change<'a> {
        let record = Record {
            kind: Kind::Acknowledged,
            key: Key::new(b""),
            version: id,
            origin: id,
            fingerprint: Fingerprint::NONE,
            attempt: 0,
            time_ms: now_ms,
            key_expires_ms: replaced.size.key_expires_ms,
            result_expires_ms: replaced.size.result_expires_ms,
            value: Value::NONE,
        };
        let record = self.log().encode(&record, flight.hash());
        let effect = Effect {
            hash: flight.hash(),
            size: record.size,
            time_ms: now_ms,
            replaced: Some(replaced),
            kind: EffectKind::Acknowledged,
        };
        Change { record, effect, flight }
    }

    /// Gives the messages of a delivery back, which are handed out again after a pause. Changes memory only and cannot
    /// fail, because `drop` calls it.
    pub(crate) fn give_back(&self, ticket: Ticket) {
        self.records.outbox().give_back(ticket, self.clock.now_ms());
    }

    /// Acknowledges the first message of a topic if it cannot be read. Returns its id, or None if it can be read or there
    /// is none.
    pub(crate) fn skip_unreadable(&self, topic: &str) -> Result<Option<Version>> {
        let taken = {
            let _inside = self.admission.enter()?;
            self.log().check_poison()?;
            let hash = self.log().hasher().topic(topic);
            self.records.outbox().take(hash, 1, self.clock.now_ms())
        };
        let Some(Taken { ticket, messages }) = taken else { return Ok(None) };
        let Some((id, _)) = messages.first().copied() else { return Ok(None) };
        match self.read_message(id, topic) {
            Err(Error::Corrupt { .. }) => self.acknowledge(ticket, &[id]).map(|()| Some(id)),
            read => {
                self.records.outbox().reduce(ticket, 0);
                read.map(|_| None)
            }
        }
    }

    /// Reads the messages of a topic that are not acknowledged. For tests: hands nothing out, and makes nothing durable.
    #[cfg(feature = "__simulation")]
    pub(crate) fn pending_messages(&self, topic: &str) -> Result<Vec<HandedOut>> {
        self.admission.check_open()?;
        let ids = self.records.outbox().ids(self.log().hasher().topic(topic));
        ids.into_iter().map(|id| self.read_message(id, topic).map(|content| content.message)).collect()
    }

    /// The number of messages that are not acknowledged, and the bytes of their records. Takes no lock.
    pub(crate) fn message_counts(&self) -> (usize, u64) {
        self.records.outbox().counts()
    }

    /// When the oldest message that is not acknowledged was emitted, in store time.
    pub(crate) fn oldest_message_ms(&self) -> Option<u64> {
        self.records.outbox().oldest_ms()
    }
}
