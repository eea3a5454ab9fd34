//! Checks that a repair saves what is right, names what may have been lost, and resurrects nothing: for every sector of a closed
//! and of a crashed store, and for pairs of damages.

use std::time::Duration;

use oncekey::simulation::{Bug, SimulatedDisk, repair_simulated, verify_simulated};
use oncekey::{Error, Repair, Status};

use crate::bugs::finds;
use crate::common::random::{Random, seed};
use crate::damage::{SECTOR, Sample, for_closed_and_crashed, options, sample};
use crate::points::effort_factor;

/// Repairs a damaged file and checks every key of the new one. Returns the report, and how many keys do not have their answer.
pub fn check_repaired(sample: &Sample, damaged: &[u8]) -> Result<Option<(Repair, usize)>, String> {
    let (from, to) = (SimulatedDisk::holding(damaged.to_vec()), SimulatedDisk::new());
    let report = match repair_simulated(&from, &to) {
        Ok(report) => report,
        // Nothing of the log is left, or not even a hint that it was a store.
        Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => return Ok(None),
        Err(error) => return Err(format!("the repair failed: {error}")),
    };
    if from.bytes() != damaged || from.steps() > 0 {
        return Err("the repair changed the damaged file".into());
    }
    let verification =
        verify_simulated(&to).map_err(|error| format!("the new file cannot be checked: {error}"))?;
    if !verification.is_sound() || !verification.opens {
        return Err(format!("the new file is damaged: {:?}", verification.faults));
    }
    let options = options(&sample.clock).create(false);
    match (options.clone().open_simulated(&SimulatedDisk::holding(to.bytes())), report.is_copy) {
        (Err(Error::Copy { .. }), true) | (Ok(_), false) => {}
        (other, is_copy) => return Err(format!("is_copy is {is_copy}, and opening gives {other:?}")),
    }
    let store = options.may_have_forgotten(Duration::MAX).open_simulated(&to);
    let store = store.map_err(|error| format!("the new file does not open: {error}"))?;
    let unattested = sample.unattested_keys(damaged);
    let mut differing = 0;
    for (key, expected) in &sample.answers {
        let is_named = || report.keys_in_doubt.iter().any(|other| other.as_key() == expected.key());
        match store.get(key) {
            Ok(seen) if seen == *expected => continue,
            // A repaired store that lost nothing does not keep the attempts of absent keys.
            Ok(seen) if seen.is_absent() && expected.is_absent() => continue,
            Ok(seen) if seen.is_absent() && unattested.contains(key) => continue,
            Ok(seen) if seen.status() == Status::InDoubt && report.is_copy => {
                if seen.version().is_some() && expected.status() != Status::InDoubt && !is_named() {
                    return Err(format!("{key} is in doubt and not named"));
                }
            }
            Ok(seen) => return Err(format!("{key}: {seen:?} instead of {expected:?}")),
            Err(Error::Corrupt { .. }) if report.unreadable_keys > 0 => {}
            Err(error) => return Err(format!("{key}: {error}")),
        }
        differing += 1;
    }
    if differing > 0 && report.faults.is_empty() {
        return Err("something was lost, and the report names no damage".into());
    }
    // Versions are not given again.
    let highest = sample.answers.values().filter_map(oncekey::KeyState::version).max();
    let recorded = store.operation("new").rerun().run(|attempt| Ok::<_, Error>(attempt.version().as_u64()));
    match recorded {
        Ok(version) if highest.is_none_or(|highest| highest.as_u64() < *version.as_inner()) => {}
        other => return Err(format!("the next version is {other:?} after {highest:?}")),
    }
    store.close().map_err(|error| error.to_string())?;
    Ok(Some((report, differing)))
}

fn damage(bytes: &mut [u8], at: usize, random: &mut Random, sample: &Sample) {
    let sector = &mut bytes[at..at + SECTOR];
    match random.below(4) {
        0 => sector.fill(0),
        1 => sector.fill_with(|| u8::try_from(random.next() & 0xFF).unwrap()),
        2 => sector[random.below(SECTOR)] ^= 1 << random.below(8),
        _ => {
            if let Some(before) = sample.before.get(at..at + SECTOR) {
                sector.copy_from_slice(before);
            }
        }
    }
}

#[test]
fn a_repair_of_any_damaged_sector_saves_the_rest() {
    for_closed_and_crashed("repaired sectors", |sample, tally| {
        let mut random = Random(seed());
        let (mut repaired, mut differing) = (0, 0);
        for at in (0..sample.bytes.len()).step_by(SECTOR) {
            for _ in 0..2 {
                let mut damaged = sample.bytes.clone();
                damage(&mut damaged, at, &mut random, sample);
                tally.damages += 1;
                match check_repaired(sample, &damaged)
                    .unwrap_or_else(|why| panic!("the sector at {at}: {why}"))
                {
                    Some((_, keys)) => (repaired, differing) = (repaired + 1, differing + keys),
                    None => panic!("the sector at {at}: one sector is not the whole log"),
                }
            }
        }
        println!(
            "{repaired} repaired, {differing} keys in doubt or unreadable of {} each",
            sample.answers.len()
        );
        // Most sectors are in full segments, whose footers say which keys are affected.
        assert!(differing < repaired * sample.answers.len() / 4);
    });
}

#[test]
fn a_repair_of_two_damages_saves_the_rest() {
    for_closed_and_crashed("repaired pairs", |sample, tally| {
        let mut random = Random(seed());
        let sectors = sample.bytes.len() / SECTOR;
        for _ in 0..500 * effort_factor() {
            let mut damaged = sample.bytes.clone();
            let (one, other) = (random.below(sectors) * SECTOR, random.below(sectors) * SECTOR);
            damage(&mut damaged, one, &mut random, sample);
            damage(&mut damaged, other, &mut random, sample);
            if random.below(8) == 0 {
                damaged.truncate(damaged.len() - random.below(damaged.len() / 2));
            }
            tally.damages += 1;
            check_repaired(sample, &damaged).unwrap_or_else(|why| {
                panic!("the sectors at {one} and {other}, {} bytes: {why}", damaged.len())
            });
        }
    });
}

#[test]
fn a_repair_of_a_sound_file_loses_nothing() {
    for closed in [true, false] {
        let sample = sample(closed);
        let (report, differing) = check_repaired(&sample, &sample.bytes).unwrap().unwrap();
        assert!(!report.is_copy && differing == 0 && report.faults.is_empty(), "{report:?}");
        assert_eq!(report.keys_in_doubt, []);
    }
}

/// Some damages, for planted bugs.
fn repair_some() -> Result<(), String> {
    for closed in [true, false] {
        let sample = sample(closed);
        let mut random = Random(seed());
        for at in (0..sample.bytes.len()).step_by(3 * SECTOR) {
            let mut damaged = sample.bytes.clone();
            damage(&mut damaged, at, &mut random, &sample);
            check_repaired(&sample, &damaged)?;
        }
    }
    Ok(())
}

finds! { repair_some:
    finds_a_repair_that_resurrects_a_key: RepairResurrects,
    finds_a_repair_that_trusts_an_earlier_record: RepairTrustsEarlierRecord,
}
