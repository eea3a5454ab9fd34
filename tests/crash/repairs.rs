//! Checks that a repair saves what is right, names what may have been lost, and resurrects nothing: for every sector of a closed
//! and of a crashed store, and for pairs of damages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oncekey::simulation::{Bug, SimulatedDisk, repair_simulated, steps, verify_simulated};
use oncekey::{Error, Key, ManualClock, Messages, Repair, Status, Store};

use crate::bugs::finds;
use crate::common::random::{Random, seed};
use crate::damage::{SECTOR, Sample, StepSeen, for_closed_and_crashed, options, sample};
use crate::points::effort_factor;
use crate::world::START_MS;

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
            // A later attempt may be forgotten.
            Ok(seen)
                if (seen.status(), expected.status()) == (Status::InDoubt, Status::Stopped)
                    && report.is_copy
                    && seen.version() == expected.version() =>
            {
                continue;
            }
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
    for (job, steps) in &sample.steps {
        let is_unattested = unattested.contains(job);
        differing += check_repaired_steps(&store, (job, is_unattested), steps, &report)?;
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

/// Checks the steps of a job in a repaired store. Returns how many do not have their answer.
fn check_repaired_steps(
    store: &Store,
    (job, is_unattested): (&str, bool),
    expected: &BTreeMap<String, StepSeen>,
    report: &Repair,
) -> Result<usize, String> {
    let mut differing = 0;
    for (name, (status, _, result)) in expected {
        let seen = match &**name {
            "" => steps::input(store, job).map(|input| {
                let status = if input.is_some() { Status::Completed } else { Status::InDoubt };
                (status, input)
            }),
            name => {
                let seen = store.get(Key::new(job).step(name));
                seen.map(|seen| (seen.status(), seen.result().map(<[u8]>::to_vec)))
            }
        };
        match seen {
            Ok(seen) if seen == (*status, result.clone()) => continue,
            Ok((Status::InDoubt, None)) if report.is_copy => {}
            Ok((Status::Absent | Status::InDoubt, None)) if is_unattested => {}
            Ok(seen) => return Err(format!("step {name} of {job}: {seen:?} instead of {status} {result:?}")),
            Err(Error::Corrupt { .. }) if !report.faults.is_empty() => {}
            Err(error) => return Err(format!("step {name} of {job}: {error}")),
        }
        differing += 1;
    }
    Ok(differing)
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
        // Most sectors are in full segments, whose footers say which keys and steps are affected.
        let steps: usize = sample.steps.values().map(BTreeMap::len).sum();
        assert!(differing < repaired * (sample.answers.len() + steps) / 4);
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
        for at in (0..sample.bytes.len()).step_by(SECTOR) {
            let mut damaged = sample.bytes.clone();
            damage(&mut damaged, at, &mut random, &sample);
            check_repaired(&sample, &damaged)?;
        }
    }
    Ok(())
}

