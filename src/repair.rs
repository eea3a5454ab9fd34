//! Saves what a damaged file still holds into a new file.
//!
//! For each key, what decides is whether a record later than the last intact one may be lost:
//!
//! | the last intact record of the key | a later record | in the new file |
//! |---|---|---|
//! | any | cannot be lost | the record as it was; nothing if it says that the key is absent |
//! | any | is lost, and the footer of its segment says that it made the key absent | nothing |
//! | any | is lost, as the footer of its segment says | in doubt |
//! | any | may be lost, in a range that no footer describes | in doubt |
//! | none | is lost, as the footer of its segment says | the bytes of the lost record, as unreadable |
//! | none | may be lost | nothing: the new file says that it is a copy, which may have forgotten keys |
//!
//! The same goes for each step, if its operation is unfinished or in doubt in the new file; the steps of all others are of no
//! use. An operation in doubt has the origin that its steps state, because its own first record may be among those that are
//! lost. A message that is not known to be acknowledged is saved: it may be delivered again, as after a crash.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::clock::{BootId, TimeMark};
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::header::{Parameters, is_incomplete};
use crate::format::record::{Kind, Record, Value};
use crate::format::{CopyState, NEVER_MS, Seed};
use crate::hash::{ByHash, Domain};
use crate::key::OwnedKey;
use crate::log::building::{Heading, LogBuilder};
use crate::log::copying::{COPY_OPEN_COUNTS, CopyTarget};
use crate::log::largest_carried_bytes;
use crate::options::open_error;
use crate::planted::{Bug, planted};
use crate::progress::Progress;
use crate::record::{Liveness, liveness, lost_liveness};
use crate::recover::salvage::{Layout, Remains};
use crate::status::{MAX_OPEN_COUNT, Version};
use crate::storage::{NewFile, ReadOnlyFile, Storage};
use crate::verify::{Fault, verify_storage};

/// What [`repair`] saved, and what was lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Repair {
    /// The number of keys that are in the new file as they were.
    pub saved_keys: u64,
    /// The keys that are in doubt in the new file, because a later record of theirs is lost or may be.
    pub keys_in_doubt: Vec<OwnedKey>,
    /// The number of keys of which only the hash is known. Each call with such a key is [`Error::Corrupt`] until the key is
    /// [forgotten](crate::Store::forget).
    pub unreadable_keys: u64,
    /// The number of steps that are in the new file as they were, with the inputs. Only unfinished operations have steps.
    pub saved_steps: u64,
    /// The number of steps that are in doubt in the new file, because a later record of theirs is lost or may be.
    pub steps_in_doubt: u64,
    /// The number of messages of the outbox that are in the new file and are to be delivered. A message whose acknowledgement may
    /// be lost is among them.
    pub saved_messages: u64,
    /// Whether anything was lost. Then the new file is a copy: opening it is [`Error::Copy`] until a program states what it may
    /// have forgotten.
    pub is_copy: bool,
    /// Everything that is not as it was written, in the order of the damaged file: what [`verify`](crate::verify()) reports.
    pub faults: Vec<Fault>,
    /// The length of the new file, in bytes.
    pub bytes: u64,
}

