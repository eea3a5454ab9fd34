//! Who may still write how much: so that only those who begin something are ever told that the store is full.
//!
//! Every record is promised its room before it is appended: a begin for itself and for the completion that will
//! follow it, the record that resolves a doubt, a forget or a moved record for itself. A promise is kept whatever happens to the disk, because it is
//! covered by slots that exist already, at full length and synced.
//!
//! A batch that does not fit the rest of a segment goes to the next one, and the rest is wasted; no batch takes more
//! than `batch_limit_bytes`, so every segment is worth at least its usable bytes less that limit, however the
//! records fall. That is what is counted with here.

use std::io;
use std::path::Path;

use crate::error::Error;
use crate::format::FIRST_FRAME_OFFSET;
use crate::format::footer::TRAILER_BYTES;
use crate::planted::{Bug, planted};
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
    /// The end of something that began and has no room of its own: a doubt, whose lease took its room with it.
    Finish,
    /// A forget gives room back in the end, and needs some first.
    Forget,
    /// What it is kept for.
    Move,
}

/// With fewer slots than this, finishing and forgetting share a segment: one for each would be most of the store.
const SLOTS_FOR_A_SEGMENT_EACH: u64 = 6;

impl Purpose {
    /// How many segments this purpose leaves alone in a log of so many slots.
    fn kept_segments(self, slots: u64) -> u64 {
        let shared = u64::from(slots >= SLOTS_FOR_A_SEGMENT_EACH);
        match self {
            Purpose::Begin => 2 + shared,
            Purpose::Finish if planted(Bug::FinishLikeBegin) => Purpose::Begin.kept_segments(slots),
            Purpose::Finish => 1 + shared,
            Purpose::Forget => 1,
            Purpose::Move => 0,
        }
    }

    /// What the caller who found no room should know.
    fn advice(self) -> &'static str {
        match self {
            Purpose::Begin => {
                "; nothing was begun, and operations that began can still be ended: free disk space, raise \
                 Options::max_size, or shorten retention"
            }
            Purpose::Finish => {
                "; nothing was recorded and the operation is in doubt as before: free disk space, raise \
                 Options::max_size, or forget what is no longer needed, and try again"
            }
            Purpose::Forget => {
                "; nothing was forgotten: free disk space or raise Options::max_size, and try again"
            }
            Purpose::Move => "; free disk space or raise Options::max_size",
        }
    }
}

/// Why room could not be had.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) purpose: Purpose,
    pub(crate) cause: CannotGrow,
}

impl NoRoom {
    /// The same, with another reason beside the first.
    pub(crate) fn and(self, other: &str) -> NoRoom {
        let cause = match self.cause {
            CannotGrow::Full(reason) => CannotGrow::Full(format!("{reason}, and {other}")),
            failed @ CannotGrow::Failed(_) => failed,
        };
        NoRoom { cause, ..self }
    }

    pub(crate) fn into_error(self, path: &Path) -> Error {
        match self.cause {
            CannotGrow::Full(reason) => {
                let reason = reason + self.purpose.advice();
                Error::Full { path: path.to_owned(), reason }
            }
            CannotGrow::Failed(error) => Error::io(path, "make the file longer", error),
        }
    }
}

/// Why the file cannot grow.
#[derive(Debug)]
pub(crate) enum CannotGrow {
    /// There is no space: on the disk, in a quota, or below a limit on the size of the file.
    Full(String),
    /// The operating system failed at it in another way. No reason to poison the log: what failed is the filling of a
    /// slot that holds nothing and is not used before it has been filled whole and synced.
    Failed(io::Error),
}

