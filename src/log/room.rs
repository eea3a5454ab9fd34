//! Who may still write how much: so that only those who begin something are ever told that the store is full.
//!
//! Every record is promised its room before it is appended: a begin for itself and for the completion that will
//! follow it, a forget or a moved record for itself. A promise is kept whatever happens to the disk, because it is
//! covered by slots that exist already, at full length and synced.
//!
//! A batch that does not fit the rest of a segment goes to the next one, and the rest is wasted; no batch takes more
//! than `batch_limit_bytes`, so every segment is worth at least its usable bytes less that limit, however the
//! records fall. That is what is counted with here.

use crate::format::FIRST_FRAME_OFFSET;
use crate::format::footer::TRAILER_BYTES;
use crate::sync::Mutex;

/// What the writer tells of the log after every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Supply {
    /// Bytes left for frames and footer entries in the segment that is being written.
    pub(crate) tail_bytes: u64,
    /// Slots that can be taken at once.
    pub(crate) free_slots: u64,
    /// Full segments: what could be retired.
    pub(crate) full_segments: u64,
}

#[derive(Debug, Default)]
struct State {
    supply: Supply,
    promised_bytes: u64,
}

/// The account of one store's room.
#[derive(Debug)]
pub(crate) struct Room {
    state: Mutex<State>,
    usable_bytes: u64,
    batch_limit_bytes: u64,
}

/// Who asks for room, and how many segments' worth must be left beside it for moving live records: a full store can
/// only be reclaimed if the oldest segment's can be appended once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Something new: leaves alone everything that is kept.
    Begin,
    /// A forget gives room back in the end, and needs some first.
    Forget,
    /// What it is kept for.
    Move,
}

impl Purpose {
    fn kept_segments(self) -> u64 {
        match self {
            Purpose::Begin => 2,
            Purpose::Forget => 1,
            Purpose::Move => 0,
        }
    }
}

impl Room {
    pub(crate) fn new(segment_bytes: u64, batch_limit_bytes: u64) -> Room {
        let usable_bytes = segment_bytes - FIRST_FRAME_OFFSET - TRAILER_BYTES;
        assert!(batch_limit_bytes < usable_bytes, "a segment holds at least one batch");
        Room { state: Mutex::default(), usable_bytes, batch_limit_bytes }
    }

    /// Promises `bytes`, if there is room for them beside all earlier promises.
    #[must_use]
    pub(crate) fn promise(&self, bytes: u64, purpose: Purpose) -> bool {
        let mut state = self.state.lock();
        let promised_bytes = state.promised_bytes + bytes;
        let kept = self.kept_for_moving(&state.supply, promised_bytes, purpose);
        let fits = promised_bytes + kept <= self.guaranteed(&state.supply);
        if fits {
            state.promised_bytes += bytes;
        }
        fits
    }

