//! Checks a whole file and changes nothing: every frame, every record, footers against records, what attests the end of the
//! log, and whether an opening would succeed.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::SECTOR_BYTES;
use crate::format::footer::FooterEntry;
use crate::format::record::{Kind, Record};
use crate::hash::{ByHash, Domain};
use crate::key::OwnedKey;
use crate::options::open_error;
use crate::planted::{Bug, planted};
use crate::progress::Progress;
use crate::record::{Liveness, lost_liveness};
use crate::recover::salvage::{Layout, Place, Remains};
use crate::recover::{Rehearsal, rehearse};
use crate::status::Version;
use crate::storage::{FileStorage, ReadOnlyFile, Storage};
use crate::sync::Patience;

/// What [`verify`] found in a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Whether the store can be opened.
    pub opens: bool,
    /// Whether the store was closed cleanly and not opened since. If not, opening it rewrites the end of the log.
    pub was_closed: bool,
    /// The number of segments of the log.
    pub segments: u64,
    /// The number of intact frames.
    pub frames: u64,
    /// The number of intact records, superseded and expired ones included.
    pub records: u64,
    /// The number of keys that the store remembers. Zero if it cannot be opened.
    pub keys: u64,
    /// The number of full segments without a valid footer. A crash can leave such segments, and recovery reads their frames
    /// instead.
    pub segments_without_footer: u64,
    /// Everything that is not as it was written, in the order of the file.
    pub faults: Vec<Fault>,
}

/// A part of a file that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Where the damage begins, in bytes from the start of the file.
    pub offset: u64,
    /// How many bytes are affected, as far as that is known.
    pub length_bytes: u64,
    /// The key whose record is damaged; for a step the [key of the step](crate::Key::step), for a message that of the operation
    /// which emitted it. `None` if the damage is not in one record, or if the key is unknown.
    pub key: Option<OwnedKey>,
    /// What the damage does.
    pub consequence: Consequence,
    /// What is wrong.
    pub reason: String,
}

/// What a [`Fault`] does to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Consequence {
    /// The store cannot be opened: [`Error::Corrupt`].
    Refused,
    /// The last record of a key cannot be read. Each call with that key is [`Error::Corrupt`].
    KeyUnreadable,
    /// The last record of a step of an unfinished operation cannot be read. Each call with that step is [`Error::Corrupt`].
    StepUnreadable,
    /// A message that is not acknowledged cannot be read. Those after it in its topic wait until it is
    /// [skipped](crate::Outbox::skip_unreadable).
    MessageUnreadable,
    /// The store can give a wrong answer. No damage of a disk does this by chance.
    WrongAnswer,
    /// No answer changes: the record was superseded or has expired, or the log has the information twice.
    Harmless,
}

