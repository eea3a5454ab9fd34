//! The state of a simulated disk: its two images, the unsynced changes that a crash may keep or lose, and the faults that
//! are planted.

use std::collections::BTreeMap;
use std::io;

use crate::format::SECTOR_BYTES;

/// A fault in a single call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// The machine loses power during the call. Every later call fails.
    PowerLoss,
    /// The call fails with an input/output error. Later calls succeed.
    Error,
    /// The call fails with an input/output error, and so does every later one of its kind: read, write or sync.
    ErrorFromNowOn,
    /// A signal interrupts the call before it does anything.
    Interrupted,
    /// The call reads or writes fewer bytes than requested.
    Short,
}

/// Which file the store's path refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PathTarget {
    /// The file that the store has open.
    #[default]
    Here,
    /// A different file, or none.
    Elsewhere,
    /// The operating system reports an error instead.
    Unknown,
}

/// The kind of a call, for faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// A read.
    Read,
    /// A write or a change of length.
    Write,
    /// A sync.
    Sync,
}

/// A change of a sector or of the length.
#[derive(Debug, Clone)]
struct Change<T> {
    /// Changes of sectors and of the length are numbered together, in the order in which they are made.
    number: u64,
    /// The new value.
    value: T,
}

/// The state of a [`SimulatedDisk`](super::SimulatedDisk).
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// The image that the operating system shows.
    pub(super) cache: Vec<u8>,
    /// The image that survives a crash.
    medium: Vec<u8>,
    /// The number of the latest change.
    pub(super) changes: u64,
    /// The contents that were written to each sector since the last sync, oldest first.
    unsynced: BTreeMap<usize, Vec<Change<Vec<u8>>>>,
    /// The lengths that the file had since the last sync.
    lengths: Vec<Change<usize>>,
    /// The number of sectors of the medium that contain synced bytes: all sectors up to the synced length.
    synced_sectors: usize,
    /// The number of writes, syncs and changes of length so far.
    pub(super) steps: u64,
    /// The number of reads so far.
    pub(super) reads: u64,
    /// The planted faults, by the number of the step.
    pub(super) faults: BTreeMap<u64, DiskFault>,
    /// The planted faults in reads, by the number of the read.
    pub(super) read_faults: BTreeMap<u64, DiskFault>,
    /// The kinds of call that fail from now on.
    failing: Vec<CallKind>,
    /// Whether the machine has power. Without power, every call fails.
    has_power: bool,
    /// The maximum length of the file, if the disk is limited.
    pub(super) capacity_bytes: Option<usize>,
    /// Whether the disk reports that it cannot reserve space without writing.
    pub(super) reserve_is_unsupported: bool,
    /// The number of syncs that succeeded.
    pub(super) syncs: u64,
    /// Which file the store's path refers to.
    pub(super) path_target: PathTarget,
    /// Whether the store has released its lock on the file.
    pub(super) is_unlocked: bool,
    /// The number of reads, writes and changes of length while the file was unlocked.
    pub(super) touched_unlocked: u64,
    /// Whether a sync waits before it takes effect, until this is cleared.
    pub(super) delays_syncs: bool,
    /// The number of syncs that are waiting because of `delays_syncs`.
    pub(super) delayed_syncs: usize,
}

impl Disk {
    /// Creates a disk whose content is `bytes`, all of them synced.
    pub(super) fn with_synced(bytes: Vec<u8>) -> Disk {
        let synced_sectors = bytes.len().div_ceil(SECTOR_BYTES);
        Disk { cache: bytes.clone(), medium: bytes, synced_sectors, has_power: true, ..Disk::default() }
    }

    /// Returns an error if the machine has lost power.
    pub(super) fn check_power(&self) -> io::Result<()> {
        if self.has_power { Ok(()) } else { Err(power_is_gone()) }
    }

    /// Removes all faults and restores power.
    pub(super) fn heal(&mut self) {
        self.faults.clear();
        self.read_faults.clear();
        self.failing.clear();
        self.has_power = true;
    }

    /// Adds `by` to a byte of both images.
    pub(super) fn rot(&mut self, offset: usize, by: u8) {
        for image in [&mut self.cache, &mut self.medium] {
            if let Some(byte) = image.get_mut(offset) {
                *byte = byte.wrapping_add(by);
            }
        }
    }

    /// Counts a call and returns the fault that the caller must simulate, if any.
    ///
    /// # Errors
    ///
    /// The machine has lost power, or a signal interrupts the call. The caller must not simulate anything then.
    pub(super) fn step(&mut self, kind: CallKind) -> io::Result<Option<DiskFault>> {
        self.check_power()?;
        self.touched_unlocked += u64::from(self.is_unlocked && kind != CallKind::Sync);
        let fault = if kind == CallKind::Read {
            self.reads += 1;
            self.read_faults.remove(&(self.reads - 1))
        } else {
            self.steps += 1;
            self.faults.remove(&(self.steps - 1))
        };
        match fault {
            Some(DiskFault::ErrorFromNowOn) => self.failing.push(kind),
            Some(DiskFault::PowerLoss) => self.has_power = false,
            Some(DiskFault::Interrupted) => return Err(io::ErrorKind::Interrupted.into()),
            Some(DiskFault::Error | DiskFault::Short) | None => {}
        }
        if fault.is_none() && self.failing.contains(&kind) {
            return Ok(Some(DiskFault::Error));
        }
        Ok(fault.map(|fault| if fault == DiskFault::ErrorFromNowOn { DiskFault::Error } else { fault }))
    }

