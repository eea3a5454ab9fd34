//! Checks store time when a store is opened again: it is right for every combination of clocks in the two sessions, wherever
//! recovery crashes.
//!
//! Also checks that a store that refuses to open writes nothing, and that no crash makes a store give out a version twice.

use std::time::Duration;

use oncekey::simulation::{Bug, SimulatedDisk};
use oncekey::{
    CasOutcome, ClockJump, Durability, Error, Expected, Fingerprint, ManualClock, Next, Options, Store,
    Version,
};

use crate::bugs::finds;
use crate::common::random::{Random, number_from, seed};
use crate::points::{Counts, Effort, crash_everywhere, images};
use crate::world::{Act, START_MS, options, power_loss_at};

const SECOND_MS: i64 = 1_000;
const DAY_MS: i64 = 24 * 3_600 * SECOND_MS;
const NONE: Fingerprint = Fingerprint::NONE;

/// A store time and the machine's clocks at that time. `expected_store_ms` computes store time from these, independently
/// of the library.
#[derive(Debug, Clone, Copy)]
struct Moment {
    store_ms: i64,
    wall_ms: i64,
    boot: u32,
    boot_ms: i64,
}

/// A simulated machine. `boot` counts its boots.
struct Machine {
    clock: ManualClock,
    boot: u32,
}

impl Machine {
    fn new() -> Machine {
        Machine { clock: ManualClock::new(START_MS), boot: 1 }
    }

    fn snapshot(&self) -> Machine {
        Machine { clock: self.clock.snapshot(), ..*self }
    }

    fn moment(&self, store_ms: i64) -> Moment {
        let ms = |clock: u64| i64::try_from(clock).unwrap();
        Moment {
            store_ms,
            wall_ms: ms(self.clock.now_ms()),
            boot: self.boot,
            boot_ms: ms(self.clock.boot_time_ms()),
        }
    }

    fn step_wall_clock(&self, by_ms: i64) {
        self.clock.jump_wall(self.clock.now_ms().saturating_add_signed(by_ms));
    }

    fn apply(&mut self, between: Between) {
        let elapsed = Duration::from_millis(u64::try_from(between.elapsed_ms).unwrap());
        if between.reboots {
            self.boot += 1;
            self.clock.reboot(elapsed);
        } else {
            self.clock.advance(elapsed);
        }
        self.step_wall_clock(between.step_ms);
    }
}

/// What happens to a machine's clocks between two sessions.
#[derive(Debug, Clone, Copy)]
struct Between {
    reboots: bool,
    elapsed_ms: i64,
    /// A step of the wall clock.
    step_ms: i64,
}

/// Returns the store time of a session that begins at `now`, if `mark` is the last time on disk. Returns `None` if the store
/// must refuse to open.
fn expected_store_ms(mark: &Moment, now: &Moment, accept: Option<ClockJump>) -> Option<i64> {
    if mark.boot == now.boot && now.boot_ms >= mark.boot_ms {
        return Some(mark.store_ms + now.boot_ms - mark.boot_ms);
    }
    let advanced_ms = now.wall_ms - mark.wall_ms;
    if (-DAY_MS..=366 * DAY_MS).contains(&advanced_ms) || accept == Some(ClockJump::Elapsed) {
        return Some(mark.store_ms + advanced_ms.max(0));
    }
    accept.map(|_| mark.store_ms)
}

fn opened(disk: &SimulatedDisk, machine: &Machine, accept: Option<ClockJump>) -> Result<Store, Error> {
    let options = options(&machine.clock);
    accept.iter().fold(options, |options, jump| options.accept_clock_jump(*jump)).open_simulated(disk)
}

/// Opens the store and returns its store time. Returns `None` if the store refuses the clock, which must leave the disk
/// unchanged.
fn opened_store_ms(
    disk: &SimulatedDisk,
    machine: &Machine,
    accept: Option<ClockJump>,
) -> Result<Option<i64>, String> {
    let bytes = disk.bytes();
    match opened(disk, machine, accept) {
        Ok(store) => Ok(Some(i64::try_from(store.stats().store_time_ms).unwrap())),
        Err(Error::Clock { .. }) if disk.bytes() == bytes => Ok(None),
        Err(Error::Clock { .. }) => Err("the store refused the clock, but changed the disk".into()),
        Err(error) => Err(format!("the image does not open: {error}")),
    }
}

