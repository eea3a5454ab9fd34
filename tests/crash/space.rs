//! Checks that a store with a `max_size` never fills up with dead records, for any mix of retentions and any number of
//! released keys, and that reclaiming keeps every live record.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::simulation::SimulatedDisk;
use oncekey::{Begin, Durability, Error, Fingerprint, ManualClock, Options, Store};

use crate::common::random::{Random, seed};
use crate::points::images;
use crate::world::START_MS;

const SEGMENT: u64 = 64 << 10;

fn options(clock: &ManualClock, slots: u64) -> Options {
    Options::new()
        .segment_size(SEGMENT)
        .max_size(4_096 + slots * SEGMENT)
        .max_result(2_000)
        .durability(Durability::Buffered)
        .manual_clock(clock.clone())
}

/// Draws a retention from 100 ms to about twelve years. All orders of magnitude are equally likely.
fn any_retention(random: &mut Random) -> Duration {
    let magnitude = u32::try_from(random.below(10)).unwrap();
    let min_ms = 100 * 10_u64.pow(magnitude);
    Duration::from_millis(min_ms + random.next() % (3 * min_ms))
}

/// The expiry in milliseconds and the result of each record, by key.
type Kept = BTreeMap<String, (u64, Vec<u8>)>;

fn check_records(store: &Store, kept: &Kept, now_ms: u64) -> Result<(), String> {
    for (key, (expires_ms, result)) in kept {
        let seen = store.get(key).map_err(|error| format!("{key}: {error}"))?;
        let expected = (now_ms < *expires_ms).then_some(&result[..]);
        if seen.result() != expected {
            return Err(format!("{key}, kept until {expires_ms}, at {now_ms}: {seen:?}"));
        }
    }
    Ok(())
}

/// Writes records in rounds, and advances the clock after each. Most records of a round have the same random retention, by
/// which the clock then advances. At most a third of the file is live, so no record may be refused.
pub fn check_mixed_retentions(seed: u64) -> Result<(), String> {
    const SLOTS: u64 = 40;
    let (clock, disk, mut random) = (ManualClock::new(START_MS), SimulatedDisk::new(), Random(seed));
    let mut store = options(&clock, SLOTS).open_simulated(&disk).map_err(|error| error.to_string())?;
    let mut kept = Kept::new();
    let mut number = 0_u64;
    for round in 0..150 {
        let now_ms = clock.now_ms();
        kept.retain(|_, (expires_ms, _)| now_ms < *expires_ms);
        let mut live_bytes: u64 = kept.values().map(|(_, result)| result.len() as u64 + 240).sum();
        // Most records of a round have the same retention, so that many expire at once.
        let usual = any_retention(&mut random);
        for _ in 0..200 {
            let result = vec![u8::try_from(number % 251).unwrap(); 100 + random.below(900)];
            let retention = if random.percent(95) { usual } else { any_retention(&mut random) };
            if live_bytes + result.len() as u64 + 240 > SLOTS * SEGMENT / 3 {
                break;
            }
            number += 1;
            let key = format!("{number}");
            let operation = store.operation(&key).retain(retention).retain_result(retention);
            match operation.record(&result) {
                Ok(_) => {}
                Err(error) => {
                    return Err(format!("round {round}: {error}, {live_bytes} live, {:?}", store.stats()));
                }
            }
            live_bytes += result.len() as u64 + 240;
            kept.insert(key, (now_ms + u64::try_from(retention.as_millis()).unwrap(), result));
        }
        if disk.bytes().len() as u64 > 4_096 + SLOTS * SEGMENT {
            return Err(format!("round {round}: the file is larger than max_size"));
        }
        check_records(&store, &kept, now_ms).map_err(|why| format!("round {round}: {why}"))?;
        if round % 10 == 9 {
            store.sync().map_err(|error| error.to_string())?;
            for image in images(&disk, &mut random, 2) {
                let again = options(&clock, SLOTS).open_simulated(&image);
                let again = again.map_err(|error| format!("round {round}: after a crash: {error}"))?;
                check_records(&again, &kept, now_ms)
                    .map_err(|why| format!("round {round}: after a crash: {why}"))?;
            }
        }
        // At most 300 days, because a store refuses to open after a jump of the clock of more than a year.
        clock.advance(usual.min(Duration::from_secs(300 * 86_400)));
        if round % 20 == 19 {
            store
                .record("makes the store read the clock", Fingerprint::NONE, b"")
                .map_err(|error| error.to_string())?;
            drop(store);
            let opened = options(&clock, SLOTS).open_simulated(&disk);
            store = opened.map_err(|error| format!("round {round}: {error}"))?;
        }
    }
    Ok(())
}

