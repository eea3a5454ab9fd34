//! Notes: why the last attempt ended in doubt, for the operator who resolves the doubt.
//!
//! A note is written in a copy of the begin record, like a record that reclaiming moves: version, origin, attempt and
//! time stay as they are. So the note changes no state, and an attempt whose version it is can still end. It takes the
//! space that is reserved for ending the attempt, and is not synced: a crash may lose it.

use super::assembly::Engine;
use super::records::{HashedKey, IndexEntry, Want};
use super::write::{Change, Effect, EffectKind};
use crate::error::{Error, Result};
use crate::format::record::{Record, Value};
use crate::log::Reservation;
use crate::log::commit::{Until, record_cost_bytes};
use crate::planted::{Bug, planted};
use crate::status::Version;

/// The maximum length of a note, in bytes.
pub(crate) const MAX_NOTE_BYTES: usize = 512;

impl Engine {
    /// Writes `note` into the record of the attempt of `version`, if that attempt is still the key's last one and has not
    /// ended. Writes nothing if the space in `reservation` is not enough.
    pub(crate) fn note(
        &self,
        key: HashedKey<'_>,
        version: Version,
        note: &str,
        reservation: &mut Reservation,
    ) -> Result<()> {
        let _events = crate::events::hold_back();
        let key = self.admit_again(key)?;
        let _inside = self.admission.enter()?;
        let flight = self.flights.enter(key.hash);
        let now_ms = self.clock.now_ms();
        let view = self.viewer.view(key, &flight, now_ms, (Want::State, None))?;
        // The record of this version can only be the begin, or a copy of it: the end has a version of its own.
        let Some(found) = view.found.filter(|found| found.version == version) else { return Ok(()) };
        let noted = if planted(Bug::NoteFencesItsLease) { self.versions.next()? } else { version };
        // The flight keeps reclaiming from freeing the segment, so the record is read without the index.
        let ticket = self.log().reader().record(found.address, |_, record| {
            let value = Value { result: Some(note.as_bytes()), ..record.value };
            let copy = self.log().encode(&Record { value, version: noted, ..*record }, key.hash);
            let cost_bytes = record_cost_bytes(copy.size.length_bytes);
            if cost_bytes > reservation.bytes() {
                return Ok::<_, Error>(None);
            }
            let effect = Effect {
                hash: key.hash,
                size: copy.size,
                time_ms: now_ms,
                replaced: Some(IndexEntry { address: found.address, size: found.size }),
                kind: EffectKind::Moved,
            };
            let change = Change { record: copy, effect, flight: &flight };
            let space = reservation.split(cost_bytes);
            let ticket = self.write.append(std::slice::from_ref(&change), space, Until::Written)?;
            Ok(Some((change.effect, ticket)))
        })??;
        match ticket {
            Some((effect, ticket)) => self.write.finish_along(&effect, &flight, &ticket),
            None => Ok(()),
        }
    }
}
