//! A crash at every single step of histories that cover every path, and again during what follows.

use std::sync::atomic::{AtomicU64, Ordering};

use oncekey::simulation::SimulatedDisk;
use oncekey::{Durability, Fingerprint};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use crate::common::random::{Random, number_from, seed};
use crate::openings::check_after_reboot;
use crate::world::{Act, World, exercise, grow, options, power_loss_at};

/// Scripts, each named by what it covers. Results of 12,000 bytes fill a segment with five records.
pub fn scripts() -> Vec<(&'static str, Vec<Act>)> {
    use Act::*;
    let mut scripts = vec![
        (
            "every verb",
            vec![
                Begin(0),
                Complete(0, 10),
                Begin(1),
                Release(1),
                Begin(1),
                Abandon(1),
                Resolve(1, 0),
                Begin(2),
                Abandon(2),
                Resolve(2, 2),
                Complete(2, 700),
                Record(3, 0),
                Forget(3),
                Begin(4),
                Set(4, 30),
                Set(5, 30),
                Begin(6),
                Abandon(6),
                Resolve(6, 1),
                Record(3, 5),
                Forget(0),
                Begin(0),
            ],
        ),
        (
            "close and drop",
            vec![
                Record(0, 100),
                Reopen,
                Record(1, 100),
                Begin(2),
                Drop,
                Resolve(2, 0),
                Reopen,
                Reopen,
                Begin(3),
                Complete(3, 600),
                Drop,
                Record(4, 1),
                Reopen,
            ],
        ),
        (
            "buffered and synced",
            vec![
                RecordBuffered(0, 600),
                RecordBuffered(1, 600),
                Record(2, 10),
                RecordBuffered(3, 10),
                Sync,
                RecordBuffered(4, 1_200),
                RecordBuffered(5, 10),
                RecordBuffered(6, 600),
                Drop,
                RecordBuffered(7, 10),
                RecordBuffered(8, 600),
                Begin(9),
                RecordBuffered(10, 10),
            ],
        ),
    ];
    scripts.push((
        "time, and a wall clock that is set back",
        vec![
            Record(0, 100),
            Advance(50_000),
            Record(1, 100),
            ReopenBack(40_000),
            Record(2, 100),
            Advance(10_001),
            Record(0, 100),
            ReopenBack(3_600_000),
            Advance(40_000),
            Record(0, 700),
            Begin(1),
            Drop,
            Record(3, 10),
        ],
    ));
    scripts.push((
        "a path that leads elsewhere",
        vec![
            Record(0, 100),
            Begin(1),
            Begin(2),
            Begin(3),
            Abandon(3),
            RecordBuffered(4, 100),
            Replace,
            Begin(5),
            Record(6, 10),
            Forget(0),
            Resolve(3, 0),
            Set(7, 10),
            Complete(1, 600),
            Release(2),
            Sync,
            Compact,
            Reopen,
            Record(6, 10),
            Begin(8),
            RecordBuffered(9, 700),
            Replace,
            Complete(8, 12_000),
            Drop,
            Resolve(3, 2),
            Complete(3, 5),
        ],
    ));
    let mut growth = Vec::new();
    for key in 0..18 {
        growth.extend([Begin(key), Complete(key, 12_000)]);
    }
    growth.push(Reopen);
    scripts.push(("segment switch and growth", growth));
    let mut buffered = vec![DropToBuffered];
    for key in 0..16 {
        buffered.extend([Begin(key), Complete(key, 12_000)]);
        match key {
            5 => buffered.push(Sync),
            9 => buffered.extend([Record(20, 10), Forget(0), Begin(21), Abandon(21), Set(22, 600)]),
            13 => buffered.extend([DropToBuffered, Resolve(21, 0)]),
            _ => {}
        }
    }
    scripts.push(("a buffered store that grows", buffered));
    let mut longer = vec![Record(20, 12_000), Begin(21), DropToLonger, Resolve(21, 0)];
    longer.extend((0..14).map(|key| Record(key, 12_000)));
    longer.extend([Advance(110_000), DropToLonger, Compact, Record(20, 10), Reopen, Compact]);
    scripts.push(("a file that is made longer", longer));
    // Begun early and ended while their segment is being retired.
    let mut reclaiming = vec![Begin(20), Record(21, 50), Begin(22), Abandon(22)];
    reclaiming.extend((11..19).map(Begin));
    for turn in 0..4 {
        for key in 0..10 {
            reclaiming.push(if turn % 2 == 0 { Record(key, 12_000) } else { RecordBuffered(key, 12_000) });
        }
        reclaiming.push(Advance(if turn == 1 { 60_000 } else { 35_000 }));
        for key in 0..10 {
            reclaiming.push(Forget(key));
            if turn == 2 && key > 1 {
                reclaiming.push(Complete(9 + key, 6_000));
            }
        }
    }
    reclaiming.extend([Complete(20, 100), Reopen, Record(0, 12_000)]);
    scripts.push(("reclaiming and slots used again", reclaiming));
    let mut compaction = vec![Begin(20), Record(21, 50)];
    for key in 0..14 {
        compaction.push(Record(key, 12_000));
    }
    for key in 0..11 {
        compaction.push(Forget(key));
    }
    compaction.extend([Compact, Record(0, 12_000), Complete(20, 100), Compact, Drop, Compact, Record(1, 40)]);
    scripts.push(("compaction and a shorter file", compaction));
    // One of each kind rots, before it is moved and after, and is given up or stays.
    let mut rot =
        vec![Record(10, 300), Begin(11), Abandon(11), Begin(12), Begin(13), Release(13), Record(14, 300)];
    rot.extend([Record(15, 0), Record(16, 300), RecordFor(17, 300, 200_000), Begin(18), Abandon(18)]);
    rot.extend((0..7).map(|key| Record(key, 12_000)));
    rot.extend([Rot(10, 7), Rot(11, 1), Rot(12, 3), Rot(13, 0), Rot(15, 4), Rot(16, 2), Rot(17, 5)]);
    rot.extend([Forget(16), Begin(10), Set(15, 4), Set(15, 1), Forget(12), Begin(13)]);
    for turn in 0..3 {
        rot.extend((0..7).map(Forget));
        rot.extend((0..7).map(|key| Record(key, 12_000)));
        rot.extend([Compact, Begin(17), Rot(14, 7), Rot(18, turn), Rot(17, 6 + turn)]);
    }
    rot.extend([
        Reopen,
        Forget(10),
        Set(11, 1),
        Record(14, 10),
        Drop,
        Compact,
        Advance(110_000),
        Record(14, 10),
    ]);
    rot.extend([Advance(90_000), Record(17, 10), Begin(18), Forget(18), Begin(18), Compact]);
    scripts.push(("records that rot", rot));
    scripts
}

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

