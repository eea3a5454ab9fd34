//! Proves that a crash at any step of any history loses nothing that was acknowledged, and neither does another crash
//! during the opening that follows.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::SimulatedDisk;
use oncekey::{Durability, Fingerprint};
use proptest::prelude::any;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use crate::common::random::{Random, number_from, seed};
use crate::scripts::{any_act, scripts};
use crate::world::{Act, World, grow, options, power_loss_at};

/// What was tried, for the line that a test prints.
#[derive(Default)]
pub struct Counts {
    histories: AtomicU64,
    points: AtomicU64,
    images: AtomicU64,
    again: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn print(&self, what: &str) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{what}: {} histories, {} crash points, {} images, {} crashes during recovery",
            get(&self.histories),
            get(&self.points),
            get(&self.images),
            get(&self.again)
        );
    }
}

/// Images that a crash may leave: all of them if they are few, otherwise the two extremes and random ones.
pub fn images(disk: &SimulatedDisk, random: &mut Random, how_many: usize) -> Vec<SimulatedDisk> {
    let mut choices = Vec::new();
    let _ = disk.crash(|of| {
        choices.push(of);
        0
    });
    let all: Option<usize> =
        choices.iter().try_fold(1_usize, |all, of| all.checked_mul(*of).filter(|all| *all <= 64));
    if let Some(all) = all.filter(|all| *all <= how_many.max(8)) {
        return (0..all)
            .map(|image| {
                let mut rest = image;
                disk.crash(|of| {
                    let decided = rest % of;
                    rest /= of;
                    decided
                })
            })
            .collect();
    }
    let mut images = vec![disk.crash(|_| 0), disk.crash(|of| of - 1)];
    while images.len() < how_many {
        // In half of the images nearly every sector is lost, or nearly every one kept: what goes wrong in practice is
        // that a single sector differs.
        let bias = random.below(4);
        images.push(disk.crash(|of| match bias {
            0 if random.below(8) != 0 => 0,
            1 if random.below(8) != 0 => of - 1,
            _ => random.below(of),
        }));
    }
    images
}

/// Creates the store again after a creation that failed or was cut short, and checks that a power loss takes nothing
/// that the second creation acknowledged. The first one may have left pages that the system considers clean and that
/// are not on the medium.
pub fn create_again(disk: &SimulatedDisk, random: &mut Random) -> Result<(), String> {
    let clock = oncekey::ManualClock::new(crate::world::START_MS);
    let open = |disk: &SimulatedDisk| options(&clock).open_simulated(disk).map_err(|error| error.to_string());
    let store = open(disk)?;
    store.record("k", Fingerprint::NONE, b"r").map_err(|error| error.to_string())?;
    drop(store);
    for image in images(disk, random, 3) {
        let seen = open(&image)?.get("k").map_err(|error| error.to_string())?;
        if seen.result() != Some(b"r") {
            return Err(format!("lost in the power loss: {seen:?}"));
        }
    }
    Ok(())
}

/// Opens an image and checks it. Before that, crashes the opening at every `stride`-th of its steps and checks those
/// images too, down to `depth` crashes in a row.
fn check_image(
    world: &World,
    image: &SimulatedDisk,
    depth: u32,
    stride: u64,
    random: &mut Random,
    counts: &Counts,
) -> Result<(), String> {
    Counts::add(&counts.images);
    if depth > 0 {
        let steps = {
            let trial = SimulatedDisk::holding(image.bytes());
            drop(options(&world.clock).open_simulated(&trial));
            trial.steps()
        };
        let mut step = random.next() % stride;
        while step < steps {
            let trial = SimulatedDisk::holding(image.bytes());
            power_loss_at(&trial, step);
            drop(options(&world.clock).open_simulated(&trial));
            Counts::add(&counts.again);
            for again in images(&trial, random, 3) {
                check_image(world, &again, depth - 1, stride * 3, random, counts)
                    .map_err(|why| format!("after a crash at step {step} of the opening: {why}"))?;
            }
            step += stride;
        }
    }
    // A power loss implies a reboot. The checks below stay in the same boot.
    if random.below(3) == 0 {
        world.check_after_reboot(image)?;
    }
    let store = options(&world.clock)
        .open_simulated(image)
        .map_err(|error| format!("the image does not open: {error}"))?;
    world.check(&store)?;
    world.exercise(&store)?;
    store.close().map_err(|error| format!("the store does not close: {error}"))?;
    let store = options(&world.clock)
        .durability(Durability::Buffered)
        .open_simulated(image)
        .map_err(|error| format!("opened again: {error}"))?;
    world.check(&store).map_err(|why| format!("opened again: {why}"))?;
    grow(&store)
}

