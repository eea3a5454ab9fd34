//! Space reservations: a record is appended only after space has been reserved for it.
//!
//! A slot is the place of one segment in the file. Invariant: the slots that already exist in the file, allocated in full and
//! synced, cover every outstanding reservation. So a full disk can refuse a caller that begins a new operation, but never the
//! completion of an operation that has begun. A begin reserves space for its own record and for the completion that follows.
//! Separate reservations are made for forgets, for moved records, and for records that end a doubt.
//!
//! A batch that does not fit the rest of a segment goes to the next one, and the rest is wasted. No batch takes more than
//! `batch_limit_bytes`. So a segment is guaranteed to hold its usable bytes minus that limit, however records are batched.
//! Reservations count on no more.
//!
//! Only [`Log`](super::Log) calls [`SpaceReservations`]. The lock is held for arithmetic only.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::format::FIRST_FRAME_OFFSET;
use crate::format::footer::TRAILER_BYTES;
use crate::planted::{Bug, planted};
use crate::sync::Mutex;

/// The free space of the log. The writer computes it after each change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// Bytes left for frames and footer entries in the tail, the segment that is being written.
    pub(crate) tail_bytes: u64,
    /// Slots that are available for the next segments.
    pub(crate) free_slots: u64,
    /// Full segments, which could be retired.
    pub(crate) full_segments: u64,
}

#[derive(Debug, Default)]
struct State {
    free_space: FreeSpace,
    reserved_bytes: u64,
}

/// The outstanding reservations of one store, and the free space that covers them.
#[derive(Debug)]
pub(crate) struct SpaceReservations {
    state: Mutex<State>,
    usable_bytes: u64,
    batch_limit_bytes: u64,
}

/// The purpose of a reservation.
///
/// It determines how many segments must stay free, in addition to the reservation, so that live records can be moved: a full store
/// can only be reclaimed if the live records of its oldest segment can be appended once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReservationClass {
    /// A new operation. May not use the space that is kept for the other classes.
    Begin,
    /// The end of a doubt. It needs a new reservation, because the one that was made at the begin was released with the lease.
    Finish,
    /// A forget. It needs space for its own record before the space of the key's last record can be freed.
    Forget,
    /// A live record that is being moved. The kept space is for this.
    Move,
}

/// In a log with fewer slots, `Finish` and `Forget` share one kept segment, because keeping one for each would take most of a small
/// store.
const MIN_SLOTS_FOR_SEPARATE_SEGMENTS: u64 = 6;

impl ReservationClass {
    /// How many segments this class must leave free, in a log of `slots` slots.
    fn kept_segments(self, slots: u64) -> u64 {
        let separate = u64::from(slots >= MIN_SLOTS_FOR_SEPARATE_SEGMENTS);
        match self {
            ReservationClass::Begin => 2 + separate,
            ReservationClass::Finish if planted(Bug::FinishNeedsBeginReserve) => {
                ReservationClass::Begin.kept_segments(slots)
            }
            ReservationClass::Finish => 1 + separate,
            ReservationClass::Forget => 1,
            ReservationClass::Move => 0,
        }
    }

    /// The end of the error text: what was not done, and how to make space.
    fn advice(self) -> &'static str {
        match self {
            ReservationClass::Begin => {
                "; nothing was begun. Operations in progress can still be completed. To begin new ones, free disk space, raise \
                 Options::max_size, or shorten the retention"
            }
            ReservationClass::Finish => {
                "; nothing was recorded, and the operation is still in doubt. Free disk space, raise Options::max_size, or \
                 forget keys that are no longer needed, and try again"
            }
            ReservationClass::Forget => {
                "; nothing was forgotten. Free disk space or raise Options::max_size, and try again"
            }
            ReservationClass::Move => "; free disk space or raise Options::max_size",
        }
    }
}

/// Why a reservation was refused.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) class: ReservationClass,
    pub(crate) cause: CannotGrow,
}

