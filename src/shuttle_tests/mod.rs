//! How threads interleave, explored by [shuttle](https://docs.rs/shuttle) instead of waited for.
//!
//! ```text
//! RUSTFLAGS="--cfg oncekey_shuttle" cargo test --lib shuttle -- --nocapture
//! ```
//!
//! Every scenario is run under two schedulers. One goes on with any thread at every step; the other (PCT) gives
//! threads priorities and changes them at few places, which is how rare orders are met that need a thread to stand
//! still for long. A wait that nobody ends is a deadlock, and shuttle reports it.
//!
//! A scenario that finds nothing proves little unless it would have found something. So each has bugs planted, in the
//! code itself where there is a place for them or in the scenario's own model, and must find every one of them.
//!
//! What failed is run again, step by step, with `shuttle::replay` and the schedule that the failure prints.

#[cfg(feature = "bincode")]
mod applied;
mod closing;
mod commit;
mod crash;
mod engine;
mod flights;
mod index;
mod renewal;
mod waits;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::planted::{Bug, plant};

/// Places at which the second scheduler changes priorities: most races need one or two.
const PRIORITY_CHANGES: usize = 3;

/// How many interleavings of a scenario are tried under each scheduler, unless the variable of the environment
/// `ONCEKEY_SHUTTLE_ITERATIONS` says otherwise.
#[derive(Debug, Clone, Copy)]
struct Effort(usize);

/// For a model of a few steps.
const THOROUGH: Effort = Effort(5_000);
/// For a whole store, of which each must be made first.
const WHOLE_STORE: Effort = Effort(2_000);
/// A bug may take this many times as many until it is found: the search ends when it is.
const PERSEVERANCE: usize = 10;

impl Effort {
    fn iterations(self) -> usize {
        let asked = std::env::var("ONCEKEY_SHUTTLE_ITERATIONS").ok();
        asked.and_then(|count| count.parse().ok()).unwrap_or(self.0)
    }
}

fn config(failure_persistence: FailurePersistence) -> Config {
    let mut config = Config::new();
    // A store's calls go deeper than the models that shuttle's 32 KiB are meant for.
    config.stack_size = 512 << 10;
    config.max_steps = MaxSteps::FailAfter(200_000);
    config.failure_persistence = failure_persistence;
    config
}

/// Runs the scenario under both schedulers and says how many interleavings that were.
fn explore(name: &str, effort: Effort, scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let iterations = effort.iterations();
    let random = Runner::new(RandomScheduler::new(iterations), config(FailurePersistence::Print));
    let tried = random.run(scenario.clone());
    let priorities =
        Runner::new(PctScheduler::new(PRIORITY_CHANGES, iterations), config(FailurePersistence::Print));
    let tried = tried + priorities.run(scenario);
    println!("{name}: {tried} interleavings, no failure");
}

/// Runs a scenario that has a bug planted and demands that it fails, for one of the reasons `expected`: a scenario
/// that fails for another reason has not found this bug.
fn must_find(
    name: &str,
    effort: Effort,
    expected: &[&str],
    scenario: impl Fn() + Send + Sync + Clone + 'static,
) {
    let iterations = effort.iterations() * PERSEVERANCE;
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
        "{name} was to be seen as one of {expected:?}, but what was seen is: {message}"
    );
    println!("{name}: found in interleaving {tried}: {first_line}");
}

/// The same for a bug that the code itself has a place for. Shuttle runs all threads of a scenario on this one, so that
/// what is planted here is planted for all of them, and for no other test.
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

/// What shuttle says when all threads wait.
const DEADLOCK: &str = "deadlock";