/// A job that was finished once, and whose key was used again. The record with which the second job began is damaged.
fn repair_job_without_begin() -> Result<(), String> {
    let clock = ManualClock::new(START_MS);
    let disk = SimulatedDisk::new();
    // A note would be a second record of the begin.
    let store = options(&clock).notes(false).open_simulated(&disk).unwrap();
    let run = |names: [&str; 2], ends: bool| {
        let ran = store.operation("the-job").run(|job| {
            for name in names {
                let done = job.step(name).run(|_| Ok::<_, String>(name.to_owned()));
                done.map_err(|error| error.to_string())?;
            }
            if ends { Ok(0_u64) } else { Err("no answer".to_owned()) }
        });
        assert_eq!(ran.is_ok(), ends);
    };
    run(["old", "older"], true);
    clock.advance(Duration::from_secs(1_001));
    run(["first", "second"], false);
    store.close().unwrap();
    let mut bytes = disk.bytes();
    let begin = bytes.windows(7).rposition(|window| window == b"the-job").unwrap();
    bytes[begin] ^= 1;
    let (from, to) = (SimulatedDisk::holding(bytes), SimulatedDisk::new());
    let report = repair_simulated(&from, &to).unwrap();
    assert_eq!(
        (report.keys_in_doubt.len(), report.saved_steps, report.steps_in_doubt),
        (1, 2, 0),
        "{report:?}"
    );
    // Without a window, so that only what is in the file counts.
    let store = options(&clock).nothing_was_lost().open_simulated(&to).unwrap();
    assert_eq!(store.unfinished().unwrap().next().unwrap().unwrap().steps().len(), 2);
    let rerun = store.operation("the-job").rerun().run(|job| {
        let second = job.step("second").run(|_| Err::<String, _>("it would run again".to_owned()));
        second.map_err(|error| error.to_string())
    });
    match rerun {
        Ok(outcome) if outcome.as_inner() == "second" => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn a_job_whose_begin_is_lost_keeps_its_steps() {
    repair_job_without_begin().unwrap();
}

/// A store with 100 messages, of which the first 40 are acknowledged. Returns the bytes, and the tokens of the others.
fn with_messages(clock: &ManualClock) -> (Vec<u8>, BTreeSet<String>, BTreeSet<String>) {
    let disk = SimulatedDisk::new();
    let store = options(clock).open_simulated(&disk).unwrap();
    let (mut sent, mut pending) = (BTreeSet::new(), BTreeSet::new());
    for n in 0..100_u32 {
        let key = format!("emits-{n}");
        let mut batch = store.batch();
        batch.record(store.operation(&key), b"").unwrap();
        let mut messages = Messages::new();
        messages.emit_bytes("mail", &[7; 1_500]).unwrap();
        batch.attach(messages).unwrap();
        batch.commit().unwrap().for_each(|answer| assert!(answer.is_ok()));
        if n == 59 {
            for _ in 0..4 {
                let deliveries = store.outbox().next_many("mail", 10).unwrap().unwrap();
                sent.extend(deliveries.messages().iter().map(|message| message.token()));
                deliveries.ack().unwrap();
            }
        }
    }
    pending.extend(store.outbox().pending("mail").unwrap().iter().map(|message| message.token()));
    store.close().unwrap();
    (disk.bytes(), sent, pending)
}

#[test]
fn a_repair_delivers_the_pending_messages_and_no_acknowledged_one() {
    let clock = ManualClock::new(START_MS);
    let (bytes, sent, pending) = with_messages(&clock);
    assert_eq!((sent.len(), pending.len()), (40, 60));
    let mut delivered_again = Vec::new();
    for at in (0..bytes.len()).step_by(SECTOR) {
        let mut damaged = bytes.clone();
        damaged[at..at + SECTOR].fill(0);
        let (from, to) = (SimulatedDisk::holding(damaged), SimulatedDisk::new());
        let report = repair_simulated(&from, &to).unwrap();
        let verification = verify_simulated(&to).unwrap();
        assert!(verification.is_sound() && verification.opens, "the sector at {at}: {verification:?}");
        let store = options(&clock).may_have_forgotten(Duration::MAX).open_simulated(&to).unwrap();
        let mut delivered = BTreeSet::new();
        loop {
            match store.outbox().next("mail") {
                Ok(Some(delivery)) => {
                    assert!(delivered.insert(delivery.token()), "the sector at {at}: twice");
                    delivery.ack().unwrap();
                }
                Ok(None) => break,
                Err(Error::Corrupt { .. }) => {
                    assert!(store.outbox().skip_unreadable("mail").unwrap().is_some());
                }
                Err(error) => panic!("the sector at {at}: {error}"),
            }
        }
        let lost = pending.difference(&delivered).count();
        assert!(
            lost <= 2 && (lost == 0 || report.is_copy && !report.faults.is_empty()),
            "{at}: {lost} {report:?}"
        );
        assert_eq!(report.saved_messages, delivered.len() as u64, "the sector at {at}");
        let again = delivered.difference(&pending).count();
        assert!(again <= 8, "the sector at {at}: {again}");
        delivered_again.extend((again > 0).then_some(at));
    }
    // A footer lists the acknowledgements. Only a sector with a part of the footer and the last frame hides what it hits.
    assert!(delivered_again.len() <= 1, "{delivered_again:?}");
}

finds! { repair_job_without_begin:
    finds_a_repaired_job_with_an_earlier_origin: RepairKeepsEarlierOrigin,
}

finds! { repair_some:
    finds_a_repair_that_resurrects_a_key: RepairResurrects,
    finds_a_repair_that_trusts_an_earlier_record: RepairTrustsEarlierRecord,
}