impl NoRoom {
    /// Adds a second reason why the file is full.
    pub(crate) fn with_reason(self, other: &str) -> NoRoom {
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
    /// There is no space on the disk, in a quota, or below a limit on the file's size.
    Full(String),
    /// The operating system failed in another way. This does not poison the log, because the slot that was being filled
    /// holds nothing, and is not used before all of it is filled and synced.
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

    /// Reserves `bytes` if there is space for them in addition to all outstanding reservations. Returns false if there is not.
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

    /// Like [`SpaceReservations::reserve`], but returns a guard that gives the space back when it is dropped.
    pub(crate) fn reservation(self: &Arc<Self>, bytes: u64, class: ReservationClass) -> Option<Reservation> {
        self.reserve(bytes, class).then(|| Reservation { reservations: Arc::clone(self), bytes })
    }

    /// Reserves `bytes`, or as much of them as there is space for.
    pub(crate) fn reserve_at_most(self: &Arc<Self>, bytes: u64) -> Reservation {
        let mut state = self.state.lock();
        let bytes = self.guaranteed(&state.free_space).saturating_sub(state.reserved_bytes).min(bytes);
        state.reserved_bytes += bytes;
        Reservation { reservations: Arc::clone(self), bytes }
    }

    /// Returns an empty reservation.
    pub(crate) fn empty_reservation(self: &Arc<Self>) -> Reservation {
        Reservation { reservations: Arc::clone(self), bytes: 0 }
    }

    /// Releases a reservation whose record will not be written.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        debug_assert!(state.reserved_bytes >= bytes, "more was given back than was reserved");
        state.reserved_bytes = state.reserved_bytes.saturating_sub(bytes);
    }

    /// Sets the free space after a write, which used up `written_bytes` of reservations. Both change in one step:
    /// otherwise another thread could reserve space that is already used, or be refused space that is free.
    ///
    /// Returns true if the next slot should be filled now, because new begins have at most one segment's worth left. At the latest
    /// this is the case while the last `batch_limit_bytes` of a segment are being written, which reservations never count on. The
    /// syncs of the next segment switch make that slot usable, so no thread waits for it.
    pub(crate) fn update(&self, free_space: FreeSpace, written_bytes: u64) -> bool {
        let mut state = self.state.lock();
        state.free_space = free_space;
        debug_assert!(state.reserved_bytes >= written_bytes, "more was written than was reserved");
        state.reserved_bytes = state.reserved_bytes.saturating_sub(written_bytes);
        let kept = self.kept_for_moving(&state.free_space, state.reserved_bytes, ReservationClass::Begin);
        self.guaranteed(&state.free_space) <= state.reserved_bytes + kept + self.guaranteed_per_segment()
    }

    /// Lowers the free space and returns true, if the rest still covers all reservations and what `class` must leave free.
    /// Otherwise returns false and changes nothing.
    ///
    /// The caller may give the space away only after this returns true. Otherwise another thread could reserve the space in
    /// between.
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

    /// The bytes for frames and footer entries in an empty segment.
    pub(crate) fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.state.lock().reserved_bytes
    }

    /// The bytes that are guaranteed to fit in an empty segment, however records are batched.
    fn guaranteed_per_segment(&self) -> u64 {
        self.usable_bytes - self.batch_limit_bytes
    }

    /// The bytes that are guaranteed to fit in the log without growing the file.
    fn guaranteed(&self, free_space: &FreeSpace) -> u64 {
        free_space.tail_bytes.saturating_sub(self.batch_limit_bytes)
            + free_space.free_slots * self.guaranteed_per_segment()
    }

    /// The bytes that `class` must leave free for moves, in addition to `reserved_bytes`. Segments that these reservations will fill
    /// count as full already, because once they are full it is too late to keep space for moving their records.
    fn kept_for_moving(&self, free_space: &FreeSpace, reserved_bytes: u64, class: ReservationClass) -> u64 {
        let beyond_tail =
            reserved_bytes.saturating_sub(free_space.tail_bytes.saturating_sub(self.batch_limit_bytes));
        let full_segments = free_space.full_segments + beyond_tail.div_ceil(self.guaranteed_per_segment());
        let slots = 1 + free_space.free_slots + free_space.full_segments;
        full_segments.min(class.kept_segments(slots)) * self.guaranteed_per_segment()
    }
}