/// Checks that the store counts a record as dead at most a sixteenth of its retention after it expired, however many other
/// records expire at other times.
pub fn check_expiries_are_noticed_in_time() -> Result<(), String> {
    let (clock, disk) = (ManualClock::new(START_MS), SimulatedDisk::new());
    let store = options(&clock, 1_000).open_simulated(&disk).map_err(|error| error.to_string())?;
    let record = |key: String, retention: Duration| {
        let operation = store.operation(&key).retain(retention).retain_result(retention);
        operation.record(&[7; 400]).map(drop).map_err(|error| error.to_string())
    };
    for n in 0..500_u32 {
        record(format!("far {n}"), Duration::from_secs(86_400 * 7) * (n + 1))?;
    }
    for magnitude in 0..9 {
        let retention = Duration::from_millis(100 * 10_u64.pow(magnitude));
        let before = store.stats().dead_bytes;
        for n in 0..20 {
            record(format!("near {magnitude}/{n}"), retention)?;
        }
        clock.advance(retention + retention / 16);
        let dead = store.stats().dead_bytes.saturating_sub(before);
        if dead < 20 * 480 {
            return Err(format!(
                "20 records kept for {retention:?} expired, but only {dead} bytes are counted as dead"
            ));
        }
    }
    Ok(())
}

/// Checks that a compaction removes every record that has expired, to the millisecond.
pub fn check_compaction_counts_exactly() -> Result<(), String> {
    for magnitude in 0..10 {
        let (clock, disk) = (ManualClock::new(START_MS), SimulatedDisk::new());
        let store = options(&clock, 100).open_simulated(&disk).map_err(|error| error.to_string())?;
        let retention = Duration::from_millis(100 * 10_u64.pow(magnitude));
        for n in 0..400 {
            let key = format!("{n}");
            let operation = store.operation(&key).retain(retention).retain_result(retention);
            operation.record(&[7; 400]).map_err(|error| error.to_string())?;
        }
        clock.advance(retention);
        store.compact().map_err(|error| error.to_string())?;
        if store.stats().keys > 0 || disk.bytes().len() as u64 > 4_096 + SEGMENT {
            return Err(format!("kept for {retention:?}: {:?}", store.stats()));
        }
    }
    Ok(())
}

/// Begins and releases many more operations than fit in the file.
pub fn check_releases_never_fill_the_file() -> Result<(), String> {
    let (clock, disk) = (ManualClock::new(START_MS), SimulatedDisk::new());
    let store = options(&clock, 8).open_simulated(&disk).map_err(|error| error.to_string())?;
    store.record("kept", Fingerprint::NONE, b"r").map_err(|error| error.to_string())?;
    for n in 0..8_000 {
        match store.begin(&format!("{n}"), Fingerprint::NONE) {
            Ok(Begin::Acquired(lease)) => lease.release().map_err(|error| format!("release {n}: {error}"))?,
            Ok(other) => return Err(format!("{other:?}")),
            Err(Error::Full { reason, .. }) => {
                return Err(format!("release {n}: {reason}, {:?}", store.stats()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let seen = store.get("kept").map_err(|error| error.to_string())?;
    if seen.result() == Some(b"r") { Ok(()) } else { Err(format!("{seen:?}")) }
}

#[test]
fn mixed_retentions_neither_fill_the_file_nor_lose_a_record() {
    for offset in 0..3 {
        check_mixed_retentions(seed() + offset).unwrap();
    }
}

#[test]
fn expiries_are_noticed_in_time_and_counted_exactly() {
    check_expiries_are_noticed_in_time().unwrap();
    check_compaction_counts_exactly().unwrap();
}

#[test]
fn releases_never_fill_the_file() {
    check_releases_never_fill_the_file().unwrap();
}
