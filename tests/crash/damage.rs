//! Checks that a store on a damaged file gives the same answers as before or reports the damage. It must never return a wrong
//! result, or lose a record silently.
//!
//! The damage is a flipped bit, a sector that is zeroed, overwritten, swapped or stale, or a truncated file.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::simulation::steps::{self, BegunStep};
use oncekey::simulation::{SimulatedDisk, verify_simulated};
use oncekey::{
    Begin, Consequence, Error, Fault, Fingerprint, Key, KeyState, ManualClock, Options, Status, Store,
    Verification,
};

use crate::common::random::{Random, seed};
use crate::points::effort_factor;
use crate::world::START_MS;

pub const SECTOR: usize = 512;
const SEGMENT: usize = 64 << 10;
const RECORDS: u32 = 420;

pub fn options(clock: &ManualClock) -> Options {
    Options::new()
        .segment_size(64 << 10)
        .retention(Duration::from_secs(1_000))
        .manual_clock(clock.clone())
        .accept_clock_jump(oncekey::ClockJump::Elapsed)
}

/// A store of several hundred records in several segments. Some of its slots were reused.
pub struct Sample {
    pub clock: ManualClock,
    pub bytes: Vec<u8>,
    /// An earlier state of the file, from which stale sectors are taken.
    pub before: Vec<u8>,
    /// The undamaged store's state of each key.
    pub answers: BTreeMap<String, KeyState>,
    /// The undamaged store's steps of each unfinished job, with their results.
    pub steps: BTreeMap<String, BTreeMap<String, StepSeen>>,
    /// The keys of the last two frames before the crash, last first. Empty for a closed store.
    ///
    /// If the last frame is lost, the file looks as after a crash. The frame before it can be lost as well if the
    /// `attesting_sector` is damaged, because then nothing attests that this frame was on disk.
    unattested: Vec<String>,
    /// The offset of the sector in which the last frame begins.
    attesting_sector: usize,
}

/// The status of a step, whether it was given up, and its result.
pub type StepSeen = (Status, bool, Option<Vec<u8>>);
/// The name and the state of a step, or why it cannot be read.
type ReadStep = Result<(String, StepSeen), Error>;

/// Returns the steps of a job, and its input under an empty name. The inner error is that of a step that cannot be read.
fn steps_of(store: &Store, job: &str) -> Result<Vec<ReadStep>, Error> {
    let result = |name: &str| steps::result_of(store, job, name);
    let is_unreadable = matches!(store.get(job), Err(Error::Corrupt { .. }));
    let listed = steps::steps(store, job)?.into_iter().map(|step| {
        let (name, status, given_up) = step?;
        let result = match result(&name) {
            // A step of a job that cannot be read is listed, but not found by its name.
            Ok(None) if is_unreadable => panic!("{job}: \"{name}\" is listed and absent"),
            result if status == Status::Completed => result?,
            _ => None,
        };
        Ok((name, (status, given_up, result)))
    });
    let input = steps::input(store, job).transpose();
    let input =
        input.map(|input| input.map(|input| (String::new(), (Status::Completed, false, Some(input)))));
    Ok(listed.chain(input).collect())
}

impl Sample {
    /// The keys whose loss looks like the effect of a crash.
    pub fn unattested_keys(&self, damaged: &[u8]) -> &[String] {
        let attesting = self.attesting_sector..self.attesting_sector + SECTOR;
        let is_attested = damaged.get(attesting.clone()) == Some(&self.bytes[attesting]);
        &self.unattested[..self.unattested.len().min(if is_attested { 1 } else { 2 })]
    }
}

fn keys() -> Vec<String> {
    (0..RECORDS).map(|n| format!("key-{n}")).collect()
}

fn answers(store: &Store) -> Result<BTreeMap<String, KeyState>, Error> {
    keys().into_iter().map(|key| store.get(&key).map(|seen| (key, seen))).collect()
}

/// Begins a job with steps of every outcome, and leaves it.
fn begin_job(store: &Store, key: &str, has_input: bool) {
    let begun = match has_input {
        true => steps::begin_with_input(store, key, &[5; 300]).unwrap(),
        false => store.begin(key, Fingerprint::NONE).unwrap(),
    };
    let Begin::Acquired(lease) = begun else { panic!("{begun:?}") };
    for (step, size) in [("reserve", 0), ("charge", 400), ("ship", 40), ("mail", 40)] {
        let BegunStep::Acquired(mut held) = steps::begin_step(&lease, step).unwrap() else {
            panic!("{step}")
        };
        match step {
            "ship" => held.release().unwrap(),
            "mail" => {}
            _ => held.complete(&vec![7; size]).unwrap(),
        }
    }
    if has_input {
        assert!(steps::give_up(&lease, "mail").unwrap());
    }
}