/// Saves what the damaged store at `from` still holds into a new file at `to`. `from` is locked and only read.
///
/// What is saved is right: every record in the new file is one that the store had written and whose checksum matches. A key of
/// which a later record is lost, or may be, is in doubt, whatever its last intact record says: nothing is replayed and nothing
/// runs again until the doubt is resolved, by an operator or by [`reconcile`](crate::Operation::reconcile). If anything was lost,
/// the new file is a copy: keys that it does not know may have been lost too. See [the guide](crate::guide::damage).
///
/// The records that are saved keep their versions, times and retentions. Space of dead records is not copied. This takes memory
/// for one segment, and about 50 bytes for each key. Until the new file is complete, it is named `to` with `.incomplete` added,
/// and cannot be opened.
///
/// ```
/// use oncekey::{Fingerprint, Options, Status, Store, repair, verify};
///
/// let directory = tempfile::tempdir()?;
/// let (damaged, repaired) = (directory.path().join("a.once"), directory.path().join("b.once"));
/// let store = Options::new().segment_size(64 << 10).open(&damaged)?;
/// for n in 0..1_000 {
///     store.record(&format!("message:{n}"), Fingerprint::NONE, b"seen")?;
/// }
/// store.close()?;
/// let mut bytes = std::fs::read(&damaged)?;
/// bytes[20_000..20_512].fill(0); // a lost sector
/// std::fs::write(&damaged, bytes)?;
///
/// let report = repair(&damaged, &repaired)?;
/// assert!(report.saved_keys > 990 && report.is_copy);
/// let store = Options::new().may_have_forgotten(std::time::Duration::MAX).open(&repaired)?;
/// assert!(store.get("message:999")?.is_completed());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// - [`Error::Locked`]: `from` is open, or another repair writes to `to`.
/// - [`Error::NotAStore`]: nothing of a store is left in `from`. [`Error::Unsupported`]: it has a different format version.
/// - [`Error::Corrupt`]: no segment is left.
/// - [`Error::VersionsExhausted`]: the file was opened so often that no higher versions are left.
/// - [`Error::Io`]: `from` cannot be read, or `to` cannot be written, for instance because it exists.
pub fn repair(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Repair> {
    repair_with(from, to, |_| ControlFlow::Continue(()))
}

/// Repairs a store as [`repair`] does, and calls `progress` after each segment, which it reads three times. If that returns
/// `Break`, this stops and removes what it has written.
///
/// # Errors
///
/// Those of [`repair`], and [`Error::Stopped`].
pub fn repair_with(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Repair> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let source = ReadOnlyFile::open(from).map_err(|error| open_error(from, error))?;
    let source: Arc<dyn Storage> = Arc::new(source);
    let file = NewFile::create(to, is_incomplete).map_err(|error| open_error(to, error))?;
    let repair = repair_storage((&source, from), (file.storage(), to), progress)?;
    file.publish().map_err(|error| Error::io(to, "give the new file its name", error))?;
    Ok(repair)
}

/// Repairs the store on a simulated disk, for this crate's own tests.
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub fn repair_simulated(
    from: &crate::storage::simulated::SimulatedDisk,
    to: &crate::storage::simulated::SimulatedDisk,
) -> Result<Repair> {
    let source: Arc<dyn Storage> = Arc::new(from.clone());
    let path = Path::new(":simulation:");
    repair_storage((&source, path), (to, path), |_| ControlFlow::Continue(()))
}

/// Repairs a store on any storage.
fn repair_storage(
    (source, from): (&Arc<dyn Storage>, &Path),
    (storage, to): (&dyn Storage, &Path),
    mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Repair> {
    let layout = Layout::find(&**source, from)?;
    if layout.places.is_empty() {
        return Err(Error::corrupt(from, 0, "no segment is left"));
    }
    let total_bytes = 3 * layout.places.len() as u64 * layout.parameters.segment_bytes;
    let mut done_bytes = 0;
    let mut step = || {
        done_bytes += layout.parameters.segment_bytes;
        match progress(&Progress { done_bytes, total_bytes }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { path: from.to_owned() }),
        }
    };
    let mut stopped = Ok(());
    let verified = verify_storage(source, from, |_| {
        stopped = step();
        if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    stopped?;
    let mut report = Repair { faults: verified?.faults, ..Repair::default() };

    let mut keys = Keys::default();
    let mut bytes = Vec::new();
    for number in 0..layout.places.len() {
        let place = &layout.places[number];
        layout.read(place, &mut bytes)?;
        keys.add(&layout, number, &bytes, &layout.remains(place, &bytes)?);
        step()?;
    }
    let heading = keys.heading(&layout, from)?;
    report.is_copy = keys.anything_lost || layout.parameters.copied_seed.is_some();
    let target = CopyTarget::begin(storage, to, |file_id| {
        let copied_seed = report.is_copy.then(|| Seed::of_file(&file_id));
        Parameters { file_id, copied_seed, ..layout.parameters }
    })?;
    let mut builder = LogBuilder::new(target, heading);
    for place in &layout.places {
        layout.read(place, &mut bytes)?;
        let remains = layout.remains(place, &bytes)?;
        let base = place.sequence * layout.parameters.segment_bytes;
        for entry in &remains.records {
            let Some(record) = record_at(&bytes, base, entry, layout.parameters.seed()) else { continue };
            keys.save(&record, (entry.hash, base + entry.offset), &mut builder, &mut report)?;
        }
        for entry in lost_entries(&remains) {
            keys.carry(entry, base, &bytes, &mut builder, &mut report)?;
        }
        step()?;
    }
    report.bytes = builder.finish()?;
    Ok(report)
}

fn record_at<'a>(bytes: &'a [u8], base: u64, entry: &FooterEntry, seed: Seed) -> Option<Record<'a>> {
    Record::decode(entry.bytes_in(bytes)?, base + entry.offset, seed).ok()
}

/// The entries of the footer whose records are lost.
fn lost_entries(remains: &Remains) -> impl Iterator<Item = &FooterEntry> {
    let footer = remains.footer.as_deref().unwrap_or_default();
    footer.iter().filter(|entry| {
        remains.lost.iter().any(|lost| lost.start < entry.offset + entry.length && entry.offset < lost.end)
    })
}

/// What becomes of the last intact record of a key, a step or a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// No later record can be lost.
    Stands,
    /// A later record is lost, and says that there is nothing left.
    Ended,
    /// A later record is lost, or may be.
    Uncertain,
}

