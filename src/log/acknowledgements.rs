//! The space for the acknowledgements of messages that an earlier session wrote.

use super::reservations::ReservationClass;
use super::{Log, Reservation, acknowledgement_cost_bytes};
use crate::error::Result;

impl Log {
    /// Reserves space for the acknowledgements of messages that recovery found.
    ///
    /// The session that wrote them had reserved it. But a slot to which nothing was written does not count as free when the
    /// store is opened: it may be a hole. So the file grows into it again, which takes no new space if it was allocated. If
    /// it cannot grow, the file was copied without these slots, for instance: the store opens with less, and an
    /// acknowledgement may then find it full.
    pub(crate) fn reserve_for_acknowledgements(&self, messages: u64) -> Result<Reservation> {
        let bytes = messages * acknowledgement_cost_bytes();
        match self.reserve(bytes, ReservationClass::Move)? {
            Ok(reservation) => Ok(reservation),
            Err(_) => Ok(self.reservations.reserve_at_most(bytes)),
        }
    }
}