pub fn sample(closed: bool) -> Sample {
    let clock = ManualClock::new(START_MS);
    let disk = SimulatedDisk::new();
    let store = options(&clock).open_simulated(&disk).unwrap();
    // Begin with short-lived records, so that segments are reclaimed and their slots reused.
    for n in 0..2_600 {
        store.operation(&format!("short-{n}")).retain(Duration::from_secs(1)).record(&[1; 100]).unwrap();
        clock.advance(Duration::from_millis(5));
    }
    let before = disk.bytes();
    for (n, key) in keys().iter().enumerate() {
        let result = vec![u8::try_from(n % 251).unwrap(); 50 + n];
        match n % 10 {
            0 => begin_job(&store, key, n % 20 == 0),
            1 => {
                store.record(key, Fingerprint::NONE, &result).unwrap();
                store.forget(key).unwrap();
            }
            _ => drop(store.record(key, Fingerprint::NONE, &result).unwrap()),
        }
    }
    assert!(store.stats().segments_retired > 5 && store.stats().segments > 2, "{:?}", store.stats());
    let answers = answers(&store).unwrap();
    let jobs = keys().into_iter().step_by(10);
    let steps = jobs.map(|job| {
        let steps = steps_of(&store, &job).unwrap().into_iter().map(Result::unwrap).collect();
        (job, steps)
    });
    let steps = steps.collect();
    let mut unattested = Vec::new();
    let bytes = if closed {
        store.close().unwrap();
        disk.bytes()
    } else {
        unattested.extend(keys().into_iter().rev().take(2));
        disk.crash(|_| 0).bytes()
    };
    // The headers of the record (80 bytes) and of the frame (56 bytes) precede the key.
    let last = bytes.windows(7).rposition(|window| window == b"key-419").unwrap() - 136;
    let attesting_sector = last / SECTOR * SECTOR;
    Sample { clock, bytes, before, answers, steps, unattested, attesting_sector }
}

/// Opens a damaged file and reads every key. Returns whether the store reported the damage. Returns an error for a wrong
/// answer.
fn check_damaged(sample: &Sample, damaged: &[u8]) -> Result<bool, String> {
    let disk = SimulatedDisk::holding(damaged.to_vec());
    let verification = verify_simulated(&disk);
    if disk.bytes() != damaged || disk.steps() > 0 {
        return Err("the check changed the file".into());
    }
    let store = match options(&sample.clock).create(false).open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. } | Error::Unsupported { .. }) => {
            if disk.bytes() != damaged {
                return Err("the store refused the file, but changed it".into());
            }
            return check_refusal(&verification).map(|()| true);
        }
        Err(error) => return Err(format!("the file was refused for the wrong reason: {error}")),
    };
    let unattested = sample.unattested_keys(damaged);
    let verification =
        verification.map_err(|error| format!("the check failed, and the store opens: {error}"))?;
    let mut noticed = false;
    for (key, expected) in &sample.answers {
        let is_denied = verification.faults.iter().any(|fault| {
            is_lost(fault) && fault.key.as_ref().is_some_and(|other| other.as_key() == Key::new(key))
        });
        let is_reported =
            |offset| verification.faults.iter().any(|fault| is_lost(fault) && fault.offset == offset);
        match store.get(key) {
            Ok(_) if is_denied => return Err(format!("{key} can be read, and the check denies it")),
            Err(Error::Corrupt { offset, .. }) if !is_reported(offset) => {
                return Err(format!(
                    "{key} cannot be read, and the check has found {:?}",
                    verification.faults
                ));
            }
            Ok(seen) if seen == *expected => {}
            Ok(seen) if unattested.contains(key) && seen.is_absent() => {}
            // The record by which a step was given up is unreadable, so its job is in doubt again. The listing says why.
            Ok(seen) if seen.status() == Status::InDoubt && expected.status() == Status::Stopped => {
                let steps = steps_of(&store, key).map_err(|error| format!("the steps of {key}: {error}"))?;
                if steps.iter().all(Result::is_ok) {
                    return Err(format!("{key}: is in doubt, and all its steps can be read"));
                }
                noticed = true;
            }
            Ok(seen) => return Err(format!("{key}: {seen:?} instead of {expected:?}")),
            Err(Error::Corrupt { offset, .. }) if offset < damaged.len() as u64 => noticed = true,
            Err(error) => return Err(format!("{key}: {error}")),
        }
    }
    for (job, expected) in &sample.steps {
        let seen = steps_of(&store, job).map_err(|error| format!("the steps of {job}: {error}"))?;
        let mut missing = expected.clone();
        let mut unreadable = 0;
        for step in seen {
            match step {
                Ok((name, seen)) if missing.remove(&name).as_ref() == Some(&seen) => {}
                Ok((name, seen)) => {
                    return Err(format!(
                        "step {name} of {job}: {seen:?} instead of {:?}",
                        expected.get(&name)
                    ));
                }
                Err(Error::Corrupt { .. }) => unreadable += 1,
                Err(error) => return Err(format!("a step of {job}: {error}")),
            }
        }
        noticed |= unreadable > 0;
        // If the record of the job cannot be read, its input cannot be found.
        let is_unreadable = matches!(store.get(job), Err(Error::Corrupt { .. }));
        if missing.len() > unreadable + usize::from(is_unreadable && missing.contains_key("")) {
            return Err(format!("{job} has lost the steps {missing:?}"));
        }
    }
    if !verification.opens {
        return Err(format!("the store opens, and the check denies it: {:?}", verification.faults));
    }
    if let Some(fault) =
        verification.faults.iter().find(|fault| fault.consequence == Consequence::WrongAnswer)
    {
        return Err(format!("no damage does this: {fault:?}"));
    }
    Ok(noticed)
}

