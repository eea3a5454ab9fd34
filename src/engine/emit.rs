//! Commits messages with the completion of their operation: gives them ids, and makes the changes that add them.
//!
//! The messages are in the frame of the completion, after it, so that a crash keeps all of them or none. Each message has
//! a hash of its own, and its flight (the per-key lock) is held until the index points to it, as for a key: otherwise
//! reclaiming could free its segment before. No other thread can know the hash of an id that was just given, so entering
//! the flight never waits.

use super::assembly::Engine;
use super::outbox::UnappliedIds;
use super::records::Records;
use super::terms::{NewMessage, Terms};
use super::write::{Change, Effect, EffectKind};
use crate::error::{Error, Result};
use crate::flights::FlightGuard;
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{Kind, Record, Value, encoded_bytes};
use crate::key::{Fingerprint, Key};
use crate::log::commit::Until;
use crate::log::reservations::ReservationClass;
use crate::log::{acknowledgement_cost_bytes, batch_limit_bytes};
use crate::planted::{Bug, planted};
use crate::record::PendingMessage;
use crate::status::Version;

/// The ids and the flights of messages that are about to be committed.
#[derive(Debug)]
pub(super) struct Emission<'a> {
    flights: Vec<FlightGuard<'a>>,
    // Dropped after the flights: from then on, higher ids are handed out.
    unapplied: UnappliedIds<'a>,
}

/// Returns the number of bytes that the records of `messages` take of a segment, without a frame header.
pub(super) fn messages_cost_bytes(key: Key<'_>, messages: &[NewMessage]) -> u64 {
    messages.iter().map(|message| encoded_bytes(key, &message.value()) + ENTRY_BYTES).sum()
}

/// Returns the space that `messages` hold until they are acknowledged.
pub(super) fn room_bytes(messages: &[NewMessage]) -> u64 {
    if planted(Bug::AcknowledgementNeedsSpace) {
        return 0;
    }
    messages.len() as u64 * acknowledgement_cost_bytes()
}

impl<'a> Emission<'a> {
    /// Makes the changes that add `messages`, the ones of this emission from `first` on. They are numbered from 1 within the
    /// operation of `key`.
    pub(super) fn changes(
        &'a self,
        records: &'a Records,
        (key, now_ms): (Key<'a>, u64),
        messages: &'a [NewMessage],
        first: usize,
    ) -> impl Iterator<Item = Change<'a>> {
        let ids = self.unapplied.ids.iter().zip(&self.flights).skip(first);
        (1..).zip(messages).zip(ids).map(move |((number, message), (id, flight))| {
            let log = records.log();
            let topic = log.hasher().topic(message.topic());
            let record = Record {
                kind: Kind::Message,
                key,
                version: *id,
                origin: *id,
                fingerprint: Fingerprint::NONE,
                attempt: number,
                time_ms: now_ms,
                key_expires_ms: topic,
                result_expires_ms: now_ms,
                value: message.value(),
            };
            let record = log.encode(&record, flight.hash());
            let length_bytes = record.size.length_bytes;
            let pending = PendingMessage { id: *id, topic, time_ms: now_ms, length_bytes };
            let effect = Effect {
                hash: flight.hash(),
                size: record.size,
                time_ms: now_ms,
                replaced: None,
                kind: EffectKind::Emitted(pending),
            };
            Change { record, effect, flight }
        })
    }
}

impl Engine {
    /// Gives ids to `count` messages, in the order of emission, and enters their flights.
    pub(super) fn emission(&self, count: usize) -> Result<Emission<'_>> {
        let unapplied = self.records.outbox().give_ids(count, || self.versions.next())?;
        let hash = |id: Version| self.log().hasher().message(id.as_u64());
        let flights = unapplied.ids.iter().map(|id| self.flights.enter(hash(*id))).collect();
        Ok(Emission { flights, unapplied })
    }

    /// Refuses a begin that may emit messages while those that are not acknowledged take as much as the store allows.
    pub(super) fn check_outbox(&self, terms: &Terms) -> Result<()> {
        let Some(limit_bytes) = self.settings.max_outbox_bytes.filter(|_| terms.emits_bytes > 0) else {
            return Ok(());
        };
        let (messages, bytes) = self.records.outbox().counts();
        if bytes < limit_bytes {
            return Ok(());
        }
        let reason = format!(
            "the {messages} messages that are not acknowledged take {bytes} bytes, and Options::max_outbox allows \
             {limit_bytes}; nothing was begun. Publish and acknowledge them"
        );
        Err(Error::Full { path: self.path().to_owned(), reason })
    }

    /// Commits messages of an operation without a completion. Only for a planted bug.
    pub(super) fn emit_again(&self, key: Key<'_>, messages: &[NewMessage]) -> Result<()> {
        let emission = self.emission(messages.len())?;
        let subject = (key, self.clock.now_ms());
        let changes: Vec<Change<'_>> = emission.changes(&self.records, subject, messages, 0).collect();
        let cost_bytes =
            FRAME_HEADER_BYTES as u64 + messages_cost_bytes(key, messages) + room_bytes(messages);
        let reserved = self.log().reserve(cost_bytes, ReservationClass::Begin)?;
        let Ok(mut reservation) = reserved else { return Ok(()) };
        let room = reservation.split(room_bytes(messages));
        self.commit(&changes, reservation, Until::Synced)?;
        self.records.outbox().add_room(room);
        Ok(())
    }

    /// Refuses messages that do not fit one frame with the result of their operation.
    pub(super) fn check_messages(
        &self,
        key: Key<'_>,
        value: &Value<'_>,
        messages: &[NewMessage],
    ) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let others_bytes = FRAME_HEADER_BYTES as u64 + encoded_bytes(key, value) + ENTRY_BYTES;
        let limit_bytes = batch_limit_bytes(self.log().segment_bytes()).saturating_sub(others_bytes);
        let length_bytes = messages_cost_bytes(key, messages);
        if length_bytes <= limit_bytes {
            return Ok(());
        }
        let whole = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (length_bytes, limit_bytes) = (whole(length_bytes), whole(limit_bytes));
        Err(Error::TooLarge { key: key.to_owned(), length_bytes, limit_bytes })
    }
}
