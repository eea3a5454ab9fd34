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
use std::sync::Arc;

use crate::error::Error;
use crate::format::FIRST_FRAME_OFFSET;
use crate::format::footer::TRAILER_BYTES;
use crate::planted::{Bug, planted};
use crate::sync::Mutex;

/// What the writer tells of the log after every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// Bytes left for frames and footer entries in the segment that is being written.
    pub(crate) tail_bytes: u64,
    /// Slots that can be taken at once.
    pub(crate) free_slots: u64,
    /// Full segments: what could be retired.
    pub(crate) full_segments: u64,
}

#[derive(Debug, Default)]
struct State {
    free_space: FreeSpace,
    reserved_bytes: u64,
}

/// The account of one store's room.
#[derive(Debug)]
pub(crate) struct SpaceReservations {
    state: Mutex<State>,
    usable_bytes: u64,
    batch_limit_bytes: u64,
}

/// Who asks for room, and how many segments' worth must be left beside it for moving live records: a full store can
/// only be reclaimed if the oldest segment's can be appended once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReservationClass {
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

impl ReservationClass {
    /// How many segments this purpose leaves alone in a log of so many slots.
    fn kept_segments(self, slots: u64) -> u64 {
        let shared = u64::from(slots >= SLOTS_FOR_A_SEGMENT_EACH);
        match self {
            ReservationClass::Begin => 2 + shared,
            ReservationClass::Finish if planted(Bug::FinishNeedsBeginReserve) => {
                ReservationClass::Begin.kept_segments(slots)
            }
            ReservationClass::Finish => 1 + shared,
            ReservationClass::Forget => 1,
            ReservationClass::Move => 0,
        }
    }

    /// What the caller who found no room should know.
    fn advice(self) -> &'static str {
        match self {
            ReservationClass::Begin => {
                "; nothing was begun, and operations that began can still be ended: free disk space, raise \
                 Options::max_size, or shorten retention"
            }
            ReservationClass::Finish => {
                "; nothing was recorded and the operation is in doubt as before: free disk space, raise \
                 Options::max_size, or forget what is no longer needed, and try again"
            }
            ReservationClass::Forget => {
                "; nothing was forgotten: free disk space or raise Options::max_size, and try again"
            }
            ReservationClass::Move => "; free disk space or raise Options::max_size",
        }
    }
}

/// Why room could not be had.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) class: ReservationClass,
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
                let reason = reason + self.class.advice();
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

impl SpaceReservations {
    pub(crate) fn new(segment_bytes: u64, batch_limit_bytes: u64) -> SpaceReservations {
        let usable_bytes = segment_bytes - FIRST_FRAME_OFFSET - TRAILER_BYTES;
        assert!(batch_limit_bytes < usable_bytes, "a segment holds at least one batch");
        SpaceReservations { state: Mutex::default(), usable_bytes, batch_limit_bytes }
    }

    /// Promises `bytes`, if there is room for them beside all earlier promises.
    #[must_use]
    pub(crate) fn reserve(&self, bytes: u64, class: ReservationClass) -> bool {
        let mut state = self.state.lock();
        let reserved_bytes = state.reserved_bytes + bytes;
        let kept = self.kept_for_moving(&state.free_space, reserved_bytes, class);
        let fits = reserved_bytes + kept <= self.guaranteed(&state.free_space);
        if fits {
            state.reserved_bytes += bytes;
        }
        fits
    }