/// The images that a crash may leave: all of them where they are few, the two extremes and random ones where not.
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
        // Sometimes nearly everything is lost or kept: a single sector out of line is what goes wrong in practice.
        let bias = random.below(4);
        images.push(disk.crash(|of| match bias {
            0 if random.below(8) != 0 => 0,
            1 if random.below(8) != 0 => of - 1,
            _ => random.below(of),
        }));
    }
    images
}

/// After a creation that failed or was cut short the next process begins again, and what it then acknowledges is not lost
/// with what the first one left: pages that look clean and are not on the medium.
pub fn begin_anew(disk: &SimulatedDisk, random: &mut Random) -> Result<(), String> {
    let clock = oncekey::ManualClock::new(crate::world::START_MS);
    let open = |disk: &SimulatedDisk| options(&clock).open_simulated(disk).map_err(|error| error.to_string());
    let store = open(disk)?;
    store.record("k", Fingerprint::NONE, b"r").map_err(|error| error.to_string())?;
    drop(store);
    for image in images(disk, random, 3) {
        let seen = open(&image)?.get("k").map_err(|error| error.to_string())?;
        if seen.result() != Some(b"r") {
            return Err(format!("lost with the power: {seen:?}"));
        }
    }
    Ok(())
}

/// Opens an image and checks it; crashes the opening itself at every `stride`-th of its steps, `depth` deep.
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
    // A power loss is a reboot; to the other checks it is the end of a process.
    if random.below(3) == 0 {
        check_after_reboot(world, image)?;
    }
    let store = options(&world.clock)
        .open_simulated(image)
        .map_err(|error| format!("a crash made it unreadable: {error}"))?;
    world.check(&store)?;
    exercise(world, &store)?;
    store.close().map_err(|error| format!("it does not close: {error}"))?;
    let store = options(&world.clock)
        .durability(Durability::Buffered)
        .open_simulated(image)
        .map_err(|error| format!("opened again: {error}"))?;
    world.check(&store).map_err(|why| format!("opened again: {why}"))?;
    grow(&store)
}

