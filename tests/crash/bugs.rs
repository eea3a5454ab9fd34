//! Does the harness see? Storage bugs, planted one at a time, each of which it must find.

use std::panic::{AssertUnwindSafe, catch_unwind};

use oncekey::simulation::{Bug, DiskFault, plant};

use crate::common::random::seed;
use crate::damage::a_few_damages;
use crate::faults::{fault_at, steps};
use crate::points::{Counts, Effort, crash_everywhere, scripts};
use crate::space;

/// What finds things, in the order of what it costs.
fn hunt() -> Result<(), String> {
    space::expiries_are_noticed_in_time()?;
    space::a_compaction_counts_exactly()?;
    space::releases_go_on()?;
    for (name, script) in scripts() {
        let effort = Effort { images: 6, again_every: 10 };
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
    a_few_damages()?;
    space::retentions_of_every_order_of_magnitude(seed())
}

/// How the hunt found the bug; None if it did not.
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

/// A test for each bug, which the hunt must find.
macro_rules! finds {
    ($hunt:ident: $($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            let how = $crate::bugs::found(Bug::$bug, $hunt).expect("the harness did not see it");
            println!("{:?}: {}", Bug::$bug, how.chars().take(300).collect::<String>());
        }
    )*};
}

pub(crate) use finds;

finds! { hunt:
    a_sync_that_is_skipped_is_found: SyncSkipped,
    a_synced_to_that_is_too_high_is_found: SyncedToTooHigh,
    a_synced_to_that_is_one_frame_stale_is_found: SyncedToOneFrameStale,
    a_slot_that_is_reused_early_is_found: SlotReusedEarly,
    a_move_without_the_flight_is_found: MoveWithoutFlight,
    a_torn_tail_that_is_kept_is_found: TornTailKept,
    an_index_ahead_of_the_disk_is_found: IndexBeforeDurability,
    a_tombstone_that_is_dropped_is_found: TombstoneDropped,
    a_clock_that_is_not_clamped_is_found: ClockNotClamped,
    a_stale_frame_that_is_accepted_is_found: StaleFrameAccepted,
    a_footer_that_is_not_checked_is_found: FooterUnchecked,
    a_poison_that_is_ignored_is_found: PoisonIgnored,
    a_path_that_is_not_compared_is_found: PathNotCompared,
    expiries_that_are_all_noticed_as_late_are_found: ExpiriesTooCoarse,
    a_count_that_forgets_expiry_is_found: CountForgetsExpiry,
    a_released_record_that_is_kept_is_found: ReleasedKept,
    an_unreadable_record_that_is_dropped_is_found: UnreadableDropped,
    an_unreadable_record_that_is_made_whole_is_found: UnreadableRechecksummed,
    an_unreadable_record_of_no_key_is_found: UnreadableKeyHashLost,
}
