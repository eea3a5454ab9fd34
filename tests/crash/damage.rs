//! Damage: flipped bits, zeroed, replaced and stale sectors, cuts. Each time the same answers, or a clear refusal; never a
//! wrong result, and never a record silently gone.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::simulation::SimulatedDisk;
use oncekey::{Error, Fingerprint, KeyState, ManualClock, Options, Store};

use crate::common::random::{Random, seed};
use crate::points::factor;
use crate::world::START_MS;

const SECTOR: usize = 512;
const SEGMENT: usize = 64 << 10;
const RECORDS: u32 = 420;

fn options(clock: &ManualClock) -> Options {
    Options::new()
        .segment_size(64 << 10)
        .retention(Duration::from_secs(1_000))
        .manual_clock(clock.clone())
        .accept_clock_jump(oncekey::ClockJump::Elapsed)
}

/// A store of some hundred records over several segments, recycled ones among them.
struct Sample {
    clock: ManualClock,
    bytes: Vec<u8>,
    /// What each sector held before it held what it holds now, where it did.
    before: Vec<u8>,
    answers: BTreeMap<String, KeyState>,
    /// Keys whose loss cannot be told: the last batch before a crash; and, if the very sector is damaged in which that
    /// batch begins and says that what is before it was on disk, the one before it.
    unattested: Vec<String>,
    attesting_sector: usize,
}

fn keys() -> Vec<String> {
    (0..RECORDS).map(|n| format!("key-{n}")).collect()
}

fn answers(store: &Store) -> Result<BTreeMap<String, KeyState>, Error> {
    keys().into_iter().map(|key| store.get(&key).map(|seen| (key, seen))).collect()
}

fn sample(closed: bool) -> Sample {
    let clock = ManualClock::new(START_MS);
    let disk = SimulatedDisk::new();
    let store = options(&clock).open_simulated(&disk).unwrap();
    // Short-lived records first, so that slots are used again.
    for n in 0..2_600 {
        store.operation(&format!("short-{n}")).retain(Duration::from_secs(1)).record(&[1; 100]).unwrap();
        clock.advance(Duration::from_millis(5));
    }
    let before = disk.bytes();
    for (n, key) in keys().iter().enumerate() {
        let result = vec![u8::try_from(n % 251).unwrap(); 50 + n];
        match n % 10 {
            0 => drop(store.begin(key, Fingerprint::NONE).unwrap()),
            1 => {
                store.record(key, Fingerprint::NONE, &result).unwrap();
                store.forget(key).unwrap();
            }
            _ => drop(store.record(key, Fingerprint::NONE, &result).unwrap()),
        }
    }
    assert!(store.stats().segments_retired > 5 && store.stats().segments > 2, "{:?}", store.stats());
    let answers = answers(&store).unwrap();
    let mut unattested = Vec::new();
    let bytes = if closed {
        store.close().unwrap();
        disk.bytes()
    } else {
        unattested.extend(keys().into_iter().rev().take(2));
        disk.crash(|_| 0).bytes()
    };
    // 80 bytes of the record and 56 of the frame stand before the key.
    let last = bytes.windows(7).rposition(|window| window == b"key-419").unwrap() - 136;
    let attesting_sector = last / SECTOR * SECTOR;
    Sample { clock, bytes, before, answers, unattested, attesting_sector }
}

/// Opens damaged bytes and says what is wrong with how that came out, if anything is.
fn judge(sample: &Sample, damaged: &[u8]) -> Result<bool, String> {
    let disk = SimulatedDisk::holding(damaged.to_vec());
    let store = match options(&sample.clock).create(false).open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. } | Error::Unsupported { .. }) => {
            return if disk.bytes() == damaged { Ok(true) } else { Err("refused, and changed".into()) };
        }
        Err(error) => return Err(format!("refused with {error}")),
    };
    let attesting = sample.attesting_sector..sample.attesting_sector + SECTOR;
    let telling = damaged.get(attesting.clone()) == Some(&sample.bytes[attesting]);
    let unattested = &sample.unattested[..sample.unattested.len().min(if telling { 1 } else { 2 })];
    let mut noticed = false;
    for (key, expected) in &sample.answers {
        match store.get(key) {
            Ok(seen) if seen == *expected => {}
            Ok(seen) if unattested.contains(key) && seen.is_absent() => {}
            Ok(seen) => return Err(format!("{key}: {seen:?} instead of {expected:?}")),
            Err(Error::Corrupt { offset, .. }) if offset < damaged.len() as u64 => noticed = true,
            Err(error) => return Err(format!("{key}: {error}")),
        }
    }
    Ok(noticed)
}

#[derive(Default)]
struct Tally {
    damages: u64,
    noticed: u64,
}

impl Tally {
    fn take(&mut self, sample: &Sample, what: impl Fn() -> String, damaged: &[u8]) {
        self.damages += 1;
        match judge(sample, damaged) {
            Ok(noticed) => self.noticed += u64::from(noticed),
            Err(why) => panic!("{}: {why}", what()),
        }
    }
}

