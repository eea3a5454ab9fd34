//! Concurrency tests: [shuttle](https://docs.rs/shuttle) explores how the threads of a scenario interleave.
//!
//! ```text
//! RUSTFLAGS="--cfg oncekey_shuttle" cargo test --lib shuttle -- --nocapture
//! ```
//!
//! Each scenario runs under two schedulers. The random scheduler continues with a random thread at each step. The other (PCT)
//! gives the threads priorities and changes them at a few steps, which finds the rare interleavings in which one thread makes
//! no progress for a long time. If all threads are waiting and none can wake another, shuttle reports a deadlock.
//!
//! A scenario that passes shows little unless it can fail. So each scenario has planted bugs, in the code itself ([`planted`])
//! or in its model, and for each bug there is a test that requires the scenario to find it.
//!
//! To step through a failure, pass the schedule that shuttle prints to `shuttle::replay`.
//!
//! [`planted`]: crate::planted

#[cfg(feature = "bincode")]
mod applied;
mod batches;
mod closing;
mod commit;
mod crash;
mod engine;
mod flights;
mod index;
mod outbox;
mod renewal;
mod scan;
mod steps;
mod unfinished;
mod waits;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::planted::{Bug, plant};

/// The number of times that the PCT scheduler changes priorities in an interleaving. Most races need one or two changes.
const PRIORITY_CHANGES: usize = 3;

/// The number of interleavings of a scenario to run under each scheduler. The environment variable
/// `ONCEKEY_SHUTTLE_ITERATIONS` overrides it.
#[derive(Debug, Clone, Copy)]
struct Effort(usize);

/// The effort for a model that takes few steps.
const THOROUGH: Effort = Effort(5_000);
/// The effort for a whole store, which each interleaving creates anew.
const WHOLE_STORE: Effort = Effort(2_000);
/// The factor by which the search for a planted bug may run more interleavings. It ends at the first failure.
const SEARCH_FACTOR: usize = 10;

impl Effort {
    fn iterations(self) -> usize {
        let chosen = std::env::var("ONCEKEY_SHUTTLE_ITERATIONS").ok();
        chosen.and_then(|count| count.parse().ok()).unwrap_or(self.0)
    }
}

fn config(failure_persistence: FailurePersistence) -> Config {
    let mut config = Config::new();
    // The calls of a store need more stack than shuttle's default of 32 KiB.
    config.stack_size = 512 << 10;
    config.max_steps = MaxSteps::FailAfter(200_000);
    config.failure_persistence = failure_persistence;
    config
}

/// Runs the scenario under both schedulers and prints the number of interleavings.
fn explore(name: &str, effort: Effort, scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let iterations = effort.iterations();
    let random = Runner::new(RandomScheduler::new(iterations), config(FailurePersistence::Print));
    let tried = random.run(scenario.clone());
    let priorities =
        Runner::new(PctScheduler::new(PRIORITY_CHANGES, iterations), config(FailurePersistence::Print));
    let tried = tried + priorities.run(scenario);
    println!("{name}: {tried} interleavings, no failure");
}

/// Runs a scenario with a planted bug and requires it to fail with a message that contains one of `expected`. If the scenario
/// fails for a different reason, it has not found this bug.
fn must_find(
    name: &str,
    effort: Effort,
    expected: &[&str],
    scenario: impl Fn() + Send + Sync + Clone + 'static,
) {
    let iterations = effort.iterations() * SEARCH_FACTOR;
    let tried = Arc::new(AtomicUsize::new(0));
    let counted = {
        let tried = Arc::clone(&tried);
        move || {
            tried.fetch_add(1, Ordering::Relaxed);
            scenario();
        }
    };
    let failure = catch_unwind(AssertUnwindSafe(|| {
        let random = Runner::new(RandomScheduler::new(iterations), config(FailurePersistence::None));
        random.run(counted.clone());
        let priorities =
            Runner::new(PctScheduler::new(PRIORITY_CHANGES, iterations), config(FailurePersistence::None));
        priorities.run(counted.clone());
    }));
    let tried = tried.load(Ordering::Relaxed);
    let message = match failure {
        Ok(()) => panic!("{name} was not found in {tried} interleavings"),
        Err(payload) => message_of(&*payload),
    };
    let first_line = message.lines().next().unwrap_or_default();
    assert!(
        expected.iter().any(|expected| message.contains(expected)),
        "{name} should fail with one of {expected:?}, but failed with: {message}"
    );
    println!("{name}: found in interleaving {tried}: {first_line}");
}

/// Plants a bug in the code itself and calls [`must_find`]. Shuttle runs all threads of a scenario on the thread of the test,
/// so the bug is planted for all of these threads and for no other test.
fn must_find_planted(
    bug: Bug,
    effort: Effort,
    expected: &[&str],
    scenario: impl Fn() + Send + Sync + Clone + 'static,
) {
    plant(Some(bug));
    must_find(&format!("{bug:?}"), effort, expected, scenario);
    plant(None);
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// The message with which shuttle fails if all threads are waiting.
const DEADLOCK: &str = "deadlock";