fn is_lost(fault: &Fault) -> bool {
    fault.consequence == Consequence::KeyUnreadable
}

/// Checks that the check of a file that does not open says so.
fn check_refusal(verification: &Result<Verification, Error>) -> Result<(), String> {
    match verification {
        Ok(found) if found.opens => Err("the store does not open, and the check says that it does".into()),
        Ok(found) if !found.faults.iter().any(|fault| fault.consequence == Consequence::Refused) => Err(
            format!("nothing that the check found explains why the store does not open: {:?}", found.faults),
        ),
        Ok(_) | Err(Error::NotAStore { .. } | Error::Unsupported { .. } | Error::Corrupt { .. }) => Ok(()),
        Err(error) => Err(format!("the check failed: {error}")),
    }
}

#[derive(Default)]
pub struct Tally {
    pub damages: u64,
    noticed: u64,
}

impl Tally {
    fn count(&mut self, sample: &Sample, what: impl Fn() -> String, damaged: &[u8]) {
        self.damages += 1;
        match check_damaged(sample, damaged) {
            Ok(noticed) => self.noticed += u64::from(noticed),
            Err(why) => panic!("{}: {why}", what()),
        }
    }
}

pub fn for_closed_and_crashed(what: &str, test: impl Fn(&Sample, &mut Tally) + Sync) {
    std::thread::scope(|scope| {
        for closed in [true, false] {
            let test = &test;
            scope.spawn(move || {
                let (sample, mut tally) = (sample(closed), Tally::default());
                assert_eq!(
                    check_damaged(&sample, &sample.bytes),
                    Ok(false),
                    "the undamaged file gives wrong answers"
                );
                test(&sample, &mut tally);
                let state = if closed { "closed" } else { "crashed" };
                println!("{what}, {state}: {} damages, {} noticed, none wrong", tally.damages, tally.noticed);
            });
        }
    });
}