impl Verification {
    /// Whether nothing was found that is not as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Checks the store in the file at `path` and changes nothing.
///
/// It reads every frame and record, compares footers with records, checks what attests the end of the log, and tries whether
/// the store can be opened. It needs no more than permission to read, and memory for one segment and an index.
///
/// The file is locked for reading. A store that is open cannot be checked, because bytes that change while they are read look
/// like damage: that is [`Error::Locked`]. To check the data of a store that is in use, check a
/// [backup](crate::Store::backup) of it. While this runs, the store cannot be opened.
///
/// Damage to the very last frames of a store that was not closed cannot be distinguished from a crash, so it is not reported:
/// see [limits](crate::guide::limits).
///
/// ```
/// use oncekey::{Fingerprint, Store, verify};
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("payments.once");
/// let store = Store::open(&path)?;
/// store.record("charge:1", Fingerprint::NONE, b"receipt")?;
/// store.close()?;
/// let verification = verify(&path)?;
/// assert!(verification.is_sound() && verification.opens);
/// assert_eq!((verification.keys, verification.records), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Damage is no error: it is in [`Verification::faults`].
///
/// - [`Error::Locked`]: the file is open, in this process or another one.
/// - [`Error::NotAStore`], [`Error::Unsupported`]: the file is not a store, or has a different format version.
/// - [`Error::Io`]: the file cannot be read.
pub fn verify(path: impl AsRef<Path>) -> Result<Verification> {
    verify_with(path, |_| ControlFlow::Continue(()))
}

/// Checks a store as [`verify`] does, and calls `progress` after each segment. If that returns `Break`, this stops.
///
/// # Errors
///
/// Those of [`verify`], and [`Error::Stopped`].
pub fn verify_with(
    path: impl AsRef<Path>,
    progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Verification> {
    let path = path.as_ref();
    if planted(Bug::VerifyOpensToWrite) {
        let storage =
            FileStorage::open(path, false, false, Patience::None).map_err(|error| open_error(path, error))?;
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let stamp = crate::storage::write_all_at(&*storage, &[1; 8], SECTOR_BYTES as u64);
        stamp.map_err(|error| Error::io(path, "write", error))?;
        return verify_storage(&storage, path, progress);
    }
    let storage = ReadOnlyFile::open(path).map_err(|error| open_error(path, error))?;
    let storage: Arc<dyn Storage> = Arc::new(storage);
    verify_storage(&storage, path, progress)
}

/// Checks a store on any storage.
pub(crate) fn verify_storage(
    storage: &Arc<dyn Storage>,
    path: &Path,
    mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Verification> {
    let layout = Layout::find(&**storage, path)?;
    let rehearsal = match rehearse(storage, path) {
        Err(error @ (Error::Unsupported { .. } | Error::Io { .. })) => return Err(error),
        rehearsal => rehearsal,
    };
    let now_ms = rehearsal.as_ref().map_or(0, |rehearsal| rehearsal.time.store_ms());
    let mut check =
        Check { layout: &layout, now_ms, found: Vec::new(), verification: Verification::default() };
    for problem in &layout.problems {
        let (offset, length_bytes, reason) = (problem.offset, problem.length, problem.reason.clone());
        let fault = Fault { offset, length_bytes, key: None, consequence: Consequence::Refused, reason };
        check.found.push(Found { fault, lost: None });
    }
    let total_bytes = layout.places.len() as u64 * layout.parameters.segment_bytes;
    let mut bytes = Vec::new();
    for (number, place) in layout.places.iter().enumerate() {
        layout.read(place, &mut bytes)?;
        check.segment(place, &bytes)?;
        let done_bytes = (number as u64 + 1) * layout.parameters.segment_bytes;
        if progress(&Progress { done_bytes, total_bytes }).is_break() {
            return Err(Error::Stopped { path: path.to_owned() });
        }
    }
    check.identify(&mut bytes)?;
    Ok(check.finish(rehearsal))
}

/// Checks the store on a simulated disk, for this crate's own tests.
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub fn verify_simulated(disk: &crate::storage::simulated::SimulatedDisk) -> Result<Verification> {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    verify_storage(&storage, Path::new(":simulation:"), |_| ControlFlow::Continue(()))
}

/// A fault, and the record that it is in.
struct Found {
    fault: Fault,
    lost: Option<Lost>,
}

/// A damaged record, as the footer of its segment describes it.
struct Lost {
    entry: FooterEntry,
    position: u64,
    /// The name, if it is that of a step.
    step: Option<Vec<u8>>,
}

/// The last intact record of the key of an operation, of whose steps a record is damaged.
#[derive(Default)]
struct Parent {
    key: Option<OwnedKey>,
    position: u64,
    /// The origin, if the record is that of an attempt which began. Steps of an earlier operation have a lower version.
    unfinished: Option<Version>,
}

struct Check<'a> {
    layout: &'a Layout<'a>,
    now_ms: u64,
    found: Vec<Found>,
    verification: Verification,
}

impl Check<'_> {
    fn segment(&mut self, place: &Place, bytes: &[u8]) -> Result<()> {
        self.verification.segments += 1;
        let Some(slot) = place.slot else { return Ok(()) };
        let slot_offset = self.layout.slot_offset(slot);
        let remains = self.layout.remains(place, bytes)?;
        self.verification.frames += remains.frames;
        self.verification.records += remains.record_count;
        let Some(footer) = &remains.footer else {
            self.verification.segments_without_footer += u64::from(!place.is_tail);
            for lost in &remains.lost {
                let reason = "no intact frame or record is here, although the log was on disk here";
                self.add(slot_offset, lost, Consequence::Refused, reason, None);
            }
            return Ok(());
        };
        self.lost_in_listed_segment(place, slot_offset, bytes, &remains, footer);
        self.compare_footer(slot_offset, &remains, footer);
        Ok(())
    }

    fn add(
        &mut self,
        slot_offset: u64,
        range: &Range<u64>,
        consequence: Consequence,
        reason: &str,
        lost: Option<Lost>,
    ) {
        let (offset, length_bytes) = (slot_offset + range.start, range.end - range.start);
        let fault = Fault { offset, length_bytes, key: None, consequence, reason: reason.to_owned() };
        self.found.push(Found { fault, lost });
    }

    /// Reports the lost ranges of a segment whose footer lists the records.
    fn lost_in_listed_segment(
        &mut self,
        place: &Place,
        slot_offset: u64,
        bytes: &[u8],
        remains: &Remains,
        footer: &[FooterEntry],
    ) {
        let base = place.sequence * self.layout.parameters.segment_bytes;
        for lost in &remains.lost {
            let first = footer.partition_point(|entry| entry.offset + entry.length <= lost.start);
            let listed = footer[first..].iter().take_while(|entry| entry.offset < lost.end);
            let mut is_listed = false;
            for entry in listed {
                is_listed = true;
                let range = entry.range();
                let liveness = lost_liveness(Some(entry.kind), entry.key_expires_ms, self.now_ms);
                let consequence = match liveness {
                    Liveness::Gone => Consequence::Harmless,
                    _ => match entry.kind.domain() {
                        Some(Domain::Step) => Consequence::StepUnreadable,
                        Some(Domain::Message) => Consequence::MessageUnreadable,
                        Some(Domain::Key) | None => Consequence::KeyUnreadable,
                    },
                };
                let reason = "the record's checksum does not match";
                let (key, step) = self.named_within(entry, bytes);
                let lost = Lost { entry: *entry, position: base + entry.offset, step };
                self.add(slot_offset, &range, consequence, reason, Some(lost));
                if let Some(found) = self.found.last_mut() {
                    found.fault.key = key;
                }
            }
            if !is_listed {
                let reason = "a frame header, or a record that was superseded in its segment, is damaged";
                self.add(slot_offset, lost, Consequence::Harmless, reason, None);
            }
        }
    }

    /// Returns the key that a record states, or the name of its step, if the hash is the one in the footer.
    fn named_within(&self, entry: &FooterEntry, bytes: &[u8]) -> (Option<OwnedKey>, Option<Vec<u8>>) {
        let mut copy = entry.bytes_in(bytes).unwrap_or_default().to_vec();
        let Ok(record) = Record::decode_regardless(&mut copy) else { return (None, None) };
        if record.kind.is_carrier() || record.key_hash(&self.layout.hasher) != entry.hash {
            return (None, None);
        }
        match record.kind.domain() {
            Some(Domain::Step) => (None, Some(record.key.name().to_vec())),
            _ => (Some(record.key.to_owned()), None),
        }
    }

    /// Compares the footer with the records that are intact.
    fn compare_footer(&mut self, slot_offset: u64, remains: &Remains, footer: &[FooterEntry]) {
        let by_offset: HashMap<u64, &FooterEntry> =
            remains.records.iter().map(|record| (record.offset, record)).collect();
        let listed: HashMap<u128, &FooterEntry, ByHash> =
            footer.iter().map(|entry| (entry.hash, entry)).collect();
        let is_lost = |offset: u64| remains.lost.iter().any(|lost| lost.contains(&offset));
        for entry in footer {
            let is_right = match by_offset.get(&entry.offset) {
                Some(record) => *record == entry,
                None => is_lost(entry.offset),
            };
            if !is_right {
                let range = entry.range();
                let reason = "the footer's entry does not describe the record";
                self.add(slot_offset, &range, Consequence::WrongAnswer, reason, None);
            }
        }
        for record in &remains.records {
            let is_listed = listed.get(&record.hash).is_some_and(|entry| entry.offset >= record.offset);
            if !is_listed {
                let range = record.offset..record.offset + record.length;
                let reason = "the footer does not list the record";
                self.add(slot_offset, &range, Consequence::WrongAnswer, reason, None);
            }
        }
    }

    /// Finds the keys of damaged records, and those that later records superseded, by reading the segments again.
    fn identify(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let mut by_hash: HashMap<u128, Vec<usize>, ByHash> = HashMap::default();
        let mut parents: HashMap<u128, Parent, ByHash> = HashMap::default();
        for (number, found) in self.found.iter().enumerate() {
            let Some(Lost { entry, .. }) = &found.lost else { continue };
            by_hash.entry(entry.hash).or_default().push(number);
            if entry.kind.domain() == Some(Domain::Step) {
                parents.entry(entry.parent_hash()).or_default();
            }
        }
        if by_hash.is_empty() {
            return Ok(());
        }
        for numbers in by_hash.values() {
            // Of several damaged records of a key, only the last one decides.
            for number in &numbers[..numbers.len() - 1] {
                self.found[*number].fault.consequence = Consequence::Harmless;
            }
        }
        for place in self.layout.places.iter().filter(|place| place.slot.is_some()) {
            self.layout.read(place, bytes)?;
            let base = place.sequence * self.layout.parameters.segment_bytes;
            for entry in self.layout.remains(place, bytes)?.records {
                if let Some(parent) = parents.get_mut(&entry.hash) {
                    self.see_parent(parent, &entry, base, bytes);
                }
                let Some(numbers) = by_hash.get(&entry.hash) else { continue };
                let (key, step) = self.named_within(&entry, bytes);
                for number in numbers {
                    let Found { fault, lost: Some(lost) } = &mut self.found[*number] else { continue };
                    fault.key = fault.key.take().or_else(|| key.clone());
                    lost.step = lost.step.take().or_else(|| step.clone());
                    if lost.position < base + entry.offset {
                        fault.consequence = Consequence::Harmless;
                    }
                }
            }
        }
        let last_lost = |hash: &u128| {
            let last = by_hash.get(hash).and_then(|numbers| self.found[*numbers.last()?].lost.as_ref());
            last.map_or(0, |lost| lost.position)
        };
        for (hash, parent) in &mut parents {
            // An operation whose own record cannot be read counts as unfinished, whatever its origin is.
            if last_lost(hash) > parent.position {
                parent.unfinished = Some(Version::from_u64(0));
            }
        }
        self.judge_steps(&parents);
        Ok(())
    }

    /// Notes a later record of the key of an operation, of whose steps a record is damaged.
    fn see_parent(&self, parent: &mut Parent, entry: &FooterEntry, base: u64, bytes: &[u8]) {
        let range = usize::try_from(entry.offset).ok().and_then(|offset| bytes.get(offset..));
        let record = range
            .and_then(|bytes| Record::decode(bytes, base + entry.offset, self.layout.parameters.seed()).ok());
        parent.position = base + entry.offset;
        parent.unfinished = match entry.kind {
            Kind::Begun => record.map(|record| record.origin),
            Kind::Unreadable => Some(Version::from_u64(0)),
            _ => None,
        };
        parent.key = parent.key.take().or_else(|| self.named_within(entry, bytes).0);
    }

    /// Finds the keys of damaged steps. Those of operations that have ended are of no use.
    fn judge_steps(&mut self, parents: &HashMap<u128, Parent, ByHash>) {
        let is_refused = self.found.iter().any(|found| found.fault.consequence == Consequence::Refused);
        for Found { fault, lost } in &mut self.found {
            let Some(Lost { entry, step, .. }) = lost else { continue };
            if entry.kind.domain() != Some(Domain::Step) {
                continue;
            }
            let Some(parent) = parents.get(&entry.parent_hash()) else { continue };
            let is_live = parent.unfinished.is_some_and(|origin| entry.version > origin);
            // If the store cannot be opened, the record of the operation may be in what is lost.
            if !is_live && !is_refused {
                fault.consequence = Consequence::Harmless;
            }
            if let (Some(key), Some(step)) = (&parent.key, step) {
                fault.key = Some(key.as_key().step(step).to_owned());
            }
        }
    }

    fn finish(self, rehearsal: Result<Rehearsal>) -> Verification {
        let Check { found, mut verification, .. } = self;
        verification.faults = found.into_iter().map(|found| found.fault).collect();
        match rehearsal {
            Ok(rehearsal) => {
                verification.opens = true;
                verification.was_closed = rehearsal.was_closed;
                verification.keys = rehearsal.keys;
            }
            Err(error) => {
                let is_explained =
                    verification.faults.iter().any(|fault| fault.consequence == Consequence::Refused);
                if !is_explained {
                    let (offset, reason) = match error {
                        Error::Corrupt { offset, reason, .. } => (offset, reason),
                        other => (0, other.to_string()),
                    };
                    let consequence = Consequence::Refused;
                    verification.faults.push(Fault {
                        offset,
                        length_bytes: 0,
                        key: None,
                        consequence,
                        reason,
                    });
                }
            }
        }
        verification.faults.sort_by_key(|fault| fault.offset);
        verification
    }
}
