//! Damages a record while the store is open, and checks what the store answers for its key.

use std::collections::BTreeMap;

use oncekey::{CasOutcome, Error, Expected, Next, Status};

use super::act::Act;
use super::oracle::Model;
use super::{NONE, SEGMENT_BYTES, World, name};

/// The offset in a record of the byte that [`Act::Rot`] damages, for each [`field`](super::field). The length and the key
/// are never damaged, because `last_record_of` finds the record by them.
const ROTTEN_OFFSETS: [usize; 8] = [1, 17, 33, 48, 57, 65, 73, 88];

impl World {
    /// Whether a record was damaged.
    pub fn has_rot(&self) -> bool {
        self.rotten
    }

    /// Damages the last record of `key`, if it lies in a full segment.
    pub fn rot(&mut self, act: Act, key: u8, field: u8, model: &Model) -> Result<(), Error> {
        // Without this sync a crash could lose the segment's footer, in which the store looks up the key of a damaged record.
        match self.store().sync() {
            Ok(()) => {}
            Err(Error::Replaced { .. }) if self.replaced => {}
            Err(error) => return self.failed(act, error),
        }
        self.oracle.durable = self.oracle.history.len() - 1;
        let Some(at) = last_record_of(&self.disk.bytes(), name(key).as_bytes()) else {
            return Ok(());
        };
        self.rotten = true;
        self.disk.rot(at + ROTTEN_OFFSETS[usize::from(field) % ROTTEN_OFFSETS.len()], 0x41);
        let Some(version) = model.get(&key).and_then(|known| known.version) else { return Ok(()) };
        for known in self.oracle.history.iter_mut().filter_map(|model| model.get_mut(&key)) {
            known.damaged |= known.version == Some(version);
        }
        Ok(())
    }

    /// Performs an act on a key whose record is damaged. The store must refuse every call as corrupt, except one that
    /// removes the key.
    pub fn perform_on_damaged(&mut self, act: Act, key: u8, mut next: Model) -> Result<(), Error> {
        let store = self.store.as_ref().unwrap();
        let known = next[&key].clone();
        let is_held = self.leases.contains_key(&key);
        let refused = match act {
            Act::Begin(_) | Act::Resolve(..) => store.begin(&name(key), NONE).map(drop),
            Act::Record(..) | Act::RecordBuffered(..) | Act::RecordFor(..) => {
                store.record(&name(key), NONE, b"other").map(drop)
            }
            Act::Complete(..) => match self.leases.remove(&key) {
                Some(mut lease) => lease.complete(b"late").map(drop),
                None => return Ok(()),
            },
            Act::Release(_) => match self.leases.remove(&key) {
                Some(lease) => lease.release(),
                None => return Ok(()),
            },
            Act::Set(_, size) if size % 4 == 0 => {
                let to = Next::Completed { fingerprint: NONE, result: b"other" };
                let status = if is_held { Status::InProgress } else { known.status };
                let expected = Expected::Present { status, version: known.version.unwrap() };
                store.compare_and_set(&name(key), expected, to).map(drop)
            }
            Act::Set(..) => {
                next.remove(&key);
                self.oracle.in_flight = Some(next.clone());
                let status = if is_held { Status::InProgress } else { known.status };
                let expected = Expected::Present { status, version: known.version.unwrap() };
                match store.compare_and_set(&name(key), expected, Next::Absent) {
                    Ok(CasOutcome::Done(version)) => self.oracle.highest = self.checked_new(version),
                    // Only a forget gives up a job with its steps.
                    Err(Error::HasSteps { .. }) if known.is_held() => {
                        self.oracle.in_flight = None;
                        return Ok(());
                    }
                    // The record to which reclaiming copied the damaged one is damaged too, so the version is lost.
                    Err(Error::Corrupt { .. }) => {
                        self.oracle.in_flight = None;
                        return Ok(());
                    }
                    Ok(other) => panic!("{act:?}: {other:?}"),
                    Err(error) => return self.failed(act, error),
                }
                self.leases.remove(&key);
                self.acknowledge(next, !self.buffered);
                return Ok(());
            }
            Act::Forget(_) if is_held => match store.forget(&name(key)) {
                Err(Error::InProgress { .. }) => return Ok(()),
                other => other.map(drop),
            },
            Act::Forget(_) => {
                next.remove(&key);
                self.oracle.in_flight = Some(next.clone());
                match store.forget(&name(key)) {
                    Ok(true) => self.acknowledge(next, !self.buffered),
                    Ok(false) => panic!("{act:?}: found nothing, but the oracle has {known:?}"),
                    Err(error) => return self.failed(act, error),
                }
                return Ok(());
            }
            _ => {
                self.leases.remove(&key);
                return Ok(());
            }
        };
        match refused {
            Err(Error::Corrupt { .. }) => Ok(()),
            Ok(()) => panic!("{act:?}: was accepted, but the record is damaged: {known:?}"),
            Err(error) => self.failed(act, error),
        }
    }
}

/// Returns the offset of the last record of a key, if that record lies in a full segment.
fn last_record_of(file: &[u8], name: &[u8]) -> Option<usize> {
    const FILE_HEADER: usize = 4_096;
    const FRAME_HEADER: usize = 56;
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let slots = (FILE_HEADER..).step_by(SEGMENT_BYTES).take_while(|at| at + SEGMENT_BYTES <= file.len());
    let slots: Vec<usize> = slots.filter(|at| file[*at..].starts_with(b"ONCESEGM")).collect();
    let head = slots.iter().map(|at| u64_at(at + 80)).max()?;
    let segments: BTreeMap<u64, usize> =
        slots.into_iter().map(|at| (u64_at(at + 72), at)).filter(|(sequence, _)| *sequence >= head).collect();
    let mut last = None;
    for (sequence, slot) in &segments {
        let mut frame = slot + FILE_HEADER;
        let position_of = |at: usize| sequence * SEGMENT_BYTES as u64 + (at - slot) as u64;
        while frame + FRAME_HEADER <= slot + SEGMENT_BYTES && u64_at(frame + 8) == position_of(frame) {
            // An opening frame has other bytes in the place of records.
            let has_records = u32_at(frame + 36) > 0;
            let mut record = frame + FRAME_HEADER;
            while has_records && record < frame + u32_at(frame + 4) {
                // A step may have the name of a key, and a message states the key of its operation.
                let is_of_key = (1..=5).contains(&file[record + 8]);
                let carries = if file[record + 8] == 5 { 80 } else { 0 };
                let inner = record + carries;
                let key_at = inner + 80;
                if is_of_key
                    && file[key_at..].starts_with(name)
                    && usize::from(file[inner + 10]) == name.len()
                {
                    last = Some((*sequence, record));
                }
                record += u32_at(record + 4);
            }
            frame += u32_at(frame + 4);
        }
    }
    let (tail, _) = segments.last_key_value()?;
    last.filter(|(sequence, _)| sequence < tail).map(|(_, at)| at)
}