    /// Reserves `bytes`, if there is space for them beside all earlier reservations.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, class: ReservationClass) -> Option<Reservation> {
        self.reserve(bytes, class).then(|| Reservation { reservations: Arc::clone(self), bytes })
    }

    /// A reservation of nothing.
    pub(crate) fn none(self: &Arc<Self>) -> Reservation {
        Reservation { reservations: Arc::clone(self), bytes: 0 }
    }

    /// Gives a promise back, kept or not needed.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        debug_assert!(state.reserved_bytes >= bytes, "more given back than was promised");
        state.reserved_bytes = state.reserved_bytes.saturating_sub(bytes);
    }

    /// Takes note of what the log has now; `kept_bytes` of promises were just kept by writing their records. One step,
    /// so that nobody is promised room that is used and not yet accounted for, or refused room that is free.
    ///
    /// True if another slot should be made ready: no more than a segment's worth is left for beginning. Just so much is
    /// left while the last quarter of a segment is written, which promises do not count on; a slot that is made then is
    /// settled by the step to the next segment, and nobody has to wait for it.
    pub(crate) fn update(&self, free_space: FreeSpace, kept_bytes: u64) -> bool {
        let mut state = self.state.lock();
        state.free_space = free_space;
        debug_assert!(state.reserved_bytes >= kept_bytes, "more was written than was promised");
        state.reserved_bytes = state.reserved_bytes.saturating_sub(kept_bytes);
        let kept = self.kept_for_moving(&state.free_space, state.reserved_bytes, ReservationClass::Begin);
        self.guaranteed(&state.free_space) <= state.reserved_bytes + kept + self.worth()
    }

    /// Takes note that the log is about to have less, unless a promise would then be uncovered, or what is kept from
    /// `purpose`. Before it has, so that no promise is made in between that could not be kept.
    #[must_use]
    pub(crate) fn lower(&self, free_space: FreeSpace, class: ReservationClass) -> bool {
        let mut state = self.state.lock();
        let kept = self.kept_for_moving(&free_space, state.reserved_bytes, class);
        let covered = self.guaranteed(&free_space) >= state.reserved_bytes + kept;
        if covered {
            state.free_space = free_space;
        }
        covered
    }

    /// What a segment holds that nothing was written to.
    pub(crate) fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.state.lock().reserved_bytes
    }

    /// What an empty segment is worth, however the records fall.
    fn worth(&self) -> u64 {
        self.usable_bytes - self.batch_limit_bytes
    }

    fn guaranteed(&self, free_space: &FreeSpace) -> u64 {
        free_space.tail_bytes.saturating_sub(self.batch_limit_bytes) + free_space.free_slots * self.worth()
    }

    /// What must stay free beside `reserved_bytes`. Counts the segments that these promises will fill, not only those
    /// that are full: by the time that they are kept, it is too late to keep anything for moving.
    fn kept_for_moving(&self, free_space: &FreeSpace, reserved_bytes: u64, class: ReservationClass) -> u64 {
        let beyond_tail =
            reserved_bytes.saturating_sub(free_space.tail_bytes.saturating_sub(self.batch_limit_bytes));
        let full_segments = free_space.full_segments + beyond_tail.div_ceil(self.worth());
        let slots = 1 + free_space.free_slots + free_space.full_segments;
        full_segments.min(class.kept_segments(slots)) * self.worth()
    }
}

/// Space that is reserved, and given back when this is dropped.
#[derive(Debug)]
#[must_use = "the space is given back when this is dropped"]
pub(crate) struct Reservation {
    reservations: Arc<SpaceReservations>,
    bytes: u64,
}

