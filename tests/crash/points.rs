//! Checks that a crash at any step of any script loses nothing that was acknowledged, and that another crash during the
//! recovery that follows loses nothing either.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::{SimulatedDisk, verify_simulated};
use oncekey::{Durability, Fingerprint};
use proptest::prelude::any;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use crate::common::random::{Random, number_from, seed};
use crate::scripts::{any_act, scripts};
use crate::world::{Act, World, grow, options, power_loss_at};

/// The counts of trials that a test prints.
#[derive(Default)]
pub struct Counts {
    scripts: AtomicU64,
    crash_points: AtomicU64,
    images: AtomicU64,
    recovery_crashes: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn print(&self, test: &str) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{test}: {} scripts, {} crash points, {} images, {} crashes during recovery",
            get(&self.scripts),
            get(&self.crash_points),
            get(&self.images),
            get(&self.recovery_crashes)
        );
    }
}

/// Returns disk images that a crash may leave: all of them if there are at most `count` (or 8), otherwise `count`, of which one
/// loses every undecided write, one keeps every undecided write, and the others are random.
pub fn images(disk: &SimulatedDisk, random: &mut Random, count: usize) -> Vec<SimulatedDisk> {
    let mut choices = Vec::new();
    let _ = disk.crash(|of| {
        choices.push(of);
        0
    });
    let all: Option<usize> =
        choices.iter().try_fold(1_usize, |all, of| all.checked_mul(*of).filter(|all| *all <= 64));
    if let Some(all) = all.filter(|all| *all <= count.max(8)) {
        return (0..all)
            .map(|image| {
                let mut rest = image;
                disk.crash(|of| {
                    let choice = rest % of;
                    rest /= of;
                    choice
                })
            })
            .collect();
    }
    let mut images = vec![disk.crash(|_| 0), disk.crash(|of| of - 1)];
    while images.len() < count {
        // Half of the images lose nearly all sectors, or keep nearly all, because most bugs show if a single sector differs.
        let bias = random.below(4);
        images.push(disk.crash(|of| match bias {
            0 if random.below(8) != 0 => 0,
            1 if random.below(8) != 0 => of - 1,
            _ => random.below(of),
        }));
    }
    images
}

/// Creates the store again after its creation failed or was interrupted. Checks that a later power loss loses nothing that
/// the new store acknowledged, although the first creation may have left pages that the operating system considers clean
/// and that are not on the medium.
pub fn create_again(disk: &SimulatedDisk, random: &mut Random) -> Result<(), String> {
    let clock = oncekey::ManualClock::new(crate::world::START_MS);
    let open = |disk: &SimulatedDisk| options(&clock).open_simulated(disk).map_err(|error| error.to_string());
    let store = open(disk)?;
    store.record("k", Fingerprint::NONE, b"r").map_err(|error| error.to_string())?;
    drop(store);
    for image in images(disk, random, 3) {
        let seen = open(&image)?.get("k").map_err(|error| error.to_string())?;
        if seen.result() != Some(b"r") {
            return Err(format!("a record was lost in the power loss: {seen:?}"));
        }
    }
    Ok(())
}

/// Opens an image of a crash and checks it. If `depth` is above 0, first crashes recovery at every `stride`-th of its steps,
/// and checks the images of those crashes with a `depth` that is lower by 1.
fn check_image(
    world: &World,
    image: &SimulatedDisk,
    depth: u32,
    stride: u64,
    random: &mut Random,
    counts: &Counts,
) -> Result<(), String> {
    Counts::add(&counts.images);
    check_is_sound(world, image)?;
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
            Counts::add(&counts.recovery_crashes);
            for again in images(&trial, random, 3) {
                check_image(world, &again, depth - 1, stride * 3, random, counts)
                    .map_err(|why| format!("after a crash at step {step} of recovery: {why}"))?;
            }
            step += stride;
        }
    }
    // A power loss implies a reboot. The checks below stay in the same boot.
    if random.below(3) == 0 {
        world.check_after_reboot(image)?;
    }
    // A store that is created while it is read is no store yet.
    let reader = options(&world.clock).open_reader_simulated(&SimulatedDisk::holding(image.bytes()));
    let store = options(&world.clock)
        .open_simulated(image)
        .map_err(|error| format!("the image does not open: {error}"))?;
    world.check(&store)?;
    match reader {
        Ok(reader) => crate::world::check_beside(&reader, &store)?,
        Err(oncekey::Error::NotAStore { .. }) => {}
        Err(error) => return Err(format!("a reader does not open the image: {error}")),
    }
    world.exercise(&store)?;
    store.close().map_err(|error| format!("the store does not close: {error}"))?;
    let store = options(&world.clock)
        .durability(Durability::Buffered)
        .open_simulated(image)
        .map_err(|error| format!("the image does not open a second time: {error}"))?;
    world.check(&store).map_err(|why| format!("opened a second time: {why}"))?;
    grow(&store)
}