    /// Changes the length of the file in the cache.
    pub(super) fn set_length(&mut self, length: usize) {
        if length == self.cache.len() {
            return;
        }
        // Pending writes to sectors that are cut off are dropped. New sectors read as zero.
        let kept = length.div_ceil(SECTOR_BYTES);
        self.unsynced.retain(|sector, _| *sector < kept);
        if length < self.cache.len() && !length.is_multiple_of(SECTOR_BYTES) {
            self.cache.resize(length, 0);
            self.note_sector(length / SECTOR_BYTES);
        }
        self.cache.resize(length, 0);
        let change = self.change(length);
        self.lengths.push(change);
    }

    /// Writes `bytes` to the cache.
    pub(super) fn put(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.cache.len() {
            self.set_length(end);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            self.note_sector(sector);
        }
    }

    /// Records the current content of a sector as one that a crash may leave there.
    fn note_sector(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cache.len());
        let content = self.change(self.cache[start..end].to_vec());
        self.unsynced.entry(sector).or_default().push(content);
    }

    /// Numbers a change.
    fn change<T>(&mut self, value: T) -> Change<T> {
        self.changes += 1;
        Change { number: self.changes, value }
    }

    /// Forgets all changes up to this number without writing them to the medium, as Linux does after a failed sync. The
    /// cache then shows bytes that a crash will lose.
    pub(super) fn mark_clean(&mut self, up_to: u64) {
        self.lengths.retain(|change| change.number > up_to);
        self.unsynced.retain(|_, contents| {
            contents.retain(|change| change.number > up_to);
            !contents.is_empty()
        });
    }

    /// Writes all changes up to this number to the medium.
    pub(super) fn write_to_medium(&mut self, up_to: u64) {
        let is_later = |number: u64| number > up_to;
        let lengths = self.lengths.iter().take_while(|change| !is_later(change.number));
        let lengths: Vec<usize> = lengths.map(|change| change.value).collect();
        if let Some(length) = lengths.last() {
            // Bytes beyond the shortest of the lengths are gone, even if the file grew again afterwards.
            self.medium.truncate(lengths.iter().copied().min().unwrap_or_default());
            self.medium.resize(*length, 0);
            // A sync that makes a length durable makes the bytes below it durable too, as zeroes if they were never
            // written.
            self.synced_sectors = length.div_ceil(SECTOR_BYTES);
            self.lengths.drain(..lengths.len());
        }
        for (sector, contents) in &mut self.unsynced {
            let count = contents.iter().take_while(|change| !is_later(change.number)).count();
            let Some(latest) = contents.drain(..count).next_back() else { continue };
            put_sector(&mut self.medium, *sector, &latest.value);
        }
        self.unsynced.retain(|_, contents| !contents.is_empty());
    }

    /// The number of sectors with unsynced changes, plus one if the length has any.
    pub(super) fn undecided(&self) -> usize {
        self.unsynced.len() + usize::from(!self.lengths.is_empty())
    }

    /// Returns the content after a crash at this moment; see [`SimulatedDisk::crash`](super::SimulatedDisk::crash).
    pub(super) fn crash(&self, mut decide: impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut length = self.medium.len();
        if !self.lengths.is_empty() {
            let choice = decide(self.lengths.len() + 1);
            let chosen = choice.checked_sub(1).and_then(|at| self.lengths.get(at));
            length = chosen.map_or(length, |change| change.value);
        }
        let mut bytes = self.medium.clone();
        bytes.resize(length, 0);
        for (sector, contents) in &self.unsynced {
            let may_be_garbage = *sector >= self.synced_sectors;
            let choice = decide(contents.len() + 1 + usize::from(may_be_garbage));
            let garbage = || (0..SECTOR_BYTES).map(|at| garbage_byte(*sector, at)).collect::<Vec<u8>>();
            let content = match choice.checked_sub(1) {
                None => continue,
                Some(at) => contents.get(at).map_or_else(garbage, |change| change.value.clone()),
            };
            put_sector(&mut bytes, *sector, &content);
        }
        bytes
    }
}

/// Writes a sector to the image, without the part of it that lies beyond the end of the image.
fn put_sector(image: &mut [u8], sector: usize, content: &[u8]) {
    if let Some(rest) = image.get_mut(sector * SECTOR_BYTES..) {
        let fits = rest.len().min(content.len());
        rest[..fits].copy_from_slice(&content[..fits]);
    }
}

/// Returns a pseudorandom byte that depends only on its position, so that every run sees the same garbage.
fn garbage_byte(sector: usize, at: usize) -> u8 {
    let mixed = (sector * 31 + at).wrapping_mul(0x9E37_79B9);
    u8::try_from((mixed >> 16) & 0xFF).unwrap_or(0xAA)
}

pub(super) fn power_is_gone() -> io::Error {
    io::Error::other("simulated: the machine has lost power")
}

pub(super) fn input_output_error() -> io::Error {
    io::Error::other("simulated: input/output error")
}