/// How many crashes of a history are tried.
pub struct Effort {
    /// The images that are checked at a crash point.
    pub images: usize,
    /// The distance between crash points at which the opening that follows is crashed as well.
    pub again_every: u64,
}

/// The number of writes and syncs of a history on a healthy disk.
fn steps_of(script: &[Act]) -> u64 {
    let disk = SimulatedDisk::new();
    let mut world = World::new(disk.clone()).unwrap();
    for act in script {
        world.perform(*act).unwrap_or_else(|error| panic!("{act:?} on a healthy disk: {error}"));
    }
    world.drop_leases();
    world.check(world.store()).unwrap();
    world.die();
    disk.steps()
}

/// Crashes a history at one step of its disk and checks the images.
fn crash_at(script: &[Act], step: u64, seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    let disk = SimulatedDisk::new();
    power_loss_at(&disk, step);
    let mut random = Random(seed ^ step);
    Counts::add(&counts.points);
    let Ok(mut world) = World::new(disk.clone()) else {
        // The crash came during the creation: nothing was acknowledged, but it must be possible to create the store
        // again.
        for image in images(&disk, &mut random, effort.images) {
            create_again(&image, &mut random)
                .map_err(|why| format!("after a creation that was cut short at step {step}: {why}"))?;
        }
        return Ok(());
    };
    let failed = script.iter().position(|act| world.perform(*act).is_err());
    world.die();
    let during = failed.map_or("the end".to_owned(), |at| format!("act {at}, {:?}", script[at]));
    let depth = if step.is_multiple_of(effort.again_every) { 2 } else { 0 };
    for image in images(&disk, &mut random, effort.images) {
        check_image(&world, &image, depth, 5, &mut random, counts)
            .map_err(|why| format!("power lost at step {step}, during {during}, seed {seed}: {why}"))?;
    }
    Ok(())
}

/// Crashes a history at each step of its disk.
pub fn crash_everywhere(script: &[Act], seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    Counts::add(&counts.histories);
    for step in 0..steps_of(script) {
        crash_at(script, step, seed, effort, counts)?;
    }
    Ok(())
}

/// `ONCEKEY_EFFORT`, or 1: by how much the number of trials is multiplied.
pub fn effort_factor() -> u32 {
    number_from("ONCEKEY_EFFORT").map_or(1, |factor| u32::try_from(factor).unwrap())
}

#[test]
fn a_crash_at_any_step_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let effort = Effort { images: 6 * effort_factor() as usize, again_every: 12 };
    let scripts = scripts();
    std::thread::scope(|scope| {
        let threads: Vec<_> = scripts
            .iter()
            .map(|(name, script)| {
                let (counts, effort) = (&counts, &effort);
                scope.spawn(move || {
                    crash_everywhere(script, seed(), effort, counts).map_err(|why| format!("{name}: {why}"))
                })
            })
            .collect();
        let failures: Vec<_> =
            threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
    counts.print("scripts");
}

/// `ONCEKEY_SEED=n ONCEKEY_EFFORT=m cargo test --all-features --test crash random` tries m times as many histories with
/// another seed.
#[test]
fn a_crash_in_a_random_history_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let config = Config { cases: 120 * effort_factor(), failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let rng = TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let histories = (proptest::collection::vec(any_act(), 5..60), any::<u64>());
    let outcome = runner.run(&histories, |(script, seed)| {
        Counts::add(&counts.histories);
        let steps = steps_of(&script);
        let mut random = Random(seed);
        let effort = Effort { images: 3, again_every: 9 };
        for _ in 0..6 {
            let step = random.next() % steps;
            crash_at(&script, step, seed, &effort, &counts).map_err(TestCaseError::fail)?;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("ONCEKEY_SEED={} cargo test --all-features --test crash random: {failure}", seed());
    }
    counts.print("random histories");
}