impl Reservation {
    /// Takes note that the space goes with records. The log gives it back when they are written.
    pub(crate) fn spend(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// Moves all of it into a reservation of its own; this one is empty then.
    pub(crate) fn take(&mut self) -> Reservation {
        self.split(self.bytes)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves `bytes` of it, or all that there is, into a reservation of its own.
    pub(crate) fn split(&mut self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Reservation { reservations: Arc::clone(&self.reservations), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.reservations.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 10;
    const LIMIT: u64 = 16 << 10;
    const USABLE: u64 = SEGMENT - 4_096 - 64;

    fn room(free_space: FreeSpace) -> SpaceReservations {
        let room = SpaceReservations::new(SEGMENT, LIMIT);
        room.update(free_space, 0);
        room
    }

    #[test]
    fn promises_never_exceed_what_is_sure_to_fit_however_the_batches_fall() {
        let room = room(FreeSpace { tail_bytes: USABLE, free_slots: 3, full_segments: 0 });
        let mut promised = 0;
        while room.reserve(1_000, ReservationClass::Begin) {
            promised += 1_000;
        }
        // The promises fill two segments, and two are kept for moving what will then be in them.
        let sure = 2 * (USABLE - LIMIT);
        assert!(promised <= sure && promised + 1_000 > sure, "{promised} of {sure}");
    }

    #[test]
    fn a_begin_leaves_three_segments_a_finish_two_a_forget_one_and_moving_none() {
        let worth = USABLE - LIMIT;
        let room = room(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        assert!(!room.reserve(8, ReservationClass::Begin));
        assert!(room.reserve(worth, ReservationClass::Finish));
        assert!(!room.reserve(8, ReservationClass::Finish));
        assert!(room.reserve(worth, ReservationClass::Forget));
        assert!(!room.reserve(8, ReservationClass::Forget));
        assert!(room.reserve(worth, ReservationClass::Move));
        assert!(!room.reserve(8, ReservationClass::Move));
        room.give_back(3 * worth);
        assert_eq!(room.reserved_bytes(), 0);
    }

    #[test]
    fn in_a_small_store_finishing_and_forgetting_share_a_segment_and_begins_lose_none() {
        let worth = USABLE - LIMIT;
        for (free_slots, full_segments) in [(2, 1), (2, 2)] {
            let room = room(FreeSpace { tail_bytes: 0, free_slots, full_segments });
            assert!(!room.reserve(8, ReservationClass::Begin));
            assert!(room.reserve(worth / 2, ReservationClass::Finish));
            assert!(room.reserve(worth - worth / 2, ReservationClass::Forget));
            assert!(!room.reserve(8, ReservationClass::Finish) && !room.reserve(8, ReservationClass::Forget));
            assert!(room.reserve(worth, ReservationClass::Move));
        }
        let room = room(FreeSpace { tail_bytes: LIMIT + 8, free_slots: 2, full_segments: 2 });
        assert!(
            room.reserve(8, ReservationClass::Begin),
            "two segments are kept, as without a class for finishing"
        );
    }

    #[test]
    fn a_store_is_large_from_six_slots_on_whatever_they_hold() {
        let large = room(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 2 });
        assert!(!large.reserve(8, ReservationClass::Begin), "three segments are kept");
        let large = room(FreeSpace { tail_bytes: USABLE, free_slots: 1, full_segments: 4 });
        assert!(!large.reserve(8, ReservationClass::Finish), "two segments are kept");
        let small = room(FreeSpace { tail_bytes: USABLE, free_slots: 1, full_segments: 3 });
        assert!(small.reserve(8, ReservationClass::Finish), "one segment is kept");
    }

    #[test]
    fn the_advice_says_what_was_not_done_and_how_to_make_room() {
        for (class, advice) in [
            (ReservationClass::Begin, "nothing was begun"),
            (ReservationClass::Finish, "in doubt as before"),
            (ReservationClass::Forget, "nothing was forgotten"),
            (ReservationClass::Move, "free disk space"),
        ] {
            let no_room = NoRoom { class, cause: CannotGrow::Full("the disk is full".to_owned()) };
            let error = no_room.and("max_size is reached").into_error(Path::new("s.once")).to_string();
            for part in ["the disk is full, and max_size is reached; ", advice, "raise Options::max_size"] {
                assert!(error.contains(part), "{class:?}: {error}");
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
            let no_room = NoRoom { class: ReservationClass::Begin, cause: CannotGrow::new(kind.into()) };
            let error = no_room.into_error(Path::new("s.once"));
            assert_eq!(matches!(error, Error::Full { .. }), is_full, "{kind:?}: {error}");
            assert_eq!(matches!(error, Error::Io { .. }), !is_full, "{kind:?}: {error}");
        }
    }

    #[test]
    fn a_small_store_keeps_nothing_for_moving_before_it_has_a_full_segment() {
        let room = room(FreeSpace { tail_bytes: USABLE, free_slots: 0, full_segments: 0 });
        assert!(room.reserve(USABLE - LIMIT, ReservationClass::Begin));
    }

    #[test]
    fn a_slot_is_spared_only_if_every_promise_stays_covered() {
        let room = room(FreeSpace { tail_bytes: 0, free_slots: 2, full_segments: 0 });
        assert!(room.reserve(USABLE - LIMIT + 8, ReservationClass::Move));
        assert!(
            !room.lower(FreeSpace { tail_bytes: 0, free_slots: 1, full_segments: 0 }, ReservationClass::Move)
        );
        room.give_back(8);
        assert!(
            room.lower(FreeSpace { tail_bytes: 0, free_slots: 1, full_segments: 0 }, ReservationClass::Move)
        );
        assert!(!room.reserve(USABLE, ReservationClass::Move), "it counts from then on");
        let full = self::room(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        let less = FreeSpace { tail_bytes: 0, free_slots: 2, full_segments: 5 };
        assert!(!full.lower(less, ReservationClass::Begin), "what is kept from the class stays, too");
        assert!(full.lower(less, ReservationClass::Finish));
    }

    #[test]
    fn it_is_scarce_when_no_more_than_a_segment_is_left_for_beginning() {
        // What is kept for moving needs a full segment; without one, an empty tail and a slot are worth more than one.
        let worth = USABLE - LIMIT;
        let is_scarce = |room: &SpaceReservations| {
            let free_space = room.state.lock().free_space;
            room.update(free_space, 0)
        };
        let enough = room(FreeSpace { tail_bytes: USABLE + 8, free_slots: 0, full_segments: 0 });
        assert!(!is_scarce(&enough), "more than a segment");
        assert!(enough.reserve(8, ReservationClass::Begin));
        assert!(is_scarce(&enough), "just a segment");
        enough.give_back(8);
        assert!(!is_scarce(&enough));
        let kept = |free_slots| room(FreeSpace { tail_bytes: 0, free_slots, full_segments: 5 });
        assert!(is_scarce(&kept(4)) && !is_scarce(&kept(5)), "three segments are kept");
        let promised = room(FreeSpace { tail_bytes: LIMIT + 8, free_slots: 5, full_segments: 5 });
        assert!(promised.reserve(worth, ReservationClass::Begin));
        assert!(!is_scarce(&promised));
        assert!(promised.reserve(8, ReservationClass::Begin));
        assert!(is_scarce(&promised));
        assert_eq!((promised.reserved_bytes(), promised.usable_bytes()), (worth + 8, USABLE));
    }
}