impl CannotGrow {
    pub(crate) fn new(error: io::Error) -> CannotGrow {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => {
                CannotGrow::Full(format!("the file cannot grow ({error})"))
            }
            _ => CannotGrow::Failed(error),
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

    /// Takes note that the log is about to have less, unless a promise would then be uncovered, or what is kept from
    /// `purpose`. Before it has, so that no promise is made in between that could not be kept.
    #[must_use]
    pub(crate) fn lower(&self, supply: Supply, purpose: Purpose) -> bool {
        let mut state = self.state.lock();
        let kept = self.kept_for_moving(&supply, state.promised_bytes, purpose);
        let covered = self.guaranteed(&supply) >= state.promised_bytes + kept;
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
        let slots = 1 + supply.free_slots + supply.full_segments;
        full_segments.min(purpose.kept_segments(slots)) * self.worth()
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
    fn a_begin_leaves_three_segments_a_finish_two_a_forget_one_and_moving_none() {
        let worth = USABLE - LIMIT;
        let room = room(Supply { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        assert!(!room.promise(8, Purpose::Begin));
        assert!(room.promise(worth, Purpose::Finish));
        assert!(!room.promise(8, Purpose::Finish));
        assert!(room.promise(worth, Purpose::Forget));
        assert!(!room.promise(8, Purpose::Forget));
        assert!(room.promise(worth, Purpose::Move));
        assert!(!room.promise(8, Purpose::Move));
        room.give_back(3 * worth);
        assert_eq!(room.promised_bytes(), 0);
    }

    #[test]
    fn in_a_small_store_finishing_and_forgetting_share_a_segment_and_begins_lose_none() {
        let worth = USABLE - LIMIT;
        for (free_slots, full_segments) in [(2, 1), (2, 2)] {
            let room = room(Supply { tail_bytes: 0, free_slots, full_segments });
            assert!(!room.promise(8, Purpose::Begin));
            assert!(room.promise(worth / 2, Purpose::Finish));
            assert!(room.promise(worth - worth / 2, Purpose::Forget));
            assert!(!room.promise(8, Purpose::Finish) && !room.promise(8, Purpose::Forget));
            assert!(room.promise(worth, Purpose::Move));
        }
        let room = room(Supply { tail_bytes: LIMIT + 8, free_slots: 2, full_segments: 2 });
        assert!(room.promise(8, Purpose::Begin), "two segments are kept, as without a class for finishing");
    }

    #[test]
    fn a_store_is_large_from_six_slots_on_whatever_they_hold() {
        let large = room(Supply { tail_bytes: 0, free_slots: 3, full_segments: 2 });
        assert!(!large.promise(8, Purpose::Begin), "three segments are kept");
        let large = room(Supply { tail_bytes: USABLE, free_slots: 1, full_segments: 4 });
        assert!(!large.promise(8, Purpose::Finish), "two segments are kept");
        let small = room(Supply { tail_bytes: USABLE, free_slots: 1, full_segments: 3 });
        assert!(small.promise(8, Purpose::Finish), "one segment is kept");
    }

    #[test]
    fn the_advice_says_what_was_not_done_and_how_to_make_room() {
        for (purpose, advice) in [
            (Purpose::Begin, "nothing was begun"),
            (Purpose::Finish, "in doubt as before"),
            (Purpose::Forget, "nothing was forgotten"),
            (Purpose::Move, "free disk space"),
        ] {
            let no_room = NoRoom { purpose, cause: CannotGrow::Full("the disk is full".to_owned()) };
            let error = no_room.and("max_size is reached").into_error(Path::new("s.once")).to_string();
            for part in ["the disk is full, and max_size is reached; ", advice, "raise Options::max_size"] {
                assert!(error.contains(part), "{purpose:?}: {error}");
            }
        }
    }

    #[test]
    fn only_a_lack_of_space_is_told_as_one() {
        use io::ErrorKind::{FileTooLarge, Other, PermissionDenied, QuotaExceeded, StorageFull, WriteZero};
        for (kind, is_full) in [
            (StorageFull, true),
            (QuotaExceeded, true),
            (FileTooLarge, true),
            (Other, false),
            (PermissionDenied, false),
            (WriteZero, false),
        ] {
            let no_room = NoRoom { purpose: Purpose::Begin, cause: CannotGrow::new(kind.into()) };
            let error = no_room.into_error(Path::new("s.once"));
            assert_eq!(matches!(error, Error::Full { .. }), is_full, "{kind:?}: {error}");
            assert_eq!(matches!(error, Error::Io { .. }), !is_full, "{kind:?}: {error}");
        }
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
        assert!(!room.lower(Supply { tail_bytes: 0, free_slots: 1, full_segments: 0 }, Purpose::Move));
        room.give_back(8);
        assert!(room.lower(Supply { tail_bytes: 0, free_slots: 1, full_segments: 0 }, Purpose::Move));
        assert!(!room.promise(USABLE, Purpose::Move), "it counts from then on");
        let full = self::room(Supply { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        let less = Supply { tail_bytes: 0, free_slots: 2, full_segments: 5 };
        assert!(!full.lower(less, Purpose::Begin), "what is kept from the purpose stays, too");
        assert!(full.lower(less, Purpose::Finish));
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
        assert!(is_scarce(&kept(4)) && !is_scarce(&kept(5)), "three segments are kept");
        let promised = room(Supply { tail_bytes: LIMIT + 8, free_slots: 5, full_segments: 5 });
        assert!(promised.promise(worth, Purpose::Begin));
        assert!(!is_scarce(&promised));
        assert!(promised.promise(8, Purpose::Begin));
        assert!(is_scarce(&promised));
        assert_eq!((promised.promised_bytes(), promised.usable_bytes()), (worth + 8, USABLE));
    }
}
