//! Checks how the file grows: a buffered store reserves space instead of writing zeroes, and each slot is ready before the
//! log needs it.

use oncekey::Durability;
use oncekey::simulation::SimulatedDisk;

use crate::world::options;

#[test]
fn a_buffered_store_reserves_space_where_others_write_zeroes() {
    let writes = |durability, reserves| {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        // A store writes at least a sixteenth of a segment of zeroes at a time.
        let options = options(&clock).segment_size(1 << 20).durability(durability);
        let store = options.open_simulated(&disk).unwrap();
        for number in 0..100 {
            let key = format!("{number}");
            store.operation(&key).durability(Durability::Buffered).record(&[7; 12_000]).unwrap();
        }
        (store.stats().file_bytes >> 20, disk.steps())
    };
    let (slots, min_steps) = writes(Durability::Buffered, true);
    assert!(slots >= 3, "the test must fill several slots, not {slots}");
    let zeroed = [(Durability::Sync, true), (Durability::Sync, false), (Durability::Buffered, false)];
    for (durability, reserves) in zeroed {
        let (zeroed_slots, steps) = writes(durability, reserves);
        assert_eq!(zeroed_slots, slots);
        // Without the first slot, which every store makes when it is created.
        assert!(
            steps >= min_steps + (slots - 1) * 12,
            "{durability:?}, {reserves}: {steps} steps, {min_steps} with reserved space"
        );
    }
}

/// If a slot is not ready when the log rotates into it, the store makes the slot at that moment, which takes one more sync.
#[test]
fn slots_are_ready_before_the_log_needs_them() {
    use Durability::{Buffered, Sync};
    let kinds = [
        (Sync, Sync, false),
        (Sync, Buffered, false),
        (Buffered, Buffered, false),
        (Buffered, Buffered, true),
    ];
    let cases = [100, 1_000, 12_000].map(|result_bytes| kinds.map(|kind| (kind, result_bytes)));
    for ((durability, records_durability, reserves), result_bytes) in cases.into_iter().flatten() {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        let store = options(&clock).durability(durability).open_simulated(&disk).unwrap();
        let (slots_before, syncs_before) = (store.stats().file_bytes >> 16, disk.syncs());
        let mut records = 0;
        while store.stats().file_bytes >> 16 < slots_before + 20 {
            let key = format!("{records}");
            store.operation(&key).durability(records_durability).record(&vec![7; result_bytes]).unwrap();
            records += 1;
        }
        // A segment's header takes one sync. If records are buffered, another one before it makes them durable.
        let (record_syncs, syncs_per_segment) =
            if records_durability == Sync { (records, 1) } else { (0, 2) };
        let other_syncs = disk.syncs() - syncs_before - record_syncs;
        assert!(
            other_syncs <= 22 * syncs_per_segment,
            "{durability:?}, {records_durability:?}, {reserves}: {other_syncs} syncs other than those of records, for 20 segments \
             of results of {result_bytes} bytes"
        );
    }
}