/// What is known of each key, and of the log as a whole.
#[derive(Default)]
struct Keys {
    /// The position and the kind of the last intact record of each key.
    intact: HashMap<u128, (u64, Kind), ByHash>,
    /// The highest origin in an intact record of each operation that began, or of a step of it.
    origins: HashMap<u128, Version, ByHash>,
    /// The position and the entry of the last lost record of each key, as far as footers list them.
    lost: HashMap<u128, (u64, FooterEntry), ByHash>,
    /// The position before which records of any key may be lost.
    unknown_before: u64,
    /// Whether the state of any key may be lost.
    anything_lost: bool,
    mark: Option<TimeMark>,
    open_count: u32,
    time_ms: u64,
    in_doubt_until_ms: u64,
}

impl Keys {
    fn add(&mut self, layout: &Layout<'_>, number: usize, bytes: &[u8], remains: &Remains) {
        let place = &layout.places[number];
        let segment_bytes = layout.parameters.segment_bytes;
        let base = place.sequence * segment_bytes;
        for entry in &remains.records {
            self.intact.insert(entry.hash, (base + entry.offset, entry.kind));
            let operation = match (entry.kind, entry.kind.domain()) {
                (Kind::Begun, _) => entry.hash,
                (_, Some(Domain::Step)) => entry.parent_hash(),
                _ => continue,
            };
            if let Some(record) = record_at(bytes, base, entry, layout.parameters.seed()) {
                let origin = self.origins.entry(operation).or_insert(record.origin);
                *origin = (*origin).max(record.origin);
            }
        }
        for entry in lost_entries(remains) {
            self.lost.insert(entry.hash, (base + entry.offset, *entry));
            self.open_count = self.open_count.max(entry.version.open_count());
        }
        if let (None, Some(last)) = (&remains.footer, remains.lost.last()) {
            // A missing segment stands for all that are missing before the next one.
            let next = layout.places.get(number + 1).map_or(u64::MAX, |next| next.sequence * segment_bytes);
            self.unknown_before = if place.slot.is_none() { next } else { base + last.end };
        }
        if remains.lacks_successor {
            self.unknown_before = u64::MAX;
        }
        if let Some(header) = &place.header {
            self.open_count = self.open_count.max(header.open_count);
            self.in_doubt_until_ms = self.in_doubt_until_ms.max(header.copy.in_doubt_until_ms);
            if self.mark.is_none_or(|mark| mark.store_ms <= header.mark.store_ms) {
                self.mark = Some(header.mark);
            }
        }
        self.open_count = self.open_count.max(remains.open_count);
        self.time_ms = self.time_ms.max(remains.time_ms);
        self.in_doubt_until_ms = self.in_doubt_until_ms.max(remains.in_doubt_until_ms);
    }

