//! Checks the harness itself: plants bugs of the kind that storage engines have had, one at a time, and requires that the
//! harness finds each.

use std::panic::{AssertUnwindSafe, catch_unwind};

use oncekey::simulation::{Bug, DiskFault, plant};

use crate::common::random::seed;
use crate::damage::check_some_damage;
use crate::faults::{fault_at, steps};
use crate::points::{Counts, Effort, crash_everywhere};
use crate::scripts::scripts;
use crate::space;

/// Runs the checks that may find a planted bug, the cheapest first.
fn hunt() -> Result<(), String> {
    space::check_expiries_are_noticed_in_time()?;
    space::check_compaction_counts_exactly()?;
    space::check_releases_never_fill_the_file()?;
    for (name, script) in scripts() {
        let effort = Effort { images: 6, recovery_every: 10 };
        crash_everywhere(&script, seed(), &effort, &Counts::default())
            .map_err(|why| format!("{name}: {why}"))?;
    }
    for (name, script) in scripts() {
        for step in 0..steps(&script, oncekey::simulation::SimulatedDisk::steps) {
            for fault in [DiskFault::Error, DiskFault::ErrorFromNowOn] {
                fault_at(&script, step, fault).map_err(|why| format!("{name}: {why}"))?;
            }
        }
    }
    check_some_damage()?;
    space::check_mixed_retentions(seed())
}

/// Plants a bug and runs `hunt`. Returns what `hunt` reported, or `None` if it missed the bug.
pub fn found(bug: Bug, hunt: impl FnOnce() -> Result<(), String>) -> Option<String> {
    plant(Some(bug));
    let outcome = catch_unwind(AssertUnwindSafe(hunt));
    plant(None);
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_default(),
            )
        }
    }
}

/// Defines a test for each bug, which passes if `$hunt` finds the bug.
macro_rules! finds {
    ($hunt:ident: $($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            let report = $crate::bugs::found(Bug::$bug, $hunt).expect("the harness missed the planted bug");
            println!("{:?}: {}", Bug::$bug, report.chars().take(300).collect::<String>());
        }
    )*};
}

pub(crate) use finds;

finds! { hunt:
    finds_a_skipped_sync: SyncSkipped,
    finds_a_synced_to_that_is_too_high: SyncedToTooHigh,
    finds_a_synced_to_that_is_one_frame_stale: SyncedToOneFrameStale,
    finds_a_slot_that_is_reused_early: SlotReusedEarly,
    finds_a_move_without_the_per_key_lock: MoveWithoutFlight,
    finds_a_torn_tail_that_is_kept: TornTailKept,
    finds_an_index_that_is_ahead_of_the_disk: IndexBeforeDurability,
    finds_a_dropped_tombstone: TombstoneDropped,
    finds_a_clock_that_is_not_clamped: ClockNotClamped,
    finds_an_accepted_stale_frame: StaleFrameAccepted,
    finds_an_unchecked_footer: FooterUnchecked,
    finds_an_ignored_poisoning: PoisonIgnored,
    finds_a_path_that_is_not_compared: PathNotCompared,
    finds_expiries_that_are_all_noticed_late: ExpiriesTooCoarse,
    finds_a_count_that_forgets_expiry: CountForgetsExpiry,
    finds_a_released_record_that_is_kept: ReleasedKept,
    finds_an_unreadable_record_that_is_dropped: UnreadableDropped,
    finds_an_unreadable_record_with_a_new_checksum: UnreadableRechecksummed,
    finds_an_unreadable_record_that_loses_its_key: UnreadableKeyHashLost,
    finds_a_finished_operation_that_stays_unfinished: FinishedStaysUnfinished,
    finds_a_note_that_fences_its_lease: NoteFencesItsLease,
}

/// Crashes everywhere in the scripts whose names begin with `name`.
fn hunt_in(name: &str) -> Result<(), String> {
    let scripts: Vec<_> = scripts().into_iter().filter(|(script, _)| script.starts_with(name)).collect();
    assert!(!scripts.is_empty(), "there is no script {name}");
    let effort = Effort { images: 4, recovery_every: 20 };
    let hunt = |(_, script): &(_, Vec<_>)| crash_everywhere(script, seed(), &effort, &Counts::default());
    scripts.iter().try_for_each(hunt)
}

/// Runs the checks that may find a bug of steps.
fn hunt_jobs() -> Result<(), String> {
    hunt_in("jobs")
}

#[test]
fn the_hunt_for_bugs_of_steps_finds_none_that_is_not_planted() {
    assert_eq!(hunt_jobs(), Ok(()));
}

finds! { hunt_jobs:
    finds_a_step_that_outlives_its_operation: StepsOutliveOperation,
    finds_an_operation_released_over_a_step: ReleasedOverStep,
    finds_an_operation_completed_over_a_doubtful_step: CompletedOverDoubtfulStep,
    finds_an_input_that_the_next_attempt_loses: InputLostByNextAttempt,
    finds_a_live_step_that_reclaiming_drops: LiveStepDropped,
}

/// Runs the checks that may find a bug of the outbox.
fn hunt_messages() -> Result<(), String> {
    hunt_in("messages")
}

#[test]
fn the_hunt_for_bugs_of_the_outbox_finds_none_that_is_not_planted() {
    assert_eq!(hunt_messages(), Ok(()));
}

finds! { hunt_messages:
    finds_a_message_that_is_not_durable: MessageNotDurable,
    finds_a_message_that_outlives_its_acknowledgement: MessageOutlivesAcknowledgement,
    finds_a_replay_that_emits: ReplayEmits,
    finds_a_message_that_expires: MessageExpires,
}