/// Checks one pair of clocks: the wall clock makes a step during the first session, that session ends with a close or a
/// crash, and `between` happens to the clocks before the second session.
fn check_pair(
    step_ms: i64,
    crashed: bool,
    between: Between,
    accept: Option<ClockJump>,
) -> Result<(), String> {
    let mut random = Random(seed());
    let (disk, mut machine) = (SimulatedDisk::new(), Machine::new());
    let store = opened(&disk, &machine, None).map_err(|error| error.to_string())?;
    let record = |key: &str| store.record(key, NONE, b"r").map_err(|error| error.to_string());
    record("a")?;
    machine.step_wall_clock(step_ms);
    // Less than a second passes, so that store time follows no part of the step.
    machine.clock.advance(Duration::from_millis(500));
    record("b")?;
    let mark = machine.moment(i64::try_from(START_MS).unwrap() + 500);
    let image = match crashed {
        true => disk.crash(|of| random.below(of)).bytes(),
        false => {
            store.close().map_err(|error| error.to_string())?;
            disk.bytes()
        }
    };
    machine.apply(between);
    let second = machine.moment(0);
    let expected = expected_store_ms(&mark, &second, accept);

    let trial = SimulatedDisk::holding(image.clone());
    let found = opened_store_ms(&trial, &machine, accept)?;
    if found != expected {
        return Err(format!("opened at {found:?}, expected {expected:?}"));
    }
    // What may happen before a third session: the same boot with or without a step of the wall clock, or another boot.
    let afters = [(false, 0), (false, 20 * DAY_MS), (true, 0), (true, -9 * SECOND_MS)];
    let afters = afters.map(|(reboots, step_ms)| Between { reboots, elapsed_ms: 7 * SECOND_MS, step_ms });
    for step in 0..trial.steps() {
        let trial = SimulatedDisk::holding(image.clone());
        power_loss_at(&trial, step);
        drop(opened(&trial, &machine, accept));
        for again in images(&trial, &mut random, 2) {
            for after in afters {
                let mut machine = machine.snapshot();
                machine.apply(after);
                let third = machine.moment(0);
                let found = opened_store_ms(&SimulatedDisk::holding(again.bytes()), &machine, None)?;
                let from_second = expected.map(|store_ms| Moment { store_ms, ..second });
                let from_second = from_second.and_then(|mark| expected_store_ms(&mark, &third, None));
                let from_first = expected_store_ms(&mark, &third, None);
                if found != from_first && (found != from_second || from_second.is_none()) {
                    return Err(format!(
                        "crashed at step {step} of recovery, then {after:?}: opened at {found:?}, expected {from_second:?} \
                         or, if that recovery left no trace, {from_first:?}"
                    ));
                }
            }
        }
    }
    // A session records its clocks, so the next one opens without accepting the same jump again.
    if let Some(store_ms) = expected {
        let trial = SimulatedDisk::holding(image);
        let store = opened(&trial, &machine, accept).map_err(|error| error.to_string())?;
        let crashed = trial.crash(|_| 0).bytes();
        store.close().map_err(|error| error.to_string())?;
        for image in [crashed, trial.bytes()] {
            for after in afters {
                let mut machine = machine.snapshot();
                machine.apply(after);
                let expected = expected_store_ms(&Moment { store_ms, ..second }, &machine.moment(0), None);
                let found = opened_store_ms(&SimulatedDisk::holding(image.clone()), &machine, None)?;
                if found != expected {
                    return Err(format!("then {after:?}: opened at {found:?}, expected {expected:?}"));
                }
            }
        }
    }
    Ok(())
}

/// Checks every `stride`-th pair of clocks. Returns how many were checked.
fn check_pairs(stride: usize) -> Result<usize, String> {
    let steps = [0, 9 * SECOND_MS, -9 * SECOND_MS, 8 * DAY_MS, -8 * DAY_MS, 400 * DAY_MS, -400 * DAY_MS];
    let elapsed = [0, 5 * SECOND_MS, 3 * DAY_MS, 400 * DAY_MS];
    let accepts = [None, Some(ClockJump::Elapsed), Some(ClockJump::NotElapsed)];
    let mut all = Vec::new();
    for step_ms in steps {
        for crashed in [false, true] {
            for reboots in [false, true] {
                for elapsed_ms in elapsed {
                    for second_step_ms in steps {
                        let between = Between { reboots, elapsed_ms, step_ms: second_step_ms };
                        all.extend(accepts.map(|accept| (step_ms, crashed, between, accept)));
                    }
                }
            }
        }
    }
    let chosen: Vec<_> = all.into_iter().step_by(stride).collect();
    for (step_ms, crashed, between, accept) in &chosen {
        check_pair(*step_ms, *crashed, *between, *accept).map_err(|why| {
            format!(
                "a step of {step_ms} ms, crashed: {crashed}, then {between:?}, accepted {accept:?}: {why}"
            )
        })?;
    }
    Ok(chosen.len())
}