/// Returns the offsets of all bytes except the zeroes to which no frame was written.
fn bytes_in_use(sample: &Sample) -> Vec<usize> {
    (0..sample.bytes.len()).filter(|at| sample.bytes[*at] != 0 || at % SEGMENT < 4_096 + 2_048).collect()
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless() {
    for_closed_and_crashed("flipped bits", |sample, tally| {
        let mut random = Random(seed());
        let in_use = bytes_in_use(sample);
        // One bit of each byte of the headers and of the ends of segments, and random bits of the rest. ONCEKEY_EFFORT raises
        // the number of random bits. `every_flipped_bit_is_noticed_or_harmless` flips all bits.
        let mut bits: Vec<usize> = (0..512).map(|at| at * 8 + random.below(8)).collect();
        for slot in (4_096..sample.bytes.len()).step_by(SEGMENT) {
            bits.extend((0..128).map(|at| (slot + at) * 8 + random.below(8)));
            bits.extend((SEGMENT - 64 - 480..SEGMENT).map(|at| (slot + at) * 8 + random.below(8)));
        }
        bits.extend(
            (0..2_500 * effort_factor()).map(|_| in_use[random.below(in_use.len())] * 8 + random.below(8)),
        );
        for bit in bits {
            let mut damaged = sample.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            tally.count(sample, || format!("bit {} of byte {}", bit % 8, bit / 8), &damaged);
        }
    });
}

/// Flips every bit of every byte in use. Takes long; `tests/README.md` has the command.
#[test]
#[ignore = "takes long; tests/README.md has the command"]
fn every_flipped_bit_is_noticed_or_harmless() {
    for_closed_and_crashed("every bit flipped", |sample, tally| {
        let mut damaged = sample.bytes.clone();
        for byte in bytes_in_use(sample) {
            for bit in 0..8 {
                damaged[byte] ^= 1 << bit;
                tally.count(sample, || format!("bit {bit} of byte {byte}"), &damaged);
                damaged[byte] ^= 1 << bit;
            }
        }
    });
}

#[test]
fn a_zeroed_overwritten_or_stale_sector_is_noticed_or_harmless() {
    for_closed_and_crashed("sectors", |sample, tally| {
        for at in (0..sample.bytes.len()).step_by(SECTOR) {
            let mut zeroed = sample.bytes.clone();
            zeroed[at..at + SECTOR].fill(0);
            let mut garbage = sample.bytes.clone();
            let mut random = Random(seed() ^ at as u64);
            garbage[at..at + SECTOR].fill_with(|| u8::try_from(random.next() & 0xFF).unwrap());
            let mut stale = sample.bytes.clone();
            if let Some(before) = sample.before.get(at..at + SECTOR) {
                stale[at..at + SECTOR].copy_from_slice(before);
            }
            for (what, damaged) in [("zeroed", zeroed), ("garbage", garbage), ("stale", stale)] {
                if damaged != sample.bytes {
                    tally.count(sample, || format!("the sector at {at} {what}"), &damaged);
                }
            }
        }
    });
}

#[test]
fn truncation_at_any_length_is_noticed_or_harmless() {
    for_closed_and_crashed("truncations", |sample, tally| {
        let mut random = Random(seed());
        let sectors = (SECTOR..sample.bytes.len()).step_by(SECTOR);
        let anywhere: Vec<_> =
            (0..300 * effort_factor()).map(|_| 1 + random.below(sample.bytes.len() - 1)).collect();
        for length in sectors.chain(anywhere).chain([1, 8]) {
            tally.count(sample, || format!("truncated to {length}"), &sample.bytes[..length]);
        }
    });
}

#[test]
fn swapping_two_sectors_is_noticed_or_harmless() {
    for_closed_and_crashed("swaps", |sample, tally| {
        let mut random = Random(seed());
        let sectors = sample.bytes.len() / SECTOR;
        for _ in 0..600 * effort_factor() {
            let (one, other) = (random.below(sectors) * SECTOR, random.below(sectors) * SECTOR);
            let mut damaged = sample.bytes.clone();
            damaged[one..one + SECTOR].copy_from_slice(&sample.bytes[other..other + SECTOR]);
            damaged[other..other + SECTOR].copy_from_slice(&sample.bytes[one..one + SECTOR]);
            if damaged != sample.bytes {
                tally.count(sample, || format!("the sectors at {one} and {other} swapped"), &damaged);
            }
        }
    });
}

/// Damages each sector of a closed and of a crashed store once. This is cheap enough to run for each planted bug.
pub fn check_some_damage() -> Result<(), String> {
    for closed in [true, false] {
        let sample = sample(closed);
        let mut random = Random(seed());
        for at in (0..sample.bytes.len()).step_by(SECTOR) {
            let mut damaged = sample.bytes.clone();
            if random.below(2) == 0 {
                damaged[at + random.below(SECTOR)] ^= 1 << random.below(8);
            } else {
                damaged[at..at + SECTOR].fill(0);
            }
            check_damaged(&sample, &damaged).map_err(|why| format!("damage at {at}: {why}"))?;
        }
        // Damage the last frames in small steps, because bugs are likeliest where recovery relies on a later frame to attest an
        // earlier one.
        let end = (sample.attesting_sector + 2 * SECTOR).min(sample.bytes.len());
        for at in (end.saturating_sub(6 * SECTOR)..end).step_by(16) {
            let mut damaged = sample.bytes.clone();
            damaged[at] ^= 1 << random.below(8);
            check_damaged(&sample, &damaged).map_err(|why| format!("damage at {at}: {why}"))?;
        }
    }
    Ok(())
}