fn for_closed_and_crashed(what: &str, test: impl Fn(&Sample, &mut Tally) + Sync) {
    std::thread::scope(|scope| {
        for closed in [true, false] {
            let test = &test;
            scope.spawn(move || {
                let (sample, mut tally) = (sample(closed), Tally::default());
                assert_eq!(judge(&sample, &sample.bytes), Ok(false), "undamaged");
                test(&sample, &mut tally);
                let state = if closed { "closed" } else { "crashed" };
                println!("{what}, {state}: {} damages, {} noticed, none wrong", tally.damages, tally.noticed);
            });
        }
    });
}

/// Bytes that mean something: everything but the zeroes that were never written over.
fn meaningful(sample: &Sample) -> Vec<usize> {
    (0..sample.bytes.len()).filter(|at| sample.bytes[*at] != 0 || at % SEGMENT < 4_096 + 2_048).collect()
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless() {
    for_closed_and_crashed("flipped bits", |sample, tally| {
        let mut random = Random(seed());
        let places = meaningful(sample);
        // Headers and marks whole, the rest by chance: all of it, at eight bits a byte, is a campaign of its own
        // (ONCEKEY_EFFORT).
        let mut bits: Vec<usize> = (0..512).map(|at| at * 8 + random.below(8)).collect();
        for slot in (4_096..sample.bytes.len()).step_by(SEGMENT) {
            bits.extend((0..128).map(|at| (slot + at) * 8 + random.below(8)));
            bits.extend((SEGMENT - 64 - 480..SEGMENT).map(|at| (slot + at) * 8 + random.below(8)));
        }
        bits.extend((0..2_500 * factor()).map(|_| places[random.below(places.len())] * 8 + random.below(8)));
        for bit in bits {
            let mut damaged = sample.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            tally.take(sample, || format!("bit {} of byte {}", bit % 8, bit / 8), &damaged);
        }
    });
}

/// The same with every bit of everything that means something: a campaign of its own, by the command in the README.
#[test]
#[ignore = "takes long; the README names the command"]
fn every_flipped_bit_is_noticed_or_harmless() {
    for_closed_and_crashed("every bit flipped", |sample, tally| {
        let mut damaged = sample.bytes.clone();
        for byte in meaningful(sample) {
            for bit in 0..8 {
                damaged[byte] ^= 1 << bit;
                tally.take(sample, || format!("bit {bit} of byte {byte}"), &damaged);
                damaged[byte] ^= 1 << bit;
            }
        }
    });
}

#[test]
fn a_sector_that_is_zeroed_replaced_or_stale_is_noticed_or_harmless() {
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
                    tally.take(sample, || format!("the sector at {at} {what}"), &damaged);
                }
            }
        }
    });
}

#[test]
fn a_cut_at_any_length_is_noticed_or_harmless() {
    for_closed_and_crashed("cuts", |sample, tally| {
        let mut random = Random(seed());
        let sectors = (SECTOR..sample.bytes.len()).step_by(SECTOR);
        let anywhere: Vec<_> =
            (0..300 * factor()).map(|_| 1 + random.below(sample.bytes.len() - 1)).collect();
        for length in sectors.chain(anywhere).chain([1, 8]) {
            tally.take(sample, || format!("cut at {length}"), &sample.bytes[..length]);
        }
    });
}

#[test]
fn two_sectors_that_change_places_are_noticed_or_harmless() {
    for_closed_and_crashed("swaps", |sample, tally| {
        let mut random = Random(seed());
        let sectors = sample.bytes.len() / SECTOR;
        for _ in 0..600 * factor() {
            let (one, other) = (random.below(sectors) * SECTOR, random.below(sectors) * SECTOR);
            let mut damaged = sample.bytes.clone();
            damaged[one..one + SECTOR].copy_from_slice(&sample.bytes[other..other + SECTOR]);
            damaged[other..other + SECTOR].copy_from_slice(&sample.bytes[one..one + SECTOR]);
            if damaged != sample.bytes {
                tally.take(sample, || format!("the sectors at {one} and {other} changed places"), &damaged);
            }
        }
    });
}

/// Damage enough to find out whether anything is checked at all: every sector of a closed and of a crashed store.
pub fn a_few_damages() -> Result<(), String> {
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
            judge(&sample, &damaged).map_err(|why| format!("damage at {at}: {why}"))?;
        }
        // The last frames closely: what attests which of them is where the bugs are.
        let end = (sample.attesting_sector + 2 * SECTOR).min(sample.bytes.len());
        for at in (end.saturating_sub(6 * SECTOR)..end).step_by(16) {
            let mut damaged = sample.bytes.clone();
            damaged[at] ^= 1 << random.below(8);
            judge(&sample, &damaged).map_err(|why| format!("damage at {at}: {why}"))?;
        }
    }
    Ok(())
}