    /// Decides what the headers of the new file state. Called once everything is added.
    fn heading(&mut self, layout: &Layout<'_>, from: &Path) -> Result<Heading> {
        let unknown = TimeMark { store_ms: 0, wall_ms: 0, boot: BootId::UNKNOWN, boot_ms: 0 };
        let mut mark = self.mark.unwrap_or(unknown);
        // Store time has advanced with the other two clocks since the mark.
        let passed_ms = self.time_ms.saturating_sub(mark.store_ms);
        mark.store_ms += passed_ms;
        mark.wall_ms += passed_ms;
        mark.boot_ms += passed_ms;
        self.time_ms = mark.store_ms;
        let is_lost = |(hash, (position, entry)): (&u128, &(u64, FooterEntry))| {
            let is_last = self.intact.get(hash).is_none_or(|(intact, _)| intact < position);
            let is_of_ended =
                entry.kind.domain() == Some(Domain::Step) && !self.is_unfinished(entry.parent_hash());
            is_last && !is_of_ended && !self.is_gone(entry)
        };
        self.anything_lost = self.unknown_before > 0 || self.lost.iter().any(is_lost);
        let is_copy = self.anything_lost || layout.parameters.copied_seed.is_some();
        // A later session may be lost, with its open count.
        let raised = if is_copy { COPY_OPEN_COUNTS } else { 0 };
        let next_open_count = self.open_count.saturating_add(raised);
        if next_open_count >= MAX_OPEN_COUNT {
            return Err(Error::openings_exhausted(from));
        }
        let in_doubt_until_ms = if is_copy { self.in_doubt_until_ms } else { 0 };
        let copy = CopyState { in_doubt_until_ms, answered_by: 0 };
        Ok(Heading { mark, open_count: self.open_count, next_open_count, copy })
    }

    /// Whether the key is absent, according to the entry of a lost record.
    fn is_gone(&self, entry: &FooterEntry) -> bool {
        lost_liveness(Some(entry.kind), entry.key_expires_ms, self.time_ms) == Liveness::Gone
    }

    /// What becomes of the last intact record of a key, at this position.
    fn fate(&self, hash: u128, position: u64) -> Fate {
        let may_be_lost = position < self.unknown_before;
        match self.lost.get(&hash).filter(|(lost, _)| *lost > position) {
            // No record of a message follows its acknowledgement.
            Some((_, entry)) if entry.kind == Kind::Acknowledged => Fate::Ended,
            Some((_, entry)) if self.is_gone(entry) && !may_be_lost => Fate::Ended,
            None if !may_be_lost => Fate::Stands,
            _ => Fate::Uncertain,
        }
    }

    /// Whether the operation of the key with this hash is unfinished, in doubt or unreadable in the new file, so that its steps
    /// count.
    fn is_unfinished(&self, hash: u128) -> bool {
        let Some((position, kind)) = self.intact.get(&hash) else {
            return self.lost.get(&hash).is_some_and(|(_, entry)| !self.is_gone(entry));
        };
        match self.fate(hash, *position) {
            Fate::Stands => matches!(kind, Kind::Begun | Kind::Unreadable),
            Fate::Ended => false,
            Fate::Uncertain => true,
        }
    }

    /// Whether the step counts in the new file: its operation is not ended, and no later one of the same key has begun.
    fn is_of_unfinished(&self, step: &Record<'_>) -> bool {
        let parent = step.parent_hash();
        let is_of_last = step.kind.is_carrier() || self.origins.get(&parent) == Some(&step.origin);
        is_of_last && self.is_unfinished(parent)
    }

