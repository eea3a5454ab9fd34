//! What a job of many steps costs.

use std::cell::Cell;

use crate::log::reader::tests::RECORDS_READ;
use crate::{Durability, Options, Store};

const RESULT_BYTES: usize = 10_000;

/// A store in memory that holds the records of a large job, so that nothing is reclaimed meanwhile.
fn store() -> Store {
    Options::new().durability(Durability::Buffered).min_size(64 << 20).open_in_memory().unwrap()
}

/// Runs a job of this many steps, which stops before its last one unless it is `finished`. Returns how often a step ran.
fn run(store: &Store, steps: u32, finished: bool) -> u32 {
    let ran = Cell::new(0);
    let outcome = store.operation("job").rerun().run(|job| {
        for number in 0..steps {
            let step = job.step(format!("item-{number}")).run(|_| {
                ran.set(ran.get() + 1);
                Ok::<_, String>(vec![7_u8; RESULT_BYTES])
            });
            step.map_err(|error| error.to_string())?;
        }
        if finished { Ok(()) } else { Err("stop".to_owned()) }
    });
    assert_eq!(outcome.is_ok(), finished);
    ran.get()
}

/// The number of records that are read to resume a job with this many finished steps, and to complete it.
fn records_read(steps: u32) -> u64 {
    let store = store();
    assert_eq!(run(&store, steps, false), steps);
    RECORDS_READ.set(0);
    assert_eq!(run(&store, steps, true), 0, "every step is done");
    RECORDS_READ.get()
}

#[test]
fn a_job_is_resumed_in_time_linear_in_its_steps() {
    for steps in [100, 1_000] {
        let read = records_read(steps);
        // One for each step, and a few for the job itself.
        assert!((u64::from(steps)..=u64::from(steps) + 8).contains(&read), "{steps} steps: {read} records");
        println!("{steps} steps: {read} records read");
    }
}