fn stride() -> usize {
    number_from("ONCEKEY_EFFORT").map_or(11, |_| 1)
}

#[test]
fn store_time_is_right_for_every_pair_of_clocks_after_any_crash() {
    let pairs = check_pairs(stride()).unwrap_or_else(|why| panic!("seed {}: {why}", seed()));
    println!("{pairs} pairs of clocks");
}

/// Checks that store time hardly follows a wall clock that makes a step before each time the store reads it.
fn check_steps_are_followed_slowly() -> Result<(), String> {
    let (disk, machine) = (SimulatedDisk::new(), Machine::new());
    let store = opened(&disk, &machine, None).map_err(|error| error.to_string())?;
    for by_ms in [9_999, -9_999, 500, -30] {
        let before_ms = store.stats().store_time_ms;
        for _ in 0..360 {
            machine.step_wall_clock(by_ms);
            machine.clock.advance(Duration::from_secs(1));
            let _ = store.stats();
        }
        let off_ms = (store.stats().store_time_ms - before_ms).abs_diff(360_000);
        if off_ms > 200 {
            return Err(format!("steps of {by_ms} ms: off by {off_ms} ms after six minutes"));
        }
    }
    Ok(())
}

/// Returns scripts that mostly open and close the store.
fn opening_scripts() -> Vec<(&'static str, Vec<Act>)> {
    use Act::*;
    let buffered_after_close = (0..6).flat_map(|key| {
        let end = if key % 3 == 2 { DropStore } else { Reopen };
        [RecordBuffered(key, 10), end, RecordBuffered(key + 6, 10), Begin(key + 12)]
    });
    let clocks = [
        Record(0, 10),
        StepWallClock(8 * 86_400_000),
        Record(1, 10),
        Reboot(5_000),
        RecordBuffered(2, 10),
        StepWallClock(-8 * 86_400_000),
        Reopen,
        Record(3, 10),
        Advance(20_000),
        Reboot(1),
        Reboot(2),
        StepWallClock(300 * 86_400_000),
        Begin(4),
        Advance(500),
        DropStore,
        RecordBuffered(5, 12_000),
        Reboot(90_000),
        Record(6, 12_000),
        StepWallClock(-299 * 86_400_000),
        RecordBuffered(7, 12_000),
        Record(8, 12_000),
        Record(9, 12_000),
        Record(10, 12_000),
        Reopen,
    ];
    vec![
        ("reopening between buffered records", buffered_after_close.collect()),
        ("clock steps and reboots", clocks.to_vec()),
    ]
}

