//! Bugs that tests plant, to see that the harness would find them. Without the feature `__simulation`, and outside of
//! the builds that explore interleavings, nothing is planted and nothing of this is compiled.

#![cfg_attr(
    not(all(feature = "__simulation", not(oncekey_shuttle))),
    allow(dead_code, unreachable_pub, reason = "the places that ask remain, the bugs do not")
)]

/// A bug that has been made in the past, here or elsewhere: first those of storage, which a simulated disk finds, then
/// those of concurrency, which exploring interleavings finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// A sync is acknowledged and not made.
    SyncSkipped,
    /// A frame says of itself that it is on disk.
    SyncedToTooHigh,
    /// A frame says what the one before it could have said.
    SyncedToOneFrameStale,
    /// A slot is used again before a durable header says that its segment is not needed.
    SlotReusedEarly,
    /// A record is moved while its key is being changed.
    MoveWithoutFlight,
    /// What a crash left behind the end of the log is neither written again nor zeroed.
    TornTailKept,
    /// The index says what is not on disk yet.
    IndexBeforeDurability,
    /// A key whose result has expired is dropped with it.
    TombstoneDropped,
    /// Store time starts from the wall clock, whatever the log has seen.
    ClockNotClamped,
    /// A frame of an earlier life of its slot counts.
    StaleFrameAccepted,
    /// A footer is believed without its checksum.
    FooterUnchecked,
    /// A sync that failed is taken for one that worked.
    PoisonIgnored,
    /// A batch that is to be synced is acknowledged when it is written.
    AcknowledgedBeforeSync,
    /// A sync counts for what was written while it was under way.
    SyncCoversTooMuch,
    /// Of those who wait for a batch, one is told that it is done.
    OnlyOneFollowerWoken,
    /// Nobody is asked to lead when somebody ends who did.
    NextLeaderNotWoken,
    /// Those who wait for a later batch are not told that there will be none.
    PoisonedBatchesNotWoken,
    /// A thread changes a key without asking whether another does.
    FlightNotExclusive,
    /// Who leaves a flight does not tell those who want to enter it.
    FlightWaitersNotWoken,
    /// Who waits for a change does not look whether the claim ended since.
    SeenClaimNotRechecked,
    /// Of those who wait for a change, one is told of it.
    OnlyOneWaiterWoken,
    /// The end of a claim is told to nobody.
    ClaimWaitersNotWoken,
    /// Who stopped waiting is counted as waiting for ever.
    TimeoutStillCounted,
    /// A thread that was let in before the writer failed half-way goes on writing with it.
    FailedWriterReused,
    /// An opening in the same boot goes by the wall clock.
    WallClockInSameBoot,
    /// The mark of an opening says what the wall clock was before.
    MarkKeepsOldWall,
    /// An opening writes no mark of its boot, only its store time and wall clock.
    MarkKeepsOldBoot,
    /// A small step of the wall clock is followed at once.
    ClockStepNotSlewed,
    /// An opening after a clean close keeps the open count and counts its changes from zero.
    CounterRestarted,
    /// A close mark is gone on from although an opening was noted in the header after it.
    NotedOpeningIgnored,
    /// Versions are given out before the opening's frame is synced.
    OpeningNotSynced,
    /// A close does not wait for the calls inside, which then write behind the close mark.
    CallsInsideIgnored,
    /// A close counts claims before it blocks new calls and not again afterwards.
    ClaimsCountedOnce,
    /// The calls that a close blocked are not woken when it is over.
    BlockedCallsNotWoken,
    /// A close lets go of the file while reads are under way.
    ReadersNotWaitedFor,
    /// The two ends of the log are read in the order in which the first may overtake the second.
    SpanReadBackwards,
    /// Whether the path still leads to the open file is not compared.
    PathNotCompared,
    /// A doubt is given only to a caller for whose next attempt there is room.
    DoubtNeedsReservation,
    /// What ends a doubt must leave as much as a begin.
    FinishNeedsBeginReserve,
    /// An act that was found to be applied is performed when its doubt has gone meanwhile.
    AppliedEffectRunAgain,
    /// A result that was found out is recorded over another attempt's.
    AppliedOverwritesAnother,
    /// Every expiry is noticed as late as the latest of them all may be.
    ExpiriesTooCoarse,
    /// Whoever counts exactly what is dead takes what has expired for live.
    CountForgetsExpiry,
    /// The record of a released key is moved when its segment is retired, for the count of attempts.
    ReleasedKept,
    /// A record that cannot be read is dropped with its segment.
    UnreadableDropped,
    /// A record that cannot be read is given a checksum that fits when it is moved.
    UnreadableRechecksummed,
    /// What a record that cannot be read was carried along in is taken for a record of the key that it does not have.
    UnreadableKeyHashLost,
    /// Whoever wants to change a key waits for the thread that does, as long as that takes.
    FlightWaitUnbounded,
    /// Whoever has no patience is not told that the thread that changes the key goes to the disk.
    ImpatientNotWoken,
    /// A lease is known only after the index points to its record.
    LeaseAfterIndex,
    /// Whoever looks asks the index once, before the claim.
    IndexReadOnce,
    /// A call from the closure of `run` waits for that very attempt.
    WaitsForItself,
    /// Whoever waits for a sync with a deadline is not told that it ended.
    SyncWaitersNotWoken,
    /// Events are emitted where they are caused, under whatever locks the call holds.
    EventUnderLocks,
    /// A table of the index keeps its memory when its keys leave.
    TablesNeverShrink,
    /// A renewal brings back a lease that was taken over or has ended.
    RenewedAfterTakeover,
    /// A renewal does not wait for a thread that is taking the lease over.
    RenewedWithoutFlight,
    /// A waiter sleeps until the old deadline of a lease that was given an earlier one.
    RenewalWaitersNotWoken,
}

#[cfg(any(feature = "__simulation", oncekey_shuttle))]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
    static EARLIER: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Plants a bug in everything that this thread does from now on; None: there is none any more.
#[cfg(any(feature = "__simulation", oncekey_shuttle))]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
    EARLIER.set(0);
}

/// Whether this bug is planted in this thread.
#[cfg(any(feature = "__simulation", oncekey_shuttle))]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Nothing is planted.
#[cfg(not(any(feature = "__simulation", oncekey_shuttle)))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

/// The value that this was called with the last time, if the bug is planted; else this one.
pub(crate) fn one_late(bug: Bug, value: u64) -> u64 {
    #[cfg(any(feature = "__simulation", oncekey_shuttle))]
    if planted(bug) {
        return EARLIER.replace(value);
    }
    let _ = bug;
    value
}