#[test]
fn a_buffered_store_reserves_what_another_fills_with_zeroes() {
    let writes = |durability, reserves| {
        let disk = SimulatedDisk::new();
        disk.set_reserves(reserves);
        let clock = oncekey::ManualClock::new(crate::world::START_MS);
        // Zeroes are written a sixteenth of a segment at a time, or somewhat more.
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
        // One slot is there from the beginning.
        assert!(
            more >= least + (slots - 1) * 12,
            "{durability:?}, {reserves}: {more} steps, and not {least}"
        );
    }
}

/// A slot that is not ready when the log comes to it is made there and then, and costs a sync of its own.
#[test]
fn slots_are_ready_before_they_are_needed_be_the_records_small_or_large() {
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
        // The header of a segment has one, and one before it is for what nobody has synced yet.
        let (of_records, of_a_segment) = if records_durability == Sync { (records, 1) } else { (0, 2) };
        let further = disk.syncs() - syncs_before - of_records;
        assert!(
            further <= 22 * of_a_segment,
            "{durability:?}, {records_durability:?}, {reserves}: {further} further syncs for 20 segments of results of \
             {result_bytes} bytes"
        );
    }
}

/// How hard a history is tried.
pub struct Effort {
    pub images: usize,
    /// Every so many crash points, the opening after it is crashed as well.
    pub again_every: u64,
}

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

fn crash_at(script: &[Act], step: u64, seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    let disk = SimulatedDisk::new();
    power_loss_at(&disk, step);
    let mut random = Random(seed ^ step);
    Counts::add(&counts.points);
    let Ok(mut world) = World::new(disk.clone()) else {
        // During the creation: there is nothing to lose, but it must be possible to begin again.
        for image in images(&disk, &mut random, effort.images) {
            begin_anew(&image, &mut random)
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

pub fn crash_everywhere(script: &[Act], seed: u64, effort: &Effort, counts: &Counts) -> Result<(), String> {
    Counts::add(&counts.histories);
    for step in 0..steps_of(script) {
        crash_at(script, step, seed, effort, counts)?;
    }
    Ok(())
}

pub fn factor() -> u32 {
    number_from("ONCEKEY_EFFORT").map_or(1, |factor| u32::try_from(factor).unwrap())
}

#[test]
fn a_crash_at_any_step_of_any_path_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let effort = Effort { images: 6 * factor() as usize, again_every: 12 };
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

fn any_act() -> impl Strategy<Value = Act> {
    let key = 0..6_u8;
    let size = prop_oneof![Just(0_u16), Just(30), Just(700), Just(12_000)];
    prop_oneof![
        4 => key.clone().prop_map(Act::Begin),
        4 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::Complete(key, size)),
        1 => key.clone().prop_map(Act::Release),
        1 => key.clone().prop_map(Act::Abandon),
        3 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::Record(key, size)),
        3 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::RecordBuffered(key, size)),
        3 => key.clone().prop_map(Act::Forget),
        2 => (key.clone(), 0..3_u8).prop_map(|(key, how)| Act::Resolve(key, how)),
        1 => (key, size).prop_map(|(key, size)| Act::Set(key, size)),
        1 => Just(Act::Sync),
        1 => Just(Act::Compact),
        1 => Just(Act::Replace),
        1 => Just(Act::Reopen),
        1 => Just(Act::Drop),
        1 => Just(Act::DropToBuffered),
        1 => Just(Act::DropToLonger),
        1 => prop_oneof![Just(20_000_u32), Just(70_000)].prop_map(Act::ReopenBack),
        1 => prop_oneof![Just(20_000_i64), Just(-70_000), Just(8 * 86_400_000)].prop_map(Act::Step),
        1 => prop_oneof![Just(1_u32), Just(30_000)].prop_map(Act::Reboot),
        2 => prop_oneof![Just(1_u32), Just(30_000), Just(100_000)].prop_map(Act::Advance),
        2 => (0..6_u8, prop_oneof![Just(700_u16), Just(12_000)], 0..12_u32)
            .prop_map(|(key, size, magnitude)| Act::RecordFor(key, size, 10_u64.pow(magnitude))),
        2 => (0..6_u8, 0..8_u8).prop_map(|(key, place)| Act::Rot(key, place)),
    ]
}

/// `ONCEKEY_SEED=n ONCEKEY_EFFORT=m cargo test --all-features --test crash random` tries m times as many with another seed.
#[test]
fn a_crash_anywhere_in_random_histories_loses_nothing_that_was_acknowledged() {
    let counts = Counts::default();
    let config = Config { cases: 120 * factor(), failure_persistence: None, ..Config::default() };
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