    /// Gives a promise back, kept or not needed.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        debug_assert!(state.promised_bytes >= bytes, "more given back than was promised");
        state.promised_bytes = state.promised_bytes.saturating_sub(bytes);
    }

    /// Takes note of what the log has now; `kept_bytes` of promises were just kept by writing their records. One step,
    /// so that nobody is promised room that is used and not yet accounted for, or refused room that is free.
    ///
    /// True if another slot should be made ready: no more than a segment's worth is left for beginning. Just so much is
    /// left while the last quarter of a segment is written, which promises do not count on; a slot that is made then is
    /// settled by the step to the next segment, and nobody has to wait for it.
    pub(crate) fn update(&self, supply: Supply, kept_bytes: u64) -> bool {
        let mut state = self.state.lock();
        state.supply = supply;
        debug_assert!(state.promised_bytes >= kept_bytes, "more was written than was promised");
        state.promised_bytes = state.promised_bytes.saturating_sub(kept_bytes);
        let kept = self.kept_for_moving(&state.supply, state.promised_bytes, Purpose::Begin);
        self.guaranteed(&state.supply) <= state.promised_bytes + kept + self.worth()
    }

    /// Takes note that the log is about to have less, unless a promise would then be uncovered. Before it has, so that no
    /// promise is made in between that could not be kept.
    #[must_use]
    pub(crate) fn lower(&self, supply: Supply) -> bool {
        let mut state = self.state.lock();
        let covered = self.guaranteed(&supply) >= state.promised_bytes;
        if covered {
            state.supply = supply;
        }
        covered
    }

    /// What a segment holds that nothing was written to.
    pub(crate) fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    pub(crate) fn promised_bytes(&self) -> u64 {
        self.state.lock().promised_bytes
    }

    /// What an empty segment is worth, however the records fall.
    fn worth(&self) -> u64 {
        self.usable_bytes - self.batch_limit_bytes
    }

    fn guaranteed(&self, supply: &Supply) -> u64 {
        supply.tail_bytes.saturating_sub(self.batch_limit_bytes) + supply.free_slots * self.worth()
    }

    /// What must stay free beside `promised_bytes`. Counts the segments that these promises will fill, not only those
    /// that are full: by the time that they are kept, it is too late to keep anything for moving.
    fn kept_for_moving(&self, supply: &Supply, promised_bytes: u64, purpose: Purpose) -> u64 {
        let beyond_tail =
            promised_bytes.saturating_sub(supply.tail_bytes.saturating_sub(self.batch_limit_bytes));
        let full_segments = supply.full_segments + beyond_tail.div_ceil(self.worth());
        full_segments.min(purpose.kept_segments()) * self.worth()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 10;
    const LIMIT: u64 = 16 << 10;
    const USABLE: u64 = SEGMENT - 4_096 - 64;

    fn room(supply: Supply) -> Room {
        let room = Room::new(SEGMENT, LIMIT);
        room.update(supply, 0);
        room
    }

    #[test]
    fn promises_never_exceed_what_is_sure_to_fit_however_the_batches_fall() {
        let room = room(Supply { tail_bytes: USABLE, free_slots: 3, full_segments: 0 });
        let mut promised = 0;
        while room.promise(1_000, Purpose::Begin) {
            promised += 1_000;
        }
        // The promises fill two segments, and two are kept for moving what will then be in them.
        let sure = 2 * (USABLE - LIMIT);
        assert!(promised <= sure && promised + 1_000 > sure, "{promised} of {sure}");
    }

    #[test]
    fn a_begin_leaves_two_segments_for_moving_a_forget_one_and_moving_none() {
        let room = room(Supply { tail_bytes: 0, free_slots: 2, full_segments: 5 });
        assert!(!room.promise(8, Purpose::Begin));
        assert!(room.promise(8, Purpose::Forget));
        assert!(!room.promise(USABLE - LIMIT, Purpose::Forget));
        assert!(room.promise(USABLE - LIMIT, Purpose::Move));
        room.give_back(USABLE - LIMIT + 8);
        assert_eq!(room.promised_bytes(), 0);
    }

    #[test]
    fn a_small_store_keeps_nothing_for_moving_before_it_has_a_full_segment() {
        let room = room(Supply { tail_bytes: USABLE, free_slots: 0, full_segments: 0 });
        assert!(room.promise(USABLE - LIMIT, Purpose::Begin));
    }

    #[test]
    fn a_slot_is_spared_only_if_every_promise_stays_covered() {
        let room = room(Supply { tail_bytes: 0, free_slots: 2, full_segments: 0 });
        assert!(room.promise(USABLE - LIMIT + 8, Purpose::Move));
        assert!(!room.lower(Supply { tail_bytes: 0, free_slots: 1, full_segments: 0 }));
        room.give_back(8);
        assert!(room.lower(Supply { tail_bytes: 0, free_slots: 1, full_segments: 0 }));
        assert!(!room.promise(USABLE, Purpose::Move), "it counts from then on");
    }

    #[test]
    fn it_is_scarce_when_no_more_than_a_segment_is_left_for_beginning() {
        // What is kept for moving needs a full segment; without one, an empty tail and a slot are worth more than one.
        let worth = USABLE - LIMIT;
        let is_scarce = |room: &Room| {
            let supply = room.state.lock().supply;
            room.update(supply, 0)
        };
        let enough = room(Supply { tail_bytes: USABLE + 8, free_slots: 0, full_segments: 0 });
        assert!(!is_scarce(&enough), "more than a segment");
        assert!(enough.promise(8, Purpose::Begin));
        assert!(is_scarce(&enough), "just a segment");
        enough.give_back(8);
        assert!(!is_scarce(&enough));
        let kept = |free_slots| room(Supply { tail_bytes: 0, free_slots, full_segments: 5 });
        assert!(is_scarce(&kept(3)) && !is_scarce(&kept(4)), "two segments are kept for moving");
        let promised = room(Supply { tail_bytes: LIMIT + 8, free_slots: 4, full_segments: 5 });
        assert!(promised.promise(worth, Purpose::Begin));
        assert!(!is_scarce(&promised));
        assert!(promised.promise(8, Purpose::Begin));
        assert!(is_scarce(&promised));
        assert_eq!((promised.promised_bytes(), promised.usable_bytes()), (worth + 8, USABLE));
    }
}