/// Checks that `verify` reports nothing in a store that a crash left, and writes nothing.
fn check_is_sound(world: &World, image: &SimulatedDisk) -> Result<(), String> {
    let steps = image.steps();
    let verification =
        verify_simulated(image).map_err(|error| format!("the image cannot be checked: {error}"))?;
    if image.steps() != steps {
        return Err("the check wrote to the image".into());
    }
    let is_right = verification.opens && (verification.is_sound() || world.has_rot());
    if is_right {
        Ok(())
    } else {
        Err(format!("nothing is damaged, and the check found {:?}", verification.faults))
    }
}

/// How thoroughly each script is tested.
pub struct Effort {
    /// The number of images to check at each crash point.
    pub images: usize,
    /// The distance between the crash points after which recovery is crashed as well.
    pub recovery_every: u64,
}

/// Returns the number of writes and syncs of a script on a healthy disk.
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

/// Crashes a script at one step of the disk and checks the images.
fn crash_at(script: &[Act], step: u64, seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    let disk = SimulatedDisk::new();
    power_loss_at(&disk, step);
    let mut random = Random(seed ^ step);
    Counts::add(&counts.crash_points);
    let Ok(mut world) = World::new(disk.clone()) else {
        // The crash interrupted the creation. Nothing was acknowledged, but it must be possible to create the store again.
        for image in images(&disk, &mut random, effort.images) {
            create_again(&image, &mut random)
                .map_err(|why| format!("after the creation was interrupted at step {step}: {why}"))?;
        }
        return Ok(());
    };
    let failed = script.iter().position(|act| world.perform(*act).is_err());
    world.die();
    let during = failed.map_or("the end".to_owned(), |at| format!("act {at}, {:?}", script[at]));
    let depth = if step.is_multiple_of(effort.recovery_every) { 2 } else { 0 };
    for image in images(&disk, &mut random, effort.images) {
        check_image(&world, &image, depth, 5, &mut random, counts)
            .map_err(|why| format!("power lost at step {step}, during {during}, seed {seed}: {why}"))?;
    }
    Ok(())
}

/// Crashes a script at each step of the disk.
pub fn crash_everywhere(script: &[Act], seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    Counts::add(&counts.scripts);
    for step in 0..steps_of(script) {
        crash_at(script, step, seed, effort, counts)?;
    }
    Ok(())
}

/// Returns the factor by which to multiply the number of trials: `ONCEKEY_EFFORT`, or 1.
pub fn effort_factor() -> u32 {
    number_from("ONCEKEY_EFFORT").map_or(1, |factor| u32::try_from(factor).unwrap())
}

#[test]
fn a_crash_at_any_step_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let effort = Effort { images: 6 * effort_factor() as usize, recovery_every: 12 };
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

/// `ONCEKEY_SEED=n ONCEKEY_EFFORT=m cargo test --all-features --test crash random` tries m times as many scripts with
/// another seed.
#[test]
fn a_crash_in_a_random_script_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let config = Config { cases: 120 * effort_factor(), failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let rng = TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let scripts = (proptest::collection::vec(any_act(), 5..60), any::<u64>());
    let outcome = runner.run(&scripts, |(script, seed)| {
        Counts::add(&counts.scripts);
        let steps = steps_of(&script);
        let mut random = Random(seed);
        let effort = Effort { images: 3, recovery_every: 9 };
        for _ in 0..6 {
            let step = random.next() % steps;
            crash_at(&script, step, seed, &effort, &counts).map_err(TestCaseError::fail)?;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("ONCEKEY_SEED={} cargo test --all-features --test crash random: {failure}", seed());
    }
    counts.print("random scripts");
}