/// Crashes each of those scripts at each step of the disk.
fn crash_openings(effort: &Effort) -> Result<(), String> {
    for (name, script) in opening_scripts() {
        crash_everywhere(&script, seed(), effort, &Counts::default())
            .map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

#[test]
fn crashes_while_opening_keep_versions_unique_and_the_store_time() {
    crash_openings(&Effort { images: 6, recovery_every: 5 }).unwrap();
}

/// Opens a full store again and again. There is no space for an opening frame, so the close mark stays where it is.
fn check_versions_of_a_full_store() -> Result<(), String> {
    let context = |error: Error| error.to_string();
    let clock = ManualClock::new(START_MS);
    let full = Some(4_096 + 4 * (64 << 10));
    let open = |disk: &SimulatedDisk| {
        disk.set_capacity(full);
        options(&clock).durability(Durability::Buffered).open_simulated(disk).map_err(context)
    };
    let mut disk = SimulatedDisk::new();
    let store = open(&disk)?;
    for (size, name) in [(12_000, "large"), (0, "small")] {
        for n in 0..1_000 {
            match store.record(&format!("{name}-{n}"), NONE, &vec![1; size]) {
                Ok(_) => {}
                Err(Error::Full { .. }) => break,
                Err(error) => return Err(context(error)),
            }
        }
    }
    store.close().map_err(context)?;
    let mut highest = Version::from_u64(0);
    for turn in 0..12 {
        let store = open(&disk)?;
        if !matches!(store.record("none", NONE, &[]), Err(Error::Full { .. })) {
            return Err("the store is not full".into());
        }
        // The store has space to remove a key, but reclaiming has none to free a segment. The removal is not synced, so a
        // power loss undoes it. Even so, the version that was returned must not be given out again.
        let key = format!("small-{}", turn / 4);
        let seen = store.get(&key).map_err(context)?;
        let version = seen.version().ok_or_else(|| format!("turn {turn}: {key} is missing"))?;
        let expected = Expected::Present { status: seen.status(), version };
        let swapped = store.compare_and_set(&key, expected, Next::Absent).map_err(context)?;
        match swapped {
            CasOutcome::Done(version) if version > highest => highest = version,
            other => return Err(format!("turn {turn}: {other:?} after {highest}")),
        }
        if turn % 4 == 3 {
            store.close().map_err(context)?;
        } else {
            disk = disk.crash(|_| 0);
        }
    }
    Ok(())
}

#[test]
fn opening_a_full_store_gives_out_no_version_twice() {
    check_versions_of_a_full_store().unwrap();
}

/// Refuses to open a closed store, and images of a crash, a thousand times for each reason.
#[test]
fn refusing_to_open_a_thousand_times_changes_no_byte() {
    let clock = ManualClock::new(START_MS);
    let small = || options(&clock);
    let kinds: [(&str, Options); 5] = [
        ("max_size", small().segment_size(64 << 10).max_size(300_000)),
        ("max_result", Options::new().manual_clock(clock.clone()).max_result(500_000)),
        ("a clock that is behind", small().manual_clock(ManualClock::new(START_MS / 2))),
        ("a clock that is ahead", small().manual_clock(ManualClock::new(START_MS * 2))),
        ("min_size", small().min_size(8 << 20)),
    ];
    for segment_bytes in [64 << 10, 128 << 10] {
        let disk = SimulatedDisk::new();
        let store = small().segment_size(segment_bytes).open_simulated(&disk).unwrap();
        for n in 0..40 {
            let key = format!("{n}");
            store.operation(&key).durability(Durability::Buffered).record(&[n; 5_000]).unwrap();
        }
        store.sync().unwrap();
        for n in 40..44 {
            let key = format!("{n}");
            store.operation(&key).durability(Durability::Buffered).record(&[n; 700]).unwrap();
        }
        let mut random = Random(seed());
        let mut bytes: Vec<_> = images(&disk, &mut random, 3).iter().map(SimulatedDisk::bytes).collect();
        store.close().unwrap();
        bytes.push(disk.bytes());
        for (at, bytes) in bytes.into_iter().enumerate() {
            for (kind, options) in &kinds {
                // Four segments of 64 KiB fit below this limit, so the store opens.
                if *kind == "max_size" && segment_bytes == 64 << 10 {
                    continue;
                }
                for reserves in [true, false] {
                    let disk = SimulatedDisk::holding(bytes.clone());
                    disk.set_capacity(Some(2 << 20));
                    disk.set_reserves(reserves);
                    let turns = if *kind == "min_size" && !reserves { 20 } else { 1_000 };
                    for _ in 0..turns / 2 {
                        match options.open_simulated(&disk) {
                            Err(Error::Option { .. } | Error::Clock { .. } | Error::Full { .. }) => {}
                            other => panic!("{kind}, image {at}: {other:?}"),
                        }
                    }
                    assert!(disk.bytes() == bytes, "{kind}, image {at}: the file was changed");
                    assert!(kind == &"min_size" || disk.undecided() == 0);
                }
            }
        }
    }
}

/// Runs the checks that can find a bug in how a store is opened.
fn hunt() -> Result<(), String> {
    check_steps_are_followed_slowly()?;
    check_versions_of_a_full_store()?;
    crash_openings(&Effort { images: 3, recovery_every: 30 })?;
    check_pairs(7).map(drop)
}

finds! { hunt:
    finds_a_wall_clock_that_counts_in_the_same_boot: WallClockInSameBoot,
    finds_a_mark_that_keeps_the_old_wall_clock: MarkKeepsOldWall,
    finds_a_mark_that_keeps_the_old_boot: MarkKeepsOldBoot,
    finds_a_step_that_is_followed_at_once: ClockStepNotSlewed,
    finds_a_version_counter_that_restarts: CounterRestarted,
    finds_an_ignored_note_of_a_later_session: NotedOpeningIgnored,
    finds_an_opening_frame_that_is_not_synced: OpeningNotSynced,
}
