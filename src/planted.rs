//! Bugs that tests plant to prove that a harness finds them.
//!
//! Code that a bug would change calls [`planted`]; any module may. Tests plant a bug with [`plant`], in their own
//! thread. Without the feature `__simulation` or `--cfg oncekey_shuttle`, [`planted`] is a constant `false`, and every
//! such branch compiles to nothing.

#![cfg_attr(
    not(all(feature = "__simulation", not(oncekey_shuttle))),
    allow(dead_code, unreachable_pub, reason = "the calls of `planted` remain, the bugs do not")
)]

/// A bug to plant. Each is a mistake that has been made in this project or in another store.
///
/// Two sets of tests find them: `tests/crash` on a simulated disk, and `shuttle_tests` by exploring interleavings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// A sync is reported as done without calling the disk.
    SyncSkipped,
    /// A frame's `synced_to` claims that the frame itself is durable.
    SyncedToTooHigh,
    /// A frame carries the `synced_to` of the frame before it.
    SyncedToOneFrameStale,
    /// A slot is reused before a durable header moves the head past its segment.
    SlotReusedEarly,
    /// Reclaiming moves a record without holding the flight of its key (the per-key lock).
    MoveWithoutFlight,
    /// Recovery leaves the bytes past the end of the log in place instead of zeroing them.
    TornTailKept,
    /// The index points to a record before the record is durable.
    IndexBeforeDurability,
    /// Reclaiming drops a completed key's record once the result has expired, instead of keeping a tombstone.
    TombstoneDropped,
    /// Store time starts from the wall clock, even if the log contains a later time.
    ClockNotClamped,
    /// Recovery accepts a frame from an earlier use of its slot.
    StaleFrameAccepted,
    /// A footer is used without checking its checksum.
    FooterUnchecked,
    /// A failed sync is treated as a successful one.
    PoisonIgnored,
    /// A batch that must be synced is acknowledged as soon as it is written.
    AcknowledgedBeforeSync,
    /// A sync is credited with bytes that were written while it was running.
    SyncCoversTooMuch,
    /// Only one of the followers of a finished batch is woken.
    OnlyOneFollowerWoken,
    /// A leader that finishes does not wake a waiter to lead next.
    NextLeaderNotWoken,
    /// Poisoning the log does not wake the followers of batches that will now never be written.
    PoisonedBatchesNotWoken,
    /// A thread enters a flight that another thread holds.
    FlightNotExclusive,
    /// A thread that leaves a flight does not wake a thread that is waiting to enter it.
    FlightWaitersNotWoken,
    /// A thread that starts to wait for a change does not check whether the claim that it saw has already changed.
    SeenClaimNotRechecked,
    /// A change of a key wakes only one of the threads that are waiting for it.
    OnlyOneWaiterWoken,
    /// The end of a claim wakes no waiter.
    ClaimWaitersNotWoken,
    /// A waiter that timed out stays counted as waiting.
    TimedOutWaiterStillCounted,
    /// A thread that was already queued for the writer uses it although a write has failed half-way.
    FailedWriterReused,
    /// When a store is opened in the same boot, its time follows the wall clock instead of the boot-time clock.
    WallClockInSameBoot,
    /// The clock mark that is written when a store is opened keeps the wall clock reading of an earlier mark.
    MarkKeepsOldWall,
    /// The clock mark that is written when a store is opened keeps the boot of an earlier mark and updates only store
    /// time and wall clock.
    MarkKeepsOldBoot,
    /// Store time follows a small step of the wall clock at once instead of gradually.
    ClockStepNotSlewed,
    /// Opening a store after a clean close keeps the open count but restarts the counter of changes, so versions
    /// repeat.
    CounterRestarted,
    /// Recovery trusts a close mark although the header notes that the store was opened again after it.
    NotedOpeningIgnored,
    /// Versions are handed out before the opening frame is synced.
    OpeningNotSynced,
    /// A close does not wait for calls in progress, which then write after the close mark.
    CallsInsideIgnored,
    /// A close counts claims before it blocks new calls, but not again afterwards.
    ClaimsCountedOnce,
    /// The calls that a close blocked are not woken when it ends.
    BlockedCallsNotWoken,
    /// A close unlocks the file while reads are in progress.
    ReadersNotWaitedFor,
    /// The head and tail of the log are read in the order in which the head can overtake the tail.
    SpanReadBackwards,
    /// The store does not check whether its path still leads to the open file.
    PathNotCompared,
    /// A caller gets a doubt only if the log has space for another attempt.
    DoubtNeedsReservation,
    /// Ending a doubt must leave as many segments free as a begin must.
    FinishNeedsBeginReserve,
    /// A side effect that reconciliation found applied is run again if another caller has resolved its doubt meanwhile.
    AppliedEffectRunAgain,
    /// A reconciled result overwrites the record of another attempt.
    AppliedOverwritesAnother,
    /// Every expiry goes into a bucket as coarse as the coarsest in use.
    ExpiriesTooCoarse,
    /// The exact count of dead bytes counts expired records as live.
    CountForgetsExpiry,
    /// Reclaiming moves a released key's record, to keep its attempt count, instead of dropping it.
    ReleasedKept,
    /// An unreadable record is dropped with its segment.
    UnreadableDropped,
    /// An unreadable record gets a valid checksum when it is moved.
    UnreadableRechecksummed,
    /// The key hash of a carried unreadable record is computed from its (empty) key instead of read from the carrier.
    UnreadableKeyHashLost,
    /// A caller waits for a flight without limit, even if its patience is limited.
    FlightWaitUnbounded,
    /// A caller without patience is not woken when the thread in the flight starts disk I/O.
    ImpatientNotWoken,
    /// A lease becomes visible only after the index points to its record.
    LeaseAfterIndex,
    /// A lookup reads the index only once, before the claim.
    IndexReadOnce,
    /// A call made inside the closure of `run` waits for that same attempt.
    WaitsForItself,
    /// Callers that wait with a deadline for a running sync are not woken when it ends.
    SyncWaitersNotWoken,
    /// Events are emitted where they occur, while the call holds locks.
    EventUnderLocks,
    /// An index table keeps its memory after its keys are removed.
    TablesNeverShrink,
    /// A renewal revives a lease that ended or was taken over.
    RenewedAfterTakeover,
    /// A renewal does not take the flight, so it races with a thread that takes the lease over.
    RenewedWithoutFlight,
    /// A renewal to an earlier deadline does not wake waiters, which sleep until the old one.
    RenewalWaitersNotWoken,
    /// A syncer that first wakes its few followers does not nudge the next one when it gives up its role.
    NextSyncerNotWokenAfterFew,
    /// A thread whose lingering is interrupted keeps the role of the syncer.
    LingererKeepsRole,
    /// A thread that lingers while the queue is poisoned does not wake the callers that wait for it with a deadline.
    LingererWakesNobody,
    /// A completed operation stays in the table of unfinished ones.
    FinishedStaysUnfinished,
    /// A note gets a version of its own, so that the attempt which wrote it is no longer the last.
    NoteFencesItsLease,
    /// A later record of a key is mistaken for the one that was at the same address before.
    RecordKnownByAddress,
    /// The records of an atomic batch go into two frames, so a crash can keep the first half.
    AtomicBatchInTwoFrames,
    /// The leases that the answers of a batch have not given out stay alive when the answers are dropped.
    BatchLeaseLeaked,
    /// The answers of a batch are in the order of the keys' hashes and not in that of its entries.
    BatchAnsweredOutOfOrder,
    /// If there is no space for a begin, the whole batch is refused, and completions with it.
    FullBeginRefusesBatch,
    /// A batch enters the flights of its keys in the order of its entries.
    BatchFlightsUnordered,
    /// The attempts whose leases a batch never gave out are not released on disk.
    UnstartedNotReleased,
    /// A synced entry of a batch is answered from an unsynced record of an earlier entry.
    AnswerRestsOnUnsynced,
    /// Recovery takes the steps of an earlier operation of a key for those of the present one, so that they outlive it.
    StepsOutliveOperation,
    /// After a takeover, the claims of the earlier attempt on steps still count.
    StepClaimsOutliveTakeover,
    /// An attempt that was taken over can begin a step.
    StepBegunAfterTakeover,
    /// An operation is released although one of its steps is done or in doubt.
    ReleasedOverStep,
    /// An operation is completed although one of its steps is in progress or in doubt.
    CompletedOverDoubtfulStep,
    /// The next attempt at an operation does not find the input of the first one.
    InputLostByNextAttempt,
    /// A lookup of a key does not compare the kind of the record, and takes that of a step for an answer.
    StepAnswersForKey,
    /// Reclaiming drops the record of a step whose operation is unfinished.
    LiveStepDropped,
    /// Reclaiming moves the records of steps whose operation has ended.
    DeadStepKept,
    /// A scan ends at the tail that the log had when the scan began, so it misses keys that were moved behind it.
    ScanEndsAtOldTail,
    /// Forgetting a scope stops after one walk over the store.
    ForgetScopeWalksOnce,
    /// A close in a callback of a long call waits for that call.
    CloseWaitsForItself,
    /// A reader reports a fault that it has found in one survey only.
    FaultOfOneSurvey,
    /// The outbox hands out a message while one with a lower id is being committed.
    MessageOvertakes,
    /// The outbox hands out a message that is not durable yet.
    MessageNotDurable,
    /// Reclaiming moves a message that is acknowledged, which makes it pending again.
    MessageOutlivesAcknowledgement,
    /// A call that finds its operation completed writes its messages once more.
    ReplayEmits,
    /// A completion by `reconcile` writes the result without the messages.
    ReconcileLosesMessages,
    /// Reclaiming drops a message whose operation has expired.
    MessageExpires,
    /// An acknowledgement needs free space, instead of the space that is reserved for it.
    AcknowledgementNeedsSpace,
    /// A check opens the file for writing, and writes to it.
    VerifyOpensToWrite,
    /// In a copy that may have forgotten operations, a key that it does not know is absent.
    ForgottenKeyAbsent,
    /// A copy does not say that it is one.
    CopyWithoutFlag,
    /// A copy continues with the open count of the original, so fencing tokens are given again.
    CopyKeepsOpenCount,
    /// The slot of a segment that is yet to be copied is reused.
    CopiedSlotReused,
    /// A repair takes a key for what an earlier record says, although a later one may be lost.
    RepairTrustsEarlierRecord,
    /// A repair ignores the records that make a key absent.
    RepairResurrects,
    /// A caller that goes on with an operation begins it anew if it was forgotten meanwhile.
    ForgottenJobResumed,
    /// A step may run in the closure of another step.
    StepInStep,
    /// In a copy that may have forgotten steps, a step that it does not know just runs.
    ForgottenStepRuns,
    /// In a copy that may have forgotten attempts, an operation is stopped although a later attempt may be forgotten.
    ForgottenAttemptStopped,
    /// A repaired operation has an earlier origin than its steps, so they are not found by name.
    RepairKeepsEarlierOrigin,
}

#[cfg(any(feature = "__simulation", oncekey_shuttle))]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
    static PREVIOUS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Plants a bug in all code that this thread runs from now on. `None` removes the bug.
#[cfg(any(feature = "__simulation", oncekey_shuttle))]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
    PREVIOUS.set(0);
}

/// Whether `bug` is planted in this thread.
#[cfg(any(feature = "__simulation", oncekey_shuttle))]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Returns false, because no bug can be planted in this build.
#[cfg(not(any(feature = "__simulation", oncekey_shuttle)))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

/// Returns `value`, or the value of the previous call if `bug` is planted.
pub(crate) fn one_late(bug: Bug, value: u64) -> u64 {
    #[cfg(any(feature = "__simulation", oncekey_shuttle))]
    if planted(bug) {
        return PREVIOUS.replace(value);
    }
    let _ = bug;
    value
}
