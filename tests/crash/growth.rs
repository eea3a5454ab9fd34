//! Proves when the file grows and what that costs: a buffered store reserves space without writing it, and slots are
//! ready before the log needs them.

use oncekey::Durability;
use oncekey::simulation::SimulatedDisk;

use crate::world::options;

#[test]
fn a_buffered_store_reserves_space_where_others_write_zeroes() {
    let writes = |durability, reserves| {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        // A store writes zeroes a sixteenth of a segment at a time, or somewhat more.
        let options = options(&clock).segment_size(1 << 20).durability(durability);
        let store = options.open_simulated(&disk).unwrap();
        for number in 0..100 {
            let key = format!("{number}");
            store.operation(&key).durability(Durability::Buffered).record(&[7; 12_000]).unwrap();
        }
        (store.stats().file_bytes >> 20, disk.steps())
    };
    let (slots, least) = writes(Durability::Buffered, true);
    assert!(slots >= 3, "{slots}");
    let zeroed = [(Durability::Sync, true), (Durability::Sync, false), (Durability::Buffered, false)];
    for (durability, reserves) in zeroed {
        let (as_many, more) = writes(durability, reserves);
        assert_eq!(as_many, slots);
        // The creation makes the first slot.
        assert!(
            more >= least + (slots - 1) * 12,
            "{durability:?}, {reserves}: {more} steps, only {least} with reserved space"
        );
    }
}

/// A slot that is not ready when the log rotates into it is made at that moment, which costs a further sync.
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
        // A segment's header takes one sync. Before it, buffered records take another.
        let (of_records, of_a_segment) = if records_durability == Sync { (records, 1) } else { (0, 2) };
        let further = disk.syncs() - syncs_before - of_records;
        assert!(
            further <= 22 * of_a_segment,
            "{durability:?}, {records_durability:?}, {reserves}: {further} further syncs for 20 segments of results of \
             {result_bytes} bytes"
        );
    }
}