    /// Writes the state of a key, of which this is an intact record, if it is the last one.
    fn save(
        &self,
        record: &Record<'_>,
        (hash, position): (u128, u64),
        builder: &mut LogBuilder<'_>,
        report: &mut Repair,
    ) -> Result<()> {
        let is_last = self.intact.get(&hash).is_some_and(|(last, _)| *last == position);
        let resurrects = planted(Bug::RepairResurrects) && record.kind == Kind::Completed;
        if !is_last && !resurrects {
            return Ok(());
        }
        let fate = self.fate(hash, position);
        let domain = record.kind.domain();
        let is_step = domain == Some(Domain::Step);
        if fate == Fate::Ended || is_step && !self.is_of_unfinished(record) {
            return Ok(());
        }
        // The input of a job never changes. A message whose acknowledgement may be lost is delivered again, as after a crash.
        let is_input = record.kind == Kind::StepCompleted && record.key.name().is_empty();
        let is_message = domain == Some(Domain::Message);
        let is_kept = fate == Fate::Stands || is_input || record.kind.is_carrier() || is_message;
        if is_kept || planted(Bug::RepairTrustsEarlierRecord) {
            if liveness(record, self.time_ms) != Liveness::Gone {
                let is_unreadable = record.kind.is_carrier();
                match domain {
                    Some(Domain::Key) if is_unreadable => report.unreadable_keys += 1,
                    Some(Domain::Key) => report.saved_keys += 1,
                    Some(Domain::Message) if !is_unreadable => report.saved_messages += 1,
                    Some(Domain::Step) if !is_unreadable => report.saved_steps += 1,
                    _ => {}
                }
                builder.add(record, hash)?;
            }
            return Ok(());
        }
        if is_step {
            report.steps_in_doubt += 1;
            return builder.add(&doubt_about(record), hash);
        }
        report.keys_in_doubt.push(record.key.to_owned());
        let doubt = doubt_about(record);
        // The steps tell which operation of the key it is. Their names are hashed together with its origin.
        let steps = self.origins.get(&hash).filter(|_| !planted(Bug::RepairKeepsEarlierOrigin));
        let origin = steps.map_or(doubt.origin, |origin| doubt.origin.max(*origin));
        builder.add(&Record { origin, version: doubt.version.max(origin), ..doubt }, hash)
    }

    /// Writes the bytes of a lost record, if nothing else is left of its key.
    fn carry(
        &self,
        entry: &FooterEntry,
        base: u64,
        bytes: &[u8],
        builder: &mut LogBuilder<'_>,
        report: &mut Repair,
    ) -> Result<()> {
        let is_last =
            self.lost.get(&entry.hash).is_some_and(|(position, _)| *position == base + entry.offset);
        let is_gone = self.is_gone(entry) && self.unknown_before <= base + entry.offset;
        let is_ended = match entry.kind.domain() {
            Some(Domain::Step) => !self.is_unfinished(entry.parent_hash()),
            _ => entry.kind == Kind::Acknowledged,
        };
        if !is_last || is_gone || is_ended || self.intact.contains_key(&entry.hash) {
            return Ok(());
        }
        let max_bytes = largest_carried_bytes(builder.segment_bytes());
        let lost = entry.bytes_in(bytes).unwrap_or_default();
        let lost = &lost[..lost.len().min(usize::try_from(max_bytes).unwrap_or(usize::MAX))];
        report.unreadable_keys += u64::from(entry.kind.domain() == Some(Domain::Key));
        builder.add(&entry.carrying(lost, self.time_ms), entry.hash)
    }
}

/// The record of an attempt in doubt, in the place of a record after which others may be lost.
///
/// A step is in doubt as its operation would be. Its expiry fields hold the hash of the operation's key.
fn doubt_about<'a>(record: &Record<'a>) -> Record<'a> {
    let note: &[u8] = match record.kind {
        Kind::Completed | Kind::StepCompleted => {
            b"repaired: later records may be lost; the last one that is left says that it is completed"
        }
        Kind::Released | Kind::StepReleased => {
            b"repaired: later records may be lost; the last one that is left says that it was released"
        }
        Kind::Forgotten => {
            b"repaired: later records may be lost; the last one that is left says that it was forgotten"
        }
        _ => b"repaired: later records may be lost",
    };
    let typing = record.value.without_result().typing;
    let result =
        if matches!(record.kind, Kind::Begun | Kind::StepBegun) { record.value.result } else { None };
    let value = Value { result: result.or(Some(note)), typing, ..Value::NONE };
    if record.kind.domain() == Some(Domain::Step) {
        return Record { kind: Kind::StepBegun, value, ..*record };
    }
    Record { kind: Kind::Begun, key_expires_ms: NEVER_MS, result_expires_ms: NEVER_MS, value, ..*record }
}