/// A guard over reserved space, which it gives back when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the space back"]
pub(crate) struct Reservation {
    reservations: Arc<SpaceReservations>,
    bytes: u64,
}

impl Reservation {
    /// Hands the space over to records that are about to be appended, and returns its size. The log subtracts it from the
    /// outstanding reservations once they are written.
    pub(crate) fn spend(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// Moves all of the space into a new reservation, and leaves this one empty.
    pub(crate) fn split_all(&mut self) -> Reservation {
        self.split(self.bytes)
    }

    /// Adds the space of another reservation of the same log.
    pub(crate) fn merge(&mut self, other: Reservation) {
        debug_assert!(Arc::ptr_eq(&self.reservations, &other.reservations), "both are of the same log");
        self.bytes += other.spend();
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves `bytes` of the space, or all of it if there is less, into a new reservation.
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

    fn reservations(free_space: FreeSpace) -> SpaceReservations {
        let reservations = SpaceReservations::new(SEGMENT, LIMIT);
        reservations.update(free_space, 0);
        reservations
    }

    #[test]
    fn reservations_never_exceed_what_is_guaranteed_to_fit() {
        let log = reservations(FreeSpace { tail_bytes: USABLE, free_slots: 3, full_segments: 0 });
        let mut reserved = 0;
        while log.reserve(1_000, ReservationClass::Begin) {
            reserved += 1_000;
        }
        // The reservations fill two segments, and two more are kept for moving the records that will be in them.
        let sure = 2 * (USABLE - LIMIT);
        assert!(reserved <= sure && reserved + 1_000 > sure, "{reserved} of {sure}");
    }

    #[test]
    fn each_class_leaves_its_number_of_segments_free() {
        let worth = USABLE - LIMIT;
        let log = reservations(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        assert!(!log.reserve(8, ReservationClass::Begin));
        assert!(log.reserve(worth, ReservationClass::Finish));
        assert!(!log.reserve(8, ReservationClass::Finish));
        assert!(log.reserve(worth, ReservationClass::Forget));
        assert!(!log.reserve(8, ReservationClass::Forget));
        assert!(log.reserve(worth, ReservationClass::Move));
        assert!(!log.reserve(8, ReservationClass::Move));
        log.give_back(3 * worth);
        assert_eq!(log.reserved_bytes(), 0);
    }

    #[test]
    fn in_a_small_log_finish_and_forget_share_a_segment_at_no_cost_to_begins() {
        let worth = USABLE - LIMIT;
        for (free_slots, full_segments) in [(2, 1), (2, 2)] {
            let log = reservations(FreeSpace { tail_bytes: 0, free_slots, full_segments });
            assert!(!log.reserve(8, ReservationClass::Begin));
            assert!(log.reserve(worth / 2, ReservationClass::Finish));
            assert!(log.reserve(worth - worth / 2, ReservationClass::Forget));
            assert!(!log.reserve(8, ReservationClass::Finish) && !log.reserve(8, ReservationClass::Forget));
            assert!(log.reserve(worth, ReservationClass::Move));
        }
        let log = reservations(FreeSpace { tail_bytes: LIMIT + 8, free_slots: 2, full_segments: 2 });
        assert!(
            log.reserve(8, ReservationClass::Begin),
            "a begin has to leave only two segments free in a small store"
        );
    }

    #[test]
    fn a_log_of_six_slots_keeps_a_segment_for_each_class() {
        let large = reservations(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 2 });
        assert!(!large.reserve(8, ReservationClass::Begin), "three segments are kept");
        let large = reservations(FreeSpace { tail_bytes: USABLE, free_slots: 1, full_segments: 4 });
        assert!(!large.reserve(8, ReservationClass::Finish), "two segments are kept");
        let small = reservations(FreeSpace { tail_bytes: USABLE, free_slots: 1, full_segments: 3 });
        assert!(small.reserve(8, ReservationClass::Finish), "one segment is kept");
    }

    #[test]
    fn a_full_error_says_what_was_not_done_and_how_to_make_space() {
        for (class, advice) in [
            (ReservationClass::Begin, "nothing was begun"),
            (ReservationClass::Finish, "still in doubt"),
            (ReservationClass::Forget, "nothing was forgotten"),
            (ReservationClass::Move, "free disk space"),
        ] {
            let no_room = NoRoom { class, cause: CannotGrow::Full("the disk is full".to_owned()) };
            let error =
                no_room.with_reason("max_size is reached").into_error(Path::new("s.once")).to_string();
            for part in ["the disk is full, and max_size is reached; ", advice, "raise Options::max_size"] {
                assert!(error.contains(part), "{class:?}: {error}");
            }
        }
    }

    #[test]
    fn only_a_lack_of_space_is_reported_as_full() {
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
    fn nothing_is_kept_for_moving_before_a_segment_is_full() {
        let log = reservations(FreeSpace { tail_bytes: USABLE, free_slots: 0, full_segments: 0 });
        assert!(log.reserve(USABLE - LIMIT, ReservationClass::Begin));
    }

    #[test]
    fn space_is_given_up_only_if_every_reservation_stays_covered() {
        let log = reservations(FreeSpace { tail_bytes: 0, free_slots: 2, full_segments: 0 });
        assert!(log.reserve(USABLE - LIMIT + 8, ReservationClass::Move));
        assert!(
            !log.lower(FreeSpace { tail_bytes: 0, free_slots: 1, full_segments: 0 }, ReservationClass::Move)
        );
        log.give_back(8);
        assert!(
            log.lower(FreeSpace { tail_bytes: 0, free_slots: 1, full_segments: 0 }, ReservationClass::Move)
        );
        assert!(!log.reserve(USABLE, ReservationClass::Move), "the lower free space counts from then on");
        let full = reservations(FreeSpace { tail_bytes: 0, free_slots: 3, full_segments: 5 });
        let less = FreeSpace { tail_bytes: 0, free_slots: 2, full_segments: 5 };
        assert!(
            !full.lower(less, ReservationClass::Begin),
            "the space that a begin must leave free may not be lowered either"
        );
        assert!(full.lower(less, ReservationClass::Finish));
    }

    #[test]
    fn space_is_scarce_when_begins_have_one_segment_or_less() {
        // With no full segment, nothing is kept for moves. A tail of `USABLE + 8` bytes guarantees slightly more than one segment's
        // worth.
        let worth = USABLE - LIMIT;
        let is_scarce = |log: &SpaceReservations| {
            let free_space = log.state.lock().free_space;
            log.update(free_space, 0)
        };
        let enough = reservations(FreeSpace { tail_bytes: USABLE + 8, free_slots: 0, full_segments: 0 });
        assert!(!is_scarce(&enough), "more than a segment");
        assert!(enough.reserve(8, ReservationClass::Begin));
        assert!(is_scarce(&enough), "just a segment");
        enough.give_back(8);
        assert!(!is_scarce(&enough));
        let kept = |free_slots| reservations(FreeSpace { tail_bytes: 0, free_slots, full_segments: 5 });
        assert!(is_scarce(&kept(4)) && !is_scarce(&kept(5)), "three segments are kept");
        let reserved = reservations(FreeSpace { tail_bytes: LIMIT + 8, free_slots: 5, full_segments: 5 });
        assert!(reserved.reserve(worth, ReservationClass::Begin));
        assert!(!is_scarce(&reserved));
        assert!(reserved.reserve(8, ReservationClass::Begin));
        assert!(is_scarce(&reserved));
        assert_eq!((reserved.reserved_bytes(), reserved.usable_bytes()), (worth + 8, USABLE));
    }
}
